"""Kernels launched for real through cuda.bindings and a stand-in driver, whose GPUs are the emulator."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cuda.bindings import driver as cuda

import lowbitvm as lb
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver, workspace
from tests.driver.kernels import doubling, layer, split_layer
from tests.driver.memory import Dlpack, GpuTensor, Interface, create_stream, to_gpu, weight_to_gpu
from tests.driver.standin import Standin

NUMBERS = np.arange(300, dtype=np.float32)


@pytest.mark.parametrize("rows", [1, 17])
def test_a_linear_layer_on_a_gpu_that_shares_the_cpus_memory_equals_the_emulator(
    gpus: Standin, emulated: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    x, weight, bias = layer(rows)
    expected = emulated(x, weight, bias)
    assert gpus.launched == []
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:1")
    for _ in range(2):  # the second time by the launch that was kept
        assert torch.equal(lb.linear(x, weight, bias), expected)
    assert [(launch.entry, launch.device) for launch in gpus.launched] == [("linear", 1)] * 2
    assert gpus.problems == []


def test_a_gpu_that_does_not_share_the_cpus_memory_is_refused(gpus: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus.library.standin_reset(1, 8, 0, 0)
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
    with pytest.raises(LowbitvmError, match="cannot use memory of the CPU") as error:
        lb.launch(doubling(), (3,), {"x": NUMBERS, "y": np.zeros(300, np.float32)})
    assert error.value.code == "DEVICE_UNAVAILABLE"


@pytest.mark.parametrize("rows", [1, 17])
def test_a_linear_layer_whose_arrays_are_copied_to_a_gpu_and_back_equals_the_emulator(
    gpus: Standin, emulated: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    gpus.library.standin_reset(2, 8, 0, 0)  # which cannot use memory of the CPU
    gpus.pageable = False
    gpus.library.standin_launcher(gpus._callback)
    x, weight, bias = layer(rows)
    expected = emulated(x, weight, bias)
    monkeypatch.setenv("LOWBITVM_DEVICE", "copy:1")
    for _ in range(2):
        assert torch.equal(lb.linear(x, weight, bias), expected)
    assert [(launch.entry, launch.device) for launch in gpus.launched] == [("linear", 1)] * 2
    assert gpus.problems == []


def test_a_store_beside_the_arrays_that_were_copied_is_found(gpus: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWBITVM_DEVICE", "copy:0")
    kernel, given = doubling(), {"x": NUMBERS, "y": np.zeros(300, np.float32)}
    lb.launch(kernel, (3,), given)
    assert np.array_equal(given["y"], 2 * NUMBERS)
    gpus.damage = lambda launched, memory: memory["x"].__setitem__(1712, 0)  # behind its 1200 bytes
    with pytest.raises(LowbitvmError, match=r"LAUNCH_FAILED: doubled changed byte 2224 of 4608, outside"):
        lb.launch(kernel, (3,), given)


def test_arrays_of_another_library_are_launched_on_their_own_gpu(gpus: Standin) -> None:
    kernel = doubling()
    for device in (1, 0, 1):
        x, y = Interface(NUMBERS, device), Interface(np.zeros(300, np.float32), device)
        assert lb.launch(kernel, (3,), {"x": x, "y": y}) is None
        assert np.array_equal(y.array, 2 * NUMBERS)
        assert gpus.launched[-1].device == device
    assert gpus.problems == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32])
def test_arrays_that_only_dlpack_tells_of_are_launched(gpus: Standin, dtype: torch.dtype) -> None:
    values = torch.arange(300).to(dtype)
    x, y = Dlpack(values, 1), Dlpack(torch.zeros_like(values), 1)
    names = {torch.float16: lb.f16, torch.bfloat16: lb.bf16, torch.float32: lb.f32, torch.int32: lb.i32}
    kernel = doubling(names[dtype])
    stream = create_stream(1)
    lb.launch(kernel, (3,), {"x": x, "y": y}, stream=stream)
    assert torch.equal(torch.from_numpy(y.patterns.copy()).view(dtype), 2 * values)
    assert x.asked == y.asked == [stream] and gpus.launched[-1].stream == stream


def test_arrays_on_two_gpus_are_refused(gpus: Standin) -> None:
    with pytest.raises(LowbitvmError, match="DEVICE_MISMATCH"):
        lb.launch(doubling(), (3,), {"x": Interface(NUMBERS, 0), "y": Interface(NUMBERS, 1)})


def test_an_array_with_gaps_is_refused(gpus: Standin) -> None:
    x = Interface(np.zeros((300, 2), np.float32))
    x.array = x.array[:, 0]
    with pytest.raises(LowbitvmError, match="TENSOR_NOT_CONTIGUOUS"):
        lb.launch(doubling(), (3,), {"x": x, "y": Interface(NUMBERS)})


def test_a_launch_is_put_on_the_arrays_own_stream_after_what_others_do_to_theirs(
    gpus: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sorted(create_stream(0) for _ in range(2))
    waits: list[tuple[int, int]] = []
    order = driver.order
    monkeypatch.setattr(driver, "order", lambda s, after, c: (waits.append((s, after)), order(s, after, c)))
    x, y = Interface(NUMBERS, stream=second), Interface(NUMBERS, stream=second)
    kernel = doubling()
    lb.launch(kernel, (3,), {"x": x, "y": y})
    assert gpus.launched[-1].stream == second and not waits
    x.stream = first
    lb.launch(kernel, (3,), {"x": x, "y": y})
    assert gpus.launched[-1].stream == first and waits == [(first, second)]
    x.stream = y.stream = 1  # the default stream's other name
    lb.launch(kernel, (3,), {"x": x, "y": y}, stream=first)
    assert gpus.launched[-1].stream == first and waits[1:] == [(first, 0)]


def test_tensors_are_launched_on_torchs_current_stream_of_their_gpu(
    gpus: Standin, streams: list[int], emulated: Callable[..., torch.Tensor]
) -> None:
    x, weight, bias = layer()
    expected = emulated(x, weight, bias)
    for device in (0, 1, 1):
        streams[device] = create_stream(device)
        y = lb.linear(to_gpu(x, device), weight_to_gpu(weight, device), to_gpu(bias, device))
        assert gpus.problems == []
        assert isinstance(y, GpuTensor) and y.device.index == device and torch.equal(y.held, expected)
        assert (gpus.launched[-1].device, gpus.launched[-1].stream) == (device, streams[device])
    assert gpus.problems == []


def test_a_thread_without_a_context_keeps_the_primary_one_and_others_get_theirs_back(
    gpus: Standin, streams: list[int]
) -> None:
    x, y = to_gpu(torch.from_numpy(NUMBERS)), to_gpu(torch.zeros(300))
    kernel = doubling()
    while int(cuda.cuCtxGetCurrent()[1]):
        cuda.cuCtxPopCurrent()
    lb.launch(kernel, (3,), {"x": x, "y": y})
    assert int(cuda.cuCtxGetCurrent()[1]) == driver.primary_context(0)
    foreign = cuda.cuCtxCreate(None, 0, 0)[1]
    lb.launch(kernel, (3,), {"x": x, "y": y})  # torch's tensors belong to the primary context all the same
    assert int(cuda.cuCtxGetCurrent()[1]) == int(foreign)
    assert gpus.problems == [] and torch.equal(y.held, 2 * x.held)
    cuda.cuCtxDestroy(foreign)


def test_arrays_of_another_library_use_a_context_that_is_not_the_primary_one(gpus: Standin) -> None:
    kernel, arrays = doubling(), {"x": Interface(NUMBERS), "y": Interface(np.zeros(300, np.float32))}
    lb.launch(kernel, (3,), arrays)
    for _ in range(2):  # a second one after the first is destroyed: nothing of that may be used again
        foreign = cuda.cuCtxCreate(None, 0, 0)[1]
        stream = int(cuda.cuStreamCreate(0)[1])  # of the foreign context: the primary one would refuse it
        arrays["y"].array[:] = 0
        lb.launch(kernel, (3,), arrays, stream=stream)
        assert np.array_equal(arrays["y"].array, 2 * NUMBERS) and gpus.launched[-1].stream == stream
        cuda.cuCtxDestroy(foreign)
    lb.launch(kernel, (3,), arrays)
    assert gpus.problems == []


def captured(stream: int, work: Callable[[], object]) -> object:
    """A CUDA graph of what `work` launches."""
    cuda.cuCtxPushCurrent(driver.primary_context(0))
    assert cuda.cuStreamBeginCapture(stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL)[0] == 0
    work()
    status, graph = cuda.cuStreamEndCapture(stream)
    assert status == 0, status
    return cuda.cuGraphInstantiate(graph, 0)[1]


@pytest.mark.parametrize("warm", [False, True])
def test_a_captured_graph_computes_anew_in_every_launch_with_counters_of_its_own(
    gpus: Standin, streams: list[int], emulated: Callable[..., torch.Tensor], warm: bool
) -> None:
    x, weight = split_layer()
    on_gpu, stored = to_gpu(x), weight_to_gpu(weight)
    if warm:
        lb.linear(on_gpu, stored)
        assert workspace._held and gpus.launched[0].grid[2] > 1
    stream = streams[0] = create_stream(0)
    ran, results = len(gpus.launched), []
    graph = captured(stream, lambda: results.append(lb.linear(on_gpu, stored)))
    assert len(gpus.launched) == ran and all(key[1] != stream for key in workspace._held)
    for seed in range(2):
        on_gpu.held.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
        assert cuda.cuGraphLaunch(graph, stream)[0] == 0
        assert torch.equal(results[0].held, emulated(on_gpu.held.clone(), weight))
    assert len(gpus.launched) == ran + 2 and gpus.problems == []


def test_what_is_captured_needs_no_memory_of_the_drivers_once_it_is_warm(
    gpus: Standin, streams: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, x, y = doubling(), to_gpu(torch.from_numpy(NUMBERS)), to_gpu(torch.zeros(300))
    lb.launch(kernel, (3,), {"x": x, "y": y})
    stream = streams[0] = create_stream(0)
    for name in ("cuMemAlloc", "cuModuleLoadData", "cuStreamSynchronize", "cuCtxSynchronize"):
        gpus.fail(name, 900, times=1000)
    graph = captured(stream, lambda: lb.launch(kernel, (3,), {"x": x, "y": y}))
    assert cuda.cuGraphLaunch(graph, stream)[0] == 0
    assert torch.equal(y.held, 2 * x.held)


def test_threads_that_share_a_launch_do_not_see_each_others_arguments(gpus: Standin) -> None:
    kernel, wrong = doubling(), []

    def work(number: int) -> None:
        x, y = Interface(NUMBERS + number), Interface(np.zeros(300, np.float32))
        for _ in range(10):
            y.array[:] = 0
            lb.launch(kernel, (3,), {"x": x, "y": y})
            wrong.extend([] if np.array_equal(y.array, 2 * (NUMBERS + number)) else [number])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert wrong == [] and gpus.problems == [] and len(gpus.launched) == 40


def test_a_tensor_map_is_encoded_from_its_parts(gpus: Standin) -> None:
    driver.device_count()
    memory = np.zeros(64 * 128 + 16, np.uint16)
    address = (memory.ctypes.data + 15) // 16 * 16
    numbers = [[cuda.cuuint64_t(64), cuda.cuuint64_t(128)], [cuda.cuuint64_t(128)]]
    boxes = [[cuda.cuuint32_t(32), cuda.cuuint32_t(8)], [cuda.cuuint32_t(1), cuda.cuuint32_t(1)]]
    kinds = (
        cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        cuda.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_64B,
        cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_NONE,
        cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    dtype = cuda.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16
    status, encoded = cuda.cuTensorMapEncodeTiled(dtype, 2, address, *numbers, *boxes, *kinds)
    assert status == 0
    words = [int(word) for word in encoded.opaque]
    assert words[0] == address and words[2:4] == [64, 128] and words[7] == 128 and words[11] == 32 | 1 << 32
    assert cuda.cuTensorMapEncodeTiled(dtype, 2, address + 2, *numbers, *boxes, *kinds)[0] == 1  # not aligned
