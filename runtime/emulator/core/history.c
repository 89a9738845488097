/* The access history of global arrays, for races and uninitialised reads. Only arrays that the kernel may store to have one.
 *
 * It is kept in pages that exist once they are touched, and there in units of the smallest access to the page so far
 * (accesses are aligned, so that each covers whole units). Atomics leave no trace. Blocks run one after another: where any
 * other block has read a unit, its first reader is one. */
#include <stdlib.h>

#include "stamp.h"

#define PAGE_BYTES 4096u

typedef struct {
    u32 writer, written; /* 1 + the block that wrote it last, 0 none; the stamp of that */
    u32 reader, read;    /* 1 + the first block that read it since, 0 none; the stamp of the latest block's reads */
} Unit;

struct Page {
    u32 shift; /* a unit has 1 << shift bytes */
    Unit units[];
};

static u64 pages_of(const Array *a) { return (a->base % REGION_BYTES + a->size) / PAGE_BYTES + 1; }

bool history_start(Array *a) {
    a->history = calloc(pages_of(a), sizeof *a->history);
    return a->history;
}

void history_end(Array *a) {
    for (u64 n = 0; a->history && n < pages_of(a); n++) free(a->history[n]);
    free(a->history);
}

/* The first unit of an access, and how many it covers; none where memory has run out. */
static Unit *units_of(Machine *m, Array *a, u64 address, u32 size, u32 *count) {
    const u32 shift = (u32)__builtin_ctz(size);
    Page **at = a->history + address % REGION_BYTES / PAGE_BYTES, *old = *at;
    if (!old || old->shift > shift) {
        Page *page = calloc(1, sizeof *page + (PAGE_BYTES >> shift) * sizeof *page->units);
        *count = 0;
        if (!page) {
            m->stop = m->failed = true;
            return NULL;
        }
        page->shift = shift;
        for (u32 n = 0; old && n < PAGE_BYTES >> shift; n++) page->units[n] = old->units[n >> (old->shift - shift)];
        free(old);
        *at = page;
    }
    *count = size >> (*at)->shift;
    return (*at)->units + (address % PAGE_BYTES >> (*at)->shift);
}

/* Reports a conflict with the unit's last write; false where there is none. */
static bool conflicts(Warp *w, const Insn *i, u32 lane, u64 address, u32 size, const Unit *u) {
    const u32 mine = w->m->block_index + 1;
    if (!u->writer || (u->writer == mine && ordered(w, u->written))) return false;
    if (u->writer != mine) report(w, i, F_RACE_GLOBAL, lane, address, size, u->writer - 1);
    else report(w, i, F_RACE_GLOBAL_WARPS, lane, address, size, thread_of(u->written));
    return true;
}

void history_check_written(Warp *w, const Insn *i, u32 lane, Array *a, u64 address, u32 size) {
    u32 count;
    const Unit *u = units_of(w->m, a, address, size, &count);
    for (u32 n = 0; n < count; n++)
        if (!u[n].writer) {
            report(w, i, F_UNINITIALISED_GLOBAL, lane, address + n * (size / count), size, 0);
            return;
        }
}

void history_read(Warp *w, const Insn *i, u32 lane, Array *a, u64 address, u32 size) {
    const u32 block = w->m->block_index + 1, mine = stamp_of(w, lane);
    u32 count;
    Unit *u = units_of(w->m, a, address, size, &count);
    for (u32 n = 0; n < count; n++, u++) {
        conflicts(w, i, lane, address, size, u);
        if (!u->reader) u->reader = block;
        u->read = with_read(w, u->read, mine);
    }
}

void history_write(Warp *w, const Insn *i, u32 lane, Array *a, u64 address, u32 size) {
    const u32 block = w->m->block_index + 1, mine = stamp_of(w, lane);
    u32 count;
    Unit *u = units_of(w->m, a, address, size, &count);
    for (u32 n = 0; n < count; n++, u++) {
        if (!conflicts(w, i, lane, address, size, u) && u->reader) {
            if (u->reader != block) report(w, i, F_RACE_GLOBAL, lane, address, size, u->reader - 1);
            else if (!reads_ordered(w, u->read))
                report(w, i, F_RACE_GLOBAL_WARPS, lane, address, size, thread_of(u->read));
        }
        *u = (Unit){block, mine, 0, 0};
    }
}

void history_forget_clocks(Array *a) {
    for (u64 n = 0; a->history && n < pages_of(a); n++) {
        Page *page = a->history[n];
        for (u32 u = 0; page && u < PAGE_BYTES >> page->shift; u++) page->units[u].written = page->units[u].read = 0;
    }
}
