"""Tile IR with layouts -> PTX: one function per kind of op, in the table LOWER."""

from collections.abc import Callable

from lowbitvm import dtypes
from lowbitvm.codegen.access import REGISTER_KIND, Access
from lowbitvm.codegen.assign import AXES
from lowbitvm.codegen.mma import Dot
from lowbitvm.codegen.pipeline import Pipeline, build_pipeline
from lowbitvm.codegen.ptx import Operand, float_immediate, memory
from lowbitvm.codegen.state import State, invariant
from lowbitvm.errors import LowbitvmError
from lowbitvm.ir import Op, walk
from lowbitvm.layout import Layout

GRID_AXES = ("%ctaid.x", "%ctaid.y", "%ctaid.z")
FLOAT_INSTRUCTIONS = {
    "add": "add.rn.f32",
    "sub": "sub.rn.f32",
    "mul": "mul.rn.f32",
    "div": "div.rn.f32",
    "max": "max.f32",
    "min": "min.f32",
}
LOG2_E = 1.4426950408889634


class Lowering:
    """Emits the ops of a program in order."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.pipelines: dict[Op, Pipeline] = {}
        self.dots: dict[Op, Dot] = {}
        self.accesses: dict[Op, Access] = {}

    def block(self, ops: "tuple[Op, ...] | list[Op]") -> None:
        """Emits a block."""
        for op in ops:
            if op in self.state.layouts or not op.shape or op.dtype is None:
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
        value = op.attributes["value"]
        assert isinstance(value, int | float) and op.dtype is not None
        immediate: Operand = int(value) if op.dtype.is_integer else float_immediate(value)
        if op.dtype not in (dtypes.f32, dtypes.i32):
            raise _unsupported(op, f"a constant tile of {op.dtype.name}", "make it f32 and cast")
        self.state.values[op] = self._owned(op, [immediate] * count)

    def count(self, op: Op) -> int:
        """Registers that a tile takes per thread."""
        return 1 << self.state.layouts[op].ins["register"] if op.shape else 1

    def _owned(self, op: Op, values: list[Operand]) -> list[Operand]:
        """The values, in registers of the op's own if `assign` may overwrite these or the operands' registers."""
        if self.state.assigned.isdisjoint((op, *op.operands)):
            return values
        assert op.dtype is not None
        kind = REGISTER_KIND[op.dtype.name]
        return [self.state.builder.op(f"mov.b{16 if kind == 'h' else 32}", kind, value) for value in values]

    def binary(self, op: Op) -> None:
        a, b = (self.state.values[operand] for operand in op.operands)
        if op.dtype == dtypes.i32:
            result = [self.state.scalar(op.kind, x, y) for x, y in zip(a, b, strict=True)]
        else:
            name = FLOAT_INSTRUCTIONS[op.kind]
            result = [self.state.builder.op(name, "f", x, y) for x, y in zip(a, b, strict=True)]
        self.state.values[op] = self._owned(op, result)

    def exp(self, op: Op) -> None:
        b = self.state.builder
        scaled = [b.op("mul.rn.f32", "f", x, float_immediate(LOG2_E)) for x in self.state.values[op.operands[0]]]
        self.state.values[op] = [b.op("ex2.approx.f32", "f", x) for x in scaled]

    def sqrt(self, op: Op) -> None:
        b = self.state.builder
        self.state.values[op] = [b.op("sqrt.rn.f32", "f", x) for x in self.state.values[op.operands[0]]]

    def cast(self, op: Op) -> None:
        source, target = op.operands[0].dtype, op.dtype
        assert source is not None and target is not None
        name = CASTS.get((source.name, target.name))
        if name is None:
            raise _unsupported(op, f"a cast from {source.name} to {target.name}", f"casts are {sorted(CASTS)}")
        kind = REGISTER_KIND[target.name]
        self.state.values[op] = [self.state.builder.op(name, kind, x) for x in self.state.values[op.operands[0]]]

    def assign(self, op: Op) -> None:
        target, value = op.operands
        dot = self._accumulated(value, target)
        if dot is not None:
            self.dots[dot].emit([str(register) for register in self.state.values[target]])
            return
        assert target.dtype is not None
        bits = 16 if REGISTER_KIND[target.dtype.name] == "h" else 32
        for register, source in zip(self.state.values[target], self.state.values[value], strict=True):
            self.state.builder.do(f"mov.b{bits}", register, source)

    # -- rearranging -------------------------------------------------------------------------------------------------

    def broadcast(self, op: Op) -> None:
        source = op.operands[0]
        if not source.shape:
            self.state.values[op] = self._owned(op, self.state.values[source] * self.count(op))
            return
        layouts = self.state.layouts
        skipped = len(op.shape) - len(source.shape)
        axes = {
            AXES[at]: AXES[at + skipped]
            for at in range(len(source.shape))
            if source.shape[at] == op.shape[at + skipped]
        }
        index = {_place(layouts[source], r, dict.fromkeys(axes)): r for r in range(self.count(source))}
        wanted = [_place(layouts[op], r, dict.fromkeys(axes.values())) for r in range(self.count(op))]
        self.state.values[op] = self._owned(op, [self.state.values[source][index[place]] for place in wanted])

    def same_registers(self, op: Op) -> None:
        self.state.values[op] = self._owned(op, list(self.state.values[op.operands[0]]))

    def reduce(self, op: Op) -> None:
        source = op.operands[0]
        layout, axis = self.state.layouts[source], AXES[op.integer("axis")]
        kind = "add" if op.attributes["how"] == "sum" else "max"
        kept = {name: None for name in layout.outs if name != axis}
        groups: dict[tuple[int, ...], Operand] = {}
        for r, value in enumerate(self.state.values[source]):
            place = _place(layout, r, kept)
            groups[place] = value if place not in groups else self._combine(op, kind, groups[place], value)
        values = list(groups.values())
        for bit, image in enumerate(layout.bases["lane"]):
            if image.get(axis):
                shuffled = [self._shuffle(value, 1 << bit) for value in values]
                values = [self._combine(op, kind, x, y) for x, y in zip(values, shuffled, strict=True)]
        warp_bits = [bit for bit, image in enumerate(layout.bases["warp"]) if image.get(axis)]
        if warp_bits:
            values = self._reduce_warps(op, kind, values, warp_bits)
        self.state.values[op] = self._owned(op, values)

    def _combine(self, op: Op, kind: str, a: Operand, b: Operand) -> Operand:
        if op.dtype == dtypes.i32:
            return self.state.scalar(kind, a, b)
        return self.state.builder.op(FLOAT_INSTRUCTIONS[kind], "f", a, b)

    def _shuffle(self, value: Operand, lanes: int) -> str:
        b = self.state.builder
        kind = "r" if str(value).startswith("%r") else "f"
        register = b.op("mov.b32", kind, value)
        return b.op("shfl.sync.bfly.b32", kind, register, lanes, 31, 0xFFFFFFFF)

    def _reduce_warps(self, op: Op, kind: str, values: list[Operand], warp_bits: list[int]) -> list[Operand]:
        """Every warp writes its values to shared memory, and reads and combines those that differ in `warp_bits`."""
        b, state = self.state.builder, self.state
        offset = state.allocate_shared(4 * state.threads * len(values), op)
        base = b.op("add.s32", "r", b.op("shl.b32", "r", state.tid, 2), state.smem)
        if state.loop_depth:
            b.do("bar.sync", 0)
        for i, value in enumerate(values):
            b.do("st.shared.b32", memory(base, offset + 4 * state.threads * i), b.op("mov.b32", _kind(op), value))
        b.do("bar.sync", 0)
        others = sum(1 << bit for bit in warp_bits) * 128
        first = b.op("and.b32", "r", b.op("shl.b32", "r", state.tid, 2), ~others & 0xFFFFFFFF)
        base = b.op("add.s32", "r", first, state.smem)
        results: list[Operand] = []
        for i in range(len(values)):
            total: Operand | None = None
            for choice in range(1 << len(warp_bits)):
                place = sum(128 << bit for n, bit in enumerate(warp_bits) if choice >> n & 1)
                part = b.op("ld.shared.b32", _kind(op), memory(base, offset + 4 * state.threads * i + place))
                total = part if total is None else self._combine(op, kind, total, part)
            assert total is not None
            results.append(total)
        return results

    # -- memory ------------------------------------------------------------------------------------------------------

    def load(self, op: Op) -> None:
        access = self.accesses.get(op) or Access(
            self.state, op, op.shape, self.state.layouts[op], [self.scalar(offset) for offset in op.operands]
        )
        other = op.attributes["other"]
        assert isinstance(other, int | float)
        self.state.values[op] = self._owned(op, access.load(other))

    def store(self, op: Op) -> None:
        value, *offsets = op.operands
        access = self.accesses.get(op) or Access(
            self.state, op, value.shape, self.state.layouts[value], [self.scalar(offset) for offset in offsets]
        )
        access.store(self.state.values[value])

    # -- loops -------------------------------------------------------------------------------------------------------

    def range(self, op: Op) -> None:
        state, b = self.state, self.state.builder
        start, stop = (self.scalar(bound) for bound in op.operands)
        offsets = self._offsets_at_start(op, start)
        pipeline = build_pipeline(state, op, offsets)
        if pipeline is not None:
            pipeline.prologue(start)
            for dot in (inner for inner in op.body if inner.kind == "dot"):
                self.dots[dot] = Dot(state, pipeline, dot)
        hoisted = self._hoist(op, offsets)
        index = b.op("mov.b32", "r", start)
        state.values[op] = [index]
        done, again = b.label("done"), b.label("loop")
        b.do("bra", done, when=b.op("setp.ge.s32", "p", index, stop))
        b.place(again)
        state.loop_depth += 1
        if pipeline is not None:
            pipeline.begin_iteration()
        self.block(op.body)
        if pipeline is not None:
            pipeline.end_iteration()
        for access, axis in hoisted:
            access.advance(axis, op.integer("step"))
        state.loop_depth -= 1
        b.do("add.s32", index, index, op.integer("step"))
        b.do("bra", again, when=b.op("setp.lt.s32", "p", index, stop))
        b.place(done)
        if pipeline is not None:
            pipeline.drain()

    def _offsets_at_start(self, loop: Op, start: Operand) -> dict[Op, list[Operand]]:
        """For every load and store of the loop whose offsets are the loop's index or do not change: their values."""
        found: dict[Op, list[Operand]] = {}
        for op in loop.body:
            if op.kind not in ("load", "store"):
                continue
            offsets = op.operands if op.kind == "load" else op.operands[1:]
            if all(offset is loop or invariant(offset, loop) for offset in offsets):
                found[op] = [start if offset is loop else self._invariant(offset) for offset in offsets]
        return found

    def _invariant(self, op: Op) -> Operand:
        if op not in self.state.values:
            self.constant(op)
        return self.scalar(op)

    def _hoist(self, loop: Op, offsets: dict[Op, list[Operand]]) -> list[tuple[Access, int]]:
        """Moves the address arithmetic of plain accesses before the loop; returns what advances along which axis."""
        hoisted = []
        for op, values in offsets.items():
            tile = op if op.kind == "load" else op.operands[0]
            if tile not in self.state.layouts:
                continue
            access = Access(self.state, op, tile.shape, self.state.layouts[tile], values)
            self.accesses[op] = access
            operands = op.operands[-len(values) :]
            axes = [axis for axis, offset in enumerate(operands) if offset is loop]
            if axes:
                access.own_registers()
            hoisted += [(access, axis) for axis in axes]
        return hoisted

    def dot(self, op: Op) -> None:
        """A dot that is added to a tile is emitted there, into the tile's registers; any other one here."""
        if op not in self.dots:
            raise _unsupported(op, "a dot outside a loop over k", "put it into lb.range")
        if self._is_accumulated(op):
            return
        b = self.state.builder
        registers = [b.op("mov.f32", "f", float_immediate(0.0)) for _ in range(self.count(op))]
        self.dots[op].emit(registers)
        self.state.values[op] = list(registers)

    def _is_accumulated(self, dot: Op) -> bool:
        return any(self._accumulated(op.operands[1], op.operands[0]) is dot for op in self._assigns())

    def _assigns(self) -> list[Op]:
        return [op for op in walk(self.state.program.body) if op.kind == "assign"]

    def _accumulated(self, value: Op, target: Op) -> Op | None:
        """The dot of `target += dot`, where nothing else uses the dot or the sum."""
        if value.kind != "add" or target not in value.operands or self.state.uses[value] > 1:
            return None
        dots = [x for x in value.operands if x.kind == "dot" and self.state.uses[x] == 1]
        return dots[0] if dots else None

    def add(self, op: Op) -> None:
        if any(operand.kind == "dot" and operand not in self.state.values for operand in op.operands):
            return  # emitted by the `assign` that uses it
        self.binary(op)


def _kind(op: Op) -> str:
    return "r" if op.dtype == dtypes.i32 else "f"


def _place(layout: Layout, register: int, axes: "dict[str, None]") -> tuple[int, ...]:
    image = layout(register=register)
    return tuple(image[axis] for axis in axes)


def _unsupported(op: Op, problem: str, fix: str) -> LowbitvmError:
    return LowbitvmError("KERNEL_UNSUPPORTED", problem, fix, op.location)


CASTS = {
    ("f16", "f32"): "cvt.f32.f16",
    ("bf16", "f32"): "cvt.f32.bf16",
    ("f32", "f16"): "cvt.rn.f16.f32",
    ("f32", "bf16"): "cvt.rn.bf16.f32",
    ("i32", "f32"): "cvt.rn.f32.s32",
    ("f32", "i32"): "cvt.rzi.s32.f32",
}

LOWER: dict[str, Callable[[Lowering, Op], None]] = {
    "program_id": Lowering.program_id,
    "dimension": Lowering.dimension,
    "constant": Lowering.constant,
    "full": Lowering.full,
    "add": Lowering.add,
    **dict.fromkeys(("sub", "mul", "div", "floordiv", "mod", "max", "min"), Lowering.binary),
    "exp": Lowering.exp,
    "sqrt": Lowering.sqrt,
    "cast": Lowering.cast,
    "assign": Lowering.assign,
    "broadcast": Lowering.broadcast,
    "expand": Lowering.same_registers,
    "transpose": Lowering.same_registers,
    "reduce": Lowering.reduce,
    "load": Lowering.load,
    "store": Lowering.store,
    "range": Lowering.range,
    "dot": Lowering.dot,
}
