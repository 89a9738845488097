"""The cache of compiled kernels: in memory, and on disk with one file per entry.

A file is MAGIC, the SHA-256 of everything after it, the length of a JSON header (u32, little-endian), the header
{"key", "resources", "ptx", "cubin"} (the last two are lengths in bytes), the PTX text, the cubin. It is written to a
temporary name and renamed, so that readers and other writers see a whole file or none.
"""

import hashlib
import json
import os
import struct
import tempfile
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

MAGIC = b"lowbitvm-kernel-1\n"
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


class Cache:
    """Entries by key; safe to share between threads, and its directory between processes.

    directory: None means `default_directory()`. It is created on the first use, for its owner only (0700). One that
    somebody else may write to is not used, because its cubins would run with this user's rights: then, and when
    writing fails, the cache warns once and keeps to memory.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._path = default_directory() if directory is None else Path(directory)
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
                self._write(key, entry)
            except OSError as error:
                self._memory_only(f"cannot be written ({error})")

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
                    if _others_may_write(self._path):
                        self._memory_only("can be written by others (remedy: chmod 700, as its owner)")
                except OSError as error:
                    self._memory_only(f"cannot be used ({error})")
            return self._usable

    def _memory_only(self, reason: str) -> None:
        self._usable = False
        warnings.warn(
            f"The kernel cache {self._path} {reason}; kernels are kept in memory only. "
            "LOWBITVM_CACHE_DIR names another directory.",
            RuntimeWarning,
            stacklevel=4,
        )

    def _file(self, key: str) -> Path:
        return self._path / f"{key}.kernel"

    def _read(self, key: str) -> Entry | None:
        try:
            return _decode(key, self._file(key).read_bytes())
        except OSError:
            return None

    def _write(self, key: str, entry: Entry) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self._path, prefix=f"{key}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_encode(key, entry))
            Path(temporary).replace(self._file(key))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


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


def _others_may_write(directory: Path) -> bool:
    if os.name == "nt":
        return False  # the user's cache directory is private there, and modes say nothing about it
    status = directory.stat()
    return bool(status.st_mode & 0o022) or status.st_uid not in (os.geteuid(), 0)
