"""Exchange between the lanes of a warp."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import predicate, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import Instruction, Pair


@special("shfl", operands="TSSSS")
def _shfl(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    qualifiers.need("b32")
    modes = ("up", "down", "bfly", "idx")
    mode = modes.index(qualifiers.need(*modes))
    qualifiers.done()
    to, *sources = instruction.operands
    targets = [to.first, to.second] if isinstance(to, Pair) else [to]
    operands = [decoder.destination(t, kind) for t, kind in zip(targets, ("b32", "pred"), strict=False)]
    operands += [decoder.source(x, kind) for x, kind in zip(sources, ("b32", "b32", "b32", "u32"), strict=True)]
    return Row("shfl", operands, len(targets), (mode,))


@special("vote", operands="DPS")
def _vote(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    modes = ("all", "any", "uni", "ballot")
    mode = qualifiers.need(*modes)
    kind = qualifiers.need("b32" if mode == "ballot" else "pred")
    qualifiers.done()
    to, source, members = instruction.operands
    slot, negated = predicate(decoder, source)
    operands = [decoder.destination(to, kind), slot, decoder.source(members, "u32")]
    return Row("vote", operands, 1, (modes.index(mode), negated))


@special("activemask", operands="D")
def _activemask(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("b32")
    qualifiers.done()
    return Row("activemask", [decoder.destination(instruction.operands[0], "b32")], 1)


REDUCTIONS = ("add", "min.u32", "max.u32", "min.s32", "max.s32", "and", "or", "xor")


@special("redux", operands="DSS")
def _redux(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    kind = qualifiers.type()
    name = qualifiers.need("add", "min", "max", "and", "or", "xor")
    to, source, members = instruction.operands
    read = "f32" if kind == "f32" else "u32"
    operands = [decoder.destination(to, read), decoder.source(source, read), decoder.source(members, "u32")]
    if kind == "f32" and name in ("min", "max"):
        absolute, nan = (qualifiers.take(word) is not None for word in ("abs", "NaN"))
        qualifiers.done()
        return Row("redux_f32", operands, 1, (name == "max", absolute, nan))
    qualifiers.done()
    if kind not in (("b32",) if name in ("and", "or", "xor") else ("u32", "s32")):
        raise decoder.unimplemented()
    return Row("redux", operands, 1, (REDUCTIONS.index(name + "." + kind if name in ("min", "max") else name),))


@special("match", operands="TSS")
def _match(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    kind = qualifiers.need("b32", "b64")
    every = qualifiers.need("any", "all") == "all"
    qualifiers.done()
    to, source, members = instruction.operands
    if isinstance(to, Pair) and not every:
        raise decoder.error("match.any has no predicate")
    targets = [to.first, to.second] if isinstance(to, Pair) else [to]
    operands = [decoder.destination(t, k) for t, k in zip(targets, ("u32", "pred"), strict=False)]
    operands += [decoder.source(source, kind), decoder.source(members, "u32")]
    return Row("match", operands, len(targets), (every,))


@special("elect", operands="TS")
def _elect(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    qualifiers.done()
    to, members = instruction.operands
    if not isinstance(to, Pair):
        raise decoder.error("elect has two destinations, d|p")
    operands = [decoder.destination(to.first, "u32"), decoder.destination(to.second, "pred")]
    return Row("elect", [*operands, decoder.source(members, "u32")], 2)
