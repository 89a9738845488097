"""Plain loads and stores of register tiles: addresses, masks and vector widths, derived from the tile's layout."""

import copy
import math

import numpy as np

from lowbitvm import dtypes
from lowbitvm.codegen.assign import AXES
from lowbitvm.codegen.exchange import BITS, in_register, owner_predicate
from lowbitvm.codegen.ptx import Operand, float_immediate, hinted, memory, vector, vector_suffix
from lowbitvm.codegen.state import State, divisor, size_bytes
from lowbitvm.errors import LowbitvmError
from lowbitvm.ir import Array, Op, Program, walk
from lowbitvm.layout import Layout

MAX_VECTOR_BYTES = 16
ACCESSES = ("load", "store", "atomic_add")
REGISTER_KIND = {"f16": "h", "bf16": "h", "f32": "f", "i32": "r", "i8": "h", "u8": "h"}


class Access:
    """Where each thread finds its elements of one tile of an array; `advance` moves the tile in a loop.

    shift: columns from where the pointers show. together: columns that are all inside the array or all outside.
    """

    shift, together = 0, 1

    def __init__(self, state: State, op: Op, shape: tuple[int, ...], layout: Layout, offsets: list[Operand]) -> None:
        assert op.array is not None and isinstance(op.array.element, dtypes.DType)
        turned, worded = turned_layout(state, op, layout), worded_layout(state, op, layout)
        self.word = ByteWords(state, layout) if worded else None
        layout = turned or worded or layout
        self.state, self.op, self.array, self.layout, self.turned = state, op, op.array, layout, turned is not None
        self.dtype = op.array.element
        if self.dtype.name not in REGISTER_KIND:
            raise LowbitvmError(
                "KERNEL_UNSUPPORTED",
                f"{op.kind} of {self.array}",
                f"use arrays of {', '.join(REGISTER_KIND)}",
                op.location,
            )
        self.axes = AXES[: len(shape)]
        thread_images = [*layout.bases["lane"], *layout.bases["warp"]]
        b = state.builder
        self.starts: list[Operand] = []  # per axis the index of the thread's register 0
        for axis, offset in zip(self.axes, offsets, strict=True):
            inside = state.linear(state.tid, [image[axis] for image in thread_images])
            self.starts.append(state.scalar("add", offset, inside))
        self.owner = owner_predicate(state, layout) if op.kind == "store" else None
        self.width = 4 if worded else vector_width(state, op, layout)
        self.pitches = self._pitches()
        address: str = state.pointer(self.array)
        for start, pitch in zip(self.starts, self.pitches, strict=True):
            wide = _offset(state, start, pitch)
            address = address if wide == 0 else b.op("add.s64", "rd", address, wide)
        self.address = address
        rows = dict.fromkeys(self._constant(r)[:-1] for r in range(1 << layout.ins["register"]))
        self.pointers = {row: self._row_pointer(row) for row in rows}
        self.counts = [0] * len(shape)
        self.step: Operand = 0

    def follow(self, counts: list[int]) -> None:
        """Prepares `advance` to move the tile by `counts` elements per axis."""
        b = self.state.builder
        self.counts = counts
        for count, pitch in zip(counts, self.pitches, strict=True):
            distance = _offset(self.state, count, pitch)
            if isinstance(self.step, int) and isinstance(distance, int):
                self.step += distance
            else:
                self.step = b.op("add.s64", "rd", distance, self.step)
        if any(counts):  # what changes needs registers of its own
            self.starts = [
                b.op("mov.b32", "r", start) if n else start for n, start in zip(counts, self.starts, strict=True)
            ]
            self.pointers = {row: b.op("mov.b64", "rd", pointer) for row, pointer in self.pointers.items()}

    def advance(self) -> None:
        """Emits the move that `follow` prepared."""
        b = self.state.builder
        for start, count in zip(self.starts, self.counts, strict=True):
            if count:
                b.do("add.s32", start, start, count)
        if any(self.counts):
            for pointer in self.pointers.values():
                b.do("add.s64", pointer, pointer, self.step)

    def beside(self, columns: int) -> "Access":
        """The access to a tile of one column, so many columns further on: it moves with this one."""
        other = copy.copy(self)
        other.shift = columns
        return other

    def load(self, other: float) -> list[Operand]:
        """Emits the loads; masked elements are `other`."""
        state, b = self.state, self.state.builder
        result: list[Operand] = []
        kind = REGISTER_KIND[self.dtype.name]
        packed = kind == "h" and self.width > 1  # two elements to a register
        name = state.load_name(self.array)
        for pointer, offset, mask in self._pieces():
            registers = [b.register("r" if packed else kind) for _ in range(self.width // (1 + packed))]
            bits = 32 if packed else self.dtype.bits
            for register in registers:
                b.do(f"mov.b{32 if packed else BITS[kind]}", register, immediate(other, self.dtype, pair=packed))
            loaded, operands = hinted(name, (vector(registers), memory(pointer, offset)), state.policy(self.op))
            b.do(f"{loaded}{vector_suffix(registers)}.b{bits}", *operands, when=mask)
            if self.turned:
                registers = [transposed(state, register) for register in registers]
            result += _split(state, registers) if packed else registers
        return result

    def store(self, values: list[Operand], rounds: bool = False) -> None:
        """Emits the stores of one value per register of the tile's layout.

        rounds: they are f32, to be rounded to the array's 16 bits; for accesses by pairs only.
        """
        b = self.state.builder
        kind = REGISTER_KIND[self.dtype.name]
        packed = kind == "h" and self.width > 1
        for piece, (pointer, offset, mask) in enumerate(self._pieces()):
            own = values[piece * self.width : (piece + 1) * self.width]
            registers = [in_register(self.state, value, "f" if rounds else kind) for value in own]
            if self.word is not None:
                b.do("st.global.b32", memory(pointer, offset), self.word.of(registers), when=mask)
                continue
            if packed:
                pairs = zip(registers[::2], registers[1::2], strict=True)
                registers = [self._pair(low, high, rounds) for low, high in pairs]
            name = f"st.global{vector_suffix(registers)}.b{32 if packed else self.dtype.bits}"
            b.do(name, memory(pointer, offset), vector(registers), when=mask)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _pair(self, low: str, high: str, rounds: bool) -> str:
        """Emits a register of two numbers that are neighbours in the array."""
        b = self.state.builder
        if rounds:
            pair = b.op(f"cvt.rn.{self.dtype.name}x2.f32", "r", high, low)
        else:
            pair = b.op("mov.b32", "r", vector([low, high]))
        return transposed(self.state, pair) if self.turned else pair

    def _pieces(self) -> list[tuple[str, int, str]]:
        """(pointer, byte offset, mask) of every vector, in the order of the registers."""
        masks: dict[tuple[int, ...], str] = {}
        row_masks: dict[tuple[int, ...], str | None] = {}
        pieces = []
        for register in range(0, 1 << self.layout.ins["register"], self.width):
            constant = self._constant(register)
            row, column = constant[:-1], constant[-1]
            if row not in row_masks:
                row_masks[row] = self._row_mask(row)
            if constant not in masks:
                masks[constant] = self._below(len(self.axes) - 1, column, row_masks[row])
            pieces.append((self.pointers[row], column * size_bytes(self.dtype), masks[constant]))
        return pieces

    def _row_mask(self, row: tuple[int, ...]) -> str | None:
        mask = self.owner
        for axis, constant in enumerate(row):
            mask = self._below(axis, constant, mask)
        return mask

    def _below(self, axis: int, constant: int, mask: str | None) -> str:
        """A predicate: start + constant < size, and `mask`. Unsigned, so that negative indices are masked too."""
        b = self.state.builder
        if axis == len(self.axes) - 1:
            constant -= constant % self.together
        index = self.state.scalar("add", self.starts[axis], constant)
        if isinstance(index, int):
            index = b.op("mov.b32", "r", index)
        size = self.state.size(self.array.dims[axis])
        if mask is None:
            return b.op("setp.lt.u32", "p", index, size)
        return b.op("setp.lt.and.u32", "p", index, size, mask)

    def _constant(self, register: int) -> tuple[int, ...]:
        """The index of a register's element relative to the thread's register 0, per axis."""
        image = self.layout(register=register)
        *rows, last = (image[axis] for axis in self.axes)
        return (*rows, last + self.shift)

    def _row_pointer(self, row: tuple[int, ...]) -> str:
        pointer = self.address
        for axis, constant in enumerate(row):
            offset = _offset(self.state, constant, self.pitches[axis])
            pointer = pointer if offset == 0 else self.state.builder.op("add.s64", "rd", pointer, offset)
        return pointer

    def _pitches(self) -> list[str | int]:
        """Bytes from one index to the next, per axis: the last one is a known number."""
        b, pitches = self.state.builder, [size_bytes(self.dtype)]
        result: list[str | int] = list(pitches)
        for dim in reversed(self.array.dims[1:]):
            inner = result[0]
            if isinstance(inner, int):
                result.insert(0, b.op("mul.wide.s32", "rd", self.state.size(dim), inner))
            else:
                wide = b.op("cvt.s64.s32", "rd", self.state.size(dim))
                result.insert(0, b.op("mul.lo.s64", "rd", inner, wide))
        return result


def vector_width(state: State, op: Op, layout: Layout) -> int:
    """Elements per access: what the low registers cover in a row, and what alignment and masks allow."""
    assert op.array is not None and isinstance(op.array.element, dtypes.DType)
    axis = AXES[len(op.array.dims) - 1]
    if op.array.element.bits == 8:  # lies in a register of 16
        return 1
    limit = layout.vector_width(out_dim=axis, element_bits=op.array.element.bits, max_bits=8 * MAX_VECTOR_BYTES)
    return math.gcd(limit, state.program.divisor(op.array.dims[-1]), divisor(op.operands[-1]))


def turned_layout(state: State, op: Op, layout: Layout) -> Layout | None:
    """The layout of a tile that an access has in memory order, where transposing 8 x 8 numbers makes it wider.

    `movmatrix` takes matrices whose row is the upper three bits of the lane, and the column the lower two and the half
    of the register, and hands out their transposes alike (PTX ISA, movmatrix). So the pairs of a fragment that are
    neighbours along rows of activations become neighbours along out_features:
    (register: i0 ..., lane: i1 i2 j0 j1 j2) -> (register: j0 ..., lane: j1 j2 i0 i1 i2).
    None where that is no gain, or where other accesses of the same array rely on the layout.
    """
    assert op.array is not None and isinstance(op.array.element, dtypes.DType)
    accesses = [other for other in walk(state.program.body) if other.array is op.array and other.kind in ACCESSES]
    shared = op.array in state.stored and len(accesses) > 1
    if op.array.element.bits != 16 or layout.ins["register"] == 0 or shared:
        return None
    (first, *others), (a, b, c, d, e) = layout.bases["register"], layout.bases["lane"]
    turned = Layout({**layout.bases, "register": [c, *others], "lane": [d, e, first, a, b]}, layout.outs)
    return turned if vector_width(state, op, turned) > vector_width(state, op, layout) else None


def worded_layout(state: State, op: Op, layout: Layout) -> Layout | None:
    """The layout in which a store of bytes takes words of four neighbours, made by `ByteWords`; None for others.

    Lanes have neighbours along the last axis, and at least four registers each:
    (register: a b ..., lane: ... j0 j1 ...) -> (register: j0 j1 ..., lane: ... a b ...).
    """
    assert op.array is not None and isinstance(op.array.element, dtypes.DType)
    lanes, registers = neighbour_lanes(layout), layout.bases["register"]
    divides = math.gcd(state.program.divisor(op.array.dims[-1]), divisor(op.operands[-1])) % 4 == 0
    alone = sum(x.array is op.array and x.kind in ACCESSES for x in walk(state.program.body)) == 1
    if op.array.element.bits != 8 or op.kind != "store" or not (divides and alone and lanes) or len(registers) < 2:
        return None
    images = list(layout.bases["lane"])
    neighbours = [images[lane] for lane in lanes]
    for lane, image in zip(lanes, registers, strict=False):
        images[lane] = image
    return Layout({**layout.bases, "register": [*neighbours, *registers[2:]], "lane": images}, layout.outs)


def neighbour_lanes(layout: Layout) -> list[int]:
    """The two bits of the lane that are the lowest ones of the last axis; none where these are no such bits."""
    axis = AXES[len(layout.outs) - 1]
    places = [
        i
        for step in (1, 2)
        for i, image in enumerate(layout.bases["lane"])
        if {out: part for out, part in image.items() if part} == {axis: step}
    ]
    return places if len(places) == 2 else []


class ByteWords:
    """Transposes 4 x 4 bytes among lanes: four registers of four lanes become a word of four neighbours for each."""

    SELECTORS = ((0x6240, 0x3715), (0x5410, 0x3276))  # of prmt, for either value of the lane's bit

    def __init__(self, state: State, layout: Layout) -> None:
        self.state, self.lanes = state, neighbour_lanes(layout)
        b = state.builder
        self.selectors = []
        for lane, (zero, one) in zip(self.lanes, self.SELECTORS, strict=True):
            bit = b.op("setp.ne.s32", "p", b.op("and.b32", "r", state.tid, 1 << lane), 0)
            self.selectors.append(b.op("selp.b32", "r", one, zero, bit))

    def of(self, registers: list[str]) -> str:
        """Emits the word of a lane of four registers of 16 bits."""
        b = self.state.builder
        pairs = [b.op("mov.b32", "r", vector(registers[i : i + 2])) for i in (0, 2)]
        word = b.op("prmt.b32", "r", *pairs, 0x6420)  # the lower bytes
        for lane, selector in zip(self.lanes, self.selectors, strict=True):
            other = b.op("shfl.sync.bfly.b32", "r", word, 1 << lane, 31, 0xFFFFFFFF)
            word = b.op("prmt.b32", "r", word, other, selector)
        return word


def transposed(state: State, register: str) -> str:
    """Emits the transposition of the warp's 8 x 8 matrix of 16-bit numbers."""
    state.builder.needs("7.8")
    return state.builder.op("movmatrix.sync.aligned.m8n8.trans.b16", "r", register)


def unordered_arrays(program: Program, layouts: dict[Op, Layout]) -> set[Array]:
    """The arrays whose elements different threads of a block touch, one of them to store: accesses need barriers.

    Not so where all accesses have one layout without copies, and offsets that are multiples of the tile's shape: an
    element is always the same thread's then.
    """
    accesses: dict[Array, list[Op]] = {}
    for op in walk(program.body):
        if op.kind in ("load", "store") and op.array is not None:
            accesses.setdefault(op.array, []).append(op)
    found = set()
    for array, ops in accesses.items():
        stores = [op for op in ops if op.kind == "store"]
        if not stores or (len(ops) == 1 and stores[0] in program.body):
            continue
        used = {layouts.get(op if op.kind == "load" else op.operands[0]) for op in ops}
        if len(used) > 1 or not all(map(_on_tile_grid, ops)) or (len(stores) < len(ops) and _has_copies(used)):
            found.add(array)
    return found


def _on_tile_grid(op: Op) -> bool:
    shape, offsets = (op.operands[0].shape, op.operands[1:]) if op.kind == "store" else (op.shape, op.operands)
    return all(divisor(offset) % size == 0 for offset, size in zip(offsets, shape, strict=True))


def _has_copies(layouts: set[Layout | None]) -> bool:
    return not all(layout is not None and layout.is_injective for layout in layouts)


def _offset(state: State, index: Operand, pitch: Operand) -> Operand:
    """index * pitch in bytes, 64 bits."""
    b = state.builder
    if isinstance(index, int) and isinstance(pitch, int):
        return index * pitch
    if index == 0:
        return 0
    if isinstance(pitch, int):
        return b.op("mul.wide.s32", "rd", index, pitch)
    wide = b.op("cvt.s64.s32", "rd", index) if isinstance(index, str) else index
    return b.op("mul.lo.s64", "rd", pitch, wide)


def immediate(value: float, dtype: dtypes.DType, pair: bool = False) -> Operand:
    """The bits of a number as mov's operand; with `pair` those of a 16-bit number in both halves of a register."""
    if dtype.is_integer:
        return int(value)
    if dtype == dtypes.f32:
        return float_immediate(value)
    bits = int(np.array(value, dtype.numpy).view(np.uint16))
    return bits << 16 | bits if pair else bits


def _split(state: State, words: list[str]) -> list[Operand]:
    """The 16-bit halves of 32-bit registers, low halves first."""
    halves: list[Operand] = []
    for word in words:
        pair = [state.builder.register("h"), state.builder.register("h")]
        state.builder.do("mov.b32", vector(pair), word)
        halves += pair
    return halves
