"""`lowbitvm selftest`."""

import json
from pathlib import Path

import click
from rich.console import Console

from lowbitvm.bench.diff import read
from lowbitvm.doctor import gpu_target
from lowbitvm.outputs import OutputFile
from lowbitvm.selftest import running
from lowbitvm.selftest.parcel import about, pack
from lowbitvm.targets import TARGETS

_GIVEN = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("selftest")
@click.option("--gpu", is_flag=True, help="Run on a GPU, and compare with the emulator bit for bit.")
@click.option("--index", type=click.IntRange(0), default=0, show_default=True, help="Which GPU.")
@click.option("--target", default="sm_80", show_default=True, type=click.Choice(list(TARGETS)), help="Without --gpu.")
@click.option("--quick", is_flag=True, help="A few cases of each family; always so without --gpu, unless --full.")
@click.option("--full", is_flag=True, help="All cases on the emulator, too.")
@click.option("--only", default="", metavar="TEXT", help="Cases whose family and name contain TEXT, such as 'splits'.")
@click.option("--out", type=OutputFile(), help="Write the verdicts as JSON.")
@click.option("--add", "added", type=_GIVEN, multiple=True, help="Pack this JSON as well, such as bench --json wrote.")
@click.option(
    "--pack", "archive", type=OutputFile(), help="Write the one file to send: verdicts, versions, nvidia-smi, doctor."
)
def selftest_command(
    gpu: bool,
    index: int,
    target: str,
    quick: bool,
    full: bool,
    only: str,
    out: Path | None,
    added: tuple[Path, ...],
    archive: Path | None,
) -> None:
    """Runs kernels of every kind and checks their results against exact ones; docs/gpu.md says what they are.

    Exit status: 1 if a case did not pass.
    """
    others = {f"added{number}.json": read(file) for number, file in enumerate(added, 1)}
    device = f"copy:{index}" if gpu else f"emulator:{target}"
    target = gpu_target(index, "`lowbitvm selftest` runs on the emulator") if gpu else target
    job = running.Job("", device, target, quick or not (gpu or full), only)
    found = running.collect(job)
    running.show(found, Console())
    result = running.as_json(job, found, about(index if gpu else None))
    try:
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
        if archive is not None:
            pack(archive, {"selftest.json": result} | others)
            click.echo(f"{archive} has no names of users, machines or directories; please send it as it is")
    except OSError as error:
        raise click.ClickException(f"{error.filename} cannot be written: {error}") from error
    raise SystemExit(1 if running.failed(found) else 0)
