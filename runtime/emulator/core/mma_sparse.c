/* mma.sp: of every chunk of 4 elements of a row of A (tf32: of 2; 4 bits: of 8, in pairs) only half are held, and 4 bits
 * of metadata say which. A row's metadata picks elements of B, which make a dense product of half the k.
 *
 * Where the metadata of row r, r = g or g + 8, lies (PTX ISA, "Sparse matrix storage"; CUTLASS, mma_traits_sm120_sparse
 * and mma_traits_sm90_gmma_sparse): two registers of A are one step along k, four are two, s = 0, 1. Of 16 and 32 bits,
 * 16 bits of metadata a row and step, in lane 4g + selector, with two steps 4g + 2 selector + s, the upper half being row
 * g + 8. Of 4 and 8 bits, 32 bits a row and step, in lanes 4g + 2 selector + r / 8, with two steps 4g + 2s + r / 8. */
#include "mma.h"

enum { MAX_SPARSE_K = 128 };
enum { NOT_INDICES, NO_THREADS }; /* report.py's INVALID_METADATA */

typedef struct {
    u32 bits, steps, selector, allowed; /* allowed: a bit for each code that a chunk may have */
    const u32 *words;
} Metadata;

static u32 lane_of(const Metadata *m, u32 row, u32 step) {
    const u32 first = m->steps == 1 ? m->selector : step;
    if (m->bits < 16) return 4 * (row % 8) + 2 * first + row / 8;
    return 4 * (row % 8) + (m->steps == 1 ? m->selector : 2 * m->selector + step);
}

static u32 code_of(const Metadata *m, u32 row, u32 chunk) {
    const u32 chunks = m->bits < 16 ? 8 : 4, shift = m->bits < 16 ? 0 : 16 * (row / 8);
    return m->words[lane_of(m, row, chunk / chunks)] >> (shift + 4 * (chunk % chunks)) & 15;
}

/* Element n of a row as A holds it: its chunk, and its place along k by its chunk's code. */
static u32 chunk_of(u32 bits, u32 n) { return bits == 32 ? n : bits == 4 ? n / 4 : n / 2; }
static u32 index_of(u32 bits, u32 n, u32 code) {
    if (bits == 32) return 2 * n + (code >> 1 & 1);
    if (bits == 4) return 8 * (n / 4) + 2 * (code >> (n & 2) & 3) + n % 2;
    return 4 * (n / 2) + (code >> 2 * (n % 2) & 3);
}

/* The registers of B as a row's metadata picks its elements. */
static void pick(const Product *p, const Metadata *m, u32 (*b)[MAX_SPARSE_K], u32 row, u32 (*picked)[LANES]) {
    const u32 each = 32 / m->bits;
    memset(picked, 0, p->b_registers / 2 * sizeof *picked);
    for (u32 n = 0; n < p->k / 2; n++) {
        const u32 k = index_of(m->bits, n, code_of(m, row, chunk_of(m->bits, n)));
        for (u32 column = 0; column < COLUMNS; column++)
            picked[n / (4 * each)][4 * column + n / each % 4] |= b[column][k] << n % each * m->bits;
    }
}

/* One row of D from B's picked elements. */
static void multiply_row(Warp *w, const Insn *i, const Product *p, u32 row, u32 (*picked)[LANES], Result d) {
    const u32 each = p->c_type == F16 ? 1 : 2; /* registers of a row */
    Product dense = *p;
    Result all;
    u32 *registers[MAX_C];
    for (u32 r = 0; r < MAX_C; r++) registers[r] = all[r];
    dense.k /= 2, dense.b_registers /= 2, dense.skipped = ~(1u << row);
    for (u32 r = 0; r < dense.b_registers; r++) dense.b[r] = picked[r];
    if (p->c_type == S32) multiply_integers(&dense, all);
    else multiply_floats(w, i, &dense, registers);
    for (u32 r = 0; r < each; r++)
        memcpy(d[row / 8 * each + r] + 4 * (row % 8), all[row / 8 * each + r] + 4 * (row % 8), 4 * sizeof(u32));
}

/* Whether the metadata is as the manual demands, where it is defined. */
static bool is_valid(Warp *w, const Insn *i, const Product *p, const Metadata *m, u32 undefined) {
    const u32 last = chunk_of(m->bits, p->k / 2 - 1), chunks = m->bits < 16 ? 8 : 4;
    if (m->steps == 2 && m->bits >= 16 && m->selector > 1) {
        report(w, i, F_METADATA, 0, 0, m->selector, NO_THREADS);
        return !w->m->stop;
    }
    for (u32 row = 0; row < 16; row++)
        for (u32 chunk = 0; chunk <= last; chunk++) {
            const u32 lane = lane_of(m, row, chunk / chunks), code = code_of(m, row, chunk);
            if (m->allowed >> code & 1 || undefined >> lane & 1) continue;
            report(w, i, F_METADATA, lane, row, code, NOT_INDICES);
            if (w->m->stop) return false;
        }
    return true;
}

/* Lanes whose metadata counts. */
static u32 contributing(const Metadata *m) {
    u32 lanes = 0;
    for (u32 row = 0; row < 16; row++)
        for (u32 step = 0; step < m->steps; step++) lanes |= 1u << (lane_of(m, row, step) & 31);
    return lanes;
}

/* Operands: D, A, B, C, metadata, scales as mma_scaled's. mod: k and m, types, flags with the selector, scales. */
static void mma_sparse(Warp *w, const Insn *i, u32 active) {
    u32 s = i->dsts, bs, b[COLUMNS][MAX_SPARSE_K], picked[MAX_B][LANES], undefined;
    Metadata m;
    Product p;
    Result d;
    if (!is_whole(w, i, active)) return;
    start_product(i, &p);
    m.bits = bits_of_type(&p, p.a_type), m.selector = p.flags >> 8 & 3;
    m.allowed = m.bits == 32 ? 0x4010 : p.flags & ORDERED ? 0x7310 : 0x7BDE;
    bs = p.k * m.bits / 128, m.steps = bs / 2;
    while (p.a_registers < bs) take_a(w, i, &p, s++);
    while (p.b_registers < bs) take_b(w, i, &p, s++);
    while (p.c_registers < (p.c_type == F16 ? 2u : 4u)) take_c(w, i, &p, s++);
    m.words = SLOT(s), undefined = w->undefined[i->operand[s]];
    if (!is_valid(w, i, &p, &m, undefined)) return;
    if (p.scale_vector) take_scales(w, i, &p);
    p.others_undefined |= undefined & contributing(&m);
    for (u32 column = 0; column < COLUMNS; column++)
        for (u32 k = 0; k < p.k; k++)
            b[column][k] = element_b(&p, m.bits, k, column) & (m.bits == 32 ? FULL : (1u << m.bits) - 1);
    for (u32 row = 0; row < 16; row++) {
        pick(&p, &m, b, row, picked);
        multiply_row(w, i, &p, row, picked, d);
    }
    finish_product(w, i, &p, d);
}

const Opcode sparse_ops[] = {{"mma_sparse", mma_sparse, OWN_UNDEFINED | ALIGNED}, {0}};
