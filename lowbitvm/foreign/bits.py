"""Packings as rearrangements of bit axes: one description that unpacks when applied and packs when inverted.

Bits are a dimension: a matrix of p-bit codes is an array of bits with the axes (n, k, b), and the words that a
checkpoint stores are an array of bits as well. A packing says in which order the axes lie in storage:

    "[s c:8 b:4] n -> n (s c) b"          # GPTQ, 4 bits: 8 codes that follow one another along k fill a word
    "k [s h:2 j:4 b:4] -> (s j h) k b"    # AWQ: the nibbles of a word are the columns 0 2 4 6 1 3 5 7

Left of the arrow stands one group for each dimension of the stored tensor, right of it one for each dimension of the
codes, and then `b`, the bits of a code. A group is one axis or several in brackets, the slowest first. The group in
square brackets is the dimension along which storage is a stream of bits: its fastest axis walks from the lowest bit of
a word to the highest and on into the next word, so that codes may straddle words. An axis is a name with its size; one
whose size is left out takes what the shapes give. `~c` is an axis that runs backwards (`~c:2`: the high nibble comes
first), and `+2` stands for 2 unused bits, which are 0: after the stream's slowest axis for those above the other bits
of its step, at the end for those below. Without square brackets nothing is packed and the elements themselves are
rearranged ("g n -> n g").
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowbitvm import dtypes
from lowbitvm.arrays import cast, permute, zeros
from lowbitvm.dtypes import Array
from lowbitvm.errors import LowbitvmError
from lowbitvm.foreign.arrays import (
    Shape,
    cast_like,
    contiguous,
    filled_up,
    shape_of,
    word_zeros,
    words_of,
)

Group = tuple[str, ...]
Sizes = dict[str, int]

_TOKEN = re.compile(r"[()\[\]]|~?[a-z]+(?::[0-9]+)?|\+[0-9]+")
_BIT, _WORD = "b", "word"


@dataclass(frozen=True)
class _Run:
    """`width` bits from bit `shift` of a block's word `word` on are the code's bits from `bit` on."""

    word: int
    shift: int
    width: int
    bit: int


class Packing:
    """The bijection that a pattern describes (see the module's text), for words of `unit` bits: 8, 16 or 32.

    `sizes` gives axes a size by name. With `trimmed`, the stream ends with the word that holds the last bit of the
    last code, instead of a whole step of its slowest axis. With `descending`, the stream walks through each word from
    its highest bit to its lowest.
    """

    def __init__(
        self, pattern: str, unit: int = 8, trimmed: bool = False, descending: bool = False, **sizes: int
    ) -> None:
        self.pattern, self.unit, self.trimmed = pattern, unit, trimmed
        self._flip = unit - 1 if descending else 0  # place ^ flip is the number of a bit in storage
        self._sizes, self._backwards = dict(sizes), set[str]()
        self._above = self._below = 0  # unused bits of each step of the stream's slowest axis
        self._stream: int | None = None  # which dimension of the stored tensor is the stream of bits
        left, right = pattern.split("->")
        self._codes, self._stored = self._parse(right), self._parse(left)
        self._axes = [axis for group in self._codes for axis in group]
        assert sorted(self._axes) == sorted(axis for group in self._stored for axis in group), pattern
        if self._stream is not None:
            assert self._codes[-1] == (_BIT,), f"{pattern} does not end in the bits of a code"
            self._split(self._stored[self._stream])

    def __repr__(self) -> str:
        return f"Packing({self.pattern!r}, unit={self.unit}, trimmed={self.trimmed})"

    def _parse(self, text: str) -> tuple[Group, ...]:
        groups: list[list[str]] = []
        inside = False
        for token in _TOKEN.findall(text):
            if token in "([":
                if token == "[":
                    self._stream = len(groups)
                groups.append([])
                inside = True
            elif token in ")]":
                inside = False
            elif token[0] == "+":
                if len(groups[-1]) == 1:
                    self._above = int(token[1:])
                else:
                    self._below = int(token[1:])
            else:
                name, _, size = token.lstrip("~").partition(":")
                self._sizes |= {name: int(size)} if size else {}
                self._backwards |= {name} if token[0] == "~" else set()
                if not inside:
                    groups.append([])
                groups[-1].append(name)
        return tuple(tuple(group) for group in groups)

    def _split(self, stream: Group) -> None:
        """Cuts the stream: the fastest axes, as few as fill whole words, are a block that the runs enumerate."""
        gap = self._above + self._below
        first = 1 if gap else len(stream) - 1
        while (self._product(stream[first:]) + gap) % self.unit:
            first -= 1
            assert first >= 0 and stream[first] in self._sizes, f"{self.pattern} fills no words of {self.unit} bits"
        self._block = stream[first:]
        self._slow = stream[:first]
        self._words = (self._product(self._block) + gap) // self.unit  # of a block
        self._looped = [axis for axis in self._block if axis != _BIT]
        self._outer_bit = _BIT not in self._block
        turned = {axis for axis in self._backwards if self._sizes[axis] > 1}
        assert turned <= {*self._block, _BIT}, f"{self.pattern}: only axes of a block run backwards"

    def _product(self, axes: Group) -> int:
        return math.prod(self._sizes[axis] for axis in axes)

    @property
    def bits(self) -> int:
        """Bits of a code that this packing holds, 0 for elements that are only rearranged."""
        return 0 if self._stream is None else self._sizes[_BIT]

    # -- shapes ----------------------------------------------------------------------------------------------------

    def code_shape(self, stored: Shape, name: str = "the tensor") -> Shape:
        """Shape of the codes in a stored tensor of this shape, padding included. Raises SHAPE_MISMATCH."""
        return self._shape_of_codes(self._solve(self._stored, stored, name))

    def stored_shape(self, codes: Shape, name: str = "the codes") -> Shape:
        """Shape of the stored tensor for codes of this shape, the last block padded. Raises SHAPE_MISMATCH."""
        shape = self._whole(self._solve(self._codes, codes, name))
        if self.trimmed:
            assert self._stream is not None
            slowest = self._stored[self._stream][0]
            [length] = [size for size, group in zip(codes, self._codes, strict=False) if slowest in group]
            shape[self._stream] = -(-length * self.bits // self.unit)
        return tuple(shape)

    def _shape_of_codes(self, sizes: Sizes) -> Shape:
        groups = self._codes if self._stream is None else self._codes[:-1]
        return tuple(math.prod(sizes[axis] for axis in group) for group in groups)

    def _whole(self, sizes: Sizes) -> list[int]:
        """Shape of the stored tensor in whole blocks."""
        shape = [math.prod(sizes[axis] for axis in group) for group in self._stored]
        if self._stream is not None:
            shape[self._stream] = math.prod(sizes[axis] for axis in self._slow) * self._words
        return shape

    def _solve(self, groups: tuple[Group, ...], shape: Shape, name: str) -> Sizes:
        """The size of every axis, given the shape of one side. The slowest axis of a stream may end half-way."""
        sizes = dict(self._sizes)
        stored = groups is self._stored
        if groups is self._codes and self._stream is not None:
            groups = groups[:-1]
        if len(shape) != len(groups):
            self._refuse(shape, name, f"{len(groups)} dimensions")
        slowest = None if self._stream is None else self._stored[self._stream][0]
        for i, (group, length) in enumerate(zip(groups, shape, strict=True)):
            is_stream = stored and i == self._stream
            axes = self._slow if is_stream else group
            step = math.prod(sizes[axis] for axis in axes if axis in sizes) * (self._words if is_stream else 1)
            unknown = [axis for axis in axes if axis not in sizes]
            assert len(unknown) <= 1, f"{self.pattern} leaves {unknown} open"
            ragged = slowest in unknown and (self.trimmed or not stored)
            count = -(-length // (step or 1)) if ragged else length // (step or 1)
            if not unknown and length != step:
                self._refuse(shape, name, f"{step} in dimension {i}")
            if unknown and not ragged and count * step != length:
                self._refuse(shape, name, f"a multiple of {step} in dimension {i}")
            sizes |= dict.fromkeys(unknown, count)
        return sizes

    def _refuse(self, shape: Shape, name: str, what: str) -> None:
        raise LowbitvmError(
            "SHAPE_MISMATCH",
            f"{name} has shape {tuple(shape)}, the packing {self.pattern!r} wants {what}",
            "pass tensors as the checkpoint has them, and check the options",
        )

    # -- applying --------------------------------------------------------------------------------------------------

    def unpack(self, stored: Array, name: str = "the tensor") -> Array:
        """The codes, u8, in a stored tensor of integers; or its elements, rearranged. Raises SHAPE_MISMATCH."""
        sizes = self._solve(self._stored, shape_of(stored), name)
        shape = self._shape_of_codes(sizes)
        if self._stream is None:
            return _rearranged(stored, self._stored, self._codes, sizes)
        words = filled_up(words_of(stored, self.unit), tuple(self._whole(sizes)))
        # walked in the order of storage and turned once at the end, which is kinder to the caches
        axes, order = self._orders()
        codes = zeros(words, tuple(sizes[axis] for axis in order), dtypes.u8)
        for point, places, runs in self._walk(words, sizes):
            values = codes[point]
            for run in runs:
                values |= cast(places[run.word] >> run.shift & (1 << run.width) - 1, dtypes.u8) << run.bit
        return contiguous(permute(codes, *(order.index(axis) for axis in axes))).reshape(shape)

    def pack(self, codes: Array, name: str = "the codes") -> Array:
        """The stored tensor: words (u8, u16, u32 in numpy; u8, i16, i32 in torch), or the elements rearranged.

        Inverse of `unpack`; padding is 0. codes: u8, below 2**bits. Raises SHAPE_MISMATCH.
        """
        sizes = self._solve(self._codes, shape_of(codes), name)
        if self._stream is None:
            return _rearranged(codes, self._codes, self._stored, sizes)
        words = word_zeros(codes, tuple(self._whole(sizes)), self.unit)
        axes, order = self._orders()
        padded = filled_up(codes, self._shape_of_codes(sizes)).reshape([sizes[axis] for axis in axes])
        padded = contiguous(permute(padded, *(axes.index(axis) for axis in order)))
        for point, places, runs in self._walk(words, sizes):
            values = padded[point]
            for run in runs:
                places[run.word] |= cast_like(values >> run.bit & (1 << run.width) - 1, words) << run.shift
        return contiguous(words[tuple(slice(0, size) for size in self.stored_shape(shape_of(codes)))])

    def _orders(self) -> tuple[list[str], list[str]]:
        """The axes of the codes as the codes have them, and with the looped ones first and the others as stored."""
        axes = [axis for axis in self._axes if axis != _BIT]
        return axes, [*self._looped, *(axis for axis in self._places if axis not in (_WORD, _BIT))]

    @cached_property
    def _places(self) -> list[str]:
        """Dimensions of the stored tensor in the terms of _walk: axes outside of a block, and the words of one."""
        names: list[str] = []
        for i, group in enumerate(self._stored):
            names += [*self._slow, _WORD] if i == self._stream else group
        return names

    def _walk(self, words: Array, sizes: Sizes) -> "Iterator[tuple[tuple[int, ...], dict[int, Array], list[_Run]]]":
        """For every point of the looped axes: the views of its words, and the runs of bits there."""
        words = words.reshape([self._words if name == _WORD else sizes[name] for name in self._places])
        for point in itertools.product(*(range(self._sizes[axis]) for axis in self._looped)):
            for bit in range(self.bits) if self._outer_bit else (0,):
                runs = self._runs(dict(zip(self._looped, point, strict=True)), bit)
                yield point, {run.word: words[self._index(run.word, bit)] for run in runs}, runs

    def _index(self, word: int, bit: int) -> tuple[int | slice, ...]:
        chosen = {_WORD: word, **({_BIT: self._step(_BIT, bit)} if self._outer_bit else {})}
        return tuple(chosen.get(name, slice(None)) for name in self._places)

    def _runs(self, point: Mapping[str, int], outer_bit: int) -> list[_Run]:
        """Where the bits of one code of a block lie: in runs of bits that stay together."""
        runs: list[_Run] = []
        for bit in [outer_bit] if self._outer_bit else range(self.bits):
            place = 0
            for axis in self._block:
                place = place * self._sizes[axis] + self._step(axis, bit if axis == _BIT else point[axis])
            word, shift = divmod((place + self._below) ^ self._flip, self.unit)
            last = runs[-1] if runs else _Run(-1, 0, 0, 0)
            if (last.word, last.shift + last.width) == (word, shift):
                runs[-1] = _Run(word, last.shift, last.width + 1, last.bit)
            else:
                runs.append(_Run(word, shift, 1, bit))
        return runs

    def _step(self, axis: str, index: int) -> int:
        return self._sizes[axis] - 1 - index if axis in self._backwards else index

    # -- the definition --------------------------------------------------------------------------------------------

    def positions(self, codes: Shape) -> NDArray[np.int64]:
        """For codes of this shape, padded to whole blocks: the number of each bit in storage, (*codes, bits).

        Storage counts bits from the lowest of each word, and words in row-major order. This is the definition that
        `unpack` and `pack` carry out.
        """
        assert self._stream is not None, "elements that are only rearranged have no bits"
        sizes = self._solve(self._codes, codes, "the codes")
        grid = dict(
            zip(self._axes, np.indices([sizes[axis] for axis in self._axes], np.int64, sparse=True), strict=True)
        )
        word: Any = 0
        for i, (group, length) in enumerate(zip(self._stored, self._whole(sizes), strict=True)):
            index: Any = 0
            for axis in group:
                at = sizes[axis] - 1 - grid[axis] if axis in self._backwards else grid[axis]
                index = index * sizes[axis] + at
            if i == self._stream:
                step = math.prod(sizes[axis] for axis in group[1:])
                index = index // step * (step + self._above + self._below) + index % step + self._below
                index, shift = index // self.unit, index % self.unit ^ self._flip
            word = word * length + index
        return np.asarray(word * self.unit + shift).reshape(*self._shape_of_codes(sizes), self.bits)


def _rearranged(array: Array, start: tuple[Group, ...], end: tuple[Group, ...], sizes: Sizes) -> Array:
    axes = [axis for group in start for axis in group]
    view = permute(
        array.reshape([sizes[axis] for axis in axes]), *(axes.index(axis) for group in end for axis in group)
    )
    return contiguous(view.reshape([math.prod(sizes[axis] for axis in group) for group in end]))
