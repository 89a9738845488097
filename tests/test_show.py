"""Pictures of layouts: every cell of the text, the SVG and the HTML names the inputs that land there."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import product

import pytest

from lowbitvm import show, targets
from lowbitvm.errors import LowbitvmError
from lowbitvm.layout import Layout

LAYOUTS = {
    "fragment": (targets.MMA_ATOMS["m16n8k16.f16"].a, None),
    "warps": (targets.WGMMA_A, "m"),
    "three outputs": (targets.ldmatrix(2), "col"),
    "broadcast": (Layout.parse("(lane: k0 m0 0, warp: m1) -> (m 2, k 1)"), None),
    "holes": (Layout.parse("(register: m1) -> (m 2, k 1)"), None),
    "one output": (Layout.identity("lane", 3, "k"), None),
    "one point": (Layout({"lane": []}, {"k": 0}), None),
}
every_layout = pytest.mark.parametrize(("layout", "across"), LAYOUTS.values(), ids=LAYOUTS.keys())


def expected(layout, across):
    """(the other outputs, the one across) -> the names of the inputs there, found by calling the layout."""
    across = across or list(layout.outs)[-1]
    cells = {}
    for point in product(*(range(1 << bits) for bits in layout.ins.values())):
        image = layout(**dict(zip(layout.ins, point, strict=True)))
        column = image.pop(across)
        cells.setdefault((tuple(image.values()), column), []).append(":".join(map(str, point)))
    rows = product(*(range(1 << bits) for name, bits in layout.outs.items() if name != across))
    columns = range(1 << layout.outs[across])
    return [[" ".join(cells.get((row, column), ["."])) for column in columns] for row in rows]


def titles(layout, across, grid):
    """The words of every cell, from its names."""
    across = across or list(layout.outs)[-1]
    down = [name for name in layout.outs if name != across]
    rows = product(*(range(1 << layout.outs[name]) for name in down))
    result = []
    for row, names in zip(rows, grid, strict=True):
        place = "".join(f"{name} {at}, " for name, at in zip(down, row, strict=True))
        for column, points in enumerate(names):
            inputs = [zip(layout.ins, point.split(":"), strict=True) for point in points.split(" ") if points != "."]
            words = "; ".join(" ".join(f"{name} {at}" for name, at in pairs) for pairs in inputs) or "nothing"
            result.append(f"{place}{across} {column}: {words}")
    return result


class Table(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.rows, self.titles, self.colors, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.open += [tag] if tag not in ("br", "meta") else []
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.titles.append(dict(attrs)["title"])
            self.colors.append(dict(attrs)["style"].removeprefix("background: "))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] == "td":
            self.rows[-1].append(data)


@every_layout
def test_text_shows_every_cell(layout, across):
    heading, legend, columns, *rows = show.text(layout, across).split("\n")
    grid = expected(layout, across)
    name = across or list(layout.outs)[-1]
    assert heading == str(layout) and legend == f"cell: {':'.join(layout.ins)}"
    assert re.findall(r"\S+ \d+", columns) == [f"{name} {column}" for column in range(len(grid[0]))]
    assert len({len(line) for line in (columns, *rows)}) == 1
    labels = [row.split(":")[0] for row in titles(layout, across, [[line[0]] for line in grid])]
    for line, label, cells in zip(rows, labels, grid, strict=True):
        place = label.rpartition(", ")[0]
        assert line.startswith(place)
        assert re.split(r"\s{2,}", line[len(place) :].strip()) == cells


@every_layout
def test_svg_shows_every_cell(layout, across):
    root = ElementTree.fromstring(show.svg(layout, across))
    space = "{http://www.w3.org/2000/svg}"
    cells = root.findall(f"{space}g[@class='cell']")
    grid = expected(layout, across)
    assert [cell.find(f"{space}text").text for cell in cells] == [name for row in grid for name in row]
    assert [cell.find(f"{space}title").text for cell in cells] == titles(layout, across, grid)
    boxes = [{key: float(at) for key, at in cell.find(f"{space}rect").items() if key[0] in "xywh"} for cell in cells]
    for i, box in enumerate(boxes):
        row, column = divmod(i, len(grid[0]))
        assert box["x"] == boxes[0]["x"] + column * box["width"] and box["y"] == boxes[0]["y"] + row * box["height"]
        assert box["x"] + box["width"] <= float(root.get("width")) and box["y"] + box["height"] <= float(
            root.get("height")
        )
    assert root.find(f"{space}text").text == str(layout)


@every_layout
def test_html_shows_every_cell(layout, across):
    table = Table()
    table.feed(show.html(layout, across))
    grid = expected(layout, across)
    assert table.open == [] and table.rows == [[], *grid]
    assert table.titles == titles(layout, across, grid)
    assert str(layout) in table.text


def test_cells_of_one_warp_share_a_colour_and_warps_differ():
    table = Table()
    table.feed(show.html(targets.WGMMA_A))
    warps = {}
    for title, color in zip(table.titles, table.colors, strict=True):
        warps.setdefault(title.rpartition(" ")[2], set()).add(color)
    assert warps.keys() == set("0123")
    assert all(len(colors) == 1 for colors in warps.values()) and len(set.union(*warps.values())) == 4


def test_lanes_are_coloured_when_there_is_no_warp_and_holes_are_white():
    fragment, holes = Table(), Table()
    fragment.feed(show.html(targets.MMA_ATOMS["m16n8k8.f16"].a))
    holes.feed(show.html(Layout.parse("(register: m1) -> (m 2, k 1)")))
    assert len(set(fragment.colors)) == 32
    assert [color == "white" for color in holes.colors] == [cell == "." for row in holes.rows for cell in row]


def test_the_notations_arrow_is_escaped():
    """Nothing else needs it: the names of dims are identifiers."""
    assert "-&gt;" in show.html(Layout.identity("lane", 1, "k")) and "-&gt;" in show.svg(
        Layout.identity("lane", 1, "k")
    )


@pytest.mark.parametrize("draw", [show.text, show.svg, show.html])
def test_a_picture_that_cannot_be_drawn_raises(draw):
    for layout, across in (
        (Layout.identity("lane", 2, "k"), "n"),
        (Layout({"lane": []}, {}), None),
        (Layout.identity("lane", 17, "k"), None),
        (Layout.zeros("lane", 17, {"k": 1}), None),
    ):
        with pytest.raises(LowbitvmError) as error:
            draw(layout, across)
        assert error.value.code == "ARGUMENT_INVALID"
