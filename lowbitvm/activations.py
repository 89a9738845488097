"""The rule by which activations become integer codes: f32 arithmetic in a fixed order, which kernels follow exactly."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.dtypes import CodeType
from lowbitvm.formats import Format
from lowbitvm.integers import format_digits

ROW = 1 << 14  # in_features that a sum of squares adds as one tree
SMALLEST = 2.0**-126  # the least scale that numbers are divided by

NumpyArray = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rounded:
    """codes i32 (m, K), scales f32 and zeros i32 or None (m, groups), and sums i32 (m, parts) of code - offset."""

    codes: NumpyArray
    scales: NumpyArray
    zeros: NumpyArray | None
    sums: NumpyArray


def prepare(
    x: NumpyArray,
    norm: NumpyArray | None = None,
    eps: float = 1e-6,
    smoothing: NumpyArray | None = None,
    rotation: int | None = None,
) -> NumpyArray:
    """What is rounded, f32 (m, K): x after RMSNorm, smoothing and rotation, those that are given, in this order.

    norm (K): y = (x * (1 / sqrt(sum(x * x) / K + eps))) * norm. The sum adds neighbours, then neighbouring pairs, and
        so on, to one number for each ROW in_features; these are added from the first to the last.
    smoothing (K): y = x * smoothing.
    rotation: B, a power of two that divides K: each B in_features times the Walsh-Hadamard matrix, in log2(B) rounds,
        in which j and j + 1, then j and j + 2, ... become their sum and their difference; then times f32(B ** -0.5).
    """
    y: NumpyArray = np.asarray(x, np.float32)
    with np.errstate(all="ignore"):
        if norm is not None:
            mean = tree_sum(y * y) / np.float32(y.shape[1])
            y = y * (np.float32(1) / np.sqrt(mean + np.float32(eps)))[:, None] * np.asarray(norm, np.float32)
        if smoothing is not None:
            y = y * np.asarray(smoothing, np.float32)
        return y if rotation is None else hadamard(y, rotation) * np.float32(rotation**-0.5)


def tree_sum(values: NumpyArray) -> NumpyArray:
    """The sums (m) of f32 (m, K) in the order that `prepare` says."""
    width = min(1 << max(0, values.shape[1] - 1).bit_length(), ROW)
    tree: NumpyArray = np.pad(values, ((0, 0), (0, -values.shape[1] % width))).reshape(len(values), -1, width)
    while tree.shape[2] > 1:
        tree = tree[:, :, ::2] + tree[:, :, 1::2]
    total: NumpyArray = np.zeros(len(values), np.float32)
    for chunk in range(tree.shape[1]):
        total = total + tree[:, chunk, 0]
    return total


def hadamard(values: NumpyArray, size: int) -> NumpyArray:
    """Each `size` numbers of the last axis times the Walsh-Hadamard matrix of +1 and -1, in the order of `prepare`."""
    distance = 1
    while distance < size:
        pairs = values.reshape(*values.shape[:-1], values.shape[-1] // (2 * distance), 2, distance)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        values = np.stack([low + high, low - high], -2).reshape(values.shape)
        distance *= 2
    return values


def round_to_codes(
    y: NumpyArray,
    fmt: Format,
    scale: float | NumpyArray | None = None,
    zero: int | NumpyArray | None = None,
    parts: int = 1,
) -> Rounded:
    """Codes of f32 (m, K) with one scale for each row and group of `fmt`, and sums of so many parts of each row.

    With lo <= 0 <= hi the ends of a group, 0 included, low .. high the codes, and step the distance of two codes:
    zero=None:  s = max(hi / high, -lo / -low), without the second for low = 0, where what is negative becomes 0.
    "int":      s = (hi - lo) / (high - low).
    s is rounded to the format's scale dtype. group="tensor" takes `scale` and `zero` as given instead.
    Then r = 1 / max(s, 2^-126), z = clamp(low + rint(-lo * r), low, high), or 0 for zero=None, and
    step 1:     code = clamp(rint(y * r), low - z, high - z) + z,
    step 2:     code = 2 clamp(rint((y * r + (z - low)) / 2), 0, (high - low) / 2) + low, for bipolar codes.
    Each operation rounds to f32, to nearest even; rint rounds halves to even, and what is beyond i32 to its ends.
    rint(NaN) is 0. A group with NaN or infinities has the ends -inf and +inf, and so the scale +inf, which is stored in
    place of a given one too: what is made of it is not finite. A scale beyond its dtype is +inf as well.
    """
    code, (rows, columns) = fmt.code, y.shape
    values = np.asarray(y, np.float32).reshape(rows, fmt.groups(columns), fmt.group_size(columns))
    with np.errstate(all="ignore"):
        finite = np.isfinite(values).all(axis=2)
        hi, below = (np.where(finite, np.max(v, axis=2, initial=0) + np.float32(0), np.inf) for v in (values, -values))
        s = _scales(hi, below, fmt) if scale is None else np.full_like(hi, scale)
        r = np.float32(1) / np.maximum(s, np.float32(SMALLEST))
        z: NumpyArray = np.full(hi.shape, 0 if zero is None else zero, np.int64)
        if fmt.zero is not None and zero is None:
            z = np.clip(code.low + rint(below * r), code.low, code.high)
        codes = _codes(values * r[:, :, None], z[:, :, None], code)
        s = np.where(finite, s, np.float32(np.inf))
    sums = (codes - format_digits(fmt).offset).reshape(rows, parts, columns // parts).sum(2).astype(np.int32)
    zeros = None if fmt.zero is None else z.astype(np.int32)
    return Rounded(codes.reshape(rows, columns).astype(np.int32), s, zeros, sums)


def _scales(hi: NumpyArray, below: NumpyArray, fmt: Format) -> NumpyArray:
    """The scales f32 of groups from -below to hi."""
    code = fmt.code
    if fmt.zero is not None:
        s = (hi + below) / np.float32(code.high - code.low)
    elif code.low < 0:
        s = np.maximum(hi / np.float32(code.high), below / np.float32(-code.low))
    else:
        s = hi / np.float32(code.high)
    return np.asarray(s.astype(fmt.scale_dtype.numpy), np.float32)


def _codes(scaled: NumpyArray, z: NumpyArray, code: CodeType) -> NumpyArray:
    if code.step == 1:
        return np.asarray(np.clip(rint(scaled), code.low - z, code.high - z) + z)
    nearest = rint((scaled + (z - code.low).astype(np.float32)) * np.float32(0.5))
    return np.asarray(2 * np.clip(nearest, 0, (code.high - code.low) // 2) + code.low)


def rint(values: NumpyArray) -> NumpyArray:
    """The nearest i64 within i32, halves to even; 0 for NaN."""
    rounded = np.nan_to_num(np.rint(values.astype(np.float64)), nan=0.0, posinf=2.0**31, neginf=-(2.0**31))
    limits = np.iinfo(dtypes.i32.numpy)
    return np.asarray(np.clip(rounded, limits.min, limits.max), np.int64)
