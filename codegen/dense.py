"""Tiles of activations in shared memory."""

import functools

from lowbitvm import dtypes
from lowbitvm.codegen.ptx import Operand, memory, vector
from lowbitvm.codegen.staging import PIECE, Piece, Placement, Staged, Unit, select
from lowbitvm.codegen.state import State
from lowbitvm.ir import Op
from lowbitvm.layout import Layout

SWIZZLE_BITS = 3  # the eight rows of an 8 x 8 matrix go to eight different 16-byte columns of the banks
ROW_CHUNKS = 8  # pieces of a row that neighbouring threads copy: 128 contiguous bytes


class Activations(Staged):
    """Rows of 16-bit activations (rows, columns), k along the columns, swizzled: ldmatrix has no bank conflicts."""

    def __init__(self, state: State, unit: Unit, offset: int, load: Op) -> None:
        super().__init__(state, unit, offset)
        assert load.array is not None and isinstance(load.array.element, dtypes.DType)
        self.rows, self.columns = load.shape[0], unit.k
        self.pitch = self.columns * 2  # bytes of a row in shared memory
        self.size = self.rows * self.pitch

    @functools.cached_property
    def layout(self) -> Layout:
        """(chunk, row) -> byte in shared memory: the 16-byte chunk c of row r lies at chunk c ^ (r mod 8)."""
        chunks = [PIECE << i for i in range((self.columns // 8).bit_length() - 1)]
        swizzle = [*chunks[:SWIZZLE_BITS], *[0] * self.rows.bit_length()]
        rows = [self.pitch << i | swizzle[i] for i in range(self.rows.bit_length() - 1)]
        bases = {"chunk": [(byte,) for byte in chunks], "row": [(byte,) for byte in rows]}
        return Layout(bases, {"byte": (self.size - 1).bit_length()})


class DenseTile(Activations):
    """Neighbouring columns of the array, copied in pieces of eight."""

    def __init__(self, state: State, unit: Unit, offset: int, load: Op, row: Operand, column: Operand) -> None:
        super().__init__(state, unit, offset, load)
        assert load.array is not None
        self.distance = self.pitch
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
                base, place = self.place.of(select(row_left, i) ^ select(chunk_left, j))
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

    def issue(self, slot: int, number: int, k: str, beyond: str = "", exists: str = "") -> None:
        if self.vectorised:
            super().issue(slot, number, k, beyond, exists)
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
            self.load_half(half, memory(piece.pointer, shift + 2 * element), inside)
            halves.append(half)
        words = [b.op("mov.b32", "r", vector(list(pair))) for pair in zip(halves[::2], halves[1::2], strict=True)]
        target = memory(piece.base, slot + self.offset + piece.offset)
        b.do("st.shared.v4.b32", target, vector(words), when=piece.active)
