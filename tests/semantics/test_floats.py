"""Floating point in exact fractions, rounded once in each direction, with .ftz, .sat, .relu and packed forms."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest

from tests.semantics.formats import (
    FORMATS,
    NOT_A_NUMBER,
    Format,
    Number,
    add,
    divide,
    exactly,
    multiply,
    negate,
    square_root,
)
from tests.semantics.harness import Array, evaluate, patterns

COUNT = 256
Operation = Callable[..., Number]  # over numbers and, by name, the rounding
ONE = Number(False, Fraction(1))


def draw(form: Format, seed: int, count: int = COUNT) -> Array:
    """Random codes, edge values, and values of like exponents, which cancel and tie."""
    rng = np.random.default_rng([seed, form.bits, form.mantissa])
    codes = patterns(form.bits, count, seed)
    near = rng.integers(form.bias - 2, form.bias + 3, count).astype(np.uint64) << np.uint64(form.mantissa)
    near |= rng.integers(0, 1 << form.mantissa, count).astype(np.uint64) >> np.uint64(int(rng.integers(0, 4)))
    near |= rng.integers(0, 2, count).astype(np.uint64) << np.uint64(form.bits - 1)
    edges = [
        0,
        1,
        2,
        form.largest,
        form.infinity,
        form.infinity + 1,
        form.canonical_nan,
        form.bias << form.mantissa,
        1 << form.mantissa,
        (1 << form.mantissa) - 1,
        (form.bias << form.mantissa) + 1,
    ]
    edge = np.array(edges, np.uint64)[rng.integers(0, len(edges), count)]
    edge |= rng.integers(0, 2, count).astype(np.uint64) << np.uint64(form.bits - 1)
    choice = rng.integers(0, 3, count)
    return np.choose(choice, [codes.astype(np.uint64), near, edge]).astype(codes.dtype)


def finish(number: Number, form: Format, mode: str, flags: frozenset[str]) -> int:
    """Rounding, .ftz of the result, .sat to [0, 1] and .relu, both of which turn NaN as the manual says."""
    if "sat" in flags:
        if number.nan or number.negative:
            return 0
        if number.infinite or number.value > 1:
            number = ONE
    code = form.encode(number, mode)
    if "ftz" in flags:
        code = form.flush(code)
    if "relu" in flags and not form.is_nan(code) and code >> (form.bits - 1):
        return 0
    return code


def scalar(operation: Operation, form: Format, mode: str, flags: frozenset[str]) -> Callable[..., int]:
    def oracle(*codes: int) -> int:
        if "ftz" in flags:
            codes = tuple(form.flush(code) for code in codes)
        return finish(operation(*map(form.decode, codes), mode=mode), form, mode, flags)

    return oracle


def same(form: Format, have: int, want: int) -> bool:
    return have == want or (form.is_nan(have) and form.is_nan(want))


def check(form_text: str, form: Format, inputs: list[Array], got: Array, oracle: Callable[..., int]) -> None:
    wrong = []
    for row, have in zip(zip(*(x.tolist() for x in inputs), strict=True), got.tolist(), strict=True):
        want = oracle(*row)
        if not same(form, have, want):
            wrong.append((row, have, want))
    assert not wrong, (
        f"{form_text}: {[hex(x) for x in wrong[0][0]]} gives {wrong[0][1]:#x}, the manual says {wrong[0][2]:#x} "
        f"({len(wrong)} of {len(got)} differ)"
    )


def fused(a: Number, b: Number, c: Number, mode: str) -> Number:
    return add(multiply(a, b), c, mode)


OPERATIONS: dict[str, Operation] = {
    "add": add,
    "sub": lambda a, b, mode: add(a, b if b.nan else negate(b), mode),
    "mul": lambda a, b, mode: multiply(a, b),
    "fma": fused,
    "mad": fused,
    "div": lambda a, b, mode: divide(a, b),
    "rcp": lambda a, mode: divide(ONE, a),
    "sqrt": lambda a, mode: square_root(a),
}
ARITY = {"add": 2, "sub": 2, "mul": 2, "fma": 3, "mad": 3, "div": 2, "rcp": 1, "sqrt": 1}
DIRECTIONS = ("rn", "rz", "rm", "rp")


def forms() -> Iterator[tuple[str, str, str, str]]:
    """Name, rounding, flags and type of each form; an empty rounding is to the nearest."""
    for name in ("add", "sub", "mul"):
        for rounding in ("", *DIRECTIONS):
            yield from ((name, rounding, flags, "f32") for flags in ("", "ftz", "sat", "ftz.sat"))
            yield name, rounding, "", "f64"
        yield from (
            (name, rounding, flags, "f16") for rounding in ("", "rn") for flags in ("", "ftz", "sat", "ftz.sat")
        )
        yield from ((name, rounding, "", "bf16") for rounding in ("", "rn"))
    for rounding in DIRECTIONS:
        yield from (("fma", rounding, flags, "f32") for flags in ("", "ftz", "sat", "ftz.sat"))
        yield from (("mad", rounding, flags, "f32") for flags in ("", "ftz.sat"))
        yield from ((name, rounding, "", "f64") for name in ("fma", "mad", "div", "rcp", "sqrt"))
        yield from ((name, rounding, flags, "f32") for name in ("div", "rcp", "sqrt") for flags in ("", "ftz"))
    yield from (("fma", "rn", flags, "f16") for flags in ("", "ftz", "sat", "relu", "ftz.sat", "ftz.relu"))
    yield from (("fma", "rn", flags, "bf16") for flags in ("", "relu"))


FORMS = [".".join(filter(None, form)) for form in forms()]


def parse(form: str) -> tuple[str, str, frozenset[str], str]:
    name, *middle, kind = form.split(".")
    mode = next((word for word in middle if word in DIRECTIONS), "rn")
    return name, mode, frozenset(middle) - {mode}, kind


@pytest.mark.parametrize("form", FORMS)
def test_arithmetic_rounds_the_exact_result_once(form: str) -> None:
    name, mode, flags, kind = parse(form)
    shape = FORMATS[kind]
    inputs = [draw(shape, seed) for seed in range(ARITY[name])]
    letters = ", ".join("{" + letter + "}" for letter in "abc"[: len(inputs)])
    (got,) = evaluate(f"{form} {{x}}, {letters};", inputs, str(shape.bits))
    check(form, shape, inputs, got, scalar(OPERATIONS[name], shape, mode, flags))


PACKED = [
    f"{name}{flags}.{kind}x2"
    for name in ("add", "sub", "mul")
    for kind, flags in (("f16", ""), ("f16", ".ftz"), ("f16", ".sat"), ("bf16", ""), ("bf16", ".rn"))
]
PACKED += ["fma.rn.f16x2", "fma.rn.ftz.relu.f16x2", "fma.rn.sat.f16x2", "fma.rn.bf16x2", "fma.rn.relu.bf16x2"]
PACKED += [
    f"{name}{mode}{flush}.f32x2" for name in ("add", "sub", "mul") for mode in ("", ".rz") for flush in ("", ".ftz")
]
PACKED += [f"fma.{mode}{flush}.f32x2" for mode in DIRECTIONS for flush in ("", ".ftz")]


@pytest.mark.parametrize("form", PACKED)
def test_packed_arithmetic_is_that_of_each_half(form: str) -> None:
    name, mode, flags, kind = parse(form.removesuffix("x2"))
    shape = FORMATS[kind]
    n = shape.bits
    halves = [(draw(shape, seed), draw(shape, seed + 7)) for seed in range(ARITY[name])]
    dtype = {16: np.uint32, 32: np.uint64}[n]
    inputs = [low.astype(dtype) | high.astype(dtype) << dtype(n) for low, high in halves]
    letters = ", ".join("{" + letter + "}" for letter in "abc"[: len(inputs)])
    (got,) = evaluate(f"{form} {{x}}, {letters};", inputs, str(2 * n))
    oracle = scalar(OPERATIONS[name], shape, mode, flags)
    check(f"low half of {form}", shape, [low for low, _ in halves], got & dtype((1 << n) - 1), oracle)
    check(f"high half of {form}", shape, [high for _, high in halves], got >> dtype(n), oracle)


@pytest.mark.parametrize("flags", ["", ".sat"])
@pytest.mark.parametrize("mode", ["", ".rn", ".rz", ".rm", ".rp"])
@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_mixed_precision_takes_halves_as_they_are(half: str, mode: str, flags: str) -> None:
    """`add.f32.f16 d, a, c` is a in f32 plus c; fma multiplies two halves."""
    single, small = FORMATS["f32"], FORMATS[half]
    a, b, c = draw(small, 1), draw(small, 2), draw(single, 3)
    direction, flag_set = mode[1:] or "rn", frozenset(flags[1:].split(".")) - {""}
    for name in ("add", "sub"):
        (got,) = evaluate(f"{name}{mode}{flags}.f32.{half} {{x}}, {{a}}, {{b}};", [a, c], "32")

        def oracle(x: int, y: int, name: str = name) -> int:
            number = OPERATIONS[name](small.decode(x), single.decode(y), mode=direction)
            return finish(number, single, direction, flag_set)

        check(f"{name}{mode}{flags}.f32.{half}", single, [a, c], got, oracle)
    if mode:
        (got,) = evaluate(f"fma{mode}{flags}.f32.{half} {{x}}, {{a}}, {{b}}, {{c}};", [a, b, c], "32")
        check(
            f"fma{mode}{flags}.f32.{half}",
            single,
            [a, b, c],
            got,
            lambda x, y, z: finish(
                fused(small.decode(x), small.decode(y), single.decode(z), direction), single, direction, flag_set
            ),
        )


# Comparison, minimum, maximum


def order(a: Number, b: Number) -> int:
    """-1, 0 or 1; infinities are beyond everything, zeros equal."""
    values = [math.copysign(math.inf, -x.negative or 1) if x.infinite else x.value for x in (a, b)]
    return (values[0] > values[1]) - (values[0] < values[1])


COMPARE = {
    "eq": lambda o: o == 0,
    "ne": lambda o: o != 0,
    "lt": lambda o: o < 0,
    "le": lambda o: o <= 0,
    "gt": lambda o: o > 0,
    "ge": lambda o: o >= 0,
}


def compare(name: str, a: Number, b: Number) -> bool:
    """Ordered comparisons are false with a NaN, those that end in u true; num and nan ask for it."""
    unordered = a.nan or b.nan
    if name in ("num", "nan"):
        return unordered == (name == "nan")
    if unordered:
        return name.endswith("u") and name not in COMPARE
    return COMPARE[name if name in COMPARE else name[:-1]](order(a, b))


NAMES = [*COMPARE, *(name + "u" for name in COMPARE), "num", "nan"]


def comparands(form: Format) -> tuple[Array, Array]:
    a, b = draw(form, 11), draw(form, 12)
    return a, np.where(np.arange(COUNT) % 4 == 0, a, b)


@pytest.mark.parametrize("name", ["equ" if name == "equ" else name for name in NAMES])
@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64", "f32.ftz", "f16.ftz"])
def test_comparisons_know_of_nan_and_of_signed_zeros(kind: str, name: str) -> None:
    kind, _, flush = kind.partition(".")
    form = FORMATS[kind]
    a, b = comparands(form)
    dotted = f".{flush}" if flush else ""
    (got,) = evaluate(f"setp.{name}{dotted}.{kind} {{x}}, {{a}}, {{b}};", [a, b], "pred")
    for n, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        if flush:
            x, y = form.flush(x), form.flush(y)
        assert got[n] == compare(name, form.decode(x), form.decode(y)), (name, hex(x), hex(y))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_a_packed_comparison_gives_a_predicate_for_each_half(kind: str) -> None:
    form = FORMATS[kind]
    (a, b), (c, d) = comparands(form), (draw(form, 13), draw(form, 14))
    p = np.random.default_rng(0).random(COUNT) < 0.5
    low, high = (x.astype(np.uint32) | y.astype(np.uint32) << np.uint32(16) for x, y in ((a, c), (b, d)))
    for name in ("eq", "ltu", "ge", "nan"):
        x, y = evaluate(f"setp.{name}.{kind}x2 {{x}}|{{y}}, {{a}}, {{b}};", [low, high], "pred pred")
        joined = evaluate(f"setp.{name}.and.{kind}x2 {{x}}|{{y}}, {{a}}, {{b}}, {{c}};", [low, high, p], "pred pred")
        for n in range(COUNT):
            wanted = [compare(name, form.decode(int(i[n])), form.decode(int(j[n]))) for i, j in ((a, b), (c, d))]
            assert [x[n], y[n]] == wanted
            assert [joined[0][n], joined[1][n]] == [w and p[n] for w in wanted]
        (words,) = evaluate(f"set.{name}.{kind}x2.{kind}x2 {{x}}, {{a}}, {{b}};", [low, high], "32")
        one = form.encode(ONE)
        assert words.tolist() == (x.astype(np.uint32) * one | (y.astype(np.uint32) * one) << 16).tolist()


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_set_writes_a_float_or_all_ones(kind: str) -> None:
    form = FORMATS[kind]
    a, b = comparands(form)
    results = {"u32": (32, 0xFFFFFFFF), "s32": (32, 0xFFFFFFFF)} if kind != "bf16" else {}
    results |= {"f32": (32, 0x3F800000)} if kind in ("f32", "f64") else {kind: (16, form.encode(ONE))}
    for name in ("lt", "neu", "num"):
        wanted = [compare(name, form.decode(x), form.decode(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        for result, (bits, true) in results.items():
            (got,) = evaluate(f"set.{name}.{result}.{kind} {{x}}, {{a}}, {{b}};", [a, b], str(bits))
            assert got.tolist() == [true * w for w in wanted], (name, result)


def extreme(name: str, nan: bool, *operands: Number) -> Number:
    """With .NaN any NaN gives NaN, otherwise only if all are; -0 is below +0."""
    known = [x for x in operands if not x.nan]
    if not known or (nan and len(known) < len(operands)):
        return NOT_A_NUMBER

    def rank(x: Number) -> tuple[Fraction | float, bool]:
        return (math.inf if x.infinite and not x.negative else -math.inf if x.infinite else x.value), not x.negative

    return (min if name == "min" else max)(known, key=rank)


EXTREMES = [
    f"{name}{flags}.{kind}"
    for name in ("min", "max")
    for kind, choices in (
        ("f32", ("", ".ftz", ".NaN", ".ftz.NaN", ".xorsign.abs", ".NaN.xorsign.abs", ".ftz.NaN.xorsign.abs")),
        ("f64", ("",)),
        ("f16", ("", ".ftz", ".NaN", ".xorsign.abs", ".ftz.NaN.xorsign.abs")),
        ("bf16", ("", ".NaN", ".xorsign.abs", ".NaN.xorsign.abs")),
    )
    for flags in choices
]


def extreme_code(form_text: str, form: Format, *codes: int) -> int:
    flags = form_text.split(".")
    if "ftz" in flags:
        codes = tuple(form.flush(code) for code in codes)
    numbers = [form.decode(code) for code in codes]
    if "abs" in flags:
        sign = numbers[0].negative != numbers[1].negative if "xorsign" in flags else False
        found = extreme(flags[0], "NaN" in flags, *(Number(False, x.magnitude) for x in numbers))
        # the sign is that of the exclusive or of the operands' signs
        return form.encode(found) | int(sign and not found.nan) << (form.bits - 1)
    return form.encode(extreme(flags[0], "NaN" in flags, *numbers))


@pytest.mark.parametrize("form_text", EXTREMES)
def test_minimum_and_maximum(form_text: str) -> None:
    kind = form_text.rpartition(".")[2]
    form = FORMATS[kind]
    a, b = draw(form, 21), draw(form, 22)
    if "xorsign" in form_text:  # what the sign of a NaN does to a number is not said
        nan = np.array([form.is_nan(x) or form.is_nan(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)])
        a, b = np.where(nan, 1, a).astype(a.dtype), np.where(nan, 2, b).astype(b.dtype)
    (got,) = evaluate(f"{form_text} {{x}}, {{a}}, {{b}};", [a, b], str(form.bits))
    check(form_text, form, [a, b], got, lambda x, y: extreme_code(form_text, form, x, y))
    if form.bits == 16:
        low, high = (x.astype(np.uint32) | np.roll(x, 1).astype(np.uint32) << np.uint32(16) for x in (a, b))
        (got,) = evaluate(f"{form_text}x2 {{x}}, {{a}}, {{b}};", [low, high], "32")
        check(f"{form_text}x2", form, [a, b], got & 0xFFFF, lambda x, y: extreme_code(form_text, form, x, y))
        rolled = [np.roll(a, 1), np.roll(b, 1)]
        check(f"{form_text}x2", form, rolled, got >> 16, lambda x, y: extreme_code(form_text, form, x, y))


@pytest.mark.parametrize("flags", ["", ".ftz", ".NaN", ".abs", ".ftz.NaN.abs"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_minimum_and_maximum_of_three(name: str, flags: str) -> None:
    form = FORMATS["f32"]
    inputs = [draw(form, seed) for seed in (31, 32, 33)]
    (got,) = evaluate(f"{name}{flags}.f32 {{x}}, {{a}}, {{b}}, {{c}};", inputs, "32")
    check(f"{name}{flags}.f32", form, inputs, got, lambda *codes: extreme_code(f"{name}{flags}", form, *codes))


# Signs and classes


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64", "f16x2", "bf16x2"])
def test_negation_and_absolute_value_change_the_sign_alone(kind: str) -> None:
    form = FORMATS[kind.removesuffix("x2")]
    parts = [draw(form, seed) for seed in ((41, 42) if kind.endswith("x2") else (41,))]
    bits = form.bits * len(parts)
    dtype = {16: np.uint16, 32: np.uint32, 64: np.uint64}[bits]
    a = sum((part.astype(dtype) << dtype(form.bits * n) for n, part in enumerate(parts)), np.zeros(COUNT, dtype))
    for name, flush in (
        ("neg", False),
        ("abs", False),
        *((n, True) for n in ("neg", "abs") if kind[:3] in ("f16", "f32")),
    ):
        (got,) = evaluate(f"{name}{'.ftz' if flush else ''}.{kind} {{x}}, {{a}};", [a], str(bits))
        for n, part in enumerate(parts):
            sign = 1 << (form.bits - 1)

            def oracle(code: int, name: str = name, flush: bool = flush, sign: int = sign) -> int:
                code = form.flush(code) if flush else code
                return code ^ sign if name == "neg" else code & ~sign

            check(f"{name}.{kind}", form, [part], got >> dtype(form.bits * n) & dtype((1 << form.bits) - 1), oracle)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_copysign_and_testp(kind: str) -> None:
    form = FORMATS[kind]
    a, b = draw(form, 51), draw(form, 52)
    (got,) = evaluate(f"copysign.{kind} {{x}}, {{a}}, {{b}};", [a, b], str(form.bits))
    sign = 1 << (form.bits - 1)
    assert got.tolist() == [x & sign | y & ~sign & (2 * sign - 1) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    classes: dict[str, Callable[[Number, int], bool]] = {
        "finite": lambda x, c: x.finite,
        "infinite": lambda x, c: x.infinite,
        "number": lambda x, c: not x.nan,
        "notanumber": lambda x, c: x.nan,
        "normal": lambda x, c: x.finite and form.flush(c) == c and not x.zero,
        "subnormal": lambda x, c: x.finite and form.flush(c) != c,
    }
    for name, holds in classes.items():
        (flags,) = evaluate(f"testp.{name}.{kind} {{x}}, {{a}};", [a], "pred")
        wanted = [holds(form.decode(code), code) for code in a.tolist()]
        if name == "normal":  # the manual: zero is not subnormal, and counts as normal
            wanted = [w or form.decode(code).zero for w, code in zip(wanted, a.tolist(), strict=True)]
        assert flags.tolist() == wanted, name


# Approximations: within the errors of the manual's tables


def relative(value: float, exact: float) -> float:
    return abs(value - exact) / abs(exact) if exact else abs(value)


SMALL = np.random.default_rng(5).uniform(-1, 1, COUNT)
LOGARITHMIC = np.exp2(np.random.default_rng(6).uniform(-100, 100, COUNT))
APPROXIMATE: dict[str, tuple[Array, Callable[[float], float], float, float]] = {
    # form: operands, function, largest relative and absolute error
    "rcp.approx.f32": (LOGARITHMIC, lambda x: 1 / x, 2**-23, 0),
    "sqrt.approx.f32": (LOGARITHMIC, math.sqrt, 2**-23, 0),
    "rsqrt.approx.f32": (LOGARITHMIC, lambda x: 1 / math.sqrt(x), 2**-22.9, 0),
    "ex2.approx.f32": (SMALL * 100, lambda x: 2**x, 2**-22.5, 0),
    "lg2.approx.f32": (LOGARITHMIC, math.log2, 2**-22, 2**-22),
    "sin.approx.f32": (SMALL * 2 * math.pi, math.sin, 0, 2**-20.5),
    "cos.approx.f32": (SMALL * 2 * math.pi, math.cos, 0, 2**-20.5),
    "tanh.approx.f32": (SMALL * 5, math.tanh, 2**-11, 0),
    "rsqrt.approx.f64": (LOGARITHMIC, lambda x: 1 / math.sqrt(x), 2**-22, 0),
}


@pytest.mark.parametrize("form_text", APPROXIMATE)
def test_approximations_stay_within_the_documented_error(form_text: str) -> None:
    values, function, most, absolute = APPROXIMATE[form_text]
    dtype, word = (np.float64, np.uint64) if form_text.endswith("f64") else (np.float32, np.uint32)
    operands = values.astype(dtype)
    (got,) = evaluate(f"{form_text} {{x}}, {{a}};", [operands.view(word)], str(8 * operands.itemsize))
    for x, y in zip(operands.tolist(), got.view(dtype).tolist(), strict=True):
        exact = function(x)
        assert abs(y - exact) <= max(most * abs(exact), absolute), (x, y, exact)


@pytest.mark.parametrize("form_text", ["div.approx.f32", "div.full.f32"])
def test_approximate_division_errs_by_at_most_two_units(form_text: str) -> None:
    rng = np.random.default_rng(7)
    a, b = (np.exp2(rng.uniform(-60, 60, COUNT)).astype(np.float32) for _ in range(2))
    (got,) = evaluate(f"{form_text} {{x}}, {{a}}, {{b}};", [a.view(np.uint32), b.view(np.uint32)], "32")
    exact = a.astype(np.float64) / b.astype(np.float64)
    assert np.all(np.abs(got.view(np.float32) - exact) <= 2 * np.spacing(exact.astype(np.float32)).astype(np.float64))


SPECIAL_VALUES = {
    # the manual's tables of special operands: -inf, -0, +0, +inf, NaN
    "rcp.approx.f32": ("-0", "-inf", "+inf", "+0", "nan"),
    "sqrt.approx.f32": ("nan", "-0", "+0", "+inf", "nan"),
    "rsqrt.approx.f32": ("nan", "-inf", "+inf", "+0", "nan"),
    "ex2.approx.f32": ("+0", "1", "1", "+inf", "nan"),
    "lg2.approx.f32": ("nan", "-inf", "-inf", "+inf", "nan"),
    "sin.approx.f32": ("nan", "-0", "+0", "nan", "nan"),
    "cos.approx.f32": ("nan", "1", "1", "nan", "nan"),
    "tanh.approx.f32": ("-1", "-0", "+0", "1", "nan"),
    "rcp.approx.ftz.f64": ("-0", "-inf", "+inf", "+0", "nan"),
    "rsqrt.approx.f64": ("nan", "-inf", "+inf", "+0", "nan"),
}


@pytest.mark.parametrize("form_text", SPECIAL_VALUES)
def test_special_operands_of_approximations(form_text: str) -> None:
    form = FORMATS[form_text.rpartition(".")[2]]
    named = {
        "-inf": Number(True, "inf"),
        "-0": Number(True, Fraction(0)),
        "+0": Number(False, Fraction(0)),
        "+inf": Number(False, "inf"),
        "nan": NOT_A_NUMBER,
        "1": ONE,
        "-1": negate(ONE),
    }
    codes = np.array([form.encode(named[x]) for x in ("-inf", "-0", "+0", "+inf", "nan")], np.uint64)
    operands = codes.astype({32: np.uint32, 64: np.uint64}[form.bits])
    (got,) = evaluate(f"{form_text} {{x}}, {{a}};", [operands], str(form.bits))
    for have, want in zip(got.tolist(), SPECIAL_VALUES[form_text], strict=True):
        assert same(form, have, form.encode(named[want])), (form_text, hex(have), want)


@pytest.mark.parametrize(
    ("form_text", "most"),
    [
        ("tanh.approx.f16", 2**-10.987),
        ("tanh.approx.bf16", 2**-8),
        ("ex2.approx.f16", 2**-9.9),
        ("ex2.approx.ftz.bf16", 2**-7),
    ],
)
def test_half_precision_approximations(form_text: str, most: float) -> None:
    """The bounds are the manual's relative ones for f16 and bf16's; a result below the normal range errs absolutely."""
    form = FORMATS[form_text.rpartition(".")[2]]
    codes = np.arange(0, 1 << 16, 37).astype(np.uint16)
    (got,) = evaluate(f"{form_text} {{x}}, {{a}};", [codes], "16")
    packed = codes.astype(np.uint32) | codes[::-1].astype(np.uint32) << np.uint32(16)
    (pair,) = evaluate(f"{form_text}x2 {{x}}, {{a}};", [packed], "32")
    assert np.array_equal(pair & 0xFFFF, got) and np.array_equal(pair >> 16, got[::-1])
    smallest = float(form.decode(1).value)
    for code, have in zip(codes.tolist(), got.tolist(), strict=True):
        x, y = form.decode(code), form.decode(have)
        if x.nan:
            assert y.nan
        elif x.finite and abs(x.value) < 200:
            exact = math.tanh(x.value) if form_text[0] == "t" else 2.0 ** float(x.value)
            if exact < float(form.decode(form.largest).value) and y.finite:
                allowed = max(most * abs(exact), smallest * (1 << form.mantissa if "ftz" in form_text else 1))
                assert abs(float(y.value) - exact) <= allowed, (hex(code), hex(have), exact)


def test_rounding_of_a_sum_can_be_told_by_its_neighbours() -> None:
    """A spot check by hand: 1 + 2^-24 is a tie, 1 + 3 * 2^-24 another."""
    one, tie = 0x3F800000, 0x33800000
    a = np.array([one, one, one, 0xBF800000], np.uint32)
    b = np.array([tie, tie + 0x00C00000, tie, tie | 0x80000000], np.uint32)
    wanted = {
        "rn": [one, one + 2, one, 0xBF800000],
        "rz": [one, one + 1, one, 0xBF800000],
        "rm": [one, one + 1, one, 0xBF800001],
        "rp": [one + 1, one + 2, one + 1, 0xBF800000],
    }
    for mode, codes in wanted.items():
        (got,) = evaluate(f"add.{mode}.f32 {{x}}, {{a}}, {{b}};", [a, b], "32")
        assert got.tolist() == codes, mode
        assert exactly(Fraction(1) + Fraction(1, 1 << 24)).value == Fraction((1 << 24) + 1, 1 << 24)
