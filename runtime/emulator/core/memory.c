/* Loads, stores, atomics and ldmatrix. Global arrays live 64 GB apart in a made-up address space, so that an address
 * names its array and an overrun hits nothing else; shared memory is seen through a window of the same space. */
#include "core.h"

#define REGION_SHIFT 36
#define SHARED_WINDOW ((u64)1 << REGION_SHIFT)
#define FIRST_ARRAY 2

/* mod of ld and st: element bytes, count, space, sign extension. */
enum { GENERIC, GLOBAL, SHARED, PARAM };

static void stamp_global(Warp *w, const Insn *i, u32 lane, Array *a, u64 offset, u32 size) {
    Machine *m = w->m;
    const u32 mine = m->block_index + 1;
    u32 other = 0;
    if (!a->writer) return;
    for (u32 n = 0; n < size; n++) {
        u32 old = a->writer[offset + n];
        if (old && old != mine) other = old;
        a->writer[offset + n] = mine;
    }
    if (other && m->checks & CHECK_GLOBAL_RACE) report(w, i, F_RACE_GLOBAL, lane, a->base + offset, size, other - 1);
}

static void check_written(Warp *w, const Insn *i, u32 lane, const Array *a, u64 offset, u32 size) {
    for (u32 n = 0; n < size; n++)
        if (!a->writer[offset + n]) {
            report(w, i, F_UNINITIALISED_GLOBAL, lane, a->base + offset + n, size, 0);
            return;
        }
}

/* The host bytes behind a global address, or NULL after reporting why there are none. */
u8 *global_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size, bool write) {
    Machine *m = w->m;
    u64 index = (address >> REGION_SHIFT) - FIRST_ARRAY, offset;
    Array *a = m->arrays + index;
    if (index >= m->array_count || address < a->base || address - a->base + size > a->size) {
        report(w, i, F_BOUNDS_GLOBAL, lane, address, size, write);
        return NULL;
    }
    if (address & (size - 1)) {
        report(w, i, F_MISALIGNED, lane, address, size, write);
        return NULL;
    }
    offset = address - a->base;
    if (write) {
        if (!a->writable) {
            report(w, i, F_READ_ONLY, lane, address, size, 0);
            return NULL;
        }
        a->written += size;
        stamp_global(w, i, lane, a, offset, size);
    } else {
        a->read += size;
        if (a->uninitialised && a->writer && m->checks & CHECK_UNINITIALISED) check_written(w, i, lane, a, offset, size);
    }
    return a->data + offset;
}

u8 *shared_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size) {
    Machine *m = w->m;
    if (address + size > m->shared_size || address > m->shared_size) {
        report(w, i, F_BOUNDS_SHARED, lane, address, size, 0);
        return NULL;
    }
    if (address & (size - 1)) {
        report(w, i, F_MISALIGNED, lane, address, size, 0);
        return NULL;
    }
    return m->shared + address;
}

static u8 *param_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size) {
    if (address + size > w->m->params_size) {
        report(w, i, F_BOUNDS_PARAM, lane, address, size, 0);
        return NULL;
    }
    return w->m->params + address;
}

static bool in_window(u64 address) { return address >> REGION_SHIFT == SHARED_WINDOW >> REGION_SHIFT; }

typedef struct {
    u64 address[LANES];
    u8 *bytes[LANES];
    u32 lanes; /* those whose access is legal */
} Access;

/* Every lane's address, checked; `address_operand` is the register holding it. */
static void resolve(Warp *w, const Insn *i, u32 active, u32 address_operand, u32 size, u32 space, bool write, Access *a) {
    Machine *m = w->m;
    const bool shadowed = m->checks & (CHECK_RACE | CHECK_UNINITIALISED | CHECK_ASYNC);
    u32 undefined = w->undefined[i->operand[address_operand]] & active, shared_lanes = 0, global_lanes = 0;
    u32 shared_address[LANES];
    if (undefined && m->checks & CHECK_UNDEFINED) {
        report(w, i, F_UNDEFINED_ADDRESS, (u32)__builtin_ctz(undefined), 0, size, 0);
        active &= ~undefined;
    }
    a->lanes = 0;
    EACH(active, l) {
        u64 address = get_lane(w, i, address_operand, l) + (u64)i->offset;
        bool shared = space == SHARED || (space == GENERIC && in_window(address));
        if (space == SHARED && !(i->wide >> address_operand & 1)) address = (u32)address;
        if (shared && space == GENERIC) address -= SHARED_WINDOW;
        a->address[l] = address;
        if (shared) {
            a->bytes[l] = shared_bytes(w, i, l, address, size);
            if (!a->bytes[l]) continue;
            shared_address[l] = (u32)address;
            shared_lanes |= 1u << l;
            if (shadowed) (write ? shadow_write : shadow_read)(w, i, l, (u32)address, size);
        } else if (space == PARAM) {
            a->bytes[l] = param_bytes(w, i, l, address, size);
        } else {
            a->bytes[l] = global_bytes(w, i, l, address, size, write);
            if (a->bytes[l]) global_lanes |= 1u << l;
        }
        if (a->bytes[l]) a->lanes |= 1u << l;
    }
    if (shared_lanes) count_shared(m, shared_lanes, shared_address, size);
    if (global_lanes) count_global(m, global_lanes, a->address, size);
}

static u64 read_element(const u8 *from, u32 bytes, u32 sign) {
    u64 value = 0;
    memcpy(&value, from, bytes);
    if (sign && bytes < 8 && value >> (8 * bytes - 1) & 1) value |= ~(u64)0 << 8 * bytes;
    return value;
}

static void load(Warp *w, const Insn *i, u32 active) {
    const u32 bytes = i->mod[0], count = i->mod[1], sign = i->mod[3], narrow = ((1u << count) - 1) & i->wide;
    Access a;
    resolve(w, i, active, i->dsts, bytes * count, i->mod[2], false, &a);
    for (u32 c = 0; c < count; c++) {
        if (bytes == 4 && !narrow) {
            u32 *d = SLOT(c);
            EACH(a.lanes, l) memcpy(d + l, a.bytes[l] + 4 * c, 4);
        } else {
            EACH(a.lanes, l) {
                u64 value = read_element(a.bytes[l] + bytes * c, bytes, sign);
                set_lane(w, i, c, l, i->wide >> c & 1 || bytes >= 4 || !sign ? value : (i->mod[3] == 2 ? (u16)value : (u32)value));
            }
        }
        set_undefined(w, i->operand[c], active, 0);
    }
}

static void store(Warp *w, const Insn *i, u32 active) {
    const u32 bytes = i->mod[0], count = i->mod[1];
    Access a;
    u32 undefined = 0;
    for (u32 c = 0; c < count; c++) undefined |= w->undefined[i->operand[1 + c]] & active;
    if (undefined && w->m->checks & CHECK_UNDEFINED)
        report(w, i, F_UNDEFINED_STORE, (u32)__builtin_ctz(undefined), 0, bytes * count, 0);
    resolve(w, i, active, 0, bytes * count, i->mod[2], true, &a);
    for (u32 c = 0; c < count; c++) EACH(a.lanes, l) {
        u64 value = get_lane(w, i, 1 + c, l);
        memcpy(a.bytes[l] + bytes * c, &value, bytes);
    }
}

/* ldmatrix: mod: number of matrices, transposed. Lanes 8n..8n+7 give the row addresses of matrix n. */
static void ldmatrix(Warp *w, const Insn *i, u32 active) {
    Machine *m = w->m;
    const u32 count = i->mod[0], transposed = i->mod[1], wanted = count == 4 ? FULL : (1u << 8 * count) - 1;
    Access a;
    if (active != FULL) report(w, i, F_BARRIER_DIVERGED, 0, 0, 0, active);
    resolve(w, i, active & wanted, i->dsts, 16, SHARED, false, &a);
    if (a.lanes != wanted || m->stop) return;
    for (u32 n = 0; n < count; n++) {
        u32 *d = SLOT(n);
        u8 **row = a.bytes + 8 * n;
        for (u32 l = 0; l < LANES; l++) {
            u16 low, high;
            if (!transposed) {
                memcpy(d + l, row[l / 4] + 4 * (l % 4), 4);
                continue;
            }
            memcpy(&low, row[2 * (l % 4)] + 2 * (l / 4), 2);
            memcpy(&high, row[2 * (l % 4) + 1] + 2 * (l / 4), 2);
            d[l] = low | (u32)high << 16;
        }
        set_undefined(w, i->operand[n], FULL, 0);
    }
}

static void cvta_to_shared(Warp *w, const Insn *i, u32 active) {
    EACH(active, l) set_lane(w, i, 0, l, get_lane(w, i, 1, l) - SHARED_WINDOW);
}
static void cvta_shared(Warp *w, const Insn *i, u32 active) {
    EACH(active, l) set_lane(w, i, 0, l, get_lane(w, i, 1, l) + SHARED_WINDOW);
}

const Opcode memory_ops[] = {
    {"load", load, OWN_UNDEFINED}, {"store", store, OWN_UNDEFINED}, {"ldmatrix", ldmatrix, OWN_UNDEFINED},
    {"cvta_to_shared", cvta_to_shared, 0}, {"cvta_shared", cvta_shared, 0}, {0}};
