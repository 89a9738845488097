"""CUDA kernels with one mistake each: found under every seed, with the line of the .cu, and not in what was meant."""

from typing import Any

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.third_party.build import HERE
from tests.third_party.catalogue import mistakes
from tests.third_party.running import empty

SEEDS = 20
SCHEDULES = ("random", "adversarial", "round_robin")
COPIES = ("late", "early", "random")
LINES = (HERE / "cuda/mistakes.cu").read_text().splitlines()


def integers(*shape: int, dtype: Any = np.int32) -> Any:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def zeros(n: int) -> Any:
    return np.zeros(n, np.int32)


def unset(*shape: int) -> Any:
    return empty(*shape, dtype=np.int32)


def rounds(first: int) -> list[Any]:
    return [integers(3, 64), unset(64), 3, first]


CASES: dict[str, tuple[str, int, int, list[Any], str]] = {
    "reused": ("reused", 1, 128, [integers(3, 128, dtype=np.float32), empty(3)], "race_shared"),
    "foreign_mask": ("foreign_mask", 1, 32, [integers(32), unset(32)], "mask_invalid"),
    "absent_lane": ("absent_lane", 1, 32, [integers(32), unset(32)], "shuffle_source"),
    "early_read": ("early_read", 1, 32, [integers(4, 32, 4), unset(4, 32, 4), 4], "race_copy"),
    "unset_sum": ("unset_sum", 1, 64, [integers(64), unset(1)], "uninitialised_shared"),
    "shorter_loop_of_a_warp": ("shorter_loop", 1, 64, rounds(32), "barrier_diverged"),
    "shorter_loop_of_half_a_warp": ("shorter_loop", 1, 64, rounds(48), "barrier_diverged"),
    "narrow_scope": ("narrow_scope", 2, 1, [zeros(4), unset(4), unset(1)], "race_global"),
    "early_release": ("early_release", 4, 32, [zeros(1), zeros(1)], "race_global"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_found_under_every_seed_with_its_line_and_not_in_what_was_meant(name: str) -> None:
    entry, blocks, threads, args, kind = CASES[name]
    made, meant = (emulator.load(mistakes(clean).compile().ptx) for clean in (False, True))
    lines = {f"mistakes.cu:{n}" for n, line in enumerate(LINES, 1) if line.endswith(f"// @{entry}")}
    for seed in range(SEEDS):
        how = {"seed": seed, "schedule": SCHEDULES[seed % 3], "copies": COPIES[seed // 3 % 3], "step_limit": 1 << 20}
        meant.launch(entry, (blocks,), (threads,), [_copied(arg) for arg in args], **how)
        with pytest.raises(emulator.EmulatorError) as caught:
            made.launch(entry, (blocks,), (threads,), [_copied(arg) for arg in args], **how)
        finding = caught.value.finding
        assert finding.kind == kind, (seed, str(finding))
        assert finding.source is not None and finding.source.rpartition("/")[2] in lines, (seed, str(finding))


def _copied(arg: Any) -> Any:
    if isinstance(arg, emulator.Output):
        return emulator.output(arg.array.copy())
    return arg.copy() if isinstance(arg, np.ndarray) else arg
