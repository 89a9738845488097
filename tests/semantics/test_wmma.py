"""wmma: loads, products and stores of whole matrices in every shape, type and layout, on exact values."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.semantics.formats import FORMATS, exactly
from tests.semantics.harness import UNSIGNED, Array
from tests.semantics.test_matrix import BITS, accumulate, draw, encode

SQUARE, WIDE, TALL = (16, 16, 16), (8, 32, 16), (32, 8, 16)
# Registers of A and B: halves take all 8 whatever the shape; bytes and bf16 have each element once.
Case = tuple[
    tuple[int, int, int], str, str, int, int, str, str
]  # shape, types of A and B, registers of A and B, types of D, C
CASES: list[Case] = [
    (shape, "f16", "f16", 8, 8, d, c)
    for shape in (SQUARE, WIDE, TALL)
    for d, c in (("f32", "f32"), ("f16", "f16"), ("f32", "f16"), ("f16", "f32"))
]
CASES += [(shape, "bf16", "bf16", a, b, "f32", "f32") for shape, a, b in ((SQUARE, 4, 4), (WIDE, 2, 8), (TALL, 8, 2))]
CASES += [
    (shape, kind, kind, a, b, "s32", "s32")
    for kind in ("s8", "u8")
    for shape, a, b in ((SQUARE, 2, 2), (WIDE, 1, 4), (TALL, 4, 1))
]
CASES += [((16, 16, 8), "tf32", "tf32", 4, 4, "f32", "f32"), ((8, 8, 4), "f64", "f64", 1, 1, "f64", "f64")]
CASES += [((8, 8, 32), kind, kind, 1, 1, "s32", "s32") for kind in ("s4", "u4")]
CASES += [((8, 8, 128), "b1", "b1", 1, 1, "s32", "s32")]
REGISTERS = {"f16": 4, "f32": 8, "s32": 8, "f64": 2}


def packed(codes: Array, bits: int, layout: str, stride: int, seed: int) -> Array:
    """A matrix in memory, row- or column-major with a stride in elements; what lies between is noise."""
    lines = codes if layout == "row" else codes.T
    memory = np.random.default_rng(seed).integers(0, 1 << min(bits, 32), (len(lines), stride), dtype=np.uint64)
    memory[:, : lines.shape[1]] = lines
    if bits >= 8:
        return memory.astype(UNSIGNED[bits // 8])
    digits = memory.reshape(len(lines), -1, 8 // bits)
    return (digits << (np.arange(8 // bits, dtype=np.uint64) * np.uint64(bits))).sum(-1).astype(np.uint8)


def braces(letter: str, count: int) -> str:
    return "{" + ", ".join(f"%{letter}{i}" for i in range(count)) + "}"


def run(
    case: Case, layouts: tuple[str, str, str], extra: int, middle: str, space: str, codes: dict[str, Array]
) -> Array:
    (m, n, k), a_type, b_type, a_count, b_count, d_type, c_type = case
    shape = f"m{m}n{n}k{k}"
    small = m == n == 8
    counts = {
        "a": a_count,
        "b": b_count,
        "c": 2 if small else REGISTERS[c_type],
        "d": 2 if small else REGISTERS[d_type],
    }
    kinds = {"a": a_type, "b": b_type, "c": c_type, "d": d_type}
    extents = {"a": (m, k), "b": (k, n), "c": (m, n), "d": (m, n)}
    layout = dict(zip("abcd", (*layouts, layouts[2]), strict=True))
    stride = {x: extents[x][layout[x] == "row"] + extra for x in "abcd"}
    memory = {x: packed(codes[x], BITS[kinds[x]], layout[x], stride[x], ord(x)) for x in "abc"}
    memory["d"] = np.zeros_like(packed(np.zeros((m, n), np.uint64), BITS[d_type], layout["d"], stride["d"], 0))
    width = {x: 64 if kinds[x] == "f64" else 32 for x in "abcd"}
    declared = " ".join(f".reg .b{width[x]} %{x}<{counts[x]}>;" for x in "abcd")
    where = f".{space}" if space else ""
    begin = "".join(f"ld.param.u64 %p{i}, [{x}];" for i, x in enumerate("abcd"))
    fragment = {x: braces(x, counts[x]) for x in "abcd"}
    loads = "".join(
        f"wmma.load.{x}.sync.aligned.{layout[x]}.{shape}{where}.{kinds[x]} {fragment[x]}, [%p{i}], {stride[x]};"
        for i, x in enumerate("abc")
    )
    text = f""".version 8.0\n.target sm_80\n.address_size 64
    .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d) {{
        {declared} .reg .b64 %p<4>; {begin} {loads}
        {middle.format(layouts=f"{layout['a']}.{layout['b']}", shape=shape)}
            {fragment["d"]}, {fragment["a"]}, {fragment["b"]}, {fragment["c"]};
        wmma.store.d.sync.aligned.{layout["d"]}.{shape}{where}.{d_type} [%p3], {fragment["d"]}, {stride["d"]};
        ret; }}"""
    emulator.load(text).launch("k", (1,), (32,), [memory[x] for x in "abcd"])
    lines = memory["d"][:, : m if layout["d"] == "col" else n]
    return lines if layout["d"] == "row" else lines.T


def values_of(case: Case) -> dict[str, Array]:
    """Of halves such small ones that no sum is rounded in f16 either, in whatever order a GPU adds."""
    (m, n, k), a_type, b_type, *_ = case
    a, b = draw(a_type, (m, k), 1), draw(b_type, (k, n), 2)
    if a_type == "f16":
        a, b = a % 16 - 8, b % 16 - 8
    return {"a": a, "b": b, "c": np.random.default_rng(3).integers(-99, 99, (m, n))}


def layouts_of(case: Case) -> list[tuple[str, str, str]]:
    if BITS[case[1]] < 8:
        return [("row", "col", "row"), ("row", "col", "col")]
    return list(product(("row", "col"), repeat=3))


@pytest.mark.parametrize("case", [case for case in CASES if case[1] != "b1"], ids=str)
def test_a_product_of_whole_matrices(case: Case) -> None:
    _, a_type, b_type, _, _, d_type, c_type = case
    values = values_of(case)
    codes = {x: encode(values[x], kind) for x, kind in (("a", a_type), ("b", b_type), ("c", c_type))}
    wanted = accumulate(values["a"], values["b"], values["c"])
    types = f"{d_type}.{c_type}" if a_type == "f16" else f"{d_type}.{a_type}.{b_type}.{c_type}"
    for number, layouts in enumerate(layouts_of(case)):
        extra = (0, 64)[number % 2]
        space = ("", "global")[number // 2 % 2]
        got = run(case, layouts, extra, f"wmma.mma.sync.aligned.{{layouts}}.{{shape}}.{types}", space, codes)
        if d_type == "s32":
            assert (got.astype(object) == wanted % (1 << 32)).all(), layouts
        else:
            form = FORMATS[d_type]
            expected = [form.decode(form.encode(exactly(Fraction(int(w))))).value for w in wanted.flat]
            assert [form.decode(int(code)).value for code in got.flat] == expected, layouts


@pytest.mark.parametrize("operation", ["xor", "and"])
def test_a_product_of_bits(operation: str) -> None:
    case = CASES[-1]
    values = values_of(case)
    codes = {x: encode(values[x], kind) for x, kind in (("a", "b1"), ("b", "b1"), ("c", "s32"))}
    middle = f"wmma.mma.{operation}.popc.sync.aligned.{{layouts}}.{{shape}}.s32.b1.b1.s32"
    a, b = values["a"][:, :, None], values["b"][None]
    wanted = (a & b if operation == "and" else a ^ b).sum(1) + values["c"]
    for layouts in layouts_of(case):
        got = run(case, layouts, 0, middle, "global", codes)
        assert (got.astype(np.int64) == wanted % (1 << 32)).all()


@pytest.mark.parametrize("kind", ["s8", "u8", "s4", "u4"])
def test_saturation_of_integer_sums(kind: str) -> None:
    case = next(case for case in CASES if case[1] == kind)
    values = values_of(case)
    values["c"] = np.where(np.random.default_rng(4).random(values["c"].shape) < 0.5, (1 << 31) - 5, -(1 << 31) + 5)
    codes = {x: encode(values[x], k) for x, k in (("a", kind), ("b", kind), ("c", "s32"))}
    form = f"wmma.mma.sync.aligned.{{layouts}}.{{shape}}.satfinite.s32.{kind}.{kind}.s32"
    got = run(case, ("row", "col", "row"), 0, form, "global", codes)
    wanted = accumulate(values["a"], values["b"], values["c"])
    limited = [min(max(int(w), -(1 << 31)), (1 << 31) - 1) % (1 << 32) for w in wanted.flat]
    assert got.ravel().tolist() == limited
