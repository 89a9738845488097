"""How long a linear layer takes with a tile, estimated in the time of a plan.

The same limits as those of the performance model (`lowbitvm.runtime.model`), with a closed form in place of every count
of the machine code: what the numbers in these forms were fitted to is what the model counts for u4 in groups of 128.
"""

from collections.abc import Iterable

from lowbitvm.formats import Format
from lowbitvm.targets import L2_BYTES, L2_LATENCY_NS, LATENCY_NS, OVERHEAD_US, Target
from lowbitvm.tile import SMALL_ROWS, SPLIT_K, SUMMED, Tile, blocks_per_sm, k_ahead, shares_sums

START = 400  # cycles of a block before its loop and after it
FEATURES, ROWS = 16, 8  # of x's and the weights' share of an mma.sync
DECODE_INTEGERS = 0.7  # instructions of the integer pipe for a weight
DECODE = {"float": 1.6}  # the same of other kinds of codes
LANES = 64  # of the integer pipes of an SM
WAVEFRONT = 128  # bytes of shared memory in a cycle


def predicted_us(
    tile: Tile, shares: Iterable[int], m: int, n: int, k: int, fmt: Format, target: Target, weights: int = 1
) -> list[float]:
    """Microseconds of y (m, n) = x (m, k) w^T of one weight or of two, by numbers of splits of k.

    The launch, and the longest of: what the SM with the most blocks does; a warp's own chain of instructions; the
    latency of the codes that are loaded ahead; the bytes of the memory. Where blocks share out k: also the sums' way
    through the L2, which is to hold them.
    """
    gpu = target.gpu
    clock = 1e3 * gpu.boost_ghz
    numbers = sum(dtype.bits for dtype in (fmt.scale_dtype, fmt.zero_dtype) if dtype is not None)
    stored = weights * (fmt.bits + (numbers / fmt.group if isinstance(fmt.group, int) else 0)) / 8  # bytes
    tiles = -(-m // tile.bm) * -(-n // tile.bn)
    together = gpu.sms * max(1, blocks_per_sm(tile, fmt, target, weights))
    pipes = max(  # cycles of an SM for one k of a block
        2 * weights * tile.bm * tile.bn / (gpu.f16 * (gpu.sync_share or 1)),
        weights * tile.bn * DECODE.get(fmt.code.kind, DECODE_INTEGERS) / LANES,
        _wavefronts(tile, fmt, target, weights),
    )
    loaded, chain, ahead = stored * tile.bn + 2 * tile.bm, _chain(tile, fmt, weights), k_ahead(tile, fmt)
    times = []
    for splits in shares:
        part = -(-k // (SPLIT_K * splits)) * SPLIT_K if splits > 1 else k
        sums = 4 * weights * tile.bm * tile.bn if splits > 1 else 0  # bytes that a block writes, and another one reads
        blocks = tiles * splits
        busy = -(-blocks // gpu.sms) * max(part * pipes, (part * loaded + 2 * sums) / L2_BYTES)
        alone = -(-blocks // together) * (part * chain + START)
        latency = max(1, part / ahead) * max(1, blocks / together) * LATENCY_NS
        memory = (stored * n * k + 2 * m * (k + n) + sums * blocks) / (gpu.dram_gbs * gpu.dram_share)
        turns = 2 + splits if splits > 1 else 0  # the sums' way out, the counter, each split's way back
        longest = max(busy / clock, alone / clock, latency / 1e3, memory / 1e3)
        times.append(OVERHEAD_US + longest + turns * L2_LATENCY_NS / 1e3)
    return times


def _wavefronts(tile: Tile, fmt: Format, target: Target, weights: int) -> float:
    """Passes over the banks of shared memory for one k of a block: x is read by all warps, and codes once.

    Where warps share decoded weights, each of them reads half of x. A look-up gives two weights of a lane; what is
    looked up for several warps goes there and back once more.
    """
    codes = 0.0 if tile.direct else 2 * fmt.bits / 8
    shares = tile.bm > SMALL_ROWS or (tile in SUMMED and shares_sums(tile, fmt, target))
    found = (6 if shares else 2) if fmt.code.kind == "table" else 0
    readers = tile.warps / 2 if shares else tile.warps
    return (weights * tile.bn * (codes + found) + 2 * tile.bm * (1 + readers)) / WAVEFRONT


def _chain(tile: Tile, fmt: Format, weights: int) -> float:
    """Cycles of a warp by itself for one k of its share."""
    row_tiles = weights * tile.bn / (FEATURES * tile.warps)
    return 0.9 + row_tiles * (0.6 + 0.5 * (fmt.code.kind == "float") + 0.5 * tile.bm / ROWS)
