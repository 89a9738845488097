"""A kernel that chooses its own tile: softmax over rows. Run it with `python examples/autotuned.py`.

Without a GPU the model chooses for the emulated one; with `LOWBITVM_DEVICE=copy:0` GPU 0 is measured.
"""

from collections.abc import Mapping

import numpy as np

import lowbitvm as lb

LOWEST = -3.0e38


def is_too_wide(config: Mapping[str, int], sizes: Mapping[str, int], target: object) -> bool:
    """Tiles of more than twice the columns that there are need not be tried."""
    return config["bn"] >= 2 * sizes["n"]


@lb.autotune(space={"bm": [1, 4], "bn": [256, 1024, 4096]}, key=["n"], prune=is_too_wide)
@lb.kernel(x=("m n", lb.f32), y=("m n", lb.f32))
def softmax(x: lb.Tensor, y: lb.Tensor, *, bm: int, bn: int) -> None:
    row = lb.program_id(0) * bm
    largest, total = lb.full((bm,), LOWEST), lb.zeros((bm,))
    for k in lb.range(0, x.shape[1], bn):
        tile = lb.load(x, (row, k), (bm, bn), other=LOWEST)
        higher = lb.maximum(largest, lb.max(tile, axis=1))
        total *= lb.exp(largest - higher)
        total += lb.sum(lb.exp(tile - lb.expand_dims(higher, 1)), axis=1)
        largest.set(higher)
    for k in lb.range(0, x.shape[1], bn):
        tile = lb.load(x, (row, k), (bm, bn))
        lb.store(y, (row, k), lb.exp(tile - lb.expand_dims(largest, 1)) / lb.expand_dims(total, 1))


def grid(config: Mapping[str, int]) -> tuple[int, ...]:
    return (-(-config["m"] // config["bm"]),)


def exact(x: np.ndarray) -> np.ndarray:
    wide = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    return np.asarray(wide / wide.sum(axis=1, keepdims=True))


def main() -> None:
    x = np.random.default_rng(0).standard_normal((300, 1000)).astype(np.float32)
    y = np.zeros_like(x)
    with lb.tuning("tune"):  # without it: what was found before, or the first configuration
        best = softmax.best(grid, {"x": x, "y": y}, divisible={"n": 4})
    softmax(grid, {"x": x, "y": y}, divisible={"n": 4})
    error = np.abs(y / exact(x) - 1).max()
    assert error < 1e-5, error
    print(f"{best.config} of {len(softmax.configs)}: {best.time_us:.1f} us, {best.how}")
    print(f"{x.shape[0]} rows of {x.shape[1]} agree to {error:.1e}")


if __name__ == "__main__":
    main()
