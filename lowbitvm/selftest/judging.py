"""One case on a device: run, compared with the emulator's bits and with the exact result."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm.bounds import agrees
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.tuned import tuning
from lowbitvm.selftest.cases import Case
from lowbitvm.selftest.problems import Arrays, NotHere, NumpyArray, Problem

PASSED, FAILED, LEFT_OUT = "passed", "failed", "left out"  # the last: not on this machine
LOST = "lost"  # failed, and nothing runs any more in the process


@dataclass(frozen=True)
class Verdict:
    """What came of a case. seconds: on the device, compilation included; why: of a failure, with the first difference.

    bits: whether they equal the emulator's; None where they were not compared.
    """

    family: str
    name: str
    verdict: str
    seconds: float = 0.0
    bits: bool | None = None
    why: str = ""


def judge(case: Case, device: str, target: str) -> Verdict:
    """Runs a case on a device, the text of LOWBITVM_DEVICE, and again on the emulator where that is another one."""
    model = f"emulator:{target}"
    started = time.perf_counter()
    seconds, bits = 0.0, None
    why: list[str] = []
    try:
        problem = case.make()
        with on(device), tuning("off"):
            started = time.perf_counter()
            found = problem.run(target)
            seconds = time.perf_counter() - started
        if device != model:
            with on(model), tuning("off"):  # the same tiles
                bits = _same_bits(found, problem.run(target), why)
        if problem.approximate:
            why.clear()  # bits of which no model is published: the bound decides
        _within(found, problem, why)
    except NotHere as reason:
        return Verdict(case.family, case.name, LEFT_OUT, why=str(reason))
    except Exception as error:  # whatever it is, the other cases go on
        lost = isinstance(error, LowbitvmError) and error.code == "CONTEXT_LOST"
        text = str(error) if isinstance(error, LowbitvmError) else f"{type(error).__name__}: {error}"
        return Verdict(case.family, case.name, LOST if lost else FAILED, time.perf_counter() - started, bits, text)
    return Verdict(case.family, case.name, FAILED if why else PASSED, seconds, bits, "; ".join(why))


@contextmanager
def on(device: str) -> Iterator[None]:
    """CPU arrays are computed with on a device, "" for numpy."""
    before = os.environ.get("LOWBITVM_DEVICE", "")
    os.environ["LOWBITVM_DEVICE"] = device
    try:
        yield
    finally:
        os.environ["LOWBITVM_DEVICE"] = before


def _same_bits(found: Arrays, model: Arrays, why: list[str]) -> bool:
    same = True
    for at, (own, other) in enumerate(zip(found, model, strict=True)):
        differs = _patterns(own) != _patterns(other)
        if differs.any():
            same = False
            why.append(f"{_first(differs, own)}, the emulator has {other[_place(differs)]}{_which(at, found)}")
    return same


def _within(found: Arrays, problem: Problem, why: list[str]) -> None:
    with on(""):
        expected = problem.expected()
    for at, (own, (exact, bound)) in enumerate(zip(found, expected, strict=True)):
        if bound is None:
            wrong = _patterns(own) != _patterns(exact) if own.dtype == exact.dtype else own.astype(exact.dtype) != exact
        else:
            wrong = ~agrees(own, exact, bound)
        if wrong.any():
            limit = "" if bound is None else f" within {bound[_place(wrong)]:.3g}"
            why.append(f"{_first(wrong, own)}, exact is {exact[_place(wrong)]}{limit}{_which(at, found)}")


def _patterns(array: NumpyArray) -> NumpyArray:
    """The bits: NaN equals itself."""
    return array.view(f"u{array.dtype.itemsize}")


def _place(wrong: "np.ndarray[Any, np.dtype[np.bool_]]") -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))


def _first(wrong: "np.ndarray[Any, np.dtype[np.bool_]]", own: NumpyArray) -> str:
    place = _place(wrong)
    return f"{int(wrong.sum())} of {own.size} differ, the first at {list(place)} is {own[place]}"


def _which(at: int, found: Sequence[NumpyArray]) -> str:
    return f" (result {at})" if len(found) > 1 else ""
