"""Floating-point instructions of the PTX emulator in every rounding, against exact fractions and numpy."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from tests.lanes import TYPES, apply, assert_same_floats, floats, rounded


def root(value: Fraction, bits: int) -> Fraction:
    """A square root cut to `bits` bits, with a last bit that says whether something was cut."""
    shift = 2 * bits + 2 * max(0, value.denominator.bit_length())
    whole = (value.numerator << shift) // value.denominator
    result = math.isqrt(whole)
    cut = result * result != whole or (value.numerator << shift) % value.denominator != 0
    return Fraction(2 * result + cut, 2 << (shift // 2))


EXACT: dict[str, tuple[int, Callable[..., Fraction]]] = {
    "add": (2, lambda a, b: a + b),
    "sub": (2, lambda a, b: a - b),
    "mul": (2, lambda a, b: a * b),
    "div": (2, lambda a, b: a / b),
    "fma": (3, lambda a, b, c: a * b + c),
    "rcp": (1, lambda a: 1 / a),
    "sqrt": (1, lambda a: root(a, 120)),
}


def of_ordinary_size(kind: str, seed: int) -> np.ndarray:
    """Numbers over a tenth of the exponents, so that operands meet, and a few at both ends of the range."""
    rng = np.random.default_rng(seed)
    reach = 12 if kind == "f32" else 100
    values = np.ldexp(rng.uniform(1, 2, 400), rng.integers(-reach, reach, 400)) * rng.choice([-1, 1], 400)
    extreme = np.finfo(TYPES[kind])
    ends = [extreme.tiny, extreme.smallest_subnormal * 3, extreme.max, -extreme.tiny, 1 + extreme.eps, -1, 3, 0.1]
    values[rng.random(400) < 0.2] = rng.choice(np.array(ends, np.float64))
    return values.astype(TYPES[kind])


@np.errstate(all="ignore")
@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", EXACT)
def test_every_rounding_equals_exact_arithmetic(name: str, kind: str, mode: str) -> None:
    count, function = EXACT[name]
    sources = [of_ordinary_size(kind, seed) for seed in range(count)]
    if name == "sqrt":
        sources[0] = np.abs(sources[0])
    got = apply(f"{name}.{mode}.{kind} Z, {', '.join('ABC'[:count])};", sources[0].itemsize, *sources)
    expected = []
    for operands in zip(*(s.astype(np.float64).tolist() for s in sources), strict=True):
        expected.append(rounded(function(*map(Fraction, operands)), kind, mode))
    zero = np.array(expected) == 0  # an exact zero's sign is tested below
    np.testing.assert_array_equal(got.view(TYPES[kind])[zero], 0)
    assert_same_floats(got[~zero], np.array(expected)[~zero], kind)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_an_exact_zero_is_negative_only_when_rounding_down(kind: str) -> None:
    a = np.array([1.5, 0.0, -0.0, -0.0], TYPES[kind])
    b = np.array([-1.5, -0.0, 0.0, -0.0], TYPES[kind])
    down = apply(f"add.rm.{kind} Z, A, B;", a.itemsize, a, b).view(TYPES[kind])
    assert np.signbit(down).tolist() == [True, True, True, True]
    assert not np.signbit(
        apply(f"add.rm.{kind} Z, A, A;", a.itemsize, np.zeros(4, TYPES[kind])).view(TYPES[kind])
    ).any()
    nearest = apply(f"add.rz.{kind} Z, A, B;", a.itemsize, a, b).view(TYPES[kind])
    assert np.signbit(nearest).tolist() == [False, False, False, True]
    one = np.ones(4, TYPES[kind])
    fused = apply(f"fma.rm.{kind} Z, A, B, C;", a.itemsize, a, one, b).view(TYPES[kind])
    assert np.signbit(fused).tolist() == [True, True, True, True]


@np.errstate(all="ignore")
@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_directed_roundings_keep_the_special_values(mode: str) -> None:
    a, b = floats(np.float32, seed=1), floats(np.float32, seed=2)
    for name, function in {"add": np.add, "mul": np.multiply, "div": np.divide}.items():
        got = apply(f"{name}.{mode}.f32 Z, A, B;", 4, a, b)
        special = ~np.isfinite(a) | ~np.isfinite(b) | ((b == 0) & (name == "div"))
        assert_same_floats(got[special], function(a, b)[special], "f32")
    got = apply(f"sqrt.{mode}.f32 Z, A;", 4, a)
    special = ~np.isfinite(a) | (a <= 0)
    assert_same_floats(got[special], np.sqrt(a)[special], "f32")


@np.errstate(all="ignore")
@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_flushing_and_saturation_hold_for_every_rounding(mode: str) -> None:
    a, b = floats(np.float32, seed=1), np.full(2048, 0.75, np.float32)
    a[::2] = (floats(np.float32, seed=3) * np.float32(1e-38))[::2]

    def flush(x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)

    plain = apply(f"mul.{mode}.f32 Z, A, B;", 4, flush(a), b).view(np.float32)
    assert_same_floats(apply(f"mul.{mode}.ftz.f32 Z, A, B;", 4, a, b), flush(plain), "f32")
    plain = apply(f"fma.{mode}.f32 Z, A, B, B;", 4, a, b).view(np.float32)
    clamped = np.where(np.isnan(plain), 0, np.clip(plain, 0, 1))
    np.testing.assert_array_equal(apply(f"fma.{mode}.sat.f32 Z, A, B, B;", 4, a, b).view(np.float32), clamped)


@pytest.mark.parametrize("mode", ["", ".rn", ".rz", ".rm", ".rp", ".rn.ftz", ".rz.ftz"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_pairs_of_f32_equal_two_instructions(name: str, mode: str) -> None:
    if name == "fma" and not mode:
        mode = ".rn"
    count = 3 if name == "fma" else 2
    low = [floats(np.float32, seed=s) for s in range(count)]
    high = [floats(np.float32, seed=s) for s in range(5, 5 + count)]
    packed = [
        h.view(np.uint32).astype(np.uint64) << np.uint64(32) | x.view(np.uint32) for x, h in zip(low, high, strict=True)
    ]
    operands = "Z, " + ", ".join("ABC"[:count])
    both = apply(f"{name}{mode}.f32x2 {operands};", 8, *packed)
    np.testing.assert_array_equal(both.astype(np.uint32), apply(f"{name}{mode}.f32 {operands};", 4, *low))
    np.testing.assert_array_equal(both >> np.uint64(32), apply(f"{name}{mode}.f32 {operands};", 4, *high))


@pytest.mark.parametrize("mode", ["", ".rz", ".rp.sat"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mixed_formats_equal_the_conversion_and_the_f32_instruction(kind: str, mode: str) -> None:
    a, b, c = floats(TYPES[kind], seed=1), floats(TYPES[kind], seed=2), floats(np.float32, seed=3)
    wide_a, wide_b = a.astype(np.float32), b.astype(np.float32)
    for name in ("add", "sub"):
        expected = apply(f"{name}{mode}.f32 Z, A, B;", 4, wide_a, c)
        np.testing.assert_array_equal(apply(f"{name}{mode}.f32.{kind} Z, A, B;", 4, a, c), expected)
    mode = mode or ".rn"
    expected = apply(f"fma{mode}.f32 Z, A, B, C;", 4, wide_a, wide_b, c)
    np.testing.assert_array_equal(apply(f"fma{mode}.f32.{kind} Z, A, B, C;", 4, a, b, c), expected)


def extreme(values: list[float], name: str, nan: bool) -> float:
    numbers = [v for v in values if not math.isnan(v)]
    if not numbers or (nan and len(numbers) < len(values)):
        return math.nan
    return (min if name == "min" else max)(numbers, key=lambda v: (v, math.copysign(1, v)))


@np.errstate(all="ignore")
@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_the_sign_of_an_extreme_magnitude_is_the_exclusive_or(name: str, kind: str, nan: str) -> None:
    a, b = floats(TYPES[kind], seed=1), floats(TYPES[kind], seed=2)
    got = apply(f"{name}{nan}.xorsign.abs.{kind} Z, A, B;", a.itemsize, a, b)
    expected = []
    for x, y in zip(a.astype(np.float64).tolist(), b.astype(np.float64).tolist(), strict=True):
        sign = math.copysign(1, x) * math.copysign(1, y)
        expected.append(math.copysign(extreme([abs(x), abs(y)], name, bool(nan)), sign))
    assert_same_floats(got, np.array(expected), kind)


@np.errstate(all="ignore")
@pytest.mark.parametrize("modifier", ["", ".NaN", ".abs", ".ftz", ".ftz.NaN.abs"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_extremes_of_three(name: str, modifier: str) -> None:
    sources = [floats(np.float32, seed=s) for s in range(3)]
    got = apply(f"{name}{modifier}.f32 Z, A, B, C;", 4, *sources)
    if "ftz" in modifier:
        sources = [np.where(np.abs(s) < np.float32(2.0**-126), np.copysign(np.float32(0), s), s) for s in sources]
    if "abs" in modifier:
        sources = [np.abs(s) for s in sources]
    triples = zip(*(s.astype(np.float64).tolist() for s in sources), strict=True)
    assert_same_floats(got, np.array([extreme(list(t), name, "NaN" in modifier) for t in triples]), "f32")


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("modifier", [".NaN", ".xorsign.abs"])
def test_extremes_of_pairs_equal_two_instructions(modifier: str, kind: str, name: str) -> None:
    low, high = ([floats(TYPES[kind], seed=s) for s in seeds] for seeds in ((1, 2), (3, 4)))
    packed = [h.view(np.uint16).astype(np.uint32) << 16 | x.view(np.uint16) for x, h in zip(low, high, strict=True)]
    both = apply(f"{name}{modifier}.{kind}x2 Z, A, B;", 4, *packed)
    np.testing.assert_array_equal(both & 0xFFFF, apply(f"{name}{modifier}.{kind} Z, A, B;", 2, *low))
    np.testing.assert_array_equal(both >> 16, apply(f"{name}{modifier}.{kind} Z, A, B;", 2, *high))


ALL_HALVES = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def flush_f16(bits: np.ndarray) -> np.ndarray:
    return np.where(bits & 0x7C00, bits, bits & 0x8000).astype(np.uint16)


@np.errstate(all="ignore")
def test_f16_flushes_subnormal_operands_and_results() -> None:
    a, b = ALL_HALVES, np.roll(ALL_HALVES, 12345)
    np.testing.assert_array_equal(apply("neg.ftz.f16 Z, A;", 2, a), flush_f16(a) ^ 0x8000)
    np.testing.assert_array_equal(apply("abs.ftz.f16 Z, A;", 2, a), flush_f16(a) & 0x7FFF)
    small = (a & 0x8FFF) % np.uint16(0x9000)  # exponents 0 to 3
    for name in ("add", "mul"):
        plain = apply(f"{name}.f16 Z, A, B;", 2, flush_f16(small), flush_f16(b))
        np.testing.assert_array_equal(apply(f"{name}.ftz.f16 Z, A, B;", 2, small, b), flush_f16(plain))
    plain = apply("fma.rn.f16 Z, A, B, A;", 2, flush_f16(small), flush_f16(b))
    np.testing.assert_array_equal(apply("fma.rn.ftz.f16 Z, A, B, A;", 2, small, b), flush_f16(plain))
    plain = apply("min.f16 Z, A, B;", 2, flush_f16(small), flush_f16(b))
    np.testing.assert_array_equal(apply("min.ftz.f16 Z, A, B;", 2, small, b), plain)
    less = apply("setp.lt.ftz.f16 %p1, A, B; selp.b32 Z, 1, 0, %p1;", 4, small, b)
    np.testing.assert_array_equal(less, flush_f16(small).view(np.float16) < flush_f16(b).view(np.float16))


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize(("name", "function"), [("ex2", np.exp2), ("tanh", np.tanh)])
def test_sixteen_bit_functions_round_the_true_value_within_a_unit(
    name: str, function: Callable[..., np.ndarray], kind: str
) -> None:
    a = ALL_HALVES.view(TYPES[kind])
    flush = ".ftz" if (name, kind) == ("ex2", "bf16") else ""
    got = apply(f"{name}.approx{flush}.{kind} Z, A;", 2, a)
    value = got.view(TYPES[kind]).astype(np.float64)
    true = function(a.astype(np.float64))
    np.testing.assert_array_equal(np.isnan(value), np.isnan(true))
    largest = float(rounded(Fraction(2) ** 200, kind, "rz"))
    for n in np.flatnonzero(np.isfinite(true) & (np.abs(true) <= largest)):
        near = [rounded(Fraction(float(true[n])), kind, mode) for mode in ("rm", "rp")]
        if flush:
            near = [x if abs(x) >= 2.0**-126 else 0.0 for x in near]
        assert value[n] in near, (a[n], value[n], near)
    np.testing.assert_array_equal(value[true > 2 * largest], np.inf)
    assert (got[np.isnan(true)] == 0x7FFF).all()


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_copysign_takes_the_sign_of_its_first_source(kind: str) -> None:
    a, b = floats(TYPES[kind], seed=1), floats(TYPES[kind], seed=2)
    got = apply(f"copysign.{kind} Z, A, B;", a.itemsize, a, b)
    np.testing.assert_array_equal(got.view(TYPES[kind]), np.copysign(b, a))


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_properties_of_numbers(kind: str) -> None:
    a = floats(TYPES[kind], seed=1)
    normal = np.isfinite(a) & (np.abs(a) >= np.finfo(TYPES[kind]).tiny) | (a == 0)
    truths = {
        "finite": np.isfinite(a),
        "infinite": np.isinf(a),
        "number": ~np.isnan(a),
        "notanumber": np.isnan(a),
        "normal": normal,
        "subnormal": np.isfinite(a) & ~normal & (a != 0),
    }
    for name, truth in truths.items():
        got = apply(f"testp.{name}.{kind} %p1, A; selp.b32 Z, 1, 0, %p1;", 4, a)
        np.testing.assert_array_equal(got, truth, err_msg=name)


@np.errstate(all="ignore")
@pytest.mark.parametrize(("name", "function"), [("rcp", lambda x: 1 / x), ("rsqrt", lambda x: x**-0.5)])
def test_the_gross_approximation_of_f64_is_of_the_upper_words(name: str, function: Callable[..., np.ndarray]) -> None:
    a = floats(np.float64, seed=1)
    a[::2] = np.abs(a[::2])
    got = apply(f"{name}.approx.ftz.f64 Z, A;", 8, a)
    assert (got[~np.isnan(got.view(np.float64))] & np.uint64(0xFFFFFFFF) == 0).all()
    upper = (a.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
    upper = np.where(np.abs(upper) < 2.0**-1022, np.copysign(0.0, upper), upper)
    expected = function(upper) if name == "rcp" else 1 / np.sqrt(upper)
    expected = np.where(np.abs(expected) < 2.0**-1022, np.copysign(0.0, expected), expected)
    ordinary = np.isfinite(expected) & (expected != 0)
    assert (np.abs(got.view(np.float64) / expected - 1)[ordinary] < 2.0**-19).all()
    np.testing.assert_array_equal(got.view(np.float64)[~ordinary], expected[~ordinary])


def test_approximate_division_by_more_than_2_to_126_gives_zero() -> None:
    a = np.array([2, -2, np.inf, 2, 2], np.float32)
    b = np.array([2.0**127, 1.5 * 2.0**126, 2.0**127, 2.0**126, np.inf], np.float32)
    got = apply("div.approx.f32 Z, A, B;", 4, a, b).view(np.float32)
    assert got[:2].tolist() == [0, 0]
    assert np.isnan(got[2])
    assert got[3:].tolist() == [2.0**-125, 0]
    full = apply("div.full.f32 Z, A, B;", 4, a, b).view(np.float32)
    assert full[:3].tolist() == [2.0**-126, np.float32(-(2.0**-125) / 1.5), np.inf]
