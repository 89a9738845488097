"""`lowbitvm bench`: packing speed, plots and the HTML page of a run, and the comparison of two runs."""

import json
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lowbitvm.bench import diff, modelled, packing, plots, report
from lowbitvm.bench.about import about
from lowbitvm.cli import main


def static_row(**parts: Any) -> dict[str, Any]:
    row = {"tool": "lowbitvm", "weights": "u4", "act": "f16", "group": 128, "zero": "int", "target": "sm_80"}
    row |= {"tile": "16x128x64", "mac_per_instruction": 340.0, "instructions_per_weight": 1.5, "decode_per_weight": 0.7}
    return row | {"registers": 100, "bank_conflicts": 0, "digits": None, "cycles_per_weight": {"tensor": 2.5}} | parts


def a_run() -> dict[str, Any]:
    """Every section, with numbers that no kernel has."""
    layers = [
        {"gpu": gpu, "model": "smollm2", "layer": layer, "weights": f"{width},group=64,zero=int", "m": m}
        | dict(zip("nk", modelled.SHAPES["smollm2"][layer], strict=True))
        | {"time_us": 4.0 + m / 100 + int(width[1]), "bound": "memory", "roofline_share": 0.5}
        for gpu in ("a100", "h100")
        for layer in ("qkv", "down")
        for width in ("u2", "u4")
        for m in (1, 64)
    ]
    return {
        "about": about(),
        "static": [
            static_row(),
            static_row(tool="Triton", mac_per_instruction=85.0),
            static_row(weights="u3", act="bf16", tile="8x128x64"),
            static_row(weights="u2", act="i8", zero=None, digits="s8", tile="8x64x512"),
        ],
        "peers": {"Triton": "3.9.0", "TileLang": "not installed"},
        "refused": {"u8 <b>": "TILE_INVALID: a tile & its reason"},
        "model": layers,
        "validation": [
            {"gpu": "a100", "weights": f"u{bits}", "published_us": 20.0 + bits, "kernel_us": 9.0, "bound": "issue"}
            | {"constant_us": 12.0, "error": 0.1}
            for bits in (1, 2)
        ],
        "gpu": {
            "device": {"name": "a GPU", "target": "sm_80"},
            "rows": [
                {"tool": tool, "model": "smollm2", "layer": "qkv", "what": "decode", "weights": weights, "m": m}
                | {"n": 960, "k": 576, "us": 5.0 + m / 9, "modelled_us": modelled_us}
                for tool, weights, modelled_us in (("lowbitvm", "u4,zero=int", 5.0), ("torch f16", "f16", None))
                for m in (1, 64)
            ],
            "left_out": {"tilus": "not installed"},
            "refused": [],
        },
        "launch": {"lowbitvm": {"lb.linear": {"median_us": 18.0, "min_us": 17.5}}, "triton": "not installed"},
        "compile": {
            "lowbitvm": {"median_ms": 50.0, "min_ms": 40.0, "runs": 20},
            "triton": {"median_ms": 500.0, "min_ms": 400.0, "runs": 3}
            | {"tiles": {"16x128x64": {"ms": 500.0, "ours_ms": 50.0}}},
        },
        "pack": {"u4": {what: {"median_ms": 10.0, "gb_per_s": 3.0} for what in ("pack", "quantize")}},
    }


class Page(HTMLParser):
    """Which sections there are, how many drawings each has, what each drawing has, and all addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, int] = {}
        self.marks: list[int] = []  # of each drawing
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "section":
            self.sections[named["id"] or ""] = 0
        elif tag == "svg":
            self.sections[list(self.sections)[-1]] += 1
            self.marks.append(0)
        elif tag == "path" and "clip-path" in named:
            self.marks[-1] += 1
        self.ids += [named["id"] or ""] if "id" in named else []
        self.addresses += [
            value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "data", "action")
        ]
        assert tag not in ("script", "link", "img", "iframe", "object")

    def handle_data(self, data: str) -> None:
        self.text += data


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def saved(folder: Path, run: dict[str, Any], name: str = "run.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(run))
    return file


if find_spec("matplotlib") is not None:

    def test_the_page_has_every_section_with_its_plots_and_needs_nothing_else(tmp_path: Path) -> None:
        run, html = a_run(), tmp_path / "page.html"
        result = invoke("report", saved(tmp_path, run), "--html", html, "--plot", tmp_path / "plots")
        assert result.exit_code == 0, result.output
        text = html.read_text()
        page = Page(text)
        plotted = dict.fromkeys(name for name in report.HEADINGS if name in run)
        assert [*plotted, "about"] == list(page.sections)
        assert all(page.sections[name] for name in plotted) and not page.sections["about"]
        assert all(page.marks) and len(page.marks) == sum(page.sections.values())
        assert all(address.startswith("#") and address[1:] in page.ids for address in page.addresses)
        assert len(page.ids) == len(set(page.ids))
        assert "url(http" not in text and "@import" not in text and "u8 <b>" in page.text
        for part in ("modelled", "measured", "counted", "Triton", run["about"]["python"], "µs per block", "18.0 µs"):
            assert part in page.text, part
        files = list((tmp_path / "plots").iterdir())
        assert len(files) == len(page.marks) and {file.stem.partition("-")[0] for file in files} == set(plotted)
        assert all("currentColor" not in file.read_text() for file in files)

    def test_the_same_run_gives_the_same_page() -> None:
        run = {"launch": a_run()["launch"]}
        assert report.page(run, plots.draw(run)) == report.page(run, plots.draw(run))


def test_plots_without_matplotlib_are_an_error_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    result = invoke("--pack", "--html", tmp_path / "page.html")
    assert result.exit_code == 1 and "TOOL_MISSING: plots need matplotlib" in result.output
    assert "lowbitvm[plot]" in result.output and "Packing a weight" not in result.output


def test_two_runs_are_compared_row_by_row(tmp_path: Path) -> None:
    before, after = a_run(), a_run()
    after["static"][0] |= {"mac_per_instruction": 300.0, "instructions_per_weight": 1.51, "registers": 90}
    after["static"][2]["cycles_per_weight"]["tensor"] = 5.0
    after["static"].append(static_row(weights="u5"))
    after["model"][0] |= {"bound": "issue"}
    after["compile"]["lowbitvm"]["median_ms"] = 25.0
    del after["launch"]["lowbitvm"]["lb.linear"]
    after["about"] |= {"cpu": "another", "date": "tomorrow"}
    found = diff.compare(before, after, 0.02)
    changes = {(*change.row[:2], change.name): (change.ratio, change.worse) for change in found.changes}
    assert changes == {
        ("static", "lowbitvm", "mac_per_instruction"): (pytest.approx(-0.1176, abs=1e-4), True),
        ("static", "lowbitvm", "registers"): (pytest.approx(-0.1), False),
        ("static", "lowbitvm", "cycles_per_weight tensor"): (1.0, True),
        ("model", "a100", "bound"): (None, False),
        ("compile", "lowbitvm", "median_ms"): (-0.5, False),
    }
    assert [change.name for change in found.machines] == ["cpu"]
    assert [key[-1] for key in found.only_before] == ["lb.linear"]
    assert all("u5" in key for key in found.only_after) and found.only_after
    files = [saved(tmp_path, run, f"{name}.json") for name, run in (("before", before), ("after", after))]
    assert invoke("diff", *files).exit_code == 0
    result = invoke("diff", *files, "--fail")
    assert result.exit_code == 1
    for part in ("not the same cpu", "-11.8% worse", "only after: static lowbitvm u5", "2 of them for the worse"):
        assert part in result.output, part
    assert invoke("diff", *files, "--fail", "--threshold", "100").exit_code == 0
    counted = invoke("diff", *files, "--counts").output
    assert "mac_per_instruction" in counted and "median_ms" not in counted
    assert "0 changed" in invoke("diff", files[0], files[0], "--fail").output


def test_rows_with_the_same_names_are_compared_in_their_order() -> None:
    before = {"static": [static_row(), static_row(registers=50)]}
    after = {"static": [static_row(), static_row(registers=60)]}
    (change,) = diff.compare(before, after, 0.02).changes
    assert (change.name, change.before, change.after, change.worse) == ("registers", 50, 60, True)
    assert change.row[-1] == "#2"


def test_a_file_that_holds_no_run_is_an_error(tmp_path: Path) -> None:
    for text in ("no JSON", "[1]"):
        file = tmp_path / "file.json"
        file.write_text(text)
        assert "ARGUMENT_INVALID" in invoke("diff", file, file).output
    assert "say what to write" in invoke("report", file).output


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="plots need matplotlib")
@pytest.mark.parametrize("run", [{"static": [1]}, {"static": {"rows": 3}}, {"compile": [1]}, {"model": [{"gpu": 1}]}])
def test_a_file_that_holds_other_rows_than_those_of_bench_is_an_error(tmp_path: Path, run: dict[str, Any]) -> None:
    file = tmp_path / "file.json"
    file.write_text(json.dumps(run))
    assert "ARGUMENT_INVALID" in invoke("report", file, "--html", tmp_path / "page.html").output
    file.write_text('"text"')
    assert "ARGUMENT_INVALID" in invoke("diff", file, file).output


def test_packing_is_measured_for_floats_codebooks_and_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("N", "K"):
        monkeypatch.setattr(packing, name, 256)
    file = tmp_path / "pack.json"
    wanted = ["u2", "mxfp4", "c4,group=128,table=tensor", "u3,group=channel,zero=int,act=u8"]
    result = invoke("--pack", "--json", file, *(part for text in wanted for part in ("--weights", text)))
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert list(found) == ["about", "pack"] and list(found["pack"]) == wanted
    for calls in found["pack"].values():
        for times in (calls["pack"], calls["quantize"]):
            expected = 2 * 256 * 256 / (1e6 * times["median_ms"])
            assert times["gb_per_s"] == pytest.approx(expected, rel=0.1, abs=2e-3)
    assert found["about"]["packages"]["numpy"] and found["about"]["cores"] >= 1
