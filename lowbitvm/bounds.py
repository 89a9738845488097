"""How far a kernel's result may lie from the exact one, derived from its arithmetic.

`linear` adds s * P + m * X to an f32 accumulator, for every segment of k inside one group and one pipeline stage;
P = sum x (q - z) and X = sum x come from tensor-core MMAs, m stands for float zero points and offsets.

An MMA multiplies exactly, aligns the terms of one step to the largest exponent, truncates them to F fractional bits and
truncates their sum to f32 (Fasi et al., PeerJ CS 330, and later models). A step of 8 of k with F = 24 (Ampere, Ada)
loses less than 9 * 2^-24 times the largest term and 2^-23 of its result; a step of 16 with F = 25 (Hopper, Blackwell)
less than 17 * 2^-25 and 2^-23. Terms and results are at most the sum of |x| |q - z| so far, so every |x_k| |q_k - z|
counts once per step from its own to the segment's last: `steps`. A subnormal is aligned at its format's smallest
exponent, hence the floor of |x|. Each fused multiply-add rounds an accumulator that is at most the sum of all terms so
far, hence `adds`.
"""

from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.pack import PackedWeight

STEP = 8
MMA_LOSS = 11 * 2.0**-24  # of one step, relative to the sum of the terms' magnitudes
F32_ROUNDING = 2.0**-24
SMALLEST_NORMAL = {"f16": 2.0**-14, "bf16": 2.0**-126}
ROUNDING = {"f16": 2.0**-11, "bf16": 2.0**-8}  # of the output, to nearest
LARGEST = {"f16": 65504.0, "bf16": 3.3895313892515355e38}
F32_LARGEST = 3.4e38
SECOND_ORDER = 1 + 2.0**-10  # covers products of roundings

Matrix = np.ndarray[Any, np.dtype[np.float64]]


def linear_bound(x: Any, weight: PackedWeight, bias: Any | None = None, bk: int = 64) -> Matrix:
    """The largest |y - exact| of `lowbitvm.linear` per element, float64 (m, out_features).

    x (m, in_features) f16 or bf16, bias (out_features): numpy or CPU torch. bk: in_features per stage of the kernel.
    Infinite where the result or a partial sum may overflow, and in rows with a non-finite activation.
    """
    act = dtypes.of(x).name
    with np.errstate(all="ignore"):
        return _bound(_wide(x), weight, 0.0 if bias is None else np.abs(_wide(bias)), act, bk)


def linear_exact(x: Any, weight: PackedWeight, bias: Any | None = None) -> Matrix:
    """x w^T + bias in float64."""
    with np.errstate(all="ignore"):
        product: Matrix = _wide(x) @ _wide(weight.dequantize()).T
        return product if bias is None else product + _wide(bias)


def agrees(y: Any, exact: Matrix, bound: Matrix) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Per element: y within the bound of the exact result, or both not finite."""
    got = _wide(y)
    with np.errstate(all="ignore"):
        near = np.abs(got - exact) <= bound
    return np.where(np.isfinite(exact), near | ~np.isfinite(bound), ~np.isfinite(got))


def _bound(x: Matrix, weight: PackedWeight, bias: Matrix | float, act: str, bk: int) -> Matrix:
    fmt = weight.format
    k = weight.in_features
    codes, scales, zeros = weight.unpack()
    groups = np.arange(k) // max(1, fmt.group_size(k))
    scale = np.abs(_per_k(scales, weight, groups))
    centred = _wide(codes)
    shift = np.zeros_like(centred)  # |m|
    if fmt.zero == "int":
        centred = centred - _per_k(zeros, weight, groups)
    shifted = fmt.zero in ("float", "offset")
    if shifted:
        shift = np.abs(_per_k(zeros, weight, groups)) * (scale if fmt.zero == "float" else 1.0)
    length = min(bk, fmt.group_size(k)) or 1
    position, segment = np.arange(k) % length, np.arange(k) // length
    steps = (length - position + STEP - 1) // STEP
    adds = (2 if shifted else 1) * ((k - 1) // length - segment + 1)
    loss = MMA_LOSS * steps + F32_ROUNDING * (adds + shifted)  # shifted: m itself may be a rounded product
    terms = scale * np.maximum(np.abs(centred), 1.0) + shift
    magnitude = np.maximum(np.abs(x), SMALLEST_NORMAL[act])
    largest = magnitude @ terms.T + bias  # of all partial sums
    error = (magnitude @ (terms * loss).T + F32_ROUNDING * largest) * SECOND_ORDER
    result = np.abs(x @ _wide(weight.dequantize()).T) + bias + error
    rounding = ROUNDING[act] * np.maximum(result, SMALLEST_NORMAL[act])
    bounded: Matrix = np.where((result <= LARGEST[act]) & (largest <= F32_LARGEST), error + rounding, np.inf)
    return bounded


def _per_k(values: Any, weight: PackedWeight, groups: np.ndarray[Any, Any]) -> Matrix:
    """(N or 1, G) numbers as (N, K)."""
    wide = np.broadcast_to(_wide(values), (weight.out_features, values.shape[1]))
    return wide[:, groups]


def _wide(values: Any) -> Matrix:
    if dtypes.is_tensor(values):
        values = values.detach().double().numpy()
    return np.asarray(values, np.float64)
