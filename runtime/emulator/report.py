"""What a launch reports: findings with their place in the PTX, and counters."""

from dataclasses import dataclass, field

# The core's finding kinds in the order of its enum, and what each says. `context` is a mask of lanes or warps, a size, or a
# case; what a message adds about the other thread of a race comes from the finding's `other`.
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
    ("race_shared", "{size} bytes at shared address {address:#x}: another thread accesses them too, one of the two writes, "
                    "and nothing orders them"),
    ("race_copy", "{size} bytes at shared address {address:#x}: a cp.async into them is visible only after its thread's "
                  "wait, to other threads after a barrier too"),
    ("race_global", "{size} bytes at {where}: another thread accesses them too, one of the two writes, and nothing orders "
                    "them"),
    ("barrier_diverged", "a warp-wide or block-wide instruction is executed by the lanes {context:#010x} alone"),
    ("barrier_deadlock", "warps {context:#x} wait {waiting} for what never comes"),
    ("copy_source_size", "the source size {size} is above the copy size {context}, which is undefined"),
    ("copy_never_awaited", "exit with a cp.async of {size} bytes to shared address {address:#x} in flight"),
    ("read_only", "write to {where}, an array that is read-only"),
    ("limit", "the emulator's limit of {size} is reached (an endless loop?)"),
    ("out_of_bounds_local", "{size} bytes at local address {address:#x} are outside the thread's local memory"),
    ("uninitialised_local", "read of {size} bytes at local address {address:#x} that the thread has not written"),
    ("barrier_invalid", "barrier {address}: {invalid_barrier}"),
    ("mask_invalid", "the member mask {size:#010x} names the lanes {context:#010x}, which do not execute it (none: the "
                     "executing lane is not in its own mask)"),
    ("mbarrier_invalid", "the mbarrier at shared address {address:#x}: {invalid_mbarrier}"),
    ("trap", "the kernel stops itself"),
    ("shuffle_source", "the lane reads from lane {address}, which does not take part in the shuffle"),
    ("shift_out_of_range", "a shift by {address} of a value of {size} bits"),
)  # fmt: skip
INVALID_BARRIER = (
    "there are 16 barriers, 0 to 15",
    "{size} threads, which is no positive multiple of 32",
    "{size} threads, other warps wait there for another number",
)
INVALID_MBARRIER = (
    "it was not initialised",
    "{size} arrivals, more than its phase expects",
    "a count of {size} arrivals, the range is 1 to 2^20 - 1",
)

# Names for `checks`; what a GPU traps on (bounds, alignment, deadlock) is always checked. "shift" is not part of "all".
CHECKS = {"race": 1, "uninitialised": 2, "undefined": 4, "barrier": 8, "copy": 16, "race_global": 32, "shift": 64}
OPT_IN = frozenset(("shift",))


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
    """A launch was stopped at its first finding, in `finding`."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding
        super().__init__(str(finding))


@dataclass(frozen=True)
class ArrayTraffic:
    """Bytes of one argument that lanes read and wrote (what they asked for, not what a cache would move)."""

    read: int
    written: int


@dataclass(frozen=True)
class Counters:
    """Warp instructions issued, in total and by mnemonic; memory traffic of the whole grid.

    A shared wavefront is one pass over the 32 banks of 4 bytes, `bank_conflicts` are those beyond the fewest possible;
    `global_sectors` are distinct 32-byte sectors per warp instruction. `arrays` is by argument number.
    """

    instructions: int
    by_mnemonic: dict[str, int]
    by_line: dict[int, int]
    mma: int
    shared_wavefronts: int
    bank_conflicts: int
    global_sectors: int
    arrays: dict[int, ArrayTraffic]


@dataclass(frozen=True)
class Report:
    counters: Counters
    findings: list[Finding] = field(default_factory=list)
