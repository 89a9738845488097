"""The search for a chunk's stored order and its decode sequence, together; `lowbitvm.chunk.LAYOUTS` is its result.

The halves of a word are one circle of 16 places: a rotation of the word, a SHF, moves all that stands on it, and one
LOP3 takes a pair out once that stands at its place. A rotation is counted once per word however many pairs it serves,
so pairs want to share rotations. Widths that do not divide 16 leave places over in every word: LOP3s collect them in a
*merge*, a word in which more pairs stand, or put pairs together one by one.

A chunk consists of components of a few words each. Every component is tried in the ways of the tables below.
"""

import itertools
from collections.abc import Iterator, Sequence

from lowbitvm.chunk import CODES, Layout, Part, Run
from lowbitvm.codegen import circle, spread
from lowbitvm.codegen.convert import cost, held_by, layout_decoder, places
from lowbitvm.codegen.spread import CIRCLE, Spread
from lowbitvm.dtypes import CodeType

BASE_32 = "0123456789abcdefghijklmnopqrstuv"
INTEGER_SPREADS: dict[int, Spread] = {
    1: Spread((16,), 0),
    2: Spread((8,), 0),
    3: Spread((5,) * 3, 1),
    4: Spread((4,), 0),
    5: Spread((3,) * 5, 1),
    6: Spread((2,) * 3, 2),
    7: Spread((2,) * 7, 2),
    8: Spread((2,), 0),
}
FLOAT_SPREADS: dict[int, Spread] = {3: Spread((4,) * 3, 4), 6: Spread((2,) * 3, 2), 8: Spread((2,), 0)}
FLOAT_CIRCLES: dict[int, tuple[tuple[str, ...], ...]] = {  # the words of a component, see circle.layout
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
BYTES = ("b0 b1 b2 b3 b4 b5 b6 bs a0 a1 a2 a3 a4 a5 a6 as",)  # one mask keeps the signs of a word of floats of 8 bits
# shapes whose layouts bench/anneal.py has found
ANNEALED = {"e2m2", "e2m3", "e2m4", "e3m0", "e3m1", "e3m3", "e4m2", "e5m0", "e5m1", "e6m0"}
WEIGHTS = (0.3, 1.0)  # of an instruction for bf16, if one for f16 counts 1
MOST_SOLUTIONS = 500  # of a spread that are compared
F16_AIMS = {8: 46}  # by bits, instructions per chunk of floats that are few enough for bf16 to come first
F16_AIM = 48  # of other bits


def layout(code: CodeType) -> Layout:
    """The layout of a linear or float code type: the fewest instructions for f16, then for bf16.

    Floats that need no more than the aim for f16 are as good as each other there.
    """
    repeats, ways = len(_first_words(code)), list(_components(code))
    count = code.bits // repeats
    chunks = (joined(parts, repeats) for parts in itertools.combinations_with_replacement(ways, count))
    return min(chunks, key=lambda layout: _rank(code, layout))


def _first_words(code: CodeType) -> Sequence[object]:
    """The words of a component, of which a chunk has as many as fit."""
    return FLOAT_CIRCLES[code.bits][0] if code.kind == "float" else INTEGER_SPREADS[code.bits].words


def _components(code: CodeType) -> Iterator[Layout]:
    """The best component of every way to make one."""
    acts = ("f16", "bf16") if held_by(code, "f16") else ("bf16", "bf16")
    f16, bf16 = (places(code, act) for act in acts)
    shift = f16[0][0].place - bf16[0][0].place
    rows = f16 if code.is_linear else f16[:1]
    wanted = (INTEGER_SPREADS if code.is_linear else FLOAT_SPREADS).get(code.bits)
    if wanted is not None:
        found = itertools.islice(spread.layouts(wanted, rows, shift), MOST_SOLUTIONS)
        best = min(found, key=lambda one: _rank(code, one, len(wanted.words)), default=None)
        if best is not None:
            yield best
    if code.kind == "float":
        for words in FLOAT_CIRCLES[code.bits]:
            yield from dict.fromkeys(circle.layout(code, acts, words, (1.0, weight)) for weight in WEIGHTS)
        if code.bits == 8:
            yield placed(code, [word.split() for word in BYTES])


def _rank(code: CodeType, layout: Layout, words: int | None = None) -> tuple[int, int, int]:
    """What is less for a better layout, of a chunk or of a component of `words` words."""
    f16 = _instructions(code, layout, "f16", words) if held_by(code, "f16") else 0
    enough = 0 if code.is_linear else F16_AIMS.get(code.bits, F16_AIM) * 2 * len(layout.pairs) // CODES
    return max(f16, enough), _instructions(code, layout, "bf16", words), f16


def _instructions(code: CodeType, layout: Layout, act: str, words: int | None) -> int:
    return sum(cost(layout_decoder(code, act, layout), words).values())


def joined(parts: Sequence[Layout], words: int) -> Layout:
    """Components of `words` words each as one layout: their words first, then their merges."""
    total = words * len(parts)
    merges: list[tuple[Part, ...]] = []
    pairs: list[tuple[Run, ...]] = []
    for i, part in enumerate(parts):

        def moved(source: int, first_word: int = i * words, first_merge: int = total + len(merges)) -> int:
            return source + first_word if source < words else source - words + first_merge

        pairs += [tuple(run._replace(source=moved(run.source)) for run in runs) for runs in part.pairs]
        merges += [tuple(p._replace(source=moved(p.source)) for p in merged) for merged in part.merges]
    return Layout(tuple(merges), tuple(pairs))


def placed(code: CodeType, words: Sequence[Sequence[str]]) -> Layout:
    """The layout of a float whose words have the 16 `words`: "c3" is bit 3 of pair c, "cs" its sign.

    Bits that one rotation brings to their places are runs; a run begins in the half of its word for which f16 and bf16
    have the fewest different rotations.
    """
    sign = code.bits - 1
    acts = ("f16", "bf16") if held_by(code, "f16") else ("bf16", "bf16")
    (f16, top), (bf16, _) = (places(code, act)[0] for act in acts)
    shift = f16.place - bf16.place
    pairs: dict[str, list[Run]] = {}
    for number, word in enumerate(words):
        parts: dict[tuple[str, int], list[int]] = {}  # by pair and rotation for f16: bits
        for position, name in enumerate(word):
            pair, bit = name[0], sign if name[1] == "s" else int(name[1])
            place = top.place if bit == sign else f16.place + bit
            parts.setdefault((pair, (position - place) % CIRCLE), []).append(bit)

        def rotations(ups: tuple[int, ...], parts: dict[tuple[str, int], list[int]] = parts) -> int:
            turned = [(turn + up, bits) for ((_, turn), bits), up in zip(parts.items(), ups, strict=True)]
            moved = [{turn + (bit != sign) * down for turn, bits in turned for bit in bits} for down in (0, shift)]
            return sum(len({turn % 32 for turn in turns} - {0}) for turns in moved)

        ups = min(itertools.product((0, CIRCLE), repeat=len(parts)), key=rotations)
        for ((pair, turn), bits), up in zip(parts.items(), ups, strict=True):
            for bit in sorted(bits):
                position = ((top.place if bit == sign else f16.place + bit) + turn + up) % 32
                pairs.setdefault(pair, []).append(Run(number, position, bit, 1))
    return Layout((), tuple(_runs(sorted(runs, key=lambda run: run.bit)) for _, runs in sorted(pairs.items())))


def _runs(bits: list[Run]) -> tuple[Run, ...]:
    """Runs of one bit each, with those joined that follow each other in their word."""
    joined: list[Run] = []
    for run in bits:
        last = joined[-1] if joined else None
        if last and run.source == last.source and run.position == (last.position + last.length) % 32:
            joined[-1] = last._replace(length=last.length + 1)
        else:
            joined.append(run)
    return tuple(joined)


def text(layout: Layout) -> str:
    """A layout as `lowbitvm.chunk.LAYOUTS` writes it."""
    words = []
    for parts in layout.merges:
        words.append("=" + "+".join(f"{BASE_32[p.source]}>{BASE_32[p.rotation]}&{p.mask:x}" for p in parts))
    for runs in layout.pairs:
        lengths = [f":{run.length}" for run in runs[:-1]] + [""]
        words.append("+".join(BASE_32[r.source] + BASE_32[r.position] + n for r, n in zip(runs, lengths, strict=True)))
    return " ".join(words)
