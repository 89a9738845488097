"""A row reduction: softmax over rows of any length, in one pass. Run it with `python examples/softmax.py`."""

import numpy as np

import lowbitvm as lb

LOWEST = -3.0e38


@lb.kernel(x=("m n", lb.f32), y=("m n", lb.f32))
def softmax(x: lb.Tensor, y: lb.Tensor, *, bm: int, bn: int) -> None:
    row = lb.program_id(0) * bm
    largest = lb.full((bm,), LOWEST)
    total = lb.zeros((bm,))
    for k in lb.range(0, x.shape[1], bn):
        tile = lb.load(x, (row, k), (bm, bn), other=LOWEST)
        higher = lb.maximum(largest, lb.max(tile, axis=1))
        total *= lb.exp(largest - higher)  # what was summed so far, relative to the new maximum
        total += lb.sum(lb.exp(tile - lb.expand_dims(higher, 1)), axis=1)
        largest.set(higher)
    for k in lb.range(0, x.shape[1], bn):
        tile = lb.load(x, (row, k), (bm, bn))
        lb.store(y, (row, k), lb.exp(tile - lb.expand_dims(largest, 1)) / lb.expand_dims(total, 1))


def main() -> None:
    x = np.random.default_rng(0).standard_normal((37, 1000)).astype(np.float32)
    y = np.zeros_like(x)
    kernel = softmax.compile(target="sm_80", bm=16, bn=128)
    report = lb.launch(kernel, (-(-len(x) // 16),), {"x": x, "y": y})
    assert report is not None and not report.findings
    wide = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    error = np.abs(y / (wide / wide.sum(axis=1, keepdims=True)) - 1).max()
    assert error < 1e-5, error
    print(f"{x.shape[0]} rows of {x.shape[1]} agree to {error:.1e}; {kernel.registers} registers")


if __name__ == "__main__":
    main()
