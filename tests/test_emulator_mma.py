"""The emulator's tensor cores against exact models written from the manual and from the published descriptions.

Integers and bits are compared with numpy's, floats with sums in fractions. Fragments are laid out by the manual's
formulas; where CUTLASS's headers state a fragment, `tests/test_layout_pycute.py` and the last tests here compare.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
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


def registers_of(rows: Array, bits: int) -> Array:
    """Fragments of matrices (t, 8 or 16, k) of codes as (t, 32 lanes, registers): A's rows, or B's columns.

    With g = lane >> 2, q = lane & 3, e elements in a register and i the element's number in the lane: row g + 8 ((i / e)
    & 1), k = q e + i % e + 4 e (i / 2e); with 8 rows k = q e + i % e + 4 e (i / e).
    """
    tiles, height, k = rows.shape
    unit = max(bits, 32)
    e = unit // bits
    lane = np.arange(32)
    g, q = lane >> 2, lane & 3
    count = height * k // 32
    words = []
    for first in range(0, count, e):
        r = first // e
        row, step = (g + 8 * (r & 1), r >> 1) if height == 16 else (g, r)
        columns = [q * e + n + 4 * e * step for n in range(e)]
        parts = [rows[:, row, column].astype(np.uint64) << np.uint64(n * bits) for n, column in enumerate(columns)]
        words.append(np.bitwise_or.reduce(parts))
    return np.stack(words, -1).astype(np.uint64 if unit == 64 else np.uint32)


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
    """Block t multiplies tile t: (lane, register) arrays of A, B, C (overwritten by D), and two words per lane of scales."""
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
    text = kernel(name, (a.shape[2], b.shape[2], c.shape[2]), wide, extra)
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


def product_terms(a: Array, b: Array, kinds: tuple[str, str], exponent: int = 0) -> Terms:
    terms = []
    for x, y in zip(a, b, strict=True):
        (sx, ex), (sy, ey) = split(float(x), TYPES[kinds[0]].lowest), split(float(y), TYPES[kinds[1]].lowest)
        terms.append((sx * sy, ex + ey + exponent))
    return terms


def codes_of(values: Array, kind: str) -> Array:
    """The bits of values of a type as they lie in a register's element."""
    whole = values.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[values.dtype.itemsize])
    return whole.astype(np.uint64) << np.uint64(TYPES[kind].shift)


def draw(rng: np.random.Generator, shape: tuple[int, ...], kind: str, spread: float) -> Array:
    """Values whose magnitudes spread over 2^(-spread)..2^spread where the type has them, with zeros among them."""
    dtype = TYPES[kind].dtype
    if np.dtype(dtype).itemsize == 1:  # every finite code alike
        codes = rng.integers(0, 1 << (4 if kind in ("e2m1", "fp4") else 6 if kind in ("e3m2", "e2m3") else 8), shape)
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
        assert got[t, m, n] == want or np.isnan(got[t, m, n]) and np.isnan(want), (t, m, n)


@pytest.mark.parametrize(("arch", "a_kind", "b_kind", "shape", "accumulator", "spread"), CASES)
def test_hardware_numerics_equal_the_exact_model(
    arch: str, a_kind: str, b_kind: str, shape: str, accumulator: str, spread: float
) -> None:
    rng = np.random.default_rng(int(spread))
    _, k = extents(shape)
    a, b = draw(rng, (2, 16, k), a_kind, spread), draw(rng, (2, 8, k), b_kind, spread)
    c = draw(rng, (2, 16, 8), accumulator, spread)
    name = f"mma.sync.aligned.{shape}.row.col.{accumulator}.{a_kind}.{b_kind}.{accumulator}"
    d, _ = run(name, *fragments(a, b, c, (a_kind, b_kind)), arch=arch)
    got = matrix_of(d.view(TYPES[accumulator].dtype))
    unit = unit_of(arch, a_kind, k)
    with np.errstate(over="ignore"):
        check(
            got,
            60,
            lambda t, m, n: model(
                product_terms(a[t, m], b[t, n], (a_kind, b_kind)), float(c[t, m, n]), unit, accumulator
            ),
        )


@pytest.mark.parametrize("accumulator", ["f32", "f16"])
@pytest.mark.parametrize(("a_kind", "b_kind"), list(product(NARROW, repeat=2)))
def test_narrow_types_multiply_by_the_exact_model(a_kind: str, b_kind: str, accumulator: str) -> None:
    rng = np.random.default_rng(0)
    a, b = draw(rng, (2, 16, 32), a_kind, 0), draw(rng, (2, 8, 32), b_kind, 0)
    c = draw(rng, (2, 16, 8), accumulator, 4)
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
    name = f"mma.sync.aligned.m16n8k{k}.row.col.kind::{kind}.block_scale.scale_vec::{count}X.f32.{types[0]}.{types[1]}.f32.{scale_kind}"
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
