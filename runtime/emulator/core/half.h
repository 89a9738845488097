/* f16 and bf16 to and from f32, by integer operations that compilers vectorise. */
#ifndef EMULATOR_HALF_H
#define EMULATOR_HALF_H
#include "core.h"

static inline float f32_of_bits(u32 bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static inline u32 bits_of_f32(float f) {
    u32 bits;
    memcpy(&bits, &f, 4);
    return bits;
}
static inline double f64_of_bits(u64 bits) {
    double f;
    memcpy(&f, &bits, 8);
    return f;
}
static inline u64 bits_of_f64(double f) {
    u64 bits;
    memcpy(&bits, &f, 8);
    return bits;
}
#define CANONICAL_NAN 0x7FFFFFFFu
static inline u32 canonical(float f) { return f != f ? CANONICAL_NAN : bits_of_f32(f); }

static inline float f32_of_f16(u32 h) {
    float scaled = f32_of_bits((h & 0x7FFF) << 13) * 0x1p112f;
    u32 bits = bits_of_f32(scaled) | ((h & 0x7C00) == 0x7C00 ? 0x7F800000u : 0);
    return f32_of_bits(bits | (h & 0x8000) << 16);
}
/* Round to nearest even; NaN becomes 0x7FFF. */
static inline u32 f16_of_f32(float f) {
    const u32 bits = bits_of_f32(f), sign = bits >> 16 & 0x8000, a = bits & 0x7FFFFFFF;
    const u32 small = bits_of_f32(f32_of_bits(a) + 0.5f) - 0x3F000000u; /* steps of 2^-24 below 2^-14 */
    const u32 normal = (a + 0xFFF + (a >> 13 & 1) - (112u << 23)) >> 13;
    const u32 value = a < 0x38800000u ? small : a >= 0x477FF000u ? 0x7C00 : normal;
    return a > 0x7F800000u ? 0x7FFF : value | sign;
}
static inline float f32_of_bf16(u32 h) { return f32_of_bits(h << 16); }
static inline u32 bf16_of_f32(float f) {
    const u32 bits = bits_of_f32(f);
    return f != f ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
/* To f32 with the last bit set when inexact (round to odd): rounding the result again is then exact. */
static inline float odd_f32(double d) {
    float f = (float)d;
    u32 bits = bits_of_f32(f);
    if ((double)f == d || d != d) return f;
    if (((double)f > d) == (d > 0)) bits--; /* toward zero */
    return f32_of_bits(bits | 1);
}
/* a + b rounded to odd: the error of the nearest sum says which way the true one lies. */
static inline double odd_sum(double a, double b) {
    const double sum = a + b, part = sum - a, error = (a - (sum - part)) + (b - part);
    const u64 bits = bits_of_f64(sum);
    const u64 odd = (error > 0) == (sum > 0) ? bits | 1 : bits - 1;
    return f64_of_bits((error < 0 || error > 0) && !(bits & 1) ? odd : bits);
}
static inline float odd_sum_f32(float a, float b) {
    const float sum = a + b, part = sum - a, error = (a - (sum - part)) + (b - part);
    const u32 bits = bits_of_f32(sum), odd = (error > 0) == (sum > 0) ? bits | 1 : bits - 1;
    return f32_of_bits((error < 0 || error > 0) && !(bits & 1) ? odd : bits);
}
/* To f32, toward zero. */
static inline float toward_zero_f32(double d) {
    float f = (float)d;
    if (f != f || (double)f == d) return f;
    if (((double)f > d) == (d > 0)) return f32_of_bits(bits_of_f32(f) - 1);
    return f;
}
#endif
