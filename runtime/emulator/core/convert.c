/* cvt between integers and floats of every format, one by one and packed. */
#include "numbers.h"

static double to_integral(double d, u32 rounding) {
    switch (rounding) {
    case NEAREST: return nearbyint(d);
    case ZERO: return trunc(d);
    case DOWN: return floor(d);
    default: return ceil(d);
    }
}

static i64 sign_extend(u64 value, u32 bits) { return bits >= 64 ? (i64)value : (i64)(value << (64 - bits)) >> (64 - bits); }
static u64 zero_extend(u64 value, u32 bits) { return bits >= 64 ? value : value & (((u64)1 << bits) - 1); }

/* Store an integer of `bits` bits in the destination register, extended to the register's width (16-bit registers hold
 * no more than 16). */
static void put_integer(const Warp *w, const Insn *i, u32 lane, u64 value, u32 bits, bool is_signed, u32 register_bits) {
    value = is_signed ? (u64)sign_extend(value, bits) : zero_extend(value, bits);
    set_lane(w, i, 0, lane, zero_extend(value, register_bits));
}

static i64 clamp(i64 value, u32 bits, bool is_signed) {
    const i64 high = (i64)(((u64)1 << (bits - is_signed)) - 1), low = is_signed ? -high - 1 : 0;
    return value < low ? low : value > high ? high : value;
}

/* mod[0]: source bits | signed << 8 | destination bits << 16 | signed << 24; mod[1]: saturate; mod[2]: register bits. */
static void cvt_int_int(Warp *w, const Insn *i, u32 active) {
    const u32 from = i->mod[0] & 255, to = i->mod[0] >> 16 & 255;
    const bool from_signed = i->mod[0] >> 8 & 1, to_signed = i->mod[0] >> 24 & 1;
    EACH(active, l) {
        u64 value = get_lane(w, i, 1, l);
        value = from_signed ? (u64)sign_extend(value, from) : zero_extend(value, from);
        if (i->mod[1]) {
            const bool huge = !from_signed && value >> 63; /* does not fit i64 */
            if (to == 64) value = to_signed && huge ? INT64_MAX : !to_signed && from_signed && (i64)value < 0 ? 0 : value;
            else value = (u64)clamp(huge ? INT64_MAX : (i64)value, to, to_signed);
        }
        put_integer(w, i, l, value, to, to_signed, i->mod[2]);
    }
}

/* mod[0] as above with the float's format for the source bits; mod[1]: rounding | flags << 8; mod[2]: register bits.
 * Out of range gives the nearest integer; NaN gives 0, or the top bit alone where one side is 64 bits wide. */
static void cvt_float_int(Warp *w, const Insn *i, u32 active) {
    const u32 kind = i->mod[0] & 255, to = i->mod[0] >> 16 & 255;
    const bool to_signed = i->mod[0] >> 24 & 1;
    const double high = ldexp(1, (int)(to - to_signed)), low = to_signed ? -high : 0;
    const u64 of_nan = kind == F64 || to == 64 ? (u64)1 << (to - 1) : 0;
    EACH(active, l) {
        double d = decode_float(get_lane(w, i, 1, l), kind);
        u64 value;
        if (i->mod[1] >> 8 & FLUSH && fabs(d) < 0x1p-126) d = 0;
        d = to_integral(d, i->mod[1] & 255);
        if (d != d) value = of_nan;
        else if (d >= high) value = zero_extend(~(u64)0, to - to_signed);
        else if (d <= low) value = to_signed ? (u64)1 << (to - 1) : 0;
        else value = d < 0 ? (u64)(i64)d : (u64)d;
        put_integer(w, i, l, value, to, to_signed, i->mod[2]);
    }
}

/* mod[0]: source bits | signed << 8 | format << 16; mod[1]: rounding | flags << 8. */
static void cvt_int_float(Warp *w, const Insn *i, u32 active) {
    const u32 from = i->mod[0] & 255, kind = i->mod[0] >> 16 & 255, rounding = i->mod[1] & 255, flags = i->mod[1] >> 8;
    const bool is_signed = i->mod[0] >> 8 & 1;
    EACH(active, l) {
        u64 value = get_lane(w, i, 1, l);
        bool negative;
        value = is_signed ? (u64)sign_extend(value, from) : zero_extend(value, from);
        if (kind == F32 && rounding == NEAREST && !flags) {
            set_lane(w, i, 0, l, bits_of_f32(is_signed ? (float)(i64)value : (float)value));
            continue;
        }
        negative = is_signed && value >> 63;
        if (flags & SATURATE) value = negative ? 0 : value > 0, negative = false;
        if (negative) value = 0 - value;
        set_lane(w, i, 0, l, value ? round_magnitude(negative, value, 0, kind, rounding, flags, 0) : 0);
    }
}

/* mod[0]: source format | destination format << 16; mod[1]: rounding | flags << 8. */
static void cvt_float_float(Warp *w, const Insn *i, u32 active) {
    const u32 from = i->mod[0] & 255, to = i->mod[0] >> 16 & 255, rounding = i->mod[1] & 255, flags = i->mod[1] >> 8;
    EACH(active, l) {
        double d = decode_float(get_lane(w, i, 1, l), from);
        if (flags & FLUSH && from == F32 && fabs(d) < 0x1p-126) d = copysign(0, d);
        if (flags & TO_INTEGRAL) d = to_integral(d, rounding);
        set_lane(w, i, 0, l, encode_float(d, to, rounding, to == F32 ? flags : flags & ~(u32)FLUSH, 0));
    }
}

/* The common plain conversions, vectorised. The sources of 8 and 16 bits stand in 32-bit slots. */
#define EXTENSIONS(X)                                                                                        \
    X(extend_u8_b32, u32, u32, x[l] & 0xFF) X(extend_s8_b32, u32, u32, (u32)(i8)x[l])                        \
    X(extend_u16_b32, u32, u32, x[l] & 0xFFFF) X(extend_s16_b32, u32, u32, (u32)(i16)x[l])                   \
    X(extend_u32_b64, u64, u32, x[l]) X(extend_s32_b64, u64, u32, (u64)(i64)(i32)x[l])                       \
    X(truncate_b64_b32, u32, u64, (u32)x[l]) X(truncate_b32_b16, u32, u32, x[l] & 0xFFFF)                    \
    X(cvt_f32_s32, u32, u32, bits_of_f32((float)(i32)x[l])) X(cvt_f32_u32, u32, u32, bits_of_f32((float)x[l])) \
    X(cvt_s32_f32, u32, float, toward_zero_s32(x[l])) X(cvt_s32_f32_rni, u32, float, toward_zero_s32(rintf(x[l])))
INLINE u32 toward_zero_s32(float f) {
    const float held = f >= 0x1p31f || f < -0x1p31f || f != f ? 0 : f;
    return f >= 0x1p31f ? 0x7FFFFFFF : f < -0x1p31f ? 0x80000000 : (u32)(i32)held;
}
#define DEFINE_EXTENSION(name, D, S, expression)                  \
    VECTOR static void name(Warp *w, const Insn *i, u32 active) { \
        D *d = SLOT(0);                                           \
        const S *x = SLOT(1);                                     \
        LANEWISE(d[l] = expression;)                              \
    }
EXTENSIONS(DEFINE_EXTENSION)

VECTOR static void cvt_f32_f16(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1);
    LANEWISE(d[l] = canonical(f32_of_f16(x[l] & 0xFFFF));)
}
VECTOR static void cvt_f16_f32(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const float *x = SLOT(1);
    LANEWISE(d[l] = f16_of_f32(x[l]);)
}
VECTOR static void cvt_f32_bf16(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const u32 *x = SLOT(1);
    LANEWISE(d[l] = canonical(f32_of_bf16(x[l] & 0xFFFF));)
}
VECTOR static void cvt_bf16_f32(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const float *x = SLOT(1);
    LANEWISE(d[l] = bf16_of_f32(x[l]);)
}
VECTOR static void cvt_f16x2_f32(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const float *x = SLOT(1), *y = SLOT(2);
    LANEWISE(d[l] = f16_of_f32(x[l]) << 16 | f16_of_f32(y[l]);)
}
VECTOR static void cvt_bf16x2_f32(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0);
    const float *x = SLOT(1), *y = SLOT(2);
    LANEWISE(d[l] = bf16_of_f32(x[l]) << 16 | bf16_of_f32(y[l]);)
}

/* Both halves of an 8-bit or 4-bit pair to f16x2 or bf16x2, which hold every such number. mod[0]: format; mod[1]: bits. */
INLINE float narrow_value(u32 bits, u32 fraction, i32 least, u32 largest, u32 infinity, u32 sign) {
    const u32 magnitude = bits & (sign - 1), field = magnitude >> fraction;
    const u32 normal = (magnitude << (23 - fraction)) + ((u32)(126 + least) << 23);
    const u32 subnormal = bits_of_f32((float)(i32)magnitude * f32_of_bits((u32)(127 + least - (i32)fraction) << 23));
    const u32 value = magnitude > largest ? magnitude == infinity ? 0x7F800000 : CANONICAL_NAN : field ? normal : subnormal;
    return f32_of_bits(value | (bits & sign ? 0x80000000 : 0));
}
#define DEFINE_NARROW(T)                                                                                     \
    VECTOR static void cvt_##T##x2_narrow(Warp *w, const Insn *i, u32 active) {                              \
        u32 *d = SLOT(0);                                                                                    \
        const u32 *x = SLOT(1), width = i->mod[1];                                                           \
        const Format f = formats[i->mod[0]];                                                                 \
        const u32 fraction = f.fraction, largest = (u32)f.largest, infinity = (u32)f.infinity, sign = (u32)f.sign; \
        const i32 least = f.least;                                                                           \
        LANEWISE(u32 low = T##_of_f32(narrow_value(x[l], fraction, least, largest, infinity, sign));         \
                 d[l] = low | T##_of_f32(narrow_value(x[l] >> width, fraction, least, largest, infinity, sign)) << 16;) \
    }
DEFINE_NARROW(f16)
DEFINE_NARROW(bf16)

/* The 16 random bits of one element (the last is the highest), which .rs rounding adds to what it cuts off. The manual
 * gives f16 13 bits of its half of the word, bf16 all 16; four 8-bit formats share a half by pairs, four of 4 bits the
 * upper or lower bytes of both halves by pairs. */
static u32 random_bits(u32 word, u32 element, u32 kind) {
    const u32 upper = element >= 2;
    switch (kind) {
    case F16: return (word >> 16 * element & 0x1FFF) << 3;
    case BF16: return word >> 16 * element & 0xFFFF;
    case E2M1: return (word >> (16 + 8 * upper) & 0xFF) << 8 | (word >> 8 * upper & 0xFF);
    default: return word >> 16 * upper & 0xFFFF;
    }
}

/* The fixed-point format s2f6: two's complement, 64 is 1. It saturates, NaN to the largest value. */
#define S2F6 FORMATS
static u64 encode_fixed(double d, u32 flags) {
    const double n = d != d || d >= 2 ? 127 : d < -2 ? -128 : nearbyint(d * 64);
    return (u8)(i32)(n > 127 ? 127 : flags & RECTIFY && n < 0 ? 0 : n);
}

/* d with a factor of the format ue8m0. */
static double scale_by(double d, u32 factor, bool divide) {
    const int exponent = (int)factor - 127;
    return factor == 255 ? (double)NAN : ldexp(d, divide ? -exponent : exponent);
}

/* Several elements at once. mod[0]: source format | destination format << 8 | elements << 16 | bits of a destination
 * element << 24; mod[1]: rounding | flags << 8; mod[2]: bits of a source element, 0 where each has a register of its
 * own (the first is the highest element); | 1 << 8: the result is multiplied by a factor, 2 << 8: the source is divided by
 * it. The last operand are the random bits of .rs, or a factor for each element. */
static void cvt_packed(Warp *w, const Insn *i, u32 active) {
    const u32 from = i->mod[0] & 255, to = i->mod[0] >> 8 & 255, count = i->mod[0] >> 16 & 255, width = i->mod[0] >> 24;
    const u32 rounding = i->mod[1] & 255, flags = i->mod[1] >> 8, spacing = i->mod[2] & 255, scaled = i->mod[2] >> 8;
    EACH(active, l) {
        const u32 last = rounding == STOCHASTIC || scaled ? (u32)get_lane(w, i, i->srcs, l) : 0;
        u64 result = 0;
        for (u32 n = 0; n < count; n++) {
            const u64 bits = spacing ? get_lane(w, i, 1, l) >> spacing * n : get_lane(w, i, count - n, l);
            double d = from == S2F6 ? (i8)bits / 64.0 : decode_float(bits, from);
            if (scaled) d = scale_by(d, last >> 8 * n & 255, scaled == 2);
            if (to == S2F6) result |= encode_fixed(d, flags) << width * n;
            else result |= encode_float(d, to, rounding, flags, scaled ? 0 : random_bits(last, n, to)) << width * n;
        }
        set_lane(w, i, 0, l, result);
    }
}

/* cvt.pack: two saturated integers of mod[0] bits, a above b; where they leave room, c's low bits above them. mod[1]:
 * signed. */
static void cvt_pack(Warp *w, const Insn *i, u32 active) {
    const u32 bits = i->mod[0];
    EACH(active, l) {
        const u64 a = (u64)clamp((i32)get_lane(w, i, 1, l), bits, i->mod[1]), b = (u64)clamp((i32)get_lane(w, i, 2, l), bits, i->mod[1]);
        const u64 c = i->srcs > 2 ? get_lane(w, i, 3, l) : 0;
        set_lane(w, i, 0, l, (u32)(c << 2 * bits | zero_extend(a, bits) << bits | zero_extend(b, bits)));
    }
}

#define ENTRY(name, ...) {#name, name, 0},
const Opcode convert_ops[] = {
    EXTENSIONS(ENTRY) ENTRY(cvt_f16x2_narrow) ENTRY(cvt_bf16x2_narrow)
    ENTRY(cvt_int_int) ENTRY(cvt_float_int) ENTRY(cvt_int_float) ENTRY(cvt_float_float) ENTRY(cvt_packed) ENTRY(cvt_pack)
    ENTRY(cvt_f32_f16) ENTRY(cvt_f16_f32) ENTRY(cvt_f32_bf16) ENTRY(cvt_bf16_f32) ENTRY(cvt_f16x2_f32)
    ENTRY(cvt_bf16x2_f32) {0}};
