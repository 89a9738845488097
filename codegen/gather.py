"""Tiles of activations whose columns are gathered: a weight's columns are stored in another order than those of x.

The columns of as many units as one barrier serves are gathered together. A thread has four neighbouring ones and some
rows. It loads the four indices, the numbers that they name a turn of the pipeline later, and stores those to shared
memory after another turn: it waits for neither. Only as many threads take part as have ROWS rows each, the others pass
by in one instruction, and know none of the registers. Rows that the array does not have are zeros from the start, and
never stored to.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lowbitvm.codegen.dense import Activations
from lowbitvm.codegen.ptx import Operand, memory, vector
from lowbitvm.codegen.staging import PIECE, Placement, Unit, select
from lowbitvm.codegen.state import State, non_negative
from lowbitvm.ir import Op

QUAD = 4  # neighbouring columns of a thread
ROWS = 4  # that share a thread's indices, at least
MOST_HELD = 32  # numbers of a thread on their way through registers; where there are more, a turn waits for them
MOST_ROWS = 32  # of a tile whose accumulators leave registers for that
NOWHERE = -1  # the index of a column that the array of indices does not have

Row = tuple[str, str]  # pointer to a row, or to one that exists in its place; predicate: it exists


@dataclass
class Quad:
    """Four neighbouring columns of a thread; what moves on is that of the iteration's start."""

    left: str  # k that is left from the start of the quad's unit on
    room: str  # columns that the array of indices has from the first on; for units that are not exact
    pointer: str  # to the indices
    indices: list[str]
    numbers: list[list[str]]  # [row][column], where they are held
    places: list[tuple[str, int]]  # of the rows in shared memory but for the slot and the tile


class GatheredTile(Activations):
    """The columns of an array that an array of indices names."""

    def __init__(self, state: State, unit: Unit, offset: int, load: Op, row: Operand, start: Operand) -> None:
        super().__init__(state, unit, offset, load)
        order = load.operands[1]
        assert load.array is not None and order.array is not None
        self.row, self.start, self.counts_up = row, start, non_negative(load.operands[0])
        self.row_count, self.column_count = (state.size(dim) for dim in load.array.dims)
        self.order_count = state.size(order.array.dims[0])
        self.pointer, self.order = state.pointer(load.array), state.pointer(order.array)
        self.trusted = unit.exact and "trusted" in load.attributes
        self.whole_quads = state.program.divisor(order.array.dims[0]) % QUAD == 0
        quads = unit.k * unit.together // QUAD
        self.across = min(quads, state.threads)
        self.down = max(1, min(self.rows // ROWS, state.threads // self.across))
        self.mine = self.rows // self.down
        self.held = self.rows <= MOST_ROWS and quads // self.across * self.mine * QUAD <= MOST_HELD
        self.numbers = range(0, quads, self.across)  # of thread 0's quads
        self.active = self._emit_active()

    def _emit_active(self) -> str:
        """Emits the choice of the threads that take part: those with rows, and columns, that are in the array."""
        state, b = self.state, self.state.builder
        group = b.op("shr.u32", "r", state.tid, self.across.bit_length() - 1)
        self.first_row = str(state.scalar("add", b.op("mul.lo.s32", "r", group, self.mine), self.row))
        active = b.op("setp.lt.u32", "p", state.tid, self.across * self.down)
        active = b.op("setp.lt.and.s32", "p", self.first_row, self.row_count, active)
        if not self.counts_up:
            active = b.op("setp.gt.and.s32", "p", self.first_row, -self.mine, active)
        return b.op("setp.ne.and.s32", "p", self.column_count, 0, active)

    def _row(self, i: int) -> Row:
        """Emits the address arithmetic of the thread's row i."""
        state, b = self.state, self.state.builder
        index = state.scalar("add", self.first_row, i)
        exists = b.op("setp.lt.u32", "p", index, self.row_count)
        index = b.op("max.s32", "r", b.op("min.s32", "r", index, self.last_row), 0)
        return b.op("mad.lo.s64", "rd", b.op("cvt.s64.s32", "rd", index), self.pitch_bytes, self.pointer), exists

    def _rows(self) -> Iterator[Row]:
        """The thread's rows; emits the address arithmetic of those that are not known before the loop."""
        b = self.state.builder
        yield from self.known_rows
        pointer = self.known_rows[0][0]
        for i in range(len(self.known_rows), self.mine):
            if not self.counts_up:
                yield self._row(i)
                continue
            exists = b.op("setp.lt.s32", "p", b.op("add.s32", "r", self.first_row, i), self.row_count)
            step = b.op("selp.b64", "rd", self.pitch_bytes, 0, exists)
            pointer = b.op("add.s64", "rd", pointer, step)
            yield pointer, exists

    # -- what the pipeline calls -------------------------------------------------------------------------------------

    @property
    def needs_k(self) -> bool:
        return False

    def issue(self, slot: int, number: int, k: str, beyond: str = "", exists: str = "") -> None:
        """Nothing: `prepare` and `turn` fetch what several units need."""

    def prepare(self, base: int, slot_bytes: int, left: str) -> None:
        """Emits the zeros, the first loads of indices and, where they are held, of numbers.

        base: of slot 0, slot_bytes: from one to the next; left: the register of what is left of k.
        """
        state, b = self.state, self.state.builder
        self.base, self.slot_bytes = base, slot_bytes
        zero = b.op("mov.b32", "r", 0)
        address = b.op("mad.lo.s32", "r", state.tid, PIECE, state.smem)
        for slot in range(self.unit.slots):
            for first in range(0, self.size // PIECE, state.threads):
                active = self.fewer(self.size // PIECE - first, state.threads, state.tid)
                target = memory(address, base + slot * slot_bytes + self.offset + first * PIECE)
                b.do("st.shared.v4.b32", target, vector([zero] * 4), when=active)
        b.do("bar.sync", 0)
        skip = b.label("idle")
        b.do("bra", skip, when=f"!{self.active}")
        self.last_row = b.op("sub.s32", "r", self.row_count, 1)
        self.pitch_bytes = b.op("mul.wide.s32", "rd", self.column_count, 2)
        self.known_rows = [self._row(i) for i in range(self.mine if self.held else 1)]
        self.quads = [self._quad(number, left) for number in self.numbers]
        for quad in self.quads:
            self._load_indices(quad, 0)
            if self.held:
                self._load_numbers(quad, 0)
                self._load_indices(quad, self.unit.together)
        b.place(skip)

    def turn(self, number: int, last: bool = False) -> None:
        """Emits the stores of the units from the `number`-th on that one barrier serves, and loads for later ones.

        Counted as in `issue`; no thread reads their slots any more, nor yet. last: of the iteration.
        """
        b, together = self.state.builder, self.unit.together
        skip = b.label("idle")
        b.do("bra", skip, when=f"!{self.active}")
        for quad in self.quads:
            if self.held:
                self._store(quad, number, quad.numbers, self.known_rows)
                self._load_numbers(quad, number + together)
                self._load_indices(quad, number + 2 * together)
            else:
                self._move(quad, number)
                self._load_indices(quad, number + together)
            if last:
                self._move_on(quad)
        b.place(skip)

    def advance(self) -> None:
        """Nothing: the last `turn` of an iteration does."""

    def _move_on(self, quad: Quad) -> None:
        b, k = self.state.builder, self.unit.turn * self.unit.k
        b.do("add.s64", quad.pointer, quad.pointer, 4 * k)
        b.do("sub.s32", quad.left, quad.left, k)
        if not self.unit.exact:
            b.do("sub.s32", quad.room, quad.room, k)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _quad(self, number: int, left: str) -> Quad:
        """Emits what a quad needs in the loop; `number` is that of thread 0's."""
        state, b = self.state, self.state.builder
        own = b.op("and.b32", "r", state.tid, self.across - 1)
        first = b.op("mad.lo.s32", "r", own, QUAD, number * QUAD)
        unit = b.op("shr.u32", "r", first, self.unit.k.bit_length() - 1)
        column = state.scalar("add", first, self.start)
        chunks = [image["byte"] for image in self.layout.bases["chunk"]]
        columns = [2 * QUAD, *chunks, *[0] * (self.unit.together.bit_length() - 1)]  # by the bits of a quad's number
        rows, bit = [image["byte"] for image in self.layout.bases["row"]], self.mine.bit_length() - 1
        origin = b.op("mad.lo.s32", "r", unit, self.slot_bytes, state.smem)
        place = Placement(state, [*columns[: self.across.bit_length() - 1], *rows[bit:]], origin)
        return Quad(
            left=b.op("mad.lo.s32", "r", unit, -self.unit.k, left),
            room="" if self.unit.exact else b.op("sub.s32", "r", self.order_count, column),
            pointer=b.op("mad.wide.s32", "rd", column, 4, self.order),
            indices=[b.op("mov.b32", "r", NOWHERE) for _ in range(QUAD)],
            numbers=[[b.op("mov.b16", "h", 0) for _ in range(QUAD)] for _ in range(self.mine if self.held else 0)],
            places=[place.of(select(columns, number) ^ select(rows, row)) for row in range(self.mine)],
        )

    def _load_indices(self, quad: Quad, number: int) -> None:
        """Emits the loads of a quad's indices for a turn; NOWHERE where the array of indices ends."""
        b, before = self.state.builder, number * self.unit.k
        if self.unit.exact:
            inside = b.op("setp.gt.s32", "p", quad.left, before)
            self.load_words(quad.indices, memory(quad.pointer, 4 * before), inside)
            return
        for index in quad.indices:
            b.do("mov.b32", index, NOWHERE)
        if self.whole_quads:
            inside = b.op("setp.gt.s32", "p", quad.room, before)
            self.load_words(quad.indices, memory(quad.pointer, 4 * before), inside)
            return
        for column, index in enumerate(quad.indices, before):
            inside = b.op("setp.gt.s32", "p", quad.room, column)
            self.load_words([index], memory(quad.pointer, 4 * column), inside)

    def _load_numbers(self, quad: Quad, number: int) -> None:
        """Emits the loads of a quad's numbers, into its registers, if its unit exists."""
        b, skip = self.state.builder, self.state.builder.label("ended")
        b.do("bra", skip, when=b.op("setp.le.s32", "p", quad.left, number * self.unit.k))
        inside, outside = self._check(quad)
        self._load(quad, quad.numbers, self.known_rows, inside, outside)
        b.place(skip)

    def _move(self, quad: Quad, number: int) -> None:
        """Emits loads and stores of a quad's numbers, some rows at a time, if its unit exists."""
        b, skip = self.state.builder, self.state.builder.label("ended")
        b.do("bra", skip, when=b.op("setp.le.s32", "p", quad.left, number * self.unit.k))
        inside, outside = self._check(quad)
        walk = self._rows()
        for first in range(0, self.mine, ROWS):
            rows = [next(walk) for _ in range(ROWS)]
            numbers = [[b.register("h") for _ in range(QUAD)] for _ in rows]
            self._load(quad, numbers, rows, inside, outside)
            self._store(quad, number, numbers, rows, first)
        b.place(skip)

    def _check(self, quad: Quad) -> tuple[str, list[str]]:
        """Emits the comparison of a quad's indices with the array: (all are inside, else which ones are not).

        Those outside are replaced by 0, which may be loaded from. None is, as a rule: then only the comparison runs.
        Emits nothing where all are known to be inside.
        """
        b, fine = self.state.builder, self.state.builder.label("inside")
        if self.trusted:
            return "", []
        inside = b.op("setp.lt.u32", "p", quad.indices[0], self.column_count)
        for index in quad.indices[1:]:
            inside = b.op("setp.lt.and.u32", "p", index, self.column_count, inside)
        b.do("bra", fine, when=inside)
        outside = [b.op("setp.ge.u32", "p", index, self.column_count) for index in quad.indices]
        for index, predicate in zip(quad.indices, outside, strict=True):
            b.do("mov.b32", index, 0, when=predicate)
        b.place(fine)
        return inside, outside

    def _load(self, quad: Quad, numbers: list[list[str]], rows: list[Row], inside: str, outside: list[str]) -> None:
        """Emits the loads of some rows' numbers, and the zeros for columns outside; see `_check`."""
        b, done = self.state.builder, self.state.builder.label("loaded")
        for (pointer, _), row in zip(rows, numbers, strict=True):
            for index, number in zip(quad.indices, row, strict=True):
                self.load_half(number, memory(b.op("mad.wide.u32", "rd", index, 2, pointer)))
        if not outside:
            return
        b.do("bra", done, when=inside)
        for row in numbers:
            for predicate, number in zip(outside, row, strict=True):
                b.do("mov.b16", number, 0, when=predicate)
        b.place(done)

    def _store(self, quad: Quad, number: int, numbers: list[list[str]], rows: list[Row], first: int = 0) -> None:
        """Emits the stores of some rows' numbers to the slot of the `number`-th unit; `first` is the first row."""
        b = self.state.builder
        slot = self.base + number % self.unit.slots * self.slot_bytes + self.offset
        for i, ((_, exists), row) in enumerate(zip(rows, numbers, strict=True), first):
            register, place = quad.places[i]
            words = [b.op("mov.b32", "r", vector(row[j : j + 2])) for j in (0, 2)]
            b.do("st.shared.v2.b32", memory(register, slot + place), vector(words), when=exists)
