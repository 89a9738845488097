"""`lowbitvm bench --model` and `lowbitvm model`: how long linear layers take on a GPU, by the performance model."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from lowbitvm import targets
from lowbitvm.bench.jobs import run_all
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.formats import NAMED, Format
from lowbitvm.pack import as_format, stored_bytes
from lowbitvm.plan import linear_plan
from lowbitvm.runtime import model
from lowbitvm.runtime.integer_work import PRODUCT, integer_works
from lowbitvm.runtime.layer import Layer
from lowbitvm.runtime.model import Prediction, Work
from lowbitvm.runtime.work import linear_work

# (out_features, in_features) of the linear layers of a block, as the models' published configurations have them.
SHAPES: dict[str, dict[str, tuple[int, int]]] = {
    "llama3-8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate, up": (28672, 4096), "down": (4096, 14336)},
    "llama3-70b": {"qkv": (10240, 8192), "o": (8192, 8192), "gate, up": (57344, 8192), "down": (8192, 28672)},
    "qwen3-32b": {"qkv": (10240, 5120), "o": (5120, 8192), "gate, up": (51200, 5120), "down": (5120, 25600)},
    "smollm2": {"qkv": (960, 576), "o": (576, 576), "gate, up": (3072, 576), "down": (576, 1536)},
}
ROWS = (1, 16, 64, 4096)
WEIGHTS = ("u2", "u4", "u8", "i4,group=channel,act=i8")
GPUS = ("a100", "rtx4090", "h100")
COLUMNS = ("layer", "n", "k", "weights", "m", "us", "bound by", "of roofline")
GROUP, SHORT_GROUP = 128, 64  # the second where the first does not divide in_features


@dataclass(frozen=True)
class Row:
    """A predicted layer. `bound`: of its product. `roofline_share`: `least_us` / `time_us`."""

    gpu: str
    model: str
    layer: str
    weights: str
    m: int
    n: int
    k: int
    time_us: float
    bound: str
    roofline_share: float


def row(gpu: str, weights: str, shape: tuple[int, int, int], name: str = "", layer: str = "") -> Row:
    """The row of a shape (m, n, k). Raises TARGET_UNKNOWN and what `lb.compile_linear` raises."""
    return _row(gpu, weights, shape, predicted(gpu, weights, shape), name, layer)


def predicted(gpu: str, weights: str, shape: tuple[int, int, int]) -> dict[str, tuple[Work, Prediction]]:
    """By launch of a linear layer of a shape (m, n, k), what it does on a GPU, and how long it takes."""
    target, rates = targets.gpu(gpu)
    fmt, (m, n, k) = as_format(weights), shape
    if fmt.act is None:
        works = {PRODUCT: linear_work(Layer(fmt, m, n, k, target.name), linear_plan(m, n, k, fmt, target))}
    else:
        works = integer_works(fmt, m, n, k, target.name)
    return {launch: (work, model.predict(work, rates)) for launch, work in works.items()}


def _row(
    gpu: str,
    weights: str,
    shape: tuple[int, int, int],
    found: dict[str, tuple[Work, Prediction]],
    name: str = "",
    layer: str = "",
) -> Row:
    m, n, k = shape
    time = sum(prediction.time for _, prediction in found.values())
    share = least_us(gpu, as_format(weights), m, n, k) / time
    return Row(gpu, name, layer, weights, m, n, k, time, found[PRODUCT][1].bound, share)


def least_us(gpu: str, fmt: Format | None, m: int, n: int, k: int) -> float:
    """The roofline's microseconds of a layer with f16 activations: of its bytes, or its products; f16 weights for None.

    Integers multiply at the peak of s8, or of s4 where both sides have at most 4 bits and the GPU has it.
    """
    rates = targets.gpu(gpu)[1]
    weights = 2 * n * k if fmt is None else sum(stored_bytes(fmt, n, k).values())
    memory = (weights + 2 * m * (k + n)) / (1e3 * rates.dram_gbs)
    peak = rates.f16
    if fmt is not None and fmt.act is not None:
        both_narrow = max(fmt.bits, CODE_TYPES[fmt.act].bits) <= 4
        peak = max(rates.s8, rates.s4 or 0 if both_narrow else 0)
    return max(memory, 2 * m * n * k / (peak * rates.sms * rates.boost_ghz * 1e3))


def collect(
    gpus: Sequence[str] = (), names: Sequence[str] = (), weights: Sequence[str] = (), rows: Sequence[int] = ()
) -> list[Row]:
    """The rows of all combinations of what is chosen; where nothing is: GPUS, SHAPES, WEIGHTS, ROWS.

    Weights without a group have groups of 128, or of 64 where 128 does not divide in_features.
    """
    alike: dict[Any, list[tuple[Any, ...]]] = {}  # the layers of a job, which share kernels and counts
    for name in names or SHAPES:
        for layer, (n, k) in SHAPES[name].items():
            for gpu, width, m in itertools.product(gpus or GPUS, weights or WEIGHTS, rows or ROWS):
                alike.setdefault((gpu, width, m), []).append((gpu, grouped(width, k), (m, n, k), name, layer))
    made = run_all([partial(_rows, layers) for layers in alike.values()], "model: emulating")
    models = list(names or SHAPES)
    return sorted(itertools.chain(*made), key=lambda row: models.index(row.model))


def _rows(layers: Sequence[tuple[Any, ...]]) -> list[Row]:
    return [row(*layer) for layer in layers]


def grouped(weights: str, k: int) -> str:
    """Weights with groups of 128, or 64, of in_features and what belongs to them, unless the text says something."""
    if "," in weights or weights in NAMED:
        return weights
    zero = ",zero=int" if CODE_TYPES[weights].kind == "uint" else ""
    return f"{weights},group={GROUP if k % GROUP == 0 else SHORT_GROUP}{zero}"


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """What --json writes."""
    return {"model": [asdict(row) for row in rows]}


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints a table per GPU and model."""
    for gpu, name in dict.fromkeys((row.gpu, row.model) for row in rows):
        table = Table(
            "layer", "n", "k", "weights", "m", "us", "bound by", "of roofline", title=f"{name} on {gpu}, modelled"
        )
        for row in rows:
            if (row.gpu, row.model) == (gpu, name):
                numbers = (str(row.n), str(row.k), row.weights, str(row.m), f"{row.time_us:.1f}")
                table.add_row(row.layer, *numbers, row.bound, f"{row.roofline_share:.0%}")
        console.print(table)


def explanation(gpu: str, weights: str, shape: tuple[int, int, int]) -> str:
    """What `lowbitvm model` prints."""
    found = predicted(gpu, weights, shape)
    whole, (m, n, k) = _row(gpu, weights, shape, found), shape
    lines = [
        f"problem    y ({m}, {n}) = x ({m}, {k}) w ({n}, {k})^T, w {weights}",
        f"time       {whole.time_us:.1f} us on {targets.gpu(gpu)[1].name}; {whole.roofline_share:.0%} of the roofline. "
        "Modelled, not measured.",
    ]
    for launch, (work, prediction) in found.items():
        lines += _launch(launch, work, prediction)
    return "\n".join(lines)


def _launch(name: str, work: Work, found: Prediction) -> list[str]:
    longest = found.limits[found.bound]
    limits = sorted(found.limits.items(), key=lambda item: -item[1])
    size = f"{work.blocks} blocks of {work.threads} threads, {work.registers} registers, {work.shared} shared bytes"
    return [
        f"{name:<10} {size}; {work.instructions.total():,.0f} warp instructions",
        f"  takes      {found.time:7.2f} us, {found.overhead:.1f} of them overhead; bound by {found.bound}",
        *(f"  {what:<11}{time:9.2f} us, {time / longest:4.0%}" for what, time in limits),
    ]
