"""The stored order inside a chunk: which bit of a lane's words is which bit of which code.

A packed tile is 16 out_features x 64 in_features. Each of its 32 lanes (lane = 4 g + q) owns 32 codes of p bits,
exactly p words, in which any permutation of the bits is allowed; it is chosen together with the decode sequence.
Code c = 8 s + 2 r + half of a lane is feature n = g + 8 (r & 1) at k = 16 s + 2 q + half + 8 (r >> 1): half `half` of
register r of the A fragment of k16 step s (PTX ISA, "Matrix fragments for mma.m16n8k16").

Codes of numbers lie in pairs, codes 2 i and 2 i + 1: bit x of a word for the first and bit x + 16 (mod 32) for the
second, so that one rotation and one mask bring both into a fragment register. Indices into codebooks are bytes
instead, with as many whole codes from bit 0 on as there fit; further bytes are put together of what these leave over.
"""

import functools
import itertools
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lowbitvm.dtypes import CodeType

LANES = 32
CODES = 32  # of a lane in one tile
PAIRS = CODES // 2  # registers of A fragments: pair 4 s + r
INDEX_BITS = 8  # of an index into a codebook's table: a byte
ROW_BYTES = 128  # of a codebook's table: all banks of shared memory
TABLE_ROOM = ROW_BYTES << INDEX_BITS  # for all tables of a block


class Run(NamedTuple):
    """Bits `bit` .. `bit + length - 1` of a pair: in `source` from bit `position`, of the second code 16 further."""

    source: int  # a word of the chunk, or bits + i for merge i
    position: int
    bit: int
    length: int


class Part(NamedTuple):
    """The bits of `mask`, in both halves of a register, of `source` rotated right by `rotation`."""

    source: int
    rotation: int
    mask: int


@dataclass(frozen=True)
class Layout:
    """Where a chunk's pairs are. A merge is a word that the decode puts together from parts of others, with
    complementary masks, so that pairs that were spread over the words can be taken out of it."""

    merges: tuple[tuple[Part, ...], ...]
    pairs: tuple[tuple[Run, ...], ...]


@dataclass(frozen=True, eq=False)
class Order:
    """The order of a chunk's bits. `positions` is int64 (32, p): bit b of code c is bit `positions[c, b] & 31` of the
    lane's word `positions[c, b] >> 5`; a permutation of 0 .. 32 p - 1, read-only."""

    positions: np.ndarray[Any, np.dtype[np.int64]]


def shape(code: CodeType) -> str:
    """What decides the order: "linear3", "e3m2" or "table4"."""
    if code.kind == "float":
        return f"e{code.exponent}m{code.mantissa}"
    return f"{'table' if code.kind == 'table' else 'linear'}{code.bits}"


@functools.cache
def order(code: CodeType) -> Order:
    """The stored order of a code type; the same for every target, activation dtype and tile."""
    positions = np.zeros((CODES, code.bits), np.int64)
    if code.kind == "table":
        for view, fields in enumerate(byte_views(code.bits)):
            for byte, field in itertools.product(range(4), fields):
                for i in range(field.length):
                    at, bit = divmod(field.place + i, code.bits)
                    positions[(4 * view + byte) * (8 // code.bits) + at, bit] = (
                        32 * field.word + 8 * byte + field.bit + i
                    )
    else:
        positions = positions_of(layouts(shape(code), code.bits), code.bits)
    positions.flags.writeable = False
    return Order(positions)


def positions_of(layout: Layout, bits: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The `Order.positions` of a layout of a whole chunk."""
    positions = np.zeros((CODES, bits), np.int64)
    for pair, runs in enumerate(layout.pairs):
        for run in runs:
            for i in range(run.length):
                for half in range(2):
                    place = _trace(layout, bits, run.source, (run.position + i + 16 * half) % 32)
                    positions[2 * pair + half, run.bit + i] = place
    return positions


class Field(NamedTuple):
    """Bits `bit` .. `bit + length - 1` of each byte of a word, which are bits `place` .. of the bytes of a view."""

    word: int
    bit: int
    place: int
    length: int


@functools.cache
def byte_views(bits: int) -> tuple[tuple[Field, ...], ...]:
    """What the registers are put together of whose bytes are the indices of codes of a codebook.

    Byte j of view v has the 8 // bits codes from number (4 v + j) (8 // bits) on. The first views are the words
    themselves; the others have the upper bits of all words' bytes, in turn.
    """
    used = 8 // bits * bits
    views: list[tuple[Field, ...]] = [(Field(word, 0, 0, used),) for word in range(bits)]
    spare = [(word, bit) for word in range(bits) for bit in range(used, 8)]
    for start in range(0, len(spare), used):
        places = enumerate(spare[start : start + used])
        runs = [list(run) for _, run in itertools.groupby(places, key=lambda item: item[1][0])]
        views.append(tuple(Field(*run[0][1], run[0][0], len(run)) for run in runs))
    return tuple(views)


def _trace(layout: Layout, bits: int, source: int, bit: int) -> int:
    """The stored bit that is bit `bit` of a word or merge."""
    while source >= bits:
        part = next(part for part in layout.merges[source - bits] if part.mask >> bit % 16 & 1)
        source, bit = part.source, (bit + part.rotation) % 32
    return 32 * source + bit


@functools.cache
def layouts(shape: str, bits: int) -> Layout:
    """The layout of a shape, from LAYOUTS.

    Its text has a merge "=" and its parts (source > rotation & mask, in hexadecimal), or a pair, in each word. The runs
    of a pair are source and position in base 32 and, where more runs follow, ":" and the length.
    """
    merges, pairs = [], []
    for word in LAYOUTS[shape].split():
        if word[0] == "=":
            parts = (re.split("[>&]", part) for part in word[1:].split("+"))
            merges.append(tuple(Part(int(s, 32), int(r, 32), int(mask, 16)) for s, r, mask in parts))
        else:
            bit, runs = 0, []
            for text in word.split("+"):
                length = int(text[3:]) if text[2:] else bits - bit
                runs.append(Run(int(text[0], 32), int(text[1], 32), bit, length))
                bit += length
            pairs.append(tuple(runs))
    return Layout(tuple(merges), tuple(pairs))


def blocks(bits: int) -> tuple[int, ...]:
    """Words per lane of each block of a tile: as many vectors of 4 as there are, then 2, then 1."""
    return (4,) * (bits // 4) + (2,) * (bits // 2 % 2) + (1,) * (bits % 2)


def word_place(bits: int, word: int) -> tuple[int, int, int]:
    """(start, width, index): word `word` of lane l is u32 number start + l * width + index of its tile.

    Blocks of [32 lanes][width words], so that the lanes' vector accesses are contiguous and free of bank conflicts.
    """
    first = start = 0
    for width in blocks(bits):
        if word < first + width:
            return start, width, word - first
        first, start = first + width, start + LANES * width
    raise IndexError(f"word {word} of a chunk of {bits} words")


# Written by lowbitvm.codegen.synthesis, which tests run again, and for its ANNEALED by bench/anneal.py.
LAYOUTS: dict[str, str] = {
    "linear1": "09 0a 0b 0c 0d 0e 0f 0g 0h 0i 0j 0k 05 06 0n 0o",
    "linear2": "07 09 0b 0d 0f 0h 03 05 17 19 1b 1d 1f 1h 13 15",
    "linear3": "=0>0&80+1>s&100 =2>0&80+3>2&60 0b 08 01 0e 15 04 1b 18 11 1e 2b 28 21 2e 45 24",
    "linear4": "03 07 0b 0f 13 17 1b 1f 23 27 2b 2f 33 37 3b 3f",
    "linear5": "=2>6&20+3>a&40 =0>6&20+1>a&40 =4>6&20+5>2&18+6>4&6 01 06 11 0c 1b 16 21 26 31 2c 3b 36 41 46 71 4c",
    "linear6": """
        =0>4&1818+2>0&780 =1>4&1818+6>2&7e6 =3>4&1818+5>0&780 =4>4&1818+8>2&7e6 01 09 11 19 21 2b 71 77 31 39 41
        49 51 5b 91 97""",
    "linear7": """
        =2>4&808+6>0&180 =1>4&808+5>0&8080 =0>4&808+4>0&8080 =3>4&808+7>1&4c4+8>2&2222+9>3&1111 00 08 10 18 20 28
        30 38 40 48 50 58 60 69 a0 a7""",
    "linear8": "00 08 10 18 20 28 30 38 40 48 50 58 60 68 70 78",
    "e1m1": """
        =0>1&a00a+2>8&1540+1>9&aa0 06:2+0f 08:2+0h 0a:2+0j 0c:2+0l 16:2+1f 18:2+1h 1a:2+1j 1c:2+1l 26:2+2f
        28:2+2h 2a:2+2j 2c:2+2l 36:2+3f 38:2+3h 3a:2+3j 3c:2+3l""",
    "e2m0": """
        =2>1&12c+1>5&c012+0>9&2c01 0a:2+0f 0d:2+0i 0g:2+0l 07:2+0c 1a:2+1f 1d:2+1i 1g:2+1l 17:2+1c 2a:2+2f
        2d:2+2i 2g:2+2l 27:2+2c 3a:2+3f 3d:2+3i 3g:2+3l 3j:2+3o""",
    "e1m2": """
        00:3+0b 0o:3+03 04:3+0f 0s:3+07 10:3+1b 1o:3+13 14:3+1f 1s:3+17 20:3+2b 2o:3+23 24:3+2f 2s:3+27 30:3+3b
        3o:3+33 34:3+3f 3s:3+37""",
    "e2m1": """
        00:3+0d 03:3+0c 06:3+0e 09:3+0f 10:3+1d 13:3+1c 16:3+1e 19:3+1f 20:3+2d 23:3+2c 26:3+2e 29:3+2f 30:3+3d
        33:3+3c 36:3+3e 39:3+3f""",
    "e3m0": """
        0g:3+0o 1a:2+1d:1+1j 0j:2+2c:1+2f 3k:2+3d:1+3g 2p:3+2u 2g:3+2o 0l:3+0t 3a:3+3f 0p:3+0u 3h:3+3p 1g:3+1u 3m:3+3u
        2l:3+2t 14:3+1c 17:3+1f 2j:2+0c:1+0f""",
    "e1m3": """
        00:4+0e 04:4+09 0q:4+08 41:4+0f 10:4+1e 14:4+19 1q:4+18 45:4+1f 20:4+2e 24:4+29 2q:4+28 49:4+2f 30:4+3e 34:4+39
        3q:4+38 4d:4+3f""",
    "e2m2": """
        3b 38:2+0c:2+3i 1h:4+4l 19:4+1g 0g:4+4f 0k:4+0u 3g:2+2d:2+3q 2h:4+3n 15:4+1f 46:2+1d:2+4d 3j:4+4u 49:4+4g
        29:4+2g 08:4+0f 25:4+2f 4h:4+4o""",
    "e3m1": """
        16:4+1f 1b:4+1h 0g:1+3p:1+0i:2+0p 4h:4+2k 29:4+2f 3l:4+3u 2l:4+2u 2g:4+1q 0k:4+0q 3h:4+3f 3a:4+3g 4l:4+0o
        1i:4+2t 49:4+1g 0b:4+0h 4d:4+0f""",
    "e4m0": """
        00:4+08 04:4+09 0a:4+0f 42:4+0e 10:4+18 14:4+19 1a:4+1f 46:4+1e 20:4+28 24:4+29 2a:4+2f 4a:4+2e 30:4+38 34:4+39
        3a:4+3f 4e:4+3e""",
    "e1m4": """
        =2>8&8160+1>4&1608+0>c&816 =5>8&8160+4>4&1608+3>c&816 01:5+0f 08:5+0m 11:5+1f 18:5+1m 21:5+2f 28:5+2m
        61:5+6f 68:5+6m 31:5+3f 38:5+3m 41:5+4f 48:5+4m 51:5+5f 58:5+5m 71:5+7f 78:5+7m""",
    "e2m3": """
        3c:3+0a:1+3g:1+0f 0d:2+59:1+0g:2+5f 1g:2+09:1+1j:1+0b:1+0i 2a:5+3m 5g:2+26:3+2f 2h:5+2p 04:5+0c 4a 14:5+1f
        37:5+3f 5j:5+5r 5a:1+58:1+5c:3+5i 4l:5+2g 3h:5+1p 1a:5+1i 4g:5+0j""",
    "e3m2": """
        =2>2&1818+1>4&606+0>6&8181 08:5+0f 0g:5+0n 18:5+1f 1g:5+1n 28:5+2f 2g:5+2n 68:5+6f 6g:5+6n 35:5+3f 3a:5+55
        30:5+56 45:5+4f 4a:5+5d 40:5+5e 50:5+57 58:5+5f""",
    "e4m1": """
        =1>3&834+2>b&3408+0>7&8282 09:5+0f 0h:5+0n 19:5+1f 1g:5+1m 29:5+2f 2g:5+2m 69:5+6f 6h:5+6n 30:5+3f 35:5+55
        3a:5+5c 40:5+4f 45:5+5e 4a:5+5f 50:5+56 57:5+5d""",
    "e5m0": """
        1h:3+2a:2+1p 2l:1+0c:3+2p:1+2t 1c:5+1k 2c:1+2m:1+2e:1+1l:2+1q 27:1+0i:4+2f 2g:5+2o 07:5+0f 17:2+0g:2+1b:1+0m
        4h:3+5a:2+4p 5l:1+3c:3+5p:1+5t 4c:5+4k 5c:1+5m:1+5e:1+4l:2+4q 57:1+3i:4+5f 5g:5+5o 37:5+3f 47:2+3g:2+4b:1+3m""",
    "e1m5": """
        00:6+0f 0n:6+06 0d:2+1d:2+2d:2+3d 10:6+1f 1n:6+16 20:6+2f 2n:6+26 30:6+3f 3n:6+36 4d:2+5d:2+6d:2+3e
        40:6+4f 4n:6+46 50:6+5f 5n:6+56 60:6+6f 6n:6+66""",
    "e2m4": """
        46:6+0n 1i:6+1u 4d:6+2u 2c:2+5g:2+2g:2+1g 18:6+1h 33:6+3c 08:6+0u 3d:6+2l 6g:6+0m 2i:3+39:3+1f 66:6+6f
        43:3+6c:3+4c 53:6+5f 59:6+5i 26:6+2f 0g:6+0f""",
    "e3m3": """
        0d:2+2d:4+3t 17:6+1f 0g 1i:2+4d:2+1m:1+4g:1+1t 37:6+3f 07:6+0f 27:6+6n 2h:6+3u 68:6+6f 6g:6+6u 47:6+4f 5h:6+3m
        3g:6+1l 4h:6+6m 57:6+5f 5d:2+1e:1+5g:1+1g:2+1k""",
    "e4m2": """
        2i:6+4u 1g:6+5f 18:1+16:2+1b:1+19:2+1f 09:6+0g 28:6+2f 6h:6+0f 48:6+4f 4g:6+4n 3h:4+1c:2+6f 6n:6+5n 0h:6+0o
        5h:6+5o 6d:2+2e:1+6g:1+2g:2+1u 59:6+5g 3b:6+4m 35:6+0n""",
    "e5m1": """
        5d:6+5m 19:6+1i 4g:1+67:2+4j:3+6f 36:2+0c:2+3a:2+0j 46:3+3i:3+4f 3c:6+3l 2b:6+4p 0a:1+27:3+0e:1+4e:1+4i
        6g:2+38:1+4c:1+6k:2+6p 16:3+59:3+1f 06:3+39:1+4d:1+0b:1+0f 1g:2+5l:1+1j:3+5s 5j:2+4a:2+5n:2+4h 0g:3+6j:1+0k:2+0p
        66:1+6a:5+6i 2h:6+2q""",
    "e6m0": """
        3f:6+3n 17:2+5d:1+1a:3+5j 27:3+2l:1+2b:2+2f 4d:6+4l 5g:3+0h:1+5k:2+0m 6i:6+6q 47:1+0e:1+49:4+0l 1h:6+1p
        0d:1+68:2+0g:1+6b:2+6f 2i:2+39:2+2m:1+3c:1+2q 3l:1+6d:2+3o:1+6g:2+3t 3m:1+1d:4+3r:1+3u 57:6+5f 07:6+0f
        5e:1+4k:1+0i:3+2h:1+2k 4j:1+2d:2+4m:1+2g:1+4o:1+5m""",
    "e1m6": """
        00:7+0f 08:7+0n 10:7+1f 18:7+1n 20:7+2f 28:7+2n 30:7+3f 38:7+3n 40:7+4f 48:7+4n 50:7+5f 58:7+5n 60:7+6f
        68:7+6n 70:7+7f 78:7+7n""",
    "e2m5": "08 0g 18 1g 28 2g 38 3g 48 4g 58 5g 68 6g 78 7g",
    "e3m4": "08 0g 18 1g 28 2g 38 3g 48 4g 58 5g 68 6g 78 7g",
    "e4m3": "00:7+0e 07:7+0f 10:7+1e 17:7+1f 28 2g 38 3g 48 4g 58 5g 68 6g 78 7g",
    "e5m2": """
        08:7+0f 0g:7+0n 18:7+1f 1g:7+1n 28:7+2f 2g:7+2n 38:7+3f 3g:7+3n 48:7+4f 4g:7+4n 58:7+5f 5g:7+5n 68:7+6f
        6g:7+6n 78:7+7f 7g:7+7n""",
    "e6m1": "08 0g 18 1g 28 2g 38 3g 48 4g 58 5g 68 6g 78 7g",
    "e7m0": """
        00:7+0e 07:7+0f 10:7+1e 17:7+1f 20:7+2e 27:7+2f 30:7+3e 37:7+3f 40:7+4e 47:7+4f 50:7+5e 57:7+5f 60:7+6e
        67:7+6f 70:7+7e 77:7+7f""",
}
