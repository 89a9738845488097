"""mov in all its forms, and cvta."""

from lowbitvm.runtime.emulator.decode import CLOCKS, SPECIALS, Decoder, Row
from lowbitvm.runtime.emulator.isa.form import items, number, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Immediate, Instruction, Name, Operand, Vector
from lowbitvm.runtime.emulator.variables import REGION_SHIFT

MOVED = frozenset(f"{sign}{bits}" for sign in "bus" for bits in (16, 32, 64)) | {"f32", "f64"}

# Where the windows of the generic address space start, core.h; global and constant addresses are generic ones.
SHARED_WINDOW = 1 << REGION_SHIFT
LOCAL_WINDOW, PARAM_WINDOW = SHARED_WINDOW + (1 << 32), SHARED_WINDOW + (2 << 32)
WINDOWS = {
    "global": 0,
    "const": 0,
    "shared": SHARED_WINDOW,
    "shared::cta": SHARED_WINDOW,
    "shared::cluster": SHARED_WINDOW,
    "local": LOCAL_WINDOW,
    "param": PARAM_WINDOW,
    "param::entry": PARAM_WINDOW,
}


@special("mov", operands="VW")
def _mov(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    count = int((qualifiers.take("v2", "v4") or "v1")[1])
    kind = qualifiers.need("pred", "b128", *MOVED)
    qualifiers.done()
    to, source = instruction.operands
    if kind[0] == "b" and count == 1 and not (isinstance(to, Vector) and isinstance(source, Vector)):
        to, source = _alone(to), _alone(source)
    if count > 1:
        return _several(decoder, to, source, kind, count)
    if isinstance(to, Vector) or isinstance(source, Vector):
        if kind[0] != "b" or kind == "b8":
            raise decoder.unimplemented()
        return _vector_move(decoder, to, source, TYPE_BITS[kind])
    if kind == "pred":
        return Row("logic_pred", [decoder.destination(to, kind), decoder.source(source, kind)], 1, (0b1100,))
    if kind == "b128":
        return Row("mov_several", [*decoder.halves(to), *_wide_source(decoder, source)], 2)
    if isinstance(source, Name) and source.text in CLOCKS:
        return _clock(decoder, to, source, kind)
    return Row(f"mov_b{TYPE_BITS[kind]}", [decoder.destination(to, kind), decoder.source(source, kind)], 1)


def _alone(operand: Operand) -> Operand:
    """The register of a vector of one."""
    return operand.items[0] if isinstance(operand, Vector) and len(operand.items) == 1 else operand


def _clock(decoder: Decoder, to: Operand, source: Name, kind: str) -> Row:
    """A special register that changes while the kernel runs."""
    bits, shift = CLOCKS[source.text]
    if TYPE_BITS[kind] != bits or kind[0] == "f":
        raise decoder.error(f"{source.text} has {bits} bits, the instruction takes .{kind}")
    return Row("clock", [decoder.destination(to, kind)], 1, (shift,))


def _wide_source(decoder: Decoder, operand: Operand) -> list[tuple[int, bool]]:
    if isinstance(operand, Immediate):
        value = number(decoder, operand)
        return [decoder.constant(value >> shift & (2**64 - 1), True) for shift in (0, 64)]
    return decoder.halves(operand)


def _several(decoder: Decoder, to: Operand, source: Operand, kind: str, count: int) -> Row:
    """mov.v4.u32 {...}, {...} or from a special register with .x .y .z .w."""
    targets = items(to)
    if isinstance(source, Name) and f"{source.text}.x" in SPECIALS:
        sources: tuple[Operand, ...] = tuple(Name(f"{source.text}.{axis}") for axis in "xyzw")[:count]
    else:
        sources = items(source)
    if len(targets) != count or len(sources) != count or TYPE_BITS[kind] > 64 or kind == "pred":
        raise decoder.unimplemented()
    operands = [decoder.destination(t, kind) for t in targets] + [decoder.source(s, kind) for s in sources]
    return Row("mov_several", operands, count)


def _vector_move(decoder: Decoder, to: Operand, source: Operand, bits: int) -> Row:
    packs = isinstance(source, Vector)
    parts = items(source) if packs else items(to)
    whole = to if packs else source
    part = bits // len(parts)
    if len(parts) not in (2, 4) or part not in (8, 16, 32, 64) or isinstance(whole, Vector):
        raise decoder.error(f"a .b{bits} register has no {len(parts)} parts")
    names = decoder.elements(parts, f"b{part}", written=not packs)
    if bits < 128:
        register = decoder.destination(whole, f"b{bits}") if packs else decoder.source(whole, f"b{bits}")
        return (
            Row("pack", [register, *names], 1, (part,))
            if packs
            else Row("unpack", [*names, register], len(names), (part,))
        )
    halves = decoder.halves(whole)
    return (
        Row("pack", [*halves, *names], 2, (part,)) if packs else Row("unpack", [*names, *halves], len(names), (part,))
    )


@special("cvta", operands="DS")
def _cvta(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.type()
    inverse = qualifiers.take("to") is not None
    space = qualifiers.need(*WINDOWS)
    qualifiers.done()
    to, source = instruction.operands
    operands = [decoder.destination(to, kind), decoder.source(source, kind)]
    start = WINDOWS[space]
    if not start:
        return Row(f"mov_b{TYPE_BITS[kind]}", operands, 1)
    return Row("cvta", operands, 1, (start & 0xFFFFFFFF, start >> 32, inverse))
