"""How far a kernel's result may lie from the exact one, derived from its arithmetic.

`linear` adds, for every segment of at most SEGMENT of k inside one group, s * P + m * X to an f32 accumulator, where
P = sum x (q - z) and X = sum x come from tensor-core MMAs and m stands for float zero points and offsets.

MMA (facts: products exact, the terms of one step aligned to the largest exponent and truncated to F fractional bits,
their sum truncated to f32): a step of 8 of k with F = 24 (Ampere, Ada) loses less than 9 * 2^-24 times the largest term,
and 2^-23 of its result; a step of 16 with F = 25 (Hopper, Blackwell) less than 17 * 2^-25 and 2^-23. Terms and results
are at most the sum of |x| |q - z| so far, so that every |x_k| |q_k - z| counts once per step from its own to the
segment's last: `steps`. A subnormal is aligned at its format's smallest exponent, hence the floor of |x|.

Each fused multiply-add rounds an accumulator that is at most the sum of all terms so far, hence `adds`.
"""

from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.pack import PackedWeight

SEGMENT = 64  # of k: the largest stretch that one chain of MMAs sums
STEP = 8
MMA_LOSS = 11 * 2.0**-24  # of one step, relative to the sum of the terms' magnitudes
F32_ROUNDING = 2.0**-24
SMALLEST_NORMAL = {"f16": 2.0**-14, "bf16": 2.0**-126}
ROUNDING = {"f16": 2.0**-11, "bf16": 2.0**-8}  # of the output, to nearest
LARGEST = {"f16": 65504.0, "bf16": 3.3895313892515355e38}
F32_LARGEST = 3.4e38

Matrix = np.ndarray[Any, np.dtype[np.float64]]


def linear_bound(x: Any, weight: PackedWeight, bias: Any | None = None) -> Matrix:
    """The largest |y - exact| of `lowbitvm.linear` per element, float64 (m, out_features).

    x (m, in_features) f16 or bf16, bias (out_features): numpy or CPU torch. Infinite where the result or a partial sum
    may overflow, NaN or infinite in rows with a non-finite activation.
    """
    act = dtypes.of(x).name
    with np.errstate(all="ignore"):
        return _bound(_wide(x), weight, 0.0 if bias is None else np.abs(_wide(bias)), act)


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


def _bound(x: Matrix, weight: PackedWeight, bias: Matrix | float, act: str) -> Matrix:
    fmt = weight.format
    k = weight.in_features
    codes, scales, zeros = weight.unpack()
    groups = np.arange(k) // max(1, fmt.group_size(k))
    scale = np.abs(_per_k(scales, weight, groups))
    centred = _wide(codes)
    shift = np.zeros_like(centred)  # |m|
    if fmt.zero == "int":
        centred = centred - _per_k(zeros, weight, groups)
    elif fmt.zero is not None:
        shift = np.abs(_per_k(zeros, weight, groups)) * (scale if fmt.zero == "float" else 1.0)
    length = min(SEGMENT, fmt.group_size(k)) or 1
    steps = (length - np.arange(k) % length + STEP - 1) // STEP
    last = (k - 1) // length
    operations = 2 if fmt.zero in ("float", "offset") else 1
    adds = operations * (last - np.arange(k) // length + 1)
    magnitude = np.maximum(np.abs(x), SMALLEST_NORMAL[act])
    terms = scale * np.maximum(np.abs(centred), 1.0) + shift
    loss = MMA_LOSS * steps + F32_ROUNDING * (adds + (2 if fmt.zero == "float" else 0))
    error = magnitude @ (terms * loss).T
    largest = magnitude @ terms.T + bias
    error = (error + F32_ROUNDING * largest) * (1 + 2.0**-10)  # the bias; second-order terms
    total = error + ROUNDING[act] * (largest_result(x, weight, bias) + error) + SMALLEST_NORMAL[act] * ROUNDING[act]
    overflow = (largest_result(x, weight, bias) + error > LARGEST[act]) | ~(largest < F32_LARGEST)
    bounded: Matrix = np.where(overflow, np.inf, total)
    return bounded


def largest_result(x: Matrix, weight: PackedWeight, bias: Matrix | float) -> Matrix:
    """|exact result| plus |bias|, which is at least the magnitude of what the output rounding sees."""
    product: Matrix = np.abs(x @ _wide(weight.dequantize()).T) + bias
    return product


def _per_k(values: Any, weight: PackedWeight, groups: np.ndarray[Any, Any]) -> Matrix:
    """(N or 1, G) numbers as (N, K)."""
    wide = np.broadcast_to(_wide(values), (weight.out_features, values.shape[1]))
    return wide[:, groups]


def _wide(values: Any) -> Matrix:
    if dtypes.is_tensor(values):
        values = values.detach().double().numpy()
    return np.asarray(values, np.float64)
