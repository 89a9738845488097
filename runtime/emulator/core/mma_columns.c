/* Products of f16 or bf16 that are added to f32 by sums of eight, where the processor has AVX-512: sixteen rows in a
 * vector, one column after another.
 *
 * Where nothing is cut when the addends of a sum are aligned, the hardware's result is the exact sum, cut to f32. That is
 * so where all addends are multiples of 2^(top - F), top being at least the largest exponent. And the sum of the products
 * is exact in f32 in any order where all partial sums are below 2^24 of what all products are multiples of: weights of
 * few bits and activations that are not too far apart. Both are decided for a column of B with all rows of A, by the
 * largest and the least bit in either; for C by itself. The columns that remain are aligned and cut product by product. */
#include "mma.h"

#if defined(__x86_64__) && defined(__GLIBC__) && __GNUC__ >= 12 && !defined(__clang__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")

#define F 24           /* fractional bits of an aligned addend */
#define GROUP 8        /* products in a sum */
enum { ROWS = 16, PIECES = 2 };
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
    __m512i span;  /* top / low */
    __m512 most;   /* the largest magnitude */
} Extent;

/* Of vectors of two numbers in each row. False where there are infinities or NaN, or bf16 whose products may be beyond
 * f32 or be subnormal in it. */
INLINE bool measure(const __m512i *pairs, u32 count, u32 type, Extent *e) {
    const u32 fraction = type == F16 ? 10 : 7;
    const i32 bias = type == F16 ? 15 : 127;
    const __m512i one = ALL(1), hidden = ALL(1 << fraction);
    __m512i most = _mm512_setzero_si512(), least = ALL(-1), bits = most, field;
    __m256i half;
    for (u32 n = 0; n < count; n++) { /* a zero is no least */
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
    field = _mm512_max_epi32(_mm512_srli_epi32(most, fraction), one);
    e->top = _mm512_slli_epi32(_mm512_add_epi32(field, ALL(127 - bias)), 23);
    e->span = _mm512_sub_epi32(e->top, e->low);
    if (type == F16) return !_mm512_cmpge_epi32_mask(most, ALL(0x7C00));
    return !(_mm512_cmpge_epi32_mask(most, ALL((127 + 40) << 7)) |
             (_mm512_cmplt_epi32_mask(least, ALL((127 - 40) << 7)) & _mm512_cmpneq_epi32_mask(most, _mm512_setzero_si512())));
}

typedef struct {
    _Alignas(CACHE_LINE) __m512 a[PIECES * GROUP]; /* by k: lanes are rows */
    __m512 sum[PIECES + 1][COLUMNS]; /* C, and the sums with each piece */
    __m512i scale, limit;                    /* exponents, of rows and of pieces and columns, to be added */
    u32 b_scale[ROWS], b_limit[ROWS];
    float b[PIECES][COLUMNS][GROUP];
    __m512i a_exponent[PIECES * GROUP];      /* of rows; and of columns, in the order of b; when `aligned` */
    i32 b_exponent[PIECES][COLUMNS][GROUP];
    bool aligned;
    u32 exact;                               /* bit 8 piece + column: whether the products' sum is */
} Operands;

INLINE bool load(const Step *s, u32 type, Operands *o) {
    const u32 pieces = s->k;
    __m512i rows[PIECES * 4], columns[4];
    Extent a, b;
    float most;
    __m512 sum = _mm512_setzero_ps();
    for (u32 p = 0; p < pieces; p++) {
        transpose_pairs(s->a[2 * p], s->a[2 * p + 1], rows + 4 * p);
        for (u32 k = 0; k < GROUP; k++) o->a[GROUP * p + k] = value(k % 2 ? upper(rows[4 * p + k / 2]) : lower(rows[4 * p + k / 2]), type);
        for (u32 n = 0; n < COLUMNS * GROUP; n += ROWS) /* a column's values lie one after another */
            _mm512_storeu_ps(o->b[p][0] + n, value(_mm256_loadu_si256((const __m256i *)(s->b[p] + n / 2)), type));
    }
    transpose_pairs(s->b[0], s->b[pieces - 1], columns);
    if (!measure(rows, 4 * pieces, type, &a) || !measure(columns, 4, type, &b)) return false;
    for (u32 n = 0; n < 4; n++) { /* exact, or beyond what matters */
        sum = _mm512_add_ps(sum, _mm512_abs_ps(value(lower(columns[n]), type)));
        sum = _mm512_add_ps(sum, _mm512_abs_ps(value(upper(columns[n]), type)));
    }
    sum = _mm512_mul_ps(sum, AS_FLOATS(_mm512_sub_epi32(ALL(254u << 23), b.low)));
    most = _mm512_reduce_max_ps(_mm512_mul_ps(a.most, AS_FLOATS(_mm512_sub_epi32(ALL(254u << 23), a.low))));
    o->exact = _mm512_cmp_ps_mask(_mm512_mul_ps(sum, _mm512_set1_ps(most)), _mm512_set1_ps(0x1p24f), _CMP_LE_OQ);
    o->exact &= _mm512_cmple_epi32_mask(b.span, ALL((F << 23) - _mm512_reduce_max_epi32(a.span)));
    o->scale = _mm512_sub_epi32(ALL(EXPONENT(F)), a.top);
    o->limit = _mm512_add_epi32(ALL((F + 1) << 23), a.low);
    _mm512_storeu_si512(o->b_scale, _mm512_sub_epi32(ALL(254u << 23), b.top));
    _mm512_storeu_si512(o->b_limit, _mm512_sub_epi32(b.low, ALL(EXPONENT(0))));
    return true;
}

/* All columns as if nothing were cut; those of which that is not certain. */
INLINE u32 add_exactly(Operands *o, u32 piece) {
    const float *b = o->b[piece][0];
    const u32 *b_scale = o->b_scale + COLUMNS * piece, *b_limit = o->b_limit + COLUMNS * piece;
    __m512 a[GROUP];
    _Alignas(16) u16 certain[COLUMNS];
    for (u32 k = 0; k < GROUP; k++) a[k] = o->a[GROUP * piece + k];
    UNROLL for (u32 column = 0; column < COLUMNS; column++) {
        const __m512 c = o->sum[piece][column], units = _mm512_mul_ps(c, AS_FLOATS(_mm512_add_epi32(o->scale, ALL(b_scale[column]))));
        const __m512 whole = _mm512_roundscale_ps(units, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
        const __m512 limit = AS_FLOATS(_mm512_add_epi32(o->limit, ALL(b_limit[column])));
        const __mmask16 small = _mm512_cmp_ps_mask(_mm512_abs_ps(c), limit, _CMP_LT_OQ);
        __m512 sum = _mm512_setzero_ps();
        UNROLL for (u32 k = 0; k < GROUP; k++) sum = _mm512_fmadd_ps(a[k], _mm512_set1_ps(b[GROUP * column + k]), sum);
        o->sum[piece + 1][column] = _mm512_add_round_ps(sum, c, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
        certain[column] = _mm512_mask_cmp_ps_mask(small, units, whole, _CMP_EQ_OQ);
    }
    return _mm_cmpneq_epi16_mask(_mm_load_si128((const __m128i *)certain), _mm_set1_epi16(-1)) | (~o->exact >> COLUMNS * piece & 0xFF);
}

/* Exponents of f16 or bf16 as bits of a power of two, 0 of a zero. */
INLINE __m512i exponents(__m512 x, u32 type) {
    const __m512i field = _mm512_and_si512(AS_INTS(x), ALL(0x7F800000));
    if (type == BF16) return field;
    return _mm512_maskz_max_epi32(_mm512_test_epi32_mask(AS_INTS(x), ALL(0x7FFFFFFF)), field, ALL(EXPONENT(-14)));
}

/* What products are aligned by. */
static void align(const Step *s, u32 type, Operands *o) {
    for (u32 n = 0; n < GROUP * s->k; n++) o->a_exponent[n] = exponents(o->a[n], type);
    for (u32 n = 0; n < COLUMNS * GROUP * s->k; n += ROWS) {
        const __m512i e = _mm512_sub_epi32(exponents(_mm512_loadu_ps(o->b[0][0] + n), type), ALL(EXPONENT(0)));
        _mm512_storeu_si512(o->b_exponent[0][0] + n, e);
    }
    o->aligned = true;
}

/* One column, aligned and cut product by product; false where C is infinite, NaN or next to nothing. */
INLINE bool add_with_cuts(Operands *o, u32 piece, u32 column) {
    const __m512 *a = o->a + GROUP * piece, c = o->sum[piece][column];
    const float *b = o->b[piece][column];
    const i32 *exponent = o->b_exponent[piece][column];
    const __m512i magnitude = _mm512_and_si512(AS_INTS(c), ALL(0x7FFFFFFF)), own = _mm512_and_si512(magnitude, ALL(0x7F800000));
    __m512i top = _mm512_setzero_si512(), sum;
    __m512 scale;
    if (_mm512_cmpge_epi32_mask(magnitude, ALL(EXPONENT(128))) |
        _mm512_cmplt_epu32_mask(_mm512_sub_epi32(magnitude, ALL(1)), ALL(EXPONENT(-100) - 1))) return false;
    for (u32 k = 0; k < GROUP; k++) top = _mm512_max_epi32(top, _mm512_add_epi32(o->a_exponent[GROUP * piece + k], ALL(exponent[k])));
    /* products by zero are below 2^-83 by this, others not */
    top = _mm512_maskz_mov_epi32(_mm512_cmpge_epi32_mask(top, ALL(EXPONENT(-83))), top);
    top = _mm512_max_epi32(_mm512_max_epi32(top, own), ALL(EXPONENT(-100)));
    scale = AS_FLOATS(_mm512_sub_epi32(ALL(EXPONENT(F) + EXPONENT(0)), top));
    sum = _mm512_cvttps_epi32(_mm512_mul_ps(c, scale));
    for (u32 k = 0; k < GROUP; k++) {
        const __m512 product = _mm512_mul_ps(a[k], _mm512_set1_ps(b[k]));
        sum = _mm512_add_epi32(sum, _mm512_cvttps_epi32(_mm512_mul_ps(product, scale)));
    }
    o->sum[piece + 1][column] = _mm512_mul_ps(_mm512_cvt_roundepi32_ps(sum, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC),
                                 AS_FLOATS(_mm512_sub_epi32(top, ALL(F << 23))));
    return true;
}

INLINE bool multiply(const Step *s, u32 type) {
    Operands o;
    __m512 half[4];
    o.aligned = false;
    if (!load(s, type, &o)) return false;
    for (u32 parity = 0; parity < 2; parity++) {
        __m512i c[4];
        transpose(s->c[parity], s->c[parity + 2], c);
        for (u32 q = 0; q < 4; q++) o.sum[0][2 * q + parity] = AS_FLOATS(c[q]);
    }
    for (u32 piece = 0; piece < s->k; piece++)
        EACH(add_exactly(&o, piece), column) {
            if (!o.aligned) align(s, type, &o);
            if (!add_with_cuts(&o, piece, column)) return false;
        }
    for (u32 parity = 0; parity < 2; parity++) {
        for (u32 q = 0; q < 4; q++) half[q] = o.sum[s->k][2 * q + parity];
        transpose_back(half, s->d[parity], s->d[parity + 2]);
    }
    return true;
}

static bool multiply_f16(const Step *s) { return multiply(s, F16); }
static bool multiply_bf16(const Step *s) { return multiply(s, BF16); }
#pragma GCC pop_options

bool multiply_columns(const Step *s) {
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) return false;
    return s->type == F16 ? multiply_f16(s) : multiply_bf16(s);
}
#else
bool multiply_columns(const Step *s) {
    (void)s;
    return false;
}
#endif
