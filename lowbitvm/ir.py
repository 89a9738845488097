"""The tile IR: one node type, `Op`, in nested blocks, and its printer.

An op's result is a scalar (shape `()`) or a tile of power-of-two shape. `assign` overwrites the result of an earlier
op, which is how `acc += ...` inside a recorded loop is expressed; everything else is in order and without side effects
but `store`. What each kind takes and returns stands in `lowbitvm.verify`; what it means, in `lowbitvm.interpret`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from lowbitvm.dtypes import DType
from lowbitvm.formats import Format

Attribute = int | float | str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Array:
    """A kernel parameter in global memory: contiguous, row-major, its sizes named by `dims`.

    `element` is the DType of its elements, or the Format of a packed weight of shape (out_features, in_features).
    """

    name: str
    dims: tuple[str, ...]
    element: DType | Format

    def __str__(self) -> str:
        kind = self.element.name if isinstance(self.element, DType) else f"packed<{self.element}>"
        return f"{self.name}: {kind}[{', '.join(self.dims)}]"


@dataclass(eq=False, slots=True)
class Op:
    """One operation; `dtype` is None when it has no result, `body` is the block of a `range`."""

    kind: str
    dtype: DType | None
    shape: tuple[int, ...] = ()
    operands: tuple["Op", ...] = ()
    array: Array | None = None
    attributes: dict[str, Attribute] = field(default_factory=dict)
    body: list["Op"] = field(default_factory=list)
    location: str = ""

    def integer(self, name: str) -> int:
        """The attribute `name`, which is an int."""
        value = self.attributes[name]
        assert isinstance(value, int), (self.kind, name, value)
        return value


@dataclass(frozen=True, slots=True)
class Program:
    """A recorded kernel. `divisible` promises, per dimension name, a divisor of that size at every launch."""

    name: str
    arrays: tuple[Array, ...]
    body: tuple[Op, ...]
    divisible: tuple[tuple[str, int], ...] = ()

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of the runtime sizes, in order of appearance."""
        return tuple(dict.fromkeys(dim for array in self.arrays for dim in array.dims))

    def divisor(self, dim: str) -> int:
        """The promised divisor of a dimension, 1 without a promise."""
        return dict(self.divisible).get(dim, 1)

    def __str__(self) -> str:
        return "\n".join(_program_lines(self))


def walk(block: "tuple[Op, ...] | list[Op]") -> Iterator[Op]:
    """Every op of a block in order, loop bodies after their `range`."""
    for op in block:
        yield op
        yield from walk(op.body)


def _program_lines(program: Program) -> Iterator[str]:
    names = {op: f"%{i}" for i, op in enumerate(walk(program.body))}
    promises = "".join(f", {dim} % {divisor} == 0" for dim, divisor in program.divisible)
    yield f"kernel {program.name}({', '.join(map(str, program.arrays))}{promises})"
    yield from _block_lines(program.body, names, "  ")


def _block_lines(block: "tuple[Op, ...] | list[Op]", names: dict[Op, str], indent: str) -> Iterator[str]:
    for op in block:
        words = [op.kind, *([op.array.name] if op.array else []), *(names[operand] for operand in op.operands)]
        words += [f"{key}={value}" for key, value in op.attributes.items()]
        result = ""
        if op.dtype is not None:
            result = f"{names[op]}: {op.dtype.name}{list(op.shape) if op.shape else ''} = "
        yield f"{indent}{result}{' '.join(words)}"
        yield from _block_lines(op.body, names, indent + "  ")
