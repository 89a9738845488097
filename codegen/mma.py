"""`dot` on staged tiles: decode, mma.sync, and the scales applied to the accumulators once per group.

Weights are the M side (Y^T = W X^T). Of each group segment of a stage the products with the integer codes go to fresh
accumulators P, which are then added as s * P to the tile's own, rounded to nearest. Float zero points and offsets need
the row sums X of the activations as well; an MMA with a fragment of ones gives them in the accumulators' own layout.
"""

import functools
from dataclasses import dataclass
from operator import or_

import numpy as np

from lowbitvm import dtypes
from lowbitvm.codegen.convert import ORIGINS, decode, factors
from lowbitvm.codegen.pipeline import CHUNK_K, DenseTile, GroupRows, Pipeline, WordTile, packed_array
from lowbitvm.codegen.ptx import Operand, float_immediate, memory, vector
from lowbitvm.codegen.state import State
from lowbitvm.ir import Op
from lowbitvm.targets import ldmatrix_addresses

ONES = {"f16": 0x3C003C00, "bf16": 0x3F803F80}
FENCE_K = 128  # k summed over columns between scheduling fences
LDMATRIX_K = 32  # in_features of one ldmatrix.x4: two k16 steps of one n8 tile


@dataclass
class Scaling:
    """What one row tile's accumulators are scaled with in one segment: per row class (g, g + 8)."""

    scales: tuple[str, str]
    offsets: tuple[str, str] | None  # multiplied with the activations' row sums
    addends: tuple[str, str]  # of the decode


class Dot:
    """The emission of one `dot` into accumulators, register r = 4 (j + columns * t) + i of the fragment layout."""

    def __init__(self, state: State, pipeline: Pipeline, op: Op) -> None:
        a, b = op.operands
        codes = b.operands[0].operands[0]
        tiles = pipeline.tiles
        activations, words, scales = tiles[a, "tile"], tiles[codes, "tile"], tiles[codes, "scales"]
        zeros = tiles.get((codes, "zeros"))
        assert isinstance(activations, DenseTile) and isinstance(words, WordTile) and isinstance(scales, GroupRows)
        assert zeros is None or isinstance(zeros, GroupRows)
        assert a.dtype is not None
        self.state, self.slot, self.atom = state, pipeline.slot, state.atom
        self.activations, self.words, self.scales, self.zeros = activations, words, scales, zeros
        self.format = packed_array(codes)[1]
        self.act = a.dtype.name
        self.columns = activations.rows // 8  # n8 tiles
        self.row_tiles = words.row_tiles
        self.segment = codes.shape[1] // scales.segments
        self.lane = self._lane_offsets()
        self._emit_constants()

    def _emit_constants(self) -> None:
        """Emits what stays in registers during the loop."""
        b, zero = self.state.builder, self.format.zero
        addends = [_pattern(-(origin + self.format.bias), self.act) for origin in ORIGINS[self.act]]
        if zero == "int" and self.act == "bf16":
            addends = []  # these are computed from the zero points in f32
        self.constant_addends = tuple(b.op("mov.b32", "r", addend) for addend in addends)
        self.factors = {scale: b.op("mov.b32", "r", scale) for scale in factors(self.act)}
        self.zero = b.op("mov.f32", "f", float_immediate(0.0))
        self.ones = b.op("mov.b32", "r", ONES[self.act]) if zero in ("float", "offset") else ""

    def _lane_offsets(self) -> dict[int, Operand]:
        """Byte offsets of the lane's ldmatrix address in the activation tile, one per pattern of swizzled k bits."""
        tile = self.activations
        lanes = ldmatrix_addresses(4).rename(outs={"matrix": "chunk"})  # matrix j is chunk j of k
        first = tile.layout.slice(chunk=2, row=3)
        images = [image["byte"] for image in lanes.compose(first).bases["lane"]]
        base = self.state.linear(self.state.tid, images)
        self.swizzled = functools.reduce(or_, images)
        offsets: dict[int, Operand] = {}
        for k in range(0, tile.columns, LDMATRIX_K):
            pattern = k * 2 & self.swizzled
            if pattern not in offsets:
                offsets[pattern] = self.state.builder.op("xor.b32", "r", base, pattern) if pattern else base
        return offsets

    def emit(self, accumulators: list[str]) -> None:
        """Emits accumulators += the product of the current slot's tiles.

        ptxas starts as many loads as the registers of a thread allow and then spills; it moves nothing across a
        bar.warp.sync, which costs no more than a NOP here.
        """
        b = self.state.builder
        columns, slot = self.columns, self.slot
        self.lane_bases = {pattern: b.op("add.s32", "r", slot, base) for pattern, base in self.lane.items()}
        self.word_base = b.op("add.s32", "r", slot, self.words.base)
        self.scale_base = b.op("add.s32", "r", slot, self.scales.base)
        self.zero_base = b.op("add.s32", "r", slot, self.zeros.base) if self.zeros is not None else ""
        words: dict[tuple[int, int], list[str]] = {}
        for segment in range(self.scales.segments):
            scalings = [self._scaling(segment, t) for t in range(self.row_tiles)]
            weights = [self._weights(segment, t, scaling, words) for t, scaling in enumerate(scalings)]
            between = max(1, FENCE_K // self.segment)
            for j in range(columns):
                if (segment * columns + j) and j % between == 0 and columns > between:
                    b.do("bar.warp.sync", 0xFFFFFFFF)
                self._column(accumulators, segment, j, scalings, weights)

    def _weights(
        self, segment: int, t: int, scaling: Scaling, words: dict[tuple[int, int], list[str]]
    ) -> list[list[str]]:
        """Emits the decode of row tile t: the A fragments of the segment's k16 steps."""
        fragments = []
        for k in range(segment * self.segment, (segment + 1) * self.segment, self.atom.k):
            place = (t, k // CHUNK_K)
            if place not in words:
                words[place] = self.words.words(self.word_base, *place)
            word = words[place][k % CHUNK_K // self.atom.k]
            fragments.append(decode(self.state.builder, word, scaling.addends, self.factors, self.act))
        return fragments

    def _column(
        self,
        accumulators: list[str],
        segment: int,
        j: int,
        scalings: list[Scaling],
        weights: list[list[list[str]]],
    ) -> None:
        """Emits the products of one segment and n8 tile, and adds them, scaled, to the tile's accumulators.

        Column by column, so that few products are alive at a time.
        """
        b = self.state.builder
        first = segment * self.segment
        loads = [self._activations(j, k) for k in range(first, first + self.segment, LDMATRIX_K)]
        activations = [pair for load in loads for pair in (load[:2], load[2:])]
        sums = None
        if scalings[0].offsets is not None:
            sums = self._chain([[self.ones] * 4] * len(activations), activations)
        for t, scaling in enumerate(scalings):
            products = self._chain(weights[t], activations)
            for i, product in enumerate(products):
                register = accumulators[4 * (j + self.columns * t) + i]
                b.do("fma.rn.f32", register, product, scaling.scales[i // 2], register)
                if sums is not None and scaling.offsets is not None:
                    b.do("fma.rn.f32", register, sums[i], scaling.offsets[i // 2], register)

    def _chain(self, weights: list[list[str]], activations: list[list[str]]) -> list[str]:
        """Emits the MMAs of one accumulator tile over consecutive k16 steps, from zero."""
        results: list[str] | None = None
        for step, pair in zip(weights, activations, strict=True):
            results = self._mma(step, pair, results)
        assert results is not None
        return results

    def _activations(self, j: int, k: int) -> list[str]:
        """Emits the ldmatrix of n8 tile j at k: registers (k16 step 0: b0, b1; step 1: b0, b1)."""
        tile, b = self.activations, self.state.builder
        byte = k * 2
        pattern = byte & self.swizzled
        place = memory(self.lane_bases[pattern], tile.offset + j * 8 * tile.pitch + (byte ^ pattern))
        registers = [b.register("r") for _ in range(4)]
        b.do("ldmatrix.sync.aligned.m8n8.x4.shared.b16", vector(registers), place)
        return registers

    def _mma(self, weights: list[str], activations: list[str], accumulators: list[str] | None) -> list[str]:
        b = self.state.builder
        results = accumulators or [b.register("f") for _ in range(4)]
        b.do(
            self.atom.mnemonic,
            vector(results),
            vector(weights),
            vector(activations),
            vector(accumulators or [self.zero] * 4),
        )
        return results

    def _scaling(self, segment: int, t: int) -> Scaling:
        scales = self._as_floats(self.scales.pair(self.scale_base, segment, t), self.scales.dtype)
        if self.zeros is None:
            return Scaling(scales, None, (self.constant_addends[0], self.constant_addends[1]))
        loaded = self.zeros.pair(self.zero_base, segment, t)
        if self.format.zero == "int":
            return Scaling(scales, None, self._addends(loaded[0]))
        offsets = self._as_floats(loaded, self.zeros.dtype)
        if self.format.zero == "float":
            b = self.state.builder
            negated = [b.op("neg.f32", "f", scale) for scale in scales]
            pair = [b.op("mul.rn.f32", "f", n, z) for n, z in zip(negated, offsets, strict=True)]
            offsets = (pair[0], pair[1])
        return Scaling(scales, offsets, (self.constant_addends[0], self.constant_addends[1]))

    def _addends(self, pair: str) -> tuple[str, str]:
        """-(origin + bias + z) in both halves, for the f16 zero points of rows g and g + 8."""
        b = self.state.builder
        if self.act == "f16":
            low, high = (b.op("prmt.b32", "r", pair, 0, selector) for selector in (0x1010, 0x3232))
            return (
                b.op("sub.rn.f16x2", "r", self.constant_addends[0], low),
                b.op("sub.rn.f16x2", "r", self.constant_addends[1], high),
            )
        results = []
        for zero, origin in zip(self._as_floats([pair], dtypes.f16), ORIGINS[self.act], strict=True):
            addend = b.op("sub.rn.f32", "f", float_immediate(-(origin + self.format.bias)), zero)
            results.append(b.op("cvt.rn.bf16x2.f32", "r", addend, addend))
        return (results[0], results[1])

    def _as_floats(self, loaded: list[str], dtype: dtypes.DType) -> tuple[str, str]:
        """The two numbers of a `GroupRows.pair` as f32 registers."""
        b = self.state.builder
        if dtype == dtypes.f32:
            return (loaded[0], loaded[1])
        if dtype == dtypes.bf16:
            low, high = b.op("shl.b32", "r", loaded[0], 16), b.op("and.b32", "r", loaded[0], 0xFFFF0000)
            return (b.op("mov.b32", "f", low), b.op("mov.b32", "f", high))
        halves = [b.register("h"), b.register("h")]
        b.do("mov.b32", vector(halves), loaded[0])
        return (b.op("cvt.f32.f16", "f", halves[0]), b.op("cvt.f32.f16", "f", halves[1]))


def _pattern(value: int, act: str) -> int:
    """The 16-bit pattern of a small integer, in both halves."""
    bits = int(np.array(value, dtypes.get(act).numpy).view(np.uint16))
    return bits << 16 | bits
