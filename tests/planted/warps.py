"""Exchange within a warp: shuffles, votes, reductions and matches with member masks."""

import numpy as np

from lowbitvm.runtime import emulator
from tests.planted.table import Case, Data, plant, ptx, words


def tail_data(rng: np.random.Generator) -> Data:
    x = words(45, rng=rng)
    y = np.array([x[:32].sum(), x[:32].max(), x[32:].sum(), x[32:].max(), x.sum()], np.uint32)
    return Data([x, emulator.output(np.zeros(5, np.uint32)), 45], {1: y})


# What follows from a warp that came apart at a shuffle, vote or reduction.
AFTERWARDS = (
    "undefined_store store",
    "undefined_store total",
    "shuffle_source shuffle",
    "mask_invalid shuffle",
    "mask_invalid redux",
    "barrier_diverged all",
    "barrier_deadlock all",
)

# The sum and the largest of each warp's words, where the last warp has 13 lanes with one, and the sum of all. The other
# lanes wait at the barrier meanwhile; had they left, PTX would let a mask name them.
TAIL = Case(
    "tail",
    ptx(
        "u64 x, u64 y, u32 n",
        """
    setp.lt.u32 %p1, tid, n;
    vote.sync.ballot.b32 %r1, %p1, -1; //@vote
    @!%p1 bra END; //@leave
    mul.wide.u32 %d1, tid, 4; add.s64 %d1, x, %d1;
    ld.global.u32 %r2, [%d1];
    mov.u32 %r9, %r2;
    popc.b32 %r3, %r1;
    mov.u32 %r4, 16;
LOOP:
    add.u32 %r5, lane, %r4;
    sub.u32 %r6, %r3, 1;
    min.u32 %r6, %r5, %r6; //@clamp
    shfl.sync.idx.b32 %r7, %r2, %r6, 31, %r1; //@shuffle
    setp.lt.u32 %p2, %r5, %r3; selp.b32 %r7, %r7, 0, %p2;
    add.u32 %r2, %r2, %r7;
    shr.u32 %r4, %r4, 1;
    setp.ne.u32 %p3, %r4, 0;
    @%p3 bra LOOP;
    redux.sync.max.u32 %r10, %r9, %r1; //@redux
    setp.ne.u32 %p4, lane, 0;
    @%p4 bra END;
    mul.wide.u32 %d2, warp, 8; add.s64 %d2, y, %d2;
    st.global.v2.u32 [%d2], {%r2, %r10}; //@store
END:
    bar.sync 0; //@all
    setp.ne.u32 %p5, tid, 0;
    @%p5 bra OUT;
    ld.global.u32 %r11, [y]; ld.global.u32 %r12, [y+8]; //@get
    add.u32 %r11, %r11, %r12;
    st.global.u32 [y+16], %r11; //@total
OUT:
""",
    ),
    grid=1,
    block=64,
    data=tail_data,
    plants=(
        plant(
            "a shuffle from lanes that take no part",
            {"clamp": "mov.u32 %r6, %r5;"},
            "shuffle_source shuffle",
            also=AFTERWARDS,
        ),
        plant(
            "a shuffle of the whole warp in a branch of some lanes",
            {"shuffle": "shfl.sync.idx.b32 %r7, %r2, %r6, 31, -1;"},
            "mask_invalid shuffle",
            also=AFTERWARDS,
        ),
        plant(
            "a shuffle whose mask leaves out lanes that execute it",
            {"shuffle": "shfl.sync.idx.b32 %r7, %r2, %r6, 31, 0x00000FFF;"},
            "mask_invalid shuffle",
            also=AFTERWARDS,
        ),
        plant(
            "a vote whose mask leaves out a lane that takes part",
            {"vote": "vote.sync.ballot.b32 %r1, %p1, 0x7FFFFFFF;"},
            "mask_invalid vote",
            also=AFTERWARDS,
        ),
        plant(
            "a reduction of the whole warp in a branch of some lanes",
            {"redux": "redux.sync.max.u32 %r10, %r9, -1;"},
            "mask_invalid redux",
            also=AFTERWARDS,
        ),
        plant(
            "a vote in a branch that not all its members take",
            {"vote": "@!%p1 bra END; vote.sync.ballot.b32 %r1, %p1, -1;"},
            "mask_invalid vote",
            also=AFTERWARDS,
        ),
    ),
)


def grouped_data(rng: np.random.Generator) -> Data:
    x = rng.integers(0, 4, (2, 64)).astype(np.uint32)
    return Data([x, np.zeros(4, np.uint32)], {1: np.bincount(x.ravel(), minlength=4).astype(np.uint32)})


# One atomic per warp and distinct key: lanes with the same key elect their lowest.
AGGREGATED = Case(
    "aggregated_atomics",
    ptx(
        "u64 x, u64 y",
        """
    mad.lo.u32 %r1, cta, 64, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d1, x, %d1;
    ld.global.u32 %r2, [%d1];
    match.any.sync.b32 %r3, %r2, 0xFFFFFFFF; //@match
    brev.b32 %r4, %r3; clz.b32 %r4, %r4;
    setp.ne.u32 %p1, %r4, lane;
    @%p1 bra END;
    popc.b32 %r5, %r3;
    mul.wide.u32 %d2, %r2, 4; add.s64 %d2, y, %d2;
    red.global.add.u32 [%d2], %r5; //@count
END:
""",
    ),
    grid=2,
    block=64,
    data=grouped_data,
    plants=(
        plant(
            "a match whose mask names half the warp",
            {"match": "match.any.sync.b32 %r3, %r2, 0x0000FFFF;"},
            "mask_invalid match",
            also=("undefined_predicate match", "undefined_store count", "undefined_address count"),
        ),
        plant(
            "the leaders update without atomics",
            {"count": "ld.global.u32 %r6, [%d2]; add.u32 %r6, %r6, %r5; st.global.u32 [%d2], %r6;"},
            "race_global count count",
        ),
    ),
)


def halves_data(rng: np.random.Generator) -> Data:
    x = words(32, rng=rng)
    low, high = x[:16].max(), x[16:].sum(dtype=np.uint32)
    return Data([x, emulator.output(np.zeros(32, np.uint32))], {1: np.repeat([low, high], 16).astype(np.uint32)})


# The halves of a warp do different things, each with its own mask.
HALVES = Case(
    "halves",
    ptx(
        "u64 x, u64 y",
        """
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    ld.global.u32 %r1, [%d2];
    setp.lt.u32 %p1, lane, 16;
    mov.u32 %r2, 8;
    @!%p1 bra HIGH;
LOW:
    shfl.sync.bfly.b32 %r3, %r1, %r2, 31, 0x0000FFFF; //@low
    max.u32 %r1, %r1, %r3;
    shr.u32 %r2, %r2, 1;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra LOW;
    bra JOIN;
HIGH:
    shfl.sync.bfly.b32 %r3, %r1, %r2, 31, 0xFFFF0000; //@high
    add.u32 %r1, %r1, %r3;
    shr.u32 %r2, %r2, 1;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra HIGH;
JOIN:
    bar.warp.sync 0xFFFFFFFF; //@join
    st.global.u32 [%d3], %r1; //@store
""",
    ),
    grid=1,
    block=32,
    data=halves_data,
    plants=(
        plant(
            "the masks of two halves are exchanged",
            {"high": "shfl.sync.bfly.b32 %r3, %r1, %r2, 31, 0x0000FFFF;"},
            "mask_invalid high",
            also=("undefined_store store", "mask_invalid low", "shuffle_source high"),
        ),
        plant(
            "a shuffle across the halves",
            {"low": "xor.b32 %r4, lane, %r2; or.b32 %r4, %r4, 16; shfl.sync.idx.b32 %r3, %r1, %r4, 31, 0x0000FFFF;"},
            "shuffle_source low",
            also=("undefined_store store",),
        ),
        plant(
            "an aligned barrier in one half of a warp",
            {"low": "bar.sync 0; shfl.sync.bfly.b32 %r3, %r1, %r2, 31, 0x0000FFFF;"},
            "barrier_diverged low",
            also=("barrier_deadlock low", "undefined_store store", "mask_invalid low", "mask_invalid high"),
        ),
    ),
)


def elected_data(rng: np.random.Generator) -> Data:
    x = words(96, rng=rng)
    return Data([x, emulator.output(np.zeros(3, np.uint32))], {1: x[::32].copy()})


ELECTED = Case(
    "elected",
    ptx(
        "u64 x, u64 y",
        """
    mul.wide.u32 %d1, tid, 4; add.s64 %d1, x, %d1;
    mul.wide.u32 %d2, warp, 4; add.s64 %d2, y, %d2;
    ld.global.u32 %r1, [%d1];
    elect.sync %r2|%p1, 0xFFFFFFFF; //@elect
    shfl.sync.idx.b32 %r3, %r1, %r2, 31, 0xFFFFFFFF;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 shfl.sync.idx.b32 %r3, %r1, 0, 31, 0xFFFFFFFF;
    @%p1 st.global.u32 [%d2], %r3; //@store
""",
        target="sm_90",
    ),
    grid=1,
    block=96,
    data=elected_data,
    plants=(
        plant(
            "an election whose mask leaves out lanes that take part",
            {"elect": "elect.sync %r2|%p1, 0x0000FFFF;"},
            "mask_invalid elect",
            also=("undefined_predicate elect", "undefined_store store"),
        ),
        plant(
            "every lane stores where one is elected",
            {"store": "st.global.u32 [%d1], %r3; st.global.u32 [%d2], %r3; st.global.u32 [y], %r3;"},
            "race_global store store",
            also=("read_only store",),
        ),
    ),
    target="sm_90a",
)

CASES = (TAIL, AGGREGATED, HALVES, ELECTED)
