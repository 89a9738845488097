"""Syntax to the core's instructions: register slots, constants, addresses, and one row per PTX instruction."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbitvm.runtime.emulator.flow import reconvergence
from lowbitvm.runtime.emulator.parse import (
    TYPE_BITS,
    Address,
    Immediate,
    Instruction,
    Kernel,
    Name,
    Operand,
    PtxError,
    Syntax,
    Variable,
    immediate_bits,
)

MAX_OPERANDS = 36
NO_GUARD = 0xFFFF
REGION_SHIFT = 40
FIRST_ARRAY = 2  # core.h: region 1 is the shared window
SPACES = {"global": 1, "shared": 2, "param": 3, "const": 1}  # memory.c; 0 is generic
SHARED_BASE = 1024  # core.h: where a block's shared memory starts

# What the core calls Insn (core.h).
ROW = np.dtype(
    [
        ("op", np.uint16),
        ("guard", np.uint16),
        ("operand", np.uint16, MAX_OPERANDS),
        ("negated", np.uint8),
        ("dsts", np.uint8),
        ("srcs", np.uint8),
        ("spare", np.uint8),
        ("wide", np.uint32),
        ("target", np.int32),
        ("reconverge", np.int32),
        ("mod", np.uint32, 4),
        ("offset", np.int64),
    ],
    align=True,
)

# Special registers, numbered as control.c fills them.
SPECIALS = {
    name: number
    for number, name in enumerate(
        [f"%{what}.{axis}" for what in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
        + [f"%{what}" for what in ("laneid", "warpid", "nwarpid")]
        + [f"%lanemask_{which}" for which in ("eq", "lt", "le", "gt", "ge")]
    )
}


@dataclass
class Row:
    """One core instruction; operands are (slot, is 64-bit), destinations first."""

    op: str
    operands: list[tuple[int, bool]]
    dsts: int
    mod: tuple[int, ...] = ()
    offset: int = 0


@dataclass
class Program:
    """A kernel ready to run."""

    kernel: Kernel
    code: np.ndarray[Any, np.dtype[Any]]
    image: np.ndarray[Any, np.dtype[np.uint32]]  # (slots, 32)
    undefined: np.ndarray[Any, np.dtype[np.uint32]]
    specials: np.ndarray[Any, np.dtype[np.int32]]
    params: list[tuple[Variable, int]]  # and their byte offsets
    params_size: int
    static_shared: int
    positions: list[int]  # of each row in the text
    names: list[str]  # each row's mnemonic with its qualifiers
    stored: set[int]  # parameters, by number, that may reach the address of a plain global store
    synchronises: bool  # threads may order their global accesses by other means than barriers


@dataclass
class Slots:
    """Slot numbers of registers, constants and special registers. Slot 0 and 1 are the sink `_`."""

    count: int = 2
    registers: dict[tuple[tuple[int, ...], str], int] = field(default_factory=dict)
    constants: dict[tuple[int, bool], int] = field(default_factory=dict)
    specials: dict[str, int] = field(default_factory=dict)

    def new(self, wide: bool) -> int:
        self.count += 1 + wide
        return self.count - 1 - wide


class Decoder:
    """Decodes one kernel; the rules of `isa` call it for operands."""

    def __init__(self, syntax: Syntax, kernel: Kernel) -> None:
        self.syntax, self.kernel, self.slots = syntax, kernel, Slots()
        self.instruction: Instruction
        self.addresses: dict[str, int] = {}
        self.spaces: dict[str, str] = {}
        self.params, self.params_size = place(kernel.params)
        statics = [v for v in (*syntax.shared, *kernel.shared) if v.size]
        placed, self.static_shared = place(statics)
        dynamic_start = -(-self.static_shared // 128) * 128 if self.static_shared else 0
        dynamic = [(v, dynamic_start) for v in (*syntax.shared, *kernel.shared) if not v.size]
        shared = [(v, SHARED_BASE + offset) for v, offset in placed + dynamic]
        if dynamic:
            self.static_shared = dynamic_start
        regions = [(v, (FIRST_ARRAY + n) << REGION_SHIFT) for n, v in enumerate(syntax.globals)]
        for space, variables in (("param", self.params), ("shared", shared), ("global", regions)):
            for variable, address in variables:
                self.addresses[variable.name], self.spaces[variable.name] = address, space

    def error(self, problem: str) -> PtxError:
        return self.syntax.error(problem, self.instruction.position)

    def unimplemented(self) -> PtxError:
        name = ".".join((self.instruction.mnemonic, *self.instruction.qualifiers))
        return self.error(f"the instruction {name} is not implemented")

    # Names

    def register_type(self, name: str, scope: tuple[int, ...]) -> tuple[tuple[int, ...], str] | None:
        """The scope that declares a register, and its type."""
        for depth in range(len(scope), -1, -1):
            inner = scope[:depth]
            if (inner, name) in self.kernel.registers:
                return inner, self.kernel.registers[inner, name]
            digits = re.search(r"\d+$", name)
            for split in range(digits.start(), len(name)) if digits else ():
                found = self.kernel.ranges.get((inner, name[:split]))
                if found and str(int(name[split:])) == name[split:] and int(name[split:]) < found[1]:
                    return inner, found[0]
        return None

    def is_predicate(self, operand: Operand) -> bool:
        declared = self.register_type(operand.text, self.instruction.scope) if isinstance(operand, Name) else None
        return declared is not None and declared[1] == "pred"

    def label(self, name: str) -> int:
        scope = self.instruction.scope
        for depth in range(len(scope), -1, -1):
            if (scope[:depth], name) in self.kernel.labels:
                return self.kernel.labels[scope[:depth], name]
        raise self.error(f"there is no label {name}")

    def register(self, operand: Operand) -> tuple[int, str]:
        """Slot and type of a register operand."""
        if not isinstance(operand, Name):
            raise self.error("expected a register")
        found = self.register_type(operand.text, self.instruction.scope)
        if found is None:
            raise self.error(f"the register {operand.text} is not declared")
        scope, kind = found
        key = (scope, operand.text)
        if key not in self.slots.registers:
            self.slots.registers[key] = self.slots.new(TYPE_BITS[kind] == 64)
        return self.slots.registers[key], kind

    def constant(self, value: int, wide: bool) -> tuple[int, bool]:
        if (value, wide) not in self.slots.constants:
            self.slots.constants[value, wide] = self.slots.new(wide)
        return self.slots.constants[value, wide], wide

    # Operands

    def destination(self, operand: Operand, kind: str, loose: bool = False) -> tuple[int, bool]:
        """A register for a value of type `kind`; `loose` lets the register be wider than the type."""
        if operand == Name("_"):
            return 0, TYPE_BITS[kind] == 64
        slot, declared = self.register(operand)
        self.check_width(operand, declared, kind, loose)
        return slot, TYPE_BITS[declared] == 64

    def source(self, operand: Operand, kind: str, loose: bool = False) -> tuple[int, bool]:
        """A register, special register, number or variable's address, read as type `kind`."""
        wide = TYPE_BITS[kind] == 64
        if isinstance(operand, Immediate):
            return self.constant(immediate_bits(operand, kind), wide)
        if isinstance(operand, Name):
            if operand.text in SPECIALS:
                if wide:
                    raise self.error(f"{operand.text} has 32 bits, the instruction takes .{kind}")
                if operand.text not in self.slots.specials:
                    self.slots.specials[operand.text] = self.slots.new(False)
                return self.slots.specials[operand.text], False
            if operand.text == "WARP_SZ":
                return self.constant(32, wide)
            if operand.text in self.addresses and self.register_type(operand.text, self.instruction.scope) is None:
                return self.constant(self.addresses[operand.text], wide)
        slot, declared = self.register(operand)
        self.check_width(operand, declared, kind, loose)
        return slot, TYPE_BITS[declared] == 64

    def check_width(self, operand: Operand, declared: str, kind: str, loose: bool) -> None:
        """The manual's "Operand Type Checking": same width (`loose`: or wider) and no integer as a float or reverse."""
        have, need = TYPE_BITS[declared], TYPE_BITS[kind]
        need = max(need, 16) if need != 1 else 1
        have = max(have, 16) if have != 1 else 1
        classes = {_value_class(declared), _value_class(kind)} - {"b"}
        if (have < need if loose else have != need) or (have == 1) != (need == 1) or len(classes) > 1:
            assert isinstance(operand, Name)
            raise self.error(f"{operand.text} is a .{declared} register, the instruction takes .{kind}")

    def address(self, operand: Operand) -> tuple[tuple[int, bool], int, str | None]:
        """Base operand, byte offset, and the state space where the base is a variable."""
        if not isinstance(operand, Address):
            raise self.error("expected an address in brackets")
        base = operand.base
        if isinstance(base, Immediate):
            return self.constant(int(base.value), True), operand.offset, None
        if base.text in self.addresses and self.register_type(base.text, self.instruction.scope) is None:
            return self.constant(self.addresses[base.text], True), operand.offset, self.spaces[base.text]
        slot, declared = self.register(base)
        if TYPE_BITS[declared] not in (32, 64):
            raise self.error(f"{base.text} is a .{declared} register, an address takes 32 or 64 bits")
        return (slot, TYPE_BITS[declared] == 64), operand.offset, None


def _value_class(kind: str) -> str:
    """What agrees with what: bits with everything, integers with integers, each float type with itself alone."""
    if kind[0] in "us":
        return "i"
    return kind if kind[0] == "f" else "b"


def place(variables: list[Variable]) -> tuple[list[tuple[Variable, int]], int]:
    """Offsets of variables one after another, each aligned, and their total size."""
    placed, end = [], 0
    for variable in variables:
        end = -(-end // variable.alignment) * variable.alignment
        placed.append((variable, end))
        end += variable.size
    return placed, end


def successors(rows: list[tuple[Row, Instruction]], targets: list[int]) -> list[list[int]]:
    """The instructions that may follow each one; len(rows) is the exit."""
    result = []
    for n, (row, instruction) in enumerate(rows):
        following = [] if row.op in ("branch", "exit") and instruction.guard is None else [n + 1]
        if row.op == "branch":
            following.append(targets[n])
        if row.op == "exit":
            following.append(len(rows))
        result.append(following)
    return result


def stored_params(decoder: Decoder, rows: list[tuple[Row, Instruction]]) -> set[int]:
    """The parameters that may reach the address of a plain global store, found by walking back from its register.

    Where that leads to a 64-bit value loaded from memory, which could be any pointer, these are all parameters.
    """
    everything = set(range(len(decoder.params)))
    constants = {slot: value for (value, _), slot in decoder.slots.constants.items()}
    definitions: dict[int, list[Row]] = {}
    for row, _ in rows:
        for slot, _ in row.operands[: row.dsts]:
            definitions.setdefault(slot, []).append(row)
    found: set[int] = set()
    waiting = [row.operands[0][0] for row, _ in rows if row.op == "store" and row.mod[2] != SPACES["shared"]]
    seen = set(waiting)
    while waiting:
        for row in definitions.get(waiting.pop(), ()):
            sources = [slot for slot, _ in row.operands[row.dsts :]]
            if row.op == "load" and row.mod[2] == SPACES["param"] and sources[0] in constants:
                start = constants[sources[0]] + row.offset
                found |= {n for n, (v, offset) in enumerate(decoder.params) if offset <= start < offset + v.size}
            elif row.op in ("load", "atomic"):
                if row.mod[0] == 8:
                    return everything
            else:
                waiting += set(sources) - seen
                seen.update(sources)
    return found


def synchronises(kernel: Kernel) -> bool:
    """Whether a kernel has fences, atomics with a result, or loads and stores stronger than weak.

    A red counts for nothing: only one of these could see its effect.
    """
    strong = {"volatile", "relaxed", "acquire", "release"}
    return any(
        instruction.mnemonic in ("atom", "fence", "membar")
        or (instruction.mnemonic in ("ld", "st") and not strong.isdisjoint(instruction.qualifiers))
        for instruction in kernel.instructions
    )


def build(decoder: Decoder, rows: list[tuple[Row, Instruction]], opcodes: dict[str, int]) -> Program:
    """Number the slots, resolve branches, and lay the rows out as the core reads them."""
    targets = [0] * len(rows)
    for n, (row, instruction) in enumerate(rows):
        if row.op == "branch":
            decoder.instruction = instruction
            operand = instruction.operands[0]
            assert isinstance(operand, Name)
            targets[n] = decoder.label(operand.text)
    joins = reconvergence(successors(rows, targets), [n for n, (row, _) in enumerate(rows) if row.op == "branch"])
    code = np.zeros(len(rows), ROW)
    for n, (row, instruction) in enumerate(rows):
        decoder.instruction = instruction
        if row.op not in opcodes:
            raise decoder.unimplemented()
        assert len(row.operands) <= MAX_OPERANDS
        guard = NO_GUARD
        if instruction.guard is not None:
            guard = decoder.destination(Name(instruction.guard), "pred")[0]
        wide = sum(1 << k for k, (_, is_wide) in enumerate(row.operands) if is_wide)
        operands = [slot for slot, _ in row.operands] + [0] * (MAX_OPERANDS - len(row.operands))
        mod = (*row.mod, 0, 0, 0, 0)[:4]
        head = (opcodes[row.op], guard, operands, instruction.negated, row.dsts, len(row.operands) - row.dsts, 0, wide)
        code[n] = (*head, targets[n], joins.get(n, -1), mod, row.offset)
    slots = decoder.slots
    assert slots.count < NO_GUARD, f"{slots.count} register slots do not fit 16 bits"
    image = np.zeros((slots.count, 32), np.uint32)
    undefined = np.zeros(slots.count, np.uint32)
    for (value, is_wide), slot in slots.constants.items():
        if is_wide:
            image[slot : slot + 2].reshape(-1).view(np.uint64)[:] = value & (2**64 - 1)
        else:
            image[slot] = value & (2**32 - 1)
    undefined[list(slots.registers.values())] = 0xFFFFFFFF
    specials = np.array([(SPECIALS[name], slot) for name, slot in slots.specials.items()], np.int32).reshape(-1, 2)
    return Program(
        kernel=decoder.kernel,
        code=code,
        image=image,
        undefined=undefined,
        specials=specials,
        params=decoder.params,
        params_size=decoder.params_size,
        static_shared=decoder.static_shared,
        positions=[instruction.position for _, instruction in rows],
        names=[".".join((instruction.mnemonic, *instruction.qualifiers)) for _, instruction in rows],
        stored=stored_params(decoder, rows),
        synchronises=synchronises(decoder.kernel),
    )
