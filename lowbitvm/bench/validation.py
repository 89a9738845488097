"""The performance model against published measurements: Humming's W4A16 kernels at M = 1, compiled and counted here.

The times are those that humming-kernels publishes for N = K = 8192, group 128, in microseconds; what its harness adds
is one constant for each GPU, fitted to the rows but the one that is predicted.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cuda.pathfinder import find_nvidia_binary_utility, find_nvidia_header_directory
from rich.console import Console
from rich.table import Table

from lowbitvm import targets
from lowbitvm.bench.humming_source import GROUP, SIZE
from lowbitvm.bench.jobs import run_all
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import emulator, model
from lowbitvm.runtime.model import Work

# GPU -> us of u1, u2, ..., u8; the A100's are an A800's, which has slower links. Source: Humming's benchmark table.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "a100": (29.0, 29.8, 36.4, 43.2, 50.2, 54.5, 59.7, 63.8),
    "h100": (21.4, 22.4, 24.0, 27.1, 31.4, 35.1, 38.6, 41.2),
    "h200": (19.4, 19.4, 22.2, 22.4, 25.6, 26.9, 29.8, 31.2),
    "rtx4090": (26.3, 31.9, 43.5, 55.1, 67.3, 79.3, 90.9, 102.5),
}
WIDTHS = range(1, 9)
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "--expt-extended-lambda", "-ptx", "-w")


@dataclass(frozen=True)
class Point:
    """A measurement and the model's time for the kernel; `error` with a constant fitted to the GPU's other rows."""

    gpu: str
    weights: str
    published_us: float
    kernel_us: float
    bound: str
    constant_us: float
    error: float


def humming_work(gpu: str, bits: int) -> Work:
    """What Humming's kernel for a GPU does, run in the emulator. Raises TOOL_MISSING without it or nvcc."""
    command = [sys.executable, "-m", "lowbitvm.bench.humming_source", gpu, str(bits)]
    made = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if made.returncode != 0:
        reason = made.stderr.strip().splitlines()[-1]
        raise LowbitvmError("TOOL_MISSING", f"humming-kernels: {reason}", "pip install 'lowbitvm[bench]'")
    found: dict[str, Any] = json.loads(made.stdout)
    target = targets.gpu(gpu)[0].name
    ptx = _compile(found["source"], target)
    entry = re.search(r"\.entry (\w+)\(", ptx)
    assert entry is not None
    words = np.random.default_rng(bits).integers(0, 2**32, SIZE * SIZE * bits // 32, np.uint32)
    x, y = np.ones((1, SIZE), np.float16), np.zeros((1, SIZE), np.float16)
    scales, locks = np.full((SIZE // GROUP, SIZE), 0.01, np.float16), np.zeros(1 << 16, np.int32)
    pointers = [emulator.struct(bytes(8), {0: array}) for array in (x, words, y, scales)]
    none = bytes(8)
    tensors = [*pointers[:3], none, none, pointers[3], none, none, none]
    report = emulator.load(ptx).launch(
        entry[1], (found["blocks"],), (found["threads"],), [*tensors, 0, 0, 0, 0, 0, locks, 1, 1, 0],
        shared=found["shared"], arch=target, checks="none",
    )  # fmt: skip
    return model.count(report)


def _compile(source: str, target: str) -> str:
    """PTX of CUDA C++ by nvcc."""
    nvcc, spec = find_nvidia_binary_utility("nvcc"), importlib.util.find_spec("humming")
    headers = find_nvidia_header_directory("cudart")
    if nvcc is None or spec is None or headers is None:
        raise LowbitvmError("TOOL_MISSING", "nvcc or its headers are not installed", "pip install 'lowbitvm[bench]'")
    include = Path(str((spec.submodule_search_locations or [""])[0]), "include")
    with tempfile.TemporaryDirectory(prefix="lowbitvm-") as folder:
        path, ptx = Path(folder, "kernel.cu"), Path(folder, "kernel.ptx")
        path.write_text(source)
        arch = target.removeprefix("sm_")
        where = (f"-I{include}", f"-I{headers}", f"-gencode=arch=compute_{arch},code=compute_{arch}")
        subprocess.run([nvcc, *FLAGS, *where, str(path), "-o", str(ptx)], check=True, capture_output=True)
        return ptx.read_text()


def constant(published: Sequence[float], modelled: Sequence[float]) -> float:
    """The number that added to the model's times makes the sum of squared relative errors least."""
    weights = 1 / np.square(published)
    return float((weights * np.subtract(published, modelled)).sum() / weights.sum())


def points(works: dict[tuple[str, int], Work]) -> list[Point]:
    """The rows of all GPUs, each predicted with the constant of the others of its GPU. `works`: by GPU and width."""
    found = []
    for gpu, published in PUBLISHED.items():
        predictions = [model.predict(works[gpu, bits], targets.gpu(gpu)[1]) for bits in WIDTHS]
        times = [prediction.time for prediction in predictions]
        for i, (bits, prediction) in enumerate(zip(WIDTHS, predictions, strict=True)):
            added = constant(np.delete(published, i).tolist(), np.delete(times, i).tolist())
            error = (times[i] + added) / published[i] - 1
            found.append(Point(gpu, f"u{bits}", published[i], times[i], prediction.bound, added, error))
    return found


def collect() -> list[Point]:
    """Compiles, emulates and predicts all of them; some minutes. The H200 runs the H100's kernels."""
    wanted = [(gpu, bits) for gpu in PUBLISHED if gpu != "h200" for bits in WIDTHS]
    jobs = [partial(humming_work, *pair) for pair in wanted]
    works = dict(zip(wanted, run_all(jobs, "validate: emulating"), strict=True))
    return points(works | {("h200", bits): works["h100", bits] for bits in WIDTHS})


def as_json(found: Sequence[Point]) -> dict[str, Any]:
    """What --json writes."""
    return {"validation": [asdict(point) for point in found]}


def show(found: Sequence[Point], console: Console) -> None:
    """Prints the rows, and how many are near."""
    table = Table(*COLUMNS, title="Humming, M = 1, N = K = 8192, group 128: published and modelled")
    for p in found:
        numbers = (f"{p.published_us:.1f}", f"{p.kernel_us:.1f}", p.bound, f"{p.constant_us:.1f}", f"{p.error:+.0%}")
        table.add_row(p.gpu, p.weights, *numbers)
    console.print(table)
    near = sum(abs(point.error) <= 0.2 for point in found)
    worst = max(abs(point.error) for point in found)
    console.print(f"{near} of {len(found)} within 20 %, the worst {worst:.0%} off")


COLUMNS = ("GPU", "weights", "published us", "kernel us", "bound by", "harness us", "error")
