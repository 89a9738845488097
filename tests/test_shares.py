"""Steps of parts of k that cost more or less, shared out among the SMs: the model, and the kernel that follows it."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.integer_plan import mixture_tile, shared_tile
from lowbitvm.runtime import mixture
from lowbitvm.runtime.mixture import run_mixed
from lowbitvm.shares import UNEVEN, Shares, in_turn, share_out, step_costs, unevenness
from tests.test_mixtures import activations, exact, weights

SHARES = st.builds(
    lambda tiles, parts, workers: Shares(tiles, *(tuple(x) for x in zip(*parts, strict=True)), workers),
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=3),
    st.integers(1, 30),
)


@given(shares=SHARES)
def test_workers_have_every_step_once_and_equal_work_up_to_a_step(shares: Shares) -> None:
    places = [shares.first(worker) for worker in range(shares.workers + 1)]
    assert places[0] == 0 and places[-1] == shares.tiles * shares.tile
    assert all(a <= b for a, b in pairwise(places))
    steps = [  # where each begins, and what it costs
        (tile * shares.tile + start + number * cost, cost)
        for tile in range(shares.tiles)
        for start, count, cost in zip(
            np.cumsum([0, *(s * c for s, c in zip(shares.steps, shares.costs, strict=True))]),
            shares.steps,
            shares.costs,
            strict=False,
        )
        for number in range(count)
    ]
    work = [sum(cost for at, cost in steps if a <= at < b) for a, b in pairwise(places)]
    assert work == [shares.work(worker) for worker in range(shares.workers)]
    assert max(work) - min(work) <= max(shares.costs) * 2 + 1
    assert sum(shares.finish_times(5)) == sum(work)


LAYERS = [(4096, 4096), (11008, 4096), (4096, 11008), (8192, 8192), (28672, 8192)]


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120f"])
@pytest.mark.parametrize("m", [256, 2048])
@pytest.mark.parametrize(("n", "k"), LAYERS)
def test_finish_times_of_w4a4_and_w4a8_are_within_five_percent(n: int, k: int, m: int, target: str) -> None:
    """A quarter of the blocks of 128 in_features has activations of 8 bits; s4 where it is native."""
    found = targets.get(target)
    narrow = "s4" if "s4" in found.digits else "s8"
    wide = k // 4 // 128 * 128
    formats = [(lb.Format("i8", digits="s8"), wide), (lb.Format("i4", digits=narrow), k - wide)]
    mixed = [[lb.Format("i4", act="i8", digits="s8")], [lb.Format("i4", act="i4", digits=narrow)]]
    tile = shared_tile(mixture_tile(m, formats, [mixed], [0, 0], False, found), 2)
    tiles = -(-m // tile.bm) * -(-n // tile.bn)
    steps = tuple(-(-size // bk) for (_, size), bk in zip(formats, tile.bk, strict=True))
    costs = step_costs([fmt for fmt, _ in formats], mixed, tile.bk, found.gpu)
    shares = share_out(tiles, steps, costs, found.gpu)
    times = in_turn(tiles, found.gpu.sms) if shares is None else shares.finish_times(found.gpu.sms)
    assert unevenness(times) <= UNEVEN == 0.05


def test_a_step_of_twice_the_digits_at_half_the_rate_costs_four_times_as_much() -> None:
    gpu = targets.get("sm_80").gpu
    sides = [lb.Format("i8", digits="s4"), lb.Format("i4", digits="s4"), lb.Format("i8", digits="s8")]
    mixed = [[lb.Format("i4", act=fmt.dtype, digits=fmt.digits)] for fmt in sides]
    assert step_costs(sides, mixed, (128, 128, 128), gpu) == (8, 4, 8)


PARTS = [  # activations, weights, digits and in_features
    (("i8", "i4", "s8", 300), ("i4", "u4", "s4", 700)),
    (("u8", "i3", "s8", 64), ("i4", "i4", "s8", 640), ("u2", "i2", "s8", 130)),
    (("i8", "i2", "b1", 600), ("bp2", "u1", "b1", 1100)),
]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("workers", [1, 3, 5, 17])
@pytest.mark.parametrize("scaled", [False, True])
def test_shared_steps_give_the_bits_of_whole_tiles(parts: Any, workers: int, scaled: bool) -> None:
    m, n = 70, 150
    sides = [activations(act, m, k, digits, i, scaled) for i, (act, _, digits, k) in enumerate(parts)]
    w = lb.mix_columns(*(weights(code, act, n, k, d, i, scaled) for i, (act, code, d, k) in enumerate(parts)))
    tile = shared_tile(mixture._variant(sides, w, "i32", "sm_80", None).tile, len(parts))
    assert tile.bn >= 16 * tile.warps
    steps = tuple(-(-side.columns // bk) for side, bk in zip(sides, tile.bk, strict=True))
    costs = tuple(range(2, 2 + len(parts)))
    shares = Shares(-(-m // tile.bm) * -(-n // tile.bn), steps, costs, workers)
    expected = exact(sides, w)
    for seed in range(2):
        y = np.full((m, n), -1, expected.dtype if scaled else np.int32)
        report = run_mixed(sides, w, y, "sm_80", shares=shares, checks="all", on_finding="raise", seed=seed)
        assert report is not None and not report.findings and np.array_equal(y, expected)


def test_uneven_products_are_shared_out_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 tiles for an A100's 108 SMs: 0.59 of one for each, and steps are whole."""
    sides = [activations(act, 64, k, "s8") for act, k in (("i8", 2048), ("i4", 2048))]
    w = lb.mix_columns(*(weights("i4", side.format.dtype, 4096, side.columns, "s8") for side in sides))
    tile = mixture._variant(sides, w, "i32", "sm_80", None).tile
    shares = mixture._shares(sides, w, tile, targets.get("sm_80").gpu)
    assert shares is not None and shares.workers == 216
    assert max(shares.finish_times(108)) < 0.6 * max(in_turn(shares.tiles, 108)) * shares.tile
    called: list[Any] = []
    monkeypatch.setattr(
        mixture, "launch", lambda kernel, grid, arguments, **_: called.append((kernel, grid, arguments))
    )
    run_mixed(sides, w, np.zeros((64, 4096), np.int32), "sm_80")
    kernel, grid, arguments = called[0]
    assert grid == (216,) and arguments["arrivals"].shape == (shares.tiles,)
    assert kernel.spills == 0


@pytest.mark.parametrize("target", targets.TARGETS)
def test_kernels_that_share_steps_have_no_spills(target: str) -> None:
    for acts in (("i8", "i4"), ("i8", "i4", "u2")):
        sides = [activations(act, 200, 512, "s8", scaled=True) for act in acts]
        w = lb.mix_columns(*(weights("i4", act, 256, 512, "s8", scaled=True) for act in acts))
        variant = mixture._variant(sides, w, "f16", target, None)
        tile = shared_tile(variant.tile, len(acts))
        variant = replace(variant, tile=tile, shares=((4, 4, 4)[: len(acts)], 216))
        assert mixture._compiled(variant, target, None).spills == 0
