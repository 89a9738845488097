"""The checks can fail: nearly every one-token mutation of the emitted PTX gives a finding or a result out of bounds.

`pytest tests/test_mutations.py -rP` lists the mutations; docs/mutations.md explains those that survive.
"""

from dataclasses import dataclass, field
from pathlib import Path
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
from lowbitvm.tile import Tile
from tests.mutate import Mutation, draw_mutations

GUARD = 64  # elements before and after y
FLOATS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}

EXPLAINED = (Path(__file__).parent.parent / "docs" / "mutations.md").read_text()


@dataclass(frozen=True)
class Case:
    """A kernel, and problems (m, n, k) small enough for hundreds of launches.

    Together the problems end in each of a thread's columns and, at a warp's first column, in each of its rows; in each
    stage of the prologue (k) with an odd and an even number of 16-feature tiles (n), and after the slots have been used
    again. They take several blocks along m and n, and once so many steps along k that a step of 65 would miss some.
    """

    format: lb.Format
    act: str
    rows: int  # of activations that the tile is chosen for
    bias: bool
    problems: tuple[tuple[int, int, int], ...]

    @property
    def tile(self) -> Tile:
        return linear_tile(self.rows, self.format)


# that end where the codes or the scales of a slot do
SLOTS = [(1, 9, k) for k in (224, *range(352, 992, 32), 1024)]
CASES = {
    "demo": Case(
        lb.Format("u4", group=32, zero="offset"), "f16", 16, False,
        (
            (16, 128, 0), (16, 32, 32), (4, 32, 64), (5, 40, 64), (10, 27, 96), (10, 9, 128), (13, 32, 128),
            (3, 8, 160), (2, 9, 192), (2, 9, 256), (7, 9, 288), (9, 9, 320), (19, 145, 608), (17, 144, 640),
            (1, 32, 384), (1, 1, 4224), *SLOTS,
        ),
    ),
    "integer zeros": Case(
        lb.Format("u4", group=64, zero="int"), "f16", 8, False,
        (
            (8, 128, 0), (4, 32, 64), (2, 9, 64), (2, 27, 128), (3, 48, 128), (3, 32, 192), (11, 145, 640),
            (9, 144, 576), (1, 1, 4224), (1, 16, 256), (3, 200, 384), (5, 16, 512), (1, 240, 768), (2, 184, 1024),
            (2, 24, 448),
        ),
    ),
    "bf16": Case(
        lb.Format("i4", group=32, zero="int", scale="bf16"), "bf16", 16, True,
        (
            (16, 128, 0), (16, 32, 32), (4, 32, 64), (5, 40, 64), (10, 27, 96), (10, 9, 128), (13, 32, 128),
            (3, 8, 160), (2, 9, 192), (2, 9, 256), (7, 9, 288), (9, 9, 320), (19, 145, 608), (17, 144, 640),
            (1, 32, 384), (1, 1, 4224), *SLOTS,
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One launch: x and the weight's parts, the bias if there is one, what y (m, n) must be, and m, n, k."""

    m: int
    n: int
    k: int
    inputs: list[Any] = field(repr=False)
    exact: np.ndarray = field(repr=False)
    bound: np.ndarray = field(repr=False)


def random_problem(case: Case, m: int, n: int, k: int) -> Problem:
    rng = np.random.default_rng(m * n + k)
    fmt, dtype = case.format, FLOATS[case.act]
    low, high, shape = fmt.code.low, fmt.code.high, fmt.scales_shape(n, k)
    codes = rng.integers(low, high + 1, (n, k), dtype=np.int8)
    scales = (rng.uniform(0.25, 2.0, shape) * rng.choice([-1, 1], shape)).astype(FLOATS[fmt.scale])
    if fmt.zero == "int":
        zeros = rng.integers(low, high + 1, shape, dtype=np.int8)
    else:
        zeros = rng.normal(-2.0, 2.0, shape).astype(FLOATS[fmt.scale])
    weight = lb.pack(codes, scales, zeros, fmt)
    x = rng.standard_normal((m, k)).astype(dtype)
    bias = rng.standard_normal(n).astype(dtype) if case.bias else None
    inputs = [x, weight.words, weight.scales, weight.zeros, *([] if bias is None else [bias])]
    for array in inputs:
        array.flags.writeable = False  # a mutation that stores there is found, and cannot spoil the next launch
    return Problem(m, n, k, inputs, linear_exact(x, weight, bias), linear_bound(x, weight, bias))


def complaint(text: str, kernel: CompiledKernel, case: Case, problems: list[Problem], step_limit: int) -> str | None:
    """What the checks say of a PTX text: a finding's kind, "result", or nothing."""
    module = emulator.load(text)
    for problem in problems:
        m, n = problem.m, problem.n
        memory = np.full(m * n + 2 * GUARD, np.nan, FLOATS[case.act])
        y = memory[GUARD:-GUARD].reshape(m, n)
        try:
            module.launch(
                kernel.code.entry,
                grid=launch_grid((m, n), (case.tile.bm, case.tile.bn)),
                block=(kernel.code.threads,),
                args=[*problem.inputs[:4], emulator.output(y), *problem.inputs[4:], m, problem.k, n],
                shared=kernel.code.shared,
                checks="all",
                step_limit=step_limit,
            )
        except emulator.EmulatorError as error:
            return error.finding.kind
        guards = np.concatenate([memory[:GUARD], memory[-GUARD:]]).astype(np.float32)
        if not agrees(y, problem.exact, problem.bound).all() or not np.isnan(guards).all():
            return "result"
    return None


@pytest.mark.parametrize(
    ("name", "count", "part"), [("demo", 200, 0), ("demo", 200, 1), ("integer zeros", 100, 0), ("bf16", 100, 0)]
)
def test_at_least_95_percent_of_one_token_mutations_are_noticed(name: str, count: int, part: int) -> None:
    case = CASES[name]
    kernel = compile_linear(case.format, act=case.act, bias=case.bias, cache=False, **vars(case.tile))
    problems = [random_problem(case, *sizes) for sizes in case.problems]
    mutations = draw_mutations(kernel.ptx, count, seed=0)[100 * part : 100 * (part + 1)]
    assert complaint(kernel.ptx, kernel, case, problems, step_limit=1 << 40) is None
    survivors = []
    for mutation in mutations:
        noticed = complaint(mutation.apply(kernel.ptx), kernel, case, problems, step_limit=1 << 20)
        print(f"{name}: {mutation}: {noticed or 'SURVIVES'}")
        if noticed is None:
            survivors.append(mutation)
    assert len(survivors) <= 0.05 * len(mutations), "\n".join(map(str, survivors))
    unexplained = [row for row in map(documented, survivors) if row not in EXPLAINED]
    assert not unexplained, "explain in docs/mutations.md why nothing changes:\n" + "\n".join(unexplained)


def documented(mutation: Mutation) -> str:
    """How docs/mutations.md writes a survivor."""
    return f"`{mutation.before}` -> `{mutation.after or 'dropped'}`"
