"""PTX that Triton 3.9 compiled for sm_80 (tests/ptx; sizes are multiples of 16) runs unchanged."""

from pathlib import Path

import numpy as np
import pytest

from lowbitvm.runtime import emulator

PTX = Path(__file__).parent / "ptx"


@pytest.mark.parametrize("shape", [(64, 64, 64), (48, 80, 160), (16, 16, 16)])
@pytest.mark.parametrize("seed", range(3))
def test_a_masked_pipelined_matmul_agrees_with_numpy_and_has_no_finding(shape: tuple[int, int, int], seed: int) -> None:
    """C[m, n] in f16 from tiles of 32 x 32 x 32 by four warps; three cp.async stages, ldmatrix, mma m16n8k16."""
    m, n, k = shape
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-8, 8, (m, k)).astype(np.float16), rng.integers(-8, 8, (k, n)).astype(np.float16)
    c = np.zeros((m, n), np.float16)
    module = emulator.load((PTX / "triton_matmul.ptx").read_text())
    grid = (-(-m // 32), -(-n // 32))
    args = [a, b, emulator.output(c), m, n, k, 0, 0]
    report = module.launch("matmul", grid, (128,), args, shared=8192, seed=seed)
    expected = (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(c, expected)
    assert report.counters.arrays[2].written == 2 * m * n
    assert report.counters.mma == grid[0] * grid[1] * -(-k // 32) * (2 * 4 * 2)


@pytest.mark.parametrize("removed", ["bar.sync", "cp.async.wait_group"])
def test_the_same_matmul_without_its_barriers_or_waits_is_caught(removed: str) -> None:
    lines = (PTX / "triton_matmul.ptx").read_text().splitlines()
    module = emulator.load("\n".join(line for line in lines if removed not in line))
    a, c = np.ones((64, 64), np.float16), np.zeros((64, 64), np.float16)
    args = [a, a, c, 64, 64, 64, 0, 0]
    report = module.launch("matmul", (2, 2), (128,), args, shared=8192, on_finding="collect")
    assert {finding.kind for finding in report.findings} & {"race_shared", "race_copy"}


@pytest.mark.parametrize("columns", [16, 112, 256])
def test_a_row_softmax_is_within_its_approximations(columns: int) -> None:
    """Shuffle and shared-memory reductions. ex2.approx and div.full cost a few units of f32's last place."""
    x = np.random.default_rng(columns).standard_normal((5, columns)).astype(np.float32)
    y = np.zeros_like(x)
    module = emulator.load((PTX / "triton_softmax.ptx").read_text())
    module.launch("softmax", (5,), (128,), [x, emulator.output(y), columns, 0, 0], shared=16)
    exponentials = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, exponentials / exponentials.sum(1, keepdims=True), rtol=64 * 2.0**-24)
