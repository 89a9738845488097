"""The linear kernels of this package for the static table: which variants there are, and what each one is."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from lowbitvm import dtypes, targets
from lowbitvm.bench.measure import EMULATED_K, Kernel, main_loop_conflicts
from lowbitvm.codegen.stream import LOAD
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import NAMED, Format
from lowbitvm.integer_plan import DigitTile
from lowbitvm.plan import chosen_tile
from lowbitvm.quantize import quantize
from lowbitvm.runtime.compiled import CompiledKernel, launch_grid, without_lines
from lowbitvm.runtime.launch import launch
from lowbitvm.runtime.linear import compile_linear
from lowbitvm.runtime.loops import main_nest, read_ptx
from lowbitvm.runtime.together import Machine, assemble_together
from lowbitvm.runtime.work import some_table
from lowbitvm.tile import Tile

TOOL = "lowbitvm"
TURN_K = 256  # the largest group and bk: with the number of stages, a multiple of what any turn of a loop covers
COPIES: tuple[str | tuple[str, ...], ...] = (LOAD, ("cp.async.ca", "cp.async.cg"), "ld.global")
WEIGHTS = (*CODE_TYPES, *NAMED)
TILES: dict[str, dict[str, int]] = {  # the parts that are asked for; the plan chooses the rest
    "8": {"bm": 8},
    "16x128x64": {"bm": 16, "bn": 128, "bk": 64},
    "64x128x64": {"bm": 64, "bn": 128, "bk": 64},
    "128x128x64": {"bm": 128, "bn": 128, "bk": 64, "warps": 8},
}


@dataclass(frozen=True)
class Variant:
    """One kernel that is asked for. `weights` is one of WEIGHTS, or any other format's text.

    Formats of NAMED, and texts of more than a code type, have their own group and zero points.
    """

    weights: str
    act: str
    group: int | str
    zero: str  # "none" for None
    target: str
    tile: str
    permuted = False

    def __str__(self) -> str:
        return f"{self.weights} {self.act} group={self.group} zero={self.zero} {self.target} {self.tile}"

    @property
    def format(self) -> Format:
        """Raises FORMAT_INVALID or FORMAT_UNSUPPORTED for parts that do not go together."""
        if self.weights not in CODE_TYPES:
            return Format.parse(self.weights)
        table = "tensor" if CODE_TYPES[self.weights].values is None else None
        return Format(self.weights, self.group, None if self.zero == "none" else self.zero, table=table)

    @property
    def chosen_tile(self) -> Tile:
        """Raises TILE_INVALID for a tile that the format has no registers for."""
        return chosen_tile(self.format, targets.get(self.target), **TILES[self.tile])


@dataclass(frozen=True)
class Exactly:
    """A kernel that is given by its format and tile."""

    format: Format
    act: str
    target: str
    chosen_tile: Tile
    permuted: bool = False

    @property
    def weights(self) -> str:
        """As a row has it."""
        return str(self.format)


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


class Targeted(Protocol):
    """What names a target."""

    @property
    def target(self) -> str: ...


V = TypeVar("V", bound=Targeted)


class Described(Targeted, Protocol):
    """What names a kernel: its formats and its tile, a `Tile` or a `DigitTile`."""

    @property
    def weights(self) -> str: ...
    @property
    def act(self) -> str: ...
    @property
    def format(self) -> Format: ...
    @property
    def chosen_tile(self) -> Tile | DigitTile: ...


def build(wanted: Sequence[Variant | Exactly]) -> list[Kernel | LowbitvmError]:
    """The kernel of each variant, or the error of `compile_linear` for parts that the package does not take."""
    return build_by(wanted, _lower, _emulate, kernel_of)


def build_by(
    wanted: Sequence[V],
    lower: Callable[[V], CompiledKernel],
    emulate: Callable[[V, CompiledKernel], "Run"],
    kernel: Callable[[V, CompiledKernel, Machine, "Run"], Kernel],
) -> list[Kernel | LowbitvmError]:
    """The kernel of each variant, or the error of `lower`.

    One block of each is run in the emulator, which counts bank conflicts and products; the variants of several targets
    whose code is the same are run once.
    """
    lowered = [_lowered(variant, lower) for variant in wanted]
    machines: dict[int, Machine] = {}
    for target in dict.fromkeys(variant.target for variant in wanted):
        made = {
            number: one.ptx
            for number, (variant, one) in enumerate(zip(wanted, lowered, strict=True))
            if variant.target == target and not isinstance(one, LowbitvmError)
        }
        texts = [without_lines(ptx) for ptx in made.values()]
        machines |= dict(zip(made, assemble_together(texts, target), strict=True))
    runs: dict[str, Run] = {}  # by the code of a kernel
    found: list[Kernel | LowbitvmError] = []
    for number, (variant, one) in enumerate(zip(wanted, lowered, strict=True)):
        if isinstance(one, LowbitvmError):
            found.append(one)
            continue
        _, _, code = one.ptx.partition(".address_size")  # behind the lines that name the target
        if code not in runs:
            runs[code] = emulate(variant, one)
        found.append(kernel(variant, one, machines[number], runs[code]))
    return found


def _lowered(variant: V, lower: Callable[[V], CompiledKernel]) -> CompiledKernel | LowbitvmError:
    try:
        return lower(variant)
    except LowbitvmError as error:
        return error


def _lower(variant: Variant | Exactly) -> CompiledKernel:
    tile: dict[str, Any] = {"permuted": variant.permuted, **asdict(variant.chosen_tile)}
    return compile_linear(variant.format, act=variant.act, target=variant.target, cache=False, **tile)


def _emulate(variant: Variant | Exactly, compiled: CompiledKernel) -> "Run":
    return emulate(compiled, variant.format, variant.act, variant.chosen_tile)


def kernel_of(variant: Described, compiled: CompiledKernel, machine: Machine, run: "Run") -> Kernel:
    """What is measured of a kernel."""
    fmt, tile = variant.format, variant.chosen_tile
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
        run.ahead,
        fmt.bits,
        machine.sass,
        machine.registers,
        machine.spills,
        compiled.shared,
        run.bank_conflicts,
        weights_per_matrix=run.weights_per_matrix,
        trace_ms=compiled.trace_ms,
        assemble_ms=machine.assemble_ms,
    )


@dataclass(frozen=True)
class Run:
    """What the emulator counted in one block: conflicts in the main loop over EMULATED_K, weights per product.

    And what `ahead` says of its code.
    """

    bank_conflicts: int
    weights_per_matrix: float
    ahead: int


def emulate(compiled: CompiledKernel, fmt: Format, act: str, tile: Tile) -> Run:
    """Runs one block over a whole number of turns of any loop.

    Some matrix instructions make row sums of the activations, and some formats may take two for one product of weights:
    what was executed says how many weights an average one stands for.
    """
    k = TURN_K * tile.stages
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 1, (tile.bn, k)).astype(np.float32)
    weight = quantize(values, fmt, table=some_table(fmt, tile.bn, k))
    dtype = dtypes.get(act).numpy
    x: Any = rng.standard_normal((tile.bm, k)).astype(dtype)
    y: Any = np.zeros((tile.bm, tile.bn), dtype)
    grid = launch_grid((tile.bm, tile.bn), (tile.bm, tile.bn))
    arrays = {"x": x, "w": weight, "y": y, "order": np.arange(k, dtype=np.int32)}
    taken = {array.name: arrays[array.name] for array in compiled.program.arrays}
    report = launch(compiled, grid, taken, checks="none")
    assert report is not None
    conflicts = main_loop_conflicts(report, compiled.ptx) * EMULATED_K // k
    weights = tile.bn * k / report.counters.mma
    return Run(conflicts, weights, ahead(compiled.ptx, weights * tile.warps / tile.bn))


def ahead(ptx: str, matrix_k: float) -> int:
    """k of the weights that are on their way while a stage is multiplied: what is loaded before the main loop begins.

    `matrix_k` is the k of the block that one matrix instruction of each of its warps stands for; so the products of a
    turn say what k its copies cover, and their number before the loop what k those cover. Copies are cp.async, or
    loads in a loop that has none.
    """
    code = read_ptx(ptx)
    loop = main_nest(code).levels[0]
    start = min(instruction.line for instruction in loop)
    products = sum(instruction.is_matrix for instruction in loop)
    for copy in COPIES:
        inside = sum(instruction.name.startswith(copy) for instruction in loop)
        before = sum(i.name.startswith(copy) for i in code.instructions if i.line < start)
        if inside:
            return round(products * matrix_k * before / inside)
    return 0
