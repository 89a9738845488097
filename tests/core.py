"""Which build of the emulator's C core the tests run on."""

import importlib.machinery
import importlib.util
import os
import sys

MODULE = "lowbitvm.runtime.emulator._core"


def use_core_under_test() -> None:
    """Put the core that LOWBITVM_TEST_CORE names in the place of the installed one; to be called before its import."""
    path = os.environ.get("LOWBITVM_TEST_CORE")
    if path and MODULE not in sys.modules:
        loader = importlib.machinery.ExtensionFileLoader(MODULE, path)
        spec = importlib.util.spec_from_file_location(MODULE, path, loader=loader)
        assert spec is not None
        sys.modules[MODULE] = importlib.util.module_from_spec(spec)
        loader.exec_module(sys.modules[MODULE])
