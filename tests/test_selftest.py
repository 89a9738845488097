"""`lowbitvm selftest` on the emulator, and the file that it packs."""

import getpass
import json
import re
import socket
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from lowbitvm.cli import main
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver
from lowbitvm.selftest.cases import FAMILIES, ROWS, cases
from lowbitvm.selftest.parcel import scrub
from lowbitvm.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_cases_of_every_family_and_every_number_of_rows(target: str) -> None:
    found = cases(target)
    names = [f"{case.family}: {case.name}" for case in found]
    assert {case.family for case in found} == set(FAMILIES) and len(set(names)) == len(names)
    for digits in TARGETS[target].digits:
        for m in ROWS:
            assert any(f" in {digits}, m {m} (" in name for name in names)
    wide = {name for name, code in CODE_TYPES.items() if code.kind == "float" and code.exponent > 4}
    missing = {name for name in CODE_TYPES if not any(text.startswith(f"weights: {name} x") for text in names)}
    assert missing <= (wide if target == "sm_75" else set())


def test_the_selftest_runs_on_the_emulator_and_packs_one_file_without_names(tmp_path: Path) -> None:
    archive, out = tmp_path / "send.zip", tmp_path / "found.json"
    (tmp_path / "bench.json").write_text(json.dumps({"gpu": {"device": f"on {socket.gethostname()}", "rows": []}}))
    chosen = ["--add", str(tmp_path / "bench.json"), "--only", "kernels", "--pack", str(archive), "--out", str(out)]
    result = CliRunner().invoke(main, ["selftest", "--target", "sm_90a", *chosen])
    assert result.exit_code == 0, result.output
    assert "4 of 4 cases passed" in result.output
    found = json.loads(out.read_text())["selftest"]
    assert found["target"] == "sm_90a" and {case["verdict"] for case in found["cases"]} == {"passed"}
    with zipfile.ZipFile(archive) as packed:
        texts = {name: packed.read(name).decode() for name in packed.namelist()}
    assert set(texts) == {"selftest.json", "added1.json", "doctor.txt", "nvidia-smi.txt"}
    assert json.loads(texts["added1.json"]) == {"gpu": {"device": "on <host>", "rows": []}}
    assert json.loads(texts["selftest.json"])["selftest"]["cases"] == found["cases"]
    assert "executor: emulator: works" in texts["doctor.txt"]
    for text in texts.values():
        assert str(Path.cwd()) not in text and str(tmp_path) not in text
        assert not re.search(rf"\b{socket.gethostname()}\b", text)


def test_paths_and_names_are_taken_out_of_a_text() -> None:
    where, who = Path.home() / "x.so", getpass.getuser()
    text = f"cannot open {where}, file C:\\Users\\me, on {socket.gethostname()} by {who} at 3/4"
    assert scrub(text) == "cannot open <path>, file <path>, on <host> by <user> at 3/4"


@pytest.mark.parametrize("command", ["selftest", "bench"])
def test_without_a_gpu_the_error_names_what_needs_none(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(index: int) -> str:
        raise LowbitvmError("DEVICE_UNAVAILABLE", f"GPU {index} does not exist", "buy one")

    monkeypatch.setattr(driver, "device_target", missing)
    result = CliRunner().invoke(main, [command, "--gpu"])
    instead = {"selftest": "`lowbitvm selftest` runs on the emulator", "bench": "`lowbitvm bench --model`"}
    assert result.exit_code == 1
    assert "DEVICE_UNAVAILABLE" in result.output and instead[command] in result.output


def test_a_case_that_is_not_there_is_a_failure() -> None:
    assert CliRunner().invoke(main, ["selftest", "--only", "no such case"]).exit_code == 1
