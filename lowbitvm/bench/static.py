"""`lowbitvm bench --static`: the table of what main loops cost, ours and other tools', and its JSON."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lowbitvm import targets
from lowbitvm.bench.integers import TILES as INTEGER_TILES
from lowbitvm.bench.integers import IntegerVariant, integer_variants
from lowbitvm.bench.integers import build as build_integers
from lowbitvm.bench.jobs import run_all
from lowbitvm.bench.measure import MEMORY, Kernel, Row, bytes_needed, measure
from lowbitvm.bench.ours import TILES, WEIGHTS, Variant, build, variants
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.linear import INPUTS
from lowbitvm.runtime.pipes import PIPES
from lowbitvm.targets import LATENCY_NS

PEERS = {  # name -> (package, module with `rows`)
    "Triton": ("triton", "lowbitvm.bench.triton_peer"),
    "TileLang": ("tilelang", "lowbitvm.bench.tilelang_peer"),
}
# Codes of errors that say that there is no such kernel; such a combination stands below the table, not in it.
REFUSALS = frozenset(
    (
        "FORMAT_INVALID",
        "FORMAT_UNSUPPORTED",
        "DTYPE_MISMATCH",
        "KERNEL_UNSUPPORTED",
        "SHARED_MEMORY_EXCEEDED",
        "TILE_INVALID",
    )
)
NOT_INSTALLED = "not installed"
TEXTS = ("tool", "weights", "act", "group", "zero", "tile")
NUMBERS = ("MAC/\ninstr", "instr/\nweight", "decode/\nweight", "tensor\nshare", "regs", "spills", "shared\nbytes")
NUMBERS_OF_MEMORY = ("bank\nconfl", "bytes in\nflight", "of\nneed", "occu-\npancy")
TARGETS = ("sm_80", "sm_89", "sm_90a")
QUICK_TILES = ("8", "16x128x64")
WIDTH = 200  # characters of the table
BATCH = 16  # kernels per target that are assembled together


def collect(
    target_names: Sequence[str] = (),
    weights: Sequence[str] = (),
    acts: Sequence[str] = (),
    group: int | str = 128,
    zeros: Sequence[str] = (),
    tiles: Sequence[str] = (),
    quick: bool = False,
    peers: bool = True,
) -> tuple[list[Row], dict[str, str], dict[str, str]]:
    """(rows, versions of the other tools, refused variants) of all combinations of what is chosen.

    Where nothing is chosen: TARGETS, every code type and named format, f16 and bf16 activations, all TILES, integer
    zero points where the format has them; with `quick` sm_80, f16 and QUICK_TILES. Activations of codes, or none
    chosen, add products of integers.
    """
    target_names = target_names or (TARGETS[:1] if quick else TARGETS)
    tiles = tiles or (QUICK_TILES if quick else list(dict.fromkeys((*TILES, *INTEGER_TILES))))
    floats = [act for act in acts if act in INPUTS] if acts else INPUTS[:1] if quick else INPUTS
    wanted: list[Variant | IntegerVariant] = []
    wanted += variants(target_names, weights or WEIGHTS, floats, zeros, [t for t in tiles if t in TILES], group)
    codes = [act for act in acts if act not in INPUTS]
    if codes or not acts:
        wanted += integer_variants(target_names, weights, codes, [t for t in tiles if t in INTEGER_TILES])
    versions, peer_jobs = peer_rows(target_names, weights, floats, tiles) if peers else ({}, [])
    jobs = [partial(our_rows, some) for some in _batches(wanted)]
    made = run_all([*peer_jobs, *jobs], "static: compiling")  # the longest first
    others = [row for rows in made[: len(peer_jobs)] for row in rows]
    ours = {variant: found for rows in made[len(peer_jobs) :] for variant, found in rows.items()}
    rows = [ours[variant] for variant in wanted if isinstance(ours[variant], Row)]
    refused = {str(variant): ours[variant] for variant in wanted if isinstance(ours[variant], str)}
    return [*rows, *others], versions, refused


def _batches(wanted: Sequence[Variant | IntegerVariant]) -> list[list[Variant | IntegerVariant]]:
    """The variants in jobs of about the same length; those that differ in the target alone share one."""
    alike: dict[Variant | IntegerVariant, list[Variant | IntegerVariant]] = {}
    for variant in wanted:
        alike.setdefault(replace(variant, target=""), []).append(variant)
    groups = list(alike.values())
    return [list(chain(*groups[at : at + BATCH])) for at in range(0, len(groups), BATCH)]


def our_rows(wanted: Sequence[Variant | IntegerVariant]) -> dict[Variant | IntegerVariant, Row | str]:
    """The row of each variant that exists, and for the others why they do not."""
    linear = [variant for variant in wanted if isinstance(variant, Variant)]
    products = [variant for variant in wanted if isinstance(variant, IntegerVariant)]
    rows: dict[Variant | IntegerVariant, Row | str] = {}
    rows |= zip(linear, map(_row, build(linear)), strict=True)
    rows |= zip(products, map(_row, build_integers(products)), strict=True)
    return rows


def _row(made: Kernel | LowbitvmError) -> Row | str:
    if isinstance(made, Kernel):
        return measure(made)
    if made.code not in REFUSALS:
        raise made
    return f"{made.code}: {made.problem}"


def peer_rows(
    target_names: Sequence[str], weights: Sequence[str], acts: Sequence[str], tiles: Sequence[str]
) -> tuple[dict[str, str], list[Callable[[], list[Row]]]]:
    """The version of each other tool, or that it is not installed; and what makes the rows of those that are."""
    versions = {}
    jobs: list[Callable[[], list[Row]]] = []
    for name, (package, module) in PEERS.items():
        installed = importlib.util.find_spec(package) is not None
        versions[name] = importlib.metadata.version(package) if installed else NOT_INSTALLED
        if installed:
            jobs += [partial(_rows_of_peer, module, target, weights, acts, tiles) for target in target_names]
    return versions, jobs


def _rows_of_peer(module: str, *chosen: Any) -> list[Row]:
    """What the module's `rows` returns; only here is the tool imported."""
    found: list[Row] = importlib.import_module(module).rows(*chosen)
    return found


def as_json(rows: Sequence[Row], versions: dict[str, str], refused: dict[str, str]) -> dict[str, Any]:
    """What --json writes: the rows under "static", and what is needed to read them."""
    names = sorted({row.target for row in rows})
    needed = {name: {"gpu": targets.get(name).gpu.name, "bytes_needed": bytes_needed(name)} for name in names}
    static = [asdict(row) for row in rows]
    return {"static": static, "targets": needed, "peers": versions, "refused": refused}


def show(rows: Sequence[Row], versions: dict[str, str], refused: dict[str, str], console: Console) -> None:
    """Prints a table per target, and below them what it does not say."""
    order = {name: place for place, name in enumerate(targets.TARGETS)}
    for target, group in groupby(sorted(rows, key=lambda row: order[row.target]), key=lambda row: row.target):
        console.print(_table(target, list(group)))
    for name, version in versions.items():
        console.print(f"{name}: {version}")
    for (weights, _), refusals in groupby(sorted(refused.items(), key=_weights_and_code), key=_weights_and_code):
        (variant, reason), *others = refusals
        more = f" (and {len(others)} more of {weights})" if others else ""
        console.print(f"no kernel {variant}{more}: {reason}", highlight=False)
    if unknown := sorted({name for row in rows for name in row.unknown}):
        console.print(f"mnemonics that no pipe is known of: {', '.join(unknown)}")


def _weights_and_code(refusal: tuple[str, str]) -> tuple[str, str]:
    variant, reason = refusal
    return variant.partition(" ")[0], reason.partition(":")[0]


def _table(target: str, rows: list[Row]) -> Table:
    needed = bytes_needed(target)
    gpu = targets.get(target).gpu.name
    title = f"{target} ({gpu}: full bandwidth for {LATENCY_NS} ns are {needed} bytes per SM)"
    table = Table(
        title=title, caption="per weight: per weight and thread, in issue slots", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    for column in TEXTS:
        table.add_column(column, no_wrap=True)
    pipes = (f"{pipe[:7]}\ncycles" for pipe in (*PIPES, MEMORY))
    for column in (*NUMBERS, *NUMBERS_OF_MEMORY, *pipes, "lower/\nptxas"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            *(
                row.tool,
                row.weights if row.digits is None else f"{row.weights} {row.digits}",
                row.act,
                str(row.group),
                str(row.zero).lower(),
                row.tile,
            ),
            f"{row.mac_per_instruction:.0f}",
            f"{row.instructions_per_weight:.2f}",
            f"{row.decode_per_weight:.2f}",
            f"{row.tensor_share:.1%}",
            *map(str, (row.registers, row.spills, row.shared)),
            "–" if row.bank_conflicts is None else str(row.bank_conflicts),
            str(row.bytes_in_flight),
            f"{row.bytes_in_flight / needed:.2f}",
            f"{row.occupancy:.0%}",
            *(f"{cycles:.2f}" for cycles in row.cycles_per_weight.values()),
            "–" if row.trace_ms is None or not row.assemble_ms else f"{row.trace_ms / row.assemble_ms:.2f}",
        )
    return table
