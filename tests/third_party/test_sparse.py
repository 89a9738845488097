"""CUTLASS's GEMMs with a sparse A, whose metadata goes through its own order in memory and ldmatrix, against numpy."""

from typing import Any

import numpy as np
import pytest

from tests.third_party.catalogue import sparse
from tests.third_party.running import cuda, empty

Array = Any
ORDERED = (0b0100, 0b1000, 0b1001, 0b1100, 0b1101, 0b1110)
CASES = {  # name: bits of A and B, of a chunk's elements along k and in A, its codes, types
    "f16": (16, 4, 2, ORDERED, np.float16, np.float32),
    "tf32": (32, 2, 1, (0b0100, 0b1110), np.float32, np.float32),
    "s8": (8, 4, 2, ORDERED, np.int8, np.int32),
    "s4": (4, 8, 4, ORDERED, np.int8, np.int32),
}


def places(code: int, bits: int) -> list[int]:
    """Where the elements of a chunk lie that a code stands for (CUTLASS, host_uncompress.h)."""
    if bits == 32:
        return [(code & 3) // 2]
    first, second = code & 3, code >> 2
    return [first, second] if bits > 4 else [2 * first, 2 * first + 1, 2 * second, 2 * second + 1]


def with_zeros(held: Array, codes: Array, bits: int, wide: int, width: int) -> Array:
    dense = np.zeros((held.shape[0], codes.shape[1] * wide), held.dtype)
    for row, chunk in np.ndindex(*codes.shape):
        for n, place in enumerate(places(int(codes[row, chunk]), bits)):
            dense[row, wide * chunk + place] = held[row, width * chunk + n]
    return dense


def reordered(metadata: Array) -> Array:
    """As CUTLASS wants it in memory, host_reorder.h: rows interleaved, blocks of 2 x 2 turned, columns in pairs."""
    group, interleave = (32, 4) if metadata.itemsize == 2 else (16, 2)
    rows, columns = metadata.shape
    flat = np.zeros(metadata.size, metadata.dtype)
    for row, column in np.ndindex(rows, columns):
        to, at = row // group * group + row % 8 * interleave + row % group // 8, column
        if to % 2 == 0 and at % 2 == 1:
            to, at = to + 1, at - 1
        elif to % 2 == 1 and at % 2 == 0:
            to, at = to - 1, at + 1
        flat[at // 2 * 2 * rows + 2 * to + at % 2] = metadata[row, column]
    return flat


@pytest.mark.parametrize("name", CASES)
def test_a_sparse_gemm_of_cutlass_equals_numpys(name: str) -> None:
    bits, wide, width, allowed, kind, total = CASES[name]
    m, n, k = 128, 72, 2 * 1024 // bits * 2
    n = 96 if bits == 4 else n
    rng = np.random.default_rng(bits)
    *_, shape = next(cuda(sparse(name), "launch_shape", (1,), (1,), m, n, k, empty(6, dtype=np.int32)))
    shared, threads, *grid, size = map(int, shape)
    held, b = (rng.integers(-4, 5, extent).astype(kind) for extent in ((m, k // 2), (n, k)))
    c = rng.integers(-9, 10, (m, n)).astype(total)
    codes = rng.choice(np.array(allowed, np.uint8), (m, k // wide))
    expected = with_zeros(held, codes, bits, wide, width).astype(np.int64) @ b.T.astype(np.int64) + c.astype(np.int64)
    metadata = np.ascontiguousarray(codes[:, ::2] | codes[:, 1::2] << 4).view({2: np.uint16, 4: np.uint32}[size])
    args = [packed(held, bits), packed(b, bits), c, empty(m, n, dtype=total), reordered(metadata), m, n, k]
    for _, _, _, d, *_ in cuda(sparse(name), "sparse_gemm", grid, (threads,), *args, shared=shared):
        np.testing.assert_array_equal(d, expected.astype(total))


def packed(values: Array, bits: int) -> Array:
    codes = values.view(np.uint8) & 15 if bits == 4 else values
    return np.ascontiguousarray(codes[:, ::2] | codes[:, 1::2] << 4) if bits == 4 else values
