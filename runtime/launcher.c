/* The part of a launch that is done every time: fill in the parameters, and call the driver.
 *
 * A kernel with its grid is a record of bytes that runtime/driver.py packs once: the header below, then CUlaunchAttributes
 * of the CUDA Driver API, then a letter for each parameter: those of Python's struct module, and A for an address that
 * must be a multiple of 16. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

enum { PARAMETERS = 256, ATTRIBUTE_BYTES = 72, ALIGNMENT = 16, OTHER_CONTEXT = -1, MISALIGNED = -2 };

typedef void *Handle;
typedef struct {
    int (*launch)(Handle function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared,
                  Handle stream, void **parameters, void **extra);
    int (*launch_with)(const void *configuration, Handle function, void **parameters, void **extra);
    int (*current)(Handle *context);
    int (*synchronize)(Handle stream);
    Handle function, context;
    unsigned size[7]; /* grid, block, dynamic shared memory */
    unsigned parameters, attributes, unused;
} Record;

typedef struct { /* CUlaunchConfig */
    unsigned size[7];
    Handle stream;
    const char *attributes;
    unsigned count;
} Configuration;

/* One parameter as the kernel reads it; returns 0 with an exception where it is out of its range. */
static int convert(PyObject *value, char kind, void *to) {
    if (kind == 'f') {
        float number = (float)PyFloat_AsDouble(value);
        memcpy(to, &number, sizeof number);
    } else if (kind == 'Q' || kind == 'A') {
        uint64_t number = PyLong_AsUnsignedLongLong(value);
        memcpy(to, &number, sizeof number);
    } else {
        long long number = PyLong_AsLongLong(value);
        int fits = kind == 'i' ? number == (int32_t)number : number == (uint32_t)number;
        if (!fits && !PyErr_Occurred()) PyErr_SetString(PyExc_OverflowError, "a parameter has more than 32 bits");
        memcpy(to, &number, 4);
    }
    return PyErr_Occurred() == NULL;
}

/* run(record, values, stream): the driver's result, OTHER_CONTEXT where the thread's context is not the kernel's, or
 * MISALIGNED. */
static PyObject *run(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    (void)module;
    const Record *record = count == 3 ? (const Record *)PyBytes_AsString(arguments[0]) : NULL;
    if (!record || record->parameters > PARAMETERS || PyList_Size(arguments[1]) != (Py_ssize_t)record->parameters)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "a record, its values and a stream are needed");
    const char *attributes = (const char *)(record + 1);
    const char *kinds = attributes + ATTRIBUTE_BYTES * (size_t)record->attributes;
    uint64_t values[PARAMETERS];
    void *pointers[PARAMETERS];
    for (unsigned i = 0; i < record->parameters; i++) {
        if (!convert(PyList_GetItem(arguments[1], i), kinds[i], &values[i])) return NULL;
        if (kinds[i] == 'A' && values[i] % ALIGNMENT) return PyLong_FromLong(MISALIGNED);
        pointers[i] = &values[i];
    }
    Handle stream = (Handle)(uintptr_t)PyLong_AsUnsignedLongLong(arguments[2]), context = NULL;
    if (PyErr_Occurred()) return NULL;
    const unsigned *size = record->size;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = record->current(&context);
    if (result == 0 && context != record->context)
        result = OTHER_CONTEXT;
    else if (result == 0 && record->attributes == 0)
        result = record->launch(record->function, size[0], size[1], size[2], size[3], size[4], size[5], size[6], stream,
                                pointers, NULL);
    else if (result == 0) {
        Configuration configuration = {.stream = stream, .attributes = attributes, .count = record->attributes};
        memcpy(configuration.size, size, sizeof configuration.size);
        result = record->launch_with(&configuration, record->function, pointers, NULL);
    }
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(result);
}

/* wait(record, stream): as run, for all that was launched on the stream. */
static PyObject *wait(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    (void)module;
    const Record *record = count == 2 ? (const Record *)PyBytes_AsString(arguments[0]) : NULL;
    if (!record) return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "a record and a stream are needed");
    Handle stream = (Handle)(uintptr_t)PyLong_AsUnsignedLongLong(arguments[1]), context = NULL;
    if (PyErr_Occurred()) return NULL;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = record->current(&context);
    if (result == 0) result = context == record->context ? record->synchronize(stream) : OTHER_CONTEXT;
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(result);
}

/* device(call, address): the GPU that an address lies on, or minus the driver's result; `call` is cuPointerGetAttribute. */
static PyObject *device(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    enum { DEVICE_ORDINAL = 9 };
    (void)module;
    if (count != 2) return PyErr_Format(PyExc_TypeError, "a call and an address are needed");
    int (*call)(void *value, int attribute, uint64_t address) =
        (int (*)(void *, int, uint64_t))(uintptr_t)PyLong_AsUnsignedLongLong(arguments[0]);
    uint64_t address = PyLong_AsUnsignedLongLong(arguments[1]);
    if (PyErr_Occurred()) return NULL;
    int index = 0, result = call(&index, DEVICE_ORDINAL, address);
    return PyLong_FromLong(result ? -result : index);
}

static PyMethodDef METHODS[] = {
    {"run", (PyCFunction)(void (*)(void))run, METH_FASTCALL, "run(record, values, stream): launches."},
    {"wait", (PyCFunction)(void (*)(void))wait, METH_FASTCALL, "wait(record, stream): waits for what was launched."},
    {"device", (PyCFunction)(void (*)(void))device, METH_FASTCALL, "device(call, address): the GPU of an address."},
    {NULL, NULL, 0, NULL},
};
static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_launcher", NULL, 0, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__launcher(void) { return PyModule_Create(&MODULE); }
