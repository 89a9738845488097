/* vprintf and __assertfail of the CUDA runtime: text that kernels hand to the host. */
#include <stdio.h>
#include <stdlib.h>

#include "core.h"

#define LONGEST 4096 /* bytes of a string, width or precision */

/* The bytes at a generic address, NULL where there are none. The host reads them: no thread's access history grows. */
static const u8 *peek(const Warp *w, u32 lane, u64 address, u64 size) {
    const Machine *m = w->m;
    const u64 index = address / REGION_BYTES - FIRST_ARRAY;
    if (address - SHARED_WINDOW < WINDOW_BYTES) {
        const u64 offset = address - SHARED_WINDOW;
        return offset >= SHARED_BASE && offset + size <= m->shared_end ? w->b->shared + offset : NULL;
    }
    if (address - LOCAL_WINDOW < WINDOW_BYTES) {
        const u64 offset = address - LOCAL_WINDOW - LOCAL_BASE;
        if (address - LOCAL_WINDOW < LOCAL_BASE || offset + size > m->local_size) return NULL;
        return w->b->local + (size_t)(w->index * LANES + lane) * m->local_size + offset;
    }
    if (index < m->array_count) {
        const Array *a = m->arrays + index;
        if (address >= a->base && address - a->base + size <= a->size) return a->data + (address - a->base);
    }
    return NULL;
}

/* What one printf has still to say and where it reads its arguments from. */
typedef struct {
    const Warp *w;
    u32 lane, count;
    u64 at;
    u64 bad; /* an address where nothing lies; 0: none */
} Reader;

static u64 argument(Reader *r, u32 size) {
    const u8 *bytes;
    u64 value = 0;
    r->at = (r->at + size - 1) & ~(u64)(size - 1);
    bytes = peek(r->w, r->lane, r->at, size);
    if (bytes) memcpy(&value, bytes, size);
    else r->bad = r->at;
    r->at += size;
    r->count++;
    return value;
}

/* A string of at most `most` bytes, and a zero after it. */
static void read_string(Reader *r, u64 address, char *to, u32 most) {
    u32 n = 0;
    for (; n < most; n++) {
        const u8 *byte = peek(r->w, r->lane, address + n, 1);
        if (!byte) r->bad = address + n;
        if (!byte || !*byte) break;
        to[n] = (char)*byte;
    }
    to[n] = 0;
}

static void append(Machine *m, Text *text, const char *bytes, size_t size) {
    if (text->length + size > text->capacity) {
        const size_t capacity = 2 * (text->length + size) + 256;
        char *grown = realloc(text->bytes, capacity);
        if (!grown) {
            m->stop = m->failed = true;
            return;
        }
        text->bytes = grown, text->capacity = capacity;
    }
    memcpy(text->bytes + text->length, bytes, size);
    text->length += size;
}

void text_append(Machine *m, Text *to, const Text *from) {
    if (from->length) append(m, to, from->bytes, from->length);
}

/* A number of the format, or an argument for '*'. */
static i32 extent(Reader *r, const char **format) {
    i32 value = 0;
    if (**format == '*') {
        ++*format;
        value = (i32)argument(r, 4);
    }
    for (; **format >= '0' && **format <= '9'; ++*format) if (value < LONGEST) value = value * 10 + (**format - '0');
    return value > LONGEST ? LONGEST : value < -LONGEST ? -LONGEST : value;
}

/* One conversion, `format` behind its '%'; the text of it in `out`. */
static void convert(Reader *r, const char **format, char *out, size_t size) {
    char plain[24] = "%", text[LONGEST + 1];
    const char *start = *format;
    u32 length = 1, longs = 0;
    i32 width, precision = -1;
    u64 value;
    double number;
    while (**format && strchr("-+ #0", **format) && length < 8) plain[length++] = *(*format)++;
    width = extent(r, format);
    if (**format == '.') {
        ++*format;
        precision = extent(r, format);
    }
    while (**format && strchr("hlLjzt", **format)) longs |= *(*format)++ != 'h';
    memcpy(plain + length, "*.*", 3);
    length += 3;
    switch (**format) {
    case 'd': case 'i':
        value = longs ? argument(r, 8) : (u64)(i64)(i32)argument(r, 4);
        memcpy(plain + length, "lld", 4);
        snprintf(out, size, plain, width, precision, (long long)value);
        break;
    case 'u': case 'o': case 'x': case 'X':
        value = argument(r, longs ? 8 : 4);
        memcpy(plain + length, "ll", 2);
        plain[length + 2] = **format, plain[length + 3] = 0;
        snprintf(out, size, plain, width, precision, (unsigned long long)value);
        break;
    case 'f': case 'F': case 'e': case 'E': case 'g': case 'G': case 'a': case 'A':
        value = argument(r, 8);
        memcpy(&number, &value, 8);
        plain[length] = **format, plain[length + 1] = 0;
        snprintf(out, size, plain, width, precision, number);
        break;
    case 'c': snprintf(out, size, "%*c", width, (int)argument(r, 4)); break;
    case 'p': snprintf(out, size, "%#*llx", width, (unsigned long long)argument(r, 8)); break;
    case 's':
        value = argument(r, 8);
        read_string(r, value, text, precision >= 0 ? (u32)precision : LONGEST);
        plain[length] = 's', plain[length + 1] = 0;
        snprintf(out, size, plain, width, precision, text);
        break;
    case '%': snprintf(out, size, "%%"); break;
    default: /* as it stands */
        snprintf(out, size, "%%%.*s", (int)(*format - start), start);
        return;
    }
    ++*format;
}

/* vprintf(format, arguments): each record is its length in 4 bytes and the text. */
static void print(Warp *w, const Insn *i, u32 active) {
    Machine *m = w->m;
    check_undefined(w, i, 1, &active, 1);
    check_undefined(w, i, 2, &active, 1);
    EACH(active, l) {
        Reader r = {.w = w, .lane = l, .at = get_lane(w, i, 2, l)};
        char format[LONGEST + 1], out[2 * LONGEST];
        const char *next = format;
        const size_t start = m->printed.length;
        u32 size = 0;
        read_string(&r, get_lane(w, i, 1, l), format, LONGEST);
        append(m, &m->printed, (const char *)&size, sizeof size);
        while (*next && !r.bad && !m->failed) {
            const size_t plain = strcspn(next, "%");
            append(m, &m->printed, next, plain);
            next += plain;
            if (!*next) break;
            next++;
            convert(&r, &next, out, sizeof out);
            append(m, &m->printed, out, strlen(out));
        }
        if (m->failed) return;
        if (r.bad) {
            report(w, i, F_BOUNDS_GLOBAL, l, r.bad, 1, 0);
            m->printed.length = start;
            continue;
        }
        size = (u32)(m->printed.length - start - sizeof size);
        memcpy(m->printed.bytes + start, &size, sizeof size);
        set_lane(w, i, 0, l, r.count);
    }
}

/* __assertfail(message, file, line, function, bytes of a character) */
static void fail_assertion(Warp *w, const Insn *i, u32 active) {
    const u32 lane = (u32)__builtin_ctz(active);
    Reader r = {.w = w, .lane = lane};
    char message[257], file[257], function[257];
    read_string(&r, get_lane(w, i, 0, lane), message, 256);
    read_string(&r, get_lane(w, i, 1, lane), file, 256);
    read_string(&r, get_lane(w, i, 3, lane), function, 256);
    snprintf(w->m->assertion, sizeof w->m->assertion, "%s:%u: %s: the assertion %s fails", file,
             (u32)get_lane(w, i, 2, lane), function, message);
    report(w, i, F_TRAP, lane, 0, 0, 0);
    w->m->stop = true;
}

const Opcode print_ops[] = {{"print", print, 0}, {"assert", fail_assertion, OWN_UNDEFINED}, {0}};
