"""Clusters and dependent launches on the stand-in driver."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

import lowbitvm as lb
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver
from tests.driver.conftest import CACHES
from tests.driver.kernels import FMT, doubled, layer
from tests.driver.standin import Standin, remembering

NUMBERS = np.arange(512, dtype=np.float32)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """A stand-in GPU of capability 9.0 that can use memory of the CPU."""
    monkeypatch.setattr(driver, "_functions", {})
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
    standin = Standin(1, (9, 0), pageable=True)
    remembering(standin, monkeypatch.setattr)
    for cache in CACHES:
        cache.cache_clear()
    yield standin
    for function in driver._functions.values():
        function.alive = False
    for cache in CACHES:
        cache.cache_clear()
    standin.close()


def doubling(target: str = "sm_90a", dependent: bool = False) -> lb.CompiledKernel:
    return doubled.compile(target, x=lb.f32, y=lb.f32, bn=128, dependent=dependent)


@pytest.mark.parametrize("cluster", [(2, 1, 1), [4], (1, 1)])
def test_a_cluster_arrives_at_the_driver(hopper: Standin, cluster: Sequence[int]) -> None:
    y, kernel = np.zeros(512, np.float32), doubling()
    for _ in range(2):
        lb.launch(kernel, (4,), {"x": NUMBERS, "y": y}, cluster=cluster)
        assert np.array_equal(y, 2 * NUMBERS) and hopper.launched[-1].cluster == (*cluster, 1, 1)[:3]
    lb.launch(kernel, (4,), {"x": NUMBERS, "y": y})
    assert hopper.launched[-1].cluster is None and not hopper.launched[-1].dependent and hopper.problems == []


@pytest.mark.parametrize(
    ("target", "cluster", "words"),
    [
        ("sm_80", (2, 1, 1), "sm_90 and later"),
        ("sm_90a", (3, 1, 1), r"grid of \(4, 1, 1\) in clusters of \(3, 1, 1\)"),
        ("sm_90a", (1, 2, 1), "divisor"),
        ("sm_90a", (16, 1, 1), "16 blocks"),
        ("sm_90a", (0, 1, 1), "above 0"),
        ("sm_90a", (1, 1, 1, 1), "one to three"),
    ],
)
def test_a_cluster_that_does_not_fit_is_refused(target: str, cluster: Sequence[int], words: str) -> None:
    y = np.zeros(512, np.float32)
    with pytest.raises(LowbitvmError, match=words) as error:  # on the emulator, too
        lb.launch(doubling(target), (4,), {"x": NUMBERS, "y": y}, cluster=cluster)
    assert error.value.code == "CLUSTER_INVALID" and not y.any()


@pytest.mark.parametrize(("result", "words"), [(912, "smaller cluster"), (701, "smaller tile"), (719, "CONTEXT_LOST")])
def test_a_cluster_that_the_driver_refuses_is_named(hopper: Standin, result: int, words: str) -> None:
    hopper.fail("cuLaunchKernelEx", result)
    with pytest.raises(
        LowbitvmError, match=rf"clusters of \(2, 1, 1\).*cuLaunchKernelEx gave.*{words}|{words}"
    ) as error:
        lb.launch(doubling(), (4,), {"x": NUMBERS, "y": NUMBERS.copy()}, cluster=(2,))
    assert error.value.code == ("CONTEXT_LOST" if result == 719 else "LAUNCH_FAILED")


def test_a_dependent_kernel_is_launched_as_one(hopper: Standin) -> None:
    y = np.zeros(512, np.float32)
    lb.launch(doubling(dependent=True), (4,), {"x": NUMBERS, "y": y}, cluster=(2,))
    assert np.array_equal(y, 2 * NUMBERS)
    assert hopper.launched[-1].dependent and hopper.launched[-1].cluster == (2, 1, 1)


def test_a_dependent_layer_equals_the_plain_one(hopper: Standin) -> None:
    x, weight, _ = layer(3)
    results = []
    for dependent in (False, True):
        kernel = lb.compile_linear(FMT, target="sm_90a", bm=16, bn=64, bk=64, dependent=dependent)
        results.append(torch.zeros(3, 72).half())
        lb.launch(kernel, (1, 2), {"x": x, "w": weight, "y": results[-1]})
        assert hopper.launched[-1].dependent == dependent
    assert torch.equal(*results) and results[0].any() and hopper.problems == []


def test_prebuilt_kernels_are_dependent_where_that_is_asked_for(hopper: Standin) -> None:
    x, weight, bias = layer(3)
    integers = lb.quantize(torch.randn(72, 256), lb.Format("i4", "channel", act="i8"))
    plain = lb.linear(x, weight, bias), lb.linear(x, integers)
    for _ in range(2):  # the second time by the launches that were recorded
        with lb.dependent_launches():
            asked = lb.linear(x, weight, bias), lb.linear(x, integers)
        again = lb.linear(x, weight, bias), lb.linear(x, integers)
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(plain, asked, again, strict=True))
        assert [one.dependent for one in hopper.launched[-6:]] == [True] * 3 + [False] * 3
    assert [one.entry for one in hopper.launched[-6:]] == ["linear", "quantise", "matmul"] * 2
    assert hopper.problems == []


def test_a_driver_without_the_calls_is_named(hopper: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = driver._driver()
    monkeypatch.setattr(cuda, "cuGetProcAddress", lambda name, *_: (cuda.CUresult(0), 0, 1))
    with pytest.raises(LowbitvmError, match="no cuLaunchKernel, cuLaunchKernelEx") as error:
        lb.launch(doubling(), (4,), {"x": NUMBERS, "y": NUMBERS.copy()})
    assert error.value.code == "DEVICE_UNAVAILABLE"


def test_a_size_beyond_32_bits_is_an_overflow_and_not_a_wrong_launch(hopper: Standin) -> None:
    kernel = doubling()
    function = driver.load(kernel.cubin, kernel.code.entry, 0)
    launch = driver.Launch(function, (1, 1, 1), (128, 1, 1), "QQi")
    with pytest.raises(OverflowError):
        launch([0, 0, 1 << 31], 0)
    with pytest.raises(OverflowError):
        launch([-1, 0, 1], 0)
    with pytest.raises(TypeError):
        launch([0, 0], 0)
    assert hopper.launched == []
