"""How a block's warps share out the tiles of its dots."""

from dataclasses import dataclass, replace

from lowbitvm import dtypes
from lowbitvm.codegen.digits import multiplies_digits, warps_along_m_of_digits
from lowbitvm.codegen.fused import shared_fused
from lowbitvm.codegen.weights import CHUNK_K
from lowbitvm.formats import Format
from lowbitvm.ir import Op, Program, walk
from lowbitvm.targets import Target
from lowbitvm.tile import TABLE_BYTES, decoded_scale_bits, gains_by_sums, may_be_held, sums_rows, sums_short_groups

LEAST_ROWS = 128  # of activations, for which warps share decoded weights: for fewer that costs more than it saves
WARP_ROWS = 64  # of activations that a warp has then
SUMMED_ROWS = 64  # of activations, for which warps share their row sums
SUMMED_ACCUMULATORS = 32  # of a thread, at most, then
MOST_WARPS = 8  # more leave no registers for products beside the accumulators, nor do two dots
BANKS_BYTES = 128  # of one pass over all banks of shared memory
UNCOUNTED = 1.05  # of the passes that are counted: those for scales come on top
LEAST_SLOTS = 3  # one unit is multiplied, the next one decoded, another one fetched


@dataclass(frozen=True)
class Arrangement:
    """How warps share out a dot: warps_m of them the rows of activations, the others the weights.

    warps_m = 1: each weight is decoded in the registers of the one warp that multiplies it. More: several warps
    multiply it, so it is decoded once for all of them, into shared memory; or, held, by each of them.
    """

    warps_m: int = 1
    held: bool = False


def arrange(program: Program, target: Target, warps: int) -> Arrangement:
    """The arrangement of all dots of a program. Codes in digits are widened by each warp that multiplies them."""
    loops = [op for op in walk(program.body) if op.kind == "range" and any(x.kind == "dot" for x in op.body)]
    dots = [op for loop in loops for op in loop.body if op.kind == "dot"]
    rows = {dot.shape[0] for dot in dots}
    if all(map(multiplies_digits, dots)):
        return Arrangement(warps_along_m_of_digits(program, warps))
    small = all(SUMMED_ROWS * dot.shape[1] <= SUMMED_ACCUMULATORS * 32 * warps for dot in dots)
    summed = rows == {SUMMED_ROWS} and small and all(_shares_sums(dot, target) for dot in dots)
    if len(rows) != 1 or (min(rows) < LEAST_ROWS and not summed) or not all(map(_is_plain, dots)):
        return Arrangement()
    shared = Arrangement(2 if summed else rows.pop() // WARP_ROWS)
    held = replace(shared, held=True)
    divides = warps % shared.warps_m == 0 and all(dot.shape[1] % (16 * warps) == 0 for dot in dots)
    deep = all(loop.integer("stages") >= LEAST_SLOTS and loop.integer("step") == CHUNK_K for loop in loops)
    roomy = warps <= MOST_WARPS and all(sum(op.kind == "dot" for op in loop.body) == 1 for loop in loops)
    if not (divides and deep and roomy):
        return Arrangement()
    fits = all(_shared_bytes(loop) <= target.shared_per_block for loop in loops)
    if summed or all(_may_be_held(dot) for dot in dots):
        better_held = any(_crowded(dot) or _outrun(dot, target, warps, shared.warps_m) for dot in dots)
        if fits and not summed and not better_held:
            return shared
        fits = all(_shared_bytes(loop, held=True) <= target.shared_per_block for loop in loops)
        return held if fits else Arrangement()
    return shared if fits else Arrangement()


def _may_be_held(dot: Op) -> bool:
    """Whether there are registers for all weights that a warp multiplies in a unit."""
    fmt, act = _format(dot), dot.operands[0].dtype
    assert fmt is not None and act is not None
    return may_be_held(fmt) or shared_fused(fmt, act.name) is not None


def _shares_sums(dot: Op, target: Target) -> bool:
    fmt = _format(dot)
    return fmt is not None and gains_by_sums(fmt, target)


def _crowded(dot: Op) -> bool:
    fmt = _format(dot)
    return fmt is not None and sums_short_groups(fmt)


def _outrun(dot: Op, target: Target, warps: int, warps_m: int) -> bool:
    """Whether the tensor cores would wait for shared memory, were weights decoded into it.

    Counted are passes over its banks, for 16 of k: activations and codes are copied and read, 16-bit weights stored
    and read, activations read once more where their rows are summed, and the clocks that the products take.
    """
    fmt = _format(dot)
    assert fmt is not None
    bm, bn = dot.shape
    codes = 2 * bn * fmt.bits / 8
    read = warps // warps_m * 2 * bm + (warps_m - 1) * 2 * bn  # bytes of one of k: a warp keeps what it decodes
    read += 2 * bm * sums_rows(fmt)
    passes = 16 * (2 * bm + codes + 2 * bn + read) / BANKS_BYTES
    clocks = 2 * 16 * bm * bn / (target.gpu.f16 * (target.gpu.sync_share or 1.0))
    return UNCOUNTED * passes > clocks


def _is_plain(dot: Op) -> bool:
    """Whether a dot is one of activations that are loaded with weights that may be decoded a unit ahead.

    Codebooks of groups are found by the unit that is multiplied, not by the next one.
    """
    activations, fmt = dot.operands[0], _format(dot)
    if fmt is None or fmt.table == "group":
        return False
    return dot.dtype != dtypes.i32 and activations.kind == "load"


def _format(dot: Op) -> Format | None:
    """The format of a dot's weights; None where they are no loads of packed codes."""
    weights = dot.operands[1]
    while weights.operands and weights.kind in ("transpose", "dequant"):
        weights = weights.operands[0]
    element = None if weights.array is None else weights.array.element
    return element if isinstance(element, Format) else None


def _shared_bytes(loop: Op, held: bool = False) -> int:
    """Bytes of shared memory that a loop's tiles take, and its decoded weights, unless they are held in registers."""
    dots = [op for op in loop.body if op.kind == "dot"]
    activations, total = {dot.operands[0] for dot in dots}, 0
    stages, k = loop.integer("stages"), loop.integer("step")
    for tile in activations:
        total += stages * 2 * tile.shape[0] * k
    for dot in dots:
        fmt = _format(dot)
        if fmt is None:
            continue
        rows = max(1, k // fmt.group) if isinstance(fmt.group, int) else 1
        numbers = sum(dtype.bits for dtype in (fmt.scale_dtype, fmt.zero_dtype) if dtype is not None) * rows
        numbers = max(numbers, decoded_scale_bits(fmt))
        total += dot.shape[1] * (stages * (k * fmt.bits + numbers) // 8 + 2 * 2 * k * (not held))
        total += TABLE_BYTES if fmt.code.kind == "table" else 0
    return total
