"""Every arithmetic instruction of the PTX emulator against exact integers, numpy and ml_dtypes."""

import math
from collections.abc import Callable
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from lowbitvm.runtime import emulator

BYTES = {"16": 2, "32": 4, "64": 8}
REGISTER = {2: "%h", 4: "%r", 8: "%d"}
NUMPY = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def apply(body: str, result: int, *sources: np.ndarray) -> np.ndarray:
    """Run `body` on every element: A, B, C, D stand for the sources, Z for the result of `result` bytes."""
    count = sources[0].size
    lines, names = [], "ABCD"
    for n, source in enumerate(sources):
        size = source.itemsize
        lines.append(f"ld.param.u64 %q1, [p{n}]; mad.wide.u32 %q1, %index, {size}, %q1;")
        lines.append(f"ld.global.b{8 * size} {REGISTER[size]}{n}, [%q1];")
        body = body.replace(names[n], f"{REGISTER[size]}{n}")
    body = body.replace("Z", f"{REGISTER[result]}9")
    params = ", ".join(f".param .u64 p{n}" for n in range(len(sources) + 1))
    text = f"""
    .version 8.0
    .target sm_80
    .address_size 64
    .visible .entry k({params}) {{
        .reg .pred %p<4>; .reg .b16 %h<10>; .reg .b32 %r<10>; .reg .b64 %d<10>; .reg .b64 %q<3>; .reg .b32 %index;
        mov.u32 %index, %ctaid.x; mov.u32 %r9, %tid.x; mad.lo.u32 %index, %index, 128, %r9;
        {" ".join(lines)}
        {body}
        ld.param.u64 %q1, [p{len(sources)}]; mad.wide.u32 %q1, %index, {result}, %q1;
        st.global.b{8 * result} [%q1], {REGISTER[result]}9;
        ret;
    }}"""
    padded = [np.resize(source, -(-count // 128) * 128) for source in sources]
    out = np.zeros(padded[0].size, NUMPY[result])
    emulator.load(text).launch("k", (padded[0].size // 128,), (128,), [*padded, emulator.output(out)])
    return out[:count]


def integers(bits: int, count: int = 512, seed: int = 0) -> np.ndarray:
    """Random patterns, a third of them near the edges of the range."""
    rng = np.random.default_rng(seed * 100 + bits)
    values = rng.integers(0, 1 << bits, count, dtype=np.uint64)
    edges = [
        0,
        1,
        2,
        3,
        (1 << bits) - 1,
        (1 << bits) - 2,
        1 << (bits - 1),
        (1 << (bits - 1)) - 1,
        (1 << (bits - 1)) + 1,
    ]
    where = rng.random(count) < 1 / 3
    values[where] = rng.choice(np.array(edges, np.uint64), where.sum())
    return values.astype(NUMPY[bits // 8])


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def read(kind: str, value: int) -> int:
    return signed(value, int(kind[1:])) if kind[0] == "s" else value


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


def floats(dtype: type, count: int = 2048, seed: int = 0) -> np.ndarray:
    """Random patterns of a float type: half of ordinary size, with every kind of special value among them."""
    rng = np.random.default_rng(seed)
    width = np.dtype(dtype).itemsize
    patterns = rng.integers(0, 1 << (8 * width), count, dtype=np.uint64).astype(NUMPY[width]).view(dtype)
    ordinary = rng.standard_normal(count).astype(dtype)
    tiny = np.array([1], NUMPY[width]).view(dtype)
    special = np.append(np.array([1, -1, 0, -0.0, np.inf, -np.inf, np.nan], dtype), [tiny, -tiny])
    chosen = np.where(rng.random(count) < 0.5, ordinary, patterns)
    return np.where(rng.random(count) < 0.1, rng.choice(special, count), chosen).astype(dtype)


TYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}
CANONICAL = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF}


def assert_same_floats(got: np.ndarray, expected: np.ndarray, kind: str) -> None:
    """Equal bit for bit, NaN in canonical form."""
    pattern = expected.astype(TYPES[kind]).view(NUMPY[got.itemsize]).copy()
    nan = np.isnan(expected.astype(np.float64))
    if kind == "f64":
        got, pattern = got[~nan], pattern[~nan]
    else:
        pattern[nan] = CANONICAL[kind]
    np.testing.assert_array_equal(got, pattern)


def exact(value: float) -> Fraction:
    return Fraction(value)


def rounded(value: Fraction, kind: str) -> float:
    """The nearest float of a 16-bit kind, ties to even, by exact arithmetic."""
    precision, lowest, highest = {"f16": (11, -14, 15), "bf16": (8, -126, 127)}[kind]
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = max(magnitude.numerator.bit_length() - magnitude.denominator.bit_length() - 1, lowest)
    while Fraction(2) ** (exponent + 1) <= magnitude:
        exponent += 1
    unit = Fraction(2) ** (exponent - precision + 1)
    result = round(magnitude / unit) * unit
    if result >= Fraction(2) ** (highest + 1):
        return math.copysign(math.inf, value)
    return float(result) * (1 if value > 0 else -1)


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
