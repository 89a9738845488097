"""Instructions that exchange data between lanes, against what the manual says of each lane."""

from collections.abc import Callable
from functools import reduce

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.lanes import apply, floats, integers


def few(bits: int, seed: int) -> np.ndarray:
    """Four warps of values of which many are equal; those of the third warp all are."""
    rng = np.random.default_rng(seed)
    values = rng.choice(integers(bits, 3, seed), 128)
    values[64:96] = values[64]
    return values


@pytest.mark.parametrize("bits", [32, 64])
def test_match_any_names_the_lanes_with_the_same_value(bits: int) -> None:
    a = few(bits, 1)
    got = apply(f"match.any.sync.b{bits} Z, A, -1;", 4, a).reshape(4, 32)
    for warp, values in zip(got, a.reshape(4, 32), strict=True):
        assert warp.tolist() == [sum(1 << n for n in range(32) if values[n] == value) for value in values]


@pytest.mark.parametrize("bits", [32, 64])
def test_match_all_holds_where_every_lane_has_the_same_value(bits: int) -> None:
    a = few(bits, 1)
    got = apply(f"match.all.sync.b{bits} %r5|%p1, A, -1; selp.b32 %r6, 1, 0, %p1; xor.b32 Z, %r5, %r6;", 4, a)
    same = [len(set(values.tolist())) == 1 for values in a.reshape(4, 32)]
    assert same == [False, False, True, False]
    assert got.reshape(4, 32).tolist() == [[0xFFFFFFFE if equal else 0] * 32 for equal in same]


def test_only_the_lanes_of_the_mask_are_matched_and_reduced() -> None:
    a = few(32, 2)
    half = "and.b32 %r5, %index, 1; setp.eq.u32 %p1, %r5, 1; mov.u32 Z, 0;"
    got = apply(f"{half} @%p1 match.any.sync.b32 Z, A, 0xAAAAAAAA;", 4, a).reshape(4, 32)
    for warp, values in zip(got, a.reshape(4, 32), strict=True):
        odd = [sum(1 << n for n in range(1, 32, 2) if values[n] == value) for value in values]
        assert warp.tolist() == [mask if n % 2 else 0 for n, mask in enumerate(odd)]
    got = apply(f"{half} @%p1 redux.sync.add.u32 Z, A, 0xAAAAAAAA;", 4, a).reshape(4, 32)
    sums = a.reshape(4, 32)[:, 1::2].astype(np.uint64).sum(axis=1) % 2**32
    np.testing.assert_array_equal(got, np.where(np.arange(32) % 2, sums[:, None], 0))


REDUCTIONS: dict[str, Callable[[int, int], int]] = {
    "add.u32": lambda a, b: a + b,
    "add.s32": lambda a, b: a + b,
    "min.u32": min,
    "max.u32": max,
    "min.s32": min,
    "max.s32": max,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_integers(name: str) -> None:
    a = integers(32, 128, seed=1)
    typed = a.view(np.int32) if name.endswith("s32") else a
    got = apply(f"redux.sync.{name} Z, A, -1;", 4, a).reshape(4, 32)
    expected = [reduce(REDUCTIONS[name], warp) % 2**32 for warp in typed.reshape(4, 32).tolist()]
    np.testing.assert_array_equal(got, np.repeat(np.array(expected)[:, None], 32, axis=1))


@np.errstate(all="ignore")
@pytest.mark.parametrize("modifiers", ["", ".abs", ".NaN", ".abs.NaN"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_reductions_of_floats_leave_nan_out_unless_asked(name: str, modifiers: str) -> None:
    a = floats(np.float32, 128, seed=1)
    a[:32] = np.array([0.0, -0.0], np.float32).repeat(16)
    a[32:64] = np.nan
    a[64:96] = np.where(np.isnan(a[64:96]), 1, a[64:96])
    a[96] = np.nan
    got = apply(f"redux.sync.{name}{modifiers}.f32 Z, A, -1;", 4, a).reshape(4, 32)
    for warp, values in zip(got, a.reshape(4, 32), strict=True):
        if ".abs" in modifiers:
            values = np.abs(values)
        numbers = values[~np.isnan(values)]
        if numbers.size == 0 or (".NaN" in modifiers and numbers.size < 32):
            assert (warp == 0x7FFFFFFF).all()
            continue
        choose = min if name == "min" else max
        expected = choose(numbers.tolist(), key=lambda v: (v, np.copysign(1, v)))
        np.testing.assert_array_equal(warp, np.float32(expected).view(np.uint32))


def test_the_lowest_active_lane_is_elected() -> None:
    a = integers(32, 128, seed=1)
    got = apply("elect.sync %r5|%p1, -1; selp.b32 %r6, 256, 0, %p1; or.b32 Z, %r5, %r6;", 4, a).reshape(4, 32)
    assert got.tolist() == [[256] + [0] * 31] * 4
    late = "and.b32 %r5, %index, 31; setp.gt.u32 %p1, %r5, 4; mov.u32 Z, 99; @%p1 elect.sync _|%p2, 0xFFFFFFE0;"
    got = apply(f"{late} @%p1 selp.b32 Z, 1, 0, %p2;", 4, a).reshape(4, 32)
    assert got.tolist() == [[99] * 5 + [1] + [0] * 26] * 4


def test_votes_on_a_constant_and_on_unanimity() -> None:
    a = few(32, 1)
    a[:32] = 1
    a[32:64] = 0
    start = "and.b32 %r5, A, 1; setp.eq.u32 %p1, %r5, 1;"
    odd = (a % 2 == 1).reshape(4, 32)
    for name, truth in {"all": odd.all(1), "any": odd.any(1), "uni": odd.all(1) | ~odd.any(1)}.items():
        got = apply(f"{start} vote.sync.{name}.pred %p2, %p1, -1; selp.b32 Z, 1, 0, %p2;", 4, a).reshape(4, 32)
        np.testing.assert_array_equal(got, np.repeat(truth[:, None], 32, axis=1), err_msg=name)


@pytest.mark.parametrize(
    ("instruction", "lane", "source"),
    [
        ("shfl.sync.down.b32 %r6, A, 8, 31, 0xFFFF;", 8, 16),
        ("shfl.sync.bfly.b32 %r6, A, 16, 31, 0xFFFF;", 0, 16),
        ("shfl.sync.idx.b32 %r6, A, 20, 31, 0xFFFF;", 0, 20),
    ],
)
def test_a_shuffle_from_a_lane_that_does_not_take_part_is_reported(instruction: str, lane: int, source: int) -> None:
    body = f"and.b32 %r5, %index, 31; setp.lt.u32 %p1, %r5, 16; @%p1 {instruction} mov.u32 Z, 0;"
    with pytest.raises(emulator.EmulatorError) as error:
        apply(body, 4, integers(32, 128, seed=1))
    finding = error.value.finding
    assert (finding.kind, finding.thread[0] % 32) == ("shuffle_source", lane)
    assert f"from lane {source}" in finding.message
    within = body.replace(instruction, "shfl.sync.bfly.b32 %r6, A, 8, 31, 0xFFFF;")
    apply(within, 4, integers(32, 128, seed=1))


@pytest.mark.parametrize(
    "form",
    [
        "vote.ballot.b32 %r1, %p1;",
        "vote.sync.ballot.pred %p1, %p1, -1;",
        "shfl.up.b32 %r1, %r1, 1, 0;",
        "shfl.sync.up.u32 %r1, %r1, 1, 0, -1;",
        "redux.sync.add.f32 %r1, %r1, -1;",
        "redux.sync.and.u32 %r1, %r1, -1;",
        "match.any.sync.u32 %r1, %r1, -1;",
        "elect.sync %p1, -1;",
    ],
)
def test_forms_that_ptx_does_not_have_are_refused(form: str) -> None:
    with pytest.raises(emulator.PtxError):
        apply(form, 4, integers(32, 128))
