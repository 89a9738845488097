"""Kernels as people write them in Triton: after its tutorials, its documentation and common libraries of them."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def vector_add(x, y, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out + offsets, tl.load(x + offsets, mask=mask) + tl.load(y + offsets, mask=mask), mask=mask)


@triton.jit
def softmax(x, y, rows, columns, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Row by row, in a loop over rows as a persistent kernel does."""
    offsets = tl.arange(0, BLOCK)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        values = tl.load(x + row * columns + offsets, mask=offsets < columns, other=-float("inf"))
        exponentials = tl.exp((values - tl.max(values, axis=0)).to(tl.float32))
        result = exponentials / tl.sum(exponentials, axis=0)
        tl.store(y + row * columns + offsets, result.to(y.dtype.element_ty), mask=offsets < columns)


@triton.jit
def layer_norm(x, y, weight, bias, means, deviations, columns, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(x + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / columns
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = tl.load(x + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
        centred = tl.where(at < columns, values - mean, 0.0)
        squares += centred * centred
    deviation = 1 / tl.sqrt(tl.sum(squares, axis=0) / columns + epsilon)
    tl.store(means + row, mean)
    tl.store(deviations + row, deviation)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < columns
        values = tl.load(x + row * columns + at, mask=mask, other=0.0).to(tl.float32)
        result = (values - mean) * deviation * tl.load(weight + at, mask=mask) + tl.load(bias + at, mask=mask)
        tl.store(y + row * columns + at, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def rms_norm(x, y, weight, columns, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * columns + at, mask=at < columns, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / columns + epsilon)
    result = values * scale * tl.load(weight + at, mask=at < columns, other=0.0).to(tl.float32)
    tl.store(y + row * columns + at, result.to(y.dtype.element_ty), mask=at < columns)


@triton.jit
def leaky_relu(x):
    return tl.where(x >= 0, x, 0.125 * x)


@triton.jit
def matmul(
    a, b, c, M, N, K, am, ak, bk, bn, cm, cn,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, TYPE: tl.constexpr, ACTIVATE: tl.constexpr,
):  # fmt: skip
    """The tutorial's: blocks in groups of rows for the sake of the cache, any strides, masks at all three edges."""
    block = tl.program_id(0)
    across = tl.cdiv(N, BN)
    first = block // (GROUP * across) * GROUP
    height = min(tl.cdiv(M, BM) - first, GROUP)
    i = first + block % (GROUP * across) % height
    j = block % (GROUP * across) // height
    rows, columns = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    a_at = a + (rows % M)[:, None] * am + depth[None, :] * ak
    b_at = b + depth[:, None] * bk + (columns % N)[None, :] * bn
    total = tl.zeros((BM, BN), dtype=TYPE)
    for k in range(tl.cdiv(K, BK)):
        left = tl.load(a_at, mask=depth[None, :] < K - k * BK, other=0.0)
        right = tl.load(b_at, mask=depth[:, None] < K - k * BK, other=0.0)
        total = tl.dot(left, right, total, out_dtype=TYPE)
        a_at += BK * ak
        b_at += BK * bk
    if ACTIVATE:
        total = leaky_relu(total)
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(c + cm * rows[:, None] + cn * columns[None, :], total.to(c.dtype.element_ty), mask=mask)


@triton.jit
def matmul_precise(a, b, c, K, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """f32 operands: tf32, three tf32 products, or plain f32; or f64 ones."""
    rows, columns, depth = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=c.dtype.element_ty)
    for k in range(0, K, BK):
        left = tl.load(a + rows[:, None] * K + k + depth[None, :])
        right = tl.load(b + (k + depth)[:, None] * BN + columns[None, :])
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=c.dtype.element_ty)
    tl.store(c + rows[:, None] * BN + columns[None, :], total)


@triton.jit
def matmul_4bit(
    a, codes, scales, zeros, c, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """c = a @ ((codes - zeros) * scales), GPTQ's order: eight codes along k to a word, zeros eight along n."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    shifts = (depth % 8) * 4
    zero_shifts = (columns % 8) * 4
    inside = columns < N
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        k = start + depth
        left = tl.load(a + rows[:, None] * K + k[None, :], mask=(rows[:, None] < M) & (k[None, :] < K), other=0.0)
        words = tl.load(
            codes + (k // 8)[:, None] * N + columns[None, :], mask=inside[None, :] & (k[:, None] < K), other=0
        )
        group = start // GROUP
        scale = tl.load(scales + group * N + columns, mask=inside, other=0.0)
        zero = tl.load(zeros + group * (N // 8) + columns // 8, mask=inside, other=0)
        centred = ((words >> shifts[:, None]) & 15) - ((zero >> zero_shifts) & 15)[None, :]
        total = tl.dot(left, (centred * scale[None, :]).to(tl.float16), total)
    mask = (rows[:, None] < M) & inside[None, :]
    tl.store(c + rows[:, None] * N + columns[None, :], total.to(tl.float16), mask=mask)


@triton.jit
def flash_attention(
    q, k, v, out, logs, length, scale,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """One head per program_id(1); softmax over blocks of keys with a running maximum and sum."""
    start = tl.program_id(0) * BM
    head = tl.program_id(1) * length * D
    rows, columns = start + tl.arange(0, BM), tl.arange(0, D)
    queries = tl.load(q + head + rows[:, None] * D + columns[None, :], mask=rows[:, None] < length, other=0.0)
    largest = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    result = tl.zeros([BM, D], tl.float32)
    end = min(start + BM, length) if CAUSAL else length
    for first in range(0, end, BN):
        at = first + tl.arange(0, BN)
        keys = tl.load(k + head + at[None, :] * D + columns[:, None], mask=at[None, :] < length, other=0.0)
        scores = tl.dot(queries, keys) * (scale * 1.44269504)
        allowed = at[None, :] < length
        if CAUSAL:
            allowed = allowed & (rows[:, None] >= at[None, :])
        scores = tl.where(allowed, scores, -1.0e6)
        new = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.math.exp2(scores - new[:, None])
        correction = tl.math.exp2(largest - new)
        total = total * correction + tl.sum(weights, 1)
        values = tl.load(v + head + at[:, None] * D + columns[None, :], mask=at[:, None] < length, other=0.0)
        result = tl.dot(weights.to(tl.float16), values, result * correction[:, None])
        largest = new
    tl.store(logs + tl.program_id(1) * length + rows, largest + tl.math.log2(total), mask=rows < length)
    result = (result / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + head + rows[:, None] * D + columns[None, :], result, mask=rows[:, None] < length)


@triton.jit
def split_k_atomic(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr):
    """Every part of K adds its products to c."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.program_id(2) * BK + tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK * SPLIT):
        k = start + depth
        left = tl.load(a + rows[:, None] * K + k[None, :], mask=(rows[:, None] < M) & (k[None, :] < K), other=0.0)
        right = tl.load(
            b + k[:, None] * N + columns[None, :], mask=(k[:, None] < K) & (columns[None, :] < N), other=0.0
        )
        total = tl.dot(left, right, total)
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    tl.atomic_add(c + rows[:, None] * N + columns[None, :], total.to(c.dtype.element_ty), mask=mask, sem="relaxed")


@triton.jit
def split_k_lock(
    a, b, c, locks, counts, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """The parts of K take turns at c under a spin lock, as the tutorial's layer norm backward does."""
    i, j = tl.program_id(0), tl.program_id(1)
    rows, columns = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN)
    depth = tl.program_id(2) * BK + tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK * SPLIT):
        k = start + depth
        left = tl.load(a + rows[:, None] * K + k[None, :], mask=(rows[:, None] < M) & (k[None, :] < K), other=0.0)
        right = tl.load(
            b + k[:, None] * N + columns[None, :], mask=(k[:, None] < K) & (columns[None, :] < N), other=0.0
        )
        total = tl.dot(left, right, total)
    tile = i * tl.num_programs(1) + j
    at = c + rows[:, None] * N + columns[None, :]
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    while tl.atomic_cas(locks + tile, 0, 1) == 1:
        pass
    if tl.load(counts + tile) == 0:
        tl.atomic_xchg(counts + tile, 1)
    else:
        total += tl.load(at, mask=mask)
    tl.store(at, total, mask=mask)
    tl.debug_barrier()
    tl.atomic_xchg(locks + tile, 0)


@triton.jit
def split_k_semaphore(
    a, b, c, part, arrivals, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """The last part of K to arrive sums what the others left in `part`."""
    i, j, s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, columns = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN)
    depth = s * BK + tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK * SPLIT):
        k = start + depth
        left = tl.load(a + rows[:, None] * K + k[None, :], mask=(rows[:, None] < M) & (k[None, :] < K), other=0.0)
        right = tl.load(
            b + k[:, None] * N + columns[None, :], mask=(k[:, None] < K) & (columns[None, :] < N), other=0.0
        )
        total = tl.dot(left, right, total)
    at = rows[:, None] * N + columns[None, :]
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(part + s * M * N + at, total, mask=mask)
    tl.debug_barrier()
    if tl.atomic_add(arrivals + i * tl.num_programs(1) + j, 1, sem="acq_rel") == SPLIT - 1:
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for other in range(SPLIT):
            total += tl.load(part + other * M * N + at, mask=mask)
        tl.store(c + at, total, mask=mask)


@triton.jit
def reduce_all(
    x, sums, largest, smallest, where_largest, where_smallest, xors, M, N, BM: tl.constexpr, BN: tl.constexpr
):
    """Reductions of a tile along both axes."""
    rows, columns = tl.arange(0, BM), tl.arange(0, BN)
    mask = (rows[:, None] < M) & (columns[None, :] < N)
    tile = tl.load(x + rows[:, None] * N + columns[None, :], mask=mask, other=0)
    tl.store(sums + columns, tl.sum(tile, axis=0), mask=columns < N)
    low, high = tl.where(mask, tile, -2147483648), tl.where(mask, tile, 2147483647)
    tl.store(largest + rows, tl.max(low, axis=1), mask=rows < M)
    tl.store(smallest + columns, tl.min(high, axis=0), mask=columns < N)
    tl.store(where_largest + rows, tl.argmax(low, axis=1), mask=rows < M)
    tl.store(where_smallest + columns, tl.argmin(high, axis=0), mask=columns < N)
    tl.store(xors + rows, tl.xor_sum(tile, axis=1), mask=rows < M)


@triton.jit
def linear_step(gate_left, left, gate_right, right):
    return gate_left * gate_right, left * gate_right + right


@triton.jit
def scans(x, gates, sums, products, states, backwards, N, BLOCK: tl.constexpr):
    """Running sums, products and a linear recurrence, one row per program."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * N + at, mask=at < N, other=0.0)
    gate = tl.load(gates + row * N + at, mask=at < N, other=1.0)
    tl.store(sums + row * N + at, tl.cumsum(values, axis=0), mask=at < N)
    tl.store(products + row * N + at, tl.cumprod(gate, axis=0), mask=at < N)
    _, state = tl.associative_scan((gate, values), 0, linear_step)
    tl.store(states + row * N + at, state, mask=at < N)
    tl.store(backwards + row * N + at, tl.cumsum(values, axis=0, reverse=True), mask=at < N)


@triton.jit
def sort_rows(x, y, counts, N, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """Bitonic sort of each row, and a histogram of its lowest bits."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * N + at, mask=at < N, other=2147483647)
    tl.store(y + row * N + at, tl.sort(values), mask=at < N)
    bins = tl.histogram(values & (BINS - 1), BINS, mask=at < N)
    tl.store(counts + row * BINS + tl.arange(0, BINS), bins)


@triton.jit
def gather_rows(table, indices, out, N, BLOCK: tl.constexpr):
    """An embedding: row indices[i] of the table."""
    row = tl.load(indices + tl.program_id(0))
    at = tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0) * N + at, tl.load(table + row * N + at, mask=at < N), mask=at < N)


@triton.jit
def scatter_add(values, indices, out, count, N, BLOCK: tl.constexpr):
    """The embedding's gradient: rows are added where the indices say, several to the same place."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count * N
    row = tl.load(indices + at // N, mask=mask, other=0)
    tl.atomic_add(out + row * N + at % N, tl.load(values + at, mask=mask), mask=mask)


@triton.jit
def gather_in_tile(x, indices, out, M: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + at, tl.gather(tl.load(x + at), tl.load(indices + at), axis=1))


@triton.jit
def convert(x, narrow, back, n, BLOCK: tl.constexpr):
    """Through a narrow float type and back."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    small = tl.load(x + at, mask=at < n).to(narrow.dtype.element_ty)
    tl.store(narrow + at, small, mask=at < n)
    tl.store(back + at, small.to(back.dtype.element_ty), mask=at < n)


@triton.jit
def quantize_rows(x, codes, scales, N, BLOCK: tl.constexpr):
    """int8 codes by the row's largest magnitude."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * N + at, mask=at < N, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), axis=0), 1e-10) / 127.0
    tl.store(scales + row, scale)
    tl.store(codes + row * N + at, libdevice.rint(values / scale).to(tl.int8), mask=at < N)


@triton.jit
def swiglu(gate, up, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(gate + at, mask=at < n).to(tl.float32)
    result = left * tl.sigmoid(left) * tl.load(up + at, mask=at < n).to(tl.float32)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=at < n)


@triton.jit
def mathematics(x, out, n, BLOCK: tl.constexpr):
    """One function per row of out."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    value = tl.load(x + at, mask=mask, other=1.0)
    tl.store(out + at, tl.exp(value), mask=mask)
    tl.store(out + n + at, tl.log(value), mask=mask)
    tl.store(out + 2 * n + at, tl.sin(value), mask=mask)
    tl.store(out + 3 * n + at, tl.cos(value), mask=mask)
    tl.store(out + 4 * n + at, tl.math.erf(value), mask=mask)
    tl.store(out + 5 * n + at, libdevice.tanh(value), mask=mask)
    tl.store(out + 6 * n + at, tl.floor(value), mask=mask)
    tl.store(out + 7 * n + at, tl.ceil(value), mask=mask)
    tl.store(out + 8 * n + at, tl.math.div_rn(value, 3.0), mask=mask)
    tl.store(out + 9 * n + at, tl.sqrt_rn(value), mask=mask)
    tl.store(out + 10 * n + at, libdevice.pow(value, 1.5), mask=mask)
    tl.store(out + 11 * n + at, tl.fma(value, value, 0.5), mask=mask)
    tl.store(out + 12 * n + at, tl.clamp(value, 0.5, 2.0), mask=mask)
    tl.store(out + 13 * n + at, libdevice.fmod(value, 0.75), mask=mask)
    tl.store(out + 14 * n + at, libdevice.log1p(value), mask=mask)
    tl.store(out + 15 * n + at, libdevice.atan2(value, 0.5), mask=mask)


@triton.jit
def integers(x, y, out, n, BLOCK: tl.constexpr):
    """One operation per row of out; x and y of any integer type, y nowhere 0."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    a = tl.load(x + at, mask=mask, other=1)
    b = tl.load(y + at, mask=mask, other=1)
    tl.store(out + at, a // b, mask=mask)
    tl.store(out + n + at, a % b, mask=mask)
    tl.store(out + 2 * n + at, a * b, mask=mask)
    tl.store(out + 3 * n + at, a ^ b, mask=mask)
    tl.store(out + 4 * n + at, ~a | b, mask=mask)
    tl.store(out + 5 * n + at, a << (b & 7), mask=mask)
    tl.store(out + 6 * n + at, a >> (b & 7), mask=mask)
    tl.store(out + 7 * n + at, tl.minimum(a, b) - tl.maximum(a, b), mask=mask)
    tl.store(out + 8 * n + at, tl.abs(a), mask=mask)
    tl.store(out + 9 * n + at, tl.where(a > b, a, -b), mask=mask)


@triton.jit
def word_integers(x, y, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    a = tl.load(x + at, mask=mask, other=1)
    b = tl.load(y + at, mask=mask, other=1)
    tl.store(out + at, tl.umulhi(a, b), mask=mask)
    tl.store(out + n + at, libdevice.popc(a), mask=mask)
    tl.store(out + 2 * n + at, libdevice.clz(a), mask=mask)
    tl.store(out + 3 * n + at, libdevice.ffs(a), mask=mask)
    tl.store(out + 4 * n + at, libdevice.brev(a), mask=mask)
    tl.store(out + 5 * n + at, libdevice.byte_perm(a, b, 0x5140), mask=mask)
    assembled = tl.inline_asm_elementwise("lop3.b32 $0, $1, $2, 0x0f0f0f0f, 0xea;", "=r,r,r", [a, b], tl.int32, True, 1)
    tl.store(out + 6 * n + at, assembled, mask=mask)


@triton.jit
def dropout(x, out, n, p, seed, BLOCK: tl.constexpr):
    """Philox random numbers."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < n)
    tl.store(out + at, tl.where(tl.rand(seed, at) > p, values / (1 - p), 0.0), mask=at < n)


@triton.jit
def rope(x, cosines, sines, out, heads, D: tl.constexpr):
    """Rotary embedding of each head's halves, one position per program."""
    position = tl.program_id(0)
    half = tl.arange(0, D // 2)
    cosine, sine = tl.load(cosines + position * (D // 2) + half), tl.load(sines + position * (D // 2) + half)
    for head in range(heads):
        base = (position * heads + head) * D
        left, right = tl.load(x + base + half), tl.load(x + base + D // 2 + half)
        tl.store(out + base + half, left * cosine - right * sine)
        tl.store(out + base + D // 2 + half, right * cosine + left * sine)


@triton.jit
def cross_entropy(logits, targets, losses, N, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    largest, total = -float("inf"), 0.0
    for start in range(0, N, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = tl.load(logits + row * N + at, mask=at < N, other=-float("inf"))
        new = tl.maximum(largest, tl.max(values))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(values - new))
        largest = new
    target = tl.load(targets + row)
    loss = largest + tl.log(total) - tl.load(logits + row * N + target) if target >= 0 else 0.0
    tl.store(losses + row, loss)


@triton.jit
def transpose(x, y, M, N, BM: tl.constexpr, BN: tl.constexpr):
    rows, columns = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tile = tl.load(x + rows[:, None] * N + columns[None, :], mask=inside)
    tl.store(y + columns[:, None] * M + rows[None, :], tl.trans(tile), mask=tl.trans(inside))


@triton.jit
def interleave(x, y, joined, split, N: tl.constexpr):
    at = tl.arange(0, N)
    left, right = tl.load(x + at), tl.load(y + at)
    tl.store(joined + tl.arange(0, 2 * N), tl.interleave(left, right))
    even, odd = tl.split(tl.reshape(tl.cat(left, right, can_reorder=False), (N, 2)))
    tl.store(split + at, even)
    tl.store(split + N + at, odd)


@triton.jit
def gemv(matrix, vector, out, M, N, BM: tl.constexpr, BN: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, N, BN):
        at = start + tl.arange(0, BN)
        mask = (rows[:, None] < M) & (at[None, :] < N)
        values = tl.load(matrix + rows[:, None] * N + at[None, :], mask=mask, other=0.0).to(tl.float32)
        total += values * tl.load(vector + at, mask=at < N, other=0.0).to(tl.float32)[None, :]
    tl.store(out + rows, tl.sum(total, axis=1), mask=rows < M)


@triton.jit
def atomics(x, out, n, BLOCK: tl.constexpr):
    """Every read-modify-write on words that all blocks share."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    values = tl.load(x + at, mask=mask, other=0)
    place = at % 8
    tl.atomic_add(out + place, values, mask=mask)
    tl.atomic_max(out + 8 + place, values, mask=mask)
    tl.atomic_min(out + 16 + place, values, mask=mask)
    tl.atomic_and(out + 24 + place, values, mask=mask)
    tl.atomic_or(out + 32 + place, values, mask=mask)
    tl.atomic_xor(out + 40 + place, values, mask=mask)


@triton.jit
def persistent_matmul(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Each program takes every num_programs-th tile; the loops are flattened and pipelined as one."""
    across = tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, BM) * across, tl.num_programs(0), flatten=True):
        rows = tile // across * BM + tl.arange(0, BM)
        columns = tile % across * BN + tl.arange(0, BN)
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for start in range(0, K, BK):
            k = start + tl.arange(0, BK)
            left = tl.load(a + rows[:, None] * K + k[None, :], mask=(rows[:, None] < M) & (k[None, :] < K), other=0.0)
            right = tl.load(
                b + k[:, None] * N + columns[None, :], mask=(k[:, None] < K) & (columns[None, :] < N), other=0.0
            )
            total = tl.dot(left, right, total)
        mask = (rows[:, None] < M) & (columns[None, :] < N)
        tl.store(c + rows[:, None] * N + columns[None, :], total.to(c.dtype.element_ty), mask=mask)


@triton.jit
def scaled_dot(
    a, a_scales, b, b_scales, c, K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, PACKED: tl.constexpr,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Operands in a block-scaled narrow format; PACKED elements to a byte."""
    rows, columns = tl.arange(0, BM), tl.arange(0, BN)
    depth, groups = tl.arange(0, K // PACKED), tl.arange(0, K // GROUP)
    left = tl.load(a + rows[:, None] * (K // PACKED) + depth[None, :])
    right = tl.load(b + columns[None, :] * (K // PACKED) + depth[:, None])
    left_scales = tl.load(a_scales + rows[:, None] * (K // GROUP) + groups[None, :])
    right_scales = tl.load(b_scales + columns[:, None] * (K // GROUP) + groups[None, :])
    total = tl.dot_scaled(left, left_scales, LEFT, right, right_scales, RIGHT)
    tl.store(c + rows[:, None] * BN + columns[None, :], total)


@triton.jit
def checked_copy(x, y, n, BLOCK: tl.constexpr):
    """With the assertion and the print that debugging leaves behind."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < n, other=0)
    tl.device_assert(values >= 0, "negative")
    if tl.program_id(0) == 1000:
        tl.device_print("value", values)
    tl.store(y + at, values, mask=at < n)
