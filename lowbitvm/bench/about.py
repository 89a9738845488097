"""Where and when a benchmark ran: the object "about" of its JSON, without names of hosts, users or folders."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver

PACKAGES = (  # whose versions a result depends on
    "lowbitvm", "numpy", "torch", "triton", "tilelang", "humming-kernels", "gemlite", "tilus",
    "nvidia-cutlass",
    "cuda-bindings", "nvidia-nvjitlink", "nvidia-cuda-nvcc", "nvidia-cuda-nvdisasm",
)  # fmt: skip


def about() -> dict[str, Any]:
    """What a reader needs to know about the machine and the software."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {package: version for package in PACKAGES if (version := _version(package)) is not None},
    }


def _cpu() -> str:
    """The processor's name; Linux alone tells it without another program."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Targets of the GPUs that are here."""
    try:
        return [driver.device_target(index) for index in range(driver.device_count())]
    except LowbitvmError:
        return []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
