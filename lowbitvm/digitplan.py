"""What products of integer codes cost, counted without compiling: how warps share a tile, and which digits are best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lowbitvm import targets
from lowbitvm.chunk import blocks
from lowbitvm.digits import ACTIVATION_WORDS, BASES, COLUMNS, columns_per_row, widens_once
from lowbitvm.digits import widening as widening_steps
from lowbitvm.formats import Format
from lowbitvm.integer_plan import DigitTile, digit_plan, grouped_tile
from lowbitvm.integers import check_group, check_scales, digit_words, format_digits, row_tiles, tile_k, tile_words
from lowbitvm.targets import TARGETS, Target

SUB_CORES = 4
MEMORY, ISSUE = "memory", "issue slots"
EQUAL = 1.02  # times within it count as equal, and the fewest instructions decide
INTEGER_CYCLES = 2  # of an instruction of integer logic, in its pipe
WAVEFRONT_CYCLES = 4  # of 128 bytes of shared memory, of a sub-core's share
ROWS = (1, 8, 64, 4096)  # of activations, where it is not said how many there will be
LOOP = 8  # instructions of a step beside loads, widening and products: waits, barriers, pointers, the branch


def widening(weights: Format, folded: bool) -> int:
    """Instructions that widen the digits of one row tile of weights beside one stored tile of k of activations."""
    assert weights.digits is not None
    base = BASES[weights.digits]
    narrow = [digit.bits for digit in format_digits(weights).digits if digit.bits < base.bits]
    count = sum(len(widening_steps(bits, base.bits, 4 * base.steps, folded)[0]) for bits in narrow)
    return count * base.activation_k // base.tile_k


def loads(weights: Format) -> list[int]:
    """Words of each load of a lane, of one row tile of weights beside one stored tile of k of activations."""
    assert weights.digits is not None
    base = BASES[weights.digits]
    return [width for words in digit_words(weights) for width in blocks(words)] * (base.activation_k // base.tile_k)


def wide_loads(weights: Format) -> list[int]:
    """Words of each load of a lane, as `loads`, of weights that lie in shared memory as fragments."""
    assert weights.digits is not None
    base = BASES[weights.digits]
    return [4] * (base.activation_k // base.step_k)


def digit_warps_m(shape: tuple[int, int], activations: Format, weights: Format, warps: int, folded: bool) -> int:
    """Of the warps of a (bm, bn) tile, how many share out the rows of activations; the others share out the weights.

    Each of them reads and widens the weights that it multiplies, and reads its part of the activations: what takes the
    fewest instructions.
    """
    assert activations.digits is not None
    columns = shape[0] * columns_per_row(activations.code, activations.digits) // COLUMNS
    tiles, of_weights = shape[1] // 16, len(loads(weights)) + widening(weights, folded)
    if widens_once(weights.code, weights.digits or "", columns):
        of_weights = len(wide_loads(weights))
    divides = [1 << i for i in range(warps.bit_length()) if columns % (1 << i) == 0 and tiles % (warps >> i) == 0]
    return min(divides or [1], key=lambda warps_m: tiles * warps_m // warps * of_weights + columns // warps_m)


@dataclass(frozen=True)
class DigitCost:
    """What a product takes at least in one kind of digits; `limits`: microseconds, by what takes them."""

    format: Format
    tile: DigitTile
    instructions: float  # of the main loop, per weight of a block and thread
    limits: dict[str, float]

    @property
    def time(self) -> float:
        """The longest of the limits."""
        return max(self.limits.values())


def digit_cost(weights: Format, m: int, n: int, k: int, target: Target) -> DigitCost:
    """The cost of the kernel that the plan chooses for digits of the weights' format."""
    assert weights.act is not None and weights.digits is not None
    activations = token_format(weights)
    tile, base = planned_tile(m, n, k, weights, target), BASES[weights.digits]
    columns = tile.bm * columns_per_row(activations.code, base.name) // COLUMNS
    direct, tiles, planes = tile.part < tile.bk, tile.bn // 16, len(format_digits(weights).digits)
    warps_m = 1 if direct else digit_warps_m((tile.bm, tile.bn), activations, weights, tile.warps, tile.folded)
    warps_n = 1 if direct else tile.warps // warps_m
    columns, tiles = columns // warps_m, tiles // warps_n
    products = 2 * tiles * columns * planes  # of a warp and a stored tile of k of activations
    if target.capability < (8, 0) and base.bits == 1:  # counts of the bits of either side
        products += 2 * (columns + tiles * planes)
    once = not direct and widens_once(weights.code, base.name, columns * warps_m)
    own = tiles * warps_n // tile.warps if once else tiles  # row tiles that a warp widens
    read = [*loads(weights) * own, *wide_loads(weights) * (tiles + own) * once, *[ACTIVATION_WORDS] * columns]
    copies = 0.0 if direct else (16 * tiles * warps_n * weights.bits + 8 * columns * warps_m * base.bits) / 128
    copies *= base.activation_k / (32 * tile.warps)  # of 16 bytes, of a thread
    wide = own * widening(weights, tile.folded)
    issued = products * (4 if target.capability < (8, 0) else 1) + len(read) + wide + copies
    issued += LOOP * base.activation_k / (tile.part if direct else tile.bk)
    if isinstance(weights.group, int):
        issued += tiles * columns * base.activation_k / weights.group * _of_group(activations, weights, direct)
    rate = (getattr(target.gpu, base.name) or target.gpu.f16) * (target.gpu.sync_share or 1.0) / 2 / SUB_CORES
    cycles = {
        ISSUE: issued,
        "tensor": products * 16 * 8 * base.step_k / rate,
        "integer": INTEGER_CYCLES * wide,
        "shared": 0.0 if direct else WAVEFRONT_CYCLES * (sum(read) + 4 * copies),
    }
    made = 16 * tiles * base.activation_k / 32 / warps_m  # weights of the block, of a lane
    scale = weights_of_sm(tile, m, n, k, target) / made / (target.gpu.boost_ghz * 1e3)
    limits = {MEMORY: traffic(weights, m, n, k) / (target.gpu.dram_gbs * 1e3)}
    limits |= {name: count * scale for name, count in cycles.items()}
    return DigitCost(weights, tile, issued / made, limits)


def token_format(weights: Format) -> Format:
    """What `lb.linear` rounds activations to, unless told otherwise, before it multiplies them with integer weights."""
    assert weights.act is not None
    fmt = Format(weights.act, "channel", scale="f32", digits=weights.in_digits.digits)
    return replace(fmt, zero="int" if fmt.code.kind == "uint" else None)


def planned_tile(m: int, n: int, k: int, weights: Format, target: Target) -> DigitTile:
    """The tile of `lb.linear`."""
    activations = token_format(weights)
    if isinstance(weights.group, int):
        return grouped_tile(m, n, k, activations, weights, target, (weights.group,))
    return digit_plan(m, n, k, activations, weights, target)


def _of_group(activations: Format, weights: Format, direct: bool) -> float:
    """Instructions that make the integers of a group the tile's floats: of a row tile beside an n8 tile, of a thread.

    direct: warps hand out their sums to each other.
    """
    each, planes = columns_per_row(activations.code, activations.digits or ""), len(format_digits(weights).digits)
    outputs = 4 if each == 1 else 2
    zeros = [side.zero is not None for side in (activations, weights)]
    count = outputs * (2 + sum(zeros))  # the pattern taken off, the scale, what zeros take
    if planes > 1 or each > 1 or direct:
        count += 4 * planes * 2 + outputs * 2 * (max(1, each // 2).bit_length() - 1)  # zeros, coefficients, shuffles
    return count + 3 * outputs * direct


def weights_of_sm(tile: DigitTile, m: int, n: int, k: int, target: Target) -> float:
    """Weights that a lane of the SM with the most blocks multiplies, of its sub-cores' lanes alike."""
    blocks = -(-m // tile.bm) * -(-n // tile.bn) * tile.splits
    return -(-blocks // target.gpu.sms) * tile.bn * k / tile.splits / (32 * SUB_CORES)


def traffic(weights: Format, m: int, n: int, k: int) -> int:
    """Bytes of both sides and of an i32 product, each read or written once."""
    assert weights.act is not None
    sides = ((Format(weights.act, digits=weights.digits), m), (weights, n))
    return 4 * m * n + sum(4 * row_tiles(f, rows) * -(-k // tile_k(f)) * tile_words(f) for f, rows in sides)


def possible_digits(weights: Format, native: Sequence[str]) -> list[str]:
    """Of the digits that are native those that layers of a format run in: groups are whole steps of an instruction.

    Raises FORMAT_UNSUPPORTED where there are none.
    """
    check_scales(weights)
    group = weights.group
    found = [base for base in native if isinstance(group, str) or group % BASES[base].step_k == 0]
    if not found:
        check_group(replace(weights, digits=native[0]))
    return found


def costs(weights: Format, m: int, n: int, k: int, target: Target) -> Iterator[DigitCost]:
    """The cost in each kind of digits that is native to a target, and that the format has."""
    weights.groups(k)  # raises where groups do not divide k
    bases = possible_digits(weights, target.digits)
    return (digit_cost(replace(weights, digits=base), m, n, k, target) for base in bases)


def cheapest_digits(weights: Format, m: int, n: int, k: int, target: Target) -> str:
    """The digits that are fastest; of those that are equally fast, the ones with the fewest instructions."""
    found = list(costs(weights, m, n, k, target))
    fastest = min(cost.time for cost in found)
    best = min(found, key=lambda cost: (max(cost.time, EQUAL * fastest), cost.limits[ISSUE]))
    assert best.format.digits is not None
    return best.format.digits


def digits_for(weights: Format, m: int | None, n: int, k: int, target: str | None) -> Format:
    """The weight's format in the digits of the plan, for (m, k) activations and an (n, k) weight.

    m None: the digits whose worst loss of time, at any of these, is the least. target
    None: digits that every target has. Raises TARGET_UNKNOWN, FORMAT_UNSUPPORTED, GROUP_INDIVISIBLE.
    """
    if target is None:
        everywhere = [base for base in BASES if all(base in one.digits for one in TARGETS.values())]
        return replace(weights, digits=possible_digits(weights, everywhere)[0])
    gpu = targets.get(target)
    if m is not None:
        return replace(weights, digits=cheapest_digits(weights, m, n, k, gpu))
    losses: dict[str | None, float] = {}
    for rows in ROWS:
        found = list(costs(weights, rows, n, k, gpu))
        fastest = min(cost.time for cost in found)
        for cost in found:
            base = cost.format.digits
            losses[base] = max(losses.get(base, 1.0), cost.time / fastest)
    return replace(weights, digits=min(losses, key=lambda base: losses[base]))
