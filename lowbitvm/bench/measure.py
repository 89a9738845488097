"""From a kernel's machine code to a row of the static table; docs/bench.md says what the columns mean."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowbitvm import targets
from lowbitvm.runtime import emulator
from lowbitvm.runtime.loops import Nest, main_nest, read_ptx, read_sass
from lowbitvm.runtime.pipes import PIPES, SUB_CORES, cycles, kind_of, multiply_adds
from lowbitvm.targets import Target

REFERENCE_K = 8192  # in_features of the layer that a loop over stages is taken to run through
EMULATED_K = 1024  # in_features that the bank conflicts of a block are counted for
MEMORY = "memory"  # the name of the DRAM's cycles among those of the pipes
DIGITS = 4  # of the fractions in a row


@dataclass(frozen=True)
class Kernel:
    """What is measured: a tool's kernel for y (bm rows of x) times (bn x bk weights per stage)."""

    tool: str
    weights: str
    act: str
    group: int | str
    zero: str | None
    target: str
    tile: tuple[int, ...]  # bm, bn, bk
    warps: int
    stages: int
    ahead: int  # k of the weights that are on their way while a stage is multiplied
    bits: int  # of one stored weight
    sass: str = field(repr=False)
    registers: int
    spills: int
    shared: int  # bytes per block
    bank_conflicts: int | None = None  # None: not measured
    producers: int = 0  # of the warps: those that only load
    # weights that one matrix instruction and warp stands for, where not all of them multiply weights (else None)
    weights_per_matrix: float | None = None
    trace_ms: float | None = None  # from Python to PTX
    assemble_ms: float | None = None  # from PTX to machine code
    digits: str | None = None  # of products of integers


@dataclass(frozen=True)
class Row:
    """A row of the table, in the order of its columns; per weight: per weight and thread."""

    tool: str
    weights: str
    act: str
    group: int | str
    zero: str | None
    target: str
    tile: str
    mac_per_instruction: float
    instructions_per_weight: float
    decode_per_weight: float
    tensor_share: float
    registers: int
    spills: int
    shared: int
    bank_conflicts: int | None
    bytes_in_flight: int
    occupancy: float
    warps: int
    stages: int
    cycles_per_weight: dict[str, float]
    trace_ms: float | None
    assemble_ms: float | None
    unknown: tuple[str, ...] = ()  # mnemonics that the table of pipes does not have
    digits: str | None = None  # that integers are multiplied in


def measure(kernel: Kernel) -> Row:
    """The row of a kernel. Raises ARGUMENT_INVALID where its code has no loop with matrix instructions."""
    target = targets.get(kernel.target)
    loop, weights = turn(kernel)
    total = _sum(loop, lambda name: 1)
    threads = 32 * kernel.warps
    blocks = target.blocks_per_sm(threads, kernel.registers, kernel.shared)
    ahead_bytes = kernel.tile[1] * kernel.ahead * kernel.bits // 8

    def per_weight(value: float) -> float:
        return round(value / (weights / 32), DIGITS)

    return Row(
        tool=kernel.tool,
        weights=kernel.weights,
        act=kernel.act,
        group=kernel.group,
        zero=kernel.zero,
        target=kernel.target,
        tile="x".join(map(str, kernel.tile)),
        mac_per_instruction=round(weights * kernel.tile[0] / total, DIGITS),
        instructions_per_weight=per_weight(total),
        decode_per_weight=per_weight(_sum(loop, _decodes)),
        tensor_share=round(_sum(loop, lambda name: _pipe(name) == "tensor") / total, DIGITS),
        registers=kernel.registers,
        spills=kernel.spills,
        shared=kernel.shared,
        bank_conflicts=kernel.bank_conflicts,
        bytes_in_flight=ahead_bytes * blocks,
        occupancy=round(blocks * kernel.warps / target.warps_per_sm, DIGITS),
        warps=kernel.warps,
        stages=kernel.stages,
        cycles_per_weight={
            **{pipe: per_weight(_cycles(loop, pipe, target)) for pipe in PIPES},
            MEMORY: round(memory_cycles(kernel.bits, target), DIGITS),
        },
        trace_ms=_milliseconds(kernel.trace_ms),
        assemble_ms=_milliseconds(kernel.assemble_ms),
        unknown=tuple(sorted(name for name in loop if kind_of(name) is None)),
        digits=kernel.digits,
    )


def turn(kernel: Kernel) -> "tuple[Counter[str], float]":
    """(instructions by mnemonic, weights) of a warp and a turn of the main loop, with its part of outer loops."""
    nest = main_nest(read_sass(kernel.sass))
    weights = nest.matrix * (kernel.weights_per_matrix or _weights_per_matrix(nest, kernel.tile[0]))
    return nest.counts(trips(weights * (kernel.warps - kernel.producers), kernel.tile)), weights


def _milliseconds(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def trips(block_weights: float, tile: tuple[int, ...]) -> list[float]:
    """How often each loop of a nest turns, from the innermost out, if its turn covers `block_weights` of the block.

    A turn that covers less than a stage is one of bk / k turns inside the loop over stages, k being the depth that its
    matrix instructions make of the tile; the loop over stages runs through a layer of REFERENCE_K in_features.
    """
    depth = block_weights / tile[1]
    stage = tile[2]
    return [stage / depth, REFERENCE_K / stage] if depth < stage else [REFERENCE_K / depth]


def bytes_needed(target: str) -> int:
    """Bytes per SM that must be in flight for the memory of the target's GPU to be busy."""
    return targets.get(target).bytes_in_flight


def memory_cycles(bits: int, target: Target) -> float:
    """Cycles in which an SM's share of the DRAM bandwidth brings a code for each of the 128 lanes of its sub-cores."""
    bytes_per_cycle = target.gpu.dram_gbs / target.gpu.boost_ghz / target.gpu.sms
    return 32 * SUB_CORES * bits / 8 / bytes_per_cycle


def _weights_per_matrix(nest: Nest, rows: int) -> float:
    """Weights per matrix instruction where all of them multiply weights with `rows` rows of activations."""
    made = [multiply_adds(instruction.name) for instruction in nest.levels[0] if instruction.is_matrix]
    return sum(made) / len(made) / rows


def main_loop_conflicts(report: emulator.Report, ptx: str) -> int:
    """Wavefronts beyond the fewest possible that the shared-memory accesses of the PTX's main loop took."""
    lines = {instruction.line for instruction in main_nest(read_ptx(ptx)).levels[0]}
    return sum(line.bank_conflicts for line in report.lines if line.line in lines)


def emulated_conflicts(ptx: str, entry: str, threads: int, args: Sequence[Any], shared: int, target: str) -> int | None:
    """`main_loop_conflicts` of one block of any tool's PTX; None where it has instructions that the emulator lacks."""
    try:
        module = emulator.load(ptx)
    except emulator.PtxError:
        return None
    report = module.launch(entry, (1, 1, 1), (threads, 1, 1), list(args), shared=shared, arch=target, checks="none")
    return main_loop_conflicts(report, ptx)


def _cycles(loop: "Counter[str]", pipe: str, target: Target) -> float:
    """Cycles that a turn occupies a pipe of a sub-core."""
    return _sum(loop, lambda name: cycles(name, target) if _pipe(name) == pipe else 0)


def _pipe(name: str) -> str | None:
    kind = kind_of(name)
    return None if kind is None else kind.pipe


def _decodes(name: str) -> bool:
    kind = kind_of(name)
    return kind is not None and kind.decodes


def _sum(loop: "Counter[str]", value: Callable[[str], float]) -> float:
    return float(sum(count * value(name) for name, count in loop.items()))
