/* What the memory system would do: shared wavefronts (a bank serves one 4-byte word a cycle) and 32-byte sectors; and
 * which bytes of each array were read and written. */
#include "core.h"
#include <stdlib.h>

/* Lanes that access one stretch of memory in order. */
static bool contiguous(u32 active, const u64 *address, u32 size) {
    u32 stray = 0;
    for (u32 l = 1; l < LANES; l++) stray |= address[l] - address[0] != (u64)l * size;
    return active == FULL && !stray;
}

/* An access of 4 bytes or less goes in one phase, 8 bytes in two of 16 lanes, 16 bytes in four of 8. In a phase the
 * banks form groups of the access's size (4 bytes at least); each group serves one aligned unit at a time. */
void count_shared(Tally *t, u32 active, const u64 *address, u32 size) {
    const u32 shift = size <= 4 ? 2 : (u32)__builtin_ctz(size), groups = 128u >> shift; /* of 1 << shift bytes each */
    if (size >= 4 && contiguous(active, address, size)) {
        t->wavefronts += LANES / groups, t->least_wavefronts += LANES / groups;
        if (!t->worst_conflict) t->worst_conflict = 1;
        return;
    }
    for (u32 first = 0; first < LANES; first += groups) {
        const u32 phase = active & (groups == 32 ? FULL : ((1u << groups) - 1) << first);
        u32 held[32][32], worst = 0, distinct = 0, used = 0, clash = 0;
        u8 depth[32] = {0};
        EACH(phase, l) {
            const u32 group = 1u << ((u32)address[l] >> shift & (groups - 1));
            clash |= used & group, used |= group;
        }
        if (!clash) { /* each group of banks serves one lane */
            t->wavefronts += phase != 0, t->least_wavefronts += phase != 0;
            if (phase && !t->worst_conflict) t->worst_conflict = 1;
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
        t->wavefronts += worst, t->least_wavefronts += (distinct + groups - 1) / groups;
        if (worst > t->worst_conflict) t->worst_conflict = worst;
    }
}

/* An access is aligned to its size of at most 16 bytes, so it touches one sector. */
void count_global(Tally *t, u32 active, const u64 *address, u32 size) {
    u64 sector[LANES];
    u32 count = 0;
    t->least_sectors += ((u64)lane_count(active) * size + 31) / 32;
    if (contiguous(active, address, size)) {
        t->sectors += (address[LANES - 1] >> 5) - (address[0] >> 5) + 1;
        return;
    }
    EACH(active, l) {
        u64 s = address[l] >> 5;
        u32 k = count;
        while (k && sector[k - 1] != s) k--; /* neighbours share sectors: newest first */
        if (!k) sector[count++] = s;
    }
    t->sectors += count;
}

/* A page has a bit per byte of PAGE_BYTES of the array's address range. The range starts at a multiple of REGION_BYTES,
 * less than 256 below the array, so that an aligned access lies in one word of bits. */
#define PAGE_BYTES ((u64)1 << 18)
#define PAGE_WORDS (PAGE_BYTES / 64)

static u64 page_count(const Array *a) { return (a->base % REGION_BYTES + a->size + PAGE_BYTES - 1) / PAGE_BYTES; }

bool traffic_start(Machine *m) {
    m->traffic = calloc(m->array_count + 1, sizeof *m->traffic);
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
    free(m->traffic);
    m->traffic = NULL;
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

u64 traffic_distinct(const Machine *m, u32 array, bool written) {
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

static void mark(Machine *m, u64 **pages, u32 lanes, const u64 *address, u32 size) {
    const u64 ones = size < 64 ? ((u64)1 << size) - 1 : ~(u64)0, bytes = (u64)LANES * size;
    u64 *bits;
    if (lanes == FULL && !(address[0] & 63) && !(bytes & 63) && address[0] % PAGE_BYTES + bytes <= PAGE_BYTES &&
        contiguous(lanes, address, size)) {
        if ((bits = bits_at(m, pages, address[0]))) memset(bits, 0xFF, bytes / 8);
        return;
    }
    EACH(lanes, l) {
        if (!(bits = bits_at(m, pages, address[l]))) return;
        *bits |= ones << (address[l] & 63);
    }
}

/* Legal accesses of `lanes` to one array, `address` by lane. An atomic reads and writes. */
void count_array(Machine *m, const Array *a, u32 lanes, const u64 *address, u32 size, u32 access) {
    Traffic *t = m->traffic + (a - m->arrays);
    const u64 bytes = (u64)lane_count(lanes) * size;
    if (access != WRITE) t->read += bytes, mark(m, t->read_pages, lanes, address, size);
    if (access != READ) t->written += bytes, mark(m, t->written_pages, lanes, address, size);
}
