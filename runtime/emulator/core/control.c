/* Branches, exit, and how the lanes of a warp part and meet again. */
#include "core.h"

/* Paths */

static void save(Warp *w) {
    if (w->current >= w->paths) return;
    w->path[w->current].pc = w->pc, w->path[w->current].mask = w->mask, w->path[w->current].reconverge = w->reconverge;
}

static void load(Warp *w, u32 n) {
    w->current = n;
    w->pc = w->path[n].pc, w->mask = w->path[n].mask, w->reconverge = w->path[n].reconverge;
}

static i32 join_pc(const Warp *w, u32 join) { return join == NO_JOIN ? -1 : w->join[join].pc; }

static void new_path(Warp *w, i32 pc, u32 mask, u32 join) {
    w->path[w->paths++] = (Path){.pc = pc, .reconverge = join_pc(w, join), .mask = mask, .join = (u8)join};
}

/* The path is gone; the warp has no current one until another is chosen. */
static void end_path(Warp *w, u32 n) {
    const u32 last = --w->paths;
    if (w->current == n) w->current = LANES;
    else if (w->current == last) w->current = n;
    w->path[n] = w->path[last];
}

/* Some lanes have come to their join. Those that are complete go on together. */
static void arrive(Warp *w, u32 join, u32 mask) {
    Join *j = w->join + join;
    j->arrived |= mask;
    if (j->arrived != j->expected) return;
    new_path(w, j->pc, j->arrived, j->parent);
    j->pc = -2;
}

/* Lanes that wait at a join while others poll: on a GPU every thread makes progress, so they go on alone. */
static void stop_waiting(Warp *w, u32 join) {
    for (; join != NO_JOIN; join = w->join[join].parent) {
        Join *j = w->join + join;
        if (!j->arrived) continue;
        new_path(w, j->pc, j->arrived, j->parent);
        j->expected &= ~j->arrived, j->arrived = 0;
        return;
    }
}

/* Paths at one place that will wait for the same others are one. */
static void unite(Warp *w) {
    for (u32 a = 0; a < w->paths; a++) {
        for (u32 b = a + 1; b < w->paths;) {
            Path *p = w->path + a, *q = w->path + b;
            if (p->pc != q->pc || p->join != q->join || p->gathering || q->gathering) {
                b++;
                continue;
            }
            p->mask |= q->mask;
            if (w->current == b) w->current = a;
            end_path(w, b);
        }
    }
}

static u32 can_run(const Warp *w) {
    u32 count = 0;
    for (u32 n = 0; n < w->paths; n++) count += !w->path[n].gathering;
    return count;
}

/* Lanes wait for others of the warp that can no longer come: say so, and let them go on without. */
static void resolve_stuck(Warp *w) {
    const Machine *m = w->m;
    Path *stuck = NULL;
    for (u32 n = 0; n < w->paths; n++) {
        Path *p = w->path + n;
        const u32 collective = m->flags[p->pc] & COLLECTIVE, before = stuck ? m->flags[stuck->pc] & COLLECTIVE : 0;
        if (!stuck || collective > before || (collective == before && p->pc < stuck->pc)) stuck = p;
    }
    if (m->flags[stuck->pc] & COLLECTIVE)
        report(w, m->code + stuck->pc, F_MASK_INVALID, (u32)__builtin_ctz(stuck->mask), 0, stuck->members,
               stuck->members & w->live & ~stuck->mask);
    else
        report(w, m->code + stuck->pc, F_BARRIER_DIVERGED, (u32)__builtin_ctz(stuck->mask), 0, 0, stuck->mask);
    stuck->gathering = false, stuck->alone = true;
}

/* Choose the path to run next, if there is a choice another than the current one. */
static void choose(Warp *w, bool another) {
    Machine *m = w->m;
    u32 candidates[LANES], count = 0, pick;
    save(w);
    if (!w->paths) {
        w->state = DONE, w->mask = 0;
        return;
    }
    if (!can_run(w)) resolve_stuck(w);
    for (u32 n = 0; n < w->paths; n++) if (!w->path[n].gathering) candidates[count++] = n;
    if (m->schedule == ROUND_ROBIN) {
        for (pick = 0; pick + 1 < count && candidates[pick] <= w->current; pick++) {}
        if (candidates[pick] <= w->current) pick = 0;
    } else {
        pick = (u32)(next_random(m) >> 33) % count;
        if (another && candidates[pick] == w->current) pick = (pick + 1) % count;
    }
    load(w, candidates[pick]);
}

/* Where some lanes of a path part from the rest and all are to meet at `pc`. */
static bool part(Warp *w, const Insn *i, i32 pc) {
    Path *p = w->path + w->current;
    u32 n = 0;
    if (pc == w->reconverge) return true;
    while (n < JOINS && w->join[n].pc != -2) n++;
    if (n == JOINS) {
        report(w, i, F_LIMIT, 0, 0, JOINS, 0);
        w->m->stop = true;
        return false;
    }
    w->join[n] = (Join){pc, w->mask, 0, p->join};
    p->join = (u8)n, w->reconverge = pc;
    return true;
}

static void branch(Warp *w, const Insn *i, u32 active) {
    const u32 others = w->mask & ~active;
    const i32 next = w->pc;
    if (!others) {
        w->pc = i->target;
        return;
    }
    /* a path that only meets the others at exit still stops where the enclosing branch joins */
    if (i->reconverge >= 0 && !part(w, i, i->reconverge)) return;
    if (next == w->reconverge) {
        w->pc = i->target, w->mask = active;
        arrive(w, w->path[w->current].join, others);
    } else if (i->target == w->reconverge) {
        w->mask = others;
        arrive(w, w->path[w->current].join, active);
    } else {
        const bool swap = w->m->schedule != ROUND_ROBIN && next_random(w->m) & 1 << 20;
        new_path(w, swap ? i->target : next, swap ? active : others, w->path[w->current].join);
        w->pc = swap ? next : i->target, w->mask = swap ? others : active;
    }
}

/* The current path has come to its join. */
static void meet(Warp *w) {
    const u32 join = w->path[w->current].join, mask = w->mask;
    end_path(w, w->current);
    arrive(w, join, mask);
    choose(w, false);
}

static void leave(Warp *w, const Insn *i, u32 active) {
    w->live &= ~active;
    w->mask &= ~active;
    w->m->changes++;
    if (w->copy_count) copies_at_exit(w, i, active);
    for (u32 n = 0; n < JOINS; n++) {
        Join *j = w->join + n;
        if (j->pc == -2) continue;
        j->expected &= w->live, j->arrived &= w->live;
        if (!j->expected) j->pc = -2;
        else if (j->arrived == j->expected) arrive(w, n, 0);
    }
    for (u32 n = 0; n < w->paths; n++) w->path[n].gathering = false; /* they may have waited for these */
    if (!w->mask) {
        end_path(w, w->current);
        choose(w, false);
    }
    if (!w->live) barriers_at_exit(w->b);
}

/* Looking at the same place again and again, a warp waits: others are to run. */
void look(Warp *w, const Insn *i, u64 address) {
    Path *p = w->path + w->current;
    w->polled_at = i;
    if (w->polled[0] != address && w->polled[1] != address) {
        w->polled[1] = w->polled[0], w->polled[0] = address;
        w->m->changes++;
        return;
    }
    w->since_look = 0;
    w->b->looks++;
    p->polls++;
    if (p->polls % 4 == 0) w->yields = true;
    if (p->polls % 64 == 0) stop_waiting(w, p->join);
}

static void nanosleep(Warp *w, const Insn *i, u32 active) {
    (void)active;
    look(w, i, 1);
    w->yields = true;
}

/* Gathered instructions */

static bool uniform(const u32 *values, u32 active) {
    const u32 first = values[__builtin_ctz(active)];
    u32 different = 0;
    if (active == FULL) for (u32 l = 0; l < LANES; l++) different |= values[l] ^ first;
    else EACH(active, l) different |= values[l] ^ first;
    return !different;
}

/* Of the active lanes those of one group, and whom the group consists of. */
static u32 group_of(Warp *w, const Insn *i, u32 active, u32 *members) {
    const u32 *masks;
    u32 group = 0;
    if (w->m->flags[i - w->m->code] & ALIGNED) {
        *members = FULL;
        return active;
    }
    masks = SLOT(i->dsts + i->srcs - 1);
    *members = masks[__builtin_ctz(active)];
    EACH(active, l) group |= (u32)(masks[l] == *members) << l;
    if (group & ~*members) {
        report(w, i, F_MASK_INVALID, (u32)__builtin_ctz(group & ~*members), 0, *members, 0);
        *members |= group;
    }
    return group;
}

/* Whether the lanes of a waiting path have arrived at the same thing. */
static bool same_place(const Machine *m, const Path *p, i32 pc, u32 members) {
    if (!p->gathering || p->members != members) return false;
    return p->pc == pc || (m->flags[pc] & ANYWHERE && m->handler[p->pc] == m->handler[pc]);
}

static u32 gather_slowly(Warp *w, const Insn *i, u32 active) {
    const Machine *m = w->m;
    const i32 pc = w->pc - 1;
    u32 members, group = group_of(w, i, active, &members), present = group, idle = w->mask & ~active;
    Path *own = w->path + w->current;
    if (group != w->mask) { /* the others meet these again behind the instruction */
        if (!part(w, i, pc + 1)) return 0;
        if (active & ~group) new_path(w, pc, active & ~group, own->join);
        w->mask = group;
        if (idle) arrive(w, own->join, idle);
    }
    for (u32 n = 0; n < w->paths; n++) if (same_place(m, w->path + n, pc, members)) present |= w->path[n].mask;
    if ((members & w->live) != present && !own->alone) {
        own->gathering = true, own->members = members;
        w->pc = pc;
        choose(w, true);
        return 0;
    }
    for (u32 n = 0; n < w->paths; n++) if (same_place(m, w->path + n, pc, members)) {
        w->path[n].pc++;
        w->path[n].gathering = false;
    }
    own->alone = false;
    return present;
}

/* The lanes that execute a gathered instruction now; 0: those that would have to wait. */
static inline u32 gather(Warp *w, const Insn *i, u32 active, u32 flags) {
    if (flags & ALIGNED) {
        if (active == w->live) return active;
    } else {
        const u32 *masks = SLOT(i->dsts + i->srcs - 1);
        if ((masks[__builtin_ctz(active)] & w->live) == active && uniform(masks, active)) return active;
    }
    return gather_slowly(w, i, active);
}

/* __syncwarp: orders memory among the lanes, as do all instructions with a member mask. */
static void warp_sync(Warp *w, const Insn *i, u32 active) { (void)w, (void)i, (void)active; }

static void nothing(Warp *w, const Insn *i, u32 active) { (void)w, (void)i, (void)active; }

/* mod[0]: why, an index into report.py's TRAPS. */
static void trap(Warp *w, const Insn *i, u32 active) {
    report(w, i, F_TRAP, (u32)__builtin_ctz(active), 0, 0, i->mod[0]);
    w->m->stop = true;
}

static void propagate(Warp *w, const Insn *i, u32 active) {
    u32 undefined = 0, s = i->dsts;
    for (; s < (u32)i->dsts + i->srcs; s++) undefined |= w->undefined[i->operand[s]];
    for (u32 d = 0; d < i->dsts; d++) set_undefined(w, i->operand[d], active, undefined);
}

static u32 guard_of(Warp *w, const Insn *i) {
    const u32 undefined = w->undefined[i->guard] & w->mask;
    const u32 p = get_predicate(w, i->guard) ^ (i->negated ? FULL : 0);
    if (undefined && w->m->checks & CHECK_UNDEFINED)
        report(w, i, F_UNDEFINED_PREDICATE, (u32)__builtin_ctz(undefined), 0, 0, 0);
    return w->mask & p;
}

void start_warp(Warp *w, u32 lanes) {
    w->live = w->mask = lanes;
    w->pc = 0, w->reconverge = -1, w->state = RUNNING;
    w->path[0] = (Path){.pc = 0, .reconverge = -1, .mask = lanes, .join = NO_JOIN};
    w->paths = 1, w->current = 0, w->converged = 0, w->meetings = 0;
    w->yields = false, w->polled_at = w->loaded_at = NULL, w->since_look = 0, w->polled[0] = w->polled[1] = 0;
    for (u32 n = 0; n < JOINS; n++) w->join[n].pc = -2;
}

/* Instructions that all lanes execute, none of which can part them, make the warp wait or find anything. */
static void run_plainly(Machine *m, Warp *w, u32 count) {
    const u32 pc = (u32)w->pc;
    const Insn *i = m->code + pc;
    for (u32 n = 0; n < count;) {
        const u32 chain = m->chain[pc + n];
        const u32 done = chain ? multiply_plainly(w, i + n, chain < count - n ? chain : count - n) : 0;
        if (!done) m->handler[pc + n](w, i + n, FULL);
        n += done ? done : 1;
    }
    m->begun[pc]++, m->begun[pc + count]--;
    w->pc += (i32)count;
}

void settle(Machine *m) {
    i64 times = 0;
    for (u32 n = 0; n < m->count; n++) {
        times += m->begun[n], m->begun[n] = 0;
        m->tally[n].executed += (u64)times, m->tally[n].lanes += (u64)times * LANES;
    }
    m->begun[m->count] = 0;
}

void run_warp(Machine *m, Warp *w, u64 budget) {
    const bool track = tracks(m);
    u64 left;
    if (w->paths > 1) {
        choose(w, w->yields);
        if (budget > 512) budget = 512;
    }
    w->yields = false;
    for (left = budget; left && w->state == RUNNING && !m->stop && !w->yields; left--) {
        const Insn *i;
        u32 active, pc, flags;
        if (w->pc == w->reconverge) {
            meet(w);
            continue;
        }
        if (!track && w->mask == FULL && w->reconverge < 0 && m->plain[w->pc] > 1) {
            const u32 count = m->plain[w->pc] < left ? m->plain[w->pc] : (u32)left;
            run_plainly(m, w, count);
            left -= count - 1;
            continue;
        }
        pc = (u32)w->pc++;
        i = m->code + pc;
        flags = m->flags[pc];
        active = i->guard == NO_GUARD ? w->mask : guard_of(w, i);
        if (flags & GATHERED && active && !(active = gather(w, i, active, flags))) continue;
        m->tally[pc].executed++;
        if (!active) continue;
        m->tally[pc].lanes += lane_count(active);
        m->handler[pc](w, i, active);
        if (track && !(flags & OWN_UNDEFINED)) propagate(w, i, active);
        if (flags & m->cut) budget -= left - 1, left = 1;
        if (flags & GATHERED) {
            if (flags & COLLECTIVE) sync_warp(w, active);
            if (w->paths > 1) {
                save(w);
                unite(w);
                load(w, w->current);
            }
        }
    }
    w->b->steps += budget - left, w->since_look += budget - left;
}

/* %clock and the like: time passes with every burst of instructions and with every look at it. mod[0]: shift. */
static void read_clock(Warp *w, const Insn *i, u32 active) {
    const u64 now = (w->b->steps + ++w->m->ticks) * 32;
    EACH(active, l) set_lane(w, i, 0, l, now >> i->mod[0]);
}

const Opcode control_ops[] = {{"branch", branch, OWN_UNDEFINED},
                              {"exit", leave, OWN_UNDEFINED},
                              {"warp_sync", warp_sync, OWN_UNDEFINED | COLLECTIVE | ANYWHERE},
                              {"nanosleep", nanosleep, OWN_UNDEFINED},
                              {"trap", trap, OWN_UNDEFINED},
                              {"nothing", nothing, OWN_UNDEFINED},
                              {"clock", read_clock, 0},
                              {0}};
