"""How long launches take on a GPU, by its own clock.

A sample is one CUDA graph of many launches between two events, so that neither Python nor the driver's queue is in the
time. Every launch of a graph takes the next of several sets of buffers, which together are larger than the L2 cache: a
layer of a model does not find its weights there either. The median of the samples counts; it is known well enough once
its 95 % confidence interval, by order statistics, is narrow (Hoefler and Belli, Scientific Benchmarking, SC 2015).
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver

SAMPLE_US = 2000.0  # of a sample, against the resolution of events, 0.5 us
MOST_LAUNCHES = 4096  # of a sample
MOST_SETS = 1024
BEYOND_L2 = 2  # what all sets have together, in sizes of the L2 cache
NARROW = 0.01  # width of the interval, of the median
LEAST, MOST = 3, 1000  # samples
WARM = 0.2  # of the budget: until clocks are up

Launch = Callable[[int, int], object]


@dataclass(frozen=True)
class Timing:
    """Microseconds of a launch: the median of `runs` samples, and the interval that it is known to lie in."""

    median_us: float
    low_us: float
    high_us: float
    runs: int

    @property
    def is_narrow(self) -> bool:
        """Whether more samples would tell little more."""
        return bool(tail(self.runs) >= 0 and self.high_us - self.low_us <= NARROW * self.median_us)


def sets(size: int, device_index: int) -> int:
    """How many sets of buffers, of `size` bytes each, leave none in the L2 cache of a GPU until its next turn."""
    return max(1, min(MOST_SETS, math.ceil(BEYOND_L2 * driver.l2_bytes(device_index) / max(size, 1))))


def measure(launch: Launch, context: int, *, rotate: int = 1, budget_s: float = 0.5, graph: bool = True) -> Timing:
    """How long a launch takes, warm, with the next of `rotate` sets of buffers each time.

    launch: called as launch(number of the set, stream), it launches on that stream, of `context`. Samples are taken
    until the median's interval is NARROW or budget_s seconds are used, whichever comes first, and at least LEAST.
    graph: False for launches that cannot be captured. Raises what launches raise, LAUNCH_FAILED and CONTEXT_LOST.
    """
    if rotate < 1 or not budget_s > 0:
        problem = f"{rotate} sets of buffers and {budget_s} s"
        raise LowbitvmError("ARGUMENT_INVALID", problem, "give at least one set, and seconds above 0")
    with driver.new_stream(context) as stream, driver.timer(stream, context) as timed:

        def launches(count: int) -> None:
            for turn in range(count):
                launch(turn % rotate, stream)

        timed(lambda: launches(rotate))  # loads, and touches everything once
        each = timed(lambda: launches(rotate)) / rotate
        rounds = min(math.ceil(SAMPLE_US / max(each * rotate, 1e-3)), MOST_LAUNCHES // rotate)
        count = rotate * max(1, rounds)
        with _sample(lambda: launches(count), stream, context, graph) as sample:
            return _until_narrow(lambda: timed(sample) / count, budget_s)


@contextmanager
def _sample(work: Callable[[], None], stream: int, context: int, graph: bool) -> Iterator[Callable[[], None]]:
    if not graph:
        yield work
        return
    with driver.recorded(work, stream, context) as replay:
        yield replay


def _until_narrow(sample: Callable[[], float], budget_s: float) -> Timing:
    started = time.perf_counter()
    while True:
        sample()
        if time.perf_counter() - started > WARM * budget_s:
            break
    times: list[float] = []
    while True:
        times.append(sample())
        timing = of_samples(times)
        used = time.perf_counter() - started
        if timing.is_narrow or len(times) == MOST or (used > budget_s and len(times) >= LEAST):
            return timing


def of_samples(times: list[float]) -> Timing:
    """The median of samples with its interval: between the r-th smallest and the r-th largest, see `tail`."""
    ordered, rank = sorted(times), max(tail(len(times)), 0)
    return Timing(statistics.median(ordered), ordered[rank], ordered[-1 - rank], len(ordered))


@functools.cache
def tail(count: int) -> int:
    """The samples that may be left out at either end of the median's 95 % interval; -1 where there are too few for one.

    The largest r for which a fair coin shows at most r heads of `count` with a probability of 2.5 % or less.
    """
    chance, rank = 0.0, -1
    while True:
        chance += math.comb(count, rank + 1) / 2**count
        if chance > 0.025:
            return rank
        rank += 1
