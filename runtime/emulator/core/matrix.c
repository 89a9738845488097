/* ldmatrix, stmatrix and movmatrix: matrices between shared memory, whose rows lanes point at, and fragments. */
#include "core.h"

enum { ROW_BYTES = 16 }; /* of every form: 8 elements of 16 bits, 16 of 8, 16 of 6 and 32 bits padding, ... */
enum { M8N8, M8N8_TRANSPOSED, M8N16, M16N16_TRANSPOSED, M16N8_TRANSPOSED };

/* Lanes that give row addresses: one per row, the matrices' rows one after another. */
static u32 address_lanes(u32 count, u32 rows) { return count * rows == LANES ? FULL : (1u << count * rows) - 1; }

/* A row's elements as bytes: mod[3] bits each, low bits first. */
static void widen_row(const u8 *from, u32 bits, u8 *to) {
    if (bits == 8) memcpy(to, from, ROW_BYTES);
    else for (u32 n = 0; n < 16; n++) {
        const u32 bit = n * bits, two = from[bit / 8] | (u32)from[bit / 8 + 1] << 8;
        to[n] = (u8)(two >> bit % 8 & ((1u << bits) - 1));
    }
}

/* Lane l: row l / 4, elements 2 (l % 4) and the next; transposed they come from column l / 4. */
static void load_m8n8(Warp *w, const Insn *i, u8 **row, u32 n, bool transposed) {
    u16 *d = SLOT(n), element[8][8];
    for (u32 r = 0; r < 8; r++) memcpy(transposed ? element[r] : d + 8 * r, row[r], ROW_BYTES);
    for (u32 column = 0; transposed && column < 8; column++)
        for (u32 r = 0; r < 8; r++) d[8 * column + r] = element[r][column];
}

/* Lane l: row l / 4, four bytes from column 4 (l % 4) on. */
static void load_m8n16(Warp *w, const Insn *i, u8 **row, u32 n) {
    u8 bytes[8][16];
    for (u32 r = 0; r < 8; r++) widen_row(row[r], i->mod[3], bytes[r]);
    memcpy(SLOT(n), bytes, sizeof bytes);
}

/* Lane l, register r of two, byte b: row 4 (l % 4) + b, column l / 4 + 8 r. */
static void load_m16n16(Warp *w, const Insn *i, u8 **row, u32 n) {
    u8 bytes[16][16];
    for (u32 r = 0; r < 16; r++) widen_row(row[r], i->mod[3], bytes[r]);
    for (u32 r = 0; r < 2; r++) {
        u8 *d = SLOT(2 * n + r);
        for (u32 l = 0; l < LANES; l++)
            for (u32 b = 0; b < 4; b++) d[4 * l + b] = bytes[4 * (l % 4) + b][l / 4 + 8 * r];
    }
}

/* sm_75 reads the addresses of all lanes: those that point at no row must be valid too. */
static void check_other_lanes(Warp *w, const Insn *i, u32 others) {
    EACH(others, l) shared_bytes(w, i, l, (get_lane(w, i, i->dsts, l) + (u64)i->offset) & (REGION_BYTES - 1), ROW_BYTES);
}

/* Lanes whose registers of one matrix hold one of these bytes of a row. */
static u32 holders(u32 form, u32 row, u32 bytes) {
    u32 lanes = 0;
    if (form != M8N8 && form != M8N8_TRANSPOSED) return bytes ? FULL : 0;
    for (u32 n = 0; n < 8; n++)
        if (bytes >> 2 * n & 3) lanes |= 1u << (form == M8N8 ? 4 * row + n / 2 : 4 * n + row / 2);
    return lanes;
}

/* mod: number of matrices, form, space, bits of an element in memory. */
static void ldmatrix(Warp *w, const Insn *i, u32 active) {
    const u32 count = i->mod[0], form = i->mod[1], rows = form == M16N16_TRANSPOSED ? 16 : 8;
    const u32 wanted = address_lanes(count, rows);
    Access a;
    if (active != FULL) report(w, i, F_BARRIER_DIVERGED, (u32)__builtin_ctz(active), 0, 0, active);
    if (w->m->arch == 75) check_other_lanes(w, i, active & ~wanted);
    w->loads = true, w->unset = 0;
    resolve(w, i, active & wanted, i->dsts, ROW_BYTES, i->mod[2], READ, &a);
    w->loads = false;
    if (a.lanes != wanted || w->m->stop) return;
    for (u32 n = 0; n < i->dsts; n++) {
        const u32 first = n / (i->dsts / count) * rows;
        w->undefined[i->operand[n]] = 0;
        for (u32 r = 0; r < rows && (w->unset || w->b->tainted); r++)
            w->undefined[i->operand[n]] |= holders(form, r, unset_bytes(w, first + r, a.bytes[first + r], ROW_BYTES));
    }
    for (u32 n = 0; n < count; n++) {
        u8 **row = a.bytes + rows * n;
        if (form == M16N16_TRANSPOSED) load_m16n16(w, i, row, n);
        else if (form == M8N16) load_m8n16(w, i, row, n);
        else load_m8n8(w, i, row, n, form == M8N8_TRANSPOSED);
    }
}

/* The rows of one matrix as the lanes' registers hold them. */
static void store_rows(const u32 *x, u32 form, u8 (*row)[32]) {
    for (u32 l = 0; l < LANES; l++) {
        const u32 g = l / 4, q = l % 4;
        if (form == M8N8) memcpy(row[g] + 4 * q, x + l, 4);
        else if (form == M8N8_TRANSPOSED) for (u32 h = 0; h < 2; h++) memcpy(row[2 * q + h] + 2 * g, (const u16 *)(x + l) + h, 2);
        else for (u32 b = 0; b < 4; b++) row[2 * q + (b & 1)][g + 8 * (b >> 1)] = (u8)(x[l] >> 8 * b);
    }
}

/* mod: number of matrices, form, space. Operands: address, registers. */
static void stmatrix(Warp *w, const Insn *i, u32 active) {
    const u32 count = i->mod[0], form = i->mod[1], wanted = address_lanes(count, 8);
    Access a;
    u8 data[LANES][32];
    if (active != FULL) report(w, i, F_BARRIER_DIVERGED, (u32)__builtin_ctz(active), 0, 0, active);
    for (u32 n = 0; n < count; n++) store_rows(SLOT(1 + n), form, data + 8 * n);
    w->storing = (const u8(*)[32])data;
    resolve(w, i, active & wanted, 0, ROW_BYTES, i->mod[2], WRITE, &a);
    if (w->m->checks & CHECK_RACE) check_collisions(w, i, &a, ROW_BYTES);
    w->storing = NULL;
    if (a.lanes != wanted || w->m->stop) return;
    EACH(a.lanes, l) memcpy(a.bytes[l], data[l], ROW_BYTES);
    for (u32 n = 0; n < count; n++) {
        u8 **row = a.bytes + 8 * n;
        if (w->undefined[i->operand[1 + n]])
            doubt(w, i, F_UNDEFINED_STORE, (u32)__builtin_ctz(w->undefined[i->operand[1 + n]]), 0, ROW_BYTES);
        if (w->b->tainted || w->undefined[i->operand[1 + n]])
            for (u32 r = 0; r < 8; r++)
                for (u32 b = 0; b < ROW_BYTES; b++) taint(w->b, row[r] + b, 1, w->undefined[i->operand[1 + n]] & holders(form, r, 1u << b));
    }
}

/* movmatrix.trans.m8n8.b16: lane l holds row l/4, columns 2(l%4) and the next. */
static void movmatrix(Warp *w, const Insn *i, u32 active) {
    u32 *d = SLOT(0), result[LANES];
    const u32 *a = SLOT(1);
    u32 undefined = 0;
    if (active != FULL) report(w, i, F_BARRIER_DIVERGED, (u32)__builtin_ctz(active), 0, 0, active);
    for (u32 l = 0; l < LANES; l++) {
        u32 value = 0;
        for (u32 n = 0; n < 2; n++) { /* element (l/4, 2(l%4)+n) of the result is (2(l%4)+n, l/4) of the source */
            const u32 row = 2 * (l % 4) + n, column = l / 4, from = 4 * row + column / 2;
            value |= (a[from] >> 16 * (column % 2) & 0xFFFF) << 16 * n;
            undefined |= (w->undefined[i->operand[1]] >> from & 1) << l;
        }
        result[l] = value;
    }
    LANEWISE(d[l] = result[l];)
    set_undefined(w, i->operand[0], active, undefined);
}

const Opcode matrix_ops[] = {{"ldmatrix", ldmatrix, OWN_UNDEFINED | ALIGNED | LOADS},
                             {"stmatrix", stmatrix, OWN_UNDEFINED | ALIGNED | STORES},
                             {"movmatrix", movmatrix, OWN_UNDEFINED | ALIGNED},
                             {0}};
