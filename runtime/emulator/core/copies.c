/* cp.async. Source bytes are read when the copy is issued. They reach shared memory when the issuing lane executes a wait
 * that covers their group, which is as late as the program permits, or at once, or somewhere between, as the launch asks;
 * what is found does not depend on it. */
#include "core.h"
#include <stdlib.h>

/* cp.async.mbarrier.arrive: an mbarrier waits for the lane's copies before `serial`. */
struct Arrival {
    u32 lane, address;
    u64 serial;
    const Insn *at;
    Clock *known; /* what the lane knew at the instruction */
};

void copies_reset(Warp *w) {
    for (u32 n = 0; n < w->arrival_count; n++) clock_release(w->arrivals[n].known);
    w->copy_count = w->arrival_count = 0;
    memset(w->group, 0, sizeof w->group);
}

static void fail(Machine *m) { m->stop = m->failed = true; }

/* Those beyond copy_count are spare. */
static Copy *new_copy(Warp *w) {
    Copy *c;
    if (w->copy_count == w->copy_capacity) {
        const u32 capacity = w->copy_capacity + 16;
        Copy **grown = realloc(w->copies, capacity * sizeof *grown);
        if (grown) w->copies = grown;
        while (grown && w->copy_capacity < capacity && (c = malloc(sizeof *c))) grown[w->copy_capacity++] = c;
        if (w->copy_count == w->copy_capacity) {
            fail(w->m);
            return NULL;
        }
    }
    c = w->copies[w->copy_count++];
    c->lanes = c->landed = c->arrived = 0, c->serial = w->copy_serial++;
    return c;
}

static void write_bytes(Warp *w, Copy *c, u32 lanes) {
    u8 *shared = w->b->shared;
    lanes &= ~c->landed;
    if (c->size == 16) LANES_OF(lanes, l, memcpy(shared + c->address[l], c->data[l], 16);)
    else if (c->size == 4) LANES_OF(lanes, l, memcpy(shared + c->address[l], c->data[l], 4);)
    else EACH(lanes, l) memcpy(shared + c->address[l], c->data[l], c->size);
    if (w->b->tainted) EACH(lanes, l) taint(w->b, shared + c->address[l], c->size, false);
    c->landed |= lanes;
}

/* The first `bytes` of a copy, which need not be a power of two. */
static bool read_part(Warp *w, const Insn *i, u32 lane, u64 address, u32 bytes, u8 *to) {
    for (u32 n = 0; n < bytes;) {
        const u32 piece = 1u << (31 - __builtin_clz(bytes - n));
        const u8 *from = global_bytes(w, i, lane, address + n, piece, READ);
        if (!from) return false;
        memcpy(to + n, from, piece);
        n += piece;
    }
    return true;
}

/* Lanes of which neither address is at fault, nor the source size. */
static u32 check_copies(Warp *w, const Insn *i, u32 active, u32 *bytes, const u64 *shared_address, const u64 *address) {
    const u32 size = i->mod[0];
    EACH(active, l) {
        if (bytes[l] > size) {
            report(w, i, F_SOURCE_SIZE, l, address[l], bytes[l], size);
            bytes[l] = size;
        }
        if (address[l] & (size - 1)) {
            report(w, i, F_MISALIGNED, l, address[l], size, 0);
            active &= ~(1u << l);
        } else if (!shared_bytes(w, i, l, shared_address[l], size)) {
            active &= ~(1u << l);
        }
    }
    return active;
}

/* What a copy of every lane is from, to, and how many bytes of it; lanes with less than all, and lanes at fault. */
VECTOR static u32 take_copies(Warp *w, const Insn *i, u64 *to, u64 *from, u32 *bytes, u32 *part) {
    const u32 size = i->mod[0], from_bytes = i->mod[1] == 1, end = w->m->shared_end;
    const u32 ignored = i->mod[1] == 2 ? get_predicate(w, i->operand[2]) ^ (i->mod[3] ? FULL : 0) : 0;
    u32 fault = 0, less = 0;
    get_lanes(w, i, 0, to);
    get_lanes(w, i, 1, from);
    if (from_bytes) {
        u64 wide[LANES];
        get_lanes(w, i, 2, wide);
        for (u32 l = 0; l < LANES; l++) bytes[l] = (u32)wide[l];
    } else for (u32 l = 0; l < LANES; l++) bytes[l] = ignored >> l & 1 ? 0 : size;
    for (u32 l = 0; l < LANES; l++) {
        const u32 at = (u32)to[l] + i->mod[2];
        to[l] = at, from[l] += (u64)i->offset;
        less |= (u32)(bytes[l] < size) << l;
        fault |= (u32)((bytes[l] > size) | (((at | (u32)from[l]) & (size - 1)) != 0) | (at - SHARED_BASE > end - SHARED_BASE - size)) << l;
    }
    *part = less;
    return end - SHARED_BASE < size ? FULL : fault;
}

/* Operands: shared address, global address, [source size or ignore-src]. mod: cp-size, which of the two the last operand
 * is (1, 2; 0: neither); the offset is the global address's, mod[2] the shared address's. mod[3]: ignore-src is negated. */
static void cp_async(Warp *w, const Insn *i, u32 active) {
    Machine *m = w->m;
    const u32 size = i->mod[0];
    u32 undefined = 0, part, bytes[LANES];
    u64 shared_address[LANES];
    Access a;
    Copy *copy;
    for (u32 s = 0; s < i->srcs; s++) undefined |= w->undefined[i->operand[s]] & active;
    if (undefined && m->checks & CHECK_UNDEFINED) {
        report(w, i, F_UNDEFINED_ADDRESS, (u32)__builtin_ctz(undefined), 0, size, 0);
        active &= ~undefined;
    }
    copy = new_copy(w);
    if (!copy) return;
    copy->size = size;
    if (take_copies(w, i, shared_address, a.address, bytes, &part) & active)
        active = check_copies(w, i, active, bytes, shared_address, a.address);
    part &= active;
    copy->lanes = active;
    for (u32 l = 0; l < LANES; l++) copy->address[l] = (u32)shared_address[l];
    memcpy(copy->group, w->group, sizeof copy->group);
    a.lanes = a.shared = a.global = 0;
    if (active & ~part) resolve_addresses(w, i, active & ~part, size, GLOBAL, READ, &a);
    EACH(active & ~a.lanes, l) memset(copy->data[l], 0, 16);
    if (size == 16) LANES_OF(a.lanes, l, memcpy(copy->data[l], a.bytes[l], 16);)
    else if (size == 4) LANES_OF(a.lanes, l, memcpy(copy->data[l], a.bytes[l], 4);)
    else EACH(a.lanes, l) memcpy(copy->data[l], a.bytes[l], size);
    EACH(part, l) if (!read_part(w, i, l, a.address[l], bytes[l], copy->data[l]) || !bytes[l]) part &= ~(1u << l);
    if (part) count_global(w, i, part, a.address, size);
    if (!active) return;
    if (m->checks & SHADOWED) shadow_copies_issued(w, i, active, shared_address, size);
    if (m->copies == EARLY) write_bytes(w, copy, active);
    count_shared(tally_of(w, i), active, shared_address, size);
}

/* Copy n has landed, for these lanes, and they know it. */
static void land(Warp *w, u32 n, u32 lanes) {
    Copy *c = w->copies[n];
    write_bytes(w, c, lanes);
    if (w->m->checks & SHADOWED) shadow_copies_landed(w, lanes, c->address, c->size, false);
    c->lanes &= ~lanes;
}

/* Those that an mbarrier knows of are kept for a wait, by which their own thread learns of them too; but not for ever. */
#define KEPT 256

static void drop_landed(Warp *w) {
    u32 kept = 0;
    for (u32 n = 0; n < w->copy_count; n++) {
        Copy *c = w->copies[n];
        if (!c->lanes || (w->copy_count > KEPT && !(c->lanes & ~c->arrived))) continue;
        w->copies[n] = w->copies[kept], w->copies[kept++] = c;
    }
    w->copy_count = kept;
}

/* All copies that an arrival waits for have landed. */
static void arrive(Warp *w, struct Arrival a) {
    const u32 lane = 1u << a.lane;
    for (u32 n = 0; n < w->copy_count; n++) {
        Copy *c = w->copies[n];
        if (c->serial >= a.serial || !(c->lanes & ~c->arrived & lane)) continue;
        write_bytes(w, c, lane);
        if (w->m->checks & SHADOWED) shadow_copies_landed(w, lane, c->address, c->size, true);
        c->arrived |= lane;
    }
    sync_publish_copies(w, a.lane, &a.known);
    mbarrier_arrive(w, a.at, a.lane, a.address, a.known);
    clock_release(a.known);
}

static bool covered(const Warp *w, const Copy *c, u32 lane, u32 keep, bool uncommitted) {
    return uncommitted || (i64)c->group[lane] < (i64)w->group[lane] - (i64)keep;
}
VECTOR static u32 covered_lanes(const Warp *w, const Copy *c, u32 keep) {
    u32 lanes = 0; /* a copy's group is at most its lane's present one */
    for (u32 l = 0; l < LANES; l++) lanes |= (u32)(w->group[l] - c->group[l] > keep) << l;
    return lanes;
}

/* A wait of these lanes lets arrivals happen whose copies are all among those it waits for. */
static void arrive_by_wait(Warp *w, u32 active, u32 keep, bool uncommitted) {
    u32 kept = 0;
    for (u32 k = 0; k < w->arrival_count; k++) {
        const struct Arrival a = w->arrivals[k];
        bool all = active >> a.lane & 1;
        for (u32 n = 0; all && n < w->copy_count; n++)
            all = !(w->copies[n]->lanes >> a.lane & 1) || w->copies[n]->serial >= a.serial ||
                  covered(w, w->copies[n], a.lane, keep, uncommitted);
        if (all) arrive(w, a);
        else w->arrivals[kept++] = a;
    }
    w->arrival_count = kept;
}

/* Land every copy of the active lanes whose group number is below the lane's limit. */
static void land_groups(Warp *w, u32 active, u32 keep, bool uncommitted) {
    arrive_by_wait(w, active, keep, uncommitted);
    for (u32 n = 0; n < w->copy_count; n++) {
        const Copy *c = w->copies[n];
        land(w, n, c->lanes & active & (uncommitted ? FULL : covered_lanes(w, c, keep)));
    }
    drop_landed(w);
}

static void cp_commit(Warp *w, const Insn *i, u32 active) {
    (void)i;
    EACH(active, l) w->group[l]++;
}
static void cp_wait_group(Warp *w, const Insn *i, u32 active) { land_groups(w, active, i->mod[0], false); }
static void cp_wait_all(Warp *w, const Insn *i, u32 active) {
    (void)i;
    land_groups(w, active, 0, true);
}

void copies_progress(Warp *w) {
    for (u32 n = 0; n < w->copy_count; n++) {
        Copy *c = w->copies[n];
        if (c->lanes & ~c->landed) write_bytes(w, c, c->lanes & (u32)(next_random(w->m) >> 32));
    }
}

/* All that an mbarrier waits for has landed; false where there is nothing. */
bool copies_arrive(Block *b, u32 address) {
    bool any = false;
    for (u32 k = 0; k < b->m->warps; k++) {
        Warp *w = b->warp + k;
        u32 kept = 0;
        for (u32 n = 0; n < w->arrival_count; n++) {
            if (w->arrivals[n].address != address) {
                w->arrivals[kept++] = w->arrivals[n];
                continue;
            }
            arrive(w, w->arrivals[n]);
            any = true;
        }
        w->arrival_count = kept;
    }
    return any;
}

/* cp.async.mbarrier.arrive: address; mod: bytes, noinc, space. */
static void cp_arrive(Warp *w, const Insn *i, u32 active) {
    Access a;
    resolve(w, i, active, 0, 8, i->mod[2], STRONG_WRITE, &a);
    EACH(a.shared, l) {
        struct Arrival arrival = {l, (u32)a.address[l], w->copy_serial, i, NULL};
        if (!i->mod[1]) mbarrier_expect(w, i, l, arrival.address);
        sync_publish(w, 1u << l, &arrival.known);
        if (w->m->copies == EARLY) {
            arrive(w, arrival);
            continue;
        }
        if (w->arrival_count == w->arrival_capacity) {
            const u32 capacity = w->arrival_capacity ? 2 * w->arrival_capacity : 64;
            struct Arrival *grown = realloc(w->arrivals, capacity * sizeof *grown);
            if (!grown) {
                fail(w->m);
                return;
            }
            w->arrivals = grown, w->arrival_capacity = capacity;
        }
        w->arrivals[w->arrival_count++] = arrival;
    }
}

/* Lanes exit. What an mbarrier waits for still lands. */
void copies_at_exit(Warp *w, const Insn *i, u32 lanes) {
    u32 kept = 0;
    for (u32 n = 0; n < w->arrival_count; n++) {
        if (lanes >> w->arrivals[n].lane & 1) arrive(w, w->arrivals[n]);
        else w->arrivals[kept++] = w->arrivals[n];
    }
    w->arrival_count = kept;
    for (u32 n = 0; n < w->copy_count; n++) {
        Copy *c = w->copies[n];
        const u32 pending = c->lanes & ~c->arrived & lanes;
        if (pending && w->m->checks & CHECK_ASYNC) {
            u32 l = (u32)__builtin_ctz(pending);
            report(w, i, F_PENDING_COPY, l, c->address[l], c->size, 0);
        }
        c->lanes &= ~lanes;
    }
    drop_landed(w);
}

const Opcode copy_ops[] = {{"cp_async", cp_async, OWN_UNDEFINED},
                           {"cp_commit", cp_commit, 0},
                           {"cp_wait_group", cp_wait_group, 0},
                           {"cp_wait_all", cp_wait_all, 0},
                           {"cp_arrive", cp_arrive, OWN_UNDEFINED},
                           {0}};
