"""`lowbitvm emulate` as a user calls it, with files made by numpy."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lowbitvm.cli import main

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
# y = a * x + y over n elements
SAXPY = """.visible .entry saxpy(.param .u64 x, .param .u64 y, .param .f32 a, .param .u32 n)
{
    .reg .pred %p; .reg .f32 %f<4>; .reg .b32 %r<6>; .reg .b64 %d<6>;
    ld.param.u64 %d1, [x]; ld.param.u64 %d2, [y]; ld.param.f32 %f1, [a]; ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.u32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p, %r5, %r1;
    @%p bra DONE;
    mul.wide.u32 %d3, %r5, 4; add.s64 %d1, %d1, %d3; add.s64 %d2, %d2, %d3;
    ld.global.f32 %f2, [%d1];
    ld.global.f32 %f3, [%d2];
    fma.rn.f32 %f3, %f1, %f2, %f3;
    st.global.f32 [%d2], %f3;
DONE:
    ret;
}
"""
# y = x[tid] for the 32 threads of a block
COPY = """.visible .entry copy(.param .u64 x, .param .u64 y)
{
    .reg .b32 %r<4>; .reg .b64 %d<6>;
    ld.param.u64 %d1, [x]; ld.param.u64 %d2, [y]; mov.u32 %r1, %tid.x; mul.wide.u32 %d3, %r1, 4;
    add.s64 %d1, %d1, %d3; add.s64 %d2, %d2, %d3; ld.global.u32 %r2, [%d1];
    st.global.u32 [%d2], %r2;
    ret;
}
"""


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "saxpy.ptx").write_text(HEADER + SAXPY)
    (tmp_path / "copy.ptx").write_text(HEADER + COPY)
    (tmp_path / "both.ptx").write_text(HEADER + SAXPY + COPY)
    np.save("x.npy", np.arange(100, dtype=np.float32))
    np.save("y.npy", np.ones(100, np.float32))
    return tmp_path


def emulate(*words: str) -> Result:
    return CliRunner().invoke(main, ["emulate", *words])


def saxpy(*args: str, options: tuple[str, ...] = (), grid: str = "4,1,1") -> Result:
    given = [word for arg in args for word in ("--arg", arg)]
    return emulate("saxpy.ptx", "--grid", grid, "--block", "32,1,1", *given, *options)


def copy(*args: str, options: tuple[str, ...] = ()) -> Result:
    given = [word for arg in args for word in ("--arg", arg)]
    return emulate("copy.ptx", "--grid", "1", "--block", "32", *given, *options)


def test_an_array_in_and_out_is_updated_and_the_input_kept(directory) -> None:
    result = saxpy("x.npy", "out=y.npy", "0.5", "100", options=("--entry", "saxpy", "--arch", "sm_80"))
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load("y.npy"), np.arange(100, dtype=np.float32) / 2 + 1)
    np.testing.assert_array_equal(np.load("x.npy"), np.arange(100, dtype=np.float32))
    assert "warp instructions" in result.output and "no findings" in result.output
    assert sorted(path.name for path in directory.iterdir()) == [
        "both.ptx", "copy.ptx", "saxpy.ptx", "x.npy", "y.npy",
    ]  # fmt: skip


def test_a_new_output_gets_its_type_and_shape_from_the_argument() -> None:
    assert copy("x.npy", "out=z.npy:f32[4,8]").exit_code == 0
    z = np.load("z.npy")
    assert (z.dtype, z.shape) == (np.float32, (4, 8))
    np.testing.assert_array_equal(z.ravel(), np.arange(32))


def test_a_new_output_replaces_an_older_file_of_another_shape() -> None:
    np.save("z.npy", np.zeros(3, np.int64))
    assert copy("x.npy", "out=z.npy:f32[32]").exit_code == 0
    np.testing.assert_array_equal(np.load("z.npy"), np.arange(32, dtype=np.float32))


def test_a_new_output_has_no_contents_to_read() -> None:
    result = saxpy("x.npy", "out=z.npy:f32[100]", "0.5", "100")
    line = 1 + (HEADER + SAXPY).splitlines().index("    ld.global.f32 %f3, [%d2];")
    assert result.exit_code == 1
    assert "uninitialised_global" in result.output and f"line {line}," in result.output


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("f16", "f2"), ("bf16", "u2"), ("b8", "u1"), ("s64", "i8"), ("float32", "f4"), ("i8", "i1")],
)
def test_output_types_are_named_as_in_ptx_or_numpy(name: str, dtype: str) -> None:
    size = 128 // np.dtype(dtype).itemsize
    assert copy("x.npy", f"out=z.npy:{name}[{size}]").exit_code == 0
    assert np.load("z.npy").dtype == dtype


def test_a_file_named_twice_is_one_array() -> None:
    assert saxpy("y.npy", "out=y.npy", "1.0", "100").exit_code == 0
    np.testing.assert_array_equal(np.load("y.npy"), np.full(100, 2, np.float32))
    assert saxpy("out=./y.npy", "y.npy", "1.0", "100").exit_code == 0
    np.testing.assert_array_equal(np.load("y.npy"), np.full(100, 4, np.float32))


def test_zeros_are_a_buffer_that_is_kept_nowhere(directory) -> None:
    before = sorted(directory.iterdir())
    assert saxpy("x.npy", "zeros:f32[10,10]", "1", "0x64").exit_code == 0
    assert sorted(directory.iterdir()) == before


def test_an_input_that_the_kernel_changes_is_kept_and_said_so() -> None:
    result = saxpy("x.npy", "y.npy", "1", "100")
    assert result.exit_code == 0
    assert "the kernel wrote to argument 1; y.npy stays as it is" in result.output
    np.testing.assert_array_equal(np.load("y.npy"), np.ones(100, np.float32))


def test_arrays_in_fortran_order_and_without_dimensions_keep_their_shape() -> None:
    np.save("x.npy", np.asfortranarray(np.arange(32, dtype=np.float32).reshape(4, 8)))
    assert copy("x.npy", "out=z.npy:f32[32]").exit_code == 0
    np.testing.assert_array_equal(np.load("z.npy"), np.arange(32, dtype=np.float32))
    np.save("s.npy", np.array(3.0, np.float32))
    assert saxpy("x.npy", "out=s.npy", "1", "1", grid="1").exit_code == 0
    assert np.load("s.npy").shape == ()


def test_structs_are_given_in_hexadecimal() -> None:
    text = """.visible .entry k(.param .align 4 .b8 s[8], .param .u64 y)
{ .reg .b32 %r<3>; .reg .b64 %d; ld.param.u64 %d, [y]; ld.param.u32 %r1, [s+4]; st.global.u32 [%d], %r1; ret; }"""
    Path("k.ptx").write_text(HEADER + text)
    words = ("k.ptx", "--grid", "1", "--block", "1", "--arg", "out=z.npy:u32[1]")
    assert emulate(*words[:5], "--arg", "hex:00000000d2040000", "--arg", "out=z.npy:u32[1]").exit_code == 0
    assert np.load("z.npy").tolist() == [1234]
    short = emulate(*words[:5], "--arg", "hex:0000", "--arg", "out=z.npy:u32[1]")
    assert short.exit_code == 2 and "argument 0 has 2 bytes, s 8" in short.output


def test_a_struct_has_arrays_addresses_at_its_offsets(directory) -> None:
    text = """.visible .entry k(.param .align 8 .b8 s[24])
{ .reg .b32 %r<3>; .reg .b64 %d<3>; ld.param.u64 %d1, [s+8]; ld.param.u64 %d2, [s+16]; ld.param.u32 %r1, [s];
  ld.global.u32 %r2, [%d1]; add.u32 %r2, %r2, %r1; st.global.u32 [%d2], %r2; ret; }"""
    (directory / "k.ptx").write_text(HEADER + text)
    (directory / "s.bin").write_bytes(bytes([4, 0, 0, 0]) + bytes(20))
    np.save("n.npy", np.array([30], np.uint32))
    words = ("k.ptx", "--grid", "1", "--block", "1", "--arg")
    assert emulate(*words, "s.bin@8=n.npy@0x10=out=z.npy:u32[1]").exit_code == 0
    assert np.load("z.npy").tolist() == [34]
    assert emulate(*words, "hex:05" + "00" * 23 + "@8=n.npy@16=out=z.npy").exit_code == 0
    assert np.load("z.npy").tolist() == [35]
    kept = emulate(*words, "s.bin@8=n.npy@16=n.npy")
    assert kept.exit_code == 0 and "the kernel wrote to argument 0 at byte 8; n.npy stays as it is" in kept.output


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("s.bin@8=17", "'8=17' places no array"),
        ("s.bin@=x.npy", "'=x.npy' places no array"),
        ("s.bin@8", "'8' places no array"),
        ("s.bin@3=x.npy", "byte 3 of a struct of 8 bytes"),
        ("t.bin@8=x.npy", "t.bin cannot be read"),
        ("hex:0g@8=x.npy", "two hexadecimal digits"),
    ],
)
def test_a_struct_that_is_not_one_is_refused(directory, argument: str, problem: str) -> None:
    (directory / "s.bin").write_bytes(bytes(8))
    result = copy(argument, "zeros:u32[32]")
    assert result.exit_code == 2 and problem in result.output


def test_findings_stop_the_launch_and_leave_every_file() -> None:
    result = saxpy("x.npy", "out=y.npy", "1", "101")
    assert result.exit_code == 1
    assert "out_of_bounds_global" in result.output and "no output was written" in result.output
    np.testing.assert_array_equal(np.load("y.npy"), np.ones(100, np.float32))


def test_collected_findings_let_the_launch_end_and_write_its_outputs() -> None:
    result = saxpy("x.npy", "out=y.npy", "1", "101", options=("--on-finding", "collect"))
    assert result.exit_code == 1
    assert "3 findings" in result.output
    np.testing.assert_array_equal(np.load("y.npy"), np.arange(100, dtype=np.float32) + 1)


def test_reports_are_written_with_and_without_findings() -> None:
    for n, status in (("100", 0), ("101", 1)):
        files = ("--report", "report.html", "--json", "report.json")
        assert saxpy("x.npy", "y.npy", "1", n, options=files).exit_code == status
        data = json.loads(Path("report.json").read_text())
        assert data["launch"]["entry"] == "saxpy" and bool(data["findings"]) == bool(status)
        assert "<title>saxpy on sm_80</title>" in Path("report.html").read_text()


def test_the_json_goes_to_the_terminal_alone() -> None:
    result = saxpy("x.npy", "out=y.npy", "1", "100", options=("--json", "-"))
    assert json.loads(result.stdout)["findings"] == []


def test_quiet_prints_findings_only() -> None:
    assert saxpy("x.npy", "out=y.npy", "1", "100", options=("-q",)).output == ""
    assert saxpy("x.npy", "out=y.npy", "1", "101", options=("-q",)).output.count("\n") == 1


def test_checks_can_be_left_out() -> None:
    words = ("x.npy", "out=z.npy:f32[100]", "0.5", "100")
    assert saxpy(*words, options=("--checks", "race,copy")).exit_code == 0
    assert saxpy(*words, options=("--checks", "none")).exit_code == 0
    assert saxpy(*words, options=("--checks", "uninitialised,race")).exit_code == 1
    refused = saxpy(*words, options=("--checks", "races"))
    assert refused.exit_code == 2 and "there is no check races; use all, none or race, uninitialised" in refused.output


def test_what_decides_a_run_can_be_chosen() -> None:
    chosen = {"--schedule": "adversarial", "--copies": "early", "--numerics": "permute", "--seed": "7"}
    words = [word for pair in chosen.items() for word in pair]
    result = saxpy(
        "x.npy", "out=y.npy", "1", "100", options=(*words, "--workers", "1", "--shared", "64", "--json", "-")
    )
    assert result.exit_code == 0
    launch = json.loads(result.stdout)["launch"]
    assert launch["options"] == {"schedule": "adversarial", "copies": "early", "numerics": "permute", "seed": 7}
    assert (launch["shared"], launch["grid"], launch["block"]) == (64, [4, 1, 1], [32, 1, 1])


def test_an_argument_may_begin_with_a_minus() -> None:
    assert saxpy("x.npy", "out=y.npy", "-1", "100").exit_code == 0
    np.testing.assert_array_equal(np.load("y.npy"), 1 - np.arange(100, dtype=np.float32))


def test_the_only_kernel_is_found_and_one_of_several_must_be_named() -> None:
    words = ("--grid", "1", "--block", "32", "--arg", "x.npy", "--arg", "out=z.npy:f32[32]")
    unnamed = emulate("both.ptx", *words)
    assert unnamed.exit_code == 2 and "--entry: saxpy, copy" in unnamed.output
    unknown = emulate("both.ptx", "--entry", "other", *words)
    assert unknown.exit_code == 2 and "no kernel 'other'" in unknown.output and "saxpy, copy" in unknown.output
    assert emulate("both.ptx", "--entry", "copy", *words).exit_code == 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere.npy", "cannot be read as a numpy file"),
        ("saxpy.ptx", "this is no argument"),
        ("out=new.npy", "say what to make, like out=new.npy:f16[16,4096]"),
        ("out=new.bin:f16[4]", "an output is a numpy file"),
        ("out=new.npy:f99[4]", "there is no type f99"),
        ("out=new.npy:f16", "an output is a numpy file"),
        ("out=no/new.npy:f16[4]", "there is no directory no"),
        ("zeros:f32", "write it like f16[16,4096]"),
        ("zeros:u8[9999999999999999]", "the array cannot be made"),
        ("zeros:u8[99999999999999999999]", "the array cannot be made"),
        ("hex:0g", "two hexadecimal digits per byte"),
        ("12", "argument 0 is 12"),
    ],
)
def test_what_is_no_argument_is_refused_with_the_form_that_would_be_one(argument: str, message: str, directory) -> None:
    result = copy(argument, "out=y.npy")
    if message != "argument 0 is 12":  # a number is a fine address, until it is used
        assert result.exit_code == 2 and message in result.output
    else:
        assert result.exit_code == 1 and "out_of_bounds_global" in result.output
    assert "Traceback" not in result.output
    np.testing.assert_array_equal(np.load("y.npy"), np.ones(100, np.float32))


def test_a_file_that_is_an_input_cannot_be_a_new_output_as_well() -> None:
    assert copy("x.npy", "out=x.npy:f32[32]").exit_code == 2
    assert copy("out=z.npy:f32[32]", "z.npy").exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("x.npy", "out=y.npy", "1"), "saxpy takes 4 arguments, not 3"),
        (("x.npy", "out=y.npy", "1", "1.5"), "argument 3 is 1.5, parameter n is a .u32"),
        (("x.npy", "out=y.npy", "1", "4294967296"), "argument 3 is 4294967296"),
        (("x.npy", "out=y.npy", "x.npy", "1"), "argument 2 is an array"),
        (("x.npy", "out=y.npy", "1e39", "1"), "argument 2 is 1e+39"),
    ],
)
def test_arguments_that_do_not_fit_the_kernel_are_refused(words: tuple[str, ...], message: str) -> None:
    result = saxpy(*words)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("grid", ["0", "1,2,3,4", "x", "1,-1"])
def test_a_grid_is_one_to_three_positive_numbers(grid: str) -> None:
    result = saxpy("x.npy", "out=y.npy", "1", "100", grid=grid)
    assert result.exit_code == 2 and "such as 4,1,1" in result.output


def test_ptx_that_cannot_run_is_refused_with_its_place(directory) -> None:
    (directory / "copy.ptx").write_text(HEADER + COPY.replace("ld.global", "ld.nowhere"))
    result = copy("x.npy", "out=y.npy")
    assert result.exit_code == 2
    assert "copy.ptx:8:" in result.output and "ld.nowhere.u32" in result.output
    (directory / "copy.ptx").write_bytes(b"\xff\xfe\x00")
    assert copy("x.npy", "out=y.npy").exit_code == 2
    assert emulate("missing.ptx", "--grid", "1", "--block", "1").exit_code == 2


def test_what_the_kernel_prints_comes_first_and_stands_escaped_on_the_page(directory) -> None:
    letters = ", ".join(str(byte) for byte in b"<b>%d\n\0")
    text = f""".extern .func (.param .b32 result) vprintf(.param .b64 a, .param .b64 b);
.global .b8 form[] = {{{letters}}};
.visible .entry k()
{{
    .reg .b32 %r<3>; .reg .b64 %d<5>; .local .align 8 .b8 values[8];
    mov.u64 %d1, form; cvta.global.u64 %d1, %d1; mov.u64 %d2, values; cvta.local.u64 %d3, %d2;
    mov.u32 %r1, 42; st.local.u32 [%d2], %r1;
    {{ .param .b64 a; .param .b64 b; .param .b32 result;
    st.param.b64 [a], %d1; st.param.b64 [b], %d3; call (result), vprintf, (a, b); }}
    ret;
}}
"""
    (directory / "k.ptx").write_text(HEADER + text)
    result = emulate("k.ptx", "--grid", "1", "--block", "1", "--report", "report.html")
    assert result.exit_code == 0 and result.output.startswith("<b>42\n"), result.output
    assert "<pre>&lt;b&gt;42\n</pre>" in Path("report.html").read_text()
    assert emulate("k.ptx", "--grid", "1", "--block", "1", "-q").output == ""


def test_the_command_needs_no_torch(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert copy("x.npy", "out=z.npy:f32[32]").exit_code == 0


def test_the_help_explains_every_form_of_an_argument() -> None:
    output = emulate("--help").output
    for form in ("hex:00ff10", "x.npy", "out=y.npy:f16[16,4096]", "zeros:f32[1024]", "Exit status"):
        assert form in output
