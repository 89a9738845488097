/* cvt between integers and floats, and the packing conversions to f16x2 and bf16x2. */
#include "half.h"
#include <math.h>

enum { F16, BF16, F32, F64 };                                            /* float kinds */
enum { NEAREST, ZERO, DOWN, UP };                                        /* rounding modes */
enum { SATURATE = 1, FLUSH = 2, REMAIN_FLOAT_INTEGER = 4, RELU = 8 };    /* flags */

static double read_float(const Warp *w, const Insn *i, u32 n, u32 lane, u32 kind) {
    u64 bits = get_lane(w, i, n, lane);
    switch (kind) {
    case F16: return f32_of_f16((u32)bits & 0xFFFF);
    case BF16: return f32_of_bf16((u32)bits & 0xFFFF);
    case F32: return f32_of_bits((u32)bits);
    default: return f64_of_bits(bits);
    }
}

static double to_integral(double d, u32 rounding) {
    switch (rounding) {
    case NEAREST: return nearbyint(d);
    case ZERO: return trunc(d);
    case DOWN: return floor(d);
    default: return ceil(d);
    }
}

/* Rounded to f32 in a direction: step from the nearest where it lies on the wrong side. */
static float to_f32(double d, u32 rounding) {
    float f = (float)d;
    if (rounding == NEAREST || (double)f == d || f != f) return f;
    if (rounding == ZERO) return toward_zero_f32(d);
    if (rounding == DOWN) return f > d ? nextafterf(f, -INFINITY) : f;
    return f < d ? nextafterf(f, INFINITY) : f;
}

/* The neighbour of a 16-bit float one step toward zero. */
static u32 cut_half(double d, u32 kind) {
    u32 h = kind == F16 ? f16_of_f32(odd_f32(d)) : bf16_of_f32(odd_f32(d));
    double value = kind == F16 ? f32_of_f16(h) : f32_of_bf16(h);
    return fabs(value) > fabs(d) ? h - 1 : h;
}

static u64 encode_float(double d, u32 kind, u32 rounding, u32 flags) {
    if (flags & SATURATE) d = d > 0 ? (d < 1 ? d : 1) : 0;
    if (flags & RELU) d = d > 0 || d != d ? d : 0;
    switch (kind) {
    case F16: return rounding == ZERO ? cut_half(d, F16) : f16_of_f32(odd_f32(d));
    case BF16: return rounding == ZERO ? cut_half(d, BF16) : bf16_of_f32(odd_f32(d));
    case F32: {
        float f = to_f32(d, rounding);
        if (flags & FLUSH && fabsf(f) < 0x1p-126f) f = copysignf(0, f);
        return canonical(f);
    }
    default: return bits_of_f64(d);
    }
}

static i64 sign_extend(u64 value, u32 bits) { return bits == 64 ? (i64)value : (i64)(value << (64 - bits)) >> (64 - bits); }
static u64 zero_extend(u64 value, u32 bits) { return bits == 64 ? value : value & (((u64)1 << bits) - 1); }

/* Store an integer of `bits` bits in the destination register, extended to the register's width (16-bit registers hold
 * no more than 16). */
static void put_integer(const Warp *w, const Insn *i, u32 lane, u64 value, u32 bits, bool is_signed, u32 register_bits) {
    value = is_signed ? (u64)sign_extend(value, bits) : zero_extend(value, bits);
    set_lane(w, i, 0, lane, zero_extend(value, register_bits));
}

/* mod[0]: source bits | signed << 8 | destination bits << 16 | signed << 24; mod[1]: saturate; mod[2]: register bits. */
static void cvt_int_int(Warp *w, const Insn *i, u32 active) {
    const u32 from = i->mod[0] & 255, to = i->mod[0] >> 16 & 255;
    const bool from_signed = i->mod[0] >> 8 & 1, to_signed = i->mod[0] >> 24 & 1;
    EACH(active, l) {
        u64 value = get_lane(w, i, 1, l);
        value = from_signed ? (u64)sign_extend(value, from) : zero_extend(value, from);
        if (i->mod[1]) {
            const __int128 wide = from_signed ? (__int128)(i64)value : (__int128)value;
            const __int128 high = ((__int128)1 << (to - to_signed)) - 1, low = to_signed ? -high - 1 : 0;
            value = (u64)(wide < low ? low : wide > high ? high : wide);
        }
        put_integer(w, i, l, value, to, to_signed, i->mod[2]);
    }
}

/* mod[0] as above with the float kind for the source bits; mod[1]: rounding | flags << 8; mod[2]: register bits. */
static void cvt_float_int(Warp *w, const Insn *i, u32 active) {
    const u32 kind = i->mod[0] & 255, to = i->mod[0] >> 16 & 255;
    const bool to_signed = i->mod[0] >> 24 & 1;
    const double high = ldexp(1, (int)(to - to_signed)), low = to_signed ? -high : 0;
    EACH(active, l) {
        double d = read_float(w, i, 1, l, kind);
        u64 value;
        if (i->mod[1] >> 8 & FLUSH && fabs(d) < 0x1p-126) d = 0;
        d = to_integral(d, i->mod[1] & 255);
        if (d != d) value = 0;
        else if (d >= high) value = zero_extend(~(u64)0, to - to_signed);
        else if (d <= low) value = to_signed ? (u64)1 << (to - 1) : 0;
        else value = d < 0 ? (u64)(i64)d : (u64)d;
        put_integer(w, i, l, value, to, to_signed, i->mod[2]);
    }
}

/* mod[0]: source bits | signed << 8 | float kind << 16; mod[1]: rounding | flags << 8. */
static void cvt_int_float(Warp *w, const Insn *i, u32 active) {
    const u32 from = i->mod[0] & 255, kind = i->mod[0] >> 16 & 255, rounding = i->mod[1] & 255, flags = i->mod[1] >> 8;
    const bool is_signed = i->mod[0] >> 8 & 1;
    EACH(active, l) {
        u64 value = get_lane(w, i, 1, l);
        value = is_signed ? (u64)sign_extend(value, from) : zero_extend(value, from);
        if (kind == F32 && rounding == NEAREST && !flags) {
            set_lane(w, i, 0, l, bits_of_f32(is_signed ? (float)(i64)value : (float)value));
            continue;
        }
        set_lane(w, i, 0, l, encode_float(is_signed ? (double)(i64)value : (double)value, kind, rounding, flags));
    }
}

/* mod[0]: source kind | destination kind << 16; mod[1]: rounding | flags << 8. */
static void cvt_float_float(Warp *w, const Insn *i, u32 active) {
    const u32 from = i->mod[0] & 255, to = i->mod[0] >> 16 & 255, rounding = i->mod[1] & 255, flags = i->mod[1] >> 8;
    EACH(active, l) {
        double d = read_float(w, i, 1, l, from);
        if (flags & FLUSH && from == F32 && fabs(d) < 0x1p-126) d = copysign(0, d);
        if (flags & REMAIN_FLOAT_INTEGER) d = to_integral(d, rounding);
        set_lane(w, i, 0, l, encode_float(d, to, rounding, flags));
    }
}

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

/* cvt.f16x2.f32 d, a, b: a goes to the high half. mod as cvt_float_float. */
static void cvt_pack(Warp *w, const Insn *i, u32 active) {
    const u32 to = i->mod[0] >> 16 & 255, rounding = i->mod[1] & 255, flags = i->mod[1] >> 8;
    u32 *d = SLOT(0);
    EACH(active, l) {
        const u32 high = (u32)encode_float(read_float(w, i, 1, l, F32), to, rounding, flags);
        d[l] = high << 16 | (u32)encode_float(read_float(w, i, 2, l, F32), to, rounding, flags);
    }
}

const Opcode convert_ops[] = {{"cvt_int_int", cvt_int_int, 0},     {"cvt_float_int", cvt_float_int, 0},
                              {"cvt_int_float", cvt_int_float, 0}, {"cvt_float_float", cvt_float_float, 0},
                              {"cvt_f32_f16", cvt_f32_f16, 0},     {"cvt_f16_f32", cvt_f16_f32, 0},
                              {"cvt_pack", cvt_pack, 0},           {0}};
