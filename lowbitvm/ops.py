"""torch operators. Importing this module registers `torch.ops.lowbitvm.linear`; using `lb.linear` does too."""

import os
from typing import Any

import torch

from lowbitvm import dtypes
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.pack import PackedWeight
from lowbitvm.runtime import driver
from lowbitvm.runtime.linear import run_linear
from lowbitvm.targets import get

_library = torch.library.Library("lowbitvm", "DEF")
_library.define(
    "linear(Tensor x, Tensor words, Tensor scales, Tensor? zeros, Tensor? bias, str format, int out_features,"
    " int in_features, Tensor? table=None, Tensor? outer=None, Tensor? outer_zeros=None, Tensor? permutation=None)"
    " -> Tensor"
)


def linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., in_features) in f16 or bf16 times the weight, transposed, plus bias (out_features): (..., out_features).

    CUDA tensors run on their GPU, on the current stream. CPU tensors are multiplied and summed in float64 and
    rounded once; with LOWBITVM_DEVICE=emulator:sm_80 (or another target) they go through PTX and the emulator instead.
    Raises DTYPE_MISMATCH, SHAPE_MISMATCH, TENSOR_NOT_CONTIGUOUS, DEVICE_MISMATCH; a backward pass through it raises
    GRADIENT_UNSUPPORTED.
    """
    if not isinstance(weight, PackedWeight):
        raise LowbitvmError(
            "ARGUMENT_INVALID", f"the weight is a {type(weight).__name__}", "pass what lb.pack or lb.quantize returns"
        )
    if not dtypes.is_tensor(weight.words):
        raise LowbitvmError("DEVICE_MISMATCH", "the weight holds numpy arrays", "pack torch tensors")
    _check(x, weight, bias)
    operator = torch.ops.lowbitvm.linear
    parts = (weight.words, weight.scales, weight.zeros)
    more = (weight.table, weight.outer, weight.outer_zeros, weight.permutation)
    result: torch.Tensor = operator(x, *parts, bias, str(weight.format), *weight.shape, *more)
    return result


def _check(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> None:
    if x.dtype not in (torch.float16, torch.bfloat16):
        raise LowbitvmError("DTYPE_MISMATCH", f"x is {x.dtype}", "cast it to float16 or bfloat16")
    if x.dim() == 0 or x.shape[-1] != weight.in_features:
        raise LowbitvmError(
            "SHAPE_MISMATCH",
            f"x has shape {tuple(x.shape)}, the weight {weight.in_features} in_features",
            "make the last dimension of x equal in_features",
        )
    if bias is not None and (bias.shape != (weight.out_features,) or bias.dtype != x.dtype):
        raise LowbitvmError(
            "SHAPE_MISMATCH" if bias.dtype == x.dtype else "DTYPE_MISMATCH",
            f"bias is {bias.dtype} of shape {tuple(bias.shape)}, x is {x.dtype}, out_features {weight.out_features}",
            "pass a bias (out_features) in the dtype of x",
        )
    tensors = {"x": x, **weight.arrays, **({} if bias is None else {"bias": bias})}
    devices = {str(tensor.device) for tensor in tensors.values()}
    if len(devices) > 1:
        raise LowbitvmError(
            "DEVICE_MISMATCH", f"tensors on {sorted(devices)}", "move all to one device with .to(device)"
        )
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise LowbitvmError(
                "TENSOR_NOT_CONTIGUOUS", f"{name} has strides {tensor.stride()}", "call .contiguous() on it"
            )


def _linear_cpu(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    fmt: str,
    out_features: int,
    in_features: int,
    *more: torch.Tensor | None,
) -> torch.Tensor:
    weight = PackedWeight(words, scales, zeros, Format.parse(fmt), out_features, in_features, *more)
    _check(x, weight, bias)
    device = os.environ.get("LOWBITVM_DEVICE", "")
    if not device:
        return _reference(x, weight, bias)
    if not device.startswith("emulator:"):
        raise LowbitvmError(
            "DEVICE_UNAVAILABLE", f"LOWBITVM_DEVICE is {device!r}", "set it to emulator:sm_80 or unset it"
        )
    return _run(x, weight, bias, get(device.removeprefix("emulator:")).name)


def _linear_cuda(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    fmt: str,
    out_features: int,
    in_features: int,
    *more: torch.Tensor | None,
) -> torch.Tensor:
    weight = PackedWeight(words, scales, zeros, Format.parse(fmt), out_features, in_features, *more)
    _check(x, weight, bias)
    return _run(x, weight, bias, driver.device_target(x.device.index))


def _run(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None, target: str) -> torch.Tensor:
    y = x.new_empty((*x.shape[:-1], weight.out_features))
    rows = x.numel() // weight.in_features if weight.in_features else y.numel() // max(1, weight.out_features)
    run_linear(x.view(rows, weight.in_features), weight, bias, y.view(rows, weight.out_features), target)
    return y


def _reference(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """The product, summed in float64 and rounded to x's dtype."""
    exact: torch.Tensor = x.double() @ weight.dequantize().double().T
    if bias is not None:
        exact = exact + bias.double()
    return _rounded(exact, x.dtype)


def _rounded(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 to f16 or bf16, to nearest even, once: torch goes by float32, which is rounded to odd here.

    Rounding to odd keeps on which side of every midpoint a number lies (Boldo and Melquiond, IEEE TC 2008).
    """
    nearest = exact.float()
    beyond = nearest.double().abs() > exact.abs()
    bits = nearest.view(torch.int32) - (beyond & nearest.isfinite()).int()  # toward zero
    odd = torch.where(nearest.double() == exact, bits, bits | 1)
    return torch.where(nearest.isfinite(), odd.view(torch.float32), nearest).to(dtype)


def _linear_fake(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    fmt: str,
    out_features: int,
    in_features: int,
    *more: torch.Tensor | None,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _backward(context: Any, *gradients: torch.Tensor) -> None:
    raise LowbitvmError(
        "GRADIENT_UNSUPPORTED",
        "a backward pass reached lowbitvm.linear",
        "run it under torch.no_grad() or detach its result",
    )


_library.impl("linear", _linear_cpu, "CPU")
_library.impl("linear", _linear_cuda, "CUDA")
torch.library.register_fake("lowbitvm::linear", _linear_fake, lib=_library)
torch.library.register_autograd("lowbitvm::linear", _backward, lib=_library)
