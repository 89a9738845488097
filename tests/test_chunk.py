"""The stored order of a chunk: laws over every code type."""

import numpy as np
import pytest

from lowbitvm import chunk
from lowbitvm.codegen import synthesis
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


@pytest.mark.parametrize("shape", SHAPES)
def test_the_search_finds_the_layout_in_the_table(shape):
    code = SHAPES[shape]
    assert chunk.LAYOUTS[shape].split() == synthesis.text(synthesis.layout(code)).split()


def test_the_table_has_no_other_layouts():
    assert set(chunk.LAYOUTS) == set(SHAPES)
