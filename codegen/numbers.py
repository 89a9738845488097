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


def columns_together(offsets: "dict[Op, list[Operand]]", steps: dict[Op, list[int]]) -> list[list[Op]]:
    """The loads of columns, those of the same rows and step side by side in one list."""
    found: dict[object, list[Op]] = {}
    for load, (_, step) in steps.items():
        row, column = offsets[load]
        place = column // step if isinstance(column, int) else load
        found.setdefault((load.array, load.shape, row, step, place), []).append(load)
    return list(found.values())


class NumberColumns(Staged):
    """The columns (rows, 1) of each unit that some loads read, in shared memory one after the other.

    Zeros are beyond the array. offsets: of the loads in the first iteration of `loop`; growth: columns from one
    iteration to the next.
    """

    def __init__(
        self,
        state: State,
        unit: Unit,
        place: int,
        loads: list[Op],
        loop: Op,
        offsets: "dict[Op, list[Operand]]",
        growth: int,
    ) -> None:
        super().__init__(state, replace(unit, exact=False), place)  # exact promises nothing of this array's columns
        array = loads[0].array
        assert array is not None and isinstance(array.element, DType)
        self.kind, self.rows = "f" if array.element.is_float else "r", loads[0].shape[0]
        columns = {load: offsets[load][1] for load in loads}
        b, row = state.builder, offsets[loads[0]][0]
        pitch = b.op("shl.b32", "r", state.size(array.dims[1]), 2)
        base = b.op("mad.lo.s32", "r", state.tid, BYTES, state.smem)
        ordered = sorted(dict.fromkeys(columns.values()), key=lambda column: column if isinstance(column, int) else 0)
        first = ordered[0]
        self.places = {load: ordered.index(columns[load]) for load in loads}
        self.size, self.distance = BYTES * self.rows * len(ordered), BYTES * growth
        limits: dict[Operand, Operand] = {}  # by column: one for all of a unit where these exist together
        whole = isinstance(first, int) and state.program.divisor(array.dims[1]) % growth == first % growth == 0
        for column in ordered:
            shared = whole and bool(limits)
            limits[column] = limits[first] if shared else self._limit(loop, array.dims[1], column, growth)
        for number in range(0, self.rows, state.threads):
            index = state.scalar("add", state.scalar("add", row, number), state.tid)
            active = self.fewer(self.rows - number, state.threads, state.tid)
            address = self.centred(b.op("mad.wide.s32", "rd", index, pitch, state.pointer(array)))
            inside = {limit: self._inside(limit, index, array.dims[0]) for limit in dict.fromkeys(limits.values())}
            for at, column in enumerate(ordered):
                pointer, shift = address, 0
                if isinstance(column, int):
                    shift = BYTES * column
                else:
                    pointer = b.op("mad.wide.s32", "rd", column, BYTES, address)
                piece = BYTES * (at * self.rows + number)
                self.pieces.append(Piece(pointer, shift, base, piece, *inside[limits[column]], active, BYTES))

    def _inside(self, limit: Operand, index: Operand, dim: str) -> tuple[str, str]:
        return self.inside(lambda: limit, index, self.state.size(dim))

    def _limit(self, loop: Op, dim: str, column: Operand, growth: int) -> Operand:
        """The k below which a unit must begin for its column to be in the array."""
        state = self.state
        left = state.scalar("sub", state.size(dim), column)
        units = state.builder.op("div.s32", "r", state.scalar("add", left, growth - 1), growth)
        start = state.values[loop.operands[0]][0]
        return state.scalar("add", state.scalar("mul", units, loop.integer("step")), start)

    def read(self, load: Op, slot: int, layout: Layout) -> list[Operand]:
        """Emits the loads of the current unit's numbers, one for each register of the tile's layout."""
        b = self.state.builder
        images = [BYTES * image["i"] for image in (*layout.bases["lane"], *layout.bases["warp"])]
        base = self.state.shared_address(images)
        width = layout.vector_width(out_dim="i", element_bits=8 * BYTES, max_bits=128)
        found: list[Operand] = []
        for first in range(0, 1 << layout.ins["register"], width):
            registers = [b.register(self.kind) for _ in range(width)]
            place = slot + self.offset + BYTES * (self.places[load] * self.rows + layout(register=first)["i"])
            b.do(f"ld.shared{vector_suffix(registers)}.b32", vector(registers), memory(base, place))
            found += registers
        return found
