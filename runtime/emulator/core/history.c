/* The access history of global arrays, for races and uninitialised reads. Only arrays that the kernel may store to have one.
 *
 * It is kept in pages that exist once they are touched, and there in units of the smallest access to the page so far
 * (accesses are aligned, so that each covers whole units). Where blocks cannot communicate, a machine keeps what its present
 * block did, and that is merged, in the blocks' order, with what the blocks before it did: any two blocks of which one
 * writes race. The report is then the same whatever machine runs which block when. Elsewhere all blocks are in one history,
 * and what each knows of the others decides. */
#include <stdlib.h>

#include "exact.h"

#define PAGE_BYTES 4096u

typedef struct {
    u64 write, read;
    u32 writer, reader; /* 1 + block, 0 none */
    u32 second;         /* another reader where there are several: the lower half of its stamp */
} Cell;

struct Page {
    u32 shift; /* a cell is of 1 << shift bytes */
    u32 block; /* 1 + the block that has it among its touched pages */
    Cell cells[];
};

struct Touched {
    u32 array;
    u64 page;
};

static u64 pages_of(const Array *a) { return (a->base % REGION_BYTES + a->size) / PAGE_BYTES + 1; }

bool history_start(Array *a) {
    a->history = calloc(pages_of(a), sizeof *a->history);
    return a->history;
}

void history_end(Array *a) {
    for (u64 n = 0; a->history && n < pages_of(a); n++) if (a->history[n]) free(a->history[n]);
    free(a->history);
    a->history = NULL;
}

static void fail(Machine *m) { m->stop = m->failed = true; }

static void touch(Machine *m, const Array *a, u64 page) {
    if (m->touched_count == m->touched_capacity) {
        const u32 capacity = m->touched_capacity ? 2 * m->touched_capacity : 64;
        struct Touched *grown = realloc(m->touched, capacity * sizeof *grown);
        if (!grown) {
            fail(m);
            return;
        }
        m->touched = grown, m->touched_capacity = capacity;
    }
    m->touched[m->touched_count++] = (struct Touched){(u32)(a - m->arrays), page};
}

/* The first cell of an access, and how many it covers; none where memory has run out. */
static Cell *cells_of(const Warp *w, const Array *a, u64 address, u32 size, u32 *count) {
    Machine *m = w->m;
    const u32 shift = (u32)__builtin_ctz(size);
    const u64 number = address % REGION_BYTES / PAGE_BYTES;
    Page **at = a->history + number, *old = *at;
    if (!old || old->shift > shift) {
        Page *page = calloc(1, sizeof *page + (PAGE_BYTES >> shift) * sizeof *page->cells);
        *count = 0;
        if (!page) {
            fail(m);
            return NULL;
        }
        page->shift = shift, page->block = old ? old->block : 0;
        for (u32 n = 0; old && n < PAGE_BYTES >> shift; n++) {
            const Cell *from = old->cells + (n >> (old->shift - shift));
            page->cells[n] = *from;
            if (n & ((1u << (old->shift - shift)) - 1) && (!m->keeps_races || from->reader == w->b->index + 1))
                page->cells[n].read = exact_copy(m, from->read);
        }
        free(old);
        *at = page;
    }
    if (m->keeps_races && (*at)->block != w->b->index + 1) {
        (*at)->block = w->b->index + 1;
        touch(m, a, number);
    }
    *count = size >> (*at)->shift;
    return (*at)->cells + (address % PAGE_BYTES >> (*at)->shift);
}

static void uninitialised(Warp *w, const Insn *i, u32 lane, u64 address, u32 size) {
    Machine *m = w->m;
    const i32 pc = (i32)(i - m->code);
    if (!(m->checks & CHECK_UNINITIALISED)) return;
    if (!m->keeps_races) {
        report(w, i, F_UNINITIALISED_GLOBAL, lane, address, size, 0);
        return;
    }
    for (u32 n = 0; n < m->doubtful_count; n++) if (m->doubtful[n].pc == pc) return;
    if (m->doubtful_count < MAX_FINDINGS)
        m->doubtful[m->doubtful_count++] = (Finding){F_UNINITIALISED_GLOBAL, pc, w->b->index, w->index, lane, 0,
                                                     address, size, {-1, 0, 0}};
}

static void check_cell(Warp *w, const Insn *i, u32 lane, u64 address, u32 size, Cell *c, u32 access, bool same) {
    Machine *m = w->m;
    const u32 own = w->b->index;
    Party other;
    if (m->keeps_races) { /* what is left here by a block that has ended is merged already */
        if (c->writer != own + 1) c->write = 0, c->writer = own + 1;
        if (c->reader != own + 1) c->read = 0, c->reader = own + 1;
    }
    if (m->exact) {
        u64 stamp;
        if (!exact_check(w, lane, (Unit){&c->write, &c->read, &c->writer, &c->reader}, access, same, &stamp, &other)) return;
    } else if (c->write && !same && !(access == ATOMIC && c->write & STRONG) && !write_ordered(w, lane, c->write)) {
        other = party_of(c->write, own);
    } else if (access != READ && !reads_ordered(w, lane, c->read)) {
        other = reader_of(w, lane, c->read, c->second);
    } else {
        return;
    }
    report_other(w, i, F_RACE_GLOBAL, lane, address, size, other);
}

static void note_cell(Warp *w, const Insn *i, u32 lane, Cell *c, u32 access) {
    const u64 stamp = stamp_of(w, i, lane);
    if (w->m->exact) {
        exact_note(w, i, lane, (Unit){&c->write, &c->read, &c->writer, &c->reader}, access, stamp);
    } else if (access == READ) {
        c->read = with_read(w, lane, c->read, stamp, &c->second);
    } else if (access == WRITE) {
        c->write = stamp;
    } else {
        const bool mixed = c->write & MIXED || (c->write && !(c->write & STRONG));
        c->write = with_atomic(w, lane, c->write, stamp) | (mixed ? MIXED : 0);
    }
}

void history_access(Warp *w, const Insn *i, u32 lanes, Array *a, const u64 *address, u32 size, u32 access) {
    const bool reads = access != WRITE && access != STRONG_WRITE;
    Cell *cells[LANES];
    u32 count[LANES];
    EACH(lanes, l) if (!cells_of(w, a, address[l], size, count)) return; /* making a page finer moves its cells */
    EACH(lanes, l) {
        const bool same = access == WRITE && w->storing &&
                          !memcmp(a->data + (address[l] - a->base), w->storing[l], size);
        if (!(cells[l] = cells_of(w, a, address[l], size, count + l))) return;
        for (u32 n = 0; n < count[l]; n++) {
            Cell *c = cells[l] + n;
            check_cell(w, i, l, address[l], size, c, access, same);
            if (reads && a->uninitialised && !c->write) uninitialised(w, i, l, address[l] + n * (size / count[l]), size);
        }
    }
    EACH(lanes, l) for (u32 n = 0; n < count[l]; n++) note_cell(w, i, l, cells[l] + n, access);
}

/* What all blocks that have ended did to some bytes: the last that wrote, the first that read since. */
typedef struct {
    u32 writer, reader; /* 1 + block, 0 none */
    u32 write, read;    /* the lower halves of their stamps */
} Trace;

struct Merged {
    u32 shift;
    Trace traces[];
};

bool merged_start(Array *a) {
    a->merged = calloc(pages_of(a), sizeof *a->merged);
    return a->merged;
}

void merged_end(Array *a) {
    for (u64 n = 0; a->merged && n < pages_of(a); n++) if (a->merged[n]) free(a->merged[n]);
    free(a->merged);
    a->merged = NULL;
}

static Merged *merged_page(Machine *m, const Array *a, u64 number, u32 shift) {
    Merged **at = a->merged + number, *old = *at;
    if (!old || old->shift > shift) {
        Merged *page = calloc(1, sizeof *page + (PAGE_BYTES >> shift) * sizeof *page->traces);
        if (!page) {
            fail(m);
            return NULL;
        }
        page->shift = shift;
        for (u32 n = 0; old && n < PAGE_BYTES >> shift; n++) page->traces[n] = old->traces[n >> (old->shift - shift)];
        free(old);
        *at = page;
    }
    return *at;
}

/* What a block did to one cell: whether it wrote, other than by atomics, and the lower halves of one stamp of each. */
typedef struct {
    bool writes, plainly, reads;
    u32 write, read;
} Deed;

static Deed deed_of(const Machine *m, const Cell *c, u32 own) {
    Deed d = {0};
    if (c->writer == own + 1 && TIME(c->write)) {
        d.writes = true, d.write = (u32)c->write;
        d.plainly = !(c->write & STRONG) || c->write & MIXED;
    }
    if (c->reader != own + 1 || !c->read) return d;
    if (!(c->read & LIST)) {
        d.reads = true, d.read = (u32)c->read;
        return d;
    }
    for (u32 n = TIME(c->read); n; n = exact_next(m, n)) {
        u32 access;
        const u32 stamp = exact_stamp(m, n, &access);
        if (access == READ || access == STRONG_READ) d.reads = true, d.read = stamp;
        else if (!d.writes) d.writes = true, d.write = stamp;
    }
    return d;
}

static void merge_trace(Block *b, Trace *t, const Deed *d, u64 address, u32 size) {
    Machine *m = b->m;
    const u32 own = b->index;
    const bool plain_before = !((u64)t->write & STRONG) || (u64)t->write & MIXED;
    u32 mine = 0, theirs = 0, block = 0;
    if (t->writer && (d->plainly || (d->writes && plain_before))) mine = d->write, theirs = t->write, block = t->writer;
    else if (t->writer && d->reads) mine = d->read, theirs = t->write, block = t->writer;
    else if (t->reader && d->writes) mine = d->write, theirs = t->read, block = t->reader;
    if (block)
        report_other(b->warp + STAMP_WARP(mine), m->code + STAMP_PC(mine), F_RACE_GLOBAL, mine % LANES, address, size,
                     party_of(theirs, block - 1));
    if (d->writes) {
        const bool plain = d->plainly || (t->writer && plain_before);
        t->writer = own + 1, t->write = d->plainly || !plain ? d->write : d->write | (u32)MIXED;
    }
    if (d->reads && !t->reader) t->reader = own + 1, t->read = d->read;
}

static void merge_page(Block *b, const Array *a, u64 number) {
    Machine *m = b->m;
    const Page *page = a->history[number];
    Merged *merged = merged_page(m, a, number, page->shift);
    const u64 base = a->base / REGION_BYTES * REGION_BYTES + number * PAGE_BYTES;
    for (u32 n = 0; merged && n < PAGE_BYTES >> page->shift; n++) {
        const Cell *c = page->cells + n;
        Deed d;
        if (c->writer != b->index + 1 && c->reader != b->index + 1) continue;
        d = deed_of(m, c, b->index);
        if (!d.writes && !d.reads) continue;
        for (u32 k = n << (page->shift - merged->shift); k < (n + 1) << (page->shift - merged->shift); k++)
            merge_trace(b, merged->traces + k, &d, base + ((u64)n << page->shift), 1u << page->shift);
    }
}

/* A block has ended, and all before it have been merged. */
void history_merge(Machine *m, Block *b) {
    for (u32 n = 0; n < m->doubtful_count && (m->collect || !m->stop); n++) {
        const Finding *f = m->doubtful + n;
        const Array *a = m->arrays + (f->address / REGION_BYTES - FIRST_ARRAY);
        const Merged *page = a->merged[f->address % REGION_BYTES / PAGE_BYTES];
        if (!page || !page->traces[f->address % PAGE_BYTES >> page->shift].writer)
            report(b->warp + f->warp, m->code + f->pc, F_UNINITIALISED_GLOBAL, f->lane, f->address, f->size, 0);
    }
    for (u32 n = 0; n < m->touched_count; n++)
        merge_page(b, m->arrays + m->touched[n].array, m->touched[n].page);
    m->touched_count = m->doubtful_count = 0;
}
