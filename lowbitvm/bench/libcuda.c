/* A stand-in for libcuda.so.1: the driver calls that lowbitvm makes, over host memory. Launches go to a function that
 * the test registers, at once and in the order of the calls, which is one of the orders that streams allow.
 *
 * Handles are slots of one array, so that a stale or foreign one is found out. Errors that the CUDA Driver API calls
 * sticky mark the context: every later call in it gives the same error. A fault can be planted in any call by its name.
 * The calls, their numbers and their rules are those of the CUDA Driver API reference; the parts of a cubin that are
 * read are its ELF header, sections, and KPARAM_INFO attributes. */
#define _GNU_SOURCE
#include <elf.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define LOCK pthread_mutex_lock(&lock)
#define UNLOCK pthread_mutex_unlock(&lock)

typedef int Result;
enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, INVALID_HANDLE = 400, NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700, LAUNCH_OUT_OF_RESOURCES = 701, CONTEXT_IS_DESTROYED = 709, LAUNCH_FAILED = 719,
    STREAM_CAPTURE_UNSUPPORTED = 900, STREAM_CAPTURE_INVALIDATED = 901, STREAM_CAPTURE_UNMATCHED = 903,
    STREAM_CAPTURE_IMPLICIT = 906, INVALID_CLUSTER_SIZE = 912,
};
static const struct { Result number; const char *name, *text; } RESULTS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture was not initiated in this stream"},
    {STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would result in a merge of separate capture sequences, or an implicit one with the legacy stream"},
    {INVALID_CLUSTER_SIZE, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "the cluster size is not supported or misconfigured"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
static const Result STICKY[] = {214, ILLEGAL_ADDRESS, 702, CONTEXT_IS_DESTROYED, 716, LAUNCH_FAILED, 999};
enum { DEVICES = 8, SLOTS = 1 << 16, DEPTH = 64, PARAMETERS = 64, FAULTS = 16, PARAMETER_BYTES = 4352 };
enum Kind { FREE, CONTEXT, STREAM, MODULE, FUNCTION, EVENT, GRAPH, MEMORY };

typedef struct {  /* a launch, or a memset where `function` is NULL */
    struct Slot *function;
    unsigned size[6], shared, bytes;
    unsigned attributes[4]; /* cluster, 0 for none; whether it may start before what is before it has ended */
    uint8_t parameters[PARAMETER_BYTES];
    uint64_t address, count;
    uint8_t value;
} Node;

typedef struct Slot {
    enum Kind kind;
    int device;             /* CONTEXT, MEMORY; -1: host memory that every device may use */
    Result lost;            /* CONTEXT: the sticky error, or 0 */
    int retained;           /* CONTEXT: of a primary one, how often */
    struct Slot *context;   /* STREAM, MODULE, EVENT, MEMORY */
    int capturing, mode;    /* STREAM: CUstreamCaptureStatus, CUstreamCaptureMode */
    pthread_t thread;       /* STREAM: who captures */
    struct Slot *graph;     /* STREAM: what is captured into */
    int non_blocking;       /* STREAM */
    uint8_t *image;         /* MODULE */
    size_t bytes;           /* MODULE, MEMORY */
    uint64_t address;       /* MEMORY */
    struct Slot *module;    /* FUNCTION */
    char name[256];         /* FUNCTION */
    int opted_in, parameter_count;                        /* FUNCTION */
    unsigned offsets[PARAMETERS], widths[PARAMETERS], total; /* FUNCTION */
    double time;            /* EVENT, milliseconds */
    Node *nodes;            /* GRAPH */
    int node_count;         /* GRAPH */
} Slot;

typedef Result Launcher(const uint8_t *image, size_t bytes, const char *entry, int device, const unsigned *size,
                        unsigned shared, const uint8_t *parameters, unsigned parameter_bytes, uint64_t stream);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Slot slots[SLOTS];
static int used;
static Slot *primary[DEVICES];
static __thread Slot *stack[DEPTH];
static __thread int depth, thread_mode;
static struct { int devices, major, minor, pageable, initialised; } machine;
static struct { char name[64]; Result result; int skip, times; } faults[FAULTS];
static int fault_count, captures;
static double scripted = -1; /* milliseconds that events take for the time; below 0: the time that it is */
static Launcher *launcher;

/* What a test calls. */

static uint64_t calls;

EXPORT void standin_reset(int devices, int major, int minor, int pageable) {
    LOCK;
    for (int i = 0; i < used; i++) {
        if (slots[i].kind == MODULE) free(slots[i].image);
        if (slots[i].kind == GRAPH) free(slots[i].nodes);
        if (slots[i].kind == MEMORY && slots[i].device >= 0) free((void *)slots[i].address);
        slots[i].kind = FREE; /* and never used again by another kind of this test run: handles only grow */
    }
    used = used > SLOTS / 2 ? 0 : used;
    memset(primary, 0, sizeof primary);
    machine.devices = devices, machine.major = major, machine.minor = minor, machine.pageable = pageable;
    machine.initialised = 0;
    fault_count = captures = depth = thread_mode = 0;
    launcher = NULL, scripted = -1;
    UNLOCK;
}

EXPORT void standin_clock(double milliseconds) { scripted = milliseconds; }

EXPORT void standin_launcher(Launcher *function) { launcher = function; }

/* From its call number `skip` on, the function gives `result`, `times` times. */
EXPORT void standin_fail(const char *name, Result result, int skip, int times) {
    LOCK;
    if (fault_count < FAULTS) {
        snprintf(faults[fault_count].name, sizeof faults[0].name, "%s", name);
        faults[fault_count].result = result, faults[fault_count].skip = skip, faults[fault_count++].times = times;
    }
    UNLOCK;
}

/* The allocation that an address lies in; 0 where there is none that the device may use. */
EXPORT int standin_find(uint64_t address, int device, uint64_t *start, uint64_t *bytes) {
    for (int i = 0; i < used; i++) {
        Slot *s = &slots[i];
        if (s->kind == MEMORY && (s->device == device || s->device < 0) && address >= s->address &&
            address < s->address + s->bytes) {
            *start = s->address, *bytes = s->bytes;
            return 1;
        }
    }
    return 0;
}

/* Of the thread's last launch: the cluster, zeros without one, and whether it is a dependent one. */
static __thread unsigned attributes_of_last[4];
EXPORT void standin_attributes(unsigned *to) { memcpy(to, attributes_of_last, sizeof attributes_of_last); }

EXPORT uint64_t standin_calls(void) { return calls; }

/* The calls. */

static Slot *new_slot(enum Kind kind) {
    if (used == SLOTS) abort();
    Slot *s = &slots[used++];
    memset(s, 0, sizeof *s);
    s->kind = kind;
    return s;
}

static int is(const void *handle, enum Kind kind) {
    uintptr_t at = (uintptr_t)handle - (uintptr_t)slots;
    return (uintptr_t)handle >= (uintptr_t)slots && at < sizeof slots && at % sizeof(Slot) == 0 &&
           ((const Slot *)handle)->kind == kind;
}

static Slot *current(void) { return depth ? stack[depth - 1] : NULL; }

static int sticky(Result result) {
    for (size_t i = 0; i < sizeof STICKY / sizeof *STICKY; i++)
        if (STICKY[i] == result) return 1;
    return 0;
}

static Result fault(const char *name) {
    calls++;
    for (int i = 0; i < fault_count; i++)
        if (!strcmp(faults[i].name, name) && faults[i].skip-- <= 0 && faults[i].times-- > 0) {
            if (sticky(faults[i].result) && current()) current()->lost = faults[i].result;
            return faults[i].result;
        }
    return machine.initialised || !strncmp(name, "cuInit", 6) ? SUCCESS : NOT_INITIALIZED;
}

#define CHECK(expression)                                                                                               \
    do {                                                                                                                \
        Result result_ = (expression);                                                                                  \
        if (result_) return result_;                                                                                    \
    } while (0)
#define ENTER CHECK(fault(__func__))

/* Success where the thread has a context that is in order. */
static Result usable(void) {
    if (!current() || !is(current(), CONTEXT)) return current() ? CONTEXT_IS_DESTROYED : INVALID_CONTEXT;
    return current()->lost;
}

/* CUDA Driver API, cuThreadExchangeStreamCaptureMode: what may block is not allowed during a capture. */
static Result may_block(void) {
    for (int i = 0; captures && i < used; i++) {
        Slot *s = &slots[i];
        int own = s->kind == STREAM && s->capturing && pthread_equal(s->thread, pthread_self());
        if (s->kind == STREAM && s->capturing && thread_mode != 2 && ((own && s->mode != 2) || (!own && !s->mode))) {
            s->capturing = 2;
            return STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return SUCCESS;
}

EXPORT Result cuInit(unsigned flags) {
    (void)flags;
    ENTER;
    if (!machine.devices) return NO_DEVICE;
    machine.initialised = 1;
    return SUCCESS;
}

EXPORT Result cuGetErrorName(Result result, const char **name) {
    for (size_t i = 0; i < sizeof RESULTS / sizeof *RESULTS; i++)
        if (RESULTS[i].number == result) return *name = RESULTS[i].name, SUCCESS;
    return *name = NULL, INVALID_VALUE;
}

EXPORT Result cuGetErrorString(Result result, const char **text) {
    for (size_t i = 0; i < sizeof RESULTS / sizeof *RESULTS; i++)
        if (RESULTS[i].number == result) return *text = RESULTS[i].text, SUCCESS;
    return *text = NULL, INVALID_VALUE;
}

EXPORT Result cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }

EXPORT Result cuDeviceGetCount(int *count) {
    ENTER;
    *count = machine.devices;
    return SUCCESS;
}

EXPORT Result cuDeviceGet(int *device, int ordinal) {
    ENTER;
    if (ordinal < 0 || ordinal >= machine.devices) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

EXPORT Result cuDeviceGetName(char *name, int length, int device) {
    ENTER;
    snprintf(name, (size_t)length, "stand-in %d", device);
    return SUCCESS;
}

EXPORT Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER;
    if (device < 0 || device >= machine.devices) return INVALID_DEVICE;
    switch (attribute) {
        case 38: *value = 1 << 16; break; /* bytes of L2: few buffers are beyond it */
        case 75: *value = machine.major; break;
        case 76: *value = machine.minor; break;
        case 88: *value = machine.pageable; break;
        case 97: *value = 163 << 10; break; /* shared memory per block, opted in: that of an A100 */
        default: *value = 0;
    }
    return SUCCESS;
}

EXPORT Result cuCtxGetCurrent(Slot **context) {
    ENTER;
    *context = current();
    return SUCCESS;
}

EXPORT Result cuCtxGetDevice(int *device) {
    ENTER;
    CHECK(usable());
    *device = current()->device;
    return SUCCESS;
}

EXPORT Result cuCtxPushCurrent(Slot *context) {
    ENTER;
    if (!is(context, CONTEXT)) return INVALID_CONTEXT;
    if (depth == DEPTH) return INVALID_VALUE;
    stack[depth++] = context;
    return SUCCESS;
}

EXPORT Result cuCtxPopCurrent(Slot **context) {
    ENTER;
    if (!depth) return INVALID_CONTEXT;
    Slot *top = stack[--depth];
    if (context) *context = top;
    return SUCCESS;
}

EXPORT Result cuCtxSetCurrent(Slot *context) {
    ENTER;
    if (context && !is(context, CONTEXT)) return INVALID_CONTEXT;
    depth -= depth > 0;
    if (context) stack[depth++] = context;
    return SUCCESS;
}

EXPORT Result cuCtxCreate(Slot **context, void *parameters, unsigned flags, int device) {
    (void)parameters, (void)flags;
    ENTER;
    if (device < 0 || device >= machine.devices) return INVALID_DEVICE;
    LOCK;
    *context = new_slot(CONTEXT);
    UNLOCK;
    (*context)->device = device;
    stack[depth++] = *context;
    return SUCCESS;
}

EXPORT Result cuCtxDestroy(Slot *context) {
    ENTER;
    if (!is(context, CONTEXT)) return INVALID_CONTEXT;
    if (current() == context) depth--;
    LOCK;
    for (int i = 0; i < used; i++)
        if (slots[i].context == context) slots[i].kind = FREE;
    context->kind = FREE;
    UNLOCK;
    return SUCCESS;
}

/* Triton asks for these. */
EXPORT Result cuCtxGetLimit(size_t *value, int limit) {
    (void)limit;
    ENTER;
    *value = 0;
    return SUCCESS;
}

EXPORT Result cuCtxSetLimit(int limit, size_t value) {
    (void)limit, (void)value;
    ENTER;
    return SUCCESS;
}

EXPORT Result cuFuncSetCacheConfig(Slot *function, int config) {
    (void)config;
    ENTER;
    return is(function, FUNCTION) ? SUCCESS : INVALID_HANDLE;
}

EXPORT Result cuCtxSynchronize(void) {
    ENTER;
    CHECK(usable());
    return may_block();
}

EXPORT Result cuDevicePrimaryCtxRetain(Slot **context, int device) {
    ENTER;
    if (device < 0 || device >= machine.devices) return INVALID_DEVICE;
    LOCK;
    if (!primary[device]) {
        primary[device] = new_slot(CONTEXT);
        primary[device]->device = device;
    }
    UNLOCK;
    primary[device]->retained++;
    *context = primary[device];
    return SUCCESS;
}

EXPORT Result cuDevicePrimaryCtxReset(int device) {
    ENTER;
    if (device < 0 || device >= machine.devices) return INVALID_DEVICE;
    LOCK;
    for (int i = 0; i < used && primary[device]; i++)
        if (slots[i].context == primary[device]) slots[i].kind = FREE;
    if (primary[device]) primary[device]->lost = SUCCESS;
    UNLOCK;
    return SUCCESS;
}

/* Memory. */

EXPORT Result cuMemAlloc(uint64_t *address, size_t bytes) {
    ENTER;
    CHECK(usable());
    CHECK(may_block());
    if (!bytes) return INVALID_VALUE;
    size_t rounded = (bytes + 255) / 256 * 256;
    void *memory = aligned_alloc(256, rounded);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xCD, rounded); /* new memory holds anything */
    LOCK;
    Slot *s = new_slot(MEMORY);
    s->device = current()->device, s->context = current(), s->address = (uint64_t)memory, s->bytes = bytes;
    UNLOCK;
    *address = s->address;
    return SUCCESS;
}

static Slot *allocation(uint64_t address, int inside) {
    for (int i = 0; i < used; i++)
        if (slots[i].kind == MEMORY &&
            (slots[i].address == address || (inside && address - slots[i].address < slots[i].bytes)))
            return &slots[i];
    return NULL;
}

EXPORT Result cuMemFree(uint64_t address) {
    ENTER;
    CHECK(usable());
    CHECK(may_block());
    Slot *s = allocation(address, 0);
    if (!s || s->device < 0) return INVALID_VALUE;
    s->kind = FREE;
    free((void *)address);
    return SUCCESS;
}

/* Where `bytes` of device memory begin; NULL where they are not all of one allocation of the current context's device. */
static void *device_memory(uint64_t address, size_t bytes) {
    Slot *s = allocation(address, 1);
    return s && s->device >= 0 && address + bytes <= s->address + s->bytes ? (void *)address : NULL;
}

EXPORT Result cuMemcpyHtoD(uint64_t to, const void *from, size_t bytes) {
    ENTER;
    CHECK(usable());
    CHECK(may_block());
    if (!device_memory(to, bytes)) return INVALID_VALUE;
    memcpy((void *)to, from, bytes);
    return SUCCESS;
}

EXPORT Result cuMemcpyDtoH(void *to, uint64_t from, size_t bytes) {
    ENTER;
    CHECK(usable());
    CHECK(may_block());
    if (!device_memory(from, bytes)) return INVALID_VALUE;
    memcpy(to, (void *)from, bytes);
    return SUCCESS;
}

EXPORT Result cuMemHostRegister(void *memory, size_t bytes, unsigned flags) {
    (void)flags;
    ENTER;
    CHECK(usable());
    LOCK;
    Slot *s = new_slot(MEMORY);
    s->device = -1, s->context = current(), s->address = (uint64_t)memory, s->bytes = bytes;
    UNLOCK;
    return SUCCESS;
}

EXPORT Result cuMemHostUnregister(void *memory) {
    ENTER;
    Slot *s = allocation((uint64_t)memory, 0);
    if (!s || s->device >= 0) return INVALID_VALUE;
    s->kind = FREE;
    return SUCCESS;
}

EXPORT Result cuPointerGetAttribute(void *data, int attribute, uint64_t address) {
    ENTER;
    Slot *s = allocation(address, 1);
    if (attribute == 3 && (s || machine.pageable)) { /* CU_POINTER_ATTRIBUTE_DEVICE_POINTER */
        *(uint64_t *)data = address;
        return SUCCESS;
    }
    if (!s || attribute != 9) return INVALID_VALUE; /* CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL */
    *(int *)data = s->device < 0 ? s->context->device : s->device;
    return SUCCESS;
}

/* Streams: 0 is the legacy default stream. */

static Result stream_context(Slot *stream, Slot **context) {
    if ((uintptr_t)stream > 2 && !is(stream, STREAM)) return INVALID_HANDLE;
    *context = (uintptr_t)stream > 2 ? stream->context : current();
    return SUCCESS;
}

/* The node of a capture for a call on a stream, NULL for one that runs at once. */
static Result record(Slot *stream, Node **node) {
    Slot *context;
    *node = NULL;
    CHECK(stream_context(stream, &context));
    if (context != current()) return INVALID_HANDLE;
    if ((uintptr_t)stream <= 2) {
        for (int i = 0; captures && i < used; i++)
            if (slots[i].kind == STREAM && slots[i].capturing && !slots[i].non_blocking && slots[i].context == context) {
                slots[i].capturing = 2;
                return STREAM_CAPTURE_IMPLICIT;
            }
        return SUCCESS;
    }
    if (stream->capturing == 2) return STREAM_CAPTURE_INVALIDATED;
    if (!stream->capturing) return SUCCESS;
    Slot *graph = stream->graph;
    graph->nodes = realloc(graph->nodes, (size_t)(graph->node_count + 1) * sizeof(Node));
    *node = &graph->nodes[graph->node_count++];
    memset(*node, 0, sizeof **node);
    return SUCCESS;
}

EXPORT Result cuStreamCreate(Slot **stream, unsigned flags) {
    ENTER;
    CHECK(usable());
    LOCK;
    *stream = new_slot(STREAM);
    UNLOCK;
    (*stream)->context = current();
    (*stream)->non_blocking = (int)flags & 1;
    return SUCCESS;
}

EXPORT Result cuStreamDestroy(Slot *stream) {
    ENTER;
    if (!is(stream, STREAM)) return INVALID_HANDLE;
    stream->kind = FREE;
    return SUCCESS;
}

EXPORT Result cuStreamGetCtx(Slot *stream, Slot **context) {
    ENTER;
    CHECK(usable());
    return stream_context(stream, context);
}

EXPORT Result cuStreamSynchronize(Slot *stream) {
    Slot *context;
    ENTER;
    CHECK(usable());
    CHECK(stream_context(stream, &context));
    if ((uintptr_t)stream > 2 && stream->capturing) return stream->capturing = 2, STREAM_CAPTURE_UNSUPPORTED;
    CHECK(may_block());
    return context->lost;
}

EXPORT Result cuStreamIsCapturing(Slot *stream, int *status) {
    ENTER;
    CHECK(usable());
    Slot *context;
    CHECK(stream_context(stream, &context));
    *status = (uintptr_t)stream > 2 ? stream->capturing : 0;
    return SUCCESS;
}

EXPORT Result cuThreadExchangeStreamCaptureMode(int *mode) {
    ENTER;
    int before = thread_mode;
    thread_mode = *mode, *mode = before;
    return SUCCESS;
}

EXPORT Result cuStreamBeginCapture(Slot *stream, int mode) {
    ENTER;
    if (!is(stream, STREAM)) return (uintptr_t)stream <= 2 ? STREAM_CAPTURE_UNSUPPORTED : INVALID_HANDLE;
    LOCK;
    stream->graph = new_slot(GRAPH);
    UNLOCK;
    stream->graph->context = stream->context;
    stream->capturing = 1, stream->mode = mode, stream->thread = pthread_self();
    captures++;
    return SUCCESS;
}

EXPORT Result cuStreamEndCapture(Slot *stream, Slot **graph) {
    ENTER;
    if (!is(stream, STREAM) || !stream->capturing) return STREAM_CAPTURE_UNMATCHED;
    int invalid = stream->capturing == 2;
    stream->capturing = 0;
    captures--;
    *graph = invalid ? NULL : stream->graph;
    return invalid ? STREAM_CAPTURE_INVALIDATED : SUCCESS;
}

EXPORT Result cuGraphInstantiate(Slot **executable, Slot *graph, unsigned long long flags) {
    (void)flags;
    ENTER;
    if (!is(graph, GRAPH)) return INVALID_HANDLE;
    *executable = graph; /* nothing here changes a graph after its capture */
    return SUCCESS;
}

EXPORT Result cuGraphDestroy(Slot *graph) {
    ENTER;
    return is(graph, GRAPH) ? SUCCESS : INVALID_HANDLE;
}

EXPORT Result cuGraphExecDestroy(Slot *graph) {
    ENTER;
    return is(graph, GRAPH) ? SUCCESS : INVALID_HANDLE;
}

EXPORT Result cuEventCreate(Slot **event, unsigned flags) {
    (void)flags;
    ENTER;
    CHECK(usable());
    LOCK;
    *event = new_slot(EVENT);
    UNLOCK;
    (*event)->context = current();
    return SUCCESS;
}

EXPORT Result cuEventRecord(Slot *event, Slot *stream) {
    Slot *context;
    struct timespec now;
    ENTER;
    CHECK(usable());
    if (!is(event, EVENT)) return INVALID_HANDLE;
    CHECK(stream_context(stream, &context));
    if (context != event->context) return INVALID_HANDLE;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->time = scripted < 0 ? 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec : scripted;
    return SUCCESS;
}

EXPORT Result cuStreamWaitEvent(Slot *stream, Slot *event, unsigned flags) {
    (void)flags;
    Slot *context;
    ENTER;
    CHECK(usable());
    CHECK(stream_context(stream, &context));
    return is(event, EVENT) ? SUCCESS : INVALID_HANDLE;
}

EXPORT Result cuEventSynchronize(Slot *event) {
    ENTER;
    CHECK(usable());
    return is(event, EVENT) ? may_block() : INVALID_HANDLE;
}

EXPORT Result cuEventElapsedTime(float *milliseconds, Slot *start, Slot *end) {
    ENTER;
    if (!is(start, EVENT) || !is(end, EVENT)) return INVALID_HANDLE;
    *milliseconds = (float)(end->time - start->time);
    return SUCCESS;
}

EXPORT Result cuEventDestroy(Slot *event) {
    ENTER;
    if (!is(event, EVENT)) return INVALID_HANDLE;
    event->kind = FREE;
    return SUCCESS;
}

/* Modules. */

static const Elf64_Shdr *section(const uint8_t *image, const char *prefix, const char *name) {
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)image;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(image + header->e_shoff);
    const char *names = (const char *)(image + sections[header->e_shstrndx].sh_offset);
    char wanted[320];
    snprintf(wanted, sizeof wanted, "%s%s", prefix, name);
    for (int i = 0; i < header->e_shnum; i++)
        if (!strcmp(names + sections[i].sh_name, wanted)) return &sections[i];
    return NULL;
}

static size_t image_bytes(const Elf64_Ehdr *header) {
    return header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
}

EXPORT Result cuModuleLoadData(Slot **module, const void *image) {
    const Elf64_Ehdr *header = image;
    ENTER;
    CHECK(usable());
    CHECK(may_block());
    if (memcmp(image, ELFMAG, SELFMAG) || header->e_machine != 190) return INVALID_IMAGE; /* EM_CUDA */
    int capability = (int)(header->e_flags >> (header->e_ident[EI_ABIVERSION] >= 8 ? 8 : 0)) & 0xff; /* 8: CUDA 13 */
    if (capability / 10 != machine.major || capability % 10 > machine.minor) return NO_BINARY_FOR_GPU;
    size_t bytes = image_bytes(header);
    const Elf64_Phdr *parts = (const Elf64_Phdr *)((const uint8_t *)image + header->e_phoff);
    for (int i = 0; i < header->e_phnum; i++)
        if (parts[i].p_offset + parts[i].p_filesz > bytes) bytes = parts[i].p_offset + parts[i].p_filesz;
    if (header->e_phnum && header->e_phoff + (size_t)header->e_phnum * header->e_phentsize > bytes)
        bytes = header->e_phoff + (size_t)header->e_phnum * header->e_phentsize;
    LOCK;
    Slot *s = new_slot(MODULE);
    UNLOCK;
    s->context = current(), s->bytes = bytes, s->image = malloc(bytes);
    memcpy(s->image, image, bytes);
    *module = s;
    return SUCCESS;
}

EXPORT Result cuModuleUnload(Slot *module) {
    ENTER;
    if (!is(module, MODULE)) return INVALID_HANDLE;
    module->kind = FREE;
    return SUCCESS;
}

static void read_parameters(Slot *function) {
    const uint8_t *image = function->module->image;
    const Elf64_Shdr *info = section(image, ".nv.info.", function->name);
    for (size_t at = 0; info && at + 4 <= info->sh_size;) {
        const uint8_t *attribute = image + info->sh_offset + at;
        uint16_t bytes;
        memcpy(&bytes, attribute + 2, 2);
        if (attribute[0] == 4 && attribute[1] == 0x17) { /* KPARAM_INFO: index, ordinal, offset, size << 18 */
            uint16_t ordinal, offset;
            uint32_t size;
            memcpy(&ordinal, attribute + 8, 2), memcpy(&offset, attribute + 10, 2), memcpy(&size, attribute + 12, 4);
            if (ordinal >= PARAMETERS) abort();
            function->offsets[ordinal] = offset, function->widths[ordinal] = size >> 18;
            if (ordinal >= function->parameter_count) function->parameter_count = ordinal + 1;
            if (offset + (size >> 18) > function->total) function->total = offset + (size >> 18);
        }
        at += attribute[0] == 4 ? 4u + bytes : 4u;
    }
}

EXPORT Result cuModuleGetFunction(Slot **function, Slot *module, const char *name) {
    ENTER;
    CHECK(usable());
    if (!is(module, MODULE) || module->context != current()) return INVALID_HANDLE;
    if (!section(module->image, ".text.", name)) return NOT_FOUND;
    LOCK;
    Slot *s = new_slot(FUNCTION);
    UNLOCK;
    s->context = module->context, s->module = module;
    snprintf(s->name, sizeof s->name, "%s", name);
    read_parameters(s);
    *function = s;
    return SUCCESS;
}

EXPORT Result cuFuncGetAttribute(int *value, int attribute, Slot *function) {
    ENTER;
    if (!is(function, FUNCTION)) return INVALID_HANDLE;
    const Elf64_Shdr *shared = section(function->module->image, ".nv.shared.", function->name);
    switch (attribute) {
        case 0: *value = 1024; break; /* threads per block */
        case 1: *value = shared ? (int)shared->sh_size : 0; break;
        case 3: *value = 0; break; /* bytes of local memory */
        case 4: *value = 32; break; /* registers */
        case 8: *value = function->opted_in; break;
        default: return INVALID_VALUE;
    }
    return SUCCESS;
}

EXPORT Result cuFuncSetAttribute(Slot *function, int attribute, int value) {
    ENTER;
    if (!is(function, FUNCTION)) return INVALID_HANDLE;
    if (attribute != 8 || value < 0 || value > 232448 - 5120) return INVALID_VALUE;
    function->opted_in = value;
    return SUCCESS;
}

/* Launches. */

static Result run(Node *node, Slot *stream) {
    if (!node->function) {
        memset((void *)node->address, node->value, node->count);
        return SUCCESS;
    }
    Slot *function = node->function, *module = function->module;
    memcpy(attributes_of_last, node->attributes, sizeof attributes_of_last);
    if (!launcher) return SUCCESS;
    Result result = launcher(module->image, module->bytes, function->name, function->context->device, node->size,
                             node->shared, node->parameters, node->bytes, (uint64_t)stream);
    if (sticky(result)) { /* a kernel fails after its launch has returned */
        function->context->lost = result;
        return SUCCESS;
    }
    return result;
}

static Result launch(Slot *function, const unsigned *size, unsigned shared, Slot *stream, void **parameters,
                     const unsigned *attributes) {
    Node own, *node;
    CHECK(usable());
    if (!is(function, FUNCTION) || function->context != current()) return INVALID_HANDLE;
    for (int i = 0; i < 6; i++)
        if (!size[i]) return INVALID_VALUE;
    if (size[1] > 65535 || size[2] > 65535 || size[3] * size[4] * size[5] > 1024) return INVALID_VALUE;
    if (shared > 49152 && (int)shared > function->opted_in) return INVALID_VALUE;
    CHECK(record(stream, &node));
    Node *into = node ? node : &own;
    into->function = function, into->shared = shared, into->bytes = function->total;
    memcpy(into->size, size, sizeof into->size);
    memcpy(into->attributes, attributes, sizeof into->attributes);
    for (int i = 0; i < function->parameter_count; i++)
        memcpy(into->parameters + function->offsets[i], parameters[i], function->widths[i]);
    return node ? SUCCESS : run(&own, stream);
}

EXPORT Result cuLaunchKernel(Slot *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                             unsigned bz, unsigned shared, Slot *stream, void **parameters, void **extra) {
    unsigned size[6] = {gx, gy, gz, bx, by, bz}, none[4] = {0};
    ENTER;
    if (extra) return INVALID_VALUE;
    return launch(function, size, shared, stream, parameters, none);
}

typedef struct { unsigned id, unused, value[16]; } Attribute;
typedef struct {
    unsigned size[6], shared;
    Slot *stream;
    const Attribute *attributes;
    unsigned count;
} LaunchConfig;

EXPORT Result cuLaunchKernelEx(const LaunchConfig *config, Slot *function, void **parameters, void **extra) {
    unsigned found[4] = {0};
    ENTER;
    for (unsigned i = 0; i < config->count; i++) {
        const Attribute *attribute = &config->attributes[i];
        if (machine.major < 9) return INVALID_VALUE;
        if (attribute->id == 4) memcpy(found, attribute->value, 3 * sizeof *found); /* CLUSTER_DIMENSION */
        else if (attribute->id == 6) found[3] = attribute->value[0]; /* PROGRAMMATIC_STREAM_SERIALIZATION */
        else return INVALID_VALUE;
    }
    if (found[0] * found[1] * found[2] > 8) return INVALID_CLUSTER_SIZE;
    for (int i = 0; i < 3; i++)
        if (found[i] && config->size[i] % found[i]) return INVALID_CLUSTER_SIZE;
    if (extra) return INVALID_VALUE;
    return launch(function, config->size, config->shared, config->stream, parameters, found);
}

EXPORT Result cuMemsetD8Async(uint64_t address, unsigned char value, size_t count, Slot *stream) {
    Node own, *node;
    ENTER;
    CHECK(usable());
    CHECK(record(stream, &node));
    Node *into = node ? node : &own;
    into->function = NULL, into->address = address, into->value = value, into->count = count;
    return node ? SUCCESS : run(&own, stream);
}

EXPORT Result cuGraphLaunch(Slot *graph, Slot *stream) {
    ENTER;
    CHECK(usable());
    if (!is(graph, GRAPH)) return INVALID_HANDLE;
    for (int i = 0; i < graph->node_count; i++) CHECK(run(&graph->nodes[i], stream));
    return SUCCESS;
}

/* An encoding of its own: the arguments in order, which is all that a test needs to see arrive. */
EXPORT Result cuTensorMapEncodeTiled(uint64_t *map, int type, unsigned rank, void *address, const uint64_t *sizes,
                                     const uint64_t *strides, const unsigned *box, const unsigned *steps,
                                     int interleave, int swizzle, int promotion, int fill) {
    ENTER;
    if (rank < 1 || rank > 5 || (uintptr_t)address % 16) return INVALID_VALUE;
    memset(map, 0, 128);
    map[0] = (uint64_t)address;
    map[1] = (uint64_t)type | (uint64_t)rank << 8 | (uint64_t)interleave << 16 | (uint64_t)swizzle << 24 |
             (uint64_t)promotion << 32 | (uint64_t)fill << 40;
    for (unsigned i = 0; i < rank; i++) {
        if (!box[i] || box[i] > 256 || (i + 1 < rank && strides[i] % 16)) return INVALID_VALUE;
        map[2 + i] = sizes[i];
        map[7 + i] = i + 1 < rank ? strides[i] : 0;
        map[11 + i] = box[i] | (uint64_t)steps[i] << 32;
    }
    return SUCCESS;
}

#define CALL(name) {#name, (void *)name}
EXPORT Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    static const struct { const char *name; void *function; } CALLS[] = {
        CALL(cuInit), CALL(cuGetErrorName), CALL(cuGetErrorString), CALL(cuDriverGetVersion), CALL(cuDeviceGetCount),
        CALL(cuDeviceGet), CALL(cuDeviceGetName), CALL(cuDeviceGetAttribute), CALL(cuCtxGetCurrent),
        CALL(cuCtxGetDevice), CALL(cuCtxPushCurrent), CALL(cuCtxPopCurrent), CALL(cuCtxSetCurrent), CALL(cuCtxCreate),
        CALL(cuCtxDestroy), CALL(cuCtxSynchronize), CALL(cuDevicePrimaryCtxRetain), CALL(cuDevicePrimaryCtxReset),
        CALL(cuMemAlloc), CALL(cuMemFree), CALL(cuMemcpyHtoD), CALL(cuMemcpyDtoH), CALL(cuMemHostRegister),
        CALL(cuMemHostUnregister),
        CALL(cuPointerGetAttribute), CALL(cuStreamCreate), CALL(cuStreamDestroy), CALL(cuStreamGetCtx),
        CALL(cuStreamSynchronize), CALL(cuStreamIsCapturing), CALL(cuThreadExchangeStreamCaptureMode),
        CALL(cuStreamBeginCapture), CALL(cuStreamEndCapture), {"cuGraphInstantiateWithFlags", (void *)cuGraphInstantiate}, CALL(cuGraphDestroy),
        CALL(cuGraphExecDestroy), CALL(cuGraphLaunch), CALL(cuEventCreate), CALL(cuEventRecord),
        CALL(cuStreamWaitEvent), CALL(cuEventSynchronize), CALL(cuEventElapsedTime), CALL(cuEventDestroy), CALL(cuModuleLoadData),
        CALL(cuModuleUnload), CALL(cuModuleGetFunction), CALL(cuFuncGetAttribute), CALL(cuFuncSetAttribute),
        CALL(cuLaunchKernel), CALL(cuLaunchKernelEx), CALL(cuMemsetD8Async), CALL(cuTensorMapEncodeTiled),
        CALL(cuGetProcAddress_v2), {"cuGetProcAddress", (void *)cuGetProcAddress_v2},
    };
    (void)version, (void)flags;
    *function = NULL;
    for (size_t i = 0; i < sizeof CALLS / sizeof *CALLS; i++)
        if (!strcmp(CALLS[i].name, name)) *function = CALLS[i].function;
    if (status) *status = *function ? 0 : 1; /* CUdriverProcAddressQueryResult: SUCCESS, SYMBOL_NOT_FOUND */
    return SUCCESS;
}
EXPORT Result cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
