"""Which tile a linear layer runs with, and how many blocks share out its k."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowbitvm.chunk import INDEX_BITS, ROW_BYTES, TABLE_ROOM, blocks
from lowbitvm.digits import ACTIVATION_WORDS, BASES, COLUMNS, columns_per_row, longest_folded, widens_once
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import BLOCK, Format
from lowbitvm.integers import format_digits
from lowbitvm.targets import TARGETS, Target

STAGED_BYTES = 50 * 1024  # per block: three of them fit an A100's SM
TABLE_BYTES = 33 * 1024  # per block, of the tables of codebooks and what surrounds them
TABLE_STAGE_BYTES = 16 * 1024  # of the codebooks of groups that a stage meets, at most: others stay in global memory
ACCUMULATORS = 64  # f32 per thread; twice as many spill
UNIT_K = 128  # of k that the kernel takes at a time, where the groups are longer than a step (codegen.pipeline)
DECODE_ROWS = 16  # up to which the bytes of the weights are the limit
MOST_REGISTERS = {8: 128, 16: 168}  # by bm, of a thread that streams codes: more leave too few warps to hide latencies
SPILL_REGISTERS = 184  # estimated: from there on some kernels spill
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


CONVERTED_BITS = 8  # of scales that the kernel makes f32 of, in shared memory too
SPLIT_K = 256  # k is shared out in multiples of it, the largest bk and group
MOST_SPLITS = 16
SMALLEST_SHARED = min(target.shared_per_block for target in TARGETS.values() if target.has_async_copies)
SHORTEST_SPLIT = 4 * SPLIT_K  # of k: less does not pay for the partial sums' way through memory
SHORTEST_STREAM = 2 * SPLIT_K  # the same of few rows, whose partial sums are small
LITTLE = 0.05  # of a layer's time: more splits must gain more than that
SHORTEST_LONG = 64  # groups: of shorter ones a unit has several
SMALL_ROWS = 64  # the largest bm whose weights stay in the registers of the warps that decode them
NARROW = 128  # bn, but for permuted weights with few rows and codes of few bits
LARGE = tuple(Tile(2 * SMALL_ROWS, bn=NARROW, bk=64, stages=stages, warps=8) for stages in (4, 3))
GATHERED_ROWS = 4  # that half of a block's threads with gathers take
GATHER_REGISTERS = 24  # that gathering takes beside the rest
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
    while tile.stages > 2 and not tile.direct and _staged_bytes(tile, fmt, weights) > free:
        tile = replace(tile, stages=max(2, tile.stages - 2))  # two may be taken together
    blocks = max(1, -(-n // tile.bn) * (1 if batch_invariant else -(-m // tile.bm)))
    if tile.bm > DECODE_ROWS:
        return replace(tile, splits=max(1, min(MOST_SPLITS, k // SHORTEST_SPLIT, target.gpu.sms // blocks)))
    shares = range(1, max(1, min(MOST_SPLITS, k // SHORTEST_STREAM)) + 1)
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
    """The tile for m rows of activations and one weight, or two: the smallest bm of 8 to 128 that holds them.

    At bm = 128 eight warps share weights that are decoded in shared memory, where that has room. At bm = 64 eight warps
    leave registers to sum 128 of k at a time, for the row sums of float zero points, the two segments of groups of 32
    and the gathering of a permuted weight's x; groups of 64 take fewer instructions with four (`make bench` shows
    both). Two stages are as good as more where the target has no asynchronous copies to fill them; a large tile leaves
    one to the tables of a codebook. Two weights have twice the sums: eight warps, and 32 rows where those of one are
    many already. permuted: the weight's columns are; up to 8 rows the tile is then so wide that the gathering of x is
    few of all instructions.
    """
    large = next((tile for tile in LARGE if m > SMALL_ROWS and shares_decoded(tile, fmt, target)), None)
    if large is not None:
        return large
    summed = fmt.group == 16 and fmt.zero in ("float", "offset")  # sums of each 16 of k take registers, too
    few = summed or (permuted and fmt.group in (16, 32)) or (weights > 1 and _sums_much(fmt))
    most = 32 if few else SMALL_ROWS
    bm = next((size for size in (8, 16, 32) if m <= size), most)
    full = 3 if bm == SMALL_ROWS and fmt.code.kind == "table" else 4
    stages = full if target is None or target.has_async_copies else 2
    many = (bm == most and (permuted or _crowded(fmt))) or (bm > DECODE_ROWS and weights > 1)
    long = Tile(bm, NARROW, 64, stages, 8)
    many = many or (bm == SMALL_ROWS and unit_k(long, fmt) == UNIT_K and _joins(long, fmt, target))
    tile = _with_tables(Tile(bm, bn=NARROW, bk=64, stages=stages, warps=8 if many else 4), fmt, weights, target)
    if permuted and bm == 8 and target is not None and fmt.table != "group":
        return _wide(tile, m, fmt, target, weights)
    if bm <= DECODE_ROWS and not permuted and fmt.table != "group":
        return _decode_tile(replace(tile, stages=8), fmt, target or TARGETS["sm_80"], weights)
    return tile if stages == 2 else replace(tile, stages=_stages(tile, fmt))


def may_be_held(fmt: Format) -> bool:
    """Whether large tiles have registers for all weights that a warp multiplies in a unit, and need no look-ups.

    Short groups leave few beside their numbers: none where those are f32, unless they are multiplied with row sums.
    """
    if fmt.code.kind == "table":
        return False
    if isinstance(fmt.group, str) or fmt.group >= SHORTEST_LONG:
        return True
    summed = fmt.zero in ("float", "offset")
    if fmt.scale_dtype.bits == CONVERTED_BITS:
        return summed
    return not summed or fmt.group == 32


def sums_short_groups(fmt: Format) -> bool:
    """Whether large tiles have no registers for the row sums and numbers of groups beside decoded weights to share."""
    four = fmt.group == 16 and fmt.zero == "offset" and fmt.scale == "i8"  # segments of a unit, converted
    return four or (fmt.group == 32 and fmt.zero in ("float", "offset"))


def shares_decoded(tile: Tile, fmt: Format, target: Target | None) -> bool:
    """Whether several warps of the kernel multiply the same weights: in large tiles, where shared memory has room.

    There are then its stages, and two buffers of 16-bit weights unless they may be held in registers. Without a target:
    whether all that copy asynchronously have room.
    """
    if tile.bm <= SMALL_ROWS or tile.stages < LARGE[-1].stages or (target is not None and not target.has_async_copies):
        return False
    held = may_be_held(fmt)
    if (sums_short_groups(fmt) and not held) or fmt.table == "group" or not _fits_tables(tile, fmt, 1, target):
        return False
    room = SMALLEST_SHARED if target is None else target.shared_per_block
    tables = TABLE_BYTES * (fmt.code.kind == "table")
    segments = 1 if isinstance(fmt.group, str) else max(1, tile.bk // fmt.group)
    sums = 2 * 4 * tile.bm * segments * (fmt.zero in ("float", "offset"))  # of x, in two buffers as the weights
    buffers = 0 if held else 2 * 2 * tile.bn * tile.bk
    return _staged_bytes(tile, fmt) + tables + sums + buffers <= room


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
        if not _fits_tables(wide, fmt, weights, target):
            continue
        streamed = _streamed(replace(wide, stages=512 // bk), fmt, target, weights)
        if streamed.direct and (m <= GATHERED_ROWS or bn == 512 or not target.has_async_copies):
            return streamed
        wide = replace(wide, warps=min(8, bn // 64))
        joined = _joined_bytes(wide, fmt, weights)
        for depth in (512, 384, 256):
            deep = replace(wide, stages=depth // bk)
            if max(_staged_bytes(deep, fmt, weights), joined) <= min(free, STAGED_BYTES * bn // NARROW):
                return deep if target.has_async_copies else replace(wide, stages=2)
    return tile


def _joined_bytes(tile: Tile, fmt: Format, weights: int) -> int:
    """Shared memory of two units of UNIT_K, as the kernel reckons, at most."""
    return 2 * UNIT_K * (16 * tile.bm + weights * tile.bn * (fmt.bits + 1)) // 8


def _joins(tile: Tile, fmt: Format, target: Target | None) -> bool:
    """Whether shared memory has room for two units of UNIT_K, and codebooks where there are any."""
    room = SMALLEST_SHARED if target is None else target.shared_per_block
    return _joined_bytes(tile, fmt, 1) + TABLE_BYTES * (fmt.code.kind == "table") <= room


def _streamed(tile: Tile, fmt: Format, target: Target, weights: int) -> Tile:
    """A permuted tile whose codes go straight to registers, where there is room for the rest."""
    streamed = replace(tile, direct=direct_k(tile, fmt, target, weights) if fmt.code.kind != "table" else 0)
    most = min(SPILL_REGISTERS, target.registers_per_sm // (32 * tile.warps)) - GATHER_REGISTERS
    room = _staged_bytes(streamed, fmt, weights) <= target.shared_per_block
    return streamed if room and registers(streamed, fmt, weights) <= most else tile


def _staged_bytes(tile: Tile, fmt: Format, weights: int = 1) -> int:
    """Shared memory of all stages, scales and zero points included, at most; those of 8 bits also lie there as f32."""
    stored = [dtype.bits for dtype in (fmt.scale_dtype, fmt.zero_dtype) if dtype is not None]
    numbers = sum(bits + 32 * (bits == CONVERTED_BITS) for bits in stored) + 32 * len(stored) * (fmt.outer == 256)
    groups = 1 if isinstance(fmt.group, str) else max(1, tile.bk // fmt.group)
    numbers = groups * (numbers + (16 << fmt.bits) * stages_tables(fmt, tile.bk, tile.bn))
    if tile.bm > SMALL_ROWS:
        numbers = max(numbers, decoded_scale_bits(fmt))
    codes = 0 if tile.direct else fmt.bits * tile.bk
    return tile.stages * (16 * tile.bm * tile.bk + weights * tile.bn * (codes + numbers)) // 8


def decoded_scale_bits(fmt: Format) -> int:
    """Bits per out_feature of a stage that scales of 8 bits take where codes are multiplied with them once per block.

    They lie there as bytes and as 16-bit numbers, of all groups of UNIT_K, whose largest is an f32.
    """
    if fmt.zero not in (None, "offset") or fmt.scale_dtype.bits != CONVERTED_BITS or isinstance(fmt.group, str):
        return 0
    offset = fmt.zero is not None  # an f32, and its second level
    each = CONVERTED_BITS + 16 + offset * (CONVERTED_BITS + 32)
    return UNIT_K // min(fmt.group, UNIT_K) * each + 32 * (1 + (1 + offset) * (fmt.outer == 256))


def stages_tables(fmt: Format, k: int, bn: int) -> bool:
    """Whether the codebooks of the groups that k x bn codes meet are copied with the codes."""
    meets = max(1, k // fmt.group) if isinstance(fmt.group, int) else 0
    return fmt.table == "group" and 0 < meets * bn << fmt.bits + 1 <= TABLE_STAGE_BYTES


def _fits_tables(tile: Tile, fmt: Format, weights: int, target: Target | None) -> bool:
    """Whether the codebooks of a tile's groups or out_features have room in shared memory.

    Those of 16 out_features have a row of 128 bytes for every code, so that there are no bank conflicts; for codes of 8
    bits there is never room for that.
    """
    if fmt.table == "group" and isinstance(fmt.group, int):
        unit = unit_k(tile, fmt)
        tables = 2 * max(1, unit // fmt.group) * (tile.bn << fmt.bits + 1)  # of two units
        joined = _joined_bytes(tile, fmt, weights) + tables if unit > tile.bk and target is not None else 0
        return stages_tables(fmt, unit, tile.bn) and (target is None or joined <= target.shared_per_block)
    if fmt.table == "block" and fmt.bits < INDEX_BITS:
        return weights * tile.bn // BLOCK * ROW_BYTES << fmt.bits <= TABLE_ROOM
    return True


def _with_tables(tile: Tile, fmt: Format, weights: int, target: Target | None) -> Tile:
    """The tile, or a narrower one that has room for its codebooks."""
    while tile.bn > BLOCK and not _fits_tables(tile, fmt, weights, target):
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
    longer = isinstance(fmt.group, str) or fmt.group > tile.bk or fmt.scale_dtype.bits == CONVERTED_BITS
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


# -- integer codes -----------------------------------------------------------------------------------------------------


PAIRS = 32  # row tiles x n8 tiles x planes of weights of a warp: 4 accumulators each
LOADED = 72  # registers that a warp's own loads of one step may take
ACTIVATION_SHARE = 2  # times the bytes of weights: more activations than that go through shared memory, once per block
MOST_WARPS = 8  # that share out k
LARGE_DIGITS = 128  # features of a tile whose weights are widened once for two rows of warps and more
FEW_PAIRS = 8  # row tiles x n8 tiles x planes of weights of a warp that multiplies groups for other ones
KEPT_SUMS = 96  # of a thread, beside those of the loop that runs


@dataclass(frozen=True)
class DigitTile:
    """One block's share of a product of integer codes, as `Tile`.

    Where bn has not 16 columns for each of the warps, they share out k: see `lowbitvm.codegen.digits`. folded: half of
    the rows of narrow weights carry a power of two until the loop ends, which takes sums of few enough k.
    """

    bm: int
    bn: int
    bk: int
    stages: int
    warps: int
    folded: bool = False
    splits: int = 1  # blocks that share out k

    @property
    def part(self) -> int:
        """k of a step that a warp, or all of them together, take."""
        return self.bk // self.warps if self.bn < 16 * self.warps else self.bk


def digit_plan(
    m: int, n: int, k: int, activations: Format, weights: Format, target: Target, products: int = 1
) -> DigitTile:
    """The tile for a whole product of (m, k) activations and one or two (n, k) weights, and the blocks that share k.

    Where there are fewer tiles than SMs, each block takes a part of k, in shorter steps if that makes more of them.
    """
    tile = digit_tile(m, k, activations, weights, target, products)
    large = tile.bn == LARGE_DIGITS and tile.warps > LARGE_DIGITS // 32
    if large and -(-m // tile.bm) * -(-n // tile.bn) < target.gpu.sms:
        tile = digit_tile(tile.bm // 2, k, activations, weights, target, products)
    each = min(MOST_SPLITS, target.gpu.sms // max(1, -(-m // tile.bm) * -(-n // tile.bn)))
    direct, least = tile.part < tile.bk, BASES[activations.digits or "s8"].activation_k
    while direct and k // tile.bk < each and (tile.warps > 2 * tile.bn // 16 or tile.part > least):
        tile = replace(tile, warps=max(2 * tile.bn // 16, tile.warps // 2), bk=tile.bk // 2)
    return replace(tile, splits=max(1, min(each, k // max(tile.bk, SHORTEST_STREAM if direct else SHORTEST_SPLIT))))


def digit_tile(m: int, k: int, activations: Format, weights: Format, target: Target, products: int = 1) -> DigitTile:
    """The tile for m rows of k integer activations, and one weight or, for two products, a gate as well.

    For few rows every warp loads its own weights and activations, as many as registers hold, and the warps share out k.
    For more rows the tiles go through shared memory, in as many stages as fit STAGED_BYTES. Codes that share fields
    have tiles of twice as many rows, whose weights are widened once for all warps, for more rows than others have.
    """
    assert activations.digits is not None and weights.digits is not None
    base, each = BASES[weights.digits], columns_per_row(activations.code, activations.digits)
    planes, step = len(format_digits(weights).digits), base.activation_k
    folded = k <= longest_folded(weights.code, activations.code, weights.digits)
    pairs = PAIRS // products
    pairs = pairs // 2 if base.bits == 1 and target.capability < (8, 0) else pairs  # xor takes counts of either side
    columns = min(_power_from(-(-m * each // COLUMNS)), _power_to(max(1, pairs // planes)), 2 * COLUMNS)
    bm = columns * COLUMNS // each
    words = products * weights.bits * step // 64  # of a lane: a row tile's weights beside a stored tile of activations
    rows = 2 if 2 * columns * planes <= pairs and 2 * words <= LOADED else 1
    own = rows * words + columns * ACTIVATION_WORDS
    if m <= bm and own <= (1 + ACTIVATION_SHARE) * rows * words:
        part = step * _power_to(max(1, LOADED // own))
        warps = min(MOST_WARPS, max(2 * rows, _power_to(max(1, k // part))))
        return DigitTile(bm, 16 * rows, part * warps, 2, warps, folded)
    rows = min(2, _power_to(pairs // (columns * planes)))
    most, stored = 4 if target.has_async_copies else 2, products * weights.bits
    large = DigitTile(2 * bm, LARGE_DIGITS, step, 3, 8, folded)
    if m > bm and products == 1 and most > 2 and widens_once(weights.code, base.name, 2 * columns):
        staged = 3 * step * (LARGE_DIGITS * stored + 2 * columns * COLUMNS * base.bits) // 8
        if staged + 2 * LARGE_DIGITS * step * base.bits // 8 <= target.shared_per_block:
            return large
    even = weights.bits * step // 8 % (32 // rows) == 0  # of a row tile's copies, each thread makes as many
    for warps, deep in ((warps, deep) for warps in (4, 2, 1) for deep in ((step,) if even else (2 * step, step))):
        stages = min(most, STAGED_BYTES // (deep * (16 * rows * warps * stored + columns * COLUMNS * base.bits) // 8))
        if stages >= 2:
            break
    return DigitTile(bm, 16 * rows * warps, deep, stages, warps, folded)


def grouped_tile(
    m: int,
    n: int,
    k: int,
    activations: Format,
    weights: Format,
    target: Target,
    groups: tuple[int, ...],
    products: int = 1,
) -> DigitTile:
    """The tile for m rows, n features and k where scales belong to groups of k, which have accumulators in f32.

    A step is a multiple of all groups. For few rows the warps share out its groups. Else, where there are fewer blocks
    than SMs, tiles are narrower, with more stages.
    """
    assert activations.digits is not None and weights.digits is not None
    if few := _few_rows_of_groups(m, n, k, activations, weights, target, groups, products):
        return few
    base, each = BASES[weights.digits], columns_per_row(activations.code, activations.digits)
    planes = len(format_digits(weights).digits) * (2 if base.bits == 1 and target.capability < (8, 0) else 1)
    step, stored = max(base.activation_k, *groups), products * weights.bits
    pairs = PAIRS // (products + planes)  # accumulators of all products, and the integers of one
    steps = step // base.step_k
    many = steps > 4 or steps * planes * products > 8 or len(set(groups)) > 1  # loads at a time, for registers to hold
    columns = min(_power_from(-(-m * each // COLUMNS)), _power_to(pairs), COLUMNS // 2 if many else COLUMNS)
    most = 4 if target.has_async_copies else 2

    def made(columns: int, rows: int, warps: int, most: int) -> DigitTile:
        stage = step * (16 * rows * warps * stored + columns * COLUMNS * base.bits) // 8
        return DigitTile(columns * COLUMNS // each, 16 * rows * warps, step, min(most, STAGED_BYTES // stage), warps)

    sizes = [(columns >> i, warps) for i in range(columns.bit_length()) for warps in (4, 2)] + [(1, 1)]
    tiles = [made(c, min(2, _power_to(max(1, pairs // c))), warps, most) for c, warps in sizes]
    tile = next((tile for tile in tiles if tile.stages >= 2), replace(tiles[-1], stages=2))
    columns = tile.bm * each // COLUMNS
    while -(-m // tile.bm) * -(-n // tile.bn) < target.gpu.sms and tile.bn > 32:
        wide = tile.bn > 16 * tile.warps
        tile = made(columns, 1, tile.warps if wide else tile.warps // 2, 2 * most if most > 2 else most)
    return tile


def _few_rows_of_groups(
    m: int,
    n: int,
    k: int,
    activations: Format,
    weights: Format,
    target: Target,
    groups: tuple[int, ...],
    products: int,
) -> DigitTile | None:
    """The tile for so few rows that warps load codes to registers, as without groups; None for more.

    Sums go through shared memory then, which takes too long where groups are shorter than 8 times the rows.
    """
    base, each = BASES[weights.digits or ""], columns_per_row(activations.code, activations.digits or "")
    planes, step = len(format_digits(weights).digits), base.activation_k
    columns, words = _power_from(-(-m * each // COLUMNS)), products * weights.bits * step // 64
    blocks = -(-n // 32)  # of 32 features
    rows = 2 if 2 * columns * planes <= FEW_PAIRS and 4 * blocks >= 3 * target.gpu.sms else 1
    own, part = rows * words + columns * ACTIVATION_WORDS, max(step, *groups)
    short = min(groups) < 8 * columns * COLUMNS // each
    many = own > (1 + ACTIVATION_SHARE) * rows * words or columns * planes > FEW_PAIRS
    if short or many or own * part // step > LOADED:
        return None
    alone = blocks <= 2 * target.gpu.sms  # a block has an SM for itself: it is to load more at once
    doubled = 2 * own * part // step <= LOADED and part == min(groups)
    if alone and doubled and k % (2 * MOST_WARPS * part) <= k % (MOST_WARPS * part):  # no step is of fewer groups
        part *= 2
    warps = min(MOST_WARPS, max(2 * rows, _power_to(max(1, k // part))))
    return DigitTile(columns * COLUMNS // each, 16 * rows, part * warps, 2, warps)


@dataclass(frozen=True)
class MixtureTile:
    """One block's share of a product with a mixed weight, as `DigitTile`; bk of every part of k."""

    bm: int
    bn: int
    bk: tuple[int, ...]
    stages: int
    warps: int

    def part(self, block: int) -> int:
        """k of a step that a warp, or all of them together, take in a part of k."""
        return self.bk[block] // self.warps if self.bn < 16 * self.warps else self.bk[block]


def mixture_tile(
    m: int,
    activations: Sequence[tuple[Format, int]],
    weights: Sequence[Sequence[Sequence[Format]]],
    groups: Sequence[int],
    branch: bool,
    target: Target,
) -> MixtureTile:
    """The tile for m rows: of the choices of `digit_tile` for each part of k those that serve all of them.

    activations: formats and in_features of the parts of k; weights: [part of n][part of k][term]; groups: of each part
    of k the longest with scales, or 0. Warps share out k where there are neither groups nor a branch.
    """
    each = [columns_per_row(fmt.code, fmt.digits or "") for fmt, _ in activations]
    steps = [
        max(BASES[fmt.digits or ""].activation_k, group) for (fmt, _), group in zip(activations, groups, strict=True)
    ]
    terms = [[part[block] for part in weights] for block in range(len(activations))]  # [part of k][part of n]
    planes = [max(sum(len(format_digits(fmt).digits) for fmt in codes) for codes in parts) for parts in terms]
    bits = [max(sum(fmt.bits for fmt in codes) for codes in parts) for parts in terms]
    if any(groups):  # accumulators of all terms, and the integers of one
        planes = [p + max(len(codes) for codes in parts) for p, parts in zip(planes, terms, strict=True)]
    planar = any(fmt.digits == "b1" for fmt, _ in activations)
    pairs = PAIRS // 2 if planar and target.capability < (8, 0) else PAIRS
    pairs //= max(len(activations), 1 + branch)  # what one loop has summed is kept beside another one's sums
    widest = COLUMNS if len(activations) > 1 else 2 * COLUMNS
    if branch and not target.has_async_copies:  # tiles pass through registers
        pairs //= 2
    most = [
        max(1, min(_power_to(max(1, pairs // p)), widest) * COLUMNS // e) for p, e in zip(planes, each, strict=True)
    ]
    least = COLUMNS if branch else max(COLUMNS // e for e in each)
    bm = max(min(_power_from(m), *most), least)
    columns = [bm * e // COLUMNS for e in each]
    words = [b * step // 64 for b, step in zip(bits, steps, strict=True)]
    doubled = all(2 * c * p <= pairs for c, p in zip(columns, planes, strict=True))
    rows = 2 if doubled and 2 * max(words) <= LOADED else 1
    own = [rows * w + c * ACTIVATION_WORDS for w, c in zip(words, columns, strict=True)]
    few = all(o <= (1 + ACTIVATION_SHARE) * rows * w for o, w in zip(own, words, strict=True))
    if m <= bm and not branch and not any(groups) and few:
        parts = [step * _power_to(max(1, LOADED // o)) for step, o in zip(steps, own, strict=True)]
        most_steps = max(k // part for (_, k), part in zip(activations, parts, strict=True))
        warps = min(MOST_WARPS, max(2 * rows, _power_to(max(1, most_steps))))
        sums = max(len(codes) for blocks in terms for codes in blocks) * rows * max(columns) * 4  # of a lane
        if 4 * 32 * warps * sums <= STAGED_BYTES:
            return MixtureTile(bm, 16 * rows, tuple(part * warps for part in parts), 2, warps)
    rows = 2 if doubled else 1
    for warps in (4, 2, 1):
        sizes = zip(steps, bits, columns, activations, strict=True)
        stage = max(
            step * (16 * rows * warps * b + c * COLUMNS * BASES[fmt.digits or ""].bits) // 8
            for step, b, c, (fmt, _) in sizes
        )
        stages = min(4 if target.has_async_copies else 2, STAGED_BYTES // stage)
        if stages >= 2:
            break
    return MixtureTile(bm, 16 * rows * warps, tuple(steps), max(2, stages), warps)


def shared_tile(tile: MixtureTile, products: int) -> MixtureTile:
    """The tile where the exact sums of all products are kept until the end: narrower, if there are no registers."""
    while products * tile.bm * tile.bn > KEPT_SUMS * 32 * tile.warps and tile.bn >= 32 * tile.warps:
        tile = replace(tile, bn=tile.bn // 2)
    return tile


def _power_to(size: int) -> int:
    """The largest power of two up to a size."""
    return 1 << size.bit_length() - 1


def _power_from(size: int) -> int:
    """The smallest power of two from a size on; 1 for none."""
    return 1 << max(0, size - 1).bit_length()
