"""`lowbitvm bench`: what kernels cost, section by section, as tables, JSON, plots and a page."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lowbitvm.bench import (
    compiling,
    diff,
    gpu,
    integers,
    launching,
    modelled,
    ours,
    packing,
    plots,
    report,
    static,
    validation,
)
from lowbitvm.bench.about import about
from lowbitvm.bench.gpu_peers import PEERS
from lowbitvm.doctor import gpu_target
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.outputs import OutputFile, write_text
from lowbitvm.runtime.linear import INPUTS
from lowbitvm.targets import TARGETS

_RESULTS = click.Path(exists=True, dir_okay=False, path_type=Path)


def _static(chosen: dict[str, Any]) -> dict[str, Any]:
    found = static.collect(**chosen)
    static.show(*found, Console(width=static.WIDTH))
    return static.as_json(*found)


def _model(chosen: dict[str, Any]) -> dict[str, Any]:
    rows = modelled.collect(weights=chosen["weights"])
    modelled.show(rows, Console())
    return modelled.as_json(rows)


def _validate(chosen: dict[str, Any]) -> dict[str, Any]:
    points = validation.collect()
    validation.show(points, Console())
    return validation.as_json(points)


def _launch(chosen: dict[str, Any]) -> dict[str, Any]:
    found = launching.collect()
    launching.show(found, Console())
    return {"launch": found}


def _compile(chosen: dict[str, Any]) -> dict[str, Any]:
    found = compiling.collect(chosen["peers"])
    compiling.show(found, Console())
    return {"compile": found}


def _pack(chosen: dict[str, Any]) -> dict[str, Any]:
    found = packing.collect(chosen["weights"])
    packing.show(found, Console())
    return {"pack": found}


def _gpu(chosen: dict[str, Any]) -> dict[str, Any]:
    gpu_target(0, "`lowbitvm bench --model` and `--static` need none")
    tools = [gpu.Ours(chosen["weights"]), *(PEERS if chosen["peers"] else ())]
    found = gpu.with_model(gpu.collect(tools, quick=chosen["quick"]))
    gpu.show(found, Console())
    return gpu.as_json(found)


Section = Callable[[dict[str, Any]], dict[str, Any]]  # prints its tables, returns its part of the JSON
SECTIONS: dict[str, tuple[str, Section]] = {  # flag -> its help, what it does; in the order in which they run
    "static": ("Count instructions of main loops; needs no GPU.", _static),
    "model": ("Model layers of language models; needs no GPU.", _model),
    "validate": ("Model kernels of Humming beside their published times; minutes.", _validate),
    "launch": ("Time calls in Python on a driver that does nothing.", _launch),
    "compile": ("Time compilation, beside the other tools.", _compile),
    "pack": ("Time the packing and quantising of weights.", _pack),
    "gpu": ("Time layers on the GPU, beside the other tools that are installed.", _gpu),
}


def _section_flags(command: Callable[..., None]) -> Callable[..., None]:
    for name, (text, _) in reversed(SECTIONS.items()):
        command = click.option(f"--{name}", f"measure_{name}", is_flag=True, help=text)(command)
    return command


def _output_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--html", "html_file", type=OutputFile(), help="Write plots and tables to one page.")(
        command
    )
    folder = click.Path(file_okay=False, path_type=Path)
    return click.option("--plot", "plot_folder", type=folder, help="Write the plots to this directory, as SVG.")(
        command
    )


def _formats(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Names of code types, or formats."""
    for name in value:
        if name not in ours.WEIGHTS:
            Format.parse(name)
    return value


def _group(ctx: click.Context, param: click.Parameter, value: str) -> int | str:
    """A number of codes, channel or tensor."""
    return Format.parse(f"u4,group={value}").group


@click.group("bench", invoke_without_command=True)
@_section_flags
@click.option("--json", "json_file", type=OutputFile(), help="Write the rows to this file as well.")
@_output_options
@click.option("--quick", is_flag=True, help="Only sm_80, f16 and the tiles 8 and 16x128x64, where not chosen.")
@click.option("--target", "target_names", multiple=True, type=click.Choice(list(TARGETS)), help="sm_80, sm_89, sm_90a.")
@click.option("--weights", multiple=True, callback=_formats, help="Such as u4 or u3,group=64. By default all types.")
@click.option("--act", "acts", multiple=True, type=click.Choice((*INPUTS, *integers.ACTS)), help="Floats or codes.")
@click.option("--group", default="128", show_default=True, callback=_group, help="Codes, channel or tensor.")
@click.option("--zero", "zeros", multiple=True, type=click.Choice(["none", "int", "float", "offset"]))
@click.option("--tile", "tiles", multiple=True, type=click.Choice([*dict.fromkeys((*ours.TILES, *integers.TILES))]))
@click.option("--peers/--no-peers", default=True, show_default=True, help="Compile the other tools' kernels too.")
@click.pass_context
def bench_group(
    ctx: click.Context,
    /,
    json_file: Path | None,
    plot_folder: Path | None,
    html_file: Path | None,
    **chosen: Any,
) -> None:
    """Measures kernels, ours and those of the other tools that are installed; docs/bench.md explains the columns."""
    wanted = [name for name in SECTIONS if chosen.pop(f"measure_{name}")]
    if ctx.invoked_subcommand is not None:
        return
    if not wanted:
        raise click.UsageError(f"say what to measure: {', '.join(f'--{name}' for name in SECTIONS)}")
    if plot_folder is not None or html_file is not None:
        plots.check()  # not after minutes of measuring
    found: dict[str, Any] = {"about": about()}
    for number, name in enumerate(wanted, 1):
        if len(wanted) > 1:
            click.echo(f"{name} ({number} of {len(wanted)})", err=True)
        found |= SECTIONS[name][1](chosen)
    if json_file is not None:
        write_text(json_file, json.dumps(found, indent=1) + "\n")
    _write_report(found, plot_folder, html_file)


@bench_group.command("report")
@click.argument("results", type=_RESULTS)
@_output_options
def report_command(results: Path, plot_folder: Path | None, html_file: Path | None) -> None:
    """Makes the plots and the HTML page of RESULTS, a file that --json wrote."""
    if plot_folder is None and html_file is None:
        raise click.UsageError("say what to write: --plot DIRECTORY, --html FILE")
    with _as_written(results):
        _write_report(diff.read(results), plot_folder, html_file)


@bench_group.command("diff")
@click.argument("before", type=_RESULTS)
@click.argument("after", type=_RESULTS)
@click.option("--threshold", type=click.FloatRange(0), default=2, show_default=True, help="Per cent that count.")
@click.option("--fail", is_flag=True, help="Exit with status 1 if a number got worse by more than that.")
@click.option("--counts", is_flag=True, help="Leave out what was timed on a machine.")
def diff_command(before: Path, after: Path, threshold: float, fail: bool, counts: bool) -> None:
    """Says what changed from BEFORE to AFTER, two files that --json wrote."""
    with _as_written(before, after):
        found = diff.compare(diff.read(before), diff.read(after), threshold / 100, timed=not counts)
    diff.show(found, Console())
    raise SystemExit(1 if fail and found.worse else 0)


@contextmanager
def _as_written(*files: Path) -> Iterator[None]:
    """Raises ARGUMENT_INVALID where files of results do not hold what `lowbitvm bench --json` writes."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        names, what = " and ".join(map(str, files)), f"{type(error).__name__}: {error}"
        raise LowbitvmError(
            "ARGUMENT_INVALID", f"{names} cannot be read as results of bench ({what})", "give files of --json"
        ) from error


def _write_report(found: dict[str, Any], plot_folder: Path | None, html_file: Path | None) -> None:
    if plot_folder is None and html_file is None:
        return
    drawn = plots.draw(found)
    if plot_folder is not None:
        _make(plot_folder)
        for name, plot in drawn.items():
            write_text(plot_folder / f"{name}.svg", plot.alone)
        click.echo(f"{len(drawn)} plots written to {plot_folder}")
    if html_file is not None:
        write_text(html_file, report.page(found, drawn))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"{folder} cannot be written: {error}") from error
