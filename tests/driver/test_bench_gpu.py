"""`lowbitvm bench --gpu` on a stand-in GPU, by a scripted clock: ours for real, the other tools made up."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm.bench import gpu, modelled
from lowbitvm.bench.gpu import Ours, Shape, Tool, Work
from tests.driver.kernels import doubling
from tests.driver.memory import Interface
from tests.driver.standin import Standin

SHAPE, NUMBERS = (128, 256), np.arange(300, dtype=np.float32)
COSTS = {"linear": 1000.0, "quantise": 300.0, "matmul": 1700.0, "doubled": 500.0}  # microseconds


@pytest.fixture
def clock(gpus: Standin, monkeypatch: pytest.MonkeyPatch) -> Standin:
    """Launches take what COSTS says; there is one small layer."""
    gpus.cost, gpus.checks = lambda launched: COSTS[launched.entry], "none"
    monkeypatch.setattr(modelled, "SHAPES", {"tiny": {"qkv": SHAPE}})
    monkeypatch.setattr(gpu, "ROWS", {1: "decode", 64: "batch"})
    return gpus


class MadeUp(Tool):
    """A tool with one launch, of one row."""

    weights = ("u4",)

    def __init__(self, name: str, reason: str | None = None) -> None:
        self.name, self.reason = name, reason

    def available(self) -> str | None:
        return self.reason

    @contextmanager
    def prepare(self, weights: str, shape: Shape, index: int) -> Iterator[Work]:
        if shape[0] > 1:
            raise ValueError("one row only")
        arrays, kernel = {"x": Interface(NUMBERS), "y": Interface(NUMBERS)}, doubling()
        yield Work(lambda which, stream: lb.launch(kernel, (3,), arrays, stream=stream), 2, 1000)


class Uncapturable(MadeUp):
    """One that waits for the GPU in each launch, which a capture does not allow."""

    @contextmanager
    def prepare(self, weights: str, shape: Shape, index: int) -> Iterator[Work]:
        with super().prepare(weights, shape, index) as work:

            def launch(which: int, stream: int) -> None:
                work.launch(which, stream)
                gpu.driver.synchronize(stream, gpu.driver.primary_context(index))

            yield Work(launch, work.sets, work.size)


def test_layers_are_measured_on_a_gpu_and_stand_beside_the_other_tools(clock: Standin) -> None:
    others = [MadeUp("absent", "not installed"), MadeUp("other"), Uncapturable("waits")]
    found = gpu.collect([Ours(["u4,zero=int", "i4,act=i8"]), *others], ["tiny"], budget_s=0.01)
    rows = {(row["tool"], row["weights"], row["m"]): row for row in found["rows"]}
    assert {key: (round(row["us"]), row["how"]) for key, row in rows.items()} == {
        ("lowbitvm", "u4,zero=int", 1): (1000, "graph"),
        ("lowbitvm", "u4,zero=int", 64): (1000, "graph"),
        ("lowbitvm", "i4,act=i8", 1): (2000, "graph"),
        ("lowbitvm", "i4,act=i8", 64): (2000, "graph"),
        ("other", "u4", 1): (500, "graph"),
        ("waits", "u4", 1): (500, "launches"),
    }
    n, k = SHAPE
    u4 = rows["lowbitvm", "u4,zero=int", 64]
    traffic = n * k // 2 + 2 * 2 * n * k // 128 + 2 * 64 * (n + k)  # codes, scales and zeros, activations and results
    expected = {"gb_per_s": traffic / 1e6, "tflops": 2 * 64 * n * k / 1e9, "roofline_share": traffic / 2039e3 / 1000}
    assert {name: u4[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert found["left_out"] == {"absent": "not installed"}
    refusals = [(one["tool"], one["shape"], one["why"]) for one in found["refused"]]
    assert refusals == [(tool, "64,128,256", "ValueError: one row only") for tool in ("other", "waits")]
    assert (found["device"]["name"], found["device"]["target"]) == ("stand-in 0", "sm_80")
    assert clock.problems == []
