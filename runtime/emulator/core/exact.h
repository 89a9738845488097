/* Accesses to the same bytes, kept one by one: for programs whose threads are ordered otherwise than by barriers of whole
 * warps and blocks, where one stamp cannot stand for the reads of several threads. */
#ifndef EMULATOR_EXACT_H
#define EMULATOR_EXACT_H

#include "stamp.h"

/* What is kept of some bytes. */
typedef struct {
    u64 *write, *read;    /* the last weak write (STRONG alone: only strong ones); the reads and strong writes since */
    u32 *writer, *reader; /* their blocks plus 1; NULL in shared memory */
} Unit;

/* Checks an access against those before it: true where it races with one, *other. `same`: it writes what is
 * there, which is no race with another write of the block: replicated data is often stored by all that have it. */
bool exact_check(const Warp *w, u32 lane, Unit u, u32 access, bool same, u64 *stamp, Party *other);
void exact_note(Warp *w, const Insn *i, u32 lane, Unit u, u32 access, u64 stamp);
u64 exact_copy(Machine *m, u64 read); /* of reads, for another unit */
void exact_free(Machine *m, u64 read);
u32 exact_next(const Machine *m, u32 node); /* 0: none */
u32 exact_stamp(const Machine *m, u32 node, u32 *access); /* its lower half */

#endif
