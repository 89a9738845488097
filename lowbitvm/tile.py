"""The tile of a linear layer's kernel: one block's share, and what it takes of an SM, estimated."""

from dataclasses import dataclass, replace

from lowbitvm.chunk import INDEX_BITS, ROW_BYTES, TABLE_ROOM, blocks
from lowbitvm.formats import BLOCK, Format
from lowbitvm.targets import TARGETS, Target

STAGED_BYTES = 50 * 1024  # per block: three of them fit an A100's SM
TABLE_BYTES = 33 * 1024  # per block, of the tables of codebooks and what surrounds them
TABLE_STAGE_BYTES = 16 * 1024  # of the codebooks of groups that a stage meets, at most: others stay in global memory
MOST_CONVERTED = 4  # bits of codes of which large tiles hold a unit beside row sums and f32 that were made of 8 bits
UNIT_K = 128  # of k that the kernel takes at a time, where the groups are longer than a step (codegen.pipeline)
SPILL_REGISTERS = 184  # estimated: from there on some kernels spill
SPARE_REGISTERS = 16  # that a kernel may take beyond the estimate
CONVERTED_BITS = 8  # of scales that the kernel makes f32 of, in shared memory too
SPLIT_K = 256  # k is shared out in multiples of it, the largest bk and group
MOST_SPLITS = 16
SMALLEST_SHARED = min(target.shared_per_block for target in TARGETS.values() if target.has_async_copies)
SHORTEST_SPLIT = 4 * SPLIT_K  # of k: less does not pay for the partial sums' way through memory
SHORTEST_STREAM = 2 * SPLIT_K  # the same of few rows, whose partial sums are small
SHORTEST_LONG = 64  # groups: of shorter ones a unit has several
SMALL_ROWS = 64  # the largest bm whose weights stay in the registers of the warps that decode them
NARROW = 128  # bn, but for permuted weights with few rows and codes of few bits


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


LARGE = tuple(Tile(2 * SMALL_ROWS, bn=NARROW, bk=64, stages=stages, warps=8) for stages in (4, 3))
FAST_TENSORS = 2048  # operations of f16 per clock and SM: from there on shared memory is short
SUMMED = tuple(replace(tile, bm=SMALL_ROWS) for tile in LARGE)  # whose warps share row sums


def is_short(fmt: Format) -> bool:
    """Whether a unit has several groups."""
    return isinstance(fmt.group, int) and fmt.group < SHORTEST_LONG


def may_be_held(fmt: Format) -> bool:
    """Whether large tiles have registers for all weights that a warp multiplies in a unit, and need no look-ups.

    Short groups leave few beside their numbers: none where those are f32, or row sums come on top of codes of 8 bits.
    """
    if fmt.code.kind == "table":
        return False
    if not is_short(fmt):
        return True
    if fmt.scale_dtype.bits == CONVERTED_BITS:  # f32 beside some activations and codes
        return fmt.zero == "offset" and fmt.group == 32 and fmt.bits <= MOST_CONVERTED
    return not sums_rows(fmt) or (fmt.group == 32 and fmt.bits < 8)


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
    if sums_rows(fmt) and is_short(fmt) and (target is None or target.gpu.f16 < FAST_TENSORS):
        return False  # tiles of SMALL_ROWS keep the tensor cores busy, with far fewer registers
    held = may_be_held(fmt)
    if (sums_short_groups(fmt) and not held) or fmt.table == "group" or not fits_tables(tile, fmt, 1, target):
        return False
    room = SMALLEST_SHARED if target is None else target.shared_per_block
    tables = TABLE_BYTES * (fmt.code.kind == "table")
    buffers = 0 if held else 2 * 2 * tile.bn * tile.bk
    return staged_bytes(tile, fmt) + tables + sum_bytes(tile, fmt) + buffers <= room


def sums_rows(fmt: Format) -> bool:
    """Whether the kernel sums rows of activations whatever its tile is."""
    return fmt.zero in ("float", "offset") and fmt.code.kind != "table"


def gains_by_sums(fmt: Format, target: Target | None) -> bool:
    """Whether the warps of a tile of SMALL_ROWS are to share the row sums of its activations.

    Without that each warp makes them for itself, in as many products as those of a row tile of weights. Where the
    tensor cores are fast, short groups' sums in f32 and scales that were made f32 take longer to load than that.
    """
    slow = target is not None and target.gpu.f16 < FAST_TENSORS
    return sums_rows(fmt) and (slow or not (is_short(fmt) and fmt.scale_dtype.bits == CONVERTED_BITS))


def shares_sums(tile: Tile, fmt: Format, target: Target | None) -> bool:
    """Whether warps of a tile of SMALL_ROWS share row sums, and shared memory has room for the stages."""
    room = SMALLEST_SHARED if target is None else target.shared_per_block
    return gains_by_sums(fmt, target) and staged_bytes(tile, fmt) + sum_bytes(tile, fmt) <= room


def sum_bytes(tile: Tile, fmt: Format) -> int:
    """Shared memory of two units' row sums, at most."""
    segments = 1 if isinstance(fmt.group, str) else max(1, tile.bk // fmt.group)
    return 2 * 4 * tile.bm * segments * sums_rows(fmt)


def joined_bytes(tile: Tile, fmt: Format, weights: int) -> int:
    """Shared memory of two units of UNIT_K, as the kernel reckons, at most."""
    return 2 * UNIT_K * (16 * tile.bm + weights * tile.bn * (fmt.bits + 1)) // 8


def staged_bytes(tile: Tile, fmt: Format, weights: int = 1) -> int:
    """Shared memory of all stages, scales and zero points included, at most; those of 8 bits also lie there as f32."""
    stored = [dtype.bits for dtype in (fmt.scale_dtype, fmt.zero_dtype) if dtype is not None]
    numbers = sum(bits + 32 * (bits == CONVERTED_BITS) for bits in stored) + 32 * len(stored) * (fmt.outer == 256)
    groups = 1 if isinstance(fmt.group, str) else max(1, tile.bk // fmt.group)
    numbers = groups * (numbers + (16 << fmt.bits) * stages_tables(fmt, tile.bk, tile.bn))
    if tile.bm >= SMALL_ROWS:
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


def fits_tables(tile: Tile, fmt: Format, weights: int, target: Target | None) -> bool:
    """Whether the codebooks of a tile's groups or out_features have room in shared memory.

    Those of 16 out_features have a row of 128 bytes for every code, so that there are no bank conflicts; for codes of 8
    bits there is never room for that.
    """
    if fmt.table == "group" and isinstance(fmt.group, int):
        unit = unit_k(tile, fmt)
        tables = 2 * max(1, unit // fmt.group) * (tile.bn << fmt.bits + 1)  # of two units
        joined = joined_bytes(tile, fmt, weights) + tables if unit > tile.bk and target is not None else 0
        return stages_tables(fmt, unit, tile.bn) and (target is None or joined <= target.shared_per_block)
    if fmt.table == "block" and fmt.bits < INDEX_BITS:
        return weights * tile.bn // BLOCK * ROW_BYTES << fmt.bits <= TABLE_ROOM
    return True


def unit_k(tile: Tile, fmt: Format) -> int:
    """k that the kernel takes at a time."""
    longer = isinstance(fmt.group, str) or fmt.group > tile.bk or fmt.scale_dtype.bits == CONVERTED_BITS
    return max(tile.bk, UNIT_K) if longer else tile.bk


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


def keeps_busy(tile: Tile, fmt: Format, target: Target, weights: int = 1) -> bool:
    """Whether the blocks of an SM have enough bytes on their way for the memory to be busy."""
    ahead = bytes_ahead(tile, fmt, weights) * blocks_per_sm(tile, fmt, target, weights)
    return ahead >= target.bytes_in_flight


def bytes_ahead(tile: Tile, fmt: Format, weights: int = 1) -> int:
    """Bytes of codes of one block that are on their way while it multiplies others."""
    return weights * tile.bn * k_ahead(tile, fmt) * fmt.bits // 8


def k_ahead(tile: Tile, fmt: Format) -> int:
    """k whose codes are on their way while a block multiplies others."""
    unit = unit_k(tile, fmt)
    slots = max(2, -(-tile.stages * tile.bk // unit))
    staged = slots - (2 if unit > tile.bk and slots >= 4 else 1)  # units, of which two may share a wait
    return tile.direct or staged * unit


def blocks_per_sm(tile: Tile, fmt: Format, target: Target, weights: int = 1) -> int:
    """Blocks that an SM holds, about."""
    shared = staged_bytes(tile, fmt, weights) + TABLE_BYTES * (fmt.code.kind == "table")
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
