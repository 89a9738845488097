"""What a launch passes to a kernel: arrays as device buffers at made-up addresses, and the parameters' bytes."""

import math
import mmap
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from struct import pack
from typing import Any

import numpy as np

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.emulator.decode import Program
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Variable
from lowbitvm.runtime.emulator.variables import FIRST_ARRAY, REGION_SHIFT

Array = np.ndarray[Any, np.dtype[Any]]
POINTER_BYTES = 8


def invalid(problem: str, fix: str) -> LowbitvmError:
    return LowbitvmError("ARGUMENT_INVALID", problem, fix)


@dataclass(frozen=True)
class Output:
    """A device buffer whose present contents a kernel must not read."""

    array: Array


def output(array: Array) -> Output:
    """Mark an array as uninitialised: reading a byte before the kernel wrote it is a finding."""
    return Output(array)


@dataclass(frozen=True)
class Pointer:
    """The address of a device buffer's byte `offset`."""

    target: "Array | Output | Struct"
    offset: int


def pointer(array: "Array | Output | Struct", offset: int = 0) -> Pointer:
    """The address of byte `offset` of an array or `output(array)`, from 0 to its size.

    The kernel may reach the whole array from there; a view of it would be a buffer that begins there. The address of a
    `struct(...)` is that of memory that holds it, which the kernel must not write: tables of addresses. Raises
    ARGUMENT_INVALID.
    """
    target = array.array if isinstance(array, Output) else array
    if not isinstance(target, np.ndarray | Struct):
        raise invalid(f"a pointer is to a {type(array).__name__}", "give it an array, output(array) or struct(...)")
    size = len(target.data) if isinstance(target, Struct) else target.nbytes
    if not 0 <= offset <= size:
        raise invalid(f"a pointer is to byte {offset} of an array of {size}", "stay within the array")
    return Pointer(array, int(offset))


@dataclass(frozen=True)
class Struct:
    """A parameter of many bytes, and the addresses in it: by offset, what findings call them and what they point to."""

    data: bytes
    pointers: dict[int, tuple[str, Pointer]]


def struct(
    template: bytes | bytearray | np.void | Array, pointers: Mapping[int | str, Array | Output | Pointer]
) -> Struct:
    """A struct that a kernel takes by value, or behind a `pointer`, with addresses of device buffers in it.

    `template`: its bytes, or a numpy scalar of a structured type with the layout of the struct; where the addresses
    stand, it may hold anything. `pointers`: by the byte offset or the name of the field ("outer.inner" of nested
    ones), what its eight bytes point to: an array, `output(array)` or `pointer(array, offset)`. Raises
    ARGUMENT_INVALID.
    """
    data = template.tobytes() if isinstance(template, np.generic | np.ndarray) else bytes(template)
    placed: dict[int, tuple[str, Pointer]] = {}
    for where, target in pointers.items():
        offset = _field_offset(template, where) if isinstance(where, str) else int(where)
        if not 0 <= offset <= len(data) - POINTER_BYTES:
            raise invalid(
                f"a pointer stands at byte {offset} of a struct of {len(data)} bytes",
                f"leave its {POINTER_BYTES} bytes inside the struct",
            )
        near = next((other for other in placed if abs(other - offset) < POINTER_BYTES), None)
        if near is not None:
            raise invalid(f"pointers stand at bytes {near} and {offset} of a struct", "give each 8 bytes of its own")
        label = f".{where}" if isinstance(where, str) else f"+{offset}"
        placed[offset] = label, target if isinstance(target, Pointer) else pointer(target)
    return Struct(data, placed)


def _field_offset(template: Any, name: str) -> int:
    """Where a field of a structured type stands, which has eight bytes."""
    kind, offset = getattr(template, "dtype", None), 0
    for part in name.split("."):
        fields = kind.fields if kind is not None else None
        if not fields or part not in fields:
            names = f"only {', '.join(fields)}" if fields else "which has no named fields"
            raise invalid(f"the field {name} is not in the template, {names}", "name a field, or give the byte offset")
        kind, offset = fields[part][0], offset + fields[part][1]
    if kind is None or kind.itemsize != POINTER_BYTES:
        size = kind.itemsize if kind is not None else 0
        raise invalid(f"the field {name} has {size} bytes, an address {POINTER_BYTES}", "make it a u8 in numpy's terms")
    return offset


def sparse(shape: int | Sequence[int], dtype: Any) -> Array:
    """An array of zeros of any size that takes memory only where it is touched.

    Shape and dtype are numpy's. The system provides pages when they are first written, so that a buffer beyond 2^31
    elements costs what a kernel uses of it.
    """
    kind = np.dtype(dtype)
    count = math.prod((shape,) if isinstance(shape, int) else shape)
    unreserved = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE, which the mmap module names from 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | unreserved
    memory = mmap.mmap(-1, max(count * kind.itemsize, 1), flags=flags)
    array: Array = np.frombuffer(memory, np.uint8, count * kind.itemsize).view(kind).reshape(shape)
    return array


@dataclass(frozen=True)
class Origin:
    """Where a launch names a buffer: an argument's number, for one in a struct its offset there, and a name.

    `number` is None for the module's variables.
    """

    number: int | None
    name: str
    offset: int | None = None

    @property
    def key(self) -> int | tuple[int, int] | None:
        """What reports know the buffer by."""
        return self.number if self.number is None or self.offset is None else (self.number, self.offset)

    def __str__(self) -> str:
        if self.number is None:
            return f"the variable {self.name}"
        return f"argument {self.number}" + (f", {self.name}" if self.offset is not None else "")


@dataclass
class Buffer:
    array: Array
    base: int
    uninitialised: bool
    origin: Origin
    stored: bool  # the kernel may store to it

    def core_view(self) -> tuple[Array, int, bool, bool, bool]:
        data = self.array.reshape(-1).view(np.uint8)
        return data, self.base, self.array.flags.writeable, self.uninitialised, self.stored


@dataclass
class _Memory:
    """Device buffers, each with an address range of its own; the same bytes given twice are one."""

    buffers: list[Buffer]
    known: dict[tuple[int, int], Buffer] = field(default_factory=dict)

    def address(self, pointer: Pointer, origin: Origin, stored: bool) -> int:
        buffer = self.buffer(pointer.target, origin)
        buffer.stored |= stored
        return buffer.base + pointer.offset

    def contents(self, given: Struct, origin: Origin, stored: bool) -> bytearray:
        """A struct's bytes, with the addresses in it."""
        data = bytearray(given.data)
        for place, (label, target) in given.pointers.items():
            address = self.address(target, Origin(origin.number, origin.name + label, place), stored)
            data[place : place + POINTER_BYTES] = address.to_bytes(POINTER_BYTES, "little")
        return data

    def buffer(self, target: Array | Output | Struct, origin: Origin) -> Buffer:
        if isinstance(target, Struct):
            array = np.array(self.contents(target, origin, True), np.uint8)
            array.flags.writeable = False
        else:
            array = target.array if isinstance(target, Output) else target
        if not array.flags.c_contiguous:
            raise invalid(f"{origin} is not contiguous", "pass a contiguous copy")
        start = array.__array_interface__["data"][0]
        key = (start, array.nbytes)
        if key not in self.known:
            owner = array
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            shift = (start - owner.__array_interface__["data"][0]) % 256  # a view is aligned as it lies in its owner
            base = ((FIRST_ARRAY + len(self.buffers)) << REGION_SHIFT) + shift
            self.known[key] = Buffer(array, base, isinstance(target, Output), origin, False)
            self.buffers.append(self.known[key])
        return self.known[key]


def bind(
    program: Program, args: Sequence[Any], variables: Sequence[tuple[str, Array]]
) -> tuple[list[Buffer], bytearray]:
    """Give every array an address range of its own and lay out the parameters. `variables`: the module's."""
    if len(args) != len(program.params):
        raise invalid(f"{program.kernel.name} takes {len(program.params)} arguments, not {len(args)}", "pass them all")
    memory = _Memory([])
    for name, array in variables:
        base = (FIRST_ARRAY + len(memory.buffers)) << REGION_SHIFT
        memory.buffers.append(Buffer(array, base, False, Origin(None, name), True))
    params = bytearray(program.params_size)
    for number, (arg, (variable, offset)) in enumerate(zip(args, program.params, strict=True)):
        value, stored = arg, number in program.stored
        if isinstance(arg, Struct):
            value = memory.contents(arg, Origin(number, variable.name), stored)
        elif isinstance(arg, Pointer | Output) or (isinstance(arg, np.ndarray) and arg.ndim):
            if variable.size != POINTER_BYTES:
                problem = f"argument {number} is an array, {variable.name} a .{variable.type}"
                raise invalid(problem, "pass what the kernel takes")
            target = arg if isinstance(arg, Pointer) else Pointer(arg, 0)
            value = memory.address(target, Origin(number, variable.name), stored)
        params[offset : offset + variable.size] = _encode(value, variable, number)
    return memory.buffers, params


FLOAT_CODES = {"f16": "<e", "f32": "<f", "f64": "<d"}  # of struct
UNTYPED_FLOATS = {"b16": "<e", "b32": "<f", "b64": "<d"}  # what a float means to a parameter of bits


def _encode(value: Any, variable: Variable, number: int) -> bytes:
    """A parameter's bytes. Raises ARGUMENT_INVALID where the value does not fit it."""
    takes = f"parameter {variable.name} is a .{variable.type}"
    if isinstance(value, np.void):  # a structured scalar
        value = value.tobytes()
    if isinstance(value, bytes | bytearray):
        if len(value) != variable.size:
            raise invalid(f"argument {number} has {len(value)} bytes, {variable.name} {variable.size}", "pass as many")
        return bytes(value)
    bits = TYPE_BITS[variable.type]
    if variable.size * 8 != bits:
        raise invalid(f"argument {number} is no bytes, {variable.name} has {variable.size}", "pass that many bytes")
    if not isinstance(value, int | float | np.generic | np.ndarray):
        raise invalid(f"argument {number} is a {type(value).__name__}, {takes}", "pass a number")
    plain = value.item() if isinstance(value, np.generic | np.ndarray) else value
    if variable.type in FLOAT_CODES:
        return _pack(FLOAT_CODES[variable.type], float(plain), number, takes)
    if isinstance(plain, float) and variable.type in UNTYPED_FLOATS:
        return _pack(UNTYPED_FLOATS[variable.type], plain, number, takes)
    if isinstance(plain, float) and not plain.is_integer():
        raise invalid(f"argument {number} is {plain}, {takes}", "pass an integer")
    if not -(1 << bits - 1) <= int(plain) < 1 << bits:
        raise invalid(f"argument {number} is {plain}, {takes}", f"pass what {bits} bits hold")
    return (int(plain) & ((1 << bits) - 1)).to_bytes(bits // 8, "little")


def _pack(code: str, value: float, number: int, takes: str) -> bytes:
    try:
        return pack(code, value)
    except OverflowError:
        raise invalid(f"argument {number} is {value}, {takes}", "pass a number that it can hold") from None
