"""Problems with torch's CUDA tensors, for the self-test: the operator, its streams, CUDA graphs."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import lowbitvm as lb
from lowbitvm.selftest.problems import Arrays, Layer, NotHere, Problem

Call = Callable[[], Any]


def _torch() -> Any:
    return importlib.import_module("torch")


def _plain(call: Call) -> Any:
    """Twice: the second time by the launch that was kept."""
    call()
    return call()


def _streamed(call: Call) -> Any:
    cuda = _torch().cuda
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        found = call()
    stream.synchronize()
    return found


def _graph(call: Call) -> Any:
    """Captured, and replayed twice: the counters of splits have to be at 0 again."""
    cuda = _torch().cuda
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        found = call()
    for _ in range(2):
        found.zero_()
        graph.replay()
    cuda.synchronize()
    return found


HOW: dict[str, Callable[[Call], Any]] = {"at once": _plain, "on another stream": _streamed, "in a CUDA graph": _graph}


@dataclass(frozen=True)
class Tensors:
    """A layer whose arrays are torch's, as `lb.linear` takes them."""

    layer: Layer
    how: str

    def problem(self) -> Problem:
        """On the CPU, where the emulator is asked for, else on the GPU of LOWBITVM_DEVICE."""
        if importlib.util.find_spec("torch") is None:
            raise NotHere("torch is not installed")
        _torch()  # which arrays of its own need
        x, w, bias = self.layer.tensors()

        def run(target: str) -> Arrays:
            device = os.environ["LOWBITVM_DEVICE"]
            if device.startswith("emulator:"):
                return [_host(lb.linear(x, w, bias))]
            given = on_gpu(int(device.removeprefix("copy:")), x, w, bias)
            return [_host(HOW[self.how](partial(lb.linear, *given)).cpu())]

        return Problem(run, self.layer.problem().expected)


def on_gpu(index: int, *arrays: Any) -> list[Any]:
    """Tensors and weights, moved there."""
    torch = _torch()
    if not torch.cuda.is_available():
        raise NotHere("this torch has no CUDA")
    return [array.to(torch.device("cuda", index)) for array in arrays]


def _host(tensor: Any) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = tensor.numpy()
    return found
