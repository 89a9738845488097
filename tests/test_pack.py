import math
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbitvm import chunk, dtypes, words
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import GROUPS, ZEROS, Format
from lowbitvm.pack import PackedWeight, pack
from lowbitvm.quantize import quantize
from tests.weights import (
    ARRAYS,
    EVERY_FORMAT,
    ONE_OF_EACH_CODE,
    finite_bits,
    in_features,
    random_arguments,
    random_codes,
    same_bits,
    tensor,
    tensors,
)

SIMPLE = [Format(*parts) for parts in product(("u4", "i4"), GROUPS, ZEROS, ("f16", "bf16", "f32"))]
Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def random_parts(fmt: Format, n: int, k: int, seed: int) -> Parts:
    arguments = random_arguments(fmt, n, k, seed)
    return arguments["codes"], arguments["scales"], arguments["zeros"]


formats = st.sampled_from(EVERY_FORMAT)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=300)
@given(formats, st.integers(1, 50), st.integers(0, 600), st.booleans(), seeds)
def test_arguments_inverts_pack_for_every_format(fmt: Format, n: int, wish: int, permuted: bool, seed: int) -> None:
    arguments = random_arguments(fmt, n, in_features(fmt, wish), seed, permuted)
    for given_parts in (arguments, tensors(arguments)):
        after = pack(**given_parts).arguments()
        assert after["fmt"] == fmt
        for name in ARRAYS:
            assert same_bits(given_parts[name], after[name]), name
            if given_parts[name] is not None:
                assert after[name].shape == given_parts[name].shape
                assert after[name].dtype == given_parts[name].dtype


@pytest.mark.parametrize("fmt", ONE_OF_EACH_CODE, ids=str)
def test_every_code_type_round_trips_at_odd_sizes(fmt: Format) -> None:
    for n, k in ((1, 32), (17, 96), (40, 288)):
        arguments = random_arguments(fmt, n, k, seed=n)
        values = np.zeros(1 << fmt.bits) if fmt.code.values is None else fmt.code.values[: fmt.code.used]
        every = fmt.code.codes(np.flatnonzero(np.isfinite(values)))[: n * k]
        arguments["codes"].flat[: every.size] = every
        for given_parts in (arguments, tensors(arguments)):
            assert same_bits(pack(**given_parts).unpack()[0], arguments["codes"])


@pytest.mark.parametrize("convert", [dict, tensors], ids=["numpy", "torch"])
@pytest.mark.parametrize(("n", "k"), [(0, 256), (5, 0), (0, 0)])
@pytest.mark.parametrize("seed", range(4))
def test_zero_sizes_pack_and_unpack(n: int, k: int, seed: int, convert: Any) -> None:
    for fmt in np.random.default_rng(seed).choice(np.array(EVERY_FORMAT), 60).tolist():
        arguments = convert(random_arguments(fmt, n, k, seed=1))
        packed = pack(**arguments)
        assert tuple(packed.words.shape) == (math.ceil(n / 16), math.ceil(k / 64), 32 * fmt.bits)
        assert tuple(packed.dequantize().shape) == packed.shape == (n, k)
        for name, after in packed.arguments().items():
            before = arguments[name]
            if name != "fmt" and before is not None:
                assert tuple(after.shape) == tuple(before.shape)
                assert after.dtype == before.dtype
                if fmt.group != "tensor" or n > 0:
                    assert same_bits(before, after)


@settings(max_examples=200)
@given(formats, st.integers(0, 40), st.integers(0, 600), st.booleans(), seeds)
def test_numpy_and_torch_agree_bit_for_bit(fmt: Format, n: int, wish: int, permuted: bool, seed: int) -> None:
    arguments = random_arguments(fmt, n, in_features(fmt, wish), seed, permuted)
    a, b = pack(**arguments), pack(**tensors(arguments))
    assert a.arrays.keys() == b.arrays.keys()
    assert all(same_bits(a.arrays[name], b.arrays[name]) for name in a.arrays)
    with np.errstate(invalid="ignore"):  # e5m2 has infinities and scales may be 0
        assert same_bits(a.dequantize(), b.dequantize()) or np.isnan(a.dequantize()).any()
    assert a.nbytes == b.nbytes
    assert (dtypes.of(a.words), dtypes.of(b.words)) == (dtypes.u32, dtypes.i32)


def words_one_bit_at_a_time(codes: np.ndarray, code: dtypes.CodeType) -> np.ndarray:
    n_size, k_size = codes.shape
    words = np.zeros((math.ceil(n_size / 16), math.ceil(k_size / 64), 32 * code.bits), np.uint32)
    positions = chunk.order(code).positions.tolist()
    places = [chunk.word_place(code.bits, word) for word in range(code.bits)]
    for tile_n, tile_k, lane, c in np.ndindex(*words.shape[:2], 32, 32):
        g, q, step, r, half = lane >> 2, lane & 3, c >> 3, c >> 1 & 3, c & 1
        n = 16 * tile_n + g + 8 * (r & 1)
        k = 64 * tile_k + 16 * step + 2 * q + half + 8 * (r >> 1)
        if n >= n_size or k >= k_size:
            continue
        pattern = int(code.stored(int(codes[n, k])))
        for bit, position in enumerate(positions[c]):
            start, width, index = places[position >> 5]
            words[tile_n, tile_k, start + lane * width + index] |= np.uint32((pattern >> bit & 1) << (position & 31))
    return words


@pytest.mark.parametrize("fmt", ONE_OF_EACH_CODE, ids=str)
@pytest.mark.parametrize(("n", "k"), [(16, 64), (5, 96)])
def test_words_hold_each_bit_where_the_stored_order_says(fmt: Format, n: int, k: int) -> None:
    arguments = random_arguments(fmt, n, k, seed=n)
    np.testing.assert_array_equal(pack(**arguments).words, words_one_bit_at_a_time(arguments["codes"], fmt.code))


@pytest.mark.parametrize("name", ["u3", "i4", "bp7", "f6e3m2"])
def test_words_of_many_blocks_are_those_of_each_tile_alone(name: str) -> None:
    code = dtypes.CODE_TYPES[name]
    patterns = np.random.default_rng(3).integers(0, 1 << code.bits, (16 * 40, 64 * 30 + 7))
    codes = code.codes(patterns).astype(code.numpy)
    packed = words.pack_codes(codes, code)
    assert packed.shape[0] * packed.shape[1] > 2 * words.BLOCK_TILES
    for tile_n, tile_k in ((0, 0), (13, 29), (39, 30), (39, 7)):
        tile = codes[16 * tile_n : 16 * tile_n + 16, 64 * tile_k : 64 * tile_k + 64]
        np.testing.assert_array_equal(packed[tile_n, tile_k], words.pack_codes(tile, code)[0, 0])
    np.testing.assert_array_equal(words.unpack_codes(packed, codes.shape, code), codes)
    np.testing.assert_array_equal(words.unpack_patterns(packed, codes.shape, code), patterns)
    codes[500, 1700] = 0 if code.step == 2 else code.high + 1
    with pytest.raises(LowbitvmError, match=r"codes\[500, 1700\]"):
        words.pack_codes(codes, code)


@pytest.mark.parametrize("code", dtypes.CODE_TYPES.values(), ids=str)
def test_the_tensor_operations_that_a_gpu_runs_give_the_same_words(code: dtypes.CodeType) -> None:
    codes = random_codes(
        np.random.default_rng(4), ONE_OF_EACH_CODE[list(dtypes.CODE_TYPES).index(code.name)], (37, 150)
    )
    patterns = code.stored(codes.astype(np.int16)).astype(np.uint8)
    expected = words.pack_codes(codes, code)
    tiles = (slice(0, expected.shape[0]), slice(0, expected.shape[1]))
    packed = torch.zeros(expected.shape, dtype=torch.int32)
    words._pack_block(torch.from_numpy(codes), packed, code, tiles)
    assert same_bits(packed, expected)
    for wanted, as_patterns in ((codes, False), (patterns, True)):
        back = torch.zeros_like(torch.from_numpy(wanted))
        words._unpack_block(packed, back, code, tiles, as_patterns)
        assert same_bits(back, wanted)


@settings(max_examples=50)
@given(formats, st.integers(0, 40), st.integers(0, 300), seeds)
def test_scales_and_zeros_lie_where_the_stored_order_says(fmt: Format, n: int, wish: int, seed: int) -> None:
    arguments = random_arguments(fmt, n, in_features(fmt, wish), seed)
    packed = pack(**arguments)
    for given_values, stored in ((arguments["scales"], packed.scales), (arguments["zeros"], packed.zeros)):
        if given_values is None:
            assert stored is None
            continue
        assert stored.shape == (given_values.shape[1], math.ceil(n / 16), 8, 2)
        for group, t, g, h in np.ndindex(stored.shape):
            feature = 16 * t + g + 8 * h
            row = 0 if fmt.group == "tensor" else feature
            bits = given_values[row, group].astype(stored.dtype).tobytes() if feature < n else bytes(stored.itemsize)
            assert stored[group, t, g, h].tobytes() == bits


@given(formats, st.integers(0, 40), st.integers(0, 200))
def test_stored_arrays_are_contiguous_and_16_byte_aligned(fmt: Format, n: int, wish: int) -> None:
    arguments = random_arguments(fmt, n, in_features(fmt, wish), seed=2)
    for array in pack(**arguments).arrays.values():
        assert array.flags.c_contiguous and (array.ctypes.data % 16 == 0 or not array.size)
    for array in pack(**tensors(arguments)).arrays.values():
        assert array.is_contiguous() and array.data_ptr() % 16 == 0


def exact_weight(fmt: Format, q: int, s: Fraction, z: Fraction) -> Fraction:
    return q * s + z if fmt.zero == "offset" else (q - z) * s


@pytest.mark.parametrize("fmt", [fmt for fmt in SIMPLE if fmt.group in (32, "channel", "tensor")], ids=str)
def test_dequantize_is_the_fraction_in_float32_or_the_float64_nearest_to_it(fmt: Format) -> None:
    codes, scales, zeros = random_parts(fmt, 5, 96, seed=3)
    weights = pack(codes, scales, zeros, fmt).dequantize()
    if fmt.zero in (None, "int") and fmt.scale == "f16":
        assert weights.dtype == np.float32
    elif fmt.zero in ("float", "offset") or fmt.scale == "f32":
        assert weights.dtype == np.float64
    groups = scales.shape[1]
    for n, k in np.ndindex(weights.shape):
        at = (0 if fmt.group == "tensor" else n, k * groups // 96)
        s, z = (Fraction(0) if array is None else Fraction(float(array[at])) for array in (scales, zeros))
        exact = exact_weight(fmt, int(codes[n, k]), s, z)
        # Python rounds a Fraction to the nearest float64
        assert float(weights[n, k]) == float(exact)
        if weights.dtype == np.float32 or fmt.scale == "f16" or fmt.zero in (None, "int"):
            assert Fraction(float(weights[n, k])) == exact


@pytest.mark.parametrize("name", ["u4", "i4"])
@pytest.mark.parametrize("zero", [None, "int"])
@pytest.mark.parametrize(("scale", "dtype"), [(2.0**124, np.float32), (2.0**124 * (1 + 2**-7), np.float64)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_bf16_scales_that_could_overflow_float32_give_float64(
    name: str, zero: str | None, scale: float, dtype: type, sign: int
) -> None:
    fmt = Format(name, group="channel", zero=zero, scale="bf16")
    codes = np.array([[fmt.code.low, fmt.code.high]], fmt.code.numpy)
    scales = np.array([[sign * scale]], ml_dtypes.bfloat16)
    zeros = None if zero is None else codes[:, :1]
    weights = pack(codes, scales, zeros, fmt).dequantize()
    assert weights.dtype == dtype
    z = 0 if zeros is None else int(zeros[0, 0])
    assert [Fraction(float(w)) for w in weights[0]] == [(int(q) - z) * Fraction(sign * scale) for q in codes[0]]


@pytest.mark.parametrize("scale", ["f16", "bf16"])
def test_float32_holds_the_smallest_scales_times_every_difference(scale: str) -> None:
    fmt = Format("u4", "channel", "int", scale)
    smallest = ml_dtypes.finfo(fmt.scale_dtype.numpy).smallest_subnormal
    codes, zeros = np.arange(16, dtype=np.uint8)[None].repeat(16, 0), np.arange(16, dtype=np.uint8)[:, None]
    weights = pack(codes, np.full((16, 1), smallest), zeros, fmt).dequantize()
    assert weights.dtype == np.float32
    for z, q in np.ndindex(weights.shape):
        assert Fraction(float(weights[z, q])) == (q - z) * Fraction(float(smallest))


@settings(max_examples=50)
@given(st.integers(1, 5), st.integers(1, 6), seeds)
def test_gguf_reads_q4_1_blocks_to_the_same_weights(rows: int, blocks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    d, m = (finite_bits(rng, (rows, blocks), dtypes.f16) for _ in range(2))
    quants = rng.integers(0, 256, (rows, blocks, 16), dtype=np.uint8)
    raw = np.concatenate([d[..., None].view(np.uint8), m[..., None].view(np.uint8), quants], axis=2)
    expected = gguf.quants.dequantize(raw.reshape(rows, -1), gguf.GGMLQuantizationType.Q4_1)

    codes = np.concatenate([quants & 15, quants >> 4], axis=2).reshape(rows, 32 * blocks)
    weights = pack(codes, d, m, Format("u4", group=32, zero="offset")).dequantize()
    # gguf computes d * q + m in float32, where d * q is exact (11 + 4 bits): its one rounding is that of our exact sum
    np.testing.assert_array_equal(weights.astype(np.float32), expected)


@pytest.mark.parametrize("fmt", [Format("u4", 32, "int"), Format("i4", 32, "int")], ids=str)
@pytest.mark.parametrize("name", ["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"])
def test_codes_and_zeros_may_have_any_integer_dtype(fmt: Format, name: str) -> None:
    codes, scales, zeros = random_parts(fmt, 3, 64, seed=4)
    assert zeros is not None
    codes, zeros = np.abs(codes % 8).astype(np.int8), np.abs(zeros % 8).astype(np.int8)
    expected = pack(codes, scales, zeros, fmt)
    wide = [part.astype(dtypes.get(name).numpy) for part in (codes, zeros)]
    assert same_bits(pack(wide[0], scales, wide[1], fmt).words, expected.words)
    assert same_bits(pack(tensor(wide[0]), tensor(scales), tensor(wide[1]), fmt).zeros, expected.zeros)


def test_pack_takes_strided_arrays_and_tensors_with_gradient() -> None:
    fmt = Format("i4", 32, "float")
    codes, scales, zeros = random_parts(fmt, 6, 64, seed=5)
    assert zeros is not None
    expected = pack(codes, scales, zeros, fmt)
    strided = pack(codes.T.copy().T, scales.T.copy().T, zeros.T.copy().T, fmt)
    with_gradient = pack(tensor(codes), tensor(scales).requires_grad_(), tensor(zeros).requires_grad_(), fmt)
    for packed in (strided, with_gradient):
        assert same_bits(packed.words, expected.words)
        assert same_bits(packed.scales, expected.scales)
        assert same_bits(packed.zeros, expected.zeros)
    assert not with_gradient.dequantize().requires_grad


def test_non_finite_scales_are_kept_and_give_non_finite_weights() -> None:
    for fmt in (fmt for fmt in SIMPLE if fmt.group == "channel"):
        codes, scales, zeros = random_parts(fmt, 3, 20, seed=6)
        scales[:, 0] = np.nan, np.inf, -np.inf
        parts = [None if part is None else tensor(part) for part in (codes, scales, zeros)]
        packed = pack(*parts, fmt)
        assert same_bits(packed.unpack()[1], scales)
        assert not packed.dequantize().isfinite().any()


def test_repr_is_one_short_line_and_nbytes_counts_padding() -> None:
    fmt = Format("u4", 128, "int")
    packed = pack(*random_parts(fmt, 17, 128, seed=7), fmt)
    assert packed.nbytes == 2 * 2 * 512 + 2 * 2 * 16 * 2
    assert repr(packed) == "PackedWeight('u4,group=128,zero=int,scale=f16', shape=(17, 128), numpy, 2176 bytes)"


def test_to_moves_every_array_and_keeps_the_rest() -> None:
    fmt = Format("u4", 128, "int")
    parts = [tensor(part) for part in random_parts(fmt, 17, 128, seed=8) if part is not None]
    packed = pack(*parts, fmt)
    moved = packed.to("meta")
    assert {array.device.type for array in (moved.words, moved.scales, moved.zeros)} == {"meta"}
    assert (moved.format, moved.shape) == (packed.format, packed.shape)
    assert same_bits(packed.to(torch.device("cpu")).words, packed.words)
    assert pack(parts[0], parts[1], None, Format("u4")).to("meta").zeros is None


# Errors. Each case changes one thing of a call that works: u4, group 32, zero="int", 3 x 64.

FMT = Format("u4", 32, "int")
CODES, SCALES_, ZEROS_ = np.ones((3, 64), np.int32), np.ones((3, 2), np.float16), np.ones((3, 2), np.int8)


def with_value(array: np.ndarray, at: tuple[int, int], value: int) -> np.ndarray:
    changed = array.copy()
    changed[at] = value
    return changed


ERRORS = {
    "codes of three dimensions": ("SHAPE_MISMATCH", r"\(3, 64, 1\).*out_features", {"codes": CODES[..., None]}),
    "too few scales": ("SHAPE_MISMATCH", r"scales.*\(3, 1\).*\(3, 2\)", {"scales": SCALES_[:, :1]}),
    "transposed scales": ("SHAPE_MISMATCH", r"scales.*\(2, 3\).*\(3, 2\)", {"scales": SCALES_.T}),
    "flat scales": ("SHAPE_MISMATCH", r"scales.*\(6,\).*\(3, 2\)", {"scales": SCALES_.ravel()}),
    "zeros unlike scales": ("SHAPE_MISMATCH", r"zeros.*\(2, 2\).*\(3, 2\)", {"zeros": ZEROS_[:2]}),
    "scales per group for a tensor": (
        "SHAPE_MISMATCH",
        r"scales.*\(3, 2\).*\(1, 1\)",
        {"fmt": Format("u4", "tensor", "int")},
    ),
    "a group that does not divide": ("GROUP_INDIVISIBLE", "64.*128", {"fmt": Format("u4", 128, "int")}),
    "a code too large": (
        "CODES_OUT_OF_RANGE",
        r"codes\[2, 5\] is 16.*0 \.\. 15",
        {"codes": with_value(CODES, (2, 5), 16)},
    ),
    "a negative code": ("CODES_OUT_OF_RANGE", r"codes\[0, 63\] is -1", {"codes": with_value(CODES, (0, 63), -1)}),
    "a code too small for i4": (
        "CODES_OUT_OF_RANGE",
        r"is -9.*-8 \.\. 7",
        {"codes": with_value(CODES, (0, 0), -9), "fmt": Format("i4", 32, "int")},
    ),
    "an unsigned code that would wrap": (
        "CODES_OUT_OF_RANGE",
        f"is {2**64 - 1}",
        {"codes": np.full((3, 64), 2**64 - 1, np.uint64), "fmt": Format("i4", 32, "int")},
    ),
    "a zero point too large": ("CODES_OUT_OF_RANGE", r"zeros\[1, 0\] is 16", {"zeros": with_value(ZEROS_, (1, 0), 16)}),
    "float codes": ("DTYPE_MISMATCH", "codes are f32", {"codes": CODES.astype(np.float32)}),
    "boolean codes": ("DTYPE_MISMATCH", "codes are bool", {"codes": CODES.astype(bool)}),
    "float zeros for int": ("DTYPE_MISMATCH", "zeros are f16", {"zeros": SCALES_}),
    "int zeros for float": ("DTYPE_MISMATCH", "zeros are i8.*f16", {"fmt": Format("u4", 32, "float")}),
    "bf16 zeros beside f16 scales": (
        "DTYPE_MISMATCH",
        "zeros are bf16.*f16",
        {"fmt": Format("u4", 32, "offset"), "zeros": SCALES_.astype(ml_dtypes.bfloat16)},
    ),
    "f32 scales for f16": ("DTYPE_MISMATCH", "scales are f32.*f16", {"scales": SCALES_.astype(np.float32)}),
    "integer scales": ("DTYPE_MISMATCH", "scales are i8.*f16", {"scales": ZEROS_}),
    "no zeros": ("ARGUMENT_INVALID", "zeros are None", {"zeros": None}),
    "zeros without a zero kind": ("ARGUMENT_INVALID", "zeros were given", {"fmt": Format("u4", 32)}),
}


@pytest.mark.parametrize("library", [np.asarray, tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("case", ERRORS)
def test_pack_refuses(case: str, library: Any) -> None:
    code, named, change = ERRORS[case]
    call = {"codes": CODES, "scales": SCALES_, "zeros": ZEROS_, "fmt": FMT} | change
    call = {name: library(value) if isinstance(value, np.ndarray) else value for name, value in call.items()}
    with pytest.raises(LowbitvmError, match=f"^{code}: .*{named}"):
        pack(**call)


@pytest.mark.parametrize(
    ("scales", "where"),
    [(tensor(SCALES_), "codes on numpy, scales on cpu"), (tensor(SCALES_).to("meta"), "scales on meta")],
    ids=["torch", "meta"],
)
def test_arrays_of_one_weight_must_share_a_device(scales: torch.Tensor, where: str) -> None:
    with pytest.raises(LowbitvmError, match=f"^DEVICE_MISMATCH: .*{where}, zeros on numpy"):
        pack(CODES, scales, ZEROS_, FMT)


def test_lists_are_refused() -> None:
    with pytest.raises(LowbitvmError, match=r"^DTYPE_MISMATCH: .*list"):
        pack([[1]], SCALES_, ZEROS_, FMT)


@pytest.mark.parametrize("fmt", ["u4,group=channel", "u4,group=channel,act=i8"])
@pytest.mark.parametrize("make", [lambda x: x.to("meta"), lambda x: x.to_sparse()], ids=["meta", "sparse"])
def test_tensors_without_an_element_for_each_index_are_refused(fmt: str, make: Callable[..., Any]) -> None:
    codes, scales = torch.ones(8, 32, dtype=torch.int8), torch.ones(8, 1, dtype=torch.float16)
    for refused in (lambda: pack(make(codes), make(scales), None, fmt), lambda: quantize(make(scales), fmt)):
        with pytest.raises(LowbitvmError, match=r"^ARGUMENT_INVALID: .*which has not one element"):
            refused()


@pytest.mark.parametrize("fmt", ["u4,group=channel", "u4,group=channel,act=i8"])
def test_codes_and_scales_that_are_no_arrays_are_refused(fmt: str) -> None:
    codes, scales = np.ones((8, 32), np.int8), np.ones((8, 1), np.float16)
    for parts in ((None, scales), (codes.tolist(), scales), (codes, scales.tolist())):
        with pytest.raises(LowbitvmError, match=r"^DTYPE_MISMATCH: a (NoneType|list) is neither"):
            pack(*parts, None, fmt)
    with pytest.raises(LowbitvmError, match=r"^DEVICE_MISMATCH: .*codes on cpu, scales on numpy"):
        pack(torch.from_numpy(codes), scales, None, fmt)
    if "act" not in fmt:
        with pytest.raises(LowbitvmError, match=r"^DTYPE_MISMATCH: a NoneType is neither"):
            pack(codes, None, None, fmt)


def test_stored_arrays_that_do_not_fit_are_refused() -> None:
    packed = pack(CODES, SCALES_, ZEROS_, FMT)

    def rebuilt(**change: Any) -> PackedWeight:
        parts = {
            "words": packed.words,
            "scales": packed.scales,
            "zeros": packed.zeros,
            "format": FMT,
            "out_features": 3,
            "in_features": 64,
        }
        return PackedWeight(**(parts | change))

    assert same_bits(rebuilt().dequantize(), packed.dequantize())
    for code, named, change in (
        ("SHAPE_MISMATCH", "stored words.*(1, 1, 128).*(2, 1, 128)", {"out_features": 17}),
        ("SHAPE_MISMATCH", "stored scales.*(2, 1, 8, 2).*(1, 1, 8, 2)", {"in_features": 32}),
        ("GROUP_INDIVISIBLE", "63", {"in_features": 63}),
        ("DTYPE_MISMATCH", "stored words are i32", {"words": packed.words.view(np.int32)}),
        ("DTYPE_MISMATCH", "stored zeros are i16", {"zeros": packed.zeros.view(np.int16)}),
        ("DTYPE_MISMATCH", "stored scales are f16, the format takes f32", {"format": Format("u4", 32, "int", "f32")}),
        ("TENSOR_NOT_CONTIGUOUS", "stored words", {"words": np.repeat(packed.words, 2, 2)[:, :, ::2]}),
        ("DEVICE_MISMATCH", "scales on cpu", {"scales": tensor(packed.scales)}),
        ("ARGUMENT_INVALID", "zeros are None", {"zeros": None}),
    ):
        with pytest.raises(LowbitvmError, match=f"^{code}: ") as caught:
            rebuilt(**change)
        assert re.search(re.escape(named).replace(r"\.\*", ".*"), caught.value.problem)
    as_tensors = pack(tensor(CODES), tensor(SCALES_), tensor(ZEROS_), FMT)
    transposed = torch.cat([as_tensors.words, as_tensors.words], 2)[:, :, ::2]
    with pytest.raises(LowbitvmError, match=r"^TENSOR_NOT_CONTIGUOUS: stored words"):
        PackedWeight(transposed, as_tensors.scales, as_tensors.zeros, FMT, 3, 64)


def test_moving_where_no_device_is_is_refused() -> None:
    packed = pack(CODES, SCALES_, ZEROS_, FMT)
    with pytest.raises(LowbitvmError, match=r"^DEVICE_MISMATCH: .*numpy"):
        packed.to("cpu")
    as_tensors = pack(tensor(CODES), tensor(SCALES_), tensor(ZEROS_), FMT)
    with pytest.raises(LowbitvmError, match=r"^DEVICE_UNAVAILABLE: .*cuda:99"):
        as_tensors.to("cuda:99")


def test_a_format_may_be_given_as_text() -> None:
    weight = np.linspace(-1, 1, 16 * 64, dtype=np.float32).reshape(16, 64)
    text, fmt = "u4,group=32,zero=int", Format("u4", 32, "int")
    assert np.array_equal(quantize(weight, text).words, quantize(weight, fmt).words)
    with pytest.raises(LowbitvmError, match="FORMAT_INVALID"):
        quantize(weight, 4)  # type: ignore[arg-type]


def test_digits_move_as_other_weights_do() -> None:
    packed = quantize(np.ones((8, 32), np.float32), "i4,group=channel,act=i8")
    with pytest.raises(LowbitvmError, match=r"^DEVICE_MISMATCH: .*numpy"):
        packed.to("cpu")
    packed = quantize(torch.ones(8, 32), "i4,group=channel,act=i8")
    assert packed.to("cpu").words.equal(packed.words)
    for device in ("cuda:99", None, "nowhere"):
        with pytest.raises(LowbitvmError, match=r"^DEVICE_UNAVAILABLE"):
            packed.to(device)


def test_a_device_that_is_none_is_refused() -> None:
    weight = quantize(torch.ones(16, 64), Format("i4", "channel"))
    with pytest.raises(LowbitvmError, match="DEVICE_UNAVAILABLE"):
        weight.to("junk")


# Codebooks, second levels, permutations


def exactly(fmt: Format, given: dict[str, Any], n: int, k: int, columns: int) -> Fraction:
    """What a code stands for, from the definition of the format."""
    group = fmt.group if isinstance(fmt.group, int) else columns
    row, at = 0 if fmt.group == "tensor" else n, k // group
    q = int(given["codes"][n, k if given["permutation"] is None else given["permutation"][k]])
    if fmt.table is None:
        assert fmt.code.values is not None
        value = fmt.code.values[fmt.code.stored(q)]
    else:
        index = {"tensor": (0,), "block": (n // 16,), "group": (row, at)}[fmt.table]
        value = given["table"][index][q]

    def level(name: str) -> Fraction:
        if given[name] is None:
            return Fraction(1)
        block = (0, 0) if fmt.outer == "tensor" else (n, k // 256)
        return Fraction(float(given[name][block]))

    s = Fraction(float(given["scales"][row, at].astype(np.float64))) * level("outer")
    z = None if given["zeros"] is None else Fraction(float(given["zeros"][row, at].astype(np.float64)))
    if fmt.zero == "offset":
        assert z is not None
        return Fraction(float(value)) * s + z * level("outer_zeros")
    return (Fraction(float(value)) - (z or 0)) * s


@settings(max_examples=200)
@given(formats, st.integers(1, 20), st.booleans(), seeds)
def test_dequantize_is_the_float64_nearest_to_the_definition(fmt: Format, n: int, permuted: bool, seed: int) -> None:
    given = random_arguments(fmt, n, 256, seed, permuted)
    weights = pack(**given).dequantize()
    rng = np.random.default_rng(seed)
    for row, k in zip(rng.integers(0, n, 40).tolist(), rng.integers(0, 256, 40).tolist(), strict=True):
        exact = exactly(fmt, given, row, k, 256)
        got = float(weights[row, k if not permuted else given["permutation"][k]])
        assert got == float(exact)
        assert Fraction(got) == exact or fmt.zero in ("float", "offset")


def test_columns_stand_in_groups_by_the_permutation() -> None:
    # GPTQ: the scale of column k is that of group g_idx[k]
    rng = np.random.default_rng(0)
    g_idx = rng.permutation(np.repeat(np.arange(4), 64))
    codes, scales = rng.integers(0, 16, (8, 256)), rng.integers(1, 9, (8, 4)).astype(np.float16)
    weight = pack(codes, scales, None, Format("u4", 64), permutation=np.argsort(g_idx, kind="stable"))
    np.testing.assert_array_equal(weight.dequantize(), codes * scales[:, g_idx].astype(np.float32))


@given(formats, st.integers(1, 20), seeds)
def test_a_scale_of_the_activations_by_powers_of_two_is_folded_exactly(fmt: Format, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    given = random_arguments(fmt, n, 256, seed)
    for name in ("scales", "zeros", "outer_zeros"):  # numbers that a power of two keeps in every dtype
        if given[name] is not None and not (name == "zeros" and fmt.zero == "int"):
            given[name] = (2.0 ** rng.integers(2, 4, given[name].shape)).astype(given[name].dtype)
    groups = given["scales"].shape[1]
    factor = (2.0 ** rng.integers(-2, 3, groups)).repeat(256 // groups).astype(np.float32)
    plain = pack(**given).dequantize()
    for arguments in (given | {"input_scale": factor}, tensors(given | {"input_scale": factor})):
        np.testing.assert_array_equal(np.asarray(pack(**arguments).dequantize()), plain * factor)


NVFP4, K_QUANT = Format.parse("nvfp4"), Format("u4", 32, "offset", "i8", 256)
MORE_ERRORS: dict[str, tuple[str, str, Format, dict[str, Any]]] = {
    "no second level": ("ARGUMENT_INVALID", "outer are None", NVFP4, {"outer": None}),
    "no second level of offsets": ("ARGUMENT_INVALID", "outer_zeros are None", K_QUANT, {"outer_zeros": None}),
    "a second level too many": ("ARGUMENT_INVALID", "outer were given", FMT, {"outer": np.ones((1, 1), np.float32)}),
    "a second level of another shape": ("SHAPE_MISMATCH", r"outer.*\(3, 1\)", NVFP4, {"outer": np.ones((3, 1), "f4")}),
    "a second level in f16": ("DTYPE_MISMATCH", "outer are f16.*f32", NVFP4, {"outer": np.ones((1, 1), "f2")}),
    "no table": ("ARGUMENT_INVALID", "table are None", Format("c3", table="block"), {"table": None}),
    "a table for fixed values": ("ARGUMENT_INVALID", "table were given", FMT, {"table": np.ones((1, 16), "f2")}),
    "a table of another size": (
        "SHAPE_MISMATCH",
        r"table.*\(1, 16\), not \(1, 8\)",
        Format("c3", table="tensor"),
        {"table": np.ones((1, 16), "f2")},
    ),
    "a table in f32": ("DTYPE_MISMATCH", "f32.*f16", Format("c1", table="tensor"), {"table": np.ones((1, 2), "f4")}),
    "a permutation with a number twice": (
        "ARGUMENT_INVALID",
        r"0 \.\. 255 once",
        FMT,
        {"permutation": np.arange(256) // 2},
    ),
    "a short permutation": ("SHAPE_MISMATCH", r"\(4,\), not \(256,\)", FMT, {"permutation": np.arange(4)}),
    "a permutation of floats": ("DTYPE_MISMATCH", "permutation", FMT, {"permutation": np.arange(256.0)}),
    "an even bipolar code": (
        "CODES_OUT_OF_RANGE",
        r"codes\[0, 0\] is 2.*-7 \.\. 7, every 2nd",
        Format("bp3"),
        {"codes": np.full((3, 256), 2)},
    ),
    "a NaN in e4m3": (
        "CODES_OUT_OF_RANGE",
        r"codes\[2, 7\] is 255, e4m3 has 0 \.\. 255 but for its NaN and infinities, from 127 on",
        Format("e4m3"),
        {"codes": with_value(np.zeros((3, 256), np.uint8), (2, 7), 255)},
    ),
    "an infinity in e5m2": (
        "CODES_OUT_OF_RANGE",
        r"is 124.*from 124 on",
        Format("e5m2"),
        {"codes": with_value(np.zeros((3, 256), np.uint8), (2, 7), 124)},
    ),
    "a third pattern of ternary": (
        "CODES_OUT_OF_RANGE",
        r"is 2.*-1 \.\. 1",
        Format("ternary"),
        {"codes": np.full((3, 256), 2)},
    ),
    "an input_scale that differs in a group": (
        "ARGUMENT_INVALID",
        "differs within a group.*quantize",
        FMT,
        {"input_scale": np.arange(1, 257).astype(np.float32)},
    ),
    "an input_scale whose products the scale cannot hold": (
        "ARGUMENT_INVALID",
        "not exact in f16",
        FMT,
        {"input_scale": np.full(256, 1.1, np.float32)},
    ),
    "an input_scale in f64": ("DTYPE_MISMATCH", "input_scale is f64", FMT, {"input_scale": np.ones(256)}),
    "an input_scale of another length": ("SHAPE_MISMATCH", "input_scale", FMT, {"input_scale": np.ones(3, "f4")}),
}


@pytest.mark.parametrize("convert", [dict, tensors], ids=["numpy", "torch"])
@pytest.mark.parametrize("case", MORE_ERRORS)
def test_pack_refuses_parts_that_do_not_fit(case: str, convert: Callable[..., dict[str, Any]]) -> None:
    code, named, fmt, change = MORE_ERRORS[case]
    given = random_arguments(fmt, 3, 256, seed=1)
    if fmt.scale == "f16":
        given["scales"] = np.full_like(given["scales"], 1.5)
    pack(**convert(given))
    with pytest.raises(LowbitvmError, match=f"^{code}: .*{named}"):
        pack(**convert(given | change))
