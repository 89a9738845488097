"""`lowbitvm bench --pack`: how fast weights are quantised and packed, in GB/s of the f16 weights they stand for."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lowbitvm.bench.jobs import progress_bar
from lowbitvm.dtypes import get
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits
from lowbitvm.pack import PackedWeight, pack
from lowbitvm.quantize import quantize
from lowbitvm.runtime.work import some_table

N, K = 4096, 4096  # out_features and in_features of the weight
RUNS = 3
WEIGHTS = (  # what is packed unless told otherwise
    *(f"u{bits},group=128,zero=int" for bits in range(1, 9)),
    "i4,group=128", "f6e3m2,group=128", "e4m3,group=128", "mxfp4", "nvfp4", "nf4", "i4,group=channel,act=i8",
)  # fmt: skip


def collect(weights: Sequence[str] = ()) -> dict[str, Any]:
    """By format, what `lb.pack` of given codes and `lb.quantize` of an f16 weight take; numpy arrays."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((N, K), np.float32).astype(np.float16)
    with progress_bar() as progress:
        wanted = list(weights or WEIGHTS)
        return {text: _format(text, weight) for text in progress.track(wanted, description="pack")}


def _format(text: str, weight: Any) -> dict[str, Any]:
    """The times of one format."""
    fmt = Format.parse(text)
    if fmt.code.is_linear and fmt.code.low >= 0 and fmt.zero is None:
        weight = abs(weight)  # which these codes cannot stand for otherwise
    table = some_table(fmt, *weight.shape)
    made = quantize(weight, fmt, table=table)
    given = made.arguments() if isinstance(made, PackedWeight) else _arguments(made)
    return {
        "pack": _timed(lambda: pack(**given)),
        "quantize": _timed(lambda: quantize(weight, fmt, table=table)),
    }


def _arguments(made: PackedDigits) -> dict[str, Any]:
    """What `pack` takes to make digits of the same codes; with other scales, which take the same time."""
    fmt = made.format
    shape = fmt.scales_shape(*made.shape)
    zeros = np.zeros(shape, fmt.code.numpy) if fmt.zero == "int" else None
    return {"codes": made.unpack(), "scales": np.ones(shape, get(fmt.scale).numpy), "zeros": zeros, "fmt": fmt}


def _timed(work: Callable[[], object]) -> dict[str, float]:
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    middle = statistics.median(seconds)
    return {"median_ms": round(1e3 * middle, 3), "gb_per_s": round(2e-9 * N * K / middle, 3)}


def show(found: dict[str, Any], console: Console) -> None:
    """The table of what `collect` returns."""
    columns = ("format", "pack ms", "GB/s", "quantize ms", "GB/s")
    table = Table(*columns, title=f"Packing a weight of {N} x {K}: GB/s of f16, on one core or more")
    for text, calls in found.items():
        times = [calls[call] for call in ("pack", "quantize")]
        table.add_row(text, *(f"{time[what]:.2f}" for time in times for what in ("median_ms", "gb_per_s")))
    console.print(table)
