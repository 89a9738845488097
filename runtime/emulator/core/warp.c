/* Instructions that exchange data between the lanes of a warp. */
#include "half.h"

/* Each lane's source lane in a shfl of mode 0 up, 1 down, 2 bfly, 3 idx, and what that has in `a`. Returns the lanes that
 * have one; the others read themselves. */
VECTOR static u32 shuffle_sources(u32 mode, const u32 *b, const u32 *c, const u32 *a, u32 *from, u32 *result) {
    u32 reached = 0;
    for (u32 l = 0; l < LANES; l++) {
        const u32 clamp = c[l] & 31, segment = c[l] >> 8 & 31, n = b[l] & 31;
        const u32 bound = (l & segment) | (clamp & ~segment);
        const u32 source = mode == 0 ? l - n : mode == 1 ? l + n : mode == 2 ? l ^ n : (l & segment) | (n & ~segment);
        const u32 valid = mode == 0 ? (i32)source >= (i32)bound : (i32)source <= (i32)bound;
        reached |= valid << l;
        from[l] = valid ? source & 31 : l;
    }
    for (u32 l = 0; l < LANES; l++) result[l] = a[from[l]];
    return reached;
}

/* shfl.sync: d, [p], a, b, c, membermask; mod: mode. An out-of-range lane copies itself and its predicate is false. */
static void shfl(Warp *w, const Insn *i, u32 active) {
    const u32 s = i->dsts, *a = SLOT(s), *b = SLOT(s + 1), *c = SLOT(s + 2);
    u32 *d = SLOT(0), from[LANES], result[LANES];
    const u32 *u = w->undefined, in_range = shuffle_sources(i->mod[0], b, c, a, from, result), data = u[i->operand[s]];
    u32 undefined = u[i->operand[s + 1]] | u[i->operand[s + 2]];
    if (active != FULL || (data && tracks(w->m))) EACH(active, l) {
        if (!(active >> from[l] & 1)) report(w, i, F_SHUFFLE_SOURCE, l, from[l], 0, active);
        if (data >> from[l] & 1 || !(active >> from[l] & 1)) undefined |= 1u << l;
    }
    LANEWISE(d[l] = result[l];)
    if (i->dsts == 2) {
        set_predicate(w, i->operand[1], active, in_range);
        set_undefined(w, i->operand[1], active, u[i->operand[s + 1]] | u[i->operand[s + 2]]);
    }
    set_undefined(w, i->operand[0], active, undefined);
}

/* vote.sync and activemask: d, p, membermask; mod: 0 all, 1 any, 2 uni, 3 ballot; mod[1]: negate p. */
static void vote(Warp *w, const Insn *i, u32 active) {
    const u32 p = (get_predicate(w, i->operand[1]) ^ (i->mod[1] ? FULL : 0)) & active;
    const u32 undefined = w->undefined[i->operand[1]] & active ? FULL : 0;
    if (i->mod[0] == 3) {
        u32 *d = SLOT(0);
        LANEWISE(d[l] = p;)
    } else {
        bool value = i->mod[0] == 0 ? p == active : i->mod[0] == 1 ? p != 0 : p == 0 || p == active;
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
    const u32 *a = SLOT(1);
    u32 value = a[__builtin_ctz(active)];
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
    const u32 *a = SLOT(1);
    bool nan = false, any = false;
    i32 best_order = 0;
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
    const u32 s = i->dsts;
    const u32 undefined = w->undefined[i->operand[s]] & active ? FULL : 0;
    u32 *d = SLOT(0), same[LANES], all;
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
    LANEWISE(d[l] = leader;)
    set_predicate(w, i->operand[1], active, 1u << leader);
    set_undefined(w, i->operand[0], active, 0);
    set_undefined(w, i->operand[1], active, 0);
}

const Opcode warp_ops[] = {{"shfl", shfl, OWN_UNDEFINED | COLLECTIVE},   {"vote", vote, OWN_UNDEFINED | COLLECTIVE},
                           {"activemask", activemask, OWN_UNDEFINED},    {"redux", redux, OWN_UNDEFINED | COLLECTIVE},
                           {"redux_f32", redux_f32, OWN_UNDEFINED | COLLECTIVE},
                           {"match", match, OWN_UNDEFINED | COLLECTIVE}, {"elect", elect, OWN_UNDEFINED | COLLECTIVE},
                           {0}};
