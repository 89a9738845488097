/* The emulator's machine: decoded instructions, warps, memory, and what the executing files share.
 *
 * A register is one slot of 128 bytes (32 lanes x u32; 16-bit values use the low half, upper half zero) or two
 * slots (32 lanes x u64); a predicate is a lane mask in the first u32 of its slot. Constants, parameters' addresses
 * and special registers are slots too, so that every operand is a slot number. `undefined[slot]` is the mask of lanes
 * whose value was never written. */
#ifndef EMULATOR_CORE_H
#define EMULATOR_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;

#define LANES 32
#define FULL 0xFFFFFFFFu
#define SLOT_BYTES 128
#define CACHE_LINE 64 /* a vector that lies in two is slow */
#define NO_GUARD 0xFFFF
#define MAX_OPERANDS 36
#define MAX_WARPS 32
#define MAX_WORKERS 256
#define BARRIERS 16
#define MEETINGS 16 /* barrier instructions of which a warp keeps who was there */

/* Hot loops are built twice where the compiler can choose at load time, which is before a sanitizer's runtime starts. */
#if defined(__x86_64__) && defined(__GLIBC__) && __GNUC__ >= 12 && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define VECTOR __attribute__((target_clones("arch=x86-64-v3", "default"))) /* AVX2 and FMA */
#else
#define VECTOR
#endif
/* Inlined for certain, so that the loop around it vectorises. */
#define INLINE static inline __attribute__((always_inline))
#if defined(__GNUC__) && !defined(__clang__)
#define INDEPENDENT _Pragma("GCC ivdep")
#elif defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT
#endif

/* Operand order: destinations, then sources. `mod` is the handler's own, see each handler. */
typedef struct {
    u16 op, guard;
    u16 operand[MAX_OPERANDS];
    u8 negated, dsts, srcs, spare;
    u32 wide; /* bit n: operand n is a 64-bit register */
    i32 target, reconverge;
    u32 mod[4];
    i64 offset;
} Insn;

typedef struct Machine Machine;
typedef struct Warp Warp;
typedef void (*Handler)(Warp *w, const Insn *i, u32 active);

/* How an instruction is executed. A gathered one waits until all lanes of its group have arrived: of an ALIGNED one all
 * lanes of the warp, of a COLLECTIVE one those of the member mask in its last operand; at the same instruction, or with
 * ANYWHERE at any instruction of the same operation. */
enum {
    OWN_UNDEFINED = 1, /* the handler propagates `undefined` itself */
    ALIGNED = 2, COLLECTIVE = 4, ANYWHERE = 8,
    LOADS = 64, /* from memory into registers */
    UPDATES = 128, /* an atomic */
    CHAINS = 256, /* a multiplication that may be done with those that add to its result */
    WAITS = 32, /* looks whether an mbarrier's phase is over */
    STORES = 16 /* writes what other threads may see: a good moment to let them run */
};
#define GATHERED (ALIGNED | COLLECTIVE)
typedef struct {
    const char *name;
    Handler run;
    u32 flags;
} Opcode;

/* Diverged lanes. A warp has paths, which hold disjoint lanes, and joins, where paths wait for the others that left the
 * same branch. Joins nest, each with fewer lanes than the one around it, so that few are needed. */
#define NO_JOIN 0xFF
#define JOINS 96
typedef struct {
    i32 pc, reconverge; /* reconverge: where the path's join is; -1: at exit */
    u32 mask, members;  /* members: whom a gathering path waits for */
    u8 join;
    bool gathering, alone; /* waits for others to arrive where it is; is not to wait for them */
    u32 polls; /* times it looked whether another thread has done something, since it last joined others */
} Path;
typedef struct {
    i32 pc; /* -2: not in use */
    u32 expected, arrived;
    u8 parent;
} Join;

/* One cp.async instruction of which some lanes' bytes are not yet known to have landed. */
typedef struct {
    u32 lanes, size;
    u32 landed;  /* lanes whose bytes are in shared memory already */
    u32 arrived; /* lanes of which an mbarrier knows that */
    u64 serial;
    u32 address[LANES];
    u32 group[LANES];
    u8 data[LANES][16];
} Copy;

enum { RUNNING, WAITING, DONE };

typedef struct Block Block;
typedef struct Clock Clock; /* sync.c: what somebody knows of accesses, by time; NULL: nothing */

/* What a thread knows beyond its block's epoch and its warp's convergence. [0]: of all scopes, [1]: within its block. */
typedef struct {
    Clock *known;
    Clock *fenced[2]; /* what it knew at its last fence: its strong writes publish that */
    Clock *seen[2];   /* what its strong reads have found published: its next fence makes that known */
} Mind;

struct Warp {
    Machine *m;
    Block *b;
    u8 *slots;
    u32 *undefined;
    u32 index, live, mask; /* mask, pc, reconverge: of the current path */
    i32 pc, reconverge;
    Path path[LANES];
    u32 paths, current; /* current == paths: none can run */
    Join join[JOINS];
    u8 state, barrier;
    const u8 (*storing)[32];   /* what the present store writes, per lane; NULL: not known */
    const Insn *loaded_at; /* its last load */
    const Insn *met_at[MEETINGS]; /* barriers of the whole block, */
    u32 met[MEETINGS], meetings;  /* and the lanes that have been at each */
    const Insn *waiting_at, *polled_at; /* its barrier; where it last looked for others' doing */
    u64 polled[2]; /* and at which two addresses */
    u64 since_look; /* instructions */
    bool yields;   /* ends its burst */
    bool informed; /* some lane's mind is not empty */
    Copy **copies;
    u32 copy_count, copy_capacity;
    u64 copy_serial;
    struct Arrival *arrivals; /* copies.c: cp.async.mbarrier.arrive */
    u32 arrival_count, arrival_capacity;
    u32 group[LANES]; /* cp.async groups this lane has committed */
    u32 converged; /* what its lanes did up to this time is known to all of them */
    Mind mind[LANES];
    bool loads;  /* the present instruction makes what it reads of unset bytes undefined, */
    u32 unset;   /* which these lanes have read; which bytes, from the first of the lane's access on */
    u16 unset_bytes[LANES];
};

/* Global arrays live 1 TB apart in a made-up address space, so that an address names its array and an overrun hits
 * nothing else. Region 0 is empty, region 1 has the windows on shared memory, local memory and parameters. */
#define REGION_BYTES ((u64)1 << 40)
#define FIRST_ARRAY 2
#define SHARED_WINDOW REGION_BYTES
#define LOCAL_WINDOW (REGION_BYTES + ((u64)1 << 32))
#define PARAM_WINDOW (REGION_BYTES + ((u64)2 << 32))
#define WINDOW_BYTES ((u64)1 << 32)
/* A block's shared memory starts here, as on a GPU that keeps the first KB: no variable of a kernel has address 0. */
#define SHARED_BASE 1024
#define LOCAL_BASE 16
#define OTHER_BLOCK ((u64)1 << 28) /* added to an address in shared memory: that of another block of the cluster */

typedef struct Page Page;
typedef struct Merged Merged;
typedef struct {
    u8 *data;
    u64 base, size;
    u8 uninitialised, writable;
    Page **history;  /* history.c: of this machine's blocks; NULL where none is kept */
    Merged **merged; /* of the blocks that have ended, where blocks run beside one another */
} Array;

/* What a machine's lanes asked of one array: bytes in all, and which bytes, a bit each in pages made when touched. */
typedef struct {
    u64 read, written;
    u64 **read_pages, **written_pages; /* traffic.c */
} Traffic;

typedef struct {
    u32 arrived, threads, expected;
    u32 counted; /* the program gave the number of threads */
    u32 waiting; /* mask of warps */
    u32 count;   /* of threads whose predicate was true, for .red */
    u32 present; /* threads that gave one */
    Clock *known; /* what the warps that have arrived knew, where not all of the block take part */
} Barrier;

/* The barrier of the cluster, which is this block alone. All three are masks of warps. */
typedef struct {
    u32 arrived, waiting; /* in the phase that is not over */
    u32 passed;           /* their phase is over, they have not waited for it */
    Clock *known, *completed; /* what the warps that have arrived knew; and those of the last phase that is over */
} ClusterBarrier;
#define CLUSTER_BARRIER (BARRIERS + 1) /* of a warp that waits there, as the number of a barrier */

/* Findings: what, where, and one number of context. */
enum {
    F_BOUNDS_GLOBAL, F_BOUNDS_SHARED, F_BOUNDS_PARAM, F_MISALIGNED, F_UNINITIALISED_SHARED, F_UNINITIALISED_GLOBAL,
    F_UNDEFINED_ADDRESS, F_UNDEFINED_PREDICATE, F_UNDEFINED_STORE, F_RACE_SHARED, F_RACE_ASYNC, F_RACE_GLOBAL,
    F_BARRIER_DIVERGED, F_BARRIER_DEADLOCK, F_SOURCE_SIZE, F_PENDING_COPY, F_READ_ONLY, F_LIMIT,
    F_BOUNDS_LOCAL, F_UNINITIALISED_LOCAL, F_BARRIER_INVALID, F_MASK_INVALID, F_MBARRIER_INVALID, F_TRAP,
    F_SHUFFLE_SOURCE, F_SHIFT, F_METADATA
};
enum { /* report.py's CHECKS */
    CHECK_RACE = 1, CHECK_UNINITIALISED = 2, CHECK_UNDEFINED = 4, CHECK_BARRIER = 8, CHECK_ASYNC = 16,
    CHECK_GLOBAL_RACE = 32, CHECK_SHIFT = 64
};
#define SHADOWED (CHECK_RACE | CHECK_UNINITIALISED | CHECK_ASYNC) /* these need shared memory's access history */

/* Who else was involved in a finding; pc -1: nobody that is known. */
typedef struct {
    i32 pc;
    u32 block, thread;
} Party;

typedef struct {
    i32 kind, pc;
    u32 block, warp, lane, context; /* context: kind-specific (a lane or warp mask, a size, whether it was a write) */
    u64 address, size;
    Party other; /* of a load of unset bytes: where what it loaded mattered */
} Finding;

#define MAX_FINDINGS 1024
#define MAX_DOUBTS 256

/* What one instruction did so far; results.py reads it as it is. */
typedef struct {
    u64 executed, lanes; /* warp instructions issued; the lanes that were active in them, summed */
    u64 wavefronts, least_wavefronts; /* of shared memory; the fewest possible */
    u64 sectors, least_sectors; /* 32-byte sectors of global memory; the fewest possible for the bytes asked for */
    u64 worst_conflict; /* most wavefronts of one phase */
    /* numerics "bound": the largest bound, the largest distance to the hardware's result, the worst quotient of the two
     * and whose it is; outputs, and those that have no bound */
    double bound, distance, worst_share;
    u64 outputs, unbounded;
    u32 worst_block, worst_thread;
} Tally;

enum { RANDOM, ROUND_ROBIN, ADVERSARIAL };
enum { LATE, EARLY, ANY_TIME };

/* A block that is running. */
struct Block {
    Machine *m;
    u32 index;
    u8 *shared;
    u64 *shared_write, *shared_read; /* shadow.c: stamps per word of 4 bytes */
    u64 *byte_write, *byte_read;     /* of words that were touched in part; made when needed */
    u8 *unset;                       /* per byte of shared memory: whether it was written with an undefined value; */
    bool tainted;                    /* one of them */
    u32 *shared_second, *byte_second; /* another reader where there are several: the lower half of its stamp */
    u8 *local, *local_written;       /* per thread, one after another */
    Warp *warp;
    u8 *registers;
    u32 *masks;
    Barrier barrier[BARRIERS];
    ClusterBarrier cluster;
    struct Mbarrier *mbarriers; /* mbarrier.c */
    u32 mbarrier_count, mbarrier_capacity;
    u32 epoch;     /* what its threads did up to this time is known to all of them */
    bool informed; /* some thread's mind is not empty */
    u64 steps, polled;
    u32 favourite, strategy, slices; /* of the schedule */
    Finding doubt[MAX_DOUBTS]; /* loads of unset bytes, stores of undefined values for others: findings once they matter */
    u32 doubts;
    u64 looks, changes; /* looks in a row at what another thread may do, since nothing has changed; the machine's changes then */
};

/* print.c: what kernels print, one record after the other. */
typedef struct {
    char *bytes;
    size_t length, capacity;
} Text;

typedef struct Node Node; /* history.c: an access among several to the same bytes */
typedef struct Launch Launch; /* schedule.c: what the machines of a launch share */

/* What runs blocks on one host thread. */
struct Machine {
    Launch *launch;
    const Insn *code;
    Handler *handler;
    const u32 *flags;
    const u32 *plain; /* per instruction: from it on, how many do nothing but compute */
    const u32 *chain; /* and how many are matrix instructions, each of which adds to the sums of the one before */
    u32 count, slots;
    const u8 *image; /* initial slots */
    const u32 *initial_undefined;
    const i32 *specials; /* pairs (special register, slot) */
    u32 special_count;
    u32 grid[3], block[3], cluster[3], threads, warps, blocks;
    Array *arrays;
    u32 array_count;
    u32 shared_start, shared_end; /* the first address that the kernel may touch, and one past the last */
    u32 local_size; /* bytes of each thread */
    u8 *params;
    u32 params_size;
    Block **resident;
    u32 resident_count, resident_made, resident_most;
    u32 now; /* logical time: goes on at each act of synchronisation */
    u32 exact;    /* threads may be ordered otherwise than by barriers of whole warps and blocks */
    u32 together; /* blocks may communicate: many run in turns on one machine */
    u32 parallel; /* other machines run blocks of the same launch */
    u32 keeps_races; /* blocks cannot communicate: histories are kept by block and compared when it ends */
    Node *nodes;
    u32 node_count, node_capacity, free_node;
    struct Location *locations; /* sync.c: what has been published where */
    u32 location_count, location_capacity;
    struct Touched *touched; /* history.c: pages this block has touched */
    u32 touched_count, touched_capacity;
    u32 checks, collect, numerics, arch, schedule, copies;
    u32 cut; /* flags of instructions that end a burst */
    u64 seed, random, step_limit, ticks, changes; /* changes: of memory by atomics and strong stores */
    Tally *tally; /* per instruction */
    i64 *begun; /* of executions by all lanes that `tally` lacks: how many more than of the instruction before */
    Traffic *traffic; /* per array */
    struct Shape *shapes; /* traffic.c: per instruction */
    struct Fragments *fragments; /* mma_columns.c: operands of matrix instructions; NULL where it cannot run */
    Finding *finding, *doubtful; /* doubtful: reads of bytes that an earlier block may have written */
    u32 finding_count, doubtful_count;
    Text printed;
    char assertion[1024]; /* that has failed; "": none */
    bool stop, failed;
};

#define SLOT(n) ((void *)(w->slots + (size_t)SLOT_BYTES * i->operand[n]))
#define LANEWISE(...)                                               \
    if (active == FULL) {                                           \
        INDEPENDENT for (int l = 0; l < LANES; l++) { __VA_ARGS__ } \
    } else {                                                        \
        INDEPENDENT for (int l = 0; l < LANES; l++) {               \
            if (active >> l & 1) { __VA_ARGS__ }                    \
        }                                                           \
    }
#define EACH(mask, l) for (u32 rest_ = (mask), l; rest_ && (l = (u32)__builtin_ctz(rest_), 1); rest_ &= rest_ - 1)

/* The same for a body that is worth a loop of its own where the lanes are all. */
#define LANES_OF(mask, l, ...)                                     \
    if ((mask) == FULL) {                                          \
        for (u32 l = 0; l < LANES; l++) { __VA_ARGS__ }            \
    } else EACH(mask, l) { __VA_ARGS__ }

/* Whether `undefined` is kept of what instructions compute. */
static inline bool tracks(const Machine *m) { return m->checks & (CHECK_UNDEFINED | CHECK_SHIFT); }
static inline void set_undefined(Warp *w, u32 slot, u32 active, u32 undefined) {
    w->undefined[slot] = (w->undefined[slot] & ~active) | (undefined & active);
}
static inline void set_predicate(Warp *w, u32 slot, u32 active, u32 value) {
    u32 *p = (u32 *)(w->slots + (size_t)SLOT_BYTES * slot);
    *p = (*p & ~active) | (value & active);
}
static inline u32 get_predicate(const Warp *w, u32 slot) {
    return *(const u32 *)(w->slots + (size_t)SLOT_BYTES * slot);
}
static inline u32 join_predicates(u32 p, u32 c, u32 how) { /* 0 p alone, 1 and, 2 or, 3 xor */
    return how == 0 ? p : how == 1 ? p & c : how == 2 ? p | c : p ^ c;
}
/* setp writes p and, where it has two destinations, q = !p; mod[0]: joined how with predicate c; mod[1]: negate c. For
 * set, mod[3] is what a register gets where p is true. */
static inline void finish_setp(Warp *w, const Insn *i, u32 active, u32 p) {
    u32 q = ~p;
    if (i->mod[0]) {
        u32 c = get_predicate(w, i->operand[i->dsts + 2]) ^ (i->mod[1] ? FULL : 0);
        p = join_predicates(p, c, i->mod[0]), q = join_predicates(q, c, i->mod[0]);
    }
    if (i->mod[3]) {
        u32 *d = (u32 *)(w->slots + (size_t)SLOT_BYTES * i->operand[0]);
        EACH(active, l) d[l] = p >> l & 1 ? i->mod[3] : 0;
        return;
    }
    set_predicate(w, i->operand[0], active, p);
    if (i->dsts == 2) set_predicate(w, i->operand[1], active, q);
}
/* Operand n of one lane, zero-extended, whatever the register's width. */
static inline u64 get_lane(const Warp *w, const Insn *i, u32 n, u32 lane) {
    const u8 *slot = w->slots + (size_t)SLOT_BYTES * i->operand[n];
    return i->wide >> n & 1 ? ((const u64 *)slot)[lane] : ((const u32 *)slot)[lane];
}
static inline void set_lane(const Warp *w, const Insn *i, u32 n, u32 lane, u64 value) {
    u8 *slot = w->slots + (size_t)SLOT_BYTES * i->operand[n];
    if (i->wide >> n & 1) ((u64 *)slot)[lane] = value;
    else ((u32 *)slot)[lane] = (u32)value;
}
INLINE void get_lanes(const Warp *w, const Insn *i, u32 n, u64 *to) {
    const u8 *slot = w->slots + (size_t)SLOT_BYTES * i->operand[n];
    if (i->wide >> n & 1) memcpy(to, slot, LANES * sizeof *to);
    else for (u32 l = 0; l < LANES; l++) to[l] = ((const u32 *)slot)[l];
}
static inline u64 next_random(Machine *m) { /* xorshift64* */
    m->random ^= m->random >> 12, m->random ^= m->random << 25, m->random ^= m->random >> 27;
    return m->random * 0x2545F4914F6CDD1Dull;
}

/* Of the lanes in a mask; most often all. */
static inline u32 lane_count(u32 lanes) { return lanes == FULL ? LANES : (u32)__builtin_popcount(lanes); }
static inline Tally *tally_of(const Warp *w, const Insn *i) { return w->m->tally + (i - w->m->code); }

/* findings.c */
void report(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, u32 context);
void doubt(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size);
bool compares_and_swaps(const Insn *atomic);
void report_unset(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, u32 bytes);
void report_other(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, Party other);

/* control.c: divergence */
void run_warp(Machine *m, Warp *w, u64 budget);
void start_warp(Warp *w, u32 lanes);
void settle(Machine *m); /* puts into the tally what it lacks */
void look(Warp *w, const Insn *i, u64 address); /* looks there whether another thread has done something */

/* barrier.c */
void barriers_reset(Block *b);
void barriers_at_exit(Block *b);
u32 warp_threads(const Machine *m, u32 warp);

/* schedule.c */
void free_block(Block *b);
void run_grid(Machine *machines, u32 workers, int (*interrupted)(void)); /* the results are the first machine's */

/* mbarrier.c */
void mbarriers_reset(Block *b);
void mbarrier_expect(Warp *w, const Insn *i, u32 lane, u32 address);
void mbarrier_arrive(Warp *w, const Insn *i, u32 lane, u32 address, Clock *known);

/* sync.c: who knows of what */
bool knows(const Warp *w, u32 lane, u32 block, u32 thread, u32 time);
void sync_warp(Warp *w, u32 lanes);
void sync_block(Block *b);
void sync_arrive(Warp *w, Clock **gathered);
bool knows_copy(const Warp *w, u32 lane, u32 thread, u32 time);
void sync_learn(Warp *w, u32 lanes, Clock *what);
void sync_publish(Warp *w, u32 lanes, Clock **into);
void sync_publish_copies(Warp *w, u32 lane, Clock **into); /* its copies that land now */
void sync_fence(Warp *w, u32 lanes, bool whole_gpu);
void sync_forget(Warp *w);
void clock_release(Clock *c);
void clock_join(Machine *m, Clock **into, Clock *more);
enum { RELAXED = 1, ACQUIRE = 2, RELEASE = 4, CTA_SCOPE = 8 }; /* how strong an access is; 0: weak */
void sync_read(Warp *w, u32 lane, u64 address, u32 strength);
void sync_write(Warp *w, u32 lane, u64 address, u32 strength, bool read_too);
void sync_end(Machine *m);

/* shadow.c: shared memory's access history */
bool shadow_reset(Block *b);
void shadow_read(Warp *w, const Insn *i, u32 lanes, const u64 *address, u32 size);
void shadow_write(Warp *w, const Insn *i, u32 lanes, const u64 *address, u32 size);
void shadow_strong(Warp *w, const Insn *i, u32 lane, u32 address, u32 size, u32 access);
void shadow_copies_issued(Warp *w, const Insn *i, u32 lanes, const u64 *address, u32 size);
void shadow_copies_landed(Warp *w, u32 lanes, const u32 *address, u32 size, bool arrived);

/* history.c: global memory's access history */
bool history_start(Array *a);
void history_end(Array *a);
bool merged_start(Array *a);
void merged_end(Array *a);
void history_access(Warp *w, const Insn *i, u32 lanes, Array *a, const u64 *address, u32 size, u32 access);
void history_merge(Machine *m, Block *b);

/* traffic.c: bank conflicts, sectors, and the bytes of each array; a machine counts for itself */
bool traffic_start(Machine *m);
void traffic_end(Machine *m);
bool traffic_merge(Machine *into, const Machine *from);
u64 traffic_distinct(const Machine *m, u32 array, bool written); /* bytes touched at least once */
void count_shared(Tally *t, u32 active, const u64 *address, u32 size);
void count_global(Warp *w, const Insn *i, u32 active, const u64 *address, u32 size);
void count_array(Machine *m, const Insn *i, const Array *a, u32 lanes, const u64 *address, u32 size, u32 access);

/* copies.c: cp.async */
void copies_reset(Warp *w);
void copies_at_exit(Warp *w, const Insn *i, u32 lanes);
void copies_progress(Warp *w); /* some land at a random moment */
bool copies_arrive(Block *b, u32 address); /* those that an mbarrier waits for are done */

/* mma.c, mma_float.c, mma_columns.c */
bool adds_to(const Insn *i, const Insn *before);
u32 multiply_plainly(Warp *w, const Insn *i, u32 count);
struct Fragments *new_fragments(void);
void free_fragments(struct Fragments *f);

/* print.c */
void text_append(Machine *m, Text *to, const Text *from);

/* memory.c */
enum { GENERIC, GLOBAL, SHARED, PARAM, LOCAL, CALL }; /* CALL: local memory that passes a function's parameters */
enum { READ, WRITE, ATOMIC, STRONG_READ, STRONG_WRITE };
typedef struct {
    u64 address[LANES]; /* in shared memory, global address, or offset in the parameters */
    u8 *bytes[LANES];
    u32 lanes;          /* those whose access is legal */
    u32 shared, global, local; /* which of them are in which memory */
} Access;
/* One access of `size` bytes per lane: at the addresses in register `operand` plus i->offset, or those in `a`. */
void resolve(Warp *w, const Insn *i, u32 active, u32 operand, u32 size, u32 space, u32 access, Access *a);
void check_collisions(Warp *w, const Insn *i, const Access *a, u32 size);
void resolve_addresses(Warp *w, const Insn *i, u32 active, u32 size, u32 space, u32 access, Access *a);
void taint(Block *b, const u8 *bytes, u32 size, bool undefined);
u32 unset_bytes(const Warp *w, u32 lane, const u8 *bytes, u32 size);
void check_undefined(Warp *w, const Insn *i, u32 operand, u32 *active, u32 size);
u64 place_of(const Warp *w, const Access *a, u32 lane);
u8 *global_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size, u32 access);
u8 *shared_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size);
extern const Opcode barrier_ops[], mbarrier_ops[], atomic_ops[], integer_ops[], float_ops[], convert_ops[], memory_ops[];
extern const Opcode copy_ops[], control_ops[], warp_ops[], mma_ops[], sparse_ops[], matrix_ops[], wmma_ops[], print_ops[], video_ops[];

#endif
