"""How several blocks share out the k of one tile: each stores its sums, and the last to arrive adds them in order."""

from collections.abc import Iterator
from contextlib import contextmanager

from lowbitvm import dsl
from lowbitvm.dsl import Tensor, Value
from lowbitvm.dtypes import i32


def part_of_k(k: Value, splits: int, multiple: int) -> tuple[Value | int, Value]:
    """(start, stop) of the block's part of k, of `splits` along axis 2 of the grid; starts are at multiples."""
    if splits == 1:
        return 0, k
    part = (k + (multiple * splits - 1)) // (multiple * splits) * multiple
    start = dsl.program_id(2) * part
    return start, dsl.minimum(k, start + part)


@contextmanager
def last_of(
    sums: list[Value], partials: Tensor, arrivals: Tensor, y: Tensor, block: tuple[Value, Value], splits: int
) -> Iterator[list[Value]]:
    """Stores the block's sums over its part of k; in the body, which the last of a tile's blocks runs, the whole sums.

    partials is a (splits x tiles of m, tiles of n) matrix of tiles, which are added in the order of k. arrivals counts
    the blocks of each tile of y, tile by tile; all counters are 0 before and after.
    """
    (i, j), (bm, bn) = block, sums[0].shape
    tiles_m, tiles_n = (y.shape[0] + (bm - 1)) // bm, (y.shape[1] + (bn - 1)) // bn

    def place(split: Value, which: int) -> tuple[Value, Value]:
        """Where the tile of one split's sums with one of the weights lies in `partials`."""
        return ((split * len(sums) + which) * tiles_m + i) * bm, j * bn

    for which, tile in enumerate(sums):
        dsl.store(partials, place(dsl.program_id(2), which), tile)
    with dsl.when(dsl.atomic_add(arrivals, (i * tiles_n + j,), 1) == splits - 1):
        totals = [dsl.zeros((bm, bn), tile.dtype) for tile in sums]
        for split in dsl.record_range(0, splits, 1):
            for which, total in enumerate(totals):
                total += dsl.load(partials, place(split, which), (bm, bn))
        yield totals
        dsl.store(arrivals, (i * tiles_n + j,), dsl.zeros((1,), i32))
