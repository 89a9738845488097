"""A report as tables for a terminal."""

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lowbitvm.runtime.emulator.page import ROUNDING_HEADERS, argument_of, percentage, rounding_rows

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator.report import LineCounters, Report

HOTTEST = 12  # lines shown


def render(report: "Report") -> RenderableType:
    """Counters, arrays, hottest lines and findings; plain text where the output is no terminal."""
    launch = report.launch
    title = f"{launch.entry}, grid {launch.grid}, block {launch.block}, {launch.arch}"
    return Group(
        Text(title, style="bold"),
        _summary(report),
        *_arrays(report),
        *_roundings(report),
        _lines(report),
        *_findings(report),
    )


def _summary(report: "Report") -> Table:
    counters = report.counters
    table = Table("counter", "value", box=SIMPLE_HEAD)
    table.columns[1].justify = "right"
    table.add_row("warp instructions", f"{counters.instructions:,}")
    for name, count in sorted(counters.by_class.items(), key=lambda item: -item[1]):
        if count:
            table.add_row(f"  {name}", f"{count:,}  {percentage(count, counters.instructions):>7}")
    table.add_row("active lanes of 32", f"{counters.active_lanes:.2f}")
    for form, matrix in counters.matrix.items():
        table.add_row(Text(form), f"{matrix.instructions:,} ({matrix.multiply_accumulates:,} multiply-adds)")
    if counters.rounding:
        table.add_row("matrix products off exact sums by", f"{counters.rounding.distance:.2e}")
        table.add_row(
            "  the hardware's bound, share of it", f"{counters.rounding.bound:.2e}, {counters.rounding.share:.2f}"
        )
    if counters.shared_wavefronts:
        table.add_row("shared wavefronts", f"{counters.shared_wavefronts:,}")
        table.add_row("  fewest possible", f"{counters.fewest_wavefronts:,}")
        table.add_row("  worst conflict degree", str(counters.conflict_degree))
    if counters.global_sectors:
        table.add_row("global sectors of 32 bytes", f"{counters.global_sectors:,}")
        table.add_row("  fewest possible", f"{counters.fewest_sectors:,}")
    table.add_row("time on this machine", f"{report.seconds:.3f} s")
    return table


def _arrays(report: "Report") -> list[Table]:
    if not report.counters.arrays:
        return []
    table = Table(title="bytes of each argument", box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("argument", overflow="ellipsis", no_wrap=True)
    for header in ("size", "read", "distinct", "times\neach", "written", "distinct"):
        table.add_column(header, justify="right", no_wrap=True)
    for key, array in report.counters.arrays.items():
        counts = (array.size, array.read, array.distinct_read)
        written = (array.written, array.distinct_written)
        cells = (*(f"{n:,}" for n in counts), f"{array.reads_per_byte:.2f}", *(f"{n:,}" for n in written))
        table.add_row(Text(f"{argument_of(key)} {array.name}"), *cells)
    return [table]


def _roundings(report: "Report") -> list[Table]:
    rows = rounding_rows(report)
    if not rows:
        return []
    table = Table(title="rounding of matrix products", box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for header in ROUNDING_HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return [table]


def _lines(report: "Report") -> Table:
    title = f"the {HOTTEST} PTX lines issued most"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), expand=True)
    hottest = sorted(report.lines, key=lambda line: -line.instructions)[:HOTTEST]
    rows = [_line(line, report.counters.instructions) for line in hottest]
    for header in ("line", "issued", "share", "lanes", "conflicts", "sectors"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("PTX", no_wrap=True, overflow="ellipsis", ratio=1)  # takes the room that the numbers leave
    for line, cells in zip(hottest, rows, strict=True):
        table.add_row(*cells, Text(line.text.strip()))
    return table


def _line(line: "LineCounters", instructions: int) -> tuple[str, ...]:
    conflicts = f"{line.conflict_degree}x" if line.bank_conflicts else ""
    sectors = f"{line.global_sectors:,}/{line.fewest_sectors:,}" if line.global_sectors else ""
    counts = (f"{line.instructions:,}", percentage(line.instructions, instructions), f"{line.active_lanes:.1f}")
    return (str(line.line), *counts, conflicts, sectors)


def _findings(report: "Report") -> list[RenderableType]:
    if not report.findings:
        return [Text("no findings", style="green")]
    lines = [Text(f"{len(report.findings)} findings", style="bold red")]
    return [*lines, *(Text(str(finding), style="red") for finding in report.findings)]
