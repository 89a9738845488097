/* mma.sync on f16 and bf16 with f32 accumulators.
 *
 * Fragments (PTX ISA, "Matrix Fragments for mma.m16n8k8 / m16n8k16"), with g = lane >> 2 and q = lane & 3:
 *   A register r: row g + 8 (r & 1), columns 2q + {0, 1} + 8 (r >> 1)
 *   B register r: rows 2q + {0, 1} + 8 r, column g
 *   C value i:    row g + 8 (i >> 1), column 2q + (i & 1)
 *
 * Arithmetic, "hw": exact products and C, aligned to the largest exponent, cut to F fractional bits, summed exactly, and
 * the sum cut to f32; groups of G values of k one after another. "float64": the sum in double, rounded to f32. */
#include "half.h"
#include <math.h>

#define M 16
#define N 8
#define MAX_K 16
#define ZERO_EXPONENT (-126)
#define UNROLLED _Pragma("GCC unroll 32") /* lane numbers become constants */

typedef i32 Lanes __attribute__((vector_size(4 * N))); /* the N columns of one row */
typedef u32 Unsigned __attribute__((vector_size(4 * N)));
typedef i32 Half __attribute__((vector_size(2 * N))); /* the same, four columns at a time for 64-bit arithmetic */
typedef float Floats __attribute__((vector_size(2 * N)));
typedef i64 Longs __attribute__((vector_size(4 * N)));
typedef double Doubles __attribute__((vector_size(4 * N)));

/* value = significand * 2^(exponent - fraction bits) */
typedef struct {
    i32 significand[MAX_K], exponent[MAX_K];
} Vector;
typedef struct {
    Lanes significand[MAX_K], exponent[MAX_K];
} Columns;

/* f16 has 10 fraction bits and bias 15, bf16 7 and 127. */
INLINE void decompose(const u16 *bits, u32 count, bool bf16, i32 *significand, i32 *exponent) {
    const i32 fraction = bf16 ? 7 : 10, bias = bf16 ? 127 : 15, fields = bf16 ? 255 : 31;
    for (u32 n = 0; n < count; n++) {
        const i32 field = bits[n] >> fraction & fields, low = bits[n] & ((1 << fraction) - 1);
        const i32 magnitude = field ? low | 1 << fraction : low, sign = (i32)(u32)-(bits[n] >> 15);
        significand[n] = (magnitude ^ sign) - sign;
        exponent[n] = (field ? field : 1) - bias;
    }
}

/* Macros, for vectors passed to functions need one calling convention. `sign` is 0 or -1; CUT keeps the bits of a
 * magnitude that remain when it moves `distance` below the top. */
#define NEGATE_WHERE(x, sign) (((x) ^ (sign)) - (sign))
#define CUT(magnitude, distance) ((Lanes)((Unsigned)(magnitude) >> (Unsigned)((distance)&31)) & ~((distance) > 31))
#define CHOOSE(condition, x, y) (((x) & (condition)) | ((y) & ~(condition)))

/* A sum too small for a normal f32, cut to a multiple of 2^-149. */
static float cut_subnormal(double value) { return (float)(trunc(value * 0x1p149) * 0x1p-149); }

/* Sums in units of 2^(top - F), cut to f32, four at a time. */
INLINE void cut_to_f32(const Doubles *sum, const Half *top, u32 F, float *result) {
    const Longs unit = (__builtin_convertvector(*top, Longs) - (i64)F + 1023) << 52;
    const Doubles scaled = *sum * (Doubles)unit, normal = (Doubles)((Longs)scaled & ~(i64)0x1FFFFFFF);
    const Longs small = (scaled < 0x1p-126) & (scaled > -0x1p-126) & (scaled != 0);
    const Floats rounded = __builtin_convertvector(normal, Floats);
    memcpy(result, &rounded, sizeof rounded);
    if (small[0] | small[1] | small[2] | small[3])
        for (u32 n = 0; n < 4; n++) if (small[n]) result[n] = cut_subnormal(scaled[n]);
}

/* One group of k for row `a` and all columns, C included: acc = cut(sum). */
INLINE void fused_sum(const Vector *a, const Columns *b, u32 from, u32 to, u32 fraction, u32 F, float *acc) {
    const i32 shift = (i32)(F - 2 * fraction);
    Lanes bits, field, top, sign, significand, distance, part;
    Doubles sum[2] = {{0}, {0}};
    Half halves[2];
    memcpy(&bits, acc, sizeof bits);
    field = bits >> 23 & 255;
    top = distance = field - (field == 0) - 127;
    for (u32 k = from; k < to; k++) {
        const Lanes zero = b->significand[k] == 0, e = CHOOSE(zero, (zero & ZERO_EXPONENT), a->exponent[k] + b->exponent[k]);
        if (a->significand[k]) top = CHOOSE(e > top, e, top);
    }
    distance = top - distance, sign = bits >> 31;
    significand = ((bits & 0x7FFFFF) | ((field != 0) & 0x800000)) << (i32)(F - 23);
    part = NEGATE_WHERE(CUT(significand, distance), sign);
    for (u32 k = from; k < to;) { /* eight aligned products and C fit 32 bits */
        for (u32 end = k + 8; k < end; k++) {
            const Lanes product = a->significand[k] * b->significand[k];
            sign = product >> 31, distance = top - a->exponent[k] - b->exponent[k];
            significand = NEGATE_WHERE(product, sign) << shift;
            part += NEGATE_WHERE(CUT(significand, distance), sign);
        }
        memcpy(halves, &part, sizeof part);
        for (u32 h = 0; h < 2; h++) sum[h] += __builtin_convertvector(halves[h], Doubles);
        part ^= part;
    }
    memcpy(halves, &top, sizeof top);
    for (u32 h = 0; h < 2; h++) cut_to_f32(sum + h, halves + h, F, acc + 4 * h);
}

static void float64_sum(const Vector *a, const Columns *b, u32 k, u32 fraction, float *acc) {
    for (u32 n = 0; n < N; n++) {
        double sum = acc[n];
        for (u32 j = 0; j < k; j++)
            sum += ldexp((double)(a->significand[j] * b->significand[j][n]),
                         a->exponent[j] + b->exponent[j][n] - 2 * (i32)fraction);
        acc[n] = (float)sum;
    }
}

typedef struct {
    u16 a[M][MAX_K], b[MAX_K][N];
    float c[M][N];
    u32 k;
    bool bf16, special;
} Tile;

static bool is_special(u32 bits, bool bf16) {
    const u32 all = bf16 ? 0x7F80 : 0x7C00;
    return (bits & all) == all;
}

static float widen(u32 bits, bool bf16) { return bf16 ? f32_of_bf16(bits) : f32_of_f16(bits); }

/* Whether an infinity or NaN is among the operands. */
VECTOR static bool any_special(const Tile *t) {
    const u16 *operands[2] = {(const u16 *)t->a, (const u16 *)t->b}, all = t->bf16 ? 0x7F80 : 0x7C00;
    const u32 counts[2] = {M * MAX_K, MAX_K * N};
    const float *c = (const float *)t->c;
    u32 found = 0;
    for (u32 x = 0; x < 2; x++)
        for (u32 n = 0; n < counts[x]; n++) found |= (operands[x][n] & all) == all;
    for (u32 n = 0; n < M * N; n++) found |= (bits_of_f32(c[n]) & 0x7F800000) == 0x7F800000;
    return found;
}

VECTOR static void gather(Warp *w, const Insn *i, Tile *t) {
    const u32 k = t->k, a_registers = k / 4, b_registers = k / 8, s = i->dsts;
    for (u32 r = 0; r < a_registers; r++) {
        const u32 *x = SLOT(s + r);
        UNROLLED for (u32 l = 0; l < LANES; l++) {
            u16 *row = t->a[l / 4 + 8 * (r & 1)] + 2 * (l % 4) + 8 * (r >> 1);
            memcpy(row, x + l, 4);
        }
    }
    for (u32 r = 0; r < b_registers; r++) {
        const u32 *x = SLOT(s + a_registers + r);
        UNROLLED for (u32 l = 0; l < LANES; l++) {
            const u32 row = 2 * (l % 4) + 8 * r;
            t->b[row][l / 4] = (u16)x[l], t->b[row + 1][l / 4] = (u16)(x[l] >> 16);
        }
    }
    for (u32 n = 0; n < 4; n++) {
        const float *x = SLOT(s + a_registers + b_registers + n);
        UNROLLED for (u32 l = 0; l < LANES; l++) t->c[l / 4 + 8 * (n >> 1)][2 * (l % 4) + (n & 1)] = x[l];
    }
    t->special = any_special(t);
}

/* Infinities and NaN decide an output by themselves; 0 means that they do not. */
static float special_sum(const Tile *t, u32 row, u32 column) {
    float sum = t->c[row][column] - t->c[row][column] == 0 ? 0 : t->c[row][column];
    for (u32 k = 0; k < t->k; k++)
        if (is_special(t->a[row][k], t->bf16) || is_special(t->b[k][column], t->bf16))
            sum += widen(t->a[row][k], t->bf16) * widen(t->b[k][column], t->bf16);
    return sum;
}

VECTOR static void multiply(const Machine *m, Tile *t, float d[M][N]) {
    const u32 fraction = t->bf16 ? 7 : 10;
    const u32 group = m->group_size < t->k ? m->group_size : t->k;
    Vector a;
    Columns b;
    decompose((const u16 *)t->b, t->k * N, t->bf16, (i32 *)b.significand, (i32 *)b.exponent);
    for (u32 row = 0; row < M; row++) {
        decompose(t->a[row], t->k, t->bf16, a.significand, a.exponent);
        memcpy(d[row], t->c[row], sizeof d[row]);
        if (m->numerics) float64_sum(&a, &b, t->k, fraction, d[row]);
        else for (u32 k = 0; k < t->k; k += group) fused_sum(&a, &b, k, k + group, fraction, m->fraction_bits, d[row]);
    }
    if (t->special)
        for (u32 row = 0; row < M; row++)
            for (u32 n = 0; n < N; n++) {
                float s = special_sum(t, row, n);
                if (s != 0) d[row][n] = f32_of_bits(canonical(s));
            }
}

/* An output is undefined where anything in its row of A, its column of B, or its C is. */
static void spread_undefined(Warp *w, const Insn *i, const Tile *t) {
    const u32 s = i->dsts, a_registers = t->k / 4, b_registers = t->k / 8;
    u32 rows = 0, columns = 0, u;
    for (u32 r = 0; r < a_registers; r++)
        for (u32 l = 0; (u = w->undefined[i->operand[s + r]]) && l < LANES; l++)
            rows |= (u >> l & 1) << (l / 4 + 8 * (r & 1));
    for (u32 r = 0; r < b_registers; r++)
        for (u32 l = 0; (u = w->undefined[i->operand[s + a_registers + r]]) && l < LANES; l++)
            columns |= (u >> l & 1) << l / 4;
    for (u32 n = 0; n < 4; n++) {
        u = w->undefined[i->operand[s + a_registers + b_registers + n]];
        for (u32 l = 0; (rows | columns) && l < LANES; l++)
            u |= (rows >> (l / 4 + 8 * (n >> 1)) & 1) << l | (columns >> (2 * (l % 4) + (n & 1)) & 1) << l;
        w->undefined[i->operand[n]] = u;
    }
}

/* mod: k, bf16. */
static void mma(Warp *w, const Insn *i, u32 active) {
    Tile t = {.k = i->mod[0], .bf16 = i->mod[1] != 0};
    float d[M][N];
    if (active != FULL) {
        report(w, i, F_BARRIER_DIVERGED, (u32)__builtin_ctz(active), 0, 0, active);
        if (w->m->stop) return;
    }
    gather(w, i, &t);
    multiply(w->m, &t, d);
    if (w->m->checks & CHECK_UNDEFINED) spread_undefined(w, i, &t);
    for (u32 n = 0; n < 4; n++) {
        float *x = SLOT(n);
        UNROLLED for (u32 l = 0; l < LANES; l++) x[l] = d[l / 4 + 8 * (n >> 1)][2 * (l % 4) + (n & 1)];
    }
}

const Opcode mma_ops[] = {{"mma_f32", mma, OWN_UNDEFINED | ALIGNED}, {0}};
