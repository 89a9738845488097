"""`lowbitvm bench --launch`: what a call costs in Python, on a driver whose launches do nothing.

The driver is `libcuda.c` beside this file, compiled with cc. Each tool is measured in a process of its own, which loads
it in place of a real one.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lowbitvm.bench.jobs import progress_bar
from lowbitvm.errors import LowbitvmError

SOURCE = Path(__file__).parent / "libcuda.c"
CALLS, REPEATS = 20, 500  # runs shorter than the time that a process has a core for
MODULES = {"lowbitvm": "lowbitvm.bench.launch_ours", "triton": "lowbitvm.bench.launch_triton"}
TIMEOUT = 600  # seconds for one tool; another process may hold the cores


def build_driver(directory: Path) -> Path:
    """The stand-in libcuda.so.1, compiled into a directory. Raises TOOL_MISSING without a C compiler."""
    path = directory / "libcuda.so.1"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden"]
    command = [os.environ.get("CC", "cc"), *flags, "-Wl,-soname,libcuda.so.1", "-o", str(path), str(SOURCE), "-pthread"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        raise LowbitvmError(
            "TOOL_MISSING", f"{command[0]} cannot compile {SOURCE.name}: {reason}", "install gcc"
        ) from error
    return path


def measure(call: Callable[[], object]) -> dict[str, float]:
    """Microseconds of a call: the median of many short runs and the shortest, which other work disturbs least."""
    call()
    times = [1e6 * seconds / CALLS for seconds in timeit.repeat(call, number=CALLS, repeat=REPEATS)]
    return {"median_us": round(statistics.median(times), 2), "min_us": round(min(times), 2)}


def collect() -> dict[str, Any]:
    """By tool, what each kind of call costs; a text in its place for a tool that cannot be measured."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="lowbitvm-") as directory, progress_bar() as progress:
        library = build_driver(Path(directory))
        for tool in progress.track(MODULES, description="launch: calling"):
            installed = importlib.util.find_spec(tool) is not None
            found[tool] = _calls(tool, library) if installed else "not installed"
    return found


def _calls(tool: str, library: Path) -> dict[str, Any] | str:
    """What the tool's process prints, or how it failed."""
    directory = str(library.parent)
    environment = {**os.environ, "TRITON_LIBCUDA_PATH": directory, "TRITON_CACHE_DIR": f"{directory}/triton"}
    environment |= {"LOWBITVM_DEVICE": "cuda:0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", MODULES[tool], str(library)]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if made.returncode != 0:
        return f"failed: {(made.stderr.strip().splitlines() or ['no output'])[-1]}"
    calls: dict[str, Any] = json.loads(made.stdout)
    return calls


def show(found: dict[str, Any], console: Console) -> None:
    """The table of what `collect` returns."""
    table = Table("tool", "call", "median us", "least us", title="Python's share of a launch")
    for tool, calls in found.items():
        if isinstance(calls, str):
            table.add_row(tool, calls, "", "")
            continue
        for call, times in calls.items():
            table.add_row(tool, call, f"{times['median_us']:.2f}", f"{times['min_us']:.2f}")
    console.print(table)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    console.print(f"{REPEATS} runs of {CALLS} calls; {os.cpu_count()} cores, load {load:.1f}")
