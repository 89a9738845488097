"""The cases of `lowbitvm selftest --gpu --quick`, in this process."""

import pytest

from lowbitvm.runtime import driver
from lowbitvm.selftest.cases import Case, cases
from lowbitvm.selftest.judging import LEFT_OUT, PASSED, judge

TARGET = driver.device_target(0)


@pytest.mark.parametrize("case", cases(TARGET, quick=True), ids=lambda case: f"{case.family}: {case.name}")
def test_the_gpu_has_the_bits_of_the_emulator_and_is_within_the_bound(case: Case) -> None:
    found = judge(case, "copy:0", TARGET)
    assert found.verdict in (PASSED, LEFT_OUT), found.why
