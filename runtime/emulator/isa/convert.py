"""cvt: conversions between number formats."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import FLOAT_KINDS, expect_operands, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Instruction, Name, Operand

ROUNDING = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}


@special("cvt")
def _cvt(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2, 3)
    qualifiers = qualifiers_of(decoder, instruction)
    source = qualifiers.type()
    target = qualifiers.type()
    flags = sum(bit for name, bit in (("sat", 1), ("ftz", 2), ("relu", 8)) if qualifiers.take(name))
    rounding_name = qualifiers.take(*ROUNDING)
    qualifiers.done()
    rounding = ROUNDING[rounding_name] if rounding_name else 0
    to = decoder.destination(instruction.operands[0], target, loose=True)
    sources = [decoder.source(x, source, loose=True) for x in instruction.operands[1:]]
    if target in ("f16x2", "bf16x2"):
        expect_operands(decoder, 3)
        if source != "f32":
            raise decoder.unimplemented()
        return Row("cvt_pack", [to, *sources], 1, (2 | FLOAT_KINDS[target[:-2]] << 16, rounding | flags << 8))
    expect_operands(decoder, 2)
    if source in FLOAT_KINDS and target in FLOAT_KINDS and rounding_name and rounding_name.endswith("i"):
        flags |= 4
    core, mod = _conversion(decoder, source, target, rounding, flags, instruction.operands[0])
    return Row(core, [to, *sources], 1, mod)


def _conversion(
    decoder: Decoder, source: str, target: str, rounding: int, flags: int, to: Operand
) -> tuple[str, tuple[int, ...]]:
    """The core's conversion and its mod words, see convert.c."""
    if (source, target, rounding, flags) in (("f16", "f32", 0, 0), ("f32", "f16", 0, 0)):
        return f"cvt_{target}_{source}", ()
    for kind in (source, target):
        if kind not in FLOAT_KINDS and kind[0] not in "us":
            raise decoder.unimplemented()
    register_bits = 64 if to == Name("_") else max(TYPE_BITS[decoder.register(to)[1]], 16)
    low = FLOAT_KINDS[source] if source in FLOAT_KINDS else TYPE_BITS[source] | (source[0] == "s") << 8
    high = FLOAT_KINDS[target] if target in FLOAT_KINDS else TYPE_BITS[target] | (target[0] == "s") << 8
    names = ["float" if kind in FLOAT_KINDS else "int" for kind in (source, target)]
    core = "cvt_" + "_".join(names)
    if core == "cvt_int_int":
        return core, (low | high << 16, flags & 1, register_bits)
    return core, (low | high << 16, rounding | flags << 8, register_bits)
