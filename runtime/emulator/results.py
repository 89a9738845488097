"""From the core's raw results to a report."""

from collections.abc import Iterable
from typing import Any

from lowbitvm.runtime.emulator.bind import Buffer
from lowbitvm.runtime.emulator.classes import CLASSES, class_of, matrix_form
from lowbitvm.runtime.emulator.decode import REGION_SHIFT, Program
from lowbitvm.runtime.emulator.parse import Syntax
from lowbitvm.runtime.emulator.report import (
    KINDS,
    ArrayTraffic,
    Counters,
    EmulatorError,
    Finding,
    Launch,
    LineCounters,
    MatrixCount,
    Report,
)

Tally = tuple[int, ...]  # core.h: executed, lanes, wavefronts, fewest, sectors, fewest, worst conflict


def build_report(
    syntax: Syntax,
    program: Program,
    buffers: list[Buffer],
    raw: Any,
    launch: Launch,
    on_finding: str,
    seconds: float,
) -> Report:
    tally, traffic, findings = raw
    lines = _lines(syntax, program, tally)
    counters = _counters(program, tally, lines, _arrays(program, buffers, traffic))
    found = [_finding(syntax, program, buffers, item, launch) for item in findings]
    report = Report(counters, found, lines, launch=launch, seconds=seconds, ptx=syntax.text)
    if found and on_finding == "raise":
        raise EmulatorError(found[0], report)
    return report


def _arrays(
    program: Program, buffers: list[Buffer], traffic: list[tuple[int, int, int, int]]
) -> dict[int, ArrayTraffic]:
    arrays = {}
    for buffer, counts in zip(buffers, traffic, strict=True):
        if buffer.argument is not None:
            name, size = program.params[buffer.argument][0].name, buffer.array.nbytes
            arrays[buffer.argument] = ArrayTraffic(*counts, size=size, name=name)
    return arrays


def _total(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies, and their worst conflict."""
    *sums, worst = zip(*tallies, strict=True)
    return (*map(sum, sums), max(worst))


def _traffic(total: Tally) -> dict[str, int]:
    """A tally as the fields of report.Traffic."""
    _, _, wavefronts, fewest_wavefronts, sectors, fewest_sectors, worst = total
    return {
        "shared_wavefronts": wavefronts,
        "fewest_wavefronts": fewest_wavefronts,
        "conflict_degree": worst,
        "global_sectors": sectors,
        "fewest_sectors": fewest_sectors,
    }


def _lines(syntax: Syntax, program: Program, tally: list[Tally]) -> list[LineCounters]:
    """The counts by line. The last row, the exit that ends every kernel, has no text of its own."""
    rows: dict[int, list[int]] = {}
    for pc, position in enumerate(program.positions):
        if pc + 1 < len(tally) or tally[pc][0] or pc == 0:
            rows.setdefault(syntax.place(position)[0], []).append(pc)
    lines = []
    for line, members in sorted(rows.items()):
        total = _total(tally[pc] for pc in members)
        text = syntax.place(program.positions[members[0]])[2]
        classes = tuple(dict.fromkeys(class_of(program.names[pc]) for pc in members))
        counts = {"instructions": total[0], "lanes": total[1], **_traffic(total)}
        lines.append(LineCounters(line=line, text=text, source=_source(program, members[0]), classes=classes, **counts))
    return lines


def _counters(
    program: Program, tally: list[Tally], lines: list[LineCounters], arrays: dict[int, ArrayTraffic]
) -> Counters:
    total = _total(tally)
    by_mnemonic: dict[str, int] = {}
    for counts, name in zip(tally, program.names, strict=True):
        by_mnemonic[name] = by_mnemonic.get(name, 0) + counts[0]
    by_class = dict.fromkeys(CLASSES, 0)
    for name, count in by_mnemonic.items():
        by_class[class_of(name)] += count
    matrix = _matrix(program, tally)
    return Counters(
        instructions=total[0],
        lanes=total[1],
        by_class=by_class,
        by_mnemonic=by_mnemonic,
        by_line={line.line: line.instructions for line in lines},
        mma=sum(count.instructions for count in matrix.values()),
        matrix=matrix,
        arrays=arrays,
        **_traffic(total),
    )


def _matrix(program: Program, tally: list[Tally]) -> dict[str, MatrixCount]:
    """Matrix instructions by shape and types; those that ran have all 32 lanes active."""
    found: dict[str, MatrixCount] = {}
    for (_, lanes, *_), name in zip(tally, program.names, strict=True):
        form = matrix_form(name)
        if form is None or lanes < 32:
            continue
        count, products = lanes // 32, form[1]
        before = found.get(form[0], MatrixCount(0, 0))
        found[form[0]] = MatrixCount(before.instructions + count, before.multiply_accumulates + count * products)
    return found


def _source(program: Program, pc: int) -> str | None:
    """The "file:line" of an instruction's .loc."""
    del program, pc
    return None


def _finding(syntax: Syntax, program: Program, buffers: list[Buffer], item: tuple[int, ...], launch: Launch) -> Finding:
    kind, pc, block_index, warp, lane, other, address, size = item
    name, template = KINDS[kind]
    line, _, text = syntax.place(program.positions[pc])
    access, where = "write" if other else "read", _where(buffers, address)
    message = template.format(access=access, address=address, where=where, size=size, other=other, shared=launch.shared)
    block, thread = _index(block_index, launch.grid), _index(warp * 32 + lane, launch.block)
    return Finding(name, message, line, text, block, thread, address, None, _source(program, pc))


def _where(buffers: list[Buffer], address: int) -> str:
    for buffer in buffers:
        if buffer.base >> REGION_SHIFT == address >> REGION_SHIFT:
            offset, name = address - buffer.base, f"argument {buffer.argument}"
            return f"{address:#x} ({name}, byte {offset} of {buffer.array.nbytes})"
    return f"{address:#x}"


def _index(number: int, extent: tuple[int, int, int]) -> tuple[int, int, int]:
    return number % extent[0], number // extent[0] % extent[1], number // extent[0] // extent[1]
