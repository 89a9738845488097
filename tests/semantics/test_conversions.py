"""cvt: every pair of formats that PTX converts, with each rounding and saturation, and the packed small floats."""

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

from tests.semantics.formats import FORMATS, Format, Number, floor_log2, power, to_integer
from tests.semantics.harness import UNSIGNED, Array, evaluate, patterns, signed
from tests.semantics.test_floats import check, draw

COUNT = 256
INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
FLOATS = ("f16", "bf16", "f32", "f64")
DIRECTIONS = ("rn", "rz", "rm", "rp")


def bits_of(kind: str) -> int:
    return FORMATS[kind].bits if kind in FORMATS else int(kind[1:])


def register(kind: str, other: str = "") -> int:
    """Bits of the register: 8-bit integers lie in wider ones, but not when they are converted to or from bf16."""
    return max(bits_of(kind), 8 if other == "bf16" else 16)


def value(pattern: int, kind: str) -> int:
    pattern &= (1 << bits_of(kind)) - 1
    return signed(pattern, bits_of(kind)) if kind[0] == "s" else pattern


def clamp(number: int, kind: str) -> int:
    bits = bits_of(kind)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
    return min(max(number, low), high)


def extended(number: int, kind: str, other: str = "") -> int:
    """An integer in its register: 8-bit results are sign- or zero-extended to the register's width."""
    return number & ((1 << register(kind, other)) - 1)


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("source", INTEGERS)
def test_integers_extend_or_lose_their_high_bits(source: str, target: str) -> None:
    a = patterns(register(source), COUNT, 1)
    (got,) = evaluate(f"cvt.{target}.{source} {{x}}, {{a}};", [a], str(register(target)))
    for x, y in zip(a.tolist(), got.tolist(), strict=True):
        chopped = value(value(x, source) & ((1 << bits_of(target)) - 1), target)
        assert y == extended(chopped, target), (hex(x), hex(y))


SATURATING = [
    (s, t)
    for s in INTEGERS
    for t in INTEGERS
    if s != t and bits_of(t) <= bits_of(s) and not (s[0] == "u" and t[0] == "u" and bits_of(s) == bits_of(t))
]
SATURATING = [(s, t) for s, t in SATURATING if not (bits_of(s) == bits_of(t) and (s[0], t[0]) == ("s", "s"))]


@pytest.mark.parametrize(("source", "target"), SATURATING)
def test_sat_clamps_integers_to_the_target(source: str, target: str) -> None:
    a = patterns(register(source), COUNT, 2)
    (got,) = evaluate(f"cvt.sat.{target}.{source} {{x}}, {{a}};", [a], str(register(target)))
    for x, y in zip(a.tolist(), got.tolist(), strict=True):
        assert y == extended(clamp(value(x, source), target), target), (hex(x), hex(y))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("source", FLOATS)
def test_floats_become_integers_clamped_to_the_range(source: str, target: str, mode: str) -> None:
    """What NaN becomes differs by width; that has a test of its own."""
    form = FORMATS[source]
    a = draw(form, 3)
    spread = np.random.default_rng(4).integers(form.bias - 4, min(form.bias + 70, 2 * form.bias), COUNT // 2)
    a[: COUNT // 2] = (a[: COUNT // 2] & ((1 << form.mantissa) - 1)) | (spread << form.mantissa).astype(a.dtype)
    flushes = ("", ".ftz") if source == "f32" else ("",)
    for flush in flushes:
        bits = register(target, source)
        (got,) = evaluate(f"cvt.{mode}i{flush}.{target}.{source} {{x}}, {{a}};", [a], str(bits))
        for x, y in zip(a.tolist(), got.tolist(), strict=True):
            number = form.decode(form.flush(x) if flush else x)
            if number.nan:
                continue  # asked below
            beyond = -(1 << 100) if number.negative else 1 << 100
            whole = beyond if number.infinite else to_integer(number, mode)
            assert y == extended(clamp(whole, target), target, source), (hex(x), hex(y))


@pytest.mark.parametrize("target", ["u32", "s32", "u16", "s16"])
@pytest.mark.parametrize("source", ["f16", "f32"])
def test_nan_becomes_zero_in_integers_of_up_to_32_bits(source: str, target: str) -> None:
    form = FORMATS[source]
    a = np.array(
        [form.canonical_nan, form.infinity + 1, 1 << (form.bits - 1) | form.canonical_nan], UNSIGNED[form.bits // 8]
    )
    (got,) = evaluate(f"cvt.rzi.{target}.{source} {{x}}, {{a}};", [a], str(bits_of(target)))
    assert got.tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", DIRECTIONS)
@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", INTEGERS)
def test_integers_become_floats_rounded_once(source: str, target: str, mode: str) -> None:
    form = FORMATS[target]
    a = patterns(register(source, target), COUNT, 5)
    (got,) = evaluate(f"cvt.{mode}.{target}.{source} {{x}}, {{a}};", [a], str(form.bits))

    def oracle(code: int) -> int:
        whole = value(code, source)
        return form.encode(Number(whole < 0, Fraction(abs(whole))), mode)

    check(f"cvt.{mode}.{target}.{source}", form, [a], got, oracle)


def single(source: Format, target: Format, mode: str, flags: frozenset[str]) -> Callable[[int], int]:
    """One float to another: .ftz where f32 is concerned, .sat, .relu, .satfinite."""

    def oracle(code: int) -> int:
        if "ftz" in flags and source is FORMATS["f32"]:
            code = source.flush(code)
        number = source.decode(code)
        if "sat" in flags:
            if number.nan or number.negative:
                return 0
            if number.infinite or number.value > 1:
                number = Number(False, Fraction(1))
        if "relu" in flags and number.negative and not number.nan:
            return 0
        result = target.encode(number, mode, saturate="satfinite" in flags)
        return target.flush(result) if "ftz" in flags and target is FORMATS["f32"] else result

    return oracle


NARROWING = [("f32", "f64", m, f) for m in DIRECTIONS for f in ("", "ftz", "sat", "ftz.sat")]
NARROWING += [("f16", "f32", m, f) for m in DIRECTIONS for f in ("", "ftz", "sat")]
NARROWING += [("bf16", "f32", m, "") for m in DIRECTIONS]
NARROWING += [
    (t, "f32", m, f) for t in ("f16", "bf16") for m in ("rn", "rz") for f in ("relu", "satfinite", "relu.satfinite")
]
NARROWING += [(t, "f64", m, "") for t in ("f16", "bf16") for m in DIRECTIONS]
NARROWING += [("f16", "bf16", "rn", ""), ("bf16", "f16", "rn", "")]
WIDENING = [("f64", "f32", f) for f in ("", "ftz", "sat")]
WIDENING += [("f32", "f16", f) for f in ("", "ftz", "sat")]
WIDENING += [("f32", "bf16", ""), ("f64", "f16", ""), ("f64", "bf16", ""), ("f32", "f32", ""), ("f32", "f32", "sat")]
NARROWING += [(t, "bf16", m, "") for t in ("f32", "f64") for m in DIRECTIONS]  # exact, but ptxas takes a rounding
FLOAT_PAIRS = [*NARROWING, *((target, source, "", flags) for target, source, flags in WIDENING)]


@pytest.mark.parametrize(("target", "source", "mode", "flags"), FLOAT_PAIRS)
def test_floats_become_other_floats(target: str, source: str, mode: str, flags: str) -> None:
    form = ".".join(filter(None, ("cvt", mode, flags, target, source)))
    a = draw(FORMATS[source], 6, 512)
    low, high = FORMATS[target], FORMATS[source]
    if high.bits > low.bits:  # many of the target's exponents, ties among them
        exponent = np.random.default_rng(7).integers(-low.bias - low.mantissa - 2, low.bias + 3, 300) + high.bias
        exponent = np.clip(exponent, 0, 2 * high.bias).astype(a.dtype)
        tie = a[:300] & a.dtype.type(((1 << high.mantissa) - 1) & ~((1 << (high.mantissa - low.mantissa - 1)) - 1))
        a[:300] = (a[:300] & a.dtype.type(1 << (high.bits - 1))) | exponent << a.dtype.type(high.mantissa) | tie
    (got,) = evaluate(f"{form} {{x}}, {{a}};", [a], str(low.bits))
    check(form, low, [a], got, single(high, low, mode or "rn", frozenset(flags.split("."))))


@pytest.mark.parametrize("mode", DIRECTIONS)
@pytest.mark.parametrize("kind", FLOATS)
def test_a_float_is_rounded_to_an_integral_float(kind: str, mode: str) -> None:
    form = FORMATS[kind]
    a = draw(form, 8)
    for flags in ("", ".sat") if kind != "bf16" else ("",):
        (got,) = evaluate(f"cvt.{mode}i{flags}.{kind}.{kind} {{x}}, {{a}};", [a], str(form.bits))

        def oracle(code: int, flags: str = flags) -> int:
            number = form.decode(code)
            if number.finite:
                whole = to_integer(number, mode)
                number = Number(number.negative, Fraction(abs(whole)))
            if flags:
                return (
                    0
                    if number.nan or number.negative
                    else form.encode(Number(False, Fraction(1)) if number.infinite or number.value > 1 else number)
                )
            return form.encode(number)

        check(f"cvt.{mode}i{flags}.{kind}.{kind}", form, [a], got, oracle)


# tf32


@pytest.mark.parametrize(
    "form", ["rna", "rna.satfinite", "rn", "rz", "rn.relu", "rz.relu", "rn.satfinite", "rz.relu.satfinite"]
)
def test_tf32_keeps_ten_bits_of_the_fraction(form: str) -> None:
    mode, *flags = form.split(".")
    tf32, f32 = FORMATS["tf32"], FORMATS["f32"]
    a = draw(f32, 9, 512)
    (got,) = evaluate(f"cvt.{form}.tf32.f32 {{x}}, {{a}};", [a], "32")
    oracle = single(f32, tf32, mode, frozenset(flags))
    # the low 13 bits of the register do not count
    check(form, tf32, [a], got >> np.uint32(13), oracle)


# Packed formats: the first source is the upper half

SMALL = {"e4m3": 8, "e5m2": 8, "e3m2": 8, "e2m3": 8, "e2m1": 4}  # bits that an element takes when packed


@pytest.mark.parametrize("flags", ["", ".relu", ".satfinite", ".relu.satfinite"])
@pytest.mark.parametrize("mode", ["rn", "rz"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_two_floats_become_a_pair_of_halves(kind: str, mode: str, flags: str) -> None:
    form, f32 = FORMATS[kind], FORMATS["f32"]
    a, b = draw(f32, 10), draw(f32, 11)
    (got,) = evaluate(f"cvt.{mode}{flags}.{kind}x2.f32 {{x}}, {{a}}, {{b}};", [a, b], "32")
    oracle = single(f32, form, mode, frozenset(flags[1:].split(".")))
    check(f"upper {kind}", form, [a], got >> np.uint32(16), oracle)
    check(f"lower {kind}", form, [b], got & np.uint32(0xFFFF), oracle)


def narrow(kind: str, relu: bool, source: Format) -> Callable[[int], int]:
    """To a small float, always .satfinite: NaN stays NaN where the format has one, else it is the largest positive."""
    form = FORMATS[kind]

    def oracle(code: int) -> int:
        number = source.decode(code)
        if number.nan:
            return form.canonical_nan if form.special != "none" else form.largest
        if relu and number.negative:
            return 0
        return form.encode(number, saturate=True)

    return oracle


def around(form: Format, seed: int) -> Array:
    """f32 operands over the format's range and a little beyond, ties among them."""
    a = draw(FORMATS["f32"], seed)
    rng = np.random.default_rng(seed)
    exponent = rng.integers(form.lowest - form.mantissa - 2, form.bias + 4, 200) + 127
    fraction = rng.integers(0, 1 << (form.mantissa + 2), 200) << (21 - form.mantissa)
    a[:200] = (rng.integers(0, 2, 200) << 31 | exponent << 23 | fraction).astype(np.uint32)
    return a


def as_small(kind: str, codes: Array) -> Array:
    """The sign of a packed 6- or 4-bit code is its own top bit."""
    return codes & ((1 << FORMATS[kind].bits) - 1)


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("kind", SMALL)
def test_two_floats_become_a_pair_of_small_floats(kind: str, relu: str) -> None:
    form, width = FORMATS[kind], SMALL[kind]
    a, b = around(form, 12), around(form, 13)
    (got,) = evaluate(f"cvt.rn.satfinite{relu}.{kind}x2.f32 {{x}}, {{a}}, {{b}};", [a, b], str(2 * width))
    oracle = narrow(kind, bool(relu), FORMATS["f32"])
    words = got.astype(np.uint32)
    for n in range(COUNT):
        wanted = oracle(int(a[n])) << width | oracle(int(b[n]))
        assert words[n] == wanted, (kind, hex(a[n]), hex(b[n]), hex(words[n]), hex(wanted))


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("half", ["f16", "bf16"])
@pytest.mark.parametrize("kind", SMALL)
def test_a_pair_of_halves_becomes_a_pair_of_small_floats(kind: str, half: str, relu: str) -> None:
    halves = np.arange(0, 1 << 16, 29).astype(np.uint32)
    a, width = halves << np.uint32(16) | halves[::-1], SMALL[kind]
    needs = ("sm_89", "8.1") if half == "f16" and kind in ("e4m3", "e5m2") else ("sm_120f", "9.1")
    (got,) = evaluate(f"cvt.rn.satfinite{relu}.{kind}x2.{half}x2 {{x}}, {{a}};", [a], str(2 * width), *needs)
    oracle = narrow(kind, bool(relu), FORMATS[half])
    for n, x in enumerate(a.tolist()):
        assert got[n] == oracle(x >> 16) << width | oracle(x & 0xFFFF), (hex(x), hex(got[n]))


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("kind", SMALL)
def test_a_pair_of_small_floats_becomes_a_pair_of_halves(kind: str, relu: str) -> None:
    form, width = FORMATS[kind], SMALL[kind]
    half = FORMATS["f16"]
    low = np.arange(1 << form.bits)
    codes = np.concatenate([low << width | np.roll(low, shift) for shift in range(0, 1 << form.bits, 5)])
    a = codes.astype(UNSIGNED[2 * width // 8])
    (got,) = evaluate(f"cvt.rn{relu}.f16x2.{kind}x2 {{x}}, {{a}};", [a], "32")
    oracle = single(form, half, "rn", frozenset(relu[1:].split(".")))
    mask = (1 << form.bits) - 1
    check(f"upper {kind}", half, [(a >> width) & mask], got >> np.uint32(16), oracle)
    check(f"lower {kind}", half, [a & mask], got & np.uint32(0xFFFF), oracle)


def factors(count: int) -> Array:
    """Pairs of scale factors: all of ue8m0, where 255 is NaN."""
    one = np.arange(count) % 256
    return (one << 8 | np.random.default_rng(5).permutation(one)).astype(np.uint16)


def scaled_by(number: Number, exponent: int) -> Number:
    return number if not number.finite else Number(number.negative, number.magnitude * power(exponent))


def scaled_up(form: Format, flags: str, code: int, factor: int) -> int:
    """A small float in bf16, times a power of two; factor 127 is 1."""
    bf16, number = FORMATS["bf16"], form.decode(code)
    if factor == 255 or number.nan:
        return bf16.canonical_nan
    if "relu" in flags and number.negative:
        return 0
    return bf16.encode(scaled_by(number, factor - 127), saturate="satfinite" in flags)


@pytest.mark.parametrize("flags", ["", ".relu", ".satfinite", ".satfinite.relu"])
@pytest.mark.parametrize("kind", SMALL)
def test_small_floats_become_bf16_times_a_factor(kind: str, flags: str) -> None:
    form, width = FORMATS[kind], SMALL[kind]
    low = np.tile(np.arange(1 << form.bits), 1 << max(0, 9 - form.bits))
    codes, mask = low << width | np.roll(low, 77), (1 << form.bits) - 1
    a = codes.astype(UNSIGNED[2 * width // 8])
    if form.bits < 6:
        a, codes = np.tile(a, 32), np.tile(codes, 32)
    scales = factors(len(a))
    (plain,) = evaluate(f"cvt.rn{flags}.bf16x2.{kind}x2 {{x}}, {{a}};", [a], "32", "sm_100a", "9.2")
    text = f"cvt.rn{flags}.scaled::n2::ue8m0.bf16x2.{kind}x2 {{x}}, {{a}}, {{b}};"
    (got,) = evaluate(text, [a, scales], "32", "sm_120f", "9.2")
    bf16, shift = FORMATS["bf16"], np.uint32(16)
    oracle = partial(scaled_up, form, flags)
    check(text, bf16, [codes >> width & mask, scales >> 8], got >> shift, oracle)
    check(text, bf16, [codes & mask, scales & 255], got & np.uint32(0xFFFF), oracle)
    check(text, bf16, [codes >> width & mask], plain >> shift, partial(oracle, factor=127))
    check(text, bf16, [codes & mask], plain & np.uint32(0xFFFF), partial(oracle, factor=127))


def fixed_point(source: Format, relu: bool, code: int, factor: int) -> int:
    """s2f6, the 8-bit two's complement integer nearest to 64 times the value; NaN becomes the largest."""
    number = source.decode(code)
    if number.nan or factor == 255:
        return 127
    if number.infinite:
        whole = -128 if number.negative else 127
    else:
        whole = min(max(to_integer(scaled_by(number, 6 - (factor - 127)), "rn"), -128), 127)
    return max(whole, 0) & 255 if relu else whole & 255


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("source", ["f32", "bf16"])
def test_floats_divided_by_a_factor_become_fixed_point(source: str, relu: str) -> None:
    form, rng = FORMATS[source], np.random.default_rng(8)
    values = rng.integers(-600, 600, 1000) / 256  # over the range and a little beyond, with ties
    near = values.astype(np.float32).view(np.uint32) >> np.uint32(32 - form.bits)
    a = np.concatenate([near, draw(form, 6), draw(form, 7)]).astype(UNSIGNED[form.bits // 8])
    b, scales = rng.permutation(a), np.full(len(a), 0x7F7F, np.uint16)
    scales[:500] = rng.integers(120, 135, 500) << 8 | rng.integers(120, 135, 500)
    scales[1000:] = factors(len(a) - 1000)
    if source == "f32":
        inputs, named = [a, b], "{a}, {b}"
    else:
        inputs, named = [a.astype(np.uint32) << np.uint32(16) | b], "{a}"
    modifiers, letter = f"cvt.rn.satfinite{relu}", "abc"[len(inputs)]
    types = f"s2f6x2.{source if source == 'f32' else 'bf16x2'}"
    (plain,) = evaluate(f"{modifiers}.{types} {{x}}, {named};", inputs, "16", "sm_120a", "9.1")
    text = f"{modifiers}.scaled::n2::ue8m0.{types} {{x}}, {named}, {{{letter}}};"
    (got,) = evaluate(text, [*inputs, scales], "16", "sm_100a", "9.1")
    oracle = partial(fixed_point, form, bool(relu))
    for x, y, scale, word, unscaled in zip(*(z.tolist() for z in (a, b, scales, got, plain)), strict=True):
        assert word == oracle(x, scale >> 8) << 8 | oracle(y, scale & 255), (hex(x), hex(y), hex(scale), hex(word))
        assert unscaled == oracle(x, 127) << 8 | oracle(y, 127), (hex(x), hex(y), hex(unscaled))


@pytest.mark.parametrize("flags", ["", ".relu", ".satfinite", ".satfinite.relu"])
def test_fixed_point_becomes_bf16_times_a_factor(flags: str) -> None:
    low = np.tile(np.arange(256), 8)
    a = (low << 8 | np.roll(low, 300)).astype(np.uint16)
    scales, bf16 = factors(len(a)), FORMATS["bf16"]
    (plain,) = evaluate(f"cvt.rn{flags}.bf16x2.s2f6x2 {{x}}, {{a}};", [a], "32", "sm_120a", "9.1")
    text = f"cvt.rn{flags}.scaled::n2::ue8m0.bf16x2.s2f6x2 {{x}}, {{a}}, {{b}};"
    (got,) = evaluate(text, [a, scales], "32", "sm_100a", "9.1")

    def oracle(code: int, factor: int = 127) -> int:
        value = Fraction(signed(code, 8), 64)
        if factor == 255:
            return bf16.canonical_nan
        if "relu" in flags and value < 0:
            return 0
        return bf16.encode(scaled_by(Number(value < 0, abs(value)), factor - 127), saturate="satfinite" in flags)

    check(text, bf16, [a >> np.uint16(8), scales >> np.uint16(8)], got >> np.uint32(16), oracle)
    check(text, bf16, [a & np.uint16(255), scales & np.uint16(255)], got & np.uint32(0xFFFF), oracle)
    check(text, bf16, [a >> np.uint16(8)], plain >> np.uint32(16), oracle)
    check(text, bf16, [a & np.uint16(255)], plain & np.uint32(0xFFFF), oracle)


def power_of_two(number: Number, mode: str, satfinite: bool) -> int:
    """ue8m0: the exponent of a power of two with bias 127, no zero and no infinity; 255 is NaN."""
    if number.nan:
        return 255
    if number.infinite:
        return 254 if satfinite else 255
    if number.zero:
        return 0
    magnitude = number.magnitude
    assert isinstance(magnitude, Fraction)
    exponent = floor_log2(magnitude)
    exponent += mode == "rp" and power(exponent) != magnitude
    if exponent > 127:
        return 254 if satfinite else 255
    return max(exponent + 127, 0)


@pytest.mark.parametrize("flags", ["", ".satfinite"])
@pytest.mark.parametrize("mode", ["rz", "rp"])
@pytest.mark.parametrize("source", ["f32", "bf16"])
def test_positive_numbers_become_powers_of_two(source: str, mode: str, flags: str) -> None:
    form = FORMATS[source]
    a, b = (draw(form, seed) & ((1 << (form.bits - 1)) - 1) for seed in (14, 15))
    a[:4], b[:4] = form.largest, form.decode(1).value == 0
    oracle = lambda code: power_of_two(form.decode(code), mode, bool(flags))  # noqa: E731
    if source == "f32":
        (got,) = evaluate(f"cvt.{mode}{flags}.ue8m0x2.f32 {{x}}, {{a}}, {{b}};", [a, b], "16")
    else:
        packed = a.astype(np.uint32) << np.uint32(16) | b
        (got,) = evaluate(f"cvt.{mode}{flags}.ue8m0x2.bf16x2 {{x}}, {{a}};", [packed], "16")
    for x, y, word in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
        assert (word >> 8, word & 255) == (oracle(x), oracle(y)), (hex(x), hex(y), hex(word))


def test_powers_of_two_become_bf16() -> None:
    low = np.arange(256)
    a = np.concatenate([low << 8 | np.roll(low, shift) for shift in (1, 100)]).astype(np.uint16)
    (got,) = evaluate("cvt.rn.bf16x2.ue8m0x2 {x}, {a};", [a], "32")
    bf16 = FORMATS["bf16"]

    def oracle(code: int) -> int:
        return bf16.canonical_nan if code == 255 else bf16.encode(Number(False, power(code - 127)))

    check("upper", bf16, [a >> 8], got >> np.uint32(16), oracle)
    check("lower", bf16, [a & 255], got & np.uint32(0xFFFF), oracle)


# cvt.pack: saturation, a above b above what is shifted up from c


@pytest.mark.parametrize("kind", ["u16", "s16", "u8", "s8", "u4", "s4", "u2", "s2"])
def test_integers_are_clamped_and_packed(kind: str) -> None:
    a, b, c = (patterns(32, COUNT, seed) for seed in (16, 17, 18))
    small = np.random.default_rng(0).integers(-40, 40, (2, COUNT // 2)).astype(np.int32).view(np.uint32)
    a[: COUNT // 2], b[: COUNT // 2] = small
    width = bits_of(kind)
    mask = (1 << width) - 1
    accumulates = width < 16
    form = f"cvt.pack.sat.{kind}.s32{'.b32' if accumulates else ''}"
    inputs = [a, b, c] if accumulates else [a, b]
    letters = ", ".join("{" + letter + "}" for letter in "abc"[: len(inputs)])
    (got,) = evaluate(f"{form} {{x}}, {letters};", inputs, "32")
    for n in range(COUNT):
        high, low = (clamp(signed(int(x[n]), 32), kind) & mask for x in (a, b))
        wanted = high << width | low
        if accumulates:
            wanted |= int(c[n]) << 2 * width & 0xFFFFFFFF
        assert got[n] == wanted, (form, [hex(x[n]) for x in inputs], hex(got[n]), hex(wanted))
