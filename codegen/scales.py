"""Scales and zeros of 8 bits, alone or with a second level: converted once per unit for all lanes that read them.

A row of scales has 16 bytes per tile of 16 out_features: those of rows g and g + 8, for g from 0 on. A lane copies 4 of
them, of two g, for its own warp. When they are there it makes the numbers that `GroupRows` reads of them, times those
of the second level, before the barrier that the unit's other tiles wait for. So 4 lanes that need the same numbers
share one conversion, and no copy is shorter than the 4 bytes that cp.async takes.

The numbers are f32, without any rounding; products with a second level are rounded to nearest once. They scale the
sums of their groups. Those of fused scales (`lowbitvm.codegen.fused`) are of the activations' dtype and scale the
decoded codes; their second level is that of the whole sum, and left to it.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.codegen.convert import EXPONENT_BIAS, MANTISSA, MINUS_ZERO
from lowbitvm.codegen.fused import Fused
from lowbitvm.codegen.ptx import Builder, Operand, float_immediate, memory, vector
from lowbitvm.codegen.staging import PIECE, Piece, Unit, select, shift_right
from lowbitvm.codegen.state import State
from lowbitvm.codegen.weights import GroupRows, Rows, part_bytes, part_dtype
from lowbitvm.formats import Format
from lowbitvm.ir import Op

WORD = 4  # numbers of 8 bits that are copied and converted together: two pairs
OUTER_OF = {"scales": "outer", "zeros": "outer_zeros"}
BANKS_BYTES = 128
LANES = 32

Place = tuple[str, int]  # register and constant
Pairs = tuple[list[str], list[str]]  # the registers of the two pairs of a word


class OuterRows(Rows):
    """Second-level scales of a (bn, k) tile: 16 bytes of two g per lane, as `ByteRows` multiplies with them."""

    def __init__(
        self, state: State, unit: Unit, offset: int, load: Op, row: Operand, start: Operand, part: str
    ) -> None:
        assert load.array is not None and isinstance(load.array.element, Format)
        super().__init__(state, unit, offset, load, part, 4, load.array.element.outer, state.warps)
        lanes = WORD * self.row_tiles
        self.size = lanes * PIECE * state.warps
        b = state.builder
        lane, warp = b.op("and.b32", "r", state.tid, 31), b.op("shr.u32", "r", state.tid, 5)
        self.warp_base = b.op("mad.lo.s32", "r", warp, lanes * PIECE, state.smem)
        base = b.op("mad.lo.s32", "r", lane, PIECE, self.warp_base)
        first = b.op("mad.wide.s32", "rd", row, 4, state.pointer(self.array, part))
        for i in range(-(-lanes // 32)):
            number = state.scalar("add", lane, 32 * i)
            tile = word_tile(state, number, self.row_tiles)
            index = state.scalar("add", shift_right(state, row, 4), tile)
            address = b.op("mad.wide.u32", "rd", word_feature(state, number, self.row_tiles), 4, first)
            piece = Piece("", 0, base, 32 * PIECE * i, "", active=self.fewer(lanes, 32, lane))
            self.add_piece(address, 0, index, start, piece)


class ByteRows(GroupRows):
    """Scales or zeros of 8 bits of a (bn, k) tile, read as f32, or as the activations' dtype where they are `fused`.

    They lie as [warp][segments][g][segment][row tile][2 numbers]: so many segments together that one load has 16 bytes.
    Behind the numbers lie the bytes that they are made of: [warp][segment][two g][row tile][4].
    """

    def __init__(
        self,
        state: State,
        unit: Unit,
        offset: int,
        load: Op,
        row: Operand,
        start: Operand,
        part: str,
        outer: OuterRows | None,
        fused: Fused | None,
    ) -> None:
        assert load.array is not None and isinstance(load.array.element, Format)
        self.format, self.fused = load.array.element, fused
        stored = part_bytes(self.format, part)
        Rows.__init__(self, state, unit, offset, load, part, stored, self.format.group, state.warps)
        self.every = unit.period  # each unit has numbers of its own
        self._measure(dtypes.get(fused.act) if fused else dtypes.f32, (part,))
        self.segment_bytes = self.lane_bytes  # of a lane
        self.joined = max(1, min(self.segments, PIECE // self.segment_bytes))
        self.lane_bytes *= self.joined
        self.row_bytes, self.warp_bytes = 8 * self.lane_bytes, self.segments * 8 * self.segment_bytes
        self.loaded: dict[tuple[int, int], list[list[str]]] = {}
        self.source_dtype, self.outer = part_dtype(self.format, part), outer
        self.lane_words = WORD * self.row_tiles  # words of one segment of a warp
        self.words = self.segments * self.lane_words
        self.bytes_at = self.size
        self.size += self.words * WORD * state.warps
        b = state.builder
        self.lane = b.op("and.b32", "r", state.tid, 31)
        self.active = self.fewer(self.words, 32, self.lane)
        self._add_words(row, start)
        # read by the warps that multiply, or by those that decode
        readers = state.warps if fused and not state.held else state.warps // state.warps_m
        self.read_tiles = self.row_tiles * state.warps // readers
        self.base = self.base_of(readers, self.read_tiles)
        self._emit_store_places()
        self.factor = ""
        if self.format.outer == "tensor" and fused is None:
            self.factor = b.op("ld.global.nc.f32", "f", memory(state.pointer(self.array, OUTER_OF[part])))

    def _add_words(self, row: Operand, start: Operand) -> None:
        state, b = self.state, self.state.builder
        first = b.op("mad.wide.s32", "rd", row, 1, state.pointer(self.array, self.part))
        warp = b.op("shr.u32", "r", state.tid, 5)
        warp_base = b.op("mad.lo.s32", "r", warp, self.words * WORD, state.smem)
        # Lanes without a word read another's: a load under a predicate would keep a register through the whole loop.
        own = b.op("and.b32", "r", self.lane, self.words - 1) if self.active else self.lane
        self.word_base = b.op("mad.lo.s32", "r", own, WORD, warp_base)
        for i in range(-(-self.words // 32)):
            number = state.scalar("add", self.lane, 32 * i)
            segment = shift_right(state, number, self.lane_words.bit_length() - 1) if self.segments > 1 else 0
            tile = state.scalar("add", shift_right(state, row, 4), word_tile(state, number, self.row_tiles))
            address = b.op("mad.wide.u32", "rd", word_feature(state, number, self.row_tiles), 1, first)
            piece = Piece("", 0, self.word_base, self.bytes_at + 32 * WORD * i, "", active=self.active, bytes=WORD)
            self.add_piece(address, segment, tile, start, piece)

    def _emit_store_places(self) -> None:
        """Emits the addresses of a lane's two pairs.

        One bit of the lane says which pair it stores first: with the even g alone half of the banks would serve all.
        Few lanes need no such bit.
        """
        state, b = self.state, self.state.builder
        images = [2 * self.element << i for i in range(self.row_tiles.bit_length() - 1)]
        images += [2 * self.lane_bytes, 4 * self.lane_bytes]
        images += [self.segment_bytes << i for i in range(self.joined.bit_length() - 1)]
        images += [self.row_bytes << i for i in range((self.segments // self.joined).bit_length() - 1)]
        self.word_images, lane_images = images, [*images, 0, 0, 0, 0, 0][:5]
        self.turn = next((bit for bit, image in enumerate(lane_images) if image % BANKS_BYTES == 0), 4)
        self.turns = self.words > 1 << self.turn
        self.stores = self._two_places(lane_images, self.lane_bytes, self.warp_bytes)
        self.rotation = str(state.linear(state.tid, [0] * self.turn + [16])) if self.turns else ""
        if self.outer is not None:
            within = b.op("and.b32", "r", self.lane, self.lane_words - 1)
            place = b.op("mad.lo.s32", "r", within, PIECE, self.outer.warp_base)
            self.outer_places = [(place, 0), (place, 8)]
            if self.turns:
                half = state.linear(state.tid, [0] * self.turn + [8])
                place = str(state.scalar("add", place, half))
                self.outer_places = [(place, 0), (b.op("xor.b32", "r", place, 8), 0)]

    def _two_places(self, lane_images: list[int], odd: int, warp_bytes: int) -> list[Place]:
        """Emits the addresses of a lane's pairs, the second of which is `odd` bytes behind the first, or before it."""
        state = self.state
        images = [image ^ odd * (self.turns and bit == self.turn) for bit, image in enumerate(lane_images)]
        images += [warp_bytes << i for i in range(state.warps.bit_length() - 1)]
        place = state.linear(state.tid, images)
        first = str(state.scalar("add", state.smem, place))
        if not self.turns:
            return [(first, 0), (first, odd)]
        second = state.builder.op("xor.b32", "r", place, odd)
        return [(first, 0), (str(state.scalar("add", state.smem, second)), 0)]

    def convert(self, slot: int, outer_slot: int) -> None:
        """Emits the conversion of the numbers of the unit in the slot at byte `slot`, once their copies are there.

        Those of the second level are in the slot at `outer_slot`.
        """
        b, place = self.state.builder, slot + self.offset
        self.loaded = {key: registers for key, registers in self.loaded.items() if key[0] != slot}
        for i in range(-(-self.words // 32)):
            word = b.register("r")
            b.do("ld.shared.b32", word, memory(self.word_base, place + self.bytes_at + 32 * WORD * i))
            if self.turns:
                word = b.op("shf.r.wrap.b32", "r", word, word, self.rotation)
            pairs = self._pairs(word, slot, outer_slot, i)
            for pair, (store, odd) in zip(pairs, self.stores, strict=True):
                target = memory(store, place + odd + select(self.word_images, 32 * i))
                b.do("st.shared.b32" if self.fused else "st.shared.v2.f32", target, vector(pair), when=self.active)

    def _pairs(self, word: str, slot: int, outer_slot: int, i: int) -> Pairs:
        """Emits the numbers to store for the i-th word of the slot."""
        if self.fused:
            return HALVES[self.source_dtype.name](self.state.builder, word, self.fused)
        return self._with_outer(CONVERT[self.source_dtype.name](self.state.builder, word), outer_slot, i)

    def load(self, slot: int, k: int) -> list[dict[str, list[str]]]:
        """As of `GroupRows`; what one load brought of several segments is loaded once."""
        block, segment = divmod(k * self.segments // self.unit.span, self.joined)
        if (slot, block) not in self.loaded:
            place = slot + self.offset + block * self.row_bytes
            regions = range(0, self.read_tiles, self.row_tiles)  # of the warps that converted
            self.loaded[slot, block] = [self.load_row(place + self.tile_place(t)) for t in regions]
        each = 2 * self.element // 4  # registers of a pair
        first, taken = segment * self.row_tiles * each, range(0, self.row_tiles * each, each)
        rows = self.loaded[slot, block]
        return [{self.part: row[first + i : first + i + each]} for row in rows for i in taken]

    def _with_outer(self, pairs: Pairs, slot: int, i: int) -> Pairs:
        """The products of the pairs of word i with the second level."""
        b = self.state.builder
        factors = [[self.factor] * 2] * 2
        if self.outer is not None:
            at = slot + self.outer.offset + 32 * i % self.lane_words * PIECE
            factors = [[b.register("f"), b.register("f")] for _ in pairs]
            for registers, (place, odd) in zip(factors, self.outer_places, strict=True):
                b.do("ld.shared.v2.f32", vector(registers), memory(place, at + odd))
        elif not self.factor:
            return pairs
        low, high = (
            [b.op("mul.rn.f32", "f", *terms) for terms in zip(pair, both, strict=True)]
            for pair, both in zip(pairs, factors, strict=True)
        )
        return low, high


class RelativeRows(ByteRows):
    """Fused scales that are powers of two, relative to the largest of a row's over all segments, which lies behind.

    The largest are f32, [warp][g][row tile][2 numbers]. A lane has one word, and those of the other segments are 1, 2
    and 4 times as many lanes away as a segment has words.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        state, b = self.state, self.state.builder
        assert self.words <= LANES
        self.largest_at, self.largest_lane = self.size, 8 * self.row_tiles
        self.size += 8 * self.largest_lane * state.warps
        images = [8 << i for i in range(self.row_tiles.bit_length() - 1)]
        images += [2 * self.largest_lane, 4 * self.largest_lane]
        images = [*images, 0, 0, 0, 0, 0][:5]
        self.largest_stores = self._two_places(images, self.largest_lane, 8 * self.largest_lane)
        self.first_segment = b.op("setp.lt.u32", "p", self.lane, self.lane_words)
        reads = [0, 0, *(self.largest_lane << i for i in range(3))]
        tiles = self.row_tiles * state.warps_m
        reads += [0] * (state.warps_m.bit_length() - 1)
        reads += [self._largest_place(tiles << i) for i in range((state.warps // state.warps_m).bit_length() - 1)]
        self.largest_base = state.shared_address(reads)

    def _largest_place(self, number: int) -> int:
        """Bytes from the largest scales of the block's first row tile to those of its `number`-th."""
        warp, tile = divmod(number, self.row_tiles)
        return warp * 8 * self.largest_lane + tile * 8

    def load_largest(self, slot: int) -> list[list[str]]:
        """Emits the loads of the period's largest scales: two f32 registers for each row tile that is multiplied."""
        b, pairs = self.state.builder, []
        for t in range(self.row_tiles * self.state.warps_m):
            pairs.append([b.register("f"), b.register("f")])
            place = slot + self.offset + self.largest_at + self._largest_place(t)
            b.do("ld.shared.v2.f32", vector(pairs[-1]), memory(self.largest_base, place))
        return pairs

    def _pairs(self, word: str, slot: int, outer_slot: int, i: int) -> Pairs:
        """Exponents are compared as f16: those of all bytes are subnormal numbers in the same order."""
        assert self.fused is not None
        b = self.state.builder
        own = [b.op("prmt.b32", "r", word, 0, selector) for selector in PLAIN_BYTES]
        largest = own
        for bit in range(self.lane_words.bit_length() - 1, self.words.bit_length() - 1):
            others = [b.op("shfl.sync.bfly.b32", "r", pair, 1 << bit, 31, 0xFFFFFFFF) for pair in largest]
            if bit == self.turn:  # the other lane has turned its word
                others.reverse()
            largest = [b.op("max.f16x2", "r", pair, other) for pair, other in zip(largest, others, strict=True)]
        for pair, (store, odd) in zip(largest, self.largest_stores, strict=True):
            exponents = [b.op("shl.b32", "r", b.op("and.b32", "r", pair, 0xFFFF), 23)]
            exponents.append(b.op("shl.b32", "r", b.op("and.b32", "r", pair, 0xFFFF0000), 7))
            numbers = [b.op("mov.b32", "f", b.op("max.u32", "r", bits, SMALLEST_E8M0)) for bits in exponents]
            target = memory(store, slot + self.offset + self.largest_at + odd)
            b.do("st.shared.v2.f32", target, vector(numbers), when=self.first_segment)
        low, high = (self._powers(*pair) for pair in zip(own, largest, strict=True))
        return [low], [high]

    def _powers(self, own: str, largest: str) -> str:
        """2**(exponent + own - largest) of two numbers in the activations' dtype, or what `Fused.powers` says of it."""
        assert self.fused is not None
        b, act = self.state.builder, self.fused.act
        below, factors = b.op("sub.s32", "r", largest, own), []
        for power, most in self.fused.steps:
            taken = b.op("min.f16x2", "r", below, b.op("mov.b32", "r", most * 0x10001))
            biased = b.op("mov.b32", "r", (power + EXPONENT_BIAS[act]) * 0x10001)
            factors.append(b.op("shl.b32", "r", b.op("sub.s32", "r", biased, taken), MANTISSA[act]))
            below = b.op("sub.s32", "r", below, taken)
        return functools.reduce(functools.partial(multiplied, b, act), factors)


def word_tile(state: State, number: Operand, row_tiles: int) -> Operand:
    """The tile of the word `number` of the thread's warp, from the block's first; its bits are [two g][row tile]."""
    count = row_tiles.bit_length() - 1
    tile = state.linear(str(number), [1 << i for i in range(count)])
    warp = state.linear(state.tid, [0] * 5 + [row_tiles << i for i in range(state.warps.bit_length() - 1)])
    return state.scalar("add", tile, warp)


def word_feature(state: State, number: Operand, row_tiles: int) -> str:
    """The number, in the row of a group, of the word's first byte, from the block's first."""
    count = row_tiles.bit_length() - 1
    feature = state.linear(str(number), [16 << i for i in range(count)] + [4, 8])
    warp = state.linear(state.tid, [0] * 5 + [16 * row_tiles << i for i in range(state.warps.bit_length() - 1)])
    return str(state.scalar("add", feature, warp))


# -- conversions of the four bytes of a word ---------------------------------------------------------------------------

TOP_BYTE = 0x0444  # prmt of a word and zero: byte 0 to the top
PLAIN_BYTES = (0x4140, 0x4342)  # prmt of a word and zero: bytes 0 and 1, or 2 and 3, each below a zero
SIGNED_BYTES = (0x9180, 0xB3A2)  # prmt: bytes 0 and 1, or 2 and 3, each with its sign in the byte above
E4M3_MASK = 0xBF80BF80  # of f16: the sign, four of the exponent's bits and three of the mantissa's
E4M3_UP = 2.0**8  # 15 - 7: the exponent biases' difference
BF16_E4M3_MASK = 0x87F087F0
BF16_E4M3_UP = 120  # 127 - 7
LARGEST_BF16_POWER = 127
SMALLEST_E8M0 = 0x00400000  # 2**-127 in f32, a subnormal
MAGIC = 0x4B000000  # 2**23, whose last bits are units
MAGIC_BYTE = 0x7540  # prmt of a word and MAGIC: byte 0 below
F16_MAGIC = 0x64646464  # the upper bytes of 1024, whose last bits are units
F16_MAGIC_BYTES = (0x4140, 0x4342)  # prmt of a word and F16_MAGIC: bytes 0 and 1, or 2 and 3, below


def from_e8m0(b: Builder, word: str) -> Pairs:
    """The byte is f32's exponent, but for 0, which is 2**-127; 255, a NaN, becomes infinite."""
    numbers = []
    for i in range(WORD):
        top = b.op("prmt.b32", "r", word, 0, TOP_BYTE | i << 12)
        bits = b.op("max.u32", "r", b.op("shr.u32", "r", top, 1), SMALLEST_E8M0)
        numbers.append(b.op("mov.b32", "f", bits))
    return numbers[:2], numbers[2:]


def from_e4m3(b: Builder, word: str) -> Pairs:
    """By f16, which has the bits in the same order below another exponent bias, subnormals included."""
    low, high = (_f16_of_e4m3(b, word, selector, E4M3_UP) for selector in SIGNED_BYTES)
    return _wide(b, low), _wide(b, high)


def _f16_of_e4m3(b: Builder, word: str, selector: int, factor: float) -> str:
    placed = b.op("shl.b32", "r", b.op("prmt.b32", "r", word, 0, selector), 7)
    halves = b.op("and.b32", "r", placed, E4M3_MASK)
    return multiplied(b, "f16", halves, constant_pair(b, "f16", factor, factor))


def halves_of_e4m3(b: Builder, word: str, fused: Fused) -> Pairs:
    """The scales times 2**exponent in the activations' dtype."""
    if fused.act == "f16":
        low, high = (_f16_of_e4m3(b, word, selector, E4M3_UP * 2.0**fused.exponent) for selector in SIGNED_BYTES)
    else:
        low, high = (_bf16_of_e4m3(b, word, selector, fused.exponent) for selector in SIGNED_BYTES)
    return [low], [high]


def _bf16_of_e4m3(b: Builder, word: str, selector: int, exponent: int) -> str:
    """The bits in order below the exponent bias 127, by at most two products with powers of two."""
    placed = b.op("shl.b32", "r", b.op("prmt.b32", "r", word, 0, selector), 4)
    halves, up = b.op("and.b32", "r", placed, BF16_E4M3_MASK), exponent + BF16_E4M3_UP
    while up:
        factor = 2.0 ** min(up, LARGEST_BF16_POWER)
        halves = multiplied(b, "bf16", halves, constant_pair(b, "bf16", factor, factor))
        up -= min(up, LARGEST_BF16_POWER)
    return halves


def halves_of_i8(b: Builder, word: str, fused: Fused) -> Pairs:
    """The byte plus 128 as the last bits of 1024, in f16; then 1152 is taken off and the power of two multiplied."""
    biased, magic = b.op("xor.b32", "r", word, 0x80808080), b.op("mov.b32", "r", F16_MAGIC)
    factor, offset = 2.0**fused.exponent, -1152.0 * 2.0**fused.exponent
    low, high = (
        multiplied(
            b,
            fused.act,
            b.op("prmt.b32", "r", biased, magic, selector),
            constant_pair(b, fused.act, factor, factor),
            constant_pair(b, fused.act, offset, offset),
        )
        for selector in F16_MAGIC_BYTES
    )
    return [low], [high]


def constant_pair(b: Builder, act: str, low: float, high: float) -> str:
    """A register with two numbers of `act`."""
    patterns = np.array([low, high]).astype(dtypes.get(act).numpy).view(np.uint16)
    return b.op("mov.b32", "r", int(patterns[1]) << 16 | int(patterns[0]))


def multiplied(b: Builder, act: str, pair: str, factors: str, added: str = "") -> str:
    """pair * factors + added of two numbers each, rounded once; bf16 has no product alone before sm_90."""
    if act == "f16" and not added:
        return b.op("mul.rn.f16x2", "r", pair, factors)
    return b.op(f"fma.rn.{act}x2", "r", pair, factors, added or b.op("mov.b32", "r", MINUS_ZERO * 0x10001))


def _wide(b: Builder, pair: str) -> list[str]:
    halves = [b.register("h"), b.register("h")]
    b.do("mov.b32", vector(halves), pair)
    return [b.op("cvt.f32.f16", "f", half) for half in halves]


def from_i8(b: Builder, word: str) -> Pairs:
    """The byte plus 128 as the last bits of 2**23: exact, without the conversions that take four cycles."""
    biased, magic = b.op("xor.b32", "r", word, 0x80808080), b.op("mov.b32", "r", MAGIC)
    offset = float_immediate(-(2.0**23) - 128)
    numbers = []
    for i in range(WORD):
        bits = b.op("mov.b32", "f", b.op("prmt.b32", "r", biased, magic, MAGIC_BYTE | i))
        numbers.append(b.op("add.rn.f32", "f", bits, offset))
    return numbers[:2], numbers[2:]


CONVERT: dict[str, Callable[[Builder, str], Pairs]] = {"e8m0": from_e8m0, "e4m3": from_e4m3, "i8": from_i8}
HALVES: dict[str, Callable[[Builder, str, Fused], Pairs]] = {"e4m3": halves_of_e4m3, "i8": halves_of_i8}
