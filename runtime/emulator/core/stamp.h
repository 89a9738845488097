/* Stamps of memory accesses.
 *
 * A stamp is time << 32 | pc << 14 | flags << 10 | thread in its block, 0 for never. */
#ifndef EMULATOR_STAMP_H
#define EMULATOR_STAMP_H

#include "core.h"

#define MAX_PC (1u << 18)
/* Of a weak write: */
#define FLIGHT ((u64)1 << 10)   /* a copy that is not known to have landed */
#define LANDED ((u64)2 << 10)   /* a copy that has; with FLIGHT: only those who learnt it of an mbarrier know so */
/* Of a strong write: an atomic, or a volatile, relaxed or release store. */
#define STRONG ((u64)4 << 10)
#define MIXED ((u64)8 << 10)    /* over weak ones of the same block */
/* Of reads, and of strong writes: */
#define OF_LANES ((u64)1 << 10) /* several lanes of one warp */
#define OF_WARPS ((u64)2 << 10) /* several warps */
#define LIST ((u64)8 << 10)     /* the upper half is a node number: accesses are listed one by one */

#define TIME(stamp) ((u32)((stamp) >> 32))
#define STAMP_PC(stamp) ((i32)((stamp) >> 14 & (MAX_PC - 1)))
#define STAMP_THREAD(stamp) ((u32)(stamp)&1023)
#define STAMP_WARP(stamp) ((u32)(stamp) >> 5 & 31)

static inline u64 stamp_of(const Warp *w, const Insn *i, u32 lane) {
    return (u64)w->m->now << 32 | (u64)(i - w->m->code) << 14 | (w->index * LANES + lane);
}
/* The last stamp that a time covers. */
static inline u64 until(u32 time) { return (u64)time << 32 | 0xFFFFFFFFu; }

/* Whether one access of this block is known to a lane. */
static inline bool ordered(const Warp *w, u32 lane, u64 stamp) {
    const u32 time = TIME(stamp), thread = STAMP_THREAD(stamp);
    if (time <= w->b->epoch || thread == w->index * LANES + lane) return true;
    if (thread / LANES == w->index && time <= w->converged) return true;
    return w->informed && knows(w, lane, w->b->index, thread, time);
}
/* The same of reads, which may be those of several threads. */
static inline bool reads_ordered(const Warp *w, u32 lane, u64 stamp) {
    if (TIME(stamp) <= w->b->epoch) return true;
    if (stamp & OF_WARPS) return false;
    if (stamp & OF_LANES) return STAMP_WARP(stamp) == w->index && TIME(stamp) <= w->converged;
    return ordered(w, lane, stamp);
}
/* The stamp of the reads so far with one more; what the reader knows of need not be kept. Of several the highest thread
 * stays named, and `second` another. */
static inline u64 with_read(const Warp *w, u32 lane, u64 reads, u64 mine, u32 *second) {
    const bool mine_named = STAMP_THREAD(reads) < STAMP_THREAD(mine);
    const u64 named = mine_named ? mine : reads;
    if (reads_ordered(w, lane, reads)) return mine;
    if (STAMP_THREAD(reads) != STAMP_THREAD(mine)) *second = (u32)(mine_named ? reads : mine);
    return (mine & ~(u64)0xFFFFFFFF) | (named & 0xFFFFFFFF) | (reads & (OF_LANES | OF_WARPS)) |
           (STAMP_WARP(reads) == w->index ? OF_LANES : OF_WARPS);
}

/* The same of atomics, where no program orders itself by them: they race with weak accesses only. */
static inline u64 with_atomic(const Warp *w, u32 lane, u64 before, u64 mine) {
    mine |= STRONG;
    if (!(before & STRONG) || reads_ordered(w, lane, before)) return mine;
    return mine | (before & (OF_LANES | OF_WARPS)) | (STAMP_WARP(before) == w->index ? OF_LANES : OF_WARPS);
}
static inline bool write_ordered(const Warp *w, u32 lane, u64 stamp) {
    return stamp & STRONG ? reads_ordered(w, lane, stamp) : ordered(w, lane, stamp);
}
static inline bool in_flight(u64 write) { return (write & (FLIGHT | LANDED | STRONG)) == FLIGHT; }
static inline bool by_arrival(u64 write) { return (write & (FLIGHT | LANDED | STRONG)) == (FLIGHT | LANDED); }
static inline bool of_copy(u64 write) { return write & (FLIGHT | LANDED) && !(write & STRONG); }

static inline Party party_of(u64 stamp, u32 block) { return (Party){STAMP_PC(stamp), block, STAMP_THREAD(stamp)}; }
/* Of reads, one that is not the lane's own. */
static inline Party reader_of(const Warp *w, u32 lane, u64 reads, u32 second) {
    const bool own = STAMP_THREAD(reads) == w->index * LANES + lane && reads & (OF_LANES | OF_WARPS);
    return party_of(own ? second : reads, w->b->index);
}

#endif
