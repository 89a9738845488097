/* What the files of the tensor cores share: element types, the operands of one multiplication, and who computes it.
 *
 * Fragments (PTX ISA, "Matrix Fragments for mma"), with g = lane >> 2, q = lane & 3 and elements of any width: one
 * register holds bytes 4q..4q+3 (f64: 8q..8q+7) of a 16-byte (32-byte) piece of a row of A or column of B.
 *   A register r: row g + 8 (r & 1), piece r >> 1 of the row (with 8 rows: row g, piece r)
 *   B register r: column g, piece r
 *   C value i:    row g + 8 (i >> 1), column 2q + (i & 1); f16 accumulators are two values in a register
 * A register's 32 lanes are therefore 8 rows of 16 bytes each, one after another. */
#ifndef EMULATOR_MMA_H
#define EMULATOR_MMA_H
#include "half.h"

/* isa/matrix.py's TYPES */
enum { F16, BF16, TF32, E4M3, E5M2, E3M2, E2M3, E2M1, S8, U8, S4, U4, B1, F64, F32, S32 };
/* NARROW_FP4: e2m1 in 4 bits, not in bits 5:2 of a byte. ORDERED: the metadata's indices increase */
enum { SATURATE = 1, XOR = 2, NARROW_FP4 = 4, ORDERED = 8 };
enum { MAX_A = 8, MAX_B = 4, MAX_C = 8, COLUMNS = 8 };

typedef struct {
    u32 m, k, a_type, b_type, c_type, d_type, flags;
    u32 scale_vector, scale_type; /* block scales: scales per row (0: none); 0 ue8m0, 1 ue4m3 */
    u32 most_k; /* the most that one sum takes; 0: as many as the unit can */
    u32 skipped; /* rows of D that nobody needs */
    u32 a_registers, b_registers, c_registers;
    const u32 *a[MAX_A], *b[MAX_B], *c[MAX_C]; /* lanes of each register */
    u32 a_undefined[MAX_A], b_undefined[MAX_B], c_undefined[MAX_C], others_undefined;
    u8 a_scale[16][4], b_scale[COLUMNS][4];
} Product;

typedef u32 Result[MAX_C][LANES]; /* D, in the registers of C's fragment */

static inline u32 bits_of_type(const Product *p, u32 type) {
    static const u8 bits[] = {16, 16, 32, 8, 8, 8, 8, 8, 8, 8, 4, 4, 1, 64, 32, 32};
    return type == E2M1 && p->flags & NARROW_FP4 ? 4 : bits[type];
}

/* An element's bits. A row of A, then a column of B. */
static inline u32 element_a(const Product *p, u32 bits, u32 row, u32 k) {
    const u32 byte = k * bits / 8, piece = byte / 16, r = p->m == 8 ? piece : 2 * piece + row / 8;
    return p->a[r][4 * (row % 8) + byte % 16 / 4] >> k * bits % 32;
}
static inline u32 element_b(const Product *p, u32 bits, u32 k, u32 column) {
    const u32 byte = k * bits / 8;
    return p->b[byte / 16][4 * column + byte % 16 / 4] >> k * bits % 32;
}

/* mma.c */
bool is_whole(Warp *w, const Insn *i, u32 active);
void take_a(Warp *w, const Insn *i, Product *p, u32 operand);
void take_b(Warp *w, const Insn *i, Product *p, u32 operand);
void take_c(Warp *w, const Insn *i, Product *p, u32 operand);
void spread_undefined(const Product *p, u32 *undefined);
void start_product(const Insn *i, Product *p);
void take_scales(Warp *w, const Insn *i, Product *p);
void finish_product(Warp *w, const Insn *i, const Product *p, Result d);
void multiply_into_registers(Warp *w, const Insn *i, const Product *p);

/* mma_integer.c */
void multiply_integers(const Product *p, Result d);
/* mma_float.c */
void multiply_floats(Warp *w, const Insn *i, const Product *p, u32 *const *d); /* d: registers, which may be operands too */
void multiply_quad_pair(Machine *m, float (*a)[4], float (*b)[4], float (*c)[8], bool f16);
/* mma_fast.c: false where the operands need the general way */
typedef struct {
    u32 type, k, fraction_bits, kept; /* k: pieces of 16 bytes; kept: significant bits of an f32 result, 24 or 14; 11: an f16 */
    u32 a_least, b_least; /* exponent field of the subnormals: above 1 for types narrower than the f16 they come as */
    bool f16; /* C's values are of f16: subnormals have its lowest exponent */
    const u32 *a[8], *b[4];
    const void *c[4]; /* f32 in the order of C's fragment */
    void *d[4]; /* which may be operands too */
    struct Fragments *fragments; /* for multiply_columns: what it has converted; slots of A's and B's first registers */
    u32 a_slot, b_slot;
} Step;
bool fused_step(const Step *s);
/* mma_columns.c: type, k, registers and fragments count: all of k by sums of 8; false where the operands need another way */
bool multiply_columns(const Step *s);
/* Of `count` instructions, each of which adds to the sums of the one before, how many are done, from the first on.
 * mma_ones.c: pieces of 16 bytes; mma_codes.c: m16n8k16 of f16 */
u32 multiply_by_ones(const struct Fragments *f, u8 *slots, const Insn *i, u32 type, u32 pieces, u32 count);
u32 multiply_chain(struct Fragments *f, u8 *slots, const Insn *i, u32 count);
#endif
