"""The layout algebra: every operation's law, over all points of random small layouts."""

import copy
import pickle
from dataclasses import FrozenInstanceError
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbitvm.errors import LowbitvmError
from lowbitvm.layout import Layout

INS = ("register", "lane", "warp")
OUTS = ("m", "k")


INS_DIMS = st.dictionaries(st.sampled_from(INS), st.integers(0, 2))
OUTS_DIMS = st.dictionaries(st.sampled_from(OUTS), st.integers(0, 2))


@st.composite
def layouts(draw, ins=None, outs=None):
    """Any layout of up to three inputs and two outputs with up to two bits each, or of these dims: a bit matrix."""
    ins = draw(INS_DIMS) if ins is None else ins
    outs = draw(OUTS_DIMS) if outs is None else outs
    rows, columns = sum(outs.values()), sum(ins.values())
    matrix = draw(st.integers(0, (1 << rows * columns) - 1))
    images = [(matrix >> rows * i & (1 << rows) - 1,) for i in range(columns)]
    return Layout({"place": images}, {"index": rows}).split(ins={"place": ins}, outs={"index": outs})


@st.composite
def bijections(draw):
    """A random invertible layout: random XORs of bits added to a random permutation."""
    outs = draw(st.dictionaries(st.sampled_from(OUTS), st.integers(0, 3), min_size=1))
    total = sum(outs.values())
    columns = [1 << i for i in draw(st.permutations(range(total)))]
    places = st.integers(0, max(total - 1, 0))
    for target, source in draw(st.lists(st.tuples(places, places), max_size=8)):
        if target != source:
            columns[target] ^= columns[source]
    flat = Layout({"place": [(column,) for column in columns]}, {"index": total}).split(outs={"index": outs})
    low = draw(st.integers(0, total))
    return flat.split(ins={"place": {"register": low, "lane": total - low}})


def points(dims):
    return [dict(zip(dims, values, strict=True)) for values in product(*(range(1 << bits) for bits in dims.values()))]


def table(layout):
    """The layout as a plain function: every input point with its image."""
    return [(point, layout(**point)) for point in points(layout.ins)]


def xor(a, b):
    return {name: a[name] ^ b[name] for name in a}


def code_of(error):
    return error.value.code


@given(layouts())
def test_a_layout_maps_xor_to_xor(layout):
    image = {tuple(point.items()): layout(**point) for point in points(layout.ins)}
    some = points(layout.ins)[:: max(1, len(points(layout.ins)) // 8)]
    for a, b in product(some, points(layout.ins)):
        assert image[tuple(xor(a, b).items())] == xor(image[tuple(a.items())], image[tuple(b.items())])


@given(layouts())
def test_the_image_of_a_single_bit_is_its_basis(layout):
    for name, images in layout.bases.items():
        assert len(images) == layout.ins[name]
        for i, image in enumerate(images):
            assert layout(**{name: 1 << i}) == image


@given(layouts())
def test_apply_on_arrays_equals_calls_on_points(layout):
    every = points(layout.ins)
    arrays = {name: np.array([point[name] for point in every]) for name in layout.ins}
    images = layout.apply(**arrays)
    for i, point in enumerate(every):
        assert {name: np.broadcast_to(images[name], len(every))[i] for name in images} == layout(**point)


def test_apply_broadcasts_its_arguments():
    layout = Layout.parse("(register: k0, lane: m0 m1) -> (m 2, k 1)")
    images = layout.apply(register=np.arange(2)[:, None], lane=np.arange(4))
    assert images["m"].tolist() == [[0, 1, 2, 3]] * 2 and images["k"].tolist() == [[0] * 4, [1] * 4]


def test_missing_inputs_are_zero():
    layout = Layout.parse("(register: k0, lane: m0 m1) -> (m 2, k 1)")
    assert layout(lane=2) == layout(register=0, lane=2) == {"m": 2, "k": 0}
    assert layout() == {"m": 0, "k": 0}


@given(*[layouts(ins={"lane": 1, "warp": 1}, outs={"m": 1, "k": 1})] * 2)
def test_equality_and_hash_are_those_of_the_function(a, b):
    assert (a == b) == (table(a) == table(b))
    assert hash(a) == hash(b) or a != b


@given(layouts(), st.randoms())
def test_the_order_of_dims_does_not_matter_to_equality(layout, random):
    ins, outs = list(layout.ins), list(layout.outs)
    random.shuffle(ins)
    random.shuffle(outs)
    other = layout.reorder(ins, outs)
    assert list(other.ins) == ins and list(other.outs) == outs
    assert other == layout and hash(other) == hash(layout)
    assert all(other(**point) == image for point, image in table(layout))


@given(layouts(ins={"register": 2, "lane": 1}, outs={"m": 2, "k": 1}), st.integers(0, 2), st.integers(1, 7))
def test_flipping_any_basis_bit_makes_another_layout(layout, bit, flip):
    bases = layout.bases
    name, i = ("register", bit) if bit < 2 else ("lane", 0)
    bases[name][i] = {"m": bases[name][i]["m"] ^ flip & 3, "k": bases[name][i]["k"] ^ flip >> 2}
    assert Layout(bases, layout.outs) != layout


def test_a_layout_differs_from_other_objects():
    assert Layout({}, {}) != 0 and Layout({}, {"m": 0}) != Layout({}, {})


@given(layouts())
def test_repr_rebuilds_the_object_and_the_notation_can_be_read_back(layout):
    rebuilt = eval(repr(layout)), Layout.parse(str(layout)), pickle.loads(pickle.dumps(layout)), copy.copy(layout)
    for copied in rebuilt:
        assert copied == layout and str(copied) == str(layout)


def test_the_notation_is_the_documented_one():
    layout = Layout({"register": [{"k": 1}, {"m": 8, "k": 2}], "lane": [(0, 0)], "warp": []}, {"m": 4, "k": 4})
    assert str(layout) == "(register: k0 m3^k1, lane: 0, warp:) -> (m 4, k 4)"


def test_a_layout_cannot_be_changed():
    layout = Layout.identity("lane", 2, "k")
    with pytest.raises(FrozenInstanceError):
        layout._columns = ()
    layout.ins["lane"] = 7
    layout.bases["lane"][0]["k"] = 3
    assert layout == Layout.parse("(lane: k0 k1) -> (k 2)")


@given(st.integers(0, 5))
def test_identity_copies_and_zeros_broadcast(bits):
    for value in range(1 << bits):
        assert Layout.identity("lane", bits, "k")(lane=value) == {"k": value}
        assert Layout.zeros("lane", bits, {"m": 2, "k": 1})(lane=value) == {"m": 0, "k": 0}
    assert Layout.zeros("lane", bits).outs == {}


@given(layouts())
def test_from_function_recovers_the_layout_from_its_function(layout):
    assert Layout.from_function(layout.apply, layout.ins, layout.outs) == layout
    assert Layout.from_function(lambda lane: {"k": 0}, {"lane": 2}, {"k": 1}) == Layout.zeros("lane", 2, {"k": 1})


@given(layouts(), layouts())
def test_product_puts_self_on_the_low_bits_and_other_above(a, b):
    both = a * b
    for out in both.outs:
        assert both.outs[out] == a.outs.get(out, 0) + b.outs.get(out, 0)
    for low, high in product(points(a.ins)[:16], points(b.ins)[:16]):
        point = {name: low.get(name, 0) | high.get(name, 0) << a.ins.get(name, 0) for name in both.ins}
        low_image, high_image = a(**low), b(**high)
        assert both(**point) == {
            out: low_image.get(out, 0) | high_image.get(out, 0) << a.outs.get(out, 0) for out in both.outs
        }


@given(layouts(), layouts(), layouts())
def test_product_is_associative_and_the_empty_layout_is_its_one(a, b, c):
    assert (a * b) * c == a * (b * c)
    assert a * Layout({}, {}) == a == Layout({}, {}) * a


@given(layouts(), layouts())
def test_divide_undoes_product(a, b):
    quotient = (a * b).divide(a)
    assert a * quotient == a * b
    missing_ins, missing_outs = a.ins.keys() - b.ins.keys(), a.outs.keys() - b.outs.keys()
    assert quotient == Layout({name: [] for name in missing_ins}, dict.fromkeys(missing_outs, 0)) * b


@given(
    layouts(ins={"lane": 1}, outs={"k": 1}),
    layouts(ins={"lane": 1, "register": 1}, outs={"k": 1, "m": 1}),
    st.integers(0, 7),
)
def test_divide_raises_exactly_when_no_quotient_exists(atom, quotient, flip):
    bases = (atom * quotient).bases
    bases["lane"][1] = {"k": bases["lane"][1]["k"] ^ flip & 3, "m": bases["lane"][1]["m"] ^ flip >> 2}
    layout = Layout(bases, {"k": 2, "m": 1})
    images = list(product(range(2), range(2)))
    every = (Layout({"lane": [a], "register": [b]}, {"k": 1, "m": 1}) for a, b in product(images, images))
    if any(atom * candidate == layout for candidate in every):
        assert atom * layout.divide(atom) == layout
    else:
        with pytest.raises(LowbitvmError) as error:
            layout.divide(atom)
        assert code_of(error) == "LAYOUT_INDIVISIBLE"


@pytest.mark.parametrize(
    ("layout", "atom"),
    [
        ("(lane: k0 k1) -> (k 2)", "(lane: k0 k1 k2) -> (k 3)"),  # too small
        ("(lane: k1 k0) -> (k 2)", "(lane: k0) -> (k 1)"),  # other low bits
        ("(lane: k0 k0^k1) -> (k 2)", "(lane: k0) -> (k 1)"),  # the rest disturbs the atom
        ("(lane: k0) -> (k 1)", "(register: k0) -> (k 1)"),  # no such input
        ("(lane: k0) -> (k 1)", "(lane: k0) -> (k 1, m 1)"),  # no such output
    ],
)
def test_indivisible_layouts_raise(layout, atom):
    with pytest.raises(LowbitvmError) as error:
        Layout.parse(layout).divide(Layout.parse(atom))
    assert code_of(error) == "LAYOUT_INDIVISIBLE"


@given(st.data())
def test_compose_applies_one_layout_after_the_other(data):
    first = data.draw(layouts())
    second = data.draw(layouts(ins=first.outs, outs={"bank": 2, "row": 3}))
    both = first.compose(second.reorder(ins=sorted(second.ins)))
    assert both.ins == first.ins and both.outs == second.outs
    assert all(both(**point) == second(**image) for point, image in table(first))


@given(layouts(outs={"m": 2, "k": 1}), layouts(ins={"m": 2, "k": 1}, outs={"x": 3}), layouts(ins={"x": 3}))
def test_compose_is_associative(a, b, c):
    assert a.compose(b).compose(c) == a.compose(b.compose(c))


def test_compose_wants_the_outputs_to_be_the_inputs():
    for other in ("(m: x0) -> (x 1)", "(m: x0 0, k: x0) -> (x 1)"):
        with pytest.raises(LowbitvmError) as error:
            Layout.parse("(lane: m0) -> (m 1, k 1)").compose(Layout.parse(other))
        assert code_of(error) == "LAYOUT_INVALID"


@given(layouts())
def test_rank_and_the_properties_match_a_count_of_the_images(layout):
    images = [tuple(sorted(image.items())) for _, image in table(layout)]
    assert len(set(images)) == 1 << layout.rank
    assert layout.is_injective == (len(set(images)) == len(images))
    assert layout.is_surjective == (len(set(images)) == 1 << sum(layout.outs.values()))
    assert layout.is_bijective == (layout.is_injective and layout.is_surjective)


@given(bijections())
def test_inverse_maps_every_point_back(layout):
    inverse = layout.inverse()
    assert inverse.ins == layout.outs and inverse.outs == layout.ins
    assert all(inverse(**image) == point for point, image in table(layout))
    assert inverse.inverse() == layout


@given(layouts())
def test_inverse_raises_exactly_for_layouts_that_are_not_bijective(layout):
    if layout.is_bijective:
        assert all(layout.inverse()(**image) == point for point, image in table(layout))
    else:
        with pytest.raises(LowbitvmError) as error:
            layout.inverse()
        assert code_of(error) == "LAYOUT_NOT_INVERTIBLE"


@given(layouts(), st.randoms())
def test_right_inverse_hits_every_output_and_raises_when_it_cannot(layout, random):
    if not layout.is_surjective:
        with pytest.raises(LowbitvmError) as error:
            layout.right_inverse()
        assert code_of(error) == "LAYOUT_NOT_INVERTIBLE"
        return
    inverse = layout.right_inverse()
    assert all(layout(**point) == image for image, point in table(inverse))
    ins = list(layout.ins)
    random.shuffle(ins)
    assert layout.reorder(ins=ins).right_inverse() == inverse


@given(
    layouts(ins={"register": 3, "lane": 1}, outs={"m": 2, "k": 2}),
    st.sampled_from([(start, stop) for stop in range(4) for start in range(stop + 1)]),
)
def test_slice_keeps_a_range_of_an_inputs_bits(layout, kept):
    start, stop = kept
    sliced = layout.slice(register=kept)
    assert sliced.ins == {"register": stop - start, "lane": 1}
    assert all(image == layout(**{**point, "register": point["register"] << start}) for point, image in table(sliced))
    assert layout.slice(register=stop, lane=0) == layout.slice(register=(0, stop), lane=(0, 0))


@given(layouts(), st.data())
def test_select_and_project_keep_whole_dims(layout, data):
    ins = data.draw(st.lists(st.sampled_from(sorted(layout.ins)), unique=True)) if layout.ins else []
    outs = data.draw(st.lists(st.sampled_from(sorted(layout.outs)), unique=True)) if layout.outs else []
    part = layout.select(*ins).project(*outs)
    assert list(part.ins) == ins and list(part.outs) == outs
    assert all(image == {out: layout(**point)[out] for out in outs} for point, image in table(part))


@given(layouts())
def test_rename_changes_names_only(layout):
    renamed = layout.rename(ins=dict.fromkeys(layout.ins.keys() & {"lane"}, "thread"))
    back = dict.fromkeys(renamed.ins.keys() & {"thread"}, "lane")
    assert "lane" not in renamed.ins and renamed.rename(ins=back) == layout
    assert layout.rename(outs=dict.fromkeys(layout.outs.keys() & {"m"}, "n")).bases.keys() == layout.bases.keys()
    for point, image in table(renamed):
        assert layout(**{back.get(name, name): at for name, at in point.items()}) == image


@given(layouts(ins={"lane": 2, "warp": 1, "register": 1}, outs={"m": 2, "k": 3}))
def test_flatten_joins_dims_low_first_and_split_cuts_them_again(layout):
    flat = layout.flatten(ins={"thread": ("lane", "warp")}, outs={"index": ("k", "m")})
    assert flat.ins == {"thread": 3, "register": 1} and flat.outs == {"index": 5}
    for point, image in table(layout):
        thread = point["lane"] | point["warp"] << 2
        assert flat(thread=thread, register=point["register"]) == {"index": image["k"] | image["m"] << 3}
    assert flat.split(ins={"thread": {"lane": 2, "warp": 1}}, outs={"index": {"k": 3, "m": 2}}) == layout


@given(layouts(ins={"lane": 3, "register": 1}, outs={"m": 3, "k": 1}), *[st.permutations(range(3))] * 2)
def test_permute_bits_moves_bits_inside_a_dim(layout, in_order, out_order):
    moved = layout.permute_bits(ins={"lane": in_order}, outs={"m": out_order})
    for point, image in table(moved):
        lane = sum((point["lane"] >> i & 1) << at for i, at in enumerate(in_order))
        old = layout(**{**point, "lane": lane})
        assert image == {"m": sum((old["m"] >> at & 1) << i for i, at in enumerate(out_order)), "k": old["k"]}


@given(
    st.integers(0, 3),
    layouts(ins={"register": 1, "lane": 2}, outs={"m": 2, "k": 2}),
    st.integers(0, 3),
    st.sampled_from(["register", "lane"]),
    st.sampled_from([{}, {"k": 1}, {"k": 2}, {"m": 1}]),
)
def test_vector_width_is_the_widest_aligned_run(run, rest, max_log, disturbed, disturbance):
    layout = Layout.identity("register", run, "k") * rest
    bases = layout.bases
    bases[disturbed][-1] = xor(bases[disturbed][-1], {"m": 0, "k": 0, **disturbance})
    layout = Layout(bases, layout.outs)

    def is_vector(width):
        for point, image in table(layout):
            first = {**point, "register": point["register"] & -width}
            start = layout(**first)
            wanted = {"m": start["m"], "k": start["k"] + point["register"] % width}
            if start["k"] % width or image != wanted:
                return False
        return True

    width = layout.vector_width(out_dim="k", element_bits=16, max_bits=16 << max_log)
    widths = [1 << i for i in range(min(max_log, layout.ins["register"]) + 1) if is_vector(1 << i)]
    assert width == max(widths)


def test_vector_width_of_a_sixteen_byte_load():
    layout = Layout.identity("register", 5, "k") * Layout.identity("lane", 5, "k")
    assert layout.vector_width(out_dim="k", element_bits=4) == 32
    assert layout.vector_width(out_dim="k", element_bits=16) == 8
    assert layout.vector_width("lane", out_dim="k", element_bits=16) == 1


def test_a_swizzle_spreads_the_rows_of_one_column_over_the_banks():
    """Eight rows of eight 16-byte units: column 0 lies in one unit, or with col ^ row in eight different ones."""
    plain = Layout.identity("col", 3, "unit") * Layout.identity("row", 3, "line")
    swizzled = Layout.from_function(
        lambda row, col: {"unit": row ^ col, "line": row}, {"row": 3, "col": 3}, {"unit": 3, "line": 3}
    )
    column = {"row": np.arange(8), "col": np.zeros(8, np.int64)}
    assert set(plain.apply(**column)["unit"].tolist()) == {0}
    assert set(swizzled.apply(**column)["unit"].tolist()) == set(range(8))
    assert swizzled.is_bijective and plain.project("unit").slice(col=0).rank == 0
    assert swizzled.project("unit").slice(col=0).rank == 3


LAYOUT = Layout.parse("(register: k0, lane: m0 m1) -> (m 2, k 1)")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Layout({"lane0": []}, {}),
        lambda: LAYOUT.rename(outs={"m": "m0"}),
        lambda: LAYOUT.flatten(ins={"thread": ("lane", "lane")}),
        lambda: Layout({"a b": []}, {}),
        lambda: Layout({}, {"m": -1}),
        lambda: Layout({"lane": [{"q": 1}]}, {"m": 1}),
        lambda: Layout({"lane": [(1, 0)]}, {"m": 1}),
        lambda: Layout({"lane": [(2,)]}, {"m": 1}),
        lambda: Layout({"lane": [(-1,)]}, {"m": 1}),
        lambda: Layout.from_function(lambda lane: {"k": lane + 1 & 3}, {"lane": 2}, {"k": 2}),
        lambda: Layout.from_function(lambda lane: {"k": lane * 3 & 7}, {"lane": 2}, {"k": 3}),
        lambda: Layout.from_function(lambda lane: {"k": 1 - lane}, {"lane": 1}, {"k": 1}),
        lambda: Layout.from_function(lambda lane: {"k": lane}, {"lane": 1}, {"k": 1, "m": 0}),
        lambda: Layout.parse("lane: k0 -> k 1"),
        lambda: Layout.parse("(lane: k) -> (k 1)"),
        lambda: Layout.parse("(lane: k0) -> (k)"),
        lambda: Layout.parse("(lane) -> (k 1)"),
        lambda: LAYOUT(warp=1),
        lambda: LAYOUT.slice(lane=3),
        lambda: LAYOUT.slice(lane=(2, 1)),
        lambda: LAYOUT.slice(warp=0),
        lambda: LAYOUT.select("warp"),
        lambda: LAYOUT.project("n"),
        lambda: LAYOUT.rename(ins={"warp": "thread"}),
        lambda: LAYOUT.rename(ins={"lane": "register"}),
        lambda: LAYOUT.reorder(ins=["lane"]),
        lambda: LAYOUT.flatten(ins={"thread": ("lane", "warp")}),
        lambda: LAYOUT.flatten(ins={"register": ("lane",)}),
        lambda: LAYOUT.split(ins={"lane": {"a": 1}}),
        lambda: LAYOUT.split(ins={"warp": {"a": 1}}),
        lambda: LAYOUT.split(ins={"lane": {"register": 1, "b": 1}}),
        lambda: LAYOUT.permute_bits(ins={"lane": (0, 0)}),
        lambda: LAYOUT.permute_bits(outs={"n": (0,)}),
        lambda: LAYOUT.vector_width("warp", out_dim="k"),
        lambda: LAYOUT.vector_width(out_dim="n"),
    ],
)
def test_a_request_that_makes_no_sense_raises_layout_invalid(make):
    with pytest.raises(LowbitvmError) as error:
        make()
    assert code_of(error) == "LAYOUT_INVALID"


@pytest.mark.parametrize("lane", [4, -1, np.array([0, 4])])
def test_a_coordinate_out_of_range_raises(lane):
    with pytest.raises(LowbitvmError) as error:
        LAYOUT.apply(lane=lane)
    assert code_of(error) == "ARGUMENT_INVALID"
