/* What the memory system would do: shared wavefronts (a bank serves one 4-byte word a cycle) and 32-byte sectors. */
#include "core.h"

/* An access of 4 bytes or less goes in one phase, 8 bytes in two of 16 lanes, 16 bytes in four of 8. */
void count_shared(Machine *m, u32 active, const u32 *address, u32 size) {
    const u32 lanes = size <= 4 ? 32 : size == 8 ? 16 : 8, words = size <= 4 ? 1 : size / 4;
    for (u32 first = 0; first < LANES; first += lanes) {
        u32 phase = active & (lanes == 32 ? FULL : ((1u << lanes) - 1) << first), worst = 0, distinct = 0;
        u32 held[32][32];
        u8 depth[32] = {0};
        if (!phase) continue;
        EACH(phase, l) for (u32 n = 0; n < words; n++) {
            u32 word = address[l] / 4 + n, bank = word & 31, k = 0;
            while (k < depth[bank] && held[bank][k] != word) k++;
            if (k < depth[bank]) continue;
            held[bank][depth[bank]++] = word;
            distinct++;
            if (depth[bank] > worst) worst = depth[bank];
        }
        m->counters.shared_wavefronts += worst;
        m->counters.shared_ideal += (distinct + 31) / 32;
    }
}

void count_global(Machine *m, u32 active, const u64 *address, u32 size) {
    u64 sector[LANES];
    u32 count = 0;
    (void)size; /* an access is aligned to its size of at most 16 bytes, so it touches one sector */
    EACH(active, l) {
        u64 s = address[l] >> 5;
        u32 k = count;
        while (k && sector[k - 1] != s) k--; /* neighbours share sectors: newest first */
        if (!k) sector[count++] = s;
    }
    m->counters.global_sectors += count;
}
