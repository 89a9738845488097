"""Blocks that exchange data through shared memory: reductions, scans, transposes, tiles, histograms."""

import numpy as np

from lowbitvm.runtime import emulator
from tests.planted.table import Case, Data, plant, ptx, words


def row_max_data(rng: np.random.Generator) -> Data:
    x = rng.standard_normal((4, 128)).astype(np.float32)
    return Data([x, emulator.output(np.zeros_like(x)), 4], {1: x - x.max(1, keepdims=True)})


# The first half of a softmax: each block takes every other row, subtracts its maximum.
ROW_MAX = Case(
    "row_max",
    ptx(
        "u64 x, u64 y, u32 rows",
        """
    .shared .align 16 .b8 partial[16];
    mov.u32 base, partial;
    shl.b32 %r1, warp, 2; add.u32 %r1, base, %r1;
    mov.u32 %r2, cta;
LOOP:
    mad.lo.u32 %r3, %r2, 128, tid;
    mul.wide.u32 %d1, %r3, 4;
    add.s64 %d2, x, %d1;
    add.s64 %d3, y, %d1;
    ld.global.f32 %f1, [%d2];
    mov.b32 %r4, %f1;
    mov.u32 %r6, 16;
REDUCE:
    shfl.sync.bfly.b32 %r5, %r4, %r6, 31, -1;
    mov.b32 %f2, %r4; mov.b32 %f3, %r5; max.f32 %f2, %f2, %f3; mov.b32 %r4, %f2;
    shr.u32 %r6, %r6, 1;
    setp.ne.u32 %p3, %r6, 0;
    @%p3 bra REDUCE;
    setp.eq.u32 %p1, lane, 0;
    @%p1 st.shared.f32 [%r1], %f2; //@put
    bar.sync 0; //@full
    ld.shared.v4.f32 {%f4, %f5, %f6, %f7}, [base]; //@get
    max.f32 %f4, %f4, %f5; max.f32 %f6, %f6, %f7; max.f32 %f4, %f4, %f6;
    sub.f32 %f1, %f1, %f4;
    st.global.f32 [%d3], %f1; //@store
    bar.sync 0; //@empty
    add.u32 %r2, %r2, grid;
    setp.lt.u32 %p2, %r2, rows;
    @%p2 bra LOOP;
""",
    ),
    grid=2,
    block=128,
    data=row_max_data,
    plants=(
        plant(
            "a barrier dropped before the read",
            {"full": ""},
            "race_shared put get",
            also=("uninitialised_shared get", "undefined_store store"),
        ),
        plant("a barrier dropped between iterations", {"empty": ""}, "race_shared put get"),
    ),
)


def sum_data(rng: np.random.Generator) -> Data:
    x = words(2, 128, rng=rng)
    return Data([x, emulator.output(np.zeros(2, np.uint32))], {1: x.sum(1, dtype=np.uint32)})


TREE_SUM = Case(
    "tree_sum",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[512];
    mov.u32 base, part;
    shl.b32 %r1, tid, 2; add.u32 %r1, base, %r1;
    mad.lo.u32 %r2, cta, 128, tid;
    mul.wide.u32 %d1, %r2, 4; add.s64 %d1, x, %d1;
    ld.global.u32 %r3, [%d1];
    st.shared.u32 [%r1], %r3; //@put
    bar.sync 0; //@loaded
    mov.u32 %r4, 64;
LOOP:
    setp.ge.u32 %p1, tid, %r4;
    @%p1 bra SKIP; //@branch
    shl.b32 %r5, %r4, 2; add.u32 %r5, %r1, %r5;
    ld.shared.u32 %r6, [%r5]; //@other
    ld.shared.u32 %r7, [%r1]; //@own
    add.u32 %r7, %r7, %r6;
    st.shared.u32 [%r1], %r7; //@add
SKIP:
    bar.sync 0; //@step
AFTER:
    shr.u32 %r4, %r4, 1;
    setp.ne.u32 %p2, %r4, 0;
    @%p2 bra LOOP;
    setp.ne.u32 %p3, tid, 0;
    @%p3 bra END;
    ld.shared.u32 %r8, [base]; //@total
    mul.wide.u32 %d2, cta, 4; add.s64 %d2, y, %d2;
    st.global.u32 [%d2], %r8; //@store
END:
""",
    ),
    grid=2,
    block=128,
    data=sum_data,
    plants=(
        plant(
            "a barrier dropped after the load",
            {"loaded": ""},
            "race_shared put other",
            also=("uninitialised_shared other", "undefined_store add", "undefined_store store"),
        ),
        plant("a barrier dropped between the steps", {"step": ""}, "race_shared add other"),
        plant(
            "a barrier inside a divergent branch",
            {"branch": "@%p1 bra AFTER;"},
            "barrier_diverged step",
            also=("barrier_deadlock step", "race_shared add other", "barrier_invalid step"),
        ),
    ),
)


def scan_data(rng: np.random.Generator) -> Data:
    x = words(96, rng=rng)
    return Data([x, emulator.output(np.zeros_like(x))], {1: np.cumsum(x, dtype=np.uint32)})


# Hillis and Steele, in place: everybody reads, a barrier, everybody writes, a barrier.
SCAN = Case(
    "scan",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[384];
    mov.u32 base, part;
    shl.b32 %r1, tid, 2; add.u32 %r1, base, %r1;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    ld.global.u32 %r2, [%d2];
    st.shared.u32 [%r1], %r2; //@put
    bar.sync 0; //@loaded
    mov.u32 %r3, 1;
LOOP:
    setp.lt.u32 %p1, tid, %r3; //@guard
    mov.u32 %r4, 0;
    shl.b32 %r5, %r3, 2; sub.u32 %r5, %r1, %r5;
    @!%p1 ld.shared.u32 %r4, [%r5]; //@read
    add.u32 %r2, %r2, %r4;
    bar.sync 0; //@was_read
    st.shared.u32 [%r1], %r2; //@write
    bar.sync 0; //@written
    shl.b32 %r3, %r3, 1;
    setp.lt.u32 %p2, %r3, 96;
    @%p2 bra LOOP;
    st.global.u32 [%d3], %r2; //@store
""",
    ),
    grid=1,
    block=96,
    data=scan_data,
    plants=(
        plant("reads and writes of a step without a barrier between them", {"was_read": ""}, "race_shared read write"),
        plant("the next step reads without a barrier after the writes", {"written": ""}, "race_shared read write"),
        plant(
            "the guard of the first elements is off by one",
            {"guard": "add.u32 %r5, tid, 1; setp.lt.u32 %p1, %r5, %r3;"},
            "out_of_bounds_shared read",
            also=("undefined_store store", "undefined_store write"),
        ),
    ),
)


def transpose_data(rng: np.random.Generator) -> Data:
    x = words(40, 50, rng=rng)
    return Data([x, emulator.output(np.zeros((50, 40), np.uint32)), 40, 50], {1: x.T})


# Blocks are tiles of 32 x 32, two along the rows and two along the columns; 8 warps take 4 rows each.
TRANSPOSE = Case(
    "transpose",
    ptx(
        "u64 x, u64 y, u32 m, u32 n",
        """
    .shared .align 4 .b8 tile[4224];
    mov.u32 base, tile;
    and.b32 %r1, cta, 1; shl.b32 %r1, %r1, 5;
    shr.u32 %r2, cta, 1; shl.b32 %r2, %r2, 5;
    mov.u32 %r3, warp;
LOAD:
    add.u32 %r4, %r2, %r3;
    add.u32 %r5, %r1, lane;
    setp.lt.u32 %p1, %r4, m; //@row_mask
    setp.lt.and.u32 %p1, %r5, n, %p1; //@column_mask
    mad.lo.u32 %r6, %r4, n, %r5;
    mul.wide.u32 %d1, %r6, 4; add.s64 %d1, x, %d1;
    mad.lo.u32 %r7, %r3, 33, lane; shl.b32 %r7, %r7, 2; add.u32 %r7, base, %r7; //@pitch
    mov.u32 %r8, 0;
    @%p1 ld.global.u32 %r8, [%d1]; //@load
    st.shared.u32 [%r7], %r8; //@put
    add.u32 %r3, %r3, 8;
    setp.lt.u32 %p2, %r3, 32;
    @%p2 bra LOAD;
    bar.sync 0; //@full
    mov.u32 %r3, warp;
STORE:
    add.u32 %r4, %r1, %r3;
    add.u32 %r5, %r2, lane;
    setp.lt.u32 %p1, %r4, n; //@out_row_mask
    setp.lt.and.u32 %p1, %r5, m, %p1; //@out_column_mask
    mad.lo.u32 %r6, %r4, m, %r5;
    mul.wide.u32 %d2, %r6, 4; add.s64 %d2, y, %d2;
    mad.lo.u32 %r7, lane, 33, %r3; shl.b32 %r7, %r7, 2; add.u32 %r7, base, %r7; //@out_pitch
    ld.shared.u32 %r8, [%r7]; //@get
    @%p1 st.global.u32 [%d2], %r8; //@store
    add.u32 %r3, %r3, 8;
    setp.lt.u32 %p2, %r3, 32;
    @%p2 bra STORE;
""",
    ),
    grid=4,
    block=256,
    data=transpose_data,
    plants=(
        plant(
            "no barrier between the halves of a transposition",
            {"full": ""},
            "race_shared put get",
            also=("uninitialised_shared get", "undefined_store store"),
        ),
        plant(
            "the mask of the last row is off by one",
            {"row_mask": "setp.le.u32 %p1, %r4, m;"},
            "out_of_bounds_global load",
        ),
        plant(
            "the mask of the last column is off by one",
            {"column_mask": "setp.le.and.u32 %p1, %r5, n, %p1;"},
            "out_of_bounds_global load",
        ),
        plant(
            "the mask of the output's last row is off by one",
            {"out_row_mask": "setp.le.u32 %p1, %r4, n;"},
            "out_of_bounds_global store",
        ),
        plant(
            "the mask of the output's last column is off by one",  # into the next row, which another block writes
            {"out_column_mask": "setp.le.and.u32 %p1, %r5, m, %p1;"},
            "race_global store store",
            also=("out_of_bounds_global store",),
        ),
        plant(
            "two pitches for one tile",
            {"out_pitch": "mad.lo.u32 %r7, lane, 32, %r3; shl.b32 %r7, %r7, 2; add.u32 %r7, base, %r7;"},
            "uninitialised_shared get",
            also=("undefined_store store",),
        ),
        plant(
            "a pitch that does not fit the tile",
            {"pitch": "mad.lo.u32 %r7, %r3, 36, lane; shl.b32 %r7, %r7, 2; add.u32 %r7, base, %r7;"},
            "out_of_bounds_shared put",
            also=("uninitialised_shared get", "undefined_store store"),
        ),
    ),
)


def moving_data(rng: np.random.Generator) -> Data:
    x = words(5, 64, rng=rng)
    return Data([x, emulator.output(np.zeros(64, np.uint32)), 5], {1: x[:, ::-1].sum(0, dtype=np.uint32)})


# Registers stage the next tile while the present one is read; two buffers, one barrier per tile.
DOUBLE_BUFFER = Case(
    "double_buffer",
    ptx(
        "u64 x, u64 y, u32 tiles",
        """
    .shared .align 4 .b8 buffers[512];
    mov.u32 base, buffers;
    shl.b32 %r1, tid, 2;
    xor.b32 %r2, %r1, 252;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mov.u32 %r3, 0;
    mov.u32 %r4, 0;
    mov.u32 %r5, base;
    ld.global.u32 %r6, [%d2];
LOOP:
    add.u32 %r7, %r5, %r1;
    st.shared.u32 [%r7], %r6; //@put
    add.u32 %r4, %r4, 1;
    setp.lt.u32 %p1, %r4, tiles; //@more
    add.s64 %d2, %d2, 256;
    @%p1 ld.global.u32 %r6, [%d2]; //@load
    bar.sync 0; //@full
    add.u32 %r8, %r5, %r2;
    ld.shared.u32 %r9, [%r8]; //@get
    add.u32 %r3, %r3, %r9;
    sub.u32 %r5, %r5, base; xor.b32 %r5, %r5, 256; add.u32 %r5, base, %r5; //@toggle
    @%p1 bra LOOP;
    st.global.u32 [%d3], %r3; //@store
""",
    ),
    grid=1,
    block=64,
    data=moving_data,
    plants=(
        plant("a double buffer that never changes sides", {"toggle": ""}, "race_shared put get"),
        plant(
            "no barrier between filling a buffer and reading it",
            {"full": ""},
            "race_shared put get",
            also=("uninitialised_shared get", "undefined_store store"),
        ),
        plant(
            "the prefetch runs one tile too far",
            {"more": "setp.le.u32 %p1, %r4, tiles;"},
            "out_of_bounds_global load",
            also=("undefined_store put", "undefined_store store"),
        ),
        plant(
            "the second buffer is larger than its memory",
            {"toggle": "sub.u32 %r5, %r5, base; xor.b32 %r5, %r5, 320; add.u32 %r5, base, %r5;"},
            "out_of_bounds_shared put",
            "out_of_bounds_shared get",
            also=("out_of_bounds_shared get", "undefined_store store", "uninitialised_shared get"),
        ),
    ),
)


def histogram_data(rng: np.random.Generator) -> Data:
    x = rng.integers(0, 256, (2, 96, 4)).astype(np.uint8)
    x[:, ::2] &= 0xF3  # so that lanes, warps and blocks meet in a bin
    return Data([x, np.zeros(16, np.uint32)], {1: np.bincount((x >> 2 & 15).ravel(), minlength=16).astype(np.uint32)})


COUNT = "ld.{0}.u32 %r9, [{1}]; add.u32 %r9, %r9, {2}; st.{0}.u32 [{1}], %r9;"  # what a plain increment becomes
HISTOGRAM = Case(
    "histogram",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 bins[64];
    mov.u32 base, bins;
    setp.lt.u32 %p1, tid, 16;
    shl.b32 %r1, tid, 2; add.u32 %r1, base, %r1;
    @%p1 st.shared.u32 [%r1], 0; //@zero
    bar.sync 0; //@zeroed
    mad.lo.u32 %r2, cta, 96, tid;
    mul.wide.u32 %d1, %r2, 4; add.s64 %d1, x, %d1;
    ld.global.u32 %r3, [%d1];
    mov.u32 %r4, 4;
LOOP:
    shr.u32 %r5, %r3, 2;
    and.b32 %r5, %r5, 15; //@bin
    shl.b32 %r5, %r5, 2; add.u32 %r5, base, %r5;
    red.shared.add.u32 [%r5], 1; //@count
    shr.u32 %r3, %r3, 8;
    sub.u32 %r4, %r4, 1;
    setp.ne.u32 %p2, %r4, 0;
    @%p2 bra LOOP;
    bar.sync 0; //@counted
    @!%p1 bra END;
    ld.shared.u32 %r6, [%r1]; //@get
    mul.wide.u32 %d2, tid, 4; add.s64 %d2, y, %d2;
    red.global.add.u32 [%d2], %r6; //@total
END:
""",
    ),
    grid=2,
    block=96,
    data=histogram_data,
    plants=(
        plant(
            "a histogram in shared memory without atomics",
            {"count": COUNT.format("shared", "%r5", 1)},
            "race_shared count count",
        ),
        plant(
            "a histogram in global memory without atomics",
            {"total": COUNT.format("global", "%d2", "%r6")},
            "race_global total total",
        ),
        plant(
            "the bins are zeroed without a barrier before the counting",
            {"zeroed": ""},
            "race_shared zero count",
            also=(
                "uninitialised_shared count",
                "uninitialised_shared get",
                "undefined_store count",
                "undefined_store total",
            ),
        ),
        plant("the bins are read without a barrier after the counting", {"counted": ""}, "race_shared count get"),
        plant(
            "the bins are never zeroed",
            {"zero": ""},
            "uninitialised_shared count",
            also=("uninitialised_shared get", "undefined_store count", "undefined_store total"),
        ),
        plant("a bin number with one bit too many", {"bin": "and.b32 %r5, %r5, 31;"}, "out_of_bounds_shared count"),
    ),
)


def broadcast_data(rng: np.random.Generator) -> Data:
    x = words(8, 64, rng=rng)
    expected = np.zeros(64, np.uint32)
    for row in range(8):
        expected += x[row] * x[row, row]
    return Data([x, emulator.output(np.zeros(64, np.uint32))], {1: expected})


# The pivot of each step is broadcast by the thread that holds it.
BROADCAST = Case(
    "broadcast",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 pivot[4];
    mov.u32 base, pivot;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mov.u32 %r1, 0;
    mov.u32 %r2, 0;
LOOP:
    ld.global.u32 %r3, [%d2];
    setp.eq.u32 %p1, tid, %r1;
    @%p1 st.shared.u32 [base], %r3; //@put
    bar.sync 0; //@full
    ld.shared.u32 %r4, [base]; //@get
    mad.lo.u32 %r2, %r3, %r4, %r2;
    bar.sync 0; //@empty
    add.s64 %d2, %d2, 256;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p2, %r1, 8;
    @%p2 bra LOOP;
    st.global.u32 [%d3], %r2; //@store
""",
    ),
    grid=1,
    block=64,
    data=broadcast_data,
    plants=(
        plant("the owner writes its broadcast while others still read the last", {"empty": ""}, "race_shared put get"),
        plant(
            "every warp's owner broadcasts",
            {"put": "setp.eq.u32 %p1, lane, %r1; @%p1 st.shared.u32 [base], %r3;"},
            "race_shared put put",
        ),
    ),
)


def rows_of_eight(rng: np.random.Generator) -> Data:
    x = rng.integers(0, 1 << 16, (2, 8, 5, 8)).astype(np.uint16)  # per warp: 8 rows of 5 chunks of 8 halves
    expected = np.zeros((2, 5, 32), np.uint32)
    for lane in range(32):
        pair = x[:, lane // 4, :, 2 * (lane % 4) : 2 * (lane % 4) + 2].astype(np.uint32)
        expected[:, :, lane] = pair[..., 0] | pair[..., 1] << 16
    return Data([x, emulator.output(np.zeros((2, 5, 32), np.uint32))], {1: expected})


# Each warp has a tile of 8 rows x 8 chunks of 16 bytes of its own, of which a ragged edge fills 5; chunk c of row r
# lies at c ^ r. Lane l copies row l % 8, chunks l / 8 and l / 8 + 4.
SWIZZLED_TILE = Case(
    "swizzled_tile",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 16 .b8 tiles[2048];
    mov.u32 base, tiles;
    mad.lo.u32 base, warp, 1024, base; //@tile
    and.b32 %r1, lane, 7;
    shr.u32 %r2, lane, 3;
    mad.lo.u32 %r3, warp, 8, %r1; mul.lo.u32 %r3, %r3, 5; add.u32 %r3, %r3, %r2;
    mul.wide.u32 %d1, %r3, 16; add.s64 %d1, x, %d1;
    xor.b32 %r4, %r2, %r1; mad.lo.u32 %r4, %r1, 8, %r4; mad.lo.u32 %r4, %r4, 16, base;
    ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%d1];
    st.shared.v4.u32 [%r4], {%r5, %r6, %r7, %r8}; //@put
    add.u32 %r2, %r2, 4;
    setp.lt.u32 %p1, %r2, 5; //@edge
    xor.b32 %r4, %r2, %r1; mad.lo.u32 %r4, %r1, 8, %r4; mad.lo.u32 %r4, %r4, 16, base; //@swizzle
    @%p1 ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%d1+64]; //@load_edge
    @%p1 st.shared.v4.u32 [%r4], {%r5, %r6, %r7, %r8}; //@put_edge
    bar.warp.sync -1; //@full
    mad.lo.u32 %r9, warp, 160, lane; mul.wide.u32 %d2, %r9, 4; add.s64 %d2, y, %d2;
    and.b32 %r1, lane, 7; //@row
    mov.u32 %r10, 0;
LOOP:
    xor.b32 %r11, %r10, %r1; mad.lo.u32 %r11, %r1, 8, %r11; mad.lo.u32 %r11, %r11, 16, base; //@read_swizzle
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r12}, [%r11]; //@get
    st.global.u32 [%d2], %r12; //@store
    add.s64 %d2, %d2, 128;
    add.u32 %r10, %r10, 1;
    setp.lt.u32 %p2, %r10, 5; //@chunks
    @%p2 bra LOOP;
""",
    ),
    grid=1,
    block=64,
    data=rows_of_eight,
    plants=(
        plant(
            "a swizzle on the writing side only",
            {"read_swizzle": "mad.lo.u32 %r11, %r1, 8, %r10; mad.lo.u32 %r11, %r11, 16, base;"},
            "uninitialised_shared get",
            also=("undefined_store store",),
        ),
        plant(
            "a swizzle on the reading side only of some chunks",
            {"swizzle": "mad.lo.u32 %r4, %r1, 8, %r2; mad.lo.u32 %r4, %r4, 16, base;"},
            "uninitialised_shared get",
            also=("undefined_store store", "race_shared put put_edge"),
        ),
        plant(
            "ldmatrix rows of the neighbouring warp's tile",
            {"row": "and.b32 %r1, lane, 7; add.u32 %r1, %r1, 1;"},
            "uninitialised_shared get",
            "race_shared put get",
            "race_shared put_edge get",
            "out_of_bounds_shared get",
            also=("undefined_store store",),
        ),
        plant(
            "one chunk too many of a ragged edge",
            {"chunks": "setp.le.u32 %p2, %r10, 5;"},
            "uninitialised_shared get",
            also=("undefined_store store", "race_global store store", "out_of_bounds_global store"),
        ),
        plant(
            "lanes read what others stored without a bar.warp.sync",
            {"full": ""},
            "race_shared put get",
            "race_shared put_edge get",
            also=("uninitialised_shared get", "undefined_store store"),
        ),
        plant(
            "two warps fill one tile",
            {"tile": ""},
            "race_shared put put",
            "race_shared put_edge put_edge",
            also=("race_shared put get", "race_shared put_edge get", "race_shared put put_edge"),
        ),
    ),
)


def warp_sum_data(rng: np.random.Generator) -> Data:
    x = words(3, 32, rng=rng)
    return Data([x, emulator.output(np.zeros(3, np.uint32))], {1: x.sum(1, dtype=np.uint32)})


# The last steps of a reduction in the style that relied on lockstep once; since sm_70 each needs a bar.warp.sync.
WARP_SUM = Case(
    "warp_sum",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[384];
    mov.u32 base, part;
    shl.b32 %r1, tid, 2; add.u32 %r1, base, %r1;
    mul.wide.u32 %d1, tid, 4; add.s64 %d1, x, %d1;
    ld.global.u32 %r2, [%d1];
    st.shared.u32 [%r1], %r2; //@put
    mov.u32 %r3, 16;
LOOP:
    bar.warp.sync -1; //@written
    setp.lt.u32 %p1, lane, %r3;
    mov.u32 %r5, 0;
    shl.b32 %r4, %r3, 2; add.u32 %r4, %r1, %r4;
    @%p1 ld.shared.u32 %r5, [%r4]; //@read
    add.u32 %r2, %r2, %r5;
    bar.warp.sync -1; //@was_read
    @%p1 st.shared.u32 [%r1], %r2; //@write
    shr.u32 %r3, %r3, 1;
    setp.ne.u32 %p2, %r3, 0;
    @%p2 bra LOOP;
    setp.eq.u32 %p3, lane, 0;
    mul.wide.u32 %d2, warp, 4; add.s64 %d2, y, %d2;
    @%p3 st.global.u32 [%d2], %r2; //@store
""",
    ),
    grid=1,
    block=96,
    data=warp_sum_data,
    plants=(
        plant(
            "lockstep relied on between a store and a load",
            {"written": ""},
            "race_shared put read",
            "race_shared write read",
        ),
        plant(
            "a bar.warp.sync of half the warp",
            {"written": "bar.warp.sync 0xFFFF;"},
            "mask_invalid written",
            also=("race_shared put read", "race_shared write read"),
        ),
    ),
)


def wmma_data(rng: np.random.Generator) -> Data:
    a = rng.integers(-8, 9, (16, 16)).astype(np.float16)
    b = rng.integers(-8, 9, (2, 16, 16)).astype(np.float16)
    c = a.astype(np.float32) @ b.astype(np.float32)
    return Data([a, b, emulator.output(np.zeros((2, 16, 16), np.float32))], {2: c})


# Two warps multiply one A, staged in shared memory, by a B of their own each, and store through shared memory.
WMMA = Case(
    "wmma",
    ptx(
        "u64 a, u64 b, u64 c",
        """
    .shared .align 32 .b8 memory[2560];
    .reg .b32 a<8>, b<8>;
    .reg .f32 c<8>;
    mov.u32 base, memory;
    mul.wide.u32 %d1, tid, 8; add.s64 %d2, a, %d1;
    ld.global.v2.u32 {%r1, %r2}, [%d2];
    mad.lo.u32 %r3, tid, 8, base;
    st.shared.v2.u32 [%r3], {%r1, %r2}; //@put
    bar.sync 0; //@full
    mul.wide.u32 %d3, warp, 512; add.s64 %d3, b, %d3;
    mov.u32 %r4, 16; //@pitch
    wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {a0, a1, a2, a3, a4, a5, a6, a7}, [base], %r4; //@load
    wmma.load.b.sync.aligned.row.m16n16k16.global.f16 {b0, b1, b2, b3, b4, b5, b6, b7}, [%d3], 16; //@load_b
    mov.f32 %f0, 0f00000000;
    wmma.mma.sync.aligned.row.row.m16n16k16.f32.f32 {c0, c1, c2, c3, c4, c5, c6, c7}, {a0, a1, a2, a3, a4, a5, a6, a7},
        {b0, b1, b2, b3, b4, b5, b6, b7}, {%f0, %f0, %f0, %f0, %f0, %f0, %f0, %f0};
    add.u32 %r5, base, 512;
    mad.lo.u32 %r5, warp, 1024, %r5; //@region
    wmma.store.d.sync.aligned.row.m16n16k16.shared.f32 [%r5], {c0, c1, c2, c3, c4, c5, c6, c7}, 16; //@stage
    bar.warp.sync 0xFFFFFFFF; //@staged
    mad.lo.u32 %r6, lane, 16, %r5;
    mul.wide.u32 %d4, warp, 1024; mul.wide.u32 %d5, lane, 16; add.s64 %d4, %d4, %d5; add.s64 %d4, c, %d4;
    ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r6]; //@unstage
    ld.shared.v4.f32 {%f5, %f6, %f7, %f8}, [%r6+512]; //@unstage
    st.global.v4.f32 [%d4], {%f1, %f2, %f3, %f4}; //@store
    st.global.v4.f32 [%d4+512], {%f5, %f6, %f7, %f8}; //@store
""",
    ),
    grid=1,
    block=64,
    data=wmma_data,
    plants=(
        plant(
            "a wmma load without a barrier after the stores",
            {"full": ""},
            "race_shared put load",
            also=("uninitialised_shared load", "undefined_store stage", "undefined_store store"),
        ),
        plant(
            "a wmma load with the wrong row pitch",
            {"pitch": "mov.u32 %r4, 24;"},
            "uninitialised_shared load",
            "race_shared load stage",
            also=("undefined_store stage", "undefined_store store"),
        ),
        plant("a staged fragment read by other lanes without order", {"staged": ""}, "race_shared stage unstage"),
        plant(
            "two warps stage fragments in one region",
            {"region": ""},
            "race_shared stage stage",
            also=("race_shared stage unstage",),
        ),
    ),
)


def stmatrix_data(rng: np.random.Generator) -> Data:
    x = words(64, 4, rng=rng)
    y = np.zeros((2, 4, 8, 4), np.uint32)  # per warp and matrix: 8 rows of 4 pairs of halves, lane l holds row l / 4
    y[:] = x.reshape(2, 8, 4, 4).transpose(0, 3, 1, 2)
    return Data([x, emulator.output(np.zeros((2, 4, 8, 4), np.uint32))], {1: y})


# Each warp writes four matrices of 8 x 8 halves as 32 rows of 16 bytes, which the other warp copies out.
STMATRIX = Case(
    "stmatrix",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 16 .b8 rows[1024];
    mov.u32 base, rows;
    mul.wide.u32 %d1, tid, 16; add.s64 %d2, x, %d1;
    ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d2];
    mad.lo.u32 %r5, tid, 16, base; //@row
    stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r5], {%r1, %r2, %r3, %r4}; //@put
    bar.sync 0; //@full
    xor.b32 %r6, tid, 32; mad.lo.u32 %r7, %r6, 16, base;
    ld.shared.v4.u32 {%r8, %r9, %r10, %r11}, [%r7]; //@get
    mul.wide.u32 %d3, %r6, 16; add.s64 %d3, y, %d3;
    st.global.v4.u32 [%d3], {%r8, %r9, %r10, %r11}; //@store
""",
        target="sm_90",
    ),
    grid=1,
    block=64,
    data=stmatrix_data,
    target="sm_90a",
    plants=(
        plant(
            "no barrier after stmatrix",
            {"full": ""},
            "race_shared put get",
            also=("uninitialised_shared get", "undefined_store store"),
        ),
        plant(
            "stmatrix rows of the lane instead of the thread",
            {"row": "mad.lo.u32 %r5, lane, 16, base;"},
            "race_shared put put",
            also=("uninitialised_shared get", "undefined_store store"),
        ),
        plant(
            "stmatrix rows that are not aligned",
            {"row": "mad.lo.u32 %r5, tid, 8, base;"},
            "misaligned put",
            also=("uninitialised_shared get", "undefined_store store", "race_shared put put"),
        ),
    ),
)

CASES = (
    ROW_MAX,
    TREE_SUM,
    SCAN,
    TRANSPOSE,
    DOUBLE_BUFFER,
    HISTOGRAM,
    BROADCAST,
    SWIZZLED_TILE,
    WARP_SUM,
    WMMA,
    STMATRIX,
)
