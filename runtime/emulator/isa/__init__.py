"""What each PTX instruction becomes: a table for the regular ones (regular.py), a function for each of the others.

A function gets the forms of its mnemonic that no rule of the table takes.
"""

import re
from dataclasses import replace

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa import (
    bits,
    call,
    control,
    convert,
    floats,
    integers,
    matrix,
    mbarrier,
    memory,
    moves,
    warp,
    wmma,
)
from lowbitvm.runtime.emulator.isa.form import SPECIAL, check_operands
from lowbitvm.runtime.emulator.isa.regular import regular
from lowbitvm.runtime.emulator.legality import illegal
from lowbitvm.runtime.emulator.syntax import Instruction

__all__ = [
    "bits",
    "call",
    "control",
    "convert",
    "decode",
    "floats",
    "integers",
    "matrix",
    "mbarrier",
    "memory",
    "moves",
    "warp",
    "wmma",
]


TYPE = re.compile(r"pred|[bsu](8|16|32|64|128)|b?f16(x2)?|f32(x2)?|f64|[su]16x2|tf32|e\dm\d(x\d)?|ue8m0x2")


def _types_last(instruction: Instruction) -> Instruction:
    """Modifiers may stand after or between types, as in the manual's `cvt.f64.bf16.rp`; here they come first.

    Not for mma and wmma, whose types have fixed places, and not after .lo, .hi and .wide, which belong to the name.
    """
    is_type = [TYPE.fullmatch(word) is not None for word in instruction.qualifiers]
    if sorted(is_type) == is_type or instruction.mnemonic in ("mma", "wmma"):
        return instruction
    if not {"lo", "hi", "wide"}.isdisjoint(instruction.qualifiers):
        return instruction
    ordered = sorted(instruction.qualifiers, key=lambda word: TYPE.fullmatch(word) is not None)
    return replace(instruction, qualifiers=tuple(ordered))


def decode(decoder: Decoder, instruction: Instruction) -> Row:
    """The core's row for one instruction. Raises PtxError, for an unimplemented instruction by name."""
    instruction = decoder.instruction = _types_last(instruction)
    problem = illegal(instruction, decoder.syntax.target, decoder.syntax.version, decoder.is_predicate)
    if problem is not None:
        raise decoder.error(problem)
    row = regular(decoder, instruction)
    if row is not None:
        return row
    special = SPECIAL.get(instruction.mnemonic)
    if special is None:
        raise decoder.unimplemented()
    check_operands(decoder, instruction, special.patterns)
    return special.build(decoder, instruction)
