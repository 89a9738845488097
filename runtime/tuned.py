"""What tuning has found: a database of records, one per kernel, problem and device, and the modes that use it.

A record of the user's is one JSON file below LOWBITVM_CACHE_DIR/tuned, written to a temporary name and renamed. Its
name is the SHA-256 of everything that it holds for: kind, problem, device, driver and our version, which it also says
itself; a file that says something else, or is damaged, counts as absent. Tables that ship with the package
(lowbitvm/data/tuned, one per row of `targets.GPUS`) are looked up after the user's own.
"""

import functools
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args

from lowbitvm import targets
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver
from lowbitvm.runtime.cache import default_directory, key, others_may_write, replace_file

Mode = Literal["tune", "replay", "off"]
How = Literal["modelled", "measured"]
Value = int | str | bool
Problem = Mapping[str, int | str]
LINEAR = "linear"  # the kind of the prebuilt linear layers
SHIPPED = resources.files("lowbitvm") / "data" / "tuned"


# -- records -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """Whose records are meant. name: cuDeviceGetName's; where there is no GPU that of a row of `targets.GPUS`."""

    name: str
    target: str
    driver: int | None = None  # cuDriverGetVersion: 13000 is CUDA 13.0

    @property
    def row(self) -> str | None:
        """The row of `targets.GPUS` that this is; None for a GPU that has none."""
        named = (row for row, (target, gpu) in targets.GPUS.items() if (gpu.name, target) == (self.name, self.target))
        return targets.REPORTED.get(self.name) or next(named, None)

    @property
    def modelled(self) -> "Device | None":
        """The same GPU where there is none: what the performance model's records are for."""
        return None if self.row is None else gpu_device(self.row)


def gpu_device(row: str) -> Device:
    """The device of a GPU such as "h100", of which nothing is measured. Raises TARGET_UNKNOWN."""
    target, gpu = targets.gpu(row)
    return Device(gpu.name, target.name)


def device_of(target: str, index: int | None = None) -> Device:
    """GPU `index` of this machine, or the one that the model takes for a target. Raises TARGET_UNKNOWN."""
    if index is None:
        return Device(targets.get(target).gpu.name, target)
    return Device(driver.device_name(index), target, driver.version())


@dataclass(frozen=True)
class Record:
    """The best configuration of a kernel for a problem: how long it takes in us, and how that is known.

    tried: how many configurations were compared; seconds: how long that took.
    """

    config: dict[str, Value]
    time_us: float
    how: How
    tried: int = 1
    seconds: float = 0.0

    @classmethod
    def read(cls, parts: Any) -> "Record | None":
        """The record of parsed JSON; None for anything else."""
        kinds: dict[str, Any] = {"config": dict, "time_us": (int, float), "how": str, "tried": int}
        kinds["seconds"] = (int, float)
        if not isinstance(parts, dict) or set(parts) != set(kinds):
            return None
        if not all(isinstance(parts[name], kind) for name, kind in kinds.items()) or parts["how"] not in get_args(How):
            return None
        return cls(**parts) if all(isinstance(v, int | str) for v in parts["config"].values()) else None


def version() -> str:
    """That of this package, whose records another one does not use."""
    return str(sys.modules["lowbitvm"].__version__)


def bucket(m: int) -> int:
    """The rows that a problem of m rows is tuned with: the next power of two, and 1 for none."""
    return 1 << max(0, m - 1).bit_length()


# -- the database ------------------------------------------------------------------------------------------------------


class Database:
    """Records by kind, problem and device; safe to share between threads, and its directory between processes.

    directory: None means the folder `tuned` of the cache's. It is created on the first `put`, for its owner only. One
    that cannot be written, or that others may write to, is not written: the database then warns once, and keeps its
    records in memory. What was looked up once is not read again.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = default_directory() / "tuned" if directory is None else Path(directory)
        self._memory: dict[object, Record | None] = {}
        self._lock = threading.RLock()
        self._warned = False

    def get(self, kind: str, problem: Problem, device: Device) -> Record | None:
        """The user's record for the device; else the user's for the model of it; else the one that ships."""
        place = (kind, *sorted(problem.items()), device)
        with self._lock:
            if place not in self._memory:
                twin = device.modelled
                owners = [device] if twin is None or twin == device else [device, twin]
                found = (self._read(kind, problem, owner) for owner in owners)
                record = next((record for record in found if record is not None), None)
                self._memory[place] = record or _shipped(device.row).get(_text(kind, problem))
            return self._memory[place]

    def put(self, kind: str, problem: Problem, device: Device, record: Record) -> None:
        """Keeps a record, replacing what is there."""
        global _changes
        with self._lock:
            self._memory[(kind, *sorted(problem.items()), device)] = record
            _changes += 1
            about = _about(kind, problem, device)
            text = json.dumps({**about, "record": asdict(record), "check": _check(about, record)}, indent=1)
            try:
                self.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.directory.mkdir(mode=0o700, exist_ok=True)
                if others_may_write(self.directory):
                    raise PermissionError("others may write to it; chmod 700, as its owner")
                replace_file(self._file(about), text.encode())
            except OSError as error:
                self._warn(error)

    def stored(self) -> Iterator[tuple[str, dict[str, int | str], Device, Record]]:
        """The user's whole records of this version, by kind and problem."""
        found = []
        for file in self.directory.glob("*.json"):
            whole = _whole(file)
            if whole is not None and whole[0]["version"] == version() and self._file(whole[0]) == file:
                about, record = whole
                found.append((about["kind"], about["problem"], Device(**about["device"]), record))
        yield from sorted(found, key=lambda entry: (entry[0], *map(str, entry[1].items())))

    def _read(self, kind: str, problem: Problem, device: Device) -> Record | None:
        about = _about(kind, problem, device)
        whole = _whole(self._file(about))
        return whole[1] if whole is not None and whole[0] == about else None

    def _file(self, about: Mapping[str, Any]) -> Path:
        return self.directory / f"{key(json.dumps(about, sort_keys=True))}.json"

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            text = f"The tuning database {self.directory} cannot be written ({error}); its records are kept in memory."
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        self._warned = True


def _about(kind: str, problem: Problem, device: Device) -> dict[str, Any]:
    """What a record holds for."""
    return {"kind": kind, "problem": dict(problem), "device": asdict(device), "version": version()}


def _check(about: Mapping[str, Any], record: Record) -> str:
    return key(json.dumps([about, asdict(record)], sort_keys=True))


def _whole(file: Path) -> tuple[dict[str, Any], Record] | None:
    """What a file holds; None where it is absent or damaged."""
    try:
        parts = json.loads(file.read_bytes())
        check, record = parts.pop("check"), Record.read(parts.pop("record"))
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    return (parts, record) if record is not None and check == _check(parts, record) else None


def _text(kind: str, problem: Problem) -> str:
    return json.dumps([kind, dict(problem)], sort_keys=True)


@functools.cache
def _shipped(row: str | None) -> Mapping[str, Record]:
    """The table of a GPU that ships with the package, by kind and problem."""
    file = SHIPPED / f"{row}.json"
    if row is None or not file.is_file():
        return {}
    entries = json.loads(file.read_text())["entries"]
    return {_text(entry["kind"], entry["problem"]): Record(**entry["record"]) for entry in entries}


@functools.cache
def database() -> Database:
    """The process's database."""
    return Database()


# -- modes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tuning:
    """How kernels with a choice of configurations make it; see `tuning`."""

    mode: Mode
    budget_s: float | None = None
    group: Any = None
    agreed: dict[str, Record | None] = field(default_factory=dict)  # with a group: what rank 0 has said


_active: ContextVar[Tuning | None] = ContextVar("tuning", default=None)
_changes = 0  # of all databases of the process


@contextmanager
def tuning(mode: Mode, budget_s: float | None = None, group: Any = None) -> Iterator[Tuning]:
    """Within it, and in this thread alone, kernels are tuned ("tune"), take what tuning has found before ("replay"), or
    do neither ("off"). Without it LOWBITVM_TUNING holds, by default "replay".

    "tune" tunes what has no record yet and, where there is a GPU, what has only been modelled; never while a stream is
    captured into a CUDA graph, and never a batch-invariant layer. budget_s: seconds for each problem, as many as it
    takes where it is None. group: a torch.distributed process group, of which rank 0 decides for all; its ranks then
    have to meet the same problems in the same order. Contexts nest; the innermost holds. Raises ARGUMENT_INVALID.
    """
    if budget_s is not None and not (isinstance(budget_s, int | float) and budget_s > 0):
        raise LowbitvmError("ARGUMENT_INVALID", f"a budget of {budget_s!r} s for tuning", "give seconds above 0")
    token = _active.set(Tuning(_mode(mode, "the tuning mode"), budget_s, group))
    try:
        yield current()
    finally:
        _active.reset(token)


def current() -> Tuning:
    """The innermost `tuning` of this thread, or what LOWBITVM_TUNING says. Raises ARGUMENT_INVALID."""
    return _active.get() or _default(os.environ.get("LOWBITVM_TUNING") or "replay")


@functools.cache
def _default(mode: str) -> Tuning:
    return Tuning(_mode(mode, "LOWBITVM_TUNING"))


def _mode(mode: str, what: str) -> Mode:
    if mode not in get_args(Mode):
        raise LowbitvmError("ARGUMENT_INVALID", f"{what} is {mode!r}", f"use one of {', '.join(get_args(Mode))}")
    return cast(Mode, mode)


def state() -> object:
    """What a choice that is kept depends on: equal as long as the same `tuning` holds and no record was added."""
    return _active.get(), _changes


def decided(
    kind: str, problem: Problem, device: Device, search: Callable[[float | None], Record | None], *, capturing: bool
) -> Record | None:
    """The record that holds for a problem; None: there is none, and the kernel takes its plan.

    search: called with the seconds that it may take where the problem is to be tuned; None if nothing was found.
    capturing: whether launches are captured into a CUDA graph, so that nothing can be measured or agreed upon.
    """
    asked = _Asked(current(), kind, problem, device, search, capturing)
    if asked.chosen.mode == "off":
        return None
    return asked.own() if asked.chosen.group is None else asked.agreed()


@dataclass(frozen=True)
class _Asked:
    """What `decided` was asked, under the `tuning` that holds."""

    chosen: Tuning
    kind: str
    problem: Problem
    device: Device
    search: Callable[[float | None], Record | None]
    capturing: bool

    def own(self) -> Record | None:
        """The record of this process's database, after a search where one is due."""
        found = database().get(self.kind, self.problem, self.device)
        better = found is None or (found.how == "modelled" and self.device.driver is not None)
        if self.chosen.mode == "tune" and better and not self.capturing:
            tuned = self.search(self.chosen.budget_s)
            if tuned is not None:
                database().put(self.kind, self.problem, self.device, tuned)
                return tuned
        return found

    def agreed(self) -> Record | None:
        """Rank 0's record. All ranks ask for it when they first meet the problem; an error of rank 0 is everybody's."""
        agreed = self.chosen.agreed
        text = json.dumps([self.kind, dict(self.problem), asdict(self.device)], sort_keys=True)
        if text not in agreed and not self.capturing:
            record = agreed[text] = self._of_rank_0()
            if record is not None and database().get(self.kind, self.problem, self.device) != record:
                database().put(self.kind, self.problem, self.device, record)
        return agreed.get(text)

    def _of_rank_0(self) -> Record | None:
        group, distributed = self.chosen.group, sys.modules["torch.distributed"]
        said: list[Any] = [None]
        failure: BaseException | None = None
        if distributed.get_rank(group) == 0:
            try:
                record = self.own()
                said = [json.dumps(None if record is None else asdict(record))]
            except BaseException as error:  # the other ranks must not wait for ever
                failure = error
        distributed.broadcast_object_list(said, src=distributed.get_global_rank(group, 0), group=group)
        if failure is not None:
            raise failure
        if said[0] is None:
            raise LowbitvmError("TUNING_FAILED", f"rank 0 failed to tune {self.kind}", "look at rank 0's error")
        return Record.read(json.loads(said[0]))
