/* atom and red: read, combine, write, one lane after another. Atomics do not race with one another, so they leave no
 * trace in the access histories. */
#include "half.h"

enum {
    ADD, MINIMUM_U, MAXIMUM_U, MINIMUM_S, MAXIMUM_S, AND, OR, XOR, EXCHANGE, COMPARE_AND_SWAP,
    ADD_F32, ADD_F16X2, ADD_BF16X2
};

static u32 add_halves(u32 a, u32 b, bool bf16) {
    u32 result = 0;
    for (u32 shift = 0; shift < 32; shift += 16) {
        const u32 x = a >> shift & 0xFFFF, y = b >> shift & 0xFFFF;
        const u32 sum = bf16 ? bf16_of_f32(f32_of_bf16(x) + f32_of_bf16(y)) : f16_of_f32(f32_of_f16(x) + f32_of_f16(y));
        result |= sum << shift;
    }
    return result;
}

static u64 combine(u32 operation, u32 bytes, u64 old, u64 b, u64 c) {
    const i64 s = bytes == 4 ? (i32)old : (i64)old, t = bytes == 4 ? (i32)b : (i64)b;
    switch (operation) {
    case ADD: return old + b;
    case MINIMUM_U: return b < old ? b : old;
    case MAXIMUM_U: return b > old ? b : old;
    case MINIMUM_S: return t < s ? b : old;
    case MAXIMUM_S: return t > s ? b : old;
    case AND: return old & b;
    case OR: return old | b;
    case XOR: return old ^ b;
    case EXCHANGE: return b;
    case COMPARE_AND_SWAP: return old == b ? c : old;
    case ADD_F32: return canonical(f32_of_bits((u32)old) + f32_of_bits((u32)b));
    case ADD_F16X2: return add_halves((u32)old, (u32)b, false);
    default: return add_halves((u32)old, (u32)b, true);
    }
}

/* Operands: [old value], address, b, [c]; mod: bytes, operation, space (2 shared, else global). */
static void atomic(Warp *w, const Insn *i, u32 active) {
    const u32 bytes = i->mod[0], s = i->dsts;
    u32 undefined = w->undefined[i->operand[s]], stored = 0;
    for (u32 n = s + 1; n < s + i->srcs; n++) stored |= w->undefined[i->operand[n]];
    if (w->m->checks & CHECK_UNDEFINED && (undefined | stored) & active)
        report(w, i, undefined & active ? F_UNDEFINED_ADDRESS : F_UNDEFINED_STORE,
               (u32)__builtin_ctz((undefined | stored) & active), 0, bytes, 0);
    EACH(active & ~undefined, l) {
        const u64 address = get_lane(w, i, s, l) + (u64)i->offset;
        u8 *at = i->mod[2] == 2 ? shared_bytes(w, i, l, (u32)address, bytes) : global_bytes(w, i, l, address, bytes, ATOMIC);
        u64 old = 0, value;
        if (!at) continue;
        memcpy(&old, at, bytes);
        value = combine(i->mod[1], bytes, old, get_lane(w, i, s + 1, l), i->srcs > 2 ? get_lane(w, i, s + 2, l) : 0);
        memcpy(at, &value, bytes);
        if (s) set_lane(w, i, 0, l, old);
    }
    if (s) set_undefined(w, i->operand[0], active, 0);
}

const Opcode atomic_ops[] = {{"atomic", atomic, OWN_UNDEFINED}, {0}};
