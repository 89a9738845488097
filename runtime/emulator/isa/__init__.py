"""What each PTX instruction becomes: a table for the regular ones (regular.py), a function for each of the others.

A function gets the forms of its mnemonic that no rule of the table takes.
"""

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
from lowbitvm.runtime.emulator.isa.form import SPECIAL
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


def decode(decoder: Decoder, instruction: Instruction) -> Row:
    """The core's row for one instruction. Raises PtxError, for an unimplemented instruction by name."""
    decoder.instruction = instruction
    problem = illegal(instruction, decoder.syntax.target, decoder.syntax.version, decoder.is_predicate)
    if problem is not None:
        raise decoder.error(problem)
    row = regular(decoder, instruction)
    if row is not None:
        return row
    if instruction.mnemonic in SPECIAL:
        return SPECIAL[instruction.mnemonic](decoder, instruction)
    raise decoder.unimplemented()
