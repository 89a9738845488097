"""Kernels that choose their configuration by measuring, on the stand-in driver, whose clock is scripted."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda.bindings import driver as cuda

import lowbitvm as lb
from lowbitvm import autotuning
from lowbitvm.autotuning import Autotuned
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver, search, trials, tuned
from lowbitvm.runtime.tuned import tuning
from tests.driver.memory import Interface, create_stream, to_gpu, weight_to_gpu
from tests.driver.standin import ILLEGAL_ADDRESS, Launched, Standin
from tests.driver.test_launches import captured

RESOURCES, OUT_OF_MEMORY = 701, 2
SPACE = {"block": [128, 256, 512], "warps": [4]}
N = 3000


@lb.kernel(x=("n", lb.f32), y=("n", lb.f32))
def add_scaled(x: lb.Tensor, y: lb.Tensor, *, block: int, alpha: float) -> None:
    start = (lb.program_id(0) * block,)
    lb.store(y, start, lb.load(y, start, (block,)) + alpha * lb.load(x, start, (block,)))


def blocks(c: Mapping[str, Any]) -> tuple[int, ...]:
    return (-(-c["n"] // c["block"]),)


BLOCKS = {-(-N // block): block for block in SPACE["block"]}
COSTS = {128: 900.0, 256: 700.0, 512: 800.0}


@pytest.fixture
def gpu(gpus: Standin, streams: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standin:
    """Two GPUs on which the block of 256 is the fastest, and an empty database."""
    database = tuned.Database(tmp_path / "tuned")
    monkeypatch.setattr(tuned, "database", lambda: database)
    gpus.cost = lambda launched: COSTS[BLOCKS[launched.grid[0]]]
    monkeypatch.setattr(autotuning, "MEASURE_S", 0.02)
    return gpus


def tunable(**options: Any) -> Autotuned:
    return lb.autotune(**{"space": SPACE, **options})(add_scaled)


def numbers() -> dict[str, np.ndarray]:
    x, y = np.random.default_rng(0).standard_normal((2, N)).astype(np.float32)
    return {"x": x, "y": y}


def on_gpu(device: int = 0) -> dict[str, Any]:
    return {name: to_gpu(torch.from_numpy(array), device) for name, array in numbers().items()}


def test_the_configuration_that_is_fastest_on_the_gpu_is_chosen_and_no_argument_changed(gpu: Standin) -> None:
    kernel, given = tunable(), on_gpu(1)
    with tuning("tune"):
        best = kernel.best(blocks, given, alpha=0.5)
    assert best.config == {"block": 256, "warps": 4} and best.how == "measured"
    assert best.time_us == pytest.approx(700, abs=0.1)
    assert {launched.device for launched in gpu.launched} == {1}
    assert all(np.array_equal(given[name].held.numpy(), array) for name, array in numbers().items())
    ran = len(gpu.launched)
    kernel(blocks, given, alpha=0.5)
    expected = numbers()["y"] + np.float32(0.5) * numbers()["x"]
    assert np.array_equal(given["y"].held.numpy(), expected) and len(gpu.launched) == ran + 1 and gpu.problems == []


@pytest.mark.parametrize("device", ["cuda:0", "copy:0"])
def test_arrays_of_the_cpu_are_tuned_on_the_gpu_that_they_are_launched_on(
    gpu: Standin, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("LOWBITVM_DEVICE", device)
    kernel, given = tunable(), numbers()
    with tuning("tune"):
        kernel(blocks, given, alpha=2.0)
    assert kernel.best(blocks, given, alpha=2.0).how == "measured"
    assert np.array_equal(given["y"], numbers()["y"] + 2 * numbers()["x"]) and gpu.problems == []


def test_arrays_of_another_library_are_tuned_in_the_context_that_is_current(gpu: Standin) -> None:
    kernel = tunable()
    assert driver.device_count() == 2
    foreign = cuda.cuCtxCreate(None, 0, 0)[1]
    given = {name: Interface(array, stream=1) for name, array in numbers().items()}
    with tuning("tune"):
        assert kernel.best(blocks, given, alpha=0.5).config["block"] == 256
    assert int(cuda.cuCtxGetCurrent()[1]) == int(foreign) and gpu.problems == []
    cuda.cuCtxDestroy(foreign)


def test_packed_weights_on_a_gpu_are_tuned(gpu: Standin) -> None:
    @lb.kernel(x=("m k", lb.f16), w=lb.packed("n k"), y=("m n", lb.f16))
    def product(x: lb.Tensor, w: lb.Packed, y: lb.Tensor, *, bn: int) -> None:
        j, total = lb.program_id(0), lb.zeros((16, bn))
        for k in lb.range(0, x.shape[1], 64):
            weights = lb.dequant(lb.load(w, (j * bn, k), (bn, 64)), w.scales, w.zeros)
            total += lb.dot(lb.load(x, (0, k), (16, 64)), weights.T)
        lb.store(y, (0, j * bn), total.to(lb.f16))

    generator = torch.Generator().manual_seed(0)
    weight = lb.quantize(torch.randn(256, 128, generator=generator), lb.Format("u4", group=64, zero="int"))
    x, y = torch.randn(16, 128, generator=generator).half(), torch.zeros(16, 256).half()
    given = {"x": to_gpu(x), "w": weight_to_gpu(weight), "y": to_gpu(y)}
    kernel = lb.autotune(space={"bn": [64, 128]})(product)
    gpu.cost = lambda launched: {4: 1000.0, 2: 999.0}[launched.grid[0]]
    with tuning("tune"):
        best = kernel.best(lambda c: (256 // c["bn"],), given)
    assert best.config == {"bn": 128} and kernel.left_out == [] and gpu.problems == []
    assert not given["y"].held.any()


def test_a_candidate_that_is_fastest_and_wrong_never_wins(gpu: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    real = autotuning.compile_program

    def compiled(program: Any, target: str, warps: int, started: float, cache: Any) -> lb.CompiledKernel:
        made = real(program, target, warps, started, cache)
        if not any(op.shape == (256,) for op in program.body):
            return made
        return replace(made, code=add_scaled.compile(target, block=256, warps=warps, alpha=0.75).code)

    monkeypatch.setattr(autotuning, "compile_program", compiled)
    kernel = tunable()
    with tuning("tune"):
        assert kernel.best(blocks, on_gpu(), alpha=0.5).config["block"] == 512
    ((config, reason),) = kernel.left_out
    assert config["block"] == 256 and "y is wrong" in reason


def test_a_mistake_at_the_end_of_a_large_grid_is_found(gpu: Standin) -> None:
    def damage(launched: Launched, memory: dict[str, np.ndarray]) -> None:
        if BLOCKS[launched.grid[0]] == 256:
            memory["y"].view(np.float32)[N - 1] += 1

    gpu.damage = damage
    kernel = tunable()
    with tuning("tune"):
        assert kernel.best(blocks, on_gpu(), alpha=0.5).config["block"] == 512
    assert [config["block"] for config, _ in kernel.left_out] == [256]


def test_a_reference_of_ones_own_sees_a_mistake_anywhere(gpu: Standin) -> None:
    def damage(launched: Launched, memory: dict[str, np.ndarray]) -> None:
        if BLOCKS[launched.grid[0]] == 256:
            memory["y"].view(np.float32)[N // 2] += 1

    gpu.damage = damage
    kernel = tunable(reference=lambda x, y, alpha: torch.from_numpy(y + np.float32(alpha) * x))
    with tuning("tune"):
        assert kernel.best(blocks, on_gpu(), alpha=0.5).config["block"] == 512
    ((_, reason),) = kernel.left_out
    assert f"({N // 2},)" in reason and f"1 of {N} so" in reason


def test_a_candidate_that_cannot_be_launched_is_left_out_and_the_others_are_measured(gpu: Standin) -> None:
    gpu.fail("cuLaunchKernel", RESOURCES)  # the first candidate's first launch
    kernel = tunable()
    with tuning("tune"):
        assert kernel.best(blocks, on_gpu(), alpha=0.5).config["block"] == 256
    ((config, reason),) = kernel.left_out
    assert config["block"] == 128 and "LAUNCH_FAILED" in reason


def test_a_candidate_that_loses_the_context_ends_the_search_and_nothing_is_stored(gpu: Standin) -> None:
    gpu.fail("cuLaunchKernel", ILLEGAL_ADDRESS)
    kernel = tunable()
    with tuning("tune"), pytest.raises(LowbitvmError, match="CONTEXT_LOST"):
        kernel.best(blocks, on_gpu(), alpha=0.5)
    assert list(tuned.database().stored()) == []
    cuda.cuDevicePrimaryCtxReset(0)
    with tuning("tune"):
        assert kernel.best(blocks, on_gpu(), alpha=0.5).how == "measured"


def test_no_memory_for_the_copies_is_an_error_and_what_was_allocated_is_given_back(
    gpu: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = on_gpu()
    gpu.fail("cuMemAlloc", OUT_OF_MEMORY)
    with tuning("tune"), pytest.raises(LowbitvmError, match="free GPU memory"):
        tunable().best(blocks, given, alpha=0.5)
    allocated, freed = [], []
    allocate, free = driver.allocate, driver.free
    monkeypatch.setattr(trials.driver, "allocate", lambda *a: allocated.append(allocate(*a)) or allocated[-1])
    monkeypatch.setattr(trials.driver, "free", lambda address, context: (freed.append(address), free(address, context)))
    with tuning("tune"):
        tunable().best(blocks, given, alpha=0.5)
    assert len(allocated) == 1 and freed == allocated


def test_what_is_captured_is_never_tuned_and_later_calls_are(gpu: Standin, streams: list[int]) -> None:
    kernel, given = tunable(), on_gpu()
    kernel.best(blocks, given, alpha=0.5).kernel.cubin  # noqa: B018  # assembled before
    stream = streams[0] = create_stream(0)
    with tuning("tune"):
        graph = captured(stream, lambda: kernel(blocks, given, alpha=0.5))
        assert gpu.launched == [] and list(tuned.database().stored()) == []
        assert cuda.cuGraphLaunch(graph, stream)[0] == 0
        assert [BLOCKS[launched.grid[0]] for launched in gpu.launched] == [128]  # the first of the space
        assert kernel.best(blocks, given, alpha=0.5).how == "measured"


def test_what_was_measured_holds_for_its_gpu_and_what_was_modelled_gives_way_to_it(
    gpu: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials.Trial, "modelled", lambda *_: 1.0)
    kernel = tunable()
    with tuning("tune"):
        assert kernel.best(blocks, numbers(), alpha=0.5).how == "modelled"
        assert kernel.best(blocks, on_gpu(), alpha=0.5).how == "measured"
        assert kernel.best(blocks, numbers(), alpha=0.5).how == "modelled"
    assert tunable(space={"block": [128, 256]}).best(blocks, on_gpu(), alpha=0.5).how == "first"
    assert tunable().best(blocks, on_gpu(), alpha=0.5).how == "measured"


def test_of_many_candidates_those_are_measured_that_the_model_likes_best(
    gpu: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotuning, "MEASURED", 2)
    monkeypatch.setattr(search, "MEASURED", 2)
    monkeypatch.setattr(trials.Trial, "modelled", lambda self, kernel, grid, rates: float(BLOCKS[grid[0]] != 512))
    with tuning("tune"):
        assert tunable(space={"block": [128, 256, 512]}).best(blocks, on_gpu(), alpha=0.5).config == {"block": 512}
    assert {BLOCKS[launched.grid[0]] for launched in gpu.launched} == {128, 512}  # the first one, too


def test_a_budget_ends_the_search(gpu: Standin) -> None:
    with tuning("tune", budget_s=1e-3):
        best = tunable().best(blocks, on_gpu(), alpha=0.5)
    assert best.config["block"] == 128 and best.how == "measured"
    ((*_, record),) = tuned.database().stored()
    assert record.tried == 1


def test_arguments_are_read_after_what_is_on_their_streams(gpu: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    real = driver.synchronize
    monkeypatch.setattr(trials.driver, "synchronize", lambda s, c: (waited.append(s), real(s, c)))
    first, second = create_stream(0), create_stream(0)
    given = {"x": Interface(numbers()["x"], stream=first), "y": Interface(numbers()["y"], stream=second)}
    with tuning("tune"):
        tunable().best(blocks, given, alpha=0.5)
    assert {first, second} <= set(waited)
