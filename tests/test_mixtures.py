"""Products with weights of several terms, widths and digits in one launch: equal to int64 numpy, or within a bound."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.integers import PackedDigits
from lowbitvm.mixtures import MixedWeight
from lowbitvm.runtime import mixture
from lowbitvm.runtime.mixture import run_complex, run_mixed
from tests.test_digits import drawn

Array = np.ndarray[Any, Any]


def activations(act: str, m: int, k: int, digits: str, seed: int = 0, scaled: bool = False) -> PackedDigits:
    fmt = lb.Format(act, "channel", scale="f32", digits=digits)
    scales = np.random.default_rng(seed).uniform(0.5, 2, (m, 1)).astype(np.float32) if scaled else None
    return lb.pack_activations(drawn(act, (m, k), seed), fmt, scales)


def weights(
    code: str, act: str, n: int, k: int, digits: str, seed: int = 1, scaled: bool = False, zero: bool = False
) -> PackedDigits:
    fmt = lb.Format(code, "channel", zero="int" if zero else None, scale="f32", act=act, digits=digits)
    scales = np.random.default_rng(seed).uniform(0.5, 2, (n, 1)).astype(np.float32) if scaled else None
    return lb.pack_weights(drawn(code, (n, k), seed), fmt, scales, drawn(code, (n, 1), seed + 1) if zero else None)


def numbers(side: PackedDigits) -> Array:
    codes = side.unpack().astype(np.int64)
    return codes if side.zeros is None else codes - np.asarray(side.zeros)[:, None]


def product(a: PackedDigits, w: PackedDigits) -> Array:
    """The exact integers, or their f32 times both scales."""
    found: Array = numbers(a) @ numbers(w).T
    for side, axis in ((a, 1), (w, 0)):
        if side.scales is not None:
            found = found.astype(np.float32) * np.expand_dims(np.asarray(side.scales), axis)
    return found


def exact(sides: Sequence[PackedDigits], w: MixedWeight) -> Array:
    """The product that the docstrings promise, without a branch: sums of parts of k and of terms, in order."""
    m, n = sides[0].rows, w.shape[0]
    found: Array = np.zeros((m, n), np.float32 if any(x.scales is not None for x in (*sides, *w.weights)) else np.int64)
    for part, blocks in enumerate(w.parts):
        values = [product(a, weight) for a, block in zip(sides, blocks, strict=True) for weight in block]
        total = values[0].astype(found.dtype)
        for value in values[1:]:
            total = total + value.astype(found.dtype)
        found[:, slice(None) if w.rows is None else np.asarray(w.rows[part])] = total
    return found


def check(sides: Sequence[PackedDigits], w: MixedWeight, target: str = "sm_80", seed: int = 0) -> dict[str, Any]:
    """Emulator with all checks, numpy and, on sm_80, the interpreter equal `exact`; returns the traffic by array."""
    expected = exact(sides, w)
    y = np.full(expected.shape, -1, np.float32 if expected.dtype == np.float32 else np.int32)
    report = run_mixed(sides, w, y, target, checks="all", on_finding="raise", seed=seed)
    assert report is not None and not report.findings
    assert np.array_equal(y, expected)
    assert np.array_equal(lb.mixed_matmul(sides, w, "f32" if y.dtype == np.float32 else None), expected)
    if target == "sm_80":
        assert np.array_equal(interpreted(sides, w, y.dtype.name), expected)
    return {traffic.name: traffic for traffic in report.counters.arrays.values()}


def interpreted(sides: Sequence[PackedDigits], w: MixedWeight, out: str) -> Array:
    variant = mixture._variant(sides, w, {"float32": "f32", "int32": "i32"}[out], "sm_80", None)
    given, program = mixture._arguments(sides, w, None), variant.program()
    y = np.full((sides[0].rows, w.shape[0]), -1, out)
    taken = {array.name: given[array.name] for array in program.arrays if array.name != "y"}
    columns = sum(-(-part[0][0].rows // variant.tile.bn) for part in w.parts)
    lb.interpret(program, (-(-sides[0].rows // variant.tile.bm), columns), {"y": y, **taken})
    return y


# -- terms of a sum ----------------------------------------------------------------------------------------------------

TERMS = [("bp1", "bp1"), ("u1", "u1"), ("ternary", "ternary"), ("i4", "u2", "bp3")]


@pytest.mark.parametrize("digits", ["s8", "b1"])
@pytest.mark.parametrize("codes", TERMS)
@pytest.mark.parametrize("m", [1, 6, 70])
def test_a_sum_of_terms_is_one_product_that_reads_activations_once(m: int, codes: Sequence[str], digits: str) -> None:
    """Dual binarisation, trit planes, and terms of other widths, each with a scale for every output feature."""
    a = activations("i8", m, 600, digits, scaled=True)
    w = lb.mix_terms(*(weights(code, "i8", 50, 600, digits, 2 + i, scaled=True) for i, code in enumerate(codes)))
    traffic = check([a], w)
    whole = sum(traffic[name].distinct_read for name in traffic if name.startswith("w") and name.endswith("$words"))
    assert whole <= sum(int(term.words.nbytes) for term in w.weights)
    tile = mixture._variant([a], w, "f32", "sm_80", None).tile
    rows = -(-m // tile.bm) * tile.bm  # those beyond m are read again
    assert traffic["a0$words"].read <= -(-50 // tile.bn) * a.words.nbytes * rows // m


def test_terms_without_scales_are_exact_integers() -> None:
    a = activations("u5", 9, 333, "s8")
    check([a], lb.mix_terms(weights("i3", "u5", 40, 333, "s8"), weights("ternary", "u5", 40, 333, "s8", 5)))


def test_terms_may_have_zeros() -> None:
    a = activations("i8", 4, 256, "b1", scaled=True)
    check([a], lb.mix_terms(*(weights("u2", "i8", 33, 256, "b1", seed, True, zero=True) for seed in (1, 4))))


@pytest.mark.parametrize("m", [1, 40])
@pytest.mark.parametrize("kind", ["terms", "columns", "rows"])
def test_scales_may_belong_to_groups_of_k(kind: str, m: int) -> None:
    """Trit planes per group, and the other mixtures of weights with groups: each product as `lb.matmul` makes it."""
    rng = np.random.default_rng(8)
    fmt = lb.Format("ternary", 128, scale="f32", act="i8")
    mixed = [
        lb.pack_weights(rng.integers(-1, 2, (33, 512)), fmt, rng.uniform(0.5, 2, (33, 4)).astype(np.float32))
        for _ in range(2)
    ]
    sides = [
        lb.pack_activations(
            rng.integers(-128, 128, (m, 512)),
            lb.Format("i8", "channel", scale="f32", digits="s8"),
            np.ones((m, 1), np.float32),
            sums=128,
        )
        for _ in range(1 + (kind == "columns"))
    ]
    products = [lb.matmul(a, w, "f32") for a, w in zip(2 * sides, mixed, strict=False)]
    make = {"terms": lb.mix_terms, "columns": lb.mix_columns, "rows": lambda *both: lb.mix_rows(both)}[kind]
    expected = np.concatenate(products, 1) if kind == "rows" else products[0] + products[1]
    y = np.zeros(expected.shape, np.float32)
    report = run_mixed(sides, make(*mixed), y, "sm_80", checks="all", on_finding="raise")
    assert report is not None and not report.findings and np.array_equal(y, expected)
    assert np.array_equal(lb.mixed_matmul(sides, make(*mixed), "f32"), expected)


# -- parts of the in_features ------------------------------------------------------------------------------------------

COLUMNS = [  # target; activations, weights, digits and in_features of every part
    ("sm_80", (("i8", "i4", "s8", 256), ("i4", "i4", "s4", 512))),
    ("sm_80", (("i8", "i4", "s8", 130), ("i4", "i4", "s8", 700))),
    ("sm_90a", (("i8", "u4", "s8", 64), ("i4", "u4", "s8", 64), ("u2", "i2", "s8", 300))),
    ("sm_75", (("i8", "u4", "s8", 64), ("i4", "u4", "s4", 640))),
    ("sm_80", (("i8", "u2", "b1", 512), ("i4", "i2", "b1", 1100))),
    ("sm_80", (("i8", "i8", "s8", 100), ("i4", "i2", "b1", 1100))),
]


@pytest.mark.parametrize(("target", "parts"), COLUMNS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("m", [1, 7, 90])
def test_parts_of_k_have_activations_of_their_own_widths(m: int, scaled: bool, target: str, parts: Any) -> None:
    sides = [activations(act, m, k, digits, i, scaled) for i, (act, _, digits, k) in enumerate(parts)]
    mixed = [weights(code, act, 70, k, digits, i, scaled) for i, (act, code, digits, k) in enumerate(parts)]
    check(sides, lb.mix_columns(*mixed), target)


def test_columns_by_width_make_blocks_of_one_width_neighbours() -> None:
    rng = np.random.default_rng(0)
    widths = [4, 8, 4, 4, 8]
    columns = lb.columns_by_width(widths, 64)
    assert list(columns) == [8, 4] and columns[8].tolist() == [*range(64, 128), *range(256, 320)]
    codes, w_codes = rng.integers(-8, 8, (5, 320)), rng.integers(-8, 8, (30, 320))
    codes[:, columns[8]] *= 16
    sides = [lb.pack_activations(codes[:, columns[width]], lb.Format(f"i{width}", digits="s8")) for width in columns]
    mixed = [lb.pack_weights(w_codes[:, columns[width]], lb.Format("i4", act=f"i{width}")) for width in columns]
    assert np.array_equal(lb.mixed_matmul(sides, lb.mix_columns(*mixed)), codes @ w_codes.T)


# -- parts of the out_features -----------------------------------------------------------------------------------------

ROWS = [("i8", "i4"), ("i2", "u4", "bp8"), ("u3",)]


@pytest.mark.parametrize("digits", ["s8", "b1"])
@pytest.mark.parametrize("codes", ROWS)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("m", [1, 40])
def test_output_features_of_several_widths_are_one_product_in_their_own_order(
    m: int, scaled: bool, codes: Sequence[str], digits: str
) -> None:
    counts = [37, 100, 5][: len(codes)]
    order = np.random.default_rng(3).permutation(sum(counts))
    rows = np.split(order, np.cumsum(counts)[:-1])
    mixed = [
        weights(code, "i8", n, 520, digits, i, scaled) for i, (code, n) in enumerate(zip(codes, counts, strict=True))
    ]
    a = activations("i8", m, 520, digits, scaled=scaled)
    traffic = check([a], lb.mix_rows(mixed, rows), seed=m)
    stored = sum(int(w.words.nbytes) for w in mixed)
    read = sum(t.distinct_read for name, t in traffic.items() if name[0] == "w" and "$words" in name)
    assert read <= stored


@pytest.mark.parametrize("m", [1, 8, 40])
def test_codes_of_several_widths_are_read_once(m: int) -> None:
    mixed = [weights(code, "i8", n, 1024, "s8") for code, n in (("i8", 64), ("u3", 192))]
    traffic = check([activations("i8", m, 1024, "s8")], lb.mix_rows(mixed))
    read = sum(t.read for name, t in traffic.items() if name[0] == "w" and "$words" in name)
    assert read == sum(int(w.words.nbytes) for w in mixed) == (64 * 8 + 192 * 3) * 1024 // 8


def test_rows_are_consecutive_unless_told_otherwise() -> None:
    a = activations("i8", 3, 100, "s8")
    mixed = [weights("u2", "i8", 20, 100, "s8", 1), weights("u4", "i8", 30, 100, "s8", 2)]
    expected = np.concatenate([product(a, w) for w in mixed], 1)
    assert np.array_equal(lb.mixed_matmul(a, lb.mix_rows(mixed)), expected)


@settings(max_examples=10)
@given(
    m=st.integers(1, 90),
    counts=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    ks=st.lists(st.integers(1, 700), min_size=1, max_size=2),
    terms=st.integers(1, 2),
    scaled=st.booleans(),
    native=st.sampled_from([("sm_80", "b1"), ("sm_80", "s4"), ("sm_75", "s8"), ("sm_90a", "s8"), ("sm_120f", "s8")]),
    seed=st.integers(0, 99),
)
def test_mixtures_of_all_three_kinds_are_exact(
    m: int, counts: list[int], ks: list[int], terms: int, scaled: bool, native: tuple[str, str], seed: int
) -> None:
    target, digits = native
    rng = np.random.default_rng(seed)
    acts = [str(rng.choice(["i8", "u4", "bp3", "i2"])) for _ in ks]

    def one(n: int) -> MixedWeight:
        parts = []
        for act, k in zip(acts, ks, strict=True):
            codes = [str(rng.choice(["i8", "u2", "bp1", "ternary", "i3"])) for _ in range(terms)]
            own = [weights(code, act, n, k, digits, int(rng.integers(99)), scaled) for code in codes]
            parts.append(lb.mix_terms(*own))
        return lb.mix_columns(*parts)

    rows = np.split(rng.permutation(sum(counts)), np.cumsum(counts)[:-1])
    w = lb.mix_rows([one(n) for n in counts], rows)
    sides = [activations(act, m, k, digits, seed, scaled) for act, k in zip(acts, ks, strict=True)]
    check(sides, w, target, seed)


# -- branches ----------------------------------------------------------------------------------------------------------


def branch_bound(a: PackedDigits, w: PackedDigits, dense: Array, v: Array) -> tuple[Array, Array]:
    """The product in f64, and how far the f32 result may be off: two roundings and the sum of the dense products.

    Those are truncated at each of the k8 or k16 steps, and rounded when they are added to the rest.
    """
    integers = numbers(a).astype(np.float64) @ numbers(w).T.astype(np.float64)
    scaled = integers * np.asarray(a.scales, np.float64)[:, None] * np.asarray(w.scales, np.float64)
    dense, v = dense.astype(np.float64), v.astype(np.float64)
    size = abs(scaled) + abs(dense) @ abs(v).T
    return scaled + dense @ v.T, (v.shape[1] // 8 + 8) * 2.0**-23 * size


@pytest.mark.parametrize(("target", "dtype"), [("sm_80", "float16"), ("sm_75", "float16"), ("sm_90a", "bfloat16")])
@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize("rank", [3, 16, 128])
@pytest.mark.parametrize("m", [1, 33])
def test_dense_columns_are_added_in_the_same_launch(m: int, rank: int, gathers: bool, target: str, dtype: str) -> None:
    """Outliers in full precision, or a branch of low rank."""
    n, k, rng = 50, 300, np.random.default_rng(4)
    torch_type = getattr(torch, dtype)
    columns = rng.permutation(k)[:rank].astype(np.int32)
    x = torch.from_numpy(rng.normal(size=(m, k if gathers else rank))).to(torch_type)
    v = torch.from_numpy(rng.normal(size=(n, rank))).to(torch_type)
    digits = "b1" if target == "sm_80" and m == 1 else "s8"
    a, w = activations("i8", m, k, digits, scaled=True), weights("i4", "i8", n, k, digits, scaled=True)
    dense = (x[:, columns] if gathers else x).double().numpy()
    expected, bound = branch_bound(a, w, dense, v.double().numpy())
    if dtype == "float16":
        x_host, v_host = x.numpy(), v.numpy()
    else:
        x_host, v_host = (t.view(torch.int16).numpy().view(lb.bf16.numpy) for t in (x, v))
    mixed = lb.mix_branch(w, v_host, columns if gathers else None)
    y = np.zeros((m, n), np.float32)
    report = run_mixed([a], mixed, y, target, x=x_host, checks="all", on_finding="raise")
    assert report is not None and not report.findings
    assert (abs(y - expected) <= bound).all()
    assert (abs(lb.mixed_matmul(a, mixed, "f32", x=x_host) - expected) <= bound).all()


def test_a_branch_of_rows_of_several_widths_keeps_their_order() -> None:
    rng = np.random.default_rng(5)
    order = rng.permutation(60)
    mixed = [weights("u4", "i8", 40, 128, "s8", 1, True), weights("i8", "i8", 20, 128, "s8", 2, True)]
    v, x = rng.normal(size=(60, 8)).astype(np.float16), rng.normal(size=(5, 8)).astype(np.float16)
    w = lb.mix_branch(lb.mix_rows(mixed, [order[:40], order[40:]]), v)
    a = activations("i8", 5, 128, "s8", scaled=True)
    y = np.zeros((5, 60), np.float32)
    run_mixed([a], w, y, "sm_80", x=x, checks="all", on_finding="raise")
    for own, part in ((order[:40], mixed[0]), (order[40:], mixed[1])):
        expected, bound = branch_bound(a, part, x, v[own])
        assert (abs(y[:, own] - expected) <= bound).all()


# -- complex numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "digits"), [("sm_80", "s8"), ("sm_80", "b1"), ("sm_80", "s4"), ("sm_75", "b1")])
@pytest.mark.parametrize("act", ["i8", "u4", "bp2"])
@pytest.mark.parametrize("shape", [(1, 40, 512), (30, 70, 301)])
def test_complex_products_are_exact_and_read_two_bits_for_every_weight(
    shape: tuple[int, int, int], act: str, target: str, digits: str
) -> None:
    m, n, k = shape
    codes = np.random.default_rng(6).choice([1, -1, 1j, -1j], (n, k))
    w = lb.pack_complex(codes, act, digits)
    re, im = (activations(act, m, k, digits, seed) for seed in (1, 2))
    expected = (re.unpack().astype(np.int64) + 1j * im.unpack().astype(np.int64)) @ codes.T
    outputs = tuple(np.full((m, n), -1, np.int32) for _ in range(2))
    report = run_complex(re, im, w, outputs, target, checks="all", on_finding="raise")
    assert report is not None and not report.findings
    for found in (outputs, lb.complex_matmul(re, im, w)):
        assert np.array_equal(found[0], expected.real) and np.array_equal(found[1], expected.imag)
    if m == 1:
        read = [t.distinct_read for t in report.counters.arrays.values() if t.name in ("plus$words", "minus$words")]
        assert sum(read) == w.plus.words.nbytes + w.minus.words.nbytes == 48 * k * 2 // 8


def test_the_largest_complex_codes_are_exact_up_to_the_longest_k() -> None:
    one = np.ones((1, 1))
    most = (2**31 - 1) // 255 // 2

    def sides(k: int) -> tuple[PackedDigits, PackedDigits, Any]:
        full = lb.pack_activations(np.full((1, k), 255), "u8")
        return full, full, lb.pack_complex(np.broadcast_to(one * 1j, (1, k)), "u8")

    re, im = lb.complex_matmul(*sides(4_000))
    assert re.item() == -255 * 4_000 and im.item() == 255 * 4_000
    with pytest.raises(lb.LowbitvmError, match=f"ARGUMENT_INVALID: in_features.*at most {most}"):
        lb.complex_matmul(*sides(most + 1))


# -- what users see ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["", "emulator:sm_86"])
def test_tensors_give_tensors(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWBITVM_DEVICE", device)
    rng = np.random.default_rng(7)
    codes = torch.from_numpy(rng.integers(-8, 8, (30, 100)))
    scales = torch.ones(30, 1)
    fmt = lb.Format("i4", "channel", scale="f32", act="i8")
    w = lb.mix_rows([lb.pack_weights(codes[:20], fmt, scales[:20]), lb.pack_weights(codes[20:], fmt, scales[20:])])
    w = lb.mix_branch(w, torch.ones(30, 8, dtype=torch.float16), torch.arange(8)).to("cpu")
    x = torch.from_numpy(rng.integers(-9, 9, (3, 100))).half()
    a = lb.pack_activations(torch.from_numpy(rng.integers(-128, 128, (3, 100))), lb.Format("i8", digits="s8"))
    y = lb.mixed_matmul(a, w, torch.float32, x=x)
    assert isinstance(y, torch.Tensor) and y.dtype == torch.float32
    expected = a.unpack().double() @ codes.double().T + x[:, :8].double().sum(1, keepdim=True)
    assert torch.equal(y.double(), expected)  # whole numbers below 2^24
    complex_codes = torch.from_numpy(rng.choice([1, 1j], (4, 100)))
    re, im = lb.complex_matmul(a, a, lb.pack_complex(complex_codes).to("cpu"))
    both = a.unpack().to(torch.complex128) * (1 + 1j) @ complex_codes.T
    assert torch.equal(re, both.real.int()) and torch.equal(im, both.imag.int())
    assert repr(w).startswith("MixedWeight('i4,") and w.shape == (30, 100) and w.nbytes > 30 * 100 // 2


def test_what_cannot_be_mixed_is_refused() -> None:
    a, w = activations("i8", 2, 64, "s8"), weights("u4", "i8", 16, 64, "s8")
    other, shorter = weights("u4", "i4", 16, 64, "s8"), weights("u4", "i8", 16, 32, "s8")
    rows, columns = lb.mix_rows([w, w]), lb.mix_columns(w, w)
    v, x = np.ones((16, 8), np.float16), np.ones((2, 8), np.float16)
    branch = lb.mix_branch(w, v)
    fewer = activations("i8", 1, 64, "s8")
    grouped = lb.pack_weights(np.ones((8, 64), int), "i8,group=64,scale=f32,act=i8", np.ones((8, 1), np.float32))
    wide = lb.pack_weights(np.zeros((1, 30000), int), "u8,act=u8")
    long = lb.pack_activations(np.zeros((1, 30000), int), "u8")
    for code, make in (
        ("ARGUMENT_INVALID: PackedDigits.* in a mixture", lambda: lb.mix_terms(a)),
        ("ARGUMENT_INVALID: a int in a mixture", lambda: lb.mix_rows([3])),  # type: ignore[list-item]
        ("FORMAT_UNSUPPORTED: weights for i8 in digits of s8 and for i4", lambda: lb.mix_terms(w, other)),
        ("SHAPE_MISMATCH: terms of shapes", lambda: lb.mix_terms(w, shorter)),
        ("SHAPE_MISMATCH: parts of .16, 32. out_features", lambda: lb.mix_columns(w, weights("u4", "i8", 32, 9, "s8"))),
        ("ARGUMENT_INVALID: a weight that is mixed of in_features", lambda: lb.mix_columns(columns, w)),
        ("ARGUMENT_INVALID: a weight that is mixed of out_features", lambda: lb.mix_columns(rows, rows)),
        ("ARGUMENT_INVALID: a weight that is mixed of branches", lambda: lb.mix_rows([branch, branch])),
        ("SHAPE_MISMATCH: weights of shapes", lambda: lb.mix_rows([w, shorter])),
        ("FORMAT_UNSUPPORTED: weights for i8", lambda: lb.mix_rows([w, other])),
        ("FORMAT_UNSUPPORTED: scales of groups of", lambda: lb.mixed_matmul(a, lb.mix_rows([w, grouped]))),
        ("SHAPE_MISMATCH: rows of shapes", lambda: lb.mix_rows([w], [np.arange(3)])),
        ("ARGUMENT_INVALID: rows that are not every out_feature", lambda: lb.mix_rows([w], [np.zeros(16, int)])),
        ("ARGUMENT_INVALID: a second branch", lambda: lb.mix_branch(branch, v)),
        ("SHAPE_MISMATCH: a branch of shape", lambda: lb.mix_branch(w, v[:3])),
        ("DTYPE_MISMATCH: a branch of f32", lambda: lb.mix_branch(w, v.astype(np.float32))),
        ("SHAPE_MISMATCH: columns of shape", lambda: lb.mix_branch(w, v, np.arange(3))),
        ("ARGUMENT_INVALID: columns that are no in_features", lambda: lb.mix_branch(w, v, np.arange(8) - 1)),
        ("ARGUMENT_INVALID: w is a PackedDigits", lambda: lb.mixed_matmul(a, w)),  # type: ignore[arg-type]
        ("SHAPE_MISMATCH: 1 matrices of activations for 2 parts", lambda: lb.mixed_matmul(a, columns)),
        ("SHAPE_MISMATCH: activations of 2 and 1 rows", lambda: lb.mixed_matmul([a, fewer], columns)),
        ("ARGUMENT_INVALID: a sum of products that may", lambda: lb.mixed_matmul(long, lb.mix_terms(wide, wide))),
        ("ARGUMENT_INVALID: a branch without x", lambda: lb.mixed_matmul(a, branch)),
        ("ARGUMENT_INVALID: dense activations for", lambda: lb.mixed_matmul(a, rows, x=x)),
        ("DTYPE_MISMATCH: x of f32", lambda: lb.mixed_matmul(a, branch, x=x.astype(np.float32))),
        ("SHAPE_MISMATCH: x of shape", lambda: lb.mixed_matmul(a, branch, x=x[:, :7])),
        ("SHAPE_MISMATCH: x of shape", lambda: lb.mixed_matmul(a, lb.mix_branch(w, v, np.arange(8)), x=x[:, :7])),
        ("DTYPE_MISMATCH: a product in f16", lambda: lb.mixed_matmul(a, rows, "f16")),
        ("DEVICE_MISMATCH", lambda: lb.mixed_matmul(a, branch, x=torch.from_numpy(x))),
        ("SHAPE_MISMATCH: codes of shape", lambda: lb.pack_complex(np.ones(3))),
        ("CODES_OUT_OF_RANGE: complex codes", lambda: lb.pack_complex(np.zeros((3, 3)))),
        ("ARGUMENT_INVALID: parts of", lambda: lb.complex_matmul(a, fewer, lb.pack_complex(np.ones((3, 64))))),
    ):
        with pytest.raises(lb.LowbitvmError, match=code):
            make()


@pytest.mark.parametrize("target", targets.TARGETS)
def test_every_target_assembles_mixtures_natively_without_spills(target: str) -> None:
    parts = [weights("i4", "i8", 256, 512, "s8", 1, True), weights("i4", "i4", 256, 512, "s8", 2, True)]
    everything = lb.mix_branch(lb.mix_rows([lb.mix_columns(*parts)] * 2), np.ones((512, 32), np.float16))
    for m in (1, 40, 200):
        sides = [activations(act, m, 512, "s8", scaled=True) for act in ("i8", "i4")]
        for w, own in ((everything, sides), (lb.mix_terms(parts[0], parts[0]), sides[:1])):
            variant = mixture._variant(own, w, "f16", target, None)
            kernel = mixture._compiled(variant, target, None)
            assert kernel.spills == 0, (m, variant.tile)
    found = set(re.findall(r"\b[IBHQ]MMA", kernel.sass()))
    assert found == {"IMMA"}
