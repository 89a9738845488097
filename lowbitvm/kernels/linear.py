"""The weight-only quantised linear layer, with what may follow it in the same kernel."""

from lowbitvm import dsl
from lowbitvm.dsl import Packed, Tensor, Value, kernel, packed
from lowbitvm.dtypes import f32, i32
from lowbitvm.kernels.epilogue import finish
from lowbitvm.kernels.split import last_of, part_of_k
from lowbitvm.tile import SPLIT_K


@kernel(
    x=("m k", None), w=packed("n k"), y=("m n", None), gate=packed("n k"), bias=("n", None), residual=("m n", None),
    partials=("rows columns", f32), arrivals=("tiles", i32), order=("k", i32),
)  # fmt: skip
def linear(
    x: Tensor,
    w: Packed,
    y: Tensor,
    gate: Packed | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    partials: Tensor | None = None,
    arrivals: Tensor | None = None,
    order: Tensor | None = None,
    *,
    bm: int,
    bn: int,
    bk: int,
    stages: int,
    splits: int = 1,
    direct: int = 0,
    activation: str | None = None,
    l2_hints: bool = False,
) -> None:
    """y (m, n) = f(x w^T + bias) + residual, or f(x gate^T) * (x w^T + bias) + residual with a gate; f: `activation`.

    x is (m, k), w and gate are packed (n, k), bias is (n). A block makes a (bm, bn) tile over all of k, or over one of
    `splits` parts of it, whose sums `lowbitvm.kernels.split` adds up in the order of k, through partials and arrivals.
    order (k): the weights' columns are those of x[:, order].
    l2_hints: the L2 cache keeps x, which all blocks read, rather than the weights, which one row of blocks does.
    """
    i, j = dsl.program_id(0), dsl.program_id(1)
    weights = [w] if gate is None else [w, gate]
    sums = _products(
        x, order, weights, (i, j), bm=bm, bn=bn, bk=bk, stages=stages, splits=splits, direct=direct, l2_hints=l2_hints
    )
    if partials is None or arrivals is None:
        finish(sums, bias, residual, y, (i * bm, j * bn), activation)
        return
    with last_of(sums, partials, arrivals, y, (i, j), splits) as totals:
        finish(totals, bias, residual, y, (i * bm, j * bn), activation)


def _products(
    x: Tensor,
    order: Tensor | None,
    weights: list[Packed],
    block: tuple[Value, Value],
    *,
    bm: int,
    bn: int,
    bk: int,
    stages: int,
    splits: int,
    direct: int,
    l2_hints: bool,
) -> list[Value]:
    """The block's sums over its part of k, one (bm, bn) tile for each of the weights."""
    i, j = block
    sums = [dsl.zeros((bm, bn)) for _ in weights]
    often, once = ("last", "first") if l2_hints else (None, None)
    start, stop = part_of_k(x.shape[1], splits, SPLIT_K)
    for k in dsl.record_range(start, stop, bk, stages=stages, direct=direct):
        columns = k if order is None else dsl.load(order, (k,), (bk,), other=-1, evict=often)
        activations = dsl.load(x, (i * bm, columns), (bm, bk), trusted=order is not None, evict=often)
        for weight, acc in zip(weights, sums, strict=True):
            codes = dsl.load(weight, (j * bn, k), (bn, bk), evict=once)
            acc += dsl.dot(activations, dsl.dequant(codes, weight.scales, weight.zeros).T)
    return sums
