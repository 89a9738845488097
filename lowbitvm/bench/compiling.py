"""`lowbitvm bench --compile`: how long kernels take from the Python function to machine code, beside other tools."""

import importlib
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lowbitvm.bench.jobs import progress_bar
from lowbitvm.formats import Format
from lowbitvm.runtime import cache
from lowbitvm.runtime.assemble import assemble, assembler_version
from lowbitvm.runtime.compiled import CompiledKernel, without_lines
from lowbitvm.runtime.linear import compile_linear

TARGET = "sm_80"
TILES = ((16, 64, 64), (16, 128, 64), (32, 128, 64), (64, 128, 64), (128, 128, 64))
FORMATS = ("u4,group=128,zero=int", "u4,group=64", "u4,group=128,zero=float", "u4,group=channel")
PEER_TILES = ("16x128x64", "64x128x64", "128x128x64")  # u4, group 128, integer zero points
FIRST = "import lowbitvm as lb; lb.compile_linear('u4').cubin"  # what a fresh process runs
RUNS = 3


def collect(peers: bool) -> dict[str, Any]:
    """Milliseconds by what was measured: medians over the configurations, and each of those that peers have too."""
    found: dict[str, Any] = {}
    _timed(lambda: _compile(FORMATS[0], TILES[0]))  # the first loads the assembler
    with progress_bar() as progress:
        configurations = [(fmt, tile) for fmt in FORMATS for tile in TILES]
        ours, alone = [], []
        for fmt, tile in progress.track(configurations, description="compile: u4 kernels"):
            milliseconds, kernel = _timed(partial(_compile, fmt, tile))
            text = without_lines(kernel.ptx)
            ours.append(milliseconds)
            alone.append(_timed(partial(assemble, text, TARGET))[0])
        found["lowbitvm"] = _summary(ours)
        found["nvJitLink alone"] = _summary(alone)
        for tool, compile_tile in _peers().items() if peers else ():
            times = {}
            for name in progress.track(PEER_TILES, description=f"compile: {tool}"):
                shape = (*map(int, name.split("x")),)
                own = [_timed(partial(_compile, FORMATS[0], shape))[0] for _ in range(RUNS)]
                theirs = [_timed(partial(compile_tile, name))[0] for _ in range(RUNS)]
                times[name] = {"ms": round(statistics.median(theirs), 1), "ours_ms": round(statistics.median(own), 1)}
            found[tool] = _summary([row["ms"] for row in times.values()]) | {"tiles": times}
    found["disk-cache hit"] = _summary(_hits(kernel))
    return found | _fresh_processes()


def _compile(fmt: str, tile: tuple[int, ...]) -> CompiledKernel:
    """From the DSL function to the cubin, without the disk cache."""
    bm, bn, bk = tile
    kernel = compile_linear(Format.parse(fmt), target=TARGET, bm=bm, bn=bn, bk=bk, cache=False)
    assert kernel.cubin
    return kernel


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return 1e3 * (time.perf_counter() - start), result


def _summary(milliseconds: list[float]) -> dict[str, Any]:
    middle, least = statistics.median(milliseconds), min(milliseconds)
    return {"median_ms": round(middle, 3), "min_ms": round(least, 3), "runs": len(milliseconds)}


def _peers() -> dict[str, Callable[[str], object]]:
    """By tool, what compiles the kernel of a tile to machine code anew; those that are installed."""
    found: dict[str, Callable[[str], object]] = {}
    if importlib.util.find_spec("triton") is not None:
        os.environ["TRITON_ALWAYS_COMPILE"] = "1"
        triton = importlib.import_module("lowbitvm.bench.triton_peer")

        def by_triton(name: str) -> object:
            job = triton.four_bit("shifted", "f16", (*map(int, name.split("x")),), triton.FOUR_BIT[name])
            return triton.compile_job(job, TARGET)

        found["triton"] = by_triton
    if importlib.util.find_spec("tilelang") is not None:
        tilelang = importlib.import_module("lowbitvm.bench.tilelang_peer")
        found["tilelang"] = lambda name: assemble(tilelang.compile_tile(name, TARGET)[1], TARGET)
    return found


def _hits(kernel: CompiledKernel) -> list[float]:
    """Reading a kernel from disk in a process that has others already: its key, its file, its checksum."""
    with tempfile.TemporaryDirectory(prefix="lowbitvm-") as directory:
        text, times = without_lines(kernel.ptx), []
        numbers = {"registers": kernel.registers, "spills": kernel.spills}
        for _ in range(50):
            store = cache.Cache(Path(directory, "kernels"))
            key = cache.key(text, TARGET, assembler_version())
            store.put(key, cache.Entry(text, kernel.cubin, numbers))
            milliseconds, entry = _timed(partial(_read, cache.Cache(Path(directory, "kernels")), text))
            assert entry is not None
            times.append(milliseconds)
        return times


def _read(store: cache.Cache, text: str) -> cache.Entry | None:
    return store.get(cache.key(text, TARGET, assembler_version()))


def _fresh_processes() -> dict[str, Any]:
    """A process from its start to its first kernel and its end: import, tracing, and the assembler or the disk.

    The modules' bytecode is on disk, as pip leaves it, whatever the environment says: it is written once, before.
    Beside the time that passes stands that of the processor, which other work on the machine does not lengthen as much.
    """
    names = ("fresh process", "fresh process, on disk")
    passed: dict[str, list[float]] = {name: [] for name in names}
    spent: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="lowbitvm-") as directory:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        environment["PYTHONPYCACHEPREFIX"] = f"{directory}/bytecode"
        for turn in range(1 + RUNS):
            environment["LOWBITVM_CACHE_DIR"] = f"{directory}/kernels-{turn}"
            for name in names:
                before = os.times()
                run = partial(subprocess.run, [sys.executable, "-c", FIRST], env=environment, check=True)
                milliseconds = _timed(run)[0]
                after = os.times()
                if turn > 0:
                    passed[name].append(milliseconds)
                    spent[name].append(1e3 * sum(after[2:4]) - 1e3 * sum(before[2:4]))
    return {name: _summary(passed[name]) | {"cpu_ms": round(statistics.median(spent[name]), 1)} for name in names}


def show(found: dict[str, Any], console: Console) -> None:
    """The table of what `collect` returns."""
    table = Table(
        "what", "median ms", "least ms", "of the CPU", "runs", title="From the Python function to machine code"
    )
    for name, row in found.items():
        table.add_row(
            name, f"{row['median_ms']:.2f}", f"{row['min_ms']:.2f}", str(row.get("cpu_ms", "")), str(row["runs"])
        )
    console.print(table)
    ours, alone = found["lowbitvm"]["median_ms"], found["nvJitLink alone"]["median_ms"]
    console.print(f"lowbitvm / nvJitLink alone on the same PTX: {ours / alone:.2f}")
    for tool in ("triton", "tilelang"):
        for name, row in found.get(tool, {}).get("tiles", {}).items():
            pair = f"{row['ms']:.0f} ms, lowbitvm {row['ours_ms']:.0f}"
            console.print(f"{tool} {name}: {pair}, {row['ms'] / row['ours_ms']:.1f} times as long")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    console.print(f"{os.cpu_count()} cores, load {load:.1f}")
