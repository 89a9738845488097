import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowbitvm.runtime.cache import Cache, Entry, default_directory, key

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

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.warns(RuntimeWarning, match="disk full"):
        cache.put("k", ENTRY)
    assert list((tmp_path / "c").iterdir()) == []
    assert cache.get("k") == ENTRY
    assert cache.directory is None


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
