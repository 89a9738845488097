"""From the core's raw results to a report."""

from typing import Any

from lowbitvm.runtime.emulator.bind import Buffer
from lowbitvm.runtime.emulator.decode import Program
from lowbitvm.runtime.emulator.report import (
    INVALID_BARRIER,
    INVALID_MBARRIER,
    KINDS,
    ArrayTraffic,
    Counters,
    EmulatorError,
    Finding,
    Party,
    Report,
)
from lowbitvm.runtime.emulator.syntax import Syntax
from lowbitvm.runtime.emulator.variables import REGION_SHIFT


def build_report(
    syntax: Syntax,
    program: Program,
    buffers: list[Buffer],
    raw: Any,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    on_finding: str,
    shared: int,
) -> Report:
    tally, traffic, findings = raw
    found = [_finding(syntax, program, buffers, item, grid, block, shared) for item in findings]
    if found and on_finding == "raise":
        raise EmulatorError(found[0])
    by_mnemonic: dict[str, int] = {}
    by_line: dict[int, int] = {}
    mma = 0
    for (count, *_), name, position in zip(tally, program.names, program.positions, strict=True):
        mma += count if name.startswith("mma.") else 0
        line = syntax.place(position)[0]
        by_mnemonic[name] = by_mnemonic.get(name, 0) + count
        by_line[line] = by_line.get(line, 0) + count
    arrays = {b.argument: ArrayTraffic(*t) for b, t in zip(buffers, traffic, strict=True) if b.argument is not None}
    total, _, wavefronts, least, sectors, *_ = (sum(column) for column in zip(*tally, strict=True))
    return Report(Counters(total, by_mnemonic, by_line, mma, wavefronts, wavefronts - least, sectors, arrays), found)


def _finding(
    syntax: Syntax,
    program: Program,
    buffers: list[Buffer],
    item: Any,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: int,
) -> Finding:
    kind, pc, block_index, warp, lane, context, address, size, (other_pc, other_block, other_thread) = item
    name, template = KINDS[kind]
    line, _, text = syntax.place(program.positions[pc])
    facts = {"address": address, "where": _where(buffers, address), "size": size, "context": context, "shared": shared}
    facts["access"] = "write" if context else "read"
    facts["waiting"] = f"at barrier {address}" if address < 16 else "in a loop"
    if name == "barrier_invalid":
        facts["invalid_barrier"] = INVALID_BARRIER[context].format(size=size)
    if name == "mbarrier_invalid":
        facts["invalid_mbarrier"] = INVALID_MBARRIER[context].format(size=size)
    other = None
    thread = _index(warp * 32 + lane, block)
    if other_pc >= 0 and (other_block, other_thread) != (block_index, warp * 32 + lane):
        other_line = syntax.place(program.positions[other_pc])[0]
        other = Party(other_line, _index(other_block, grid), _index(other_thread, block))
    return Finding(name, template.format(**facts), line, text, _index(block_index, grid), thread, address, other)


def _where(buffers: list[Buffer], address: int) -> str:
    for buffer in buffers:
        if buffer.base >> REGION_SHIFT == address >> REGION_SHIFT:
            offset, name = address - buffer.base, f"argument {buffer.argument}"
            return f"{address:#x} ({name}, byte {offset} of {buffer.array.nbytes})"
    return f"{address:#x}"


def _index(number: int, extent: tuple[int, int, int]) -> tuple[int, int, int]:
    return number % extent[0], number // extent[0] % extent[1], number // extent[0] // extent[1]
