"""Asynchronous copies: a multistage GEMM with ldmatrix, mma and a staged epilogue; a gather."""

import numpy as np

from lowbitvm.runtime import emulator
from tests.planted.table import Case, Data, plant, ptx, words


def gemm_data(rng: np.random.Generator) -> Data:
    a, b = (rng.integers(-8, 9, (16, 72)).astype(np.float16) for _ in range(2))
    c = np.zeros((16, 16), np.float32)
    return Data([a, b, emulator.output(c), 72], {2: a.astype(np.float32) @ b.astype(np.float32).T})


# What a copy that nobody waits for leads to besides: its stage is read too early, the epilogue is staged over it.
STALE = (
    "uninitialised_shared read",
    "undefined_store stage",
    "undefined_store store",
    "copy_never_awaited exit",
    "race_copy stage copy",
    "race_copy stage copy_first",
    "race_shared read copy",
    "race_shared read copy_first",
    "race_copy copy copy_first",
    "race_shared stage copy",
)

# C[16, 16] = A[16, k] B[16, k]^T by two warps of 8 columns. Three stages of 16 of k: 16 rows of A, then 16 of B, of two
# chunks of 16 bytes; chunk c of row r lies at c ^ (r >> 2 & 1). Each thread copies one chunk of each stage. k is a
# multiple of 8: chunks beyond it are filled with zeros. C is staged over the first two stages.
GEMM = Case(
    "gemm",
    ptx(
        "u64 a, u64 b, u64 c, u32 k",
        """
    .shared .align 128 .b8 stages[3072];
    mov.u32 base, stages;
    // what this thread copies: row %r1, chunk %r2 of A (warp 0) or B (warp 1), to %r4 within a stage
    shr.u32 %r1, lane, 1; and.b32 %r2, lane, 1;
    setp.eq.u32 %p1, warp, 0; selp.b64 %d1, a, b, %p1;
    mul.lo.u32 %r3, %r1, k; mad.lo.u32 %r3, %r2, 8, %r3; mul.wide.u32 %d2, %r3, 2; add.s64 %d1, %d1, %d2;
    bfe.u32 %r4, %r1, 2, 1; xor.b32 %r4, %r4, %r2; shl.b32 %r4, %r4, 4;
    mad.lo.u32 %r4, %r1, 32, %r4; mad.lo.u32 %r4, warp, 512, %r4;
    // what its lane addresses for ldmatrix: %r5 in A, %r7 in B
    and.b32 %r5, lane, 15; shr.u32 %r6, lane, 4; bfe.u32 %r7, %r5, 2, 1; xor.b32 %r6, %r6, %r7; shl.b32 %r6, %r6, 4;
    mad.lo.u32 %r5, %r5, 32, %r6;
    and.b32 %r7, lane, 7; mad.lo.u32 %r7, warp, 8, %r7; bfe.u32 %r8, lane, 3, 1; bfe.u32 %r9, %r7, 2, 1;
    xor.b32 %r8, %r8, %r9; shl.b32 %r8, %r8, 4; mad.lo.u32 %r7, %r7, 32, %r8; add.u32 %r7, %r7, 512;
    mov.f32 %f0, 0f00000000; mov.f32 %f1, 0f00000000; mov.f32 %f2, 0f00000000; mov.f32 %f3, 0f00000000; //@clear
    // bytes of its row from its chunk on, and the number of tiles of k
    shl.b32 %r10, k, 1; shl.b32 %r11, %r2, 4; sub.s32 %r10, %r10, %r11;
    add.u32 %r13, k, 15; shr.u32 %r13, %r13, 4;
    add.u32 %r14, base, %r4;
    min.s32 %r15, %r10, 16; max.s32 %r15, %r15, 0;
    cp.async.cg.shared.global [%r14], [%d1], 16, %r15; //@copy_first
    cp.async.commit_group; //@commit_first
    sub.s32 %r10, %r10, 32; add.s64 %d1, %d1, 32;
    min.s32 %r15, %r10, 16; max.s32 %r15, %r15, 0;
    cp.async.cg.shared.global [%r14+1024], [%d1], 16, %r15; //@copy_first
    cp.async.commit_group; //@commit_second
    sub.s32 %r10, %r10, 32; add.s64 %d1, %d1, 32;
    mov.u32 %r16, 0;
    mov.u32 %r17, base;
    add.u32 %r18, base, 2048; //@fill
LOOP:
    cp.async.wait_group 1; //@wait
    bar.sync 0; //@ready
    add.u32 %r19, %r17, %r5;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r19]; //@read
    add.u32 %r24, %r17, %r7;
    ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r25, %r26}, [%r24]; //@read
    add.u32 %r27, %r16, 2;
    setp.lt.u32 %p2, %r27, %r13; //@more
    add.u32 %r14, %r18, %r4;
    max.s32 %r15, %r10, 0;
    min.s32 %r15, %r15, 16; //@size
    @%p2 cp.async.cg.shared.global [%r14], [%d1], 16, %r15; //@copy
    cp.async.commit_group; //@commit
    sub.s32 %r10, %r10, 32; add.s64 %d1, %d1, 32;
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3},
        {%r20, %r21, %r22, %r23}, {%r25, %r26}, {%f0, %f1, %f2, %f3};
    add.u32 %r17, %r17, 1024; //@next
    sub.u32 %r28, %r17, base; setp.ge.u32 %p3, %r28, 3072; add.u32 %r28, %r17, -3072; selp.b32 %r17, %r28, %r17, %p3;
    add.u32 %r18, %r18, 1024;
    sub.u32 %r28, %r18, base; setp.ge.u32 %p3, %r28, 3072; add.u32 %r28, %r18, -3072; selp.b32 %r18, %r28, %r18, %p3;
    add.u32 %r16, %r16, 1;
    setp.lt.u32 %p4, %r16, %r13;
    @%p4 bra LOOP;
    bar.sync 0; //@drained
    shr.u32 %r29, lane, 2; and.b32 %r30, lane, 3; shl.b32 %r30, %r30, 1;
    mad.lo.u32 %r30, warp, 8, %r30; //@column
    mad.lo.u32 %r31, %r29, 16, %r30; shl.b32 %r31, %r31, 2; add.u32 %r31, base, %r31;
    st.shared.v2.f32 [%r31+512], {%f0, %f1}; //@stage
    st.shared.v2.f32 [%r31+1024], {%f2, %f3}; //@stage
    bar.sync 0; //@staged
    shl.b32 %r32, tid, 4; add.u32 %r32, base, %r32;
    ld.shared.v4.f32 {%f4, %f5, %f6, %f7}, [%r32+512]; //@unstage
    mul.wide.u32 %d3, tid, 16; add.s64 %d3, c, %d3;
    st.global.v4.f32 [%d3], {%f4, %f5, %f6, %f7}; //@store
""",
    ),
    grid=1,
    block=64,
    data=gemm_data,
    plants=(
        plant(
            "no wait for the copies",
            {"wait": ""},
            "race_copy read copy_first",
            "race_copy read copy",
            also=STALE,
        ),
        plant(
            "a wait that leaves one group too many pending",
            {"wait": "cp.async.wait_group 2;"},
            "race_copy read copy_first",
            "race_copy read copy",
            also=STALE,
        ),
        plant(
            "no commit in the loop",
            {"commit": ""},
            "race_copy read copy_first",
            "race_copy read copy",
            also=STALE,
        ),
        plant("no commit of the first stage", {"commit_first": ""}, "race_copy read copy_first", also=STALE),
        plant(
            "no barrier after the wait",
            {"ready": ""},
            "race_copy read copy_first",
            "race_copy read copy",
            also=STALE,
        ),
        plant(
            "copies go to the stage that is read next",
            {"fill": "add.u32 %r18, base, 1024;"},
            "race_copy read copy",
            "race_copy copy copy_first",
            also=STALE,
        ),
        plant(
            "copies go to the stage that is being read",
            {"fill": "mov.u32 %r18, base;"},
            "race_copy read copy",
            "race_shared read copy",
            also=STALE,
        ),
        plant(
            "the readers run a stage ahead of the copies",
            {"next": "add.u32 %r17, %r17, 2048;"},
            "race_copy read copy",
            "race_copy read copy_first",
            also=STALE,
        ),
        plant(
            "one copy too many is issued and never awaited",
            {"more": "setp.le.u32 %p2, %r27, %r13;"},
            "copy_never_awaited exit",
        ),
        plant(
            "a source size that is not limited to the copy",
            {"size": ""},
            "copy_source_size copy",
            also=("out_of_bounds_global copy",),
        ),
        plant(
            "a tail of k that is copied whole", {"size": "mov.u32 %r15, 16;"}, "out_of_bounds_global copy", also=STALE
        ),
        plant("the epilogue is staged over tiles that others still read", {"drained": ""}, "race_shared stage read"),
        plant("the staged tile is read without a barrier", {"staged": ""}, "race_shared stage unstage"),
        plant("two warps stage the same columns", {"column": ""}, "race_shared stage stage"),
        plant(
            "accumulators that nothing cleared", {"clear": ""}, "undefined_store stage", also=("undefined_store store",)
        ),
    ),
)


def gather_data(rng: np.random.Generator) -> Data:
    rows = rng.permutation(48)[:32].astype(np.uint32)
    table = words(48, 16, rng=rng)
    return Data([table, rows, emulator.output(np.zeros((32, 16), np.uint32))], {2: table[rows[::-1]]})


GATHER_STALE = ("race_shared copy get", "uninitialised_shared get", "undefined_store store", "copy_never_awaited exit")

# Rows of 64 bytes, chosen by indices, into rows of 80 bytes; then written out from last to first.
GATHER = Case(
    "gather",
    ptx(
        "u64 table, u64 rows, u64 y",
        """
    .shared .align 16 .b8 tile[2560];
    mov.u32 base, tile;
    shr.u32 %r1, tid, 2; and.b32 %r2, tid, 3; shl.b32 %r2, %r2, 4;
    mul.wide.u32 %d1, %r1, 4; add.s64 %d1, rows, %d1;
    ld.global.u32 %r3, [%d1]; //@index
    mad.lo.u32 %r4, %r3, 64, %r2;
    cvt.u64.u32 %d2, %r4; add.s64 %d2, table, %d2; //@source
    mad.lo.u32 %r5, %r1, 80, %r2; add.u32 %r5, base, %r5; //@pitch
    cp.async.cg.shared.global [%r5], [%d2], 16; //@copy
    cp.async.wait_all; //@wait
    bar.sync 0; //@full
    sub.u32 %r6, 31, %r1;
    mad.lo.u32 %r7, %r6, 80, %r2; add.u32 %r7, base, %r7;
    ld.shared.v4.u32 {%r8, %r9, %r10, %r11}, [%r7]; //@get
    mul.wide.u32 %d3, tid, 16; add.s64 %d3, y, %d3;
    st.global.v4.u32 [%d3], {%r8, %r9, %r10, %r11}; //@store
""",
    ),
    grid=1,
    block=128,
    data=gather_data,
    plants=(
        plant("committed but not awaited", {"wait": "cp.async.commit_group;"}, "race_copy copy get", also=GATHER_STALE),
        plant("awaited but without a barrier", {"full": ""}, "race_copy copy get", also=GATHER_STALE),
        plant(
            "a barrier before the wait instead of after it",
            {"wait": "bar.sync 0;", "full": "cp.async.wait_all;"},
            "race_copy copy get",
            also=GATHER_STALE,
        ),
        plant(
            "a copy to rows that are not aligned to 16 bytes",
            {"pitch": "mad.lo.u32 %r5, %r1, 72, %r2; add.u32 %r5, base, %r5;"},
            "misaligned copy",
            also=(*GATHER_STALE, "race_copy copy copy", "race_shared copy copy"),
        ),
        plant(
            "a copy from 8 bytes into a chunk",
            {"source": "cvt.u64.u32 %d2, %r4; add.s64 %d2, table, %d2; add.s64 %d2, %d2, 8;"},
            "misaligned copy",
            also=(*GATHER_STALE, "out_of_bounds_global copy"),
        ),
        plant(
            "an index that was never loaded",
            {"index": ""},
            "undefined_address copy",
            also=(*GATHER_STALE, "out_of_bounds_global copy"),
        ),
        plant(
            "an index in elements where bytes are wanted",
            {"source": "mul.wide.u32 %d2, %r4, 4; add.s64 %d2, table, %d2;"},
            "out_of_bounds_global copy",
            also=GATHER_STALE,
        ),
    ),
)

CASES = (GEMM, GATHER)
