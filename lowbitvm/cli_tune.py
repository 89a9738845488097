"""`lowbitvm tune`: tunes the linear layers of language models, and writes what it has found as a table."""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from lowbitvm import targets, tune_gpus
from lowbitvm.bench.jobs import run_all
from lowbitvm.bench.modelled import SHAPES, grouped
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.outputs import OutputFile, write_text
from lowbitvm.runtime import tuned
from lowbitvm.runtime.layer import LEAST_ROWS, Layer
from lowbitvm.runtime.tune import model_linear, predicted_us
from lowbitvm.runtime.tuned import LINEAR, Device, Record, bucket, database, gpu_device
from lowbitvm.tile import SMALL_ROWS

ROWS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Tuned(NamedTuple):
    """A layer of a GPU with its record, and what its plan takes by the model."""

    gpu: str
    layer: Layer
    record: Record
    plan_us: float


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Positive numbers with commas."""
    parts = [] if value is None else value.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r} is not numbers above 0, such as 1,16,64", ctx, param)
    return tuple(map(int, parts))


@click.command("tune")
@click.option("--shapes", default="all", show_default=True, help=f"{', '.join(SHAPES)}, with commas, or all.")
@click.option("--weights", default="u4", show_default=True, help="Formats such as u4,u3,mxfp4; more parts with '/'.")
@click.option("--target", "target_names", multiple=True, help="Tunes for the GPU that the model takes for it.")
@click.option("--gpu", "modelled", multiple=True, help=f"Tunes for it: {', '.join(targets.GPUS)}.")
@click.option("--gpus", help="Measures on GPUs of this machine: all, or their numbers such as 0,1.")
@click.option("--rows", callback=_numbers, help="Rows of x, such as 1,16,64; by default all buckets up to 4096.")
@click.option("--budget", type=click.FloatRange(0, min_open=True), help="Seconds for each layer and number of rows.")
@click.option("--export", "export_file", type=OutputFile(), help="Write a table as well.")
def tune_command(
    shapes: str,
    weights: str,
    target_names: tuple[str, ...],
    modelled: tuple[str, ...],
    gpus: str | None,
    rows: tuple[int, ...],
    budget: float | None,
    export_file: Path | None,
) -> None:
    """Finds the best tiles of linear layers, and keeps them in the user's database: by the performance model, or with
    --gpus by measuring.

    docs/tuning.md says how they are used.
    """
    if gpus is not None and (modelled or export_file is not None):
        raise click.UsageError("--gpus measures on this machine's GPUs; --gpu and --export are for what is modelled")
    formats, layers = _formats(weights), _layers(shapes)
    if gpus is not None:
        indices = tune_gpus.numbers(gpus, target_names)
        wanted = [Layer(_grouped(text, k), m, n, k, "") for text in formats for m in rows or ROWS for n, k in layers]
        tune_gpus.show(tune_gpus.measure(indices, wanted, budget), Console())
        return
    chosen = list(dict.fromkeys([*modelled, *(_row_of(name) for name in target_names)] or ["a100"]))
    if export_file is not None and len(chosen) > 1:
        raise click.UsageError(f"--export writes the table of one GPU, not of {', '.join(chosen)}")
    for gpu in chosen:
        targets.gpu(gpu)
    jobs = [
        partial(tune_layers, gpu, text, layers, some, budget)
        for gpu, text, some in product(chosen, formats, _together(rows or ROWS))
    ]
    found: list[Tuned] = [entry for part in run_all(jobs, "tune: modelling") for entry in part]
    for entry in found:
        database().put(LINEAR, entry.layer.problem, gpu_device(entry.gpu), entry.record)
    show(found, Console())
    if export_file is not None:
        write_text(export_file, table_text(gpu_device(chosen[0])))


def _formats(text: str) -> list[str]:
    """Formats with commas between them, their parts with '/'. Raises FORMAT_INVALID."""
    found = [part.strip().replace("/", ",") for part in text.split(",")]
    for part in found:
        Format.parse(part)
    return found


def _layers(shapes: str) -> tuple[tuple[int, int], ...]:
    """(out_features, in_features) of the layers of shape sets."""
    return tuple(dict.fromkeys(shape for name in _shapes(shapes) for shape in SHAPES[name].values()))


def _grouped(text: str, k: int) -> Format:
    return Format.parse(grouped(text, k))


def _shapes(text: str) -> list[str]:
    names = list(SHAPES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SHAPES:
            raise LowbitvmError("ARGUMENT_INVALID", f"there are no shapes {name!r}", f"use {', '.join(SHAPES)}, or all")
    return names


def _row_of(target: str) -> str:
    """The GPU that the model takes for a target. Raises TARGET_UNKNOWN."""
    row = tuned.device_of(target).row
    assert row is not None
    return row


def _together(rows: Sequence[int]) -> list[list[int]]:
    """Rows in lists of those whose layers share kernels, which are assembled and emulated once."""
    lists: dict[int, list[int]] = {}
    for m in rows:
        lists.setdefault(max(LEAST_ROWS, min(2 * SMALL_ROWS, bucket(m))), []).append(m)
    return list(lists.values())


def tune_layers(
    gpu: str, weights: str, shapes: Sequence[tuple[int, int]], rows: Sequence[int], budget: float | None
) -> list[Tuned]:
    """Tunes layers of one format on one GPU by the model; shapes are (out_features, in_features)."""
    target, rates = targets.gpu(gpu)
    found = []
    for m in rows:
        for n, k in shapes:
            layer = Layer(_grouped(weights, k), m, n, k, target.name)
            record = model_linear(layer, rates, budget)
            plan_us = predicted_us(layer, layer.plan, rates)
            found.append(Tuned(gpu, layer, record, record.time_us if plan_us is None else plan_us))
    return found


def show(found: Iterable[Tuned], console: Console) -> None:
    """Prints what differs from the plan."""
    table = Table("gpu", "weights", "m", "n", "k", "us", "planned", "better by", "tile", title="tuned by the model")
    count, better = 0, 0
    for gpu, layer, record, plan_us in found:
        count += 1
        if record.time_us < plan_us:
            better += 1
            tile = " ".join(f"{name} {value}" for name, value in record.config.items())
            sizes = (str(layer.format), str(layer.m), str(layer.n), str(layer.k))
            gain = f"{1 - record.time_us / plan_us:.0%}"
            table.add_row(gpu, *sizes, f"{record.time_us:.1f}", f"{plan_us:.1f}", gain, tile)
    console.print(table)
    console.print(f"{better} of {count} layers have a tile that is better than the planned one by over 3 %.")


def table_text(device: Device) -> str:
    """The user's records for a device that differ from the plan, as a table that the package can bring along."""
    entries = []
    for kind, problem, owner, record in database().stored():
        if kind == LINEAR and owner == device and differs(problem, device.target, record):
            kept = {"config": record.config, "time_us": round(record.time_us, 2), "how": record.how}
            entries.append({"kind": kind, "problem": problem, "record": {**kept, "tried": record.tried}})
    lines = ",\n".join(json.dumps(entry, sort_keys=True) for entry in entries)
    about = {"gpu": device.row, "target": device.target, "version": tuned.version()}
    return f'{json.dumps(about)[:-1]}, "entries": [\n{lines}\n]}}\n'


def differs(problem: tuned.Problem, target: str, record: Record) -> bool:
    """Whether a record has another tile than the plan."""
    layer = Layer.of(problem, target)
    return layer.tile(record.config) != layer.plan
