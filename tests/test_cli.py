"""The lowbitvm command, as a user calls it."""

import json

from click.testing import CliRunner

from lowbitvm.cli import main


def test_compile_writes_ptx_cubin_and_resources(tmp_path):
    arguments = [
        "--weights",
        "u4",
        "--group",
        "128",
        "--zero",
        "int",
        "--target",
        "sm_90a",
        "-o",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(main, ["compile", *arguments])
    assert result.exit_code == 0, result.output
    stem = tmp_path / "out" / "linear-u4-128-int-f16-f16-sm_90a-16x128x64x8"
    resources = json.loads(stem.with_suffix(".json").read_text())
    assert resources["target"] == "sm_90a"
    assert resources["spills"] == 0
    assert resources["tile"] == {"bm": 16, "bn": 128, "bk": 64, "stages": 8, "warps": 4, "splits": 1, "direct": 128}
    assert resources["block"] == [128, 1, 1]
    assert f".visible .entry {resources['entry']}(" in stem.with_suffix(".ptx").read_text()
    assert ".target sm_90a" in stem.with_suffix(".ptx").read_text()
    assert stem.with_suffix(".cubin").read_bytes().startswith(b"\x7fELF")
    assert f"{resources['registers']} registers" in result.output


def test_a_mistake_is_one_line_with_its_code():
    result = CliRunner().invoke(main, ["compile", "--weights", "f8e6m1", "-o", "nowhere"])
    assert result.exit_code == 1
    assert "FORMAT_UNSUPPORTED" in result.output
    assert "Traceback" not in result.output


def test_compile_takes_a_format_as_text_and_parts_in_place_of_its_own(tmp_path):
    arguments = ["--weights", "mxfp4", "--group", "64", "--scale", "f16", "-o", str(tmp_path)]
    result = CliRunner().invoke(main, ["compile", *arguments])
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("linear-f4e2m1-64-none-f16-f16-sm_80-*.json")
    assert json.loads(file.read_text())["weights"] == "f4e2m1,group=64,zero=none,scale=f16"


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["compile", "--weights", "u4", "-o", str(tmp_path / "file" / "below")])
    assert result.exit_code == 1
    assert "cannot be written" in result.output


def test_doctor_names_every_executor():
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    for part in ("interpreter", "emulator", "assembler", "GPU", "numpy"):
        assert part in result.output
