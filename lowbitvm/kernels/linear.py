"""The weight-only quantised linear layer, with what may follow it in the same kernel."""

from lowbitvm import dsl
from lowbitvm.dsl import Packed, Tensor, Value, kernel, packed
from lowbitvm.dtypes import f32, i32
from lowbitvm.kernels.epilogue import finish
from lowbitvm.plan import SPLIT_K


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
    `splits` parts of it: each then stores its sums as its tile of partials, a (splits x tiles of m, tiles of n) matrix
    of tiles, and the last of a tile's blocks to arrive adds them in the order of k. arrivals counts them, one counter
    per tile of y; all counters are 0 before and after. order (k): the weights' columns are those of x[:, order].
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
    tiles_m, tiles_n = (y.shape[0] + (bm - 1)) // bm, (y.shape[1] + (bn - 1)) // bn

    def place(split: Value, which: int) -> tuple[Value, Value]:
        """Where the tile of one split's sums with one of the weights lies in `partials`."""
        return ((split * len(sums) + which) * tiles_m + i) * bm, j * bn

    for which, tile in enumerate(sums):
        dsl.store(partials, place(dsl.program_id(2), which), tile)
    with dsl.when(dsl.atomic_add(arrivals, (i * tiles_n + j,), 1) == splits - 1):
        totals = [dsl.zeros((bm, bn)) for _ in sums]
        for split in dsl.record_range(0, splits, 1):
            for which, total in enumerate(totals):
                total += dsl.load(partials, place(split, which), (bm, bn))
        finish(totals, bias, residual, y, (i * bm, j * bn), activation)
        dsl.store(arrivals, (i * tiles_n + j,), dsl.zeros((1,), i32))


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
    start: Value | int = 0
    stop = x.shape[1]
    if splits > 1:
        part = (stop + (SPLIT_K * splits - 1)) // (SPLIT_K * splits) * SPLIT_K
        start = dsl.program_id(2) * part
        stop = dsl.minimum(stop, start + part)
    for k in dsl.record_range(start, stop, bk, stages=stages, direct=direct):
        columns = k if order is None else dsl.load(order, (k,), (bk,), other=-1, evict=often)
        activations = dsl.load(x, (i * bm, columns), (bm, bk), trusted=order is not None, evict=often)
        for weight, acc in zip(weights, sums, strict=True):
            codes = dsl.load(weight, (j * bn, k), (bn, bk), evict=once)
            acc += dsl.dot(activations, dsl.dequant(codes, weight.scales, weight.zeros).T)
    return sums
