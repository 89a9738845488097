"""mma.sync in every shape and type on values whose products and sums are exact, and ldmatrix, stmatrix, movmatrix.

Fragment layouts are the manual's, element by element: g is the lane's group of four (%laneid >> 2), q its place there.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.semantics.formats import FORMATS, Number, exactly
from tests.semantics.harness import UNSIGNED, Array

Place = tuple[int, int]
BITS = {
    "f16": 16,
    "bf16": 16,
    "tf32": 32,
    "f64": 64,
    "s8": 8,
    "u8": 8,
    "s4": 4,
    "u4": 4,
    "b1": 1,
    "e4m3": 8,
    "e5m2": 8,
    "e3m2": 8,
    "e2m3": 8,
    "e2m1": 8,
    "packed e2m1": 4,
    "f32": 32,
    "s32": 32,
}
FLOAT8 = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")


def place_a(m: int, bits: int, lane: int, i: int) -> Place:
    """Row and column of element i: registers (of 32 bits or one f64) alternate between rows g and g+8, then go on."""
    g, q, e = lane >> 2, lane & 3, max(32 // bits, 1)
    if m == 8:
        return g, q * e + i
    return g + 8 * (i // e % 2), q * e + i % e + 4 * e * (i // (2 * e))


def place_b(bits: int, lane: int, i: int) -> Place:
    """Row (k) and column."""
    g, q, e = lane >> 2, lane & 3, max(32 // bits, 1)
    return q * e + i % e + 4 * e * (i // e), g


def place_c(m: int, lane: int, i: int) -> Place:
    g, q = lane >> 2, lane & 3
    return g + 8 * (i // 2) * (m == 16), 2 * q + i % 2


def gather(codes: Array, bits: int, place: Callable[[int, int], Place], elements: int) -> Array:
    """Registers (32 lanes, n) of a matrix of codes; element 0 is the lowest."""
    per = max(32 // bits, 1)
    words = np.zeros((32, elements // per), UNSIGNED[8 if bits == 64 else 4])
    for lane in range(32):
        for i in range(elements):
            words[lane, i // per] |= words.dtype.type(int(codes[place(lane, i)]) << bits * (i % per))
    return words


def scatter(words: Array, bits: int, place: Callable[[int, int], Place], shape: Place) -> Array:
    per = max(32 // bits, 1)
    codes = np.zeros(shape, np.uint64)
    for lane in range(32):
        for i in range(words.shape[1] * per):
            codes[place(lane, i)] = int(words[lane, i // per]) >> bits * (i % per) & ((1 << bits) - 1)
    return codes


def execute(
    form: str,
    a: Array,
    b: Array,
    c: Array,
    d_shape: tuple[int, type],
    extra: str = "",
    scales: Array | None = None,
    target: str = "sm_120a",
) -> Array:
    """One warp's mma; `extra` follows the operands, with %s0 and %s1 the lane's two words of scales."""
    count, dtype = d_shape
    d = np.zeros((32, count), dtype)
    inputs = {"a": a, "b": b, "c": c, "s": scales if scales is not None else np.zeros((32, 2), np.uint32)}
    loads, braces, registers = [], {}, []
    for name, words in inputs.items():
        size, n = words.itemsize, words.shape[1]
        registers.append(f".reg .b{8 * size} %{name}<{n}>; .reg .b64 %p{name};")
        loads.append(f"ld.param.u64 %p{name}, [{name}]; mad.wide.u32 %p{name}, %t, {size * n}, %p{name};")
        loads += [f"ld.global.b{8 * size} %{name}{i}, [%p{name}+{size * i}];" for i in range(n)]
        braces[name] = "{" + ", ".join(f"%{name}{i}" for i in range(n)) + "}"
    size = d.itemsize
    outputs = "{" + ", ".join(f"%d{i}" for i in range(count)) + "}"
    stores = "".join(f"st.global.b{8 * size} [%pd+{size * i}], %d{i};" for i in range(count))
    text = f""".version 8.8\n.target {target}\n.address_size 64
    .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 s, .param .u64 d) {{
        .reg .b32 %t; .reg .b{8 * size} %d<{count}>; .reg .b64 %pd; {" ".join(registers)}
        mov.u32 %t, %tid.x; {" ".join(loads)}
        ld.param.u64 %pd, [d]; mad.wide.u32 %pd, %t, {size * count}, %pd;
        {form} {outputs}, {braces["a"]}, {braces["b"]}, {braces["c"]}{extra};
        {stores} ret; }}"""
    emulator.load(text).launch("k", (1,), (32,), [*inputs.values(), emulator.output(d)])
    return d


def encode(values: Array, kind: str) -> Array:
    """Codes of numbers that the type holds exactly; tf32 as f32, e2m1 in bits 5 to 2 of its byte."""
    if kind[0] in "us" or kind == "b1":
        return np.array([int(v) & ((1 << BITS[kind]) - 1) for v in values.ravel().tolist()], np.uint64).reshape(
            values.shape
        )
    form = FORMATS[kind.removeprefix("packed ").replace("tf32", "f32")]
    codes = np.array([form.encode(exactly(Fraction(v))) for v in values.ravel().tolist()], np.uint64).reshape(
        values.shape
    )
    assert all(
        form.decode(int(c)).value == Fraction(v)
        for c, v in zip(codes.ravel().tolist(), values.ravel().tolist(), strict=True)
    )
    return codes << np.uint64(2) if kind == "e2m1" else codes


def draw(kind: str, shape: Place, seed: int) -> Array:
    """Integers, halves or quarters that every type holds exactly."""
    rng = np.random.default_rng([seed, BITS[kind]])
    if kind == "b1":
        return rng.integers(0, 2, shape)
    if kind in ("s8", "u8", "s4", "u4"):
        n = BITS[kind]
        return rng.integers(-(1 << (n - 1)), 1 << (n - 1), shape) if kind[0] == "s" else rng.integers(0, 1 << n, shape)
    if "e2m1" in kind:
        return rng.choice(np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]), shape)
    if kind in ("e3m2", "e2m3", "e5m2", "e4m3"):
        return rng.integers(-4, 5, shape) / 2
    return rng.integers(-64, 65, shape)


def accumulate(a: Array, b: Array, c: Array) -> Array:
    return a.astype(object) @ b.astype(object) + c.astype(object)


def shapes(
    m: int, k: int, a_bits: int, b_bits: int
) -> tuple[Callable[[int, int], Place], Callable[[int, int], Place], int, int]:
    return (
        lambda lane, i: place_a(m, a_bits, lane, i),
        lambda lane, i: place_b(b_bits, lane, i),
        m * k // 32,
        k * 8 // 32,
    )


Case = tuple[str, int, int, str, str, str, str]  # qualifiers after row.col, m, k, types of d, a, b, c


def float_cases() -> Iterator[Case]:
    for k in (8, 16):
        yield from (("", 16, k, d, "f16", "f16", d) for d in ("f32", "f16"))
        yield "", 16, k, "f32", "bf16", "bf16", "f32"
    yield from (("", 16, k, "f32", "tf32", "tf32", "f32") for k in (4, 8))
    yield "", 8, 4, "f64", "f64", "f64", "f64"
    yield from (("", 16, k, "f64", "f64", "f64", "f64") for k in (4, 8, 16))
    for a, b in product(("e4m3", "e5m2"), repeat=2):
        yield from (("", 16, k, d, a, b, d) for k in (16, 32) for d in ("f32", "f16"))
    for a, b in product(FLOAT8, repeat=2):
        yield from ((".kind::f8f6f4", 16, 32, d, a, b, d) for d in ("f32", "f16"))


@pytest.mark.parametrize("case", list(float_cases()), ids=lambda c: f"m{c[1]}n8k{c[2]}{c[0]}.{'.'.join(c[3:])}")
def test_floating_point_products_of_small_integers_are_exact(case: Case) -> None:
    kind, m, k, d_type, a_type, b_type, c_type = case
    a, b = draw(a_type, (m, k), 1), draw(b_type, (k, 8), 2)
    c = draw("f16", (m, 8), 3)
    place_of_a, place_of_b, a_count, b_count = shapes(m, k, BITS[a_type], BITS[b_type])
    place = lambda lane, i: place_c(m, lane, i)  # noqa: E731
    bits = BITS[c_type]
    form = f"mma.sync.aligned.m{m}n8k{k}.row.col{kind}.{d_type}.{a_type}.{b_type}.{c_type}"
    registers = m * 8 * max(bits, 16) // 32 // (64 if bits == 64 else 32)
    got = execute(
        form,
        gather(encode(a, a_type), BITS[a_type], place_of_a, a_count),
        gather(encode(b, b_type), BITS[b_type], place_of_b, b_count),
        gather(encode(c, c_type), bits, place, m // 4),
        (registers, np.uint64 if bits == 64 else np.uint32),
    )
    result = FORMATS[d_type]
    wanted = accumulate(a, b, c)
    codes = scatter(got, bits, place, (m, 8))
    for row, column in product(range(m), range(8)):
        want = result.encode(exactly(Fraction(wanted[row, column])))
        have = int(codes[row, column])
        assert result.decode(have).magnitude == result.decode(want).magnitude, (row, column, hex(have), hex(want))
        assert have == want or result.decode(want).zero


def integer_cases() -> Iterator[tuple[int, int, str, str]]:
    for (m, k), (a, b) in product(((8, 16), (16, 16), (16, 32)), product(("s8", "u8"), repeat=2)):
        yield m, k, a, b
    for (m, k), (a, b) in product(((8, 32), (16, 32), (16, 64)), product(("s4", "u4"), repeat=2)):
        yield m, k, a, b


def integer_registers(
    m: int, k: int, a: Array, b: Array, c: Array, types: tuple[str, str]
) -> tuple[Array, Array, Array]:
    place_of_a, place_of_b, a_count, b_count = shapes(m, k, BITS[types[0]], BITS[types[1]])
    return (
        gather(encode(a, types[0]), BITS[types[0]], place_of_a, a_count),
        gather(encode(b, types[1]), BITS[types[1]], place_of_b, b_count),
        gather(encode(c, "s32"), 32, lambda lane, i: place_c(m, lane, i), m // 4),
    )


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize(("m", "k", "a_type", "b_type"), list(integer_cases()))
def test_integer_products_wrap_or_saturate(m: int, k: int, a_type: str, b_type: str, saturate: bool) -> None:
    a, b = draw(a_type, (m, k), 4), draw(b_type, (k, 8), 5)
    c = np.random.default_rng(6).integers(-(1 << 31), 1 << 31, (m, 8))
    c[0], c[1] = (1 << 31) - 1, -(1 << 31)
    flag = ".satfinite" if saturate else ""
    form = f"mma.sync.aligned.m{m}n8k{k}.row.col{flag}.s32.{a_type}.{b_type}.s32"
    got = execute(form, *integer_registers(m, k, a, b, c, (a_type, b_type)), (m // 4, np.uint32))
    wanted = accumulate(a, b, c)
    if saturate:
        wanted = np.clip(wanted.astype(np.float64), -(2.0**31), 2.0**31 - 1).astype(np.int64)
    codes = scatter(got, 32, lambda lane, i: place_c(m, lane, i), (m, 8))
    assert (codes.astype(object) == wanted.astype(object) % (1 << 32)).all()


@pytest.mark.parametrize("operation", ["xor", "and"])
@pytest.mark.parametrize(("m", "k"), [(8, 128), (16, 128), (16, 256)])
def test_bit_products_count_bits(m: int, k: int, operation: str) -> None:
    a, b = draw("b1", (m, k), 7), draw("b1", (k, 8), 8)
    c = np.random.default_rng(9).integers(-1000, 1000, (m, 8))
    form = f"mma.sync.aligned.m{m}n8k{k}.row.col.s32.b1.b1.s32.{operation}.popc"
    got = execute(form, *integer_registers(m, k, a, b, c, ("b1", "b1")), (m // 4, np.uint32))
    both = a[:, :, None] & b[None] if operation == "and" else a[:, :, None] ^ b[None]
    codes = scatter(got, 32, lambda lane, i: place_c(m, lane, i), (m, 8))
    assert (codes == (both.sum(1) + c) % (1 << 32)).all()


# Block scales: one per row and column and block of k, from one byte each of chosen lanes' registers

SCALED = [("mxf8f6f4", "1X", a, b, "ue8m0") for a, b in product(FLOAT8, repeat=2)]
SCALED += [
    ("mxf4", "2X", "packed e2m1", "packed e2m1", "ue8m0"),
    ("mxf4nvf4", "2X", "packed e2m1", "packed e2m1", "ue8m0"),
    ("mxf4nvf4", "4X", "packed e2m1", "packed e2m1", "ue4m3"),
]


@pytest.mark.parametrize(("kind", "vector", "a_type", "b_type", "scale_type"), SCALED)
def test_block_scales_multiply_their_blocks(kind: str, vector: str, a_type: str, b_type: str, scale_type: str) -> None:
    """thread-id-a: lanes 0 and 1 of each quad or 2 and 3 have rows g and g+8; thread-id-b: which lane has column g."""
    blocks, k = int(vector[0]), 32 if vector == "1X" else 64
    rng = np.random.default_rng(10)
    a, b, c = draw(a_type, (16, k), 11), draw(b_type, (k, 8), 12), draw("f16", (16, 8), 13)
    if scale_type == "ue8m0":
        choices = {code: Fraction(2) ** (code - 127) for code in (125, 126, 127, 128, 129)}
    else:
        choices = {
            FORMATS["e4m3"].encode(Number(False, Fraction(v))): Fraction(v)
            for v in (Fraction(1, 2), 1, Fraction(3, 2), 2, 3)
        }
    a_codes, b_codes = rng.choice(list(choices), (16, blocks)), rng.choice(list(choices), (8, blocks))
    scaled_a = np.array(
        [[Fraction(float(a[m, x])) * choices[int(a_codes[m, x * blocks // k])] for x in range(k)] for m in range(16)]
    )
    scaled_b = np.array(
        [[Fraction(float(b[x, n])) * choices[int(b_codes[n, x * blocks // k])] for n in range(8)] for x in range(k)]
    )
    wanted = scaled_a @ scaled_b + c.astype(object)
    place_of_a, place_of_b, a_count, b_count = shapes(16, k, BITS[a_type], BITS[b_type])
    place = lambda lane, i: place_c(16, lane, i)  # noqa: E731
    fragments = (
        gather(encode(a, a_type), BITS[a_type], place_of_a, a_count),
        gather(encode(b, b_type), BITS[b_type], place_of_b, b_count),
        gather(encode(c, "f32"), 32, place, 4),
    )
    types = [x.removeprefix("packed ") for x in (a_type, b_type)]
    form = f"mma.sync.aligned.m16n8k{k}.row.col.kind::{kind}.block_scale.scale_vec::{vector}"
    form += f".f32.{'.'.join(types)}.f32.{scale_type}"
    for thread_a, thread_b, byte in product((0, 1), range(4), range(0, 4, blocks)):
        scales = rng.integers(0, 256, (32, 8)).astype(np.uint8)
        for lane in range(32):
            g, q = lane >> 2, lane & 3
            if q // 2 == thread_a:
                scales[lane, byte : byte + blocks] = a_codes[g + 8 * (q % 2)]
            if q == thread_b:
                scales[lane, 4 + byte : 4 + byte + blocks] = b_codes[g]
        extra = f", %s0, {{{byte}, {thread_a}}}, %s1, {{{byte}, {thread_b}}}"
        got = execute(form, *fragments, (4, np.uint32), extra, scales.view(np.uint32))
        values = scatter(got, 32, place, (16, 8)).astype(np.uint32).view(np.float32)
        assert (values.astype(object) == wanted.astype(np.float64)).all(), (thread_a, thread_b, byte)


# m8n8k4 of f16: four products, one for each quad pair


@pytest.mark.parametrize(("d_type", "c_type"), [("f32", "f32"), ("f16", "f16"), ("f32", "f16")])
@pytest.mark.parametrize("layouts", list(product(("row", "col"), repeat=2)))
def test_a_quad_pair_multiplies_8_by_8_by_4(layouts: tuple[str, str], d_type: str, c_type: str) -> None:
    """Quad pair p is lanes 4p to 4p+3 and 16 more; the manual's formulas for m8n8k4."""

    def a_place(lane: int, i: int) -> Place:
        high = 4 * (lane >= 16)
        return (lane % 4 + high, i) if layouts[0] == "row" else (i + high, lane % 4)

    def b_place(lane: int, i: int) -> Place:
        high = 4 * (lane >= 16)
        return (lane % 4, i + high) if layouts[1] == "row" else (i, lane % 4 + high)

    def c_place(lane: int, i: int, kind: str) -> Place:
        high = 4 * (lane >= 16)
        return (lane % 4 + high, i) if kind == "f16" else ((lane & 1) + (i & 2) + high, (i & 4) + (lane & 2) + (i & 1))

    values = {"a": draw("f16", (4, 8, 4), 14), "b": draw("f16", (4, 4, 8), 15), "c": draw("f16", (4, 8, 8), 16)}
    quad = [lane % 16 // 4 for lane in range(32)]

    def registers(name: str, kind: str, place: Callable[[int, int], Place], count: int) -> Array:
        codes = encode(values[name], kind)
        per = 32 // BITS[kind]
        words = np.zeros((32, count // per), np.uint32)
        for lane, i in product(range(32), range(count)):
            words[lane, i // per] |= np.uint32(int(codes[quad[lane]][place(lane, i)]) << BITS[kind] * (i % per))
        return words

    form = f"mma.sync.aligned.m8n8k4.{'.'.join(layouts)}.{d_type}.f16.f16.{c_type}"
    got = execute(
        form,
        registers("a", "f16", a_place, 4),
        registers("b", "f16", b_place, 4),
        registers("c", c_type, lambda lane, i: c_place(lane, i, c_type), 8),
        (8 * BITS[d_type] // 32, np.uint32),
        target="sm_75",
    )
    result = FORMATS[d_type]
    for lane, i in product(range(32), range(8)):
        row, column = c_place(lane, i, d_type)
        total = values["a"][quad[lane]][row] @ values["b"][quad[lane]][:, column] + values["c"][quad[lane]][row, column]
        want = result.encode(exactly(Fraction(int(total))))
        per = 32 // BITS[d_type]
        have = int(got[lane, i // per]) >> BITS[d_type] * (i % per) & ((1 << BITS[d_type]) - 1)
        assert result.decode(have).value == result.decode(want).value, (lane, i)


# Matrices in shared memory


def copies(source: str, start: str, target: str, to: str) -> str:
    """A thread's 128 bytes from one state space to another."""
    words = "{%w0, %w1, %w2, %w3}"
    return "".join(
        f"ld.{source}.v4.b32 {words}, [{start}+{n}]; st.{target}.v4.b32 [{to}+{n}], {words};" for n in range(0, 128, 16)
    )


def shared_kernel(body: str, registers: int) -> str:
    """The warp's addresses and registers come from arrays; `tile` is copied in from an array and out to it."""
    loads = "".join(f"ld.global.b32 %r{i}, [%d3+{4 * i}];" for i in range(registers))
    stores = "".join(f"st.global.b32 [%d3+{4 * i}], %r{i};" for i in range(registers))
    return f""".version 8.8\n.target sm_120a\n.address_size 64
    .visible .entry k(.param .u64 tile, .param .u64 offsets, .param .u64 words) {{
        .reg .b32 %r<9>; .reg .b32 %t; .reg .b32 %o; .reg .b32 %w<4>; .reg .b64 %d<9>;
        .shared .align 128 .b8 memory[4096];
        mov.u32 %t, %tid.x; ld.param.u64 %d1, [tile]; mad.wide.u32 %d1, %t, 128, %d1;
        mov.u64 %d4, memory; mad.wide.u32 %d5, %t, 128, %d4;
        {copies("global", "%d1", "shared", "%d5")}
        ld.param.u64 %d2, [offsets]; mad.wide.u32 %d2, %t, 4, %d2; ld.global.b32 %o, [%d2]; cvt.u64.u32 %d6, %o;
        add.u64 %d6, %d6, %d4; ld.param.u64 %d3, [words]; mad.wide.u32 %d3, %t, {4 * registers}, %d3; {loads}
        bar.sync 0; {body} bar.sync 0; {stores}
        {copies("shared", "%d5", "global", "%d1")}
        ret; }}"""


def run_shared(body: str, tile: Array, offsets: Array, words: Array) -> None:
    module = emulator.load(shared_kernel(body, words.shape[1]))
    module.launch("k", (1,), (32,), [tile, offsets, words])


def vector(count: int) -> str:
    return "{" + ", ".join(f"%r{i}" for i in range(count)) + "}"


def row_offsets(size: int, seed: int) -> Array:
    """32 different rows anywhere in the tile."""
    return (np.random.default_rng(seed).permutation(4096 // size)[:32] * size).astype(np.uint32)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["ldmatrix", "stmatrix"])
def test_matrices_of_8_by_8_halves(name: str, count: int, transposed: bool) -> None:
    """Lane l has elements 2(l%4) and the next of row l/4 (.trans: of the transpose); lane 8j+i names row i of j."""
    rng = np.random.default_rng(17)
    tile, words = (
        rng.integers(0, 1 << 32, 1024).astype(np.uint32),
        rng.integers(0, 1 << 32, (32, count)).astype(np.uint32),
    )
    offsets = row_offsets(16, 18)
    before, given = tile.copy(), words.copy()
    operands = f"{vector(count)}, [%d6]" if name == "ldmatrix" else f"[%d6], {vector(count)}"
    trans = ".trans" if transposed else ""
    run_shared(f"{name}.sync.aligned.m8n8.x{count}{trans}.shared.b16 {operands};", tile, offsets, words)
    expected = before.view(np.uint16).copy()
    for j, lane, half in product(range(count), range(32), range(2)):
        row, column = lane // 4, 2 * (lane % 4) + half
        if transposed:
            row, column = column, row
        index = int(offsets[8 * j + row]) // 2 + column
        part = int(given[lane, j]) >> 16 * half & 0xFFFF
        if name == "ldmatrix":
            assert int(words[lane, j]) >> 16 * half & 0xFFFF == before.view(np.uint16)[index]
        else:
            expected[index] = part
    assert np.array_equal(tile.view(np.uint16), expected)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_stores_of_16_by_8_bytes_are_transposed(count: int) -> None:
    """In memory a matrix is eight rows of 16 bytes, its columns."""
    rng = np.random.default_rng(19)
    tile, words = (
        rng.integers(0, 1 << 32, 1024).astype(np.uint32),
        rng.integers(0, 1 << 32, (32, count)).astype(np.uint32),
    )
    offsets = row_offsets(16, 20)
    expected = tile.view(np.uint8).copy()
    # The manual's figure: thread l has row l/4 of columns 2(l%4) and the next in bytes 0 and 1, row l/4 + 8 in 2 and 3.
    for j, lane, byte in product(range(count), range(32), range(4)):
        row, column = lane // 4 + 8 * (byte // 2), 2 * (lane % 4) + byte % 2
        expected[int(offsets[8 * j + column]) + row] = int(words[lane, j]) >> 8 * byte & 255
    run_shared(f"stmatrix.sync.aligned.m16n8.x{count}.trans.shared.b8 [%d6], {vector(count)};", tile, offsets, words)
    assert np.array_equal(tile.view(np.uint8), expected)


def unpacked(row: Array, packing: str) -> list[int]:
    """16 elements of a row: bytes; or 6 or 4 bits each, the first lowest, then padding (b6x16_p32, b4x16_p64)."""
    whole = int.from_bytes(row.tobytes(), "little")
    bits = {"": 8, "b6x16_p32": 6, "b4x16_p64": 4}[packing]
    return [whole >> bits * i & ((1 << bits) - 1) for i in range(16)]


@pytest.mark.parametrize("packing", ["b6x16_p32", "b4x16_p64"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_rows_of_8_by_16_small_elements_become_bytes(count: int, packing: str) -> None:
    """A group of four lanes has a row: lane l elements 4(l%4) and three more of row l/4, each in a byte of its own."""
    rng = np.random.default_rng(21)
    tile, words = rng.integers(0, 1 << 32, 1024).astype(np.uint32), np.zeros((32, count), np.uint32)
    offsets = row_offsets(16, 22)
    run_shared(
        f"ldmatrix.sync.aligned.m8n16.x{count}.shared.b8x16.{packing} {vector(count)}, [%d6];", tile, offsets, words
    )
    for j, lane in product(range(count), range(32)):
        start = int(offsets[8 * j + lane // 4])
        row = unpacked(tile.view(np.uint8)[start : start + 16], packing)
        assert words[lane : lane + 1, j].view(np.uint8).tolist() == row[4 * (lane % 4) : 4 * (lane % 4) + 4]


@pytest.mark.parametrize("packing", ["", "b6x16_p32", "b4x16_p64"])
@pytest.mark.parametrize("count", [1, 2])
def test_16_by_16_bytes_are_transposed(count: int, packing: str) -> None:
    """Lane 16j+i names row i of matrix j; of the transpose, register 0 has row l/4, register 1 row l/4 + 8."""
    rng = np.random.default_rng(23)
    tile, words = rng.integers(0, 1 << 32, 1024).astype(np.uint32), np.zeros((32, 2 * count), np.uint32)
    offsets = row_offsets(16, 24)
    kinds = f"b8x16.{packing}" if packing else "b8"
    form = f"ldmatrix.sync.aligned.m16n16.x{count}.trans.shared.{kinds}"
    run_shared(f"{form} {vector(2 * count)}, [%d6];", tile, offsets, words)
    memory = tile.view(np.uint8)
    for j, lane, half in product(range(count), range(32), range(2)):
        rows = [unpacked(memory[int(offsets[16 * j + i]) : int(offsets[16 * j + i]) + 16], packing) for i in range(16)]
        wanted = [rows[4 * (lane % 4) + n][lane // 4 + 8 * half] for n in range(4)]
        assert words[lane : lane + 1, 2 * j + half].view(np.uint8).tolist() == wanted


def test_movmatrix_transposes_registers() -> None:
    rng = np.random.default_rng(25)
    words = rng.integers(0, 1 << 32, (32, 1)).astype(np.uint32)
    given = words.copy()
    run_shared(
        "movmatrix.sync.aligned.m8n8.trans.b16 %r0, %r0;", np.zeros(1024, np.uint32), np.zeros(32, np.uint32), words
    )
    matrix = given.view(np.uint16).reshape(8, 8)
    assert np.array_equal(words.view(np.uint16).reshape(8, 8), matrix.T)
