/* atom and red: read, combine, write, one lane after another. */
#include "half.h"

enum {
    ADD, MINIMUM_U, MAXIMUM_U, MINIMUM_S, MAXIMUM_S, AND, OR, XOR, EXCHANGE, COMPARE_AND_SWAP, INCREMENT, DECREMENT,
    ADD_F32, ADD_F64, ADD_F16, ADD_BF16, MINIMUM_F16, MAXIMUM_F16, MINIMUM_BF16, MAXIMUM_BF16
};

typedef struct {
    u64 low, high; /* high: of 128 bits */
} Value;

static u32 half_pair(u32 operation, u32 x, u32 y) { /* one of the two */
    const bool bf16 = operation == ADD_BF16 || operation == MINIMUM_BF16 || operation == MAXIMUM_BF16;
    const float a = bf16 ? f32_of_bf16(x) : f32_of_f16(x), b = bf16 ? f32_of_bf16(y) : f32_of_f16(y);
    float r = a + b;
    if (operation != ADD_F16 && operation != ADD_BF16) {
        const bool smallest = operation == MINIMUM_F16 || operation == MINIMUM_BF16;
        if (a != a || b != b) return a == a ? x : b == b ? y : 0x7FFF;
        if (a == b) return smallest == (bool)(x >> 15) ? x : y; /* -0 is below +0 */
        return (a < b) == smallest ? x : y;
    }
    return bf16 ? bf16_of_f32(r) : f16_of_f32(r);
}

static u64 halves(u32 operation, u32 bytes, u64 a, u64 b) {
    u64 result = 0;
    for (u32 shift = 0; shift < 8 * bytes; shift += 16)
        result |= (u64)half_pair(operation, a >> shift & 0xFFFF, b >> shift & 0xFFFF) << shift;
    return result;
}

/* Atomic additions flush subnormals to zero in global memory, and not in shared memory. */
static float flushed(float x, bool global) {
    u32 bits;
    memcpy(&bits, &x, 4);
    if (global && !(bits & 0x7F800000)) bits &= 0x80000000;
    memcpy(&x, &bits, 4);
    return x;
}

static u64 add_f64(u64 a, u64 b) {
    double x, y;
    memcpy(&x, &a, 8), memcpy(&y, &b, 8);
    x += y;
    if (x != x) return 0x7FFFFFFFFFFFFFFFull;
    memcpy(&a, &x, 8);
    return a;
}

static u64 combine(u32 operation, u32 bytes, u64 old, u64 b, bool global) {
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
    case INCREMENT: return old >= b ? 0 : old + 1;
    case DECREMENT: return !old || old > b ? b : old - 1;
    case ADD_F32: {
        const float sum = flushed(f32_of_bits((u32)old), global) + flushed(f32_of_bits((u32)b), global);
        return canonical(flushed(sum, global));
    }
    case ADD_F64: return add_f64(old, b);
    default: return halves(operation, bytes, old, b);
    }
}

static Value next_value(const Insn *i, Value old, Value b, Value c, bool global) {
    if (i->mod[1] == COMPARE_AND_SWAP) return old.low == b.low && old.high == b.high ? c : old;
    if (i->mod[1] == EXCHANGE) return b;
    return (Value){combine(i->mod[1], i->mod[0], old.low, b.low, global), 0};
}

/* The same on memory that other host threads change too; the result is not asked for. */
static void combine_in_parallel(const Insn *i, u8 *at, u64 b) {
    if (i->mod[0] == 4) {
        u32 old = __atomic_load_n((u32 *)at, __ATOMIC_RELAXED);
        while (!__atomic_compare_exchange_n((u32 *)at, &old, (u32)combine(i->mod[1], 4, old, b, true), true,
                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    } else {
        u64 old = __atomic_load_n((u64 *)at, __ATOMIC_RELAXED);
        while (!__atomic_compare_exchange_n((u64 *)at, &old, combine(i->mod[1], 8, old, b, true), true,
                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    }
}

static Value get_value(const Warp *w, const Insn *i, u32 operand, u32 lane) {
    Value v = {get_lane(w, i, operand, lane), 0};
    if (i->mod[0] < 8) v.low &= ((u64)1 << 8 * i->mod[0]) - 1;
    if (i->mod[0] == 16) v.high = ((const u64 *)(w->slots + (size_t)SLOT_BYTES * (i->operand[operand] + 2u)))[lane];
    return v;
}

static void set_value(const Warp *w, const Insn *i, u32 operand, u32 lane, Value v) {
    set_lane(w, i, operand, lane, v.low);
    if (i->mod[0] == 16) ((u64 *)(w->slots + (size_t)SLOT_BYTES * (i->operand[operand] + 2u)))[lane] = v.high;
}

static void one_lane(Warp *w, const Insn *i, u32 lane, const Access *a) {
    const u32 bytes = i->mod[0], count = i->mod[3], s = i->dsts;
    const bool global = a->global >> lane & 1;
    for (u32 n = 0; n < count; n++) {
        u8 *at = a->bytes[lane] + n * bytes;
        const Value b = get_value(w, i, s + 1 + n, lane);
        Value old = {0, 0}, c = {0, 0}, new;
        if (w->m->parallel && global && bytes >= 4 && bytes <= 8 && !s) {
            combine_in_parallel(i, at, b.low);
            continue;
        }
        if (i->mod[1] == COMPARE_AND_SWAP) c = get_value(w, i, s + 2, lane);
        memcpy(&old, at, bytes);
        new = next_value(i, old, b, c, global);
        if (memcmp(at, &new, bytes)) w->m->changes++;
        memcpy(at, &new, bytes);
        if (s) set_value(w, i, n, lane, old);
    }
}

/* Operands: [old value], address, b, [c]; mod: bytes, operation, space and how strong << 8, elements. */
static void atomic(Warp *w, const Insn *i, u32 active) {
    const u32 bytes = i->mod[0] * i->mod[3], s = i->dsts, strength = i->mod[2] >> 8;
    u32 stored = 0;
    Access a;
    for (u32 n = s + 1; n < s + i->srcs; n++) stored |= w->undefined[i->operand[n]];
    resolve(w, i, active, s, bytes, i->mod[2] & 0xFF, ATOMIC, &a);
    if (w->m->checks & CHECK_UNDEFINED && stored & active)
        report(w, i, F_UNDEFINED_STORE, (u32)__builtin_ctz(stored & active), 0, bytes, 0);
    EACH(a.lanes, l) {
        one_lane(w, i, l, &a);
        if (!w->m->exact || !((a.shared | a.global) >> l & 1)) continue;
        if (s) sync_read(w, l, place_of(w, &a, l), strength & (ACQUIRE | CTA_SCOPE));
        sync_write(w, l, place_of(w, &a, l), strength & ~(u32)ACQUIRE, true);
    }
    for (u32 n = 0; n < s; n++) set_undefined(w, i->operand[n], active, 0);
    if (s && i->mod[0] == 16) set_undefined(w, i->operand[0] + 2u, active, 0);
    if (s && a.lanes) look(w, i, a.address[__builtin_ctz(a.lanes)]);
}

bool compares_and_swaps(const Insn *i) { return i->mod[1] == COMPARE_AND_SWAP; }

const Opcode atomic_ops[] = {{"atomic", atomic, OWN_UNDEFINED | STORES | UPDATES}, {0}};
