/* Arithmetic of f16 pairs in all 32 lanes at once, where the processor has AVX-512: 16 halves become floats, and back. */
#include "half.h"

#if defined(__x86_64__) && defined(__GLIBC__) && __GNUC__ >= 12 && !defined(__clang__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define NEAREST (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

static __m512 wide(const u32 *x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x)); }

/* A sum that rounding again to f16 rounds as if once: toward zero, and odd where something was cut off. */
static __m512 odd_wide_sum(__m512 a, __m512 b) {
    const __m512 low = _mm512_add_round_ps(a, b, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const __m512 high = _mm512_add_round_ps(a, b, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    const __m512 sum = _mm512_add_round_ps(a, b, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    const __mmask16 inexact = _mm512_cmp_ps_mask(low, high, _CMP_LT_OQ);
    const __m512i bits = _mm512_castps_si512(sum);
    return _mm512_castsi512_ps(_mm512_mask_or_epi32(bits, inexact, bits, _mm512_set1_epi32(1)));
}

static void pairs_avx512(u32 operation, u32 *d, const u32 *x, const u32 *y, const u32 *z) {
    for (u32 n = 0; n < LANES; n += 8) {
        const __m512 a = wide(x + n), b = wide(y + n);
        /* sums and products of two f16 in f32 are exact enough to be rounded again */
        const __m512 result = operation == PAIRS_add_f16   ? _mm512_add_ps(a, b)
                              : operation == PAIRS_sub_f16 ? _mm512_sub_ps(a, b)
                              : operation == PAIRS_mul_f16 ? _mm512_mul_ps(a, b)
                                                           : odd_wide_sum(_mm512_mul_ps(a, b), wide(z + n));
        const __mmask16 nan = _mm512_cmp_ps_mask(result, result, _CMP_UNORD_Q);
        const __m256i halves = _mm512_cvtps_ph(result, NEAREST);
        const __m256i whole = _mm256_mask_blend_epi16(nan, halves, _mm256_set1_epi16(0x7FFF));
        _mm256_storeu_si256((__m256i *)(d + n), whole);
    }
}
#pragma GCC pop_options

bool half_pairs(u32 operation, u32 *d, const u32 *x, const u32 *y, const u32 *z) {
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl")) return false;
    pairs_avx512(operation, d, x, y, z);
    return true;
}
#else
bool half_pairs(u32 operation, u32 *d, const u32 *x, const u32 *y, const u32 *z) {
    (void)operation, (void)d, (void)x, (void)y, (void)z;
    return false;
}
#endif
