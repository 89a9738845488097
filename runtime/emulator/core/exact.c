#include "exact.h"

#include <stdlib.h>

/* Accesses by lanes of one warp at one time. */
struct Node {
    u32 next, mask, time, block, pc;
    u8 warp, access;
};

/* Which accesses race with one another: two strong ones never do, two reads neither. */
static bool compete(u32 a, u32 b) {
    const bool reads_a = a == READ || a == STRONG_READ, reads_b = b == READ || b == STRONG_READ;
    const bool weak = a == READ || a == WRITE || b == READ || b == WRITE;
    return weak && !(reads_a && reads_b);
}

/* Whether whatever races with a races with b too. */
static bool covered(u32 a, u32 b) {
    static const u32 all[] = {READ, WRITE, STRONG_READ, STRONG_WRITE};
    for (u32 n = 0; n < 4; n++) if (compete(a, all[n]) && !compete(b, all[n])) return false;
    return true;
}

static u32 new_node(Machine *m) { /* 0: none */
    u32 n = m->free_node;
    if (n) {
        m->free_node = m->nodes[n].next;
        return n;
    }
    if (!m->node_count) m->node_count = 1;
    if (m->node_count >= m->node_capacity) {
        const u32 capacity = m->node_capacity ? 2 * m->node_capacity : 1024;
        Node *grown = realloc(m->nodes, capacity * sizeof *grown);
        if (!grown) {
            m->stop = m->failed = true;
            return 0;
        }
        m->nodes = grown, m->node_capacity = capacity;
    }
    return m->node_count++;
}

void exact_free(Machine *m, u64 read) {
    if (!(read & LIST)) return;
    for (u32 n = TIME(read); n;) {
        const u32 next = m->nodes[n].next;
        m->nodes[n].next = m->free_node, m->free_node = n;
        n = next;
    }
}

u32 exact_next(const Machine *m, u32 node) { return m->nodes[node].next; }

u32 exact_stamp(const Machine *m, u32 node, u32 *access) {
    const Node *e = m->nodes + node;
    *access = e->access;
    return (e->access == ATOMIC ? (u32)STRONG : 0) | e->pc << 14 | (e->warp * LANES + (u32)__builtin_ctz(e->mask));
}

u64 exact_copy(Machine *m, u64 read) {
    u32 head = 0;
    if (!(read & LIST)) return read;
    for (u32 from = TIME(read); from; from = m->nodes[from].next) {
        const u32 n = new_node(m);
        if (!n) break;
        m->nodes[n] = m->nodes[from];
        m->nodes[n].next = head, head = n;
    }
    return (u64)head << 32 | LIST;
}

bool exact_check(const Warp *w, u32 lane, Unit u, u32 access, bool same, u64 *stamp, Party *other) {
    Machine *m = w->m;
    const u32 own = w->b->index, writer = u.writer ? *u.writer - 1 : own;
    bool found = false;
    *stamp = *u.write;
    if (TIME(*u.write) && !(same && writer == own) &&
        (by_arrival(*u.write) || !knows(w, lane, writer, STAMP_THREAD(*u.write), TIME(*u.write))) &&
        !(of_copy(*u.write) && knows_copy(w, lane, STAMP_THREAD(*u.write), TIME(*u.write)))) {
        *other = party_of(*u.write, writer);
        return true;
    }
    *stamp = 0;
    if (*u.read && !(*u.read & LIST)) {
        const u32 reader = u.reader ? *u.reader - 1 : own;
        if (!compete(access, READ) || knows(w, lane, reader, STAMP_THREAD(*u.read), TIME(*u.read))) return false;
        *other = party_of(*u.read, reader);
        return true;
    }
    for (u32 n = *u.read & LIST ? TIME(*u.read) : 0; n; n = m->nodes[n].next) { /* the latest first */
        const Node *e = m->nodes + n;
        const bool mine = e->block == own && e->warp == w->index && e->mask >> lane & 1;
        if (mine && e->access == ATOMIC) return false; /* it has read what all atomics before its own have left */
        found |= mine && e->access == STRONG_READ;
        if (found && (e->access == STRONG_WRITE || e->access == ATOMIC)) continue; /* it has read what they left */
        if (!compete(access, e->access) || (same && e->block == own && e->access != READ && e->access != STRONG_READ)) continue;
        EACH(e->mask, l) if (!knows(w, lane, e->block, e->warp * LANES + l, e->time)) {
            *other = (Party){(i32)e->pc, e->block, e->warp * LANES + l};
            return true;
        }
    }
    return false;
}

static bool known_whole(const Warp *w, u32 lane, const Node *e) {
    EACH(e->mask, l) if (!knows(w, lane, e->block, e->warp * LANES + l, e->time)) return false;
    return true;
}

/* Adds an access to the list and takes out those before it that it stands for. */
static void list_access(Warp *w, u32 lane, Unit u, u32 access, u64 stamp) {
    Machine *m = w->m;
    const u32 own = w->b->index;
    u32 *at, head, n, joined = 0;
    bool overwritten = false;
    if (*u.read && !(*u.read & LIST)) {
        const u64 read = *u.read;
        if (!(n = new_node(m))) return;
        m->nodes[n] = (Node){0, 1u << (STAMP_THREAD(read) % LANES), TIME(read), u.reader ? *u.reader - 1 : own,
                             (u32)STAMP_PC(read), (u8)(STAMP_THREAD(read) / LANES), READ};
        *u.read = (u64)n << 32 | LIST;
    }
    head = *u.read & LIST ? TIME(*u.read) : 0;
    for (at = &head; *at;) {
        Node *e = m->nodes + *at;
        const bool mine = e->block == own && e->warp == w->index;
        if (mine && e->time == m->now && e->access == access && e->pc == (u32)STAMP_PC(stamp) && !overwritten) {
            joined = *at;
        } else if (covered(e->access, access)) {
            if (mine) e->mask &= ~(1u << lane);
            if (!e->mask || known_whole(w, lane, e)) {
                n = *at;
                *at = e->next;
                e->next = m->free_node, m->free_node = n;
                continue;
            }
        }
        overwritten |= access == STRONG_READ && (e->access == STRONG_WRITE || e->access == ATOMIC); /* since that read */
        at = &e->next;
    }
    if (joined) {
        m->nodes[joined].mask |= 1u << lane;
    } else if ((n = new_node(m))) {
        m->nodes[n] = (Node){head, 1u << lane, m->now, own, (u32)STAMP_PC(stamp), (u8)w->index, (u8)access};
        head = n;
    }
    *u.read = (u64)head << 32 | LIST;
}

void exact_note(Warp *w, const Insn *i, u32 lane, Unit u, u32 access, u64 stamp) {
    const u32 own = w->b->index;
    (void)i;
    if (access == WRITE) {
        exact_free(w->m, *u.read);
        *u.read = 0;
        *u.write = stamp;
        if (u.writer) *u.writer = own + 1;
        return;
    }
    if (access != READ && access != STRONG_READ && !*u.write) *u.write = STRONG;
    if (access == READ && !(*u.read & LIST)) {
        const u32 reader = u.reader ? *u.reader - 1 : own;
        if (!*u.read || knows(w, lane, reader, STAMP_THREAD(*u.read), TIME(*u.read))) {
            *u.read = stamp;
            if (u.reader) *u.reader = own + 1;
            return;
        }
    }
    list_access(w, lane, u, access, stamp);
}
