/* Stamps of memory accesses, for races between the warps of a block.
 *
 * A stamp is clock << 12 | landed << 11 | lane << 6 | flag << 5 | warp, 0 for never. The clock is the accessing warp's own
 * entry of its vector clock; everything before m->epoch is known to every warp. */
#ifndef EMULATOR_STAMP_H
#define EMULATOR_STAMP_H

#include "core.h"

#define FLAG 32u   /* of a write: the copy is still in flight; of a read: several warps read */
#define LANDED 2048u
#define CLOCK(stamp) ((stamp) >> 12)
#define STAMP_WARP(stamp) ((stamp)&31)
#define STAMP_LANE(stamp) ((stamp) >> 6 & 31)
#define MAX_CLOCK 0xFFFF0u

static inline u32 stamp_of(const Warp *w, u32 lane) { return w->clock[w->index] << 12 | lane << 6 | w->index; }

static inline bool ordered(const Warp *w, u32 stamp) {
    return CLOCK(stamp) < w->m->epoch || STAMP_WARP(stamp) == w->index || CLOCK(stamp) <= w->clock[STAMP_WARP(stamp)];
}

/* Whether a write may follow the reads of a stamp. Those of several warps may be ordered by barriers of some warps each. */
static inline bool reads_ordered(const Warp *w, u32 stamp) {
    if (CLOCK(stamp) < w->m->epoch) return true;
    return stamp & FLAG ? w->m->partial : ordered(w, stamp);
}

/* The stamp of the reads so far, with one more. */
static inline u32 with_read(const Warp *w, u32 reads, u32 mine) {
    return CLOCK(reads) < w->m->epoch || (!(reads & FLAG) && ordered(w, reads)) ? mine : reads | FLAG;
}

static inline u32 thread_of(u32 stamp) { return STAMP_WARP(stamp) * LANES + STAMP_LANE(stamp); }

#endif
