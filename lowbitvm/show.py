"""Pictures of a layout as text, SVG and HTML: the grid of its outputs, each cell naming the inputs that land there.

One output runs across the page, the others down. A cell of an MMA fragment (register, lane) -> (m, k) reads `3:5` for
register 3 of lane 5; a broadcast puts several names into one cell, a cell that nothing reaches shows `.`. SVG and HTML
colour the cells by warp, or by lane when there is no warp.
"""

from dataclasses import dataclass
from html import escape
from itertools import product

import numpy as np

from lowbitvm.errors import LowbitvmError
from lowbitvm.layout import Layout

MAX_POINTS = 1 << 16  # cells or inputs of one picture
CELL = (56, 24)  # width and height in SVG units


@dataclass(frozen=True)
class _Grid:
    heading: str  # the layout's notation
    legend: str  # what a cell's name lists
    inputs: tuple[str, ...]
    across: str
    columns: int
    rows: list[str]  # "m 3"
    cells: dict[tuple[int, int], list[tuple[int, ...]]]  # (row, column) -> the inputs there, in the order of `inputs`

    def name(self, row: int, column: int) -> str:
        """The text of one cell: "3:5", "3:5 3:6" or "."."""
        return " ".join(":".join(map(str, point)) for point in self.cells.get((row, column), [])) or "."

    def title(self, row: int, column: int) -> str:
        """The same in words: "m 3, k 5: register 3 lane 5"."""
        points = self.cells.get((row, column), [])
        words = (" ".join(f"{name} {at}" for name, at in zip(self.inputs, point, strict=True)) for point in points)
        place = ", ".join(part for part in (self.rows[row], f"{self.across} {column}") if part)
        return f"{place}: {'; '.join(words) or 'nothing'}"

    def color(self, row: int, column: int) -> str:
        """A CSS colour by warp, lane or else the first input; steps of a golden angle keep neighbours apart."""
        points = self.cells.get((row, column))
        if not points or not self.inputs:
            return "white"
        by = next((self.inputs.index(name) for name in ("warp", "lane") if name in self.inputs), 0)
        return f"hsl({points[0][by] * 137.508 % 360:.0f}, 70%, 82%)"


def _grid(layout: Layout, across: str | None) -> _Grid:
    outs = layout.outs
    across = across if across is not None else next(reversed(outs), "")
    if across not in outs:
        raise LowbitvmError("ARGUMENT_INVALID", f"{across!r} is no output of {layout}", f"choose one of {list(outs)}")
    bits = max(sum(outs.values()), sum(layout.ins.values()))
    if 1 << bits > MAX_POINTS:
        fix = "draw a part of it: slice inputs or project outputs first"
        raise LowbitvmError("ARGUMENT_INVALID", f"a picture of {1 << bits} points has more than {MAX_POINTS}", fix)
    down = [name for name in outs if name != across]
    points = list(product(*(range(1 << width) for width in layout.ins.values())))
    images = layout.apply(**dict(zip(layout.ins, np.array(points, np.int64).T, strict=True)))
    where = np.zeros(len(points), np.int64)
    for name in (*down, across):
        where = (where << outs[name]) + images[name]
    cells: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for point, place in zip(points, where.tolist(), strict=True):
        cells.setdefault(divmod(place, 1 << outs[across]), []).append(point)
    coords = product(*(range(1 << outs[name]) for name in down))
    rows = [", ".join(f"{name} {at}" for name, at in zip(down, coord, strict=True)) for coord in coords]
    legend = f"cell: {':'.join(layout.ins)}"
    return _Grid(str(layout), legend, tuple(layout.ins), across, 1 << outs[across], rows, cells)


def text(layout: Layout, across: str | None = None) -> str:
    """The layout's notation, a legend and the grid; `across` is the output that runs along a line (default: the last).

        (lane: k0 m0) -> (m 1, k 1)
        cell: lane
             k 0  k 1
        m 0    0    1
        m 1    2    3

    Raises ARGUMENT_INVALID for an unknown output and for a layout of more than MAX_POINTS points.
    """
    grid = _grid(layout, across)
    lines = [["", *(f"{grid.across} {column}" for column in range(grid.columns))]]
    lines += [
        [label, *(grid.name(row, column) for column in range(grid.columns))] for row, label in enumerate(grid.rows)
    ]
    first = max(len(line[0]) for line in lines)
    width = max(len(cell) for line in lines for cell in line[1:])
    body = ["  ".join([line[0].ljust(first), *(cell.rjust(width) for cell in line[1:])]) for line in lines]
    return "\n".join([grid.heading, grid.legend, *body])


def svg(layout: Layout, across: str | None = None) -> str:
    """The grid as an SVG document; each cell is a <g class="cell"> with its words as <title>. Raises as text() does."""
    grid = _grid(layout, across)
    names = [grid.name(row, column) for row in range(len(grid.rows)) for column in range(grid.columns)]
    width, height = max(CELL[0], 8 * max(map(len, names)) + 8), CELL[1]
    left, top = 8 * max(map(len, grid.rows)) + 16, 3 * height

    def words(x: float, y: float, content: str, anchor: str) -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(content)}</text>'

    parts = [words(8, height / 2, grid.heading, "start"), words(8, height * 1.5, grid.legend, "start")]
    for column in range(grid.columns):
        parts.append(words(left + (column + 0.5) * width, top - height / 2, f"{grid.across} {column}", "middle"))
    for row, label in enumerate(grid.rows):
        y = top + row * height
        parts.append(words(left - 8, y + height / 2, label, "end"))
        for column in range(grid.columns):
            x = left + column * width
            parts.append(
                f'<g class="cell"><title>{escape(grid.title(row, column))}</title>'
                f'<rect x="{x}" y="{y}" width="{width}" height="{height}" stroke="gray" '
                f'fill="{grid.color(row, column)}"/>'
                f"{words(x + width / 2, y + height / 2, grid.name(row, column), 'middle')}</g>"
            )
    size = max(left + grid.columns * width, 8 * len(grid.heading)) + 8, top + len(grid.rows) * height + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" font-family="monospace" '
        f'font-size="12" dominant-baseline="central">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def html(layout: Layout, across: str | None = None) -> str:
    """The grid as one HTML page: a table whose cells have their words as tooltips. Raises as text() does."""
    grid = _grid(layout, across)
    head = "".join(f"<th>{escape(grid.across)} {column}</th>" for column in range(grid.columns))
    lines = [f"<tr><th></th>{head}</tr>"]
    for row, label in enumerate(grid.rows):
        cells = "".join(
            f'<td style="background: {grid.color(row, column)}" title="{escape(grid.title(row, column))}">'
            f"{grid.name(row, column)}</td>"
            for column in range(grid.columns)
        )
        lines.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Layout</title>\n'
        "<style>body { font-family: monospace } table { border-collapse: collapse } "
        "td { border: 1px solid gray; padding: 2px 6px; text-align: center }</style></head>\n"
        f"<body><p>{escape(grid.heading)}<br>{escape(grid.legend)}</p>\n<table>\n"
        + "\n".join(lines)
        + "\n</table></body></html>\n"
    )
