"""Which tile a linear layer runs with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One block's share: bm rows of x, bn output features, bk of k per stage; `warps` of them share out bn."""

    bm: int
    bn: int
    bk: int
    stages: int
    warps: int


def linear_tile(m: int) -> Tile:
    """The tile for m rows of activations: the smallest bm of 8 to 64 that holds them."""
    bm = next((size for size in (8, 16, 32) if m <= size), 64)
    return Tile(bm, bn=128, bk=64, stages=4, warps=4)
