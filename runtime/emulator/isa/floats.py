"""Floating-point arithmetic that is not regular: directed roundings, mixed formats, f32 pairs, min and max in full."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import FLOAT_KINDS, Qualifiers, expect_operands, qualifiers_of, special
from lowbitvm.runtime.emulator.isa.integers import CARRIED, extended
from lowbitvm.runtime.emulator.isa.regular import ABSOLUTE, FLAGS, FTZ, NAN, XORSIGN
from lowbitvm.runtime.emulator.syntax import Instruction

ROUNDINGS = ("rn", "rz", "rm", "rp")  # numbers.h
# The core's number of each operation (float.c) and its sources.
OPERATIONS = {"add": (0, 2), "sub": (1, 2), "mul": (2, 2), "div": (3, 2), "fma": (4, 3), "mad": (4, 3)}
OPERATIONS |= {"rcp": (5, 1), "sqrt": (6, 1)}
OPTIONAL_ROUNDING = ("add", "sub", "mul")
MODIFIERS = {"f32": ("ftz", "sat"), "f64": (), "f32x2": ("ftz",), "mixed": ("sat",)}
SATURATING = ("add", "sub", "mul", "fma", "mad")


@special("add", "sub", "mul", "div", "fma", "mad", "rcp", "sqrt", operands="DS DSS DSSS")
def _arithmetic(decoder: Decoder, instruction: Instruction) -> Row:
    name = instruction.mnemonic
    if name in CARRIED and "cc" in instruction.qualifiers:
        return extended(decoder, instruction)
    qualifiers = qualifiers_of(decoder, instruction)
    narrow = qualifiers.left.pop() if qualifiers.left and qualifiers.left[-1] in ("f16", "bf16") else None
    kind = qualifiers.need("f32", "f64", "f32x2")
    rounding = qualifiers.take(*ROUNDINGS)
    if (rounding is None and name not in OPTIONAL_ROUNDING) or not _exists(name, kind, narrow):
        raise decoder.unimplemented()
    modifiers = MODIFIERS["mixed" if narrow else kind]
    flags = sum(FLAGS[word] for word in modifiers if (word != "sat" or name in SATURATING) and qualifiers.take(word))
    qualifiers.done()
    operation, count = OPERATIONS[name]
    expect_operands(decoder, 1 + count)
    to, *sources = instruction.operands
    kinds = [narrow or kind] * (count - 1) + [kind]
    if kind == "f32x2":
        operands = [decoder.destination(to, "raw64"), *(decoder.source(source, "raw64") for source in sources)]
        if not flags and rounding in (None, "rn"):
            return Row(f"{name}_f32x2", operands, 1)
        kind, kinds, elements = "f32", ["f32"] * count, 2
    else:
        operands = [decoder.destination(to, kind)]
        operands += [decoder.source(source, k) for source, k in zip(sources, kinds, strict=True)]
        elements = 1
    formats = sum(FLOAT_KINDS[k] << 8 * n for n, k in enumerate((kind, *kinds)))
    head = operation | ROUNDINGS.index(rounding or "rn") << 8 | elements << 16
    return Row("arithmetic", operands, 1, (flags, head, formats))


def _exists(name: str, kind: str, narrow: str | None) -> bool:
    if narrow:
        return kind == "f32" and name in ("add", "sub", "fma")
    return kind != "f32x2" or name in ("add", "sub", "mul", "fma")


@special("min", "max", operands="DSS DSSS")
def _extreme(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.need("f32", "f16", "bf16", "f16x2", "bf16x2")
    flags = NAN if qualifiers.take("NaN") else 0
    if kind in ("f32", "f16", "f16x2") and qualifiers.take("ftz"):
        flags |= FTZ
    flags |= _absolute(decoder, instruction, qualifiers)
    qualifiers.done()
    expect_operands(decoder, 3, *((4,) if kind == "f32" else ()))
    to, *sources = instruction.operands
    operands = [decoder.destination(to, kind), *(decoder.source(source, kind) for source in sources)]
    elements = 2 if kind.endswith("x2") else 1
    form = FLOAT_KINDS[kind.removesuffix("x2")] | elements << 8
    return Row("extreme", operands, 1, (flags, instruction.mnemonic == "max", form))


def _absolute(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers) -> int:
    """.xorsign.abs of two sources, .abs of three."""
    absolute, sign = qualifiers.take("abs"), qualifiers.take("xorsign")
    three = len(instruction.operands) == 4
    if (absolute and not sign and not three) or (sign and (three or not absolute)):
        raise decoder.unimplemented()
    return (ABSOLUTE if absolute else 0) | (XORSIGN if sign else 0)


@special("copysign", operands="DSS")
def _copysign(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.need("f32", "f64")
    qualifiers.done()
    to, *sources = instruction.operands
    operands = [decoder.destination(to, kind), *(decoder.source(source, kind) for source in sources)]
    return Row("copysign_bits", operands, 1, (int(kind[1:]) - 1,))


PROPERTIES = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")


@special("testp", operands="DS")
def _testp(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.need("f32", "f64")
    which = PROPERTIES.index(qualifiers.need(*PROPERTIES))
    qualifiers.done()
    to, source = instruction.operands
    operands = [decoder.destination(to, "pred"), decoder.source(source, kind)]
    return Row("testp", operands, 1, (which, FLOAT_KINDS[kind]))
