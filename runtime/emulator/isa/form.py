"""What the decoding functions of this package share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.syntax import (
    TYPE_BITS,
    Address,
    Group,
    Immediate,
    Instruction,
    Name,
    Negated,
    Not,
    Operand,
    Pair,
    Vector,
)

FLOAT_KINDS = {"f16": 0, "bf16": 1, "f32": 2, "f64": 3}

Build = Callable[[Decoder, Instruction], Row]


@dataclass(frozen=True)
class Special:
    """How the forms of a mnemonic are decoded that no rule of the table takes, and the operands that they may have."""

    build: Build
    patterns: tuple[str, ...]


SPECIAL: dict[str, Special] = {}


def special(*mnemonics: str, operands: str) -> Callable[[Build], Build]:
    """Registers a decoding function, which is called for instructions with one of the patterns of operands alone.

    `operands="A AV"`: patterns of a letter of KINDS for each operand, a dot for no operands.
    """
    patterns = tuple(pattern.replace(".", "") for pattern in operands.split())

    def register(function: Build) -> Build:
        for mnemonic in mnemonics:
            SPECIAL[mnemonic] = Special(function, patterns)
        return function

    return register


def _is_value(operand: Operand) -> bool:
    return isinstance(operand, Name | Immediate) or (isinstance(operand, Address) and not operand.brackets)


# What an operand may be, and in words.
KINDS: dict[str, tuple[Callable[[Operand], bool], str]] = {
    "D": (lambda x: isinstance(x, Name), "a register"),
    "T": (lambda x: isinstance(x, Name | Pair), "a register or d|p"),
    "V": (lambda x: isinstance(x, Name | Vector), "a register or a vector"),
    "S": (_is_value, "a register or constant"),
    "M": (lambda x: isinstance(x, Negated) or _is_value(x), "a register, negated or not, or a constant"),
    "W": (lambda x: isinstance(x, Vector) or _is_value(x), "a register, constant or vector"),
    "P": (lambda x: isinstance(x, Name | Not | Immediate), "a predicate"),
    "X": (lambda x: isinstance(x, Not) or _is_value(x), "a register, constant or predicate"),
    "A": (lambda x: isinstance(x, Address) and (x.brackets or x.scaled), "an address in brackets"),
    "N": (lambda x: isinstance(x, Immediate), "a constant"),
    "L": (lambda x: isinstance(x, Name), "a label"),
    "B": (lambda x: isinstance(x, Vector), "a vector in braces"),
    "G": (lambda x: isinstance(x, Group), "a list in parentheses"),
}


def check_operands(decoder: Decoder, instruction: Instruction, patterns: tuple[str, ...]) -> None:
    """Raises PtxError unless the operands have one of the patterns."""
    operands = instruction.operands
    fitting = [pattern for pattern in patterns if len(pattern) == len(operands)]
    if not fitting:
        expect_operands(decoder, *sorted({len(pattern) for pattern in patterns}))
    wrong = [_first_wrong(operands, pattern) for pattern in fitting]
    if None not in wrong:
        n, letter = max(place for place in wrong if place is not None)
        raise decoder.error(f"operand {n + 1} of {instruction.mnemonic}: expected {KINDS[letter][1]}")


def _first_wrong(operands: tuple[Operand, ...], pattern: str) -> tuple[int, str] | None:
    """The number and the letter of the first operand that is not what the pattern says."""
    for n, (operand, letter) in enumerate(zip(operands, pattern, strict=True)):
        if not KINDS[letter][0](operand):
            return n, letter
    return None


@dataclass
class Qualifiers:
    """The qualifiers not yet understood; whatever is left at the end makes the instruction unimplemented."""

    decoder: Decoder
    left: list[str] = field(default_factory=list)

    def take(self, *names: str) -> str | None:
        """The first of `names` present, removed."""
        for name in names:
            if name in self.left:
                self.left.remove(name)
                return name
        return None

    def need(self, *names: str) -> str:
        found = self.take(*names)
        if found is None:
            raise self.decoder.unimplemented()
        return found

    def type(self) -> str:
        """The last qualifier, which must be a type."""
        if not self.left or self.left[-1] not in TYPE_BITS:
            raise self.decoder.unimplemented()
        return self.left.pop()

    def done(self) -> None:
        if self.left:
            raise self.decoder.unimplemented()


def expect_operands(decoder: Decoder, *counts: int) -> None:
    have = len(decoder.instruction.operands)
    if have not in counts:
        wanted = " or ".join(map(str, counts))
        raise decoder.error(f"{decoder.instruction.mnemonic} takes {wanted} operands, not {have}")


def expect_pattern(decoder: Decoder, *patterns: str) -> None:
    """The operands that one form of a mnemonic has, of those that the mnemonic may have."""
    check_operands(decoder, decoder.instruction, patterns)


def qualifiers_of(decoder: Decoder, instruction: Instruction) -> Qualifiers:
    return Qualifiers(decoder, list(instruction.qualifiers))


def predicate(decoder: Decoder, operand: Operand) -> tuple[tuple[int, bool], int]:
    """Slot of a predicate source, and 1 where it is negated."""
    if isinstance(operand, Not):
        return decoder.source(operand.name, "pred"), 1
    return decoder.source(operand, "pred"), 0


def number(decoder: Decoder, operand: Operand) -> int:
    if not isinstance(operand, Immediate) or not isinstance(operand.value, int):
        raise decoder.error("expected an integer constant")
    return operand.value


def items(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vector) else (operand,)
