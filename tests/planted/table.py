"""The form of the planted bugs: a clean kernel, and one-line edits of it that each plant one bug.

Every `.u64` or `.u32` parameter `name` is in a register `name`, and `tid`, `lane`, `warp`, `cta` and `grid` are set,
when the body begins. A comment `//@name` tags its line, so that an edit can name the line it changes and a finding its
place.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

REGISTERS = """.reg .pred %p<10>;
    .reg .b16 %h<10>;
    .reg .b32 %r<48>, tid, lane, warp, cta, grid, base;
    .reg .f32 %f<32>;
    .reg .b64 %d<20>;"""


def ptx(params: str, body: str, *, variables: str = "", target: str = "sm_80", version: str = "8.0") -> str:
    """A module with one kernel `kernel`; `params` is like "u64 x, u32 n", `variables` stand before the kernel."""
    declared = [param.split() for param in params.split(",")]
    arguments = ", ".join(f".param .{kind} {name}_param" for kind, name in declared)
    registers = " ".join(f".reg .{kind} {name};" for kind, name in declared)
    loads = " ".join(f"ld.param.{kind} {name}, [{name}_param];" for kind, name in declared)
    return f""".version {version}
.target {target}
.address_size 64
{variables}
.visible .entry kernel({arguments})
{{
    {REGISTERS}
    {registers}
    {loads}
    mov.u32 tid, %tid.x; mov.u32 cta, %ctaid.x; mov.u32 grid, %nctaid.x;
    and.b32 lane, tid, 31; shr.u32 warp, tid, 5;
{body.strip(chr(10))}
    ret; //@exit
}}
"""


@dataclass(frozen=True)
class Plant:
    """One bug.

    `edits`: a tag and what its line becomes, "" for a line that is dropped; one line but where a line moves.
    `found`: (kind, tag) or (kind, tag, tag of the other party); for two parties either may come second and be the
    finding. Every run has one of these, and beside them only findings that are in `also`, consequences of the bug.
    """

    name: str
    edits: dict[str, str]
    found: frozenset[tuple[str, ...]]
    also: frozenset[tuple[str, ...]] = frozenset()


def plant(name: str, edits: dict[str, str], *found: str, also: tuple[str, ...] = ()) -> Plant:
    """A Plant; a finding is written "kind tag" or "kind tag tag"."""
    return Plant(name, edits, frozenset(tuple(f.split()) for f in found), frozenset(tuple(f.split()) for f in also))


@dataclass(frozen=True)
class Data:
    """One launch's arguments, and what the arrays among them (by argument number) hold after a clean run."""

    args: list[Any]
    expected: dict[int, Array]


@dataclass(frozen=True)
class Case:
    """A clean kernel with its launch and the bugs that can be planted in it."""

    name: str
    text: str
    grid: int
    block: int
    data: Callable[[np.random.Generator], Data]
    plants: tuple[Plant, ...] = ()
    shared: int = 0
    target: str = "sm_80"
    checks: str | frozenset[str] = "all"
    step_limit: int = 1 << 20


TAG = re.compile(r"//@(\w+)\s*$")


def tags(text: str) -> dict[str, set[int]]:
    """The lines, from 1, that carry each tag."""
    lines: dict[str, set[int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := TAG.search(line):
            lines.setdefault(match[1], set()).add(number)
    return lines


def planted(text: str, edits: dict[str, str]) -> str:
    """The kernel with the bug: each edited line keeps its number and its tag."""
    lines, places = text.splitlines(), tags(text)
    for tag, code in edits.items():
        (number,) = places[tag]
        lines[number - 1] = f"    {code} //@{tag}"
    return "\n".join(lines) + "\n"


def words(*shape: int, rng: np.random.Generator) -> Array:
    """Random u32 below 2^16, so that sums of a few thousand are exact."""
    return rng.integers(0, 1 << 16, shape).astype(np.uint32)
