"""The code of a dot of integer codes: stored tiles, the MMAs of their digits, and their sums.

Stored tiles are in fragment order (`lowbitvm.digits`), so they are copied as they are and each lane reads whole vectors
at lane * width, without bank conflicts; for few rows the warps load them to registers. Weights narrower than a digit
are widened in registers, a whole register of codes at a time. Every pair of digits has an accumulator of its own until
the loop ends.
"""

import itertools
from dataclasses import dataclass

from lowbitvm import dtypes
from lowbitvm.codegen.digit_loops import DirectPipeline, GroupedPipeline, shares_k
from lowbitvm.codegen.digit_tiles import DirectTile, FragmentTile, source_format
from lowbitvm.codegen.pipeline import Pipeline
from lowbitvm.codegen.ptx import Operand, memory, vector
from lowbitvm.codegen.state import State
from lowbitvm.digitplan import digit_warps_m
from lowbitvm.digits import (
    ACTIVATION_WORDS,
    BASES,
    COLUMNS,
    Base,
    Decomposition,
    columns_per_row,
    raised_by,
    widening,
)
from lowbitvm.errors import LowbitvmError
from lowbitvm.integers import digit_words, format_digits
from lowbitvm.ir import Op, Program, walk
from lowbitvm.layout import Layout
from lowbitvm.targets import Target

XOR_XOR, XOR_AND = 0x96, 0x28  # lop3's tables of a ^ b ^ c and (a ^ b) & c
FRAGMENT = 4 * 4 * 32  # bytes: a lane's four registers of one step


@dataclass(frozen=True)
class Atom:
    """How the products of one k step of a 16 x 8 tile are made: one instruction, or four of 8 x 8 and half the k."""

    mnemonic: str
    split: bool  # into 8 x 8 and half the k
    xor: bool  # counts bits that differ instead of bits that are both set


def digit_atom(target: Target, base: Base, weights: Decomposition, activations: Decomposition) -> Atom:
    """The instruction that a target has for digits of a base."""
    split = target.capability < (8, 0)
    shape = f"m8n8k{base.step_k // 2}" if split else f"m16n8k{base.step_k}"
    types, suffix = "b1.b1", ".xor.popc" if split else ".and.popc"
    if base.bits > 1:
        types, suffix = ".".join(f"{'s' if side.signed else 'u'}{base.bits}" for side in (weights, activations)), ""
    name = f"mma.sync.aligned.{shape}.row.col.s32.{types}.s32{suffix}"
    return Atom(name, split, xor=split and base.bits == 1)


def digit_layout(dot: Op, warps_m: int, warps_n: int) -> Layout:
    """The layout of a dot's result (bm, bn): a column of the n8 side is a plane of a row of bm.

    warps_n warps share out bn, and warps_m of such rows of warps bm, unless all of them share out k. After the planes
    are added up, the lanes whose columns differ in the plane alone hold copies.
    """
    bm, bn = dot.shape
    fmt = source_format(dot.operands[0])
    assert fmt.digits is not None
    each = columns_per_row(fmt.code, fmt.digits)
    warps = warps_m * warps_n
    alone = shares_k(dot.shape, warps)
    if bm * each % (COLUMNS * (1 if alone else warps_m)) or bn % (16 if alone else 16 * warps_n):
        raise LowbitvmError(
            "TILE_INVALID",
            f"a dot of shape {dot.shape} over {warps_m} x {warps_n} warps, with {each} columns for every row",
            f"make bm a multiple of {COLUMNS // each} and bn one of 16 x {warps} warps",
            dot.location,
        )
    column = [{"i": step // each} if step >= each else {} for step in (1, 2, 4)]  # images of the column's bits
    register = [column[0]] if each == 1 else []
    lane = [column[1], column[2], {"j": 1}, {"j": 2}, {"j": 4}]
    outs = {"i": (COLUMNS // each).bit_length() - 1, "j": 4}
    tile = Layout({"register": [*register, {"j": 8}], "lane": lane}, outs)
    columns = Layout.identity("register", (bm * each // COLUMNS // (1 if alone else warps_m)).bit_length() - 1, "i")
    if not alone:
        rows = Layout.identity("register", (bn // 16 // warps_n).bit_length() - 1, "j")
        of_warps = Layout.identity("warp", warps_n.bit_length() - 1, "j")
        return tile * columns * rows * of_warps * Layout.identity("warp", warps_m.bit_length() - 1, "i")
    whole = tile * columns * Layout.identity("register", (bn // 16).bit_length() - 1, "j")
    count = warps.bit_length() - 1
    kept = max(0, whole.ins["register"] - count)  # bits; after the exchange each warp has a part of the registers
    images = whole.bases["register"]
    bases = {**whole.bases, "register": images[:kept], "warp": [*images[kept:], *[{}] * count][:count]}
    return Layout(bases, whole.outs)


def multiplies_digits(op: Op) -> bool:
    """Whether an op is a dot of codes."""
    return op.kind == "dot" and op.dtype == dtypes.i32


def warps_along_m_of_digits(program: Program, warps: int) -> int:
    """Of the warps of a kernel whose dots are all of codes, how many share out the rows of activations.

    Dots of several shapes or formats, or in several loops, have one arrangement, 1, and so have those whose warps share
    out k.
    """
    dots = [op for op in walk(program.body) if op.kind == "dot"]
    loops = [op for op in walk(program.body) if op.kind == "range" and any(x.kind == "dot" for x in op.body)]
    if len(loops) != 1 or not all(map(multiplies_digits, dots)):
        return 1
    kinds = {(dot.shape, source_format(dot.operands[0]), source_format(dot.operands[1].operands[0])) for dot in dots}
    if len(kinds) > 1 or shares_k(dots[0].shape, warps):
        return 1
    (((bm, bn), activations, weights),) = kinds
    return digit_warps_m((bm, bn), activations, weights, warps, bool(loops[0].integer("folded")))


class DigitDot:
    """The emission of one `dot` of codes into accumulators, in the register order of `digit_layout`."""

    def __init__(self, state: State, pipeline: Pipeline, op: Op) -> None:
        activations, weights = (pipeline.tiles[load, "tile"] for load in (op.operands[0], op.operands[1].operands[0]))
        assert isinstance(activations, FragmentTile | DirectTile) and isinstance(weights, FragmentTile | DirectTile)
        left, right = weights.stored.format, activations.stored.format
        assert left.digits is not None
        self.state, self.pipeline, self.op, self.alone = state, pipeline, op, False
        self.begins: dict[str, list[str]] = {}  # what sums begin at, by their first register, until it is taken
        self.activations, self.weights, self.base = activations, weights, BASES[left.digits]
        self.left, self.right = format_digits(left), format_digits(right)
        self.atom = digit_atom(state.target, self.base, self.left, self.right)
        self.widths = digit_words(left)
        self.each = columns_per_row(right.code, self.base.name)
        self.direct = isinstance(pipeline, DirectPipeline)
        self.columns, self.row_tiles = activations.stored.rows, weights.stored.rows
        self.tiles = pipeline.unit.k // self.base.activation_k  # of activations along k
        if self.direct:
            self.tiles //= state.warps
            self.exchange = self._allocate_exchange()
        else:
            self.columns //= state.warps_m
            self.row_tiles //= state.warps // state.warps_m
        self.folded = [bool(pipeline.loop.integer("folded")) and d.bits < self.base.bits for d in self.left.digits]
        first, size = op.attributes.get("first", 0), op.attributes.get("size", self.tiles * self.base.activation_k)
        assert isinstance(first, int) and isinstance(size, int)
        self.steps = range(first // self.base.step_k, (first + size) // self.base.step_k)  # that are multiplied
        self.lane = state.builder.op("and.b32", "r", state.tid, 31)
        self.zero = state.builder.op("mov.b32", "r", 0)
        self.coefficients = self._lane_coefficients()

    def enter(self, accumulators: list[str]) -> None:
        """Emits zeros for the sums that are kept until `leave`."""
        self.alone = True
        self._clear()

    def leave(self, accumulators: list[str]) -> None:
        """Emits accumulators += the combined sums."""
        self._combine(accumulators)

    def emit(self, accumulators: list[str]) -> None:
        """Emits the products of the current slot's tiles, and outside `enter` and `leave` adds them at once."""
        if self.alone:
            self._multiply()
            return
        if self._adds_to_tile:
            sums = iter(accumulators)
            tiles, columns = range(self.row_tiles), range(self.columns)
            self.sums = [[[[next(sums) for _ in range(4)]] for _ in columns] for _ in tiles]
            self._multiply()
            return
        self._clear()
        self._multiply()
        self._combine(accumulators)

    def added_to(self, tile: list[Operand]) -> list[str]:
        """Emits the sums of the current slot's tiles and a tile of numbers, in registers of their own."""
        b = self.state.builder
        if not self._adds_to_tile:
            found = [b.op("mov.b32", "r", number) for number in tile]
            self.emit(found)
            return found
        known = {number: self._hidden(number) for number in dict.fromkeys(tile) if isinstance(number, int)}
        begin = [known[number] if isinstance(number, int) else number for number in tile]
        found = [b.register("r") for _ in begin]
        each = 2 if self.atom.split else 4  # registers of a product
        self.begins = {found[i]: begin[i : i + each] for i in range(0, len(found), each)}
        self.emit(found)
        return found

    def _hidden(self, number: int) -> str:
        """A register with a number that ptxas does not know, which it would move to four others for every product."""
        b, size = self.state.builder, self.state.size(self.pipeline.unit.dimension)
        return b.op("add.s32", "r", b.op("shr.u32", "r", size, 31), number)

    @property
    def _adds_to_tile(self) -> bool:
        """Whether the MMAs add to the tile itself: one digit on either side, that counts as it is."""
        alike = self.left.coefficients == (1,) == self.right.coefficients and self.each == 1
        return alike and not self.direct and not self.atom.xor

    def _clear(self) -> None:
        b = self.state.builder

        def zeros() -> list[str]:
            return [b.op("mov.b32", "r", 0) for _ in range(4)]

        planes = range(len(self.left.digits))
        tiles, columns = range(self.row_tiles), range(self.columns)
        self.sums = [[[zeros() for _ in planes] for _ in columns] for _ in tiles]
        if self.atom.xor:  # the bits of either side alone
            self.weight_counts = [[zeros() for _ in planes] for _ in tiles]
            self.activation_counts = [zeros() for _ in columns]

    def _multiply(self) -> None:
        """Emits the MMAs of the current slot; where warps load for themselves, after all loads."""
        tiles = range(self.steps.start // 2, -(-self.steps.stop // 2))
        step = len(tiles) if self.direct else 1
        for first in tiles[::step]:
            group = range(first, first + step)
            weights = [[self._weight_words(t, tile) for t in range(self.row_tiles)] for tile in group]
            ahead = [self._activation_words(j, tile) for tile in group for j in range(self.columns) if self.direct]
            loaded = iter(ahead)
            for tile, words in zip(group, weights, strict=True):
                fragments = [self._fragments(row) for row in words]
                steps = [step for step in range(2) if 2 * tile + step in self.steps]
                for j in range(self.columns):
                    columns = next(loaded) if self.direct else self._activation_words(j, tile)
                    self._column(j, steps, fragments, columns)
                if self.atom.xor:
                    self._count_weights([[row[step] for step in steps] for row in fragments])

    def _column(self, j: int, steps: list[int], weights: list[list[list[list[str]]]], activations: list[str]) -> None:
        """Emits the products of one n8 tile and the row tiles' fragments over steps of a stored tile of activations."""
        for step in steps:
            pair = activations[2 * step :][:2]
            for t, fragments in enumerate(weights):
                for sums, fragment in zip(self.sums[t][j], fragments[step], strict=True):
                    self._mma(sums, fragment, pair)
            if self.atom.xor:
                self._mma(self.activation_counts[j], [self.zero] * 4, pair)

    def _count_weights(self, weights: list[list[list[list[str]]]]) -> None:
        for counts, fragments in zip(self.weight_counts, weights, strict=True):
            for planes in fragments:
                for count, fragment in zip(counts, planes, strict=True):
                    self._mma(count, fragment, [self.zero] * 2)

    def _weight_words(self, t: int, tile: int) -> list[list[str]]:
        """A lane's words of the stored tiles of a row tile that lie beside one of activations."""
        each = self.base.activation_k // self.base.tile_k
        return [self._words(self.weights, t, tile * each + i) for i in range(each)]

    def _activation_words(self, j: int, tile: int) -> list[str]:
        words = self._words(self.activations, j, tile)
        assert len(words) == ACTIVATION_WORDS
        return words

    def _words(self, side: FragmentTile | DirectTile, row: int, tile: int) -> list[str]:
        if isinstance(side, DirectTile):
            assert isinstance(self.pipeline, DirectPipeline)
            return side.words(self.pipeline.remaining, row, tile)
        return side.words(self.pipeline.slot, row, tile)

    def _fragments(self, words: list[list[str]]) -> list[list[list[str]]]:
        """Per k step and digit: the four registers of the m16 side."""
        fragments = []
        for tile in words:
            rest, planes = iter(tile), []
            for digit, count, folded in zip(self.left.digits, self.widths, self.folded, strict=True):
                planes.append(self._widened([next(rest) for _ in range(count)], digit.bits, folded))
            fragments += [[plane[4 * step :][:4] for plane in planes] for step in range(self.base.steps)]
        return fragments

    def _widened(self, words: list[str], bits: int, folded: bool) -> list[str]:
        """A lane's fragment registers of one digit of `bits` bits; folded: rows 8 to 15 keep a power of two."""
        b = self.state.builder
        if bits == self.base.bits:
            return words
        steps, found = widening(bits, self.base.bits, 4 * self.base.steps, folded)
        values = list(words)
        for step in steps:
            operands = [values[i] for i in step.values]
            if step.rotation:
                values.append(b.op("shf.l.wrap.b32", "r", *operands * 2, step.rotation))
            elif len(operands) == 3:
                values.append(b.op("lop3.b32", "r", *operands, XOR_XOR))
            elif step.mask and len(operands) == 2:
                values.append(b.op("lop3.b32", "r", *operands, step.mask, XOR_AND))
            else:
                name, last = ("and.b32", step.mask) if step.mask else ("xor.b32", operands[1])
                values.append(b.op(name, "r", operands[0], last))
        return [values[i] for i in found]

    def _mma(self, sums: list[str], weights: list[str], activations: list[str]) -> None:
        """Emits sums += the products of one k step."""
        parts = [(sums, weights, activations)]
        if self.atom.split:  # register r of the weights: rows 8 (r & 1), half r >> 1 of k
            parts = [(sums[2 * (r & 1) :][:2], [weights[r]], [activations[r >> 1]]) for r in range(4)]
        for d, a, b in parts:
            operands = (f"{{{', '.join(registers)}}}" for registers in (d, a, b, self.begins.pop(d[0], d)))
            self.state.builder.do(self.atom.mnemonic, *operands)

    # -- combination -------------------------------------------------------------------------------------------------

    def _lane_coefficients(self) -> list[Operand]:
        """What the sums of a lane's two columns, 2 q and 2 q + 1, count: numbers where all lanes agree."""
        b = self.state.builder
        known = [*self.right.coefficients, *[0] * (self.each - len(self.right.digits))]
        found: list[Operand] = []
        for i in range(2):
            numbers = [known[(2 * q + i) % self.each] for q in range(4)]
            chosen: Operand = numbers[0]
            for q in range(1, 4):
                if numbers[q] != numbers[0]:
                    mine = b.op("setp.eq.s32", "p", b.op("and.b32", "r", self.lane, 3), q)
                    before = b.op("mov.b32", "r", chosen) if isinstance(chosen, int) else chosen
                    chosen = b.op("selp.b32", "r", numbers[q], before, mine)
            found.append(chosen)
        return found

    def _combine(self, accumulators: list[str]) -> None:
        """Emits accumulators += sum over pairs of digits of both coefficients times their sum."""
        totals = self._totals()
        if self.direct:
            totals = self._over_warps(self._unless_beyond(totals))
        for register, total in zip(accumulators, totals, strict=True):
            self.state.builder.do("add.s32", register, register, total)

    def _totals(self) -> list[str]:
        """The combined sums of a lane: of all warps' k, or of its own."""
        totals = []
        for t in range(self.row_tiles):
            for j in range(self.columns):
                values = [self._over_weights(t, j, i) for i in range(4)]
                together = 1 if self.each == 1 else 2  # columns of a lane that are planes of one row
                found = [self._over_columns(values[i : i + together]) for i in range(0, 4, together)]
                totals += found
        return totals

    def _unless_beyond(self, totals: list[str]) -> list[str]:
        """The sums, zeros where either side has no such rows: others were loaded then."""
        b, found = self.state.builder, []
        each = len(totals) // (self.row_tiles * self.columns)
        for number, (t, j) in enumerate(itertools.product(range(self.row_tiles), range(self.columns))):
            some = totals[number * each : (number + 1) * each]
            for side, tile in ((self.weights, t), (self.activations, j)):
                assert isinstance(side, DirectTile)
                beyond = side.beyond(tile)
                some = [b.op("selp.b32", "r", 0, total, beyond) for total in some]
            found += some
        return found

    def _exchanged(self) -> int:
        """Values of a lane that the warps exchange."""
        return self.row_tiles * self.columns * (4 if self.each == 1 else 2)

    def _allocate_exchange(self) -> int:
        return self.state.allocate_shared(self._exchanged() * self.state.threads * 4, self.op)

    def _over_warps(self, totals: list[str]) -> list[str]:
        """The sums over the warps of a part of the totals for each."""
        if self.state.loop_depth:
            self.state.builder.do("bar.sync", 0)  # what was exchanged before may still be read
        self._hand_out([totals])
        self.state.builder.do("bar.sync", 0)
        found = self._taken(0)
        for other in range(1, self.state.warps):
            pairs = zip(found, self._taken(other), strict=True)
            found = [self.state.builder.op("add.s32", "r", total, value) for total, value in pairs]
        return found

    def _hand_out(self, totals: list[list[str]]) -> None:
        """Emits the stores of a warp's sums, in parts of as many: [warp][part][sum][lane] in shared memory."""
        state, b = self.state, self.state.builder
        warp = b.op("shr.u32", "r", state.tid, 5)
        lane = b.op("mad.lo.s32", "r", self.lane, 4, state.smem)
        own = b.op("mad.lo.s32", "r", warp, 128 * self._exchanged() * len(totals), lane)
        for i, total in enumerate(total for part in totals for total in part):
            b.do("st.shared.b32", memory(own, self.exchange + 128 * i), total)

    def _taken(self, number: int) -> list[str]:
        """Emits the loads of what a warp keeps of a part of the sums, counted over all warps."""
        state, b = self.state, self.state.builder
        count = self._exchanged()
        kept = max(1, count // state.warps)
        warp = b.op("shr.u32", "r", state.tid, 5)
        part = b.op("and.b32", "r", warp, count // kept - 1)
        lane = b.op("mad.lo.s32", "r", self.lane, 4, state.smem)
        place = b.op("mad.lo.s32", "r", part, 128 * kept, lane)
        first = self.exchange + 128 * count * number
        return [b.op("ld.shared.b32", "r", memory(place, first + 128 * i)) for i in range(kept)]

    def _over_weights(self, t: int, j: int, i: int) -> str:
        """The sum over the weights' digits at register i of the n8 tile j and the row tile t."""
        b, total = self.state.builder, ""
        for plane, coefficient in enumerate(self.left.coefficients):
            value = self.sums[t][j][plane][i]
            if self.folded[plane] and i >= 2:  # of rows 8 to 15
                value = b.op("shr.s32", "r", value, raised_by(self.left.digits[plane].bits, self.base.bits))
            if self.atom.xor:  # bits that are both set: half of what is left of the bits of both
                either = b.op("add.s32", "r", self.weight_counts[t][plane][i], self.activation_counts[j][i])
                value = b.op("shr.u32", "r", b.op("sub.s32", "r", either, value), 1)
            total = self._multiply_add(value, coefficient, total)
        return total

    def _over_columns(self, values: list[str]) -> str:
        """The sum over the planes of a row of activations, some in other lanes."""
        b, total = self.state.builder, ""
        for value, coefficient in zip(values, self.coefficients, strict=False):
            total = self._multiply_add(value, coefficient, total)
        for lanes in (1, 2):  # bit 0 of q is bit 1 of the column
            if self.each > 2 * lanes:
                other = b.op("shfl.sync.bfly.b32", "r", total, lanes, 31, 0xFFFFFFFF)
                total = b.op("add.s32", "r", total, other)
        return total

    def _multiply_add(self, value: str, coefficient: Operand, total: str) -> str:
        """value * coefficient, plus the total where there is one."""
        b = self.state.builder
        if total:
            return b.op("mad.lo.s32", "r", value, coefficient, total)
        return value if coefficient == 1 else b.op("mul.lo.s32", "r", value, coefficient)


class SharedDigitDot(DigitDot):
    """A `DigitDot` whose weights are widened once per block: each warp widens its share of the next step of the loop.

    Fragments lie in one of two buffers, as [row tile][tile of k][step of a tile][lane][4 registers]. The barrier of a
    step serves the buffers too.
    """

    def __init__(self, state: State, pipeline: Pipeline, op: Op) -> None:
        super().__init__(state, pipeline, op)
        assert isinstance(self.weights, FragmentTile)
        rows = self.weights.stored.rows
        self.own_rows, self.tile_bytes = rows // state.warps, self.base.steps * FRAGMENT
        self.row_bytes = pipeline.unit.k // self.base.tile_k * self.tile_bytes
        self.buffers = [state.allocate_shared(rows * self.row_bytes, op) for _ in range(2)]
        lanes, warps_n = [16 << i for i in range(5)], state.warps // state.warps_m
        written = [self.own_rows * self.row_bytes << i for i in range(state.warps.bit_length() - 1)]
        read = [self.row_tiles * self.row_bytes << i for i in range(warps_n.bit_length() - 1)]
        self.write_base, self.read_base = (state.shared_address(lanes + by_warp) for by_warp in (written, read))
        pipeline.wait(pipeline.unit.ahead - 1, 0)
        self._widen(0)

    def _multiply(self) -> None:
        super()._multiply()
        self._widen(self.pipeline.number + 1)

    def _widen(self, number: int) -> None:
        """Emits the widening of the warp's share of a step's weights."""
        slot, buffer = self.pipeline.slot_of(number), self.buffers[number % 2]
        for row in range(self.own_rows):
            for tile in range(self.pipeline.unit.k // self.base.tile_k):
                assert isinstance(self.weights, FragmentTile)
                for step, fragments in enumerate(super()._fragments([self.weights.words(slot, row, tile)])):
                    place = buffer + row * self.row_bytes + tile * self.tile_bytes + step * FRAGMENT
                    self.state.builder.do("st.shared.v4.b32", memory(self.write_base, place), vector(fragments[0]))

    def _weight_words(self, t: int, tile: int) -> list[list[str]]:
        """A lane's fragments of the row tile beside a stored tile of activations, of each tile of k."""
        each, buffer = self.base.activation_k // self.base.tile_k, self.buffers[self.pipeline.number % 2]
        found = []
        for i in range(each):
            place = buffer + t * self.row_bytes + (tile * each + i) * self.tile_bytes
            words = []
            for step in range(self.base.steps):
                registers = [self.state.builder.register("r") for _ in range(4)]
                source = memory(self.read_base, place + step * FRAGMENT)
                self.state.builder.do("ld.shared.v4.b32", vector(registers), source)
                words += registers
            found.append(words)
        return found

    def _fragments(self, words: list[list[str]]) -> list[list[list[str]]]:
        return [[tile[4 * step :][:4]] for tile in words for step in range(self.base.steps)]


class GroupDot(DigitDot):
    """A `DigitDot` of a group of k in a loop whose warps share out the groups of a step.

    The first one of a step multiplies all groups of the warp, and hands out their sums: a warp keeps a part of those
    of every group, so that it adds them in the order of k.
    """

    def __init__(self, state: State, pipeline: Pipeline, op: Op) -> None:
        self.group = op.integer("size") if "size" in op.attributes else pipeline.unit.k
        super().__init__(state, pipeline, op)
        self.number = op.integer("first") // self.group if "first" in op.attributes else 0
        self.folded = [digit.bits < self.base.bits for digit in self.left.digits]  # groups are short

    def _allocate_exchange(self) -> int:
        assert isinstance(self.pipeline, GroupedPipeline)
        known, groups = self.pipeline.exchanged, self.pipeline.unit.k // self.group
        load = self.op.operands[1].operands[0]
        if load not in known:
            known[load] = self.state.allocate_shared(groups * self._exchanged() * 128, self.op)
        return known[load]

    def emit(self, accumulators: list[str]) -> None:
        """Emits accumulators += the sums of the group."""
        b, load = self.state.builder, self.op.operands[1].operands[0]
        assert isinstance(self.pipeline, GroupedPipeline)
        if load not in self.pipeline.multiplied:
            self.pipeline.multiplied.add(load)
            self._multiply_groups()
        for register, total in zip(accumulators, self._taken(self.number), strict=True):
            b.do("add.s32", register, register, total)

    def _multiply_groups(self) -> None:
        """Emits the products of all groups of the warp's part of a step, after all loads."""
        for tile in range(self.tiles):
            for t in range(self.row_tiles):
                self._weight_words(t, tile)
            for j in range(self.columns):
                self._activation_words(j, tile)
        steps, found = self.group // self.base.step_k, []
        for first in range(0, 2 * self.tiles, steps):
            self.steps = range(first, first + steps)
            self._clear()
            self._multiply()
            found.append(self._totals())
        self.state.builder.do("bar.sync", 0)  # what was handed out before may still be read
        self._hand_out(found)
        self.state.builder.do("bar.sync", 0)
