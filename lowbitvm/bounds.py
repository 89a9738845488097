"""How far a kernel's result may lie from the exact one, derived from its arithmetic.

For every segment of k, at most UNIT_K and inside one group, `linear` gets P = sum x f from the tensor cores, f being a
factor times (q + offset) for a code q, and X = sum x; it adds s / factor * (P - factor * z * X) + m * X to an f32
accumulator, where z stands for everything that is subtracted from the codes and m for offsets.

An MMA multiplies exactly, aligns the terms of one step to the largest exponent, truncates them to F fractional bits and
truncates their sum to f32 (Fasi et al., PeerJ CS 330, and later models). A step of 8 of k with F = 24 (Ampere, Ada)
loses less than 9 * 2^-24 times the largest term and 2^-23 of its result; a step of 16 with F = 25 (Hopper, Blackwell)
less than 17 * 2^-25 and 2^-23. Terms and results are at most the sum of |x| |f| so far, so every |x_k| |f_k| counts
once per step from its own to the segment's last: `steps`. A subnormal is aligned at its format's smallest exponent,
hence the floors of |x| and of |f|, which in units of codes is 2^-14 / factor. Entries of codebooks are rounded to the
activations' dtype. One fused multiply-add rounds P - z X; one each adds it and m X to an accumulator that is at most
the sum of all terms so far, hence `adds`; each may lose what is below f32's smallest number, as it stands in the
accumulator. A second level rounds s, and m, once more. Scales that are powers of two may go into the fragments,
relative to the largest of UNIT_K: what is lost far below that (`lowbitvm.codegen.fused`) is added as it is. Where
activations are multiplied with a power of two in place of the fragments (`Decoder.raised`), these have a larger floor.
"""

import functools
from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.codegen.convert import Decoder, decoder
from lowbitvm.codegen.fused import Fused, chosen_fused, relative_fragments, shared_fused
from lowbitvm.codegen.pipeline import UNIT_K
from lowbitvm.codegen.weights import CHUNK_K
from lowbitvm.pack import PackedWeight
from lowbitvm.words import TILE_N

STEP = 8
MOST_COLUMNS = 32  # n8 tiles of activations: of a kernel that fuses scales if any does
MMA_LOSS = 11 * 2.0**-24  # of one step, relative to the sum of the terms' magnitudes
F32_ROUNDING = 2.0**-24
SMALLEST_NORMAL = {"f16": 2.0**-14, "bf16": 2.0**-126}
ROUNDING = {"f16": 2.0**-11, "bf16": 2.0**-8}  # of the output, to nearest
LARGEST = {"f16": 65504.0, "bf16": 3.3895313892515355e38}
F32_LARGEST = 3.4e38
F32_SMALLEST = 2.0**-149
SECOND_ORDER = 1 + 2.0**-10  # covers products of roundings

Matrix = np.ndarray[Any, np.dtype[np.float64]]


def linear_bound(x: Any, weight: PackedWeight, bias: Any | None = None, bk: int = 64) -> Matrix:
    """The largest |y - exact| of `lowbitvm.linear` per element, float64 (m, out_features).

    x (m, in_features) f16 or bf16, bias (out_features): numpy or CPU torch. bk: in_features per step of the kernel.
    Infinite where the result or a partial sum may overflow, and in rows with a non-finite activation.
    """
    act = dtypes.of(x).name
    ways = (None, chosen_fused(weight.format, act, MOST_COLUMNS, 1), shared_fused(weight.format, act))
    with np.errstate(all="ignore"):
        added = 0.0 if bias is None else np.abs(_wide(bias))
        bounds = [_bound(_wide(x), weight, added, act, bk, way) for way in dict.fromkeys(ways)]
        used = decoder(weight.format.code, act)
        if isinstance(used, Decoder) and used.raised:
            bounds.append(_bound(_wide(x), weight, added, act, bk, None, used.raised))
        return functools.reduce(np.maximum, bounds)


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


def _bound(
    x: Matrix,
    weight: PackedWeight,
    bias: Matrix | float,
    act: str,
    bk: int,
    fused: Fused | None,
    raised: int = 0,
) -> Matrix:
    fmt, k = weight.format, weight.in_features
    values, scale, zero, offset = _parts(weight, fused is not None)
    factor, shift, floor = _fragments(weight, act, fused, raised)
    fragments = np.maximum(np.abs(values + shift), floor)  # what the MMAs see, in units of values
    taken = np.abs(zero + shift)
    longest = min(UNIT_K, fmt.group_size(k)) if fused is None else UNIT_K
    longest, shortest = longest or 1, min(longest, bk, UNIT_K if fused is None else CHUNK_K) or 1
    steps = -(-(longest - np.arange(k) % longest) // STEP)
    adds = (1 + (fmt.zero == "offset")) * ((k - 1) // shortest - np.arange(k) // shortest + 1) + (fmt.outer is not None)
    loss = MMA_LOSS * steps
    inside = loss * (fragments + taken) + 2 * F32_ROUNDING * (np.abs(values - zero) + taken)
    if fused is not None and fused.powers:
        inside += _lost(weight, fused, values, factor)
    if fmt.code.kind == "table":
        inside += np.abs(values - values.astype(dtypes.get(act).numpy).astype(np.float64))
    terms = scale * np.abs(values - zero) + offset
    magnitude = np.maximum(np.abs(x), SMALLEST_NORMAL[act])
    error = magnitude @ (scale * inside + offset * loss + terms * F32_ROUNDING * adds).T
    error += F32_SMALLEST * (k + adds.max(initial=0) / np.minimum(factor, 1).min(1, keepdims=True)).T
    if raised:  # sums of products below f32's smallest number
        error += (F32_SMALLEST * steps * scale / factor).sum(1)
    if fmt.outer is not None:  # a product below the normal numbers
        error += magnitude @ (F32_SMALLEST * (np.abs(values - zero) + 1)).T
    largest = magnitude @ terms.T + bias  # of all partial sums
    inner = magnitude @ np.maximum((fragments + taken) * factor, 1.0).T  # of P, z X and X
    error = (error + F32_ROUNDING * largest) * SECOND_ORDER
    result = np.abs(x @ _wide(weight.dequantize()).T) + bias + error
    rounding = ROUNDING[act] * np.maximum(result, SMALLEST_NORMAL[act])
    fits = (result <= LARGEST[act]) & (np.maximum(largest, inner) <= F32_LARGEST)
    fits &= np.abs(x).max(1, initial=0, keepdims=True) * 2.0**raised <= LARGEST[act]
    bounded: Matrix = np.where(fits & ((scale / factor).max(1, initial=0) <= F32_LARGEST), error + rounding, np.inf)
    return bounded


def _parts(weight: PackedWeight, fused: bool) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """(values, |scales|, zeros, |offsets|), each (N, K): the weights are scale * (value - zero) + offset.

    fused: the values are their products with the first level of scales.
    """
    fmt = weight.format
    parts, k = weight.arguments(), np.arange(weight.in_features)
    groups, outers = (k // max(1, size) for size in (fmt.group_size(weight.in_features), fmt.outer_size(k.size)))
    values = _wide(weight.values())
    nothing = np.zeros_like(values)

    def both_levels(part: str, outer: str) -> Matrix:
        inner = _per_k(parts[part], weight, groups)
        return inner if parts[outer] is None else inner * _per_k(parts[outer], weight, outers)

    if fused:
        second = nothing + 1 if parts["outer"] is None else np.abs(_per_k(parts["outer"], weight, outers))
        offset = np.abs(both_levels("zeros", "outer_zeros")) if fmt.zero == "offset" else nothing
        return values * _per_k(parts["scales"], weight, groups), second, nothing, offset
    scale = np.abs(both_levels("scales", "outer"))
    if fmt.zero is None:
        return values, scale, nothing, nothing
    given = both_levels("zeros", "outer_zeros")
    return (values, scale, nothing, np.abs(given)) if fmt.zero == "offset" else (values, scale, given, nothing)


def _fragments(weight: PackedWeight, act: str, fused: Fused | None, raised: int) -> tuple[Matrix, Matrix, Matrix]:
    """How the kernel's MMAs see the weights: fragment = factor * (value + shift), aligned at no less than the floor.

    Each (N, 1): they depend on the row of the 16-row tile; factor and floor (N, K) with relative scales. The floor is
    in units of values. raised: of activations, whose power of two is in the factor too.
    """
    used, code = decoder(weight.format.code, act), weight.format.code
    step, bias = (code.step, code.bias) if code.is_linear else (1, 0)
    rows = np.arange(weight.out_features)[:, None] % TILE_N // (TILE_N // 2)
    if raised:
        assert isinstance(used, Decoder)
        used = used.plain
    factor = np.array(used.factors)[rows] / step
    shift = np.array(used.offsets)[rows] * step + bias
    if fused is not None:
        factor, shift = np.array(fused.factors)[rows], np.zeros_like(shift)
        if fused.powers:
            factor = factor / _largest_scales(weight)[1]
    return factor * 2.0**raised, shift, SMALLEST_NORMAL[act] / factor


def _largest_scales(weight: PackedWeight) -> tuple[Matrix, Matrix]:
    """The scales, and the largest of each row over UNIT_K, which relative ones are divided by, both (N, K)."""
    k = np.arange(weight.in_features)
    scales = _per_k(weight.arguments()["scales"], weight, k // max(1, weight.format.group_size(k.size)))
    starts = np.arange(0, k.size, UNIT_K)
    return scales, np.repeat(np.maximum.reduceat(scales, starts, axis=1), UNIT_K, axis=1)[:, : k.size]


def _lost(weight: PackedWeight, fused: Fused, scaled: Matrix, factor: Matrix) -> Matrix:
    """What fragments lose of `scaled` values where their scale is far below the largest, in units of these."""
    scales, largest = _largest_scales(weight)
    rows = np.arange(weight.out_features)[:, None] % TILE_N // (TILE_N // 2)
    own = np.array(fused.factors)[rows] * 2.0**-fused.exponent * _wide(weight.values())
    below = np.rint(np.log2(largest / scales))
    made = relative_fragments(fused, np.array(fused.shifts)[rows], own, below)
    return np.abs(made / factor - scaled)


def _per_k(values: Any, weight: PackedWeight, groups: np.ndarray[Any, Any]) -> Matrix:
    """(N or 1, G) numbers as (N, K)."""
    wide = np.broadcast_to(_wide(values), (weight.out_features, values.shape[1]))
    return wide[:, groups]


def _wide(values: Any) -> Matrix:
    if dtypes.is_tensor(values):
        values = values.detach().double().numpy()
    return np.asarray(values, np.float64)
