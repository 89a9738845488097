/* Who knows of what: the happens-before order, for race detection.
 *
 * Logical time goes on at each act of synchronisation. A thread knows of an access by another when it knows that thread up
 * to the access's time. What every thread of a block knows of the block is one number, its epoch; what every lane of a warp
 * knows of the warp is one number, `converged`; everything else is in clocks: sorted lists (whom, until when), which are
 * never changed once made, so that threads which know the same share one. */
#include <stdlib.h>

#include "core.h"

typedef struct {
    u64 whom; /* a block, a warp of it, or a thread of it */
    u32 time;
} Known;

struct Clock {
    u32 references, count;
    Known known[];
};

/* Keys: all of one block lie together, the block's own first. */
static u64 whole_block(u32 block) { return (u64)block << 12; }
static u64 one_warp(u32 block, u32 warp) { return (u64)block << 12 | (1 + warp); }
static u64 one_thread(u32 block, u32 thread) { return (u64)block << 12 | (1024 + thread); }
/* The copies of a thread that an mbarrier was told of: nobody knows them by knowing the thread. */
static u64 copies_of(u32 block, u32 thread) { return (u64)block << 12 | (2048 + thread); }
static bool is_copies(u64 whom) { return whom >> 11 & 1; }

void clock_release(Clock *c) {
    if (c && !--c->references) free(c);
}

static Clock *share(Clock *c) {
    if (c) c->references++;
    return c;
}

static Clock *clock_new(Machine *m, u32 count) {
    Clock *c = malloc(sizeof *c + count * sizeof *c->known);
    if (!c) m->stop = m->failed = true;
    else c->references = 1, c->count = 0;
    return c;
}

static void replace(Clock **at, Clock *c) { /* takes over the caller's reference */
    clock_release(*at);
    *at = c;
}

/* *into learns what `more` knows. */
static void merge(Machine *m, Clock **into, Clock *more) {
    const Clock *a = *into, *b = more;
    u32 x = 0, y = 0;
    bool gained = false, lost = false; /* whether the result has more than a, and more than b */
    Clock *c;
    if (a == b || !b) return;
    if (!a) {
        *into = share(more);
        return;
    }
    c = clock_new(m, a->count + b->count);
    if (!c) return;
    while (x < a->count || y < b->count) {
        Known *next = c->known + c->count++;
        if (y == b->count || (x < a->count && a->known[x].whom < b->known[y].whom)) {
            *next = a->known[x++], lost = true;
        } else if (x == a->count || b->known[y].whom < a->known[x].whom) {
            *next = b->known[y++], gained = true;
        } else {
            *next = a->known[x].time > b->known[y].time ? a->known[x] : b->known[y];
            lost |= a->known[x].time > b->known[y].time, gained |= a->known[x].time < b->known[y].time;
            x++, y++;
        }
    }
    if (!gained || !lost) {
        free(c);
        if (gained) replace(into, share(more));
    } else {
        replace(into, c);
    }
}

void clock_join(Machine *m, Clock **into, Clock *more) { merge(m, into, more); }

static void learn(Machine *m, Clock **into, u64 whom, u32 time) {
    Clock *one;
    if (!time || !(one = clock_new(m, 1))) return;
    one->known[one->count++] = (Known){whom, time};
    merge(m, into, one);
    clock_release(one);
}

static u32 time_of(const Clock *c, u64 whom) {
    u32 low = 0, high = c->count;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (c->known[middle].whom < whom) low = middle + 1;
        else high = middle;
    }
    return low < c->count && c->known[low].whom == whom ? c->known[low].time : 0;
}

/* Whether a lane knows what a thread of a block did at a time. */
bool knows(const Warp *w, u32 lane, u32 block, u32 thread, u32 time) {
    const Clock *c = w->mind[lane].known;
    if (block == w->b->index) {
        if (time <= w->b->epoch || thread == w->index * LANES + lane) return true;
        if (thread / LANES == w->index && time <= w->converged) return true;
    }
    return c && (time <= time_of(c, whole_block(block)) || time <= time_of(c, one_warp(block, thread / LANES)) ||
                 time <= time_of(c, one_thread(block, thread)));
}

bool knows_copy(const Warp *w, u32 lane, u32 thread, u32 time) {
    const Clock *c = w->mind[lane].known;
    return c && time <= time_of(c, copies_of(w->b->index, thread));
}

/* *into learns all that a lane knows, its own accesses included. Time must go on before it accesses anything else. */
static void snapshot(Warp *w, u32 lane, Clock **into) {
    Machine *m = w->m;
    merge(m, into, w->mind[lane].known);
    learn(m, into, whole_block(w->b->index), w->b->epoch);
    if (w->converged > w->b->epoch) learn(m, into, one_warp(w->b->index, w->index), w->converged);
    learn(m, into, one_thread(w->b->index, w->index * LANES + lane), m->now);
}

static void snapshot_warp(Warp *w, Clock **into) {
    EACH(w->live, l) merge(w->m, into, w->mind[l].known);
    learn(w->m, into, whole_block(w->b->index), w->b->epoch);
    learn(w->m, into, one_warp(w->b->index, w->index), w->m->now);
}

static Clock **part(Mind *mind, u32 n) {
    Clock **parts[] = {&mind->known, mind->fenced, mind->fenced + 1, mind->seen, mind->seen + 1};
    return parts[n];
}
#define PARTS 5

static void gather_minds(Warp *w, u32 lanes, Mind *all) {
    EACH(lanes, l) for (u32 n = 0; n < PARTS; n++) merge(w->m, part(all, n), *part(w->mind + l, n));
}
static void give_minds(Warp *w, u32 lanes, Mind *all) {
    EACH(lanes, l) for (u32 n = 0; n < PARTS; n++) {
        Clock **at = part(w->mind + l, n);
        if (*at != *part(all, n)) replace(at, share(*part(all, n)));
    }
    w->informed = w->b->informed = true;
}
static void forget_mind(Mind *mind) {
    for (u32 n = 0; n < PARTS; n++) replace(part(mind, n), NULL);
}

/* The lanes have met: each knows what all of them did. */
void sync_warp(Warp *w, u32 lanes) {
    Machine *m = w->m;
    const bool whole = lanes == w->live || !m->exact;
    if (!whole || w->informed) {
        Mind all = {0};
        gather_minds(w, lanes, &all);
        if (!whole) EACH(lanes, l) learn(m, &all.known, one_thread(w->b->index, w->index * LANES + l), m->now);
        give_minds(w, lanes, &all);
        forget_mind(&all);
    }
    if (whole) w->converged = m->now;
    m->now++;
}

/* All threads of the block have met. */
void sync_block(Block *b) {
    Machine *m = b->m;
    b->epoch = m->now++;
    for (u32 n = 0; n < m->warps; n++) b->warp[n].converged = b->epoch;
    if (b->informed) {
        Mind all = {0};
        Clock *others = NULL; /* knowledge of the block's threads is in its epoch */
        for (u32 n = 0; n < m->warps; n++) gather_minds(b->warp + n, b->warp[n].live, &all);
        if (all.known && (others = clock_new(m, all.known->count)))
            for (u32 n = 0; n < all.known->count; n++)
                if (all.known->known[n].whom >> 12 != b->index || is_copies(all.known->known[n].whom))
                    others->known[others->count++] = all.known->known[n];
        if (others && !others->count) replace(&others, NULL);
        replace(&all.known, others);
        for (u32 n = 0; n < m->warps; n++) give_minds(b->warp + n, b->warp[n].live, &all);
        forget_mind(&all);
    }
}

/* A whole warp arrives at something that others wait for, and leaves there what it knows. */
void sync_arrive(Warp *w, Clock **gathered) {
    sync_warp(w, w->live);
    snapshot_warp(w, gathered);
    w->m->now++;
}

void sync_learn(Warp *w, u32 lanes, Clock *what) {
    if (!what) return;
    EACH(lanes, l) merge(w->m, &w->mind[l].known, what);
    w->informed = w->b->informed = true;
}

void sync_publish(Warp *w, u32 lanes, Clock **into) {
    if (lanes == w->live && (lanes & (lanes - 1))) snapshot_warp(w, into);
    else EACH(lanes, l) snapshot(w, l, into);
    w->m->now++;
}

void sync_publish_copies(Warp *w, u32 lane, Clock **into) {
    learn(w->m, into, copies_of(w->b->index, w->index * LANES + lane), w->m->now);
    w->m->now++;
}

/* fence, membar: what strong reads found becomes known; what is known now, later strong writes publish. */
void sync_fence(Warp *w, u32 lanes, bool whole_gpu) {
    Machine *m = w->m;
    if (!m->exact) return;
    EACH(lanes, l) {
        Mind *mind = w->mind + l;
        Clock *now = NULL;
        merge(m, &mind->known, mind->seen[1]);
        if (whole_gpu) merge(m, &mind->known, mind->seen[0]);
        snapshot(w, l, &now);
        replace(&mind->fenced[1], share(now));
        if (whole_gpu) replace(&mind->fenced[0], share(now));
        clock_release(now);
    }
    w->informed = w->b->informed = true;
    m->now++;
}

void sync_forget(Warp *w) {
    for (u32 l = 0; l < LANES; l++) forget_mind(w->mind + l);
    w->informed = false;
}

/* What has been published at an address: [0] to all, [1] to the block that did so last. */
struct Location {
    u64 address; /* 0: not in use */
    u32 block;
    Clock *published[2];
};

static struct Location *find(Machine *m, u64 address) {
    const u32 mask = m->location_capacity - 1;
    u32 n = (u32)(address * 0x9E3779B97F4A7C15ull >> 32) & mask;
    if (!m->location_capacity) return NULL;
    while (m->locations[n].address && m->locations[n].address != address) n = (n + 1) & mask;
    return m->locations + n;
}

static bool grow(Machine *m) {
    const u32 old_capacity = m->location_capacity;
    struct Location *old = m->locations, *new = calloc(old_capacity ? 2 * (size_t)old_capacity : 64, sizeof *new);
    if (!new) {
        m->stop = m->failed = true;
        return false;
    }
    m->locations = new, m->location_capacity = old_capacity ? 2 * old_capacity : 64;
    for (u32 n = 0; n < old_capacity; n++)
        if (old[n].address) *find(m, old[n].address) = old[n];
    free(old);
    return true;
}

void sync_end(Machine *m) {
    for (u32 n = 0; n < m->location_capacity; n++)
        for (u32 s = 0; s < 2; s++) clock_release(m->locations[n].published[s]);
    free(m->locations);
    m->locations = NULL, m->location_capacity = m->location_count = 0;
}

/* A lane has read, strongly, what is at the address (unique over spaces and blocks). */
void sync_read(Warp *w, u32 lane, u64 address, u32 strength) {
    Machine *m = w->m;
    const struct Location *l = find(m, address);
    Mind *mind = w->mind + lane;
    const bool acquire = strength & ACQUIRE;
    if (!l || !l->address) return;
    if (!(strength & CTA_SCOPE)) merge(m, acquire ? &mind->known : &mind->seen[0], l->published[0]);
    if (l->block == w->b->index) merge(m, acquire ? &mind->known : &mind->seen[1], l->published[1]);
    w->informed = w->b->informed = true;
}

/* A lane has written there, strongly; a write that is part of a read-modify-write continues what was published before. */
void sync_write(Warp *w, u32 lane, u64 address, u32 strength, bool read_too) {
    Machine *m = w->m;
    Mind *mind = w->mind + lane;
    struct Location *l = find(m, address);
    Clock *what[2] = {NULL, NULL};
    if (!(l && l->address) && !(strength & RELEASE) && !mind->fenced[1]) return;
    if (!(l && l->address)) {
        if (2 * m->location_count >= m->location_capacity && !grow(m)) return;
        m->location_count++;
        l = find(m, address);
        l->address = address, l->block = w->b->index;
    }
    if (strength & RELEASE) snapshot(w, lane, what + 1);
    else what[1] = share(mind->fenced[1]);
    if (!(strength & CTA_SCOPE)) what[0] = share(strength & RELEASE ? what[1] : mind->fenced[0]);
    for (u32 s = 0; s < 2; s++) {
        if (!read_too || (s && l->block != w->b->index)) replace(&l->published[s], NULL);
        merge(m, &l->published[s], what[s]);
        clock_release(what[s]);
    }
    l->block = w->b->index;
    if (strength & RELEASE) m->now++;
}
