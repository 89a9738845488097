"""How another project stores a quantised weight: which tensor holds which bits of which field.

A scheme is a table of parts. Each part moves bits between one tensor, or a slice of every record of it, and one field
of `Foreign`. Reading applies all parts, writing inverts them. What a scheme stores in other terms (scales that are
quantised again, a divisor in place of a scale) stays in `Foreign.extra`, and its `derive` computes the fields from it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lowbitvm import dtypes
from lowbitvm.arrays import cast, check_readable, zeros
from lowbitvm.dtypes import CODE_TYPES, Array, DType
from lowbitvm.errors import LowbitvmError
from lowbitvm.foreign.arrays import (
    Shape,
    concatenated,
    consecutive,
    contiguous,
    dtype_named,
    equal,
    filled_up,
    reinterpret,
    shape_of,
)
from lowbitvm.foreign.bits import Packing

Tensors = Mapping[str, Array]
Fields = dict[str, Array]
Options = dict[str, Any]

FIELDS = ("codes", "scales", "zeros", "outer", "outer_zeros", "table", "g_idx")


@dataclass(frozen=True, eq=False)
class Foreign:
    """A quantised matrix (N = out_features, K = in_features) in plain arrays, numpy or torch.

    codes: integers (N, K) of the code type `code`, a key of lowbitvm.dtypes.CODE_TYPES: values of integer types, stored
        patterns of float types and codebooks.
    scales: (N, G), (N, 1) for one scale per output feature or (1, 1) for one in all.
    zeros: None, or shaped like `scales`; `zero` says what they do, as in lowbitvm.Format.
    outer, outer_zeros: the second level of scales and of offsets in f32; `outers` says what shares one: "tensor" for
        (1, 1), 256 for (N, K / 256).
    table: the codebooks as lowbitvm.pack takes them; `tables` says what shares one.
    g_idx: integers (K): the group of each input feature. None for G runs of K / G consecutive features.
    extra: what the packing stores besides, by name.
    """

    codes: Array
    scales: Array
    code: str
    zeros: Array | None = None
    zero: str | None = None
    outer: Array | None = None
    outer_zeros: Array | None = None
    outers: int | str | None = None
    table: Array | None = None
    tables: str | None = None
    g_idx: Array | None = None
    extra: dict[str, Array] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return int(self.codes.shape[0]), int(self.codes.shape[1])

    @property
    def group(self) -> int | str | None:
        """`group` of the lowbitvm.Format that suits; None where the groups have no common size."""
        rows, groups = shape_of(self.scales)
        out_features, in_features = self.shape
        if (rows, groups) == (1, 1) and out_features != 1:
            return "tensor"
        if groups == 1:
            return "channel"
        return in_features // groups if groups and in_features % groups == 0 else None

    @property
    def format(self) -> str | None:
        """The lowbitvm.Format that suits, as text; None where the groups have no common size."""
        if self.group is None:
            return None
        parts = [self.code, f"group={self.group}", f"zero={str(self.zero).lower()}"]
        parts.append(f"scale={dtypes.of(self.scales).name}")
        if self.outers is not None:
            parts.append(f"outer={self.outers}")
        if self.tables is not None:
            parts.append(f"table={self.tables}")
        return ",".join(parts)


@dataclass(frozen=True)
class Record:
    """A slice of every record: dimension `dim` of a tensor is cut into records of `length`, start:stop is taken.

    shape: the tensor's; it is then cut as one row-major sequence, whatever its dimensions.
    """

    length: int
    start: int
    stop: int
    dim: int = -1
    shape: Shape | None = None


@dataclass(frozen=True)
class Part:
    """Bits `low` and up of `field`, stored in `tensor` as `packing` says.

    stored: dtypes that the tensor may have. Elements that are only rearranged keep theirs, words get the first.
    view: what the tensor's bytes are read as, if not as its elements. record: the slice of the tensor.
    into: the slice of the field's last dimension, (length, start, stop).
    optional: "read": the tensor may be missing when it is read; "always": the field may be, too, when it is written.
    """

    tensor: str
    field: str
    packing: Packing
    stored: tuple[str, ...]
    low: int = 0
    view: str | None = None
    record: Record | None = None
    into: tuple[int, int, int] | None = None
    optional: Literal["read", "always"] | None = None


@dataclass(frozen=True)
class Integer:
    """Patterns of an integer field: value = (pattern + add) mod 2**bits - bias, as u8, or as i8 if `signed`.

    `used`: only the patterns below it have a meaning.
    """

    bits: int
    bias: int = 0
    add: int = 0
    used: int | None = None
    signed: bool = False

    def read(self, name: str, patterns: Array) -> Array:
        """What the patterns stand for. Raises CODES_OUT_OF_RANGE for those that have no meaning."""
        if self.used is not None and bool((patterns >= self.used).any()):
            problem = f"{name} hold the pattern {int(patterns.max())}, only 0 .. {self.used - 1} have a meaning"
            raise LowbitvmError("CODES_OUT_OF_RANGE", problem, "check that the tensors are of the packing named")
        if not self.add and not self.bias and not self.signed:
            return patterns
        wide = (cast(patterns, dtypes.i16) + self.add & (1 << self.bits) - 1) - self.bias
        return cast(wide, dtypes.i8 if self.bias or self.signed else dtypes.u8)

    def write(self, name: str, values: Array) -> Array:
        """The patterns of values. Raises CODES_OUT_OF_RANGE and DTYPE_MISMATCH."""
        if not dtypes.of(values).is_integer:
            raise LowbitvmError("DTYPE_MISMATCH", f"{name} are {dtypes.of(values)}, not integers", "pass integers")
        wide = cast(values, dtypes.i32)
        low, high = -self.bias, (self.used or 1 << self.bits) - 1 - self.bias
        if bool(((wide < low) | (wide > high)).any()):
            problem = f"{name} reach from {int(wide.min())} to {int(wide.max())}, {low} .. {high} can be stored"
            raise LowbitvmError("CODES_OUT_OF_RANGE", problem, "quantise to that range first")
        return cast(wide + self.bias - self.add & (1 << self.bits) - 1, dtypes.u8)


@dataclass(frozen=True)
class Wider:
    """Numbers that a scheme stores as `stored` and Foreign has in f32, times `sign`."""

    stored: DType
    sign: int = 1

    def read(self, name: str, values: Array) -> Array:
        """The numbers in f32."""
        return cast(values, dtypes.f32) * self.sign

    def write(self, name: str, values: Array) -> Array:
        """The numbers as they are stored. Raises DTYPE_MISMATCH, and ARGUMENT_INVALID when they would be rounded."""
        if dtypes.of(values) != dtypes.f32:
            raise LowbitvmError("DTYPE_MISMATCH", f"{name} are {dtypes.of(values)}, not f32", "convert them to f32")
        narrow = cast(values * self.sign, self.stored)
        if not equal(cast(narrow, dtypes.f32), cast(values * self.sign, dtypes.f32)):
            problem = f"{name} are f32 numbers that {self.stored} cannot hold"
            raise LowbitvmError("ARGUMENT_INVALID", problem, f"round them to {self.stored} before quantising")
        return narrow


@dataclass(frozen=True)
class Plan:
    """One scheme with all its options given.

    code, zero, outers, tables: as in Foreign. numbers: fields whose stored form is not what Foreign has.
    derive: fields of Foreign from those that are stored, where these say them in other terms.
    cropped: a field's shape in storage, without padding. padded: with padding, where that is more than the packing
        adds. shaped: a field's shape in Foreign, where `cropped` has as many elements in another shape.
    constants: what else there is, where no tensor says otherwise.
    group: what shares a scale, as in lowbitvm.Format, where the packing leaves no choice.
    """

    code: str
    zero: str | None
    parts: tuple[Part, ...]
    numbers: Mapping[str, Integer | Wider] = field(default_factory=dict)
    derive: Callable[[Fields], Fields] | None = None
    cropped: Mapping[str, Shape] = field(default_factory=dict)
    padded: Mapping[str, Shape] = field(default_factory=dict)
    shaped: Mapping[str, Shape] = field(default_factory=dict)
    constants: Fields = field(default_factory=dict)
    outers: int | str | None = None
    tables: str | None = None
    group: int | str | None = None

    @property
    def every_number(self) -> dict[str, Integer | Wider]:
        """`numbers`, with codes that are stored as their patterns."""
        return {"codes": Integer(CODE_TYPES[self.code].bits), **self.numbers}


@dataclass(frozen=True)
class Scheme:
    """A packing of another project.

    plan: the table for given options. infer: the caller's options with what the tensors tell, for reading; for writing
    they come from the weight instead: "code", "bits", "shape" (N, K), "groups" (G), "zeros" (whether there are any),
    "extra" and "like" (an array of the weight). options: those that a caller may give.
    """

    plan: Callable[[Options], Plan]
    infer: Callable[[Tensors, Options], Options]
    options: tuple[str, ...] = ()


# -- reading -----------------------------------------------------------------------------------------------------------


def read(name: str, scheme: Scheme, tensors: Tensors, options: Options) -> Foreign:
    """The weight in a checkpoint's tensors."""
    check_readable(tensors)
    plan = scheme.plan(scheme.infer(tensors, options))
    _check_tensors(name, plan, tensors)
    fields: Fields = {}
    for part in plan.parts:
        if part.tensor in tensors:
            _add_bits(fields, part, _unpacked(plan, part, tensors[part.tensor]))
    for name_of, values in fields.items():
        shape = plan.cropped.get(name_of, shape_of(values))
        kept = contiguous(values[tuple(slice(0, size) for size in shape)])
        kept = plan.every_number[name_of].read(name_of, kept) if name_of in plan.every_number else kept
        fields[name_of] = kept.reshape(plan.shaped.get(name_of, shape))
    fields = {**plan.constants, **fields}
    derived = plan.derive(fields) if plan.derive else {}
    known = {name: values for name, values in {**fields, **derived}.items() if name in FIELDS}
    extra = {name: values for name, values in fields.items() if name not in FIELDS}
    zero = plan.zero if "zeros" in known else None
    weight = Foreign(**known, code=plan.code, zero=zero, outers=plan.outers, tables=plan.tables, extra=extra)
    _check_group(name, plan, weight)
    stays = any(part.field == "g_idx" and part.optional == "always" for part in plan.parts)
    return _checked(weight, stays)


def _check_group(name: str, plan: Plan, weight: Foreign) -> None:
    """Raises SHAPE_MISMATCH unless the scales are one for each group of the plan."""
    out_features, in_features = weight.shape
    groups = {None: shape_of(weight.scales)[1], "channel": 1, "tensor": 1}
    count = -(-in_features // plan.group) if isinstance(plan.group, int) else groups[plan.group]
    wanted = (1 if plan.group == "tensor" else out_features, count)
    if shape_of(weight.scales) != wanted or (isinstance(plan.group, int) and in_features % plan.group):
        problem = f"scales are {shape_of(weight.scales)} beside codes {weight.shape}, {name} has {wanted}"
        problem += "" if plan.group is None else f", one for each group of {plan.group}"
        raise LowbitvmError("SHAPE_MISMATCH", problem, "pass the parts of one weight, with groups that the packing has")


def tensor_of(name: str, tensors: Tensors, dims: int = 2) -> Shape:
    """The shape of a tensor that must be there. Raises ARGUMENT_INVALID and SHAPE_MISMATCH."""
    if name not in tensors:
        problem = f"there is no tensor {name!r} among {sorted(tensors)}"
        raise LowbitvmError("ARGUMENT_INVALID", problem, "pass the tensors under the names of docs/foreign.md")
    dtypes.of(tensors[name])
    shape = shape_of(tensors[name])
    if len(shape) != dims:
        problem = f"{name} has shape {shape}, not {dims} dimensions"
        raise LowbitvmError("SHAPE_MISMATCH", problem, "pass tensors as the checkpoint has them, one layer at a time")
    return shape


def _check_tensors(name: str, plan: Plan, tensors: Tensors) -> None:
    wanted = {part.tensor: part for part in plan.parts}
    for tensor, part in wanted.items():
        if tensor not in tensors:
            if not part.optional:
                problem = f"{name} has no tensor {tensor!r} among {sorted(tensors)}"
                raise LowbitvmError("ARGUMENT_INVALID", problem, f"pass {', '.join(wanted)}")
            continue
        dtype = dtypes.of(tensors[tensor]).name
        if dtype not in part.stored:
            problem = f"{tensor} of {name} is {dtype}"
            raise LowbitvmError("DTYPE_MISMATCH", problem, f"pass it as {' or '.join(part.stored)}")
    unknown = sorted(set(tensors) - set(wanted))
    if unknown:
        problem = f"{name} with these options stores no tensor {unknown[0]!r}"
        raise LowbitvmError("ARGUMENT_INVALID", problem, f"pass {', '.join(wanted)}, and keep the others apart")


def _unpacked(plan: Plan, part: Part, tensor: Array) -> Array:
    if part.record is not None:
        tensor = _sliced(part.tensor, tensor, part.record)
    if part.view is not None:
        tensor = reinterpret(tensor, dtype_named(part.view))
    if part.into is None and part.field in plan.cropped:
        shape = plan.padded.get(part.field, plan.cropped[part.field])
        wanted = part.packing.stored_shape(shape, part.field)
        if wanted != shape_of(tensor):
            problem = f"{part.tensor} has shape {shape_of(tensor)}, {shape} {part.field} are stored in {wanted}"
            raise LowbitvmError("SHAPE_MISMATCH", problem, "pass the tensors of one weight, and its real shape")
    return part.packing.unpack(tensor, part.tensor)


def _sliced(name: str, tensor: Array, record: Record) -> Array:
    tensor = tensor if record.shape is None else tensor.reshape(-1)
    shape = shape_of(tensor)
    at = record.dim % len(shape) if shape else 0
    if not shape or not record.length or shape[at] % record.length:
        raise LowbitvmError(
            "SHAPE_MISMATCH",
            f"{name} has shape {shape}, whole records are {record.length} long in dimension {at}",
            "pass the tensor as the checkpoint has it",
        )
    cut = tensor.reshape([*shape[:at], shape[at] // record.length, record.length, *shape[at + 1 :]])
    return contiguous(cut[(*(slice(None),) * (at + 1), slice(record.start, record.stop))])


def _add_bits(fields: Fields, part: Part, values: Array) -> None:
    """Puts the bits of one part into its field."""
    if part.into is None:
        shifted = values << part.low if part.low else values
        fields[part.field] = fields[part.field] | shifted if part.field in fields else shifted
        return
    length, start, stop = part.into
    rows, count = shape_of(values)
    steps = count // (stop - start)
    if part.field not in fields:
        fields[part.field] = zeros(values, (rows, steps * length), dtypes.u8)
    target = fields[part.field].reshape(rows, steps, length)[..., start:stop]  # a view: the field is contiguous
    target |= values.reshape(rows, steps, stop - start) << part.low


def _check_shapes(weight: Foreign) -> None:
    """Raises SHAPE_MISMATCH and DEVICE_MISMATCH unless the fields of a weight fit together."""
    for name in ("codes", "scales"):
        if len(shape_of(vars(weight)[name])) != 2:
            problem = f"{name} have shape {shape_of(vars(weight)[name])}, not two dimensions"
            raise LowbitvmError(
                "SHAPE_MISMATCH", problem, "pass (out_features, in_features) and (out_features, groups)"
            )
    out_features, in_features = weight.shape
    second = (1, 1) if weight.outers == "tensor" else (out_features, -(-in_features // 256))
    wanted = {"zeros": shape_of(weight.scales), "g_idx": (in_features,), "outer": second, "outer_zeros": second}
    for name, shape in wanted.items():
        array = vars(weight)[name]
        if array is not None and shape_of(array) != shape:
            problem = f"{name} have shape {shape_of(array)} beside codes {weight.shape}, not {shape}"
            raise LowbitvmError("SHAPE_MISMATCH", problem, "pass the parts of one weight")
    given = {**{name: vars(weight)[name] for name in FIELDS}, **weight.extra}
    check_readable({name: array for name, array in given.items() if array is not None})


def _checked(weight: Foreign, stays: bool) -> Foreign:
    """The weight, if its fields fit together; unless it `stays`, a g_idx of K / G features in order is dropped."""
    _check_shapes(weight)
    groups, in_features = shape_of(weight.scales)[1], weight.shape[1]
    if weight.g_idx is None:
        if weight.group is None:
            problem = f"{in_features} input features in {groups} groups have no common size"
            raise LowbitvmError("GROUP_INDIVISIBLE", problem, "pass the checkpoint's g_idx")
        return weight
    if bool(((weight.g_idx < 0) | (weight.g_idx >= groups)).any()):
        problem = f"g_idx names groups outside of 0 .. {groups - 1}"
        raise LowbitvmError("ARGUMENT_INVALID", problem, "pass the tensors of one weight")
    if stays or weight.group is None or dtypes.of(weight.g_idx) != dtypes.i32:
        return weight
    ordered = equal(weight.g_idx, consecutive(weight.g_idx, in_features, groups))
    return replace(weight, g_idx=None) if ordered else weight


# -- writing -----------------------------------------------------------------------------------------------------------


def write(name: str, scheme: Scheme, weight: Foreign, options: Options) -> dict[str, Array]:
    """The checkpoint's tensors for a weight."""
    _check_shapes(weight)
    known = {
        "code": weight.code,
        "bits": CODE_TYPES[weight.code].bits,
        "shape": weight.shape,
        "groups": shape_of(weight.scales)[1],
        "zeros": weight.zeros is not None,
        "extra": weight.extra,
        "like": weight.codes,
    }
    plan = scheme.plan({**known, **options})
    _check_group(name, plan, weight)
    fields = _fields(name, plan, weight)
    stored: dict[str, dict[tuple[int, int], Array]] = {}
    for part in plan.parts:
        if part.field in fields:
            piece = _packed(part, fields[part.field])
            slot = (part.record.start, part.record.stop) if part.record else (0, 0)
            pieces = stored.setdefault(part.tensor, {})
            pieces[slot] = pieces[slot] | piece if slot in pieces else piece
    first = {part.tensor: part for part in reversed(plan.parts)}
    return {tensor: _joined(first[tensor], pieces) for tensor, pieces in stored.items()}


def _fields(name: str, plan: Plan, weight: Foreign) -> Fields:
    """The arrays that the parts store. Raises ARGUMENT_INVALID when the weight is not of the scheme's kind."""
    stored = {part.field: part for part in plan.parts}
    given = {**{which: vars(weight)[which] for which in FIELDS}, **plan.constants, **weight.extra}
    given = {which: array for which, array in given.items() if array is not None}
    if "g_idx" in stored and weight.g_idx is None and stored["g_idx"].optional != "always":
        given["g_idx"] = consecutive(weight.codes, weight.shape[1], shape_of(weight.scales)[1])
    if weight.code != plan.code or (weight.zeros is not None and weight.zero != plan.zero):
        problem = f"the weight is {weight.code} with zero={weight.zero!r}, {name} stores {plan.code} with {plan.zero!r}"
        raise LowbitvmError("ARGUMENT_INVALID", problem, f"quantise to {plan.code}, or choose another packing")
    missing = [which for which, part in stored.items() if which not in given and part.optional != "always"]
    if missing:
        problem = f"{name} stores {', '.join(missing)}, which the weight has neither by itself nor in extra"
        raise LowbitvmError("ARGUMENT_INVALID", problem, "unpack it from the same packing, or choose another")
    for which, shape in plan.cropped.items():
        if which in given and math.prod(shape) != math.prod(shape_of(given[which])):
            problem = f"{which} have shape {shape_of(given[which])}, {name} stores {shape}"
            raise LowbitvmError("SHAPE_MISMATCH", problem, "pass the parts of one weight")
    derived = set() if plan.derive is None else _check_derived(name, plan.derive(given), weight, given)
    for which in given:
        if which not in stored and which not in derived and which in FIELDS:
            problem = f"{name} has no place for the weight's {which}"
            raise LowbitvmError("ARGUMENT_INVALID", problem, "choose a packing that stores them")
    fields = {}
    for which in [which for which in stored if which in given]:
        array, numbers = given[which], plan.every_number
        array = numbers[which].write(which, array) if which in numbers else array
        array = array.reshape(plan.cropped.get(which, shape_of(array)))
        fields[which] = filled_up(array, plan.padded.get(which, shape_of(array)))
    return fields


def _check_derived(name: str, derived: Fields, weight: Foreign, given: Fields) -> set[str]:
    """The names of derived fields, once they are what the weight has."""
    for which, array in derived.items():
        if which in given and not equal(array, given[which]):
            problem = f"the weight's {which} are not what its extra ({', '.join(weight.extra)}) says in {name}"
            raise LowbitvmError("ARGUMENT_INVALID", problem, "change both alike")
    return set(derived)


def _packed(part: Part, values: Array) -> Array:
    if part.into is not None:
        length, start, stop = part.into
        rows, count = shape_of(values)
        values = contiguous(values.reshape(rows, count // length, length)[..., start:stop])
        values = values.reshape(rows, count // length * (stop - start))
    if part.packing.bits:
        values = values >> part.low & (1 << part.packing.bits) - 1
    packed = part.packing.pack(values, part.field)
    dtype = dtypes.of(packed).name
    if not part.packing.bits and dtype not in ((part.view,) if part.view else part.stored):
        problem = f"{part.field} are {dtype}, {part.tensor} holds {part.view or ' or '.join(part.stored)}"
        raise LowbitvmError("DTYPE_MISMATCH", problem, "convert them before packing")
    if not part.packing.bits and part.view is None:
        return packed
    return packed if dtype == part.stored[0] else reinterpret(packed, dtype_named(part.stored[0]))


def _joined(part: Part, pieces: dict[tuple[int, int], Array]) -> Array:
    """A tensor from the slices of its records."""
    ordered = [pieces[slot] for slot in sorted(pieces)]
    if part.record is None:
        return ordered[0]
    dims = len(shape_of(ordered[0])) - 1
    at = part.record.dim % dims
    if len({(*shape[: at + 1], *shape[at + 2 :]) for shape in map(shape_of, ordered)}) > 1:
        problem = f"the parts of {part.tensor} make records of {', '.join(str(shape_of(piece)) for piece in ordered)}"
        raise LowbitvmError("SHAPE_MISMATCH", problem, "pass the parts of one weight")
    joined = concatenated(ordered, at + 1)
    shape = shape_of(joined)
    return joined.reshape(part.record.shape or [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]])
