"""`dot` for many rows of activations: every weight is decoded once per block, into shared memory.

Warps are arranged in two dimensions: several of them multiply the same weights with different rows of activations.
While a unit is multiplied, each warp decodes its share of the next one into the other of two buffers, in the order of A
fragments: [row tile][k16 step][lane][4 registers], so that a fragment is one 16-byte access of each lane, both ways,
without bank conflicts. The barrier of a unit serves the buffers too. Products of a period's units stay in registers.
Row sums of the activations, where zero points need them, are made ahead in the same way, each by one warp for all.
"""

import functools
from collections.abc import Iterator, Sequence
from operator import or_

from lowbitvm import dtypes
from lowbitvm.codegen.mma import LDMATRIX_K, Dot, Scaling
from lowbitvm.codegen.pipeline import Pipeline
from lowbitvm.codegen.ptx import memory, vector
from lowbitvm.codegen.scales import ByteRows
from lowbitvm.codegen.state import State
from lowbitvm.codegen.weights import CHUNK_K
from lowbitvm.ir import Op

FRAGMENT = 512  # bytes: 16 x 16 weights of 16 bits
VECTOR = 16  # bytes that a lane has of a fragment


class SharedDot(Dot):
    """The emission of one `dot` into accumulators, of the same registers as `Dot`'s."""

    def __init__(self, state: State, pipeline: Pipeline, op: Op) -> None:
        self._allocate(state, pipeline, op)  # before codebooks take what is left
        super().__init__(state, pipeline, op)
        self.op = op
        self._emit_bases()
        self.zeros = [rows for rows in self.groups if "zeros" in rows.parts and self.centring is not None]
        if self.zeros:
            self.zero_base = self.zeros[0].base_of(*self._decoding())
        self.summed_k = self.segment  # of a row sum
        if self.fused is not None and self.format.zero is not None:  # offsets are not in the fragments
            self.sums, self.summed_k = True, self.pipeline.unit.span // self.rows["zeros"].segments
            self._emit_sum_constants()
        if self.sums:
            self._prepare_sums()
        self.products: dict[tuple[int, int], list[str]] = {}  # (row tile, n8 tile): sums of the period so far
        self.scales: list[dict[str, list[str]]] = []  # of the segment, as they were loaded, by row tile

    def _allocate(self, state: State, pipeline: Pipeline, op: Op) -> None:
        """Takes shared memory for the fragments."""
        self.buffers = [state.allocate_shared(2 * op.shape[1] * pipeline.unit.k, op) for _ in range(2)]

    def _decoding(self) -> tuple[int, int]:
        """How many warps share out the decode of the weights, and row tiles that each of them decodes."""
        return self.state.warps, self.words.row_tiles

    def _emit_bases(self) -> None:
        """Emits the lane's addresses in the buffers."""
        state = self.state
        self.tile_bytes = self.pipeline.unit.k // self.atom.k * FRAGMENT  # of a row tile
        lanes, own = [VECTOR << i for i in range(5)], self.words.row_tiles * self.tile_bytes
        step = own * state.warps_m
        self.write_base = state.shared_address(lanes + state.by_warp(step, own))
        self.read_base = self._read_base(lanes, step, own)

    def _read_base(self, lanes: list[int], step: int, own: int) -> str:
        """Emits the address of the lane's part of the warp's first row tile; `step`: from one warp's to another's."""
        return self.state.shared_address(lanes + self.state.by_warp(step))

    def _emit_addresses(self) -> None:
        self.lane = self._lane_offsets(self.atom.k)

    def prime(self) -> None:
        """Emits the decode of the first unit."""
        self.pipeline.wait(self.pipeline.unit.ahead - 1, 0)
        for _ in self._decode(0):
            pass
        self._sum_rows(0)

    def emit(self, accumulators: list[str]) -> None:
        """Emits the products of the current unit, their addition at a period's end, and the decode of the next unit."""
        number = self.pipeline.number
        decode = self._decode(number + 1)
        for k in range(0, self.pipeline.unit.k, self.atom.k):
            self._step(accumulators, k)
            for _ in range(self.words.row_tiles):  # of the next unit's fragments
                next(decode)
        self._sum_rows(number + 1)

    def _step(self, accumulators: list[str], k: int) -> None:
        """Emits the products of the current unit's k16 step at `k`, and their addition at a segment's end."""
        number = self.pipeline.number
        place = number % self.pipeline.unit.period * self.pipeline.unit.k + k  # in the period
        if place % self.segment == 0:  # now: the slot is filled anew before a period's last unit is multiplied
            self.scales = self._loaded_scales(place)
        self._multiply_by(number, k, range(self.columns))
        if (place + self.atom.k) % self.segment == 0:
            self._flush(accumulators, number, place // self.segment, range(self.columns))

    def _multiply_by(self, number: int, k: int, columns: Sequence[int]) -> None:
        """Emits the products of one k16 step with some n8 tiles: those of a segment's first with zero added."""
        pairs = [self._matrices(self.lane, self.pipeline.slot, j, k) for j in columns[::2]]
        activations = [half for pair in pairs for half in (pair[:2], pair[2:])]
        for t in range(self.row_tiles):
            fragment = self._fragment(number, t, k)
            for j, half in zip(columns, activations, strict=True):
                self.products[t, j] = self._mma(fragment, half, self.products.get((t, j)))

    def _fragment(self, number: int, t: int, k: int) -> list[str]:
        """The A fragment of row tile t at the unit's `k`; emits its load."""
        fragment = [self.state.builder.register("r") for _ in range(4)]
        place = self.buffers[number % 2] + t * self.tile_bytes + k // self.atom.k * FRAGMENT
        self.state.builder.do("ld.shared.v4.b32", vector(fragment), memory(self.read_base, place))
        return fragment

    def _loaded_scales(self, k: int) -> list[dict[str, list[str]]]:
        """Emits the loads of what the sums of the segment from the period's `k` on are scaled with, by row tile."""
        if self.fused is not None:
            return self._outers(k)
        loaded = [rows.load(self.pipeline.slot, k) for rows in self.groups]
        return [functools.reduce(or_, parts) for parts in zip(*loaded, strict=True)]

    def _flush(self, accumulators: list[str], number: int, segment: int, columns: Sequence[int]) -> None:
        """Emits the addition of the scaled products of a segment and some n8 tiles to the accumulators."""
        if self.fused is not None:
            scalings = [Scaling(self._second_level(loaded), None, None) for loaded in self.scales]
        else:
            scalings = [self._scaling(loaded) for loaded in self.scales]
        for j in columns:
            sums = self._sums(number, segment, j) if self.summed_k == self.segment and self.sums else None
            for t, scaling in enumerate(scalings):
                self._add(self._registers(accumulators, t, j), self.products[t, j], scaling, sums)
        self.products = {}
        if self.fused is not None and self.sums:
            each = self.segment // self.summed_k
            for group in range(segment * each, (segment + 1) * each):
                self._add_offsets(accumulators, number, group, columns)

    def _registers(self, accumulators: list[str], t: int, j: int) -> list[str]:
        """The registers of row tile t and n8 tile j."""
        first = 4 * (j + self.columns * t)
        return accumulators[first : first + 4]

    def _add_offsets(self, accumulators: list[str], number: int, group: int, columns: Sequence[int]) -> None:
        """Emits the addition of a group's offsets, multiplied with its row sums, to the accumulators."""
        loaded = self.rows["zeros"].load(self.pipeline.slot, group * self.summed_k)
        offsets = [self._as_floats(pair["zeros"], dtypes.f32) for pair in loaded]
        offsets = [self._times(pair, self.units) for pair in offsets] if self.alone else offsets
        for j in columns:
            sums = self._sums(number, group, j)
            for t, pair in enumerate(offsets):
                for i, register in enumerate(self._registers(accumulators, t, j)):
                    self.state.builder.do("fma.rn.f32", register, sums[i], pair[i // 2], register)

    def _decode(self, number: int) -> Iterator[None]:
        """Emits the decode of the warp's share of a unit, in as many pieces as it has fragments."""
        if isinstance(scales := self.rows["scales"], ByteRows):
            scales.loaded.clear()  # of the unit before, or of another turn of the loop
        addends: dict[tuple[int, int], list[str]] = {}  # by row tile and segment
        for t in range(self.words.row_tiles):
            for chunk in range(self.pipeline.unit.k // CHUNK_K):
                words = self.words.words(self.pipeline.slot_of(number), t, chunk)
                for step, fragment in enumerate(self._made(words, number, t, chunk, addends)):
                    self._store(fragment, number, t, (4 * chunk + step) * self.atom.k)
                    yield

    def _store(self, fragment: list[str], number: int, t: int, k: int) -> None:
        """Emits the store of a fragment of the row tile t that the warp decodes."""
        place = self.buffers[number % 2] + t * self.tile_bytes + k // self.atom.k * FRAGMENT
        self.state.builder.do("st.shared.v4.b32", memory(self.write_base, place), vector(fragment))

    def _made(
        self, words: list[str], number: int, t: int, chunk: int, addends: dict[tuple[int, int], list[str]]
    ) -> Iterator[list[str]]:
        """Emits the decode of a chunk's words of unit `number`, fragment by fragment."""
        unit, start = self.pipeline.unit, number - number % self.pipeline.unit.period
        first = (number - start) * unit.k + chunk * CHUNK_K  # of the period
        fragments = self._decoded(words, t, chunk * CHUNK_K)
        if self.fused is not None:
            fragments = self._scaled(fragments, self.fused, self.pipeline.slot_of(start), t, first)
        for step, fragment in enumerate(fragments):
            of = t, (first + step * self.atom.k) // self.segment
            if of not in addends:
                addends[of] = self._addends(self._zeros(start, *of))
            yield self._centred(fragment, addends[of])

    def _zeros(self, number: int, t: int, segment: int) -> dict[str, list[str]]:
        """Emits the load of the zero points of a row tile that the warp decodes, if any; unit `number` has them."""
        if not self.zeros:
            return {}
        place = self.pipeline.slot_of(number) + self.zeros[0].place("zeros", t, segment)
        return {"zeros": [self.state.builder.op("ld.shared.b32", "r", memory(self.zero_base, place))]}

    # -- row sums ----------------------------------------------------------------------------------------------------

    def _emit_sum_constants(self) -> None:
        self.ones = self._ones(2)

    def _prepare_sums(self) -> None:
        """Places the row sums: f32[2 buffers][segments of a period][rows of activations]."""
        state, rows = self.state, self.activations.rows
        n_warps = state.warps // state.warps_m
        self.segments = self.pipeline.unit.span // self.summed_k
        self.summed = self.columns // n_warps  # n8 tiles that a warp sums up
        self.sum_lane = self._lane_offsets(LDMATRIX_K, 8 * self.summed)
        self.sum_bytes = 4 * rows
        self.sum_place = state.allocate_shared(2 * self.segments * self.sum_bytes, self.op)
        written = [0, 0, 4, 8, 16, *state.by_warp(32 * self.summed, 32 * self.columns)]
        read = [8, 16, 0, 0, 0, *state.by_warp(0, 32 * self.columns)]
        self.sum_write, self.sum_read = state.shared_address(written), state.shared_address(read)
        self.first_of_quad = state.builder.op("setp.eq.s32", "p", state.builder.op("and.b32", "r", state.tid, 3), 0)
        # by n8 tile: the sums over the units of a period so far, which an iteration hands on to the next
        self.totals = [state.builder.register("f") for _ in range(self.summed)]

    def _sum_rows(self, number: int) -> None:
        """Emits the sums of the warp's share of a unit's rows; those of a segment are stored at its end.

        The four registers of an ldmatrix are taken as an MMA's M side, the other side being ones: row g of the result
        has one half of row g's sum, row g + 8 the other.
        """
        if not self.sums:
            return
        b, unit = self.state.builder, self.pipeline.unit
        depth, slot = min(self.summed_k, unit.k), self.pipeline.slot_of(number)
        for start in range(0, unit.k, depth):
            first = number % unit.period * unit.k + start
            for j, total in enumerate(self.totals):
                halves: list[str] | None = None
                for part in self._summed(slot, j, start, depth):
                    halves = self._mma(part, self.ones, halves)
                assert halves is not None
                if first % self.summed_k == 0:
                    b.do("add.rn.f32", total, halves[0], halves[2])
                else:
                    b.do("add.rn.f32", total, total, b.op("add.rn.f32", "f", halves[0], halves[2]))
                if (first + depth) % self.summed_k == 0:
                    place = self._sum_offset(number, first // self.summed_k) + 32 * j
                    b.do("st.shared.b32", memory(self.sum_write, place), total, when=self.first_of_quad)

    def _summed(self, slot: int, j: int, start: int, depth: int) -> Iterator[list[str]]:
        """The M sides of the MMAs that sum up an n8 tile's rows over `depth` of k."""
        for k in range(start // LDMATRIX_K * LDMATRIX_K, start + depth, LDMATRIX_K):
            matrices = self._matrices(self.sum_lane, slot, j, k)
            if depth < LDMATRIX_K:
                nothing, first = self.state.builder.op("mov.b32", "r", 0), (start - k) // 8
                matrices = [*matrices[first : first + 2], nothing, nothing]
            yield matrices

    def _sum_offset(self, number: int, segment: int) -> int:
        return self.sum_place + (number % 2 * self.segments + segment) * self.sum_bytes

    def _sums(self, number: int, segment: int, j: int) -> list[str]:
        """Emits the load of an n8 tile's row sums, in the accumulators' layout."""
        pair = [self.state.builder.register("f") for _ in range(2)]
        place = self._sum_offset(number, segment) + 32 * j
        self.state.builder.do("ld.shared.v2.f32", vector(pair), memory(self.sum_read, place))
        return pair * 2
