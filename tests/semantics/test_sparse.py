"""mma.sp in every shape and type on values whose products and sums are exact, its metadata, and what is wrong with it.

The layouts are those of the manual's figures of A, of B and of the metadata, element by element.
"""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.semantics.formats import FORMATS, exactly
from tests.semantics.harness import Array
from tests.semantics.test_matrix import (
    BITS,
    FLOAT8,
    draw,
    encode,
    execute,
    gather,
    place_a,
    place_b,
    place_c,
    scatter,
    shapes,
)

ORDERED = (0b0100, 0b1000, 0b1001, 0b1100, 0b1101, 0b1110)
DISTINCT = tuple(code for code in range(16) if code & 3 != code >> 2)
ONE_OF_TWO = (0b0100, 0b1110)  # tf32: the first, the second


def holder(bits: int, one_step: bool, selector: int, row: int, chunk: int) -> tuple[int, int]:
    """The lane and the lowest of the four bits with a chunk's indices.

    The figures of 16 and 32 bits: Tk: [15..0] in row g, [31..16] in row g + 8, four chunks each; of 8 and 4 bits: Tk:
    [31..0] in row g, the next lane's in row g + 8, eight chunks each. Chunks beyond these are in the next lanes.
    """
    g, high = row % 8, row // 8
    if bits >= 16:
        return 4 * g + (selector if one_step else 2 * selector + chunk // 4), 16 * high + 4 * (chunk % 4)
    return 4 * g + 2 * (selector if one_step else chunk // 8) + high, 4 * (chunk % 8)


def expanded(held: Array, codes: Array, bits: int) -> Array:
    """A with its zeros: it holds two of four elements, of 4 bits four of eight by pairs, of tf32 one of two."""
    wide, width = {32: (2, 1), 4: (8, 4)}.get(bits, (4, 2))
    dense = np.zeros((codes.shape[0], codes.shape[1] * wide), held.dtype)
    for (row, chunk), code in np.ndenumerate(codes):
        first, second = int(code) & 3, int(code) >> 2
        if bits == 32:
            places = [0 if code == 0b0100 else 1]
        else:
            places = [first, second] if bits > 4 else [2 * first, 2 * first + 1, 2 * second, 2 * second + 1]
        for n, place in enumerate(places):
            dense[row, wide * chunk + place] = held[row, width * chunk + n]
    return dense


def metadata(codes: Array, bits: int, one_step: bool, selector: int, seed: int) -> Array:
    """The lanes' words; those that do not count are noise."""
    words = np.random.default_rng(seed).integers(0, 1 << 32, 32).astype(np.uint64)
    for row, chunk in product(range(16), range(codes.shape[1])):
        lane, shift = holder(bits, one_step, selector, row, chunk)
        words[lane] = int(words[lane]) & ~(15 << shift) | int(codes[row, chunk]) << shift
    return words.astype(np.uint32)


def cases() -> list[tuple[str, str, int, tuple[str, str, str], tuple[int, ...]]]:
    """Variant, qualifiers after .row.col, k, types of sums, A and B, and selectors."""
    found = []
    for variant in ("sp", "sp::ordered_metadata"):
        for d in ("f16", "f32"):
            found += [(variant, "", 16, (d, "f16", "f16"), (0, 1, 2, 3)), (variant, "", 32, (d, "f16", "f16"), (0, 1))]
        found += [
            (variant, "", 16, ("f32", "bf16", "bf16"), (0, 3)),
            (variant, "", 32, ("f32", "bf16", "bf16"), (0, 1)),
        ]
        found += [(variant, "", 8, ("f32", "tf32", "tf32"), (0, 1, 2, 3))]
        found += [(variant, "", 16, ("f32", "tf32", "tf32"), (0, 1))]
        for saturate, (a, b) in product(("", ".satfinite"), product(("s8", "u8"), repeat=2)):
            found += [(variant, saturate, 32, ("s32", a, b), (0, 1)), (variant, saturate, 64, ("s32", a, b), (0,))]
        for saturate, (a, b) in product(("", ".satfinite"), product(("s4", "u4"), repeat=2)):
            found += [(variant, saturate, 64, ("s32", a, b), (0, 1)), (variant, saturate, 128, ("s32", a, b), (0,))]
        found += [(variant, "", 64, ("f32", a, b), (0,)) for a, b in product(("e4m3", "e5m2"), repeat=2)]
    ordered = "sp::ordered_metadata"
    found += [(ordered, "", 64, ("f16", a, b), (0,)) for a, b in product(("e4m3", "e5m2"), repeat=2)]
    for d, a, b in product(("f16", "f32"), FLOAT8, FLOAT8):
        found.append((ordered, ".kind::f8f6f4", 64, (d, a, b), (0,)))
    return found


@pytest.mark.parametrize(("variant", "words", "k", "types", "selectors"), cases())
def test_a_sparse_product_is_that_of_the_matrix_with_its_zeros(
    variant: str, words: str, k: int, types: tuple[str, str, str], selectors: tuple[int, ...]
) -> None:
    sums, a_type, b_type = types
    bits, c_bits = BITS[a_type], BITS[sums]
    chunks = k // {32: 2, 4: 8}.get(bits, 4)
    rng = np.random.default_rng([k, bits, len(selectors)])
    held, b = draw(a_type, (16, k // 2), 1), draw(b_type, (k, 8), 2)
    c = draw("f16", (16, 8), 3) if sums != "s32" else rng.integers(-(1 << 31), 1 << 31, (16, 8))
    if sums == "s32":
        c[0], c[9] = (1 << 31) - 1, -(1 << 31)
    place_of_a, place_of_b, a_count, b_count = shapes(16, k, bits, BITS[b_type])
    place = lambda lane, i: place_c(16, lane, i)  # noqa: E731
    fragments = (
        gather(encode(held, a_type), bits, place_of_a, a_count // 2),
        gather(encode(b, b_type), BITS[b_type], place_of_b, b_count),
        gather(encode(c, sums), c_bits, place, 4),
    )
    form = f"mma.{variant}.sync.aligned.m16n8k{k}.row.col{words}.{sums}.{a_type}.{b_type}.{sums}"
    allowed = ONE_OF_TWO if bits == 32 else ORDERED if variant.endswith("metadata") else DISTINCT
    one_step = fragments[0].shape[1] == 2
    for selector in selectors:
        codes = rng.choice(np.array(allowed), (16, chunks))
        dense = expanded(held, codes, bits)
        wanted = dense.astype(object) @ b.astype(object) + c.astype(object)
        data = np.stack([metadata(codes, bits, one_step, selector, selector), np.zeros(32, np.uint32)], axis=1)
        got = execute(form, *fragments, (4 * c_bits // 32, np.uint32), f", %s0, {selector}", data)
        found = scatter(got, c_bits, place, (16, 8))
        if sums == "s32":
            if words:
                wanted = np.array([[min(max(x, -(1 << 31)), (1 << 31) - 1) for x in row] for row in wanted.tolist()])
            assert (found.astype(object) == wanted % (1 << 32)).all()
            continue
        for row, column in product(range(16), range(8)):
            want = FORMATS[sums].encode(exactly(Fraction(wanted[row, column])))
            have = int(found[row, column])
            assert have == want or (FORMATS[sums].decode(have).zero and FORMATS[sums].decode(want).zero), (row, column)


SCALED = [("mxf8f6f4", "1X", 64, a, b, "ue8m0") for a, b in product(FLOAT8, repeat=2)]
SCALED += [("mxf4", "2X", 128, "packed e2m1", "packed e2m1", "ue8m0")]
SCALED += [
    ("mxf4nvf4", vector, 128, *["packed e2m1"] * 2, scale) for vector, scale in (("2X", "ue8m0"), ("4X", "ue4m3"))
]


@pytest.mark.parametrize(("kind", "vector", "k", "a_type", "b_type", "scale_type"), SCALED)
def test_scales_are_of_equal_parts_of_k_with_its_zeros(
    kind: str, vector: str, k: int, a_type: str, b_type: str, scale_type: str
) -> None:
    blocks, bits = int(vector[0]), BITS[a_type]
    rng = np.random.default_rng(7)
    held, b, c = draw(a_type, (16, k // 2), 11), draw(b_type, (k, 8), 12), draw("f16", (16, 8), 13)
    codes = rng.choice(np.array(ORDERED), (16, k // (8 if bits == 4 else 4)))
    dense = expanded(held, codes, bits)
    exponents = [rng.integers(-2, 3, (n, blocks)) for n in (16, 8)]
    # ue8m0 is a power of two with a bias of 127; of ue4m3 the bias is 7, below three bits of fraction
    a_scales, b_scales = (e + 127 if scale_type == "ue8m0" else (e + 7) << 3 for e in exponents)
    of_a, of_b = (np.repeat(2.0**e, k // blocks, axis=1) for e in exponents)
    wanted = (dense * of_a) @ (b * of_b.T) + c
    place_of_a, place_of_b, a_count, b_count = shapes(16, k, bits, BITS[b_type])
    place = lambda lane, i: place_c(16, lane, i)  # noqa: E731
    fragments = (
        gather(encode(held, a_type), bits, place_of_a, a_count // 2),
        gather(encode(b, b_type), BITS[b_type], place_of_b, b_count),
        gather(encode(c, "f32"), 32, place, 4),
    )
    types = [x.removeprefix("packed ") for x in (a_type, b_type)]
    form = f"mma.sp::ordered_metadata.sync.aligned.m16n8k{k}.row.col.kind::{kind}.block_scale.scale_vec::{vector}"
    form += f".f32.{'.'.join(types)}.f32.{scale_type}"
    for thread_a, thread_b, byte in product((0, 1), (0, 3), range(0, 4, blocks)):
        data = rng.integers(0, 256, (32, 12)).astype(np.uint8)
        data[:, :4] = metadata(codes, bits, False, 0, 5).view(np.uint8).reshape(32, 4)
        for lane in range(32):
            g, q = lane >> 2, lane & 3
            if q // 2 == thread_a:
                data[lane, 4 + byte : 4 + byte + blocks] = a_scales[g + 8 * (q % 2)]
            if q == thread_b:
                data[lane, 8 + byte : 8 + byte + blocks] = b_scales[g]
        extra = f", %s0, 0, %s1, {{{byte}, {thread_a}}}, %s2, {{{byte}, {thread_b}}}"
        got = execute(form, *fragments, (4, np.uint32), extra, data.view(np.uint32))
        np.testing.assert_array_equal(scatter(got, 32, place, (16, 8)).astype(np.uint32).view(np.float32), wanted)


def test_elements_of_b_that_no_row_picks_do_not_matter() -> None:
    """Infinities there would make NaN of a product with zeros."""
    held, b = draw("f16", (16, 16), 1), draw("f16", (32, 8), 2).astype(np.float64)
    codes = np.full((16, 8), 0b0100)
    dense = expanded(held, codes, 16)
    wanted = dense @ b
    b[2::4] = np.inf
    fragments = (
        gather(encode(held, "f16"), 16, lambda lane, i: place_a(16, 16, lane, i), 8),
        gather(b.astype(np.float16).view(np.uint16), 16, lambda lane, i: place_b(16, lane, i), 8),
        np.zeros((32, 4), np.uint32),
    )
    data = np.stack([metadata(codes, 16, False, 1, 0), np.zeros(32, np.uint32)], axis=1)
    got = execute("mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32", *fragments, (4, np.uint32), ", %s0, 1", data)
    found = scatter(got, 32, lambda lane, i: place_c(16, lane, i), (16, 8)).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(found, wanted)


def report_of(form: str, word: str, selector: int = 0, **options: str) -> emulator.Report:
    """One product with metadata that `word` makes of the lane %t in %e; all of D is stored."""
    d, a, b, c = ("{" + ", ".join(f"%{n}{i}" for i in range(4)) + "}" for n in "dabc")
    text = f""".version 8.8\n.target sm_120a\n.address_size 64\n.visible .entry k(.param .u64 out) {{
    .reg .b32 %t, %e, %u; .reg .pred %p; .reg .b64 %q; {" ".join(f".reg .b32 %{n}<4>;" for n in "abcd")}
    mov.u32 %t, %tid.x; {" ".join(f"mov.b32 %{n}{i}, 0;" for n in "abc" for i in range(4))}
    {word}
    {form} {d}, {a}, {b}, {c}, %e, {selector};
    ld.param.u64 %q, [out]; mad.wide.u32 %q, %t, 16, %q; st.global.v4.b32 [%q], {d}; ret; }}"""
    out = emulator.output(np.zeros(128, np.uint32))
    return emulator.load(text).launch("k", (1,), (32,), [out], on_finding="collect", **options)


K32 = "mma.sp{}.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32"


@pytest.mark.parametrize(("variant", "allowed"), [("", DISTINCT), ("::ordered_metadata", ORDERED)])
def test_indices_that_are_equal_or_out_of_order_are_a_finding(variant: str, allowed: tuple[int, ...]) -> None:
    for code in range(16):
        word = f"mov.b32 %e, 0x44444444; setp.eq.u32 %p, %t, 13; @%p mov.b32 %e, 0x44{code:x}44444;"
        findings = report_of(K32.format(variant), word).findings
        if code in allowed:
            assert findings == []
        else:
            (finding,) = findings
            assert (finding.kind, finding.thread) == ("metadata_invalid", (13, 0, 0))
            assert f"row 11 of A has the indices 0b{code:04b}" in finding.message
    word = "mov.b32 %e, 0x44444444; and.b32 %u, %t, 2; setp.eq.u32 %p, %u, 2; @%p mov.b32 %e, 0;"
    assert report_of(K32.format(variant), word).findings == []  # lanes that the selector does not name


def test_one_of_two_takes_two_codes_alone() -> None:
    form = "mma.sp.sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32"
    assert report_of(form, "mov.b32 %e, 0xE4E4E44E;").findings == []
    (finding,) = report_of(form, "mov.b32 %e, 0xE4E4E448;").findings
    assert finding.kind == "metadata_invalid" and "row 0 of A has the indices 0b1000" in finding.message


def test_a_selector_of_threads_that_do_not_exist_is_a_finding() -> None:
    (finding,) = report_of(K32.format(""), "mov.b32 %e, 0x44444444;", selector=3).findings
    assert finding.kind == "metadata_invalid" and "the sparsity selector 3" in finding.message


def test_undefined_metadata_makes_the_result_undefined_where_it_counts() -> None:
    undefined = "setp.ne.u32 %p, %t, {}; @%p mov.b32 %e, 0x44444444;"
    assert report_of(K32.format(""), undefined.format(3)).findings == []
    assert {finding.kind for finding in report_of(K32.format(""), undefined.format(1)).findings} == {"undefined_store"}


def test_a_sparse_product_rounds_as_a_dense_one_of_what_it_multiplies() -> None:
    """Every row picks the same of B; the values' sums are cut off, differently for each architecture."""
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((32, 8)).astype(np.float16).view(np.uint32) for _ in range(2))
    c = rng.standard_normal((32, 4)).astype(np.float32).view(np.uint32)
    place = lambda lane, i: place_b(16, lane, i)  # noqa: E731
    chosen = [4 * n + x for n in range(8) for x in (1, 3)]  # by the code 0b1101
    picked = gather(scatter(b, 16, place, (32, 8))[chosen], 16, place, 4)
    data = np.full((32, 2), 0xDDDDDDDD, np.uint32)
    results = set()
    for target in ("sm_80", "sm_90"):
        got = execute(K32.format(""), a, b, c, (4, np.uint32), ", %s0, 0", data, target=target)
        dense = execute(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", a, picked, c, (4, np.uint32), target=target
        )
        np.testing.assert_array_equal(got, dense)
        results.add(got.tobytes())
    assert len(results) == 2


def test_the_bound_is_of_each_output_once() -> None:
    report = report_of(K32.format(""), "mov.b32 %e, 0x44444444;", numerics="bound")
    assert report.counters.rounding is not None and report.counters.rounding.outputs == 16 * 8
    assert report.counters.matrix["m16n8k32.sp.f32.f16.f16.f32"].multiply_accumulates == 16 * 8 * 32 // 2
