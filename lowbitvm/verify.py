"""What each op of the tile IR takes and returns: a table of rules, checked after recording."""

from collections.abc import Callable

from lowbitvm import dtypes
from lowbitvm.dtypes import DType
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.ir import Op, Program, walk

MAX_TILE_ELEMENTS = 1 << 20
ARITHMETIC = (dtypes.f32, dtypes.i32)

Check = Callable[[Op], str | None]  # what is wrong with an op, or None


def verify(program: Program) -> None:
    """Checks every op against RULES; raises KERNEL_INVALID, TILE_INVALID, DTYPE_MISMATCH or SHAPE_MISMATCH."""
    for op in walk(program.body):
        _check_shape(op)
        count, dtype_check, shape_check = RULES[op.kind]
        assert count is None or len(op.operands) == count, (op.kind, len(op.operands))
        for code, check in (("DTYPE_MISMATCH", dtype_check), ("SHAPE_MISMATCH", shape_check)):
            problem = check(op)
            if problem is not None:
                raise LowbitvmError(code, f"{op.kind}: {problem}", _FIXES[code], op.location)
    for dim, divisor in program.divisible:
        if dim not in program.dims or divisor < 1:
            raise LowbitvmError(
                "ARGUMENT_INVALID", f"divisible={{{dim!r}: {divisor}}}", f"name one of {list(program.dims)}"
            )


_FIXES = {
    "DTYPE_MISMATCH": "compute in f32 or i32 and cast with .to(...)",
    "SHAPE_MISMATCH": "make the shapes agree",
}


def _check_shape(op: Op) -> None:
    elements = 1
    for size in op.shape:
        elements *= size
        if size < 1 or size & (size - 1):
            raise LowbitvmError(
                "TILE_INVALID", f"{op.kind} makes a tile of shape {op.shape}", "use powers of two", op.location
            )
    if elements > MAX_TILE_ELEMENTS:
        raise LowbitvmError(
            "TILE_INVALID",
            f"{op.kind} makes a tile of {elements} elements",
            f"stay within {MAX_TILE_ELEMENTS}",
            op.location,
        )


def _any(op: Op) -> str | None:
    return None


def _dtypes(op: Op) -> list[DType]:
    return [operand.dtype for operand in op.operands if operand.dtype is not None]


def _arithmetic(op: Op) -> str | None:
    wrong = [d.name for d in _dtypes(op) if d not in ARITHMETIC]
    return f"operands of {', '.join(wrong)}" if wrong else None


def _float_only(op: Op) -> str | None:
    return None if op.dtype == dtypes.f32 else f"an operand of {op.dtype.name if op.dtype else None}, not f32"


def _integer_only(op: Op) -> str | None:
    return None if op.dtype == dtypes.i32 else f"an operand of {op.dtype.name if op.dtype else None}, not i32"


def _offsets_are_scalars(offsets: tuple[Op, ...]) -> str | None:
    wrong = [o for o in offsets if o.dtype != dtypes.i32 or o.shape]
    return f"an offset of {wrong[0].dtype.name if wrong[0].dtype else None}{list(wrong[0].shape)}" if wrong else None


def _same_shapes(op: Op) -> str | None:
    shapes = {operand.shape for operand in op.operands}
    return f"tiles of shapes {sorted(shapes)}" if len(shapes) > 1 else None


def _assign_dtypes(op: Op) -> str | None:
    target, value = op.operands
    return None if target.dtype == value.dtype else f"{target.dtype} is overwritten with {value.dtype}"


def _load(op: Op) -> str | None:
    return _offsets_are_scalars(op.operands)


def _store(op: Op) -> str | None:
    assert op.array is not None
    value, *offsets = op.operands
    if value.dtype != op.array.element:
        return f"a tile of {value.dtype.name if value.dtype else None} goes to {op.array}"
    return _offsets_are_scalars(tuple(offsets))


def _rank_of_array(op: Op) -> str | None:
    assert op.array is not None
    return None if len(op.shape) == len(op.array.dims) else f"a tile of shape {op.shape} from {op.array}"


def _rank_of_stored(op: Op) -> str | None:
    assert op.array is not None
    shape = op.operands[0].shape
    return None if len(shape) == len(op.array.dims) else f"a tile of shape {shape} to {op.array}"


def _dot(op: Op) -> str | None:
    a, b = op.operands
    if a.dtype not in (dtypes.f16, dtypes.bf16):
        return f"the first operand is {a.dtype.name if a.dtype else None}, not f16 or bf16"
    return None if b.dtype == dtypes.f32 else f"the second operand is {b.dtype.name if b.dtype else None}"


def _axis(op: Op) -> str | None:
    return None if 0 <= op.integer("axis") <= 2 else f"grid axis {op.integer('axis')}"


def _packed(op: Op) -> str | None:
    return None if op.array is not None and isinstance(op.array.element, Format) else "no packed weight"


# kind -> (operands, rule for dtypes, rule for shapes)
RULES: dict[str, tuple[int | None, Check, Check]] = {
    "program_id": (0, _any, _axis),
    "dimension": (0, _any, _any),
    "constant": (0, _any, _any),
    "full": (0, _any, _any),
    "load": (None, _load, _rank_of_array),
    "store": (None, _store, _rank_of_stored),
    "assign": (2, _assign_dtypes, _same_shapes),
    "cast": (1, _any, _any),
    "broadcast": (1, _any, _any),
    "expand": (1, _any, _any),
    "transpose": (1, _any, _any),
    "reduce": (1, _arithmetic, _any),
    "dequant": (1, _packed, _any),
    "dot": (2, _dot, _any),
    "range": (2, _integer_only, _same_shapes),
    **{kind: (2, _arithmetic, _same_shapes) for kind in ("add", "sub", "mul", "max", "min")},
    **{kind: (2, _integer_only, _same_shapes) for kind in ("floordiv", "mod")},
    "div": (2, _float_only, _same_shapes),
    **{kind: (1, _float_only, _any) for kind in ("exp", "sqrt")},
}
