"""The emulator's tensor cores against exact models written from the manual and from the published descriptions.

Integers and bits are compared with numpy's, floats with sums in fractions. Fragments are laid out by the manual's
formulas, which the last test compares with CUTLASS's headers.
"""

import ast
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import cutlass_library
import ml_dtypes
import numpy as np
import pycute
import pytest

from lowbitvm.runtime import emulator

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Type:
    """A type of elements: bits in a register, lowest exponent, and numpy's dtype of its codes."""

    bits: int
    lowest: int = 0
    dtype: Any = None
    shift: int = 0  # where the code starts in its container


TYPES = {
    "f16": Type(16, -14, np.float16),
    "bf16": Type(16, -126, ml_dtypes.bfloat16),
    "tf32": Type(32, -126, np.float32),
    "e4m3": Type(8, -6, ml_dtypes.float8_e4m3fn),
    "e5m2": Type(8, -14, ml_dtypes.float8_e5m2),
    "e3m2": Type(8, -2, ml_dtypes.float6_e3m2fn),
    "e2m3": Type(8, 0, ml_dtypes.float6_e2m3fn),
    "e2m1": Type(8, 0, ml_dtypes.float4_e2m1fn, 2),
    "fp4": Type(4, 0, ml_dtypes.float4_e2m1fn),
    "s8": Type(8),
    "u8": Type(8),
    "s4": Type(4),
    "u4": Type(4),
    "b1": Type(1),
    "f64": Type(64),
    "f32": Type(32, -126, np.float32),
}


def places_of(height: int, k: int, bits: int) -> tuple[Array, Array]:
    """Row and k of every element of A with 16 or 8 rows, or column and k of B's: (32 lanes, elements of a lane).

    With g = lane >> 2, q = lane & 3, e elements in a register and i the element's number in the lane:
    row g + 8 ((i / e) & 1), k = q e + i % e + 4 e (i / 2e); with 8 rows k = q e + i % e + 4 e (i / e).
    """
    e = max(bits, 32) // bits
    lane, i = np.arange(32)[:, None], np.arange(height * k // 32)[None]
    g, q, r = lane >> 2, lane & 3, i // e
    row, step = (g + 8 * (r & 1), r >> 1) if height == 16 else (g + 0 * r, r)
    return row, q * e + i % e + 4 * e * step


def registers_of(rows: Array, bits: int) -> Array:
    """Fragments of matrices (t, 8 or 16, k) of codes as (t, 32 lanes, registers): A's rows, or B's columns."""
    unit = max(bits, 32)
    row, column = places_of(rows.shape[1], rows.shape[2], bits)
    elements = rows[:, row, column].astype(np.uint64).reshape(len(rows), 32, -1, unit // bits)
    shifts = np.arange(0, unit, bits, dtype=np.uint64)
    whole = np.bitwise_or.reduce(elements << shifts, -1)
    return np.ascontiguousarray(whole, np.uint64 if unit == 64 else np.uint32)


C_ROW = [np.arange(32) // 4 + 8 * (i >> 1) for i in range(4)]
C_COLUMN = [2 * (np.arange(32) % 4) + (i & 1) for i in range(4)]


def accumulators_of(c: Array) -> Array:
    """C (t, m, 8) as (t, 32, values of a lane)."""
    return np.stack([c[:, C_ROW[i], C_COLUMN[i]] for i in range(c.shape[1] // 4)], -1)


def matrix_of(values: Array) -> Array:
    count = values.shape[-1]
    c = np.empty((len(values), 4 * count, 8), values.dtype)
    for i in range(count):
        c[:, C_ROW[i], C_COLUMN[i]] = values[:, :, i]
    return c


def words(array: Array) -> Array:
    """(t, 32, n) as 32-bit words."""
    return np.ascontiguousarray(array).view(np.uint32)


def braces(name: str, count: int) -> str:
    return "{" + ", ".join(f"%{name}{n}" for n in range(count)) + "}"


def kernel(
    name: str, counts: tuple[int, int, int], wide: bool = False, extra: str = "", target: str = "sm_120a"
) -> str:
    """Block t multiplies tile t: (lane, register) arrays of A, B, C (overwritten by D), two words of scales."""
    unit, kind = (8, "b64") if wide else (4, "b32")
    loads = "".join(
        f"mad.wide.u32 %p{x}, %t, {unit * count}, %p{x};\n"
        + "".join(f"ld.global.{kind} %{x}{n}, [%p{x}+{unit * n}];\n" for n in range(count))
        for x, count in zip("abc", counts, strict=True)
    )
    stores = "".join(f"st.global.{kind} [%pc+{unit * n}], %c{n};\n" for n in range(counts[2]))
    a, b, c = (braces(x, count) for x, count in zip("abc", counts, strict=True))
    return f"""
    .version 9.1
    .target {target}
    .address_size 64
    .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 s) {{
        .reg .b32 %t; .reg .b32 %l; .reg .b64 %pa; .reg .b64 %pb; .reg .b64 %pc; .reg .b64 %ps; .reg .b32 %s<2>;
        .reg .{kind} %a<9>; .reg .{kind} %b<5>; .reg .{kind} %c<9>;
        mov.u32 %t, %ctaid.x; mov.u32 %l, %laneid; mad.lo.u32 %t, %t, 32, %l;
        ld.param.u64 %pa, [a]; ld.param.u64 %pb, [b]; ld.param.u64 %pc, [c]; ld.param.u64 %ps, [s];
        {loads}
        mad.wide.u32 %ps, %t, 8, %ps; ld.global.v2.b32 {{%s0, %s1}}, [%ps];
        {name} {c}, {a}, {b}, {c}{extra};
        {stores}
        ret;
    }}"""


def run(
    name: str, a: Array, b: Array, c: Array, scales: Array | None = None, extra: str = "", **options: Any
) -> tuple[Array, Any]:
    """The instruction on fragments (t, 32, registers); D's, and the report."""
    wide = a.dtype == np.uint64
    text = kernel(name, (a.shape[2], b.shape[2], c.shape[2]), wide, extra, options.get("arch", "sm_120a"))
    d = c.copy()
    s = np.zeros((len(a), 32, 2), np.uint32) if scales is None else scales
    report = emulator.load(text).launch("k", (len(a),), (32,), [a, b, d, s], **options)
    return d, report


# Integers and bits


def draw_codes(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> tuple[Array, Array]:
    """Codes, with the extremes among them, and the integers they stand for."""
    bits = TYPES[kind].bits
    codes = rng.integers(0, 1 << bits, shape)
    for extreme in (0, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1):
        codes = np.where(rng.random(shape) < 0.05, extreme, codes)
    values = np.where(codes >> (bits - 1), codes - (1 << bits), codes) if kind[0] == "s" else codes
    return codes, values


INTEGER_SHAPES = [
    *product(["m8n8k16", "m16n8k16", "m16n8k32"], product(["s8", "u8"], repeat=2)),
    *product(["m8n8k32", "m16n8k32", "m16n8k64"], product(["s4", "u4"], repeat=2)),
]


def extents(shape: str) -> tuple[int, int]:
    m, k = shape[1:].split("n8k")
    return int(m), int(k)


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize(("shape", "kinds"), INTEGER_SHAPES)
def test_integer_products_are_exact_and_wrap_or_saturate(shape: str, kinds: tuple[str, str], saturate: bool) -> None:
    rng = np.random.default_rng(0)
    m, k = extents(shape)
    (a, a_values), (b, b_values) = draw_codes(rng, (6, m, k), kinds[0]), draw_codes(rng, (6, 8, k), kinds[1])
    c = rng.integers(-(2**31), 2**31, (6, m, 8))
    c[0], c[1], c[2] = 2**31 - 1, -(2**31), rng.integers(-1000, 1000, (m, 8))
    name = f"mma.sync.aligned.{shape}.row.col{'.satfinite' if saturate else ''}.s32.{kinds[0]}.{kinds[1]}.s32"
    bits = TYPES[kinds[0]].bits
    fragments = (registers_of(a, bits), registers_of(b, bits), words(accumulators_of(c.astype(np.int32))))
    d, _ = run(name, *fragments)
    exact = c + np.einsum("tmk,tnk->tmn", a_values, b_values)
    expected = np.clip(exact, -(2**31), 2**31 - 1) if saturate else (exact + 2**31) % 2**32 - 2**31
    np.testing.assert_array_equal(matrix_of(d.view(np.int32)), expected)
    assert (exact != expected).any()


@pytest.mark.parametrize("operation", ["and", "xor"])
@pytest.mark.parametrize("shape", ["m8n8k128", "m16n8k128", "m16n8k256"])
def test_bit_products_count_bits(shape: str, operation: str) -> None:
    rng = np.random.default_rng(0)
    m, k = extents(shape)
    a, b, c = rng.integers(0, 2, (4, m, k)), rng.integers(0, 2, (4, 8, k)), rng.integers(-(2**31), 2**31, (4, m, 8))
    a[0] = b[0] = 1
    name = f"mma.sync.aligned.{shape}.row.col.s32.b1.b1.s32.{operation}.popc"
    d, _ = run(name, registers_of(a, 1), registers_of(b, 1), words(accumulators_of(c.astype(np.int32))))
    pairs = a[:, :, None] & b[:, None] if operation == "and" else a[:, :, None] ^ b[:, None]
    expected = (c + pairs.sum(3) + 2**31) % 2**32 - 2**31
    np.testing.assert_array_equal(matrix_of(d.view(np.int32)), expected)


# Floats: the exact model


@dataclass(frozen=True)
class Unit:
    """A tensor core's sums: fraction bits kept when aligning, addends at once, result, elements in sum order."""

    kept: int
    group: int
    result: str = "f32"  # "e8m13": f32 with 14 significant bits
    detached: bool = False  # C is added at the end


def unit_of(arch: str, kind: str, k: int) -> Unit:
    """From the published models; what has no unit of its own goes by what ptxas makes of it (an f16 unit)."""
    capability, bits = int(arch[3:5] if arch[3] != "1" else arch[3:6]), TYPES[kind].bits
    if kind == "fp4":
        return Unit(35, 64)
    if bits == 8 and 90 <= capability < 120:
        return Unit(25, k // 2, detached=True)
    if capability >= 90:
        return Unit(25, 256 // bits)
    return Unit(13, 16, "e8m13") if bits == 8 else Unit(24, 128 // bits)


def split(value: float, lowest: int) -> tuple[Fraction, int]:
    """Significand and exponent as the hardware has them: subnormals at the lowest exponent, unnormalised."""
    if value == 0:
        return Fraction(0), -126
    exponent = max(math.frexp(value)[1] - 1, lowest)
    return Fraction(value) / Fraction(2) ** exponent, exponent


def cut(value: Fraction, significant: int) -> float:
    """Toward zero, to an f32 with so many significant bits."""
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -126) - significant + 1)
    result = math.trunc(magnitude / unit) * unit
    if result >= Fraction(2) ** 128:
        return math.copysign(math.inf, value)
    return float(result) * (1 if value > 0 else -1)


def nearest_f16(value: Fraction) -> float:
    """To nearest even, by integers."""
    if value == 0:
        return 0.0
    exponent = max(math.frexp(float(abs(value)))[1] - 1, -14)
    unit = Fraction(2) ** (exponent - 10)
    result = round(abs(value) / unit) * unit
    if result >= 65520:
        return math.copysign(math.inf, value)
    return float(result) * (1 if value > 0 else -1)


Terms = list[tuple[Fraction, int]]


def fuse(terms: Terms, c: float, unit: Unit, accumulator: str) -> float:
    """One sum: terms and C, cut at `kept` bits below the largest exponent, summed, and cut or rounded."""
    if math.isinf(c):  # an earlier sum overflowed
        return c
    terms = [*terms, split(c, TYPES[accumulator].lowest)]
    terms = [(s, e if s else -126) for s, e in terms]
    step = Fraction(2) ** (max(e for _, e in terms) - unit.kept)
    total = sum(math.trunc(s * Fraction(2) ** e / step) for s, e in terms) * step
    return nearest_f16(total) if accumulator == "f16" else cut(total, 14 if unit.result == "e8m13" else 24)


def model(terms: Terms, c: float, unit: Unit, accumulator: str) -> float:
    """One output of an instruction."""
    if not unit.detached:
        for start in range(0, len(terms), unit.group):
            c = fuse(terms[start : start + unit.group], c, unit, accumulator)
        return c
    order = [n for n in range(len(terms)) if n % 4 < 2] + [n for n in range(len(terms)) if n % 4 >= 2]
    whole = 0.0
    for start in range(0, len(terms), unit.group):
        whole = fuse([terms[n] for n in order[start : start + unit.group]], whole, unit, accumulator)
    kind = np.float16 if accumulator == "f16" else np.float32
    return float(kind(c) + kind(whole))


def product_terms(a: Array, b: Array, kinds: tuple[str, str], exponent: int = 0, as_f16: bool = False) -> Terms:
    """`as_f16`: for a unit that gets the operands converted."""
    terms = []
    lowest = [-14 if as_f16 else TYPES[kind].lowest for kind in kinds]
    for x, y in zip(a, b, strict=True):
        (sx, ex), (sy, ey) = split(float(x), lowest[0]), split(float(y), lowest[1])
        terms.append((sx * sy, ex + ey + exponent))
    return terms


def codes_of(values: Array, kind: str) -> Array:
    """The bits of values of a type as they lie in a register's element."""
    whole = values.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[values.dtype.itemsize])
    return whole.astype(np.uint64) << np.uint64(TYPES[kind].shift)


def draw(rng: np.random.Generator, shape: tuple[int, ...], kind: str, spread: float) -> Array:
    """Values whose magnitudes spread over 2^(-spread)..2^spread where the type has them, with zeros among them."""
    dtype = TYPES[kind].dtype
    if np.dtype(dtype).itemsize == 1:  # every finite code alike; in the second tile subnormals, few of them not 0
        codes = rng.integers(0, 1 << (4 if kind in ("e2m1", "fp4") else 6 if kind in ("e3m2", "e2m3") else 8), shape)
        codes[1:2] = np.where(rng.random(shape)[1:2] < 0.1, codes[1:2] & 1, 0)
        values = codes.astype(np.uint8).view(dtype)
        return np.where(np.isfinite(values.astype(np.float32)), values, np.zeros(1, dtype))
    values = rng.standard_normal(shape) * 2.0 ** rng.uniform(-spread, spread, shape)
    values = np.where(rng.random(shape) < 0.1, 0, values).astype(dtype)
    if kind == "tf32":  # the hardware ignores the low 13 bits
        values = (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return values


def fragments(a: Array, b: Array, c: Array, kinds: tuple[str, str]) -> tuple[Array, Array, Array]:
    bits = TYPES[kinds[0]].bits
    return (
        registers_of(codes_of(a, kinds[0]), bits),
        registers_of(codes_of(b, kinds[1]), TYPES[kinds[1]].bits),
        words(accumulators_of(c)),
    )


FLOAT_FORMS = [
    ("f16", "f16", "m16n8k8"),
    ("f16", "f16", "m16n8k16"),
    ("bf16", "bf16", "m16n8k8"),
    ("bf16", "bf16", "m16n8k16"),
    ("tf32", "tf32", "m16n8k4"),
    ("tf32", "tf32", "m16n8k8"),
    *((a, b, shape) for a, b in product(["e4m3", "e5m2"], repeat=2) for shape in ("m16n8k16", "m16n8k32")),
]
NARROW = ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1"]
CASES = [
    (arch, *form, accumulator, spread)
    for form in FLOAT_FORMS
    for arch in ("sm_75", "sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
    for accumulator in ("f32", "f16")
    for spread in ((0, 4, 12) if TYPES[form[0]].bits > 8 else (0,))
    if accumulator == "f32" or form[0] not in ("bf16", "tf32")
    if (TYPES[form[0]].bits > 8 or arch >= "sm_89" or arch[3] == "1") and (arch != "sm_75" or form[2:] == ("m16n8k8",))
    if arch != "sm_75" or form[0] == "f16"
]


def check(got: Array, count: int, expected: Any) -> None:
    """`count` outputs at random places against expected(t, row, column)."""
    for t, m, n in np.random.default_rng(0).integers(0, got.shape, (count, 3)):
        want = got.dtype.type(expected(t, m, n))
        assert got[t, m, n] == want or (np.isnan(got[t, m, n]) and np.isnan(want)), (t, m, n)


@pytest.mark.parametrize(("arch", "a_kind", "b_kind", "shape", "accumulator", "spread"), CASES)
def test_hardware_numerics_equal_the_exact_model(
    arch: str, a_kind: str, b_kind: str, shape: str, accumulator: str, spread: float
) -> None:
    rng = np.random.default_rng(int(spread))
    _, k = extents(shape)
    a, b = draw(rng, (2, 16, k), a_kind, spread), draw(rng, (2, 8, k), b_kind, spread)
    c = draw(rng, (2, 16, 8), accumulator, spread)
    c[1, ::2] = 0
    name = f"mma.sync.aligned.{shape}.row.col.{accumulator}.{a_kind}.{b_kind}.{accumulator}"
    d, _ = run(name, *fragments(a, b, c, (a_kind, b_kind)), arch=arch)
    got = matrix_of(d.view(TYPES[accumulator].dtype))
    unit = unit_of(arch, a_kind, k)
    with np.errstate(over="ignore"):
        check(
            got,
            60,
            lambda t, m, n: model(
                product_terms(a[t, m], b[t, n], (a_kind, b_kind), as_f16=unit.detached),
                float(c[t, m, n]),
                unit,
                accumulator,
            ),
        )


@pytest.mark.parametrize("accumulator", ["f32", "f16"])
@pytest.mark.parametrize(("a_kind", "b_kind"), list(product(NARROW, repeat=2)))
def test_narrow_types_multiply_by_the_exact_model(a_kind: str, b_kind: str, accumulator: str) -> None:
    rng = np.random.default_rng(0)
    a, b = draw(rng, (2, 16, 32), a_kind, 0), draw(rng, (2, 8, 32), b_kind, 0)
    c = draw(rng, (2, 16, 8), accumulator, 4)
    c[1] = 0
    name = f"mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.{accumulator}.{a_kind}.{b_kind}.{accumulator}"
    d, _ = run(name, *fragments(a, b, c, (a_kind, b_kind)))
    check(
        matrix_of(d.view(TYPES[accumulator].dtype)),
        30,
        lambda t, m, n: model(
            product_terms(a[t, m], b[t, n], (a_kind, b_kind)), float(c[t, m, n]), Unit(25, 32), accumulator
        ),
    )


def place_scales(rng: np.random.Generator, scales: Array, rows: int, byte: int, thread: int) -> Array:
    """Scales (t, rows, count) as one word per lane: A's of rows g and g + 8 in lanes 4g + 2 thread + {0, 1}, B's of
    column g in lane 4g + thread, from byte `byte` on; the rest is noise."""
    tiles, _, count = scales.shape
    lanes = rng.integers(0, 256, (tiles, 32, 4)).astype(np.uint8)
    for row in range(rows):
        lane = 4 * (row % 8) + (2 * thread + row // 8 if rows == 16 else thread)
        lanes[:, lane, byte : byte + count] = scales[:, row]
    return lanes.view(np.uint32)[:, :, 0]


def scale_parts(code: int, kind: str) -> tuple[Fraction, int]:
    if kind == "ue8m0":
        return Fraction(1), code - 127
    return split(float(np.uint8(code).view(ml_dtypes.float8_e4m3fn)), -6)


SCALED = [
    *(("mxf8f6f4", a, b, 1, "ue8m0") for a, b in product(NARROW, repeat=2)),
    ("mxf4", "fp4", "fp4", 2, "ue8m0"),
    ("mxf4nvf4", "fp4", "fp4", 2, "ue8m0"),
    ("mxf4nvf4", "fp4", "fp4", 4, "ue4m3"),
    ("mxf4nvf4", "fp4", "fp4", 4, "ue8m0"),
]


@pytest.mark.parametrize("selectors", [((0, 0), (0, 0)), ((2, 1), (0, 3)), ((0, 1), (2, 1))])
@pytest.mark.parametrize(("kind", "a_kind", "b_kind", "count", "scale_kind"), SCALED)
def test_block_scales_multiply_by_the_exact_model(
    kind: str, a_kind: str, b_kind: str, count: int, scale_kind: str, selectors: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    rng = np.random.default_rng(0)
    (a_byte, a_thread), (b_byte, b_thread) = selectors
    if count == 4:
        a_byte = b_byte = 0
    k = 64 if a_kind == "fp4" else 32
    a, b, c = draw(rng, (2, 16, k), a_kind, 0), draw(rng, (2, 8, k), b_kind, 0), draw(rng, (2, 16, 8), "f32", 4)
    low, high = (118, 137) if scale_kind == "ue8m0" else (0, 127)
    a_scale, b_scale = rng.integers(low, high, (2, 16, count)), rng.integers(low, high, (2, 8, count))
    scales = np.stack(
        [place_scales(rng, a_scale, 16, a_byte, a_thread), place_scales(rng, b_scale, 8, b_byte, b_thread)], -1
    )
    types = ("e2m1", "e2m1") if a_kind == "fp4" else (a_kind, b_kind)
    name = f"mma.sync.aligned.m16n8k{k}.row.col.kind::{kind}.block_scale.scale_vec::{count}X"
    name += f".f32.{types[0]}.{types[1]}.f32.{scale_kind}"
    extra = f", %s0, {{{a_byte}, {a_thread}}}, %s1, {{{b_byte}, {b_thread}}}"
    d, _ = run(name, *fragments(a, b, c, (a_kind, b_kind)), scales, extra)

    def expected(t: int, m: int, n: int) -> float:
        terms: Terms = []
        step = 16 if a_kind == "fp4" else 32  # fp4 units sum 16 products exactly, then scale that sum
        for start in range(0, k, step):
            (sa, ea), (sb, eb) = (
                scale_parts(int(s[start * count // k]), scale_kind) for s in (a_scale[t, m], b_scale[t, n])
            )
            x, y = a[t, m, start : start + step], b[t, n, start : start + step]
            if a_kind == "fp4":
                terms.append((Fraction(float(x.astype(float) @ y.astype(float))) * sa * sb, ea + eb))
            else:
                terms += product_terms(x, y, (a_kind, b_kind), ea + eb)
        return model(terms, float(c[t, m, n]), Unit(35, 64) if a_kind == "fp4" else Unit(25, 32), "f32")

    check(matrix_of(d.view(np.float32)), 30, expected)


# f64, and the quad pairs of m8n8k4


def fused(a: float, b: float, c: float, rounding: str) -> float:
    """a b + c with one rounding: to nearest by Python's division, else by stepping from there."""
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    near = exact.numerator / exact.denominator
    toward = {"rn": near, "rz": 0.0, "rm": -math.inf, "rp": math.inf}[rounding]
    if Fraction(near) != exact and (Fraction(near) > exact) == (near > toward):
        near = math.nextafter(near, toward) if rounding != "rn" else near
    return near


@pytest.mark.parametrize("rounding", ["", ".rn", ".rz", ".rm", ".rp"])
@pytest.mark.parametrize("shape", ["m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"])
def test_f64_products_are_chains_of_fused_multiply_adds(shape: str, rounding: str) -> None:
    rng = np.random.default_rng(0)
    m, k = extents(shape)
    a, b, c = (rng.standard_normal(s) * 10.0 ** rng.integers(-5, 5, s) for s in ((2, m, k), (2, 8, k), (2, m, 8)))
    views = (
        registers_of(a.view(np.uint64), 64),
        registers_of(b.view(np.uint64), 64),
        accumulators_of(c).view(np.uint64),
    )
    d, _ = run(f"mma.sync.aligned.{shape}.row.col{rounding}.f64.f64.f64.f64", *map(np.ascontiguousarray, views))
    got = matrix_of(d.view(np.float64))
    for t, row, column in np.ndindex(got.shape):
        value = float(c[t, row, column])
        for x, y in zip(a[t, row], b[t, column], strict=True):
            value = fused(float(x), float(y), value, rounding[1:] or "rn")
        assert got[t, row, column] == value


PAIRS = [[*range(4 * p, 4 * p + 4), *range(16 + 4 * p, 20 + 4 * p)] for p in range(4)]  # lanes of each quad pair


def quad_fragments(tiles: Array, by_row: bool) -> Array:
    """(4 pairs, 8, 4) to (1, 32 lanes, 2 registers): thread t holds row t, or column t % 4 of rows 4 (t / 4)..."""
    halves = np.zeros((32, 4), np.float16)
    for lanes, tile in zip(PAIRS, tiles, strict=True):
        for t, lane in enumerate(lanes):
            halves[lane] = tile[t] if by_row else tile[4 * (t // 4) : 4 * (t // 4) + 4, t % 4]
    return halves.view(np.uint32)[None]


def quad_places(kind: str) -> list[tuple[int, int, int, int, int]]:
    """(pair, lane, value, row, column) of C and D."""
    places = []
    for pair, lanes in enumerate(PAIRS):
        for (t, lane), v in product(enumerate(lanes), range(8)):
            if kind == "f16":
                row, column = t, v
            else:
                row, column = t % 2 + 2 * (v // 2 % 2) + 4 * (t // 4), 2 * (t // 2 % 2) + v % 2 + 4 * (v // 4)
            places.append((pair, lane, v, row, column))
    return places


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize(("d_kind", "c_kind"), [("f32", "f32"), ("f16", "f16"), ("f32", "f16")])
@pytest.mark.parametrize(("a_layout", "b_layout"), list(product(["row", "col"], repeat=2)))
def test_m8n8k4_multiplies_four_quad_pairs(a_layout: str, b_layout: str, d_kind: str, c_kind: str, arch: str) -> None:
    rng = np.random.default_rng(0)
    a, b = draw(rng, (4, 8, 4), "f16", 3), draw(rng, (4, 8, 4), "f16", 3)
    c = draw(rng, (4, 8, 8), c_kind, 3)
    values = np.zeros((1, 32, 8), TYPES[c_kind].dtype)
    for pair, lane, v, row, column in quad_places(c_kind):
        values[0, lane, v] = c[pair, row, column]
    c_words = words(values)
    text = kernel("OP", (2, 2, c_words.shape[2]), target=arch).replace("%c<9>", "%c<9>; .reg .b32 %d<9>")
    registers = braces("d", 8 if d_kind == "f32" else 4)
    name = f"mma.sync.aligned.m8n8k4.{a_layout}.{b_layout}.{d_kind}.f16.f16.{c_kind}"
    text = text.replace("OP {" + braces("c", c_words.shape[2])[1:], f"{name} {registers}")
    text = text[: text.index("mad.wide.u32 %ps")] + text[text.index(name) : text.index("st.global")].replace(
        "[c];", "[c]; "
    )
    size = 8 if d_kind == "f32" else 4
    text += f"ld.param.u64 %ps, [s]; mad.wide.u32 %ps, %t, {4 * size}, %ps;"
    text += "".join(f"st.global.b32 [%ps+{4 * n}], %d{n};" for n in range(size)) + "ret; }"
    d = np.zeros((1, 32, max(size, 2)), np.uint32)
    module = emulator.load(text)
    module.launch(
        "k",
        (1,),
        (32,),
        [quad_fragments(a, a_layout == "row"), quad_fragments(b, b_layout == "col"), c_words, d],
        arch=arch,
    )
    got = d.view(TYPES[d_kind].dtype)
    for pair, lane, v, row, column in quad_places(d_kind):
        x, y, start = a[pair, row], b[pair, column], float(c[pair, row, column])
        expected = quad_model(x, y, start, d_kind, arch)
        assert got[0, lane, v] == TYPES[d_kind].dtype(expected), (pair, lane, v)


def quad_model(x: Array, y: Array, c: float, kind: str, arch: str) -> float:
    """sm_75 has a unit of four products; later, ptxas makes f32 multiplications and additions of it."""
    if arch == "sm_75":
        return model(product_terms(x, y, ("f16", "f16")), c, Unit(24, 4), kind)
    f, p = np.float32, [float(u) * float(v) for u, v in zip(x, y, strict=True)]  # exact in f64, as are sums of two
    if kind == "f16":
        return float(f(f(f(c) + f(f(p[0]) + p[1])) + f(f(p[2]) + p[3])))
    return float(f(f(c) + f(f(f(f(p[0]) + p[1]) + p[2]) + p[3])))


# wmma


WMMA = [
    *((shape, kind, sums) for shape in ("m16n16k16", "m32n8k16", "m8n32k16") for kind, sums in (
        ("f16", ("f32", "f32")), ("f16", ("f16", "f16")), ("f16", ("f16", "f32")), ("f16", ("f32", "f16")),
        ("bf16", ("f32", "f32")), ("s8", ("s32", "s32")), ("u8", ("s32", "s32")))),
    ("m16n16k8", "tf32", ("f32", "f32")),
    ("m8n8k32", "s4", ("s32", "s32")),
    ("m8n8k32", "u4", ("s32", "s32")),
    ("m8n8k128", "b1", ("s32", "s32")),
    ("m8n8k4", "f64", ("f64", "f64")),
]  # fmt: skip


def wmma_kernel(
    shape: str, kind: str, sums: tuple[str, str], layouts: tuple[str, str, str, str], strides: tuple[int, ...]
) -> str:
    (d_kind, c_kind), (a_layout, b_layout, c_layout, d_layout) = sums, layouts
    m, n, k = (int(x) for x in shape[1:].replace("n", " ").replace("k", " ").split())
    bits = TYPES[kind].bits
    wide = kind == "f64"
    counts = {
        x: 8 if kind == "f16" else max(size * k * bits // (2048 if wide else 1024), 1)
        for x, size in (("a", m), ("b", n))
    }
    for x, t in (("c", c_kind), ("d", d_kind)):
        counts[x] = m * n // 32 // (2 if t == "f16" else 1)
    word = "b64" if wide else "b32"
    registers = "".join(f".reg .{word} %{x}<{count}>; " for x, count in counts.items())
    a, b, c, d = (braces(x, counts[x]) for x in "abcd")
    types = f"{d_kind}.{c_kind}" if kind == "f16" else f"{d_kind}.{kind}.{kind}.{c_kind}"
    bitwise = ".xor.popc" if kind == "b1" else ""
    return f"""
    .version 8.0
    .target sm_90
    .address_size 64
    .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d) {{
        .reg .b64 %p<4>; .reg .b32 %s; {registers}
        ld.param.u64 %p0, [a]; ld.param.u64 %p1, [b]; ld.param.u64 %p2, [c]; ld.param.u64 %p3, [d];
        mov.u32 %s, {strides[0]};
        wmma.load.a.sync.aligned.{a_layout}.{shape}.global.{kind} {a}, [%p0], %s;
        wmma.load.b.sync.aligned.{b_layout}.{shape}.{kind} {b}, [%p1], {strides[1]};
        wmma.load.c.sync.aligned.{c_layout}.{shape}.global.{c_kind} {c}, [%p2], {strides[2]};
        wmma.mma{bitwise}.sync.aligned.{a_layout}.{b_layout}.{shape}.{types} {d}, {a}, {b}, {c};
        wmma.store.d.sync.aligned.{d_layout}.{shape}.global.{d_kind} [%p3], {d}, {strides[3]};
        ret;
    }}"""


def stored(matrix: Array, layout: str, stride: int, bits: int) -> Array:
    """A matrix of codes in memory, rows (columns) `stride` elements apart, as bytes."""
    lines = matrix if layout == "row" else matrix.T
    padded = np.zeros((len(lines), stride), np.uint64)
    padded[:, : lines.shape[1]] = lines
    if bits >= 8:
        return padded.astype(f"u{bits // 8}").view(np.uint8).reshape(-1)
    parts = padded.reshape(-1, 8 // bits) << np.arange(0, 8, bits, dtype=np.uint64)
    return np.bitwise_or.reduce(parts, axis=1).astype(np.uint8)


def draw_small(rng: np.random.Generator, size: tuple[int, int], kind: str) -> tuple[Array, Array]:
    """Codes of small integers, and their values: every sum is exact."""
    if kind in ("s8", "u8", "s4", "u4", "b1"):
        return draw_codes(rng, size, kind)
    values = rng.integers(-8, 9, size)
    dtype = np.int32 if kind == "s32" else np.float64 if kind == "f64" else TYPES[kind].dtype
    return values.astype(dtype).view(f"u{np.dtype(dtype).itemsize}"), values


@pytest.mark.parametrize("flips", range(4))
@pytest.mark.parametrize(("shape", "kind", "sums"), WMMA)
def test_wmma_multiplies_what_it_loads_in_every_layout(
    shape: str, kind: str, sums: tuple[str, str], flips: int
) -> None:
    rng = np.random.default_rng(0)
    m, n, k = (int(x) for x in shape[1:].replace("n", " ").replace("k", " ").split())
    layouts = (
        "row" if flips % 2 == 0 else "col",
        "col" if flips < 2 else "row",
        "row" if flips < 2 else "col",
        "col" if flips % 2 else "row",
    )
    if TYPES[kind].bits < 8:
        layouts = ("row", "col", *layouts[2:])
    (a, av), (b, bv), (c, cv) = (
        draw_small(rng, (m, k), kind),
        draw_small(rng, (k, n), kind),
        draw_small(rng, (m, n), sums[1]),
    )
    sizes = ((m, k), (k, n), (m, n), (m, n))
    strides = tuple(
        size[layout == "row"] + (128 if kind == "b1" else 32) for size, layout in zip(sizes, layouts, strict=True)
    )
    buffers = [
        stored(x, layout, stride, bits)
        for x, layout, stride, bits in zip(
            (a, b, c),
            layouts,
            strides,
            (TYPES[kind].bits, TYPES[kind].bits, {"f16": 16, "f64": 64}.get(sums[1], 32)),
            strict=False,
        )
    ]
    d_type = {"f16": np.float16, "f32": np.float32, "s32": np.int32, "f64": np.float64}[sums[0]]
    d = np.full((m if layouts[3] == "row" else n, strides[3]), 77, d_type)
    module = emulator.load(wmma_kernel(shape, kind, sums, layouts, strides))
    module.launch("k", (1,), (32,), [*buffers, d])
    product_ = (av[:, :, None] ^ bv[None]).sum(1) if kind == "b1" else av @ bv
    width = n if layouts[3] == "row" else m
    np.testing.assert_array_equal(d[:, :width] if layouts[3] == "row" else d[:, :width].T, product_ + cv)
    assert (d[:, width:] == 77).all()


# Edges, undefined operands, the other numerics, errors


SPECIAL = {"f16", "bf16", "tf32", "e5m2", "e4m3", "f32"}  # types with NaN


def draw_edges(rng: np.random.Generator, shape: tuple[int, ...], kind: str, specials: bool) -> Array:
    """Zeros of both signs, subnormals, the least and largest numbers, few-bit numbers, and, if asked, inf and NaN."""
    dtype = TYPES[kind].dtype
    size = np.dtype(dtype).itemsize
    sign = np.uint32(1 << (8 * size - 1))
    info = ml_dtypes.finfo(dtype)
    numbers = [0, info.smallest_subnormal, info.smallest_normal, info.max, 1, 1.5, 2, 0.25, info.tiny * 2, info.max / 4]
    if specials:
        numbers += [np.nan] + ([np.inf] if kind != "e4m3" else [])
    choice = np.array([float(x) for x in numbers]).astype(dtype)[rng.integers(0, len(numbers), shape)]
    codes = choice.view(f"u{size}").astype(np.uint32)
    wild = rng.integers(0, 1 << 32, shape).astype(np.uint32) >> np.uint32(32 - 8 * size) & ~sign
    if kind == "tf32":
        codes, wild = codes & np.uint32(0xFFFFE000), wild & np.uint32(0xFFFFE000)
    codes = np.where(rng.random(shape) < 0.2, wild, codes) & ~sign | np.where(rng.random(shape) < 0.5, sign, 0).astype(
        np.uint32
    )
    values = codes.astype(f"u{size}").view(dtype)
    return values if specials else np.where(np.isfinite(values.astype(np.float64)), values, np.ones(1, dtype))


def edge_model(x: Array, y: Array, c: float, kind: str, unit: Unit, accumulator: str) -> float:
    """The exact model, and in a sum with infinities or NaN what IEEE 754 says of these."""
    u, v, size = x.astype(np.float64), y.astype(np.float64), len(x)
    order = [n for n in range(size) if n % 4 < 2 or not unit.detached]
    order += [n for n in range(size) if n not in order]
    value = 0.0 if unit.detached else c
    for start in range(0, size, unit.group):
        members = order[start : start + unit.group]
        special = [u[n] * v[n] for n in members if not (math.isfinite(u[n]) and math.isfinite(v[n]))]
        if special or not math.isfinite(value):
            value = float(np.sum([*special, 0.0 if math.isfinite(value) else value]))
        else:
            terms = product_terms(x[members], y[members], (kind, kind), as_f16=unit.detached)
            value = fuse(terms, value, unit, accumulator)
    dtype = TYPES[accumulator].dtype
    return float(dtype(c) + dtype(value)) if unit.detached else value


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("spread", [0, 2, 6])
@pytest.mark.parametrize("swapped", [False, True])
def test_codes_of_few_bits_follow_the_exact_model(arch: str, kind: str, bits: int, spread: int, swapped: bool) -> None:
    """Sums of which nothing is cut, or some products, or C; C cancels, dominates or counts little."""
    rng, dtype = np.random.default_rng(bits + 16 * spread), TYPES[kind].dtype
    tiles, least = 5, 2.0**-24 if kind == "f16" else 1.0
    codes = rng.integers(0, 1 << bits, (tiles, 16, 16)) * least * 2.0 ** rng.integers(0, 9 - bits, (tiles, 16, 1))
    a, b = codes.astype(dtype), draw(rng, (tiles, 8, 16), kind, spread)
    if swapped:
        a, b = draw(rng, (tiles, 16, 16), kind, spread), codes[:, :8].astype(dtype)
    exact = np.einsum("tmk,tnk->tmn", a.astype(np.float64), b.astype(np.float64))
    c = np.stack([0 * exact[0], -exact[1], exact[2] * 2.0**9, exact[3] * 2.0**-9, 1 - exact[4]]).astype(np.float32)
    name = f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"
    d, _ = run(name, *fragments(a, b, c, (kind, kind)), arch=arch)
    unit = unit_of(arch, kind, 16)
    check(
        matrix_of(d.view(np.float32)),
        200,
        lambda t, m, n: model(product_terms(a[t, m], b[t, n], (kind, kind)), float(c[t, m, n]), unit, "f32"),
    )


def chain_kernel(length: int, one_b: bool) -> str:
    """Block t adds `length` products of m16n8k16 of f16 to tile t of C, by the same B or each by its own."""
    name, a, b, c = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", range(4), range(2), braces("c", 4)
    text = kernel("PRODUCT", (4 * length, 2 * length, 4), target="sm_80").replace(".version 9.1", ".version 8.0")
    text = text.replace("%a<9>", f"%a<{4 * length}>").replace("%b<5>", f"%b<{2 * length}>")
    products = [
        f"{name} {c}, {{{', '.join(f'%a{4 * j + n}' for n in a)}}}, "
        f"{{{', '.join(f'%b{n if one_b else 2 * j + n}' for n in b)}}}, {c};"
        for j in range(length)
    ]
    return re.sub("PRODUCT.*;", "\n".join(products), text)


def check_chain(a: Array, b: Array, c: Array, one_b: bool = False, **options: Any) -> None:
    """Products of a (tile, j, 16, 16) and b (tile, j, 8, 16) added to c one after another, against the exact model."""
    tiles, length = a.shape[:2]
    parts = [fragments(a[:, j], b[:, j], c, ("f16", "f16")) for j in range(length)]
    d, scales = parts[0][2].copy(), np.zeros((tiles, 32, 2), np.uint32)
    arguments = [*(np.concatenate([part[n] for part in parts], axis=2) for n in range(2)), d, scales]
    emulator.load(chain_kernel(length, one_b)).launch("k", (tiles,), (32,), arguments, **options)
    unit = unit_of("sm_80", "f16", 16)

    def expected(t: int, m: int, n: int) -> float:
        value = float(c[t, m, n])
        for j in range(length):
            value = edge_model(a[t, j, m], b[t, j, n], value, "f16", unit, "f32")
        return value

    check(matrix_of(d.view(np.float32)), 150, expected)


@pytest.mark.parametrize(("checks", "schedule"), [("none", "random"), ("none", "round_robin"), ("all", "random")])
@pytest.mark.parametrize("spread", [0, 3, 7])
def test_chains_of_codes_follow_the_exact_model(checks: str, schedule: str, spread: int) -> None:
    """Also where something in the middle is no code, negative, infinite or next to nothing."""
    rng, tiles, length = np.random.default_rng(spread), 8, 6
    codes = rng.integers(0, 16, (tiles, length, 16, 16)) * 2.0 ** rng.integers(-24, -16, (tiles, 1, 16, 1))
    a, b = codes.astype(np.float16), draw(rng, (tiles, length, 8, 16), "f16", spread)
    c = (draw(rng, (tiles, 16, 8), "f32", spread) * 2.0**-12).astype(np.float32)
    c[0], c[1] = 0, c[1] * 2.0**30
    c[2, 9, 1], c[6], b[6] = np.inf, c[6] * 2.0**-100, 0
    a[3, 2, 7, 5], a[4, 3, 12, 9], b[5, 4, 6, 11], b[7, 1] = 2.0**-13, -(2.0**-20), np.inf, 0
    check_chain(a, b, c, checks=checks, schedule=schedule)


@pytest.mark.parametrize("extreme", [2.0**39, 2.0**41, 2.0**127, 2.0**-59, 2.0**-61, np.inf, np.nan])
def test_codes_are_added_to_extreme_sums(extreme: float) -> None:
    """Rows of zeros, where nothing is cut, are among them."""
    rng, tiles, length = np.random.default_rng(0), 2, 3
    a = (rng.integers(0, 16, (tiles, length, 16, 16)) * 2.0**-21 * (np.arange(16) % 4 > 0)[:, None]).astype(np.float16)
    c = np.full((tiles, 16, 8), extreme, np.float32) * rng.choice([-1, 1], (tiles, 16, 8)).astype(np.float32)
    c[1, ::3] = 0
    check_chain(a, draw(rng, (tiles, length, 8, 16), "f16", 0), c, checks="none")


@pytest.mark.parametrize("one_b", [True, False])
@pytest.mark.parametrize("spread", [0, 4, 8])
def test_chains_that_add_up_rows_follow_the_exact_model(spread: int, one_b: bool) -> None:
    """Also where not all are by ones, C differs by column, or something is infinite, next to nothing or huge."""
    rng, tiles, length = np.random.default_rng(spread), 7, 4
    a, b = draw(rng, (tiles, length, 16, 16), "f16", spread), np.ones((tiles, length, 8, 16), np.float16)
    c = np.repeat(draw(rng, (tiles, 16, 1), "f32", spread), 8, axis=2)
    c[0], c[1, 4], c[2, 5, 3], c[3, 7], c[4, 2] = 0, 2.0**-110, 1, np.inf, 2.0**110
    b[5, slice(None) if one_b else 2, 4, 9], a[6, 1, 3, 3], a[6, 2, 8] = 2, np.inf, 0
    check_chain(a, b, c, one_b, checks="none")


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("spread", [0, 4, 8])
@pytest.mark.parametrize("k", [8, 16])
def test_columns_that_are_all_alike_follow_the_exact_model(kind: str, spread: int, k: int) -> None:
    """Ones add up rows; what C is differs by row alone, by column too, or in one place."""
    rng, tiles = np.random.default_rng(spread), 6
    a, column = draw(rng, (tiles, 16, k), kind, spread), draw(rng, (tiles, 1, k), kind, spread)
    column[::2] = 1
    b = np.repeat(column, 8, axis=1)
    c = draw(rng, (tiles, 16, 8), "f32", spread)
    c[:5] = c[:5, :, :1]
    c[0], c[4, 11, 5] = 0, 3
    name = f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32"
    d, _ = run(name, *fragments(a, b, c, (kind, kind)), arch="sm_80")
    unit = unit_of("sm_80", kind, k)
    check(
        matrix_of(d.view(np.float32)),
        400,
        lambda t, m, n: model(product_terms(a[t, m], b[t, n], (kind, kind)), float(c[t, m, n]), unit, "f32"),
    )


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("k", [8, 16])
def test_rows_and_columns_that_are_mostly_zeros_follow_the_exact_model(kind: str, share: float, k: int) -> None:
    rng, tiles = np.random.default_rng(k), 8
    a, b, c = (draw(rng, shape, kind, 4) for shape in ((tiles, 16, k), (tiles, 8, k), (tiles, 16, 8)))
    a, b = np.where(rng.random(a.shape) < share, a, a[:1] * 0), np.where(rng.random(b.shape) < 2 * share, b, b[:1] * 0)
    c = c.astype(np.float32) / 3
    name = f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32"
    d, _ = run(name, *fragments(a, b, c, (kind, kind)), arch="sm_80")
    unit = unit_of("sm_80", kind, k)
    check(
        matrix_of(d.view(np.float32)),
        400,
        lambda t, m, n: model(product_terms(a[t, m], b[t, n], (kind, kind)), float(c[t, m, n]), unit, "f32"),
    )


@pytest.mark.parametrize("specials", [False, True])
@pytest.mark.parametrize("accumulator", ["f32", "f16"])
@pytest.mark.parametrize(("kind", "k"), [("f16", 16), ("bf16", 16), ("tf32", 8), ("e4m3", 32), ("e5m2", 32)])
@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90", "sm_120"])
def test_edge_operands_follow_the_exact_model(arch: str, kind: str, k: int, accumulator: str, specials: bool) -> None:
    if (kind in ("bf16", "tf32") and accumulator == "f16") or (k == 32 and arch == "sm_80"):
        arch, accumulator = "sm_90", "f32"
    rng = np.random.default_rng(k + specials)
    a, b = draw_edges(rng, (3, 16, k), kind, specials), draw_edges(rng, (3, 8, k), kind, specials)
    c = draw_edges(rng, (3, 16, 8), accumulator, specials)
    for x in (
        a,
        b,
    ):  # few addends in some tiles, so that extremes meet small ones alone; few infinities, so that not all is NaN
        x[1][rng.random(x[1].shape) < 0.8] = 0
        x[2][~np.isfinite(x[2].astype(np.float64)) & (rng.random(x[2].shape) < 0.9)] = 0
    name = f"mma.sync.aligned.m16n8k{k}.row.col.{accumulator}.{kind}.{kind}.{accumulator}"
    d, _ = run(name, *fragments(a, b, c, (kind, kind)), arch=arch)
    got = matrix_of(d.view(TYPES[accumulator].dtype))
    unit = unit_of(arch, kind, k)
    with np.errstate(all="ignore"):
        check(got, 150, lambda t, m, n: edge_model(a[t, m], b[t, n], float(c[t, m, n]), kind, unit, accumulator))
    nan = np.isnan(got)
    codes = got.view(f"u{got.dtype.itemsize}")
    assert (codes[nan] == (0x7FFF if accumulator == "f16" else 0x7FFFFFFF)).all()
    assert nan.any() == specials


def test_what_a_register_holds_beside_a_narrow_code_is_ignored() -> None:
    rng = np.random.default_rng(0)
    for kind, mask in (("e2m1", 0b00111100), ("e3m2", 0b00111111), ("e2m3", 0b00111111)):
        a, b, c = draw(rng, (1, 16, 32), kind, 0), draw(rng, (1, 8, 32), kind, 0), draw(rng, (1, 16, 8), "f32", 2)
        name = f"mma.sync.aligned.kind::f8f6f4.m16n8k32.row.col.f32.{kind}.{kind}.f32"
        x, y, z = fragments(a, b, c, (kind, kind))
        noise = [rng.integers(0, 256, (*v.shape, 4)).astype(np.uint8) & np.uint8(~mask & 255) for v in (x, y)]
        noisy = [v | n.view(np.uint32)[..., 0] for v, n in zip((x, y), noise, strict=True)]
        np.testing.assert_array_equal(run(name, x, y, z)[0], run(name, *noisy, z)[0])


BOUNDED = [
    ("f16", 16, "f32"),
    ("f16", 16, "f16"),
    ("bf16", 16, "f32"),
    ("tf32", 8, "f32"),
    ("e4m3", 32, "f32"),
    ("e4m3", 32, "f16"),
]


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90", "sm_120"])
@pytest.mark.parametrize(("kind", "k", "accumulator"), BOUNDED)
def test_the_hardware_stays_within_the_bound_for_every_order_of_k(
    kind: str, k: int, accumulator: str, arch: str
) -> None:
    """Output by output: one instruction per tile, one tile's bound at a time."""
    if k == 32 and arch == "sm_80":
        arch = "sm_89"
    rng = np.random.default_rng(0)
    name = f"mma.sync.aligned.m16n8k{k}.row.col.{accumulator}.{kind}.{kind}.{accumulator}"
    tight = 0.0
    for spread in (0, 2, 6):
        a, b, c = (
            draw(rng, (1, 16, k), kind, spread),
            draw(rng, (1, 8, k), kind, spread),
            draw(rng, (1, 16, 8), accumulator, spread),
        )
        c[0, :4] = 0
        if kind == "e4m3":  # whose largest products are beyond f16
            a, b = (np.where(np.abs(x.astype(np.float32)) > 16, np.ones(1, x.dtype), x) for x in (a, b))
        operands = fragments(a, b, c, (kind, kind))
        d, report = run(name, *operands, arch=arch, numerics="bound")
        got = matrix_of(d.view(TYPES[accumulator].dtype))[0].astype(np.float64)
        exact = a[0].astype(np.float64) @ b[0].astype(np.float64).T + c[0].astype(np.float64)  # nearly
        near = exact.astype(TYPES[accumulator].dtype).astype(np.float64)
        np.testing.assert_allclose(got, near, rtol=2e-3 if accumulator == "f16" else 1e-6, atol=1e-3)
        bound, distance, share = mma_bound(report)
        assert 0 <= distance <= bound and 0 <= share <= 1
        tight = max(tight, share)
        for seed in range(3):
            moved, _ = run(name, *operands, arch=arch, numerics="permute", seed=seed)
            assert (np.abs(matrix_of(moved.view(TYPES[accumulator].dtype))[0] - got) <= bound).all()
    if accumulator == "f32":  # a bound that no hardware comes near would say nothing
        assert tight > 0.02


def mma_bound(report: Any) -> tuple[float, float, float]:
    found = report.counters.rounding
    return found.bound, found.distance, found.share


def test_bound_numerics_round_the_float64_sum_once() -> None:
    rng = np.random.default_rng(0)
    a, b, c = draw(rng, (4, 16, 16), "f16", 3), draw(rng, (4, 8, 16), "f16", 3), draw(rng, (4, 16, 8), "f32", 3)
    d, _ = run(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", *fragments(a, b, c, ("f16", "f16")), numerics="bound"
    )
    for t, m, n in np.random.default_rng(1).integers(0, (4, 16, 8), (100, 3)):
        exact = sum(
            (Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a[t, m], b[t, n], strict=True)),
            Fraction(float(c[t, m, n])),
        )
        assert matrix_of(d.view(np.float32))[t, m, n] == np.float32(exact.numerator / exact.denominator)


def test_permuted_sums_differ_from_seed_to_seed_and_only_where_sums_are_split() -> None:
    rng = np.random.default_rng(0)
    a, b, c = draw(rng, (1, 16, 16), "f16", 6), draw(rng, (1, 8, 16), "f16", 6), draw(rng, (1, 16, 8), "f32", 6)
    name, operands = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", fragments(a, b, c, ("f16", "f16"))
    results = {
        arch: {run(name, *operands, arch=arch, numerics="permute", seed=s)[0].tobytes() for s in range(6)}
        for arch in ("sm_80", "sm_90")
    }
    assert len(results["sm_80"]) > 3 and len(results["sm_90"]) == 1


@pytest.mark.parametrize(("operand", "lane", "spread"), [("a", 9, "row"), ("b", 9, "column"), ("c", 9, "element")])
def test_an_output_is_undefined_where_its_row_column_or_addend_is(operand: str, lane: int, spread: str) -> None:
    name = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
    text = kernel(name, (4, 2, 4)).replace(
        ".reg .b32 %s<2>;", ".reg .b32 %s<2>; .reg .pred %q; .reg .b32 %u; .reg .b32 %x;"
    )
    text = text.replace(
        f"{name} ",
        f"setp.eq.u32 %q, %l, {lane}; mov.b32 %x, %{operand}1; @%q mov.b32 %x, %u; mov.b32 %{operand}1, %x; {name} ",
    )
    arrays = [np.zeros((1, 32, n), np.uint32) for n in (4, 2, 4, 2)]
    report = emulator.load(text).launch("k", (1,), (32,), arrays, on_finding="collect")
    group, member = lane // 4, lane % 4
    assert {f.kind for f in report.findings} == {"undefined_store"}
    # register 1 of A is of row g + 8 (values 2, 3), of B column g (values g % 2 and + 2 where q is g / 2), of C value 1
    expected = {
        "a": [(2, 4 * group), (3, 4 * group)],
        "b": [(group % 2, group // 2), (group % 2 + 2, group // 2)],
        "c": [(1, lane)],
    }
    assert len(report.findings) == len(expected[operand])
    assert [f.thread[0] for f in report.findings] == [thread for _, thread in expected[operand]], (spread, member)


MALFORMED = [
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%c0,%c1,%c2}, A4, B2, C4;",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 C4, {%a0,%a1}, B2, C4;",
    "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 C4, {%a0,%a1}, %b0, C4;",
    "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f16 C4, {%a0,%a1}, {%b0}, {%c0,%c1};",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32 C4, A4, B2, C4;",
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s4.s32 C4, A4, B2, C4;",
    "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.popc C4, A4, B2, C4;",
    "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.f32.e2m1.e2m1.f32.ue4m3"
    " REGISTERS, %s0, {0, 0}, %s1, {0, 0};",
    "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.f32.e2m1.e2m1.f32.ue8m0"
    " REGISTERS, %s0, {1, 0}, %s1, {0, 0};",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 C4, {%pa,%a1,%a2,%a3}, B2, C4;",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%a0,%a1}, [%l];",
    "ldmatrix.sync.aligned.m16n16.x4.trans.shared.b8 A4, [%l];",
    "stmatrix.sync.aligned.m16n8.x1.shared.b8 [%l], {%a0};",
    "wmma.load.a.sync.aligned.row.m16n16k16.global.f16 A4, [%pa], %l;",
    "wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.u8.s32 C4, {%a0,%a1}, B2, C4;",
]


@pytest.mark.parametrize("line", MALFORMED)
def test_malformed_matrix_instructions_are_refused_when_loaded(line: str) -> None:
    for word, name, count in (("REGISTERS", "", 0), ("A4", "a", 4), ("B2", "b", 2), ("C4", "c", 4)):
        line = line.replace(word, braces(name, count) if count else "C4, A4, B2, C4")
    text = kernel("OP", (4, 2, 4))
    start, end = text.index("OP "), text.index("st.global")
    emulator.load(text[:start] + text[end:])
    with pytest.raises(emulator.PtxError):
        emulator.load(text[:start] + line + text[end:])


@np.errstate(all="ignore")
@pytest.mark.parametrize("accumulator", ["f32", "f16"])
@pytest.mark.parametrize(
    ("kind", "k"), [("f16", 16), ("bf16", 16), ("tf32", 8), ("e4m3", 32), ("e5m2", 32), ("e3m2", 32)]
)
def test_one_sum_does_not_depend_on_the_order_of_k(kind: str, k: int, accumulator: str) -> None:
    """Which also compares the core's two ways: permuted sums never take the vectors'."""
    if kind in ("bf16", "tf32"):
        accumulator = "f32"
    rng = np.random.default_rng(0)
    prefix = "mma.sync.aligned.kind::f8f6f4" if kind == "e3m2" else "mma.sync.aligned"
    name = f"{prefix}.m16n8k{k}.row.col.{accumulator}.{kind}.{kind}.{accumulator}"
    for spread in (0, 3, 10, 60, 120):
        sizes = ((24, 16, k), (24, 8, k))
        a, b = (draw(rng, size, kind, min(spread, 12) if kind == "f16" else spread) for size in sizes)
        c = draw(rng, (24, 16, 8), accumulator, min(spread, 12))
        if kind != "e3m2":
            a[:8], b[:8], c[:8] = (
                draw_edges(rng, x[:8].shape, t, False) for x, t in ((a, kind), (b, kind), (c, accumulator))
            )
        a[8:12] = np.where(rng.random(a[8:12].shape) < 0.9, np.zeros(1, a.dtype), a[8:12])
        operands = fragments(a, b, c, (kind, kind))
        np.testing.assert_array_equal(run(name, *operands, numerics="permute")[0], run(name, *operands)[0])


# Matrices between shared memory and fragments


def moving_kernel(line: str, registers: int, load: bool) -> str:
    """512 bytes of shared memory, 16 a lane, from argument a; registers from b (loads write them there); back to a."""
    rows = "".join(f"ld.global.b32 %x{n}, [%p0+{4 * n}]; st.shared.b32 [%r1+{4 * n}], %x{n};" for n in range(4))
    back = "".join(f"ld.shared.b32 %x{n}, [%r1+{4 * n}]; st.global.b32 [%p0+{4 * n}], %x{n};" for n in range(4))
    take = "".join(f"ld.global.b32 %x{n}, [%p1+{4 * n}];" for n in range(registers))
    give = "".join(f"st.global.b32 [%p1+{4 * n}], %x{n};" for n in range(registers))
    return f"""
    .version 8.8
    .target sm_120a
    .address_size 64
    .visible .entry k(.param .u64 a, .param .u64 b) {{
        .reg .b32 %r<3>; .reg .b32 %x<4>; .reg .b64 %p<2>; .shared .align 16 .b8 memory[512];
        mov.u32 %r0, %laneid; mov.u32 %r1, memory; mad.lo.u32 %r1, %r0, 16, %r1;
        ld.param.u64 %p0, [a]; mad.wide.u32 %p0, %r0, 16, %p0;
        ld.param.u64 %p1, [b]; mad.wide.u32 %p1, %r0, {4 * registers}, %p1;
        {rows} bar.warp.sync 0xffffffff;
        {take if not load else ""} {line} bar.warp.sync 0xffffffff; {give if load else back} ret;
    }}"""


PACKED = ("b4x16_p64", "b6x16_p32")
LOADS = [
    *((f"m8n8.x{count}.shared.b16", count, 8, 16) for count in (1, 2, 4)),
    *((f"m8n8.x{count}.trans.shared.b16", count, 8, 16) for count in (1, 2, 4)),
    *((f"m8n16.x{count}.shared.b8x16.{kind}", count, 8, int(kind[1])) for count in (1, 2, 4) for kind in PACKED),
    *((f"m16n16.x{count}.trans.shared.b8", count, 16, 8) for count in (1, 2)),
    *((f"m16n16.x{count}.trans.shared.b8x16.{kind}", count, 16, int(kind[1])) for count in (1, 2) for kind in PACKED),
]  # fmt: skip


def row_elements(row: Array, bits: int) -> Array:
    """Elements of 16 bytes: packed from the lowest bit on, 16 of them (8 of 16 bits)."""
    whole = int.from_bytes(row.tobytes(), "little")
    return np.array([whole >> n * bits & (1 << bits) - 1 for n in range(8 if bits == 16 else 16)])


@pytest.mark.parametrize(("form", "count", "height", "bits"), LOADS)
def test_ldmatrix_spreads_rows_over_the_lanes(form: str, count: int, height: int, bits: int) -> None:
    """A lane's register holds four bytes of row lane / 4; transposed, the same of the matrix's transpose."""
    memory = np.random.default_rng(0).integers(0, 256, (32, 16)).astype(np.uint8)
    registers = count * height // 8
    result = np.zeros((32, registers), np.uint32)
    line = f"ldmatrix.sync.aligned.{form} {braces('x', registers)}, [%r1];"
    emulator.load(moving_kernel(line, registers, True)).launch("k", (1,), (32,), [memory.copy(), result])
    per = 2 if bits == 16 else 4
    for n in range(count):
        matrix = np.stack([row_elements(row, bits) for row in memory[height * n : height * (n + 1)]])
        lines = matrix.T if "trans" in form else matrix  # of 8, or 16 in two registers
        for lane, r in np.ndindex(32, height // 8):
            elements = lines[lane // 4 + 8 * r, per * (lane % 4) : per * (lane % 4 + 1)]
            expected = sum(int(x) << 32 // per * position for position, x in enumerate(elements))
            assert result[lane, height // 8 * n + r] == expected, (lane, n, r)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("form", ["m8n8", "m8n8.trans", "m16n8.trans"])
def test_stmatrix_stores_what_lanes_hold_of_c_like_fragments(form: str, count: int) -> None:
    rng = np.random.default_rng(0)
    memory, values = (
        rng.integers(0, 256, (32, 16)).astype(np.uint8),
        rng.integers(0, 1 << 32, (32, count)).astype(np.uint32),
    )
    shape, kind = (form.split(".")[0], "b8" if form == "m16n8.trans" else "b16")
    trans = ".trans" if "trans" in form else ""
    line = f"stmatrix.sync.aligned.{shape}.x{count}{trans}.shared.{kind} [%r1], {braces('x', count)};"
    expected, after = memory.copy(), memory.copy()
    emulator.load(moving_kernel(line, count, False)).launch("k", (1,), (32,), [after, values])
    for n, lane in np.ndindex(count, 32):
        g, q, word = lane // 4, lane % 4, values[lane, n]
        if kind == "b8":  # value i of the 16 x 8 matrix: row g + 8 (i / 2), column 2q + i % 2, stored by columns
            for i in range(4):
                expected[8 * n + 2 * q + i % 2, g + 8 * (i // 2)] = word >> np.uint32(8 * i) & np.uint32(255)
            continue
        rows = expected[8 * n : 8 * n + 8].view(np.uint16)
        for i in range(2):
            place = (2 * q + i, g) if trans else (g, 2 * q + i)
            rows[place] = word >> np.uint32(16 * i) & np.uint32(0xFFFF)
    np.testing.assert_array_equal(after, expected)


def test_movmatrix_transposes_what_ldmatrix_loads() -> None:
    memory = np.random.default_rng(0).integers(0, 256, (32, 16)).astype(np.uint8)
    results = []
    for line in (
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%x0}, [%r1]; movmatrix.sync.aligned.m8n8.trans.b16 %x0, %x0;",
        "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%x0}, [%r1];",
    ):
        results.append(np.zeros((32, 1), np.uint32))
        emulator.load(moving_kernel(line, 1, True)).launch("k", (1,), (32,), [memory.copy(), results[-1]])
    np.testing.assert_array_equal(*results)
    assert results[0].any()


ATOMS = [
    *[("80", "16x8x8_F16F16F16F16", 16), ("80", "16x8x16_F16F16F16F16", 16)],
    *[("80", "16x8x4_F32TF32TF32F32", 32), ("80", "16x8x8_F32TF32TF32F32", 32)],
    *[("80", "8x8x16_S32S8S8S32", 8), ("80", "16x8x16_S32S8S8S32", 8), ("80", "16x8x32_S32S8S8S32", 8)],
    # not 16x8x32_S32S4S4S32, whose B maps several elements to one place
    *[("80", "8x8x32_S32S4S4S32", 4), ("80", "16x8x64_S32S4S4S32", 4)],
    *[("80", "8x8x128_S32U1U1S32", 1), ("80", "16x8x256_S32U1U1S32", 1), ("80", "8x8x4_F64F64F64F64", 64)],
    *[("90", "16x8x4_F64F64F64F64", 64), ("90", "16x8x8_F64F64F64F64", 64), ("90", "16x8x16_F64F64F64F64", 64)],
]


def cutlass_layout(text: str, atom: str, operand: str) -> pycute.Layout:
    """An operand's layout as CUTLASS's header states it: lane + 32 value -> row + rows k."""
    body = text[re.search(rf"struct MMA_Traits<[\w:]*{atom}_TN\w*>", text).end() :]
    value = re.search(rf"{operand}Layout\s*=\s*(.*?);", body, re.DOTALL)[1]
    if not value.startswith("Layout"):
        value = re.search(rf"using {value}\s*=\s*(.*?);", text, re.DOTALL)[1]
    numbers = re.sub(r"(Shape|Stride)\s*<", "(", value.removeprefix("Layout<")[:-1]).replace(">", ")").replace("_", "")
    return pycute.Layout(*ast.literal_eval(f"({numbers})"))


@pytest.mark.parametrize(("generation", "atom", "bits"), ATOMS)
def test_fragments_are_those_of_cutlass(generation: str, atom: str, bits: int) -> None:
    header = f"source/include/cute/atom/mma_traits_sm{generation}.hpp"
    text = (Path(cutlass_library.__file__).parent / header).read_text()
    m, n, k = (int(x) for x in atom.split("_")[0].split("x"))
    for operand, rows in (("A", m), ("B", n)):
        layout = cutlass_layout(text, atom, operand)
        row, column = places_of(rows, k, bits)
        for lane, i in np.ndindex(row.shape):
            assert layout(lane + 32 * i) == row[lane, i] + rows * column[lane, i]
    c = cutlass_layout(text, atom, "C")
    for lane, i in np.ndindex(32, m // 4):
        assert c(lane + 32 * i) == C_ROW[i][lane] + m * C_COLUMN[i][lane]
