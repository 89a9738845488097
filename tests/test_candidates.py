"""Which digits a product of integers is cheapest in: native ones only, and what the rates say."""

import random
import re
import time

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

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
        plan = lb.plan_digits(lb.Format(f"u{w}", "channel", act=f"u{a}"), m, 4096, 4096, target)
        assert sorted(c.format.digits or "" for c in plan.candidates) == sorted(targets.TARGETS[target].digits)
        assert all(candidate.spills == 0 and candidate.time > 0 for candidate in plan.candidates)
        assert plan.best == plan.candidates[0].format == lb.best_digits(plan.best, m, 4096, 4096, target)
        for candidate in plan.candidates:
            sass = lb.compile_matmul(candidate.format, target=target, m=m, k=4096).sass()
            found = set(re.findall(r"\b[IBHQ]MMA[.A-Z0-9]*", sass))
            assert found and all(name.startswith(NATIVE_CODE[candidate.format.digits or ""]) for name in found), found


@pytest.mark.parametrize(
    ("weights", "m", "target", "best"),
    [
        ("i2,group=channel,act=i8", 1, "sm_80", "b1"),  # memory-bound: the fewest instructions
        ("i2,group=channel,act=i8", 1, "sm_120f", "s8"),  # nothing else is native
        ("u1,group=channel,act=u1", 4096, "sm_80", "b1"),  # one pair of planes at 8 times the rate of s8
        ("i4,group=channel,act=i4", 4096, "sm_80", "s4"),
        ("i8,group=channel,act=i8", 4096, "sm_80", "s8"),  # four pairs of s4 at twice the rate
    ],
)
def test_the_best_digits_are_what_rates_and_instructions_say(weights: str, m: int, target: str, best: str) -> None:
    plan = lb.plan_digits(weights, m, 8192, 8192, target)
    assert plan.best.digits == best
    assert f"best       digits={best!r}" in str(plan)


def test_the_bytes_are_those_of_the_packed_sides_and_the_product() -> None:
    plan = lb.plan_digits("u3,group=channel,act=u8", 16, 1024, 1024)
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
    problems = [(*p, t, g) for p in PROBLEMS for t in targets.TARGETS for g in ("channel", "channel", 32, 128, 256)]
    for w, a, m, target, group in random.Random(3).sample(problems, 12):
        fmt = lb.Format(f"u{w}", group, zero="int" if w % 2 else None, act=f"u{a}")
        counted = {c.format.digits: c for c in lb.plan_digits(fmt, m, 4096, 4096, target).candidates}
        for cost in costs(fmt, m, 4096, 4096, targets.get(target)):
            assert cost.time == pytest.approx(counted[cost.format.digits].time, rel=0.25)
        best = counted[lb.best_digits(fmt, m, 4096, 4096, target).digits]
        assert best.time <= 1.05 * min(candidate.time for candidate in counted.values())


KINDS = ("u1", "u3", "u8", "i2", "i4", "i7", "bp1", "bp5", "ternary")


@settings(max_examples=10)
@given(
    weights=st.sampled_from(KINDS),
    act=st.sampled_from(KINDS),
    group=st.sampled_from([32, 64, 128, 256, "channel"]),
    zero=st.sampled_from([None, "int"]),
    m=st.sampled_from([1, 5, 16, 33, 4096]),
    n=st.sampled_from([24, 1024, 8192]),
    target=st.sampled_from(list(targets.TARGETS)),
)
def test_the_digits_that_are_named_run(
    weights: str, act: str, group: int | str, zero: str | None, m: int, n: int, target: str
) -> None:
    """A layer of any format with groups, zero points and rows compiles, without spills, in what the plan names."""
    fmt = lb.best_digits(lb.Format(weights, group, zero=zero, act=act), m, n, 1024, target)
    assert lb.compile_matmul(fmt, target=target, m=m, n=n, k=1024, scaled=True).spills == 0


@pytest.mark.parametrize(("group", "target"), [("channel", "sm_80"), (256, "sm_75")])
def test_weights_are_quantised_in_the_digits_that_are_best(group: int | str, target: str) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    fmt = lb.Format("i4", group, act="i8")
    for m in (1, 64, 4096):
        best = lb.best_digits(fmt, m, 64, 512, target)
        assert lb.quantize(weight, fmt, m=m, target=target).format == best
    assert lb.explain(fmt, m, 64, 512, target=target).best == best


def test_digits_without_rows_lose_little_at_any_number_of_them() -> None:
    """And those without a GPU run on all of them."""
    weight = np.ones((4096, 4096), np.float32)
    for name, act in (("u1", "u1"), ("i2", "i8"), ("i4", "i4"), ("i8", "i8")):
        fmt = lb.Format(name, "channel", zero="int" if name[0] == "u" else None, act=act)
        chosen = lb.quantize(weight[:, :256], fmt, target="sm_80").format
        for m in (1, 8, 64, 4096):
            times = {cost.format.digits: cost.time for cost in costs(fmt, m, 4096, 256, targets.get("sm_80"))}
            assert times[chosen.digits] <= 1.5 * min(times.values())
    assert lb.quantize(weight[:16], fmt).format.digits == "s8"


def test_digits_without_a_target_are_those_of_activations_wherever_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWBITVM_DEVICE", "emulator:sm_80")
    weight, x = np.ones((8, 512), np.float32), np.ones((3, 512), np.float16)
    packed, codes = lb.quantize(weight, lb.Format("i2", act="i8")), lb.quantize_activations(x, lb.Format("i8"))
    assert packed.format.digits == codes.format.digits == "s8"


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
            lambda: lb.explain("u4,group=channel,act=u4", 1, 128, 128, target="sm_120f", digits="b1"),
        ),
        ("FORMAT_UNSUPPORTED: groups of 128 .* b1", lambda: lb.explain("u4,act=u4", 1, 128, 128, digits="b1")),
        ("FORMAT_UNSUPPORTED: scales", lambda: lb.best_digits("u4,group=16,act=u4", 1, 128, 128)),
        ("FORMAT_UNSUPPORTED: scales", lambda: lb.best_digits("u4,zero=float,act=u4", 1, 128, 128)),
        ("GROUP_INDIVISIBLE", lambda: lb.best_digits("u4,act=u4", 1, 128, 100)),
        ("FORMAT_INVALID: u4", lambda: lb.best_digits("u4", 1, 2, 3)),
    ):
        with pytest.raises(lb.LowbitvmError, match=code):
            make()
