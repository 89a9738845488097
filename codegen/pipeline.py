"""The software pipeline of a loop: tiles that feed a `dot` are copied to shared memory some units ahead.

A unit is what one wait, one barrier and one set of copies serve: one or more steps of the loop, up to UNIT_K of k. The
units of an iteration are unrolled, one per slot of shared memory, so that every address inside the loop is a register
that changes once per iteration, or never, plus a constant. Every staged tile is cut into 16-byte pieces; each thread
copies the same few pieces of every unit with cp.async. One barrier per unit serves both directions: after it, the
copies of this unit are visible, and the slot read in the previous unit may be overwritten. Where the target has no
cp.async, a unit's pieces go through registers, all loads before all stores.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import or_, xor

from lowbitvm import dtypes
from lowbitvm.chunk import blocks
from lowbitvm.codegen.ptx import Operand, memory, vector, vector_suffix
from lowbitvm.codegen.state import State, divisor, invariant, non_negative, size_bytes
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.ir import Array, Op
from lowbitvm.layout import Layout

PIECE = 16  # bytes of one cp.async
CHUNK_K = 64  # in_features of one packed tile of 16 out_features
UNIT_K = 128  # k that is summed before the scales are applied, where the groups allow it
MOST_ACCUMULATORS = 32  # per thread, that leave registers for the fragments of UNIT_K
SCALE_BITS = 1  # at most, of scales and zero points per code: two of 32 bits in groups of 64, the least that is merged
SCALES = ("f16", "bf16", "f32")
NEVER = -(2**31)  # the limit of pieces outside the array
SWIZZLE_BITS = 3  # the eight rows of an 8 x 8 matrix go to eight different 16-byte columns of the banks
ROW_CHUNKS = 8  # pieces of a row that neighbouring threads copy: 128 contiguous bytes
SLOT_ALIGNMENT = 128


@dataclass(frozen=True)
class Unit:
    """How a loop's steps are taken together.

    dimension: the array dimension along k. exact: all of k that a fetched unit covers exists, so that pieces need no
    limits along k; units beyond the last are not fetched. together: units that one wait, barrier and group of copies
    serve.
    """

    k: int
    slots: int
    together: int
    exact: bool
    dimension: str

    @property
    def ahead(self) -> int:
        """Units from one that is waited for to the first that is fetched then."""
        return self.slots - self.together


@dataclass
class Piece:
    """One copy per thread and unit."""

    pointer: str
    pointer_offset: int
    base: str  # register: the thread's address in slot 0
    offset: int
    outside: str  # exact units: a predicate, the piece's row is not in the array
    limit: str = ""  # others: the piece is inside the array while the unit's k < limit, and zeros from then on
    active: str | None = None  # predicate: threads that have this piece at all
    bytes: int = PIECE


@dataclass
class Staged:
    """A tile with one place per slot, `offset` bytes from the slot's start."""

    state: State
    unit: Unit
    offset: int
    size: int = 0
    pieces: list[Piece] = field(default_factory=list)
    distance: int = 0  # bytes from one unit to the next in global memory

    def issue(self, slot: int, number: int, k: str) -> None:
        """Emits the copies of a unit into the slot at byte `slot`.

        The unit is the `number`-th of an iteration, counted on into the next; `k` is the register of its first k, where
        the tile needs that.
        """
        b = self.state.builder
        pointers = {pointer: self.source(pointer, k) for pointer in dict.fromkeys(p.pointer for p in self.pieces)}
        loaded = []
        for piece in self.pieces:
            target = memory(piece.base, slot + self.offset + piece.offset)
            source = memory(pointers[piece.pointer], piece.pointer_offset + self.shift(number))
            outside = piece.outside if self.unit.exact else b.op("setp.ge.s32", "p", k, piece.limit)
            if self.state.target.has_async_copies:
                name = f"cp.async.{'cg' if piece.bytes == PIECE else 'ca'}.shared.global"
                b.do(name, target, source, piece.bytes, outside, when=piece.active)
            else:
                loaded.append((piece, target, self._loaded(piece, source, outside)))
        for piece, target, words in loaded:
            b.do(f"st.shared{vector_suffix(words)}.b32", target, vector(words), when=piece.active)

    def _loaded(self, piece: Piece, source: str, outside: str) -> list[str]:
        """Emits the load of a piece into registers, zeros where it is outside."""
        b = self.state.builder
        words = [b.op("mov.b32", "r", 0) for _ in range(piece.bytes // 4)]
        if piece.active is not None:
            inside = b.op("not.pred", "p", outside)
            outside = b.op("not.pred", "p", b.op("and.pred", "p", inside, piece.active))
        b.do(f"ld.global.nc{vector_suffix(words)}.b32", vector(words), source, when=f"!{outside}")
        return words

    @property
    def needs_k(self) -> bool:
        """Whether `issue` needs the unit's first k."""
        return not self.unit.exact

    def shift(self, number: int) -> int:
        """Bytes from a pointer, at the start of an iteration, to the `number`-th unit.

        The pointers show the middle of what an iteration fetches: a copy has room for 12 bits of offset and their sign.
        """
        return (number - self.unit.ahead) * self.distance - self.middle

    @property
    def middle(self) -> int:
        """Bytes from the first unit that an iteration fetches to where its pointers show."""
        return self.unit.slots * self.distance // 2 // PIECE * PIECE

    def centred(self, pointer: str) -> str:
        """The pointer to the first unit, moved to the middle of what the first iteration fetches."""
        distance = self.unit.ahead * self.distance + self.middle
        return self.state.builder.op("add.s64", "rd", pointer, distance) if distance else pointer

    def source(self, pointer: str, k: str) -> str:
        """The register that a unit's pieces are addressed by."""
        return pointer

    def follow(self) -> None:
        """Emits the move of pointers that move from unit to unit, before a unit is fetched or passed over."""

    def advance(self) -> None:
        """Emits the move of the pointers by one iteration."""
        for pointer in dict.fromkeys(piece.pointer for piece in self.pieces):
            if self.distance:
                self.state.builder.do("add.s64", pointer, pointer, self.unit.slots * self.distance)

    def inside(self, k: Callable[[], Operand], index: Operand, count: str) -> tuple[str, str]:
        """(outside, limit) of a piece whose row or column is `index` of `count`, and which exists below k()."""
        b = self.state.builder
        if self.unit.exact:
            return b.op("setp.ge.u32", "p", index, count), ""
        return "", b.op("selp.b32", "r", k(), NEVER, b.op("setp.lt.u32", "p", index, count))

    def fewer(self, count: int, places: int, place: str) -> str | None:
        """The predicate of threads that have a piece, where `count` pieces are left for `places` threads."""
        return self.state.builder.op("setp.lt.u32", "p", place, count) if count < places else None


class DenseTile(Staged):
    """Rows of 16-bit activations (rows, columns), k along the columns, swizzled: ldmatrix has no bank conflicts."""

    def __init__(self, state: State, unit: Unit, offset: int, load: Op, row: Operand, column: Operand) -> None:
        super().__init__(state, unit, offset)
        assert load.array is not None and isinstance(load.array.element, dtypes.DType)
        self.rows, self.columns = load.shape[0], unit.k
        self.pitch = self.columns * 2  # bytes of a row in shared memory
        self.size, self.distance = self.rows * self.pitch, self.pitch
        self.vectorised = state.program.divisor(load.array.dims[-1]) % 8 == 0
        # Threads share out a row's chunks as far as needed to keep all threads busy, and at least ROW_CHUNKS.
        across = min(self.columns // 8, max(ROW_CHUNKS, state.threads // self.rows))
        down = min(self.rows, state.threads // across)
        b = state.builder
        chunk = b.op("and.b32", "r", state.tid, across - 1)
        first = b.op("shr.u32", "r", state.tid, across.bit_length() - 1)
        chunk = b.op("shl.b32", "r", chunk, 3)
        images = [image["byte"] for image in self.layout.bases["chunk"]]
        by_chunk, chunk_left = images[: across.bit_length() - 1], images[across.bit_length() - 1 :]
        images = [image["byte"] for image in self.layout.bases["row"]]
        by_row, row_left = images[: down.bit_length() - 1], images[down.bit_length() - 1 :]
        self.place = Placement(state, [*by_chunk, *by_row])
        active = self.fewer(across * down, state.threads, state.tid)
        row_count, columns = (state.size(dim) for dim in load.array.dims)
        for i in range(self.rows // down):
            index = state.scalar("add", row, state.scalar("add", first, i * down))
            address = self.centred(self._address(load, index, state.scalar("add", chunk, column)))
            for j in range(self.columns // 8 // across):
                base, place = self.place.of(_select(row_left, i) ^ _select(chunk_left, j))
                if j == 0 or not unit.exact:
                    k = functools.partial(self._k_limit, columns, chunk, across * j)
                    outside, limit = self.inside(k, index, row_count)
                self.pieces.append(Piece(address, 16 * across * j, base, place, outside, limit, active))

    def _address(self, load: Op, index: Operand, column: Operand) -> str:
        """The global address of a row's element at `column`."""
        assert load.array is not None
        b = self.state.builder
        pitch = b.op("mul.wide.s32", "rd", self.state.size(load.array.dims[1]), 2)
        address = b.op("mad.lo.s64", "rd", b.op("cvt.s64.s32", "rd", index), pitch, self.state.pointer(load.array))
        return b.op("mad.wide.s32", "rd", column, 2, address)

    def _k_limit(self, columns: str, first: str, chunk: int) -> Operand:
        """The k below which a unit must begin for the piece to exist that is `chunk` pieces after column `first`."""
        return self.state.scalar("sub", columns, self.state.scalar("add", first, 8 * chunk))

    @functools.cached_property
    def layout(self) -> Layout:
        """(chunk, row) -> byte in shared memory: the 16-byte chunk c of row r lies at chunk c ^ (r mod 8)."""
        chunks = [PIECE << i for i in range((self.columns // 8).bit_length() - 1)]
        swizzle = [*chunks[:SWIZZLE_BITS], *[0] * self.rows.bit_length()]
        rows = [self.pitch << i | swizzle[i] for i in range(self.rows.bit_length() - 1)]
        bases = {"chunk": [(byte,) for byte in chunks], "row": [(byte,) for byte in rows]}
        return Layout(bases, {"byte": (self.size - 1).bit_length()})

    def issue(self, slot: int, number: int, k: str) -> None:
        if self.vectorised:
            super().issue(slot, number, k)
            return
        for piece in self.pieces:
            self._copy_elements(piece, slot, piece.pointer_offset + self.shift(number), k)

    def _copy_elements(self, piece: Piece, slot: int, shift: int, k: str) -> None:
        """Rows that are not 16-byte aligned: eight masked loads and one store, synchronous."""
        b = self.state.builder
        halves = []
        for element in range(8):
            index = b.op("add.s32", "r", k, element)
            inside = b.op("setp.lt.s32", "p", index, piece.limit)
            if piece.active is not None:
                inside = b.op("and.pred", "p", inside, piece.active)
            half = b.op("mov.b16", "h", 0)
            b.do("ld.global.nc.b16", half, memory(piece.pointer, shift + 2 * element), when=inside)
            halves.append(half)
        words = [b.op("mov.b32", "r", vector(list(pair))) for pair in zip(halves[::2], halves[1::2], strict=True)]
        target = memory(piece.base, slot + self.offset + piece.offset)
        b.do("st.shared.v4.b32", target, vector(words), when=piece.active)


class Placement:
    """The threads' addresses in a tile whose bytes are a GF(2)-linear map of the thread and a piece's number."""

    def __init__(self, state: State, by_thread: list[int]) -> None:
        self.state = state
        self.thread = state.linear(state.tid, by_thread)
        self.mask = functools.reduce(or_, by_thread, 0)
        self.bases: dict[int, str] = {}

    def of(self, image: int) -> tuple[str, int]:
        """(register, constant) whose sum is the shared address for a piece whose image is `image`."""
        mixed = image & self.mask  # what must be XORed; the rest can be added
        if mixed not in self.bases:
            b = self.state.builder
            place = b.op("xor.b32", "r", self.thread, mixed) if mixed else self.thread
            self.bases[mixed] = str(self.state.scalar("add", self.state.smem, place))
        return self.bases[mixed], image ^ mixed


class WordTile(Staged):
    """Packed codes of a (bn, k) tile: each warp copies, and later reads, the words of its own 16 x 64 tiles."""

    def __init__(self, state: State, unit: Unit, offset: int, load: Op, row: Operand, start: Operand) -> None:
        super().__init__(state, unit, offset)
        assert load.array is not None and isinstance(load.array.element, Format)
        self.bits = load.array.element.bits
        self.tile_bytes = 128 * self.bits  # of 16 x 64 codes
        self.row_tiles, self.k_tiles = load.shape[0] // 16 // state.warps, unit.k // CHUNK_K
        self.row_bytes = self.k_tiles * self.tile_bytes  # contiguous, in global memory too
        self.distance = self.row_bytes
        warp_bytes = self.row_tiles * self.row_bytes
        self.size = warp_bytes * state.warps
        b = state.builder
        self.lane = b.op("and.b32", "r", state.tid, 31)
        warp = b.op("shr.u32", "r", state.tid, 5)
        self.warp_base = b.op("mad.lo.s32", "r", warp, warp_bytes, state.smem)
        # The lanes share out the row tiles, so that each needs one pointer only.
        lanes = max(1, 32 // self.row_tiles)
        chunk = b.op("and.b32", "r", self.lane, lanes - 1) if lanes < 32 else self.lane
        t = b.op("shr.u32", "r", self.lane, lanes.bit_length() - 1) if lanes < 32 else 0
        base = b.op("mad.lo.s32", "r", chunk, PIECE, self.warp_base)
        base = str(state.scalar("add", base, state.scalar("mul", t, self.row_bytes)))
        warp_tile = state.scalar("add", _shift_right(state, row, 4), state.scalar("mul", warp, self.row_tiles))
        row_count = _ceil_div(state, state.size(load.array.dims[0]), 16)
        for first in range(0, self.row_tiles, 32):
            index = state.scalar("add", warp_tile, state.scalar("add", t, first))
            pointer = self._address(load, index, _shift_right(state, start, 6), chunk)
            alike = unit.exact or self.k_tiles == 1  # all pieces of a row tile are inside together
            for shift in range(0, self.row_bytes // PIECE, lanes):
                active = self.fewer(self.row_bytes // PIECE - shift, lanes, chunk)
                if shift == 0 or not alike:
                    k = functools.partial(self._k_limit, load, chunk, shift)
                    outside, limit = self.inside(k, index, row_count)
                place = first * self.row_bytes + shift * PIECE
                self.pieces.append(Piece(pointer, shift * PIECE, base, place, outside, limit, active))

    def _address(self, load: Op, row_tile: Operand, k_tile: Operand, chunk: Operand) -> str:
        """The pointer to the piece `chunk` of a row tile from `k_tile` on."""
        assert load.array is not None
        state, b = self.state, self.state.builder
        tile = b.op("mul.wide.s32", "rd", row_tile, _ceil_div(state, state.size(load.array.dims[1]), CHUNK_K))
        if k_tile != 0:
            tile = b.op("mad.wide.s32", "rd", k_tile, 1, tile)
        address = b.op("mad.lo.s64", "rd", tile, self.tile_bytes, state.pointer(load.array, "words"))
        return self.centred(b.op("mad.wide.u32", "rd", chunk, PIECE, address))

    def _k_limit(self, load: Op, chunk: Operand, shift: int) -> Operand:
        """The k below which a unit must begin for the piece `chunk` + `shift` of a row tile to exist."""
        assert load.array is not None
        if self.k_tiles == 1:
            return self.state.size(load.array.dims[1])
        state, piece = self.state, self.state.scalar("add", chunk, shift)
        tile = state.builder.op("div.u32", "r", piece, self.tile_bytes // PIECE)
        return state.scalar("sub", state.size(load.array.dims[1]), state.scalar("mul", tile, CHUNK_K))

    @functools.cached_property
    def lane_bases(self) -> dict[int, str]:
        """Per vector width the lane's address in a block of such vectors, at the start of the warp's tiles."""
        b = self.state.builder
        return {w: b.op("mad.lo.s32", "r", self.lane, 4 * w, self.warp_base) for w in dict.fromkeys(blocks(self.bits))}

    def words(self, slot: int, t: int, j: int) -> list[str]:
        """Emits the loads of the lane's words of row tile t, k tile j."""
        b = self.state.builder
        place = slot + self.offset + t * self.row_bytes + j * self.tile_bytes
        words: list[str] = []
        for width in blocks(self.bits):
            registers = [b.register("r") for _ in range(width)]
            suffix = f".v{width}" if width > 1 else ""
            b.do(f"ld.shared{suffix}.b32", vector(registers), memory(self.lane_bases[width], place))
            words += registers
            place += 32 * 4 * width
        return words


class GroupRows(Staged):
    """Scales, zeros or both of a (bn, k) tile: one row per group of k that the unit meets.

    A lane needs the numbers of rows g and g + 8 of its warp's row tiles. They are copied pair by pair, so that they lie
    as they are read: [warp][g][row tile][part][2 numbers], one load for all.
    """

    def __init__(
        self, state: State, unit: Unit, offset: int, load: Op, row: Operand, start: Operand, parts: tuple[str, ...]
    ) -> None:
        super().__init__(state, unit, offset)
        assert load.array is not None and isinstance(load.array.element, Format)
        fmt, self.parts, self.element = load.array.element, parts, part_bytes(load.array.element, parts[0])
        self.row_tiles = load.shape[0] // 16 // state.warps
        self.lane_bytes = self.row_tiles * len(parts) * 2 * self.element
        self.row_bytes = 8 * state.warps * self.lane_bytes
        self.group = fmt.group if isinstance(fmt.group, int) else None
        self.segments = max(1, unit.k // self.group) if self.group else 1
        self.size = self.segments * self.row_bytes
        self.step = ""  # bytes from one unit's rows to the next's, where it has rows of its own
        b = state.builder
        out_features, in_features = (state.size(dim) for dim in load.array.dims)
        self.row_count = _ceil_div(state, out_features, 16)
        self.pitch = b.op("mul.lo.s32", "r", self.row_count, 16 * self.element)
        first = self._first(load, row)
        base = b.op("mad.lo.s32", "r", state.tid, 2 * self.element, state.smem)
        pieces = self.size // (2 * self.element)
        for i in range(-(-pieces // state.threads)):
            active = self.fewer(pieces - i * state.threads, state.threads, state.tid)
            number = state.scalar("add", state.tid, i * state.threads)
            segment = b.op("shr.u32", "r", number, (pieces // self.segments).bit_length() - 1)
            tile = state.scalar("add", _shift_right(state, row, 4), self._linear(number, tile=1))
            address = b.op("mad.wide.u32", "rd", self._linear(number, tile=16, g=2), self.element, first)
            address = b.op("mad.wide.s32", "rd", segment, self.pitch, address)
            if self.group is not None and self.group <= unit.k:
                address = self._before(address, start)
            outside, limit = self.inside(functools.partial(self._k_limit, in_features, segment), tile, self.row_count)
            place = i * state.threads * 2 * self.element
            self.pieces.append(Piece(address, 0, base, place, outside, limit, active, 2 * self.element))
        lane = [0, 0, *(self.lane_bytes << i for i in range(3))]  # lane = 4 g + q
        warp = [8 * self.lane_bytes << i for i in range(state.warps.bit_length() - 1)]
        self.base = str(state.scalar("add", state.smem, state.linear(state.tid, lane + warp)))

    def _first(self, load: Op, row: Operand) -> str:
        """The address of the thread's part at out_feature `row`."""
        assert load.array is not None
        state, b = self.state, self.state.builder
        pointer = state.pointer(load.array, self.parts[0])
        if len(self.parts) == 2:
            odd = b.op("setp.ne.s32", "p", b.op("and.b32", "r", state.tid, 1), 0)
            pointer = b.op("selp.b64", "rd", state.pointer(load.array, self.parts[1]), pointer, odd)
        return b.op("mad.wide.s32", "rd", row, self.element, pointer)

    def _linear(self, number: Operand, tile: int, g: int = 0) -> str:
        """tile * (row tile) + g * (row) of the piece `number`, whose bits are [segment][warp][g][row tile][part]."""
        count = self.row_tiles.bit_length() - 1
        images = [0] * (len(self.parts) - 1) + [tile << i for i in range(count)] + [g << i for i in range(3)]
        images += [tile << count + i for i in range(self.state.warps.bit_length() - 1)]
        return str(self.state.linear(str(number), images))

    def _before(self, address: str, start: Operand) -> str:
        """The address of the row for the k at which the loop starts, less one unit's rows."""
        assert self.group is not None
        b = self.state.builder
        if start != 0:
            address = b.op("mad.wide.s32", "rd", b.op("div.s32", "r", start, self.group), self.pitch, address)
        self.step = self.step or b.op("mul.wide.s32", "rd", self.pitch, self.segments)
        return b.op("sub.s64", "rd", address, self.step)

    def _k_limit(self, in_features: str, segment: Operand) -> Operand:
        """The k below which a unit must begin for the row of its group `segment` to exist."""
        if self.group is None or self.segments == 1:
            return in_features
        return self.state.scalar("sub", in_features, self.state.scalar("mul", segment, self.group))

    @property
    def needs_k(self) -> bool:
        return super().needs_k or (self.group is not None and not self.step)

    def source(self, pointer: str, k: str) -> str:
        b = self.state.builder
        if self.group is not None and not self.step:
            row = b.op("shr.u32", "r", k, self.group.bit_length() - 1)
            return b.op("mad.wide.s32", "rd", row, self.pitch, pointer)
        return pointer

    def follow(self) -> None:
        if self.step:
            for pointer in dict.fromkeys(piece.pointer for piece in self.pieces):
                self.state.builder.do("add.s64", pointer, pointer, self.step)

    def load(self, slot: int, k: int) -> list[dict[str, list[str]]]:
        """Emits the loads of all numbers that the lane needs for the unit's k-th in_feature.

        Per row tile and part: one register with a pair of 16-bit numbers, or two f32 registers.
        """
        b, kind = self.state.builder, "f" if self.element == 4 else "r"
        place = slot + self.offset + k * self.segments // self.unit.k * self.row_bytes
        registers: list[str] = []
        while 4 * len(registers) < self.lane_bytes:
            taken = [b.register(kind) for _ in range(min(4, self.lane_bytes // 4 - len(registers)))]
            name = f"ld.shared{f'.v{len(taken)}' if len(taken) > 1 else ''}.{kind.replace('r', 'b')}32"
            b.do(name, vector(taken), memory(self.base, place + 4 * len(registers)))
            registers += taken
        each = self.element // 2  # registers of a pair
        pairs = [registers[i : i + each] for i in range(0, len(registers), each)]
        return [dict(zip(self.parts, pairs[i:], strict=False)) for i in range(0, len(pairs), len(self.parts))]


def part_bytes(fmt: Format, part: str) -> int:
    """Bytes of one number of a weight's scales or zeros."""
    dtype = fmt.scale_dtype if part == "scales" else fmt.zero_dtype
    assert dtype is not None
    return size_bytes(dtype)


@dataclass
class Pipeline:
    """All staged tiles of one loop, and its slots. `left` is what is left of k from the iteration's start."""

    state: State
    loop: Op
    unit: Unit
    tiles: dict[tuple[Op, str], Staged]
    slot_bytes: int
    base: int  # of slot 0 in shared memory
    slot: int = 0  # where the current unit's tiles lie
    left: str = ""
    ahead: str = ""  # the k of the next unit to fetch, if any tile needs it

    def prologue(self, start: Operand, stop: Operand) -> None:
        """Emits the copies of the first units."""
        b = self.state.builder
        self.left = b.op("mov.b32", "r", stop) if start == 0 else b.op("sub.s32", "r", stop, start)
        if any(tile.needs_k for tile in self.tiles.values()):
            self.ahead = b.op("mov.b32", "r", start)
        if self.state.loop_depth:
            b.do("bar.sync", 0)  # the slots may still be read from the last time this loop ran
        for number in range(0, self.unit.ahead, self.unit.together):
            self._fetch_group(number)

    def _fetch_group(self, number: int) -> None:
        """Emits the copies of the units that one wait serves, of which `number` is the first."""
        for each in range(self.unit.together):
            self._fetch(number + each)
        if self.state.target.has_async_copies:
            self.state.builder.do("cp.async.commit_group")

    def _fetch(self, number: int) -> None:
        """Emits the copies of the unit that is `number` units from the iteration's first."""
        b, unit = self.state.builder, self.unit
        skip = b.label("fetched")
        for tile in self.tiles.values():
            tile.follow()
        if unit.exact:
            b.do("bra.uni", skip, when=b.op("setp.le.s32", "p", self.left, number * unit.k))
        for tile in self.tiles.values():
            tile.issue(self.base + number % unit.slots * self.slot_bytes, number, self.ahead)
        if unit.exact:
            b.place(skip)
        if self.ahead:
            b.do("add.s32", self.ahead, self.ahead, unit.k)

    def begin_unit(self, number: int) -> None:
        """Emits the wait for an iteration's unit and the copies of the unit that takes the free slot."""
        b, unit = self.state.builder, self.unit
        if number % unit.together == 0:
            if self.state.target.has_async_copies:
                b.do("cp.async.wait_group", unit.ahead // unit.together - 1)
            b.do("bar.sync", 0)
            self._fetch_group(number + unit.ahead)
        self.slot = self.base + number * self.slot_bytes

    def end_iteration(self) -> None:
        """Emits the step to the next iteration."""
        for tile in self.tiles.values():
            tile.advance()
        self.state.builder.do("sub.s32", self.left, self.left, self.unit.slots * self.unit.k)

    def drain(self) -> None:
        """Emits the wait for copies of units that were never used; exact units are not fetched beyond the last."""
        if self.state.target.has_async_copies and not self.unit.exact:
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


def build_pipeline(state: State, loop: Op, offsets: "dict[Op, list[Operand]]", pure: bool) -> Pipeline | None:
    """Plans the units of a loop and emits the address arithmetic before it; None when nothing feeds a dot.

    `offsets` are the loads' offsets at the first iteration; pure: the loop does nothing but add dots to tiles. Raises
    KERNEL_UNSUPPORTED, TILE_INVALID and SHARED_MEMORY_EXCEEDED.
    """
    dots = staged_loads(loop)
    if not dots:
        return None
    for _, activations, codes in dots:
        _check_tiles(state, loop, activations, codes)
    unit = _plan_unit(state, loop, [(activations, codes) for _, activations, codes in dots], pure)
    tiles: dict[tuple[Op, str], Staged] = {}
    size = 0

    def add(key: tuple[Op, str], tile: Staged) -> None:
        nonlocal size
        tiles[key] = tile
        size = -(-(size + tile.size) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT

    for _, activations, codes in dots:
        if (activations, "tile") not in tiles:
            add((activations, "tile"), DenseTile(state, unit, size, activations, *offsets[activations]))
        if (codes, "tile") not in tiles:
            row, start = offsets[codes]
            add((codes, "tile"), WordTile(state, unit, size, codes, row, start))
            for parts in _group_parts(packed_array(codes)[1]):
                add((codes, parts[0]), GroupRows(state, unit, size, codes, row, start, parts))
    return Pipeline(state, loop, unit, tiles, size, state.allocate_shared(size * unit.slots, loop))


def _group_parts(fmt: Format) -> list[tuple[str, ...]]:
    """Which parts of a weight are copied together: scales and zeros, where they are of one size."""
    if fmt.zero is None:
        return [("scales",)]
    one_size = part_bytes(fmt, "scales") == part_bytes(fmt, "zeros")
    return [("scales", "zeros")] if one_size else [("scales",), ("zeros",)]


def _plan_unit(state: State, loop: Op, loads: list[tuple[Op, Op]], pure: bool) -> Unit:
    """Takes steps together up to UNIT_K, where it saves additions of scaled products to the accumulators.

    For that the loop must be `pure`, end where the arrays do, and leave registers for the fragments; two such units
    must fit the target's shared memory.
    """
    step, stages = loop.integer("step"), loop.integer("stages")
    start, stop = loop.operands
    dims = {load.array.dims[1] for pair in loads for load in pair if load.array is not None}
    whole = len(dims) == 1 and _ends_at(stop, next(iter(dims)))
    groups = [packed_array(codes)[1].group for _, codes in loads]
    known = [group for group in groups if isinstance(group, int)]
    roomy = sum(a.shape[0] * codes.shape[0] for a, codes in loads) <= MOST_ACCUMULATORS * state.threads
    bits = sum(16 * a.shape[0] + (packed_array(codes)[1].bits + SCALE_BITS) * codes.shape[0] for a, codes in loads)
    fits = 2 * bits * UNIT_K // 8 <= state.target.shared_per_block
    merges = pure and whole and roomy and fits and divisor(start) % UNIT_K == 0 and all(group > step for group in known)
    taken = max(1, UNIT_K // step) if merges else 1
    k = step * taken
    exact = whole and divisor(start) % k == 0 and math.lcm(state.program.divisor(next(iter(dims))), *known) % k == 0
    vectorised = all(state.program.divisor(dim) % 8 == 0 for dim in dims)
    slots = max(2, -(-stages // taken))
    together = 2 if merges and slots >= 4 and slots % 2 == 0 else 1
    return Unit(k, slots, together, exact and vectorised, dims.pop())


def _ends_at(stop: Op, dim: str) -> bool:
    """Whether a loop's end is the size `dim`, or the smaller of it and a multiple of UNIT_K."""
    if stop.kind == "min":
        return any(_ends_at(a, dim) and divisor(b) % UNIT_K == 0 for a, b in (stop.operands, stop.operands[::-1]))
    return stop.kind == "dimension" and stop.array is not None and stop.array.dims[stop.integer("axis")] == dim


def _check_tiles(state: State, loop: Op, activations: Op, codes: Op) -> None:
    bn, bk = codes.shape
    step = loop.integer("step")
    for load in (activations, codes):
        row, column = load.operands
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


def packed_array(codes: Op) -> tuple[Array, Format]:
    """The packed weight that a load of codes reads. Raises FORMAT_UNSUPPORTED for what no kernel reads yet."""
    assert codes.array is not None and isinstance(codes.array.element, Format)
    fmt = codes.array.element
    for part, value, holds, fix in (
        ("codebooks", fmt.dtype, fmt.code.kind == "table", f'use "u{fmt.bits}"'),
        ("scales", fmt.scale, fmt.scale not in SCALES, f"use {', '.join(SCALES)}"),
        ("outer scales", fmt.outer, fmt.outer is not None, "fold them into scales of f32"),
    ):
        if holds:
            raise LowbitvmError("FORMAT_UNSUPPORTED", f"no kernel reads {part} of {value}", fix, codes.location)
    return codes.array, fmt


def _shift_right(state: State, value: Operand, bits: int) -> Operand:
    return value >> bits if isinstance(value, int) else state.builder.op("shr.u32", "r", value, bits)


def _ceil_div(state: State, register: str, power: int) -> str:
    """(register + power - 1) / power of a runtime size."""
    raised = state.builder.op("add.s32", "r", register, power - 1)
    return state.builder.op("shr.u32", "r", raised, power.bit_length() - 1)


def _select(images: list[int], number: int) -> int:
    """The XOR of images[i] over the set bits i of a number."""
    return functools.reduce(xor, (image for bit, image in enumerate(images) if number >> bit & 1), 0)
