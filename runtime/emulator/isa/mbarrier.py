"""mbarrier: barriers in shared memory that count arrivals, and bytes."""

from lowbitvm.runtime.emulator.decode import SPACES, Decoder, Row
from lowbitvm.runtime.emulator.isa.form import Qualifiers, expect_pattern, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import Instruction, Name

ARRIVES, DROPS, COUNTED, BYTES, COMPLETES, RELEASES = 1, 2, 4, 8, 16, 32  # core: mbarrier.c


def _space(qualifiers: Qualifiers, cluster: bool = False) -> int:
    words = ("shared", "shared::cta", "shared::cluster") if cluster else ("shared", "shared::cta")
    return SPACES["shared"] if qualifiers.take(*words) else 0


@special("mbarrier", operands="A AS DA DAS DASS DS")
def _mbarrier(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("b64")
    what, *_ = qualifiers.left
    qualifiers.left.remove(what)
    if what in ("init", "inval"):
        return _init(decoder, instruction, qualifiers, what == "init")
    if what in ("test_wait", "try_wait"):
        return _test(decoder, instruction, qualifiers, what == "try_wait")
    if what == "pending_count":
        qualifiers.done()
        expect_pattern(decoder, "DS")
        to, state = instruction.operands
        return Row("mbarrier_pending", [decoder.destination(to, "u32"), decoder.source(state, "u64")], 1)
    if what in ("expect_tx", "complete_tx"):
        return _bytes(decoder, instruction, qualifiers, what == "complete_tx")
    return _arrive(decoder, instruction, qualifiers, what == "arrive_drop")


def _init(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers, init: bool) -> Row:
    space = _space(qualifiers)
    qualifiers.done()
    expect_pattern(decoder, "AS" if init else "A")
    base, offset, _ = decoder.address(instruction.operands[0])
    operands = [base, decoder.source(instruction.operands[1], "u32")] if init else [base]
    return Row("mbarrier_init", operands, 0, (space or _shared(decoder, instruction, 0), init), offset)


def _shared(decoder: Decoder, instruction: Instruction, operand: int) -> int:
    """The space of an address without one: a shared variable's is known, any other is generic."""
    return SPACES["shared"] if decoder.address(instruction.operands[operand])[2] == "shared" else 0


def _bytes(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers, completes: bool) -> Row:
    """expect_tx and complete_tx."""
    space = _space(qualifiers, cluster=True)
    qualifiers.take("relaxed")
    qualifiers.take("cta", "cluster")
    qualifiers.done()
    expect_pattern(decoder, "AS")
    base, offset, _ = decoder.address(instruction.operands[0])
    operands = [base, decoder.source(instruction.operands[1], "u32")]
    form = BYTES | (COMPLETES if completes else 0)
    return Row("mbarrier_arrive", operands, 0, (space or _shared(decoder, instruction, 0), form), offset)


def _arrive(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers, drops: bool) -> Row:
    remote = "shared::cluster" in qualifiers.left
    space = _space(qualifiers, cluster=True)
    relaxed = qualifiers.take("release", "relaxed") == "relaxed"
    qualifiers.take("cta", "cluster")
    expects = qualifiers.take("expect_tx") is not None
    no_complete = not expects and qualifiers.take("noComplete") is not None
    qualifiers.done()
    expect_pattern(decoder, *(("DAS",) if expects or no_complete else ("DA", "DAS")))
    to, address, *count = instruction.operands
    if remote and to != Name("_"):
        raise decoder.error("an arrival at a barrier of the cluster returns nothing: its destination is _")
    form = ARRIVES | (DROPS if drops else 0) | (0 if relaxed else RELEASES)
    if count:
        form |= BYTES if expects else COUNTED
    base, offset, _ = decoder.address(address)
    space = space or _shared(decoder, instruction, 1)
    operands = [decoder.destination(to, "u64"), base, *(decoder.source(x, "u32") for x in count)]
    return Row("mbarrier_arrive", operands, 1, (space, form), offset)


def _test(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers, may_wait: bool) -> Row:
    """Whether the phase is over; a time limit for waiting changes nothing, the schedule decides."""
    space = _space(qualifiers)
    parity = qualifiers.take("parity") is not None
    relaxed = qualifiers.take("acquire", "relaxed") == "relaxed"
    qualifiers.take("cta", "cluster")
    qualifiers.done()
    expect_pattern(decoder, "DAS", *(("DASS",) if may_wait else ()))
    to, address, state, *limit = instruction.operands
    base, offset, _ = decoder.address(address)
    for operand in limit:
        decoder.source(operand, "u32")
    operands = [decoder.destination(to, "pred"), base, decoder.source(state, "u32" if parity else "u64")]
    space = space or _shared(decoder, instruction, 1)
    return Row("mbarrier_test", operands, 1, (space, parity, not relaxed), offset)
