"""The stand-in libcuda.so.1 of lowbitvm/bench, loaded so that cuda.bindings finds it, with launches on the emulator."""

import ctypes
import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbitvm.bench.launching import build_driver
from lowbitvm.runtime import assemble, compiled, emulator
from lowbitvm.runtime.cache import Cache

_Launcher = ctypes.CFUNCTYPE(
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_uint)),
    *(ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint64),
)
ILLEGAL_ADDRESS, LAUNCH_FAILED = 700, 719


@functools.cache
def library() -> ctypes.CDLL:
    """The library, compiled once and kept loaded: a later dlopen("libcuda.so.1") finds it by its name."""
    path = build_driver(Path(tempfile.mkdtemp(prefix="lowbitvm-driver-")))
    loaded = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    loaded.standin_find.argtypes = [ctypes.c_uint64, ctypes.c_int, *[ctypes.POINTER(ctypes.c_uint64)] * 2]
    loaded.standin_calls.restype = ctypes.c_uint64
    loaded.standin_clock.argtypes = [ctypes.c_double]
    return loaded


@dataclass(frozen=True)
class Launched:
    """A launch that reached the emulator."""

    entry: str
    device: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    stream: int
    cluster: tuple[int, ...] | None = None
    dependent: bool = False


class Standin:
    """GPUs of one capability. `launched`: what ran on them; `problems`: what the emulator had against it.

    damage: what a faulty GPU does after a launch, to the memory from each parameter's address on, by its name.
    cost: the microseconds that a launch takes by the clock of events; None: as long as it takes.
    """

    def __init__(self, devices: int = 2, capability: tuple[int, int] = (8, 0), pageable: bool = False) -> None:
        self.library = library()
        self.library.standin_reset(devices, *capability, pageable)
        self.launched: list[Launched] = []
        self.problems: list[BaseException] = []
        self.texts: dict[bytes, str] = {}
        self.cost: Callable[[Launched], float] | None = None
        self.clock = 0.0  # microseconds
        self.pageable = pageable
        self.checks = "all"
        self.damage: Callable[[Launched, dict[str, np.ndarray[Any, Any]]], None] | None = None
        self._modules: dict[str, emulator.Module] = {}
        self._callback = _Launcher(self._launch)
        self.library.standin_launcher(self._callback)

    def fail(self, name: str, result: int, *, skip: int = 0, times: int = 1) -> None:
        """Makes calls of a function give `result`: `times` of them, after `skip` that go well."""
        self.library.standin_fail(name.encode(), result, skip, times)

    def close(self) -> None:
        """Leaves a driver that finds no GPU."""
        self.library.standin_reset(0, 0, 0, 0)

    def idle(self) -> None:
        """Launches do nothing from now on."""
        self.library.standin_launcher(_Launcher(0))

    def remember(self, ptx: str, cubin: bytes) -> None:
        """A cubin that launches may come with, and the PTX to run in its place."""
        self.texts[cubin] = ptx

    def _launch(self, image: int, size: int, entry: bytes, device: int, extent: Any, shared: int, *rest: int) -> int:
        parameters, count, stream = rest
        grid, block = tuple(extent[:3]), tuple(extent[3:6])
        try:
            text = self.texts[ctypes.string_at(image, size)]
            module = self._modules.setdefault(text, emulator.load(text) if text not in self._modules else None)
            name = entry.decode()
            attributes = (ctypes.c_uint * 4)()
            self.library.standin_attributes(attributes)
            cluster, dependent = tuple(attributes[:3]), bool(attributes[3])
            self.launched.append(
                Launched(name, device, grid, block, shared, stream, cluster if any(cluster) else None, dependent)
            )
            if self.cost is not None:
                self.clock += self.cost(self.launched[-1])
                self.library.standin_clock(self.clock / 1e3)
            values = self._values(module, name, ctypes.string_at(parameters, count), device)
            module.launch(name, grid, block, values, shared=shared, checks=self.checks)
            if self.damage is not None:
                names = [variable.name for variable, _ in module.programs[name].params]
                pointers = [pair for pair in zip(names, values, strict=True) if not isinstance(pair[1], int)]
                self.damage(self.launched[-1], {each: value.target[value.offset :] for each, value in pointers})
        except _NotMapped:
            return ILLEGAL_ADDRESS
        except emulator.EmulatorError as problem:
            self.problems.append(problem)
            return ILLEGAL_ADDRESS if "bounds" in str(problem) else LAUNCH_FAILED
        except BaseException as problem:  # nothing can be raised through the driver
            self.problems.append(problem)
            return LAUNCH_FAILED
        return 0

    def _values(self, module: emulator.Module, entry: str, data: bytes, device: int) -> Sequence[Any]:
        values: list[Any] = []
        for variable, offset in module.programs[entry].params:
            value = int.from_bytes(data[offset : offset + variable.size], "little")
            values.append(self._memory(value, device) if variable.type == "u64" else value)
        return values

    def _memory(self, address: int, device: int) -> emulator.Pointer:
        """The allocation that an address of a device lies in."""
        start, size = ctypes.c_uint64(), ctypes.c_uint64()
        if not self.library.standin_find(address, device, start, size):
            if not self.pageable:
                raise _NotMapped
            start.value, size.value = address, _mapped(address) - address
        buffer = (ctypes.c_uint8 * size.value).from_address(start.value)
        return emulator.pointer(np.frombuffer(buffer, np.uint8), address - start.value)


class _NotMapped(Exception):
    """An address that no device may use."""


def _mapped(address: int) -> int:
    """The end of the process's memory around an address, as /proc/self/maps has it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return end
    raise _NotMapped


def remembering(standin: Standin, patch: Callable[[object, str, object], None]) -> None:
    """Lets the stand-in know the PTX of every cubin that the runtime makes or reads from its cache."""
    real, get = assemble.assemble, Cache.get

    def assembled(ptx: str, target: str) -> assemble.Assembly:
        made = real(ptx, target)
        standin.remember(ptx, made.cubin)
        return made

    def found(self: Cache, key: str) -> Any:
        entry = get(self, key)
        if entry is not None:
            standin.remember(entry.ptx, entry.cubin)
        return entry

    patch(compiled, "assemble", assembled)
    patch(Cache, "get", found)
