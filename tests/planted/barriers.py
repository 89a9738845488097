"""Warps with parts of their own: named barriers and mbarriers between producers and consumers."""

import numpy as np

from lowbitvm.runtime import emulator
from tests.planted.table import Case, Data, plant, ptx, words


def ring_data(rng: np.random.Generator) -> Data:
    x = words(5, 32, rng=rng)
    return Data([x, emulator.output(np.zeros(32, np.uint32)), 5], {1: x[:, ::-1].sum(0, dtype=np.uint32)})


STALE = ("uninitialised_shared get", "undefined_store store")
STUCK = ("barrier_deadlock wait_full", "barrier_deadlock wait_empty")  # both sides of a ring may be where it ends
SPINNING = (*STUCK, "limit wait_full", "limit wait_empty")

# Warp 0 fills two slots in turn, warp 1 empties them. Slot s is full at barrier 1 + s, empty at barrier 3 + s.
NAMED_RING = Case(
    "named_ring",
    ptx(
        "u64 x, u64 y, u32 tiles",
        """
    .shared .align 4 .b8 slots[256];
    mov.u32 base, slots;
    mul.wide.u32 %d1, lane, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mov.u32 %r1, 0;
    mov.u32 %r2, 0;
    setp.ne.u32 %p1, warp, 0;
    @%p1 bra CONSUMER;
PRODUCE:
    ld.global.u32 %r3, [%d2];
    add.s64 %d2, %d2, 128;
    add.u32 %r4, %r2, 3;
    bar.sync %r4, 64; //@wait_empty
    mad.lo.u32 %r5, %r2, 128, base; mad.lo.u32 %r5, lane, 4, %r5;
    add.u32 %r6, %r2, 1;
    st.shared.u32 [%r5], %r3; //@put
    bar.arrive %r6, 64; //@full
    //@late
    xor.b32 %r2, %r2, 1;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p2, %r1, tiles;
    @%p2 bra PRODUCE;
    bra END;
CONSUMER:
    mov.u32 %r7, 0;
    xor.b32 %r8, lane, 31;
    bar.arrive 3, 64;
    bar.arrive 4, 64; //@prime
CONSUME:
    add.u32 %r6, %r2, 1; //@number
    bar.sync %r6, 64; //@wait_full
    mad.lo.u32 %r5, %r2, 128, base; mad.lo.u32 %r5, %r8, 4, %r5;
    ld.shared.u32 %r9, [%r5]; //@get
    add.u32 %r7, %r7, %r9;
    add.u32 %r4, %r2, 3;
    add.u32 %r10, %r1, 2;
    setp.lt.u32 %p3, %r10, tiles;
    @%p3 bar.arrive %r4, 64; //@empty
    xor.b32 %r2, %r2, 1;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p2, %r1, tiles;
    @%p2 bra CONSUME;
    st.global.u32 [%d3], %r7; //@store
END:
""",
    ),
    grid=1,
    block=64,
    data=ring_data,
    plants=(
        plant(
            "a producer that does not wait for an empty slot",  # its arrivals alone may complete a barrier
            {"wait_empty": ""},
            "race_shared put get",
            *STUCK,
            also=STALE,
        ),
        plant(
            "a consumer that does not wait for a full slot",  # it may have left before the producer stores
            {"wait_full": ""},
            "race_shared put get",
            "uninitialised_shared get",
            also=(*STALE, *STUCK),
        ),
        plant(
            "a slot announced before it is filled",
            {"put": "", "late": "st.shared.u32 [%r5], %r3;"},
            "race_shared late get",
            also=STALE,
        ),
        plant(
            "a producer that never announces a slot",
            {"full": ""},
            *STUCK,
        ),
        plant(
            "a consumer that never frees a slot",
            {"empty": ""},
            *STUCK,
        ),
        plant(
            "a consumer that waits at another barrier than the producer's",
            {"number": "add.u32 %r6, %r2, 5;"},
            *STUCK,
        ),
        plant(
            "a barrier number above 15",
            {"number": "add.u32 %r6, %r2, 16;"},
            "barrier_invalid wait_full",
            also=("barrier_deadlock wait_empty", *STALE, "race_shared put get"),
        ),
        plant(
            "two thread counts at one barrier",
            {"wait_full": "bar.sync %r6, 96;"},
            "barrier_invalid wait_full",
            "barrier_invalid full",
            also=(*STUCK, "race_shared put get", *STALE),
        ),
        plant(
            "a thread count that is no multiple of a warp",
            {"wait_full": "mov.u32 %r10, 48; bar.sync %r6, %r10;"},
            "barrier_invalid wait_full",
            also=(
                "barrier_invalid full",
                *STUCK,
                "race_shared put get",
                *STALE,
            ),
        ),
    ),
)


def meeting_data(rng: np.random.Generator) -> Data:
    x = words(2, 96, rng=rng)
    expected = np.stack([x[:, :32], x[:, 32:64], x[:, 64:]])[[1, 2, 0]].transpose(1, 0, 2).reshape(2, 96)
    return Data([x, emulator.output(np.zeros((2, 96), np.uint32))], {1: expected})


# Three of four warps exchange their words at barrier 1; the fourth has nothing to do.
MEETING = Case(
    "meeting",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 4 .b8 words[384];
    mov.u32 base, words;
    setp.ge.u32 %p1, warp, 3; //@who
    @%p1 bra END;
    mad.lo.u32 %r1, cta, 96, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    ld.global.u32 %r2, [%d2];
    mad.lo.u32 %r3, tid, 4, base;
    st.shared.u32 [%r3], %r2; //@put
    bar.sync 1, 96; //@meet
    add.u32 %r4, tid, 32; setp.ge.u32 %p2, %r4, 96; add.u32 %r5, %r4, -96; selp.b32 %r4, %r5, %r4, %p2;
    mad.lo.u32 %r6, %r4, 4, base;
    ld.shared.u32 %r7, [%r6]; //@get
    st.global.u32 [%d3], %r7; //@store
END:
    bar.sync 0; //@all
""",
    ),
    grid=2,
    block=128,
    data=meeting_data,
    plants=(
        plant(
            "a thread count of one warp too many",
            {"meet": "bar.sync 1, 128;"},
            "barrier_deadlock meet",
            "barrier_deadlock all",
        ),
        plant(
            "a thread count of one warp too few",
            {"meet": "bar.sync 1, 64;"},
            "barrier_deadlock meet",
            "barrier_deadlock all",
            also=("race_shared put get", *STALE),
        ),
        plant(
            "a barrier that one warp skips",
            {"who": "setp.ge.u32 %p1, warp, 2;"},
            "barrier_deadlock meet",
            "barrier_deadlock all",
        ),
        plant(
            "a barrier without a count where not all warps come",
            {"meet": "bar.sync 1;"},
            "barrier_deadlock meet",
            "barrier_deadlock all",
        ),
        plant(
            "the thread count is 0",
            {"meet": "mov.u32 %r8, 0; bar.sync 1, %r8;"},
            "barrier_invalid meet",
            also=("barrier_deadlock meet", "barrier_deadlock all", "race_shared put get", *STALE),
        ),
    ),
)


# As NAMED_RING, with mbarriers: full of slot s at 8 s, empty at 16 + 8 s, the slots from byte 32 on.
MBARRIER_RING = Case(
    "mbarrier_ring",
    ptx(
        "u64 x, u64 y, u32 tiles",
        """
    .shared .align 8 .b8 memory[288];
    mov.u32 base, memory;
    mul.wide.u32 %d1, lane, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mov.u32 %r1, 0;
    setp.ne.u32 %p1, tid, 0;
    @%p1 bra READY;
    mbarrier.init.shared.b64 [base], 32; //@init
    mbarrier.init.shared.b64 [base+8], 32; //@init_second
    mbarrier.init.shared.b64 [base+16], 32; //@init_rest
    mbarrier.init.shared.b64 [base+24], 32; //@init_rest
READY:
    bar.sync 0; //@ready
    setp.ne.u32 %p2, warp, 0;
    @%p2 bra CONSUMER;
PRODUCE:
    ld.global.u32 %r3, [%d2];
    add.s64 %d2, %d2, 128;
    and.b32 %r2, %r1, 1; bfe.u32 %r4, %r1, 1, 1; xor.b32 %r4, %r4, 1;
    mad.lo.u32 %r5, %r2, 8, base;
    mad.lo.u32 %r6, %r2, 128, base; mad.lo.u32 %r6, lane, 4, %r6;
    FREE: mbarrier.test_wait.parity.shared.b64 %p3, [%r5+16], %r4; @!%p3 bra FREE; //@wait_empty
    st.shared.u32 [%r6+32], %r3; //@put
    mbarrier.arrive.shared.b64 %d5, [%r5]; //@full
    //@late
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p4, %r1, tiles;
    @%p4 bra PRODUCE;
    bra END;
CONSUMER:
    mov.u32 %r7, 0;
    xor.b32 %r8, lane, 31;
CONSUME:
    and.b32 %r2, %r1, 1;
    bfe.u32 %r4, %r1, 1, 1; //@parity
    mad.lo.u32 %r5, %r2, 8, base;
    mad.lo.u32 %r6, %r2, 128, base; mad.lo.u32 %r6, %r8, 4, %r6;
    FILLED: mbarrier.test_wait.parity.shared.b64 %p3, [%r5], %r4; @!%p3 bra FILLED; //@wait_full
    ld.shared.u32 %r9, [%r6+32]; //@get
    add.u32 %r7, %r7, %r9;
    mbarrier.arrive.shared.b64 %d5, [%r5+16]; //@empty
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p4, %r1, tiles;
    @%p4 bra CONSUME;
    st.global.u32 [%d3], %r7; //@store
END:
""",
    ),
    grid=1,
    block=64,
    data=ring_data,
    plants=(
        plant(
            "mbarriers used without a barrier after their initialisation",
            {"ready": ""},
            *(
                f"{kind} {tag}"
                for kind in ("mbarrier_invalid", "uninitialised_shared")
                for tag in ("wait_empty", "wait_full", "full", "empty")
            ),
            *(
                f"race_shared {init} {tag}"
                for init in ("init", "init_second", "init_rest")
                for tag in ("wait_empty", "wait_full", "full", "empty")
            ),
            also=(*STALE, *SPINNING, "race_shared put get"),
        ),
        plant(
            "an mbarrier that is never initialised",
            {"init_second": ""},
            "mbarrier_invalid full",
            "mbarrier_invalid wait_full",
            also=(
                *STALE,
                *SPINNING,
                "race_shared put get",
                "uninitialised_shared full",
                "uninitialised_shared wait_full",
            ),
        ),
        plant(
            "an mbarrier that waits for one arrival too many",
            {"init": "mbarrier.init.shared.b64 [base], 33;"},
            *SPINNING,
        ),
        plant(
            "an mbarrier that waits for one arrival too few",
            {"init": "mbarrier.init.shared.b64 [base], 31;"},
            "race_shared put get",
            also=(
                *STALE,
                *SPINNING,
            ),
        ),
        plant(
            "no wait for a full slot",
            {"wait_full": ""},
            "race_shared put get",
            "uninitialised_shared get",
            also=(*STALE, *SPINNING),
        ),
        plant(
            "no wait for an empty slot",  # phases run ahead of a waiter, who then waits for ever
            {"wait_empty": ""},
            "race_shared put get",
            "limit wait_full",
            "barrier_deadlock wait_full",
            also=STALE,
        ),
        plant(
            "a wait for the wrong parity",
            {"parity": "bfe.u32 %r4, %r1, 1, 1; xor.b32 %r4, %r4, 1;"},
            "race_shared put get",
            "uninitialised_shared get",
            *SPINNING,
            also=STALE,
        ),
        plant(
            "an arrival before the slot is filled",
            {"put": "", "late": "st.shared.u32 [%r6+32], %r3;"},
            "race_shared late get",
            also=STALE,
        ),
        plant(
            "slots that are never freed",
            {"empty": ""},
            *SPINNING,
        ),
        plant(
            "more arrivals than a phase has",
            {"full": "mbarrier.arrive.noComplete.shared.b64 %d5, [%r5], 3;"},
            "mbarrier_invalid full",
            also=(
                *STALE,
                "race_shared put get",
                *SPINNING,
            ),
        ),
    ),
    step_limit=40_000,
)


def landing_data(rng: np.random.Generator) -> Data:
    x = words(4, 32, 4, rng=rng)
    return Data([x, emulator.output(np.zeros((32, 4), np.uint32))], {1: x[:, ::-1].sum(0, dtype=np.uint32)})


# Warp 0 starts all copies at once, each tile with an mbarrier of its own; warp 1 adds them up as they land.
LANDING = Case(
    "landing",
    ptx(
        "u64 x, u64 y",
        """
    .shared .align 16 .b8 memory[2080];
    mov.u32 base, memory;
    mul.wide.u32 %d1, lane, 16; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    setp.lt.u32 %p1, tid, 4;
    mad.lo.u32 %r1, tid, 8, base;
    @%p1 mbarrier.init.shared.b64 [%r1], 32; //@init
    bar.sync 0; //@ready
    mov.u32 %r2, 0;
    mov.u32 %r3, base;
    mad.lo.u32 %r4, lane, 16, base;
    setp.ne.u32 %p2, warp, 0;
    @%p2 bra CONSUMER;
COPY:
    cp.async.cg.shared.global [%r4+32], [%d2], 16; //@copy
    cp.async.mbarrier.arrive.noinc.shared.b64 [%r3]; //@landed
    add.s64 %d2, %d2, 512; add.u32 %r3, %r3, 8; add.u32 %r4, %r4, 512;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p3, %r2, 4;
    @%p3 bra COPY;
    cp.async.wait_all; //@drain
    bra END;
CONSUMER:
    xor.b32 %r4, lane, 31; mad.lo.u32 %r4, %r4, 16, base;
    mov.u32 %r5, 0; mov.u32 %r6, 0; mov.u32 %r7, 0; mov.u32 %r8, 0;
ADD:
    WAIT: mbarrier.test_wait.parity.shared.b64 %p4, [%r3], 0; @!%p4 bra WAIT; //@wait
    ld.shared.v4.u32 {%r9, %r10, %r11, %r12}, [%r4+32]; //@get
    add.u32 %r5, %r5, %r9; add.u32 %r6, %r6, %r10; add.u32 %r7, %r7, %r11; add.u32 %r8, %r8, %r12;
    add.u32 %r3, %r3, 8; add.u32 %r4, %r4, 512;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p3, %r2, 4;
    @%p3 bra ADD;
    st.global.v4.u32 [%d3], {%r5, %r6, %r7, %r8}; //@store
END:
""",
    ),
    grid=1,
    block=64,
    data=landing_data,
    plants=(
        plant(
            "a plain arrival where the copies' own is wanted",
            {"landed": "mbarrier.arrive.shared.b64 %d5, [%r3];"},
            "race_copy copy get",
            also=STALE,
        ),
        plant("no wait for the copies to land", {"wait": ""}, "race_copy copy get", "race_shared copy get", also=STALE),
        plant(
            "an arrival before its copy",
            {
                "copy": "cp.async.mbarrier.arrive.noinc.shared.b64 [%r3];",
                "landed": "cp.async.cg.shared.global [%r4+32], [%d2], 16;",
            },
            "race_copy landed get",
            also=STALE,
        ),
        plant(
            "an arrival that raises the count as well",
            {"landed": "cp.async.mbarrier.arrive.shared.b64 [%r3];"},
            "barrier_deadlock wait",
            "limit wait",
        ),
    ),
    step_limit=40_000,
)

CASES = (NAMED_RING, MEETING, MBARRIER_RING, LANDING)
