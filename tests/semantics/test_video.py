"""Video instructions against the manual's pseudocode in exact integers: types, selectors, masks, second operations."""

import random
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from tests.semantics.harness import Array, agree, evaluate, patterns, signed

COUNT = 512
TYPES = ("u32", "s32")
PARTS = ("", ".b0", ".b1", ".b2", ".b3", ".h0", ".h1")
COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
PRIMARY: dict[str, Callable[[int, int], int]] = {
    "vadd": lambda a, b: a + b,
    "vsub": lambda a, b: a - b,
    "vabsdiff": lambda a, b: abs(a - b),
    "vmin": min,
    "vmax": max,
    "vavrg": lambda a, b: (a + b + 1) >> 1 if a + b >= 0 else (a + b) >> 1,
}
SECOND: dict[str, Callable[[int, int], int]] = {"add": lambda t, c: t + c, "min": min, "max": max}


def inputs(seed: int, count: int = 3) -> list[Array]:
    return [patterns(32, COUNT, seed * 8 + n) for n in range(count)]


def part(word: int, selector: str, kind: str) -> int:
    """partSelectSignExtend."""
    width = {"": 32, ".b": 8, ".h": 16}[selector[:2]]
    value = word >> width * int(selector[2:] or 0) & ((1 << width) - 1)
    return signed(value, width) if kind == "s32" else value


def clamp(value: int, width: int, kind: str) -> int:
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if kind == "s32" else (0, (1 << width) - 1)
    return min(max(value, low), high)


def finished(value: int, c: int, kind: str, saturate: bool, second: str, target: str) -> int:
    """optSaturate, optSecondaryOp with c by the type of d, optMerge."""
    width = {"": 32, ".b": 8, ".h": 16}[target[:2]]
    if saturate:
        value = clamp(value, width, kind)
    if second:
        return SECOND[second](value, signed(c, 32) if kind == "s32" else c) % (1 << 32)
    if not target:
        return value % (1 << 32)
    at, ones = width * int(target[2:]), (1 << width) - 1
    return c & ~(ones << at) | (value & ones) << at


def endings(seed: int) -> list[tuple[bool, str, str]]:
    """Saturation, second operation and target's selector: each, and some of them together."""
    every = [(sat, second, "") for sat in (False, True) for second in ("", *SECOND)]
    return every + [(sat, "", target) for sat in (False, True) for target in random.Random(seed).sample(PARTS[1:], 3)]


def run_scalar(name: str, kinds: tuple[str, ...], seed: int, value: Callable[[int, int], int], saturates: bool) -> None:
    """`name` has {} where the types stand; `value` is of the extended a and b."""
    rng, (d, a_kind, b_kind) = random.Random(seed), kinds
    for saturate, second, target in endings(seed):
        if saturate and not saturates:
            continue
        a_part, b_part = rng.choice(PARTS), rng.choice(PARTS)
        words = name.split(" ")
        form = words[0] + (".sat" if saturate else "") + "".join(words[1:]) + ("." + second if second else "")
        last = ", {c}" if second or target else ""
        a, b, c = inputs(rng.randrange(1000))
        (got,) = evaluate(f"{form} {{x}}{target}, {{a}}{a_part}, {{b}}{b_part}{last};", [a, b, c], "32")
        expected = (
            finished(value(part(x, a_part, a_kind), part(y, b_part, b_kind)), z, d, saturate, second, target)
            for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
        )
        agree(f"{form} {target} {a_part} {b_part}", [a, b, c], got, expected)


@pytest.mark.parametrize("name", ["vadd", "vsub", "vabsdiff", "vmin", "vmax"])
@pytest.mark.parametrize("kinds", list(product(TYPES, repeat=3)), ids=".".join)
def test_scalar_arithmetic(name: str, kinds: tuple[str, ...]) -> None:
    run_scalar(f"{name}.{'.'.join(kinds)}", kinds, len(name), PRIMARY[name], True)


@pytest.mark.parametrize("name", ["vshl", "vshr"])
@pytest.mark.parametrize("mode", ["clamp", "wrap"])
@pytest.mark.parametrize("kinds", list(product(TYPES, repeat=2)), ids=".".join)
def test_scalar_shifts(name: str, mode: str, kinds: tuple[str, ...]) -> None:
    """The result is one of 34 bits, as of all scalar video instructions."""

    def value(a: int, b: int) -> int:
        b = min(b, 32) if mode == "clamp" else b & 31
        return signed((a << b) % (1 << 34), 34) if name == "vshl" else a >> b

    run_scalar(f"{name}.{'.'.join(kinds)}.u32 .{mode}", (*kinds, "u32"), 5, value, True)


@pytest.mark.parametrize("compare", COMPARE)
@pytest.mark.parametrize("kinds", list(product(TYPES, repeat=2)), ids=".".join)
def test_scalar_comparisons(compare: str, kinds: tuple[str, ...]) -> None:
    value = lambda a, b: int(COMPARE[compare](a, b))  # noqa: E731
    run_scalar(f"vset.{'.'.join(kinds)}.{compare}", ("u32", *kinds), 7, value, False)


def sums(a: int, b: int, c: int, unsigned: bool, plus: bool, minus_ab: bool, minus_c: bool) -> int:
    """vmad's tmp, in as many bits as it needs."""
    product_, lsb = a * b, 0
    if plus:
        lsb = 1
    elif minus_ab:
        product_, lsb = ~product_, 1
    elif minus_c:
        c, lsb = c ^ 0xFFFFFFFF, 1
    return product_ + (c if unsigned else signed(c, 32)) + lsb


@pytest.mark.parametrize("scale", ["", ".shr7", ".shr15"])
@pytest.mark.parametrize("kinds", list(product(TYPES, repeat=2)), ids=".".join)
@pytest.mark.parametrize("signs", ["", "a", "b", "c", "ab", "abc", "po"])
def test_multiply_add(kinds: tuple[str, str], scale: str, signs: str) -> None:
    rng, (a_kind, b_kind) = random.Random(len(scale) + len(signs)), kinds
    minus_ab, minus_c = ("a" in signs) != ("b" in signs), "c" in signs
    unsigned = kinds == ("u32", "u32") and not minus_ab and not minus_c
    d = "u32" if unsigned else "s32"
    for saturate in (False, True):
        a_part, b_part = rng.choice(PARTS), rng.choice(PARTS)
        form = f"vmad.{d}.{a_kind}.{b_kind}" + (".po" if signs == "po" else "") + (".sat" if saturate else "") + scale
        a, b, c = inputs(rng.randrange(1000))
        operands = [("-" if x in signs and signs != "po" else "") + f"{{{x}}}" for x in "abc"]
        body = f"{form} {{x}}, {operands[0]}{a_part}, {operands[1]}{b_part}, {operands[2]};"
        (got,) = evaluate(body, [a, b, c], "32")

        def result(x: int, y: int, z: int, a_part: str = a_part, b_part: str = b_part, sat: bool = saturate) -> int:
            first, second = part(x, a_part, a_kind), part(y, b_part, b_kind)
            value = sums(first, second, z, unsigned, signs == "po", minus_ab, minus_c) >> int(scale[4:] or 0)
            return (clamp(value, 32, d) if sat else value) % (1 << 32)

        agree(body, [a, b, c], got, map(result, a.tolist(), b.tolist(), c.tolist()))


def elements(a: int, b: int, selector: str, width: int, kind: str) -> list[int]:
    """extractAndSignExt_2 and _4: the selector's last digit is element 0; b follows a."""
    both = b << 32 | a
    found = []
    for digit in reversed(selector):
        value = both >> width * int(digit) & ((1 << width) - 1)
        found.append(signed(value, width) if kind == "s32" else value)
    return found


def simd_forms(seed: int, width: int) -> list[tuple[str, str, str]]:
    """Mask and selectors of a and b, "" for the default."""
    rng, count = random.Random(seed), 32 // width
    masks = ["".join(str(n) for n in range(count)[::-1] if bits >> n & 1) for bits in range(1, 1 << count)]
    digits = "0123" if width == 16 else "01234567"
    chosen = [("", "", "")]
    for mask in rng.sample(masks, 3):
        chosen.append((mask, *("".join(rng.choice(digits) for _ in range(count)) for _ in range(2))))
    return chosen


def run_simd(
    name: str, kinds: tuple[str, ...], width: int, seed: int, endings: tuple[str, ...], value: Callable[[int, int], int]
) -> None:
    letter, count, ones = ("h", 2, 0xFFFF) if width == 16 else ("b", 4, 0xFF)
    for ending, (mask, a_from, b_from) in product(endings, simd_forms(seed, width)):
        m, f, g = ("." + letter + x if x else "" for x in (mask, a_from, b_from))
        body = f"{name}{ending} {{x}}{m}, {{a}}{f}, {{b}}{g}, {{c}};"
        a, b, c = inputs(seed + len(ending))
        (got,) = evaluate(body, [a, b, c], "32")

        def result(
            x: int, y: int, z: int, mask: str = mask, one: str = a_from, other: str = b_from, end: str = ending
        ) -> int:
            first = elements(x, y, one or "3210"[4 - count :], width, kinds[1])
            second = elements(x, y, other or ("32" if count == 2 else "7654"), width, kinds[2])
            t = [value(p, q) for p, q in zip(first, second, strict=True)]
            if end == ".sat":
                t = [clamp(v, width, kinds[0]) for v in t]
            taken = [not mask or str(n) in mask for n in range(count)]
            if end == ".add":
                return (z + sum(v for v, use in zip(t, taken, strict=True) if use)) % (1 << 32)
            kept = [z >> width * n & ones for n in range(count)]
            return sum((t[n] & ones if taken[n] else kept[n]) << width * n for n in range(count))

        agree(body, [a, b, c], got, map(result, a.tolist(), b.tolist(), c.tolist()))


@pytest.mark.parametrize("width", [16, 8])
@pytest.mark.parametrize("name", PRIMARY)
@pytest.mark.parametrize("kinds", list(product(TYPES, repeat=3)), ids=".".join)
def test_halves_and_bytes_side_by_side(name: str, width: int, kinds: tuple[str, ...]) -> None:
    full = f"{name}{32 // width}.{'.'.join(kinds)}"
    run_simd(full, kinds, width, width + len(name), ("", ".sat", ".add"), PRIMARY[name])


@pytest.mark.parametrize("width", [16, 8])
@pytest.mark.parametrize("compare", COMPARE)
@pytest.mark.parametrize("kinds", list(product(TYPES, repeat=2)), ids=".".join)
def test_halves_and_bytes_are_compared(compare: str, width: int, kinds: tuple[str, ...]) -> None:
    value = lambda a, b: int(COMPARE[compare](a, b))  # noqa: E731
    run_simd(f"vset{32 // width}.{'.'.join(kinds)}.{compare}", ("u32", *kinds), width, width, ("", ".add"), value)


def test_a_constant_is_an_operand_and_c_is_left_alone_where_nothing_is_done_with_it() -> None:
    a, b, c = inputs(1)
    (got,) = evaluate("vsub.s32.u32.s32 {x}, {a}.b1, -3, {c};", [a, b, c], "32")
    np.testing.assert_array_equal(got, (a >> 8 & 255) + 3)
    (got,) = evaluate("vmad.s32.s32.s32 {x}, {a}, 1, -5;", [a, b, c], "32")
    np.testing.assert_array_equal(got, a - np.uint32(5))
