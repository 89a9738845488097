"""The cache of compiled kernels: in memory, and on disk with one file per entry.

A file is MAGIC, the SHA-256 of everything after it, the length of a JSON header (u32, little-endian), the header
{"key", "resources", "ptx", "cubin"} (the last two are lengths in bytes), the PTX text, the cubin. It is written to a
temporary name and renamed, so that readers and other writers see a whole file or none, and nobody waits for anybody.
The time of a file is when it was last read: the entries that were not read for longest go first, once all of them
together are larger than LOWBITVM_CACHE_SIZE.
"""

import contextlib
import hashlib
import json
import os
import re
import struct
import tempfile
import threading
import time
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from lowbitvm.errors import LowbitvmError

MAGIC = b"lowbitvm-kernel-1\n"
SIZE = 1 << 30  # bytes of all entries, by default
PUTS_PER_LOOK = 32  # entries written between two looks at the size of all
ABANDONED = 3600  # seconds after which a temporary file is one that its writer left behind
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_NAME = re.compile(r"([0-9a-f]{64})\.kernel")
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Entry:
    """A compiled kernel: its PTX, its cubin, and counts such as registers and spills by name."""

    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)
    resources: dict[str, int]


def key(*parts: str) -> str:
    """SHA-256 of the parts in order, in hexadecimal.

    For a cubin: the PTX text, in which everything that the compiler decided has ended up, the target and
    `assembler_version()`. ("ab", "c") and ("a", "bc") are different keys.
    """
    digest = hashlib.sha256()
    for part in parts:
        text = part.encode()
        digest.update(struct.pack("<Q", len(text)) + text)
    return digest.hexdigest()


def default_directory() -> Path:
    """LOWBITVM_CACHE_DIR where it is set, else the user's cache directory."""
    return Path(os.environ.get("LOWBITVM_CACHE_DIR") or platformdirs.user_cache_dir("lowbitvm"))


def default_size() -> int:
    """LOWBITVM_CACHE_SIZE in bytes, such as 500M or 2G, else SIZE. Raises ARGUMENT_INVALID."""
    text = os.environ.get("LOWBITVM_CACHE_SIZE") or str(SIZE)
    found = re.fullmatch(r"(\d+)([KMG]?)", text.strip().upper())
    if found is None:
        raise LowbitvmError(
            "ARGUMENT_INVALID", f"LOWBITVM_CACHE_SIZE is {text!r}", "write a number of bytes, such as 500M or 2G"
        )
    return int(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True)
class Stored:
    """A file of the cache: its key, bytes, when it was last read (seconds since 1970), and its entry if it is whole."""

    key: str
    path: Path
    size: int
    used: float

    def entry(self) -> Entry | None:
        """None where the file is damaged or gone."""
        try:
            return _decode(self.key, self.path.read_bytes())
        except OSError:
            return None


class Cache:
    """Entries by key; safe to share between threads, and its directory between processes.

    directory: None means `default_directory()`. It is created on the first use, for its owner only (0700). One that
    somebody else may write to is not used, because its cubins would run with this user's rights: then the cache warns
    once and keeps to memory. So it does with an entry that cannot be written, as when the disk is full.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._path = default_directory() if directory is None else Path(directory)
        self._puts = 0
        self._warned = False
        self._memory: dict[str, Entry] = {}
        self._lock = threading.RLock()
        self._usable: bool | None = None  # None: not looked at yet

    def get(self, key: str) -> Entry | None:
        """The entry put under this key; None where there is none or its file is damaged."""
        with self._lock:
            if key not in self._memory and self._on_disk():
                entry = self._read(key)
                if entry is not None:
                    self._memory[key] = entry
            return self._memory.get(key)

    def put(self, key: str, entry: Entry) -> None:
        """Keep the entry, replacing what is there."""
        with self._lock:
            self._memory[key] = entry
            if not self._on_disk():
                return
            try:
                if self._puts % PUTS_PER_LOOK == 0:
                    self.prune()
                self._puts += 1
                replace_file(self._file(key), _encode(key, entry))
            except OSError as error:  # another time there may be room again
                self._warn(f"cannot be written ({error}); this kernel is kept")

    @property
    def directory(self) -> Path | None:
        """Where entries are stored; None while the cache keeps to memory."""
        return self._path if self._on_disk() else None

    def _on_disk(self) -> bool:
        with self._lock:
            if self._usable is None:
                self._usable = True
                try:
                    self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
                    if others_may_write(self._path):
                        self._memory_only("can be written by others (remedy: chmod 700, as its owner)")
                except OSError as error:
                    self._memory_only(f"cannot be used ({error})")
            return self._usable

    def _memory_only(self, reason: str) -> None:
        self._usable = False
        self._warn(f"{reason}; kernels are kept")

    def _warn(self, reason: str) -> None:
        """Once for each cache."""
        if not self._warned:
            text = f"The kernel cache {self._path} {reason} in memory only. LOWBITVM_CACHE_DIR names another directory."
            warnings.warn(text, RuntimeWarning, stacklevel=5)
        self._warned = True

    def stored(self) -> list[Stored]:
        """The files of the cache, the one that was not read for longest first."""
        found = []
        for path in self._path.iterdir() if self._on_disk() else ():
            name = _NAME.fullmatch(path.name)
            try:
                status = path.stat()
            except OSError:  # another process has pruned it
                continue
            if name is not None:
                found.append(Stored(name[1], path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda file: file.used)

    def prune(self, size: int | None = None) -> int:
        """Removes the entries that were not read for longest until the others have `size` bytes, and what writers that
        were killed left behind; returns the bytes removed. None: `default_size()`."""
        files, removed = self.stored(), 0
        excess = sum(file.size for file in files) - (default_size() if size is None else size)
        for file in files:
            if removed >= excess:
                break
            file.path.unlink(missing_ok=True)
            removed += file.size
        for path in self._path.glob("*.tmp") if self._on_disk() else ():
            try:
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink(missing_ok=True)
            except OSError:  # its writer has renamed it
                continue
        return removed

    def export(self, archive: Path) -> int:
        """Writes all whole entries to a zip file; returns how many."""
        count = 0
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
            for file in self.stored():
                entry = file.entry()
                if entry is not None:
                    target.writestr(file.path.name, _encode(file.key, entry))
                    count += 1
        return count

    def load(self, archive: Path) -> tuple[int, list[str]]:
        """Puts the entries of a zip file that `export` wrote; returns how many, and the names of what is no whole one.

        Raises ARGUMENT_INVALID for what is no zip file.
        """
        refused, count = [], 0
        try:
            with zipfile.ZipFile(archive) as source:
                for name in source.namelist():
                    found = _NAME.fullmatch(name)
                    entry = None if found is None else _decode(found[1], source.read(name))
                    if found is None or entry is None:
                        refused.append(name)
                    else:
                        self.put(found[1], entry)
                        count += 1
        except zipfile.BadZipFile as error:
            problem = f"{archive} is no archive of kernels ({error})"
            raise LowbitvmError("ARGUMENT_INVALID", problem, "name one that `lowbitvm cache export` wrote") from error
        return count, refused

    def _file(self, key: str) -> Path:
        return self._path / f"{key}.kernel"

    def _read(self, key: str) -> Entry | None:
        path = self._file(key)
        try:
            entry = _decode(key, path.read_bytes())
        except OSError:
            return None
        with contextlib.suppress(OSError):  # of somebody else, or pruned meanwhile
            os.utime(path)
        return entry


def _encode(key: str, entry: Entry) -> bytes:
    ptx = entry.ptx.encode()
    header = {"key": key, "resources": entry.resources, "ptx": len(ptx), "cubin": len(entry.cubin)}
    text = json.dumps(header, sort_keys=True).encode()
    body = struct.pack("<I", len(text)) + text + ptx + entry.cubin
    return MAGIC + hashlib.sha256(body).digest() + body


def _decode(key: str, data: bytes) -> Entry | None:
    """None for anything but what `_encode` made of this key; past the checksum the body can be trusted."""
    start = len(MAGIC) + _DIGEST_BYTES
    body = data[start:]
    if data[:start] != MAGIC + hashlib.sha256(body).digest():
        return None
    (length,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + length])
    if header["key"] != key:
        return None
    ptx, cubin = body[4 + length : 4 + length + header["ptx"]], body[4 + length + header["ptx"] :]
    return Entry(ptx.decode(), cubin, header["resources"])


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file to a temporary name and renames it: readers and other writers see a whole file or none."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def others_may_write(directory: Path) -> bool:
    """Whether another user could put files there."""
    if os.name == "nt":
        return False  # the user's cache directory is private there, and modes say nothing about it
    status = directory.stat()
    return bool(status.st_mode & 0o022) or status.st_uid not in (os.geteuid(), 0)
