"""The checks can fail: nearly every one-token mutation of the emitted PTX gives a finding or a wrong result.

docs/mutations.md explains the mutations that survive.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm.bounds import agrees, linear_bound, linear_exact
from lowbitvm.plan import linear_tile
from lowbitvm.runtime import emulator
from lowbitvm.runtime.compiled import CompiledKernel, launch_grid
from lowbitvm.runtime.linear import compile_linear
from tests.mutate import Mutation, draw_mutations

GUARD = 64  # elements before and after y
FLOATS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Case:
    """A kernel and problems (m, n, k) that meet its masks, all its pipeline's slots and several blocks."""

    format: lb.Format
    act: str
    rows: int  # that the tile is chosen for
    bias: bool
    problems: tuple[tuple[int, int, int], ...]

    @property
    def tile(self):
        return linear_tile(self.rows)

    def compile(self) -> CompiledKernel:
        tile = self.tile
        return compile_linear(
            self.format, act=self.act, bm=tile.bm, bn=tile.bn, bk=tile.bk, stages=tile.stages, warps=tile.warps,
            bias=self.bias, cache=False,
        )  # fmt: skip


CASES = {
    "demo": Case(
        lb.Format("u4", group=32, zero="offset"), "f16", 16, False,
        ((1, 1, 0), (16, 9, 32), (4, 40, 64), (10, 27, 96), (13, 32, 128), (16, 128, 160), (19, 145, 608), (17, 160, 640)),
    ),
    "integer zeros": Case(
        lb.Format("u4", group=128, zero="int"), "f16", 8, False,
        ((1, 1, 0), (2, 9, 128), (4, 32, 256), (8, 128, 384), (11, 145, 640), (9, 187, 768)),
    ),
    "bf16": Case(
        lb.Format("i4", group=64, zero="int", scale="bf16"), "bf16", 16, True,
        ((1, 1, 0), (16, 9, 64), (4, 40, 128), (10, 27, 192), (13, 128, 256), (19, 145, 576), (17, 160, 640)),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Random inputs of one launch, and what y may be."""

    grid: tuple[int, ...]
    inputs: list[Any]  # the PTX parameters but y, of which the sizes follow it
    sizes: list[int]
    shape: tuple[int, int]
    exact: np.ndarray
    bound: np.ndarray


def random_problem(case: Case, m: int, n: int, k: int) -> Problem:
    rng = np.random.default_rng(m * n + k)
    fmt, dtype = case.format, FLOATS[case.act]
    shape = fmt.scales_shape(n, k)
    scales = rng.uniform(0.25, 2.0, shape).astype(FLOATS[fmt.scale])
    codes = rng.integers(fmt.code.low, fmt.code.high + 1, (n, k), dtype=np.int8)
    zeros = (
        rng.integers(fmt.code.low, fmt.code.high + 1, shape, dtype=np.int8)
        if fmt.zero == "int"
        else rng.normal(-2.0, 2.0, shape).astype(FLOATS[fmt.scale])
    )
    weight = lb.pack(codes, scales, zeros, fmt)
    x, bias = (rng.standard_normal(size).astype(dtype) for size in ((m, k), (n,)))
    b = bias if case.bias else None
    inputs = [x, weight.words, weight.scales, weight.zeros, *([bias] if case.bias else [])]
    grid = launch_grid((m, n), (case.tile.bm, case.tile.bn))
    patterns = [v.view(np.uint16) if v.dtype == FLOATS["bf16"] else v for v in inputs]
    sizes = [m, k, n]
    return Problem(grid, patterns, sizes, (m, n), linear_exact(x, weight, b), linear_bound(x, weight, b))


def failure(text: str, kernel: CompiledKernel, problems: list[Problem], act: str, step_limit: int) -> str | None:
    """What the checks say of a PTX text: a finding's kind, "result" for a wrong one, or None."""
    module = emulator.load(text)
    for problem in problems:
        m, n = problem.shape
        memory = np.full(m * n + 2 * GUARD, np.nan, FLOATS[act])
        y = memory[GUARD:-GUARD].reshape(m, n)
        buffer = emulator.output(y.view(np.uint16) if act == "bf16" else y)
        try:
            module.launch(
                kernel.code.entry, problem.grid, (kernel.code.threads,), [*problem.inputs, buffer, *problem.sizes],
                shared=kernel.code.shared, step_limit=step_limit,
            )  # fmt: skip
        except emulator.EmulatorError as error:
            return error.finding.kind
        guards = np.concatenate([memory[:GUARD], memory[-GUARD:]])
        if not agrees(y, problem.exact, problem.bound).all() or not np.isnan(guards.astype(np.float32)).all():
            return "result"
    return None
