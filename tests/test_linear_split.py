"""The linear kernel whose blocks share out k, and what follows the product in the same kernel."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.bounds import agrees, linear_bound, linear_exact
from lowbitvm.kernels.epilogue import ACTIVATIONS
from lowbitvm.plan import linear_plan
from lowbitvm.runtime.compiled import compile_program, launch_grid
from lowbitvm.runtime.linear import Variant, run_linear
from lowbitvm.runtime.workspace import workspace
from lowbitvm.tile import MOST_SPLITS, SHORTEST_STREAM, Tile, bytes_ahead
from tests.linear import FLOATS, Layer

FMT = lb.Format("u4", group=64, zero="int")


def weight_of(rng: np.random.Generator, n: int, k: int) -> lb.PackedWeight:
    codes, shape = rng.integers(0, 16, (n, k), dtype=np.int8), FMT.scales_shape(n, k)
    scales = rng.uniform(0.01, 0.1, shape).astype(np.float16)
    return lb.pack(codes, scales, rng.integers(0, 16, shape, dtype=np.int8), FMT)


def run_both(variant: Variant, target: str, arguments: dict[str, object], m: int, n: int) -> list[np.ndarray]:
    """y of the emulator, without a finding, and of the interpreter."""
    tile, program = variant.tile, variant.program()
    kernel, results = compile_program(program, target, tile.warps), []
    tiles = launch_grid((m, n), (tile.bm, tile.bn))
    for run in ("emulator", "interpreter"):
        y = np.full((m, n), 7, FLOATS[variant.out])
        given = {name: value for name, value in {**arguments, "y": y}.items() if value is not None}
        if tile.splits > 1:
            shape = (tile.splits * (1 + variant.gate) * tiles[0] * tile.bm, tiles[1] * tile.bn)
            given |= {"partials": np.full(shape, np.nan, np.float32), "arrivals": np.zeros(math.prod(tiles), np.int32)}
        grid = (*tiles, tile.splits)
        if run == "interpreter":
            lb.interpret(program, grid, given)
        else:
            assert lb.launch(kernel, grid, given, schedule="adversarial").findings == []
        assert "arrivals" not in given or not given["arrivals"].any()
        results.append(y)
    return results


@st.composite
def problems(draw):
    groups = draw(st.integers(1, 40))
    return {
        "m": draw(st.integers(1, 40)),
        "n": draw(st.integers(1, 200)),
        "k": 64 * groups,
        "act": draw(st.sampled_from(["f16", "bf16"])),
        "out": draw(st.sampled_from(["f16", "bf16", "f32"])),
        "bias": draw(st.booleans()),
        "gated": draw(st.booleans()),
        "residual": draw(st.booleans()),
        "activation": draw(st.sampled_from([None, *ACTIVATIONS])),
        "splits": draw(st.integers(1, 5)),
        "bm": draw(st.sampled_from([8, 16, 32])),
        "target": draw(st.sampled_from(["sm_75", "sm_80", "sm_90a"])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@settings(max_examples=60)
@given(problems())
def test_splits_and_epilogues_agree_with_float64(problem):
    m, n, k, act, out = (problem[name] for name in ("m", "n", "k", "act", "out"))
    if problem["target"] == "sm_75":  # multiplies no bf16
        act = "f16"
    rng = np.random.default_rng(problem["seed"])
    w, gate = weight_of(rng, n, k), weight_of(rng, n, k) if problem["gated"] else None
    x = rng.standard_normal((m, k)).astype(FLOATS[act])
    bias = rng.standard_normal(n).astype(FLOATS[act]) if problem["bias"] else None
    residual = rng.standard_normal((m, n)).astype(FLOATS[act]) if problem["residual"] else None
    tile = Tile(problem["bm"], 128, 64, 3, 4, problem["splits"])
    kinds = act if problem["bias"] else None, problem["gated"], act if problem["residual"] else None
    variant = Variant(FMT, tile, act, out, *kinds, problem["activation"], vectorised=True)
    arguments = {"x": x, "w": w, "gate": gate, "bias": bias, "residual": residual}
    exact, bound = Layer(x, w, gate, bias, residual, problem["activation"], out).expected()
    for y in run_both(variant, problem["target"], arguments, m, n):
        assert agrees(y, exact, bound).all()


def test_functions_keep_what_is_not_finite_out_of_the_finite():
    x = np.zeros((3, 64), np.float16)
    x[0, 0], x[1, 0], x[2, 0] = np.nan, np.inf, -np.inf
    codes, scales = np.full((8, 64), 3, np.int8), np.ones((8, 1), np.float16)
    w = lb.pack(codes, scales, np.full((8, 1), 1, np.int8), FMT)
    for activation in ACTIVATIONS:
        variant = Variant(FMT, Tile(8, 128, 64, 2, 4), activation=activation, vectorised=True)
        for y in run_both(variant, "sm_80", {"x": x, "w": w}, 3, 8):
            assert not np.isfinite(y).any()


@pytest.mark.parametrize("target", targets.TARGETS.values(), ids=str)
def test_a_long_k_is_shared_out_where_its_tiles_leave_sms_without_work(target):
    tile = linear_plan(8, 4096, 8192, FMT, target)
    blocks = 4096 // tile.bn * tile.splits
    # the bytes on their way keep the memory busy, as far as k is long enough
    busy = blocks / target.gpu.sms * bytes_ahead(tile, FMT) >= 0.7 * target.bytes_in_flight
    assert busy or tile.splits == MOST_SPLITS
    assert linear_plan(8, 4096, SHORTEST_STREAM, FMT, target).splits == 1
    assert linear_plan(8, 512 * 4096, 4096, FMT, target).splits == 1
    assert linear_plan(4096, 4096, 4096, FMT, target).splits == 1
    assert linear_plan(0, 4096, 4096, FMT, target).splits >= 1


@pytest.mark.parametrize("target", ["sm_80", "sm_120f"])
def test_batch_invariant_rows_do_not_depend_on_the_batch(target):
    rng = np.random.default_rng(3)
    n, k = 130, 2304
    w, x = weight_of(rng, n, k), rng.standard_normal((70, k)).astype(np.float16)
    together = np.zeros((70, n), np.float16)
    run_linear(x, w, None, together, target, batch_invariant=True)
    for rows in ([0], [3, 4], list(range(17)), list(range(69, -1, -1))):
        alone = np.zeros((len(rows), n), np.float16)
        report = run_linear(np.ascontiguousarray(x[rows]), w, None, alone, target, batch_invariant=True)
        assert report.findings == []
        assert (alone.view(np.uint16) == together[rows].view(np.uint16)).all()


def test_without_it_results_are_the_same_in_every_run_and_under_every_schedule():
    rng = np.random.default_rng(4)
    w, x = weight_of(rng, 100, 3072), rng.standard_normal((5, 3072)).astype(np.float16)
    results = set()
    for seed in range(6):
        y = np.zeros((5, 100), np.float16)
        run_linear(x, w, None, y, "sm_80", seed=seed, schedule=("random", "adversarial")[seed % 2])
        results.add(y.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("DTYPE_MISMATCH", {"act": "f32"}),
        ("DTYPE_MISMATCH", {"out": "f64"}),
        ("DTYPE_MISMATCH", {"residual": "i32"}),
        ("DTYPE_MISMATCH", {"bias": "u8"}),
        ("ARGUMENT_INVALID", {"activation": "tanh"}),
    ],
)
def test_what_the_kernel_does_not_take_is_named(code, arguments):
    with pytest.raises(lb.LowbitvmError) as caught:
        Variant(FMT, Tile(8, 128, 64, 2, 4), **arguments)
    assert caught.value.code == code


def test_bf16_is_not_multiplied_before_sm_80():
    with pytest.raises(lb.LowbitvmError, match=r"KERNEL_UNSUPPORTED.*bf16.* on sm_75"):
        lb.compile_linear("u4", target="sm_75", cache=False, act="bf16")


@pytest.mark.parametrize("fmt", ["u8,group=channel,zero=float", "u3,group=64,zero=int", "f6e3m2,group=32", "bp1"])
def test_a_target_without_asynchronous_copies_runs_every_kind_of_format(fmt):
    rng, n, k = np.random.default_rng(0), 72, 640
    w = lb.quantize(rng.standard_normal((n, k)).astype(np.float32), fmt)
    for m in (1, 20, 64):
        x, y = rng.standard_normal((m, k)).astype(np.float16), np.zeros((m, n), np.float16)
        assert run_linear(x, w, None, y, "sm_75").findings == []
        assert agrees(y, linear_exact(x, w), linear_bound(x, w)).all()


def test_splits_out_of_range_and_gates_of_another_format_are_refused():
    with pytest.raises(lb.LowbitvmError, match=r"TILE_INVALID.*splits 17"):
        lb.compile_linear("u4", splits=17)
    rng = np.random.default_rng(0)
    w = weight_of(rng, 16, 64)
    gate = lb.quantize(rng.standard_normal((16, 64)).astype(np.float32), "i4,group=64")
    with pytest.raises(lb.LowbitvmError, match=r"FORMAT_UNSUPPORTED.*i4"):
        run_linear(np.zeros((1, 64), np.float16), w, None, np.zeros((1, 16), np.float16), "sm_80", gate=gate)


def test_a_workspace_of_cpu_arrays_has_its_counters_at_0():
    with workspace(np.zeros(1), (3, 8), 5) as (partials, arrivals):
        assert partials.shape == (3, 8) and partials.dtype == np.float32
        assert arrivals.tolist() == [0] * 5 and arrivals.dtype == np.int32
