/* One fused multiply-add of a tensor core over 4 to 16 values of k, for one instruction set: mma_fast.c includes this
 * once for each, with WIDTH lanes in a vector and macros for what the compiler has no notation for.
 *
 * A register's lanes are rows of four lanes, 16 bytes. What varies with the row is broadcast over each row's lanes,
 * what varies with the column over the rows, so that sums come out in the order of C's fragment. */

#define PARTS (LANES / WIDTH)       /* vectors in a register */
#define OUTPUTS (2 * PARTS)         /* vectors of outputs whose columns are of one parity: row half, part of a register */
#define BYTE_PARTS (OUTPUTS / 4)    /* byte vectors for those */
typedef float STEP(Floats) __attribute__((vector_size(4 * WIDTH)));
typedef i32 STEP(Ints) __attribute__((vector_size(4 * WIDTH)));
typedef u32 STEP(Unsigned) __attribute__((vector_size(4 * WIDTH)));
typedef u16 STEP(Words) __attribute__((vector_size(4 * WIDTH)));
typedef u8 STEP(Bytes) __attribute__((vector_size(4 * WIDTH)));
#define Floats STEP(Floats)
#define Ints STEP(Ints)
#define Unsigned STEP(Unsigned)
#define Words STEP(Words)
#define Bytes STEP(Bytes)
#define UNROLL _Pragma("GCC unroll 16")
#define ALL(x) ((Ints){0} + (x))

/* A value of k in a piece is 2q + h for 16-bit types, whose registers have two halves, else q. In a byte vector of A's or
 * of outputs, dword d of 16-byte lane n is of row n of vector d: four values of k, or the columns of one parity. */
typedef struct {
    float b[4][2][2][2][2][4]; /* piece, h, q % 2, q / 2, parity; of the columns 2c + parity */
    Bytes a_code[8][BYTE_PARTS];  /* four values of k each */
    u32 b_code[4][16]; /* piece, code_index; one byte per column */
    i32 offset; /* from a product's code to its exponent + 127 */
} STEP(Operands);

INLINE u32 STEP(code_index)(u32 halves, u32 q, u32 h, u32 parity) { return q / 2 * 8 + parity * 4 + q % 2 * halves + h; }

INLINE Unsigned STEP(row)(const Step *s, u32 p, u32 n) {
    Unsigned x;
    memcpy(&x, s->a[2 * p + n / PARTS] + WIDTH * (n % PARTS), sizeof x);
    return x;
}

INLINE Floats STEP(value)(Unsigned x, u32 type, u32 high) {
    if (type == TF32) return (Floats)(x & 0xFFFFE000u);
    if (type == BF16) return (Floats)(high ? x & 0xFFFF0000u : x << 16);
    if (!high) x <<= 16;
    { /* a subnormal with the exponent of a normal number is 2^-15 + half of it; f32 subnormals, though exact, are slow */
        const Floats y = (Floats)((x >> 3 & 0x0FFFE000u) + (112u << 23));
        return (Floats)((Unsigned)MIN_FLOATS(y, TWICE_LESS(y, (Floats){0} + 0x1p-14f)) | (x & 0x80000000u));
    }
}

/* Exponent fields, of 16-bit types those of both halves; of subnormals `least`, of zeros 0. */
INLINE Words STEP(fields)(Unsigned x, u32 type, u32 least) {
    if (type == TF32) {
        const Unsigned magnitude = x & 0x7FFFE000u; /* `least` is below any but zero */
        return (Words)MAX_INTS(magnitude >> 23, MIN_UNSIGNED(magnitude, ALL((i32)least)));
    } else {
        const Words magnitude = (Words)(x & 0x7FFF7FFFu), field = magnitude >> (type == F16 ? 10 : 7);
        return MAX_WORDS(field, MIN_WORDS(magnitude, (Words){0} + (u16)least));
    }
}

/* Fields to codes: 64 to 127, or 0 for a zero, so that the sum of two tells by its size whether it is of a zero. False
 * where there are infinities or NaN, or exponents too far apart. */
INLINE bool STEP(encode)(Bytes *fields, u32 count, u32 type, i32 *base) {
    const u8 all = type == F16 ? 31 : 255;
    Bytes most = fields[0], bad = {0};
    u8 largest = 0;
    for (u32 n = 1; n < count; n++) most = MAX_BYTES(most, fields[n]);
    if (type == F16) bad = (Bytes)(most == all), *base = 1;
    else {
        for (u32 n = 0; n < sizeof most; n++) largest = most[n] > largest ? most[n] : largest;
        if (largest == all) return false;
        *base = largest > 63 ? largest - 63 : 1;
    }
    for (u32 n = 0; n < count; n++) {
        const Bytes nonzero = (Bytes)(fields[n] != 0);
        if (type != F16) bad |= (Bytes)(fields[n] < (u8)*base) & nonzero;
        fields[n] = (fields[n] + (u8)(64 - *base)) & nonzero;
    }
    return !ANY(bad);
}

INLINE Bytes STEP(pack)(const Words *x) { return PACK_BYTES(PACK_WORDS(x[0], x[1]), PACK_WORDS(x[2], x[3])); }

INLINE void STEP(encode_a)(const Step *s, u32 type, u32 halves, u32 p, STEP(Operands) *o) {
    Words field[OUTPUTS];
    for (u32 n = 0; n < OUTPUTS; n++) field[n] = STEP(fields)(STEP(row)(s, p, n), type, s->a_least);
    for (u32 part = 0; part < BYTE_PARTS; part++) {
        const Words *x = field + 4 * part;
        if (halves == 1) o->a_code[p][part] = STEP(pack)(x);
        else {
            const Bytes low = PACK_BYTES(x[0], x[1]), high = PACK_BYTES(x[2], x[3]);
            o->a_code[2 * p][part] = EVEN(low, high), o->a_code[2 * p + 1][part] = ODD(low, high);
        }
    }
}

INLINE void STEP(load_b)(const Step *s, u32 type, u32 halves, u32 p, STEP(Operands) *o) {
    u32 columns[LANES]; /* of q % 2, q / 2, parity */
    Words field[PARTS];
    TRANSPOSE(columns, s->b[p]);
    for (u32 part = 0; part < PARTS; part++) {
        Unsigned x;
        memcpy(&x, columns + WIDTH * part, sizeof x);
        for (u32 h = 0; h < halves; h++) {
            const Floats value = STEP(value)(x, type, h);
            memcpy((float *)o->b[p][h] + WIDTH * part, &value, sizeof value);
        }
        field[part] = STEP(fields)(x, type, s->b_least);
    }
    for (u32 part = 0; part < PARTS / 2; part++) {
        const Words even = field[part], odd = field[part + PARTS / 2]; /* q */
        const Bytes code = halves == 2 ? SEPARATE(PACK_BYTES(even, odd)) : PACK_BYTES(PACK_WORDS(even, odd), (Words){0});
        memcpy(o->b_code[p] + WIDTH * part, &code, sizeof code);
    }
}

INLINE bool STEP(load)(const Step *s, u32 type, u32 pieces, u32 halves, STEP(Operands) *o) {
    i32 a_base, b_base;
    Bytes b[sizeof o->b_code / sizeof(Bytes)];
    for (u32 p = 0; p < pieces; p++) STEP(encode_a)(s, type, halves, p, o), STEP(load_b)(s, type, halves, p, o);
    memcpy(b, o->b_code, pieces * sizeof *o->b_code);
    if (!STEP(encode)(*o->a_code, pieces * halves * BYTE_PARTS, type, &a_base)) return false;
    if (!STEP(encode)(b, (u32)(pieces * sizeof *o->b_code / sizeof *b), type, &b_base)) return false;
    memcpy(o->b_code, b, pieces * sizeof *o->b_code);
    __asm__("" : "+m"(o->b), "+m"(o->b_code)); /* in memory: a load spreads a value for nothing, an extraction does not */
    o->offset = a_base + b_base - 128 + 127 - (type == F16 ? 30 : 254);
    return o->offset + 254 <= 100 + 127; /* else products may be beyond f32 */
}

/* The largest code of a product for every output, by parity of the column. */
INLINE void STEP(tops)(const STEP(Operands) *o, u32 pieces, u32 halves, Bytes (*top)[BYTE_PARTS]) {
    for (u32 part = 0; part < BYTE_PARTS; part++) {
        Bytes even = {0}, odd = {0};
        UNROLL for (u32 n = 0; n < 4 * halves * pieces; n++) {
            const u32 p = n / (4 * halves), k = n % (4 * halves), q = k / halves, h = k % halves;
            const Bytes a = PICK_BYTES(o->a_code[n / 4][part], n % 4);
            even = MAX_BYTES(even, a + (Bytes)(Unsigned)ALL((i32)o->b_code[p][STEP(code_index)(halves, q, h, 0)]));
            odd = MAX_BYTES(odd, a + (Bytes)(Unsigned)ALL((i32)o->b_code[p][STEP(code_index)(halves, q, h, 1)]));
        }
        top[0][part] = even, top[1][part] = odd;
    }
}

INLINE Floats STEP(addend)(const Step *s, u32 n, u32 parity) {
    Floats x;
    memcpy(&x, (const u32 *)s->c[n / PARTS * 2 + parity] + WIDTH * (n % PARTS), sizeof x);
    return x;
}

/* From the largest codes of products to the largest exponents, with C's, plus 127. False where the general way must do it. */
INLINE bool STEP(join)(const STEP(Operands) *o, const Step *s, u32 type, Bytes (*top)[BYTE_PARTS]) {
    Unsigned least = ~(Unsigned){0};
    Bytes bad = {0};
    UNROLL for (u32 parity = 0; parity < 2; parity++)
        UNROLL for (u32 part = 0; part < BYTE_PARTS; part++) {
            const Bytes code = top[parity][part], nonzero = (Bytes)(code > 127);
            Words field[4];
            Bytes highest;
            UNROLL for (u32 n = 0; n < 4; n++) {
                const Unsigned twice = (Unsigned)STEP(addend)(s, 4 * part + n, parity) << 1;
                least = (Unsigned)MIN_UNSIGNED(least, twice - 1);
                field[n] = (Words)(twice >> 24);
            }
            highest = STEP(pack)(field);
            if (s->f16) highest = MAX_BYTES(highest, (Bytes){0} + (127 - 14)) & (Bytes)(highest != 0);
            highest = MAX_BYTES(highest, SUBTRACT_BYTES(code, (Bytes){0} + (u8)-o->offset) & nonzero);
            bad |= (Bytes)(highest == 255);
            if (type != F16) bad |= (Bytes)(highest < 27) & nonzero;
            top[parity][part] = MAX_BYTES(highest, (Bytes){0} + 27);
        }
    /* below 2^-100 the units would be subnormal */
    return !ANY(bad | (Bytes)(least < (27u << 24) - 1));
}

/* 2^top of output vector n. */
INLINE Ints STEP(power)(const Bytes *top, u32 n) { return (Ints)((Unsigned)TO_TOP(top[n / 4], n % 4) >> 1); }

/* Four sums in units of 2^(top - F), together in double, whose bits below an f32's are cut or kept as one odd bit. */
INLINE Floats STEP(round_wide)(const Ints *sums, Floats unit, u32 kept) {
    Floats value;
    for (u32 l = 0; l < WIDTH; l++) {
        const u64 bits = bits_of_f64((double)sums[0][l] + sums[1][l] + sums[2][l] + sums[3][l]), rest = bits & 0x1FFFFFFF;
        value[l] = (float)f64_of_bits((bits - rest) | (kept == 11 && rest ? 1u << 29 : 0));
    }
    return value * unit;
}

/* `sum` in units of 2^(top - F): one or two sums of at most eight products below 2^30. */
INLINE Floats STEP(round)(const Ints *sums, u32 parts, Floats unit, u32 kept) {
    Ints sign, sum = sums[0];
    Unsigned magnitude;
    Floats value;
    if (parts == 4) return STEP(round_wide)(sums, unit, kept);
#ifdef CUT_TO_FLOAT
    if (parts == 1 && kept == 24) return CUT_TO_FLOAT(sum) * unit;
#endif
    if (parts == 2) { /* the sum of both needs 33 bits: its sign is that of half of it */
        sign = ((sums[0] >> 1) + (sums[1] >> 1) + (sums[0] & sums[1] & 1)) >> 31;
        sum += sums[1];
    } else sign = sum >> 31;
    magnitude = (Unsigned)((sum ^ sign) - sign);
    if (kept == 11) { /* to odd, with bits to spare */
        const Unsigned rest = (Unsigned)(magnitude > 0xFFFFFF) & 255;
        magnitude = (magnitude & ~rest) | (((magnitude & rest) + rest) & 256);
    } else magnitude &= ~(magnitude >> 24); /* clears the bit that would round up, for 24 significant bits */
    value = parts == 2 ? __builtin_convertvector(magnitude, Floats) : __builtin_convertvector((Ints)magnitude, Floats);
    if (kept == 14) value = (Floats)((Unsigned)value & ~0x3FFu);
    return (Floats)((Unsigned)(value * unit) | ((Unsigned)sign & 0x80000000u));
}

/* Products exact in f32, scaled by a power of two, which is exact or leaves too little to count; the conversion to
 * integers cuts. */
INLINE void STEP(sum)(const Step *s, const STEP(Operands) *o, u32 type, u32 pieces, u32 halves, u32 n, Floats even, Floats odd,
                      Ints (*sums)[4]) {
    for (u32 p = 0; p < pieces; p++) {
        Ints x = {0}, y = {0};
        for (u32 h = 0; h < halves; h++) {
            const Floats v = STEP(value)(STEP(row)(s, p, n), type, h), a[4] = {PICK(v, 0), PICK(v, 1), PICK(v, 2), PICK(v, 3)};
            for (u32 q = 0; q < 4; q++) {
                x += TRUNCATE(a[q] * SPREAD(o->b[p][h][q % 2][q / 2][0]) * even);
                y += TRUNCATE(a[q] * SPREAD(o->b[p][h][q % 2][q / 2][1]) * odd);
            }
        }
        sums[0][p] = x, sums[1][p] = y;
    }
}

INLINE bool STEP(fuse)(const Step *s, u32 type, u32 pieces, u32 kept) {
    const u32 halves = type == TF32 ? 1 : 2;
    STEP(Operands) o;
    const i32 F = (i32)s->fraction_bits;
    Bytes top[2][BYTE_PARTS];
    Floats result[2][OUTPUTS];
    if (!STEP(load)(s, type, pieces, halves, &o)) return false;
    STEP(tops)(&o, pieces, halves, top);
    if (!STEP(join)(&o, s, type, top)) return false;
    UNROLL for (u32 n = 0; n < OUTPUTS; n++) {
        Ints power[2], sums[2][4];
        Floats scale[2]; /* 2^(F - top) */
        for (u32 parity = 0; parity < 2; parity++)
            power[parity] = STEP(power)(top[parity], n), scale[parity] = (Floats)((F << 23) - power[parity] + (254 << 23));
        STEP(sum)(s, &o, type, pieces, halves, n, scale[0], scale[1], sums);
        for (u32 parity = 0; parity < 2; parity++) {
            sums[parity][0] += TRUNCATE(STEP(addend)(s, n, parity) * scale[parity]);
            result[parity][n] = STEP(round)(sums[parity], pieces, (Floats)(power[parity] - (F << 23)), kept);
        }
    }
    for (u32 r = 0; r < 4; r++) memcpy(s->d[r], result[r % 2] + r / 2 * PARTS, LANES * sizeof(float));
    return true;
}

#define FUSE(name, type, pieces)                                                                                       \
    static bool STEP(name)(const Step *s) {                                                                            \
        return s->kept == 24 ? STEP(fuse)(s, type, pieces, 24) : STEP(fuse)(s, type, pieces, s->kept);                 \
    }
FUSE(f16_1, F16, 1) FUSE(f16_2, F16, 2) FUSE(f16_4, F16, 4) FUSE(bf16_1, BF16, 1) FUSE(bf16_2, BF16, 2) FUSE(tf32_1, TF32, 1) FUSE(tf32_2, TF32, 2)
static bool STEP(step)(const Step *s) {
    static bool (*const forms[3][2])(const Step *) = {
        {STEP(f16_1), STEP(f16_2)}, {STEP(bf16_1), STEP(bf16_2)}, {STEP(tf32_1), STEP(tf32_2)}};
    if (s->k == 4) return STEP(f16_4)(s);
    return forms[s->type - F16][s->k - 1](s);
}
#undef FUSE
#undef PARTS
#undef OUTPUTS
#undef BYTE_PARTS
#undef Floats
#undef Ints
#undef Unsigned
#undef Words
#undef Bytes
#undef ALL
#undef UNROLL
