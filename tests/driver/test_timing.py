"""Measuring launches on the stand-in driver, whose clock is scripted."""

import itertools
import math
import statistics

import numpy as np
import pytest
from cuda.bindings import driver as cuda

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver, timing
from lowbitvm.runtime.arguments import adopt
from lowbitvm.runtime.launch import Ready, prepare
from tests.driver.kernels import doubling
from tests.driver.memory import Interface
from tests.driver.standin import ILLEGAL_ADDRESS, Standin

NUMBERS = np.arange(300, dtype=np.float32)
OUT_OF_MEMORY, NOT_PERMITTED = 2, 800


def ready_launch(count: int = 1) -> tuple[Ready, list[list[int]]]:
    """A launch on GPU 0 and the addresses of `count` sets of its buffers."""
    arrays = [{"x": Interface(NUMBERS), "y": Interface(0 * NUMBERS)} for _ in range(count)]
    ready = prepare(doubling(), (3,), {name: adopt(array) for name, array in arrays[0].items()})
    assert ready is not None
    return ready, [[part.address for part in parts.values()] for parts in arrays]


@pytest.mark.parametrize("graph", [True, False])
def test_a_launch_takes_what_the_clock_of_the_gpu_says(gpus: Standin, graph: bool) -> None:
    gpus.cost = lambda launched: 1500.0
    ready, ((x, y),) = ready_launch()
    took = timing.measure(lambda _, stream: ready.launch([x, y], stream), driver.primary_context(0), graph=graph)
    assert (took.median_us, took.low_us, took.high_us) == pytest.approx((1500, 1500, 1500), abs=0.1)
    assert took.is_narrow and took.runs == 6 and gpus.problems == []  # with fewer there is no 95 % interval
    assert {launched.stream for launched in gpus.launched} != {0}


def test_the_sets_of_buffers_take_turns(gpus: Standin) -> None:
    gpus.cost = lambda launched: 200.0
    ready, addresses = ready_launch(3)
    turns: list[int] = []

    def launch(which: int, stream: int) -> None:
        turns.append(which)
        ready.launch(addresses[which], stream)

    timing.measure(launch, driver.primary_context(0), rotate=3)
    assert turns == list(itertools.islice(itertools.cycle(range(3)), 3 + 3 + 12))  # twice to warm up, 12: 2.4 ms


def test_sets_are_as_many_as_leave_none_in_the_l2_cache(gpus: Standin) -> None:
    cache = driver.l2_bytes(0)
    assert [timing.sets(size, 0) for size in (cache, cache // 16, 4 * cache, 0)] == [2, 32, 1, timing.MOST_SETS]


def test_samples_that_vary_are_taken_until_the_budget_is_used(gpus: Standin) -> None:
    random = np.random.default_rng(0)
    gpus.cost = lambda launched: random.uniform(3000, 5000)
    ready, ((x, y),) = ready_launch()
    took = timing.measure(lambda _, stream: ready.launch([x, y], stream), driver.primary_context(0), budget_s=0.2)
    assert not took.is_narrow and timing.LEAST <= took.runs < timing.MOST
    assert 3000 <= took.low_us <= took.median_us <= took.high_us <= 5000


def test_the_interval_holds_the_median_in_95_of_100_cases() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        took = timing.of_samples(list(random.exponential(size=25)))
        held += took.low_us <= math.log(2) <= took.high_us  # the median of that distribution
        assert took.low_us <= took.median_us <= took.high_us
    assert 940 <= held <= 990


@pytest.mark.parametrize(("count", "left_out"), [(1, -1), (5, -1), (6, 0), (9, 1), (20, 5), (100, 39)])
def test_the_interval_leaves_out_what_tables_of_order_statistics_say(count: int, left_out: int) -> None:
    assert timing.tail(count) == left_out
    heads = statistics.NormalDist(count / 2, math.sqrt(count) / 2)
    assert count < 20 or heads.cdf(left_out + 0.5) < 0.025 < heads.cdf(left_out + 1.5)


@pytest.mark.parametrize(
    "name", ["cuStreamCreate", "cuEventCreate", "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"]
)
def test_after_a_fault_that_passes_the_next_measurement_is_right(gpus: Standin, name: str) -> None:
    gpus.cost = lambda launched: 2500.0
    ready, ((x, y),) = ready_launch()
    gpus.fail(name, NOT_PERMITTED if "Capture" in name else OUT_OF_MEMORY)
    with pytest.raises(LowbitvmError, match=name) as error:
        timing.measure(lambda _, stream: ready.launch([x, y], stream), driver.primary_context(0))
    assert error.value.code == "LAUNCH_FAILED"
    took = timing.measure(lambda _, stream: ready.launch([x, y], stream), driver.primary_context(0))
    assert took.median_us == pytest.approx(2500, abs=0.1) and gpus.problems == []


def test_a_launch_that_cannot_be_captured_leaves_no_capture_behind(gpus: Standin) -> None:
    gpus.cost = lambda launched: 2500.0
    ready, ((x, y),) = ready_launch()

    def launch(_: int, stream: int) -> None:
        ready.launch([x, y], stream)
        if driver.is_capturing(stream, driver.primary_context(0)):
            driver.synchronize(stream, driver.primary_context(0))

    with pytest.raises(LowbitvmError, match="STREAM_CAPTURE_UNSUPPORTED"):
        timing.measure(launch, driver.primary_context(0))
    took = timing.measure(launch, driver.primary_context(0), graph=False)
    assert took.median_us == pytest.approx(2500, abs=0.1)


def test_a_kernel_that_fails_while_it_is_measured_loses_the_context(gpus: Standin) -> None:
    ready, ((x, y),) = ready_launch()
    gpus.fail("cuGraphLaunch", ILLEGAL_ADDRESS, skip=2)
    with pytest.raises(LowbitvmError, match="CONTEXT_LOST"):
        timing.measure(lambda _, stream: ready.launch([x, y], stream), driver.primary_context(0))
    cuda.cuDevicePrimaryCtxReset(0)


def test_a_measurement_without_buffers_or_time_is_refused() -> None:
    for wrong in ({"rotate": 0}, {"budget_s": 0.0}):
        with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID"):
            timing.measure(lambda which, stream: None, 0, **wrong)
