"""PTX text to syntax: modules, kernels, variables and instructions (PTX ISA, chapters "Syntax" and "Directives")."""

import bisect
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
    |(?P<string>"[^"]*")
    |(?P<float>0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)
    |(?P<integer>0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|\d+U?)
    |(?P<word>[A-Za-z_$%][\w$]*(?:(?:::|\.)[\w$]+)*|\.[A-Za-z_]\w*(?:(?:::|\.)\w+)*)
    |(?P<mark>[-+{}()\[\],;:|!=@<>])""",
    re.VERBOSE | re.DOTALL,
)

TYPE_BITS = {f"{kind}{bits}": bits for kind in "bus" for bits in (8, 16, 32, 64)}
TYPE_BITS |= {"f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32, "f32": 32, "f64": 64, "pred": 1, "b128": 128}


class PtxError(Exception):
    """PTX text that cannot be run: a syntax error, an undeclared name, or an instruction the emulator lacks.

    `line` and `column` count from 1; `text` is that source line.
    """

    def __init__(self, problem: str, line: int, column: int, text: str) -> None:
        self.problem, self.line, self.column, self.text = problem, line, column, text
        super().__init__(f"line {line}, column {column}: {problem}: {text.strip()}")


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    position: int


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
    base: Name | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    items: tuple["Operand", ...]


@dataclass(frozen=True)
class Pair:
    """`p|q`: two destinations."""

    first: "Operand"
    second: "Operand"


@dataclass(frozen=True)
class Not:
    name: Name


Operand = Name | Immediate | Address | Vector | Pair | Not


@dataclass(frozen=True)
class Instruction:
    mnemonic: str
    qualifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: str | None
    negated: bool
    position: int
    scope: tuple[int, ...]  # enclosing { } blocks, innermost last


@dataclass
class Variable:
    """A .param, .shared, .global or .const variable. `size` in bytes (0: extern array), `values` the initial bytes."""

    name: str
    size: int
    alignment: int
    type: str
    external: bool = False
    values: bytes = b""


@dataclass
class Kernel:
    name: str
    params: list[Variable]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[tuple[tuple[int, ...], str], int] = field(default_factory=dict)
    registers: dict[tuple[tuple[int, ...], str], str] = field(default_factory=dict)  # (scope, name) -> type
    ranges: dict[tuple[tuple[int, ...], str], tuple[str, int]] = field(default_factory=dict)  # prefix -> (type, count)
    shared: list[Variable] = field(default_factory=list)
    required_block: tuple[int, int, int] | None = None


@dataclass
class Syntax:
    text: str
    target: str
    kernels: dict[str, Kernel]
    shared: list[Variable]
    globals: list[Variable]
    line_starts: list[int]
    version: float = 6.3

    def place(self, position: int) -> tuple[int, int, str]:
        """Line, column (from 1) and source line of a character position."""
        line = bisect.bisect_right(self.line_starts, position)
        start = self.line_starts[line - 1]
        end = self.text.find("\n", start)
        return line, position - start + 1, self.text[start : end if end >= 0 else len(self.text)]

    def error(self, problem: str, position: int) -> PtxError:
        return PtxError(problem, *self.place(position))


def parse(text: str) -> Syntax:
    """Parse a PTX module. Raises PtxError."""
    starts = [0] + [match.end() for match in re.finditer("\n", text)]
    syntax = Syntax(text, "sm_75", {}, [], [], starts)
    _Parser(syntax).module()
    return syntax


def _tokens(syntax: Syntax) -> Iterator[Token]:
    position = 0
    while position < len(syntax.text):
        match = TOKEN.match(syntax.text, position)
        if match is None:
            raise syntax.error(f"unexpected character {syntax.text[position]!r}", position)
        kind = match.lastgroup
        assert kind is not None
        if kind != "space":
            yield Token(kind, match.group(), position)
        position = match.end()
    yield Token("end", "end of text", max(position - 1, 0))


def _number(token: Token) -> Immediate:
    text = token.text
    if token.kind == "integer":
        text = text.rstrip("U")
        base = 16 if text[:2] in ("0x", "0X") else 2 if text[:2] in ("0b", "0B") else 10
        if base == 10 and len(text) > 1 and text[0] == "0":
            base = 8
        return Immediate(int(text, base))
    if text[:2] in ("0f", "0F"):
        bits = int(text[2:], 16)
        return Immediate(struct.unpack("<f", struct.pack("<I", bits))[0], bits, 32)
    if text[:2] in ("0d", "0D"):
        bits = int(text[2:], 16)
        return Immediate(struct.unpack("<d", struct.pack("<Q", bits))[0], bits, 64)
    return Immediate(float(text))


class _Parser:
    def __init__(self, syntax: Syntax) -> None:
        self.syntax = syntax
        self.tokens = list(_tokens(syntax))
        self.index = 0
        self.scopes = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.index]

    def take(self) -> Token:
        self.index += 1
        return self.tokens[self.index - 1]

    def accept(self, text: str) -> bool:
        if self.next.text != text:
            return False
        self.index += 1
        return True

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.error(f"expected {text!r}, found {self.next.text!r}")

    def error(self, problem: str) -> PtxError:
        return self.syntax.error(problem, self.next.position)

    def word(self) -> str:
        if self.next.kind != "word":
            raise self.error(f"expected a name, found {self.next.text!r}")
        return self.take().text

    def integer(self) -> int:
        sign = -1 if self.accept("-") else 1
        if self.next.kind != "integer":
            raise self.error(f"expected an integer, found {self.next.text!r}")
        value = _number(self.take()).value
        assert isinstance(value, int)
        return sign * value

    # Module level

    def module(self) -> None:
        while self.next.kind != "end":
            token = self.take()
            if token.text == ".version":
                if re.fullmatch(r"\d+\.\d", self.next.text) is None:
                    raise self.error(f"expected a version such as 8.0, found {self.next.text!r}")
                self.syntax.version = float(self.take().text)
            elif token.text == ".target":
                self.syntax.target = self.word()
                while self.accept(","):
                    self.word()
            elif token.text == ".address_size":
                if self.integer() != 64:
                    raise self.syntax.error("only 64-bit addresses are supported", token.position)
            elif token.text in (".visible", ".weak", ".extern"):
                self.linked(external=token.text == ".extern")
            elif token.text == ".entry":
                self.entry()
            elif token.text in (".shared", ".global", ".const"):
                self.module_variable(token.text, external=False)
            elif token.text == ".file":
                self.skip_numbers_and_strings()
            elif token.text == ".section":
                while self.take().text != "}":
                    pass
            elif token.text == ".pragma":
                self.skip_statement()
            else:
                raise self.syntax.error(f"{token.text} is not implemented here", token.position)

    def linked(self, external: bool) -> None:
        token = self.take()
        if token.text == ".entry":
            self.entry()
        elif token.text in (".shared", ".global", ".const"):
            self.module_variable(token.text, external)
        else:
            raise self.syntax.error(f"{token.text} is not implemented here", token.position)

    def module_variable(self, space: str, external: bool) -> None:
        variables = self.syntax.shared if space == ".shared" else self.syntax.globals
        while True:
            variables.append(self.variable(external))
            if not self.accept(","):
                break
        self.expect(";")

    def variable(self, external: bool = False) -> Variable:
        """`.align 16 .b8 name[64] = {...}`: the part after the state space."""
        alignment, kind = 0, ""
        while self.next.text.startswith("."):
            word = self.take().text
            if word == ".align":
                alignment = self.integer()
            elif word[1:] in TYPE_BITS:
                kind = word[1:]
            elif word not in (".ptr", ".global", ".shared", ".const", ".local"):
                raise self.error(f"{word} is not implemented in a variable's declaration")
        if not kind:
            raise self.error("the declaration has no type")
        unit = max(TYPE_BITS[kind] // 8, 1)
        name, count = self.word(), 1
        while self.accept("["):
            count *= 0 if self.next.text == "]" else self.integer()
            self.expect("]")
        values = self.initial_values(kind) if self.accept("=") else b""
        return Variable(name, unit * count, alignment or unit, kind, external, values)

    def initial_values(self, kind: str) -> bytes:
        if self.accept("{"):
            parts = []
            while not self.accept("}"):
                parts.append(self.initial_values(kind))
                self.accept(",")
            return b"".join(parts)
        operand = self.operand()
        if not isinstance(operand, Immediate):
            raise self.error("initial values must be numbers")
        return immediate_bits(operand, kind).to_bytes(TYPE_BITS[kind] // 8, "little")

    def entry(self) -> None:
        kernel = Kernel(self.word(), [])
        if self.accept("("):
            while not self.accept(")"):
                self.expect(".param")
                kernel.params.append(self.variable())
                self.accept(",")
        while not self.accept("{"):
            directive = self.word()
            numbers = [] if self.next.text in ("{",) or self.next.kind == "word" else [self.integer()]
            while self.accept(","):
                numbers.append(self.integer())
            if directive == ".reqntid":
                x, y, z = (*numbers, 1, 1)[:3]
                kernel.required_block = (x, y, z)
            elif directive not in (".maxntid", ".minnctapersm", ".maxnreg", ".maxnctapersm", ".noreturn"):
                raise self.error(f"{directive} is not implemented")
        self.syntax.kernels[kernel.name] = kernel
        self.body(kernel, ())

    # Kernel bodies

    def body(self, kernel: Kernel, scope: tuple[int, ...]) -> None:
        while not self.accept("}"):
            if self.accept("{"):
                self.scopes += 1
                self.body(kernel, (*scope, self.scopes))
            elif self.next.text.startswith("."):
                self.directive(kernel, scope)
            elif self.next.kind == "word" and self.tokens[self.index + 1].text == ":":
                kernel.labels[scope, self.take().text] = len(kernel.instructions)
                self.expect(":")
            elif not self.accept(";"):
                kernel.instructions.append(self.instruction(scope))

    def directive(self, kernel: Kernel, scope: tuple[int, ...]) -> None:
        token = self.take()
        if token.text == ".reg":
            self.registers(kernel, scope)
        elif token.text == ".shared":
            kernel.shared.append(self.variable())
            self.expect(";")
        elif token.text == ".loc":
            self.skip_numbers_and_strings()
        elif token.text == ".pragma":
            self.skip_statement()
        else:
            raise self.syntax.error(f"{token.text} is not implemented", token.position)

    def registers(self, kernel: Kernel, scope: tuple[int, ...]) -> None:
        kind = self.word()[1:]
        if kind not in TYPE_BITS:
            raise self.error(f"registers of type .{kind} are not implemented")
        while not self.accept(";"):
            name = self.word()
            if self.accept("<"):
                kernel.ranges[scope, name] = (kind, self.integer())
                self.expect(">")
            else:
                kernel.registers[scope, name] = kind
            self.accept(",")

    def instruction(self, scope: tuple[int, ...]) -> Instruction:
        position, guard, negated = self.next.position, None, False
        if self.accept("@"):
            negated = self.accept("!")
            guard = self.word()
            position = self.next.position
        mnemonic, *qualifiers = self.word().split(".")
        operands: list[Operand] = []
        while not self.accept(";"):
            operands.append(self.operand())
            if self.next.text != ";":
                self.expect(",")
        return Instruction(mnemonic, tuple(qualifiers), tuple(operands), guard, negated, position, scope)

    def operand(self) -> Operand:
        token = self.next
        if self.accept("{"):
            items: list[Operand] = []
            while not self.accept("}"):
                items.append(self.operand())
                self.accept(",")
            return Vector(tuple(items))
        if self.accept("["):
            return self.address()
        if self.accept("!"):
            return Not(Name(self.word()))
        if self.accept("-"):
            value = self.operand()
            if not isinstance(value, Immediate):
                raise self.syntax.error("only a number can follow '-'", token.position)
            return Immediate(-value.value)
        if token.kind in ("integer", "float"):
            return _number(self.take())
        name = Name(self.word())
        if self.accept("|"):
            return Pair(name, self.operand())
        return name

    def address(self) -> Address:
        base: Name | Immediate = _number(self.take()) if self.next.kind == "integer" else Name(self.word())
        offset = 0
        while not self.accept("]"):
            if self.accept("+") or self.next.text == "-":
                offset += self.integer()
            else:
                raise self.error(f"expected ']', found {self.next.text!r}")
        return Address(base, offset)

    def skip_statement(self) -> None:
        while self.take().text != ";":
            if self.next.kind == "end":
                raise self.error("expected ';'")

    def skip_numbers_and_strings(self) -> None:
        while self.next.kind in ("integer", "string") or self.next.text in (",", "function_name", "inlined_at"):
            word = self.take().text
            if word == "function_name":
                self.word()
                self.accept("+")


def immediate_bits(value: Immediate, kind: str) -> int:
    """A number's bit pattern as PTX type `kind`."""
    bits = TYPE_BITS[kind]
    if value.pattern is not None and (value.width == bits or kind not in ("f32", "f64")):
        return value.pattern & ((1 << bits) - 1)
    if kind in ("f32", "f64"):
        code, size = ("<f", "<I") if kind == "f32" else ("<d", "<Q")
        pattern: int = struct.unpack(size, struct.pack(code, float(value.value)))[0]
        return pattern
    return int(value.value) & ((1 << bits) - 1)
