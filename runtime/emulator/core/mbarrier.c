/* mbarrier: a 64-bit object in shared memory. A phase ends when no arrivals and no bytes are pending, then the object is
 * ready for the next. Its bits: arrivals pending 0..19, arrivals per phase 20..39, bytes pending (two's complement) 40..61,
 * parity of the phase 63. */
#include <stdlib.h>

#include "core.h"

#define COUNT_MASK (((u64)1 << 20) - 1)
#define PHASE ((u64)1 << 63)
#define MAX_COUNT COUNT_MASK

struct Mbarrier {
    u32 address;
    Clock *arrived, *completed; /* what those who arrived knew, in this phase; and in the phases before it */
};

void mbarriers_reset(Block *b) {
    for (u32 n = 0; n < b->mbarrier_count; n++)
        clock_release(b->mbarriers[n].arrived), clock_release(b->mbarriers[n].completed);
    b->mbarrier_count = 0;
}

static struct Mbarrier *find(Block *b, u32 address) {
    for (u32 n = 0; n < b->mbarrier_count; n++) if (b->mbarriers[n].address == address) return b->mbarriers + n;
    return NULL;
}

/* The object at an address, or NULL after saying that there is none. */
static struct Mbarrier *need(Warp *w, const Insn *i, u32 lane, u32 address) {
    struct Mbarrier *b = find(w->b, address);
    if (!b) report(w, i, F_MBARRIER_INVALID, lane, address, 0, 0);
    return b;
}

static u64 pending(u64 word) { return word & COUNT_MASK; }
static u64 expected(u64 word) { return word >> 20 & COUNT_MASK; }
static i64 bytes_pending(u64 word) { return (i64)(word << 2) >> 42; }
static u64 make(u64 phase, u64 count, u64 each, i64 bytes) {
    return phase | count | each << 20 | ((u64)bytes & (((u64)1 << 22) - 1)) << 40;
}
static u64 read_word(const Block *b, u32 address) {
    u64 word;
    memcpy(&word, b->shared + address, 8);
    return word;
}

static void write_word(Warp *w, struct Mbarrier *b, u64 word) {
    if (!pending(word) && !bytes_pending(word)) {
        word = make((word & PHASE) ^ PHASE, expected(word), expected(word), 0);
        clock_release(b->completed); /* this phase's arrivals came after the last was complete, or know of it */
        b->completed = b->arrived, b->arrived = NULL;
        clock_join(w->m, &b->arrived, b->completed);
    }
    memcpy(w->b->shared + b->address, &word, 8);
    w->m->changes++;
}

/* Arrivals leave a phase: `count` of them, `dropped` for good, with `bytes` more to come. */
static void change(Warp *w, const Insn *i, u32 lane, struct Mbarrier *b, u64 count, u64 dropped, i64 bytes) {
    const u64 word = read_word(w->b, b->address);
    if (count > pending(word)) {
        report(w, i, F_MBARRIER_INVALID, lane, b->address, count, 1);
        count = pending(word);
    }
    write_word(w, b, make(word & PHASE, pending(word) - count, expected(word) - dropped, bytes_pending(word) + bytes));
}

void mbarrier_expect(Warp *w, const Insn *i, u32 lane, u32 address) {
    struct Mbarrier *b = need(w, i, lane, address);
    u64 word;
    if (!b) return;
    word = read_word(w->b, address);
    write_word(w, b, make(word & PHASE, pending(word) + 1, expected(word), bytes_pending(word)));
}

void mbarrier_arrive(Warp *w, const Insn *i, u32 lane, u32 address, Clock *known) {
    struct Mbarrier *b = need(w, i, lane, address);
    if (!b) return;
    clock_join(w->m, &b->arrived, known);
    change(w, i, lane, b, 1, 0, 0);
}

/* init: address, count; inval: address. mod: space, whether init. */
static void init(Warp *w, const Insn *i, u32 active) {
    Block *b = w->b;
    Access a;
    resolve(w, i, active, 0, 8, i->mod[0], WRITE, &a);
    EACH(a.shared, l) {
        const u32 address = (u32)a.address[l], count = i->mod[1] ? (u32)get_lane(w, i, 1, l) : 0;
        struct Mbarrier *at = find(b, address);
        const u64 word = make(0, count, count, 0);
        if (!i->mod[1]) {
            if (!need(w, i, l, address)) continue;
            clock_release(at->arrived), clock_release(at->completed);
            *at = b->mbarriers[--b->mbarrier_count];
            continue;
        }
        if (!count || count > MAX_COUNT) report(w, i, F_MBARRIER_INVALID, l, address, count, 2);
        if (!at) {
            if (b->mbarrier_count == b->mbarrier_capacity) {
                const u32 capacity = b->mbarrier_capacity ? 2 * b->mbarrier_capacity : 16;
                struct Mbarrier *grown = realloc(b->mbarriers, capacity * sizeof *grown);
                if (!grown) {
                    w->m->stop = w->m->failed = true;
                    return;
                }
                b->mbarriers = grown, b->mbarrier_capacity = capacity;
            }
            at = b->mbarriers + b->mbarrier_count++;
            *at = (struct Mbarrier){address, NULL, NULL};
        }
        clock_release(at->arrived), clock_release(at->completed);
        at->arrived = at->completed = NULL;
        memcpy(b->shared + address, &word, 8);
        w->m->changes++;
    }
}

/* arrive, arrive_drop, expect_tx, complete_tx: [state], address, [count], [bytes]. mod: space; what: 1 counts as an
 * arrival, 2 drops it, 4 has a count, 8 has bytes, 16 takes bytes away, 32 publishes. */
enum { ARRIVES = 1, DROPS = 2, COUNTED = 4, BYTES = 8, COMPLETES = 16, RELEASES = 32 };
static void arrive(Warp *w, const Insn *i, u32 active) {
    const u32 what = i->mod[1], s = i->dsts;
    Access a;
    resolve(w, i, active, s, 8, i->mod[0], ATOMIC, &a);
    EACH(a.shared, l) {
        struct Mbarrier *b = need(w, i, l, (u32)a.address[l]);
        const u64 count = what & COUNTED ? get_lane(w, i, s + 1, l) : what & ARRIVES ? 1 : 0;
        const i64 bytes = what & BYTES ? (i64)get_lane(w, i, i->dsts + i->srcs - 1u, l) : 0;
        if (!b) continue;
        if (s) set_lane(w, i, 0, l, read_word(w->b, b->address));
        if (what & RELEASES) sync_publish(w, 1u << l, &b->arrived);
        change(w, i, l, b, count, what & DROPS ? count : 0, what & COMPLETES ? -bytes : bytes);
    }
    if (s) set_undefined(w, i->operand[0], active, 0);
}

/* test_wait, try_wait: whether the phase is over; address, state or parity. mod: space, parity, acquires. */
static void test_wait(Warp *w, const Insn *i, u32 active) {
    u32 result = 0;
    Access a;
    resolve(w, i, active, 1, 8, i->mod[0], STRONG_READ, &a);
    EACH(a.shared, l) {
        struct Mbarrier *b = need(w, i, l, (u32)a.address[l]);
        const u64 asked = get_lane(w, i, 2, l);
        bool over;
        if (!b) continue;
        if (next_random(w->m) & 1 << 20) copies_arrive(w->b, b->address);
        over = read_word(w->b, b->address) >> 63 != (i->mod[1] ? asked & 1 : asked >> 63);
        result |= (u32)over << l;
        if (over && i->mod[2]) sync_learn(w, 1u << l, b->completed);
    }
    set_predicate(w, i->operand[0], active, result);
    set_undefined(w, i->operand[0], active, 0);
    if (a.shared & ~result) look(w, i, a.address[__builtin_ctz(a.shared & ~result)]);
}

/* pending_count: of a state. */
static void pending_count(Warp *w, const Insn *i, u32 active) {
    EACH(active, l) set_lane(w, i, 0, l, pending(get_lane(w, i, 1, l)));
}

const Opcode mbarrier_ops[] = {{"mbarrier_init", init, OWN_UNDEFINED | STORES},
                               {"mbarrier_arrive", arrive, OWN_UNDEFINED | STORES},
                               {"mbarrier_test", test_wait, OWN_UNDEFINED | WAITS},
                               {"mbarrier_pending", pending_count, 0},
                               {0}};
