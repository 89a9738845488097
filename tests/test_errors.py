"""The catalogue of user errors."""

import pickle
import re
from pathlib import Path

import pytest

from lowbitvm.errors import CATALOGUE, LowbitvmError

ROOT = Path(__file__).parent.parent


def test_an_error_prints_its_code_problem_place_and_fix():
    error = LowbitvmError("SHAPE_MISMATCH", "x is (2, 3), y (2, 4)", "make both (2, 3)", "model.py:7")
    assert str(error) == "SHAPE_MISMATCH: x is (2, 3), y (2, 4) (model.py:7). Fix: make both (2, 3)."


def test_a_code_outside_the_catalogue_is_a_bug():
    with pytest.raises(AssertionError):
        LowbitvmError("OOPS", "x", "y")


@pytest.mark.parametrize("code", CATALOGUE)
def test_every_code_is_raised_somewhere_and_tested(code):
    def mentions(folder: str, but: str) -> list[Path]:
        files = [file for file in (ROOT / folder).rglob("*.py") if file.name != but]
        return [file for file in files if re.search(rf"\b{code}\b", file.read_text())]

    assert any(mentions(folder, "errors.py") for folder in ("lowbitvm", "codegen", "runtime"))
    assert mentions("tests", "test_errors.py")


def test_an_error_stays_whole_on_its_way_to_another_process():
    error = LowbitvmError("TILE_INVALID", "bm 3", "use 8", "kernel.py:7")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.problem, copy.fix, copy.location) == ("TILE_INVALID", "bm 3", "use 8", "kernel.py:7")
    assert type(copy) is LowbitvmError and str(copy) == str(error)
