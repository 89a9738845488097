"""`lowbitvm bench --model` and `lowbitvm model`: how long linear layers take on a GPU, by the performance model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from lowbitvm import targets
from lowbitvm.bench.static import run_all
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.formats import NAMED
from lowbitvm.pack import as_format, stored_bytes
from lowbitvm.plan import linear_plan
from lowbitvm.runtime import model
from lowbitvm.runtime.model import Prediction, Work
from lowbitvm.runtime.work import Layer, linear_work

# (out_features, in_features) of the linear layers of a block, as the models' published configurations have them.
SHAPES: dict[str, dict[str, tuple[int, int]]] = {
    "llama3-8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate, up": (28672, 4096), "down": (4096, 14336)},
    "llama3-70b": {"qkv": (10240, 8192), "o": (8192, 8192), "gate, up": (57344, 8192), "down": (8192, 28672)},
    "qwen3-32b": {"qkv": (10240, 5120), "o": (5120, 8192), "gate, up": (51200, 5120), "down": (5120, 25600)},
    "smollm2": {"qkv": (960, 576), "o": (576, 576), "gate, up": (3072, 576), "down": (576, 1536)},
}
ROWS = (1, 16, 64, 4096)
WEIGHTS = ("u2", "u4", "u8")
GPUS = ("a100", "rtx4090", "h100")
COLUMNS = ("layer", "n", "k", "weights", "m", "us", "bound by", "of roofline")
GROUP, SHORT_GROUP = 128, 64  # the second where the first does not divide in_features


@dataclass(frozen=True)
class Row:
    """A predicted launch. `roofline_share`: of what bytes at the peak bandwidth, or products at the peak rate, take."""

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


def layer_row(gpu: str, name: str, layer: str, weights: str, m: int) -> Row:
    """One layer of a model on a GPU."""
    n, k = SHAPES[name][layer]
    return row(gpu, weights, (m, n, k), name, layer)


def row(gpu: str, weights: str, shape: tuple[int, int, int], name: str = "", layer: str = "") -> Row:
    """The row of a shape (m, n, k). Raises TARGET_UNKNOWN and what `lb.compile_linear` raises."""
    return _row(gpu, weights, shape, predicted(gpu, weights, shape)[1], name, layer)


def predicted(gpu: str, weights: str, shape: tuple[int, int, int]) -> tuple[Work, Prediction]:
    """What a linear layer of a shape (m, n, k) does on a GPU, and how long it takes."""
    target, rates = targets.gpu(gpu)
    fmt, (m, n, k) = as_format(weights), shape
    work = linear_work(Layer(fmt, m, n, k, target.name), linear_plan(m, n, k, fmt, target))
    return work, model.predict(work, rates)


def _row(gpu: str, weights: str, shape: tuple[int, int, int], found: Prediction, name: str, layer: str) -> Row:
    (m, n, k), (_, rates) = shape, targets.gpu(gpu)
    fmt = as_format(weights)
    memory = (sum(stored_bytes(fmt, n, k).values()) + 2 * m * (k + n)) / (1e3 * rates.dram_gbs)
    products = 2 * m * n * k / (rates.f16 * rates.sms * rates.boost_ghz * 1e3)
    return Row(gpu, name, layer, weights, m, n, k, found.time, found.bound, max(memory, products) / found.time)


def collect(
    gpus: Sequence[str] = (), names: Sequence[str] = (), weights: Sequence[str] = (), rows: Sequence[int] = ()
) -> list[Row]:
    """The rows of all combinations of what is chosen; where nothing is: GPUS, SHAPES, WEIGHTS, ROWS.

    Weights without a group have groups of 128, or of 64 where 128 does not divide in_features.
    """
    jobs = [
        partial(layer_row, gpu, name, layer, grouped(width, SHAPES[name][layer][1]), m)
        for name in names or SHAPES
        for layer in SHAPES[name]
        for gpu in gpus or GPUS
        for width in weights or WEIGHTS
        for m in rows or ROWS
    ]
    found: list[Row] = run_all(jobs)
    return found


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
    work, found = predicted(gpu, weights, shape)
    share = _row(gpu, weights, shape, found, "", "").roofline_share
    m, n, k = shape
    name, longest = targets.gpu(gpu)[1].name, found.limits[found.bound]
    limits = sorted(found.limits.items(), key=lambda item: -item[1])
    size = f"{work.blocks} blocks of {work.threads} threads, {work.registers} registers, {work.shared} shared bytes"
    return "\n".join(
        [
            f"problem    y ({m}, {n}) = x ({m}, {k}) w ({n}, {k})^T, w {weights}",
            f"kernel     {size}; {work.instructions.total():,.0f} warp instructions",
            f"time       {found.time:.1f} us on {name}, {found.overhead:.1f} of them launch, first load and last store",
            f"bound by   {found.bound}; {share:.0%} of the roofline. Modelled, not measured.",
            *(f"  {what:<11}{time:9.2f} us, {time / longest:4.0%}" for what, time in limits),
        ]
    )
