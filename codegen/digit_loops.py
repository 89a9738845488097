"""The loops over dots of integer codes: which steps they take, and who brings the codes.

Stored tiles go through shared memory, or warps that share out k load their own to registers.
"""

from dataclasses import dataclass, field

from lowbitvm import dtypes
from lowbitvm.codegen.digit_tiles import DirectTile, FragmentTile, source_format
from lowbitvm.codegen.numbers import NumberColumns, columns_together, is_column
from lowbitvm.codegen.pipeline import SLOT_ALIGNMENT, Pipeline, ends_at
from lowbitvm.codegen.ptx import Operand
from lowbitvm.codegen.staging import Staged, Unit
from lowbitvm.codegen.state import State, divisor, invariant, non_negative
from lowbitvm.digits import BASES, COLUMNS, columns_per_row, widens_once
from lowbitvm.errors import LowbitvmError
from lowbitvm.integers import row_tiles
from lowbitvm.ir import Op


class DirectPipeline(Pipeline):
    """A loop whose warps share out k: warp w takes the w-th part of every step, and none waits for another."""

    remaining = ""  # of k, from where the warp's part of the current step begins

    def prologue(self, start: Operand, stop: Operand) -> None:
        self.state.wait_for_earlier()
        self.left = self.state.builder.op("sub.s32", "r", stop, self.first)

    @property
    def first(self) -> str:
        """The k that the warp starts at."""
        return self.ahead

    def begin_unit(self, number: int) -> None:
        for tile in self.tiles.values():
            assert isinstance(tile, DirectTile)
            tile.loaded.clear()
        self.remaining = self.left

    def drain(self) -> None:
        pass


@dataclass
class GroupedPipeline(DirectPipeline):
    """Such a loop whose dots are of groups of k, each of which a single warp multiplies, for all: they go in step.

    start: k of the first step. before: k of a step that the warps before take. exchanged: where the sums of all groups
    of a step lie in shared memory, by the load of the weights. multiplied: the weights that this step's are there of.
    """

    start: Operand = 0
    before: Operand = 0
    exchanged: dict[Op, int] = field(default_factory=dict)
    multiplied: set[Op] = field(default_factory=set)

    def prologue(self, start: Operand, stop: Operand) -> None:
        self.state.wait_for_earlier()
        self.left = self.state.builder.op("sub.s32", "r", stop, start)

    @property
    def first(self) -> str:
        """The k that all warps start at."""
        return str(self.start)

    def begin_unit(self, number: int) -> None:
        super().begin_unit(number)
        self.remaining = self.state.builder.op("sub.s32", "r", self.left, self.before)
        self.multiplied.clear()


def shares_k(shape: tuple[int, ...], warps: int) -> bool:
    """Whether the warps share out k: where a dot (bm, bn) has not 16 columns for each of them."""
    return shape[1] < 16 * warps


def build_digit_pipeline(
    state: State,
    loop: Op,
    offsets: "dict[Op, list[Operand]]",
    steps: dict[Op, list[int]],
    stop: Operand,
    pure: bool,
) -> Pipeline:
    """Plans the units of a loop over dots of codes, and emits the address arithmetic before it.

    `offsets` are the loads' offsets at the first iteration, which grow by `steps`, `stop` is the loop's end; pure: the
    loop does nothing but add dots to tiles. Raises KERNEL_UNSUPPORTED, TILE_INVALID and SHARED_MEMORY_EXCEEDED.
    """
    dots = [op for op in loop.body if op.kind == "dot"]
    if any(dot.dtype != dtypes.i32 for dot in dots):
        problem = "dots of integer codes and of floats in one loop"
        raise LowbitvmError("KERNEL_UNSUPPORTED", problem, "write a loop for each", loop.location)
    loads = list(dict.fromkeys(load for dot in dots for load in (dot.operands[0], dot.operands[1].operands[0])))
    parts = {state.warps if shares_k(dot.shape, state.warps) else 1 for dot in dots}
    for load in loads:
        _check_load(state, loop, load, max(parts))
    step, start = loop.integer("step"), loop.operands[0]
    dims = {load.array.dims[1] for load in loads if load.array is not None}
    ends = len(dims) == 1 and ends_at(loop.operands[1], min(dims), step)
    part = step // max(parts)
    taken = part if pure else step  # of k at a time
    exact = ends and state.program.divisor(min(dims)) % taken == 0 and divisor(start) % taken == 0
    if parts == {1}:
        early = stop if ends and loop.operands[1].kind == "min" else ""
        lead = int(pure and len(dots) == 1 and _widens_ahead(state, dots[0], loop.integer("stages")))
        unit = Unit(step, loop.integer("stages"), 1, exact, min(dims), lead=lead, stop=early)
        columns = [load for load, by in steps.items() if load in state.layouts and is_column(load, by)]
        moving = {load: steps[load] for load in columns if load.array not in state.stored}
        return _staged(state, loop, unit, loads, offsets, moving)
    sizes = {dot.attributes.get("size", step) for dot in dots}
    grouped = not pure and len(sizes) == 1 and all(isinstance(size, int) and part % size == 0 for size in sizes)
    if len(parts) > 1 or not ends or not (pure or grouped):
        raise LowbitvmError(
            "KERNEL_UNSUPPORTED",
            "warps that share out k in a loop that does more than add dots of one bn, or of groups of k, to its end",
            f"make bn a multiple of 16 x {state.warps} warps",
            loop.location,
        )
    b, begin = state.builder, offsets[loads[0]][1]
    before = state.scalar("mul", b.op("shr.u32", "r", state.tid, 5), part)
    first = str(state.scalar("add", before, begin))
    unit = Unit(step, 1, 1, exact, min(dims))
    tiles: dict[tuple[Op, str], Staged] = {
        (load, "tile"): DirectTile(state, unit, load, offsets[load][0], first) for load in loads
    }
    if pure:
        return DirectPipeline(state, loop, unit, tiles, 0, 0, ahead=first)
    return GroupedPipeline(state, loop, unit, tiles, 0, 0, ahead=first, start=begin, before=before)


def _widens_ahead(state: State, dot: Op, stages: int) -> bool:
    """Whether weights are widened once for all warps, a step before they are multiplied."""
    activations, weights = (source_format(load) for load in (dot.operands[0], dot.operands[1].operands[0]))
    assert activations.digits is not None and weights.digits is not None
    columns = dot.shape[0] * columns_per_row(activations.code, activations.digits) // COLUMNS
    ready = state.target.has_async_copies and stages > 2 and dot.shape[1] % (16 * state.warps) == 0
    return ready and widens_once(weights.code, weights.digits, columns)


def _staged(
    state: State,
    loop: Op,
    unit: Unit,
    loads: list[Op],
    offsets: "dict[Op, list[Operand]]",
    moving: dict[Op, list[int]],
) -> Pipeline:
    """A pipeline through shared memory; `moving` are the loads of numbers that go with the codes, and their steps."""
    tiles: dict[tuple[Op, str], Staged] = {}
    size = 0
    for load in loads:
        tile = FragmentTile(state, unit, size, load, *offsets[load])
        tiles[load, "tile"] = tile
        size = -(-(size + tile.size) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
    for together in columns_together(offsets, moving):
        numbers = NumberColumns(state, unit, size, together, loop, offsets, moving[together[0]][1])
        tiles[together[0], "numbers"] = numbers
        size = -(-(size + numbers.size) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
    return Pipeline(state, loop, unit, tiles, size, state.allocate_shared(size * unit.slots, loop))


def _check_load(state: State, loop: Op, load: Op, parts: int) -> None:
    """Raises for a load of codes that a digit kernel cannot make; warps share out each step of k in `parts`."""
    if load.kind != "load":
        problem = f"a dot of the codes of a {load.kind}"
        raise LowbitvmError(
            "KERNEL_UNSUPPORTED", problem, "write lb.dot(lb.load(a, ...), lb.load(w, ...).T)", load.location
        )
    fmt = source_format(load)
    if fmt.digits not in state.target.digits:
        raise LowbitvmError(
            "KERNEL_UNSUPPORTED",
            f"digits of base {fmt.digits} on {state.target.name}, which has no such instruction",
            f"pack with digits={' or '.join(map(repr, state.target.digits))}, native there",
            load.location,
        )
    row, column = load.operands
    if not invariant(row, loop) or column is not loop or load in state.assigned:
        raise LowbitvmError(
            "KERNEL_UNSUPPORTED",
            "a load that feeds a dot must move along k by the loop index, and along nothing else",
            "write lb.load(a, (row, k), ...) with k of the innermost lb.range",
            load.location,
        )
    least, step = parts * BASES[fmt.digits].activation_k, loop.integer("step")
    per_tile = load.shape[0] // row_tiles(fmt, load.shape[0])
    problems = {
        f"bk {load.shape[1]} is no multiple of {least}": load.shape[1] % least,
        f"the loop's step {step} is not bk {load.shape[1]}": step != load.shape[1],
        f"the loop's start is no multiple of bk {load.shape[1]}": divisor(loop.operands[0]) % load.shape[1],
        "the loop may start below k = 0": not non_negative(loop.operands[0]),
        f"the first row of the tile is no multiple of {per_tile}": divisor(row) % per_tile,
    }
    for problem, holds in problems.items():
        if holds:
            raise LowbitvmError("TILE_INVALID", problem, "choose such a tile", load.location)
