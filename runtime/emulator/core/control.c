/* Branches, exit, barriers, and the scheduler. */
#include "core.h"

static u32 check_of(int kind) {
    switch (kind) {
    case F_RACE_SHARED: return CHECK_RACE;
    case F_RACE_GLOBAL: case F_RACE_GLOBAL_WARPS: return CHECK_GLOBAL_RACE;
    case F_UNINITIALISED_SHARED: case F_UNINITIALISED_GLOBAL: return CHECK_UNINITIALISED;
    case F_UNDEFINED_ADDRESS: case F_UNDEFINED_PREDICATE: case F_UNDEFINED_STORE: return CHECK_UNDEFINED;
    case F_RACE_ASYNC: case F_SOURCE_SIZE: case F_PENDING_COPY: return CHECK_ASYNC;
    case F_BARRIER_DIVERGED: case F_SHUFFLE_SOURCE: return CHECK_BARRIER;
    case F_SHIFT: return CHECK_SHIFT;
    default: return FULL; /* what a GPU would trap on cannot be switched off */
    }
}

/* Keep the first finding of each kind at each instruction. */
void report(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, u32 other) {
    Machine *m = w->m;
    const i32 pc = (i32)(i - m->code);
    if (!(m->checks & check_of(kind)) && check_of(kind) != FULL) return;
    if (!m->collect) m->stop = true;
    for (u32 n = 0; n < m->finding_count; n++)
        if (m->finding[n].kind == kind && m->finding[n].pc == pc) return;
    if (m->finding_count == MAX_FINDINGS) return;
    m->finding[m->finding_count++] = (Finding){kind, pc, m->block_index, w->index, lane, other, address, size};
}

/* Continue on the next path that still has live lanes. */
static void next_path(Warp *w) {
    while (w->depth) {
        Path *p = &w->stack[--w->depth];
        w->mask = p->mask & w->live, w->pc = p->pc, w->reconverge = p->reconverge;
        if (w->mask) return;
    }
    w->mask = 0;
    w->state = DONE;
}

static void push(Warp *w, const Insn *i, i32 pc, i32 reconverge, u32 mask) {
    if (w->depth == MAX_STACK) {
        report(w, i, F_LIMIT, 0, 0, MAX_STACK, 0);
        w->m->stop = true;
        return;
    }
    w->stack[w->depth++] = (Path){pc, reconverge, mask};
}

static void branch(Warp *w, const Insn *i, u32 active) {
    const u32 others = w->mask & ~active;
    /* a path that only meets the others at exit still stops where the enclosing branch joins */
    const i32 next = w->pc, join = i->reconverge >= 0 ? i->reconverge : w->reconverge;
    bool swap;
    if (!others) {
        w->pc = i->target;
        return;
    }
    if (w->reconverge != join) { /* all lanes meet again at the immediate post-dominator */
        push(w, i, join, w->reconverge, w->mask);
        w->reconverge = join;
    }
    swap = next_random(w->m) & 1 << 20;
    if (next == join && join >= 0) {
        w->pc = i->target, w->mask = active;
    } else if (i->target == join && join >= 0) {
        w->mask = others;
    } else {
        push(w, i, swap ? i->target : next, join, swap ? active : others);
        w->pc = swap ? next : i->target, w->mask = swap ? others : active;
    }
}

static void release(Machine *m, Barrier *b) {
    EACH(b->waiting, n) m->warp[n].state = RUNNING;
    shadow_barrier(m, b->arrived);
    memset(b, 0, sizeof *b);
}

static void leave(Warp *w, const Insn *i, u32 active) {
    w->live &= ~active;
    w->mask &= ~active;
    if (w->copy_count) copies_at_exit(w, i, active);
    if (!w->mask) next_path(w);
}

static u32 warp_threads(const Machine *m, u32 warp) {
    u32 rest = m->threads - warp * LANES;
    return rest < LANES ? rest : LANES;
}

/* bar.sync / barrier.sync / bar.arrive: operands: barrier, [threads]; mod: arrive only. */
static void barrier_sync(Warp *w, const Insn *i, u32 active) {
    Machine *m = w->m;
    const u32 all = warp_threads(m, w->index), whole = all == LANES ? FULL : (1u << all) - 1;
    const u32 lane = (u32)__builtin_ctz(active);
    const u32 number = (u32)get_lane(w, i, 0, lane) % BARRIERS;
    const u32 expected = i->srcs > 1 ? (u32)get_lane(w, i, 1, lane) : (m->threads + LANES - 1) / LANES * LANES;
    Barrier *b = &m->barrier[number];
    if (active != whole) {
        report(w, i, F_BARRIER_DIVERGED, lane, number, 0, active);
        if (m->stop) return;
    }
    b->expected = expected;
    b->arrived |= 1u << w->index;
    b->threads += LANES;
    if (!i->mod[0]) {
        b->waiting |= 1u << w->index;
        w->state = WAITING, w->barrier = (u8)number;
    }
    if (b->threads >= expected) release(m, b);
}

/* __syncwarp: orders memory among the lanes. */
static void warp_sync(Warp *w, const Insn *i, u32 active) {
    const u32 members = (u32)get_lane(w, i, 0, (u32)__builtin_ctz(active)) & w->live;
    if (members & ~active) report(w, i, F_BARRIER_DIVERGED, (u32)__builtin_ctz(active), 0, 0, active);
    w->converged = ++w->clock[w->index];
}

static void nothing(Warp *w, const Insn *i, u32 active) { (void)w, (void)i, (void)active; }

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

static void run_warp(Machine *m, Warp *w, u64 budget) {
    u64 left = budget;
    const bool track = m->checks & CHECK_UNDEFINED;
    for (; left && w->state == RUNNING && !m->stop; left--) {
        const Insn *i;
        u32 active, pc;
        if (w->pc == w->reconverge) {
            next_path(w);
            continue;
        }
        pc = (u32)w->pc++;
        i = m->code + pc;
        active = i->guard == NO_GUARD ? w->mask : guard_of(w, i);
        m->tally[pc].executed++;
        if (!active) continue;
        m->tally[pc].lanes += (u32)__builtin_popcount(active);
        m->handler[pc](w, i, active);
        if (track && !(m->flags[pc] & OWN_UNDEFINED)) propagate(w, i, active);
    }
    m->steps += budget - left;
}

/* Special register `which` of one thread, numbered as in decode.py. */
static u32 special(const Machine *m, const Warp *w, i32 which, u32 l, u32 initial) {
    const u32 t = w->index * LANES + l, below = (1u << l) - 1, own = 1u << l, n = m->block_index;
    switch (which) {
    case 0: return t % m->block[0];
    case 1: return t / m->block[0] % m->block[1];
    case 2: return t / m->block[0] / m->block[1];
    case 3: case 4: case 5: return m->block[which - 3];
    case 6: return n % m->grid[0];
    case 7: return n / m->grid[0] % m->grid[1];
    case 8: return n / m->grid[0] / m->grid[1];
    case 9: case 10: case 11: return m->grid[which - 9];
    case 12: return l;
    case 13: return w->index;
    case 14: return m->warps;
    case 15: return own;
    case 16: return below;
    case 17: return below | own;
    case 18: return ~(below | own);
    case 19: return ~below;
    case 20: return m->shared_end - SHARED_BASE - initial; /* shared memory: the dynamic part, */
    default: return m->shared_end - SHARED_BASE;           /* all */
    }
}

static void fill_specials(Machine *m, Warp *w) {
    for (u32 n = 0; n < m->special_count; n++) {
        u32 *d = (u32 *)(w->slots + (size_t)SLOT_BYTES * (u32)m->specials[2 * n + 1]);
        for (u32 l = 0; l < LANES; l++) d[l] = special(m, w, m->specials[2 * n], l, d[l]);
    }
}

/* %clock and the like: time passes with every burst of instructions and with every look at it. mod[0]: shift. */
static void read_clock(Warp *w, const Insn *i, u32 active) {
    const u64 now = (w->m->steps + ++w->m->ticks) * 32;
    EACH(active, l) set_lane(w, i, 0, l, now >> i->mod[0]);
}

static void start_block(Machine *m) {
    memset(m->barrier, 0, sizeof m->barrier);
    memset(m->shared, 0xA5, m->shared_end);
    for (u32 n = 0; n < m->warps; n++) {
        Warp *w = m->warp + n;
        const u32 threads = warp_threads(m, n);
        memcpy(w->slots, m->image, (size_t)SLOT_BYTES * m->slots);
        memcpy(w->undefined, m->initial_undefined, sizeof(u32) * m->slots);
        w->live = w->mask = threads == LANES ? FULL : (1u << threads) - 1;
        w->pc = 0, w->reconverge = -1, w->depth = 0, w->state = RUNNING;
        copies_reset(w);
        fill_specials(m, w);
    }
    shadow_reset(m);
}

/* No warp can run: those waiting at a barrier wait for ever. */
static void deadlock(Machine *m) {
    u32 waiting = 0;
    Warp *first = NULL;
    for (u32 n = 0; n < m->warps; n++)
        if (m->warp[n].state == WAITING) {
            waiting |= 1u << n;
            if (!first) first = m->warp + n;
        }
    report(first, m->code + first->pc - 1, F_BARRIER_DEADLOCK, 0, first->barrier, 0, waiting);
}

/* Warps run in long random bursts, so that one gets far ahead of the others wherever no barrier holds it. */
static void run_block(Machine *m, int (*interrupted)(void)) {
    u64 polled = m->steps;
    start_block(m);
    while (!m->stop) {
        u32 runnable = 0, waiting = 0, pick;
        u64 burst;
        Warp *w;
        for (u32 n = 0; n < m->warps; n++) {
            runnable |= (u32)(m->warp[n].state == RUNNING) << n;
            waiting |= (u32)(m->warp[n].state == WAITING) << n;
        }
        if (!runnable) {
            if (waiting) deadlock(m);
            return;
        }
        pick = (u32)(next_random(m) >> 33) % (u32)__builtin_popcount(runnable);
        while (pick--) runnable &= runnable - 1;
        burst = next_random(m) >> 40;
        burst = burst & 3 ? 1 << 16 : 1 + (burst >> 2) % (burst & 4 ? 64 : 1024);
        w = m->warp + __builtin_ctz(runnable);
        run_warp(m, w, burst);
        if (m->steps - polled > 10000000) {
            polled = m->steps;
            if (interrupted()) m->stop = m->failed = true;
        }
        if (m->steps > m->step_limit) {
            report(w, m->code + w->pc, F_LIMIT, 0, 0, m->step_limit, 0);
            m->stop = true;
        }
    }
}

void run_grid(Machine *m, int (*interrupted)(void)) {
    const u32 blocks = m->grid[0] * m->grid[1] * m->grid[2];
    for (m->block_index = 0; m->block_index < blocks && !m->stop; m->block_index++) run_block(m, interrupted);
}

const Opcode control_ops[] = {{"branch", branch, OWN_UNDEFINED},
                              {"exit", leave, OWN_UNDEFINED},
                              {"barrier", barrier_sync, OWN_UNDEFINED},
                              {"warp_sync", warp_sync, OWN_UNDEFINED},
                              {"nothing", nothing, OWN_UNDEFINED},
                              {"clock", read_clock, 0},
                              {0}};
