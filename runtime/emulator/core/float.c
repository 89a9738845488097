/* Floating-point arithmetic and comparisons. Approximate instructions give the correctly rounded or libm value, which is
 * within their documented error. NaN results are canonical (0x7FFFFFFF, 0x7FFF), as on the GPU. */
#include "numbers.h"
#include <fenv.h>

enum { FTZ = 1, SAT = 2, RELU = 4, PROPAGATE_NAN = 8, XORSIGN = 16, ABSOLUTE = 32 }; /* mod[0] */

INLINE float flush(float f) { return fabsf(f) < 0x1p-126f ? copysignf(0, f) : f; }
static float adjust(float f, u32 flags) {
    if (flags & FTZ) f = flush(f);
    if (flags & SAT) f = f > 0 ? (f < 1 ? f : 1) : 0; /* NaN becomes 0 */
    if (flags & RELU) f = f > 0 || f != f ? f : 0;
    return f;
}
/* -0 is below +0; a NaN loses against a number unless it is asked to win. */
#define MINIMUM(T, suffix)                                                                         \
    INLINE T min_##suffix(T a, T b) {                                                       \
        if (a != a) return b;                                                                      \
        if (b != b) return a;                                                                      \
        return a == b ? (signbit(a) ? a : b) : a < b ? a : b;                                      \
    }                                                                                              \
    INLINE T max_##suffix(T a, T b) {                                                       \
        if (a != a) return b;                                                                      \
        if (b != b) return a;                                                                      \
        return a == b ? (signbit(a) ? b : a) : a > b ? a : b;                                      \
    }
MINIMUM(float, f)
MINIMUM(double, d)

#define F32_BINARY(X) X(add, a + b) X(sub, a - b) X(mul, a * b) X(div, a / b)
#define F32_EXTREME(X) X(min, min_f(a, b)) X(max, max_f(a, b))
#define F32_UNARY(X)                                                                                     \
    X(rcp, 1 / a) X(sqrt, sqrtf(a)) X(rsqrt, (float)(1 / sqrt((double)a)))                               \
    X(ex2, exp2f(a)) X(lg2, log2f(a)) X(sin, sinf(a)) X(cos, cosf(a)) X(tanh, tanhf(a))
/* div.approx: a quotient by more than 2^126 is 0. */
#define F32_DIVIDE(X) X(div_approx, fabsf(b) > 0x1p126f && !isinf(b) && a == a ? (isinf(a) ? NAN : copysignf(0, a) * copysignf(1, b)) : a / b)

#define DEFINE_F32_BINARY(name, expression)                                                   \
    VECTOR static void name##_f32(Warp *w, const Insn *i, u32 active) {                       \
        u32 *d = SLOT(0);                                                                     \
        const float *x = SLOT(1), *y = SLOT(2);                                               \
        const u32 flags = i->mod[0];                                                          \
        if (!flags) {                                                                         \
            LANEWISE(float a = x[l]; float b = y[l]; d[l] = canonical(expression);)           \
            return;                                                                           \
        }                                                                                     \
        if (flags == FTZ) {                                                                   \
            LANEWISE(float a = flush(x[l]); float b = flush(y[l]); d[l] = canonical(flush(expression));) \
            return;                                                                           \
        }                                                                                     \
        EACH(active, l) {                                                                     \
            float a = flags & FTZ ? flush(x[l]) : x[l], b = flags & FTZ ? flush(y[l]) : y[l]; \
            d[l] = canonical(adjust(expression, flags));                                      \
        }                                                                                     \
    }
#define DEFINE_F32_EXTREME(name, expression)                                                  \
    static void name##_f32(Warp *w, const Insn *i, u32 active) {                              \
        u32 *d = SLOT(0);                                                                     \
        const float *x = SLOT(1), *y = SLOT(2);                                               \
        const u32 flags = i->mod[0];                                                          \
        LANEWISE(float a = flags & FTZ ? flush(x[l]) : x[l];                                  \
                 float b = flags & FTZ ? flush(y[l]) : y[l];                                  \
                 d[l] = flags & PROPAGATE_NAN && (a != a || b != b) ? CANONICAL_NAN : canonical(expression);) \
    }
#define DEFINE_F32_UNARY(name, expression)                                                    \
    static void name##_f32(Warp *w, const Insn *i, u32 active) {                              \
        u32 *d = SLOT(0);                                                                     \
        const float *x = SLOT(1);                                                             \
        const u32 flags = i->mod[0];                                                          \
        LANEWISE(float a = flags & FTZ ? flush(x[l]) : x[l]; d[l] = canonical(adjust(expression, flags));) \
    }
F32_BINARY(DEFINE_F32_BINARY)
F32_DIVIDE(DEFINE_F32_BINARY)
F32_EXTREME(DEFINE_F32_EXTREME)
F32_UNARY(DEFINE_F32_UNARY)

VECTOR static void fma_f32(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const float *x = SLOT(1), *y = SLOT(2), *z = SLOT(3);
    const u32 flags = i->mod[0];
    if (!flags) {
        LANEWISE(d[l] = canonical(fmaf(x[l], y[l], z[l]));)
        return;
    }
    if (flags == FTZ) {
        LANEWISE(d[l] = canonical(flush(fmaf(flush(x[l]), flush(y[l]), flush(z[l]))));)
        return;
    }
    EACH(active, l) {
        float a = x[l], b = y[l], c = z[l];
        if (flags & FTZ) a = flush(a), b = flush(b), c = flush(c);
        d[l] = canonical(adjust(fmaf(a, b, c), flags));
    }
}
static void neg_f32(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1);
    LANEWISE(d[l] = (i->mod[0] & FTZ ? bits_of_f32(flush(f32_of_bits(x[l]))) : x[l]) ^ 0x80000000u;)
}
static void abs_f32(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1);
    LANEWISE(d[l] = (i->mod[0] & FTZ ? bits_of_f32(flush(f32_of_bits(x[l]))) : x[l]) & 0x7FFFFFFFu;)
}

#define F64_BINARY(X) X(add, a + b) X(sub, a - b) X(mul, a * b) X(div, a / b) X(min, min_d(a, b)) X(max, max_d(a, b))
#define F64_UNARY(X) X(rcp, 1 / a) X(sqrt, sqrt(a)) X(neg, -a) X(abs, fabs(a)) X(rsqrt, 1 / sqrt(a))
#define DEFINE_F64_BINARY(name, expression)                                   \
    static void name##_f64(Warp *w, const Insn *i, u32 active) {              \
        double *d = SLOT(0);                                                  \
        const double *x = SLOT(1), *y = SLOT(2);                              \
        LANEWISE(double a = x[l]; double b = y[l]; d[l] = expression;)        \
    }
#define DEFINE_F64_UNARY(name, expression)                                    \
    static void name##_f64(Warp *w, const Insn *i, u32 active) {              \
        double *d = SLOT(0);                                                  \
        const double *x = SLOT(1);                                            \
        LANEWISE(double a = x[l]; d[l] = expression;)                         \
    }
F64_BINARY(DEFINE_F64_BINARY)
F64_UNARY(DEFINE_F64_UNARY)
static void fma_f64(Warp *w, const Insn *i, u32 active) {
    double *d = SLOT(0);
    const double *x = SLOT(1), *y = SLOT(2), *z = SLOT(3);
    LANEWISE(d[l] = fma(x[l], y[l], z[l]);)
}

/* f16, bf16 and their pairs. Sums and products of two are exact enough in f32 to round once more; a*b + c is not, and
 * goes through roundings to odd. */
#define HALF_TYPES(G, X) G(X, f16) G(X, bf16)
#define HALF_BINARY(X, T)                                                                                       \
    X(add, T, a + b) X(sub, T, a - b) X(mul, T, a * b)                                                          \
    X(min, T, flags & PROPAGATE_NAN && (a != a || b != b) ? NAN : min_f(a, b))                                  \
    X(max, T, flags & PROPAGATE_NAN && (a != a || b != b) ? NAN : max_f(a, b))
#define HALF_UNARY(X, T) X(ex2, T, exp2f(a)) X(tanh, T, tanhf(a))

INLINE float flush_f16(float f) { return fabsf(f) < 0x1p-14f ? copysignf(0, f) : f; }
#define flush_bf16 flush
/* A result: subnormals by their exponent field, after rounding. */
INLINE u32 flush_f16_bits(u32 h, u32 flags) { return flags & FTZ && !(h & 0x7C00) ? h & 0x8000 : h; }
INLINE u32 flush_bf16_bits(u32 h, u32 flags) { return flags & FTZ && !(h & 0x7F80) ? h & 0x8000 : h; }

/* The plain case is a branch-free loop; flags take the other. */
#define DEFINE_HALF_BINARY(name, T, expression)                                                      \
    INLINE u32 name##_##T##_value(u32 x, u32 y, u32 flags) {                                  \
        float a = f32_of_##T(x), b = f32_of_##T(y);                                                  \
        if (flags & FTZ) a = flush_##T(a), b = flush_##T(b);                                         \
        return flush_##T##_bits(T##_of_f32(adjust(expression, flags & ~(u32)FTZ)), flags);           \
    }                                                                                                \
    INLINE u32 name##_##T##_plain(u32 x, u32 y) {                                             \
        const u32 flags = 0;                                                                         \
        float a = f32_of_##T(x), b = f32_of_##T(y);                                                  \
        (void)flags;                                                                                 \
        return T##_of_f32(expression);                                                               \
    }                                                                                                \
    VECTOR static void name##_##T(Warp *w, const Insn *i, u32 active) {                              \
        u32 *d = SLOT(0);                                                                            \
        const u32 *x = SLOT(1), *y = SLOT(2), flags = i->mod[0];                                     \
        if (flags) EACH(active, l) d[l] = name##_##T##_value(x[l] & 0xFFFF, y[l] & 0xFFFF, flags);   \
        else LANEWISE(d[l] = name##_##T##_plain(x[l] & 0xFFFF, y[l] & 0xFFFF);)                      \
    }                                                                                                \
    VECTOR static void name##_##T##x2(Warp *w, const Insn *i, u32 active) {                          \
        u32 *d = SLOT(0);                                                                            \
        const u32 *x = SLOT(1), *y = SLOT(2), flags = i->mod[0];                                     \
        if (PAIRS_##name##_##T && !flags && active == FULL && half_pairs(PAIRS_##name##_##T, d, x, y, NULL)) return; \
        if (flags) EACH(active, l) {                                                                 \
            u32 low = name##_##T##_value(x[l] & 0xFFFF, y[l] & 0xFFFF, flags);                       \
            d[l] = low | name##_##T##_value(x[l] >> 16, y[l] >> 16, flags) << 16;                    \
        }                                                                                            \
        else LANEWISE(u32 low = name##_##T##_plain(x[l] & 0xFFFF, y[l] & 0xFFFF);                    \
                      d[l] = low | name##_##T##_plain(x[l] >> 16, y[l] >> 16) << 16;)                \
    }
#define DEFINE_HALF_UNARY(name, T, expression)                                                       \
    INLINE u32 name##_##T##_value(u32 x, u32 flags) {                                                \
        float a = f32_of_##T(x);                                                                     \
        if (flags & FTZ) a = flush_##T(a);                                                           \
        return flush_##T##_bits(T##_of_f32(expression), flags);                                      \
    }                                                                                                \
    static void name##_##T(Warp *w, const Insn *i, u32 active) {                                     \
        u32 *d = SLOT(0);                                                                            \
        const u32 *x = SLOT(1);                                                                      \
        LANEWISE(d[l] = name##_##T##_value(x[l] & 0xFFFF, i->mod[0]);)                               \
    }                                                                                                \
    static void name##_##T##x2(Warp *w, const Insn *i, u32 active) {                                 \
        u32 *d = SLOT(0);                                                                            \
        const u32 *x = SLOT(1);                                                                      \
        LANEWISE(u32 low = name##_##T##_value(x[l] & 0xFFFF, i->mod[0]);                             \
                 d[l] = low | name##_##T##_value(x[l] >> 16, i->mod[0]) << 16;)                      \
    }
/* The sum a*b + c rounded to odd. A product of two f16 is exact in f32, one of bf16 needs double's exponents. */
INLINE float odd_fma_f16(float a, float b, float c) { return odd_sum_f32(a * b, c); }
INLINE float odd_fma_bf16(float a, float b, float c) { return odd_f32(odd_sum((double)a * (double)b, c)); }

#define DEFINE_HALF_FMA(X, T)                                                                        \
    INLINE u32 fma_##T##_value(u32 x, u32 y, u32 z, u32 flags) {                              \
        float a = f32_of_##T(x), b = f32_of_##T(y), c = f32_of_##T(z);                               \
        if (flags & FTZ) a = flush_##T(a), b = flush_##T(b), c = flush_##T(c);                       \
        return flush_##T##_bits(T##_of_f32(adjust(odd_fma_##T(a, b, c), flags & ~(u32)FTZ)), flags); \
    }                                                                                                \
    INLINE u32 fma_##T##_plain(u32 x, u32 y, u32 z) {                                         \
        return T##_of_f32(odd_fma_##T(f32_of_##T(x), f32_of_##T(y), f32_of_##T(z)));                 \
    }                                                                                                \
    VECTOR static void fma_##T(Warp *w, const Insn *i, u32 active) {                                 \
        u32 *d = SLOT(0);                                                                            \
        const u32 *x = SLOT(1), *y = SLOT(2), *z = SLOT(3), flags = i->mod[0];                       \
        if (flags) EACH(active, l) {                                                                 \
            d[l] = fma_##T##_value(x[l] & 0xFFFF, y[l] & 0xFFFF, z[l] & 0xFFFF, flags);              \
        }                                                                                            \
        else LANEWISE(d[l] = fma_##T##_plain(x[l] & 0xFFFF, y[l] & 0xFFFF, z[l] & 0xFFFF);)          \
    }                                                                                                \
    VECTOR static void fma_##T##x2(Warp *w, const Insn *i, u32 active) {                             \
        u32 *d = SLOT(0);                                                                            \
        const u32 *x = SLOT(1), *y = SLOT(2), *z = SLOT(3), flags = i->mod[0];                       \
        if (PAIRS_fma_##T && !flags && active == FULL && half_pairs(PAIRS_fma_##T, d, x, y, z)) return; \
        if (flags) EACH(active, l) {                                                                 \
            u32 low = fma_##T##_value(x[l] & 0xFFFF, y[l] & 0xFFFF, z[l] & 0xFFFF, flags);           \
            d[l] = low | fma_##T##_value(x[l] >> 16, y[l] >> 16, z[l] >> 16, flags) << 16;           \
        }                                                                                            \
        else LANEWISE(u32 low = fma_##T##_plain(x[l] & 0xFFFF, y[l] & 0xFFFF, z[l] & 0xFFFF);        \
                      d[l] = low | fma_##T##_plain(x[l] >> 16, y[l] >> 16, z[l] >> 16) << 16;)       \
    }
#define EXPAND_HALF_BINARY(X, T) HALF_BINARY(X, T)
#define EXPAND_HALF_UNARY(X, T) HALF_UNARY(X, T)
HALF_TYPES(EXPAND_HALF_BINARY, DEFINE_HALF_BINARY)
HALF_TYPES(EXPAND_HALF_UNARY, DEFINE_HALF_UNARY)
HALF_TYPES(DEFINE_HALF_FMA, )

/* neg and abs of 16-bit floats only touch the sign; mod[1] is the pattern of sign bits. FTZ is f16's alone. */
INLINE u32 flush_pair(u32 x, u32 flags) {
    return flush_f16_bits(x & 0xFFFF, flags) | flush_f16_bits(x >> 16, flags) << 16;
}
static void neg_half(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1);
    LANEWISE(d[l] = flush_pair(x[l], i->mod[0]) ^ i->mod[1];)
}
static void abs_half(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1);
    LANEWISE(d[l] = flush_pair(x[l], i->mod[0]) & ~i->mod[1];)
}

/* Comparisons: mod as finish_setp in integer.c has them, mod[2]: FTZ. */
#define COMPARISONS(X, T)                                                                                          \
    X(eq, T, a == b) X(ne, T, a < b || a > b) X(lt, T, a < b) X(le, T, a <= b) X(gt, T, a > b) X(ge, T, a >= b)    \
    X(equ, T, !(a < b || a > b)) X(neu, T, a != b) X(ltu, T, !(a >= b)) X(leu, T, !(a > b)) X(gtu, T, !(a <= b))   \
    X(geu, T, !(a < b)) X(num, T, a == a && b == b) X(nan, T, a != a || b != b)
#define FLOAT_TYPES(G, X) G(X, f16) G(X, bf16) G(X, f32) G(X, f64)

static const void *slot_of(const Warp *w, u32 slot) { return w->slots + SLOT_BYTES * (size_t)slot; }
static double read_f32(const Warp *w, u32 slot, u32 l) { return ((const float *)slot_of(w, slot))[l]; }
static double read_f64(const Warp *w, u32 slot, u32 l) { return ((const double *)slot_of(w, slot))[l]; }
static double read_f16(const Warp *w, u32 slot, u32 l) { return f32_of_f16(((const u32 *)slot_of(w, slot))[l] & 0xFFFF); }
static double read_bf16(const Warp *w, u32 slot, u32 l) { return f32_of_bf16(((const u32 *)slot_of(w, slot))[l] & 0xFFFF); }

#define flush_input_f16(a) flush_f16((float)(a))
#define flush_input_bf16(a) (a)
#define flush_input_f32(a) flush((float)(a))
#define flush_input_f64(a) (a)
#define DEFINE_COMPARISON(name, T, expression)                                                        \
    static void setp_##name##_##T(Warp *w, const Insn *i, u32 active) {                               \
        u32 p = 0;                                                                                    \
        for (u32 l = 0; l < LANES; l++) {                                                             \
            double a = read_##T(w, i->operand[i->dsts], l), b = read_##T(w, i->operand[i->dsts + 1], l); \
            if (i->mod[2]) a = flush_input_##T(a), b = flush_input_##T(b);                            \
            p |= (u32)(expression) << l;                                                              \
        }                                                                                             \
        finish_setp(w, i, active, p);                                                                 \
    }
#define EXPAND_COMPARISONS(X, T) COMPARISONS(X, T)
FLOAT_TYPES(EXPAND_COMPARISONS, DEFINE_COMPARISON)

/* Of pairs: setp has p for the low and q for the high half. For set (mod[3]: what a true half becomes), each half. */
static void finish_pair(Warp *w, const Insn *i, u32 active, u32 low, u32 high) {
    u32 c = i->mod[0] ? get_predicate(w, i->operand[i->dsts + 2]) ^ (i->mod[1] ? FULL : 0) : 0;
    low = join_predicates(low, c, i->mod[0]), high = join_predicates(high, c, i->mod[0]);
    if (i->mod[3]) {
        u32 *d = SLOT(0);
        LANEWISE(d[l] = (low >> l & 1 ? i->mod[3] : 0) | (high >> l & 1 ? i->mod[3] << 16 : 0);)
        return;
    }
    set_predicate(w, i->operand[0], active, low);
    if (i->dsts == 2) set_predicate(w, i->operand[1], active, high);
}
#define DEFINE_PAIR_COMPARISON(name, T, expression)                                                   \
    static void setp_##name##_##T##x2(Warp *w, const Insn *i, u32 active) {                           \
        const u32 *x = SLOT(i->dsts), *y = SLOT(i->dsts + 1);                                         \
        u32 result[2] = {0, 0};                                                                       \
        for (u32 n = 0; n < 2 * LANES; n++) {                                                         \
            const u32 l = n / 2, half = n % 2;                                                        \
            float a = f32_of_##T(x[l] >> 16 * half & 0xFFFF), b = f32_of_##T(y[l] >> 16 * half & 0xFFFF); \
            if (i->mod[2]) a = flush_##T(a), b = flush_##T(b);                                        \
            result[half] |= (u32)(expression) << l;                                                   \
        }                                                                                             \
        finish_pair(w, i, active, result[0], result[1]);                                              \
    }
HALF_TYPES(EXPAND_COMPARISONS, DEFINE_PAIR_COMPARISON)

/* The general case: any rounding, formats that differ, pairs of f32. Up to 32 bits, operands are doubles and the result
 * is first rounded to odd, which leaves the true rounding exact; f64 uses the processor's rounding modes. */
enum { ADD, SUBTRACT, MULTIPLY, DIVIDE, FUSED, RECIPROCAL, ROOT };

/* d with its last bit set where the true value lies beyond it by `error`. */
static double odd_of(double d, double error) {
    if (error == 0 || d != d || isinf(d) || error != error) return d;
    if ((error > 0) == (d > 0)) return f64_of_bits(bits_of_f64(d) | 1); /* beyond d: d is the cut value */
    return f64_of_bits((bits_of_f64(d) - 1) | 1);
}
static double odd_result(u32 operation, double a, double b, double c) {
    double d;
    switch (operation) {
    case ADD: return odd_sum(a, b);
    case SUBTRACT: return odd_sum(a, -b);
    case MULTIPLY: return a * b;
    case DIVIDE: d = a / b; return isinf(d) || d == 0 ? d : odd_of(d, copysign(1, b) * fma(-d, b, a));
    case FUSED: return odd_sum(a * b, c);
    case RECIPROCAL: d = 1 / a; return isinf(d) || d == 0 ? d : odd_of(d, copysign(1, a) * fma(-d, a, 1));
    default: d = sqrt(a); return isinf(d) || d == 0 ? d : odd_of(d, fma(-d, d, a));
    }
}
/* An exact sum of 0 is -0 when rounding down, but for +0 + +0. */
static double zero_downward(u32 operation, const double *x, double d) {
    double a = operation == FUSED ? x[0] * x[1] : x[0], b = operation == FUSED ? x[2] : x[1];
    if (operation == SUBTRACT) b = -b;
    if (operation != ADD && operation != SUBTRACT && operation != FUSED) return d;
    return signbit(a) || signbit(b) ? -0.0 : d;
}
/* Through volatile memory, so that nothing moves across the change of mode. */
__attribute__((noinline)) static void in_present_mode(u32 operation, const volatile double *x, volatile double *d) {
    switch (operation) {
    case ADD: *d = x[0] + x[1]; break;
    case SUBTRACT: *d = x[0] - x[1]; break;
    case MULTIPLY: *d = x[0] * x[1]; break;
    case DIVIDE: *d = x[0] / x[1]; break;
    case FUSED: *d = fma(x[0], x[1], x[2]); break;
    case RECIPROCAL: *d = 1 / x[0]; break;
    default: *d = sqrt(x[0]);
    }
}
static double rounded_result(u32 operation, const double *x, u32 rounding) {
    static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    volatile double operands[3] = {x[0], x[1], x[2]}, d;
    fesetround(modes[rounding]);
    in_present_mode(operation, operands, &d);
    fesetround(FE_TONEAREST);
    return d;
}

/* mod[0]: flags; mod[1]: operation | rounding << 8 | elements << 16; mod[2]: formats, 8 bits each: result, sources. */
static void arithmetic(Warp *w, const Insn *i, u32 active) {
    const u32 operation = i->mod[1] & 255, rounding = i->mod[1] >> 8 & 255, elements = i->mod[1] >> 16, to = i->mod[2] & 255;
    const u32 flags = (i->mod[0] & FTZ ? FLUSH : 0) | (i->mod[0] & SAT ? SATURATE : 0) | (i->mod[0] & RELU ? RECTIFY : 0);
    EACH(active, l) {
        u64 result = 0;
        for (u32 n = 0; n < elements; n++) {
            double x[3] = {0, 0, 0}, d;
            for (u32 s = 0; s < i->srcs; s++) {
                const u64 bits = get_lane(w, i, 1 + s, l);
                x[s] = decode_float(elements == 2 ? bits >> 32 * n & FULL : bits, i->mod[2] >> (8 + 8 * s) & 255);
                if (flags & FLUSH) x[s] = flush((float)x[s]);
            }
            d = to == F64 ? rounded_result(operation, x, rounding) : odd_result(operation, x[0], x[1], x[2]);
            if (d == 0 && rounding == DOWN && to != F64) d = zero_downward(operation, x, d);
            result |= encode_float(d, to, rounding, flags, 0) << (32 * n);
        }
        set_lane(w, i, 0, l, result);
    }
}

#define DEFINE_F32X2(name, expression)                                                          \
    VECTOR static void name##_f32x2(Warp *w, const Insn *i, u32 active) {                       \
        u64 *d = SLOT(0);                                                                       \
        const u64 *x = SLOT(1), *y = SLOT(2), *z = SLOT(i->srcs);                               \
        LANEWISE(float a = f32_of_bits((u32)x[l]); float b = f32_of_bits((u32)y[l]);            \
                 float c = f32_of_bits((u32)z[l]); u64 low = canonical(expression);             \
                 a = f32_of_bits(x[l] >> 32); b = f32_of_bits(y[l] >> 32);                      \
                 c = f32_of_bits(z[l] >> 32); (void)c; d[l] = low | (u64)canonical(expression) << 32;) \
    }
DEFINE_F32X2(add, a + b)
DEFINE_F32X2(sub, a - b)
DEFINE_F32X2(mul, a * b)
DEFINE_F32X2(fma, fmaf(a, b, c))

/* min and max with every flag, of two or three; mod[0]: flags; mod[1]: 1 for max; mod[2]: format | elements << 8. */
static u32 extreme_value(const Insn *i, const u32 *bits) {
    const u32 kind = i->mod[2] & 255, flags = i->mod[0];
    float best = 0, sign = 1;
    bool nan = false;
    for (u32 s = 0; s < i->srcs; s++) {
        float a = (float)decode_float(bits[s], kind);
        if (flags & FTZ) a = kind == F32 ? flush(a) : flush_f16(a);
        if (flags & XORSIGN) sign *= copysignf(1, a);
        if (flags & (XORSIGN | ABSOLUTE)) a = fabsf(a);
        nan |= a != a;
        best = s == 0 ? a : i->mod[1] ? max_f(best, a) : min_f(best, a);
    }
    if (best != best || (nan && flags & PROPAGATE_NAN)) return (u32)formats[kind].nan;
    return (u32)encode_float(flags & XORSIGN ? best * sign : best, kind, NEAREST, 0, 0);
}
static void extreme(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 elements = i->mod[2] >> 8;
    EACH(active, l) {
        u32 result = 0;
        for (u32 n = 0; n < elements; n++) {
            u32 bits[3];
            for (u32 s = 0; s < i->srcs; s++) bits[s] = (u32)get_lane(w, i, 1 + s, l) >> 16 * n;
            result |= extreme_value(i, bits) << 16 * n;
        }
        d[l] = result;
    }
}

/* copysign d, a, b: the sign of a, the rest of b. mod[0]: the position of the sign. */
static void copysign_bits(Warp *w, const Insn *i, u32 active) {
    const u64 sign = (u64)1 << i->mod[0];
    EACH(active, l) set_lane(w, i, 0, l, (get_lane(w, i, 1, l) & sign) | (get_lane(w, i, 2, l) & ~sign));
}

/* testp: mod[0]: what for; mod[1]: format. */
enum { FINITE_NUMBER, INFINITE, NUMBER, NOT_A_NUMBER, NORMAL, SUBNORMAL };
static void testp(Warp *w, const Insn *i, u32 active) {
    u32 p = 0;
    EACH(active, l) {
        const double d = decode_float(get_lane(w, i, 1, l), i->mod[1]), least = i->mod[1] == F64 ? 0x1p-1022 : 0x1p-126;
        bool is;
        switch (i->mod[0]) {
        case FINITE_NUMBER: is = isfinite(d); break;
        case INFINITE: is = isinf(d); break;
        case NUMBER: is = d == d; break;
        case NOT_A_NUMBER: is = d != d; break;
        case NORMAL: is = d == 0 || (isfinite(d) && fabs(d) >= least); break; /* zeros count as normal */
        default: is = d != 0 && fabs(d) < least;
        }
        p |= (u32)is << l;
    }
    set_predicate(w, i->operand[0], active, p);
}

/* rcp and rsqrt.approx.ftz.f64: of the upper 32 bits, to the upper 32 bits. mod[0]: 1 for rsqrt. */
static void gross_f64(Warp *w, const Insn *i, u32 active) {
    u64 *d = SLOT(0);
    const u64 *x = SLOT(1), upper = ~(u64)FULL;
    EACH(active, l) {
        double a = f64_of_bits(x[l] & upper), r;
        if (fabs(a) < 0x1p-1022) a = copysign(0, a);
        r = i->mod[0] ? 1 / sqrt(a) : 1 / a;
        if (fabs(r) < 0x1p-1022) r = copysign(0, r);
        d[l] = r != r ? formats[F64].nan : bits_of_f64(r) & upper;
    }
}

#define ENTRY(name) {#name, name, 0},
#define ENTRY_F32(name, expression) {#name "_f32", name##_f32, 0},
#define ENTRY_F64(name, expression) {#name "_f64", name##_f64, 0},
#define ENTRY_HALF(name, T, expression) {#name "_" #T, name##_##T, 0}, {#name "_" #T "x2", name##_##T##x2, 0},
#define ENTRY_COMPARISON(name, T, expression) {"setp_" #name "_" #T, setp_##name##_##T, 0},
#define ENTRY_PAIR_COMPARISON(name, T, expression) {"setp_" #name "_" #T "x2", setp_##name##_##T##x2, 0},
const Opcode float_ops[] = {
    F32_BINARY(ENTRY_F32) F32_EXTREME(ENTRY_F32) F32_UNARY(ENTRY_F32) F64_BINARY(ENTRY_F64) F64_UNARY(ENTRY_F64)
    HALF_TYPES(EXPAND_HALF_BINARY, ENTRY_HALF) HALF_TYPES(EXPAND_HALF_UNARY, ENTRY_HALF)
    ENTRY_HALF(fma, f16, ) ENTRY_HALF(fma, bf16, ) FLOAT_TYPES(EXPAND_COMPARISONS, ENTRY_COMPARISON)
    F32_DIVIDE(ENTRY_F32) HALF_TYPES(EXPAND_COMPARISONS, ENTRY_PAIR_COMPARISON)
    ENTRY(add_f32x2) ENTRY(sub_f32x2) ENTRY(mul_f32x2) ENTRY(fma_f32x2) ENTRY(arithmetic) ENTRY(extreme)
    ENTRY(copysign_bits) ENTRY(testp) ENTRY(gross_f64)
    ENTRY(fma_f32) ENTRY(neg_f32) ENTRY(abs_f32) ENTRY(fma_f64) ENTRY(neg_half) ENTRY(abs_half) {0}};
