"""What may follow a product in the same kernel: bias, activation or gate, residual, and rounding to the output."""

from collections.abc import Callable

from lowbitvm import dsl
from lowbitvm.dsl import Tensor, Value


def finish(
    sums: list[Value],
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    offsets: tuple[Value, Value],
    activation: str | None,
    rounded: Callable[[Value], Value] = lambda result: result,
) -> None:
    """Stores the tile of y at `offsets`, made of the whole sums. rounded: what comes before the cast to y's dtype."""
    result, *gates = sums
    shape = result.shape
    if bias is not None:
        result += dsl.load(bias, (offsets[1],), (shape[1],)).to(result.dtype)
    function = ACTIVATIONS[activation] if activation else None
    if gates:
        result = result * (function(gates[0]) if function else gates[0])
    elif function:
        result = function(result)
    if residual is not None:
        result = result + dsl.load(residual, offsets, shape).to(result.dtype)
    dsl.store(y, offsets, rounded(result).to(y.dtype))


# -- activation functions: non-finite in, non-finite out ---------------------------------------------------------------

# Q(z) = erfc(z / sqrt 2) / 2, to 0.75e-7. Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
ERFC_P = 0.3275911
ERFC_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def _magnitude(value: Value) -> Value:
    return dsl.maximum(value, -value)


def relu(value: Value) -> Value:
    """max(v, 0) as (v + |v|) / 2, which keeps NaN."""
    return (value + _magnitude(value)) * 0.5


def silu(value: Value) -> Value:
    """v / (1 + exp(-v))."""
    return value / (dsl.exp(-value) + 1.0)


def gelu(value: Value) -> Value:
    """v * Phi(v), Phi the normal distribution, as max(v, 0) - |v| Q(|v|); to 0.75e-7 |v|."""
    size = _magnitude(value)
    t = 1.0 / (size * (ERFC_P / 2**0.5) + 1.0)
    polynomial = t * ERFC_A[4]
    for coefficient in ERFC_A[3::-1]:
        polynomial = (polynomial + coefficient) * t
    tail = polynomial * dsl.exp(value * value * -0.5) * 0.5
    return dsl.maximum(value, 0.0) - size * tail


ACTIVATIONS: dict[str, Callable[[Value], Value]] = {"relu": relu, "silu": silu, "gelu": gelu}
