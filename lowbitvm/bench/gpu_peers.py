"""The other libraries that `lowbitvm bench --gpu` measures, each behind the same three names; none is needed.

Their interfaces are those of torch 2.6, humming-kernels 0.1.19, gemlite 0.6.0 and nvidia-cutlass 4.2. What fails at
them is listed with its reason, and the others go on.
"""

import ctypes
import functools
import importlib
import importlib.util
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cuda.pathfinder import find_nvidia_binary_utility, find_nvidia_header_directory

from lowbitvm.bench.gpu import BYTES, Shape, Tool, Work, moved
from lowbitvm.bench.modelled import GROUP
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver, timing

SOURCE = Path(__file__).parent / "cutlass_gemm.cu"
MOST_ROWS_OF_INT_MM = 16  # torch._int_mm takes more
Call = Callable[[], object]


def _torch() -> Any:
    return importlib.import_module("torch")


class Peer(Tool):
    """A library of torch tensors. module: what has to be importable beside torch."""

    module = "torch"

    def available(self) -> str | None:
        """None, or why it cannot be measured."""
        for module in ("torch", self.module):
            if importlib.util.find_spec(module) is None:
                return "not installed" if module == self.module else f"needs {module}"
        return None if _torch().cuda.is_available() else "needs a torch with CUDA"

    @contextmanager
    def prepare(self, weights: str, shape: Shape, index: int) -> Iterator[Work]:
        """Sets of buffers whose launches the current stream of torch takes."""
        torch = _torch()
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
        torch, (m, n, k) = _torch(), shape
        x, w = (torch.randn(rows, k, device=device, dtype=torch.float16) for rows in (m, n))
        y = torch.empty(m, n, device=device, dtype=torch.float16)
        return lambda: torch.mm(x, w.T, out=y)


class TorchInteger(Peer):
    """torch._int_mm, cuBLASLt's int8."""

    name, weights = "torch int8", (BYTES,)

    def size(self, weights: str, shape: Shape) -> int:
        return shape[1] * shape[2]

    def call(self, weights: str, shape: Shape, device: Any) -> Call:
        torch, (m, n, k) = _torch(), shape
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
        torch, (m, n, k) = _torch(), shape
        kind = importlib.import_module("humming.layer").HummingLayer
        config = {"dtype": f"int{weights[1:]}", "group_size": GROUP}
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
        torch, (m, n, k) = _torch(), shape
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
    """CUTLASS's GEMMs for sm_80 and later, from the headers of the wheel nvidia-cutlass, compiled by nvcc."""

    name, module, weights = "cutlass", "cutlass_library", ("f16", BYTES)

    def available(self) -> str | None:
        return super().available() or (None if find_nvidia_binary_utility("nvcc") else "needs nvcc")

    def size(self, weights: str, shape: Shape) -> int:
        return (2 if weights == "f16" else 1) * shape[1] * shape[2]

    def call(self, weights: str, shape: Shape, device: Any) -> Call:
        torch, (m, n, k) = _torch(), shape
        library = cutlass_library(driver.device_target(device.index))
        gemm = library.gemm_f16 if weights == "f16" else library.gemm_i8
        given, result = (torch.float16, torch.float16) if weights == "f16" else (torch.int8, torch.int32)
        x, w = (torch.randint(-8, 8, (rows, k), device=device).to(given) for rows in (m, n))
        y = torch.empty(m, n, device=device, dtype=result)

        def run() -> None:
            pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, w, y)]
            status = gemm(m, n, k, *pointers, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
            if status:
                raise RuntimeError(f"cutlass::Status {status}")

        return run


@functools.cache
def cutlass_library(target: str) -> ctypes.CDLL:
    """The library of cutlass_gemm.cu, compiled for a target; half a minute. Raises TOOL_MISSING."""
    found, headers = importlib.util.find_spec("cutlass_library"), find_nvidia_header_directory("cudart")
    nvcc = find_nvidia_binary_utility("nvcc")
    if found is None or nvcc is None:
        raise LowbitvmError("TOOL_MISSING", "nvcc or the headers of CUTLASS are missing", "pip install nvidia-cutlass")
    source = Path(str((found.submodule_search_locations or [""])[0]), "source", "include")
    path, arch = Path(tempfile.mkdtemp(prefix="lowbitvm-"), "gemm.so"), target.removeprefix("sm_").rstrip("af")
    where = [f"-I{source}", f"-gencode=arch=compute_{arch},code=sm_{arch}"]
    if headers is not None:
        where += [f"-I{headers}", f"-L{Path(headers).parent / 'lib'}"]
    command = [nvcc, "-O3", "-std=c++17", "-w", "-shared", "-Xcompiler", "-fPIC", *where, str(SOURCE), "-o", str(path)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        reason = (made.stderr.strip().splitlines() or ["no output"])[-1]
        raise LowbitvmError("TOOL_MISSING", f"nvcc cannot compile {SOURCE.name}: {reason}", "leave CUTLASS out")
    return ctypes.CDLL(str(path))


class Tilus(Peer):
    """A compiler without kernels of its own: its quantised matmul is an example in its repository."""

    name = module = "tilus"

    def available(self) -> str | None:
        reason = super().available()
        return reason or "its wheel has no matrix multiplication"


PEERS: tuple[Tool, ...] = (TorchFloat(), TorchInteger(), Cutlass(), Humming(), Gemlite(), Tilus())
