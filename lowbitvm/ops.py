"""torch operators. Importing this module, or using `lb.linear`, registers `torch.ops.lowbitvm.linear` and its like."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from lowbitvm import dtypes
from lowbitvm.digitplan import token_format
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits
from lowbitvm.pack import PackedWeight
from lowbitvm.runtime import driver, tuned
from lowbitvm.runtime.integer import matmul
from lowbitvm.runtime.launch import emulated_target
from lowbitvm.runtime.linear import run_linear
from lowbitvm.runtime.quantise import quantize_activations
from lowbitvm.runtime.repeat import Calls, signature

_library = torch.library.Library("lowbitvm", "DEF")
SCHEMA = (
    "linear(Tensor x, Tensor words, Tensor scales, Tensor? zeros, Tensor? bias, str format, int out_features,"
    " int in_features, Tensor? table=None, Tensor? outer=None, Tensor? outer_zeros=None, Tensor? permutation=None,"
    " Tensor[]? gate=None, Tensor? residual=None, *, str? activation=None, ScalarType? dtype=None,"
    " bool batch_invariant=False) -> Tensor"
)
_library.define(SCHEMA)
_library.define(
    "integer_linear(Tensor x, Tensor words, Tensor sums, Tensor scales, Tensor? zeros, Tensor? bias, str format,"
    " int out_features, int in_features, str? x_format=None, Tensor[]? gate=None, Tensor? residual=None, *,"
    " str? activation=None, ScalarType? dtype=None) -> Tensor"
)
_linear_operator, _integer_operator = torch.ops.lowbitvm.linear.default, torch.ops.lowbitvm.integer_linear.default
_AutoDispatchBelowAutograd = torch._C._AutoDispatchBelowAutograd
Weight = PackedWeight | PackedDigits
AnyWeight = TypeVar("AnyWeight", PackedWeight, PackedDigits)
OUTPUTS = (torch.float16, torch.bfloat16, torch.float32)
ACTIVATIONS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
}


def linear(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None = None,
    *,
    gate: Weight | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
    x_format: Format | str | None = None,
) -> torch.Tensor:
    """f(x w^T + bias) + residual, or f(x gate^T) * (x w^T + bias) + residual, in one kernel: (..., out_features).

    x: (..., in_features), f16 or bf16. weight, gate: what `lb.pack` or `lb.quantize` returns, of one format and shape.
    bias: (out_features), of x's dtype. activation: f, "relu", "silu", "gelu" (by erf) or None. residual: shaped like
    the result, f16, bf16 or f32. dtype: of the result, f16, bf16 or f32, by default x's. batch_invariant: the bits of a
    row do not depend on the other rows, nor on how many there are; without it they may depend on how many.

    A weight whose format has `act` is multiplied with integers, which x is rounded to first, as by
    `lb.quantize_activations`. x_format: their format, of the weight's act and digits; by default with a scale in f32
    for each token, and a zero point for unsigned codes. See `lb.matmul` for the order of operations.

    CUDA tensors run on their GPU, on the current stream. CPU tensors are computed in float64 and rounded once; with
    LOWBITVM_DEVICE=emulator:sm_80 (or another target) they go through PTX and the emulator instead.
    Raises DTYPE_MISMATCH, SHAPE_MISMATCH, ARGUMENT_INVALID, FORMAT_UNSUPPORTED, TENSOR_NOT_CONTIGUOUS,
    DEVICE_MISMATCH; a backward pass through it raises GRADIENT_UNSUPPORTED.
    """
    if gate is not None or activation is not None or dtype is not None or not _plain(x, weight):
        _check_kinds(x, weight, gate, activation, dtype)
    gates = None if gate is None else list(gate.arrays.values())
    if isinstance(weight, PackedDigits):
        stored = (weight.words, weight.sums, weight.scales, weight.zeros, bias, weight.format_text, *weight.shape)
        of_x = None if x_format is None else str(x_format)
        tensors = (x, *stored[:5], residual, *(gates or ()))
        options = {"activation": activation, "dtype": dtype}
        return _dispatched(_integer_operator, tensors, (x, *stored, of_x, gates, residual), options)
    if x_format is not None:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"x_format {x_format} with a weight of {weight.format}",
            "leave it out, or quantise with act",
        )
    first = (x, weight.words, weight.scales, weight.zeros, bias)
    table, outer, outer_zeros, permutation = weight.table, weight.outer, weight.outer_zeros, weight.permutation
    arguments = (*first, weight.format_text, weight.out_features, weight.in_features)
    epilogue = {}
    if activation is not None or dtype is not None or batch_invariant:
        epilogue = {"activation": activation, "dtype": dtype, "batch_invariant": batch_invariant}
    optional: tuple[Any, ...] = (table, outer, outer_zeros, permutation, gates, residual)
    if optional == (None,) * 6:
        return _dispatched(_linear_operator, first, arguments, epilogue)
    rest = (table, outer, outer_zeros, permutation)
    tensors = (*first, *rest, residual, *(gates or ()))
    return _dispatched(_linear_operator, tensors, (*arguments, *rest, gates, residual), epilogue)


def _dispatched(
    call: Any, tensors: Sequence[torch.Tensor | None], arguments: tuple[Any, ...], options: dict[str, Any]
) -> torch.Tensor:
    """The operator's result, by torch's dispatcher."""
    result: torch.Tensor
    if torch.compiler.is_compiling() or _differentiable(tensors):
        result = call(*arguments, **options)
    else:
        with _AutoDispatchBelowAutograd():  # torch takes as long to find that out as for all the rest
            result = call(*arguments, **options)
    return result


def _differentiable(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether a backward pass may reach the operator."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _x_format(weight: Format, given: str | None) -> Format:
    """What x is rounded to before it is multiplied with a weight of integers."""
    if given is None:
        return token_format(weight)
    fmt = Format.parse(given)
    fmt = replace(fmt, digits=fmt.digits or weight.digits)
    if fmt.act is not None or (fmt.dtype, fmt.digits) != (weight.act, weight.digits):
        raise LowbitvmError("FORMAT_UNSUPPORTED", f"x in {fmt} and a weight of {weight}", f"use codes of {weight.act}")
    return fmt


def _plain(x: torch.Tensor, weight: Weight) -> bool:
    """Whether `_check_kinds` would find nothing, as it does mostly; in a third of the time."""
    return isinstance(x, torch.Tensor) and type(weight) is PackedWeight and isinstance(weight.words, torch.Tensor)


def _check_kinds(
    x: torch.Tensor,
    weight: Weight,
    gate: Weight | None,
    activation: str | None,
    dtype: torch.dtype | None,
) -> None:
    """Checks what the operator does not see, or could not be called with; `_check` does the rest."""
    if not isinstance(x, torch.Tensor):
        raise LowbitvmError("ARGUMENT_INVALID", f"x is a {type(x).__name__}", "pass a torch tensor")
    for name, value in (("weight", weight), *([] if gate is None else [("gate", gate)])):
        if not isinstance(value, PackedWeight | PackedDigits) or getattr(value, "is_weight", True) is False:
            raise LowbitvmError(
                "ARGUMENT_INVALID",
                f"the {name} is a {type(value).__name__}",
                "pass what lb.pack or lb.quantize returns",
            )
        if not dtypes.is_tensor(value.words):
            raise LowbitvmError("DEVICE_MISMATCH", f"the {name} holds numpy arrays", "pack torch tensors")
        if value.scales is None:
            raise LowbitvmError(
                "ARGUMENT_INVALID", f"the {name} has no scales", "pack it with scales, or use lb.matmul"
            )
    if gate is not None and (gate.format, gate.shape) != (weight.format, weight.shape):
        raise LowbitvmError(
            "SHAPE_MISMATCH" if gate.format == weight.format else "FORMAT_UNSUPPORTED",
            f"the gate is {gate.format} of shape {gate.shape}, the weight {weight.format} of shape {weight.shape}",
            "pack both alike",
        )
    if activation not in ACTIVATIONS:
        raise LowbitvmError(
            "ARGUMENT_INVALID", f"there is no activation function {activation!r}", f"use one of {list(ACTIVATIONS)}"
        )
    if dtype not in (None, *OUTPUTS):
        raise LowbitvmError("DTYPE_MISMATCH", f"the result is {dtype}", "use float16, bfloat16 or float32")


def _check(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None,
    gate: Weight | None,
    residual: torch.Tensor | None,
) -> None:
    out_features, in_features = weight.shape
    if x.dtype not in (torch.float16, torch.bfloat16):
        raise LowbitvmError("DTYPE_MISMATCH", f"x is {x.dtype}", "cast it to float16 or bfloat16")
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise LowbitvmError(
            "SHAPE_MISMATCH",
            f"x has shape {tuple(x.shape)}, the weight {in_features} in_features",
            "make the last dimension of x equal in_features",
        )
    if bias is not None and (bias.shape != (out_features,) or bias.dtype != x.dtype):
        raise LowbitvmError(
            "SHAPE_MISMATCH" if bias.dtype == x.dtype else "DTYPE_MISMATCH",
            f"bias is {bias.dtype} of shape {tuple(bias.shape)}, x is {x.dtype}, out_features {out_features}",
            "pass a bias (out_features) in the dtype of x",
        )
    shape = (*x.shape[:-1], out_features)
    if residual is not None and residual.shape != shape:
        raise LowbitvmError(
            "SHAPE_MISMATCH", f"the residual has shape {tuple(residual.shape)}, the result {shape}", "make both equal"
        )
    if residual is not None and residual.dtype not in OUTPUTS:
        raise LowbitvmError("DTYPE_MISMATCH", f"the residual is {residual.dtype}", "use float16, bfloat16 or float32")
    tensors = {"x": x, "bias": bias, "residual": residual, **weight.arrays}
    tensors |= {} if gate is None else {f"gate {name}": tensor for name, tensor in gate.arrays.items()}
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    devices = {str(tensor.device) for tensor in present.values()}
    if len(devices) > 1:
        raise LowbitvmError(
            "DEVICE_MISMATCH", f"tensors on {sorted(devices)}", "move all to one device with .to(device)"
        )
    for name, tensor in present.items():
        if not tensor.is_contiguous():
            raise LowbitvmError(
                "TENSOR_NOT_CONTIGUOUS", f"{name} has strides {tensor.stride()}", "call .contiguous() on it"
            )


def _linear(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    fmt: str,
    out_features: int,
    in_features: int,
    table: torch.Tensor | None = None,
    outer: torch.Tensor | None = None,
    outer_zeros: torch.Tensor | None = None,
    permutation: torch.Tensor | None = None,
    gate: list[torch.Tensor] | None = None,
    residual: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
) -> torch.Tensor:
    """The operator on CPU and CUDA tensors alike; the gate's tensors are the arrays that its format has, in order."""
    tensors = (x, words, scales, zeros, bias, table, outer, outer_zeros, permutation, residual, *(gate or ()))
    key = (
        *(fmt, out_features, in_features, activation, dtype, batch_invariant, tuned.state()),
        *signature(tensors),
    )
    found: list[torch.Tensor] | None = _linear_calls.again(key, tensors)
    if found is not None:
        return found[0]
    stored = (words, scales, zeros, Format.parse(fmt), out_features, in_features)
    weight = PackedWeight(*stored, table, outer, outer_zeros, permutation)
    gates = _gate(weight, gate)
    _check(x, weight, bias, gates, residual)
    options: dict[str, Any] = {"gate": gates, "activation": activation, "batch_invariant": batch_invariant}
    call = functools.partial(_computed, x, weight, bias, residual, x.dtype if dtype is None else dtype, **options)
    if permutation is not None and gate:  # two permutations are compared by value
        return call()
    y: torch.Tensor = _linear_calls.first(key, tensors, call, lambda y: [y])
    return y


_linear_calls, _integer_calls = Calls(), Calls()


def _computed(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    gate: PackedWeight | None,
    activation: str | None,
    batch_invariant: bool,
) -> torch.Tensor:
    """The result of arguments that fit each other."""
    target = driver.device_target(x.device.index) if x.is_cuda else emulated_target()
    if target is None:
        return _reference(x, weight, bias, gate, activation, residual, dtype)
    y = x.new_empty((*x.shape[:-1], weight.out_features), dtype=dtype)
    rows = math.prod(x.shape[:-1])
    run_linear(
        x.view(rows, weight.in_features),
        weight,
        bias,
        y.view(rows, weight.out_features),
        target,
        gate=gate,
        activation=activation,
        residual=None if residual is None else residual.view(rows, weight.out_features),
        batch_invariant=batch_invariant,
    )
    return y


def _gate(weight: AnyWeight, tensors: list[torch.Tensor] | None) -> AnyWeight | None:
    """The second weight, of the arrays that the first one has, in order."""
    if tensors is None:
        return None
    arrays: dict[str, Any] = dict(zip(weight.arrays, tensors, strict=True))
    return replace(weight, **arrays)


def _integer_linear(
    x: torch.Tensor,
    words: torch.Tensor,
    sums: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    fmt: str,
    out_features: int,
    in_features: int,
    x_format: str | None = None,
    gate: list[torch.Tensor] | None = None,
    residual: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The operator of weights that are multiplied with integers, on CPU and CUDA tensors alike."""
    tensors = (x, words, sums, scales, zeros, bias, residual, *(gate or ()))
    key = (fmt, out_features, in_features, x_format, activation, dtype, *signature(tensors))
    found: list[torch.Tensor] | None = _integer_calls.again(key, tensors)
    if found is not None:
        return found[0]
    weight = PackedDigits(words, sums, Format.parse(fmt), out_features, in_features, scales, zeros)
    gates = _gate(weight, gate)
    _check(x, weight, bias, gates, residual)

    def computed() -> torch.Tensor:
        rows = math.prod(x.shape[:-1])
        fmt_x = _x_format(weight.format, x_format)
        groups = [fmt.group for fmt in (weight.format, fmt_x) if isinstance(fmt.group, int)]
        codes = quantize_activations(x.view(rows, in_features), fmt_x, sums=min(groups, default=None))
        y: torch.Tensor = matmul(
            codes,
            weight,
            x.dtype if dtype is None else dtype,
            bias=bias,
            gate=gates,
            activation=activation,
            residual=None if residual is None else residual.view(rows, out_features),
        )
        return y.view(*x.shape[:-1], out_features)

    y: torch.Tensor = _integer_calls.first(key, tensors, computed, lambda y: [y])
    return y


def _integer_linear_fake(
    x: torch.Tensor,
    words: torch.Tensor,
    sums: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bias: torch.Tensor | None,
    fmt: str,
    out_features: int,
    in_features: int,
    x_format: str | None = None,
    gate: list[torch.Tensor] | None = None,
    residual: torch.Tensor | None = None,
    *,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """What torch.compile traces instead."""
    weight = PackedDigits(words, sums, Format.parse(fmt), out_features, in_features, scales, zeros)
    _x_format(weight.format, x_format)
    _check(x, weight, bias, _gate(weight, gate), residual)
    return x.new_empty((*x.shape[:-1], out_features), dtype=dtype or x.dtype)


def _reference(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None,
    gate: PackedWeight | None,
    activation: str | None,
    residual: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The result in float64, rounded once to `dtype`."""
    exact: torch.Tensor = x.double() @ weight.dequantize().double().T
    if bias is not None:
        exact = exact + bias.double()
    function = ACTIVATIONS[activation]
    exact = function(exact) if gate is None else function(x.double() @ gate.dequantize().double().T) * exact
    if residual is not None:
        exact = exact + residual.double()
    return _rounded(exact, dtype)


def _rounded(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 to f16, bf16 or f32, to nearest even, once: torch goes by float32, which is rounded to odd here.

    Rounding to odd keeps on which side of every midpoint a number lies (Boldo and Melquiond, IEEE TC 2008).
    """
    nearest = exact.float()
    if dtype == torch.float32:
        return nearest
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
    table: torch.Tensor | None = None,
    outer: torch.Tensor | None = None,
    outer_zeros: torch.Tensor | None = None,
    permutation: torch.Tensor | None = None,
    gate: list[torch.Tensor] | None = None,
    residual: torch.Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    **epilogue: Any,
) -> torch.Tensor:
    """What torch.compile traces instead: a mistake is found then, not in the first run."""
    stored = (words, scales, zeros, Format.parse(fmt), out_features, in_features)
    weight = PackedWeight(*stored, table, outer, outer_zeros, permutation)
    _check(x, weight, bias, _gate(weight, gate), residual)
    return x.new_empty((*x.shape[:-1], out_features), dtype=dtype or x.dtype)


def _backward(context: Any, *gradients: torch.Tensor) -> None:
    raise LowbitvmError(
        "GRADIENT_UNSUPPORTED",
        "a backward pass reached lowbitvm.linear",
        "run it under torch.no_grad() or detach its result",
    )


for _name, _operator, _fake in (
    ("linear", _linear, _linear_fake),
    ("integer_linear", _integer_linear, _integer_linear_fake),
):
    _library.impl(_name, _operator, "CPU")
    _library.impl(_name, _operator, "CUDA")
    torch.library.register_fake(f"lowbitvm::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"lowbitvm::{_name}", _backward, lib=_library)
