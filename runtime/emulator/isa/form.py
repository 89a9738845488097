"""What the decoding functions of this package share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Immediate, Instruction, Not, Operand, Vector

FLOAT_KINDS = {"f16": 0, "bf16": 1, "f32": 2, "f64": 3}

Build = Callable[[Decoder, Instruction], Row]
SPECIAL: dict[str, Build] = {}


def special(*mnemonics: str) -> Callable[[Build], Build]:
    def register(function: Build) -> Build:
        for mnemonic in mnemonics:
            SPECIAL[mnemonic] = function
        return function

    return register


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
