"""Conversions and moves of the PTX emulator against ml_dtypes and exact fractions."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import emulator
from tests.lanes import PRECISION, TYPES, apply, assert_same_floats, floats, integers, read, rounded, unit_of

NARROW = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
BITS = {"e4m3": 8, "e5m2": 8, "e2m3": 6, "e3m2": 6, "e2m1": 4}
NAN = {"e4m3": 0x7F, "e5m2": 0x7F}  # the others have none: NaN becomes the largest number
ALL_HALVES = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def place(kind: str) -> int:
    """Bits from one element of a pair to the next."""
    return 4 if kind == "e2m1" else 8


def all_pairs(kind: str) -> np.ndarray:
    """Every pair of codes of a narrow format, as the register that holds them."""
    low, high = (v.reshape(-1) for v in np.meshgrid(np.arange(1 << BITS[kind]), np.arange(1 << BITS[kind])))
    pairs = (low | high << place(kind)).astype(np.uint32)
    return pairs.astype(np.uint8) if kind == "e2m1" else pairs.astype(np.uint16)


def codes(values: np.ndarray, kind: str) -> np.ndarray:
    """Finite values of a narrow format, and NaN, as its codes."""
    result = values.astype(NARROW[kind]).view(np.uint8).astype(np.uint32)
    largest = float(PRECISION[kind][2])
    as_nan = NAN.get(kind, int(np.float32(largest).astype(NARROW[kind]).view(np.uint8)))
    return np.where(np.isnan(values), as_nan, result)


def nearest(values: np.ndarray, kind: str) -> np.ndarray:
    """f32 values as codes: to nearest even, beyond the largest number to it."""
    largest = float(PRECISION[kind][2])
    result = []
    for x in values.astype(np.float64).tolist():
        near = x if not math.isfinite(x) else math.copysign(rounded(Fraction(x), kind), x)
        result.append(near if math.isnan(near) else max(-largest, min(largest, near)))
    return codes(np.array(result), kind)


def of_magnitude(kind: str, seed: int) -> np.ndarray:
    """f32 values around every number of a narrow format: itself, the midpoints, their neighbours, and specials."""
    grid = np.arange(1 << BITS[kind], dtype=np.uint8).view(NARROW[kind]).astype(np.float32)
    grid = np.unique(grid[np.isfinite(grid)])
    middles = (grid[1:] + grid[:-1]) / 2
    points = np.concatenate([grid, middles, grid[-1:] * np.float32(1.05), grid[-1:] * 2, grid[:1] * 2])
    points = np.concatenate(
        [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
    )
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, -3e38], np.float32)
    points = np.concatenate([points, special, floats(np.float32, 300, seed)]).astype(np.float32)
    return np.random.default_rng(seed).permutation(points)


@np.errstate(all="ignore")
@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("target", ["f16", "bf16"])
@pytest.mark.parametrize("kind", NARROW)
def test_every_narrow_pair_becomes_two_halves(kind: str, target: str, relu: str) -> None:
    pairs = all_pairs(kind)
    got = apply(f"cvt.rn{relu}.{target}x2.{kind}x2 Z, A;", 4, pairs)
    mask = (1 << BITS[kind]) - 1
    for half in range(2):
        code = (pairs.astype(np.uint32) >> place(kind) * half & mask).astype(np.uint8)
        values = code.view(NARROW[kind]).astype(np.float64)
        if relu:
            values = np.where(values <= 0, 0, values)
        assert_same_floats((got >> 16 * half & 0xFFFF).astype(np.uint16), values, target)


@np.errstate(all="ignore")
@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("kind", NARROW)
def test_f32_pairs_become_the_nearest_narrow_numbers(kind: str, relu: str) -> None:
    a, b = of_magnitude(kind, 1), of_magnitude(kind, 2)
    got = apply(f"cvt.rn.satfinite{relu}.{kind}x2.f32 Z, A, B;", 1 if kind == "e2m1" else 2, a, b).astype(np.uint32)
    if relu:
        a, b = (np.where(x <= 0, np.float32(0), x) for x in (a, b))
    np.testing.assert_array_equal(got, nearest(a, kind) << place(kind) | nearest(b, kind))


@np.errstate(all="ignore")
@pytest.mark.parametrize("source", ["f16", "bf16"])
@pytest.mark.parametrize("kind", NARROW)
def test_pairs_of_halves_become_the_nearest_narrow_numbers(kind: str, source: str) -> None:
    low, high = ALL_HALVES[::7].copy(), np.roll(ALL_HALVES[::7], 4321)
    pairs = high.astype(np.uint32) << 16 | low
    got = apply(f"cvt.rn.satfinite.{kind}x2.{source}x2 Z, A;", 1 if kind == "e2m1" else 2, pairs).astype(np.uint32)
    low_codes, high_codes = (nearest(x.view(TYPES[source]).astype(np.float64), kind) for x in (low, high))
    np.testing.assert_array_equal(got, high_codes << place(kind) | low_codes)


def scale_code(x: float, up: bool, finite: bool) -> int:
    """A magnitude as the exponent of a power of two, 127 being 1; 255 is NaN."""
    if math.isnan(x):
        return 255
    if math.isinf(x):
        return 254 if finite else 255
    if x == 0:
        return 0
    fraction, exponent = math.frexp(abs(x))  # in [1/2, 1)
    code = exponent - 1 + 127 + (up and fraction != 0.5)
    return min(max(code, 0), 254 if finite else 255)


@np.errstate(all="ignore")
@pytest.mark.parametrize("mode", ["rz", "rp", "rz.satfinite", "rp.satfinite"])
def test_scales_are_powers_of_two(mode: str) -> None:
    a, b = np.abs(floats(np.float32, seed=1)), np.abs(floats(np.float32, seed=2))
    up, finite = mode.startswith("rp"), mode.endswith("satfinite")
    expected = [
        scale_code(x, up, finite) << 8 | scale_code(y, up, finite)
        for x, y in zip(a.astype(float).tolist(), b.astype(float).tolist(), strict=True)
    ]
    assert apply(f"cvt.{mode}.ue8m0x2.f32 Z, A, B;", 2, a, b).tolist() == expected
    pairs = (ALL_HALVES & 0x7FFF).astype(np.uint32) << 16 | np.roll(ALL_HALVES & 0x7FFF, 99)
    halves = (np.uint16(0) + (pairs >> 16).astype(np.uint16), (pairs & 0xFFFF).astype(np.uint16))
    values = [h.view(ml_dtypes.bfloat16).astype(float).tolist() for h in halves]
    expected = [scale_code(x, up, finite) << 8 | scale_code(y, up, finite) for x, y in zip(*values, strict=True)]
    assert apply(f"cvt.{mode}.ue8m0x2.bf16x2 Z, A;", 2, pairs).tolist() == expected


@np.errstate(all="ignore")
def test_every_pair_of_scales_becomes_two_bf16() -> None:
    got = apply("cvt.rn.bf16x2.ue8m0x2 Z, A;", 4, ALL_HALVES)
    for half in range(2):
        code = (ALL_HALVES >> 8 * half).astype(np.uint8)
        values = code.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
        assert_same_floats((got >> 16 * half & 0xFFFF).astype(np.uint16), values, "bf16")


def finite_or(x: float, kind: str, mode: str, flags: str) -> float:
    """A number rounded to a format, with the modifiers .relu and .satfinite."""
    if "relu" in flags and x <= 0:
        return 0.0
    if math.isfinite(x):
        x = math.copysign(rounded(Fraction(x), kind, mode), x)
    if "satfinite" in flags and math.isinf(x):
        x = math.copysign(float(PRECISION[kind][2]), x)
    return x


HALF_MODES = [mode + flags for mode in ("rn", "rz") for flags in ("", ".relu", ".satfinite", ".relu.satfinite")]


@np.errstate(all="ignore")
@pytest.mark.parametrize("mode", [*HALF_MODES, "rm", "rp"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_f32_becomes_a_half_by_every_rounding_and_modifier(kind: str, mode: str) -> None:
    a, b = floats(np.float32, seed=1), floats(np.float32, seed=2)
    scale = 2.0**-14 if kind == "f16" else 2.0**-126
    a[::3] = (a[::3].astype(np.float64) * scale).astype(np.float32)  # subnormal results
    expected = np.array([finite_or(x, kind, mode[:2], mode) for x in a.astype(np.float64).tolist()])
    single = apply(f"cvt.{mode}.{kind}.f32 Z, A;", 2, a)
    assert_same_floats(single, expected, kind)
    if mode not in ("rm", "rp"):
        pair = apply(f"cvt.{mode}.{kind}x2.f32 Z, A, B;", 4, a, b)
        np.testing.assert_array_equal(pair >> 16, single)
        np.testing.assert_array_equal(pair & 0xFFFF, apply(f"cvt.{mode}.{kind}.f32 Z, A;", 2, b))


@np.errstate(all="ignore")
@pytest.mark.parametrize("mode", ["rna", "rna.satfinite", *HALF_MODES])
def test_f32_becomes_tf32_with_13_bits_of_zeros(mode: str) -> None:
    a = floats(np.float32, seed=1)
    a[::5] = ((a[::5].view(np.uint32) & 0xFFFFE000) | 0x1000).view(np.float32)  # midpoints
    name = mode.split(".")[0]
    expected = np.array([finite_or(x, "tf32", name, mode) for x in a.astype(np.float64).tolist()])
    got = apply(f"cvt.{mode}.tf32.f32 Z, A;", 4, a)
    assert_same_floats(got, expected, "f32")
    assert (got[~np.isnan(expected)] & 0x1FFF == 0).all()


@np.errstate(all="ignore")
@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize(
    ("source", "target"), [("f64", "f32"), ("f64", "f16"), ("f64", "bf16"), ("f16", "bf16"), ("bf16", "f16")]
)
def test_other_float_conversions_round_in_every_direction(source: str, target: str, mode: str) -> None:
    a = floats(TYPES[source], seed=1)
    got = apply(f"cvt.{mode}.{target}.{source} Z, A;", np.dtype(TYPES[target]).itemsize, a)
    expected = np.array([finite_or(x, target, mode, "") for x in a.astype(np.float64).tolist()])
    assert_same_floats(got, expected, target)


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", ["f32", "f64", "f16"])
def test_float_conversions_saturate_to_the_unit_interval(kind: str) -> None:
    a = floats(TYPES[kind], seed=1)
    expected = np.where(np.isnan(a), 0, np.clip(a.astype(np.float64), 0, 1))
    np.testing.assert_array_equal(apply(f"cvt.sat.{kind}.{kind} Z, A;", a.itemsize, a).view(TYPES[kind]), expected)


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_floats_are_rounded_to_integral_floats(kind: str) -> None:
    a = floats(TYPES[kind], seed=1)
    a[::2] = (a[::2].astype(np.float64) * 50).astype(TYPES[kind])
    for mode, function in {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.items():
        got = apply(f"cvt.{mode}.{kind}.{kind} Z, A;", a.itemsize, a)
        assert_same_floats(got, function(a.astype(np.float64)), kind)


@np.errstate(all="ignore")
def test_flushing_conversions_touch_f32_alone() -> None:
    a = (floats(np.float32, seed=1) * np.float32(1e-38)).astype(np.float32)
    flushed = np.where(np.abs(a) < np.float32(2.0**-126), np.copysign(np.float32(0), a), a)
    assert_same_floats(apply("cvt.ftz.f64.f32 Z, A;", 8, a), flushed.astype(np.float64), "f64")
    assert_same_floats(apply("cvt.rni.ftz.f32.f32 Z, A;", 4, a), np.rint(flushed), "f32")
    wide = a.astype(np.float64) * 0.75
    near = wide.astype(np.float32)
    near = np.where(np.abs(near) < np.float32(2.0**-126), np.copysign(np.float32(0), near), near)
    assert_same_floats(apply("cvt.rn.ftz.f32.f64 Z, A;", 4, wide), near, "f32")
    plain = apply("cvt.rn.f16.f32 Z, A;", 2, a * np.float32(2.0**110))  # subnormal f16
    np.testing.assert_array_equal(apply("cvt.rn.ftz.f16.f32 Z, A;", 2, a * np.float32(2.0**110)), plain)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("target", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("source", ["u8", "s8", "u32", "s32", "u64", "s64"])
def test_integers_become_floats_by_every_rounding(source: str, target: str, mode: str) -> None:
    if (source[1:], target) == ("8", "bf16"):
        return  # PTX has no such conversion
    a = integers(max(int(source[1:]), 16), seed=1)
    values = [read(source, int(x) % (1 << int(source[1:]))) for x in a]
    got = apply(f"cvt.{mode}.{target}.{source} Z, A;", np.dtype(TYPES[target]).itemsize, a)
    assert_same_floats(got, np.array([rounded(Fraction(v), target, mode) for v in values]), target)


STOCHASTIC = {"f16": 13, "bf16": 16, "e4m3": 16, "e5m2": 16, "e2m3": 16, "e3m2": 16, "e2m1": 16}


def stochastic(x: float, kind: str, random: int) -> float:
    """Round a magnitude up where what is cut off, in units of the last place, and `random` / 2^bits reach 1."""
    if not math.isfinite(x) or x == 0:
        return x
    unit = unit_of(abs(Fraction(x)), kind)
    steps = math.floor(abs(Fraction(x)) / unit + Fraction(random, 1 << STOCHASTIC[kind]))
    return math.copysign(float(steps * unit), x)


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_stochastic_rounding_of_halves_adds_their_own_random_bits(kind: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(1000).astype(np.float32) for _ in "ab")
    random = integers(32, 1000, seed=3)
    got = apply(f"cvt.rs.{kind}x2.f32 Z, A, B, C;", 4, a, b, random)
    mask = (1 << STOCHASTIC[kind]) - 1
    for values, shift in ((a, 16), (b, 0)):
        pairs = zip(values.astype(float).tolist(), (random >> shift & mask).tolist(), strict=True)
        expected = np.array([stochastic(x, kind, bits) for x, bits in pairs])
        assert_same_floats((got >> shift & 0xFFFF).astype(np.uint16), expected, kind)


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", NARROW)
def test_stochastic_rounding_of_four_narrow_numbers(kind: str) -> None:
    rng = np.random.default_rng(0)
    largest = float(PRECISION[kind][2])
    values = [(rng.uniform(-1.2, 1.2, 512) * largest).astype(np.float32) for _ in range(4)]
    values[1] *= np.float32(2.0**-6)
    values[3][:3] = [np.nan, np.inf, -np.inf]
    random = integers(32, 512, seed=3)
    size = 2 if kind == "e2m1" else 4
    got = apply(f"cvt.rs.satfinite.{kind}x4.f32 Z, {{A, B, C, D}}, E;", size, *values, random)
    width = place(kind)
    halves = [random >> 16, random >> 16, random & 0xFFFF, random & 0xFFFF]
    if kind == "e2m1":
        upper, lower = (random >> 24) << 8 | (random >> 8 & 0xFF), (random >> 16 & 0xFF) << 8 | (random & 0xFF)
        halves = [upper, upper, lower, lower]
    for n, (x, bits) in enumerate(zip(values, halves, strict=True)):
        pairs = zip(x.astype(float).tolist(), bits.tolist(), strict=True)
        expected = np.clip(np.array([stochastic(v, kind, r) for v, r in pairs]), -largest, largest)
        element = got.astype(np.uint32) >> width * (3 - n) & ((1 << width) - 1)
        np.testing.assert_array_equal(element, codes(expected, kind))


@pytest.mark.parametrize("kind", ["s16", "u16", "s8", "u8", "s4", "u4", "s2", "u2"])
def test_integers_are_packed_with_saturation_below_the_third_source(kind: str) -> None:
    bits = int(kind[1:])
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))
    a[::2], b[::3] = a[::2] % 512 - 256, b[::3] % 8 - 4
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
    expected = []
    for x, y, z in zip(a.view(np.int32).tolist(), b.view(np.int32).tolist(), c.tolist(), strict=True):
        first, second = (min(max(v, low), high) % (1 << bits) for v in (x, y))
        above = z << 2 * bits if bits < 16 else 0
        expected.append((above | first << bits | second) % 2**32)
    if bits == 16:
        assert apply(f"cvt.pack.sat.{kind}.s32 Z, A, B;", 4, a, b).tolist() == expected
    else:
        assert apply(f"cvt.pack.sat.{kind}.s32.b32 Z, A, B, C;", 4, a, b, c).tolist() == expected


@pytest.mark.parametrize(
    "form",
    [
        "cvt.f32.f64",  # rounds, and does not say how
        "cvt.rn.f64.f32",
        "cvt.rn.s32.f32",
        "cvt.rni.f32.f16",
        "cvt.sat.s32.u16",
        "cvt.rn.e4m3x2.f32",
        "cvt.rna.f16.f32",
        "cvt.rm.tf32.f32",
        "cvt.rn.bf16.s8",
    ],
)
def test_conversions_that_ptx_does_not_have_are_refused(form: str) -> None:
    registers = {"f32": "%f1", "f64": "%d1", "f16": "%h1", "bf16": "%h1", "s32": "%r1", "u16": "%h1", "s8": "%h1"}
    registers |= {"e4m3x2": "%h1", "tf32": "%r1"}
    *_, target, source = form.split(".")
    operands = f"{registers[target]}, {registers[source]}" + (", %f2" if target == "e4m3x2" else "")
    text = f""".version 9.2
    .target sm_100a
    .address_size 64
    .visible .entry k() {{
        .reg .b16 %h<2>; .reg .b32 %r<2>; .reg .f32 %f<3>; .reg .b64 %d<2>;
        {form} {operands}; ret;
    }}"""
    with pytest.raises(emulator.PtxError, match=r"not implemented|not legal|register"):
        emulator.load(text)


def test_moves_split_and_join_bytes_and_registers_of_128_bits() -> None:
    a, b = integers(32, seed=1), integers(64, seed=2)
    reverse = "mov.b32 {%b1, %b2, %b3, %b4}, A; mov.b32 Z, {%b4, %b3, %b2, %b1};"
    np.testing.assert_array_equal(apply(reverse, 4, a), a.byteswap())
    short = "mov.b32 {%h1, %h2}, A; mov.b16 {%b1, %b2}, %h2; mov.b16 %h3, {%b2, %b1}; mov.b32 Z, {%h3, %h1};"
    swapped = (a >> 16).astype(np.uint16).byteswap().astype(np.uint32) | a << 16
    np.testing.assert_array_equal(apply(short, 4, a), swapped)
    wide = "add.u64 %d5, A, 1; mov.b128 %o1, {A, %d5}; mov.b128 %o2, %o1; mov.b128 {%d6, %d7}, %o2;"
    np.testing.assert_array_equal(apply(f"{wide} xor.b64 Z, %d6, %d7;", 8, b), b ^ (b + np.uint64(1)))
    words = "mov.b128 %o1, {A, A}; mov.b128 {%r1, %r2, %r3, %r4}, %o1; mov.b128 %o2, {%r4, %r3, %r2, %r1};"
    got = apply(f"{words} mov.b128 {{_, Z}}, %o2;", 8, b)
    np.testing.assert_array_equal(got, b << np.uint64(32) | b >> np.uint64(32))
    exchanged = "mov.b64 {%r1, %r2}, A; mov.v2.u32 {%r1, %r2}, {%r2, %r1}; mov.b64 Z, {%r1, %r2};"
    np.testing.assert_array_equal(apply(exchanged, 8, b), b << np.uint64(32) | b >> np.uint64(32))
    np.testing.assert_array_equal(apply("mov.b128 %o1, 5; mov.b128 {Z, _}, %o1;", 8, b), 5)


def special(name: str, bits: int = 32, more: str = "", **options: object) -> np.ndarray:
    """A special register as 2 x 3 blocks of 40 x 2 threads see it, with 256 bytes of dynamic shared memory."""
    text = f"""
    .version 9.0
    .target sm_90
    .address_size 64
    .visible .entry k(.param .u64 out) {{
        .shared .align 4 .b8 own[64];
        .reg .b32 %r<9>; .reg .b64 %d<9>;
        .reg .pred %p<2>;
        mov.b{bits} %{"r" if bits == 32 else "d"}1, {name};
        {more}
        mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ctaid.y; mad.lo.u32 %r2, %r3, 2, %r2;
        mov.u32 %r3, %tid.x; mov.u32 %r4, %tid.y; mad.lo.u32 %r3, %r4, 40, %r3; mad.lo.u32 %r2, %r2, 80, %r3;
        ld.param.u64 %d2, [out]; mad.wide.u32 %d2, %r2, {bits // 8}, %d2;
        st.global.b{bits} [%d2], %{"r" if bits == 32 else "d"}1;
        ret;
    }}"""
    out = np.zeros((6, 80), np.uint32 if bits == 32 else np.uint64)
    emulator.load(text).launch("k", (2, 3), (40, 2), [emulator.output(out)], shared=256, **options)
    return out


@pytest.mark.parametrize("cluster", [(2, 1), (1, 3), (2, 3), (1, 1, 1)])
def test_registers_of_clusters_tell_the_place_of_a_block(cluster: tuple[int, ...]) -> None:
    width, height = cluster[:2]
    blocks = [(x, y) for y in range(3) for x in range(2)]
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for x, y in blocks:  # in the order of their ranks
        members.setdefault((x // width, y // height), []).append((x, y))
    own = [(x // width, y // height) for x, y in blocks]
    expected = {
        "%cluster_ctarank": [members[key].index(block) for key, block in zip(own, blocks, strict=True)],
        "%cluster_nctarank": [len(members[key]) for key in own],
        "%clusterid.x": [x for x, _ in own],
        "%clusterid.y": [y for _, y in own],
        "%nclusterid.y": [len({y for _, y in members})] * 6,
        "%cluster_ctaid.x": [x - members[key][0][0] for key, (x, _) in zip(own, blocks, strict=True)],
        "%cluster_ctaid.y": [y - members[key][0][1] for key, (_, y) in zip(own, blocks, strict=True)],
        "%cluster_nctaid.x": [width] * 6,
        "%cluster_nctaid.z": [1] * 6,
    }
    for name, values in expected.items():
        got = special(name, cluster=cluster)
        np.testing.assert_array_equal(got, np.broadcast_to(np.array(values)[:, None], got.shape), err_msg=name)


@pytest.mark.parametrize(
    "meets", ["barrier.cluster.arrive;", "mapa.u64 %d1, %d2, 1;", "mov.pred %p1, %is_explicit_cluster;"]
)
def test_a_cluster_whose_blocks_would_meet_is_refused(meets: str) -> None:
    with pytest.raises(LowbitvmError, match="blocks of a cluster do not meet"):
        special("%tid.x", more=meets, cluster=(2, 1))
    with pytest.raises(LowbitvmError, match="not made of clusters"):
        special("%tid.x", cluster=(1, 2))


def test_special_registers_describe_the_thread_and_the_launch() -> None:
    thread, block = np.arange(80)[None, :], np.arange(6)[:, None]
    expected = {
        "%tid.x": thread % 40,
        "%tid.y": thread // 40,
        "%ntid.x": 40,
        "%ctaid.x": block % 2,
        "%clusterid.y": block // 2,
        "%nctaid.y": 3,
        "%nclusterid.x": 2,
        "%cluster_ctaid.x": 0,
        "%cluster_nctaid.z": 1,
        "%cluster_ctarank": 0,
        "%cluster_nctarank": 1,
        "%laneid": thread % 32,
        "%warpid": thread // 32,
        "%nwarpid": 3,
        "%lanemask_lt": (1 << thread % 32) - 1,
        "%lanemask_ge": 2**32 - (1 << thread % 32),
        "%dynamic_smem_size": 256,
        "%total_smem_size": 320,
        "%smid": 0,
        "%nsmid": 1,
        "%envreg3": 0,
        "%tid.w": 0,
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(special(name), np.broadcast_to(value, (6, 80)), err_msg=name)
    np.testing.assert_array_equal(special("%gridid", 64), 0)


@pytest.mark.parametrize("name", ["%clock", "%clock64", "%globaltimer", "%globaltimer_lo"])
def test_time_only_moves_forward(name: str) -> None:
    bits = 32 if name in ("%clock", "%globaltimer_lo") else 64
    r = "%r" if bits == 32 else "%d"
    body = f"mov.u{bits} {r}5, {name}; add.u32 %r8, A, 1; mov.u{bits} {r}6, {name}; sub.u{bits} {r}7, {r}6, {r}5;"
    got = apply(f"{body} setp.gt.s{bits} %p1, {r}7, 0; selp.b32 Z, 1, 0, %p1;", 4, integers(32))
    assert (got == 1).all()


def test_special_registers_are_read_by_moves_alone() -> None:
    with pytest.raises(emulator.PtxError, match=r"add cannot read the special register %tid.x: move it first"):
        apply("add.u32 Z, A, %tid.x;", 4, integers(32))
    with pytest.raises(emulator.PtxError, match=r"%clock has 32 bits, the instruction takes .u64"):
        apply("mov.u64 Z, %clock;", 8, integers(32))
