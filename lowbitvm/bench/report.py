"""`lowbitvm bench --html`: one page with the plots and tables of a run, which needs nothing else to be shown."""

import statistics
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from lowbitvm.bench.plots import Plot

# Section of the JSON -> its heading, how its numbers came about, and what it is about.
HEADINGS: dict[str, tuple[str, str, str]] = {
    "gpu": ("On the GPU", "measured", "Kernels timed on the GPU of this machine."),
    "static": (
        "Main loops",
        "counted",
        "Instructions of the main loops, counted in machine code that this run assembled; nothing was timed.",
    ),
    "model": (
        "Layers of language models",
        "modelled",
        "Microseconds by the performance model, from counts of the emulator and data sheets; nothing was timed.",
    ),
    "validation": (
        "The model against measurements",
        "modelled",
        "Kernels of Humming, modelled, beside the times that its authors published.",
    ),
    "launch": (
        "Calls",
        "measured",
        "What a call costs in Python, timed on this machine's processor with a driver whose launches do nothing.",
    ),
    "compile": (
        "Compilation",
        "measured",
        "From the Python function to machine code, timed on this machine's processor; other work on it shows.",
    ),
    "pack": (
        "Packing",
        "measured",
        "How fast weights are quantised and packed, timed on this machine's processor.",
    ),
}
ABOUT, OWN = "about", "lowbitvm"
OPEN_ROWS = 12  # a table that is longer is folded
STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #5b626e; --paper: #ffffff; --panel: #f6f7f9; --grid: #d9dce1;
  --counted: #2e7d5b; --modelled: #a8621b; --measured: #2f6cb3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --soft: #a0a7b4; --paper: #14171b; --panel: #1d2127;
  --grid: #3a4049; --counted: #58c796; --modelled: #e9a45a; --measured: #6fb0f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.9rem; } h2 { margin: 0; font-size: 1.35rem; }
section { margin-top: 2.5rem; padding-top: 1.25rem; border-top: 1px solid var(--grid); }
header p, .what, figcaption { color: var(--soft); }
.what { margin: .25rem 0 1rem; }
.badge { margin-left: .6rem; padding: .1rem .55rem; border: 1px solid; border-radius: 1rem; font-size: .8rem;
  font-weight: 600; vertical-align: middle; }
.counted { color: var(--counted); } .modelled { color: var(--modelled); } .measured { color: var(--measured); }
figure { margin: 1rem 0 1.5rem; padding: 1rem; border-radius: .6rem; background: var(--panel); overflow-x: auto; }
figure h3 { margin: 0 0 .5rem; font-size: 1.05rem; }
figure svg { display: block; width: 100%; min-width: 640px; height: auto; }
figcaption { margin-top: .5rem; font-size: .9rem; }
.scroll { overflow-x: auto; } summary { cursor: pointer; color: var(--soft); }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--grid); text-align: left; white-space: nowrap; }
th { position: sticky; top: 0; background: var(--paper); } td.number { text-align: right; }
header ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .75rem; padding: 0;
  list-style: none; } header li { padding: .75rem 1rem; border-radius: .6rem; background: var(--panel);
  color: var(--soft); font-size: .85rem; } header b { display: block; font-size: 1.5rem; color: var(--ink); }
nav a { margin-right: 1rem; color: var(--measured); }
"""


def page(found: dict[str, Any], plots: dict[str, Plot]) -> str:
    """The HTML of a run: its sections in the order of HEADINGS, then the machine and the software."""
    sections = [name for name in HEADINGS if found.get(name)]
    links = "".join(f'<a href="#{name}">{HEADINGS[name][0]}</a>' for name in sections)
    body = "".join(_section(name, found[name], plots) for name in sections)
    cards = "".join(f"<li><b>{escape(number)}</b>{escape(what)}</li>" for number, what in _key_figures(found))
    about = found.get(ABOUT, {})
    when = f"{about.get('date', '')[:10]}, {about.get('cpu', '')}, {about.get('cores', '?')} cores" if about else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>lowbitvm bench</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>lowbitvm bench</h1><p>{escape(when)}</p><nav>{links}</nav><ul>{cards}</ul></header>
<main>
{body}
{_about(found)}
</main>
</body>
</html>
"""


def _key_figures(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(number, what it is): what most readers look for."""
    ours: dict[tuple[str, ...], float] = {}
    for row in found.get("static", ()):
        if (row["weights"], row["act"], row["zero"]) == ("u4", "f16", "int"):
            ours.setdefault((row["tool"], row["target"], row["tile"]), row["mac_per_instruction"])
    for tool in dict.fromkeys(tool for tool, _, _ in ours if tool != OWN):
        ratios = [
            ours[OWN, *where] / value
            for (name, *where), value in ours.items()
            if name == tool and (OWN, *where) in ours
        ]
        if ratios:
            what = f"times {tool}'s multiply-adds per instruction: u4, median of the tiles"
            yield f"{statistics.median(ratios):.1f}", what
    layers = [row for row in found.get("model", ()) if row["m"] == 1 and row["weights"].startswith("u4")]
    for gpu in dict.fromkeys(row["gpu"] for row in layers):
        share = statistics.median(row["roofline_share"] for row in layers if row["gpu"] == gpu)
        yield f"{share:.0%}", f"of the roofline on {gpu}, u4, M = 1, median of all layers (modelled)"
    times = found.get("compile", {})
    for tool in ("triton", "tilelang"):
        ratios = [row["ms"] / row["ours_ms"] for row in times.get(tool, {}).get("tiles", {}).values()]
        if ratios:
            yield (
                f"{statistics.median(ratios):.1f}",
                f"times as long as lowbitvm compiles {tool}: u4, median of the tiles",
            )
    linear = found.get("launch", {}).get(OWN, {})
    if isinstance(linear, dict) and "lb.linear" in linear:
        yield f"{linear['lb.linear']['median_us']:.1f} µs", "of Python for a call of lb.linear"


def _section(name: str, value: Any, plots: dict[str, Plot]) -> str:
    heading, kind, what = HEADINGS[name]
    figures = "".join(
        f"<figure><h3>{escape(plot.title)}</h3>{plot.on_page}<figcaption>{escape(plot.caption)}</figcaption></figure>\n"
        for plot in plots.values()
        if plot.section == name
    )
    return (
        f'<section id="{name}"><h2>{heading}<span class="badge {kind}">{kind}</span></h2>\n'
        f'<p class="what">{what}</p>\n{figures}{_tables(value)}</section>\n'
    )


def _about(found: dict[str, Any]) -> str:
    """The machine, the versions, and what stands in the JSON without a section of its own."""
    about = dict(found.get(ABOUT, {}))
    packages = about.pop("packages", {}) | found.get("peers", {})
    rows = [{"what": name, "value": value} for name, value in [*about.items(), *packages.items()]]
    refused = [{"kernel": name, "reason": reason} for name, reason in found.get("refused", {}).items()]
    none = f"<h3>What has no kernel</h3>{_table(refused)}" if refused else ""
    return f'<section id="{ABOUT}"><h2>Machine and versions</h2>{_table(rows)}{none}</section>'


def _tables(value: Any) -> str:
    """The tables of a section: a list of objects; or objects in objects, whose names become a column, and lists."""
    if isinstance(value, list):
        return _table([dict(_columns(row)) for row in value])
    lists = {name: part for name, part in value.items() if isinstance(part, list) and part}
    own = list(_named({name: part for name, part in value.items() if not isinstance(part, list)}, ()))
    named = "".join(f"<h3>{escape(name.replace('_', ' '))}</h3>{_tables(part)}" for name, part in lists.items())
    return (_table(own) if own else "") + named


def _columns(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _columns(value, f"{name} ")
        else:
            yield f"{prefix}{name}", value


def _named(value: dict[str, Any], path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    plain = {name: part for name, part in value.items() if not isinstance(part, dict)}
    if plain:
        yield {"part": " / ".join(path), **plain}
    for name, part in value.items():
        if isinstance(part, dict):
            yield from _named(part, (*path, name))


def _table(rows: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    lines = "\n".join(f"<tr>{''.join(_cell(row.get(name)) for name in names)}</tr>" for row in rows)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'
    return table if len(rows) <= OPEN_ROWS else f"<details><summary>{len(rows)} rows</summary>{table}</details>"


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            f'<td class="number">{value:.4g}</td>' if isinstance(value, float) else f'<td class="number">{value}</td>'
        )
    text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return f"<td>{escape(text)}</td>"
