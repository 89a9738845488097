/* The Python module: hands buffers to the machine and results back. Limited API, so one build serves every CPython. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

#include "core.h"

static const Opcode *const tables[] = {integer_ops, float_ops,   convert_ops,  memory_ops, atomic_ops, copy_ops,   control_ops,
                                       barrier_ops, warp_ops,    mbarrier_ops, mma_ops,    sparse_ops, matrix_ops, wmma_ops,
                                       print_ops,  video_ops};
#define TABLES (sizeof tables / sizeof *tables)
#define MAX_OPCODES 1024
static const Opcode *numbered[MAX_OPCODES]; /* all of them; a number is an index here */
static u32 opcode_count;
static bool computes[MAX_OPCODES]; /* registers from registers and no more, where all lanes of a warp execute it */

static bool is_computing(const Opcode *table) {
    return table == integer_ops || table == float_ops || table == convert_ops || table == mma_ops || table == video_ops;
}

static void number_opcodes(void) {
    opcode_count = 0;
    for (size_t t = 0; t < TABLES; t++)
        for (const Opcode *o = tables[t]; o->name && opcode_count < MAX_OPCODES; o++)
            computes[opcode_count] = is_computing(tables[t]), numbered[opcode_count++] = o;
}

static PyObject *opcodes(PyObject *self, PyObject *unused) {
    PyObject *names = PyList_New(0);
    (void)self, (void)unused;
    for (u32 n = 0; names && n < opcode_count; n++) {
        PyObject *name = PyUnicode_FromString(numbered[n]->name);
        if (!name || PyList_Append(names, name)) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static int interrupted(void) {
    PyGILState_STATE state = PyGILState_Ensure();
    int result = PyErr_CheckSignals();
    PyGILState_Release(state);
    return result;
}

/* Everything a run allocates or borrows, so that one function can give it back. */
typedef struct {
    Machine *machine; /* several; what they have in common belongs to the first */
    u32 machines;
    Py_buffer code, image, undefined, specials, params, config;
    Py_buffer *data;
    Py_ssize_t buffers;
} Run;

static void release_machine(Machine *m) {
    for (u32 n = 0; m->resident && n < m->resident_made; n++) free_block(m->resident[n]);
    sync_end(m);
    traffic_end(m);
    for (u32 n = 0; m->arrays && n < m->array_count; n++) history_end(m->arrays + n);
    free(m->resident), free(m->nodes), free(m->touched), free(m->arrays), free(m->tally), free(m->begun);
    free(m->finding), free(m->doubtful), free(m->printed.bytes), free_fragments(m->fragments);
}

static void release_run(Run *r) {
    Py_buffer *fixed[] = {&r->code, &r->image, &r->undefined, &r->specials, &r->params, &r->config};
    Machine *m = r->machine;
    for (size_t n = 0; n < sizeof fixed / sizeof *fixed; n++) if (fixed[n]->obj) PyBuffer_Release(fixed[n]);
    for (Py_ssize_t n = 0; n < r->buffers; n++) PyBuffer_Release(r->data + n);
    if (m) {
        for (u32 n = 0; m->arrays && n < m->array_count; n++) merged_end(m->arrays + n);
        free(m->handler), free((void *)m->flags), free((void *)m->plain), free((void *)m->chain);
    }
    for (u32 n = 0; n < r->machines; n++) release_machine(r->machine + n);
    free(r->data), free(r->machine);
}

/* config: grid, block, shared size, checks, collect, numerics, architecture, seed, step limit, local size,
 * schedule, copies, workers, exact, together, cluster, first shared address. */
static int configure(Run *r) {
    const u64 *c = r->config.buf;
    const u32 blocks = (u32)(c[0] * c[1] * c[2]), wanted = (u32)c[16];
    Machine *m;
    r->machines = c[18] ? 1 : wanted < blocks ? wanted : blocks;
    if (r->machines > MAX_WORKERS) r->machines = MAX_WORKERS;
    m = r->machine = calloc(r->machines, sizeof *m);
    if (!m) return -1;
    for (int n = 0; n < 3; n++) m->grid[n] = (u32)c[n], m->block[n] = (u32)c[3 + n], m->cluster[n] = (u32)c[19 + n];
    m->shared_start = (u32)c[22], m->shared_end = SHARED_BASE + (u32)c[6],
    m->checks = (u32)c[7], m->collect = (u32)c[8], m->numerics = (u32)c[9];
    m->arch = (u32)c[10], m->seed = c[11], m->step_limit = c[12];
    m->local_size = (u32)c[13], m->schedule = (u32)c[14], m->copies = (u32)c[15];
    m->exact = c[17] && m->checks & (CHECK_RACE | CHECK_ASYNC | CHECK_GLOBAL_RACE), m->together = (u32)c[18];
    m->blocks = blocks, m->parallel = r->machines > 1, m->keeps_races = !m->together && blocks > 1;
    m->threads = m->block[0] * m->block[1] * m->block[2];
    m->warps = (m->threads + LANES - 1) / LANES;
    m->code = r->code.buf, m->count = (u32)((size_t)r->code.len / sizeof(Insn));
    m->image = r->image.buf, m->slots = (u32)(r->image.len / SLOT_BYTES), m->initial_undefined = r->undefined.buf;
    m->specials = r->specials.buf, m->special_count = (u32)(r->specials.len / 8);
    m->params = r->params.buf, m->params_size = (u32)r->params.len;
    return 0;
}

static int allocate(Run *r) {
    Machine *m = r->machine;
    u32 *flags = calloc(m->count, sizeof *flags), *plain = calloc((size_t)m->count + 1, sizeof *plain);
    u32 *chain = calloc(m->count, sizeof *chain);
    m->flags = flags, m->plain = plain, m->chain = chain;
    m->handler = calloc(m->count, sizeof *m->handler);
    if (!flags || !plain || !chain || !m->handler) return -1;
    for (u32 n = 0; n < m->count; n++) {
        const Opcode *o = numbered[m->code[n].op];
        m->handler[n] = o->run, flags[n] = o->flags;
    }
    for (u32 n = m->count; n--;) plain[n] = computes[m->code[n].op] && m->code[n].guard == NO_GUARD ? plain[n + 1] + 1 : 0;
    for (u32 n = m->count; n--;) {
        chain[n] = flags[n] & CHAINS && plain[n];
        if (chain[n] && plain[n] > 1 && adds_to(m->code + n + 1, m->code + n)) chain[n] += chain[n + 1];
    }
    for (u32 n = 1; n < r->machines; n++) r->machine[n] = *m;
    for (u32 n = 0; n < r->machines; n++) {
        m = r->machine + n;
        m->tally = calloc(m->count, sizeof *m->tally), m->begun = calloc((size_t)m->count + 1, sizeof *m->begun);
        m->finding = calloc(MAX_FINDINGS, sizeof *m->finding), m->doubtful = calloc(MAX_FINDINGS, sizeof *m->doubtful);
        if (!m->tally || !m->begun || !m->finding || !m->doubtful) return -1;
        m->fragments = new_fragments();
    }
    return 0;
}

/* arrays: list of (buffer, base address, writable, uninitialised, may be stored to). */
static int take_arrays(Run *r, PyObject *list) {
    Machine *m = r->machine;
    const Py_ssize_t count = PyList_Size(list);
    const bool many = (u64)m->blocks * m->threads > 1;
    r->data = calloc((size_t)count + 1, sizeof *r->data);
    for (u32 n = 0; n < r->machines; n++)
        if (!(r->machine[n].arrays = calloc((size_t)count + 1, sizeof *m->arrays))) return -1;
    if (!r->data) return -1;
    for (Py_ssize_t n = 0; n < count; n++) {
        PyObject *buffer;
        unsigned long long base;
        int writable, uninitialised, stored;
        Array *a = m->arrays + n;
        bool kept;
        if (!PyArg_ParseTuple(PyList_GetItem(list, n), "OKppp", &buffer, &base, &writable, &uninitialised, &stored))
            return -1;
        if (PyObject_GetBuffer(buffer, r->data + n, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE)) return -1;
        r->buffers = n + 1;
        *a = (Array){.data = r->data[n].buf, .base = base, .size = (u64)r->data[n].len};
        a->writable = (u8)writable, a->uninitialised = uninitialised && m->checks & CHECK_UNINITIALISED;
        kept = a->uninitialised || (stored && writable && many && m->checks & CHECK_GLOBAL_RACE);
        for (u32 k = 0; k < r->machines; k++) r->machine[k].array_count = (u32)n + 1;
        if (kept && m->keeps_races && !merged_start(a)) return -1;
        for (u32 k = 0; k < r->machines; k++) {
            r->machine[k].arrays[n] = *a;
            if (kept && !history_start(r->machine[k].arrays + n)) return -1;
        }
    }
    for (u32 n = 0; n < r->machines; n++) if (!traffic_start(r->machine + n)) return -1;
    return 0;
}

static PyObject *results(const Machine *m) {
    PyObject *traffic = PyList_New(0), *findings = PyList_New(0), *printed = PyList_New(0), *item;
    PyObject *tally = PyBytes_FromStringAndSize((const char *)m->tally, (Py_ssize_t)(m->count * sizeof *m->tally));
    for (u32 n = 0; n < m->array_count; n++) {
        item = Py_BuildValue("KKKK", (unsigned long long)m->traffic[n].read, (unsigned long long)m->traffic[n].written,
                             (unsigned long long)traffic_distinct(m, n, false),
                             (unsigned long long)traffic_distinct(m, n, true));
        PyList_Append(traffic, item);
        Py_DECREF(item);
    }
    for (u32 n = 0; n < m->finding_count; n++) {
        const Finding *f = m->finding + n;
        item = Py_BuildValue("iiIIIIKK(iII)", f->kind, f->pc, f->block, f->warp, f->lane, f->context,
                             (unsigned long long)f->address, (unsigned long long)f->size, f->other.pc, f->other.block,
                             f->other.thread);
        PyList_Append(findings, item);
        Py_DECREF(item);
    }
    for (size_t at = 0; at < m->printed.length;) {
        u32 size;
        memcpy(&size, m->printed.bytes + at, sizeof size);
        item = PyUnicode_DecodeUTF8(m->printed.bytes + at + sizeof size, size, "replace");
        PyList_Append(printed, item);
        Py_DECREF(item);
        at += sizeof size + size;
    }
    item = PyUnicode_DecodeUTF8(m->assertion, (Py_ssize_t)strlen(m->assertion), "replace");
    return Py_BuildValue("NNNNN", tally, traffic, findings, printed, item);
}

static PyObject *run(PyObject *self, PyObject *args) {
    Run r;
    PyObject *list, *result = NULL;
    (void)self;
    memset(&r, 0, sizeof r);
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*O!", &r.code, &r.image, &r.undefined, &r.specials, &r.params, &r.config,
                          &PyList_Type, &list))
        return NULL;
    if (configure(&r) || allocate(&r) || take_arrays(&r, list)) {
        if (!PyErr_Occurred()) PyErr_NoMemory();
    } else {
        Py_BEGIN_ALLOW_THREADS
        run_grid(r.machine, r.machines, interrupted);
        Py_END_ALLOW_THREADS
        if (r.machine->failed && !PyErr_Occurred()) PyErr_NoMemory();
        if (!PyErr_Occurred()) result = results(r.machine);
    }
    release_run(&r);
    return result;
}

static PyMethodDef methods[] = {
    {"opcodes", opcodes, METH_NOARGS, "opcodes() -> names of the core's operations, in the order of their numbers"},
    {"run", run, METH_VARARGS, "run(code, image, undefined, specials, params, config, arrays) -> results of one launch"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_core", "The PTX emulator's interpreter.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__core(void) {
    PyObject *module = PyModule_Create(&definition);
    number_opcodes();
    if (module && PyModule_AddIntConstant(module, "instruction_bytes", sizeof(Insn))) Py_CLEAR(module);
    return module;
}
