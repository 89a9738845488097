/* The access history of shared memory, for races and uninitialised reads.
 *
 * Each 4-byte word has a stamp of its last write and one of its reads since; a word that was ever touched in part keeps
 * stamps per byte instead (SPLIT). */
#include "stamp.h"

#define SPLIT 0xFFFFFFFFu

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
    *read = with_read(w, *read, mine);
}

static void write_unit(Warp *w, const Insn *i, u32 lane, u32 address, u32 size, u32 *write, u32 *read, u32 stamp) {
    const u32 last = *write, reader = *read;
    if (last & FLAG) race(w, i, F_RACE_ASYNC, lane, address, size, thread_of(last));
    else if (!ordered(w, last))
        race(w, i, last & LANDED ? F_RACE_ASYNC : F_RACE_SHARED, lane, address, size, thread_of(last));
    else if (!reads_ordered(w, reader)) race(w, i, F_RACE_SHARED, lane, address, size, thread_of(reader));
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

static void read_range(Warp *w, const Insn *i, u32 lane, u32 address, u32 size) {
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

/* The usual case, without branches: written before the epoch (or by this warp) and nothing in flight. */
static inline bool read_words(const Warp *w, u32 mine, u32 words, const u32 *write, u32 *read) {
    const u32 epoch = w->m->epoch << 12, self = w->index;
    u32 unusual = 0;
    for (u32 n = 0; n < words; n++) {
        const u32 last = write[n];
        unusual |= (last == 0) | ((last & FLAG) != 0) | (last >= epoch && ((last & (LANDED | 31)) != self));
    }
    if (unusual) return false;
    for (u32 n = 0; n < words; n++) {
        const u32 old = read[n];
        read[n] = old < epoch || (old & (FLAG | 31)) == self ? mine : old | FLAG;
    }
    return true;
}

static inline bool write_words(const Warp *w, u32 mine, u32 words, u32 *write, const u32 *read) {
    const u32 epoch = w->m->epoch << 12, self = w->index;
    u32 unusual = 0;
    for (u32 n = 0; n < words; n++) {
        const u32 last = write[n], reader = read[n];
        unusual |= ((last & FLAG) != 0) | (last >= epoch && (last & 31) != self);
        unusual |= reader >= epoch && (reader & (FLAG | 31)) != self;
    }
    if (unusual) return false;
    for (u32 n = 0; n < words; n++) write[n] = mine;
    return true;
}

VECTOR void shadow_read(Warp *w, const Insn *i, u32 lanes, const u64 *address, u32 size) {
    Machine *m = w->m;
    EACH(lanes, l) {
        const u32 word = (u32)address[l] / 4, mine = stamp_of(w, l);
        u32 *write = m->shared_write + word, *read = m->shared_read + word;
        if (size == 16 ? read_words(w, mine, 4, write, read)
                       : size % 4 == 0 && read_words(w, mine, size / 4, write, read)) continue;
        read_range(w, i, l, (u32)address[l], size);
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

VECTOR void shadow_write(Warp *w, const Insn *i, u32 lanes, const u64 *address, u32 size) {
    Machine *m = w->m;
    EACH(lanes, l) {
        const u32 word = (u32)address[l] / 4, mine = stamp_of(w, l);
        u32 *write = m->shared_write + word, *read = m->shared_read + word;
        if (size == 16 ? write_words(w, mine, 4, write, read)
                       : size % 4 == 0 && write_words(w, mine, size / 4, write, read)) continue;
        write_range(w, i, l, (u32)address[l], size, 0);
    }
}

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
        for (u32 n = 0; n < m->shared_end; n++) {
            u32 *stamps[2] = {m->shared_write + n / 4, m->byte_write + n};
            for (u32 s = n % 4 ? 1 : 0; s < 2; s++)
                if (*stamps[s] && *stamps[s] != SPLIT) *stamps[s] = (*stamps[s] & 4095) | 4096;
            if (n % 4 == 0) m->shared_read[n / 4] = 0;
            m->byte_read[n] = 0;
        }
        for (u32 n = 0; n < m->array_count; n++) history_forget_clocks(m->arrays + n);
        for (u32 a = 0; a < m->warps; a++) {
            for (u32 b = 0; b < m->warps; b++) m->warp[a].clock[b] = a == b ? 2 : 1;
            m->warp[a].converged = 2;
        }
        m->epoch = 2;
    }
}

void shadow_reset(Machine *m) {
    size_t words = m->shared_end / 4 + 1;
    memset(m->shared_write, 0, words * 4);
    memset(m->shared_read, 0, words * 4);
    m->epoch = 1, m->partial = 0;
    for (u32 a = 0; a < m->warps; a++) {
        for (u32 b = 0; b < MAX_WARPS; b++) m->warp[a].clock[b] = a == b;
        m->warp[a].converged = 1;
    }
}
