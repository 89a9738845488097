"""`lowbitvm tune --gpus`: tunes linear layers by measuring them on the GPUs of this machine, each in a process."""

import importlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from lowbitvm.arrays import tensor
from lowbitvm.bench.gpu import repeated
from lowbitvm.bench.jobs import run_all
from lowbitvm.dtypes import Array
from lowbitvm.errors import LowbitvmError
from lowbitvm.pack import PackedWeight
from lowbitvm.runtime import driver, tuned
from lowbitvm.runtime.layer import Layer
from lowbitvm.runtime.linear import linear_call
from lowbitvm.runtime.tuned import LINEAR, Record, database, device_of


class Measured(NamedTuple):
    """A layer on a GPU and the record that it has now; None where no tile could be measured."""

    gpu: str
    layer: Layer
    record: Record | None


def numbers(text: str, wanted: Sequence[str]) -> list[int]:
    """The GPUs that "all" or numbers with commas stand for, of the targets `wanted` where there are any.

    Raises DEVICE_UNAVAILABLE and ARGUMENT_INVALID.
    """
    count = driver.device_count()
    parts = [part.strip() for part in text.split(",")]
    if text != "all" and not all(part.isdecimal() and int(part) < count for part in parts):
        raise LowbitvmError("ARGUMENT_INVALID", f"GPUs {text!r} of {count}", f"use all, or numbers below {count}")
    every = {index: driver.device_target(index) for index in (range(count) if text == "all" else map(int, parts))}
    chosen = [index for index, target in every.items() if not wanted or target in wanted]
    if not chosen:
        problem = f"no GPU is a {', '.join(wanted)}; there are {', '.join(every.values())}"
        raise LowbitvmError("DEVICE_UNAVAILABLE", problem, "leave out --target, or --gpus to tune by the model")
    return chosen


def measure(indices: Sequence[int], layers: Sequence[Layer], budget_s: float | None) -> list[Measured]:
    """Tunes layers on GPUs; those of one kind, which share their records, share out the layers. `Layer.target` is any.

    The records are in the user's database as soon as they are made. Raises TOOL_MISSING without torch.
    """
    _torch()
    alike: dict[tuple[str, str], list[int]] = {}
    for index in indices:
        alike.setdefault((driver.device_name(index), driver.device_target(index)), []).append(index)
    jobs = [
        partial(measure_layers, index, layers[place :: len(same)], budget_s)
        for same in alike.values()
        for place, index in enumerate(same)
    ]
    return [entry for part in run_all(jobs, "tune: measuring") for entry in part]


def measure_layers(index: int, layers: Sequence[Layer], budget_s: float | None) -> list[Measured]:
    """Tunes layers on one GPU, one after another."""
    device, found = device_of(driver.device_target(index), index), []
    for layer in (replace(one, target=device.target) for one in layers):
        x, weight = _on_gpu(layer, index)
        y = x.new_empty((layer.rows, layer.n))
        with tuned.tuning("tune", budget_s):
            try:
                linear_call(x, weight, None, y, device.target)
            except LowbitvmError as error:
                if error.code == "CONTEXT_LOST":
                    raise  # no other layer can be measured
                continue
        found.append(Measured(device.name, layer, database().get(LINEAR, layer.problem, device)))
    return found


def show(found: Sequence[Measured], console: Console) -> None:
    """Prints the records, and which of them differ from the plan."""
    table = Table("gpu", "weights", "m", "n", "k", "us", "known", "tile", title="tuned on GPUs")
    for gpu, layer, record in found:
        sizes = (str(layer.format), str(layer.rows), str(layer.n), str(layer.k))
        if record is not None:
            planned = layer.tile(record.config) == layer.plan
            tile = "the planned one" if planned else " ".join(f"{name} {size}" for name, size in record.config.items())
            table.add_row(gpu, *sizes, f"{record.time_us:.1f}", record.how, tile)
        else:
            table.add_row(gpu, *sizes, "", "", "not measured")
    console.print(table)


def _on_gpu(layer: Layer, index: int) -> tuple[Array, PackedWeight]:
    """x and a weight as torch tensors on a GPU, or on the CPU where LOWBITVM_DEVICE makes its memory the GPU's."""
    torch = _torch()
    shared = os.environ.get("LOWBITVM_DEVICE") == f"cuda:{index}"
    place = "cpu" if shared else f"cuda:{index}"
    packed = repeated(layer.format, layer.n, layer.k)
    weight = replace(packed, **{name: tensor(array) for name, array in packed.arrays.items()})
    x = torch.ones((layer.rows, layer.k), dtype=torch.float16, device=place)
    return x, weight.to(place)


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise LowbitvmError("TOOL_MISSING", "tuning on a GPU needs torch", "pip install 'lowbitvm[torch]'") from error
