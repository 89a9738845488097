"""Linear layers that are tuned by measuring, on the stand-in driver, whose clock is scripted."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import pytest
import torch
from click.testing import CliRunner

import lowbitvm as lb
from lowbitvm import tune_gpus
from lowbitvm.bench.modelled import SHAPES
from lowbitvm.cli import main
from lowbitvm.runtime import driver, timing, tune, tuned
from lowbitvm.runtime.layer import Layer
from lowbitvm.runtime.linear import LinearCall
from lowbitvm.runtime.tuned import Database, Device, Record
from lowbitvm.tile import Tile
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


def test_tune_measures_the_layers_of_a_model_on_a_gpu_of_the_machine(
    base: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", {"qkv": (LAYER.n, LAYER.k)})
    monkeypatch.setattr(tune_gpus, "database", lambda: base)
    command = ["tune", "--shapes", "tiny", "--weights", "i4/group=64", "--rows", "16", "--budget", "30"]
    found = CliRunner().invoke(main, [*command, "--gpus", "0", "--target", "sm_80"])
    assert found.exit_code == 0, found.output
    assert "measured" in found.output and "splits 2" in found.output
    record = base.get("linear", LAYER.problem, device())
    assert record is not None and (record.how, record.config) == ("measured", asdict(SPLIT))


def test_gpus_are_named_by_their_numbers_and_their_target(gpus: Standin) -> None:
    assert tune_gpus.numbers("all", ()) == [0, 1]
    assert tune_gpus.numbers("1", ("sm_80", "sm_90a")) == [1]
    with pytest.raises(lb.LowbitvmError, match=r"ARGUMENT_INVALID: GPUs '0,2' of 2"):
        tune_gpus.numbers("0,2", ())
    with pytest.raises(lb.LowbitvmError, match="DEVICE_UNAVAILABLE: no GPU is a sm_90a; there are sm_80, sm_80"):
        tune_gpus.numbers("all", ("sm_90a",))


def test_gpus_of_one_kind_share_out_the_layers(gpus: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, list[int]]] = []

    def noted(index: int, layers: Sequence[Layer], budget_s: float | None) -> list[tune_gpus.Measured]:
        asked.append((index, [layer.m for layer in layers]))
        return []

    monkeypatch.setattr(tune_gpus, "measure_layers", noted)
    monkeypatch.setattr(tune_gpus, "run_all", lambda jobs, text: [job() for job in jobs])
    layers = [replace(LAYER, m=m) for m in (1, 2, 4)]
    assert tune_gpus.measure([0, 1], layers, None) == []  # of different names
    assert asked == [(0, [1, 2, 4]), (1, [1, 2, 4])]
    asked.clear()
    monkeypatch.setattr(driver, "device_name", lambda index: "Alike")
    assert tune_gpus.measure([0, 1], layers, None) == []
    assert asked == [(0, [1, 4]), (1, [2])]
