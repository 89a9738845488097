"""`lowbitvm bench --gpu` on a stand-in GPU, by a scripted clock: ours for real, the other tools made up."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
from rich.console import Console

import lowbitvm as lb
from lowbitvm.bench import gpu, modelled
from lowbitvm.bench.gpu import Ours, Shape, Tool, Work
from lowbitvm.errors import LowbitvmError
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
    console = Console(record=True, width=150)
    gpu.show(found, console)
    text = console.export_text()
    assert "500.0 (500.0 to 500.0, no graph)" in text and "left out: absent: not installed" in text
    assert "refused: other: u4 64,128,256: ValueError: one row only" in text and gpu.as_json(found) == {"gpu": found}


class Lost(MadeUp):
    """One whose kernel leaves the context unusable."""

    def prepare(self, weights: str, shape: Shape, index: int) -> AbstractContextManager[Work]:
        raise LowbitvmError("CONTEXT_LOST", "launching", "start a new process")


def test_what_was_measured_before_a_context_is_lost_is_kept(clock: Standin) -> None:
    found = gpu.collect([MadeUp("before"), Lost("lost"), MadeUp("after")], ["tiny"], budget_s=0.01)
    assert [row["tool"] for row in found["rows"]] == ["before"]
    refused = [(one["tool"], one["why"].partition(":")[0]) for one in found["refused"]]
    assert refused == [("before", "ValueError"), ("lost", "LowbitvmError")]


def test_the_models_time_stands_beside_ours_alone(clock: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "run_all", lambda jobs, description: [job() for job in jobs])
    found = gpu.with_model(gpu.collect([Ours(["u4,zero=int"]), MadeUp("other")], ["tiny"], budget_s=0.01))
    ours = [row for row in found["rows"] if row["tool"] == gpu.TOOL]
    for row in ours:
        shape = (row["m"], *SHAPE)
        assert row["modelled_us"] == modelled.row("a100", "u4,group=128,zero=int", shape).time_us
    assert len(ours) == 2 and [row["modelled_us"] for row in found["rows"] if row["tool"] == "other"] == [None]
