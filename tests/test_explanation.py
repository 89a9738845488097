"""`lb.explain`: the kernel that runs, its bytes, what limits it, and where mma.sync is a fallback."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.cli import main
from lowbitvm.errors import LowbitvmError
from lowbitvm.pack import stored_bytes
from lowbitvm.plan import linear_plan
from lowbitvm.targets import TARGETS

FORMAT = lb.Format("u4", zero="int")


def test_the_kernel_that_is_explained_is_the_one_that_runs():
    told = lb.explain(FORMAT, 3, 1000, 16384, target="sm_86")
    tile = linear_plan(3, 1000, 16384, FORMAT, targets.get("sm_86"))
    assert tile.splits > 1 and told.tile == tile
    kernel = lb.compile_linear(FORMAT, target="sm_86", **vars(tile))
    assert (told.registers, told.spills, told.shared) == (kernel.registers, kernel.spills, kernel.shared)
    assert told.grid == (1, -(-1000 // tile.bn), tile.splits)
    assert told.blocks_per_sm == targets.get("sm_86").blocks_per_sm(32 * tile.warps, kernel.registers, kernel.shared)
    fixed = lb.explain(FORMAT, 3, 1000, 16384, target="sm_86", batch_invariant=True)
    assert fixed.tile == linear_plan(3, 1000, 16384, FORMAT, targets.get("sm_86"), batch_invariant=True)


@pytest.mark.parametrize("name", ["u3,zero=float", "i5,group=32,zero=offset", "f6e3m2,group=channel", "bp1,scale=f32"])
def test_the_bytes_of_a_weight_are_those_that_are_stored(name):
    fmt = lb.Format.parse(name)
    weight = lb.quantize(np.ones((50, 256), np.float32), fmt)
    assert stored_bytes(fmt, 50, 256) == {part: array.nbytes for part, array in weight.arrays.items()}
    told = lb.explain(weight, 7)
    assert told.shape == (7, 50, 256) and told.format == fmt
    assert told.traffic == stored_bytes(fmt, 50, 256) | {"x": 2 * 7 * 256, "y": 2 * 7 * 50}


def test_a_permuted_weight_costs_its_gather():
    weight = np.random.default_rng(0).standard_normal((28672, 512)).astype(np.float32)
    order = np.random.default_rng(1).permutation(512)
    plain, permuted = (lb.explain(lb.quantize(weight, FORMAT, permutation=part), 8) for part in (None, order))
    assert permuted.tile == linear_plan(8, 28672, 512, FORMAT, targets.get("sm_80"), False, True)
    assert permuted.tile.direct and plain.tile.direct
    assert permuted.instructions["shared"] > plain.instructions["shared"]
    assert sum(permuted.instructions.values()) > sum(plain.instructions.values())


def test_few_rows_are_limited_by_the_memory_and_many_by_the_tensor_cores():
    few, many = (lb.explain(FORMAT, m, 16384, 8192) for m in (1, 4096))
    assert few.bound in ("memory", "bytes in flight") and many.bound in ("tensor", "issue slots", "shared")
    # 2039 GB/s: a microsecond for 2039 kilobytes
    assert few.limits["memory"] == pytest.approx(sum(few.traffic.values()) / 2039e3, rel=1e-12)
    # An A100 multiplies 312 T/s in f16: at least so long for the products without row sums.
    assert many.limits["tensor"] >= 0.99 * 2 * 4096 * 16384 * 8192 / 312e6
    assert 0.3 < many.peak_share < 1 and few.peak_share < 0.1
    assert list(few.limits.values()) == sorted(few.limits.values(), reverse=True)


def test_the_issue_slots_are_those_of_the_instructions_that_are_listed():
    told = lb.explain("u4", 16, 128 * 108, 4096)
    assert told.grid[:2] == (1, 108)  # and each SM has as many blocks as there are splits
    weights = 128 * 4096 / 128  # of a lane of the SM
    assert told.limits["issue slots"] == pytest.approx(weights * sum(told.instructions.values()) / 1.41e3, rel=1e-9)
    assert 0 < sum(told.decode.values()) < sum(told.instructions.values())


@pytest.mark.parametrize(("m", "products"), [(1, 0.125), (64, 0.5)])
def test_bf16_activations_of_few_rows_are_multiplied_in_place_of_the_weights(m, products):
    """One product for two weights of a lane; a warp has one register of 8 activations for four of 32 weights."""
    assert lb.explain("f6e3m2", m, 4096, 4096, act="bf16", target="sm_80").decode["half"] == products


def test_too_few_bytes_in_flight_stretch_the_time_of_the_memory():
    told = lb.explain("u1", 1, 4096, 4096, target="sm_90a")
    blocks = math.prod(told.grid)
    assert told.bytes_needed == round(3352 * 800 / 132)
    gpu_wide = told.limits["memory"] / told.limits["bytes in flight"]  # of what is needed
    assert gpu_wide < 1 and gpu_wide <= blocks * told.bytes_in_flight / (132 * told.bytes_needed) * (1 + 1e-9)


@pytest.mark.parametrize("target", TARGETS)
def test_a_fallback_is_named_where_another_instruction_has_the_peak(target):
    told = lb.explain(FORMAT, 256, 4096, 4096, target=target)
    wanted = {"sm_90a": "wgmma alone, these kernels use mma.sync: 63% of peak", "sm_100a": "tcgen05 .* not published"}
    if target in wanted:
        assert re.search(wanted[target], told.fallback) and told.fallback in str(told)
    else:
        assert told.fallback == "" and "fallback" not in str(told)


def test_hopper_s_mma_sync_takes_longer_than_its_peak_says():
    share = targets.get("sm_90a").gpu.sync_share
    gpu = replace(targets.get("sm_90a").gpu, sync_share=1.0)
    told = lb.explain(FORMAT, 4096, 4096, 4096, target="sm_90a")
    exact = 2 * 4096**3 / (gpu.sms * gpu.f16 * gpu.boost_ghz * 1e3)
    assert share is not None and told.limits["tensor"] >= exact / share


def test_the_text_names_the_limit_that_binds():
    told = lb.explain("mxfp8e4m3,scale=f16,group=64", 16, 4096, 4096)
    text = str(told)
    assert f"us  {told.bound}  <- binds" in text and text.count("<- binds") == 1
    assert str(told.format) in text and f"{told.registers} registers" in text


def test_the_command_prints_the_page():
    result = CliRunner().invoke(main, ["explain", "u4,zero=int", "16", "4096", "4096", "--target", "sm_89"])
    assert result.exit_code == 0, result.output
    assert result.output == f"{lb.explain(FORMAT, 16, 4096, 4096, target='sm_89')}\n"
    wrong = CliRunner().invoke(main, ["explain", "u9", "16", "4096", "4096"])
    assert wrong.exit_code == 1 and "FORMAT_INVALID" in wrong.output


def test_what_cannot_be_explained_is_refused():
    with pytest.raises(LowbitvmError, match=r"ARGUMENT_INVALID: a problem of m 16, n None, k None"):
        lb.explain("u4", 16)
    with pytest.raises(LowbitvmError, match="GROUP_INDIVISIBLE: in_features 100"):
        lb.explain("u4", 16, 64, 100)
    with pytest.raises(LowbitvmError, match="TARGET_UNKNOWN"):
        lb.explain("u4", 16, 64, 128, target="sm_60")
    with pytest.raises(LowbitvmError, match="FORMAT_INVALID"):
        lb.explain("u9", 16, 64, 128)
