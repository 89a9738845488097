/* The access history of shared memory, for races and uninitialised reads.
 *
 * Each 4-byte word has a stamp of its last write and one of its reads since; a word that was ever touched in part keeps
 * stamps per byte instead (SPLIT). Accesses of one instruction are all checked before any leaves its stamp: lanes do not
 * race with one another inside an instruction. */
#include <stdlib.h>

#include "exact.h"

#define SPLIT (~(u64)0)

/* Stamps of four words. They compare as signed numbers do before time 2^31, which is when the vectors' use ends. */
typedef i64 Stamps __attribute__((vector_size(32)));
typedef i32 Halves __attribute__((vector_size(16)));
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" /* everything is inlined: no vector is passed */
#endif
#define EVERY(x) ((Stamps){0} + (i64)(x))
#define CHOOSE(which, x, y) (((which) & (x)) | (~(which) & (y)))
INLINE bool any(const Stamps *x) { return (*x)[0] | (*x)[1] | (*x)[2] | (*x)[3]; }
INLINE Stamps four(const u64 *stamps) {
    Stamps x;
    memcpy(&x, stamps, sizeof x);
    return x;
}
INLINE bool early(const Warp *w) { return !(w->m->now >> 31); }

static void race(Warp *w, const Insn *i, u64 with, u32 lane, u32 address, u32 size, Party other) {
    report_other(w, i, of_copy(with) ? F_RACE_ASYNC : F_RACE_SHARED, lane, address, size, other);
}

/* Checks an access, or those `bytes` of it that are one word or byte, against those before it. */
static void check_unit(Warp *w, const Insn *i, u32 lane, u32 address, u32 size, u32 bytes, u64 *write, u64 *read,
                       u32 second, u32 access) {
    Machine *m = w->m;
    const u64 last = *write, reads = *read;
    const u32 own = w->b->index;
    const bool same = access == WRITE && w->storing && !memcmp(w->b->shared + address, w->storing[lane], size);
    if (access != WRITE && access != STRONG_WRITE && !last) {
        if (m->checks & CHECK_UNINITIALISED) report_unset(w, i, F_UNINITIALISED_SHARED, lane, address, size, bytes);
        return;
    }
    if (in_flight(last)) {
        race(w, i, last, lane, address, size, party_of(last, own));
    } else if (m->exact) {
        u64 stamp;
        Party other;
        if (exact_check(w, lane, (Unit){write, read, NULL, NULL}, access, same, &stamp, &other))
            race(w, i, stamp, lane, address, size, other);
    } else {
        const bool both_strong = access != READ && access != WRITE && last & STRONG;
        if (!both_strong && !same && !write_ordered(w, lane, last))
            race(w, i, last, lane, address, size, party_of(last, own));
        else if (access != READ && !reads_ordered(w, lane, reads))
            race(w, i, 0, lane, address, size, reader_of(w, lane, reads, second));
    }
}

static void note_unit(Warp *w, const Insn *i, u32 lane, u64 *write, u64 *read, u32 *second, u32 access, u64 stamp) {
    if (w->m->exact) exact_note(w, i, lane, (Unit){write, read, NULL, NULL}, access, stamp);
    else if (access == READ) *read = with_read(w, lane, *read, stamp, second);
    else *write = access == WRITE ? stamp : with_atomic(w, lane, *write, stamp);
}

static bool split(Block *b, u32 word) {
    const size_t bytes = (size_t)b->m->shared_end + 16;
    if (b->shared_write[word] == SPLIT) return true;
    if (!b->byte_write) {
        b->byte_write = malloc(bytes * sizeof *b->byte_write), b->byte_read = malloc(bytes * sizeof *b->byte_read);
        b->byte_second = malloc(bytes * sizeof *b->byte_second);
        if (!b->byte_write || !b->byte_read || !b->byte_second) {
            b->m->stop = b->m->failed = true;
            return false;
        }
    }
    for (u32 n = 0; n < 4; n++) {
        b->byte_write[4 * word + n] = b->shared_write[word];
        b->byte_read[4 * word + n] = exact_copy(b->m, b->shared_read[word]);
        b->byte_second[4 * word + n] = b->shared_second[word];
    }
    b->shared_write[word] = SPLIT;
    return true;
}

/* Each word, or byte where a word is split, of an access. */
static void range(Warp *w, const Insn *i, u32 lane, u32 address, u32 size, u32 access, u64 stamp, bool note) {
    Block *b = w->b;
    for (u32 at = address, end = address + size; at < end && (note || !w->m->stop);) {
        const bool whole = at % 4 == 0 && at + 4 <= end && b->shared_write[at / 4] != SPLIT;
        u64 *write, *read;
        u32 *second;
        if (!whole && !split(b, at / 4)) return;
        write = whole ? b->shared_write + at / 4 : b->byte_write + at;
        read = whole ? b->shared_read + at / 4 : b->byte_read + at;
        second = whole ? b->shared_second + at / 4 : b->byte_second + at;
        if (note) note_unit(w, i, lane, write, read, second, access, stamp);
        else check_unit(w, i, lane, address, size, (whole ? 15u : 1u) << (at - address), write, read, *second, access);
        at += whole ? 4 : 1;
    }
}

/* The usual case: all was written before the epoch and nothing is in flight. */
INLINE bool read_words(const Warp *w, u32 lane, u64 mine, u32 words, const u64 *write, u64 *read, u32 *second) {
    const u64 epoch = until(w->b->epoch);
    u64 unusual = 0, again = 0;
    for (u32 n = 0; n < words; n++) {
        unusual |= (write[n] - 1 >= epoch) | (write[n] & FLIGHT) | (read[n] & LIST);
        again |= read[n] > epoch;
    }
    if (unusual || (again && w->m->exact)) return false;
    if (!again) for (u32 n = 0; n < words; n++) read[n] = mine;
    else for (u32 n = 0; n < words; n++) read[n] = with_read(w, lane, read[n], mine, second + n);
    return true;
}

/* The same of four words at once; not of threads that know more than epoch and convergence say. */
INLINE bool read_four(const Warp *w, u64 stamp, const u64 *write, u64 *read, u32 *second) {
    const Stamps epoch = EVERY(until(w->b->epoch)), mine = EVERY(stamp), upper = EVERY(~(u64)0xFFFFFFFF);
    const Stamps writes = four(write), reads = four(read), again = reads > epoch;
    const Stamps unusual = (writes > epoch) | (writes == 0) | (writes & EVERY(FLIGHT)) | (reads & EVERY(LIST));
    Stamps now = mine;
    if (any(&unusual)) return false;
    if (any(&again)) {
        const Stamps differs = (reads ^ mine) & 1023, own_warp = differs < LANES, own = differs == 0;
        const Stamps known = (own_warp & (reads <= EVERY(until(w->converged)))) | (own & ((reads & EVERY(OF_LANES)) == 0));
        const Stamps ordered = ~again | (known & ((reads & EVERY(OF_WARPS)) == 0)), later = (reads & 1023) < (mine & 1023);
        const Stamps named = CHOOSE(later, mine, reads), other = CHOOSE(later, reads, mine);
        const Stamps whose = (reads & EVERY(OF_LANES | OF_WARPS)) | CHOOSE(own_warp, EVERY(OF_LANES), EVERY(OF_WARPS));
        Halves seconds;
        if (w->m->exact || w->informed) return false;
        memcpy(&seconds, second, sizeof seconds);
        seconds = __builtin_convertvector(CHOOSE(ordered | own, __builtin_convertvector(seconds, Stamps), other), Halves);
        memcpy(second, &seconds, sizeof seconds);
        now = CHOOSE(ordered, mine, (mine & upper) | (named & ~upper) | whose);
    }
    memcpy(read, &now, sizeof now);
    return true;
}

VECTOR void shadow_read(Warp *w, const Insn *i, u32 lanes, const u64 *address, u32 size) {
    const u64 first = stamp_of(w, i, 0);
    const bool vectors = size == 16 && early(w);
    EACH(lanes, l) {
        const u32 word = (u32)address[l] / 4;
        u64 *write = w->b->shared_write + word, *read = w->b->shared_read + word;
        u32 *second = w->b->shared_second + word;
        if (vectors ? read_four(w, first | l, write, read, second)
                       : size % 4 == 0 && read_words(w, l, first | l, size / 4, write, read, second)) continue;
        range(w, i, l, (u32)address[l], size, READ, 0, false);
        range(w, i, l, (u32)address[l], size, READ, first | l, true);
    }
}

INLINE bool may_write(const Warp *w, u32 words, const u64 *write, const u64 *read) {
    const u64 epoch = until(w->b->epoch);
    u64 unusual = 0;
    if (words == 4 && early(w)) {
        const Stamps writes = four(write), reads = four(read);
        const Stamps found = (writes > EVERY(epoch)) | (reads > EVERY(epoch)) | (writes & EVERY(FLIGHT)) | (reads & EVERY(LIST));
        return !any(&found);
    }
    for (u32 n = 0; n < words; n++) unusual |= (write[n] > epoch) | (write[n] & FLIGHT) | (read[n] > epoch) | (read[n] & LIST);
    return !unusual;
}

/* Writes of several lanes, which have the flags of `first`. */
INLINE void write_all(Warp *w, const Insn *i, u32 lanes, const u64 *address, u32 size, u64 first) {
    const bool words = size % 4 == 0;
    u32 usual = 0;
    EACH(lanes, l) {
        const u32 word = (u32)address[l] / 4;
        if (words && may_write(w, size / 4, w->b->shared_write + word, w->b->shared_read + word)) usual |= 1u << l;
        else range(w, i, l, (u32)address[l], size, WRITE, 0, false);
    }
    EACH(lanes, l) {
        const u32 word = (u32)address[l] / 4;
        u64 *write = w->b->shared_write + word, *read = w->b->shared_read + word;
        if (usual >> l & 1) for (u32 n = 0; n < size / 4; n++) write[n] = first | l, read[n] = 0;
        else range(w, i, l, (u32)address[l], size, WRITE, first | l, true);
    }
}

VECTOR void shadow_write(Warp *w, const Insn *i, u32 lanes, const u64 *address, u32 size) {
    const u64 first = stamp_of(w, i, 0);
    if (size == 16) write_all(w, i, lanes, address, 16, first);
    else if (size == 4) write_all(w, i, lanes, address, 4, first);
    else write_all(w, i, lanes, address, size, first);
}

VECTOR void shadow_copies_issued(Warp *w, const Insn *i, u32 lanes, const u64 *address, u32 size) {
    const u64 first = stamp_of(w, i, 0) | FLIGHT;
    if (size == 16) write_all(w, i, lanes, address, 16, first);
    else write_all(w, i, lanes, address, size, first);
}

/* An atomic, or a strong load or store, of one lane. */
void shadow_strong(Warp *w, const Insn *i, u32 lane, u32 address, u32 size, u32 access) {
    range(w, i, lane, address, size, access, 0, false);
    range(w, i, lane, address, size, access, stamp_of(w, i, lane), true);
}

/* A lane's bytes are visible to the thread that issued the copy, as if that had written them just now; or, where an mbarrier
 * was told, to those who wait for that. Nothing has been allowed to touch them since the issue: where something has, that was
 * found, and its stamp stays. */
static void land_words(Warp *w, u32 lane, u32 address, u32 size, u64 kept, u64 now) {
    Block *b = w->b;
    const u32 thread = w->index * LANES + lane;
    for (u32 n = address; n < address + size;) { /* whole words */
        const bool split = b->shared_write[n / 4] == SPLIT;
        u64 *at = split ? b->byte_write + n : b->shared_write + n / 4;
        if (STAMP_THREAD(*at) == thread && in_flight(*at)) *at = (*at & kept) | now;
        else if (STAMP_THREAD(*at) == thread && of_copy(*at)) *at &= ~FLIGHT;
        n += split ? 1 : 4;
    }
}

/* The usual case: four words that nothing has touched. */
INLINE bool land_four(const Warp *w, u32 lane, u64 *write, u64 kept, u64 now) {
    const u64 thread = w->index * LANES + lane;
    const Stamps flight = EVERY(FLIGHT | thread);
    Stamps at = four(write);
    const Stamps other = (at & EVERY(FLIGHT | LANDED | STRONG | 1023)) ^ flight;
    if (any(&other)) return false;
    at = (at & EVERY(kept)) | EVERY(now);
    memcpy(write, &at, sizeof at);
    return true;
}

VECTOR void shadow_copies_landed(Warp *w, u32 lanes, const u32 *address, u32 size, bool arrived) {
    const u64 now = (u64)w->m->now << 32 | LANDED, kept = 0xFFFFFFFF & ~(arrived ? 0 : FLIGHT);
    EACH(lanes, l)
        if (size != 16 || !land_four(w, l, w->b->shared_write + address[l] / 4, kept, now)) land_words(w, l, address[l], size, kept, now);
}

bool shadow_reset(Block *b) {
    const size_t words = b->m->shared_end / 4 + 1;
    memset(b->shared_write, 0, words * sizeof *b->shared_write);
    memset(b->shared_read, 0, words * sizeof *b->shared_read);
    for (u32 n = b->m->shared_start / 4; n < SHARED_BASE / 4; n++) b->shared_write[n] = 1; /* written before all time */
    return true;
}
