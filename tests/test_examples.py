"""The example programs run as their first lines say, and check their own results."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lowbitvm.targets import TARGETS

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
SMALL = {
    "autotuned": {"bm": 4, "bn": 1024},
    "scaled_add": {"block": 1024, "alpha": 0.5, "divisible": {"n": 8}},
    "softmax": {"bm": 16, "bn": 128},
}


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_reports_agreement(path):
    result = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert " agree" in result.stdout


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("target", TARGETS)
def test_an_example_assembles_without_spills_for_every_target(name, target):
    module = imported(ROOT / "examples" / f"{name}.py")
    plain = module.softmax.kernel if name == "autotuned" else getattr(module, name)
    kernel = plain.compile(target=target, **SMALL[name])
    assert kernel.spills == 0
    assert 0 < kernel.registers <= 255


def test_every_example_is_assembled():
    assert {path.stem for path in EXAMPLES} == SMALL.keys()
