"""The emulator's PTX front end: syntax, functions, variables, jump tables, .loc; what is malformed is refused.

`tests/ptx/features.ptx` has every construct; ptxas accepts it.
"""

import inspect
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import emulator
from lowbitvm.runtime.assemble import assemble
from lowbitvm.runtime.emulator.flow import reconvergence
from lowbitvm.runtime.emulator.operands import TOKEN, Reader
from lowbitvm.runtime.emulator.parse import parse

PTX = Path(__file__).parent / "ptx"
ROOT = Path(lb.__file__).parent.parent  # of it, .loc names files relatively
FEATURES = (PTX / "features.ptx").read_text()
HEADER = ".version 8.6\n.target sm_80\n.address_size 64\n"
REGISTERS = (
    ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>; .reg .f64 %fd<9>;\n"
    "ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd1, %r0, 8; add.u64 %rd0, %rd0, %rd1;\n"
)


def module(body: str, head: str = "") -> str:
    """A kernel k(out) whose thread t has the address of out[t], of 8 bytes, in %rd0, and t in %r0."""
    return f"{HEADER}{head}\n.visible .entry k(.param .u64 out)\n{{\n{REGISTERS}{body}\nret;\n}}\n"


def run(body: str, head: str = "", threads: int = 32) -> np.ndarray:
    """What the threads leave in out, where `body` stores at [%rd0]."""
    out = np.zeros(threads, np.uint64)
    emulator.load(module(body, head)).launch("k", (1,), (threads,), [out])
    return out


def problem(text: str) -> str:
    with pytest.raises(emulator.PtxError) as error:
        emulator.load(text)
    return error.value.problem


def refusal(text: str) -> emulator.PtxError | None:
    try:
        emulator.load(text)
    except emulator.PtxError as error:
        return error
    return None


def assembles(text: str) -> bool:
    try:
        assemble(text, "sm_80")
    except LowbitvmError as error:
        if error.code != "ASSEMBLER_FAILED":
            raise
        return False
    return True


# -- functions ---------------------------------------------------------------------------------------------------------

COLLATZ = """
.func (.reg .u32 r) half(.reg .u32 x) { shr.u32 r, x, 1; ret; }
.func (.reg .u32 r) next(.reg .u32 x)
{
    .reg .pred p;
    .reg .u32 t;
    and.b32 t, x, 1;
    setp.eq.u32 p, t, 0;
    @p bra EVEN;
    mad.lo.u32 r, x, 3, 1;
    ret;
EVEN:
    call (r), half, (x);
}
"""
STEPS = """
    add.u32 %r1, %r0, 1;
    mov.u32 %r2, 0;
AGAIN:
    setp.eq.u32 %p1, %r1, 1;
    @%p1 bra END;
    call (%r1), next, (%r1);
    add.u32 %r2, %r2, 1;
    bra AGAIN;
END:
    cvt.u64.u32 %rd2, %r2;
    st.global.u64 [%rd0], %rd2;
"""


def collatz(number: int) -> int:
    steps = 0
    while number != 1:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        steps += 1
    return steps


def test_diverged_lanes_call_functions_that_return_early():
    assert run(STEPS, COLLATZ).tolist() == [collatz(t + 1) for t in range(32)]


def test_a_call_under_a_predicate_leaves_the_other_lanes_alone():
    body = """
    setp.lt.u32 %p1, %r0, 5;
    mov.u32 %r1, 77;
    @!%p1 call (%r1), half, (%r0);
    cvt.u64.u32 %rd2, %r1;
    st.global.u64 [%rd0], %rd2;
    """
    assert run(body, COLLATZ).tolist() == [77 if t < 5 else t // 2 for t in range(32)]


INDIRECT = """
.func (.reg .u32 r) twice(.reg .u32 x) { add.u32 r, x, x; ret; }
.func (.reg .u32 r) square(.reg .u32 x) { mul.lo.u32 r, x, x; ret; }
.global .u64 functions[2] = {twice, square};
"""


@pytest.mark.parametrize(
    "declaration", ["L: .calltargets twice, square;", "L: .callprototype (.reg .u32 _) _ (.reg .u32 _);"]
)
def test_indirect_calls_reach_the_function_that_the_register_holds(declaration):
    body = f"""
    and.b32 %r1, %r0, 1;
    mul.wide.u32 %rd2, %r1, 8;
    mov.u64 %rd3, functions;
    add.u64 %rd3, %rd3, %rd2;
    ld.global.u64 %rd4, [%rd3];
    {declaration}
    call (%r2), %rd4, (%r0), L;
    cvt.u64.u32 %rd2, %r2;
    st.global.u64 [%rd0], %rd2;
    """
    assert run(body, INDIRECT).tolist() == [t * t if t % 2 else 2 * t for t in range(32)]


@pytest.mark.parametrize(
    ("head", "body", "what"),
    [
        (".func f(.reg .u32 x) { call f, (x, x); ret; }", "call f, (%r1);", "f has 1 arguments, the call 2"),
        (".func f();", "call f;", "the function f has no body here"),
        ("", "call f;", "the function f is not declared"),
        (".func f(.reg .u32 x) { ret; }", "call f, (%r1, %r2);", "f has 1 arguments, the call 2"),
        (".func (.reg .u32 x) f() { ret; }", "call f;", "f has 1 results, the call 0"),
        (".func f() { ret; }", "call %rd1, L;", "a call through %rd1 needs the list or the prototype of its targets"),
        (".func f() { ret; }", "L: .calltargets g; call %rd1, L;", "the function g is not defined"),
        (".func f() { ret; }", "call.wide f;", "the instruction call.wide is not implemented"),
        (".func f(.reg .u32 x) { ret; }\n.func f() { ret; }", "", "f was declared with other parameters"),
        (".func f() { ret; }\n.func f() { ret; }", "", "f is defined twice"),
        (".func k() { ret; }", "", "k is declared twice"),
    ],
)
def test_a_call_that_cannot_be_made_is_named_at_load(head, body, what):
    assert what in problem(module(body, head))


def test_calls_that_multiply_are_refused_rather_than_expanded():
    head = ".func f0() { membar.cta; ret; }\n"
    head += "\n".join(f".func f{n}() {{ call f{n - 1}; call f{n - 1}; ret; }}" for n in range(1, 30))
    assert "expand to more than" in problem(module("call f29;", head))
    chain = ".func f0() { ret; }\n" + "\n".join(f".func f{n}() {{ call f{n - 1}; ret; }}" for n in range(1, 2000))
    assert "deep" in problem(module("call f1999;", chain))


# -- recursion ---------------------------------------------------------------------------------------------------------

FIBONACCI = """
.func (.reg .u32 r) f(.reg .u32 x)
{
    .reg .u32 a, b;
    .reg .pred p;
    mov.u32 r, x;
    setp.lt.u32 p, x, 2;
    @p ret;
    sub.u32 a, x, 1;
    call (a), f, (a);
    sub.u32 b, x, 2;
    call (b), f, (b);
    add.u32 r, a, b;
}
"""
# Hofstadter's sequences: F(n) = n - M(F(n-1)), M(n) = n - F(M(n-1)).
HOFSTADTER = """
.func (.reg .u32 r) male(.reg .u32 x);
.func (.reg .u32 r) female(.reg .u32 x)
{
    .reg .pred p;
    mov.u32 r, 1;
    setp.eq.u32 p, x, 0;
    @p bra DONE;
    sub.u32 r, x, 1;
    call (r), female, (r);
    call (r), male, (r);
    sub.u32 r, x, r;
DONE:
    ret;
}
.func (.reg .u32 r) male(.reg .u32 x)
{
    .reg .pred p;
    mov.u32 r, 0;
    setp.ne.u32 p, x, 0;
    @p sub.u32 r, x, 1;
    @p call (r), male, (r);
    @p call (r), female, (r);
    @p sub.u32 r, x, r;
    ret;
}
"""
ACKERMANN = """
.func (.param .b32 r) f(.param .b32 m, .param .b64 n)
{
    .reg .b32 %r<4>;
    .reg .b64 %n;
    .reg .pred p;
    ld.param.b32 %r1, [m];
    ld.param.b64 %n, [n];
    cvt.u32.u64 %r2, %n;
    add.u32 %r3, %r2, 1;
    setp.eq.u32 p, %r1, 0;
    @p bra DONE;
    mov.b64 %n, 1;
    setp.eq.u32 p, %r2, 0;
    @p bra OUTER;
    {
    .param .b32 one; .param .b64 two; .param .b32 result;
    sub.u32 %r2, %r2, 1;
    cvt.u64.u32 %n, %r2;
    st.param.b32 [one], %r1;
    st.param.b64 [two], %n;
    call.uni (result), f, (one, two);
    ld.param.b32 %r3, [result];
    }
    cvt.u64.u32 %n, %r3;
OUTER:
    sub.u32 %r1, %r1, 1;
    call.uni (%r3), f, (%r1, %n);
DONE:
    st.param.b32 [r], %r3;
    ret;
}
"""


def value_of(call: str) -> str:
    return f"{call} cvt.u64.u32 %rd2, %r1; st.global.u64 [%rd0], %rd2;"


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def female(n: int) -> int:
    return n - male(female(n - 1)) if n else 1


def male(n: int) -> int:
    return n - female(male(n - 1)) if n else 0


def ackermann(m: int, n: int) -> int:
    if m == 0:
        return n + 1
    return ackermann(m - 1, ackermann(m, n - 1) if n else 1)


def test_diverged_lanes_recurse_each_to_its_depth():
    body = "rem.u32 %r2, %r0, 13;" + value_of("call (%r1), f, (%r2);")
    assert run(body, FIBONACCI).tolist() == [fibonacci(t % 13) for t in range(32)]


def test_functions_that_call_each_other_recurse():
    body = value_of("call (%r1), female, (%r0); call (%r2), male, (%r0); mad.lo.u32 %r1, %r1, 1000, %r2;")
    assert run(body, HOFSTADTER).tolist() == [1000 * female(t) + male(t) for t in range(32)]


def test_what_recursive_calls_pass_in_param_variables_belongs_to_each_level():
    body = "and.b32 %r2, %r0, 1; shr.u32 %r3, %r0, 2; cvt.u64.u32 %rd1, %r3;" + value_of("call (%r1), f, (%r2, %rd1);")
    assert run(body, ACKERMANN, 16).tolist() == [ackermann(t % 2, t // 4) for t in range(16)]
    body = "mov.b32 %r2, 2; cvt.u64.u32 %rd1, %r0;" + value_of("call (%r1), f, (%r2, %rd1);")
    assert run(body, ACKERMANN, 5).tolist() == [ackermann(2, t) for t in range(5)]


def test_local_variables_of_each_level_of_a_recursion_are_its_own():
    head = """
    .func (.reg .u32 r) f(.reg .u32 x)
    {
        .local .b32 kept[2];
        .reg .u32 t;
        .reg .pred p;
        st.local.u32 [kept+4], x;
        mov.u32 r, 0;
        setp.eq.u32 p, x, 0;
        @!p sub.u32 t, x, 1;
        @!p call (r), f, (t);
        ld.local.u32 t, [kept+4];
        mad.lo.u32 r, r, 3, t;
        ret;
    }
    """

    def f(x: int) -> int:
        return 3 * f(x - 1) + x if x else 0

    assert run(value_of("rem.u32 %r1, %r0, 11; call (%r1), f, (%r1);"), head).tolist() == [f(t % 11) for t in range(32)]


def test_gaps_of_structures_may_be_passed_unwritten_to_recursive_functions():
    head = """
    .func (.param .align 8 .b8 r[16]) f(.param .align 8 .b8 x[16])
    {
        .reg .b32 n;
        .reg .b64 sum;
        .reg .pred p;
        ld.param.b32 n, [x];
        ld.param.b64 sum, [x+8];
        setp.eq.u32 p, n, 0;
        @p bra DONE;
        {
        .param .align 8 .b8 less[16]; .param .align 8 .b8 result[16];
        mad.wide.u32 sum, n, n, sum;
        sub.u32 n, n, 1;
        st.param.b32 [less], n;
        st.param.b64 [less+8], sum;
        call (result), f, (less);
        ld.param.b64 sum, [result+8];
        }
    DONE:
        st.param.b64 [r+8], sum;
        ret;
    }
    """
    body = """
    { .param .align 8 .b8 x[16]; .param .align 8 .b8 r[16];
    mov.b64 %rd2, 5;
    st.param.b32 [x], %r0;
    st.param.b64 [x+8], %rd2;
    call (r), f, (x);
    ld.param.b64 %rd2, [r+8]; }
    st.global.u64 [%rd0], %rd2;
    """
    assert run(body, head).tolist() == [5 + sum(n * n for n in range(t + 1)) for t in range(32)]


@pytest.mark.parametrize(
    "declaration", ["L: .calltargets even, odd;", "L: .callprototype (.reg .u32 _) _ (.reg .u32 _);"]
)
def test_functions_recurse_through_their_addresses(declaration):
    head = """
    .func (.reg .u32 r) odd(.reg .u32 x);
    .func (.reg .u32 r) even(.reg .u32 x)
    {
        .reg .u64 to;
        .reg .pred p;
        mov.u32 r, 1;
        setp.eq.u32 p, x, 0;
        @p ret;
        sub.u32 x, x, 1;
        mov.u64 to, odd;
        DECLARATION
        call (r), to, (x), L;
        ret;
    }
    .func (.reg .u32 r) odd(.reg .u32 x)
    {
        .reg .u64 to;
        .reg .pred p;
        mov.u32 r, 0;
        setp.ne.u32 p, x, 0;
        @!p ret;
        sub.u32 x, x, 1;
        mov.u64 to, even;
        DECLARATION
        call (r), to, (x), L;
        ret;
    }
    """.replace("DECLARATION", declaration)
    assert run(value_of("call (%r1), even, (%r0);"), head).tolist() == [1 - t % 2 for t in range(32)]


def test_recursion_within_recursion_and_from_two_places_is_each_its_own():
    head = (
        FIBONACCI
        + """
    .func (.reg .u32 r) g(.reg .u32 x)
    {
        .reg .u32 t;
        .reg .pred p;
        call (r), f, (x);
        setp.eq.u32 p, x, 0;
        @p ret;
        sub.u32 t, x, 1;
        call (t), g, (t);
        mad.lo.u32 r, t, 2, r;
        ret;
    }
    """
    )

    def g(x: int) -> int:
        return 2 * g(x - 1) + fibonacci(x) if x else 0

    body = "rem.u32 %r1, %r0, 7;" + value_of("call (%r2), g, (%r1); call (%r1), f, (%r1); add.u32 %r1, %r1, %r2;")
    assert run(body, head).tolist() == [g(t % 7) + fibonacci(t % 7) for t in range(32)]


def test_lanes_that_recursed_to_different_depths_meet_again_after_the_call():
    body = """
    rem.u32 %r1, %r0, 9;
    call (%r1), f, (%r1);
    shfl.sync.bfly.b32 %r1, %r1, 1, 31, -1;
    bar.sync 0;
    """
    expected = [fibonacci((t ^ 1) % 9) for t in range(32)]
    assert run(body + value_of(""), FIBONACCI).tolist() == expected


def test_a_recursion_deeper_than_its_copies_stops_the_kernel():
    head = """
    .func (.reg .u32 r) f(.reg .u32 x)
    {
        .reg .pred p;
        setp.eq.u32 p, x, 1;
        mov.u32 r, 1;
        @p ret;
        sub.u32 r, x, 1;
        call (r), f, (r);
        add.u32 r, r, 1;
        ret;
    }
    """
    body = value_of("add.u32 %r1, %r0, 33; call (%r1), f, (%r1);")
    assert run(body, head).tolist() == list(range(33, 65))
    report = emulator.load(module(body, head)).launch("k", (1,), (33,), [np.zeros(33, np.uint64)], on_finding="collect")
    assert [finding.kind for finding in report.findings] == ["trap"]
    assert "the recursion is deeper than the levels" in report.findings[0].message
    assert (report.findings[0].thread[0], report.findings[0].text.strip()) == (32, "call (r), f, (r);")


def test_a_recursion_that_never_ends_is_a_trap_not_a_hang():
    report = emulator.load(module("call f;", ".func f() { call f; ret; }")).launch(
        "k", (1,), (1,), [np.zeros(1, np.uint64)], on_finding="collect"
    )
    assert [finding.kind for finding in report.findings] == ["trap"]


# -- local memory, printf, assertions ----------------------------------------------------------------------------------


def test_every_construct_of_the_syntax_does_what_it_says():
    out = np.zeros((32, 16), np.uint32)
    structure = np.array([10, 32], np.uint32).tobytes()
    emulator.load(FEATURES).launch("features", (1,), (32,), [out, structure, 2.0], shared=16)
    tid = np.arange(32, dtype=np.uint32)
    later = np.where(tid > 10, np.uint32(2**32 - 1), 3 * tid + 1)
    powers = np.array([int(t).bit_count() == 1 for t in tid])
    expected = np.zeros((32, 16), np.uint32)
    expected[:, 0] = later
    expected[:, 1] = np.array([100, 101, 102, 103])[tid % 4]
    expected[:, 2] = 7 + (2 & 0o17)
    expected[:, 3] = 1 + 16
    expected[:, 4] = np.float32(6.0 * 2.0 + 1.5 + 1.25).view(np.uint32)
    expected[:, 5] = 32 - 10
    expected[:, 6] = np.where(tid < 8, 2, 1)
    expected[:, 7] = np.where(tid < 8, np.where(powers, 4 * tid, later), 7)
    expected[:, 8] = tid
    expected[:, 10] = 5 + 64 * tid
    np.testing.assert_array_equal(out, expected)


def test_the_text_with_every_construct_is_ptx():
    assert assembles(FEATURES)


PRINTS = """
.extern .func (.param .b32 func_retval0) vprintf(.param .b64 a, .param .b64 b);
.extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);
.global .b8 text[] = {FORM};
.global .b8 word[4] = {111, 110, 101, 0};
"""
PRINT = """
    .local .align 8 .b8 buffer[64];
    mov.u64 %rd2, text;
    cvta.global.u64 %rd2, %rd2;
    mov.u64 %rd3, buffer;
    cvta.local.u64 %rd4, %rd3;
    mov.u64 %rd5, word;
    cvta.global.u64 %rd5, %rd5;
    sub.s32 %r1, %r0, 1;
    st.local.u32 [%rd3], %r1;
    st.local.u64 [%rd3+8], %rd5;
    cvt.rn.f64.s32 %fd1, %r1;
    st.local.f64 [%rd3+16], %fd1;
    mov.u64 %rd6, -1;
    st.local.u64 [%rd3+24], %rd6;
    setp.lt.u32 %p1, %r0, 2;
    {
    .param .b64 param0;
    .param .b64 param1;
    .param .b32 retval0;
    st.param.b64 [param0], %rd2;
    st.param.b64 [param1], %rd4;
    @%p1 call (retval0), vprintf, (param0, param1);
    }
"""


@pytest.mark.parametrize(
    ("form", "first", "second"),  # of the arguments t - 1, "one", float(t - 1), -1 as 64 bits, in thread t
    [
        (
            "%5d|%-6s|%+.2f|%llx %%\n",
            "   -1|one   |-1.00|ffffffffffffffff %\n",
            "    0|one   |+0.00|ffffffffffffffff %\n",
        ),
        ("%i %.2s %e %llu", "-1 on -1.000000e+00 18446744073709551615", "0 on 0.000000e+00 18446744073709551615"),
        ("%08X %10s %G %lld", "FFFFFFFF        one -1 -1", "00000000        one 0 -1"),
        ("%hhd%c", "-1e", None),
        ("plain", "plain", "plain"),
        ("100%", "100%", "100%"),
        ("%q", "%q", "%q"),
    ],
)
def test_printf_prints_what_c_prints(form, first, second):
    codes = ", ".join(str(byte) for byte in form.encode() + b"\0")
    text = module(PRINT, PRINTS.replace("FORM", codes))
    if second is None:  # a character: the low byte of the second argument's address holds none, so give one
        text = text.replace("st.local.u64 [%rd3+8], %rd5;", "st.local.u32 [%rd3+4], 101;")
        text = text.replace("setp.lt.u32 %p1, %r0, 2;", "setp.lt.u32 %p1, %r0, 1;")
    report = emulator.load(text).launch("k", (2,), (32,), [np.zeros(32, np.uint64)])
    assert report.printed == 2 * [line for line in (first, second) if line is not None]


def test_what_blocks_print_does_not_depend_on_the_workers():
    text = module(PRINT.replace("sub.s32 %r1, %r0, 1;", "mov.u32 %r1, %ctaid.x;"), PRINTS.replace("FORM", "37, 100, 0"))
    for workers in (1, 2):
        report = emulator.load(text).launch("k", (50,), (1,), [np.zeros(1, np.uint64)], workers=workers)
        assert report.printed == [str(block) for block in range(50)]


def test_printing_from_nowhere_is_out_of_bounds():
    text = module(PRINT.replace("mov.u64 %rd2, text;", "mov.u64 %rd2, 64;"), PRINTS.replace("FORM", "0"))
    with pytest.raises(emulator.EmulatorError) as error:
        emulator.load(text).launch("k", (1,), (1,), [np.zeros(1, np.uint64)])
    assert error.value.finding.kind == "out_of_bounds_global"


def test_a_failed_assertion_is_a_finding_with_its_text():
    body = """
    mov.u64 %rd2, word;
    mov.u64 %rd3, text;
    setp.eq.u32 %p1, %r0, 3;
    { .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e;
    st.param.b64 [a], %rd2; st.param.b64 [b], %rd3; st.param.b32 [c], 42; st.param.b64 [d], %rd2; st.param.b64 [e], 1;
    @%p1 call __assertfail, (a, b, c, d, e); }
    """
    text = module(body, PRINTS.replace("FORM", "97, 46, 99, 117, 0"))
    with pytest.raises(emulator.EmulatorError) as error:
        emulator.load(text).launch("k", (1,), (32,), [np.zeros(32, np.uint64)])
    finding = error.value.finding
    assert (finding.kind, finding.thread) == ("trap", (3, 0, 0))
    assert finding.message == "a.cu:42: one: the assertion one fails"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("trap;", "the kernel stops itself"),
        ("brkpt;", "the kernel stops itself"),
        ("T: .branchtargets L; L: brx.idx %r0, T;", "the index of brx.idx is beyond its list"),
        ("L: .calltargets f; call %rd1, L;", "the register holds the address of none of the functions"),
    ],
)
def test_what_stops_a_kernel_is_a_trap(body, message):
    text = module(body, ".func f() { ret; }")
    report = emulator.load(text).launch("k", (1,), (33,), [np.zeros(33, np.uint64)], on_finding="collect")
    assert [finding.kind for finding in report.findings] == ["trap"]
    assert message in report.findings[0].message


STRUCTURE = """
.func (.param .align 8 .b8 func_retval0[16]) f(.param .b32 x)
{
    .reg .b32 %r<3>;
    ld.param.b32 %r1, [x];
    st.param.b32 [func_retval0], %r1;
    st.param.b32 [func_retval0+4], %r2;
    ret;
}
"""


def test_gaps_of_structures_may_be_passed_unwritten_but_not_used():
    body = """
    { .param .b32 x; .param .align 8 .b8 r[16];
    st.param.b32 [x], %r0;
    call (r), f, (x);
    ld.param.v2.b32 {%r1, %r2}, [r];
    ld.param.b64 %rd3, [r+8];
    ld.param.b64 %rd4, [r]; }
    cvt.u64.u32 %rd2, %r1;
    st.global.u64 [%rd0], %rd2;
    """
    assert run(body, STRUCTURE).tolist() == list(range(32))
    for use in ("st.global.u32 [%rd0], %r2;", "st.global.u64 [%rd0], %rd3;"):
        with pytest.raises(emulator.EmulatorError) as error:
            run(body + use, STRUCTURE)
        assert error.value.finding.kind == "undefined_store"


def test_local_variables_of_each_call_are_its_own():
    head = """
    .func (.reg .u32 r) f(.reg .u32 x)
    {
        .local .b32 kept[2];
        .reg .u32 t;
        st.local.u32 [kept], x;
        add.u32 t, x, 1;
        st.local.u32 [kept+4], t;
        ld.local.u32 r, kept[1];
        ret;
    }
    .func (.reg .u32 r) g(.reg .u32 x)
    {
        .local .b32 kept;
        st.local.u32 [kept], x;
        call (r), f, (x);
        call (r), f, (r);
        ld.local.u32 x, [kept];
        mad.lo.u32 r, r, 1000, x;
        ret;
    }
    """
    body = "call (%r1), g, (%r0); cvt.u64.u32 %rd2, %r1; st.global.u64 [%rd0], %rd2;"
    assert run(body, head).tolist() == [1000 * (t + 2) + t for t in range(32)]


# -- jump tables and flow ----------------------------------------------------------------------------------------------


def test_jump_tables_send_each_lane_to_its_label():
    body = """
T: .branchtargets L0, L1, L2, L1;
    and.b32 %r1, %r0, 3;
    brx.idx %r1, T;
L0: mov.u64 %rd2, 10; bra END;
L1: mov.u64 %rd2, 11; bra END;
L2: mov.u64 %rd2, 12;
END: st.global.u64 [%rd0], %rd2;
    """
    assert run(body).tolist() == [(10, 11, 12, 11)[t % 4] for t in range(32)]


graphs = st.integers(1, 9).flatmap(lambda n: st.lists(st.lists(st.integers(0, n), max_size=2), min_size=n, max_size=n))


@given(graphs)
def test_branches_join_at_the_first_instruction_that_all_paths_pass(targets):
    """The oracle removes one node at a time and looks whether the exit can still be reached."""
    n = len(targets)
    after = [sorted({i + 1, *more}) if len(more) < 2 else sorted(set(more)) for i, more in enumerate(targets)]
    branches = [i for i in range(n) if after[i] != [i + 1]]

    def reaches(start: int, removed: int) -> bool:
        seen, waiting = {removed}, [start]
        while waiting:
            node = waiting.pop()
            if node == n:
                return True
            if node not in seen:
                seen.add(node)
                waiting += after[node]
        return False

    found = reconvergence(after, branches)
    for branch in branches:
        if any(not reaches(node, -1) for node in range(n)):
            continue  # endless loops have their own test
        common = [d for d in range(n) if d != branch and not reaches(branch, d)]
        nearest = [d for d in common if all(other == d or not reaches(d, other) for other in common)]
        assert found[branch] == (nearest[0] if nearest else -1)


@pytest.mark.parametrize("guard", ["", "@%p1 ", "@!%p1 "])
def test_a_branch_may_lead_to_the_next_instruction(guard):
    body = f"setp.lt.u32 %p1, %r0, 7; {guard}bra NEXT; NEXT: st.global.u64 [%rd0], 5; {guard}bra END; END:"
    assert run(body).tolist() == [5] * 32


def test_lanes_of_an_endless_loop_meet_at_its_end():
    # 0: if; 1: then; 2: join; 3: bra 0
    assert reconvergence([[1, 2], [2], [3], [0]], [0, 3]) == {0: 2, 3: -1}


# -- variables ---------------------------------------------------------------------------------------------------------


def test_initial_values_fill_arrays_vectors_and_pointers():
    symbols = emulator.load(FEATURES).symbols
    assert symbols["table"].tolist() == [[1, 2, 0], [12, 2**32 - 1, 16]]
    assert symbols["coefficients"].tolist() == [[1.5, 2.0, 3.0, -4.0], [5.0, 6.0, 7.0, 8.0]]
    assert symbols["wide"].tolist() == 1.5
    assert symbols["text"].tobytes() == b"hi\0" and symbols["more"].tolist() == [0, 0]
    table, inside, function = symbols["pointers"].tolist()
    assert inside == table + 4 and function != 0
    assert symbols["bytes"].tolist() == [table & 255, table >> 8 & 255, table >> 32 & 255, 7]


def test_variables_are_read_and_written_between_launches():
    head = ".global .u64 count = 3;\n.const .u64 step = 10;"
    body = "ld.const.u64 %rd3, [step]; atom.global.add.u64 %rd2, [count], %rd3; st.global.u64 [%rd0], %rd2;"
    loaded, out = emulator.load(module(body, head)), np.zeros(1, np.uint64)
    for step, old in ((10, 3), (10, 13), (5, 23)):
        loaded.symbols["step"][...] = step
        loaded.launch("k", (1,), (1,), [out])
        assert out[0] == old and loaded.symbols["count"] == old + step
    loaded.symbols["count"][...] = 100
    loaded.launch("k", (1,), (1,), [out])
    assert out[0] == 100


def test_constant_memory_is_read_only_for_a_kernel():
    text = module("mov.u64 %rd2, step; st.global.u64 [%rd2], %rd0;", ".const .u64 step = 10;")
    with pytest.raises(emulator.EmulatorError) as error:
        emulator.load(text).launch("k", (1,), (1,), [np.zeros(1, np.uint64)])
    assert error.value.finding.kind == "read_only"


def test_a_kernel_pays_for_the_shared_variables_that_it_uses():
    head = ".shared .b8 large[40000];\n.shared .b8 other[40000];\n.func f() { .shared .b8 own[64]; ret; }"
    text = module("st.shared.u8 [large], 0; call f;", head)
    assert emulator.load(text).programs["k"].static_shared == 40064
    assert "80000 bytes of shared" in problem(module("st.shared.u8 [large], 0; st.shared.u8 [other], 0;", head))


# -- constant expressions ----------------------------------------------------------------------------------------------

OPERATORS = ("+", "-", "*", "&", "|", "^", "<<", ">>", "==", "!=", "<", ">", "<=", ">=")


def signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def binary(parts: tuple[tuple[str, int], str, tuple[str, int]]) -> tuple[str, int]:
    (a, x), operator, (b, y) = parts
    if operator in ("<<", ">>"):
        y, b = y & 31, f"(({b}) & 31)"
    return f"({a}) {operator} ({b})", signed(int(eval(f"x {operator} y", {"x": x, "y": y})))


def unary(parts: tuple[str, tuple[str, int]]) -> tuple[str, int]:
    operator, (a, x) = parts
    return f"{operator}({a})", signed(-x if operator == "-" else ~x)


expressions = st.recursive(
    st.integers(0, 2**31 - 1).map(lambda n: (str(n), n)),
    lambda inner: (
        st.tuples(inner, st.sampled_from(OPERATORS), inner).map(binary)
        | st.tuples(st.sampled_from("-~"), inner).map(unary)
    ),
    max_leaves=6,
)


@given(expressions)
def test_constant_expressions_are_those_of_64_bit_integers(expression):
    text, value = expression
    assert Reader(text, 0).whole() == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1<<3)+4", 12), ("1<<3+4", 128), ("-(3)", 2**64 - 3), ("~3", 2**64 - 4), ("!3", 0), ("!0", 1),
        ("(.s64)3", 3), ("3?4:5", 4), ("0?4:5", 5), ("WARP_SZ", 32), ("WARP_SZ - 1", 31), ("017", 15), ("+3", 3),
        ("0XFF", 255), ("0b101", 5), ("5U", 5), ("7 / 2", 3), ("-7 / 2", 2**64 - 3), ("-7 % 4", 2**64 - 3),
        ("0xFFFFFFFFFFFFFFFF / 2", 2**63 - 1), ("1 == 1 && 2 < 1 || 3 >= 3", 1), ("6 & 3 | 8 ^ 1", 11),
        ("(2 * (3 + 4)) >> 1", 7), ("-8 >> 1", 2**64 - 4), ("0xFFFFFFFFFFFFFFFF >> 60", 15), ("1.0 < 2.0", 1),
    ],
)  # fmt: skip
def test_constants_have_the_values_of_the_manual_and_ptxas_takes_them(text, value):
    body = f"mov.u64 %rd2, {text}; st.global.u64 [%rd0], %rd2;"
    assert run(body, threads=1)[0] == value
    assert assembles(module(body))


# -- spelling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "popc.b32%r1,%r0; cvt.u64.u32 %rd2,%r1;",
        "mov.b64 {%r1,%r2},%rd1; mov.b64 %rd2 , { %r1 , %r2 } ;",
        "mov.b64{%r1,_},%rd1; cvt.u64.u32 %rd2, %r1;",
        "{ .reg .b64 %rd<4>; mov.u64 %rd3, 5; } mov.u64 %rd2, %rd1;",
        "{ .reg .b32 %r5x, %r; mov.u32 %r5x, 5; mov.u32 %r, %r5x; } mov.u64 %rd2, %rd1;",
        "bra $L__1; $L__1: { bra $L__1; $L__1: } mov.u64 %rd2, %rd1;",
        "@ %p1 bra L; @! %p1 bra L; L: mov.u64 %rd2, %rd1;",
        "mov.u64 %rd2, /* a comment; with a semicolon } */ %rd1; // and another {",
        'mov.u64 %rd2, %rd1; .pragma "nounroll"; .pragma "a; }", "b";',
        "mov.u64 %rd2, sh+4; ld.shared.u32 %r1, sh[1]; ld.shared.u32 %r1, [sh+(4*2)];",
        "mov.pred %p1, 1; selp.b64 %rd2, 1, 2, %p1;",
        "selp.b64 %rd2, %rd1, 2, 1;",
        "add.f32 %f1, %f0, 1.; add.f32 %f1, %f1, .5; add.f32 %f1, %f1, 1e5; add.f32 %f1, %f1, -1.0; mov.u64 %rd2, 1;",
        "mov.b32 %r1, 0f3F800000; add.f64 %fd1, %fd0, 0f3F800000; mov.f32 %f1, 1e300; mov.u64 %rd2, 1;",
        ".loc 1 2 3\nmov.u64 %rd2, %rd1; .loc 1 5 6, function_name F, inlined_at 1 2 3",
        "mov.b32 %r1, 0x1FFFFFFFF; mov.b16 %h1, 70000; mov.u64 %rd2, 1;",
    ],
)
def test_spellings_that_ptxas_accepts_are_accepted(body):
    text = module(body + " st.global.u64 [%rd0], %rd2;", '.shared .align 4 .b32 sh[16];\n.file 1 "a.cu"')
    text += ".section .debug_str\n{\nF:\n.b8 1, 2\n}\n"
    emulator.load(text)
    assert assembles(text)


REJECTED = [
    ("mov.u32 %r1, 08;", "unexpected character '0'"),
    ("mov.u32 %r1, 0xFFu;", "unexpected character '0'"),
    ("mov.u32 %r1, 99999999999999999999999;", "does not fit 64 bits"),
    ("mov.f32 %f1, -0f3F800000;", "no sign stands before a 0f or 0d constant"),
    ("add.f32 %f1, %f2, 1;", "1 is no .f32"),
    ("mov.b32 %r1, 1.0;", "1.0 is no .b32"),
    ("mov.u32 %r1, 0f3F800000;", "1.0 is no .u32"),
    ("mov.b64 %rd2, 0f3F800000;", "1.0 is no .b64"),
    ("mov.u32 %r1, 1/0;", "divides by zero"),
    ("@1 bra L; L:", "expected an instruction, found '@'"),
    (".reg .b32 %r<3>;", "%r is declared twice"),
    (".reg .b32 %r5;", "%r5 is declared twice"),
    (".reg .b32 a; .reg .b32 a;", "a is declared twice"),
    (".reg .b32 a; .shared .b32 a;", "a is declared twice"),
    (".reg .nosuch a;", "registers of type .nosuch are not implemented"),
    ("L: L: ", "the label L is placed twice"),
    ("bra L; {L: }", "there is no label L"),
    ("bra NOSUCH;", "there is no label NOSUCH"),
    ("brx.idx %r1, NOSUCH;", "NOSUCH is no list of labels"),
    ("T: .branchtargets NOSUCH; brx.idx %r1, T;", "there is no label NOSUCH"),
    ("mov.u32 %r1, nosuch;", "the register nosuch is not declared"),
    ("mov.u32 %r10, 1;", "the register %r10 is not declared"),
    ("add.u32 %r1, sh, 1;", "add takes a register, not the address of sh"),
    ("ld.shared.u32 %r1, sh;", "expected an address in brackets"),
    ("ld.global.u32 %r1, [%rd1+%rd2];", "expected an operand, found '%rd2'"),
    ("ld.global.u32 %r1, [%rd1;", "expected ']', found 'end of text'"),
    ("ld.global.u32 %r1, %rd1];", "expected ',' or ';', found ']'"),
    ("mov.b64 {%r1, %r2, %rd1;", "expected ',', found 'end of text'"),
    ("popc.b32 %r1 , %r2 ;;", "expected an instruction, found ';'"),
    ("ret\nadd.u32 %r1, %r1, 1", "expected ',' or ';', found '%r1'"),
    ("mov.u32 %r1,1", "found 'ret'"),
    ("/* x", "the comment does not end"),
    ('.pragma "x;', "the string does not end"),
    (".shared .b32 q = 5;", "a .shared variable has no initial value"),
    ("nop;", "the instruction nop is not implemented"),
    ("mov.u32 %r1, é;", "unexpected character 'é'"),
    ("mov.u32 %r1, %r2", "the statement does not end"),
    ("}", "expected"),
    ("{", "the body of k does not end"),
]


@pytest.mark.parametrize(("body", "what"), REJECTED, ids=[body for body, _ in REJECTED])
def test_malformed_statements_are_refused_as_ptxas_refuses_them(body, what):
    tail = "" if body == "mov.u32 %r1, %r2" else "ret;\n}\n"
    text = module("", ".shared .align 4 .b32 sh[16];").removesuffix("\nret;\n}\n") + f"\n  {body}\n{tail}"
    found = problem(text)
    assert what in found or (body == "}" and "unexpected 'ret'" in found)
    assert not assembles(text)


HEADS = [
    (".global .b8 x[3] = {1, 2, 3, 4};", "4 initial values for 3 elements"),
    (".global .b8 x[2][3] = {1, 2, 3, 4};", "expected '{', found '1'"),
    (".global .v4 .f32 x = {1.0, 2.0};", "2 initial values for 4 elements"),
    (".global .u32 x = 1.0;", "1.0 is no .u32"),
    (".global .f32 x = 1;", "1 is no .f32"),
    (".global .u32 x[3] = {1, 2,};", "expected an operand, found '}'"),
    (".global .align 3 .u32 x;", "an alignment is a power of two, not 3"),
    (".global .u32 x[0];", "the array x has no elements"),
    (".global .u32 x[];", "the array x has no elements"),
    (".global .u32 x; .global .u32 x;", "x is declared twice"),
    (".global .u64 x = nosuch;", "nosuch is no variable in .global or .const"),
    (".shared .u32 s; .global .u64 x = s;", "s is no variable in .global or .const"),
    (".global .u16 y; .global .u16 x = y;", "an address does not fit a .u16"),
    (".global .pred x;", ".pred is not implemented in a variable's declaration"),
    (".extern .global .u32 x;", "x is defined in no module"),
    (".global x;", "the declaration has no type"),
    (".global .u32 x", "expected ';', found '.visible'"),
    (".alias f, g;", "f is no declared function"),
    ("x", "unexpected 'x' at the module's level"),
    (".nosuch", ".nosuch is not implemented at the module's level"),
    (".entry k(.param .u64 x) { ret; }", "k is defined twice"),
    (".entry j(.param .u32 a, .param .u32 a) { ret; }", "a is declared twice"),
    (".entry j() .maxntid { ret; }", ".maxntid takes 3 numbers, not 0"),
    (".section .debug_str { ", "the section does not end"),
]


@pytest.mark.parametrize(("head", "what"), HEADS, ids=[head for head, _ in HEADS])
def test_malformed_declarations_are_refused_as_ptxas_refuses_them(head, what):
    text = module("", head)
    if "section" in head:
        text = module("") + head
    assert what in problem(text)
    assert not assembles(text)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (".global .texref t;", ".texref variables are not implemented"),
        (".global .b8 x[99999999999];", "has 99999999999 bytes"),
        (".global .b8 x[2][9999999999] = {{1}};", "bytes and initial values"),
        (".global .b8 x[99999999999999];", "an array's extent is 99999999999999"),
        (f".global .u32 x = {'(' * 5000}1{')' * 5000};", "nested more than 60 deep"),
        (f".global .u32 x = {'-' * 5000}1;", "nested more than 60 deep"),
        (f".global .u32 x = {'9' * 5000};", "does not fit 64 bits"),
        (f".global .f32 x = {'9' * 5000}.0;", "more than 400 digits"),
        (".address_size 32", "only 64-bit addresses"),
    ],
    ids=range(9),
)
def test_what_is_too_large_or_not_implemented_is_named(head, what):
    assert what in problem(module("", head))


def test_an_error_names_line_column_and_text():
    with pytest.raises(emulator.PtxError) as error:
        emulator.load(module("mov.u32 %r1,\n   %r2 ? 3;"))
    line = module("").split("\n").index("ret;") + 1
    assert (error.value.line, error.value.column, error.value.text) == (line, 8, "   %r2 ? 3;")


def test_deeply_nested_blocks_are_no_problem():
    assert run("{" * 3000 + "mov.u64 %rd2, 9; st.global.u64 [%rd0], %rd2;" + "}" * 3000, threads=1)[0] == 9


def test_a_kernel_with_too_many_registers_is_refused():
    body = "\n".join(f"ld.global.v2.u64 {{%x{n}, %x{n + 1}}}, [%rd0];" for n in range(0, 33_000, 2))
    assert "register slots" in problem(module(f".reg .b64 %x<33000>;\n{body}"))


def test_a_kernel_that_must_be_launched_in_clusters_sees_that_it_is():
    text = module("mov.pred %p1, %is_explicit_cluster; selp.u64 %rd2, 5, 3, %p1; st.global.u64 [%rd0], %rd2;")
    text = text.replace(".target sm_80", ".target sm_90")
    for directive, value in ((".explicitcluster", 5), ("", 3)):
        out = np.zeros(40, np.uint64)
        emulator.load(text.replace("{\n", directive + "\n{\n", 1)).launch("k", (1,), (40,), [out])
        assert out.tolist() == [value] * 40


def test_kernels_that_ask_for_clusters_of_several_blocks_are_refused():
    text = module("").replace("{\n", ".reqnctapercluster {}\n{\n", 1).replace(".target sm_80", ".target sm_90")
    emulator.load(text.replace("{}", "1, 1, 1"))
    emulator.load(text.replace("{}", "1"))
    for size in ("2", "1, 2, 1", "0"):  # a launch has clusters of one block
        assert problem(text.replace("{}", size)) == "clusters of more than one block are not implemented"


def test_block_sizes_beyond_maxntid_are_refused():
    text = module("").replace("{\n", ".maxntid 64, 1, 1\n{\n", 1)
    emulator.load(text).launch("k", (1,), (64,), [np.zeros(1, np.uint64)])
    with pytest.raises(LowbitvmError, match="maxntid"):
        emulator.load(text).launch("k", (1,), (65,), [np.zeros(1, np.uint64)])


# -- .loc --------------------------------------------------------------------------------------------------------------


def test_a_finding_names_the_source_line_of_the_loc_before_it():
    body = ".loc 2 17 1\nst.global.u64 [%rd0], 1;\n.loc 1 18 1\nst.global.u64 [%rd0+8], 1;\n"
    text = module(body, '.file 1 "a.cu"\n.file 2 "b.h"')
    report = emulator.load(text).launch("k", (1,), (1,), [np.zeros(0, np.uint64)], on_finding="collect")
    assert [finding.source for finding in report.findings] == ["b.h:17", "a.cu:18"]


def test_a_finding_in_an_inlined_function_names_the_line_of_the_kernel_too():
    deep = ".loc 2 3 1, function_name $L, inlined_at 2 9 4\nst.global.u64 [%rd0], 1;\n"
    outer = ".loc 2 9 4, function_name $L+8, inlined_at 1 {0} 5\nst.global.u64 [%rd0+{0}], 1;\n"
    body = deep + outer.format(16) + deep.replace("[%rd0]", "[%rd0+8]") + outer.format(32)
    text = module(body, '.file 1 "a.cu"\n.file 2 "b.h"')
    report = emulator.load(text).launch("k", (1,), (1,), [np.zeros(0, np.uint64)], on_finding="collect")
    inner = ["b.h:3", "b.h:9", "b.h:3", "b.h:9"]
    expected = [f"{at}, inlined at a.cu:{line}" for at, line in zip(inner, (16, 16, 32, 32), strict=True)]
    assert [finding.source for finding in report.findings] == expected


def test_a_loc_does_not_reach_into_the_next_function():
    first = '.file 1 "a.cu"\n.visible .entry j() {\n.loc 1 5 1\nret;\n}'
    programs = emulator.load(module("", first)).programs
    assert programs["j"].sources == ["a.cu:5", "a.cu:5"] and set(programs["k"].sources) == {None}


@lb.kernel(x=("n", lb.f32), y=("n", lb.f32))
def double(x: lb.Tensor, y: lb.Tensor) -> None:
    tile = lb.load(x, (0,), (128,))
    lb.store(y, (0,), tile + tile)


def test_a_finding_in_a_kernel_of_the_dsl_names_the_line_of_python():
    compiled = double.compile("sm_80")
    values = {"x": np.zeros(128, np.float32), "y": np.zeros(64, np.float32), "n$size": 128}
    args = [values[name] for _, name in compiled.code.parameters]
    report = emulator.load(compiled.ptx).launch(
        compiled.code.entry, (1,), (compiled.code.threads,), args, shared=compiled.code.shared, on_finding="collect"
    )
    store = inspect.getsourcelines(double.function)[1] + 3
    kinds = {(finding.kind, finding.source) for finding in report.findings}
    path = str(Path(__file__).relative_to(ROOT)) if Path(__file__).is_relative_to(ROOT) else __file__
    assert kinds == {("out_of_bounds_global", f"{path}:{store}")}


# -- robustness and speed ----------------------------------------------------------------------------------------------


def tokens(text: str) -> list[str]:
    found, position = [], 0
    while position < len(text):
        match = TOKEN.match(text, position)
        found.append(match.group() if match else text[position])
        position += len(found[-1])
    return found


TOKENS = tokens(FEATURES)
JUNK = [*'{}()[];,:@!-+|<>01_$%"é\n', "/*", "*/", "//", "-1", "0x", "08", "1e999", "0f3F800000", "4294967296"]
JUNK += ["%r1", "%rd1", "nosuch", "9" * 20, ".reg", ".b32", ".param", ".align", "call", "bra", "ret", "WARP_SZ", "::"]
edits = st.tuples(
    st.sampled_from(("delete", "replace", "insert", "copy", "swap", "cut")),
    st.integers(0, len(TOKENS) - 1),
    st.integers(0, len(TOKENS) - 1),
    st.sampled_from(JUNK),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(edits, min_size=1, max_size=5))
def test_mutated_text_loads_or_names_its_error(changes):
    text = list(TOKENS)
    for how, at, other, junk in changes:
        at, other = at % len(text), other % len(text)
        if how == "delete":
            text[at] = ""
        elif how == "replace":
            text[at] = junk
        elif how == "insert":
            text[at] += junk
        elif how == "copy":
            text[at] = text[other]
        elif how == "swap":
            text[at], text[other] = text[other], text[at]
        else:
            del text[at + 1 :]
    joined = "".join(text)
    error = refusal(joined)
    assert error is None or (error.problem and 1 <= error.line <= joined.count("\n") + 1)


@given(st.text(max_size=200))
def test_any_text_loads_or_names_its_error(text):
    for whole in (text, HEADER + text, module(text)):
        error = refusal(whole)
        assert error is None or error.problem


def test_ten_thousand_lines_parse_in_less_than_0_3_seconds():
    start = FEATURES.index("    mov.u64 %rd5, pointers;")
    body = FEATURES[start : FEATURES.index("    mov.u64 $tmp, later;")]
    whole = FEATURES[:start] + body * (10_000 // body.count("\n")) + FEATURES[start:]
    assert whole.count("\n") > 10_000
    times = []
    for _ in range(3):
        begin = time.process_time()
        parse(whole)
        times.append(time.process_time() - begin)
    assert min(times) < 0.3
