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

typedef struct {
    i32 significand[MAX_K], exponent[MAX_K]; /* value = significand * 2^(exponent - fraction); zero has ZERO_EXPONENT */
} Vector;

typedef struct {
    i32 significand[MAX_K][N], exponent[MAX_K][N];
} Columns;

/* f16 has 10 fraction bits and bias 15, bf16 7 and 127. */
static void decompose(u32 bits, bool bf16, i32 *significand, i32 *exponent) {
    const u32 fraction = bf16 ? 7 : 10, bias = bf16 ? 127 : 15;
    const u32 field = bits >> fraction & (bf16 ? 255 : 31), low = bits & ((1u << fraction) - 1);
    const i32 magnitude = (i32)(field ? low | 1u << fraction : low);
    *significand = bits & 0x8000 ? -magnitude : magnitude;
    *exponent = (i32)(field ? field : 1) - (i32)bias;
}

/* One group of k for row `a` and all columns: acc[n] = cut(sum). */
VECTOR static void fused_sum(const Vector *a, const Columns *b, u32 from, u32 to, u32 fraction, u32 F, float *acc) {
    i32 top[N], c_significand[N], c_exponent[N], low[N] = {0}, high[N] = {0};
    const i32 shift = (i32)(F - 2 * fraction), c_shift = (i32)(F - 23);
    for (u32 n = 0; n < N; n++) {
        const u32 bits = bits_of_f32(acc[n]), field = bits >> 23 & 255;
        c_significand[n] = (i32)((bits & 0x7FFFFF) | (field ? 0x800000 : 0));
        c_exponent[n] = (i32)(field ? field : 1) - 127;
        if (bits >> 31) c_significand[n] = -c_significand[n];
        top[n] = c_exponent[n];
    }
    for (u32 k = from; k < to; k++)
        for (u32 n = 0; n < N; n++) {
            i32 e = a->exponent[k] + b->exponent[k][n];
            e = a->significand[k] && b->significand[k][n] ? e : ZERO_EXPONENT;
            top[n] = e > top[n] ? e : top[n];
        }
    for (u32 k = from; k < to; k++) {
        i32 *sum = k - from < 8 ? low : high; /* eight aligned products fit 32 bits */
        for (u32 n = 0; n < N; n++) {
            const i32 product = a->significand[k] * b->significand[k][n], sign = product >> 31;
            const i32 distance = top[n] - (a->exponent[k] + b->exponent[k][n]);
            const u32 magnitude = (u32)((product ^ sign) - sign) << shift;
            const i32 cut = (i32)(distance > 31 || distance < 0 ? 0 : magnitude >> (distance & 31));
            sum[n] += (cut ^ sign) - sign;
        }
    }
    for (u32 n = 0; n < N; n++) {
        const i32 sign = c_significand[n] >> 31, distance = top[n] - c_exponent[n];
        const u32 magnitude = (u32)((c_significand[n] ^ sign) - sign) << c_shift;
        const i32 cut = (i32)(distance > 31 ? 0 : magnitude >> distance);
        const double sum = (double)low[n] + (double)high[n] + (double)((cut ^ sign) - sign);
        const double scaled = sum * f64_of_bits((u64)(top[n] - (i32)F + 1023) << 52);
        acc[n] = f32_of_bits(0);
        if (fabs(scaled) >= 0x1p-126) acc[n] = (float)f64_of_bits(bits_of_f64(scaled) & ~(u64)0x1FFFFFFF);
        else acc[n] = (float)(trunc(scaled * 0x1p149) * 0x1p-149);
    }
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

static void gather(Warp *w, const Insn *i, Tile *t) {
    const u32 k = t->k, a_registers = k / 4, b_registers = k / 8, s = i->dsts;
    for (u32 r = 0; r < a_registers; r++) {
        const u32 *x = SLOT(s + r);
        for (u32 l = 0; l < LANES; l++) {
            u16 *row = t->a[l / 4 + 8 * (r & 1)] + 2 * (l % 4) + 8 * (r >> 1);
            row[0] = (u16)x[l], row[1] = (u16)(x[l] >> 16);
            t->special |= is_special(row[0], t->bf16) | is_special(row[1], t->bf16);
        }
    }
    for (u32 r = 0; r < b_registers; r++) {
        const u32 *x = SLOT(s + a_registers + r);
        for (u32 l = 0; l < LANES; l++) {
            const u32 row = 2 * (l % 4) + 8 * r;
            t->b[row][l / 4] = (u16)x[l], t->b[row + 1][l / 4] = (u16)(x[l] >> 16);
            t->special |= is_special(x[l], t->bf16) | is_special(x[l] >> 16, t->bf16);
        }
    }
    for (u32 n = 0; n < 4; n++) {
        const float *x = SLOT(s + a_registers + b_registers + n);
        for (u32 l = 0; l < LANES; l++) {
            t->c[l / 4 + 8 * (n >> 1)][2 * (l % 4) + (n & 1)] = x[l];
            t->special |= (bits_of_f32(x[l]) & 0x7F800000) == 0x7F800000;
        }
    }
}

/* Infinities and NaN decide an output by themselves; 0 means that they do not. */
static float special_sum(const Tile *t, u32 row, u32 column) {
    float sum = t->c[row][column] - t->c[row][column] == 0 ? 0 : t->c[row][column];
    for (u32 k = 0; k < t->k; k++)
        if (is_special(t->a[row][k], t->bf16) || is_special(t->b[k][column], t->bf16))
            sum += widen(t->a[row][k], t->bf16) * widen(t->b[k][column], t->bf16);
    return sum;
}

static void multiply(const Machine *m, Tile *t, float d[M][N]) {
    const u32 fraction = t->bf16 ? 7 : 10;
    const u32 group = m->group_size < t->k ? m->group_size : t->k;
    Vector a;
    Columns b;
    for (u32 k = 0; k < t->k; k++)
        for (u32 n = 0; n < N; n++) decompose(t->b[k][n], t->bf16, &b.significand[k][n], &b.exponent[k][n]);
    for (u32 row = 0; row < M; row++) {
        for (u32 k = 0; k < t->k; k++) decompose(t->a[row][k], t->bf16, &a.significand[k], &a.exponent[k]);
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
    w->m->counters.mma++;
    gather(w, i, &t);
    multiply(w->m, &t, d);
    spread_undefined(w, i, &t);
    for (u32 n = 0; n < 4; n++) {
        float *x = SLOT(n);
        for (u32 l = 0; l < LANES; l++) x[l] = d[l / 4 + 8 * (n >> 1)][2 * (l % 4) + (n & 1)];
    }
}

const Opcode mma_ops[] = {{"mma_f32", mma, OWN_UNDEFINED}, {0}};
