"""The code of a dot of integer codes: stored tiles through shared memory to s8 or b1 MMAs, and their sums' combination.

Stored tiles are in fragment order (`lowbitvm.digits`), so they are copied as they are and each lane reads whole vectors
at lane * width, without bank conflicts. Base s8 widens narrow weights in registers, four codes at a time; base b1 takes
planes as they are. Every pair of digits has an accumulator of its own until the loop ends.
"""

import functools
from dataclasses import dataclass

from lowbitvm import dtypes
from lowbitvm.chunk import blocks
from lowbitvm.codegen.pipeline import SLOT_ALIGNMENT, Pipeline
from lowbitvm.codegen.ptx import Operand, memory, vector, vector_suffix
from lowbitvm.codegen.staging import PIECE, Piece, Staged, Unit, ceil_div, shift_right
from lowbitvm.codegen.state import State, divisor, invariant, non_negative
from lowbitvm.digits import ACTIVATION_WORDS, BASES, COLUMNS, columns_per_row, quads
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import BYTES, format_digits, row_tiles, tile_words
from lowbitvm.ir import Op
from lowbitvm.layout import Layout
from lowbitvm.targets import Target

AND_OR = 0xEA  # lop3's table of (a & b) | c


@dataclass(frozen=True)
class Atom:
    """How the products of one k step of a 16 x 8 tile are made: one instruction, or four of 8 x 8 and half the k."""

    mnemonic: str
    split: bool  # into 8 x 8 and half the k
    xor: bool  # counts bits that differ instead of bits that are both set


def digit_atom(target: Target, base: str, weights: str, activations: str) -> Atom:
    """The instruction that a target has for digits of a base; weights and activations: "u8" or "s8" in base s8."""
    split = target.capability < (8, 0)
    if base == "s8":
        shape = "m8n8k16" if split else "m16n8k32"
        return Atom(f"mma.sync.aligned.{shape}.row.col.s32.{weights}.{activations}.s32", split, xor=False)
    shape, how = ("m8n8k128", "xor") if split else ("m16n8k256", "and")
    return Atom(f"mma.sync.aligned.{shape}.row.col.s32.b1.b1.s32.{how}.popc", split, xor=split)


def source_format(load: Op) -> Format:
    """The format of the codes that a load reads."""
    assert load.array is not None and isinstance(load.array.element, Format)
    return load.array.element


def digit_layout(dot: Op, warps: int) -> Layout:
    """The layout of a dot's result (bm, bn): warps share out bn, a column of the n8 side is a plane of a row of bm.

    After the planes are added up, the lanes whose columns differ in the plane alone hold copies.
    """
    bm, bn = dot.shape
    fmt = source_format(dot.operands[0])
    assert fmt.digits is not None
    each = columns_per_row(fmt.code, fmt.digits)
    if bm * each % COLUMNS or bn % (16 * warps):
        raise LowbitvmError(
            "TILE_INVALID",
            f"a dot of shape {dot.shape} over {warps} warps, with {each} columns for every row",
            f"make bm a multiple of {COLUMNS // each} and bn one of 16 x {warps} warps",
            dot.location,
        )
    column = [{"i": step // each} if step >= each else {} for step in (1, 2, 4)]  # images of the column's bits
    register = [column[0]] if each == 1 else []
    lane = [column[1], column[2], {"j": 1}, {"j": 2}, {"j": 4}]
    outs = {"i": (COLUMNS // each).bit_length() - 1, "j": 4}
    tile = Layout({"register": [*register, {"j": 8}], "lane": lane}, outs)
    columns = Layout.identity("register", (bm * each // COLUMNS).bit_length() - 1, "i")
    rows = Layout.identity("register", (bn // 16 // warps).bit_length() - 1, "j")
    return tile * columns * rows * Layout.identity("warp", warps.bit_length() - 1, "j")


class FragmentTile(Staged):
    """Stored tiles in shared memory as in global memory: [row tile][k tile][words], shared out piece by piece."""

    def __init__(self, state: State, unit: Unit, offset: int, load: Op, row: Operand, start: Operand) -> None:
        super().__init__(state, unit, offset)
        assert load.array is not None
        fmt = source_format(load)
        assert fmt.digits is not None
        self.format, self.tile_k = fmt, BASES[fmt.digits].tile_k
        self.tile_bytes = 4 * tile_words(fmt)
        self.row_tiles, self.k_tiles = row_tiles(fmt, load.shape[0]), unit.k // self.tile_k
        self.row_bytes = self.distance = self.k_tiles * self.tile_bytes
        self.size = self.row_tiles * self.row_bytes
        b = state.builder
        per_tile = load.shape[0] // self.row_tiles  # rows
        rows, self.columns = (state.size(dim) for dim in load.array.dims)
        count = ceil_div(state, rows, per_tile) if per_tile > 1 else rows
        first = shift_right(state, row, per_tile.bit_length() - 1) if per_tile > 1 else row
        pitch = b.op("mul.wide.u32", "rd", ceil_div(state, self.columns, self.tile_k), self.tile_bytes)
        origin = state.pointer(load.array, "words")
        if start != 0:
            k_tile = shift_right(state, start, self.tile_k.bit_length() - 1)
            origin = b.op("mad.wide.u32", "rd", k_tile, self.tile_bytes, origin)
        place = b.op("mad.lo.s32", "r", state.tid, PIECE, state.smem)
        pieces = self.size // PIECE
        for number in range(0, pieces, state.threads):
            piece = state.scalar("add", state.tid, number)
            tile = b.op("div.u32", "r", piece, self.row_bytes // PIECE)
            within = b.op("rem.u32", "r", piece, self.row_bytes // PIECE)
            index = state.scalar("add", first, tile)
            address = b.op("mad.lo.s64", "rd", b.op("cvt.s64.s32", "rd", index), pitch, origin)
            address = self.centred(b.op("mad.wide.u32", "rd", within, PIECE, address))
            outside, limit = self.inside(functools.partial(self._k_limit, within), index, count)
            active = self.fewer(pieces - number, state.threads, state.tid)
            self.pieces.append(Piece(address, 0, place, number * PIECE, outside, limit, active))

    def _k_limit(self, within: str) -> Operand:
        """The k below which a unit must begin for the piece `within` of a row tile to exist."""
        if self.k_tiles == 1:
            return self.columns
        tile = self.state.builder.op("div.u32", "r", within, self.tile_bytes // PIECE)
        return self.state.scalar("sub", self.columns, self.state.scalar("mul", tile, self.tile_k))


def multiplies_digits(op: Op) -> bool:
    """Whether an op is a dot of codes."""
    return op.kind == "dot" and op.dtype == dtypes.i32


def build_digit_pipeline(state: State, loop: Op, offsets: "dict[Op, list[Operand]]") -> Pipeline:
    """Plans the units of a loop over dots of codes, and emits the address arithmetic before it.

    `offsets` are the loads' offsets at the first iteration. Raises KERNEL_UNSUPPORTED, TILE_INVALID and
    SHARED_MEMORY_EXCEEDED.
    """
    dots = [op for op in loop.body if op.kind == "dot"]
    if any(dot.dtype != dtypes.i32 for dot in dots):
        problem = "dots of integer codes and of floats in one loop"
        raise LowbitvmError("KERNEL_UNSUPPORTED", problem, "write a loop for each", loop.location)
    loads = list(dict.fromkeys(load for dot in dots for load in (dot.operands[0], dot.operands[1].operands[0])))
    for load in loads:
        _check_load(state, loop, load)
    step, start = loop.integer("step"), loop.operands[0]
    dims = {load.array.dims[1] for load in loads if load.array is not None}
    whole = all(state.program.divisor(dim) % step == 0 for dim in dims) and divisor(start) % step == 0
    exact = whole and len(dims) == 1 and _ends_at(loop.operands[1], dims)
    unit = Unit(step, loop.integer("stages"), 1, exact, next(iter(dims)))
    tiles: dict[tuple[Op, str], Staged] = {}
    size = 0
    for load in loads:
        tile = FragmentTile(state, unit, size, load, *offsets[load])
        tiles[load, "tile"] = tile
        size = -(-(size + tile.size) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
    return Pipeline(state, loop, unit, tiles, size, state.allocate_shared(size * unit.slots, loop))


def _ends_at(stop: Op, dims: set[str]) -> bool:
    """Whether a loop's end is the size of one of the dims."""
    return stop.kind == "dimension" and stop.array is not None and stop.array.dims[stop.integer("axis")] in dims


def _check_load(state: State, loop: Op, load: Op) -> None:
    """Raises for a load of codes that a digit kernel cannot make."""
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
    tile_k, step = BASES[fmt.digits].tile_k, loop.integer("step")
    per_tile = load.shape[0] // row_tiles(fmt, load.shape[0])
    problems = {
        f"bk {load.shape[1]} is no multiple of the {tile_k} k of a stored tile": load.shape[1] % tile_k,
        f"the loop's step {step} is not bk {load.shape[1]}": step != load.shape[1],
        f"the loop's start is no multiple of bk {load.shape[1]}": divisor(loop.operands[0]) % load.shape[1],
        "the loop may start below k = 0": not non_negative(loop.operands[0]),
        f"the first row of the tile is no multiple of {per_tile}": divisor(row) % per_tile,
    }
    for problem, holds in problems.items():
        if holds:
            raise LowbitvmError("TILE_INVALID", problem, "choose such a tile", load.location)


class DigitDot:
    """The emission of one `dot` of codes into accumulators, in the register order of `digit_layout`."""

    def __init__(self, state: State, pipeline: Pipeline, op: Op) -> None:
        activations, weights = (pipeline.tiles[load, "tile"] for load in (op.operands[0], op.operands[1].operands[0]))
        assert isinstance(activations, FragmentTile) and isinstance(weights, FragmentTile)
        assert weights.format.digits is not None
        self.state, self.pipeline, self.alone = state, pipeline, False
        self.activations, self.weights, self.base = activations, weights, BASES[weights.format.digits]
        self.left, self.right = format_digits(weights.format), format_digits(activations.format)
        signs = ["s8" if side.signed else "u8" for side in (self.left, self.right)]
        self.atom = digit_atom(state.target, self.base.name, *signs)
        self.each = columns_per_row(activations.format.code, self.base.name)
        self.columns, self.row_tiles = activations.row_tiles, weights.row_tiles // state.warps
        b = state.builder
        self.lane = b.op("and.b32", "r", state.tid, 31)
        warp = b.op("shr.u32", "r", state.tid, 5)
        first = b.op("mad.lo.s32", "r", warp, self.row_tiles * weights.row_bytes, state.smem)
        widths = (4,) * weights.format.bits if self.base.name == "b1" else blocks(weights.format.bits)
        self.vectors = widths  # words of each vector load of a lane in a tile of weights
        self.weight_bases = {w: b.op("mad.lo.s32", "r", self.lane, 4 * w, first) for w in dict.fromkeys(widths)}
        self.activation_base = b.op("mad.lo.s32", "r", self.lane, 4 * ACTIVATION_WORDS, state.smem)
        self.zero = b.op("mov.b32", "r", 0)
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
        self._clear()
        self._multiply()
        self._combine(accumulators)

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
        """Emits the MMAs of the current slot."""
        for tile in range(self.weights.k_tiles):
            weights = [self._weight_fragments(t, tile) for t in range(self.row_tiles)]
            for j in range(self.columns):
                for step, pair in enumerate(self._activation_fragments(j, tile)):
                    for t, fragments in enumerate(weights):
                        for sums, fragment in zip(self.sums[t][j], fragments[step], strict=True):
                            self._mma(sums, fragment, pair)
                    if self.atom.xor:
                        self._mma(self.activation_counts[j], [self.zero] * 4, pair)
            if self.atom.xor:
                for counts, fragments in zip(self.weight_counts, weights, strict=True):
                    for count, fragment in zip(counts, fragments[0], strict=True):
                        self._mma(count, fragment, [self.zero] * 2)

    def _weight_fragments(self, t: int, tile: int) -> list[list[list[str]]]:
        """Per k step of a stored tile and plane: the four registers of the m16 side."""
        b = self.state.builder
        place = self.pipeline.slot + self.weights.offset + t * self.weights.row_bytes + tile * self.weights.tile_bytes
        words: list[list[str]] = []
        for width in self.vectors:
            words.append([b.register("r") for _ in range(width)])
            name = f"ld.shared{vector_suffix(words[-1])}.b32"
            b.do(name, vector(words[-1]), memory(self.weight_bases[width], place))
            place += 32 * 4 * width
        if self.base.name == "b1":
            return [words]
        wide = self._widened([word for part in words for word in part])
        return [[wide[:4]], [wide[4:]]]

    def _widened(self, words: list[str]) -> list[str]:
        """A lane's quads, one code per byte."""
        b = self.state.builder
        if len(words) == 8:
            return words
        found = []
        for runs in quads(len(words)):
            quad = ""
            for run in runs:
                word, distance = words[run.word], run.position - run.bit
                if distance:
                    word = b.op("shr.u32" if distance > 0 else "shl.b32", "r", word, abs(distance))
                mask = (((1 << run.length) - 1) << run.bit) * BYTES
                quad = b.op("lop3.b32", "r", word, mask, quad, AND_OR) if quad else b.op("and.b32", "r", word, mask)
            found.append(quad)
        return found

    def _activation_fragments(self, j: int, tile: int) -> list[list[str]]:
        """Per k step of a stored tile: the two registers of the n8 side."""
        part, b = self.activations, self.state.builder
        words = [b.register("r") for _ in range(ACTIVATION_WORDS)]
        place = self.pipeline.slot + part.offset + j * part.row_bytes + tile * part.tile_bytes
        b.do(f"ld.shared{vector_suffix(words)}.b32", vector(words), memory(self.activation_base, place))
        return [words[i : i + 2] for i in range(0, len(words), 2)]

    def _mma(self, sums: list[str], weights: list[str], activations: list[str]) -> None:
        """Emits sums += the products of one k step."""
        parts = [(sums, weights, activations)]
        if self.atom.split:  # register r of the weights: rows 8 (r & 1), half r >> 1 of k
            parts = [(sums[2 * (r & 1) :][:2], [weights[r]], [activations[r >> 1]]) for r in range(4)]
        for d, a, b in parts:
            operands = (f"{{{', '.join(registers)}}}" for registers in (d, a, b, d))
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
        registers = iter(accumulators)
        for t in range(self.row_tiles):
            for j in range(self.columns):
                values = [self._over_weights(t, j, i) for i in range(4)]
                for low, high in (values[:2], values[2:]):
                    parts = [[low], [high]] if self.each == 1 else [[low, high]]
                    for columns in parts:
                        total = self._over_columns(columns)
                        register = next(registers)
                        self.state.builder.do("add.s32", register, register, total)

    def _over_weights(self, t: int, j: int, i: int) -> str:
        """The sum over the weights' digits at register i of the n8 tile j and the row tile t."""
        b, total = self.state.builder, ""
        for plane, coefficient in enumerate(self.left.coefficients):
            value = self.sums[t][j][plane][i]
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
