/* The access history of shared memory, for races and uninitialised reads.
 *
 * Each 4-byte word has a stamp of its last write and one of its reads since; a word that was ever touched in part keeps
 * stamps per byte instead (SPLIT). A stamp is clock << 12 | landed << 11 | lane << 6 | flag << 5 | warp, 0 for never. The
 * clock is the accessing warp's own entry of its vector clock; everything before m->epoch is known to every warp. */
#include "core.h"

#define SPLIT 0xFFFFFFFFu
#define FLAG 32u   /* of a write: the copy is still in flight; of a read: several warps read */
#define LANDED 2048u
#define CLOCK(stamp) ((stamp) >> 12)
#define STAMP_WARP(stamp) ((stamp)&31)
#define STAMP_LANE(stamp) ((stamp) >> 6 & 31)
#define MAX_CLOCK 0xFFFF0u

static u32 stamp_of(const Warp *w, u32 lane) { return w->clock[w->index] << 12 | lane << 6 | w->index; }

static bool ordered(const Warp *w, u32 stamp) {
    return CLOCK(stamp) < w->m->epoch || STAMP_WARP(stamp) == w->index || CLOCK(stamp) <= w->clock[STAMP_WARP(stamp)];
}

static u32 thread_of(u32 stamp) { return STAMP_WARP(stamp) * LANES + STAMP_LANE(stamp); }

static void race(Warp *w, const Insn *i, int kind, u32 lane, u32 address, u32 size, u32 other) {
    if (w->m->checks & (kind == F_RACE_SHARED ? CHECK_RACE : CHECK_ASYNC)) report(w, i, kind, lane, address, size, other);
}

static void read_unit(Warp *w, const Insn *i, u32 lane, u32 address, u32 size, u32 *write, u32 *read) {
    Machine *m = w->m;
    const u32 last = *write, mine = stamp_of(w, lane);
    if (!last) {
        if (m->checks & CHECK_UNINITIALISED) report(w, i, F_UNINITIALISED_SHARED, lane, address, size, 0);
    } else if (last & FLAG) {
        race(w, i, F_RACE_ASYNC, lane, address, size, thread_of(last));
    } else if (!ordered(w, last)) {
        race(w, i, last & LANDED ? F_RACE_ASYNC : F_RACE_SHARED, lane, address, size, thread_of(last));
    } else if (last & LANDED && STAMP_WARP(last) == w->index && CLOCK(last) >= w->converged && STAMP_LANE(last) != lane) {
        race(w, i, F_RACE_ASYNC, lane, address, size, thread_of(last));
    }
    if (CLOCK(*read) < m->epoch || (!(*read & FLAG) && ordered(w, *read))) *read = mine;
    else *read |= FLAG;
}

static void write_unit(Warp *w, const Insn *i, u32 lane, u32 address, u32 size, u32 *write, u32 *read, u32 stamp) {
    const u32 last = *write, reader = *read;
    if (last & FLAG) race(w, i, F_RACE_ASYNC, lane, address, size, thread_of(last));
    else if (!ordered(w, last))
        race(w, i, last & LANDED ? F_RACE_ASYNC : F_RACE_SHARED, lane, address, size, thread_of(last));
    else if (CLOCK(reader) >= w->m->epoch) {
        if (reader & FLAG ? !w->m->partial : !ordered(w, reader))
            race(w, i, F_RACE_SHARED, lane, address, size, thread_of(reader));
    }
    *write = stamp;
}

static void split(Machine *m, u32 word) {
    if (m->shared_write[word] == SPLIT) return;
    for (u32 n = 0; n < 4; n++) {
        m->byte_write[4 * word + n] = m->shared_write[word];
        m->byte_read[4 * word + n] = m->shared_read[word];
    }
    m->shared_write[word] = SPLIT;
}

static bool whole_word(const Machine *m, u32 address, u32 end) {
    return address % 4 == 0 && address + 4 <= end && m->shared_write[address / 4] != SPLIT;
}

void shadow_read(Warp *w, const Insn *i, u32 lane, u32 address, u32 size) {
    Machine *m = w->m;
    for (u32 end = address + size; address < end && !m->stop;) {
        if (whole_word(m, address, end)) {
            read_unit(w, i, lane, address, size, m->shared_write + address / 4, m->shared_read + address / 4);
            address += 4;
        } else {
            split(m, address / 4);
            read_unit(w, i, lane, address, size, m->byte_write + address, m->byte_read + address);
            address++;
        }
    }
}

static void write_range(Warp *w, const Insn *i, u32 lane, u32 address, u32 size, u32 flags) {
    Machine *m = w->m;
    const u32 stamp = stamp_of(w, lane) | flags;
    for (u32 end = address + size; address < end && !m->stop;) {
        if (whole_word(m, address, end)) {
            write_unit(w, i, lane, address, size, m->shared_write + address / 4, m->shared_read + address / 4, stamp);
            address += 4;
        } else {
            split(m, address / 4);
            write_unit(w, i, lane, address, size, m->byte_write + address, m->byte_read + address, stamp);
            address++;
        }
    }
}

void shadow_write(Warp *w, const Insn *i, u32 lane, u32 address, u32 size) { write_range(w, i, lane, address, size, 0); }

void shadow_copy_issued(Warp *w, const Insn *i, u32 lane, u32 address, u32 size) {
    write_range(w, i, lane, address, size, FLAG);
}

void shadow_copy_landed(Warp *w, u32 lane, u32 address, u32 size) { /* cp.async moves whole aligned words */
    const u32 stamp = stamp_of(w, lane) | LANDED;
    for (u32 n = address; n < address + size; n++) {
        if (w->m->shared_write[n / 4] == SPLIT) w->m->byte_write[n] = stamp;
        else w->m->shared_write[n / 4] = stamp;
    }
}

/* Warps join: each learns what all of them have seen. When all do, old stamps stop mattering. */
void shadow_barrier(Machine *m, u32 warps) {
    u32 seen[MAX_WARPS] = {0}, newest = 0;
    EACH(warps, a) for (u32 b = 0; b < m->warps; b++) if (m->warp[a].clock[b] > seen[b]) seen[b] = m->warp[a].clock[b];
    for (u32 b = 0; b < m->warps; b++) if (m->warp[b].clock[b] > newest) newest = m->warp[b].clock[b];
    EACH(warps, a) {
        Warp *w = m->warp + a;
        memcpy(w->clock, seen, sizeof seen);
        w->converged = ++w->clock[a];
    }
    if (__builtin_popcount(warps) != (int)m->warps) {
        m->partial = 1;
        return;
    }
    m->partial = 0, m->epoch = newest + 1;
    for (u32 a = 0; a < m->warps; a++) {
        for (u32 b = 0; b < m->warps; b++) m->warp[a].clock[b] = a == b ? newest + 1 : newest;
        m->warp[a].converged = newest + 1;
    }
    if (newest > MAX_CLOCK) { /* the clock's 20 bits are nearly used: everything so far becomes clock 1 */
        for (u32 n = 0; n < m->shared_size; n++) {
            u32 *stamps[2] = {m->shared_write + n / 4, m->byte_write + n};
            for (u32 s = n % 4 ? 1 : 0; s < 2; s++)
                if (*stamps[s] && *stamps[s] != SPLIT) *stamps[s] = (*stamps[s] & 4095) | 4096;
            if (n % 4 == 0) m->shared_read[n / 4] = 0;
            m->byte_read[n] = 0;
        }
        for (u32 a = 0; a < m->warps; a++) {
            for (u32 b = 0; b < m->warps; b++) m->warp[a].clock[b] = a == b ? 2 : 1;
            m->warp[a].converged = 2;
        }
        m->epoch = 2;
    }
}

void shadow_reset(Machine *m) {
    size_t words = m->shared_size / 4 + 1;
    memset(m->shared_write, 0, words * 4);
    memset(m->shared_read, 0, words * 4);
    m->epoch = 1, m->partial = 0;
    for (u32 a = 0; a < m->warps; a++) {
        for (u32 b = 0; b < MAX_WARPS; b++) m->warp[a].clock[b] = a == b;
        m->warp[a].converged = 1;
    }
}
