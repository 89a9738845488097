"""How many blocks share out the steps of all tiles of a product, so that all of them end at the same time.

Steps of one part of k cost more than those of another. Laid end to end, tile after tile, all steps are a line of their
costs, of which each worker, a block of the grid, takes an equal piece, wherever tiles begin and end (COMET's
fine-grained scheduling). A step belongs to the worker in whose piece it begins. `lowbitvm.kernels.shares` does the same
arithmetic on the GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lowbitvm.digits import columns_per_row
from lowbitvm.formats import Format
from lowbitvm.integers import format_digits
from lowbitvm.targets import Gpu

LIMIT = 1 << 30  # of the sum of all costs, in i32 arithmetic
RESIDENT = 2  # workers of an SM, which hide each other's latencies
UNEVEN = 0.05  # of the longest finish time, that the shortest may be shorter
ROUNDED = 0.01  # of the time, by which whole steps may end later than whole tiles
PLANE_RATE = 8  # times the rate of s8, where the vendor gives none for b1: the ratio on sm_80


@dataclass(frozen=True)
class Shares:
    """tiles: of the product; steps: of a tile in each part of k, and what one of them costs; workers: blocks."""

    tiles: int
    steps: tuple[int, ...]
    costs: tuple[int, ...]
    workers: int

    @property
    def tile(self) -> int:
        """What a tile costs."""
        return sum(steps * cost for steps, cost in zip(self.steps, self.costs, strict=True))

    def first(self, worker: int) -> int:
        """Where the piece of a worker begins."""
        each, more = divmod(self.tiles * self.tile, self.workers)
        return worker * each + min(worker, more)

    def work(self, worker: int) -> int:
        """What the steps cost that begin in a worker's piece."""
        return self._before(self.first(worker + 1)) - self._before(self.first(worker))

    def _before(self, place: int) -> int:
        """The cost of all steps that begin before a place."""
        tiles, left = divmod(place, self.tile)
        total = tiles * self.tile
        for steps, cost in zip(self.steps, self.costs, strict=True):
            total += min(max(0, -(-left // cost)), steps) * cost
            left -= steps * cost
        return total

    def finish_times(self, sms: int) -> list[int]:
        """When each SM has done the work of its workers: worker w runs on SM w mod sms."""
        return [sum(self.work(worker) for worker in range(sm, self.workers, sms)) for sm in range(sms)]


def unevenness(times: Sequence[int]) -> float:
    """By how much of the last finish time the first one comes earlier."""
    return 1 - min(times) / max(times)


def in_turn(tiles: int, sms: int) -> list[int]:
    """Finish times of SMs that take whole tiles of equal cost, one after the other."""
    return [tiles // sms + (sm < tiles % sms) for sm in range(sms)]


def step_costs(
    activations: Sequence[Format], weights: Sequence[Sequence[Format]], bk: Sequence[int], gpu: Gpu
) -> tuple[int, ...]:
    """The relative time of the tensor cores for a step of each part of k; weights: [part of k][term]."""
    found = []
    for act, terms, k in zip(activations, weights, bk, strict=True):
        assert act.digits is not None
        pairs = columns_per_row(act.code, act.digits) * sum(len(format_digits(fmt).digits) for fmt in terms)
        rates = {"s8": gpu.s8, "s4": gpu.s4 or 2 * gpu.s8, "b1": gpu.b1 or PLANE_RATE * gpu.s8}
        found.append(Fraction(pairs * k, rates[act.digits]))
    return tuple(max(1, round(4 * cost / min(found))) for cost in found)


def share_out(tiles: int, steps: tuple[int, ...], costs: tuple[int, ...], gpu: Gpu) -> Shares | None:
    """The shares of a GPU's SMs, where whole tiles would leave some of them idle and shares do not end later."""
    shares = Shares(tiles, steps, costs, RESIDENT * gpu.sms)
    if tiles == 0 or tiles * shares.tile > LIMIT or tiles * shares.tile < shares.workers:
        return None
    whole = in_turn(tiles, gpu.sms)
    as_soon = max(shares.finish_times(gpu.sms)) <= (1 + ROUNDED) * max(whole) * shares.tile
    return shares if as_soon and unevenness(whole) > UNEVEN else None
