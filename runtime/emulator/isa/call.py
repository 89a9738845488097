"""What ends or interrupts a thread, and functions of the CUDA runtime. Other calls are gone by now: see calls.py."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import expect_operands, special
from lowbitvm.runtime.emulator.syntax import Instruction


@special("trap", "brkpt")
def _trap(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 0)
    if instruction.qualifiers:
        raise decoder.unimplemented()
    return Row("trap", [], 0)
