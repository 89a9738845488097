"""The layout algebra against pycute, NVIDIA's own, where both can express a layout: powers of two, one bit a stride."""

import pycute
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbitvm.layout import Layout


def cute(columns):
    """The pycute layout whose index bit i has stride columns[i] (0: broadcast)."""
    return pycute.Layout((2,) * len(columns), tuple(columns)) if columns else pycute.Layout(1, 0)


def linear(layout, out_bits):
    """The GF(2) layout of a pycute layout: index -> offset. Equality of functions is equality of these."""
    bits = pycute.size(layout).bit_length() - 1
    result = Layout({"i": [(layout(1 << i),) for i in range(bits)]}, {"o": out_bits})
    assert [result(i=i)["o"] for i in range(1 << bits)] == [layout(i) for i in range(1 << bits)]
    return result


def chain(first, second):
    """second after first, index -> index -> offset."""
    return first.rename(outs={"o": "i"}).compose(second)


@st.composite
def strides(draw, min_size=0, out_bits=4, zeros=True):
    """Distinct powers of two below 2**out_bits in any order, with some zeros among them."""
    kept = draw(st.lists(st.sampled_from(range(out_bits)), unique=True, min_size=min_size, max_size=out_bits))
    columns = [1 << bit for bit in kept]
    for place in draw(st.lists(st.integers(0, len(columns)), max_size=2)) if zeros else []:
        columns.insert(place, 0)
    return columns


@given(strides())
def test_coalesced_layouts_are_equal_layouts(columns):
    layout = cute(columns)
    assert linear(pycute.coalesce(layout), 4) == linear(layout, 4)


@given(strides(), strides())
def test_layouts_are_equal_exactly_when_pycute_coalesces_them_to_the_same(a, b):
    same = pycute.coalesce(cute(a)) == pycute.coalesce(cute(b)) and len(a) == len(b)
    assert (linear(cute(a), 4) == linear(cute(b), 4)) == same


@given(strides(min_size=1), st.data())
def test_composition_coincides(columns, data):
    inner = data.draw(strides(out_bits=len(columns)))
    composed = pycute.composition(cute(columns), cute(inner))
    assert linear(composed, 4) == chain(linear(cute(inner), len(columns)), linear(cute(columns), 4))


@given(strides(min_size=4, zeros=False))
def test_right_inverse_of_a_bijection_coincides(columns):
    layout = linear(cute(columns), 4)
    theirs = linear(pycute.right_inverse(cute(columns)), 4)
    assert layout.right_inverse() == layout.inverse() == theirs.rename(ins={"i": "o"}, outs={"o": "i"})


@given(strides(min_size=1, zeros=False))
def test_right_inverse_coincides_on_the_low_outputs_that_are_reached(columns):
    """pycute inverts as many low output bits as have an input; with zero strides it inverts nothing at all."""
    reached = next(bit for bit in range(5) if 1 << bit not in columns)
    low = linear(cute(columns), 4).split(outs={"o": {"o": reached, "high": 4 - reached}}).project("o")
    theirs = linear(pycute.right_inverse(cute(columns)), len(columns))
    assert low.right_inverse() == theirs.rename(ins={"i": "o"}, outs={"o": "i"})


@given(strides(min_size=2), st.data())
def test_logical_divide_is_a_split_of_the_inputs_into_tile_and_rest(columns, data):
    """(tile, rest) of logical_divide(A, B) is A after B * complement(B)."""
    tile = data.draw(strides(min_size=1, out_bits=len(columns), zeros=False))
    divided = pycute.logical_divide(cute(columns), cute(tile))
    rest = [1 << bit for bit in range(len(columns)) if 1 << bit not in tile]
    order = linear(cute(tile + rest), len(columns))
    mine = chain(order, linear(cute(columns), 4)).split(ins={"i": {"tile": len(tile), "rest": len(rest)}})
    assert mine.select("tile").rename(ins={"tile": "i"}) == linear(divided[0], 4)
    assert mine.select("rest").rename(ins={"rest": "i"}) == linear(divided[1], 4)


@given(st.integers(0, 3), strides())
def test_product_of_a_compact_tile_is_logical_product(bits, columns):
    atom = cute([1 << i for i in range(bits)])
    product = pycute.make_layout(atom, cute(columns))
    if columns and bits:
        product = pycute.logical_product(atom, cute(columns))
        assert len(product) == 2
        mine = linear(atom, bits) * linear(cute(columns), 4)
        assert mine == linear(pycute.Layout(pycute.flatten(product.shape), pycute.flatten(product.stride)), bits + 4)


@pytest.mark.parametrize("size", [2, 4])
def test_pycutes_product_with_an_integer_is_no_oracle(size):
    """It divides: a product would repeat the tile, and so must grow."""
    tile = pycute.Layout(4, 1)
    assert pycute.size(pycute.logical_product(tile, size)) == pycute.size(tile)
    assert pycute.size(pycute.logical_product(tile, pycute.Layout(size))) == pycute.size(tile) * size
