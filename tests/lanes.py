"""What the tests of single instructions share: running a line of PTX on arrays, operands, and exact rounding."""

import math
import re
from fractions import Fraction

import ml_dtypes
import numpy as np

from lowbitvm.runtime import emulator

REGISTER = {1: "%b", 2: "%h", 4: "%r", 8: "%d"}
NUMPY = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def apply(
    body: str, result: int, *sources: np.ndarray, checks: str | set[str] = "all", target: str = "sm_100a"
) -> np.ndarray:
    """Run `body` on every element: A, B, C, D, E stand for the sources, Z for the result of `result` bytes."""
    count = sources[0].size
    lines, names = [], "ABCDE"
    for n, source in enumerate(sources):
        size = source.itemsize
        lines.append(f"ld.param.u64 %q1, [p{n}]; mad.wide.u32 %q1, %index, {size}, %q1;")
        lines.append(f"ld.global.b{8 * size} {REGISTER[size]}{n}, [%q1];")
        body = re.sub(rf"\b{names[n]}\b", f"{REGISTER[size]}{n}", body)
    body = re.sub(r"\bZ\b", f"{REGISTER[result]}9", body)
    params = ", ".join(f".param .u64 p{n}" for n in range(len(sources) + 1))
    text = f"""
    .version 9.2
    .target {target}
    .address_size 64
    .visible .entry k({params}) {{
        .reg .pred %p<4>; .reg .b8 %b<10>; .reg .b16 %h<10>; .reg .b32 %r<10>; .reg .b64 %d<10>; .reg .b64 %q<3>;
        .reg .b32 %index; .reg .b128 %o<3>;
        mov.u32 %index, %ctaid.x; mov.u32 %r9, %tid.x; mad.lo.u32 %index, %index, 128, %r9;
        {" ".join(lines)}
        {body}
        ld.param.u64 %q1, [p{len(sources)}]; mad.wide.u32 %q1, %index, {result}, %q1;
        st.global.b{8 * result} [%q1], {REGISTER[result]}9;
        ret;
    }}"""
    padded = [np.resize(source, -(-count // 128) * 128) for source in sources]
    out = np.zeros(padded[0].size, NUMPY[result])
    arguments = [*padded, emulator.output(out)]
    emulator.load(text).launch("k", (padded[0].size // 128,), (128,), arguments, checks=checks)
    return out[:count]


def integers(bits: int, count: int = 512, seed: int = 0) -> np.ndarray:
    """Random patterns, a third of them near the edges of the range."""
    rng = np.random.default_rng(seed * 100 + bits)
    values = rng.integers(0, 1 << bits, count, dtype=np.uint64)
    top = 1 << (bits - 1)
    edges = [0, 1, 2, 3, (1 << bits) - 1, (1 << bits) - 2, top, top - 1, top + 1]
    where = rng.random(count) < 1 / 3
    values[where] = rng.choice(np.array(edges, np.uint64), where.sum())
    return values.astype(NUMPY[bits // 8])


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def read(kind: str, value: int) -> int:
    return signed(value, int(kind[1:])) if kind[0] == "s" else value


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


# Bits of precision, exponent of the least normal number, largest finite number.
PRECISION = {
    "f16": (11, -14, Fraction(65504)),
    "bf16": (8, -126, (2 - Fraction(2) ** -7) * Fraction(2) ** 127),
    "f32": (24, -126, (2 - Fraction(2) ** -23) * Fraction(2) ** 127),
    "f64": (53, -1022, (2 - Fraction(2) ** -52) * Fraction(2) ** 1023),
    "tf32": (11, -126, (2 - Fraction(2) ** -10) * Fraction(2) ** 127),
    "e4m3": (4, -6, Fraction(448)),
    "e5m2": (3, -14, Fraction(57344)),
    "e2m1": (2, 0, Fraction(6)),
    "e2m3": (4, 0, Fraction(15, 2)),
    "e3m2": (3, -2, Fraction(28)),
}


def unit_of(magnitude: Fraction, kind: str) -> Fraction:
    """The distance between neighbours of a float format around a positive number."""
    precision, lowest, _ = PRECISION[kind]
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length() - 1
    while Fraction(2) ** (exponent + 1) <= magnitude:
        exponent += 1
    return Fraction(2) ** (max(exponent, lowest) - precision + 1)


def rounded(value: Fraction, kind: str, mode: str = "rn") -> float:
    """A number rounded to a float format by exact arithmetic; rn has ties to even, rna away from zero."""
    if value == 0:
        return 0.0
    unit = unit_of(abs(value), kind)
    steps = value / unit
    away = math.floor(abs(steps) + Fraction(1, 2)) * (1 if value > 0 else -1)
    result = (
        unit
        * {
            "rn": round(steps),
            "rz": math.trunc(steps),
            "rm": math.floor(steps),
            "rp": math.ceil(steps),
            "rna": away,
        }[mode]
    )
    largest = PRECISION[kind][2]
    if abs(result) > largest:
        inward = mode == "rz" or (mode == "rm" and value > 0) or (mode == "rp" and value < 0)
        return math.copysign(float(largest) if inward else math.inf, value)
    return math.copysign(float(result), value)
