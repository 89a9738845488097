/* Integer arithmetic, logic, shifts, bit fields, comparisons and moves, one function per operation and width. */
#include "core.h"

/* S: slot type, U/I: unsigned and signed type of the width, M: type wide enough to multiply without C overflow. */
#define WIDTHS(G, X) G(X, 16, u32, u16, i16, u32) G(X, 32, u32, u32, i32, u32) G(X, 64, u64, u64, i64, u64)

#define BINARY_OPS(X, W, S, U, I, M)                                          \
    X(add_b##W, S, U, U, (M)a + b)                                            \
    X(sub_b##W, S, U, U, (M)a - b)                                            \
    X(mul_lo_b##W, S, U, U, (M)a * b)                                         \
    X(min_u##W, S, U, U, a < b ? a : b)                                       \
    X(min_s##W, S, U, I, a < b ? a : b)                                       \
    X(max_u##W, S, U, U, a > b ? a : b)                                       \
    X(max_s##W, S, U, I, a > b ? a : b)                                       \
    X(and_b##W, S, U, U, a & b)                                               \
    X(or_b##W, S, U, U, a | b)                                                \
    X(xor_b##W, S, U, U, a ^ b)                                               \
    X(div_u##W, S, U, U, b ? a / b : (U)-1)                                   \
    X(div_s##W, S, U, I, b == 0 ? -1 : b == -1 ? (I)(0 - (M)a) : a / b)       \
    X(rem_u##W, S, U, U, b ? a % b : a)                                       \
    X(rem_s##W, S, U, I, b == 0 ? a : b == -1 ? 0 : a % b)

#define UNARY_OPS(X, W, S, U, I, M)      \
    X(not_b##W, S, U, U, ~a)             \
    X(neg_b##W, S, U, U, 0 - (M)a)       \
    X(cnot_b##W, S, U, U, a == 0)        \
    X(abs_s##W, S, U, I, a < 0 ? 0 - (M)a : (M)a) \
    X(mov_b##W, S, U, U, a)

/* The shift count is always a 32-bit register; counts of the width and above give 0 or the sign. */
#define SHIFT_OPS(X, W, S, U, I, M)                              \
    X(shl_b##W, S, U, U, n >= W ? 0 : (M)a << n)                 \
    X(shr_u##W, S, U, U, n >= W ? 0 : a >> n)                    \
    X(shr_s##W, S, U, I, n >= W ? (a < 0 ? -1 : 0) : a >> n)

#define MAD_OPS(X, W, S, U, I, M) X(mad_lo_b##W, S, U, (M)a * b + c)

#define COMPARE_OPS(X, W, S, U, I, M)                                          \
    X(setp_eq_b##W, S, U, a == b) X(setp_ne_b##W, S, U, a != b)                \
    X(setp_lt_u##W, S, U, a < b) X(setp_le_u##W, S, U, a <= b)                 \
    X(setp_gt_u##W, S, U, a > b) X(setp_ge_u##W, S, U, a >= b)                 \
    X(setp_lt_s##W, S, I, a < b) X(setp_le_s##W, S, I, a <= b)                 \
    X(setp_gt_s##W, S, I, a > b) X(setp_ge_s##W, S, I, a >= b)

/* Results whose width differs from the sources': mul.wide and mul.hi. D: slot of the result, T: its type. */
#define MIXED_OPS(X)                                                                        \
    X(mul_wide_u16, u32, u32, u16, (u32)a * b) X(mul_wide_s16, u32, u32, i16, (i32)a * b)   \
    X(mul_wide_u32, u64, u32, u32, (u64)a * b) X(mul_wide_s32, u64, u32, i32, (i64)a * b)   \
    X(mul_hi_u16, u32, u32, u16, ((u32)a * b) >> 16)                                        \
    X(mul_hi_s16, u32, u32, i16, (u16)(((i32)a * b) >> 16))                                 \
    X(mul_hi_u32, u32, u32, u32, ((u64)a * b) >> 32)                                        \
    X(mul_hi_s32, u32, u32, i32, ((i64)a * b) >> 32)                                        \
    X(mul_hi_u64, u64, u64, u64, ((unsigned __int128)a * b) >> 64)                          \
    X(mul_hi_s64, u64, u64, i64, ((__int128)a * b) >> 64)                                   \
    X(add_sat_s32, u32, u32, i32, clamp_s32((i64)a + b)) X(sub_sat_s32, u32, u32, i32, clamp_s32((i64)a - b)) \
    X(add_sat_u32, u32, u32, u32, a + b < a ? FULL : a + b)                                 \
    X(min_relu_s32, u32, u32, i32, a < b ? (a < 0 ? 0 : a) : (b < 0 ? 0 : b))               \
    X(max_relu_s32, u32, u32, i32, a > b ? (a < 0 ? 0 : a) : (b < 0 ? 0 : b))               \
    X(mul24_lo_u32, u32, u32, u32, u24(a) * u24(b)) X(mul24_lo_s32, u32, u32, u32, (u64)(s24(a) * s24(b))) \
    X(mul24_hi_u32, u32, u32, u32, (u64)u24(a) * u24(b) >> 16) X(mul24_hi_s32, u32, u32, u32, s24(a) * s24(b) >> 16)
#define MIXED_MAD_OPS(X)                                                                                   \
    X(mad_wide_u16, u32, u32, u16, (u32)a * b + c) X(mad_wide_s16, u32, u32, i16, (u32)((i32)a * b) + c)   \
    X(mad_wide_u32, u64, u32, u32, (u64)a * b + c) X(mad_wide_s32, u64, u32, i32, (u64)((i64)a * b) + c)   \
    X(mad_hi_u32, u32, u32, u32, (u32)(((u64)a * b) >> 32) + c)                                            \
    X(mad_hi_s32, u32, u32, i32, (u32)(((i64)a * b) >> 32) + c)                                            \
    X(mad_hi_u16, u32, u32, u16, (u16)(((u32)a * b >> 16) + c)) X(mad_hi_s16, u32, u32, i16, (u16)((u32)((i32)a * b >> 16) + c)) \
    X(mad_hi_u64, u64, u64, u64, (u64)(((unsigned __int128)a * b) >> 64) + c)                              \
    X(mad_hi_s64, u64, u64, i64, (u64)(((__int128)a * b) >> 64) + c)                                       \
    X(mad_hi_sat_s32, u32, u32, i32, clamp_s32((((i64)a * b) >> 32) + (i32)c))                             \
    X(mad24_lo_u32, u32, u32, u32, u24(a) * u24(b) + c) X(mad24_lo_s32, u32, u32, u32, (u32)(s24(a) * s24(b)) + c) \
    X(mad24_hi_u32, u32, u32, u32, (u32)((u64)u24(a) * u24(b) >> 16) + c)                                  \
    X(mad24_hi_s32, u32, u32, u32, (u32)(s24(a) * s24(b) >> 16) + c)                                       \
    X(mad24_hi_sat_s32, u32, u32, u32, clamp_s32((s24(a) * s24(b) >> 16) + (i32)c))                        \
    X(sad_u16, u32, u32, u16, (u16)(c + (u32)(a < b ? b - a : a - b))) X(sad_s16, u32, u32, i16, (u16)(c + (u32)(a < b ? b - a : a - b))) \
    X(sad_u32, u32, u32, u32, c + (a < b ? b - a : a - b)) X(sad_s32, u32, u32, i32, c + (a < b ? (u32)b - (u32)a : (u32)a - (u32)b)) \
    X(sad_u64, u64, u64, u64, c + (a < b ? b - a : a - b)) X(sad_s64, u64, u64, i64, c + (a < b ? (u64)b - (u64)a : (u64)a - (u64)b))
/* Two 16-bit integers in a word; T: signed or not, the expression wraps. */
#define PAIR_OPS(X)                                                                                   \
    X(add_u16x2, u16, a + b) X(add_s16x2, i16, a + b)                                                 \
    X(add_sat_u16x2, u16, a + b > 0xFFFF ? 0xFFFF : a + b)                                            \
    X(add_sat_s16x2, i16, a + b > 0x7FFF ? 0x7FFF : a + b < -0x8000 ? -0x8000 : a + b)                \
    X(min_u16x2, u16, a < b ? a : b) X(min_s16x2, i16, a < b ? a : b)                                 \
    X(max_u16x2, u16, a > b ? a : b) X(max_s16x2, i16, a > b ? a : b)                                 \
    X(min_relu_s16x2, i16, a < b ? (a < 0 ? 0 : a) : (b < 0 ? 0 : b))                                 \
    X(max_relu_s16x2, i16, a > b ? (a < 0 ? 0 : a) : (b < 0 ? 0 : b))

INLINE u32 clamp_s32(i64 v) { return (u32)(v > INT32_MAX ? INT32_MAX : v < INT32_MIN ? INT32_MIN : v); }
INLINE u32 u24(u32 v) { return v & 0xFFFFFF; }
INLINE i64 s24(u32 v) { return (i32)(v << 8) >> 8; }

#define DEFINE_BINARY(name, S, U, T, expression)                 \
    VECTOR static void name(Warp *w, const Insn *i, u32 active) { \
        S *d = SLOT(0);                                          \
        const S *x = SLOT(1), *y = SLOT(2);                      \
        LANEWISE(T a = (T)x[l]; T b = (T)y[l]; d[l] = (U)(expression);) \
    }
#define DEFINE_UNARY(name, S, U, T, expression)                  \
    VECTOR static void name(Warp *w, const Insn *i, u32 active) { \
        S *d = SLOT(0);                                          \
        const S *x = SLOT(1);                                    \
        LANEWISE(T a = (T)x[l]; d[l] = (U)(expression);)         \
    }
#define DEFINE_SHIFT(name, S, U, T, expression)                  \
    VECTOR static void name(Warp *w, const Insn *i, u32 active) { \
        S *d = SLOT(0);                                          \
        const S *x = SLOT(1);                                    \
        const u32 *y = SLOT(2);                                  \
        if (w->m->checks & CHECK_SHIFT) check_shift(w, i, active, 8 * sizeof(U)); \
        LANEWISE(T a = (T)x[l]; u32 n = y[l]; d[l] = (U)(expression);) \
    }
/* Opt-in: PTX defines these shifts, C does not. */
static void check_shift(Warp *w, const Insn *i, u32 active, u32 width) {
    const u32 *count = SLOT(2), defined = ~w->undefined[i->operand[2]];
    EACH(active & defined, l) if (count[l] >= width) report(w, i, F_SHIFT, l, count[l], width, 0);
}
#define DEFINE_MAD(name, S, U, expression)                       \
    VECTOR static void name(Warp *w, const Insn *i, u32 active) { \
        S *d = SLOT(0);                                          \
        const S *x = SLOT(1), *y = SLOT(2), *z = SLOT(3);        \
        LANEWISE(U a = (U)x[l]; U b = (U)y[l]; U c = (U)z[l]; d[l] = (U)(expression);) \
    }
#define DEFINE_MIXED(name, D, S, T, expression)                  \
    VECTOR static void name(Warp *w, const Insn *i, u32 active) { \
        D *d = SLOT(0);                                          \
        const S *x = SLOT(1), *y = SLOT(2);                      \
        LANEWISE(T a = (T)x[l]; T b = (T)y[l]; d[l] = (D)(expression);) \
    }
#define DEFINE_MIXED_MAD(name, D, S, T, expression)              \
    VECTOR static void name(Warp *w, const Insn *i, u32 active) { \
        D *d = SLOT(0);                                          \
        const S *x = SLOT(1), *y = SLOT(2);                      \
        const D *z = SLOT(3);                                    \
        LANEWISE(T a = (T)x[l]; T b = (T)y[l]; D c = z[l]; d[l] = (D)(expression);) \
    }

#define DEFINE_PAIR(name, T, expression)                          \
    INLINE u32 name##_half(u32 x, u32 y) {                        \
        const i32 a = (T)x, b = (T)y;                             \
        return (u16)(expression);                                 \
    }                                                             \
    VECTOR static void name(Warp *w, const Insn *i, u32 active) { \
        u32 *d = SLOT(0);                                         \
        const u32 *x = SLOT(1), *y = SLOT(2);                     \
        LANEWISE(d[l] = name##_half(x[l], y[l]) | name##_half(x[l] >> 16, y[l] >> 16) << 16;) \
    }

#define DEFINE_COMPARE(name, S, T, expression)                    \
    VECTOR static void name(Warp *w, const Insn *i, u32 active) { \
        const S *x = SLOT(i->dsts), *y = SLOT(i->dsts + 1);       \
        u32 p = 0;                                                \
        for (int l = 0; l < LANES; l++) {                         \
            T a = (T)x[l], b = (T)y[l];                           \
            p |= (u32)(expression) << l;                          \
        }                                                         \
        finish_setp(w, i, active, p);                             \
    }

#define EXPAND_BINARY(X, ...) BINARY_OPS(X, __VA_ARGS__)
#define EXPAND_UNARY(X, ...) UNARY_OPS(X, __VA_ARGS__)
#define EXPAND_SHIFT(X, ...) SHIFT_OPS(X, __VA_ARGS__)
#define EXPAND_MAD(X, ...) MAD_OPS(X, __VA_ARGS__)
#define EXPAND_COMPARE(X, ...) COMPARE_OPS(X, __VA_ARGS__)
WIDTHS(EXPAND_BINARY, DEFINE_BINARY)
WIDTHS(EXPAND_UNARY, DEFINE_UNARY)
WIDTHS(EXPAND_SHIFT, DEFINE_SHIFT)
WIDTHS(EXPAND_MAD, DEFINE_MAD)
WIDTHS(EXPAND_COMPARE, DEFINE_COMPARE)
MIXED_OPS(DEFINE_MIXED)
MIXED_MAD_OPS(DEFINE_MIXED_MAD)
PAIR_OPS(DEFINE_PAIR)

/* Extended precision: d = a + b + carry and the like. The carry is a predicate of its own, the last source and the last
 * destination of those that take and leave it. Hardware adds to subtract: a + ~b + 1, whose carry says that nothing was
 * borrowed. It shows where addc follows sub.cc, as in nvcc's division of 128 bits. mod[0]: bits below; mod[1]: register
 * bits. */
enum { CARRY_IN = 1, CARRY_OUT = 2, SUBTRACTS = 4, MULTIPLIES = 8, HIGH_HALF = 16, IS_SIGNED = 32 };
static u64 high_product(u64 a, u64 b, u32 bits, bool is_signed) {
    if (bits == 32) return is_signed ? (u32)((i64)(i32)a * (i32)b >> 32) : a * b >> 32;
    return is_signed ? (u64)((__int128)(i64)a * (i64)b >> 64) : (u64)((unsigned __int128)a * b >> 64);
}
static void extended(Warp *w, const Insn *i, u32 active) {
    const u32 how = i->mod[0], bits = i->mod[1], first = i->dsts, last = (u32)i->dsts + i->srcs - 1;
    const u64 mask = bits == 64 ? ~(u64)0 : FULL;
    const u32 carry = how & CARRY_IN ? get_predicate(w, i->operand[last]) : how & SUBTRACTS ? FULL : 0;
    u32 out = 0;
    EACH(active, l) {
        u64 a = get_lane(w, i, first, l), b = get_lane(w, i, first + 1, l);
        unsigned __int128 sum;
        if (how & MULTIPLIES) {
            a = how & HIGH_HALF ? high_product(a, b, bits, how & IS_SIGNED) : a * b & mask;
            b = get_lane(w, i, first + 2, l);
        }
        sum = (unsigned __int128)a + (how & SUBTRACTS ? ~b & mask : b) + (carry >> l & 1);
        set_lane(w, i, 0, l, (u64)sum & mask);
        out |= (u32)(sum >> bits & 1) << l;
    }
    if (how & CARRY_OUT) set_predicate(w, i->operand[1], active, out);
}

/* lop3: mod[0] is the truth table, bit a<<2 | b<<1 | c. */
VECTOR static void lop3_b32(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1), *y = SLOT(2), *z = SLOT(3);
    u32 k[8]; /* of the exclusive sum k0 ^ k1 c ^ k2 b ^ k3 bc ^ k4 a ^ k5 ac ^ k6 ab ^ k7 abc */
    for (int n = 0; n < 8; n++) k[n] = 0 - (i->mod[0] >> n & 1);
    for (int step = 1; step < 8; step *= 2)
        for (int n = 0; n < 8; n++) k[n] ^= n & step ? k[n - step] : 0;
    LANEWISE(u32 b = y[l]; u32 c = z[l]; u32 bc = b & c;
             d[l] = k[0] ^ (k[1] & c) ^ (k[2] & b) ^ (k[3] & bc) ^ (x[l] & (k[4] ^ (k[5] & c) ^ (k[6] & b) ^ (k[7] & bc)));)
}

static u32 permute(u32 a, u32 b, u32 selector, u32 mode) {
    u8 bytes[8];
    u32 result = 0, s = selector & 3; /* the modes with a name; generic mode is prmt_b32's own loop */
    for (u32 n = 0; n < 4; n++) bytes[n] = (u8)(a >> 8 * n), bytes[n + 4] = (u8)(b >> 8 * n);
    for (u32 n = 0; n < 4; n++) {
        u32 index;
        switch (mode) {
        case 1: index = s + n; break;                          /* f4e */
        case 2: index = (s - n) & 7; break;                    /* b4e */
        case 3: index = s; break;                              /* rc8 */
        case 4: index = n > s ? n : s; break;                  /* ecl */
        case 5: index = n < s ? n : s; break;                  /* ecr */
        default: index = (s & 1) * 2 + (n & 1);                /* rc16 */
        }
        result |= (u32)bytes[index] << 8 * n;
    }
    return result;
}
/* Generic mode, one byte: shift the pair of words, then replicate the sign if the selector's top bit says so. */
INLINE u32 permute_byte(u64 pair, u32 nibble) {
    const u32 byte = (u32)(pair >> 8 * (nibble & 7)) & 255, sign = (u32)0 - (byte >> 7);
    return nibble & 8 ? sign & 255 : byte;
}
VECTOR static void prmt_b32(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0), others = 0;
    const u32 *x = SLOT(1), *y = SLOT(2), *z = SLOT(3), s = z[0];
    for (u32 l = 1; l < LANES; l++) others |= z[l] ^ s;
    if (i->mod[0] == 0 && !others && !(s & 0x8888)) { /* the same bytes in all lanes, most often */
        const u32 *b0 = s & 4 ? y : x, *b1 = s & 0x40 ? y : x, *b2 = s & 0x400 ? y : x, *b3 = s & 0x4000 ? y : x;
        const u32 n0 = s % 4 * 8, n1 = s / 16 % 4 * 8, n2 = s / 256 % 4 * 8, n3 = s / 4096 % 4 * 8;
        LANEWISE(d[l] = (b0[l] >> n0 & 255) | (b1[l] >> n1 & 255) << 8 | (b2[l] >> n2 & 255) << 16 | b3[l] >> n3 << 24;)
        return;
    }
    if (i->mod[0] == 0) {
        LANEWISE(u64 pair = (u64)y[l] << 32 | x[l]; u32 s = z[l];
                 d[l] = permute_byte(pair, s) | permute_byte(pair, s >> 4) << 8 | permute_byte(pair, s >> 8) << 16 |
                        permute_byte(pair, s >> 12) << 24;)
        return;
    }
    LANEWISE(d[l] = permute(x[l], y[l], z[l], i->mod[0]);)
}

/* shf: mod[0]: 0 left, 1 right; mod[1]: 0 clamp, 1 wrap. */
VECTOR static void shf_b32(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1), *y = SLOT(2), *z = SLOT(3);
    const u32 right = i->mod[0], wrap = i->mod[1];
    LANEWISE(u64 pair = (u64)y[l] << 32 | x[l]; u32 n = wrap ? z[l] & 31 : z[l] > 32 ? 32 : z[l];
             d[l] = right ? (u32)(pair >> n) : (u32)((pair << n) >> 32);)
}

#define BITFIELD(W, U, I)                                                                          \
    static U extract_u##W(U a, u32 position, u32 length) {                                         \
        if (length == 0 || position >= W) return 0;                                                \
        return a >> position & (length >= W ? (U)-1 : ((U)1 << length) - 1);                       \
    }                                                                                              \
    static U extract_s##W(U a, u32 position, u32 length) {                                         \
        u32 last = position + length - 1 < W - 1 ? position + length - 1 : W - 1;                  \
        bool sign;                                                                                 \
        if (length == 0) return 0;                                                                 \
        sign = a >> last & 1;                                                                      \
        if (position >= W) return sign ? (U)-1 : 0;                                                \
        a = extract_u##W(a, position, length);                                                     \
        if (sign && last - position + 1 < W) a |= (U)-1 << (last - position + 1);                  \
        return a;                                                                                  \
    }                                                                                              \
    static U insert_b##W(U a, U b, u32 position, u32 length) {                                     \
        U mask = length >= W ? (U)-1 : ((U)1 << length) - 1;                                       \
        if (position >= W) return b;                                                               \
        return (b & ~(mask << position)) | (a & mask) << position;                                 \
    }                                                                                              \
    static void bfe_u##W(Warp *w, const Insn *i, u32 active) {                                     \
        U *d = SLOT(0);                                                                            \
        const U *x = SLOT(1);                                                                      \
        const u32 *y = SLOT(2), *z = SLOT(3);                                                      \
        LANEWISE(d[l] = extract_u##W(x[l], y[l] & 255, z[l] & 255);)                               \
    }                                                                                              \
    static void bfe_s##W(Warp *w, const Insn *i, u32 active) {                                     \
        U *d = SLOT(0);                                                                            \
        const U *x = SLOT(1);                                                                      \
        const u32 *y = SLOT(2), *z = SLOT(3);                                                      \
        LANEWISE(d[l] = extract_s##W(x[l], y[l] & 255, z[l] & 255);)                               \
    }                                                                                              \
    static void bfi_b##W(Warp *w, const Insn *i, u32 active) {                                     \
        U *d = SLOT(0);                                                                            \
        const U *x = SLOT(1), *y = SLOT(2);                                                        \
        const u32 *z = SLOT(3), *v = SLOT(4);                                                      \
        LANEWISE(d[l] = insert_b##W(x[l], y[l], z[l] & 255, v[l] & 255);)                          \
    }                                                                                              \
    static void popc_b##W(Warp *w, const Insn *i, u32 active) {                                    \
        u32 *d = SLOT(0);                                                                          \
        const U *x = SLOT(1);                                                                      \
        LANEWISE(d[l] = (u32)__builtin_popcountll(x[l]);)                                          \
    }                                                                                              \
    static void clz_b##W(Warp *w, const Insn *i, u32 active) {                                     \
        u32 *d = SLOT(0);                                                                          \
        const U *x = SLOT(1);                                                                      \
        LANEWISE(d[l] = x[l] ? (u32)__builtin_clzll(x[l]) - (64 - W) : W;)                         \
    }                                                                                              \
    static void brev_b##W(Warp *w, const Insn *i, u32 active) {                                    \
        U *d = SLOT(0);                                                                            \
        const U *x = SLOT(1);                                                                      \
        LANEWISE(U r = 0; for (int bit = 0; bit < W; bit++) r |= (x[l] >> bit & 1) << (W - 1 - bit); d[l] = r;) \
    }
BITFIELD(32, u32, i32)
BITFIELD(64, u64, i64)

/* The place of the highest bit that differs from the sign (signed: mod[0]), or of the highest 1; mod[1]: as the shift
 * that would bring it to the top; mod[2]: bits. */
static void bfind(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    EACH(active, l) {
        u64 a = get_lane(w, i, 1, l);
        u32 place;
        if (i->mod[0] && i->mod[2] == 32) a = (u64)(i64)(i32)a;
        if (i->mod[0] && (i64)a < 0) a = ~a;
        place = a ? 63 - (u32)__builtin_clzll(a) : FULL;
        d[l] = i->mod[1] && place != FULL ? i->mod[2] - 1 - place : place;
    }
}

/* fns d, mask, base, offset: the offset-th set bit from base on, upwards or downwards; offset 0: base itself. */
static void fns(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *mask = SLOT(1), *base = SLOT(2);
    const i32 *offset = SLOT(3);
    EACH(active, l) {
        const i32 step = offset[l] < 0 ? -1 : 1;
        u32 left = offset[l] < 0 ? 0 - (u32)offset[l] : offset[l] ? (u32)offset[l] : 1;
        d[l] = FULL;
        for (i32 place = (i32)(base[l] & 31); place >= 0 && place < 32; place += step) {
            if (mask[l] >> place & 1 && --left == 0) d[l] = (u32)place;
            if (left == 0 || offset[l] == 0) break;
        }
    }
}

/* bmsk: b bits from bit a on; mod[0]: 0 clamp, 1 wrap. */
VECTOR static void bmsk(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1), *y = SLOT(2);
    const u32 wrap = i->mod[0];
    LANEWISE(u64 from = (u64)FULL << (x[l] & 31); u32 end = (x[l] & 31) + (y[l] & 31);
             u32 below = end >= 32 || (!wrap && y[l] >= 32) ? FULL : ((u32)1 << (end & 31)) - 1;
             d[l] = !wrap && x[l] >= 32 ? 0 : (u32)from & below;)
}

/* szext: extend the low b bits; mod[0]: 0 clamp, 1 wrap; mod[1]: signed. */
VECTOR static void szext(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1), *y = SLOT(2);
    const u32 wrap = i->mod[0], is_signed = i->mod[1];
    LANEWISE(u32 n = y[l] & 31; u32 a = x[l]; u32 up = (32 - n) & 31;
             u32 low = n ? is_signed ? (u32)((i32)(a << up) >> up) : a << up >> up : 0;
             d[l] = !wrap && y[l] >= 32 ? a : low;)
}

/* lop3 with a predicate: p = (d != 0) joined with q. mod[0]: table; mod[1]: 1 and, 2 or; mod[2]: negate q. */
static void lop3_pred(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0), p = 0;
    const u32 *x = SLOT(2), *y = SLOT(3), *z = SLOT(4), q = get_predicate(w, i->operand[5]) ^ (i->mod[2] ? FULL : 0);
    EACH(active, l) {
        u32 value = 0;
        for (u32 row = 0; row < 8; row++)
            if (i->mod[0] >> row & 1) value |= (row & 4 ? x[l] : ~x[l]) & (row & 2 ? y[l] : ~y[l]) & (row & 1 ? z[l] : ~z[l]);
        d[l] = value;
        p |= (u32)(value != 0) << l;
    }
    set_predicate(w, i->operand[1], active, join_predicates(p, q, i->mod[1]));
}

/* dp2a: two 16-bit numbers of a by two bytes of b; mod[0], mod[1]: a, b are signed; mod[2]: b's upper bytes. */
static void dp2a(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1), *y = SLOT(2), *z = SLOT(3);
    LANEWISE(u32 sum = z[l]; u32 bytes = y[l] >> 16 * i->mod[2]; for (int n = 0; n < 2; n++) {
        i32 a = i->mod[0] ? (i16)(x[l] >> 16 * n) : (i32)(u16)(x[l] >> 16 * n);
        i32 b = i->mod[1] ? (i8)(bytes >> 8 * n) : (i32)(u8)(bytes >> 8 * n);
        sum += (u32)(a * b);
    } d[l] = sum;)
}

/* dp4a: mod[0], mod[1]: a, b are signed. */
static void dp4a(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1), *y = SLOT(2), *z = SLOT(3);
    LANEWISE(u32 sum = z[l]; for (int n = 0; n < 4; n++) {
        i32 a = i->mod[0] ? (i8)(x[l] >> 8 * n) : (i32)(u8)(x[l] >> 8 * n);
        i32 b = i->mod[1] ? (i8)(y[l] >> 8 * n) : (i32)(u8)(y[l] >> 8 * n);
        sum += (u32)(a * b);
    } d[l] = sum;)
}

/* selp d, a, b, p: only the chosen operand's undefined bits count. */
#define SELECT(name, S)                                                                                 \
    VECTOR static void name(Warp *w, const Insn *i, u32 active) {                                       \
        S *d = SLOT(0);                                                                                 \
        const S *x = SLOT(1), *y = SLOT(2);                                                             \
        const u32 p = get_predicate(w, i->operand[3]) ^ (i->mod[0] ? FULL : 0), *u = w->undefined;      \
        LANEWISE(d[l] = p >> l & 1 ? x[l] : y[l];)                                                      \
        set_undefined(w, i->operand[0], active,                                                         \
                      (u[i->operand[1]] & p) | (u[i->operand[2]] & ~p) | u[i->operand[3]]);             \
    }
SELECT(selp_b32, u32)
SELECT(selp_b64, u64)

/* slct d, a, b, c: a where c >= 0. mod[0]: 1 where c is f32; mod[1]: flush it. */
static void slct(Warp *w, const Insn *i, u32 active) {
    const u32 *c = SLOT(3), *u = w->undefined;
    u32 p = 0;
    EACH(active, l) {
        const u32 magnitude = c[l] & 0x7FFFFFFF;
        const bool zero = magnitude == 0 || (i->mod[1] && magnitude < 0x800000);
        const bool first = i->mod[0] ? magnitude <= 0x7F800000 && (zero || !(c[l] >> 31)) : !(c[l] >> 31);
        set_lane(w, i, 0, l, get_lane(w, i, first ? 1 : 2, l));
        p |= (u32)first << l;
    }
    set_undefined(w, i->operand[0], active, (u[i->operand[1]] & p) | (u[i->operand[2]] & ~p) | u[i->operand[3]]);
}

static u32 truth(u32 t, u32 a, u32 b) {
    return (t & 1 ? ~a & ~b : 0) | (t & 2 ? ~a & b : 0) | (t & 4 ? a & ~b : 0) | (t & 8 ? a & b : 0);
}

/* Predicate logic; mod[0] is the truth table over a and b, bit a<<1 | b. An undefined operand counts only where the other
 * leaves the result to it: what compilers make of && and ||. */
static void logic_pred(Warp *w, const Insn *i, u32 active) {
    const bool both = i->srcs > 1;
    const u32 t = i->mod[0], *u = w->undefined, ua = u[i->operand[1]], ub = both ? u[i->operand[2]] : 0;
    const u32 a = get_predicate(w, i->operand[1]), b = both ? get_predicate(w, i->operand[2]) : 0, d = truth(t, a, b);
    const u32 undefined = ((d ^ truth(t, ~a, b)) & ua) | ((d ^ truth(t, a, ~b)) & ub) | ((d ^ truth(t, ~a, ~b)) & ua & ub);
    set_predicate(w, i->operand[0], active, d);
    set_undefined(w, i->operand[0], active, undefined);
}

/* Vector moves: pack sources of mod[0] bits into a register (of 128 bits: two), or unpack one into several. A packed
 * register counts as written when a part of it is: compilers fill up with what they never read. */
VECTOR static void pack(Warp *w, const Insn *i, u32 active) {
    const u32 bits = i->mod[0];
    u32 undefined = FULL;
    for (u32 s = 0; s < i->srcs; s++) undefined &= w->undefined[i->operand[i->dsts + s]];
    if (bits == 16 && i->srcs == 2) {
        u32 *d = SLOT(0);
        const u32 *x = SLOT(1), *y = SLOT(2);
        LANEWISE(d[l] = (x[l] & 0xFFFF) | y[l] << 16;)
    } else if (bits == 32 && i->srcs == 2) {
        u64 *d = SLOT(0);
        const u32 *x = SLOT(1), *y = SLOT(2);
        LANEWISE(d[l] = (u64)y[l] << 32 | x[l];)
    } else EACH(active, l) {
        const u64 mask = bits == 64 ? ~(u64)0 : ((u64)1 << bits) - 1;
        u64 value[2] = {0, 0};
        for (u32 s = 0; s < i->srcs; s++) value[bits * s / 64] |= (get_lane(w, i, i->dsts + s, l) & mask) << bits * s % 64;
        for (u32 d = 0; d < i->dsts; d++) set_lane(w, i, d, l, value[d]);
    }
    for (u32 d = 0; d < i->dsts; d++) set_undefined(w, i->operand[d], active, undefined);
}
VECTOR static void unpack(Warp *w, const Insn *i, u32 active) {
    const u32 bits = i->mod[0];
    u32 undefined = 0;
    for (u32 s = 0; s < i->srcs; s++) undefined |= w->undefined[i->operand[i->dsts + s]];
    if (bits == 16 && i->dsts == 2) {
        u32 *d = SLOT(0), *e = SLOT(1);
        const u32 *x = SLOT(2);
        LANEWISE(d[l] = x[l] & 0xFFFF; e[l] = x[l] >> 16;)
    } else if (bits == 32 && i->dsts == 2) {
        u32 *d = SLOT(0), *e = SLOT(1);
        const u64 *x = SLOT(2);
        LANEWISE(d[l] = (u32)x[l]; e[l] = (u32)(x[l] >> 32);)
    } else EACH(active, l) {
        const u64 mask = bits == 64 ? ~(u64)0 : ((u64)1 << bits) - 1;
        for (u32 d = 0; d < i->dsts; d++)
            set_lane(w, i, d, l, get_lane(w, i, i->dsts + bits * d / 64, l) >> bits * d % 64 & mask);
    }
    for (u32 d = 0; d < i->dsts; d++) set_undefined(w, i->operand[d], active, undefined);
}
/* Each source to its destination, all read first. */
static void mov_several(Warp *w, const Insn *i, u32 active) {
    u32 undefined[4];
    EACH(active, l) {
        u64 value[4];
        for (u32 n = 0; n < i->dsts; n++) value[n] = get_lane(w, i, i->dsts + n, l);
        for (u32 n = 0; n < i->dsts; n++) set_lane(w, i, n, l, value[n]);
    }
    for (u32 n = 0; n < i->dsts; n++) undefined[n] = w->undefined[i->operand[i->dsts + n]];
    for (u32 n = 0; n < i->dsts; n++) set_undefined(w, i->operand[n], active, undefined[n]);
}

#define ENTRY(name, ...) {#name, name, 0},
const Opcode integer_ops[] = {
    WIDTHS(EXPAND_BINARY, ENTRY) WIDTHS(EXPAND_UNARY, ENTRY) WIDTHS(EXPAND_SHIFT, ENTRY)
    WIDTHS(EXPAND_MAD, ENTRY) WIDTHS(EXPAND_COMPARE, ENTRY) MIXED_OPS(ENTRY) MIXED_MAD_OPS(ENTRY)
    ENTRY(lop3_b32) ENTRY(prmt_b32) ENTRY(shf_b32)
    ENTRY(bfe_u32) ENTRY(bfe_s32) ENTRY(bfi_b32) ENTRY(popc_b32) ENTRY(clz_b32) ENTRY(brev_b32)
    ENTRY(bfe_u64) ENTRY(bfe_s64) ENTRY(bfi_b64) ENTRY(popc_b64) ENTRY(clz_b64) ENTRY(brev_b64)
    PAIR_OPS(ENTRY) ENTRY(extended) ENTRY(bfind) ENTRY(fns) ENTRY(bmsk) ENTRY(szext) ENTRY(lop3_pred)
    ENTRY(dp2a) ENTRY(dp4a) {"logic_pred", logic_pred, OWN_UNDEFINED}, {"slct", slct, OWN_UNDEFINED},
    {"selp_b32", selp_b32, OWN_UNDEFINED}, {"selp_b64", selp_b64, OWN_UNDEFINED},
    {"pack", pack, OWN_UNDEFINED}, {"unpack", unpack, OWN_UNDEFINED}, {"mov_several", mov_several, OWN_UNDEFINED},
    {0}};
