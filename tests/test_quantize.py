from fractions import Fraction
from itertools import product
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowbitvm import dtypes
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import GROUPS, ZEROS, Format
from lowbitvm.pack import PackedWeight, pack
from lowbitvm.quantize import BLOCK_WEIGHTS, METHODS, _Job, quantize
from tests.weights import QUANTIZABLE, float_weight, same_bits, tensors
from tests.weights import in_features as every_in_features

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


@pytest.mark.parametrize("scale", ["f16", "f32", "e8m0"])
@pytest.mark.parametrize("name", dtypes.CODE_TYPES)
def test_float32_rounds_every_code_type_as_float64_does_ties_and_subnormals_included(name: str, scale: str) -> None:
    rng = np.random.default_rng(len(name))
    code = dtypes.CODE_TYPES[name]
    values = np.arange(-8.0, 8) if code.values is None else code.values[np.isfinite(code.values)]
    values = values / abs(values).max()
    middles = (np.sort(values)[1:] + np.sort(values)[:-1]) / 2
    weight = np.ldexp(rng.standard_normal((16, 128)), rng.integers(-24, 3, (16, 128)))
    size = np.ldexp(rng.choice([1, rng.uniform(1, 2)], (8, 1)), rng.integers(-9, 0, (8, 1)))
    weight[:8] = rng.choice(np.concatenate([values, middles, -middles]), (8, 128)) * size.astype(np.float32)
    table = rng.choice(np.arange(-64, 64), (1, 1 << code.bits)).astype(np.float16) / 64 if code.values is None else None
    for zero in (None, "int") if code.is_linear else (None,):
        fmt = Format(name, 32, zero, scale, table=None if table is None else "tensor")
        for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, ml_dtypes.float8_e4m3fn):
            rounded = weight.astype(dtype)
            rounded = abs(rounded) if code.kind == "uint" and zero is None else rounded
            ours = quantize(rounded, fmt, table=table).arrays
            theirs = quantize(rounded.astype(np.float64), fmt, table=table).arrays
            assert all(same_bits(array, theirs[part]) for part, array in ours.items()), (fmt, dtype)


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


# Every format


def grid_values(packed: PackedWeight) -> np.ndarray:
    """(N, K, 2**bits): everything that the code of each weight could have stood for, in float64."""
    given, (n, k) = packed.arguments(), packed.shape
    columns = []
    known = packed.format.code.values
    patterns = np.arange(1 << packed.format.bits) if known is None else np.flatnonzero(np.isfinite(known))
    for pattern in patterns[: packed.format.code.used].tolist():
        code = packed.format.code.codes(pattern)
        codes = np.full((n, k), code, packed.format.code.numpy)
        columns.append(pack(**(given | {"codes": codes})).dequantize().astype(np.float64))
    return np.stack(columns, -1)


@settings(max_examples=200)
@given(st.sampled_from(QUANTIZABLE), st.integers(1, 20), st.integers(1, 300), st.sampled_from(METHODS), seeds)
def test_every_weight_gets_the_nearest_value_of_its_group(
    fmt: Format, n: int, wish: int, method: str, seed: int
) -> None:
    assume(fmt.bits < 7 or wish < 80)
    k = max(every_in_features(fmt, wish), every_in_features(fmt, 256) if every_in_features(fmt, wish) == 0 else 1)
    given = float_weight(fmt, n, k, seed)
    packed = quantize(**given, method=method)
    values, weight = grid_values(packed), given["weight"]
    with np.errstate(invalid="ignore"):
        distances = np.abs(values - weight[..., None])
    nearest = np.nanmin(np.where(np.isfinite(values), distances, np.nan), axis=-1)
    # a place on the grid takes at most four float64 operations, each off by 2^-53 of numbers up to `reach`
    reach = np.nanmax(np.where(np.isfinite(values), np.abs(values), np.nan), axis=-1) + np.abs(weight)
    offset = 0 if fmt.zero != "float" else np.ptp(np.where(np.isfinite(values), values, 0), axis=-1)
    assert (np.abs(packed.dequantize() - weight) <= nearest + (reach + offset) * 2.0**-48).all()


@settings(max_examples=100)
@given(st.sampled_from(QUANTIZABLE), st.integers(1, 20), st.integers(1, 300), st.sampled_from(METHODS), seeds)
def test_numpy_and_torch_quantize_every_format_bit_for_bit_alike(
    fmt: Format, n: int, wish: int, method: str, seed: int
) -> None:
    given = float_weight(fmt, n, max(every_in_features(fmt, wish), every_in_features(fmt, 256), 1), seed)
    ours, theirs = quantize(**given, method=method), quantize(**tensors(given), method=method)
    assert ours.arrays.keys() == theirs.arrays.keys()
    assert all(same_bits(ours.arrays[name], theirs.arrays[name]) for name in ours.arrays)


@settings(max_examples=40)
@given(st.sampled_from(QUANTIZABLE), st.integers(1, 20), st.integers(1, 300), st.sampled_from(METHODS), seeds)
def test_the_tensor_operations_that_a_gpu_runs_round_alike(
    fmt: Format, n: int, wish: int, method: str, seed: int
) -> None:
    given = float_weight(fmt, n, max(every_in_features(fmt, wish), every_in_features(fmt, 256), 1), seed)
    permutation = np.random.default_rng(seed).permutation(given["weight"].shape[1])
    both = []
    for arrays, order in ((given, permutation), (tensors(given), torch.from_numpy(permutation))):
        job = _Job(fmt, method, arrays["weight"], arrays.get("table"), None, order)
        parts = {name: part for name, part in vars(job.run()).items() if part is not None}
        both.append(pack(**{"zeros": None, **parts}, fmt=fmt, permutation=order))
    ours, theirs = both
    if method == "rtn":
        assert all(same_bits(ours.arrays[name], theirs.arrays[name]) for name in ours.arrays)
        return
    # sums of squares are added in another order, so that "mse" may prefer another of two all but equal scales
    rounded = quantize(**given, permutation=permutation)
    errors = [np.square(np.asarray(packed.dequantize()) - given["weight"]).sum() for packed in (theirs, rounded)]
    assert errors[0] <= errors[1] * (1 + 1e-9)


def test_rows_of_many_blocks_are_rounded_as_each_block_alone() -> None:
    weight = np.random.default_rng(8).standard_normal((16 * 20 + 5, 1024)).astype(np.float32)
    assert weight.size > 2 * BLOCK_WEIGHTS
    table = np.sort(np.random.default_rng(8).standard_normal((21, 8))).astype(np.float16)
    for fmt in (Format("u4", 128, "int"), Format("c3", 64, table="block"), Format("i4", 32, None, "i8", 256)):
        tables = {"table": table} if fmt.table else {}
        whole = quantize(weight, fmt, **tables).arguments()
        for rows in (slice(0, 16), slice(160, 176), slice(320, 325)):
            alone = {"table": table[rows.start // 16 : -(-rows.stop // 16)]} if fmt.table else {}
            for name, part in quantize(weight[rows], fmt, **alone).arguments().items():
                if name in ("codes", "scales", "zeros", "outer") and part is not None:
                    np.testing.assert_array_equal(whole[name][rows], part)
    weight[300, 3] = np.nan
    with pytest.raises(LowbitvmError, match=r"weight\[300, 3\] = nan"):
        quantize(weight, Format("u4", 128, "int"))


@settings(max_examples=60)
@given(st.sampled_from(QUANTIZABLE), st.integers(1, 4), seeds)
def test_clipping_for_the_least_squares_is_never_worse_in_any_group(fmt: Format, n: int, seed: int) -> None:
    given = float_weight(fmt, n, 256, seed)
    rows, groups = fmt.scales_shape(n, 256)
    rounded, clipped = (
        np.square(quantize(**given, method=method).dequantize() - given["weight"]).reshape(rows * groups, -1).sum(1)
        for method in METHODS
    )
    assert (clipped <= rounded * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("name", "gain"), [("bp1", 0.5), ("ternary", 0.5), ("i2", 0.6), ("i3", 0.85), ("f4e2m1", 0.95), ("nf4", 0.95)]
)
def test_clipping_pays_at_few_bits(name: str, gain: float) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 1024))
    errors = [
        np.square(quantize(weight, Format(name), method=method).dequantize() - weight).sum() for method in METHODS
    ]
    assert errors[1] < gain * errors[0]


def test_one_bit_of_sign_and_the_mean_is_found_for_two_values() -> None:
    weight = np.random.default_rng(0).choice([-0.75, 0.75], (8, 128))
    weight[0, 0] = 3.0  # an outlier that round-to-nearest makes the scale of its group
    rounded, clipped = (quantize(weight, Format("bp1"), method=method).dequantize() for method in METHODS)
    np.testing.assert_array_equal(clipped[1:], weight[1:])
    assert rounded[0, 0] == 3 and abs(clipped[0, 0]) < 1


# The block formats of OCP and NVIDIA, by their rules written another way

MX_ELEMENTS = {  # ml_dtypes' element type, its largest exponent (OCP MX 1.0, table 1), its largest number
    "mxfp4": (ml_dtypes.float4_e2m1fn, 2, 6.0),
    "mxfp6e2m3": (ml_dtypes.float6_e2m3fn, 2, 7.5),
    "mxfp6e3m2": (ml_dtypes.float6_e3m2fn, 4, 28.0),
    "mxfp8e4m3": (ml_dtypes.float8_e4m3fn, 8, 448.0),
    "mxfp8e5m2": (ml_dtypes.float8_e5m2, 15, 57344.0),
}


def blocks_of(seed: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((12, 8 * size)).astype(np.float32) * np.exp2(rng.integers(-40, 40, (12, 1)))
    weight[3, :size], weight[4, 0] = 0, 2.0**20
    return weight.astype(np.float32)


@pytest.mark.parametrize("name", MX_ELEMENTS)
def test_mx_blocks_follow_the_rule_of_the_standard(name: str) -> None:
    element, exponent, largest = MX_ELEMENTS[name]
    weight = blocks_of(1, 32)
    codes, scales, _ = quantize(weight, name).unpack()
    for row, block in np.ndindex(scales.shape):
        members = weight[row, 32 * block : 32 * block + 32].astype(np.float64)
        top = np.abs(members).max()
        shared = -127 if top == 0 else int(np.floor(np.log2(top))) - exponent
        assert float(scales[row, block].astype(np.float32)) == 2.0**shared
        expected = np.clip(members / 2.0**shared, -largest, largest).astype(np.float32).astype(element)
        np.testing.assert_array_equal(codes[row, 32 * block : 32 * block + 32], expected.view(np.uint8))


def test_mxint8_follows_the_rule_of_the_standard() -> None:
    weight = blocks_of(2, 32)
    codes, scales, _ = quantize(weight, "mxint8").unpack()
    for row, block in np.ndindex(scales.shape):
        members = weight[row, 32 * block : 32 * block + 32].astype(np.float64)
        top = np.abs(members).max()
        shared = -127 if top == 0 else int(np.floor(np.log2(top))) - 6  # elements are integers over 2^6
        assert float(scales[row, block].astype(np.float32)) == 2.0**shared
        expected = np.rint(members / 2.0**shared).clip(-128, 127)
        np.testing.assert_array_equal(codes[row, 32 * block : 32 * block + 32], expected)


def test_gguf_quantises_mxfp4_to_the_same_weights() -> None:
    weight = blocks_of(3, 32)
    raw = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.MXFP4)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(quantize(weight, "mxfp4").dequantize(), theirs)


@pytest.mark.parametrize(("name", "largest"), [("nvfp4", 6.0), ("nvint4", 7.0)])
def test_nvidia_blocks_have_one_scale_per_tensor_and_e4m3_scales_below_it(name: str, largest: float) -> None:
    weight = np.random.default_rng(4).standard_normal((12, 128)).astype(np.float32)
    given = quantize(weight, name).arguments()
    blocks = weight.reshape(12, 8, 16).astype(np.float64)
    # nvint4's codes reach -8: the end that is farther from its code decides
    ends = np.maximum(blocks.max(2) / largest, -blocks.min(2) / (8.0 if name == "nvint4" else largest))
    overall = np.float32(ends.max() / 448)
    assert given["outer"].shape == (1, 1) and given["outer"][0, 0] == overall
    if name == "nvfp4":
        assert overall == np.float32(np.abs(weight).max().astype(np.float64) / (6 * 448))
    scales = (ends / overall).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    assert given["scales"].tobytes() == scales.tobytes()
    places = blocks / (scales.astype(np.float64) * overall)[..., None]
    if name == "nvfp4":
        expected = np.clip(places, -6, 6).astype(np.float32).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    else:
        expected = np.rint(places).clip(-8, 7)
    np.testing.assert_array_equal(given["codes"], expected.reshape(12, 128))


@pytest.mark.parametrize("scale", ["i8", "e4m3"])
@pytest.mark.parametrize("outer", ["tensor", 256])
@pytest.mark.parametrize("zero", [None, "int", "offset"])
def test_scales_of_two_levels_come_close_to_scales_of_one(scale: str, outer: Any, zero: str | None) -> None:
    if zero == "offset" and scale == "e4m3":
        return
    weight = np.random.default_rng(5).standard_normal((32, 512))
    one, two = (
        np.square(quantize(weight, fmt).dequantize() - weight).sum()
        for fmt in (Format("u4" if zero else "i4", 32, zero), Format("u4" if zero else "i4", 32, zero, scale, outer))
    )
    assert two < 1.35 * one


# Codebooks, permutations, scales of the activations


def test_each_group_takes_the_best_of_several_tables() -> None:
    fp4 = dtypes.CODE_TYPES["f4e2m1"].values
    assert fp4 is not None
    choices = np.stack([np.where(np.arange(16) == 8, special, fp4) for special in (-5.0, 5.0, -8.0, 8.0)])
    weight = np.random.default_rng(6).standard_normal((16, 512))
    weight[2, 128:256] = np.where(np.arange(128) % 3 == 0, 5, 1.0)
    weight[2, 128] = 6
    fmt = Format("c4", 128, table="group")
    packed = quantize(weight, fmt, table=choices)
    table = packed.arguments()["table"]
    assert table.shape == (16, 4, 16) and table[2, 1, 8] == 5
    error = np.square(packed.dequantize() - weight).reshape(16, 4, 128).sum(-1)
    alone = [
        np.square(quantize(weight, Format("c4", 128, table="tensor"), table=one).dequantize() - weight)
        for one in choices
    ]
    np.testing.assert_allclose(error, np.min([e.reshape(16, 4, 128).sum(-1) for e in alone], axis=0), rtol=1e-9)
    on_torch = quantize(torch.from_numpy(weight), fmt, table=torch.from_numpy(choices))
    assert same_bits(packed.words, on_torch.words) and same_bits(packed.table, on_torch.table)


@given(st.sampled_from(QUANTIZABLE), seeds)
def test_a_permutation_groups_other_columns_and_leaves_the_order_of_the_weight(fmt: Format, seed: int) -> None:
    given = float_weight(fmt, 5, 256, seed)
    permutation = np.random.default_rng(seed).permutation(256)
    permuted = quantize(**given, permutation=permutation)
    plain = quantize(**(given | {"weight": given["weight"][:, permutation]}))
    np.testing.assert_array_equal(permuted.dequantize()[:, permutation], plain.dequantize())
    assert all(same_bits(permuted.arrays[name], plain.arrays[name]) for name in plain.arrays)
    assert same_bits(permuted.permutation, permutation.astype(np.int32))


@given(st.sampled_from(QUANTIZABLE), seeds)
def test_a_scale_of_the_activations_is_folded_before_rounding(fmt: Format, seed: int) -> None:
    given = float_weight(fmt, 5, 256, seed)
    scale = np.random.default_rng(seed).uniform(0.5, 2, 256).astype(np.float32)
    folded = quantize(**given, input_scale=scale)
    plain = quantize(**(given | {"weight": given["weight"] * scale}))
    assert all(same_bits(folded.arrays[name], plain.arrays[name]) for name in plain.arrays)


WEIGHT = np.ones((2, 64))
REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "an unknown method": ("ARGUMENT_INVALID", "'best'.*rtn, mse", {"method": "best"}),
    "no table": ("ARGUMENT_INVALID", "table is None", {"fmt": Format("c2", 32, table="tensor")}),
    "a table too many": ("ARGUMENT_INVALID", "a table was given", {"table": np.ones(16)}),
    "a table of another size": (
        "SHAPE_MISMATCH",
        r"table has shape \(5,\), not \(1, 4\)",
        {"fmt": Format("c2", 32, table="tensor"), "table": np.ones(5)},
    ),
    "a table of integers": (
        "DTYPE_MISMATCH",
        "table is i64",
        {"fmt": Format("c2", 32, table="tensor"), "table": np.ones(4, np.int64)},
    ),
    "an entry beyond f16": (
        "ARGUMENT_INVALID",
        "f16 has not",
        {"fmt": Format("c2", 32, table="tensor"), "table": np.array([0, 1, 2, 1e6])},
    ),
    "an input_scale of another length": ("SHAPE_MISMATCH", r"\(3,\), not \(64,\)", {"input_scale": np.ones(3)}),
    "an integer input_scale": ("DTYPE_MISMATCH", "input_scale is i64", {"input_scale": np.ones(64, np.int64)}),
    "an infinite product": ("ARGUMENT_INVALID", "not finite", {"input_scale": np.full(64, np.inf)}),
    "no permutation": ("ARGUMENT_INVALID", "0 .. 63 once", {"permutation": np.zeros(64, np.int64)}),
    "a short permutation": ("SHAPE_MISMATCH", r"\(32,\), not \(64,\)", {"permutation": np.arange(32)}),
    "a permutation of floats": ("DTYPE_MISMATCH", "permutation are f64", {"permutation": np.arange(64.0)}),
    "an e4m3 scale that overflows": (
        "ARGUMENT_INVALID",
        "scale of 1000, beyond e4m3",
        {"weight": WEIGHT * 7000, "fmt": Format("i4", 32, scale="e4m3")},
    ),
    "an e8m0 scale that overflows": (
        "ARGUMENT_INVALID",
        "beyond e8m0",
        {"weight": WEIGHT * 1e300, "fmt": Format("i4", 32, scale="e8m0")},
    ),
}


@pytest.mark.parametrize("convert", [dict, tensors], ids=["numpy", "torch"])
@pytest.mark.parametrize("case", REFUSED)
def test_quantize_refuses_what_does_not_fit(case: str, convert: Any) -> None:
    code, named, change = REFUSED[case]
    given = convert({"weight": WEIGHT, "fmt": Format("i4", 32)} | change)
    with pytest.raises(LowbitvmError, match=f"^{code}: .*{named}"), np.errstate(over="ignore"):
        quantize(**given)


@pytest.mark.parametrize(("name", "instead"), [("u1", "bp1"), ("u3", "i3"), ("u8", "i8")])
def test_negative_weights_in_unsigned_codes_name_the_signed_ones(name: str, instead: str) -> None:
    with pytest.raises(LowbitvmError, match=f'^ARGUMENT_INVALID: .*use "{instead}"'):
        quantize(-WEIGHT, Format(name, 32))


def test_what_is_given_must_lie_in_one_place() -> None:
    with pytest.raises(LowbitvmError, match=r"^DEVICE_MISMATCH: .*weight on cpu, input_scale on numpy"):
        quantize(torch.ones(2, 64), Format("i4", 32), input_scale=np.ones(64))
