"""The PTX emulator: runs PTX text on the CPU, bit for bit, and reports races, bad accesses and traffic.

    module = emulator.load(ptx_text)
    report = module.launch("entry", grid=(4, 1, 1), block=(128, 1, 1), args=[x, y, 4096])

It reads PTX and knows nothing of the compiler that wrote it.
"""

from lowbitvm.runtime.emulator.bind import Output, Pointer, Struct, output, pointer, sparse, struct
from lowbitvm.runtime.emulator.launch import Module, load
from lowbitvm.runtime.emulator.report import (
    ArrayKey,
    ArrayTraffic,
    Counters,
    EmulatorError,
    Finding,
    Launch,
    LineCounters,
    MatrixCount,
    Party,
    Report,
    Rounding,
)
from lowbitvm.runtime.emulator.syntax import PtxError

__all__ = [
    "ArrayKey",
    "ArrayTraffic",
    "Counters",
    "EmulatorError",
    "Finding",
    "Launch",
    "LineCounters",
    "MatrixCount",
    "Module",
    "Output",
    "Party",
    "Pointer",
    "PtxError",
    "Report",
    "Rounding",
    "Struct",
    "load",
    "output",
    "pointer",
    "sparse",
    "struct",
]
