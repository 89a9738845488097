"""From the core's raw results to a report."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm.runtime.emulator.bind import Buffer
from lowbitvm.runtime.emulator.classes import CLASSES, class_of, matrix_form
from lowbitvm.runtime.emulator.decode import Program
from lowbitvm.runtime.emulator.report import (
    COLUMNS,
    DIVERGED,
    ENDLESS,
    INVALID_BARRIER,
    INVALID_MBARRIER,
    INVALID_METADATA,
    KINDS,
    TRAPS,
    WAITING,
    ArrayKey,
    ArrayTraffic,
    Counters,
    EmulatorError,
    Finding,
    Launch,
    LinePlace,
    LineTable,
    MatrixCount,
    Party,
    Report,
    Rounding,
)
from lowbitvm.runtime.emulator.syntax import Syntax
from lowbitvm.runtime.emulator.variables import REGION_SHIFT

Index = np.ndarray[Any, np.dtype[np.int64]]
Tally = np.ndarray[Any, np.dtype[np.uint64]]
TALLY = "7Q3d2Q2I"  # of each instruction, in core.h: COLUMNS, then a Rounding's fields


@dataclass(frozen=True)
class Outline:
    """What reports say of a kernel before it runs: to which line, mnemonic, class and matrix form each row counts."""

    places: list[LinePlace]
    line: Index  # of each row, in `places`
    names: list[str]
    name: Index  # of each row, in `names`
    forms: list[tuple[Index, str, int]]  # rows of a matrix form, its name, the products of one instruction

    @classmethod
    def of(cls, syntax: Syntax, program: Program) -> "Outline":
        rows: dict[int, list[int]] = {}
        for pc, position in enumerate(program.positions):
            rows.setdefault(syntax.place(position)[0], []).append(pc)
        places: list[LinePlace] = []
        line = np.zeros(len(program.positions), np.int64)
        for number, members in sorted(rows.items()):
            line[members] = len(places)
            # the row after the last instruction is the exit that ends every kernel: it has no text of its own
            named = [pc for pc in members if pc + 1 < len(program.names)] or members
            classes = tuple(dict.fromkeys(class_of(program.names[pc]) for pc in named))
            text = syntax.place(program.positions[members[0]])[2]
            places.append(LinePlace(number, text, _source(program, members[0]), classes))
        names = list(dict.fromkeys(program.names))
        numbers = {name: number for number, name in enumerate(names)}
        name = np.array([numbers[name] for name in program.names], np.int64)
        matrix: dict[tuple[str, int], list[int]] = {}
        for pc, mnemonic in enumerate(program.names):
            if form := matrix_form(mnemonic):
                matrix.setdefault(form, []).append(pc)
        forms = [(np.array(members), *form) for form, members in matrix.items()]
        return cls(places, line, names, name, forms)


def build_report(
    syntax: Syntax,
    program: Program,
    outline: Outline,
    buffers: list[Buffer],
    raw: Any,
    launch: Launch,
    on_finding: str,
    seconds: float,
) -> Report:
    counts, traffic, findings, printed, assertion = raw
    tally = np.frombuffer(counts, np.uint64).reshape(-1, struct.calcsize(TALLY) // 8)[:, : len(COLUMNS)]
    by_line = _grouped(tally, outline.line, len(outline.places))
    rounding = _roundings(counts, launch) if launch.options["numerics"] == "bound" else {}
    total = _worst(rounding.values()) if launch.options["numerics"] == "bound" else None
    counters = _counters(outline, tally, by_line, _arrays(buffers, traffic), total)
    found = [_finding(syntax, program, buffers, item, launch, assertion) for item in findings]
    found += [_beyond_bound(syntax, program, pc, r, launch) for pc, r in rounding.items() if r.share > 1]
    lines: dict[int, list[Rounding]] = {}
    for pc, r in rounding.items():
        lines.setdefault(int(outline.line[pc]), []).append(r)
    table = LineTable(outline.places, by_line, {line: _worst(members) for line, members in lines.items()})
    report = Report(counters, found, table, launch, seconds, syntax.text, printed)
    if found and on_finding == "raise":
        raise EmulatorError(found[0], report)
    return report


def _roundings(counts: bytes, launch: Launch) -> dict[int, Rounding]:
    """The rest of a tally's columns, by row, of the rows that computed outputs."""
    made = {}
    for pc, row in enumerate(struct.iter_unpack(TALLY, counts)):
        bound, distance, share, outputs, unbounded, block, thread = row[len(COLUMNS) :]
        if outputs:
            place = _index(block, launch.grid), _index(thread, launch.block)
            made[pc] = Rounding(bound, distance, share, outputs, unbounded, *place)
    return made


def _worst(parts: Iterable[Rounding]) -> Rounding:
    """Of several instructions: the largest of each, and where the worst share was."""
    parts = list(parts) or [Rounding(0.0, 0.0, 0.0, 0, 0, (0, 0, 0), (0, 0, 0))]
    worst = max(parts, key=lambda r: r.share)
    bound, distance = max(r.bound for r in parts), max(r.distance for r in parts)
    outputs, unbounded = sum(r.outputs for r in parts), sum(r.unbounded for r in parts)
    return Rounding(bound, distance, worst.share, outputs, unbounded, worst.block, worst.thread)


def _beyond_bound(syntax: Syntax, program: Program, pc: int, rounding: Rounding, launch: Launch) -> Finding:
    """The arithmetic of `launch.arch` broke the bound that was proven for it: one of the two is wrong here."""
    line, _, text = syntax.place(program.positions[pc])
    message = (
        f"a product of {launch.arch} is {rounding.share:.3g} times its proven bound away from the exact sum, rounded "
        "once: the emulator contradicts itself"
    )
    place = rounding.block, rounding.thread
    return Finding("beyond_bound", message, line, text, *place, 0, None, _source(program, pc))


def _grouped(tally: Tally, group: Index, groups: int) -> Tally:
    """The tally's rows added up by group; the worst conflict is the worst of the group."""
    result = np.zeros((groups, tally.shape[1]), np.uint64)
    np.add.at(result, group, tally)
    result[:, -1] = 0
    np.maximum.at(result[:, -1], group, tally[:, -1])
    return result


def _arrays(buffers: list[Buffer], traffic: list[tuple[int, int, int, int]]) -> dict[ArrayKey, ArrayTraffic]:
    arrays = {}
    for buffer, counts in zip(buffers, traffic, strict=True):
        if buffer.origin.key is not None:
            arrays[buffer.origin.key] = ArrayTraffic(*counts, size=buffer.array.nbytes, name=buffer.origin.name)
    return arrays


def _counters(
    outline: Outline, tally: Tally, by_line: Tally, arrays: dict[ArrayKey, ArrayTraffic], rounding: Rounding | None
) -> Counters:
    executed = _grouped(tally, outline.name, len(outline.names))[:, 0].tolist()
    by_class = dict.fromkeys(CLASSES, 0)
    for name, count in zip(outline.names, executed, strict=True):
        by_class[class_of(name)] += count
    matrix = {}
    for rows, form, products in outline.forms:  # these run with all 32 lanes active, or with a finding
        if count := int(tally[rows, 1].sum()) // 32:
            matrix[form] = MatrixCount(count, count * products)
    total = _grouped(tally, np.zeros(len(tally), np.int64), 1)[0].tolist()
    return Counters(
        **dict(zip(COLUMNS, total, strict=True)),
        by_class=by_class,
        by_mnemonic=dict(zip(outline.names, executed, strict=True)),
        by_line={place.line: count for place, count in zip(outline.places, by_line[:, 0].tolist(), strict=True)},
        mma=sum(count.instructions for count in matrix.values()),
        matrix=matrix,
        rounding=rounding,
        arrays=arrays,
    )


def _source(program: Program, pc: int) -> str | None:
    """The "file:line" of an instruction's .loc."""
    return program.sources[pc]


def _finding(
    syntax: Syntax, program: Program, buffers: list[Buffer], item: tuple[Any, ...], launch: Launch, assertion: str
) -> Finding:
    kind, pc, block_index, warp, lane, context, address, size, (other_pc, other_block, other_thread) = item
    name, template = KINDS[kind]
    line, _, text = syntax.place(program.positions[pc])
    facts = {"address": address, "where": _where(buffers, address), "size": size, "context": context}
    facts |= {"shared": launch.shared, "access": "write" if context else "read"}
    facts["waiting"] = WAITING.get(address, f"at barrier {address}")
    if name == "limit":
        facts["endless"] = ENDLESS[context].format(size=size)
    facts["diverged"] = DIVERGED[bool(size)].format(context=context)
    if name == "barrier_invalid":
        facts["invalid_barrier"] = INVALID_BARRIER[context].format(address=address, size=size)
    if name == "trap":
        facts["trap"] = assertion or TRAPS[context]
    if name == "mbarrier_invalid":
        facts["invalid_mbarrier"] = INVALID_MBARRIER[context].format(size=size)
    if name == "metadata_invalid":
        facts["metadata"] = INVALID_METADATA[context].format(address=address, size=size)
    other = None
    block, thread = _index(block_index, launch.grid), _index(warp * 32 + lane, launch.block)
    if other_pc >= 0:
        other_line = syntax.place(program.positions[other_pc])[0]
        other = Party(other_line, _index(other_block, launch.grid), _index(other_thread, launch.block))
    return Finding(name, template.format(**facts), line, text, block, thread, address, other, _source(program, pc))


def _where(buffers: list[Buffer], address: int) -> str:
    for buffer in buffers:
        if buffer.base >> REGION_SHIFT == address >> REGION_SHIFT:
            offset = address - buffer.base
            return f"{address:#x} ({buffer.origin}, byte {offset} of {buffer.array.nbytes})"
    return f"{address:#x}"


def _index(number: int, extent: tuple[int, int, int]) -> tuple[int, int, int]:
    return number % extent[0], number // extent[0] % extent[1], number // extent[0] // extent[1]
