"""One-token mutations of PTX text: what a slip of the compiler's author might look like.

    for mutation in draw_mutations(ptx, 200, seed=0):
        damaged = mutation.apply(ptx)

Every mutation keeps the text legal: operand classes stay as they are, and a register that is put in another's place has
been defined further up.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

INSTRUCTION = re.compile(r"\s+(?:@!?(?P<guard>%p\d+) )?(?P<name>[a-z][\w.]*) ?(?P<operands>.*);")
REGISTER = re.compile(r"%[a-z]+\d+\b")
NUMBER = re.compile(r"(?<![%\w.])(?:0f[0-9A-F]{8}|-?\d+)\b")
MEMORY = re.compile(r"\[(%\w+)(?:\+(\d+))?\]")

SYNCHRONISATION = ("bar.sync", "cp.async.commit_group", "cp.async.wait_group", "cp.async.wait_all")
WITHOUT_RESULT = ("st.", "cp.async.", "bar.", "bra", "ret")
COMMUTATIVE = ("add", "mul", "and", "or", "xor", "min", "max", "setp.eq", "setp.ne")
COMPARISONS = {"lt": ("le", "ge"), "ge": ("gt", "lt"), "eq": ("ne",), "ne": ("eq",)}
OPERATIONS = {"add": "sub", "sub": "add", "and": "or", "xor": "and", "shl": "shr", "shr": "shl"}
SHIFT_TYPES = {"shl": ".b", "shr": ".u"}
# (a & b) | c without a, without b, without c; the unpacking sequences have no other table.
TABLES = {"234": ("238", "250", "192")}


@dataclass(frozen=True)
class Mutation:
    """`line` (from 1) of a PTX text becomes `after`, which is empty where the instruction is dropped."""

    kind: str
    line: int
    before: str
    after: str

    def apply(self, text: str) -> str:
        """The text with this mutation."""
        lines = text.split("\n")
        assert lines[self.line - 1].strip() == self.before
        lines[self.line - 1] = "    " + self.after
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.kind}, line {self.line}: {self.before} -> {self.after or '(dropped)'}"


@dataclass(frozen=True)
class Line:
    """One instruction. `defined` are all registers that stand as results on earlier lines."""

    number: int
    text: str
    guard: str | None
    name: str
    operands: tuple[str, ...]  # as written, vectors and memory operands whole
    defined: frozenset[str]

    @property
    def base(self) -> str:
        return self.name.split(".")[0]

    @property
    def sources(self) -> range:
        """The indices of the operands that are read."""
        return range(0 if self.name.startswith(WITHOUT_RESULT) else 1, len(self.operands))

    def with_operands(self, replacements: dict[int, str]) -> str:
        """The instruction with other operands at these indices."""
        operands = [replacements.get(at, operand) for at, operand in enumerate(self.operands)]
        return self._written(self.name, operands, f"@{self.text[1:].split(' ')[0]} " if self.guard else "")

    def with_name(self, name: str) -> str:
        return self._written(name, self.operands, f"@{self.text[1:].split(' ')[0]} " if self.guard else "")

    def with_guard(self, guard: str) -> str:
        return self._written(self.name, self.operands, guard)

    def _written(self, name: str, operands: "tuple[str, ...] | list[str]", guard: str) -> str:
        return f"{guard}{name} {', '.join(operands)};" if operands else f"{guard}{name};"


def draw_mutations(text: str, count: int, seed: int) -> list[Mutation]:
    """`count` different mutations: every kind in turn until its places run out, each place at most once per kind."""
    rng = random.Random(seed)
    lines = list(instructions(text))
    places = {kind: [options for line in lines if (options := _options(kind, line))] for kind in KINDS}
    for options in places.values():
        rng.shuffle(options)
    drawn: list[Mutation] = []
    while len(drawn) < count:
        for kind in KINDS:
            if places[kind] and len(drawn) < count:
                drawn.append(rng.choice(places[kind].pop()))
    return drawn


def all_mutations(text: str) -> list[Mutation]:
    """Every mutation of the text that `draw_mutations` may draw."""
    return [mutation for line in instructions(text) for kind in KINDS for mutation in _options(kind, line)]


def instructions(text: str) -> Iterator[Line]:
    """The instructions of a PTX text of one statement per line."""
    defined: set[str] = set()
    for number, written in enumerate(text.split("\n"), 1):
        match = INSTRUCTION.fullmatch(written)
        if match is None or match["name"].startswith("."):
            continue
        operands = tuple(re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", match["operands"]))
        line = Line(number, written.strip(), match["guard"], match["name"], operands, frozenset(defined))
        yield line
        defined.update(*(REGISTER.findall(operand) for operand in operands[: line.sources.start]))


def _options(kind: str, line: Line) -> list[Mutation]:
    texts = dict.fromkeys(KINDS[kind](line))
    return [Mutation(kind, line.number, line.text, text) for text in texts if text != line.text]


# -- the kinds: each yields what a line may become ----------------------------------------------------------------------


def masks(line: Line) -> Iterator[str]:
    """One bit of a mask, or the bit above its fields."""
    at = {"and": 2, "lop3": 2}.get(line.base)
    if at is None or not line.operands[at].isdigit():
        return
    mask = int(line.operands[at])
    for bit in range(32):
        if mask >> bit & 1 or mask << 1 >> bit & 1:
            yield line.with_operands({at: str(mask ^ 1 << bit)})


def shifts(line: Line) -> Iterator[str]:
    """A shift by one more or less."""
    if line.base in SHIFT_TYPES:
        amount = int(line.operands[2])
        for other in (amount - 1, amount + 1):
            yield line.with_operands({2: str(other)})


def offsets(line: Line) -> Iterator[str]:
    """The offset of a memory operand, by 2, 4 or 16 bytes."""
    for at, operand in enumerate(line.operands):
        match = MEMORY.fullmatch(operand)
        if match is not None:
            for change in (-16, -4, -2, 2, 4, 16):
                offset = int(match[2] or 0) + change
                if offset >= 0:
                    yield line.with_operands({at: f"[{match[1]}+{offset}]" if offset else f"[{match[1]}]"})


def immediates(line: Line) -> Iterator[str]:
    """A stride, size, bound or constant."""
    if line.name in SYNCHRONISATION or line.base in ("and", "shl", "shr", "lop3", "cp"):
        return
    for at in line.sources:
        operand = line.operands[at]
        if not NUMBER.fullmatch(operand):
            continue
        if operand.startswith("0f"):
            yield line.with_operands({at: f"0f{int(operand[2:], 16) ^ 0x3F800000:08X}"})
            continue
        value = int(operand)
        for other in (value - 1, value + 1, 2 * value, value // 2):
            if other >= 0:
                yield line.with_operands({at: str(other)})


def operands(line: Line) -> Iterator[str]:
    """A register that is read, exchanged for any of its class that is defined before."""
    for at in line.sources:
        for match in REGISTER.finditer(line.operands[at]):
            kind = match[0].rstrip("0123456789")
            for other in sorted(line.defined):
                if other.rstrip("0123456789") == kind and other != match[0]:
                    changed = line.operands[at][: match.start()] + other + line.operands[at][match.end() :]
                    yield line.with_operands({at: changed})


def orders(line: Line) -> Iterator[str]:
    """Two operands, or two registers of a vector, that change places."""
    for at, operand in enumerate(line.operands):
        members = REGISTER.findall(operand) if operand.startswith("{") else []
        for first in range(len(members) - 1):
            swapped = members[:first] + [members[first + 1], members[first]] + members[first + 2 :]
            yield line.with_operands({at: f"{{{', '.join(swapped)}}}"})
    if line.name.startswith(COMMUTATIVE) or line.base in ("mma", "lop3", "shl", "shr"):
        return
    start = 2 if line.base in ("mad", "fma") else line.sources.start
    for at in range(start, len(line.operands) - 1):
        first, second = line.operands[at : at + 2]
        if _operand_class(first, line) == _operand_class(second, line) != "":
            yield line.with_operands({at: second, at + 1: first})


def _operand_class(operand: str, line: Line) -> str:
    """What may take the operand's place: a register class; "r" for a number of a 32-bit instruction."""
    if REGISTER.fullmatch(operand):
        return operand.rstrip("0123456789")[1:]
    return "r" if operand.isdigit() and line.base in ("selp", "prmt") else ""


def tables(line: Line) -> Iterator[str]:
    """A lop3 that ignores one of its inputs."""
    if line.base == "lop3":
        for table in TABLES[line.operands[4]]:
            yield line.with_operands({4: table})


def comparisons(line: Line) -> Iterator[str]:
    """The boundary or the sense of a comparison."""
    if line.base == "setp":
        _, comparison, rest = line.name.split(".", 2)
        for other in COMPARISONS[comparison]:
            yield line.with_name(f"setp.{other}.{rest}")


def predicates(line: Line) -> Iterator[str]:
    """A guard negated or left out."""
    if line.guard is not None:
        yield line.with_guard(f"@{line.guard} " if line.text.startswith("@!") else f"@!{line.guard} ")
        yield line.with_guard("")


def operations(line: Line) -> Iterator[str]:
    """Another instruction of the same operands."""
    if line.base in OPERATIONS and not line.name.endswith("pred"):
        other = OPERATIONS[line.base]
        yield line.with_name(other + SHIFT_TYPES.get(other, line.name[len(line.base) :])[:2] + line.name[-2:]
                             if other in SHIFT_TYPES else other + line.name[len(line.base) :])  # fmt: skip
    if line.name.startswith("setp.") and ".and." in line.name:
        yield line.with_name(line.name.replace(".and.", ".or."))


def synchronisation(line: Line) -> Iterator[str]:
    """A barrier, commit or wait dropped; a wait for one group too few."""
    if line.name in SYNCHRONISATION:
        yield ""
    if line.name == "cp.async.wait_group":
        yield line.with_operands({0: str(int(line.operands[0]) + 1)})


KINDS: dict[str, Callable[[Line], Iterator[str]]] = {
    "mask": masks,
    "shift": shifts,
    "offset": offsets,
    "immediate": immediates,
    "operand": operands,
    "order": orders,
    "lop3 table": tables,
    "comparison": comparisons,
    "predicate": predicates,
    "operation": operations,
    "synchronisation": synchronisation,
}
