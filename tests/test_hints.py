"""Hints to the L2 cache: where they stand, and that nothing depends on them."""

import re

import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm.plan import linear_tile
from lowbitvm.runtime.compiled import compile_program, launch_grid
from lowbitvm.runtime.linear import Variant
from lowbitvm.targets import TARGETS

FMT = lb.Format("u4", group=64, zero="int")
READS = re.compile(r"^\s*(?:@!?%p\d+ )?((?:cp\.async\.c|ld\.global)[\w.:]*) (.*);$", re.MULTILINE)


def reads(ptx: str) -> list[tuple[str, str]]:
    """(mnemonic, operands) of every read of global memory."""
    return READS.findall(ptx)


def policies(ptx: str) -> dict[str, str]:
    return {
        register: evict
        for evict, register in re.findall(r"createpolicy\.fractional\.L2::evict_(\w+)\.b64 (%rd\d+), 0f3F800000;", ptx)
    }


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", [{}, {"permuted": True}, {"vectorised": False}], ids=str)
def test_every_read_of_a_dots_operands_has_its_hint_and_assembles(target, options):
    kernel = lb.compile_linear(FMT, target=target, bm=8, l2_hints=True, cache=False, **options)
    known, found = policies(kernel.ptx), reads(kernel.ptx)
    if target == "sm_75":
        assert kernel.ptx == lb.compile_linear(FMT, target=target, bm=8, cache=False, **options).ptx
        return
    assert sorted(known.values()) == ["first", "last"]
    used = [known[operands.split(", ")[-1]] for name, operands in found if "L2::cache_hint" in name]
    assert len(used) == len(found) and set(used) == {"first", "last"}
    assert kernel.cubin.startswith(b"\x7fELF") and kernel.spills == 0


def test_kernels_without_hints_have_no_policy():
    assert "cache_hint" not in (ptx := lb.compile_linear(FMT).ptx) and "createpolicy" not in ptx


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize(("permuted", "k"), [(False, 192), (True, 192), (False, 100)])
def test_results_do_not_depend_on_hints(target, permuted, k):
    rng = np.random.default_rng(k)
    m, n, fmt = 5, 40, FMT if k % 64 == 0 else lb.Format("u4", "channel", "int")
    numbers = [rng.integers(0, 16, (n, columns)) for columns in (k, fmt.groups(k))]
    order = rng.permutation(k) if permuted else None
    scales = rng.uniform(0.5, 2, fmt.scales_shape(n, k)).astype(np.float16)
    weight = lb.pack(numbers[0], scales, numbers[1], fmt, permutation=order)
    tile, results = linear_tile(m, fmt), []
    arguments = {"x": rng.standard_normal((m, k)).astype(np.float16), "w": weight}
    arguments |= {"order": weight.permutation} if permuted else {}
    for hints in (False, True):
        variant = Variant(fmt, tile, vectorised=k % 8 == 0, permuted=permuted, l2_hints=hints)
        kernel, y = compile_program(variant.program(), target, tile.warps), np.full((m, n), 7, np.float16)
        report = lb.launch(kernel, launch_grid((m, n), (tile.bm, tile.bn)), arguments | {"y": y})
        assert report is not None and report.findings == []
        results.append(y)
    assert np.array_equal(*results)


def copying(evict):
    @lb.kernel(x=("n", lb.f32), y=("n", lb.f32))
    def copy(x, y):
        i = lb.program_id(0)
        lb.store(y, (i * 128,), lb.load(x, (i * 128,), (128,), evict=evict))

    return copy


def test_plain_loads_take_hints():
    kernel = copying("first").compile("sm_80")
    known = policies(kernel.ptx)
    assert {known.get(operands.split(", ")[-1]) for _, operands in reads(kernel.ptx)} == {"first"}
    x, y = np.arange(100, dtype=np.float32), np.zeros(100, np.float32)
    assert lb.launch(kernel, (1,), {"x": x, "y": y}).findings == []
    assert np.array_equal(x, y) and kernel.cubin


def test_a_hint_that_does_not_exist_is_refused():
    with pytest.raises(lb.LowbitvmError, match=r"KERNEL_INVALID.*evict='never'"):
        copying("never").trace()
