"""docs/emulator.md: its examples run, and its tables name everything that the emulator has."""

import inspect
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lowbitvm.cli import emulate_command, main
from lowbitvm.runtime import emulator
from lowbitvm.runtime.emulator.classes import CLASSES
from lowbitvm.runtime.emulator.isa.form import SPECIAL
from lowbitvm.runtime.emulator.isa.regular import RULES
from lowbitvm.runtime.emulator.report import CHECKS, KINDS

PAGE = (Path(__file__).parent.parent / "docs" / "emulator.md").read_text()
BLOCKS = re.findall(r"```(python|console)\n(.*?)```", PAGE, re.DOTALL)


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    level, rest = re.split(rf"^(#+) {re.escape(title)}$", PAGE, flags=re.MULTILINE)[1:]
    return re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)[0]


def named(text: str) -> set[str]:
    """What stands in backquotes outside of blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def test_the_examples_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, "docs/emulator.md", "exec"), names)
            continue
        for line in text.splitlines():
            words = shlex.split(line.removeprefix("$ "))
            if words[0] == "python":
                exec(compile(words[2], "docs/emulator.md", "exec"), {})
            else:
                assert words[0] == "lowbitvm"
                result = CliRunner().invoke(main, words[1:])
                assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load("y.npy"), np.full(4, 100, np.float32))
    assert "row_sum on sm_80" in Path("report.html").read_text()
    test = names["test_row_sum"]
    assert callable(test)
    for mark in test.pytestmark:
        assert mark.name == "parametrize"
    for schedule in ("random", "round_robin", "adversarial"):
        for rows, n in ((1, 1), (3, 65), (1, 1000)):
            test(rows, n, schedule)


def test_there_are_examples_of_the_api_the_command_line_and_ci() -> None:
    assert [kind for kind, _ in BLOCKS] == ["python", "python", "python", "console", "python", "python"]


def test_every_finding_and_check_has_its_row() -> None:
    rows = [named(row.split("|")[1]) for row in section("Findings").split("### Checks")[0].splitlines() if "|" in row]
    listed = [kind for row in rows for kind in row]
    assert sorted(listed) == sorted({kind for kind, _ in KINDS})
    checks = {
        match[1]: named(match[2]) for match in re.finditer(r"^\| `(\w+)` \|(.*)\|$", section("Checks"), re.MULTILINE)
    }
    assert set(checks) == set(CHECKS)
    assert set().union(*checks.values()) <= set(listed)


def test_every_instruction_is_named() -> None:
    known = {word.split(".")[0] for word in named(section("What of PTX is covered"))}
    assert set(RULES) | set(SPECIAL) <= known


def test_every_argument_of_a_launch_and_option_of_the_command_is_described() -> None:
    arguments = set(inspect.signature(emulator.Module.launch).parameters) - {"self"}
    assert arguments <= named(section("Launching"))
    options = {option for parameter in emulate_command.params for option in parameter.opts if option.startswith("--")}
    assert all(option in section("The command line") for option in options)
    public = {
        name
        for name in emulator.__all__
        if name in ("load", "output", "pointer", "struct", "sparse", "Report", "EmulatorError")
    }
    assert all(name in section("The API") for name in public)


def test_every_class_and_every_key_of_the_json_is_described() -> None:
    assert set(CLASSES) <= named(section("Counters"))
    text = """.version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 x)
    { .reg .b64 %d; ld.param.u64 %d, [x]; st.global.u32 [%d], 1; st.global.u32 [%d+4096], 1; ret; }"""
    report = emulator.load(text).launch("k", (1,), (32,), [np.zeros(8, np.uint32)], on_finding="collect")
    schema = section("JSON")

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value) | set().union(*map(keys, value.values()), set())
        return set().union(*map(keys, value), set()) if isinstance(value, list) else set()

    data = json.loads(report.to_json())
    named_by_kernel = keys(data["counters"]["by_class"]) | keys(data["counters"]["by_mnemonic"])
    used = keys(data) - named_by_kernel - set(data["launch"]["options"])
    assert {key for key in used if f'"{key}"' not in schema} == set()
    assert set(data["launch"]["options"]) <= named(section("Launching"))
