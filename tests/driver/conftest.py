from collections.abc import Iterator

import pytest

from lowbitvm.runtime import driver
from lowbitvm.runtime.linear import disk_cache
from tests.driver.standin import Standin, remembering

CACHES = (driver._driver, driver.primary_context, driver.device_target, driver.reads_host_memory, disk_cache)


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
