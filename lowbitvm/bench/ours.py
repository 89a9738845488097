"""The linear kernels of this package for the static table: which variants there are, and what each one is."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.bench.measure import EMULATED_K, Kernel, main_loop_conflicts
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.formats import NAMED, Format
from lowbitvm.plan import Tile, chosen_tile
from lowbitvm.quantize import quantize
from lowbitvm.runtime.compiled import CompiledKernel, launch_grid
from lowbitvm.runtime.launch import launch
from lowbitvm.runtime.linear import compile_linear

TOOL = "lowbitvm"
WEIGHTS = (*CODE_TYPES, *NAMED)
TILES: dict[str, dict[str, int]] = {  # the parts that are asked for; the plan chooses the rest
    "8x128x64": {"bm": 8, "bn": 128, "bk": 64},
    "16x128x64": {"bm": 16, "bn": 128, "bk": 64},
    "64x128x64": {"bm": 64, "bn": 128, "bk": 64},
    "128x128x64": {"bm": 128, "bn": 128, "bk": 64, "warps": 8},
}


@dataclass(frozen=True)
class Variant:
    """One kernel that is asked for. `weights` is one of WEIGHTS; formats of NAMED have a group of their own."""

    weights: str
    act: str
    group: int | str
    zero: str  # "none" for None
    target: str
    tile: str

    def __str__(self) -> str:
        return f"{self.weights} {self.act} group={self.group} zero={self.zero} {self.target} {self.tile}"

    @property
    def format(self) -> Format:
        """Raises FORMAT_INVALID or FORMAT_UNSUPPORTED for parts that do not go together."""
        if self.weights in NAMED:
            return NAMED[self.weights]
        table = "tensor" if CODE_TYPES[self.weights].values is None else None
        return Format(self.weights, self.group, None if self.zero == "none" else self.zero, table=table)


def variants(
    target_names: Sequence[str],
    weights: Sequence[str],
    acts: Sequence[str],
    zeros: Sequence[str],
    tiles: Sequence[str],
    group: int | str,
) -> Iterator[Variant]:
    """All combinations; without `zeros`: integer zero points for the formats that have them, none for the others."""
    for target, name, act, tile in itertools.product(target_names, weights, acts, tiles):
        of_integers = name in CODE_TYPES and CODE_TYPES[name].is_linear
        for zero in zeros or ["int" if of_integers else "none"]:
            yield Variant(name, act, group, zero, target, tile)


def build(variant: Variant) -> Kernel:
    """Compiles a variant and runs one block of it in the emulator, which counts bank conflicts and products.

    Raises what `compile_linear` does for parts that the package does not take.
    """
    fmt, parts = variant.format, TILES[variant.tile]
    tile = chosen_tile(fmt, **parts)
    compiled = compile_linear(fmt, act=variant.act, target=variant.target, **asdict(tile))
    conflicts, per_matrix = emulate(compiled, fmt, variant.act, tile)
    return Kernel(
        TOOL,
        variant.weights,
        variant.act,
        fmt.group,
        fmt.zero,
        variant.target,
        (tile.bm, tile.bn, tile.bk),
        tile.warps,
        tile.stages,
        fmt.bits,
        compiled.sass(),
        compiled.registers,
        compiled.spills,
        compiled.shared,
        conflicts,
        weights_per_matrix=per_matrix,
    )


def emulate(compiled: CompiledKernel, fmt: Format, act: str, tile: Tile) -> tuple[int, float]:
    """(bank conflicts in the main loop, weights per matrix instruction and warp) of one block over EMULATED_K.

    Some matrix instructions make row sums of the activations, and some formats take two for one product of weights:
    what was executed says how many weights an average one stands for.
    """
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 1, (tile.bn, EMULATED_K)).astype(np.float32)
    weight = quantize(values, fmt, table=_table(fmt, tile.bn))
    dtype = dtypes.get(act).numpy
    x: Any = rng.standard_normal((tile.bm, EMULATED_K)).astype(dtype)
    y: Any = np.zeros((tile.bm, tile.bn), dtype)
    grid = launch_grid((tile.bm, tile.bn), (tile.bm, tile.bn))
    report = launch(compiled, grid, {"x": x, "w": weight, "y": y}, checks="none")
    assert report is not None
    return main_loop_conflicts(report, compiled.ptx), tile.bn * EMULATED_K / report.counters.mma


def _table(fmt: Format, out_features: int) -> Any:
    """Some codebook for a format that has one: which, the code does not depend on."""
    if fmt.table is None:
        return None
    shape = fmt.table_shape(out_features, EMULATED_K)
    return np.broadcast_to(np.linspace(-1, 1, shape[-1]).astype(np.float16), shape).copy()
