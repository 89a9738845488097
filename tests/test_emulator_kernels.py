"""Whole hand-written kernels on the PTX emulator, against numpy."""

import numpy as np
import pytest

from lowbitvm.runtime import emulator

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
REGISTERS = ".reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<40>; .reg .f32 %f<16>; .reg .b64 %d<16>;"


def kernel(params: str, body: str, before: str = "") -> str:
    """A module with one kernel `k`; `params` is like "u64 x, u32 n"."""
    declared = ", ".join(f".param .{param.strip()}" for param in params.split(","))
    return f"{HEADER}{before}\n.visible .entry k({declared})\n{{\n{REGISTERS}\n{body}\n}}\n"


VECTOR_ADD = kernel(
    "u64 x, u64 y, u64 z, u32 n",
    """
    ld.param.u64 %d1, [x]; ld.param.u64 %d2, [y]; ld.param.u64 %d3, [z]; ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %d1, %d1;
    mul.wide.u32 %d4, %r5, 4;
    add.u64 %d5, %d1, %d4; add.u64 %d6, %d2, %d4; add.u64 %d7, %d3, %d4;
    ld.global.f32 %f1, [%d5]; ld.global.nc.f32 %f2, [%d6];
    add.f32 %f3, %f1, %f2;
    st.global.f32 [%d7], %f3;
    DONE: ret;""",
)


@pytest.mark.parametrize("n", [1, 31, 128, 1000])
def test_vector_addition_equals_numpy_for_ragged_sizes(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    z = np.zeros(n, np.float32)
    report = emulator.load(VECTOR_ADD).launch("k", grid=(8,), block=(128,), args=[x, y, emulator.output(z), n])
    np.testing.assert_array_equal(z, x + y)
    assert report.counters.arrays[0].read == 4 * n
    assert report.counters.arrays[2].written == 4 * n
    assert report.counters.global_sectors == 3 * -(-n // 8)


def test_a_shuffle_reduction_and_one_barrier_sum_a_block() -> None:
    text = kernel(
        "u64 x, u64 y",
        """
        .shared .align 4 .b8 partial[128];
        ld.param.u64 %d1, [x]; ld.param.u64 %d2, [y];
        mov.u32 %r1, %tid.x; mul.wide.u32 %d3, %r1, 4; add.s64 %d4, %d1, %d3;
        ld.global.u32 %r2, [%d4];
        mov.u32 %r3, 16;
        LOOP:
        shfl.sync.bfly.b32 %r4, %r2, %r3, 31, -1;
        add.u32 %r2, %r2, %r4;
        shr.u32 %r3, %r3, 1;
        setp.ne.u32 %p1, %r3, 0;
        @%p1 bra LOOP;
        mov.u32 %r5, %laneid; mov.u32 %r6, %warpid; mov.u32 %r7, partial;
        shl.b32 %r8, %r6, 2; add.u32 %r8, %r8, %r7;
        setp.eq.u32 %p2, %r5, 0;
        @%p2 st.shared.u32 [%r8], %r2;
        bar.sync 0;
        setp.ne.u32 %p3, %r6, 0;
        @%p3 bra END;
        shl.b32 %r9, %r5, 2; add.u32 %r9, %r9, %r7;
        mov.u32 %r10, 0;
        mov.u32 %r11, %nwarpid;
        setp.lt.u32 %p4, %r5, 8;
        @%p4 ld.shared.u32 %r10, [%r9];
        redux.sync.add.u32 %r12, %r10, -1;
        @%p2 st.global.u32 [%d2], %r12;
        END: ret;""",
    )
    x = np.arange(1000, 1256, dtype=np.uint32)
    y = np.zeros(1, np.uint32)
    for seed in range(5):
        emulator.load(text).launch("k", grid=(1,), block=(256,), args=[x, emulator.output(y)], seed=seed)
        assert y[0] == x.sum()


@pytest.mark.parametrize(("pitch", "conflicts"), [(33, 0), (32, 31 * 32)])
def test_a_shared_transposition_is_right_and_its_bank_conflicts_are_counted(pitch: int, conflicts: int) -> None:
    text = kernel(
        "u64 x, u64 y",
        f"""
        .shared .align 4 .b8 tile[{32 * 33 * 4}];
        ld.param.u64 %d1, [x]; ld.param.u64 %d2, [y];
        mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r9, tile;
        mad.lo.u32 %r3, %r2, 32, %r1; mul.wide.u32 %d3, %r3, 4;
        add.s64 %d4, %d1, %d3; ld.global.u32 %r4, [%d4];
        mad.lo.u32 %r5, %r2, {pitch}, %r1; mad.lo.u32 %r5, %r5, 4, %r9; st.shared.u32 [%r5], %r4;
        bar.sync 0;
        mad.lo.u32 %r6, %r1, {pitch}, %r2; mad.lo.u32 %r6, %r6, 4, %r9; ld.shared.u32 %r7, [%r6];
        add.s64 %d5, %d2, %d3; st.global.u32 [%d5], %r7;
        ret;""",
    )
    x = np.arange(1024, dtype=np.uint32).reshape(32, 32)
    y = np.zeros_like(x)
    report = emulator.load(text).launch("k", grid=(1,), block=(32, 32), args=[x, emulator.output(y)])
    np.testing.assert_array_equal(y, x.T)
    assert report.counters.bank_conflicts == conflicts


def gemm(stages: int, barrier: str = "bar.sync 0;", wait: int | None = None, last_barrier: str = "bar.sync 0;") -> str:
    """C[16, 32] = A[16, K] B[32, K]^T by four warps of 8 columns each: cp.async stages, ldmatrix, mma m16n8k16.

    A stage is 16 rows of A and 32 of B, each 16 halves (32 bytes).
    """
    stage = 48 * 32
    return kernel(
        "u64 a, u64 b, u64 c, u32 k",
        f"""
        ld.param.u64 %d1, [a]; ld.param.u64 %d2, [b]; ld.param.u64 %d3, [c]; ld.param.u32 %r1, [k];
        mov.u32 %r2, %tid.x; and.b32 %r3, %r2, 31; shr.u32 %r4, %r2, 5;
        mov.u32 %r5, smem;
        // threads 0..95 copy 16 bytes each: row t/2 of the stage, half t%2
        setp.lt.u32 %p1, %r2, 96;
        shr.u32 %r6, %r2, 1; and.b32 %r7, %r2, 1; shl.b32 %r7, %r7, 4;
        setp.lt.u32 %p2, %r6, 16;
        sub.u32 %r8, %r6, 16; selp.b32 %r8, %r6, %r8, %p2; selp.b64 %d4, %d1, %d2, %p2;
        mul.lo.u32 %r9, %r8, %r1; mul.wide.u32 %d5, %r9, 2; add.s64 %d4, %d4, %d5;
        cvt.u64.u32 %d6, %r7; add.s64 %d4, %d4, %d6;
        mad.lo.u32 %r10, %r6, 32, %r7; add.u32 %r10, %r10, %r5;
        mov.u32 %r11, 0;  // k step to fetch
        mov.u32 %r12, 0;  // stage to fill
        shr.u32 %r13, %r1, 4;
        mov.u32 %r14, {stages - 1};
        FILL:
        setp.lt.and.u32 %p3, %r11, %r13, %p1;
        @%p3 cp.async.cg.shared.global [%r10], [%d4], 16;
        cp.async.commit_group;
        add.s64 %d4, %d4, 32; add.u32 %r10, %r10, {stage}; add.u32 %r11, %r11, 1;
        setp.lt.u32 %p4, %r11, %r14;
        @%p4 bra FILL;
        // ldmatrix rows: A from lane%16, half lane/16; B from row lane%8 of the warp, half lane/8%2
        and.b32 %r15, %r3, 15; shr.u32 %r16, %r3, 4; shl.b32 %r16, %r16, 4; mad.lo.u32 %r15, %r15, 32, %r16;
        add.u32 %r15, %r15, %r5;
        and.b32 %r17, %r3, 7; bfe.u32 %r18, %r3, 3, 1; shl.b32 %r18, %r18, 4; mad.lo.u32 %r17, %r4, 8, %r17;
        mad.lo.u32 %r17, %r17, 32, %r18; add.u32 %r17, %r17, %r5; add.u32 %r17, %r17, {16 * 32};
        mov.f32 %f0, 0f00000000; mov.f32 %f1, 0f00000000; mov.f32 %f2, 0f00000000; mov.f32 %f3, 0f00000000;
        mov.u32 %r19, 0;  // k step to multiply
        mov.u32 %r20, 0;  // its stage's offset
        mov.u32 %r21, {(stages - 1) * stage};  // offset of the stage to fill
        mad.lo.u32 %r10, %r6, 32, %r7; add.u32 %r10, %r10, %r5;
        LOOP:
        cp.async.wait_group {stages - 2 if wait is None else wait};
        {barrier}
        add.u32 %r22, %r15, %r20;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r24, %r25, %r26, %r27}}, [%r22];
        add.u32 %r23, %r17, %r20;
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r28, %r29}}, [%r23];
        {last_barrier if stages == 1 else ""}
        setp.lt.and.u32 %p3, %r11, %r13, %p1;
        add.u32 %r30, %r10, %r21;
        @%p3 cp.async.cg.shared.global [%r30], [%d4], 16;
        cp.async.commit_group;
        add.s64 %d4, %d4, 32; add.u32 %r11, %r11, 1;
        mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{%f0, %f1, %f2, %f3}}, {{%r24, %r25, %r26, %r27}},
            {{%r28, %r29}}, {{%f0, %f1, %f2, %f3}};
        add.u32 %r20, %r20, {stage}; setp.eq.u32 %p5, %r20, {stages * stage}; selp.b32 %r20, 0, %r20, %p5;
        add.u32 %r21, %r21, {stage}; setp.eq.u32 %p6, %r21, {stages * stage}; selp.b32 %r21, 0, %r21, %p6;
        add.u32 %r19, %r19, 1; setp.lt.u32 %p4, %r19, %r13;
        @%p4 bra LOOP;
        cp.async.wait_all;
        // C: row lane/4 (+8), columns 8 warp + 2 (lane%4)
        shr.u32 %r31, %r3, 2; and.b32 %r32, %r3, 3; shl.b32 %r32, %r32, 1; mad.lo.u32 %r32, %r4, 8, %r32;
        mad.lo.u32 %r33, %r31, 32, %r32; mul.wide.u32 %d7, %r33, 4; add.s64 %d8, %d3, %d7;
        st.global.v2.f32 [%d8], {{%f0, %f1}};
        st.global.v2.f32 [%d8+1024], {{%f2, %f3}};
        ret;""",
        before=".extern .shared .align 128 .b8 smem[];",
    )


STAGE_BYTES = 48 * 32


def run_gemm(text: str, stages: int, k: int, **options: object) -> tuple[np.ndarray, np.ndarray, emulator.Report]:
    rng = np.random.default_rng(k)
    a = rng.integers(-8, 8, (16, k)).astype(np.float16)
    b = rng.integers(-8, 8, (32, k)).astype(np.float16)
    c = np.zeros((16, 32), np.float32)
    module = emulator.load(text)
    report = module.launch(
        "k", grid=(1,), block=(128,), args=[a, b, emulator.output(c), k], shared=stages * STAGE_BYTES, **options
    )
    return c, a.astype(np.float32) @ b.astype(np.float32).T, report


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_a_multistage_gemm_is_exact_and_raises_no_finding(stages: int, seed: int) -> None:
    c, expected, report = run_gemm(gemm(stages), stages, 128, seed=seed)
    np.testing.assert_array_equal(c, expected)
    assert report.counters.mma == 4 * 128 // 16
    assert report.findings == []
