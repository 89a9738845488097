"""The linear kernel on a GPU: within the bound of float64, and equal to the emulator bit for bit."""

import pytest
import torch

import lowbitvm as lb
from lowbitvm.bounds import agrees, linear_bound, linear_exact
from lowbitvm.runtime import driver


@pytest.mark.parametrize("act", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 17, 70])
@pytest.mark.parametrize("zero", [None, "int", "float", "offset"])
def test_the_gpu_agrees_with_float64_and_with_the_emulator(monkeypatch, act, rows, zero):
    torch.manual_seed(0)
    dense = torch.randn(300, 640)
    weight = lb.quantize(dense.abs() if zero is None else dense, lb.Format("u4", group=64, zero=zero))
    x, bias = torch.randn(rows, 640).to(act), torch.randn(300).to(act)
    y = lb.linear(x.cuda(), weight.to("cuda"), bias.cuda()).cpu()
    assert agrees(y, linear_exact(x, weight, bias), linear_bound(x, weight, bias)).all()
    monkeypatch.setenv("LOWBITVM_DEVICE", f"emulator:{driver.device_target(torch.cuda.current_device())}")
    assert torch.equal(y.view(torch.int16), lb.linear(x, weight, bias).view(torch.int16))


def test_a_launch_uses_the_current_stream():
    weight = lb.quantize(torch.randn(64, 128), lb.Format("i4")).to("cuda")
    x = torch.randn(4, 128, device="cuda", dtype=torch.float16)
    expected = lb.linear(x, weight)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = x.clone()
        y = lb.linear(late, weight)
    stream.synchronize()
    assert torch.equal(y, expected)
