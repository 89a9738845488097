"""Every format that weights can be packed in, in the linear kernel: interpreter, emulator and float64 agree."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.bounds import agrees
from lowbitvm.codegen.convert import held_by
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import NAMED
from lowbitvm.kernels.epilogue import ACTIVATIONS
from lowbitvm.runtime.linear import run_linear
from lowbitvm.targets import TARGETS
from tests.linear import FLOATS, Layer
from tests.weights import QUANTIZABLE, float_weight

FAMILIES = ("sm_75", "sm_80", "sm_90a", "sm_100a", "sm_120f")
# One of each code type, and what the named and the foreign formats have beside it.
EVERY = {name: lb.Format(name, 64, table="tensor" if name[0] == "c" else None) for name in CODE_TYPES}
EVERY |= NAMED | {
    text: lb.Format.parse(text)
    for text in (
        "c4,table=block",
        "c3,group=32,table=group",
        "u2,group=16,zero=offset,scale=i8,outer=256",  # Q2_K
        "i3,group=16,scale=i8,outer=256",  # Q3_K
        "u4,group=32,zero=offset,scale=i8,outer=256",  # Q4_K
        "u5,group=32,zero=offset,scale=i8,outer=256",  # Q5_K
        "i6,group=16,scale=i8,outer=256",  # Q6_K
        "u4,group=tensor,zero=int,scale=e4m3,outer=tensor",
        "ternary,group=256,scale=e8m0",
        "bp2,group=channel,zero=float,scale=f32",
        "nf4,group=64,zero=offset,scale=bf16",
    )
}


def has_kernel(fmt: lb.Format, act: str, target: str) -> bool:
    """Whether the linear kernel can be asked for: f16 holds what e5 and wider floats stand for nowhere, sm_75 no bf16.

    Everything else has to run.
    """
    code = fmt.code
    return act in targets.get(target).mma_dtypes and (code.kind != "float" or held_by(code, act))


def layer(fmt: lb.Format, m: int, n: int, k: int, act: str, seed: int, **parts: object) -> Layer:
    """Random activations and rounded random weights; `parts` of Layer are kinds of arrays to make, or its fields."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(k).astype(np.int32) if parts.pop("permuted", False) else None
    w = lb.quantize(**float_weight(fmt, n, k, seed), permutation=order)
    if parts.pop("gated", False):
        parts["gate"] = lb.quantize(**float_weight(fmt, n, k, seed + 1), permutation=order)
    for name, shape in (("bias", (n,)), ("residual", (m, n))):
        if parts.get(name):
            parts[name] = rng.standard_normal(shape).astype(FLOATS[str(parts[name])])
    return Layer((rng.standard_normal((m, k)) / 8).astype(FLOATS[act]), w, **parts)


def check(made: Layer, target: str, **options: object) -> None:
    exact, bound = made.ordered().expected()
    assert agrees(made.emulated(target, **options), exact, bound).all()
    assert agrees(made.interpreted(), exact, bound).all()


@pytest.mark.parametrize("target", FAMILIES)
@pytest.mark.parametrize("name", EVERY)
def test_every_format_runs_on_every_family_of_targets(name, target):
    fmt, number = EVERY[name], list(EVERY).index(name) + FAMILIES.index(target)
    runs = [act for act in FLOATS if has_kernel(fmt, act, target)]
    if runs:
        act = runs[number % len(runs)]
        check(layer(fmt, (5, 20)[number % 2], 40, 256, act, seed=number, out=act), target)
    for act in {"f16", "bf16"} - set(runs):
        with pytest.raises(LowbitvmError, match=r"(FORMAT|KERNEL)_UNSUPPORTED.*Fix: (use|choose|pack)"):
            lb.compile_linear(fmt, act=act, target=target)


@pytest.mark.parametrize("name", [name for name, fmt in EVERY.items() if has_kernel(fmt, "f16", "sm_80")])
def test_the_codes_of_every_format_are_read_once_and_without_bank_conflicts(name):
    made = layer(EVERY[name], 8, 256, 1024, "f16", seed=0)
    y = np.zeros(made.shape, np.float16)
    counters = run_linear(made.x, made.w, None, y, "sm_80", checks="none").counters
    words = counters.arrays[1]
    assert words.read == words.distinct_read == made.w.words.nbytes
    if (made.w.format.table != "group" and made.w.format.bits < 6) or made.w.format.code.kind != "table":
        assert counters.bank_conflicts == 0


@pytest.mark.parametrize("target", ["sm_75", "sm_86", "sm_80"])
@pytest.mark.parametrize("name", ["u6,group=64,zero=offset,scale=i8,outer=256", "u8,group=16", "u4,group=16,scale=f32"])
def test_layers_with_two_weights_are_planned_to_fit_the_shared_memory(name, target):
    for m in (1, 16, 64, 200):
        check(layer(lb.Format.parse(name), m, 40, 256, "f16", seed=m, gated=True), target)


@st.composite
def problems(draw):
    fmt = draw(st.sampled_from(QUANTIZABLE))
    target = draw(st.sampled_from(list(TARGETS)))
    acts = [act for act in ("f16", "bf16") if has_kernel(fmt, act, target)]
    if not acts:
        fmt, acts = lb.Format("u4"), ["f16"]
    step = math.lcm(*(part for part in (fmt.group, fmt.outer) if isinstance(part, int)), 1)
    outs = ("f16", "f32") if target == "sm_75" else ("f16", "bf16", "f32")
    act = draw(st.sampled_from(acts))
    return {
        "fmt": fmt,
        "m": draw(st.one_of(st.integers(1, 20), st.integers(1, 150))),
        "n": draw(st.integers(1, 200)),
        "k": step * draw(st.integers(1, max(1, 1500 // step))),
        "act": act,
        "target": target,
        "out": draw(st.sampled_from(outs)),
        "bias": draw(st.sampled_from([None, act])),
        "residual": draw(st.sampled_from([None, *outs])),
        "gated": draw(st.booleans()),
        "permuted": draw(st.booleans()),
        "activation": draw(st.sampled_from([None, *ACTIVATIONS])),
        "batch_invariant": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 2)),
        "schedule": draw(st.sampled_from(["random", "round_robin", "adversarial"])),
    }


@settings(max_examples=60)
@given(problems())
def test_interpreter_emulator_and_float64_agree_on_random_layers(problem):
    target, *options = (problem.pop(name) for name in ("target", "batch_invariant", "schedule"))
    check(layer(**problem), target, batch_invariant=options[0], schedule=options[1])
