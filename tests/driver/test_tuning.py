"""Linear layers that are tuned by measuring, on the stand-in driver, whose clock is scripted."""

from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
import torch

import lowbitvm as lb
from lowbitvm.plan import Tile
from lowbitvm.runtime import timing, tune, tuned
from lowbitvm.runtime.layer import Layer
from lowbitvm.runtime.linear import LinearCall
from lowbitvm.runtime.tuned import Database, Device, Record
from tests.driver.standin import Launched, Standin

LAYER = Layer(lb.Format.parse("i4,group=64"), 16, 256, 512, "sm_80")
NARROW = replace(LAYER.plan, bn=64, warps=2, direct=0, splits=1)
SPLIT = replace(NARROW, splits=2)


@pytest.fixture
def base(gpus: Standin, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """An empty database, and a GPU on which the planned tile takes 900 us, NARROW 600, SPLIT 300."""
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
    made = Database(tmp_path / "t")
    monkeypatch.setattr(tuned, "database", lambda: made)
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path)
    tuned._shipped.cache_clear()
    known = {LAYER.plan: 2.0, NARROW: 1.0, SPLIT: None, replace(NARROW, bn=100): 1.0}
    monkeypatch.setattr(tune, "candidates", lambda layer, gpu, deadline: {**known, SPLIT: 3.0})
    monkeypatch.setattr(timing, "sets", lambda size, index: 2)

    def cost(launched: Launched) -> float:
        return 300.0 if launched.grid[2] == 2 else 600.0 if launched.block[0] == 64 else 900.0

    gpus.cost = cost
    yield made
    tuned._shipped.cache_clear()


def call(m: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = lb.quantize(torch.randn(256, 512, generator=generator), LAYER.format)
    return lb.linear(torch.randn(m, 512, generator=generator).half(), weight)


def device() -> Device:
    found = tuned.device_of("sm_80", 0)
    assert found.driver is not None
    return found


def test_the_fastest_tile_whose_result_is_right_is_kept_and_replayed(gpus: Standin, base: Database) -> None:
    before = call(12)
    assert base.get("linear", LAYER.problem, device()) is None
    with lb.tuning("tune", budget_s=30):
        assert torch.allclose(call(12), before, rtol=2**-9, atol=2**-9)
    record = base.get("linear", LAYER.problem, device())
    assert record is not None and (record.how, record.tried) == ("measured", 3)  # a tile of 100 features there is not
    assert record.config == asdict(SPLIT) and record.time_us == pytest.approx(300)
    gpus.launched.clear()
    call(9)
    assert [launched.grid for launched in gpus.launched] == [(1, 4, 2)]
    with lb.tuning("tune"):
        call(9)
    assert [launched.grid for launched in gpus.launched] == [(1, 4, 2)] * 2
    assert gpus.problems == []


def test_a_tile_with_wrong_results_does_not_win(gpus: Standin, base: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tune.linear_call

    def wrong(*args: object, tile: Tile, **options: object) -> tuple[LinearCall, dict[str, object]]:
        return plain(*args, tile=tile, **options, **({"activation": "relu"} if tile == SPLIT else {}))

    monkeypatch.setattr(tune, "linear_call", wrong)
    with lb.tuning("tune", budget_s=30):
        call(12)
    record = base.get("linear", LAYER.problem, device())
    assert record is not None and (record.config, record.tried) == (asdict(NARROW), 2)


def test_what_was_modelled_is_measured_but_not_in_a_capture(base: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    base.put("linear", LAYER.problem, device(), Record(asdict(NARROW), 1.0, "modelled"))
    asked: list[bool] = []
    decided = tuned.decided

    def noted(*args: object, capturing: bool) -> Record | None:
        asked.append(capturing)
        return decided(*args, capturing=True)

    monkeypatch.setattr(tuned, "decided", noted)
    with lb.tuning("tune"):
        call(16)
    assert asked == [False]  # memory of the CPU is not captured
    assert base.get("linear", LAYER.problem, device()) == Record(asdict(NARROW), 1.0, "modelled")
    monkeypatch.setattr(tuned, "decided", decided)
    with lb.tuning("tune"):
        call(16)
    record = base.get("linear", LAYER.problem, device())
    assert record is not None and record.how == "measured"


def test_without_the_model_the_tiles_around_the_plan_are_measured(
    base: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise lb.LowbitvmError("TOOL_MISSING", "no nvdisasm", "install it")

    monkeypatch.setattr(tune, "candidates", missing)
    monkeypatch.setattr(tune, "linear_tiles", lambda layer: [LAYER.plan, NARROW])
    with lb.tuning("tune"):
        call(16)
    record = base.get("linear", LAYER.problem, device())
    assert record is not None and (record.config, record.tried) == (asdict(NARROW), 2)
