"""In-register decode: a 32-bit word of eight 4-bit codes to the four registers of an MMA A fragment.

A masked code is put into the mantissa of a float whose last mantissa bit is worth 1 (or, for codes 4 bits further up,
1/16), so that one LOP3 makes `magic + code` and one fused multiply-add makes the exact small integer `code - zero`.
Register r of the fragment belongs to row g for even r, to row g + 8 for odd r (`lowbitvm.targets.STORED_4BIT`).
"""

from dataclasses import dataclass

from lowbitvm.codegen.ptx import Builder

ONE_F16 = 0x3C003C00  # for which an addition does; bf16 has none before sm_90
MASK_OR = 0xEA  # lop3 truth table of (a & b) | c


@dataclass(frozen=True)
class Field:
    """How one register is decoded: value = scale * ((word >> shift & mask) | magic) - (origin + zero)."""

    shift: int
    mask: int
    magic: int  # the float pattern of `origin / scale`, in both halves
    origin: int
    scale: int  # the pattern of the factor, in both halves


FIELDS: dict[str, tuple[Field, Field, Field, Field]] = {
    "f16": (
        Field(0, 0x000F000F, 0x64006400, 1024, 0x3C003C00),  # 1024 + q
        Field(0, 0x00F000F0, 0x64006400, 64, 0x2C002C00),  # (1024 + 16 q) / 16
        Field(8, 0x000F000F, 0x64006400, 1024, 0x3C003C00),
        Field(8, 0x00F000F0, 0x64006400, 64, 0x2C002C00),
    ),
    "bf16": (  # the mantissa has 7 bits: codes fit at its low end only
        Field(0, 0x000F000F, 0x43004300, 128, 0x3F803F80),  # 128 + q
        Field(4, 0x000F000F, 0x43004300, 128, 0x3F803F80),
        Field(8, 0x000F000F, 0x43004300, 128, 0x3F803F80),
        Field(12, 0x000F000F, 0x43004300, 128, 0x3F803F80),
    ),
}
ORIGINS = {act: (fields[0].origin, fields[1].origin) for act, fields in FIELDS.items()}  # of rows g and g + 8


def factors(act: str) -> list[int]:
    """The patterns that a decode multiplies with."""
    scales = dict.fromkeys(field.scale for field in FIELDS[act])
    return [scale for scale in scales if act != "f16" or scale != ONE_F16]


def decode(b: Builder, word: str, addends: tuple[str, str], multipliers: dict[int, str], act: str) -> list[str]:
    """Emits the decode of one word.

    `addends` hold -(origin + zero) for rows g and g + 8, in both halves; `multipliers` maps `factors(act)` to their
    registers.
    """
    shifted = {0: word}
    registers = []
    for r, field in enumerate(FIELDS[act]):
        if field.shift not in shifted:
            shifted[field.shift] = b.op("shr.u32", "r", word, field.shift)
        placed = b.op("lop3.b32", "r", shifted[field.shift], field.mask, field.magic, MASK_OR)
        if field.scale in multipliers:
            registers.append(b.op(f"fma.rn.{act}x2", "r", placed, multipliers[field.scale], addends[r % 2]))
        else:
            registers.append(b.op(f"add.rn.{act}x2", "r", placed, addends[r % 2]))
    return registers
