"""The driver layer against a recording stand-in for cuda.bindings.driver; tests/gpu has the real one."""

import ctypes
import enum
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3)
GET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_void_p))
FUNCTION = 555  # a CUfunction


class FakeDriver:
    """Two GPUs; records every call, fails those named in `failures`. Context 100 + i is the primary one of GPU i."""

    CUresult = CUresult
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )
    CUfunction_attribute = SimpleNamespace(
        CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES="static", CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="dynamic"
    )

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failures: dict[str, CUresult] = {}
        self.capability = (8, 0)
        self.contexts = [(0, 0)]  # the thread's stack of (context, device); context 0: none is current
        self.static_shared = 0
        self.parameter_types: list[Any] = []
        self.launched: list[Any] = []
        # what the compiled launcher calls by its address
        self.compiled = {
            "cuLaunchKernel": LAUNCH(lambda *args: int(self.cuLaunchKernel(*args)[0])),
            "cuCtxGetCurrent": GET(self.current),
        }

    def current(self, context: Any) -> int:
        context[0] = self.contexts[-1][0]
        return 0

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*args: Any) -> tuple[Any, ...]:
            self.calls.append((name, *args))
            if name in self.failures:
                return (self.failures[name],) if name == "cuLaunchKernel" else (self.failures[name], None)
            return CUresult.CUDA_SUCCESS, *self.values(name, args)

        return call

    def values(self, name: str, args: tuple[Any, ...]) -> list[Any]:
        if name == "cuCtxPushCurrent":
            self.contexts.append((args[0], args[0] - 100))
        elif name == "cuCtxSetCurrent":
            self.contexts[-1] = (args[0], args[0] - 100)
        elif name == "cuCtxPopCurrent":
            self.contexts.pop()
        elif name == "cuLaunchKernel":
            pointers = (ctypes.c_void_p * len(self.parameter_types)).from_address(args[-2])
            self.launched = [
                kind.from_address(address).value for kind, address in zip(self.parameter_types, pointers, strict=True)
            ]
        results = {
            "cuDeviceGetCount": 2,
            "cuDeviceGet": args[0] if args else None,
            "cuDeviceGetAttribute": self.capability[args[0] == "minor"] if args else None,
            "cuCtxGetCurrent": self.contexts[-1][0],
            "cuCtxGetDevice": self.contexts[-1][1],
            "cuDevicePrimaryCtxRetain": 100 + args[0] if args and isinstance(args[0], int) else None,
            "cuModuleLoadData": "module",
            "cuModuleGetFunction": FUNCTION,
            "cuGetProcAddress": ctypes.cast(self.compiled.get(name_of(args), LAUNCH()), ctypes.c_void_p).value or 1,
            "cuFuncGetAttribute": self.static_shared,
            "cuCtxPopCurrent": None,
            "cuThreadExchangeStreamCaptureMode": 0,
            "cuGetErrorName": args[0].name.encode() if args and isinstance(args[0], CUresult) else None,
            "cuGetErrorString": b"what it means",
        }
        return [results[name]] if name in results else []

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


def name_of(args: tuple[Any, ...]) -> str:
    """The function that a call asks for, if it does."""
    return args[0].decode() if args and isinstance(args[0], bytes) else ""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    fake = FakeDriver()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    monkeypatch.setattr(driver, "_functions", {})
    caches = (driver._driver, driver._launcher, driver.primary_context, driver.device_target)
    for cache in caches:
        cache.cache_clear()
    yield fake
    for cache in caches:
        cache.cache_clear()


def code_of(error: pytest.ExceptionInfo[LowbitvmError]) -> str:
    return error.value.code


def test_a_missing_driver_library_is_device_unavailable_with_the_reason(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_library(flags: int) -> None:
        raise RuntimeError("libcuda is not there")

    monkeypatch.setattr(fake, "cuInit", no_library, raising=False)
    with pytest.raises(LowbitvmError, match="libcuda is not there") as error:
        driver.device_count()
    assert code_of(error) == "DEVICE_UNAVAILABLE" and "emulator" in error.value.fix


def test_a_missing_binding_is_device_unavailable(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)  # Python's own way to make an import fail
    with pytest.raises(LowbitvmError) as error:
        driver.load(b"cubin", "entry", 0)
    assert code_of(error) == "DEVICE_UNAVAILABLE"


def test_a_driver_without_gpu_is_device_unavailable(fake: FakeDriver) -> None:
    fake.failures["cuInit"] = CUresult.CUDA_ERROR_NO_DEVICE
    with pytest.raises(LowbitvmError, match="CUDA_ERROR_NO_DEVICE: what it means") as error:
        driver.device_target(0)
    assert code_of(error) == "DEVICE_UNAVAILABLE"


@pytest.mark.parametrize("index", [-1, 2])
def test_a_device_index_out_of_range_is_device_unavailable(fake: FakeDriver, index: int) -> None:
    for use in (lambda: driver.device_target(index), lambda: driver.load(b"cubin", "entry", index)):
        with pytest.raises(LowbitvmError, match="choose one of 0 to 1") as error:
            use()
        assert code_of(error) == "DEVICE_UNAVAILABLE"


@pytest.mark.parametrize(
    ("capability", "target"), [((8, 0), "sm_80"), ((8, 9), "sm_89"), ((9, 0), "sm_90a"), ((12, 1), "sm_120f")]
)
def test_the_target_follows_from_the_compute_capability(
    fake: FakeDriver, capability: tuple[int, int], target: str
) -> None:
    fake.capability = capability
    assert driver.device_count() == 2
    assert driver.device_target(1) == target
    assert fake.called("cuDeviceGetAttribute") == [("major", 1), ("minor", 1)]


def test_a_gpu_older_than_every_target_is_refused(fake: FakeDriver) -> None:
    fake.capability = (7, 0)
    with pytest.raises(LowbitvmError) as error:
        driver.device_target(0)
    assert code_of(error) == "TARGET_UNKNOWN"


def test_a_cubin_is_loaded_once_per_context_entry_and_shared_size(fake: FakeDriver) -> None:
    first = driver.load(b"cubin", "entry", 0)
    assert driver.load(bytes(bytearray(b"cubin")), "entry", 0) is first
    others = [
        driver.load(b"cubin", "entry", 1),
        driver.load(b"cubin", "other", 0),
        driver.load(b"cubin", "entry", 0, shared=1),
        driver.load(b"cubin 2", "entry", 0),
    ]
    assert len({first, *others}) == 5
    assert len(fake.called("cuModuleLoadData")) == 5
    assert fake.called("cuModuleGetFunction")[0] == ("module", b"entry")
    assert len(fake.called("cuDevicePrimaryCtxRetain")) == 2  # once per device, not once per load


@pytest.mark.parametrize(
    ("static", "dynamic", "opted_in"), [(0, 48 * 1024, False), (0, 48 * 1024 + 1, True), (16, 48 * 1024 - 15, True)]
)
def test_shared_memory_is_opted_in_only_above_48_kib(
    fake: FakeDriver, static: int, dynamic: int, opted_in: bool
) -> None:
    fake.static_shared = static
    driver.load(b"cubin", "entry", 0, dynamic)
    assert fake.called("cuFuncSetAttribute") == ([(FUNCTION, "dynamic", dynamic)] if opted_in else [])


def test_a_current_context_of_the_device_is_used_as_it_is(fake: FakeDriver) -> None:
    fake.contexts = [(777, 1)]
    function = driver.load(b"cubin", "entry", 1)
    driver.launch(function, (1, 1, 1), (32, 1, 1), 0, [])
    assert function.context == 777
    assert not fake.called("cuDevicePrimaryCtxRetain") and not fake.called("cuCtxPushCurrent")


def test_another_devices_context_is_put_back_even_when_the_launch_fails(fake: FakeDriver) -> None:
    fake.contexts = [(777, 1)]
    function = driver.load(b"cubin", "entry", 0)
    assert function.context == 100 and fake.contexts == [(777, 1)]
    fake.failures["cuLaunchKernel"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(LowbitvmError):
        driver.launch(function, (1, 1, 1), (32, 1, 1), 0, [])
    assert fake.called("cuCtxPushCurrent") == [(100,), (100,)] and fake.contexts == [(777, 1)]


def test_a_launch_passes_sizes_stream_and_every_argument_in_order(fake: FakeDriver) -> None:
    fake.parameter_types = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64, ctypes.c_float]
    function = driver.load(b"cubin", "entry", 0, shared=4096)
    values = [0x7F00_1234_5678_9ABC, -5, 2**63 + 1, 0.5]
    driver.launch(function, (4, 5, 6), (128, 2, 1), 0xBEEF, list(zip(values, fake.parameter_types, strict=True)))
    (call,) = fake.called("cuLaunchKernel")
    assert call[:9] == (FUNCTION, 4, 5, 6, 128, 2, 1, 4096, 0xBEEF) and call[-1] is None
    assert fake.launched == values


def test_an_empty_grid_launches_nothing(fake: FakeDriver) -> None:
    driver.launch(driver.load(b"cubin", "entry", 0), (0, 1, 1), (32, 1, 1), 0, [])
    assert not fake.called("cuLaunchKernel")


@pytest.mark.parametrize("grid", [(2**31, 1, 1), (1, 65536, 1), (1, 1, 65536)])
def test_a_grid_beyond_the_hardware_is_refused_before_the_driver_sees_it(
    fake: FakeDriver, grid: tuple[int, int, int]
) -> None:
    function = driver.load(b"cubin", "entry", 0)
    with pytest.raises(LowbitvmError) as error:
        driver.launch(function, grid, (32, 1, 1), 0, [])
    assert code_of(error) == "GRID_TOO_LARGE" and not fake.called("cuLaunchKernel")


def test_the_largest_grid_is_launched(fake: FakeDriver) -> None:
    driver.launch(driver.load(b"cubin", "entry", 0), (2**31 - 1, 65535, 65535), (32, 1, 1), 0, [])
    assert fake.called("cuLaunchKernel")[0][1:4] == (2**31 - 1, 65535, 65535)


def test_a_failed_launch_names_the_error_the_kernel_and_the_sizes(fake: FakeDriver) -> None:
    function = driver.load(b"cubin", "matmul", 1, shared=77)
    fake.failures["cuLaunchKernel"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(LowbitvmError) as error:
        driver.launch(function, (4, 5, 6), (128, 2, 1), 0, [])
    assert code_of(error) == "CONTEXT_LOST"
    for part in ("CUDA_ERROR_ILLEGAL_ADDRESS", "what it means", "matmul", "GPU 1", "(4, 5, 6)", "(128, 2, 1)", "77"):
        assert part in error.value.problem
    assert "emulator" in error.value.fix


@pytest.mark.parametrize(
    ("function", "result", "fix"),
    [
        ("cuModuleLoadData", CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU, "target"),
        ("cuFuncSetAttribute", CUresult.CUDA_ERROR_INVALID_VALUE, "CUDA Driver API"),
    ],
)
def test_a_refused_cubin_is_launch_failed_and_is_not_remembered(
    fake: FakeDriver, function: str, result: CUresult, fix: str
) -> None:
    fake.failures[function] = result
    with pytest.raises(LowbitvmError, match=result.name) as error:
        driver.load(b"cubin", "matmul", 0, shared=64 * 1024)
    assert code_of(error) == "LAUNCH_FAILED" and "matmul" in error.value.problem and fix in error.value.fix
    fake.failures.clear()
    assert driver.load(b"cubin", "matmul", 0, shared=64 * 1024).handle == FUNCTION


def test_an_error_without_a_name_is_reported_by_its_number(fake: FakeDriver) -> None:
    fake.failures |= dict.fromkeys(
        ["cuDeviceGetCount", "cuGetErrorName", "cuGetErrorString"], CUresult.CUDA_ERROR_INVALID_VALUE
    )
    with pytest.raises(LowbitvmError, match="unknown CUDA error 1"):
        driver.device_count()
