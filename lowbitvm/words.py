"""Codes to and from the words of packed tiles, for every code type by the order of `lowbitvm.chunk`.

A tile is 16 output features by 64 input features; lane 4 g + q of 32 owns 32 of its codes, `bits` words. Two codes of a
lane that are neighbours along K lie in a pair: a u32 with one in each half. A word is then the OR of a few masked and
shifted pairs, the same for all lanes and tiles, so packing is a transposition of pairs and some passes over u32 arrays.
"""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from lowbitvm import chunk, dtypes
from lowbitvm.dtypes import Array, CodeType

TILE_N, TILE_K, LANES = 16, 64, 32
PAIRS = 16  # of a lane in a tile: code c is half c & 1 of pair c >> 1
BLOCK_CODES = 1 << 19  # packed at a time on a CPU: the pairs and the words of a block stay in its cache


@dataclass(frozen=True)
class Move:
    """word |= (pair & mask) << shift, and pair |= (word >> shift) & mask; a negative shift goes the other way."""

    word: int
    pair: int
    mask: int
    shift: int


@functools.cache
def moves(code: CodeType) -> tuple[Move, ...]:
    """How the words of a lane are put together, by word."""
    masks: dict[tuple[int, int, int], int] = {}
    for (c, b), position in np.ndenumerate(chunk.order(code).positions):
        bit = b + 16 * (c & 1)
        key = (int(position) >> 5, c >> 1, (int(position) & 31) - bit)
        masks[key] = masks.get(key, 0) | 1 << bit
    return tuple(Move(word, pair, mask, shift) for (word, pair, shift), mask in sorted(masks.items()))


def words_shape(out_features: int, in_features: int, bits: int) -> tuple[int, int, int]:
    """Shape of the words: (tiles along N, tiles along K, words of one tile)."""
    return (-(-out_features // TILE_N), -(-in_features // TILE_K), LANES * bits)


def pack_words(stored: Array, code: CodeType) -> Array:
    """The words from stored codes u8 (N, K), each below 2**bits: u32 for numpy, i32 for torch."""
    if dtypes.is_tensor(stored) and stored.device.type == "cpu":
        return _tensor(pack_words(stored.numpy(), code))
    words = _empty(stored, words_shape(stored.shape[0], stored.shape[1], code.bits), dtypes.u32)
    _for_each_block(words, lambda tiles: _pack_block(stored, words[tiles], code, tiles))
    return words


def unpack_words(words: Array, shape: tuple[int, int], code: CodeType) -> Array:
    """The stored codes u8 (N, K) of words; inverse of `pack_words`."""
    if dtypes.is_tensor(words) and words.device.type == "cpu":
        return _tensor(unpack_words(words.numpy().view(np.uint32), shape, code))
    stored = _empty(words, shape, dtypes.u8)
    _for_each_block(words, lambda tiles: _unpack_block(words[tiles], stored, code, tiles))
    return stored


def _pack_block(stored: Array, words: Array, code: CodeType, tiles: tuple[slice, slice]) -> None:
    tiles_n, tiles_k = words.shape[:2]
    rows, columns = (slice(s.start * size, s.stop * size) for s, size in zip(tiles, (TILE_N, TILE_K), strict=True))
    part = stored[rows, columns]
    halves = _empty(stored, (tiles_n * TILE_N, tiles_k * TILE_K), dtypes.u16)
    if tuple(part.shape) != tuple(halves.shape):
        halves[...] = 0
    halves[: part.shape[0], : part.shape[1]] = part
    # k = 64 tile + 16 step + 8 upper + 2 q + half, n = 16 tile + 8 high + g, and pair 4 step + 2 upper + high
    pairs = _as_u32(halves).reshape(tiles_n, 2, 8, tiles_k, 4, 2, 4)
    pairs = _transposed(pairs, (4, 5, 1, 0, 3, 2, 6)).reshape(PAIRS, tiles_n, tiles_k, LANES)
    whole = (1 << code.bits) - 1
    whole |= whole << 16
    for word, lanes in _word_views(words, code.bits):
        total: Array = 0
        for move in (move for move in moves(code) if move.word == word):
            piece = pairs[move.pair] if move.mask == whole else pairs[move.pair] & move.mask
            piece = piece << move.shift if move.shift >= 0 else piece >> -move.shift
            total = piece | total
        lanes[...] = total


def _unpack_block(words: Array, stored: Array, code: CodeType, tiles: tuple[slice, slice]) -> None:
    tiles_n, tiles_k = words.shape[:2]
    pairs = _empty(words, (PAIRS, tiles_n, tiles_k, LANES), dtypes.u32)
    pairs[...] = 0
    views = dict(_word_views(words, code.bits))
    for move in moves(code):
        word = views[move.word]
        # the mask has no bit that a signed shift would fill
        pairs[move.pair] |= (word >> move.shift if move.shift >= 0 else word << -move.shift) & move.mask
    halves = _transposed(pairs.reshape(4, 2, 2, tiles_n, tiles_k, 8, 4), (3, 2, 5, 4, 0, 1, 6))
    codes = _as_u16(halves).reshape(tiles_n * TILE_N, tiles_k * TILE_K)
    rows, columns = (slice(s.start * size, s.stop * size) for s, size in zip(tiles, (TILE_N, TILE_K), strict=True))
    part = stored[rows, columns]
    part[...] = codes[: part.shape[0], : part.shape[1]]


def _word_views(words: Array, bits: int) -> Iterator[tuple[int, Array]]:
    """(w, word w of every lane as [tiles along N, tiles along K, 32]) of the words of some tiles."""
    for word in range(bits):
        start, width, index = chunk.word_place(bits, word)
        vectors = words[..., start : start + LANES * width]
        yield word, vectors.reshape(*words.shape[:2], LANES, width)[..., index] if width > 1 else vectors


def _for_each_block(words: Array, work: Callable[[tuple[slice, slice]], None]) -> None:
    """Calls `work` with the tiles of each block: all at once on a GPU, in threads on a CPU."""
    tiles_n, tiles_k = words.shape[:2]
    if dtypes.is_tensor(words):
        work((slice(0, tiles_n), slice(0, tiles_k)))
        return
    limit = BLOCK_CODES // (TILE_N * TILE_K)
    step_k = max(1, min(tiles_k, limit))
    step_n = max(1, limit // step_k)
    blocks = [
        (slice(n, min(n + step_n, tiles_n)), slice(k, min(k + step_k, tiles_k)))
        for n, k in product(range(0, tiles_n, step_n), range(0, tiles_k, step_k))
    ]
    if len(blocks) < 2:
        for block in blocks:
            work(block)
        return
    with ThreadPoolExecutor(min(len(blocks), os.cpu_count() or 1, 16)) as pool:
        for _ in pool.map(work, blocks):
            pass


def _transposed(array: Array, axes: tuple[int, ...]) -> Array:
    """A contiguous copy with the axes in another order; the last stays, and has 16 bytes."""
    if dtypes.is_tensor(array):
        return array.permute(axes).contiguous()
    vectors = array.view(np.complex128)  # numpy copies 16 bytes at once
    return np.ascontiguousarray(vectors.transpose(axes)).view(np.uint32)


def _empty(like: Array, shape: tuple[int, ...], dtype: dtypes.DType) -> Array:
    """An array of the same library and device as `like`; torch's of u32 and u16 are signed."""
    if not dtypes.is_tensor(like):
        return np.empty(shape, dtype.numpy)
    signed = {dtypes.u32: dtypes.i32, dtypes.u16: dtypes.i16}
    return like.new_empty(shape, dtype=signed.get(dtype, dtype).torch())


def _as_u32(halves: Array) -> Array:
    return halves.view(dtypes.i32.torch() if dtypes.is_tensor(halves) else np.uint32)


def _as_u16(pairs: Array) -> Array:
    return pairs.view(dtypes.i16.torch() if dtypes.is_tensor(pairs) else np.uint16)


def _tensor(array: "np.ndarray[Any, Any]") -> Array:
    """A CPU tensor over the array's memory, u32 as i32."""
    torch: Any = dtypes.torch()
    signed = array.view(np.int32) if array.dtype == np.uint32 else array
    return (
        torch.from_numpy(signed).reshape(array.shape).contiguous()
        if array.size
        else torch.zeros(array.shape, dtype=torch.int32 if array.dtype == np.uint32 else torch.uint8)
    )
