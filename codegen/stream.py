"""Packed codes that go from global memory straight into the registers of the lanes that decode them."""

from lowbitvm.chunk import blocks
from lowbitvm.codegen.ptx import Operand, hinted, memory, vector, vector_suffix
from lowbitvm.codegen.staging import Piece, Unit
from lowbitvm.codegen.state import State
from lowbitvm.codegen.weights import CHUNK_K, Words
from lowbitvm.ir import Op

LOAD = "ld.global.nc.L1::no_allocate"  # no code is read twice


class WordStream(Words):
    """Packed codes of a (bn, k) tile: every lane loads the words of its own chunks, `ahead` units before their use.

    The stored order gives every lane its words, and a warp's load of a block of them is contiguous: neither shared
    memory nor a barrier takes part. There are registers for the unit in use and for those on their way.
    """

    def __init__(
        self, state: State, unit: Unit, offset: int, load: Op, row: Operand, start: Operand, ahead: int
    ) -> None:
        super().__init__(state, unit, offset, load, row)
        assert load.array is not None
        self.ahead = stream_ahead(unit, ahead)
        self.number = 0  # of the unit in use
        b = state.builder
        self.sets = [self._registers() for _ in range(self.ahead + 1)]
        self.k = "" if unit.exact else b.op("mov.b32", "r", start)  # of the next unit to load
        in_features = state.size(load.array.dims[1])
        for t in range(self.row_tiles):
            pointers = self._pointers(load, start, state.scalar("add", self.warp_tile, t))
            for j in range(self.k_tiles):
                limit = "" if unit.exact else str(self.before_stop(state.scalar("sub", in_features, j * CHUNK_K)))
                place = j * self.tile_bytes
                for width in blocks(self.bits):
                    self.pieces.append(Piece(pointers[width], place, "", 0, "", limit, bytes=4 * width))
                    place += 32 * 4 * width

    def _registers(self) -> list[list[str]]:
        """The registers of one unit, one list per piece."""
        widths = blocks(self.bits) * (self.k_tiles * self.row_tiles)
        return [[self.state.builder.register("r") for _ in range(width)] for width in widths]

    def _pointers(self, load: Op, start: Operand, index: Operand) -> dict[int, str]:
        """The lane's addresses in row tile `index`, by the words of a vector.

        A row tile that does not exist takes the place of the last one, whose first words all lanes load then: no
        result of it is stored, and no load needs a predicate.
        """
        b = self.state.builder
        last = b.op("sub.s32", "r", self.row_count, 1)
        lane = b.op("selp.b32", "r", self.lane, 0, b.op("setp.le.s32", "p", index, last))
        first = self.address(load, b.op("min.s32", "r", index, last), start)
        widths = dict.fromkeys(blocks(self.bits))
        return {width: self.centred(b.op("mad.wide.u32", "rd", lane, 4 * width, first)) for width in widths}

    def fetch(self, number: int, left: str) -> None:
        """Emits the loads of the unit `number` units after the iteration's first; `left` is what is left of k."""
        b, unit = self.state.builder, self.unit
        # the comparison that the loop's exit and the copies to shared memory make too
        outside = b.op("setp.le.s32", "p", left, number * unit.k) if unit.exact else ""
        for piece, registers in zip(self.pieces, self.sets[number % len(self.sets)], strict=True):
            if not unit.exact:
                outside = b.op("setp.ge.s32", "p", self.k, piece.limit)
                for register in registers:  # any number would do: its x is zero
                    b.do("mov.b32", register, 0)
            source = memory(piece.pointer, piece.pointer_offset + self.shift(number))
            name, operands = hinted(LOAD, (vector(registers), source), self.policy)
            b.do(f"{name}{vector_suffix(registers)}.b32", *operands, when=f"!{outside}")
        if self.k:
            b.do("add.s32", self.k, self.k, unit.k)

    def words(self, slot: int, t: int, j: int) -> list[str]:
        """The registers of the lane's words of row tile t, k tile j."""
        count = len(blocks(self.bits))
        first = (t * self.k_tiles + j) * count
        return [word for piece in self.sets[self.number % len(self.sets)][first : first + count] for word in piece]


def stream_ahead(unit: Unit, k: int) -> int:
    """Units that loads of codes run ahead, to cover `k`: the sets of registers must divide an iteration's slots."""
    wanted = -(-k // unit.k)
    return next((sets - 1 for sets in range(2, unit.slots) if unit.slots % sets == 0 and sets > wanted), unit.slots - 1)
