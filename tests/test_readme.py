"""The examples of the README and of docs/formats.md run as they stand; other pages have tests of their own."""

import re
from pathlib import Path

import pytest

PAGES = {page: (Path(__file__).parent.parent / page).read_text() for page in ("README.md", "docs/formats.md")}
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_examples_run(number, tmp_path, monkeypatch):
    monkeypatch.setenv("LOWBITVM_DEVICE", "")  # restored afterwards
    file = tmp_path / "example.py"
    file.write_text(BLOCKS[number])
    exec(compile(BLOCKS[number], str(file), "exec"), {"__name__": "example"})


def test_there_are_examples():
    assert len(BLOCKS) == 4
