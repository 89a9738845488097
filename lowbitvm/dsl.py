"""The Python DSL: running a kernel's body once records it as a tile IR program, with source locations.

Python's own `if` and `for` happen while recording; `range` is recorded as a loop, `when` as a condition. Arithmetic is
on f32 and i32, other dtypes are loaded, stored and cast.
"""

import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.dtypes import CodeType, DType
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import code_factor, format_digits
from lowbitvm.ir import Array, Attribute, Op, Program
from lowbitvm.verify import STAGES, verify

if TYPE_CHECKING:
    from lowbitvm.runtime.compiled import CompiledKernel

Scalar = int | float
INDEX_KINDS = ("constant", "dimension", "program_id", "add", "sub", "mul", "floordiv", "mod", "max", "min")
RESERVED = {"target", "warps", "divisible"}  # arguments of Kernel.compile
_recording = threading.local()
_THIS_FILE = str(Path(__file__))


class Recorder:
    """Collects the ops of one kernel; `blocks` is the stack of open blocks, the innermost last."""

    def __init__(self) -> None:
        self.blocks: list[list[Op]] = [[]]
        self.home: dict[Op, list[Op]] = {}

    def add(self, op: Op) -> Op:
        """Appends an op to the innermost open block, after checking that its operands are still alive."""
        op.location = _caller()
        for operand in op.operands:
            if not any(self.home[operand] is block for block in self.blocks):
                raise LowbitvmError(
                    "VALUE_ESCAPES_LOOP",
                    f"the {operand.kind} made inside lb.range or lb.when at {operand.location} is used after it",
                    "make the tile before and update it inside, with += or set",
                    op.location,
                )
        if op.kind in INDEX_KINDS and op.dtype == dtypes.i32 and not op.shape:
            self._add_scalar(op)
        else:
            self.blocks[-1].append(op)
            self.home[op] = self.blocks[-1]
        return op

    def _add_scalar(self, op: Op) -> None:
        """Puts index arithmetic before every open loop that it does not depend on."""
        alive = [at for at, block in enumerate(self.blocks) for x in op.operands if self.home[x] is block]
        block = self.blocks[max(alive, default=0)]
        block.insert(len(block) - (block is not self.blocks[-1]), op)  # before the open loop, which is its last op
        self.home[op] = block


def _recorder() -> Recorder:
    recorder = getattr(_recording, "recorder", None)
    if recorder is None:
        raise LowbitvmError(
            "KERNEL_INVALID",
            "an operation of the DSL was called outside a kernel",
            "call it in the body of a function decorated with lb.kernel",
            _caller(),
        )
    assert isinstance(recorder, Recorder)
    return recorder


def _caller() -> str:
    """file:line of the innermost frame that is the user's, not this file's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == _THIS_FILE:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _invalid(problem: str, fix: str) -> LowbitvmError:
    return LowbitvmError("KERNEL_INVALID", problem, fix, _caller())


class Value:
    """A recorded scalar (`shape == ()`) or tile. `+=` and `set` overwrite it, other operators make a new one."""

    __array_ufunc__ = None  # numpy leaves `numpy_scalar * value` to __rmul__

    def __init__(self, op: Op) -> None:
        self.op = op

    @property
    def shape(self) -> tuple[int, ...]:
        """The tile's shape, () for a scalar."""
        return self.op.shape

    @property
    def dtype(self) -> DType:
        """The element type."""
        assert self.op.dtype is not None
        return self.op.dtype

    def to(self, dtype: DType) -> "Value":
        """The tile with every element rounded to nearest even in `dtype`; float to i32 truncates."""
        return _record("cast", dtype, self.shape, (self,))

    @property
    def T(self) -> "Value":
        """The transposed tile of a rank-2 tile."""
        if len(self.shape) != 2:
            raise _invalid(f".T of a tile of shape {self.shape}", "transpose tiles of rank 2 only")
        return _record("transpose", self.dtype, self.shape[::-1], (self,))

    def reshape(self, *shape: int) -> "Value":
        """The same elements, in row-major order, as a tile of another shape."""
        return _record("reshape", self.dtype, _shape(shape), (self,))

    def __add__(self, other: "Value | Scalar") -> "Value":
        return _binary("add", self, other)

    def __radd__(self, other: Scalar) -> "Value":
        return _binary("add", other, self)

    def __sub__(self, other: "Value | Scalar") -> "Value":
        return _binary("sub", self, other)

    def __rsub__(self, other: Scalar) -> "Value":
        return _binary("sub", other, self)

    def __mul__(self, other: "Value | Scalar") -> "Value":
        return _binary("mul", self, other)

    def __rmul__(self, other: Scalar) -> "Value":
        return _binary("mul", other, self)

    def __truediv__(self, other: "Value | Scalar") -> "Value":
        return _binary("div", self, other)

    def __rtruediv__(self, other: Scalar) -> "Value":
        return _binary("div", other, self)

    def __floordiv__(self, other: "Value | Scalar") -> "Value":
        return _binary("floordiv", self, other)

    def __mod__(self, other: "Value | Scalar") -> "Value":
        return _binary("mod", self, other)

    def __neg__(self) -> "Value":
        return _binary("mul", self, -1)

    def __iadd__(self, other: "Value | Scalar") -> "Value":
        return self.set(self + other)

    def __isub__(self, other: "Value | Scalar") -> "Value":
        return self.set(self - other)

    def __imul__(self, other: "Value | Scalar") -> "Value":
        return self.set(self * other)

    def __itruediv__(self, other: "Value | Scalar") -> "Value":
        return self.set(self / other)

    def set(self, value: "Value | Scalar") -> "Value":
        """Overwrites the tile with a number, or with another tile of its shape and dtype; returns the tile."""
        if not isinstance(value, Value):
            value = _broadcast(_constant(value, self.dtype), self.shape)
        if value.shape != self.shape:
            raise LowbitvmError(
                "SHAPE_MISMATCH",
                f"a tile of shape {self.shape} is updated with one of shape {value.shape}",
                "make both shapes equal",
                _caller(),
            )
        if self.dtype == dtypes.i32 and not self.shape:
            raise _invalid("an i32 scalar is updated in place", "derive it from the index of lb.range")
        _recorder().add(Op("assign", None, (), (self.op, value.op)))
        return self

    def __bool__(self) -> bool:
        raise _invalid("a recorded value has no truth value", "decide on a Python number while recording")

    def __eq__(self, other: "Value | Scalar") -> "Value":  # type: ignore[override]  # a recorded condition
        return _compare("equal", self, other)

    def __lt__(self, other: "Value | Scalar") -> "Value":
        return _compare("less", self, other)

    def __gt__(self, other: "Value | Scalar") -> "Value":
        return _compare("less", other, self)

    def _refuse(self, other: object) -> "Value":
        raise _invalid("a recorded value is compared with !=, <= or >=", "use ==, < or > on i32 scalars")

    __ne__ = __le__ = __ge__ = _refuse  # type: ignore[assignment]
    __hash__ = object.__hash__

    def __iter__(self) -> Iterator["Value"]:
        raise _invalid("a recorded value cannot be iterated", "use lb.range for loops")


class Tensor:
    """A dense array parameter; its sizes are i32 scalars known at launch."""

    def __init__(self, array: Array) -> None:
        self.array = array

    @property
    def dtype(self) -> DType:
        """The element type."""
        assert isinstance(self.array.element, DType)
        return self.array.element

    @property
    def shape(self) -> tuple[Value, ...]:
        """One i32 scalar per dimension."""
        return tuple(_dimension(self.array, axis) for axis in range(len(self.array.dims)))


@dataclass(frozen=True)
class PackedPart:
    """The scales or zeros of a packed weight, to be handed to `dequant`."""

    array: Array
    part: str


class Packed:
    """A packed weight parameter of shape (out_features, in_features)."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.scales = PackedPart(array, "scales")
        self.zeros = PackedPart(array, "zeros") if self.format.zero is not None else None

    @property
    def format(self) -> Format:
        """The packed format."""
        assert isinstance(self.array.element, Format)
        return self.array.element

    @property
    def offset(self) -> int:
        """What `dot` leaves out of every value of a format with digits; see `lowbitvm.digits`."""
        return format_digits(self.format).offset

    @property
    def factor(self) -> int:
        """What the codes of a format with digits count beside their zeros; see `PackedDigits.top`."""
        return code_factor(self.format)

    @property
    def shape(self) -> tuple[Value, ...]:
        """(out_features, in_features) as i32 scalars."""
        return tuple(_dimension(self.array, axis) for axis in range(2))


def _dimension(array: Array, axis: int) -> Value:
    return _record("dimension", dtypes.i32, (), array=array, axis=axis)


def _record(
    kind: str,
    dtype: DType | None,
    shape: tuple[int, ...] = (),
    operands: tuple[Value, ...] = (),
    array: Array | None = None,
    **attributes: Attribute,
) -> Value:
    op = Op(kind, dtype, shape, tuple(operand.op for operand in operands), array, attributes)
    return Value(_recorder().add(op))


def _constant(value: Scalar, dtype: DType) -> Value:
    value = value.item() if isinstance(value, np.generic) else value
    if dtype.is_integer and not isinstance(value, int):
        raise LowbitvmError(
            "DTYPE_MISMATCH", f"the number {value} meets a value of {dtype.name}", "use a whole number", _caller()
        )
    return _record("constant", dtype, value=value)


def _pair(left: Value | Scalar, right: Value | Scalar) -> tuple[Value, Value]:
    """Both operands as recorded values of one dtype and shape."""
    if not isinstance(left, Value):
        assert isinstance(right, Value)
        left = _constant(left, right.dtype)
    if not isinstance(right, Value):
        right = _constant(right, left.dtype)
    if left.dtype != right.dtype:
        raise LowbitvmError(
            "DTYPE_MISMATCH",
            f"one operation on {left.dtype.name} and {right.dtype.name}",
            f"cast one of them, as in .to(lb.{left.dtype.name})",
            _caller(),
        )
    shape = _broadcast_shape(left.shape, right.shape)
    return _broadcast(left, shape), _broadcast(right, shape)


def _broadcast_shape(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(left), len(right))
    pairs = list(zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True))
    if any(a != b and 1 not in (a, b) for a, b in pairs):
        raise LowbitvmError(
            "SHAPE_MISMATCH", f"tiles of shapes {left} and {right} do not broadcast", "make the shapes equal", _caller()
        )
    return tuple(max(a, b) for a, b in pairs)


def _broadcast(value: Value, shape: tuple[int, ...]) -> Value:
    return value if value.shape == shape else _record("broadcast", value.dtype, shape, (value,))


def _binary(kind: str, left: Value | Scalar, right: Value | Scalar) -> Value:
    a, b = _pair(left, right)
    return _record(kind, a.dtype, a.shape, (a, b))


def _compare(kind: str, left: Value | Scalar, right: Value | Scalar) -> Value:
    for value in (left, right):
        if isinstance(value, Value) and (value.shape or value.dtype != dtypes.i32):
            raise _invalid(
                f"a {value.dtype.name} of shape {value.shape} is compared",
                "compare i32 scalars; for tiles use lb.maximum and lb.minimum",
            )
    return _record("compare", dtypes.boolean, (), _pair(left, right), how=kind)


def program_id(axis: int) -> Value:
    """The block's index along grid axis 0, 1 or 2, an i32 scalar."""
    return _record("program_id", dtypes.i32, axis=axis)


def full(shape: tuple[int, ...], value: Scalar, dtype: DType = dtypes.f32) -> Value:
    """A tile filled with one number."""
    return _record("full", dtype, _shape(shape), value=value)


def zeros(shape: tuple[int, ...], dtype: DType = dtypes.f32) -> Value:
    """A tile of zeros."""
    return full(shape, 0, dtype)


def load(
    source: Tensor | Packed,
    offsets: tuple[Value | int, ...],
    shape: tuple[int, ...],
    other: Scalar = 0,
    trusted: bool = False,
    evict: str | None = None,
) -> Value:
    """The tile of `shape` at `offsets` (in elements); elements beyond the array are `other`.

    An offset may be an i32 tile instead, as long as the result along that axis: the index of every row or column, which
    are gathered. `lb.load(x, (i * bm, lb.load(order, (k,), (bk,), other=-1)), (bm, bk))` is x[:, order[k:]], and what
    has no index is `other`, since -1 is no column. trusted: a promise that no number in the array of indices lies
    outside the source, which saves the comparisons; a broken one reads what is not the array's.
    From a Packed weight the result is a tile of codes (rows, in_features) for `dequant`, of zeros beyond the array.
    evict: "first" or "last", a hint to the L2 cache which lines to give up early (what is read once) or late; with a
    weight's codes it holds for its scales as well. Targets before sm_80 have no such hints and ignore it.
    """
    _expect(source, (Tensor, Packed), "lb.load reads a parameter of the kernel")
    array = source.array
    dtype = source.dtype if isinstance(source, Tensor) else source.format.code
    more: dict[str, Attribute] = {"trusted": True} if trusted else {}
    more |= {"evict": evict} if evict is not None else {}
    return _record("load", dtype, _shape(shape), _offsets(array, offsets), array, other=other, **more)


def store(target: Tensor | Packed, offsets: tuple[Value | int, ...], value: Value) -> None:
    """Writes a tile at `offsets`; elements beyond the array are dropped.

    An offset may be an i32 tile instead, as in `load`: the index of every row or column, which are scattered. Indices
    outside the array are dropped, and no two of the others may be the same.
    To Packed activations in digits: an i32 tile of codes, of whole stored tiles along K (64 in digits="s8", 128 in
    "s4", 512 in "b1"). What is stored beyond the array, but in tiles and rows that the codes touch, becomes padding.
    """
    _expect(target, (Tensor, Packed), "lb.store writes to a parameter of the kernel")
    _expect(value, Value, "lb.store writes a tile")
    _record("store", None, value.shape, (value, *_offsets(target.array, offsets)), target.array)


def atomic_add(target: Tensor, offsets: tuple[Value | int, ...], value: Value | int) -> Value:
    """Adds to one i32 element, once for the whole block, and returns what was there before, an i32 scalar.

    An acquire and a release at the scope of the GPU: what the block stored before is visible to every block that later
    finds the sum there. So the last of several blocks to arrive at a counter may read what all of them stored.
    """
    _expect(target, Tensor, "lb.atomic_add changes a dense parameter of the kernel")
    offset_values = _offsets(target.array, offsets)
    return _record("atomic_add", dtypes.i32, (), (_index(value), *offset_values), target.array)


def _offsets(array: Array, offsets: tuple[Value | int, ...]) -> tuple[Value, ...]:
    if len(offsets) != len(array.dims):
        raise LowbitvmError(
            "SHAPE_MISMATCH",
            f"{len(offsets)} offsets for {array.name}, which has {len(array.dims)} dimensions",
            "give one offset per dimension",
            _caller(),
        )
    return tuple(map(_index, offsets))


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or not all(type(size) is int for size in shape):
        raise LowbitvmError(
            "TILE_INVALID", f"a tile of shape {shape}", "give a tuple of Python ints, known while recording", _caller()
        )
    return tuple(shape)


def _expect(value: object, kind: type | tuple[type, ...], rule: str) -> None:
    if not isinstance(value, kind):
        raise LowbitvmError("ARGUMENT_INVALID", f"{rule}, not a {type(value).__name__}", "pass one", _caller())


def _index(value: Value | int) -> Value:
    return value if isinstance(value, Value) else _constant(value, dtypes.i32)


def dequant(codes: Value, scales: PackedPart, zeros: PackedPart | None = None) -> Value:
    """The real values of a tile of codes: q * s, (q - z) * s or q * s + m, as the format says; exact, typed f32."""
    array = codes.op.array
    if array is not None and isinstance(array.element, Format) and array.element.has_digits:
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"dequant of {array.element}, whose codes are stored as digits",
            "multiply them as integers: lb.matmul, or lb.dot of both sides' codes",
            _caller(),
        )
    expected = array is not None and isinstance(array.element, Format) and array.element.zero is not None
    if codes.op.kind != "load" or scales.array is not array or (zeros is not None) != expected:
        raise _invalid(
            "dequant takes the codes, scales and zeros of one packed weight",
            "pass lb.load(w, ...), w.scales, w.zeros of the same w",
        )
    return _record("dequant", dtypes.f32, codes.shape, (codes,), array)


def fma(a: Value | Scalar, b: Value | Scalar, c: Value | Scalar) -> Value:
    """a * b + c of f32, rounded once."""
    product_a, product_b = _pair(a, b)
    _, c = _pair(product_a, c)
    shape = c.shape
    operands = (_broadcast(product_a, shape), _broadcast(product_b, shape), c)
    return _record("fma", dtypes.f32, shape, operands)


def mul_shift(value: Value, multiplier: Value, shift: Value, nearest: bool = True) -> Value:
    """floor(value * multiplier / 2^shift + 1/2) of i32, saturated to i32: a dyadic number times each element.

    The product has 64 bits; shifts are from 0 to 62. Halves are rounded up. nearest=False: without the half, and shifts
    to 63. Source: HAWQ-V3 (Yao et al., ICML 2021).
    """
    shape = _broadcast_shape(_broadcast_shape(value.shape, multiplier.shape), shift.shape)
    operands = tuple(_broadcast(x, shape) for x in (value, multiplier, shift))
    return _record("mul_shift", dtypes.i32, shape, operands, nearest=int(nearest))


def dot(a: Value, b: Value, k: tuple[int, int] | None = None) -> Value:
    """The matrix product of a (m, k) and b (k, n) tile: an f32 tile (m, n).

    `a` is f16 or bf16, `b` the transposed tile of a dequantised weight, or of a dense one of the same dtype. Products
    are exact; the sum over k is f32's.
    Or `a` and `b` are codes in digits, of activations and of a weight: then the result is i32, the sum of the products
    (value - offset) * (value - offset) modulo 2^32, with `Packed.offset` of either side.
    k: (first, size), a part of the tiles along k that is multiplied alone; of codes, in whole steps of their digits'
    instruction: 32 of "s8", 64 of "s4", 256 of "b1".
    """
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        raise LowbitvmError(
            "SHAPE_MISMATCH", f"dot of tiles {a.shape} and {b.shape}", "make a (m, k) and b (k, n)", _caller()
        )
    dtype = dtypes.i32 if isinstance(a.dtype, CodeType) else dtypes.f32
    part: dict[str, Attribute] = {} if k is None else {"first": k[0], "size": k[1]}
    return _record("dot", dtype, (a.shape[0], b.shape[1]), (a, b), None, **part)


def _unary(kind: str, value: Value) -> Value:
    return _record(kind, value.dtype, value.shape, (value,))


def exp(value: Value) -> Value:
    """e to the power of each f32 element x, to a relative error of about 2^-22 + |x| 2^-23 (PTX ISA, ex2.approx)."""
    return _unary("exp", value)


def sqrt(value: Value) -> Value:
    """The square root of each f32 element, rounded to nearest."""
    return _unary("sqrt", value)


def rint(value: Value) -> Value:
    """Each f32 element rounded to the nearest i32, halves to even; what is beyond i32 saturates, NaN becomes 0."""
    return _record("rint", dtypes.i32, value.shape, (value,))


def bitcast(value: Value, dtype: DType) -> Value:
    """The bits of each f32 as an i32, or of each i32 as an f32. Floats from 0 on, and NaN above them, order alike."""
    return _record("bitcast", dtype, value.shape, (value,))


def hadamard(value: Value) -> Value:
    """Each row of the last axis, f32, times the Walsh-Hadamard matrix, whose (i, j) is -1 where i & j has an odd number
    of bits and else +1: in rounds of sums and differences, of j and j + 1, then j and j + 2, and so on."""
    return _unary("hadamard", value)


def maximum(left: Value | Scalar, right: Value | Scalar) -> Value:
    """The larger of each pair; a NaN loses against a number."""
    return _binary("max", left, right)


def minimum(left: Value | Scalar, right: Value | Scalar) -> Value:
    """The smaller of each pair; a NaN loses against a number."""
    return _binary("min", left, right)


def reduce_sum(value: Value, axis: int) -> Value:
    """The sum along one axis, which disappears from the shape; of f32, neighbours first, then their sums, and so on."""
    return _reduce("sum", value, axis)


def reduce_max(value: Value, axis: int) -> Value:
    """The maximum along one axis, which disappears from the shape."""
    return _reduce("max", value, axis)


def _reduce(kind: str, value: Value, axis: int) -> Value:
    rank = len(value.shape)
    if not -rank <= axis < rank:
        raise LowbitvmError(
            "SHAPE_MISMATCH", f"axis {axis} of a tile of rank {rank}", f"use an axis below {rank}", _caller()
        )
    axis %= rank
    return _record("reduce", value.dtype, value.shape[:axis] + value.shape[axis + 1 :], (value,), how=kind, axis=axis)


def expand_dims(value: Value, axis: int) -> Value:
    """The same tile with a dimension of size 1 inserted at `axis`."""
    axis += (len(value.shape) + 1) * (axis < 0)
    return _record("expand", value.dtype, (*value.shape[:axis], 1, *value.shape[axis:]), (value,), axis=axis)


def record_range(
    start: Value | int, stop: Value | int, step: int, stages: int = 2, direct: int = 0, folded: bool = False
) -> Iterator[Value]:
    """A recorded loop over start, start + step, ... below stop; loads that feed a `dot` run `stages` deep ahead.

    With `direct`, packed codes go straight into registers instead of through shared memory, and their loads run that
    many in_features ahead, or as many as the stages allow. `folded` promises dots of codes in digits so few of k that
    sums of theirs may carry a power of two: `lowbitvm.digits.longest_folded` says how many.
    """
    recorder = _recorder()
    numbers = (step, stages, direct)
    if any(type(number) is not int for number in numbers) or step <= 0 or stages not in STAGES or direct < 0:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"lb.range with step {step}, {stages} stages and direct {direct}",
            f"use Python ints: a step above 0, {STAGES[0]} to {STAGES[-1]} stages, direct from 0 on",
            _caller(),
        )
    bounds = (_index(start).op, _index(stop).op)
    loop = Op(
        "range",
        dtypes.i32,
        (),
        bounds,
        attributes={"step": step, "stages": stages, "direct": direct, "folded": int(folded)},
    )
    recorder.add(loop)
    recorder.blocks.append(loop.body)
    recorder.home[loop] = loop.body  # the index lives inside the loop only
    yield Value(loop)
    if recorder.blocks.pop() is not loop.body:
        raise _left_loop(loop)


def when(condition: Value) -> AbstractContextManager[None]:
    """Records a block that runs where a comparison of i32 scalars holds: `with lb.when(i == 0):`."""
    recorder = _recorder()
    if not isinstance(condition, Value) or condition.dtype != dtypes.boolean:
        raise _invalid("lb.when takes a comparison of i32 scalars", "write it like lb.when(i == 0)")
    return _recorded_in(recorder, recorder.add(Op("when", None, (), (condition.op,))))


@contextmanager
def _recorded_in(recorder: Recorder, block: Op) -> Iterator[None]:
    recorder.blocks.append(block.body)
    yield
    if recorder.blocks.pop() is not block.body:
        raise _left_loop(block)


def _left_loop(loop: Op) -> LowbitvmError:
    return LowbitvmError(
        "KERNEL_INVALID",
        "the body of lb.range or lb.when was left by break or return",
        "let the body run to its end: it is recorded once, not run for every index",
        loop.location,
    )


@dataclass(frozen=True)
class Spec:
    """A parameter's declaration: dimension names and, unless given when compiling, its dtype."""

    dims: tuple[str, ...]
    dtype: DType | None = None
    packed: bool = False


def packed(dims: str) -> Spec:
    """Declares a packed weight parameter, as in `w=lb.packed("n k")`."""
    return Spec(tuple(dims.split()), packed=True)


class Kernel:
    """A DSL function with its parameter declarations; `compile` records and lowers it, `trace` records only."""

    def __init__(self, function: Callable[..., None], specs: Mapping[str, Spec]) -> None:
        self.function, self.specs = function, dict(specs)
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        parameters = inspect.signature(function).parameters.values()
        reserved = RESERVED & {p.name for p in parameters}
        if reserved:
            raise _invalid(
                f"{self.__name__} has parameters called {sorted(reserved)}", "rename them: compile takes these"
            )
        self.constants = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        self.optional = {p.name for p in parameters if p.default is None}
        positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
        tensors = [p.name for p in parameters if p.kind is positional]
        rest = [p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
        if tensors != list(self.specs)[: len(tensors) if rest else None]:
            raise _invalid(
                f"{self.__name__} takes {tensors}, but its decorator declares {list(self.specs)}",
                "declare every positional parameter, in order",
            )

    def trace(self, *, divisible: Mapping[str, int] | None = None, **arguments: Any) -> Program:
        """Records the kernel as a verified tile IR program.

        `arguments` gives each packed parameter its Format, each parameter declared without dtype its DType, and every
        keyword-only constant its value. A parameter is left out where None is given, or nothing and its default is
        None. `divisible` promises divisors of dimensions, which allows wide accesses, as in {"k": 8}.
        """
        arrays = {name: self._array(name, spec, arguments) for name, spec in self.specs.items()}
        constants = {**self.constants, **{k: v for k, v in arguments.items() if k not in self.specs}}
        unknown = constants.keys() - self.constants.keys()
        missing = [name for name, value in constants.items() if value is inspect.Parameter.empty]
        if unknown or missing:
            raise LowbitvmError(
                "ARGUMENT_INVALID",
                f"{self.__name__} got the constants {sorted(unknown)}, which it does not take, and misses {missing}",
                f"give exactly {list(self.constants)}",
            )
        present = tuple(array for array in arrays.values() if array is not None)
        program = Program(
            self.__name__, present, self._record(arrays, constants), tuple(sorted((divisible or {}).items()))
        )
        verify(program)
        return program

    def _record(self, arrays: Mapping[str, Array | None], constants: Mapping[str, Any]) -> tuple[Op, ...]:
        outer = getattr(_recording, "recorder", None)
        _recording.recorder = recorder = Recorder()
        try:
            self.function(*(_handle(array) for array in arrays.values()), **constants)
        finally:
            _recording.recorder = outer
        if len(recorder.blocks) > 1:
            raise _left_loop(recorder.blocks[-2][-1])
        return tuple(recorder.blocks[0])

    def _array(self, name: str, spec: Spec, arguments: Mapping[str, Any]) -> Array | None:
        element = arguments.get(name, None if name in self.optional else spec.dtype)
        if element is None and (name in arguments or name in self.optional):
            return None
        if isinstance(element, str):
            element = Format.parse(element) if spec.packed else dtypes.get(element)
        if not isinstance(element, Format if spec.packed else DType):
            raise LowbitvmError(
                "ARGUMENT_INVALID",
                f"parameter {name} of {self.__name__} was given {element!r}",
                f"pass {name}={'lb.Format(...)' if spec.packed else 'a dtype such as lb.f16'}",
            )
        if isinstance(element, Format) and element.has_digits:
            element = element.in_digits
        return Array(name, spec.dims, element)

    def compile(
        self,
        target: str,
        *,
        warps: int = 4,
        divisible: Mapping[str, int] | None = None,
        dependent: bool = False,
        **arguments: Any,
    ) -> "CompiledKernel":
        """Compiles for a GPU target such as "sm_80", without a GPU; `warps` is the number of warps of a block.

        dependent: launches of the kernel, on sm_90 and later, start while the kernel before them on the stream still
        runs. It reads packed weights at once, so that no kernel shortly before it may write them, and waits for that
        kernel's end before it touches other arrays.
        See `trace` for the other arguments. Raises TARGET_UNKNOWN, KERNEL_UNSUPPORTED, SHARED_MEMORY_EXCEEDED.
        """
        # Kernels are declared below the runtime and compiled through it: the one upward import.
        from lowbitvm.runtime.compiled import compile_program

        started = time.perf_counter()
        return compile_program(
            self.trace(divisible=divisible, **arguments), target, warps, started, dependent=dependent
        )


def _handle(array: Array | None) -> Tensor | Packed | None:
    if array is None:
        return None
    return Packed(array) if isinstance(array.element, Format) else Tensor(array)


def kernel(**specs: tuple[str, DType | None] | Spec) -> Callable[[Callable[..., None]], Kernel]:
    """Declares a kernel: per positional parameter its dimension names and dtype, `("m k", lb.f16)` or `packed("n k")`.

    A dtype of None is given when compiling. Dimensions of the same name must be equal at launch. A parameter `*rest` of
    the function takes all that are declared beyond its own.
    """
    for name, spec in specs.items():
        if not isinstance(spec, Spec) and not (isinstance(spec, tuple) and len(spec) == 2):
            raise _invalid(f"{name} is declared as {spec!r}", 'write ("m k", lb.f16) or lb.packed("n k")')
    declared = {
        name: spec if isinstance(spec, Spec) else Spec(tuple(spec[0].split()), spec[1]) for name, spec in specs.items()
    }
    return lambda function: Kernel(function, declared)
