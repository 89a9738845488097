"""`dot` on staged tiles: decode, mma.sync, and the scales and zero points applied to the accumulators once per group.

Weights are the M side (Y^T = W X^T). Of each segment of k, at most UNIT_K and inside one group, the products with the
decoded fragments go to fresh accumulators P, and the row sums of the activations, from an MMA with a fragment of ones,
to X. Fragments are factor * (q + offset); with w = s * (step * q - bias - z) + m that makes

    sum of w x = s * step / factor * (P - zero * X) + m * X,   zero = factor * (offset + (bias + z) / step),

added to the tile's accumulators rounded to nearest. `factor` and `offset` are of the fragment's row: g or g + 8. For
many rows of activations the decode subtracts bias and integer zero points instead, where that is exact. For few rows
the activations are multiplied with a power of two in place of bf16 fragments that need one. Where nothing
else in the loop uses a tile, it holds its numbers times factor / step meanwhile, which is a power of two.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import or_

import numpy as np

from lowbitvm import dtypes
from lowbitvm.codegen.centring import centring
from lowbitvm.codegen.convert import FRAGMENT_REGISTERS, Decoder, decoder, multiplications, power_pattern
from lowbitvm.codegen.dense import Activations
from lowbitvm.codegen.fused import LONGEST_FUSED, Fused
from lowbitvm.codegen.pipeline import UNIT_K, Pipeline
from lowbitvm.codegen.ptx import Operand, float_immediate, memory, vector
from lowbitvm.codegen.scales import ByteRows, RelativeRows, constant_pair, multiplied
from lowbitvm.codegen.state import State
from lowbitvm.codegen.weights import CHUNK_K, GroupRows, Words, packed_array
from lowbitvm.ir import Op
from lowbitvm.targets import MMA_ATOMS, ldmatrix_addresses

ONES = {"f16": 0x3C00, "bf16": 0x3F80}
FENCE_K = 128  # k summed over columns between scheduling fences
LDMATRIX_K = 32  # in_features of one ldmatrix.x4: two k16 steps of one n8 tile

MOST_HELD = 112  # registers of fragments, offsets and accumulators
LEAST_CENTRED = 8  # n8 tiles of a warp: for fewer, row sums take fewer instructions than exact zeros in the decode
BF16_ADDENDS = 5  # instructions more that integer zero points take in bf16 than in f16, per group and row tile
SHORTEST_TURN = 128  # of k: for less the exchange of lanes takes more instructions than it saves

Pair = tuple[str, str]  # of row classes g and g + 8


@dataclass
class Scaling:
    """What one row tile's sums of one segment are scaled with, f32 registers."""

    scales: Pair
    zeros: Pair | None  # -zero, multiplied with X
    offsets: Pair | None  # m, multiplied with X
    fragments: list[list[str]] = field(default_factory=list)  # per k16 step, whose products take the place of X


class Dot:
    """The emission of one `dot` into accumulators, register r = 4 (j + columns * t) + i of the fragment layout."""

    raised = 0  # the power of two that activations are multiplied with

    def __init__(self, state: State, pipeline: Pipeline, op: Op) -> None:
        a, b = op.operands
        codes = b.operands[0].operands[0]
        tiles = pipeline.tiles
        activations, words = tiles[a, "tile"], tiles[codes, "tile"]
        assert isinstance(activations, Activations) and isinstance(words, Words) and a.dtype is not None
        self.state, self.pipeline, self.atom, self.alone = state, pipeline, state.atom, False
        half = MMA_ATOMS[f"m16n8k8.{state.atom.operand}"]
        self.instruction = self.atom if self.atom.runs_on(state.target) else half
        self.activations, self.words = activations, words
        self.groups = [tile for (load, _), tile in tiles.items() if load is codes and isinstance(tile, GroupRows)]
        self.array, self.format = packed_array(codes)
        self.rows = {part: tile for tile in self.groups for part in tile.parts}
        self.act = a.dtype.name
        self.tables = pipeline.codebook(codes, self.act)
        self.decoder = self.tables.decoder if self.tables else decoder(self.format.code, self.act)
        self.columns = activations.rows // 8 // state.warps_m  # n8 tiles of a warp
        self.row_tiles = words.row_tiles * state.warps_m
        self.converted = any(isinstance(tile, ByteRows) for tile in self.groups)
        self.fused = next((tile.fused for tile in self.groups if isinstance(tile, ByteRows)), None)
        few = self.columns < LEAST_CENTRED and not self._centres()
        self.centring = None if few or self.fused is not None else centring(self.format, self.decoder)
        if self.centring is not None:
            self.decoder = self.centring.decoder
        fewer = multiplications(self.decoder, self.columns, self.row_tiles) < FRAGMENT_REGISTERS
        if fewer and isinstance(self.decoder, Decoder) and self.fused is None and self.centring is None:
            self.decoder, self.raised = self.decoder.plain, self.decoder.raised
        self.segment = min(UNIT_K, pipeline.unit.span // self.groups[0].segments)
        if self.fused is not None:
            self.segment = min(self._fused_segment(), pipeline.unit.span)
        self._emit_addresses()
        self._emit_constants()

    def prime(self) -> None:
        """Emits what must be ready before the first unit."""

    def _emit_constants(self) -> None:
        """Emits what stays in registers during the loop."""
        b, code = self.state.builder, self.format.code
        if self.fused is not None:
            self._emit_fused_constants(self.fused)
            return
        self.decode_constants = self.decoder.constants(b) if isinstance(self.decoder, Decoder) else []
        self.zero = b.op("mov.f32", "f", float_immediate(0.0))
        factors, offsets = [2.0**self.raised * factor for factor in self.decoder.factors], self.decoder.offsets
        if self.raised:
            self.raise_by = b.op("mov.b32", "r", power_pattern(self.raised) * 0x10001)
        step, bias = (code.step, code.bias) if code.is_linear else (1, 0)
        if self.centring is not None:
            self.centre_constants = self.centring.registers(b)
            factors, offsets, step, bias = [self.centring.unit] * 2, (0.0, 0.0), 1, 0
        self.units = [factor / step for factor in factors]
        # -zero = slope * z + constant
        self.slopes = [-factor / step for factor in factors]
        self.constants = [-f * (o + bias / step) for f, o in zip(factors, offsets, strict=True)]
        self.fixed_zeros: Pair | None = None
        if self.format.zero in (None, "offset") and any(self.constants):
            low, high = (b.op("mov.f32", "f", float_immediate(c)) for c in self.constants)
            self.fixed_zeros = (low, high)
        self.sums = self.fixed_zeros is not None or (self.format.zero is not None and self.centring is None)
        if self.sums:
            self._emit_sum_constants()

    def _emit_sum_constants(self) -> None:
        """Emits what row sums take that stays in registers during the loop."""
        turned, b = self.segment >= SHORTEST_TURN, self.state.builder
        self.ones = self._ones(2 if turned else 4)
        self.row_lanes: list[Operand] = []
        if turned:  # the lanes that have rows 2 q and 2 q + 1: 8 q and 8 q + 4
            first = self.state.linear(self.state.tid, [8, 16])
            self.row_lanes = [first, b.op("or.b32", "r", first, 4)]

    def _centres(self) -> bool:
        """Whether zero points of short groups take fewer instructions in the decode than as sums for each group.

        Per group and row tile: four for 16 of k, less the products with a power of two that they take the place of,
        against four of each n8 tile and the sums of its activations.
        """
        if isinstance(self.format.group, str) or self.format.group > LONGEST_FUSED:
            return False
        steps = self.format.group // self.atom.k
        saved = multiplications(self.decoder, self.columns, self.row_tiles)
        more = BF16_ADDENDS if self.act == "bf16" and self.format.zero == "int" else 0
        return (FRAGMENT_REGISTERS - saved) * steps + more <= self.columns * (4 + steps / self.row_tiles)

    def _fused_segment(self) -> int:
        """k that is summed over: less where the offsets' fragments, two registers per group, leave no room."""
        assert isinstance(self.format.group, int)
        offsets = 2 * UNIT_K // self.format.group * (self.format.zero == "offset")
        held = self.row_tiles * (4 * UNIT_K // self.atom.k + offsets + 4 * self.columns)
        return UNIT_K if not offsets or held <= MOST_HELD else CHUNK_K

    def _emit_fused_constants(self, fused: Fused) -> None:
        """The scales are in the fragments, but for a second level that the whole weight has."""
        b = self.state.builder
        assert isinstance(self.decoder, Decoder)
        if fused.plain:
            self.decoder = self.decoder.plain
        self.decode_constants = self.decoder.constants(b)
        self.zero = b.op("mov.f32", "f", float_immediate(0.0))
        self.shifts = constant_pair(b, fused.act, *fused.shifts) if fused.shifted else ""
        self.units, self.sums, self.row_lanes = list(fused.factors), False, []
        self.fixed_zeros = None
        self.outers = {}
        for part in ("outer", "outer_zeros"):
            one = b.op("mov.f32", "f", float_immediate(1.0))
            if part in self.format.parts and self.format.outer == "tensor":
                one = b.op("ld.global.nc.f32", "f", memory(self.state.pointer(self.array, part)))
            self.outers[part] = [one, one]

    def _ones(self, count: int) -> list[str]:
        """A fragment of ones in registers that ptxas can neither join nor make anew at every use.

        All are a constant and the sign of a size, which is 0 but not known to be. What activations are multiplied with,
        ones are divided by.
        """
        b, one = self.state.builder, power_pattern(-self.raised) if self.raised else ONES[self.act]
        sign = b.op("shr.s32", "r", self.state.size(self.pipeline.unit.dimension), 31)
        return [b.op(name, "r", sign, one * 0x10001) for name in ("add.s32", "or.b32", "xor.b32", "max.s32")[:count]]

    def _emit_addresses(self) -> None:
        """Emits the addresses that stay in registers during the loop."""
        self.lane = self._lane_offsets(LDMATRIX_K)

    def _lane_offsets(self, depth: int, by_warp_n: int = 0) -> dict[int, str]:
        """The lane's ldmatrix address in the activation tile of slot 0, one per pattern of swizzled k bits.

        depth: in_features of an ldmatrix: all of one n8 tile, or half of them of the next n8 tile. by_warp_n: rows from
        one warp along n to the next.
        """
        tile, state = self.activations, self.state
        lanes = ldmatrix_addresses(4).rename(outs={"matrix": "chunk"})  # matrix j is chunk j of k
        first = tile.layout.slice(chunk=2, row=3)
        images = [image["byte"] for image in lanes.compose(first).bases["lane"]]
        self.swizzled = functools.reduce(or_, images)
        if depth < LDMATRIX_K:
            images[-1] = 8 * tile.pitch
        by_warp = state.by_warp(by_warp_n * tile.pitch, 8 * self.columns * tile.pitch)
        base = state.linear(state.tid, images + by_warp)
        offsets: dict[int, str] = {}
        for k in range(0, tile.columns, depth):
            pattern = k * 2 & self.swizzled
            if pattern not in offsets:
                place: Operand = state.builder.op("xor.b32", "r", base, pattern) if pattern else base
                offsets[pattern] = str(state.scalar("add", state.smem, place))
        return offsets

    def enter(self, accumulators: list[str]) -> None:
        """Emits the change of a tile's numbers to the units that they have until `leave`: the scales need none then.

        Only for tiles to which nothing but this dot is added meanwhile.
        """
        self.alone = True
        self._multiply(accumulators, self.units)

    def leave(self, accumulators: list[str]) -> None:
        """Emits the change back."""
        self._multiply(accumulators, [1 / unit for unit in self.units])

    def _multiply(self, accumulators: list[str], factors: list[float]) -> None:
        for number, register in enumerate(accumulators):
            self.state.builder.do("mul.rn.f32", register, register, float_immediate(factors[number % 4 // 2]))

    def emit(self, accumulators: list[str]) -> None:
        """Emits accumulators += the product of the current slot's tiles.

        ptxas starts as many loads as the registers of a thread allow and then spills; it moves nothing across a
        bar.warp.sync, which costs no more than a NOP here.
        """
        columns = self.columns
        decoded: dict[tuple[int, int], list[list[str]]] = {}
        for segment in range(self.pipeline.unit.k // self.segment):
            scalings, addends = self._scalings(segment * self.segment)
            weights = [self._weights(segment, t, decoded, addends[t]) for t in range(self.row_tiles)]
            between = 1 if self.converted or self.segment == self.atom.k else max(1, FENCE_K // self.segment)
            for j in range(columns):
                if (segment * columns + j) and j % between == 0 and columns > max(2, between):
                    self.state.builder.do("bar.warp.sync", 0xFFFFFFFF)
                self._column(accumulators, segment, j, scalings, weights)

    def _scalings(self, k: int) -> tuple[list[Scaling], list[list[str]]]:
        """What the sums of the segment from `k` on are scaled with, and what its fragments are centred with.

        Both per row tile.
        """
        if self.fused is not None:
            outers = enumerate(self._outers(k))
            scalings = [self._fused_scaling(self.fused, k, t, outer) for t, outer in outers]
            return scalings, [[]] * self.row_tiles
        loaded = [rows.load(self.pipeline.slot_for(rows), k) for rows in self.groups]
        numbers = [functools.reduce(or_, parts) for parts in zip(*loaded, strict=True)]
        return [self._scaling(parts) for parts in numbers], [self._addends(parts) for parts in numbers]

    def _outers(self, k: int) -> list[dict[str, list[str]]]:
        """Emits the loads of what the sums of fused products are scaled with from the unit's `k` on, by row tile."""
        scales, outers = self.rows["scales"], [self.outers] * self.row_tiles
        if "outer" in self.rows:
            outers = self.rows["outer"].load(self.pipeline.slot_for(self.rows["outer"]), k)
        if isinstance(scales, RelativeRows):
            for t, largest in enumerate(scales.load_largest(self.pipeline.slot)):
                if self.format.outer is not None:
                    both = zip(outers[t]["outer"], largest, strict=True)
                    largest = [self.state.builder.op("mul.rn.f32", "f", *pair) for pair in both]
                outers[t] = outers[t] | {"outer": largest}
        return outers

    def _addends(self, loaded: dict[str, list[str]]) -> list[str]:
        """What `centring` adds to the fragments of a row tile, whose scales and zero points were loaded."""
        if self.centring is None or not self.centring.with_zeros:
            return [] if self.centring is None else self.centre_constants[2:]
        return self.centring.addends(self.state.builder, loaded["zeros"][0])

    def _decoded(self, words: list[str], t: int, k: int) -> list[list[str]]:
        """The A fragments of a chunk's words, of the t-th row tile that the warp decodes, from the unit's k on."""
        if self.tables:
            return self.tables.emit(words, t, k)
        assert isinstance(self.decoder, Decoder)
        return self.decoder.emit(self.state.builder, words, self.decode_constants)

    def _centred(self, fragment: list[str], addends: list[str]) -> list[str]:
        if self.centring is None:
            return fragment
        return self.centring.emit(self.state.builder, fragment, self.centre_constants[:2], addends)

    def _weights(
        self, segment: int, t: int, decoded: dict[tuple[int, int], list[list[str]]], addends: list[str]
    ) -> list[list[str]]:
        """The A fragments of row tile t in the segment's k16 steps; emits the decode of those not in `decoded`."""
        fragments = []
        for k in range(segment * self.segment, (segment + 1) * self.segment, self.atom.k):
            place = (t, k // CHUNK_K)
            if place not in decoded:
                words = self.words.words(self.pipeline.slot, *place)
                decoded[place] = self._decoded(words, t, k)
                if self.fused is not None:
                    k_tile = CHUNK_K * place[1]
                    decoded[place] = self._scaled(decoded[place], self.fused, self.pipeline.slot, t, k_tile)
            fragments.append(self._centred(decoded[place][k % CHUNK_K // self.atom.k], addends))
        return fragments

    def _fused_scaling(self, fused: Fused, k: int, t: int, outer: dict[str, list[str]]) -> Scaling:
        """A second level scales the products with scaled codes, and those with offsets in place of the sums X."""
        scales = self._second_level(outer)
        if self.format.zero is None:
            return Scaling(scales, None, None)
        down = 2.0**-fused.exponent
        factors = [unit * down for unit in self.units] if self.alone else [down, down]
        offsets = self._times(_pair(outer["outer_zeros"]), factors)
        zeros = self.rows["zeros"]
        fragments: dict[int, list[str]] = {}  # per group
        groups = [step * zeros.segments // self.pipeline.unit.k for step in range(k, k + self.segment, self.atom.k)]
        for group in dict.fromkeys(groups):
            (pair,) = zeros.load(self.pipeline.slot, group * self.pipeline.unit.k // zeros.segments)[t]["zeros"]
            fragments[group] = self._spread(pair) * 2
        return Scaling(scales, None, offsets, [fragments[group] for group in groups])

    def _second_level(self, outer: dict[str, list[str]]) -> Pair:
        """What sums of products with scaled codes are scaled with."""
        scales = _pair(outer["outer"])
        return scales if self.alone else self._times(scales, [1 / unit for unit in self.units])

    def _scaled(self, fragments: list[list[str]], fused: Fused, slot: int, t: int, k: int) -> list[list[str]]:
        """Emits the products of the fragments of row tile t from k on with their scales, which the slot has."""
        b, rows = self.state.builder, self.rows["scales"]
        scaled = []
        for step, fragment in enumerate(fragments):
            (pair,) = rows.load(slot, k + self.atom.k * step)[t]["scales"]
            scales = self._spread(pair)
            shifts = self._spread(multiplied(b, fused.act, pair, self.shifts)) if fused.shifted else ["", ""]
            scaled.append([multiplied(b, fused.act, x, scales[r % 2], shifts[r % 2]) for r, x in enumerate(fragment)])
        return scaled

    def _spread(self, pair: str) -> list[str]:
        """Either number of a pair twice, as the registers of rows g and g + 8 take it; SASS reads one half so."""
        b = self.state.builder
        halves = [b.register("h"), b.register("h")]
        b.do("mov.b32", vector(halves), pair)
        return [b.op("mov.b32", "r", vector([half, half])) for half in halves]

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
        first = segment * self.segment
        aligned = first // LDMATRIX_K * LDMATRIX_K  # a segment of 16 is half of what one ldmatrix loads
        loads = [self._activations(j, k) for k in range(aligned, first + self.segment, LDMATRIX_K)]
        activations = [pair for load in loads for pair in (load[:2], load[2:])]
        activations = activations[(first - aligned) // self.atom.k :][: self.segment // self.atom.k]
        sums = self._row_sums(loads, activations) if self.sums else None
        for t, scaling in enumerate(scalings):
            first_register = 4 * (j + self.columns * t)
            registers, products = (
                accumulators[first_register : first_register + 4],
                self._chain(weights[t], activations),
            )
            if scaling.fragments:
                sums = self._chain(scaling.fragments, activations)
            self._add(registers, products, scaling, sums)

    def _add(self, registers: list[str], products: list[str], scaling: Scaling, sums: list[str] | None) -> None:
        """Emits the addition of an atom's scaled products to its accumulators."""
        b = self.state.builder
        for i, (register, product) in enumerate(zip(registers, products, strict=True)):
            if sums is not None and scaling.zeros is not None:
                product = b.op("fma.rn.f32", "f", sums[i], scaling.zeros[i // 2], product)
            b.do("fma.rn.f32", register, product, scaling.scales[i // 2], register)
            if sums is not None and scaling.offsets is not None:
                b.do("fma.rn.f32", register, sums[i], scaling.offsets[i // 2], register)

    def _row_sums(self, loads: list[list[str]], activations: list[list[str]]) -> list[str]:
        """Emits the sums X of an n8 tile's rows in the accumulators' layout, over the segment.

        With the weights' side all ones an MMA serves 16 of k, and its result is in place. The four registers of an
        ldmatrix taken as the weights' side serve 32 of k; then row g of the result has a half of row g's sum and row
        g + 8 the other, and the columns, which are lanes, are to be exchanged for rows.
        """
        if not self.row_lanes:
            return self._chain([self.ones] * len(activations), activations)
        b = self.state.builder
        halves = self._chain(loads, [self.ones] * len(loads))
        total = b.op("add.rn.f32", "f", halves[0], halves[2])
        return [b.op("shfl.sync.idx.b32", "f", total, lane, 31, 0xFFFFFFFF) for lane in self.row_lanes] * 2

    def _chain(self, weights: list[list[str]], activations: list[list[str]]) -> list[str]:
        """Emits the MMAs of one accumulator tile over consecutive k16 steps, from zero."""
        results: list[str] | None = None
        for step, pair in zip(weights, activations, strict=True):
            results = self._mma(step, pair, results)
        assert results is not None
        return results

    def _activations(self, j: int, k: int) -> list[str]:
        """Emits the ldmatrix of n8 tile j at k: registers (k16 step 0: b0, b1; step 1: b0, b1)."""
        loaded = self._matrices(self.lane, self.pipeline.slot, j, k)
        return [multiplied(self.state.builder, self.act, x, self.raise_by) for x in loaded] if self.raised else loaded

    def _matrices(self, lane: dict[int, str], slot: int, j: int, k: int) -> list[str]:
        tile, b = self.activations, self.state.builder
        byte = k * 2
        pattern = byte & self.swizzled
        place = slot + tile.offset + j * 8 * tile.pitch + (byte ^ pattern)
        registers = [b.register("r") for _ in range(4)]
        b.do("ldmatrix.sync.aligned.m8n8.x4.shared.b16", vector(registers), memory(lane[pattern], place))
        return registers

    def _mma(
        self,
        weights: list[str],
        activations: list[str],
        accumulators: list[str] | None,
        results: list[str] | None = None,
    ) -> list[str]:
        """Emits the products of one k16 step: one instruction, or two of half the depth before sm_80.

        They are added to the accumulators, or to zero, in `results`: the accumulators, or fresh registers.
        """
        b = self.state.builder
        results = results or accumulators or [b.register("f") for _ in range(4)]
        parts = [(weights, activations)]
        if self.instruction.k < self.atom.k:
            parts = [(weights[:2], activations[:1]), (weights[2:], activations[1:])]
        for a_registers, b_registers in parts:
            operands = (a_registers, b_registers, accumulators or [self.zero] * 4)
            b.do(self.instruction.mnemonic, *(f"{{{', '.join(registers)}}}" for registers in (results, *operands)))
            accumulators = results
        return results

    def _scaling(self, loaded: dict[str, list[str]]) -> Scaling:
        """Emits the conversions of a row tile's scales and zeros."""
        b, fmt = self.state.builder, self.format
        scales = self._as_floats(loaded["scales"], self.rows["scales"].dtype)
        if not self.alone:
            scales = self._times(scales, [1 / unit for unit in self.units])
        if fmt.zero is None or self.centring is not None:
            return Scaling(scales, self.fixed_zeros, None)
        if fmt.zero == "offset":
            offsets = self._as_floats(loaded["zeros"], self.rows["zeros"].dtype)
            return Scaling(scales, self.fixed_zeros, self._times(offsets, self.units) if self.alone else offsets)
        if fmt.zero == "int" and _exact_in_f16(fmt.bits, self.slopes, self.constants):
            return Scaling(scales, self._as_floats([self._zeros_in_f16(loaded["zeros"][0])], dtypes.f16), None)
        terms = zip(
            self._as_floats(loaded["zeros"], self.rows["zeros"].dtype), self.slopes, self.constants, strict=True
        )
        zeros = _pair(b.op("fma.rn.f32", "f", z, float_immediate(a), float_immediate(c)) for z, a, c in terms)
        return Scaling(scales, zeros, None)

    def _times(self, numbers: Pair, factors: list[float]) -> Pair:
        b, terms = self.state.builder, zip(numbers, factors, strict=True)
        return _pair(b.op("mul.rn.f32", "f", number, float_immediate(factor)) for number, factor in terms)

    def _zeros_in_f16(self, pair: str) -> str:
        """-zero of both rows, for a pair of f16 zero points, where that is exact: half the instructions."""
        b = self.state.builder
        if not any(self.constants):
            return b.op("mul.rn.f16x2", "r", pair, self._halves(self.slopes))
        return b.op("fma.rn.f16x2", "r", pair, self._halves(self.slopes), self._halves(self.constants))

    def _halves(self, values: list[float]) -> str:
        low, high = np.array(values, np.float16).view(np.uint16)
        return self.state.builder.op("mov.b32", "r", int(high) << 16 | int(low))

    def _as_floats(self, loaded: list[str], dtype: dtypes.DType) -> Pair:
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


def _pair(registers: Iterable[str]) -> Pair:
    low, high = registers
    return (low, high)


def _exact_in_f16(bits: int, slopes: list[float], constants: list[float]) -> bool:
    """Whether slope * z + constant is an f16 for every integer zero point of `bits` bits."""
    z = np.arange(-(1 << bits), 1 << bits)
    values = np.multiply.outer(slopes, z) + np.reshape(constants, (2, 1))
    with np.errstate(over="ignore"):
        stored = [np.asarray(numbers).astype(np.float16) for numbers in (slopes, constants, values)]
    return all(np.array_equal(a, b) for a, b in zip(stored, (slopes, constants, values), strict=True))
