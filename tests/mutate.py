"""One-token mutations of PTX text: what a slip of the compiler's author might look like.

    for mutation in draw_mutations(ptx, 200, seed=0):
        damaged = mutation.apply(ptx)

A mutation keeps the operands' classes, and a register that takes another's place has been a result further up, so that
the text stays legal but for offsets and sizes that only the launch can judge.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

INSTRUCTION = re.compile(r"\s+(@!?%p\d+ )?([a-z][\w.:]*) ?(.*);")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
REGISTER = re.compile(r"%[a-z]+\d+\b")
MEMORY = re.compile(r"\[(%\w+)(?:\+(\d+))?\]")
INTEGER = re.compile(r"-?\d+")
FLOAT = re.compile(r"0f[0-9A-F]{8}")

SYNCHRONISATION = ("bar.sync", "cp.async.commit_group", "cp.async.wait_group", "cp.async.wait_all")
CODES = "L1::no_allocate"  # in the name of loads of codes
WITHOUT_RESULT = ("st.", "cp.async.", "bar.", "bra", "ret")
COMMUTATIVE = ("add.", "mul.", "and.", "or.", "xor.", "min.", "max.", "setp.eq.", "setp.ne.")
COMPARISONS = {
    "lt": ("le", "ge"), "le": ("lt", "gt"), "gt": ("ge", "le"), "ge": ("gt", "lt"), "eq": ("ne",), "ne": ("eq",),
}  # fmt: skip
OPERATIONS = {
    "add.": "sub.", "sub.": "add.", "and.": "or.", "xor.": "and.", "shl.b": "shr.u", "shr.u": "shl.b",
}  # fmt: skip


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
    guard: str  # "@%p1 ", "@!%p1 " or ""
    name: str
    operands: tuple[str, ...]  # as written, vectors and memory operands whole
    defined: frozenset[str]

    @property
    def text(self) -> str:
        """The instruction as PTX."""
        return f"{self.guard}{self.name}{' ' if self.operands else ''}{', '.join(self.operands)};"

    @property
    def results(self) -> int:
        """How many of the first operands are written."""
        return 0 if self.name.startswith(WITHOUT_RESULT) else 1

    def having(self, at: int, *operands: str) -> str:
        """The text with other operands from index `at` on."""
        return replace(self, operands=self.operands[:at] + operands + self.operands[at + len(operands) :]).text


def draw_mutations(text: str, count: int, seed: int) -> list[Mutation]:
    """`count` different mutations: one of every kind in turn, at places drawn from the whole text, each once a kind.

    Not of the numbers that stand for codes beyond K: their x is zero, so that any would do.
    """
    rng = random.Random(seed)
    lines = list(instructions(text))
    codes = {register for line in lines if CODES in line.name for register in REGISTER.findall(line.operands[0])}
    lines = [line for line in lines if line.name != "mov.b32" or line.operands[0] not in codes]
    places = {kind: [line for line in lines if any(True for _ in _options(kind, line))] for kind in KINDS}
    for of_kind in places.values():
        rng.shuffle(of_kind)
    drawn: list[Mutation] = []
    while len(drawn) < count:
        kinds = [kind for kind in KINDS if places[kind]]
        drawn += [rng.choice(list(_options(kind, places[kind].pop()))) for kind in kinds[: count - len(drawn)]]
    return drawn


def instructions(text: str) -> Iterator[Line]:
    """The instructions of a PTX text of one statement per line."""
    defined: set[str] = set()
    for number, written in enumerate(text.split("\n"), 1):
        match = INSTRUCTION.fullmatch(written)
        if match is not None:
            guard, name, operands = match.groups()
            line = Line(number, guard or "", name, tuple(OPERAND.findall(operands)), frozenset(defined))
            yield line
            defined.update(*map(REGISTER.findall, line.operands[: line.results]))


def _options(kind: str, line: Line) -> Iterator[Mutation]:
    """The mutations of one kind of a line, made as they are asked for: nearly all lines are asked for one alone."""
    seen = {line.text}
    for text in KINDS[kind](line):
        if text not in seen:
            seen.add(text)
            yield Mutation(kind, line.number, line.text, text)


# -- the kinds: each yields what a line may become ---------------------------------------------------------------------


def masks(line: Line) -> Iterator[str]:
    """One bit of a mask cleared, or the bit above one of its fields set."""
    if line.name.startswith(("and.b", "lop3.")) and INTEGER.fullmatch(line.operands[2]):
        mask = int(line.operands[2])
        for bit in range(32):
            if (mask | mask << 1) >> bit & 1:
                yield line.having(2, str(mask ^ 1 << bit))


def shifts(line: Line) -> Iterator[str]:
    """A shift by one more or less."""
    if line.name.startswith(("shl.", "shr.")):
        amount = int(line.operands[2])
        yield from (line.having(2, str(other)) for other in (amount - 1, amount + 1))


def offsets(line: Line) -> Iterator[str]:
    """The offset of a memory operand, by 2, 4 or 16 bytes."""
    for at, operand in enumerate(line.operands):
        if match := MEMORY.fullmatch(operand):
            for change in (-16, -4, -2, 2, 4, 16):
                offset = int(match[2] or 0) + change
                if offset >= 0:
                    yield line.having(at, f"[{match[1]}+{offset}]" if offset else f"[{match[1]}]")


def immediates(line: Line) -> Iterator[str]:
    """A stride, size, bound or constant: one more or less, twice or half of it; 1 added to or taken from 0.0 or 1.0."""
    if line.name.startswith(("and.b", "lop3.", "shl.", "shr.", "bar.", "cp.async.")):
        return
    for at, operand in enumerate(line.operands):
        if INTEGER.fullmatch(operand):
            value = int(operand)
            others = (value - 1, value + 1, 2 * value, value // 2)
            yield from (line.having(at, str(other)) for other in others if other >= min(value, 0))
        elif FLOAT.fullmatch(operand):
            yield line.having(at, f"0f{int(operand[2:], 16) ^ 0x3F800000:08X}")


def operands(line: Line) -> Iterator[str]:
    """A register that is read, exchanged for any of its class that is defined before."""
    for at, operand in enumerate(line.operands[line.results :], line.results):
        for match in REGISTER.finditer(operand):
            for other in sorted(line.defined):
                if _register_class(other) == _register_class(match[0]):
                    yield line.having(at, operand[: match.start()] + other + operand[match.end() :])


def orders(line: Line) -> Iterator[str]:
    """Two operands, or two registers of a vector, that change places."""
    for at, operand in enumerate(line.operands):
        if operand.startswith("{"):
            members = REGISTER.findall(operand)
            for first in range(len(members) - 1):
                swapped = [*members[:first], members[first + 1], members[first], *members[first + 2 :]]
                yield line.having(at, f"{{{', '.join(swapped)}}}")
    if line.name.startswith((*COMMUTATIVE, "mma.", "lop3.", "shl.", "shr.")):
        return
    for at in range(2 if line.name.startswith(("mad.", "fma.")) else line.results, len(line.operands) - 1):
        left, right = line.operands[at : at + 2]
        same_class = _register_class(left) == _register_class(right) != ""
        numbers = [operand for operand in (left, right) if INTEGER.fullmatch(operand)]
        if same_class or (numbers and line.name.startswith(("selp.", "prmt.")) and not right.startswith("%p")):
            yield line.having(at, right, left)


def _register_class(operand: str) -> str:
    return operand.rstrip("0123456789") if REGISTER.fullmatch(operand) else ""


def tables(line: Line) -> Iterator[str]:
    """A lop3 that takes one of its inputs for all zeros or all ones."""
    if line.name.startswith("lop3."):
        table = int(line.operands[4])  # bit 4 a + 2 b + c is the result for inputs a, b, c
        for weight in (1, 2, 4):
            for taken in (0, weight):
                bits = (table >> (at & ~weight | taken) & 1 for at in range(8))
                yield line.having(4, str(sum(bit << at for at, bit in enumerate(bits))))


def comparisons(line: Line) -> Iterator[str]:
    """The boundary or the sense of a comparison."""
    if line.name.startswith("setp."):
        _, comparison, rest = line.name.split(".", 2)
        yield from (replace(line, name=f"setp.{other}.{rest}").text for other in COMPARISONS[comparison])


def predicates(line: Line) -> Iterator[str]:
    """A guard negated or left out."""
    if line.guard:
        yield replace(line, guard=line.guard.replace("@!", "@") if "!" in line.guard else f"@!{line.guard[1:]}").text
        yield replace(line, guard="").text


def operations(line: Line) -> Iterator[str]:
    """Another instruction with the same operands."""
    for prefix, other in OPERATIONS.items():
        if line.name.startswith(prefix) and not line.name.endswith("pred"):
            yield replace(line, name=other + line.name.removeprefix(prefix)).text
    if line.name.startswith("setp.") and ".and." in line.name:
        yield replace(line, name=line.name.replace(".and.", ".or.")).text


def synchronisation(line: Line) -> Iterator[str]:
    """A barrier, commit or wait dropped; a wait that lets one group more be in flight."""
    if line.name in SYNCHRONISATION:
        yield ""
    if line.name == "cp.async.wait_group":
        yield line.having(0, str(int(line.operands[0]) + 1))


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
