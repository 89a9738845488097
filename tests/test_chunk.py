"""The stored order of a chunk: laws over every code type."""

import numpy as np
import pytest

from lowbitvm import chunk
from lowbitvm.codegen import synthesis
from lowbitvm.codegen.convert import cost, held_by, layout_decoder
from lowbitvm.dtypes import CODE_TYPES

SHAPES = {chunk.shape(code): code for code in CODE_TYPES.values() if code.kind != "table"}


@pytest.mark.parametrize("name", CODE_TYPES)
def test_the_order_is_a_permutation_of_the_bits_of_a_lane(name):
    code_type = CODE_TYPES[name]
    positions = chunk.order(code_type).positions
    assert positions.shape == (32, code_type.bits)
    assert np.array_equal(np.sort(positions, axis=None), np.arange(32 * code_type.bits))


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_words_of_a_tile_lie_in_blocks_of_the_widest_vectors(bits):
    widths = chunk.blocks(bits)
    assert sum(widths) == bits and list(widths) == sorted(widths, reverse=True) and set(widths) <= {1, 2, 4}
    places = [chunk.word_place(bits, word) for word in range(bits)]
    numbers = [start + lane * width + index for start, width, index in places for lane in range(32)]
    assert sorted(numbers) == list(range(32 * bits))
    assert [width for _, width, _ in places] == [width for width in widths for _ in range(width)]
    with pytest.raises(IndexError):
        chunk.word_place(bits, bits)


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - synthesis.ANNEALED))
def test_the_search_finds_the_layout_in_the_table(shape):
    code = SHAPES[shape]
    assert chunk.LAYOUTS[shape].split() == synthesis.text(synthesis.layout(code)).split()


@pytest.mark.parametrize("shape", sorted(synthesis.ANNEALED))
def test_layouts_by_annealing_come_nearer_to_the_aim_than_what_the_search_finds_or_take_less_in_all(shape):
    code = SHAPES[shape]
    found, annealed = (
        {act: sum(cost(layout_decoder(code, act, layout)).values()) for act in ("f16", "bf16") if held_by(code, act)}
        for layout in (synthesis.layout(code), chunk.layouts(shape, code.bits))
    )
    first, second = ((max(0, costs.get("f16", 0) - 49), sum(costs.values())) for costs in (annealed, found))
    assert first < second


@pytest.mark.parametrize("shape", [shape for shape, code in SHAPES.items() if code.kind == "float"])
def test_words_written_place_by_place_give_the_order_that_they_show(shape):
    code = SHAPES[shape]
    positions = chunk.order(code).positions[::2] % 32 % 16 + 16 * (chunk.order(code).positions[::2] // 32)
    names = {int(p): f"{chr(97 + i)}{'s' if b == code.bits - 1 else b}" for (i, b), p in np.ndenumerate(positions)}
    words = [[names[16 * word + place] for place in range(16)] for word in range(code.bits)]
    again = chunk.positions_of(synthesis.placed(code, words), code.bits)[::2]
    assert np.array_equal(again % 32 % 16 + 16 * (again // 32), positions)


def test_the_table_has_no_other_layouts():
    assert set(chunk.LAYOUTS) == set(SHAPES)
