"""Chunk layouts in which pairs stand whole in words, and in merges of what the words leave over."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lowbitvm.chunk import Layout, Part, Run
from lowbitvm.codegen.convert import Bits

CIRCLE = 16
FULL = (1 << CIRCLE) - 1
MOST_GROUPS, MOST_VIEWS = 3, 4  # rotations of parts of a merge, and of the merge, besides 0

Row = tuple[Bits, ...]  # where the bits of a pair stand in a register


class Spread(NamedTuple):
    """Per word the pairs that stand whole in it, and the pairs in a merge of what is left over."""

    words: tuple[int, ...]
    merged: int


@dataclass(frozen=True)
class Arrangement:
    """Pairs on a circle of 16 places that share none: the (row class, rotation) that brings each to its place, and a
    mask of the places that they leave free."""

    pairs: tuple[tuple[int, int], ...]
    free: int

    @property
    def rotations(self) -> frozenset[int]:
        return frozenset(rotation for _, rotation in self.pairs)

    def row(self, row: int) -> int:
        """The number of pairs of a row class."""
        return sum(of_row == row for of_row, _ in self.pairs)


@dataclass(frozen=True)
class Placed:
    """A word's free places in a merge: seen after `rotation`, then rotated by `group` too, they are `places`."""

    arrangement: Arrangement
    rotation: int
    group: int
    places: int


def rotated(mask: int, rotation: int) -> int:
    """A mask of places as seen after a rotation to the right."""
    rotation %= CIRCLE
    return (mask >> rotation | mask << (CIRCLE - rotation)) & FULL


def mask_of(row: Row) -> int:
    """The places of a pair in a register."""
    return sum(((1 << field.length) - 1) << field.place for field in row)


def arrangements(rows: tuple[Row, ...], count: int, most: int) -> list[Arrangement]:
    """All arrangements of `count` pairs with at most `most` rotations besides 0."""
    masks = [mask_of(row) for row in rows]
    found = []

    def place(first: int, taken: int, pairs: tuple[tuple[int, int], ...], rotations: frozenset[int]) -> None:
        room = len(rows) * (most + 1 - len(rotations)) + (len(rows) if rotations else 0)
        if len(rotations - {0}) > most or len(pairs) + room < count:
            return
        if len(pairs) == count:
            found.append(Arrangement(pairs, FULL & ~taken))
            return
        for i in range(first, CIRCLE * len(rows)):
            rotation, row = divmod(i, len(rows))
            mask = rotated(masks[row], -rotation)
            if not mask & taken:
                place(i + 1, taken | mask, (*pairs, (row, rotation)), rotations | {rotation})

    place(0, 0, (), frozenset())
    return found


def layouts(spread: Spread, rows: tuple[Row, ...], shift: int) -> Iterator[Layout]:
    """The layouts of a spread with the fewest rotations; sources are its words, then its merges.

    `rows` has the places for f16 of each row class, or of both alike; `shift` is how much lower bf16's are.
    """
    pairs = sum(spread.words) + spread.merged
    half = pairs // 2 if len(rows) == 2 else pairs
    found = {}
    for count in set(spread.words):
        least = (most for most in range(CIRCLE) if arrangements(rows, count, most))
        some = arrangements(rows, count, next(least, 0))
        found[count] = sorted(some, key=lambda one: -shift % CIRCLE not in one.rotations)  # first those of use to bf16
    if not spread.merged:
        for alone in found[spread.words[0]]:
            if alone.row(0) == half:
                yield _layout([Placed(alone, 0, 0, 0)], None, rows, shift)
        return
    merges = arrangements(rows, spread.merged, MOST_VIEWS)
    for extra in range(MOST_GROUPS + MOST_VIEWS + 1):
        solutions = [
            (placed, merge)
            for views in range(min(extra, MOST_VIEWS) + 1)
            if extra - views <= MOST_GROUPS
            for groups in itertools.combinations(range(1, CIRCLE), extra - views)
            for options in [{count: _options(some, (0, *groups)) for count, some in found.items()}]
            for merge in merges
            if len(merge.rotations - {0}) == views
            for placed in [_cover(FULL & ~merge.free, spread.words, half - merge.row(0), options)]
            if placed is not None
        ]
        if solutions:
            yield from (_layout(placed, merge, rows, shift) for placed, merge in solutions)
            return


def _options(found: list[Arrangement], groups: tuple[int, ...]) -> dict[tuple[int, int], Placed]:
    """What a word can give to a merge: (places in the merge, pairs of row class 0) -> the first way to do so."""
    options: dict[tuple[int, int], Placed] = {}
    for arrangement in found:
        for rotation in sorted(arrangement.rotations | {0}):
            for group in groups:
                places = rotated(arrangement.free, rotation + group)
                options.setdefault((places, arrangement.row(0)), Placed(arrangement, rotation, group, places))
    return options


def _cover(
    target: int, words: tuple[int, ...], row_0: int, options: dict[int, dict[tuple[int, int], Placed]]
) -> tuple[Placed, ...] | None:
    """One placement per word so that their places make up `target` and `row_0` of their pairs are of row class 0."""

    @functools.cache
    def cover(left: int, words: tuple[int, ...], row_0: int) -> tuple[Placed, ...] | None:
        if not words:
            return () if left == 0 and row_0 == 0 else None
        lowest = left & -left
        for count in sorted(set(words)):
            at = words.index(count)
            for (places, row), placed in usable[count]:
                if places & lowest and not places & ~left and row <= row_0:
                    others = cover(left & ~places, words[:at] + words[at + 1 :], row_0 - row)
                    if others is not None:
                        return (placed, *others)
        return None

    usable = {count: [item for item in found.items() if not item[0][0] & ~target] for count, found in options.items()}
    return cover(target, words, row_0)


def _layout(
    placed: "tuple[Placed, ...] | list[Placed]", merge: Arrangement | None, rows: tuple[Row, ...], shift: int
) -> Layout:
    merges: list[tuple[Part, ...]] = []
    by_row: list[list[tuple[Run, ...]]] = [[] for _ in rows]

    def lifted(rotation: int) -> int:
        """The rotation with the halves swapped, where that saves bf16 one by 16."""
        return rotation + CIRCLE * ((rotation + shift) % 32 == CIRCLE)

    def put(source: int, arrangement: Arrangement) -> None:
        for row, rotation in arrangement.pairs:
            runs = (Run(source, (lifted(rotation) + f.place) % 32, f.bit, f.length) for f in rows[row])
            by_row[row].append(tuple(runs))

    for word, one in enumerate(placed):
        put(word, one.arrangement)
    if merge is not None:
        parts: list[Part] = []
        for group in sorted({one.group for one in placed}):
            members = [(word, one) for word, one in enumerate(placed) if one.group == group]
            inside = tuple(Part(i, lifted(one.rotation), rotated(one.places, -group)) for i, one in members)
            places = sum(one.places for _, one in members)
            if group and len(inside) > 1:
                merges.append(inside)
                parts.append(Part(len(placed) + len(merges) - 1, group, places))
            else:
                parts += [Part(p.source, (p.rotation + group) % 32, rotated(p.mask, group)) for p in inside]
        merges.append(tuple(parts))
        put(len(placed) + len(merges) - 1, merge)
    return Layout(tuple(merges), tuple(runs for both in zip(*by_row, strict=True) for runs in both))
