"""atom and red: every operation and type, on cells of one thread each and on cells that a whole grid shares."""

from collections.abc import Callable

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.semantics.formats import FORMATS, add
from tests.semantics.harness import REGISTER, UNSIGNED, Array, patterns, signed
from tests.semantics.test_floats import draw, extreme_code, same

COUNT = 256
Oracle = Callable[..., int]


def run(
    form: str, cells: Array, operands: list[Array], space: str, target: str = "sm_100a"
) -> tuple[Array, Array | None]:
    """Each thread's operation on its own cell: the cells afterwards, and what `atom` returned."""
    size = cells.itemsize
    register = REGISTER[size]
    returns = form.startswith("atom")
    loads = "".join(
        f"ld.param.u64 %d42, [o{n}]; mad.wide.u32 %d42, %r40, {size}, %d42;ld.global.b{8 * size} {register}{n}, [%d42];"
        for n in range(len(operands))
    )
    sources = ", ".join(f"{register}{n}" for n in range(len(operands)))
    result = f"{register}20, " if returns else ""
    address, begin, end = "%d41", "", ""
    if space == "shared":
        begin = f"""mov.u64 %d43, tile; mad.wide.u32 %d43, %r41, {size}, %d43;
            ld.global.b{8 * size} {register}21, [%d41]; st.shared.b{8 * size} [%d43], {register}21;"""
        end = f"ld.shared.b{8 * size} {register}21, [%d43]; st.global.b{8 * size} [%d41], {register}21;"
        address = "%d43"
    store = (
        f"ld.param.u64 %d42, [r]; mad.wide.u32 %d42, %r40, {size}, %d42; st.global.b{8 * size} [%d42], {register}20;"
    )
    parameters = ", ".join(f".param .u64 {name}" for name in ("cells", "r", *(f"o{n}" for n in range(len(operands)))))
    text = f"""
    .version 8.8
    .target {target}
    .address_size 64
    .visible .entry k({parameters}) {{
        .reg .b16 %h<32>; .reg .b32 %r<48>; .reg .b64 %d<48>; .shared .align 16 .b8 tile[2048];
        mov.u32 %r40, %ctaid.x; mov.u32 %r41, %tid.x; mad.lo.u32 %r40, %r40, 128, %r41;
        ld.param.u64 %d41, [cells]; mad.wide.u32 %d41, %r40, {size}, %d41;
        {loads}{begin}
        {form.replace("SPACE", space)} {result}[{address}], {sources};
        {end}{store if returns else ""}
        ret;
    }}"""
    after, returned = cells.copy(), np.zeros_like(cells)
    emulator.load(text).launch("k", (len(cells) // 128,), (128,), [after, returned, *operands])
    return after, returned if returns else None


def value(code: int, kind: str) -> int:
    return signed(code, int(kind[1:])) if kind[0] == "s" else code


def integer(kind: str, function: Callable[..., int]) -> Oracle:
    mask = (1 << int(kind[1:])) - 1
    return lambda *codes: function(*(value(code, kind) for code in codes)) & mask


OPERATIONS: dict[str, tuple[str, Callable[..., int]]] = {
    "add": ("u32 s32 u64", lambda r, s: r + s),
    "inc": ("u32", lambda r, s: 0 if r >= s else r + 1),
    "dec": ("u32", lambda r, s: s if r == 0 or r > s else r - 1),
    "min": ("u32 s32 u64 s64", min),
    "max": ("u32 s32 u64 s64", max),
    "and": ("b32 b64", lambda r, s: r & s),
    "or": ("b32 b64", lambda r, s: r | s),
    "xor": ("b32 b64", lambda r, s: r ^ s),
    "exch": ("b32 b64", lambda r, s: s),
    "cas": ("b16 b32 b64", lambda r, s, t: t if r == s else r),
}
INTEGER_FORMS = [(name, kind) for name, (kinds, _) in OPERATIONS.items() for kind in kinds.split()]


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("name", "kind"), INTEGER_FORMS)
def test_an_atomic_returns_the_old_value_and_leaves_the_new_one(name: str, kind: str, space: str) -> None:
    bits, function = int(kind[1:]), OPERATIONS[name][1]
    cells, s, t = (patterns(bits, COUNT, seed) for seed in (1, 2, 3))
    if name in ("inc", "dec"):
        cells[:64] = np.random.default_rng(0).integers(0, 4, 64)
        s[:64] = np.random.default_rng(1).integers(0, 4, 64)
    if name == "cas":
        s[::2] = cells[::2]
    operands = [s, t] if name == "cas" else [s]
    oracle = integer(kind, function)
    wanted = [oracle(*row) for row in zip(cells.tolist(), *(x.tolist() for x in operands), strict=True)]
    after, returned = run(f"atom.SPACE.{name}.{kind}", cells, operands, space)
    assert after.tolist() == wanted
    assert returned is not None and np.array_equal(returned, cells)
    if name not in ("exch", "cas"):
        assert run(f"red.SPACE.{name}.{kind}", cells, operands, space)[0].tolist() == wanted


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
def test_sums_of_floats_round_to_nearest_even(kind: str, space: str) -> None:
    """The manual: f32 in global memory flushes subnormal inputs and results to zeros, in shared memory it does not."""
    form = FORMATS[kind]
    a, b = draw(form, 4), draw(form, 5)
    noftz = ".noftz" if form.bits == 16 else ""
    flush = form.flush if (kind, space) == ("f32", "global") else lambda code: code
    for mnemonic in ("atom", "red"):
        after, returned = run(f"{mnemonic}.SPACE.add{noftz}.{kind}", a, [b], space)
        for x, y, have in zip(a.tolist(), b.tolist(), after.tolist(), strict=True):
            want = flush(form.encode(add(form.decode(flush(x)), form.decode(flush(y)))))
            assert same(form, have, want), (mnemonic, hex(x), hex(y), hex(have), hex(want))
        assert returned is None or np.array_equal(returned, a)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_packed_sums_are_those_of_each_half(kind: str) -> None:
    form = FORMATS[kind]
    halves = [draw(form, seed).astype(np.uint32) for seed in (6, 7, 8, 9)]
    cells, operand = halves[0] | halves[1] << np.uint32(16), halves[2] | halves[3] << np.uint32(16)
    for mnemonic in ("atom", "red"):
        after, _ = run(f"{mnemonic}.SPACE.add.noftz.{kind}x2", cells, [operand], "global")
        for n in range(COUNT):
            for shift in (0, 16):
                x, y, have = (int(word[n]) >> shift & 0xFFFF for word in (cells, operand, after))
                assert same(form, have, form.encode(add(form.decode(x), form.decode(y)))), (hex(x), hex(y), hex(have))


VECTORS = [("add", "v2", "f32"), ("add", "v4", "f32")]
VECTORS += [
    (name, count, kind) for name in ("add", "min", "max") for count in ("v2", "v4", "v8") for kind in ("f16", "bf16")
]
VECTORS += [
    (name, count, f"{kind}x2") for name in ("add", "min", "max") for count in ("v2", "v4") for kind in ("f16", "bf16")
]


@pytest.mark.parametrize(("name", "count", "kind"), VECTORS)
def test_vector_atomics_are_those_of_each_element(name: str, count: str, kind: str) -> None:
    elements, scalar = int(count[1]), kind.removesuffix("x2")
    form, size = FORMATS[scalar], 2 if kind in ("f16", "bf16") else 4
    rng = np.random.default_rng(1)
    total = 32 * elements * (size * 8 // form.bits)
    a, b = draw(form, 10, total), draw(form, 11, total)
    if name != "add":  # a NaN beside a number is asked of min and max elsewhere
        a = np.where([form.is_nan(x) for x in a.tolist()], rng.integers(0, 100, total), a).astype(a.dtype)
        b = np.where([form.is_nan(x) for x in b.tolist()], rng.integers(0, 100, total), b).astype(b.dtype)
    noftz = "" if scalar == "f32" else ".noftz"
    letter = REGISTER[size]
    registers = "{" + ", ".join(f"{letter}{n}" for n in range(elements)) + "}"
    loads = "".join(f"ld.global.b{8 * size} {letter}{n}, [%d2+{size * n}];" for n in range(elements))
    wide = elements * size
    text = f""".version 8.8\n.target sm_100a\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b) {{
        .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .b32 %t;
        mov.u32 %t, %tid.x; ld.param.u64 %d1, [a]; mad.wide.u32 %d1, %t, {wide}, %d1;
        ld.param.u64 %d2, [b]; mad.wide.u32 %d2, %t, {wide}, %d2; {loads}
        red.global.{count}.{name}{noftz}.{kind} [%d1], {registers}; ret; }}"""
    after = a.copy()
    emulator.load(text).launch("k", (1,), (32,), [after, b])
    flush = form.flush if scalar == "f32" else lambda code: code
    for x, y, have in zip(a.tolist(), b.tolist(), after.tolist(), strict=True):
        if name == "add":
            want = flush(form.encode(add(form.decode(flush(x)), form.decode(flush(y)))))
        else:
            want = extreme_code(name, form, x, y)
        assert same(form, have, want), (hex(x), hex(y), hex(have), hex(want))


def test_a_grid_counts_in_one_cell_and_every_old_value_is_seen_once() -> None:
    text = """.version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b) {
        .reg .b32 %r<9>; .reg .b64 %d<9>; ld.param.u64 %d1, [a]; ld.param.u64 %d2, [b];
        atom.global.add.u32 %r1, [%d1], 1; mul.wide.u32 %d3, %r1, 4; add.s64 %d3, %d2, %d3;
        red.global.add.u32 [%d3], 1; ret; }"""
    cell, seen = np.zeros(1, np.uint32), np.zeros(1024, np.uint32)
    emulator.load(text).launch("k", (8,), (128,), [cell, seen])
    assert cell[0] == 1024 and (seen == 1).all()


def test_compare_and_swap_of_128_bits() -> None:
    text = """.version 8.8\n.target sm_90\n.address_size 64
    .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c) {
        .reg .b32 %t; .reg .b64 %d<9>; .reg .b128 %q<9>; mov.u32 %t, %tid.x;
        ld.param.u64 %d1, [a]; mad.wide.u32 %d1, %t, 16, %d1; ld.param.u64 %d2, [b]; mad.wide.u32 %d2, %t, 32, %d2;
        ld.param.u64 %d3, [c]; mad.wide.u32 %d3, %t, 16, %d3;
        ld.global.b128 %q1, [%d2]; ld.global.b128 %q2, [%d2+16]; atom.global.cas.b128 %q3, [%d1], %q1, %q2;
        st.global.b128 [%d3], %q3; ret; }"""
    cells = patterns(64, 64, 1).reshape(32, 2)
    operands = patterns(64, 128, 2).reshape(32, 2, 2)
    operands[::2, 0] = cells[::2]
    operands[1::4, 0, 0] = cells[1::4, 0]  # equal in the low half alone
    after, returned = cells.copy(), np.zeros_like(cells)
    emulator.load(text).launch("k", (1,), (32,), [after, operands, returned])
    assert np.array_equal(returned, cells)
    swapped = (operands[:, 0] == cells).all(axis=1)
    assert np.array_equal(after, np.where(swapped[:, None], operands[:, 1], cells)) and swapped.sum() == 16
    assert UNSIGNED[8] is np.uint64
