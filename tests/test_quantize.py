from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbitvm import dtypes
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import GROUPS, ZEROS, Format
from lowbitvm.pack import pack
from lowbitvm.quantize import quantize

FORMATS = [Format(*parts) for parts in product(("u4", "i4"), GROUPS, ZEROS, ("f16", "bf16", "f32"))]
LEVELS = 15
formats = st.sampled_from(FORMATS)
seeds = st.integers(0, 2**32 - 1)

KINDS = {
    "normal": lambda w: w,
    "positive": lambda w: np.abs(w) + 1,
    "negative": lambda w: -np.abs(w),
    "constant": lambda w: np.broadcast_to(w.ravel()[:1], w.shape),
    "zero": lambda w: w * 0,
    "outlier": lambda w: np.where(np.arange(w.size).reshape(w.shape) % 37 == 5, 1000 * w, w),
    "sparse": lambda w: np.where(np.abs(w) < 1, 0, w),
}


def weights(fmt: Format, n: int, k: int, kind: str, exponent: int, seed: int) -> np.ndarray:
    """Float32 weights of one kind, scaled by 2**exponent; not negative where the format cannot be."""
    values = KINDS[kind](np.random.default_rng(seed).standard_normal((n, k))).astype(np.float32)
    values = np.ldexp(np.clip(values, -1000, 1000), exponent).astype(np.float32)
    return np.abs(values) if fmt.zero is None and fmt.dtype == "u4" else values


def in_features(fmt: Format, wish: int) -> int:
    return wish if isinstance(fmt.group, str) else wish // fmt.group * fmt.group


def unrounded(fmt: Format, lo: Fraction, hi: Fraction, s: Fraction) -> tuple[Fraction, Fraction | None]:
    """The exact scale s' of a group, and the exact z' or m' for the scale s that was stored."""
    low, high = fmt.code.low, fmt.code.high
    if fmt.zero == "offset":
        return (hi - lo) / LEVELS, lo - low * s
    lo, hi = min(lo, Fraction(0)), max(hi, Fraction(0))
    if fmt.zero is None:
        return max(hi / high, lo / low if low else Fraction(0)), None
    return (hi - lo) / LEVELS, low - lo / (s or 1)


def assert_within_the_derived_bound(fmt: Format, weight: np.ndarray) -> None:
    packed = quantize(weight, fmt)
    _, scales, zeros = packed.unpack()
    got, (n, k) = packed.dequantize(), weight.shape
    rows, groups = scales.shape
    members = weight.reshape(rows, groups, -1)
    for row, group in np.ndindex(rows, groups):
        s = Fraction(float(scales[row, group]))
        exact = [Fraction(float(w)) for w in members[row, group]]
        exact_s, exact_z = unrounded(fmt, min(exact), max(exact), s)
        bound = s / 2 + LEVELS * abs(s - exact_s)
        z = None if zeros is None else Fraction(float(zeros[row, group]))
        if fmt.zero == "float":
            bound += s * abs(z - exact_z)
        elif fmt.zero == "offset":
            bound += abs(z - exact_z)
        # the place on the grid, at most 64 steps from 0, takes three float64 operations; an offset adds that of m
        bound += (64 * s + (abs(z) if fmt.zero == "offset" else 0)) * Fraction(1, 2**51)
        # the float64 that dequantize returns may itself be half a unit in the last place off
        bound += max(abs(w) for w in exact) * Fraction(1, 2**50)
        at = np.ravel_multi_index((row, group), (rows, groups)) * len(exact)
        for w, back in zip(exact, got.reshape(-1)[at : at + len(exact)], strict=True):
            assert abs(w - Fraction(float(back))) <= bound
    assert got.shape == (n, k)


@settings(max_examples=150)
@given(formats, st.integers(1, 3), st.integers(1, 130), st.sampled_from(sorted(KINDS)), st.integers(-40, 4), seeds)
def test_error_is_half_a_step_and_what_rounding_the_scale_costs_at_the_ends(
    fmt: Format, n: int, wish: int, kind: str, exponent: int, seed: int
) -> None:
    k = max(in_features(fmt, wish), fmt.group_size(1))
    assert_within_the_derived_bound(fmt, weights(fmt, n, k, kind, exponent, seed))


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.scale == "f16" and fmt.group == 32], ids=str)
def test_the_bound_holds_where_the_scale_is_subnormal(fmt: Format) -> None:
    for exponent in range(-30, -18):
        for kind in ("normal", "negative"):
            assert_within_the_derived_bound(fmt, weights(fmt, 2, 32, kind, exponent, seed=exponent + 30))


def test_a_scale_that_rounds_down_far_keeps_the_zero_point_in_range() -> None:
    weight = np.zeros((1, 32))
    weight[0, 0] = -22 * 2.0**-24  # a scale of 22/15 smallest subnormals is rounded to 1, and -lo / s is 22
    for name in ("u4", "i4"):
        fmt = Format(name, 32, "int")
        _, scales, zeros = quantize(weight, fmt).unpack()
        assert scales == 2.0**-24
        assert zeros == fmt.code.high
        assert_within_the_derived_bound(fmt, weight)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.scale == "f32"], ids=str)
def test_error_is_at_most_half_a_step_where_the_scale_has_room(fmt: Format) -> None:
    weight = weights(fmt, 16, 256, "normal", 0, seed=1)
    packed = quantize(weight, fmt)
    scales = packed.unpack()[1].astype(np.float64)
    error = np.abs(packed.dequantize() - weight).reshape(*scales.shape, -1)
    # f32 scales, zeros and offsets are off by 2^-24 of themselves, which 15 steps and the zero multiply by at most 64
    assert (error <= scales[..., None] * (0.5 + 64 * 2.0**-24)).all()


@given(formats, st.integers(1, 20), st.integers(1, 300), st.integers(-14, 4), seeds)
def test_weights_on_the_grid_keep_their_codes_scales_and_zeros(
    fmt: Format, n: int, wish: int, exponent: int, seed: int
) -> None:
    k = max(in_features(fmt, wish), fmt.group_size(2), 2)
    rng = np.random.default_rng(seed)
    low, high = fmt.code.low, fmt.code.high
    rows, groups = shape = fmt.scales_shape(n, k)
    codes = rng.integers(low, high + 1, (n, k))
    codes.reshape(rows, groups, -1)[..., :2] = low, high  # every group reaches both ends
    scales = np.ldexp(rng.integers(128, 256, shape) / 128, exponent).astype(fmt.scale_dtype.numpy)  # 8 bits: bf16 too
    zeros = None
    if fmt.zero in ("int", "float"):
        zeros = rng.integers(low, high + 1, shape)
    elif fmt.zero == "offset":
        zeros = np.ldexp(rng.integers(-128, 128, shape), exponent)
    if zeros is not None and fmt.zero != "int":
        zeros = zeros.astype(fmt.scale_dtype.numpy)
    packed = pack(codes, scales, zeros, fmt)
    for before, after in zip(packed.unpack(), quantize(packed.dequantize(), fmt).unpack(), strict=True):
        if before is None:
            assert after is None
        else:
            np.testing.assert_array_equal(before, after)


@given(formats, st.integers(0, 20), st.integers(0, 300), st.sampled_from(sorted(KINDS)), st.integers(-40, 4), seeds)
def test_numpy_and_torch_quantize_bit_for_bit_alike(
    fmt: Format, n: int, wish: int, kind: str, exponent: int, seed: int
) -> None:
    k = in_features(fmt, wish)
    weight = weights(fmt, max(n, 1), max(k, 1), kind, exponent, seed)[:n, :k].copy()
    a, b = quantize(weight, fmt), quantize(torch.from_numpy(weight), fmt)
    for ours, theirs in ((a.words, b.words), (a.scales, b.scales), (a.zeros, b.zeros)):
        if ours is None:
            assert theirs is None
        else:
            assert ours.tobytes() == theirs.view(torch.uint8).numpy().tobytes()


def test_numpy_and_torch_round_a_float64_scale_alike() -> None:
    scale = 1 + 2.0**-11 + 2.0**-30  # rounds up to f16 at once, down through float32, where it is a tie
    weight = np.array([[7 * scale, 0]])
    ours, theirs = (quantize(w, Format("i4", "channel")).unpack()[1] for w in (weight, torch.from_numpy(weight)))
    assert float(ours[0, 0]) == float(theirs[0, 0]) == 1


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.dtype == "u4"], ids=str)
def test_negative_zeros_leave_no_sign_in_any_stored_byte(fmt: Format) -> None:
    weight = np.full((1, 256), -0.0)
    for packed, byte in ((quantize(weight, fmt), np.uint8), (quantize(torch.from_numpy(weight), fmt), torch.uint8)):
        for stored in (packed.words, packed.scales, packed.zeros):
            assert stored is None or not stored.view(byte).any()


@pytest.mark.parametrize("name", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_every_float_dtype_quantizes_like_its_float64_values(name: str, library: str) -> None:
    dtype = dtypes.get(name)
    weight: Any = np.random.default_rng(2).standard_normal((17, 96)).astype(dtype.numpy)
    wide = weight.astype(np.float64)
    if library == "torch":
        weight = torch.from_numpy(wide).to(dtype.torch()).requires_grad_()  # as torch.nn.Linear.weight is
    for fmt in (Format("i4", 32), Format("u4", "channel", "int")):
        np.testing.assert_array_equal(
            quantize(weight, fmt).words,
            quantize(wide, fmt).words.view(np.int32) if library == "torch" else quantize(wide, fmt).words,
        )


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_an_all_zero_group_stays_zero_beside_others(fmt: Format) -> None:
    weight = weights(fmt, 3, 256, "normal", 0, seed=3)
    weight[1] = 0
    back = quantize(weight, fmt).dequantize()
    assert np.isfinite(back).all()
    if fmt.group != "tensor" or fmt.zero in (None, "int"):
        assert (back[1] == 0).all()
    assert (back[0] != 0).any()


def test_ties_round_to_the_even_code() -> None:
    # the 7 makes the scale 1
    weight = np.array([[7, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.5]])
    codes, scales, _ = quantize(weight, Format("i4", "channel")).unpack()
    assert scales == 1
    assert codes.tolist() == [[7, 0, 2, 2, 0, -2, -2, 4]]


def test_i4_without_zero_points_uses_minus_8_when_the_negative_end_is_the_longer() -> None:
    for lo, hi, scale in ((-8, 7, 1), (-8, 0, 1), (-7, 7, 1), (-4, 7, 1), (-16, 7, 2)):
        weight = np.array([[lo, hi]], np.float64)
        packed = quantize(weight, Format("i4", "channel"))
        assert packed.unpack()[1] == scale
        assert abs(packed.dequantize() - weight).max() <= scale / 2


def test_a_range_below_the_smallest_scale_becomes_zero() -> None:
    for zero in ZEROS:
        weight = np.full((1, 32), 2.0**-30)
        weight[0, 0] = 0
        packed = quantize(weight, Format("u4", 32, zero))
        assert packed.unpack()[1] == 0
        assert (packed.dequantize() == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "library", [np.asarray, lambda weight: torch.from_numpy(weight).requires_grad_()], ids=["numpy", "torch"]
)
def test_non_finite_weights_are_refused_by_index(value: float, library: Any) -> None:
    weight = np.ones((2, 32))
    weight[1, 3] = value
    with pytest.raises(LowbitvmError, match=rf"^ARGUMENT_INVALID: weight\[1, 3\] = {value} is not finite"):
        quantize(library(weight), Format("i4", 32))


def test_negative_weights_need_a_sign_or_a_zero_point() -> None:
    weight = np.ones((2, 32))
    weight[0, 9] = -2.5
    with pytest.raises(LowbitvmError, match=r"^ARGUMENT_INVALID: weight\[0, 9\] = -2.5 is negative.*i4"):
        quantize(weight, Format("u4", 32))
    assert (quantize(-0.0 * weight, Format("u4", 32)).dequantize() == 0).all()


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("fmt", "ends", "named"),
    [
        (Format("i4", 32), (0, 1e6), "scale of 142857, beyond f16"),
        (Format("u4", 32, "int"), (-1e6, 1e6), "scale of 133333, beyond f16"),
        (Format("u4", 32, "float"), (-1e308, 1e308), "scale of inf, beyond f16"),
        (Format("u4", 32, "offset"), (1e5, 1e5 + 1), "offset of 100000, beyond f16"),
        (Format("u4", 32, "offset", "f32"), (0, 1e40), "scale of 6.66667e[+]38, beyond f32"),
    ],
    ids=str,
)
def test_ranges_beyond_the_scale_dtype_are_refused(
    library: Any, fmt: Format, ends: tuple[float, float], named: str
) -> None:
    with pytest.raises(LowbitvmError, match=f"^ARGUMENT_INVALID: .*{named}"):
        quantize(library(np.linspace(ends[0] / 2, ends[1] / 2, 32)[None] * 2), fmt)


@pytest.mark.parametrize(
    ("weight", "code", "named"),
    [
        (np.ones((2, 32), np.int8), "DTYPE_MISMATCH", "weight is i8"),
        (np.ones(32), "SHAPE_MISMATCH", r"\(32,\), not \(out_features, in_features\)"),
        (np.ones((2, 33)), "GROUP_INDIVISIBLE", "33.*32"),
        ([[1.0]], "DTYPE_MISMATCH", "list"),
    ],
    ids=["integers", "one dimension", "ragged", "list"],
)
def test_quantize_refuses(weight: Any, code: str, named: str) -> None:
    with pytest.raises(LowbitvmError, match=f"^{code}: .*{named}"):
        quantize(weight, Format("i4", 32))
