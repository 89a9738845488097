"""How accurate products with decoded fragments are, in the emulator's model of each architecture's tensor cores."""

import itertools

import numpy as np
import pytest

from lowbitvm import targets
from lowbitvm.codegen import convert
from lowbitvm.codegen.convert import decoder
from lowbitvm.codegen.ptx import Builder, float_immediate, memory, vector
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.runtime import emulator
from tests.decoding import NATIVE

GROUP, STEPS, TRIALS = 128, 8, 64  # k of a group, k16 steps in it, warps with 16 x 8 outputs each
LIMIT = 2.0**-13  # RMS of |error| / |products|: half of what rounding the result to f16 costs
OUTLIER = 1000.0
NAMES = [*(f"u{bits}" for bits in range(1, 9)), *(name for name, code in CODE_TYPES.items() if code.kind == "float")]
CASES = [
    (name, act, target)
    for name, act, target in itertools.product(NAMES, ("f16", "bf16"), ("sm_80", "sm_90a"))
    if CODE_TYPES[name].kind != "float" or convert.held_by(CODE_TYPES[name], act)
]
RAISED = [case for case in CASES if getattr(decoder(CODE_TYPES[case[0]], case[1]), "power", 0)]


def kernel(act, target):
    """Entry "products": P = A B and X = 1 B of one group per warp, from fragments u32[block, step, lane, 4 or 2]."""
    b = Builder()
    lane, block = b.op("mov.u32", "r", "%tid.x"), b.op("mov.u32", "r", "%ctaid.x")
    a, x, sums, totals = (
        b.op("cvta.to.global.u64", "rd", b.op("ld.param.u64", "rd", f"[{name}]"))
        for name in ("a", "x", "sums", "totals")
    )
    ones = b.op("mov.b32", "r", 0x3C003C00 if act == "f16" else 0x3F803F80)
    results = [[b.op("mov.f32", "f", float_immediate(0.0)) for _ in range(4)] for _ in range(2)]
    first = b.op("mad.lo.u32", "r", block, 32 * STEPS, lane)
    for step in range(STEPS):
        at = b.op("add.u32", "r", first, 32 * step)
        left, right = [b.register("r") for _ in range(4)], [b.register("r") for _ in range(2)]
        b.do("ld.global.v4.b32", vector(left), memory(b.op("mad.wide.u32", "rd", at, 16, a)))
        b.do("ld.global.v2.b32", vector(right), memory(b.op("mad.wide.u32", "rd", at, 8, x)))
        for result, fragment in zip(results, (left, [ones] * 4), strict=True):
            mma = f"mma.sync.aligned.m16n8k16.row.col.f32.{act}.{act}.f32"
            b.do(mma, vector(result), vector(fragment), vector(right), vector(result))
    at = b.op("mad.lo.u32", "r", block, 32, lane)
    for result, place in zip(results, (sums, totals), strict=True):
        b.do("st.global.v4.f32", memory(b.op("mad.wide.u32", "rd", at, 16, place)), vector(result))
    return b.module("products", targets.get(target), [f".u64 {name}" for name in ("a", "x", "sums", "totals")], 32)


def products(weights, activations, act, target):
    """(P, X) f32[trial, 16, 8] of weights [trial, 16, 128] and activations [trial, 128, 8] that `act` holds."""
    rows = (
        weights.astype(NATIVE[act]).view(np.uint16).reshape(TRIALS, 2, 8, STEPS, 2, 4, 2)
    )  # half, g, step, half, q, pair
    a = np.ascontiguousarray(rows.transpose(0, 3, 2, 5, 4, 1, 6)).view(np.uint32)
    columns = activations.astype(NATIVE[act]).view(np.uint16).reshape(TRIALS, STEPS, 2, 4, 2, 8)
    x = np.ascontiguousarray(columns.transpose(0, 1, 5, 3, 2, 4)).view(np.uint32)
    results = [np.zeros((TRIALS, 32, 4), np.float32) for _ in range(2)]
    module = emulator.load(kernel(act, target))
    module.launch("products", grid=(TRIALS, 1, 1), block=(32, 1, 1), args=[a, x, *results], arch=target, checks="none")
    # lane 4 g + q has columns 2 q and 2 q + 1 of rows g and g + 8
    return [r.reshape(TRIALS, 8, 4, 2, 2).transpose(0, 3, 1, 2, 4).reshape(TRIALS, 16, 8) for r in results]


def relative_error(name, act, target, outlier, raised=False):
    """RMS over outputs of |error| / |products| for random codes and Gaussian activations.

    raised: these are multiplied with a power of two, and the fragments are not.
    """
    code, decode = CODE_TYPES[name], decoder(CODE_TYPES[name], act)
    up, decode = (2.0**decode.raised, decode.plain) if raised else (1.0, decode)
    random = np.random.default_rng(0)
    stored = random.integers(0, 1 << code.bits, (TRIALS, 16, GROUP))
    x = random.standard_normal((TRIALS, GROUP, 8))
    if outlier:
        x[:, 77] *= OUTLIER
    x = x.astype(NATIVE[act]).astype(np.float64)
    factor, offset = (np.repeat(np.array(pair), 8)[:, None] for pair in (decode.factors, decode.offsets))
    if code.is_linear:
        middle = 1 << (code.bits - 1)
        exact, fragments = stored - middle, factor * (stored + offset)
    else:
        finite = np.where(np.isfinite(code.values), code.values, 0.0)
        stored = np.where(np.isfinite(code.values[stored]), stored, 0)
        middle, exact, fragments = 0, finite[stored], factor * finite[stored]
    sums, totals = products(fragments, x * up, act, target)
    scaled = (sums.astype(np.float64) / factor / up).astype(np.float32).astype(np.float64)
    result = (scaled - (offset + middle) * totals.astype(np.float64) / up).astype(np.float32)
    errors = result - exact @ x
    norms = np.sqrt(exact**2 @ x**2)
    return float(np.sqrt(np.mean((errors / norms)[norms > 0] ** 2)))


@pytest.mark.parametrize("outlier", [False, True], ids=["gaussian", "outlier"])
@pytest.mark.parametrize(("name", "act", "target"), CASES)
def test_the_error_stays_under_half_of_f16_rounding(name, act, target, outlier):
    assert relative_error(name, act, target, outlier) < LIMIT


@pytest.mark.parametrize("outlier", [False, True], ids=["gaussian", "outlier"])
@pytest.mark.parametrize(("name", "act", "target"), RAISED)
def test_the_error_stays_under_that_where_the_activations_are_multiplied(name, act, target, outlier):
    assert relative_error(name, act, target, outlier, raised=True) < LIMIT
