"""Every defect the emulator reports: a kernel that has it, and its nearest neighbour that does not."""

import numpy as np
import pytest

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import emulator

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
REGISTERS = ".reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<40>; .reg .f32 %f<16>; .reg .b64 %d<16>;"
START = """
    ld.param.u64 %d1, [x]; mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 4; add.s64 %d2, %d1, %d2;
    .shared .align 16 .b8 tile[4096];
    mov.u32 %r2, tile; shl.b32 %r3, %r1, 2; add.u32 %r4, %r2, %r3;  // this thread's word
    xor.b32 %r5, %r3, 128; add.u32 %r5, %r2, %r5;                   // the same lane's in the neighbouring warp
    xor.b32 %r6, %r3, 4; add.u32 %r6, %r2, %r6;                     // the neighbouring lane's
    shl.b32 %r7, %r1, 4; add.u32 %r7, %r2, %r7;                     // this thread's 16 bytes
    xor.b32 %r8, %r7, 16; xor.b32 %r9, %r7, 512;                    // a neighbouring lane's and warp's
    mul.wide.u32 %d3, %r1, 16; add.s64 %d3, %d1, %d3;               // 16 global bytes of its own
"""


def kinds(
    body: str,
    *,
    block: int = 64,
    grid: int = 1,
    array: object = None,
    seed: int = 0,
    target: str = "sm_80",
    **options: object,
) -> list[str]:
    """The kinds of findings of a kernel over one array, 4096 words of zeros unless given."""
    text = (
        f"{HEADER.replace('sm_80', target)}.visible .entry k(.param .u64 x)\n{{\n{REGISTERS}{START}\n{body}\nret;\n}}\n"
    )
    if array is None:
        array = np.zeros(4096, np.uint32)
    report = emulator.load(text).launch("k", (grid,), (block,), [array], on_finding="collect", seed=seed, **options)
    return [finding.kind for finding in report.findings]


def caught(body: str, **options: object) -> list[str]:
    """The kinds found over several schedules, each once."""
    return sorted({kind for seed in range(8) for kind in kinds(body, seed=seed, **options)})


LAST_BYTES = "ld.global.u32 %r10, [%d1+16380];"


def test_an_access_beyond_a_global_array_is_found() -> None:
    assert kinds(LAST_BYTES) == []
    assert kinds("ld.global.u32 %r10, [%d1+16384];") == ["out_of_bounds_global"]
    assert kinds("ld.global.u32 %r10, [%d1+-4];") == ["out_of_bounds_global"]
    assert kinds("mov.u64 %d4, 0; st.global.u32 [%d4], %r1;") == ["out_of_bounds_global"]


def test_an_access_beyond_shared_memory_is_found() -> None:
    assert kinds("st.shared.u32 [%r2+4092], %r1;", block=1) == []
    assert kinds("st.shared.u32 [%r2+4096], %r1;", block=1) == ["out_of_bounds_shared"]
    assert kinds("st.shared.u32 [%r2+4096], %r1;", block=1, shared=16) == []
    assert kinds("st.shared.u32 [%r2+-4], %r1;", block=1) == ["out_of_bounds_shared"]


def test_a_shared_address_without_the_base_of_a_variable_is_out_of_bounds() -> None:
    assert kinds("add.u32 %r10, %r2, 16; st.shared.u32 [%r10], %r1;", block=1) == []
    assert kinds("mov.u32 %r10, 16; st.shared.u32 [%r10], %r1;", block=1) == ["out_of_bounds_shared"]
    assert kinds("mov.u32 %r10, 16; ld.shared.u32 %r11, [%r10+256];", block=1) == ["out_of_bounds_shared"]


@pytest.mark.parametrize(("base", "found"), [("all", []), ("0", ["out_of_bounds_shared"])])
def test_a_dynamic_shared_address_without_its_base_is_out_of_bounds(base: str, found: list[str]) -> None:
    text = f"""{HEADER}.extern .shared .align 16 .b8 all[];\n.visible .entry k() {{ {REGISTERS}
    mov.u64 %d1, {base}; cvta.shared.u64 %d1, %d1; mov.u32 %r1, 0; st.b32 [%d1+12], %r1; ret; }}"""
    report = emulator.load(text).launch("k", (1,), (1,), [], shared=16, on_finding="collect")
    assert [finding.kind for finding in report.findings] == found


def test_an_access_beyond_the_parameters_is_found() -> None:
    assert kinds("ld.param.u32 %r10, [x+4];") == []
    assert kinds("ld.param.u64 %d4, [x+4];") == ["out_of_bounds_param"]


def test_a_misaligned_access_is_found() -> None:
    assert kinds("ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%d1+16];") == []
    assert kinds("ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%d1+8];") == ["misaligned"]
    assert kinds("st.shared.u16 [%r2+1], %h1;", checks="none") == ["misaligned"]


def test_a_write_to_a_read_only_array_is_found() -> None:
    frozen = np.zeros(4096, np.uint32)
    frozen.flags.writeable = False
    assert kinds("ld.global.u32 %r10, [%d2];", array=frozen) == []
    assert kinds("st.global.u32 [%d2], %r1;", array=frozen) == ["read_only"]


def test_reading_shared_memory_that_nothing_wrote_is_found() -> None:
    assert kinds("st.shared.u32 [%r4], %r1; ld.shared.u32 %r10, [%r4];") == []
    assert kinds("ld.shared.u32 %r10, [%r4]; st.global.u32 [%d2], %r10;") == ["uninitialised_shared"]
    assert kinds("ld.shared.u32 %r10, [%r4]; setp.eq.u32 %p1, %r10, 0; @%p1 bra END; END:") == ["uninitialised_shared"]
    assert kinds("ld.shared.u32 %r10, [%r4];", checks={"uninitialised"}) == ["uninitialised_shared"]
    assert kinds("ld.shared.u32 %r10, [%r4]; add.u32 %r11, %r10, 1; st.shared.u32 [%r4], %r11;") == []  # of no use
    assert kinds("st.shared.u16 [%r4], %h1; ld.shared.u32 %r10, [%r4];", checks={"uninitialised"}) == [
        "uninitialised_shared"
    ]


def test_shared_memory_does_not_survive_from_block_to_block() -> None:
    body = "mov.u32 %r10, %ctaid.x; setp.eq.u32 %p1, %r10, 0; @%p1 st.shared.u32 [%r4], %r1; ld.shared.u32 %r11, [%r4];"
    body += "add.u32 %r11, %r11, %r11; @!%p1 st.global.u32 [%d2], %r11;"
    assert kinds(body) == []
    assert kinds(body, grid=2) == ["uninitialised_shared"]


def test_reading_an_output_before_writing_it_is_found() -> None:
    fresh = emulator.output(np.zeros(4096, np.uint32))
    assert kinds("st.global.u32 [%d2], %r1; ld.global.u32 %r10, [%d2];", array=fresh) == []
    assert kinds("ld.global.u32 %r10, [%d2];", array=fresh) == ["uninitialised_global"]
    half = (
        f"{REGISTERS}{START} mov.u32 %r10, 0; st.global.u32 [%d1], %r10; ld.global.v2.u32 {{%r10, %r11}}, [%d1]; ret;"
    )
    module = emulator.load(f"{HEADER}.visible .entry k(.param .u64 x)\n{{ {half} }}")
    with pytest.raises(emulator.EmulatorError, match=r"uninitialised_global.*byte 4 of"):
        module.launch("k", (1,), (1,), [fresh])


def test_an_undefined_register_matters_only_where_it_reaches_memory_or_control() -> None:
    assert kinds("add.u32 %r10, %r11, 1; mul.lo.u32 %r12, %r10, %r10;") == []
    assert kinds("add.u32 %r10, %r11, 1; st.global.u32 [%d2], %r10;") == ["undefined_store"]
    assert kinds("st.shared.u32 [%r4], %r11;") == []  # what is staged may be of no use
    assert kinds("add.u32 %r10, %r11, %r2; ld.shared.u32 %r12, [%r10];") == ["undefined_address"]
    assert kinds("setp.eq.u32 %p1, %r10, 0; @%p1 bra END; END:") == ["undefined_predicate"]
    assert kinds("setp.eq.u32 %p1, %r1, 0; selp.b32 %r10, %r1, %r11, %p1; @%p1 st.shared.u32 [%r4], %r10;") == []
    assert kinds("shfl.sync.idx.b32 %r10, %r11, 0, 31, -1; st.global.u32 [%d2], %r10;") == ["undefined_store"]


def test_matrices_that_warps_store_to_one_place_race_unless_they_are_equal() -> None:
    store = "and.b32 %r12, %r1, 31; shl.b32 %r12, %r12, 4; add.u32 %r12, %r12, %r2; mov.b32 %r11, {0}; {1}"
    store += "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r12], {{%r11, %r11, %r11, %r11}};"

    def found(value: str, bend: str = "", block: int = 64) -> list[str]:
        return kinds(store.format(value, bend), block=block, target="sm_90")

    assert found("7") == [] and found("%r1") == ["race_shared"]
    bend = "min.u32 %r12, %r12, %r2; "  # all rows of the warp at the first one's place
    assert found("7", bend, 32) == [] and found("%r1", bend, 32) == ["race_shared"]


def test_a_barrier_that_some_threads_came_to_before_they_left_is_diverged() -> None:
    loop = """setp.ge.u32 %p1, %r1, {first}; selp.b32 %r10, {rounds}, 3, %p1;
    NEXT: {barrier} sub.u32 %r10, %r10, 1; setp.ne.u32 %p2, %r10, 0; @%p2 bra NEXT;"""
    for barrier in ("bar.sync 0;", "barrier.sync 0;"):
        assert caught(loop.format(first=32, rounds=3, barrier=barrier)) == []
        assert caught(loop.format(first=32, rounds=2, barrier=barrier)) == ["barrier_diverged"]
        assert caught(loop.format(first=48, rounds=2, barrier=barrier)) == ["barrier_diverged"]
    leave = (
        "setp.ge.u32 %p1, %r1, {0}; @%p1 exit; bar.sync 0; bar.sync 0;"  # as kernels begin whose last block is short
    )
    assert caught(leave.format(32)) == [] and caught(leave.format(40)) == []


def test_an_undefined_predicate_matters_only_where_the_other_leaves_the_result_to_it() -> None:
    use = "selp.b32 %r12, 1, 2, %p2; st.global.u32 [%d2], %r12;"
    for name, decided, left in (("and", "ne", "eq"), ("or", "eq", "ne")):
        join = f"{name}.pred %p2, %p1, %p0; {use}"
        assert kinds(f"setp.{decided}.u32 %p0, %r1, %r1; setp.eq.u32 %p1, %r11, 0; {join}") == []
        assert kinds(f"setp.{left}.u32 %p0, %r1, %r1; setp.eq.u32 %p1, %r11, 0; {join}") == ["undefined_store"]
    for join in ("setp.eq.u32 %p0, %r11, 1; and.pred %p2, %p1, %p0;", "not.pred %p2, %p1;"):
        assert kinds(f"setp.eq.u32 %p1, %r11, 0; {join} {use}") == ["undefined_store"]


def test_unwritten_local_memory_matters_only_where_it_is_used() -> None:
    copy = ".local .align 8 .b8 own[32]; mov.u64 %d4, own; ld.local.u64 %d5, [%d4]; st.local.u64 [%d4+8], %d5;"
    assert kinds(copy) == []
    assert kinds(copy + "ld.local.u64 %d6, [%d4+8]; add.s64 %d6, %d6, %d1; ld.global.u32 %r10, [%d6];") == [
        "uninitialised_local"
    ]
    assert kinds(copy + "st.global.u32 [%d2], %d5;".replace("u32", "u64"), block=1) == ["uninitialised_local"]
    gap = "st.local.u32 [%d4+16], %r1; ld.local.u64 %d5, [%d4+16]; st.global.u64 [%d1], %d5;"  # as structures have
    assert kinds(copy + gap, block=1) == []


def test_an_undefined_value_is_found_where_it_was_staged_once_it_is_used() -> None:
    staged = (
        "mov.u32 %r10, 0; st.shared.u32 [%r4], {}; bar.sync 0; ld.shared.u32 %r12, [%r4]; st.global.u32 [%d2], %r12;"
    )
    assert kinds(staged.format("%r10")) == []
    text = f"{HEADER}.visible .entry k(.param .u64 x)\n{{ {REGISTERS}{START}\n" + staged.format("%r11").replace(
        "; ", ";\n"
    )
    module = emulator.load(text + "\nret; }")
    report = module.launch("k", (1,), (32,), [np.zeros(4096, np.uint32)], on_finding="collect", shared=4096)
    assert [(finding.kind, finding.text.split()[0]) for finding in report.findings] == [
        ("undefined_store", "st.shared.u32")
    ]


def test_an_undefined_fragment_spoils_only_its_rows_and_columns_of_an_mma() -> None:
    body = """
    mov.u32 %r20, 0; mov.f32 %f0, 0f00000000; setp.lt.u32 %p1, %r1, 4;
    @!%p1 mov.u32 %r21, 0;  // lanes 0..3 hold row 0 of A's first register
    mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r21, %r20}, {%r20}, {%f0, %f0, %f0, %f0};
    """
    assert kinds(body + "@!%p1 st.global.f32 [%d2], %f1; st.global.f32 [%d2], %f3;", block=32) == []
    assert kinds(body + "st.global.f32 [%d2], %f1;", block=32) == ["undefined_store"]


def test_shared_accesses_of_two_warps_without_a_barrier_are_a_race() -> None:
    write_read = "st.shared.u32 [%r4], %r1; {} ld.shared.u32 %r10, [%r5];"
    assert caught(write_read.format("bar.sync 0;")) == []
    assert "race_shared" in caught(write_read.format(""), checks={"race"})
    read_write = "st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r10, [%r5]; {} st.shared.u32 [%r4], %r1;"
    assert caught(read_write.format("bar.sync 0;")) == []
    assert caught(read_write.format("")) == ["race_shared"]
    assert caught("st.shared.u32 [%r2], %r1;") == ["race_shared"]


def test_lanes_of_one_warp_race_where_nothing_orders_them() -> None:
    write_read = "st.shared.u32 [%r4], %r1; {} ld.shared.u32 %r10, [%r6];"
    assert caught(write_read.format("")) == ["race_shared"]
    assert caught(write_read.format("bar.warp.sync -1;")) == []
    assert caught(write_read.format("shfl.sync.idx.b32 %r11, %r1, 0, 31, -1;")) == []
    assert caught("st.shared.u32 [%r4], %r1; ld.shared.u32 %r10, [%r4];") == []
    assert caught("st.global.u32 [%d2], %r1; ld.global.u32 %r10, [%d2+-4];", block=32) == [
        "out_of_bounds_global",
        "race_global",
    ]
    assert caught("st.global.u32 [%d1], %r2;", block=32) == []  # one value
    assert caught("st.global.u32 [%d1], %r1;", block=32) == ["race_global"]
    assert caught("st.shared.u32 [%r2], %r1;", block=32) == ["race_shared"]


def test_neighbouring_halves_of_a_word_are_no_race() -> None:
    halves = "shr.u32 %r10, %r1, 5; mad.lo.u32 %r10, %r10, 2, %r2; st.shared.u16 [%r10], %h1;"
    assert caught("mov.u16 %h1, 0;" + halves) == []
    assert caught("mov.u16 %h1, 0;" + halves + "ld.shared.u32 %r11, [%r2];", checks={"race"}) == ["race_shared"]


def test_a_barrier_of_some_warps_orders_those_alone() -> None:
    body = """
    shr.u32 %r10, %r1, 5; shr.u32 %r11, %r10, 1; add.u32 %r11, %r11, 1;  // pairs of warps use barriers 1 and 2
    st.shared.u32 [%r4], %r1; bar.sync %r11, 64; xor.b32 %r12, %r3, {}; add.u32 %r12, %r12, %r2;
    ld.shared.u32 %r13, [%r12];
    """
    assert caught(body.format(128), block=128) == []
    assert "race_shared" in caught(body.format(256), block=128, checks={"race"})


COPY = "cp.async.cg.shared.global [%r7], [%d3], 16; cp.async.commit_group;"


def test_a_copy_needs_its_own_wait_before_its_lane_reads() -> None:
    assert caught(COPY + "cp.async.wait_group 0; ld.shared.u32 %r10, [%r7];") == []
    assert caught(COPY + "ld.shared.u32 %r10, [%r7]; cp.async.wait_group 0;") == ["race_copy"]
    assert caught(COPY + "cp.async.wait_group 1; ld.shared.u32 %r10, [%r7]; cp.async.wait_group 0;") == ["race_copy"]
    assert (
        caught(COPY + "cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 %r10, [%r7];") == []
    )  # an empty group


def test_a_copy_needs_a_barrier_before_other_threads_read() -> None:
    awaited = COPY + "cp.async.wait_all; {} ld.shared.u32 %r10, [{}];"
    assert caught(awaited.format("bar.warp.sync -1;", "%r8")) == []
    assert caught(awaited.format("", "%r8")) == ["race_copy"]
    assert caught(awaited.format("bar.sync 0;", "%r9")) == []
    assert set(caught(awaited.format("bar.warp.sync -1;", "%r9"))) & {"race_shared", "race_copy"}


# The first warp copies and only arrives; the second waits and reads what the first one copied.
PRODUCER = """
    setp.ge.u32 %p1, %r1, 32; @%p1 bra CONSUMER;
    cp.async.cg.shared.global [%r7], [%d3], 16; cp.async.commit_group; {wait} bar.arrive 1, 64; bra DONE;
    CONSUMER: bar.sync 1, 64; ld.shared.u32 %r10, [%r9];
    DONE: cp.async.wait_all;
"""


@pytest.mark.parametrize("checks", ["all", {"copy"}])
def test_an_arrival_after_the_wait_hands_a_copy_to_the_warps_that_sync(checks: str | set[str]) -> None:
    assert caught(PRODUCER.format(wait="cp.async.wait_group 0;"), checks=checks) == []
    assert "race_copy" in caught(PRODUCER.format(wait=""), checks=checks)


def test_a_barrier_does_not_replace_the_wait() -> None:
    assert caught(COPY + "bar.sync 0; ld.shared.u32 %r10, [%r9]; cp.async.wait_all;") == ["race_copy"]


def test_a_copy_lands_only_at_the_wait() -> None:
    text = f"""{HEADER}.visible .entry k(.param .u64 x)\n{{\n{REGISTERS}{START}
    mov.u32 %r10, 7; st.shared.u32 [%r7], %r10;
    cp.async.ca.shared.global [%r7], [%d3], 4; ld.shared.u32 %r11, [%r7];
    cp.async.wait_all; ld.shared.u32 %r12, [%r7];
    st.global.v2.u32 [%d3], {{%r11, %r12}}; ret; }}"""
    x = np.full((32, 4), 9, np.uint32)
    emulator.load(text).launch("k", (1,), (32,), [x], checks="none")
    assert (x[:, 0] == 7).all() and (x[:, 1] == 9).all()


def test_a_copy_over_bytes_that_another_warp_may_still_read_is_a_race() -> None:
    body = (
        "st.shared.u32 [%r4], %r1; bar.sync 0; ld.shared.u32 %r10, [%r5]; {} cp.async.ca.shared.global [%r4], [%d2], 4;"
    )
    assert caught(body.format("bar.sync 0;") + "cp.async.wait_all;") == []
    assert caught(body.format("") + "cp.async.wait_all;") == ["race_copy", "race_shared"]  # whichever comes first


def test_short_sources_are_zero_filled_and_not_read_beyond() -> None:
    text = f"""{HEADER}.visible .entry k(.param .u64 x, .param .u64 y)\n{{\n{REGISTERS}{START}
    mov.u32 %r10, 6; cp.async.cg.shared.global [%r7], [%d3], 16, %r10; cp.async.wait_all;
    ld.shared.v4.u32 {{%r11, %r12, %r13, %r14}}, [%r7];
    ld.param.u64 %d4, [y]; st.global.v4.u32 [%d4], {{%r11, %r12, %r13, %r14}}; ret; }}"""
    y = np.full(16, 0xFF, np.uint8)
    emulator.load(text).launch("k", (1,), (1,), [np.arange(1, 7, dtype=np.uint8), y])
    assert y.tolist() == [1, 2, 3, 4, 5, 6] + [0] * 10


def test_a_source_size_of_zero_reads_nothing_anywhere() -> None:
    body = "mov.u32 %r10, {}; mov.u64 %d4, 0; cp.async.cg.shared.global [%r7], [%d4], 16, %r10; cp.async.wait_all;"
    assert kinds(body.format(0)) == []
    assert kinds(body.format(1)) == ["out_of_bounds_global"]


def test_a_source_size_above_the_copy_size_is_found() -> None:
    body = "mov.u32 %r10, {}; cp.async.cg.shared.global [%r7], [%d3], 16, %r10; cp.async.wait_all;"
    assert kinds(body.format(16)) == []
    assert kinds(body.format(17)) == ["copy_source_size"]


def test_exit_with_a_copy_in_flight_is_found() -> None:
    assert kinds(COPY + "cp.async.wait_group 0;") == []
    assert kinds(COPY) == ["copy_never_awaited"]


def test_two_blocks_writing_one_global_byte_are_a_race() -> None:
    own = "mov.u32 %r10, %ctaid.x; mul.wide.u32 %d4, %r10, 1024; add.s64 %d2, %d2, %d4; st.global.u32 [%d2], %r1;"
    assert kinds(own, grid=4) == []
    assert kinds("st.global.u32 [%d2], %r1;", grid=4) == ["race_global"]
    assert kinds("st.global.u32 [%d2], %r1; st.global.u32 [%d2], %r1;", grid=1) == []


# %d5: the same lane's word in the neighbouring warp; %p1: block 0; %p2: the first warp; %r20: the warp
NEIGHBOURS = """
    xor.b32 %r10, %r1, 32; mul.wide.u32 %d5, %r10, 4; add.s64 %d5, %d1, %d5;
    mov.u32 %r11, %ctaid.x; setp.eq.u32 %p1, %r11, 0; setp.lt.u32 %p2, %r1, 32; shr.u32 %r20, %r1, 5;
"""


def races(body: str, **options: object) -> list[str]:
    return caught(NEIGHBOURS + body, checks={"race_global"}, **options)


def test_a_global_byte_that_one_block_reads_and_another_writes_is_a_race() -> None:
    assert races("@%p1 st.global.u32 [%d2], %r1; @!%p1 ld.global.u32 %r12, [%d2];", grid=2) == ["race_global"]
    assert races("@!%p1 st.global.u32 [%d2], %r1; @%p1 ld.global.u32 %r12, [%d2];", grid=2) == ["race_global"]
    assert races("ld.global.u32 %r12, [%d2]; @!%p1 st.global.u32 [%d2], %r1;", grid=2) == ["race_global"]
    assert races("@%p1 st.global.u32 [%d2], %r1; @!%p1 ld.global.u32 %r12, [%d2+256];", grid=2) == []
    assert races("@%p1 st.global.u32 [%d2], %r1; @%p1 ld.global.u32 %r12, [%d2];", grid=2) == []
    copy = "cp.async.ca.shared.global [%r4], [%d2], 4; cp.async.wait_all;"
    assert races(f"@%p1 st.global.u32 [%d2], %r1; {copy}", grid=2) == ["race_global"]


def test_two_warps_storing_to_one_global_byte_without_a_barrier_are_a_race() -> None:
    assert races("st.global.u32 [%d1], %r20;") == ["race_global"]
    assert races("st.global.u32 [%d1], %r2;") == []  # both store the same
    assert races("@%p2 st.global.u32 [%d1], %r2; bar.sync 0; @!%p2 st.global.u32 [%d1], %r2;") == []
    assert races("@%p2 st.global.u32 [%d2], %r2; @%p2 st.global.u32 [%d2], %r2;") == []
    assert races("st.global.u32 [%d1], %r2;", block=32) == []  # one value


def test_a_global_byte_that_one_warp_reads_and_another_writes_is_a_race_without_a_barrier() -> None:
    write_read = "st.global.u32 [%d2], %r1; {} ld.global.u32 %r12, [%d5];"
    assert races(write_read.format("bar.sync 0;")) == []
    assert races(write_read.format("")) == ["race_global"]
    read_write = "ld.global.u32 %r12, [%d5]; {} st.global.u32 [%d2], %r1;"
    assert races(read_write.format("bar.sync 0;")) == []
    assert races(read_write.format("")) == ["race_global"]
    assert races("@%p2 ld.global.u32 %r12, [%d1]; @!%p2 st.global.u32 [%d1], %r2;") == ["race_global"]
    assert races("ld.global.u32 %r12, [%d1]; bar.sync 0; @%p2 st.global.u32 [%d1], %r2;") == []
    assert races("ld.global.u32 %r12, [%d1]; @!%p2 st.global.u32 [%d1], %r2;") == ["race_global"]


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("ld.global.u32 %r12, [%d1]", "st.global.u32 [%d1], %r2", True),
        ("st.global.u32 [%d1], %r2", "ld.global.u32 %r12, [%d1]", True),
        ("ld.global.u32 %r12, [%d1]", "ld.global.u32 %r12, [%d1]", False),
        ("st.global.v4.u32 [%d1], {%r2, %r2, %r2, %r2}", "ld.global.u8 %r12, [%d1+15]", True),
        ("st.global.v4.u32 [%d1], {%r2, %r2, %r2, %r2}", "ld.global.u8 %r12, [%d1+16]", False),
        ("ld.global.v4.u32 {%r12, %r13, %r14, %r15}, [%d1]", "st.global.u8 [%d1+15], %r1", True),
        ("ld.global.u8 %r12, [%d1+15]", "st.global.v4.u32 [%d1], {%r2, %r2, %r2, %r2}", True),
        ("ld.global.u8 %r12, [%d1+15]", "st.global.u8 [%d1+14], %r2", False),
    ],
)
def test_a_global_race_is_found_where_the_other_warp_comes_much_later(first: str, second: str, found: bool) -> None:
    spin = "SPIN: add.u32 %r16, %r16, 1; setp.lt.u32 %p3, %r16, 500000; @%p3 bra SPIN;"
    body = f"@%p2 {first}; mov.u32 %r16, 0; @%p2 bra END; {spin} {second}; END:"
    for seed in range(2):
        assert kinds(NEIGHBOURS + body, seed=seed) == ["race_global"] * found


def test_warps_that_access_neighbouring_global_bytes_do_not_race() -> None:
    bytes_ = "mul.wide.u32 %d6, %r1, 1; add.s64 %d6, %d1, %d6; st.global.u8 [%d6], %r1;"
    assert races(bytes_) == []
    assert races("ld.global.v4.u32 {%r12, %r13, %r14, %r15}, [%d3]; bar.sync 0;" + bytes_) == []
    assert races(bytes_ + "ld.global.v4.u32 {%r12, %r13, %r14, %r15}, [%d1+16];") == ["race_global"]
    assert races(bytes_ + "ld.global.v4.u32 {%r12, %r13, %r14, %r15}, [%d1+64];") == []
    whole = "@%p2 st.global.v4.u32 [%d1], {%r2, %r2, %r2, %r2}; {} @!%p2 ld.global.u8 %r12, [%d1+{}];"
    assert races(whole.replace("{}", "bar.sync 0;", 1).replace("{}", "15")) == []
    assert races(whole.replace("{}", "", 1).replace("{}", "15")) == ["race_global"]
    assert races(whole.replace("{}", "", 1).replace("{}", "16")) == []


def test_an_array_aligned_like_a_view_is_followed_by_byte() -> None:
    view = np.zeros(4096, np.uint16)[1:]
    assert races("add.s64 %d6, %d2, 2; st.global.u32 [%d6], %r1;", array=view) == []
    assert races("st.global.u32 [%d1+2], %r1;", array=view) == ["race_global"]


def test_atomics_on_global_memory_are_no_race_and_plain_accesses_beside_them_are() -> None:
    assert races("red.global.add.u32 [%d1], %r1;", grid=2) == []
    assert races("red.global.add.u32 [%d1], %r1; st.global.u32 [%d1+4], %r1;") == ["race_global"]


def test_only_arrays_that_a_store_may_reach_are_followed() -> None:
    text = f"""{HEADER}.visible .entry k(.param .u64 x, .param .u64 y, .param .u64 z, .param .u32 n)\n{{{{\n{REGISTERS}
    ld.param.u64 %d1, [x]; ld.param.u64 %d2, [y]; ld.param.u32 %r1, [n]; ld.param.u64 %d6, [z];
    ld.global.u32 %r2, [%d1]; mul.wide.u32 %d3, %r2, 4; {{}} add.s64 %d4, %d2, %d3; selp.b64 %d5, %d4, %d4, %p1;
    st.global.u32 [%d5], %r1; red.global.add.u32 [%d6], %r1; ret; }}}}"""

    def stored(line: str) -> set[int]:
        return emulator.load(text.format(line)).programs["k"].stored

    assert stored("") == {1, 2}
    assert stored("cvt.u64.u32 %d3, %r1;") == {1, 2, 3}
    assert stored("mov.u64 %d4, %d6;") == {1, 2}
    assert stored("ld.global.u64 %d3, [%d1];") == {0, 1, 2, 3}  # a pointer may lie in memory


def test_the_plain_load_that_a_compare_and_swap_loop_starts_with_is_no_race() -> None:
    guess = "ld.global.u32 %r12, [%d1]; add.u32 %r13, %r12, 1; atom.global.{}.b32 %r14, [%d1], {};"
    assert caught(guess.format("cas", "%r12, %r13")) == []
    assert caught(guess.format("exch", "%r13")) == ["race_global"]


def test_a_huge_array_is_followed_only_where_it_is_touched() -> None:
    huge = np.zeros(1 << 34, np.uint8)  # 16 GiB that the system provides once they are touched
    far = "mov.u64 %d6, 0x3FFFFFF00; add.s64 %d6, %d1, %d6; st.global.u32 [%d6], %r20;"
    assert races(far, array=huge) == ["race_global"]
    assert kinds(NEIGHBOURS + far, array=huge, block=32) == []


def test_global_accesses_before_a_million_barriers_stay_ordered() -> None:
    body = """
    mov.u32 %r12, 0;
    LOOP: setp.eq.u32 %p4, %r12, 1048000; @%p4 st.global.u32 [%d2], %r1; bar.sync 0;
    add.u32 %r12, %r12, 1; setp.lt.u32 %p3, %r12, 1050000; @%p3 bra LOOP;
    ld.global.u32 %r13, [%d5]; {} st.global.u32 [%d2], %r1;
    """
    assert kinds(NEIGHBOURS + body.format("bar.sync 0;")) == []
    assert set(kinds(NEIGHBOURS + body.format(""))) == {"race_global"}


def test_a_barrier_that_part_of_a_warp_executes_is_found() -> None:
    assert kinds("setp.lt.u32 %p1, %r1, 32; @%p1 bar.sync 0; @!%p1 bar.sync 0;") == []
    assert "barrier_diverged" in kinds("setp.lt.u32 %p1, %r1, 16; @%p1 bar.sync 0;")


def test_a_shuffle_that_part_of_its_members_execute_is_found() -> None:
    body = "setp.lt.u32 %p1, %r1, 16; @%p1 shfl.sync.bfly.b32 %r10, %r1, 1, 31, {};"
    assert kinds(body.format("0xFFFF"), block=32) == []
    assert kinds(body.format("-1"), block=32) == ["mask_invalid"]
    assert kinds(body.format("0xFFFE"), block=32) == ["mask_invalid"]  # the executing lane 0 is not in it


def test_a_barrier_that_a_warp_never_reaches_is_a_deadlock() -> None:
    assert kinds("setp.lt.u32 %p1, %r1, 32; @%p1 bra END; END: bar.sync 0;") == []
    assert kinds("setp.lt.u32 %p1, %r1, 32; @%p1 bar.sync 1; bar.sync 0;") == ["barrier_deadlock"]
    assert kinds("setp.lt.u32 %p1, %r1, 32; @%p1 bra END; bar.sync 1, 64; END:", block=96) == []
    assert kinds("setp.lt.u32 %p1, %r1, 64; @%p1 bra END; bar.sync 1, 64; END:", block=96) == ["barrier_deadlock"]


def test_threads_that_have_exited_count_as_arrived_at_a_barrier_of_the_block() -> None:
    assert kinds("setp.lt.u32 %p1, %r1, 32; @%p1 bra END; bar.sync 0; END:") == []
    assert kinds("setp.lt.u32 %p1, %r1, 16; @%p1 bra END; bar.sync 0; END:") == []
    assert caught("setp.lt.u32 %p1, %r1, 40; @%p1 ret; st.shared.u32 [%r4], %r1; bar.sync 0;", block=96) == []


def test_a_barrier_with_an_impossible_number_or_count_is_found() -> None:
    assert kinds("mov.u32 %r10, 15; bar.sync %r10, 64;") == []
    assert kinds("mov.u32 %r10, 16; bar.sync %r10, 64;") == ["barrier_invalid"]
    assert "barrier_invalid" in kinds("mov.u32 %r10, 48; bar.sync 1, %r10;")
    assert "barrier_invalid" in kinds("mov.u32 %r10, 0; bar.sync 1, %r10;")
    assert "barrier_invalid" in kinds(
        "shr.u32 %r10, %r1, 5; mad.lo.u32 %r10, %r10, 32, 64; bar.sync 1, %r10;", block=96
    )


def test_an_endless_loop_hits_the_step_limit() -> None:
    assert kinds("LOOP: bra LOOP;", step_limit=1 << 20) == ["limit"]


LINEAR = "mov.u32 %r10, %tid.y; mul.wide.u32 %d4, %r10, 32; add.s64 %d2, %d2, %d4;"


def test_the_first_finding_is_raised_with_its_place() -> None:
    body = f"{REGISTERS}{START}\n{LINEAR}\nst.global.u32 [%d2], %r1;"
    text = f"{HEADER}.visible .entry k(.param .u64 x)\n{{\n{body}\nret; }}"
    x = np.zeros(40, np.uint32)
    with pytest.raises(
        emulator.EmulatorError, match=r"out_of_bounds_global.*argument 0, byte 160 of 160"
    ) as caught_error:
        emulator.load(text).launch("k", (2, 1), (8, 8), [x])
    finding = caught_error.value.finding
    assert (finding.block, finding.thread) == ((0, 0, 0), (0, 5, 0))
    assert text.splitlines()[finding.line - 1] == finding.text == "st.global.u32 [%d2], %r1;"
    assert finding.address % (1 << 40) == 160


def test_checks_can_be_chosen() -> None:
    body = "ld.shared.u32 %r10, [%r4]; st.global.u32 [%d2], %r10; st.global.u32 [%d2], %r11; st.shared.u32 [%r2], %r1;"
    assert set(kinds(body)) == {"uninitialised_shared", "undefined_store", "race_shared"}
    assert kinds(body, checks={"undefined"}) == ["undefined_store"]
    assert kinds(body, checks="none") == []
    with pytest.raises(LowbitvmError, match="a check is 'races'"):
        kinds(body, checks={"races"})


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned is not implemented"),
        ("add.rz.f16x2 %r1, %r2, %r3;", "add.rz.f16x2 is not implemented"),
        ("add.u32 %r1, %r2, %nothing;", "the register %nothing is not declared"),
        ("add.u32 %r1, %r2, %d1;", "%d1 is a .b64 register, the instruction takes .u32"),
        ("bra NOWHERE;", "there is no label NOWHERE"),
        ("add.u32 %r1, %r2;", "add takes 3 operands, not 2"),
        ("cp.async.cg.shared.global [%r1], [%d1], 8;", "cp.async.cg cannot copy 8 bytes"),
        ("mov.u32 %r1, # ;", "unexpected character '#'"),
    ],
)
def test_text_that_cannot_run_is_refused_at_load_with_its_place(statement: str, problem: str) -> None:
    text = f"{HEADER}.visible .entry k(.param .u64 x)\n{{\n{REGISTERS}\n  {statement}\nret;\n}}\n"
    with pytest.raises(emulator.PtxError) as error:
        emulator.load(text)
    assert problem in error.value.problem
    assert error.value.line == 7
    assert statement in error.value.text


def test_arguments_that_do_not_fit_the_kernel_are_refused() -> None:
    text = f"{HEADER}.visible .entry k(.param .u64 x, .param .u32 n)\n.reqntid 32, 1, 1 {{ ret; }}"
    module = emulator.load(text)
    x = np.zeros((4, 4), np.uint32)
    module.launch("k", (1,), (32,), [x, 3])
    for args, grid, block in [
        ([x], 1, 32),
        ([x.T, 3], 1, 32),
        ([3, x], 1, 32),
        ([x, "3"], 1, 32),
        ([x, 3], 0, 32),
        ([x, 3], 1, 64),
    ]:
        with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID"):
            module.launch("k", (grid,), (block,), args)
    with pytest.raises(LowbitvmError, match="no kernel 'other'"):
        module.launch("other", (1,), (32,), [x, 3])
    with pytest.raises(LowbitvmError, match="the architecture is 'sm_70'"):
        module.launch("k", (1,), (32,), [x, 3], arch="sm_70")
