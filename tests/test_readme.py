"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_examples_run(number, tmp_path, monkeypatch):
    monkeypatch.setenv("LOWBITVM_DEVICE", "")  # restored afterwards
    file = tmp_path / "example.py"
    file.write_text(BLOCKS[number])
    exec(compile(BLOCKS[number], str(file), "exec"), {"__name__": "example"})


def test_there_are_examples():
    assert len(BLOCKS) == 3
