"""Whole hand-written kernels on the PTX emulator, against numpy."""

from collections.abc import Callable

import numpy as np
import pytest

from lowbitvm.errors import LowbitvmError
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


def gemm(stages: int, barrier: str = "bar.sync 0;", awaited: int | None = None) -> str:
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
        cp.async.wait_group {stages - 2 if awaited is None else awaited};
        {barrier}
        add.u32 %r22, %r15, %r20;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r24, %r25, %r26, %r27}}, [%r22];
        add.u32 %r23, %r17, %r20;
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r28, %r29}}, [%r23];
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


@pytest.mark.parametrize("mistake", [{"barrier": ""}, {"awaited": 2}])
def test_a_gemm_without_its_barrier_or_with_a_wait_too_short_is_caught(mistake: dict[str, object]) -> None:
    kinds = set()
    for seed in range(4):
        _, _, report = run_gemm(gemm(3, **mistake), 3, 128, seed=seed, on_finding="collect")
        kinds |= {finding.kind for finding in report.findings}
    assert kinds & {"race_copy", "race_shared"}


def test_a_wait_too_short_gives_a_wrong_product_because_copies_land_late() -> None:
    c, expected, _ = run_gemm(gemm(3, awaited=2), 3, 128, checks="none")
    assert (c != expected).any()


@pytest.mark.parametrize("seed", range(6))
def test_lanes_that_take_different_paths_and_trip_counts_meet_again(seed: int) -> None:
    text = kernel(
        "u64 x",
        """
        ld.param.u64 %d1, [x]; mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 4; add.s64 %d2, %d1, %d2;
        mov.u32 %r2, 0; mov.u32 %r3, %r1; and.b32 %r5, %r1, 7; mov.u32 %r6, 0;
        LOOP:  // collatz steps, leaving early at 100 and skipping part of the body for every eighth lane
        setp.le.u32 %p1, %r3, 1; @%p1 bra OUT;
        and.b32 %r4, %r3, 1; setp.eq.u32 %p2, %r4, 0; @%p2 bra EVEN;
        mad.lo.u32 %r3, %r3, 3, 1; bra.uni NEXT;
        EVEN: shr.u32 %r3, %r3, 1;
        NEXT: add.u32 %r2, %r2, 1;
        setp.ge.u32 %p3, %r2, 100; @%p3 bra OUT;
        setp.eq.u32 %p4, %r5, 0; @%p4 bra LOOP;
        add.u32 %r6, %r6, 1;
        bra LOOP;
        OUT:
        activemask.b32 %r7; popc.b32 %r7, %r7;  // every lane is back
        shl.b32 %r6, %r6, 8; or.b32 %r2, %r2, %r6; shl.b32 %r7, %r7, 16; or.b32 %r2, %r2, %r7;
        st.global.u32 [%d2], %r2; ret;""",
    )
    x = np.zeros(96, np.uint32)
    emulator.load(text).launch("k", (1,), (96,), [emulator.output(x)], seed=seed)
    for lane, value in enumerate(x.tolist()):
        n, steps = lane, 0
        while n > 1 and steps < 100:
            n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
        counted = 0 if lane % 8 == 0 else min(steps, 99)  # the hundredth step leaves before it counts
        assert value == steps | counted << 8 | 32 << 16


def test_lanes_that_exit_early_leave_the_rest_running() -> None:
    text = kernel(
        "u64 x",
        """
        ld.param.u64 %d1, [x]; mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 4; add.s64 %d2, %d1, %d2;
        and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, 1; @%p1 exit;
        setp.lt.u32 %p2, %r1, 8; @%p2 bra LOW; mov.u32 %r3, 5; bra JOIN; LOW: mov.u32 %r3, 6; JOIN:
        activemask.b32 %r4; vote.sync.ballot.b32 %r5, %p2, %r4; mad.lo.u32 %r3, %r3, 256, %r5;
        st.global.u32 [%d2], %r3; ret;""",
    )
    x = np.zeros(32, np.uint32)
    emulator.load(text).launch("k", (1,), (32,), [x])
    lanes = np.arange(32)
    np.testing.assert_array_equal(x, np.where(lanes % 2 == 1, 0, np.where(lanes < 8, 6, 5) * 256 + 0b01010101))


@pytest.mark.parametrize("segment", [0, 0x1807])  # the whole warp, or quarters of it
@pytest.mark.parametrize(("mode", "clamp"), [("idx", 31), ("up", 0), ("down", 31), ("bfly", 31)])
def test_shuffles_follow_the_manual_and_lanes_out_of_range_keep_their_own(mode: str, clamp: int, segment: int) -> None:
    if segment:
        clamp = 0x1800 if mode == "up" else segment
    text = kernel(
        "u64 x, u64 y",
        f"""
        ld.param.u64 %d1, [x]; ld.param.u64 %d4, [y];
        mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 4; add.s64 %d1, %d1, %d2; add.s64 %d4, %d4, %d2;
        ld.global.u32 %r2, [%d1];
        shfl.sync.{mode}.b32 %r3|%p1, %r1, %r2, {clamp}, -1;
        selp.u32 %r4, 256, 0, %p1; or.b32 %r3, %r3, %r4; st.global.u32 [%d4], %r3; ret;""",
    )
    rng = np.random.default_rng(0)
    amounts = rng.integers(0, 32, 32).astype(np.uint32)
    y = np.zeros(32, np.uint32)
    emulator.load(text).launch("k", (1,), (32,), [amounts, emulator.output(y)])
    mask, bound = clamp >> 8 & 31, clamp & 31
    for lane, n in enumerate(amounts.tolist()):
        highest, lowest = (lane & mask) | (bound & ~mask), lane & mask
        source = {"up": lane - n, "down": lane + n, "bfly": lane ^ n, "idx": lowest | (n & ~mask)}[mode]
        valid = source >= highest if mode == "up" else source <= highest
        assert y[lane] == ((source | 256) if valid else lane)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_spreads_rows_or_columns_over_the_lanes(count: int, transposed: bool) -> None:
    registers = "{" + ", ".join(f"%r{10 + n}" for n in range(count)) + "}"
    stores = "".join(f"st.global.u32 [%d4+{128 * n}], %r{10 + n};" for n in range(count))
    text = kernel(
        "u64 x, u64 y",
        f"""
        .shared .align 16 .b8 tile[512];
        ld.param.u64 %d1, [x]; ld.param.u64 %d4, [y]; mov.u32 %r1, %tid.x;
        mul.wide.u32 %d2, %r1, 16; add.s64 %d1, %d1, %d2; mov.u32 %r2, tile; mad.lo.u32 %r3, %r1, 16, %r2;
        ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d1]; st.shared.v4.u32 [%r3], {{%r4, %r5, %r6, %r7}};
        bar.warp.sync -1; xor.b32 %r3, %r3, 48;  // rows in another order
        ldmatrix.sync.aligned{".trans" if transposed else ""}.m8n8.x{count}.shared.b16 {registers}, [%r3];
        mul.wide.u32 %d2, %r1, 4; add.s64 %d4, %d4, %d2; {stores} ret;""",
    )
    x = np.arange(256, dtype=np.uint16).reshape(32, 8)
    y = np.zeros((count, 32, 2), np.uint16)
    emulator.load(text).launch("k", (1,), (32,), [x, emulator.output(y)])
    for n in range(count):
        matrix = x[[(8 * n + row) ^ 3 for row in range(8)]]
        expected = (matrix.T if transposed else matrix).reshape(32, 2)
        np.testing.assert_array_equal(y[n], expected)


def test_movmatrix_transposes_registers() -> None:
    text = kernel(
        "u64 x",
        """
        ld.param.u64 %d1, [x]; mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 4; add.s64 %d1, %d1, %d2;
        ld.global.u32 %r2, [%d1]; movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r2; st.global.u32 [%d1], %r2; ret;""",
    )
    x = np.arange(64, dtype=np.uint16).reshape(8, 8)
    expected = x.T.copy()
    emulator.load(text).launch("k", (1,), (32,), [x])
    np.testing.assert_array_equal(x, expected)


def test_votes_and_reductions_see_all_lanes() -> None:
    text = kernel(
        "u64 x, u64 y",
        """
        ld.param.u64 %d1, [x]; ld.param.u64 %d4, [y];
        mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 4; add.s64 %d1, %d1, %d2; ld.global.u32 %r2, [%d1];
        setp.lt.s32 %p1, %r2, 0;
        vote.sync.ballot.b32 %r3, %p1, -1; vote.sync.any.pred %p2, %p1, -1; vote.sync.all.pred %p3, !%p1, -1;
        selp.u32 %r4, 1, 0, %p2; selp.u32 %r5, 1, 0, %p3;
        redux.sync.min.s32 %r6, %r2, -1; redux.sync.max.u32 %r7, %r2, -1; redux.sync.xor.b32 %r8, %r2, -1;
        st.global.v2.u32 [%d4], {%r3, %r4}; st.global.v4.u32 [%d4+16], {%r5, %r6, %r7, %r8}; ret;""",
    )
    x = np.random.default_rng(0).integers(-1000, 1000, 32).astype(np.int32)
    y = np.zeros(8, np.int32)
    emulator.load(text).launch("k", (1,), (32,), [x, y])
    ballot = sum(1 << n for n in range(32) if x[n] < 0)
    assert y.view(np.uint32)[0] == ballot and y[1] == 1 and y[4] == 0
    assert (y[5], y.view(np.uint32)[6], y[7]) == (x.min(), x.view(np.uint32).max(), np.bitwise_xor.reduce(x))


def test_nested_scopes_from_inline_assembly_have_their_own_registers_and_labels() -> None:
    text = kernel(
        "u64 x",
        """
        ld.param.u64 %d1, [x]; mov.u32 %r1, 1;
        { .reg .u32 %r1; .reg .pred p; mov.u32 %r1, 7; setp.eq.u32 p, %r1, 7; @p bra DONE; mov.u32 %r2, 0;
          DONE: add.u32 %r2, %r1, 1; }
        { .reg .pred p; setp.eq.u32 p, %r1, 7; @p bra DONE; add.u32 %r2, %r2, 100; DONE: }
        st.global.v2.u32 [%d1], {%r1, %r2}; ret;""",
    )
    x = np.zeros(2, np.uint32)
    emulator.load(text).launch("k", (1,), (1,), [x])
    assert x.tolist() == [1, 108]


def test_module_variables_hold_their_values_and_generic_addresses_reach_shared_memory() -> None:
    before = ".global .align 4 .u32 table[4] = {10, 20, 0x1E, 40};\n.shared .align 4 .b8 word[4];"
    text = kernel(
        "u64 x",
        """
        ld.param.u64 %d1, [x];
        mov.u64 %d2, table; ld.global.u32 %r1, [%d2+8]; ld.global.u32 %r2, [table+4]; st.global.u32 [table], %r1;
        mov.u32 %r3, word; cvt.u64.u32 %d3, %r3; cvta.shared.u64 %d4, %d3; st.u32 [%d4], %r2; ld.shared.u32 %r4, [word];
        ld.global.u32 %r5, [table]; st.global.v2.u32 [%d1], {%r1, %r4}; st.global.u32 [%d1+8], %r5; ret;""",
        before=before,
    )
    x = np.zeros(3, np.uint32)
    emulator.load(text).launch("k", (1,), (1,), [x])
    assert x.tolist() == [30, 20, 30]


def test_grid_and_block_indices_cover_three_dimensions() -> None:
    specials = [f"%{what}.{axis}" for what in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz"]
    stores = "".join(f"mov.u32 %r5, {name}; st.global.u32 [%d2+{4 * n}], %r5;" for n, name in enumerate(specials))
    text = kernel(
        "u64 x",
        f"""
        mov.u32 %r1, %ctaid.z; mov.u32 %r2, %nctaid.y; mov.u32 %r3, %ctaid.y; mad.lo.u32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.x; mad.lo.u32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %ntid.z; mov.u32 %r3, %tid.z; mad.lo.u32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %ntid.y; mov.u32 %r3, %tid.y; mad.lo.u32 %r1, %r1, %r2, %r3;
        mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.u32 %r1, %r1, %r2, %r3;
        ld.param.u64 %d1, [x]; mul.wide.u32 %d2, %r1, 48; add.s64 %d2, %d1, %d2; {stores} ret;""",
    )
    grid, block = (2, 3, 2), (5, 4, 3)
    x = np.zeros((*grid[::-1], *block[::-1], 12), np.uint32)
    emulator.load(text).launch("k", grid, block, [x])
    index = np.stack(np.meshgrid(*[np.arange(n) for n in x.shape[:-1]], indexing="ij"), -1)
    np.testing.assert_array_equal(x[..., 0:3], index[..., :2:-1])
    np.testing.assert_array_equal(x[..., 3:6], index[..., 2::-1])
    assert (x[..., 6:9] == block).all() and (x[..., 9:12] == grid).all()


@pytest.mark.parametrize(
    ("instruction", "reduce"),
    [
        ("red.global.add.u32", lambda v: v.sum(dtype=np.uint32)),
        ("red.global.max.s32", lambda v: v.view(np.int32).max().view(np.uint32)),
        ("red.global.min.u32", lambda v: v.min()),
        ("red.relaxed.gpu.global.xor.b32", lambda v: np.bitwise_xor.reduce(v)),
        (
            "red.global.add.noftz.f16x2",
            lambda v: v.view(np.float16).reshape(-1, 2).sum(0).astype(np.float16).view(np.uint32)[0],
        ),
    ],
)
def test_reductions_in_memory_combine_every_thread_of_every_block(
    instruction: str, reduce: Callable[..., np.ndarray]
) -> None:
    text = kernel(
        "u64 x, u64 y",
        f"""
        ld.param.u64 %d1, [x]; ld.param.u64 %d2, [y]; mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x;
        mad.lo.u32 %r1, %r2, 64, %r1; mul.wide.u32 %d3, %r1, 4; add.s64 %d1, %d1, %d3; ld.global.u32 %r3, [%d1];
        {instruction} [%d2], %r3; ret;""",
    )
    x = np.random.default_rng(0).integers(0, 4, (192, 2)).astype(np.float16).view(np.uint32).reshape(-1)
    y = np.zeros(1, np.uint32)
    if "min" in instruction:
        y[:] = x[0]
    emulator.load(text).launch("k", (3,), (64,), [x, y])
    assert y[0] == reduce(x)


def test_compare_and_swap_locks_and_exchange_returns_the_old_value() -> None:
    text = kernel(
        "u64 x",
        """
        .shared .align 4 .b8 word[4];
        ld.param.u64 %d1, [x]; mov.u32 %r1, %tid.x; mov.u32 %r2, word; setp.eq.u32 %p1, %r1, 0;
        @%p1 st.shared.u32 [%r2], 77; bar.sync 0;
        atom.shared.exch.b32 %r3, [%r2], %r1; mul.wide.u32 %d2, %r1, 4; add.s64 %d2, %d1, %d2; st.global.u32 [%d2], %r3;
        atom.global.cas.b32 %r4, [%d1+256], 0, 5; atom.global.add.u32 %r5, [%d1+260], 1; ret;""",
    )
    x = np.zeros(66, np.uint32)
    emulator.load(text).launch("k", (1,), (64,), [x])
    assert 77 in x[:64] and len(set(x[:64].tolist())) == 64
    assert x[64:].tolist() == [5, 64]


def test_the_missing_core_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowbitvm.runtime.emulator.launch.CORE", None)
    with pytest.raises(LowbitvmError, match=r"EMULATOR_MISSING.*build_ext --inplace"):
        emulator.load(VECTOR_ADD)
