"""Kernels that Triton compiles here, at sizes that are no multiples of their blocks, against numpy.

Operands of matrix products are small integers, so that every order and precision of summing gives the same result.
"""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.third_party.catalogue import TRITON
from tests.third_party.running import empty, triton

BF16 = ml_dtypes.bfloat16
UNIT = 2.0**-24  # half a unit in the last place of an f32 number, relative
# ex2.approx, rcp.approx, rsqrt.approx and div.full err by at most two units in the last place, by the manual.
APPROXIMATE = 4 * UNIT


def targets(*names: str) -> Any:
    """Parametrises a test with each of the kernels for each of its targets."""
    cases = [(name, arch) for name in names for arch in TRITON[name].targets]
    return pytest.mark.parametrize(("name", "arch"), cases, ids=[f"{name}-{arch}" for name, arch in cases])


def run(name: str, arch: str, grid: tuple[int, ...], *args: Any) -> Any:
    return triton(TRITON[name].kernel(arch), grid, *args)


def integers(seed: int, *shape: int, low: int = -4, high: int = 5, dtype: Any = np.float16) -> Any:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@targets("vector_add")
@pytest.mark.parametrize("n", [1, 255, 1000])
def test_vectors_of_any_length_are_added_exactly(name: str, arch: str, n: int) -> None:
    x, y = normal(0, n), normal(1, n)
    for _, _, out, *_ in run(name, arch, (-(-n // 256),), x, y, empty(n), n):
        np.testing.assert_array_equal(out, x + y)


@targets("softmax", "softmax_f16")
@pytest.mark.parametrize("columns", [1, 100, 255])
def test_a_softmax_is_within_its_approximations(name: str, arch: str, columns: int) -> None:
    dtype = np.float16 if name.endswith("f16") else np.float32
    x = normal(columns, 7, columns, dtype=dtype)
    exponentials = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    expected = exponentials / exponentials.sum(1, keepdims=True)
    # The exponent x log2(e), up to 2^4 in size, is rounded to f32 before ex2.
    relative = 2 * 2**4 * UNIT + APPROXIMATE + 9 * UNIT + (2.0**-11 if dtype == np.float16 else 0)
    for _, y, *_ in run(name, arch, (3,), x, empty(7, columns, dtype=dtype), 7, columns):
        np.testing.assert_allclose(y, expected, rtol=relative, atol=2.0**-25 if dtype == np.float16 else 0)


@targets("layer_norm")
@pytest.mark.parametrize("columns", [5, 256, 600])
def test_a_layer_norm_loops_over_wide_rows(name: str, arch: str, columns: int) -> None:
    x, weight, bias = normal(0, 4, columns, dtype=np.float16), normal(1, columns), normal(2, columns)
    wide = x.astype(np.float64)
    mean, deviation = wide.mean(1), 1 / np.sqrt(wide.var(1) + 1e-5)
    expected = (wide - mean[:, None]) * deviation[:, None] * weight + bias
    args = [x, empty(4, columns, dtype=np.float16), weight, bias, empty(4), empty(4), columns, 1e-5]
    for _, y, _, _, means, deviations, *_ in run(name, arch, (4,), *args):
        np.testing.assert_allclose(means, mean, rtol=0, atol=16 * UNIT * 4)
        np.testing.assert_allclose(deviations, deviation, rtol=64 * UNIT)
        np.testing.assert_allclose(y, expected, rtol=2.0**-11, atol=2.0**-16)


@targets("rms_norm")
def test_an_rms_norm_of_bf16_rounds_once(name: str, arch: str) -> None:
    x, weight = normal(0, 3, 300, dtype=BF16), normal(1, 300, dtype=BF16)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-6) * weight.astype(np.float64)
    for _, y, *_ in run(name, arch, (3,), x, empty(3, 300, dtype=BF16), weight, 300, 1e-6):
        np.testing.assert_allclose(y.astype(np.float64), expected, rtol=2.0**-8)


MATMULS = {
    "matmul_f16": (np.float16, np.float16),
    "matmul_f16_total": (np.float16, np.float16),
    "matmul_bf16": (BF16, np.float32),
    "matmul_s8": (np.int8, np.int32),
    "matmul_e5m2": (ml_dtypes.float8_e5m2, np.float32),
    "matmul_e4m3": (ml_dtypes.float8_e4m3fn, np.float32),
}


@targets(*MATMULS)
@pytest.mark.parametrize("shape", [(64, 32, 64), (70, 45, 100), (1, 33, 7)])
def test_a_matmul_of_any_size_equals_numpys(name: str, arch: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    operand, result = MATMULS[name]
    a, b = integers(0, m, k, dtype=operand), integers(1, k, n, dtype=operand)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    if name == "matmul_bf16":
        expected = np.where(expected >= 0, expected, expected / 8)
    grid = (-(-m // 64) * -(-n // 32),)
    args = [a, b, empty(m, n, dtype=result), m, n, k, k, 1, n, 1, n, 1]
    for _, _, c, *_ in run(name, arch, grid, *args):
        np.testing.assert_array_equal(c, expected.astype(result))


@targets("matmul_f16")
def test_a_matmul_of_transposed_operands_takes_strides(name: str, arch: str) -> None:
    m, n, k = 40, 50, 60
    a, b = integers(0, k, m), integers(1, n, k)
    expected = (a.T.astype(np.float32) @ b.T.astype(np.float32)).astype(np.float16)
    args = [a, b, empty(n, m, dtype=np.float16), m, n, k, 1, m, 1, k, 1, m]
    for _, _, c, *_ in run(name, arch, (2,), *args):
        np.testing.assert_array_equal(c.T, expected)


@targets("matmul_tf32", "matmul_tf32x3", "matmul_f32", "matmul_f64")
def test_products_of_full_precision_operands_are_exact_on_integers(name: str, arch: str) -> None:
    dtype = np.float64 if name == "matmul_f64" else np.float32
    high = 2**11 if name == "matmul_tf32" else 2**7  # tf32 has 11 significant bits
    a, b = integers(0, 32, 96, low=-high, high=high, dtype=dtype), integers(1, 96, 32, dtype=dtype)
    for _, _, c, *_ in run(name, arch, (1,), a, b, empty(32, 32, dtype=dtype), 96):
        np.testing.assert_array_equal(c, a @ b)


@targets("matmul_tf32x3", "matmul_f32", "matmul_f64")
def test_products_of_full_precision_operands_keep_it(name: str, arch: str) -> None:
    dtype = np.float64 if name == "matmul_f64" else np.float32
    a, b = normal(0, 32, 64, dtype=dtype), normal(1, 64, 32, dtype=dtype)
    exact, sizes = a.astype(np.float64) @ b.astype(np.float64), np.abs(a).astype(np.float64) @ np.abs(b)
    # Three tf32 products leave out 2^-22 of each product; every sum, truncated or not, errs by an ulp of its size.
    unit = 2.0**-53 if dtype == np.float64 else 2.0**-23
    for _, _, c, *_ in run(name, arch, (1,), a, b, empty(32, 32, dtype=dtype), 64):
        assert (np.abs(c - exact) <= 70 * unit * sizes).all()


@targets("matmul_4bit")
@pytest.mark.parametrize("shape", [(1, 64, 128), (19, 80, 192)])
def test_a_matmul_with_gptqs_weights_equals_numpys(name: str, arch: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    codes, zeros = (
        integers(0, k, n, low=0, high=16, dtype=np.uint32),
        integers(1, k // 64, n, low=0, high=16, dtype=np.uint32),
    )
    scales = 2.0 ** integers(2, k // 64, n, low=-3, high=1, dtype=np.float16)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    packed = (codes.reshape(k // 8, 8, n) << shifts[:, None]).sum(1).astype(np.uint32).view(np.int32)
    packed_zeros = (zeros.reshape(k // 64, n // 8, 8) << shifts).sum(2).astype(np.uint32).view(np.int32)
    a = integers(3, m, k)
    group = np.arange(k) // 64
    weights = (codes.astype(np.float64) - zeros[group]) * scales.astype(np.float64)[group]
    expected = (a.astype(np.float64) @ weights).astype(np.float16)
    args = [a, packed, scales.astype(np.float16), packed_zeros, empty(m, n, dtype=np.float16), m, n, k]
    for *_, c, _, _, _, _, _ in run(name, arch, (-(-m // 16), -(-n // 64)), *args):
        np.testing.assert_array_equal(c, expected)


@targets("attention", "causal_attention")
@pytest.mark.parametrize("length", [64, 100])
def test_flash_attention_is_within_f16_of_the_whole_softmax(name: str, arch: str, length: int) -> None:
    heads, scale = 2, 0.125
    q, k, v = (normal(seed, heads, length, 64, dtype=np.float16) for seed in range(3))
    scores = np.einsum("hqd,hkd->hqk", q.astype(np.float64), k.astype(np.float64)) * scale
    if name == "causal_attention":
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(2, keepdims=True))
    total = weights.sum(2, keepdims=True)
    expected = weights / total @ v.astype(np.float64)
    logs = (np.log2(total) + scores.max(2, keepdims=True) * np.log2(np.e))[:, :, 0]
    args = [q, k, v, empty(heads, length, 64, dtype=np.float16), empty(heads, length), length, scale]
    # The weights and the result are rounded to f16, a unit of 2^-11 of sizes up to the largest value of v.
    for _, _, _, out, found, *_ in run(name, arch, (-(-length // 64), heads), *args):
        np.testing.assert_allclose(out.astype(np.float64), expected, atol=2 * 2.0**-11 * np.abs(v).max(), rtol=0)
        np.testing.assert_allclose(found, logs, atol=2.0**-16, rtol=0)


SPLIT_SHAPES = [(32, 32, 512), (33, 40, 200)]


def _split_operands(shape: tuple[int, int, int]) -> tuple[Any, Any, Any, tuple[int, int, int]]:
    m, n, k = shape
    a, b = integers(0, m, k), integers(1, k, n)
    return a, b, a.astype(np.float32) @ b.astype(np.float32), (-(-m // 32), -(-n // 32), 4)


@targets("split_k_atomic", "split_k_atomic_f16")
@pytest.mark.parametrize("shape", SPLIT_SHAPES)
def test_parts_of_k_add_up_by_atomics(name: str, arch: str, shape: tuple[int, int, int]) -> None:
    dtype = np.float16 if name.endswith("f16") else np.float32
    a, b, expected, grid = _split_operands(shape)
    for _, _, c, *_ in run(name, arch, grid, a, b, np.zeros(expected.shape, dtype), *shape):
        np.testing.assert_array_equal(c, expected.astype(dtype))


@targets("split_k_lock")
@pytest.mark.parametrize("shape", SPLIT_SHAPES)
def test_parts_of_k_take_turns_under_a_lock(name: str, arch: str, shape: tuple[int, int, int]) -> None:
    a, b, expected, grid = _split_operands(shape)
    locks = np.zeros(grid[0] * grid[1], np.int32)
    for _, _, c, held, counts, *_ in run(name, arch, grid, a, b, empty(*expected.shape), locks, locks.copy(), *shape):
        np.testing.assert_array_equal(c, expected)
        assert not held.any() and counts.all()


@targets("split_k_semaphore")
@pytest.mark.parametrize("shape", SPLIT_SHAPES)
def test_the_last_part_of_k_to_arrive_sums_them_all(name: str, arch: str, shape: tuple[int, int, int]) -> None:
    a, b, expected, grid = _split_operands(shape)
    arrivals = np.zeros(grid[0] * grid[1], np.int32)
    args = [a, b, empty(*expected.shape), empty(4, *expected.shape), arrivals, *shape]
    for _, _, c, _, counts, *_ in run(name, arch, grid, *args):
        np.testing.assert_array_equal(c, expected)
        assert (counts == 4).all()


@targets("persistent_matmul")
def test_a_persistent_matmul_pipelines_across_its_tiles(name: str, arch: str) -> None:
    m, n, k = 70, 96, 112
    a, b = integers(0, m, k), integers(1, k, n)
    for _, _, c, *_ in run(name, arch, (2,), a, b, empty(m, n), m, n, k):
        np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))


def _scaled_operand(seed: int, kind: str, group: int) -> tuple[Any, Any, Any]:
    """32 x 128 values: their codes as the kernel takes them, the scales' codes, and what they stand for."""
    rng = np.random.default_rng(seed)
    narrow = ml_dtypes.float4_e2m1fn if kind == "e2m1" else ml_dtypes.float8_e4m3fn
    values = rng.integers(-4, 5, (32, 128)).astype(narrow)
    codes = values.view(np.uint8)
    if kind == "e2m1":
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    exponents = rng.integers(-2, 3, (32, 128 // group))
    as_e4m3 = group == 16
    scales = (
        (2.0**exponents).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        if as_e4m3
        else (exponents + 127).astype(np.uint8)
    )
    return codes, scales, values.astype(np.float64) * np.repeat(2.0**exponents, group, 1)


@targets("scaled_e2m1", "scaled_e4m3", "scaled_nvfp4")
def test_a_product_of_block_scaled_operands_equals_numpys(name: str, arch: str) -> None:
    kind = "e4m3" if name == "scaled_e4m3" else "e2m1"
    group = 16 if name == "scaled_nvfp4" else 32
    a, a_scales, left = _scaled_operand(0, kind, group)
    b, b_scales, right = _scaled_operand(1, kind, group)
    args = [np.ascontiguousarray(a), a_scales, np.ascontiguousarray(b), b_scales, empty(32, 32)]
    for *_, c, _, _ in run(name, arch, (1,), *args):
        np.testing.assert_array_equal(c, left @ right.T)


@targets("reduce_all")
@pytest.mark.parametrize("shape", [(32, 64), (5, 33)])
def test_tiles_are_reduced_along_both_axes(name: str, arch: str, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).permutation(shape[0] * shape[1]).astype(np.int32).reshape(shape) - 100
    rows, columns = (empty(size, dtype=np.int32) for size in shape)
    for _, sums, largest, smallest, highest, lowest, xors, *_ in run(
        name, arch, (1,), x, columns, rows, columns, rows, columns, rows, *shape
    ):
        np.testing.assert_array_equal(sums, x.sum(0))
        np.testing.assert_array_equal(largest, x.max(1))
        np.testing.assert_array_equal(smallest, x.min(0))
        np.testing.assert_array_equal(highest, x.argmax(1))
        np.testing.assert_array_equal(lowest, x.argmin(0))
        np.testing.assert_array_equal(xors, np.bitwise_xor.reduce(x, 1))


@targets("scans")
@pytest.mark.parametrize("n", [256, 77])
def test_scans_of_exact_numbers_equal_numpys(name: str, arch: str, n: int) -> None:
    x, gates = integers(0, 3, n, dtype=np.float32), np.ones((3, n), np.float32)
    gates[:, ::5], gates[:, 1::5] = 2.0, 0.5
    states, state = np.zeros_like(x), np.zeros(3)
    for i in range(n):
        state = state * gates[:, i] + x[:, i]
        states[:, i] = state
    outputs = [empty(3, n) for _ in range(4)]
    for _, _, sums, products, found, backwards, *_ in run(name, arch, (3,), x, gates, *outputs, n):
        np.testing.assert_array_equal(sums, x.cumsum(1))
        np.testing.assert_array_equal(products, gates.cumprod(1))
        # Halving and doubling are exact; the sums need at most 10 + 2 bits.
        np.testing.assert_array_equal(found, states)
        np.testing.assert_array_equal(backwards, x[:, ::-1].cumsum(1)[:, ::-1])


@targets("sort_rows")
@pytest.mark.parametrize("n", [256, 100])
def test_rows_are_sorted_and_counted(name: str, arch: str, n: int) -> None:
    x = integers(0, 3, n, low=-1000, high=1000, dtype=np.int32)
    for _, y, counts, *_ in run(name, arch, (3,), x, empty(3, n, dtype=np.int32), empty(3, 16, dtype=np.int32), n):
        np.testing.assert_array_equal(y, np.sort(x, 1))
        np.testing.assert_array_equal(counts, [np.bincount(row & 15, minlength=16) for row in x])


@targets("gather_rows")
def test_rows_are_gathered_by_64_bit_indices(name: str, arch: str) -> None:
    table, indices = normal(0, 50, 200, dtype=np.float16), integers(1, 9, low=0, high=50, dtype=np.int64)
    for _, _, out, *_ in run(name, arch, (9,), table, indices, empty(9, 200, dtype=np.float16), 200):
        np.testing.assert_array_equal(out, table[indices])


@targets("scatter_add", "scatter_add_f16", "scatter_add_bf16")
def test_rows_that_share_an_index_are_added(name: str, arch: str) -> None:
    dtype = {"f16": np.float16, "bf16": BF16}.get(name.rpartition("_")[2], np.float32)
    values, indices = integers(0, 40, 33, dtype=dtype), integers(1, 40, low=0, high=6, dtype=np.int32)
    expected = np.zeros((6, 33), np.float32)
    np.add.at(expected, indices, values.astype(np.float32))
    for _, _, out, *_ in run(name, arch, (6,), values, indices, np.zeros((6, 33), dtype), 40, 33):
        np.testing.assert_array_equal(out, expected.astype(dtype))


@targets("gather_in_tile")
def test_columns_of_a_tile_are_gathered(name: str, arch: str) -> None:
    x, indices = normal(0, 32, 64), integers(1, 32, 64, low=0, high=64, dtype=np.int32)
    for _, _, out, *_ in run(name, arch, (1,), x, indices, empty(32, 64)):
        np.testing.assert_array_equal(out, np.take_along_axis(x, indices, 1))


CONVERSIONS = {
    "convert_f32_e5m2": (np.float32, ml_dtypes.float8_e5m2),
    "convert_f32_e4m3": (np.float32, ml_dtypes.float8_e4m3fn),
    "convert_f16_e5m2": (np.float16, ml_dtypes.float8_e5m2),
    "convert_bf16_e4m3": (BF16, ml_dtypes.float8_e4m3fn),
    "convert_f32_bf16": (np.float32, BF16),
    "convert_f32_f16": (np.float32, np.float16),
    "convert_f64_f32": (np.float64, np.float32),
}


@targets(*CONVERSIONS)
def test_conversions_to_narrow_floats_round_to_nearest_even(name: str, arch: str) -> None:
    wide, narrow = CONVERSIONS[name]
    rng = np.random.default_rng(0)
    limit = min(
        float(ml_dtypes.finfo(narrow).max), 1e30
    )  # beyond it, Triton saturates on some targets and not on others
    magnitudes = 2.0 ** rng.uniform(np.log2(float(ml_dtypes.finfo(narrow).smallest_subnormal)), np.log2(limit), 2000)
    x = np.clip(np.concatenate([magnitudes, -magnitudes, [0.0]]), -limit, limit).astype(wide)
    expected = x.astype(narrow)
    for _, found, back, *_ in run(name, arch, (8,), x, empty(len(x), dtype=narrow), empty(len(x), dtype=wide), len(x)):
        np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64))
        np.testing.assert_array_equal(back.astype(np.float64), expected.astype(np.float64))


@targets("quantize_rows")
def test_rows_are_quantized_by_their_largest_magnitude(name: str, arch: str) -> None:
    x = normal(0, 3, 300, dtype=np.float16)
    expected = np.abs(x).max(1).astype(np.float64) / 127
    for _, codes, scales, *_ in run(name, arch, (3,), x, empty(3, 300, dtype=np.int8), empty(3), 300):
        np.testing.assert_allclose(scales, expected, rtol=APPROXIMATE)
        assert (np.abs(codes * expected[:, None] - x) <= expected[:, None] * (0.5 + 127 * 4 * APPROXIMATE)).all()


@targets("swiglu")
def test_a_swiglu_is_within_f16(name: str, arch: str) -> None:
    gate, up = normal(0, 700, dtype=np.float16), normal(1, 700, dtype=np.float16)
    wide = gate.astype(np.float64)
    expected = wide / (1 + np.exp(-wide)) * up
    for _, _, out, *_ in run(name, arch, (2,), gate, up, empty(700, dtype=np.float16), 700):
        np.testing.assert_allclose(out, expected, rtol=2.0**-11 + 32 * UNIT, atol=2.0**-25)


@targets("dropout")
def test_dropout_zeroes_its_share_and_scales_the_rest(name: str, arch: str) -> None:
    x = normal(0, 2000)
    results = [out for _, out, *_ in run(name, arch, (4,), x, empty(2000), 2000, 0.25, 1234)]
    kept = results[0] != 0
    np.testing.assert_allclose(results[0][kept], x[kept].astype(np.float64) / 0.75, rtol=APPROXIMATE)
    # The share is binomial; a deviation of six standard deviations does not happen by chance.
    assert abs(kept.mean() - 0.75) < 6 * np.sqrt(0.25 * 0.75 / 2000)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@targets("rope")
def test_rotary_embeddings_are_within_two_roundings(name: str, arch: str) -> None:
    x, angles = normal(0, 5, 3, 64), normal(1, 5, 32)
    cosines, sines = np.cos(angles), np.sin(angles)
    left, right = x[..., :32].astype(np.float64), x[..., 32:].astype(np.float64)
    c, s = cosines[:, None].astype(np.float64), sines[:, None].astype(np.float64)
    expected = np.concatenate([left * c - right * s, right * c + left * s], 2)
    for _, _, _, out, *_ in run(name, arch, (5,), x, cosines, sines, empty(5, 3, 64), 3):
        np.testing.assert_allclose(out, expected, atol=4 * UNIT * np.abs(x).max(), rtol=0)


@targets("cross_entropy")
def test_cross_entropies_ignore_negative_targets(name: str, arch: str) -> None:
    logits = normal(0, 4, 700)
    targets = np.array([0, 699, -100, 300])
    wide = logits.astype(np.float64)
    expected = np.where(targets < 0, 0, np.log(np.exp(wide).sum(1)) - wide[np.arange(4), targets])
    for _, _, losses, *_ in run(name, arch, (4,), logits, targets, empty(4), 700):
        np.testing.assert_allclose(losses, expected, atol=2.0**-18, rtol=0)


@targets("transpose")
def test_a_transposition_moves_every_element(name: str, arch: str) -> None:
    x = normal(0, 50, 100, dtype=np.float16)
    for _, y, *_ in run(name, arch, (2, 2), x, empty(100, 50, dtype=np.float16), 50, 100):
        np.testing.assert_array_equal(y, x.T)


@targets("interleave")
def test_tiles_are_interleaved_and_split(name: str, arch: str) -> None:
    x, y = np.arange(256, dtype=np.int32), np.arange(1000, 1256, dtype=np.int32)
    outputs = [empty(512, dtype=np.int32), empty(512, dtype=np.int32)]
    for _, _, joined, split, *_ in run(name, arch, (1,), x, y, *outputs):
        np.testing.assert_array_equal(joined, np.stack([x, y], 1).reshape(-1))
        whole = np.concatenate([x, y])
        np.testing.assert_array_equal(split, np.concatenate([whole[::2], whole[1::2]]))


@targets("gemv")
def test_a_matrix_times_a_vector_is_exact_on_integers(name: str, arch: str) -> None:
    matrix, vector = integers(0, 37, 300), integers(1, 300, dtype=np.float32)
    for _, _, out, *_ in run(name, arch, (3,), matrix, vector, empty(37), 37, 300):
        np.testing.assert_array_equal(out, matrix.astype(np.float32) @ vector)


@targets("atomics_i32", "atomics_u32", "atomics_i64")
def test_atomics_of_all_blocks_combine_in_any_order(name: str, arch: str) -> None:
    dtype = {"i32": np.int32, "u32": np.uint32, "i64": np.int64}[name.rpartition("_")[2]]
    info = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(info.min, info.max, 500, dtype)
    start = np.concatenate([np.repeat(np.array(v, dtype), 8) for v in (0, info.min, info.max, -1 & info.max, 0, 0)])
    functions = [np.add, np.maximum, np.minimum, np.bitwise_and, np.bitwise_or, np.bitwise_xor]
    expected = start.reshape(6, 8).copy()
    for row, function in zip(expected, functions, strict=True):
        function.at(row, np.arange(500) % 8, x)
    for _, out, *_ in run(name, arch, (4,), x, start, 500):
        np.testing.assert_array_equal(out.reshape(6, 8), expected)


@targets("checked_copy")
def test_an_assertion_that_holds_is_no_finding(name: str, arch: str) -> None:
    x = np.arange(300, dtype=np.int32)
    for _, y, *_ in run(name, arch, (3,), x, empty(300, dtype=np.int32), 300):
        np.testing.assert_array_equal(y, x)


@targets("checked_copy")
def test_an_assertion_that_fails_is_a_trap(name: str, arch: str) -> None:
    x = np.arange(-5, 295, dtype=np.int32)
    with pytest.raises(emulator.EmulatorError) as caught:
        list(run(name, arch, (3,), x, empty(300, dtype=np.int32), 300))
    assert caught.value.finding.kind == "trap"


# Largest error, in units of the last place of the result or absolute, and why.
ULP = 2.0**-23
MATHEMATICS = [
    (np.exp, 2**5 * ULP, 0.0),  # ex2.approx of x log2(e), below 2^4, rounded
    (np.log, ULP, 2.0**-21),  # lg2.approx errs absolutely near 1
    (np.sin, 2 * ULP, 2.0**-20),  # libdevice's or sin.approx
    (np.cos, 2 * ULP, 2.0**-20),
    (None, 4 * ULP, 0.0),  # erf
    (np.tanh, 4 * ULP, 0.0),
    (np.floor, 0.0, 0.0),
    (np.ceil, 0.0, 0.0),
    (lambda x: x / 3, ULP / 2, 0.0),
    (np.sqrt, ULP / 2, 0.0),
    (lambda x: x**1.5, 8 * ULP, 0.0),
    (lambda x: x * x + 0.5, ULP / 2, 0.0),
    (lambda x: np.clip(x, 0.5, 2.0), 0.0, 0.0),
    (lambda x: np.fmod(x, 0.75), 0.0, 0.0),
    (np.log1p, 2 * ULP, 0.0),
    (lambda x: np.arctan2(x, 0.5), 4 * ULP, 0.0),
]


@targets("mathematics")
def test_mathematical_functions_are_within_their_documented_errors(name: str, arch: str) -> None:
    from math import erf

    n = 300
    x = np.random.default_rng(0).uniform(0.01, 10, n).astype(np.float32)
    for _, out, *_ in run(name, arch, (3,), x, empty(16, n), n):
        for row, (function, relative, absolute) in zip(out, MATHEMATICS, strict=True):
            wide = x.astype(np.float64)
            expected = function(wide) if function else np.array([erf(value) for value in wide])
            np.testing.assert_allclose(row, expected, rtol=relative, atol=absolute)


INTEGER_TYPES = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")


def _trunc_divide(a: Any, b: Any) -> Any:
    """Rounds toward 0, as Triton and C do; numpy rounds down."""
    quotient = np.abs(a.astype(object)) // np.abs(b.astype(object))
    return np.where((a < 0) != (b < 0), -quotient, quotient)


@targets(*(f"integers_{t}" for t in INTEGER_TYPES))
def test_integer_arithmetic_wraps_and_divides_as_c_does(name: str, arch: str) -> None:
    kind = name.rpartition("_")[2]
    dtype = np.dtype(f"{'int' if kind[0] == 'i' else 'uint'}{kind[1:]}")
    info, rng = np.iinfo(dtype), np.random.default_rng(0)
    n = 300
    a, b = rng.integers(info.min, info.max, n, dtype, True), rng.integers(info.min, info.max, n, dtype, True)
    a[:4], b[:4] = [0, 1, info.max, info.min + 1], [1, info.max, 1, info.max]
    b[b == 0] = 3
    quotient = _trunc_divide(a, b)
    wide_a, wide_b = a.astype(object), b.astype(object)
    low = wide_b & 7
    rows = [quotient, wide_a - quotient * wide_b, wide_a * wide_b, wide_a ^ wide_b, ~wide_a | wide_b]
    rows += [wide_a << low, wide_a >> low, np.minimum(wide_a, wide_b) - np.maximum(wide_a, wide_b), np.abs(wide_a)]
    rows += [np.where(a > b, wide_a, -wide_b)]
    mask = (1 << dtype.itemsize * 8) - 1
    expected = np.array([[int(value) & mask for value in row] for row in rows], f"u{dtype.itemsize}").view(dtype)
    for _, _, out, *_ in run(name, arch, (3,), a, b, empty(10, n, dtype=dtype), n):
        np.testing.assert_array_equal(out, expected)


@targets("word_integers")
def test_bit_intrinsics_equal_their_definitions(name: str, arch: str) -> None:
    n, rng = 200, np.random.default_rng(0)
    a, b = (rng.integers(0, 2**32, n, np.uint64) for _ in range(2))
    a[:3] = [0, 1, 2**31]
    rows = [[int(x) * int(y) >> 32 for x, y in zip(a, b, strict=True)]]
    rows += [[int(x).bit_count() for x in a], [32 - int(x).bit_length() for x in a]]
    rows += [[(int(x) & -int(x)).bit_length() for x in a], [int(f"{int(x):032b}"[::-1], 2) for x in a]]
    both = [int(x) | int(y) << 32 for x, y in zip(a, b, strict=True)]
    rows += [[sum((pair >> 8 * byte & 255) << 8 * i for i, byte in enumerate((0, 4, 1, 5))) for pair in both]]
    rows += [[int(x) & int(y) | 0x0F0F0F0F for x, y in zip(a, b, strict=True)]]
    expected = np.array(rows, np.uint64).astype(np.uint32)
    args = [a.astype(np.uint32).view(np.int32), b.astype(np.uint32).view(np.int32), empty(7, n, dtype=np.int32)]
    for _, _, out, *_ in run(name, arch, (2,), *args, n):
        np.testing.assert_array_equal(out.view(np.uint32), expected)


@targets("matmul_aligned")
@pytest.mark.parametrize("shape", [(64, 64, 64), (48, 80, 160), (16, 16, 16)])
def test_a_pipelined_matmul_writes_its_result_once(name: str, arch: str, shape: tuple[int, int, int]) -> None:
    """Tiles of 32 x 32 x 32; from sm_80 on, three stages of cp.async."""
    m, n, k = shape
    a, b, c = integers(0, m, k), integers(1, k, n), np.zeros((m, n), np.float16)
    compiled = TRITON[name].kernel(arch).compile()
    module, grid = emulator.load(compiled.ptx), (-(-m // 32) * -(-n // 32),)
    args = [a, b, emulator.output(c), m, n, k, k, n, n, 0, 0]
    report = module.launch("matmul", grid, (compiled.warps * 32,), args, shared=compiled.shared)
    np.testing.assert_array_equal(c, (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float16))
    assert report.counters.arrays[2].written == 2 * m * n
    if arch == "sm_80":
        assert report.counters.mma == grid[0] * -(-k // 32) * (2 * 4 * 2)


@pytest.mark.parametrize("removed", ["bar.sync", "cp.async.wait_group"])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_matmul_without_its_barriers_or_waits_is_caught(removed: str, seed: int) -> None:
    compiled = TRITON["matmul_aligned"].kernel("sm_80").compile()
    lines = compiled.ptx.splitlines()
    module = emulator.load("\n".join(line for line in lines if removed not in line))
    a, c = np.ones((64, 64), np.float16), np.zeros((64, 64), np.float16)
    args = [a, a.copy(), c, 64, 64, 64, 64, 64, 64, 0, 0]
    report = module.launch("matmul", (4,), (128,), args, shared=compiled.shared, seed=seed, on_finding="collect")
    assert {finding.kind for finding in report.findings} & {"race_shared", "race_copy"}
