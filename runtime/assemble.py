"""PTX -> cubin through nvJitLink, in process: no GPU, driver, nvcc or host compiler; cubin -> SASS through nvdisasm.

All functions may be called from several threads at once: nvJitLink keeps its state in a handle per call.
"""

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbitvm import targets
from lowbitvm.errors import LowbitvmError

# what ptxas prints per entry or function, and how the numbers of several become those of the module
_OUTPUTS: dict[str, tuple[str, Callable[[Iterable[int]], int]]] = {
    "registers": (r"Used (\d+) registers", max),
    "spills": (r"(\d+) bytes spill (?:stores|loads)", sum),
    "stack": (r"(\d+) bytes stack frame", max),
    "shared": (r"(\d+) bytes smem", max),
}
_MESSAGE = re.compile(r"(?:line (\d+); )?(?:error|fatal)\s*: (.*)")


@dataclass(frozen=True)
class Assembly:
    """A cubin and what ptxas reports about it. Of several entries in one text: the maxima, and the sum of spills."""

    cubin: bytes = field(repr=False)
    registers: int  # 32-bit registers per thread
    spills: int  # bytes of spill stores and loads per thread, summed over the instructions
    stack: int  # bytes of stack frame per thread
    shared: int  # bytes of static shared memory per block
    log: str = field(repr=False)  # ptxas's own words


def assemble(ptx: str, target: str, lines: bool = False) -> Assembly:
    """Assemble PTX text for a target such as "sm_80" or "sm_90a"; `lines`: the cubin keeps what .loc says.

    Raises TARGET_UNKNOWN, ASSEMBLER_MISSING, and ASSEMBLER_FAILED with ptxas's message and the PTX line it names.
    """
    targets.get(target)
    nvjitlink = _nvjitlink()
    options = [f"-arch={target}", "-Xptxas=-v", *(["-lineinfo"] if lines else [])]
    text = ptx.encode()
    try:
        handle = nvjitlink.create(len(options), options)
    except nvjitlink.nvJitLinkError as error:
        raise _failure(ptx, target, str(error)) from None
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, text, len(text), "lowbitvm.ptx")
        nvjitlink.complete(handle)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        log = _log(nvjitlink.get_info_log_size, nvjitlink.get_info_log, handle)
    except nvjitlink.nvJitLinkError as error:
        log = _log(nvjitlink.get_error_log_size, nvjitlink.get_error_log, handle)
        raise _failure(ptx, target, log or str(error)) from None
    finally:
        nvjitlink.destroy(handle)
    outputs = {
        name: combine(map(int, re.findall(pattern, log) or [0])) for name, (pattern, combine) in _OUTPUTS.items()
    }
    return Assembly(cubin=bytes(cubin), log=log, **outputs)


def assembler_version() -> str:
    """Version such as "nvJitLink 13.5", a part of every key of the kernel cache. Raises ASSEMBLER_MISSING."""
    return "nvJitLink {}.{}".format(*_nvjitlink().version())


def disassemble(cubin: bytes, annotated: bool = False) -> str:
    """SASS of a cubin, code sections only, as nvdisasm prints it; `annotated`: with line numbers and encodings.

    Raises TOOL_MISSING without the extra `sass`, ARGUMENT_INVALID for bytes that are no cubin.
    """
    with tempfile.TemporaryDirectory(prefix="lowbitvm-") as directory:
        path = Path(directory, "kernel.cubin")
        path.write_bytes(cubin)
        options = ["--print-line-info", "--print-instruction-encoding"] if annotated else []
        command = [_nvdisasm(), "--print-code", *options, str(path)]
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode != 0:
        message = result.stderr.strip().replace(str(path), "the cubin")
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"nvdisasm cannot read these {len(cubin)} bytes as a cubin: {message}",
            "pass the `cubin` of an Assembly or a compiled kernel",
        )
    return result.stdout


@functools.cache
def _nvjitlink() -> Any:
    """The binding, loaded only here: `import lowbitvm` must work on systems that have no nvJitLink."""
    try:
        from cuda.bindings import nvjitlink

        nvjitlink.version()  # the first call loads the shared library; cuda-pathfinder raises RuntimeErrors
    except (ImportError, OSError, RuntimeError) as error:
        raise LowbitvmError(
            "ASSEMBLER_MISSING",
            f"nvJitLink cannot be loaded ({type(error).__name__}: {error})",
            "pip install cuda-bindings nvidia-nvjitlink (Linux and Windows only); the emulator works without them",
        ) from error
    return nvjitlink


def _log(size_of: Any, read: Any, handle: int) -> str:
    buffer = bytearray(size_of(handle))
    if buffer:
        read(handle, buffer)
    return buffer.rstrip(b"\0").decode(errors="replace")


def _failure(ptx: str, target: str, log: str) -> LowbitvmError:
    """The first message of the log that names a PTX line, with that line; the first message where none does."""
    messages = sorted(_MESSAGE.findall(log), key=lambda found: found[0] == "")
    number, message = messages[0] if messages else ("", log.strip())
    problem = f"nvJitLink for {target}: {message.strip()}"
    if number:
        problem += f", at PTX line {number}: {[*ptx.splitlines(), ''][int(number) - 1].strip()}"
    return LowbitvmError(
        "ASSEMBLER_FAILED",
        problem,
        "correct that line for this target and .version; if lowbitvm wrote the PTX, report it with the text",
    )


@functools.cache
def _nvdisasm() -> str:
    try:
        from cuda.pathfinder import find_nvidia_binary_utility  # of cuda-bindings; looks in wheels, Conda and CUDA_PATH

        path = find_nvidia_binary_utility("nvdisasm")
    except ImportError:
        path = None
    if path is None:
        raise LowbitvmError(
            "TOOL_MISSING", "SASS is printed by nvdisasm, which is not installed", "pip install 'lowbitvm[sass]'"
        )
    return str(path)
