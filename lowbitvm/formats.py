"""Packed weight formats: which codes, in which groups, with which scales and zero points."""

import re
from dataclasses import dataclass, fields
from typing import NoReturn

from lowbitvm import dtypes
from lowbitvm.dtypes import CodeType, DType
from lowbitvm.errors import LowbitvmError

CODE_TYPES = {name: dtypes.CODE_TYPES[name] for name in ("u4", "i4")}  # what `pack` takes now
GROUPS: tuple[int | str, ...] = (32, 64, 128, "channel", "tensor")
ZEROS: tuple[str | None, ...] = (None, "int", "float", "offset")
SCALES: tuple[str, ...] = ("f16", "bf16", "f32")

_KNOWN_NAMES = {
    "ternary",
    "nf4",
    "mxfp4",
    "mxfp6",
    "mxfp8",
    "mxint8",
    "nvfp4",
    "nvint4",
    *(f"u{bits}" for bits in range(1, 9)),
    *(f"i{bits}" for bits in range(2, 9)),
    *(f"bp{bits}" for bits in range(1, 9)),
    *(f"f{bits}e{exponent}m{bits - 1 - exponent}" for bits in range(3, 9) for exponent in range(1, bits)),
}
_KNOWN_SCALES = ("e8m0", "e4m3", "ue5m3")


@dataclass(frozen=True)
class Format:
    """How a weight matrix (N = out_features, K = in_features) is stored in low-bit codes q.

    dtype: the code type, "u4" (0 .. 15) or "i4" (-8 .. 7).
    group: what shares one scale: 32, 64 or 128 consecutive codes of one output feature along K, all K codes of an
        output feature ("channel"), or the whole matrix ("tensor").
    zero: None: w = q * s. "int": w = (q - z) * s, with z in the range of the codes. "float": the same with z of the
        scale's dtype. "offset": w = q * s + m, with the offset m in place of z.
    scale: "f16", "bf16" or "f32", the dtype of scales, float zero points and offsets.

    Formats hash and compare by value; `Format.parse(str(fmt)) == fmt`. Raises FORMAT_INVALID for parts that do not
    exist and FORMAT_UNSUPPORTED for those that exist in the field but cannot be packed by this version.
    """

    dtype: str
    group: int | str = 128
    zero: str | None = None
    scale: str = "f16"

    def __post_init__(self) -> None:
        if not _among(self.dtype, CODE_TYPES):
            _refuse("dtype", self.dtype, list(CODE_TYPES), known=_among(self.dtype, _KNOWN_NAMES))
        if not _among(self.group, GROUPS):
            group = self.group
            _refuse("group", group, GROUPS, known=type(group) is int and group > 0 and group % 16 == 0)
        if not _among(self.zero, ZEROS):
            _refuse("zero", self.zero, ZEROS, known=False)
        if not _among(self.scale, SCALES):
            _refuse("scale", self.scale, SCALES, known=_among(self.scale, _KNOWN_SCALES))

    def __str__(self) -> str:
        return f"{self.dtype},group={self.group},zero={str(self.zero).lower()},scale={self.scale}"

    @classmethod
    def parse(cls, text: str) -> "Format":
        """The Format that `text` spells, for example "u4,group=128,zero=int,scale=f16".

        The dtype comes first; the other parts may be left out (see the class for defaults) and come in any order.
        """
        dtype, *parts = (part.strip() for part in text.split(","))
        values: dict[str, int | str | None] = {}
        for part in parts:
            name, equals, value = part.partition("=")
            if not equals or name in values or name not in {field.name for field in fields(cls)} - {"dtype"}:
                raise LowbitvmError(
                    "FORMAT_INVALID",
                    f"{part!r} in the format {text!r} is not understood",
                    f"write it like {str(cls('u4', zero='int'))!r}, each part at most once",
                )
            values[name] = int(value) if re.fullmatch("[0-9]{1,9}", value) else None if value == "none" else value
        return cls(dtype, **values)  # type: ignore[arg-type]  # the constructor checks every value

    @property
    def code(self) -> CodeType:
        """The code type: its range, its bits and its stored form."""
        return CODE_TYPES[self.dtype]

    @property
    def bits(self) -> int:
        """Bits of one stored code."""
        return self.code.bits

    @property
    def bias(self) -> int:
        """What is added to a code before it is stored: 0 for u4, 8 for i4."""
        return self.code.bias

    @property
    def scale_dtype(self) -> DType:
        """Dtype of the scales, as given and as stored."""
        return dtypes.get(self.scale)

    @property
    def zero_dtype(self) -> DType | None:
        """Dtype of the stored zero points or offsets; integer zero points are stored as f16 values."""
        return None if self.zero is None else dtypes.f16 if self.zero == "int" else self.scale_dtype

    def groups(self, in_features: int) -> int:
        """G, the number of scales along K. Raises GROUP_INDIVISIBLE unless K is a whole number of groups."""
        if isinstance(self.group, str):
            return 1
        if in_features % self.group:
            padded = -(-in_features // self.group) * self.group
            raise LowbitvmError(
                "GROUP_INDIVISIBLE",
                f"in_features {in_features} is not a multiple of the group {self.group}",
                f'pad in_features to {padded} or use group="channel"',
            )
        return in_features // self.group

    def group_size(self, in_features: int) -> int:
        """Consecutive codes of one output feature that share a scale; in_features for "channel" and "tensor"."""
        return in_features if isinstance(self.group, str) else self.group

    def scales_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Shape of scales and zeros as `pack` takes them: (N, G), or (1, 1) for "tensor". Raises GROUP_INDIVISIBLE."""
        return (1 if self.group == "tensor" else out_features, self.groups(in_features))


def _among(value: object, options: "tuple[object, ...] | dict[str, CodeType] | set[str]") -> bool:
    """Whether `value` is one of `options`, of the same type: neither 128.0 nor True stands for a group size."""
    return any(type(value) is type(option) and value == option for option in options)


def _refuse(part: str, value: object, now: "tuple[object, ...] | list[str]", known: bool) -> NoReturn:
    options = ", ".join(repr(option) for option in now)
    if known:
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"Format {part} {value!r} is known but cannot be packed yet",
            f"use one of {options}, which work now",
        )
    raise LowbitvmError("FORMAT_INVALID", f"Format {part} {value!r} does not exist", f"use one of {options}")
