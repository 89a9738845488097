"""Counters, JSON, table and page of a launch, against counts made by hand."""

import html.parser
import io
import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from lowbitvm.runtime import emulator
from lowbitvm.runtime.emulator import launch as launching
from lowbitvm.runtime.emulator.classes import CLASSES, class_of, matrix_form
from lowbitvm.runtime.emulator.results import TALLY

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
REGISTERS = ".reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<40>; .reg .f32 %f<16>; .reg .b64 %d<16>;"
# %r1: thread number, %d1: x, %d2: x + 4 thread, %r2: shared address + 4 thread
START = """ld.param.u64 %d1, [x]; mov.u32 %r1, %tid.x; mul.wide.u32 %d2, %r1, 4; add.s64 %d2, %d1, %d2;
mov.u32 %r2, tile; mad.lo.u32 %r3, %r1, 4, %r2; mov.u32 %r9, 0;"""


def launch(body: str, array: object = None, block: int = 32, grid: int = 1, **options: object) -> emulator.Report:
    """Runs `body` after START; its first line is FIRST_LINE of the text."""
    text = (
        f"{HEADER}.visible .entry k(.param .u64 x)\n{{\n{REGISTERS}\n.shared .align 16 .b8 tile[8192];\n{START}\n"
        f"{body}\nret;\n}}\n"
    )
    array = np.zeros(4096, np.uint32) if array is None else array
    return emulator.load(text).launch("k", (grid,), (block,), [array], on_finding="collect", **options)


FIRST_LINE = 10


def line_of(report: emulator.Report, start: str) -> emulator.LineCounters:
    (found,) = [line for line in report.lines if line.text.startswith(start)]
    return found


def test_each_line_has_its_own_instructions_and_active_lanes() -> None:
    report = launch(
        "setp.lt.u32 %p1, %r1, 40;\n@%p1 add.u32 %r9, %r9, 1;\nLOOP: add.u32 %r9, %r9, 1;", block=64, grid=3
    )
    setp, add = (line_of(report, start) for start in ("setp", "@%p1"))
    assert (setp.line, setp.instructions, setp.lanes, setp.active_lanes) == (FIRST_LINE, 6, 6 * 32, 32)
    assert (add.line, add.instructions, add.lanes, add.active_lanes) == (FIRST_LINE + 1, 6, 3 * 40, 20)
    assert report.counters.by_line == {line.line: line.instructions for line in report.lines}
    assert report.counters.instructions == sum(line.instructions for line in report.lines)
    assert report.counters.lanes == sum(line.lanes for line in report.lines)


def test_a_line_that_is_never_reached_counts_nothing() -> None:
    report = launch("bra.uni END;\nst.shared.u32 [%r3], %r1;\nEND:")
    line = line_of(report, "st.shared")
    assert (line.instructions, line.active_lanes, line.conflict_degree) == (0, 0, 0)


def test_instructions_are_counted_by_class() -> None:
    body = """mov.b32 %f1, 0f3F800000; add.f32 %f2, %f1, %f1; rcp.approx.f32 %f3, %f2; cvt.rni.s32.f32 %r4, %f3;
    st.shared.u32 [%r3], %r1; bar.sync 0; ld.shared.u32 %r5, [%r3]; ld.global.u32 %r6, [%d2];
    shfl.sync.bfly.b32 %r7, %r6, 1, 31, -1; red.global.add.u32 [%d1], %r7; cp.async.ca.shared.global [%r3], [%d2], 4;
    cp.async.wait_all;"""
    counts = launch(body, checks="none").counters.by_class
    assert list(counts) == list(CLASSES)
    # of START: ld.param, mul, add, mad; three moves; the ret
    expected = {"param": 1, "integer": 3, "move": 4, "float": 1, "special": 1, "conversion": 1, "shared": 2,
                "barrier": 1, "global": 1, "exchange": 1, "atomic": 1, "copy": 2, "control": 1}  # fmt: skip
    assert {name: count for name, count in counts.items() if count} == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ld.global.nc.L1::no_allocate.v4.u32", "global"),
        ("st.shared::cta.u8", "shared"),
        ("ld.u32", "generic"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16", "shared"),
        ("wmma.load.a.sync.aligned.row.m16n16k16.shared.f16", "shared"),
        ("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32", "matrix"),
        ("fma.rn.f16x2", "half"),
        ("fma.rn.f64", "double"),
        ("setp.ge.s32", "integer"),
        ("setp.ge.f32", "float"),
        ("and.pred", "predicate"),
        ("lop3.b32", "integer"),
        ("vabsdiff4.u32.u32.u32.add", "integer"),
        ("vmad.s32.u32.s32", "integer"),
        ("cvt.rn.f16.f32", "conversion"),
        ("bar.warp.sync", "barrier"),
        ("ex2.approx.ftz.f16x2", "special"),
        ("movmatrix.sync.aligned.m8n8.trans.b16", "exchange"),
        ("mov.pred", "predicate"),
    ],
)
def test_the_class_of_an_instruction_follows_from_its_name(name: str, kind: str) -> None:
    assert class_of(name) == kind


@pytest.mark.parametrize(
    ("name", "form", "products"),
    [
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "m16n8k16.f32.f16.f16.f32", 16 * 8 * 16),
        ("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc", "m16n8k256.s32.b1.b1.s32.and.popc", 16 * 8 * 256),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32", "m8n8k4.f32.f16.f16.f32", 4 * 8 * 8 * 4),
        ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64", "m8n8k4.f64.f64.f64.f64", 8 * 8 * 4),
        ("mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32", "m16n8k32.sp.f32.f16.f16.f32", 16 * 8 * 32 // 2),
        ("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32", "m16n16k16.f32.f32", 16 * 16 * 16),
    ],
)
def test_the_products_of_a_matrix_instruction_follow_from_its_name(name: str, form: str, products: int) -> None:
    assert matrix_form(name) == (form, products)


def test_other_instructions_have_no_matrix_form() -> None:
    assert matrix_form("wmma.load.a.sync.aligned.row.m16n16k16.shared.f16") is None
    assert matrix_form("wgmma.fence.sync.aligned") is None
    assert matrix_form("mad.lo.u32") is None


def test_matrix_instructions_are_counted_by_shape_and_type() -> None:
    mma = "mma.sync.aligned.m16n8k{}.row.col.f32.{}.{}.f32 {{%f1,%f2,%f3,%f4}}, {}, {}, {{%f1,%f2,%f3,%f4}};"
    zero = "".join(f"mov.b32 %f{n}, 0;" for n in range(1, 5)) + "".join(f"mov.b32 %r{n}, 0;" for n in range(10, 16))
    wide = mma.format(16, "bf16", "bf16", "{%r10,%r11,%r12,%r13}", "{%r14,%r15}")
    narrow = mma.format(8, "f16", "f16", "{%r10,%r11}", "{%r14}")
    counters = launch(f"{zero} {wide} {wide} setp.lt.u32 %p1, %r1, 32; @%p1 {narrow}", block=64, grid=2).counters
    assert counters.matrix == {
        "m16n8k16.f32.bf16.bf16.f32": emulator.MatrixCount(8, 8 * 2048),
        "m16n8k8.f32.f16.f16.f32": emulator.MatrixCount(2, 2 * 1024),  # the second warp's guard is false
    }
    assert counters.mma == 10


def test_how_far_matrix_products_are_from_exact_sums_is_reported_where_asked() -> None:
    """Products of 2^24 beside products of 1, of which the unit cuts bits off."""
    one, big = "mov.b32 %r10, 0x3C003C00; mov.b32 %r11, 0x6C003C00;", "mov.b32 %f1, 0;"
    body = f"""{one} {big} mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{%f2,%f3,%f4,%f5}},
    {{%r11,%r11,%r10,%r10}}, {{%r11,%r10}}, {{%f1,%f1,%f1,%f1}};"""
    rounding = launch(body, numerics="bound").counters.rounding
    assert rounding is not None
    assert 0 < rounding.distance <= rounding.bound and 0 < rounding.share <= 1
    assert json.loads(launch(body, numerics="bound").to_json())["counters"]["rounding"]["bound"] == rounding.bound
    assert launch(body).counters.rounding is None


MMA = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f2,%f3,%f4,%f5},"
# Row 1 of A, in lane 5, makes a product of 2^24, row 2, in lane 8, one of NaN; all others are at most 2^12.
UNEVEN = """mov.b32 %r10, 0x3C003C00; mov.b32 %r12, %r10; mov.b32 %f1, 0f40400000; and.b32 %r13, %r1, 31;
setp.eq.u32 %p1, %r13, 5; @%p1 mov.b32 %r10, 0x6C003C00; setp.eq.u32 %p2, %r13, 8; @%p2 mov.b32 %r10, 0x7FFF7FFF;
mov.b32 %r11, 0x6C003C00;"""


def test_every_line_has_the_rounding_of_its_own_products() -> None:
    plain, uneven = "{%r12,%r12,%r12,%r12}, {%r12,%r12}", "{%r10,%r12,%r12,%r12}, {%r11,%r12}"
    body = f"{UNEVEN}\n{MMA} {plain}, {{%f1,%f1,%f1,%f1}};\n{MMA} {uneven}, {{%f1,%f1,%f1,%f1}};\nadd.u32 %r9, %r9, 1;"
    report = launch(body, numerics="bound", block=64, grid=3)
    first, second = (line.rounding for line in report.lines if line.text.startswith("mma"))
    assert first is not None and second is not None and line_of(report, "add.u32").rounding is None
    assert (first.outputs, first.unbounded, first.distance, first.share) == (6 * 128, 0, 0, 0)
    assert (second.outputs, second.unbounded) == (6 * 128, 6 * 8)
    assert second.bound > 1000 * first.bound and 0 < second.share <= 1 and 0 < second.distance <= second.bound
    assert second.block == (0, 0, 0) and second.thread[0] % 32 // 4 == 1
    total = report.counters.rounding
    assert total is not None
    assert (total.outputs, total.unbounded) == (12 * 128, 6 * 8)
    assert (total.bound, total.share, total.thread) == (second.bound, second.share, second.thread)
    again = launch(body, numerics="bound", block=64, grid=3, workers=1)
    assert again.counters.rounding == total and again.lines == report.lines
    written = [line["rounding"] for line in json.loads(report.to_json())["lines"]]
    assert [rounding["unbounded"] for rounding in written if rounding] == [0, 48]
    assert "Rounding of matrix products" in report.to_html() and "rounding of matrix products" in shown(report, 160)
    assert "Rounding of matrix products" not in launch(body).to_html()


def test_a_product_beyond_its_bound_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core gives none, so that one is put into what it returns."""
    core = launching.CORE

    def run(*args: object) -> object:
        counts, *rest = core.run(*args)
        rows = struct.iter_unpack(TALLY, counts)
        return b"".join(struct.pack(TALLY, *row[:9], 1.5 * (row[10] > 0), *row[10:12], 1, 37) for row in rows), *rest

    broken = SimpleNamespace(run=run, opcodes=core.opcodes, instruction_bytes=core.instruction_bytes)
    monkeypatch.setattr(launching, "CORE", broken)
    body = f"{UNEVEN}\n{MMA} {{%r10,%r12,%r12,%r12}}, {{%r11,%r12}}, {{%f1,%f1,%f1,%f1}};"
    report = launch(body, numerics="bound", block=64, grid=3)
    (finding,) = report.findings
    assert (finding.kind, finding.block, finding.thread) == ("beyond_bound", (1, 0, 0), (37, 0, 0))
    assert finding.text.startswith("mma.sync") and "1.5 times its proven bound" in finding.message
    assert launch(body, block=64, grid=3).findings == []


def test_shared_wavefronts_stand_beside_the_fewest_possible() -> None:
    """Words apart by 8: eight lanes meet in each of four banks."""
    free = line_of(launch("st.shared.u32 [%r3], %r1;"), "st")
    assert (free.shared_wavefronts, free.fewest_wavefronts, free.conflict_degree, free.bank_conflicts) == (1, 1, 1, 0)
    bad = line_of(launch("mad.lo.u32 %r4, %r1, 32, %r2;\nst.shared.u32 [%r4], %r1;"), "st")
    assert (bad.shared_wavefronts, bad.fewest_wavefronts, bad.conflict_degree, bad.bank_conflicts) == (8, 1, 8, 7)


def test_global_sectors_stand_beside_the_fewest_possible() -> None:
    assert line_of(launch("ld.global.u32 %r4, [%d2];"), "ld.global").global_sectors == 4
    apart = line_of(
        launch("mul.wide.u32 %d3, %r1, 128; add.s64 %d3, %d1, %d3;\nld.global.u32 %r4, [%d3];"), "ld.global"
    )
    assert (apart.global_sectors, apart.fewest_sectors) == (32, 4)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_each_byte_of_an_array_is_counted_once_as_distinct(offset: int) -> None:
    """Random accesses of all sizes to a view that is aligned like its owner, against a count in numpy."""
    owner = np.zeros((1 << 19) + 64, np.uint8)
    array = owner[offset : offset + (1 << 19) + 13]
    start, size = array.ctypes.data - owner.ctypes.data, array.nbytes
    rng, read, written, body = np.random.default_rng(offset), np.zeros(size, bool), np.zeros(size, bool), []
    totals = [0, 0]
    for _ in range(60):
        kind, width = [("u8", 1), ("u16", 2), ("u32", 4), ("u64", 8)][rng.integers(4)]
        stride = int(rng.choice([0, 1, 1, 2, 5])) * width
        first = int(rng.choice([0, (1 << 18) - 64 - start, rng.integers(0, 1 << 17)]))
        first += -(first + start) % width  # aligned as an address
        store = bool(rng.integers(2))
        register = "%d4" if width == 8 else "%r4"
        value = (
            f"st.global.{kind} [%d3+{first}], {register};" if store else f"ld.global.{kind} {register}, [%d3+{first}];"
        )
        body.append(f"mul.wide.u32 %d3, %r1, {stride}; add.s64 %d3, %d1, %d3; mov.u64 %d4, 0; mov.u32 %r4, 0; {value}")
        for lane in range(32):
            (written if store else read)[first + lane * stride : first + lane * stride + width] = True
        totals[store] += 32 * width
    traffic = launch("\n".join(body), array, checks="none").counters.arrays[0]
    assert (traffic.read, traffic.written) == tuple(totals)
    assert (traffic.distinct_read, traffic.distinct_written) == (read.sum(), written.sum())
    assert (traffic.size, traffic.name) == (size, "x")


def test_whole_rows_read_by_several_blocks_are_distinct_once() -> None:
    traffic = launch("ld.global.u32 %r4, [%d2];", block=128, grid=6).counters.arrays[0]
    assert (traffic.read, traffic.distinct_read, traffic.reads_per_byte) == (6 * 512, 512, 6)
    assert (traffic.written, traffic.distinct_written) == (0, 0)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_counts_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    body = """mov.u32 %r4, %ctaid.x; mul.wide.u32 %d3, %r4, 64; add.s64 %d3, %d2, %d3; ld.global.u32 %r5, [%d3];
    mad.lo.u32 %r6, %r4, 4, %r3; st.shared.u32 [%r6], %r5; mul.wide.u32 %d4, %r4, 512; add.s64 %d4, %d2, %d4;
    st.global.u32 [%d4+4096], %r5;"""
    report = launch(body, block=128, grid=20, workers=workers)
    traffic = report.counters.arrays[0]
    assert (traffic.read, traffic.distinct_read) == (20 * 512, 19 * 64 + 512)  # blocks overlap
    assert (traffic.written, traffic.distinct_written) == (20 * 512, 20 * 512)
    assert report.to_json() == launch(body, block=128, grid=20, workers=1).to_json()


def test_asynchronous_copies_and_atomics_count_as_traffic() -> None:
    copy = "cp.async.ca.shared.global [%r3], [%d2], 4; cp.async.wait_all;"
    traffic = launch(copy).counters.arrays[0]
    assert (traffic.read, traffic.distinct_read, traffic.written) == (128, 128, 0)
    traffic = launch("red.global.add.u32 [%d1], 1;").counters.arrays[0]
    assert (traffic.read, traffic.distinct_read, traffic.written, traffic.distinct_written) == (128, 4, 128, 4)


def test_an_array_that_is_never_read_has_no_rate() -> None:
    assert launch("").counters.arrays[0].reads_per_byte == 0


RACE = """st.shared.u32 [%r2], %r1;
ld.global.u32 %r4, [%d1+16384]; // <script>alert(1)</script> & so on
ld.global.u32 %r5, [%d2];"""


def test_the_json_has_every_counter_and_finding() -> None:
    report = launch(RACE, block=64)
    data = json.loads(report.to_json())
    assert data["schema"] == 1
    assert data["launch"]["entry"] == "k"
    assert (data["launch"]["grid"], data["launch"]["block"]) == ([1, 1, 1], [64, 1, 1])
    assert data["counters"]["instructions"] == report.counters.instructions
    assert data["counters"]["by_class"]["shared"] == 2
    assert data["counters"]["bank_conflicts"] == report.counters.bank_conflicts
    assert [line["line"] for line in data["lines"]] == [line.line for line in report.lines]
    assert sum(line["instructions"] for line in data["lines"]) == report.counters.instructions
    assert data["arrays"][0]["argument"] == 0 and data["arrays"][0]["name"] == "x"
    kinds = {finding["kind"]: finding for finding in data["findings"]}
    assert set(kinds) == {finding.kind for finding in report.findings} >= {"race_shared", "out_of_bounds_global"}
    assert kinds["out_of_bounds_global"]["line"] == FIRST_LINE + 1
    assert len(kinds["out_of_bounds_global"]["thread"]) == 3
    assert kinds["out_of_bounds_global"]["other"] is None
    assert kinds["race_shared"]["other"]["line"] == FIRST_LINE


def test_the_same_launch_gives_the_same_json() -> None:
    assert launch(RACE, seed=3).to_json(indent=2) == launch(RACE, seed=3).to_json(indent=2)


class Page(html.parser.HTMLParser):
    """Checks nesting; collects ids, links, tags and the cells of the listing."""

    VOID = ("meta", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.rows: dict[str, list[str]] = {}
        self.row = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if "href" in found else []
        if tag == "tr":
            self.row = found.get("id") or ""
            self.rows[self.row] = []
        if tag == "td":
            self.rows[self.row].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.rows[self.row][-1] += data


def test_the_page_annotates_every_line_and_links_the_findings(tmp_path) -> None:
    report = launch(RACE, block=64)
    text = report.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)  # nothing outside the page
    assert {f"F{n}" for n in range(1, len(report.findings) + 1)} <= set(page.ids)
    lines = report.ptx.splitlines()
    for number, line in enumerate(lines, 1):
        assert page.rows[f"L{number}"][0] == str(number)
        assert page.rows[f"L{number}"][-1].startswith(line)
    store = page.rows[f"L{FIRST_LINE}"]
    assert store[1] == "2" and "finding" in store[-1]
    (race,) = [finding for finding in report.findings if finding.kind == "race_shared"]
    assert race.other is not None and f'the other: <a href="#L{race.other.line}">line {race.other.line}</a>' in text


def test_a_finding_and_its_line_name_the_source_that_loc_gives() -> None:
    text = f"""{HEADER}.file 1 "sum.cu"\n.visible .entry k(.param .u64 x)\n{{ {REGISTERS} ld.param.u64 %d1, [x];
    .loc 1 42 7\n    st.global.u32 [%d1+64], 1; ret; }}"""
    report = emulator.load(text).launch("k", (1,), (1,), [np.zeros(4, np.uint32)], on_finding="collect")
    assert [finding.source for finding in report.findings] == ["sum.cu:42"]
    assert "sum.cu:42" in str(report.findings[0])
    assert {line.text.strip(): line.source for line in report.lines}["st.global.u32 [%d1+64], 1; ret; }"] == "sum.cu:42"
    assert '<td class="source">sum.cu:42</td>' in report.to_html()


def test_the_page_escapes_what_the_ptx_says_and_runs_nothing() -> None:
    text = launch(RACE, block=64).to_html()
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so on" in text
    assert not Page(text).tags & {"script", "link", "img", "iframe"}


def shown(report: emulator.Report, width: int) -> str:
    """The table as a terminal has it."""
    file = io.StringIO()
    Console(width=width, file=file).print(report)
    return file.getvalue()


def test_the_table_shows_counters_arrays_lines_and_findings() -> None:
    report = launch(RACE, block=64)
    text = shown(report, 160)
    for part in ("warp instructions", "global sectors", "conflict", "ld.global.u32 %r4, [%d1+16384]", "race_shared"):
        assert part in text
    assert f"{report.counters.instructions:,}" in text


def test_the_table_keeps_its_numbers_where_lines_are_long() -> None:
    report = launch(f"add.u32 %r9, %r9, 1; // {'long ' * 40}\nLOOP: add.u32 %r9, %r9, 1;")
    text = shown(report, 80)
    (row,) = [line for line in text.splitlines() if line.split()[:1] == [str(FIRST_LINE)]]
    assert row.split()[:5] == [str(FIRST_LINE), "1", "10.0", "%", "32.0"]
    assert max(map(len, text.splitlines())) <= 80


def test_a_launch_that_is_stopped_leaves_its_report_in_the_error() -> None:
    text = (
        f"{HEADER}.visible .entry k(.param .u64 x)\n{{ {REGISTERS} ld.param.u64 %d1, [x]; st.u32 [%d1+64], 1; ret; }}"
    )
    with pytest.raises(emulator.EmulatorError) as error:
        emulator.load(text).launch("k", (1,), (1,), [np.zeros(4, np.uint32)])
    assert error.value.report.findings == [error.value.finding]
    assert error.value.report.counters.instructions == 2
