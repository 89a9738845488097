"""Compiles every kernel that is not yet in build/third_party, two at a time."""

import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.third_party.build import CudaSource, TritonKernel
from tests.third_party.catalogue import everything

PROCESSES = 2


def compile_one(item: CudaSource | TritonKernel) -> str | None:
    """What went wrong, if anything did."""
    try:
        item.compile()
    except subprocess.CalledProcessError as error:
        return f"{item}\n{error.stderr}"
    except Exception as error:  # of Triton's, any: the others are still to be compiled
        return f"{item}\n{error}"
    return None


def main() -> int:
    start, items = time.monotonic(), everything()
    with ProcessPoolExecutor(PROCESSES) as pool:
        failures = [failure for failure in pool.map(compile_one, items, chunksize=4) if failure]
    print(f"third-party kernels: {len(items)} compiled or found in {time.monotonic() - start:.0f} s", file=sys.stderr)
    for failure in failures:
        print(failure, file=sys.stderr)
    return len(failures) > 0


if __name__ == "__main__":
    sys.exit(main())
