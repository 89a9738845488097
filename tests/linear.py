"""The linear kernel on both executors, and its exact result with what may follow the product, and the bound."""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

import lowbitvm as lb
from lowbitvm import dtypes
from lowbitvm.runtime.compiled import launch_grid
from lowbitvm.runtime.linear import Variant, run_linear
from lowbitvm.selftest.problems import bounded
from lowbitvm.tile import Tile

FLOATS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}


@dataclass(frozen=True)
class Layer:
    """The arguments of `lb.linear`, as numpy arrays; `out` is the dtype of the result."""

    x: np.ndarray
    w: lb.PackedWeight
    gate: lb.PackedWeight | None = None
    bias: np.ndarray | None = None
    residual: np.ndarray | None = None
    activation: str | None = None
    out: str = "f16"

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.w.out_features

    def emulated(self, target: str, **options: object) -> np.ndarray:
        """y as `lb.linear` plans and runs it on an emulated GPU, with all checks and without a finding."""
        y = np.full(self.shape, 7, FLOATS[self.out])
        parts = {"gate": self.gate, "residual": self.residual, "activation": self.activation}
        assert run_linear(self.x, self.w, self.bias, y, target, **parts, **options).findings == []
        return y

    def interpreted(self) -> np.ndarray:
        """y of the interpreter, with a small tile."""
        kinds = [None if array is None else dtypes.of(array).name for array in (self.bias, self.residual)]
        gated, permuted = self.gate is not None, self.w.permutation is not None
        act, tile = dtypes.of(self.x).name, Tile(16, 128, 64, 2, 4)
        variant = Variant(
            self.w.format, tile, act, self.out, kinds[0], gated, kinds[1], self.activation, False, permuted
        )
        named = {"x": self.x, "w": self.w, "gate": self.gate, "bias": self.bias, "residual": self.residual}
        named |= {"order": self.w.permutation, "y": np.full(self.shape, 7, FLOATS[self.out])}
        given = {name: value for name, value in named.items() if value is not None}
        lb.interpret(variant.program(), launch_grid(self.shape, (tile.bm, tile.bn)), given)
        return given["y"]

    def ordered(self) -> "Layer":
        """The same without a permutation: the columns of x stand in the order of the weights'."""
        if self.w.permutation is None:
            return self
        gate = self.gate and replace(self.gate, permutation=None)
        return replace(self, x=self.x[:, self.w.permutation], w=replace(self.w, permutation=None), gate=gate)

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """(result in float64, bound of the kernel's error)."""
        return bounded(self.x, self.w, self.gate, self.bias, self.residual, self.activation, self.out)
