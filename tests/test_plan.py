"""The tiles that linear layers run with: what their kernels take of a GPU, and what they leave of its bandwidth."""

import pytest

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.bench.measure import bytes_needed, measure
from lowbitvm.bench.ours import Exactly, build
from lowbitvm.plan import DECODE_ROWS, chosen_tile, linear_plan, linear_tile
from lowbitvm.tile import MOST_SPLITS, registers

WIDTHS = [lb.Format(f"u{bits}", group=128, zero="int") for bits in range(1, 9)]
OTHERS = [
    lb.Format("u2", group=32, zero="float"),
    lb.Format("u4", group=16, zero="offset"),
    lb.Format("bp1", group="channel"),
    lb.Format("i6", group="tensor"),
    lb.Format("f6e3m2", group=64),
    lb.Format("e4m3", group=256),
    lb.Format("nf4", group=64),
    lb.Format("c1", group=128, table="tensor"),
]


@pytest.mark.parametrize("target", targets.TARGETS)
def test_the_codes_on_their_way_keep_the_memory_busy_on_every_target_and_at_every_width(target):
    wanted = [
        Exactly(fmt, "f16", target, chosen_tile(fmt, targets.get(target), bm=rows))
        for fmt in WIDTHS + (OTHERS if target in ("sm_75", "sm_80", "sm_100a") else [])
        for rows in (8, DECODE_ROWS)
    ]
    for variant, kernel in zip(wanted, build(wanted), strict=True):
        row, case = measure(kernel), (str(variant.format), variant.chosen_tile)
        assert row.bytes_in_flight >= bytes_needed(target), case
        assert row.spills == 0, case
        assert row.bank_conflicts == 0, case
        estimate = registers(variant.chosen_tile, variant.format)
        assert not variant.chosen_tile.direct or row.registers <= 1.25 * estimate, (case, row.registers, estimate)


def test_tiles_grow_and_loads_run_further_ahead_as_bits_shrink():
    for target in targets.TARGETS.values():
        for rows in (8, DECODE_ROWS):
            tiles = [linear_tile(rows, fmt, target) for fmt in WIDTHS]
            k = [tile.bn * tile.direct for tile in tiles]
            assert all(k)
            assert min(k[:2]) >= 2 * min(k)
            assert tiles == [chosen_tile(fmt, target, bm=rows) for fmt in WIDTHS]


def test_a_second_weight_takes_the_registers_that_streaming_further_ahead_would():
    target = targets.get("sm_80")
    for fmt in WIDTHS:
        alone, gated = linear_tile(8, fmt, target), linear_tile(8, fmt, target, False, 2)
        assert gated.bn * gated.direct <= alone.bn * alone.direct
        kernel = lb.compile_linear(fmt, bm=8, gate=True, activation="silu", cache=False)
        assert kernel.spills == 0


def test_the_splits_of_a_batch_invariant_plan_do_not_depend_on_the_rows():
    target = targets.get("sm_90a")
    plans = {linear_plan(m, 4096, 8192, WIDTHS[3], target, True) for m in (1, 16, 17, 64, 1000)}
    assert len(plans) == 1
    assert 1 < plans.pop().splits <= MOST_SPLITS
