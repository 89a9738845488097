"""Stores of fragments by pairs of neighbouring out_features, and loads that follow the same layout."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm.plan import linear_tile
from lowbitvm.runtime.compiled import compile_program, launch_grid
from lowbitvm.runtime.linear import Variant, run_linear
from lowbitvm.targets import TARGETS, get

FMT = lb.Format("u4", group=64, zero="int")
FLOATS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}


def weight_of(n: int, k: int) -> lb.PackedWeight:
    rng = np.random.default_rng(n + k)
    shape = FMT.scales_shape(n, k)
    return lb.pack(
        rng.integers(0, 16, (n, k)), rng.uniform(0.1, 1, shape).astype(np.float16), rng.integers(0, 16, shape), FMT
    )


def run(variant: Variant, target: str, m: int, n: int, k: int = 128):
    """(y, the emulator's report) of a random problem, the same for every variant of the same dtypes."""
    rng, tile = np.random.default_rng(m), variant.tile
    y = np.full((m, n), 7, FLOATS[variant.out])
    arguments = {"x": rng.standard_normal((m, k)).astype(FLOATS[variant.act]), "w": weight_of(n, k), "y": y}
    if variant.bias:
        arguments["bias"] = rng.standard_normal(n).astype(FLOATS[variant.bias])
    if variant.residual:
        arguments["residual"] = rng.standard_normal((m, n)).astype(FLOATS[variant.residual])
    kernel = compile_program(variant.program(), target, tile.warps)
    return y, lb.launch(kernel, launch_grid((m, n), (tile.bm, tile.bn)), arguments, schedule="adversarial")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("out", ["f16", "bf16", "f32"])
@pytest.mark.parametrize(("m", "n"), [(3, 24), (16, 136), (61, 40)])
def test_aligned_kernels_give_the_same_bits_as_those_that_store_element_by_element(target, out, m, n):
    act = "f16" if out == "f32" or target == "sm_75" else out  # which multiplies no bf16
    tile = linear_tile(m, FMT, get(target))
    variant = Variant(FMT, tile, act, out, bias=act, residual="f32" if m == 3 else act, activation="relu")
    y, _ = run(variant, target, m, n)
    wide, report = run(replace(variant, aligned=True), target, m, n)
    assert report.findings == []
    assert np.array_equal(y.view(np.uint8), wide.view(np.uint8))


@pytest.mark.parametrize("m", [8, 16, 64])
def test_pairs_take_half_the_stores_and_fewer_instructions(m):
    variant = Variant(FMT, linear_tile(m, FMT, get("sm_80")))
    plain, wide = (run(replace(variant, aligned=aligned), "sm_80", m, 128)[1].counters for aligned in (False, True))
    assert 2 * wide.by_mnemonic["st.global.b32"] == plain.by_mnemonic["st.global.b16"]
    assert wide.by_mnemonic["cvt.rn.f16x2.f32"] == wide.by_mnemonic["st.global.b32"]
    assert wide.instructions < plain.instructions and wide.global_sectors <= plain.global_sectors


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("n", [24, 20])
def test_the_layer_pairs_where_size_and_addresses_allow_it(n, shift):
    weight, x = weight_of(n, 64), np.random.default_rng(0).standard_normal((3, 64)).astype(np.float16)
    y = np.zeros(3 * n + shift, np.float16)[shift:].reshape(3, n)
    report = run_linear(x, weight, None, y, "sm_80")
    assert report is not None and report.findings == []
    assert ("movmatrix.sync.aligned.m8n8.trans.b16" in report.counters.by_mnemonic) == (n == 24 and shift == 0)
    np.testing.assert_allclose(y, x.astype(np.float64) @ weight.dequantize().T, rtol=2.0**-10, atol=2.0**-6)


def test_an_array_that_is_loaded_and_stored_keeps_one_layout():
    @lb.kernel(x=("m k", lb.f16), w=lb.packed("n k"), y=("m n", lb.f16))
    def accumulate(x, w, y):
        acc = lb.zeros((16, 64))
        for k in lb.range(0, x.shape[1], 64):
            acc += lb.dot(lb.load(x, (0, k), (16, 64)), lb.dequant(lb.load(w, (0, k), (64, 64)), w.scales, w.zeros).T)
        lb.store(y, (0, 0), (acc + lb.load(y, (0, 0), (16, 64)).to(lb.f32)).to(lb.f16))

    weight, rng = weight_of(64, 128), np.random.default_rng(1)
    x, y = (rng.standard_normal(shape).astype(np.float16) for shape in ((16, 128), (16, 64)))
    exact = x.astype(np.float64) @ weight.dequantize().T + y
    kernel = accumulate.compile("sm_80", w=FMT, divisible={"n": 8, "k": 8})
    assert lb.launch(kernel, (1,), {"x": x, "w": weight, "y": y}).findings == []
    np.testing.assert_allclose(y, exact, rtol=2.0**-10, atol=2.0**-6)
    assert "movmatrix" not in kernel.ptx


@pytest.mark.parametrize("target", TARGETS)
def test_aligned_kernels_assemble_without_spills(target):
    for m in (8, 64):
        tile = linear_tile(m, FMT, get(target))
        parts = {name: getattr(tile, name) for name in ("bm", "bn", "bk", "stages", "warps")}
        kernel = lb.compile_linear(FMT, target=target, bias=True, residual=True, aligned=True, cache=False, **parts)
        assert kernel.spills == 0 and ".version 7.5" not in kernel.ptx
