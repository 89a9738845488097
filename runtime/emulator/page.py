"""A report as an HTML page: the PTX with what each line cost, and the findings beside it."""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator.report import ArrayKey, Finding, LineCounters, Report

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --back: #fff; --faint: #656d76; --rule: #d0d7de; --bad: #cf222e;
  --good: #1a7f37; --warn: #9a6700; --heat: 255 120 0; --mark: #fff1f0; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --back: #0d1117; --faint: #8d96a0; --rule: #30363d;
  --bad: #ff7b72; --good: #3fb950; --warn: #d29922; --heat: 255 140 40; --mark: #3b1d1f; } }
body { color: var(--text); background: var(--back); font: 14px/1.5 system-ui, sans-serif; margin: 2rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
a { color: inherit; } code, pre, .ptx td { font-family: ui-monospace, Menlo, Consolas, monospace; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; color: var(--faint); }
th, td { padding: 0.1rem 0.8rem 0.1rem 0; vertical-align: top; } td.n, th.n { text-align: right; white-space: nowrap; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; }
.findings li { margin: 0.3rem 0; } .kind { color: var(--bad); font-weight: 600; } .clean { color: var(--good); }
.scroll { overflow-x: auto; } .ptx { font-size: 12px; line-height: 1.45; }
.ptx td { padding: 0 0.7rem 0 0; white-space: pre; } .ptx td.text { white-space: pre-wrap; min-width: 40em; }
.ptx thead th { position: sticky; top: 0; background: var(--back); border-bottom: 1px solid var(--rule);
  padding: 0.3rem 0.7rem 0.3rem 0; font-family: system-ui, sans-serif; }
.ptx tr:target, .findings li:target { outline: 2px solid var(--warn); } .number, .source { color: var(--faint); }
.ptx tr.found { background: var(--mark); } .warn { color: var(--warn); font-weight: 600; }
.ptx td.share { background: rgb(var(--heat) / calc(var(--hot) * 0.75)); }
.ptx td.text.hot { background: rgb(var(--heat) / calc(var(--hot) * 0.3)); }
"""

COLUMNS = (  # of the annotated PTX: header, and what it means
    ("line", "PTX line"),
    ("issued", "warp instructions issued"),
    ("share", "share of all issued instructions"),
    ("lanes", "active lanes, on average"),
    ("wavefronts", "passes over shared memory's banks, and beyond how many the fewest possible"),
    ("degree", "most passes of one phase: 1 is free of bank conflicts"),
    ("sectors", "32-byte sectors of global memory, and the fewest possible"),
    ("source", "the line that the .loc names"),
    ("PTX", "the text"),
)


def render(report: "Report") -> str:
    """The whole page. Everything that comes from the PTX is escaped."""
    title = escape(f"{report.launch.entry} on {report.launch.arch}")
    parts = [
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>",
        _verdict(report),
        '<div class="facts">',
        _table("Launch", (), _launch(report)),
        _table("Instructions", ("class", "issued", "share"), _classes(report)),
        _table("Memory", ("", "seen", "fewest"), _memory(report)),
        _table("Matrix", ("shape and types", "instructions", "multiply-adds"), _matrix(report)),
        "</div>",
        _table("Arrays", ARRAY_HEADERS, _arrays(report)),
        _table("Rounding of matrix products", ROUNDING_HEADERS, rounding_rows(report)),
        _findings(report.findings),
        _printed(report.printed),
        _listing(report),
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _verdict(report: "Report") -> str:
    count = len(report.findings)
    if not count:
        return f'<p class="clean">No findings. Checked: {escape(", ".join(report.launch.checks)) or "bounds only"}.</p>'
    return f'<p class="kind">{count} finding{"s" if count > 1 else ""}, <a href="#findings">listed below</a>.</p>'


def _launch(report: "Report") -> list[tuple[str, ...]]:
    launch = report.launch
    rows = [("grid", "x".join(map(str, launch.grid))), ("block", "x".join(map(str, launch.block)))]
    rows += [("shared memory", f"{launch.shared:,} bytes"), ("architecture", launch.arch)]
    rows += [(name, str(value)) for name, value in launch.options.items()]
    rows.append(("warp instructions", f"{report.counters.instructions:,}"))
    rows.append(("active lanes of 32", f"{report.counters.active_lanes:.2f}"))
    if rounding := report.counters.rounding:
        rows.append(("matrix products off exact sums by", f"{rounding.distance:.2e}"))
        rows.append(("the hardware's bound, share of it", f"{rounding.bound:.2e}, {rounding.share:.2f}"))
    return [*rows, ("emulated in", f"{report.seconds:.3f} s")]


def _classes(report: "Report") -> list[tuple[str, ...]]:
    ranked = sorted(report.counters.by_class.items(), key=lambda item: -item[1])
    return [(name, f"{count:,}", percentage(count, report.counters.instructions)) for name, count in ranked if count]


def _memory(report: "Report") -> list[tuple[str, ...]]:
    c = report.counters
    rows: list[tuple[str, ...]] = []
    if c.shared_wavefronts:
        rows.append(("shared wavefronts", f"{c.shared_wavefronts:,}", f"{c.fewest_wavefronts:,}"))
        rows.append(("worst conflict degree", str(c.conflict_degree), "1"))
    if c.global_sectors:
        rows.append(("global sectors", f"{c.global_sectors:,}", f"{c.fewest_sectors:,}"))
    return rows


def _matrix(report: "Report") -> list[tuple[str, ...]]:
    forms = report.counters.matrix.items()
    return [(form, f"{count.instructions:,}", f"{count.multiply_accumulates:,}") for form, count in forms]


ARRAY_HEADERS = ("argument", "bytes", "read", "distinct", "times each", "written", "distinct")


def _arrays(report: "Report") -> list[tuple[str, ...]]:
    return [
        (
            f"{argument_of(key)} {array.name}",
            f"{array.size:,}",
            f"{array.read:,}",
            f"{array.distinct_read:,}",
            f"{array.reads_per_byte:.2f}",
            f"{array.written:,}",
            f"{array.distinct_written:,}",
        )
        for key, array in report.counters.arrays.items()
    ]


ROUNDING_HEADERS = ("line", "outputs", "no bound", "bound", "distance", "worst share", "block", "thread")


def rounding_rows(report: "Report") -> list[tuple[str, ...]]:
    """What numerics="bound" found of each line."""
    return [
        (
            *(str(line.line), f"{r.outputs:,}", f"{r.unbounded:,}"),
            *(f"{r.bound:.2e}", f"{r.distance:.2e}", f"{r.share:.3f}", str(r.block), str(r.thread)),
        )
        for line in report.lines
        if (r := line.rounding)
    ]


def _table(title: str, headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A small table; everything but the first column is a number."""
    if not rows:
        return ""

    def cells(tag: str, row: tuple[str, ...]) -> str:
        return "".join(f"<{tag}{' class=n' if n else ''}>{escape(cell)}</{tag}>" for n, cell in enumerate(row))

    head = f"<tr>{cells('th', headers)}</tr>" if headers else ""
    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<section>\n<h2>{title}</h2>\n<table>\n{head}\n{body}\n</table>\n</section>"


def _findings(findings: "list[Finding]") -> str:
    if not findings:
        return ""
    items = []
    for number, finding in enumerate(findings, 1):
        source = f" ({escape(finding.source)})" if finding.source else ""
        place = f'<a href="#L{finding.line}">line {finding.line}</a>{source}'
        where = f"block {finding.block}, thread {finding.thread}"
        other = ""
        if finding.other is not None:
            line = finding.other.line
            there = f'<a href="#L{line}">line {line}</a>, ' if line else ""
            other = f"<br>the other: {there}block {finding.other.block}, thread {finding.other.thread}"
        text = f"<br><code>{escape(finding.text.strip())}</code>{other}"
        kind = f'<span class="kind">{escape(finding.kind)}</span>'
        items.append(f'<li id="F{number}">{kind}: {place}, {where}: {escape(finding.message)}{text}</li>')
    return '<h2 id="findings">Findings</h2>\n<ol class="findings">\n' + "\n".join(items) + "\n</ol>"


def _printed(texts: list[str]) -> str:
    return f"<h2>Printed</h2>\n<pre>{escape(''.join(texts))}</pre>" if texts else ""


def _listing(report: "Report") -> str:
    by_line = {line.line: line for line in report.lines}
    marks: dict[int, list[int]] = {}
    for number, finding in enumerate(report.findings, 1):
        marks.setdefault(finding.line, []).append(number)
    hottest = max((line.instructions for line in report.lines), default=0)
    head = "".join(f'<th title="{escape(meaning)}">{header}</th>' for header, meaning in COLUMNS)
    rows = []
    for number, text in enumerate(report.ptx.splitlines(), 1):
        counters = by_line.get(number)
        cells = _cells(counters, report.counters.instructions) if counters else "<td></td>" * 7
        hot = f"{counters.instructions / hottest:.3f}" if counters and hottest else "0"
        links = "".join(f' <a class="kind" href="#F{n}">&#9679; finding {n}</a>' for n in marks.get(number, ()))
        kind = ' class="found"' if number in marks else ""
        heat = " hot" if counters and counters.instructions else ""
        rows.append(
            f'<tr id="L{number}"{kind} style="--hot:{hot}"><td class="n number">{number}</td>{cells}'
            f'<td class="text{heat}">{escape(text)}{links}</td></tr>'
        )
    table = f'<table class="ptx">\n<thead><tr>{head}</tr></thead>\n<tbody>\n' + "\n".join(rows) + "\n</tbody>\n</table>"
    return f'<h2>PTX</h2>\n<div class="scroll">\n{table}\n</div>'


def _cells(line: "LineCounters", instructions: int) -> str:
    """The columns between the line's number and its text."""
    share = percentage(line.instructions, instructions)
    waves = _of(line.shared_wavefronts, line.fewest_wavefronts)
    degree = str(line.conflict_degree or "")
    if line.conflict_degree > 1:
        degree = f'<span class="warn">{degree}</span>'
    sectors = _of(line.global_sectors, line.fewest_sectors)
    lanes = f"{line.active_lanes:.1f}" if line.instructions else ""
    numbers = f'<td class="n">{line.instructions:,}</td><td class="n share">{share}</td><td class="n">{lanes}</td>'
    memory = f'<td class="n">{waves}</td><td class="n">{degree}</td><td class="n">{sectors}</td>'
    return f'{numbers}{memory}<td class="source">{escape(line.source or "")}</td>'


def _of(seen: int, fewest: int) -> str:
    if not seen:
        return ""
    text = f"{seen:,} / {fewest:,}"
    return f'<span class="warn">{text}</span>' if seen > fewest else text


def argument_of(key: "ArrayKey") -> int:
    """The number of the argument that an array is, or in which its address stands."""
    return key[0] if isinstance(key, tuple) else key


def percentage(part: int, whole: int) -> str:
    """With one decimal; nothing for a part of 0."""
    return f"{100 * part / whole:.1f} %" if whole else ""
