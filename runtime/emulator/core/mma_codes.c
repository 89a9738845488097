/* Products of small whole numbers with f16, added to f32 by sums of eight: those of weights of few bits, which are taken
 * apart as f16 below 2^-13 ("codes" here: multiples of 2^-24, of one exponent) and scaled later. A chain of instructions
 * that add to the same sums is done at once.
 *
 * The largest exponent in a sum is that of B's largest number that no code 0 meets, or C's. C is cut there, the products are
 * added as they are, which is exact where the lowest bits of a row's codes and of a column's numbers are high enough; the few
 * columns where they are not are computed again, product by product. */
#include "mma_columns.h"

#ifdef HAS_COLUMNS
#define NO_CODES ALL(0xF800F800) /* bits that they have not */
/* Exponents between which a C is that can be counted in the units of no products, in which it is not cut. */
#define TINY (-60)
#define HUGE_C 40

/* Where no product of a column is cut and no sum of them rounded. */
typedef struct {
    i32 products, sums; /* exponents of what codes must be multiples of, and of how much larger C may be than these */
    float ratio;        /* the most that all bits of a row of codes may be in units of their lowest */
} Limits;

/* B's fragment as its registers were when it was made ready; most are used again. */
typedef struct Numbers {
    _Alignas(CACHE_LINE) u32 registers[PIECES][LANES];
    u8 scale[PIECES][2][COLUMNS][16];    /* exponents of 2^F / the largest products with codes: of which of the first or last four k */
    float value[PIECES][COLUMNS][GROUP];
    __m512i products, sums;              /* of each column: its limits, */
    __m512 ratio;
    Limits all[PIECES], but_one[PIECES]; /* those of all columns of a piece, and of all but the finest */
    u32 finest[PIECES];
    bool made, fits; /* fits: all are finite */
} Numbers;

struct Numbers *new_numbers(void) {
    Numbers *n = aligned_alloc(CACHE_LINE, KEPT * sizeof *n);
    if (n) memset(n, 0, KEPT * sizeof *n);
    return n;
}

INLINE void note_scales(const u32 *lanes, u8 (*to)[COLUMNS][16]) {
    static const u64 chosen[GROUP / 2] = {0xAAAAAAAAAAAAAAAA, 0xCCCCCCCCCCCCCCCC, 0xF0F0F0F0F0F0F0F0, 0xFF00FF00FF00FF00};
    for (u32 n = 0; n < COLUMNS; n += 4) {
        const __m512i magnitude = _mm512_and_si512(_mm512_load_si512(lanes + 4 * n), _mm512_set1_epi16(0x7FFF));
        const __m512i field = _mm512_max_epu16(_mm512_srli_epi16(magnitude, 10), _mm512_set1_epi16(1));
        const __m512i scale = _mm512_mask_sub_epi16(_mm512_set1_epi16(127 + F - TINY), _mm512_test_epi16_mask(magnitude, magnitude),
                                                    _mm512_set1_epi16(127 + F + 14 + 15), field);
        for (u32 half = 0; half < 2; half++) {
            __m512i least = _mm512_set1_epi8((char)(127 + F - TINY));
            for (u32 k = 0; k < GROUP / 2; k++) {
                const __m512i one = _mm512_shuffle_epi8(scale, _mm512_set1_epi8((char)(2 * (4 * half + k))));
                least = _mm512_mask_min_epu8(least, chosen[k], least, one);
            }
            _mm512_store_si512(to[half][n], least);
        }
    }
}

INLINE Limits limits_of(const Numbers *b, u32 columns) {
    const __mmask16 own = (__mmask16)columns;
    return (Limits){_mm512_mask_reduce_max_epi32(own, b->products), _mm512_mask_reduce_min_epi32(own, b->sums),
                    _mm512_mask_reduce_min_ps(own, b->ratio)};
}

INLINE Limits both(const Limits *x, Limits y) {
    return (Limits){x->products > y.products ? x->products : y.products, x->sums < y.sums ? x->sums : y.sums,
                    x->ratio < y.ratio ? x->ratio : y.ratio};
}

/* How large and how fine the numbers of each column are. */
INLINE void measure_columns(Numbers *to) {
    __m512i pairs[GROUP / 2], low = ALL(EXPONENT(16)), top = ALL(EXPONENT(-14));
    __m512 sum = _mm512_setzero_ps();
    i32 sums[ROWS];
    float ratio[ROWS];
    transpose_pairs(to->registers[0], to->registers[1], pairs); /* rows 0 to 7: columns of the first piece */
    for (u32 k = 0; k < GROUP; k++) {
        const __m512 x = _mm512_abs_ps(value(k % 2 ? upper(pairs[k / 2]) : lower(pairs[k / 2]), F16));
        const __m512i others = _mm512_and_si512(AS_INTS(x), _mm512_sub_epi32(AS_INTS(x), ALL(1))); /* but for the lowest bit */
        low = _mm512_mask_min_epi32(low, _mm512_test_epi32_mask(AS_INTS(x), AS_INTS(x)), low, AS_INTS(_mm512_sub_ps(x, AS_FLOATS(others))));
        top = _mm512_max_epi32(top, AS_INTS(x)), sum = _mm512_add_ps(sum, x);
    }
    to->fits = !_mm512_cmpge_epi32_mask(top, ALL(EXPONENT(16)));
    if (!to->fits) return; /* of infinities there are no units */
    low = _mm512_and_si512(low, ALL(0x7F800000)), top = _mm512_and_si512(top, ALL(0x7F800000)); /* half of a power of two, or it */
    to->ratio = _mm512_div_ps(_mm512_set1_ps(0x1.FFFFp23f), _mm512_mul_ps(sum, AS_FLOATS(_mm512_sub_epi32(ALL(254u << 23), low))));
    to->products = _mm512_add_epi32(_mm512_sub_epi32(top, low), ALL(EXPONENT(-14))), to->sums = _mm512_sub_epi32(low, ALL(EXPONENT(0)));
    memcpy(sums, &to->sums, sizeof sums), memcpy(ratio, &to->ratio, sizeof ratio);
    for (u32 p = 0; p < PIECES; p++) {
        const u32 columns = 0xFFu << COLUMNS * p;
        const i32 products = _mm512_mask_reduce_max_epi32((__mmask16)columns, to->products);
        const u32 finest = (u32)__builtin_ctz(columns & _mm512_cmpeq_epi32_mask(to->products, ALL(products)));
        to->finest[p] = finest - COLUMNS * p;
        to->but_one[p] = limits_of(to, columns & ~(1u << finest));
        to->all[p] = both(to->but_one + p, (Limits){products, sums[finest], ratio[finest]});
    }
}

__attribute__((noinline)) static void make_ready(const Step *s, Numbers *to) {
    for (u32 p = 0; p < PIECES; p++) {
        memcpy(to->registers[p], s->b[p], sizeof to->registers[p]);
        note_scales(to->registers[p], to->scale[p]);
        for (u32 n = 0; n < COLUMNS; n += ROWS / GROUP) /* a column's numbers lie one after another */
            _mm512_store_ps(to->value[p][n], value(_mm256_load_si256((const __m256i *)(to->registers[p] + n * GROUP / 2)), F16));
    }
    measure_columns(to);
    to->made = true;
}

INLINE const Numbers *numbers_of(const Step *s) {
    Numbers *kept = s->fragments->numbers + s->b_slot / 2 % KEPT;
    if (!kept->made || !same_registers(kept->registers, s)) make_ready(s, kept);
    return kept;
}

typedef struct {
    _Alignas(CACHE_LINE) float value[GROUP][ROWS];
    __m512i first, last; /* which of a row's first and last four codes are not 0: bytes of rows, four times */
    __m512i unit;        /* exponents of the lowest bit in any code of a row */
    __m512 ratio;        /* all bits of any, in units of it */
    bool good;           /* these are codes */
} Codes;

INLINE void load_codes(const u32 *x, const u32 *y, Codes *restrict c) {
    __m512i pairs[GROUP / 2], used = _mm512_setzero_si512(), any = used, bits;
    __m256i bytes;
    transpose_pairs(x, y, pairs);
    UNROLL for (u32 n = 0; n < GROUP / 2; n++) {
        any = _mm512_or_si512(any, pairs[n]);
        used = _mm512_mask_add_epi16(used, _mm512_test_epi16_mask(pairs[n], pairs[n]), used, _mm512_set1_epi16((i16)(1 << 2 * n)));
        _mm512_store_ps(c->value[2 * n], value(lower(pairs[n]), F16));
        _mm512_store_ps(c->value[2 * n + 1], value(upper(pairs[n]), F16));
    }
    bytes = _mm256_or_si256(lower(used), _mm256_slli_epi16(upper(used), 1));
    used = _mm512_broadcast_i32x4(_mm256_cvtepi16_epi8(bytes));
    c->first = _mm512_and_si512(used, _mm512_set1_epi8(15));
    c->last = _mm512_and_si512(_mm512_srli_epi16(used, 4), _mm512_set1_epi8(15));
    c->good = !_mm512_test_epi32_mask(any, NO_CODES);
    bits = _mm512_cvtepu16_epi32(_mm256_or_si256(lower(any), upper(any)));
    any = _mm512_and_si512(bits, _mm512_sub_epi32(_mm512_setzero_si512(), bits));
    c->unit = AS_INTS(_mm512_mask_cvtepi32_ps(AS_FLOATS(ALL(EXPONENT(11))), _mm512_test_epi32_mask(bits, bits), any));
    c->ratio = AS_FLOATS(_mm512_sub_epi32(AS_INTS(_mm512_cvtepi32_ps(bits)), _mm512_sub_epi32(c->unit, ALL(EXPONENT(0)))));
}

/* Bits of 2^F / the largest product of each row in four columns, to be shifted. */
INLINE __m512i scales_of(const Codes *a, const Numbers *b, u32 piece, u32 n) {
    const __m512i first = _mm512_load_si512(b->scale[piece][0][n]), last = _mm512_load_si512(b->scale[piece][1][n]);
    return _mm512_min_epu8(_mm512_shuffle_epi8(first, a->first), _mm512_shuffle_epi8(last, a->last));
}
INLINE __m512i exponents_of_bytes(__m128i bytes) { return _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23); }

/* c plus a piece of k; returns the largest magnitudes in c's rows. */
INLINE __m512 add_codes(const Codes *restrict a, const Numbers *restrict b, u32 piece, const __m512 *restrict c, __m512 *restrict d) {
    _Alignas(CACHE_LINE) u8 scales[COLUMNS][ROWS];
    __m512 sum[COLUMNS], largest = _mm512_setzero_ps();
    UNROLL for (u32 n = 0; n < COLUMNS; n += 4) _mm512_store_si512(scales[n], scales_of(a, b, piece, n));
    UNROLL for (u32 n = 0; n < COLUMNS; n++) sum[n] = _mm512_setzero_ps(); /* added to, that a zero be positive */
    UNROLL for (u32 k = 0; k < GROUP; k++) {
        const __m512 codes = _mm512_load_ps(a->value[k]);
        UNROLL for (u32 n = 0; n < COLUMNS; n++) sum[n] = _mm512_fmadd_ps(codes, _mm512_set1_ps(b->value[piece][n][k]), sum[n]);
    }
    UNROLL for (u32 n = 0; n < COLUMNS; n++) {
        const __m512i scale = exponents_of_bytes(_mm_load_si128((const __m128i *)scales[n]));
        const __m512 unit = AS_FLOATS(_mm512_sub_epi32(ALL(254u << 23), scale));
        const __m512 units = _mm512_roundscale_ps(_mm512_mul_ps(c[n], AS_FLOATS(scale)), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
        largest = _mm512_range_ps(largest, c[n], 0xB); /* of magnitudes */
        d[n] = _mm512_fmadd_round_ps(units, unit, sum[n], _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    }
    return largest;
}

/* One column, each product cut where the sum is. */
INLINE __m512 cut_column(const Codes *a, const Numbers *b, u32 piece, u32 n, __m512 c) {
    const __m512i own = _mm512_sub_epi32(ALL(EXPONENT(F) + EXPONENT(0)), _mm512_and_si512(AS_INTS(c), ALL(0x7F800000)));
    _Alignas(CACHE_LINE) u8 scales[4][ROWS];
    __m512i scale, sum;
    _mm512_store_si512(scales, scales_of(a, b, piece, n & ~3u));
    scale = _mm512_min_epu32(exponents_of_bytes(_mm_load_si128((const __m128i *)scales[n % 4])), own);
    sum = _mm512_cvttps_epi32(_mm512_mul_ps(c, AS_FLOATS(scale)));
    UNROLL for (u32 k = 0; k < GROUP; k++) {
        const __m512 product = _mm512_mul_ps(_mm512_load_ps(a->value[k]), _mm512_set1_ps(b->value[piece][n][k]));
        sum = _mm512_add_epi32(sum, _mm512_cvttps_epi32(_mm512_mul_ps(product, AS_FLOATS(scale))));
    }
    return _mm512_mul_ps(_mm512_cvt_roundepi32_ps(sum, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC), AS_FLOATS(_mm512_sub_epi32(ALL(254u << 23), scale)));
}

/* Whether products and their sums are multiples of where add_codes() cuts. */
INLINE bool are_exact(const Codes *a, const Limits *b, __m512i exponents) {
    const __m512i least = _mm512_max_epi32(_mm512_sub_epi32(exponents, ALL(b->sums)), ALL(b->products));
    return !(_mm512_cmpgt_epi32_mask(least, a->unit) | _mm512_cmp_ps_mask(a->ratio, _mm512_set1_ps(b->ratio), _CMP_NLE_UQ));
}

__attribute__((noinline)) static void cut_others(const Codes *a, const Numbers *b, u32 piece, __m512i exponents, const __m512 *c, __m512 *d) {
    u32 columns = _mm512_cmpgt_epi32_mask(b->products, ALL(_mm512_reduce_min_epi32(a->unit)));
    columns |= _mm512_cmplt_epi32_mask(b->sums, ALL(_mm512_reduce_max_epi32(_mm512_sub_epi32(exponents, a->unit))));
    columns |= _mm512_cmp_ps_mask(b->ratio, _mm512_set1_ps(_mm512_reduce_max_ps(a->ratio)), _CMP_NGE_UQ);
    EACH(columns >> COLUMNS * piece & 0xFF, n) d[n] = cut_column(a, b, piece, n, c[n]);
}

/* Again the columns where they are not; most often that is the finest if any. */
INLINE void mend(const Codes *a, const Numbers *b, u32 piece, __m512 largest, const __m512 *c, __m512 *d) {
    const __m512i exponents = _mm512_and_si512(AS_INTS(largest), ALL(0x7F800000));
    const u32 n = b->finest[piece];
    if (are_exact(a, b->all + piece, exponents)) return;
    if (are_exact(a, b->but_one + piece, exponents)) d[n] = cut_column(a, b, piece, n, c[n]);
    else cut_others(a, b, piece, exponents, c, d);
}

/* One piece is added while the codes of another are made ready: the two keep different parts of the processor busy. */
__attribute__((noinline)) static __m512 add_and_load(const Codes *restrict a, const Numbers *restrict b, u32 piece, const __m512 *restrict c,
                                                      __m512 *restrict d, const u32 *restrict x, const u32 *restrict y, Codes *restrict next) {
    load_codes(x, y, next);
    return add_codes(a, b, piece, c, d);
}
__attribute__((noinline)) static void load_first(const u32 *x, const u32 *y, Codes *c) { load_codes(x, y, c); }

INLINE void load_sums(const u32 *const *registers, __m512 *c) {
    __m512i q[4];
    UNROLL for (u32 parity = 0; parity < 2; parity++) {
        transpose(registers[parity], registers[parity + 2], q);
        UNROLL for (u32 n = 0; n < 4; n++) c[2 * n + parity] = AS_FLOATS(q[n]);
    }
}
INLINE void store_sums(const __m512 *c, u32 *const *registers) {
    UNROLL for (u32 parity = 0; parity < 2; parity++) {
        const __m512 half[4] = {c[parity], c[2 + parity], c[4 + parity], c[6 + parity]};
        transpose_back(half, registers[parity], registers[parity + 2]);
    }
}

/* No sum of products is next to nothing or so large that it could not be counted in units, but C may be. */
INLINE bool is_extreme(const __m512 *c) {
    __mmask16 extreme = 0;
    UNROLL for (u32 n = 0; n < COLUMNS; n++) {
        const __m512i magnitude = _mm512_and_si512(AS_INTS(c[n]), ALL(0x7FFFFFFF));
        const __m512i beyond = _mm512_sub_epi32(magnitude, ALL(EXPONENT(TINY)));
        extreme |= _mm512_mask_cmpge_epu32_mask(_mm512_test_epi32_mask(magnitude, magnitude), beyond, ALL(EXPONENT(HUGE_C) - EXPONENT(TINY)));
    }
    return extreme;
}

INLINE bool are_codes(const u32 *const *registers) {
    __m512i any = _mm512_setzero_si512();
    for (u32 r = 0; r < 2 * PIECES; r++)
        for (u32 l = 0; l < LANES; l += ROWS) any = _mm512_or_si512(any, _mm512_load_si512(registers[r] + l));
    return !_mm512_test_epi32_mask(any, NO_CODES);
}

INLINE void take_factors(u8 *slots, const Insn *i, Step *s) {
    const u16 *o = i->operand + 4;
    for (u32 r = 0; r < 2 * PIECES; r++) s->a[r] = (const u32 *)(slots + (size_t)SLOT_BYTES * o[r]);
    for (u32 r = 0; r < PIECES; r++) s->b[r] = (const u32 *)(slots + (size_t)SLOT_BYTES * o[2 * PIECES + r]);
    s->b_slot = o[2 * PIECES];
}

static u32 add_chain(struct Fragments *f, u8 *slots, const Insn *i, u32 count) {
    Step steps[2]; /* filled as far as they are used, and not copied: what was just stored in parts is slow to load whole */
    __m512 sums[2][COLUMNS], half[COLUMNS];
    Codes codes[2 * PIECES];
    const u32 *from[4];
    u32 *to[4], done = 0;
    for (u32 n = 0; n < 2; n++) steps[n].type = F16, steps[n].k = PIECES, steps[n].fragments = f;
    take_factors(slots, i, steps);
    if (!are_codes(steps->a)) return 0;
    for (u32 r = 0; r < 4; r++) to[r] = (u32 *)(slots + (size_t)SLOT_BYTES * i->operand[r]);
    for (u32 r = 0; r < 4; r++) from[r] = (const u32 *)(slots + (size_t)SLOT_BYTES * i->operand[4 + 3 * PIECES + r]);
    load_sums(from, sums[0]);
    if (is_extreme(sums[0])) return 0;
    load_first(steps->a[0], steps->a[1], codes);
    for (; done < count; done++) {
        __m512 *const c = sums[done % 2], *const d = sums[1 - done % 2];
        Codes *const own = codes + PIECES * (done % 2), *const others = codes + PIECES * (1 - done % 2);
        const Step *now = steps + done % 2;
        const u32 *const *next = done + 1 < count ? steps[1 - done % 2].a : now->a;
        const Numbers *b = numbers_of(now);
        __m512 largest;
        if (done + 1 < count) take_factors(slots, i + done + 1, steps + 1 - done % 2);
        if (!b->fits) break;
        largest = add_and_load(own, b, 0, c, half, now->a[2], now->a[3], own + 1);
        mend(own, b, 0, largest, c, half);
        largest = add_and_load(own + 1, b, 1, half, d, next[0], next[1], others);
        if (!own[0].good || !own[1].good) break;
        mend(own + 1, b, 1, largest, half, d);
    }
    if (done) store_sums(sums[done % 2], to);
    return done;
}
#pragma GCC pop_options

u32 multiply_chain(struct Fragments *f, u8 *slots, const Insn *i, u32 count) { return f ? add_chain(f, slots, i, count) : 0; }
#else
u32 multiply_chain(struct Fragments *f, u8 *slots, const Insn *i, u32 count) {
    (void)f, (void)slots, (void)i, (void)count;
    return 0;
}
#endif
