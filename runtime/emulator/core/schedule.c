/* Which block, and which warp of it, runs next; and on which host thread.
 *
 * Where blocks cannot communicate, machines on several host threads run one block after another, each with a random state of
 * its own, and what they find is put together in the blocks' order: results do not depend on the number of machines.
 * Elsewhere one machine runs many blocks in turns, as a GPU does, so that a block may wait for another. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "core.h"

struct Launch {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_bool stop;
    bool failed;
    u32 next, turn, blocks, running; /* next: to start; turn: the block whose results are due; running: machines */
    int (*interrupted)(void);
    Machine *first;
};

/* Blocks */

void free_block(Block *b) {
    for (u32 n = 0; b->warp && n < b->m->warps; n++) {
        sync_forget(b->warp + n);
        for (u32 k = 0; k < b->warp[n].copy_capacity; k++) free(b->warp[n].copies[k]);
        free(b->warp[n].copies), free(b->warp[n].arrivals);
    }
    barriers_reset(b);
    mbarriers_reset(b);
    free(b->shared), free(b->unset), free(b->shared_write), free(b->shared_read), free(b->byte_write), free(b->byte_read);
    free(b->shared_second), free(b->byte_second);
    free(b->local), free(b->local_written), free(b->warp), free(b->registers), free(b->masks), free(b->mbarriers);
    free(b);
}

static size_t local_bytes(const Machine *m) { return (size_t)m->local_size * m->warps * LANES; }

static size_t block_bytes(const Machine *m) {
    return (size_t)m->warps * (m->slots * (SLOT_BYTES + 4) + sizeof(Warp)) + (size_t)m->shared_end * 5 + 2 * local_bytes(m);
}

static Block *new_block(Machine *m) {
    Block *b = calloc(1, sizeof *b);
    const size_t words = (size_t)m->shared_end / 4 + 5;
    if (!b) return NULL;
    b->m = m;
    b->shared = calloc((size_t)m->shared_end + 16, 1), b->unset = calloc((size_t)m->shared_end + 16, 1);
    b->shared_write = calloc(words, sizeof *b->shared_write), b->shared_read = calloc(words, sizeof *b->shared_read);
    b->shared_second = calloc(words, sizeof *b->shared_second);
    b->local = calloc(local_bytes(m) + 1, 1), b->local_written = calloc(local_bytes(m) + 1, 1);
    b->warp = calloc(m->warps, sizeof *b->warp);
    b->registers = aligned_alloc(CACHE_LINE, (size_t)m->warps * m->slots * SLOT_BYTES);
    b->masks = malloc((size_t)m->warps * m->slots * sizeof *b->masks);
    if (!b->shared || !b->shared_write || !b->shared_read || !b->shared_second || !b->local || !b->local_written || !b->warp ||
        !b->registers || !b->masks) {
        free_block(b);
        return NULL;
    }
    for (u32 n = 0; n < m->warps; n++) {
        Warp *w = b->warp + n;
        w->m = m, w->b = b, w->index = n;
        w->slots = b->registers + (size_t)n * m->slots * SLOT_BYTES;
        w->undefined = b->masks + (size_t)n * m->slots;
    }
    return b;
}

/* Registers of clusters, which a grid without any has of one block: of each axis the cluster's place, the clusters of the
 * grid, the block's place in its cluster, the blocks of a cluster; then the block's number in its cluster, and of all. */
static u32 of_cluster(const Machine *m, u32 n, u32 which) {
    const u32 at[3] = {n % m->grid[0], n / m->grid[0] % m->grid[1], n / m->grid[0] / m->grid[1]};
    const u32 *size = m->cluster, axis = which % 3;
    switch (which / 3) {
    case 0: return at[axis] / size[axis];
    case 1: return m->grid[axis] / size[axis];
    case 2: return at[axis] % size[axis];
    case 3: return size[axis];
    default: return axis ? size[0] * size[1] * size[2]
                         : at[0] % size[0] + size[0] * (at[1] % size[1] + size[1] * (at[2] % size[2]));
    }
}

/* Special register `which` of one thread, numbered as in decode.py. */
static u32 special(const Machine *m, const Warp *w, i32 which, u32 l, u32 initial) {
    const u32 t = w->index * LANES + l, below = (1u << l) - 1, own = 1u << l, n = w->b->index;
    switch (which) {
    case 0: return t % m->block[0];
    case 1: return t / m->block[0] % m->block[1];
    case 2: return t / m->block[0] / m->block[1];
    case 3: case 4: case 5: return m->block[which - 3];
    case 6: return n % m->grid[0];
    case 7: return n / m->grid[0] % m->grid[1];
    case 8: return n / m->grid[0] / m->grid[1];
    case 9: case 10: case 11: return m->grid[which - 9];
    case 12: return l;
    case 13: return w->index;
    case 14: return m->warps;
    case 15: return own;
    case 16: return below;
    case 17: return below | own;
    case 18: return ~(below | own);
    case 19: return ~below;
    case 20: return m->shared_end - SHARED_BASE - initial; /* shared memory: the dynamic part, */
    case 21: return m->shared_end - SHARED_BASE;           /* all */
    default: return of_cluster(m, n, (u32)which - 22);
    }
}

static void fill_specials(Machine *m, Warp *w) {
    for (u32 n = 0; n < m->special_count; n++) {
        u32 *d = (u32 *)(w->slots + (size_t)SLOT_BYTES * (u32)m->specials[2 * n + 1]);
        for (u32 l = 0; l < LANES; l++) d[l] = special(m, w, m->specials[2 * n], l, d[l]);
    }
}

static void start_block(Machine *m, Block *b, u32 index) {
    b->index = index, b->epoch = 0, b->steps = b->polled = 0;
    b->favourite = b->strategy = b->slices = 0;
    b->looks = 0;
    b->informed = false;
    barriers_reset(b);
    mbarriers_reset(b);
    memset(b->shared, 0xA5, m->shared_end);
    memset(b->shared + m->shared_start, 0, SHARED_BASE - m->shared_start); /* reserved memory */
    memset(b->local, 0xA5, local_bytes(m));
    memset(b->local_written, 0, local_bytes(m));
    for (u32 n = 0; n < m->warps; n++) {
        Warp *w = b->warp + n;
        const u32 threads = warp_threads(m, n);
        memcpy(w->slots, m->image, (size_t)SLOT_BYTES * m->slots);
        memcpy(w->undefined, m->initial_undefined, sizeof(u32) * m->slots);
        start_warp(w, threads == LANES ? FULL : (1u << threads) - 1);
        sync_forget(w);
        copies_reset(w);
        fill_specials(m, w);
    }
    if (b->tainted) memset(b->unset, 0, (size_t)m->shared_end + 16);
    b->doubts = 0, b->tainted = false;
    if (m->checks & SHADOWED) shadow_reset(b);
}

/* Warps */

static u32 mask_of(const Block *b, u32 state) {
    u32 mask = 0;
    for (u32 n = 0; n < b->m->warps; n++) mask |= (u32)(b->warp[n].state == state) << n;
    return mask;
}

static u32 any_of(Machine *m, u32 mask) {
    u32 pick = (u32)(next_random(m) >> 33) % (u32)__builtin_popcount(mask);
    while (pick--) mask &= mask - 1;
    return (u32)__builtin_ctz(mask);
}

/* Orders that break code which relies on luck: one warp runs as far ahead as anything lets it; one comes as late as
 * possible; the last first; others run right behind every store. */
enum { RUN_AHEAD, STARVE, LAST_FIRST, CUT_AT_STORES, STRATEGIES };

static u32 adversary(Machine *m, Block *b, u32 runnable, u64 *burst) {
    u32 fresh = 0, others;
    if (b->slices++ % 64 == 0) {
        b->strategy = (u32)(next_random(m) >> 40) % STRATEGIES;
        b->favourite = (u32)(next_random(m) >> 40) % m->warps;
    }
    EACH(runnable, n) fresh |= (u32)!b->warp[n].yields << n; /* those that wait for others' doing go last */
    *burst = 1 << 16;
    if (!fresh) return any_of(m, runnable); /* all do: whoever comes next may find it done */
    m->cut = b->strategy == CUT_AT_STORES ? STORES : 0;
    others = fresh & ~(1u << b->favourite);
    switch (b->strategy) {
    case RUN_AHEAD:
        if (fresh >> b->favourite & 1) return b->favourite;
        *burst = 1 + (next_random(m) >> 40) % 64;
        return any_of(m, fresh);
    case STARVE: return any_of(m, others ? others : fresh);
    case LAST_FIRST: return 31 - (u32)__builtin_clz(fresh);
    default: return any_of(m, fresh);
    }
}

static Warp *next_warp(Machine *m, Block *b, u64 *burst) {
    const u32 runnable = mask_of(b, RUNNING);
    u32 pick;
    if (!runnable) return NULL;
    if (m->schedule == ROUND_ROBIN) {
        const u32 later = runnable & ~((2u << b->favourite) - 1);
        pick = (u32)__builtin_ctz(later ? later : runnable);
        b->favourite = pick;
        *burst = 1;
    } else if (m->schedule == ADVERSARIAL) {
        pick = adversary(m, b, runnable, burst);
    } else { /* long random bursts, so that one gets far ahead of the others wherever no barrier holds it */
        pick = any_of(m, runnable);
        *burst = next_random(m) >> 40;
        *burst = *burst & 3 ? 1 << 16 : 1 + (*burst >> 2) % (*burst & 4 ? 64 : 1024);
    }
    return b->warp + pick;
}

#define FRUITLESS 400 /* looks of each warp at what others may do, after which nobody will do anything any more */
#define WORK 1000     /* instructions without a look that are work */

/* A warp that looks again and again whether another has done something; one at an mbarrier first. */
static Warp *looking(Block *b) {
    Warp *found = NULL;
    EACH(mask_of(b, RUNNING), n) {
        Warp *w = b->warp + n;
        if (!w->polled_at || w->since_look > WORK) continue;
        if (b->m->flags[w->polled_at - b->m->code] & WAITS) return w;
        if (!found) found = w;
    }
    return found;
}


/* No warp can go on: say which one waits for ever. The block is over. */
static void deadlock(Block *b) {
    const Machine *m = b->m;
    const u32 waiting = mask_of(b, WAITING), running = mask_of(b, RUNNING);
    Warp *w = looking(b);
    if (w && !(m->flags[w->polled_at - m->code] & WAITS)) {
        report(w, w->polled_at, F_LIMIT, w->live ? (u32)__builtin_ctz(w->live) : 0, 0, FRUITLESS, 1);
    } else if (w) {
        report(w, w->polled_at, F_BARRIER_DEADLOCK, w->live ? (u32)__builtin_ctz(w->live) : 0, BARRIERS, 0, running);
    } else if (waiting) {
        w = b->warp + __builtin_ctz(waiting);
        report(w, w->waiting_at, F_BARRIER_DEADLOCK, (u32)__builtin_ctz(w->live), w->barrier, 0, waiting);
    }
    for (u32 n = 0; n < m->warps; n++) b->warp[n].state = DONE;
}

/* Where a warp goes round for ever: at the load of the loop, if it has one, since that may be what it waits for. */
static const Insn *endless(const Warp *w) {
    const Machine *m = w->m;
    const Insn *at = m->code + ((u32)w->pc < m->count ? w->pc : 0); /* what it would execute next */
    const u64 rounds = m->tally[at - m->code].executed;
    if (w->since_look <= WORK && w->polled_at) return w->polled_at;
    return w->loaded_at && m->tally[w->loaded_at - m->code].executed >= rounds / 2 && rounds > 1000 ? w->loaded_at : at;
}

/* One burst of one warp; false when the block has ended. */
static bool run_slice(Machine *m, Block *b) {
    u64 burst = 0;
    Warp *w = next_warp(m, b, &burst);
    if (!w) {
        if (mask_of(b, WAITING)) deadlock(b);
        return false;
    }
    if (m->together && burst > 1024) burst = 1024;
    if (w->copy_count && m->copies == ANY_TIME) copies_progress(w);
    run_warp(m, w, burst);
    if (w->since_look > WORK || b->changes != m->changes) b->looks = 0, b->changes = m->changes;
    if (b->steps > m->step_limit) {
        Warp *most = looking(b) ? looking(b) : w;
        settle(m);
        EACH(mask_of(b, RUNNING), n) if (b->warp[n].since_look > most->since_look) most = b->warp + n;
        report(most, endless(most), F_LIMIT, 0, 0, m->step_limit, 0);
        m->stop = true;
    }
    if (m->now > 0xFFFFF000u) {
        report(w, m->code, F_LIMIT, 0, 0, m->now, 0);
        m->stop = true;
    }
    return true;
}

static bool hopeless(const Block *b) {
    return b->looks > FRUITLESS * (u64)__builtin_popcount(mask_of(b, RUNNING));
}

/* Machines */

static void fail_launch(Launch *launch) {
    launch->failed = true;
    atomic_store(&launch->stop, true);
}

/* What the user's interrupt says; asked on the calling thread alone. */
static void ask(Machine *m, Block *b) {
    if (m != m->launch->first || b->steps - b->polled < 10000000) return;
    b->polled = b->steps;
    if (m->launch->interrupted()) fail_launch(m->launch);
}

static void keep_finding(Machine *m, const Finding *f) {
    for (u32 n = 0; n < m->finding_count; n++)
        if (m->finding[n].kind == f->kind && m->finding[n].pc == f->pc) return;
    if (m->finding_count < MAX_FINDINGS) m->finding[m->finding_count++] = *f;
}

/* Wait a moment for the others; the calling thread looks for interrupts meanwhile. */
static void wait_for_others(Machine *m) {
    Launch *launch = m->launch;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 50000000;
    if (until.tv_nsec >= 1000000000) until.tv_nsec -= 1000000000, until.tv_sec++;
    pthread_cond_timedwait(&launch->changed, &launch->lock, &until);
    if (m == launch->first && launch->interrupted()) fail_launch(launch);
}

/* The results of a block, in the order of blocks. `kept`: the launch's findings. */
static void deliver(Machine *m, Block *b, Machine *kept) {
    Launch *launch = m->launch;
    pthread_mutex_lock(&launch->lock);
    while (launch->turn != b->index && !atomic_load(&launch->stop)) wait_for_others(m);
    if (!atomic_load(&launch->stop)) {
        if (m->keeps_races) history_merge(m, b);
        for (u32 n = 0; n < m->finding_count; n++) keep_finding(kept, m->finding + n);
        text_append(m, &kept->printed, &m->printed);
        if (m->stop) memcpy(kept->assertion, m->assertion, sizeof kept->assertion);
        launch->turn++;
        if (m->stop) atomic_store(&launch->stop, true);
    }
    if (m->failed) fail_launch(launch);
    pthread_cond_broadcast(&launch->changed);
    pthread_mutex_unlock(&launch->lock);
}

static void seed_random(Machine *m, u64 stream) {
    m->random = (m->seed * 2 + 1) ^ stream * 0x9E3779B97F4A7C15ull;
    if (!m->random) m->random = 1;
    for (int n = 0; n < 20; n++) next_random(m);
}

static u32 take_block(Launch *launch) {
    u32 index;
    pthread_mutex_lock(&launch->lock);
    index = launch->next < launch->blocks ? launch->next++ : launch->blocks;
    pthread_mutex_unlock(&launch->lock);
    return index;
}

/* One block after another. */
static void run_separately(Machine *m, Machine *kept) {
    Launch *launch = m->launch;
    Block *b = m->resident[0] = new_block(m);
    m->resident_made = b != NULL;
    if (!b) fail_launch(launch);
    for (u32 index; !atomic_load(&launch->stop) && (index = take_block(launch)) < launch->blocks;) {
        seed_random(m, index);
        m->now = 1, m->ticks = 0, m->node_count = m->free_node = m->finding_count = m->touched_count = m->doubtful_count = 0;
        m->printed.length = 0;
        start_block(m, b, index);
        while (!m->stop && !atomic_load_explicit(&launch->stop, memory_order_relaxed) && run_slice(m, b)) {
            if (hopeless(b)) deadlock(b);
            ask(m, b);
        }
        deliver(m, b, kept);
    }
}

#define RESIDENT_BYTES ((size_t)256 << 20)
#define RESIDENT_LEAST 216u

static u32 running_warps(const Machine *m) {
    u32 running = 0;
    for (u32 n = 0; n < m->resident_count; n++) running += (u32)__builtin_popcount(mask_of(m->resident[n], RUNNING));
    return running;
}

/* Many blocks in turns; one that ends makes room for the next. */
static void run_together(Machine *m) {
    Launch *launch = m->launch;
    u32 next = 0, pick = 0, made = 0;
    u64 looks = 0, before;
    seed_random(m, 0);
    m->now = 1;
    while (!m->stop && !atomic_load(&launch->stop) && (m->resident_count || next < m->blocks)) {
        Block *b;
        while (m->resident_count < m->resident_most && next < m->blocks) {
            if (m->resident_count == made && !(m->resident[made] = new_block(m))) {
                fail_launch(launch);
                return;
            }
            made += m->resident_count == made;
            m->resident_made = made;
            start_block(m, m->resident[m->resident_count++], next++);
        }
        pick = m->schedule == ROUND_ROBIN ? (pick + 1) % m->resident_count
                                          : (u32)(next_random(m) >> 33) % m->resident_count;
        b = m->resident[pick];
        before = b->looks;
        if (!run_slice(m, b)) {
            m->resident[pick] = m->resident[--m->resident_count];
            m->resident[m->resident_count] = b;
            looks = 0;
            continue;
        }
        looks = b->looks >= before ? looks + (b->looks - before) : 0;
        if (b->looks > FRUITLESS && looks > FRUITLESS * (u64)running_warps(m)) {
            deadlock(b);
            looks = 0;
        }
        ask(m, b);
    }
    if (m->failed) fail_launch(launch);
}

typedef struct {
    Machine *m, *kept;
} Work;

static void *work(void *argument) {
    Work *w = argument;
    run_separately(w->m, w->kept);
    pthread_mutex_lock(&w->m->launch->lock);
    w->m->launch->running--;
    pthread_cond_broadcast(&w->m->launch->changed);
    pthread_mutex_unlock(&w->m->launch->lock);
    return NULL;
}

static void add_up(Machine *into, Machine *from) {
    settle(from);
    for (u32 n = 0; n < into->count; n++) {
        Tally *t = into->tally + n;
        const Tally *f = from->tally + n;
        t->executed += f->executed, t->lanes += f->lanes;
        t->wavefronts += f->wavefronts, t->least_wavefronts += f->least_wavefronts;
        t->sectors += f->sectors, t->least_sectors += f->least_sectors;
        if (f->worst_conflict > t->worst_conflict) t->worst_conflict = f->worst_conflict;
        if (f->bound > t->bound) t->bound = f->bound;
        if (f->distance > t->distance) t->distance = f->distance;
        t->outputs += f->outputs, t->unbounded += f->unbounded;
        if (f->worst_share > t->worst_share || (f->worst_share == t->worst_share && f->worst_block < t->worst_block))
            t->worst_share = f->worst_share, t->worst_block = f->worst_block, t->worst_thread = f->worst_thread;
    }
    if (!traffic_merge(into, from)) into->failed = true;
}

static void run_in_parallel(Machine *machines, u32 workers, Machine *kept) {
    Launch *launch = machines->launch;
    pthread_t thread[MAX_WORKERS];
    Work jobs[MAX_WORKERS];
    u32 started = 1;
    launch->running = 1;
    for (u32 n = 1; n < workers; n++) {
        jobs[n] = (Work){machines + n, kept};
        pthread_mutex_lock(&launch->lock);
        launch->running++;
        pthread_mutex_unlock(&launch->lock);
        if (pthread_create(thread + n, NULL, work, jobs + n)) {
            pthread_mutex_lock(&launch->lock);
            launch->running--;
            pthread_mutex_unlock(&launch->lock);
            break;
        }
        started++;
    }
    run_separately(machines, kept);
    pthread_mutex_lock(&launch->lock);
    while (launch->running > 1) wait_for_others(machines);
    pthread_mutex_unlock(&launch->lock);
    for (u32 n = 1; n < started; n++) {
        pthread_join(thread[n], NULL);
        add_up(machines, machines + n);
    }
}

void run_grid(Machine *machines, u32 workers, int (*interrupted)(void)) {
    Machine *m = machines, kept;
    const size_t fitting = RESIDENT_BYTES / (block_bytes(m) + 1);
    Launch launch = {.blocks = m->blocks, .interrupted = interrupted, .first = m};
    pthread_mutex_init(&launch.lock, NULL);
    pthread_cond_init(&launch.changed, NULL);
    atomic_init(&launch.stop, false);
    memset(&kept, 0, sizeof kept);
    kept.finding = calloc(MAX_FINDINGS, sizeof *kept.finding);
    for (u32 n = 0; n < workers; n++) {
        Machine *each = machines + n;
        each->launch = &launch;
        each->resident_most = m->together ? (u32)(fitting > RESIDENT_LEAST ? fitting < 65536 ? fitting : 65536 : RESIDENT_LEAST) : 1;
        if (each->resident_most > m->blocks) each->resident_most = m->blocks;
        each->resident = calloc(each->resident_most, sizeof *each->resident);
        if (!each->resident || !kept.finding) launch.failed = true;
    }
    if (launch.failed) {
    } else if (m->together) {
        run_together(m);
    } else {
        run_in_parallel(machines, workers, &kept);
        memcpy(m->finding, kept.finding, kept.finding_count * sizeof *kept.finding);
        m->finding_count = kept.finding_count;
        free(m->printed.bytes);
        m->printed = kept.printed;
        memcpy(m->assertion, kept.assertion, sizeof m->assertion);
    }
    settle(m);
    free(kept.finding);
    m->failed |= launch.failed;
    pthread_cond_destroy(&launch.changed);
    pthread_mutex_destroy(&launch.lock);
}
