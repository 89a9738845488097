"""Kernels for scales of 8 bits and second levels of scales: every byte, every named format, real K-quant blocks."""

import gguf
import ml_dtypes
import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm.bounds import agrees, linear_bound, linear_exact
from lowbitvm.codegen.convert import held_by
from lowbitvm.codegen.fused import chosen_fused, fused_scales, shared_fused
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.formats import NAMED
from lowbitvm.plan import chosen_tile
from lowbitvm.runtime.linear import run_linear
from tests.test_foreign import gguf_rows
from tests.test_linear import check

K_QUANTS = ["gguf_q2_k", "gguf_q3_k", "gguf_q4_k", "gguf_q5_k", "gguf_q6_k"]
FAMILIES = ["sm_75", "sm_80", "sm_89", "sm_90a", "sm_120f"]
BLOCK_FORMATS = [
    *NAMED,
    "u2,group=16,zero=offset,scale=i8,outer=256",
    "i3,group=16,scale=i8,outer=256",
    "u4,group=32,zero=offset,scale=i8,outer=256",
    "u5,group=32,zero=offset,scale=i8,outer=tensor",
    "i6,group=16,scale=i8,outer=256",
    "u4,group=256,zero=int,scale=e8m0",
    "i4,group=128,zero=int,scale=e4m3",
    "u3,group=64,zero=int,scale=i8,outer=256",
    "u4,group=channel,zero=offset,scale=i8,outer=tensor",
    "f6e3m2,group=tensor,scale=e8m0",
]
EXACT_POWERS = {"f16": 8, "bf16": 90}  # by which scales that are summed together may differ without any rounding
DTYPES = {"e8m0": ml_dtypes.float8_e8m0fnu, "e4m3": ml_dtypes.float8_e4m3fn, "i8": np.int8}


@pytest.mark.parametrize("target", FAMILIES)
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_every_block_format_runs_on_every_family_of_targets(name, target):
    fmt = lb.Format.parse(name)
    for act, m in (("f16", 5), ("bf16", 20)):
        if act == "f16" or target != "sm_75":
            check(fmt, act, m=m, n=40, k=512, target=target, kind="outlier")


@pytest.mark.parametrize("act", ["f16", "bf16"])
@pytest.mark.parametrize("scale", DTYPES)
def test_every_byte_of_a_scale_is_what_ml_dtypes_reads(scale, act):
    """One weight at a time: the product with 1 is the scale, which f32 has."""
    fmt = lb.Format("u1", group=16, scale=scale, outer="tensor" if scale == "i8" else None)
    stored = np.arange(256, dtype=np.uint8).view(DTYPES[scale])
    stored = stored[np.isfinite(stored.astype(np.float32))]
    n, groups = 24, 16
    scales = np.resize(stored, (n, groups))
    outer = {"outer": np.float32([[0.5]])} if fmt.outer else {}
    weight = lb.pack(np.ones((n, 16 * groups), np.uint8), scales, None, fmt, **outer)
    x = np.kron(np.eye(groups), np.eye(1, 16, 3)).astype(np.float16 if act == "f16" else ml_dtypes.bfloat16)
    y = np.zeros((groups, n), np.float32)
    assert run_linear(x, weight, None, y, "sm_80").findings == []
    exact = scales.astype(np.float64).T * (0.5 if fmt.outer else 1)
    normal = np.abs(exact) > 2.0**-100  # smaller sums lose bits below f32's smallest number
    assert np.array_equal(y[normal], exact[normal])
    assert (np.abs(y - exact)[~normal] <= 2.0**-120).all()
    assert len(np.unique(scales)) == len(np.unique(stored)) >= 253


@pytest.mark.parametrize(
    ("name", "acts"),
    [
        ("nvfp4", ["f16", "bf16"]),
        ("nvint4", ["f16", "bf16"]),
        ("f6e2m3,group=32,scale=e4m3", ["f16", "bf16"]),
        ("i3,group=16,scale=i8,outer=tensor", ["f16"]),
        ("u4,group=32,zero=offset,scale=i8,outer=tensor", ["f16"]),
    ],
)
def test_scales_in_the_decode_are_exact_for_every_code_and_scale(name, acts):
    """One weight at a time, with a second level of 1: products of a few bits, and offsets, that f32 has."""
    fmt, rng, k, n = lb.Format.parse(name), np.random.default_rng(3), 128, 128
    stored = np.arange(127 if fmt.scale == "e4m3" else 256, dtype=np.uint8)
    scales = np.resize(rng.permutation(stored), fmt.scales_shape(n, k)).view(DTYPES[fmt.scale])
    if fmt.scale == "e4m3":
        scales = (scales.astype(np.float32) * rng.choice([-1, 1], scales.shape)).astype(DTYPES["e4m3"])
    zeros = None if fmt.zero is None else rng.integers(-128, 128, scales.shape).astype(np.int8)
    codes = fmt.code.codes(np.resize(np.arange(1 << fmt.bits), (n, k)).astype(np.int16)).astype(fmt.code.numpy)
    ones = {part: np.ones((1, 1), np.float32) for part in ("outer", "outer_zeros") if part in fmt.parts}
    weight = lb.pack(codes, scales, zeros, fmt, **ones)
    for act in acts:
        assert chosen_fused(fmt, act, 8, 1) is not None
        x = np.eye(k).astype(np.float16 if act == "f16" else ml_dtypes.bfloat16)
        y = np.zeros((k, n), np.float32)
        assert run_linear(x, weight, None, y, "sm_80").findings == []
        assert np.array_equal(y.T, weight.dequantize().astype(np.float32))


def test_scales_go_into_the_decode_only_where_that_is_exact():
    exact = {name for name, code in CODE_TYPES.items() if code.kind != "table" and held_by(code, "f16")}
    exact = {name for name in exact if fused_scales(CODE_TYPES[name], "i8", "f16") is not None}
    assert {"u1", "u2", "u3", "u4", "i2", "i3", "i4", "i5", "bp1", "bp4", "ternary"} <= exact
    assert exact.isdisjoint({"u5", "u8", "i6", "i8", "bp5"})  # 31 x 127 needs 12 bits
    assert fused_scales(CODE_TYPES["u8"], "e4m3", "f16") is None
    assert fused_scales(CODE_TYPES["u4"], "i8", "bf16") is None


@pytest.mark.parametrize("act", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["mxfp4", "mxfp6e3m2", "mxfp8e4m3", "mxfp8e5m2", "mxint8", "u4,group=16,scale=e8m0"])
def test_powers_of_two_as_far_apart_as_they_can_be_scale_codes_in_the_decode(name, act):
    """Every code by every power of two below the largest, one weight at a time: what is lost is what the bound says."""
    fmt, rng, k, n = lb.Format.parse(name), np.random.default_rng(4), 256, 128
    fused = shared_fused(fmt, act)
    assert fused is not None and fused.powers == (2 if (name, act) == ("mxfp8e5m2", "f16") else 1)
    stored = np.resize(rng.permutation(np.arange(1, 250, dtype=np.uint8)), fmt.scales_shape(n, k))
    patterns = np.arange(fmt.code.used or 1 << fmt.bits)
    patterns = np.resize(patterns[np.isfinite(fmt.code.values[patterns])], (n, k)).astype(np.int16)
    codes = fmt.code.codes(patterns).astype(fmt.code.numpy)
    weight = lb.pack(codes, stored.view(DTYPES["e8m0"]), None, fmt)
    x = np.eye(k).astype(np.float16 if act == "f16" else ml_dtypes.bfloat16)
    y = np.zeros((k, n), np.float32)
    assert run_linear(x, weight, None, y, "sm_80").findings == []
    exact = weight.dequantize().astype(np.float64).T
    assert agrees(y, exact, linear_bound(x, weight)).all()
    scales = np.repeat(stored.astype(int), fmt.group, axis=1).T
    largest = np.repeat(scales.reshape(k // 128, 128, n).max(1), 128, axis=0)
    kept = np.isfinite(exact) & (scales > 27) & (scales < 230) & (largest - scales < EXACT_POWERS[act])
    assert kept.mean() > 0.02
    assert np.array_equal(y[kept], exact[kept])


def test_a_nan_among_e4m3_scales_is_refused():
    scales = np.ones((2, 4), np.float32)
    scales[1, 2] = np.nan
    codes, fmt = np.zeros((2, 64), np.uint8), "f4e2m1,group=16,scale=e4m3"
    with pytest.raises(lb.LowbitvmError, match=r"ARGUMENT_INVALID: scales\[1, 2\] is NaN.*Fix: quantise again"):
        lb.pack(codes, scales.astype(DTYPES["e4m3"]), None, fmt)


@pytest.mark.parametrize("name", K_QUANTS)
def test_k_quant_blocks_multiply_as_the_library_gguf_decodes_them(name):
    rng = np.random.default_rng(5)
    data, kind = gguf_rows(name, 40, 3, rng)
    weight = lb.from_foreign(name, {"data": data})
    decoded = gguf.dequantize(data, kind).astype(np.float64)
    for m, target in ((1, "sm_80"), (9, "sm_90a"), (70, "sm_75")):
        x = (rng.standard_normal((m, weight.in_features)) / 64).astype(np.float16)
        y = np.zeros((m, weight.out_features), np.float32)
        assert run_linear(x, weight, None, y, target).findings == []
        # the library's float32 rounds the product and the sum once each
        library = 2.0**-21 * np.abs(x.astype(np.float64)).sum(1, keepdims=True) * np.abs(decoded).max(1)
        assert agrees(y, x.astype(np.float64) @ decoded.T, linear_bound(x, weight) + library).all()


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_block_floats_multiply_as_ml_dtypes_decodes_them(name):
    fmt, rng, n, k = lb.Format.parse(name), np.random.default_rng(6), 32, 256
    codes = rng.integers(0, 16, (n, k), dtype=np.uint8)
    shape = fmt.scales_shape(n, k)
    scales = rng.integers(118, 130, shape, dtype=np.uint8) if name == "mxfp4" else rng.integers(0, 127, shape, np.uint8)
    scales = scales.view(DTYPES[fmt.scale])
    outer = {"outer": np.float32([[0.37]])} if fmt.outer else {}
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    wide = scales.astype(np.float64) * (float(np.float32(0.37)) if fmt.outer else 1)
    weight = lb.pack(codes, scales, None, fmt, **outer)
    x = (rng.standard_normal((4, k)) / 64).astype(np.float16)
    y = np.zeros((4, n), np.float16)
    assert run_linear(x, weight, None, y, "sm_80").findings == []
    exact = x.astype(np.float64) @ (values * wide.repeat(fmt.group, 1)).T
    assert agrees(y, exact, linear_bound(x, weight)).all()


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "nvint4", "i6,group=16,scale=i8,outer=256"])
def test_a_wrong_scale_is_outside_the_bound(name):
    fmt, rng = lb.Format.parse(name), np.random.default_rng(7)
    weight = lb.quantize(rng.standard_normal((40, 512)), fmt)
    x = rng.standard_normal((9, 512)).astype(np.float16)
    exact, bound = linear_exact(x, weight), linear_bound(x, weight)
    for part in ("scales", "outer"):
        given = weight.arguments()
        if given[part] is not None:
            changed = given[part].copy()
            raw = changed.view(np.uint8)
            raw[-1, -1] ^= 8 if part == "scales" else 0x40
            wrong = lb.pack(**given | {part: changed})
            assert not agrees(linear_exact(x, wrong), exact, bound).all()


@pytest.mark.parametrize(
    "tile", [{"bm": 8}, {"bm": 16, "bk": 128, "stages": 3}, {"bm": 16, "bn": 64, "warps": 1}], ids=str
)
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_no_bank_conflicts_no_spills_and_each_scale_is_read_once(name, tile):
    fmt, rng = lb.Format.parse(name), np.random.default_rng(0)
    n, k = 2 * chosen_tile(fmt, **tile).bn, 512
    values = rng.standard_normal((n, k))
    weight = lb.quantize(np.abs(values) if fmt.code.kind == "uint" and fmt.zero is None else values, fmt)
    kernel = lb.compile_linear(fmt, cache=False, **tile)
    assert kernel.spills == 0
    x, y = rng.standard_normal((tile["bm"], k)).astype(np.float16), np.zeros((tile["bm"], n), np.float16)
    report = lb.launch(kernel, (1, 2), {"x": x, "w": weight, "y": y})
    assert agrees(y, linear_exact(x, weight), linear_bound(x, weight)).all()
    assert report.counters.bank_conflicts == 0
    traffic = {part: report.counters.arrays[place] for place, part in enumerate(fmt.parts, 1)}
    assert traffic["words"].read == weight.words.nbytes
    if isinstance(fmt.group, int) and fmt.group <= 128:
        assert traffic["scales"].read == weight.scales.nbytes


Q4_K = "u4,group=32,zero=offset,scale=i8,outer=256"


@pytest.mark.parametrize("name", ["i4,group=256", "u1,group=256,zero=int", Q4_K])
@pytest.mark.parametrize(("m", "k"), [(1, 2048), (16, 1280)])
def test_what_256_codes_share_is_read_once_by_tiles_of_few_rows(name, m, k):
    fmt, rng, n = lb.Format.parse(name), np.random.default_rng(0), 256
    weight = lb.quantize(rng.standard_normal((n, k)), fmt)
    kernel = lb.compile_linear(fmt, bm=8 if m == 1 else 16, cache=False)
    x, y = rng.standard_normal((m, k)).astype(np.float16), np.zeros((m, n), np.float16)
    tile = chosen_tile(fmt, bm=8 if m == 1 else 16)
    report = lb.launch(kernel, (1, n // tile.bn), {"x": x, "w": weight, "y": y})
    assert not report.findings and agrees(y, linear_exact(x, weight), linear_bound(x, weight)).all()
    traffic = {part: report.counters.arrays[place] for place, part in enumerate(fmt.parts, 1)}
    for part in fmt.parts:
        assert traffic[part].read == getattr(weight, part).nbytes, part
