"""The software pipeline of a loop: tiles that feed a `dot` are copied to shared memory some units ahead.

A unit is what one wait, one barrier and one set of copies serve: one or more steps of the loop, up to UNIT_K of k. The
units of an iteration are unrolled, one per slot of shared memory, so that every address inside the loop is a register
that changes once per iteration, or never, plus a constant. Every staged tile is cut into 16-byte pieces; each thread
copies the same few pieces of every unit with cp.async. One barrier per unit serves both directions: after it, the
copies of this unit are visible, and the slot read in the previous unit may be overwritten. Where the target has no
cp.async, a unit's pieces go through registers, all loads before all stores. Codes may be streamed instead: they go to
registers and stay there (`lowbitvm.codegen.stream`).
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from lowbitvm.chunk import TABLE_ROOM
from lowbitvm.codegen.codebook import (
    GlobalTables,
    GroupTables,
    SharedTables,
    StagedTables,
    TableRows,
    copied_tables,
    table_count,
    table_key,
)
from lowbitvm.codegen.convert import TableDecoder
from lowbitvm.codegen.dense import DenseTile
from lowbitvm.codegen.fused import Fused, chosen_fused, shared_fused
from lowbitvm.codegen.gather import NOWHERE, GatheredTile
from lowbitvm.codegen.ptx import Operand
from lowbitvm.codegen.scales import LANES, OUTER_OF, WORD, ByteRows, OuterRows, RelativeRows
from lowbitvm.codegen.staging import Staged, Unit
from lowbitvm.codegen.state import State, divisor, invariant, non_negative
from lowbitvm.codegen.stream import WordStream
from lowbitvm.codegen.weights import CHUNK_K, GroupRows, Words, WordTile, packed_array, part_bytes
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.ir import Op
from lowbitvm.tile import stages_tables

UNIT_K = 128  # k that is summed before the scales are applied, where the groups allow it
MOST_ACCUMULATORS = 32  # per thread, that leave registers for the fragments of UNIT_K
FEW_ACCUMULATORS = 16
SCALE_BITS = 1  # at most, of scales and zero points per code: two of 32 bits in groups of 64, the least that is merged
CONVERTED_BITS = 8 + 32  # of a scale of 8 bits and the f32 that is made of it
OUTER_BITS = 32
SLOT_ALIGNMENT = 128
SUMS_BYTES = 4096  # at most, of row sums in shared memory
FEW_COPIES = 2  # of a thread and unit, whose predicates leave them out in fewer instructions than branches
KEPT_FREE = 1024  # bytes of shared memory that tables of codebooks leave to what comes after the loop


@dataclass
class Pipeline:
    """All staged tiles of one loop, and its slots. `left` is what is left of k from the iteration's start."""

    state: State
    loop: Op
    unit: Unit
    tiles: dict[tuple[Op, str], Staged]
    slot_bytes: int
    base: int  # of slot 0 in shared memory
    number: int = 0  # of the current unit in its iteration
    slot: int = 0  # where the current unit's tiles lie
    left: str = ""
    ahead: str = ""  # the k of the next unit to fetch, if any tile needs it
    codebooks: dict[object, SharedTables | GroupTables] = field(default_factory=dict)
    stop: str = ""  # the k at which the loop ends

    def codebook(self, codes: Op, act: str) -> SharedTables | GroupTables | None:
        """What a load of codes is decoded by; emits what it needs before the loop. None for formats without tables."""
        _, fmt = packed_array(codes)
        if fmt.code.kind != "table":
            return None
        key = table_key(codes)
        if key not in self.codebooks:
            if fmt.table == "group":
                self.codebooks[key] = self._group_tables(codes, TableDecoder(fmt.code, act))
            else:
                self.codebooks[key] = SharedTables(self.state, codes, TableDecoder(fmt.code, act, *self._table_room))
        return self.codebooks[key]

    def _group_tables(self, codes: Op, decoder: TableDecoder) -> GroupTables:
        tile = self.tiles.get((codes, "table"))
        if isinstance(tile, TableRows):
            group = self.unit.k // tile.segments
            return StagedTables(
                self.state, codes, decoder, lambda k: self.slot_for(tile) + tile.offset + k // group * tile.row_bytes
            )
        room = min(TABLE_ROOM, self.state.free_shared - KEPT_FREE)
        if isinstance(packed_array(codes)[1].group, str) and codes.shape[0] << decoder.code.bits + 1 <= room:
            place = copied_tables(self.state, codes)
            return StagedTables(self.state, codes, decoder, lambda k: place)
        return GlobalTables(self.state, codes, decoder, self.position)

    def position(self, k: int) -> Operand:
        """Emits the k in the arrays of the current unit's k."""
        before = (self.slot - self.base) // self.slot_bytes * self.unit.k
        first = self.state.builder.op("sub.s32", "r", self.stop, self.left)
        return self.state.scalar("add", first, before + k)

    @functools.cached_property
    def _table_room(self) -> tuple[int, int]:
        """How many tables the loop's weights need, and the bytes of shared memory that there are for them."""
        loads = [load for (load, _), tile in self.tiles.items() if isinstance(tile, Words)]
        kept = KEPT_FREE + SUMS_BYTES * self.unit.lead
        return table_count(loads), min(TABLE_ROOM, self.state.free_shared - kept)

    def prologue(self, start: Operand, stop: Operand) -> None:
        """Emits the copies of the first units."""
        b = self.state.builder
        self.stop = str(stop)
        self.left = b.op("mov.b32", "r", stop) if start == 0 else b.op("sub.s32", "r", stop, start)
        if any(tile.needs_k for tile in self.tiles.values() if not isinstance(tile, WordStream)):
            self.ahead = b.op("mov.b32", "r", start)
        if self.state.loop_depth:
            b.do("bar.sync", 0)  # the slots may still be read from the last time this loop ran
        for stream in self.streams:
            for number in range(stream.ahead):
                stream.fetch(number, self.left)
        tiles = self._fetch_weights(start) if self.state.waits else None
        for number in range(0, self.unit.ahead, self.unit.together):
            self._fetch_group(number, self.unit.lead > 0, tiles)
        if self.unit.lead and self.unit.exact:  # one unit beyond the last is decoded, to no end
            for tile in self.tiles.values():
                tile.clear(self.slot_of(self.unit.ahead))
        for tile in self._gathered():
            tile.prepare(self.base, self.slot_bytes, self.left)
            for number in range(0, self.unit.ahead - self.unit.together, self.unit.together):
                tile.turn(number)

    def _fetch_weights(self, start: Operand) -> list[Staged]:
        """Emits the copies of the first units' weights, and the wait for earlier kernels; returns the tiles that are
        left. The first group of copies takes the weights of all of these units with it."""
        sides: dict[bool, list[Staged]] = {True: [], False: []}
        for (load, _), tile in self.tiles.items():
            sides[load.array in self.state.weights].append(tile)
        for number in range(self.unit.ahead):
            self._fetch(number, self.unit.lead > 0, sides[True])
        if self.ahead:
            self.state.builder.do("mov.b32", self.ahead, start)
        self.state.wait_for_earlier()
        return sides[False]

    def _gathered(self) -> list[GatheredTile]:
        return [tile for tile in self.tiles.values() if isinstance(tile, GatheredTile)]

    @property
    def streams(self) -> list[WordStream]:
        """The tiles that go into registers."""
        return [tile for tile in self.tiles.values() if isinstance(tile, WordStream)]

    def slot_of(self, number: int) -> int:
        """Where the tiles of the `number`-th unit of an iteration lie."""
        return self.base + number % self.unit.slots * self.slot_bytes

    def slot_for(self, tile: Staged) -> int:
        """Where what the current unit needs of a tile lies, which may have been copied with an earlier unit."""
        return self.slot_of(self.number - self.number % tile.every)

    def wait(self, pending: int, number: int) -> None:
        """Emits the wait until but `pending` groups of copies are there for all threads, `number` and later units."""
        if self.state.target.has_async_copies:
            self.state.builder.do("cp.async.wait_group", pending)
        self._convert(number)
        self.state.builder.do("bar.sync", 0)

    def _fetch_group(self, number: int, zeros: bool = False, tiles: Iterable[Staged] | None = None) -> None:
        """Emits the copies of the units that one wait serves, of which `number` is the first; tiles: not of all."""
        for each in range(self.unit.together):
            self._fetch(number + each, zeros, self.tiles.values() if tiles is None else tiles)
        if self.state.target.has_async_copies:
            self.state.builder.do("cp.async.commit_group")

    def _fetch(self, number: int, zeros: bool, of: Iterable[Staged]) -> None:
        """Emits the copies, `of` some tiles, of the unit that is `number` units from the iteration's first.

        zeros: units beyond the last are zeros; else exact ones are left out: by a branch, or by the predicates of few
        copies that not all threads make, for which ptxas would branch again.
        """
        b, unit = self.state.builder, self.unit
        skip, beyond, exists = b.label("fetched"), "", ""
        tiles = [tile for tile in of if number % tile.every == 0 and not isinstance(tile, WordStream)]
        pieces = [piece for tile in tiles for piece in tile.pieces]
        few = len(pieces) <= FEW_COPIES and any(piece.active for piece in pieces)
        for tile in tiles:
            tile.follow()
        if unit.exact and not zeros and few and self.state.target.has_async_copies:
            exists = b.op("setp.gt.s32", "p", self.left, number * unit.k)
        elif unit.exact:
            beyond = b.op("setp.le.s32", "p", self.left, number * unit.k)
        if beyond and not zeros:
            b.do("bra.uni", skip, when=beyond)
        for tile in tiles:
            tile.issue(self.slot_of(number), number, self.ahead, beyond if zeros else "", exists)
        if beyond and not zeros:
            b.place(skip)
        if self.ahead:
            b.do("add.s32", self.ahead, self.ahead, unit.k)

    def begin_unit(self, number: int) -> None:
        """Emits the wait for an iteration's unit and the copies of the unit that takes the free slot."""
        unit = self.unit
        if number % unit.together == 0:
            for tile in self._gathered():
                tile.turn(number + unit.ahead - unit.together, last=number == unit.turn - unit.together)
            self.wait(unit.ahead // unit.together - 1 - unit.lead, number + unit.lead)
            self._fetch_group(number + unit.ahead)
        for stream in self.streams:
            stream.fetch(number + stream.ahead, self.left)
            stream.number = number
        self.number, self.slot = number, self.slot_of(number)

    def _convert(self, number: int) -> None:
        """Emits what makes numbers of the bytes that a wait brought: of `number` and the units together with it.

        A lane reads bytes that other lanes of its warp copied.
        """
        b, unit = self.state.builder, self.unit
        converted = [tile for tile in self.tiles.values() if isinstance(tile, ByteRows) and number % tile.every == 0]
        if not converted:
            return
        b.do("bar.warp.sync", 0xFFFFFFFF)
        done = b.label("converted")
        for each in range(number, number + unit.together):
            if each > number and unit.exact:
                b.do("bra.uni", done, when=b.op("setp.le.s32", "p", self.left, each * unit.k))
            for tile in converted:
                outer = tile.outer.every if tile.outer else 1
                tile.convert(self.slot_of(each), self.slot_of(each - each % outer))
        b.place(done)

    def end_iteration(self) -> None:
        """Emits the step to the next iteration."""
        for tile in self.tiles.values():
            tile.advance()
        self.state.builder.do("sub.s32", self.left, self.left, self.unit.turn * self.unit.k)

    def drain(self) -> None:
        """Emits the wait for copies of units that were never used.

        Exact units are not fetched beyond the last, but for those before the loop where weights are decoded ahead.
        """
        if self.state.target.has_async_copies and (self.unit.lead or not self.unit.exact):
            self.state.builder.do("cp.async.wait_all")


def staged_loads(loop: Op) -> list[tuple[Op, Op, Op]]:
    """(dot, activation load, code load) of every dot that stands in the loop itself."""
    found = []
    for op in loop.body:
        if op.kind != "dot":
            continue
        a, b = op.operands
        shape = [b.kind, *(x.kind for x in b.operands)]
        if a.kind != "load" or shape != ["transpose", "dequant"]:
            raise LowbitvmError(
                "KERNEL_UNSUPPORTED",
                f"dot of a {a.kind} and a {b.kind} of a {b.operands[0].kind if b.operands else 'value'}",
                "write lb.dot(lb.load(x, ...), lb.dequant(lb.load(w, ...), w.scales, w.zeros).T)",
                op.location,
            )
        found.append((op, a, b.operands[0].operands[0]))
    return found


def build_pipeline(
    state: State, loop: Op, offsets: "dict[Op, list[Operand]]", stop: Operand, pure: bool
) -> Pipeline | None:
    """Plans the units of a loop and emits the address arithmetic before it; None when nothing feeds a dot.

    `offsets` are the loads' offsets at the first iteration, `stop` is the loop's end; pure: the loop does nothing but
    add dots to tiles. Raises KERNEL_UNSUPPORTED, TILE_INVALID and SHARED_MEMORY_EXCEEDED.
    """
    dots = staged_loads(loop)
    if not dots:
        return None
    for _, activations, codes in dots:
        check_tiles(state, loop, activations, codes)
    unit = _plan_unit(state, loop, [(activations, codes) for _, activations, codes in dots], stop, pure)
    tiles: dict[tuple[Op, str], Staged] = {}
    size = 0

    def add(key: tuple[Op, str], tile: Staged) -> None:
        nonlocal size
        tiles[key] = tile
        tile.policy, tile.name = state.policy(key[0]), state.load_name(key[0].array)
        size = -(-(size + tile.size) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT

    def add_group(activations: Op, codes: Op, parts: tuple[str, ...], row: Operand, start: Operand) -> None:
        fmt = packed_array(codes)[1]
        if part_bytes(fmt, parts[0]) > 1:
            add((codes, parts[0]), GroupRows(state, unit, size, codes, row, start, parts))
            return
        fused = _fused(state, activations, codes)
        for part in parts:
            outer = None
            own = None if part == "zeros" and unit.lead else fused  # row sums are multiplied with f32
            if own is not None and isinstance(fmt.outer, int) and (codes, "outer") not in tiles:
                outers = tuple(OUTER_OF[each] for each in (parts if not unit.lead else (part,)))
                add((codes, "outer"), GroupRows(state, unit, size, codes, row, start, outers))
            if own is None and isinstance(fmt.outer, int):
                outer = OuterRows(state, unit, size, codes, row, start, OUTER_OF[part])
                add((codes, OUTER_OF[part]), outer)
            kind = RelativeRows if own is not None and own.powers else ByteRows
            add((codes, part), kind(state, unit, size, codes, row, start, part, outer, own))

    for _, activations, codes in dots:
        if (activations, "tile") not in tiles:
            kind = GatheredTile if activations.operands[1].shape else DenseTile
            add((activations, "tile"), kind(state, unit, size, activations, *offsets[activations]))
        if (codes, "tile") not in tiles:
            row, start = offsets[codes]
            add((codes, "tile"), _words(state, unit, size, codes, row, start, loop.integer("direct")))
            for parts in _group_parts(packed_array(codes)[1]):
                add_group(activations, codes, parts, row, start)
            if stages_tables(packed_array(codes)[1], unit.k, codes.shape[0]):
                add((codes, "table"), TableRows(state, unit, size, codes, row, start))
    return Pipeline(state, loop, unit, tiles, size, state.allocate_shared(size * unit.slots, loop))


def _words(state: State, unit: Unit, size: int, codes: Op, row: Operand, start: Operand, direct: int) -> Words:
    """The tile of codes, in registers or, where another warp may decode them, in shared memory."""
    if direct and not unit.lead:
        return WordStream(state, unit, size, codes, row, start, direct)
    return WordTile(state, unit, size, codes, row, start)


def _fused(state: State, activations: Op, codes: Op) -> Fused | None:
    """How a dot's scales are multiplied with its decoded codes, if they are."""
    assert activations.dtype is not None
    columns, row_tiles = activations.shape[0] // 8, codes.shape[0] // 16 // state.warps
    fmt, act = packed_array(codes)[1], activations.dtype.name
    fused = shared_fused(fmt, act) if state.warps_m > 1 else chosen_fused(fmt, act, columns, row_tiles)
    if fused is None or not fused.powers:
        return fused
    assert isinstance(fmt.group, int)
    words = UNIT_K // fmt.group * WORD * row_tiles  # of a warp: the lanes compare them
    return fused if words <= LANES and state.target.has_pair_extrema else None


def _group_parts(fmt: Format) -> list[tuple[str, ...]]:
    """Which parts of a weight are copied together: scales and zeros, where they are of one size."""
    if fmt.zero is None:
        return [("scales",)]
    one_size = part_bytes(fmt, "scales") == part_bytes(fmt, "zeros")
    return [("scales", "zeros")] if one_size else [("scales",), ("zeros",)]


def _plan_unit(state: State, loop: Op, loads: list[tuple[Op, Op]], end: Operand, pure: bool) -> Unit:
    """Takes steps together up to UNIT_K, where that saves additions to the accumulators or conversions of scales.

    For that the loop must be `pure`, end where the arrays do, and leave registers for the fragments; two such units
    must fit the target's shared memory.
    """
    step, stages = loop.integer("step"), loop.integer("stages")
    start, stop = loop.operands
    dims = {along(load) for pair in loads for load in pair}
    whole = len(dims) == 1 and ends_at(stop, next(iter(dims)))
    groups = [packed_array(codes)[1].group for _, codes in loads]
    known = [group for group in groups if isinstance(group, int)]
    outers = [outer for _, codes in loads if isinstance(outer := packed_array(codes)[1].outer, int)]
    roomy = sum(a.shape[0] * codes.shape[0] for a, codes in loads) <= MOST_ACCUMULATORS * state.threads
    formats = [packed_array(codes)[1] for _, codes in loads]
    staged = [0 if loop.integer("direct") else fmt.bits for fmt in formats]
    bits = sum(
        16 * a.shape[0] + (each + _scale_bits(fmt)) * codes.shape[0]
        for (a, codes), each, fmt in zip(loads, staged, formats, strict=True)
    )
    fits = 2 * bits * UNIT_K // 8 <= state.target.shared_per_block
    shared = state.warps_m > 1
    few = sum(a.shape[0] * codes.shape[0] for a, codes in loads) <= FEW_ACCUMULATORS * state.threads
    gains = all(_gains(state, loop, activations, codes, few) for activations, codes in loads)
    merges = pure and whole and divisor(start) % UNIT_K == 0 and gains
    without_zeros = [fmt.zero is None for fmt in formats]
    scaled = all(without_zeros) and all(_fused(state, *pair) is not None for pair in loads)
    sums_all = scaled or all(group > step for group in known)
    period = max(1, UNIT_K // step) if merges and shared and sums_all else 1
    merges = merges and roomy and fits and not shared
    taken = max(1, UNIT_K // step) if merges else 1
    k = step * taken
    sizes = math.lcm(state.program.divisor(next(iter(dims))), *known, *outers)
    if any(activations.operands[1].shape for activations, _ in loads) and sizes % (k * period):
        period = 1  # a unit that is not gathered, since none of it exists, may not be summed up
    span = k * period
    exact = whole and divisor(start) % span == 0 and sizes % span == 0
    vectorised = all(state.program.divisor(dim) % 8 == 0 for dim in dims)
    slots = max(2, -(-stages // taken))
    together = 2 if merges and slots >= 4 and slots % 2 == 0 else 1
    early = stop.kind == "min" and len(dims) == 1 and ends_at(stop, next(iter(dims)), k)
    last, aligned = end if early else "", divisor(start) % (k * together) == 0
    return Unit(k, slots, together, exact and vectorised, dims.pop(), period, int(shared), last, aligned)


def along(load: Op) -> str:
    """The dimension that a load moves along: that of the columns, or of the array that has their indices."""
    columns = load.operands[1] if load.operands[1].shape else load
    assert columns.array is not None
    return columns.array.dims[-1]


def _scale_bits(fmt: Format) -> float:
    """Bits of shared memory that scales and zeros take per code, at most."""
    if part_bytes(fmt, "scales") > 1:
        return SCALE_BITS
    numbers = 2 if fmt.zero == "offset" else 1
    group = min(UNIT_K, fmt.group) if isinstance(fmt.group, int) else UNIT_K
    return numbers * (CONVERTED_BITS / group + OUTER_BITS / UNIT_K) + (fmt.zero == "int") * SCALE_BITS / 2


def _gains(state: State, loop: Op, activations: Op, codes: Op, few: bool) -> bool:
    """Whether longer units save anything: scaled sums, or the conversion of scales by warps with idle lanes.

    Sums of short groups need registers beside those of a large tile's accumulators: two of no zero points, scales in
    the decode and groups of more than 16 leave enough where no second dot has such sums. few: the loop's accumulators
    are few.
    """
    fmt = packed_array(codes)[1]
    if isinstance(fmt.group, str) or fmt.group > loop.integer("step"):
        return True
    fused, alone = _fused(state, activations, codes) is not None, sum(op.kind == "dot" for op in loop.body) == 1
    few_sums = alone and sum((fmt.zero is None, fused, fmt.group > 16)) >= 2
    return part_bytes(fmt, "scales") == 1 and (few or few_sums)


def ends_at(stop: Op, dim: str, multiple: int = UNIT_K) -> bool:
    """Whether a loop's end is the size `dim`, or the smaller of it and a multiple of `multiple`."""
    if stop.kind == "min":
        return any(ends_at(a, dim) and divisor(b) % multiple == 0 for a, b in (stop.operands, stop.operands[::-1]))
    return stop.kind == "dimension" and stop.array is not None and stop.array.dims[stop.integer("axis")] == dim


def _check_indices(indices: Op, loop: Op) -> None:
    """What the pipeline needs of the columns that a load gathers by."""
    if indices.kind != "load" or indices not in loop.body:
        problem = f"a dot of columns that a {indices.kind} names"
    elif indices.attributes["other"] != NOWHERE:
        problem = f"a dot of columns that are {indices.attributes['other']} beyond their array"
    else:
        return
    raise LowbitvmError(
        "KERNEL_UNSUPPORTED",
        problem,
        f"write lb.load(x, (row, lb.load(order, (k,), (bk,), other={NOWHERE})), (bm, bk)) in the loop",
        indices.location,
    )


def check_tiles(state: State, loop: Op, activations: Op, codes: Op) -> None:
    """Raises for loads of the sides of a dot that a pipeline cannot stage."""
    bn, bk = codes.shape
    step = loop.integer("step")
    for load in (activations, codes):
        row, column = load.operands
        if column.shape:
            _check_indices(column, loop)
            (column,) = column.operands
        if not invariant(row, loop) or column is not loop or load in state.assigned:
            raise LowbitvmError(
                "KERNEL_UNSUPPORTED",
                "a load that feeds a dot must move along k by the loop index, and along nothing else",
                "write lb.load(x, (row, k), ...) with k of the innermost lb.range",
                load.location,
            )
    problems = {
        f"bk {bk} is no multiple of {CHUNK_K} up to 256": bk % CHUNK_K or bk > 256,
        f"the loop's step {step} is not bk {bk}": step != bk,
        f"the loop's start is no multiple of bk {bk}": divisor(loop.operands[0]) % bk,
        "the loop may start below k = 0": not non_negative(loop.operands[0]),
        "the first out_feature of the tile is no multiple of 16": divisor(codes.operands[0]) % 16,
        f"bn {bn} is no multiple of 16 x {state.warps} warps": bn % (16 * state.warps),
    }
    for problem, holds in problems.items():
        if holds:
            raise LowbitvmError("TILE_INVALID", problem, "choose such a tile", codes.location)
