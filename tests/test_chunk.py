"""The stored order of a chunk: laws over every code type."""

import numpy as np
import pytest

from lowbitvm import chunk
from lowbitvm.dtypes import CODE_TYPES


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
