"""What a launch passes to a kernel: addresses inside arrays and inside structs."""

import numpy as np
import pytest

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import emulator

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
# out[thread] = in[thread] + added, the parameters in one struct {in, added, out}
ADD = f"""{HEADER}.visible .entry k(.param .align 8 .b8 s[24])
{{
    .reg .b32 %r<4>; .reg .b64 %d<6>;
    ld.param.u64 %d1, [s]; ld.param.u32 %r1, [s+8]; ld.param.u64 %d2, [s+16];
    mov.u32 %r2, %tid.x; mul.wide.u32 %d3, %r2, 4; add.s64 %d1, %d1, %d3; add.s64 %d2, %d2, %d3;
    ld.global.u32 %r3, [%d1];
    add.u32 %r3, %r3, %r1;
    st.global.u32 [%d2], %r3;
    ret;
}}
"""
LAYOUT = np.dtype([("source", "u8"), ("added", "u4"), ("spare", "u4"), ("target", "u8")])


def template(added: int) -> np.void:
    value = np.zeros((), LAYOUT)
    value["added"] = added
    return value[()]


def test_addresses_are_written_into_a_struct_by_offset() -> None:
    x, y = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    data = bytes(8) + (7).to_bytes(4, "little") + bytes(12)
    argument = emulator.struct(data, {0: x, 16: emulator.output(y)})
    report = emulator.load(ADD).launch("k", (1,), (32,), [argument])
    np.testing.assert_array_equal(y, x + 7)
    arrays = report.counters.arrays
    assert {key: (array.name, array.read, array.written) for key, array in arrays.items()} == {
        (0, 0): ("s+0", 128, 0),
        (0, 16): ("s+16", 0, 128),
    }
    assert '"argument": 0, "offset": 16, "read": 0' in report.to_json()
    assert "0 s+16" in report.to_html()


def test_addresses_are_written_into_a_struct_by_the_fields_of_its_type() -> None:
    x, y = np.arange(64, dtype=np.uint32), np.zeros(32, np.uint32)
    pointers = {"source": emulator.pointer(x, 4 * 20), "target": y}
    emulator.load(ADD).launch("k", (1,), (32,), [emulator.struct(template(5), pointers)])
    np.testing.assert_array_equal(y, x[20:52] + 5)


def test_an_array_in_a_struct_and_beside_it_is_one_buffer() -> None:
    text = ADD.replace("s[24])", "s[24], .param .u64 p)")
    x, y = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    report = emulator.load(text).launch("k", (1,), (32,), [emulator.struct(template(1), {"source": x, "target": y}), x])
    assert list(report.counters.arrays) == [(0, 0), (0, 16)]


def test_findings_name_the_address_in_the_struct() -> None:
    module, x = emulator.load(ADD), np.arange(32, dtype=np.uint32)

    def finding(pointers: dict[int | str, object]) -> emulator.Finding:
        with pytest.raises(emulator.EmulatorError) as caught:
            module.launch("k", (1,), (32,), [emulator.struct(template(1), pointers)])
        return caught.value.finding

    late = finding({"source": emulator.pointer(x, 4), "target": np.zeros(32, np.uint32)})
    assert late.kind == "out_of_bounds_global" and "(argument 0, s.source, byte 128 of 128)" in late.message
    fresh = finding({"source": emulator.output(x), 16: np.zeros(32, np.uint32)})
    assert fresh.kind == "uninitialised_global" and "(argument 0, s.source, byte 0 of 128)" in fresh.message
    race = finding({"source": emulator.pointer(x, 0), 16: emulator.pointer(x, 4)})
    assert race.kind in ("race_global", "out_of_bounds_global") and "argument 0, s.source" in race.message


def test_a_pointer_into_an_array_is_an_argument_too() -> None:
    text = f"""{HEADER}.visible .entry k(.param .u64 p)
    {{ .reg .b32 %r; .reg .b64 %d; ld.param.u64 %d, [p]; ld.global.u32 %r, [%d-4]; st.global.u32 [%d], %r; ret; }}"""
    x = np.arange(8, dtype=np.uint32)
    report = emulator.load(text).launch("k", (1,), (1,), [emulator.pointer(x, 16)])
    assert x.tolist() == [0, 1, 2, 3, 3, 5, 6, 7]
    assert report.counters.arrays[0].size == 32


SUMS = f"""{HEADER}.visible .entry k(.param .u64 table, .param .u64 y)  // y[i] = sum over n of table[n][i]
{{
    .reg .pred %p; .reg .b32 %r<6>; .reg .b64 %d<6>;
    ld.param.u64 %d1, [table]; ld.param.u64 %d2, [y]; mov.u32 %r1, %tid.x; mul.wide.u32 %d3, %r1, 4;
    mov.u32 %r2, 0; mov.u32 %r3, 0;
NEXT:
    ld.global.u64 %d4, [%d1]; add.s64 %d4, %d4, %d3; ld.global.u32 %r4, [%d4]; add.u32 %r3, %r3, %r4;
    add.s64 %d1, %d1, 8; add.u32 %r2, %r2, 1; setp.lt.u32 %p, %r2, 3;
    @%p bra NEXT;
    add.s64 %d2, %d2, %d3; st.global.u32 [%d2], %r3;
    ret;
}}
"""


def test_a_table_of_addresses_lies_in_memory() -> None:
    x, y = np.arange(96, dtype=np.uint32).reshape(3, 32), np.zeros(32, np.uint32)
    rows = {8 * n: row for n, row in enumerate(x)}
    module = emulator.load(SUMS)
    report = module.launch("k", (1,), (32,), [emulator.pointer(emulator.struct(bytes(24), rows)), emulator.output(y)])
    np.testing.assert_array_equal(y, x.sum(0))
    assert [(key, array.read) for key, array in report.counters.arrays.items() if key != 1] == [
        ((0, 0), 128),
        ((0, 8), 128),
        ((0, 16), 128),
        (0, 32 * 24),
    ]
    with pytest.raises(emulator.EmulatorError) as short:
        module.launch("k", (1,), (32,), [emulator.pointer(emulator.struct(bytes(16), {0: x[0], 8: x[1]})), y])
    assert short.value.finding.kind == "out_of_bounds_global"
    tables = [emulator.pointer(emulator.struct(bytes(size), rows)) for size in (24, 128)]
    with pytest.raises(emulator.EmulatorError) as written:
        module.launch("k", (1,), (32,), tables)
    assert written.value.finding.kind == "read_only"


def test_an_overrun_of_a_module_variable_is_said_to_be_one() -> None:
    text = f"""{HEADER}.global .align 4 .u32 table[4];\n.visible .entry k()
    {{ .reg .b32 %r; .reg .b64 %d; mov.u64 %d, table; ld.global.u32 %r, [%d+16]; ret; }}"""
    with pytest.raises(emulator.EmulatorError, match=r"the variable table, byte 16 of 16"):
        emulator.load(text).launch("k", (1,), (1,), [])


X = np.zeros(8, np.uint32)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: emulator.pointer(X, 33), "byte 33 of an array of 32"),
        (lambda: emulator.pointer(X, -1), "byte -1 of an array of 32"),
        (lambda: emulator.pointer("x"), "a pointer is to a str"),
        (lambda: emulator.pointer(emulator.struct(bytes(16), {}), 17), "byte 17 of an array of 16"),
        (lambda: emulator.struct(bytes(24), {17: X}), "byte 17 of a struct of 24 bytes"),
        (lambda: emulator.struct(bytes(24), {-8: X}), "byte -8 of a struct of 24 bytes"),
        (lambda: emulator.struct(bytes(24), {0: X, 4: X}), "bytes 0 and 4 of a struct"),
        (lambda: emulator.struct(bytes(24), {"x": X}), "which has no named fields"),
        (lambda: emulator.struct(template(1), {"x": X}), "only source, added, spare, target"),
        (lambda: emulator.struct(template(1), {"added": X}), "the field added has 4 bytes"),
        (lambda: emulator.struct(template(1), {0: 17}), "a pointer is to a int"),
        (lambda: launch(emulator.struct(bytes(16), {0: X})), "argument 0 has 16 bytes, s 24"),
        (lambda: launch(emulator.struct(bytes(24), {0: X.reshape(2, 4).T})), "argument 0, s.0 is not contiguous"),
        (lambda: launch(emulator.pointer(X)), "argument 0 is an array, s a .b8"),
    ],
)
def test_what_does_not_fit_is_refused(make, problem: str) -> None:
    with pytest.raises(LowbitvmError, match=problem) as caught:
        make()
    assert caught.value.code == "ARGUMENT_INVALID"


def launch(argument: object) -> None:
    emulator.load(ADD).launch("k", (1,), (32,), [argument])


@pytest.mark.parametrize("shared", [-1, 227 * 1024 - 63, 1 << 50])
def test_more_shared_memory_than_any_gpu_has_is_refused(shared: int) -> None:
    text = f"{HEADER}.visible .entry k()\n{{ .shared .b8 own[64]; ret; }}\n"
    emulator.load(text).launch("k", (1,), (32,), [], shared=227 * 1024 - 64)
    with pytest.raises(LowbitvmError, match=r"ARGUMENT_INVALID.*use 232448 in all"):
        emulator.load(text).launch("k", (1,), (32,), [], shared=shared)
