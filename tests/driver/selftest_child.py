"""The self-test's own process on a stand-in GPU: `python -m tests.driver.selftest_child FAULTS JOB`.

FAULTS is JSON: entries of kernels by what their launch does, "wrong" (a bit of the result), "lost" (the context), or
"dead" (the process).
"""

import json
import os
import sys
from typing import Any

import numpy as np

from lowbitvm.selftest.__main__ import main
from tests.driver.standin import LAUNCH_FAILED, Launched, Standin, remembering

RESULTS = {"softmax": "out", "matmul": "y"}


def faulty(standin: Standin, faults: dict[str, str]) -> None:
    """Makes the stand-in do what FAULTS says."""

    def damage(launched: Launched, memory: dict[str, np.ndarray[Any, Any]]) -> None:
        fault = faults.get(launched.entry)
        if fault == "wrong":
            memory[RESULTS[launched.entry]][3] ^= 0x40
        if fault == "lost":
            standin.fail("cuStreamSynchronize", LAUNCH_FAILED)
        if fault == "dead":
            os._exit(9)

    standin.damage = damage


if __name__ == "__main__":
    gpus = Standin(1, (8, 0))
    gpus.checks = "none"  # the emulator's own run has them
    remembering(gpus, setattr)
    faulty(gpus, json.loads(sys.argv[1]))
    main(sys.argv[2])
