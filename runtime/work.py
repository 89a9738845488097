"""What a linear layer's kernel does on a GPU, counted without one and without running all of it.

One tile of y is run in the emulator: the other tiles do the same. Once its loop is under way, every step of k adds the
same counts, so two short k give those of any longer one; the same holds for the blocks that share out k.
"""

import contextlib
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lowbitvm.dtypes import get
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.pack import stored_bytes
from lowbitvm.quantize import quantize
from lowbitvm.runtime import model
from lowbitvm.runtime.compiled import CompiledKernel
from lowbitvm.runtime.launch import launch
from lowbitvm.runtime.layer import Layer
from lowbitvm.runtime.linear import compile_linear
from lowbitvm.runtime.model import Work
from lowbitvm.tile import SPLIT_K, Tile, k_ahead

SHORT_K = 6 * SPLIT_K  # of a block: whole turns of loops over 2, 3, 4, 6 and 8 stages of 64 or 128


@dataclass(frozen=True)
class _Kernel:
    """What a kernel's text depends on, but for the number of splits."""

    format: Format
    tile: Tile
    target: str
    act: str
    gate: bool
    permuted: bool

    def compiled(self, splits: int) -> CompiledKernel:
        """The kernel for a number of splits."""
        return _compiled(replace(self, tile=replace(self.tile, splits=splits)))


@functools.lru_cache(maxsize=128)  # for several shapes, one after another
def _compiled(kernel: _Kernel) -> CompiledKernel:
    parts: dict[str, Any] = asdict(kernel.tile)
    options: dict[str, Any] = {"gate": kernel.gate, "permuted": kernel.permuted, "cache": False}
    return compile_linear(kernel.format, act=kernel.act, target=kernel.target, **parts, **options)


def linear_work(layer: Layer, tile: Tile) -> Work:
    """What the linear kernel of a tile does for a layer.

    Raises FORMAT_UNSUPPORTED for weights that are multiplied with integers, and what `lb.compile_linear` raises.
    """
    m, n, k = layer.m, layer.n, layer.k
    work = _tile_work(_kernel(layer, tile), min(m, tile.bm), tile.splits, k)
    tiles, size = -(-m // tile.bm) * -(-n // tile.bn), get(layer.act).bits // 8
    weights = (1 + layer.gate) * sum(stored_bytes(layer.format, n, k).values()) + (4 * k if layer.permuted else 0)
    partials = 4 * (1 + layer.gate) * tile.splits * tiles * tile.bm * tile.bn if tile.splits > 1 else 0
    traffic, blocks = weights + size * m * (k + n) + 2 * partials, tiles * tile.splits
    part = -(-k // (SPLIT_K * tile.splits)) * SPLIT_K if tile.splits > 1 else k
    return replace(
        _combined((tiles, work)),
        blocks=blocks,
        traffic=traffic,
        in_flight=traffic / blocks * min(1, k_ahead(tile, layer.format) / part),  # of memory's bytes: the rest is L2's
        exchanged=partials,
        round_trips=2 + tile.splits if tile.splits > 1 else 0,  # the sums' way out, the counter, each split's way back
    )


def assemble_all(layer: Layer, tiles: Sequence[Tile]) -> None:
    """Assembles the kernels of tiles together, for `linear_work`; those that cannot be compiled are left out."""
    texts = []
    for tile in tiles:
        with contextlib.suppress(LowbitvmError):
            texts.append(_kernel(layer, tile).compiled(min(tile.splits, 2)).ptx)
    model.machines(texts, layer.target)


def _kernel(layer: Layer, tile: Tile) -> _Kernel:
    if layer.format.act is not None:
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED", f"a linear layer of {layer.format} in the model", "use `lowbitvm explain`"
        )
    return _Kernel(layer.format, replace(tile, splits=1), layer.target, layer.act, layer.gate, layer.permuted)


def _tile_work(kernel: _Kernel, rows: int, splits: int, k: int) -> Work:
    """What the blocks of one tile of y do, each of them as much as the one that has the most of k."""
    part = -(-k // (SPLIT_K * splits)) * SPLIT_K if splits > 1 else k
    if splits <= 2:
        return _along_k(kernel, rows, splits, splits * part)
    two, four = (_along_k(kernel, rows, few, 4 * SHORT_K) for few in (2, 4))
    more = (splits - 2) / 2
    return _combined((1, _along_k(kernel, rows, 2, splits * part)), (more, four), (-more, two))


def _along_k(kernel: _Kernel, rows: int, splits: int, k: int) -> Work:
    short = splits * SHORT_K
    if k <= 2 * short:
        return _emulated(kernel, rows, splits, k)
    turns = (k - short) / short
    return _combined(
        (1 - turns, _emulated(kernel, rows, splits, short)), (turns, _emulated(kernel, rows, splits, 2 * short))
    )


@functools.lru_cache(maxsize=4096)
def _emulated(kernel: _Kernel, rows: int, splits: int, k: int) -> Work:
    """What the blocks of one tile of y do, of which `rows` rows are not masked."""
    compiled, tile = kernel.compiled(splits), kernel.tile
    dtype = get(kernel.act).numpy
    weight = quantize(np.ones((tile.bn, k), np.float32), kernel.format, table=some_table(kernel.format, tile.bn, k))
    arrays: dict[str, Any] = {
        "x": np.random.default_rng(0).integers(-1, 2, (rows, k)).astype(dtype),
        "w": weight,
        "gate": weight,
        "y": np.zeros((rows, tile.bn), dtype),
        "partials": np.zeros((splits * (1 + kernel.gate) * tile.bm, tile.bn), np.float32),
        "arrivals": np.zeros(1, np.int32),
        "order": np.arange(k, dtype=np.int32),
    }
    taken = {array.name: arrays[array.name] for array in compiled.program.arrays}
    report = launch(compiled, (1, 1, splits), taken, checks="none")
    assert report is not None
    if not kernel.gate and not _right(arrays["x"], arrays["y"]):
        raise LowbitvmError("TUNING_FAILED", f"{kernel.format} gives wrong results with {tile}", "use another tile")
    return model.count(report, kernel.compiled(2).ptx if splits > 2 else None)


def _right(x: Any, y: Any) -> bool:
    """Whether y is x times a weight whose elements are all about 1, and all the same: within the rounding of bf16."""
    sums, found = x.astype(np.float64).sum(axis=1), y.astype(np.float64)
    value = found[:, 0] @ sums / max(1.0, sums @ sums)
    close = np.abs(found - value * sums[:, None]) <= 2**-8 * abs(value) * np.maximum(1, np.abs(sums))[:, None]
    return bool(close.all() and (0.5 < value < 2 or not sums.any()))


def _combined(*parts: tuple[float, Work]) -> Work:
    """The sum of multiples of what several launches of a kernel did; what they have in common is the first one's."""
    instructions: Counter[str] = Counter()
    for times, work in parts:
        for name, number in work.instructions.items():
            instructions[name] += times * number  # type: ignore[assignment]  # a Counter of fractions

    def total(name: str) -> float:
        return sum(times * float(getattr(work, name)) for times, work in parts)

    return replace(
        parts[0][1],
        instructions=instructions,
        waits=total("waits"),
        wavefronts=round(total("wavefronts")),
        sectors=round(total("sectors")),
    )


def some_table(fmt: Format, out_features: int, in_features: int) -> Any:
    """Some codebook for a format that has one: which, the code does not depend on."""
    if fmt.table is None:
        return None
    shape = fmt.table_shape(out_features, in_features)
    return np.broadcast_to(np.linspace(-1, 1, shape[-1]).astype(np.float16), shape).copy()
