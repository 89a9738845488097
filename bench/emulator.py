"""How fast the PTX emulator is on this machine: python bench/emulator.py [--runs 5]

Medians of wall times: reading 10,000 lines of PTX, a 16 x 4096 x 4096 u4 matrix multiplication on all cores, and warp
instructions a second of one core's time (not of wall time: other load on the machine does not count) in that kernel's
main loop, each without and with all checks.
"""

import argparse
import os
import re
import statistics
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

import lowbitvm as lb
from lowbitvm.runtime import emulator
from lowbitvm.runtime.emulator.parse import parse
from lowbitvm.runtime.linear import run_linear

LINES = 10_000
FORMAT = lb.Format("u4", group=128, zero="int")


def long_module() -> str:
    """A module of at least LINES lines: the u4 kernel again and again under other names."""
    text = lb.compile_linear(FORMAT, target="sm_80").ptx
    start = text.index(".visible .entry")
    head, kernel = text[:start], text[start:]
    copies = -(-LINES // kernel.count("\n"))
    entry = re.compile(r"(\.entry \w+)")
    return head + "".join(entry.sub(rf"\g<1>_{n}", kernel, count=1) for n in range(copies))


def seconds(run: Callable[[], object], runs: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median of `runs` times, after one that does not count."""
    times = []
    for _ in range(runs + 1):
        start = clock()
        run()
        times.append(clock() - start)
    return statistics.median(times[1:])


def matmul(n: int, k: int, one_block: bool = False, **options: object) -> Callable[[], emulator.Report]:
    """16 x n x k on the emulated A100: as `lb.linear` plans it, or by one block that takes the whole of k."""
    rng = np.random.default_rng(0)
    weight = lb.quantize(rng.standard_normal((n, k)).astype(np.float32), FORMAT)
    x, y = rng.standard_normal((16, k)).astype(np.float16), np.zeros((16, n), np.float16)

    kernel = lb.compile_linear(FORMAT, target="sm_80")

    def run() -> emulator.Report:
        if one_block:
            report = lb.launch(kernel, (1, 1), {"x": x, "w": weight, "y": y}, **options)
        else:
            report = run_linear(x, weight, None, y, "sm_80", **options)
        assert report is not None
        return report

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast the PTX emulator is on this machine.")
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    text = long_module()
    table = Table(title=f"{os.cpu_count()} cores, medians of {runs} runs")
    table.add_column("what")
    table.add_column("result", justify="right")
    count = text.count("\n")
    table.add_row(f"parse {count} lines of PTX", f"{seconds(lambda: parse(text), runs):.3f} s")
    table.add_row(f"load {count} lines of PTX", f"{seconds(lambda: emulator.load(text), runs):.3f} s")
    for checks in ("none", "all"):
        took = seconds(matmul(4096, 4096, checks=checks), runs)
        table.add_row(f"u4, 16 x 4096 x 4096, checks {checks}", f"{took:.3f} s")
    for checks in ("none", "all"):
        loop = matmul(128, 131072, one_block=True, checks=checks, workers=1)
        count = loop().counters.instructions
        rate = count / seconds(loop, runs, clock=time.thread_time)
        table.add_row(f"main loop on one core, checks {checks}", f"{rate / 1e6:.1f} M warp instructions/s")
    Console().print(table)


if __name__ == "__main__":
    main()
