"""Planted bugs: kernels that are clean, and each of them with one line changed or dropped.

The clean ones give the right result without a finding, the others a finding of the right kind on the right line, under
every seed, schedule and landing of copies.
"""

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from lowbitvm.runtime.assemble import assemble
from tests.planted import barriers, blocks, memory, pipelines, shared, tricky, warps
from tests.planted.table import Case, Plant, planted, tags

CASES = (*shared.CASES, *pipelines.CASES, *blocks.CASES, *barriers.CASES, *warps.CASES, *memory.CASES)
PAIRS = [(case, plant) for case in CASES for plant in case.plants]
SEEDS = 20


def ways(text: str) -> list[dict[str, object]]:
    """Launch options: every schedule and, where there are copies, every landing of them; all seeds."""
    return [{"seed": s} for s in range(SEEDS)]


def by_name(values: list) -> list:
    return [
        pytest.param(*(v if isinstance(v, tuple) else (v,)), id=getattr(v, "name", None) or f"{v[0].name}: {v[1].name}")
        for v in values
    ]


def launch(case: Case, module: emulator.Module, seed: int = 0, **options: object):
    data = case.data(np.random.default_rng(seed))
    grid, block = (case.grid,), (case.block,)
    report = module.launch(
        "kernel",
        grid,
        block,
        data.args,
        shared=case.shared,
        step_limit=case.step_limit,
        on_finding="collect",
        seed=seed,
        **options,
    )
    return data, report


@pytest.mark.parametrize("case", by_name((*CASES, *tricky.CASES)))
def test_the_clean_kernel_is_right_and_has_no_finding(case: Case) -> None:
    module = emulator.load(case.text)
    for way in ways(case.text):
        data, report = launch(case, module, **way)
        assert report.findings == [], way
        for number, expected in data.expected.items():
            array = data.args[number]
            np.testing.assert_array_equal(getattr(array, "array", array), expected, err_msg=f"{way}")


@pytest.mark.parametrize(("case", "plant"), by_name(PAIRS))
def test_the_planted_bug_is_found_on_its_line(case: Case, plant: Plant) -> None:
    text = planted(case.text, plant.edits)
    module = emulator.load(text)
    name_of = {line: tag for tag, lines in tags(text).items() for line in lines}
    for way in ways(text):
        _, report = launch(case, module, **way)
        seen = {identity(finding, name_of) for finding in report.findings}
        allowed = plant.found | plant.also
        print(way, seen)
        assert all(any(matches(s, a) for a in allowed) for s in seen), (way, seen)
        assert any(matches(s, a) for s in seen for a in plant.found), (way, seen)


def identity(finding, name_of):
    other = getattr(finding, "other", None)
    names = [name_of.get(finding.line, finding.text)]
    if other is not None:
        names.append(name_of.get(other.line, other.line))
    return (finding.kind, *names)


def matches(seen, expected) -> bool:
    if seen[0].replace("_warps", "") != expected[0]:
        return False
    if len(expected) == 3 and len(seen) == 3:
        return set(seen[1:]) == set(expected[1:])
    return seen[1] in expected[1:]


@pytest.mark.parametrize(("case", "plant"), by_name(PAIRS))
def test_assembles(case, plant):
    assemble(case.text, case.target)
    assemble(planted(case.text, plant.edits), case.target)


@pytest.mark.parametrize("case", by_name(tricky.CASES))
def test_tricky_assembles(case):
    assemble(case.text, case.target)
