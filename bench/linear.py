"""What the linear kernel costs, as far as it can be measured without a GPU: python bench/linear.py [--target sm_80]

Per variant: median milliseconds from Python to PTX and from PTX to cubin, and their ratio; registers and spills; SASS
instructions of the main loop by kind, and multiply-adds per instruction and warp. Exits with 1 if a kernel spills or
takes longer from Python to PTX than nvJitLink takes on the same PTX.
"""

import argparse
import statistics
import sys
from collections import Counter

from rich.console import Console
from rich.table import Table

import lowbitvm as lb
from lowbitvm.runtime.loops import main_nest, read_sass
from lowbitvm.targets import TARGETS

RUNS = 5
VARIANTS: list[dict[str, object]] = [
    {"zero": None, "bm": 16},
    {"zero": "int", "bm": 8},
    {"zero": "int", "bm": 16},
    {"zero": "int", "bm": 16, "act": "bf16"},
    {"zero": "int", "bm": 16, "bk": 128},
    {"zero": "offset", "bm": 16, "group": 32},
    {"zero": "int", "bm": 64},
    {"zero": "int", "bm": 64, "act": "bf16", "group": 32},
]


def measure(variant: dict[str, object], target: str) -> tuple[list[str], bool]:
    """The table's row for one variant, and whether it is as it should be."""
    kernels = [lb.compile_linear("u4", target=target, cache=False, **variant) for _ in range(RUNS)]  # type: ignore[arg-type]
    assemble_ms = statistics.median(kernel.assemble_ms for kernel in kernels)
    trace_ms = statistics.median(kernel.trace_ms for kernel in kernels)
    kernel = kernels[0]
    loop = Counter(instruction.name.partition(".")[0] for instruction in main_nest(read_sass(kernel.sass())).levels[0])
    codes = next(op for op in kernel.program.body if op.kind == "range").body[1]
    work = codes.shape[0] * codes.shape[1] * int(str(variant["bm"])) * 32 // kernel.code.threads
    kinds = ", ".join(f"{name} {count}" for name, count in loop.most_common(6))
    name = " ".join(f"{key}={value}" for key, value in variant.items())
    row = [name, f"{trace_ms:.1f}", f"{assemble_ms:.1f}", f"{trace_ms / assemble_ms:.2f}"]
    row += [str(kernel.registers), str(kernel.spills), str(loop.total()), f"{work / loop.total():.0f}", kinds]
    return row, kernel.spills == 0 and trace_ms <= assemble_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=TARGETS, action="append")
    healthy = True
    for target in parser.parse_args().target or ["sm_80", "sm_90a", "sm_120f"]:
        table = Table(title=f"u4 linear, {target}")
        columns = ("variant", "PTX ms", "cubin ms", "ratio", "registers", "spills", "loop", "MAC/instr", "mix")
        for column in columns:
            table.add_column(column, justify="left" if column in ("variant", "mix") else "right")
        for variant in VARIANTS:
            row, good = measure(variant, target)
            healthy = healthy and good
            table.add_row(*row)
        Console(width=160).print(table)
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
