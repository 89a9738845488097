"""A builder of PTX text: registers by class, instructions, labels, and the module around them.

Operands are register names, immediates (Python ints) or memory operands `[register+offset]`, all but ints as text.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from lowbitvm import ir
from lowbitvm.targets import Target

Operand = str | int
LOWEST_VERSION = "7.5"  # of the PTX ISA: the ignore-src operand of cp.async
PACKAGES = Path(ir.__file__).parent.parent  # our own files are named relative to it: the text is the same everywhere
BRANCHING = ("div.rn.f32", "sqrt.rn.f32")  # ptxas gives them a branch for subnormal numbers and the like
REGISTER_CLASSES = {"p": "pred", "h": "b16", "r": "b32", "rd": "b64", "f": "f32"}  # name prefix -> PTX type


class Builder:
    """Collects the body of one entry function."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._counts = dict.fromkeys(REGISTER_CLASSES, 0)
        self._labels = 0
        self._version = LOWEST_VERSION
        self._files: dict[str, int] = {}
        self._arrays: dict[str, str] = {}
        self._location = self._written = ""
        self.branching = False  # there is one of BRANCHING somewhere in the kernel
        self._parted: int | None = None  # where, since a barrier, ptxas may think that one has parted threads

    def register(self, kind: str) -> str:
        """A fresh register of a class of REGISTER_CLASSES."""
        self._counts[kind] += 1
        return f"%{kind}{self._counts[kind] - 1}"

    def op(self, name: str, kind: str, *operands: Operand, when: str | None = None) -> str:
        """Emits `name result, operands...` into a fresh register of class `kind`, which is returned."""
        result = self.register(kind)
        self.do(name, result, *operands, when=when)
        return result

    def locate(self, location: str) -> None:
        """What follows comes from `location`, "file:line" of the kernel's source."""
        self._location = location

    def do(self, name: str, *operands: Operand, when: str | None = None) -> None:
        """Emits an instruction; `when` is the predicate, such as "%p1" or "!%p1"."""
        if self._location != self._written:
            self._written = self._location
            path, _, line = self._location.rpartition(":")
            path = str(Path(path).relative_to(PACKAGES)) if Path(path).is_relative_to(PACKAGES) else path
            self.lines.append(f"    .loc {self._files.setdefault(path, len(self._files) + 1)} {line} 0")
        guard = f"@{when} " if when else ""
        self.lines.append(f"    {guard}{name} {', '.join(map(str, operands))};" if operands else f"    {guard}{name};")
        if name in BRANCHING:
            self._parted = len(self.lines)
        elif name == "bar.sync":
            self._parted = None

    def join(self) -> None:
        """Before shuffles: a barrier where threads may have parted, though the branch rejoins them and all paths are
        those of the whole block. Otherwise ptxas makes a call of each shuffle, of some 10 instructions."""
        if self._parted is not None:
            self.lines.insert(self._parted, "    bar.sync 0;")
            self._parted = None

    def array(self, name: str, halves: list[int]) -> str:
        """The register of the global address of an array of 16-bit patterns that comes with the module."""
        self._arrays[name] = f".global .align 16 .b16 {name}[{len(halves)}] = {{{', '.join(map(str, halves))}}};"
        return self.op("mov.u64", "rd", name)

    def needs(self, version: str) -> None:
        """What is emitted needs this version of the PTX ISA."""
        self._version = max(self._version, version)

    def label(self, stem: str) -> str:
        """A fresh label name; `place` puts it."""
        self._labels += 1
        return f"{stem}_{self._labels}"

    def place(self, label: str, together: bool = False) -> None:
        """Puts a label here; `together`: the threads of the block take the same paths to it."""
        self.lines.append(f"{label}:")
        if together and self.branching:
            self._parted = len(self.lines)  # which it does wherever paths meet

    def module(self, entry: str, target: Target, parameters: list[str], threads: int) -> str:
        """The whole PTX text: header, parameters, register declarations and the collected body."""
        registers = [
            f"    .reg .{kind} %{prefix}<{self._counts[prefix]}>;"
            for prefix, kind in REGISTER_CLASSES.items()
            if self._counts[prefix]
        ]
        version = max(target.ptx_version, self._version)
        head = [f".version {version}", f".target {target.name}", ".address_size 64", ""]
        head += [".extern .shared .align 128 .b8 smem[];", *self._arrays.values(), ""]
        head += [f".visible .entry {entry}(", ",\n".join(f"    .param {p}" for p in parameters), ")"]
        files = [f'.file {number} "{path}"' for path, number in self._files.items()]
        body = ["{", *registers, *self.lines, "    ret;", "}"]
        return "\n".join([*head, f".reqntid {threads}, 1, 1", *body, *files, ""])


def memory(base: str, offset: int = 0) -> str:
    """A memory operand: memory("%rd1", 16) -> "[%rd1+16]"."""
    return f"[{base}+{offset}]" if offset else f"[{base}]"


def vector(registers: list[str]) -> str:
    """A vector operand: vector(["%r1", "%r2"]) -> "{%r1, %r2}"; one register stands alone."""
    return registers[0] if len(registers) == 1 else f"{{{', '.join(registers)}}}"


def vector_suffix(registers: list[str]) -> str:
    """What an access by a vector of registers is called: vector_suffix(["%r1", "%r2"]) -> ".v2"; "" for one."""
    return f".v{len(registers)}" if len(registers) > 1 else ""


def hinted(name: str, operands: Sequence[Operand], policy: str) -> tuple[str, list[Operand]]:
    """(name, operands) of a global access with its hint to the L2 cache, where `policy` is the register of one."""
    return (f"{name}.L2::cache_hint", [*operands, policy]) if policy else (name, [*operands])


def float_immediate(value: float) -> str:
    """An f32 immediate in PTX's exact hexadecimal form: 1.0 -> "0f3F800000"."""
    return f"0f{struct.unpack('<I', struct.pack('<f', value))[0]:08X}"
