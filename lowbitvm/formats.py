"""Packed weight formats: which codes, in which groups, with which scales, zero points and codebooks."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn

from lowbitvm import dtypes
from lowbitvm.digits import BASES
from lowbitvm.dtypes import ALIASES, CODE_TYPES, CodeType, DType
from lowbitvm.errors import LowbitvmError

GROUPS: tuple[int | str, ...] = (16, 32, 64, 128, 256, "channel", "tensor")
ZEROS: tuple[str | None, ...] = (None, "int", "float", "offset")
SCALES: tuple[str, ...] = ("f16", "bf16", "f32", "e8m0", "e4m3", "i8")
OUTERS: tuple[int | str | None, ...] = (None, "tensor", 256)
TABLES: tuple[str | None, ...] = (None, "tensor", "block", "group")
ACTS: tuple[str | None, ...] = (None, *(name for name, code in CODE_TYPES.items() if code.is_linear))
BLOCK = 16  # output features that share a table="block"

_WIDE_SCALES = ("f16", "bf16", "f32")
_SCALES_OF_ZERO: dict[str | None, tuple[str, ...]] = {  # zero kind -> scales it can stand beside
    None: SCALES,
    "int": SCALES,
    "float": _WIDE_SCALES,
    "offset": (*_WIDE_SCALES, "i8"),
}


@dataclass(frozen=True)
class Format:
    """How a weight matrix (N = out_features, K = in_features) is stored in low-bit codes.

    dtype: the code type, a key of `dtypes.CODE_TYPES`: "u1".."u8", "i2".."i8", "bp1".."bp8", "ternary", every float
        "f3e1m1".."f8e7m0", "e4m3", "e5m2", "nf4" and "c1".."c8". v is the value of a code.
    group: what shares one scale: 16, 32, 64, 128 or 256 consecutive codes of one output feature along K, all K codes of
        an output feature ("channel"), or the whole matrix ("tensor").
    zero: None: w = v * s. "int" (integer code types): w = (v - z) * s, with z in the range of the codes. "float": the
        same with z of the scale's dtype. "offset": w = v * s + m, with the offset m in place of z.
    scale: the dtype of scales, float zero points and offsets: "f16", "bf16", "f32"; "e8m0" (powers of two), "e4m3"; or
        "i8", integers, which need `outer`.
    outer: a second level of scales in f32: "tensor" (one for the matrix) or 256 (one for 256 codes along K). What is
        called s above is then the product of both levels; an offset m is the product of a stored offset and a second
        level of its own.
    act: the code type of the activations that an integer weight is multiplied with, exactly: "u1".."u8", "i2".."i8" or
        "bp1".."bp8"; None for weights that are multiplied with f16 or bf16.
    digits: the base of the digits that integers are multiplied in: "s8", which every GPU has, "s4", or "b1", planes.
        None beside `act`: `lb.quantize` asks the plan, everything else takes "s8". Activations have no `act`.
    planes: how many bit planes are stored, of which these codes are the top ones: see `PackedDigits.top`.
    table: for "c1".."c8", whose values are f16 tables of 2**bits entries that come with the weight: one "tensor" table,
        one for every 16 output features ("block"), or one for every scale ("group"). None for the other types.

    Formats hash and compare by value; `Format.parse(str(fmt)) == fmt`. Raises FORMAT_INVALID for parts that do not
    exist or contradict each other and FORMAT_UNSUPPORTED for what exists in the field but not here.
    """

    dtype: str
    group: int | str = 128
    zero: str | None = None
    scale: str = "f16"
    outer: int | str | None = None
    table: str | None = None
    act: str | None = None
    digits: str | None = None
    planes: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", ALIASES.get(self.dtype, self.dtype))
        for part, options in _OPTIONS.items():
            value = getattr(self, part)
            if not any(type(value) is type(option) and value == option for option in options):  # True is no group
                _refuse(part, value, options)
        for clashes, problem, fix in _CLASHES:
            if clashes(self):
                raise LowbitvmError("FORMAT_INVALID", problem.format(self), fix.format(self))

    def __str__(self) -> str:
        text = f"{self.dtype},group={self.group},zero={str(self.zero).lower()},scale={self.scale}"
        extra = {"outer": self.outer, "table": self.table, "act": self.act, "digits": self.digits}
        extra["planes"] = self.planes
        return text + "".join(f",{name}={value}" for name, value in extra.items() if value is not None)

    @classmethod
    def parse(cls, text: str) -> "Format":
        """The Format that `text` spells, for example "u4,group=128,zero=int,scale=f16" or "mxfp4".

        The dtype, or a name of NAMED, comes first; the other parts may be left out (see the class for defaults) and
        come in any order. With a name they replace its own.
        """
        dtype, *parts = (part.strip() for part in text.split(","))
        named = NAMED.get(dtype)
        values: dict[str, Any] = {}
        for part in parts:
            name, equals, value = part.partition("=")
            if not equals or name in values or name not in {field.name for field in fields(cls)} - {"dtype"}:
                raise LowbitvmError(
                    "FORMAT_INVALID",
                    f"{part!r} in the format {text!r} is not understood",
                    f"write it like {str(cls('u4', zero='int'))!r}, each part at most once",
                )
            values[name] = int(value) if re.fullmatch("[0-9]{1,9}", value) else None if value == "none" else value
        known = {} if named is None else {field.name: getattr(named, field.name) for field in fields(cls)}
        return cls(**{"dtype": dtype, **known, **values})

    @property
    def code(self) -> CodeType:
        """The code type: its range, its bits, its stored form and its values."""
        return CODE_TYPES[self.dtype]

    @property
    def bits(self) -> int:
        """Bits of one stored code."""
        return self.code.bits

    @property
    def bias(self) -> int:
        """What is subtracted from the stored number of a linear code (times its step): 0 for u4, 8 for i4."""
        return self.code.bias

    @property
    def scale_dtype(self) -> DType:
        """Dtype of the scales, as given and as stored."""
        return dtypes.SCALE_TYPES[self.scale]

    @property
    def zero_dtype(self) -> DType | None:
        """Dtype of the stored zero points or offsets; integer zero points are stored as f16 values."""
        return None if self.zero is None else dtypes.f16 if self.zero == "int" else self.scale_dtype

    @property
    def has_digits(self) -> bool:
        """Whether the codes are multiplied with integers, as digits."""
        return self.act is not None or self.digits is not None

    @property
    def in_digits(self) -> "Format":
        """The format in the digits that it says, or in "s8", which every GPU has."""
        return self if self.digits is not None else replace(self, digits="s8")

    @property
    def parts(self) -> tuple[str, ...]:
        """The arrays that a weight is stored as, in the order of a kernel's parameters."""
        if self.has_digits:
            return ("words",)
        optional = {
            "zeros": self.zero is not None,
            "table": self.table is not None,
            "outer": self.outer is not None,
            "outer_zeros": self.outer is not None and self.zero == "offset",
        }
        return ("words", "scales", *(part for part, present in optional.items() if present))

    def groups(self, in_features: int) -> int:
        """G, the number of scales along K. Raises GROUP_INDIVISIBLE unless K is a whole number of groups."""
        return _whole(in_features, self.group, "group")

    def group_size(self, in_features: int) -> int:
        """Consecutive codes of one output feature that share a scale; in_features for "channel" and "tensor"."""
        return in_features if isinstance(self.group, str) else self.group

    def outer_size(self, in_features: int) -> int:
        """Consecutive codes of one output feature that share a second level; in_features for "tensor" and without."""
        return self.outer if isinstance(self.outer, int) else in_features

    def scales_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Shape of scales and zeros as `pack` takes them: (N, G), or (1, 1) for "tensor". Raises GROUP_INDIVISIBLE."""
        return (1 if self.group == "tensor" else out_features, self.groups(in_features))

    def outer_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Shape of the second level as `pack` takes it: (1, 1), or (N, K / 256). Raises GROUP_INDIVISIBLE."""
        return (1 if self.outer == "tensor" else out_features, _whole(in_features, self.outer or "tensor", "outer"))

    def table_shape(self, out_features: int, in_features: int) -> tuple[int, ...]:
        """Shape of the codebooks as `pack` takes them: (1, E), (ceil(N / 16), E) or (N, G, E), with E = 2**bits."""
        rows = {"tensor": (1,), "block": (-(-out_features // BLOCK),)}
        return (*rows.get(self.table or "", self.scales_shape(out_features, in_features)), 1 << self.bits)


_OPTIONS: dict[str, Sequence[object]] = {
    "dtype": list(CODE_TYPES),
    "group": GROUPS,
    "zero": ZEROS,
    "scale": SCALES,
    "outer": OUTERS,
    "table": TABLES,
    "act": ACTS,
    "digits": (None, *BASES),
    "planes": (None, *range(2, 9)),
}
# what the field has and this package has not, with the nearest that it has
_UNSUPPORTED: dict[str, Callable[[Any], object]] = {
    "group": lambda value: _nearest_group(value, (16, 32, 64, 128, 256)),
    "outer": lambda value: _nearest_group(value, (256,)),
    "scale": lambda value: {"ue5m3": "e4m3"}.get(value),
}
_CLASHES: tuple[tuple[Callable[[Format], bool], str, str], ...] = (  # (holds, what clashes, the nearest that works)
    (
        lambda f: f.zero == "int" and not f.code.is_linear,
        "zero='int' is for integer codes, {0.dtype} has none",
        "use zero='float' or zero=None",
    ),
    (
        lambda f: f.scale not in _SCALES_OF_ZERO[f.zero],
        "zero={0.zero!r} is of the scale's dtype, and {0.scale} cannot hold it",
        "use scale='f16', or zero=None",
    ),
    (
        lambda f: f.scale == "i8" and f.outer is None,
        "scale='i8' has no second level",
        "add outer=256 or outer='tensor', or use scale='f16'",
    ),
    (
        lambda f: f.outer is not None and f.scale not in ("e4m3", "i8"),
        "outer={0.outer!r} is for scales of 8 bits with a range of their own, scale is {0.scale!r}",
        "use scale='e4m3' or 'i8', or outer=None",
    ),
    (
        lambda f: f.outer == 256 and isinstance(f.group, str),
        "outer=256 lies above groups along K, group is {0.group!r}",
        "use outer='tensor', or a group of 16 to 256",
    ),
    (
        lambda f: f.code.values is None and f.table is None,
        "the values of {0.dtype} are tables, and table is None",
        "say what shares a table: table='tensor', 'block' or 'group'",
    ),
    (
        lambda f: f.code.values is not None and f.table is not None,
        "table={0.table!r} was given, and {0.dtype} has fixed values",
        "use table=None, or the dtype 'c{0.bits}'",
    ),
    (
        lambda f: f.has_digits and not f.code.is_linear,
        "digits are of integer codes, {0.dtype} has none",
        "use an integer dtype, or neither act nor digits",
    ),
    (
        lambda f: f.planes is not None and (f.digits != "b1" or f.act is None or f.planes <= f.bits),
        "planes={0.planes} of {0.bits} bits are the top ones of a weight in digits of {0.digits!r}",
        "leave it out; PackedDigits.top makes such formats of weights in digits='b1'",
    ),
)


def _whole(in_features: int, size: int | str, part: str) -> int:
    """How many times `size` goes into in_features, 1 for a name. Raises GROUP_INDIVISIBLE."""
    if isinstance(size, str):
        return 1
    if in_features % size:
        padded = -(-in_features // size) * size
        raise LowbitvmError(
            "GROUP_INDIVISIBLE",
            f"in_features {in_features} is not a multiple of the {part} {size}",
            f'pad in_features to {padded} or use {part}="{"channel" if part == "group" else "tensor"}"',
        )
    return in_features // size


def _nearest_group(value: object, sizes: Sequence[int]) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0 or value % 16:
        return None
    return min(sizes, key=lambda size: abs(size - value))


# names of the field, with those that they have here
_MEANT = {
    "i1": "bp1",
    "fp4": "mxfp4",
    "fp6": "mxfp6e3m2",
    "fp8": "e4m3",
    "mxfp6": "mxfp6e3m2",
    "mxfp8": "mxfp8e4m3",
    "e4m3fn": "e4m3",
    "f8e4m3fn": "e4m3",
}
_DTYPES = "u1..u8, i2..i8, bp1..bp8, ternary, f3e1m1..f8e7m0, e4m3, e5m2, nf4, c1..c8"


def _meant(value: object) -> str:
    """The name that is nearest to an unknown dtype, and all that there are."""
    text = str(value).lower()
    text = re.sub(r"^uint(?=\d)", "u", re.sub(r"^s?int(?=\d)", "i", text))
    cutoff = 0.5 if len(text) == 2 else 0.65  # "u9" shares half of its letters with "u8"
    close = [_MEANT[text]] if text in _MEANT else difflib.get_close_matches(text, [*CODE_TYPES, *NAMED], 1, cutoff)
    return f"use {close[0]!r}, the nearest of {_DTYPES}" if close else f"use one of {_DTYPES}"


def _refuse(part: str, value: object, options: Sequence[object]) -> NoReturn:
    if part == "dtype" and isinstance(value, str) and value in NAMED:
        raise LowbitvmError(
            "FORMAT_INVALID", f"{value!r} names a whole format, not a dtype", f"use Format.parse({value!r})"
        )
    nearest = _UNSUPPORTED[part](value) if part in _UNSUPPORTED and isinstance(value, int | str) else None
    listed = ", ".join(repr(option) for option in options)
    if nearest is not None:
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"Format {part} {value!r} is known but cannot be packed",
            f"use {nearest!r}, the nearest of {listed}",
        )
    fix = _meant(value) if part == "dtype" else f"use one of {listed}"
    raise LowbitvmError("FORMAT_INVALID", f"Format {part} {value!r} does not exist", fix)


NAMED: dict[str, Format] = {
    # OCP Microscaling Formats 1.0. Its MXINT8 is i8 with an implied factor of 2**-6, here part of the scale.
    "mxfp4": Format("f4e2m1", 32, scale="e8m0"),
    "mxfp6e2m3": Format("f6e2m3", 32, scale="e8m0"),
    "mxfp6e3m2": Format("f6e3m2", 32, scale="e8m0"),
    "mxfp8e4m3": Format("e4m3", 32, scale="e8m0"),
    "mxfp8e5m2": Format("e5m2", 32, scale="e8m0"),
    "mxint8": Format("i8", 32, scale="e8m0"),
    # NVIDIA's 16-element blocks with e4m3 scales and one f32 scale per tensor.
    "nvfp4": Format("f4e2m1", 16, scale="e4m3", outer="tensor"),
    "nvint4": Format("i4", 16, scale="e4m3", outer="tensor"),
}
