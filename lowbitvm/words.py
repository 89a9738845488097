"""Codes to and from the words of packed tiles, for every code type by the order of `lowbitvm.chunk`.

A tile is 16 output features by 64 input features; lane 4 g + q of 32 owns 32 of its codes, `bits` words. Two codes of a
lane that are neighbours along K lie in a pair: a u32 with one in each half. A word is then the OR of a few masked and
shifted pairs, the same for all lanes and tiles, so packing is a transposition of pairs and some passes over u32 arrays.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lowbitvm import arrays, chunk, dtypes
from lowbitvm.dtypes import Array, CodeType
from lowbitvm.errors import LowbitvmError

TILE_N, TILE_K, LANES = 16, 64, 32
PAIRS = 16  # of a lane in a tile: code c is half c & 1 of pair c >> 1
BLOCK_TILES = 512  # packed at a time on a CPU: the pairs and the words of a block stay in its cache


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


def pack_codes(codes: Array, code: CodeType) -> Array:
    """The words of codes (N, K), integers of any dtype: u32 for numpy, i32 for torch.

    Raises CODES_OUT_OF_RANGE for the first code that the type does not have.
    """
    if dtypes.is_tensor(codes) and codes.device.type == "cpu":
        return arrays.tensor(pack_codes(codes.numpy(), code))
    words = _empty(codes, words_shape(codes.shape[0], codes.shape[1], code.bits), dtypes.u32)
    arrays.for_each_block(codes, words.shape[:2], BLOCK_TILES, lambda tiles: _pack_block(codes, words, code, tiles))
    return words


def unpack_codes(words: Array, shape: tuple[int, int], code: CodeType) -> Array:
    """The codes (N, K) of words, in the dtype of the code type; inverse of `pack_codes`."""
    return _unpack(words, shape, code, patterns=False)


def unpack_patterns(words: Array, shape: tuple[int, int], code: CodeType) -> Array:
    """The bit patterns u8 (N, K) of words."""
    return _unpack(words, shape, code, patterns=True)


def check_codes(name: str, codes: Array, code: CodeType, step: int, within: Array | None = None) -> None:
    """Raises CODES_OUT_OF_RANGE for the first integer that is no code of the type, every `step`-th from its lowest.

    NaN and infinities of e4m3 and e5m2 count as none: no decode in registers keeps them.
    within: the array that `codes` is a part of, which is searched for the first one.
    """
    if math.prod(codes.shape) and _beyond(codes, code, step) is not None:
        whole = codes if within is None else within
        at = arrays.first(_beyond(whole, code, step))
        every = "" if step == 1 else f", every {step}nd number"
        every = f" but for its NaN and infinities, from {code.top + 1} on" if code.has_specials else every
        raise LowbitvmError(
            "CODES_OUT_OF_RANGE",
            f"{name}{list(at or ())} is {whole[at].item()}, {code} has {code.low} .. {code.high}{every}",
            f"quantise to the range of {code} first",
        )


def _beyond(codes: Array, code: CodeType, step: int) -> Array | None:
    """Which integers are no codes; None where all are."""
    low, high = code.low, code.high
    if dtypes.of(codes).kind == "uint":  # torch compares no unsigned integers but u8; u64 beyond i64 wraps to negative
        low = max(low, 0)
        codes = arrays.cast(codes, dtypes.i64) if dtypes.is_tensor(codes) and codes.itemsize > 1 else codes
    bad = None
    if int(codes.min()) < low or int(codes.max()) > high:
        bad = (codes < low) | (codes > high)
    other = None
    if step == 2:
        other = (codes & 1) == 0
    elif code.has_specials:
        other = (codes & (high >> 1)) > code.top
    if other is not None and (bad is not None or bool(other.any())):
        bad = other if bad is None else bad | other
    return bad


def _unpack(words: Array, shape: tuple[int, int], code: CodeType, patterns: bool) -> Array:
    if dtypes.is_tensor(words) and words.device.type == "cpu":
        return arrays.tensor(_unpack(words.numpy().view(np.uint32), shape, code, patterns))
    codes = _empty(words, shape, dtypes.u8 if patterns else dtypes.of_numpy(code.numpy))
    arrays.for_each_block(
        words, words.shape[:2], BLOCK_TILES, lambda tiles: _unpack_block(words[tiles], codes, code, tiles, patterns)
    )
    return codes


def _pack_block(codes: Array, words: Array, code: CodeType, tiles: tuple[slice, slice]) -> None:
    words = words[tiles]
    tiles_n, tiles_k = words.shape[:2]
    rows, columns = (slice(s.start * size, s.stop * size) for s, size in zip(tiles, (TILE_N, TILE_K), strict=True))
    part = arrays.row_major(codes[rows, columns])
    check_codes("codes", part, code, code.step, within=codes)
    halves = _empty(codes, (tiles_n * TILE_N, tiles_k * TILE_K), dtypes.u16)
    if tuple(part.shape) != tuple(halves.shape):
        halves[...] = 0
    halves[: part.shape[0], : part.shape[1]] = _patterns(part, code)
    # k = 64 tile + 16 step + 8 upper + 2 q + half, n = 16 tile + 8 high + g, and pair 4 step + 2 upper + high
    pairs = _as_u32(halves).reshape(tiles_n, 2, 8, tiles_k, 4, 2, 4)
    pairs = transposed(pairs, (4, 5, 1, 0, 3, 2, 6)).reshape(PAIRS, tiles_n, tiles_k, LANES)
    whole = (1 << code.bits) - 1
    whole |= whole << 16
    for word, lanes in word_views(words, code.bits):
        total: Array = 0
        for move in (move for move in moves(code) if move.word == word):
            piece = pairs[move.pair] if move.mask == whole else pairs[move.pair] & move.mask
            piece = piece << move.shift if move.shift >= 0 else piece >> -move.shift
            total = piece | total
        lanes[...] = total


def _patterns(codes: Array, code: CodeType) -> Array:
    """The patterns of codes in range as u8; both steps wrap modulo 256, the result fits."""
    halved = codes >> 1 if code.step == 2 else codes  # (q + bias) / 2 = floor(q / 2) + (bias + 1) / 2 for odd q, bias
    patterns = arrays.cast(halved, dtypes.u8)
    bias = (code.bias + code.step - 1) // code.step
    return patterns + bias if bias else patterns


def _unpack_block(
    words: Array, codes: Array, code: CodeType, tiles: tuple[slice, slice], patterns: bool = False
) -> None:
    tiles_n, tiles_k = words.shape[:2]
    pairs = _empty(words, (PAIRS, tiles_n, tiles_k, LANES), dtypes.u32)
    pairs[...] = 0
    views = dict(word_views(words, code.bits))
    for move in moves(code):
        word = views[move.word]
        # the mask has no bit that a signed shift would fill
        pairs[move.pair] |= (word >> move.shift if move.shift >= 0 else word << -move.shift) & move.mask
    halves = _as_i16(transposed(pairs.reshape(4, 2, 2, tiles_n, tiles_k, 8, 4), (3, 2, 5, 4, 0, 1, 6)))
    rows, columns = (slice(s.start * size, s.stop * size) for s, size in zip(tiles, (TILE_N, TILE_K), strict=True))
    part = codes[rows, columns]
    stored = halves.reshape(tiles_n * TILE_N, tiles_k * TILE_K)[: part.shape[0], : part.shape[1]]
    part[...] = stored if patterns else code.codes(stored)


def word_views(words: Array, bits: int) -> Iterator[tuple[int, Array]]:
    """(w, word w of every lane as [tiles along N, tiles along K, 32]) of the words of some tiles, `bits` a lane."""
    for word in range(bits):
        start, width, index = chunk.word_place(bits, word)
        vectors = words[..., start : start + LANES * width]
        yield word, vectors.reshape(*words.shape[:2], LANES, width)[..., index] if width > 1 else vectors


def transposed(array: Array, axes: tuple[int, ...]) -> Array:
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


def _as_i16(pairs: Array) -> Array:
    return pairs.view(dtypes.i16.torch() if dtypes.is_tensor(pairs) else np.int16)
