import os
import random
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowbitvm.cli import main
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.cache import Cache, Entry, default_directory, default_size, key
from lowbitvm.runtime.linear import disk_cache

ROOT = Path(__file__).parent.parent
ENTRY = Entry(".version 7.8 // µ", b"\x7fELF\x00cubin", {"registers": 40, "spills": 0})


def stored(directory: Path) -> Path:
    """The one file of a cache that holds one entry."""
    (file,) = directory.iterdir()
    return file


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_keys_are_equal_exactly_when_all_parts_are(first: list[str], second: list[str]) -> None:
    assert (key(*first) == key(*second)) == (first == second)


def test_a_key_does_not_see_where_parts_end_as_text() -> None:
    assert len({key("ab", "c"), key("a", "bc"), key("abc"), key("ab", "c", "")}) == 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers()),
)
def test_another_cache_on_the_directory_returns_what_was_put(
    tmp_path: Path, ptx: str, cubin: bytes, resources: dict[str, int]
) -> None:
    entry = Entry(ptx, cubin, resources)
    Cache(tmp_path / "c").put("k", entry)
    assert Cache(tmp_path / "c").get("k") == entry


def test_an_absent_key_is_a_miss(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    cache.put(key("a"), ENTRY)
    assert cache.get(key("b")) is None


def test_memory_serves_an_entry_whose_file_has_gone(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    cache.put("k", ENTRY)
    stored(tmp_path / "c").unlink()
    assert cache.get("k") == ENTRY
    assert Cache(tmp_path / "c").get("k") is None


def test_a_change_of_any_byte_is_a_miss_and_the_next_put_repairs_it(tmp_path: Path) -> None:
    Cache(tmp_path / "c").put("k", ENTRY)
    file = stored(tmp_path / "c")
    whole = file.read_bytes()
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        cache = Cache(tmp_path / "c")
        assert cache.get("k") is None, position
        cache.put("k", ENTRY)
        assert file.read_bytes() == whole


def test_every_truncation_and_any_extension_is_a_miss(tmp_path: Path) -> None:
    Cache(tmp_path / "c").put("k", ENTRY)
    file = stored(tmp_path / "c")
    whole = file.read_bytes()
    for damaged in [whole[:length] for length in range(len(whole))] + [whole + b"\0"]:
        file.write_bytes(damaged)
        assert Cache(tmp_path / "c").get("k") is None, len(damaged)


def test_an_entry_renamed_to_another_key_is_a_miss(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    cache.put("k", ENTRY)
    file = stored(tmp_path / "c")
    file.rename(file.with_name(file.name.replace("k.", "other.", 1)))
    assert Cache(tmp_path / "c").get("other") is None


WRITER = """
import sys
from pathlib import Path
from lowbitvm.runtime.cache import Cache, Entry
directory, seed = Path(sys.argv[1]), int(sys.argv[2])
for turn in range(100):
    Cache(directory).put("k", Entry(str(seed), bytes([seed]) * 20_000, {"turn": turn}))
    found = Cache(directory).get("k")
    assert found is not None and found.cubin == bytes([int(found.ptx)]) * 20_000
"""


def test_processes_that_write_one_key_at_once_always_leave_a_whole_entry(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path / "c")]
    processes = [subprocess.Popen([*command, str(seed)], cwd=ROOT) for seed in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    entry = Cache(tmp_path / "c").get("k")
    assert entry is not None and entry.resources == {"turn": 99}
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_a_write_that_fails_leaves_no_temporary_file_and_keeps_the_entry_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "c")

    def fail(source: Path, destination: Path) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.warns(RuntimeWarning, match="disk full"):
            cache.put("k", ENTRY)
        cache.put("l", ENTRY)  # and says so once
    assert list((tmp_path / "c").iterdir()) == []
    assert cache.get("k") == ENTRY
    cache.put("m", ENTRY)  # there is room again
    assert Cache(tmp_path / "c").get("m") == ENTRY


def test_the_directory_is_created_for_its_owner_only(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "deep" / "c")
    cache.put("k", ENTRY)
    assert cache.directory == tmp_path / "deep" / "c"
    if os.name != "nt":
        assert cache.directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_directory_that_others_may_write_is_not_read_or_written_and_warned_of_once(tmp_path: Path, mode: int) -> None:
    Cache(tmp_path).put("planted", ENTRY)
    tmp_path.chmod(mode)
    cache = Cache(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"can be written by others.*chmod 700") as caught:
        assert cache.get("planted") is None
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("k", ENTRY)
        assert cache.get("k") == ENTRY
    assert len(list(tmp_path.iterdir())) == 1
    assert cache.directory is None


def test_a_directory_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path.stat().st_uid
    real = Path.stat

    def foreign(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        fields = list(real(path, follow_symlinks=follow_symlinks))
        fields[4] = owner + 1234
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", foreign)
    with pytest.warns(RuntimeWarning, match="others"):
        assert Cache(tmp_path).directory is None


def test_a_path_that_is_a_file_is_warned_of_and_memory_serves(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        cache.put("k", ENTRY)
    assert cache.get("k") == ENTRY


def test_the_environment_chooses_the_default_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWBITVM_CACHE_DIR", str(tmp_path / "c"))
    Cache().put("k", ENTRY)
    assert stored(tmp_path / "c").is_file()
    monkeypatch.setenv("LOWBITVM_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert default_directory() == tmp_path / "lowbitvm"


def keys(directory: Path) -> set[str]:
    """What a new cache finds there."""
    return {file.key for file in Cache(directory).stored() if file.entry() is not None}


def test_the_entries_that_were_not_read_for_longest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, names = Cache(tmp_path / "c"), [key(str(number)) for number in range(6)]
    for age, name in enumerate(names):
        cache.put(name, ENTRY)
        os.utime(tmp_path / "c" / f"{name}.kernel", (age, age))
    assert Cache(tmp_path / "c").get(names[0]) == ENTRY  # which makes it the last to go
    size = cache.stored()[0].size
    assert cache.prune(4 * size) == 2 * size
    assert keys(tmp_path / "c") == {names[0], *names[3:]}
    monkeypatch.setenv("LOWBITVM_CACHE_SIZE", str(2 * size))
    monkeypatch.setattr("lowbitvm.runtime.cache.PUTS_PER_LOOK", 1)
    cache.put(key("new"), ENTRY)
    assert keys(tmp_path / "c") == {names[0], names[5], key("new")}


@pytest.mark.parametrize(("text", "size"), [("12", 12), ("3k", 3 << 10), ("500M", 500 << 20), ("2g", 2 << 30)])
def test_the_size_of_the_cache_is_read_with_its_unit(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("LOWBITVM_CACHE_SIZE", text)
    assert default_size() == size


def test_a_size_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWBITVM_CACHE_SIZE", "much")
    with pytest.raises(LowbitvmError, match=r"ARGUMENT_INVALID.*much"):
        default_size()


def test_pruning_removes_what_a_killed_writer_left_an_hour_ago(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    cache.put(key("a"), ENTRY)
    old, new = (tmp_path / "c" / f"{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half an entry")
    os.utime(old, (time.time() - 3700,) * 2)
    assert cache.prune() == 0
    assert not old.exists() and new.exists() and keys(tmp_path / "c") == {key("a")}


def run(directory: Path, *command: str) -> Result:
    return CliRunner().invoke(main, ["cache", *command], env={"LOWBITVM_CACHE_DIR": str(directory)})


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A cache of two kernels, one of them damaged."""
    disk_cache.cache_clear()
    cache = Cache(tmp_path / "c")
    for name in ("whole", "damaged"):
        cache.put(
            key(name), Entry(".target sm_80\n.visible .entry linear()", b"\x7fELF", {"registers": 40, "spills": 8})
        )
    file = tmp_path / "c" / f"{key('damaged')}.kernel"
    file.write_bytes(file.read_bytes()[:-1])
    yield tmp_path / "c"
    disk_cache.cache_clear()


def test_the_command_lists_and_verifies_kernels(directory: Path) -> None:
    listed = run(directory, "ls").output
    assert key("whole")[:12] in listed and "linear" in listed and "sm_80" in listed and "damaged" in listed
    found = run(directory, "verify")
    assert found.exit_code == 1 and "1 of 2 kernels are whole" in found.output
    assert run(directory, "verify", "--remove").exit_code == 0
    assert keys(directory) == {key("whole")} == {file.key for file in Cache(directory).stored()}
    assert run(directory, "prune", "--size", "0").exit_code == 0
    assert Cache(directory).stored() == []


def test_kernels_go_to_another_machine_and_damaged_or_foreign_files_do_not(directory: Path, tmp_path: Path) -> None:
    archive, other = tmp_path / "kernels.zip", tmp_path / "other"
    assert "1 kernels written" in run(directory, "export", str(archive)).output
    disk_cache.cache_clear()
    assert run(other, "import", str(archive)).exit_code == 0
    assert Cache(other).get(key("whole")) == Cache(directory).get(key("whole"))
    whole = (other / f"{key('whole')}.kernel").read_bytes()
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("../evil.kernel", f"{key('other')}.kernel", "notes.txt"):
            file.writestr(name, whole)
    disk_cache.cache_clear()
    refused = run(tmp_path / "third", "import", str(archive))
    assert refused.exit_code == 1 and refused.output.count("no whole kernel") == 3
    assert Cache(tmp_path / "third").stored() == [] and not (tmp_path / "evil.kernel").exists()
    archive.write_bytes(b"no zip file")
    assert "ARGUMENT_INVALID" in run(other, "import", str(archive)).output


COMPILER = """
import random, sys, warnings
import lowbitvm as lb
from lowbitvm.kernels.linear import linear
from lowbitvm.runtime.linear import disk_cache
warnings.simplefilter("ignore")
seed, limit = int(sys.argv[1]), int(sys.argv[2])
if limit:  # a disk that is full: no file may grow beyond this
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
@lb.kernel(x=("n", lb.f32), y=("n", lb.f32))
def scaled(x, y, *, factor: float):
    i = lb.program_id(0) * 128
    lb.store(y, (i,), lb.load(x, (i,), (128,)) * factor)
from lowbitvm.runtime.compiled import compile_program
order = list(range(30))
random.Random(seed).shuffle(order)
for number in order:
    kernel = compile_program(scaled.trace(factor=float(number)), "sm_80", 4, cache=disk_cache())
    assert kernel.cubin[:4] == b"\\x7fELF"
    print(number, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the size of files and SIGKILL are Linux's")
def test_sixteen_processes_compile_the_same_kernels_though_some_are_killed_and_a_disk_is_full(tmp_path: Path) -> None:
    environment = {**os.environ, "LOWBITVM_CACHE_DIR": str(tmp_path / "c"), "PYTHONPATH": str(ROOT)}
    source = tmp_path / "compiler.py"
    source.write_text(COMPILER)
    command = [sys.executable, str(source)]
    workers = [
        subprocess.Popen([*command, str(seed), "0" if seed else "1000"], env=environment, stdout=subprocess.PIPE)
        for seed in range(16)
    ]
    generator, killed = random.Random(1), workers[1:5]
    for worker in killed:  # in the middle of their work: some kernels after the first line
        assert worker.stdout is not None and worker.stdout.readline()
        time.sleep(generator.uniform(0, 0.05))
        worker.send_signal(signal.SIGKILL)
    for worker in workers:
        printed, _ = worker.communicate(timeout=240)
        if worker not in killed:
            assert worker.returncode == 0 and printed.count(b"\n") == 30
    files = Cache(tmp_path / "c").stored()
    assert len(files) == 30 and all(file.entry() is not None for file in files)
