"""The prebuilt linear kernel: compiled once per variant, launched on arrays of any kind that `launch` takes."""

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lowbitvm import dtypes, targets
from lowbitvm.dtypes import Array
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.ir import Program
from lowbitvm.kernels.epilogue import ACTIVATIONS
from lowbitvm.kernels.linear import linear
from lowbitvm.pack import PackedWeight, as_format
from lowbitvm.plan import chosen_tile, linear_plan
from lowbitvm.runtime import driver, tuned
from lowbitvm.runtime.arguments import address
from lowbitvm.runtime.cache import Cache
from lowbitvm.runtime.compiled import CompiledKernel, compile_program, launch_grid, wants_dependent
from lowbitvm.runtime.launch import ALIGNMENT, launch, place_of, torch_stream
from lowbitvm.runtime.layer import Layer
from lowbitvm.runtime.tuned import Record
from lowbitvm.runtime.workspace import workspace
from lowbitvm.tile import Tile

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Report

VECTOR = 8  # activations of one 16-byte access
INPUTS = ("f16", "bf16")
OUTPUTS = ("f16", "bf16", "f32")


@functools.cache
def disk_cache() -> Cache:
    """The process's cache of cubins."""
    return Cache()


@dataclass(frozen=True)
class Variant:
    """Everything that the code of a linear kernel depends on but the target; see `compile_linear`."""

    format: Format
    tile: Tile
    act: str = "f16"
    out: str = "f16"
    bias: str | None = None
    gate: bool = False
    residual: str | None = None
    activation: str | None = None
    vectorised: bool = True
    permuted: bool = False
    l2_hints: bool = False
    aligned: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("activations of", self.act, INPUTS),
            ("an output of", self.out, OUTPUTS),
            ("a bias of", self.bias, (None, *OUTPUTS)),
            ("a residual of", self.residual, (None, *OUTPUTS)),
        ):
            if value not in known:
                raise LowbitvmError("DTYPE_MISMATCH", f"{name} {value}", f"use one of {', '.join(map(str, known))}")
        if self.activation not in (None, *ACTIVATIONS):
            raise LowbitvmError(
                "ARGUMENT_INVALID",
                f"there is no activation function {self.activation!r}",
                f"use one of {', '.join(ACTIVATIONS)}, or None",
            )

    def program(self) -> Program:
        """The kernel as tile IR."""
        tile, split = self.tile, self.tile.splits > 1
        return linear.trace(
            x=dtypes.get(self.act),
            w=self.format,
            y=dtypes.get(self.out),
            gate=self.format if self.gate else None,
            bias=dtypes.get(self.bias) if self.bias else None,
            residual=dtypes.get(self.residual) if self.residual else None,
            partials=dtypes.f32 if split else None,
            arrivals=dtypes.i32 if split else None,
            order=dtypes.i32 if self.permuted else None,
            bm=tile.bm,
            bn=tile.bn,
            bk=tile.bk,
            stages=tile.stages,
            splits=tile.splits,
            direct=tile.direct,
            activation=self.activation,
            l2_hints=self.l2_hints,
            divisible={dim: VECTOR for dim, holds in (("k", self.vectorised), ("n", self.aligned)) if holds},
        )


def compile_linear(
    weights: str | Format,
    *,
    group: int | str | None = None,
    zero: str | None = None,
    scale: str | None = None,
    act: str = "f16",
    target: str = "sm_80",
    bm: int | None = None,
    bn: int | None = None,
    bk: int | None = None,
    stages: int | None = None,
    warps: int | None = None,
    splits: int = 1,
    direct: int | None = None,
    bias: bool = False,
    gate: bool = False,
    residual: bool = False,
    activation: str | None = None,
    out: str | None = None,
    vectorised: bool = True,
    permuted: bool = False,
    l2_hints: bool = False,
    aligned: bool = False,
    dependent: bool = False,
    cache: bool = True,
) -> CompiledKernel:
    """The linear kernel y (m, n) = f(x (m, k) w^T + bias (n)) + residual (m, n) for one weight format; needs no GPU.

    weights: a Format, or its text such as "u4", "u3,group=64,zero=int" or "mxfp4"; `group`, `zero` and `scale` stand in
    place of its own where they are given. act: "f16" or "bf16", the dtype of x, bias and residual; out: that of y,
    "f16", "bf16" or "f32", by default act. activation: f, "relu", "silu", "gelu" or None. gate: y = f(x gate^T) *
    (x w^T + bias) + residual with a second weight of the same format. The tile's parts are optional (see
    `lowbitvm.plan`). vectorised: x is 16-byte aligned and k a multiple of 8.
    aligned: y, bias and residual are, and n is a multiple of 8: stores are then fewer, and the PTX of version 7.8.
    permuted: the weight's columns are those of x[:, order], order being another argument of the kernel, i32 (k).
    l2_hints: weights are marked as the first to leave the L2 cache, x as the last; without effect before sm_80.
    dependent: launches start while the kernel before them still runs, on sm_90 and later; see `Kernel.compile`. cache:
    keep the cubin on disk.
    Raises FORMAT_INVALID, FORMAT_UNSUPPORTED, DTYPE_MISMATCH, ARGUMENT_INVALID, TARGET_UNKNOWN, TILE_INVALID,
    SHARED_MEMORY_EXCEEDED.
    """
    given_parts: dict[str, Any] = {"group": group, "zero": zero, "scale": scale}
    fmt = replace(as_format(weights), **{name: part for name, part in given_parts.items() if part is not None})
    parts = {"bm": bm, "bn": bn, "bk": bk, "stages": stages, "warps": warps, "splits": splits, "direct": direct}
    tile = chosen_tile(fmt, targets.get(target), permuted, 2 if gate else 1, **parts)
    given = act if bias else None, gate, act if residual else None
    variant = Variant(fmt, tile, act, out or act, *given, activation, vectorised, permuted, l2_hints, aligned)
    return _compile(variant, target, cache, dependent)


def _compile(variant: Variant, target: str, cache: bool, dependent: bool = False) -> CompiledKernel:
    started, kept = time.perf_counter(), disk_cache() if cache else None
    return compile_program(variant.program(), target, variant.tile.warps, started, kept, dependent=dependent)


_compiled = functools.cache(_compile)  # what `run_linear` uses


@dataclass(frozen=True)
class LinearCall:
    """A linear layer for arguments of known shapes: its kernel, the grid, and what the splits of k share.

    partials: the shape of the partial results; None where k is not split. counters: how many blocks wait for others.
    """

    kernel: CompiledKernel
    grid: tuple[int, ...]
    partials: tuple[int, int] | None = None
    counters: int = 0

    def shared(self, y: Array) -> AbstractContextManager[dict[str, Array]]:
        """The arguments that the kernel takes besides the layer's own."""
        return nullcontext({}) if self.partials is None else _shared(y, self.partials, self.counters)


@contextmanager
def _shared(y: Array, partials: tuple[int, int], counters: int) -> Iterator[dict[str, Array]]:
    with workspace(y, partials, counters) as (results, arrivals):
        yield {"partials": results, "arrivals": arrivals}


def run_linear(
    x: Array,
    weight: PackedWeight,
    bias: Array | None,
    y: Array,
    target: str,
    *,
    gate: PackedWeight | None = None,
    residual: Array | None = None,
    activation: str | None = None,
    batch_invariant: bool = False,
    **options: Any,
) -> "Report | None":
    """y = f(x w^T + bias) + residual on `target`; x (m, in_features), bias (out_features), y (m, out_features).

    See `compile_linear` for the parts and their dtypes. Chooses the tile and the splits of k by the shape, and loads x
    element by element where it is not 16-byte aligned or in_features no multiple of 8. batch_invariant: the bits of a
    row of y do not depend on how many other rows there are. See `lowbitvm.runtime.launch.launch` for devices, options
    and errors.
    """
    call, arguments = linear_call(
        *(x, weight, bias, y, target),
        gate=gate,
        residual=residual,
        activation=activation,
        batch_invariant=batch_invariant,
    )
    with call.shared(y) as shared:
        return launch(call.kernel, call.grid, arguments | shared, **options)


def linear_call(
    x: Array,
    weight: PackedWeight,
    bias: Array | None,
    y: Array,
    target: str,
    *,
    gate: PackedWeight | None = None,
    residual: Array | None = None,
    activation: str | None = None,
    batch_invariant: bool = False,
    tile: Tile | None = None,
) -> tuple[LinearCall, dict[str, Any]]:
    """What `run_linear` launches, and with which arguments; tile: None for the tuned or planned one."""
    (m, k), n = x.shape, weight.out_features
    if gate is not None and gate.format != weight.format:
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED", f"a gate of {gate.format} with a weight of {weight.format}", "pack both alike"
        )
    if gate is not None:
        gate = _alike(gate, weight)
    permuted, followers = weight.permutation is not None, (y, bias, residual)
    layer = Layer(weight.format, m, n, k, target, dtypes.of(x).name, gate is not None, permuted)
    tiles = [layer.plan if tile is None else tile]
    if batch_invariant:
        tiles = [linear_plan(m, n, k, weight.format, targets.get(target), True, permuted, gate is not None)]
    elif tile is None and m and n and k:
        tiles = [*_tuned(layer, x, weight, gate, y), *tiles]
    variant = Variant(
        weight.format,
        tiles[0],
        dtypes.of(x).name,
        dtypes.of(y).name,
        None if bias is None else dtypes.of(bias).name,
        gate is not None,
        None if residual is None else dtypes.of(residual).name,
        activation,
        vectorised=k % VECTOR == 0 and address(x) % ALIGNMENT == 0,
        permuted=permuted,
        aligned=n % VECTOR == 0 and all(address(part) % ALIGNMENT == 0 for part in followers if part is not None),
    )
    kernel, tile = _first_compiled(variant, tiles, target)
    tiles_m, tiles_n = launch_grid((m, n), (tile.bm, tile.bn))
    given = {"x": x, "w": weight, "y": y, "gate": gate, "bias": bias, "residual": residual}
    given["order"] = weight.permutation
    arguments = {name: value for name, value in given.items() if value is not None}
    if tile.splits == 1:
        return LinearCall(kernel, (tiles_m, tiles_n)), arguments
    rows = tile.splits * (1 + variant.gate) * tiles_m * tile.bm
    call = LinearCall(kernel, (tiles_m, tiles_n, tile.splits), (rows, tiles_n * tile.bn), tiles_m * tiles_n)
    return call, arguments


def _tuned(layer: Layer, x: Array, weight: PackedWeight, gate: PackedWeight | None, y: Array) -> list[Tile]:
    """The tile that tuning has found for a layer, or finds now; none where there is none."""
    place = place_of([x])
    device = tuned.device_of(layer.target, None if place is None else place.index)

    capturing = False
    if place is not None and place.arrays == "torch":
        capturing = driver.is_capturing(torch_stream(place.index), driver.primary_context(place.index))

    def search(budget_s: float | None) -> Record | None:
        from lowbitvm.runtime import tune  # which compiles linear layers itself

        whole = replace(layer, m=layer.rows)
        gpu = targets.GPUS[device.row][1] if device.row is not None else targets.get(device.target).gpu
        if place is None:
            return tune.model_linear(whole, gpu, budget_s)
        if not dtypes.is_tensor(x):  # nothing but torch can copy arrays here
            return None
        return tune.measure_linear(whole, tune.Given(x, weight, gate, y), place, gpu, budget_s)

    record = tuned.decided(tuned.LINEAR, layer.problem, device, search, capturing=capturing)
    tile = None if record is None else layer.tile(record.config)
    return [] if tile is None else [tile]


def _first_compiled(variant: Variant, tiles: Sequence[Tile], target: str) -> tuple[CompiledKernel, Tile]:
    """The kernel of the first tile that there is one for. Of the last one it raises what compiling it raises."""
    dependent = wants_dependent(target)
    for tile in tiles[:-1]:  # a record may have been made by another code generator
        with suppress(LowbitvmError):
            return _compiled(replace(variant, tile=tile), target, True, dependent), tile
    return _compiled(replace(variant, tile=tiles[-1]), target, True, dependent), tiles[-1]


def _alike(gate: PackedWeight, weight: PackedWeight) -> PackedWeight:
    """The gate with the weight's own permutation, by which both gather x. Raises FORMAT_UNSUPPORTED for another one."""
    own, other = gate.permutation, weight.permutation
    if own is other:
        return gate
    if own is None or other is None or not (address(own) == address(other) or bool((own == other).all())):
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            "a gate and a weight whose columns are permuted in two ways",
            "quantise both with one permutation, or call linear for each",
        )
    return replace(gate, permutation=other)
