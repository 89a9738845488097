"""Choosing the best of several configurations of a kernel: by the performance model, and by measuring where there is a
GPU.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.compiled import CompiledKernel, compile_many
from lowbitvm.runtime.tuned import Record, Value

Config = dict[str, Value]
Found = TypeVar("Found")
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
        kernels = [_tried(partial(prepare, candidate)) for candidate in chosen]
        compile_many([kernel for kernel in kernels if kernel is not None], progress=False)
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


def _tried(ask: Callable[[], Found | None]) -> Found | None:
    """None where a configuration is refused."""
    try:
        return ask()
    except LowbitvmError as error:
        if error.code == "CONTEXT_LOST":
            raise
        return None
