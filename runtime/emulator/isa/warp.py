"""Exchange between the lanes of a warp."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import expect_operands, predicate, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import Instruction, Pair


@special("shfl")
def _shfl(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 5)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    qualifiers.need("b32")
    modes = ("up", "down", "bfly", "idx")
    mode = modes.index(qualifiers.need(*modes))
    qualifiers.done()
    to, *sources = instruction.operands
    targets = [to.first, to.second] if isinstance(to, Pair) else [to]
    operands = [decoder.destination(t, kind) for t, kind in zip(targets, ("b32", "pred"), strict=False)]
    operands += [decoder.source(source, "b32") for source in sources]
    return Row("shfl", operands, len(targets), (mode,))


@special("vote")
def _vote(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 3)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    kind = qualifiers.need("pred", "b32")
    modes = ("all", "any", "uni", "ballot")
    mode = modes.index(qualifiers.need(*modes))
    qualifiers.done()
    to, source, members = instruction.operands
    slot, negated = predicate(decoder, source)
    return Row("vote", [decoder.destination(to, kind), slot, decoder.source(members, "b32")], 1, (mode, negated))


@special("activemask")
def _activemask(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 1)
    return Row("activemask", [decoder.destination(instruction.operands[0], "b32")], 1)


@special("redux")
def _redux(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 3)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    kind = qualifiers.type()
    name = qualifiers.need("add", "min", "max", "and", "or", "xor")
    qualifiers.done()
    if name in ("min", "max"):
        name += "." + kind
    modes = ("add", "min.u32", "max.u32", "min.s32", "max.s32", "and", "or", "xor")
    if name not in modes:
        raise decoder.unimplemented()
    to, source, members = instruction.operands
    operands = [decoder.destination(to, "b32"), decoder.source(source, "b32"), decoder.source(members, "b32")]
    return Row("redux", operands, 1, (modes.index(name),))
