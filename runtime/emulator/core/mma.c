/* mma.sync: operands in, products to mma_float.c or mma_integer.c, results and what is undefined in them out. */
#include "mma.h"
#include <fenv.h>

/* Registers of A, B and C, and what to multiply. mod: k and m, types of a b c d, flags, block scales. */
static void describe(Warp *w, const Insn *i, Product *p) {
    u32 s = i->dsts;
    memset(p, 0, offsetof(Product, a));
    p->k = i->mod[0] & 0xFFFF, p->m = i->mod[0] >> 16;
    p->a_type = i->mod[1] & 255, p->b_type = i->mod[1] >> 8 & 255;
    p->c_type = i->mod[1] >> 16 & 255, p->d_type = i->mod[1] >> 24;
    p->flags = i->mod[2], p->scale_vector = i->mod[3] & 255, p->scale_type = i->mod[3] >> 8;
    p->b_registers = p->k * bits_of_type(p, p->b_type) / 128, p->a_registers = p->b_registers * (p->m / 8);
    p->c_registers = p->c_type == F16 ? p->m / 8 : p->m / 4;
    for (u32 r = 0; r < p->a_registers; r++) p->a[r] = SLOT(s++);
    for (u32 r = 0; r < p->b_registers; r++) p->b[r] = SLOT(s++);
    for (u32 r = 0; r < p->c_registers; r++) p->c[r] = SLOT(s++);
}

/* Rows of A (as `rows`) and columns of B that hold something undefined, and the values of C that are. */
typedef struct {
    u32 rows, columns, c[MAX_C];
} Undefined;

static u32 groups_of(u32 lanes) { /* bit g: a lane of 4g..4g+3 */
    u32 groups = 0;
    EACH(lanes, l) groups |= 1u << l / 4;
    return groups;
}

static void find_undefined(Warp *w, const Insn *i, u32 m, u32 a_registers, u32 b_registers, Undefined *u) {
    const u32 s = i->dsts;
    u->rows = u->columns = 0;
    for (u32 r = 0; r < a_registers; r++)
        u->rows |= groups_of(w->undefined[i->operand[s + r]]) << (m == 8 ? 0 : 8 * (r & 1));
    for (u32 r = 0; r < b_registers; r++) u->columns |= groups_of(w->undefined[i->operand[s + a_registers + r]]);
}

/* Lanes of value i of C's fragment that lie in one of the rows or columns. */
static u32 lanes_in(u32 rows, u32 columns, u32 i) {
    u32 lanes = 0;
    for (u32 l = 0; l < LANES; l++)
        lanes |= ((rows >> (l / 4 + 8 * (i >> 1)) | columns >> (2 * (l % 4) + (i & 1))) & 1) << l;
    return lanes;
}

/* An output is undefined where anything in its row of A, its column of B, or its C is; scales and selectors, which
 * follow, make everything undefined. */
static void spread_undefined(Warp *w, const Insn *i, const Product *p) {
    const u32 c = i->dsts + p->a_registers + p->b_registers, values = p->c_type == F16 ? 2 : 1;
    Undefined u;
    u32 others = 0, result[MAX_C];
    find_undefined(w, i, p->m, p->a_registers, p->b_registers, &u);
    for (u32 n = c + p->c_registers; n < (u32)i->dsts + i->srcs; n++) others |= w->undefined[i->operand[n]];
    for (u32 r = 0; r < p->c_registers; r++) {
        result[r] = others ? FULL : w->undefined[i->operand[c + r]];
        if (u.rows | u.columns)
            for (u32 v = 0; v < values; v++) result[r] |= lanes_in(u.rows, u.columns, values * r + v);
    }
    for (u32 r = 0; r < p->c_registers; r++) w->undefined[i->operand[r]] = result[r];
}

/* Whether the whole warp executes the instruction; if not, that is a finding. */
static bool is_whole(Warp *w, const Insn *i, u32 active) {
    if (active == FULL) return true;
    report(w, i, F_BARRIER_DIVERGED, (u32)__builtin_ctz(active), 0, 0, active);
    return !w->m->stop;
}

static void finish(Warp *w, const Insn *i, const Product *p, Result d) {
    if (w->m->checks & CHECK_UNDEFINED) spread_undefined(w, i, p);
    for (u32 r = 0; r < p->c_registers; r++) memcpy(SLOT(r), d[r], sizeof d[r]);
}

static void mma_integer(Warp *w, const Insn *i, u32 active) {
    Product p;
    Result d;
    if (!is_whole(w, i, active)) return;
    describe(w, i, &p);
    multiply_integers(&p, d);
    finish(w, i, &p, d);
}

static void mma_float(Warp *w, const Insn *i, u32 active) {
    Product p;
    Result d;
    if (!is_whole(w, i, active)) return;
    describe(w, i, &p);
    multiply_floats(w, i, &p, d);
    finish(w, i, &p, d);
}

/* Scales: {data, byte, thread} of A, then of B, after C. Lanes 4g + 2t + {0, 1} hold the scales of rows g + {0, 8} of
 * A, lanes 4g + t those of column g of B, t being the thread selector; the byte selector says where they start. */
static void mma_scaled(Warp *w, const Insn *i, u32 active) {
    const u32 n = i->dsts + i->srcs - 6u;
    Product p;
    Result d;
    if (!is_whole(w, i, active)) return;
    describe(w, i, &p);
    for (u32 v = 0; v < p.scale_vector; v++) {
        const u32 *a = SLOT(n), *b = SLOT(n + 3), a_byte = *(u32 *)SLOT(n + 1), b_byte = *(u32 *)SLOT(n + 4);
        const u32 a_thread = *(u32 *)SLOT(n + 2) & 1, b_thread = *(u32 *)SLOT(n + 5) & 3;
        for (u32 row = 0; row < 16; row++)
            p.a_scale[row][v] = (u8)(a[4 * (row % 8) + 2 * a_thread + row / 8] >> 8 * ((a_byte + v) & 3));
        for (u32 column = 0; column < COLUMNS; column++)
            p.b_scale[column][v] = (u8)(b[4 * column + b_thread] >> 8 * ((b_byte + v) & 3));
    }
    multiply_floats(w, i, &p, d);
    finish(w, i, &p, d);
}

/* One rounding per multiplication and addition, in the order of k. A function of its own: the compiler knows no
 * rounding modes, and must not move the arithmetic out of where one is set. */
__attribute__((noinline)) static double chain(const double *a, const double *b, u32 k, double c) {
    for (u32 n = 0; n < k; n++) c = fma(a[n], b[n], c);
    return c;
}

/* mod[2]: 0 to nearest even, 1 toward zero, 2 down, 3 up. */
static void mma_f64(Warp *w, const Insn *i, u32 active) {
    static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    const u32 k = i->mod[0] & 0xFFFF, m = i->mod[0] >> 16, halves = m / 8, as = k / 4 * halves, bs = k / 4, cs = m / 4;
    double a[16][16], b[COLUMNS][16], d[4][LANES];
    Undefined u;
    if (!is_whole(w, i, active)) return;
    for (u32 r = 0; r < as; r++) {
        const double *x = SLOT(i->dsts + r);
        for (u32 l = 0; l < LANES; l++) a[l / 4 + 8 * (r % halves)][l % 4 + 4 * (r / halves)] = x[l];
    }
    for (u32 r = 0; r < bs; r++) {
        const double *x = SLOT(i->dsts + as + r);
        for (u32 l = 0; l < LANES; l++) b[l / 4][l % 4 + 4 * r] = x[l];
    }
    fesetround(modes[i->mod[2] & 3]);
    for (u32 r = 0; r < cs; r++) {
        const double *c = SLOT(i->dsts + as + bs + r);
        for (u32 l = 0; l < LANES; l++) d[r][l] = chain(a[l / 4 + 8 * (r >> 1)], b[2 * (l % 4) + (r & 1)], k, c[l]);
    }
    fesetround(FE_TONEAREST);
    find_undefined(w, i, m, as, bs, &u);
    for (u32 r = 0; r < cs; r++) u.c[r] = w->undefined[i->operand[i->dsts + as + bs + r]] | lanes_in(u.rows, u.columns, r);
    for (u32 r = 0; r < cs; r++) {
        u64 *x = SLOT(r);
        for (u32 l = 0; l < LANES; l++) x[l] = d[r][l] != d[r][l] ? 0x7FFFFFFFFFFFFFFFu : bits_of_f64(d[r][l]);
        w->undefined[i->operand[r]] = u.c[r];
    }
}

const Opcode mma_ops[] = {{"mma_integer", mma_integer, OWN_UNDEFINED | ALIGNED},
                          {"mma_float", mma_float, OWN_UNDEFINED | ALIGNED},
                          {"mma_scaled", mma_scaled, OWN_UNDEFINED | ALIGNED},
                          {"mma_f64", mma_f64, OWN_UNDEFINED | ALIGNED},
                          {0}};
