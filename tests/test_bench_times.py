"""`lowbitvm bench --launch` and `--compile`: that they run to the end and measure what they say."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lowbitvm.bench import compiling, launching
from lowbitvm.cli import main


@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in driver is an ELF library")
def test_a_call_is_measured_beside_an_empty_operator_on_a_driver_that_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "MODULES", {"lowbitvm": launching.MODULES["lowbitvm"], "absent tool": "absent"})
    file = tmp_path / "launch.json"
    result = CliRunner().invoke(main, ["bench", "--launch", "--json", str(file)])
    assert result.exit_code == 0 and "lb.linear" in result.output
    found = json.loads(file.read_text())["launch"]
    ours = found["lowbitvm"]
    assert found["absent tool"] == "not installed"
    assert all(0 < times["min_us"] <= times["median_us"] for times in ours.values())
    assert ours["an empty torch operator"]["min_us"] < ours["lb.linear"]["min_us"] < 200


def test_a_driver_that_cannot_be_compiled_is_an_error_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    result = CliRunner().invoke(main, ["bench", "--launch"])
    assert result.exit_code == 1 and "TOOL_MISSING" in result.output and "no-such-compiler" in result.output


def test_compilation_is_measured_beside_the_assembler_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "TILES", ((16, 64, 64),))
    monkeypatch.setattr(compiling, "FORMATS", compiling.FORMATS[:2])
    monkeypatch.setattr(compiling, "RUNS", 1)
    file = tmp_path / "compile.json"
    result = CliRunner().invoke(main, ["bench", "--compile", "--no-peers", "--json", str(file)])
    assert result.exit_code == 0 and "nvJitLink alone on the same PTX" in result.output
    found = json.loads(file.read_text())["compile"]
    assert found["lowbitvm"]["runs"] == found["nvJitLink alone"]["runs"] == 2
    assert found["disk-cache hit"]["median_ms"] < found["fresh process, on disk"]["median_ms"]
    assert found["fresh process"]["cpu_ms"] > 0
