"""From the core's raw results to a report."""

from typing import Any

from lowbitvm.runtime.emulator.bind import Buffer
from lowbitvm.runtime.emulator.decode import Program
from lowbitvm.runtime.emulator.report import KINDS, ArrayTraffic, Counters, EmulatorError, Finding, Report
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
    item: tuple[int, ...],
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: int,
) -> Finding:
    kind, pc, block_index, warp, lane, other, address, size = item
    name, template = KINDS[kind]
    line, _, text = syntax.place(program.positions[pc])
    access, where = "write" if other else "read", _where(buffers, address)
    message = template.format(access=access, address=address, where=where, size=size, other=other, shared=shared)
    return Finding(name, message, line, text, _index(block_index, grid), _index(warp * 32 + lane, block), address)


def _where(buffers: list[Buffer], address: int) -> str:
    for buffer in buffers:
        if buffer.base >> REGION_SHIFT == address >> REGION_SHIFT:
            offset, name = address - buffer.base, f"argument {buffer.argument}"
            return f"{address:#x} ({name}, byte {offset} of {buffer.array.nbytes})"
    return f"{address:#x}"


def _index(number: int, extent: tuple[int, int, int]) -> tuple[int, int, int]:
    return number % extent[0], number // extent[0] % extent[1], number // extent[0] // extent[1]
