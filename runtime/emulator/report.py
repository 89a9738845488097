"""What a launch reports: findings with their place in the PTX, and counters."""

from dataclasses import dataclass, field

# The core's finding kinds in the order of its enum, and what each says. `other` is a thread, a block or a lane mask.
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
    ("race_shared", "{size} bytes at shared address {address:#x}: thread {other} accesses them too, without a barrier"),
    ("race_copy", "{size} bytes at shared address {address:#x}: a cp.async of thread {other} into them is visible "
                  "only after that thread's wait and a barrier"),
    ("race_global", "{size} bytes at {where}: block {other} accesses them too, and one of the two writes"),
    ("race_global_warps", "{size} bytes at {where}: thread {other} of the block accesses them too, without a barrier"),
    ("barrier_diverged", "a warp-wide or block-wide instruction is executed by the lanes {other:#010x} alone"),
    ("barrier_deadlock", "warps {other:#x} wait at barrier {address} for warps that never come"),
    ("copy_source_size", "the source size {size} is above the copy size {other}, which is undefined"),
    ("copy_never_awaited", "exit with a cp.async of {size} bytes to shared address {address:#x} in flight"),
    ("read_only", "write to {where}, an array that is read-only"),
    ("limit", "the emulator's limit of {size} is reached (an endless loop?)"),
    ("shuffle_source", "the lane reads from lane {address}, which does not take part in the shuffle"),
    ("shift_out_of_range", "a shift by {address} of a value of {size} bits"),
)  # fmt: skip

# Names for `checks`; "all" leaves out those of OPT_IN. What a GPU traps on (bounds, alignment, deadlock) is always
# checked. "race_global" stands for both kinds of races on global memory.
CHECKS = {"race": 1, "uninitialised": 2, "undefined": 4, "barrier": 8, "copy": 16, "race_global": 32, "shift": 64}
OPT_IN = {"shift"}


@dataclass(frozen=True)
class Finding:
    """One defect: `kind` as in KINDS, PTX `line` (from 1) and its `text`, indices of block and thread, address."""

    kind: str
    message: str
    line: int
    text: str
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    address: int

    def __str__(self) -> str:
        place = f"line {self.line}, block {self.block}, thread {self.thread}"
        return f"{self.kind}: {place}: {self.message}: {self.text.strip()}"


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
