"""Our calls on a driver whose launches do nothing; run as a process by `lowbitvm.bench.launching`."""

import ctypes
import json
import sys
from typing import Any

import lowbitvm as lb
from lowbitvm import dtypes, ops
from lowbitvm.bench.launching import measure
from lowbitvm.runtime import driver

FORMAT = "u4,group=128,zero=int"
TOKENS = lb.Format("i8", "channel", scale="f32", digits="s8")
M, N, K = 16, 256, 512


class OnGpu:
    """An array as other libraries describe theirs."""

    def __init__(self, count: int) -> None:
        context = driver.primary_context(0)
        with driver._current(context):
            address = driver.allocate(4 * count)
        parts = {"shape": (count,), "typestr": "<f4", "data": (address, False), "strides": None, "stream": None}
        self.__cuda_array_interface__ = parts | {"version": 3}


@lb.kernel(x=("n", lb.f32), y=("n", lb.f32))
def doubled(x: lb.Tensor, y: lb.Tensor) -> None:
    i = lb.program_id(0) * 128
    lb.store(y, (i,), lb.load(x, (i,), (128,)) * 2.0)


def main(library: str) -> dict[str, Any]:
    """Loads the stand-in driver and measures."""
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL).standin_reset(1, 8, 0, 1)
    torch = dtypes.torch()
    weight = lb.quantize(torch.randn(N, K), FORMAT)
    x, bias, y = torch.randn(M, K).half(), torch.randn(N).half(), torch.empty(M, N).half()
    empty = torch.library.Library("lowbitvm_bench", "DEF")
    empty.define("empty" + ops.SCHEMA.removeprefix("linear"))
    empty.impl("empty", lambda *args, **options: y, "CPU")
    operator = torch.ops.lowbitvm_bench.empty
    parts = (weight.words, weight.scales, weight.zeros, bias, FORMAT, N, K)
    kernel, tensors = doubled.compile("sm_80"), {"x": torch.zeros(1024), "y": torch.zeros(1024)}
    arrays = {"x": OnGpu(1024), "y": OnGpu(1024)}
    matmul = lb.compile_linear(FORMAT, bm=16, bn=64, bk=64, out="f16")
    layer = {"x": x, "w": weight, "y": y}
    digits = lb.quantize(torch.randn(N, K), lb.Format("i4", "channel", act="i8"))
    assert isinstance(digits, lb.PackedDigits)
    codes = lb.quantize_activations(x, TOKENS)
    return {
        "an empty torch operator": measure(lambda: operator(x, *parts)),
        "lb.linear": measure(lambda: lb.linear(x, weight, bias)),
        "lb.linear of integers": measure(lambda: lb.linear(x, digits)),
        "lb.quantize_activations": measure(lambda: lb.quantize_activations(x, TOKENS)),
        "lb.matmul": measure(lambda: lb.matmul(codes, digits)),
        "lb.launch of 2 arrays": measure(lambda: lb.launch(kernel, (8,), arrays)),
        "lb.launch of 2 tensors": measure(lambda: lb.launch(kernel, (8,), tensors)),
        "lb.launch of u4 weights": measure(lambda: lb.launch(matmul, (1, 4), layer)),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
