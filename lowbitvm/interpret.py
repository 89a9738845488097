"""Executor (a): what a tile IR program means, in numpy.

Tiles are numpy arrays of their dtype, except a dequantised weight, which is exact in float64. `dot` multiplies and sums
in float64 and rounds once to f32; of integer codes it is exact modulo 2^32. All other arithmetic is that of f32 and
i32: i32 wraps, its division rounds down (by zero: undefined), f32 rounds to nearest even, +0 is above -0. A sum in f32
adds neighbours, then neighbouring pairs, and so on.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.arrays import fma, mul_shift
from lowbitvm.dtypes import DType
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits, put_codes
from lowbitvm.ir import Array, Op, Program
from lowbitvm.pack import PackedWeight

NumpyArray = np.ndarray[Any, Any]
Argument = NumpyArray | PackedWeight | PackedDigits


def interpret(
    program: Program,
    grid: Sequence[int],
    arguments: Mapping[str, Argument],
    *,
    blocks: Iterable[tuple[int, ...]] | None = None,
    weights: Mapping[str, NumpyArray] | None = None,
) -> None:
    """Runs every block of the grid, one after another; arrays that the program stores to are changed in place.

    `arguments` has a numpy array, or PackedWeight of numpy arrays, per array of the program. blocks: those to run,
    where it is not all. weights: what `decoded` made of the arguments, which takes a while. Raises SHAPE_MISMATCH and
    DTYPE_MISMATCH where the arguments do not fit their declaration.
    """
    sizes = bind_sizes(program, arguments)
    weights = decoded(arguments) if weights is None else weights
    for block in product(*(range(count) for count in grid)) if blocks is None else blocks:
        _Block(arguments, weights, sizes, block).run(program.body)


def decoded(arguments: Mapping[str, Argument]) -> dict[str, NumpyArray]:
    """The packed matrices among arguments, in float64."""
    return {name: _dense(w) for name, w in arguments.items() if isinstance(w, PackedWeight | PackedDigits)}


def bind_sizes(program: Program, arguments: Mapping[str, Any]) -> dict[str, int]:
    """The runtime size of every dimension name.

    `arguments` are arrays with `shape` or PackedWeights. Raises ARGUMENT_INVALID for other names, DTYPE_MISMATCH, and
    SHAPE_MISMATCH, also where a promise of `divisible` is broken or a size is no i32, and FORMAT_UNSUPPORTED for a
    permuted weight without its permutation beside it.
    """
    if arguments.keys() != {array.name for array in program.arrays}:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"{program.name} takes {[array.name for array in program.arrays]}, got {list(arguments)}",
            "pass exactly these",
        )
    sizes: dict[str, int] = {}
    for array in program.arrays:
        check_element(array, arguments[array.name])
        shape = tuple(arguments[array.name].shape)
        if len(shape) != len(array.dims):
            raise LowbitvmError(
                "SHAPE_MISMATCH", f"{array.name} has shape {shape}, declared {array}", "pass an array of that rank"
            )
        for dim, size in zip(array.dims, shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise LowbitvmError(
                    "SHAPE_MISMATCH", f"{dim} is {sizes[dim]} and, in {array.name}, {size}", f"make every {dim} equal"
                )
    _check_permutations(arguments)
    for dim, size in sizes.items():
        if size >= 1 << 31:
            raise LowbitvmError(
                "SHAPE_MISMATCH", f"{dim} is {size}, an index is an i32", "split the array, or add an axis"
            )
    for dim, divisor in program.divisible:
        if sizes[dim] % divisor:
            raise LowbitvmError(
                "SHAPE_MISMATCH",
                f"{dim} is {sizes[dim]}, but the kernel was compiled for multiples of {divisor}",
                "compile without divisible",
            )
    return sizes


def check_element(array: Array, argument: Any) -> None:
    """Raises DTYPE_MISMATCH unless an argument's elements are those of the declaration."""
    if isinstance(argument, PackedWeight | PackedDigits):
        if argument.format != array.element:
            raise LowbitvmError(
                "DTYPE_MISMATCH",
                f"{array.name} is packed as {argument.format}, the kernel reads {array.element}",
                "compile for the weight's own format",
            )
    elif dtypes.of(argument) != array.element:
        raise LowbitvmError(
            "DTYPE_MISMATCH", f"{array.name} has {dtypes.of(argument)}, declared {array}", "cast it first"
        )


def _check_permutations(arguments: Mapping[str, Any]) -> None:
    """A kernel reads weights in their stored order: it must be given the permutation to gather x by."""
    for name, weight in arguments.items():
        permutation = weight.permutation if isinstance(weight, PackedWeight) else None
        if permutation is not None and not any(array is permutation for array in arguments.values()):
            raise LowbitvmError(
                "FORMAT_UNSUPPORTED",
                f"{name} is permuted along K, and no array of the kernel is {name}.permutation",
                f"gather x by an i32 array, and pass {name}.permutation as that",
            )


def _dense(weight: PackedWeight | PackedDigits) -> NumpyArray:
    """The columns in the stored order, as kernels read them; of digits the values without their offset."""
    if isinstance(weight, PackedDigits):
        return np.asarray(weight.unpack(), np.float64) - weight.decomposition.offset
    return np.asarray(replace(weight, permutation=None).dequantize(), np.float64)


class _Block:
    """One block of the grid: the value of every op so far."""

    def __init__(
        self,
        arguments: Mapping[str, Argument],
        weights: Mapping[str, NumpyArray],
        sizes: Mapping[str, int],
        block: tuple[int, ...],
    ) -> None:
        self.arguments, self.weights, self.sizes, self.block = arguments, weights, sizes, block
        self.values: dict[Op, Any] = {}

    def run(self, ops: Sequence[Op]) -> None:
        for op in ops:
            if op.kind == "range":
                start, stop = (int(self.values[x]) for x in op.operands)
                for index in range(start, stop, op.integer("step")):
                    self.values[op] = np.int32(index)
                    self.run(op.body)
            elif op.kind == "when":
                if self.values[op.operands[0]]:
                    self.run(op.body)
            elif op.kind == "assign":
                target, value = op.operands
                self.values[target] = self.values[value]
            elif op.kind == "store":
                self._store(op)
            else:
                with np.errstate(all="ignore"):
                    self.values[op] = EVALUATE[op.kind](self, op)

    def _window(self, array: Array, offsets: Sequence[Op], shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
        """Per axis: the slice of the tile inside the array, and the same elements as a slice of the array."""
        for dim, offset, size in zip(array.dims, offsets, shape, strict=True):
            start = int(self.values[offset])
            low, high = max(start, 0), min(start + size, self.sizes[dim])
            high = max(low, high)
            yield slice(low - start, high - start), slice(low, high)

    def load(self, op: Op) -> NumpyArray:
        assert op.array is not None and op.dtype is not None
        packed = isinstance(op.array.element, Format)
        source = self.weights[op.array.name] if packed else self.arguments[op.array.name]
        assert isinstance(source, np.ndarray)
        tile = np.full(op.shape, op.attributes["other"], np.float64 if packed else op.dtype.numpy)
        if any(offset.shape for offset in op.operands):
            inside, places = self._indices(op.operands, op.shape, source)
            tile[inside] = source[places]
        else:
            window, place = zip(*self._window(op.array, op.operands, op.shape), strict=True)
            tile[window] = source[place]
        return tile

    def _indices(self, offsets: Sequence[Op], shape: tuple[int, ...], array: NumpyArray) -> tuple[Any, Any]:
        """What of a tile whose rows or columns are named by indices lies in the array, and where."""
        indices = [
            self.values[offset] if offset.shape else int(self.values[offset]) + np.arange(size)
            for offset, size in zip(offsets, shape, strict=True)
        ]
        inside = [(index >= 0) & (index < size) for index, size in zip(indices, array.shape, strict=True)]
        places = [index[mask] for index, mask in zip(indices, inside, strict=True)]
        return np.ix_(*inside), np.ix_(*places)

    def _store(self, op: Op) -> None:
        assert op.array is not None
        value, *offsets = op.operands
        target = self.arguments[op.array.name]
        if isinstance(target, PackedDigits):
            row, column = (int(self.values[offset]) for offset in offsets)
            put_codes(target, row, column, self.values[value])
            return
        assert isinstance(target, np.ndarray)
        if any(offset.shape for offset in offsets):
            inside, place = self._indices(offsets, value.shape, target)
        else:
            inside, place = zip(*self._window(op.array, offsets, value.shape), strict=True)
        target[place] = self.values[value][inside]

    def atomic_add(self, op: Op) -> np.int32:
        assert op.array is not None
        value, *offsets = self.operands(op)
        target = self.arguments[op.array.name]
        assert isinstance(target, np.ndarray)
        place = tuple(int(offset) for offset in offsets)
        if not all(0 <= at < size for at, size in zip(place, target.shape, strict=True)):
            return np.int32(0)
        before = np.int32(target[place])
        target[place] = np.add(before, np.int32(value))
        return before

    def operands(self, op: Op) -> list[Any]:
        return [self.values[operand] for operand in op.operands]


def _numpy(dtype: DType | None) -> np.dtype[Any]:
    assert dtype is not None
    return dtype.numpy


def _elementwise(function: Callable[..., Any]) -> Callable[[_Block, Op], Any]:
    return lambda block, op: np.asarray(function(*block.operands(op)), _numpy(op.dtype))


def _cast(block: _Block, op: Op) -> NumpyArray:
    (value,) = block.operands(op)
    if op.dtype == dtypes.i32 and np.asarray(value).dtype.kind == "f":
        value = np.clip(np.nan_to_num(np.trunc(value.astype(np.float64)), nan=0.0), -(2.0**31), 2.0**31 - 1)
    return np.asarray(value).astype(_numpy(op.dtype))


def _rint(block: _Block, op: Op) -> NumpyArray:
    rounded = np.nan_to_num(np.rint(np.asarray(block.operands(op)[0], np.float64)), nan=0.0)
    return np.asarray(np.clip(rounded, -(2.0**31), 2.0**31 - 1).astype(np.int32))


def _mul_shift(block: _Block, op: Op) -> NumpyArray:
    value, multiplier, shift = block.operands(op)
    return mul_shift(value, multiplier, shift, bool(op.integer("nearest")))


def _broadcast(block: _Block, op: Op) -> NumpyArray:
    return np.broadcast_to(block.operands(op)[0], op.shape)


def _reduce(block: _Block, op: Op) -> NumpyArray:
    (value,) = block.operands(op)
    axis = op.integer("axis")
    if op.attributes["how"] == "max":
        return np.asarray(functools.reduce(_maximum, np.moveaxis(value, axis, 0)))
    tree = np.moveaxis(value, axis, 0)
    while tree.shape[0] > 1:
        tree = tree[::2] + tree[1::2]
    return np.asarray(tree[0])


def _hadamard(block: _Block, op: Op) -> NumpyArray:
    (value,) = block.operands(op)
    distance = 1
    while distance < op.shape[-1]:
        pairs = value.reshape(-1, 2, distance)
        value = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1)
        distance *= 2
    return np.asarray(value.reshape(op.shape))


def _maximum(a: Any, b: Any) -> Any:
    """The larger of each pair; -0 loses against +0, a NaN against a number (np.fmax returns a signalling NaN)."""
    return _unless_nan(a, b, np.where((a == 0) & (b == 0), a + b, np.maximum(a, b)))


def _minimum(a: Any, b: Any) -> Any:
    return _unless_nan(a, b, np.where((a == 0) & (b == 0), -(-a - b), np.minimum(a, b)))


def _unless_nan(a: Any, b: Any, chosen: Any) -> Any:
    """The other one of a pair where one of it is a NaN, else what was chosen."""
    return np.where(a != a, b, np.where(b != b, a, chosen))


def _dot(block: _Block, op: Op) -> NumpyArray:
    a, b = block.operands(op)
    if "size" in op.attributes:
        part = slice(op.integer("first"), op.integer("first") + op.integer("size"))
        a, b = a[:, part], b[part]
    product = a.astype(np.float64) @ b
    if op.dtype == dtypes.i32:  # of numbers below 2^9: exact, and wrapped
        return np.asarray(product.astype(np.int64).astype(np.int32))
    return np.asarray(product, np.float32)


def _size(block: _Block, op: Op) -> np.int32:
    assert op.array is not None
    return np.int32(block.sizes[op.array.dims[op.integer("axis")]])


def _program_id(block: _Block, op: Op) -> np.int32:
    axis = op.integer("axis")
    return np.int32(block.block[axis] if axis < len(block.block) else 0)


COMPARE: dict[str, Callable[[Any, Any], Any]] = {"equal": np.equal, "less": np.less}

# A load of codes yields the dequantised weights at once (zero beyond the array), so `dequant` passes them on.
EVALUATE: dict[str, Callable[[_Block, Op], Any]] = {
    "program_id": _program_id,
    "dimension": _size,
    "constant": lambda block, op: _numpy(op.dtype).type(op.attributes["value"]),
    "full": lambda block, op: np.full(op.shape, op.attributes["value"], _numpy(op.dtype)),
    "load": _Block.load,
    "atomic_add": _Block.atomic_add,
    "compare": lambda block, op: COMPARE[str(op.attributes["how"])](*block.operands(op)),
    "cast": _cast,
    "broadcast": _broadcast,
    "expand": lambda block, op: np.expand_dims(block.operands(op)[0], op.integer("axis")),
    "reshape": lambda block, op: block.operands(op)[0].reshape(op.shape),
    "rint": _rint,
    "bitcast": lambda block, op: np.array(block.operands(op)[0]).view(_numpy(op.dtype)),
    "transpose": lambda block, op: block.operands(op)[0].T,
    "reduce": _reduce,
    "dequant": lambda block, op: block.operands(op)[0],
    "dot": _dot,
    "add": _elementwise(np.add),
    "sub": _elementwise(np.subtract),
    "mul": _elementwise(np.multiply),
    "div": _elementwise(np.divide),
    "max": _elementwise(_maximum),
    "min": _elementwise(_minimum),
    "floordiv": _elementwise(np.floor_divide),
    "mod": _elementwise(np.mod),
    "exp": _elementwise(np.exp),
    "sqrt": _elementwise(np.sqrt),
    "fma": _elementwise(fma),
    "mul_shift": _mul_shift,
    "hadamard": _hadamard,
}
