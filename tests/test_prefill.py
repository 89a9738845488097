"""Tiles of 128 rows: weights decoded once per block into shared memory, on every kind of format and target."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.bounds import agrees, linear_bound, linear_exact
from lowbitvm.codegen.centring import centring
from lowbitvm.codegen.convert import decoder, held_by
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.plan import linear_tile
from lowbitvm.quantize import quantize
from lowbitvm.runtime.compiled import launch_grid
from tests import test_every_format as every_format
from tests.test_linear import FLOATS, NUMBERS, check, random_activations, random_weight
from tests.test_scales import BLOCK_FORMATS

ROWS = 128


def run(fmt, act, m, n, k, target="sm_80", kind="normal", seed=0, **tile):
    """Runs one problem with a tile of ROWS rows in the emulator and compares it with float64."""
    rng = np.random.default_rng(seed)
    weight, x = random_weight(rng, fmt, n, k), random_activations(rng, act, m, k, kind, fmt)
    kernel = lb.compile_linear(fmt, act=act, target=target, cache=False, vectorised=k % 8 == 0, bm=ROWS, **tile)
    y = np.full((m, n), 7, FLOATS[act])
    report = lb.launch(kernel, launch_grid((m, n), (ROWS, 128)), {"x": x, "w": weight, "y": y})
    assert report.findings == []
    assert agrees(y, linear_exact(x, weight), linear_bound(x, weight)).all()
    return kernel, report, weight


@pytest.mark.parametrize("name", NUMBERS)
def test_every_format_is_decoded_once_per_block(name):
    code = CODE_TYPES[name]
    for number, act in enumerate(("f16", "bf16")):
        fmt = lb.Format(name, group=(64, 128)[number], zero=("int" if code.is_linear else "float", None)[number])
        if held_by(code, act):
            run(fmt, act, m=9, n=24, k=256)


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90a", "sm_120f"])
@pytest.mark.parametrize("name", ["u4", "f6e3m2"])
def test_interpreter_and_emulator_agree_on_every_family_of_targets(name, target):
    check(lb.Format(name, zero="int" if name == "u4" else "float"), "f16", m=ROWS + 3, n=24, k=384, target=target)


@settings(max_examples=30)
@given(
    st.sampled_from(["u1", "i3", "u4", "bp7", "u8", "ternary", "f4e2m1", "f6e3m2", "e4m3"]),
    st.sampled_from([16, 32, 64, 128, 256, "channel", "tensor"]),
    st.sampled_from([None, "int", "float", "offset"]),
    st.sampled_from(["f16", "f32"]),
    st.sampled_from(["f16", "bf16"]),
    st.integers(1, 9),
    st.integers(1, 140),
    st.integers(1, 140),
    st.sampled_from(["normal", "outlier", "not finite"]),
    st.sampled_from(["sm_80", "sm_89", "sm_90a"]),
)
def test_any_sizes_agree_with_float64(name, group, zero, scale, act, groups, m, n, kind, target):
    code = CODE_TYPES[name]
    zero = "float" if zero == "int" and not code.is_linear else zero
    fmt = lb.Format(name, group, zero, scale)
    k = groups * group if isinstance(group, int) else 37 * groups
    tile = linear_tile(ROWS, fmt, targets.get(target))
    if tile.bm == ROWS:  # else shared memory has no room for it
        run(fmt, act, m, n, k, target, kind, stages=tile.stages)


@settings(max_examples=30)
@given(
    st.sampled_from(BLOCK_FORMATS),
    st.sampled_from(["f16", "bf16"]),
    st.integers(1, 3),
    st.integers(1, 140),
    st.integers(1, 140),
    st.sampled_from(["normal", "outlier", "not finite"]),
    st.sampled_from(["sm_80", "sm_89", "sm_90a"]),
)
def test_scales_of_8_bits_are_applied_once_per_block(name, act, steps, m, n, kind, target):
    fmt = lb.Format.parse(name)
    tile = linear_tile(ROWS, fmt, targets.get(target))
    if tile.bm == ROWS:
        k = steps * (256 if fmt.outer == 256 else fmt.group if isinstance(fmt.group, int) else 40)
        check(fmt, act, m=m + ROWS // 2, n=n, k=k, target=target, kind=kind)


@settings(max_examples=12)
@given(
    st.sampled_from(["u1", "i3", "u4", "bp7", "u8", "f4e2m1", "e4m3"]),
    st.sampled_from([16, 32, 64, 256, "channel", "tensor"]),
    st.sampled_from(["float,scale=f32", "offset", "offset,scale=i8"]),
    st.sampled_from(["f16", "bf16"]),
    st.integers(1, 3),
    st.integers(33, 140),
    st.integers(1, 140),
    st.sampled_from(["sm_75", "sm_80", "sm_89", "sm_120f"]),
)
def test_row_sums_are_shared_by_the_warps_of_a_block(name, group, rest, act, steps, m, n, target):
    outer = f",outer={256 if isinstance(group, int) and m % 2 else 'tensor'}" * ("i8" in rest)
    fmt = lb.Format.parse(f"{name},group={group},zero={rest}{outer}")
    act, k = "f16" if target == "sm_75" else act, (256 if 256 in (fmt.outer, group) else 64) * steps
    every_format.check(every_format.layer(fmt, m, n, k, act, steps, out="f32"), target)


@pytest.mark.parametrize("target", ["sm_75", "sm_89"])
@pytest.mark.parametrize(
    "name",
    [
        "u4,group=32,zero=float",
        "u4,group=32,zero=offset,scale=i8,outer=256",
        "u2,group=16,zero=offset,scale=i8,outer=256",
    ],
)
def test_row_sums_take_a_sixteenth_of_the_products(name, target):
    fmt, depth = lb.Format.parse(name), 8 if target == "sm_75" else 16
    rng = np.random.default_rng(0)
    weight, x = random_weight(rng, fmt, 128, 512), random_activations(rng, "f16", 64, 512, "normal", fmt)
    kernel = lb.compile_linear(fmt, target=target, cache=False, bm=64, stages=3, warps=8)
    report = lb.launch(kernel, (1, 1), {"x": x, "w": weight, "y": np.zeros((64, 128), np.float16)})
    products, units = 64 * 128 * 512 // (16 * 8 * depth), 512 // 64
    each = 2 if fmt.group == 16 else 1  # an ldmatrix brings two groups then, each of which is summed
    assert report.findings == [] and kernel.spills == 0 and report.counters.bank_conflicts == 0
    assert report.counters.mma == products + each * products // 16 * (units + 1) // units  # one is summed in vain


@settings(max_examples=15)
@given(
    st.sampled_from(["u4,zero=int", "i6,group=channel,zero=float", "mxfp4", "nf4,group=64", "f6e3m2,group=32"]),
    st.sampled_from(["f16", "bf16"]),
    st.integers(65, 140),
    st.integers(1, 140),
    st.integers(1, 90),
    st.sampled_from(["sm_80", "sm_89", "sm_90a"]),
)
def test_permuted_weights_are_decoded_once_per_block(name, act, m, n, steps, target):
    fmt = lb.Format.parse(name)
    k = 8 * steps - steps % 3 if fmt.group == "channel" else fmt.group * (1 + steps % 8)
    every_format.check(every_format.layer(fmt, m, n, k, act, steps, permuted=True, out="f32"), target)


@pytest.mark.parametrize("zero", [None, "int", "float"])
def test_weights_and_scales_are_read_once_per_block_without_bank_conflicts(zero):
    fmt = lb.Format("u4", group=128, zero=zero)
    kernel, report, weight = run(fmt, "f16", 2 * ROWS, 256, 512)
    assert kernel.spills == 0
    assert report.counters.bank_conflicts == 0
    assert report.counters.arrays[1].read == 2 * weight.words.nbytes
    assert report.counters.arrays[2].read == 2 * weight.scales.nbytes


@pytest.mark.parametrize("stages", [3, 4, 5])
@pytest.mark.parametrize("k", [64, 128, 192, 320, 704])
def test_any_number_of_units_meets_any_number_of_stages(stages, k):
    for target in ("sm_80", "sm_90a"):  # weights in shared memory, and held in registers
        run(lb.Format("u3", group=64, zero="int"), "f16", 9, 128, k, target, stages=stages)
        run(lb.Format("u3", group="channel", zero="float"), "f16", 9, 128, k + 8, target, stages=stages)


@pytest.mark.parametrize("act", ["f16", "bf16"])
@pytest.mark.parametrize(
    "fmt",
    [
        lb.Format("nf4", group=64),
        lb.Format("nf4", group=128, zero="float"),
        lb.Format("c3", group=128, table="block"),
        lb.Format("c4", group=16, zero="offset", table="tensor"),
        lb.Format("c8", group="channel", table="tensor"),
    ],
    ids=str,
)
def test_codebooks_are_looked_up_once_per_block(fmt, act):
    n, k, rng = 136, 256, np.random.default_rng(0)
    table = None
    if fmt.table is not None:
        shape = fmt.table_shape(n, k)
        table = np.broadcast_to(np.linspace(-1, 1, shape[-1]).astype(np.float16), shape).copy()
    weight = quantize(rng.standard_normal((n, k)).astype(np.float32), fmt, table=table)
    x = random_activations(rng, act, ROWS + 2, k, "normal")
    kernel = lb.compile_linear(fmt, act=act, bm=ROWS, cache=False)
    y = np.zeros((ROWS + 2, n), FLOATS[act])
    report = lb.launch(kernel, launch_grid(y.shape, (ROWS, 128)), {"x": x, "w": weight, "y": y})
    assert report.findings == [] and kernel.spills == 0
    assert agrees(y, linear_exact(x, weight), linear_bound(x, weight)).all()


@pytest.mark.parametrize(
    ("target", "name"), [("sm_80", "u8"), ("sm_90a", "u2"), ("sm_90a", "u4"), ("sm_90a", "f6e3m2")]
)
def test_shared_memory_keeps_up_with_the_tensor_cores(target, name):
    kernel, report, _ = run(lb.Format(name, group=128), "f16", ROWS, 128, 2048, target)
    gpu = targets.get(target).gpu
    clocks = 2 * ROWS * 128 * 2048 / (gpu.f16 * (gpu.sync_share or 1))
    assert report.counters.shared_wavefronts <= clocks
    assert report.counters.bank_conflicts == 0 and kernel.spills == 0


def test_integer_zero_points_need_no_row_sums():
    products = {zero: run(lb.Format("u4", zero=zero), "f16", ROWS, 128, 512)[1].counters.mma for zero in (None, "int")}
    assert products[None] == products["int"] == ROWS * 128 * 512 // (16 * 8 * 16)


@pytest.mark.parametrize("act", ["f16", "bf16"])
def test_centring_is_exact_for_every_code_and_zero_point(act):
    native = FLOATS[act]
    for code in (code for code in CODE_TYPES.values() if code.is_linear):
        fmt = lb.Format(code.name, zero="int")
        found = centring(fmt, decoder(code, act))
        assert found is not None or (act == "bf16" and code.name in ("bp7", "bp8"))
        if found is None:
            continue
        codes = np.arange(code.used or 1 << code.bits) * code.step - code.bias
        zeros = np.arange(code.low, code.high + 1)
        exact = found.unit * (codes[:, None] - zeros)
        assert np.array_equal(exact.astype(native).astype(np.float64), exact), code


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_120f"])
@pytest.mark.parametrize("zero", [None, "int", "offset"])
def test_nothing_spills_where_the_plan_takes_it(target, zero):
    for act, group in (("f16", 128), ("bf16", "channel"), ("f16", 64)):
        fmt = lb.Format("u4", group=group, zero=zero)
        tile = linear_tile(ROWS, fmt, targets.get(target))
        assert tile.bm == ROWS
        kernel = lb.compile_linear(fmt, act=act, target=target, bm=ROWS, stages=tile.stages, cache=False)
        assert kernel.spills == 0, (target, act, group)


def test_small_targets_keep_64_rows():
    assert linear_tile(4096, lb.Format("u4"), targets.get("sm_75")).bm == 64
    assert linear_tile(4096, lb.Format("u8", group=32, zero="offset"), targets.get("sm_89")).bm == 64
    k_quant = lb.Format.parse("u4,group=32,zero=offset,scale=i8,outer=256")
    assert [linear_tile(4096, k_quant, targets.get(t)).bm for t in ("sm_75", "sm_80", "sm_89")] == [64, ROWS, 64]
    assert linear_tile(4096, lb.Format("u8"), targets.get("sm_89")).bm == ROWS  # held in registers
    assert linear_tile(4096, lb.Format("u4"), targets.get("sm_89")).bm == ROWS


@lb.kernel(x=("m k", lb.f16), w=lb.packed("n k"), y=("m n", lb.f32))
def in_turns(x: lb.Tensor, w: lb.Packed, y: lb.Tensor, *, turns: int, one: float) -> None:
    """y = turns * x w^T, and `one` for each 64 of k and turn: if it is not 0, the loops do more than adding dots."""
    total = lb.zeros((ROWS, 128))
    for _ in range(turns):
        for k in lb.range(0, x.shape[1], 64, stages=4):
            codes = lb.load(w, (0, k), (128, 64))
            total += lb.dot(lb.load(x, (0, k), (ROWS, 64)), lb.dequant(codes, w.scales, w.zeros).T)
            if one:
                total += one
    lb.store(y, (0, 0), total)


@pytest.mark.parametrize(("turns", "one"), [(1, 0.0), (2, 0.0), (2, 0.5)])
@pytest.mark.parametrize(("target", "name"), [("sm_80", "u4"), ("sm_80", "u8"), ("sm_90a", "u4")])
def test_tiles_that_hold_numbers_before_a_loop_or_change_in_it_keep_their_places(target, name, turns, one):
    rng = np.random.default_rng(0)
    fmt = lb.Format(name)
    weight, x = random_weight(rng, fmt, 128, 256), random_activations(rng, "f16", ROWS, 256, "normal")
    kernel = in_turns.compile(target, warps=8, w=fmt, divisible={"k": 128}, turns=turns, one=one)
    y = np.zeros((ROWS, 128), np.float32)
    report = lb.launch(kernel, (1, 1), {"x": x, "w": weight, "y": y})
    assert report.findings == []
    added = 4 * turns * one
    assert (abs(y - added - turns * linear_exact(x, weight)) <= (turns + 1) * linear_bound(x, weight)).all()
