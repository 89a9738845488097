"""Selection, comparison and bit manipulation."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import (
    FLOAT_KINDS,
    Qualifiers,
    expect_operands,
    number,
    predicate,
    qualifiers_of,
    special,
)
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Instruction, Pair

UNTYPED = frozenset(f"{sign}{bits}" for sign in "bus" for bits in (16, 32, 64)) | {"f32", "f64"}


@special("selp", operands="DSSP")
def _selp(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.need(*UNTYPED)
    qualifiers.done()
    to, a, b, c = instruction.operands
    chooser, negated = predicate(decoder, c)
    core = "selp_b64" if TYPE_BITS[kind] == 64 else "selp_b32"
    operands = [decoder.destination(to, kind), decoder.source(a, kind), decoder.source(b, kind), chooser]
    return Row(core, operands, 1, (negated,))


@special("slct", operands="DSSS")
def _slct(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    by, kind = qualifiers.type(), qualifiers.type()
    flush = by == "f32" and qualifiers.take("ftz") is not None
    qualifiers.done()
    if by not in ("s32", "f32") or kind not in UNTYPED:
        raise decoder.unimplemented()
    to, a, b, c = instruction.operands
    sources = [decoder.source(a, kind), decoder.source(b, kind), decoder.source(c, by)]
    return Row("slct", [decoder.destination(to, kind), *sources], 1, (by == "f32", flush))


JOINS = {None: 0, "and": 1, "or": 2, "xor": 3}
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
UNORDERED = ("equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
COMPARED = UNTYPED | {"f16", "bf16", "f16x2", "bf16x2"}
# What set writes for true, by the type it writes.
TRUE = {"u32": 0xFFFFFFFF, "s32": 0xFFFFFFFF, "u16": 0xFFFF, "s16": 0xFFFF}
TRUE |= {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80, "f16x2": 0x3C00, "bf16x2": 0x3F80}


@special("setp", operands="TSS TSSP")
def _setp(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.need(*COMPARED)
    to = instruction.operands[0] if instruction.operands else None
    targets = [to.first, to.second] if isinstance(to, Pair) else instruction.operands[:1]
    core, mod, sources = _comparison(decoder, instruction, qualifiers, kind)
    operands = [decoder.destination(target, "pred") for target in targets]
    return Row(core, operands + sources, len(targets), mod)


@special("set", operands="DSS DSSP")
def _set(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    if len(qualifiers.left) < 3 or qualifiers.left[-1] not in COMPARED or qualifiers.left[-2] not in TRUE:
        raise decoder.unimplemented()
    kind, target = qualifiers.left.pop(), qualifiers.left.pop()
    paired = kind in ("f16x2", "bf16x2")
    if (paired and target not in (kind, "u32", "s32")) or (not paired and target in ("f16x2", "bf16x2")):
        raise decoder.unimplemented()
    if (target in ("u16", "s16") and kind not in ("f16", "bf16")) or (target == "f32" and kind in ("f16", "bf16")):
        raise decoder.unimplemented()
    if target == "bf16" and "ftz" in qualifiers.left:
        raise decoder.unimplemented()
    core, mod, sources = _comparison(decoder, instruction, qualifiers, kind)
    true = TRUE[target] & 0xFFFF if paired else TRUE[target]
    return Row(core, [decoder.destination(instruction.operands[0], target), *sources], 1, (*mod, true))


def _comparison(
    decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers, kind: str
) -> tuple[str, tuple[int, ...], list[tuple[int, bool]]]:
    """The core's operation, mod words and sources of setp and set, less what they write."""
    is_float = kind in FLOAT_KINDS or kind.endswith("x2")
    flush = kind in ("f32", "f16", "f16x2") and qualifiers.take("ftz") is not None
    join = qualifiers.take("and", "or", "xor")
    allowed: tuple[str, ...] = COMPARISONS if kind[0] != "b" or is_float else ("eq", "ne")
    if is_float:
        allowed += UNORDERED
    if kind[0] == "u":
        allowed += tuple(UNSIGNED_NAMES)
    compare = qualifiers.need(*allowed)
    qualifiers.done()
    expect_operands(decoder, 4 if join else 3)
    sources = [decoder.source(x, kind) for x in instruction.operands[1:3]]
    negated = 0
    if join:
        last, negated = predicate(decoder, instruction.operands[3])
        sources.append(last)
    compare = UNSIGNED_NAMES.get(compare, compare)
    sign = "b" if compare in ("eq", "ne") else "s" if kind[0] == "s" else "u"
    core = f"setp_{compare}_{kind}" if is_float else f"setp_{compare}_{sign}{TYPE_BITS[kind]}"
    return core, (JOINS[join], negated, flush), sources


@special("lop3", operands="DSSSN TSSSNP")
def _lop3(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("b32")
    join = qualifiers.take("and", "or")
    qualifiers.done()
    expect_operands(decoder, 6 if join else 5)
    to, a, b, c, table, *rest = instruction.operands
    truth = number(decoder, table)
    if not 0 <= truth <= 255:
        raise decoder.error(f"the truth table {truth} is not within 0..255")
    sources = [decoder.source(x, "b32") for x in (a, b, c)]
    if not join:
        return Row("lop3_b32", [decoder.destination(to, "b32"), *sources], 1, (truth,))
    if not isinstance(to, Pair):
        raise decoder.error("lop3 with .and or .or has two destinations, d|p")
    last, negated = predicate(decoder, rest[0])
    targets = [decoder.destination(to.first, "b32"), decoder.destination(to.second, "pred")]
    return Row("lop3_pred", [*targets, *sources, last], 2, (truth, JOINS[join], negated))


@special("prmt", operands="DSSS")
def _prmt(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("b32")
    mode = qualifiers.take("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    qualifiers.done()
    to, a, b, c = instruction.operands
    modes = (None, "f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    sources = [decoder.source(x, "b32") for x in (a, b, c)]
    return Row("prmt_b32", [decoder.destination(to, "b32"), *sources], 1, (modes.index(mode),))


@special("shf", operands="DSSS")
def _shf(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("b32")
    right, wrap = qualifiers.need("l", "r") == "r", qualifiers.need("clamp", "wrap") == "wrap"
    qualifiers.done()
    to, a, b, c = instruction.operands
    sources = [decoder.source(a, "b32"), decoder.source(b, "b32"), decoder.source(c, "u32")]
    return Row("shf_b32", [decoder.destination(to, "b32"), *sources], 1, (right, wrap))


@special("dp2a", "dp4a", operands="DSSS")
def _dot_product(decoder: Decoder, instruction: Instruction) -> Row:
    *half, first, second = instruction.qualifiers if len(instruction.qualifiers) > 1 else ("", "", "")
    halves = ("lo", "hi") if instruction.mnemonic == "dp2a" else ()
    if not {first, second} <= {"u32", "s32"} or len(half) != bool(halves) or not set(half) <= set(halves):
        raise decoder.unimplemented()
    to, *sources = instruction.operands
    operands = [decoder.destination(to, "u32"), *(decoder.source(x, "u32") for x in sources)]
    return Row(instruction.mnemonic, operands, 1, (first == "s32", second == "s32", half == ["hi"]))


@special("bfind", operands="DS")
def _bfind(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.need("u32", "s32", "u64", "s64")
    shift = qualifiers.take("shiftamt") is not None
    qualifiers.done()
    to, source = instruction.operands
    operands = [decoder.destination(to, "u32"), decoder.source(source, kind)]
    return Row("bfind", operands, 1, (kind[0] == "s", shift, TYPE_BITS[kind]))


@special("bmsk", "szext", operands="DSS")
def _masks(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    wrap = qualifiers.need("clamp", "wrap") == "wrap"
    kind = qualifiers.need(*(("b32",) if instruction.mnemonic == "bmsk" else ("u32", "s32")))
    qualifiers.done()
    to, a, b = instruction.operands
    operands = [decoder.destination(to, "u32"), decoder.source(a, "u32"), decoder.source(b, "u32")]
    return Row(instruction.mnemonic, operands, 1, (wrap, kind == "s32"))
