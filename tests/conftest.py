import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.core import use_core_under_test

# Shared machines and first calls that assemble a kernel make single examples slow; laws hold regardless of time. CI
# draws the same examples every time, so that what it says depends on the change alone; other runs draw new ones.
settings.register_profile("lowbitvm", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("lowbitvm")


use_core_under_test()


def has_gpu() -> bool:
    try:
        from cuda.bindings import driver

        return driver.cuInit(0)[0] == driver.CUresult.CUDA_SUCCESS
    except (ImportError, RuntimeError):  # cuda-pathfinder raises RuntimeErrors where libcuda is absent
        return False


collect_ignore = ["driver"] if has_gpu() else ["gpu"]  # the stand-in driver would take the real one's place


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the tests, and the processes they start, out of the user's kernel cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWBITVM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
