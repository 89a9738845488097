"""The emulator's tensor cores against a slow model in exact fractions, written from the published description."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from lowbitvm.runtime import emulator

TYPES = {
    "f16": (np.float16, -14, 10),
    "bf16": (ml_dtypes.bfloat16, -126, 7),
}  # numpy type, lowest exponent, fraction bits
# (fraction bits kept, products of k summed at once) for f16 and bf16.
ARCHITECTURES = {
    "sm_75": (24, 8),
    "sm_80": (24, 8),
    "sm_86": (24, 8),
    "sm_89": (24, 8),
    "sm_90": (25, 16),
    "sm_120": (25, 16),
}


def mma_kernel(kind: str, k: int) -> str:
    """Fragments are given as (tile, lane, register) arrays: block b multiplies tile b."""
    a, b = k // 4, k // 8
    loads = "".join(f"ld.global.b32 %a{n}, [%d1+{4 * n}];" for n in range(a))
    loads += "".join(f"ld.global.b32 %b{n}, [%d2+{4 * n}];" for n in range(b))
    names = ["{" + ", ".join(f"%{x}{n}" for n in range(count)) + "}" for x, count in (("a", a), ("b", b))]
    return f"""
    .version 8.0
    .target sm_80
    .address_size 64
    .visible .entry k(.param .u64 pa, .param .u64 pb, .param .u64 pc) {{
        .reg .b32 %r<4>; .reg .b32 %a<4>; .reg .b32 %b<2>; .reg .f32 %f<4>; .reg .b64 %d<4>;
        mov.u32 %r0, %ctaid.x; mov.u32 %r1, %laneid; mad.lo.u32 %r0, %r0, 32, %r1;
        ld.param.u64 %d1, [pa]; mad.wide.u32 %d1, %r0, {4 * a}, %d1;
        ld.param.u64 %d2, [pb]; mad.wide.u32 %d2, %r0, {4 * b}, %d2;
        ld.param.u64 %d3, [pc]; mad.wide.u32 %d3, %r0, 16, %d3;
        {loads}
        ld.global.v4.f32 {{%f0, %f1, %f2, %f3}}, [%d3];
        mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32
            {{%f0, %f1, %f2, %f3}}, {names[0]}, {names[1]}, {{%f0, %f1, %f2, %f3}};
        st.global.v4.f32 [%d3], {{%f0, %f1, %f2, %f3}};
        ret;
    }}"""


def run_mma(a: np.ndarray, b: np.ndarray, c: np.ndarray, kind: str, **options: object) -> np.ndarray:
    """D = A B + C for stacks of tiles (t, 16, k), (t, k, 8), (t, 16, 8), through fragments as the manual draws them."""
    k = a.shape[2]
    lane = np.arange(32)
    group, member = lane >> 2, lane & 3
    a_registers = [
        np.stack([a[:, group + 8 * (r & 1), 2 * member + h + 8 * (r >> 1)] for h in (0, 1)], -1) for r in range(k // 4)
    ]
    b_registers = [np.stack([b[:, 2 * member + h + 8 * r, group] for h in (0, 1)], -1) for r in range(k // 8)]
    c_rows = [group + 8 * (i >> 1) for i in range(4)]
    c_columns = [2 * member + (i & 1) for i in range(4)]
    fragment = np.ascontiguousarray(np.stack([c[:, c_rows[i], c_columns[i]] for i in range(4)], -1))
    module = emulator.load(mma_kernel(kind, k))
    args = [np.ascontiguousarray(np.stack(x, 2)).view(np.uint16) for x in (a_registers, b_registers)]
    module.launch("k", (len(a),), (32,), [*args, fragment], **options)
    d = np.empty_like(c)
    for i in range(4):
        d[:, c_rows[i], c_columns[i]] = fragment[:, :, i]
    return d


def split(value: float, lowest: int) -> tuple[Fraction, int]:
    """Significand and exponent as the hardware has them: subnormals at the lowest exponent, unnormalised."""
    if value == 0:
        return Fraction(0), -126
    exponent = max(math.frexp(value)[1] - 1, lowest)
    return Fraction(value) / Fraction(2) ** exponent, exponent


def model(a: np.ndarray, b: np.ndarray, c: float, kind: str, kept: int, group: int) -> float:
    """One output: groups of products and C, cut at `kept` bits below the largest exponent, summed, cut to f32."""
    lowest = TYPES[kind][1]
    for start in range(0, len(a), group):
        terms = [split(c, -126)]
        for x, y in zip(a[start : start + group], b[start : start + group], strict=True):
            (sx, ex), (sy, ey) = split(float(x), lowest), split(float(y), lowest)
            terms.append((sx * sy, ex + ey if sx and sy else -126))
        top = max(exponent for _, exponent in terms)
        unit = Fraction(2) ** (top - kept)
        total = sum(math.trunc(s * Fraction(2) ** e / unit) for s, e in terms) * unit
        c = cut_to_f32(total)
    return c


def cut_to_f32(value: Fraction) -> float:
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    result = math.trunc(magnitude / unit) * unit
    if result >= Fraction(2) ** 128:
        return math.copysign(math.inf, value)
    return float(result) * (1 if value > 0 else -1)


def tiles(kind: str, k: int, spread: float, seed: int, count: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random tiles whose magnitudes spread over 2^(-spread)..2^spread, with zeros among them."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        values = rng.standard_normal(shape) * 2.0 ** rng.uniform(-spread, spread, shape)
        return np.where(rng.random(shape) < 0.1, 0, values)

    dtype = TYPES[kind][0]
    return draw(count, 16, k).astype(dtype), draw(count, k, 8).astype(dtype), draw(count, 16, 8).astype(np.float32)


@pytest.mark.parametrize("spread", [0, 4, 12])
@pytest.mark.parametrize(("kind", "k"), [("f16", 8), ("f16", 16), ("bf16", 8), ("bf16", 16)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_hardware_numerics_equal_the_exact_model(arch: str, kind: str, k: int, spread: float) -> None:
    a, b, c = tiles(kind, k, spread, seed=k + int(spread))
    got = run_mma(a, b, c, kind, arch=arch)
    kept, group = ARCHITECTURES[arch]
    for t, m, n in np.random.default_rng(0).integers(0, (2, 16, 8), (40, 3)):
        expected = model(a[t, m], b[t, :, n], float(c[t, m, n]), kind, kept, group)
        assert got[t, m, n] == np.float32(expected)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_subnormal_operands_are_kept_and_aligned_unnormalised(kind: str) -> None:
    rng = np.random.default_rng(0)
    dtype, _, fraction = TYPES[kind]
    a = (
        rng.integers(0, 1 << (fraction + 1), (1, 16, 16)).astype(np.uint16).view(dtype)
    )  # subnormals and the first binade
    b = (rng.standard_normal((1, 16, 8)) * (2.0**40 if kind == "bf16" else 1)).astype(dtype)
    c = np.zeros((1, 16, 8), np.float32)
    got = run_mma(a, b, c, kind, arch="sm_80")
    for m in range(16):
        for n in range(8):
            assert got[0, m, n] == np.float32(model(a[0, m], b[0, :, n], 0.0, kind, 24, 8))


def test_subnormal_f32_results_are_cut_and_large_ones_overflow() -> None:
    a = np.zeros((1, 16, 16), ml_dtypes.bfloat16)
    b = np.ones((1, 16, 8), ml_dtypes.bfloat16)
    a[0, 0, :2] = 2.0**-130, 2.0**-133
    b[0, :, 0] = 0.875
    a[0, 1] = 2.0**127
    a[0, 2] = -(2.0**127)
    got = run_mma(a, b, np.zeros((1, 16, 8), np.float32), "bf16", arch="sm_80")
    assert got[0, 0, 0] == np.float32(model(a[0, 0], b[0, :, 0], 0.0, "bf16", 24, 8)) != 0
    assert got[0, 1, 1] == np.inf and got[0, 2, 1] == -np.inf


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("numerics", ["hw", "bound"])
def test_infinities_and_nan_follow_ieee_with_one_nan_pattern(kind: str, numerics: str) -> None:
    a, b, c = tiles(kind, 16, 2, seed=3, count=4)
    rng = np.random.default_rng(1)
    for x in (a, b, c):
        for value in (np.inf, -np.inf, np.nan, 0):
            x[rng.random(x.shape) < 0.01] = value
    got = run_mma(a, b, c, kind, arch="sm_90", numerics=numerics)
    expected = a.astype(np.float64) @ b.astype(np.float64) + c
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(expected))
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(expected))
    assert (got.view(np.uint32)[np.isnan(got)] == 0x7FFFFFFF).all() and np.isnan(got).any()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_bound_numerics_round_the_double_sum_once(kind: str) -> None:
    a, b, c = tiles(kind, 16, 3, seed=5)
    got = run_mma(a, b, c, kind, numerics="bound")
    products = a.astype(np.float64)[:, :, :, None] * b.astype(np.float64)[:, None]  # exact, and their sum nearly so
    np.testing.assert_array_equal(got, (c.astype(np.float64) + products.sum(2)).astype(np.float32))


def test_small_integers_multiply_exactly_everywhere() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-16, 16, (2, 4, 16, 16)).astype(np.float16)
    b = b[:, :, :8]
    c = rng.integers(-1000, 1000, (4, 16, 8)).astype(np.float32)
    for arch in ARCHITECTURES:
        np.testing.assert_array_equal(
            run_mma(a, b, c, "f16", arch=arch), a.astype(np.float32) @ b.astype(np.float32) + c
        )
