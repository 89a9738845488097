"""Stored tiles of codes in digits: in global memory, and on their way to shared memory or to registers."""

import functools
import itertools

from lowbitvm.chunk import blocks
from lowbitvm.codegen.ptx import Operand, memory, vector, vector_suffix
from lowbitvm.codegen.staging import PIECE, Piece, Staged, Unit, ceil_div, shift_right
from lowbitvm.codegen.state import State, non_negative
from lowbitvm.formats import Format
from lowbitvm.integers import digit_words, row_tiles, skipped_words, tile_k, tile_words
from lowbitvm.ir import Op

PIECES = (PIECE, 8, 4)  # bytes of a copy: the most of which every thread makes as many


def source_format(load: Op) -> Format:
    """The format of the codes that a load reads."""
    assert load.array is not None and isinstance(load.array.element, Format)
    return load.array.element


class FragmentTile(Staged):
    """Stored tiles in shared memory as in global memory: [row tile][k tile][words], without planes that are skipped.

    Each row tile has its share of the threads, so that a thread's pieces have one pointer and one predicate.
    """

    def __init__(self, state: State, unit: Unit, offset: int, load: Op, row: Operand, start: Operand) -> None:
        super().__init__(state, unit, offset)
        stored = self.stored = StoredTiles(state, load, row, start)
        tiles, self.tile_bytes = unit.k // stored.k, stored.bytes - stored.skipped
        self.distance, self.row_bytes = tiles * stored.bytes, tiles * self.tile_bytes
        self.size = stored.rows * self.row_bytes
        b = state.builder
        warp, warps_n = b.op("shr.u32", "r", state.tid, 5), state.warps // state.warps_m
        first = state.smem
        if stored.format.act is not None:
            readers = state.warps if unit.lead else warps_n  # of its own row tiles
            part = b.op("and.b32", "r", warp, readers - 1) if readers < state.warps else warp
            first = str(state.scalar("add", first, state.scalar("mul", part, stored.rows // readers * self.row_bytes)))
        elif state.warps_m > 1:
            part = b.op("shr.u32", "r", warp, warps_n.bit_length() - 1)
            share = stored.rows // state.warps_m * self.row_bytes
            first = str(state.scalar("add", first, state.scalar("mul", part, share)))
        lane = b.op("and.b32", "r", state.tid, 31)
        self.bases = {w: b.op("mad.lo.s32", "r", lane, 4 * w, first) for w in dict.fromkeys(stored.vectors)}
        threads = max(1, state.threads // stored.rows)  # of a row tile
        within = b.op("and.b32", "r", state.tid, threads - 1)
        row_tile = b.op("shr.u32", "r", state.tid, threads.bit_length() - 1)
        runs = tiles if stored.skipped else 1  # of pieces that lie side by side
        bytes_of_run = self.row_bytes // runs
        self.piece = next((size for size in PIECES if bytes_of_run % (size * threads) == 0), PIECE)
        for number in range(0, stored.rows, state.threads):
            tile = state.scalar("add", row_tile, number)
            exists = self.fewer(stored.rows - number, state.threads // threads, row_tile)
            index = state.scalar("add", stored.first, tile)
            address = self.centred(b.op("mad.wide.u32", "rd", within, self.piece, stored.address(index)))
            place = b.op("mad.lo.s32", "r", within, self.piece, state.smem)
            place = b.op("mad.lo.s32", "r", tile, self.row_bytes, place)
            pieces = bytes_of_run // self.piece
            for run, shift in itertools.product(range(runs), range(0, pieces, threads)):
                if (run, shift) == (0, 0) or not unit.exact:
                    k = functools.partial(self._k_limit, within, run * pieces + shift)
                    outside, limit = self.inside(k, index, stored.count)
                active = self.fewer(pieces - shift, threads, within)
                assert exists is None or active is None
                source = shift * self.piece + run * stored.bytes + stored.skipped
                target = shift * self.piece + run * bytes_of_run
                where = address, source, place, target
                self.pieces.append(Piece(*where, outside, limit, active or exists, self.piece))

    def _k_limit(self, within: str, shift: int) -> Operand:
        """The k below which a unit must begin for the piece `within` + `shift` of a row tile to exist."""
        if self.row_bytes == self.tile_bytes:
            return self.stored.columns
        piece = self.state.scalar("add", within, shift)
        tile = self.state.builder.op("div.u32", "r", piece, self.tile_bytes // self.piece)
        return self.state.scalar("sub", self.stored.columns, self.state.scalar("mul", tile, self.stored.k))

    def words(self, slot: int, row: int, tile: int) -> list[str]:
        """Emits the loads of the lane's words of one stored tile of a slot."""
        b = self.state.builder
        place = slot + self.offset + row * self.row_bytes + tile * self.tile_bytes
        words: list[str] = []
        for width in self.stored.vectors:
            registers = [b.register("r") for _ in range(width)]
            b.do(f"ld.shared{vector_suffix(registers)}.b32", vector(registers), memory(self.bases[width], place))
            words += registers
            place += 32 * 4 * width
        return words


class DirectTile(Staged):
    """Stored tiles that each warp loads from global memory to registers: every warp all rows, and its own part of k."""

    def __init__(self, state: State, unit: Unit, load: Op, row: Operand, pipeline_k: str) -> None:
        super().__init__(state, unit, 0)
        stored = self.stored = StoredTiles(state, load, row, pipeline_k)
        self.distance, self.name = unit.k // stored.k * stored.bytes, state.load_name(load.array)
        self.loaded: dict[tuple[int, int], list[str]] = {}  # words of this step, for all dots of the tile
        b = state.builder
        lane = b.op("and.b32", "r", state.tid, 31)
        last = b.op("sub.s32", "r", stored.count, 1)
        self.pointers: list[dict[int, str]] = []  # per row tile and width of vectors; rows outside repeat others
        for number in range(stored.rows):
            index = state.scalar("add", stored.first, number)
            index = index if non_negative(load.operands[0]) else state.scalar("max", index, 0)
            index = state.scalar("min", index, last)
            address = stored.address(index)
            widths = dict.fromkeys(stored.vectors)
            self.pointers.append({w: b.op("mad.wide.u32", "rd", lane, 4 * w, address) for w in widths})

    def beyond(self, number: int) -> str:
        """Emits the predicate: the row tile is not in the array, its codes are zeros."""
        index = self.state.scalar("add", self.stored.first, number)
        if isinstance(index, int):
            index = self.state.builder.op("mov.b32", "r", index)
        return self.state.builder.op("setp.ge.u32", "p", index, self.stored.count)

    def words(self, left: str, row: int, tile: int) -> list[str]:
        """A lane's words of one stored tile, which the first call of a step loads."""
        if (row, tile) not in self.loaded:
            self.loaded[row, tile] = self._load(left, row, tile)
        return self.loaded[row, tile]

    def _load(self, left: str, row: int, tile: int) -> list[str]:
        """Emits the loads of the words; zeros where no more than tile * k is `left` of k."""
        b, place = self.state.builder, tile * self.stored.bytes + self.stored.skipped
        words: list[str] = []
        inside = None if self.unit.exact else b.op("setp.gt.s32", "p", left, tile * self.stored.k)
        for width in self.stored.vectors:
            registers = [b.register("r") if inside is None else b.op("mov.b32", "r", 0) for _ in range(width)]
            name = f"{self.name}{vector_suffix(registers)}.b32"
            b.do(name, vector(registers), memory(self.pointers[row][width], place), when=inside)
            words += registers
            place += 32 * 4 * width
        return words

    def advance(self) -> None:
        for pointer in (pointer for widths in self.pointers for pointer in widths.values()):
            self.state.builder.do("add.s64", pointer, pointer, self.distance)


class StoredTiles:
    """The stored tiles of a matrix of codes that a load reads: where they lie in global memory."""

    def __init__(self, state: State, load: Op, row: Operand, start: Operand) -> None:
        assert load.array is not None
        fmt = self.format = source_format(load)
        self.state, self.bytes, self.k = state, 4 * tile_words(fmt), tile_k(fmt)
        self.skipped = 4 * skipped_words(fmt)  # bytes at the start of a stored tile
        self.rows = row_tiles(fmt, load.shape[0])  # of tiles
        self.vectors = [width for count in digit_words(fmt) for width in blocks(count)]  # words of a lane's loads
        b = state.builder
        per_tile = load.shape[0] // self.rows
        rows, self.columns = (state.size(dim) for dim in load.array.dims)
        self.count = ceil_div(state, rows, per_tile) if per_tile > 1 else rows
        self.first = shift_right(state, row, per_tile.bit_length() - 1) if per_tile > 1 else row
        self.pitch = b.op("mul.wide.u32", "rd", ceil_div(state, self.columns, self.k), self.bytes)
        self.origin = state.pointer(load.array, "words")
        if start != 0:
            tile = shift_right(state, start, self.k.bit_length() - 1)
            self.origin = b.op("mad.wide.u32", "rd", tile, self.bytes, self.origin)

    def address(self, index: Operand) -> str:
        """The address of a row tile at the loop's start."""
        b = self.state.builder
        return b.op("mad.lo.s64", "rd", b.op("cvt.s64.s32", "rd", index), self.pitch, self.origin)
