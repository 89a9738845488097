/* The usual case of the tensor cores' arithmetic, in vectors: mma_step.h for each instruction set.
 *
 * Products of two 11-bit significands are exact in f32, scaling by a power of two is exact, and the conversion to
 * integers cuts toward zero, as the hardware cuts what lies below its F fractional bits. Eight products are below
 * 2^30 for F = 25, and a ninth addend fits. */
#include "mma.h"

#if defined(__x86_64__) && defined(__GLIBC__) && __GNUC__ >= 12 && !defined(__clang__)
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wpsabi" /* everything is inlined: no vector is passed */

/* Bytes within 16: the q-th of every four, four times; even ones before odd ones; the four from 4n to the top of four words. */
#define SHUFFLE_PICK(q) _mm_add_epi32(_mm_set_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0), _mm_set1_epi8(q))
#define SHUFFLE_SEPARATE _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
#define SHUFFLE_TO_TOP(n) _mm_add_epi32(_mm_setr_epi32(0x00808080, 0x01808080, 0x02808080, 0x03808080), _mm_set1_epi32((n) << 26))

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define STEP(name) name##_avx512
#define WIDTH 16
#define MAX_BYTES(x, y) ((Bytes)_mm512_max_epu8((__m512i)(x), (__m512i)(y)))
#define MAX_WORDS(x, y) ((Words)_mm512_max_epu16((__m512i)(x), (__m512i)(y)))
#define MIN_WORDS(x, y) ((Words)_mm512_min_epu16((__m512i)(x), (__m512i)(y)))
#define MAX_INTS(x, y) ((Ints)_mm512_max_epi32((__m512i)(x), (__m512i)(y)))
#define MIN_FLOATS(x, y) ((Floats)_mm512_min_ps((__m512)(x), (__m512)(y)))
#define TWICE_LESS(x, y) ((Floats)_mm512_fmsub_ps((__m512)(x), _mm512_set1_ps(2), (__m512)(y)))
#define MIN_UNSIGNED(x, y) ((Unsigned)_mm512_min_epu32((__m512i)(x), (__m512i)(y)))
#define SUBTRACT_BYTES(x, y) ((Bytes)_mm512_subs_epu8((__m512i)(x), (__m512i)(y)))
#define PACK_WORDS(x, y) ((Words)_mm512_packus_epi32((__m512i)(x), (__m512i)(y)))
#define PACK_BYTES(x, y) ((Bytes)_mm512_packus_epi16((__m512i)(x), (__m512i)(y)))
#define EVEN(x, y) ((Bytes)_mm512_shuffle_ps((__m512)(x), (__m512)(y), 0x88))
#define ODD(x, y) ((Bytes)_mm512_shuffle_ps((__m512)(x), (__m512)(y), 0xDD))
#define ANY(x) (_mm512_test_epi8_mask((__m512i)(x), (__m512i)(x)) != 0)
#define PICK(x, q) ((Floats)_mm512_permute_ps((__m512)(x), 0x55 * (q)))
#define SHUFFLE(x, order) _mm512_shuffle_epi8((__m512i)(x), _mm512_broadcast_i32x4(order))
#define PICK_BYTES(x, q) ((Bytes)SHUFFLE(x, SHUFFLE_PICK(q)))
#define SEPARATE(x) ((Bytes)SHUFFLE(x, SHUFFLE_SEPARATE))
#define TO_TOP(x, n) SHUFFLE(x, SHUFFLE_TO_TOP(n))
#define SPREAD(x) ((Floats)_mm512_broadcast_f32x4(_mm_loadu_ps(x)))
#define TRUNCATE(x) ((Ints)_mm512_cvttps_epi32((__m512)(x)))
#define CUT_TO_FLOAT(x) ((Floats)_mm512_cvt_roundepi32_ps((__m512i)(x), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC))
/* Lanes 4 column + q to 16 (q % 2) + 8 (q / 2) + 4 (column % 2) + column / 2. */
INLINE void transpose_avx512(u32 *to, const u32 *from) {
    const __m512i x = _mm512_loadu_si512(from), y = _mm512_loadu_si512(from + 16);
    const __m512i index = _mm512_setr_epi32(0, 8, 16, 24, 4, 12, 20, 28, 2, 10, 18, 26, 6, 14, 22, 30);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi32(x, index, y));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi32(x, _mm512_add_epi32(index, _mm512_set1_epi32(1)), y));
}
#define TRANSPOSE(to, from) transpose_avx512(to, from)
#include "mma_step.h"
#undef STEP
#undef WIDTH
#undef MAX_BYTES
#undef MAX_WORDS
#undef MIN_WORDS
#undef MAX_INTS
#undef MIN_FLOATS
#undef TWICE_LESS
#undef MIN_UNSIGNED
#undef SUBTRACT_BYTES
#undef PACK_WORDS
#undef PACK_BYTES
#undef EVEN
#undef ODD
#undef ANY
#undef PICK
#undef SHUFFLE
#undef SPREAD
#undef TRUNCATE
#undef CUT_TO_FLOAT
#undef TRANSPOSE
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define STEP(name) name##_avx2
#define WIDTH 8
#define MAX_BYTES(x, y) ((Bytes)_mm256_max_epu8((__m256i)(x), (__m256i)(y)))
#define MAX_WORDS(x, y) ((Words)_mm256_max_epu16((__m256i)(x), (__m256i)(y)))
#define MIN_WORDS(x, y) ((Words)_mm256_min_epu16((__m256i)(x), (__m256i)(y)))
#define MAX_INTS(x, y) ((Ints)_mm256_max_epi32((__m256i)(x), (__m256i)(y)))
#define MIN_FLOATS(x, y) ((Floats)_mm256_min_ps((__m256)(x), (__m256)(y)))
#define TWICE_LESS(x, y) ((Floats)_mm256_fmsub_ps((__m256)(x), _mm256_set1_ps(2), (__m256)(y)))
#define MIN_UNSIGNED(x, y) ((Unsigned)_mm256_min_epu32((__m256i)(x), (__m256i)(y)))
#define SUBTRACT_BYTES(x, y) ((Bytes)_mm256_subs_epu8((__m256i)(x), (__m256i)(y)))
#define PACK_WORDS(x, y) ((Words)_mm256_packus_epi32((__m256i)(x), (__m256i)(y)))
#define PACK_BYTES(x, y) ((Bytes)_mm256_packus_epi16((__m256i)(x), (__m256i)(y)))
#define EVEN(x, y) ((Bytes)_mm256_shuffle_ps((__m256)(x), (__m256)(y), 0x88))
#define ODD(x, y) ((Bytes)_mm256_shuffle_ps((__m256)(x), (__m256)(y), 0xDD))
#define ANY(x) (!_mm256_testz_si256((__m256i)(x), (__m256i)(x)))
#define PICK(x, q) ((Floats)_mm256_permute_ps((__m256)(x), 0x55 * (q)))
#define SHUFFLE(x, order) _mm256_shuffle_epi8((__m256i)(x), _mm256_broadcastsi128_si256(order))
#define SPREAD(x) ((Floats)_mm256_broadcast_ps((const __m128 *)(x)))
#define TRUNCATE(x) ((Ints)_mm256_cvttps_epi32((__m256)(x)))
INLINE void transpose_avx2(u32 *to, const u32 *from) {
    for (u32 column = 0; column < COLUMNS; column++)
        for (u32 q = 0; q < 4; q++) to[16 * (q % 2) + 8 * (q / 2) + 4 * (column % 2) + column / 2] = from[4 * column + q];
}
#define TRANSPOSE(to, from) transpose_avx2(to, from)
#include "mma_step.h"
#pragma GCC pop_options

bool fused_step(const Step *s) {
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return step_avx512(s);
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && step_avx2(s);
}
#else
bool fused_step(const Step *s) {
    (void)s;
    return false;
}
#endif
