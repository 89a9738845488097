"""Numbers of each row of a tile that come with every step of a loop: a column of an array, staged like the codes."""

from dataclasses import replace

from lowbitvm.codegen.ptx import Operand, memory, vector, vector_suffix
from lowbitvm.codegen.staging import Piece, Staged, Unit
from lowbitvm.codegen.state import State
from lowbitvm.dtypes import DType
from lowbitvm.ir import Op
from lowbitvm.layout import Layout

BYTES = 4  # of a number, the least that is copied asynchronously


def is_column(load: Op, steps: list[int]) -> bool:
    """Whether a load is of 32-bit numbers, one for each row, from columns that follow a loop's index by `steps`."""
    dense = load.array is not None and isinstance(load.array.element, DType) and load.array.element.bits == 8 * BYTES
    plain = load.kind == "load" and load.attributes["other"] == 0 and len(load.shape) == 2 and load.shape[1] == 1
    return dense and plain and steps[0] == 0 and steps[1] > 0


class NumberColumn(Staged):
    """The column (rows, 1) of each unit, in shared memory one after the other; zeros beyond the array.

    offsets: of the load in the first iteration of `loop`; growth: columns from one iteration to the next.
    """

    def __init__(
        self, state: State, unit: Unit, place: int, load: Op, loop: Op, offsets: list[Operand], growth: int
    ) -> None:
        super().__init__(state, replace(unit, exact=False), place)  # exact promises nothing of this array's columns
        assert load.array is not None and isinstance(load.array.element, DType)
        self.load, self.kind = load, "f" if load.array.element.is_float else "r"
        count = load.shape[0]
        self.size, self.distance = BYTES * count, BYTES * growth
        (row, column), b = offsets, state.builder
        rows, columns = (state.size(dim) for dim in load.array.dims)
        pitch = b.op("shl.b32", "r", columns, 2)
        first = state.pointer(load.array)
        if column != 0:
            first = b.op("mad.wide.s32", "rd", b.op("mov.b32", "r", column), BYTES, first)
        left = state.scalar("sub", columns, column)
        units = b.op("div.s32", "r", state.scalar("add", left, growth - 1), growth)  # that have a column
        start = state.values[loop.operands[0]][0]
        limit = state.scalar("add", state.scalar("mul", units, loop.integer("step")), start)
        base = b.op("mad.lo.s32", "r", state.tid, BYTES, state.smem)
        for number in range(0, count, state.threads):
            index = state.scalar("add", state.scalar("add", row, number), state.tid)
            address = self.centred(b.op("mad.wide.s32", "rd", index, pitch, first))
            outside, until = self.inside(lambda: limit, index, rows)
            active = self.fewer(count - number, state.threads, state.tid)
            self.pieces.append(Piece(address, 0, base, BYTES * number, outside, until, active, BYTES))

    def read(self, slot: int, layout: Layout) -> list[Operand]:
        """Emits the loads of the current unit's numbers, one for each register of the tile's layout."""
        b = self.state.builder
        images = [BYTES * image["i"] for image in (*layout.bases["lane"], *layout.bases["warp"])]
        base = self.state.shared_address(images)
        width = layout.vector_width(out_dim="i", element_bits=8 * BYTES, max_bits=128)
        found: list[Operand] = []
        for first in range(0, 1 << layout.ins["register"], width):
            registers = [b.register(self.kind) for _ in range(width)]
            place = slot + self.offset + BYTES * layout(register=first)["i"]
            b.do(f"ld.shared{vector_suffix(registers)}.b32", vector(registers), memory(base, place))
            found += registers
        return found
