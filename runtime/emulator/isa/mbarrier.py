"""mbarrier: barriers in shared memory that count arrivals, and bytes."""

from lowbitvm.runtime.emulator.decode import SPACES, Decoder, Row
from lowbitvm.runtime.emulator.isa.form import Qualifiers, expect_operands, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import Instruction, Name

ARRIVES, DROPS, COUNTED, BYTES, COMPLETES, RELEASES = 1, 2, 4, 8, 16, 32  # core: mbarrier.c


def _space(qualifiers: Qualifiers) -> int:
    return SPACES["shared"] if qualifiers.take("shared", "shared::cta", "shared::cluster") else 0


@special("mbarrier", operands="A AS DA DAS DASS DS")
def _mbarrier(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.take("b64")
    names = (
        "init",
        "inval",
        "arrive",
        "arrive_drop",
        "expect_tx",
        "complete_tx",
        "test_wait",
        "try_wait",
        "pending_count",
    )
    what = qualifiers.need(*names)
    if what in ("init", "inval"):
        return _init(decoder, instruction, qualifiers, what == "init")
    if what in ("test_wait", "try_wait"):
        return _test(decoder, instruction, qualifiers, what == "try_wait")
    if what == "pending_count":
        expect_operands(decoder, 2)
        qualifiers.done()
        to, state = instruction.operands
        return Row("mbarrier_pending", [decoder.destination(to, "b32"), decoder.source(state, "b64")], 1)
    return _arrive(decoder, instruction, qualifiers, what)


def _init(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers, init: bool) -> Row:
    expect_operands(decoder, 1 + init)
    space = _space(qualifiers)
    qualifiers.done()
    base, offset, _ = decoder.address(instruction.operands[0])
    operands = [base, decoder.source(instruction.operands[1], "u32")] if init else [base]
    return Row("mbarrier_init", operands, 0, (space or _shared(decoder, instruction, 0), init), offset)


def _shared(decoder: Decoder, instruction: Instruction, operand: int) -> int:
    """The space of an address without one: a shared variable's is known, any other is generic."""
    return SPACES["shared"] if decoder.address(instruction.operands[operand])[2] == "shared" else 0


def _arrive(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers, what: str) -> Row:
    space = _space(qualifiers)
    relaxed = qualifiers.take("release", "relaxed") == "relaxed"
    qualifiers.take("cta", "cluster")
    no_complete = qualifiers.take("noComplete") is not None
    expects = qualifiers.take("expect_tx") is not None
    qualifiers.done()
    if what in ("expect_tx", "complete_tx"):
        expect_operands(decoder, 2)
        form = BYTES | (COMPLETES if what == "complete_tx" else 0)
        arguments = instruction.operands
        targets = []
    else:
        form = ARRIVES | (DROPS if what == "arrive_drop" else 0) | (0 if relaxed else RELEASES)
        expect_operands(decoder, *((3,) if expects or no_complete else (1, 2, 3)))
        has_state = len(instruction.operands) > 1
        targets = [decoder.destination(instruction.operands[0], "b64")] if has_state else []
        arguments = instruction.operands[has_state:]
        if len(arguments) == 2:
            form |= BYTES if expects else COUNTED
    base, offset, _ = decoder.address(arguments[0])
    space = space or _shared(decoder, instruction, len(instruction.operands) - len(arguments))
    operands = [*targets, base, *(decoder.source(x, "u32") for x in arguments[1:])]
    return Row("mbarrier_arrive", operands, len(targets), (space, form), offset)


def _test(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers, may_wait: bool) -> Row:
    """Whether the phase is over; a time limit for waiting changes nothing, the schedule decides."""
    space = _space(qualifiers)
    parity = qualifiers.take("parity") is not None
    relaxed = qualifiers.take("acquire", "relaxed") == "relaxed"
    qualifiers.take("cta", "cluster")
    qualifiers.done()
    expect_operands(decoder, *((3, 4) if may_wait else (3,)))
    to, _, state, *limit = instruction.operands
    base, offset, _ = decoder.address(instruction.operands[1])
    for operand in limit:
        decoder.source(operand, "u32")
    target = (0, False) if to == Name("_") else decoder.destination(to, "pred")
    operands = [target, base, decoder.source(state, "u32" if parity else "b64")]
    space = space or _shared(decoder, instruction, 1)
    return Row("mbarrier_test", operands, 1, (space, parity, not relaxed), offset)
