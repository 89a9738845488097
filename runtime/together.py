"""Many kernels through one nvJitLink and one nvdisasm: to start either takes longer than a small kernel does.

ptxas compiles the entries of a module one by one, so that each has the code that it has alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lowbitvm.runtime.assemble import assemble, disassemble

_ENTRY = ".visible .entry "
_LOG = re.compile(
    r"Compiling entry function '(?P<entry>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers.*?"
    r"Compile time = (?P<time>[\d.]+) ms",
    re.DOTALL,
)
_SECTION = re.compile(r"^//-+ \.text\.(\w+) +-+$", re.MULTILINE)


@dataclass(frozen=True)
class Machine:
    """What the assembler makes of one kernel; `assemble_ms` is ptxas's own time, without that of starting it."""

    sass: str = field(repr=False)
    registers: int
    spills: int
    assemble_ms: float


def assemble_together(texts: Sequence[str], target: str, annotated: bool = False) -> list[Machine]:
    """The machine code of PTX texts with one entry each, in their order; annotated: as `disassemble` takes it.

    Raises TARGET_UNKNOWN, ASSEMBLER_MISSING, ASSEMBLER_FAILED and TOOL_MISSING as `assemble` and `disassemble` do.
    """
    modules: dict[str, list[int]] = {}  # header -> which texts have it
    for number, text in enumerate(texts):
        modules.setdefault(text[: text.index(_ENTRY)], []).append(number)
    found: dict[str, Machine] = {}
    for header, numbers in modules.items():
        found |= _machines(header + "\n".join(_renamed(texts[number], number) for number in numbers), target, annotated)
    return [found[_name(number)] for number in range(len(texts))]


def _name(number: int) -> str:
    return f"kernel_{number}"


def _renamed(text: str, number: int) -> str:
    """The text from its entry on, which gets a name of its own."""
    return re.sub(r"(\.entry )\w+", rf"\g<1>{_name(number)}", text[text.index(_ENTRY) :], count=1)


def _machines(module: str, target: str, annotated: bool) -> dict[str, Machine]:
    """The machine code of each entry by name."""
    assembly = assemble(module, target, lines=annotated)
    _, *sections = _SECTION.split(disassemble(assembly.cubin, annotated))
    code = dict(zip(sections[::2], sections[1::2], strict=True))
    return {
        one["entry"]: Machine(
            code[one["entry"]], int(one["registers"]), int(one["stores"]) + int(one["loads"]), float(one["time"])
        )
        for one in _LOG.finditer(assembly.log)
    }
