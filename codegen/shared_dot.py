"""`dot` for many rows of activations: every weight is decoded once per block, into shared memory.

Warps are arranged in two dimensions: several of them multiply the same weights with different rows of activations. While
a unit is multiplied, each warp decodes its share of the next one into the other of two buffers, in the order of A
fragments: [row tile][k16 step][lane][4 registers], so that a fragment is one 16-byte access of each lane, both ways,
without bank conflicts. The barrier of a unit serves the buffers too. Products of a period's units stay in registers.
"""

import functools
from collections.abc import Iterator
from operator import or_

from lowbitvm.codegen.mma import LDMATRIX_K, Dot
from lowbitvm.codegen.pipeline import Pipeline
from lowbitvm.codegen.ptx import memory, vector
from lowbitvm.codegen.state import State
from lowbitvm.codegen.weights import CHUNK_K
from lowbitvm.ir import Op

FRAGMENT = 512  # bytes: 16 x 16 weights of 16 bits
VECTOR = 16  # bytes that a lane has of a fragment


class SharedDot(Dot):
    """The emission of one `dot` into accumulators, of the same registers as `Dot`'s."""

    def __init__(self, state: State, pipeline: Pipeline, op: Op) -> None:
        super().__init__(state, pipeline, op)
        self.k_steps = pipeline.unit.k // self.atom.k
        self.tile_bytes = self.k_steps * FRAGMENT  # of a row tile
        n_warps = state.warps // state.warps_m
        size = self.row_tiles * n_warps * self.tile_bytes
        self.buffers = [state.allocate_shared(size, op) for _ in range(2)]
        lanes, warp = [VECTOR << i for i in range(5)], state.warps.bit_length() - 1
        written = [self.words.row_tiles * self.tile_bytes << i for i in range(warp)]
        read = [self.row_tiles * self.tile_bytes << i for i in range(n_warps.bit_length() - 1)]
        self.write_base, self.read_base = (
            str(state.scalar("add", state.smem, state.linear(state.tid, lanes + by_warp))) for by_warp in (written, read)
        )
        if self.centring is not None and self.centring.with_zeros:
            (self.zero_rows,) = (rows for rows in self.groups if "zeros" in rows.parts)
            self.zero_base = self.zero_rows.base_of(state.warps, self.words.row_tiles)
        self.products: dict[tuple[int, int], list[str]] = {}  # (row tile, n8 tile): sums of the period so far
        self.scales: list[dict[str, list[str]]] = []  # of the segment, as they were loaded, by row tile

    def prime(self) -> None:
        """Emits the decode of the first unit."""
        self.pipeline.wait(self.pipeline.unit.ahead - 1)
        for _ in self._decode(0):
            pass

    def emit(self, accumulators: list[str]) -> None:
        """Emits accumulators += the product of the current unit's tiles, at a period's end, and the next one's decode."""
        unit, number = self.pipeline.unit, self.pipeline.number
        first = number % unit.period * unit.k  # of the period
        decode = self._decode(number + 1)
        steps = range(0, unit.k, LDMATRIX_K)
        pieces = self.words.row_tiles * (unit.k // CHUNK_K) * 4
        for at, k in enumerate(steps):
            activations = [self._activations(j, k) for j in range(self.columns)]
            for half in range(LDMATRIX_K // self.atom.k):
                place = first + k + half * self.atom.k
                if place % self.segment == 0:  # now: the slot is filled anew before a period's last unit is multiplied
                    loaded = [rows.load(self.pipeline.slot, place) for rows in self.groups]
                    self.scales = [functools.reduce(or_, parts) for parts in zip(*loaded, strict=True)]
                self._multiply_by(number, k // self.atom.k + half, [load[2 * half : 2 * half + 2] for load in activations])
                if (place + self.atom.k) % self.segment == 0:
                    self._flush(accumulators)
            for _ in range(pieces * at // len(steps), pieces * (at + 1) // len(steps)):
                next(decode)
        for _ in decode:
            raise AssertionError("the decode of a unit has as many pieces as its fragments")

    def _multiply_by(self, number: int, step: int, activations: list[list[str]]) -> None:
        """Emits the products of one k16 step: those of a segment's first with zero added."""
        b = self.state.builder
        for t in range(self.row_tiles):
            fragment = [b.register("r") for _ in range(4)]
            place = self.buffers[number % 2] + t * self.tile_bytes + step * FRAGMENT
            b.do("ld.shared.v4.b32", vector(fragment), memory(self.read_base, place))
            for j, pair in enumerate(activations):
                self.products[t, j] = self._mma(fragment, pair, self.products.get((t, j)))

    def _flush(self, accumulators: list[str]) -> None:
        """Emits the addition of the scaled products of a segment to the accumulators."""
        b = self.state.builder
        scalings = [self._scaling(loaded) for loaded in self.scales]
        for (t, j), products in self.products.items():
            for i, product in enumerate(products):
                register = accumulators[4 * (j + self.columns * t) + i]
                b.do("fma.rn.f32", register, product, scalings[t].scales[i // 2], register)
        self.products = {}

    def _decode(self, number: int) -> Iterator[None]:
        """Emits the decode of the warp's share of a unit, in as many pieces as it has fragments."""
        b, pipeline = self.state.builder, self.pipeline
        unit = pipeline.unit
        first = number % unit.period * unit.k
        buffer = self.buffers[number % 2]
        addends: dict[tuple[int, int], list[str]] = {}  # by row tile and segment
        for t in range(self.words.row_tiles):
            for chunk in range(unit.k // CHUNK_K):
                words = self.words.words(pipeline.slot_of(number), t, chunk)
                for step, fragment in enumerate(self.decoder.emit(b, words, self.decode_constants)):
                    place = buffer + t * self.tile_bytes + (4 * chunk + step) * FRAGMENT
                    k = first + chunk * CHUNK_K + step * self.atom.k
                    of = t, k // self.segment
                    if of not in addends:
                        addends[of] = self._addends(self._zeros(number - number % unit.period, *of))
                    centred = self._centred(fragment, addends[of])
                    b.do("st.shared.v4.b32", memory(self.write_base, place), vector(centred))
                    yield

    def _zeros(self, number: int, t: int, segment: int) -> dict[str, list[str]]:
        """Emits the load of the zero points of a row tile that the warp decodes, if any; unit `number` has them."""
        if self.centring is None or not self.centring.with_zeros:
            return {}
        place = self.pipeline.slot_of(number) + self.zero_rows.place("zeros", t, segment)
        return {"zeros": [self.state.builder.op("ld.shared.b32", "r", memory(self.zero_base, place))]}
