"""Blocks that meet in global memory: split-K by a semaphore, last-block reductions, grid barriers, locks, stencils."""

import numpy as np

from lowbitvm.runtime import emulator
from tests.planted.table import Case, Data, plant, ptx, words


def split_k_data(rng: np.random.Generator) -> Data:
    x = words(4, 64, rng=rng)
    y = np.zeros(64, np.uint32)
    return Data([x, emulator.output(y), np.zeros(1, np.uint32)], {1: x.sum(0, dtype=np.uint32), 2: np.array([4])})


DATA = ("race_global write read", "race_global write write")
UNREAD = ("uninitialised_global read", "undefined_store write")  # the reader came before anybody had written

# Block s adds its part to the tile once the semaphore says s, and passes it on; CUTLASS's serial split-K.
SPLIT_K = Case(
    "split_k",
    ptx(
        "u64 x, u64 y, u64 semaphore",
        """
    mad.lo.u32 %r1, cta, 64, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d1, x, %d1;
    ld.global.u32 %r2, [%d1];
    mul.wide.u32 %d2, tid, 4; add.s64 %d2, y, %d2;
    setp.ne.u32 %p1, tid, 0;
    setp.eq.u32 %p2, cta, 0;
    @%p2 bra FIRST;
    @%p1 bra WAITED;
    SPIN: ld.acquire.gpu.global.u32 %r3, [semaphore]; setp.ne.u32 %p3, %r3, cta; @%p3 bra SPIN; //@spin
WAITED:
    bar.sync 0; //@acquired
    ld.global.u32 %r4, [%d2]; //@read
    add.u32 %r2, %r2, %r4;
FIRST:
    st.global.u32 [%d2], %r2; //@write
    bar.sync 0; //@written
    @%p1 bra END;
    fence.acq_rel.gpu; //@fence
    add.u32 %r5, cta, 1; //@next
    st.relaxed.gpu.global.u32 [semaphore], %r5; //@release
END:
""",
    ),
    grid=4,
    block=64,
    data=split_k_data,
    plants=(
        plant("no fence before a semaphore is released", {"fence": ""}, "race_global write read", also=DATA),
        plant(
            "a fence of block scope between blocks",
            {"fence": "fence.acq_rel.cta;"},
            "race_global write read",
            also=DATA,
        ),
        plant(
            "a semaphore awaited without acquiring",
            {"spin": "SPIN: ld.relaxed.gpu.global.u32 %r3, [semaphore]; setp.ne.u32 %p3, %r3, cta; @%p3 bra SPIN;"},
            "race_global write read",
            also=DATA,
        ),
        plant(
            "a semaphore released at block scope between blocks",
            {"release": "st.release.cta.global.u32 [semaphore], %r5;"},
            *DATA,
            "race_global release spin",
            also=("race_global release release",),
        ),
        plant(
            "a semaphore stored by a plain store",
            {"release": "st.global.u32 [semaphore], %r5;"},
            "race_global release spin",
            also=(*DATA, "race_global release release"),
        ),
        plant(
            "a semaphore awaited by plain loads",
            {"spin": "SPIN: ld.global.u32 %r3, [semaphore]; setp.ne.u32 %p3, %r3, cta; @%p3 bra SPIN;"},
            "race_global release spin",
            "limit spin",  # nothing makes such a loop see the store: it may go on for ever
            also=DATA,
        ),
        plant("a release before the other warps have stored", {"written": ""}, *DATA, also=UNREAD),
        plant(
            "one thread waits and the others do not",
            {"acquired": ""},
            *DATA,
            also=UNREAD,
        ),
        plant(
            "a semaphore that is never passed on",
            {"next": "mov.u32 %r5, cta;"},
            "limit spin",
            "barrier_deadlock spin",
            "barrier_deadlock acquired",
        ),
    ),
    step_limit=40_000,
)


def last_block_data(rng: np.random.Generator) -> Data:
    x = words(3, 64, rng=rng)
    partial, y = np.zeros((3, 64), np.uint32), np.zeros(64, np.uint32)
    expected = (x * x).sum(0, dtype=np.uint32)[::-1]
    return Data([x, emulator.output(partial), emulator.output(y), np.zeros(1, np.uint32)], {2: expected})


# CUDA's threadFenceReduction: the block that draws the last ticket sums what all have stored.
LAST_BLOCK = Case(
    "last_block",
    ptx(
        "u64 x, u64 partial, u64 y, u64 tickets",
        """
    .shared .align 4 .b8 last[4];
    mov.u32 base, last;
    mad.lo.u32 %r1, cta, 64, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d2, x, %d1; add.s64 %d3, partial, %d1;
    ld.global.u32 %r2, [%d2];
    mul.lo.u32 %r2, %r2, %r2;
    st.global.u32 [%d3], %r2; //@put
    bar.sync 0; //@stored
    setp.ne.u32 %p1, tid, 0;
    @%p1 bra JOIN;
    fence.acq_rel.gpu; //@release
    atom.relaxed.gpu.global.add.u32 %r3, [tickets], 1; //@ticket
    fence.acq_rel.gpu; //@acquire
    add.u32 %r4, %r3, 1;
    setp.eq.u32 %p2, %r4, grid; selp.b32 %r5, 1, 0, %p2;
    st.shared.u32 [base], %r5; //@announce
JOIN:
    bar.sync 0; //@announced
    ld.shared.u32 %r6, [base]; //@is_last
    setp.eq.u32 %p3, %r6, 0;
    @%p3 bra END; //@leave
    sub.u32 %r7, 63, tid; mul.wide.u32 %d4, %r7, 4; add.s64 %d4, partial, %d4;
    mov.u32 %r8, 0;
    mov.u32 %r9, 0;
SUM:
    ld.global.u32 %r10, [%d4]; //@get
    add.u32 %r8, %r8, %r10;
    add.s64 %d4, %d4, 256;
    add.u32 %r9, %r9, 1;
    setp.lt.u32 %p4, %r9, grid;
    @%p4 bra SUM;
    mul.wide.u32 %d5, tid, 4; add.s64 %d5, y, %d5;
    st.global.u32 [%d5], %r8; //@store
END:
""",
    ),
    grid=3,
    block=64,
    data=last_block_data,
    plants=(
        plant("a last-block reduction without a fence before the ticket", {"release": ""}, "race_global put get"),
        plant("a last-block reduction without a fence after the ticket", {"acquire": ""}, "race_global put get"),
        plant(
            "the ticket is drawn before the other warps have stored",
            {"stored": ""},
            "race_global put get",
            also=("uninitialised_global get", "undefined_store store"),
        ),
        plant(
            "no barrier around the shared flag",
            {"announced": ""},
            "race_shared announce is_last",
            also=(
                "uninitialised_shared is_last",
                "undefined_predicate leave",
                "race_global put get",
                "uninitialised_global get",
                "undefined_store store",
                "race_global store store",
            ),
        ),
        plant(
            "tickets without atomics",
            {"ticket": "ld.global.u32 %r3, [tickets]; add.u32 %r4, %r3, 1; st.global.u32 [tickets], %r4;"},
            "race_global ticket ticket",
            also=("race_global put get", "race_global store store"),
        ),
    ),
)


def grid_barrier_data(rng: np.random.Generator) -> Data:
    x = words(3, 64, rng=rng)
    return Data([x, emulator.output(np.zeros((3, 64), np.uint32)), np.zeros(1, np.uint32)], {1: x[[1, 2, 0]] + 1})


# Every block stores, meets the others, reads its neighbour's part, meets them again, overwrites its own.
GRID_BARRIER = Case(
    "grid_barrier",
    ptx(
        "u64 x, u64 y, u64 arrivals",
        """
    mad.lo.u32 %r1, cta, 64, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    add.u32 %r2, cta, 1; setp.eq.u32 %p1, %r2, grid; selp.b32 %r2, 0, %r2, %p1;
    mad.lo.u32 %r2, %r2, 64, tid; mul.wide.u32 %d4, %r2, 4; add.s64 %d4, y, %d4;
    setp.ne.u32 %p2, tid, 0;
    shl.b32 %r9, grid, 1;
    ld.global.u32 %r3, [%d2];
    st.global.u32 [%d3], %r3; //@put
    bar.sync 0; //@arrive
    @%p2 bra JOIN;
    fence.acq_rel.gpu; //@release
    red.relaxed.gpu.global.add.u32 [arrivals], 1; //@count
    SPIN: ld.relaxed.gpu.global.u32 %r4, [arrivals]; setp.lt.u32 %p3, %r4, grid; @%p3 bra SPIN; //@spin
    fence.acq_rel.gpu; //@acquire
JOIN:
    bar.sync 0; //@leave
    ld.global.u32 %r5, [%d4]; //@get
    bar.sync 0; //@arrive_again
    @%p2 bra JOIN_AGAIN;
    fence.acq_rel.gpu; //@release_again
    red.relaxed.gpu.global.add.u32 [arrivals], 1;
    SPIN_AGAIN: ld.relaxed.gpu.global.u32 %r4, [arrivals]; setp.lt.u32 %p3, %r4, %r9; @%p3 bra SPIN_AGAIN; //@spin_again
    fence.acq_rel.gpu;
JOIN_AGAIN:
    bar.sync 0; //@leave_again
    add.u32 %r5, %r5, 1;
    st.global.u32 [%d3], %r5; //@overwrite
""",
    ),
    grid=3,
    block=64,
    data=grid_barrier_data,
    plants=(
        plant(
            "a grid barrier without its fence on arrival",
            {"release": ""},
            "race_global put get",
            also=("race_global get overwrite",),
        ),
        plant(
            "a grid barrier without its fence on leaving",
            {"acquire": ""},
            "race_global put get",
            also=("race_global get overwrite",),
        ),
        plant(
            "a grid barrier that other warps do not wait in",
            {"leave": ""},
            "race_global put get",
            also=("uninitialised_global get", "undefined_store overwrite"),
        ),
        plant(
            "a grid barrier that arrives before the other warps",
            {"arrive": ""},
            "race_global put get",
            also=("uninitialised_global get", "undefined_store overwrite"),
        ),
        plant("a second grid barrier without its fence on arrival", {"release_again": ""}, "race_global get overwrite"),
        plant(
            "a grid barrier that one block never counts in",
            {"count": "setp.ne.u32 %p4, cta, 1; @%p4 red.relaxed.gpu.global.add.u32 [arrivals], 1;"},
            "limit spin",
            "limit spin_again",
            "barrier_deadlock spin",
            "barrier_deadlock leave",
        ),
    ),
    step_limit=40_000,
)


def lock_data(rng: np.random.Generator) -> Data:
    x = words(6, rng=rng)
    y = np.zeros(2, np.uint32)
    return Data([x, y, np.zeros(1, np.uint32)], {1: np.array([x.sum(), 6]), 2: np.zeros(1)})


CRITICAL = tuple(f"race_global {a} {b}" for a, b in (("load", "store"), ("store", "store")))

# Lane 0 of each warp adds to a sum and a count under a lock.
LOCK = Case(
    "lock",
    ptx(
        "u64 x, u64 y, u64 lock",
        """
    setp.ne.u32 %p1, lane, 0;
    @%p1 bra END;
    mad.lo.u32 %r1, cta, 2, warp; mul.wide.u32 %d1, %r1, 4; add.s64 %d1, x, %d1;
    ld.global.u32 %r2, [%d1];
    SPIN: atom.acquire.gpu.global.cas.b32 %r3, [lock], 0, 1; setp.ne.u32 %p2, %r3, 0; @%p2 bra SPIN; //@lock
    ld.global.v2.u32 {%r4, %r5}, [y]; //@load
    add.u32 %r4, %r4, %r2; add.u32 %r5, %r5, 1;
    //@early
    st.global.v2.u32 [y], {%r4, %r5}; //@store
    atom.release.gpu.global.exch.b32 %r6, [lock], 0; //@unlock
END:
""",
    ),
    grid=3,
    block=64,
    data=lock_data,
    plants=(
        plant("no lock around an update", {"lock": ""}, *CRITICAL),
        plant(
            "a lock taken without acquiring",
            {
                "lock": "SPIN: atom.relaxed.gpu.global.cas.b32 %r3, [lock], 0, 1; "
                "setp.ne.u32 %p2, %r3, 0; @%p2 bra SPIN;"
            },
            *CRITICAL,
        ),
        plant(
            "a lock given back without releasing",
            {"unlock": "atom.relaxed.gpu.global.exch.b32 %r6, [lock], 0;"},
            *CRITICAL,
        ),
        plant(
            "a lock of block scope between blocks",
            {"unlock": "atom.release.cta.global.exch.b32 %r6, [lock], 0;"},
            *CRITICAL,
            also=("race_global lock unlock", "race_global unlock unlock"),
        ),
        plant(
            "a lock given back by a plain store",
            {"unlock": "st.global.u32 [lock], 0;"},
            "race_global lock unlock",
            also=(*CRITICAL, "race_global unlock unlock"),
        ),
        plant("a lock that is never given back", {"unlock": ""}, "limit lock", "barrier_deadlock lock"),
        plant(
            "a lock given back before the store",
            {"early": "atom.release.gpu.global.exch.b32 %r6, [lock], 0;", "unlock": ""},
            *CRITICAL,
        ),
    ),
    step_limit=40_000,
)


def stencil_data(rng: np.random.Generator) -> Data:
    x = words(130, rng=rng)
    expected = (x[:-2] + x[1:-1] + x[2:]).astype(np.uint32)
    return Data([x, emulator.output(np.zeros(130, np.uint32))], {1: np.concatenate([[0], expected, [0]])})


STENCIL = Case(
    "stencil",
    ptx(
        "u64 x, u64 y",
        """
    mad.lo.u32 %r1, cta, 32, tid; mul.wide.u32 %d1, %r1, 4;
    add.s64 %d2, x, %d1;
    ld.global.u32 %r2, [%d2]; //@left
    ld.global.u32 %r3, [%d2+4];
    ld.global.u32 %r4, [%d2+8]; //@right
    add.u32 %r2, %r2, %r3; add.u32 %r2, %r2, %r4;
    add.s64 %d3, y, %d1; //@target
    st.global.u32 [%d3+4], %r2; //@store
""",
    ),
    grid=4,
    block=32,
    data=stencil_data,
    plants=(
        plant(
            "an update in place of what a neighbour block reads",
            {"target": "add.s64 %d3, x, %d1;"},
            "race_global left store",
            "race_global right store",
        ),
    ),
)


def pass_on_data(rng: np.random.Generator) -> Data:
    x = words(32, rng=rng)
    args = [
        x,
        emulator.output(np.zeros(32, np.uint32)),
        np.zeros(1, np.uint32),
        emulator.output(np.zeros(32, np.uint32)),
    ]
    return Data(args, {3: x[::-1] + 7})


# Block 0 produces 32 words and sets a flag by a volatile store; block 1 waits for it by volatile loads.
FLAG = Case(
    "flag",
    ptx(
        "u64 x, u64 message, u64 flag, u64 y",
        """
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, message, %d1; add.s64 %d4, y, %d1;
    setp.ne.u32 %p1, cta, 0;
    setp.eq.u32 %p2, tid, 0;
    @%p1 bra CONSUMER;
    ld.global.u32 %r1, [%d2];
    add.u32 %r1, %r1, 7;
    st.global.u32 [%d3], %r1; //@put
    bar.sync 0; //@stored
    membar.gl; //@release
    @%p2 st.volatile.global.u32 [flag], 1; //@set
    bra END;
CONSUMER:
    SPIN: ld.volatile.global.u32 %r2, [flag]; setp.eq.u32 %p3, %r2, 0; @%p3 bra SPIN; //@spin
    membar.gl; //@acquire
    sub.u32 %r3, 31, tid; mul.wide.u32 %d5, %r3, 4; add.s64 %d5, message, %d5;
    ld.global.u32 %r4, [%d5]; //@get
    st.global.u32 [%d4], %r4; //@store
END:
""",
    ),
    grid=2,
    block=32,
    data=pass_on_data,
    plants=(
        plant("a flag set before the data is visible", {"release": ""}, "race_global put get"),
        plant("a flag seen and no fence before the data is read", {"acquire": ""}, "race_global put get"),
        plant("a flag set before other lanes have stored", {"stored": ""}, "race_global put get"),
        plant(
            "a flag set by a plain store",
            {"set": "@%p2 st.global.u32 [flag], 1;"},
            "race_global set spin",
            also=("race_global put get",),
        ),
        plant(
            "a flag awaited by plain loads",
            {"spin": "SPIN: ld.global.u32 %r2, [flag]; setp.eq.u32 %p3, %r2, 0; @%p3 bra SPIN;"},
            "race_global set spin",
            also=("race_global put get",),
        ),
        plant(
            "no waiting for the flag",
            {"spin": ""},
            "race_global put get",
            also=("uninitialised_global get", "undefined_store store"),
        ),
    ),
    step_limit=40_000,
)

CASES = (SPLIT_K, LAST_BLOCK, GRID_BARRIER, LOCK, STENCIL, FLAG)
