"""What PTX text consists of: modules, functions, variables, instructions and operands (PTX ISA, chapter "Syntax")."""

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

Location = tuple[int, int, int]  # file, line, column
MOST_INLINED = 64  # calls within calls
TYPE_BITS = {f"{kind}{bits}": bits for kind in "bus" for bits in (8, 16, 32, 64)}
TYPE_BITS |= {"f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32, "f32": 32, "f64": 64, "pred": 1, "b128": 128}


class PtxError(Exception):
    """PTX text that cannot be run: a syntax error, an undeclared name, or an instruction the emulator lacks.

    `line` and `column` count from 1; `text` is that source line.
    """

    def __init__(self, problem: str, line: int, column: int, text: str) -> None:
        self.problem, self.line, self.column, self.text = problem, line, column, text
        super().__init__(f"line {line}, column {column}: {problem}: {text.strip()[:200]}")


@dataclass(frozen=True)
class Name:
    """A register, label, variable or special register; `_` is the sink."""

    text: str


@dataclass(frozen=True)
class Immediate:
    value: int | float
    pattern: int | None = None  # of a 0f or 0d literal
    width: int = 0  # its bits


@dataclass(frozen=True)
class Address:
    """`[base+offset]`; also `name[index]` and `name+offset`, where no brackets surround the whole."""

    base: Name | Immediate
    offset: int
    brackets: bool = True
    scaled: bool = False  # the offset counts elements of the variable


@dataclass(frozen=True)
class Vector:
    items: tuple["Operand", ...]


@dataclass(frozen=True)
class Group:
    """`(a, b)`: what a call passes or receives."""

    items: tuple["Operand", ...]


@dataclass(frozen=True)
class Pair:
    """`p|q`: two destinations."""

    first: "Operand"
    second: "Operand"


@dataclass(frozen=True)
class Not:
    name: Name


@dataclass(frozen=True)
class Negated:
    """`-r`, of a video instruction."""

    name: Name


Operand = Name | Immediate | Address | Vector | Group | Pair | Not | Negated


@dataclass(frozen=True)
class Relocation:
    """An address in a variable's initial bytes: of `name` plus `addend`, or the byte of it that `mask` picks."""

    offset: int
    size: int
    name: str
    addend: int
    mask: int | None
    position: int


@dataclass(eq=False)
class Variable:
    """A variable of any state space. `size` in bytes (0: extern array), `values` the initial bytes.

    `extents` are those of an array, innermost last; `elements` is 2 or 4 for the vector types .v2 and .v4.
    """

    name: str
    size: int
    alignment: int
    type: str
    external: bool = False
    values: bytes = b""
    space: str = ""
    extents: tuple[int, ...] = ()
    elements: int = 1
    relocations: tuple[Relocation, ...] = ()
    position: int = 0


@dataclass(eq=False)
class Scope:
    """What one { } block declares. Labels are indices into the instructions of the function."""

    parent: "Scope | None"
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    ranges: dict[str, tuple[str, int]] = field(default_factory=dict)  # prefix -> (type, count)
    labels: dict[str, int] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)  # .branchtargets and .calltargets
    prototypes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    # register -> the register of another scope that it stands for
    aliases: dict[str, tuple["Scope", str]] = field(default_factory=dict)

    def outward(self) -> "Iterator[Scope]":
        """This block and those around it."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def register(self, name: str) -> "tuple[Scope, str, str] | None":
        """The block that declares a register, its name there and its type."""
        for scope in self.outward():
            if name in scope.aliases:
                scope, name = scope.aliases[name]
            if name in scope.registers:
                return scope, name, scope.registers[name]
            if name in scope.variables:
                return None
            kind = scope.of_range(name) if scope.ranges else None
            if kind:
                return scope, name, kind
        return None

    def of_range(self, name: str) -> str | None:
        """The type of a register that a declaration like `%r<10>` of this block holds."""
        for split in range(len(name.rstrip("0123456789")), len(name)):
            kind, count = self.ranges.get(name[:split], ("", 0))
            number = name[split:]
            if kind and len(number) < 12 and int(number) < count and (number == "0" or number[0] != "0"):
                return kind
        return None


@dataclass(slots=True)
class Instruction:
    mnemonic: str
    qualifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: str | None
    negated: bool
    position: int
    scope: Scope

    @property
    def name(self) -> str:
        return ".".join((self.mnemonic, *self.qualifiers))


@dataclass(eq=False)
class Kernel:
    """A .entry, or a .func; `results` are the latter's. `defined` is false for a declaration alone."""

    name: str
    params: list[Variable]
    results: list[Variable] = field(default_factory=list)
    is_entry: bool = True
    defined: bool = False
    position: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)  # parents before children; the first is the body
    required_block: tuple[int, int, int] | None = None
    most_block: tuple[int, int, int] | None = None  # .maxntid
    explicit_cluster: bool = False
    mnemonics: set[str] = field(default_factory=set)
    start: int = 0  # positions of the body
    end: int = 0

    @property
    def signature(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sizes of what it returns and of what it takes."""
        return tuple(v.size for v in self.results), tuple(v.size for v in self.params)


@dataclass
class Syntax:
    text: str
    target: str
    kernels: dict[str, Kernel]
    shared: list[Variable]  # of the module; those of functions are in their scopes
    globals: list[Variable]  # .global and .const, those of functions too
    line_starts: list[int]
    version: float = 0.0
    functions: dict[str, Kernel] = field(default_factory=dict)
    locals: list[Variable] = field(default_factory=list)
    names: dict[str, Variable] = field(default_factory=dict)  # the module's variables
    files: dict[int, str] = field(default_factory=dict)  # .file
    locations: list[tuple[int, int, int]] = field(default_factory=list)  # .loc: position, file (-1: none), line
    callers: dict[int, tuple[Location, Location]] = field(
        default_factory=dict
    )  # of inlined code: where, and from where

    def place(self, position: int) -> tuple[int, int, str]:
        """Line, column (from 1) and source line of a character position."""
        line = bisect.bisect_right(self.line_starts, position)
        start = self.line_starts[line - 1]
        end = self.text.find("\n", start)
        return line, position - start + 1, self.text[start : end if end >= 0 else len(self.text)]

    def mentions(self, kernel: Kernel) -> set[str]:
        """Every word in a function's body."""
        return set(re.findall(r"[\w$%]+", self.text[kernel.start : kernel.end]))

    def error(self, problem: str, position: int) -> PtxError:
        return PtxError(problem, *self.place(position))

    def sources(self, positions: list[int]) -> list[str | None]:
        """ "file:line" of the .loc before each position, None where there is none.

        Of inlined code: "file:line, inlined at file:line", of the call in the function that the kernel begins with.
        """
        if not self.locations:
            return [None] * len(positions)
        starts = [start for start, _, _ in self.locations]
        calls: dict[Location, list[tuple[int, Location]]] = {}
        for start, (inlined, caller) in self.callers.items():
            calls.setdefault(inlined, []).append((start, caller))
        result: list[str | None] = []
        for position in positions:
            n = bisect.bisect_right(starts, position) - 1
            start, file, line = self.locations[n] if n >= 0 else (0, -1, 0)
            source = f"{self.files[file]}:{line}" if file in self.files else None
            if source and start in self.callers:
                file, line = self._outermost(start, calls)
                source += f", inlined at {self.files[file]}:{line}" if file in self.files else ""
            result.append(source)
        return result

    def _outermost(self, start: int, calls: dict[Location, list[tuple[int, Location]]]) -> tuple[int, int]:
        """Where the code of the .loc at `start` was inlined in the end: call by call, as the nearest .loc has it."""
        caller = self.callers[start][1]
        for _ in range(MOST_INLINED):
            if caller not in calls:
                break
            found = calls[caller]
            n = bisect.bisect_left(found, start, key=lambda one: one[0])
            near = found[max(n - 1, 0) : n + 1]
            caller = min(near, key=lambda one: abs(one[0] - start))[1]
        return caller[:2]
