"""Which digits a product of integers is cheapest in: native ones only, and what the rates say."""

import random
import re
import time

import pytest
from click.testing import CliRunner

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.cli import main
from lowbitvm.digitplan import costs
from tests.test_matmul import NATIVE_CODE

PROBLEMS = [(w, a, m) for w in range(1, 9) for a in range(1, 9) for m in (1, 8, 64, 4096)]


@pytest.mark.parametrize("target", targets.TARGETS)
def test_every_candidate_is_native_and_has_few_spills(target: str) -> None:
    """A sample of all pairs of widths and numbers of rows; CI draws the same one every time."""
    for w, a, m in random.Random(target).sample(PROBLEMS, 2):
        plan = lb.plan_digits(lb.Format(f"u{w}", act=f"u{a}"), m, 4096, 4096, target)
        assert sorted(c.format.digits or "" for c in plan.candidates) == sorted(targets.TARGETS[target].digits)
        assert all(candidate.spills == 0 and candidate.time > 0 for candidate in plan.candidates)
        assert plan.best == plan.candidates[0].format
        for candidate in plan.candidates:
            sass = lb.compile_matmul(candidate.format, target=target, m=m, k=4096).sass()
            found = set(re.findall(r"\b[IBHQ]MMA[.A-Z0-9]*", sass))
            assert found and all(name.startswith(NATIVE_CODE[candidate.format.digits or ""]) for name in found), found


@pytest.mark.parametrize(
    ("weights", "m", "target", "best"),
    [
        ("i2,act=i8", 1, "sm_80", "b1"),  # memory-bound: the fewest instructions
        ("i2,act=i8", 1, "sm_120f", "s8"),  # nothing else is native
        ("u1,act=u1", 4096, "sm_80", "b1"),  # one pair of planes at 8 times the rate of s8
        ("i4,act=i4", 4096, "sm_80", "s4"),
        ("i8,act=i8", 4096, "sm_80", "s8"),  # four pairs of s4 at twice the rate
    ],
)
def test_the_best_digits_are_what_rates_and_instructions_say(weights: str, m: int, target: str, best: str) -> None:
    plan = lb.plan_digits(weights, m, 8192, 8192, target)
    assert plan.best.digits == best
    assert f"best       digits={best!r}" in str(plan)


def test_the_bytes_are_those_of_the_packed_sides_and_the_product() -> None:
    plan = lb.plan_digits("u3,act=u8", 16, 1024, 1024)
    for candidate in plan.candidates:
        assert candidate.traffic == 1024 * 1024 * 3 // 8 + 16 * 1024 + 4 * 16 * 1024


def test_the_command_line_prints_the_plan() -> None:
    result = CliRunner().invoke(main, ["explain", "u2,act=i8", "1", "1024", "1024", "--target", "sm_90a"])
    assert result.exit_code == 0
    assert result.output.strip() == str(lb.plan_digits("u2,act=i8", 1, 1024, 1024, "sm_90a"))
    result = CliRunner().invoke(main, ["explain", "u2,act=i8", "1", "1024", "1024", "--digits", "s8"])
    assert result.output.strip() == str(lb.explain("u2,act=i8", 1, 1024, 1024, digits="s8"))
    assert "digits='b1'" not in result.output


def test_the_model_without_machine_code_finds_the_digits_that_are_fastest() -> None:
    """A sample: its time is that of the counted instructions within a quarter, and its choice costs 5 % at most."""
    for w, a, m, target in random.Random(3).sample([(*p, t) for p in PROBLEMS for t in targets.TARGETS], 12):
        fmt = lb.Format(f"u{w}", act=f"u{a}")
        counted = {c.format.digits: c for c in lb.plan_digits(fmt, m, 4096, 4096, target).candidates}
        for cost in costs(fmt, m, 4096, 4096, targets.get(target)):
            assert cost.time == pytest.approx(counted[cost.format.digits].time, rel=0.25)
        best = counted[lb.best_digits(fmt, m, 4096, 4096, target).digits]
        assert best.time <= 1.05 * min(candidate.time for candidate in counted.values())


def test_planning_the_digits_of_a_layer_takes_a_few_milliseconds() -> None:
    lb.best_digits("u3,act=i8", 8, 4096, 4096)
    start = time.process_time()
    for m in range(1, 11):
        lb.best_digits("u3,act=i8", m, 4096, 4096)
    assert time.process_time() - start < 0.2


def test_what_cannot_be_planned_is_refused() -> None:
    for code, make in (
        ("FORMAT_INVALID: u4", lambda: lb.plan_digits("u4", 1, 2, 3)),
        ("ARGUMENT_INVALID", lambda: lb.plan_digits("u4,act=u4", 1, 0, 3)),
        ("TARGET_UNKNOWN", lambda: lb.plan_digits("u4,act=u4", 1, 2, 3, "sm_10")),
        (
            "KERNEL_UNSUPPORTED.*native there",
            lambda: lb.explain("u4,act=u4", 1, 128, 128, target="sm_120f", digits="b1"),
        ),
        ("FORMAT_INVALID: u4", lambda: lb.best_digits("u4", 1, 2, 3)),
    ):
        with pytest.raises(lb.LowbitvmError, match=code):
            make()
