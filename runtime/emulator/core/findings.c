/* What is reported, and when it stops a run. */
#include "core.h"

static u32 check_of(int kind) {
    switch (kind) {
    case F_RACE_SHARED: return CHECK_RACE;
    case F_RACE_GLOBAL: return CHECK_GLOBAL_RACE;
    case F_UNINITIALISED_SHARED: case F_UNINITIALISED_GLOBAL: case F_UNINITIALISED_LOCAL: return CHECK_UNINITIALISED;
    case F_UNDEFINED_ADDRESS: case F_UNDEFINED_PREDICATE: case F_UNDEFINED_STORE: return CHECK_UNDEFINED;
    case F_RACE_ASYNC: case F_SOURCE_SIZE: case F_PENDING_COPY: return CHECK_ASYNC;
    case F_BARRIER_DIVERGED: case F_MASK_INVALID: case F_SHUFFLE_SOURCE: return CHECK_BARRIER;
    case F_SHIFT: return CHECK_SHIFT;
    default: return FULL; /* what a GPU would trap on cannot be switched off */
    }
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

void report(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, u32 context) {
    keep(w, i, kind, lane, address, size, context, (Party){-1, 0, 0});
}

void report_other(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, Party other) {
    keep(w, i, kind, lane, address, size, 0, other);
}
