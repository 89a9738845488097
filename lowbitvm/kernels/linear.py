"""The weight-only quantised linear layer: y = x w^T + bias."""

from lowbitvm import dsl
from lowbitvm.dsl import Packed, Tensor, kernel, packed


@kernel(x=("m k", None), w=packed("n k"), bias=("n", None), y=("m n", None))
def linear(x: Tensor, w: Packed, bias: Tensor | None, y: Tensor, *, bm: int, bn: int, bk: int, stages: int) -> None:
    """y (m, n) = x (m, k) times the dequantised w (n, k), transposed, plus bias (n); a block makes a (bm, bn) tile."""
    i, j = dsl.program_id(0), dsl.program_id(1)
    acc = dsl.zeros((bm, bn))
    for k in dsl.record_range(0, x.shape[1], bk, stages=stages):
        activations = dsl.load(x, (i * bm, k), (bm, bk))
        codes = dsl.load(w, (j * bn, k), (bn, bk))
        acc += dsl.dot(activations, dsl.dequant(codes, w.scales, w.zeros).T)
    if bias is not None:
        acc += dsl.load(bias, (j * bn,), (bn,)).to(acc.dtype)
    dsl.store(y, (i * bm, j * bn), acc.to(y.dtype))
