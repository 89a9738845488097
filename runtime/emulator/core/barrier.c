/* Barriers of the block: bar and barrier, sync, arrive and red; and of the cluster, which is one block. */
#include "core.h"

enum { SYNC, ARRIVE, POPC, AND, OR };

u32 warp_threads(const Machine *m, u32 warp) {
    const u32 rest = m->threads - warp * LANES;
    return rest < LANES ? rest : LANES;
}

void barriers_reset(Block *b) {
    for (u32 n = 0; n < BARRIERS; n++) clock_release(b->barrier[n].known);
    memset(b->barrier, 0, sizeof b->barrier);
    clock_release(b->cluster.known), clock_release(b->cluster.completed);
    memset(&b->cluster, 0, sizeof b->cluster);
}

static u32 all_threads(const Machine *m) { return (m->threads + LANES - 1) / LANES * LANES; }

static u32 live_warps(const Block *b) {
    u32 live = 0;
    for (u32 n = 0; n < b->m->warps; n++) live |= (u32)(b->warp[n].live != 0) << n;
    return live;
}

/* The result of a barrier with a reduction, for one warp that waited at it. */
static void give_result(Warp *w, const Barrier *bar) {
    const Insn *i = w->waiting_at;
    const u32 kind = i->mod[0];
    if (kind < POPC) return;
    if (kind == POPC) EACH(w->live, l) set_lane(w, i, 0, l, bar->count);
    else set_predicate(w, i->operand[0], w->live, (kind == AND ? bar->count == bar->present : bar->count > 0) ? FULL : 0);
    set_undefined(w, i->operand[0], w->live, 0);
}

static void release(Block *b, Barrier *bar) {
    const u32 live = live_warps(b);
    EACH(bar->waiting, n) {
        b->warp[n].state = RUNNING;
        give_result(b->warp + n, bar);
    }
    if ((bar->waiting & live) == live) sync_block(b);
    else EACH(bar->waiting, n) sync_learn(b->warp + n, b->warp[n].live, bar->known);
    clock_release(bar->known);
    memset(bar, 0, sizeof *bar);
}

static bool complete(const Block *b, const Barrier *bar) {
    if (bar->threads >= bar->expected) return true; /* a warp may have arrived twice */
    return !bar->counted && !(live_warps(b) & ~bar->arrived);
}

/* Ends a phase of the cluster's barrier if all warps have arrived in it or exited. */
static void cluster_complete(Block *b) {
    ClusterBarrier *c = &b->cluster;
    if (!c->arrived || live_warps(b) & ~c->arrived) return;
    clock_release(c->completed);
    c->completed = c->known, c->known = NULL;
    EACH(c->waiting, n) {
        b->warp[n].state = RUNNING;
        sync_learn(b->warp + n, b->warp[n].live, c->completed);
    }
    c->passed |= c->arrived & ~c->waiting;
    c->arrived = c->waiting = 0;
}

/* Threads that have exited count as arrived where no number of threads was given. */
void barriers_at_exit(Block *b) {
    for (u32 n = 0; n < BARRIERS; n++)
        if (b->barrier[n].arrived && complete(b, b->barrier + n)) release(b, b->barrier + n);
    cluster_complete(b);
}

static bool same_in_all(const Warp *w, const Insn *i, u32 operand, u32 active) {
    const u64 first = get_lane(w, i, operand, (u32)__builtin_ctz(active));
    EACH(active, l) if (get_lane(w, i, operand, l) != first) return false;
    return true;
}

/* A barrier of the whole block, at which threads have been that have exited since: those that left a loop sooner than the
 * others. Who leaves before his first barrier, as many kernels begin, is not missed. */
static void check_meeting(Warp *w, const Insn *i, u32 active) {
    u32 n = 0;
    for (u32 k = 0; k < w->m->warps; k++) {
        const Warp *other = w->b->warp + k;
        const u32 threads = warp_threads(w->m, k), gone = (threads == LANES ? FULL : (1u << threads) - 1) & ~other->live;
        for (u32 at = 0; gone && at < other->meetings; at++) if (other->met_at[at] == i && other->met[at] & gone) {
            const u32 lane = (u32)__builtin_ctz(other->met[at] & gone);
            report_other(w, i, F_BARRIER_DIVERGED, (u32)__builtin_ctz(active), 0, 1,
                         (Party){(i32)(i - w->m->code), w->b->index, k * LANES + lane});
            return;
        }
    }
    while (n < w->meetings && w->met_at[n] != i) n++;
    if (n == MEETINGS) return;
    if (n == w->meetings) w->met_at[w->meetings] = i, w->met[w->meetings++] = 0;
    w->met[n] |= active;
}

/* Operands: [result], barrier, [threads], [predicate]; mod: what, whether there are threads, whether the predicate is
 * negated. All live lanes of the warp have arrived. */
static void barrier(Warp *w, const Insn *i, u32 active) {
    const Machine *m = w->m;
    Block *b = w->b;
    const u32 lane = (u32)__builtin_ctz(active), s = i->dsts, kind = i->mod[0];
    const u32 given = (u32)get_lane(w, i, s, lane), number = given % BARRIERS;
    u32 expected = i->mod[1] ? (u32)get_lane(w, i, s + 1, lane) : 0;
    Barrier *bar = b->barrier + number;
    if (m->checks & CHECK_UNDEFINED && w->undefined[i->operand[s]] & active)
        report(w, i, F_UNDEFINED_ADDRESS, lane, 0, 4, 0);
    if (!same_in_all(w, i, s, active)) report(w, i, F_BARRIER_DIVERGED, lane, given, 0, active);
    if (given >= BARRIERS) report(w, i, F_BARRIER_INVALID, lane, given, 0, 0);
    if (i->mod[1] && (!expected || expected % LANES)) {
        report(w, i, F_BARRIER_INVALID, lane, given, expected, 1);
        expected = expected / LANES * LANES;
    }
    if (!expected && kind != ARRIVE && m->checks & CHECK_BARRIER) check_meeting(w, i, active);
    if (!expected) expected = all_threads(m);
    if (bar->arrived && bar->expected != expected) report(w, i, F_BARRIER_INVALID, lane, given, expected, 2);
    if (m->stop) return;
    if (m->exact) sync_arrive(w, &bar->known);
    bar->expected = expected, bar->counted |= i->mod[1];
    bar->arrived |= 1u << w->index;
    bar->threads += LANES;
    if (kind >= POPC) {
        const u32 p = get_predicate(w, i->operand[s + 1 + i->mod[1]]) ^ (i->mod[2] ? FULL : 0);
        bar->count += (u32)__builtin_popcount(p & active), bar->present += (u32)__builtin_popcount(active);
        if (m->checks & CHECK_UNDEFINED && w->undefined[i->operand[s + 1 + i->mod[1]]] & active)
            report(w, i, F_UNDEFINED_PREDICATE, lane, 0, 0, 0);
    }
    if (kind != ARRIVE) {
        bar->waiting |= 1u << w->index;
        w->state = WAITING, w->barrier = (u8)number, w->waiting_at = i;
    }
    if (complete(b, bar)) release(b, bar);
}

/* The second takes lanes that have arrived at several instructions, as barrier.sync without .aligned may. */
static void barrier_of_threads(Warp *w, const Insn *i, u32 active) { barrier(w, i, active); }

/* mod: whether it is relaxed, so that it tells what the last fence did. All live lanes of the warp have arrived. */
static void cluster_arrive(Warp *w, const Insn *i, u32 active) {
    ClusterBarrier *c = &w->b->cluster;
    const u32 warp = 1u << w->index;
    if (c->arrived & warp) report(w, i, F_BARRIER_INVALID, (u32)__builtin_ctz(active), 0, 0, 3);
    if (w->m->stop) return;
    if (i->mod[0]) EACH(active, l) clock_join(w->m, &c->known, w->mind[l].fenced[1]);
    else sync_arrive(w, &c->known);
    c->arrived |= warp, c->passed &= ~warp;
    cluster_complete(w->b);
}

static void cluster_wait(Warp *w, const Insn *i, u32 active) {
    ClusterBarrier *c = &w->b->cluster;
    const u32 warp = 1u << w->index;
    if (c->passed & warp) {
        c->passed &= ~warp;
        sync_learn(w, w->live, c->completed);
    } else if (c->arrived & warp) {
        c->waiting |= warp;
        w->state = WAITING, w->barrier = CLUSTER_BARRIER, w->waiting_at = i;
    } else {
        report(w, i, F_BARRIER_INVALID, (u32)__builtin_ctz(active), 0, 0, 4);
    }
}

static void cluster_arrive_of_threads(Warp *w, const Insn *i, u32 active) { cluster_arrive(w, i, active); }
static void cluster_wait_of_threads(Warp *w, const Insn *i, u32 active) { cluster_wait(w, i, active); }

const Opcode barrier_ops[] = {{"barrier", barrier, OWN_UNDEFINED | ALIGNED},
                              {"barrier_of_threads", barrier_of_threads, OWN_UNDEFINED | ALIGNED | ANYWHERE},
                              {"cluster_arrive", cluster_arrive, OWN_UNDEFINED | ALIGNED},
                              {"cluster_arrive_of_threads", cluster_arrive_of_threads, OWN_UNDEFINED | ALIGNED | ANYWHERE},
                              {"cluster_wait", cluster_wait, OWN_UNDEFINED | ALIGNED},
                              {"cluster_wait_of_threads", cluster_wait_of_threads, OWN_UNDEFINED | ALIGNED | ANYWHERE},
                              {0}};
