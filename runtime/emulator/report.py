"""What a launch reports: findings with their place in the PTX, counters, and how both are written out."""

import functools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbitvm.runtime.emulator import page

if TYPE_CHECKING:
    from rich.console import RenderableType

# The core's finding kinds in the order of its enum, and what each says. `context` is a mask of lanes or warps, a size,
# or a case; what a message adds about the other thread of a race comes from the finding's `other`.
KINDS = (
    ("out_of_bounds_global", "{access} of {size} bytes at {where} is outside every array"),
    ("out_of_bounds_shared", "{size} bytes at shared address {address:#x} are outside its {shared} from 0x400 on"),
    ("out_of_bounds_param", "{size} bytes at offset {address:#x} are outside the kernel's parameters"),
    ("misaligned", "access of {size} bytes at {where} is not aligned to its size"),
    ("uninitialised_shared", "read of {size} bytes at shared address {address:#x} that nothing has written"),
    ("uninitialised_global", "read of {size} bytes at {where}, in an output that nothing has written there"),
    ("undefined_address", "an address comes from a register that was never written"),
    ("undefined_predicate", "a predicate comes from a register that was never written"),
    ("undefined_store", "a stored value comes from a register that was never written"),
    ("race_shared", "{size} bytes at shared address {address:#x}: another thread accesses them too, one of the two "
                    "writes, and nothing orders them"),
    ("race_copy", "{size} bytes at shared address {address:#x}: a cp.async into them is visible only after its "
                  "thread's wait, to other threads after a barrier too"),
    ("race_global", "{size} bytes at {where}: another thread accesses them too, one of the two writes, and nothing "
                    "orders them"),
    ("barrier_diverged", "{diverged}"),
    ("barrier_deadlock", "warps {context:#x} wait {waiting} for what never comes"),
    ("copy_source_size", "the source size {size} is above the copy size {context}, which is undefined"),
    ("copy_never_awaited", "exit with a cp.async of {size} bytes to shared address {address:#x} in flight"),
    ("read_only", "write to {where}, an array that is read-only"),
    ("limit", "{endless}"),
    ("out_of_bounds_local", "{size} bytes at local address {address:#x} are outside the thread's local memory"),
    ("uninitialised_local", "read of {size} bytes at local address {address:#x} that the thread has not written"),
    ("barrier_invalid", "{invalid_barrier}"),
    ("mask_invalid", "the member mask {size:#010x} names the lanes {context:#010x}, which do not execute it (none: the "
                     "executing lane is not in its own mask)"),
    ("mbarrier_invalid", "the mbarrier at shared address {address:#x}: {invalid_mbarrier}"),
    ("trap", "{trap}"),
    ("shuffle_source", "the lane reads from lane {address}, which does not take part in the shuffle"),
    ("shift_out_of_range", "a shift by {address} of a value of {size} bits"),
    ("metadata_invalid", "{metadata}"),
    ("beyond_bound", ""),  # not of the core: see results.py
)  # fmt: skip
WAITING = {16: "in a loop", 17: "at the cluster's barrier"}  # barriers are 0 to 15
ENDLESS = (
    "the emulator's limit of {size} is reached (an endless loop?)",
    "the loop waits for what no other thread will do: all of them wait",
)
DIVERGED = (
    "a warp-wide or block-wide instruction is executed by the lanes {context:#010x} alone",
    "threads that were at this barrier before have exited; the others are there once more",
)
INVALID_BARRIER = (
    "barrier {address}: there are 16 barriers, 0 to 15",
    "barrier {address}: {size} threads, which is no positive multiple of 32",
    "barrier {address}: {size} threads, other warps wait there for another number",
    "the cluster's barrier: the warp arrives again before the barrier completes",
    "the cluster's barrier: the warp waits without having arrived since it last waited",
)
INVALID_MBARRIER = (
    "it was not initialised",
    "{size} arrivals, more than its phase expects",
    "a count of {size} arrivals, the range is 1 to 2^20 - 1",
)
INVALID_METADATA = (
    "row {address} of A has the indices {size:#06b} for a chunk, which may not be so",
    "the sparsity selector {size} names no threads, it may be 0 or 1",
)

# Why a kernel stopped; a failed assertion has a text of its own.
TRAPS = (
    "the kernel stops itself",
    "the index of brx.idx is beyond its list",
    "the register holds the address of none of the functions that the call names",
    "the recursion is deeper than the levels that the emulator expands it to",
)

# Names for `checks`; what a GPU traps on (bounds, alignment, deadlock) is always checked. "shift" is not part of "all".
CHECKS = {"race": 1, "uninitialised": 2, "undefined": 4, "barrier": 8, "copy": 16, "race_global": 32, "shift": 64}
OPT_IN = frozenset(("shift",))

SCHEMA = 1  # of `Report.to_json`; a number that is not this one means that a key changed its meaning or went


@dataclass(frozen=True)
class Party:
    """The other access of a race: its PTX line (0: not known), block and thread."""

    line: int
    block: tuple[int, int, int]
    thread: tuple[int, int, int]

    def __str__(self) -> str:
        return f"line {self.line}, block {self.block}, thread {self.thread}"


@dataclass(frozen=True)
class Finding:
    """One defect: `kind` as in KINDS, PTX `line` (from 1) and its `text`, indices of block and thread, address.

    `other` is the other thread of a race, `source` the "file:line" that the PTX's .loc gives.
    """

    kind: str
    message: str
    line: int
    text: str
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    address: int
    other: Party | None = None
    source: str | None = None

    def __str__(self) -> str:
        source = f" ({self.source})" if self.source else ""
        other = f" (the other: {self.other})" if self.other else ""
        place = f"line {self.line}{source}, block {self.block}, thread {self.thread}"
        return f"{self.kind}: {place}: {self.message}{other}: {self.text.strip()}"


class EmulatorError(Exception):
    """A launch was stopped at its first finding, in `finding`; `report` has the counters up to there."""

    def __init__(self, finding: Finding, report: "Report") -> None:
        self.finding, self.report = finding, report
        super().__init__(str(finding))


ArrayKey = int | tuple[int, int]  # an argument's number, or that of a struct and the offset of an address in it


@dataclass(frozen=True)
class ArrayTraffic:
    """Bytes of one array that lanes read and wrote (what they asked for, not what a cache would move).

    `distinct_read` and `distinct_written` count each byte once. `size` is the array's, `name` the parameter's, or that
    of the address in a struct ("params.x", "params+16").
    """

    read: int
    written: int
    distinct_read: int
    distinct_written: int
    size: int
    name: str

    @property
    def reads_per_byte(self) -> float:
        """How often each byte that was read at all was read, on average; 0 where none was."""
        return self.read / self.distinct_read if self.distinct_read else 0.0


@dataclass(frozen=True)
class MatrixCount:
    """Matrix instructions of one shape and type, and the products that they summed."""

    instructions: int
    multiply_accumulates: int


@dataclass(frozen=True)
class Rounding:
    """How far the hardware's float matrix products are from exact sums rounded once, as `numerics="bound"` finds.

    `bound`: the largest distance that its arithmetic allows any output, `distance`: the largest that it had, `share`:
    the largest distance over the bound of the same output, which is one of `block` and `thread`; above 1 it is a
    finding, too. `outputs` were computed, of which `unbounded` may overflow, or are no numbers: they have no bound.
    """

    bound: float
    distance: float
    share: float
    outputs: int
    unbounded: int
    block: tuple[int, int, int]
    thread: tuple[int, int, int]


@dataclass(frozen=True)
class Traffic:
    """What memory accesses cost: passes over shared memory's 32 banks, and 32-byte sectors of global memory.

    `fewest_...` is what the same bytes would cost if they lay as well as possible; `conflict_degree` the most passes
    that one phase of an instruction took (1: free of conflicts, 0: no access).
    """

    shared_wavefronts: int
    fewest_wavefronts: int
    global_sectors: int
    fewest_sectors: int
    conflict_degree: int

    @property
    def bank_conflicts(self) -> int:
        """Wavefronts beyond the fewest possible."""
        return self.shared_wavefronts - self.fewest_wavefronts


# A tally's columns (core.h), and the fields that they fill here; the last is a maximum, the others are sums.
COLUMNS = (
    "instructions",
    "lanes",
    "shared_wavefronts",
    "fewest_wavefronts",
    "global_sectors",
    "fewest_sectors",
    "conflict_degree",
)


@dataclass(frozen=True)
class LinePlace:
    """A PTX line (from 1) that holds instructions, the "file:line" of its .loc, and the classes of its mnemonics."""

    line: int
    text: str
    source: str | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class LineTable:
    """What `Report.lines` is made of, for a launch need not pay for lines that nobody looks at."""

    places: list[LinePlace]
    counts: np.ndarray[Any, np.dtype[np.uint64]]  # (lines, columns of a tally)
    rounding: dict[int, Rounding]  # by number of the line in `places`


@dataclass(frozen=True)
class LineCounters(Traffic):
    """One PTX line (from 1) that holds instructions, with the "file:line" of its .loc where it has one.

    `instructions` were issued to warps, with `lanes` active lanes in all; `classes` are those of the line's mnemonics.
    `rounding` is None where it computed no float matrix products, or without `numerics="bound"`.
    """

    line: int
    text: str
    source: str | None
    classes: tuple[str, ...]
    instructions: int
    lanes: int
    rounding: Rounding | None = None

    @property
    def active_lanes(self) -> float:
        """Lanes that took part in an instruction, on average (0 to 32)."""
        return self.lanes / self.instructions if self.instructions else 0.0


@dataclass(frozen=True)
class Counters(Traffic):
    """Warp instructions issued, in total, by class and by mnemonic; memory traffic of the whole grid.

    An instruction whose guard is false counts as issued, without lanes. `by_class` is by the names of classes.CLASSES,
    `arrays` by argument number (of an address in a struct: that and its byte offset), `matrix` by shape and types
    ("m16n8k16.f32.f16.f16.f32"); `mma` is their total. `rounding` is None unless the launch had `numerics="bound"`.
    """

    instructions: int
    lanes: int
    by_class: dict[str, int]
    by_mnemonic: dict[str, int]
    by_line: dict[int, int]
    mma: int
    matrix: dict[str, MatrixCount]
    rounding: Rounding | None
    arrays: dict[ArrayKey, ArrayTraffic]

    @property
    def active_lanes(self) -> float:
        """Lanes that took part in an instruction, on average (0 to 32)."""
        return self.lanes / self.instructions if self.instructions else 0.0


@dataclass(frozen=True)
class Launch:
    """What was launched. `shared`: bytes of shared memory, static and dynamic; `checks`: those that were on."""

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    arch: str
    checks: tuple[str, ...]
    options: dict[str, str | int]  # numerics, seed and what else decides a run


@dataclass(frozen=True)
class Report:
    """The outcome of one launch of the text `ptx`, which took `seconds` on this machine.

    `printed`: what each call of printf printed, block after block, where blocks cannot communicate.
    """

    counters: Counters
    findings: list[Finding]
    _lines: LineTable = field(repr=False, compare=False)
    launch: Launch
    seconds: float = field(compare=False)
    ptx: str = field(repr=False)
    printed: list[str] = field(default_factory=list)

    @functools.cached_property
    def lines(self) -> list[LineCounters]:
        """Every PTX line of the kernel that holds instructions, in order."""
        made = []
        for n, (place, counts) in enumerate(zip(self._lines.places, self._lines.counts.tolist(), strict=True)):
            numbers, rounding = dict(zip(COLUMNS, counts, strict=True)), self._lines.rounding.get(n)
            made.append(LineCounters(**vars(place), **numbers, rounding=rounding))
        return made

    def to_json(self, indent: int | None = None) -> str:
        """The report as JSON, without `ptx` and `seconds`: the same launch gives the same text.

        docs/emulator.md describes the keys; "schema" is SCHEMA.
        """
        return json.dumps(self._data(), indent=indent)

    def _data(self) -> dict[str, object]:
        c = self.counters
        traffic = {name: getattr(c, name) for name in TRAFFIC}
        return {
            "schema": SCHEMA,
            "launch": asdict(self.launch),
            "counters": {
                "instructions": c.instructions,
                "active_lanes": c.active_lanes,
                "by_class": c.by_class,
                "by_mnemonic": c.by_mnemonic,
                "mma": c.mma,
                "matrix": {name: asdict(count) for name, count in c.matrix.items()},
                "rounding": c.rounding and asdict(c.rounding),
                **traffic,
            },
            "arrays": [
                {**_named(key), **asdict(array), "reads_per_byte": array.reads_per_byte}
                for key, array in c.arrays.items()
            ],
            "lines": [
                {**asdict(line), "active_lanes": line.active_lanes, "bank_conflicts": line.bank_conflicts}
                for line in self.lines
            ],
            "findings": [asdict(finding) for finding in self.findings],
            "printed": self.printed,
        }

    def to_html(self, path: str | Path | None = None) -> str:
        """The annotated PTX as one HTML page without scripts or outside files, also written to `path`."""
        text = page.render(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def table(self) -> "RenderableType":
        """Counters, hottest lines and findings for `rich.print`."""
        from lowbitvm.runtime.emulator import table  # rich takes longer to import than the emulator

        return table.render(self)

    def __rich__(self) -> "RenderableType":
        return self.table()


def _named(key: ArrayKey) -> dict[str, int | None]:
    """Argument and, of an address in a struct, its offset."""
    argument, offset = key if isinstance(key, tuple) else (key, None)
    return {"argument": argument, "offset": offset}


TRAFFIC = (
    "shared_wavefronts",
    "fewest_wavefronts",
    "bank_conflicts",
    "conflict_degree",
    "global_sectors",
    "fewest_sectors",
)
