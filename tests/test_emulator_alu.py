"""Every arithmetic instruction of the PTX emulator against exact integers, numpy and ml_dtypes."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.lanes import NUMPY, TYPES, apply, assert_same_floats, exact, floats, integers, read, rounded, signed


def truncating(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
    "div": truncating,
    "rem": lambda a, b: a - b * truncating(a, b),
}


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", BINARY)
def test_integer_arithmetic_wraps_like_exact_integers(name: str, kind: str) -> None:
    bits = int(kind[1:])
    a, b = integers(bits, seed=1), integers(bits, seed=2)
    if name in ("div", "rem"):
        b[b == 0] = 3
    got = apply(f"{name}.{kind} Z, A, B;", bits // 8, a, b)
    expected = [BINARY[name](read(kind, int(x)), read(kind, int(y))) % (1 << bits) for x, y in zip(a, b, strict=True)]
    assert got.tolist() == expected


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_products_keep_every_bit(kind: str) -> None:
    bits = int(kind[1:])
    a, b, c = integers(bits, seed=1), integers(bits, seed=2), integers(2 * bits, seed=3)
    product = [read(kind, int(x)) * read(kind, int(y)) for x, y in zip(a, b, strict=True)]
    assert apply(f"mul.wide.{kind} Z, A, B;", bits // 4, a, b).tolist() == [p % (1 << 2 * bits) for p in product]
    got = apply(f"mad.wide.{kind} Z, A, B, C;", bits // 4, a, b, c)
    assert got.tolist() == [(p + int(z)) % (1 << 2 * bits) for p, z in zip(product, c, strict=True)]


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_the_high_half_of_a_product_and_mad_are_exact(kind: str) -> None:
    bits = int(kind[1:])
    a, b, c = (integers(bits, seed=s) for s in (1, 2, 3))
    high = [(read(kind, int(x)) * read(kind, int(y)) >> bits) % (1 << bits) for x, y in zip(a, b, strict=True)]
    assert apply(f"mul.hi.{kind} Z, A, B;", bits // 8, a, b).tolist() == high
    low = [(int(x) * int(y) + int(z)) % (1 << bits) for x, y, z in zip(a, b, c, strict=True)]
    assert apply(f"mad.lo.{kind} Z, A, B, C;", bits // 8, a, b, c).tolist() == low
    if bits == 32:
        sums = [(h + int(z)) % (1 << bits) for h, z in zip(high, c, strict=True)]
        assert apply(f"mad.hi.{kind} Z, A, B, C;", 4, a, b, c).tolist() == sums


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic_and_negation_work_on_every_width(bits: int) -> None:
    a, b = integers(bits, seed=1), integers(bits, seed=2)
    size = bits // 8
    np.testing.assert_array_equal(apply(f"and.b{bits} Z, A, B;", size, a, b), a & b)
    np.testing.assert_array_equal(apply(f"or.b{bits} Z, A, B;", size, a, b), a | b)
    np.testing.assert_array_equal(apply(f"xor.b{bits} Z, A, B;", size, a, b), a ^ b)
    np.testing.assert_array_equal(apply(f"not.b{bits} Z, A;", size, a), ~a)
    np.testing.assert_array_equal(apply(f"cnot.b{bits} Z, A;", size, a), a == 0)
    assert apply(f"neg.s{bits} Z, A;", size, a).tolist() == [-int(x) % (1 << bits) for x in a]
    assert apply(f"abs.s{bits} Z, A;", size, a).tolist() == [abs(signed(int(x), bits)) % (1 << bits) for x in a]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shift_counts_at_and_above_the_width_give_zero_or_the_sign(bits: int) -> None:
    a = integers(bits, seed=1)
    n = np.random.default_rng(0).choice(np.array([0, 1, 15, 16, 31, 32, 33, 63, 64, 65, 255, 2**31], np.uint32), a.size)
    left = [(int(x) << min(int(c), 64)) % (1 << bits) for x, c in zip(a, n, strict=True)]
    assert apply(f"shl.b{bits} Z, A, B;", bits // 8, a, n).tolist() == left
    right = [int(x) >> min(int(c), 64) for x, c in zip(a, n, strict=True)]
    assert apply(f"shr.u{bits} Z, A, B;", bits // 8, a, n).tolist() == right
    arithmetic = [(signed(int(x), bits) >> min(int(c), 64)) % (1 << bits) for x, c in zip(a, n, strict=True)]
    assert apply(f"shr.s{bits} Z, A, B;", bits // 8, a, n).tolist() == arithmetic


@pytest.mark.parametrize("direction", ["l", "r"])
@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_funnel_shifts_clamp_or_wrap_their_count(direction: str, mode: str) -> None:
    a, b = integers(32, seed=1), integers(32, seed=2)
    n = np.random.default_rng(0).choice(np.array([0, 1, 31, 32, 33, 64, 2**31 + 5], np.uint32), a.size)
    expected = []
    for x, y, c in zip(a.tolist(), b.tolist(), n.tolist(), strict=True):
        count = min(c, 32) if mode == "clamp" else c & 31
        pair = y << 32 | x
        expected.append((pair << count >> 32 if direction == "l" else pair >> count) & 0xFFFFFFFF)
    assert apply(f"shf.{direction}.{mode}.b32 Z, A, B, C;", 4, a, b, n).tolist() == expected


def test_lop3_follows_all_256_truth_tables() -> None:
    a, b, c = (integers(32, 128, seed=s) for s in (1, 2, 3))
    chunks = "".join(f"lop3.b32 %r4, A, B, C, {t}; mad.lo.u32 Z, Z, 31, %r4;" for t in range(256))
    got = apply("mov.u32 Z, 0;" + chunks, 4, a, b, c)
    expected = np.zeros_like(a)
    for table in range(256):
        value = np.zeros_like(a)
        for bit in range(8):
            if table >> bit & 1:
                value |= (a if bit & 4 else ~a) & (b if bit & 2 else ~b) & (c if bit & 1 else ~c)
        expected = expected * np.uint32(31) + value
    np.testing.assert_array_equal(got, expected)


# The manual's tables: bytes (most significant first) chosen for selector values 0..3.
PRMT_MODES = {
    "f4e": ("3210", "4321", "5432", "6543"),
    "b4e": ("5670", "6701", "7012", "0123"),
    "rc8": ("0000", "1111", "2222", "3333"),
    "ecl": ("3210", "3211", "3222", "3333"),
    "ecr": ("0000", "1110", "2210", "3210"),
    "rc16": ("1010", "3232", "1010", "3232"),
}


@pytest.mark.parametrize("mode", ["", *PRMT_MODES])
def test_prmt_picks_bytes_and_replicates_signs_in_generic_mode_only(mode: str) -> None:
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))
    expected = []
    for x, y, selector in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        pool = [(y << 32 | x) >> 8 * n & 255 for n in range(8)]
        if mode:
            chosen = [pool[int(digit)] for digit in reversed(PRMT_MODES[mode][selector & 3])]
        else:
            nibbles = [selector >> 4 * n & 15 for n in range(4)]
            chosen = [(255 if pool[n & 7] & 128 else 0) if n & 8 else pool[n & 7] for n in nibbles]
        expected.append(int.from_bytes(bytes(chosen), "little"))
    assert apply(f"prmt.b32{'.' + mode if mode else ''} Z, A, B, C;", 4, a, b, c).tolist() == expected


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_field_extraction_follows_the_manual(kind: str) -> None:
    bits = int(kind[1:])
    a = integers(bits, seed=1)
    rng = np.random.default_rng(0)
    position, length = (
        rng.choice(np.array([0, 1, 7, 16, 31, 32, 33, 63, 64, 200, 256 + 4], np.uint32), a.size) for _ in "pl"
    )
    expected = []
    for x, p, n in zip(a.tolist(), position.tolist(), length.tolist(), strict=True):
        p, n = p & 255, n & 255
        sign = 0 if kind[0] == "u" or n == 0 else x >> min(p + n - 1, bits - 1) & 1
        picked = [x >> (p + i) & 1 if i < n and p + i < bits else sign for i in range(bits)]
        expected.append(sum(bit << i for i, bit in enumerate(picked)))
    assert apply(f"bfe.{kind} Z, A, B, C;", bits // 8, a, position, length).tolist() == expected


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_field_insertion_follows_the_manual(bits: int) -> None:
    a, b = integers(bits, seed=1), integers(bits, seed=2)
    rng = np.random.default_rng(0)
    position, length = (
        rng.choice(np.array([0, 1, 7, 16, 31, 32, 33, 63, 64, 200, 256 + 4], np.uint32), a.size) for _ in "pl"
    )
    expected = []
    for x, y, p, n in zip(a.tolist(), b.tolist(), position.tolist(), length.tolist(), strict=True):
        p, n = p & 255, n & 255
        expected.append(sum((x >> (i - p) if p <= i < p + n else y >> i) % 2 << i if i < p or i >= p + n else
                            (x >> (i - p) & 1) << i for i in range(bits)))  # fmt: skip
    assert apply(f"bfi.b{bits} Z, A, B, C, D;", bits // 8, a, b, position, length).tolist() == expected


@pytest.mark.parametrize("bits", [32, 64])
def test_bits_are_counted_and_reversed(bits: int) -> None:
    a = integers(bits, seed=1)
    assert apply(f"popc.b{bits} Z, A;", 4, a).tolist() == [int(x).bit_count() for x in a]
    assert apply(f"clz.b{bits} Z, A;", 4, a).tolist() == [bits - int(x).bit_length() for x in a]
    reversed_bits = [int(f"{int(x):0{bits}b}"[::-1], 2) for x in a]
    assert apply(f"brev.b{bits} Z, A;", bits // 8, a).tolist() == reversed_bits


@pytest.mark.parametrize("signs", ["u32.u32", "s32.s32", "u32.s32", "s32.u32"])
def test_dp4a_sums_four_byte_products(signs: str) -> None:
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))
    kinds = [f"{sign[0]}8" for sign in signs.split(".")]
    expected = []
    for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        products = (read(kinds[0], x >> 8 * n & 255) * read(kinds[1], y >> 8 * n & 255) for n in range(4))
        expected.append((z + sum(products)) % 2**32)
    assert apply(f"dp4a.{signs} Z, A, B, C;", 4, a, b, c).tolist() == expected


COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", COMPARE)
def test_integer_comparisons_respect_signs(name: str, kind: str) -> None:
    bits = int(kind[1:])
    a, b = integers(bits, seed=1), integers(bits, seed=2)
    got = apply(f"setp.{name}.{kind} %p1, A, B; selp.u32 Z, 7, 9, %p1;", 4, a, b)
    truth = [COMPARE[name](read(kind, int(x)), read(kind, int(y))) for x, y in zip(a, b, strict=True)]
    assert got.tolist() == [7 if t else 9 for t in truth]


@pytest.mark.parametrize(("join", "combine"), [("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)])
def test_setp_joins_both_results_with_a_third_predicate(join: str, combine: Callable[..., np.ndarray]) -> None:
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))
    body = f"setp.lt.u32 %p3, C, 0x80000000; setp.lt.{join}.u32 %p1|%p2, A, B, !%p3;"
    got = apply(body + "selp.u32 Z, 2, 0, %p1; @%p2 add.u32 Z, Z, 1;", 4, a, b, c)
    other = ~(c < 0x80000000)
    np.testing.assert_array_equal(got, 2 * combine(a < b, other) + combine(~(a < b), other))


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_float_arithmetic_rounds_once(name: str, kind: str) -> None:
    a, b = floats(TYPES[kind], seed=1), floats(TYPES[kind], seed=2)
    got = apply(f"{name}.rn.{kind} Z, A, B;" if kind == "f32" else f"{name}.{kind} Z, A, B;", a.itemsize, a, b)
    wide = np.float64 if kind in ("f32", "f64") else np.float32
    operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name]
    expected = (
        operation(a, b) if kind in ("f32", "f64") else operation(a.astype(wide), b.astype(wide)).astype(TYPES[kind])
    )
    assert_same_floats(got, expected, kind)


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_fused_multiply_add_of_16_bits_equals_exact_arithmetic(kind: str) -> None:
    a, b, c = (floats(TYPES[kind], seed=s) for s in (1, 2, 3))
    c[::3] = (-a.astype(np.float64) * b.astype(np.float64)).astype(TYPES[kind])[::3]  # cancellation
    got = apply(f"fma.rn.{kind} Z, A, B, C;", 2, a, b, c)
    x, y, z = (v.astype(np.float64) for v in (a, b, c))
    expected = (x * y + z).astype(np.float64)
    finite = np.isfinite(expected) & (expected != 0)
    for n in np.flatnonzero(finite):
        expected[n] = rounded(exact(x[n]) * exact(y[n]) + exact(z[n]), kind)
    assert_same_floats(got, expected, kind)


@np.errstate(all="ignore")
def test_fused_multiply_add_of_f32_equals_exact_arithmetic() -> None:
    a, b, c = (floats(np.float32, seed=s) for s in (1, 2, 3))
    c[::3] = -a[::3] * b[::3]
    got = apply("fma.rn.f32 Z, A, B, C;", 4, a, b, c).view(np.float32)
    expected = (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)
    for n in np.flatnonzero(np.isfinite(expected)):
        value = exact(float(a[n])) * exact(float(b[n])) + exact(float(c[n]))
        error = abs(exact(float(got[n])) - value)
        spacing = exact(float(np.spacing(np.abs(got[n]))))
        assert error <= spacing / 2
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    assert (got.view(np.uint32)[nan] == 0x7FFFFFFF).all()


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["min", "max"])
def test_minimum_and_maximum_prefer_numbers_and_order_zeros(name: str, kind: str) -> None:
    a, b = floats(TYPES[kind], seed=1), floats(TYPES[kind], seed=2)
    got = apply(f"{name}.{kind} Z, A, B;", a.itemsize, a, b)
    expected = []
    for x, y in zip(a.astype(np.float64).tolist(), b.astype(np.float64).tolist(), strict=True):
        numbers = [v for v in (x, y) if not math.isnan(v)]
        choose = min if name == "min" else max
        expected.append(choose(numbers, key=lambda v: (v, math.copysign(1, v))) if numbers else math.nan)
    assert_same_floats(got, np.array(expected), kind)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "min", "max", "fma"])
def test_packed_halves_equal_two_scalar_operations(name: str, kind: str) -> None:
    low = [floats(TYPES[kind], seed=s) for s in (1, 2, 3)][: 3 if name == "fma" else 2]
    high = [floats(TYPES[kind], seed=s) for s in (4, 5, 6)][: 3 if name == "fma" else 2]
    packed = [h.view(np.uint16).astype(np.uint32) << 16 | x.view(np.uint16) for x, h in zip(low, high, strict=True)]
    instruction = f"{name}.rn.{kind}" if name == "fma" else f"{name}.{kind}"
    operands = "Z, " + ", ".join("ABC"[: len(low)])
    both = apply(f"{instruction}x2 {operands};", 4, *packed)
    np.testing.assert_array_equal(both & 0xFFFF, apply(f"{instruction} {operands};", 2, *low))
    np.testing.assert_array_equal(both >> 16, apply(f"{instruction} {operands};", 2, *high))


@pytest.mark.parametrize("kind", TYPES)
def test_negation_and_absolute_value_only_touch_the_sign(kind: str) -> None:
    a = floats(TYPES[kind], seed=1)
    bits = a.view(NUMPY[a.itemsize])
    sign = NUMPY[a.itemsize](1 << (8 * a.itemsize - 1))
    np.testing.assert_array_equal(apply(f"neg.{kind} Z, A;", a.itemsize, a), bits ^ sign)
    np.testing.assert_array_equal(apply(f"abs.{kind} Z, A;", a.itemsize, a), bits & ~sign)


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", TYPES)
def test_float_comparisons_are_false_or_unordered_with_nan(kind: str) -> None:
    a, b = floats(TYPES[kind], seed=1), floats(TYPES[kind], seed=2)
    b[::4] = a[::4]
    x, y = a.astype(np.float64), b.astype(np.float64)
    unordered = np.isnan(x) | np.isnan(y)
    ordered = {"eq": x == y, "ne": (x != y) & ~unordered, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}
    cases = ordered | {name + "u": truth | unordered for name, truth in ordered.items()}
    for name, truth in (cases | {"num": ~unordered, "nan": unordered}).items():
        got = apply(f"setp.{name}.{kind} %p1, A, B; selp.u32 Z, 1, 0, %p1;", 4, a, b)
        np.testing.assert_array_equal(got, truth, err_msg=name)


@np.errstate(all="ignore")
def test_flush_to_zero_and_saturation_change_f32_results() -> None:
    a, b = floats(np.float32, seed=1), floats(np.float32, seed=2)
    a[::2] = (floats(np.float32, seed=3) * np.float32(1e-38))[::2]
    b[::2] = np.float32(1)

    def flush(x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)

    assert_same_floats(apply("mul.ftz.f32 Z, A, B;", 4, a, b), flush(flush(a) * flush(b)), "f32")
    expected = np.where(np.isnan(a + b), np.float32(0), np.clip(a + b, 0, 1) + np.float32(0))
    assert_same_floats(apply("add.sat.f32 Z, A, B;", 4, a, b), expected, "f32")


@np.errstate(all="ignore")
def test_half_precision_flags_flush_saturate_and_rectify() -> None:
    a, b, c = (floats(np.float16, seed=s) for s in (1, 2, 3))
    a[::3] = (a[::3].astype(np.float32) * 2.0**-16).astype(np.float16)

    def flush(x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(x) < np.float16(2.0**-14), np.copysign(np.float16(0), x), x)

    total = (flush(a).astype(np.float32) + flush(b).astype(np.float32)).astype(np.float16)
    got = apply("add.ftz.f16 Z, A, B;", 2, a, b)
    large = np.abs(total) >= np.float16(2.0**-14)
    np.testing.assert_array_equal(got[large], total.view(np.uint16)[large])
    both = apply("add.sat.f16 Z, A, B;", 2, a, b).view(np.float16)
    plain = apply("add.f16 Z, A, B;", 2, a, b).view(np.float16)
    np.testing.assert_array_equal(both, np.where(np.isnan(plain), 0, np.clip(plain, 0, 1)))
    fused = apply("fma.rn.f16 Z, A, B, C;", 2, a, b, c).view(np.float16)
    rectified = apply("fma.rn.relu.f16 Z, A, B, C;", 2, a, b, c).view(np.float16)
    np.testing.assert_array_equal(rectified, np.where(fused < 0, 0, fused))


@np.errstate(all="ignore")
def test_division_and_roots_are_correctly_rounded() -> None:
    a, b = floats(np.float32, seed=1), floats(np.float32, seed=2)
    assert_same_floats(apply("div.rn.f32 Z, A, B;", 4, a, b), a / b, "f32")
    assert_same_floats(apply("rcp.rn.f32 Z, A;", 4, a), np.float32(1) / a, "f32")
    assert_same_floats(apply("sqrt.rn.f32 Z, A;", 4, a), np.sqrt(a), "f32")
    wide = floats(np.float64, seed=3)
    assert_same_floats(apply("sqrt.rn.f64 Z, A;", 8, wide), np.sqrt(wide), "f64")


@np.errstate(all="ignore")
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("ex2", np.exp2),
        ("lg2", np.log2),
        ("sin", np.sin),
        ("cos", np.cos),
        ("tanh", np.tanh),
        ("rsqrt", lambda x: x**-0.5),
    ],
)
def test_approximate_functions_are_within_two_units_of_the_true_value(
    name: str, function: Callable[..., np.ndarray]
) -> None:
    a = np.abs(np.random.default_rng(0).standard_normal(512)).astype(np.float32) + np.float32(0.1)
    got = apply(f"{name}.approx.f32 Z, A;", 4, a).view(np.float32)
    expected = function(a.astype(np.float64))
    assert (np.abs(got - expected) <= 2 * np.spacing(np.abs(expected).astype(np.float32))).all()


def clamp(value: int, kind: str) -> int:
    low, high = bounds(kind)
    return min(max(value, low), high)


@pytest.mark.parametrize("kind", ["u16", "s16", "u64", "s64"])
def test_the_high_half_plus_a_third_wraps(kind: str) -> None:
    bits = int(kind[1:])
    a, b, c = (integers(bits, seed=s) for s in (1, 2, 3))
    expected = [
        ((read(kind, int(x)) * read(kind, int(y)) >> bits) + int(z)) % (1 << bits)
        for x, y, z in zip(a, b, c, strict=True)
    ]
    assert apply(f"mad.hi.{kind} Z, A, B, C;", bits // 8, a, b, c).tolist() == expected


@pytest.mark.parametrize(("name", "kind"), [("add", "s32"), ("sub", "s32"), ("add", "u32")])
def test_saturating_sums_stop_at_the_ends_of_the_range(name: str, kind: str) -> None:
    a, b = integers(32, seed=1), integers(32, seed=2)
    values = [clamp(BINARY[name](read(kind, int(x)), read(kind, int(y))), kind) for x, y in zip(a, b, strict=True)]
    assert apply(f"{name}.sat.{kind} Z, A, B;", 4, a, b, target="sm_120a").tolist() == [v % 2**32 for v in values]


def test_saturating_high_products_stop_at_the_ends_of_the_range() -> None:
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))
    x, y, z = ([signed(int(v), 32) for v in source] for source in (a, b, c))
    expected = [clamp((i * j >> 32) + k, "s32") % 2**32 for i, j, k in zip(x, y, z, strict=True)]
    assert apply("mad.hi.sat.s32 Z, A, B, C;", 4, a, b, c).tolist() == expected


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_products_of_24_bits_ignore_the_upper_bytes(kind: str) -> None:
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))
    low = [[read(kind[0] + "24", int(v) % 2**24) for v in source] for source in (a, b)]
    products = [x * y for x, y in zip(*low, strict=True)]
    assert apply(f"mul24.lo.{kind} Z, A, B;", 4, a, b).tolist() == [p % 2**32 for p in products]
    assert apply(f"mul24.hi.{kind} Z, A, B;", 4, a, b).tolist() == [(p >> 16) % 2**32 for p in products]
    sums = [p + int(z) for p, z in zip(products, c, strict=True)]
    assert apply(f"mad24.lo.{kind} Z, A, B, C;", 4, a, b, c).tolist() == [s % 2**32 for s in sums]
    high = [(p >> 16) + read(kind, int(z)) for p, z in zip(products, c, strict=True)]
    assert apply(f"mad24.hi.{kind} Z, A, B, C;", 4, a, b, c).tolist() == [h % 2**32 for h in high]
    if kind == "s32":
        got = apply("mad24.hi.sat.s32 Z, A, B, C;", 4, a, b, c)
        assert got.tolist() == [clamp(h, "s32") % 2**32 for h in high]


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_absolute_differences_are_added(kind: str) -> None:
    bits = int(kind[1:])
    a, b, c = (integers(bits, seed=s) for s in (1, 2, 3))
    values = zip(a, b, c, strict=True)
    expected = [(int(z) + abs(read(kind, int(x)) - read(kind, int(y)))) % (1 << bits) for x, y, z in values]
    assert apply(f"sad.{kind} Z, A, B, C;", bits // 8, a, b, c).tolist() == expected


PAIRED: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "add.u16x2": ("u", lambda a, b: a + b),
    "add.s16x2": ("s", lambda a, b: a + b),
    "add.sat.u16x2": ("u", lambda a, b: clamp(a + b, "u16")),
    "add.sat.s16x2": ("s", lambda a, b: clamp(a + b, "s16")),
    "min.u16x2": ("u", min),
    "min.s16x2": ("s", min),
    "max.u16x2": ("u", max),
    "max.s16x2": ("s", max),
    "min.relu.s16x2": ("s", lambda a, b: max(min(a, b), 0)),
    "max.relu.s16x2": ("s", lambda a, b: max(a, b, 0)),
}


@pytest.mark.parametrize("name", PAIRED)
def test_pairs_of_16_bits_work_half_by_half(name: str) -> None:
    sign, function = PAIRED[name]
    halves = [[integers(16, seed=s) for s in seeds] for seeds in ((1, 2), (3, 4))]  # low, high
    a, b = (high.astype(np.uint32) << 16 | low for low, high in zip(*halves, strict=True))
    got = apply(f"{name} Z, A, B;", 4, a, b, target="sm_120a")
    for n, (x, y) in enumerate(halves):
        values = [
            function(read(sign + "16", int(i)), read(sign + "16", int(j))) % 2**16 for i, j in zip(x, y, strict=True)
        ]
        assert (got >> 16 * n & 0xFFFF).tolist() == values


@pytest.mark.parametrize(("name", "function"), [("min", min), ("max", max)])
def test_rectified_extremes_are_not_negative(name: str, function: Callable[[int, int], int]) -> None:
    a, b = integers(32, seed=1), integers(32, seed=2)
    expected = [max(function(signed(int(x), 32), signed(int(y), 32)), 0) for x, y in zip(a, b, strict=True)]
    assert apply(f"{name}.relu.s32 Z, A, B;", 4, a, b).tolist() == expected


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_carries_and_borrows_join_words_to_wider_numbers(kind: str) -> None:
    bits = int(kind[1:])
    low_a, high_a, low_b, high_b = (integers(bits, seed=s) for s in range(4))
    a, b = ([h << bits | x for x, h in zip(low.tolist(), high.tolist(), strict=True)] for low, high in
            ((low_a, high_a), (low_b, high_b)))  # fmt: skip
    r = "%r" if bits == 32 else "%d"
    sources = (low_a, high_a, low_b, high_b)
    for name, total in {"add": [x + y for x, y in zip(a, b, strict=True)],
                        "sub": [x - y for x, y in zip(a, b, strict=True)]}.items():  # fmt: skip
        chain = f"{name}.cc.{kind} {r}5, A, C; {name}c.cc.{kind} {r}6, B, D; {name}c.{kind} {r}7, 0, 0;"
        for word, register in enumerate(("5", "6", "7")):
            got = apply(f"{chain} mov.b{bits} Z, {r}{register};", bits // 8, *sources)
            assert got.tolist() == [(t >> bits * word) % (1 << bits) for t in total], (name, word)


def test_products_of_64_bits_come_from_words_with_carries() -> None:
    a, b = integers(64, seed=1), integers(64, seed=2)
    split = "mov.b64 {%r1, %r2}, A; mov.b64 {%r3, %r4}, B;"  # the manual's example for madc
    product = (
        "mul.lo.u32 %r5, %r1, %r3; mul.hi.u32 %r6, %r1, %r3; mad.lo.cc.u32 %r6, %r2, %r3, %r6;"
        "madc.hi.u32 %r7, %r2, %r3, 0; mad.lo.cc.u32 %r6, %r1, %r4, %r6; madc.hi.cc.u32 %r7, %r1, %r4, %r7;"
        "addc.u32 %r8, 0, 0; mad.lo.cc.u32 %r7, %r2, %r4, %r7; madc.hi.u32 %r8, %r2, %r4, %r8;"
    )
    expected = [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    low = apply(f"{split}{product} mov.b64 Z, {{%r5, %r6}};", 8, a, b)
    assert low.tolist() == [p % 2**64 for p in expected]
    assert apply(f"{split}{product} mov.b64 Z, {{%r7, %r8}};", 8, a, b).tolist() == [p >> 64 for p in expected]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("how", ["lo", "hi"])
def test_multiply_and_add_with_carry_of_every_type(kind: str, how: str) -> None:
    bits = int(kind[1:])
    a, b, c = (integers(bits, seed=s) for s in (1, 2, 3))
    r = "%r" if bits == 32 else "%d"
    sums = []
    for x, y, z in zip(a, b, c, strict=True):
        product = read(kind, int(x)) * read(kind, int(y))
        sums.append((product >> (bits if how == "hi" else 0)) % (1 << bits) + int(z))
    chain = f"mad.{how}.cc.{kind} {r}5, A, B, C; madc.{how}.{kind} {r}6, A, B, C;"
    got = apply(f"{chain} mov.b{bits} Z, {r}6;", bits // 8, a, b, c)
    assert got.tolist() == [(s + (s >> bits)) % (1 << bits) for s in sums]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_the_highest_significant_bit_is_found(kind: str) -> None:
    bits = int(kind[1:])
    a = integers(bits, seed=1)
    significant = [v if v >= 0 else ~v for v in (read(kind, int(x)) for x in a)]
    places = [v.bit_length() - 1 if v else 0xFFFFFFFF for v in significant]
    assert apply(f"bfind.{kind} Z, A;", 4, a).tolist() == places
    shifts = [bits - v.bit_length() if v else 0xFFFFFFFF for v in significant]
    assert apply(f"bfind.shiftamt.{kind} Z, A;", 4, a).tolist() == shifts


def test_the_nth_set_bit_is_found_in_both_directions() -> None:
    rng = np.random.default_rng(0)
    mask, base = integers(32, seed=1), rng.integers(0, 32, 512).astype(np.uint32)
    offset = rng.choice(np.array([0, 1, -1, 2, -2, 5, -7, 31, -32, 40, -(2**31), 2**31 - 1]), 512).astype(np.int32)
    expected = []
    for m, b, n in zip(mask.tolist(), base.tolist(), offset.tolist(), strict=True):
        bits = [place for place in range(32) if m >> place & 1]
        if n == 0:
            found = [place for place in bits if place == b]
        else:
            found = [p for p in bits if p >= b][n - 1 :] if n > 0 else [p for p in bits[::-1] if p <= b][-n - 1 :]
        expected.append(found[0] if found else 0xFFFFFFFF)
    assert apply("fns.b32 Z, A, B, C;", 4, mask, base, offset.view(np.uint32)).tolist() == expected


EDGES = np.array([0, 1, 2, 15, 30, 31, 32, 33, 63, 64, 255, 2**31, 2**32 - 1], np.uint32)


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_bit_masks_of_a_place_and_a_width(mode: str) -> None:
    a, b = (v.reshape(-1).copy() for v in np.meshgrid(EDGES, EDGES))
    expected = []
    for place, width in zip(a.tolist(), b.tolist(), strict=True):
        if mode == "wrap":
            place, width = place & 31, width & 31
        expected.append(((1 << min(width, 32)) - 1 << min(place, 32)) % 2**32)
    assert apply(f"bmsk.{mode}.b32 Z, A, B;", 4, a, b).tolist() == expected


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_extension_of_the_low_bits(kind: str, mode: str) -> None:
    a = integers(32, seed=1)
    n = np.resize(EDGES, a.size)
    expected = []
    for x, width in zip(a.tolist(), n.tolist(), strict=True):
        width = width & 31 if mode == "wrap" else min(width, 32)
        expected.append(read(f"{kind[0]}{width}", x % (1 << width)) % 2**32 if width else 0)
    assert apply(f"szext.{mode}.{kind} Z, A, B;", 4, a, n).tolist() == expected


@pytest.mark.parametrize("half", ["lo", "hi"])
@pytest.mark.parametrize("signs", ["u32.u32", "s32.s32", "u32.s32", "s32.u32"])
def test_dp2a_sums_two_products_of_16_and_8_bits(signs: str, half: str) -> None:
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))
    first, second = (sign[0] for sign in signs.split("."))
    expected = []
    for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        y >>= 16 if half == "hi" else 0
        terms = (read(first + "16", x >> 16 * n & 65535) * read(second + "8", y >> 8 * n & 255) for n in range(2))
        expected.append((z + sum(terms)) % 2**32)
    assert apply(f"dp2a.{half}.{signs} Z, A, B, C;", 4, a, b, c).tolist() == expected


@pytest.mark.parametrize(("join", "combine"), [("and", np.logical_and), ("or", np.logical_or)])
def test_lop3_can_also_say_whether_its_result_is_zero(join: str, combine: Callable[..., np.ndarray]) -> None:
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))
    start = "setp.lt.u32 %p3, C, 0x80000000;"
    body = f"{start} lop3.{join}.b32 %r5|%p1, A, B, C, 0x80, !%p3; selp.b32 Z, 1, 0, %p1;"
    value = a & b & c
    np.testing.assert_array_equal(apply(body, 4, a, b, c), combine(value != 0, c >= 0x80000000))
    np.testing.assert_array_equal(apply(body + "mov.b32 Z, %r5;", 4, a, b, c), value)


SET_SOURCES = ("u16", "s32", "b64", "f32", "f64", "f16", "bf16")


@np.errstate(all="ignore")
@pytest.mark.parametrize("target", ["u32", "s32", "f32", "u16", "f16", "bf16"])
@pytest.mark.parametrize("source", SET_SOURCES)
def test_set_writes_ones_or_one_where_the_comparison_holds(source: str, target: str) -> None:
    halves = ("f16", "bf16")
    if (target == "u16" and source not in halves) or (target == "f32" and source in halves):
        return  # PTX has no such form
    if source in TYPES:
        a, b = floats(TYPES[source], seed=1), floats(TYPES[source], seed=2)
        b[::4] = a[::4]
        truth = a != b if source == "b64" else (a > b) | np.isnan(a.astype(np.float64)) | np.isnan(b.astype(np.float64))
        compare = "gtu"
    else:
        bits = int(source[1:])
        a, b = integers(bits, seed=1), integers(bits, seed=2)
        x, y = ([read(source, int(v)) for v in array] for array in (a, b))
        compare = "ne" if source[0] == "b" else "gt"
        truth = np.array([i != j if compare == "ne" else i > j for i, j in zip(x, y, strict=True)])
    true = {"u32": 2**32 - 1, "s32": 2**32 - 1, "f32": 0x3F800000, "u16": 0xFFFF, "f16": 0x3C00, "bf16": 0x3F80}[target]
    size = 4 if "32" in target else 2
    got = apply(f"set.{compare}.{target}.{source} Z, A, B;", size, a, b)
    np.testing.assert_array_equal(got, np.where(truth, true, 0))
    joined = f"setp.ne.u32 %p1, %index, 0; set.{compare}.and.{target}.{source} Z, A, B, %p1;"
    got = apply(joined, size, a, b)
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_array_equal(got[1:], np.where(truth, true, 0)[1:])


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_comparisons_of_pairs_have_a_result_for_each_half(kind: str) -> None:
    low, high = ([floats(TYPES[kind], seed=s) for s in seeds] for seeds in ((1, 2), (3, 4)))
    a, b = (h.view(np.uint16).astype(np.uint32) << 16 | x.view(np.uint16) for x, h in zip(low, high, strict=True))
    lows, highs = low[0] < low[1], high[0] < high[1]
    both = apply(f"setp.lt.{kind}x2 %p1|%p2, A, B; selp.b32 Z, 2, 0, %p1; @%p2 add.u32 Z, Z, 1;", 4, a, b)
    np.testing.assert_array_equal(both, 2 * lows + highs)
    for target, true in {f"{kind}x2": {"f16": 0x3C00, "bf16": 0x3F80}[kind], "u32": 0xFFFF, "s32": 0xFFFF}.items():
        got = apply(f"set.lt.{target}.{kind}x2 Z, A, B;", 4, a, b)
        np.testing.assert_array_equal(got, (lows * true) | (highs * true) << 16)
    odd = apply(f"and.b32 %r5, A, 1; setp.eq.u32 %p3, %r5, 1; set.lt.or.u32.{kind}x2 Z, A, B, %p3;", 4, a, b)
    np.testing.assert_array_equal(
        odd, np.where(lows | (a % 2 == 1), 0xFFFF, 0) | np.where(highs | (a % 2 == 1), 0xFFFF0000, 0)
    )


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", ["b16", "u32", "f32", "s64", "f64"])
def test_slct_takes_the_first_source_where_the_third_is_not_negative(kind: str) -> None:
    bits = int(kind[1:])
    a, b, c = integers(bits, seed=1), integers(bits, seed=2), integers(32, seed=3)
    got = apply(f"slct.{kind}.s32 Z, A, B, C;", bits // 8, a, b, c)
    np.testing.assert_array_equal(got, np.where(c.view(np.int32) >= 0, a, b))
    x = np.resize(floats(np.float32, 256, seed=3), a.size)
    x[::7] = np.float32(-1e-40)
    np.testing.assert_array_equal(apply(f"slct.{kind}.f32 Z, A, B, C;", bits // 8, a, b, x), np.where(x >= 0, a, b))
    flushed = np.where(np.abs(x) < np.float32(2.0**-126), 0, x)
    np.testing.assert_array_equal(
        apply(f"slct.ftz.{kind}.f32 Z, A, B, C;", bits // 8, a, b, x), np.where(flushed >= 0, a, b)
    )


@pytest.mark.parametrize("instruction", ["shl.b32", "shr.u32", "shr.s32", "shl.b16", "shr.u64"])
def test_shifts_by_the_width_are_reported_when_asked(instruction: str) -> None:
    bits = int(instruction[-2:])
    a, n = integers(bits, 128, seed=1), np.full(128, bits - 1, np.uint32)
    apply(f"{instruction} Z, A, B;", bits // 8, a, n, checks={"shift"})
    n[70] = bits
    apply(f"{instruction} Z, A, B;", bits // 8, a, n)
    with pytest.raises(emulator.EmulatorError) as error:
        apply(f"{instruction} Z, A, B;", bits // 8, a, n, checks={"shift"})
    assert (error.value.finding.kind, error.value.finding.thread) == ("shift_out_of_range", (70, 0, 0))


def bounds(kind: str) -> tuple[int, int]:
    bits = int(kind[1:])
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)


INTEGER_KINDS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]


@pytest.mark.parametrize("target", INTEGER_KINDS)
@pytest.mark.parametrize("source", INTEGER_KINDS)
def test_integer_conversions_extend_truncate_and_saturate(source: str, target: str) -> None:
    from_bits, to_bits = int(source[1:]), int(target[1:])
    a = integers(max(from_bits, 16), seed=1)
    size = max(to_bits, 16) // 8
    values = [read(source, int(x) % (1 << from_bits)) for x in a]
    wrapped = [read(target, v % (1 << to_bits)) % (1 << 8 * size) for v in values]
    assert apply(f"cvt.{target}.{source} Z, A;", size, a).tolist() == wrapped
    low, high = bounds(target)
    if low <= bounds(source)[0] and bounds(source)[1] <= high:
        return  # ptxas refuses .sat where nothing can saturate
    clamped = [min(max(v, low), high) % (1 << 8 * size) for v in values]
    assert apply(f"cvt.sat.{target}.{source} Z, A;", size, a).tolist() == clamped


@np.errstate(all="ignore")
@pytest.mark.parametrize("target", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("source", TYPES)
def test_floats_become_integers_by_each_rounding_with_saturation(source: str, target: str) -> None:
    if (source, target[1:]) == ("bf16", "8"):
        return  # PTX has no such conversion
    a = floats(TYPES[source], seed=1)
    a[::2] = (a[::2].astype(np.float64) * 100).astype(TYPES[source])
    bits = int(target[1:])
    size = max(bits, 16) // 8
    low, high = bounds(target)
    of_nan = signed(1 << (bits - 1), bits) if source == "f64" or bits == 64 else 0  # the top bit alone, or 0
    if target[0] == "u":
        of_nan %= 1 << bits
    for mode, integral in {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}.items():
        got = apply(f"cvt.{mode}.{target}.{source} Z, A;", size, a)
        expected = []
        for x in a.astype(np.float64).tolist():
            value = of_nan if math.isnan(x) else (high if x > 0 else low) if math.isinf(x) else integral(x)
            expected.append(min(max(value, low), high) % (1 << 8 * size))
        assert got.tolist() == expected, mode


@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("source", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_integers_become_the_nearest_float(source: str, target: str) -> None:
    bits = int(source[1:])
    a = integers(bits, seed=1)
    got = apply(f"cvt.rn.{target}.{source} Z, A;", np.dtype(TYPES[target]).itemsize, a)
    values = [read(source, int(x)) for x in a]
    if target in ("f16", "bf16"):
        expected = np.array([rounded(Fraction(v), target) for v in values])
    elif target == "f32":
        expected = np.array(values, np.int64 if source[0] == "s" else np.uint64).astype(np.float32)
    else:
        expected = np.array([float(v) for v in values])
    assert_same_floats(got, expected, target)


@np.errstate(all="ignore")
@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("source", TYPES)
def test_float_conversions_round_to_nearest_even(source: str, target: str) -> None:
    a = floats(TYPES[source], seed=1)
    if source == target:
        return
    size = np.dtype(TYPES[target]).itemsize
    narrows = size < a.itemsize or {source, target} == {"f16", "bf16"}
    got = apply(f"cvt.{'rn.' if narrows else ''}{target}.{source} Z, A;", size, a)
    wide = a.astype(np.float64)
    if target in ("f16", "bf16"):
        finite = np.isfinite(wide)
        exactly = [math.copysign(rounded(Fraction(x), target), x) for x in wide[finite].tolist()]
        wide[finite] = exactly
    assert_same_floats(got, wide, target)


@np.errstate(all="ignore")
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_packing_conversions_put_the_first_source_in_the_high_half(kind: str) -> None:
    a, b = floats(np.float32, seed=1), floats(np.float32, seed=2)
    both = apply(f"cvt.rn.{kind}x2.f32 Z, A, B;", 4, a, b)
    np.testing.assert_array_equal(both >> 16, apply(f"cvt.rn.{kind}.f32 Z, A;", 2, a))
    np.testing.assert_array_equal(both & 0xFFFF, apply(f"cvt.rn.{kind}.f32 Z, B;".replace("B", "A"), 2, b))


@np.errstate(all="ignore")
def test_directed_rounding_to_f32_and_f16_never_passes_the_value() -> None:
    a = floats(np.float64, seed=1)
    a = a[np.isfinite(a) & (np.abs(a) < 1e4)]
    down, up, zero = (apply(f"cvt.{mode}.f32.f64 Z, A;", 4, a).view(np.float32) for mode in ("rm", "rp", "rz"))
    assert (down <= a).all() and (up >= a).all() and (np.abs(zero) <= np.abs(a)).all()
    assert (np.nextafter(down, np.float32(np.inf)) > a).all() and (np.nextafter(up, np.float32(-np.inf)) < a).all()
    cut = apply("cvt.rz.f16.f32 Z, A;", 2, a.astype(np.float32)).view(np.float16)
    assert (np.abs(cut.astype(np.float64)) <= np.abs(a.astype(np.float32))).all()


def test_vector_moves_split_and_join_registers() -> None:
    a = integers(64, seed=1)
    swapped = apply("mov.b64 {%r3, %r4}, A; mov.b64 Z, {%r4, %r3};", 8, a)
    np.testing.assert_array_equal(swapped, a << np.uint64(32) | a >> np.uint64(32))
    halves = apply("mov.b64 {%h1, %h2, %h3, %h4}, A; mov.b32 Z, {%h4, %h1};", 4, a)
    np.testing.assert_array_equal(halves, (a & np.uint64(0xFFFF)) << np.uint64(16) | a >> np.uint64(48))
    np.testing.assert_array_equal(apply("mov.b64 {_, Z}, A;", 4, a), a >> np.uint64(32))


def test_predicates_combine_by_logic_instructions() -> None:
    a, b = integers(32, seed=1), integers(32, seed=2)
    x, y = a % 2 == 1, b % 2 == 1
    start = "and.b32 %r3, A, 1; setp.ne.u32 %p1, %r3, 0; and.b32 %r3, B, 1; setp.ne.u32 %p2, %r3, 0;"
    for name, truth in {"and": x & y, "or": x | y, "xor": x ^ y}.items():
        got = apply(f"{start} {name}.pred %p3, %p1, %p2; selp.u32 Z, 1, 0, %p3;", 4, a, b)
        np.testing.assert_array_equal(got, truth, err_msg=name)
    np.testing.assert_array_equal(apply(f"{start} not.pred %p3, %p1; selp.u32 Z, 1, 0, %p3;", 4, a, b), ~x)
    np.testing.assert_array_equal(
        apply(f"{start} selp.u32 Z, 1, 0, %p1; @!%p2 mov.u32 Z, 5;", 4, a, b), np.where(y, x, 5)
    )


@pytest.mark.parametrize("kind", ["u8", "s8", "u16", "s16", "u32", "s32", "u64"])
@pytest.mark.parametrize("register", ["%h5", "%r5", "%d5"])
def test_loads_extend_to_the_register_and_stores_truncate(kind: str, register: str) -> None:
    bits, width = int(kind[1:]), {"%h5": 16, "%r5": 32, "%d5": 64}[register]
    if bits > width:
        return
    a = integers(64, seed=1)
    body = f"ld.param.u64 %q2, [p0]; mad.wide.u32 %q2, %index, 8, %q2; ld.global.{kind} {register}, [%q2];"
    body += f"cvt.u64.u{width} Z, {register}; add.u64 A, A, 0;"
    values = [read(kind, int(x) % (1 << bits)) % (1 << width) for x in a]
    assert apply(body, 8, a).tolist() == values
