"""Memory that kernels share their partial results in, kept from launch to launch.

There is one workspace per GPU, stream and size: kernels on one stream run one after another. A kernel finds its
counters at 0 and leaves them so, so they are cleared once, and again after a launch that failed. A workspace is never
freed: a captured CUDA graph may launch into it at any time.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from lowbitvm import dtypes
from lowbitvm.dtypes import Array

_held: dict[tuple[str, int, int, int], tuple[Array, Array]] = {}


@contextmanager
def workspace(like: Array, shape: tuple[int, int], counters: int) -> Iterator[tuple[Array, Array]]:
    """f32 of `shape`, of any contents, and `counters` i32 that are 0, where `like` lies; both contiguous."""
    size, count = shape[0] * shape[1], counters
    if not dtypes.is_tensor(like) or like.device.type != "cuda":
        yield np.empty(shape, np.float32), np.zeros(counters, np.int32)
        return
    torch = sys.modules["torch"]
    rounded = tuple(1 << max(0, number - 1).bit_length() for number in (size, count))  # few sizes, most shared
    key = (str(like.device), torch.cuda.current_stream(like.device).cuda_stream, *rounded)
    if key not in _held:
        partials = torch.empty(rounded[0], dtype=torch.float32, device=like.device)
        _held[key] = partials, torch.zeros(rounded[1], dtype=torch.int32, device=like.device)
    partials, arrivals = _held[key]
    try:
        yield partials[:size].view(shape), arrivals[:count]
    except BaseException:
        arrivals.zero_()
        raise
