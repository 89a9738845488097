"""The other libraries that `lowbitvm bench --gpu` measures, each behind the same three names; none is needed.

Their interfaces are those of torch 2.6, humming-kernels 0.1.19, gemlite 0.6.0 and nvidia-cutlass 4.2. What fails at
them is listed with its reason, and the others go on.
"""

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lowbitvm import dtypes
from lowbitvm.bench.gpu import Shape, Tool, Work, moved
from lowbitvm.bench.modelled import GROUP
from lowbitvm.runtime import timing

MOST_ROWS_OF_INT_MM = 16  # torch._int_mm takes more
Call = Callable[[], object]


class Peer(Tool):
    """A library of torch tensors. module: what has to be importable beside torch."""

    module = "torch"

    def available(self) -> str | None:
        """None, or why it cannot be measured."""
        for module in ("torch", self.module):
            if importlib.util.find_spec(module) is None:
                return "not installed" if module == self.module else f"needs {module}"
        return None if dtypes.torch().cuda.is_available() else "needs a torch with CUDA"

    @contextmanager
    def prepare(self, weights: str, shape: Shape, index: int) -> Iterator[Work]:
        """Sets of buffers whose launches the current stream of torch takes."""
        torch = dtypes.torch()
        size = self.size(weights, shape)
        sets = timing.sets(moved(size, shape, weights), index)
        with torch.no_grad(), torch.cuda.device(index):
            calls = [self.call(weights, shape, torch.device("cuda", index)) for _ in range(sets)]
            torch.cuda.synchronize()

            def launch(which: int, stream: int) -> None:
                with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                    calls[which]()

            try:
                yield Work(launch, sets, size)
            finally:
                calls.clear()
                torch.cuda.empty_cache()

    def size(self, weights: str, shape: Shape) -> int:
        """Bytes of the stored weights, scales in f16 and zero points of their group included."""
        raise NotImplementedError

    def call(self, weights: str, shape: Shape, device: Any) -> Call:
        """A launch on torch's current stream, with buffers of its own."""
        raise NotImplementedError


class TorchFloat(Peer):
    """torch's matmul in f16, cuBLAS."""

    name, weights = "torch f16", ("f16",)

    def size(self, weights: str, shape: Shape) -> int:
        return 2 * shape[1] * shape[2]

    def call(self, weights: str, shape: Shape, device: Any) -> Call:
        torch, (m, n, k) = dtypes.torch(), shape
        x, w = (torch.randn(rows, k, device=device, dtype=torch.float16) for rows in (m, n))
        y = torch.empty(m, n, device=device, dtype=torch.float16)
        return lambda: torch.mm(x, w.T, out=y)


class TorchInteger(Peer):
    """torch._int_mm, cuBLASLt's int8."""

    name, weights = "torch int8", ("i8 x i8",)

    def size(self, weights: str, shape: Shape) -> int:
        return shape[1] * shape[2]

    def call(self, weights: str, shape: Shape, device: Any) -> Call:
        torch, (m, n, k) = dtypes.torch(), shape
        if m <= MOST_ROWS_OF_INT_MM:
            raise ValueError(f"torch._int_mm takes more than {MOST_ROWS_OF_INT_MM} rows")
        x, w = (torch.randint(-128, 128, (rows, k), device=device, dtype=torch.int8) for rows in (m, n))
        y = torch.empty(m, n, device=device, dtype=torch.int32)
        return lambda: torch._int_mm(x, w.T, out=y)


class Humming(Peer):
    """Integers of 1 to 8 bits without zero points, scales of groups."""

    name, module = "humming-kernels", "humming"
    weights = tuple(f"u{bits}" for bits in range(1, 9))

    def size(self, weights: str, shape: Shape) -> int:
        _, n, k = shape
        return int(weights[1:]) * n * k // 8 + 2 * n * k // GROUP

    def call(self, weights: str, shape: Shape, device: Any) -> Call:
        torch, (m, n, k) = dtypes.torch(), shape
        kind = importlib.import_module("humming.layer").HummingLayer
        config = {"dtype": f"uint{weights[1:]}", "group_size": GROUP}
        layer = kind(shape_n=n, shape_k=k, weight_config=config, torch_dtype=torch.float16).to(device)
        layer.load_from_unquantized(torch.randn(n, k, device=device, dtype=torch.float16))
        layer.transform()
        x = torch.randn(m, k, device=device, dtype=torch.float16)
        return lambda: layer(x)


class Gemlite(Peer):
    """Integers of 1, 2, 4 and 8 bits with zero points."""

    name, module, weights = "gemlite", "gemlite", ("u1,zero=int", "u2,zero=int", "u4,zero=int", "u8,zero=int")

    def size(self, weights: str, shape: Shape) -> int:
        _, n, k = shape
        return int(weights[1]) * n * k // 8 + 4 * n * k // GROUP

    def call(self, weights: str, shape: Shape, device: Any) -> Call:
        torch, (m, n, k) = dtypes.torch(), shape
        gemlite, bits = importlib.import_module("gemlite"), int(weights[1])
        f16 = gemlite.DType.FP16
        sizes = {"group_size": GROUP, "in_features": k, "out_features": n}
        layer = gemlite.GemLiteLinear(bits, **sizes, input_dtype=f16, output_dtype=f16)
        codes = torch.randint(0, 1 << bits, (n, k), device=device, dtype=torch.uint8)
        scales = torch.rand(n * k // GROUP, 1, device=device, dtype=torch.float16)
        layer.pack(codes, scales, torch.full_like(scales, 1 << (bits - 1)), None)
        x = torch.randn(m, k, device=device, dtype=torch.float16)
        return lambda: layer(x)


class Cutlass(Peer):
    """GEMMs that nvidia-cutlass generates, with the tile that it chooses; nvcc compiles them."""

    name, module, weights = "cutlass", "cutlass_cppgen", ("f16", "i8 x i8")

    def available(self) -> str | None:
        reason = super().available()
        return reason or (None if shutil.which("nvcc") else "needs nvcc on the PATH, and the nvidia-cutlass wheel")

    def size(self, weights: str, shape: Shape) -> int:
        return (2 if weights == "f16" else 1) * shape[1] * shape[2]

    def call(self, weights: str, shape: Shape, device: Any) -> Call:
        torch, (m, n, k) = dtypes.torch(), shape
        cutlass, driver = importlib.import_module("cutlass_cppgen"), importlib.import_module("cuda.bindings.driver")
        element, result, total = (torch.float16, torch.float16, torch.float32)
        if weights != "f16":
            element, result, total = torch.int8, torch.int32, torch.int32
        major = cutlass.LayoutType
        plan = cutlass.op.Gemm(
            element_A=element, element_B=element, element_C=result, element_D=result, element_accumulator=total,
            layout_A=major.RowMajor, layout_B=major.ColumnMajor, layout_C=major.RowMajor,
        )  # fmt: skip
        x, w = (torch.randint(-8, 8, (rows, k), device=device).to(element) for rows in (m, n))
        c, y = (torch.zeros(m, n, device=device, dtype=result) for _ in range(2))

        def run() -> None:
            stream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
            plan.run(x, w.T, c, y, sync=False, stream=stream)

        return run


class Tilus(Peer):
    """A compiler without kernels of its own: its quantised matmul is an example in its repository."""

    name = module = "tilus"

    def available(self) -> str | None:
        reason = super().available()
        return reason or "its wheel has no matrix multiplication"


PEERS: tuple[Tool, ...] = (TorchFloat(), TorchInteger(), Cutlass(), Humming(), Gemlite(), Tilus())
