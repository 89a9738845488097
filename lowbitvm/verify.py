"""What each op of the tile IR takes and returns: a table of rules, checked after recording.

Nothing is taken on trust: programs that are built from `Op` by hand are held to the same rules as recorded ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lowbitvm import dtypes
from lowbitvm.digits import BASES
from lowbitvm.dtypes import CodeType, DType
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import tile_k
from lowbitvm.ir import Array, Op, Program

MAX_TILE_ELEMENTS = 1 << 20
MAX_RANK = 3
ARITHMETIC = (dtypes.f32, dtypes.i32)
STAGES = range(2, 9)
EVICT = ("first", "last")
RESERVED_NAMES = ("_", "WARP_SZ", "smem")  # PTX's own, and the generated code's shared memory

Check = Callable[[Op], str | None]  # what is wrong with an op, or None


@dataclass(frozen=True)
class Rule:
    """The rules of one kind; each check may rely on those before it."""

    operands: int | None  # None: as many as the array has dimensions, and the value to store
    form: Check  # array and attributes; KERNEL_INVALID
    dtype: Check  # DTYPE_MISMATCH
    shape: Check  # SHAPE_MISMATCH
    value: Check  # numbers; ARGUMENT_INVALID
    has_result: bool = True


def verify(program: Program) -> None:
    """Checks every op against RULES, and that operands are defined before they are used.

    Raises KERNEL_INVALID, TILE_INVALID, DTYPE_MISMATCH, SHAPE_MISMATCH or ARGUMENT_INVALID.
    """
    for name in (program.name, *(array.name for array in program.arrays), *program.dims):
        if not (name.isascii() and name.isidentifier()) or name in RESERVED_NAMES:
            raise LowbitvmError(
                "KERNEL_INVALID",
                f"{name!r} names a kernel, parameter or dimension",
                f"use an ASCII identifier other than {', '.join(RESERVED_NAMES)}",
            )
    for array in program.arrays:
        if not 1 <= len(array.dims) <= MAX_RANK:
            raise LowbitvmError("SHAPE_MISMATCH", f"{array}", f"declare 1 to {MAX_RANK} dimensions")
    for dim, divisor in program.divisible:
        if dim not in program.dims or not isinstance(divisor, int) or divisor < 1:
            raise LowbitvmError(
                "ARGUMENT_INVALID",
                f"divisible={{{dim!r}: {divisor}}}",
                f"give a positive integer for one of {list(program.dims)}",
            )
    _check_block(program.body, program.arrays, set())


def _check_block(block: Sequence[Op], arrays: tuple[Array, ...], visible: set[Op]) -> None:
    """`visible` are the ops of the blocks around this one that come before it."""
    visible = set(visible)
    for op in block:
        _check_form(op, arrays, visible)
        _check_tile(op)
        rule = RULES[op.kind]
        for code, check in (
            ("KERNEL_INVALID", rule.form),
            ("DTYPE_MISMATCH", rule.dtype),
            ("SHAPE_MISMATCH", rule.shape),
            ("ARGUMENT_INVALID", rule.value),
        ):
            problem = check(op)
            if problem is not None:
                raise LowbitvmError(code, f"{op.kind}: {problem}", FIXES[code], op.location)
        if op.kind == "range":
            _check_block(op.body, arrays, visible | {op})  # the index lives inside the loop only
        elif op.kind == "when":
            _check_block(op.body, arrays, visible)
        elif rule.has_result:
            visible.add(op)


FIXES = {
    "KERNEL_INVALID": "build the op as lowbitvm.dsl does",
    "DTYPE_MISMATCH": "compute in f32 or i32 and cast with .to(...)",
    "SHAPE_MISMATCH": "make the shapes agree",
    "ARGUMENT_INVALID": "use a number in that range",
}


def _check_form(op: Op, arrays: tuple[Array, ...], visible: set[Op]) -> None:
    """What the rules of every kind rely on: its operands, array and result are there."""

    def invalid(problem: str) -> LowbitvmError:
        return LowbitvmError("KERNEL_INVALID", f"{op.kind}: {problem}", FIXES["KERNEL_INVALID"], op.location)

    if op.kind not in RULES:
        raise invalid(f"there is no such op, only {', '.join(RULES)}")
    rule = RULES[op.kind]
    if op.array is not None and op.array not in arrays:
        raise invalid(f"{op.array} is no parameter of the kernel")
    if op.kind in ARRAY_KINDS and op.array is None:
        raise invalid("there is no array")
    if (op.dtype is not None) != rule.has_result:
        raise invalid(f"the result is {op.dtype}")
    wanted = rule.operands
    if wanted is None:
        assert op.array is not None
        wanted = len(op.array.dims) + (op.kind in ("store", "atomic_add"))
    if len(op.operands) != wanted:
        raise invalid(f"{len(op.operands)} operands instead of {wanted}")
    for operand in op.operands:
        if operand not in visible:
            raise invalid(f"the {operand.kind} of {operand.location or 'nowhere'} is not defined before it")
        if isinstance(operand.dtype, CodeType) and op.kind not in CODE_KINDS:
            raise LowbitvmError(
                "DTYPE_MISMATCH", f"{op.kind}: an operand of packed codes", "use lb.dequant on them", op.location
            )
    if op.body and op.kind not in ("range", "when"):
        raise invalid("it has a body")


def _check_tile(op: Op) -> None:
    elements = math.prod(op.shape)
    if any(size < 1 or size & (size - 1) for size in op.shape):
        problem, fix = f"of shape {op.shape}", "use powers of two"
    elif elements > MAX_TILE_ELEMENTS:
        problem, fix = f"of {elements} elements", f"stay within {MAX_TILE_ELEMENTS}"
    elif len(op.shape) > MAX_RANK:
        problem, fix = f"of rank {len(op.shape)}", f"stay within {MAX_RANK} axes"
    else:
        return
    raise LowbitvmError("TILE_INVALID", f"{op.kind} makes a tile {problem}", fix, op.location)


# -- attributes and arrays ---------------------------------------------------------------------------------------------


def _plain(op: Op) -> str | None:
    return None


def _integers(*names: str) -> Check:
    def check(op: Op) -> str | None:
        wrong = [name for name in names if type(op.attributes.get(name)) is not int]
        return f"{wrong[0]}={op.attributes.get(wrong[0])!r} is no integer" if wrong else None

    return check


def _number(name: str) -> Check:
    def check(op: Op) -> str | None:
        value = op.attributes.get(name)
        return None if isinstance(value, int | float) else f"{name}={value!r} is no number"

    return check


def _load_form(op: Op) -> str | None:
    evict = op.attributes.get("evict")
    return _number("other")(op) if evict in (None, *EVICT) else f"evict={evict!r} is none of {EVICT}"


def _reduce_form(op: Op) -> str | None:
    how = op.attributes.get("how")
    return _integers("axis")(op) if how in ("sum", "max") else f"how={how!r} is neither 'sum' nor 'max'"


def _dense(op: Op) -> str | None:
    assert op.array is not None
    return f"{op.array} is packed" if isinstance(op.array.element, Format) else None


def _store_form(op: Op) -> str | None:
    assert op.array is not None
    element = op.array.element
    if isinstance(element, Format) and (element.digits is None or element.act is not None):
        return f"{op.array} is packed, and no activations in digits"
    return None


def _compare_form(op: Op) -> str | None:
    how = op.attributes.get("how")
    return None if how in ("equal", "less") else f"how={how!r} is neither 'equal' nor 'less'"


def _dequant_form(op: Op) -> str | None:
    (codes,) = op.operands
    loaded = codes.kind == "load" and codes.array == op.array and isinstance(codes.dtype, CodeType)
    return None if loaded else f"the operand is no load of codes from {op.array}"


def _dot_form(op: Op) -> str | None:
    return _integers("first", "size")(op) if op.attributes else None


def _assign_form(op: Op) -> str | None:
    target = op.operands[0]
    return "an i32 scalar is updated in place" if target.dtype == dtypes.i32 and not target.shape else None


# -- dtypes ------------------------------------------------------------------------------------------------------------


def _names(found: Sequence[DType | None]) -> str:
    return ", ".join(str(dtype) for dtype in found)


def _same_dtypes(*allowed: DType) -> Check:
    """Operands and result are all of one of these dtypes; of any one where none are given."""

    def check(op: Op) -> str | None:
        found = [operand.dtype for operand in op.operands] + ([op.dtype] if op.kind != "assign" else [])
        if allowed and any(dtype not in allowed for dtype in found):
            return f"operands and result of {_names(found)} instead of {_names(allowed)}"
        return f"operands and result of {_names(found)}" if len(set(found)) > 1 else None

    return check


def _result(*allowed: DType) -> Check:
    return lambda op: None if op.dtype in allowed else f"a result of {op.dtype} instead of {_names(allowed)}"


def _array_type(op: Op) -> str | None:
    return None if op.dtype in dtypes.ARRAY_TYPES.values() else f"a result of {op.dtype}"


def _stored_type(array: Array) -> DType:
    return array.element.code if isinstance(array.element, Format) else array.element


def _load_dtypes(op: Op) -> str | None:
    assert op.array is not None
    expected = _stored_type(op.array)
    return f"a tile of {op.dtype} from {op.array}" if op.dtype != expected else _offset_dtypes(op.operands)


def _store_dtypes(op: Op) -> str | None:
    assert op.array is not None
    value, *offsets = op.operands
    taken = dtypes.i32 if isinstance(op.array.element, Format) else op.array.element
    return f"a tile of {value.dtype} goes to {op.array}" if value.dtype != taken else _offset_dtypes(offsets)


def _bitcast_dtypes(op: Op) -> str | None:
    found = [op.operands[0].dtype, op.dtype]
    return None if set(found) <= set(ARITHMETIC) else f"{_names(found)} instead of {_names(ARITHMETIC)}"


def _from_to(source: DType, target: DType) -> Check:
    def check(op: Op) -> str | None:
        found = [op.operands[0].dtype, op.dtype]
        return None if found == [source, target] else f"{_names(found)} instead of {source}, {target}"

    return check


def _offset_dtypes(offsets: Sequence[Op]) -> str | None:
    wrong = [offset for offset in offsets if offset.dtype != dtypes.i32]
    return f"an offset of {wrong[0].dtype}" if wrong else None


def _atomic_dtypes(op: Op) -> str | None:
    assert op.array is not None
    if op.array.element != dtypes.i32:
        return f"{op.array}, only i32 elements are added to"
    return _offset_dtypes(op.operands)


def _compare_dtypes(op: Op) -> str | None:
    found = [operand.dtype for operand in op.operands]
    if any(dtype != dtypes.i32 for dtype in found) or op.dtype != dtypes.boolean:
        return f"operands {_names(found)} to {op.dtype}, a comparison is of i32 scalars"
    return None


def _when_dtypes(op: Op) -> str | None:
    return None if op.operands[0].dtype == dtypes.boolean else f"a condition of {op.operands[0].dtype}"


def _dot_dtypes(op: Op) -> str | None:
    a, b = op.operands
    if isinstance(a.dtype, CodeType) or isinstance(b.dtype, CodeType):
        return _digit_dot(op)
    if a.dtype not in (dtypes.f16, dtypes.bf16):
        return f"the first operand is {a.dtype}, not f16 or bf16"
    fits = b.dtype in (a.dtype, dtypes.f32) and op.dtype == dtypes.f32
    return None if fits else f"the second operand is {b.dtype}, the result {op.dtype}"


# -- shapes ------------------------------------------------------------------------------------------------------------


def _same_shapes(op: Op) -> str | None:
    shapes = [operand.shape for operand in op.operands] + ([op.shape] if op.kind != "assign" else [])
    return f"tiles of shapes {sorted(set(shapes))}" if len(set(shapes)) > 1 else None


def _same_tiles(op: Op) -> str | None:
    return _same_shapes(op) if op.shape else "a scalar, not a tile"


def _scalar(op: Op) -> str | None:
    return f"a result of shape {op.shape}, not a scalar" if op.shape else None


def _scalars(op: Op) -> str | None:
    """Operands are scalars, and so is the result."""
    wrong = [x for x in (*op.operands, op) if x.shape]
    return f"a tile of shape {wrong[0].shape}, not a scalar" if wrong else None


def _access(op: Op) -> str | None:
    assert op.array is not None
    shape, offsets = (op.operands[0].shape, op.operands[1:]) if op.kind == "store" else (op.shape, op.operands)
    if len(shape) != len(op.array.dims):
        return f"a tile of shape {shape} of {op.array}"
    element = op.array.element
    if op.kind == "store" and isinstance(element, Format) and shape[-1] % tile_k(element):
        return f"a tile of shape {shape} of {op.array}, whose stored tiles are of {tile_k(element)} in_features"
    gathers = not isinstance(element, Format)
    for offset, size in zip(offsets, shape, strict=True):
        if offset.shape and not (gathers and offset.shape == (size,)):
            return f"an offset of shape {offset.shape} along an axis of {size} of {op.array}"
    return None


def _broadcast_shape(op: Op) -> str | None:
    shape = op.operands[0].shape
    aligned = op.shape[len(op.shape) - len(shape) :]
    fits = len(shape) <= len(op.shape) and all(a in (1, b) for a, b in zip(shape, aligned, strict=True))
    return None if fits else f"a tile of shape {shape} to {op.shape}"


def _expand_shape(op: Op) -> str | None:
    shape, axis = op.operands[0].shape, op.integer("axis")
    if not 0 <= axis <= len(shape):
        return f"axis {axis} in a tile of shape {shape}"
    expected = (*shape[:axis], 1, *shape[axis:])
    return None if op.shape == expected else f"a tile of shape {op.shape} instead of {expected}"


def _reshape_shape(op: Op) -> str | None:
    shape = op.operands[0].shape
    fits = shape and op.shape and math.prod(shape) == math.prod(op.shape)
    return None if fits else f"a tile of shape {shape} to {op.shape}"


def _transpose_shape(op: Op) -> str | None:
    shape = op.operands[0].shape
    return None if len(shape) == 2 and op.shape == shape[::-1] else f"a tile of shape {shape} to {op.shape}"


def _reduce_shape(op: Op) -> str | None:
    shape, axis = op.operands[0].shape, op.integer("axis")
    if not 0 <= axis < len(shape):
        return f"axis {axis} of a tile of shape {shape}"
    expected = shape[:axis] + shape[axis + 1 :]
    return None if op.shape == expected else f"a tile of shape {op.shape} instead of {expected}"


def _dot_shape(op: Op) -> str | None:
    a, b = (operand.shape for operand in op.operands)
    fits = len(a) == len(b) == 2 and a[1] == b[0] and op.shape == (a[0], b[1])
    return None if fits else f"tiles {a} and {b} to {op.shape}"


# -- numbers -----------------------------------------------------------------------------------------------------------


def _digit_dot(op: Op) -> str | None:
    """Two matrices of codes in digits of one base, the second of them a weight, give i32."""
    formats = [_source(operand) for operand in op.operands]
    activations, weights = formats
    if activations is None or weights is None or activations.digits is None or activations.act is not None:
        return "operands of codes that are not activations and a weight in digits"
    if weights.act is None or weights.digits != activations.digits:
        return f"a dot of {activations} and {weights}, not a weight in the same digits"
    return None if op.dtype == dtypes.i32 else f"a result of {op.dtype}, not i32"


def _dot_part(op: Op) -> str | None:
    """A part of k is inside the tiles, and whole steps of the instruction that multiplies digits."""
    if not op.attributes:
        return None
    first, size, fmt = op.integer("first"), op.integer("size"), _source(op.operands[0])
    if not (first >= 0 and size > 0 and first + size <= op.operands[0].shape[1]):
        return f"a part of {size} from {first} on of tiles of {op.operands[0].shape[1]} along k"
    if fmt is None or fmt.digits is None:
        return "a part of k of dots of floats"
    step = BASES[fmt.digits].step_k
    return f"a part of {size} from {first} on of k, in steps of {step}" if size % step or first % step else None


def _source(op: Op) -> Format | None:
    """The format of the packed array that an operand of a dot is loaded from."""
    while op.kind == "transpose":
        op = op.operands[0]
    element = op.array.element if op.kind == "load" and op.array is not None else None
    return element if isinstance(element, Format) else None


def _fits(name: str) -> Check:
    """The number is one of the result's dtype, or rounds to one: no fraction for integers, no overflow."""

    def check(op: Op) -> str | None:
        value, dtype = op.attributes[name], op.dtype
        assert dtype is not None and isinstance(value, int | float)
        if isinstance(dtype, CodeType):
            return None if value == 0 else f"{name}={value} for packed codes, which are 0 outside"
        if dtype.is_integer:
            limits = np.iinfo(dtype.numpy)
            whole = isinstance(value, int) and limits.min <= value <= limits.max
            return None if whole else f"{name}={value} is no {dtype}"
        return f"{name}={value} overflows {dtype}" if dtype.is_float and _overflows(value, dtype) else None

    return check


def _overflows(value: float, dtype: DType) -> bool:
    try:
        with np.errstate(over="ignore"):
            rounded = np.array(float(value)).astype(dtype.numpy)
    except OverflowError:  # an int beyond f64
        return True
    return math.isfinite(value) and not math.isfinite(float(rounded))


def _grid_axis(op: Op) -> str | None:
    return None if 0 <= op.integer("axis") <= 2 else f"grid axis {op.integer('axis')}, not 0, 1 or 2"


def _array_axis(op: Op) -> str | None:
    assert op.array is not None
    return None if 0 <= op.integer("axis") < len(op.array.dims) else f"axis {op.integer('axis')} of {op.array}"


def _loop_numbers(op: Op) -> str | None:
    step, stages = op.integer("step"), op.integer("stages")
    if not 0 < step < 1 << 31:
        return f"step {step}, not positive and below 2^31"
    if op.integer("direct") < 0:
        return f"direct {op.integer('direct')}, below 0"
    if op.integer("folded") not in (0, 1):
        return f"folded {op.integer('folded')}, not 0 or 1"
    return None if stages in STAGES else f"{stages} stages, not {STAGES[0]} to {STAGES[-1]}"


def _elementwise(operands: int, *allowed: DType) -> Rule:
    return Rule(operands, _plain, _same_dtypes(*allowed), _same_shapes, _plain)


CODE_KINDS = ("dequant", "transpose", "dot")  # that take packed codes; a transposed tile only feeds a dot
ARRAY_KINDS = ("dimension", "load", "store", "atomic_add", "dequant")
RULES: dict[str, Rule] = {
    "program_id": Rule(0, _integers("axis"), _result(dtypes.i32), _scalar, _grid_axis),
    "dimension": Rule(0, _integers("axis"), _result(dtypes.i32), _scalar, _array_axis),
    "constant": Rule(0, _number("value"), _result(*ARITHMETIC), _scalar, _fits("value")),
    "full": Rule(0, _number("value"), _array_type, _plain, _fits("value")),
    "load": Rule(None, _load_form, _load_dtypes, _access, _fits("other")),
    "store": Rule(None, _store_form, _store_dtypes, _access, _plain, has_result=False),
    "atomic_add": Rule(None, _dense, _atomic_dtypes, _scalars, _plain),
    "compare": Rule(2, _compare_form, _compare_dtypes, _scalars, _plain),
    "when": Rule(1, _plain, _when_dtypes, _scalars, _plain, has_result=False),
    "assign": Rule(2, _assign_form, _same_dtypes(), _same_shapes, _plain, has_result=False),
    "cast": Rule(1, _plain, _array_type, _same_shapes, _plain),
    "broadcast": Rule(1, _plain, _same_dtypes(), _broadcast_shape, _plain),
    "expand": Rule(1, _integers("axis"), _same_dtypes(), _expand_shape, _plain),
    "reshape": Rule(1, _plain, _same_dtypes(), _reshape_shape, _plain),
    "transpose": Rule(1, _plain, _same_dtypes(), _transpose_shape, _plain),
    "rint": Rule(1, _plain, _from_to(dtypes.f32, dtypes.i32), _same_shapes, _plain),
    "bitcast": Rule(1, _plain, _bitcast_dtypes, _same_shapes, _plain),
    "reduce": Rule(1, _reduce_form, _same_dtypes(*ARITHMETIC), _reduce_shape, _plain),
    "dequant": Rule(1, _dequant_form, _result(dtypes.f32), _same_shapes, _plain),
    "dot": Rule(2, _dot_form, _dot_dtypes, _dot_shape, _dot_part),
    "range": Rule(
        2, _integers("step", "stages", "direct", "folded"), _same_dtypes(dtypes.i32), _scalars, _loop_numbers
    ),
    **{kind: _elementwise(2, *ARITHMETIC) for kind in ("add", "sub", "mul", "max", "min")},
    **{kind: _elementwise(2, dtypes.i32) for kind in ("floordiv", "mod")},
    "div": _elementwise(2, dtypes.f32),
    **{kind: _elementwise(1, dtypes.f32) for kind in ("exp", "sqrt")},
    "fma": _elementwise(3, dtypes.f32),
    "mul_shift": Rule(3, _integers("nearest"), _same_dtypes(dtypes.i32), _same_shapes, _plain),
    "hadamard": Rule(1, _plain, _same_dtypes(dtypes.f32), _same_tiles, _plain),
}
