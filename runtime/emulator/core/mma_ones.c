/* Products of f16 or bf16 with ones, by which rows are added up, of sm_75 to sm_89: all columns are the same, and one is
 * computed. A chain of instructions that add to the same sums is done at once. */
#include "mma_columns.h"

#ifdef HAS_COLUMNS
enum { LEAST = -100, MOST = 100 }; /* exponents beyond which another way is needed: units are subnormal, or sums infinite */

INLINE bool all_are(const u32 *lanes, u32 value) {
    const __m512i x = _mm512_load_si512(lanes), y = _mm512_load_si512(lanes + ROWS), all = ALL(value);
    return !_mm512_test_epi32_mask(_mm512_xor_si512(x, all), ALL(-1)) && !_mm512_test_epi32_mask(_mm512_xor_si512(y, all), ALL(-1));
}

/* Whether C's columns are all the same: lanes 4n + q and 4n of two registers. */
INLINE bool are_alike(const u32 *const *c) {
    __m512i different = _mm512_setzero_si512();
    for (u32 r = 0; r < 4; r += 2)
        for (u32 l = 0; l < LANES; l += ROWS) {
            const __m512i x = _mm512_load_si512(c[r] + l), y = _mm512_load_si512(c[r + 1] + l);
            different = _mm512_ternarylogic_epi32(different, x, _mm512_shuffle_epi32(x, 0), 0xF6); /* | (x ^ y) */
            different = _mm512_ternarylogic_epi32(different, x, y, 0xF6);
        }
    return !_mm512_test_epi32_mask(different, different);
}

/* Eight numbers of each row and the sum so far, all cut at 2^-F of the largest exponent. False where they need another way. */
INLINE bool add_rows(const u32 *x, const u32 *y, u32 type, __m512 *sum) {
    const i32 bias = type == F16 ? 15 : 127, fraction = type == F16 ? 10 : 7, most_field = type == F16 ? 31 : bias + MOST;
    const __m512i magnitude = _mm512_and_si512(AS_INTS(*sum), ALL(0x7FFFFFFF));
    __m512i pairs[GROUP / 2], most = _mm512_setzero_si512(), field, top, units;
    __mmask16 nonzero, beyond;
    __m512 scale;
    transpose_pairs(x, y, pairs);
    for (u32 n = 0; n < GROUP / 2; n++) most = _mm512_max_epu16(most, _mm512_and_si512(pairs[n], ALL(0x7FFF7FFF)));
    most = _mm512_cvtepu16_epi32(_mm256_max_epu16(lower(most), upper(most)));
    nonzero = _mm512_test_epi32_mask(most, most), field = _mm512_max_epi32(_mm512_srli_epi32(most, (u32)fraction), ALL(1));
    beyond = _mm512_cmpge_epi32_mask(field, ALL(most_field)) | _mm512_cmpge_epi32_mask(magnitude, ALL(EXPONENT(MOST)));
    beyond |= _mm512_cmplt_epu32_mask(_mm512_sub_epi32(magnitude, ALL(1)), ALL(EXPONENT(LEAST) - 1));
    if (type == BF16) beyond |= _mm512_mask_cmplt_epi32_mask(nonzero, field, ALL(bias + LEAST));
    if (beyond) return false;
    top = _mm512_max_epi32(_mm512_and_si512(magnitude, ALL(0x7F800000)), ALL(EXPONENT(LEAST)));
    top = _mm512_mask_max_epi32(top, nonzero, top, _mm512_slli_epi32(_mm512_add_epi32(field, ALL(127 - bias)), 23));
    scale = AS_FLOATS(_mm512_sub_epi32(ALL(EXPONENT(F) + EXPONENT(0)), top));
    units = _mm512_cvttps_epi32(_mm512_mul_ps(*sum, scale));
    for (u32 k = 0; k < GROUP; k++) {
        const __m512 number = value(k % 2 ? upper(pairs[k / 2]) : lower(pairs[k / 2]), type);
        units = _mm512_add_epi32(units, _mm512_cvttps_epi32(_mm512_mul_ps(number, scale)));
    }
    *sum = _mm512_mul_ps(_mm512_cvt_roundepi32_ps(units, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC), AS_FLOATS(_mm512_sub_epi32(top, ALL(F << 23))));
    return true;
}

INLINE bool add_pieces(const u8 *slots, const Insn *i, u32 type, u32 pieces, __m512 *sum) {
    const u16 *a = i->operand + 4;
    for (u32 p = 0; p < pieces; p++, a += 2)
        if (!add_rows((const u32 *)(slots + (size_t)SLOT_BYTES * a[0]), (const u32 *)(slots + (size_t)SLOT_BYTES * a[1]), type, sum)) return false;
    return true;
}

INLINE u32 add_chain(u8 *slots, const Insn *i, u32 type, u32 pieces, u32 count) {
    const __m512i rows = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const u16 *const b = i->operand + 4 + 2 * pieces;
    const u32 *c[4];
    __m512i columns[4];
    __m512 sum, next;
    u32 done = 0;
    for (u32 r = 0; r < pieces; r++)
        if (!all_are((const u32 *)(slots + (size_t)SLOT_BYTES * b[r]), type == F16 ? 0x3C003C00 : 0x3F803F80)) return 0;
    for (u32 r = 0; r < 4; r++) c[r] = (const u32 *)(slots + (size_t)SLOT_BYTES * b[pieces + r]);
    if (!are_alike(c)) return 0;
    transpose(c[0], c[2], columns);
    sum = next = AS_FLOATS(columns[0]);
    while (done < count && !memcmp(i[done].operand + 4 + 2 * pieces, b, pieces * sizeof *b)) {
        if (!add_pieces(slots, i + done, type, pieces, &next)) break;
        sum = next, done++;
    }
    for (u32 n = 0; done && n < 4; n++) {
        const __m512 four = _mm512_permutexvar_ps(_mm512_add_epi32(rows, ALL(4 * n)), sum);
        for (u32 r = 0; r < 2; r++)
            _mm512_store_ps((u32 *)(slots + (size_t)SLOT_BYTES * i->operand[n / 2 * 2 + r]) + n % 2 * ROWS, four);
    }
    return done;
}

static u32 add_f16(u8 *slots, const Insn *i, u32 pieces, u32 count) { return add_chain(slots, i, F16, pieces, count); }
static u32 add_bf16(u8 *slots, const Insn *i, u32 pieces, u32 count) { return add_chain(slots, i, BF16, pieces, count); }
#pragma GCC pop_options

u32 multiply_by_ones(const struct Fragments *f, u8 *slots, const Insn *i, u32 type, u32 pieces, u32 count) {
    return f ? (type == F16 ? add_f16 : add_bf16)(slots, i, pieces, count) : 0;
}
#else
u32 multiply_by_ones(const struct Fragments *f, u8 *slots, const Insn *i, u32 type, u32 pieces, u32 count) {
    (void)f, (void)slots, (void)i, (void)type, (void)pieces, (void)count;
    return 0;
}
#endif
