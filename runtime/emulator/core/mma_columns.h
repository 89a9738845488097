/* What mma_columns.c and mma_codes.c share: sixteen rows in a vector of AVX-512, one column of B after another. */
#ifndef EMULATOR_MMA_COLUMNS_H
#define EMULATOR_MMA_COLUMNS_H
#include "mma.h"

#if defined(__x86_64__) && defined(__GLIBC__) && __GNUC__ >= 12 && !defined(__clang__)
#define HAS_COLUMNS
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#pragma GCC optimize("schedule-insns") /* chains of additions take turns: the processor looks ahead less far than they are long */

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

/* B's fragment as its registers were when it was converted; most are used again. */
typedef struct {
    _Alignas(CACHE_LINE) u32 registers[PIECES][LANES];
    float value[PIECES][COLUMNS][GROUP];
    u32 scale[PIECES][COLUMNS], limit[PIECES][COLUMNS]; /* exponents, to be added to those of rows */
    __m512 sums;  /* of magnitudes, in units of the least */
    __m512i span;
    u32 type, k;  /* k: 0 where there is nothing */
    bool fits;    /* the numbers are what this is for */
} Columns;

struct Fragments {
    Columns *columns;
    struct Numbers *numbers; /* mma_codes.c */
};
enum { KEPT = 64 };

/* Whether B's registers are still what was kept of them. */
INLINE bool same_registers(const u32 (*kept)[LANES], const Step *s) {
    __m512i different = _mm512_setzero_si512();
    for (u32 r = 0; r < s->k; r++)
        for (u32 l = 0; l < LANES; l += ROWS) {
            const __m512i x = _mm512_loadu_si512(s->b[r] + l), y = _mm512_load_si512(kept[r] + l);
            different = _mm512_ternarylogic_epi32(different, x, y, 0xF6); /* | (x ^ y) */
        }
    return !_mm512_test_epi32_mask(different, different);
}

struct Numbers *new_numbers(void);
#endif
#endif
