/* The usual case of the tensor cores' arithmetic, in vectors: mma_step.h for each instruction set.
 *
 * Products of two 11-bit significands are exact in f32, scaling by a power of two is exact, and the conversion to
 * integers cuts toward zero, as the hardware cuts what lies below its F fractional bits. Eight products are below
 * 2^30 for F = 25, and a ninth addend fits. */
#include "mma.h"

#if defined(__x86_64__) && defined(__GLIBC__) && __GNUC__ >= 12 && !defined(__clang__)
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wpsabi" /* everything is inlined: no vector is passed */

typedef float Floats __attribute__((vector_size(64)));
typedef i32 Ints __attribute__((vector_size(64)));
typedef u32 Unsigned __attribute__((vector_size(64)));
typedef u8 Bytes __attribute__((vector_size(64)));
typedef u8 Quarter __attribute__((vector_size(16)));
#define UNROLLED _Pragma("GCC unroll 8")

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define STEP(name) name##_avx512
#define MAX_BYTES(x, y) ((Bytes)_mm512_max_epu8((__m512i)(x), (__m512i)(y)))
#define MAX_INTS(x, y) ((Ints)_mm512_max_epi32((__m512i)(x), (__m512i)(y)))
#define ANY(x) (_mm512_test_epi32_mask((__m512i)(x), (__m512i)(x)) != 0)
#include "mma_step.h"
#undef STEP
#undef MAX_BYTES
#undef MAX_INTS
#undef ANY
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
typedef union {
    Bytes bytes;
    Ints ints;
    Unsigned unsigned_;
    __m256i half[2];
} Halves;
INLINE Bytes max_bytes_avx2(Bytes x, Bytes y) {
    Halves a = {.bytes = x}, b = {.bytes = y};
    for (u32 n = 0; n < 2; n++) a.half[n] = _mm256_max_epu8(a.half[n], b.half[n]);
    return a.bytes;
}
INLINE Ints max_ints_avx2(Ints x, Ints y) {
    Halves a = {.ints = x}, b = {.ints = y};
    for (u32 n = 0; n < 2; n++) a.half[n] = _mm256_max_epi32(a.half[n], b.half[n]);
    return a.ints;
}
INLINE bool any_avx2(Unsigned x) {
    const Halves a = {.unsigned_ = x};
    const __m256i either = _mm256_or_si256(a.half[0], a.half[1]);
    return !_mm256_testz_si256(either, either);
}
#define STEP(name) name##_avx2
#define MAX_BYTES(x, y) max_bytes_avx2(x, y)
#define MAX_INTS(x, y) max_ints_avx2(x, y)
#define ANY(x) any_avx2(x)
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
