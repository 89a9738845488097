"""What each PTX instruction becomes: a table for the regular ones (regular.py), a function for each of the others."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa import bits, control, convert, matrix, memory, warp
from lowbitvm.runtime.emulator.isa.form import SPECIAL
from lowbitvm.runtime.emulator.isa.regular import RULES, regular
from lowbitvm.runtime.emulator.legality import illegal
from lowbitvm.runtime.emulator.parse import Instruction

__all__ = ["bits", "control", "convert", "decode", "matrix", "memory", "warp"]


def decode(decoder: Decoder, instruction: Instruction) -> Row:
    """The core's row for one instruction. Raises PtxError, for an unimplemented instruction by name."""
    decoder.instruction = instruction
    problem = illegal(instruction, decoder.syntax.target, decoder.syntax.version, decoder.is_predicate)
    if problem is not None:
        raise decoder.error(problem)
    if instruction.mnemonic in RULES:
        return regular(decoder, instruction)
    if instruction.mnemonic in SPECIAL:
        return SPECIAL[instruction.mnemonic](decoder, instruction)
    raise decoder.unimplemented()
