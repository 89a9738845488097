"""What the main loops of integer products cost on sm_80, counted in their machine code."""

import pytest

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.codegen.digits import warps_along_m_of_digits
from lowbitvm.digits import BASES, COLUMNS, columns_per_row
from lowbitvm.integer_plan import digit_tile, grouped_tile
from lowbitvm.integers import format_digits
from lowbitvm.runtime.loops import main_nest, read_sass


def loop(weights: str, act: str, base: str, m: int) -> tuple[float, float, float]:
    """(instructions per weight and thread, share of matrix instructions, multiply-adds per instruction)."""
    fmt, activations = lb.Format(weights, act=act, digits=base), lb.Format(act, digits=base)
    kernel = lb.compile_matmul(fmt, target="sm_80", m=m, cache=False)
    tile = digit_tile(m, 4096, activations, fmt, targets.get("sm_80"))
    assert kernel.spills == 0
    nest = main_nest(read_sass(kernel.sass()))
    total = len(nest.levels[0])
    bm = tile.bm // (warps_along_m_of_digits(kernel.program, tile.warps) if tile.part == tile.bk else 1)
    columns = bm * columns_per_row(activations.code, base) // COLUMNS
    of_warp = nest.matrix / (len(format_digits(fmt).digits) * columns) * 16 * BASES[base].step_k  # weights
    return total / (of_warp / 32), nest.matrix / total, of_warp * bm / total


@pytest.mark.parametrize(
    ("weights", "act", "base", "m", "most", "share"),
    [
        ("u1", "i8", "b1", 1, 0.04, 0.25),
        ("i2", "i8", "b1", 1, 0.05, 0.33),
        ("i3", "i8", "b1", 1, 0.08, 0.33),
        ("i4", "i8", "b1", 1, 0.10, 0.33),
        ("i2", "i8", "b1", 8, 0.25, 0.55),
        ("i4", "i4", "b1", 8, 0.25, 0.50),
        ("i4", "i4", "s4", 8, 0.15, 0.25),
        ("i4", "i8", "s8", 8, 0.42, 0.15),
        ("u1", "u1", "b1", 4096, 0.10, 0.60),
        ("i4", "i8", "s4", 4096, 0.40, 0.60),
    ],
)
def test_few_rows_take_few_instructions_per_weight(
    weights: str, act: str, base: str, m: int, most: float, share: float
) -> None:
    per_weight, matrix, _ = loop(weights, act, base, m)
    assert per_weight <= most and matrix >= share


@pytest.mark.parametrize(
    ("weights", "act", "base", "least"),
    [
        ("i8", "i8", "s8", 2600),
        ("i4", "i8", "s4", 2600),
        ("i4", "i8", "s8", 2250),
        ("i3", "i8", "s8", 0.85 * 2657),
        ("i3", "i8", "s4", 0.85 * 2657),
        ("i6", "i6", "s8", 0.85 * 2657),
        ("i6", "i8", "s8", 0.85 * 2657),
        ("i4", "i4", "s4", 5200),
        ("i2", "i4", "s4", 4000),
    ],
)
def test_large_tiles_do_many_products_per_instruction(weights: str, act: str, base: str, least: float) -> None:
    assert loop(weights, act, base, 4096)[2] >= least


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize(
    ("weights", "act", "m", "most"),
    [
        ("i4,group=128,act=i8", "i8,group=channel,scale=f32", 1, 1.35),
        ("i4,group=128,act=i8", "i8,group=channel,scale=f32", 4096, 3.2),
        ("u4,group=128,zero=int,act=u8", "u8,group=channel,zero=int,scale=f32", 4096, 3.9),
        ("i4,group=128,act=i8", "i8,group=128,scale=f32", 4096, 3.8),
        ("u2,group=64,zero=int,act=u8", "u8,group=256,zero=int,scale=f32", 4096, 20),
    ],
)
def test_groups_take_few_instructions_and_no_spills(weights: str, act: str, m: int, most: float, target: str) -> None:
    fmt = lb.Format.parse(weights).in_digits
    activations = lb.Format.parse(f"{act},digits=s8")
    kernel = lb.compile_matmul(fmt, target=target, m=m, scaled=True, activations=activations, cache=False)
    assert kernel.spills == 0
    if target == "sm_75":
        return  # its instructions are of half the k and half the rows
    sides = (side.group for side in (activations, fmt) if isinstance(side.group, int))
    tile = grouped_tile(m, 4096, 4096, activations, fmt, targets.get(target), tuple(sides))
    nest = main_nest(read_sass(kernel.sass()))
    of_warp = nest.matrix / (tile.bm // COLUMNS) * 16 * BASES["s8"].step_k
    assert len(nest.levels[0]) / (of_warp / 32) <= most
