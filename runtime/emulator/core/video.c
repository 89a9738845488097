/* Video instructions: bytes or halves of registers, extended by their sign, combined exactly, clamped or cut, and merged
 * into a third operand or combined with it (PTX ISA, "Video Instructions"). */
#include "core.h"

/* isa/video.py's OPERATIONS, SECOND, signs and flags */
enum { ADD, SUB, ABSDIFF, MIN, MAX, AVRG, SHL, SHR, EQ, NE, LT, LE, GT, GE };
enum { NO_SECOND, SECOND_ADD, SECOND_MIN, SECOND_MAX };
enum { A_SIGNED = 1, B_SIGNED = 2, D_SIGNED = 4, SAT = 8, WRAP = 16 };
enum { PLUS_ONE = 32, MINUS_PRODUCT = 64, MINUS_C = 128 };
enum { BYTE_0, HALF_0 = 4, WHOLE = 6 }; /* selectors: bytes 0 to 3, halves 0 and 1, all */

static i64 extended(u32 word, u32 bits, bool is_signed) {
    const u32 part = bits == 32 ? word : word & ((1u << bits) - 1);
    return is_signed && part >> (bits - 1) ? (i64)part - ((i64)1 << bits) : (i64)part;
}

static u32 bits_of(u32 selector) { return selector < HALF_0 ? 8 : selector < WHOLE ? 16 : 32; }
static u32 place_of_part(u32 selector) { return selector < HALF_0 ? 8 * selector : selector < WHOLE ? 16 * (selector - HALF_0) : 0; }
static i64 part_of(u32 word, u32 selector, bool is_signed) {
    return extended(word >> place_of_part(selector), bits_of(selector), is_signed);
}

static i64 clamped(i64 value, u32 bits, bool is_signed) {
    const i64 most = ((i64)1 << (bits - is_signed)) - 1, least = is_signed ? -most - 1 : 0;
    return value < least ? least : value > most ? most : value;
}

/* What is shifted left keeps the 34 bits of every intermediate result. */
static i64 shifted_left(i64 a, u64 count) {
    const u64 bits = count > 33 ? 0 : ((u64)a << count) & (((u64)1 << 34) - 1);
    return (i64)(bits << 30) >> 30;
}

static i64 combined(u32 operation, i64 a, i64 b) {
    switch (operation) {
    case ADD: return a + b;
    case SUB: return a - b;
    case ABSDIFF: return a > b ? a - b : b - a;
    case MIN: return a < b ? a : b;
    case MAX: return a > b ? a : b;
    case AVRG: return (a + b + (a + b >= 0)) >> 1;
    case SHL: return shifted_left(a, (u64)b);
    case SHR: return a >> b;
    case EQ: return a == b;
    case NE: return a != b;
    case LT: return a < b;
    case LE: return a <= b;
    case GT: return a > b;
    default: return a >= b;
    }
}

/* mod: operation and flags << 8; selectors of a, b << 4 and d << 8; what is done with c. */
static void video(Warp *w, const Insn *i, u32 active) {
    const u32 operation = i->mod[0] & 255, flags = i->mod[0] >> 8, second = i->mod[2], target = i->mod[1] >> 8 & 15;
    const u32 kept = bits_of(target) == 32 ? 0 : ~(((1u << bits_of(target)) - 1) << place_of_part(target));
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1), *y = SLOT(2), *z = i->srcs > 2 ? SLOT(3) : SLOT(2);
    EACH(active, l) {
        const i64 a = part_of(x[l], i->mod[1] & 15, flags & A_SIGNED), c = extended(z[l], 32, flags & D_SIGNED);
        i64 b = part_of(y[l], i->mod[1] >> 4 & 15, flags & B_SIGNED), result;
        if (operation == SHL || operation == SHR) b = flags & WRAP ? b & 31 : b > 32 ? 32 : b;
        result = combined(operation, a, b);
        if (flags & SAT) result = clamped(result, bits_of(target), flags & D_SIGNED);
        if (second == SECOND_ADD) result += c;
        else if (second) result = combined(second == SECOND_MIN ? MIN : MAX, result, c);
        d[l] = kept ? (z[l] & kept) | ((u32)result << place_of_part(target) & ~kept) : (u32)result;
    }
}

/* mod: flags << 8; selectors of a and b << 4; how far the result is shifted right. The sum has at most 66 bits. */
static void video_mad(Warp *w, const Insn *i, u32 active) {
    const u32 flags = i->mod[0] >> 8, shift = i->mod[2];
    const bool is_signed = flags & (A_SIGNED | B_SIGNED | MINUS_PRODUCT | MINUS_C);
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1), *y = SLOT(2), *z = SLOT(3);
    EACH(active, l) {
        const i64 a = part_of(x[l], i->mod[1] & 15, flags & A_SIGNED), b = part_of(y[l], i->mod[1] >> 4 & 15, flags & B_SIGNED);
        const u32 c = flags & MINUS_C ? ~z[l] : z[l];
        __extension__ __int128 result = (__int128)a * b;
        if (flags & MINUS_PRODUCT) result = ~result;
        result += extended(c, 32, is_signed);
        if (flags & (PLUS_ONE | MINUS_PRODUCT | MINUS_C)) result += 1;
        result >>= shift;
        if (flags & SAT) {
            const i64 most = is_signed ? INT32_MAX : UINT32_MAX, least = is_signed ? INT32_MIN : 0;
            result = result < least ? least : result > most ? most : result;
        }
        d[l] = (u32)result;
    }
}

/* Two halves or four bytes, each chosen from those of a and b. mod: operation and flags << 8; selectors of a and b << 16,
 * 4 bits for each element; the elements that count, whether they are added to c << 8, bits of an element << 16. */
static void video_simd(Warp *w, const Insn *i, u32 active) {
    const u32 operation = i->mod[0] & 255, flags = i->mod[0] >> 8, bits = i->mod[2] >> 16, mask = i->mod[2] & 255;
    const bool add = i->mod[2] >> 8 & 1;
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1), *y = SLOT(2), *z = SLOT(3);
    EACH(active, l) {
        const u64 pair = (u64)y[l] << 32 | x[l];
        u32 result = z[l];
        for (u32 n = 0; n < 32 / bits; n++) {
            const u32 from_a = i->mod[1] >> 4 * n & 15, from_b = i->mod[1] >> (16 + 4 * n) & 15;
            const u32 ones = (1u << bits) - 1, at = n * bits;
            i64 value = combined(operation, extended((u32)(pair >> from_a * bits), bits, flags & A_SIGNED),
                                 extended((u32)(pair >> from_b * bits), bits, flags & B_SIGNED));
            if (!(mask >> n & 1)) continue;
            if (flags & SAT) value = clamped(value, bits, flags & D_SIGNED);
            result = add ? result + (u32)value : (result & ~(ones << at)) | ((u32)value & ones) << at;
        }
        d[l] = result;
    }
}

const Opcode video_ops[] = {{"video", video, 0}, {"video_mad", video_mad, 0}, {"video_simd", video_simd, 0}, {0}};
