"""The linear kernel on random problems: interpreter, emulator and float64 agree within the derived bound."""

import itertools
import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm.bounds import agrees, linear_bound, linear_exact
from lowbitvm.codegen.convert import held_by
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.formats import GROUPS, OUTERS, SCALES, ZEROS
from lowbitvm.kernels.linear import linear
from lowbitvm.plan import chosen_tile, linear_tile
from lowbitvm.runtime.compiled import launch_grid
from lowbitvm.runtime.linear import run_linear
from lowbitvm.targets import TARGETS
from tests.weights import legal

FLOATS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}


SMALL = {"e8m0": np.dtype(ml_dtypes.float8_e8m0fnu), "e4m3": np.dtype(ml_dtypes.float8_e4m3fn), "i8": np.dtype(np.int8)}
SMALL_SCALES = {  # about as large, on average, as those of FLOATS
    "e8m0": lambda rng, shape: np.exp2(rng.integers(-3, 2, shape)),
    "e4m3": lambda rng, shape: rng.uniform(-2.0, 2.0, shape),
    "i8": lambda rng, shape: rng.integers(-128, 128, shape),
}
NUMBERS = [name for name, code in CODE_TYPES.items() if code.kind != "table"]


def random_weight(rng: np.random.Generator, fmt: lb.Format, n: int, k: int, table=None) -> lb.PackedWeight:
    code = fmt.code
    patterns = np.flatnonzero(np.isfinite(np.arange(1 << fmt.bits) if code.values is None else code.values))[
        : code.used
    ]
    codes = code.codes(rng.choice(patterns, (n, k)).astype(np.int16)).astype(code.numpy)
    shape = fmt.scales_shape(n, k)
    small = SMALL_SCALES.get(fmt.scale)
    dtype = SMALL[fmt.scale] if small else FLOATS[fmt.scale]
    scales = (small(rng, shape) if small else rng.uniform(0.25, 2.0, shape)).astype(dtype)
    zeros, second = None, {}
    if fmt.zero == "int":
        zeros = code.codes(rng.choice(patterns, shape).astype(np.int16)).astype(code.numpy)
    elif fmt.scale == "i8" and fmt.zero is not None:
        zeros = rng.integers(-128, 128, shape).astype(dtype)
    elif fmt.zero is not None:
        zeros = rng.normal(4.0 if fmt.zero == "float" else -2.0, 2.0, shape).astype(dtype)
    for name in ("outer", "outer_zeros"):
        if name in fmt.parts:
            unit = 1 / 64 if fmt.scale == "i8" else 1.0
            second[name] = rng.uniform(-unit, unit, fmt.outer_shape(n, k)).astype(np.float32)
    if fmt.table is not None:
        second["table"] = rng.standard_normal(fmt.table_shape(n, k)).astype(np.float16) if table is None else table
    return lb.pack(codes, scales, zeros, fmt, **second)


def random_activations(
    rng: np.random.Generator, act: str, m: int, k: int, kind: str, fmt: lb.Format | None = None
) -> np.ndarray:
    """Standard normal; smaller for a format with large values, so that results stay in f16's range."""
    x = rng.standard_normal((m, k)).astype(np.float32)
    if fmt is not None:
        x *= min(1.0, 64 / fmt.code.largest)
    if x.size and kind == "outlier":
        x[rng.integers(m), rng.integers(k)] *= 1000
    if x.size and kind == "not finite":
        x[rng.integers(m), rng.integers(k)] = rng.choice([np.inf, -np.inf, np.nan])
    return x.astype(FLOATS[act])


def check(fmt: lb.Format, act: str, m: int, n: int, k: int, *, kind="normal", bias=False, seed=0, target="sm_80"):
    """Runs one random problem on the interpreter and the emulator and compares both with float64."""
    rng = np.random.default_rng(seed)
    weight, x = random_weight(rng, fmt, n, k), random_activations(rng, act, m, k, kind, fmt)
    b = rng.standard_normal(n).astype(FLOATS[act]) if bias else None
    exact, bound = linear_exact(x, weight, b), linear_bound(x, weight, b)
    emulated = np.full((m, n), 7, FLOATS[act])
    report = run_linear(x, weight, b, emulated, target)
    assert report is None or report.findings == []
    assert agrees(emulated, exact, bound).all()
    tile = linear_tile(m, fmt)
    constants = {"bm": tile.bm, "bn": tile.bn, "bk": tile.bk, "stages": tile.stages}
    dtype = lb.f16 if act == "f16" else lb.bf16
    program = linear.trace(x=dtype, w=fmt, bias=dtype if bias else None, y=dtype, **constants)
    interpreted = np.full((m, n), 7, FLOATS[act])
    arguments = {"x": x, "w": weight, **({"bias": b} if bias else {}), "y": interpreted}
    lb.interpret(program, launch_grid((m, n), (tile.bm, tile.bn)), arguments)
    assert agrees(interpreted, exact, bound).all()
    return report


FORMATS_OF = {
    name: [
        fmt for parts in itertools.product(GROUPS, ZEROS, SCALES, OUTERS) if (fmt := legal(name, *parts)) is not None
    ]
    for name in NUMBERS
}


@st.composite
def problems(draw):
    act = draw(st.sampled_from(["f16", "bf16"]))
    code = CODE_TYPES[draw(st.sampled_from([name for name in NUMBERS if held_by(CODE_TYPES[name], act)]))]
    fmt = draw(st.sampled_from(FORMATS_OF[code.name]))
    k = draw(st.integers(1, 700))
    if isinstance(fmt.group, int):
        step = math.lcm(fmt.group, fmt.outer if isinstance(fmt.outer, int) else 1)
        k = step * draw(st.integers(1, max(1, min(20, 2048 // step))))
    return {
        "fmt": fmt,
        "act": act,
        "m": draw(st.integers(1, 70)),
        "n": draw(st.integers(1, 300)),
        "k": k,
        "kind": draw(st.sampled_from(["normal", "outlier", "not finite"])),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "target": draw(st.sampled_from([name for name, target in TARGETS.items() if act in target.mma_dtypes])),
    }


@settings(max_examples=120)
@given(problems())
def test_interpreter_emulator_and_float64_agree_on_random_problems(problem):
    check(**problem)


@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_120f"])
@pytest.mark.parametrize("name", NUMBERS)
def test_every_format_runs_on_every_family_of_targets(name, target):
    code = CODE_TYPES[name]
    for number, act in enumerate(("f16", "bf16")):
        zero = ("int" if code.is_linear else "float", None)[number]
        if held_by(code, act):
            check(lb.Format(name, group=(64, "channel")[number], zero=zero), act, m=5, n=24, k=192, target=target)
        else:
            with pytest.raises(lb.LowbitvmError, match="FORMAT_UNSUPPORTED"):
                lb.compile_linear(name, act=act, target=target)


@pytest.mark.parametrize(("m", "n", "k"), [(0, 16, 64), (3, 0, 64), (3, 16, 0), (0, 0, 0)])
def test_sizes_of_zero_are_legal(m, n, k):
    check(lb.Format("u4", group="channel", zero="int"), "f16", m, n, k, bias=True)


def test_an_unaligned_view_of_activations_is_read_element_by_element():
    rng = np.random.default_rng(0)
    fmt = lb.Format("i4", group=32)
    weight = random_weight(rng, fmt, 24, 96)
    x = rng.standard_normal(5 * 96 + 1).astype(np.float16)[1:].reshape(5, 96)
    y = np.zeros((5, 24), np.float16)
    assert run_linear(x, weight, None, y, "sm_80").findings == []
    assert agrees(y, linear_exact(x, weight), linear_bound(x, weight)).all()


@pytest.mark.parametrize("exponent", [-62, 60])
@pytest.mark.parametrize("name", ["e2m1", "f7e3m3", "u8"])
def test_bf16_activations_of_few_rows_may_be_far_from_one(name, exponent):
    """Kernels multiply them with a power of two, in place of the weights."""
    rng = np.random.default_rng(0)
    fmt = lb.Format(name, 128, "int" if name == "u8" else None)
    weight = lb.quantize(rng.standard_normal((32, 256), np.float32), fmt)
    x = np.ldexp(rng.uniform(1, 2, (3, 256)), exponent).astype(ml_dtypes.bfloat16)
    y = np.zeros((3, 32), ml_dtypes.bfloat16)
    assert run_linear(x, weight, None, y, "sm_80").findings == []
    terms = np.abs(x.astype(float)) @ np.abs(weight.dequantize()).astype(float).T
    assert np.all(np.abs(y.astype(float) - linear_exact(x, weight)) <= 2.0**-8 * terms)
    assert np.all(agrees(y, linear_exact(x, weight), linear_bound(x, weight)))


def test_a_bias_and_an_output_need_no_alignment_but_a_weight_does():
    rng = np.random.default_rng(0)
    weight, x = random_weight(rng, lb.Format("i4", group=64), 30, 64), random_activations(rng, "f16", 3, 64, "normal")
    bias, y = rng.standard_normal(31).astype(np.float16)[1:], np.zeros(91, np.float16)[1:].reshape(3, 30)
    assert run_linear(x, weight, bias, y, "sm_80").findings == []
    assert agrees(y, linear_exact(x, weight, bias), linear_bound(x, weight, bias)).all()
    shifted = np.zeros(weight.words.size + 1, np.uint32)[1:].reshape(weight.words.shape)
    with pytest.raises(lb.LowbitvmError, match="ARGUMENT_INVALID"):
        run_linear(x, replace(weight, words=shifted), bias, y, "sm_80")


@pytest.mark.parametrize("act", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["u1", "i2", "u4", "u7", "i8", "bp3", "ternary", "f4e2m1", "f6e3m2", "e4m3"])
def test_a_wrong_result_is_outside_the_bound(name, act):
    rng = np.random.default_rng(1)
    fmt = lb.Format(name, group=64)
    weight, x = random_weight(rng, fmt, 40, 256), random_activations(rng, act, 9, 256, "normal", fmt)
    exact, bound = linear_exact(x, weight), linear_bound(x, weight)
    codes, scales, zeros = weight.unpack()
    codes[3, 100] = next(code for code in codes[3] if code != codes[3, 100])  # one code
    assert not agrees(linear_exact(x, lb.pack(codes, scales, zeros, fmt)), exact, bound).all()


@pytest.mark.parametrize(
    "tile",
    [
        {"bm": 8, "bk": 64},
        {"bm": 16, "bk": 64, "stages": 2},
        {"bm": 32, "bk": 128, "stages": 3},
        {"bm": 64, "bk": 64, "warps": 8},
        {"bm": 16, "bn": 64, "bk": 256, "stages": 2, "warps": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "fmt",
    [lb.Format("u4", group=32, zero="offset", scale=scale) for scale in ("f16", "f32")]
    + [lb.Format(name, zero="offset") for name in ("u1", "i2", "bp3", "f5e2m2", "f6e2m3", "u7", "e4m3")],
    ids=str,
)
def test_no_bank_conflicts_and_every_weight_is_read_once_per_row_of_blocks(tile, fmt):
    rng = np.random.default_rng(0)
    m, n, k = 2 * tile["bm"], 256, 512
    weight, x = random_weight(rng, fmt, n, k), random_activations(rng, "f16", m, k, "normal", fmt)
    kernel = lb.compile_linear(fmt, cache=False, **tile)
    y = np.zeros((m, n), np.float16)
    grid = launch_grid((m, n), (tile["bm"], chosen_tile(fmt, **tile).bn))
    report = lb.launch(kernel, grid, {"x": x, "w": weight, "y": y})
    assert agrees(y, linear_exact(x, weight), linear_bound(x, weight, bk=tile["bk"])).all()
    assert report.counters.bank_conflicts == 0
    traffic = report.counters.arrays
    assert traffic[1].read == 2 * weight.words.nbytes
    assert traffic[2].read == 2 * weight.scales.nbytes
    assert traffic[4].written == y.nbytes
