"""Plain loads and stores of register tiles: addresses, masks and vector widths, derived from the tile's layout."""

import struct

import numpy as np

from lowbitvm import dtypes
from lowbitvm.codegen.assign import AXES
from lowbitvm.codegen.ptx import Operand, float_immediate, memory, vector
from lowbitvm.codegen.state import State, divisor, size_bytes
from lowbitvm.errors import LowbitvmError
from lowbitvm.ir import Op
from lowbitvm.layout import Layout

MAX_VECTOR_BYTES = 16
REGISTER_KIND = {"f16": "h", "bf16": "h", "f32": "f", "i32": "r"}


class Access:
    """Where each thread finds its elements of one tile of an array; `advance` moves the tile along an axis."""

    def __init__(self, state: State, op: Op, shape: tuple[int, ...], layout: Layout, offsets: list[Operand]) -> None:
        assert op.array is not None and isinstance(op.array.element, dtypes.DType)
        self.state, self.op, self.array, self.layout = state, op, op.array, layout
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
        self.owner = self._owner_predicate() if op.kind == "store" else None
        self.width = self._vector_width(op)
        self.pitches = self._pitches()
        address: str = state.pointer(self.array)
        for start, pitch in zip(self.starts, self.pitches, strict=True):
            wide = _offset(state, start, pitch)
            address = address if wide == 0 else b.op("add.s64", "rd", address, wide)
        self.address = address
        rows = dict.fromkeys(self._constant(r)[:-1] for r in range(1 << layout.ins["register"]))
        self.pointers = {row: self._row_pointer(row) for row in rows}

    def advance(self, axis: int, count: int) -> None:
        """Emits the move of the whole tile by `count` elements along an axis."""
        b, step = self.state.builder, _offset(self.state, count, self.pitches[axis])
        self.starts[axis] = self._in_place(self.starts[axis], count)
        for pointer in set(self.pointers.values()):
            b.do("add.s64", pointer, pointer, step)

    def own_registers(self) -> None:
        """Copies what `advance` changes into registers of this access's own."""
        b = self.state.builder
        self.starts = [b.op("mov.b32", "r", start) for start in self.starts]
        self.pointers = {row: b.op("mov.b64", "rd", pointer) for row, pointer in self.pointers.items()}

    def load(self, other: float) -> list[Operand]:
        """Emits the loads; masked elements are `other`."""
        state, b = self.state, self.state.builder
        result: list[Operand] = []
        kind = REGISTER_KIND[self.dtype.name]
        written = self.array in state.stored
        name = "ld.global" if written else "ld.global.nc"
        for pointer, offset, mask in self._pieces():
            registers = [b.register(kind if self.width == 1 else _wide_kind(kind)) for _ in range(self._words())]
            for register in registers:
                b.do(f"mov.b{_register_bits(register)}", register, self._immediate(other, register))
            suffix = f".v{len(registers)}" if len(registers) > 1 else ""
            bits = _register_bits(registers[0])
            b.do(f"{name}{suffix}.b{bits}", vector(registers), memory(pointer, offset), when=mask)
            result += _split(state, registers) if kind == "h" and self.width > 1 else registers
        return result

    def store(self, values: list[Operand]) -> None:
        """Emits the stores of one value per register of the layout."""
        state, b = self.state, self.state.builder
        kind = REGISTER_KIND[self.dtype.name]
        for piece, (pointer, offset, mask) in enumerate(self._pieces()):
            registers = [
                _materialise(state, value, kind) for value in values[piece * self.width : (piece + 1) * self.width]
            ]
            if kind == "h" and self.width > 1:
                pairs = zip(registers[::2], registers[1::2], strict=True)
                registers = [b.op("mov.b32", "r", vector([low, high])) for low, high in pairs]
            suffix = f".v{len(registers)}" if len(registers) > 1 else ""
            name = f"st.global{suffix}.b{_register_bits(registers[0])}"
            b.do(name, memory(pointer, offset), vector(registers), when=mask)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _pieces(self) -> list[tuple[str, int, str]]:
        """(pointer, byte offset, mask) of every vector, in the order of the registers."""
        masks: dict[tuple[int, int], str] = {}
        row_masks: dict[tuple[int, ...], str | None] = {}
        pieces = []
        for register in range(0, 1 << self.layout.ins["register"], self.width):
            constant = self._constant(register)
            row, column = constant[:-1], constant[-1]
            if row not in row_masks:
                row_masks[row] = self._row_mask(row)
            key = (list(row_masks).index(row), column)
            if key not in masks:
                masks[key] = self._below(len(self.axes) - 1, column, row_masks[row])
            pieces.append((self.pointers[row], column * size_bytes(self.dtype), masks[key]))
        return pieces

    def _row_mask(self, row: tuple[int, ...]) -> str | None:
        mask = self.owner
        for axis, constant in enumerate(row):
            mask = self._below(axis, constant, mask)
        return mask

    def _below(self, axis: int, constant: int, mask: str | None) -> str:
        """A predicate: start + constant < size, and `mask`. Unsigned, so that negative indices are masked too."""
        b = self.state.builder
        index = self.state.scalar("add", self.starts[axis], constant)
        if isinstance(index, int):
            index = b.op("mov.b32", "r", index)
        size = self.state.size(self.array.dims[axis])
        if mask is None:
            return b.op("setp.lt.u32", "p", index, size)
        return b.op("setp.lt.and.u32", "p", index, size, mask)

    def _constant(self, register: int) -> tuple[int, ...]:
        """The index of a register's element relative to the thread's register 0, per axis."""
        image = [0] * len(self.axes)
        for bit, basis in enumerate(self.layout.bases["register"]):
            if register >> bit & 1:
                image = [at ^ basis[axis] for at, axis in zip(image, self.axes, strict=True)]
        return tuple(image)

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

    def _vector_width(self, op: Op) -> int:
        """Elements per access: what the low registers cover in a row, and what alignment and masks allow."""
        last = self.axes[-1]
        contiguous = 0
        for bit, image in enumerate(self.layout.bases["register"]):
            if {axis: at for axis, at in image.items() if at} != {last: 1 << bit}:
                break
            contiguous += 1
        offsets = op.operands[-len(self.axes) :]
        aligned = np.gcd(self.state.program.divisor(self.array.dims[-1]), divisor(offsets[-1]))
        limit = int(min(1 << contiguous, MAX_VECTOR_BYTES // size_bytes(self.dtype)))
        width = 1
        while width < limit and aligned % (2 * width) == 0:
            width *= 2
        return width

    def _owner_predicate(self) -> str | None:
        """For replicated tiles: true in the one thread that stores an element."""
        bases = [*self.layout.bases["lane"], *self.layout.bases["warp"]]
        copies = sum(1 << bit for bit, image in enumerate(bases) if not any(image.values()))
        if not copies:
            return None
        b = self.state.builder
        return b.op("setp.eq.u32", "p", b.op("and.b32", "r", self.state.tid, copies), 0)

    def _words(self) -> int:
        bits = self.width * self.dtype.bits
        return 1 if self.width == 1 else bits // 32

    def _immediate(self, value: float, register: str) -> Operand:
        if self.dtype.is_integer:
            return int(value)
        if self.dtype == dtypes.f32:
            return float_immediate(value) if register.startswith("%f") else _f32_bits(value)
        bits = int(np.array(value, self.dtype.numpy).view(np.uint16))
        return bits if register.startswith("%h") else bits << 16 | bits

    def _in_place(self, start: Operand, count: int) -> Operand:
        assert isinstance(start, str)
        self.state.builder.do("add.s32", start, start, count)
        return start


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


def _materialise(state: State, value: Operand, kind: str) -> str:
    bits = {"h": 16, "r": 32, "f": 32}[kind]
    return value if isinstance(value, str) and value.startswith("%") else state.builder.op(f"mov.b{bits}", kind, value)


def _wide_kind(kind: str) -> str:
    return "r" if kind == "h" else kind


def _register_bits(register: str) -> int:
    return 16 if register.startswith("%h") else 32


def _split(state: State, words: list[str]) -> list[Operand]:
    """The 16-bit halves of 32-bit registers, low halves first."""
    halves: list[Operand] = []
    for word in words:
        pair = [state.builder.register("h"), state.builder.register("h")]
        state.builder.do("mov.b32", vector(pair), word)
        halves += pair
    return halves


def _f32_bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
