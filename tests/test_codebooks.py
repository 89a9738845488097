"""Kernels for codebooks: fixed tables, and tables per tensor, per 16 output features and per group."""

import itertools
import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm.bench.measure import Kernel, measure
from lowbitvm.bench.ours import Exactly, build
from lowbitvm.bounds import agrees, linear_bound, linear_exact
from lowbitvm.codegen.convert import ROW_BYTES, TABLE_ROOM, TableDecoder
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.formats import GROUPS, OUTERS, SCALES, ZEROS
from lowbitvm.kernels.linear import linear
from lowbitvm.plan import chosen_tile, linear_tile
from lowbitvm.runtime.compiled import launch_grid
from lowbitvm.runtime.linear import run_linear
from lowbitvm.targets import TARGETS
from tests.test_linear import random_weight
from tests.weights import legal, tensor

FLOATS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
TABLES = ("tensor", "block", "group")
KINDS = [("nf4", None), *((f"c{bits}", table) for bits in range(1, 9) for table in TABLES)]
# bitsandbytes' fp4 (facts of its dequantisation kernel), and a float of 4 bits whose -0 is a special value
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3]) / 12
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def check(weight: lb.PackedWeight, x: np.ndarray, target: str, **options):
    """One product in the emulator, all checks on, against float64."""
    y = np.full((len(x), weight.out_features), 7, x.dtype)
    report = run_linear(x, weight, None, y, target, **options)
    assert report.findings == []
    assert agrees(y, linear_exact(x, weight), linear_bound(x, weight)).all()
    return report


def interpreted(weight: lb.PackedWeight, x: np.ndarray) -> np.ndarray:
    tile = linear_tile(len(x), weight.format)
    dtype = lb.f16 if x.dtype == np.float16 else lb.bf16
    program = linear.trace(x=dtype, w=weight.format, y=dtype, bm=tile.bm, bn=tile.bn, bk=tile.bk, stages=tile.stages)
    y = np.full((len(x), weight.out_features), 7, x.dtype)
    lb.interpret(program, launch_grid(y.shape, (tile.bm, tile.bn)), {"x": x, "w": weight, "y": y})
    return y


FORMATS_OF = {
    (name, table): [
        fmt
        for *parts, outer in itertools.product(GROUPS, ZEROS, SCALES, OUTERS)
        if (fmt := legal(name, *parts, outer, table)) is not None
    ]
    for name, table in KINDS
}


@st.composite
def problems(draw):
    act = draw(st.sampled_from(["f16", "bf16"]))
    fmt = draw(st.sampled_from(FORMATS_OF[draw(st.sampled_from(KINDS))]))
    steps = [size for size in (fmt.group, fmt.outer) if isinstance(size, int)]
    return {
        "fmt": fmt,
        "act": act,
        "m": draw(st.integers(1, 70)),
        "n": draw(st.integers(1, 300)),
        "k": draw(st.integers(1, 4)) * math.lcm(*steps) if steps else draw(st.integers(1, 400)),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "target": draw(st.sampled_from([name for name, target in TARGETS.items() if act in target.mma_dtypes])),
        "batch_invariant": draw(st.booleans()),
    }


@settings(max_examples=60)
@given(problems())
def test_interpreter_emulator_and_float64_agree_on_random_codebooks(problem):
    rng = np.random.default_rng(problem["seed"])
    weight = random_weight(rng, problem["fmt"], problem["n"], problem["k"])
    x = rng.standard_normal((problem["m"], problem["k"])).astype(FLOATS[problem["act"]])
    check(weight, x, problem["target"], batch_invariant=problem["batch_invariant"])
    assert agrees(interpreted(weight, x), linear_exact(x, weight), linear_bound(x, weight)).all()


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90a", "sm_120f"])
@pytest.mark.parametrize(("name", "table"), KINDS)
def test_every_kind_of_codebook_runs_on_every_family_of_targets(name, table, target):
    rng = np.random.default_rng(0)
    fmt = lb.Format(name, 64, zero="float", table=table)
    act = "f16" if target == "sm_75" else "bf16"
    check(random_weight(rng, fmt, 40, 128), rng.standard_normal((5, 128)).astype(FLOATS[act]), target)


@pytest.mark.parametrize("target", ["sm_75", "sm_80"])
@pytest.mark.parametrize("name", ["c1", "c3", "c5"])  # c5 with 40 rows: a narrower tile on sm_75
def test_tables_of_groups_that_are_longer_than_a_stage_are_copied_once_for_all_of_its_stages(name, target):
    rng = np.random.default_rng(0)
    for m, k in ((1, 256), (8, 768), (40, 512)):
        weight = random_weight(rng, lb.Format(name, 256, table="group"), 40, k)
        check(weight, rng.standard_normal((m, k)).astype(np.float16), target)


@pytest.mark.parametrize("m", [5, 40])
@pytest.mark.parametrize("target", ["sm_75", "sm_86"])
@pytest.mark.parametrize("name", ["nf4", "c1", "c4", "c8"])
def test_a_gate_has_tables_of_its_own(name, target, m):
    rng = np.random.default_rng(0)
    fmt = lb.Format(name, 64, table=None if name == "nf4" else "tensor")
    weight, gate = (random_weight(rng, fmt, 40, 128) for _ in range(2))
    x = rng.standard_normal((m, 128)).astype(np.float16)
    y = np.zeros((m, 40), np.float32)
    assert run_linear(x, weight, None, y, target, gate=gate).findings == []
    factors = [linear_exact(x, w) for w in (weight, gate)]
    loose = [linear_bound(x, w) for w in (weight, gate)]
    error = loose[0] * np.abs(factors[1]) + loose[1] * np.abs(factors[0]) + loose[0] * loose[1]
    assert agrees(y, factors[0] * factors[1], error * (1 + 2**-10)).all()


@pytest.mark.parametrize("target", ["sm_80", "sm_86"])
@pytest.mark.parametrize(("name", "table"), [("nf4", None), *(("c4", table) for table in TABLES), ("c8", "tensor")])
def test_many_rows_run_with_codebooks(name, table, target):
    rng = np.random.default_rng(0)
    weight = random_weight(rng, lb.Format(name, 128, table=table), 140, 384)
    x = rng.standard_normal((130, 384)).astype(np.float16)
    check(weight, x, target)
    kernel = lb.compile_linear(weight.format, target=target, bm=128, warps=8, stages=3)
    y = np.zeros((130, 140), np.float16)
    assert lb.launch(kernel, launch_grid(y.shape, (128, 128)), {"x": x, "w": weight, "y": y}).findings == []
    assert agrees(y, linear_exact(x, weight), linear_bound(x, weight)).all()


@pytest.mark.parametrize("act", ["f16", "bf16"])
def test_the_fp4_of_bitsandbytes_is_a_codebook_of_the_tensor(act):
    rng = np.random.default_rng(0)
    fmt = lb.Format("c4", 64, scale="f32", table="tensor")
    weight = random_weight(rng, fmt, 24, 128, FP4.astype(np.float16)[None])
    check(weight, rng.standard_normal((3, 128)).astype(FLOATS[act]), "sm_80")


@pytest.mark.parametrize("m", [8, 64])
@pytest.mark.parametrize(
    ("name", "table"),
    [(name, table) for name, table in KINDS if table in (None, "tensor") or (table == "block" and name < "c6")],
)
def test_tables_of_up_to_a_lanes_share_of_shared_memory_have_no_bank_conflicts(name, table, m):
    rng = np.random.default_rng(0)
    weight = random_weight(rng, lb.Format(name, 128, table=table), 128, 256)
    report = check(weight, rng.standard_normal((m, 256)).astype(np.float16), "sm_80")
    assert report.counters.bank_conflicts == 0
    assert report.counters.arrays[1].read == weight.words.nbytes


@pytest.mark.parametrize("act", ["f16", "bf16"])
@pytest.mark.parametrize(("name", "table"), KINDS)
def test_a_wrong_code_is_outside_the_bound(name, table, act):
    rng = np.random.default_rng(1)
    weight = random_weight(rng, lb.Format(name, 64, table=table), 40, 256)
    x = rng.standard_normal((9, 256)).astype(FLOATS[act])
    given = weight.arguments()
    codes, values = given["codes"], weight.values()
    k = np.abs(x[0].astype(float)).argmax()
    group = slice(k // 64 * 64, k // 64 * 64 + 64)
    codes[3, k] = codes[3, group][np.abs(values[3, group] - values[3, k]).argmax()]
    wrong = linear_exact(x, lb.pack(**given))
    assert not agrees(wrong, linear_exact(x, weight), linear_bound(x, weight)).all()


@pytest.mark.parametrize("tables", [1, 2, 8, 16])
@pytest.mark.parametrize("bits", range(1, 9))
def test_tables_take_the_room_that_there_is(bits, tables):
    for room in (1024 * tables, TABLE_ROOM // 2, TABLE_ROOM):
        decode = TableDecoder(CODE_TYPES[f"c{bits}"], "f16", tables, room)
        assert tables * decode.table_bytes <= max(room, tables << bits + 2)
        assert decode.rows >= 1 << bits * decode.codes and decode.row_bytes in (4, ROW_BYTES)


def test_a_table_in_shared_memory_has_every_pair_of_values_for_every_lane():
    values = np.arange(16, dtype=np.float16)
    table = TableDecoder(CODE_TYPES["c4"], "f16").table(values).view(np.float16).reshape(256, 32, 2)
    index = np.arange(256)[:, None]
    assert np.array_equal(table[..., 0], np.broadcast_to(values[index % 16], (256, 32)))
    assert np.array_equal(table[..., 1], np.broadcast_to(values[index // 16], (256, 32)))


@pytest.mark.parametrize("warps", [1, 2, 8])
@pytest.mark.parametrize(("name", "table"), [("nf4", None), ("c3", "tensor"), ("c2", "block"), ("c8", "block")])
def test_any_number_of_warps_fills_the_tables(name, table, warps):
    rng = np.random.default_rng(0)
    fmt = lb.Format(name, 64, table=table)
    weight, x = random_weight(rng, fmt, 200, 128), rng.standard_normal((7, 128)).astype(np.float16)
    kernel = lb.compile_linear(fmt, bm=8, bn=128, stages=2, warps=warps, cache=False)
    y = np.zeros((7, 200), np.float16)
    assert lb.launch(kernel, launch_grid(y.shape, (8, 128)), {"x": x, "w": weight, "y": y}).findings == []
    assert agrees(y, linear_exact(x, weight), linear_bound(x, weight)).all()


@pytest.mark.parametrize("fmt", [lb.Format("nf4"), *(lb.Format("c4", table=table) for table in TABLES)], ids=str)
def test_blocks_that_share_out_k_and_permuted_columns_find_their_tables(fmt):
    rng = np.random.default_rng(0)
    weight = random_weight(rng, fmt, 40, 2048)
    given = weight.arguments() | {"permutation": rng.permutation(2048).astype(np.int32)}
    x = rng.standard_normal((3, 2048)).astype(np.float16)
    for each in (weight, lb.pack(**given)):
        check(each, x, "sm_80")


@pytest.mark.parametrize("fmt", [lb.Format("nf4"), *(lb.Format("c3", 64, table=table) for table in TABLES)], ids=str)
def test_a_kernel_of_ones_own_reads_codebooks_in_a_loop_inside_a_loop(fmt):
    @lb.kernel(x=("m k", lb.f16), w=lb.packed("n k"), y=("m n", lb.f32))
    def product(x: lb.Tensor, w: lb.Packed, y: lb.Tensor) -> None:
        for j in lb.range(0, w.shape[0], 64):
            sums = lb.zeros((16, 64), lb.f32)
            for k in lb.range(0, 256, 64, stages=2):
                codes = lb.load(w, (j, k), (64, 64))
                sums += lb.dot(lb.load(x, (0, k), (16, 64)), lb.dequant(codes, w.scales, w.zeros).T)
            lb.store(y, (0, j), sums)

    rng = np.random.default_rng(0)
    weight, x = random_weight(rng, fmt, 100, 256), rng.standard_normal((9, 256)).astype(np.float16)
    y = np.zeros((9, 100), np.float32)
    report = lb.launch(product.compile(target="sm_80", w=fmt, warps=2), (1,), {"x": x, "w": weight, "y": y})
    assert report.findings == []
    assert agrees(y, linear_exact(x, weight), linear_bound(x, weight)).all()


@pytest.mark.parametrize(
    "fmt", [lb.Format("nf4", 64), *(lb.Format("c4", 64, table=table) for table in TABLES)], ids=str
)
def test_torch_runs_codebooks_on_the_emulator(fmt, monkeypatch):
    monkeypatch.setenv("LOWBITVM_DEVICE", "emulator:sm_80")
    rng = np.random.default_rng(0)
    given = random_weight(rng, fmt, 24, 128).arguments()
    weight = lb.pack(**{name: tensor(part) if isinstance(part, np.ndarray) else part for name, part in given.items()})
    x = torch.from_numpy(rng.standard_normal((3, 128)).astype(np.float16))
    assert agrees(lb.linear(x, weight), linear_exact(x, weight), linear_bound(x, weight)).all()


@pytest.mark.parametrize("act", ["f16", "bf16"])
def test_the_main_loop_of_nf4_stays_as_lean_as_it_is(act):
    fmt, target = lb.Format("nf4"), TARGETS["sm_80"]
    made = build([Exactly(fmt, act, "sm_80", chosen_tile(fmt, target, bm=bm, bn=128, bk=64)) for bm in (8, 16)])
    few, more = (measure(kernel) for kernel in made if isinstance(kernel, Kernel))
    assert few.instructions_per_weight <= 1.5 and more.mac_per_instruction >= 300
    assert few.spills == more.spills == few.bank_conflicts == more.bank_conflicts == 0


@pytest.mark.parametrize("size", [15, 17])
def test_a_table_of_another_size_is_refused(size):
    rng = np.random.default_rng(0)
    with pytest.raises(lb.LowbitvmError, match=rf"SHAPE_MISMATCH.*\(1, {size}\).*\(1, 16\)"):
        random_weight(rng, lb.Format("c4", 64, table="tensor"), 16, 64, np.zeros((1, size), np.float16))


def test_a_weight_without_its_table_is_refused():
    rng = np.random.default_rng(0)
    weight = random_weight(rng, lb.Format("c4", 64, table="tensor"), 16, 64)
    with pytest.raises(lb.LowbitvmError, match=r"ARGUMENT_INVALID.*table"):
        replace(weight, table=None)
