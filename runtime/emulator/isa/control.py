"""Branches, exit, barriers, and what needs nothing done."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import expect_operands, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import Instruction, Name


@special("bra")
def _branch(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 1)
    if not set(instruction.qualifiers) <= {"uni"} or not isinstance(instruction.operands[0], Name):
        raise decoder.unimplemented()
    return Row("branch", [], 0)


@special("exit", "ret")
def _exit(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 0)
    return Row("exit", [], 0)


@special("bar", "barrier")
def _barrier(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.take("cta")
    qualifiers.take("aligned")
    if qualifiers.take("warp"):
        expect_operands(decoder, 1)
        qualifiers.need("sync")
        qualifiers.done()
        return Row("warp_sync", [decoder.source(instruction.operands[0], "b32")], 0)
    arrive = qualifiers.need("sync", "arrive") == "arrive"
    qualifiers.done()
    expect_operands(decoder, *((2,) if arrive else (1, 2)))
    return Row("barrier", [decoder.source(x, "u32") for x in instruction.operands], 0, (arrive,))


@special("membar", "fence", "nanosleep", "prefetch", "prefetchu", "griddepcontrol")
def _nothing(decoder: Decoder, instruction: Instruction) -> Row:
    del decoder, instruction
    return Row("nothing", [], 0)
