"""What ends a thread or the kernel, and functions of the CUDA runtime. Other calls are gone by now: see calls.py."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import expect_operands, number, special
from lowbitvm.runtime.emulator.syntax import Group, Instruction


@special("trap", "brkpt", operands=". G")
def _trap(decoder: Decoder, instruction: Instruction) -> Row:
    """One of calls.py's has the number of a reason, in report.py's TRAPS."""
    reason = 0
    if instruction.operands and isinstance(instruction.operands[0], Group):
        reason = number(decoder, instruction.operands[0].items[0])
    else:
        expect_operands(decoder, 0)
    if instruction.qualifiers:
        raise decoder.unimplemented()
    return Row("trap", [], 0, (reason,))


@special("call", operands="DSS SSSSS")
def _runtime(decoder: Decoder, instruction: Instruction) -> Row:
    if instruction.qualifiers == ("vprintf",):
        result, *values = instruction.operands
        sources = [decoder.source(value, "b64") for value in values]
        return Row("print", [decoder.destination(result, "b32"), *sources], 1)
    kinds = ("b64", "b64", "b32", "b64", "b64")
    values = list(instruction.operands)
    return Row("assert", [decoder.source(value, kind) for value, kind in zip(values, kinds, strict=True)], 0)
