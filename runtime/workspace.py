"""Memory that kernels share their partial results in, kept from launch to launch.

There is one workspace per device, stream and size: kernels on one stream run one after another. A kernel finds its
counters at 0 and leaves them so, so they are cleared once; after a launch that failed the workspace is given up.
Launches that are captured into a CUDA graph get memory of their own from torch, which keeps it for the graph, and a
node of the graph clears it: nothing is allocated outside torch's pool of the graph, and graphs on several streams do
not meet.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from lowbitvm import dtypes
from lowbitvm.dtypes import Array
from lowbitvm.runtime import driver
from lowbitvm.runtime.launch import Place, place_of, torch_stream

_held: dict[tuple[Place, int, int, int], tuple[Array, Array]] = {}


@contextmanager
def workspace(like: Array, shape: tuple[int, int], counters: int) -> Iterator[tuple[Array, Array]]:
    """f32 of `shape`, of any contents, and `counters` i32 that are 0, where `like` lies; both contiguous."""
    size, count = shape[0] * shape[1], counters
    place = place_of([like])
    if place is None or not dtypes.is_tensor(like):
        yield np.empty(shape, np.float32), np.zeros(counters, np.int32)
        return
    torch = sys.modules["torch"]
    if place.arrays == "torch":
        stream, context = torch_stream(place.index), driver.primary_context(place.index)
        if driver.is_capturing(stream, context):
            arrivals = like.new_empty(counters, dtype=torch.int32)
            driver.clear(arrivals.data_ptr(), arrivals.nbytes, stream, context)
            yield like.new_empty(shape, dtype=torch.float32), arrivals
            return
    else:
        stream = 0
    key = (place, stream, _rounded(size), _rounded(count))  # few sizes, most shared
    if key not in _held:
        _held[key] = like.new_empty(key[2], dtype=torch.float32), like.new_zeros(key[3], dtype=torch.int32)
    partials, arrivals = _held[key]
    try:
        yield partials.narrow(0, 0, size).view(shape), arrivals.narrow(0, 0, count)
    except BaseException:
        _held.pop(key, None)
        raise


def _rounded(number: int) -> int:
    """The next power of two."""
    return 1 << max(0, number - 1).bit_length()
