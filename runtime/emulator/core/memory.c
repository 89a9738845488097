/* Loads and stores. */
#include "core.h"

#define SHARED_WINDOW REGION_BYTES

/* mod of ld and st: element bytes, count, space, sign extension (1; 2 into 16-bit registers). */
static Array *array_at(Machine *m, u64 address) {
    const u64 index = address / REGION_BYTES - FIRST_ARRAY;
    return index < m->array_count ? m->arrays + index : NULL;
}

/* What a legal access to an array leaves behind: traffic, and who accessed which byte. */
static bool touch_array(Warp *w, const Insn *i, u32 lane, Array *a, u64 address, u32 size, u32 access) {
    if (access != READ && !a->writable) {
        report(w, i, F_READ_ONLY, lane, address, size, 0);
        return false;
    }
    if (access != WRITE && a->history && a->uninitialised) history_check_written(w, i, lane, a, address, size);
    if (a->history && access == READ) history_read(w, i, lane, a, address, size);
    if (a->history && access == WRITE) history_write(w, i, lane, a, address, size);
    return true;
}

/* The host bytes behind a global address, or NULL after reporting why there are none. */
u8 *global_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size, u32 access) {
    Array *a = array_at(w->m, address);
    if (!a || address < a->base || address - a->base + size > a->size) {
        report(w, i, F_BOUNDS_GLOBAL, lane, address, size, access != READ);
        return NULL;
    }
    if (address & (size - 1)) {
        report(w, i, F_MISALIGNED, lane, address, size, access != READ);
        return NULL;
    }
    if (!touch_array(w, i, lane, a, address, size, access)) return NULL;
    count_array(w->m, a, 1, &address, size, access);
    return a->data + (address - a->base);
}

u8 *shared_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size) {
    Machine *m = w->m;
    if (address < SHARED_BASE || address > m->shared_end || address + size > m->shared_end) {
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

static bool in_window(u64 address) { return address / REGION_BYTES == SHARED_WINDOW / REGION_BYTES; }

/* Lanes whose access is not inside [base, base + extent) and aligned. */
VECTOR static u32 outside(const u64 *address, u64 base, u64 extent, u32 size) {
    u32 lanes = 0;
    if (extent < size) return FULL;
    for (int l = 0; l < LANES; l++) lanes |= (u32)(address[l] - base > extent - size || address[l] & (size - 1)) << l;
    return lanes;
}

static void resolve_shared(Warp *w, const Insn *i, u32 active, u32 size, bool write, Access *a) {
    Machine *m = w->m;
    const u32 illegal = outside(a->address, SHARED_BASE, m->shared_end - SHARED_BASE, size) & active;
    EACH(illegal, l) shared_bytes(w, i, l, a->address[l], size);
    a->lanes |= active &= ~illegal;
    EACH(active, l) a->bytes[l] = m->shared + a->address[l];
    if (!active) return;
    if (m->checks & SHADOWED) (write ? shadow_write : shadow_read)(w, i, active, a->address, size);
    count_shared(tally_of(w, i), active, a->address, size);
}

static void resolve_global(Warp *w, const Insn *i, u32 active, u32 size, bool write, Access *a) {
    Machine *m = w->m;
    Array *array = array_at(m, a->address[__builtin_ctz(active)]); /* most often all lanes' */
    const u32 elsewhere = array ? outside(a->address, array->base, array->size, size) & active : active;
    u32 legal = active & ~elsewhere;
    EACH(elsewhere, l) if ((a->bytes[l] = global_bytes(w, i, l, a->address[l], size, write))) a->lanes |= 1u << l;
    if (legal && (array->history || (write && !array->writable)))
        EACH(legal, l) if (!touch_array(w, i, l, array, a->address[l], size, write)) legal &= ~(1u << l);
    if (legal) count_array(m, array, legal, a->address, size, write);
    EACH(legal, l) a->bytes[l] = array->data + (a->address[l] - array->base);
    a->lanes |= legal;
    if (a->lanes & active) count_global(tally_of(w, i), a->lanes & active, a->address, size);
}

/* The host bytes behind a->address, checked; legal lanes are added to a->lanes. */
void resolve_addresses(Warp *w, const Insn *i, u32 active, u32 size, u32 space, bool write, Access *a) {
    u32 window = space == SHARED ? active : 0;
    if (space == PARAM) {
        EACH(active, l) if ((a->bytes[l] = param_bytes(w, i, l, a->address[l], size))) a->lanes |= 1u << l;
        return;
    }
    if (space == GENERIC) EACH(active, l) if (in_window(a->address[l])) {
        window |= 1u << l;
        a->address[l] -= SHARED_WINDOW;
    }
    if (window & active) resolve_shared(w, i, window & active, size, write, a);
    if (active & ~window) resolve_global(w, i, active & ~window, size, write, a);
}

/* Every lane's address, checked; `operand` is the register holding it. */
void resolve(Warp *w, const Insn *i, u32 active, u32 operand, u32 size, u32 space, bool write, Access *a) {
    const u32 undefined = w->undefined[i->operand[operand]] & active;
    const u64 offset = (u64)i->offset, *wide = SLOT(operand);
    const u32 *narrow = SLOT(operand);
    a->lanes = 0;
    if (undefined && w->m->checks & CHECK_UNDEFINED) {
        report(w, i, F_UNDEFINED_ADDRESS, (u32)__builtin_ctz(undefined), 0, size, 0);
        active &= ~undefined;
    }
    if (i->wide >> operand & 1) for (u32 l = 0; l < LANES; l++) a->address[l] = wide[l] + offset;
    else for (u32 l = 0; l < LANES; l++) a->address[l] = (u32)(narrow[l] + offset);
    resolve_addresses(w, i, active, size, space, write, a);
}

static u64 read_element(const u8 *from, u32 bytes, u32 sign) {
    u64 value = 0;
    memcpy(&value, from, bytes);
    if (sign && bytes < 8 && value >> (8 * bytes - 1) & 1) value |= ~(u64)0 << 8 * bytes;
    return value;
}

static void load(Warp *w, const Insn *i, u32 active) {
    const u32 bytes = i->mod[0], count = i->mod[1], sign = i->mod[3], wide = ((1u << count) - 1) & i->wide;
    Access a;
    resolve(w, i, active, i->dsts, bytes * count, i->mod[2], false, &a);
    for (u32 c = 0; c < count; c++) {
        if (bytes == 4 && !wide) {
            u32 *d = SLOT(c);
            EACH(a.lanes, l) memcpy(d + l, a.bytes[l] + 4 * c, 4);
        } else {
            EACH(a.lanes, l) {
                u64 value = read_element(a.bytes[l] + bytes * c, bytes, sign);
                set_lane(w, i, c, l, sign == 2 ? (u16)value : value); /* 16-bit registers hold no more than 16 */
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

static void cvta_to_shared(Warp *w, const Insn *i, u32 active) {
    EACH(active, l) set_lane(w, i, 0, l, get_lane(w, i, 1, l) - SHARED_WINDOW);
}
static void cvta_shared(Warp *w, const Insn *i, u32 active) {
    EACH(active, l) set_lane(w, i, 0, l, get_lane(w, i, 1, l) + SHARED_WINDOW);
}

const Opcode memory_ops[] = {
    {"load", load, OWN_UNDEFINED}, {"store", store, OWN_UNDEFINED},
    {"cvta_to_shared", cvta_to_shared, 0}, {"cvta_shared", cvta_shared, 0}, {0}};
