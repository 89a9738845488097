"""The `lowbitvm` command."""

import importlib.util
import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lowbitvm import emulate
from lowbitvm.bench import modelled
from lowbitvm.cli_bench import bench_group
from lowbitvm.cli_selftest import selftest_command
from lowbitvm.cli_tune import tune_command
from lowbitvm.digits import BASES
from lowbitvm.doctor import states
from lowbitvm.errors import LowbitvmError
from lowbitvm.explanation import explain
from lowbitvm.formats import SCALES, Format
from lowbitvm.kernels.epilogue import ACTIVATIONS
from lowbitvm.plan import chosen_tile
from lowbitvm.runtime.cache import default_size
from lowbitvm.runtime.emulator.report import CHECKS
from lowbitvm.runtime.linear import INPUTS, OUTPUTS, compile_linear, disk_cache
from lowbitvm.targets import GPUS, TARGETS, get

TEXT = "The quick brown fox jumps over the lazy dog, and then it runs back into the forest."


class _Group(click.Group):
    """Prints a LowbitvmError as one line instead of a trace."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LowbitvmError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group)
@click.version_option(package_name="lowbitvm")
def main() -> None:
    """Low-bit matrix multiplication kernels for NVIDIA GPUs, compiled and run with or without one."""


main.add_command(bench_group)


def _extent(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Up to three positive numbers with commas."""
    parts = value.split(",")
    if not 1 <= len(parts) <= 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r} is not one to three positive numbers, such as 4,1,1", ctx, param)
    return tuple(map(int, parts))


def _checks(ctx: click.Context, param: click.Parameter, value: str) -> str | set[str]:
    """all, none, or names of checks with commas."""
    if value in ("all", "none"):
        return value
    names = {name.strip() for name in value.split(",")}
    if unknown := names - set(CHECKS):
        message = f"there is no check {', '.join(sorted(unknown))}; use all, none or {', '.join(CHECKS)}"
        raise click.BadParameter(message, ctx, param)
    return names


def _shape(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int, int]:
    """m,n,k."""
    sizes = value.split(",")
    if len(sizes) != 3 or not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise click.BadParameter(f"{value!r} is not three numbers above 0, such as 16,4096,4096")
    m, n, k = map(int, sizes)
    return m, n, k


@main.command()
@click.option("--text", help=f"What the language model reads: by default {TEXT!r}, with --generate the start of one.")
@click.option("--device", default=None, help="cuda or emulator:TARGET; the GPU if there is one, else emulator:sm_80.")
@click.option("--generate", type=click.IntRange(1), help="Write this many tokens with the whole model instead.")
@click.option("--checks", callback=_checks, default="none", help="With --generate, the emulator's checks.")
def demo(text: str | None, device: str | None, generate: int | None, checks: str | set[str]) -> None:
    """Runs the first block of SmolLM2-135M with its 4-bit weights and checks every layer.

    With --generate, all 30 blocks write text, which must be what the float model writes.
    """
    if importlib.util.find_spec("torch") is None:
        raise LowbitvmError("TOOL_MISSING", "the demo needs torch", "pip install 'lowbitvm[torch,load]'")
    from lowbitvm import demo as runner  # imports torch, which the other commands do without

    device, console = device or runner.default_device(), Console()
    if generate is None:
        raise SystemExit(runner.main(TEXT if text is None else text, device, console))
    from lowbitvm import generate as generator

    prompt = generator.PROMPT if text is None else text
    raise SystemExit(generator.main(prompt, generate, device, checks, console))


@main.command("compile")
@click.option("--weights", required=True, help="Number format, such as u4, mxfp4 or u3,group=64,zero=int.")
@click.option("--group", help="16, 32, 64, 128, 256, channel or tensor, in place of the format's own.")
@click.option("--zero", type=click.Choice(["none", "int", "float", "offset"]))
@click.option("--scale", type=click.Choice(list(SCALES)))
@click.option("--act", default="f16", show_default=True, type=click.Choice(["f16", "bf16"]))
@click.option("--target", default="sm_80", show_default=True, help=", ".join(TARGETS))
@click.option("--bm", type=int, help="Rows of x per block.")
@click.option("--bn", type=int, help="Output features per block.")
@click.option("--bk", type=int, help="k per pipeline stage.")
@click.option("--stages", type=int, help="Pipeline stages, 2 to 8.")
@click.option("--direct", type=int, help="k that codes are loaded ahead into registers; 0: through shared memory.")
@click.option("--splits", type=int, help="Blocks that share out k, 1 to 16.")
@click.option("--bias", is_flag=True, help="Add a bias.")
@click.option("--gate", is_flag=True, help="Multiply with the activation function of a second weight's product.")
@click.option("--residual", is_flag=True, help="Add a residual.")
@click.option("--activation", type=click.Choice(list(ACTIVATIONS)), help="Activation function.")
@click.option("--out", type=click.Choice(OUTPUTS), help="dtype of the output, by default that of the activations.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Directory.")
def compile_command(
    output: Path,
    weights: str,
    group: str | None,
    zero: str | None,
    scale: str | None,
    act: str,
    target: str,
    bias: bool,
    gate: bool,
    residual: bool,
    activation: str | None,
    out: str | None,
    **parts: int | None,
) -> None:
    """Writes the linear kernel's .ptx, .cubin and .json (how to launch it, what it needs) to a directory."""
    given = {"group": group, "zero": zero, "scale": scale}
    fmt = Format.parse(",".join([weights, *(f"{part}={value}" for part, value in given.items() if value is not None)]))
    tile = chosen_tile(fmt, get(target), False, 2 if gate else 1, **parts)
    shape = "x".join(map(str, (tile.bm, tile.bn, tile.bk, tile.stages)))
    epilogue = {"bias": bias, "gate": gate, "residual": residual, "activation": activation, "out": out}
    also = [str(value) if isinstance(value, str) else part for part, value in epilogue.items() if value]
    also += [f"split{tile.splits}"] if tile.splits > 1 else []
    parts_of_name = [part.partition("=")[2] or part for part in str(fmt).split(",")]
    name = "-".join(["linear", *parts_of_name, act, target, shape, *also])
    with Progress(transient=True) as progress:
        progress.add_task(f"compiling {name}", total=None)
        kernel = compile_linear(fmt, act=act, target=target, **epilogue, **asdict(tile))  # type: ignore[arg-type]
        resources = {
            "entry": kernel.code.entry,
            "target": target,
            "weights": str(fmt),
            "activations": act,
            "epilogue": epilogue,
            "tile": asdict(tile),
            "grid": ["ceil(m / bm)", "ceil(n / bn)", tile.splits],
            "block": [kernel.code.threads, 1, 1],
            "dynamic_shared": kernel.shared,
            "parameters": [f"{kind} {parameter}" for kind, parameter in kernel.code.parameters],
            "promises": {"k": "a multiple of 8", "x": "16-byte aligned"},
            "registers": kernel.registers,
            "spills": kernel.spills,
            "trace_ms": round(kernel.trace_ms, 3),
            "assemble_ms": round(kernel.assemble_ms, 3),
        }
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{name}.ptx").write_text(kernel.ptx)
        (output / f"{name}.cubin").write_bytes(kernel.cubin)
        (output / f"{name}.json").write_text(json.dumps(resources, indent=2) + "\n")
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error}") from error
    click.echo(f"{output / name}.{{ptx,cubin,json}}: {kernel.registers} registers, {kernel.spills} bytes of spills")


_FILE = click.Path(dir_okay=False, path_type=Path)


@main.command("emulate", epilog=f"Forms of --arg, in the order of the kernel's parameters:\n\n{emulate.FORMS}")
@click.argument("file", type=_FILE)
@click.option("--entry", help="Kernel; needed where FILE has more than one.")
@click.option("--grid", metavar="X,Y,Z", callback=_extent, required=True, help="Blocks.")
@click.option("--block", metavar="X,Y,Z", callback=_extent, required=True, help="Threads per block.")
@click.option("--arg", "arguments", multiple=True, metavar="VALUE", help="Next kernel argument; see below.")
@click.option("--shared", type=click.IntRange(0), default=0, show_default=True, help="Bytes of dynamic shared memory.")
@click.option("--arch", help="GPU whose arithmetic to use, such as sm_80; by default the PTX's .target.")
@click.option("--checks", callback=_checks, default="all", show_default=True, help=f"all, none, or {','.join(CHECKS)}.")
@click.option("--numerics", type=click.Choice(["hw", "bound", "permute"]), help="Arithmetic of float matrix products.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides what a GPU leaves open.")
@click.option("--schedule", type=click.Choice(["random", "round_robin", "adversarial"]), help="Order of the warps.")
@click.option("--copies", type=click.Choice(["late", "early", "random"]), help="When asynchronous copies land.")
@click.option("--workers", type=click.IntRange(1), help="Threads of this machine; all by default.")
@click.option("--on-finding", type=click.Choice(["raise", "collect"]), default="raise", show_default=True)
@click.option("--report", "report_file", type=_FILE, help="Write the annotated PTX as HTML.")
@click.option("--json", "json_file", type=_FILE, help="Write the report as JSON; - prints it.")
@click.option("-q", "--quiet", is_flag=True, help="Print findings only.")
def emulate_command(
    file: Path,
    entry: str | None,
    arguments: tuple[str, ...],
    report_file: Path | None,
    json_file: Path | None,
    quiet: bool,
    **launch: object,
) -> None:
    """Runs a kernel of the PTX text FILE on an emulated GPU.

    Prints what the kernel did and what is wrong with it. Exit status: 0 without findings, 1 with findings, 2 where
    the kernel could not be launched.
    """
    options = {name: value for name, value in launch.items() if value is not None}
    raise SystemExit(emulate.run(file, entry, arguments, options, report_file, json_file, quiet))


@main.command("model")
@click.argument("weights")
@click.option("--gpu", default="a100", show_default=True, type=click.Choice(list(GPUS)))
@click.option("--shape", required=True, callback=_shape, help="m,n,k such as 16,4096,4096.")
def model_command(weights: str, gpu: str, shape: tuple[int, int, int]) -> None:
    """Says how long y (m, n) = x (m, k) w^T takes on a GPU and what binds, for weights such as "u4,group=128,zero=int".

    The times are modelled from counted instructions and bytes; docs/bench.md says how.
    """
    click.echo(modelled.explanation(gpu, weights, shape))


main.add_command(tune_command)


@main.command("explain")
@click.argument("weights")
@click.argument("m", type=click.IntRange(1))
@click.argument("n", type=click.IntRange(1))
@click.argument("k", type=click.IntRange(1))
@click.option("--act", default="f16", show_default=True, type=click.Choice(INPUTS))
@click.option("--target", default="sm_80", show_default=True, type=click.Choice(list(TARGETS)))
@click.option("--batch-invariant", is_flag=True, help="With a tile and splits that do not depend on M.")
@click.option("--digits", type=click.Choice(list(BASES)), help="Of integers, these only.")
def explain_command(weights: str, m: int, n: int, k: int, **chosen: Any) -> None:
    """Says what y (M, N) = x (M, K) w^T costs and what limits it, for weights such as "u4,group=128,zero=int".

    For integer weights and activations, such as "u2,act=i8", it is what each kind of digits costs.
    """
    click.echo(explain(weights, m, n, k, **chosen))


@main.group("cache")
def cache_group() -> None:
    """The compiled kernels on disk: LOWBITVM_CACHE_DIR, at most LOWBITVM_CACHE_SIZE."""


@cache_group.command("ls")
def cache_ls() -> None:
    """Lists the kernels, the one that was used last at the end."""
    cache = disk_cache()
    table = Table("key", "kernel", "target", "registers", "spills", "KB", "last used", title=str(cache.directory))
    files = cache.stored()
    for file in files:
        entry = file.entry()
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.used))
        found = ("damaged", "", "", "")
        if entry is not None:
            name, target = (re.search(pattern, entry.ptx) for pattern in (r"\.entry (\w+)", r"\.target (\w+)"))
            registers, spills = (str(entry.resources.get(part)) for part in ("registers", "spills"))
            found = (name[1] if name else "?", target[1] if target else "?", registers, spills)
        table.add_row(file.key[:12], *found, f"{file.size / 1024:.1f}", used)
    Console().print(table)
    click.echo(f"{len(files)} kernels, {sum(file.size for file in files) / 2**20:.1f} of {default_size() / 2**20:g} MB")


@cache_group.command("prune")
@click.option("--size", type=click.IntRange(0), help="Bytes to keep, those used last; by default LOWBITVM_CACHE_SIZE.")
def cache_prune(size: int | None) -> None:
    """Removes the kernels that were not used for longest, and what killed processes left behind."""
    click.echo(f"{disk_cache().prune(size) / 2**20:.1f} MB removed")


@cache_group.command("verify")
@click.option("--remove", is_flag=True, help="Remove the damaged ones.")
def cache_verify(remove: bool) -> None:
    """Reads every kernel and checks it. Exit status: 1 if one is damaged and left."""
    files = disk_cache().stored()
    damaged = [file for file in files if file.entry() is None]
    for file in damaged:
        click.echo(f"{file.path} is damaged{'; removed' if remove else ''}")
        if remove:
            file.path.unlink(missing_ok=True)
    click.echo(f"{len(files) - len(damaged)} of {len(files)} kernels are whole")
    raise SystemExit(1 if damaged and not remove else 0)


@cache_group.command("export")
@click.argument("archive", type=_FILE)
def cache_export(archive: Path) -> None:
    """Writes all kernels to ARCHIVE, for machines that shall not compile them."""
    try:
        click.echo(f"{disk_cache().export(archive)} kernels written to {archive}")
    except OSError as error:
        raise click.ClickException(f"{archive} cannot be written: {error}") from error


@cache_group.command("import")
@click.argument("archive", type=_FILE)
def cache_import(archive: Path) -> None:
    """Adds the kernels of ARCHIVE. They run as any program does: take them from those whom you trust."""
    try:
        count, refused = disk_cache().load(archive)
    except OSError as error:
        raise click.ClickException(f"{archive} cannot be read: {error}") from error
    for name in refused:
        click.echo(f"{name} is no whole kernel, and was left out")
    click.echo(f"{count} kernels added")
    raise SystemExit(1 if refused else 0)


@main.command()
def doctor() -> None:
    """Says what is installed, which GPUs there are, and which executors work."""
    table = Table("part", "state", title="lowbitvm doctor")
    for part, state in states().items():
        table.add_row(part, state)
    Console().print(table)


main.add_command(selftest_command)
