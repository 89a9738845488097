/* Products of f16 or bf16 that are added to f32 by sums of eight, where the processor has AVX-512: sixteen rows in a
 * vector, one column after another.
 *
 * Where nothing is cut when the addends of a sum are aligned, the hardware's result is the exact sum, cut to f32. That is
 * so where all addends are multiples of 2^(top - F), top being at least the largest exponent. And the sum of the products
 * is exact in f32 in any order where all partial sums are below 2^24 of what all products are multiples of: weights of
 * few bits and activations that are not too far apart. Both are decided for a column of B with all rows of A, by the
 * largest and the least bit in either; for C by itself. The columns that remain are aligned and cut product by product. */
#include "mma.h"
#include <stdlib.h>

#if defined(__x86_64__) && defined(__GLIBC__) && __GNUC__ >= 12 && !defined(__clang__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#pragma GCC optimize("schedule-insns") /* chains of additions take turns: the processor looks ahead less far than they are long */

#define F 24           /* fractional bits of an aligned addend */
#define GROUP 8        /* products in a sum */
enum { ROWS = 16, PIECES = 2, LEAST_TOP = 127 - 100 };
#define EXPONENT(e) ((u32)((e) + 127) << 23) /* bits of 2^e in f32 */
#define ALL(x) _mm512_set1_epi32((i32)(x))
#define UNROLL _Pragma("GCC unroll 16")
#define AS_FLOATS(x) _mm512_castsi512_ps(x)
#define AS_INTS(x) _mm512_castps_si512(x)

/* Lanes 4 row + q of x, which has rows 0 to 7, and of y, which has the others, to lanes row of vectors q. */
INLINE void transpose(const u32 *x, const u32 *y, __m512i *to) {
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29), two = ALL(2);
    const __m512i x0 = _mm512_loadu_si512(x), x1 = _mm512_loadu_si512(x + 16), y0 = _mm512_loadu_si512(y), y1 = _mm512_loadu_si512(y + 16);
    for (u32 n = 0; n < 2; n++) {
        const __m512i index = n ? _mm512_add_epi32(first, two) : first;
        const __m512i low = _mm512_permutex2var_epi32(x0, index, x1), high = _mm512_permutex2var_epi32(y0, index, y1);
        to[2 * n] = _mm512_shuffle_i64x2(low, high, 0x44), to[2 * n + 1] = _mm512_shuffle_i64x2(low, high, 0xEE);
    }
}
INLINE void transpose_back(const __m512 *from, u32 *x, u32 *y) {
    const __m512i first = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27), four = ALL(4);
    const __m512i a = AS_INTS(from[0]), b = AS_INTS(from[1]), c = AS_INTS(from[2]), d = AS_INTS(from[3]);
    const __m512i x01 = _mm512_shuffle_i64x2(a, b, 0x44), x23 = _mm512_shuffle_i64x2(c, d, 0x44);
    const __m512i y01 = _mm512_shuffle_i64x2(a, b, 0xEE), y23 = _mm512_shuffle_i64x2(c, d, 0xEE);
    _mm512_storeu_si512(x, _mm512_permutex2var_epi32(x01, first, x23));
    _mm512_storeu_si512(x + 16, _mm512_permutex2var_epi32(x01, _mm512_add_epi32(first, four), x23));
    _mm512_storeu_si512(y, _mm512_permutex2var_epi32(y01, first, y23));
    _mm512_storeu_si512(y + 16, _mm512_permutex2var_epi32(y01, _mm512_add_epi32(first, four), y23));
}

/* The same of pairs of 16 bits: a vector has all first ones of pairs q, then all second ones. */
INLINE void transpose_pairs(const u32 *x, const u32 *y, __m512i *to) {
    const __m512i rows = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29), two = ALL(2);
    const __m512i first = _mm512_set_epi16(47, 45, 43, 41, 39, 37, 35, 33, 15, 13, 11, 9, 7, 5, 3, 1, 46, 44, 42, 40, 38, 36, 34, 32,
                                           14, 12, 10, 8, 6, 4, 2, 0), next = _mm512_set1_epi16(16);
    const __m512i x0 = _mm512_loadu_si512(x), x1 = _mm512_loadu_si512(x + 16), y0 = _mm512_loadu_si512(y), y1 = _mm512_loadu_si512(y + 16);
    for (u32 n = 0; n < 2; n++) {
        const __m512i index = n ? _mm512_add_epi32(rows, two) : rows;
        const __m512i low = _mm512_permutex2var_epi32(x0, index, x1), high = _mm512_permutex2var_epi32(y0, index, y1);
        to[2 * n] = _mm512_permutex2var_epi16(low, first, high);
        to[2 * n + 1] = _mm512_permutex2var_epi16(low, _mm512_add_epi16(first, next), high);
    }
}

INLINE __m512 value(__m256i halves, u32 type) {
    return type == F16 ? _mm512_cvtph_ps(halves) : AS_FLOATS(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
INLINE __m256i upper(__m512i x) { return _mm512_extracti64x4_epi64(x, 1); }
INLINE __m256i lower(__m512i x) { return _mm512_castsi512_si256(x); }

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

/* B's fragment as its registers were when it was converted; most are used again. */
typedef struct {
    _Alignas(CACHE_LINE) u32 registers[PIECES][LANES];
    float value[PIECES][COLUMNS][GROUP];
    u32 exponent[PIECES][COLUMNS][GROUP / 2]; /* of two k each */
    u32 scale[PIECES][COLUMNS], limit[PIECES][COLUMNS]; /* exponents, to be added to those of rows */
    __m512 sums;  /* of magnitudes, in units of the least */
    __m512i span;
    u32 type, k;  /* k: 0 where there is nothing */
    /* for codes, below: exponents of the largest of any four k's numbers; the numbers but for the one in each column that
     * is cut first; that one, and where it is; exponents of what the others are multiples of; the sums of these in its units */
    _Alignas(CACHE_LINE) u8 top[PIECES][2][COLUMNS][16];
    float rest[PIECES][COLUMNS][GROUP], least[PIECES][COLUMNS];
    u32 least_at[PIECES][COLUMNS], unit[PIECES][COLUMNS];
    __m512 rest_sums;
    bool fits;    /* the numbers are what this file is for */
    bool alike;   /* all columns are the same, as those of ones are, by which rows are added up */
} Columns;
enum { KEPT = 64 };
struct Fragments {
    Columns kept[KEPT];
};

INLINE bool same_registers(const Columns *kept, const Step *s) {
    __m512i different = _mm512_setzero_si512();
    for (u32 r = 0; r < s->k; r++)
        for (u32 l = 0; l < LANES; l += ROWS) {
            const __m512i x = _mm512_loadu_si512(s->b[r] + l), y = _mm512_load_si512(kept->registers[r] + l);
            different = _mm512_ternarylogic_epi32(different, x, y, 0xF6); /* | (x ^ y) */
        }
    return kept->type == s->type && kept->k == s->k && !_mm512_test_epi32_mask(different, different);
}

/* Whether a register's lanes 4n + q are the same for all n. */
INLINE __m512i unlike_columns(const u32 *lanes) {
    const __m512i x = _mm512_loadu_si512(lanes), y = _mm512_loadu_si512(lanes + ROWS), first = _mm512_shuffle_i32x4(x, x, 0);
    return _mm512_or_si512(_mm512_xor_si512(x, first), _mm512_xor_si512(y, first));
}
INLINE bool same_columns(const u32 *const *registers, u32 count) {
    __m512i different = unlike_columns(registers[0]);
    if (count > 1) different = _mm512_or_si512(different, unlike_columns(registers[1]));
    return !_mm512_test_epi32_mask(different, different);
}

/* Of each column's first and last four k: what four bits, one for each k, choose of their exponents in products. */
INLINE void note_tops(const Step *s, Columns *to) {
    static const u64 chosen[GROUP / 2] = {0xAAAAAAAAAAAAAAAA, 0xCCCCCCCCCCCCCCCC, 0xF0F0F0F0F0F0F0F0, 0xFF00FF00FF00FF00};
    for (u32 p = 0; p < s->k; p++)
        for (u32 n = 0; n < COLUMNS; n += 4) {
            const __m512i magnitude = _mm512_and_si512(_mm512_loadu_si512(s->b[p] + 4 * n), _mm512_set1_epi16(0x7FFF));
            const __m512i field = _mm512_max_epu16(_mm512_srli_epi16(magnitude, 10), _mm512_set1_epi16(1));
            const __m512i least = _mm512_set1_epi16(LEAST_TOP);
            const __m512i top = _mm512_mask_add_epi16(least, _mm512_test_epi16_mask(magnitude, magnitude), field, _mm512_set1_epi16(127 - 14 - 15));
            for (u32 half = 0; half < 2; half++) {
                __m512i most = _mm512_set1_epi8(LEAST_TOP);
                for (u32 k = 0; k < GROUP / 2; k++) {
                    const __m512i one = _mm512_shuffle_epi8(top, _mm512_set1_epi8((char)(2 * (4 * half + k))));
                    most = _mm512_mask_max_epu8(most, chosen[k], most, one);
                }
                _mm512_store_si512(to->top[p][half][n], most);
            }
        }
}

/* Takes from each column the number whose lowest bit is the least. `columns`: numbers of k, by columns of both pieces. */
INLINE void set_least_apart(const __m512 *columns, Columns *to) {
    __m512i least = ALL(-1), second = least;
    __m512 sum = _mm512_setzero_ps(), value = sum;
    u32 at[ROWS];
    for (u32 k = 0; k < GROUP; k++) {
        const __m512i bits = AS_INTS(columns[k]), others = _mm512_and_si512(bits, _mm512_sub_epi32(bits, ALL(1)));
        const __m512i low = AS_INTS(_mm512_abs_ps(_mm512_sub_ps(columns[k], AS_FLOATS(others)))); /* but for powers of two */
        const __m512i key = _mm512_or_si512(_mm512_and_si512(low, ALL(0x7F800000)), ALL(k));
        const __m512i own = _mm512_mask_mov_epi32(ALL(-1), _mm512_cmpneq_epi32_mask(_mm512_slli_epi32(bits, 1), _mm512_setzero_si512()), key);
        second = _mm512_min_epu32(second, _mm512_max_epu32(least, own)), least = _mm512_min_epu32(least, own);
        sum = _mm512_add_ps(sum, _mm512_abs_ps(columns[k]));
    }
    _mm512_storeu_si512(at, _mm512_and_si512(least, ALL(GROUP - 1)));
    _mm512_storeu_si512(to->least_at, _mm512_and_si512(least, ALL(GROUP - 1)));
    memcpy(to->rest, to->value, sizeof to->rest);
    for (u32 n = 0; n < ROWS; n++) {
        const u32 p = n / COLUMNS, column = n % COLUMNS;
        to->least[p][column] = to->value[p][column][at[n]], to->rest[p][column][at[n]] = 0;
    }
    second = _mm512_min_epu32(_mm512_and_si512(second, ALL(0x7F800000)), ALL(EXPONENT(12)));
    (void)value;
    to->rest_sums = _mm512_mul_ps(sum, AS_FLOATS(_mm512_sub_epi32(ALL(254u << 23), second)));
    _mm512_storeu_si512(to->unit, _mm512_sub_epi32(second, ALL(EXPONENT(0))));
}

INLINE void convert_columns(const Step *s, u32 type, Columns *to) {
    __m512i columns[GROUP / 2];
    __m512 number[GROUP], sum = _mm512_setzero_ps(), low;
    Extent e;
    to->type = type, to->k = s->k;
    for (u32 p = 0; p < s->k; p++) {
        memcpy(to->registers[p], s->b[p], sizeof to->registers[p]);
        for (u32 n = 0; n < COLUMNS * GROUP; n += ROWS) /* a column's values lie one after another */
            _mm512_store_ps(to->value[p][0] + n, value(_mm256_loadu_si256((const __m256i *)(s->b[p] + n / 2)), type));
        for (u32 n = 0; n < COLUMNS * GROUP / 2; n += ROWS)
            _mm512_store_si512(to->exponent[p][0] + n, exponents(_mm512_loadu_si512(s->b[p] + n), type));
    }
    transpose_pairs(s->b[0], s->b[s->k - 1], columns);
    to->fits = measure(columns, type, &e);
    low = AS_FLOATS(e.top);
    for (u32 k = 0; k < GROUP; k++) {
        const __m512 x = number[k] = value(k % 2 ? upper(columns[k / 2]) : lower(columns[k / 2]), type);
        const __m512i bits = AS_INTS(x), others = _mm512_and_si512(bits, _mm512_sub_epi32(bits, ALL(1))); /* but for the lowest bit */
        sum = _mm512_add_ps(sum, _mm512_abs_ps(x)); /* exact, or beyond what matters */
        low = _mm512_mask_min_ps(low, _mm512_test_epi32_mask(bits, bits), low, _mm512_abs_ps(_mm512_sub_ps(x, AS_FLOATS(others))));
    }
    e.low = _mm512_and_si512(AS_INTS(low), ALL(0x7F800000)); /* of a power of two, half of it at least */
    to->sums = _mm512_mul_ps(sum, AS_FLOATS(_mm512_sub_epi32(ALL(254u << 23), e.low)));
    to->alike = same_columns(s->b, s->k);
    to->span = _mm512_sub_epi32(e.top, e.low);
    _mm512_storeu_si512(to->scale, _mm512_sub_epi32(ALL(254u << 23), e.top));
    _mm512_storeu_si512(to->limit, _mm512_sub_epi32(e.low, ALL(EXPONENT(0))));
    if (type == F16 && s->k == PIECES) note_tops(s, to), set_least_apart(number, to);
}
__attribute__((noinline)) static void convert_columns_f16(const Step *s, Columns *to) { convert_columns(s, F16, to); }
__attribute__((noinline)) static void convert_columns_bf16(const Step *s, Columns *to) { convert_columns(s, BF16, to); }

INLINE const Columns *columns_of(const Step *s, u32 type) {
    Columns *kept = s->fragments->kept + s->b_slot / 2 % KEPT;
    if (!same_registers(kept, s)) (type == F16 ? convert_columns_f16 : convert_columns_bf16)(s, kept);
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
INLINE bool add_with_cuts(const Step *s, u32 type, u32 piece, const Columns *b, u32 columns, const __m512 *c, __m512 *d) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                                23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const i32 bias = type == F16 ? 15 : 127;
    __m512i rows[GROUP / 2], exponent[GROUP / 2];
    __m512 a[GROUP];
    load_rows(s, type, piece, rows, a);
    for (u32 n = 0; n < GROUP / 2; n++) exponent[n] = _mm512_permutexvar_epi16(interleave, exponents(rows[n], type));
    EACH(columns, column) {
        const __m512i magnitude = _mm512_and_si512(AS_INTS(c[column]), ALL(0x7FFFFFFF)), own = _mm512_and_si512(magnitude, ALL(0x7F800000));
        const float *values = b->value[piece][column];
        __m512i top = _mm512_set1_epi16(-32768), sum;
        __m512 scale;
        if (_mm512_cmpge_epi32_mask(magnitude, ALL(EXPONENT(128))) |
            _mm512_cmplt_epu32_mask(_mm512_sub_epi32(magnitude, ALL(1)), ALL(EXPONENT(-100) - 1))) return false;
        for (u32 n = 0; n < GROUP / 2; n++)
            top = _mm512_max_epi16(top, _mm512_add_epi16(exponent[n], ALL(b->exponent[piece][column][n])));
        top = _mm512_srai_epi32(_mm512_max_epi16(top, _mm512_rol_epi32(top, 16)), 22);
        top = _mm512_max_epi32(_mm512_add_epi32(top, ALL(127 - 2 * bias)), _mm512_setzero_si512()); /* zeros have less */
        top = _mm512_slli_epi32(top, 23);
        top = _mm512_max_epi32(_mm512_max_epi32(top, own), ALL(EXPONENT(-100)));
        scale = AS_FLOATS(_mm512_sub_epi32(ALL(EXPONENT(F) + EXPONENT(0)), top));
        sum = _mm512_cvttps_epi32(_mm512_mul_ps(c[column], scale));
        UNROLL for (u32 k = 0; k < GROUP; k++) {
            const __m512 product = _mm512_mul_ps(a[k], _mm512_set1_ps(values[k]));
            sum = _mm512_add_epi32(sum, _mm512_cvttps_epi32(_mm512_mul_ps(product, scale)));
        }
        d[column] = _mm512_mul_ps(_mm512_cvt_roundepi32_ps(sum, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC),
                                  AS_FLOATS(_mm512_sub_epi32(top, ALL(F << 23))));
    }
    return true;
}
#define WITH_CUTS(type, TYPE)                                                                                               \
    __attribute__((noinline)) static bool add_with_cuts_##type(const Step *s, u32 piece, const Columns *b, u32 columns,     \
                                                               const __m512 *c, __m512 *d) {                                \
        return add_with_cuts(s, TYPE, piece, b, columns, c, d);                                                             \
    }
WITH_CUTS(f16, F16)
WITH_CUTS(bf16, BF16)

/* A piece of k in the first columns, as if nothing were cut; those of which that is not certain again. */
INLINE bool add_piece(const Step *s, u32 type, u32 count, const Columns *b, u32 piece, const __m512 *c, __m512 *d) {
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
    uncertain = ~(u32)certain >> COLUMNS * piece & ((1u << count) - 1);
    p.scale = _mm512_sub_epi32(ALL(EXPONENT(F)), e.top), p.limit = _mm512_add_epi32(ALL((F + 1) << 23), e.low);
    UNROLL for (u32 column = 0; column < count; column++) {
        __m512 sum = _mm512_setzero_ps();
        whole[column % 4] = is_whole_sum(&p, column, c[column], whole[column % 4]);
        UNROLL for (u32 k = 0; k < GROUP; k++) sum = _mm512_fmadd_ps(a[k], _mm512_set1_ps(values[GROUP * column + k]), sum);
        d[column] = _mm512_add_round_ps(sum, c[column], _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    }
    if ((whole[0] & whole[1] & whole[2] & whole[3]) != 0xFFFF) {
        const Piece again = p;
        for (u32 n = 0; n < 4; n++) if (whole[n] != 0xFFFF) suspects |= 0x11u << n;
        uncertain |= cut_by_c(&again, suspects & ((1u << count) - 1), c);
    }
    return !uncertain || (type == F16 ? add_with_cuts_f16 : add_with_cuts_bf16)(s, piece, b, uncertain, c, d);
}

INLINE bool add_pieces(const Step *s, u32 type, u32 count, const Columns *b, __m512 (*sum)[COLUMNS]) {
    if (!add_piece(s, type, count, b, 0, sum[0], sum[1])) return false;
    return s->k == 1 || add_piece(s, type, count, b, 1, sum[1], sum[0]);
}

/* Whether C's columns are all the same: lanes 4n + q and 4n of two registers. */
INLINE bool same_sums(const Step *s) {
    __m512i different = _mm512_setzero_si512();
    for (u32 r = 0; r < 4; r += 2)
        for (u32 l = 0; l < LANES; l += ROWS) {
            const __m512i x = _mm512_loadu_si512((const u32 *)s->c[r] + l), y = _mm512_loadu_si512((const u32 *)s->c[r + 1] + l);
            different = _mm512_ternarylogic_epi32(different, x, _mm512_shuffle_epi32(x, 0), 0xF6);
            different = _mm512_ternarylogic_epi32(different, x, y, 0xF6);
        }
    return !_mm512_test_epi32_mask(different, different);
}

/* One column for all. */
INLINE bool multiply_alike(const Step *s, u32 type, const Columns *b) {
    const __m512i rows = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    __m512 sum[2][COLUMNS]; /* C and what is added to it, in turns */
    __m512i c[4];
    transpose(s->c[0], s->c[2], c);
    sum[0][0] = AS_FLOATS(c[0]);
    if (!add_pieces(s, type, 1, b, sum)) return false;
    for (u32 n = 0; n < 4; n++) {
        const __m512 four = _mm512_permutexvar_ps(_mm512_add_epi32(rows, ALL(4 * n)), sum[s->k % 2][0]);
        for (u32 r = 0; r < 2; r++) _mm512_storeu_ps((u32 *)s->d[n / 2 * 2 + r] + n % 2 * ROWS, four);
    }
    return true;
}

INLINE bool multiply(const Step *s, u32 type) {
    const Columns *b = columns_of(s, type);
    __m512 sum[2][COLUMNS], half[4];
    if (!b->fits) return false;
    if (b->alike && same_sums(s)) return multiply_alike(s, type, b);
    for (u32 parity = 0; parity < 2; parity++) {
        __m512i c[4];
        transpose(s->c[parity], s->c[parity + 2], c);
        for (u32 q = 0; q < 4; q++) sum[0][2 * q + parity] = AS_FLOATS(c[q]);
    }
    if (!add_pieces(s, type, COLUMNS, b, sum)) return false;
    for (u32 parity = 0; parity < 2; parity++) {
        for (u32 q = 0; q < 4; q++) half[q] = sum[s->k % 2][2 * q + parity];
        transpose_back(half, s->d[parity], s->d[parity + 2]);
    }
    return true;
}

static bool multiply_f16(const Step *s) { return multiply(s, F16); }
static bool multiply_bf16(const Step *s) { return multiply(s, BF16); }

/* Codes: f16 that are whole multiples of 2^-24 below 2^-13, as weights of few bits are before their scale: one exponent.
 *
 * The largest exponent in a sum is then that of B's largest number that no code 0 meets, or C's. The one product in
 * each column that is cut first and C are cut; those that may need it besides are for the general way. */
typedef struct {
    __m512 value[GROUP];
    __m512i limit; /* of exponents of sums, less those that B's numbers are multiples of */
    __m512i first, last; /* which of a row's first and last four codes are not 0: bytes of rows, four times */
    float most; /* the most that all of a row's bits are, in units of the lowest */
} Codes;

INLINE bool load_codes(const u32 *x, const u32 *y, Codes *c) {
    __m512i rows[GROUP / 2], used = _mm512_setzero_si512(), any = used;
    __m256i half, low;
    __m512i bits, units;
    transpose_pairs(x, y, rows);
    for (u32 n = 0; n < GROUP / 2; n++) {
        const __m512i magnitude = _mm512_and_si512(rows[n], _mm512_set1_epi16(0x7FFF));
        any = _mm512_or_si512(any, magnitude);
        used = _mm512_or_si512(used, _mm512_slli_epi16(_mm512_min_epu16(magnitude, _mm512_set1_epi16(1)), 2 * n));
        c->value[2 * n] = value(lower(rows[n]), F16), c->value[2 * n + 1] = value(upper(rows[n]), F16);
    }
    if (_mm512_test_epi16_mask(any, _mm512_set1_epi16(0x7800))) return false;
    half = _mm256_or_si256(lower(used), _mm256_slli_epi16(upper(used), 1));
    used = _mm512_broadcast_i32x4(_mm256_cvtepi16_epi8(half));
    c->first = _mm512_and_si512(used, _mm512_set1_epi8(15));
    c->last = _mm512_and_si512(_mm512_srli_epi16(used, 4), _mm512_set1_epi8(15));
    half = _mm256_max_epu16(_mm256_or_si256(lower(any), upper(any)), _mm256_set1_epi16(1));
    low = _mm256_and_si256(half, _mm256_sub_epi16(_mm256_setzero_si256(), half));
    bits = AS_INTS(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(half))), units = AS_INTS(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(low)));
    c->limit = _mm512_add_epi32(units, ALL((F - 24) * (1 << 23)));
    c->most = _mm512_reduce_max_ps(AS_FLOATS(_mm512_sub_epi32(bits, _mm512_sub_epi32(units, ALL(EXPONENT(0))))));
    return true;
}

/* c plus a piece of k; false where another way must do it. Scaling a number by adding to its exponent makes of a zero
 * something below one half. */
INLINE bool add_codes(const u32 *x, const u32 *y, const Columns *b, u32 piece, __m512 *c) {
    _Alignas(CACHE_LINE) u8 top[COLUMNS][ROWS];
    _Alignas(CACHE_LINE) float value[GROUP][ROWS];
    __m512 sum[COLUMNS];
    __mmask16 beyond[2] = {0, 0}, certain;
    Codes a;
    if (!load_codes(x, y, &a)) return false;
    certain = _mm512_cmp_ps_mask(_mm512_mul_ps(b->rest_sums, _mm512_set1_ps(a.most)), _mm512_set1_ps(0x1p24f), _CMP_LE_OQ);
    if ((certain >> COLUMNS * piece & 0xFF) != 0xFF) return false;
    for (u32 k = 0; k < GROUP; k++) _mm512_store_ps(value[k], a.value[k]);
    for (u32 n = 0; n < COLUMNS; n += 4) {
        const __m512i first = _mm512_load_si512(b->top[piece][0][n]), last = _mm512_load_si512(b->top[piece][1][n]);
        _mm512_store_si512(top[n], _mm512_max_epu8(_mm512_shuffle_epi8(first, a.first), _mm512_shuffle_epi8(last, a.last)));
    }
    UNROLL for (u32 n = 0; n < COLUMNS; n++) sum[n] = _mm512_mul_ps(a.value[0], _mm512_set1_ps(b->rest[piece][n][0]));
    UNROLL for (u32 k = 1; k < GROUP; k++)
        UNROLL for (u32 n = 0; n < COLUMNS; n++) sum[n] = _mm512_fmadd_ps(a.value[k], _mm512_set1_ps(b->rest[piece][n][k]), sum[n]);
    UNROLL for (u32 n = 0; n < COLUMNS; n++) {
        const __m512 least = _mm512_mul_ps(_mm512_load_ps(value[b->least_at[piece][n]]), _mm512_set1_ps(b->least[piece][n]));
        const __m512i products = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)top[n])), 23);
        const __m512i highest = _mm512_max_epi32(products, _mm512_and_si512(AS_INTS(c[n]), ALL(0x7F800000)));
        const __m512i shift = _mm512_sub_epi32(ALL((127 + F) << 23), highest);
        __m512i units = _mm512_cvtps_epi32(AS_FLOATS(_mm512_add_epi32(AS_INTS(sum[n]), shift)));
        beyond[n % 2] |= _mm512_cmpgt_epi32_mask(highest, _mm512_add_epi32(a.limit, ALL(b->unit[piece][n])));
        units = _mm512_add_epi32(units, _mm512_cvttps_epi32(AS_FLOATS(_mm512_add_epi32(AS_INTS(least), shift))));
        units = _mm512_add_epi32(units, _mm512_cvttps_epi32(AS_FLOATS(_mm512_add_epi32(AS_INTS(c[n]), shift))));
        c[n] = _mm512_mul_ps(_mm512_cvt_roundepi32_ps(units, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC),
                             AS_FLOATS(_mm512_sub_epi32(highest, ALL(F << 23))));
    }
    return !(beyond[0] | beyond[1]);
}

INLINE void load_sums(const u32 *const *registers, __m512 *c) {
    __m512i q[4];
    for (u32 parity = 0; parity < 2; parity++) {
        transpose(registers[parity], registers[parity + 2], q);
        for (u32 n = 0; n < 4; n++) c[2 * n + parity] = AS_FLOATS(q[n]);
    }
}
INLINE void store_sums(const __m512 *c, u32 *const *registers) {
    for (u32 parity = 0; parity < 2; parity++) {
        const __m512 half[4] = {c[parity], c[2 + parity], c[4 + parity], c[6 + parity]};
        transpose_back(half, registers[parity], registers[parity + 2]);
    }
}

/* Of `count` instructions, each of which adds to the sums of the one before: how many are done, from the first on. */
static u32 chain(struct Fragments *f, u8 *slots, const Insn *i, u32 count) {
#define REGISTER(operand) ((u32 *)(slots + (size_t)SLOT_BYTES * (operand)))
    const u16 *o = i->operand;
    const u32 *const from[4] = {REGISTER(o[10]), REGISTER(o[11]), REGISTER(o[12]), REGISTER(o[13])};
    u32 *const to[4] = {REGISTER(o[0]), REGISTER(o[1]), REGISTER(o[2]), REGISTER(o[3])}, done = 0;
    __m512 c[COLUMNS], before[COLUMNS];
    __mmask16 tiny = 0;
    Step s = {.type = F16, .k = PIECES, .fragments = f};
    load_sums(from, c);
    for (u32 n = 0; n < COLUMNS; n++) { /* sums of products are none */
        const __m512i magnitude = _mm512_and_si512(AS_INTS(c[n]), ALL(0x7FFFFFFF));
        tiny |= _mm512_cmplt_epu32_mask(_mm512_sub_epi32(magnitude, ALL(1)), ALL(EXPONENT(-100) - 1));
    }
    for (; done < count && !tiny; done++) {
        const u16 *a = i[done].operand + 4;
        const Columns *b;
        s.b[0] = REGISTER(a[4]), s.b[1] = REGISTER(a[5]), s.b_slot = a[4];
        b = columns_of(&s, F16);
        memcpy(before, c, sizeof c);
        if (!b->fits || b->alike || !add_codes(REGISTER(a[0]), REGISTER(a[1]), b, 0, c) || !add_codes(REGISTER(a[2]), REGISTER(a[3]), b, 1, c)) {
            memcpy(c, before, sizeof c);
            break;
        }
    }
    if (done) store_sums(c, to);
    return done;
}
#pragma GCC pop_options

struct Fragments *new_fragments(void) {
    struct Fragments *f;
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) return NULL;
    f = aligned_alloc(CACHE_LINE, sizeof *f);
    if (f) memset(f, 0, sizeof *f);
    return f;
}

bool multiply_columns(const Step *s) { return s->fragments && (s->type == F16 ? multiply_f16(s) : multiply_bf16(s)); }
u32 multiply_chain(struct Fragments *f, u8 *slots, const Insn *i, u32 count) { return f ? chain(f, slots, i, count) : 0; }
#else
struct Fragments *new_fragments(void) { return NULL; }
bool multiply_columns(const Step *s) {
    (void)s;
    return false;
}
u32 multiply_chain(struct Fragments *f, u8 *slots, const Insn *i, u32 count) {
    (void)f, (void)slots, (void)i, (void)count;
    return 0;
}
#endif
