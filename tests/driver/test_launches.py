"""Kernels launched for real through cuda.bindings and a stand-in driver, whose GPUs are the emulator."""

import pytest
import torch

import lowbitvm as lb
from tests.driver.standin import Standin

FMT = lb.Format("u4", group=64, zero="int")


def layer(rows: int = 3, n: int = 72, k: int = 256) -> tuple[torch.Tensor, lb.PackedWeight, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    weight = lb.quantize(torch.randn(n, k, generator=generator), FMT)
    return torch.randn(rows, k, generator=generator).half(), weight, torch.randn(n, generator=generator).half()


@pytest.mark.parametrize("rows", [1, 17])
def test_a_linear_layer_on_a_gpu_that_shares_the_cpus_memory_equals_the_emulator(
    gpus: Standin, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    x, weight, bias = layer(rows)
    monkeypatch.setenv("LOWBITVM_DEVICE", "emulator:sm_80")
    expected = lb.linear(x, weight, bias)
    assert gpus.launched == []
    monkeypatch.setenv("LOWBITVM_DEVICE", "cuda:1")
    assert torch.equal(lb.linear(x, weight, bias), expected)
    assert [(launch.entry, launch.device) for launch in gpus.launched] == [("linear", 1)]
    assert gpus.problems == []
