"""Matrix multiplications as one writes them in Triton, without masks along k; what becomes of them is measured.

Weights are the right operand. Of the three ways to unpack 4 bits, the best for a tile and target stands in the table.
"""

import triton
import triton.language as tl


@triton.jit
def shifted(
    x, codes, scales, zeros, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr
):
    """codes u32 (K / 8, N), eight along k to a word as in GPTQ: a word is loaded for each of its codes, and shifted."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    x_at = x + (rows % M)[:, None] * K + depth[None, :]
    codes_at = codes + (depth // 8)[:, None] * N + columns[None, :]
    shifts = (depth % 8) * 4
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        left = tl.load(x_at)
        stored = tl.load(codes_at)
        place = start // GROUP * N + columns
        scale, zero = tl.load(scales + place), tl.load(zeros + place)
        weights = (((stored >> shifts[:, None]) & 15).to(left.dtype) - zero[None, :]) * scale[None, :]
        total = tl.dot(left, weights, total)
        x_at += BK
        codes_at += BK // 8 * N
    tl.store(y + rows[:, None] * N + columns[None, :], total.to(y.dtype.element_ty), mask=rows[:, None] < M)


@triton.jit
def joined(
    x, codes, scales, zeros, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr
):
    """codes u8 (N, K / 2), the low nibble first: both nibbles are decoded and joined along k."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    x_at = x + (rows % M)[:, None] * K + tl.arange(0, BK)[None, :]
    codes_at = codes + columns[:, None] * (K // 2) + tl.arange(0, BK // 2)[None, :]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        left = tl.load(x_at)
        stored = tl.load(codes_at)
        place = start // GROUP * N + columns
        scale, zero = tl.load(scales + place)[:, None], tl.load(zeros + place)[:, None]
        low, high = (stored & 15).to(left.dtype), (stored >> 4).to(left.dtype)
        weights = tl.join((low - zero) * scale, (high - zero) * scale).reshape(BN, BK)
        total = tl.dot(left, weights.T, total)
        x_at += BK
        codes_at += BK // 2
    tl.store(y + rows[:, None] * N + columns[None, :], total.to(y.dtype.element_ty), mask=rows[:, None] < M)


@triton.jit
def halved(
    x, codes, scales, zeros, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr
):
    """codes u8 (K / 2, N), code k of each BK in the low nibbles with k + BK / 2 in the high ones: two products."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK // 2)
    x_at = x + (rows % M)[:, None] * K + depth[None, :]
    codes_at = codes + depth[:, None] * N + columns[None, :]
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        left, right = tl.load(x_at), tl.load(x_at + BK // 2)
        stored = tl.load(codes_at)
        place = start // GROUP * N + columns
        scale, zero = tl.load(scales + place)[None, :], tl.load(zeros + place)[None, :]
        total = tl.dot(left, ((stored & 15).to(left.dtype) - zero) * scale, total)
        total = tl.dot(right, ((stored >> 4).to(left.dtype) - zero) * scale, total)
        x_at += BK
        codes_at += BK // 2 * N
    tl.store(y + rows[:, None] * N + columns[None, :], total.to(y.dtype.element_ty), mask=rows[:, None] < M)


@triton.jit
def int8(x, codes, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """i8 (M, K) times i8 (N, K) to i32; no scales."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    x_at = x + (rows % M)[:, None] * K + depth[None, :]
    codes_at = codes + columns[None, :] * K + depth[:, None]
    total = tl.zeros((BM, BN), dtype=tl.int32)
    for _ in range(0, K, BK):
        total = tl.dot(tl.load(x_at), tl.load(codes_at), total)
        x_at += BK
        codes_at += BK
    tl.store(y + rows[:, None] * N + columns[None, :], total, mask=rows[:, None] < M)
