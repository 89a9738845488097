"""The search for a chunk's stored order and its decode sequence, together; `lowbitvm.chunk.LAYOUTS` is its result.

The halves of a word are one circle of 16 places, on which a pair of codes is an arc: a rotation of the word (SHF) moves
all arcs, and one LOP3 takes a pair out once it stands at the start of its row class. A rotation is counted once per
word however many pairs it serves, so pairs want to share rotations. Widths that do not divide 16 leave places over in
every word. LOP3s collect them in a *merge*, a word in which more pairs stand, or put pairs together one by one.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lowbitvm.chunk import Layout, Part, Run
from lowbitvm.codegen.convert import BF16_STARTS, F16_STARTS, MANTISSA, SIGN_PLACE, cost, held_by, layout_decoder
from lowbitvm.dtypes import CODE_TYPES, CodeType

CIRCLE = 16
FULL = (1 << CIRCLE) - 1
BASE_32 = "0123456789abcdefghijklmnopqrstuv"


class Spread(NamedTuple):
    """How the pairs of an integer width are spread over words and merges: `repeats` times over `words` (pairs that
    stand whole in a word, rotations of that word besides 0), one per word, and a merge with `merged` pairs."""

    repeats: int
    words: tuple[tuple[int, int], ...]
    merged: int


SPREADS = {
    1: Spread(1, ((16, 7),), 0),
    2: Spread(2, ((8, 3),), 0),
    3: Spread(1, ((5, 2),) * 3, 1),
    4: Spread(4, ((4, 1),), 0),
    5: Spread(1, ((3, 1),) * 5, 1),
    6: Spread(2, ((2, 1),) * 3, 2),
    7: Spread(1, ((2, 1),) * 7, 2),
    8: Spread(8, ((2, 1),), 0),
}
MOST_SOLUTIONS = 500  # looked at
MANY_ARCS = 9
MOST_GROUPS, MOST_VIEWS = 3, 2  # rotations of parts of a merge, and of the merge, besides 0


@dataclass(frozen=True)
class Arrangement:
    """Disjoint arcs on a circle: (row class, place) each, the rotations that bring them to their starts, and a mask of
    what they leave free."""

    arcs: tuple[tuple[int, int], ...]
    rotations: frozenset[int]
    free: int

    def row(self, row: int) -> int:
        """The number of arcs of a row class."""
        return sum(at_row == row for at_row, _ in self.arcs)


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


def arrangements(bits: int, starts: tuple[int, int], count: int, most: int) -> Iterator[Arrangement]:
    """All arrangements of `count` arcs with at most `most` rotations besides 0."""

    def place(
        lowest: int, taken: int, arcs: tuple[tuple[int, int], ...], rotations: frozenset[int]
    ) -> Iterator[Arrangement]:
        if len(rotations - {0}) > most:
            return
        if len(arcs) == count:
            yield Arrangement(arcs, rotations, FULL & ~taken)
            return
        for at in range(lowest, CIRCLE - (count - len(arcs) - 1) * bits):
            arc = rotated((1 << bits) - 1, -at)
            if not arc & taken:
                for row in (0, 1):
                    rotation = (at - starts[row]) % CIRCLE
                    yield from place(at + 1, taken | arc, (*arcs, (row, at)), rotations | {rotation})

    return place(0, 0, (), frozenset())


def _spread(spread: Spread, bits: int, starts: tuple[int, int]) -> Iterator[tuple[list[Placed], Arrangement | None]]:
    """Solutions with the fewest rotations for the merge: a placement per word, and the merge's arrangement."""
    pairs = sum(count for count, _ in spread.words) + spread.merged
    kinds = {kind: list(arrangements(bits, starts, *kind)) for kind in set(spread.words)}
    if not spread.merged:
        for found in kinds[spread.words[0]]:
            if 2 * found.row(0) == pairs:
                yield [Placed(found, 0, 0, 0)], None
        return
    merges = list(arrangements(bits, starts, spread.merged, MOST_VIEWS))
    for extra in range(MOST_GROUPS + MOST_VIEWS + 1):
        solutions = [
            (placed, merge)
            for views in range(min(extra, MOST_VIEWS) + 1)
            for groups in itertools.combinations(range(1, CIRCLE), extra - views)
            for options in [{kind: _options(found, (0, *groups)) for kind, found in kinds.items()}]
            for merge in merges
            if len(merge.rotations - {0}) == views
            for placed in [_cover(FULL & ~merge.free, spread.words, pairs // 2 - merge.row(0), options)]
            if placed is not None
        ]
        if solutions:
            yield from solutions
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
    target: int,
    words: tuple[tuple[int, int], ...],
    rows: int,
    options: dict[tuple[int, int], dict[tuple[int, int], Placed]],
) -> list[Placed] | None:
    """One placement per word so that their places make up `target` and `rows` of their pairs are of row class 0."""

    @functools.cache
    def cover(left: int, words: tuple[tuple[int, int], ...], rows: int) -> tuple[Placed, ...] | None:
        if not words:
            return () if left == 0 and rows == 0 else None
        lowest = left & -left
        for kind in sorted(set(words)):
            rest = list(words)
            rest.remove(kind)
            for (places, row), placed in usable[kind]:
                if places & lowest and not places & ~left and row <= rows:
                    others = cover(left & ~places, tuple(rest), rows - row)
                    if others is not None:
                        return (placed, *others)
        return None

    usable = {kind: [item for item in found.items() if not item[0][0] & ~target] for kind, found in options.items()}
    covered = cover(target, words, rows)
    return None if covered is None else list(covered)


def _layout(
    spread: Spread, bits: int, starts: tuple[int, int], placed: list[Placed], merge: Arrangement | None
) -> Layout:
    """The layout of a solution, its words repeated."""
    merges: list[tuple[Part, ...]] = []
    rows: tuple[list[tuple[Run, ...]], list[tuple[Run, ...]]] = ([], [])

    def lifted(rotation: int) -> int:
        """The rotation with the halves swapped, where that saves bf16 one by 16."""
        unneeded = (rotation + starts[0] - BF16_STARTS[bits][0]) % 32 == CIRCLE
        return rotation + CIRCLE * unneeded

    def put(source: int, arrangement: Arrangement) -> None:
        for row, at in arrangement.arcs:
            rotation = lifted((at - starts[row]) % CIRCLE)
            rows[row].append((Run(source, (rotation + starts[row]) % 32, 0, bits),))

    for word in range(0, bits, len(placed)):
        for i, one in enumerate(placed):
            put(word + i, one.arrangement)
        if merge is not None:
            parts = []
            for group in sorted({one.group for one in placed}):
                inside = [
                    Part(word + i, lifted(one.rotation), rotated(one.places, -group))
                    for i, one in enumerate(placed)
                    if one.group == group
                ]
                mask = sum(part.mask for part in inside)
                if group and len(inside) > 1:
                    merges.append(tuple(inside))
                    parts.append(Part(bits + len(merges) - 1, group, rotated(mask, group)))
                else:
                    parts += [
                        Part(part.source, (part.rotation + group) % 32, rotated(part.mask, group)) for part in inside
                    ]
            merges.append(tuple(parts))
            put(bits + len(merges) - 1, merge)
    return Layout(tuple(merges), tuple(runs for both in zip(*rows, strict=True) for runs in both))


def integers(bits: int) -> Layout:
    """The layout of integers: the fewest instructions for f16, then for bf16."""
    code, starts, spread = CODE_TYPES[f"u{bits}"], F16_STARTS[bits], SPREADS[bits]
    found = (_layout(spread, bits, starts, *solution) for solution in _spread(spread, bits, starts))
    return min(
        itertools.islice(found, MOST_SOLUTIONS),
        key=lambda layout: [_instructions(code, layout, act) for act in ("f16", "bf16")],
    )


def _instructions(code: CodeType, layout: Layout, act: str) -> int:
    return sum(cost(layout_decoder(code, act, layout)).values())


# How the pairs of a float width are spread over words, the alternatives that are tried: "a*" is all of pair a, "am" its
# magnitude, "as" its sign, "a0:2" its bits 0 and 1. A shorter list of words is repeated.
FLOAT_WORDS: dict[int, tuple[tuple[str, ...], ...]] = {
    3: (("a* b* c* d* e* x0:1", "f* g* h* i* j* x1:2", "k* l* m* n* o* xs"),),
    4: (("a* b* c* d*",),),
    5: (
        ("a* b* c* xs", "d* e* f* ys", "g* h* i* zs", "j* k* l* ts", "xm ym zm tm"),
        ("a* b* c* x0:1", "d* e* f* x1:2", "g* h* i* x2:3", "j* k* l* x3:4", "m* n* o* xs"),
    ),
    6: (
        ("a* cm dm", "b* em fm", "g* h* cs ds es fs"),
        ("a* b* x0:4", "c* d* x4:5 xs y4:5 ys", "e* f* y0:4"),
        ("a* b* x0:3 xs", "c* d* x3:5 y3:5", "e* f* y0:3 ys"),
    ),
    7: (("a* b* x0:2", "c* d* x2:4", "e* f* x4:6", "g* h* xs ys", "i* j* y0:2", "k* l* y2:4", "m* n* y4:6"),),
    8: (("a* b*",),),
}
F16_AIM, BF16_AIM = 48, 64  # instructions per chunk that are few enough for the other activations to come first
WEIGHTS = (0.3, 1.0)  # of instructions for bf16 against those for f16


class Item(NamedTuple):
    """Bits of a pair that stand together: an arc, and its place in a register for f16 and bf16."""

    pair: str
    bit: int
    length: int
    f16: int
    bf16: int


def _items(code: CodeType, words: str) -> list[Item]:
    """The arcs of a word of FLOAT_WORDS, magnitudes first."""
    sign = code.bits - 1
    items = []
    for word in words.split():
        pair, part = word[0], word[1:]
        ranges = {"*": [(0, sign), (sign, code.bits)], "m": [(0, sign)], "s": [(sign, code.bits)]}
        lowest, _, end = part.partition(":")
        for first, last in ranges[part] if part in ranges else [(int(lowest), int(end))]:
            places = [SIGN_PLACE if first == sign else MANTISSA[act] - code.mantissa + first for act in ("f16", "bf16")]
            items.append(Item(pair, first, last - first, *places))
    return sorted(items, key=lambda item: item.bit == sign or item.length < sign)


@functools.cache
def _circle(items: tuple[Item, ...], weights: tuple[float, float]) -> tuple[tuple[int, Item], ...]:
    """The (place, arc) of the cheapest order of arcs around a word, by branch and bound.

    The weighted cost counts rotations besides 0 and parts of pairs. Arcs for the same place of a register, such as the
    magnitudes, have a rotation each; a pair that has not been placed needs one part at least. Where a word has many
    arcs, its magnitudes stand side by side.
    """
    magnitudes = sum(item.f16 == items[0].f16 for item in items)
    pairs = {item.pair for item in items}
    alike = {pair: tuple(item[1:] for item in items if item.pair == pair) for pair in pairs}
    best: tuple[float, tuple[tuple[int, Item], ...]] = (float("inf"), ())

    def place(
        at: int, left: tuple[Item, ...], done: tuple[tuple[int, Item], ...], used: Sequence[frozenset[Any]]
    ) -> None:
        nonlocal best
        started = {item.pair for _, item in done}
        counts = [max(len(used[i]), magnitudes) + len(used[i + 2]) + len(pairs - started) for i in range(2)]
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

    def put(at: int, item: Item, left: tuple[Item, ...], done: Any, used: Sequence[frozenset[Any]]) -> None:
        rotations = [(at - item.f16) % CIRCLE, (at - item.bf16) % CIRCLE]
        views = [used[i] | {rotations[i]} for i in range(2)]
        parts = [used[i + 2] | {(item.pair, rotations[i])} for i in range(2)]
        others = tuple(other for other in left if other is not item)
        place(at + item.length, others, (*done, (at % CIRCLE, item)), (*views, *parts))

    for start in range(CIRCLE):
        zero = frozenset({0})
        put(start, items[0], items, (), (zero, zero, frozenset(), frozenset()))
    return best[1]


@functools.cache
def _halves(placed: tuple[tuple[int, Item], ...], weights: tuple[float, float]) -> list[tuple[int, Item]]:
    """The bit of each arc's first code, its place or 16 more, so that rotations equal on the circle are equal."""

    def total(ups: tuple[int, ...]) -> float:
        counts = []
        for places in ([item.f16 for _, item in placed], [item.bf16 for _, item in placed]):
            turns = [(at + up - to) % 32 for (at, _), up, to in zip(placed, ups, places, strict=True)]
            parts = {(item.pair, turn) for (_, item), turn in zip(placed, turns, strict=True)}
            counts.append(len({0, *turns}) + len(parts))
        return weights[0] * counts[0] + weights[1] * counts[1]

    best = min(itertools.product((0, CIRCLE), repeat=len(placed)), key=total)
    return [((at + up) % 32, item) for (at, item), up in zip(placed, best, strict=True)]


def floats(code: CodeType) -> Layout:
    """The layout of a float type: as few instructions as the aims ask for, then the fewest in all."""
    layouts = [_float_layout(code, words, weight) for words in FLOAT_WORDS[code.bits] for weight in WEIGHTS]
    return min(layouts, key=lambda layout: _excess(code, layout))


def _excess(code: CodeType, layout: Layout) -> tuple[int, int]:
    if not held_by(code, "f16"):
        return 0, _instructions(code, layout, "bf16")
    f16, bf16 = _instructions(code, layout, "f16"), _instructions(code, layout, "bf16")
    return max(f16 - F16_AIM, bf16 - BF16_AIM, 0), f16 + bf16


def _float_layout(code: CodeType, words: tuple[str, ...], weight: float) -> Layout:
    weights = (1.0, weight) if held_by(code, "f16") else (0.0, 1.0)
    pairs: dict[tuple[int, str], list[Run]] = {}
    for word in range(code.bits):
        items = _items(code, words[word % len(words)])
        names = {name: str(i) for i, name in enumerate(dict.fromkeys(item.pair for item in items))}
        canonical = tuple(item._replace(pair=names[item.pair]) for item in items)
        back = {i: name for name, i in names.items()}
        for position, item in _halves(_circle(canonical, weights), weights):
            run = Run(word, position, item.bit, item.length)
            pairs.setdefault((word // len(words), back[item.pair]), []).append(run)
    return Layout((), tuple(tuple(sorted(runs, key=lambda run: run.bit)) for runs in pairs.values()))


def layout(code: CodeType) -> Layout:
    """The layout that the search finds for a linear or float code type."""
    return floats(code) if code.kind == "float" else integers(code.bits)


def text(layout: Layout, bits: int) -> str:
    """A layout as `lowbitvm.chunk.LAYOUTS` writes it."""
    words = []
    for parts in layout.merges:
        words.append("=" + "+".join(f"{BASE_32[p.source]}>{BASE_32[p.rotation]}&{p.mask:x}" for p in parts))
    for runs in layout.pairs:
        lengths = [f":{run.length}" for run in runs[:-1]] + [""]
        words.append("+".join(BASE_32[r.source] + BASE_32[r.position] + n for r, n in zip(runs, lengths, strict=True)))
    return " ".join(words)
