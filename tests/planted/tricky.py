"""Kernels that are clean although they look as if they were not: each orders its accesses by other means than a barrier
of the whole block, or needs no order."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lowbitvm.runtime import emulator
from tests.planted.table import Array, Case, Data, ptx, words


def fresh(*shape: int) -> Any:
    return emulator.output(np.zeros(shape, np.uint32))


def given(
    shape: tuple[int, ...] | Callable[[np.random.Generator], Array],
    args: Callable[[Array], list[Any]],
    expected: Callable[[Array], dict[int, Array]],
) -> Callable[[np.random.Generator], Data]:
    """Launch data from one random input: words of a shape, or what a function draws."""

    def data(rng: np.random.Generator) -> Data:
        x = words(*shape, rng=rng) if isinstance(shape, tuple) else shape(rng)
        return Data(args(x), expected(x))

    return data


def reversed_warps(rng: np.random.Generator) -> Data:
    x = words(2, 32, rng=rng)
    return Data([x, fresh(2, 32)], {1: np.ascontiguousarray(x[:, ::-1])})


MIRROR = """
    .shared .align 4 .b8 part[256];
    mov.u32 base, part;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mad.lo.u32 %r1, tid, 4, base; xor.b32 %r2, tid, 31; mad.lo.u32 %r2, %r2, 4, base;
    ld.global.u32 %r3, [%d2];
    st.shared.u32 [%r1], %r3;
    {}
    ld.shared.u32 %r4, [%r2];
    st.global.u32 [%d3], %r4;
"""

WARP_BARRIER = Case(
    "a bar.warp.sync orders the lanes of a warp",
    ptx("u64 x, u64 y", MIRROR.format("bar.warp.sync 0xFFFFFFFF;")),
    grid=1,
    block=64,
    data=reversed_warps,
)

SHUFFLE_ORDERS = Case(
    "a shuffle that all lanes take part in orders them",
    ptx("u64 x, u64 y", MIRROR.format("shfl.sync.idx.b32 %r5, %r3, 0, 31, 0xFFFFFFFF;")),
    grid=1,
    block=64,
    data=reversed_warps,
)

VOTE_ORDERS = Case(
    "a vote that all lanes take part in orders them",
    ptx("u64 x, u64 y", MIRROR.format("setp.ne.u32 %p1, %r3, 0; vote.sync.any.pred %p2, %p1, 0xFFFFFFFF;")),
    grid=1,
    block=64,
    data=reversed_warps,
)

# Four lanes each, in branches of their own: the group's mask is all that is waited for.
PART_MASKS = Case(
    "groups of a diverged warp meet by masks of their own",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[128];
    mov.u32 base, part;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mad.lo.u32 %r1, tid, 4, base; xor.b32 %r2, tid, 7; mad.lo.u32 %r2, %r2, 4, base;
    and.b32 %r3, lane, 24; mov.u32 %r4, 0xFF; shl.b32 %r4, %r4, %r3;
    setp.lt.u32 %p1, lane, 16;
    ld.global.u32 %r5, [%d2];
    @%p1 bra LOW;
    add.u32 %r5, %r5, 1;
    st.shared.u32 [%r1], %r5;
    bar.warp.sync %r4;
    ld.shared.u32 %r6, [%r2];
    bra JOIN;
LOW:
    add.u32 %r5, %r5, 2;
    st.shared.u32 [%r1], %r5;
    bar.warp.sync %r4;
    ld.shared.u32 %r6, [%r2];
JOIN:
    st.global.u32 [%d3], %r6;
""",
    ),
    grid=1,
    block=32,
    data=given(
        (32,),
        lambda x: [x, fresh(32)],
        lambda x: {1: (x + np.repeat([2, 1], 16)).astype(np.uint32).reshape(4, 8)[:, ::-1].ravel()},
    ),
)

# Lanes of both branches meet at one logical barrier though they execute different instructions.
ACROSS_BRANCHES = Case(
    "both sides of a branch meet at a bar.warp.sync",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[128];
    mov.u32 base, part;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mad.lo.u32 %r1, tid, 4, base; xor.b32 %r2, tid, 31; mad.lo.u32 %r2, %r2, 4, base;
    setp.lt.u32 %p1, lane, 16;
    ld.global.u32 %r5, [%d2];
    @%p1 bra LOW;
    st.shared.u32 [%r1], %r5;
    bar.warp.sync 0xFFFFFFFF;
    ld.shared.u32 %r6, [%r2];
    bra JOIN;
LOW:
    st.shared.u32 [%r1], %r5;
    bar.warp.sync 0xFFFFFFFF;
    ld.shared.u32 %r6, [%r2];
JOIN:
    st.global.u32 [%d3], %r6;
""",
    ),
    grid=1,
    block=32,
    data=given((32,), lambda x: [x, fresh(32)], lambda x: {1: x[::-1]}),
)

ATOMICS_AFTER_PARTS = Case(
    "atomics of blocks whose warps met by part masks",
    ptx(
        "u64 x, u64 y",
        """
    mad.lo.u32 %r1, cta, 64, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d1, x, %d1;
    ld.global.u32 %r2, [%d1];
    setp.lt.u32 %p1, lane, 16;
    @!%p1 bra JOIN;
    shfl.sync.bfly.b32 %r3, %r2, 1, 31, 0x0000FFFF;
    add.u32 %r2, %r2, %r3;
    bar.warp.sync 0x0000FFFF;
JOIN:
    red.global.add.u32 [y], %r2;
    red.global.max.u32 [y+4], %r2;
""",
    ),
    grid=2,
    block=64,
    data=given(
        (4, 32),
        lambda x: [x, np.zeros(2, np.uint32)],
        lambda x: {1: np.array([x.sum() + x[:, :16].sum(), max((x[:, :16] + x[:, np.arange(16) ^ 1]).max(), x.max())])},
    ),
)

ATOMIC_HISTOGRAM = Case(
    "blocks that meet in atomics alone",
    ptx(
        "u64 x, u64 y",
        """
    mad.lo.u32 %r1, cta, 64, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d1, x, %d1;
    ld.global.u32 %r2, [%d1];
    and.b32 %r3, %r2, 7; mul.wide.u32 %d2, %r3, 4; add.s64 %d2, y, %d2;
    red.global.add.u32 [%d2], 1;
    atom.global.max.u32 %r4, [y+32], %r2;
    atom.global.or.b32 %r4, [y+36], %r2;
""",
    ),
    grid=3,
    block=64,
    data=given(
        (192,),
        lambda x: [x, np.zeros(10, np.uint32)],
        lambda x: {1: np.array([*np.bincount(x & 7, minlength=8), x.max(), np.bitwise_or.reduce(x)], np.uint32)},
    ),
)

# Block 0 tells block 1, block 1 tells block 2, which reads what block 0 wrote.
CHAIN = Case(
    "release and acquire are transitive over three blocks",
    ptx(
        "u64 x, u64 message, u64 flags, u64 y",
        """
    setp.ne.u32 %p1, tid, 0;
    @%p1 bra END;
    setp.eq.u32 %p2, cta, 0; @%p2 bra FIRST;
    setp.eq.u32 %p3, cta, 1; @%p3 bra SECOND;
    WAIT_TWO: ld.acquire.gpu.global.u32 %r1, [flags+4]; setp.eq.u32 %p4, %r1, 0; @%p4 bra WAIT_TWO;
    ld.global.u32 %r2, [message];
    st.global.u32 [y], %r2;
    bra END;
SECOND:
    WAIT_ONE: ld.acquire.gpu.global.u32 %r1, [flags]; setp.eq.u32 %p4, %r1, 0; @%p4 bra WAIT_ONE;
    st.release.gpu.global.u32 [flags+4], 1;
    bra END;
FIRST:
    ld.global.u32 %r2, [x];
    st.global.u32 [message], %r2;
    st.release.gpu.global.u32 [flags], 1;
END:
""",
    ),
    grid=3,
    block=32,
    data=given((1,), lambda x: [x, fresh(1), np.zeros(2, np.uint32), fresh(1)], lambda x: {3: x}),
)

ALL_ARRIVE = """
    mad.lo.u32 %r1, cta, 32, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d2, x, %d1; add.s64 %d3, message, %d1;
    ld.global.u32 %r2, [%d2];
    st.global.u32 [%d3], %r2;
    bar.sync 0;
    setp.ne.u32 %p1, tid, 0;
    {arrive}
    setp.ne.u32 %p2, cta, 0;
    @%p2 bra END;
    {spin}
    mov.u32 %r5, 0;
    mov.u32 %r6, 0;
    xor.b32 %r7, tid, 31; mul.wide.u32 %d4, %r7, 4; add.s64 %d4, message, %d4;
SUM:
    ld.global.u32 %r8, [%d4];
    add.u32 %r6, %r6, %r8;
    add.s64 %d4, %d4, 128;
    add.u32 %r5, %r5, 1;
    setp.lt.u32 %p4, %r5, grid;
    @%p4 bra SUM;
    mul.wide.u32 %d5, tid, 4; add.s64 %d5, y, %d5;
    st.global.u32 [%d5], %r6;
END:
"""


def arrivals(rng: np.random.Generator) -> Data:
    x = words(3, 32, rng=rng)
    return Data([x, fresh(3, 32), np.zeros(1, np.uint32), fresh(32)], {3: x.sum(0, dtype=np.uint32)[::-1]})


RED_RELEASE = Case(
    "a release by red and an acquire by ld, through a release sequence",
    ptx(
        "u64 x, u64 message, u64 count, u64 y",
        ALL_ARRIVE.format(
            arrive="@!%p1 red.release.gpu.global.add.u32 [count], 1;",
            spin="SPIN: ld.acquire.gpu.global.u32 %r3, [count]; setp.lt.u32 %p3, %r3, grid; @%p3 bra SPIN;",
        ),
    ),
    grid=3,
    block=32,
    data=arrivals,
)

FENCES = Case(
    "fences on both sides of relaxed accesses",
    ptx(
        "u64 x, u64 message, u64 count, u64 y",
        ALL_ARRIVE.format(
            arrive="fence.sc.gpu; @!%p1 red.relaxed.gpu.global.add.u32 [count], 1;",
            spin="SPIN: ld.relaxed.gpu.global.u32 %r3, [count]; setp.lt.u32 %p3, %r3, grid; @%p3 bra SPIN; "
            "fence.acq_rel.gpu;",
        ),
    ),
    grid=3,
    block=32,
    data=arrivals,
)

VOLATILE = Case(
    "volatile accesses between membars",
    ptx(
        "u64 x, u64 message, u64 count, u64 y",
        ALL_ARRIVE.format(
            arrive="membar.gl; @!%p1 atom.global.add.u32 %r9, [count], 1;",
            spin="SPIN: ld.volatile.global.u32 %r3, [count]; setp.lt.u32 %p3, %r3, grid; @%p3 bra SPIN; membar.gl;",
        ),
    ),
    grid=3,
    block=32,
    data=arrivals,
)

ONE_WAITS = Case(
    "one thread acquires for its block, and a barrier passes it on",
    ptx(
        "u64 x, u64 message, u64 count, u64 y",
        ALL_ARRIVE.format(
            arrive="@!%p1 atom.release.gpu.global.add.u32 %r9, [count], 1;",
            spin="@%p1 bra JOIN; SPIN: atom.acquire.gpu.global.or.b32 %r3, [count], 0; setp.lt.u32 %p3, %r3, grid; "
            "@%p3 bra SPIN; JOIN: bar.sync 0;",
        ),
    ),
    grid=3,
    block=32,
    data=arrivals,
)

LAST_TICKET = Case(
    "the block with the last ticket reads what all wrote",
    ptx(
        "u64 x, u64 message, u64 count, u64 y",
        """
    .shared .align 4 .b8 ticket[4];
    mov.u32 base, ticket;
    mad.lo.u32 %r1, cta, 64, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d2, x, %d1; add.s64 %d3, message, %d1;
    ld.global.u32 %r2, [%d2];
    st.global.u32 [%d3], %r2;
    bar.sync 0;
    setp.ne.u32 %p1, tid, 0;
    @%p1 bra JOIN;
    atom.acq_rel.gpu.global.inc.u32 %r3, [count], 2;
    st.shared.u32 [base], %r3;
JOIN:
    bar.sync 0;
    ld.shared.u32 %r3, [base];
    setp.ne.u32 %p2, %r3, 2;
    @%p2 bra END;
    mul.wide.u32 %d4, tid, 4; add.s64 %d5, message, %d4; add.s64 %d6, y, %d4;
    ld.global.u32 %r4, [%d5]; ld.global.u32 %r5, [%d5+256]; ld.global.u32 %r6, [%d5+512];
    add.u32 %r4, %r4, %r5; add.u32 %r4, %r4, %r6;
    st.global.u32 [%d6], %r4;
END:
""",
    ),
    grid=3,
    block=64,
    data=given(
        (3, 64),
        lambda x: [x, fresh(3, 64), np.zeros(1, np.uint32), fresh(64)],
        lambda x: {2: np.zeros(1), 3: x.sum(0, dtype=np.uint32)},
    ),
)

EARLY_EXIT = Case(
    "warps that have nothing to do leave before a barrier of the others",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[256];
    mov.u32 base, part;
    setp.ge.u32 %p1, warp, 2;
    @%p1 exit;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    ld.global.u32 %r1, [%d2];
    mad.lo.u32 %r2, tid, 4, base;
    st.shared.u32 [%r2], %r1;
    bar.sync 0;
    xor.b32 %r3, tid, 63; mad.lo.u32 %r3, %r3, 4, base;
    ld.shared.u32 %r4, [%r3];
    st.global.u32 [%d3], %r4;
""",
    ),
    grid=1,
    block=128,
    data=given((64,), lambda x: [x, fresh(64)], lambda x: {1: x[::-1]}),
)

PART_OF_A_WARP_LEAVES = Case(
    "lanes that have left count for nothing at a barrier",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[160];
    mov.u32 base, part;
    setp.ge.u32 %p1, tid, 40;
    @%p1 exit;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    ld.global.u32 %r1, [%d2];
    mad.lo.u32 %r2, tid, 4, base;
    st.shared.u32 [%r2], %r1;
    bar.sync 0;
    sub.u32 %r3, 39, tid; mad.lo.u32 %r3, %r3, 4, base;
    ld.shared.u32 %r4, [%r3];
    st.global.u32 [%d3], %r4;
""",
    ),
    grid=1,
    block=96,
    data=given((40,), lambda x: [x, fresh(40)], lambda x: {1: x[::-1]}),
)

BYTES_OF_A_WORD = Case(
    "threads of two warps write bytes of one word",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[64];
    mov.u32 base, part;
    cvt.u64.u32 %d1, tid; add.s64 %d2, x, %d1;
    ld.global.u8 %h1, [%d2];
    shl.b32 %r1, lane, 1; add.u32 %r1, %r1, warp; add.u32 %r1, base, %r1;
    st.shared.u8 [%r1], %h1;
    bar.sync 0;
    setp.ge.u32 %p1, tid, 16;
    @%p1 bra END;
    mad.lo.u32 %r2, tid, 4, base;
    ld.shared.u32 %r3, [%r2];
    mul.wide.u32 %d3, tid, 4; add.s64 %d3, y, %d3;
    st.global.u32 [%d3], %r3;
END:
""",
    ),
    grid=1,
    block=64,
    data=given(
        lambda rng: rng.integers(0, 256, (2, 32)).astype(np.uint8),
        lambda x: [x, fresh(16)],
        lambda x: {1: np.ascontiguousarray(x.T).reshape(-1).view(np.uint32)},
    ),
)

BYTES_OF_BLOCKS = Case(
    "blocks write bytes of one global word",
    ptx(
        "u64 x, u64 y",
        """
    mad.lo.u32 %r1, cta, 32, tid; cvt.u64.u32 %d1, %r1; add.s64 %d1, x, %d1;
    ld.global.u8 %h1, [%d1];
    mad.lo.u32 %r2, tid, 4, cta; cvt.u64.u32 %d2, %r2; add.s64 %d2, y, %d2;
    st.global.u8 [%d2], %h1;
""",
    ),
    grid=4,
    block=32,
    data=given(
        lambda rng: rng.integers(0, 256, (4, 32)).astype(np.uint8),
        lambda x: [x, emulator.output(np.zeros((32, 4), np.uint8))],
        lambda x: {1: x.T},
    ),
)

MANY_READERS = Case(
    "many read, a barrier, one writes",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 one[4];
    mov.u32 base, one;
    setp.eq.u32 %p1, tid, 77;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    ld.global.u32 %r1, [%d2];
    @%p1 st.shared.u32 [base], %r1;
    bar.sync 0;
    ld.shared.u32 %r2, [base];
    bar.sync 0;
    setp.eq.u32 %p2, tid, 5;
    @%p2 st.shared.u32 [base], %r1;
    bar.sync 0;
    ld.shared.u32 %r3, [base];
    add.u32 %r2, %r2, %r3;
    st.global.u32 [%d3], %r2;
""",
    ),
    grid=1,
    block=128,
    data=given((128,), lambda x: [x, fresh(128)], lambda x: {1: np.full(128, x[5] + x[77])}),
)

NOTHING_COPIED = Case(
    "a copy of no bytes fills with zeros and reads nowhere",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 16 .b8 part[1024];
    mov.u32 base, part;
    mul.wide.u32 %d1, tid, 16; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mad.lo.u32 %r1, tid, 16, base;
    setp.lt.u32 %p1, tid, 40; selp.b32 %r2, 16, 0, %p1; selp.b64 %d2, %d2, 0x7000000000000000, %p1;
    cp.async.cg.shared.global [%r1], [%d2], 16, %r2;
    cp.async.commit_group;
    cp.async.commit_group;
    cp.async.wait_group 1;
    bar.sync 0;
    xor.b32 %r3, tid, 63; mad.lo.u32 %r3, %r3, 16, base;
    ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r3];
    st.global.v4.u32 [%d3], {%r4, %r5, %r6, %r7};
""",
    ),
    grid=1,
    block=64,
    data=given(
        (40, 4), lambda x: [x, fresh(64, 4)], lambda x: {1: np.concatenate([np.zeros((24, 4), np.uint32), x[::-1]])}
    ),
)

OWN_COPIES = Case(
    "a thread waits for its own copies and reads them without a barrier",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 16 .b8 part[2048];
    mov.u32 base, part;
    mul.wide.u32 %d1, tid, 16; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mad.lo.u32 %r1, tid, 16, base;
    cp.async.ca.shared.global [%r1], [%d2], 16;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r1+1024], [%d2+1024], 8;
    cp.async.ca.shared.global [%r1+1032], [%d2+1032], 4;
    cp.async.ca.shared.global [%r1+1036], [%d2+1036], 4;
    cp.async.commit_group;
    cp.async.wait_group 1;
    ld.shared.v4.u32 {%r2, %r3, %r4, %r5}, [%r1];
    cp.async.wait_group 0;
    ld.shared.v4.u32 {%r6, %r7, %r8, %r9}, [%r1+1024];
    add.u32 %r2, %r2, %r6; add.u32 %r3, %r3, %r7; add.u32 %r4, %r4, %r8; add.u32 %r5, %r5, %r9;
    st.global.v4.u32 [%d3], {%r2, %r3, %r4, %r5};
""",
    ),
    grid=1,
    block=64,
    data=given((2, 64, 4), lambda x: [x, fresh(64, 4)], lambda x: {1: x[0] + x[1]}),
)

SHARED_INPUT = Case(
    "all blocks read one input, through views that overlap",
    ptx(
        "u64 x, u64 shifted, u64 y",
        """
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, shifted, %d1;
    ld.global.u32 %r1, [%d2];
    ld.global.nc.u32 %r2, [%d3];
    add.u32 %r1, %r1, %r2;
    mad.lo.u32 %r3, cta, 64, tid; mul.wide.u32 %d4, %r3, 4; add.s64 %d4, y, %d4;
    st.global.u32 [%d4], %r1;
""",
    ),
    grid=3,
    block=64,
    data=given((65,), lambda x: [x[:64], x[1:], fresh(3, 64)], lambda x: {2: np.tile(x[:64] + x[1:], (3, 1))}),
)

# Needs the forward progress of single threads that sm_70 introduced: the holder must run while others spin.
LANES_LOCK = Case(
    "lanes of a warp take turns by a lock in shared memory",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 8 .b8 memory[8];
    mov.u32 base, memory;
    setp.eq.u32 %p1, tid, 0;
    @%p1 st.shared.v2.u32 [base], {0, 0};
    bar.sync 0;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1;
    ld.global.u32 %r1, [%d2];
    SPIN: atom.acquire.cta.shared.cas.b32 %r2, [base], 0, 1; setp.ne.u32 %p2, %r2, 0; @%p2 bra SPIN;
    ld.shared.u32 %r3, [base+4];
    add.u32 %r3, %r3, %r1;
    st.shared.u32 [base+4], %r3;
    atom.release.cta.shared.exch.b32 %r4, [base], 0;
    bar.sync 0;
    ld.shared.u32 %r5, [base+4];
    @%p1 st.global.u32 [y], %r5;
""",
    ),
    grid=1,
    block=64,
    data=given((64,), lambda x: [x, fresh(1)], lambda x: {1: x.sum(keepdims=True, dtype=np.uint32)}),
)

# The form in which CUDA code often takes a lock: the winner does its work inside the loop.
LOOP_LOCK = Case(
    "lanes of a warp take turns by a lock in global memory",
    ptx(
        "u64 x, u64 y, u64 lock",
        """
    mad.lo.u32 %r9, cta, 32, tid; mul.wide.u32 %d1, %r9, 4; add.s64 %d2, x, %d1;
    ld.global.u32 %r1, [%d2];
TRY:
    atom.global.cas.b32 %r2, [lock], 0, 1;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra AGAIN;
    membar.gl;
    ld.global.u32 %r3, [y];
    add.u32 %r3, %r3, %r1;
    st.global.u32 [y], %r3;
    membar.gl;
    atom.global.exch.b32 %r4, [lock], 0;
AGAIN:
    @%p2 bra TRY;
""",
    ),
    grid=2,
    block=32,
    data=given(
        (64,),
        lambda x: [x, np.zeros(1, np.uint32), np.zeros(1, np.uint32)],
        lambda x: {1: x.sum(keepdims=True, dtype=np.uint32)},
    ),
)

FLOAT_CAS = Case(
    "a sum of floats by compare and swap",
    ptx(
        "u64 x, u64 y",
        """
    mad.lo.u32 %r1, cta, 32, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d1, x, %d1;
    ld.global.f32 %f1, [%d1];
    ld.relaxed.gpu.global.u32 %r2, [y];
TRY:
    mov.u32 %r3, %r2;
    mov.b32 %f2, %r3; add.f32 %f2, %f2, %f1; mov.b32 %r4, %f2;
    atom.global.cas.b32 %r2, [y], %r3, %r4;
    setp.ne.u32 %p1, %r2, %r3;
    @%p1 bra TRY;
""",
    ),
    grid=2,
    block=32,
    data=given(
        lambda rng: rng.integers(-99, 100, 64).astype(np.float32),
        lambda x: [x, np.zeros(1, np.float32)],
        lambda x: {1: x.sum(keepdims=True)},
    ),
)

GRID_TWICE = Case(
    "a grid meets again and again at one counter",
    ptx(
        "u64 x, u64 y, u64 count",
        """
    mad.lo.u32 %r1, cta, 64, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    add.u32 %r2, cta, 1; setp.eq.u32 %p1, %r2, grid; selp.b32 %r2, 0, %r2, %p1;
    mad.lo.u32 %r2, %r2, 64, tid; mul.wide.u32 %d4, %r2, 4; add.s64 %d4, y, %d4;
    setp.ne.u32 %p2, tid, 0;
    mov.u32 %r3, 0;
    mov.u32 %r4, 0;
    ld.global.u32 %r5, [%d2];
ROUND:
    st.global.u32 [%d3], %r5;
    mov.u32 %r6, 0;
MEET:
    add.u32 %r4, %r4, grid;
    bar.sync 0;
    @%p2 bra JOIN;
    atom.acq_rel.gpu.global.add.u32 %r7, [count], 1;
    SPIN: ld.acquire.gpu.global.u32 %r7, [count]; setp.lt.u32 %p3, %r7, %r4; @%p3 bra SPIN;
JOIN:
    bar.sync 0;
    setp.eq.u32 %p4, %r6, 1;
    @%p4 bra NEXT;
    ld.global.u32 %r8, [%d4];
    mov.u32 %r6, 1;
    bra MEET;
NEXT:
    add.u32 %r5, %r8, 1;
    add.u32 %r3, %r3, 1;
    setp.lt.u32 %p5, %r3, 3;
    @%p5 bra ROUND;
    st.global.u32 [%d3], %r5;
""",
    ),
    grid=3,
    block=64,
    data=given((3, 64), lambda x: [x, fresh(3, 64), np.zeros(1, np.uint32)], lambda x: {1: x + 3, 2: np.array([18])}),
)

MBARRIER_PHASES = Case(
    "an mbarrier stands for a barrier over many phases",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 8 .b8 memory[264];
    mov.u32 base, memory;
    setp.ne.u32 %p1, tid, 0;
    @%p1 bra READY;
    mbarrier.init.shared::cta.b64 [base], 64;
READY:
    bar.sync 0;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    ld.global.u32 %r1, [%d2];
    mad.lo.u32 %r2, tid, 4, base; xor.b32 %r3, tid, 63; mad.lo.u32 %r3, %r3, 4, base;
    mov.u32 %r4, 0;
    mov.u32 %r5, 0;
ROUND:
    st.shared.u32 [%r2+8], %r1;
    mbarrier.arrive.release.cta.shared::cta.b64 _, [base];
    FULL: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p2, [base], %r5; @!%p2 bra FULL;
    xor.b32 %r5, %r5, 1;
    ld.shared.u32 %r6, [%r3+8];
    mbarrier.arrive.release.cta.shared::cta.b64 _, [base];
    EMPTY: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p2, [base], %r5; @!%p2 bra EMPTY;
    xor.b32 %r5, %r5, 1;
    add.u32 %r1, %r6, 1;
    add.u32 %r4, %r4, 1;
    setp.lt.u32 %p3, %r4, 9;
    @%p3 bra ROUND;
    st.global.u32 [%d3], %r1;
""",
        target="sm_90",
    ),
    grid=1,
    block=64,
    data=given((64,), lambda x: [x, fresh(64)], lambda x: {1: x[::-1] + 9}),
    target="sm_90a",
)

PAIRS_OF_WARPS = Case(
    "pairs of warps meet at barriers whose numbers are computed",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[512];
    mov.u32 base, part;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mad.lo.u32 %r1, tid, 4, base; xor.b32 %r2, tid, 32; mad.lo.u32 %r2, %r2, 4, base;
    shr.u32 %r3, tid, 6; add.u32 %r3, %r3, 1;
    ld.global.u32 %r4, [%d2];
    mov.u32 %r5, 0;
ROUND:
    st.shared.u32 [%r1], %r4;
    bar.sync %r3, 64;
    ld.shared.u32 %r4, [%r2];
    bar.sync %r3, 64;
    add.u32 %r5, %r5, 1;
    setp.lt.u32 %p1, %r5, 3;
    @%p1 bra ROUND;
    st.global.u32 [%d3], %r4;
""",
    ),
    grid=1,
    block=128,
    data=given((2, 2, 32), lambda x: [x, fresh(2, 2, 32)], lambda x: {1: x[:, ::-1]}),
)

COUNTING_BARRIER = Case(
    "a barrier that counts orders as well",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[384];
    mov.u32 base, part;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mad.lo.u32 %r1, tid, 4, base; sub.u32 %r2, 95, tid; mad.lo.u32 %r2, %r2, 4, base;
    ld.global.u32 %r3, [%d2];
    st.shared.u32 [%r1], %r3;
    and.b32 %r4, %r3, 1; setp.eq.u32 %p1, %r4, 1;
    bar.red.popc.u32 %r5, 0, %p1;
    ld.shared.u32 %r6, [%r2];
    add.u32 %r6, %r6, %r5;
    bar.red.or.pred %p2, 0, %p1;
    @%p2 st.shared.u32 [%r1], %r6;
    st.global.u32 [%d3], %r6;
""",
    ),
    grid=1,
    block=96,
    data=given((96,), lambda x: [x, fresh(96)], lambda x: {1: (x[::-1] + (x & 1).sum()).astype(np.uint32)}),
)

SHARED_FLAG = Case(
    "a flag in shared memory between two warps",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 memory[136];
    mov.u32 base, memory;
    setp.eq.u32 %p1, tid, 0;
    @%p1 st.shared.u32 [base], 0;
    bar.sync 0;
    mul.wide.u32 %d1, lane, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    setp.ne.u32 %p2, warp, 0;
    @%p2 bra CONSUMER;
    ld.global.u32 %r1, [%d2];
    mad.lo.u32 %r2, lane, 4, base;
    st.shared.u32 [%r2+4], %r1;
    red.release.cta.shared.add.u32 [base], 1;
    bra END;
CONSUMER:
    SPIN: ld.acquire.cta.shared.u32 %r3, [base]; setp.ne.u32 %p3, %r3, 32; @%p3 bra SPIN;
    xor.b32 %r4, lane, 31; mad.lo.u32 %r4, %r4, 4, base;
    ld.shared.u32 %r5, [%r4+4];
    st.global.u32 [%d3], %r5;
END:
""",
    ),
    grid=1,
    block=64,
    data=given((32,), lambda x: [x, fresh(32)], lambda x: {1: x[::-1]}),
)

UNIFORM_BRANCH = Case(
    "a barrier in a branch that all threads of a block take together",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[256];
    mov.u32 base, part;
    mad.lo.u32 %r9, cta, 64, tid; mul.wide.u32 %d1, %r9, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    ld.global.u32 %r1, [%d2];
    and.b32 %r2, cta, 1; setp.eq.u32 %p1, %r2, 0;
    @%p1 bra PLAIN;
    mad.lo.u32 %r3, tid, 4, base;
    st.shared.u32 [%r3], %r1;
    bar.sync 0;
    xor.b32 %r4, tid, 63; mad.lo.u32 %r4, %r4, 4, base;
    ld.shared.u32 %r1, [%r4];
PLAIN:
    st.global.u32 [%d3], %r1;
""",
    ),
    grid=4,
    block=64,
    data=given(
        (4, 64),
        lambda x: [x, fresh(4, 64)],
        lambda x: {1: np.stack([row[::-1] if n % 2 else row for n, row in enumerate(x)])},
    ),
)

PARTLY_UNDEFINED = Case(
    "registers that nothing set are moved about but decide nothing",
    ptx(
        "u64 x, u64 y",
        """
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    setp.lt.u32 %p1, tid, 20;
    @%p1 ld.global.u32 %r1, [%d2];
    add.u32 %r2, %r1, 5;
    shfl.sync.bfly.b32 %r3, %r2, 3, 31, 0xFFFFFFFF;
    selp.b32 %r4, %r2, 7, %p1;
    xor.b32 %r5, %r6, %r6;
    @%p1 add.u32 %r4, %r4, %r3;
    setp.lt.u32 %p2, tid, 16;
    @%p2 st.global.u32 [%d3], %r4;
""",
    ),
    grid=1,
    block=32,
    data=given((20,), lambda x: [x, fresh(16)], lambda x: {1: (x[:16] + x[np.arange(16) ^ 3] + 10).astype(np.uint32)}),
)

RELAXED_FLAG_ONLY = Case(
    "a relaxed flag that guards no data",
    ptx(
        "u64 x, u64 y",
        """
    setp.ne.u32 %p1, tid, 0;
    @%p1 bra END;
    ld.global.u32 %r1, [x];
    st.relaxed.gpu.global.u32 [y], %r1;
    ld.relaxed.gpu.global.u32 %r2, [y];
    st.volatile.global.u32 [y+4], %r1;
    ld.volatile.global.u32 %r2, [y+4];
END:
""",
    ),
    grid=3,
    block=64,
    data=given((1,), lambda x: [x, np.zeros(2, np.uint32)], lambda x: {1: np.repeat(x, 2)}),
)

# A persistent kernel: thread 0 draws the next tile, a barrier hands it out, another one frees the word.
WORK_QUEUE = Case(
    "blocks draw tiles from a queue",
    ptx(
        "u64 x, u64 y, u64 queue",
        """
    .shared .align 4 .b8 drawn[4];
    mov.u32 base, drawn;
    setp.ne.u32 %p1, tid, 0;
DRAW:
    @%p1 bra WAIT;
    atom.global.add.u32 %r1, [queue], 1;
    st.shared.u32 [base], %r1;
WAIT:
    bar.sync 0;
    ld.shared.u32 %r2, [base];
    bar.sync 0;
    setp.ge.u32 %p2, %r2, 7;
    @%p2 bra END;
    mad.lo.u32 %r3, %r2, 64, tid; mul.wide.u32 %d1, %r3, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    ld.global.u32 %r4, [%d2];
    mul.lo.u32 %r4, %r4, 3;
    st.global.u32 [%d3], %r4;
    bra DRAW;
END:
""",
    ),
    grid=3,
    block=64,
    data=given(
        (7, 64),
        lambda x: [x, fresh(7, 64), np.zeros(1, np.uint32)],
        lambda x: {1: x * 3, 2: np.array([10])},
    ),
)

LAST_WARP = Case(
    "the last warp of a block to draw a ticket sums up",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 memory[20];
    mov.u32 base, memory;
    setp.eq.u32 %p1, tid, 0;
    @%p1 st.shared.u32 [base+16], 0;
    bar.sync 0;
    mul.wide.u32 %d1, tid, 4; add.s64 %d1, x, %d1;
    ld.global.u32 %r1, [%d1];
    redux.sync.add.u32 %r1, %r1, 0xFFFFFFFF;
    setp.ne.u32 %p2, lane, 0;
    @%p2 bra END;
    mad.lo.u32 %r2, warp, 4, base;
    st.shared.u32 [%r2], %r1;
    membar.cta;
    atom.shared.add.u32 %r3, [base+16], 1;
    setp.ne.u32 %p3, %r3, 3;
    @%p3 bra END;
    membar.cta;
    ld.shared.u32 %r4, [base]; ld.shared.u32 %r5, [base+4]; ld.shared.u32 %r6, [base+8]; ld.shared.u32 %r7, [base+12];
    add.u32 %r4, %r4, %r5; add.u32 %r6, %r6, %r7; add.u32 %r4, %r4, %r6;
    st.global.u32 [y], %r4;
END:
""",
    ),
    grid=1,
    block=128,
    data=given((128,), lambda x: [x, fresh(1)], lambda x: {1: x.sum(keepdims=True, dtype=np.uint32)}),
)

# A block's state and value are one word of 64 bits, so that relaxed accesses are enough: 1 is its own sum, 2 includes
# all before it.
LOOK_BACK = Case(
    "a scan over blocks by decoupled look-back",
    ptx(
        "u64 x, u64 states, u64 y",
        """
    mad.lo.u32 %r1, cta, 32, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    ld.global.u32 %r2, [%d2];
    mov.u32 %r3, 1;
SCAN:
    shfl.sync.up.b32 %r4|%p1, %r2, %r3, 0, 0xFFFFFFFF;
    @%p1 add.u32 %r2, %r2, %r4;
    shl.b32 %r3, %r3, 1;
    setp.lt.u32 %p2, %r3, 32;
    @%p2 bra SCAN;
    shfl.sync.idx.b32 %r5, %r2, 31, 31, 0xFFFFFFFF;
    mov.u32 %r6, 0;
    setp.ne.u32 %p3, tid, 0;
    @%p3 bra JOIN;
    mul.wide.u32 %d4, cta, 8; add.s64 %d4, states, %d4;
    mov.u32 %r7, 1;
    mov.b64 %d5, {%r5, %r7};
    st.relaxed.gpu.global.u64 [%d4], %d5;
    mov.u64 %d6, %d4;
    mov.u32 %r8, cta;
BACK:
    setp.eq.u32 %p4, %r8, 0;
    @%p4 bra PUBLISH;
    add.s64 %d6, %d6, -8;
    sub.u32 %r8, %r8, 1;
    SPIN: ld.relaxed.gpu.global.u64 %d7, [%d6]; mov.b64 {%r9, %r10}, %d7; setp.eq.u32 %p5, %r10, 0; @%p5 bra SPIN;
    add.u32 %r6, %r6, %r9;
    setp.eq.u32 %p6, %r10, 1;
    @%p6 bra BACK;
PUBLISH:
    add.u32 %r11, %r5, %r6;
    mov.u32 %r7, 2;
    mov.b64 %d5, {%r11, %r7};
    st.relaxed.gpu.global.u64 [%d4], %d5;
JOIN:
    shfl.sync.idx.b32 %r6, %r6, 0, 31, 0xFFFFFFFF;
    add.u32 %r2, %r2, %r6;
    st.global.u32 [%d3], %r2;
""",
    ),
    grid=4,
    block=32,
    data=given(
        (128,),
        lambda x: [x, np.zeros(4, np.uint64), fresh(128)],
        lambda x: {2: np.cumsum(x, dtype=np.uint32)},
    ),
)

# CUDA's cooperative groups: the block with rank 0 adds what flips the top bit once all the others have added 1.
COOPERATIVE = Case(
    "a grid barrier in the way of cooperative groups",
    ptx(
        "u64 x, u64 y, u64 arrivals",
        """
    mad.lo.u32 %r1, cta, 64, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    add.u32 %r2, cta, 1; setp.eq.u32 %p1, %r2, grid; selp.b32 %r2, 0, %r2, %p1;
    mad.lo.u32 %r2, %r2, 64, tid; mul.wide.u32 %d4, %r2, 4; add.s64 %d4, y, %d4;
    setp.ne.u32 %p2, tid, 0;
    setp.eq.u32 %p3, cta, 0;
    sub.u32 %r3, 0x80000001, grid;
    selp.b32 %r3, %r3, 1, %p3;
    ld.global.u32 %r4, [%d2];
    st.global.u32 [%d3], %r4;
    mov.u32 %r5, 0;
ROUND:
    barrier.sync 0;
    @%p2 bra JOIN;
    membar.gl;
    atom.global.add.u32 %r6, [arrivals], %r3;
    SPIN: ld.volatile.global.u32 %r7, [arrivals]; xor.b32 %r8, %r6, %r7; setp.ge.s32 %p4, %r8, 0; @%p4 bra SPIN;
    membar.gl;
JOIN:
    barrier.sync 0;
    setp.ne.u32 %p5, %r5, 0;
    @%p5 bra LAST;
    ld.global.u32 %r9, [%d4];
    mov.u32 %r5, 1;
    bra ROUND;
LAST:
    st.global.u32 [%d3], %r9;
""",
    ),
    grid=3,
    block=64,
    data=given((3, 64), lambda x: [x, fresh(3, 64), np.zeros(1, np.uint32)], lambda x: {1: x[[1, 2, 0]]}),
)

ONE_ARRIVES = Case(
    "one lane arrives at an mbarrier for a warp that met before",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 8 .b8 memory[136];
    mov.u32 base, memory;
    setp.eq.u32 %p1, tid, 0;
    @%p1 mbarrier.init.shared.b64 [base], 1;
    bar.sync 0;
    mul.wide.u32 %d1, lane, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    setp.ne.u32 %p2, warp, 0;
    @%p2 bra CONSUMER;
    ld.global.u32 %r1, [%d2];
    mad.lo.u32 %r2, lane, 4, base;
    st.shared.u32 [%r2+8], %r1;
    bar.warp.sync 0xFFFFFFFF;
    @%p1 mbarrier.arrive.shared.b64 %d4, [base];
    bra END;
CONSUMER:
    WAIT: mbarrier.test_wait.parity.shared.b64 %p3, [base], 0; @!%p3 bra WAIT;
    xor.b32 %r3, lane, 31; mad.lo.u32 %r3, %r3, 4, base;
    ld.shared.u32 %r4, [%r3+8];
    st.global.u32 [%d3], %r4;
END:
""",
    ),
    grid=1,
    block=64,
    data=given((32,), lambda x: [x, fresh(32)], lambda x: {1: x[::-1]}),
)

NOT_ALIGNED = Case(
    "lanes of both sides of a branch meet at a barrier that is not aligned",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[256];
    mov.u32 base, part;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mad.lo.u32 %r1, tid, 4, base; xor.b32 %r2, tid, 63; mad.lo.u32 %r2, %r2, 4, base;
    ld.global.u32 %r3, [%d2];
    and.b32 %r4, lane, 1; setp.eq.u32 %p1, %r4, 0;
    @%p1 bra EVEN;
    st.shared.u32 [%r1], %r3;
    barrier.sync 0;
    bra JOIN;
EVEN:
    add.u32 %r3, %r3, 1;
    st.shared.u32 [%r1], %r3;
    barrier.sync 0;
JOIN:
    ld.shared.u32 %r5, [%r2];
    st.global.u32 [%d3], %r5;
""",
    ),
    grid=1,
    block=64,
    data=given((64,), lambda x: [x, fresh(64)], lambda x: {1: (x + (np.arange(64) % 2 == 0)).astype(np.uint32)[::-1]}),
)

TWO_PLACES = Case(
    "warps meet at one barrier from two places",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 part[256];
    mov.u32 base, part;
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mad.lo.u32 %r1, tid, 4, base; xor.b32 %r2, tid, 63; mad.lo.u32 %r2, %r2, 4, base;
    ld.global.u32 %r3, [%d2];
    setp.eq.u32 %p1, warp, 0;
    @%p1 bra FIRST;
    st.shared.u32 [%r1], %r3;
    bar.sync 0;
    bra JOIN;
FIRST:
    add.u32 %r3, %r3, 1;
    st.shared.u32 [%r1], %r3;
    bar.sync 0;
JOIN:
    ld.shared.u32 %r5, [%r2];
    st.global.u32 [%d3], %r5;
""",
    ),
    grid=1,
    block=64,
    data=given((64,), lambda x: [x, fresh(64)], lambda x: {1: (x + (np.arange(64) < 32)).astype(np.uint32)[::-1]}),
)

COPIES_ANNOUNCED = Case(
    "copies are awaited by their warp and announced to another by bar.arrive",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 16 .b8 part[512];
    mov.u32 base, part;
    mul.wide.u32 %d1, lane, 16; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    setp.ne.u32 %p1, warp, 0;
    @%p1 bra CONSUMER;
    mad.lo.u32 %r1, lane, 16, base;
    cp.async.cg.shared.global [%r1], [%d2], 16;
    cp.async.commit_group;
    cp.async.wait_group 0;
    bar.arrive 1, 64;
    bra END;
CONSUMER:
    bar.sync 1, 64;
    xor.b32 %r2, lane, 31; mad.lo.u32 %r2, %r2, 16, base;
    ld.shared.v4.u32 {%r3, %r4, %r5, %r6}, [%r2];
    st.global.v4.u32 [%d3], {%r3, %r4, %r5, %r6};
END:
""",
    ),
    grid=1,
    block=64,
    data=given((32, 4), lambda x: [x, fresh(32, 4)], lambda x: {1: x[::-1]}),
)

CASES = tuple(case for case in list(globals().values()) if isinstance(case, Case))
