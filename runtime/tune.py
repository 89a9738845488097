"""Choosing the best of several configurations of a kernel: by the performance model, and by measuring where there is a
GPU.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial

from lowbitvm import targets
from lowbitvm.errors import LowbitvmError
from lowbitvm.pack import stored_bytes
from lowbitvm.plan import MOST_SPLITS, SHORTEST_STREAM, Tile, direct_k
from lowbitvm.runtime import model
from lowbitvm.runtime.compiled import CompiledKernel, compile_many
from lowbitvm.runtime.layer import LEAST_ROWS, Layer
from lowbitvm.runtime.tuned import Device, Record, Value
from lowbitvm.runtime.work import assemble_all, linear_work
from lowbitvm.targets import Gpu

Config = dict[str, Value]
MARGIN = 0.03  # of a time, by which the model must prefer another configuration to the first one
MEASURED = 8  # configurations, those that the model likes best
MODEL_SHARE = 0.5  # of a budget, that the model may take where configurations are measured


def search(
    candidates: Sequence[Config],
    *,
    predict: Callable[[Config], float | None],
    prepare: Callable[[Config], CompiledKernel] | None = None,
    measure: Callable[[Config], float | None] | None = None,
    budget_s: float | None = None,
) -> Record:
    """The best configuration of a kernel; the first candidate is what it has without tuning.

    predict: us by the performance model, None for a configuration that is of no use, such as one that spills; one for
    which it raises a LowbitvmError is left out. prepare: its kernel, to be assembled beside the others. measure: us on
    the GPU, or None where the result is wrong; without it the record is "modelled", and another configuration than the
    first one has to be better by over MARGIN. budget_s: seconds for all of it; the first candidate is always tried.
    Raises TUNING_FAILED where no candidate can be used.
    """
    started, asked = time.perf_counter(), 0
    share = None if budget_s is None else budget_s * (MODEL_SHARE if measure else 1)
    predicted: list[tuple[float, int]] = []
    for number, candidate in enumerate(candidates):
        if number and share is not None and time.perf_counter() - started > share:
            break
        asked += 1
        us = _tried(partial(predict, candidate))
        if us is not None:
            predicted.append((us, number))
    if not predicted:
        raise LowbitvmError("TUNING_FAILED", f"none of {asked} configurations can be used", "look at one by itself")
    us, best = min(predicted)
    if measure is None:
        first = next((time for time, number in predicted if number == 0), None)
        if first is not None and us > (1 - MARGIN) * first:
            us, best = first, 0
        return Record(dict(candidates[best]), us, "modelled", asked, time.perf_counter() - started)
    ranked = [number for _, number in sorted(predicted)]
    chosen = [candidates[number] for number in dict.fromkeys([ranked[0], 0, *ranked[:MEASURED]]) if number in ranked]
    return _measured(chosen, prepare, measure, budget_s, started)


def _measured(
    chosen: Sequence[Config],
    prepare: Callable[[Config], CompiledKernel] | None,
    measure: Callable[[Config], float | None],
    budget_s: float | None,
    started: float,
) -> Record:
    if prepare is not None:
        compile_many([prepare(candidate) for candidate in chosen], progress=False)
    times: list[tuple[float, int]] = []
    for number, candidate in enumerate(chosen):
        if times and budget_s is not None and time.perf_counter() - started > budget_s:
            break
        us = _tried(partial(measure, candidate))
        if us is not None:
            times.append((us, number))
    if not times:
        problem = f"{len(chosen)} configurations gave wrong results, or none"
        raise LowbitvmError("TUNING_FAILED", problem, "run one on the emulator, which says what is wrong")
    us, best = min(times)
    return Record(dict(chosen[best]), us, "measured", len(times), time.perf_counter() - started)


def _tried(ask: Callable[[], float | None]) -> float | None:
    """None where a configuration is refused."""
    try:
        return ask()
    except LowbitvmError as error:
        if error.code == "CONTEXT_LOST":
            raise
        return None


# -- linear layers -----------------------------------------------------------------------------------------------------

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


def linear_tiles(layer: Layer) -> list[Tile]:
    """The planned tile, and those around it that the layer may have."""
    plan, target = layer.plan, targets.get(layer.target)
    found = [plan, replace(plan, direct=0), *(replace(plan, stages=stages) for stages in _beside(plan.stages))]
    for step in STEPS:
        tile = replace(plan, **{name: int(getattr(plan, name) * times) for name, times in step.items()})
        if plan.splits > 1:  # as many blocks as before
            splits = plan.splits * tile.bm * tile.bn // (plan.bm * plan.bn)
            tile = replace(tile, splits=max(1, min(MOST_SPLITS, splits)))
        found.append(replace(tile, direct=direct_k(tile, layer.format, target, 1 + layer.gate)))
    return [tile for tile in dict.fromkeys(found) if tile.bm <= max(LEAST_ROWS, layer.rows) and layer.allows(tile)]


def _beside(stages: int) -> Iterator[int]:
    """The next numbers of stages below and above."""
    yield from [number for number in STAGES if number < stages][-1:]
    yield from [number for number in STAGES if number > stages][:1]


def linear_candidates(layer: Layer, gpu: Gpu) -> list[Tile]:
    """The planned tile; then those around it that the model likes best, with all numbers of blocks that share out k."""
    tiles = linear_tiles(layer)
    assemble_all(layer, tiles)
    times = {tile: _tried(partial(predicted_us, layer, tile, gpu)) for tile in tiles}
    best = sorted((us, number) for number, us in enumerate(times.values()) if us is not None)[:WIDENED]
    shares = [splits for splits in SPLITS if splits == 1 or layer.k // splits >= SHORTEST_STREAM]
    others = [replace(tiles[number], splits=splits) for _, number in best for splits in shares]
    assemble_all(layer, others)
    return list(dict.fromkeys([tiles[0], *others]))


def predicted_us(layer: Layer, tile: Tile, gpu: Gpu) -> float | None:
    """How long a layer takes by the model; None for a kernel that spills."""
    work = linear_work(layer, tile)
    return None if work.spills else model.predict(work, gpu).time


def least_us(layer: Layer, gpu: Gpu) -> float:
    """What no tile can be faster than: the weights' way through the memory."""
    weights = (1 + layer.gate) * sum(stored_bytes(layer.format, layer.n, layer.k).values())
    return model.OVERHEAD_US + weights / (1e3 * gpu.dram_gbs * gpu.dram_share)


def model_linear(layer: Layer, gpu: Gpu, budget_s: float | None = None) -> Record:
    """The best tile of a layer by the model. Raises what `linear_work` raises for the planned one."""
    plan = layer.plan
    first = predicted_us(layer, plan, gpu)
    candidates = [plan]
    if first is None or least_us(layer, gpu) < (1 - MARGIN) * first:
        candidates = linear_candidates(layer, gpu)
    return search(
        [asdict(tile) for tile in candidates],
        predict=lambda config: predicted_us(layer, layer.tile(config), gpu),  # type: ignore[arg-type]
        budget_s=budget_s,
    )


def tune_linear(layer: Layer, device: Device, budget_s: float | None = None) -> Record:
    """The best tile of a layer on a device."""
    gpu = targets.GPUS[device.row][1] if device.row is not None else targets.get(device.target).gpu
    return model_linear(layer, gpu, budget_s)
