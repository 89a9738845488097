"""How long a kernel takes on a GPU, and what limits it: counted on a machine without one.

The emulator counts how often each basic block of PTX runs, the assembler says which machine instructions it became,
and `lowbitvm.runtime.pipes` what each occupies. Blocks are told apart by line numbers: `mark` puts a .loc at the
start of every one, and the assembler carries it to the machine code, which it does not change by that. Where it has
unrolled a loop, the block's memory and matrix instructions stand there several times, and each copy runs so much less
often.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbitvm import targets
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.pipes import PIPES, SUB_CORES, cycles, kind_of
from lowbitvm.runtime.together import Machine, assemble_together
from lowbitvm.targets import L2_BYTES, L2_LATENCY_NS, LATENCY_NS, OVERHEAD_US, Gpu, Target

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Report

# -- which PTX block a machine instruction comes from ------------------------------------------------------------------

SHEET = "blocks"  # the file that the marks are lines of
_DEBUG = re.compile(r"\s*\.(?:loc|file)\b")
_LABEL = re.compile(r"\s*[$%\w]+:\s*$")
_BRANCH = re.compile(r"[\s{]*(?:@!?%?\w+\s+)?(?:bra|brx|ret|exit|call)\b")


def block_numbers(ptx: str) -> list[int | None]:
    """For every line the number of the basic block that it is in or, being a label or a branch, starts or ends; None
    for debug information."""
    numbers: list[int | None] = []
    number, depth, section = 0, 0, False
    for line in ptx.splitlines():
        text = line.partition("//")[0]
        section |= text.lstrip().startswith(".section")  # tables of debug information
        kept = not section and not _DEBUG.match(text)
        numbers.append(number if kept else None)
        if kept:
            before, depth = depth, depth + text.count("{") - text.count("}")
            number += bool(depth > 0 and (before == 0 or _LABEL.match(text) or _BRANCH.match(text)))
        section &= not text.lstrip().startswith("}")
    return numbers


def mark(ptx: str) -> str:
    """The text with the number of every basic block as the line number of its code, and no other line numbers."""
    lines: list[str] = []
    last = 0
    for line, number in zip(ptx.splitlines(), block_numbers(ptx), strict=True):
        if number is None:
            continue
        if number != last:
            lines.append(f".loc 1 {number} 0")
            last = number
        lines.append(line)
        if line.lstrip().startswith(".address_size"):
            lines.append(f'.file 1 "{SHEET}"')
    return "\n".join(lines) + "\n"


# PTX instructions that become one machine instruction each.
ANCHORS = tuple(
    (re.compile(ptx), re.compile(sass))
    for ptx, sass in (
        (r"mma\.sync|wgmma\.mma", r"[HIBQO]MMA|[HIQ]GMMA"),
        (r"cp\.async\.c", r"LDGSTS"),
        (r"ldmatrix", r"LDSM"),
        (r"ld\.global|ld\.relaxed|ld\.acquire|ld\.volatile", r"LDG"),
        (r"st\.global", r"STG"),
        (r"bar\.sync|barrier\.sync", r"BAR\.SYNC"),
    )
)
_PTX = re.compile(r"[\s{]*(?:@!?%?\w+\s+)?([a-z][\w.:]*)")


@dataclass
class PtxBlock:
    """A basic block of the marked text: how often it ran, how many anchors it has, and what it loads each time."""

    runs: int = 0
    anchors: int = 0
    loaded: float = 0.0  # bytes from global memory, over all runs
    asynchronous: bool = False  # by cp.async


def ptx_blocks(report: "Report") -> dict[int, PtxBlock]:
    """The basic blocks of a kernel's text by number, with what a launch of it did."""
    lines, numbers = report.ptx.splitlines(), block_numbers(report.ptx)
    found = {number: PtxBlock() for number in numbers if number is not None}
    for line in report.lines:
        number, name = numbers[line.line - 1], _PTX.match(lines[line.line - 1])
        if number is not None and name:
            block = found[number]
            block.runs = max(block.runs, line.instructions)
            block.anchors += any(ptx.match(name[1]) for ptx, _ in ANCHORS)
            if name[1].startswith(("cp.async.c", "ld.global")):
                block.loaded += 32 * line.global_sectors
                block.asynchronous |= name[1].startswith("cp")
    return found


@dataclass(frozen=True)
class SassBlock:
    """A basic block of machine code: mnemonics, the cycles until each one's successor may issue, and their marks."""

    names: list[str]
    waits: list[int]
    marks: list[int]

    @property
    def mark(self) -> int:
        """The PTX block that it is: the one of most of its anchors, or of most instructions where it has none."""
        anchored = [m for m, name in zip(self.marks, self.names, strict=True) if is_anchor(name)]
        return Counter(anchored or self.marks).most_common(1)[0][0]


def is_anchor(name: str) -> bool:
    """Whether one PTX instruction became this machine instruction and no other."""
    return any(sass.match(name) for _, sass in ANCHORS)


_SASS = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<name>[A-Z][\w.]*)[^;]*;\s+/\* 0x[0-9a-f]{16} \*/\s*\n"
    r"\s*/\* 0x(?P<control>[0-9a-f]{16}) \*/"
    rf"|//## File \"{SHEET}\", line (?P<mark>\d+)|^(?P<label>[.$\w]+):",
    re.MULTILINE,
)
_LEAVES = re.compile(r"(?:BRA|JMP|BRX|EXIT|RET|CALL|KILL)\b")


def sass_blocks(annotated: str) -> Iterator[SassBlock]:
    """The basic blocks of annotated machine code.

    Of the 128 bits of an instruction, bits 105 to 108 are the cycles that its warp waits after it.
    Source: Jia et al., Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking, 2018, section 2.1.
    """
    block, place = SassBlock([], [], []), 0
    for found in _SASS.finditer(annotated):
        if found["mark"]:
            place = int(found["mark"])
        elif found["label"]:
            if block.names:
                yield block
                block = SassBlock([], [], [])
        else:
            block.names.append(found["name"])
            block.waits.append(max(1, int(found["control"], 16) >> 41 & 15))
            block.marks.append(place)
            if _LEAVES.match(found["name"]):
                yield block
                block = SassBlock([], [], [])
    if block.names:
        yield block


# -- what a launch does ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What one launch of a kernel does over its whole grid; counts are of warps."""

    target: Target
    blocks: int
    threads: int  # of a block
    registers: int
    shared: int  # bytes of a block
    instructions: "Counter[str]"  # machine instructions by mnemonic
    waits: float  # cycles that the instructions of a warp are apart, as the assembler spaced them; of all warps
    wavefronts: int  # passes over the banks of shared memory
    sectors: int  # of 32 bytes, asked of the L2 cache
    traffic: int  # bytes of memory that are touched, each counted once
    in_flight: float  # bytes that a block has on their way: loads of a turn of its loop, times its stages
    spills: int = 0  # bytes of a thread
    exchanged: int = 0  # of traffic, bytes that a block reads soon after another one has written them
    round_trips: int = 0  # to the L2 cache that follow each other when all else is done


_machines: dict[tuple[str, str], Machine] = {}  # of PTX texts, for a target
KEPT = 256  # of these: a kernel is counted for several shapes, one after another


def machines(texts: Sequence[str], target: str) -> list[Machine]:
    """The marked machine code of PTX texts with one entry each. Raises what the assembler and nvdisasm raise."""
    if len(_machines) + len(texts) > KEPT:
        _machines.clear()
    new = [text for text in dict.fromkeys(texts) if (text, target) not in _machines]
    for text, machine in zip(new, assemble_together([mark(text) for text in new], target, annotated=True), strict=True):
        _machines[text, target] = machine
    return [_machines[text, target] for text in texts]


def count(report: "Report", ptx: str | None = None) -> Work:
    """What a launch in the emulator did, in machine instructions of the target that it was launched for.

    ptx: a text that has the same blocks and other constants, whose machine code is counted in place of the report's.
    Raises what the assembler and nvdisasm raise.
    """
    target = targets.get(report.launch.arch)
    (code,) = machines([report.ptx if ptx is None else ptx], target.name)
    blocks = list(sass_blocks(code.sass))
    came_from = ptx_blocks(report)
    copies = _copies(blocks, came_from)
    instructions: Counter[str] = Counter()
    waits = 0.0
    for block in blocks:
        runs = came_from[block.mark].runs / copies[block.mark]
        for name, wait in zip(block.names, block.waits, strict=True):
            instructions[name] += runs  # type: ignore[assignment]  # a Counter of fractions
            waits += wait * runs
    (x, y, z), (width, height, depth) = report.launch.grid, report.launch.block
    warps = -(-width * height * depth // 32) * x * y * z
    loop = max(came_from.values(), key=lambda b: b.loaded)
    stages = _stages(report) if loop.asynchronous else 1
    return Work(
        target, x * y * z, width * height * depth, code.registers, report.launch.shared, instructions, waits,
        report.counters.shared_wavefronts, report.counters.global_sectors,
        sum(array.distinct_read + array.distinct_written for array in report.counters.arrays.values()),
        stages * loop.loaded / max(1, loop.runs) * warps / (x * y * z), code.spills,
    )  # fmt: skip


def _stages(report: "Report") -> int:
    """Groups of asynchronous copies that are on their way at a time: those that the loop does not wait for, and one."""
    waits = [
        (line.instructions, int(found[1]))
        for line in report.lines
        if (found := re.search(r"cp\.async\.wait_group\s+(\d+)", line.text))
    ]
    return 1 + max(waits, default=(0, 0))[1]


def _copies(blocks: list[SassBlock], came_from: dict[int, PtxBlock]) -> dict[int, int]:
    """How often each PTX block stands in the machine code, by its anchors: more than once where a loop is unrolled."""
    anchors: Counter[int] = Counter()
    for block in blocks:
        anchors.update(place for place, name in zip(block.marks, block.names, strict=True) if is_anchor(name))
    return {n: max(1, round(anchors[n] / max(1, b.anchors))) for n, b in came_from.items()}


# -- how long it takes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """Microseconds of a launch. `limits`: what each resource takes at least; the longest of them binds."""

    limits: dict[str, float]
    overhead: float  # launch, the first load and the last store, and what blocks wait for others

    @property
    def bound(self) -> str:
        """The resource that binds."""
        return max(self.limits, key=lambda name: self.limits[name])

    @property
    def time(self) -> float:
        """Microseconds in all."""
        return self.overhead + self.limits[self.bound]


def predict(work: Work, gpu: Gpu | None = None) -> Prediction:
    """The time of a launch on a GPU, by default the one of the target's row in `lowbitvm.targets`.

    An SM holds as many blocks as fit, the SM with the most of them decides, and each resource is as busy as its counts
    say: issue slots, the pipes of the sub-cores, a warp's own chain of instructions, shared memory, L2, memory. Memory
    delivers its measured share of the peak, or what is in flight per 800 ns where that is less; what blocks exchange
    is read from the L2 cache where that has room for it.
    """
    target, gpu = work.target, gpu or work.target.gpu
    resident = target.blocks_per_sm(work.threads, work.registers, work.shared)
    if resident == 0:
        raise LowbitvmError("TILE_INVALID", "no block fits on an SM", "use fewer threads, registers or shared memory")
    clock = 1e3 * gpu.boost_ghz  # cycles per us
    most = -(-work.blocks // gpu.sms)  # blocks of the busiest SM
    share = most / work.blocks  # of the work
    warps = work.blocks * -(-work.threads // 32)
    pipes: dict[str, float] = dict.fromkeys(PIPES, 0.0)
    for name, times in work.instructions.items():
        kind = kind_of(name)
        if kind is not None and kind.pipe in pipes and kind.pipe != "shared":
            pipes[kind.pipe] += times * cycles(name, target)
    busy = {
        "issue": work.instructions.total() / SUB_CORES,
        "shared": work.wavefronts,
        "L2": 32 * work.sectors / L2_BYTES,
    }
    busy |= {name: total / SUB_CORES for name, total in pipes.items() if name != "shared"}
    limits = {name: total * share / clock for name, total in busy.items()}
    limits["chain"] = work.waits / warps * -(-most // resident) / clock
    flying = min(work.blocks, resident * gpu.sms) * work.in_flight / LATENCY_NS  # GB/s
    traffic = work.traffic - (work.exchanged if work.exchanged <= 1e6 * gpu.l2_mb else 0)
    reached = gpu.dram_gbs * gpu.dram_share
    limits["memory"] = traffic / (1e3 * (min(reached, flying) if flying else reached))  # 0: nothing is loaded
    return Prediction(limits, OVERHEAD_US + work.round_trips * L2_LATENCY_NS / 1e3)
