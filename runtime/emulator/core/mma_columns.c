/* Products of f16 or bf16 that are added to f32 by sums of eight, where the processor has AVX-512: sixteen rows in a
 * vector, one column after another.
 *
 * Where nothing is cut when the addends of a sum are aligned, the hardware's result is the exact sum, cut to f32. That is
 * so where all addends are multiples of 2^(top - F), top being at least the largest exponent. And the sum of the products
 * is exact in f32 in any order where all partial sums are below 2^24 of what all products are multiples of: weights of
 * few bits and activations that are not too far apart. Both are decided for a column of B with all rows of A, by the
 * largest and the least bit in either; for C by itself. The columns that remain are aligned and cut product by product. */
#include "mma_columns.h"
#include <stdlib.h>

#ifdef HAS_COLUMNS
/* What the numbers of each row have in common; exponents as the bits of a power of two. */
typedef struct {
    __m512i top;   /* of the largest, as the hardware takes it */
    __m512i low;   /* all are multiples of it */
    __m512 most;   /* the largest magnitude, in units of the latter */
} Extent;

/* Of vectors of two numbers in each row. False where there are infinities or NaN, or bf16 whose products may be beyond
 * f32 or be subnormal in it. */
INLINE bool measure(const __m512i *pairs, u32 type, Extent *e) {
    const u32 fraction = type == F16 ? 10 : 7;
    const i32 bias = type == F16 ? 15 : 127;
    const __m512i one = ALL(1), hidden = ALL(1 << fraction);
    __m512i most = _mm512_setzero_si512(), least = ALL(-1), bits = most, field;
    __m256i half;
    for (u32 n = 0; n < 4; n++) { /* a zero is no least */
        const __m512i magnitude = _mm512_and_si512(pairs[n], ALL(0x7FFF7FFF));
        most = _mm512_max_epu16(most, magnitude), bits = _mm512_or_si512(bits, magnitude);
        least = _mm512_min_epu16(least, _mm512_add_epi16(magnitude, ALL(-1)));
    }
    half = _mm256_max_epu16(lower(most), upper(most));
    most = _mm512_cvtepu16_epi32(half);
    e->most = value(half, type);
    half = _mm256_min_epu16(lower(least), upper(least));
    least = _mm512_cvtepu16_epi32(_mm256_add_epi16(half, _mm256_set1_epi16(1)));
    bits = _mm512_cvtepu16_epi32(_mm256_or_si256(lower(bits), upper(bits)));
    bits = _mm512_or_si512(_mm512_and_si512(bits, _mm512_sub_epi32(hidden, one)), hidden);
    bits = _mm512_and_si512(bits, _mm512_sub_epi32(_mm512_setzero_si512(), bits)); /* the lowest */
    field = _mm512_max_epi32(_mm512_srli_epi32(least, fraction), one);
    e->low = AS_INTS(_mm512_cvtepi32_ps(bits));
    e->low = _mm512_add_epi32(e->low, _mm512_slli_epi32(_mm512_sub_epi32(field, ALL(bias + (i32)fraction)), 23));
    e->most = _mm512_mul_ps(e->most, AS_FLOATS(_mm512_sub_epi32(ALL(254u << 23), e->low)));
    field = _mm512_max_epi32(_mm512_srli_epi32(most, fraction), one);
    e->top = _mm512_slli_epi32(_mm512_add_epi32(field, ALL(127 - bias)), 23);
    if (type == F16) return !_mm512_cmpge_epi32_mask(most, ALL(0x7C00));
    return !(_mm512_cmpge_epi32_mask(most, ALL((127 + 40) << 7)) |
             (_mm512_cmplt_epi32_mask(least, ALL((127 - 40) << 7)) & _mm512_cmpneq_epi32_mask(most, _mm512_setzero_si512())));
}

/* Exponents of pairs, biased, in units of 64; below those of all products where the number is zero. */
INLINE __m512i exponents(__m512i pairs, u32 type) {
    const __m512i magnitude = _mm512_and_si512(pairs, ALL(0x7FFF7FFF));
    const __m512i field = _mm512_slli_epi16(_mm512_srli_epi16(magnitude, type == F16 ? 10 : 7), 6);
    return _mm512_mask_max_epi16(_mm512_set1_epi16(-16384), _mm512_test_epi16_mask(magnitude, magnitude), field, _mm512_set1_epi16(64));
}

INLINE void convert_columns(const Step *s, u32 type, Columns *to) {
    __m512i columns[GROUP / 2];
    __m512 sum = _mm512_setzero_ps(), low;
    Extent e;
    to->type = type, to->k = s->k;
    for (u32 p = 0; p < s->k; p++) {
        memcpy(to->registers[p], s->b[p], sizeof to->registers[p]);
        for (u32 n = 0; n < COLUMNS * GROUP; n += ROWS) /* a column's values lie one after another */
            _mm512_store_ps(to->value[p][0] + n, value(_mm256_loadu_si256((const __m256i *)(s->b[p] + n / 2)), type));
    }
    transpose_pairs(s->b[0], s->b[s->k - 1], columns);
    to->fits = measure(columns, type, &e);
    low = AS_FLOATS(e.top);
    for (u32 k = 0; k < GROUP; k++) {
        const __m512 x = value(k % 2 ? upper(columns[k / 2]) : lower(columns[k / 2]), type);
        const __m512i bits = AS_INTS(x), others = _mm512_and_si512(bits, _mm512_sub_epi32(bits, ALL(1))); /* but for the lowest bit */
        sum = _mm512_add_ps(sum, _mm512_abs_ps(x)); /* exact, or beyond what matters */
        low = _mm512_mask_min_ps(low, _mm512_test_epi32_mask(bits, bits), low, _mm512_abs_ps(_mm512_sub_ps(x, AS_FLOATS(others))));
    }
    e.low = _mm512_and_si512(AS_INTS(low), ALL(0x7F800000)); /* of a power of two, half of it at least */
    to->sums = _mm512_mul_ps(sum, AS_FLOATS(_mm512_sub_epi32(ALL(254u << 23), e.low)));
    to->span = _mm512_sub_epi32(e.top, e.low);
    _mm512_storeu_si512(to->scale, _mm512_sub_epi32(ALL(254u << 23), e.top));
    _mm512_storeu_si512(to->limit, _mm512_sub_epi32(e.low, ALL(EXPONENT(0))));
}
__attribute__((noinline)) static void convert_columns_f16(const Step *s, Columns *to) { convert_columns(s, F16, to); }
__attribute__((noinline)) static void convert_columns_bf16(const Step *s, Columns *to) { convert_columns(s, BF16, to); }

INLINE const Columns *columns_of(const Step *s, u32 type) {
    Columns *kept = s->fragments->columns + s->b_slot / 2 % KEPT;
    if (kept->type != s->type || kept->k != s->k || !same_registers(kept->registers, s))
        (type == F16 ? convert_columns_f16 : convert_columns_bf16)(s, kept);
    return kept;
}

/* One piece of k of A, apart from its numbers. */
typedef struct {
    const Columns *b;
    u32 piece;
    __m512i scale, limit; /* exponents, to be added to those of columns */
} Piece;

/* The rows where C's bits below what products are aligned to, and products' below what C is, are zeros. */
INLINE __mmask16 is_whole_sum(const Piece *p, u32 column, __m512 c, __mmask16 rows) {
    const __m512i scale = _mm512_add_epi32(p->scale, ALL(p->b->scale[p->piece][column]));
    const __m512 limit = AS_FLOATS(_mm512_add_epi32(p->limit, ALL(p->b->limit[p->piece][column])));
    const __m512 units = _mm512_mul_ps(c, AS_FLOATS(scale)), whole = _mm512_roundscale_ps(units, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    return _mm512_mask_cmp_ps_mask(_mm512_mask_cmp_ps_mask(rows, units, whole, _CMP_EQ_OQ), _mm512_abs_ps(c), limit, _CMP_LT_OQ);
}
__attribute__((noinline)) static u32 cut_by_c(const Piece *p, u32 suspects, const __m512 *c) {
    u32 columns = 0;
    EACH(suspects, column) columns |= (u32)(is_whole_sum(p, column, c[column], 0xFFFF) != 0xFFFF) << column;
    return columns;
}

INLINE void load_rows(const Step *s, u32 type, u32 piece, __m512i *rows, __m512 *a) {
    transpose_pairs(s->a[2 * piece], s->a[2 * piece + 1], rows);
    for (u32 k = 0; k < GROUP; k++) a[k] = value(k % 2 ? upper(rows[k / 2]) : lower(rows[k / 2]), type);
}

/* Some columns, aligned and cut product by product; false where C is infinite, NaN or next to nothing. */
INLINE bool cut_products(const Step *s, u32 type, u32 piece, u32 columns, const __m512 *c, __m512 *d) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                                23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const i32 bias = type == F16 ? 15 : 127;
    __m512i rows[GROUP / 2], exponent[GROUP / 2];
    __m512 a[GROUP];
    load_rows(s, type, piece, rows, a);
    for (u32 n = 0; n < GROUP / 2; n++) exponent[n] = _mm512_permutexvar_epi16(interleave, exponents(rows[n], type));
    EACH(columns, column) {
        const __m512i magnitude = _mm512_and_si512(AS_INTS(c[column]), ALL(0x7FFFFFFF)), own = _mm512_and_si512(magnitude, ALL(0x7F800000));
        const __m512i pairs = _mm512_castsi128_si512(_mm_load_si128((const __m128i *)(s->b[piece] + GROUP / 2 * column)));
        const __m512 values = value(lower(pairs), type);
        const __m512i fields = exponents(pairs, type);
        __m512i top = _mm512_set1_epi16(-32768), sum;
        __m512 scale;
        if (_mm512_cmpge_epi32_mask(magnitude, ALL(EXPONENT(128))) |
            _mm512_cmplt_epu32_mask(_mm512_sub_epi32(magnitude, ALL(1)), ALL(EXPONENT(-100) - 1))) return false;
        for (u32 n = 0; n < GROUP / 2; n++)
            top = _mm512_max_epi16(top, _mm512_add_epi16(exponent[n], _mm512_permutexvar_epi32(ALL(n), fields)));
        top = _mm512_srai_epi32(_mm512_max_epi16(top, _mm512_rol_epi32(top, 16)), 22);
        top = _mm512_max_epi32(_mm512_add_epi32(top, ALL(127 - 2 * bias)), _mm512_setzero_si512()); /* zeros have less */
        top = _mm512_slli_epi32(top, 23);
        top = _mm512_max_epi32(_mm512_max_epi32(top, own), ALL(EXPONENT(-100)));
        scale = AS_FLOATS(_mm512_sub_epi32(ALL(EXPONENT(F) + EXPONENT(0)), top));
        sum = _mm512_cvttps_epi32(_mm512_mul_ps(c[column], scale));
        UNROLL for (u32 k = 0; k < GROUP; k++) {
            const __m512 product = _mm512_mul_ps(a[k], _mm512_permutexvar_ps(ALL(k), values));
            sum = _mm512_add_epi32(sum, _mm512_cvttps_epi32(_mm512_mul_ps(product, scale)));
        }
        d[column] = _mm512_mul_ps(_mm512_cvt_roundepi32_ps(sum, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC),
                                  AS_FLOATS(_mm512_sub_epi32(top, ALL(F << 23))));
    }
    return true;
}
__attribute__((noinline)) static bool cut_columns_f16(const Step *s, u32 piece, u32 columns, const __m512 *c, __m512 *d) {
    return cut_products(s, F16, piece, columns, c, d);
}
__attribute__((noinline)) static bool cut_columns_bf16(const Step *s, u32 piece, u32 columns, const __m512 *c, __m512 *d) {
    return cut_products(s, BF16, piece, columns, c, d);
}

/* A piece of k, as if nothing were cut; columns of which that is not certain again. */
INLINE bool add_piece(const Step *s, u32 type, const Columns *b, u32 piece, const __m512 *c, __m512 *d) {
    const float *values = b->value[piece][0];
    __mmask16 certain, whole[4] = {0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF};
    __m512i rows[GROUP / 2];
    __m512 a[GROUP];
    Piece p = {.b = b, .piece = piece};
    Extent e;
    u32 uncertain, suspects = 0;
    load_rows(s, type, piece, rows, a);
    if (!measure(rows, type, &e)) return false;
    certain = _mm512_cmp_ps_mask(_mm512_mul_ps(b->sums, _mm512_set1_ps(_mm512_reduce_max_ps(e.most))), _mm512_set1_ps(0x1p24f), _CMP_LE_OQ);
    certain &= _mm512_cmple_epi32_mask(b->span, ALL((F << 23) - _mm512_reduce_max_epi32(_mm512_sub_epi32(e.top, e.low))));
    uncertain = ~(u32)certain >> COLUMNS * piece & 0xFF;
    p.scale = _mm512_sub_epi32(ALL(EXPONENT(F)), e.top), p.limit = _mm512_add_epi32(ALL((F + 1) << 23), e.low);
    UNROLL for (u32 column = 0; column < COLUMNS; column++) {
        __m512 sum = _mm512_setzero_ps();
        whole[column % 4] = is_whole_sum(&p, column, c[column], whole[column % 4]);
        UNROLL for (u32 k = 0; k < GROUP; k++) sum = _mm512_fmadd_ps(a[k], _mm512_set1_ps(values[GROUP * column + k]), sum);
        d[column] = _mm512_add_round_ps(sum, c[column], _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    }
    if ((whole[0] & whole[1] & whole[2] & whole[3]) != 0xFFFF) {
        const Piece again = p;
        for (u32 n = 0; n < 4; n++) if (whole[n] != 0xFFFF) suspects |= 0x11u << n;
        uncertain |= cut_by_c(&again, suspects, c);
    }
    return !uncertain || (type == F16 ? cut_columns_f16 : cut_columns_bf16)(s, piece, uncertain, c, d);
}

INLINE bool multiply(const Step *s, u32 type) {
    const Columns *b = columns_of(s, type);
    __m512 sum[2][COLUMNS], half[4];
    if (!b->fits) return false;
    for (u32 parity = 0; parity < 2; parity++) {
        __m512i c[4];
        transpose(s->c[parity], s->c[parity + 2], c);
        for (u32 q = 0; q < 4; q++) sum[0][2 * q + parity] = AS_FLOATS(c[q]);
    }
    if (!add_piece(s, type, b, 0, sum[0], sum[1])) return false;
    if (s->k == 2 && !add_piece(s, type, b, 1, sum[1], sum[0])) return false;
    for (u32 parity = 0; parity < 2; parity++) {
        for (u32 q = 0; q < 4; q++) half[q] = sum[s->k % 2][2 * q + parity];
        transpose_back(half, s->d[parity], s->d[parity + 2]);
    }
    return true;
}

static bool multiply_f16(const Step *s) { return multiply(s, F16); }
static bool multiply_bf16(const Step *s) { return multiply(s, BF16); }
#pragma GCC pop_options

struct Fragments *new_fragments(void) {
    struct Fragments *f;
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) return NULL;
    f = calloc(1, sizeof *f);
    if (!f) return NULL;
    f->columns = aligned_alloc(CACHE_LINE, KEPT * sizeof *f->columns), f->numbers = new_numbers();
    if (!f->columns || !f->numbers) {
        free_fragments(f);
        return NULL;
    }
    memset(f->columns, 0, KEPT * sizeof *f->columns);
    return f;
}
void free_fragments(struct Fragments *f) {
    if (f) free(f->columns), free(f->numbers);
    free(f);
}

bool multiply_columns(const Step *s) { return s->fragments && (s->type == F16 ? multiply_f16(s) : multiply_bf16(s)); }
#else
struct Fragments *new_fragments(void) { return NULL; }
void free_fragments(struct Fragments *f) { (void)f; }
bool multiply_columns(const Step *s) {
    (void)s;
    return false;
}
#endif
