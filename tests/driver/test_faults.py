"""What users see of a driver that fails: an error of the catalogue, and a next call that works where one can."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cuda.bindings import driver as cuda

import lowbitvm as lb
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver, workspace
from lowbitvm.runtime.arguments import DeviceArray
from tests.driver.kernels import doubling, layer, split_layer
from tests.driver.memory import GpuTensor, Interface, create_stream, to_gpu, weight_to_gpu
from tests.driver.standin import Standin

OUT_OF_MEMORY, INVALID_IMAGE, NO_BINARY, NOT_FOUND, ILLEGAL, RESOURCES, FAILED = 2, 200, 209, 500, 700, 701, 719
NUMBERS = np.arange(300, dtype=np.float32)

# function, result, what the message says of the fix
PASSING = [
    ("cuInit", 100, "emulator"),
    ("cuDeviceGetCount", 999, "new process"),
    ("cuDevicePrimaryCtxRetain", OUT_OF_MEMORY, "free GPU memory"),
    ("cuDevicePrimaryCtxRetain", 46, "nvidia-smi"),
    ("cuThreadExchangeStreamCaptureMode", 1, "CUDA Driver API"),
    ("cuModuleLoadData", OUT_OF_MEMORY, "free GPU memory"),
    ("cuModuleLoadData", INVALID_IMAGE, "update the GPU driver"),
    ("cuModuleLoadData", NO_BINARY, "device_target"),
    ("cuModuleGetFunction", NOT_FOUND, "entry"),
    ("cuFuncGetAttribute", 1, "CUDA Driver API"),
    ("cuLaunchKernel", OUT_OF_MEMORY, "free GPU memory"),
    ("cuLaunchKernel", RESOURCES, "smaller tile"),
    ("cuLaunchKernel", 400, "call again"),
    ("cuLaunchKernel", 201, "call again"),
]


@pytest.mark.parametrize(("name", "result", "fix"), PASSING)
def test_after_a_fault_that_passes_the_next_call_is_right(
    gpus: Standin,
    streams: list[int],
    emulated: Callable[..., torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    result: int,
    fix: str,
) -> None:
    x, weight = split_layer()
    expected = emulated(x, weight)
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
    gpus.fail(name, result)
    with pytest.raises(LowbitvmError, match=fix) as error:
        lb.linear(x, weight)
    assert error.value.code in ("LAUNCH_FAILED", "DEVICE_UNAVAILABLE", "CONTEXT_LOST")
    assert name in error.value.problem or name == "cuInit"
    for _ in range(2):  # with the split's counters at 0
        assert torch.equal(lb.linear(x, weight), expected)
    assert gpus.problems == [] and gpus.launched[-1].grid[2] > 1


@pytest.mark.parametrize("result", [OUT_OF_MEMORY, RESOURCES, 400])
@pytest.mark.parametrize("ready", [False, True])
def test_counters_of_a_split_are_right_after_a_launch_that_failed(
    gpus: Standin, streams: list[int], emulated: Callable[..., torch.Tensor], result: int, ready: bool
) -> None:
    x, weight = split_layer()
    expected, on_gpu, stored = emulated(x, weight), to_gpu(x), weight_to_gpu(weight)
    if ready:
        lb.linear(on_gpu, stored)
    gpus.fail("cuLaunchKernel", result)
    with pytest.raises(LowbitvmError, match="LAUNCH_FAILED: launching linear on GPU 0"):
        lb.linear(on_gpu, stored)
    assert workspace._held == {}
    for _ in range(2):
        assert torch.equal(lb.linear(on_gpu, stored).held, expected)
    (counters,) = (arrivals.held for _, arrivals in workspace._held.values())
    assert not counters.any() and gpus.problems == []


@pytest.mark.parametrize("result", [ILLEGAL, FAILED, 214, 702, 716, 999])
def test_a_lost_context_is_named_in_every_call_until_it_is_reset(
    gpus: Standin, streams: list[int], emulated: Callable[..., torch.Tensor], result: int
) -> None:
    x, weight, bias = layer()
    expected = emulated(x, weight, bias)
    arguments = to_gpu(x), weight_to_gpu(weight), to_gpu(bias)
    other = to_gpu(x, 1), weight_to_gpu(weight, 1), to_gpu(bias, 1)
    lb.linear(*arguments)
    gpus.fail("cuLaunchKernel", result)
    for _ in range(3):
        with pytest.raises(LowbitvmError, match=cuda.CUresult(result).name) as error:
            lb.launch(doubling(), (3,), {"x": to_gpu_host(NUMBERS), "y": to_gpu_host(NUMBERS)})
        assert error.value.code == "CONTEXT_LOST" and "new process" in error.value.fix
    assert torch.equal(lb.linear(*other).held, expected)  # another GPU works on
    cuda.cuDevicePrimaryCtxReset(0)
    again = to_gpu(x), weight_to_gpu(weight), to_gpu(bias)
    assert torch.equal(lb.linear(*again).held, expected) and gpus.problems == []


def to_gpu_host(array: np.ndarray) -> torch.Tensor:
    """A tensor said to be on GPU 0, in memory that needs no call of the driver."""
    return GpuTensor(torch.from_numpy(array.copy()), 0)


def test_a_kernel_that_fails_after_its_launch_is_named_by_the_next_call(gpus: Standin) -> None:
    kernel, x, y = doubling(), Interface(NUMBERS), Interface(NUMBERS)
    cuda.cuMemFree(y.address)
    gpus.pageable = False
    lb.launch(kernel, (3,), {"x": x, "y": at_address(y)})  # asynchronous: the launch itself goes well
    with pytest.raises(LowbitvmError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*kernel before it") as error:
        lb.launch(kernel, (3,), {"x": at_address(x), "y": at_address(x)})
    assert error.value.code == "CONTEXT_LOST" and "emulator" in error.value.fix


def at_address(array: Interface) -> DeviceArray:
    """The array without asking the driver whose memory it is."""
    return DeviceArray(array.array.shape, array.array.dtype, array.address, 0, True, None, array)


def test_a_kernel_that_fails_on_shared_memory_fails_its_own_call(
    gpus: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
    kernel, y = doubling(), np.zeros(300, np.float32)
    lb.launch(kernel, (3,), {"x": NUMBERS, "y": y})
    gpus.fail("cuStreamSynchronize", FAILED)
    with pytest.raises(LowbitvmError, match="CONTEXT_LOST"):
        lb.launch(kernel, (3,), {"x": NUMBERS, "y": y})


def test_a_stream_of_another_context_is_an_error_that_says_so(gpus: Standin) -> None:
    kernel, arrays = doubling(), {"x": Interface(NUMBERS, 0), "y": Interface(NUMBERS, 0)}
    with pytest.raises(LowbitvmError, match=r"LAUNCH_FAILED.*INVALID_HANDLE.*one context"):
        lb.launch(kernel, (3,), arrays, stream=create_stream(1))
    assert lb.launch(kernel, (3,), arrays, stream=create_stream(0)) is None
    assert np.array_equal(arrays["y"].array, 2 * NUMBERS)


def test_a_cubin_for_another_gpu_is_refused_by_its_name(gpus: Standin) -> None:
    kernel = lb.compile_linear(lb.Format("u4", group=64), target="sm_89")
    with pytest.raises(LowbitvmError, match=r"NO_BINARY_FOR_GPU.*target"):
        driver.load(kernel.cubin, kernel.code.entry, 0)
    with pytest.raises(LowbitvmError, match="INVALID_IMAGE"):
        driver.load(b"no cubin at all", kernel.code.entry, 0)


def test_a_capture_that_was_spoiled_is_an_error_and_the_next_one_works(gpus: Standin, streams: list[int]) -> None:
    kernel, x, y = doubling(), to_gpu(torch.from_numpy(NUMBERS)), to_gpu(torch.zeros(300))
    stream = streams[0] = create_stream(0)
    mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    cuda.cuStreamBeginCapture(stream, mode)
    assert cuda.cuStreamSynchronize(stream)[0] == 900  # what spoils it
    with pytest.raises(LowbitvmError, match=r"LAUNCH_FAILED.*CAPTURE_INVALIDATED.*end the capture"):
        lb.launch(kernel, (3,), {"x": x, "y": y})
    assert cuda.cuStreamEndCapture(stream)[0] == 901
    lb.launch(kernel, (3,), {"x": x, "y": y})
    assert torch.equal(y.held, 2 * x.held)
