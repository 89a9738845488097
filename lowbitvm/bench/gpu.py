"""`lowbitvm bench --gpu`: linear layers measured on a GPU, ours and those of the other tools that are installed.

Ours need no torch: their arrays lie in memory that `lowbitvm.runtime.copying` keeps. docs/gpu.md says what is measured.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.bench import modelled
from lowbitvm.bench.jobs import progress_bar, run_all
from lowbitvm.bench.modelled import GROUP, SHORT_GROUP
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits
from lowbitvm.pack import PackedWeight, as_format, stored_bytes
from lowbitvm.quantize import quantize
from lowbitvm.runtime import driver, timing
from lowbitvm.runtime.copying import Keeper
from lowbitvm.runtime.integer import run_matmul
from lowbitvm.runtime.linear import run_linear
from lowbitvm.runtime.quantise import empty_activations, run_quantise
from lowbitvm.runtime.tuned import tuning
from lowbitvm.runtime.work import some_table
from lowbitvm.targets import Gpu

TOOL = "lowbitvm"
ROWS = {1: "decode", 16: "decode", 64: "batch", 4096: "prefill"}
WIDTHS = tuple(f"u{bits},zero=int" for bits in range(1, 9))
BYTES = "i8 x i8"  # other tools' products of codes, without rounding
INTEGERS = ("i2,act=i8", "i4,act=i8", "i8,act=i8", "i4,act=i4")
QUICK_WEIGHTS, QUICK_ROWS, QUICK_LAYERS = ("u4,zero=int", "i4,act=i8"), (1, 64), ("qkv",)
SLICE = 64  # output features that are packed, and repeated for the rest: the numbers do not matter
NO_GRAPH = {"graph": "", "launches": ", no graph"}
Shape = tuple[int, int, int]  # m, n, k
Launch = Callable[[int, int], object]  # of a set of buffers on a stream


@dataclass(frozen=True)
class Work:
    """What a tool has prepared: a launch, of `sets` sets of buffers. size: bytes of one set's weights."""

    launch: Launch
    sets: int
    size: int


class Tool:
    """A library with kernels for linear layers. weights: what it is asked for, as rows have it."""

    name = ""
    weights: tuple[str, ...] = ()

    def available(self) -> str | None:
        """None, or why it cannot be measured."""
        return None

    def prepare(self, weights: str, shape: Shape, index: int) -> AbstractContextManager[Work]:
        """The Work of a layer, and its memory as long as it is needed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Row:
    """A measured layer. us: the median, which lies between low_us and high_us with 95 % confidence.

    gb_per_s: bytes of weights, activations and results / us. roofline_share: the time of these bytes at the peak
    bandwidth, or of the products at the peak rate, whichever is longer / us. modelled_us: what the performance model
    says. how: "graph", or "launches" one by one, which for short kernels measures Python.
    """

    tool: str
    model: str
    layer: str
    what: str
    weights: str
    m: int
    n: int
    k: int
    us: float
    low_us: float
    high_us: float
    samples: int
    how: str
    gb_per_s: float
    tflops: float
    roofline_share: float
    modelled_us: float | None = None


class Ours(Tool):
    """The kernels of this package. With "act" in the weights x is first rounded to codes, by one of its own."""

    name = TOOL

    def __init__(self, weights: Sequence[str] = ()) -> None:
        self.weights = tuple(weights) or (*WIDTHS, *INTEGERS)

    @contextmanager
    def prepare(self, weights: str, shape: Shape, index: int) -> Iterator[Work]:
        """Each set is a launch with memory of its own."""
        fmt, target = chosen(weights, shape, driver.device_target(index)), driver.device_target(index)
        call, size = (_floats if fmt.act is None else _codes)(fmt, shape, target)
        sets = timing.sets(moved(size, shape, weights), index)
        before = os.environ.get("LOWBITVM_DEVICE", "")
        with Keeper() as keeper:
            os.environ["LOWBITVM_DEVICE"] = f"copy:{index}"
            try:
                with tuning("off"):  # the tiles of the plan, which the model knows
                    for _ in range(sets):
                        call()
            finally:
                os.environ["LOWBITVM_DEVICE"] = before
            each = len(keeper.held) // sets

            def launch(which: int, stream: int) -> None:
                for held in keeper.held[which * each : (which + 1) * each]:
                    held(stream)

            yield Work(launch, sets, size)


def chosen(weights: str, shape: Shape, target: str) -> Format:
    """The format of a row's weights: groups where none are given, and the best digits."""
    fmt = as_format(weights)
    if fmt.act is None:
        return fmt if "group" in weights else replace(fmt, group=GROUP if shape[2] % GROUP == 0 else SHORT_GROUP)
    fmt = replace(fmt, group="channel")
    return fmt if "digits" in weights else lb.best_digits(fmt, *shape, target=target)


def moved(size: int, shape: Shape, weights: str) -> int:
    """Bytes of weights, activations and results: what has to be read and written."""
    m, n, k = shape
    return size + m * k * (1 if weights == BYTES else 2) + 2 * m * n


def is_integer(weights: str) -> bool:
    """Whether the activations of a row are codes, too."""
    return "act=" in weights or weights == BYTES


def repeated(fmt: Format, n: int, k: int) -> PackedWeight:
    """A weight to measure with: n output features, a multiple of SLICE, that repeat the first SLICE of them."""
    numbers = np.random.default_rng(0).standard_normal((SLICE, k))
    few = quantize(numbers, fmt, table=some_table(fmt, SLICE, k))
    assert isinstance(few, PackedWeight)
    times, axes = n // SLICE, {"words": 0, "scales": 1, "zeros": 1}
    own = few.arrays
    arrays: dict[str, Any] = {name: np.repeat(own[name], times, axes[name]) for name in axes if name in own}
    return replace(few, **arrays, out_features=times * SLICE)


def _floats(fmt: Format, shape: Shape, target: str) -> tuple[Callable[[], object], int]:
    m, n, k = shape
    x, y = np.ones((m, k), np.float16), np.zeros((m, n), np.float16)
    weight = repeated(fmt, n, k)
    return partial(run_linear, x, weight, None, y, target), sum(stored_bytes(fmt, n, k).values())


def _codes(fmt: Format, shape: Shape, target: str) -> tuple[Callable[[], object], int]:
    m, n, k = shape
    rng, code = np.random.default_rng(0), fmt.code
    few = lb.pack_weights(rng.integers(code.low, code.high + 1, (SLICE, k)), fmt, np.ones((SLICE, 1), np.float16))
    arrays: dict[str, Any] = {name: np.repeat(array, n // SLICE, 0) for name, array in few.arrays.items()}
    weight: PackedDigits = replace(few, **arrays, rows=n // SLICE * SLICE)
    x, y = rng.standard_normal((m, k)).astype(np.float16), np.zeros((m, n), np.float16)
    a = empty_activations(x, Format(str(fmt.act), "channel", scale="f32", digits=fmt.digits))

    def call() -> None:
        run_quantise(x, a, target)
        run_matmul(a, weight, y, target)

    return call, sum(array.nbytes for array in weight.arrays.values())


def collect(
    tools: Sequence[Tool],
    models: Sequence[str] = ("llama3-8b",),
    *,
    index: int = 0,
    quick: bool = False,
    budget_s: float = 0.3,
) -> dict[str, Any]:
    """The JSON of the section: rows, tools that are left out and why, refused layers and why.

    A kernel that leaves the context unusable is the last that is tried. Raises DEVICE_UNAVAILABLE.
    """
    target, device = driver.device_target(index), driver.device_name(index)
    gpu = rates(device, target)
    left_out = {tool.name: reason for tool in tools if (reason := tool.available()) is not None}
    rows: list[Row] = []
    refused: list[dict[str, str]] = []
    jobs = [
        (tool, weights, name, layer, (m, *modelled.SHAPES[name][layer]))
        for tool in tools
        if tool.name not in left_out
        for name in models
        for layer in (QUICK_LAYERS if quick else modelled.SHAPES[name])
        for weights in (QUICK_WEIGHTS if quick and tool.name == TOOL else tool.weights)
        for m in (QUICK_ROWS if quick else ROWS)
    ]
    for tool, weights, name, layer, shape in _tracked(jobs):
        try:
            with tool.prepare(weights, shape, index) as work:
                found, how = _measured(work, index, budget_s)
            rows.append(_row(tool.name, (name, layer), weights, shape, work.size, found, how, gpu))
        except Exception as error:  # another library's may be of any kind
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            refused.append({"tool": tool.name, "weights": weights, "shape": ",".join(map(str, shape)), "why": why})
            if isinstance(error, LowbitvmError) and error.code == "CONTEXT_LOST":
                break  # nothing runs any more, and what was measured is not to be lost
    about = {"name": device, "target": target, "rates_of": gpu.name, "driver": driver.version()}
    return {"device": about, "rows": [asdict(row) for row in rows], "left_out": left_out, "refused": refused}


def _tracked(jobs: Sequence[Any]) -> Iterator[Any]:
    with progress_bar() as bar:
        yield from bar.track(jobs, description="measuring")


def _measured(work: Work, index: int, budget_s: float) -> tuple[timing.Timing, str]:
    """By graphs; one by one for launches that cannot be captured."""
    context = driver.primary_context(index)
    try:
        return timing.measure(work.launch, context, rotate=work.sets, budget_s=budget_s), "graph"
    except Exception as error:
        if isinstance(error, LowbitvmError) and error.code == "CONTEXT_LOST":
            raise
        return timing.measure(work.launch, context, rotate=work.sets, budget_s=budget_s, graph=False), "launches"


def rates(device: str, target: str) -> Gpu:
    """Those of a GPU by its name, or else of the target's own."""
    row = targets.REPORTED.get(device)
    return targets.get(target).gpu if row is None else targets.gpu(row)[1]


def _row(
    tool: str, layer: tuple[str, str], weights: str, shape: Shape, size: int, found: timing.Timing, how: str, gpu: Gpu
) -> Row:
    (m, n, k), us = shape, found.median_us
    traffic, products = moved(size, shape, weights), 2 * m * n * k
    peak = (gpu.s8 if is_integer(weights) else gpu.f16) * gpu.sms * gpu.boost_ghz * 1e3  # operations per us
    least = max(traffic / (1e3 * gpu.dram_gbs), products / peak)
    timed: dict[str, Any] = {
        "us": us,
        "low_us": found.low_us,
        "high_us": found.high_us,
        "gb_per_s": traffic / (1e3 * us),
    }
    timed |= {"tflops": products / (1e6 * us), "roofline_share": least / us}
    return Row(tool, *layer, ROWS.get(m, ""), weights, m, n, k, samples=found.runs, how=how, **timed)


def with_model(found: dict[str, Any]) -> dict[str, Any]:
    """The same with the performance model's time beside each row of ours that it knows."""
    target, device = found["device"]["target"], found["device"]["name"]
    known = targets.REPORTED.get(device) or next(row for row, (name, _) in targets.GPUS.items() if name == target)
    own = [row for row in found["rows"] if row["tool"] == TOOL]
    for row, us in zip(own, run_all([partial(_modelled, known, row) for row in own], "modelling"), strict=True):
        row["modelled_us"] = us
    return found


def _modelled(gpu: str, row: dict[str, Any]) -> float | None:
    shape = (row["m"], row["n"], row["k"])
    try:
        weights = str(chosen(row["weights"], shape, targets.gpu(gpu)[0].name))
        return modelled.row(gpu, weights, shape).time_us
    except Exception:  # what has no model; whatever it is, the measured times are not to be lost
        return None


def as_json(found: dict[str, Any]) -> dict[str, Any]:
    """What --json writes."""
    return {"gpu": found}


def show(found: dict[str, Any], console: Console) -> None:
    """A table for each layer, and what is not in it."""
    device = found["device"]
    rows = [Row(**row) for row in found["rows"]]
    for layer in dict.fromkeys((row.model, row.layer, row.n, row.k) for row in rows):
        title = f"{layer[0]} {layer[1]} (n {layer[2]}, k {layer[3]}) on {device['name']}, measured"
        table = Table("tool", "weights", "m", "us", "GB/s", "TFLOP/s", "of roofline", "modelled us", title=title)
        for row in sorted(rows, key=lambda row: (row.m, row.us)):
            if (row.model, row.layer, row.n, row.k) == layer:
                spread = f"{row.us:.1f} ({row.low_us:.1f} to {row.high_us:.1f}{NO_GRAPH[row.how]})"
                numbers = (spread, f"{row.gb_per_s:.0f}", f"{row.tflops:.1f}", f"{row.roofline_share:.0%}")
                model = "" if row.modelled_us is None else f"{row.modelled_us:.1f}"
                table.add_row(row.tool, row.weights, str(row.m), *numbers, model)
        console.print(table)
    for tool, why in found["left_out"].items():
        console.print(f"left out: {tool}: {why}", markup=False, highlight=False)
    for one in found["refused"]:
        console.print(
            f"refused: {one['tool']}: {one['weights']} {one['shape']}: {one['why']}", markup=False, highlight=False
        )
