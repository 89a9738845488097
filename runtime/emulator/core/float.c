/* Floating-point arithmetic and comparisons. Approximate instructions give the correctly rounded or libm value, which is
 * within their documented error. NaN results are canonical (0x7FFFFFFF, 0x7FFF), as on the GPU. */
#include "half.h"
#include <math.h>

enum { FTZ = 1, SAT = 2, RELU = 4, PROPAGATE_NAN = 8, ROUND_ZERO = 16 }; /* mod[0] */

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

#define DEFINE_F32_BINARY(name, expression)                                                   \
    VECTOR static void name##_f32(Warp *w, const Insn *i, u32 active) {                       \
        u32 *d = SLOT(0);                                                                     \
        const float *x = SLOT(1), *y = SLOT(2);                                               \
        const u32 flags = i->mod[0];                                                          \
        if (!flags) {                                                                         \
            LANEWISE(float a = x[l]; float b = y[l]; d[l] = canonical(expression);)           \
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

/* The plain case is a branch-free loop; flags take the other. */
#define DEFINE_HALF_BINARY(name, T, expression)                                                      \
    INLINE u32 name##_##T##_value(u32 x, u32 y, u32 flags) {                                  \
        float a = f32_of_##T(x), b = f32_of_##T(y);                                                  \
        if (flags & FTZ) a = flush_##T(a), b = flush_##T(b);                                         \
        return T##_of_f32(adjust(expression, flags & ~(u32)FTZ));                                    \
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
        if (flags) EACH(active, l) {                                                                 \
            u32 low = name##_##T##_value(x[l] & 0xFFFF, y[l] & 0xFFFF, flags);                       \
            d[l] = low | name##_##T##_value(x[l] >> 16, y[l] >> 16, flags) << 16;                    \
        }                                                                                            \
        else LANEWISE(u32 low = name##_##T##_plain(x[l] & 0xFFFF, y[l] & 0xFFFF);                    \
                      d[l] = low | name##_##T##_plain(x[l] >> 16, y[l] >> 16) << 16;)                \
    }
#define DEFINE_HALF_UNARY(name, T, expression)                                                       \
    INLINE u32 name##_##T##_value(u32 x) {                                                    \
        float a = f32_of_##T(x);                                                                     \
        return T##_of_f32(expression);                                                               \
    }                                                                                                \
    static void name##_##T(Warp *w, const Insn *i, u32 active) {                                     \
        u32 *d = SLOT(0);                                                                            \
        const u32 *x = SLOT(1);                                                                      \
        LANEWISE(d[l] = name##_##T##_value(x[l] & 0xFFFF);)                                          \
    }                                                                                                \
    static void name##_##T##x2(Warp *w, const Insn *i, u32 active) {                                 \
        u32 *d = SLOT(0);                                                                            \
        const u32 *x = SLOT(1);                                                                      \
        LANEWISE(d[l] = name##_##T##_value(x[l] & 0xFFFF) | name##_##T##_value(x[l] >> 16) << 16;)   \
    }
/* The sum a*b + c rounded to odd. A product of two f16 is exact in f32, one of bf16 needs double's exponents. */
INLINE float odd_fma_f16(float a, float b, float c) { return odd_sum_f32(a * b, c); }
INLINE float odd_fma_bf16(float a, float b, float c) { return odd_f32(odd_sum((double)a * (double)b, c)); }

#define DEFINE_HALF_FMA(X, T)                                                                        \
    INLINE u32 fma_##T##_value(u32 x, u32 y, u32 z, u32 flags) {                              \
        float a = f32_of_##T(x), b = f32_of_##T(y), c = f32_of_##T(z);                               \
        if (flags & FTZ) a = flush_##T(a), b = flush_##T(b), c = flush_##T(c);                       \
        return T##_of_f32(adjust(odd_fma_##T(a, b, c), flags & ~(u32)FTZ));                          \
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

/* neg and abs of 16-bit floats only touch the sign; mod[1] is the pattern of sign bits. */
static void neg_half(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1);
    LANEWISE(d[l] = x[l] ^ i->mod[1];)
}
static void abs_half(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1);
    LANEWISE(d[l] = x[l] & ~i->mod[1];)
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

#define DEFINE_COMPARISON(name, T, expression)                                                        \
    static void setp_##name##_##T(Warp *w, const Insn *i, u32 active) {                               \
        u32 p = 0;                                                                                    \
        for (u32 l = 0; l < LANES; l++) {                                                             \
            double a = read_##T(w, i->operand[i->dsts], l), b = read_##T(w, i->operand[i->dsts + 1], l); \
            if (i->mod[2]) a = flush((float)a), b = flush((float)b);                                  \
            p |= (u32)(expression) << l;                                                              \
        }                                                                                             \
        finish_setp(w, i, active, p);                                                                 \
    }
#define EXPAND_COMPARISONS(X, T) COMPARISONS(X, T)
FLOAT_TYPES(EXPAND_COMPARISONS, DEFINE_COMPARISON)

#define ENTRY(name) {#name, name, 0},
#define ENTRY_F32(name, expression) {#name "_f32", name##_f32, 0},
#define ENTRY_F64(name, expression) {#name "_f64", name##_f64, 0},
#define ENTRY_HALF(name, T, expression) {#name "_" #T, name##_##T, 0}, {#name "_" #T "x2", name##_##T##x2, 0},
#define ENTRY_COMPARISON(name, T, expression) {"setp_" #name "_" #T, setp_##name##_##T, 0},
const Opcode float_ops[] = {
    F32_BINARY(ENTRY_F32) F32_EXTREME(ENTRY_F32) F32_UNARY(ENTRY_F32) F64_BINARY(ENTRY_F64) F64_UNARY(ENTRY_F64)
    HALF_TYPES(EXPAND_HALF_BINARY, ENTRY_HALF) HALF_TYPES(EXPAND_HALF_UNARY, ENTRY_HALF)
    ENTRY_HALF(fma, f16, ) ENTRY_HALF(fma, bf16, ) FLOAT_TYPES(EXPAND_COMPARISONS, ENTRY_COMPARISON)
    ENTRY(fma_f32) ENTRY(neg_f32) ENTRY(abs_f32) ENTRY(fma_f64) ENTRY(neg_half) ENTRY(abs_half) {0}};
