"""Dependent kernels: they run as the plain ones do, and before they wait they read weights alone and write nothing."""

from typing import Any

import numpy as np
import pytest
import torch

import lowbitvm as lb
from lowbitvm.arrays import host
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import emulator, integer, quantise
from lowbitvm.runtime.compiled import CompiledKernel, compile_program, launch_grid

WAIT, TRIGGER = "griddepcontrol.wait;", "griddepcontrol.launch_dependents;"
TABLED = "nf4,group=64"  # by a table that comes with the module
M, N, K = 20, 144, 512
LAYERS: list[dict[str, Any]] = [
    {"bm": 16, "bn": 64, "bk": 64},
    {"bm": 16, "bn": 64, "bk": 64, "direct": 4, "stages": 4},
    {"bm": 128, "bn": 128, "bk": 64},
    {"bm": 16, "bn": 64, "bk": 64, "splits": 2, "vectorised": False},
    {"bm": 32, "bn": 128, "bk": 64, "gate": True, "bias": True, "residual": True, "activation": "silu"},
    {"bm": 16, "bn": 64, "bk": 64, "permuted": True},
    {"bm": 16, "bn": 64, "bk": 64, "weights": TABLED, "target": "sm_120f"},
    {"bm": 16, "bn": 64, "bk": 64, "weights": "mxfp4"},
]


def touched_before_the_wait(kernel: CompiledKernel, grid: tuple[int, ...], arguments: dict[str, Any]) -> set[str]:
    """The parameters whose memory is read or written by a kernel that ends where it should wait."""
    text = kernel.ptx
    assert text.count(WAIT) == text.count(TRIGGER) == 1 and text.index(TRIGGER) < text.index(WAIT)
    module = emulator.load(text.replace(WAIT, "exit;"))
    values = [value if isinstance(value, int) else host(value) for value in kernel.parameters(arguments)]
    grid, block = (*grid, 1, 1)[:3], (kernel.code.threads, 1, 1)
    report = module.launch(kernel.code.entry, grid, block, values, shared=kernel.shared, checks="none")
    found = report.counters.arrays.values()
    assert not any(one.written for one in found)
    return {one.name for one in found if one.read}


def loads_by_nc(kernel: CompiledKernel) -> bool:
    """Whether a load that ptxas may move before the wait comes after it, but for weights in registers."""
    text = kernel.ptx
    return "ld.global.nc" in text[text.index(WAIT) :].replace("ld.global.nc.L1::no_allocate", "")


def linear_arguments(options: dict[str, Any]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    fmt = options.get("weights", "u4,group=64,zero=int")
    weights = [lb.quantize(torch.randn(N, K, generator=generator), fmt) for _ in range(2)]
    rng, splits = np.random.default_rng(1), options.get("splits", 1)
    given: dict[str, Any] = {"x": rng.normal(size=(M, K)).astype(np.float16), "w": weights[0]}
    given |= {"gate": weights[1]} if options.get("gate") else {}
    given |= {"bias": rng.normal(size=N).astype(np.float16)} if options.get("bias") else {}
    given |= {"residual": rng.normal(size=(M, N)).astype(np.float16)} if options.get("residual") else {}
    given |= {"order": rng.permutation(K).astype(np.int32)} if options.get("permuted") else {}
    tiles = launch_grid((M, N), (options["bm"], options["bn"]))
    if splits > 1:
        rows = splits * tiles[0] * options["bm"]
        given["partials"] = np.zeros((rows, tiles[1] * options["bn"]), np.float32)
        given["arrivals"] = np.zeros(tiles[0] * tiles[1], np.int32)
    return given


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_a_layer_reads_its_weights_ahead_and_nothing_else(options: dict[str, Any]) -> None:
    options = {"weights": "u4,group=64,zero=int", "target": "sm_90a", **options}
    given, results = linear_arguments(options), []
    weights, tiles = options.pop("weights"), launch_grid((M, N), (options["bm"], options["bn"]))
    grid = (*tiles, options["splits"]) if "splits" in options else tiles
    for dependent in (False, True):
        kernel = lb.compile_linear(weights, **options, dependent=dependent)
        assert (TRIGGER in kernel.ptx) == dependent == kernel.code.dependent
        results.append(np.full((M, N), 7, np.float16))
        report = lb.launch(kernel, grid, {**given, "y": results[-1]})
        assert report is not None and not report.findings
    assert np.array_equal(*results)
    touched = touched_before_the_wait(kernel, grid, {**given, "y": results[0]})
    assert {name.partition("$")[0] for name in touched} == {"w", "gate"} & given.keys()
    assert "w$words" in touched and (weights == TABLED or not loads_by_nc(kernel))


INTEGERS = {"shared": (40, "channel", "i8"), "direct": (2, "channel", "i8"), "groups": (40, 128, "i8,group=128")}


@pytest.mark.parametrize(("rows", "group", "of_x"), INTEGERS.values(), ids=INTEGERS)
def test_the_kernels_of_an_integer_layer_wait_before_they_touch_activations(
    monkeypatch: pytest.MonkeyPatch, rows: int, group: int | str, of_x: str
) -> None:
    generator = torch.Generator().manual_seed(2)
    fmt = lb.Format("i4", group, act="i8", zero="int" if group == 128 else None)
    weight = lb.quantize(torch.randn(N, K, generator=generator), fmt)
    x = torch.randn(rows, K, generator=generator).half()
    launched: list[tuple[CompiledKernel, tuple[int, ...], dict[str, Any]]] = []

    def recorded(kernel: CompiledKernel, grid: tuple[int, ...], given: dict[str, Any], **options: Any) -> Any:
        launched.append((kernel, grid, given))
        return lb.launch(kernel, grid, given, **options)

    for module in (quantise, integer):
        monkeypatch.setattr(module, "launch", recorded)
    monkeypatch.setenv("LOWBITVM_DEVICE", "emulator:sm_90a")
    expected = lb.linear(x, weight)
    assert [kernel.program.name for kernel, _, _ in launched] == ["quantise", "matmul"]
    for kernel, grid, given in launched:
        warps = kernel.code.threads // 32
        dependent = compile_program(kernel.program, kernel.target, warps, dependent=True)
        before = touched_before_the_wait(dependent, grid, given)
        assert {name.partition("$")[0] for name in before} == (
            {"w"} if kernel is launched[1][0] and rows > 2 else set()
        )
        assert not loads_by_nc(dependent) or rows == 2
        report = lb.launch(dependent, grid, given)
        assert report is not None and not report.findings
    assert torch.equal(given["y"], expected)


@lb.kernel(x=("n", lb.f32), w=lb.packed("n k"), y=("n", lb.f32))
def guarded(x: lb.Tensor, w: lb.Packed, y: lb.Tensor) -> None:
    i = lb.program_id(0) * 128
    with lb.when(lb.program_id(0) < 1):
        lb.store(y, (i,), lb.load(x, (i,), (128,)) * 2.0)


def test_a_wait_stands_outside_of_branches_and_in_kernels_without_memory() -> None:
    text = guarded.compile("sm_90a", w=lb.Format("u4", group=64), dependent=True).ptx
    assert text.index(WAIT) < text.index("bra")


def test_earlier_gpus_have_no_dependent_kernels() -> None:
    with pytest.raises(LowbitvmError, match="sm_90 and later") as error:
        lb.compile_linear("u4", target="sm_89", dependent=True)
    assert error.value.code == "KERNEL_UNSUPPORTED"
