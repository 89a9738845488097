"""Which tile a linear layer runs with, and how many blocks share out its k."""

from dataclasses import dataclass, replace

from lowbitvm.chunk import blocks
from lowbitvm.digits import BASES, COLUMNS, columns_per_row
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import format_digits
from lowbitvm.targets import TARGETS, Target

ACCUMULATORS = 64  # f32 per thread; twice as many spill
UNIT_K = 128  # of k that the kernel takes at a time, where the groups are longer than a step (codegen.pipeline)
DECODE_ROWS = 16  # up to which the bytes of the weights are the limit
MOST_REGISTERS = {8: 128, 16: 168}  # by bm, of a thread that streams codes: more leave too few warps to hide latencies
SPILL_REGISTERS = 184  # estimated: from there on some kernels spill
TABLE_BYTES = 32 * 1024  # of shared memory that a codebook takes (codegen.convert)
SPARE_REGISTERS = 16  # that a kernel may take beyond the estimate


@dataclass(frozen=True)
class Tile:
    """One block's share: bm rows of x, bn output features, bk of k per stage; `warps` of them share out bn.

    `splits` blocks share out the whole k of each tile of y. direct: how many of k the loads of codes run ahead that go
    straight into registers; 0: codes go through shared memory, with the stages.
    """

    bm: int
    bn: int
    bk: int
    stages: int
    warps: int
    splits: int = 1
    direct: int = 0


SPLIT_K = 256  # k is shared out in multiples of it, the largest bk and group
MOST_SPLITS = 16
SHORTEST_SPLIT = 2 * SPLIT_K  # of k: less does not pay for the partial sums' way through memory
LITTLE = 0.05  # of a layer's time: more splits must gain more than that
NARROW = 128  # bn, but for permuted weights with few rows and codes of few bits
GATHERED_ROWS = 4  # that half of a block's threads with gathers take
START_K = 128  # of k that a block could sum in the time that it takes to start
INVARIANT_ROWS = 16  # the bm of all batch-invariant kernels


def linear_plan(
    m: int,
    n: int,
    k: int,
    fmt: Format,
    target: Target,
    batch_invariant: bool = False,
    permuted: bool = False,
    weights: int = 1,
) -> Tile:
    """The tile for a whole problem of one weight, or of two (with a gate), and the blocks that share out k.

    With `batch_invariant` the result does not depend on m: all rows are summed in one order, whatever their number.
    """
    tile = linear_tile(INVARIANT_ROWS if batch_invariant else m, fmt, target, permuted, weights)
    while tile.bn > max(n, NARROW):
        tile = replace(tile, bn=tile.bn // 2, warps=max(4, tile.warps // 2))
        tile = replace(tile, direct=direct_k(tile, fmt, target, weights) if tile.direct else 0)
    blocks = max(1, -(-n // tile.bn) * (1 if batch_invariant else -(-m // tile.bm)))
    shares = range(1, max(1, min(MOST_SPLITS, k // SHORTEST_SPLIT)) + 1)
    times = {splits: _time(replace(tile, splits=splits), blocks, k, fmt, target, weights) for splits in shares}
    enough = (1 + LITTLE) * min(times.values())
    return replace(tile, splits=next(splits for splits, time in times.items() if time <= enough))


def _time(tile: Tile, tiles: int, k: int, fmt: Format, target: Target, weights: int) -> float:
    """How long the busiest SM takes for a layer, in k that it could sum up by itself with the memory kept busy.

    Blocks of an SM share its part of the bandwidth, which they need enough bytes on their way for; those beyond what
    it can hold come after. A block that has a part of k writes its sums, and another one reads them.
    """
    part = -(-k // (SPLIT_K * tile.splits)) * SPLIT_K + START_K
    if tile.splits > 1:
        part += 2 * 32 * tile.bm // fmt.bits // 2  # the sums stay in L2, which is at least twice as fast
    blocks = -(-tiles * tile.splits // target.gpu.sms)
    resident = max(1, blocks_per_sm(tile, fmt, target, weights))
    each = bytes_ahead(tile, fmt, weights) / target.bytes_in_flight
    waves = [resident] * (blocks // resident) + [blocks % resident] * (blocks % resident > 0)
    return sum(wave * part / min(1.0, wave * each) for wave in waves)


def linear_tile(m: int, fmt: Format, target: Target | None = None, permuted: bool = False, weights: int = 1) -> Tile:
    """The tile for m rows of activations and one weight, or two: the smallest bm of 8 to 64 that holds the rows.

    At bm = 64 four warps have the best ratio of multiply-adds to instructions, but the row sums of float zero points
    and the two segments of groups of 32 take registers that only eight warps leave free (`make bench` shows both).
    Where the target has no asynchronous copies to fill them, large tiles take two stages; a large tile leaves one to
    the tables of a codebook. permuted: the weight's columns are; up to 8 rows the tile is then so wide that the
    gathering of x is few of all instructions.
    """
    target = target or TARGETS["sm_80"]
    bm = next((size for size in (8, 16, 32) if m <= size), 64)
    deep = 8 if bm <= DECODE_ROWS else 3 if bm == 64 and fmt.code.kind == "table" else 4
    stages = deep if target.has_async_copies or bm <= DECODE_ROWS else 2
    tile = Tile(bm, bn=NARROW, bk=64, stages=stages, warps=8 if bm == 64 and _crowded(fmt) else 4)
    if permuted and bm == 8:
        return _wide(tile, m, fmt, target, weights)
    return _decode_tile(tile, fmt, target, weights) if bm <= DECODE_ROWS else tile


def _wide(tile: Tile, m: int, fmt: Format, target: Target, weights: int) -> Tile:
    """The widest tile that a permuted weight takes for m rows, and whose stages fit where it is not streamed.

    A block gathers its x in the same number of instructions whatever its width.
    """
    for bn in (bn for bn in (512, 256) if m > GATHERED_ROWS or bn == 256):
        wide = replace(tile, bn=bn, warps=bn // 32)
        wide = replace(wide, direct=direct_k(wide, fmt, target, weights))
        for stages in range(wide.stages, 1, -2):
            wide = replace(wide, stages=stages)
            if _staged_bytes(wide, fmt, weights) <= target.shared_per_block:
                return wide
    return tile


def _decode_tile(tile: Tile, fmt: Format, target: Target, weights: int) -> Tile:
    """A tile whose codes on their way keep the memory busy: the fewer bits they have, the wider or further ahead.

    Wide tiles take fewer instructions per weight, for all that is done once per 8 rows of activations.
    """
    narrow = replace(tile, bn=NARROW)
    wide = [] if fmt.code.kind == "table" else [replace(tile, bn=2 * NARROW)]
    tiles = [*wide, narrow, replace(narrow, bk=UNIT_K), replace(narrow, bk=UNIT_K, stages=6)]
    streamed = [replace(tile, direct=direct_k(tile, fmt, target, weights)) for tile in tiles]
    busy = [tile for tile in streamed if keeps_busy(tile, fmt, target, weights)]
    few = [tile for tile in busy if tile.direct and registers(tile, fmt, weights) <= MOST_REGISTERS[tile.bm]]
    fewest = sorted((tile for tile in busy if tile.direct), key=lambda tile: registers(tile, fmt, weights))
    return next(iter(few or fewest), streamed[len(wide)])


def direct_k(tile: Tile, fmt: Format, target: Target, weights: int = 1) -> int:
    """`Tile.direct` of a tile: the shortest that keeps the memory busy; 0 where there are no registers for any."""
    unit = unit_k(tile, fmt)
    slots = max(2, -(-tile.stages * tile.bk // unit))
    most = min(SPILL_REGISTERS, target.registers_per_sm // (32 * tile.warps) - SPARE_REGISTERS)
    chosen = 0
    for sets in (2, 3, 4, 6, 8):
        streamed = replace(tile, direct=(sets - 1) * unit)
        if slots % sets == 0 and registers(streamed, fmt, weights) <= most:
            chosen = streamed.direct
            if keeps_busy(streamed, fmt, target, weights):
                break
    return chosen


def unit_k(tile: Tile, fmt: Format) -> int:
    """k that the kernel takes at a time."""
    longer = isinstance(fmt.group, str) or fmt.group > tile.bk
    return max(tile.bk, UNIT_K) if longer else tile.bk


def keeps_busy(tile: Tile, fmt: Format, target: Target, weights: int = 1) -> bool:
    """Whether the blocks of an SM have enough bytes on their way for the memory to be busy."""
    ahead = bytes_ahead(tile, fmt, weights) * blocks_per_sm(tile, fmt, target, weights)
    return ahead >= target.bytes_in_flight


def bytes_ahead(tile: Tile, fmt: Format, weights: int = 1) -> int:
    """Bytes of codes of one block that are on their way while it multiplies others."""
    unit = unit_k(tile, fmt)
    slots = max(2, -(-tile.stages * tile.bk // unit))
    staged = slots - (2 if unit > tile.bk and slots >= 4 else 1)  # units, of which two may share a wait
    ahead = tile.direct or staged * unit
    return weights * tile.bn * ahead * fmt.bits // 8


def blocks_per_sm(tile: Tile, fmt: Format, target: Target, weights: int = 1) -> int:
    """Blocks that an SM holds, about."""
    shared = _staged_bytes(tile, fmt, weights) + TABLE_BYTES * (fmt.code.kind == "table")
    return target.blocks_per_sm(32 * tile.warps, min(255, registers(tile, fmt, weights)), shared)


def _staged_bytes(tile: Tile, fmt: Format, weights: int = 1) -> int:
    """Shared memory of all stages, scales and zero points included, at most."""
    numbers = fmt.scale_dtype.bits + (fmt.zero_dtype.bits if fmt.zero_dtype is not None else 0)
    groups = 1 if isinstance(fmt.group, str) else max(1, tile.bk // fmt.group)
    codes = 0 if tile.direct else fmt.bits * tile.bk
    return tile.stages * (16 * tile.bm * tile.bk + weights * tile.bn * (codes + numbers * groups)) // 8


def registers(tile: Tile, fmt: Format, weights: int = 1) -> int:
    """Registers of a thread, about: what kernels of bm 8 and 16 take, and the codes that it holds.

    Groups inside a step, scales of 8 bits and vectors of several lengths take more.
    """
    columns, row_tiles, unit = tile.bm // 8, weights * tile.bn // (16 * tile.warps), unit_k(tile, fmt)
    segments = 1 if isinstance(fmt.group, str) else max(1, unit // fmt.group)
    pointers = 4 * row_tiles * (len(set(blocks(fmt.bits))) - 1)
    held = pointers + row_tiles * fmt.bits * (tile.direct + unit) // 64 if tile.direct else 0
    each = (9 + 13 * columns) // 2 + (segments - 1) * (3 + 2 * columns) + 4 * columns * (fmt.scale_dtype.bits == 8)
    return 18 + 22 * columns + row_tiles * each + 8 * (fmt.zero == "float") + held


def chosen_tile(
    fmt: Format, target: Target | None = None, permuted: bool = False, weights: int = 1, /, **parts: int | None
) -> Tile:
    """The tile with the parts that are not None, and the rest as for `bm` rows (16 where it is None).

    Raises TILE_INVALID for a tile that the linear kernel cannot have or whose accumulators leave no registers.
    """
    given = {name: part for name, part in parts.items() if part is not None}
    odd = {name: part for name, part in given.items() if type(part) is not int or part < (name != "direct")}
    if odd:
        raise LowbitvmError("TILE_INVALID", f"the tile's parts {odd} are no ints above 0", "leave them out")
    tile = replace(linear_tile(given.get("bm", 16), fmt, target, permuted, weights), **given)
    if tile.direct and "direct" not in given:
        tile = replace(tile, direct=direct_k(tile, fmt, target or TARGETS["sm_80"], weights))
    accumulators = tile.bm * tile.bn // (32 * tile.warps)
    limit = ACCUMULATORS // 2 if _crowded(fmt) else ACCUMULATORS
    problems = {
        f"bm {tile.bm} is no power of two from 8 on": tile.bm < 8 or tile.bm & (tile.bm - 1),
        f"warps {tile.warps} is no power of two up to 32": tile.warps not in (1, 2, 4, 8, 16, 32),
        f"bn {tile.bn} is no power of two from 16 x {tile.warps} warps on": tile.bn < 16 * tile.warps
        or tile.bn & (tile.bn - 1),
        f"bk {tile.bk} is not 64, 128 or 256": tile.bk not in (64, 128, 256),
        f"stages {tile.stages} is not 2 to 8": not 2 <= tile.stages <= 8,
        f"splits {tile.splits} is not 1 to {MOST_SPLITS}": tile.splits > MOST_SPLITS,
        f"bm {tile.bm} x bn {tile.bn} are {accumulators} accumulators per thread, {fmt} has registers for {limit}": (
            accumulators > limit
        ),
    }
    for problem, holds in problems.items():
        if holds:
            raise LowbitvmError("TILE_INVALID", problem, f"leave parts out, as in {linear_tile(16, fmt)}")
    return tile


def _crowded(fmt: Format) -> bool:
    """Whether a format's kernel needs many registers beside the accumulators."""
    return fmt.zero in ("float", "offset") or fmt.group in (16, 32)


# -- integer codes -----------------------------------------------------------------------------------------------------


STAGED_BYTES = 50 * 1024  # per block: three of them fit an A100's SM
MOST_PAIRS = 8  # n8 tiles times planes of weights that leave registers for a second row tile


@dataclass(frozen=True)
class DigitTile:
    """One block's share of a product of integer codes, as `Tile`."""

    bm: int
    bn: int
    bk: int
    stages: int
    warps: int


def digit_tile(m: int, activations: Format, weights: Format, target: Target) -> DigitTile:
    """The tile for m rows of integer activations.

    bm is the smallest that holds the rows and fills columns of the n8 side, up to 64 of them. Tiles of few pairs of
    digits are wider and deeper, where two stages of them fit STAGED_BYTES.
    """
    assert activations.digits is not None and weights.digits is not None
    base, each = BASES[weights.digits], columns_per_row(activations.code, activations.digits)
    bm = next((size for size in (COLUMNS, 2 * COLUMNS, 4 * COLUMNS) if m * each <= size), 8 * COLUMNS) // each
    few = len(format_digits(weights).digits) * bm * each // COLUMNS <= MOST_PAIRS
    most = 4 if target.has_async_copies else 2
    for bn, bk in ((128, 2 * base.tile_k), (64, 2 * base.tile_k), (64, base.tile_k))[0 if few else 2 :]:
        stages = min(most, STAGED_BYTES // (bk * (bn * weights.bits + bm * each * base.bits) // 8))
        if stages >= 2:
            break
    return DigitTile(bm, bn, bk, stages, warps=4)
