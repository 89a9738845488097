/* Floating-point products: exact order and truncation of an architecture's tensor cores, or float64 with a bound on how
 * far these may be from it.
 *
 * A unit sums the exact products of a group of k and C: every addend is aligned to the largest exponent, cut to F
 * fractional bits and added exactly; the sum is cut to f32 (or to 14 significant bits), or rounded to nearest even f16.
 * Groups follow one another through C. Exponents are those of the operands' fields, so that a subnormal is aligned
 * unnormalised; a zero has the lowest of f32. Source: "MMA-Sim" (arXiv 2511.10909) and what ptxas makes of each. */
#include "mma.h"
#include <math.h>

enum { HW, BOUND, PERMUTE }; /* launch.py's NUMERICS */
enum { MAX_TERMS = 64, ZERO_EXPONENT = -126 };

typedef struct {
    u32 exponent, fraction; /* field widths */
    i32 bias;
    enum { FINITE, IEEE, ONE_NAN } specials; /* ONE_NAN: all ones, no infinity */
} Format;
static const Format formats[] = {
    [F16] = {5, 10, 15, IEEE}, [BF16] = {8, 7, 127, IEEE}, [TF32] = {8, 10, 127, IEEE}, [E4M3] = {4, 3, 7, ONE_NAN},
    [E5M2] = {5, 2, 15, IEEE}, [E3M2] = {3, 2, 3, FINITE}, [E2M3] = {2, 3, 1, FINITE}, [E2M1] = {2, 1, 1, FINITE},
    [F32] = {8, 23, 127, IEEE}};

/* value = significand * 2^(exponent - fraction); special: an infinity or NaN instead, else 0. */
typedef struct {
    i64 significand;
    i32 exponent, fraction;
    double special;
} Term;

static Term decode(u32 type, u32 code) {
    const Format f = formats[type];
    const u32 all = (1u << f.exponent) - 1, field = code >> f.fraction & all, low = code & ((1u << f.fraction) - 1);
    const i64 magnitude = field ? low | 1u << f.fraction : low;
    const bool negative = code >> (f.exponent + f.fraction) & 1;
    Term t = {negative ? -magnitude : magnitude, (i32)(field ? field : 1) - f.bias, (i32)f.fraction, 0};
    if (f.specials == IEEE && field == all) t.special = low ? NAN : negative ? -INFINITY : INFINITY;
    if (f.specials == ONE_NAN && field == all && low == (1u << f.fraction) - 1) t.special = NAN;
    return t;
}

static double value_of(const Term *t) {
    return t->special != 0 ? t->special : ldexp((double)t->significand, t->exponent - t->fraction);
}

static Term operand(const Product *p, u32 type, u32 bits) {
    if (type == TF32) bits >>= 13; /* the hardware ignores the rest */
    if (type == E2M1 && !(p->flags & NARROW_FP4)) bits >>= 2;
    return decode(type, bits);
}

/* What an f16 unit gets instead, converted. */
static Term as_f16(Term t) { return t.special != 0 ? t : decode(F16, f16_of_f32((float)value_of(&t))); }


static Term product(const Term *a, const Term *b) {
    Term t = {a->significand * b->significand, a->exponent + b->exponent, a->fraction + b->fraction, 0};
    if (a->special != 0 || b->special != 0) t.special = value_of(a) * value_of(b);
    return t;
}

/* How an architecture runs a type. `group`: products per sum, in bytes of A. */
typedef struct {
    u32 fraction_bits, group, kept;
    bool detached; /* by f16 units: elements 0 and 1 of every four, then 2 and 3, and only then C, in one f32 addition */
} Unit;

static Unit native_unit(u32 arch, const Product *p) {
    const u32 bits = bits_of_type(p, p->a_type);
    const u32 values = 128u >> __builtin_ctz(bits); /* in 16 bytes */
    if (p->scale_vector && bits == 4) return (Unit){35, MAX_TERMS, 24, false};
    if (bits == 8 && arch >= 90 && arch < 120) return (Unit){25, p->k / 2, 24, true};
    if (arch >= 90) return (Unit){25, 2 * values, 24, false};
    if (bits == 8) return (Unit){13, 16, 14, false};
    return (Unit){24, values, 24, false};
}
static Unit unit_of(u32 arch, const Product *p) {
    Unit u = native_unit(arch, p);
    if (p->most_k && u.group > p->most_k) u.group = p->most_k;
    return u;
}

static i64 cut(const Term *t, i32 top, i32 F) {
    const i32 shift = F - t->fraction - (top - (t->significand ? t->exponent : ZERO_EXPONENT));
    const i64 magnitude = t->significand < 0 ? -t->significand : t->significand;
    const i64 part = shift >= 0 ? magnitude << shift : shift > -64 ? magnitude >> -shift : 0;
    return t->significand < 0 ? -part : part;
}

/* sum * 2^exponent, cut toward zero to `kept` significant bits, as f32. */
static u32 cut_to_f32(i64 sum, i32 exponent, u32 kept) {
    u64 magnitude = sum < 0 ? 0 - (u64)sum : (u64)sum;
    i32 highest, unit;
    if (!sum) return 0;
    highest = 63 - __builtin_clzll(magnitude) + exponent;
    unit = (highest > -126 ? highest : -126) - (i32)kept + 1 - exponent;
    if (unit > 63) magnitude = 0;
    else if (unit > 0) magnitude = magnitude >> unit << unit;
    return bits_of_f32((float)ldexp((double)magnitude, exponent)) | (sum < 0 && magnitude ? 1u << 31 : 0);
}

static u32 round_to(u32 type, double value) {
    if (value != value) return type == F16 ? 0x7FFF : CANONICAL_NAN;
    return type == F16 ? f16_of_f32(odd_f32(value)) : bits_of_f32((float)value);
}

/* One sum of a unit: terms and accumulator to a new accumulator, both as bits of `type`. */
static u32 fused_sum(const Unit *u, const Term *terms, const u8 *order, u32 count, u32 type, u32 accumulator) {
    const Term c = decode(type, accumulator);
    const i32 F = (i32)u->fraction_bits;
    i32 top = c.significand ? c.exponent : ZERO_EXPONENT;
    double special = c.special;
    bool any = c.special != 0;
    i64 sum;
    for (u32 n = 0; n < count; n++) {
        const Term *t = terms + order[n];
        const i32 e = t->significand ? t->exponent : ZERO_EXPONENT;
        if (t->special != 0) special += t->special, any = true;
        if (e > top) top = e;
    }
    if (any) return round_to(type, special);
    sum = cut(&c, top, F);
    for (u32 n = 0; n < count; n++) sum += cut(terms + order[n], top, F);
    return type == F16 ? round_to(F16, ldexp((double)sum, top - F)) : cut_to_f32(sum, top - F, u->kept);
}

static double number(u32 type, u32 bits) {
    const Term t = decode(type, bits);
    return value_of(&t);
}

/* C is always of D's type but in one form (m8n8k4), whose C is widened before. */
static u32 hardware_sum(const Unit *u, const Term *terms, const u8 *order, u32 count, u32 type, u32 c) {
    u32 accumulator = u->detached ? 0 : c;
    for (u32 from = 0; from < count; from += u->group) {
        const u32 left = count - from;
        accumulator = fused_sum(u, terms, order + from, left < u->group ? left : u->group, type, accumulator);
    }
    return u->detached ? round_to(type, number(type, c) + number(type, accumulator)) : accumulator;
}

/* The float64 sum, and a bound on its distance to what any unit with u's F and group gives, whatever the order of k.
 *
 * Let S be the sum of the magnitudes of all addends and E the largest of their exponents and of that of 2S, so that no
 * exponent in any partial sum exceeds E: partial sums are below S plus the errors, which are far below S or 2^E. Of
 * ceil(K / G) sums, each cuts up to G + 1 addends, each by less than 2^(E - F), and then its result, by less than
 * 2^(1 - kept) of a magnitude of at most S plus the errors, or by less than the smallest subnormal (f16: half of 2^-10
 * and of 2^-24). A sum apart from C adds one rounding of the last kind. The float64 sum is off by less than (K + 1)
 * 2^-53 S, and its one rounding by half a unit. A sixteenth on top covers the errors' own growth, which is second
 * order: a sum's cuts are at most 2^-7 of 2^E for every F here. */
static double bounded_sum(const Unit *u, const Term *terms, u32 count, u32 type, u32 c, double *bound) {
    const u32 group = u->group < count ? u->group : count;
    const double sums = ceil((double)count / group) + u->detached;
    const double relative = type == F16 ? 0x1p-11 : ldexp(2, -(i32)u->kept), least = type == F16 ? 0x1p-25 : 0x1p-126 * relative;
    const Term first = decode(type, c);
    double sum = value_of(&first), size = fabs(sum), cuts;
    i32 top = first.significand ? first.exponent : ZERO_EXPONENT, whole;
    for (u32 n = 0; n < count; n++) {
        const double x = value_of(terms + n);
        sum += x, size += fabs(x);
        if (terms[n].significand && terms[n].exponent > top) top = terms[n].exponent;
    }
    *bound = INFINITY;
    if (!(size < (type == F16 ? 65504 : 0x1p127))) return sum; /* may overflow on the way */
    frexp(size, &whole);
    cuts = ldexp((group + 1) * sums, (whole > top ? whole : top) - (i32)u->fraction_bits);
    *bound = 1.0625 * (cuts + sums * ((size + cuts) * relative + least));
    *bound += size * ((count + 1) * 0x1p-53 + (type == F16 ? 0x1p-11 : 0x1p-24)) + (type == F16 ? 0x1p-25 : 0x1p-150);
    return sum;
}

typedef struct {
    Term a[16][MAX_TERMS], b[COLUMNS][MAX_TERMS];
} Operands;

static void take_operands(const Product *p, bool as_halves, Operands *o) {
    const u32 a_bits = bits_of_type(p, p->a_type), b_bits = bits_of_type(p, p->b_type);
    const u32 a_mask = a_bits == 32 ? FULL : (1u << a_bits) - 1, b_mask = b_bits == 32 ? FULL : (1u << b_bits) - 1;
    for (u32 k = 0; k < p->k; k++) {
        for (u32 row = 0; row < 16; row++) o->a[row][k] = operand(p, p->a_type, element_a(p, a_bits, row, k) & a_mask);
        for (u32 n = 0; n < COLUMNS; n++) o->b[n][k] = operand(p, p->b_type, element_b(p, b_bits, k, n) & b_mask);
        for (u32 row = 0; as_halves && row < 16; row++) o->a[row][k] = as_f16(o->a[row][k]);
        for (u32 n = 0; as_halves && n < COLUMNS; n++) o->b[n][k] = as_f16(o->b[n][k]);
    }
}

static Term scale_of(const Product *p, u32 code) {
    if (p->scale_type) return decode(E4M3, code & 127);
    return (Term){1, (i32)code - 127, 0, code == 255 ? NAN : 0};
}

/* Scaled terms. fp4: the unit sums 16 products exactly and scales that sum, aligned by the scales' exponents alone;
 * else every product is scaled, by a power of two. */
static u32 scaled_terms(const Product *p, const Operands *o, u32 row, u32 column, Term *terms) {
    const u32 step = bits_of_type(p, p->a_type) == 4 ? 16 : 1;
    for (u32 k = 0; k < p->k; k += step) {
        const u32 v = k * p->scale_vector / p->k;
        const Term a = scale_of(p, p->a_scale[row][v]), b = scale_of(p, p->b_scale[column][v]), scale = product(&a, &b);
        Term t = product(&o->a[row][k], &o->b[column][k]);
        if (step > 1) {
            t = (Term){0, 0, 2, 0}; /* units of a quarter */
            for (u32 n = k; n < k + step; n++) {
                const Term x = product(&o->a[row][n], &o->b[column][n]);
                t.significand += x.significand * ((i64)1 << (x.exponent - x.fraction + 2));
            }
        }
        terms[k / step] = product(&t, &scale);
    }
    return p->k / step;
}

static u32 plain_terms(const Product *p, const Operands *o, u32 row, u32 column, Term *terms) {
    for (u32 k = 0; k < p->k; k++) terms[k] = product(&o->a[row][k], &o->b[column][k]);
    return p->k;
}

/* Positions of k in the order in which the unit takes them. */
static void set_order(Machine *m, const Unit *u, u32 count, u8 *order) {
    for (u32 n = 0; n < count; n++)
        order[n] = (u8)(u->detached ? n % 2 + n % (count / 2) / 2 * 4 + 2 * (n >= count / 2) : n);
    if (m->numerics == PERMUTE)
        for (u32 n = count - 1; n; n--) {
            const u32 other = (u32)(next_random(m) >> 33) % (n + 1);
            const u8 mine = order[n];
            order[n] = order[other], order[other] = mine;
        }
}

/* A bound is never 0. */
static void note_bound(const Warp *w, u32 lane, Tally *t, double bound, double distance) {
    t->outputs++;
    if (!(bound < INFINITY)) {
        t->unbounded++;
        return;
    }
    if (distance != distance) distance = INFINITY; /* no number where one is due */
    if (bound > t->bound) t->bound = bound;
    if (distance > t->distance) t->distance = distance;
    if (distance > t->worst_share * bound)
        t->worst_share = distance / bound, t->worst_block = w->b->index, t->worst_thread = w->index * LANES + lane;
}

/* The general way: one output after another. */
static void multiply_exactly(Warp *w, const Insn *i, const Product *p, const Unit *u, u32 *const *d) {
    const u32 values = p->c_type == F16 ? 2 : 1;
    Result sums;
    Operands o;
    Term terms[MAX_TERMS];
    u8 order[MAX_TERMS];
    u32 ordered = 0;
    take_operands(p, u->detached, &o);
    for (u32 r = 0; r < p->c_registers; r++) {
        for (u32 n = 0; n < values * LANES; n++) {
            const u32 l = n % LANES, v = values * r + n / LANES, shift = n / LANES * 16;
            const u32 row = l / 4 + 8 * (v >> 1), column = 2 * (l % 4) + (v & 1);
            const u32 c = p->c[r][l] >> shift & (values == 2 ? 0xFFFF : FULL);
            if (p->skipped >> row & 1) continue;
            const u32 count = (p->scale_vector ? scaled_terms : plain_terms)(p, &o, row, column, terms);
            u32 result;
            if (!ordered) set_order(w->m, u, count, order), ordered = 1;
            result = hardware_sum(u, terms, order, count, p->c_type, c);
            if (w->m->numerics == BOUND) {
                double bound, sum = bounded_sum(u, terms, count, p->c_type, c, &bound);
                const u32 rounded = round_to(p->c_type, sum);
                note_bound(w, l, tally_of(w, i), bound, fabs(number(p->c_type, rounded) - number(p->c_type, result)));
                result = rounded;
            }
            sums[r][l] = shift ? sums[r][l] | result << 16 : result;
        }
    }
    for (u32 r = 0; r < p->c_registers; r++) memcpy(d[r], sums[r], sizeof sums[r]);
}

/* m8n8k4, which only sm_75's tensor cores have. Later ones run f32 arithmetic: with an f32 result a chain of fused
 * multiplications and additions, to which C is added; with an f16 result C plus two pairs. */
static float later_sum(const float *a, const float *b, float c, bool f16) {
    if (f16) return c + fmaf(a[1], b[1], a[0] * b[0]) + fmaf(a[3], b[3], a[2] * b[2]);
    return c + fmaf(a[3], b[3], fmaf(a[2], b[2], fmaf(a[1], b[1], a[0] * b[0])));
}
void multiply_quad_pair(Machine *m, float (*a)[4], float (*b)[4], float (*c)[8], bool f16) {
    static const u8 order[] = {0, 1, 2, 3};
    const Unit u = {24, 4, 24, false};
    const u32 type = f16 ? F16 : F32;
    for (u32 row = 0; row < 8; row++)
        for (u32 column = 0; column < 8; column++) {
            const float value = c[row][column];
            Term terms[4];
            if (m->arch > 75) {
                c[row][column] = later_sum(a[row], b[column], value, f16);
                continue;
            }
            for (u32 k = 0; k < 4; k++) {
                const Term x = decode(F16, f16_of_f32(a[row][k])), y = decode(F16, f16_of_f32(b[column][k]));
                terms[k] = product(&x, &y);
            }
            c[row][column] = (float)number(type, fused_sum(&u, terms, order, 4, type, f16 ? f16_of_f32(value) : bits_of_f32(value)));
        }
}

/* fp8, fp6 and fp4 in bytes as pairs of f16, exactly: elements 0 and 1 of a register, and 2 and 3. A code's bits are at
 * the top of an f32's exponent and fraction, subnormals as well, but for the bias. */
INLINE u32 f16_of_byte(u32 byte, u32 exponent, u32 fraction, float scale, bool one_nan) {
    const u32 bits = exponent + fraction, magnitude = byte & ((1u << bits) - 1), sign = (byte >> bits & 1) << 15;
    const u32 half = f16_of_f32(f32_of_bits(magnitude << (23 - fraction)) * scale);
    return sign | (one_nan && magnitude == 127 ? 0x7FFF : half);
}
INLINE void widen_bytes(const u32 *lanes, u32 *low, u32 *high, u32 shift, u32 exponent, u32 fraction, float scale, bool one_nan) {
    for (u32 l = 0; l < LANES; l++) {
        u32 half[4];
        for (u32 n = 0; n < 4; n++) half[n] = f16_of_byte(lanes[l] >> (8 * n + shift) & 255, exponent, fraction, scale, one_nan);
        low[l] = half[0] | half[1] << 16, high[l] = half[2] | half[3] << 16;
    }
}
VECTOR static void widen_register(u32 type, const u32 *lanes, u32 *low, u32 *high) {
    if (type == E5M2) for (u32 l = 0; l < LANES; l++) { /* the upper half of an f16 */
        low[l] = (lanes[l] & 0xFF) << 8 | (lanes[l] & 0xFF00) << 16;
        high[l] = (lanes[l] >> 8 & 0xFF00) | (lanes[l] & 0xFF000000);
    }
    else if (type == E4M3) widen_bytes(lanes, low, high, 0, 4, 3, 0x1p120f, true);
    else if (type == E3M2) widen_bytes(lanes, low, high, 0, 3, 2, 0x1p124f, false);
    else if (type == E2M3) widen_bytes(lanes, low, high, 0, 2, 3, 0x1p126f, false);
    else widen_bytes(lanes, low, high, 2, 2, 1, 0x1p126f, false);
}

/* f16 accumulators as f32, in which a unit adds them. */
typedef struct {
    _Alignas(CACHE_LINE) float value[4][LANES];
} Sums;

VECTOR static void widen_c(const Product *p, Sums *s) {
    if (p->c_type != F16) for (u32 r = 0; r < 4; r++) memcpy(s->value[r], p->c[r], sizeof s->value[r]);
    else for (u32 r = 0; r < 2; r++)
        for (u32 l = 0; l < LANES; l++) {
            s->value[2 * r][l] = f32_of_f16(p->c[r][l] & 0xFFFF);
            s->value[2 * r + 1][l] = f32_of_f16(p->c[r][l] >> 16);
        }
}
VECTOR static void round_to_f16(Sums *s) {
    for (u32 r = 0; r < 4; r++)
        for (u32 l = 0; l < LANES; l++) s->value[r][l] = f32_of_f16(f16_of_f32(s->value[r][l]));
}
VECTOR static void store_c(const Product *p, const Sums *s, u32 *const *d) {
    if (p->c_type != F16) for (u32 r = 0; r < 4; r++) memcpy(d[r], s->value[r], sizeof s->value[r]);
    else for (u32 r = 0; r < 2; r++)
        for (u32 l = 0; l < LANES; l++)
            d[r][l] = f16_of_f32(s->value[2 * r][l]) | f16_of_f32(s->value[2 * r + 1][l]) << 16;
}
VECTOR static void add_c(const Product *p, Sums *s) {
    Sums c;
    widen_c(p, &c);
    for (u32 r = 0; r < 4; r++) {
        for (u32 l = 0; l < LANES; l++)
            s->value[r][l] = p->c_type == F16 ? odd_sum_f32(c.value[r][l], s->value[r][l])
                                              : f32_of_bits(canonical(c.value[r][l] + s->value[r][l]));
    }
}

/* Bytes as f16: A's registers twice as many, and B's. Detached sums take all low halves first. */
static void widen_operands(const Product *p, bool detached, u32 (*wide)[LANES]) {
    for (u32 r = 0; r < p->a_registers; r++) {
        const u32 low = detached ? r : 4 * (r >> 1) + (r & 1);
        widen_register(p->a_type, p->a[r], wide[low], wide[detached ? r + p->a_registers : low + 2]);
    }
    for (u32 r = 0; r < p->b_registers; r++) {
        const u32 low = 8 + (detached ? r : 2 * r);
        widen_register(p->b_type, p->b[r], wide[low], wide[detached ? low + p->b_registers : low + 1]);
    }
}

/* f16's exponent field of a type's subnormals. A detached sum runs on f16 operands, converted before. */
static u32 least_field(u32 type, bool bytes, const Unit *u) {
    return bytes && !u->detached ? (u32)(formats[F16].bias + 1 - formats[type].bias) : 1;
}

/* By vectors, where operands and unit allow. Pieces of 16 bytes of A's rows: two registers each of A, one of B. */
static bool multiply_fast(const Product *p, const Unit *u, u32 *const *d) {
    const bool bytes = bits_of_type(p, p->a_type) == 8, f16 = p->c_type == F16, in_place = !f16 && !u->detached;
    const u32 pieces = p->b_registers * (bytes ? 2 : 1), together = u->group * (bytes ? 16 : bits_of_type(p, p->a_type)) / 128;
    u32 wide[12][LANES];
    Step s; /* its arrays are filled as far as a step has use for them */
    Sums sums;
    if (p->scale_vector || !together) return false;
    s.type = bytes ? F16 : p->a_type, s.fraction_bits = u->fraction_bits, s.kept = f16 ? 11 : u->kept, s.f16 = f16;
    s.a_least = least_field(p->a_type, bytes, u), s.b_least = least_field(p->b_type, bytes, u);
    if (bytes) widen_operands(p, u->detached, wide);
    if (u->detached) memset(sums.value, 0, sizeof sums.value);
    else if (f16) widen_c(p, &sums);
    for (u32 r = 0; r < 4; r++) s.c[r] = in_place ? (const void *)p->c[r] : sums.value[r], s.d[r] = sums.value[r];
    for (u32 n = 0; n < pieces; n += s.k) {
        s.k = together < pieces - n ? together : pieces - n;
        for (u32 r = 0; r < 2 * s.k; r++) s.a[r] = bytes ? wide[2 * n + r] : p->a[2 * n + r];
        for (u32 r = 0; r < s.k; r++) s.b[r] = bytes ? wide[8 + n + r] : p->b[n + r];
        for (u32 r = 0; r < 4 && in_place && n + s.k == pieces; r++) s.d[r] = d[r];
        if (!fused_step(&s)) return false;
        if (f16) round_to_f16(&sums);
        for (u32 r = 0; r < 4; r++) s.c[r] = s.d[r];
    }
    if (u->detached) add_c(p, &sums);
    if (!in_place) store_c(p, &sums, d);
    return true;
}

void multiply_floats(Warp *w, const Insn *i, const Product *p, u32 *const *d) {
    const Unit u = unit_of(w->m->arch, p);
    if (w->m->numerics == HW && multiply_fast(p, &u, d)) return;
    multiply_exactly(w, i, p, &u, d);
}

/* mma.m16n8k16 and m16n8k8 of f16 or bf16 into f32 before sm_90, with nothing undefined: how many of `count`, each of which
 * adds to the sums of the one before, are done; 0 where it is something else or the operands need another way. */
u32 multiply_plainly(Warp *w, const Insn *i, u32 count) {
    const u32 type = i->mod[1] & 255, k = i->mod[0] & 0xFFFF, pieces = k / 8, *undefined = w->undefined;
    const u16 *a = i->operand + i->dsts, *b = a + 2 * pieces, *c = b + pieces;
    u32 done;
    Step s; /* its arrays are filled as far as they are used */
    if (i->mod[0] >> 16 != 16 || i->mod[1] >> 16 != (F32 << 8 | F32) || type != (i->mod[1] >> 8 & 255)) return 0;
    if (type > BF16 || w->m->arch >= 90 || w->m->numerics != HW || pieces < 1 || pieces > 2) return 0;
    if (w->m->checks & CHECK_UNDEFINED) {
        u32 any = 0;
        for (u32 n = i->dsts; n < (u32)i->dsts + i->srcs; n++) any |= undefined[i->operand[n]];
        if (any) return 0;
    }
    done = multiply_by_ones(w->m->fragments, w->slots, i, type, pieces, count);
    if (!done && type == F16 && pieces == 2) done = multiply_chain(w->m->fragments, w->slots, i, count);
    s.type = type, s.k = pieces, s.fragments = w->m->fragments, s.a_slot = a[0], s.b_slot = b[0];
    for (u32 r = 0; r < 2 * pieces; r++) s.a[r] = (const u32 *)(w->slots + (size_t)SLOT_BYTES * a[r]);
    for (u32 r = 0; r < pieces; r++) s.b[r] = (const u32 *)(w->slots + (size_t)SLOT_BYTES * b[r]);
    for (u32 r = 0; r < 4; r++) s.c[r] = w->slots + (size_t)SLOT_BYTES * c[r], s.d[r] = SLOT(r);
    if (!done) done = multiply_columns(&s);
    for (u32 r = 0; done && r < 4 && w->m->checks & CHECK_UNDEFINED; r++) w->undefined[i->operand[r]] = 0;
    return done;
}
