"""`dot` of two tiles of 16-bit floats: both are staged, and ldmatrix brings either to the fragments.

For what stands beside low-bit weights in one kernel: a few columns in full precision, or a branch of low rank.
"""

import functools
from operator import or_

from lowbitvm import dtypes
from lowbitvm.codegen.dense import Activations, DenseTile
from lowbitvm.codegen.gather import GatheredTile
from lowbitvm.codegen.mma import LDMATRIX_K, Dot
from lowbitvm.codegen.pipeline import SLOT_ALIGNMENT, UNIT_K, Pipeline, along, check_tiles, ends_at
from lowbitvm.codegen.ptx import Operand, float_immediate, memory, vector
from lowbitvm.codegen.staging import Staged, Unit
from lowbitvm.codegen.state import State, divisor
from lowbitvm.errors import LowbitvmError
from lowbitvm.ir import Op
from lowbitvm.targets import MMA_ATOMS

SIDES = ["load", "transpose", "load"]  # kinds of the first operand, of the second, and of what is transposed


def multiplies_dense(op: Op) -> bool:
    """Whether an op is a dot of two tiles of 16-bit floats."""
    return op.kind == "dot" and op.operands[1].dtype in (dtypes.f16, dtypes.bf16)


def build_dense_pipeline(state: State, loop: Op, offsets: "dict[Op, list[Operand]]") -> Pipeline:
    """Plans the units of a loop over dots of dense tiles; see `lowbitvm.codegen.pipeline.build_pipeline`."""
    tiles: dict[tuple[Op, str], Staged] = {}
    size, unit = 0, None
    for dot in (op for op in loop.body if op.kind == "dot"):
        a, b = dot.operands
        if not multiplies_dense(dot) or [a.kind, b.kind, *(x.kind for x in b.operands)] != SIDES:
            problem = "a loop that has a dot of dense tiles and one that is none of two loads"
            fix = "write lb.dot(lb.load(x, ...), lb.load(w, ...).T), and a loop for each kind of weight"
            raise LowbitvmError("KERNEL_UNSUPPORTED", problem, fix, dot.location)
        weights = b.operands[0]
        check_tiles(state, loop, a, weights)
        unit = unit or _unit(state, loop, along(a), along(weights))
        for load in (a, weights):
            if (load, "tile") not in tiles:
                kind = GatheredTile if load.operands[1].shape else DenseTile
                tile = tiles[load, "tile"] = kind(state, unit, size, load, *offsets[load])
                tile.policy, tile.name = state.policy(load), state.load_name(load.array)
                size = -(-(size + tile.size) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
    assert unit is not None
    return Pipeline(state, loop, unit, tiles, size, state.allocate_shared(size * unit.slots, loop))


def _unit(state: State, loop: Op, *dims: str) -> Unit:
    step, (start, stop) = loop.integer("step"), loop.operands
    whole = len(set(dims)) == 1 and ends_at(stop, dims[0])
    exact = whole and divisor(start) % step == 0 and state.program.divisor(dims[0]) % step == 0
    return Unit(step, loop.integer("stages"), 1, exact, dims[0])


class DenseDot(Dot):
    """The emission of one `dot` of dense tiles into accumulators, in the register order of `Dot`."""

    def __init__(self, state: State, pipeline: Pipeline, op: Op) -> None:
        a, b = op.operands
        activations, weights = pipeline.tiles[a, "tile"], pipeline.tiles[b.operands[0], "tile"]
        assert isinstance(activations, Activations) and isinstance(weights, Activations)
        self.state, self.pipeline, self.atom = state, pipeline, state.atom
        half = MMA_ATOMS[f"m16n8k8.{state.atom.operand}"]
        self.instruction = self.atom if self.atom.runs_on(state.target) else half
        self.activations, self.weights = activations, weights
        self.columns, self.row_tiles = activations.rows // 8, weights.rows // 16 // state.warps
        self.zero = state.builder.op("mov.f32", "f", float_immediate(0.0))
        self._emit_addresses()
        self.weight_lane = self._weight_lanes()

    def enter(self, accumulators: list[str]) -> None:
        """Nothing: sums need no other units meanwhile."""

    def leave(self, accumulators: list[str]) -> None:
        """Nothing, as in `enter`."""

    def emit(self, accumulators: list[str]) -> None:
        """Emits accumulators += the product of the current slot's tiles, added once per UNIT_K."""
        b, k = self.state.builder, self.pipeline.unit.k
        for first in range(0, k, UNIT_K):
            last = min(k, first + UNIT_K)
            steps = range(first, last, self.atom.k)
            fragments = [[self._fragment(t, step) for step in steps] for t in range(self.row_tiles)]
            for j in range(self.columns):
                loads = [self._activations(j, at) for at in range(first, last, LDMATRIX_K)]
                pairs = [pair for load in loads for pair in (load[:2], load[2:])]
                for t, fragment in enumerate(fragments):
                    own = accumulators[4 * (j + self.columns * t) :][:4]
                    for register, product in zip(own, self._chain(fragment, pairs), strict=True):
                        b.do("add.rn.f32", register, register, product)

    def _weight_lanes(self) -> dict[int, str]:
        """The lane's ldmatrix address of the weights of slot 0, one per pattern of swizzled k bits.

        Lane bits are rows 1, 2, 4 and 8 of an m16 tile and the second eight of k; warps share out the row tiles.
        """
        tile, state = self.weights, self.state
        rows = [image["byte"] for image in tile.layout.bases["row"]]
        lanes = [*rows[:4], tile.layout.bases["chunk"][0]["byte"]]
        self.weight_swizzled = functools.reduce(or_, lanes)
        first = (16 * self.row_tiles).bit_length() - 1
        base = state.linear(state.tid, [*lanes, *rows[first:]])
        offsets: dict[int, str] = {}
        for k in range(0, tile.columns, self.atom.k):
            pattern = 2 * k & self.weight_swizzled
            if pattern not in offsets:
                place: Operand = state.builder.op("xor.b32", "r", base, pattern) if pattern else base
                offsets[pattern] = str(state.scalar("add", state.smem, place))
        return offsets

    def _fragment(self, t: int, k: int) -> list[str]:
        """Emits the ldmatrix of the A fragment of the warp's row tile t at k."""
        tile, b = self.weights, self.state.builder
        pattern = 2 * k & self.weight_swizzled
        place = self.pipeline.slot + tile.offset + 16 * t * tile.pitch + (2 * k ^ pattern)
        registers = [b.register("r") for _ in range(4)]
        name = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
        b.do(name, vector(registers), memory(self.weight_lane[pattern], place))
        return registers
