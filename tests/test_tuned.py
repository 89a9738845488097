"""The database of what tuning has found, and the modes that use it."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import tuned
from lowbitvm.runtime.tuned import Database, Device, Record, bucket, current, decided, device_of, tuning

ROOT = Path(__file__).parent.parent
PROBLEM = {"m": 16, "n": 4096, "k": 4096, "weights": "u4,group=128"}
A100 = device_of("sm_80")
REAL = Device("NVIDIA A100-SXM4-80GB", "sm_80", 13000)
RECORD = Record({"bm": 16, "bn": 256, "fast": True, "atom": "m16n8k16"}, 12.5, "measured", 40, 1.25)


def stored(directory: Path) -> Path:
    (file,) = directory.iterdir()
    return file


def test_another_database_on_the_directory_returns_what_was_put(tmp_path: Path) -> None:
    Database(tmp_path / "t").put("linear", PROBLEM, A100, RECORD)
    other = Database(tmp_path / "t")
    assert other.get("linear", dict(reversed(PROBLEM.items())), A100) == RECORD
    assert list(other.stored()) == [("linear", PROBLEM, A100, RECORD)]


@pytest.mark.parametrize(
    ("kind", "problem", "device"),
    [
        ("kernel:f:1", PROBLEM, A100),
        ("linear", {**PROBLEM, "m": 32}, A100),
        ("linear", {**PROBLEM, "gate": 1}, A100),
        ("linear", PROBLEM, device_of("sm_86")),
        ("linear", PROBLEM, replace(A100, driver=13000)),
    ],
)
def test_a_record_holds_for_its_kind_problem_device_and_driver_only(
    tmp_path: Path, kind: str, problem: dict[str, int | str], device: Device
) -> None:
    database = Database(tmp_path / "t")
    database.put("linear", PROBLEM, replace(A100, name="another"), RECORD)
    assert database.get("linear", PROBLEM, A100) is None
    database.put("linear", PROBLEM, replace(REAL, name="unknown"), RECORD)
    assert database.get(kind, problem, device) is None


def test_records_of_another_version_are_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Database(tmp_path / "t").put("linear", PROBLEM, A100, RECORD)
    monkeypatch.setattr(lb, "__version__", "99.0")
    assert Database(tmp_path / "t").get("linear", PROBLEM, A100) is None
    assert list(Database(tmp_path / "t").stored()) == []


def test_a_file_with_any_byte_changed_or_cut_is_a_miss_or_says_the_same(tmp_path: Path) -> None:
    Database(tmp_path / "t").put("linear", PROBLEM, A100, RECORD)
    file = stored(tmp_path / "t")
    whole = file.read_bytes()
    changed = [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in range(0, len(whole), 3)]
    missed = 0
    for damaged in changed + [whole[:length] for length in range(0, len(whole), 7)]:
        file.write_bytes(damaged)
        found = Database(tmp_path / "t").get("linear", PROBLEM, A100)
        assert found in (None, RECORD)
        missed += found is None
    assert missed > 0.8 * len(changed)  # the others changed white space
    Database(tmp_path / "t").put("linear", PROBLEM, A100, RECORD)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("text", ["", "[]", "null", "[[[[", "{}", '{"check": 1, "record": []}', "\0"])
def test_a_foreign_file_is_a_miss(tmp_path: Path, text: str) -> None:
    Database(tmp_path / "t").put("linear", PROBLEM, A100, RECORD)
    stored(tmp_path / "t").write_text(text)
    assert Database(tmp_path / "t").get("linear", PROBLEM, A100) is None
    assert list(Database(tmp_path / "t").stored()) == []


def test_a_record_renamed_to_another_problem_is_a_miss(tmp_path: Path) -> None:
    Database(tmp_path / "t").put("linear", PROBLEM, A100, RECORD)
    (first,) = (tmp_path / "t").iterdir()
    Database(tmp_path / "t").put("linear", {**PROBLEM, "m": 1}, A100, RECORD)
    (second,) = set((tmp_path / "t").iterdir()) - {first}
    first.replace(second)
    assert Database(tmp_path / "t").get("linear", {**PROBLEM, "m": 1}, A100) is None


@pytest.mark.parametrize(
    "parts",
    [
        None,
        {"config": {}, "time_us": 1.0},
        {"config": {}, "time_us": "1", "how": "measured", "tried": 1, "seconds": 0},
        {"config": {}, "time_us": 1.0, "how": "guessed", "tried": 1, "seconds": 0},
        {"config": {"bm": [8]}, "time_us": 1.0, "how": "measured", "tried": 1, "seconds": 0},
    ],
)
def test_what_is_no_record_is_not_read_as_one(parts: object) -> None:
    assert Record.read(parts) is None


WRITER = """
import sys
from pathlib import Path
from lowbitvm.runtime.tuned import Database, Record, device_of
directory, seed = Path(sys.argv[1]), int(sys.argv[2])
place = "linear", {"m": 1}, device_of("sm_80")
for turn in range(60):
    Database(directory).put(*place, Record({"seed": seed, "same": seed}, 1.0, "measured"))
    found = Database(directory).get(*place)
    assert found is not None and found.config["seed"] == found.config["same"]
"""


def test_processes_that_write_one_record_at_once_always_leave_a_whole_one(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path / "t")]
    processes = [subprocess.Popen([*command, str(seed)], cwd=ROOT) for seed in range(3)]
    assert [process.wait(60) for process in processes] == [0] * 3
    assert len(list((tmp_path / "t").iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_a_directory_that_others_may_write_to_is_not_written_and_the_record_stays_in_memory(tmp_path: Path) -> None:
    directory = tmp_path / "t"
    directory.mkdir()
    directory.chmod(0o777)
    database = Database(directory)
    with pytest.warns(RuntimeWarning, match="kept in memory"):
        database.put("linear", PROBLEM, A100, RECORD)
    database.put("linear", {**PROBLEM, "m": 1}, A100, RECORD)  # warns once
    assert database.get("linear", PROBLEM, A100) == RECORD
    assert list(directory.iterdir()) == []


def test_a_directory_that_cannot_be_made_keeps_records_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    database = Database(tmp_path / "file" / "t")
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        database.put("linear", PROBLEM, A100, RECORD)
    assert database.get("linear", PROBLEM, A100) == RECORD


def test_a_directory_that_refuses_files_keeps_records_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")  # the modes of a directory do not stop root

    monkeypatch.setattr(tuned, "replace_file", refuse)
    database = Database(tmp_path / "t")
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        database.put("linear", PROBLEM, A100, RECORD)
    assert database.get("linear", PROBLEM, A100) == RECORD


def test_the_cache_can_still_use_a_directory_that_the_database_made(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        Database(tmp_path / "cache" / "tuned").put("linear", PROBLEM, A100, RECORD)
    finally:
        os.umask(before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lb.runtime.cache.Cache(tmp_path / "cache").directory == tmp_path / "cache"


def test_a_gpu_takes_what_was_modelled_for_it_until_something_is_measured(tmp_path: Path) -> None:
    modelled = replace(RECORD, how="modelled", time_us=1.0)
    database = Database(tmp_path / "t")
    database.put("linear", PROBLEM, A100, modelled)
    assert database.get("linear", PROBLEM, REAL) == modelled
    database.put("linear", PROBLEM, REAL, RECORD)
    assert database.get("linear", PROBLEM, REAL) == RECORD
    assert Database(tmp_path / "t").get("linear", PROBLEM, A100) == modelled


def test_a_gpu_without_a_row_has_no_model() -> None:
    assert Device("NVIDIA A100-SXM4-40GB", "sm_80", 13000).modelled is None
    assert REAL.modelled == A100 == tuned.gpu_device("a100")
    for row in targets.GPUS:
        assert tuned.gpu_device(row).row == row


def test_the_users_records_come_before_those_that_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = replace(RECORD, how="modelled", config={"bm": 8})
    entry = {"kind": "linear", "problem": PROBLEM, "record": vars(shipped)}
    (tmp_path / "a100.json").write_text(json.dumps({"entries": [entry]}))
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path)
    tuned._shipped.cache_clear()
    try:
        for device in (A100, REAL):
            assert Database(tmp_path / "t").get("linear", PROBLEM, device) == shipped
            assert Database(tmp_path / "t").get("linear", {**PROBLEM, "m": 1}, device) is None
        Database(tmp_path / "t").put("linear", PROBLEM, REAL, RECORD)
        assert Database(tmp_path / "t").get("linear", PROBLEM, REAL) == RECORD
    finally:
        tuned._shipped.cache_clear()


def test_buckets_are_the_next_powers_of_two() -> None:
    assert [bucket(m) for m in (0, 1, 2, 3, 4, 5, 16, 17, 4095, 4096, 4097)] == [
        *(1, 1, 2, 4, 4, 8, 16, 32, 4096, 4096, 8192),
    ]


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The process's database, new and empty."""
    monkeypatch.delenv("LOWBITVM_TUNING", raising=False)
    made = Database(tmp_path / "t")
    monkeypatch.setattr(tuned, "database", lambda: made)
    return made


def searching(found: Record | None = RECORD) -> tuple[list[float | None], object]:
    budgets: list[float | None] = []

    def search(budget_s: float | None) -> Record | None:
        budgets.append(budget_s)
        return found

    return budgets, search


def test_replay_is_the_default_and_the_variable_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWBITVM_TUNING", raising=False)
    assert current().mode == "replay"
    for mode in ("tune", "off", "replay"):
        monkeypatch.setenv("LOWBITVM_TUNING", mode)
        assert current().mode == mode
    monkeypatch.setenv("LOWBITVM_TUNING", "fast")
    with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID: LOWBITVM_TUNING is 'fast'"):
        current()


@pytest.mark.parametrize(
    "arguments", [{"mode": "always"}, {"mode": "tune", "budget_s": 0}, {"mode": "tune", "budget_s": "1"}]
)
def test_a_mode_or_budget_that_is_none_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID"), tuning(**arguments):
        pass


def test_contexts_nest_and_end_with_errors_too() -> None:
    with lb.tuning("tune", budget_s=2.0) as outer:
        assert current() is outer
        with pytest.raises(LowbitvmError, match="sm_off"), tuning("off"):
            device_of(f"sm_{current().mode}")
        assert current() is outer
    assert current().mode == "replay"


def test_a_context_is_that_of_its_thread() -> None:
    seen = []
    with tuning("off"):
        thread = threading.Thread(target=lambda: seen.append(current().mode))
        thread.start()
        thread.join()
    assert seen == ["replay"]


def test_each_mode_does_what_it_says(base: Database) -> None:
    budgets, search = searching()
    with tuning("replay"):
        assert decided("linear", PROBLEM, A100, search, capturing=False) is None
    with tuning("tune", budget_s=3):
        assert decided("linear", PROBLEM, A100, search, capturing=True) is None
        assert budgets == []
        assert decided("linear", PROBLEM, A100, search, capturing=False) == RECORD
        assert decided("linear", PROBLEM, A100, search, capturing=False) == RECORD
    assert budgets == [3]
    assert decided("linear", PROBLEM, A100, search, capturing=False) == RECORD
    with tuning("off"):
        assert decided("linear", PROBLEM, A100, search, capturing=False) is None


def test_what_is_modelled_is_measured_where_there_is_a_gpu(base: Database) -> None:
    modelled = replace(RECORD, how="modelled")
    base.put("linear", PROBLEM, A100, modelled)
    budgets, search = searching()
    with tuning("tune"):
        assert decided("linear", PROBLEM, A100, search, capturing=False) == modelled
        assert budgets == []
        assert decided("linear", PROBLEM, REAL, search, capturing=False) == RECORD
        assert decided("linear", PROBLEM, REAL, search, capturing=False) == RECORD
    assert budgets == [None]


def test_a_search_that_finds_nothing_leaves_the_plan(base: Database) -> None:
    _, search = searching(None)
    with tuning("tune"):
        assert decided("linear", PROBLEM, A100, search, capturing=False) is None
    assert list(base.stored()) == []


def test_a_choice_that_is_kept_is_made_anew_after_a_record_and_in_another_context(base: Database) -> None:
    first = tuned.state()
    assert tuned.state() == first
    with tuning("replay"):
        assert tuned.state() != first
    assert tuned.state() == first
    base.put("linear", PROBLEM, A100, RECORD)
    assert tuned.state() != first


# -- several processes -------------------------------------------------------------------------------------------------


def rank(number: int, directory: str, store: str, answers: "multiprocessing.Queue[object]") -> None:
    """One of two processes whose databases differ, and whose searches would find different records."""
    from torch import distributed

    os.environ["LOWBITVM_CACHE_DIR"] = f"{directory}/{number}"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    own = Record({"rank": number}, 1.0, "modelled")
    tuned.database().put("linear", {"m": 2 - number}, A100, own)  # rank 1 has m = 1, rank 0 m = 2
    found: list[object] = []
    with tuning("tune", group=distributed.group.WORLD):
        found += [decided("linear", {"m": m}, A100, lambda _: own, capturing=False) for m in (1, 2, 1)]

        def fails(_: float | None) -> Record:
            raise LowbitvmError("TUNING_FAILED", "nothing is right", "look")

        try:
            decided("linear", {"m": 3}, A100, fails, capturing=False)
        except LowbitvmError as error:
            found.append(error.code)
    found.append(Database().get("linear", {"m": 1}, A100))
    with tuning("replay", group=distributed.group.WORLD):
        found.append(decided("linear", {"m": 4}, A100, fails, capturing=False))
    answers.put(found)
    distributed.destroy_process_group()


def test_all_ranks_take_rank_0s_record_whatever_theirs_would_be(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    started = [
        context.Process(target=rank, args=(number, str(tmp_path), str(tmp_path / "store"), answers))
        for number in range(2)
    ]
    for process in started:
        process.start()
    found = [answers.get(timeout=100) for _ in started]
    for process in started:
        process.join(30)
    zero = Record({"rank": 0}, 1.0, "modelled")
    assert found == [[zero, zero, zero, "TUNING_FAILED", zero, None]] * 2
