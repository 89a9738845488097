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
#define NO_GUARD 0xFFFF
#define MAX_OPERANDS 36
#define MAX_WARPS 32
#define MAX_STACK 256
#define BARRIERS 16

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

enum { OWN_UNDEFINED = 1 }; /* the handler propagates `undefined` itself */
typedef struct {
    const char *name;
    Handler run;
    u32 flags;
} Opcode;

typedef struct {
    i32 pc, reconverge; /* reconverge -1: at exit */
    u32 mask;
} Path;

/* One cp.async instruction whose bytes have not landed yet. */
typedef struct {
    u32 lanes, size;
    u32 address[LANES];
    u32 group[LANES];
    u8 data[LANES][16];
} Copy;

enum { RUNNING, WAITING, DONE };

struct Warp {
    Machine *m;
    u8 *slots;
    u32 *undefined;
    u32 index, live, mask;
    i32 pc, reconverge;
    Path stack[MAX_STACK];
    u32 depth;
    u8 state, barrier;
    Copy *copies;
    u32 copy_count, copy_capacity;
    u32 group[LANES]; /* cp.async groups this lane has committed */
    u32 clock[MAX_WARPS]; /* vector clock: what this warp has seen of each warp */
    u32 converged; /* clock of the last __syncwarp or barrier */
};

/* Global arrays live 1 TB apart in a made-up address space, so that an address names its array and an overrun hits
 * nothing else. Region 0 is empty, region 1 the window on shared memory. */
#define REGION_BYTES ((u64)1 << 40)
#define FIRST_ARRAY 2
/* A block's shared memory starts here, as on a GPU that keeps the first KB: no variable of a kernel has address 0. */
#define SHARED_BASE 1024

typedef struct Page Page;
typedef struct {
    u8 *data;
    u64 base, size;
    u8 uninitialised, writable;
    Page **history; /* history.c; NULL where none is kept */
} Array;

/* What a machine's lanes asked of one array: bytes in all, and which bytes, a bit each in pages made when touched. */
typedef struct {
    u64 read, written;
    u64 **read_pages, **written_pages; /* traffic.c */
} Traffic;

typedef struct {
    u32 arrived, threads, expected;
    u32 waiting; /* mask of warps */
} Barrier;

/* Findings: what, where, and one number of context. */
enum {
    F_BOUNDS_GLOBAL, F_BOUNDS_SHARED, F_BOUNDS_PARAM, F_MISALIGNED, F_UNINITIALISED_SHARED, F_UNINITIALISED_GLOBAL,
    F_UNDEFINED_ADDRESS, F_UNDEFINED_PREDICATE, F_UNDEFINED_STORE, F_RACE_SHARED, F_RACE_ASYNC, F_RACE_GLOBAL,
    F_RACE_GLOBAL_WARPS,
    F_BARRIER_DIVERGED, F_BARRIER_DEADLOCK, F_SOURCE_SIZE, F_PENDING_COPY, F_READ_ONLY, F_LIMIT,
    F_SHUFFLE_SOURCE, F_SHIFT
};
enum { /* report.py's CHECKS */
    CHECK_RACE = 1, CHECK_UNINITIALISED = 2, CHECK_UNDEFINED = 4, CHECK_BARRIER = 8, CHECK_ASYNC = 16, CHECK_GLOBAL_RACE = 32,
    CHECK_SHIFT = 64
};
#define SHADOWED (CHECK_RACE | CHECK_UNINITIALISED | CHECK_ASYNC) /* these need shared memory's access history */

typedef struct {
    i32 kind, pc;
    u32 block, warp, lane, other; /* other: kind-specific (thread or block on the other side, warp mask) */
    u64 address, size;
} Finding;

#define MAX_FINDINGS 1024

/* What one instruction did so far. */
typedef struct {
    u64 executed, lanes; /* warp instructions issued; the lanes that were active in them, summed */
    u64 wavefronts, least_wavefronts; /* of shared memory; the fewest possible */
    u64 sectors, least_sectors; /* 32-byte sectors of global memory; the fewest possible for the bytes asked for */
    u64 worst_conflict; /* most wavefronts of one phase */
    /* numerics "bound": the largest bound, the largest distance to the hardware's result, the worst quotient of the two */
    double bound, distance, worst_share;
} Tally;

struct Machine {
    const Insn *code;
    Handler *handler;
    const u32 *flags;
    u32 count, slots;
    const u8 *image; /* initial slots */
    const u32 *initial_undefined;
    const i32 *specials; /* pairs (special register, slot) */
    u32 special_count;
    u32 grid[3], block[3], threads, warps, block_index;
    Array *arrays;
    u32 array_count;
    u8 *shared;
    u32 shared_end; /* one past the last address */
    u8 *params;
    u32 params_size;
    Warp *warp;
    Barrier barrier[BARRIERS];
    u32 clock, epoch; /* epoch: every warp has seen everything stamped before it */
    u32 *shared_write, *shared_read, *byte_write, *byte_read; /* shadow.c */
    u32 partial; /* a barrier joined only some of the warps since `epoch` */
    u32 checks, collect, numerics, arch; /* arch: compute capability x 10 */
    u64 random, steps, step_limit, ticks;
    Tally *tally; /* per instruction */
    Traffic *traffic; /* per array */
    Finding *finding;
    u32 finding_count;
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
static inline u64 next_random(Machine *m) { /* xorshift64* */
    m->random ^= m->random >> 12, m->random ^= m->random << 25, m->random ^= m->random >> 27;
    return m->random * 0x2545F4914F6CDD1Dull;
}

static inline Tally *tally_of(const Warp *w, const Insn *i) { return w->m->tally + (i - w->m->code); }

/* control.c */
void report(Warp *w, const Insn *i, int kind, u32 lane, u64 address, u64 size, u32 other);
void run_grid(Machine *m, int (*interrupted)(void));

/* shadow.c: shared memory's access history */
void shadow_reset(Machine *m);
void shadow_read(Warp *w, const Insn *i, u32 lanes, const u64 *address, u32 size);
void shadow_write(Warp *w, const Insn *i, u32 lanes, const u64 *address, u32 size);
void shadow_copy_issued(Warp *w, const Insn *i, u32 lane, u32 address, u32 size);
void shadow_copy_landed(Warp *w, u32 lane, u32 address, u32 size);
void shadow_barrier(Machine *m, u32 warps);

/* history.c: global memory's access history */
bool history_start(Array *a);
void history_end(Array *a);
void history_read(Warp *w, const Insn *i, u32 lane, Array *a, u64 address, u32 size);
void history_write(Warp *w, const Insn *i, u32 lane, Array *a, u64 address, u32 size);
void history_check_written(Warp *w, const Insn *i, u32 lane, Array *a, u64 address, u32 size);
void history_forget_clocks(Array *a); /* every access so far is before the epoch */

/* traffic.c: bank conflicts, sectors, and the bytes of each array; a machine counts for itself */
bool traffic_start(Machine *m);
void traffic_end(Machine *m);
bool traffic_merge(Machine *into, const Machine *from);
u64 traffic_distinct(const Machine *m, u32 array, bool written); /* bytes touched at least once */
void count_shared(Tally *t, u32 active, const u64 *address, u32 size);
void count_global(Tally *t, u32 active, const u64 *address, u32 size);
void count_array(Machine *m, const Array *a, u32 lanes, const u64 *address, u32 size, u32 access);

/* copies.c: cp.async */
void copies_reset(Warp *w);
void copies_at_exit(Warp *w, const Insn *i, u32 lanes);

/* memory.c */
enum { READ, WRITE, ATOMIC };
u8 *global_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size, u32 access);
u8 *shared_bytes(Warp *w, const Insn *i, u32 lane, u64 address, u32 size);
enum { GENERIC, GLOBAL, SHARED, PARAM };
typedef struct {
    u64 address[LANES]; /* in shared memory, global address, or offset in the parameters */
    u8 *bytes[LANES];
    u32 lanes; /* those whose access is legal */
} Access;
/* One access of `size` bytes per lane: at the addresses in register `operand` plus i->offset, or those in `a`. */
void resolve(Warp *w, const Insn *i, u32 active, u32 operand, u32 size, u32 space, bool write, Access *a);
void resolve_addresses(Warp *w, const Insn *i, u32 active, u32 size, u32 space, bool write, Access *a);

extern const Opcode atomic_ops[], integer_ops[], float_ops[], convert_ops[], memory_ops[], copy_ops[], control_ops[];
extern const Opcode warp_ops[], mma_ops[], matrix_ops[], wmma_ops[];

#endif
