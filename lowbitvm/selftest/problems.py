"""What the self-test computes: each problem runs on any device, and says what its result should be."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import lowbitvm as lb
from lowbitvm import arrays, dtypes
from lowbitvm.bounds import linear_bound, linear_exact
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits
from lowbitvm.kernels.epilogue import ACTIVATIONS
from lowbitvm.pack import PackedWeight
from lowbitvm.quantize import quantize
from lowbitvm.runtime.linear import run_linear

NumpyArray = np.ndarray[Any, Any]
Arrays = Sequence[NumpyArray]

assert set(ACTIVATIONS) == {"relu", "silu", "gelu"}
FUNCTIONS: dict[str | None, Callable[[NumpyArray], NumpyArray]] = {
    None: lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "gelu": lambda v: v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2))),
}
# |f'| <= 1.13 (gelu; silu 1.1), and what exp, the division and the polynomial add, relative to |v| (dsl.exp).
SLOPE, FUNCTION_LOSS = 1.13, 2.0**-20
ROUNDING = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24}
LARGEST = {"f16": 65504.0, "bf16": 3.38e38, "f32": 3.4e38}


class NotHere(Exception):
    """A case that this machine cannot run, and why."""


@dataclass(frozen=True)
class Problem:
    """`run(target)` computes on the device that LOWBITVM_DEVICE names, for arrays of numpy's.

    expected: for each result the exact one and how far the kernel's may be from it, None for not at all. approximate:
    the kernel has an instruction of which only an error bound is published (ex2.approx), so bits may differ.
    """

    run: Callable[[str], Arrays]
    expected: Callable[[], Sequence[tuple[NumpyArray, NumpyArray | None]]]
    approximate: bool = False


@dataclass(frozen=True)
class Layer:
    """A layer of float activations (m, k) and n output features. out: dtype of the result, by default that of x."""

    fmt: str
    m: int
    n: int
    k: int
    act: str = "f16"
    out: str | None = None
    bias: bool = False
    gate: bool = False
    residual: bool = False
    activation: str | None = None
    batch_invariant: bool = False
    permuted: bool = False

    def problem(self) -> Problem:
        """With random numbers, always the same."""
        fmt, out = Format.parse(self.fmt), self.out or self.act
        x, w, gate, bias, residual, order = self._arrays(fmt)
        options: dict[str, Any] = {"activation": self.activation, "batch_invariant": self.batch_invariant}
        options |= {"gate": gate, "residual": residual}

        def run(target: str) -> Arrays:
            y = np.full((self.m, self.n), 7, dtypes.get(out).numpy)
            run_linear(x, w, bias, y, target, **options)
            return [y]

        def expected() -> Sequence[tuple[NumpyArray, NumpyArray | None]]:
            if order is None:
                return [bounded(x, w, gate, bias, residual, self.activation, out)]
            plain = [one and replace(one, permutation=None) for one in (w, gate)]
            assert plain[0] is not None
            return [bounded(x[:, order], plain[0], plain[1], bias, residual, self.activation, out)]

        return Problem(run, expected, self.activation in ("silu", "gelu"))

    def _arrays(self, fmt: Format) -> tuple[NumpyArray, PackedWeight, PackedWeight | None, Any, Any, NumpyArray | None]:
        rng, act = np.random.default_rng(self.m), dtypes.get(self.act).numpy
        order = rng.permutation(self.k).astype(np.int32) if self.permuted else None
        w, gate = (_weight(rng, fmt, self.n, self.k, order) for _ in range(2))
        x = (rng.standard_normal((self.m, self.k)) / 8).astype(act)
        bias = rng.standard_normal(self.n).astype(act) if self.bias else None
        residual = rng.standard_normal((self.m, self.n)).astype(act) if self.residual else None
        return x, w, gate if self.gate else None, bias, residual, order

    def tensors(self) -> tuple[Any, PackedWeight, Any]:
        """x, the weight and the bias as torch's; those of `problem`."""
        x, w, _, bias, _, _ = self._arrays(Format.parse(self.fmt))
        parts: dict[str, Any] = {name: arrays.tensor(array) for name, array in w.arrays.items()}
        return arrays.tensor(x), replace(w, **parts), None if bias is None else arrays.tensor(bias)


def _weight(rng: np.random.Generator, fmt: Format, n: int, k: int, order: NumpyArray | None = None) -> PackedWeight:
    """Normal numbers, rows of different sizes, some zeros; tables with entries of both signs."""
    weight = rng.standard_normal((n, k)) * np.exp2(rng.integers(-6, 3, (n, 1)))
    weight[rng.random(weight.shape) < 0.1] = 0
    if fmt.zero is None and fmt.code.kind == "uint":
        weight = np.abs(weight)
    table = None
    if fmt.table is not None:
        table = rng.standard_normal(fmt.table_shape(n, k))
        table[..., 0], table[..., -1] = -abs(table[..., 0]) - 0.1, abs(table[..., -1]) + 0.1
        table = table.astype(np.float16)
    packed = quantize(weight, fmt, table=table, permutation=order)
    assert isinstance(packed, PackedWeight)
    return packed


def bounded(
    x: NumpyArray,
    w: PackedWeight,
    gate: PackedWeight | None,
    bias: NumpyArray | None,
    residual: NumpyArray | None,
    activation: str | None,
    out: str,
) -> tuple[NumpyArray, NumpyArray]:
    """The layer of weights without a permutation in float64, and the bound of the kernel's error."""
    with np.errstate(all="ignore"):
        function = FUNCTIONS[activation]
        product, loss = linear_exact(x, w, bias), linear_bound(x, w, bias)
        inner, inner_loss = (product, loss) if gate is None else (linear_exact(x, gate), linear_bound(x, gate))
        exact, bound = function(inner), SLOPE * inner_loss + FUNCTION_LOSS * np.abs(inner)
        if gate is not None:
            bound = np.abs(exact) * loss + np.abs(product) * bound + loss * bound
            exact = exact * product
        if residual is not None:
            exact = exact + residual.astype(np.float64)
        size = np.abs(exact) + bound
        bound = bound + 2 * ROUNDING["f32"] * (np.abs(exact) + 1) + ROUNDING[out] * size + 2.0**-24
        return exact, np.where(size * (1 + ROUNDING[out]) <= LARGEST[out], bound, np.inf)


# -- integers ----------------------------------------------------------------------------------------------------------


def drawn(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NumpyArray:
    """Random codes of a type, the least and the largest among them."""
    code = CODE_TYPES[name]
    patterns = rng.integers(0, code.used or 1 << code.bits, shape)
    patterns.reshape(-1)[:2] = (0, (code.used or 1 << code.bits) - 1)
    codes: NumpyArray = patterns * code.step - code.bias
    return codes


def numbers(side: PackedDigits) -> NumpyArray:
    """What the codes stand for, but for scales: exact integers."""
    codes: NumpyArray = np.asarray(side.unpack()).astype(np.int64)
    return codes if side.zeros is None else codes - np.asarray(side.zeros)[:, None]


@dataclass(frozen=True)
class Product:
    """An exact product of codes, or with scales of every row, in f32."""

    weights: str
    act: str
    digits: str
    m: int
    n: int
    k: int
    scaled: bool = False

    def sides(self, seed: int = 0) -> tuple[PackedDigits, PackedDigits]:
        """Activations and a weight."""
        rng = np.random.default_rng(seed + self.m)
        parts: dict[str, Any] = {"group": "channel", "scale": "f32", "digits": self.digits}
        scales = [
            rng.uniform(0.5, 2, (rows, 1)).astype(np.float32) if self.scaled else None for rows in (self.m, self.n)
        ]
        a = lb.pack_activations(drawn(rng, self.act, (self.m, self.k)), Format(self.act, **parts), scales[0])
        fmt = Format(self.weights, act=self.act, **parts)
        return a, lb.pack_weights(drawn(rng, self.weights, (self.n, self.k)), fmt, scales[1])

    def problem(self) -> Problem:
        """With random codes, always the same."""
        a, w = self.sides()

        def run(target: str) -> Arrays:
            return [lb.matmul(a, w, "f32" if self.scaled else None)]

        return Problem(run, lambda: [(scaled(a, w), None)])


def scaled(a: PackedDigits, w: PackedDigits) -> NumpyArray:
    """The exact integers, or their f32 times the scales of a's rows, then of w's."""
    found: NumpyArray = numbers(a) @ numbers(w).T
    for side, axis in ((a, 1), (w, 0)):
        if side.scales is not None:
            found = found.astype(np.float32) * np.expand_dims(np.asarray(side.scales), axis)
    return found


def quantised(text: str, m: int, k: int, act: str = "f16", **how: Any) -> Problem:
    """Activations to codes; the rule of `lowbitvm.activations`, by numpy, is what the kernel follows bit for bit."""
    rng = np.random.default_rng(m)
    x = (rng.normal(size=(m, k)) * 10.0 ** rng.integers(-3, 3, (m, 1))).astype(dtypes.get(act).numpy)
    x[1::6], x[2::6, 1], x[3::6, 2] = 0, np.nan, -np.inf
    steps: dict[str, Any] = {"norm": np.ones(k, np.float16), "smoothing": np.linspace(0.5, 2, k, dtype=np.float32)}
    given = {name: steps.get(name, value) for name, value in how.items()}

    def run(target: str) -> Arrays:
        made = lb.quantize_activations(x, text, **given)
        return [np.asarray(array).view(np.uint32) for array in made.arrays.values()]

    return Problem(run, lambda: [(array, None) for array in run("")])
