"""Moves, selection, comparison and bit manipulation."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import (
    FLOAT_KINDS,
    expect_operands,
    items,
    number,
    predicate,
    qualifiers_of,
    special,
)
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Instruction, Operand, Pair, Vector


@special("mov")
def _mov(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.type()
    qualifiers.done()
    to, source = instruction.operands
    if isinstance(to, Vector) or isinstance(source, Vector):
        return _vector_move(decoder, to, source, TYPE_BITS[kind])
    if kind == "pred":
        return Row("logic_pred", [decoder.destination(to, kind), decoder.source(source, kind)], 1, (0b1100,))
    if kind in ("b8", "u8", "s8", "b128"):
        raise decoder.unimplemented()
    return Row(f"mov_b{TYPE_BITS[kind]}", [decoder.destination(to, kind), decoder.source(source, kind)], 1)


def _vector_move(decoder: Decoder, to: Operand, source: Operand, bits: int) -> Row:
    parts = items(source) if isinstance(source, Vector) else items(to)
    part = bits // len(parts)
    if f"b{part}" not in TYPE_BITS or part == 8:
        raise decoder.unimplemented()
    if isinstance(source, Vector):
        operands = [decoder.destination(to, f"b{bits}"), *(decoder.source(p, f"b{part}") for p in parts)]
        return Row("pack", operands, 1, (part,))
    operands = [*(decoder.destination(p, f"b{part}") for p in parts), decoder.source(source, f"b{bits}")]
    return Row("unpack", operands, len(parts), (part,))


@special("cvta")
def _cvta(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.type()
    inverse = qualifiers.take("to") is not None
    space = qualifiers.need("global", "shared", "shared::cta", "const", "param", "local")
    qualifiers.done()
    core = f"mov_b{TYPE_BITS[kind]}"
    if space.startswith("shared"):
        core = "cvta_to_shared" if inverse else "cvta_shared"
    if space == "local":
        core = "cvta_local"
    to, source = instruction.operands
    return Row(core, [decoder.destination(to, kind), decoder.source(source, kind)], 1)


@special("selp")
def _selp(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 4)
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.type()
    qualifiers.done()
    to, a, b, c = instruction.operands
    chooser, negated = predicate(decoder, c)
    core = "selp_b64" if TYPE_BITS[kind] == 64 else "selp_b32"
    operands = [decoder.destination(to, kind), decoder.source(a, kind), decoder.source(b, kind), chooser]
    return Row(core, operands, 1, (negated,))


@special("setp")
def _setp(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 3, 4)
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.type()
    flush = qualifiers.take("ftz") is not None
    join = qualifiers.take("and", "or", "xor")
    if len(qualifiers.left) != 1 or kind in ("f16x2", "bf16x2"):
        raise decoder.unimplemented()
    compare = qualifiers.left[0]
    to, a, b = instruction.operands[:3]
    targets = [to.first, to.second] if isinstance(to, Pair) else [to]
    operands = [decoder.destination(target, "pred") for target in targets]
    operands += [decoder.source(a, kind), decoder.source(b, kind)]
    negated = 0
    if join:
        expect_operands(decoder, 4)
        last, negated = predicate(decoder, instruction.operands[3])
        operands.append(last)
    mode = {None: 0, "and": 1, "or": 2, "xor": 3}[join]
    return Row(_comparison(compare, kind), operands, len(targets), (mode, negated, flush))


def _comparison(compare: str, kind: str) -> str:
    if kind in FLOAT_KINDS:
        return f"setp_{compare}_{kind}"
    compare = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(compare, compare)
    sign = "b" if compare in ("eq", "ne") else "s" if kind[0] == "s" else "u"
    return f"setp_{compare}_{sign}{TYPE_BITS[kind]}"


@special("lop3")
def _lop3(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 5)
    if instruction.qualifiers != ("b32",):
        raise decoder.unimplemented()
    to, a, b, c, table = instruction.operands
    sources = [decoder.source(x, "b32") for x in (a, b, c)]
    return Row("lop3_b32", [decoder.destination(to, "b32"), *sources], 1, (number(decoder, table) & 255,))


@special("prmt")
def _prmt(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 4)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("b32")
    mode = qualifiers.take("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    qualifiers.done()
    to, a, b, c = instruction.operands
    modes = (None, "f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    sources = [decoder.source(x, "b32") for x in (a, b, c)]
    return Row("prmt_b32", [decoder.destination(to, "b32"), *sources], 1, (modes.index(mode),))


@special("shf")
def _shf(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 4)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("b32")
    right, wrap = qualifiers.need("l", "r") == "r", qualifiers.need("clamp", "wrap") == "wrap"
    qualifiers.done()
    to, a, b, c = instruction.operands
    sources = [decoder.source(x, "b32") for x in (a, b, c)]
    return Row("shf_b32", [decoder.destination(to, "b32"), *sources], 1, (right, wrap))


@special("dp4a")
def _dp4a(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 4)
    if len(instruction.qualifiers) != 2 or not set(instruction.qualifiers) <= {"u32", "s32"}:
        raise decoder.unimplemented()
    to, a, b, c = instruction.operands
    sources = [decoder.source(x, "b32") for x in (a, b, c)]
    signs = tuple(int(q == "s32") for q in instruction.qualifiers)
    return Row("dp4a", [decoder.destination(to, "b32"), *sources], 1, signs)
