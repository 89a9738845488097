"""Chunk layouts of floats in which magnitudes and signs stand apart, each where a rotation for others brings it too.

f16 and bf16 differ in how far the sign is from the magnitude, so that pairs that stand whole for one do not for the
other. Branch and bound finds the cheapest order of arcs around each word.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from lowbitvm.chunk import Layout, Run
from lowbitvm.codegen.convert import places
from lowbitvm.codegen.spread import CIRCLE
from lowbitvm.dtypes import CodeType

MANY_ARCS = 9

Weights = tuple[float, float]  # of instructions for f16 and for bf16
Order = tuple[tuple[int, "Item"], ...]  # places and the arcs that start there


class Item(NamedTuple):
    """Bits of a pair that stand together, an arc, and their places in a register for f16 and bf16."""

    pair: str
    bit: int
    length: int
    f16: int
    bf16: int


def layout(code: CodeType, acts: tuple[str, str], words: tuple[str, ...], weights: Weights) -> Layout:
    """The layout of words that hold the arcs in `words`: "a*" is all of pair a, "am" its magnitude, "as" its sign,
    "a0:2" its bits 0 and 1. `acts` says whose places an arc has for f16 and bf16."""
    pairs: dict[str, list[Run]] = {}
    for word, text in enumerate(words):
        items = _items(code, acts, text)
        names = {name: str(i) for i, name in enumerate(dict.fromkeys(item.pair for item in items))}
        back = {i: name for name, i in names.items()}
        canonical = tuple(item._replace(pair=names[item.pair]) for item in items)
        for position, item in _halves(_cheapest(canonical, weights), weights):
            pairs.setdefault(back[item.pair], []).append(Run(word, position, item.bit, item.length))
    return Layout((), tuple(tuple(sorted(runs, key=lambda run: run.bit)) for runs in pairs.values()))


def _items(code: CodeType, acts: tuple[str, str], words: str) -> list[Item]:
    """The arcs of a word, magnitudes first."""
    sign = code.bits - 1
    magnitudes, signs = zip(*(places(code, act)[0] for act in acts), strict=True)
    items = []
    for word in words.split():
        pair, part = word[0], word[1:]
        ranges = {"*": [(0, sign), (sign, code.bits)], "m": [(0, sign)], "s": [(sign, code.bits)]}
        lowest, _, end = part.partition(":")
        for first, last in ranges[part] if part in ranges else [(int(lowest), int(end))]:
            stands = [signs[i].place if first == sign else magnitudes[i].place + first for i in range(2)]
            items.append(Item(pair, first, last - first, *stands))
    return sorted(items, key=lambda item: item.bit == sign or item.length < sign)


@functools.cache
def _cheapest(items: tuple[Item, ...], weights: Weights) -> Order:
    """The cheapest order of arcs around a word.

    The weighted cost counts rotations besides 0 and parts of pairs. Arcs for the same place of a register, such as the
    magnitudes, have a rotation each; a pair that has not been placed needs one part at least. Where a word has many
    arcs, its magnitudes stand side by side.
    """
    alike_places = sum(item.f16 == items[0].f16 for item in items)
    pairs = {item.pair for item in items}
    alike = {pair: tuple(item[1:] for item in items if item.pair == pair) for pair in pairs}
    best: tuple[float, Order] = (float("inf"), ())

    def place(at: int, left: tuple[Item, ...], done: Order, used: Sequence[frozenset[Any]]) -> None:
        nonlocal best
        started = {item.pair for _, item in done}
        counts = [max(len(used[i]), alike_places) + len(used[i + 2]) + len(pairs - started) for i in range(2)]
        total = weights[0] * counts[0] + weights[1] * counts[1]
        if total >= best[0]:
            return
        if not left:
            best = (total, done)
        tried = set()
        for item in left:
            if len(items) > MANY_ARCS and item.length == 1 and left[0].length > 1:
                break
            kind = (item[1:], item.pair if item.pair in started else alike[item.pair])
            if kind not in tried:
                tried.add(kind)
                put(at, item, left, done, used)

    def put(at: int, item: Item, left: tuple[Item, ...], done: Order, used: Sequence[frozenset[Any]]) -> None:
        rotations = [(at - item.f16) % CIRCLE, (at - item.bf16) % CIRCLE]
        views = [used[i] | {rotations[i]} for i in range(2)]
        parts = [used[i + 2] | {(item.pair, rotations[i])} for i in range(2)]
        others = tuple(other for other in left if other is not item)
        place(at + item.length, others, (*done, (at % CIRCLE, item)), (*views, *parts))

    zero = frozenset({0})
    for start in range(CIRCLE):
        put(start, items[0], items, (), (zero, zero, frozenset(), frozenset()))
    return best[1]


@functools.cache
def _halves(order: Order, weights: Weights) -> Order:
    """The bit of each arc's first code, its place or 16 more, so that rotations equal on the circle are equal."""

    def total(ups: tuple[int, ...]) -> float:
        counts = []
        for stands in ([item.f16 for _, item in order], [item.bf16 for _, item in order]):
            turns = [(at + up - to) % 32 for (at, _), up, to in zip(order, ups, stands, strict=True)]
            parts = {(item.pair, turn) for (_, item), turn in zip(order, turns, strict=True)}
            counts.append(len({0, *turns}) + len(parts))
        return weights[0] * counts[0] + weights[1] * counts[1]

    best = min(itertools.product((0, CIRCLE), repeat=len(order)), key=total)
    return tuple(((at + up) % 32, item) for (at, item), up in zip(order, best, strict=True))
