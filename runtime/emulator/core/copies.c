/* cp.async. Source bytes are read when the copy is issued and reach shared memory as late as the program permits: when
 * the issuing lane executes a wait that covers their group. */
#include "core.h"
#include <stdlib.h>

void copies_reset(Warp *w) {
    w->copy_count = 0;
    memset(w->group, 0, sizeof w->group);
}

static Copy *new_copy(Warp *w) {
    if (w->copy_count == w->copy_capacity) {
        u32 capacity = w->copy_capacity ? 2 * w->copy_capacity : 16;
        Copy *grown = realloc(w->copies, capacity * sizeof *grown);
        if (!grown) {
            w->m->stop = w->m->failed = true;
            return NULL;
        }
        w->copies = grown, w->copy_capacity = capacity;
    }
    return &w->copies[w->copy_count++];
}

/* Operands: shared address, global address, [source size or ignore-src]. mod: cp-size, which of the two the last operand
 * is (1, 2; 0: neither); the offset is the global address's, mod[2] the shared address's. */
static void cp_async(Warp *w, const Insn *i, u32 active) {
    Machine *m = w->m;
    const u32 size = i->mod[0], ignored = i->mod[1] == 2 ? get_predicate(w, i->operand[2]) : 0;
    u32 undefined = 0, fetched = 0;
    u64 address[LANES], shared_address[LANES];
    Copy *copy;
    for (u32 s = 0; s < i->srcs; s++) undefined |= w->undefined[i->operand[s]] & active;
    if (undefined && m->checks & CHECK_UNDEFINED) {
        report(w, i, F_UNDEFINED_ADDRESS, (u32)__builtin_ctz(undefined), 0, size, 0);
        active &= ~undefined;
    }
    copy = new_copy(w);
    if (!copy) return;
    copy->lanes = 0, copy->size = size;
    EACH(active, l) {
        u32 bytes = i->mod[1] == 1 ? (u32)get_lane(w, i, 2, l) : ignored >> l & 1 ? 0 : size;
        u64 to = (u32)(get_lane(w, i, 0, l) + i->mod[2]);
        const u8 *from = NULL;
        address[l] = get_lane(w, i, 1, l) + (u64)i->offset;
        if (bytes > size) {
            report(w, i, F_SOURCE_SIZE, l, address[l], bytes, size);
            bytes = size;
        }
        if (address[l] & (size - 1)) {
            report(w, i, F_MISALIGNED, l, address[l], size, 0);
            continue;
        }
        if (!shared_bytes(w, i, l, to, size)) continue;
        memset(copy->data[l], 0, 16);
        for (u32 n = 0; n < bytes;) { /* a source size need not be a power of two */
            u32 piece = bytes - n >= 16 ? 16 : 1u << (31 - __builtin_clz(bytes - n));
            from = global_bytes(w, i, l, address[l] + n, piece, READ);
            if (!from) break;
            memcpy(copy->data[l] + n, from, piece);
            n += piece;
        }
        if (bytes) fetched |= 1u << l;
        shared_address[l] = copy->address[l] = (u32)to;
        copy->group[l] = w->group[l];
        copy->lanes |= 1u << l;
        if (m->checks & SHADOWED) shadow_copy_issued(w, i, l, (u32)to, size);
    }
    if (copy->lanes) count_shared(tally_of(w, i), copy->lanes, shared_address, size);
    if (fetched) count_global(tally_of(w, i), fetched, address, size);
}

/* Land every copy of the active lanes whose group number is below the lane's limit. */
static void land(Warp *w, u32 active, u32 keep, bool uncommitted) {
    Machine *m = w->m;
    u32 kept = 0;
    for (u32 n = 0; n < w->copy_count; n++) {
        Copy *c = &w->copies[n];
        EACH(c->lanes & active, l) {
            if (!uncommitted && (i64)c->group[l] >= (i64)w->group[l] - (i64)keep) continue;
            memcpy(m->shared + c->address[l], c->data[l], c->size);
            if (m->checks & SHADOWED) shadow_copy_landed(w, l, c->address[l], c->size);
            c->lanes &= ~(1u << l);
        }
        if (c->lanes) {
            if (kept != n) w->copies[kept] = *c;
            kept++;
        }
    }
    w->copy_count = kept;
}

static void cp_commit(Warp *w, const Insn *i, u32 active) {
    (void)i;
    EACH(active, l) w->group[l]++;
}
static void cp_wait_group(Warp *w, const Insn *i, u32 active) { land(w, active, i->mod[0], false); }
static void cp_wait_all(Warp *w, const Insn *i, u32 active) {
    (void)i;
    land(w, active, 0, true);
}

void copies_at_exit(Warp *w, const Insn *i, u32 lanes) {
    for (u32 n = 0; n < w->copy_count; n++) {
        Copy *c = &w->copies[n];
        if (c->lanes & lanes && w->m->checks & CHECK_ASYNC) {
            u32 l = (u32)__builtin_ctz(c->lanes & lanes);
            report(w, i, F_PENDING_COPY, l, c->address[l], c->size, 0);
        }
        c->lanes &= ~lanes;
    }
}

const Opcode copy_ops[] = {{"cp_async", cp_async, OWN_UNDEFINED},
                           {"cp_commit", cp_commit, 0},
                           {"cp_wait_group", cp_wait_group, 0},
                           {"cp_wait_all", cp_wait_all, 0},
                           {0}};
