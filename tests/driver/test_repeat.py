"""Calls that are made again from their recorded launches: the same kernels, on other tensors, with the same bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import lowbitvm as lb
from lowbitvm import ops
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import integer, quantise, repeat
from tests.driver.kernels import layer, split_layer
from tests.driver.memory import GpuTensor, to_gpu, weight_to_gpu
from tests.driver.standin import Standin

TOKENS = lb.Format("i8", "channel", scale="f32")
CALLS = (ops._linear_calls, ops._integer_calls, integer._calls, quantise._calls)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call is known yet."""
    for calls in CALLS:
        monkeypatch.setattr(calls, "known", {False: {}, True: {}})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The calls that were made as if for the first time: one number each."""
    seen: list[int] = []
    first = repeat.Calls.first

    def counting(self: repeat.Calls, *args: Any) -> Any:
        if not repeat.recording():
            seen.append(1)
        return first(self, *args)

    monkeypatch.setattr(repeat.Calls, "first", counting)
    return seen


def integer_layer(seed: int, rows: int, group: int | str, k: int = 256) -> tuple[torch.Tensor, lb.PackedDigits]:
    generator = torch.Generator().manual_seed(seed)
    fmt = lb.Format("i4", group, act="i8", digits="s8", zero="int" if group != "channel" else None)
    weight = lb.quantize(torch.randn(40, k, generator=generator), fmt)
    return torch.randn(2, rows, k, generator=generator).half(), weight


@pytest.mark.parametrize(("group", "k"), [("channel", 256), (64, 256), ("channel", 8192)])
def test_an_integer_layer_repeats_its_quantiser_and_its_product(
    gpus: Standin,
    emulated: Callable[..., torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    counted: list[int],
    group: int | str,
    k: int,
) -> None:
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
    for seed in range(3):
        x, weight = integer_layer(seed, 3, group, k)
        bias, residual = torch.randn(40).half(), torch.randn(2, 3, 40).half()
        more: dict[str, Any] = {"bias": bias, "residual": residual, "activation": "silu"}
        assert torch.equal(lb.linear(x, weight, **more), emulated(x, weight, **more))
    names = [launch.entry for launch in gpus.launched]
    assert len(counted) == 1 + 3 and names == ["quantise", "matmul"] * 3 and gpus.problems == []  # 3: the emulator's
    assert k < 8192 or gpus.launched[-1].grid[2] > 1


def test_a_quantiser_and_a_product_repeat_on_their_own(
    gpus: Standin, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    for seed in range(3):
        (x, _), weight = integer_layer(seed, 5, "channel")
        monkeypatch.setenv("LOWBITVM_DEVICE", "")
        expected = lb.quantize_activations(x, TOKENS)
        product = lb.matmul(expected, weight)
        counted.clear()
        monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
        codes = lb.quantize_activations(x, TOKENS)
        assert codes.format == expected.format and codes.shape == expected.shape
        assert all(torch.equal(codes.arrays[name], expected.arrays[name]) for name in expected.arrays)
        assert torch.equal(lb.matmul(codes, weight), product)
        assert torch.equal(lb.matmul(codes, weight, torch.float32).half(), product)
        assert len(counted) == (3 if seed == 0 else 0)
    assert gpus.problems == [] and len(gpus.launched) == 9


def test_other_formats_shapes_and_options_are_other_calls(
    gpus: Standin, monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    x, _ = integer_layer(0, 4, "channel")[0]
    cases = [
        (x, TOKENS),
        (x[:3].clone(), TOKENS),
        (x.bfloat16(), TOKENS),
        (x, lb.Format("u8", "channel", "int", "f32")),
    ]
    for given, fmt in cases:
        monkeypatch.setenv("LOWBITVM_DEVICE", "")
        expected = lb.quantize_activations(given, fmt)
        monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
        counted.clear()
        assert torch.equal(lb.quantize_activations(given, fmt).words, expected.words) and len(counted) == 1


def test_a_tensor_that_is_given_twice_is_told_apart_in_later_calls(
    gpus: Standin, emulated: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
    x, weight, _ = layer(3, 256, 256)
    for residual in (x, torch.randn(3, 256).half(), x):
        assert torch.equal(lb.linear(x, weight, residual=residual), emulated(x, weight, residual=residual))
    assert gpus.problems == []


def test_an_address_that_is_not_aligned_takes_another_kernel(
    gpus: Standin, emulated: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
    x, weight, bias = layer(3)
    moved = torch.empty(x.numel() + 1).half()[1:].view(x.shape)
    moved.copy_(x)
    assert moved.data_ptr() % 16
    for given in (x, moved, x, moved):
        assert torch.equal(lb.linear(given, weight, bias), emulated(x, weight, bias))
    assert gpus.problems == []


def test_weights_of_one_shape_and_two_formats_do_not_meet(gpus: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
    (x, _), weight = integer_layer(0, 4, "channel")
    codes = lb.quantize_activations(x, TOKENS)
    gate = lb.quantize(torch.randn(40, 256), weight.format)
    lb.matmul(codes, weight, gate=gate)
    other = lb.quantize(torch.randn(40, 256), lb.Format("i4", "channel", act="i8", digits="s4"))
    with pytest.raises(LowbitvmError):
        lb.matmul(codes, weight, gate=other)


def test_after_a_fault_between_two_launches_the_next_call_is_right(
    gpus: Standin, emulated: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:0")
    x, weight = integer_layer(0, 3, "channel")
    expected = emulated(x, weight)
    for skip in (0, 1):
        for known in (False, True):
            if not known:
                ops._integer_calls.known[False].clear()
            gpus.fail("cuLaunchKernel", 701, skip=skip)
            with pytest.raises(LowbitvmError, match="LAUNCH_FAILED"):
                lb.linear(x, weight)
            for _ in range(2):
                assert torch.equal(lb.linear(x, weight), expected)
    assert gpus.problems == []


def test_a_split_layer_on_a_gpus_own_memory_repeats(
    gpus: Standin, streams: list[int], emulated: Callable[..., torch.Tensor], counted: list[int]
) -> None:
    x, weight = split_layer()
    expected, on_gpu, stored = emulated(x, weight), to_gpu(x), weight_to_gpu(weight)
    counted.clear()
    for _ in range(3):
        y = lb.linear(on_gpu, stored)
        assert isinstance(y, GpuTensor) and torch.equal(y.held, expected)
    assert len(counted) == 1 and gpus.launched[-1].grid[2] > 1 and gpus.problems == []
