/* What is reported, and when it stops a run. */
#include <stdlib.h>

#include "core.h"

static u32 check_of(int kind) {
    switch (kind) {
    case F_RACE_SHARED: return CHECK_RACE;
    case F_RACE_GLOBAL: return CHECK_GLOBAL_RACE;
    case F_UNINITIALISED_SHARED: case F_UNINITIALISED_GLOBAL: case F_UNINITIALISED_LOCAL: return CHECK_UNINITIALISED;
    case F_UNDEFINED_ADDRESS: case F_UNDEFINED_PREDICATE: case F_UNDEFINED_STORE: case F_METADATA: return CHECK_UNDEFINED;
    case F_RACE_ASYNC: case F_SOURCE_SIZE: case F_PENDING_COPY: return CHECK_ASYNC;
    case F_BARRIER_DIVERGED: case F_MASK_INVALID: case F_SHUFFLE_SOURCE: return CHECK_BARRIER;
    case F_SHIFT: return CHECK_SHIFT;
    default: return FULL; /* what a GPU would trap on cannot be switched off */
    }
}

static bool is_undefined(int kind) {
    return kind == F_UNDEFINED_ADDRESS || kind == F_UNDEFINED_PREDICATE || kind == F_UNDEFINED_STORE;
}

static bool is_staged(int kind) {
    return kind == F_UNINITIALISED_SHARED || kind == F_UNINITIALISED_LOCAL || kind == F_UNDEFINED_STORE;
}

/* Adds to `reached` the slots that one instruction makes slots in it from; whether it is one of them. */
static bool step_back(const Insn *i, u8 *reached, bool *more) {
    bool makes = false;
    for (u32 d = 0; d < i->dsts; d++) makes |= reached[i->operand[d]];
    for (u32 s = i->dsts; makes && s < (u32)i->dsts + i->srcs; s++)
        if (!reached[i->operand[s]]) reached[i->operand[s]] = 1, *more = true;
    return makes;
}

/* A slice that has reached a load of shared or local memory goes on at whatever is stored; false: it has not. */
static bool through_memory(const Machine *m, u8 *reached) {
    bool loads = false, more;
    for (u32 n = 0; n < m->count && !loads; n++) {
        const u32 space = m->code[n].mod[2] & 0xFF;
        loads = m->flags[n] & LOADS && space != GLOBAL && space != PARAM && step_back(m->code + n, reached, &more);
    }
    if (!loads) return false;
    for (u32 n = 0; n < m->count; n++)
        for (u32 s = m->code[n].dsts; m->flags[n] & STORES && s < (u32)m->code[n].dsts + m->code[n].srcs; s++)
            reached[m->code[n].operand[s]] = 1;
    return true;
}

static void slice(const Machine *m, u8 *reached) {
    for (bool more = true; more;) {
        more = false;
        for (u32 n = m->count; n--;) step_back(m->code + n, reached, &more);
    }
}

/* The load of unset bytes that one of the reached slots has its value from; of this warp, or of any. */
static const Finding *doubt_in(const Warp *w, u8 *reached, bool own) {
    bool more;
    for (u32 n = 0; n < w->b->doubts; n++) {
        const Finding *f = w->b->doubt + n;
        if (f->kind != F_UNDEFINED_STORE && (f->warp == w->index || !own) && step_back(w->m->code + f->pc, reached, &more)) return f;
    }
    return NULL;
}

/* The load of unset bytes from which an operand of `sink` may come; NULL: its undefined value was never set. */
static const Finding *source_of(const Warp *w, const Insn *sink) {
    const Machine *m = w->m;
    const Finding *found;
    u8 *reached = w->b->doubts ? calloc(1u << 16, 1) : NULL;
    if (!reached) return NULL;
    if (sink->guard != NO_GUARD) reached[sink->guard] = w->undefined[sink->guard] != 0;
    for (u32 s = sink->dsts; s < (u32)sink->dsts + sink->srcs; s++)
        if (w->undefined[sink->operand[s]]) reached[sink->operand[s]] = 1;
    slice(m, reached);
    if (!(found = doubt_in(w, reached, true)) && through_memory(m, reached)) {
        slice(m, reached);
        found = doubt_in(w, reached, false);
        for (u32 n = 0; n < w->b->doubts && !found; n++)
            if (w->b->doubt[n].kind == F_UNDEFINED_STORE) found = w->b->doubt + n;
    }
    free(reached);
    return found;
}

/* Keep the first finding of each kind at each instruction. */
static void keep(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, u32 context, Party other) {
    Machine *m = w->m;
    const i32 pc = (i32)(i - m->code);
    if (!(m->checks & check_of(kind)) && check_of(kind) != FULL) return;
    if (!m->collect) m->stop = true;
    for (u32 n = 0; n < m->finding_count; n++)
        if (m->finding[n].kind == kind && m->finding[n].pc == pc) return;
    if (m->finding_count == MAX_FINDINGS) return;
    m->finding[m->finding_count++] =
        (Finding){kind, pc, w->b->index, w->index, lane, context, address, size, other};
}

/* As keep, of the load from which an undefined value comes, where it was one of bytes that nothing has written. */
static void keep_source(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, u32 context, Party other) {
    Machine *m = w->m;
    const Party sink = {(i32)(i - m->code), w->b->index, w->index * LANES + lane};
    const Finding *source;
    for (u32 n = 0; n < m->finding_count && is_undefined(kind); n++)
        if (m->finding[n].other.pc == sink.pc && is_staged(m->finding[n].kind)) return;
    source = is_undefined(kind) ? source_of(w, i) : NULL;
    if (source) keep(w, m->code + source->pc, source->kind, source->lane, source->address, source->size, 0, sink);
    else keep(w, i, kind, lane, address, size, context, other);
}

/* The first of each kind by each warp at each instruction. */
void doubt(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size) {
    Block *b = w->b;
    const i32 pc = (i32)(i - w->m->code);
    for (u32 n = 0; n < b->doubts; n++) if (b->doubt[n].pc == pc && b->doubt[n].warp == w->index) return;
    if (b->doubts < MAX_DOUBTS)
        b->doubt[b->doubts++] = (Finding){kind, pc, b->index, w->index, lane, 0, address, size, {-1, 0, 0}};
}

/* A load of bytes that nothing has written, of shared memory `bytes` of them: found where what it loaded reaches an address,
 * a predicate or a store. Compilers copy structures with their gaps. */
void report_unset(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, u32 bytes) {
    if (!w->loads || !(w->m->checks & CHECK_UNDEFINED)) {
        report(w, i, kind, lane, address, size, 0);
        return;
    }
    if (!(w->unset >> lane & 1)) w->unset_bytes[lane] = 0;
    w->unset |= 1u << lane, w->unset_bytes[lane] |= (u16)bytes;
    doubt(w, i, kind, lane, address, size);
}

void report(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, u32 context) {
    keep_source(w, i, kind, lane, address, size, context, (Party){-1, 0, 0});
}

/* Whether an instruction loads or stores what may be a thread's own memory. */
static bool is_own(const Insn *i) {
    const u32 space = i->mod[2] & 0xFF;
    return space == GENERIC || space == LOCAL || space == CALL;
}

/* Whether what a load has loaded may reach a compare-and-swap, by which the program finds out whether it has changed; also
 * through local memory, where compilers that do not optimise keep every variable. */
static bool is_compared(const Machine *m, const Insn *load) {
    u8 *reached = calloc(1u << 16, 1);
    bool more = reached, compared = false, spilled = false;
    for (u32 d = 0; reached && d < load->dsts; d++) reached[load->operand[d]] = 1;
    while (more && !compared) {
        more = false;
        for (u32 n = 0; n < m->count && !compared; n++) {
            const Insn *i = m->code + n;
            bool uses = false;
            for (u32 s = i->dsts; s < (u32)i->dsts + i->srcs; s++) uses |= reached[i->operand[s]];
            compared = uses && m->flags[n] & UPDATES && compares_and_swaps(i);
            spilled |= uses && m->flags[n] & STORES && !i->dsts && is_own(i);
            uses = m->flags[n] & LOADS ? spilled && is_own(i) : uses;
            for (u32 d = 0; uses && d < i->dsts; d++)
                if (!reached[i->operand[d]]) reached[i->operand[d]] = 1, more = true;
        }
    }
    free(reached);
    return compared;
}

/* A plain load with which a loop around a compare-and-swap starts, as in CUDA's own headers, against an atomic. */
static bool is_first_guess(const Machine *m, i32 a, i32 b) {
    if (a < 0 || b < 0) return false;
    if (!(m->flags[a] & LOADS)) {
        const i32 swap = a;
        a = b, b = swap;
    }
    return m->flags[a] & LOADS && m->flags[b] & UPDATES && is_compared(m, m->code + a);
}

void report_other(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, Party other) {
    if ((kind == F_RACE_SHARED || kind == F_RACE_GLOBAL) && is_first_guess(w->m, (i32)(i - w->m->code), other.pc)) return;
    keep(w, i, kind, lane, address, size, 0, other);
}
