"""Other projects' packings: what their own code packed, the laws of the algebra, and round trips both ways."""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import foreign
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.foreign import Foreign
from lowbitvm.foreign.bits import Packing
from lowbitvm.formats import GROUPS
from lowbitvm.layout import Layout

GOLDEN = Path(__file__).parent / "golden" / "foreign.npz"  # made by tests/foreign_golden.py


@functools.cache
def golden_cases() -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {}
    with np.load(GOLDEN) as arrays:
        for key in arrays.files:
            case, name = key.split("/", 1)
            cases.setdefault(case, {})[name] = arrays[key]
    return cases


# What the names of cases do not say: the packing's name, and options for reading and writing.
READING: dict[str, dict[str, Any]] = {
    "awq_gemv": {"group": 64},
    "awq_gemv_fast": {"group": 128},
    **{f"hqq_{bits}": {"bits": bits, "shape": (8, 64)} for bits in (1, 2, 3, 4, 8)},
    **{f"bitnet_{rows}": {"out_features": rows} for rows in (16, 18)},
    **{
        f"compressed_tensors_{kind}_{bits}": {"bits": bits, "dense": kind == "dense"}
        for bits in range(2, 9)
        for kind in ("dense", "words")
    },
}
WRITING = {case: {"dense": options["dense"]} for case, options in READING.items() if "dense" in options}
# Tensors that the case's maker left out because the library does not make them.
ADDED: dict[str, dict[str, Any]] = {
    "bitnet": {"weight_scale": np.array([3], np.float32)},
    "fp6_llm_prepacked": {"scales": np.ones(64, np.float16)},
    "compressed_tensors_mxfp4": {"weight_scale": np.full((5, 2), 127, np.uint8)},
    "compressed_tensors_mxfp6": {"weight_scale": np.full((5, 2), 127, np.uint8)},
    "any_precision": {"lut3": np.linspace(-1, 1, 24, dtype=np.float16).reshape(3, 8)},
}
PREFIXES = ("gptq_v2", "gptq_p", "gptq", "compressed_tensors", "hqq", "any_precision", "bitnet")


def packing_of(case: str) -> str:
    if case == "bitsandbytes_nested":
        return "bitsandbytes_nf4"
    return case if case in foreign.NAMES else next(name for name in PREFIXES if case.startswith(name))


def golden_tensors(case: str) -> dict[str, Any]:
    tensors = {name[7:]: array for name, array in golden_cases()[case].items() if name.startswith("tensor/")}
    if case == "nvfp4":
        tensors["weight_scale"] = tensors["weight_scale"].view(ml_dtypes.float8_e4m3fn)
    return tensors | ADDED.get(packing_of(case), {})


def as_torch(array: Any) -> Any:
    if array.dtype.kind == "V" or "float8" in array.dtype.name or "bfloat16" in array.dtype.name:
        native = getattr(torch, array.dtype.name)
        return torch.from_numpy(array.view(f"u{array.dtype.itemsize}").copy()).view(native)
    return torch.from_numpy(array.copy())


def as_numpy(array: Any) -> Any:
    if not isinstance(array, torch.Tensor):
        return array
    if array.dtype in (torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.bfloat16):
        kind = torch.uint8 if array.dtype.itemsize == 1 else torch.int16
        return array.view(kind).numpy().view(getattr(ml_dtypes, str(array.dtype)[6:]))
    return array.numpy()


def assert_same_bits(left: Any, right: Any) -> None:
    left, right = as_numpy(left), as_numpy(right)
    assert left.dtype == right.dtype and left.shape == right.shape
    assert left.tobytes() == right.tobytes()


def decoded(weight: Foreign) -> Any:
    """The weights in float32, in the order of operations that the libraries have."""
    code = CODE_TYPES[weight.code]
    table = weight.extra.get("quant_map", code.values)
    values = weight.codes if code.is_linear else table[weight.codes]
    columns = weight.shape[1] // weight.scales.shape[1]

    def spread(array: Any, outer: Any) -> Any:
        single = array.astype(np.float32)
        if outer is not None:
            single = single * np.repeat(outer, array.shape[1] // outer.shape[1], axis=1)
        return np.repeat(single, columns, axis=1)

    values, scales = values.astype(np.float32), spread(weight.scales, weight.outer)
    if weight.zeros is None:
        return values * scales
    zeros = spread(weight.zeros, weight.outer_zeros)
    return values * scales + zeros if weight.zero == "offset" else (values - zeros) * scales


# -- what others packed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(golden_cases()))
def test_what_another_library_packed_unpacks_to_what_went_in(case: str) -> None:
    known = golden_cases()[case]
    weight = foreign.unpack(packing_of(case), golden_tensors(case), **READING.get(case, {}))
    for name in ("codes", "scales", "g_idx"):
        if name in known:
            assert np.array_equal(getattr(weight, name), known[name])
    if "zeros" in known:
        zeros = known["zeros"]
        if case == "awq_gemv_fast":  # it stores what is added
            zeros = (-(known["scales"] * zeros.astype(np.float32))).astype(np.float16)
        assert np.array_equal(weight.zeros, zeros)
    if "weight" in known:
        assert np.array_equal(decoded(weight), known["weight"])
    assert {"codes", "weight", "scales"} & set(known)


@pytest.mark.parametrize("library", [np.array, as_torch])
@pytest.mark.parametrize("case", sorted(golden_cases()))
def test_what_another_library_packed_is_packed_again_bit_for_bit(case: str, library: Any) -> None:
    tensors = {name: library(array) for name, array in golden_tensors(case).items()}
    weight = foreign.unpack(packing_of(case), tensors, **READING.get(case, {}))
    again = foreign.pack(packing_of(case), weight, **WRITING.get(case, {}))
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        assert_same_bits(again[name], tensor)


@pytest.mark.parametrize(
    "case", [case for case in sorted(golden_cases()) if not case.startswith("compressed_tensors_")]
)
def test_a_packed_weight_multiplies_as_what_another_library_packed(case: str) -> None:
    options = READING.get(case, {})
    weight = foreign.unpack(packing_of(case), golden_tensors(case), **options)
    packed = lb.from_foreign(packing_of(case), golden_tensors(case), **options)
    exact = as_numpy(packed.dequantize()).astype(np.float64)
    if weight.g_idx is not None:
        order = np.argsort(weight.g_idx, kind="stable")
        weight, exact = replace(weight, codes=weight.codes[:, order], g_idx=None), exact[:, order]
    if weight.table is not None and weight.tables == "group":
        assert np.array_equal(exact, np.take_along_axis(weight.table[:, 0], weight.codes.astype(int), axis=1))
        return
    # `decoded` rounds to float32 three times at most; codebooks are f16 in a PackedWeight, with 11 bits
    relative = 2.0**-11 if "quant_map" in weight.extra else 0.0
    zeros = 0 if weight.zeros is None else abs(weight.zeros.astype(np.float64)).max()
    largest = abs(weight.scales.astype(np.float64)).max() * (2.0 ** CODE_TYPES[weight.code].bits + zeros) + zeros
    bound = relative * abs(exact) + 3 * 2.0**-24 * largest
    assert (abs(exact - decoded(weight)) <= bound).all()


GGUF_TYPES = [name for name in foreign.NAMES if name.startswith("gguf_")]


def gguf_rows(name: str, rows: int, blocks: int, random: np.random.Generator) -> Any:
    """Random records; of scales only those that the library and the format read alike."""
    kind = gguf.GGMLQuantizationType[name[5:].replace("_k", "_K").upper()]
    _, size = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    halves = {"q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,), "tq2_0": (64,)}
    pairs = ("q4_1", "q5_1", "q4_k", "q5_k")
    for at in halves.get(name[5:], (0, 2) if name[5:] in pairs else (0,) if "fp4" not in name else ()):
        data[..., at : at + 2] = random.normal(size=(rows, blocks, 1)).astype(np.float16).view(np.uint8)
    if name == "gguf_tq2_0":  # three of the four patterns of a pair of bits
        data[..., :64] = (random.integers(0, 3, (rows, blocks, 64, 4)) << np.array([0, 2, 4, 6])).sum(-1)
    elif name == "gguf_mxfp4":  # 255 is NaN in the format, a power of two in ggml
        data[..., 0] %= 255
    elif name == "gguf_nvfp4":  # ggml reads the sign as nothing, and 127 as 0
        data[..., :4] %= 127
    return data.reshape(rows, blocks * size), kind


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_gguf_blocks_decode_as_the_library_gguf_decodes_them(name: str) -> None:
    data, kind = gguf_rows(name, 3, 4, np.random.default_rng(3))
    weight = foreign.unpack(name, {"data": data})
    assert np.array_equal(decoded(weight), gguf.dequantize(data, kind))
    assert_same_bits(foreign.pack(name, weight)["data"], data)


@pytest.mark.parametrize("library", [np.array, as_torch])
@pytest.mark.parametrize("name", GGUF_TYPES)
def test_a_packed_weight_from_gguf_has_the_same_weights_and_goes_back(name: str, library: Any) -> None:
    data, kind = gguf_rows(name, 20, 2, np.random.default_rng(4))
    weight = lb.from_foreign(name, {"data": library(data)})
    exact = as_numpy(weight.dequantize()).astype(np.float64)
    # the library's float32 rounds the product and the sum once each
    bound = 2.0**-23 * np.abs(exact).max(axis=1, keepdims=True) * 4 + 2.0**-149
    assert (np.abs(exact - gguf.dequantize(data, kind)) <= bound).all()
    assert_same_bits(lb.to_foreign(weight, name)["data"], data)


# -- the algebra -------------------------------------------------------------------------------------------------------

PACKINGS = (  # the packing, and multiples of which the code's shape must be
    (Packing("[s c b:4] n -> n (s c) b", 32, c=8), (1, 1)),
    (Packing("[s c:32 b:3] n -> n (s c) b", 32), (1, 1)),
    (Packing("n [s c:16 b:6] -> n (s c) b", 32), (1, 1)),
    (Packing("k [s h:2 j:4 b:4] -> (s j h) k b", 32), (1, 1)),
    (Packing("[s +2 ~i:10 b:3] m -> (i s) m b", 32), (1, 1)),
    (Packing("[s i:4 b:2] k -> (i s) k b"), (1, 1)),
    (Packing("n [s c:4 ~b:6] -> n (s c) b", descending=True), (1, 1)),
    (Packing("n [k i:4 h:2 y:4 z:2 x:4 b:4] -> (n i) (k h x y z) b", 16), (4, 1)),
    (Packing("n k [j:16 h:2 b:4] -> n (k h j) b"), (1, 32)),
    (Packing("n k [h:2 j:16 b:1] -> n (k h j) b"), (1, 32)),
    (Packing("n k [a:2 m:2 l:32 h:2 b:4] -> n (k a h m l) b"), (1, 256)),
    (Packing("n k [j:4 b:2 +6] -> n (k j) b"), (1, 4)),
    (Packing("n k [j:4 +2 b:6] -> n (k j) b"), (1, 4)),
    (Packing("~b:3 n [w t:32 ~o:4 ~c:8] -> n (w o t c) b", 32), (1, 1)),
)


@pytest.mark.parametrize(("packing", "multiples"), PACKINGS, ids=lambda value: getattr(value, "pattern", ""))
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(0, 5), columns=st.integers(0, 41), seed=st.integers(0, 99))
def test_packing_puts_every_bit_where_the_description_says(
    packing: Packing, multiples: tuple[int, int], rows: int, columns: int, seed: int
) -> None:
    shape = rows * multiples[0], columns % 3 * multiples[1] if multiples[1] > 4 else columns * multiples[1]
    codes = np.random.default_rng(seed).integers(0, 1 << packing.bits, shape).astype(np.uint8)
    places = packing.positions(shape)
    assert len(np.unique(places)) == places.size  # no two bits in one place
    stored = packing.pack(codes)
    padded = np.zeros(places.shape[:-1], np.uint8)
    padded[: shape[0], : shape[1]] = codes
    bits = np.zeros(8 * stored.nbytes, np.uint8)
    bits[places] = padded[..., None] >> np.arange(packing.bits) & 1
    assert np.packbits(bits, bitorder="little").tobytes() == stored.tobytes()
    unpacked = packing.unpack(stored)
    assert np.array_equal(unpacked[: shape[0], : shape[1]], codes)
    assert not unpacked[shape[0] :].any() and not unpacked[:, shape[1] :].any()
    words = packing.pack(torch.from_numpy(codes))
    assert words.numpy().tobytes() == stored.tobytes()
    assert np.array_equal(packing.unpack(words).numpy(), unpacked)


@pytest.mark.parametrize(
    "packing",
    [packing for packing, _ in PACKINGS if packing.bits in (1, 2, 4) and "+" not in packing.pattern],
    ids=lambda packing: packing.pattern,
)
def test_a_packing_of_powers_of_two_is_a_layout(packing: Packing) -> None:
    places = packing.positions((8, 1024))
    if packing.pattern.startswith("~b:3"):
        places = places[..., :1]  # three planes are no power of two
    bits = {name: int(math.log2(size)) for name, size in zip("nkb", places.shape, strict=True)}
    origin = places[0, 0, 0]  # an axis that runs backwards adds a constant
    total = {"place": sum(bits.values())}
    assert Layout.from_function(lambda n, k, b: {"place": places[n, k, b] ^ origin}, bits, total).is_bijective


@pytest.mark.parametrize(("bits", "per_word"), [(3, 32), (5, 32), (6, 16), (7, 32), (4, 8)])
@pytest.mark.parametrize("pattern", ["[s c b] n -> n (s c) b", "n [s c b] -> n (s c) b"])
def test_a_trimmed_stream_is_the_whole_one_up_to_its_last_bit(pattern: str, bits: int, per_word: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 43)).astype(np.uint8)
    whole = Packing(pattern, 32, b=bits, c=per_word).pack(codes)
    trimmed = Packing(pattern, 32, trimmed=True, b=bits, c=per_word)
    words = -(-43 * bits // 32)
    kept = whole[:words] if pattern[0] == "[" else whole[:, :words]
    assert_same_bits(trimmed.pack(codes), kept.copy())
    assert np.array_equal(trimmed.unpack(kept)[:, :43], codes)


# -- round trips -------------------------------------------------------------------------------------------------------

HALF = (np.float16, ml_dtypes.bfloat16, np.float32)


@dataclass(frozen=True)
class Case:
    """How to draw a weight that a packing can hold."""

    codes: list[str]
    zero: str | None
    groups: list[int]
    multiples: tuple[int, int] = (1, 1)  # of N and of K / group
    scales: tuple[Any, ...] = HALF
    read: Callable[[Foreign], dict[str, Any]] = lambda weight: {}
    write: dict[str, Any] = field(default_factory=dict)
    zeros_optional: bool = False
    act_order: bool = False


def group_of(weight: Foreign) -> dict[str, Any]:
    return {"group": weight.shape[1] // weight.scales.shape[1]}


def bits_and_shape(weight: Foreign) -> dict[str, Any]:
    return {"bits": CODE_TYPES[weight.code].bits, "shape": weight.shape}


def blocks_and_shape(weight: Foreign) -> dict[str, Any]:
    return {"blocksize": weight.shape[1] // weight.scales.shape[1], "shape": weight.shape}


def bits_of(weight: Foreign) -> dict[str, Any]:
    return {"bits": CODE_TYPES[weight.code].bits}


E8M0, E4M3 = (ml_dtypes.float8_e8m0fnu,), (ml_dtypes.float8_e4m3fn,)
NARROW = [f"u{bits}" for bits in (2, 3, 4, 8)]
SIGNED = [f"i{bits}" for bits in range(2, 9)]
CASES: dict[str, Case] = {
    "gptq": Case(NARROW, "int", [8, 24, 32, 40], read=bits_of, act_order=True),
    "gptq_v2": Case(NARROW, "int", [8, 24, 32, 40], read=bits_of, act_order=True),
    "gptq_p": Case([f"u{bits}" for bits in range(2, 9)], "int", [32, 64], (32, 1), read=bits_of, act_order=True),
    "awq": Case(["u4"], "int", [16, 64], (8, 1)),
    "awq_gemv": Case(["u4"], "int", [32, 64, 128], read=group_of),
    "awq_gemv_fast": Case(["u4"], "offset", [64, 128], (4, 1), read=group_of),
    "compressed_tensors": Case(
        SIGNED,
        "int",
        [10, 32, 33],
        read=lambda weight: {**bits_of(weight), "dense": True},
        zeros_optional=True,
        act_order=True,
        write={"dense": True},
    ),
    "hqq": Case([f"u{bits}" for bits in (1, 2, 3, 4, 5, 6, 8)], "float", [8, 64], (8, 1), read=bits_and_shape),
    "torchao_int4": Case(["i4"], "offset", [32, 64]),
    "mxfp4": Case(["f4e2m1"], None, [32], scales=E8M0),
    "compressed_tensors_mxfp4": Case(["f4e2m1"], None, [32], scales=E8M0),
    "compressed_tensors_mxfp6": Case(["f6e2m3"], None, [32], scales=E8M0),
    "bitsandbytes_nf4": Case(["nf4"], None, [64, 128], scales=(np.float32,), read=blocks_and_shape),
    "gguf_q4_0": Case(["i4"], None, [32], scales=(np.float16,)),
    "gguf_q4_1": Case(["u4"], "offset", [32], scales=(np.float16,)),
    "gguf_q5_0": Case(["i5"], None, [32], scales=(np.float16,)),
    "gguf_q5_1": Case(["u5"], "offset", [32], scales=(np.float16,)),
    "gguf_q8_0": Case(["i8"], None, [32], scales=(np.float16,)),
    "gguf_tq2_0": Case(["ternary"], None, [256], scales=(np.float16,)),
    "gguf_mxfp4": Case(["f4e2m1"], None, [32], scales=E8M0),
    "gguf_nvfp4": Case(["f4e2m1"], None, [16], (1, 4), scales=E4M3),
}


def finite(kind: Any, random: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Numbers of a scale's dtype, of all magnitudes."""
    if np.dtype(kind).itemsize == 1:
        return random.integers(0, 127, shape, dtype=np.uint8).view(kind)
    return np.ldexp(random.uniform(0.5, 1, shape), random.integers(-9, 9, shape)).astype(kind)


@st.composite
def weights(draw: Any, name: str) -> Foreign:
    """A weight that the packing can hold, with odd sizes wherever it allows them."""
    case, random = CASES[name], np.random.default_rng(draw(st.integers(0, 1000)))
    code = CODE_TYPES[draw(st.sampled_from(case.codes))]
    group, groups = draw(st.sampled_from(case.groups)), draw(st.integers(1, 5)) * case.multiples[1]
    rows = draw(st.integers(1, 9)) * case.multiples[0]
    shape, scales_of = (rows, group * groups), (rows, groups)
    patterns = random.integers(0, code.used or 1 << code.bits, shape)
    codes = code.codes(patterns).astype(np.int8 if code.low < 0 else np.uint8)
    kind = draw(st.sampled_from(case.scales))
    zeros: Any = None
    if case.zero is not None and not (case.zeros_optional and draw(st.booleans())):
        zeros = finite(kind, random, scales_of)
        if case.zero == "int":
            zeros = random.integers(code.low, code.high + 1, scales_of).astype(codes.dtype)
    order = random.permutation(group * groups) // group if case.act_order and draw(st.booleans()) else None
    g_idx = None if order is None or (np.diff(order) >= 0).all() else order.astype(np.int32)
    zero = case.zero if zeros is not None else None
    return Foreign(codes, finite(kind, random, scales_of), code.name, zeros, zero, g_idx=g_idx)


def assert_same_weight(left: Foreign, right: Foreign) -> None:
    assert (left.code, left.zero, left.format) == (right.code, right.zero, right.format)
    for name in ("codes", "scales", "zeros", "outer", "outer_zeros", "table", "g_idx"):
        one, other = getattr(left, name), getattr(right, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert_same_bits(one, other)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_packing_and_unpacking_are_inverse(name: str, data: Any) -> None:
    weight: Foreign = data.draw(weights(name))
    options = CASES[name].read(weight)
    tensors = foreign.pack(name, weight)
    assert_same_weight(foreign.unpack(name, tensors, **options), weight)
    there = {tensor: as_torch(array) for tensor, array in tensors.items()}
    back = foreign.pack(name, foreign.unpack(name, there, **options))
    for tensor, array in tensors.items():
        assert_same_bits(back[tensor], array)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_packed_weight_goes_there_and_back(name: str, data: Any) -> None:
    weight: Foreign = data.draw(weights(name))
    options = CASES[name].read(weight)
    tensors = foreign.pack(name, weight)
    if weight.group not in GROUPS:
        with pytest.raises(lb.LowbitvmError) as refused:
            lb.from_foreign(name, tensors, **options)
        assert refused.value.code in ("FORMAT_INVALID", "FORMAT_UNSUPPORTED")
        return
    packed = lb.from_foreign(name, tensors, **options)
    assert str(packed.format) == weight.format and packed.shape == weight.shape
    for tensor, array in lb.to_foreign(packed, name).items():
        assert_same_bits(array, tensors[tensor])


# -- what single packings promise --------------------------------------------------------------------------------------


def test_the_tables_of_bitsandbytes_are_those_of_its_checkpoints() -> None:
    for kind in ("nf4", "fp4"):
        known = golden_cases()[f"bitsandbytes_{kind}"]["tensor/quant_map"]
        assert np.array_equal(foreign.floats.QUANT_MAPS[kind], known)


def test_act_order_reaches_the_weights() -> None:
    random = np.random.default_rng(5)
    codes, zeros = random.integers(0, 16, (8, 96)), random.integers(0, 16, (8, 3))
    scales = finite(np.float16, random, (8, 3))
    g_idx = random.permutation(np.arange(96) // 32)
    weight = Foreign(codes.astype(np.uint8), scales, "u4", zeros.astype(np.uint8), "int", g_idx=g_idx.astype(np.int32))
    tensors = foreign.pack("gptq_v2", weight)
    packed = lb.from_foreign("gptq_v2", tensors)
    assert packed.permutation is not None
    expected = (codes - zeros[:, g_idx]) * scales.astype(np.float64)[:, g_idx]
    assert np.array_equal(packed.dequantize(), expected)
    assert_same_bits(lb.to_foreign(packed, "gptq_v2")["g_idx"], tensors["g_idx"])


def test_version_1_of_gptq_stores_zero_points_less_one() -> None:
    weight = Foreign(np.zeros((8, 32), np.uint8), np.ones((8, 1), np.float16), "u4", np.zeros((8, 1), np.uint8), "int")
    first, second = foreign.pack("gptq", weight)["qzeros"], foreign.pack("gptq_v2", weight)["qzeros"]
    assert (first == -1).all() and (second == 0).all()  # 0 - 1 modulo 16 in every nibble


def test_torchao_keeps_two_signed_nibbles_in_a_byte_the_even_one_low() -> None:
    scale = np.array([[0.5]], np.float32)
    tensors = {"qdata": np.array([[0x78, 0x1F]], np.int8), "scale": scale, "zero_point": 4 * scale}
    weight = foreign.unpack("torchao_int4", tensors)
    assert weight.codes.tolist() == [[-8, 7, -1, 1]]
    assert decoded(weight).tolist() == [[-2.0, 5.5, 1.5, 2.5]]  # q * scale + zero_point


def test_fp6_llm_walks_through_bytes_from_the_highest_bit() -> None:
    codes = np.random.default_rng(6).integers(0, 64, (3, 32)).astype(np.uint8)
    text = ["".join(f"{code:06b}" for code in row) for row in codes]
    stored = np.array([[int(row[i : i + 8], 2) for i in range(0, len(row), 8)] for row in text], np.uint8)
    tensors = {"weight": stored.view(np.int32), "scales": np.ones(3, np.float16)}
    weight = foreign.unpack("fp6_llm", tensors)
    assert np.array_equal(weight.codes, codes)
    assert_same_bits(foreign.pack("fp6_llm", weight)["weight"], tensors["weight"])


def test_the_global_scale_of_compressed_tensors_divides() -> None:
    scale = np.full((1, 1), 2, ml_dtypes.float8_e4m3fn)
    packed = np.full((1, 8), 0x21, np.uint8)  # 0.5 and 1.0
    tensors = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": np.array([8], np.float32)}
    weight = foreign.unpack("compressed_tensors_nvfp4", tensors)
    assert decoded(weight).tolist() == [[0.125, 0.25] * 8]
    for name, array in foreign.pack("compressed_tensors_nvfp4", weight).items():
        assert_same_bits(array, tensors[name])


def test_bitnet_multiplies_or_divides_by_its_scale() -> None:
    tensors = {"weight": np.array([[0b10_01_00_10]], np.uint8), "weight_scale": np.array([4], np.float32)}
    assert decoded(foreign.unpack("bitnet", tensors)).tolist() == [[0.25], [-0.25], [0], [0.25]]
    assert decoded(foreign.unpack("bitnet", tensors, divides=False)).tolist() == [[4], [-4], [0], [4]]


# -- errors ------------------------------------------------------------------------------------------------------------


def gptq_tensors() -> dict[str, Any]:
    weight = Foreign(np.zeros((8, 64), np.uint8), np.ones((8, 2), np.float16), "u4", np.zeros((8, 2), np.uint8), "int")
    return foreign.pack("gptq_v2", weight)


def with_tensor(name: str, array: Any) -> dict[str, Any]:
    return {**gptq_tensors(), name: array}


NF4 = {"weight": np.zeros((48, 1), np.uint8), "absmax": np.ones(1, np.float32), "quant_map": np.ones(16, np.float32)}
HQQ_TENSORS = {name: np.zeros((2, 32), kind) for name, kind in (("W_q", np.uint8), ("scale", np.float16))}
COMPRESSED = {
    "weight_packed": np.zeros((2, 2), np.int32),
    "weight_scale": np.ones((2, 1), np.float16),
    "weight_shape": np.array([2, 20]),
}
READ_ERRORS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("gtpq", {}, {}, "ARGUMENT_INVALID"),
    ("gptq", gptq_tensors(), {"width": 4}, "ARGUMENT_INVALID"),
    ("gptq", {}, {}, "ARGUMENT_INVALID"),
    ("gptq", with_tensor("bias", np.zeros(8)), {}, "ARGUMENT_INVALID"),
    ("gptq", with_tensor("scales", np.ones((2, 8), np.float64)), {}, "DTYPE_MISMATCH"),
    ("gptq", with_tensor("qweight", np.zeros((8, 8), np.int64)), {}, "DTYPE_MISMATCH"),
    ("gptq", with_tensor("qweight", [1, 2]), {}, "DTYPE_MISMATCH"),
    ("gptq", with_tensor("qweight", np.zeros(8, np.int32)), {}, "SHAPE_MISMATCH"),
    ("gptq", with_tensor("qweight", np.zeros((7, 8), np.int32)), {"bits": 4}, "SHAPE_MISMATCH"),
    ("gptq", with_tensor("qweight", np.zeros((16, 8), np.int32)), {"bits": 4}, "SHAPE_MISMATCH"),
    ("gptq", with_tensor("g_idx", np.full(64, 2, np.int32)), {}, "ARGUMENT_INVALID"),
    ("gptq", with_tensor("g_idx", [0] * 64), {}, "DTYPE_MISMATCH"),
    ("gptq", with_tensor("g_idx", np.zeros((), np.int32)), {}, "SHAPE_MISMATCH"),
    ("gptq", {n: torch.from_numpy(a).to("meta") for n, a in gptq_tensors().items()}, {}, "ARGUMENT_INVALID"),
    ("bitnet", {"weight": np.zeros((4, 8), np.uint8)}, {"out_features": None}, "ARGUMENT_INVALID"),
    ("compressed_tensors", COMPRESSED, {"bits": 10**12}, "FORMAT_UNSUPPORTED"),
    ("hqq", HQQ_TENSORS, {"bits": 4, "shape": ("a", "b")}, "ARGUMENT_INVALID"),
    ("gptq", with_tensor("qzeros", np.zeros((2, 9), np.int32)), {}, "ARGUMENT_INVALID"),
    ("gptq", with_tensor("scales", torch.ones(2, 8, dtype=torch.float16)), {}, "DEVICE_MISMATCH"),
    ("gptq", gptq_tensors(), {"bits": 5}, "FORMAT_UNSUPPORTED"),
    ("gptq", gptq_tensors(), {"bits": "4"}, "ARGUMENT_INVALID"),
    ("gptq_p", gptq_tensors(), {"bits": 5}, "SHAPE_MISMATCH"),
    ("awq_gemv", gptq_tensors(), {}, "ARGUMENT_INVALID"),
    ("hqq", HQQ_TENSORS, {"bits": 4}, "ARGUMENT_INVALID"),
    ("hqq", HQQ_TENSORS, {"bits": 4, "shape": (2, 64), "axis": 0}, "FORMAT_UNSUPPORTED"),
    ("hqq", HQQ_TENSORS, {"bits": 4, "shape": (2, 40)}, "GROUP_INDIVISIBLE"),
    ("hqq", HQQ_TENSORS, {"bits": 7, "shape": (2, 64)}, "FORMAT_UNSUPPORTED"),
    ("bitsandbytes_nf4", NF4, {"shape": (2, 48)}, "GROUP_INDIVISIBLE"),
    ("bitsandbytes_nf4", {**NF4, "quant_state.bitsandbytes__nf4": np.zeros(4, np.uint8)}, {}, "ARGUMENT_INVALID"),
    ("compressed_tensors", COMPRESSED, {"bits": 3}, "ARGUMENT_INVALID"),  # two words either way
    ("compressed_tensors", COMPRESSED, {"bits": 1}, "FORMAT_UNSUPPORTED"),
    ("gguf_q4_0", {"data": np.zeros((2, 35), np.uint8)}, {}, "SHAPE_MISMATCH"),
    ("gguf_q4_0", {"data": np.zeros((2, 36), np.int8)}, {}, "DTYPE_MISMATCH"),
    ("gguf_tq2_0", {"data": np.full((1, 66), 255, np.uint8)}, {}, "CODES_OUT_OF_RANGE"),
    ("mxfp4", {"blocks": np.zeros((2, 3, 16), np.uint8), "scales": np.zeros((2, 2), np.uint8)}, {}, "SHAPE_MISMATCH"),
    ("mxfp4", {"blocks": np.zeros((2, 3, 8), np.uint8), "scales": np.zeros((2, 3), np.uint8)}, {}, "SHAPE_MISMATCH"),
]


@pytest.mark.parametrize(("name", "tensors", "options", "code"), READ_ERRORS)
def test_tensors_that_are_not_of_the_packing_are_refused(
    name: str, tensors: dict[str, Any], options: dict[str, Any], code: str
) -> None:
    with pytest.raises(lb.LowbitvmError) as refused:
        foreign.unpack(name, tensors, **options)
    assert refused.value.code == code


def plain(code: str = "u4", group: int = 32, zero: str | None = "int", **changed: Any) -> Foreign:
    zeros = None if zero is None else np.zeros((8, 128 // group), np.uint8 if zero == "int" else np.float16)
    scales = np.ones((8, 128 // group), np.float16)
    kept = {"codes": np.zeros((8, 128), np.uint8), "scales": scales, "code": code, "zeros": zeros, "zero": zero}
    return Foreign(**{**kept, **changed})


WRITE_ERRORS = [
    ("gptq", plain("i4"), "ARGUMENT_INVALID"),
    ("gptq", plain(zero="float"), "ARGUMENT_INVALID"),
    ("gptq", plain(zero=None), "ARGUMENT_INVALID"),
    ("gptq", plain(codes=np.full((8, 128), 16)), "CODES_OUT_OF_RANGE"),
    ("gptq", plain(codes=np.zeros((8, 128))), "DTYPE_MISMATCH"),
    ("gptq", plain(outer=np.ones((1, 1), np.float32), outers="tensor"), "ARGUMENT_INVALID"),
    ("gptq", plain(scales=np.ones((1, 1), np.float16)), "SHAPE_MISMATCH"),
    (
        "mxfp4",
        plain("f4e2m1", zero=None, codes=np.full((8, 128), 16), scales=np.ones((8, 4), E8M0[0])),
        "CODES_OUT_OF_RANGE",
    ),
    ("gptq", plain(codes=np.zeros(128, np.uint8)), "SHAPE_MISMATCH"),
    ("gptq", plain(zeros=np.zeros((8, 3), np.uint8)), "SHAPE_MISMATCH"),
    ("gptq", plain(g_idx=np.zeros(127, np.int32)), "SHAPE_MISMATCH"),
    ("gptq", plain(scales=torch.ones(8, 4, dtype=torch.float16)), "DEVICE_MISMATCH"),
    ("awq", plain(g_idx=np.zeros(128, np.int32)), "ARGUMENT_INVALID"),
    ("awq", plain(codes=np.zeros((7, 128), np.uint8), scales=np.ones((7, 4), np.float16)), "SHAPE_MISMATCH"),
    ("gguf_q4_1", plain(group=64, zero="offset"), "SHAPE_MISMATCH"),
    ("gguf_q4_1", plain(zero="offset", scales=np.ones((8, 4), np.float32)), "DTYPE_MISMATCH"),
    ("gguf_q4_k", plain(zero="offset"), "ARGUMENT_INVALID"),
    ("bitnet", plain("ternary", zero=None, scales=np.ones((1, 1), np.float16)), "ARGUMENT_INVALID"),
]


@pytest.mark.parametrize(("name", "weight", "code"), WRITE_ERRORS)
def test_a_weight_that_a_packing_cannot_hold_is_refused(name: str, weight: Foreign, code: str) -> None:
    with pytest.raises(lb.LowbitvmError) as refused:
        foreign.pack(name, weight)
    assert refused.value.code == code


def test_a_weight_in_digits_is_stored_by_no_other_project() -> None:
    packed = lb.quantize(np.ones((8, 64), np.float32), "i4,group=channel,act=i8")
    for name in foreign.NAMES:
        with pytest.raises(lb.LowbitvmError, match=r"^FORMAT_UNSUPPORTED: a PackedDigits"):
            lb.to_foreign(packed, name)


def test_a_scale_that_is_not_what_its_second_level_says_is_refused() -> None:
    case = golden_tensors("bitsandbytes_nested")
    weight = foreign.unpack("bitsandbytes_nf4", case)
    with pytest.raises(lb.LowbitvmError) as refused:
        foreign.pack("bitsandbytes_nf4", replace(weight, scales=weight.scales * 2))
    assert refused.value.code == "ARGUMENT_INVALID"


def test_a_second_level_that_f16_cannot_hold_is_refused() -> None:
    data, _ = gguf_rows("gguf_q6_k", 2, 1, np.random.default_rng(7))
    weight = foreign.unpack("gguf_q6_k", {"data": data})
    assert weight.outer is not None
    with pytest.raises(lb.LowbitvmError) as refused:
        foreign.pack("gguf_q6_k", replace(weight, outer=weight.outer + np.float32(2.0**-20)))
    assert refused.value.code == "ARGUMENT_INVALID"


def test_groups_of_different_sizes_have_no_format() -> None:
    g_idx = np.array([0] * 40 + [1] * 24, np.int32)
    weight = foreign.unpack("gptq_v2", with_tensor("g_idx", g_idx))
    assert np.array_equal(weight.g_idx, g_idx)
    with pytest.raises(lb.LowbitvmError) as refused:
        lb.from_foreign("gptq_v2", with_tensor("g_idx", g_idx))
    assert refused.value.code == "FORMAT_UNSUPPORTED"


# -- the documentation -------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "foreign.md").read_text()


def test_the_page_lists_every_packing_with_its_options_and_code_types() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == list(foreign.NAMES)
    for row in rows:
        name = row[0].strip("`")
        if not row[5].startswith("as "):
            assert re.findall(r"`(\w+)`", row[5]) == list(foreign._SCHEMES[name].options)
        if name in CASES and ".." not in row[2]:
            assert row[2].split() == CASES[name].codes


def test_the_example_of_the_page_runs() -> None:
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})
