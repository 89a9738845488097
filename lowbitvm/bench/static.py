"""`lowbitvm bench --static`: the table of what main loops cost, ours and other tools', and its JSON."""

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lowbitvm import targets
from lowbitvm.bench.measure import MEMORY, Row, bytes_needed, measure
from lowbitvm.bench.ours import TILES, WEIGHTS, Variant, build, variants
from lowbitvm.bench.pipes import PIPES
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.linear import INPUTS
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
QUICK_TILES = ("8x128x64", "16x128x64")
WIDTH = 200  # characters of the table


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
    zero points where the format has them; with `quick` sm_80, f16 and QUICK_TILES.
    """
    target_names = target_names or (TARGETS[:1] if quick else TARGETS)
    acts = acts or (INPUTS[:1] if quick else INPUTS)
    tiles = tiles or (QUICK_TILES if quick else list(TILES))
    with Progress(transient=True) as progress:
        rows, refused = our_rows(variants(target_names, weights or WEIGHTS, acts, zeros, tiles, group), progress)
        others, versions = peer_rows(target_names, weights, acts, tiles, progress) if peers else ([], {})
    return [*rows, *others], versions, refused


def our_rows(variants: Iterable[Variant], progress: Progress) -> tuple[list[Row], dict[str, str]]:
    """The rows of the variants that exist, and for the others why they do not."""
    wanted = list(variants)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of the time goes to nvdisasm, which is another process
        made = list(progress.track(pool.map(_attempt, wanted), total=len(wanted), description="lowbitvm"))
    rows = [row for row in made if isinstance(row, Row)]
    refused = {str(variant): reason for variant, reason in zip(wanted, made, strict=True) if isinstance(reason, str)}
    return rows, refused


def _attempt(variant: Variant) -> Row | str:
    """The variant's row, or why there is none."""
    try:
        return measure(build(variant))
    except LowbitvmError as error:
        if error.code not in REFUSALS:
            raise
        return f"{error.code}: {error.problem}"


def peer_rows(
    target_names: Sequence[str], weights: Sequence[str], acts: Sequence[str], tiles: Sequence[str], progress: Progress
) -> tuple[list[Row], dict[str, str]]:
    """The rows of the other tools that are installed, and the version of each tool, or that it is not installed."""
    rows: list[Row] = []
    versions = {}
    for name, (package, module) in PEERS.items():
        if importlib.util.find_spec(package) is None:
            versions[name] = NOT_INSTALLED
            continue
        versions[name] = importlib.metadata.version(package)
        peer = importlib.import_module(module)
        for target in progress.track(target_names, description=name):
            rows += peer.rows(target, weights, acts, tiles)
    return rows, versions


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
    for column in (*NUMBERS, *NUMBERS_OF_MEMORY, *(f"{pipe[:7]}\ncycles" for pipe in (*PIPES, MEMORY))):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            *(row.tool, row.weights, row.act, str(row.group), str(row.zero).lower(), row.tile),
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
        )
    return table
