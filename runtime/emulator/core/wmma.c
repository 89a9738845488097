/* wmma: fragments whose layout is the implementation's. This one is that of the mma.sync instructions which ptxas makes
 * of them: a product is one or two tiles, 16 rows each, side by side (m16n16), one below the other (m32n8), or those of
 * the transposed product (m8n32: D' = B' A'). f16 fragments of A and B are padded to eight registers by repetition. */
#include "mma.h"

enum { ROWS, COLUMNS_OF, SUMS, WIDE_SUMS }; /* kinds of fragments: as A's, as B's, as C's, as C's of m16n16 */
enum { SIDE_BY_SIDE, STACKED, SWAPPED };    /* arrangements of the tiles */

/* Where element e of register r of lane l lies: `major` is the row of A, the column of B, the row of C. */
static void locate(u32 kind, u32 bits, u32 registers, u32 l, u32 r, u32 e, u32 *major, u32 *minor) {
    const u32 g = l / 4, q = l % 4, block = r / registers, n = r % registers, unit = bits == 64 ? 8 : 4;
    if (kind == ROWS) {
        *major = 16 * block + g + 8 * (n & 1), *minor = unit * (q + 4 * (n >> 1)) * 8 / bits + e;
    } else if (kind == COLUMNS_OF) {
        *major = 8 * block + g, *minor = unit * (q + 4 * n) * 8 / bits + e;
    } else { /* r is the number of the value here */
        const u32 wide = kind == WIDE_SUMS;
        *major = g + 8 * (wide ? r >> 1 & 1 : r >> 1), *minor = 2 * q + (r & 1) + (wide ? 8 * (r >> 2) : 0);
    }
}

typedef struct {
    u32 kind, bits, registers, count, space; /* registers of a block; of the fragment without repetitions */
    bool swapped;                            /* the major index is the one that advances by one element in memory */
} Layout;

static Layout layout_of(const Insn *i) {
    return (Layout){.kind = i->mod[0] & 255, .bits = i->mod[0] >> 8, .registers = i->mod[1] & 255,
                    .count = i->mod[1] >> 8, .space = i->mod[2], .swapped = i->mod[3] != 0};
}

/* One access per lane to element e (whole registers where `size` is that) of register r. */
static void access_part(Warp *w, const Insn *i, const Layout *f, u32 r, u32 e, u32 size, u32 access, u32 base, Access *a) {
    const u32 per = f->bits < 32 ? 32 / f->bits : 1;
    for (u32 l = 0; l < LANES; l++) {
        const u64 start = get_lane(w, i, base, l) + (u64)i->offset, stride = get_lane(w, i, base + 1, l);
        u32 major, minor;
        if (f->kind < SUMS) locate(f->kind, f->bits, f->registers, l, r, e, &major, &minor);
        else locate(f->kind, f->bits, f->registers, l, r * per + e, 0, &major, &minor);
        a->address[l] = start + (f->swapped ? major + minor * stride : minor + major * stride) * f->bits / 8;
        if (!(i->wide >> base & 1)) a->address[l] &= 0xFFFFFFFF;
    }
    a->lanes = a->shared = a->global = 0;
    resolve_addresses(w, i, FULL, size, f->space, access, a);
}

static bool addresses_defined(Warp *w, const Insn *i, u32 base) {
    const u32 undefined = w->undefined[i->operand[base]] | w->undefined[i->operand[base + 1]];
    if (!undefined || !(w->m->checks & CHECK_UNDEFINED)) return true;
    report(w, i, F_UNDEFINED_ADDRESS, (u32)__builtin_ctz(undefined), 0, 0, 0);
    return !w->m->stop;
}

static void transfer(Warp *w, const Insn *i, u32 first, u32 base, bool write) {
    const Layout f = layout_of(i);
    const u32 elements = f.bits < 32 ? 32 / f.bits : 1;
    const u32 parts = f.swapped && f.bits < 32 ? elements : 1, size = f.bits == 64 ? 8 : 4 / parts;
    for (u32 r = 0; r < f.count && !w->m->stop; r++) {
        u8 *x = SLOT(first + r);
        const u16 slot = i->operand[first + r];
        const u32 before = w->undefined[slot];
        Access a;
        if (!write) w->undefined[slot] = 0;
        for (u32 e = 0; e < parts; e++) {
            w->loads = !write, w->unset = 0;
            access_part(w, i, &f, r, e, size, write ? WRITE : READ, base, &a);
            w->loads = false;
            if (!write) w->undefined[slot] |= w->unset;
            else if (before & a.global && w->m->checks & CHECK_UNDEFINED)
                report(w, i, F_UNDEFINED_STORE, (u32)__builtin_ctz(before & a.global), 0, size, 0);
            EACH(a.lanes, l) {
                u8 *lane = x + (f.bits == 64 ? 8 : 4) * l + size * e;
                if (write) memcpy(a.bytes[l], lane, size);
                else memcpy(lane, a.bytes[l], size);
            }
            if (write && before & a.shared) doubt(w, i, F_UNDEFINED_STORE, (u32)__builtin_ctz(before & a.shared), 0, size);
            if (w->b->tainted || (write && before)) EACH(a.shared, l) {
                if (write) taint(w->b, a.bytes[l], size, before >> l & 1);
                else w->undefined[slot] |= (u32)(unset_bytes(w, l, a.bytes[l], size) != 0) << l;
            }
        }
    }
}

/* Operands: registers, address, stride. mod: kind and bits, registers, space, swapped. */
static void wmma_load(Warp *w, const Insn *i, u32 active) {
    const u32 count = i->mod[1] >> 8;
    if (!is_whole(w, i, active) || !addresses_defined(w, i, i->dsts)) return;
    transfer(w, i, 0, i->dsts, false);
    for (u32 r = 0; r < i->dsts; r++) {
        if (r < count) continue;
        memcpy(SLOT(r), SLOT(r % count), SLOT_BYTES);
        w->undefined[i->operand[r]] = w->undefined[i->operand[r % count]];
    }
}

/* Operands: address, stride, registers. */
static void wmma_store(Warp *w, const Insn *i, u32 active) {
    if (is_whole(w, i, active) && addresses_defined(w, i, 0)) transfer(w, i, 2, 0, true);
}

/* Where C is f16 and D f32: C's registers widened. */
static void widen(Product *p, const u32 *from, u32 undefined, u32 (*to)[LANES]) {
    for (u32 l = 0; l < LANES; l++)
        for (u32 h = 0; h < 2; h++) to[h][l] = bits_of_f32(f32_of_f16(from[l] >> 16 * h & 0xFFFF));
    for (u32 h = 0; h < 2; h++) p->c_undefined[p->c_registers] = undefined, p->c[p->c_registers++] = to[h];
}

/* One tile's sums as D's registers. */
static void pack(const Product *p, bool f16, Result d, u32 *undefined) {
    if (!f16 || p->c_type == F16) return;
    for (u32 r = 0; r < p->c_registers / 2; r++) {
        for (u32 l = 0; l < LANES; l++)
            d[r][l] = f16_of_f32(f32_of_bits(d[2 * r][l])) | f16_of_f32(f32_of_bits(d[2 * r + 1][l])) << 16;
        undefined[r] = undefined[2 * r] | undefined[2 * r + 1];
    }
}

/* Two tiles. mod: k and arrangement, types, flags, registers of A's and of B's operand. */
static void wmma_mma(Warp *w, const Insn *i, u32 active) {
    const u32 arrangement = i->mod[0] >> 16, as = i->mod[3] & 255, bs = i->mod[3] >> 8;
    const u32 c_type = i->mod[1] >> 16 & 255, d_type = i->mod[1] >> 24;
    const u32 rows_at = i->dsts + (arrangement == SWAPPED ? as : 0), columns_at = i->dsts + (arrangement == SWAPPED ? 0 : as);
    const u32 c_at = i->dsts + as + bs, cs = c_type == F16 ? 2 : 4;
    Result d[2];
    u32 undefined[2][MAX_C], widened[4][LANES];
    if (!is_whole(w, i, active)) return;
    for (u32 tile = 0; tile < 2; tile++) {
        Product p;
        u32 pieces;
        memset(&p, 0, offsetof(Product, a));
        p.others_undefined = 0, p.m = 16, p.k = i->mod[0] & 0xFFFF, p.flags = i->mod[2];
        p.a_type = i->mod[1] & 255, p.b_type = i->mod[1] >> 8 & 255; /* the same, or the product is not swapped */
        p.c_type = p.d_type = c_type == F16 && d_type == F16 ? F16 : c_type == S32 ? S32 : F32;
        p.most_k = p.a_type == TF32 ? 4 : 0;
        pieces = p.k * bits_of_type(&p, p.a_type) / 128;
        for (u32 r = 0; r < 2 * pieces; r++) take_a(w, i, &p, rows_at + r + (arrangement == SIDE_BY_SIDE ? 0 : 2 * pieces * tile));
        for (u32 r = 0; r < pieces; r++) take_b(w, i, &p, columns_at + r + (arrangement == SIDE_BY_SIDE ? pieces * tile : 0));
        for (u32 r = 0; r < cs; r++) {
            const u32 at = c_at + cs * tile + r;
            if (c_type == p.c_type) take_c(w, i, &p, at);
            else widen(&p, SLOT(at), w->undefined[i->operand[at]], widened + 2 * r);
        }
        if (p.c_type == S32) multiply_integers(&p, d[tile]);
        else multiply_floats(w, i, &p, (u32 *const[]){d[tile][0], d[tile][1], d[tile][2], d[tile][3]});
        spread_undefined(&p, undefined[tile]);
        pack(&p, d_type == F16, d[tile], undefined[tile]);
    }
    for (u32 r = 0; r < i->dsts; r++) {
        const u32 tile = r / (i->dsts / 2u), n = r % (i->dsts / 2u);
        memcpy(SLOT(r), d[tile][n], sizeof d[tile][n]);
        w->undefined[i->operand[r]] = undefined[tile][n];
    }
}

const Opcode wmma_ops[] = {{"wmma_load", wmma_load, LOADS | OWN_UNDEFINED | ALIGNED},
                           {"wmma_store", wmma_store, STORES | OWN_UNDEFINED | ALIGNED},
                           {"wmma_mma", wmma_mma, OWN_UNDEFINED | ALIGNED},
                           {0}};
