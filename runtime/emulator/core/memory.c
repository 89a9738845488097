/* Loads, stores and address conversions. */
#include "core.h"

static Array *array_at(Machine *m, u64 address) {
    const u64 index = address / REGION_BYTES - FIRST_ARRAY;
    return index < m->array_count ? m->arrays + index : NULL;
}

/* What legal accesses to an array leave behind: who accessed which byte, and traffic. */
static bool touch_array(Warp *w, const Insn *i, u32 lanes, Array *a, const u64 *address, u32 size, u32 access) {
    const bool writes = access == WRITE || access == ATOMIC || access == STRONG_WRITE;
    if (writes && !a->writable) {
        report(w, i, F_READ_ONLY, (u32)__builtin_ctz(lanes), address[__builtin_ctz(lanes)], size, 0);
        return false;
    }
    if (a->history) history_access(w, i, lanes, a, address, size, access);
    count_array(w->m, i, a, lanes, address, size, access);
    return true;
}

/* The host bytes behind a global address, or NULL after reporting why there are none. */
u8 *global_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size, u32 access) {
    Array *a = array_at(w->m, address);
    const u32 writes = access != READ && access != STRONG_READ;
    u64 addresses[LANES];
    if (!a || address < a->base || address - a->base + size > a->size) {
        report(w, i, F_BOUNDS_GLOBAL, lane, address, size, writes);
        return NULL;
    }
    if (address & (size - 1)) {
        report(w, i, F_MISALIGNED, lane, address, size, writes);
        return NULL;
    }
    addresses[lane] = address;
    return touch_array(w, i, 1u << lane, a, addresses, size, access) ? a->data + (address - a->base) : NULL;
}

u8 *shared_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size) {
    const Machine *m = w->m;
    if (address < m->shared_start || address > m->shared_end || address + size > m->shared_end) {
        report(w, i, F_BOUNDS_SHARED, lane, address, size, 0);
        return NULL;
    }
    if (address & (size - 1)) {
        report(w, i, F_MISALIGNED, lane, address, size, 0);
        return NULL;
    }
    return w->b->shared + address;
}

static u8 *param_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size) {
    const Machine *m = w->m;
    if (address > m->params_size || address + size > m->params_size) {
        report(w, i, F_BOUNDS_PARAM, lane, address, size, 0);
        return NULL;
    }
    return m->params + address;
}

/* A thread's own memory. Of each byte: 0 never written, WRITTEN, or UNDEFINED: written from a register that never was. */
enum { WRITTEN = 1, UNDEFINED };

static u8 *local_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size, bool write, bool quiet) {
    const Machine *m = w->m;
    const size_t offset = (size_t)(w->index * LANES + lane) * m->local_size + (size_t)(address - LOCAL_BASE);
    u8 *written = w->b->local_written + offset;
    if (address < LOCAL_BASE || address - LOCAL_BASE > m->local_size || address - LOCAL_BASE + size > m->local_size) {
        report(w, i, F_BOUNDS_LOCAL, lane, address, size, write);
        return NULL;
    }
    if (address & (size - 1)) {
        report(w, i, F_MISALIGNED, lane, address, size, write);
        return NULL;
    }
    if (write) memset(written, WRITTEN, size);
    else if (!quiet && m->checks & CHECK_UNINITIALISED && memchr(written, 0, size))
        report_unset(w, i, F_UNINITIALISED_LOCAL, lane, address, size, 0);
    return w->b->local + offset;
}

/* The lanes of `local` whose element of some bytes at `at` of what they load has nothing defined in it. Where a part is
 * defined it counts as defined, as in a packed register: structures have gaps. */
static u32 undefined_local(const Warp *w, const Access *a, u32 at, u32 bytes) {
    u32 lanes = 0;
    EACH(a->local, l) {
        const u8 *written = w->b->local_written + (a->bytes[l] - w->b->local) + at;
        lanes |= (u32)(memchr(written, WRITTEN, bytes) == NULL) << l;
    }
    return lanes;
}

/* Shared bytes take on whether what is stored to them is defined: what a thread stages for others there may be what
 * none of them uses. */
void taint(Block *b, const u8 *bytes, u32 size, bool undefined) {
    memset(b->unset + (bytes - b->shared), undefined, size);
    b->tainted |= undefined;
}

/* Which of the shared bytes that a lane loads are not defined. */
u32 unset_bytes(const Warp *w, u32 lane, const u8 *bytes, u32 size) {
    const Block *b = w->b;
    u32 unset = w->unset >> lane & 1 ? w->unset_bytes[lane] & ((1u << size) - 1) : 0;
    for (u32 n = 0; b->tainted && n < size; n++) unset |= (u32)b->unset[bytes - b->shared + n] << n;
    return unset;
}

/* The lanes of a load of which some element has nothing defined in it. */
static u32 undefined_loaded(const Warp *w, const Access *a, u32 at, u32 bytes) {
    u32 lanes = a->local ? undefined_local(w, a, at, bytes) : 0;
    if (w->b->tainted || w->unset)
        EACH(a->shared, l) lanes |= (u32)((unset_bytes(w, l, a->bytes[l], at + bytes) >> at) != 0) << l;
    return lanes;
}

static bool in_window(u64 address, u64 window) { return address - window < WINDOW_BYTES; }

/* Lanes whose access is not inside [base, base + extent) and aligned. */
VECTOR static u32 outside(const u64 *address, u64 base, u64 extent, u32 size) {
    const u64 last = extent - size; /* far below 2^63 */
    u64 any = 0;
    u32 lanes = 0;
    if (extent < size) return FULL;
    for (int l = 0; l < LANES; l++) {
        const u64 offset = address[l] - base, sign = offset | (last - offset);
        any |= sign >> 63 | (address[l] & (size - 1));
    }
    if (!any) return 0;
    for (int l = 0; l < LANES; l++) lanes |= (u32)(address[l] - base > last || address[l] & (size - 1)) << l;
    return lanes;
}

/* Where the bytes are that legal lanes access; the array, or shared memory, begins at host byte `data` and at `base`. */
VECTOR static void point(Access *a, u32 lanes, u8 *data, u64 base) {
    LANES_OF(lanes, l, a->bytes[l] = data + (a->address[l] - base);)
}

static void resolve_shared(Warp *w, const Insn *i, u32 active, u32 size, u32 access, Access *a) {
    Machine *m = w->m;
    const u32 illegal = outside(a->address, m->shared_start, m->shared_end - m->shared_start, size) & active;
    EACH(illegal, l) shared_bytes(w, i, l, a->address[l], size);
    a->lanes |= active &= ~illegal;
    a->shared = active;
    point(a, active, w->b->shared, 0);
    if (!active) return;
    if (m->checks & SHADOWED) {
        if (access == READ) shadow_read(w, i, active, a->address, size);
        else if (access == WRITE) shadow_write(w, i, active, a->address, size);
        else EACH(active, l) shadow_strong(w, i, l, (u32)a->address[l], size, access);
    }
    count_shared(tally_of(w, i), active, a->address, size);
}

static void resolve_global(Warp *w, const Insn *i, u32 active, u32 size, u32 access, Access *a) {
    for (u32 rest = active; rest;) { /* array by array: most often all lanes' */
        const u32 first = (u32)__builtin_ctz(rest);
        Array *array = array_at(w->m, a->address[first]);
        const u32 lanes = array ? rest & ~outside(a->address, array->base, array->size, size) : 0;
        if (!(lanes >> first & 1)) {
            global_bytes(w, i, first, a->address[first], size, access); /* says what is wrong */
            rest &= ~(1u << first);
            continue;
        }
        rest &= ~lanes;
        if (!touch_array(w, i, lanes, array, a->address, size, access)) continue;
        point(a, lanes, array->data, array->base);
        a->global |= lanes;
    }
    a->lanes |= a->global;
    if (a->global) count_global(w, i, a->global, a->address, size);
}

/* Takes the lanes whose address is undefined out of the active ones. */
void check_undefined(Warp *w, const Insn *i, u32 operand, u32 *active, u32 size) {
    const u32 undefined = w->undefined[i->operand[operand]] & *active;
    if (!undefined || !(w->m->checks & CHECK_UNDEFINED)) return;
    report(w, i, F_UNDEFINED_ADDRESS, (u32)__builtin_ctz(undefined), 0, size, 0);
    *active &= ~undefined;
}

/* The host bytes behind a->address, checked; legal lanes are added to a->lanes. */
void resolve_addresses(Warp *w, const Insn *i, u32 active, u32 size, u32 space, u32 access, Access *a) {
    const bool write = access == WRITE || access == ATOMIC || access == STRONG_WRITE;
    u32 shared = space == SHARED ? FULL : 0, local = space == LOCAL || space == CALL ? FULL : 0;
    u32 params = space == PARAM ? FULL : 0;
    a->local = 0;
    if (space == GENERIC) EACH(active, l) {
        if (in_window(a->address[l], SHARED_WINDOW)) {
            shared |= 1u << l;
            a->address[l] -= SHARED_WINDOW;
        } else if (in_window(a->address[l], LOCAL_WINDOW)) {
            local |= 1u << l;
            a->address[l] -= LOCAL_WINDOW;
        } else if (in_window(a->address[l], PARAM_WINDOW)) {
            params |= 1u << l;
            a->address[l] -= PARAM_WINDOW;
        }
    }
    EACH(params & active, l) {
        if (write) report(w, i, F_READ_ONLY, l, a->address[l] + PARAM_WINDOW, size, 0);
        else if ((a->bytes[l] = param_bytes(w, i, l, a->address[l], size))) a->lanes |= 1u << l;
    }
    EACH(local & active, l)
        if ((a->bytes[l] = local_bytes(w, i, l, a->address[l], size, write, space == CALL))) a->local |= 1u << l;
    a->lanes |= a->local;
    if (shared & active) resolve_shared(w, i, shared & active, size, access, a);
    if (active & ~(shared | local | params)) resolve_global(w, i, active & ~(shared | local | params), size, access, a);
}

/* A register of addresses, plus an offset; 32-bit ones wrap. */
VECTOR static void take_addresses(const Warp *w, const Insn *i, u32 operand, u64 *address) {
    const u64 offset = (u64)i->offset, *wide = SLOT(operand);
    const u32 *narrow = SLOT(operand);
    if (i->wide >> operand & 1) for (u32 l = 0; l < LANES; l++) address[l] = wide[l] + offset;
    else for (u32 l = 0; l < LANES; l++) address[l] = (u32)(narrow[l] + offset);
}

/* Every lane's address, checked; `operand` is the register holding it. */
void resolve(Warp *w, const Insn *i, u32 active, u32 operand, u32 size, u32 space, u32 access, Access *a) {
    a->lanes = a->shared = a->global = 0;
    check_undefined(w, i, operand, &active, size);
    take_addresses(w, i, operand, a->address);
    resolve_addresses(w, i, active, size, space, access, a);
}

/* The name of a place where strong accesses meet, for sync.c. */
u64 place_of(const Warp *w, const Access *a, u32 lane) {
    const u64 word = a->address[lane] & ~(u64)3;
    return a->shared >> lane & 1 ? (u64)1 << 63 | (u64)w->b->index << 32 | word : word;
}

static u64 read_element(const u8 *from, u32 bytes, u32 sign) {
    u64 value = 0;
    memcpy(&value, from, bytes);
    if (sign && bytes < 8 && value >> (8 * bytes - 1) & 1) value |= ~(u64)0 << 8 * bytes;
    return value;
}

/* One to four words of every lane, to as many registers. */
INLINE void split_words(Warp *w, const Insn *i, u8 *const *bytes, u32 count) {
    u32 words[LANES][4];
    for (u32 l = 0; l < LANES; l++) memcpy(words[l], bytes[l], 4 * count);
    for (u32 c = 0; c < count; c++) {
        u32 *d = SLOT(c);
        for (u32 l = 0; l < LANES; l++) d[l] = words[l][c];
    }
}
VECTOR static void load_words(Warp *w, const Insn *i, u8 *const *bytes, u32 count) {
    if (count == 4) split_words(w, i, bytes, 4);
    else if (count == 1) split_words(w, i, bytes, 1);
    else split_words(w, i, bytes, count);
}

/* mod of ld and st: element bytes, count, space and how strong << 8, sign extension (1; 2 into 16-bit registers). */
static void load(Warp *w, const Insn *i, u32 active) {
    const u32 bytes = i->mod[0], count = i->mod[1], sign = i->mod[3], wide = ((1u << count) - 1) & i->wide;
    const u32 strength = i->mod[2] >> 8;
    bool whole;
    Access a;
    w->loads = true, w->unset = 0;
    w->loaded_at = i;
    resolve(w, i, active, i->dsts, bytes * count, i->mod[2] & 0xFF, strength ? STRONG_READ : READ, &a);
    w->loads = false;
    whole = bytes == 4 && count <= 4 && !wide && a.lanes == FULL;
    if (whole) load_words(w, i, a.bytes, count);
    for (u32 c = 0; c < count; c++) {
        if (!whole) {
            EACH(a.lanes, l) {
                u64 value = read_element(a.bytes[l] + bytes * c, bytes, sign);
                set_lane(w, i, c, l, sign == 2 ? (u16)value : value); /* 16-bit registers hold no more than 16 */
            }
        }
        set_undefined(w, i->operand[c], active, undefined_loaded(w, &a, bytes * c, bytes));
    }
    if (!strength) return;
    if (w->m->exact) EACH(a.shared | a.global, l) sync_read(w, l, place_of(w, &a, l), strength);
    if (a.lanes) look(w, i, a.address[__builtin_ctz(a.lanes)]);
}

/* Lanes that store different values to one place in one instruction: which of them stays is not defined. */
void check_collisions(Warp *w, const Insn *i, const Access *a, u32 size) {
    u32 lanes = a->shared | a->global, ascending = 1, before = LANES;
    u8 table[64];
    EACH(lanes, l) {
        if (before < LANES && a->address[l] <= a->address[before]) ascending = 0;
        before = l;
    }
    if (ascending) return;
    memset(table, 0xFF, sizeof table);
    EACH(lanes, l) {
        u32 at = (u32)(a->address[l] / size) & 63;
        while (table[at] != 0xFF && a->address[table[at]] != a->address[l]) at = (at + 1) & 63;
        if (table[at] == 0xFF) {
            table[at] = (u8)l;
        } else if (memcmp(w->storing[l], w->storing[table[at]], size)) {
            const Party other = {(i32)(i - w->m->code), w->b->index, w->index * LANES + table[at]};
            report_other(w, i, a->shared >> l & 1 ? F_RACE_SHARED : F_RACE_GLOBAL, l, a->address[l], size, other);
        }
    }
}

/* A thread may spill what it never wrote, pass it in a structure, or stage it for others: that matters where it is used. */
static void store(Warp *w, const Insn *i, u32 active) {
    const u32 bytes = i->mod[0], count = i->mod[1], strength = i->mod[2] >> 8;
    Access a;
    u8 data[LANES][32];
    u32 undefined = 0;
    for (u32 c = 0; c < count && tracks(w->m); c++) undefined |= w->undefined[i->operand[1 + c]] & active;
    for (u32 c = 0; c < count; c++) EACH(active, l) {
        const u64 value = get_lane(w, i, 1 + c, l);
        memcpy(data[l] + bytes * c, &value, bytes);
    }
    w->storing = (const u8(*)[32])data;
    resolve(w, i, active, 0, bytes * count, i->mod[2] & 0xFF, strength ? STRONG_WRITE : WRITE, &a);
    if (undefined & a.global && w->m->checks & CHECK_UNDEFINED)
        report(w, i, F_UNDEFINED_STORE, (u32)__builtin_ctz(undefined & a.global), 0, bytes * count, 0);
    if (w->m->checks & (CHECK_RACE | CHECK_GLOBAL_RACE) && !strength) check_collisions(w, i, &a, bytes * count);
    EACH(a.lanes, l) memcpy(a.bytes[l], data[l], bytes * count);
    w->storing = NULL;
    for (u32 c = 0; a.local && c < count; c++) EACH(a.local & w->undefined[i->operand[1 + c]], l)
        memset(w->b->local_written + (a.bytes[l] - w->b->local) + bytes * c, UNDEFINED, bytes);
    if (undefined & a.shared) doubt(w, i, F_UNDEFINED_STORE, (u32)__builtin_ctz(undefined & a.shared), 0, bytes * count);
    for (u32 c = 0; (w->b->tainted || undefined & a.shared) && c < count; c++)
        EACH(a.shared, l) taint(w->b, a.bytes[l] + bytes * c, bytes, w->undefined[i->operand[1 + c]] >> l & 1);
    w->m->changes++;
    if (strength && w->m->exact) EACH(a.shared | a.global, l) sync_write(w, l, place_of(w, &a, l), strength, false);
}

/* fence, membar: mod: 1 where its scope is wider than the block. */
static void fence(Warp *w, const Insn *i, u32 active) { sync_fence(w, active, i->mod[0]); }

/* cvta: mod: the window's start, low and high half; 1: from generic to the space. */
static void cvta(Warp *w, const Insn *i, u32 active) {
    const u64 window = i->mod[0] | (u64)i->mod[1] << 32;
    EACH(active, l) set_lane(w, i, 0, l, get_lane(w, i, 1, l) + (i->mod[2] ? -window : window));
}

/* mapa: address, rank of a block in the cluster. There is one block, of rank 0: what another would have lies beyond all
 * shared memory. */
static void mapa(Warp *w, const Insn *i, u32 active) {
    EACH(active, l) set_lane(w, i, 0, l, get_lane(w, i, 1, l) + (get_lane(w, i, 2, l) ? OTHER_BLOCK : 0));
}

/* isspacep: mod: space. */
static void isspacep(Warp *w, const Insn *i, u32 active) {
    u32 result = 0;
    EACH(active, l) {
        const u64 address = get_lane(w, i, 1, l);
        const bool shared = in_window(address, SHARED_WINDOW), local = in_window(address, LOCAL_WINDOW);
        const bool param = in_window(address, PARAM_WINDOW), global = !shared && !local && !param;
        const bool is[] = {false, global, shared, param, local};
        result |= (u32)(i->mod[0] <= LOCAL && is[i->mod[0]]) << l;
    }
    set_predicate(w, i->operand[0], active, result);
}

const Opcode memory_ops[] = {{"load", load, OWN_UNDEFINED | LOADS},
                             {"store", store, OWN_UNDEFINED | STORES},
                             {"fence", fence, OWN_UNDEFINED},
                             {"cvta", cvta, 0},
                             {"mapa", mapa, 0},
                             {"isspacep", isspacep, 0},
                             {0}};
