"""What a product of integers costs in each kind of digits that a GPU has, and which is the cheapest."""

from collections import Counter
from dataclasses import dataclass, replace

from lowbitvm import targets
from lowbitvm.codegen.digits import warps_along_m_of_digits
from lowbitvm.digitplan import EQUAL, ISSUE, MEMORY, digits_for, planned_tile, possible_digits, traffic, weights_of_sm
from lowbitvm.digits import BASES, COLUMNS, columns_per_row
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integer_plan import DigitTile
from lowbitvm.integers import check_group, format_digits
from lowbitvm.pack import as_format
from lowbitvm.runtime.compiled import CompiledKernel
from lowbitvm.runtime.integer import compile_matmul
from lowbitvm.runtime.loops import main_nest, read_sass
from lowbitvm.runtime.pipes import PIPES, cycles, kind_of
from lowbitvm.targets import Target


@dataclass(frozen=True)
class Candidate:
    """One kernel for y (m, n) = a (m, k) w (n, k)^T. `limits`: microseconds that each takes at least."""

    format: Format
    tile: DigitTile
    blocks: int
    registers: int
    spills: int
    traffic: int  # bytes, each read or written once
    instructions: float  # of the main loop, per weight and thread
    tensor_share: float  # of them
    limits: dict[str, float]

    @property
    def time(self) -> float:
        """The longest of the limits."""
        return max(self.limits.values())

    def __str__(self) -> str:
        bound = max(self.limits, key=lambda name: self.limits[name])
        second = ", ".join(f"{name} {self.limits[name]:.2f}" for name in self.limits if name != bound)
        tile = f"{self.tile.bm} x {self.tile.bn} x {self.tile.bk}, {self.tile.warps} warps, {self.tile.splits} splits"
        return (
            f"digits={self.format.digits!r}: at least {self.time:.2f} us by {bound} ({second}); {tile}, {self.blocks} "
            f"blocks; {self.instructions:.3f} instructions per weight, {self.tensor_share:.0%} of them matrix ones; "
            f"{self.registers} registers, {self.spills} bytes of spills"
        )


@dataclass(frozen=True)
class DigitPlan:
    """The candidates for one problem, the one that `best_digits` names first; `str` is a page of text."""

    target: str
    shape: tuple[int, int, int]  # m, n, k
    candidates: tuple[Candidate, ...]
    assumed: str  # what the rates of matrix instructions are taken from where none is published

    @property
    def best(self) -> Format:
        """The weight's format in the digits of the plan."""
        return self.candidates[0].format

    def __str__(self) -> str:
        m, n, k = self.shape
        gpu, first = targets.get(self.target).gpu, self.candidates[0]
        why = "no other is native, or asked for"
        if len(self.candidates) > 1:
            second = self.candidates[1]
            equal = second.time <= EQUAL * first.time
            why = f"{second.time / first.time:.2f} times faster"
            if equal and second.limits[ISSUE] >= first.limits[ISSUE]:
                why = "as fast as the next and fewer instructions"
            elif equal:
                why = f"by rates; by its machine code the next takes {1 - second.time / first.time:.0%} less time"
        lines = [
            f"problem    ({m}, {k}) {first.format.act} x ({n}, {k}) {first.format.dtype}",
            f"GPU        {self.target}, {gpu.name}: {gpu.sms} SMs, {gpu.boost_ghz} GHz, {gpu.dram_gbs} GB/s",
            *(f"candidate  {candidate}" for candidate in self.candidates),
            f"best       digits={first.format.digits!r}: {why}",
        ]
        return "\n".join([*lines, *([f"assumed    {self.assumed}"] if self.assumed else [])])


def best_digits(weights: Format | str, m: int, n: int, k: int, target: str = "sm_80") -> Format:
    """The weight's format in the digits that `lb.matmul` is fastest in; counted from rates, nothing is compiled.

    weights: a Format with `act`, or its text. Raises FORMAT_INVALID, TARGET_UNKNOWN, ARGUMENT_INVALID.
    """
    return digits_for(_checked(weights, m, n, k), m, n, k, target)


def plan_digits(
    weights: Format | str, m: int, n: int, k: int, target: str = "sm_80", digits: str | None = None
) -> DigitPlan:
    """What `lb.matmul` of (m, k) activations and an (n, k) weight costs in each kind of digits; needs no GPU.

    weights: a Format with `act`, or its text; its digits are not looked at. digits: these only. The instructions are
    counted in the machine code. A kernel's time is the longest of: its bytes at the memory's bandwidth, its issue
    slots, and the cycles of each pipe, of the SM with the most blocks. Raises FORMAT_INVALID, TARGET_UNKNOWN,
    ARGUMENT_INVALID, KERNEL_UNSUPPORTED for digits that are not native and, without the extra `sass`, TOOL_MISSING.
    """
    fmt = _checked(weights, m, n, k)
    gpu = targets.get(target)
    bases = possible_digits(fmt, gpu.digits) if digits is None else [digits]
    found = [_candidate(replace(fmt, digits=base), (m, n, k), gpu) for base in bases]
    missing = [base for base in gpu.digits if getattr(gpu.gpu, base) is None]
    assumed = f"{gpu.gpu.name} has no published rate for {', '.join(missing)}: that of f16 is taken" if missing else ""
    planned = digits_for(fmt, m, n, k, target) if digits is None else found[0].format
    fastest = min(candidate.time for candidate in found)
    found.sort(key=lambda c: (c.format != planned, max(c.time, EQUAL * fastest), c.limits[ISSUE]))
    return DigitPlan(target, (m, n, k), tuple(found), assumed)


def _checked(weights: Format | str, m: int, n: int, k: int) -> Format:
    """The format of a problem. Raises FORMAT_INVALID and ARGUMENT_INVALID."""
    fmt = as_format(weights)
    if fmt.act is None:
        raise LowbitvmError("FORMAT_INVALID", f"{fmt} does not say what it is multiplied with", 'add act, as "i8"')
    if not all(type(size) is int and size > 0 for size in (m, n, k)):
        raise LowbitvmError("ARGUMENT_INVALID", f"a problem of m {m}, n {n}, k {k}", "give three ints above 0")
    return fmt


def _candidate(fmt: Format, shape: tuple[int, int, int], target: Target) -> Candidate:
    m, n, k = shape
    check_group(fmt)
    grouped = isinstance(fmt.group, int)  # else scales come after the loop
    kernel = compile_matmul(fmt, target=target.name, m=m, n=n, k=k, scaled=grouped)
    tile = planned_tile(m, n, k, fmt, target)
    loop, weights = turn(kernel, tile, fmt, target)
    blocks = -(-m // tile.bm) * -(-n // tile.bn) * tile.splits
    moved = traffic(fmt, m, n, k)
    scale = weights_of_sm(tile, m, n, k, target) / (weights / 32) / (target.gpu.boost_ghz * 1e3)
    pipes: Counter[str] = Counter()
    for name, count in loop.items():
        kind = kind_of(name)
        if kind is not None and kind.pipe in PIPES:
            pipes[kind.pipe] += count * cycles(name, target)  # type: ignore[assignment]  # a Counter of fractions
    limits = {MEMORY: moved / (target.gpu.dram_gbs * 1e3), ISSUE: loop.total() * scale}
    limits |= {name: count * scale for name, count in pipes.items()}
    matrix = sum(count for name, count in loop.items() if "MMA" in name)
    share, total = matrix / loop.total(), loop.total() / (weights / 32)
    return Candidate(fmt, tile, blocks, kernel.registers, kernel.spills, moved, total, share, limits)


def turn(kernel: CompiledKernel, tile: DigitTile, fmt: Format, target: Target) -> tuple["Counter[str]", float]:
    """(instructions of a turn of the main loop by mnemonic, weights that a warp multiplies in it).

    Of weights that several warps multiply with their rows of activations, each has its part.
    """
    assert fmt.digits is not None and fmt.act is not None
    nest = main_nest(read_sass(kernel.sass()))
    base, activations = BASES[fmt.digits], Format(fmt.act, digits=fmt.digits)
    columns = tile.bm * columns_per_row(activations.code, fmt.digits) // COLUMNS
    planes = len(format_digits(fmt).digits)
    rows, warps_m = tile.bn // 16, 1
    if tile.part == tile.bk:  # the warps share out rows and columns
        warps_m = warps_along_m_of_digits(kernel.program, tile.warps)
        rows, columns = rows * warps_m // tile.warps, columns // warps_m
    products = rows * columns * planes  # of one step of k
    if target.capability < (8, 0):  # four instructions each, and with xor the counts of both sides
        products = 4 * (products + (columns + rows * planes) * (base.bits == 1))
    steps = nest.matrix / products
    return Counter(instruction.name for instruction in nest.levels[0]), steps * base.step_k * 16 * rows / warps_m
