/* The usual case of the tensor cores' arithmetic, in vectors: mma_step.h for each instruction set.
 *
 * Products of two 11-bit significands are exact in f32, scaling by a power of two is exact, and the conversion to
 * integers cuts toward zero, as the hardware cuts what lies below its F fractional bits. Eight products are below
 * 2^30 for F = 25, and a ninth addend fits. */
#include "mma.h"

#if defined(__x86_64__) && defined(__GLIBC__) && __GNUC__ >= 12 && !defined(__clang__)
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wpsabi" /* everything is inlined: no vector is passed */

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define STEP(name) name##_avx512
#define WIDTH 16
#define MAX_BYTES(x, y) ((Bytes)_mm512_max_epu8((__m512i)(x), (__m512i)(y)))
#define MAX_INTS(x, y) ((Ints)_mm512_max_epi32((__m512i)(x), (__m512i)(y)))
#define MIN_UNSIGNED(x, y) ((Ints)_mm512_min_epu32((__m512i)(x), (__m512i)(y)))
#define ANY(x) (_mm512_test_epi8_mask((__m512i)(x), (__m512i)(x)) != 0)
#define PICK(x, q) ((Floats)_mm512_permute_ps((__m512)(x), 0x55 * (q)))
#define PICK_BYTES(x, q) \
    ((Bytes)_mm512_shuffle_epi8((__m512i)(x), _mm512_broadcast_i32x4(_mm_add_epi32(_mm_set_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0), _mm_set1_epi8(q)))))
#define SPREAD(x) ((Floats)_mm512_broadcast_f32x4(_mm_loadu_ps(x)))
#define WIDEN(x) ((Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(x))))
#define NARROW(to, x) _mm_storeu_si128((__m128i *)(to), _mm512_cvtepi32_epi8((__m512i)(x)))
#define TRUNCATE(x) ((Ints)_mm512_cvttps_epi32((__m512)(x)))
/* Lanes 4 column + q to 8 q + 4 (column & 1) + (column >> 1). */
INLINE void transpose_avx512(u32 *to, const u32 *from) {
    const __m512i x = _mm512_loadu_si512(from), y = _mm512_loadu_si512(from + 16);
    const __m512i index = _mm512_setr_epi32(0, 8, 16, 24, 4, 12, 20, 28, 1, 9, 17, 25, 5, 13, 21, 29);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi32(x, index, y));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi32(x, _mm512_add_epi32(index, _mm512_set1_epi32(2)), y));
}
#define TRANSPOSE(to, from) transpose_avx512(to, from)
#include "mma_step.h"
#undef STEP
#undef WIDTH
#undef MAX_BYTES
#undef MAX_INTS
#undef MIN_UNSIGNED
#undef ANY
#undef PICK
#undef PICK_BYTES
#undef SPREAD
#undef WIDEN
#undef NARROW
#undef TRUNCATE
#undef TRANSPOSE
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define STEP(name) name##_avx2
#define WIDTH 8
#define MAX_BYTES(x, y) ((Bytes)_mm256_max_epu8((__m256i)(x), (__m256i)(y)))
#define MAX_INTS(x, y) ((Ints)_mm256_max_epi32((__m256i)(x), (__m256i)(y)))
#define MIN_UNSIGNED(x, y) ((Ints)_mm256_min_epu32((__m256i)(x), (__m256i)(y)))
#define ANY(x) (!_mm256_testz_si256((__m256i)(x), (__m256i)(x)))
#define PICK(x, q) ((Floats)_mm256_permute_ps((__m256)(x), 0x55 * (q)))
#define PICK_BYTES(x, q) \
    ((Bytes)_mm256_shuffle_epi8((__m256i)(x), _mm256_broadcastsi128_si256(_mm_add_epi32(_mm_set_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0), _mm_set1_epi8(q)))))
#define SPREAD(x) ((Floats)_mm256_broadcast_ps((const __m128 *)(x)))
#define WIDEN(x) ((Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(x))))
#define TRUNCATE(x) ((Ints)_mm256_cvttps_epi32((__m256)(x)))
INLINE void narrow_avx2(u8 *to, __m256i x) {
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(words, words));
}
#define NARROW(to, x) narrow_avx2(to, (__m256i)(x))
INLINE void transpose_avx2(u32 *to, const u32 *from) {
    for (u32 column = 0; column < COLUMNS; column++)
        for (u32 q = 0; q < 4; q++) to[8 * q + 4 * (column & 1) + (column >> 1)] = from[4 * column + q];
}
#define TRANSPOSE(to, from) transpose_avx2(to, from)
#include "mma_step.h"
#pragma GCC pop_options

bool fused_step(const Step *s, Sums *c) {
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return step_avx512(s, c);
    return __builtin_cpu_supports("avx2") && step_avx2(s, c);
}
#else
bool fused_step(const Step *s, Sums *c) {
    (void)s, (void)c;
    return false;
}
#endif
