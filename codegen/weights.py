"""Tiles of a packed weight in shared memory: its codes, and the scales and zeros of its groups."""

import functools

from lowbitvm.chunk import blocks
from lowbitvm.codegen.ptx import Operand, memory, vector
from lowbitvm.codegen.staging import PIECE, Piece, Staged, Unit, ceil_div, shift_right
from lowbitvm.codegen.state import State, size_bytes
from lowbitvm.dtypes import DType, f32
from lowbitvm.formats import Format
from lowbitvm.ir import Array, Op

CHUNK_K = 64  # in_features of one packed tile of 16 out_features


class Words(Staged):
    """Packed codes of a (bn, k) tile, of which every warp has row tiles of its own."""

    def __init__(self, state: State, unit: Unit, offset: int, load: Op, row: Operand) -> None:
        super().__init__(state, unit, offset)
        assert load.array is not None and isinstance(load.array.element, Format)
        self.bits = load.array.element.bits
        self.tile_bytes = 128 * self.bits  # of 16 x 64 codes
        self.row_tiles, self.k_tiles = load.shape[0] // 16 // state.warps, unit.k // CHUNK_K
        self.row_bytes = self.k_tiles * self.tile_bytes  # contiguous, in global memory too
        self.distance = self.row_bytes
        b = state.builder
        self.lane = b.op("and.b32", "r", state.tid, 31)
        self.warp = b.op("shr.u32", "r", state.tid, 5)
        self.warp_tile = state.scalar("add", shift_right(state, row, 4), state.scalar("mul", self.warp, self.row_tiles))
        self.row_count = ceil_div(state, state.size(load.array.dims[0]), 16)

    def address(self, load: Op, row_tile: Operand, start: Operand) -> str:
        """The address of a row tile's codes from k = `start` on."""
        assert load.array is not None
        state, b = self.state, self.state.builder
        tile = b.op("mul.wide.s32", "rd", row_tile, ceil_div(state, state.size(load.array.dims[1]), CHUNK_K))
        if start != 0:
            tile = b.op("mad.wide.s32", "rd", shift_right(state, start, 6), 1, tile)
        return b.op("mad.lo.s64", "rd", tile, self.tile_bytes, state.pointer(load.array, "words"))

    def words(self, slot: int, t: int, j: int) -> list[str]:
        """The registers of the lane's words of row tile t, k tile j, in the unit that is in use."""
        raise NotImplementedError


class WordTile(Words):
    """Packed codes in shared memory: each warp copies, and later reads, the words of its own 16 x 64 tiles."""

    def __init__(self, state: State, unit: Unit, offset: int, load: Op, row: Operand, start: Operand) -> None:
        super().__init__(state, unit, offset, load, row)
        assert load.array is not None
        warp_bytes = self.row_tiles * self.row_bytes
        self.size = warp_bytes * state.warps
        b = state.builder
        self.warp_base = b.op("mad.lo.s32", "r", self.warp, warp_bytes, state.smem)
        # The lanes share out the row tiles, so that each needs one pointer only.
        lanes = max(1, 32 // self.row_tiles)
        chunk = b.op("and.b32", "r", self.lane, lanes - 1) if lanes < 32 else self.lane
        t = b.op("shr.u32", "r", self.lane, lanes.bit_length() - 1) if lanes < 32 else 0
        base = b.op("mad.lo.s32", "r", chunk, PIECE, self.warp_base)
        base = str(state.scalar("add", base, state.scalar("mul", t, self.row_bytes)))
        for first in range(0, self.row_tiles, 32):
            index = state.scalar("add", self.warp_tile, state.scalar("add", t, first))
            pointer = self.centred(b.op("mad.wide.u32", "rd", chunk, PIECE, self.address(load, index, start)))
            alike = unit.exact or self.k_tiles == 1  # all pieces of a row tile are inside together
            for shift in range(0, self.row_bytes // PIECE, lanes):
                active = self.fewer(self.row_bytes // PIECE - shift, lanes, chunk)
                if shift == 0 or not alike:
                    k = functools.partial(self._k_limit, load, chunk, shift)
                    outside, limit = self.inside(k, index, self.row_count)
                place = first * self.row_bytes + shift * PIECE
                self.pieces.append(Piece(pointer, shift * PIECE, base, place, outside, limit, active))

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
        """Per vector width the lane's address in a block of such vectors, at the start of the tiles that it decodes."""
        b, base = self.state.builder, self.warp_base
        if self.state.held:
            warp = b.op("shr.u32", "r", self.warp, self.state.warps_m.bit_length() - 1)
            step = self.row_bytes * self.row_tiles * self.state.warps_m
            base = b.op("mad.lo.s32", "r", warp, step, self.state.smem)
        return {w: b.op("mad.lo.s32", "r", self.lane, 4 * w, base) for w in dict.fromkeys(blocks(self.bits))}

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


class Rows(Staged):
    """Numbers of a (bn, k) tile of which each group of k has one row of all out_features.

    part: one of `Format.parts`, an array [rows, ceil(N/16), 8, 2] of `stored` bytes each. group: the k of a row, None
    where all of k has one. A unit meets `segments` rows. n_warps share out the features; without: those that do for the
    accumulators.
    """

    def __init__(
        self,
        state: State,
        unit: Unit,
        offset: int,
        load: Op,
        part: str,
        stored: int,
        group: int | str | None,
        n_warps: int = 0,
    ) -> None:
        super().__init__(state, unit, offset)
        assert load.array is not None
        self.array, self.part, self.stored = load.array, part, stored
        self.n_warps, self.every = n_warps or state.warps // state.warps_m, unit.period
        self.row_tiles = load.shape[0] // 16 // self.n_warps
        self.group = group if isinstance(group, int) else None
        if unit.together > 1 and unit.aligned and self.group and self.group % (unit.together * unit.k) == 0:
            self.every = unit.together  # all of them are in one group
        self.segments = max(1, unit.span // self.group) if self.group else 1
        self.step = ""  # bytes from one unit's rows to the next's, where it has rows of its own
        self.row_count = ceil_div(state, state.size(load.array.dims[0]), 16)
        self.pitch = state.builder.op("mul.lo.s32", "r", self.row_count, 16 * stored)

    def add_piece(self, address: str, segment: Operand, tile: Operand, start: Operand, piece: Piece) -> None:
        """Adds a piece from `address` in the row of the first segment; `tile` is its tile of 16 out_features."""
        b = self.state.builder
        if segment != 0:
            address = b.op("mad.wide.s32", "rd", segment, self.pitch, address)
        if self.group is not None and self.group <= self.unit.span:
            address = self._before(address, start)
        limit = functools.partial(self._k_limit, self.state.size(self.array.dims[1]), segment)
        piece.outside, piece.limit = self.inside(limit, tile, self.row_count)
        piece.pointer = address
        self.pieces.append(piece)

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


class GroupRows(Rows):
    """Scales, zeros or both of a (bn, k) tile, or their second levels, of `dtype` as they are read.

    A lane needs the numbers of rows g and g + 8 of its warp's row tiles. They are copied pair by pair, so that they lie
    as they are read: [warp][g][row tile][part][2 numbers], one load for all.
    """

    def __init__(
        self, state: State, unit: Unit, offset: int, load: Op, row: Operand, start: Operand, parts: tuple[str, ...]
    ) -> None:
        assert load.array is not None and isinstance(load.array.element, Format)
        fmt = load.array.element
        group = fmt.outer if parts[0] == "outer" else fmt.group
        super().__init__(state, unit, offset, load, parts[0], part_bytes(fmt, parts[0]), group)
        self._measure(part_dtype(fmt, parts[0]), parts)
        self._add_pieces(row, start)
        self.base = self.base_of(self.n_warps, self.row_tiles)

    def _measure(self, dtype: DType, parts: tuple[str, ...]) -> None:
        self.dtype, self.parts, self.element = dtype, parts, size_bytes(dtype)
        self.lane_bytes = self.row_tiles * len(parts) * 2 * self.element
        self.warp_bytes = 8 * self.lane_bytes
        self.row_bytes = self.n_warps * self.warp_bytes
        self.size = self.segments * self.row_bytes

    def base_of(self, warps: int, row_tiles: int) -> str:
        """The register of the lane's address in slot 0 of its numbers of its warp's first row tile.

        `row_tiles` are those of each of so many `warps`, or of all of neighbouring ones together.
        """
        lane = [0, 0, *(self.lane_bytes << i for i in range(3))]  # lane = 4 g + q
        warp = [self.tile_place(row_tiles << i) for i in range(warps.bit_length() - 1)]
        alike = self.state.warps.bit_length() - warps.bit_length()
        return self.state.shared_address(lane + [0] * alike + warp)

    def place(self, part: str, t: int, segment: int) -> int:
        """Bytes from `base_of` to the pair of a part, in a warp's t-th row tile and the period's segment."""
        return self.offset + segment * self.row_bytes + self.tile_place(t) + self.parts.index(part) * 2 * self.element

    def tile_place(self, number: int) -> int:
        """Bytes from the numbers of the block's first row tile to those of its `number`-th."""
        warp, tile = divmod(number, self.row_tiles)
        return warp * self.warp_bytes + tile * len(self.parts) * 2 * self.element

    def _add_pieces(self, row: Operand, start: Operand) -> None:
        state, b = self.state, self.state.builder
        first = self._first(row)
        base = b.op("mad.lo.s32", "r", state.tid, 2 * self.element, state.smem)
        pieces = self.size // (2 * self.element)
        for i in range(-(-pieces // state.threads)):
            active = self.fewer(pieces - i * state.threads, state.threads, state.tid)
            number = state.scalar("add", state.tid, i * state.threads)
            segment = b.op("shr.u32", "r", number, (pieces // self.segments).bit_length() - 1)
            tile = state.scalar("add", shift_right(state, row, 4), self._linear(number, tile=1))
            address = b.op("mad.wide.u32", "rd", self._linear(number, tile=16, g=2), self.element, first)
            place = i * state.threads * 2 * self.element
            piece = Piece("", 0, base, place, "", active=active, bytes=2 * self.element)
            self.add_piece(address, segment, tile, start, piece)

    def _first(self, row: Operand) -> str:
        """The address of the thread's part at out_feature `row`."""
        state, b = self.state, self.state.builder
        pointer = state.pointer(self.array, self.parts[0])
        if len(self.parts) == 2:
            odd = b.op("setp.ne.s32", "p", b.op("and.b32", "r", state.tid, 1), 0)
            pointer = b.op("selp.b64", "rd", state.pointer(self.array, self.parts[1]), pointer, odd)
        return b.op("mad.wide.s32", "rd", row, self.element, pointer)

    def _linear(self, number: Operand, tile: int, g: int = 0) -> str:
        """tile * (row tile) + g * (row) of the piece `number`, whose bits are [segment][warp][g][row tile][part]."""
        count = self.row_tiles.bit_length() - 1
        images = [0] * (len(self.parts) - 1) + [tile << i for i in range(count)] + [g << i for i in range(3)]
        images += [tile << count + i for i in range(self.n_warps.bit_length() - 1)]
        return str(self.state.linear(str(number), images))

    def load(self, slot: int, k: int) -> list[dict[str, list[str]]]:
        """Emits the loads of all numbers that the lane needs for the period's k-th in_feature.

        Per row tile and part: one register with a pair of 16-bit numbers, or two f32 registers.
        """
        registers = self.load_row(slot + self.offset + k * self.segments // self.unit.span * self.row_bytes)
        each = self.element // 2  # registers of a pair
        pairs = [registers[i : i + each] for i in range(0, len(registers), each)]
        return [dict(zip(self.parts, pairs[i:], strict=False)) for i in range(0, len(pairs), len(self.parts))]

    def load_row(self, place: int) -> list[str]:
        """Emits the loads of the lane's numbers, `place` bytes behind the lane's first."""
        b, kind = self.state.builder, "f" if self.element == 4 else "r"
        registers: list[str] = []
        while 4 * len(registers) < self.lane_bytes:
            taken = [b.register(kind) for _ in range(min(4, self.lane_bytes // 4 - len(registers)))]
            name = f"ld.shared{f'.v{len(taken)}' if len(taken) > 1 else ''}.{kind.replace('r', 'b')}32"
            b.do(name, vector(taken), memory(self.base, place + 4 * len(registers)))
            registers += taken
        return registers


def part_dtype(fmt: Format, part: str) -> DType:
    """What a weight's scales, zeros or second levels are stored as."""
    dtype = {"scales": fmt.scale_dtype, "zeros": fmt.zero_dtype}.get(part, f32)
    assert dtype is not None
    return dtype


def part_bytes(fmt: Format, part: str) -> int:
    """Bytes of one stored number of a weight's scales, zeros or second levels."""
    return size_bytes(part_dtype(fmt, part))


def packed_array(codes: Op) -> tuple[Array, Format]:
    """The packed weight that a load of codes reads."""
    assert codes.array is not None and isinstance(codes.array.element, Format)
    return codes.array, codes.array.element
