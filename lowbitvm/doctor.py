"""What is installed, which GPUs there are, and which executors work."""

import importlib.metadata
from collections.abc import Callable

import numpy as np

from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.interpret import interpret
from lowbitvm.quantize import quantize
from lowbitvm.runtime import assemble, driver, emulator
from lowbitvm.runtime.linear import compile_linear

PACKAGES = ("numpy", "torch", "cuda-bindings", "nvidia-nvjitlink", "nvidia-cuda-nvdisasm", "gguf")


def states() -> dict[str, str]:
    """By part, a version, "works", or why it does not."""
    parts = {package: version(package) for package in PACKAGES}
    checks = {
        "executor: interpreter": _interpreter,
        "executor: emulator": _emulator,
        "assembler": assemble.assembler_version,
        "executor: GPU": _gpus,
    }
    return parts | {part: _state(check) for part, check in checks.items()}


def version(package: str) -> str:
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _state(check: Callable[[], str]) -> str:
    try:
        return check()
    except LowbitvmError as error:
        return str(error)


def _interpreter() -> str:
    weight = quantize(np.ones((16, 64), np.float32), Format("i4", "channel"))
    x, y = np.ones((1, 64), np.float16), np.zeros((1, 16), np.float16)
    program = compile_linear(weight.format, cache=False).program
    interpret(program, (1, 1), {"x": x, "w": weight, "y": y})
    return "works" if (y == 64).all() else "gives wrong results"


def _emulator() -> str:
    emulator.load(".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }").launch(
        "nothing", grid=(1, 1, 1), block=(32, 1, 1), args=[]
    )
    return "works"


def _gpus() -> str:
    return ", ".join(f"GPU {index}: {driver.device_target(index)}" for index in range(driver.device_count()))


def gpu_target(index: int, instead: str) -> str:
    """The target of a GPU. Raises DEVICE_UNAVAILABLE, which says what to do without one, and TARGET_UNKNOWN."""
    try:
        return driver.device_target(index)
    except LowbitvmError as error:
        if error.code != "DEVICE_UNAVAILABLE":
            raise
        raise LowbitvmError(error.code, error.problem, instead) from error
