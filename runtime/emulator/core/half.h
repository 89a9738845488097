/* f16 and bf16 to and from f32, by integer operations that compilers vectorise. */
#ifndef EMULATOR_HALF_H
#define EMULATOR_HALF_H
#include "core.h"
#include <math.h>

INLINE float f32_of_bits(u32 bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
INLINE u32 bits_of_f32(float f) {
    u32 bits;
    memcpy(&bits, &f, 4);
    return bits;
}
INLINE double f64_of_bits(u64 bits) {
    double f;
    memcpy(&f, &bits, 8);
    return f;
}
INLINE u64 bits_of_f64(double f) {
    u64 bits;
    memcpy(&bits, &f, 8);
    return bits;
}
#define CANONICAL_NAN 0x7FFFFFFFu
INLINE u32 canonical(float f) { return f != f ? CANONICAL_NAN : bits_of_f32(f); }

INLINE float f32_of_f16(u32 h) {
    const u32 field = h & 0x7C00, normal = ((h & 0x7FFF) << 13) + (field == 0x7C00 ? 224u << 23 : 112u << 23);
    const u32 subnormal = bits_of_f32((float)(i32)(h & 0x3FF) * 0x1p-24f); /* no f32 subnormal: those are slow */
    return f32_of_bits((field ? normal : subnormal) | (h & 0x8000) << 16);
}
/* Round to nearest even; NaN becomes 0x7FFF. */
INLINE u32 f16_of_f32(float f) {
    const u32 bits = bits_of_f32(f), sign = bits >> 16 & 0x8000, a = bits & 0x7FFFFFFF;
    const u32 small = bits_of_f32(f32_of_bits(a) + 0.5f) - 0x3F000000u; /* steps of 2^-24 below 2^-14 */
    const u32 normal = (a + 0xFFF + (a >> 13 & 1) - (112u << 23)) >> 13;
    const u32 value = a < 0x38800000u ? small : a >= 0x477FF000u ? 0x7C00 : normal;
    return a > 0x7F800000u ? 0x7FFF : value | sign;
}
INLINE float f32_of_bf16(u32 h) { return f32_of_bits(h << 16); }
INLINE u32 bf16_of_f32(float f) {
    const u32 bits = bits_of_f32(f);
    return f != f ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
/* To f32 with the last bit set when inexact (round to odd): rounding the result again is then exact. */
INLINE float odd_f32(double d) {
    float f = (float)d;
    u32 bits = bits_of_f32(f);
    if ((double)f == d || d != d) return f;
    if (((double)f > d) == (d > 0)) bits--; /* toward zero */
    return f32_of_bits(bits | 1);
}
/* a + b rounded to odd: the error of the nearest sum says which way the true one lies. */
INLINE double odd_sum(double a, double b) {
    const double sum = a + b, part = sum - a, error = (a - (sum - part)) + (b - part);
    const u64 bits = bits_of_f64(sum);
    const u64 outward = ~(bits_of_f64(error) ^ bits) >> 63, even_inexact = (u64)(fabs(error) > 0) & ~bits;
    return f64_of_bits(bits + (even_inexact & 1) * (2 * outward - 1));
}
INLINE float odd_sum_f32(float a, float b) {
    const float sum = a + b, part = sum - a, error = (a - (sum - part)) + (b - part);
    const u32 bits = bits_of_f32(sum), outward = ~(bits_of_f32(error) ^ bits) >> 31;
    const u32 even_inexact = (u32)(fabsf(error) > 0) & ~bits;
    return f32_of_bits(bits + (even_inexact & 1) * (2 * outward - 1));
}
/* To f32, toward zero. */
INLINE float toward_zero_f32(double d) {
    float f = (float)d;
    if (f != f || (double)f == d) return f;
    if (((double)f > d) == (d > 0)) return f32_of_bits(bits_of_f32(f) - 1);
    return f;
}
/* half_fast.c: pairs of f16 in all lanes; false where this machine has no such code. 0 marks operations that have none. */
enum {
    PAIRS_add_f16 = 1, PAIRS_sub_f16, PAIRS_mul_f16, PAIRS_fma_f16,
    PAIRS_min_f16 = 0, PAIRS_max_f16 = 0, PAIRS_add_bf16 = 0, PAIRS_sub_bf16 = 0, PAIRS_mul_bf16 = 0, PAIRS_min_bf16 = 0,
    PAIRS_max_bf16 = 0, PAIRS_fma_bf16 = 0
};
bool half_pairs(u32 operation, u32 *d, const u32 *x, const u32 *y, const u32 *z);
#endif
