"""SentryWard, a static verifier of PTX by other authors, proves kernels synchronised and free of races.

It proves it for every schedule of the launches below, whatever the arrays contain. It does not know the arrays' bounds.
"""

import json

import pytest
from sentryward import verify

import lowbitvm as lb
from lowbitvm.runtime.compiled import launch_grid

TILE = {"bm": 8, "bn": 32, "warps": 2}
SIZES = {"m": 3, "n": 33, "k": 256}  # four steps along k: slots of shared memory are written again


def linear(**options):
    return lb.compile_linear(**{"weights": "u4", "group": 64, "zero": "int", **TILE, **options}, cache=False)


@lb.kernel(x=("m n", lb.f32), y=("m", lb.f32))
def row_sum(x, y, *, bm, bn):
    """Threads of several warps share a row, so each total goes through shared memory."""
    total = lb.zeros((bm,))
    for k in lb.range(0, x.shape[1], bn):
        total += lb.sum(lb.load(x, (lb.program_id(0) * bm, k), (bm, bn)), axis=1)
    lb.store(y, (lb.program_id(0) * bm,), total)


def sentryward_report(kernel, ptx, grid, sizes, folder):
    """SentryWard's report on `ptx`, the text of `kernel` or a damaged copy, launched on arrays that do not overlap."""
    parameters = kernel.code.parameters
    launch = {
        "schema": "spverify.kernel-input/v1",
        "launch": {
            "grid_dim": [*grid, 1, 1][:3],
            "block_dim": [kernel.code.threads, 1, 1],
            "dynamic_shared_bytes": kernel.shared,
        },
        "declarations": [
            {"parameter": name, "type": "pointer", "space": "global", "object": name}
            for kind, name in parameters
            if kind == "u64"
        ],
        "arguments": [
            {"parameter": name, "type": kind, "value": sizes[name.removesuffix("$size")]}
            for kind, name in parameters
            if kind != "u64"
        ],
    }
    (folder / "kernel.ptx").write_text(ptx)
    (folder / "input.json").write_text(json.dumps(launch))
    return verify(folder / "kernel.ptx", input=folder / "input.json", timeout_seconds=120, memory_limit_mib=8192)


def linear_report(kernel, ptx, folder):
    return sentryward_report(kernel, ptx, launch_grid((SIZES["m"], SIZES["n"]), (8, 32)), SIZES, folder)


def without_each(ptx, names):
    """The texts that lack one of the instructions of these names."""
    lines = ptx.split("\n")
    places = [place for place, line in enumerate(lines) if line.strip().startswith(names)]
    return ["\n".join(lines[:place] + lines[place + 1 :]) for place in places]


@pytest.mark.parametrize(
    "options",
    [
        {"stages": 2, "target": "sm_80"},
        {"stages": 3, "target": "sm_100a", "zero": "offset", "group": 32, "act": "bf16", "bias": True},
        {"stages": 4, "target": "sm_90a", "zero": None, "group": "channel", "vectorised": False},
    ],
)
def test_the_linear_kernel_is_proved_synchronised_and_free_of_races(options, tmp_path):
    kernel = linear(**options)
    report = linear_report(kernel, kernel.ptx, tmp_path)
    assert report["result"] == "race_free", report["diagnostics"]
    assert report["checks"] == {"synchronization": "passed", "memory": "passed", "equivalence": "not_requested"}
    assert report["warnings"] == []


def test_a_reduction_through_shared_memory_is_free_of_races_only_with_its_barriers(tmp_path):
    kernel = row_sum.compile(target="sm_80", bm=2, bn=256)
    results = [
        sentryward_report(kernel, ptx, (2,), {"m": 3, "n": 500}, tmp_path)["result"]
        for ptx in (kernel.ptx, *without_each(kernel.ptx, ("bar.sync",)))
    ]
    assert results == ["race_free", "potential_race", "potential_race"]


def test_without_any_barrier_commit_or_wait_of_the_main_loop_there_is_a_race(tmp_path):
    kernel = linear(stages=3)
    damaged = without_each(kernel.ptx, ("bar.sync", "cp.async.commit_group", "cp.async.wait_group"))
    assert len(damaged) == 11  # two commits of the prologue; wait, barrier and commit of the three units of a turn
    for ptx in damaged:
        report = linear_report(kernel, ptx, tmp_path)
        assert report["result"] == "potential_race"
        assert report["races"][0]["region"]["address_space"] == "shared"


def test_a_wait_that_leaves_one_copy_too_many_pending_is_a_race(tmp_path):
    kernel = linear(stages=3)
    assert "cp.async.wait_group 1;" in kernel.ptx
    report = linear_report(kernel, kernel.ptx.replace("cp.async.wait_group 1;", "cp.async.wait_group 2;"), tmp_path)
    assert report["result"] == "potential_race"
