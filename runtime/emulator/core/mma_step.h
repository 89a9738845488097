/* One fused multiply-add of a tensor core over 4 to 16 values of k, for one instruction set: mma_fast.c includes this
 * once for each, with STEP naming the function, and MAX_BYTES and MAX_INTS its vector maxima.
 *
 * Vectors hold 16 lanes of a register: the lanes of four rows g, each 16 bytes. What varies with the row is broadcast
 * over each row's four lanes, what varies with the column over the rows, so that sums come out in C's fragment order. */

/* Value of each half (`high`) of a register's lanes, and its biased exponent; 0 has the exponent field 0. */
INLINE void STEP(decode)(Unsigned x, u32 type, u32 high, Floats *value, Ints *field, Unsigned *bad) {
    const u32 all = type == F16 ? 31 : 255;
    Unsigned magnitude, f;
    if (type == TF32) x &= 0xFFFFE000u;
    else x = high ? x & 0xFFFF0000u : x << 16;
    magnitude = x & 0x7FFFFFFFu;
    if (type == F16) {
        const Unsigned shifted = magnitude >> 3 | (x & 0x80000000u);
        *value = (Floats)shifted * 0x1p112f;
        f = magnitude >> 26;
        f += (Unsigned)(f == 0) & (Unsigned)(magnitude != 0) & 1; /* subnormals have the lowest exponent */
    } else {
        *value = (Floats)x;
        f = magnitude >> 23;
        *bad |= (Unsigned)(f == 0) & (Unsigned)(magnitude != 0); /* subnormals: the general way */
    }
    *bad |= (Unsigned)(f == all);
    *field = (Ints)f;
}

/* Exponents as bytes: 64 to 127, 0 for a zero, so that the byte of a product tells by its size whether it is one. */
INLINE void STEP(code)(Ints field, i32 base, u8 *bytes, Unsigned *bad) {
    const Ints nonzero = field != 0, relative = field - base;
    const Quarter codes = __builtin_convertvector((relative + 64) & nonzero, Quarter);
    *bad |= (Unsigned)((relative < 0) & nonzero);
    memcpy(bytes, &codes, sizeof codes);
}

/* The largest field, for the window of exponents that a byte holds. */
INLINE i32 STEP(base)(const Ints *field, u32 count) {
    Ints most = field[0];
    i32 result = 0;
    for (u32 n = 1; n < count; n++) most = MAX_INTS(most, field[n]);
    for (u32 l = 0; l < 16; l++) result = most[l] > result ? most[l] : result;
    return result - 63;
}

#define PICK(x, q)                                                                                                 \
    __builtin_shuffle(x, (Ints){q, q, q, q, q + 4, q + 4, q + 4, q + 4, q + 8, q + 8, q + 8, q + 8, q + 12, q + 12, \
                                q + 12, q + 12})
#define FOUR(q) q, q, q, q
#define SIXTEEN(q) FOUR(q), FOUR(q + 4), FOUR(q + 8), FOUR(q + 12)
#define PICK_BYTES(x, q) \
    __builtin_shuffle(x, (Bytes){SIXTEEN(q), SIXTEEN(q + 16), SIXTEEN(q + 32), SIXTEEN(q + 48)})

/* `products` are the sums in units of 2^(top - F), each of at most eight products below 2^30. */
INLINE Floats STEP(round)(const Ints *products, u32 parts, Floats unit, u32 kept) {
    Ints sign, sum = products[0];
    Unsigned magnitude;
    if (parts == 2) { /* the sum of both needs 33 bits: its sign is that of half of it */
        sign = ((products[0] >> 1) + (products[1] >> 1) + (products[0] & products[1] & 1)) >> 31;
        sum += products[1];
    } else sign = sum >> 31;
    magnitude = (Unsigned)((sum ^ sign) - sign);
    if (kept == 11) { /* to odd, with bits to spare */
        const Unsigned rest = (magnitude > 0xFFFFFF) & (Unsigned){255, 255, 255, 255, 255, 255, 255, 255,
                                                                  255, 255, 255, 255, 255, 255, 255, 255};
        magnitude = (magnitude & ~rest) | (((magnitude & rest) + rest) & 256);
    } else magnitude &= ~(magnitude >> 24); /* clears the bit that would round up, for 24 significant bits */
    {
        Floats value = __builtin_convertvector(magnitude, Floats);
        if (kept == 14) value = (Floats)((Unsigned)value & ~0x3FFu);
        return (Floats)((Unsigned)(value * unit) | ((Unsigned)sign & 0x80000000u));
    }
}

typedef struct {
    Floats a[2][2][2][2]; /* piece, half of the register, row half, row quarter */
    Floats b[2][2][4][2]; /* piece, half of the register, q, parity of the column; over the columns 2q + parity */
    Bytes a_code[2][2];
    u32 b_code[2][2][8]; /* of q, parity */
    i32 offset;          /* from a product's byte to its exponent */
} STEP(Operands);

INLINE bool STEP(load)(const Step *s, u32 type, u32 pieces, u32 halves, STEP(Operands) *o) {
    Ints a_field[16], b_field[8];
    Unsigned bad = {0}, x[2], y[2];
    Floats value;
    i32 a_base = 1, b_base = 1;
    u32 as = 0, bs = 0;
    for (u32 p = 0; p < pieces; p++) {
        for (u32 h = 0; h < halves; h++)
            for (u32 r = 0; r < 4; r++) { /* 2 row half + row quarter */
                memcpy(x, s->a[2 * p + (r >> 1)] + 16 * (r & 1), 64);
                STEP(decode)(x[0], type, h, &o->a[p][h][r >> 1][r & 1], a_field + as++, &bad);
            }
        memcpy(x, s->b[p], sizeof x);
        y[0] = __builtin_shuffle(x[0], x[1], (Unsigned){0, 8, 16, 24, 4, 12, 20, 28, 1, 9, 17, 25, 5, 13, 21, 29});
        y[1] = __builtin_shuffle(x[0], x[1], (Unsigned){2, 10, 18, 26, 6, 14, 22, 30, 3, 11, 19, 27, 7, 15, 23, 31});
        for (u32 h = 0; h < halves; h++)
            for (u32 n = 0; n < 2; n++) {
                STEP(decode)(y[n], type, h, &value, b_field + bs++, &bad);
                o->b[p][h][2 * n][0] = __builtin_shuffle(value, (Ints){0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3});
                o->b[p][h][2 * n][1] = __builtin_shuffle(value, (Ints){4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7});
                o->b[p][h][2 * n + 1][0] = __builtin_shuffle(value, (Ints){8, 9, 10, 11, 8, 9, 10, 11, 8, 9, 10, 11, 8, 9, 10, 11});
                o->b[p][h][2 * n + 1][1] = __builtin_shuffle(value, (Ints){12, 13, 14, 15, 12, 13, 14, 15, 12, 13, 14, 15, 12, 13, 14, 15});
            }
    }
    if (type != F16) {
        a_base = STEP(base)(a_field, as), b_base = STEP(base)(b_field, bs);
        if (a_base + b_base + 126 - 254 > 100) return false; /* products beyond f32 */
    }
    as = bs = 0;
    for (u32 p = 0; p < pieces; p++)
        for (u32 h = 0; h < halves; h++) {
            for (u32 r = 0; r < 4; r++) STEP(code)(a_field[as++], a_base, (u8 *)&o->a_code[p][h] + 16 * r, &bad);
            for (u32 n = 0; n < 2; n++) STEP(code)(b_field[bs++], b_base, (u8 *)(o->b_code[p][h] + 4 * n), &bad);
        }
    o->offset = a_base + b_base - 128 - (type == F16 ? 30 : 254);
    return !ANY(bad);
}

/* The largest product exponent of every output, as bytes: index row half, lane. */
INLINE void STEP(tops)(const STEP(Operands) *o, u32 pieces, u32 halves, Bytes *even, Bytes *odd) {
    Bytes top[2] = {{0}, {0}};
    for (u32 p = 0; p < pieces; p++)
        for (u32 h = 0; h < halves; h++) {
            const Bytes x = o->a_code[p][h], a[4] = {PICK_BYTES(x, 0), PICK_BYTES(x, 1), PICK_BYTES(x, 2), PICK_BYTES(x, 3)};
            UNROLLED for (u32 q = 0; q < 4; q++)
                UNROLLED for (u32 n = 0; n < 2; n++)
                    top[n] = MAX_BYTES(top[n], a[q] + (Bytes)((Unsigned){0} + o->b_code[p][h][2 * q + n]));
        }
    *even = top[0], *odd = top[1];
}

INLINE bool STEP(fuse)(const Step *s, u32 type, u32 pieces, Sums *c) {
    const u32 halves = type == TF32 ? 1 : 2;
    const i32 F = (i32)s->fraction_bits;
    STEP(Operands) o;
    Bytes bytes[2];
    Unsigned bad = {0};
    Floats result[4][2], scale[4][2], unit[4][2];
    if (!STEP(load)(s, type, pieces, halves, &o)) return false;
    STEP(tops)(&o, pieces, halves, bytes, bytes + 1);
    for (u32 i = 0; i < 4; i++)
        for (u32 quarter = 0; quarter < 2; quarter++) {
            Quarter quarter_bytes;
            Unsigned bits, magnitude;
            Ints field, top, product;
            memcpy(&bits, c->value[i] + 16 * quarter, sizeof bits);
            memcpy(&quarter_bytes, (u8 *)(bytes + (i & 1)) + 32 * (i >> 1) + 16 * quarter, sizeof quarter_bytes);
            magnitude = bits & 0x7FFFFFFFu, field = (Ints)(magnitude >> 23);
            bad |= (Unsigned)(field == 255);
            field -= 127;
            field = MAX_INTS(field, (Ints){0} - (c->f16 ? 14 : 126));
            product = __builtin_convertvector(quarter_bytes, Ints);
            top = MAX_INTS((field + 1000) & (Ints)(magnitude != 0), (product + o.offset + 1000) & (product >= 128)) - 1000;
            bad |= (Unsigned)((top < -100) & (top > -1000)); /* beyond what the units below can express */
            top = MAX_INTS(top, (Ints){0} - 100);
            scale[i][quarter] = (Floats)((F + 127 - top) << 23), unit[i][quarter] = (Floats)((top - F + 127) << 23);
        }
    if (ANY(bad)) return false;
    for (u32 rows = 0; rows < 4; rows++) {
        const u32 half = rows >> 1, quarter = rows & 1;
        Ints sum[2][2] = {{{0}, {0}}, {{0}, {0}}};
        for (u32 p = 0; p < pieces; p++)
            for (u32 h = 0; h < halves; h++) {
                const Floats x = o.a[p][h][half][quarter], a[4] = {PICK(x, 0), PICK(x, 1), PICK(x, 2), PICK(x, 3)};
                UNROLLED for (u32 q = 0; q < 4; q++)
                    UNROLLED for (u32 n = 0; n < 2; n++) /* exact, or too small to count; the conversion cuts */
                        sum[n][p] += __builtin_convertvector(a[q] * o.b[p][h][q][n] * scale[2 * half + n][quarter], Ints);
            }
        for (u32 n = 0; n < 2; n++) {
            Floats value;
            memcpy(&value, c->value[2 * half + n] + 16 * quarter, sizeof value);
            sum[n][0] += __builtin_convertvector(value * scale[2 * half + n][quarter], Ints);
            result[2 * half + n][quarter] = STEP(round)(sum[n], pieces, unit[2 * half + n][quarter], s->kept);
        }
    }
    memcpy(c->value, result, sizeof result);
    return true;
}

static bool STEP(step)(const Step *s, Sums *c) {
    if (s->k == 1) return s->type == F16 ? STEP(fuse)(s, F16, 1, c) : s->type == BF16 ? STEP(fuse)(s, BF16, 1, c) : STEP(fuse)(s, TF32, 1, c);
    return s->type == F16 ? STEP(fuse)(s, F16, 2, c) : s->type == BF16 ? STEP(fuse)(s, BF16, 2, c) : STEP(fuse)(s, TF32, 2, c);
}
#undef PICK
#undef FOUR
#undef SIXTEEN
#undef PICK_BYTES
