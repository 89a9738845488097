"""Codebooks of a loop's weights, and the decode by them.

Fixed tables and those of a tensor or of 16 out_features are written to shared memory before the loop, repeated so that
a code or several are one load without bank conflicts. Those of groups are copied as they are: with the codes, or before
the loop where all of k is one group. Where these are too large, every code is a load from global memory.
"""

import abc
import functools
import itertools
from collections.abc import Callable, Iterable

import numpy as np

from lowbitvm.codegen.convert import TableDecoder, byte_indices
from lowbitvm.codegen.ptx import Operand, memory, vector, vector_suffix
from lowbitvm.codegen.staging import PIECE, Piece, Unit, ceil_div, shift_right
from lowbitvm.codegen.state import State
from lowbitvm.codegen.weights import CHUNK_K, Rows, packed_array
from lowbitvm.formats import BLOCK
from lowbitvm.ir import Op


def table_key(load: Op) -> object:
    """What the tables of a load of codes belong to."""
    array, fmt = packed_array(load)
    return {None: fmt.dtype, "tensor": array}.get(fmt.table, load)


def table_count(loads: Iterable[Op]) -> int:
    """How many tables the weights of a loop need in shared memory."""
    return sum({table_key(load): _tables(load) for load in loads}.values())


def _tables(load: Op) -> int:
    """The tables in shared memory that a load of codes needs."""
    fmt = packed_array(load)[1]
    if fmt.code.kind != "table" or fmt.table == "group":
        return 0
    return load.shape[0] // BLOCK if fmt.table == "block" else 1


class SharedTables:
    """A weight's table, or those of its row tiles, in shared memory.

    Made before the loop; the loop's first barrier lets all threads see it.
    """

    def __init__(self, state: State, load: Op, decoder: TableDecoder) -> None:
        self.state, self.load, self.decoder = state, load, decoder
        self.array, self.format = packed_array(load)
        self.count = _tables(load)
        self.place = state.allocate_shared(self.count * self.decoder.table_bytes, load)
        b = state.builder
        self._fill()
        lane = b.op("and.b32", "r", state.tid, 31)
        table = state.smem
        self.row_tile_bytes = 0
        if self.count > 1:
            self.row_tile_bytes = self.decoder.table_bytes
            warp_bytes = self.count // state.warps * self.row_tile_bytes
            table = b.op("mad.lo.s32", "r", b.op("shr.u32", "r", state.tid, 5), warp_bytes, table)
        self.constants = self.decoder.constants(b, lane, table)

    def emit(self, words: list[str], t: int, k: int) -> list[list[str]]:
        """Emits the decode of the words of a chunk of the warp's row tile t, from the unit's in_feature k on."""
        place = self.place + t * self.row_tile_bytes
        return self.decoder.emit(self.state.builder, words, self.constants, place)

    def _fill(self) -> None:
        """Emits the stores of the tables: neighbouring threads write neighbouring vectors."""
        state, b, decoder = self.state, self.state.builder, self.decoder
        vectors = max(1, decoder.row_bytes // PIECE)  # of a row
        at_once = state.threads // vectors  # rows
        rows = self.count * decoder.rows
        row = b.op("shr.u32", "r", state.tid, vectors.bit_length() - 1)
        entries = Entries(self, row, at_once.bit_length() - 1)
        active = b.op("setp.lt.u32", "p", row, rows) if rows < at_once else None
        address = b.op("mad.lo.s32", "r", state.tid, decoder.row_bytes // vectors, state.smem)
        for first in range(0, rows, at_once):
            halves = [entries.load(first, code) for code in range(decoder.codes)]
            if decoder.codes == 1:
                halves.append(entries.zero)
            pairs = [b.op("mov.b32", "r", vector(list(pair))) for pair in zip(halves[::2], halves[1::2], strict=True)]
            words = pairs * (decoder.row_bytes // vectors // 4 // len(pairs))
            place = self.place + first * decoder.row_bytes
            b.do(f"st.shared{vector_suffix(words)}.b32", memory(address, place), vector(words), when=active)

    def pointer(self, table: Operand) -> str:
        """The global address of one of the weight's tables for the block; those beyond the last are the last."""
        state, b, fmt = self.state, self.state.builder, self.format
        if fmt.table is None:
            assert fmt.code.table is not None
            return b.array(f"{fmt.dtype}$table", np.array(fmt.code.table, np.float16).view(np.uint16).tolist())
        pointer = state.pointer(self.array, "table")
        if fmt.table == "tensor":
            return pointer
        last = b.op("sub.s32", "r", ceil_div(state, state.size(self.array.dims[0]), BLOCK), 1)
        row_tile = shift_right(state, state.values[self.load.operands[0]][0], BLOCK.bit_length() - 1)
        number = b.op("min.s32", "r", last, state.scalar("add", row_tile, table))
        return b.op("mad.wide.s32", "rd", number, 2 << fmt.bits, pointer)


class GroupTables(abc.ABC):
    """A weight's tables of every group of every out_feature, in which each code is looked up by itself."""

    steps_at_once = 4  # k16 steps whose loads are on their way together

    def __init__(self, state: State, load: Op, decoder: TableDecoder) -> None:
        self.state, self.decoder = state, decoder
        self.array, self.format = packed_array(load)
        self.row_bytes = 2 << self.format.bits  # of one out_feature's table
        self.row_tiles = load.shape[0] // BLOCK // state.warps
        group = self.format.group
        self.alike = min(CHUNK_K, group) if isinstance(group, int) else CHUNK_K  # in_features of a chunk in one group

    def emit(self, words: list[str], t: int, k: int) -> list[list[str]]:
        """Emits the decode of the words of a chunk of the warp's row tile t, from the unit's in_feature k on."""
        b = self.state.builder
        steps: list[list[str]] = []
        indices = byte_indices(b, words, self.format.bits, 1, masked=True)
        for step in range(4):
            halves: list[str] = []
            for code, (view, byte) in enumerate(itertools.islice(indices, 8)):
                offset = b.op("dp4a.u32.u32", "r", view, 2 << 8 * byte, self.start)
                halves.append(self._value(offset, t, k + 16 * step & -self.alike, code // 2 % 2))
            steps.append([self._pair(*pair) for pair in zip(halves[::2], halves[1::2], strict=True)])
            if (
                step % self.steps_at_once == self.steps_at_once - 1
            ):  # else ptxas starts more loads than it has registers
                b.do("bar.warp.sync", 0xFFFFFFFF)
        return steps

    @property
    @abc.abstractmethod
    def start(self) -> Operand:
        """What is added to the byte that a code is in a table."""

    @abc.abstractmethod
    def _value(self, offset: str, t: int, k: int, row: int) -> str:
        """Emits the load, f16, of a code of the unit's k; row 0 is the lane's g, row 1 is g + 8."""

    def _pair(self, low: str, high: str) -> str:
        """Two f16 values as a register of the activations' dtype."""
        b = self.state.builder
        if self.decoder.act == "f16":
            return b.op("mov.b32", "r", vector([low, high]))
        floats = [b.op("cvt.f32.f16", "f", half) for half in (high, low)]
        return b.op("cvt.rn.bf16x2.f32", "r", *floats)


class StagedTables(GroupTables):
    """Tables that are in shared memory as they are stored: [row tile][g][2 rows][2**bits values]."""

    def __init__(self, state: State, load: Op, decoder: TableDecoder, place: Callable[[int], int]) -> None:
        """`place` gives where the tables for the current unit's k start in shared memory."""
        super().__init__(state, load, decoder)
        self.place = place
        images = [0, 0, *(2 * self.row_bytes << i for i in range(3))]  # lane = 4 g + q
        images += [self.row_tiles * BLOCK * self.row_bytes << i for i in range(state.warps.bit_length() - 1)]
        self._start = state.scalar("add", state.smem, state.linear(state.tid, images))

    @property
    def start(self) -> Operand:
        return self._start

    def _value(self, offset: str, t: int, k: int, row: int) -> str:
        place = self.place(k) + (BLOCK * t + row) * self.row_bytes
        return self.state.builder.op("ld.shared.b16", "h", memory(offset, place))


class GlobalTables(GroupTables):
    """Tables that are too large for shared memory: they are read where they lie."""

    steps_at_once = 2

    def __init__(self, state: State, load: Op, decoder: TableDecoder, position: Callable[[int], Operand]) -> None:
        """`position` emits the k in the array of the current unit's k."""
        super().__init__(state, load, decoder)
        self.position = position
        b = state.builder
        tiles = ceil_div(state, state.size(self.array.dims[0]), BLOCK)
        self.pitch = b.op("mul.wide.s32", "rd", tiles, BLOCK * self.row_bytes)
        last = b.op("sub.s32", "r", tiles, 1)
        warp = b.op("mul.lo.s32", "r", b.op("shr.u32", "r", state.tid, 5), self.row_tiles)
        first = state.scalar("add", shift_right(state, state.values[load.operands[0]][0], BLOCK.bit_length() - 1), warp)
        row = b.op("bfe.u32", "r", state.tid, 2, 3)  # g of the lane 4 g + q: its tables for g and g + 8 are neighbours
        lane = b.op("mad.wide.u32", "rd", row, 2 * self.row_bytes, state.pointer(self.array, "table"))
        self.pointers = []
        for t in range(self.row_tiles):
            tile = b.op("min.s32", "r", state.scalar("add", first, t), last)
            self.pointers.append(b.op("mad.wide.s32", "rd", tile, BLOCK * self.row_bytes, lane))
        group = self.format.group
        self.shift = group.bit_length() - 1 if isinstance(group, int) else None
        if self.shift is not None:  # the last group: units may reach beyond the array
            final = b.op("sub.s32", "r", state.size(self.array.dims[1]), 1)
            self.last = b.op("shr.s32", "r", final, self.shift)
        self.found: dict[tuple[int, int], str] = {}

    @property
    def start(self) -> Operand:
        return 0

    def emit(self, words: list[str], t: int, k: int) -> list[list[str]]:
        self.found = {}
        return super().emit(words, t, k)

    def _value(self, offset: str, t: int, k: int, row: int) -> str:
        b = self.state.builder
        if (t, k) not in self.found:
            self.found[t, k] = self._table(t, k)
        address = b.op("mad.wide.u32", "rd", offset, 1, self.found[t, k])
        return b.op("ld.global.b16", "h", memory(address, row * self.row_bytes))  # .nc would be moved across barriers

    def _table(self, t: int, k: int) -> str:
        """Emits the address of the lane's first table for row tile t and the unit's in_feature k."""
        if self.shift is None:
            return self.pointers[t]
        b = self.state.builder
        group = b.op("shr.s32", "r", self.position(k), self.shift)
        wide = b.op("cvt.s64.s32", "rd", b.op("min.s32", "r", group, self.last))
        return b.op("mad.lo.s64", "rd", wide, self.pitch, self.pointers[t])


class TableRows(Rows):
    """Tables of a (bn, k) tile's groups, copied as they are stored."""

    def __init__(self, state: State, unit: Unit, offset: int, load: Op, row: Operand, start: Operand) -> None:
        fmt = packed_array(load)[1]
        super().__init__(state, unit, offset, load, "table", 2 << fmt.bits, fmt.group)
        self.row_bytes = load.shape[0] * self.stored
        self.size = self.segments * self.row_bytes
        b = state.builder
        first = b.op("mad.wide.s32", "rd", row, self.stored, state.pointer(self.array, "table"))
        base = b.op("mad.lo.s32", "r", state.tid, PIECE, state.smem)
        pieces, of_row = self.size // PIECE, self.row_bytes // PIECE
        for i in range(-(-pieces // state.threads)):
            active = self.fewer(pieces - i * state.threads, state.threads, state.tid)
            number = state.scalar("add", state.tid, i * state.threads)
            segment = b.op("shr.u32", "r", number, of_row.bit_length() - 1) if self.segments > 1 else 0
            piece = b.op("and.b32", "r", number, of_row - 1)
            tile = b.op("shr.u32", "r", piece, (BLOCK * self.stored // PIECE).bit_length() - 1)
            tile = str(state.scalar("add", shift_right(state, row, BLOCK.bit_length() - 1), tile))
            address = b.op("mad.wide.u32", "rd", piece, PIECE, first)
            place = i * state.threads * PIECE
            self.add_piece(address, segment, tile, start, Piece("", 0, base, place, "", active=active))


def copied_tables(state: State, load: Op) -> int:
    """Where in shared memory the tables of a load of codes are that has one group; emits their copy."""
    array, fmt = packed_array(load)
    b, row_bytes = state.builder, 2 << fmt.bits
    size = load.shape[0] * row_bytes
    place = state.allocate_shared(size, load)
    last = b.op("sub.s32", "r", ceil_div(state, state.size(array.dims[0]), BLOCK), 1)
    row_tile = shift_right(state, state.values[load.operands[0]][0], BLOCK.bit_length() - 1)
    of_tile = BLOCK * row_bytes // PIECE  # pieces
    base = b.op("mad.lo.s32", "r", state.tid, PIECE, state.smem)
    for first in range(0, size // PIECE, state.threads):
        active = b.op("setp.lt.u32", "p", state.tid, size // PIECE) if size // PIECE < state.threads else None
        number = state.scalar("add", state.tid, first)
        tile = state.scalar("add", row_tile, b.op("shr.u32", "r", number, of_tile.bit_length() - 1))
        pointer = b.op("mad.wide.s32", "rd", b.op("min.s32", "r", last, tile), BLOCK * row_bytes,
                       state.pointer(array, "table"))  # fmt: skip
        pointer = b.op("mad.wide.u32", "rd", b.op("and.b32", "r", number, of_tile - 1), PIECE, pointer)
        words = [b.register("r") for _ in range(PIECE // 4)]
        b.do("ld.global.nc.v4.b32", vector(words), memory(pointer))
        b.do("st.shared.v4.b32", memory(base, place + first * PIECE), vector(words), when=active)
    return place


class Entries:
    """Loads of a weight's tables by rows: each once where the rows of a thread have the same code."""

    def __init__(self, tables: SharedTables, row: str, row_bits: int) -> None:
        """The thread's rows are `row`, of `row_bits` bits, and multiples of 2**row_bits added to it."""
        self.tables, self.builder, self.row, self.row_bits = tables, tables.state.builder, row, row_bits
        self.table_bits = tables.decoder.rows.bit_length() - 1
        self.bits, self.bfloat = tables.format.bits, tables.decoder.act == "bf16"
        self.pointers: dict[int, str] = {}
        self.addresses: dict[tuple[int, int], str] = {}
        self.loaded: dict[tuple[str, int], str] = {}

    @functools.cached_property
    def zero(self) -> str:
        return self.builder.op("mov.b16", "h", 0)

    def load(self, first: int, code: int) -> str:
        """The value, in the activations' dtype, of a code of the thread's row `first` + row."""
        b, shift, mask = self.builder, code * self.bits, (1 << self.bits) - 1
        address = self._address(first >> self.table_bits, shift)
        offset = 2 * (first >> shift & mask)
        if (address, offset) not in self.loaded:
            value = b.op("ld.global.nc.b16", "h", memory(address, offset))
            if self.bfloat:
                value = b.op("cvt.rn.bf16.f32", "h", b.op("cvt.f32.f16", "f", value))
            self.loaded[address, offset] = value
        return self.loaded[address, offset]

    def _address(self, table: int, shift: int) -> str:
        """The address of the entry of the code that the thread's part of the row's number has at bit `shift`."""
        b = self.builder
        if table not in self.pointers:
            thread = b.op("shr.u32", "r", self.row, self.table_bits) if self.table_bits < self.row_bits else 0
            self.pointers[table] = self.tables.pointer(self.tables.state.scalar("add", thread, table))
        if shift >= self.row_bits:
            return self.pointers[table]
        if (table, shift) not in self.addresses:
            code = b.op("shr.u32", "r", self.row, shift) if shift else self.row
            code = b.op("and.b32", "r", code, (1 << self.bits) - 1)
            self.addresses[table, shift] = b.op("mad.wide.u32", "rd", code, 2, self.pointers[table])
        return self.addresses[table, shift]
