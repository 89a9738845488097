"""Kernels of nvcc that take a struct with addresses in it by value, CUTLASS's own GEMM kernel among them."""

from typing import Any

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.third_party.catalogue import BY_VALUE
from tests.third_party.running import RUNS

STRIP = np.dtype({"names": ["x", "stride"], "formats": ["u8", "i4"], "itemsize": 16})
OUT = np.dtype([("y", "u8"), ("scale", "f8")])
# The layout of by_value.cu's Job, as C++ aligns it.
JOB = np.dtype(
    {
        "names": ["kind", "strips", "n", "out"],
        "formats": ["S1", (STRIP, 2), "i4", OUT],
        "offsets": [0, 8, 40, 48],
        "itemsize": 64,
    }
)


def _module() -> emulator.Module:
    return emulator.load(BY_VALUE.compile().ptx)


@pytest.mark.parametrize("kind", ["s", "w"])
def test_a_struct_has_addresses_in_arrays_and_structs_of_its_own(kind: str) -> None:
    n, module = 70, _module()
    x = np.random.default_rng(0).integers(-9, 9, (2, 3 * n)).astype(np.float32)
    expected = (x[0, : 2 * n : 2] + x[1, ::3]) * (1 if kind == "s" else 0.25)
    job = np.zeros((), JOB)
    job["kind"], job["n"], job["out"]["scale"], job["strips"]["stride"] = kind, n, 0.25, (2, 3)
    y = np.zeros(n, np.float32)
    second = emulator.pointer(x, x.strides[0])
    argument = emulator.struct(job, {8: x, 24: second, "out.y": emulator.output(y)})
    report = module.launch("weighted_sum", (3,), (32,), [argument])
    np.testing.assert_array_equal(y, expected)
    names = {key: array.name.removeprefix("weighted_sum_param_0") for key, array in report.counters.arrays.items()}
    assert names == {(0, 8): "+8", (0, 48): ".out.y"}  # the third address is of the first array
    assert report.counters.arrays[0, 8].read == 2 * 4 * n


def test_a_gemm_of_cutlass_runs_from_its_own_params() -> None:
    m, n, k = 72, 80, 136
    rng, module = np.random.default_rng(1), _module()
    a, b = (rng.integers(-4, 5, shape).astype(np.float16) for shape in ((m, k), (n, k)))
    c = rng.integers(-4, 5, (m, n)).astype(np.float32)
    expected = 0.5 * (a.astype(np.float32) @ b.T.astype(np.float32)) + 2 * c
    # Params are made by CUTLASS's constructor, on the device; the addresses in them are found by what stands for them.
    marks = [0x1122334455667700 + 16 * i for i in range(4)]
    launch, params = np.zeros(5, np.int32), np.zeros(4096, np.uint8)
    module.launch("make_params", (1,), (1,), [*marks, m, n, k, 0.5, 2.0, params, launch])
    shared, threads, *grid, size = launch.tolist()
    template = params[:size].tobytes()
    (entry,) = (name for name in module.programs if name.startswith("_ZN7cutlass6Kernel"))
    for how in RUNS:
        d = np.zeros((m, n), np.float32)
        pointers: dict[int | str, Any] = {}
        for mark, array in zip(marks, (a, b, c, emulator.output(d)), strict=True):
            place = template.index(mark.to_bytes(8, "little"))
            pointers[place] = array
            assert template.find(mark.to_bytes(8, "little"), place + 1) < 0
        module.launch(entry, grid, (threads,), [emulator.struct(template, pointers)], shared=shared, **how)
        np.testing.assert_array_equal(d, expected)
