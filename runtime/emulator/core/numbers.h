/* Every float format: its values as doubles, and doubles rounded to it in any direction. Exact and slow; half.h has the
 * fast ways between f16, bf16 and f32. */
#ifndef EMULATOR_NUMBERS_H
#define EMULATOR_NUMBERS_H
#include "half.h"

/* isa/form.py and isa/convert.py have the same numbers. */
enum { F16, BF16, F32, F64, TF32, E4M3, E5M2, E2M1, E2M3, E3M2, UE8M0, FORMATS };
enum { NEAREST, ZERO, DOWN, UP, AWAY, STOCHASTIC }; /* AWAY: to nearest, ties away from zero */
enum { SATURATE = 1, FLUSH = 2, TO_INTEGRAL = 4, RECTIFY = 8, FINITE = 16 };

/* A pattern is sign, exponent field, fraction. `least`: exponent of the least normal number. No infinity: 0. */
typedef struct {
    u32 fraction;
    i32 least;
    u64 largest, infinity, nan, sign;
    u32 shift; /* the pattern's place in its register */
} Format;

static const Format formats[FORMATS] = {
    [F16] = {10, -14, 0x7BFF, 0x7C00, 0x7FFF, 0x8000, 0},
    [BF16] = {7, -126, 0x7F7F, 0x7F80, 0x7FFF, 0x8000, 0},
    [F32] = {23, -126, 0x7F7FFFFF, 0x7F800000, CANONICAL_NAN, 0x80000000, 0},
    [F64] = {52, -1022, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF8000000000000, (u64)1 << 63, 0},
    [TF32] = {10, -126, 0x3FBFF, 0x3FC00, 0x3FFFF, 0x40000, 13},
    [E4M3] = {3, -6, 0x7E, 0, 0x7F, 0x80, 0},
    [E5M2] = {2, -14, 0x7B, 0x7C, 0x7F, 0x80, 0},
    [E2M1] = {1, 0, 0x7, 0, 0x7, 0x8, 0}, /* no NaN: it becomes the largest number */
    [E2M3] = {3, 0, 0x1F, 0, 0x1F, 0x20, 0},
    [E3M2] = {2, -2, 0x1F, 0, 0x1F, 0x20, 0},
};

static inline double decode_small(u64 bits, u32 kind) {
    const Format *f = formats + kind;
    const u64 magnitude = bits & (f->sign - 1), field = magnitude >> f->fraction;
    const double fraction = (double)(magnitude & (((u64)1 << f->fraction) - 1));
    double value = field ? ldexp(fraction + (double)((u64)1 << f->fraction), (int)field - 1 + f->least - (int)f->fraction)
                         : ldexp(fraction, f->least - (int)f->fraction);
    if (f->infinity ? magnitude >= f->infinity : magnitude > f->largest) value = magnitude == f->infinity ? INFINITY : NAN;
    return bits & f->sign ? -value : value;
}

static inline double decode_float(u64 bits, u32 kind) {
    switch (kind) {
    case F16: return f32_of_f16((u32)bits & 0xFFFF);
    case BF16: return f32_of_bf16((u32)bits & 0xFFFF);
    case F32: case TF32: return f32_of_bits((u32)bits);
    case F64: return f64_of_bits(bits);
    case UE8M0: return (bits & 255) == 255 ? (double)NAN : ldexp(1, (int)(bits & 255) - 127);
    default: return decode_small(bits, kind);
    }
}

/* What of a magnitude is cut off, as a fraction of 2^64, decides whether to round it away from zero. `random` are 16
 * bits that are added to the part cut off, below its top. */
static inline bool rounds_up(u64 rest, bool odd, bool negative, u32 rounding, u32 random) {
    const u64 half = (u64)1 << 63;
    switch (rounding) {
    case NEAREST: return rest > half || (rest == half && odd);
    case ZERO: return false;
    case DOWN: return negative && rest;
    case UP: return !negative && rest;
    case AWAY: return rest >= half;
    default: return rest + ((u64)random << 48) < rest;
    }
}

/* The pattern nearest in the direction `rounding` to magnitude * 2^exponent, magnitude not 0. */
static inline u64 round_magnitude(bool negative, u64 magnitude, i32 exponent, u32 kind, u32 rounding, u32 flags, u32 random) {
    const Format *f = formats + kind;
    const i32 lead = __builtin_clzll(magnitude), top = exponent + 63 - lead, place = top > f->least ? top : f->least;
    const i32 cut = place - (i32)f->fraction - (exponent - lead); /* at least 11 */
    const u64 m = magnitude << lead, kept = cut < 64 ? m >> cut : 0;
    const u64 rest = cut < 64 ? m << (64 - cut) : cut == 64 ? m : cut < 128 ? m >> (cut - 64) | 1 : 1;
    u64 pattern = ((u64)(place - f->least) << f->fraction) + kept + rounds_up(rest, kept & 1, negative, rounding, random);
    if (pattern > f->largest) {
        const bool inward = rounding == ZERO || (rounding == DOWN && !negative) || (rounding == UP && negative);
        pattern = flags & FINITE || inward ? f->largest : f->infinity ? f->infinity : f->nan;
    }
    return (pattern | (negative ? f->sign : 0)) << f->shift;
}

/* Scales have neither sign nor zero; what is below the least becomes the least. */
static inline u64 encode_scale(double d, u32 rounding, u32 flags) {
    const double magnitude = fabs(d);
    int exponent;
    if (d != d) return 0xFF;
    if (isinf(d)) return flags & FINITE ? 0xFE : 0xFF;
    if (magnitude <= 0x1p-127) return 0;
    if (frexp(magnitude, &exponent) > 0.5 || rounding != UP) exponent += rounding == UP;
    exponent += 126;
    return exponent <= 0xFE ? (u64)exponent : flags & FINITE ? 0xFE : 0xFF;
}

/* d may itself be rounded to odd (half.h): it has bits to spare for every format but F64. */
static inline u64 encode_float(double d, u32 kind, u32 rounding, u32 flags, u32 random) {
    const Format *f = formats + kind;
    u64 bits, magnitude;
    i32 exponent;
    if (flags & SATURATE) d = d > 0 ? (d < 1 ? d : 1) : 0; /* NaN becomes 0 */
    if (flags & RECTIFY && d <= 0) d = 0;
    if (kind == UE8M0) return encode_scale(d, rounding, flags);
    if (d != d) return kind == TF32 ? CANONICAL_NAN : f->nan;
    bits = bits_of_f64(d), magnitude = bits & ~((u64)1 << 63);
    if (!magnitude) return bits ? f->sign << f->shift : 0;
    if (isinf(d)) return ((flags & FINITE || !f->infinity ? f->largest : f->infinity) | (d < 0 ? f->sign : 0)) << f->shift;
    if (kind == F64) return bits;
    exponent = (i32)(magnitude >> 52), magnitude &= ((u64)1 << 52) - 1;
    if (exponent) magnitude |= (u64)1 << 52, exponent--;
    bits = round_magnitude(d < 0, magnitude, exponent - 1074, kind, rounding, flags, random);
    if (flags & FLUSH && !(bits & f->infinity)) bits &= f->sign; /* f16 and f32 only */
    return bits;
}
#endif
