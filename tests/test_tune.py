"""Tuning linear layers by the model, and the tiles that they then have."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.bench.modelled import SHAPES
from lowbitvm.cli import main
from lowbitvm.formats import Format
from lowbitvm.plan import linear_plan
from lowbitvm.runtime import linear, model, tune, tuned, work
from lowbitvm.runtime.layer import Layer
from lowbitvm.runtime.tuned import Database, Record, gpu_device
from lowbitvm.runtime.work import linear_work
from lowbitvm.targets import L2_LATENCY_NS, LATENCY_NS, OVERHEAD_US
from lowbitvm.tile import Tile, k_ahead

U4 = Format.parse("u4,group=128,zero=int")
A100 = targets.gpu("a100")[1]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The process's database, new and empty, without tables that ship."""
    made = Database(tmp_path / "t")
    monkeypatch.setattr(tuned, "database", lambda: made)
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path)
    tuned._shipped.cache_clear()
    yield made
    tuned._shipped.cache_clear()


# -- counting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmt", "m", "splits", "k"), [("u4,group=128,zero=int", 3, 1, 6656), ("nf4,group=64", 20, 6, 12288)]
)
def test_two_short_k_give_the_counts_of_a_long_one(fmt: str, m: int, splits: int, k: int) -> None:
    layer = Layer(Format.parse(fmt), m, 128, k, "sm_80")
    tile = replace(linear_plan(m, 28672, k, layer.format, targets.get("sm_80")), splits=splits)
    found = linear_work(layer, tile)
    x, y = np.ones((m, k), np.float16), np.zeros((m, 128), np.float16)
    weight = lb.quantize(np.ones((128, k), np.float32), layer.format)
    call, arguments = linear.linear_call(x, weight, None, y, "sm_80", tile=tile)
    with call.shared(y) as shared:
        report = linear.launch(call.kernel, call.grid, arguments | shared, checks="none")
    whole = model.count(report)
    for name in ("blocks", "threads", "shared"):
        assert getattr(found, name) == getattr(whole, name), name
    for name in ("waits", "wavefronts", "sectors", "traffic"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=0.01), name
    assert found.instructions.total() == pytest.approx(whole.instructions.total(), rel=0.01)
    assert found.registers == pytest.approx(whole.registers, abs=2)  # the code of two splits stands for that of all
    assert (found.exchanged, found.round_trips) == ((4 * splits * tile.bm * 128, 2 + splits) if splits > 1 else (0, 0))


@pytest.mark.parametrize(("m", "n", "splits"), [(3, 128, 1), (16, 128, 4), (16, 28672, 1)])
def test_a_layer_takes_the_latency_of_its_memory_as_often_as_a_block_loads_ahead(m: int, n: int, splits: int) -> None:
    layer = Layer(U4, m, n, 8192, "sm_80")
    for tile in (replace(layer.plan, bm=8, bn=128, splits=splits, direct=direct) for direct in (128, 0)):
        found = linear_work(layer, tile)
        resident = found.target.blocks_per_sm(found.threads, found.registers, found.shared)
        waves = max(1, found.blocks / (resident * found.target.gpu.sms))
        latency = 8192 / splits / k_ahead(tile, layer.format) * waves * LATENCY_NS / 1e3
        rates = replace(found.target.gpu, dram_gbs=10**6, l2_mb=0)
        assert model.predict(found, rates).limits["memory"] == pytest.approx(latency)


def test_what_blocks_exchange_is_read_from_l2_where_it_fits_and_takes_round_trips() -> None:
    layer = Layer(U4, 8, 4096, 4096, "sm_80")
    split = linear_work(layer, replace(layer.plan, splits=2))
    alone = replace(split, round_trips=0, exchanged=0)
    memory = [model.predict(found, A100).limits["memory"] for found in (split, alone)]
    assert memory[0] / memory[1] == pytest.approx(1 - split.exchanged / split.traffic)
    assert 0.01 < split.exchanged / split.traffic < 0.1
    trips = model.predict(split, A100).overhead - model.predict(alone, A100).overhead
    assert trips == pytest.approx((2 + 2) * L2_LATENCY_NS / 1e3)
    little = replace(A100, l2_mb=0)
    assert model.predict(split, little).limits["memory"] == model.predict(alone, little).limits["memory"]


@pytest.mark.parametrize(("x", "y", "right"), [(1, 1, True), (1, 1.5, True), (1, 3, False), (1, 0, False)])
def test_a_kernel_that_multiplies_wrongly_is_found_out(x: int, y: float, right: bool) -> None:
    numbers = x * np.random.default_rng(0).integers(-1, 2, (4, 512)).astype(np.float16)
    product = y * numbers.sum(axis=1, keepdims=True, dtype=np.float32) * np.ones((1, 128), np.float32)
    assert work._right(numbers, product.astype(np.float16)) is right
    product[2, 77] += 1
    assert not work._right(numbers, product.astype(np.float16))


def test_kernels_with_wrong_results_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    work._emulated.cache_clear()
    monkeypatch.setattr(work, "_right", lambda x, y: False)
    monkeypatch.setattr(tune, "STEPS", tune.STEPS[:1])
    layer = Layer(Format.parse("u2,group=64"), 1, 128, 512, "sm_80")
    with pytest.raises(lb.LowbitvmError, match=r"TUNING_FAILED: none of \d+ configurations"):
        tune.model_linear(layer, A100)


# -- choosing ----------------------------------------------------------------------------------------------------------


def fake_times(monkeypatch: pytest.MonkeyPatch, times: dict[str, float]) -> None:
    """Tiles take times[part=value], the planned one 10 us; there is no kernel."""
    monkeypatch.setattr(tune, "assemble_all", lambda layer, tiles: None)

    def predicted(layer: Layer, tile: Tile, gpu: targets.Gpu) -> float | None:
        parts = {f"{name}={value}": 0 for name, value in asdict(tile).items()}
        return min((us for part, us in times.items() if part in parts), default=10.0)

    monkeypatch.setattr(tune, "predicted_us", predicted)


def test_the_tile_that_the_model_likes_best_wins_by_over_3_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(U4, 16, 4096, 4096, "sm_80")
    other = 8 if layer.plan.warps == 4 else 4
    fake_times(monkeypatch, {f"warps={other}": 9.0})
    found = tune.model_linear(layer, A100)
    assert (found.time_us, found.how, found.config["warps"]) == (9.0, "modelled", other)
    assert found.tried > 10
    fake_times(monkeypatch, {f"warps={other}": 9.75})
    assert layer.tile(tune.model_linear(layer, A100).config) == layer.plan


def test_a_layer_that_is_as_fast_as_the_memory_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(U4, 16, 57344, 8192, "sm_80")
    fake_times(monkeypatch, {"bm=16": tune.least_us(layer, A100) * 1.02})
    assert tune.model_linear(layer, A100).tried == 1


def test_a_budget_ends_the_search_but_not_before_the_planned_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(U4, 16, 4096, 4096, "sm_80")
    fake_times(monkeypatch, {})
    assert tune.model_linear(layer, A100, budget_s=1e-9).tried == 1


@pytest.mark.parametrize("m", [1, 8, 32, 64, 4096])
@pytest.mark.parametrize("fmt", ["u4,group=128,zero=int", "nvfp4", "nf4,group=64"])
def test_all_tiles_around_the_plan_are_legal_and_the_plan_is_the_first(fmt: str, m: int) -> None:
    layer = Layer(Format.parse(fmt), m, 4096, 4096, "sm_89")
    tiles = tune.linear_tiles(layer)
    assert tiles[0] == layer.plan
    assert len(tiles) == len(set(tiles)) > 3
    assert all(layer.allows(tile) and tile.bm <= max(8, m) for tile in tiles)


# -- what linear layers do with it -------------------------------------------------------------------------------------


def one_call(m: int, target: str = "sm_80", **options: bool) -> Tile:
    """The tile that a layer of 256 x 512 is launched with."""
    weight = lb.quantize(np.ones((256, 512), np.float32), U4)
    x, y = np.ones((m, 512), np.float16), np.zeros((m, 256), np.float16)
    call, _ = linear.linear_call(x, weight, None, y, target, **options)
    warps = call.kernel.code.threads // 32
    plan = linear_plan(m, 256, 512, U4, targets.get(target))
    return replace(plan, warps=warps)


def test_a_record_is_used_for_its_bucket_and_device_alone(base: Database) -> None:
    layer = Layer(U4, 12, 256, 512, "sm_80")
    narrow = replace(layer.plan, bn=64, warps=2, direct=0)
    assert layer.plan.warps != 2
    base.put("linear", layer.problem, gpu_device("a100"), Record(asdict(narrow), 1.0, "modelled"))
    assert [one_call(m).warps for m in (8, 9, 16, 17)] == [one_call(8).warps, 2, 2, one_call(17).warps]
    assert one_call(8).warps != 2 != one_call(17).warps
    assert one_call(12, "sm_86").warps != 2
    assert one_call(12, batch_invariant=True).warps != 2
    with lb.tuning("off"):
        assert one_call(12).warps == layer.plan.warps


@pytest.mark.parametrize(
    "change", [{"bn": 100}, {"bm": 7}, {"bm": True}, {"more": 1}, {"warps": 64}, {"stages": 8, "bm": 128, "bk": 256}]
)
def test_a_record_that_no_kernel_can_have_is_not_used(base: Database, change: dict[str, int]) -> None:
    layer = Layer(U4, 16, 256, 512, "sm_80")
    record = Record({**asdict(layer.plan), "warps": 8, "bn": 128, **change}, 1.0, "modelled")
    base.put("linear", layer.problem, gpu_device("a100"), record)
    assert one_call(16).warps == layer.plan.warps


def test_a_tuned_layer_computes_the_same(base: Database) -> None:
    random = np.random.default_rng(0)
    weight = lb.quantize(random.standard_normal((256, 1024)).astype(np.float32), U4)
    x = random.integers(-2, 3, (16, 1024)).astype(np.float16)
    results = []
    with lb.tuning("off"):
        results.append(np.zeros((16, 256), np.float32))
        linear.run_linear(x, weight, None, results[0], "sm_80")
    layer = Layer(U4, 16, 256, 1024, "sm_80")
    tile = replace(layer.plan, bn=64, warps=4, splits=2, direct=0)
    base.put("linear", layer.problem, gpu_device("a100"), Record(asdict(tile), 1.0, "modelled"))
    results.append(np.zeros((16, 256), np.float32))
    report = linear.run_linear(x, weight, None, results[1], "sm_80")
    assert report is not None and report.launch.grid == (1, 4, 2)
    exact = x.astype(np.float64) @ weight.dequantize().astype(np.float64).T
    for result in results:
        np.testing.assert_allclose(result, exact, rtol=0, atol=2**-10 * np.abs(exact).max())


def test_tuning_without_a_gpu_models_once_and_says_so(base: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def modelled(layer: Layer, gpu: targets.Gpu, budget_s: float | None) -> Record:
        asked.append((layer.m, gpu.name, budget_s))
        return Record(asdict(replace(layer.plan, bn=64, warps=2, direct=0)), 1.0, "modelled")

    monkeypatch.setattr(tune, "model_linear", modelled)
    with lb.tuning("tune", budget_s=5):
        assert [one_call(m).warps for m in (9, 16, 12)] == [2, 2, 2]
        one_call(12, batch_invariant=True)
    assert asked == [(16, A100.name, 5)]
    ((_, problem, device, record),) = base.stored()
    assert (problem["m"], device, record.how) == (16, gpu_device("a100"), "modelled")


def test_lb_linear_follows_the_mode_and_new_records(base: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("LOWBITVM_DEVICE", "emulator:sm_80")
    seen: list[Tile] = []
    call = linear._compiled
    monkeypatch.setattr(
        linear, "_compiled", lambda variant, *rest: (seen.append(variant.tile), call(variant, *rest))[1]
    )
    weight = lb.quantize(torch.ones(256, 512), U4)
    x = torch.ones(16, 512, dtype=torch.float16)
    layer = Layer(U4, 16, 256, 512, "sm_80")
    lb.linear(x, weight)
    tile = replace(layer.plan, bn=64, warps=2, direct=0)
    base.put("linear", layer.problem, gpu_device("a100"), Record(asdict(tile), 1.0, "modelled"))
    lb.linear(x, weight)
    with lb.tuning("off"):
        lb.linear(x, weight)
    assert seen == [layer.plan, tile, layer.plan]


# -- the command, and what ships ---------------------------------------------------------------------------------------


def test_the_command_tunes_shows_and_exports(base: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbitvm import cli_tune

    def modelled(layer: Layer, gpu: targets.Gpu, budget_s: float | None) -> Record:
        tile = layer.plan if layer.m == 1 else replace(layer.plan, bn=64, warps=2, direct=0, splits=1)
        return Record(asdict(tile), 5.0, "modelled", 3, 1.0)

    monkeypatch.setattr(cli_tune, "model_linear", modelled)
    monkeypatch.setattr(cli_tune, "predicted_us", lambda *rest: 10.0)
    monkeypatch.setattr(cli_tune, "database", lambda: base)
    monkeypatch.setattr(cli_tune, "run_all", lambda jobs, *rest: [job() for job in jobs])
    file = tmp_path / "table.json"
    options = ["--shapes", "smollm2", "--weights", "u3,nf4/group=64", "--target", "sm_80", "--rows", "1,12"]
    result = CliRunner().invoke(main, ["tune", *options, "--export", str(file)])
    assert result.exit_code == 0, result.output
    assert len(list(base.stored())) == 16
    table = json.loads(file.read_text())
    assert (table["gpu"], table["target"]) == ("a100", "sm_80")
    assert {entry["problem"]["m"] for entry in table["entries"]} == {16}
    assert {Format.parse(entry["problem"]["weights"]).bits for entry in table["entries"]} == {3, 4}
    assert len(table["entries"]) == 8


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--shapes", "llama9"], "ARGUMENT_INVALID"),
        (["--target", "sm_10"], "TARGET_UNKNOWN"),
        (["--gpu", "voodoo2"], "TARGET_UNKNOWN"),
        (["--weights", "u9"], "FORMAT_INVALID"),
        (["--rows", "1,x"], "numbers above 0"),
        (["--gpu", "a100", "--gpu", "h100", "--export", "x.json"], "the table of one GPU"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(options: list[str], code: str) -> None:
    result = CliRunner().invoke(main, ["tune", *options])
    assert result.exit_code != 0
    assert code in result.output


SHIPPED = sorted((Path(lb.__file__).parent / "data" / "tuned").glob("*.json"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_record_that_ships_is_modelled_and_holds_a_legal_tile(file: Path) -> None:
    table = json.loads(file.read_text())
    target, _ = targets.gpu(file.stem)
    assert (table["gpu"], table["target"], table["version"]) == (file.stem, target.name, lb.__version__)
    shapes = {shape for layers in SHAPES.values() for shape in layers.values()}
    assert table["entries"]
    for entry in table["entries"]:
        layer = Layer.of(entry["problem"], target.name)
        record = Record(**entry["record"])
        assert entry["kind"] == "linear" and record.how == "modelled" and record.time_us > OVERHEAD_US
        assert (layer.n, layer.k) in shapes and layer.problem == entry["problem"]
        assert layer.tile(record.config) is not None


def test_a_table_that_ships_is_found() -> None:
    entry = json.loads(SHIPPED[0].read_text())["entries"][0]
    found = Database(Path("nowhere")).get("linear", entry["problem"], gpu_device(SHIPPED[0].stem))
    assert found == Record(**entry["record"])
