"""The stored order inside a chunk: which bit of a lane's words is which bit of which code.

A packed tile is 16 out_features x 64 in_features. Each of its 32 lanes (lane = 4 g + q) owns 32 codes of p bits,
exactly p words, in which any permutation of the bits is allowed; it is chosen together with the decode sequence.
Code c = 8 s + 2 r + half of a lane is feature n = g + 8 (r & 1) at k = 16 s + 2 q + half + 8 (r >> 1): half `half` of
register r of the A fragment of k16 step s (PTX ISA, "Matrix fragments for mma.m16n8k16").

Codes of numbers lie in pairs, codes 2 i and 2 i + 1: bit x of a word for the first and bit x + 16 (mod 32) for the
second, so that one rotation and one mask bring both into a fragment register. Indices into codebooks lie one after the
other instead.
"""

import functools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm.dtypes import CodeType

LANES = 32
CODES = 32  # of a lane in one tile
PAIRS = CODES // 2  # registers of A fragments: pair 4 s + r
INDEX_PLACE = 7  # bit of a word where the first index into a codebook starts: 128 bytes hold one entry for every lane


@dataclass(frozen=True)
class Run:
    """Bits `bit` .. `bit + length - 1` of a pair: in `source` from bit `position`, of the second code 16 later."""

    source: int  # a word of the chunk, or bits + i for merge i
    position: int
    bit: int
    length: int


@dataclass(frozen=True)
class Part:
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
        positions[...] = np.arange(CODES)[:, None] * code.bits + np.arange(code.bits)
        positions = (positions + INDEX_PLACE) % (CODES * code.bits)
    else:
        layout = layouts(shape(code), code.bits)
        for pair, runs in enumerate(layout.pairs):
            for run in runs:
                for i in range(run.length):
                    for half in range(2):
                        place = _trace(layout, code.bits, run.source, (run.position + i + 16 * half) % 32)
                        positions[2 * pair + half, run.bit + i] = place
    positions.flags.writeable = False
    return Order(positions)


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


# Written by lowbitvm.codegen.synthesis, which tests run again.
LAYOUTS: dict[str, str] = {
    "linear1": "0h 0g 0j 0i 05 0k 0n 06 09 0o 0b 0a 0d 0c 0f 0e",
    "linear2": "03 0h 07 05 0b 09 0f 0d 13 1h 17 15 1b 19 1f 1d",
    "linear3": "=0>0&80+1>s&100 =2>0&80+3>2&60 01 04 0b 08 11 0e 15 18 1b 1e 21 24 2b 28 45 2e",
    "linear4": "03 07 0b 0f 13 17 1b 1f 23 27 2b 2f 33 37 3b 3f",
    "linear5": "=2>0&20+3>a&40 =0>0&20+1>a&40 =4>0&20+5>2&18+6>4&6 0b 0g 11 06 1b 16 2b 2g 31 26 3b 36 4b 4g 71 46",
    "linear6": """
        =0>4&1818+2>0&780 =1>0&1818+6>2&7e6 =3>4&1818+5>0&780 =4>0&1818+8>2&7e6 01 09 21 15 71 1d 77 2b 31 39 51
        45 91 4d 97 5b""",
    "linear7": """
        =2>4&808+6>0&180 =1>4&808+5>0&8080 =0>4&808+4>0&8080 =3>0&808+7>1&4c4+8>2&2222+9>3&1111 00 08 10 18 20 28
        40 34 50 3c 60 48 a0 58 a7 69""",
    "linear8": "00 08 10 18 20 28 30 38 40 48 50 58 60 68 70 78",
    "e1m1": """
        0g:2+0q 0i:2+0r 0k:2+0t 0m:2+0f 0o:2+0u 0c:1+1a:1+2f 1g:2+1s 1i:2+1r 1k:2+1t 1m:2+1f 1o:2+1u 2g:2+2q
        2i:2+2r 2k:2+2t 2m:2+2s 2o:2+2u""",
    "e2m0": """
        0g:2+0u 0i:2+0f 0k:2+0s 0m:2+0r 0o:2+0t 0a:1+1q:1+2f 1g:2+1u 1i:2+1f 1k:2+1s 1m:2+1r 1o:2+1t 2g:2+2u
        2i:2+2q 2k:2+2s 2m:2+2r 2o:2+2t""",
    "e1m2": """
        0g:3+0n 0c:3+0j 0k:3+0r 08:3+0f 1g:3+1n 1c:3+1j 1k:3+1r 18:3+1f 2g:3+2n 2c:3+2j 2k:3+2r 28:3+2f 3g:3+3n
        3c:3+3j 3k:3+3r 38:3+3f""",
    "e2m1": """
        0g:3+0t 0j:3+0s 0m:3+0u 09:3+0f 1g:3+1t 1j:3+1s 1m:3+1u 19:3+1f 2g:3+2t 2j:3+2s 2m:3+2u 29:3+2f 3g:3+3t
        3j:3+3s 3m:3+3u 39:3+3f""",
    "e3m0": """
        0g:3+0p 0j:3+0t 0m:3+0u 0a:3+0f 1g:3+1p 1j:3+1t 1m:3+1u 1a:3+1f 2g:3+2p 2j:3+2t 2m:3+2u 2a:3+2f 3g:3+3p
        3j:3+3t 3m:3+3u 3a:3+3f""",
    "e1m3": """
        0g:4+0o 0k:4+0f 09:4+0t 4j:4+0u 1g:4+1o 1k:4+1f 19:4+1t 47:4+1u 2g:4+2o 2k:4+2f 29:4+2t 4b:4+2u 3g:4+3o
        3k:4+3f 39:4+3t 4f:4+3u""",
    "e2m2": """
        0g:4+0s 0k:4+0u 08:4+0f 4g:4+0t 1g:4+1s 1k:4+1u 18:4+1f 4k:4+1t 2g:4+2s 2k:4+2u 28:4+2f 48:4+2t 3g:4+3s
        3k:4+3u 38:4+3f 4c:4+3t""",
    "e3m1": """
        0g:4+0s 0k:4+0t 0o:4+0u 4h:4+0f 1g:4+1s 1k:4+1t 1o:4+1u 4l:4+1f 2g:4+2s 2k:4+2t 2o:4+2u 49:4+2f 3g:4+3s
        3k:4+3t 3o:4+3u 4d:4+3f""",
    "e4m0": """
        0g:4+0o 0k:4+0p 0a:4+0f 4i:4+0u 1g:4+1o 1k:4+1p 1a:4+1f 4m:4+1u 2g:4+2o 2k:4+2p 2a:4+2f 4a:4+2u 3g:4+3o
        3k:4+3p 3a:4+3f 4e:4+3u""",
    "e1m4": """
        0g:5+0f 0l:5+2q 0a:5+2r 1g:5+1f 1l:5+2t 1a:5+2f 2g:5+2s 2l:5+2u 3g:5+3f 3l:5+5q 3a:5+5r 4g:5+4f 4l:5+5t
        4a:5+5f 5g:5+5s 5l:5+5u""",
    "e2m3": """
        0g:5+0f 0l:5+2q 0a:5+2s 1g:5+1f 1l:5+2u 1a:5+2f 2g:5+2r 2l:5+2t 3g:5+3f 3l:5+5q 3a:5+5s 4g:5+4f 4l:5+5u
        4a:5+5f 5g:5+5r 5l:5+5t""",
    "e3m2": """
        0l:5+0f 0a:5+2r 0g:5+2t 1l:5+1f 1a:5+2u 1g:5+2f 2g:5+2q 2l:5+2s 3l:5+3f 3a:5+5r 3g:5+5t 4l:5+4f 4a:5+5u
        4g:5+5f 5g:5+5q 5l:5+5s""",
    "e4m1": """
        0g:5+0u 0l:4+1q:1+1s 09:5+0f 1g:5+1r 1l:5+1u 2l:4+1d:1+1f 2g:5+2u 29:5+2f 3g:5+3u 3l:4+4q:1+4s 39:5+3f
        4g:5+4r 4l:5+4u 5l:4+4d:1+4f 5g:5+5u 59:5+5f""",
    "e5m0": """
        0g:5+0f 0l:5+2r 0a:5+2s 1g:5+1f 1l:5+2u 1a:5+2f 2g:5+2q 2l:5+2t 3g:5+3f 3l:5+5r 3a:5+5s 4g:5+4f 4l:5+5u
        4a:5+5f 5g:5+5q 5l:5+5t""",
    "e1m5": """
        0g:6+0f 09:6+0m 07:2+17:2+2n:2+3u 1g:6+1f 19:6+1m 2g:6+2f 29:6+2m 3g:6+3t 36:6+3s 47:2+57:2+6n:2+3f
        4g:6+4f 49:6+4m 5g:6+5f 59:6+5m 6g:6+6f 69:6+6m""",
    "e2m4": """
        0g:6+0s 06:6+0f 0d:2+1d:2+2d:2+3t 1g:6+1s 16:6+1f 2g:6+2s 26:6+2f 3g:6+3s 36:6+3f 4d:2+5d:2+6d:2+3u
        4g:6+4s 46:6+4f 5g:6+5s 56:6+5f 6g:6+6s 66:6+6f""",
    "e3m3": """
        0g:6+0f 0m:6+0u 0c:2+1d:2+2c:2+3t 1g:6+1m 17:6+1f 2g:6+2f 2m:6+2u 3g:6+3s 3m:6+3u 4c:2+5d:2+6c:2+3f
        4g:6+4f 4m:6+4u 5g:6+5m 57:6+5f 6g:6+6f 6m:6+6u""",
    "e4m2": """
        0g:6+0u 0m:2+1m:2+2m:2+3m 08:6+0f 1g:6+1u 18:6+1f 2g:6+2u 28:6+2f 3g:6+3n 38:6+3f 4m:2+5m:2+6m:2+3u
        4g:6+4u 48:6+4f 5g:6+5u 58:6+5f 6g:6+6u 68:6+6f""",
    "e5m1": """
        0g:6+0s 0m:6+0f 0d:2+1d:2+2d:2+3t 1g:6+1s 1m:6+1f 2g:6+2s 2m:6+2f 3g:6+3s 3m:6+3f 4d:2+5d:2+6d:2+3u
        4g:6+4s 4m:6+4f 5g:6+5s 5m:6+5f 6g:6+6s 6m:6+6f""",
    "e6m0": """
        0g:6+0f 0m:6+0u 0c:2+1c:2+2s:2+3t 1g:6+1f 1m:6+1u 2g:6+2f 2m:6+2u 3g:6+3s 3m:6+3u 4c:2+5c:2+6s:2+3f
        4g:6+4f 4m:6+4u 5g:6+5f 5m:6+5u 6g:6+6f 6m:6+6u""",
    "e1m6": """
        0g:7+0u 07:7+0f 1g:7+1u 17:7+1f 2g:7+2u 27:7+2f 3g:7+3u 37:7+3f 4g:7+4u 47:7+4f 5g:7+5u 57:7+5f 6g:7+6u
        67:7+6f 7g:7+7u 77:7+7f""",
    "e2m5": """
        0g:7+0u 07:7+0f 1g:7+1u 17:7+1f 2g:7+2u 27:7+2f 3g:7+3u 37:7+3f 4g:7+4u 47:7+4f 5g:7+5u 57:7+5f 6g:7+6u
        67:7+6f 7g:7+7u 77:7+7f""",
    "e3m4": """
        0g:7+0u 07:7+0f 1g:7+1u 17:7+1f 2g:7+2u 27:7+2f 3g:7+3u 37:7+3f 4g:7+4u 47:7+4f 5g:7+5u 57:7+5f 6g:7+6u
        67:7+6f 7g:7+7u 77:7+7f""",
    "e4m3": """
        0g:7+0u 07:7+0f 1g:7+1u 17:7+1f 2g:7+2u 27:7+2f 3g:7+3u 37:7+3f 4g:7+4u 47:7+4f 5g:7+5u 57:7+5f 6g:7+6u
        67:7+6f 7g:7+7u 77:7+7f""",
    "e5m2": """
        0g:7+0n 08:7+0f 1g:7+1n 18:7+1f 2g:7+2n 28:7+2f 3g:7+3n 38:7+3f 4g:7+4n 48:7+4f 5g:7+5n 58:7+5f 6g:7+6n
        68:7+6f 7g:7+7n 78:7+7f""",
    "e6m1": """
        0g:7+0u 0n:7+0f 1g:7+1u 1n:7+1f 2g:7+2u 2n:7+2f 3g:7+3u 3n:7+3f 4g:7+4u 4n:7+4f 5g:7+5u 5n:7+5f 6g:7+6u
        6n:7+6f 7g:7+7u 7n:7+7f""",
    "e7m0": """
        0g:7+0u 0n:7+0f 1g:7+1u 1n:7+1f 2g:7+2u 2n:7+2f 3g:7+3u 3n:7+3f 4g:7+4u 4n:7+4f 5g:7+5u 5n:7+5f 6g:7+6u
        6n:7+6f 7g:7+7u 7n:7+7f""",
}
