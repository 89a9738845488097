"""The products of integer codes for the static table: which variants there are, and what each one is."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lowbitvm import targets
from lowbitvm.bench.measure import EMULATED_K, Kernel, main_loop_conflicts
from lowbitvm.bench.ours import Run, ahead, build_by, kernel_of
from lowbitvm.digitplan import cheapest_digits
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integer_plan import DigitTile, digit_tile
from lowbitvm.integers import pack_activations, pack_weights
from lowbitvm.runtime.compiled import CompiledKernel, launch_grid
from lowbitvm.runtime.integer import compile_matmul, rank_one
from lowbitvm.runtime.launch import launch
from lowbitvm.runtime.loops import main_nest, read_sass
from lowbitvm.runtime.together import Machine

# Rows of activations; the plan chooses the rest.
TILES = {"1": 1, "8": 8, "64x128": 64, "128x128": 128, "256x128": 256}
LAYER = 8192  # in_features and out_features of the layer that the digits are chosen for
ACTS = tuple(name for name, code in CODE_TYPES.items() if code.is_linear)
PAIRS = (  # weights, activations: what stands in the table unless told otherwise
    ("u1", "i8"), ("u2", "i8"), ("u3", "i8"), ("u4", "i8"), ("u6", "i8"), ("i8", "i8"), ("u6", "u6"), ("u4", "u4"),
    ("u2", "u4"), ("u1", "u1"),
)  # fmt: skip


@dataclass(frozen=True)
class IntegerVariant:
    """One product that is asked for, in the digits that the plan chooses unless `weights` says which.

    weights: a code type, or a format's text such as "u2,digits=b1".
    """

    weights: str
    act: str
    target: str
    tile: str

    def __str__(self) -> str:
        return f"{self.weights} {self.act} {self.target} {self.tile}"

    @cached_property
    def format(self) -> Format:
        """The weight's. Raises FORMAT_INVALID for parts that do not go together."""
        fmt = Format.parse(f"{self.weights},act={self.act}")
        if fmt.digits is not None:
            return fmt
        best = cheapest_digits(replace(fmt, group="channel"), TILES[self.tile], LAYER, LAYER, targets.get(self.target))
        return Format.parse(f"{self.weights},act={self.act},digits={best}")

    @property
    def activations(self) -> Format:
        return Format(self.act, digits=self.format.digits)

    @property
    def chosen_tile(self) -> DigitTile:
        """As `lb.matmul` has it."""
        return digit_tile(TILES[self.tile], LAYER, self.activations, self.format, targets.get(self.target))

    def lower(self) -> CompiledKernel:
        """Raises KERNEL_UNSUPPORTED for digits that are not native, and what `format` does."""
        return compile_matmul(self.format, target=self.target, m=TILES[self.tile], k=LAYER, cache=False)

    def kernel(self, compiled: CompiledKernel, machine: Machine, run: Run) -> Kernel:
        """What is measured of it."""
        tile = self.chosen_tile
        found = loaded_ahead(machine.sass, tile) if tile.part < tile.bk else run.ahead
        kernel = kernel_of(self, compiled, machine, run)
        return replace(kernel, group="tensor", zero=None, ahead=found, digits=self.format.digits)

    def emulate(self, compiled: CompiledKernel) -> Run:
        """Runs one block over a whole number of turns of its loop, and counts its products and bank conflicts."""
        tile = self.chosen_tile
        k = tile.bk * tile.stages * 2
        rng = np.random.default_rng(0)

        def codes(rows: int, name: str) -> Any:
            code = CODE_TYPES[name]
            return rng.integers(0, code.used or 1 << code.bits, (rows, k)) * code.step - code.bias

        a = pack_activations(codes(tile.bm, self.act), self.activations)
        w = pack_weights(codes(tile.bn, self.format.dtype), self.format)
        known = {"a": a, "w": w, "y": np.zeros((tile.bm, tile.bn), np.int32), **rank_one(a, w)}
        arguments = {array.name: known[array.name] for array in compiled.program.arrays}
        grid = launch_grid((tile.bm, tile.bn), (tile.bm, tile.bn))
        report = launch(compiled, grid, arguments, checks="none")
        assert report is not None
        conflicts = main_loop_conflicts(report, compiled.ptx) * EMULATED_K // k
        weights = tile.bn * k / report.counters.mma
        return Run(conflicts, weights, ahead(compiled.ptx, weights * tile.warps / tile.bn))


def loaded_ahead(sass: str, tile: DigitTile) -> int:
    """k of the weights that are on their way at once where each warp loads its own: those before the first product.

    The loop loads a step of k and then multiplies it; what of its loads stands before its first product is on its way
    together.
    """
    loop = main_nest(read_sass(sass)).levels[0]
    first = next(place for place, instruction in enumerate(loop) if instruction.is_matrix)
    loads = [place for place, instruction in enumerate(loop) if instruction.name.startswith("LDG")]
    return tile.bk * sum(place < first for place in loads) // max(1, len(loads))


def build(wanted: Sequence[IntegerVariant]) -> list[Kernel | LowbitvmError]:
    """The kernel of each variant, or the error for parts that do not go together."""
    return build_by(wanted, IntegerVariant.lower, IntegerVariant.emulate, IntegerVariant.kernel)


def integer_variants(
    target_names: Sequence[str], weights: Sequence[str], acts: Sequence[str], tiles: Sequence[str]
) -> Iterator[IntegerVariant]:
    """All combinations of what is chosen; those of PAIRS where weights or activations are not."""
    known = [(w, a) for w, a in PAIRS if w in (weights or [w]) and a in (acts or [a])]
    pairs = list(itertools.product(weights, acts)) if weights and acts else known
    for target, (name, act), tile in itertools.product(target_names, pairs, tiles):
        yield IntegerVariant(name, act, target, tile)
