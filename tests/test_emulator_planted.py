"""Planted bugs: kernels that are clean, and each of them with one line changed, dropped or moved.

The clean ones give the right result without a finding, the others a finding of the right kind on the right line, under
every seed, schedule and landing of asynchronous copies. A clean kernel without any one of its barriers, fences or waits
has a finding as well. SentryWard's static proofs agree wherever it has one.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentryward import verify

from lowbitvm.runtime import emulator
from lowbitvm.runtime.assemble import assemble
from lowbitvm.runtime.emulator.report import KINDS
from tests.planted import barriers, blocks, memory, pipelines, shared, tricky, warps
from tests.planted.sentryward import DIAGNOSES, NO_AGREEMENT
from tests.planted.table import Case, Data, Plant, planted, tags

CASES = (*shared.CASES, *pipelines.CASES, *blocks.CASES, *barriers.CASES, *warps.CASES, *memory.CASES)
CLEAN = (*CASES, *tricky.CASES)
PAIRS = [(case, plant) for case in CASES for plant in case.plants]

SEEDS = range(20)
SCHEDULES = ("random", "round_robin", "adversarial")
LANDINGS = ("late", "early", "random")


def ways(text: str, seeds: range = SEEDS) -> Iterator[dict[str, Any]]:
    """Launch options: every seed and schedule and, where there are asynchronous copies, every landing of them."""
    landings = LANDINGS if "cp.async." in text else ("late",)
    for seed, schedule, copies in itertools.product(seeds, SCHEDULES, landings):
        yield {"seed": seed, "schedule": schedule, "copies": copies}


def launch(case: Case, module: emulator.Module, way: dict[str, Any]) -> tuple[Data, emulator.Report]:
    data = case.data(np.random.default_rng(way["seed"]))
    checks = case.checks if isinstance(case.checks, str) else set(case.checks)
    options = {"shared": case.shared, "checks": checks, "step_limit": case.step_limit, "on_finding": "collect"}
    return data, module.launch("kernel", (case.grid,), (case.block,), data.args, **options, **way)


def place(finding: emulator.Finding, names: dict[int, str]) -> tuple[str, ...]:
    """The kind of a finding, the tag of its line and that of the other party's, as in Plant.found."""
    lines = [finding.line] + ([finding.other.line] if finding.other else [])
    return finding.kind, *(names.get(line, f"line {line}") for line in lines)


def is_one_of(seen: tuple[str, ...], expected: frozenset[tuple[str, ...]]) -> bool:
    """Whether a place is expected; of two parties either may be the one that the finding is reported at."""
    kind, *parties = seen
    return any(
        kind == wanted[0]
        and (parties[:1] == [wanted[1]] if len(wanted) == 2 else sorted(parties) == sorted(wanted[1:]))
        for wanted in expected
    )


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CLEAN])
def test_the_clean_kernel_is_right_and_has_no_finding(case: Case) -> None:
    module = emulator.load(case.text)
    for way in ways(case.text):
        data, report = launch(case, module, way)
        assert [str(finding) for finding in report.findings] == [], way
        for number, expected in data.expected.items():
            array = data.args[number]
            np.testing.assert_array_equal(getattr(array, "array", array), expected, err_msg=str(way))


@pytest.mark.parametrize(
    ("case", "plant"), [pytest.param(case, plant, id=f"{case.name}: {plant.name}") for case, plant in PAIRS]
)
def test_the_planted_bug_is_found_on_its_line(case: Case, plant: Plant) -> None:
    text = planted(case.text, plant.edits)
    module = emulator.load(text)
    names = {line: tag for tag, lines in tags(text).items() for line in lines}
    for way in ways(text):
        _, report = launch(case, module, way)
        seen = {place(finding, names) for finding in report.findings}
        assert any(is_one_of(finding, plant.found) for finding in seen), (way, seen)
        others = {finding for finding in seen if not is_one_of(finding, plant.found | plant.also)}
        assert others == set(), (way, seen)


# Instructions that order accesses, with their guards; and how an ordering of a memory access is weakened.
ORDERING = re.compile(r"(@!?%p\d+ )?(bar|barrier|fence|membar|mbarrier|cp\.async\.(wait|commit|mbarrier))\b[^;]*;")
SEMANTICS = re.compile(r"(?<=\.)(acquire|release|acq_rel)(?=\.(gpu|cta)\.)")

# Those of the clean kernels that could be left out, and why.
REDUNDANT = {
    ("warp_sum", "bar.warp.sync -1; //@was_read"): "a step reads the upper half and writes the lower",
    ("meeting", "bar.sync 0; //@all"): "the last instruction",
    ("landing", "cp.async.wait_all; //@drain"): "the mbarriers count the copies",
    ("halves", "bar.warp.sync 0xFFFFFFFF; //@join"): "each lane stores its own word",
    ("atomics of blocks whose warps met by part masks", "bar.warp.sync 0x0000FFFF;"): "what follows is atomic",
}


def without_order(text: str) -> Iterator[tuple[str, str]]:
    """Each line of a kernel that orders accesses, and the kernel where one instruction of it is dropped or weakened."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        code = line.partition("//")[0]
        dropped = [line[: match.start()] + line[match.end() :] for match in ORDERING.finditer(code)]
        weakened = [SEMANTICS.sub("relaxed", line)] if SEMANTICS.search(code) and not dropped else []
        for changed in dropped + weakened:
            yield line.strip(), "\n".join([*lines[:number], changed, *lines[number + 1 :]]) + "\n"


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CLEAN])
def test_what_orders_the_accesses_of_a_clean_kernel_cannot_be_left_out(case: Case) -> None:
    for line, text in without_order(case.text):
        module = emulator.load(text)
        for way in ways(text, seeds=range(2)):
            findings = launch(case, module, way)[1].findings
            assert (findings == []) == ((case.name, line) in REDUNDANT), (line, way)


def test_there_are_many_kernels_and_bugs() -> None:
    assert len(CASES) >= 35 and len(PAIRS) >= 170 and len(tricky.CASES) >= 40
    assert len({case.name for case in CLEAN}) == len(CLEAN)
    assert len({(case.name, plant.name) for case, plant in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize(
    ("case", "plant"), [pytest.param(case, plant, id=f"{case.name}: {plant.name}") for case, plant in PAIRS]
)
def test_a_bug_is_one_line_changed_or_moved_and_names_lines_that_exist(case: Case, plant: Plant) -> None:
    clean, broken = (text.splitlines() for text in (case.text, planted(case.text, plant.edits)))
    differences = [(a, b) for a, b in zip(clean, broken, strict=True) if instruction(a) != instruction(b)]
    if len(differences) == 2:
        before, after = zip(*differences, strict=True)
        assert sorted(map(instruction, before)) == sorted(map(instruction, after))
    else:
        assert len(differences) == 1
    named = {tag for found in plant.found | plant.also for tag in found[1:]}
    assert named <= tags(case.text).keys()
    assert {found[0] for found in plant.found | plant.also} <= {kind for kind, _ in KINDS}


def instruction(line: str) -> str:
    return line.partition("//@")[0].strip()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CLEAN])
def test_every_kernel_is_legal_ptx(case: Case) -> None:
    assemble(case.text, case.target)
    for plant in case.plants:
        assemble(planted(case.text, plant.edits), case.target)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CLEAN])
def test_sentryward_agrees_wherever_it_can_decide(case: Case, tmp_path: Path) -> None:
    """Clean kernels are, planted ones are not, and NO_AGREEMENT names all exceptions and their reasons."""
    variants = {"": case.text} | {plant.name: planted(case.text, plant.edits) for plant in case.plants}
    verdicts = {name: verdict(case, text, tmp_path) for name, text in variants.items()}
    agreement = {name: "bug" if name else "clean" for name in variants}
    exceptions = {name: found for (kernel, name), found in NO_AGREEMENT.items() if kernel == case.name}
    if "*" in exceptions:
        exceptions = dict.fromkeys(variants, exceptions["*"])
    assert verdicts == agreement | exceptions


def verdict(case: Case, text: str, folder: Path) -> str:
    """What SentryWard says: "clean", "bug", or the code for which it gave up."""
    data = case.data(np.random.default_rng(0))
    parameters = re.findall(r"\.param \.(\w+) (\w+)", text.partition("{")[0])
    inputs = {
        "schema": "spverify.kernel-input/v1",
        "launch": {
            "grid_dim": [case.grid, 1, 1],
            "block_dim": [case.block, 1, 1],
            "dynamic_shared_bytes": case.shared,
        },
        "declarations": [
            {"parameter": name, "type": "pointer", "space": "global", "object": name}
            for kind, name in parameters
            if kind == "u64"
        ],
        "arguments": [
            {"parameter": name, "type": kind, "value": argument}
            for (kind, name), argument in zip(parameters, data.args, strict=False)
            if kind == "u32"
        ],
    }
    (folder / "kernel.ptx").write_text(text)
    (folder / "input.json").write_text(json.dumps(inputs))
    report = verify(folder / "kernel.ptx", input=folder / "input.json", timeout_seconds=120, memory_limit_mib=2048)
    known = {"race_free": "clean", "potential_race": "bug", "not_wellsynced": "bug"}
    if report["result"] in known:
        return known[report["result"]]
    code = report["diagnostics"][0]["code"]
    return "bug" if code in DIAGNOSES else code
