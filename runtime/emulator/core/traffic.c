/* What the memory system would do: shared wavefronts (a bank serves one 4-byte word a cycle) and 32-byte sectors. */
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
    const u32 unit = size <= 4 ? 4 : size, groups = 128 / unit;
    if (size >= 4 && contiguous(active, address, size)) {
        t->wavefronts += LANES / groups, t->least_wavefronts += LANES / groups;
        if (!t->worst_conflict) t->worst_conflict = 1;
        return;
    }
    for (u32 first = 0; first < LANES; first += groups) {
        const u32 phase = active & (groups == 32 ? FULL : ((1u << groups) - 1) << first);
        u32 held[32][32], worst = 0, distinct = 0;
        u8 depth[32] = {0};
        EACH(phase, l) {
            const u32 number = (u32)address[l] / unit, group = number % groups;
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
    t->least_sectors += ((u64)__builtin_popcount(active) * size + 31) / 32;
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

bool traffic_start(Machine *m) {
    m->traffic = calloc(m->array_count + 1, sizeof *m->traffic);
    return m->traffic;
}

void traffic_end(Machine *m) {
    free(m->traffic);
    m->traffic = NULL;
}

/* Both machines have the same arrays. */
bool traffic_merge(Machine *into, const Machine *from) {
    for (u32 n = 0; n < into->array_count; n++) {
        into->traffic[n].read += from->traffic[n].read;
        into->traffic[n].written += from->traffic[n].written;
    }
    return true;
}

void count_array(Machine *m, const Array *a, u32 lanes, const u64 *address, u32 size, u32 access) {
    Traffic *t = m->traffic + (a - m->arrays);
    const u64 bytes = (u64)__builtin_popcount(lanes) * size;
    (void)address;
    if (access != WRITE && access != STRONG_WRITE) t->read += bytes;
    if (access == WRITE || access == STRONG_WRITE || access == ATOMIC) t->written += bytes;
}
