/* Integer and one-bit products: exact, wrapping unless .satfinite. */
#include "mma.h"

enum { MAX_INTEGER_K = 64 };

/* The 16 bytes of every 8 lanes' row are in order, so that a register unpacks without a shuffle. */
INLINE void unpack_bytes(const u32 *lanes, bool is_signed, i16 (*row)[MAX_INTEGER_K], u32 k) {
    const u8 *bytes = (const u8 *)lanes;
    for (u32 g = 0; g < 8; g++)
        INDEPENDENT for (u32 n = 0; n < 16; n++) row[g][k + n] = is_signed ? (i16)(i8)bytes[16 * g + n] : (i16)bytes[16 * g + n];
}
/* Two codes of a byte; k in any order, of A and B alike. Sixteen-bit lanes hold two bytes: shifts sort them out. */
INLINE void unpack_nibbles(const u32 *lanes, bool is_signed, i16 (*row)[MAX_INTEGER_K], u32 k) {
    typedef i16 Words __attribute__((vector_size(16)));
    typedef u16 Unsigned __attribute__((vector_size(16)));
    for (u32 g = 0; g < 8; g++) {
        Words x;
        memcpy(&x, lanes + 4 * g, sizeof x);
        for (u32 n = 0; n < 4; n++) {
            const Words top = x << (12 - 4 * (i32)n), part = is_signed ? top >> 12 : (Words)((Unsigned)top >> 12);
            memcpy(row[g] + k + 8 * n, &part, sizeof part);
        }
    }
}
INLINE void unpack(const u32 *lanes, u32 type, i16 (*row)[MAX_INTEGER_K], u32 piece) {
    if (type == S8) unpack_bytes(lanes, true, row, 16 * piece);
    else if (type == U8) unpack_bytes(lanes, false, row, 16 * piece);
    else if (type == S4) unpack_nibbles(lanes, true, row, 32 * piece);
    else unpack_nibbles(lanes, false, row, 32 * piece);
}

INLINE i32 dot(const i16 *a, const i16 *b, u32 k) {
    i32 sum = 0;
    for (u32 n = 0; n < k; n++) sum += a[n] * b[n];
    return sum;
}

INLINE void dots(i16 (*a)[MAX_INTEGER_K], i16 (*b)[MAX_INTEGER_K], u32 rows, u32 k, i32 (*sum)[COLUMNS]) {
    for (u32 row = 0; row < rows; row++)
        for (u32 n = 0; n < COLUMNS; n++) sum[row][n] = dot(a[row], b[n], k);
}

VECTOR static void multiply_codes(const Product *p, i32 (*sum)[COLUMNS]) {
    i16 a[16][MAX_INTEGER_K], b[COLUMNS][MAX_INTEGER_K];
    const u32 halves = p->m / 8;
    for (u32 r = 0; r < p->a_registers; r++) unpack(p->a[r], p->a_type, a + 8 * (r % halves), r / halves);
    for (u32 r = 0; r < p->b_registers; r++) unpack(p->b[r], p->b_type, b, r);
    if (p->k == 16) dots(a, b, p->m, 16, sum);
    else if (p->k == 32) dots(a, b, p->m, 32, sum);
    else dots(a, b, p->m, 64, sum);
}

INLINE void count_bits(const Product *p, bool is_xor, u32 pieces, i32 (*sum)[COLUMNS]) {
    const u32 halves = p->m / 8;
    for (u32 row = 0; row < p->m; row++)
        for (u32 n = 0; n < COLUMNS; n++) {
            i32 count = 0;
            for (u32 piece = 0; piece < pieces; piece++) {
                u64 a[2], b[2];
                memcpy(a, p->a[halves * piece + row / 8] + 4 * (row % 8), 16);
                memcpy(b, p->b[piece] + 4 * n, 16);
                for (u32 h = 0; h < 2; h++) count += __builtin_popcountll(is_xor ? a[h] ^ b[h] : a[h] & b[h]);
            }
            sum[row][n] = count;
        }
}

VECTOR static void multiply_bits(const Product *p, i32 (*sum)[COLUMNS]) {
    if (p->flags & XOR) count_bits(p, true, p->b_registers, sum);
    else count_bits(p, false, p->b_registers, sum);
}

static i32 saturated(i64 value) { return value > INT32_MAX ? INT32_MAX : value < INT32_MIN ? INT32_MIN : (i32)value; }

VECTOR void multiply_integers(const Product *p, Result d) {
    i32 sum[16][COLUMNS];
    if (p->a_type == B1) multiply_bits(p, sum);
    else multiply_codes(p, sum);
    for (u32 i = 0; i < p->m / 4; i++)
        for (u32 l = 0; l < LANES; l++) {
            const i32 s = sum[l / 4 + 8 * (i >> 1)][2 * (l % 4) + (i & 1)];
            const u32 c = p->c[i][l];
            d[i][l] = p->flags & SATURATE ? (u32)saturated((i64)s + (i32)c) : (u32)s + c;
        }
}
