"""A report as tables for a terminal."""

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lowbitvm.runtime.emulator.page import percentage

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator.report import Report

HOTTEST = 12  # lines shown


def render(report: "Report") -> RenderableType:
    """Counters, arrays, hottest lines and findings; plain text where the output is no terminal."""
    return Group(_summary(report), *_arrays(report), _lines(report), *_findings(report))


def _summary(report: "Report") -> Table:
    launch, counters = report.launch, report.counters
    title = f"{launch.entry}, grid {launch.grid}, block {launch.block}, {launch.arch}"
    table = Table("counter", "value", title=Text(title), box=SIMPLE_HEAD, title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("warp instructions", f"{counters.instructions:,}")
    for name, count in sorted(counters.by_class.items(), key=lambda item: -item[1]):
        if count:
            table.add_row(f"  {name}", f"{count:,}  {percentage(count, counters.instructions):>7}")
    table.add_row("active lanes of 32", f"{counters.active_lanes:.2f}")
    for form, matrix in counters.matrix.items():
        table.add_row(Text(form), f"{matrix.instructions:,} ({matrix.multiply_accumulates:,} multiply-adds)")
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
    table = Table("argument", "name", box=SIMPLE_HEAD)
    for header in ("bytes", "read", "of them distinct", "times each", "written", "of them distinct"):
        table.add_column(header, justify="right")
    for number, array in report.counters.arrays.items():
        counts = (array.size, array.read, array.distinct_read)
        written = (array.written, array.distinct_written)
        cells = (*(f"{n:,}" for n in counts), f"{array.reads_per_byte:.2f}", *(f"{n:,}" for n in written))
        table.add_row(str(number), Text(array.name), *cells)
    return [table]


def _lines(report: "Report") -> Table:
    table = Table("line", title=f"the {HOTTEST} hottest PTX lines", box=SIMPLE_HEAD, title_justify="left")
    for header in ("issued", "share", "lanes", "conflicts", "sectors"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("PTX", no_wrap=True, overflow="ellipsis")
    hottest = sorted(report.lines, key=lambda line: -line.instructions)[:HOTTEST]
    for line in hottest:
        conflicts = f"{line.conflict_degree}x" if line.bank_conflicts else ""
        sectors = f"{line.global_sectors:,}/{line.fewest_sectors:,}" if line.global_sectors else ""
        counts = (f"{line.instructions:,}", percentage(line.instructions, report.counters.instructions))
        table.add_row(str(line.line), *counts, f"{line.active_lanes:.1f}", conflicts, sectors, Text(line.text.strip()))
    return table


def _findings(report: "Report") -> list[RenderableType]:
    if not report.findings:
        return [Text("no findings", style="green")]
    lines = [Text(f"{len(report.findings)} findings", style="bold red")]
    return [*lines, *(Text(str(finding), style="red") for finding in report.findings)]
