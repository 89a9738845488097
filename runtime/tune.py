"""Choosing the tile of a linear layer: by the performance model, and by measuring where there is a GPU.

The tiles around the planned one are ranked by the model. Those that it likes best are then compiled together, checked
and measured; without a GPU the model has the last word, and its record says so.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lowbitvm import targets
from lowbitvm.arrays import host
from lowbitvm.dtypes import Array
from lowbitvm.errors import LowbitvmError
from lowbitvm.pack import PackedWeight, stored_bytes
from lowbitvm.runtime import model, timing
from lowbitvm.runtime.launch import Place, Ready, prepare, recorded
from lowbitvm.runtime.layer import LEAST_ROWS, Layer
from lowbitvm.runtime.linear import LinearCall, linear_call
from lowbitvm.runtime.search import MARGIN, MEASURED, MODEL_SHARE, Config, search
from lowbitvm.runtime.trials import TOLERANCE, mismatch
from lowbitvm.runtime.tuned import Record
from lowbitvm.runtime.work import assemble_all, linear_work
from lowbitvm.targets import OVERHEAD_US, Gpu
from lowbitvm.tile import MOST_SPLITS, SHORTEST_STREAM, Tile, direct_k

LONGEST_S = 0.5  # of measuring one tile
MISSING = ("ASSEMBLER_MISSING", "TOOL_MISSING", "FORMAT_UNSUPPORTED")  # without which there is no model
SPLITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16)
STAGES = (2, 3, 4, 6, 8)
WIDENED = 3  # tiles that are tried with all splits
STEPS: tuple[dict[str, float], ...] = (  # what a tile's parts are multiplied by
    {"bn": 2},
    {"bn": 0.5},
    {"bn": 2, "warps": 2},
    {"bn": 0.5, "warps": 0.5},
    {"warps": 2},
    {"warps": 0.5},
    {"bk": 2},
    {"bk": 2, "stages": 0.5},
    {"bk": 0.5},
    {"bm": 2},
    {"bm": 2, "warps": 2},
    {"bm": 0.5},
    {"bm": 0.5, "warps": 0.5},
    {"bm": 0.5, "bn": 2},
)


def candidates(layer: Layer, gpu: Gpu, deadline: float = math.inf) -> dict[Tile, float | None]:
    """The planned tile and those that are worth a try, as many as there is time for, with `predicted_us` of each.

    Where the planned tile is about as fast as the memory is, it is the only one.
    """
    plan = layer.plan
    assemble_all(layer, [plan])
    first = predicted_us(layer, plan, gpu)
    times = {plan: first}
    if first is not None and least_us(layer, gpu) >= (1 - MARGIN) * first:
        return times
    around = linear_tiles(layer)
    assemble_all(layer, around)
    times |= {tile: predicted_us(layer, tile, gpu) for tile in _until(deadline, around)}
    known = sorted((us, number) for number, us in enumerate(times.values()) if us is not None)
    shares = [splits for splits in SPLITS if splits == 1 or layer.k // splits >= SHORTEST_STREAM]
    wide = [replace(around[number], splits=splits) for _, number in known[:WIDENED] for splits in shares]
    assemble_all(layer, wide)
    return times | {tile: predicted_us(layer, tile, gpu) for tile in _until(deadline, wide)}


def _until(deadline: float, tiles: Sequence[Tile]) -> Iterator[Tile]:
    for tile in tiles:
        if time.perf_counter() > deadline:
            return
        yield tile


def linear_tiles(layer: Layer) -> list[Tile]:
    """The planned tile, and those around it that the layer may have, for as many blocks."""
    plan, target = layer.plan, targets.get(layer.target)
    found = [plan, replace(plan, direct=0), *(replace(plan, stages=stages) for stages in _beside(plan.stages))]
    for step in STEPS:
        tile = replace(plan, **{name: int(getattr(plan, name) * times) for name, times in step.items()})
        if plan.splits > 1:
            splits = plan.splits * tile.bm * tile.bn // (plan.bm * plan.bn)
            tile = replace(tile, splits=max(1, min(MOST_SPLITS, splits)))
        found.append(replace(tile, direct=direct_k(tile, layer.format, target, 1 + layer.gate)))
    most = max(LEAST_ROWS, layer.rows)
    return [tile for tile in dict.fromkeys(found) if tile.bm <= most and layer.allows(tile)]


def _beside(stages: int) -> Iterator[int]:
    """The next numbers of stages below and above."""
    yield from [number for number in STAGES if number < stages][-1:]
    yield from [number for number in STAGES if number > stages][:1]


def predicted_us(layer: Layer, tile: Tile, gpu: Gpu) -> float | None:
    """How long a layer takes by the model; None where the kernel spills, gives wrong results or cannot be compiled."""
    try:
        work = linear_work(layer, tile)
    except LowbitvmError as error:
        if error.code in MISSING:
            raise
        return None
    return None if work.spills else model.predict(work, gpu).time


def least_us(layer: Layer, gpu: Gpu) -> float:
    """What no tile can be faster than: the weights' way through the memory."""
    weights = (1 + layer.gate) * sum(stored_bytes(layer.format, layer.n, layer.k).values())
    return OVERHEAD_US + weights / (1e3 * gpu.dram_gbs * gpu.dram_share)


def model_linear(layer: Layer, gpu: Gpu, budget_s: float | None = None) -> Record:
    """The best tile of a layer by the model; another one than the planned tile has to be better by over MARGIN.

    budget_s: seconds, after which no other tile is looked at. Raises TUNING_FAILED, FORMAT_UNSUPPORTED for weights that
    are multiplied with integers, and TOOL_MISSING without the extra `sass`.
    """
    started = time.perf_counter()
    times = candidates(layer, gpu, math.inf if budget_s is None else started + budget_s)
    found = search([asdict(tile) for tile in times], predict=lambda config: times[_tile(config)])
    return replace(found, seconds=time.perf_counter() - started)


def _tile(config: Config) -> Tile:
    return Tile(**{name: int(value) for name, value in config.items()})


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What a layer is measured with: x (m, k), torch's, as are the weights; the dtype of y is that of `y`."""

    x: Array
    weight: PackedWeight
    gate: PackedWeight | None
    y: Array

    def rows(self, m: int) -> "Given":
        """With m rows of x, which repeat its own."""
        times = -(-m // self.x.shape[0])
        return replace(self, x=self.x.repeat(times, 1)[:m].contiguous(), y=self.y.new_empty((m, self.y.shape[1])))

    def copy(self) -> "Given":
        """The same at other addresses."""
        gate = None if self.gate is None else _cloned(self.gate)
        return Given(self.x.clone(), _cloned(self.weight), gate, self.y.clone())

    @property
    def size(self) -> int:
        """Bytes."""
        weights = [part for weight in (self.weight, self.gate) if weight is not None for part in weight.arrays.values()]
        return sum(int(array.nbytes) for array in (self.x, self.y, *weights) if array is not None)

    def call(self, target: str, tile: Tile) -> tuple[LinearCall, dict[str, Any]]:
        """The launch of a tile."""
        return linear_call(self.x, self.weight, None, self.y, target, gate=self.gate, tile=tile)


def _cloned(weight: PackedWeight) -> PackedWeight:
    return replace(weight, **{name: part.clone() for name, part in weight.arrays.items() if part is not None})


def measure_linear(layer: Layer, given: Given, place: Place, gpu: Gpu, budget_s: float | None = None) -> Record:
    """The fastest tile of a layer on a GPU, of those that the model likes best and the planned one.

    A tile whose y differs from the planned tile's by more than `lowbitvm.runtime.trials.TOLERANCE` of its largest
    element and two roundings is left out. Raises TUNING_FAILED and CONTEXT_LOST.
    """
    started = time.perf_counter()
    times: dict[Tile, float | None] = {}
    try:
        times |= candidates(layer, gpu, math.inf if budget_s is None else started + MODEL_SHARE * budget_s)
    except LowbitvmError as error:
        if error.code != "TOOL_MISSING":
            raise
        times |= dict.fromkeys(linear_tiles(layer), 0.0)  # without the model they are measured in their order
    own = given.rows(layer.m)
    sets = [own, *(own.copy() for _ in range(timing.sets(own.size, place.index) - 1))]
    left = None if budget_s is None else max(0.0, started + budget_s - time.perf_counter())
    each = LONGEST_S if left is None else min(LONGEST_S, max(left, LONGEST_S) / MEASURED)

    def measured(config: Config) -> float | None:
        launches = _launches(layer, _tile(config), sets)
        if mismatch(_result(launches, own), expected, None, TOLERANCE) is not None:
            return None
        return _measured(launches, place, each)

    with recorded():  # these launches are nobody's calls
        expected = _result(_launches(layer, layer.plan, sets[:1]), own)
        found = search(
            [asdict(tile) for tile in times],
            predict=lambda config: times[_tile(config)],
            prepare=lambda config: own.call(layer.target, _tile(config))[0].kernel,
            measure=measured,
            budget_s=left,
        )
    return replace(found, seconds=time.perf_counter() - started)


Launches = list[tuple[Ready, list[int]]]


def _launches(layer: Layer, tile: Tile, sets: Sequence[Given]) -> Launches:
    """A tile's launch on each set of buffers, with its addresses. What splits of k share they take turns with."""
    found = []
    for given in sets:
        call, arguments = given.call(layer.target, tile)
        with call.shared(given.y) as shared:
            everything = arguments | shared
            ready = prepare(call.kernel, call.grid, everything)
            assert ready is not None
            parts = [
                everything[name] if part is None else getattr(everything[name], part)
                for name, part in call.kernel.array_parts()
            ]
            found.append((ready, [int(part.data_ptr()) for part in parts]))
    return found


def _result(launches: Launches, given: Given) -> Any:
    """y of the first set of buffers, on the CPU, which all that was done to the buffers has ended for."""
    (ready, addresses), *_ = launches
    given.y.zero_()
    ready.launch(addresses)
    return host(given.y.cpu()).copy()  # where y is the CPU's, the next tile stores to it


def _measured(launches: Launches, place: Place, budget_s: float) -> float:
    def launch(which: int, stream: int) -> None:
        ready, addresses = launches[which]
        ready.launch(addresses, stream)

    return timing.measure(launch, place.context, rotate=len(launches), budget_s=budget_s).median_us
