"""Tile IR with layouts -> PTX: one function per kind of op, in the table LOWER."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lowbitvm import dtypes
from lowbitvm.codegen import exchange, packing
from lowbitvm.codegen.access import REGISTER_KIND, Access, immediate, turned_layout, unordered_arrays
from lowbitvm.codegen.assign import AXES, index_layout, operand_layout, packing_layout, reduced_layout, staged_tiles
from lowbitvm.codegen.dense_dot import DenseDot, build_dense_pipeline, multiplies_dense
from lowbitvm.codegen.digit_loops import DirectPipeline, GroupedPipeline, build_digit_pipeline
from lowbitvm.codegen.digits import DigitDot, GroupDot, SharedDigitDot, multiplies_digits
from lowbitvm.codegen.exchange import BITS
from lowbitvm.codegen.held_dot import HeldDot
from lowbitvm.codegen.kept_dot import KEEPERS, KeptDot, has_registers
from lowbitvm.codegen.mma import Dot
from lowbitvm.codegen.numbers import NumberColumns
from lowbitvm.codegen.pipeline import Pipeline, build_pipeline
from lowbitvm.codegen.ptx import Operand, float_immediate, memory, vector
from lowbitvm.codegen.scatter import scatter, thread_indices
from lowbitvm.codegen.shared_dot import SharedDot
from lowbitvm.codegen.state import State, divisor, invariant
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.ir import Op, walk
from lowbitvm.layout import Layout

COMPARISONS = {"equal": "setp.eq.s32", "less": "setp.lt.s32"}
GRID_AXES = ("%ctaid.x", "%ctaid.y", "%ctaid.z")
FLOAT_INSTRUCTIONS = {
    "add": "add.rn.f32",
    "sub": "sub.rn.f32",
    "mul": "mul.rn.f32",
    "div": "div.rn.f32",
    "max": "max.f32",
    "min": "min.f32",
}
SCALAR_KINDS = ("program_id", "dimension", "constant", "add", "sub", "mul", "div", "floordiv", "mod", "max", "min")
TOUCHING = ("load", "store", "atomic_add")
LOG2_E = 1.4426950408889634


class Lowering:
    """Emits the ops of a program in order."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.dots: dict[Op, Dot | DigitDot] = {}
        self.accesses: dict[Op, Access] = {}
        self.columns: dict[Op, tuple[Pipeline, NumberColumns]] = {}
        self.unordered = unordered_arrays(state.program, state.layouts)
        found = list(accumulations(state.program.body, state.uses))
        self.accumulated = {assign: dot for assign, _, dot in found}
        self.absorbed = {op for _, *ops in found for op in ops}  # emitted by the `assign`
        self.begun = dict(beginnings(state.program.body, state.uses, self.absorbed))
        self.absorbed |= set(self.begun.values())
        self.rounded = {cast for cast, store in stored_casts(state.program.body, state.uses) if self._rounds(store)}

    def block(self, ops: Sequence[Op]) -> None:
        """Emits a block. What a loop over dots keeps in shared memory takes the place of all that came before it."""
        taken = self.state.shared_bytes
        for op in ops:
            if op.kind in ("range", "when") and any(x.kind == "dot" for x in walk(op.body)):
                self.state.release_shared(taken)
            if op in self.state.layouts or not op.shape or op.dtype is None:
                self.state.builder.locate(op.location)
                if self.state.waits and op.kind != "range" and any(x.kind in TOUCHING for x in walk([op])):
                    self.state.wait_for_earlier()  # outside of all branches; loops fetch weights before they do it
                LOWER[op.kind](self, op)

    def scalar(self, op: Op) -> Operand:
        """The value of an i32 scalar."""
        return self.state.values[op][0]

    # -- scalars and tiles -------------------------------------------------------------------------------------------

    def program_id(self, op: Op) -> None:
        self.state.values[op] = [self.state.builder.op("mov.u32", "r", GRID_AXES[op.integer("axis")])]

    def dimension(self, op: Op) -> None:
        assert op.array is not None
        self.state.values[op] = [self.state.size(op.array.dims[op.integer("axis")])]

    def constant(self, op: Op) -> None:
        self._fill(op, 1)

    def full(self, op: Op) -> None:
        self._fill(op, self.count(op))

    def _fill(self, op: Op, count: int) -> None:
        assert op.dtype is not None
        kind = _register_kind(op)
        number = immediate(_number(op), op.dtype)
        if kind == "h":  # instructions take no 16-bit immediates
            number = self.state.builder.op("mov.b16", kind, number)
        self.state.values[op] = self._owned(op, [number] * count)

    def count(self, op: Op) -> int:
        """Registers that a tile takes per thread."""
        return 1 << self.state.layouts[op].ins["register"] if op.shape else 1

    def _owned(self, op: Op, values: list[Operand]) -> list[Operand]:
        """The values, in registers of the op's own if `assign` may overwrite these or the operands' registers."""
        if self.state.assigned.isdisjoint((op, *op.operands)):
            return values
        kind = _register_kind(op)
        taken = {value for operand in op.operands for value in self.state.values.get(operand, ())}
        own: list[Operand] = []
        for value in values:
            shared = value in taken or not str(value).startswith("%")
            own.append(self.state.builder.op(f"mov.b{BITS[kind]}", kind, value) if shared else value)
            taken.add(value)
        return own

    def binary(self, op: Op) -> None:
        if op in self.absorbed:
            return
        if op in self.begun:
            dot, (begin,) = self.dots[self.begun[op]], (x for x in op.operands if x is not self.begun[op])
            assert isinstance(dot, DigitDot)
            self.state.values[op] = self._owned(op, [*dot.added_to(self.state.values[begin])])
            return
        a, b = (self.state.values[operand] for operand in op.operands)
        if op.dtype == dtypes.i32:
            found = {pair: self.state.scalar(op.kind, *pair) for pair in dict.fromkeys(zip(a, b, strict=True))}
            result = [found[pair] for pair in zip(a, b, strict=True)]
        else:
            name = FLOAT_INSTRUCTIONS[op.kind]
            result = [self.state.builder.op(name, "f", x, y) for x, y in zip(a, b, strict=True)]
        self.state.values[op] = self._owned(op, result)

    def compare(self, op: Op) -> None:
        a, b = (self.scalar(operand) for operand in op.operands)
        if isinstance(a, int):
            a = self.state.builder.op("mov.b32", "r", a)
        name = COMPARISONS[str(op.attributes["how"])]
        self.state.values[op] = [self.state.builder.op(name, "p", a, b)]

    def exp(self, op: Op) -> None:
        b = self.state.builder
        scaled = [b.op("mul.rn.f32", "f", x, float_immediate(LOG2_E)) for x in self.state.values[op.operands[0]]]
        self.state.values[op] = [b.op("ex2.approx.f32", "f", x) for x in scaled]

    def sqrt(self, op: Op) -> None:
        b = self.state.builder
        self.state.values[op] = [b.op("sqrt.rn.f32", "f", x) for x in self.state.values[op.operands[0]]]

    def fma(self, op: Op) -> None:
        operands = zip(*(self.state.values[operand] for operand in op.operands), strict=True)
        self.state.values[op] = self._owned(op, [self.state.builder.op("fma.rn.f32", "f", *abc) for abc in operands])

    def mul_shift(self, op: Op) -> None:
        b = self.state.builder
        halves: dict[Operand, Operand] = {}  # of the last bit that stays, by shift
        nearest = op.integer("nearest")
        found: list[Operand] = []
        for value, multiplier, shift in zip(*(self.state.values[operand] for operand in op.operands), strict=True):
            if not nearest:
                halves[shift] = b.op("mov.b64", "rd", 0)
            elif shift not in halves:
                one = b.op("shl.b64", "rd", b.op("mov.b64", "rd", 1), shift)
                halves[shift] = b.op("shr.u64", "rd", one, 1)
            operands = (exchange.in_register(self.state, x, "r") for x in (value, multiplier))
            product = b.op("mad.wide.s32", "rd", *operands, halves[shift])
            found.append(b.op("cvt.sat.s32.s64", "r", b.op("shr.s64", "rd", product, shift)))
        self.state.values[op] = self._owned(op, found)

    def rint(self, op: Op) -> None:
        b = self.state.builder
        self.state.values[op] = [b.op("cvt.rni.s32.f32", "r", x) for x in self.state.values[op.operands[0]]]

    def bitcast(self, op: Op) -> None:
        kind = _register_kind(op)
        self.state.values[op] = [self.state.builder.op("mov.b32", kind, x) for x in self.state.values[op.operands[0]]]

    def hadamard(self, op: Op) -> None:
        state, layout = self.state, self.state.layouts[op]
        values = [exchange.in_register(state, value, "f") for value in state.values[op.operands[0]]]
        state.values[op] = self._owned(op, [*exchange.hadamard(state, op, values, layout, AXES[len(op.shape) - 1])])

    def cast(self, op: Op) -> None:
        source, target = op.operands[0].dtype, op.dtype
        assert source is not None and target is not None
        if source == target:
            self.state.values[op] = self._owned(op, self.state.values[op.operands[0]])
            return
        if (source.name, target.name) not in CASTS:
            known = ", ".join(f"{a} to {b}" for a, b in CASTS)
            raise _unsupported(op, f"a cast from {source.name} to {target.name}", f"go by f32; casts are {known}")
        b, name = self.state.builder, CASTS[source.name, target.name]
        values = self.state.values[op.operands[0]]
        if op in self.rounded:
            self.state.values[op] = values
            return
        if source.name == "bf16":  # the upper half of an f32; `cvt` needs a newer PTX than sm_80's
            zero = b.op("mov.b16", "h", 0)
            values = [vector([zero, str(value)]) for value in values]
        if target == dtypes.bf16 and "bf16" not in self.state.target.mma_dtypes:
            self.state.values[op] = [self._bf16_by_integers(value) for value in values]
            return
        self.state.values[op] = [b.op(name, _register_kind(op), value) for value in values]

    def _bf16_by_integers(self, value: Operand) -> Operand:
        """An f32 as bf16, to nearest even, where there is no instruction for it: sums carry into the upper half."""
        b = self.state.builder
        number = exchange.in_register(self.state, value, "f")
        bits = b.op("mov.b32", "r", number)
        odd = b.op("and.b32", "r", b.op("shr.u32", "r", bits, 16), 1)
        carried = b.op("add.u32", "r", b.op("add.u32", "r", bits, odd), 0x7FFF)
        upper = b.op("shr.u32", "r", carried, 16)
        nan = b.op("setp.nan.f32", "p", number, number)
        return b.op("cvt.u16.u32", "h", b.op("selp.b32", "r", 0x7FFF, upper, nan))

    def _rounds(self, store: Op) -> bool:
        """Whether a store rounds its tile itself, two numbers with one instruction."""
        if any(offset.shape for offset in _offsets(store)):
            return False
        layout, target = self.state.layouts[store.operands[0]], self.state.target
        return target.has_paired_casts and turned_layout(self.state, store, layout) is not None

    def assign(self, op: Op) -> None:
        target, value = op.operands
        if op in self.accumulated:
            dot = self.accumulated[op]
            self.dots[dot].emit([str(register) for register in self.state.values[target]])
            return
        bits = BITS[_register_kind(target)]
        for register, source in zip(self.state.values[target], self.state.values[value], strict=True):
            self.state.builder.do(f"mov.b{bits}", register, source)

    # -- rearranging -------------------------------------------------------------------------------------------------

    def _in_layout(self, op: Op, values: list[Operand], source: Layout, target: Layout) -> list[Operand]:
        """A tile of the op's dtype in another layout."""
        if source == target:
            return values
        return exchange.convert(self.state, op, values, _register_kind(op), source, target)

    def _operand(self, op: Op) -> tuple[list[Operand], Layout]:
        """The operand of a broadcast, expand or transpose in the layout that the result's implies."""
        source, layouts = op.operands[0], self.state.layouts
        wanted = operand_layout(op, layouts[op])
        return self._in_layout(op, self.state.values[source], layouts[source], wanted), wanted

    def broadcast(self, op: Op) -> None:
        source = op.operands[0]
        if not source.shape:
            self.state.values[op] = self._owned(op, self.state.values[source] * self.count(op))
            return
        values, layout = self._operand(op)
        skipped = len(op.shape) - len(source.shape)
        axes = {
            AXES[at]: AXES[at + skipped]
            for at in range(len(source.shape))
            if source.shape[at] == op.shape[at + skipped]
        }
        index = {_place(layout, r, axes.keys()): value for r, value in enumerate(values)}
        wanted = [_place(self.state.layouts[op], r, axes.values()) for r in range(self.count(op))]
        self.state.values[op] = self._owned(op, [index[place] for place in wanted])

    def rearrange(self, op: Op) -> None:
        """Expand and transpose rename axes: every value stays in its register."""
        values = self._operand(op)[0] if op.operands[0].shape else self.state.values[op.operands[0]]
        self.state.values[op] = self._owned(op, list(values))

    def reduce(self, op: Op) -> None:
        source, how = op.operands[0], "add" if op.attributes["how"] == "sum" else "max"
        layout, axis = self.state.layouts[source], AXES[op.integer("axis")]
        kind = _register_kind(op)

        values = exchange.reduce_axis(self.state, op, self.state.values[source], kind, layout, axis, how)
        if op.shape:
            values = self._in_layout(op, values, reduced_layout(op, layout), self.state.layouts[op])
        self.state.values[op] = self._owned(op, values)

    # -- memory ------------------------------------------------------------------------------------------------------

    def load(self, op: Op) -> None:
        if op in self.columns:
            pipeline, column = self.columns[op]
            self.state.values[op] = self._owned(op, column.read(op, pipeline.slot, self.state.layouts[op]))
            return
        other = op.attributes["other"]
        assert isinstance(other, int | float)
        self.state.values[op] = self._owned(op, self._access(op).load(other))

    def store(self, op: Op) -> None:
        tile = op.operands[0]
        assert op.array is not None
        if _packs(op):
            assert isinstance(op.array.element, Format)
            wanted = packing_layout(tile.shape, op.array.element, self.state.warps)
            codes = self._in_layout(tile, self.state.values[tile], self.state.layouts[tile], wanted)
            packing.store(self.state, op, codes, [self.scalar(offset) for offset in op.operands[1:]])
            return
        if not any(offset.shape for offset in _offsets(op)):
            self._access(op).store(self.state.values[tile], rounds=tile in self.rounded)
            return
        if op.array in self.unordered:
            self.state.builder.do("bar.sync", 0)
        scatter(self.state, op, [self._indices(op, at) for at in range(len(tile.shape))])

    def _indices(self, op: Op, at: int) -> list[Operand]:
        """The index in the array along an axis of every register of the tile that a store scatters."""
        offset, layout = _offsets(op)[at], self.state.layouts[op.operands[0]]
        if not offset.shape:
            return thread_indices(self.state, layout, AXES[at], self.scalar(offset))
        wanted = index_layout(op, at, layout)
        values = self._in_layout(offset, self.state.values[offset], self.state.layouts[offset], wanted)
        found = {_place(wanted, r, AXES[:1]): value for r, value in enumerate(values)}
        return [found[_place(layout, r, AXES[at : at + 1])] for r in range(1 << layout.ins["register"])]

    def atomic_add(self, op: Op) -> None:
        """Between two barriers one thread adds for all, and hands on through shared memory what it found."""
        assert op.array is not None
        state, b = self.state, self.state.builder
        value, *offsets = (self.scalar(operand) for operand in op.operands)
        slot = memory(state.smem, state.allocate_shared(4, op))
        first = b.op("setp.eq.s32", "p", state.tid, 0)
        inside, index = first, b.op("mov.b64", "rd", 0)
        for dim, offset in zip(op.array.dims, offsets, strict=True):
            place = offset if isinstance(offset, str) else b.op("mov.b32", "r", offset)
            inside = b.op("setp.lt.and.u32", "p", place, state.size(dim), inside)
            size, wide = (b.op("cvt.s64.s32", "rd", number) for number in (state.size(dim), place))
            index = b.op("mad.lo.s64", "rd", index, size, wide)
        pointer = b.op("add.s64", "rd", state.pointer(op.array), b.op("shl.b64", "rd", index, 2))
        before = b.op("mov.b32", "r", 0)
        b.do("bar.sync", 0)
        b.do("atom.acq_rel.gpu.global.add.u32", before, memory(pointer), value, when=inside)
        b.do("st.shared.b32", slot, before, when=first)
        b.do("bar.sync", 0)
        state.values[op] = [b.op("ld.shared.b32", "r", slot)]

    def _access(self, op: Op) -> Access:
        if op.array in self.unordered:
            self.state.builder.do("bar.sync", 0)
        return self.accesses.get(op) or self._make_access(op, [self.scalar(offset) for offset in _scalar_offsets(op)])

    def _make_access(self, op: Op, offsets: list[Operand]) -> Access:
        assert op.array is not None
        if isinstance(op.array.element, Format):
            raise _unsupported(
                op, "packed codes that feed no dot", "write lb.dot(x, lb.dequant(lb.load(w, ...), ...).T)"
            )
        if any(offset.shape for offset in _offsets(op)):
            raise _unsupported(op, "a gathered tile that feeds no dot", "gather what the first operand of a dot loads")
        tile = _tile(op)
        return Access(self.state, op, tile.shape, self.state.layouts[tile], offsets)

    # -- loops -------------------------------------------------------------------------------------------------------

    def range(self, op: Op) -> None:
        state, b = self.state, self.state.builder
        start, stop = (self.scalar(bound) for bound in op.operands)
        affine = self._affine_accesses(op, start)
        starts = {access: offsets for access, (offsets, _) in affine.items()}
        steps = {access: by for access, (_, by) in affine.items()}
        pure = self._only_adds_dots(op)
        if any(map(multiplies_digits, op.body)):
            pipeline: Pipeline | None = build_digit_pipeline(state, op, starts, steps, stop, pure)
        elif any(map(multiplies_dense, op.body)):
            pipeline = build_dense_pipeline(state, op, starts)
        else:
            pipeline = build_pipeline(state, op, starts, stop, pure)
        if pipeline is None:
            state.wait_for_earlier()
        else:
            self._check_staged(pipeline)
            columns = (tile for tile in pipeline.tiles.values() if isinstance(tile, NumberColumns))
            self.columns |= {load: (pipeline, column) for column in columns for load in column.places}
            pipeline.prologue(start, stop)
            changed = self._make_dots(op, pipeline, pure)
        hoisted = self._hoist(op, affine)
        if pipeline is None or not pure:
            state.values[op] = [b.op("mov.b32", "r", start)]
        done, again = b.label("done"), b.label("loop")
        first = pipeline.first if isinstance(pipeline, DirectPipeline) else start
        b.do("bra", done, when=b.op("setp.ge.s32", "p", first, stop))
        b.place(again, together=True)
        state.loop_depth += 1
        if pipeline is None:
            self._pass(op, hoisted)
            (index,) = state.values[op]
            left = b.op("sub.s32", "r", stop, index)  # unsigned and above 0, where the next index may overflow
            b.do("add.s32", index, index, op.integer("step"))
            b.do("bra", again, when=b.op("setp.gt.u32", "p", left, op.integer("step")))
        else:
            self._units(op, pipeline, hoisted, again, done)
        state.loop_depth -= 1
        b.place(done, together=True)
        if pipeline is not None:
            pipeline.drain()
            for dot, registers in changed.items():
                dot.leave(registers)

    def _make_dots(self, loop: Op, pipeline: Pipeline, pure: bool) -> dict[Dot | DigitDot, list[str]]:
        """Prepares a loop's dots; the tiles that hold their numbers in other units until it ends."""
        targets = [op.operands[0] for op in loop.body if op in self.accumulated]
        alone = {
            self.accumulated[assign]: assign.operands[0]
            for assign in loop.body
            if pure and assign in self.accumulated and targets.count(assign.operands[0]) == 1
        }
        for op in loop.body:
            if op.kind == "dot":
                self.dots[op] = self._make_dot(op, pipeline, op in alone)
        changed: dict[Dot | DigitDot, list[str]] = {}
        for op, tile in alone.items():
            dot = self.dots[op]
            changed[dot] = [str(register) for register in self.state.values[tile]]
            dot.enter(changed[dot] if self._may_hold_numbers(tile, loop) else [])
        return changed

    def _make_dot(self, op: Op, pipeline: Pipeline, alone: bool) -> Dot | DigitDot:
        if multiplies_digits(op):
            if isinstance(pipeline, GroupedPipeline):
                return GroupDot(self.state, pipeline, op)
            return (SharedDigitDot if pipeline.unit.lead else DigitDot)(self.state, pipeline, op)
        if multiplies_dense(op):
            return DenseDot(self.state, pipeline, op)
        kept = alone and self.state.warps_m == KEEPERS and has_registers(op)
        shared = HeldDot if self.state.held else KeptDot if kept else SharedDot
        kind = shared if pipeline.unit.lead else Dot
        dot = kind(self.state, pipeline, op)
        dot.prime()
        return dot

    def _may_hold_numbers(self, tile: Op, loop: Op) -> bool:
        """Whether a tile may be other than zero before a loop."""
        if tile.kind != "full" or _number(tile) != 0 or self.state.loop_depth > 0:
            return True
        before = itertools.takewhile(lambda op: op is not loop, walk(self.state.program.body))
        return any(op.kind == "assign" and op.operands[0] is tile for op in before)

    def _units(self, op: Op, pipeline: Pipeline, hoisted: list[Access], again: str, done: str) -> None:
        """Emits one iteration of a pipelined loop: its units, each with a copy of the body, and the branches."""
        state, b, unit = self.state, self.state.builder, pipeline.unit
        first = state.shared_bytes
        for number in range(unit.turn):
            state.shared_bytes = first  # the copies of the body run one after the other
            pipeline.begin_unit(number)
            self._pass(op, hoisted)
            for index in state.values.get(op, ()):
                b.do("add.s32", index, index, unit.k)
            if number < unit.turn - 1 and (number + 1) % unit.period == 0:
                b.do("bra.uni", done, when=b.op("setp.le.s32", "p", pipeline.left, (number + 1) * unit.k))
        pipeline.end_iteration()
        b.do("bra.uni", again, when=b.op("setp.gt.s32", "p", pipeline.left, 0))

    def _pass(self, op: Op, hoisted: list[Access]) -> None:
        """Emits the body of a loop once, and the moves of the accesses that follow the index."""
        self.block(op.body)
        self.state.builder.locate(op.location)
        for access in hoisted:
            access.advance()

    def _only_adds_dots(self, loop: Op) -> bool:
        """Whether a loop does nothing but add dots to tiles, so that it may add several steps' at once."""
        staged = staged_tiles(loop.body)
        return all(
            op in staged or op in self.absorbed or op in self.accumulated or (not op.shape and op.kind in SCALAR_KINDS)
            for op in loop.body
        )

    def when(self, op: Op) -> None:
        b = self.state.builder
        skip = b.label("skip")
        b.do("bra", skip, when=f"!{self.state.values[op.operands[0]][0]}")
        self.block(op.body)
        b.place(skip, together=True)

    def _check_staged(self, pipeline: Pipeline) -> None:
        """What a tile that is fetched ahead of the loop, by the atom's operand type, cannot be."""
        for load, _ in pipeline.tiles:
            assert load.array is not None
            if load.array in self.state.stored:
                raise _unsupported(load, f"a dot of {load.array.name}, which the kernel stores to", "use another array")
            gathers = [offset.array for offset in load.operands if offset.shape]
            if any(array in self.state.stored for array in gathers):
                raise _unsupported(load, "indices from an array that the kernel stores to", "use another array")
            if load.attributes["other"] != 0:
                raise _unsupported(load, f"a dot of a load with other={load.attributes['other']}", "leave it 0")
        for dot in (op for op in pipeline.loop.body if op.kind == "dot"):
            dtype = dot.operands[0].dtype
            if dtype is not None and dtype.is_float and dtype.name != self.state.atom.operand:
                raise _unsupported(dot, f"dots of {self.state.atom.operand} and {dtype}", "use one of them in a kernel")

    def _affine_accesses(self, loop: Op, start: Operand) -> dict[Op, tuple[list[Operand], list[int]]]:
        """Every load and store of the loop whose offsets grow by fixed steps: the offsets at `start`, and the steps."""
        found: dict[Op, tuple[list[Operand], list[int]]] = {}
        for op in loop.body:
            if op.kind not in ("load", "store") or (
                op.kind == "store" and (_packs(op) or any(x.shape for x in _offsets(op)))
            ):
                continue
            offsets = _scalar_offsets(op)
            steps = [_growth(offset, loop) for offset in offsets]
            if None not in steps:
                starts = [self._at_start(offset, loop, start) for offset in offsets]
                found[op] = starts, [step for step in steps if step is not None]
        return found

    def _at_start(self, op: Op, loop: Op, start: Operand) -> Operand:
        """The value of an affine scalar of the loop in the first iteration."""
        if op is loop:
            return start
        if op.kind == "constant":
            return int(_number(op))
        if invariant(op, loop):
            return self.scalar(op)
        return self.state.scalar(op.kind, *(self._at_start(x, loop, start) for x in op.operands))

    def _hoist(self, loop: Op, affine: dict[Op, tuple[list[Operand], list[int]]]) -> list[Access]:
        """Moves the address arithmetic of plain accesses before the loop; returns those that advance."""
        hoisted, first = [], dict[object, tuple[Access, int]]()  # the first of accesses to columns of the same rows
        for op, (starts, steps) in affine.items():
            if _tile(op) not in self.state.layouts or op in self.columns:
                continue
            last, column = starts[-1], op.kind == "load" and len(op.shape) == 2 and op.shape[1] == 1
            rows = (op.array, op.shape, self.state.layouts[_tile(op)], *starts[:-1], *steps, *op.attributes.items())
            if column and isinstance(last, int) and rows in first:
                access, start = first[rows]
                self.accesses[op] = access.beside(last - start)
                continue
            access = self.accesses[op] = self._make_access(op, starts)
            access.follow(steps)
            hoisted.append(access)
            if column and isinstance(last, int) and op.array is not None:
                first[rows] = access, last
                access.together = math.gcd(self.state.program.divisor(op.array.dims[1]), steps[1], last)
        return hoisted

    def dot(self, op: Op) -> None:
        """A dot that is added to a tile is emitted there, into the tile's registers; any other one here."""
        if op not in self.dots:
            raise _unsupported(op, "a dot outside a loop over k", "put it into lb.range")
        if op in self.absorbed:
            return
        b, kind = self.state.builder, _register_kind(op)
        name, zero = ("mov.b32", 0) if kind == "r" else ("mov.f32", float_immediate(0.0))
        registers = [b.op(name, kind, zero) for _ in range(self.count(op))]
        self.dots[op].emit(registers)
        self.state.values[op] = list(registers)

    def dequant(self, op: Op) -> None:
        raise _unsupported(op, "a dequantised tile that is no operand of a dot", "write lb.dot(x, lb.dequant(...).T)")


def accumulations(block: Sequence[Op], uses: Mapping[Op, int]) -> Iterator[tuple[Op, Op, Op]]:
    """(assign, add, dot) of every `tile += dot`: the dot may then accumulate in the tile's own registers.

    Nothing else may use the dot or the sum, nor change the tile between the addition and the assignment.
    """
    for at, op in enumerate(block):
        yield from accumulations(op.body, uses)
        if op.kind != "assign":
            continue
        target, total = op.operands
        if total.kind != "add" or target not in total.operands or uses[total] > 1 or total not in block[:at]:
            continue
        start = block.index(total)
        dots = [x for x in total.operands if x.kind == "dot" and uses[x] == 1 and x in block[:start]]
        if dots and not any(x.kind == "assign" and x.operands[0] is target for x in walk(list(block[start:at]))):
            yield op, total, dots[0]


def beginnings(block: Sequence[Op], uses: Mapping[Op, int], absorbed: set[Op]) -> Iterator[tuple[Op, Op]]:
    """(add, dot) of every other sum of a tile and a dot of codes that nothing else uses: its sums begin at the tile."""
    for op in block:
        yield from beginnings(op.body, uses, absorbed)
        if op.kind == "add" and op not in absorbed:
            dots = [x for x in op.operands if multiplies_digits(x) and uses[x] == 1 and x in block]
            if len(dots) == 1 and op.operands[0].shape == op.operands[1].shape:
                yield op, dots[0]


def stored_casts(block: Sequence[Op], uses: Mapping[Op, int]) -> Iterator[tuple[Op, Op]]:
    """(cast, store) of every f32 tile that is cast, stored right after, and used nowhere else."""
    for cast, store in itertools.pairwise(block):
        stored = store.kind == "store" and store.operands[0] is cast and uses[cast] == 1
        if stored and cast.kind == "cast" and cast.operands[0].dtype == dtypes.f32 and cast.dtype in PAIRED:
            yield cast, store
    for op in block:
        yield from stored_casts(op.body, uses)


def _register_kind(op: Op) -> str:
    """The class of the registers that hold an op's elements."""
    assert op.dtype is not None
    if op.dtype.name not in REGISTER_KIND:
        raise _unsupported(op, f"a tile of {op.dtype.name}", f"use {', '.join(REGISTER_KIND)}")
    return REGISTER_KIND[op.dtype.name]


def _place(layout: Layout, register: int, axes: Iterable[str]) -> tuple[int, ...]:
    image = layout(register=register)
    return tuple(image[axis] for axis in axes)


def _tile(op: Op) -> Op:
    """The tile that a load makes or a store takes."""
    return op if op.kind == "load" else op.operands[0]


def _packs(op: Op) -> bool:
    """Whether a store brings codes into the order of a packed array."""
    return op.array is not None and isinstance(op.array.element, Format)


def _offsets(op: Op) -> tuple[Op, ...]:
    return op.operands if op.kind == "load" else op.operands[1:]


def _scalar_offsets(op: Op) -> list[Op]:
    """The offsets; in place of indices that are loaded, where they are loaded from."""
    return [offset.operands[0] if offset.shape and offset.kind == "load" else offset for offset in _offsets(op)]


def _growth(op: Op, loop: Op) -> int | None:
    """What an i32 scalar grows by from one iteration of a loop to the next; None where that is no fixed number."""
    if op.shape:
        return None
    if op is loop or invariant(op, loop):
        return loop.integer("step") if op is loop else 0
    if op.kind not in ("add", "sub", "mul", "floordiv"):
        return None
    a, b = op.operands
    left, right = _growth(a, loop), _growth(b, loop)
    if left is None or right is None:
        return None
    if op.kind in ("add", "sub"):
        return left + right if op.kind == "add" else left - right
    if left == right == 0:
        return 0
    growth, factor = (left, b) if left else (right, a)
    if factor.kind != "constant":
        return None
    number = int(_number(factor))
    if op.kind == "mul":
        return growth * number
    whole = factor is b and number > 0 and divisor(a) % number == 0  # of every value of a, and of what it grows by
    return growth // number if whole else None


def _number(op: Op) -> int | float:
    value = op.attributes["value"]
    assert isinstance(value, int | float)
    return value


def _unsupported(op: Op, problem: str, fix: str) -> LowbitvmError:
    return LowbitvmError("KERNEL_UNSUPPORTED", problem, fix, op.location)


PAIRED = (dtypes.f16, dtypes.bf16)  # that two f32 are rounded to at once
CASTS = {
    ("f16", "f32"): "cvt.f32.f16",
    ("bf16", "f32"): "mov.b32",
    ("f32", "f16"): "cvt.rn.f16.f32",
    ("f32", "bf16"): "cvt.rn.bf16.f32",
    ("i32", "f32"): "cvt.rn.f32.s32",
    ("i32", "i8"): "cvt.u16.u32",  # in registers of 16 bits, of which stores take 8
    ("i32", "u8"): "cvt.u16.u32",
    ("f32", "i32"): "cvt.rzi.s32.f32",
}

LOWER: dict[str, Callable[[Lowering, Op], None]] = {
    "program_id": Lowering.program_id,
    "dimension": Lowering.dimension,
    "constant": Lowering.constant,
    "full": Lowering.full,
    **dict.fromkeys(("add", "sub", "mul", "div", "floordiv", "mod", "max", "min"), Lowering.binary),
    "exp": Lowering.exp,
    "sqrt": Lowering.sqrt,
    "fma": Lowering.fma,
    "mul_shift": Lowering.mul_shift,
    "cast": Lowering.cast,
    "assign": Lowering.assign,
    "broadcast": Lowering.broadcast,
    "expand": Lowering.rearrange,
    "transpose": Lowering.rearrange,
    "reshape": Lowering.rearrange,
    "rint": Lowering.rint,
    "bitcast": Lowering.bitcast,
    "hadamard": Lowering.hadamard,
    "reduce": Lowering.reduce,
    "load": Lowering.load,
    "store": Lowering.store,
    "atomic_add": Lowering.atomic_add,
    "compare": Lowering.compare,
    "when": Lowering.when,
    "range": Lowering.range,
    "dequant": Lowering.dequant,
    "dot": Lowering.dot,
}
