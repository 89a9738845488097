"""The performance model: blocks of PTX found again in machine code, counts of launches, times and what binds."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.bench import modelled, validation
from lowbitvm.cli import main
from lowbitvm.runtime import emulator, model
from lowbitvm.runtime.assemble import assemble, disassemble
from lowbitvm.runtime.compiled import without_lines
from lowbitvm.runtime.layer import Layer
from lowbitvm.runtime.linear import run_linear
from lowbitvm.runtime.work import linear_work

# Two loops: the first is unrolled by ptxas, the second goes as often as its argument says.
LOOPS = """.version 7.0
.target sm_80
.address_size 64
.visible .entry loops(.param .u64 x, .param .u32 count)
{
    .reg .pred %p<4>; .reg .b32 %r<10>; .reg .b64 %d<10>; .reg .f32 %f<4>;
    ld.param.u64 %d1, [x];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, 0;
    mov.f32 %f1, 0f00000000;
FIRST:
    mul.wide.u32 %d2, %r2, 4;
    add.s64 %d3, %d1, %d2;
    ld.global.f32 %f2, [%d3];
    add.f32 %f1, %f1, %f2;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %p1, %r2, 8;
    @%p1 bra FIRST;
    mov.u32 %r3, 0;
SECOND:
    .pragma "nounroll";
    mul.f32 %f1, %f1, %f1;
    add.s64 %d1, %d1, 4;
    st.global.f32 [%d1+64], %f1;
    add.u32 %r3, %r3, 1;
    setp.lt.u32 %p2, %r3, %r1;
    @%p2 bra SECOND;
    ret;
}
"""


def linear_report(m: int, n: int, k: int, fmt: str, target: str) -> "emulator.Report":
    weight = lb.quantize(np.ones((n, k), np.float32), fmt)
    x, y = np.ones((m, k), np.float16), np.zeros((m, n), np.float16)
    report = run_linear(x, weight, None, y, target, checks="none")
    assert report is not None
    return report


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90a", "sm_120f"])
def test_marks_of_blocks_do_not_change_the_machine_code(target: str) -> None:
    report = linear_report(16, 128, 512, "u4,group=128,zero=int", target)
    marked = assemble(model.mark(report.ptx), target, lines=True)
    plain = assemble(without_lines(report.ptx), target)
    code = [re.findall(r"/\*[0-9a-f]{4}\*/.*;", disassemble(cubin)) for cubin in (marked.cubin, plain.cubin)]
    assert code[0] == code[1]
    assert code[0]


def test_a_block_that_is_unrolled_counts_once_for_each_copy() -> None:
    x = np.ones(64, np.float32)
    report = emulator.load(LOOPS).launch("loops", (2,), (64,), [x, 5], arch="sm_80", checks="none")
    work = model.count(report)
    warps = 2 * 2
    assert work.instructions["LDG.E"] == warps * 8
    assert work.instructions["STG.E"] == warps * 5
    assert (work.blocks, work.threads) == (2, 64)
    assert work.traffic == 4 * (8 + 5)


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("m", [1, 16, 64, 128])
def test_as_many_matrix_instructions_are_counted_as_the_emulator_ran(m: int, target: str) -> None:
    report = linear_report(m, 256, 1024, "u3,group=128,zero=int", target)
    work = model.count(report)
    matrix = sum(times for name, times in work.instructions.items() if name.startswith("HMMA"))
    assert matrix == pytest.approx(report.counters.mma, rel=1e-9)


def test_one_tile_stands_for_all_of_them() -> None:
    shape, fmt = (16, 512, 1024), lb.Format.parse("u4,group=128,zero=int")
    whole = model.count(linear_report(*shape, str(fmt), "sm_80"))
    layer = Layer(fmt, *shape, "sm_80")
    part = linear_work(layer, layer.plan)
    assert part.instructions.total() == pytest.approx(whole.instructions.total(), rel=0.02)
    assert part.blocks == whole.blocks
    assert part.traffic == pytest.approx(whole.traffic, rel=0.02)


def test_the_longest_limit_binds_and_more_of_anything_is_not_faster() -> None:
    layer = Layer(lb.Format.parse("u4,group=128"), 16, 4096, 4096, "sm_80")
    work = linear_work(layer, layer.plan)
    found = model.predict(work)
    assert found.time == found.overhead + max(found.limits.values())
    assert found.limits[found.bound] == max(found.limits.values())
    for more in ({"traffic": 9 * work.traffic}, {"wavefronts": 99 * work.wavefronts}, {"sectors": 99 * work.sectors}):
        assert model.predict(replace(work, **more)).time > found.time
    slow = replace(targets.get("sm_80").gpu, dram_gbs=100)
    assert model.predict(work, slow).bound == "memory"


def test_few_rows_are_bound_by_memory_and_many_by_the_matrix_units_or_their_operands() -> None:
    few = modelled.row("a100", "u8,group=128", (1, 8192, 8192))
    many = modelled.row("a100", "u4,group=128", (4096, 8192, 8192))
    assert few.bound == "memory"
    assert many.bound in ("tensor", "shared")
    assert 0.5 < few.roofline_share < 1
    assert 0.5 < many.roofline_share < 1


def test_an_unknown_gpu_is_an_error() -> None:
    with pytest.raises(lb.LowbitvmError, match="TARGET_UNKNOWN"):
        targets.gpu("voodoo2")


def test_the_command_says_what_binds_and_refuses_what_is_no_shape() -> None:
    result = CliRunner().invoke(main, ["model", "u4,group=64", "--gpu", "h100", "--shape", "3,500,640"])
    assert result.exit_code == 0, result.output
    assert "bound by" in result.output
    assert "not measured" in result.output
    assert CliRunner().invoke(main, ["model", "u4", "--shape", "3,500"]).exit_code == 2
    integers = CliRunner().invoke(main, ["model", "u2,act=i8", "--shape", "1,512,512"])
    assert integers.exit_code == 0, integers.output
    assert all(launch in integers.output for launch in ("quantiser", "product"))


def counted() -> dict[tuple[str, int], model.Work]:
    """What `validation.humming_work` counts, as the file has it."""
    found = {}
    for key, values in json.loads((Path(__file__).parent / "data" / "humming_work.json").read_text()).items():
        gpu, weights = key.split()
        target, instructions = targets.get(values.pop("target")), Counter(values.pop("instructions"))
        found[gpu, int(weights[1:])] = model.Work(target=target, instructions=instructions, **values)
    return found | {("h200", bits): found["h100", bits] for bits in validation.WIDTHS}


def test_published_times_of_another_library_s_kernels_are_predicted() -> None:
    points = validation.points(counted())
    errors = [abs(point.error) for point in points]
    assert len(errors) == 32
    assert sum(error <= 0.2 for error in errors) >= 24
    assert max(errors) <= 0.4
    times = {gpu: [p.kernel_us for p in points if p.gpu == gpu] for gpu in validation.PUBLISHED}
    for one in times.values():
        assert one[1:] == sorted(one[1:])
    assert times["a100"][0] >= times["a100"][1]  # one bit is no faster than two where decoding costs the same
    assert times["h200"][0] >= times["h200"][1]
    assert times["rtx4090"][0] < times["rtx4090"][1]


def test_the_counts_in_the_file_are_those_of_the_kernel() -> None:
    work, kept = validation.humming_work("a100", 1), counted()["a100", 1]
    assert (work.blocks, work.threads, work.shared, work.traffic) == (
        kept.blocks, kept.threads, kept.shared, kept.traffic
    )  # fmt: skip
    assert work.instructions.total() == pytest.approx(kept.instructions.total(), rel=0.05)  # nvcc's version may differ
