"""Which tile a linear layer runs with."""

from dataclasses import dataclass

from lowbitvm.formats import Format


@dataclass(frozen=True)
class Tile:
    """One block's share: bm rows of x, bn output features, bk of k per stage; `warps` of them share out bn."""

    bm: int
    bn: int
    bk: int
    stages: int
    warps: int


def linear_tile(m: int, fmt: Format) -> Tile:
    """The tile for m rows of activations: the smallest bm of 8 to 64 that holds them.

    At bm = 64 four warps have the best ratio of multiply-adds to instructions, but the row sums of float zero points
    and the two segments of groups of 32 take registers that only eight warps leave free (`make bench` shows both).
    """
    bm = next((size for size in (8, 16, 32) if m <= size), 64)
    crowded = bm == 64 and (fmt.zero in ("float", "offset") or fmt.group == 32)
    return Tile(bm, bn=128, bk=64, stages=4, warps=8 if crowded else 4)
