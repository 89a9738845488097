from collections.abc import Callable, Iterator

import pytest
import torch

import lowbitvm as lb
from lowbitvm.runtime import driver, integer, launch, linear, mixture, quantise, workspace
from tests.driver.standin import Standin, remembering

CACHES = (
    *(driver._driver, driver._launcher, driver.primary_context, driver.device_target),
    *(driver.device_name, launch._sharing_gpu),
    # so that the stand-in sees every kernel's PTX
    *(linear.disk_cache, linear._compiled, integer._compiled, quantise._compiled),
    *(mixture._compiled, mixture._compiled_complex),
)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """Two stand-in GPUs of capability 8.0 that can use memory of the CPU."""
    monkeypatch.setattr(driver, "_functions", {})
    standin = Standin(2, (8, 0), pageable=True)
    remembering(standin, monkeypatch.setattr)
    for cache in CACHES:
        cache.cache_clear()
    yield standin
    for function in driver._functions.values():
        function.alive = False  # kernels that outlive the test keep their launches
    for cache in CACHES:
        cache.cache_clear()
    standin.close()


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """lb.linear on the emulator, without a driver."""

    def run(*args: object, **options: object) -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setenv("LOWBITVM_DEVICE", "emulator:sm_80")
            return lb.linear(*args, **options)

    return run


@pytest.fixture
def streams(gpus: Standin, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch's current stream of each GPU, which a test may change."""
    current = [0, 0]
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: current[index], raising=False)
    monkeypatch.setattr(workspace, "_held", {})
    return current
