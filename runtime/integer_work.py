"""What a linear layer with weights that are multiplied with integers does on a GPU, counted without one.

Two launches, as `lb.linear` makes them: the quantiser of the activations, then the product. One tile of each is run in
the emulator, over all of k; the other tiles do the same.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from lowbitvm import targets
from lowbitvm.digitplan import token_format
from lowbitvm.digits import COLUMNS, columns_per_row
from lowbitvm.dtypes import get
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits
from lowbitvm.quantize import quantize
from lowbitvm.runtime import model
from lowbitvm.runtime.integer import run_matmul, tile_for
from lowbitvm.runtime.model import Work
from lowbitvm.runtime.quantise import Steps, empty_activations, run_quantise, variant_of

QUANTISER, PRODUCT = "quantiser", "product"


def integer_works(weights: Format, m: int, n: int, k: int, target: str, act: str = "f16") -> dict[str, Work]:
    """What the quantiser and the product do for y (m, n) = x (m, k) w^T, x and y in `act`; by name, in their order.

    Raises GROUP_INDIVISIBLE, KERNEL_UNSUPPORTED for digits that the target does not have, and what the assembler does.
    """
    weights = weights.in_digits
    of_x = token_format(weights)
    groups = tuple(fmt.group for fmt in (weights, of_x) if isinstance(fmt.group, int))
    sums = min(groups, default=None)
    dtype = get(act).numpy
    tile = tile_for((m, n, k), (of_x, weights), targets.get(target), groups)
    rows = min(m, tile.bm)
    codes = empty_activations(np.empty((rows, k), dtype), of_x, sums)
    for array in codes.arrays.values():
        array[...] = 1  # of any value: the same instructions run
    w = quantize(np.ones((tile.bn, k), np.float32), weights)
    assert isinstance(w, PackedDigits)
    y: Any = np.zeros((rows, tile.bn), dtype)
    report = run_matmul(codes, w, y, target, tile=tile, checks="none")
    assert report is not None
    tiles = (-(-m // tile.bm), -(-n // tile.bn))
    codes_bytes = _codes_bytes(of_x, m, k, sums)
    # of all rows of the tiles; written, and read
    partials = 4 * tile.splits * tiles[0] * tile.bm * n if tile.splits > 1 else 0
    traffic = codes_bytes + w.nbytes * n // tile.bn + y.itemsize * m * n + 2 * partials
    return {
        QUANTISER: _quantiser(of_x, m, k, sums, dtype, target, codes_bytes),
        PRODUCT: repeated(model.count(report), tiles[0] * tiles[1], traffic),
    }


def _codes_bytes(of_x: Format, m: int, k: int, sums: int | None) -> int:
    """Bytes of quantised activations (m, k), with the scales and sums."""
    return empty_activations(np.broadcast_to(np.float16(0), (m, k)), of_x, sums).nbytes


def _quantiser(of_x: Format, m: int, k: int, sums: int | None, dtype: Any, target: str, written: int) -> Work:
    """The rows of a block are run, or of a stored tile, which has its padding stored; whichever are more."""
    x: Any = np.ones((COLUMNS, k), dtype)
    stored = COLUMNS // columns_per_row(of_x.code, of_x.digits or "")
    each = max(stored, variant_of(x, empty_activations(x, of_x, sums), Steps()).rows)
    x = x[:m][:each]
    report = run_quantise(x, empty_activations(x, of_x, sums), target, checks="none")
    assert report is not None
    work, read = model.count(report), x.itemsize * m * k
    in_flight = work.in_flight * (read + written) / max(1, read)  # which stores are as well as loads
    return replace(repeated(work, -(-m // each), read + written), in_flight=in_flight)


def repeated(work: Work, times: int, traffic: int) -> Work:
    """What `times` tiles do that each do the same, and together touch `traffic` bytes."""
    return replace(
        work,
        blocks=work.blocks * times,
        instructions=Counter({name: times * number for name, number in work.instructions.items()}),
        waits=times * work.waits,
        wavefronts=times * work.wavefronts,
        sectors=times * work.sectors,
        traffic=traffic,
    )
