"""The product with a mixed weight whose steps are shared out evenly; `lowbitvm.shares` is the model of it."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lowbitvm import dsl
from lowbitvm.dsl import Packed, Tensor, Value
from lowbitvm.dtypes import f32, i32
from lowbitvm.kernels.integer import Side, corrected
from lowbitvm.kernels.mixture import side_of, sum_of, tensor


@dataclass(frozen=True)
class Line:
    """All steps end to end, by their costs, in equal pieces: `each`, and one more for the first `more` workers."""

    each: Value
    more: Value
    tile: Value  # the cost of a tile

    def first(self, worker: Value) -> Value:
        """Where a worker's piece begins."""
        return worker * self.each + dsl.minimum(worker, self.more)

    def owner(self, place: Value) -> Value:
        """The worker in whose piece a place is."""
        return dsl.maximum(place // (self.each + 1), (place - self.more) // self.each)

    def begins(self, tile: Value, worker: Value) -> Value:
        """1 where a tile begins in a worker's piece, or after it; 0 where before."""
        return dsl.minimum(dsl.maximum(tile * self.tile - self.first(worker) + 1, 0), 1)


def shared_mixture(
    y: Tensor,
    *rest: Tensor | Packed,
    terms: tuple[int, ...],
    bm: int,
    bn: int,
    bk: tuple[int, ...],
    stages: int,
    costs: tuple[int, ...],
    workers: int,
) -> None:
    """What `lowbitvm.kernels.mixture` makes of one part of n without a branch or groups, with the same bits.

    terms: of each part of k; costs: of a step of each part of k; rest: as there, partials (i32), the exact sums of a
    tile for each term, two tiles of them for each worker: one that began before its piece, and one that began in it.
    arrivals counts for every tile the workers that have stored theirs: 0 before and after.
    """
    arrays = {parameter.array.name: parameter for parameter in rest}
    sizes = [arrays[f"a{block}"].shape[1] for block in range(len(terms))]
    steps = [(size + (k - 1)) // k for size, k in zip(sizes, bk, strict=True)]
    ends = list(itertools.accumulate(count * cost for count, cost in zip(steps, costs, strict=True)))  # in a tile
    tiles_m = (y.shape[0] + (bm - 1)) // bm
    total = tiles_m * ((y.shape[1] + (bn - 1)) // bn) * ends[-1]
    line, me = Line(total // workers, total % workers, ends[-1]), dsl.program_id(0)
    start, stop = line.first(me), line.first(me + 1)
    for tile in dsl.record_range(start // line.tile, (stop + (line.tile - 1)) // line.tile, 1):
        place = ((tile % tiles_m) * bm, (tile // tiles_m) * bn)
        totals, sides = [], []
        for block, (count, cost) in enumerate(zip(terms, costs, strict=True)):
            origin = tile * line.tile + ends[block - 1] if block else tile * line.tile
            bounds = [
                dsl.minimum(dsl.maximum((at - origin + (cost - 1)) // cost, 0), steps[block]) * bk[block]
                for at in (start, stop)
            ]
            left = side_of(arrays, f"a{block}", place[0], bm)
            weights = [side_of(arrays, f"w0_{block}_{term}", place[1], bn) for term in range(count)]
            sides += [(left, weight) for weight in weights]
            totals += _totals(left, weights, bounds, bk[block], stages)
        one, last = line.owner(tile * line.tile), line.owner(tile * line.tile + (line.tile - 1))
        with dsl.when(one == last):
            dsl.store(y, place, _finished(arrays, totals, sides).to(y.dtype))
        with dsl.when(one < last):
            sums = _joined(arrays, line, totals, tile, (one, last))
            with dsl.when(dsl.atomic_add(tensor(arrays["arrivals"]), (tile,), 1) == last - one):
                dsl.store(y, place, _finished(arrays, sums(), sides).to(y.dtype))
                dsl.store(tensor(arrays["arrivals"]), (tile,), dsl.zeros((1,), i32))


def _joined(
    arrays: Mapping[str, Tensor | Packed],
    line: Line,
    totals: Sequence[Value],
    tile: Value,
    owners: tuple[Value, Value],
) -> Callable[[], list[Value]]:
    """Stores a worker's sums of a tile; returns what records the addition of those of all its owners."""
    partials, (bm, bn) = tensor(arrays["partials"]), totals[0].shape

    def place(worker: Value, which: int) -> tuple[Value, int]:
        return ((worker * 2 + line.begins(tile, worker)) * len(totals) + which) * bm, 0

    for which, value in enumerate(totals):
        dsl.store(partials, place(dsl.program_id(0), which), value)

    def add() -> list[Value]:
        sums = [dsl.zeros((bm, bn), i32) for _ in totals]
        for worker in dsl.record_range(owners[0], owners[1] + 1, 1):
            for which, value in enumerate(sums):
                value += dsl.load(partials, place(worker, which), (bm, bn))
        return sums

    return add


def _totals(a: Side, weights: Sequence[Side], bounds: Sequence[Value], bk: int, stages: int) -> list[Value]:
    """The sums over a part of k of the products that `dot` makes, a tile for each of the weights."""
    totals = [dsl.zeros((a.rows, w.rows), i32) for w in weights]
    for k in dsl.record_range(bounds[0], bounds[1], bk, stages=stages):
        activations = dsl.load(a.codes, (a.first, k), (a.rows, bk))
        for total, w in zip(totals, weights, strict=True):
            total += dsl.dot(activations, dsl.load(w.codes, (w.first, k), (w.rows, bk)).T)
    return totals


def _finished(
    arrays: Mapping[str, Tensor | Packed], totals: Sequence[Value], sides: Sequence[tuple[Side, Side]]
) -> Value:
    """The sum of all products, corrected and scaled, from the sums of all of k."""
    floating = any(name.endswith("_scales") for name in arrays)
    found = []
    for total, (a, w) in zip(totals, sides, strict=True):
        of_a, of_w = a.numbers(), w.numbers()
        value = corrected(total, of_a, of_w, a.codes.shape[1])
        value = value.to(f32) if floating else value
        for scale in (of_a.scale, of_w.scale):
            value = value if scale is None else value * scale
        found.append(value)
    return sum_of(found)
