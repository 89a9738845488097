"""Bounds, alignment and initialisation: vector loads, masks, local arrays, parameters, outputs."""

import numpy as np

from lowbitvm.runtime import emulator
from tests.planted.table import Case, Data, plant, ptx, words


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def scale_data(rng: np.random.Generator) -> Data:
    x, bias = frozen(words(500, rng=rng)), frozen(words(500, rng=rng))
    return Data([x, bias, emulator.output(np.zeros(500, np.uint32)), 500], {2: x * 3 + bias})


BOTH = ("out_of_bounds_global load", "out_of_bounds_global load_bias", "out_of_bounds_global store")

# y = 3 x + bias, four words a thread; the last block has three threads without work.
SCALE = Case(
    "scale",
    ptx(
        "u64 x, u64 bias, u64 y, u32 n",
        """
    mad.lo.u32 %r1, cta, 64, tid; //@index
    shl.b32 %r1, %r1, 2;
    setp.lt.u32 %p1, %r1, n; //@mask
    @!%p1 bra END; //@branch
    mul.wide.u32 %d1, %r1, 4;
    add.s64 %d2, x, %d1;
    add.s64 %d3, bias, %d1; //@bias
    add.s64 %d4, y, %d1; //@target
    ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%d2]; //@load
    ld.global.nc.v4.u32 {%r6, %r7, %r8, %r9}, [%d3]; //@load_bias
    mad.lo.u32 %r2, %r2, 3, %r6; mad.lo.u32 %r3, %r3, 3, %r7; mad.lo.u32 %r4, %r4, 3, %r8;
    mad.lo.u32 %r5, %r5, 3, %r9; //@last
    st.global.v4.u32 [%d4], {%r2, %r3, %r4, %r5}; //@store
END:
""",
    ),
    grid=2,
    block=64,
    data=scale_data,
    plants=(
        plant("the mask of a vector is off by one", {"mask": "setp.le.u32 %p1, %r1, n;"}, *BOTH),
        plant("no mask at all", {"branch": ""}, *BOTH),
        plant(
            "a vector load that is not aligned",
            {"load": "ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%d2+8];"},
            "misaligned load",
            also=("out_of_bounds_global load", "undefined_store store"),
        ),
        plant(
            "a vector store that is not aligned",
            {"target": "add.s64 %d4, y, %d1; add.s64 %d4, %d4, -4;"},
            "misaligned store",
            also=("out_of_bounds_global store",),
        ),
        plant("two blocks write the same tile", {"index": "mov.u32 %r1, tid;"}, "race_global store store"),
        plant(
            "a store to an input",
            {"target": "add.s64 %d4, bias, %d1;"},
            "read_only store",
            also=("race_global load_bias store",),
        ),
        plant(
            "an output that is read",
            {"bias": "add.s64 %d3, y, %d1;"},
            "uninitialised_global load_bias",
            also=("undefined_store store",),
        ),
        plant(
            "an index that was never computed",
            {"index": ""},
            "undefined_address load",
            also=(
                "undefined_predicate branch",
                "undefined_address load_bias",
                "undefined_address store",
                "race_global store store",
            ),
        ),
        plant("a predicate that was never set", {"mask": ""}, "undefined_predicate branch", also=BOTH),
        plant(
            "a value that was never computed",
            {"load": "ld.global.v2.u32 {%r2, %r3}, [%d2]; ld.global.u32 %r4, [%d2+8];"},
            "undefined_store store",
        ),
        plant(
            "an offset in words where bytes are wanted",
            {"target": "mul.wide.u32 %d1, %r1, 16; add.s64 %d4, y, %d1;"},
            "out_of_bounds_global store",
        ),
        plant(
            "an offset that is negative before it is widened",
            {"target": "sub.u32 %r1, %r1, 4; mul.wide.u32 %d1, %r1, 4; add.s64 %d4, y, %d1;"},
            "out_of_bounds_global store",
        ),
    ),
)


def local_data(rng: np.random.Generator) -> Data:
    x = words(32, 8, rng=rng)
    return Data([x, emulator.output(np.zeros((32, 8), np.uint32))], {1: np.ascontiguousarray(x[:, ::-1])})


# Each thread reverses eight words through an array of its own.
LOCAL = Case(
    "local_array",
    ptx(
        "u64 x, u64 y",
        """
    .local .align 4 .b8 stack[32];
    mov.u64 %d1, stack;
    mul.wide.u32 %d2, tid, 32; add.s64 %d3, x, %d2; add.s64 %d4, y, %d2;
    mov.u32 %r1, 0;
    mov.u64 %d5, %d1;
FILL:
    ld.global.u32 %r2, [%d3]; //@load
    st.local.u32 [%d5], %r2; //@push
    add.s64 %d3, %d3, 4;
    add.s64 %d5, %d5, 4; //@grow
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 8; //@pushes
    @%p1 bra FILL;
    mov.u32 %r1, 0;
    add.s64 %d5, %d1, 28; //@top
DRAIN:
    ld.local.u32 %r2, [%d5]; //@pop
    st.global.u32 [%d4], %r2; //@store
    add.s64 %d4, %d4, 4;
    add.s64 %d5, %d5, -4;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 8; //@pops
    @%p1 bra DRAIN;
""",
    ),
    grid=1,
    block=32,
    data=local_data,
    plants=(
        plant(
            "one push too many",
            {"pushes": "setp.le.u32 %p1, %r1, 8;"},
            "out_of_bounds_local push",
            also=("out_of_bounds_global load",),
        ),
        plant(
            "one pop too many",
            {"pops": "setp.le.u32 %p1, %r1, 8;"},
            "out_of_bounds_local pop",
            also=("out_of_bounds_global store", "undefined_store store", "race_global store store"),
        ),
        plant(
            "one push too few",
            {"pushes": "setp.lt.u32 %p1, %r1, 7;"},
            "uninitialised_local pop",
            also=("undefined_store store",),
        ),
        plant(
            "a top that is one element too high",
            {"top": "add.s64 %d5, %d1, 32;"},
            "out_of_bounds_local pop",
            also=("undefined_store store",),
        ),
        plant(
            "elements of 4 bytes, 2 bytes apart",
            {"grow": "add.s64 %d5, %d5, 2;"},
            "misaligned push",
            also=("uninitialised_local pop", "undefined_store store"),
        ),
    ),
)


def dynamic_data(rng: np.random.Generator) -> Data:
    x = words(64, 4, rng=rng)
    return Data([x, emulator.output(np.zeros((64, 4), np.uint32))], {1: x[::-1]})


DYNAMIC = Case(
    "dynamic_shared",
    ptx(
        "u64 x, u64 y",
        """
    mov.u32 base, dynamic;
    mul.wide.u32 %d1, tid, 16; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    mad.lo.u32 %r1, tid, 16, base; //@slot
    xor.b32 %r2, tid, 63; mad.lo.u32 %r2, %r2, 16, base; //@reversed
    ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%d2];
    st.shared.v4.u32 [%r1], {%r3, %r4, %r5, %r6}; //@put
    bar.sync 0;
    ld.shared.v4.u32 {%r3, %r4, %r5, %r6}, [%r2]; //@get
    st.global.v4.u32 [%d3], {%r3, %r4, %r5, %r6}; //@store
""",
        variables=".extern .shared .align 16 .b8 dynamic[];",
    ),
    grid=1,
    block=64,
    data=dynamic_data,
    shared=1024,
    plants=(
        plant(
            "dynamic shared memory that is too small",
            {"slot": "mad.lo.u32 %r1, tid, 16, base; add.u32 %r1, %r1, 16;"},
            "out_of_bounds_shared put",
            also=("uninitialised_shared get", "undefined_store store"),
        ),
        plant(
            "a pitch that is not a multiple of the vector",
            {"slot": "mad.lo.u32 %r1, tid, 12, base;"},
            "misaligned put",
            also=("race_shared put put", "uninitialised_shared get", "undefined_store store"),
        ),
        plant(
            "a row that nothing wrote",
            {"put": "setp.ne.u32 %p1, tid, 5; @%p1 st.shared.v4.u32 [%r1], {%r3, %r4, %r5, %r6};"},
            "uninitialised_shared get",
            also=("undefined_store store",),
        ),
        plant(
            "a shared address without its base",
            {"reversed": "xor.b32 %r2, tid, 63; mul.lo.u32 %r2, %r2, 16;"},
            "out_of_bounds_shared get",
            also=("undefined_store store",),
        ),
    ),
)


def params_data(rng: np.random.Generator) -> Data:
    table = words(4, rng=rng)
    return Data([emulator.output(np.zeros(4, np.uint32)), table.tobytes()], {0: table[[2, 0, 3, 1]]})


PARAMS = Case(
    "parameters",
    """.version 8.0
.target sm_80
.address_size 64
.visible .entry kernel(.param .u64 y_param, .param .align 4 .b8 table_param[16])
{
    .reg .b32 %r<6>;
    .reg .b64 y;
    ld.param.u64 y, [y_param];
    ld.param.u32 %r0, [table_param];
    ld.param.u32 %r1, [table_param+4];
    ld.param.u32 %r2, [table_param+8];
    ld.param.u32 %r3, [table_param+12]; //@last
    st.global.u32 [y], %r2;
    st.global.u32 [y+4], %r0;
    st.global.u32 [y+8], %r3; //@store
    st.global.u32 [y+12], %r1; //@store_last
    ret; //@exit
}
""",
    grid=1,
    block=1,
    data=params_data,
    plants=(
        plant(
            "a parameter read beyond its end",
            {"last": "ld.param.u32 %r3, [table_param+16];"},
            "out_of_bounds_param last",
            also=("undefined_store store",),
        ),
        plant(
            "a store beyond a small output",
            {"store_last": "st.global.u32 [y+16], %r1;"},
            "out_of_bounds_global store_last",
        ),
    ),
)


def checked_data(rng: np.random.Generator) -> Data:
    indices = rng.integers(0, 40, 64).astype(np.uint32)
    x = words(40, rng=rng)
    return Data([x, indices, emulator.output(np.zeros(64, np.uint32)), 40], {2: x[indices]})


# A gather that traps at an index out of range, as bounds-checked builds do.
CHECKED = Case(
    "checked_gather",
    ptx(
        "u64 x, u64 indices, u64 y, u32 n",
        """
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, indices, %d1; add.s64 %d3, y, %d1;
    ld.global.u32 %r1, [%d2]; //@index
    setp.lt.u32 %p1, %r1, n; //@check
    @%p1 bra GOOD;
    trap; //@trap
GOOD:
    mul.wide.u32 %d4, %r1, 4; add.s64 %d4, x, %d4;
    ld.global.u32 %r2, [%d4]; //@load
    st.global.u32 [%d3], %r2;
""",
    ),
    grid=1,
    block=64,
    data=checked_data,
    plants=(
        plant(
            "indices of another table run into the trap",
            {"index": "ld.global.u32 %r1, [%d2]; add.u32 %r1, %r1, 40;"},
            "trap trap",
        ),
        plant("the check of an index is the wrong way round", {"check": "setp.ge.u32 %p1, %r1, n;"}, "trap trap"),
        plant(
            "an index beyond its check",
            {"check": "setp.le.u32 %p1, %r1, n; add.u32 %r1, %r1, 40;"},
            "out_of_bounds_global load",
            also=("trap trap",),
        ),
    ),
)


def reset_data(rng: np.random.Generator) -> Data:
    x = words(3, 64, rng=rng)
    return Data([x, np.zeros(2, np.uint32)], {1: np.array([x.sum(), x.max()])})


COUNTER = Case(
    "counter",
    ptx(
        "u64 x, u64 y",
        """
    mad.lo.u32 %r1, cta, 64, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d1, x, %d1;
    ld.global.u32 %r2, [%d1];
    //@reset
    red.global.add.u32 [y], %r2; //@add
    red.global.max.u32 [y+4], %r2; //@largest
""",
    ),
    grid=3,
    block=64,
    data=reset_data,
    plants=(
        plant(
            "a counter that every block resets",
            {"reset": "setp.eq.u32 %p1, tid, 0; @%p1 st.global.u32 [y], 0;"},
            "race_global reset add",
            "race_global reset reset",
        ),
        plant(
            "a counter read beside atomics of other warps",
            {"reset": "ld.global.u32 %r3, [y];"},
            "race_global reset add",
        ),
        plant(
            "a maximum by comparing and storing",
            {"largest": "ld.global.u32 %r3, [y+4]; max.u32 %r3, %r3, %r2; st.global.u32 [y+4], %r3;"},
            "race_global largest largest",
        ),
        plant("an atomic that is not aligned", {"largest": "red.global.max.u32 [y+2], %r2;"}, "misaligned largest"),
    ),
)


def accumulated_data(rng: np.random.Generator) -> Data:
    x = words(2, 64, rng=rng)
    return Data([x, emulator.output(np.zeros((2, 64), np.uint32))], {1: x[:, ::-1] + x})


# An output that the kernel zeroes itself before it adds to it.
ACCUMULATE = Case(
    "accumulate",
    ptx(
        "u64 x, u64 y",
        """
    mad.lo.u32 %r1, cta, 64, tid; mul.wide.u32 %d1, %r1, 4; add.s64 %d2, x, %d1; add.s64 %d3, y, %d1;
    xor.b32 %r2, %r1, 63; mul.wide.u32 %d4, %r2, 4; add.s64 %d4, y, %d4;
    ld.global.u32 %r3, [%d2];
    st.global.u32 [%d3], 0; //@zero
    bar.sync 0; //@zeroed
    red.global.add.u32 [%d4], %r3; //@add
    red.global.add.u32 [%d3], %r3; //@add_own
""",
    ),
    grid=2,
    block=64,
    data=accumulated_data,
    plants=(
        plant(
            "an output that nothing zeroed is added to",
            {"zero": ""},
            "uninitialised_global add",
            also=("uninitialised_global add_own",),
        ),
        plant(
            "an output is zeroed without a barrier before the additions",
            {"zeroed": ""},
            "race_global zero add",
            also=("uninitialised_global add",),
        ),
    ),
)


def unpacked_data(rng: np.random.Generator) -> Data:
    x = rng.integers(0, 1 << 32, 32, dtype=np.uint32)
    return Data(
        [x, emulator.output(np.zeros((32, 8), np.uint32))], {1: x[:, None] >> np.arange(0, 32, 4, np.uint32) & 15}
    )


# Eight codes of 4 bits from each word. PTX defines shifts by 32 and more, so they are looked for on request alone.
UNPACK = Case(
    "unpack",
    ptx(
        "u64 x, u64 y",
        """
    mul.wide.u32 %d1, tid, 4; add.s64 %d2, x, %d1; mul.wide.u32 %d3, tid, 32; add.s64 %d3, y, %d3;
    ld.global.u32 %r1, [%d2];
    mov.u32 %r2, 0; //@first
LOOP:
    shr.u32 %r3, %r1, %r2; //@shift
    and.b32 %r3, %r3, 15;
    st.global.u32 [%d3], %r3;
    add.s64 %d3, %d3, 4;
    add.u32 %r2, %r2, 4;
    setp.lt.u32 %p1, %r2, 32;
    @%p1 bra LOOP;
""",
    ),
    grid=1,
    block=32,
    data=unpacked_data,
    checks=frozenset({"shift"}),
    plants=(
        plant(
            "a shift by all bits of a word",
            {"first": "mov.u32 %r2, 4; setp.eq.u32 %p1, tid, 9; @%p1 mov.u32 %r2, 32;"},
            "shift_out_of_range shift",
        ),
    ),
)

CASES = (SCALE, LOCAL, DYNAMIC, PARAMS, CHECKED, COUNTER, ACCUMULATE, UNPACK)
