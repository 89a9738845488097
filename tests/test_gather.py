"""Loads whose columns an array of indices names, and the linear kernel for weights whose columns are permuted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import foreign
from lowbitvm.bounds import agrees, linear_bound, linear_exact
from lowbitvm.foreign.scheme import Foreign
from lowbitvm.plan import linear_plan, linear_tile
from lowbitvm.runtime.compiled import launch_grid
from lowbitvm.runtime.linear import Variant, run_linear
from lowbitvm.targets import TARGETS, get
from lowbitvm.tile import Tile

FMT = lb.Format("u4", group=64, zero="int")
BN, BK = 64, 64


def weight_of(fmt: lb.Format, n: int, k: int, seed: int = 0) -> lb.PackedWeight:
    rng = np.random.default_rng(seed)
    shape = fmt.scales_shape(n, k)
    codes = rng.integers(fmt.code.low, fmt.code.high + 1, (n, k))
    zeros = rng.integers(fmt.code.low, fmt.code.high + 1, shape) if fmt.zero == "int" else None
    scales = rng.uniform(0.25, 2.0, shape).astype(np.float16)
    return lb.pack(codes, scales, zeros, fmt, permutation=rng.permutation(k))


def activations(m: int, k: int, dtype: str = "f16") -> np.ndarray:
    return np.random.default_rng(m + k).standard_normal((m, k)).astype(lb.dtypes.get(dtype).numpy)


def run(variant: Variant, target: str, x: np.ndarray, weight: lb.PackedWeight, **options):
    """(y, the emulator's report) of one variant on a weight, whose permutation it is given if it takes one."""
    m, n, tile = len(x), weight.out_features, variant.tile
    kernel = lb.runtime.compiled.compile_program(variant.program(), target, tile.warps)
    y = np.full((m, n), 7, x.dtype)
    arguments = {"x": x, "w": weight, "y": y} | ({"order": weight.permutation} if variant.permuted else {})
    return y, lb.launch(kernel, launch_grid((m, n), (tile.bm, tile.bn)), arguments, **options)


def both(fmt: lb.Format, tile: Tile, target: str, m: int, n: int, k: int, act: str = "f16", **options):
    """[(y, report)] of a permuted weight with x, and of its stored columns with x[:, permutation]."""
    weight, x = weight_of(fmt, n, k), activations(m, k, act)
    variant = Variant(fmt, tile, act, act, vectorised=k % 8 == 0, permuted=True)
    ordered = np.ascontiguousarray(x[:, weight.permutation])
    return [
        run(variant, target, x, weight, **options),
        run(replace(variant, permuted=False), target, ordered, replace(weight, permutation=None), **options),
    ]


# -- the linear kernel -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("m", "n", "k"), [(3, 40, 192), (7, 600, 256), (17, 130, 320), (33, 24, 448), (70, 24, 64)])
def test_a_permuted_weight_gives_the_bits_of_its_stored_columns_and_permuted_activations(target, m, n, k):
    """With all checks on: no races, no read beyond an array, nothing uninitialised."""
    tile = linear_plan(m, n, k, FMT, get(target), permuted=True)
    act = "f16" if target == "sm_75" else "bf16"
    (y, report), (expected, _) = both(FMT, replace(tile, splits=1), target, m, n, k, act, schedule="adversarial")
    assert report.findings == [] and report.counters.conflict_degree == 1
    assert np.array_equal(y.view(np.uint16), expected.view(np.uint16))


@st.composite
def problems(draw):
    group = draw(st.sampled_from([32, 64, 128, 256, "channel", "tensor"]))
    bits = draw(st.sampled_from(["u4", "u3", "i8", "u1"]))
    k = draw(st.integers(1, 400)) if isinstance(group, str) else group * draw(st.integers(1, 700 // group))
    bm, warps = draw(st.sampled_from([8, 8, 16, 32])), draw(st.sampled_from([1, 2, 4, 8]))
    tile = Tile(bm, 16 * warps, draw(st.sampled_from([64, 128, 256])), draw(st.integers(2, 8)), warps)
    zero = draw(st.sampled_from([None, "int"]))
    return lb.Format(bits, group, zero), tile, draw(st.integers(0, 2 * bm)), draw(st.integers(1, 70)), k


@given(problems(), st.sampled_from(["sm_75", "sm_80"]))
@settings(max_examples=36, deadline=None)
def test_any_tile_and_size_gives_the_bits_of_permuted_activations(problem, target):
    fmt, tile, m, n, k = problem
    assume(tile.stages * (2 * tile.bm + fmt.bits * tile.bn // 8 + 8) * tile.bk < 60_000)
    (y, report), (expected, _) = both(fmt, tile, target, m, n, k)
    assert report is None or report.findings == []
    assert np.array_equal(y.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize(("m", "n", "k"), [(2, 48, 4096), (9, 20, 2048), (1, 8, 72)])
def test_interpreter_emulator_and_float64_agree_on_permuted_weights(m, n, k):
    fmt = FMT if k % 64 == 0 else lb.Format("u4", "channel")
    weight, x = weight_of(fmt, n, k), activations(m, k)
    exact, bound = linear_exact(x, weight), linear_bound(x, weight)
    emulated, interpreted = np.full((m, n), 7, np.float16), np.full((m, n), 7, np.float16)
    assert run_linear(x, weight, None, emulated, "sm_80").findings == []
    tile = linear_tile(m, fmt)
    arguments = {"x": x, "w": weight, "y": interpreted, "order": weight.permutation}
    lb.interpret(Variant(fmt, tile, permuted=True).program(), launch_grid((m, n), (tile.bm, tile.bn)), arguments)
    assert agrees(emulated, exact, bound).all() and agrees(interpreted, exact, bound).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_gptq_weight_in_activation_order_runs_as_it_is(bits):
    rng = np.random.default_rng(bits)
    n, k, group = 64, 384, 128
    codes, zeros = rng.integers(0, 1 << bits, (n, k)), rng.integers(0, 1 << bits, (n, k // group))
    scales = rng.uniform(0.01, 0.1, zeros.shape).astype(np.float16)
    g_idx = rng.permutation(np.arange(k) // group).astype(np.int32)
    tensors = foreign.pack(
        "gptq_v2", Foreign(codes.astype(np.uint8), scales, f"u{bits}", zeros.astype(np.uint8), "int", g_idx=g_idx)
    )
    weight = lb.from_foreign("gptq_v2", tensors)
    assert weight.permutation is not None
    x = activations(5, k)
    dense = (codes - zeros[:, g_idx]) * scales.astype(np.float64)[:, g_idx]
    y = np.zeros((5, n), np.float16)
    assert run_linear(x, weight, None, y, "sm_80").findings == []
    assert agrees(y, x.astype(np.float64) @ dense.T, linear_bound(x, weight)).all()


def test_a_gate_is_gathered_with_its_weight_and_must_have_the_same_permutation():
    weight, x = weight_of(FMT, 24, 128), activations(3, 128)
    assert weight.permutation is not None
    gate = replace(weight_of(FMT, 24, 128), permutation=weight.permutation.copy())
    y, expected = np.zeros((3, 24), np.float32), np.zeros((3, 24), np.float32)
    run_linear(x, weight, None, y, "sm_80", gate=gate, activation="silu")
    ordered = np.ascontiguousarray(x[:, weight.permutation])
    plain = [replace(each, permutation=None) for each in (weight, gate)]
    run_linear(ordered, plain[0], None, expected, "sm_80", gate=plain[1], activation="silu")
    assert np.array_equal(y, expected)
    for other in (np.roll(weight.permutation, 1), None):
        with pytest.raises(lb.LowbitvmError, match=r"FORMAT_UNSUPPORTED.*permuted in two ways"):
            run_linear(x, weight, None, y, "sm_80", gate=replace(gate, permutation=other))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fmt", ["u4,zero=int", "u8", "nvfp4", "u3,group=32,zero=float"])
def test_wide_tiles_leave_room_for_a_gate(target, fmt):
    known = lb.Format.parse(fmt)
    for m in (4, 8):
        tile = linear_plan(m, 4096, 4096, known, get(target), permuted=True, gate=True)
        kernel = lb.runtime.compiled.compile_program(
            Variant(known, tile, gate=True, permuted=True).program(), target, tile.warps
        )
        assert kernel.shared <= get(target).shared_per_block and kernel.spills == 0, tile


@pytest.mark.parametrize("gated", [False, True])
def test_torch_runs_permuted_weights(monkeypatch, gated):
    given = weight_of(FMT, 24, 128).arguments()
    tensors = {name: torch.from_numpy(part) if isinstance(part, np.ndarray) else part for name, part in given.items()}
    weight, x = lb.pack(**tensors), torch.from_numpy(activations(3, 128))
    assert weight.permutation is not None
    options = {"gate": weight, "activation": "relu"} if gated else {}
    exact = x.double() @ weight.dequantize().double().T
    exact = exact.relu() * exact if gated else exact
    for device in ("", "emulator:sm_80"):
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        y = lb.linear(x, weight, dtype=torch.float32, **options)
        torch.testing.assert_close(y.double(), exact, rtol=2.0**-18, atol=2.0**-12)


def test_a_permuted_weight_needs_its_permutation_beside_it():
    weight, x, y = weight_of(FMT, 16, 64), activations(2, 64), np.zeros((2, 16), np.float16)
    kernel = lb.compile_linear(FMT, bm=8)
    for run_it in (lambda a: lb.launch(kernel, (1, 1), a), lambda a: lb.interpret(kernel.program, (1, 1), a)):
        with pytest.raises(lb.LowbitvmError, match=r"FORMAT_UNSUPPORTED: w is permuted along K"):
            run_it({"x": x, "w": weight, "y": y})


CHEAP = [
    *(("sm_80", fmt) for fmt in ("u4", "u4,zero=int", "u2,zero=int", "u8", "u4,group=64", "u3,group=32,zero=float")),
    *((target, "u4") for target in ("sm_75", "sm_89", "sm_90a", "sm_120f")),
]


@pytest.mark.parametrize(("target", "fmt"), CHEAP)
@pytest.mark.parametrize("m", [1, 4, 8])
def test_gathering_costs_at_most_5_percent_of_the_instructions_at_up_to_8_rows(target, fmt, m):
    """Against a weight that is not permuted in this tile or its own; 4096 x 512, the largest share of the prologue."""
    known = lb.Format.parse(fmt)
    tile = linear_plan(m, 512, 4096, known, get(target), permuted=True)
    weight = weight_of(replace(known, zero=None), 512, 4096)
    if known.zero is not None:
        zeros = np.zeros_like(weight.scales)
        weight = replace(weight, format=known, zeros=zeros)
    x = activations(m, 4096)
    variant = Variant(known, replace(tile, splits=1), permuted=True)
    permuted = run(variant, target, x, weight, checks="none")[1]
    own = replace(linear_plan(m, 512, 4096, known, get(target)), splits=1)
    plain = [
        run(replace(variant, permuted=False, tile=tile), target, x, replace(weight, permutation=None), checks="none")[1]
        for tile in (variant.tile, own)
    ]
    assert permuted.counters.instructions <= 1.05 * max(report.counters.instructions for report in plain)


OWN = [("sm_80", f"u{bits},zero=int") for bits in (1, 2, 5, 8)]
OWN += [("sm_89", "u5,zero=int"), ("sm_89", "u7"), ("sm_75", "u8")]


@pytest.mark.parametrize(("target", "fmt"), OWN)
@pytest.mark.parametrize("m", [4, 8])
def test_gathering_costs_at_most_5_percent_more_than_the_tile_without_a_permutation(target, fmt, m):
    known, (n, k) = lb.Format.parse(fmt), (512, 4096)
    counts = []
    for permuted in (True, False):
        tile = replace(linear_plan(m, 8192, 8192, known, get(target), permuted=permuted), splits=1)
        weight = weight_of(known, n, k)
        weight = weight if permuted else replace(weight, permutation=None)
        report = run(Variant(known, tile, permuted=permuted), target, activations(m, k), weight, checks="none")[1]
        counts.append(report.counters.instructions)
    # 8 rows of 8 bits where shared memory is small: docs/formats.md
    assert counts[0] <= (1.06 if (target, fmt, m) == ("sm_75", "u8", 8) else 1.05) * counts[1]


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_89", "sm_90a", "sm_120f"])
@pytest.mark.parametrize("fmt", ["u4,zero=int", "u8,zero=int", "f6e3m2,zero=offset", "u3,group=32,zero=float"])
def test_no_kernel_that_gathers_spills(fmt, target):
    known = lb.Format.parse(fmt)
    for m in (4, 8, 16, 32, 64):
        tile = linear_tile(m, known, get(target), permuted=True)
        parts = {name: getattr(tile, name) for name in ("bm", "bn", "bk", "stages", "warps", "direct")}
        kernel = lb.compile_linear(known, target=target, permuted=True, cache=False, **parts)
        assert kernel.spills == 0, tile


# -- the DSL -----------------------------------------------------------------------------------------------------------


def gathering(trusted=False, shift=0, other=-1, source="order"):
    """A kernel y = x[:, order] w^T whose rows start at `shift`."""

    @lb.kernel(x=("m c", lb.f16), order=("k", lb.i32), w=lb.packed("n k"), y=("r n", lb.f32))
    def gathered(x, order, w, y):
        i, j = lb.program_id(0), lb.program_id(1)
        acc = lb.zeros((8, BN))
        for k in lb.range(0, order.shape[0], BK):
            columns = lb.load(order, (k,), (BK,), other=other) if source == "order" else lb.full((BK,), 1, lb.i32)
            a = lb.load(x, (i * 8 + shift, columns), (8, BK), trusted=trusted)
            acc += lb.dot(a, lb.dequant(lb.load(w, (j * BN, k), (BN, BK)), w.scales, w.zeros).T)
        lb.store(y, (i * 8, j * BN), acc)

    return gathered


@pytest.mark.parametrize(
    ("k", "columns", "shift"), [(192, 50, 0), (100, 301, 0), (64, 1, 3), (256, 90, -3), (64, 0, 0)]
)
@pytest.mark.parametrize("divisible", [False, True])
def test_indices_outside_and_rows_outside_give_zeros(k, columns, shift, divisible):
    fmt = lb.Format("u4", "channel", "int")
    weight = replace(weight_of(fmt, 20, k), permutation=None)
    x, rng = activations(6, columns), np.random.default_rng(k)
    order = rng.integers(-3, columns + 5, k).astype(np.int32)
    order[rng.integers(0, k, 3)] = (-(2**31), 2**31 - 1, columns)
    padded = np.zeros((11 + 8, columns + 1))
    padded[3 : 3 + 6, :columns] = x
    inside = np.where((order >= 0) & (order < columns), order, columns)
    expected = padded[3 + shift : 3 + shift + 8][:, inside] @ weight.dequantize().astype(np.float64).T
    results = []
    program = gathering(shift=shift).trace(w=fmt, divisible={"k": 4} if divisible else {})
    kernel = gathering(shift=shift).compile("sm_80", w=fmt, divisible={"k": 4} if divisible else {})
    for execute in (lambda a: lb.interpret(program, (1, 1), a), lambda a: lb.launch(kernel, (1, 1), a)):
        y = np.full((8, 20), 7, np.float32)
        report = execute({"x": x, "order": order, "w": weight, "y": y})
        assert report is None or report.findings == []
        results.append(y)
        np.testing.assert_allclose(y, expected, rtol=0, atol=2.0**-20 * np.abs(expected).max() + 1e-30)
        outside = (np.arange(8) + shift < 0) | (np.arange(8) + shift >= 6)
        assert not y[outside].any()


def test_a_broken_promise_of_indices_inside_is_a_finding():
    fmt, k = lb.Format("u4", "channel"), 128
    weight = replace(weight_of(fmt, 16, k), permutation=None)
    order = np.arange(k, dtype=np.int32)
    order[7] = 10**6
    kernel = gathering(trusted=True).compile("sm_80", w=fmt, divisible={"k": 128})
    arguments = {"x": activations(8, k), "order": order, "w": weight, "y": np.zeros((8, 16), np.float32)}
    report = lb.launch(kernel, (1, 1), arguments, on_finding="collect")
    assert {finding.kind for finding in report.findings} == {"out_of_bounds_global"}


def test_the_interpreter_gathers_along_any_axis():
    @lb.kernel(x=("m k", lb.f32), rows=("r", lb.i32), y=("r k", lb.f32))
    def rows_of(x, rows, y):
        index = lb.load(rows, (0,), (8,))
        lb.store(y, (0, 0), lb.load(x, (index, 0), (8, 16), other=5))

    x, rows = np.arange(60, dtype=np.float32).reshape(4, 15), np.array([3, -1, 0, 4, 2, 2], np.int32)
    y = np.zeros((6, 15), np.float32)
    lb.interpret(rows_of.trace(), (1,), {"x": x, "rows": rows, "y": y})
    expected = np.stack([x[row] if 0 <= row < 4 else np.full(15, 5, np.float32) for row in rows])
    assert np.array_equal(y, expected)
    with pytest.raises(lb.LowbitvmError, match=r"KERNEL_UNSUPPORTED.*gathered tile that feeds no dot"):
        rows_of.compile("sm_80")


@pytest.mark.parametrize(
    ("problem", "options"),
    [("names", {"source": "numbers"}), ("are 0 beyond", {"other": 0})],
)
def test_indices_that_no_pipeline_can_load_are_refused(problem, options):
    with pytest.raises(lb.LowbitvmError, match=rf"KERNEL_UNSUPPORTED.*{problem}"):
        gathering(**options).compile("sm_80", w=FMT)


def test_indices_that_the_kernel_stores_to_are_refused():
    @lb.kernel(x=("m k", lb.f16), order=("k", lb.i32), w=lb.packed("n k"))
    def stores(x, order, w):
        acc = lb.zeros((8, BN))
        for k in lb.range(0, order.shape[0], BK):
            a = lb.load(x, (0, lb.load(order, (k,), (BK,), other=-1)), (8, BK))
            acc += lb.dot(a, lb.dequant(lb.load(w, (0, k), (BN, BK)), w.scales, w.zeros).T)
        lb.store(order, (0,), lb.zeros((8,), lb.i32))

    with pytest.raises(lb.LowbitvmError, match=r"KERNEL_UNSUPPORTED.*stores to"):
        stores.compile("sm_80", w=FMT)


def misfit(case):
    @lb.kernel(x=("m k", lb.f16), order=("k", lb.i32), w=lb.packed("n k"))
    def body(x, order, w):
        columns = lb.load(order, (0,), (32 if case in ("length", "store") else 64,), other=-1)
        if case == "dtype":
            columns = columns.to(lb.f32)
        if case == "packed":
            lb.load(w, (0, columns), (16, 64))
        elif case == "store":
            lb.store(x, (0, columns), lb.zeros((8, 64), lb.f16))
        else:
            lb.load(x, (0, columns), (8, 64))

    return body


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("length", "SHAPE_MISMATCH"),
        ("packed", "SHAPE_MISMATCH"),
        ("store", "SHAPE_MISMATCH"),
        ("dtype", "DTYPE_MISMATCH"),
    ],
)
def test_indices_that_do_not_fit_are_refused(case, code):
    with pytest.raises(lb.LowbitvmError, match=code):
        misfit(case).trace(w=FMT)
