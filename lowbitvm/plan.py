"""Which tile a linear layer runs with, and how many blocks share out its k."""

from collections.abc import Iterator
from dataclasses import replace

from lowbitvm.cost import predicted_us
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import BLOCK, Format
from lowbitvm.targets import TARGETS, Target
from lowbitvm.tile import (
    LARGE,
    MOST_SPLITS,
    NARROW,
    SHORTEST_STREAM,
    SMALL_ROWS,
    SPILL_REGISTERS,
    STAGED_BYTES,
    SUMMED,
    TABLE_BYTES,
    UNIT_K,
    Tile,
    direct_k,
    fits_tables,
    joined_bytes,
    k_ahead,
    keeps_busy,
    registers,
    shares_decoded,
    shares_sums,
    staged_bytes,
    stages_tables,
    unit_k,
)

ACCUMULATORS = 64  # f32 per thread; twice as many spill
DECODE_ROWS = 16  # up to which the bytes of the weights are the limit
MOST_REGISTERS = {8: 128, 16: 168}  # by bm, of a thread that streams codes: more leave too few warps to hide latencies
LITTLE = 0.01  # of a layer's time: more splits must gain more than that
UNLIKE = 0.02  # the same of another tile than the one for the rows
DEEP_STAGES = 6  # that few blocks hide the latency with
GATHERED_ROWS = 4  # that half of a block's threads with gathers take
GATHER_REGISTERS = 24  # that gathering takes beside the rest
INVARIANT_ROWS = 16  # the bm of all batch-invariant kernels


def linear_plan(
    m: int,
    n: int,
    k: int,
    fmt: Format,
    target: Target,
    batch_invariant: bool = False,
    permuted: bool = False,
    gate: bool = False,
) -> Tile:
    """The tile for a whole problem of one weight, or of two (with a gate), and the blocks that share out k.

    With `batch_invariant` the result does not depend on m: all rows are summed in one order, whatever their number.
    With `gate` there are two weights, whose sums leave no registers for the largest tile.
    """
    most = INVARIANT_ROWS if batch_invariant else SMALL_ROWS if gate else m
    weights = 2 if gate else 1
    tile = linear_tile(most if batch_invariant else min(m, most), fmt, target, permuted, weights)
    while tile.bn > max(n, NARROW):
        tile = replace(tile, bn=tile.bn // 2, warps=min(tile.warps, tile.bn // 64))
        tile = replace(tile, direct=direct_k(tile, fmt, target, weights) if tile.direct else 0)
    free = target.shared_per_block - TABLE_BYTES * (fmt.code.kind == "table")
    while tile.stages > 2 and not tile.direct and staged_bytes(tile, fmt, weights) > free:
        tile = replace(tile, stages=max(2, tile.stages - 2))  # two may be taken together
    rows = tile.bm if batch_invariant else max(1, m)
    sums = 4 * weights * -(-rows // tile.bm) * tile.bm * max(1, n)  # bytes of one split's, which the L2 is to hold
    most_splits = min(MOST_SPLITS, k // SHORTEST_STREAM, 10**6 * target.gpu.l2_mb // sums)
    shares = range(1, max(1, most_splits) + 1)
    plain = not permuted and fmt.table != "group"
    tiles = [tile, *_others(tile, fmt, target, weights)] if plain and not batch_invariant else [tile]
    sizes = (rows, max(1, n), max(1, k))
    choices = [
        (time * (1 + UNLIKE * (one != tile)), splits, one)
        for one in tiles
        for splits, time in zip(shares, predicted_us(one, shares, *sizes, fmt, target, weights), strict=True)
    ]
    enough = (1 + LITTLE) * min(time for time, _, _ in choices)
    return next(replace(one, splits=splits) for time, splits, one in choices if time <= enough)


def _others(tile: Tile, fmt: Format, target: Target, weights: int) -> Iterator[Tile]:
    """Tiles that some sizes of a layer take less time with than with the one for its rows.

    More on its way in shared memory hides the latency of few blocks. Half the features make more of them, and so do
    half the rows, in four warps, which read less of x, where the tile has eight.
    """
    deep = replace(tile, direct=0) if tile.direct else replace(tile, stages=max(tile.stages, DEEP_STAGES))
    free = target.shared_per_block - TABLE_BYTES * (fmt.code.kind == "table")
    deeper = tile.bm <= SMALL_ROWS and target.has_async_copies and k_ahead(deep, fmt) > k_ahead(tile, fmt)
    sharing = tile in SUMMED  # whose shared memory is full
    if deeper and not sharing and staged_bytes(deep, fmt, weights) <= free:
        yield deep
    if tile.bm <= SMALL_ROWS and not sharing and fmt.group not in (16, 32):
        narrow = replace(tile, bn=tile.bn // 2, warps=min(tile.warps, tile.bn // (2 * BLOCK)))
        yield replace(narrow, direct=direct_k(narrow, fmt, target, weights) if tile.direct else 0)
    if tile.bm >= SMALL_ROWS and tile.warps == 8:
        yield linear_tile(tile.bm // 2, fmt, target, False, weights)


def linear_tile(m: int, fmt: Format, target: Target | None = None, permuted: bool = False, weights: int = 1) -> Tile:
    """The tile for m rows of activations and one weight, or two: the smallest bm of 8 to 128 that holds them.

    At bm = 128 eight warps share weights that are decoded in shared memory, where that has room. At bm = 64 eight warps
    leave registers for the row sums of float zero points, the two segments of groups of 32 and the gathering of a
    permuted weight's x; four, which read x from shared memory half as often, serve the others. Two stages are as good
    as more where the target has no asynchronous copies to fill them; a large tile leaves one to the tables of a
    codebook. Two weights have twice the sums: eight warps, and 32 rows where those of one are many already. permuted:
    the weight's columns are; up to 8 rows the tile is then so wide that the gathering of x is few of all instructions.
    """
    large = next((tile for tile in LARGE if m > SMALL_ROWS and shares_decoded(tile, fmt, target)), None)
    if large is not None:
        return large
    sharing = next((tile for tile in SUMMED if m > 32 and weights == 1 and shares_sums(tile, fmt, target)), None)
    if sharing is not None:
        return sharing
    summed = fmt.group == 16 and fmt.zero in ("float", "offset")  # sums of each 16 of k take registers, too
    few = summed or (permuted and fmt.group in (16, 32)) or (weights > 1 and _sums_much(fmt))
    most = 32 if few else SMALL_ROWS
    bm = next((size for size in (8, 16, 32) if m <= size), most)
    full = 3 if bm == SMALL_ROWS and fmt.code.kind == "table" else 4
    stages = full if target is None or target.has_async_copies else 2
    many = (bm == most and (permuted or _crowded(fmt))) or (bm > DECODE_ROWS and weights > 1)
    tile = _with_tables(Tile(bm, bn=NARROW, bk=64, stages=stages, warps=8 if many else 4), fmt, weights, target)
    if permuted and bm == 8 and target is not None and fmt.table != "group":
        return _wide(tile, m, fmt, target, weights)
    if bm <= DECODE_ROWS and not permuted and fmt.table != "group":
        return _decode_tile(replace(tile, stages=8), fmt, target or TARGETS["sm_80"], weights)
    return tile if stages == 2 else replace(tile, stages=_stages(tile, fmt))


def _wide(tile: Tile, m: int, fmt: Format, target: Target, weights: int = 1) -> Tile:
    """The widest tile that permuted weights take for m rows and whose stages fit, the most that do.

    A warp has as many out_features as without a permutation where its codes go to registers, and 64 where they do not.

    A block gathers its x in the same number of instructions whatever its width; 128 of k at a time take the fewest,
    which stages of 64 are joined to where the groups are longer and shared memory has room for two such units.
    """
    bk = tile.bk if isinstance(fmt.group, str) or fmt.group > tile.bk else 2 * tile.bk
    free = target.shared_per_block - (fmt.code.kind == "table") * TABLE_BYTES
    free = free if target.has_async_copies else free * 7 // 8  # what joins stages keeps a margin
    plain = _decode_tile(replace(tile, stages=8), fmt, target, weights)
    summed = bk > tile.bk and fmt.zero is None and fmt.code.bias  # sums of x for two groups of a unit
    for bn in (bn for bn in (512, 256) if m > GATHERED_ROWS or bn == 256):
        wide = replace(tile, bn=bn, bk=bk, warps=8 if summed or _crowded(fmt) else bn * plain.warps // plain.bn)
        if not fits_tables(wide, fmt, weights, target):
            continue
        streamed = _streamed(replace(wide, stages=512 // bk), fmt, target, weights)
        if streamed.direct and (m <= GATHERED_ROWS or bn == 512 or not target.has_async_copies):
            return streamed
        wide = replace(wide, warps=min(8, bn // 64))
        joined = joined_bytes(wide, fmt, weights)
        for depth in (512, 384, 256):
            deep = replace(wide, stages=depth // bk)
            if max(staged_bytes(deep, fmt, weights), joined) <= min(free, STAGED_BYTES * bn // NARROW):
                return deep if target.has_async_copies else replace(wide, stages=2)
    return tile


def _streamed(tile: Tile, fmt: Format, target: Target, weights: int) -> Tile:
    """A permuted tile whose codes go straight to registers, where there is room for the rest."""
    streamed = replace(tile, direct=direct_k(tile, fmt, target, weights) if fmt.code.kind != "table" else 0)
    most = min(SPILL_REGISTERS, target.registers_per_sm // (32 * tile.warps)) - GATHER_REGISTERS
    room = staged_bytes(streamed, fmt, weights) <= target.shared_per_block
    return streamed if room and registers(streamed, fmt, weights) <= most else tile


def _with_tables(tile: Tile, fmt: Format, weights: int, target: Target | None) -> Tile:
    """The tile, or a narrower one that has room for its codebooks."""
    while tile.bn > BLOCK and not fits_tables(tile, fmt, weights, target):
        tile = replace(tile, bn=tile.bn // 2, warps=min(tile.warps, tile.bn // 2 // BLOCK))
    return tile


def _stages(tile: Tile, fmt: Format) -> int:
    """As many stages as a small tile's share of shared memory holds: few bits need many stages to hide the latency.

    Where groups are longer than a stage, or scales are of 8 bits, the kernel then takes 128 of k at a time, and waits
    once for two such units.
    """
    stage = tile.bk * (2 * tile.bm + tile.bn * fmt.bits // 8) + (tile.bn << fmt.bits) * stages_tables(
        fmt, tile.bk, tile.bn
    )
    fits = [
        stages for stages in (8, 6) if unit_k(tile, fmt) > tile.bk and tile.bm <= 16 and stages * stage <= STAGED_BYTES
    ]
    return next(iter(fits), tile.stages)


def _decode_tile(tile: Tile, fmt: Format, target: Target, weights: int) -> Tile:
    """A tile whose codes on their way keep the memory busy: the fewer bits they have, the wider or further ahead.

    Wide tiles take fewer instructions per weight, for all that is done once per 8 rows of activations.
    """
    wide = [] if fmt.code.kind == "table" else [replace(tile, bn=2 * tile.bn)]
    tiles = [*wide, tile, replace(tile, bk=UNIT_K), replace(tile, bk=UNIT_K, stages=6)]
    streamed = [replace(tile, direct=direct_k(tile, fmt, target, weights)) for tile in tiles]
    busy = [tile for tile in streamed if keeps_busy(tile, fmt, target, weights)]
    few = [tile for tile in busy if tile.direct and registers(tile, fmt, weights) <= MOST_REGISTERS[tile.bm]]
    fewest = sorted((tile for tile in busy if tile.direct), key=lambda tile: registers(tile, fmt, weights))
    return next(iter(few or fewest), replace(tile, stages=_stages(replace(tile, stages=4), fmt)))


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
    limit = ACCUMULATORS if shares_decoded(tile, fmt, target) or not _crowded(fmt) else ACCUMULATORS // 2
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


def _sums_much(fmt: Format) -> bool:
    """Whether a format's kernel of two weights has no registers for 64 rows: row sums, tables, i8 scales."""
    return fmt.zero in ("float", "offset") or fmt.code.kind == "table" or fmt.scale == "i8" or fmt.dtype == "bp7"


def _crowded(fmt: Format) -> bool:
    """Whether a format's kernel needs many registers beside the accumulators."""
    return fmt.zero in ("float", "offset") or fmt.group in (16, 32)
