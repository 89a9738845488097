/* Products of small whole numbers with f16, added to f32 by sums of eight: those of weights of few bits, which are taken
 * apart as f16 below 2^-13 ("codes" here: multiples of 2^-24, of one exponent) and scaled later. A chain of instructions
 * that add to the same sums is done at once.
 *
 * The largest exponent in a sum is that of B's largest number that no code 0 meets, or C's. C is cut there, and so is in
 * each column the one product whose number has the lowest bit; the others are added as they are, which is exact where
 * the lowest bits of a row's codes and of the second such number are high enough. What is not so is for mma_columns.c. */
#include "mma_columns.h"

#ifdef HAS_COLUMNS
#define CODE 0x1p-24f /* the least f16 */
#define LEAST_TOP (127 - 100)

/* Of each column's first and last four k: what four bits, one for each k, choose of their exponents in products. */
INLINE void note_tops(const Step *s, Columns *to) {
    static const u64 chosen[GROUP / 2] = {0xAAAAAAAAAAAAAAAA, 0xCCCCCCCCCCCCCCCC, 0xF0F0F0F0F0F0F0F0, 0xFF00FF00FF00FF00};
    for (u32 p = 0; p < s->k; p++)
        for (u32 n = 0; n < COLUMNS; n += 4) {
            const __m512i magnitude = _mm512_and_si512(_mm512_loadu_si512(s->b[p] + 4 * n), _mm512_set1_epi16(0x7FFF));
            const __m512i field = _mm512_max_epu16(_mm512_srli_epi16(magnitude, 10), _mm512_set1_epi16(1));
            const __m512i least = _mm512_set1_epi16(LEAST_TOP);
            const __m512i top = _mm512_mask_add_epi16(least, _mm512_test_epi16_mask(magnitude, magnitude), field, _mm512_set1_epi16(127 - 14 - 15));
            for (u32 half = 0; half < 2; half++) {
                __m512i most = _mm512_set1_epi8(LEAST_TOP);
                for (u32 k = 0; k < GROUP / 2; k++) {
                    const __m512i one = _mm512_shuffle_epi8(top, _mm512_set1_epi8((char)(2 * (4 * half + k))));
                    most = _mm512_mask_max_epu8(most, chosen[k], most, one);
                }
                _mm512_store_si512(to->top[p][half][n], most);
            }
        }
}

/* Takes from each column the number whose lowest bit is the least. `columns`: numbers of k, by columns of both pieces. */
INLINE void set_least_apart(const __m512 *columns, __m512i top, Columns *to) {
    __m512i least = ALL(-1), second = least;
    __m512 sum = _mm512_setzero_ps();
    u32 at[ROWS];
    for (u32 k = 0; k < GROUP; k++) {
        const __m512i bits = AS_INTS(columns[k]), others = _mm512_and_si512(bits, _mm512_sub_epi32(bits, ALL(1)));
        const __m512i low = AS_INTS(_mm512_abs_ps(_mm512_sub_ps(columns[k], AS_FLOATS(others)))); /* but for powers of two */
        const __m512i key = _mm512_or_si512(_mm512_and_si512(low, ALL(0x7F800000)), ALL(k));
        const __m512i own = _mm512_mask_mov_epi32(ALL(-1), _mm512_cmpneq_epi32_mask(_mm512_slli_epi32(bits, 1), _mm512_setzero_si512()), key);
        second = _mm512_min_epu32(second, _mm512_max_epu32(least, own)), least = _mm512_min_epu32(least, own);
        sum = _mm512_add_ps(sum, _mm512_abs_ps(columns[k]));
    }
    _mm512_storeu_si512(at, _mm512_and_si512(least, ALL(GROUP - 1)));
    _mm512_storeu_si512(to->least_at, _mm512_and_si512(least, ALL(GROUP - 1)));
    for (u32 p = 0; p < PIECES; p++)
        for (u32 n = 0; n < COLUMNS; n += ROWS / GROUP)
            _mm512_store_ps(to->rest[p][n], _mm512_mul_ps(_mm512_load_ps(to->value[p][n]), _mm512_set1_ps(CODE)));
    for (u32 n = 0; n < ROWS; n++) {
        float *const one = to->rest[n / COLUMNS][n % COLUMNS] + at[n];
        to->least[n / COLUMNS][n % COLUMNS] = *one, *one = 0;
    }
    second = _mm512_min_epu32(_mm512_and_si512(second, ALL(0x7F800000)), ALL(EXPONENT(12)));
    sum = _mm512_mul_ps(sum, AS_FLOATS(_mm512_sub_epi32(ALL(254u << 23), second)));
    for (u32 p = 0; p < PIECES; p++) {
        const __mmask16 own = (__mmask16)(0xFF << COLUMNS * p);
        to->needs[p].products = _mm512_mask_reduce_max_epi32(own, _mm512_sub_epi32(top, second)) + (i32)EXPONENT(-14);
        to->needs[p].sums = _mm512_mask_reduce_min_epi32(own, second) - (i32)EXPONENT(0);
        to->needs[p].ratio = 0x1.FFFFp23f / _mm512_mask_reduce_max_ps(own, sum);
    }
}

void prepare_for_codes(const Step *s, const __m512 *numbers, __m512i top, Columns *to) {
    note_tops(s, to);
    set_least_apart(numbers, top, to);
}

typedef struct {
    _Alignas(CACHE_LINE) float value[GROUP][ROWS];
    __m512i first, last; /* which of a row's first and last four codes are not 0: bytes of rows, four times */
    __m512i unit;        /* the lowest bit of any code of a row, as f32 */
    __m512 ratio;        /* all their bits to it */
} Codes;

INLINE void load_codes(const u32 *x, const u32 *y, Codes *restrict c) {
    __m512i rows[GROUP / 2], used = _mm512_setzero_si512(), any = used, unit;
    __m512 all;
    transpose(x, y, rows);
    UNROLL for (u32 n = 0; n < GROUP / 2; n++) {
        any = _mm512_or_si512(any, rows[n]);
        used = _mm512_mask_add_epi16(used, _mm512_test_epi16_mask(rows[n], rows[n]), used, _mm512_set1_epi16((i16)(1 << 2 * n)));
        _mm512_store_ps(c->value[2 * n], _mm512_cvtepi32_ps(_mm512_and_si512(rows[n], ALL(0xFFFF))));
        _mm512_store_ps(c->value[2 * n + 1], _mm512_cvtepi32_ps(_mm512_srli_epi32(rows[n], 16)));
    }
    used = _mm512_or_si512(used, _mm512_srli_epi32(used, 15));
    used = _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(used));
    c->first = _mm512_and_si512(used, _mm512_set1_epi8(15));
    c->last = _mm512_and_si512(_mm512_srli_epi16(used, 4), _mm512_set1_epi8(15));
    unit = _mm512_or_si512(_mm512_and_si512(any, ALL(0xFFFF)), _mm512_srli_epi32(any, 16));
    all = _mm512_cvtepi32_ps(unit);
    unit = _mm512_and_si512(unit, _mm512_sub_epi32(_mm512_setzero_si512(), unit));
    c->unit = _mm512_max_epi32(AS_INTS(_mm512_cvtepi32_ps(unit)), ALL(EXPONENT(0)));
    c->ratio = AS_FLOATS(_mm512_sub_epi32(AS_INTS(all), _mm512_sub_epi32(c->unit, ALL(EXPONENT(0)))));
}

/* c plus a piece of k; false where another way must do it. Scaling a number by adding to its exponent makes of a zero
 * something below one half. */
INLINE bool add_codes(const Codes *restrict a, const Columns *restrict b, u32 piece, const __m512 *restrict c, __m512 *restrict d) {
    _Alignas(CACHE_LINE) u8 top[COLUMNS][ROWS];
    __m512i largest = _mm512_setzero_si512();
    __m512 sum[COLUMNS];
    __mmask16 beyond;
    UNROLL for (u32 n = 0; n < COLUMNS; n += 4) {
        const __m512i first = _mm512_load_si512(b->top[piece][0][n]), last = _mm512_load_si512(b->top[piece][1][n]);
        _mm512_store_si512(top[n], _mm512_max_epu8(_mm512_shuffle_epi8(first, a->first), _mm512_shuffle_epi8(last, a->last)));
    }
    UNROLL for (u32 k = 0; k < GROUP; k++) {
        const __m512 codes = _mm512_load_ps(a->value[k]);
        UNROLL for (u32 n = 0; n < COLUMNS; n++) {
            const __m512 number = _mm512_set1_ps(b->rest[piece][n][k]);
            sum[n] = k ? _mm512_fmadd_ps(codes, number, sum[n]) : _mm512_mul_ps(codes, number);
        }
    }
    UNROLL for (u32 n = 0; n < COLUMNS; n++) {
        const __m512 least = _mm512_mul_ps(_mm512_load_ps(a->value[b->least_at[piece][n]]), _mm512_set1_ps(b->least[piece][n]));
        const __m512i products = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)top[n])), 23);
        const __m512i own = _mm512_and_si512(AS_INTS(c[n]), ALL(0x7F800000)), highest = _mm512_max_epi32(products, own);
        const __m512i shift = _mm512_sub_epi32(ALL((127 + F) << 23), highest);
        __m512i units = _mm512_cvtps_epi32(AS_FLOATS(_mm512_add_epi32(AS_INTS(sum[n]), shift)));
        units = _mm512_add_epi32(units, _mm512_cvttps_epi32(AS_FLOATS(_mm512_add_epi32(AS_INTS(least), shift))));
        units = _mm512_add_epi32(units, _mm512_cvttps_epi32(AS_FLOATS(_mm512_add_epi32(AS_INTS(c[n]), shift))));
        largest = _mm512_max_epi32(largest, own);
        d[n] = _mm512_mul_ps(_mm512_cvt_roundepi32_ps(units, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC),
                             AS_FLOATS(_mm512_sub_epi32(highest, ALL(F << 23))));
    }
    beyond = _mm512_cmpgt_epi32_mask(_mm512_sub_epi32(largest, ALL(b->needs[piece].sums)), a->unit);
    beyond |= _mm512_cmpgt_epi32_mask(ALL(b->needs[piece].products), a->unit);
    return !(beyond | _mm512_cmp_ps_mask(a->ratio, _mm512_set1_ps(b->needs[piece].ratio), _CMP_NLE_UQ));
}

/* One piece is added while the codes of another are made ready: the two keep different parts of the processor busy. */
__attribute__((noinline)) static bool add_and_load(const Codes *restrict a, const Columns *restrict b, u32 piece, const __m512 *restrict c,
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

/* No sum of products is next to nothing, but C may be. */
INLINE bool is_tiny(const __m512 *c) {
    __mmask16 tiny = 0;
    UNROLL for (u32 n = 0; n < COLUMNS; n++) {
        const __m512i magnitude = _mm512_and_si512(AS_INTS(c[n]), ALL(0x7FFFFFFF));
        tiny |= _mm512_cmplt_epu32_mask(_mm512_sub_epi32(magnitude, ALL(1)), ALL(EXPONENT(-100) - 1));
    }
    return tiny;
}

INLINE bool are_codes(const u32 *const *registers) {
    __m512i any = _mm512_setzero_si512();
    for (u32 r = 0; r < 2 * PIECES; r++)
        for (u32 l = 0; l < LANES; l += ROWS) any = _mm512_or_si512(any, _mm512_load_si512(registers[r] + l));
    return !_mm512_test_epi32_mask(any, ALL(0xF800F800));
}

INLINE void take_factors(u8 *slots, const Insn *i, Step *s) {
    const u16 *o = i->operand + 4;
    for (u32 r = 0; r < 2 * PIECES; r++) s->a[r] = (const u32 *)(slots + (size_t)SLOT_BYTES * o[r]);
    for (u32 r = 0; r < PIECES; r++) s->b[r] = (const u32 *)(slots + (size_t)SLOT_BYTES * o[2 * PIECES + r]);
    s->b_slot = o[2 * PIECES];
}

static u32 add_chain(struct Fragments *f, u8 *slots, const Insn *i, u32 count) {
    Step now = {.type = F16, .k = PIECES, .fragments = f}, next = now;
    __m512 c[COLUMNS], d[COLUMNS];
    Codes codes[PIECES];
    const u32 *from[4];
    u32 *to[4], done = 0;
    take_factors(slots, i, &next);
    if (!are_codes(next.a)) return 0;
    for (u32 r = 0; r < 4; r++) to[r] = (u32 *)(slots + (size_t)SLOT_BYTES * i->operand[r]);
    for (u32 r = 0; r < 4; r++) from[r] = (const u32 *)(slots + (size_t)SLOT_BYTES * i->operand[4 + 3 * PIECES + r]);
    load_sums(from, c);
    if (is_tiny(c)) return 0;
    load_first(next.a[0], next.a[1], codes);
    for (; done < count && are_codes(next.a); done++) {
        const Columns *b;
        now = next;
        if (done + 1 < count) take_factors(slots, i + done + 1, &next);
        b = columns_of(&now);
        if (!b->fits) break;
        if (!add_and_load(codes, b, 0, c, d, now.a[2], now.a[3], codes + 1) && !add_halves(&now, b, 0, c, d)) break;
        if (!add_and_load(codes + 1, b, 1, d, c, next.a[0], next.a[1], codes) && !add_halves(&now, b, 1, d, c))
            return done ? add_chain(f, slots, i, done) : 0; /* without this one */
    }
    if (done) store_sums(c, to);
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
