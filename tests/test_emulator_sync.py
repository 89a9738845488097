"""How the emulator's threads, warps and blocks run beside one another, and what orders their memory accesses."""

import itertools
from typing import Any

import numpy as np
import pytest

from lowbitvm.runtime import emulator

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
REGISTERS = ".reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<40>; .reg .f32 %f<16>; .reg .b64 %d<16>;"
SCHEDULES = ("random", "round_robin", "adversarial")
WAYS = [{"seed": seed, "schedule": schedule} for seed, schedule in itertools.product(range(20), SCHEDULES)]


def module(params: str, body: str, header: str = HEADER) -> emulator.Module:
    declared = ", ".join(f".param .{param.strip()}" for param in params.split(","))
    loads = "".join(
        f"ld.param.{kind} %d{10 + n}, [{name}];\n"
        for n, (kind, name) in enumerate(param.split() for param in params.split(","))
        if kind == "u64"
    )
    start = "mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; setp.eq.u32 %p1, %r1, 0; setp.eq.u32 %p2, %r2, 0;\n"
    return emulator.load(f"{header}.visible .entry k({declared})\n{{\n{REGISTERS}\n{loads}{start}{body}\nret;\n}}\n")


def kinds(loaded: emulator.Module, grid: int, block: int, args: list[Any], **options: Any) -> set[str]:
    report = loaded.launch("k", (grid,), (block,), args, on_finding="collect", **options)
    return {finding.kind for finding in report.findings}


def always(loaded: emulator.Module, grid: int, block: int, found: set[str], words: int = 64) -> None:
    """Every schedule finds exactly this."""
    for way in WAYS:
        assert kinds(loaded, grid, block, [np.zeros(words, np.uint32)], **way) == found, way


# Block 0 hands data to block 1 by a flag. %d10: data, flag at +64.
MESSAGE = """
    @!%p1 bra END;
    @%p2 bra PUT;
    SPIN: {read}
    setp.eq.u32 %p3, %r3, 0;
    @%p3 bra SPIN;
    {after}
    ld.global.u32 %r4, [%d10];
    bra END;
    PUT:
    mov.u32 %r5, 7;
    st.global.u32 [%d10], %r5;
    {before}
    mov.u32 %r6, 1;
    {write}
    END:
"""
STRONG_STORES = ("st.relaxed.gpu.global.u32 [%d10+64], %r6;", "st.volatile.global.u32 [%d10+64], %r6;")
FENCE = "fence.acq_rel.gpu;"


@pytest.mark.parametrize(
    ("read", "after", "before", "write"),
    [
        ("ld.acquire.gpu.global.u32 %r3, [%d10+64];", "", "", "st.release.gpu.global.u32 [%d10+64], %r6;"),
        ("ld.acquire.sys.global.u32 %r3, [%d10+64];", "", "", "red.release.gpu.global.add.u32 [%d10+64], %r6;"),
        ("ld.acquire.gpu.global.u32 %r3, [%d10+64];", "", FENCE, STRONG_STORES[0]),
        ("ld.relaxed.gpu.global.u32 %r3, [%d10+64];", FENCE, FENCE, STRONG_STORES[0]),
        ("ld.volatile.global.u32 %r3, [%d10+64];", "membar.gl;", "membar.gl;", STRONG_STORES[1]),
        (
            "atom.acq_rel.gpu.global.add.u32 %r3, [%d10+64], 0;",
            "",
            "",
            "atom.release.gpu.global.exch.b32 %r7, [%d10+64], %r6;",
        ),
        ("atom.global.or.b32 %r3, [%d10+64], 0;", FENCE, FENCE, "red.global.add.u32 [%d10+64], %r6;"),
    ],
)
def test_a_message_with_its_release_and_acquire_is_in_order(read: str, after: str, before: str, write: str) -> None:
    always(module("u64 x", MESSAGE.format(read=read, after=after, before=before, write=write)), 2, 32, set())


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ("", set()),  # the fence comes before the flag's write, but who has read that write comes after it
        ("st.global.u32 [%d10+68], %r6;", {"race_global"}),  # what is written between the two is in no order
    ],
)
def test_who_has_read_a_flag_may_clear_it_by_a_plain_store(after: str, found: set[str]) -> None:
    write = f"{after} red.relaxed.gpu.global.add.u32 [%d10+64], %r6;"
    read = "ld.acquire.gpu.global.u32 %r3, [%d10+64];"
    clear = "mov.u32 %r7, 0; st.global.cg.u32 [%d10+64], %r7; st.global.cg.u32 [%d10+68], %r7;"
    always(module("u64 x", MESSAGE.format(read=read, after=clear, before=FENCE, write=write)), 2, 32, found)


@pytest.mark.parametrize(
    ("read", "after", "before", "write"),
    [
        ("ld.acquire.gpu.global.u32 %r3, [%d10+64];", "", "", STRONG_STORES[0]),
        ("ld.relaxed.gpu.global.u32 %r3, [%d10+64];", "", "", "st.release.gpu.global.u32 [%d10+64], %r6;"),
        ("ld.relaxed.gpu.global.u32 %r3, [%d10+64];", "", FENCE, STRONG_STORES[0]),
        ("ld.relaxed.gpu.global.u32 %r3, [%d10+64];", FENCE, "", STRONG_STORES[0]),
        ("ld.volatile.global.u32 %r3, [%d10+64];", "membar.gl;", "membar.cta;", STRONG_STORES[1]),
        ("ld.acquire.cta.global.u32 %r3, [%d10+64];", "", "", "st.release.gpu.global.u32 [%d10+64], %r6;"),
        ("ld.acquire.gpu.global.u32 %r3, [%d10+64];", "", "", "st.release.cta.global.u32 [%d10+64], %r6;"),
        ("atom.global.or.b32 %r3, [%d10+64], 0;", "", FENCE, "red.global.add.u32 [%d10+64], %r6;"),
    ],
)
def test_a_message_that_lacks_one_half_of_the_pattern_is_a_race(read: str, after: str, before: str, write: str) -> None:
    always(module("u64 x", MESSAGE.format(read=read, after=after, before=before, write=write)), 2, 32, {"race_global"})


def test_a_plain_flag_is_a_race_of_its_own() -> None:
    loaded = module(
        "u64 x",
        MESSAGE.format(
            read="ld.acquire.gpu.global.u32 %r3, [%d10+64];",
            after="",
            before=FENCE,
            write="st.global.u32 [%d10+64], %r6;",
        ),
    )
    for way in WAYS:
        assert "race_global" in kinds(loaded, 2, 32, [np.zeros(64, np.uint32)], **way)


# Blocks add up in turns: each waits for its number, adds without atomics, and passes the turn on.
TURNS = """
    @!%p1 bra BEHIND;
    SPIN: ld.acquire.gpu.global.u32 %r3, [%d10+64];
    setp.ne.u32 %p3, %r3, %r2;
    @%p3 bra SPIN;
    BEHIND: {behind}
    mul.wide.u32 %d1, %r1, 4; add.s64 %d1, %d10, %d1; add.s64 %d1, %d1, 128;
    ld.global.u32 %r4, [%d1]; add.u32 %r4, %r4, 1; st.global.u32 [%d1], %r4;
    {ahead}
    @%p1 red.release.gpu.global.add.u32 [%d10+64], 1;
"""


def test_blocks_that_take_turns_end_with_the_sum_whatever_the_schedule() -> None:
    loaded = module("u64 x", TURNS.format(behind="bar.sync 0;", ahead="bar.sync 0;"))
    for way in WAYS[:12]:
        x = np.zeros(256, np.uint32)
        assert kinds(loaded, 24, 64, [x], **way) == set()
        assert (x[32:96] == 24).all() and x[16] == 24


@pytest.mark.parametrize("dropped", ["behind", "ahead"])
def test_turns_need_both_barriers(dropped: str) -> None:
    barriers = {"behind": "bar.sync 0;", "ahead": "bar.sync 0;"} | {dropped: ""}
    loaded = module("u64 x", TURNS.format(**barriers))
    for way in WAYS:
        assert "race_global" in kinds(loaded, 4, 64, [np.zeros(256, np.uint32)], **way)


def test_a_later_block_may_set_what_an_earlier_one_waits_for() -> None:
    body = """
    @!%p1 bra END;
    not.b32 %r3, %r2; add.u32 %r3, %r3, 1; add.u32 %r3, %r3, 99;  // block b waits for block 99 - b
    mul.wide.u32 %d1, %r2, 4; add.s64 %d1, %d10, %d1;
    mul.wide.u32 %d2, %r3, 4; add.s64 %d2, %d10, %d2;
    mov.u32 %r4, 1; st.release.gpu.global.u32 [%d1], %r4;
    SPIN: ld.acquire.gpu.global.u32 %r5, [%d2]; setp.eq.u32 %p3, %r5, 0; @%p3 bra SPIN;
    END:
    """
    for way in WAYS[:6]:
        assert kinds(module("u64 x", body), 100, 32, [np.zeros(100, np.uint32)], **way) == set()


def test_a_flag_that_nobody_sets_is_an_endless_loop_at_the_load_that_waits() -> None:
    body = "SPIN: ld.acquire.gpu.global.u32 %r3, [%d10];\nsetp.eq.u32 %p3, %r3, 0; @%p3 bra SPIN;"
    for way in WAYS[:6]:
        report = module("u64 x", body).launch("k", (3,), (64,), [np.zeros(4, np.uint32)], on_finding="collect", **way)
        assert {(f.kind, "ld.acquire" in f.text) for f in report.findings} == {("limit", True)}


def test_work_without_a_look_at_memory_is_not_taken_for_waiting() -> None:
    body = """
    setp.lt.u32 %p3, %r1, 32; @%p3 bra WORK;
    SPIN: ld.volatile.shared.u32 %r3, [flag]; setp.eq.u32 %p4, %r3, 0; @%p4 bra SPIN;
    bra END;
    WORK: .shared .u32 flag; @%p1 st.volatile.shared.u32 [flag], 0;
    mov.u32 %r4, 0; LOOP: add.u32 %r4, %r4, 1; setp.lt.u32 %p5, %r4, 300000; @%p5 bra LOOP;
    @%p1 st.volatile.shared.u32 [flag], 1;
    END:
    """
    assert kinds(module("u64 x", body), 1, 64, [np.zeros(4, np.uint32)], checks={"race"}) == set()


LOCK = """
    SPIN: atom.acquire.gpu.global.cas.b32 %r3, [%d10+64], 0, 1; setp.ne.u32 %p3, %r3, 0; @%p3 bra SPIN;
    ld.global.u32 %r4, [%d10]; add.u32 %r4, %r4, 1; st.global.u32 [%d10], %r4;
    {unlock}
"""


def test_lanes_of_one_warp_can_take_turns_by_a_lock() -> None:
    loaded = module("u64 x", LOCK.format(unlock="atom.release.gpu.global.exch.b32 %r5, [%d10+64], 0;"))
    for way in WAYS[:15]:
        x = np.zeros(32, np.uint32)
        assert kinds(loaded, 2, 64, [x], **way) == set()
        assert x[0] == 128


def test_a_lock_without_a_release_orders_nothing() -> None:
    loaded = module("u64 x", LOCK.format(unlock="atom.relaxed.gpu.global.exch.b32 %r5, [%d10+64], 0;"))
    for way in WAYS[:15]:
        assert kinds(loaded, 2, 64, [np.zeros(32, np.uint32)], **way) == {"race_global"}


def test_lanes_named_by_a_partial_mask_are_ordered_among_themselves_alone() -> None:
    body = """
    .shared .align 4 .b8 tile[128]; mov.u32 %r3, tile; shl.b32 %r4, %r1, 2; add.u32 %r4, %r3, %r4;
    xor.b32 %r5, %r1, {}; shl.b32 %r5, %r5, 2; add.u32 %r5, %r3, %r5;
    st.shared.u32 [%r4], %r1;
    setp.lt.u32 %p3, %r1, 16; @%p3 bra LOW;
    bar.warp.sync 0xFFFF0000; bra READ;
    LOW: bar.warp.sync 0x0000FFFF;
    READ: ld.shared.u32 %r6, [%r5];
    """
    always(module("u64 x", body.format(8)), 1, 32, set())
    always(module("u64 x", body.format(16)), 1, 32, {"race_shared"})


def test_lanes_that_come_by_different_paths_meet_in_a_warp_barrier() -> None:
    body = """
    .shared .align 4 .b8 tile[128]; mov.u32 %r3, tile; shl.b32 %r4, %r1, 2; add.u32 %r4, %r3, %r4;
    xor.b32 %r5, %r1, 16; shl.b32 %r5, %r5, 2; add.u32 %r5, %r3, %r5;
    setp.lt.u32 %p3, %r1, 16; @%p3 bra LOW;
    st.shared.u32 [%r4], %r1; bar.warp.sync -1; ld.shared.u32 %r6, [%r5]; bra END;
    LOW: st.shared.u32 [%r4], %r1; bar.warp.sync -1; ld.shared.u32 %r6, [%r5];
    END: st.global.u32 [%d10], %r2;
    """
    always(module("u64 x", body), 1, 32, set())
    broken = body.replace("bar.warp.sync -1; ld.shared.u32 %r6, [%r5]; bra END;", "ld.shared.u32 %r6, [%r5]; bra END;")
    for way in WAYS:
        assert kinds(module("u64 x", broken), 1, 32, [np.zeros(4, np.uint32)], **way) >= {"mask_invalid"}


def test_barriers_reduce_predicates_over_the_threads_of_the_block() -> None:
    body = """
    setp.lt.u32 %p3, %r1, 40; setp.lt.u32 %p4, %r1, 96;
    barrier.cta.red.popc.aligned.u32 %r3, 0, %p3;
    bar.red.and.pred %p5, 1, 96, %p4; bar.red.or.pred %p6, 2, !%p4; barrier.cta.red.or.pred %p7, 3, %p3;
    selp.u32 %r4, 2, 0, %p5; selp.u32 %r5, 4, 0, %p6; selp.u32 %r6, 8, 0, %p7;
    or.b32 %r4, %r4, %r5; or.b32 %r4, %r4, %r6; mad.lo.u32 %r4, %r3, 16, %r4;
    mul.wide.u32 %d1, %r1, 4; add.s64 %d1, %d10, %d1; st.global.u32 [%d1], %r4;
    """
    x = np.zeros(96, np.uint32)
    assert kinds(module("u64 x", body), 1, 96, [x]) == set()
    assert (x == 40 * 16 + 2 + 8).all()


def test_results_and_findings_do_not_depend_on_the_number_of_workers() -> None:
    body = """
    mad.lo.u32 %r3, %r2, 64, %r1; shr.u32 %r4, %r3, 1;
    mul.wide.u32 %d1, %r3, 4; add.s64 %d1, %d10, %d1; mul.wide.u32 %d2, %r4, 4; add.s64 %d2, %d11, %d2;
    st.global.u32 [%d1], %r3; red.global.add.u32 [%d12], %r3;
    setp.gt.u32 %p3, %r2, 20; setp.lt.and.u32 %p3, %r1, 32, %p3; @%p3 st.global.u32 [%d11], %r2;
    ld.global.u32 %r5, [%d2];
    """
    loaded, reports = module("u64 x, u64 y, u64 z", body), []
    for workers in (1, 2, 3, 8):
        x, y, z = np.zeros(64 * 64, np.uint32), np.zeros(64 * 64, np.uint32), np.zeros(1, np.uint32)
        options: dict[str, Any] = {"on_finding": "collect", "seed": 5, "workers": workers}
        report = loaded.launch("k", (64,), (64,), [emulator.output(x), y, z], **options)
        assert (x == np.arange(64 * 64)).all()
        assert z[0] == np.arange(64 * 64).sum() % 2**32
        reports.append((report.findings, report.counters))
    assert reports[0][0] and all(report == reports[0] for report in reports)


def test_the_first_finding_is_that_of_the_first_block_whatever_runs_beside_it() -> None:
    loaded = module("u64 x", "setp.gt.u32 %p3, %r2, 2; @%p3 st.global.u32 [%d10+4096], %r1;")
    for workers in (1, 4):
        with pytest.raises(emulator.EmulatorError) as error:
            loaded.launch("k", (200,), (32,), [np.zeros(4, np.uint32)], workers=workers)
        assert error.value.finding.block == (3, 0, 0)


def test_a_sparse_array_beyond_the_machine_s_memory_works_where_it_is_touched() -> None:
    huge = emulator.sparse((1 << 36,), np.uint32)  # 256 GiB
    body = """
    mov.u64 %d1, 0x3FFFFF0000; add.s64 %d1, %d10, %d1; mul.wide.u32 %d2, %r1, 4; add.s64 %d1, %d1, %d2;
    ld.global.u32 %r3, [%d1]; add.u32 %r3, %r3, %r1; st.global.u32 [%d1], %r3;
    """
    assert kinds(module("u64 x", body), 1, 64, [huge]) == set()
    start = 0x3FFFFF0000 // 4
    assert (huge[start : start + 64] == np.arange(64)).all() and huge[start + 64] == 0


def test_local_memory_belongs_to_each_thread() -> None:
    body = """
    .local .align 8 .b8 mine[16]; mov.u64 %d1, mine; cvta.local.u64 %d2, %d1;
    st.local.u32 [%d1], %r1; st.u32 [%d2+4], %r1; ld.local.v2.u32 {%r3, %r4}, [%d1]; add.u32 %r3, %r3, %r4;
    isspacep.local %p3, %d2; isspacep.shared %p4, %d2; selp.u32 %r5, 1000, 0, %p3; selp.u32 %r6, 5000, 0, %p4;
    add.u32 %r3, %r3, %r5; add.u32 %r3, %r3, %r6;
    mul.wide.u32 %d3, %r1, 4; add.s64 %d3, %d10, %d3; st.global.u32 [%d3], %r3;
    """
    x = np.zeros(64, np.uint32)
    assert kinds(module("u64 x", body), 1, 64, [x]) == set()
    assert (x == 2 * np.arange(64) + 1000).all()
    assert kinds(module("u64 x", body.replace("[%d2+4]", "[%d2+16]")), 1, 64, [x]) >= {
        "out_of_bounds_local",
        "uninitialised_local",
    }


# Each thread writes its word of shared memory and reads another warp's.
EXCHANGE = """
    .shared .b32 words[64];
    mov.u32 %r3, words; shl.b32 %r4, %r1, 2; xor.b32 %r5, %r4, 128; add.u32 %r4, %r4, %r3; add.u32 %r5, %r5, %r3;
    add.u32 %r6, %r1, 100;
    st.shared.u32 [%r4], %r6;
    {arrive}
    barrier.cluster.wait;
    ld.shared.u32 %r7, [%r5];
    mul.wide.u32 %d1, %r1, 4; add.s64 %d1, %d10, %d1; st.global.u32 [%d1], %r7;
"""


def of_cluster(body: str) -> emulator.Module:
    return module("u64 x", body, ".version 8.6\n.target sm_90\n.address_size 64\n")


@pytest.mark.parametrize(
    ("arrive", "found"),
    [
        ("barrier.cluster.arrive;", set()),
        ("barrier.cluster.arrive.release.aligned; add.u32 %r8, %r8, 1;", set()),
        (
            "setp.lt.u32 %p3, %r1, 7; @%p3 bra L; barrier.cluster.arrive; bra M; L: barrier.cluster.arrive; M:",
            set(),
        ),
        ("fence.acq_rel.cluster; barrier.cluster.arrive.relaxed;", set()),
        ("fence.release.sync_restrict::shared::cta.cluster; barrier.cluster.arrive.relaxed;", set()),
        ("barrier.cluster.arrive.relaxed;", {"race_shared"}),
        ("barrier.cluster.arrive; st.shared.u32 [%r4], %r6;", {"race_shared"}),
    ],
)
def test_the_barrier_of_a_cluster_orders_what_came_before_its_arrival(arrive: str, found: set[str]) -> None:
    x = np.zeros(64, np.uint32)
    loaded = of_cluster(EXCHANGE.format(arrive=arrive))
    always(loaded, 1, 64, found)
    assert kinds(loaded, 1, 64, [x]) == found
    assert (x == (np.arange(64) ^ 32) + 100).all()


def test_the_barrier_of_a_cluster_waits_for_warps_that_have_not_exited() -> None:
    early = "@!%p1 bra GO; exit; GO: setp.lt.u32 %p3, %r1, 32; @%p3 exit; barrier.cluster.arrive; barrier.cluster.wait;"
    always(of_cluster(early), 1, 96, set())
    never = "setp.lt.u32 %p3, %r1, 32; @%p3 bra L; barrier.cluster.arrive; barrier.cluster.wait; L: bar.sync 0;"
    always(of_cluster(never), 1, 64, {"barrier_deadlock"})


def test_the_barrier_of_a_cluster_takes_one_arrival_and_one_wait_at_a_time() -> None:
    phases = "barrier.cluster.arrive; barrier.cluster.wait;"
    always(of_cluster(3 * phases), 1, 64, set())
    always(of_cluster(phases + "barrier.cluster.wait;"), 1, 64, {"barrier_invalid"})
    twice = "setp.lt.u32 %p3, %r1, 32; @%p3 barrier.cluster.arrive; @%p3 barrier.cluster.arrive; bar.sync 0;"
    always(of_cluster(twice + "@!%p3 barrier.cluster.arrive; barrier.cluster.wait;"), 1, 64, {"barrier_invalid"})


@pytest.mark.parametrize(
    "mapping",
    [
        "mapa.shared::cluster.u32 %r6, %r4, {rank}; st.shared::cluster.u32 [%r6], %r1;",
        "cvt.u64.u32 %d1, %r4; mapa.shared::cluster.u64 %d1, %d1, {rank}; st.shared::cluster.u32 [%d1], %r1;",
        "cvt.u64.u32 %d1, %r4; cvta.shared.u64 %d1, %d1; mapa.u64 %d1, %d1, {rank}; st.u32 [%d1], %r1;",
    ],
)
def test_addresses_of_a_cluster_are_the_block_s_own_or_out_of_bounds(mapping: str) -> None:
    start = """
    .shared .b32 words[64];
    mov.u32 %r3, words; shl.b32 %r4, %r1, 2; add.u32 %r4, %r4, %r3; cvt.u64.u32 %d2, %r4;
    getctarank.shared::cluster.u32 %r7, %r4; getctarank.shared::cluster.u64 %r8, %d2;
    cvta.shared.u64 %d2, %d2; getctarank.u64 %r9, %d2; or.b32 %r7, %r7, %r8; or.b32 %r7, %r7, %r9;
    """
    end = """
    ld.shared.u32 %r5, [%r4]; mad.lo.u32 %r5, %r7, 1000, %r5;
    mul.wide.u32 %d1, %r1, 4; add.s64 %d1, %d10, %d1; st.global.u32 [%d1], %r5;
    """
    x = np.zeros(64, np.uint32)
    assert kinds(of_cluster(start + mapping.format(rank="%r7") + end), 1, 64, [x]) == set()
    assert (x == np.arange(64)).all()
    assert "out_of_bounds_shared" in kinds(of_cluster(start + mapping.format(rank=1) + end), 1, 64, [x])


def test_no_address_is_that_of_a_texture() -> None:
    body = """
    mov.u32 %r3, 0;
    istypep.texref %p3, %d10; istypep.samplerref %p4, %d10; istypep.surfref %p5, 5;
    @%p3 add.u32 %r3, %r3, 1; @%p4 add.u32 %r3, %r3, 2; @%p5 add.u32 %r3, %r3, 4; st.global.u32 [%d10], %r3;
    """
    x = np.full(1, 9, np.uint32)
    assert kinds(module("u64 x", body), 1, 1, [x]) == set()
    assert x[0] == 0


def test_a_policy_for_caches_is_taken_and_changes_nothing() -> None:
    body = """
    createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 %d1, 0f3F000000;
    createpolicy.fractional.L2::evict_first.b64 %d2;
    mul.wide.u32 %d3, %r1, 4; add.s64 %d3, %d10, %d3;
    ld.global.L1::no_allocate.L2::cache_hint.u32 %r3, [%d3], %d1; add.u32 %r3, %r3, 5;
    st.global.L2::cache_hint.u32 [%d3], %r3, %d2; prefetch.global.L2 [%d3]; prefetchu.L1 [%d3];
    """
    x = np.arange(32, dtype=np.uint32)
    assert kinds(module("u64 x", body), 1, 32, [x]) == set()
    assert (x == np.arange(32) + 5).all()
