"""In-register decode: the words of a lane's chunk to A fragments of mma.sync."""

from dataclasses import dataclass

from lowbitvm.codegen.ptx import Builder
from lowbitvm.dtypes import CodeType

AND_OR = 0xEA  # lop3 truth table of (a & b) | c


@dataclass(frozen=True)
class Decoder:
    """Fragment values are factor * (q + offset), per row class (g, g + 8)."""

    act: str
    factors: tuple[float, float]
    offsets: tuple[float, float]
    digits: int
    places: tuple[tuple[int, int], ...]  # per register: shift of the word, start of the code in a half

    def constants(self, b: Builder) -> None:
        """Emits what stays in registers during a loop."""

    def emit(self, b: Builder, words: list[str]) -> list[list[str]]:
        """Emits the decode of a chunk: per k16 step the registers of the fragment."""
        magic = 0x43004300 if self.act == "bf16" else 0
        steps = []
        for word in words:
            shifted = {0: word}
            registers = []
            for shift, start in self.places:
                if shift not in shifted:
                    shifted[shift] = b.op("shr.u32", "r", word, shift)
                mask = 0xF << start
                mask |= mask << 16
                if magic:
                    registers.append(b.op("lop3.b32", "r", shifted[shift], mask, magic, AND_OR))
                else:
                    registers.append(b.op("and.b32", "r", shifted[shift], mask))
            steps.append(registers)
        return steps


DECODERS = {
    "f16": Decoder("f16", (2.0**-24, 2.0**-20), (0.0, 0.0), 1, ((0, 0), (0, 4), (8, 0), (8, 4))),
    "bf16": Decoder("bf16", (1.0, 1.0), (128.0, 128.0), 1, ((0, 0), (4, 0), (8, 0), (12, 0))),
}


def decoder(code: CodeType, act: str) -> Decoder:
    """The decoder of a code type for activations of a dtype."""
    return DECODERS[act]
