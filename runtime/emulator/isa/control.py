"""Branches, exit, barriers, and what needs nothing done."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import Qualifiers, expect_operands, predicate, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import Instruction, Name


@special("bra", operands="L")
def _branch(decoder: Decoder, instruction: Instruction) -> Row:
    if not set(instruction.qualifiers) <= {"uni"} or not isinstance(instruction.operands[0], Name):
        raise decoder.unimplemented()
    return Row("branch", [], 0)


@special("exit", "ret", operands=".")
def _exit(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    if instruction.mnemonic == "ret":
        qualifiers.take("uni")
    qualifiers.done()
    return Row("exit", [], 0)


@special("bar", "barrier", operands=". S SS DSP DSSP")
def _barrier(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    if qualifiers.take("warp"):
        expect_operands(decoder, 1)
        qualifiers.need("sync")
        qualifiers.done()
        return Row("warp_sync", [decoder.source(instruction.operands[0], "u32")], 0)
    if instruction.mnemonic == "barrier" and qualifiers.take("cluster"):
        return _cluster_barrier(decoder, qualifiers)
    qualifiers.take("cta")
    aligned = qualifiers.take("aligned") is not None or instruction.mnemonic == "bar"
    core = "barrier" if aligned else "barrier_of_threads"
    what = qualifiers.need("sync", "arrive", "red")
    if what == "red":
        return _reduction(decoder, instruction, qualifiers, core)
    qualifiers.done()
    expect_operands(decoder, *((2,) if what == "arrive" else (1, 2)))
    operands = [decoder.source(x, "u32") for x in instruction.operands]
    return Row(core, operands, 0, (int(what == "arrive"), len(operands) - 1))


def _cluster_barrier(decoder: Decoder, qualifiers: Qualifiers) -> Row:
    what = qualifiers.need("arrive", "wait")
    relaxed = (qualifiers.take("release", "relaxed") if what == "arrive" else qualifiers.take("acquire")) == "relaxed"
    threads = "" if qualifiers.take("aligned") else "_of_threads"
    qualifiers.done()
    expect_operands(decoder, 0)
    return Row(f"cluster_{what}{threads}", [], 0, (relaxed,))


def _reduction(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers, core: str) -> Row:
    expect_operands(decoder, 3, 4)
    operation = qualifiers.need("popc", "and", "or")
    kind = qualifiers.need("u32" if operation == "popc" else "pred")
    qualifiers.done()
    to, number, *threads, chooser = instruction.operands
    slot, negated = predicate(decoder, chooser)
    operands = [decoder.destination(to, kind), *(decoder.source(x, "u32") for x in (number, *threads)), slot]
    return Row(core, operands, 1, (2 + ("popc", "and", "or").index(operation), len(threads), negated))


@special("membar", operands=".")
def _membar(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    if qualifiers.take("proxy"):
        return _between_proxies(decoder, instruction, qualifiers)
    scope = qualifiers.need("cta", "gl", "sys")
    qualifiers.done()
    return Row("fence", [], 0, (int(scope != "cta"),))


def _between_proxies(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers) -> Row:
    """Fences between proxies order nothing here: all copies go through one memory."""
    kind = qualifiers.need("alias", "async", "tensormap::generic")
    count = 0
    if kind == "async":
        qualifiers.take("global", "shared::cta", "shared::cluster")
    elif kind == "tensormap::generic" and instruction.mnemonic == "fence":
        count = 2 if qualifiers.need("acquire", "release") == "acquire" else 0
        qualifiers.need("cta", "cluster", "gpu", "sys")
    qualifiers.done()
    expect_operands(decoder, count)
    if count:
        decoder.address(instruction.operands[0])
    return Row("nothing", [], 0)


@special("fence", operands=". AN")
def _fence(decoder: Decoder, instruction: Instruction) -> Row:
    """Fences for shared memory alone (.sync_restrict) order everything."""
    qualifiers = qualifiers_of(decoder, instruction)
    if qualifiers.take("proxy"):
        return _between_proxies(decoder, instruction, qualifiers)
    expect_operands(decoder, 0)
    if qualifiers.take("mbarrier_init"):
        qualifiers.need("release")
        qualifiers.need("cluster")
        qualifiers.done()
        return Row("fence", [], 0, (0,))
    for restriction, semantics in (("cluster", "acquire"), ("cta", "release")):
        if qualifiers.take(f"sync_restrict::shared::{restriction}"):
            qualifiers.need(semantics)
            qualifiers.need("cluster")
            qualifiers.done()
            return Row("fence", [], 0, (0,))
    qualifiers.take("sc", "acq_rel", "acquire", "release")
    scope = qualifiers.need("cta", "cluster", "gpu", "sys")
    qualifiers.done()
    return Row("fence", [], 0, (int(scope in ("gpu", "sys")),))


@special("nanosleep", operands="S")
def _nanosleep(decoder: Decoder, instruction: Instruction) -> Row:
    if instruction.qualifiers != ("u32",):
        raise decoder.unimplemented()
    return Row("nanosleep", [decoder.source(instruction.operands[0], "u32")], 0)


@special("griddepcontrol", operands=".")
@special("pmevent", "setmaxnreg", operands="N")
def _nothing(decoder: Decoder, instruction: Instruction) -> Row:
    """Launch order, events for profilers, registers per thread: nothing that a kernel's results depend on."""
    if instruction.mnemonic == "setmaxnreg" and sorted(instruction.qualifiers[1:]) != ["aligned", "sync", "u32"]:
        raise decoder.unimplemented()
    return Row("nothing", [], 0)
