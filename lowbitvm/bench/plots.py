"""The plots of `lowbitvm bench --plot` and `--html`: SVG by matplotlib, from the JSON of a run.

Text stays text. The colours of text, grid and background stand for those of a page, so that plots follow a dark one.
"""

import importlib
import importlib.util
import io
import re
from dataclasses import dataclass
from typing import Any

from lowbitvm.bench import drawings
from lowbitvm.bench.drawings import GRID, INK, PALETTE, PAPER
from lowbitvm.errors import LowbitvmError

ON_PAGE = {INK: "currentColor", GRID: "var(--grid)", PAPER: "none"}
ALONE = {INK: "#222222", GRID: "#dddddd", PAPER: "#ffffff"}
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "lowbitvm",  # the same numbers give the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": "none",
    "grid.color": GRID,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Plot:
    """A drawing of one section of a run. `svg` is to be coloured: see `on_page` and `alone`."""

    section: str
    title: str
    caption: str
    svg: str

    @property
    def on_page(self) -> str:
        """An element of an HTML page that defines --grid."""
        return _coloured(self.svg, ON_PAGE)

    @property
    def alone(self) -> str:
        """A file of its own, dark on white."""
        return f'<?xml version="1.0" encoding="utf-8"?>\n{_coloured(self.svg, ALONE)}'


def check() -> None:
    """Raises TOOL_MISSING without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise LowbitvmError("TOOL_MISSING", "plots need matplotlib", "pip install 'lowbitvm[plot]'")


def draw(found: dict[str, Any]) -> dict[str, Plot]:
    """By name, the plots of all sections of a run. Raises TOOL_MISSING without matplotlib."""
    check()
    matplotlib: Any = importlib.import_module("matplotlib")  # an extra, and slow to import
    plots = {}
    with matplotlib.rc_context(STYLE | {"axes.prop_cycle": matplotlib.cycler(color=PALETTE)}):
        for section, drawn in drawings.SECTIONS.items():
            for drawing in drawn(found[section]) if found.get(section) else ():
                name = f"{section}-{drawing.name}"
                text = _svg(drawing.figure, name, drawing.title)
                plots[name] = Plot(section, drawing.title, drawing.caption, text)
    return plots


def _svg(figure: Any, name: str, title: str) -> str:
    """The figure as an element whose ids begin with `name`, for a page that has several."""
    with io.StringIO() as file:
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
        text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _coloured(text: str, colours: dict[str, str]) -> str:
    for colour, value in colours.items():
        text = text.replace(colour, value)
    return text
