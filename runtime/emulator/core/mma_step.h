/* One fused multiply-add of a tensor core over 4 to 16 values of k, for one instruction set: mma_fast.c includes this
 * once for each, with WIDTH lanes in a vector and macros for what the compiler has no notation for.
 *
 * A register's lanes are rows of four lanes, 16 bytes. What varies with the row is broadcast over each row's lanes,
 * what varies with the column over the rows, so that sums come out in the order of C's fragment. */

#define PARTS (LANES / WIDTH)       /* vectors in a register */
#define BYTE_PARTS (2 * LANES / (4 * WIDTH)) /* byte vectors in two registers */
typedef float STEP(Floats) __attribute__((vector_size(4 * WIDTH)));
typedef i32 STEP(Ints) __attribute__((vector_size(4 * WIDTH)));
typedef u32 STEP(Unsigned) __attribute__((vector_size(4 * WIDTH)));
typedef u8 STEP(Bytes) __attribute__((vector_size(4 * WIDTH)));
#define Floats STEP(Floats)
#define Ints STEP(Ints)
#define Unsigned STEP(Unsigned)
#define Bytes STEP(Bytes)
#define ALL(x) ((Ints){0} + (x))

typedef struct {
    Floats a[4][2][2][PARTS]; /* piece, half of the register, row half */
    float b[4][2][4][2][4];   /* piece, half, q, parity; of the columns 2q + parity */
    Bytes a_code[4][2][BYTE_PARTS]; /* lanes of rows 0..7, then of rows 8..15 */
    u32 b_code[4][2][4][2];         /* one byte per column */
    i32 offset; /* from a product's code to its exponent + 127 */
} STEP(Operands);

/* The half `high` of a register's lanes: value, and exponent field as bytes; of subnormals `least`, of zeros 0. */
INLINE Floats STEP(decode)(Unsigned x, u32 type, u32 high, u32 least, u8 *fields) {
    Unsigned magnitude;
    Ints field;
    if (type == TF32) x &= 0xFFFFE000u;
    else x = high ? x & 0xFFFF0000u : x << 16;
    magnitude = x & 0x7FFFFFFFu;
    field = (Ints)(magnitude >> (type == F16 ? 26 : 23));
    field = MAX_INTS(field, MIN_UNSIGNED(magnitude, ALL((i32)least))); /* which is below any magnitude */
    NARROW(fields, field);
    return type == F16 ? (Floats)(magnitude >> 3 | (x & 0x80000000u)) * 0x1p112f : (Floats)x;
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

INLINE bool STEP(load)(const Step *s, u32 type, u32 pieces, u32 halves, STEP(Operands) *o) {
    i32 a_base, b_base;
    for (u32 p = 0; p < pieces; p++) {
        u32 columns[LANES]; /* of q, parity, q */
        for (u32 r = 0; r < 2; r++)
            for (u32 part = 0; part < PARTS; part++) {
                Unsigned x;
                memcpy(&x, s->a[2 * p + r] + WIDTH * part, sizeof x);
                for (u32 h = 0; h < halves; h++)
                    o->a[p][h][r][part] = STEP(decode)(x, type, h, s->a_least, (u8 *)o->a_code[p][h] + LANES * r + WIDTH * part);
            }
        TRANSPOSE(columns, s->b[p]);
        for (u32 part = 0; part < PARTS; part++) {
            Unsigned x;
            memcpy(&x, columns + WIDTH * part, sizeof x);
            for (u32 h = 0; h < halves; h++) {
                const Floats value = STEP(decode)(x, type, h, s->b_least, (u8 *)o->b_code[p][h] + WIDTH * part);
                memcpy((float *)o->b[p][h] + WIDTH * part, &value, sizeof value);
            }
        }
    }
    if (halves == 1) { /* the unused half of the codes must not disturb */
        Bytes a[2 * BYTE_PARTS], b[2];
        u32 columns[2][8] = {{0}};
        for (u32 p = 0; p < pieces; p++) memcpy(a + BYTE_PARTS * p, o->a_code[p][0], sizeof o->a_code[p][0]), memcpy(columns[p], o->b_code[p][0], 32);
        memcpy(b, columns, sizeof columns);
        if (!STEP(encode)(a, pieces * BYTE_PARTS, type, &a_base) || !STEP(encode)(b, sizeof columns / sizeof *b, type, &b_base)) return false;
        memcpy(columns, b, sizeof columns);
        for (u32 p = 0; p < pieces; p++) memcpy(o->a_code[p][0], a + BYTE_PARTS * p, sizeof o->a_code[p][0]), memcpy(o->b_code[p][0], columns[p], 32);
    } else {
        Bytes b[4 * 2 * 32 / sizeof(Bytes)];
        const size_t bytes = pieces * sizeof o->b_code[0];
        memcpy(b, o->b_code, bytes);
        if (!STEP(encode)((Bytes *)o->a_code, pieces * 2 * BYTE_PARTS, type, &a_base)) return false;
        if (!STEP(encode)(b, (u32)(bytes / sizeof *b), type, &b_base)) return false;
        memcpy(o->b_code, b, bytes);
    }
    o->offset = a_base + b_base - 128 + 127 - (type == F16 ? 30 : 254);
    return o->offset + 254 <= 100 + 127; /* else products may be beyond f32 */
}

/* The largest code of a product for every output: parity of the column, row half, lane. */
INLINE void STEP(tops)(const STEP(Operands) *o, u32 pieces, u32 halves, Bytes (*top)[BYTE_PARTS]) {
    for (u32 part = 0; part < BYTE_PARTS; part++) {
        Bytes even = {0}, odd = {0};
        for (u32 p = 0; p < pieces; p++)
            for (u32 h = 0; h < halves; h++) {
                const Bytes x = o->a_code[p][h][part], a[4] = {PICK_BYTES(x, 0), PICK_BYTES(x, 1), PICK_BYTES(x, 2), PICK_BYTES(x, 3)};
                for (u32 q = 0; q < 4; q++) {
                    const u32 *b = o->b_code[p][h][q];
                    even = MAX_BYTES(even, a[q] + (Bytes)(Unsigned)ALL((i32)b[0]));
                    odd = MAX_BYTES(odd, a[q] + (Bytes)(Unsigned)ALL((i32)b[1]));
                }
            }
        top[0][part] = even, top[1][part] = odd;
    }
}

/* 2^(F - top) and 2^(top - F) for one vector of outputs. `most` and `bad` collect what the general way must do. */
INLINE void STEP(units)(const STEP(Operands) *o, const float *c, bool f16, i32 F, const u8 *codes, Floats *scale, Floats *unit,
                        Ints *most, Ints *bad) {
    const Ints code = WIDEN(codes);
    Unsigned magnitude;
    Ints field, top;
    memcpy(&magnitude, c, sizeof magnitude);
    magnitude &= 0x7FFFFFFFu;
    field = (Ints)(magnitude >> 23);
    field = MAX_INTS(field, ALL(f16 ? 127 - 14 : 1)) & (Ints)(magnitude != 0);
    top = MAX_INTS(field, (code + o->offset) & (Ints)(code > 127));
    *most = MAX_INTS(*most, top);
    *bad |= (Ints)(top < 27) & ((Ints)magnitude | (code & 128)); /* below 2^-100: the units would be subnormal */
    top = MAX_INTS(top, ALL(27));
    *scale = (Floats)((F + 254 - top) << 23), *unit = (Floats)((top - F) << 23);
}

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
INLINE void STEP(sum)(const STEP(Operands) *o, u32 pieces, u32 halves, u32 r, u32 part, Floats even, Floats odd, Ints (*sums)[4]) {
    for (u32 p = 0; p < pieces; p++) {
        Ints x = {0}, y = {0};
        for (u32 h = 0; h < halves; h++) {
            const Floats v = o->a[p][h][r][part], a[4] = {PICK(v, 0), PICK(v, 1), PICK(v, 2), PICK(v, 3)};
            for (u32 q = 0; q < 4; q++) {
                x += TRUNCATE(a[q] * SPREAD(o->b[p][h][q][0]) * even);
                y += TRUNCATE(a[q] * SPREAD(o->b[p][h][q][1]) * odd);
            }
        }
        sums[0][p] = x, sums[1][p] = y;
    }
}

INLINE bool STEP(fuse)(const Step *s, u32 type, u32 pieces, Sums *c) {
    const u32 halves = type == TF32 ? 1 : 2;
    const i32 F = (i32)s->fraction_bits;
    STEP(Operands) o;
    Bytes top[2][BYTE_PARTS];
    Ints most = {0}, bad = {0};
    Floats scale[4][PARTS], unit[4][PARTS];
    if (!STEP(load)(s, type, pieces, halves, &o)) return false;
    STEP(tops)(&o, pieces, halves, top);
    for (u32 i = 0; i < 4; i++)
        for (u32 part = 0; part < PARTS; part++)
            STEP(units)(&o, c->value[i] + WIDTH * part, c->f16, F, (const u8 *)top[i & 1] + LANES * (i >> 1) + WIDTH * part,
                        &scale[i][part], &unit[i][part], &most, &bad);
    if (ANY(bad | (Ints)(most == 255))) return false;
    for (u32 r = 0; r < 2; r++)
        for (u32 part = 0; part < PARTS; part++) {
            Ints sums[2][4];
            STEP(sum)(&o, pieces, halves, r, part, scale[2 * r][part], scale[2 * r + 1][part], sums);
            for (u32 n = 0; n < 2; n++) {
                float *value = c->value[2 * r + n] + WIDTH * part;
                Floats x;
                memcpy(&x, value, sizeof x);
                sums[n][0] += TRUNCATE(x * scale[2 * r + n][part]);
                x = STEP(round)(sums[n], pieces, unit[2 * r + n][part], s->kept);
                memcpy(value, &x, sizeof x);
            }
        }
    return true;
}

#define FUSE(name, type, pieces) \
    static bool STEP(name)(const Step *s, Sums *c) { return STEP(fuse)(s, type, pieces, c); }
FUSE(f16_1, F16, 1) FUSE(f16_2, F16, 2) FUSE(f16_4, F16, 4) FUSE(bf16_1, BF16, 1) FUSE(bf16_2, BF16, 2) FUSE(tf32_1, TF32, 1) FUSE(tf32_2, TF32, 2)
static bool STEP(step)(const Step *s, Sums *c) {
    static bool (*const forms[3][2])(const Step *, Sums *) = {
        {STEP(f16_1), STEP(f16_2)}, {STEP(bf16_1), STEP(bf16_2)}, {STEP(tf32_1), STEP(tf32_2)}};
    if (s->k == 4) return STEP(f16_4)(s, c);
    return forms[s->type - F16][s->k - 1](s, c);
}
#undef FUSE
#undef PARTS
#undef BYTE_PARTS
#undef Floats
#undef Ints
#undef Unsigned
#undef Bytes
#undef ALL
