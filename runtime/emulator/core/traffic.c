/* What the memory system would do: shared wavefronts (a bank serves one 4-byte word a cycle) and 32-byte sectors; and
 * which bytes of each array were read and written. */
#include "core.h"
#include <stdlib.h>

/* Lanes that do not go on where the lane before them ends: a stretch of memory starts at each. */
VECTOR static u32 stretches(u32 active, const u64 *address, u32 size) {
    u32 starts = 1;
    for (u32 l = 1; l < LANES; l++) starts |= (u32)(address[l] - address[l - 1] != size) << l;
    return active & (starts | ~(active << 1));
}

/* One past the last lane of the stretch that starts at a lane. */
static u32 stretch_end(u32 active, u32 starts, u32 lane) {
    const u32 others = (starts | ~active) & ~((2u << lane) - 1);
    return others ? (u32)__builtin_ctz(others) : LANES;
}

/* The groups of banks, of all lanes' phases side by side, that the lanes use. */
VECTOR static u32 groups_used(const u64 *address, u32 shift, u32 groups) {
    u32 used = 0;
    for (u32 l = 0; l < LANES; l++) used |= 1u << (((u32)address[l] >> shift & (groups - 1)) | (l & ~(groups - 1)));
    return used;
}

/* Whether no two of the lanes can be in different lines of all banks. */
VECTOR static bool one_line(u32 active, const u64 *address) {
    const u64 first = address[__builtin_ctz(active)];
    u64 other = 0;
    for (u32 l = 0; l < LANES; l++) other |= active >> l & 1 ? (address[l] ^ first) >> 7 : 0;
    return !other;
}

static void add_phase(Tally *t, u32 wavefronts, u32 least) {
    t->wavefronts += wavefronts, t->least_wavefronts += least;
    if (wavefronts > t->worst_conflict) t->worst_conflict = wavefronts;
}

/* An access of 4 bytes or less goes in one phase, 8 bytes in two of 16 lanes, 16 bytes in four of 8. In a phase the
 * banks form groups of the access's size (4 bytes at least); each group serves one aligned unit at a time. */
void count_shared(Tally *t, u32 active, const u64 *address, u32 size) {
    const u32 shift = size <= 4 ? 2 : (u32)__builtin_ctz(size), groups = 128u >> shift; /* of 1 << shift bytes each */
    if (active == FULL && groups_used(address, shift, groups) == FULL) { /* each group serves one lane */
        add_phase(t, 1, 1);
        t->wavefronts += LANES / groups - 1, t->least_wavefronts += LANES / groups - 1;
        return;
    }
    if (groups == LANES && active && one_line(active, address)) {
        add_phase(t, 1, 1);
        return;
    }
    for (u32 first = 0; first < LANES; first += groups) {
        const u32 phase = active & (groups == 32 ? FULL : ((1u << groups) - 1) << first);
        u32 held[32][32], last[32], worst = 0, distinct = 0, clash = 0;
        u8 depth[32] = {0};
        EACH(phase, l) last[(u32)address[l] >> shift & (groups - 1)] = (u32)address[l] >> shift;
        EACH(phase, l) clash |= last[(u32)address[l] >> shift & (groups - 1)] ^ (u32)address[l] >> shift;
        if (!clash) { /* each group serves one unit */
            add_phase(t, phase != 0, phase != 0);
            continue;
        }
        EACH(phase, l) {
            const u32 number = (u32)address[l] >> shift, group = number & (groups - 1);
            u32 k = 0;
            while (k < depth[group] && held[group][k] != number) k++;
            if (k < depth[group]) continue;
            held[group][depth[group]++] = number;
            distinct++;
            if (depth[group] > worst) worst = depth[group];
        }
        add_phase(t, worst, (distinct + groups - 1) / groups);
    }
}

/* Sectors that lanes touch, each by itself. */
static u32 distinct_sectors(u32 active, const u64 *address) {
    u64 sector[LANES];
    u32 count = 0;
    EACH(active, l) {
        u64 s = address[l] >> 5;
        u32 k = count;
        while (k && sector[k - 1] != s) k--; /* neighbours share sectors: newest first */
        if (!k) sector[count++] = s;
    }
    return count;
}

/* An access is aligned to its size of at most 16 bytes, so it touches one sector. */
static u32 sectors_of(u32 active, u32 starts, const u64 *address) {
    u64 next = 0; /* one past the last so far */
    u32 sectors = 0;
    EACH(starts, l) {
        const u64 first = address[l] >> 5, last = address[stretch_end(active, starts, l) - 1] >> 5;
        if (first < next) return distinct_sectors(active, address);
        sectors += (u32)(last - first) + 1, next = last + 1;
    }
    return sectors;
}

/* What an instruction accessed the last time all lanes did. Most often only the place is new. */
struct Shape {
    u64 offset[LANES]; /* from the first lane's address */
    u32 size, phase;   /* phase: of the first address, in words of bits */
    u32 starts, sectors;
    u32 words;         /* of bits, of which they touch these: */
    i64 word[LANES];   /* in bytes from that of the first lane's */
    u64 bits[LANES];
};

VECTOR static bool same_shape(const struct Shape *s, const u64 *address, u32 size) {
    const u64 first = address[0];
    u64 other = 0;
    for (u32 l = 0; l < LANES; l++) other |= (address[l] - first) ^ s->offset[l];
    return !other && s->size == size && s->phase == first % 64;
}

/* The words of stretches, each as often as it is in one; false where they are too many. */
static bool shape_words(struct Shape *s, const u64 *address) {
    s->words = 0;
    EACH(s->starts, l) {
        for (u64 at = address[l], end = address[stretch_end(FULL, s->starts, l) - 1] + s->size, next; at < end; at = next) {
            if (s->words == LANES) return false;
            next = (at | 63) + 1 < end ? (at | 63) + 1 : end;
            s->word[s->words] = (i64)((at & ~(u64)63) - (address[0] & ~(u64)63));
            s->bits[s->words++] = (~(u64)0 >> (64 - (next - at))) << (at & 63);
        }
    }
    return true;
}

/* NULL where there is none to go by. */
static const struct Shape *shape_of(Machine *m, const Insn *i, u32 lanes, const u64 *address, u32 size) {
    struct Shape *s = m->shapes + (i - m->code);
    if (lanes != FULL) return NULL;
    if (same_shape(s, address, size)) return s;
    for (u32 l = 0; l < LANES; l++) s->offset[l] = address[l] - address[0];
    s->size = size, s->phase = address[0] % 64;
    s->starts = stretches(FULL, address, size), s->sectors = sectors_of(FULL, s->starts, address);
    if (shape_words(s, address)) return s;
    s->size = 0;
    return NULL;
}

void count_global(Warp *w, const Insn *i, u32 active, const u64 *address, u32 size) {
    const struct Shape *s = shape_of(w->m, i, active, address, size);
    Tally *t = tally_of(w, i);
    t->least_sectors += ((u64)lane_count(active) * size + 31) / 32;
    t->sectors += s ? s->sectors : sectors_of(active, stretches(active, address, size), address);
}

/* A page has a bit per byte of PAGE_BYTES of the array's address range. The range starts at a multiple of REGION_BYTES,
 * less than 256 below the array, so that an aligned access lies in one word of bits. */
#define PAGE_BYTES ((u64)1 << 18)
#define PAGE_WORDS (PAGE_BYTES / 64)

static u64 page_count(const Array *a) { return (a->base % REGION_BYTES + a->size + PAGE_BYTES - 1) / PAGE_BYTES; }

bool traffic_start(Machine *m) {
    m->traffic = calloc(m->array_count + 1, sizeof *m->traffic);
    m->shapes = calloc(m->count + 1, sizeof *m->shapes);
    if (!m->shapes) return false;
    for (u32 n = 0; m->traffic && n < m->array_count; n++) {
        Traffic *t = m->traffic + n;
        t->read_pages = calloc(page_count(m->arrays + n) + 1, sizeof *t->read_pages);
        t->written_pages = calloc(page_count(m->arrays + n) + 1, sizeof *t->written_pages);
        if (!t->read_pages || !t->written_pages) return false;
    }
    return m->traffic;
}

void traffic_end(Machine *m) {
    for (u32 n = 0; m->traffic && n < m->array_count; n++) {
        Traffic *t = m->traffic + n;
        for (u64 p = 0; t->read_pages && p < page_count(m->arrays + n); p++) free(t->read_pages[p]);
        for (u64 p = 0; t->written_pages && p < page_count(m->arrays + n); p++) free(t->written_pages[p]);
        free(t->read_pages), free(t->written_pages);
    }
    free(m->traffic), free(m->shapes);
    m->traffic = NULL, m->shapes = NULL;
}

static bool merge_pages(u64 **into, u64 *const *from, u64 count) {
    for (u64 p = 0; p < count; p++) {
        if (!from[p]) continue;
        if (!into[p] && !(into[p] = calloc(PAGE_WORDS, sizeof **into))) return false;
        for (u64 k = 0; k < PAGE_WORDS; k++) into[p][k] |= from[p][k];
    }
    return true;
}

/* Both machines have the same arrays. */
bool traffic_merge(Machine *into, const Machine *from) {
    for (u32 n = 0; n < into->array_count; n++) {
        Traffic *t = into->traffic + n;
        const Traffic *f = from->traffic + n;
        const u64 count = page_count(into->arrays + n);
        t->read += f->read, t->written += f->written;
        if (!merge_pages(t->read_pages, f->read_pages, count)) return false;
        if (!merge_pages(t->written_pages, f->written_pages, count)) return false;
    }
    return true;
}

VECTOR u64 traffic_distinct(const Machine *m, u32 array, bool written) {
    u64 *const *pages = written ? m->traffic[array].written_pages : m->traffic[array].read_pages;
    u64 bytes = 0;
    for (u64 p = 0; p < page_count(m->arrays + array); p++)
        for (u64 k = 0; pages[p] && k < PAGE_WORDS; k++) bytes += (u64)__builtin_popcountll(pages[p][k]);
    return bytes;
}

/* The word of bits that holds an address's, or NULL where memory ran out. */
static u64 *bits_at(Machine *m, u64 **pages, u64 address) {
    const u64 offset = address % REGION_BYTES;
    u64 **page = pages + offset / PAGE_BYTES;
    if (!*page && !(*page = calloc(PAGE_WORDS, sizeof **page))) {
        m->stop = m->failed = true;
        return NULL;
    }
    return *page + offset % PAGE_BYTES / 64;
}

static void mark(Machine *m, u64 **pages, u32 lanes, u32 starts, const u64 *address, u32 size) {
    EACH(starts, l) {
        for (u64 at = address[l], end = address[stretch_end(lanes, starts, l) - 1] + size, next; at < end; at = next) {
            u64 *bits = bits_at(m, pages, at);
            if (!bits) return;
            next = (at | 63) + 1 < end ? (at | 63) + 1 : end;
            *bits |= (~(u64)0 >> (64 - (next - at))) << (at & 63);
            __builtin_prefetch((const void *)((uintptr_t)bits + CACHE_LINE), 1); /* loops go on where they were */
        }
    }
}

static void mark_shape(Machine *m, u64 **pages, const struct Shape *s, u64 first) {
    u64 *bits = NULL;
    for (u32 n = 0; n < s->words; n++) {
        if (!(bits = bits_at(m, pages, (first & ~(u64)63) + (u64)s->word[n]))) return;
        *bits |= s->bits[n];
    }
    __builtin_prefetch((const void *)((uintptr_t)bits + CACHE_LINE), 1); /* loops go on where they were */
}

/* The host's cache fetches what lies behind stretches of at least a line. */
static void fetch_ahead(const Array *a, u32 lanes, u32 starts, const u64 *address, u32 size) {
    EACH(starts, l) {
        const u64 end = address[stretch_end(lanes, starts, l) - 1] + size - a->base, bytes = end + a->base - address[l];
        for (u64 at = end; bytes >= CACHE_LINE && at < end + bytes && at < a->size; at += CACHE_LINE) __builtin_prefetch(a->data + at);
    }
}

/* Legal accesses of `lanes` to one array, `address` by lane. An atomic reads and writes. */
void count_array(Machine *m, const Insn *i, const Array *a, u32 lanes, const u64 *address, u32 size, u32 access) {
    const struct Shape *s = shape_of(m, i, lanes, address, size);
    Traffic *t = m->traffic + (a - m->arrays);
    const u64 bytes = (u64)lane_count(lanes) * size;
    const u32 starts = s ? s->starts : stretches(lanes, address, size);
    for (u32 write = 0; write < 2; write++) {
        u64 **pages = write ? t->written_pages : t->read_pages;
        if (access == (write ? READ : WRITE)) continue;
        *(write ? &t->written : &t->read) += bytes;
        if (s) mark_shape(m, pages, s, address[0]);
        else mark(m, pages, lanes, starts, address, size);
    }
    if (access != WRITE) fetch_ahead(a, lanes, starts, address, size);
}
