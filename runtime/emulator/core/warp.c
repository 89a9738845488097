/* Instructions that exchange data between the lanes of a warp. */
#include "half.h"

/* Lanes named by the member mask that cannot take part: undefined behaviour on a GPU. */
static void check_members(Warp *w, const Insn *i, u32 members, u32 active) {
    if (members & w->live & ~active) report(w, i, F_BARRIER_DIVERGED, (u32)__builtin_ctz(active), 0, 0, active);
}

/* shfl.sync: d, [p], a, b, c, membermask; mod: 0 up, 1 down, 2 bfly, 3 idx. An out-of-range lane
 * copies itself and its predicate is false. */
static void shfl(Warp *w, const Insn *i, u32 active) {
    const u32 s = i->dsts, *a = SLOT(s), *b = SLOT(s + 1), *c = SLOT(s + 2), *members = SLOT(s + 3);
    u32 *d = SLOT(0), result[LANES], in_range = 0, undefined = 0;
    const u32 *u = w->undefined;
    check_members(w, i, members[__builtin_ctz(active)], active);
    EACH(active, l) {
        const u32 clamp = c[l] & 31, segment = c[l] >> 8 & 31, n = b[l] & 31;
        const u32 highest = (l & segment) | (clamp & ~segment), lowest = l & segment;
        i32 from;
        bool valid;
        switch (i->mod[0]) {
        case 0: from = (i32)l - (i32)n, valid = from >= (i32)highest; break;
        case 1: from = (i32)(l + n), valid = from <= (i32)highest; break;
        case 2: from = (i32)(l ^ n), valid = from <= (i32)highest; break;
        default: from = (i32)(lowest | (n & ~segment)), valid = from <= (i32)highest;
        }
        if (!valid) from = (i32)l;
        in_range |= (u32)valid << l;
        result[l] = a[from & 31];
        if (!(active >> from & 1)) {
            report(w, i, F_SHUFFLE_SOURCE, l, (u32)from, 0, active);
            undefined |= 1u << l;
        }
        if (u[i->operand[s]] >> from & 1) undefined |= 1u << l;
    }
    undefined |= u[i->operand[s + 1]] | u[i->operand[s + 2]];
    LANEWISE(d[l] = result[l];)
    set_undefined(w, i->operand[0], active, undefined);
    if (i->dsts == 2) {
        set_predicate(w, i->operand[1], active, in_range);
        set_undefined(w, i->operand[1], active, u[i->operand[s + 1]] | u[i->operand[s + 2]]);
    }
}

/* vote.sync and activemask: d, p, membermask; mod: 0 all, 1 any, 2 uni, 3 ballot; mod[1]: negate p. */
static void vote(Warp *w, const Insn *i, u32 active) {
    const u32 members = *(u32 *)SLOT(2) & active, p = (get_predicate(w, i->operand[1]) ^ (i->mod[1] ? FULL : 0)) & members;
    const u32 undefined = w->undefined[i->operand[1]] & members ? FULL : 0;
    check_members(w, i, ((u32 *)SLOT(2))[__builtin_ctz(active)], active);
    if (i->mod[0] == 3) {
        u32 *d = SLOT(0);
        LANEWISE(d[l] = p;)
    } else {
        bool value = i->mod[0] == 0 ? p == members : i->mod[0] == 1 ? p != 0 : p == 0 || p == members;
        set_predicate(w, i->operand[0], active, value ? FULL : 0);
    }
    set_undefined(w, i->operand[0], active, undefined);
}

static void activemask(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    LANEWISE(d[l] = active;)
    set_undefined(w, i->operand[0], active, 0);
}

/* redux.sync: mod[0]: 0 add, 1 min.u32, 2 max.u32, 3 min.s32, 4 max.s32, 5 and, 6 or, 7 xor. */
static void redux(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *a = SLOT(1), members = ((u32 *)SLOT(2))[__builtin_ctz(active)];
    u32 value = a[__builtin_ctz(active)];
    check_members(w, i, members, active);
    EACH(active & (active - 1), l) {
        const u32 x = a[l];
        switch (i->mod[0]) {
        case 0: value += x; break;
        case 1: value = x < value ? x : value; break;
        case 2: value = x > value ? x : value; break;
        case 3: value = (i32)x < (i32)value ? x : value; break;
        case 4: value = (i32)x > (i32)value ? x : value; break;
        case 5: value &= x; break;
        case 6: value |= x; break;
        default: value ^= x;
        }
    }
    LANEWISE(d[l] = value;)
    set_undefined(w, i->operand[0], active, w->undefined[i->operand[1]] & active ? FULL : 0);
}

/* redux.sync.f32: mod[0]: 1 for max; mod[1]: of absolute values; mod[2]: a NaN wins. -0 is below +0. */
static void redux_f32(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0), best = CANONICAL_NAN;
    const u32 *a = SLOT(1), members = ((u32 *)SLOT(2))[__builtin_ctz(active)];
    bool nan = false, any = false;
    i32 best_order = 0;
    check_members(w, i, members, active);
    EACH(active, l) {
        const u32 x = i->mod[1] ? a[l] & 0x7FFFFFFF : a[l];
        const i32 order = (i32)x < 0 ? (i32)(x ^ 0x7FFFFFFF) : (i32)x; /* floats in order as integers */
        if ((x & 0x7FFFFFFF) > 0x7F800000) {
            nan = true;
            continue;
        }
        if (!any || (i->mod[0] ? order > best_order : order < best_order)) best = x, best_order = order;
        any = true;
    }
    if (nan && i->mod[2]) best = CANONICAL_NAN;
    LANEWISE(d[l] = best;)
    set_undefined(w, i->operand[0], active, w->undefined[i->operand[1]] & active ? FULL : 0);
}

/* match.sync: d, [p], a, membermask: the lanes that have the same value; mod[0]: 1 for all: every lane, or none. */
static void match(Warp *w, const Insn *i, u32 active) {
    const u32 s = i->dsts, members = ((u32 *)SLOT(s + 1))[__builtin_ctz(active)];
    const u32 undefined = w->undefined[i->operand[s]] & active ? FULL : 0;
    u32 *d = SLOT(0), same[LANES], all;
    check_members(w, i, members, active);
    EACH(active, l) {
        same[l] = 0;
        EACH(active, other) same[l] |= (u32)(get_lane(w, i, s, other) == get_lane(w, i, s, l)) << other;
    }
    all = same[__builtin_ctz(active)] == active;
    EACH(active, l) d[l] = !i->mod[0] ? same[l] : all ? active : 0;
    set_undefined(w, i->operand[0], active, undefined);
    if (i->dsts == 2) {
        set_predicate(w, i->operand[1], active, all ? FULL : 0);
        set_undefined(w, i->operand[1], active, undefined);
    }
}

/* elect.sync d|p, membermask: the lowest lane leads. */
static void elect(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 leader = (u32)__builtin_ctz(active);
    check_members(w, i, ((u32 *)SLOT(2))[leader], active);
    LANEWISE(d[l] = leader;)
    set_predicate(w, i->operand[1], active, 1u << leader);
    set_undefined(w, i->operand[0], active, 0);
    set_undefined(w, i->operand[1], active, 0);
}

const Opcode warp_ops[] = {{"shfl", shfl, OWN_UNDEFINED},   {"vote", vote, OWN_UNDEFINED},
                           {"activemask", activemask, OWN_UNDEFINED}, {"redux", redux, OWN_UNDEFINED},
                           {"redux_f32", redux_f32, OWN_UNDEFINED},   {"match", match, OWN_UNDEFINED},
                           {"elect", elect, OWN_UNDEFINED},           {0}};
