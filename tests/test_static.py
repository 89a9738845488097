"""The static bench: loops found in machine code, instructions and pipes counted, rows, the command."""

import json
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.bench import measure, ours, static
from lowbitvm.bench.jobs import run_all
from lowbitvm.bench.ours import Variant
from lowbitvm.cli import main
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import NAMED
from lowbitvm.plan import chosen_tile
from lowbitvm.runtime import emulator, pipes
from lowbitvm.runtime.assemble import assemble, disassemble
from lowbitvm.runtime.compiled import without_lines
from lowbitvm.runtime.loops import main_nest, natural_loops, read_ptx, read_sass
from lowbitvm.runtime.together import assemble_together

ROOT = Path(__file__).parent.parent
INTEGERS = [*(f"u{n}" for n in range(1, 9)), *(f"i{n}" for n in range(2, 9)), *(f"bp{n}" for n in range(1, 9))]
COLUMNS = [
    "tool", "weights", "act", "group", "zero", "target", "tile", "mac_per_instruction", "instructions_per_weight",
    "decode_per_weight", "tensor_share", "registers", "spills", "shared", "bank_conflicts", "bytes_in_flight",
]  # fmt: skip


def sass(*lines: str) -> str:
    """nvdisasm's output for instructions and labels ("L1:"; operands name them as L1)."""
    text = [".text.kernel:"]
    for address, line in enumerate(lines):
        label = re.fullmatch(r"(L\d+):", line)
        named = re.sub(r"\b(L\d+)$", r"`(.\1)", line)
        text.append(f".{label[1]}:" if label else f"        /*{16 * address:04x}*/                   {named} ;")
    return "\n".join(text)


def names(level) -> list[str]:
    return [instruction.name for instruction in level]


NESTED = sass(
    "MOV R1, c[0x0][0x28]",
    "L1:",  # once per tile
    "S2R R0, SR_TID.X",
    "L2:",  # once per stage
    "LDS R2, [R0]",
    "@!P0 BRA L4",
    "L3:",
    "HMMA.16816.F32 R4, R8, R12, R4",
    "LDGSTS.E.BYPASS.128 [R3], [R6.64]",
    "HMMA.16816.F32 R4, R8, R12, R4",
    "@P1 BRA L3",
    "L4:",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "BRA.U UP0, L2",
    "STG.E [R2.64], R4",
    "@P2 BRA L1",
    "EXIT",
    "L5:",
    "BRA L5",  # what ptxas puts behind the code
)


def test_loops_nest_from_the_one_with_the_matrix_instructions_outwards():
    levels = main_nest(read_sass(NESTED)).levels
    assert names(levels[0]) == ["HMMA.16816.F32", "LDGSTS.E.BYPASS.128", "HMMA.16816.F32", "BRA"]
    assert names(levels[1]) == ["LDS", "BRA", "BAR.SYNC.DEFER_BLOCKING", "BRA.U"]
    assert names(levels[2]) == ["S2R", "STG.E", "BRA"]
    assert len(levels) == 3


def test_an_outer_loop_counts_by_the_turns_of_the_loops_inside_it():
    nest = main_nest(read_sass(NESTED))
    assert nest.counts([]).total() == 11
    counts = nest.counts([4, 16])
    assert counts["HMMA.16816.F32"] == 2
    assert counts["LDS"] == 1 / 4 and counts["BAR.SYNC.DEFER_BLOCKING"] == 1 / 4
    assert counts["STG.E"] == 1 / 64
    assert counts["BRA"] == 1 + 1 / 4 + 1 / 64


def test_blocks_behind_the_exit_belong_to_the_loop_that_they_come_back_to():
    code = read_sass(
        sass(
            "L1:",
            "@P0 BRA L3",
            "HMMA.16816.F32 R4, R8, R12, R4",
            "L2:",
            "@P1 BRA L1",
            "@P2 BRA L4",  # leaves for good
            "EXIT",
            "L3:",
            "LDS R2, [R0]",
            "BRA L2",
            "L4:",
            "STG.E [R2.64], R4",
            "EXIT",
        )
    )
    (level,) = main_nest(code).levels
    assert names(level) == ["BRA", "HMMA.16816.F32", "BRA", "LDS", "BRA"]


def test_a_backward_branch_into_code_that_is_entered_otherwise_too_makes_no_loop():
    code = read_sass(
        sass("@P0 BRA L2", "L1:", "HMMA.16816.F32 R4, R8, R12, R4", "EXIT", "L2:", "LDS R2, [R0]", "BRA L1")
    )
    assert natural_loops(code) == []
    with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID: 5 instructions with 1 matrix instructions have no loop"):
        main_nest(code)


def test_of_several_loops_the_one_with_the_most_matrix_instructions_is_the_main_loop():
    product = "HMMA.16816.F32 R4, R8, R12, R4"
    code = read_sass(sass("L1:", product, "@P0 BRA L1", "L2:", product, product, "@P0 BRA L2", "EXIT"))
    assert names(main_nest(code).levels[0]) == ["HMMA.16816.F32", "HMMA.16816.F32", "BRA"]


PTX = """
.version 7.5
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry products(.param .u64 result, .param .u32 outer, .param .u32 inner)
{
.reg .pred %p<4>;
.reg .b32 %r<20>;
.reg .b64 %rd<4>;
.reg .f32 %f<4>;
ld.param.u64 %rd0, [result];
ld.param.u32 %r0, [outer];
ld.param.u32 %r1, [inner];
mov.u32 %r2, %tid.x;
shl.b32 %r3, %r2, 3;
mov.u32 %r4, smem;
add.u32 %r3, %r3, %r4;
st.shared.b32 [%r3], %r2;
mov.f32 %f0, 0f00000000;
mov.f32 %f1, %f0;
mov.f32 %f2, %f0;
mov.f32 %f3, %f0;
outer_loop:
mov.u32 %r5, %r1;
bar.warp.sync 0xffffffff;
inner_loop:
.pragma "nounroll";
ld.volatile.shared.b32 %r6, [%r3];
mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3}, {%r6,%r6,%r6,%r6}, {%r6,%r6}, {%f0,%f1,%f2,%f3};
sub.u32 %r5, %r5, 1;
setp.ne.u32 %p0, %r5, 0;
@%p0 bra inner_loop;
sub.u32 %r0, %r0, 1;
setp.ne.u32 %p1, %r0, 0;
@%p1 bra outer_loop;
st.global.f32 [%rd0], %f0;
ret;
}
"""


def test_the_assembler_s_own_code_has_the_loops_of_the_ptx():
    code = read_sass(disassemble(assemble(PTX, "sm_80").cubin))
    nest = main_nest(code)
    assert len(nest.levels) == 2
    assert nest.matrix == 1 and len(main_nest(read_ptx(PTX)).levels) == 2
    assert {"LDS", "BRA"} <= set(names(nest.levels[0]))
    assert "BRA" in names(nest.levels[1]) and not {"LDS", "STG", "STG.E", "EXIT"} & set(names(nest.levels[1]))


def test_conflicts_are_those_of_the_main_loop_alone():
    module = emulator.load(PTX)
    report = module.launch(
        "products", (1, 1, 1), (32, 1, 1), [np.zeros(1, np.float32), 2, 3], shared=256, checks="none"
    )
    # Words two apart: the 32 lanes meet in 16 banks, two passes instead of one, in 6 turns and in the store before.
    assert report.counters.bank_conflicts == 7
    assert measure.main_loop_conflicts(report, PTX) == 6


def test_every_instruction_of_our_loop_runs_once_per_turn_and_warp():
    kernel = lb.compile_linear("u4", zero="float", target="sm_80", bm=16)
    nest = main_nest(read_ptx(kernel.ptx))
    weight = lb.quantize(np.ones((128, 2048), np.float32), lb.Format("u4", zero="float"))
    x, y = np.zeros((16, 2048), np.float16), np.zeros((16, 128), np.float16)
    counters = lb.launch(kernel, (1, 1), {"x": x, "w": weight, "y": y}).counters
    turns, rest = divmod(counters.mma, nest.matrix)  # of all warps
    warps = kernel.code.threads // 32
    assert rest == 0 and turns > 2 * warps
    lines = {instruction.line for instruction in nest.levels[0]}
    assert lines == {line for line, count in counters.by_line.items() if count > warps}
    # A loop may be left in the midst of its last turn.
    assert all(turns - warps <= counters.by_line[line] <= turns for line in lines)


def test_weights_per_product_leave_out_the_row_sums_that_the_ptx_shows():
    fmt = lb.Format("u4", zero="float")
    kernel = lb.compile_linear(fmt, target="sm_80", bm=8)
    run = ours.emulate(kernel, fmt, "f16", chosen_tile(fmt, bm=8))
    # A fragment of weights is multiplied once, one of activations with two row tiles, one of ones again and again.
    products = re.findall(r"mma\.sync\S+ \{[^}]*\}, \{([^}]*)\}, \{([^}]*)\}", kernel.ptx)
    ((_, sums),) = Counter(operand for pair in products for operand in pair).most_common(1)
    assert 2 < sums < len(products)
    assert run.weights_per_matrix == pytest.approx(256 * (1 - sums / len(products)), rel=1e-12)


def test_what_is_loaded_before_the_loop_is_ahead_of_the_products():
    copy = "cp.async.cg.shared.global [%r1], [%rd1], 16;"
    product = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0}, {%r1}, {%r2}, {%f0};"
    waits = ["cp.async.commit_group;", "cp.async.wait_group 2;"]
    turn = [copy, waits[0], product, copy, product, waits[1], product, product]  # 4 products, 2 copies
    text = [".visible .entry k()", "{", *[copy] * 6, *waits, "loop:", *turn, "@%p1 bra loop;", copy, "ret;", "}"]
    # A turn covers 4 x 16 of k, the copies before it three times as much.
    assert ours.ahead("\n".join(text), 16.0) == 192
    assert ours.ahead("\n".join(line for line in text if line != copy), 16.0) == 0
    # Loads of other things before the loop do not count, unless the loop has no other copies.
    load = "ld.global.nc.v4.b32 {%r1}, [%rd1];"
    assert ours.ahead("\n".join([*text[:2], load, *text[2:]]), 16.0) == 192
    assert ours.ahead("\n".join(line.replace(copy, load) for line in text), 16.0) == 192


@pytest.mark.parametrize(("tile", "expected"), [("8", 256), ("16x128x64", 128), ("64x128x64", 32)])
def test_without_row_sums_a_product_stands_for_its_share_of_256_weights(tile, expected):
    (built,) = ours.build([Variant("u4", "f16", 128, "none", "sm_80", tile)])
    assert built.weights_per_matrix == expected


def test_a_row_s_figures_are_those_counted_by_hand():
    (built,) = ours.build([Variant("u4", "f16", 128, "none", "sm_80", "16x128x64")])
    row = measure.measure(built)
    text = built.sass.splitlines()
    last = next(at for at in reversed(range(len(text))) if "HMMA" in text[at])
    end = next(at for at in range(last, len(text)) if re.search(r"BRA.*\(\.L_x_\d+\)", text[at]))
    label = re.search(r"\((\.L_x_\d+)\)", text[end])[1]
    loop = [line for line in text[text.index(f"{label}:") : end + 1] if "/*" in line]
    counts = Counter(re.sub(r"@!?U?P\d+ ", "", line).split()[1].split(".")[0] for line in loop)
    weights = 128 * counts["HMMA"]  # of a warp: 16 x 16 of them in two products, with 8 rows of activations each
    assert row.mac_per_instruction == pytest.approx(16 * weights / len(loop), rel=1e-4)
    assert row.instructions_per_weight == pytest.approx(len(loop) / (weights / 32), rel=1e-4)
    assert row.tensor_share == pytest.approx(counts["HMMA"] / len(loop), abs=1e-4)
    f16 = counts["HADD2"] + counts["HMUL2"] + counts["HFMA2"]
    assert row.cycles_per_weight["f16"] == pytest.approx(f16 / (weights / 32), abs=1e-4)
    assert row.cycles_per_weight["tensor"] == pytest.approx(8 * counts["HMMA"] / (weights / 32), rel=1e-4)
    assert built.ahead >= 64 and built.ahead % 64 == 0
    assert row.bytes_in_flight == built.ahead * 128 // 2 * round(row.occupancy * 64 / 4)  # nibbles; 64 warps fit
    assert row.unknown == ()


def test_kernels_that_are_assembled_together_are_what_each_is_alone():
    kernels = [
        lb.compile_linear(fmt, act=act, target="sm_89", bm=bm, zero=zero)
        for fmt, zero, bm, act in (("u4", "int", 8, "f16"), ("u3", "float", 64, "bf16"), ("f6e3m2", None, 16, "f16"))
    ]
    machines = assemble_together([without_lines(kernel.ptx) for kernel in kernels], "sm_89")
    for kernel, machine in zip(kernels, machines, strict=True):
        assert (machine.registers, machine.spills) == (kernel.registers, kernel.spills)
        _, alone = kernel.sass().split(f".text.{kernel.code.entry}:")
        _, together = machine.sass.split(":", 1)[1].split(":", 1)  # kernel_0: and .text.kernel_0:
        assert instructions(alone) == instructions(together) and len(instructions(alone)) > 100
        assert machine.assemble_ms > 0


def instructions(text: str) -> list[str]:
    """SASS without the names of labels and kernels."""
    return [re.sub(r"`\(.*?\)|\bkernel_\d+|\blinear", "", line) for line in text.splitlines() if "/*" in line]


def test_a_kernel_of_several_targets_is_run_once_and_stands_for_all(monkeypatch):
    runs = []

    def counted(compiled, *given):
        runs.append(compiled.target)
        return emulate(compiled, *given)

    emulate = ours.emulate
    monkeypatch.setattr(ours, "emulate", counted)
    wanted = [Variant("u4", "f16", 128, "none", target, "8") for target in ("sm_80", "sm_86", "sm_75")]
    first, second, third = ours.build(wanted)
    assert runs == ["sm_80", "sm_75"]  # which has no cp.async
    assert first.weights_per_matrix == second.weights_per_matrix == 2 * third.weights_per_matrix
    assert [kernel.target for kernel in (first, second, third)] == ["sm_80", "sm_86", "sm_75"]


@pytest.mark.parametrize("fmt", dict.fromkeys((*CODE_TYPES, *NAMED)))
def test_tracing_and_lowering_take_less_time_than_assembling(fmt):
    (built,) = ours.build([Variant(fmt, "bf16", 128, "none", "sm_80", "8")])
    if isinstance(built, LowbitvmError):
        assert built.code in static.REFUSALS
    else:
        assert built.trace_ms < built.assemble_ms


def test_a_loop_inside_the_stage_turns_as_often_as_its_products_say():
    # 128 x 64 weights of a stage; a turn that covers 128 x 16 of them is one of four, in a layer of 8192 in 128 stages
    assert measure.trips(128 * 16, (16, 128, 64)) == [4, 128]
    assert measure.trips(128 * 64, (16, 128, 64)) == [128]
    assert measure.trips(128 * 128, (16, 128, 64)) == [64]


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "blocks"),
    [
        ("sm_80", 128, 32, 0, 16),  # 64 warps
        ("sm_80", 32, 16, 0, 32),  # 32 blocks at most
        ("sm_86", 32, 16, 0, 16),
        ("sm_89", 32, 16, 0, 24),
        ("sm_80", 128, 73, 0, 6),  # 80 registers x 32 lanes: 6 warps in each quarter of 16384 registers
        ("sm_80", 256, 255, 0, 1),  # 8 warps of 8192: 2 per quarter
        ("sm_80", 128, 32, 40 * 1024, 4),  # 41 KiB each of 164
        ("sm_90a", 128, 32, 227 * 1024, 1),
        ("sm_90a", 128, 32, 227 * 1024 + 1, 0),
        ("sm_80", 512, 200, 0, 0),  # 16 warps of 6400 registers: only 8 fit
    ],
)
def test_blocks_per_sm_are_limited_by_what_runs_out_first(target, threads, registers, shared, blocks):
    assert targets.get(target).blocks_per_sm(threads, registers, shared) == blocks


@pytest.mark.parametrize(
    ("name", "target", "pipe", "cycles"),
    [
        ("LOP3.LUT", "sm_80", "integer", 2),
        ("IMAD.MOV.U32", "sm_80", "fma", 2),
        ("FFMA", "sm_80", "fma", 2),
        ("FFMA", "sm_90a", "fma", 1),
        ("HFMA2", "sm_80", "f16", 1),
        ("HFMA2.BF16_V2", "sm_80", "f16", 2),
        ("HADD2.F32", "sm_89", "f16", 2),
        ("I2F.F16.U16", "sm_80", "conversion", 8),
        ("HMMA.16816.F32", "sm_80", "tensor", 8),
        ("HMMA.16816.F32", "sm_89", "tensor", 32),
        ("HMMA.1688.F32", "sm_80", "tensor", 4),
        ("IMMA.16832.S8.S8", "sm_80", "tensor", 8),
        ("IMMA.16864.S4.S4", "sm_80", "tensor", 8),
        ("BMMA.168256.AND.POPC", "sm_80", "tensor", 8),
        ("HGMMA.64x128x16.F32", "sm_90a", "tensor", 64),
        ("LDS.128", "sm_80", "shared", 16),
        ("LDS.U16", "sm_80", "shared", 4),
        ("LDSM.16.M88.4", "sm_80", "shared", 16),
        ("LDSM.16.MT88.2", "sm_80", "shared", 8),
        ("LDGSTS.E.BYPASS.128", "sm_80", "shared", 16),
        ("UIADD3", "sm_80", "uniform", 0),
        ("BRA", "sm_80", "control", 0),
        ("LDG.E.128", "sm_80", "memory", 0),
    ],
)
def test_instructions_occupy_their_pipe_for_as_long_as_its_published_rate_says(name, target, pipe, cycles):
    assert pipes.kind_of(name).pipe == pipe
    assert pipes.cycles(name, targets.get(target)) == cycles


@pytest.mark.parametrize(
    ("target", "bits", "cycles"),
    [
        ("sm_80", 4, 128 * 0.5 * 108 * 1.41 / 2039),
        ("sm_80", 1, 128 / 8 * 108 * 1.41 / 2039),
        ("sm_90a", 8, 128 * 132 * 1.83 / 3352),
    ],
)
def test_the_memory_takes_as_long_as_its_bandwidth_says(target, bits, cycles):
    assert measure.memory_cycles(bits, targets.get(target)) == pytest.approx(cycles, rel=1e-4)


def test_a_mnemonic_outside_the_table_is_named_and_not_guessed():
    assert pipes.kind_of("NOVEL.OP") is None
    with pytest.raises(ValueError, match=r"the shape of HMMA\.NEW is not known"):
        pipes.multiply_adds("HMMA.NEW")


def run(*options: str):
    return CliRunner().invoke(main, ["bench", "--static", *options])


def test_every_code_type_and_named_format_is_asked_for_with_the_zero_points_that_it_has():
    found = list(ours.variants(["sm_80"], ours.WEIGHTS, ["f16", "bf16"], [], list(ours.TILES), 128))
    assert {variant.weights for variant in found} == {*CODE_TYPES, *NAMED}
    assert len(found) == len(set(found)) == len({*CODE_TYPES, *NAMED}) * 2 * len(ours.TILES)
    for variant in found:
        assert variant.format.zero == ("int" if variant.weights in ("ternary", *INTEGERS) else None)
    for name in ("mxfp4", "u4,group=32,zero=offset,scale=i8,outer=256"):
        assert Variant(name, "f16", 128, "none", "sm_80", "16x128x64").format == lb.Format.parse(name)


def test_the_command_writes_a_row_with_the_agreed_columns_or_the_reason_why_there_is_none(tmp_path):
    file = tmp_path / "static.json"
    asked = ["u1", "u4", "i4", "bp3", "ternary", "f6e3m2", "e4m3", "nf4", "c4", "mxfp4"]
    weights = [option for name in asked for option in ("--weights", name)]
    result = run("--quick", "--act", "f16", *weights, "--no-peers", "--json", str(file))
    assert result.exit_code == 0, result.output
    content = json.loads(file.read_text())
    for row in content["static"]:
        assert list(row)[: len(COLUMNS)] == COLUMNS
        assert row["mac_per_instruction"] * row["instructions_per_weight"] == pytest.approx(
            32 * int(row["tile"].split("x")[0]), rel=1e-3
        )
        assert row["spills"] == 0 and row["bank_conflicts"] == 0 and row["unknown"] == []
        assert set(row["cycles_per_weight"]) == {*pipes.PIPES, "memory"}
        assert f" {row['tile']} " in result.output
    tile_of = {tile.split("x")[0]: tile for tile in static.QUICK_TILES}  # "8" is as wide as the plan makes it
    found = [(row["weights"], tile_of[row["tile"].split("x")[0]]) for row in content["static"]]
    assert {"u4", "i4"} <= {name for name, _ in found}
    refused = [(name.split()[0], name.split()[-1]) for name in content["refused"]]
    assert sorted(found + refused) == sorted((name, tile) for name in asked for tile in static.QUICK_TILES)
    assert content["targets"] == {"sm_80": {"gpu": "A100-80", "bytes_needed": 15104}}  # 2039 GB/s x 800 ns / 108


def test_products_of_integers_stand_in_the_table_in_the_digits_that_the_plan_chooses(tmp_path):
    file = tmp_path / "static.json"
    asked = [option for name in ("u2", "i8", "u4,digits=s8", "nf4") for option in ("--weights", name)]
    options = [*asked, "--act", "i8", "--target", "sm_90a", "--tile", "1", "--tile", "128x128"]
    result = run(*options, "--no-peers", "--json", str(file))
    assert result.exit_code == 0, result.output
    content = json.loads(file.read_text())
    assert {name: row[:14] for name, row in content["refused"].items()} == {
        f"nf4 i8 sm_90a {tile}": "FORMAT_INVALID" for tile in ("1", "128x128")
    }
    found = {(row["weights"], row["tile"].split("x")[0]): row for row in content["static"]}
    assert {key: row["digits"] for key, row in found.items()} == {
        ("u2", "1"): "b1", ("u2", "128"): "s8", ("i8", "1"): "b1", ("i8", "128"): "s8", ("u4,digits=s8", "8"): "s8",
        ("u4,digits=s8", "128"): "s8",
    }  # fmt: skip
    for row in content["static"]:
        assert list(row)[: len(COLUMNS)] == COLUMNS
        assert row["mac_per_instruction"] * row["instructions_per_weight"] == pytest.approx(
            32 * int(row["tile"].split("x")[0]),
            rel=3e-3,  # 4 digits of small numbers
        )
        assert row["spills"] == 0 and row["bank_conflicts"] == 0 and row["unknown"] == [] and row["bytes_in_flight"] > 0


def test_what_has_no_kernel_is_listed_with_the_reason(tmp_path):
    file = tmp_path / "static.json"
    options = ["--weights", "u8", "--zero", "float", "--group", "32", "--tile", "128x128x64", "--act", "f16"]
    result = run(*options, "--target", "sm_89", "--no-peers", "--json", str(file))
    assert result.exit_code == 0, result.output
    refused = json.loads(file.read_text())["refused"]
    assert list(refused) == ["u8 f16 group=32 zero=float sm_89 128x128x64"]
    assert refused.popitem()[1].startswith("TILE_INVALID: ")
    assert "no kernel u8 f16 group=32 zero=float sm_89 128x128x64: TILE_INVALID" in result.output


@pytest.mark.parametrize("name", [name for name, (package, _) in static.PEERS.items() if find_spec(package)])
def test_tools_that_are_installed_stand_in_the_table_with_products_for_all_weights(name, tmp_path, monkeypatch):
    monkeypatch.setattr(static, "PEERS", {name: static.PEERS[name]})
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    rows, versions, _ = static.collect(["sm_80"], ["u4"], ["f16"], tiles=["16x128x64"])
    assert versions[name] != static.NOT_INSTALLED
    assert [row.tool for row in rows] == [ours.TOOL, name]
    _, peer = rows
    assert peer.mac_per_instruction * peer.instructions_per_weight == pytest.approx(32 * 16, rel=1e-3)
    assert peer.cycles_per_weight["tensor"] == 2  # two products of 8 cycles for 16 x 16 weights, 8 a thread
    assert peer.unknown == () and peer.spills == 0 and peer.bank_conflicts is not None


def test_tools_that_are_not_installed_are_said_to_be_so(monkeypatch):
    monkeypatch.setattr(static, "PEERS", {"Other": ("no_such_package_anywhere", "lowbitvm.bench.no_module")})
    result = run("--quick", "--weights", "u4", "--tile", "8")
    assert result.exit_code == 0, result.output
    assert "Other: not installed" in result.output


def test_an_error_in_one_of_several_processes_is_that_of_the_command():
    jobs = [partial(lb.Format.parse, text) for text in ("u4", "u4,group=33", "u8")]
    with pytest.raises(LowbitvmError, match=r"^FORMAT_INVALID: Format group 33"):
        run_all(jobs, "parsing")
    assert run_all(jobs[::2], "parsing") == [lb.Format("u4"), lb.Format("u8")]


def test_mistakes_of_usage_are_explained(tmp_path):
    assert "say what to measure: --static" in CliRunner().invoke(main, ["bench"]).output
    assert "FORMAT_INVALID: Format dtype 'u9'" in run("--weights", "u9").output
    options = ["--quick", "--weights", "u4", "--tile", "8", "--no-peers"]
    result = run(*options, "--json", str(tmp_path / "none" / "file.json"))
    assert result.exit_code == 2 and "cannot be written" in result.output
    assert "FORMAT_INVALID: Format group 'many'" in run(*options, "--group", "many").output


@pytest.mark.parametrize("command", [["tune", "--export"], ["selftest", "--out"], ["bench", "--static", "--html"]])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, command):
    for file, reason in ((tmp_path / "none" / "file", "there is no directory"), (tmp_path, "is a directory")):
        result = CliRunner().invoke(main, [*command, str(file)])
        assert result.exit_code == 2 and reason in result.output


def test_the_script_is_the_command():
    options = ["--quick", "--weights", "u4", "--tile", "16x128x64", "--no-peers"]
    script = subprocess.run([sys.executable, "bench/static.py", *options], cwd=ROOT, capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
    timeless = [re.sub(r"\d\.\d\d *$", "", text, flags=re.MULTILINE) for text in (script.stdout, run(*options).output)]
    assert timeless[0] == timeless[1] and "u4" in timeless[0]
