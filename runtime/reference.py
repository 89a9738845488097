"""Products of integer codes, and what may follow them, by numpy: in the kernel's order of operations.

So the results have the kernel's bits, but for silu and gelu: here they are rounded once, the kernel computes them in
f32 (`lowbitvm.kernels.epilogue`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm import arrays
from lowbitvm.dtypes import Array
from lowbitvm.integers import PackedDigits

NumpyArray = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class After:
    """What follows a product in its kernel; see `lowbitvm.runtime.integer.matmul`."""

    bias: Array | None = None
    gate: PackedDigits | None = None
    activation: str | None = None
    residual: Array | None = None


NOTHING = After()


def numpy_product(a: PackedDigits, w: PackedDigits, after: After = NOTHING) -> NumpyArray:
    """The product with what follows it, before the output is rounded: f32, or i64 where neither side has scales."""
    result, *gates = (_scaled(a, weight) for weight in (w, after.gate) if weight is not None)
    if after.bias is not None:
        result = result + arrays.host(after.bias).astype(result.dtype)
    function = ACTIVATIONS[after.activation]
    result = result * function(gates[0]) if gates else function(result)
    if after.residual is not None:
        result = result + arrays.host(after.residual).astype(result.dtype)
    return result


def _scaled(a: PackedDigits, w: PackedDigits) -> NumpyArray:
    """The exact integers, or their f32 times the scales of rows, then columns."""
    product: NumpyArray = (_numbers(a) @ _numbers(w).T).astype(np.int64)  # integers below 2^53
    for side, axis in ((a, 1), (w, 0)):
        if side.scales is not None:
            product = np.float32(product) * np.expand_dims(arrays.host(side.scales), axis)
    return product


def _numbers(side: PackedDigits) -> NumpyArray:
    """The codes, less their zeros."""
    codes = np.asarray(arrays.host(side.unpack()), np.float64)
    return codes if side.zeros is None else codes - arrays.host(side.zeros)[:, None]


# -- activation functions ----------------------------------------------------------------------------------------------


def _relu(value: NumpyArray) -> NumpyArray:
    return (value + np.abs(value)) * np.float32(0.5)


def _once(function: Callable[[float], float]) -> Callable[[NumpyArray], NumpyArray]:
    """A function of every number, rounded once."""

    def apply(value: NumpyArray) -> NumpyArray:
        wide = value.astype(np.float64)
        return np.asarray(wide * np.vectorize(function, otypes=[np.float64])(wide), np.float32)

    return apply


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


ACTIVATIONS: dict[str | None, Callable[[NumpyArray], NumpyArray]] = {
    None: lambda value: value,
    "relu": _relu,
    "silu": _once(_logistic),
    "gelu": _once(lambda value: math.erfc(-value / math.sqrt(2)) / 2),
}
