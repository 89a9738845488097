"""`lowbitvm selftest --gpu` on a stand-in GPU: how wrong results, lost contexts and dead processes show."""

import json
import sys

import pytest
import torch

import lowbitvm as lb
from lowbitvm.selftest import running, tensors
from lowbitvm.selftest.cases import FAMILIES, cases
from lowbitvm.selftest.judging import LEFT_OUT, LOST, PASSED, Verdict, judge
from lowbitvm.selftest.running import NOT_RUN, Job
from tests.driver.memory import GpuTensor, to_gpu, weight_to_gpu
from tests.driver.standin import Standin


def verdicts(only: str, faults: dict[str, str] | None = None) -> list[Verdict]:
    command = (sys.executable, "-m", "tests.driver.selftest_child", json.dumps(faults or {}))
    return running.collect(Job("", "copy:0", "sm_80", True, only), command)


def test_cases_of_every_family_pass_on_a_gpu_with_the_bits_of_the_emulator(gpus: Standin) -> None:
    one_of_each = {case.family: case for case in reversed(cases("sm_80", True))}
    assert set(one_of_each) == set(FAMILIES)
    del one_of_each["tensors of torch"]  # which this torch has none of; see below
    for case in one_of_each.values():
        count = len(gpus.launched)
        found = judge(case, "copy:1", "sm_80")
        assert (found.verdict, found.bits) == (PASSED, True), found
        assert len(gpus.launched) > count and gpus.launched[-1].device == 1


def test_tensors_of_torch_have_the_bits_of_the_emulator(
    gpus: Standin, streams: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = cases("sm_80", True, "lb.linear at once")
    assert judge(case, "copy:1", "sm_80").why == "this torch has no CUDA"

    def on_gpu(index: int, x: torch.Tensor, w: lb.PackedWeight, bias: torch.Tensor) -> list[object]:
        return [to_gpu(x, index), weight_to_gpu(w, index), to_gpu(bias, index)]

    monkeypatch.setattr(tensors, "on_gpu", on_gpu)
    monkeypatch.setattr(GpuTensor, "cpu", lambda self: self.held, raising=False)
    found = judge(case, "copy:1", "sm_80")
    assert (found.verdict, found.bits) == (PASSED, True), found
    assert [launched.device for launched in gpus.launched] == [1, 1]


def test_a_process_whose_torch_has_no_cuda_leaves_its_tensors_out() -> None:
    (left_out,) = verdicts("lb.linear at once")
    assert (left_out.verdict, left_out.why) == (LEFT_OUT, "this torch has no CUDA")


def test_a_wrong_result_is_found_and_named_and_the_other_cases_go_on() -> None:
    found = verdicts("kernels", {"softmax": "wrong"})
    assert [one.verdict == PASSED for one in found] == [True, False, True, True]
    assert [one.bits for one in found] == [True, False, True, True]
    assert "exact is" in found[1].why and running.failed(found)


def test_a_wrong_integer_is_named_with_its_place_and_with_what_it_should_be() -> None:
    (wrong,) = verdicts("i4 x i4 in s8, m 1", {"matmul": "wrong"})
    assert wrong.verdict == "failed" and wrong.bits is False
    assert "1 of 200 differ, the first at [0, 0] is" in wrong.why
    assert "the emulator has" in wrong.why and "exact is" in wrong.why


@pytest.mark.parametrize(("fault", "why"), [("lost", "CONTEXT_LOST"), ("dead", "ended with status 9")])
def test_a_lost_context_ends_one_process_and_the_cases_after_it_run_in_another(fault: str, why: str) -> None:
    found = verdicts("kernels", {"softmax": fault})
    assert [one.verdict for one in found] == [PASSED, LOST, PASSED, PASSED]
    assert why in found[1].why and running.failed(found)


def test_a_family_whose_processes_all_die_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "MOST_LOST", 2)
    found = verdicts("integers: i4 x i4 in s", {"matmul": "dead"})
    assert [one.verdict for one in found] == [LOST] * 2 + [NOT_RUN] * 2


def test_a_kernel_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "STUCK", 0.5)
    (first, *_) = running.collect(
        Job("", "copy:0", "sm_80", True, "scaled_add"), (sys.executable, "-c", "import time; time.sleep(9)")
    )
    assert first.verdict == LOST and "hangs" in first.why
