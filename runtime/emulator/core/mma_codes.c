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

/* B's fragment as its registers were when it was made ready; most are used again. */
typedef struct Numbers {
    _Alignas(CACHE_LINE) u32 registers[PIECES][LANES];
    u8 top[PIECES][2][COLUMNS][16];    /* exponents of the largest products with codes: of which of the first or last four k */
    float rest[PIECES][COLUMNS][GROUP]; /* in units of codes, and 0 where the one is whose lowest bit is the least: */
    float least[PIECES][COLUMNS];
    u32 least_at[PIECES][COLUMNS];
    /* That nothing else is cut: exponents of what codes must be multiples of, and of how much larger C may be than these. And
     * the most that all bits of a row of codes may be in units of their lowest, that no sum of products is rounded. */
    i32 most_products, most_sums;
    float most_ratio;
    bool made, fits; /* fits: all are finite */
} Numbers;

struct Numbers *new_numbers(void) {
    Numbers *n = aligned_alloc(CACHE_LINE, KEPT * sizeof *n);
    if (n) memset(n, 0, KEPT * sizeof *n);
    return n;
}

INLINE void note_tops(const u32 *lanes, u8 (*to)[COLUMNS][16]) {
    static const u64 chosen[GROUP / 2] = {0xAAAAAAAAAAAAAAAA, 0xCCCCCCCCCCCCCCCC, 0xF0F0F0F0F0F0F0F0, 0xFF00FF00FF00FF00};
    for (u32 n = 0; n < COLUMNS; n += 4) {
        const __m512i magnitude = _mm512_and_si512(_mm512_load_si512(lanes + 4 * n), _mm512_set1_epi16(0x7FFF));
        const __m512i field = _mm512_max_epu16(_mm512_srli_epi16(magnitude, 10), _mm512_set1_epi16(1));
        const __m512i top = _mm512_mask_add_epi16(_mm512_set1_epi16(LEAST_TOP), _mm512_test_epi16_mask(magnitude, magnitude), field,
                                                  _mm512_set1_epi16(127 - 14 - 15));
        for (u32 half = 0; half < 2; half++) {
            __m512i most = _mm512_set1_epi8(LEAST_TOP);
            for (u32 k = 0; k < GROUP / 2; k++) {
                const __m512i one = _mm512_shuffle_epi8(top, _mm512_set1_epi8((char)(2 * (4 * half + k))));
                most = _mm512_mask_max_epu8(most, chosen[k], most, one);
            }
            _mm512_store_si512(to[half][n], most);
        }
    }
}

/* Sets apart the number of each column whose lowest bit is the least. */
INLINE void set_apart(Numbers *to) {
    __m512i pairs[GROUP / 2], least = ALL(-1), second = least, top = ALL(EXPONENT(-14));
    __m512 sum = _mm512_setzero_ps();
    transpose_pairs(to->registers[0], to->registers[1], pairs); /* rows 0 to 7: columns of the first piece */
    for (u32 k = 0; k < GROUP; k++) {
        const __m512 x = _mm512_abs_ps(value(k % 2 ? upper(pairs[k / 2]) : lower(pairs[k / 2]), F16));
        const __m512i others = _mm512_and_si512(AS_INTS(x), _mm512_sub_epi32(AS_INTS(x), ALL(1))); /* but for the lowest bit */
        const __m512i unit = _mm512_and_si512(AS_INTS(_mm512_sub_ps(x, AS_FLOATS(others))), ALL(0x7F800000)); /* half a power of two */
        const __m512i own = _mm512_mask_or_epi32(ALL(-1), _mm512_test_epi32_mask(AS_INTS(x), AS_INTS(x)), unit, ALL(k));
        second = _mm512_min_epu32(second, _mm512_max_epu32(least, own)), least = _mm512_min_epu32(least, own);
        top = _mm512_max_epi32(top, AS_INTS(x)), sum = _mm512_add_ps(sum, x);
    }
    _mm512_store_si512(to->least_at, _mm512_and_si512(least, ALL(GROUP - 1)));
    for (u32 n = 0; n < ROWS; n++) {
        float *const one = to->rest[n / COLUMNS][n % COLUMNS] + to->least_at[n / COLUMNS][n % COLUMNS];
        to->least[n / COLUMNS][n % COLUMNS] = *one, *one = 0;
    }
    second = _mm512_min_epu32(_mm512_and_si512(second, ALL(0x7F800000)), ALL(EXPONENT(12)));
    sum = _mm512_mul_ps(sum, AS_FLOATS(_mm512_sub_epi32(ALL(254u << 23), second)));
    to->fits = !_mm512_cmpge_epi32_mask(top, ALL(EXPONENT(16)));
    if (!to->fits) return; /* of infinities there are no units */
    top = _mm512_and_si512(top, ALL(0x7F800000));
    to->most_products = _mm512_reduce_max_epi32(_mm512_sub_epi32(top, second)) + (i32)EXPONENT(-14);
    to->most_sums = _mm512_reduce_min_epi32(second) - (i32)EXPONENT(0);
    to->most_ratio = 0x1.FFFFp23f / _mm512_reduce_max_ps(sum);
}

__attribute__((noinline)) static void make_ready(const Step *s, Numbers *to) {
    for (u32 p = 0; p < PIECES; p++) {
        memcpy(to->registers[p], s->b[p], sizeof to->registers[p]);
        note_tops(to->registers[p], to->top[p]);
        for (u32 n = 0; n < COLUMNS; n += ROWS / GROUP) /* a column's numbers lie one after another */
            _mm512_store_ps(to->rest[p][n], _mm512_mul_ps(value(_mm256_load_si256((const __m256i *)(to->registers[p] + n * GROUP / 2)), F16),
                                                          _mm512_set1_ps(CODE)));
    }
    set_apart(to);
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
    __m512i bits;        /* of any code of a row */
} Codes;

INLINE void load_codes(const u32 *x, const u32 *y, Codes *restrict c) {
    __m512i rows[GROUP / 2], used = _mm512_setzero_si512(), any = used;
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
    c->bits = _mm512_or_si512(_mm512_and_si512(any, ALL(0xFFFF)), _mm512_srli_epi32(any, 16));
}

/* c plus a piece of k; returns the largest exponents of c's rows. Scaling a number by adding to its exponent makes of a zero
 * something below one half. */
INLINE __m512i add_codes(const Codes *restrict a, const Numbers *restrict b, u32 piece, const __m512 *restrict c, __m512 *restrict d) {
    _Alignas(CACHE_LINE) u8 top[COLUMNS][ROWS];
    __m512i largest = _mm512_setzero_si512();
    __m512 sum[COLUMNS];
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
    return largest;
}

/* Whether nothing was cut or rounded but what add_codes() cuts and rounds: then all else are multiples of where it does. */
INLINE bool is_exact(const Codes *a, const Numbers *b, __m512i largest) {
    const __m512i bits = _mm512_or_si512(a[0].bits, a[1].bits), lowest = _mm512_and_si512(bits, _mm512_sub_epi32(_mm512_setzero_si512(), bits));
    const __m512i unit = _mm512_max_epi32(AS_INTS(_mm512_cvtepi32_ps(lowest)), ALL(EXPONENT(0)));
    const __m512i ratio = _mm512_sub_epi32(AS_INTS(_mm512_cvtepi32_ps(bits)), _mm512_sub_epi32(unit, ALL(EXPONENT(0))));
    __mmask16 beyond = _mm512_cmpgt_epi32_mask(_mm512_sub_epi32(largest, ALL(b->most_sums)), unit);
    beyond |= _mm512_cmpgt_epi32_mask(ALL(b->most_products), unit);
    return !(beyond | _mm512_cmp_ps_mask(AS_FLOATS(ratio), _mm512_set1_ps(b->most_ratio), _CMP_NLE_UQ));
}

/* One piece is added while the codes of another are made ready: the two keep different parts of the processor busy. */
__attribute__((noinline)) static __m512i add_and_load(const Codes *restrict a, const Numbers *restrict b, u32 piece, const __m512 *restrict c,
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
    __m512 sums[2][COLUMNS], half[COLUMNS];
    Codes codes[2 * PIECES];
    const u32 *from[4];
    u32 *to[4], done = 0;
    take_factors(slots, i, &next);
    if (!are_codes(next.a)) return 0;
    for (u32 r = 0; r < 4; r++) to[r] = (u32 *)(slots + (size_t)SLOT_BYTES * i->operand[r]);
    for (u32 r = 0; r < 4; r++) from[r] = (const u32 *)(slots + (size_t)SLOT_BYTES * i->operand[4 + 3 * PIECES + r]);
    load_sums(from, sums[0]);
    if (is_tiny(sums[0])) return 0;
    load_first(next.a[0], next.a[1], codes);
    for (; done < count && are_codes(next.a); done++) {
        __m512 *const c = sums[done % 2], *const d = sums[1 - done % 2];
        Codes *const own = codes + PIECES * (done % 2), *const others = codes + PIECES * (1 - done % 2);
        const Numbers *b;
        __m512i largest;
        now = next;
        if (done + 1 < count) take_factors(slots, i + done + 1, &next);
        b = numbers_of(&now);
        if (!b->fits) break;
        largest = add_and_load(own, b, 0, c, half, now.a[2], now.a[3], own + 1);
        largest = _mm512_max_epi32(largest, add_and_load(own + 1, b, 1, half, d, next.a[0], next.a[1], others));
        if (!is_exact(own, b, largest) && !add_to_columns(&now, c, d)) break;
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
