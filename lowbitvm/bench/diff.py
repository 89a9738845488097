"""`lowbitvm bench diff`: what changed from one run to another, row by row; for any section of the JSON.

Rows are matched by what identifies them: the keys on the way to them, and the columns of IDENTIFYING. Every other
number is compared; whether more of it is better or worse says its name (`direction`).
"""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lowbitvm.errors import LowbitvmError

IDENTIFYING = (
    "tool", "kernel", "gpu", "model", "layer", "weights", "act", "group", "zero", "target", "tile", "m", "n", "k",
)  # fmt: skip
ABOUT = "about"
MEASURED = ("launch", "compile", "pack", "gpu")  # sections
TIMED = ("trace_ms", "assemble_ms")  # in the rows of "static"
LISTED = 20  # rows of one run alone that are printed
NOT_COMPARED = ("date", "load")  # of "about": they always differ
# Of which numbers more is better, and of which less; the others are neither good nor bad.
BETTER_MORE = re.compile(r"mac_per|share|roofline|occupancy|per_s$|gbs|tflops|in_flight")
BETTER_LESS = re.compile(r"(^|_)(ms|us)$|per_weight|registers|spills|conflicts|error")

Key = tuple[str, ...]
Value = float | str | bool | None


@dataclass(frozen=True)
class Change:
    """A number, or a text, of one row in both runs. `ratio`: after / before - 1; None for texts and from 0."""

    row: Key
    name: str
    before: Value
    after: Value
    ratio: float | None
    worse: bool


@dataclass(frozen=True)
class Difference:
    """What `compare` found: changed numbers, rows that one run alone has, and what differs of the machines."""

    changes: list[Change]
    only_before: list[Key]
    only_after: list[Key]
    machines: list[Change]
    compared: int

    @property
    def worse(self) -> list[Change]:
        """Those that got worse."""
        return [change for change in self.changes if change.worse]


def read(file: Path) -> dict[str, Any]:
    """The object that --json wrote. Raises ARGUMENT_INVALID for another file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LowbitvmError("ARGUMENT_INVALID", f"{file} is no JSON: {error}", "give a file of --json") from error
    if not isinstance(found, dict):
        raise LowbitvmError("ARGUMENT_INVALID", f"{file} holds no JSON object", "give a file of --json")
    return found


def compare(before: dict[str, Any], after: dict[str, Any], threshold: float, timed: bool = True) -> Difference:
    """What changed by more than `threshold` (0.02: 2 %), in the order of `after`. Texts count if they differ at all.

    timed: also what was measured on a machine, and changes with all that it does beside.
    """
    old, new = (_keyed(run if timed else _untimed(run)) for run in (before, after))
    machines = _changes((ABOUT,), old.pop((ABOUT,), {}), new.pop((ABOUT,), {}), 0)
    for key in [key for key in (*old, *new) if key[0] == ABOUT]:
        machines += _changes(key, old.pop(key, {}), new.pop(key, {}), 0)
    both = [key for key in new if key in old]
    return Difference(
        [change for key in both for change in _changes(key, old[key], new[key], threshold)],
        [key for key in old if key not in new],
        [key for key in new if key not in old],
        [change for change in machines if change.name not in NOT_COMPARED],
        sum(len(new[key]) for key in both),
    )


def _untimed(run: dict[str, Any]) -> dict[str, Any]:
    """What of a run was counted or modelled."""
    rows = [{name: value for name, value in row.items() if name not in TIMED} for row in run.get("static", ())]
    return {name: part for name, part in run.items() if name not in MEASURED} | {"static": rows}


def _keyed(run: dict[str, Any]) -> dict[Key, dict[str, Value]]:
    """The rows of a run by what identifies them, and by their number where that is the same for several."""
    found: dict[Key, dict[str, Value]] = {}
    for key, row in _rows(run, ()):
        numbered = itertools.chain([key], ((*key, f"#{number}") for number in itertools.count(2)))
        found[next(one for one in numbered if one not in found)] = row
    return found


def _rows(value: Any, path: Key) -> Iterator[tuple[Key, dict[str, Value]]]:
    """Each object below `value` that has numbers or texts of its own, by what identifies it."""
    if isinstance(value, dict):
        own = {name: part for name, part in value.items() if not isinstance(part, dict | list)}
        if own:
            yield path, own
        for name, part in value.items():
            if isinstance(part, dict | list):
                yield from _rows(part, (*path, name))
    elif value and isinstance(value[0], dict):
        for row in value:
            numbers = dict(_columns(row))
            yield (*path, *(str(numbers.pop(name)) for name in IDENTIFYING if name in numbers)), numbers
    elif value:
        yield path[:-1], {path[-1]: ", ".join(map(str, value))}


def _columns(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """The numbers and texts of a row of a list, those of objects in it by both names."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _columns(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else value


def _changes(row: Key, before: dict[str, Value], after: dict[str, Value], threshold: float) -> list[Change]:
    found = []
    for name in dict.fromkeys((*after, *before)):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if not _is_number(old) or not _is_number(new):
            found.append(Change(row, name, old, new, None, False))
            continue
        ratio = new / old - 1 if old else None
        if ratio is None or abs(ratio) > threshold:
            found.append(Change(row, name, old, new, ratio, (new - old) * direction(name) < 0))
    return found


def direction(name: str) -> int:
    """1 where more of a number is better, -1 where less is, 0 where neither."""
    return 1 if BETTER_MORE.search(name) else -1 if BETTER_LESS.search(name) else 0


def _is_number(value: Value) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def show(found: Difference, console: Console) -> None:
    """Prints the table of changes, then the rows that one run alone has."""
    for change in found.machines:
        console.print(f"[yellow]not the same {change.name}[/]: {change.before} -> {change.after}", highlight=False)
    if found.changes:
        table = Table("row", "what", "before", "after", "change", title="What changed")
        for change in found.changes:
            style = "red" if change.worse else "green" if direction(change.name) else ""
            ratio = "" if change.ratio is None else f"{change.ratio:+.1%}"
            numbers = (_text(change.before), _text(change.after), f"{ratio}{' worse' if change.worse else ''}")
            table.add_row(escape(" ".join(change.row)), change.name, *map(escape, numbers), style=style)
        console.print(table)
    for what, keys in (("only before", found.only_before), ("only after", found.only_after)):
        for key in keys[:LISTED]:
            console.print(f"{what}: {' '.join(key)}", highlight=False, markup=False)
        if len(keys) > LISTED:
            console.print(f"{what}: {len(keys) - LISTED} more rows")
    worse = len(found.worse)
    console.print(f"{found.compared} numbers compared, {len(found.changes)} changed, {worse} of them for the worse")


def _text(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
