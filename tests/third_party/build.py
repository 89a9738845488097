"""Compiles other people's languages to PTX, once: build/third_party keeps what was made, keyed by all it depends on.

`python -m tests.third_party` compiles everything that is missing; a test that finds its kernel missing compiles it.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / "build" / "third_party"
NVCC_PACKAGES = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl", "nvidia-cuda-runtime")
CUTLASS_PACKAGE = "nvidia-cutlass"


@dataclass(frozen=True)
class Compiled:
    """What a compiler made: the PTX, and what a launch must know that the PTX does not say."""

    ptx: str
    entry: str = ""
    shared: int = 0
    warps: int = 0


@dataclass(frozen=True)
class TritonKernel:
    """A kernel of triton_kernels.py for one target; `types` and `constants` by parameter."""

    function: str
    arch: str
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    aligned: tuple[str, ...] = ()  # pointers and sizes that are multiples of 16
    options: tuple[tuple[str, Any], ...] = ()

    def compile(self) -> Compiled:
        import triton

        from tests.third_party import triton_kernels

        function = getattr(triton_kernels, self.function)
        key = [triton.__version__, function.cache_key, asdict(self)]
        return _cached(f"{self.function}_{self.arch}", key, lambda: self._compile(triton, function))

    def _compile(self, triton: Any, function: Any) -> Compiled:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        signature = dict(self.types) | dict.fromkeys(self.constants, "constexpr")
        signature = {name: signature[name] for name in function.arg_names}
        hints = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in self.aligned}
        constants = {name: self._constant(value, triton.language) for name, value in self.constants.items()}
        source = ASTSource(function, signature=signature, constexprs=constants, attrs=hints)
        # Triton's default changes with its next version; both are asked for by name, so that no warning is given.
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True} | dict(self.options)
        os.environ["TRITON_CACHE_DIR"] = str(BUILD / "triton")
        made = triton.compile(source, target=GPUTarget("cuda", int(self.arch[3:]), 32), options=options)
        return Compiled(made.asm["ptx"], made.metadata.name, made.metadata.shared, made.metadata.num_warps)

    @staticmethod
    def _constant(value: Any, language: Any) -> Any:
        """ "tl.float32" stands for that type: a key must be text."""
        is_type = isinstance(value, str) and value.startswith("tl.")
        return getattr(language, value.removeprefix("tl.")) if is_type else value


@dataclass(frozen=True)
class CudaSource:
    """A .cu file of this folder for one target, as nvcc compiles it."""

    file: str
    arch: str
    defines: tuple[str, ...] = ()
    cutlass: bool = False

    def compile(self) -> Compiled:
        versions = [importlib.metadata.version(package) for package in NVCC_PACKAGES]
        texts = [path.read_text() for path in _with_headers(HERE / self.file)]
        if self.cutlass:
            versions.append(importlib.metadata.version(CUTLASS_PACKAGE))
        return _cached(f"{Path(self.file).stem}_{self.arch}", [versions, texts, asdict(self)], self._compile)

    def _compile(self) -> Compiled:
        target = BUILD / f"{os.getpid()}.ptx"
        flags = [
            "-ptx",
            f"-arch={self.arch}",
            "-std=c++17",
            "--expt-relaxed-constexpr",
            "-lineinfo",
            "-diag-suppress=177,20054",
        ]
        flags += [f"-D{define}" for define in self.defines]
        if self.cutlass:
            flags += [f"-I{folder}" for folder in cutlass_headers()]
        command = [str(nvcc()), *flags, str(HERE / self.file), "-o", str(target)]
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"NVCC_PREPEND_FLAGS": "", "NVCC_APPEND_FLAGS": ""},
        )
        text = target.read_text()
        target.unlink()
        return Compiled(text)


def nvcc() -> Path:
    """The compiler of the wheel nvidia-cuda-nvcc, which finds the other wheels' files in the folder they share."""
    for file in importlib.metadata.files("nvidia-cuda-nvcc") or []:
        if file.name == "nvcc":
            return Path(str(file.locate()))
    raise FileNotFoundError("the wheel nvidia-cuda-nvcc has no file named nvcc")


def cutlass_headers() -> list[Path]:
    found = importlib.metadata.distribution(CUTLASS_PACKAGE).locate_file("cutlass_library/source")
    return [Path(str(found)) / "include", Path(str(found)) / "tools" / "util" / "include"]


def _with_headers(path: Path) -> Iterator[Path]:
    """A source and the files of this folder that it includes."""
    yield path
    for name in re.findall(r'#include "(.*?)"', path.read_text()):
        if (path.parent / name).exists():
            yield from _with_headers(path.parent / name)


def _cached(name: str, key: Any, make: Callable[[], Compiled]) -> Compiled:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = BUILD / f"{name}_{digest}.json"
    if not path.exists():
        with _locked(path.with_suffix(".lock")):
            if not path.exists():
                unfinished = path.with_suffix(f".{os.getpid()}")
                unfinished.write_text(json.dumps(asdict(make())))
                unfinished.replace(path)
    return Compiled(**json.loads(path.read_text()))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process compiles a kernel; the others that want it wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
