"""What a launch passes to a kernel: arrays as device buffers at made-up addresses, and the parameters' bytes."""

import math
import mmap
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.emulator.decode import Program
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Variable
from lowbitvm.runtime.emulator.variables import FIRST_ARRAY, REGION_SHIFT

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Output:
    """A device buffer whose present contents a kernel must not read."""

    array: Array


def output(array: Array) -> Output:
    """Mark an array as uninitialised: reading a byte before the kernel wrote it is a finding."""
    return Output(array)


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


@dataclass
class Buffer:
    array: Array
    base: int
    uninitialised: bool
    argument: int | None
    stored: bool  # the kernel may store to it

    def core_view(self) -> tuple[Array, int, bool, bool, bool]:
        data = self.array.reshape(-1).view(np.uint8)
        return data, self.base, self.array.flags.writeable, self.uninitialised, self.stored


def invalid(problem: str, fix: str) -> LowbitvmError:
    return LowbitvmError("ARGUMENT_INVALID", problem, fix)


def bind(program: Program, args: Sequence[Any], variables: list[Array]) -> tuple[list[Buffer], bytearray]:
    """Give every array an address range of its own and lay out the parameters."""
    if len(args) != len(program.params):
        raise invalid(f"{program.kernel.name} takes {len(program.params)} arguments, not {len(args)}", "pass them all")
    buffers = [Buffer(v, (FIRST_ARRAY + n) << REGION_SHIFT, False, None, True) for n, v in enumerate(variables)]
    params = bytearray(program.params_size)
    known: dict[tuple[int, int], Buffer] = {}
    for number, (arg, (variable, offset)) in enumerate(zip(args, program.params, strict=True)):
        value = arg
        if isinstance(arg, Output) or (isinstance(arg, np.ndarray) and arg.ndim):
            buffer = _buffer(arg, number, variable, buffers, known)
            buffer.stored |= number in program.stored
            value = buffer.base
        params[offset : offset + variable.size] = _encode(value, variable, number)
    return buffers, params


def _buffer(
    arg: Output | Array, number: int, variable: Variable, buffers: list[Buffer], known: dict[tuple[int, int], Buffer]
) -> Buffer:
    array = arg.array if isinstance(arg, Output) else arg
    if variable.size != 8 or not array.flags.c_contiguous:
        what = "an array" if variable.size != 8 else "not contiguous"
        raise invalid(f"argument {number} is {what}, {variable.name} a .{variable.type}", "pass what the kernel takes")
    start = array.__array_interface__["data"][0]
    key = (start, array.nbytes)
    if key not in known:
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        shift = (start - owner.__array_interface__["data"][0]) % 256  # a view is aligned as it lies in its owner
        base = ((FIRST_ARRAY + len(buffers)) << REGION_SHIFT) + shift
        known[key] = Buffer(array, base, isinstance(arg, Output), number, False)
        buffers.append(known[key])
    return known[key]


FLOAT_CODES = {"f16": "<e", "f32": "<f", "f64": "<d"}  # of struct
UNTYPED_FLOATS = {"b16": "<e", "b32": "<f", "b64": "<d"}  # what a float means to a parameter of bits


def _encode(value: Any, variable: Variable, number: int) -> bytes:
    """A parameter's bytes. Raises ARGUMENT_INVALID where the value does not fit it."""
    takes = f"parameter {variable.name} is a .{variable.type}"
    if isinstance(value, bytes):
        if len(value) != variable.size:
            raise invalid(f"argument {number} has {len(value)} bytes, {variable.name} {variable.size}", "pass as many")
        return value
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
        return struct.pack(code, value)
    except OverflowError:
        raise invalid(f"argument {number} is {value}, {takes}", "pass a number that it can hold") from None
