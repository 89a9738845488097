"""Triton's calls on a driver whose launches do nothing; run as a process by `lowbitvm.bench.launching`.

Without torch in the process Triton asks the driver for all that it needs; arrays are what it takes for one.
"""

import ctypes
import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.runtime import driver as active

from lowbitvm.bench import triton_kernels
from lowbitvm.bench.launching import measure


class OnGpu:
    """What Triton looks at of a tensor."""

    def __init__(self, address: int, dtype: Any) -> None:
        self.address, self.dtype = address, dtype

    def data_ptr(self) -> int:
        """The address of the first element."""
        return self.address


@triton.jit
def doubled(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n) * 2.0, mask=at < n)


def main(library: str) -> dict[str, Any]:
    """Loads the stand-in driver and measures."""
    loaded = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    loaded.standin_reset(1, 8, 0, 1)
    loaded.cuInit(0)
    active.set_active(triton.backends.backends["nvidia"].driver())
    memory = ctypes.create_string_buffer(1 << 14)
    address = (ctypes.addressof(memory) + 4095) // 4096 * 4096
    x, y = OnGpu(address, tl.float32), OnGpu(address + 8192, tl.float32)
    grid, kernel = (8, 1, 1), triton_kernels.shifted
    kinds = (tl.float16, tl.int32, tl.float16, tl.float16, tl.float16)
    layer = [OnGpu(address + 256 * place, kind) for place, kind in enumerate(kinds)]
    sizes: dict[str, Any] = {"BM": 16, "BN": 64, "BK": 64, "GROUP": 128}
    return {
        "a kernel of 2 tensors": measure(lambda: doubled[grid](x, y, 1024, BLOCK=128)),
        "a kernel of u4 weights": measure(lambda: kernel[grid](*layer, 16, 256, 512, **sizes)),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
