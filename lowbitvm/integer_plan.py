"""Which tile a product of integer codes runs with, and how many blocks share out its k."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowbitvm.digits import ACTIVATION_WORDS, BASES, COLUMNS, columns_per_row, longest_folded, widens_once
from lowbitvm.formats import Format
from lowbitvm.integers import format_digits
from lowbitvm.targets import Target
from lowbitvm.tile import MOST_SPLITS, SHORTEST_SPLIT, SHORTEST_STREAM, STAGED_BYTES

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

    Sums go through shared memory then, which takes too long where groups are shorter than 8 times the rows. Where there
    are tiles of 32 features for all SMs, other tiles keep the memory as busy: with fewer instructions from 16 rows on,
    and with zero points, whose columns each warp loads here for itself, from L2.
    """
    base, each = BASES[weights.digits or ""], columns_per_row(activations.code, activations.digits or "")
    planes, step = len(format_digits(weights).digits), base.activation_k
    columns, words = _power_from(-(-m * each // COLUMNS)), products * weights.bits * step // 64
    blocks = -(-n // 32)  # of 32 features
    zeros = any(side.zero is not None for side in (activations, weights))
    busy = blocks >= target.gpu.sms and target.has_async_copies
    if busy and (zeros or columns * COLUMNS // each >= 16):
        return None
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
