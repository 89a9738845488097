/* mma.sync: operands in, products to mma_float.c or mma_integer.c, results and what is undefined in them out. */
#include "mma.h"
#include <fenv.h>

void take_a(Warp *w, const Insn *i, Product *p, u32 operand) {
    p->a_undefined[p->a_registers] = w->undefined[i->operand[operand]], p->a[p->a_registers++] = SLOT(operand);
}
void take_b(Warp *w, const Insn *i, Product *p, u32 operand) {
    p->b_undefined[p->b_registers] = w->undefined[i->operand[operand]], p->b[p->b_registers++] = SLOT(operand);
}
void take_c(Warp *w, const Insn *i, Product *p, u32 operand) {
    p->c_undefined[p->c_registers] = w->undefined[i->operand[operand]], p->c[p->c_registers++] = SLOT(operand);
}

static u32 take(Warp *w, const Insn *i, u32 from, u32 count, const u32 **registers, u32 *undefined) {
    for (u32 r = 0; r < count; r++) registers[r] = SLOT(from + r), undefined[r] = w->undefined[i->operand[from + r]];
    return count;
}

/* What to multiply. mod: k and m, types of a b c d, flags, block scales. */
void start_product(const Insn *i, Product *p) {
    memset(p, 0, offsetof(Product, a));
    p->others_undefined = 0;
    p->k = i->mod[0] & 0xFFFF, p->m = i->mod[0] >> 16;
    p->a_type = i->mod[1] & 255, p->b_type = i->mod[1] >> 8 & 255;
    p->c_type = i->mod[1] >> 16 & 255, p->d_type = i->mod[1] >> 24;
    p->flags = i->mod[2], p->scale_vector = i->mod[3] & 255, p->scale_type = i->mod[3] >> 8;
}

/* And registers of A, B and C. */
static void describe(Warp *w, const Insn *i, Product *p) {
    const u32 first = i->dsts;
    u32 as, bs, cs;
    start_product(i, p);
    bs = p->k * bits_of_type(p, p->b_type) / (p->b_type == F64 ? 256 : 128), as = bs * (p->m / 8), cs = p->c_type == F16 ? p->m / 8 : p->m / 4;
    p->a_registers = take(w, i, first, as, p->a, p->a_undefined);
    p->b_registers = take(w, i, first + as, bs, p->b, p->b_undefined);
    p->c_registers = take(w, i, first + as + bs, cs, p->c, p->c_undefined);
}

static u32 groups_of(u32 lanes) { /* bit g: a lane of 4g..4g+3 */
    u32 groups = 0;
    EACH(lanes, l) groups |= 1u << l / 4;
    return groups;
}

/* Lanes of value i of C's fragment that lie in one of the rows or columns. */
static u32 lanes_in(u32 rows, u32 columns, u32 i) {
    u32 lanes = 0;
    for (u32 l = 0; l < LANES; l++)
        lanes |= ((rows >> (l / 4 + 8 * (i >> 1)) | columns >> (2 * (l % 4) + (i & 1))) & 1) << l;
    return lanes;
}

/* An output is undefined where anything in its row of A, its column of B, or its C is; an undefined scale or selector
 * makes everything undefined. */
void spread_undefined(const Product *p, u32 *undefined) {
    const u32 values = p->c_type == F16 ? 2 : 1;
    u32 rows = 0, columns = 0;
    for (u32 r = 0; r < p->a_registers; r++) rows |= groups_of(p->a_undefined[r]) << (p->m == 8 ? 0 : 8 * (r & 1));
    for (u32 r = 0; r < p->b_registers; r++) columns |= groups_of(p->b_undefined[r]);
    for (u32 r = 0; r < p->c_registers; r++) {
        undefined[r] = p->others_undefined ? FULL : p->c_undefined[r];
        if (rows | columns)
            for (u32 v = 0; v < values; v++) undefined[r] |= lanes_in(rows, columns, values * r + v);
    }
}

/* Whether the whole warp executes the instruction; if not, that is a finding. */
bool is_whole(Warp *w, const Insn *i, u32 active) {
    if (active == FULL) return true;
    report(w, i, F_BARRIER_DIVERGED, (u32)__builtin_ctz(active), 0, 0, active);
    return !w->m->stop;
}

static void mark_undefined(Warp *w, const Insn *i, const Product *p) {
    u32 undefined[MAX_C];
    if (!(w->m->checks & CHECK_UNDEFINED)) return;
    spread_undefined(p, undefined);
    for (u32 r = 0; r < p->c_registers; r++) w->undefined[i->operand[r]] = undefined[r];
}

void finish_product(Warp *w, const Insn *i, const Product *p, Result d) {
    for (u32 r = 0; r < p->c_registers; r++) memcpy(SLOT(r), d[r], sizeof d[r]);
    mark_undefined(w, i, p);
}

static void mma_integer(Warp *w, const Insn *i, u32 active) {
    Product p;
    Result d;
    if (!is_whole(w, i, active)) return;
    describe(w, i, &p);
    multiply_integers(&p, d);
    finish_product(w, i, &p, d);
}

void multiply_into_registers(Warp *w, const Insn *i, const Product *p) {
    u32 *d[MAX_C];
    for (u32 r = 0; r < p->c_registers; r++) d[r] = SLOT(r);
    multiply_floats(w, i, p, d);
    mark_undefined(w, i, p);
}

static void mma_float(Warp *w, const Insn *i, u32 active) {
    Product p;
    if (!is_whole(w, i, active)) return;
    if (multiply_plainly(w, i, 1)) return;
    describe(w, i, &p);
    multiply_into_registers(w, i, &p);
}

/* Scales: {data, byte, thread} of A, then of B, after C. Lanes 4g + 2t + {0, 1} hold the scales of rows g + {0, 8} of
 * A, lanes 4g + t those of column g of B, t being the thread selector; the byte selector says where they start. */
void take_scales(Warp *w, const Insn *i, Product *p) {
    const u32 n = i->dsts + i->srcs - 6u;
    const u32 *a = SLOT(n), *b = SLOT(n + 3), a_byte = *(u32 *)SLOT(n + 1), b_byte = *(u32 *)SLOT(n + 4);
    const u32 a_thread = *(u32 *)SLOT(n + 2) & 1, b_thread = *(u32 *)SLOT(n + 5) & 3;
    for (u32 v = 0; v < p->scale_vector; v++) {
        for (u32 row = 0; row < 16; row++)
            p->a_scale[row][v] = (u8)(a[4 * (row % 8) + 2 * a_thread + row / 8] >> 8 * ((a_byte + v) & 3));
        for (u32 column = 0; column < COLUMNS; column++)
            p->b_scale[column][v] = (u8)(b[4 * column + b_thread] >> 8 * ((b_byte + v) & 3));
    }
    p->others_undefined = w->undefined[i->operand[n]] & (a_thread ? 0xCCCCCCCCu : 0x33333333u);
    p->others_undefined |= w->undefined[i->operand[n + 3]] & 0x11111111u << b_thread;
    for (u32 s = 1; s < 6; s++) if (s != 3) p->others_undefined |= w->undefined[i->operand[n + s]];
}

static void mma_scaled(Warp *w, const Insn *i, u32 active) {
    Product p;
    if (!is_whole(w, i, active)) return;
    describe(w, i, &p);
    take_scales(w, i, &p);
    multiply_into_registers(w, i, &p);
}

/* One rounding per multiplication and addition, in the order of k. A function of its own: the compiler knows no
 * rounding modes, and must not move the arithmetic out of where one is set. */
VECTOR __attribute__((noinline)) static void chains(const double (*a)[16], const double (*b)[16], u32 m, u32 k, double (*c)[COLUMNS]) {
    for (u32 row = 0; row < m; row++)
        for (u32 n = 0; n < k; n++)
            for (u32 column = 0; column < COLUMNS; column++) c[row][column] = fma(a[row][n], b[column][n], c[row][column]);
}

/* mod[2]: 0 to nearest even, 1 toward zero, 2 down, 3 up. */
static void mma_f64(Warp *w, const Insn *i, u32 active) {
    static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    double a[16][16], b[COLUMNS][16], c[16][COLUMNS];
    u32 undefined[MAX_C];
    Product p;
    if (!is_whole(w, i, active)) return;
    describe(w, i, &p);
    for (u32 r = 0; r < p.a_registers; r++) /* a register is 4 values of k */
        for (u32 l = 0; l < LANES; l++)
            a[l / 4 + (p.m == 8 ? 0 : 8 * (r & 1))][l % 4 + 4 * (p.m == 8 ? r : r >> 1)] = ((const double *)p.a[r])[l];
    for (u32 r = 0; r < p.b_registers; r++)
        for (u32 l = 0; l < LANES; l++) b[l / 4][l % 4 + 4 * r] = ((const double *)p.b[r])[l];
    for (u32 r = 0; r < p.c_registers; r++)
        for (u32 l = 0; l < LANES; l++) c[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)] = ((const double *)p.c[r])[l];
    fesetround(modes[p.flags & 3]);
    chains((const double(*)[16])a, (const double(*)[16])b, p.m, p.k, c);
    fesetround(FE_TONEAREST);
    spread_undefined(&p, undefined);
    for (u32 r = 0; r < p.c_registers; r++) {
        double *d = SLOT(r);
        for (u32 l = 0; l < LANES; l++) d[l] = c[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)];
        w->undefined[i->operand[r]] = undefined[r];
    }
}

/* mma.m8n8k4 of f16. Quad pair p is lanes 4p..4p+3 and 16+4p..16+4p+3, its threads t = 0..7. mod: A by columns, B by
 * rows, C f32, D f32. A by rows: thread t holds row t; by columns: column t % 4 of rows 4 (t / 4)..; B alike. C and D of
 * f16: row t; of f32, value v: row t % 2 + 2 (v / 2 % 2) + 4 (t / 4), column 2 (t / 2 % 2) + v % 2 + 4 (v / 4). */
static u32 half_of(Warp *w, const Insn *i, u32 operand, u32 lane, u32 n) {
    return ((const u32 *)SLOT(operand + n / 2))[lane] >> 16 * (n % 2) & 0xFFFF;
}
static void place_c(bool f32, u32 t, u32 v, u32 *row, u32 *column) {
    *row = f32 ? t % 2 + 2 * (v / 2 % 2) + 4 * (t / 4) : t;
    *column = f32 ? 2 * (t / 2 % 2) + v % 2 + 4 * (v / 4) : v;
}
static u32 lane_of(u32 pair, u32 t) { return 4 * pair + t % 4 + 16 * (t / 4); }

static void run_quad_pair(Warp *w, const Insn *i, u32 pair, Result d) {
    const u32 a_at = i->dsts, b_at = a_at + 2, c_at = b_at + 2;
    float a[8][4], b[8][4], c[8][8];
    for (u32 t = 0; t < 8; t++) {
        const u32 l = lane_of(pair, t);
        for (u32 n = 0; n < 4; n++) {
            const float x = f32_of_f16(half_of(w, i, a_at, l, n)), y = f32_of_f16(half_of(w, i, b_at, l, n));
            if (i->mod[0]) a[4 * (t / 4) + n][t % 4] = x;
            else a[t][n] = x;
            if (i->mod[1]) b[t][n] = y;
            else b[4 * (t / 4) + n][t % 4] = y;
        }
        for (u32 v = 0; v < 8; v++) {
            u32 row, column;
            place_c(i->mod[2], t, v, &row, &column);
            c[row][column] = i->mod[2] ? ((const float *)SLOT(c_at + v))[l] : f32_of_f16(half_of(w, i, c_at, l, v));
        }
    }
    multiply_quad_pair(w->m, a, b, c, !i->mod[3]);
    for (u32 t = 0; t < 8; t++)
        for (u32 v = 0; v < 8; v++) {
            const u32 l = lane_of(pair, t);
            u32 row, column;
            place_c(i->mod[3], t, v, &row, &column);
            if (i->mod[3]) d[v][l] = canonical(c[row][column]);
            else d[v / 2][l] = v % 2 ? d[v / 2][l] | f16_of_f32(c[row][column]) << 16 : f16_of_f32(c[row][column]);
        }
}

/* A quad pair's outputs are undefined where any of its operands is. */
static void mma_quad_pairs(Warp *w, const Insn *i, u32 active) {
    Result d;
    u32 undefined = 0;
    if (!is_whole(w, i, active)) return;
    for (u32 s = i->dsts; s < (u32)i->dsts + i->srcs; s++) undefined |= w->undefined[i->operand[s]];
    for (u32 pair = 0; pair < 4; pair++) {
        const u32 lanes = 0x000F000Fu << 4 * pair;
        run_quad_pair(w, i, pair, d);
        if (undefined & lanes) undefined |= lanes;
    }
    for (u32 r = 0; r < i->dsts; r++) {
        memcpy(SLOT(r), d[r], sizeof d[r]);
        w->undefined[i->operand[r]] = undefined;
    }
}

/* Whether i is a multiplication of the same kind as the one before it, of other operands, in the place of its result. */
bool adds_to(const Insn *i, const Insn *before) {
    const u32 registers = i->dsts, factors = i->srcs - registers; /* C has as many as D */
    if (i->op != before->op || memcmp(i->mod, before->mod, sizeof i->mod)) return false;
    if (memcmp(i->operand, before->operand, registers * sizeof *i->operand)) return false;
    if (memcmp(i->operand, i->operand + registers + factors, registers * sizeof *i->operand)) return false;
    for (u32 s = 0; s < factors; s++)
        for (u32 d = 0; d < registers; d++) if (i->operand[registers + s] == i->operand[d]) return false;
    return true;
}

const Opcode mma_ops[] = {{"mma_integer", mma_integer, OWN_UNDEFINED | ALIGNED},
                          {"mma_float", mma_float, OWN_UNDEFINED | ALIGNED | CHAINS},
                          {"mma_scaled", mma_scaled, OWN_UNDEFINED | ALIGNED},
                          {"mma_f64", mma_f64, OWN_UNDEFINED | ALIGNED},
                          {"mma_quad_pairs", mma_quad_pairs, OWN_UNDEFINED | ALIGNED},
                          {0}};
