"""`lb.explain`: what a linear layer costs on a GPU, and what limits it, as far as it can be said without one."""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

from lowbitvm import targets
from lowbitvm.bench.measure import bytes_needed, measure, turn
from lowbitvm.bench.ours import Exactly, build
from lowbitvm.candidates import DigitPlan, plan_digits
from lowbitvm.codegen.convert import PIPES as DECODE_PIPES
from lowbitvm.codegen.convert import Decoder, cost, decoder, multiplications
from lowbitvm.dtypes import get
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.pack import PackedWeight, as_format, stored_bytes
from lowbitvm.plan import linear_plan
from lowbitvm.runtime.linear import compile_linear
from lowbitvm.runtime.pipes import PIPES, cycles, kind_of
from lowbitvm.targets import Target
from lowbitvm.tile import SPLIT_K, Tile

LANES = 128  # of an SM: four sub-cores of 32
CHUNK = 32  # codes that a lane decodes at a time
MEMORY, FLIGHT, ISSUE = "memory", "bytes in flight", "issue slots"


@dataclass(frozen=True)
class Explanation:
    """What y (m, n) = x (m, k) w^T costs; `str` is a page of text. Epilogues are left out."""

    format: Format
    act: str
    target: str
    shape: tuple[int, int, int]  # m, n, k
    tile: Tile
    grid: tuple[int, int, int]  # tiles of m, tiles of n, splits
    blocks_per_sm: int
    occupancy: float  # warps of those blocks / warps that an SM can hold
    registers: int
    spills: int  # bytes
    shared: int  # bytes per block
    traffic: dict[str, int]  # bytes of each array, read or written once; partial sums both
    bytes_in_flight: int  # of packed codes per SM while a stage is multiplied
    bytes_needed: int  # per SM, for the memory to be busy
    decode: dict[str, float]  # SASS instructions of the decode per weight and thread, by pipe
    instructions: dict[str, float]  # all of the main loop per weight and thread, by pipe
    limits: dict[str, float]  # microseconds that each takes at least, the longest first
    peak_share: float  # of the GPU's f16 tensor peak, if the longest of the limits were all
    fallback: str  # what is lost to mma.sync where the peak is another instruction's; else ""

    @property
    def bound(self) -> str:
        """The limit that takes longest."""
        return next(iter(self.limits))

    def __str__(self) -> str:
        gpu = targets.get(self.target).gpu
        m, n, k = self.shape
        blocks = self.grid[0] * self.grid[1] * self.grid[2]
        tile = self.tile
        lines = [
            ("problem", f"({m}, {k}) {self.act} x ({n}, {k}) {self.format}"),
            ("GPU", f"{self.target}, {gpu.name}: {gpu.sms} SMs, {gpu.boost_ghz} GHz, {gpu.dram_gbs} GB/s"),
            ("tile", f"{tile.bm} x {tile.bn} x {tile.bk}, {tile.warps} warps, {tile.stages} stages"),
            ("grid", f"{' x '.join(map(str, self.grid))} = {blocks} blocks (tiles of m, tiles of n, splits of k)"),
            ("kernel", f"{self.registers} registers, {self.spills} bytes of spills, {self.shared} of shared memory"),
            ("occupancy", f"{self.blocks_per_sm} blocks per SM, {self.occupancy:.0%} of its warps"),
            ("bytes", ", ".join(f"{name} {size}" for name, size in self.traffic.items())),
            ("in flight", f"{self.bytes_in_flight} bytes per SM of {self.bytes_needed} that keep the memory busy"),
            ("decode", f"{_sum(self.decode)} per weight and thread"),
            ("main loop", f"{_sum(self.instructions)} per weight and thread"),
        ]
        for name, time in self.limits.items():
            lines.append(("at least", f"{time:8.2f} us  {name}" + "  <- binds" * (name == self.bound)))
        lines.append(("that is", f"{self.peak_share:.1%} of the tensor peak"))
        lines += [("fallback", self.fallback)] if self.fallback else []
        return "\n".join(f"{name:<10} {text}" for name, text in lines)


def explain(
    weights: str | Format | PackedWeight,
    m: int,
    n: int | None = None,
    k: int | None = None,
    *,
    act: str = "f16",
    target: str = "sm_80",
    batch_invariant: bool = False,
    digits: str | None = None,
) -> Explanation | DigitPlan:
    """What the linear layer y (m, n) = x (m, k) w^T costs on a target's GPU, and which limit binds; needs no GPU.

    weights: a Format, its text ("u4,group=128,zero=int", "mxfp4"), or a packed weight, whose shape is then n and k and
    whose permutation counts.
    The kernel is the one that `lb.linear` runs. Its instructions are counted in its machine code, its time is the
    longest of: the bytes at the memory's bandwidth, the same with the bytes that are in flight, the issue slots, and
    the cycles of each pipe, of the SM with the most blocks. docs/bench.md says how all of it is counted.
    For integer weights and activations, as in "u2,act=i8", it is what each kind of digits costs: see `lb.plan_digits`,
    which takes `digits` too.
    Raises what `compile_linear` does, GROUP_INDIVISIBLE, ARGUMENT_INVALID and, without the extra `sass`, TOOL_MISSING.
    """
    if isinstance(weights, PackedWeight):
        fmt, (n, k) = weights.format, weights.shape
    else:
        fmt = as_format(weights)
    if not all(type(size) is int and size > 0 for size in (m, n, k)):
        raise LowbitvmError(
            "ARGUMENT_INVALID", f"a problem of m {m}, n {n}, k {k}", "give three ints above 0, or a packed weight and m"
        )
    assert n is not None and k is not None
    if fmt.act is not None:
        return plan_digits(fmt, m, n, k, target, digits)
    gpu = targets.get(target)
    permuted = isinstance(weights, PackedWeight) and weights.permutation is not None
    tile = linear_plan(m, n, k, fmt, gpu, batch_invariant, permuted)
    weight_bytes = stored_bytes(fmt, n, k)
    compiled = compile_linear(fmt, act=act, target=target, permuted=permuted, **vars(tile))
    (kernel,) = build([Exactly(fmt, act, target, replace(tile, splits=1), permuted)])  # the same loop over k
    if isinstance(kernel, LowbitvmError):
        raise kernel
    row = measure(kernel)
    loop, loop_weights = turn(kernel)
    grid = (-(-m // tile.bm), -(-n // tile.bn), tile.splits)
    blocks = grid[0] * grid[1] * grid[2]
    blocks_per_sm = gpu.blocks_per_sm(32 * tile.warps, compiled.registers, compiled.shared)
    in_flight = row.bytes_in_flight // max(1, gpu.blocks_per_sm(32 * tile.warps, row.registers, row.shared))
    traffic = _traffic(weight_bytes, m, n, k, act, tile, grid)
    of_sm = in_flight * min(blocks_per_sm, -(-blocks // gpu.gpu.sms))
    limits = _limits(gpu, loop, loop_weights, tile, k, blocks) | _memory_limits(
        gpu, sum(traffic.values()), in_flight * min(blocks, blocks_per_sm * gpu.gpu.sms)
    )
    limits = dict(sorted(limits.items(), key=lambda limit: -limit[1]))
    peak = gpu.gpu.sms * gpu.gpu.f16 * gpu.gpu.boost_ghz * 1e3  # operations in a microsecond
    return Explanation(
        fmt,
        act,
        target,
        (m, n, k),
        tile,
        grid,
        blocks_per_sm,
        blocks_per_sm * tile.warps / gpu.warps_per_sm,
        compiled.registers,
        compiled.spills,
        compiled.shared,
        traffic,
        of_sm,
        bytes_needed(target),
        _decode(fmt, act, tile),
        _by_pipe(loop, loop_weights),
        limits,
        2 * m * n * k / peak / next(iter(limits.values())),
        _fallback(gpu),
    )


def _traffic(
    weight: dict[str, int], m: int, n: int, k: int, act: str, tile: Tile, grid: tuple[int, int, int]
) -> dict[str, int]:
    """Bytes of each array; what several blocks read is taken to come from the L2 cache but once."""
    size = get(act).bits // 8
    partials = 2 * 4 * grid[0] * tile.bm * grid[1] * tile.bn * tile.splits  # written and read, f32
    return weight | {"x": size * m * k, "y": size * m * n} | ({"partials": partials} if tile.splits > 1 else {})


def _memory_limits(target: Target, traffic: int, in_flight: int) -> dict[str, float]:
    """Microseconds for the bytes, at full bandwidth and with as many in flight in all of the GPU."""
    gpu = target.gpu
    share = in_flight / (bytes_needed(target.name) * gpu.sms)
    full = traffic / (gpu.dram_gbs * 1e3)
    return {MEMORY: full} | ({FLIGHT: full / share} if 0 < share < 1 else {})


def _limits(target: Target, loop: "Counter[str]", weights: float, tile: Tile, k: int, blocks: int) -> dict[str, float]:
    """Microseconds of the SM with the most blocks, in issue slots and in each pipe."""
    depth = k if tile.splits == 1 else -(-k // (SPLIT_K * tile.splits)) * SPLIT_K
    per_lane = -(-blocks // target.gpu.sms) * tile.bn * depth / LANES  # weights
    scale = per_lane / (weights / 32) / (target.gpu.boost_ghz * 1e3)
    pipes = dict.fromkeys(PIPES, 0.0)
    for name, count in loop.items():
        kind = kind_of(name)
        if kind is not None and kind.pipe in pipes:
            pipes[kind.pipe] += count * cycles(name, target)
    return {name: time * scale for name, time in {ISSUE: float(loop.total()), **pipes}.items() if time}


def _decode(fmt: Format, act: str, tile: Tile) -> dict[str, float]:
    """The decode's instructions per weight and thread, by pipe, with the products with a power of two that it needs."""
    used = decoder(fmt.code, act)
    pipe_of = dict(DECODE_PIPES.values())
    pipes: dict[str, float] = defaultdict(float)
    for name, count in cost(used.plain if isinstance(used, Decoder) else used).items():
        pipes[pipe_of[name]] += count
    products = multiplications(used, tile.bm // 8, max(1, tile.bn // 16 // tile.warps))
    if products:
        pipes["half"] += products * CHUNK / 8
    return {name: count / CHUNK for name, count in pipes.items()}


def _by_pipe(loop: "Counter[str]", weights: float) -> dict[str, float]:
    """All instructions of the main loop per weight and thread, by pipe, the most first."""
    pipes: dict[str, float] = {}
    for name, count in loop.items():
        kind = kind_of(name)
        pipe = kind.pipe if kind is not None else "other"
        pipes[pipe] = pipes.get(pipe, 0.0) + count / (weights / 32)
    return dict(sorted(pipes.items(), key=lambda item: -item[1]))


def _fallback(target: Target) -> str:
    gpu = target.gpu
    if gpu.sync_share == 1:
        return ""
    what = f"{target.name} reaches its tensor peak by {gpu.peak_by} alone, these kernels use mma.sync"
    if gpu.sync_share is None:
        return f"{what}: what it reaches is not published, it is counted at the full rate here"
    return f"{what}: {gpu.sync_share:.0%} of peak ({gpu.source.rpartition('; mma.sync: ')[2]})"


def _sum(parts: dict[str, float]) -> str:
    return f"{sum(parts.values()):.2f} instructions (" + ", ".join(f"{n} {v:.2f}" for n, v in parts.items()) + ")"
