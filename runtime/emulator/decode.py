"""Syntax to the core's instructions: register slots, constants, addresses, and one row per PTX instruction."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbitvm.runtime.emulator.calls import expand
from lowbitvm.runtime.emulator.flow import reconvergence
from lowbitvm.runtime.emulator.kinds import KIND_BITS, RAW_BITS, element_kind, fits
from lowbitvm.runtime.emulator.operands import immediate_bits
from lowbitvm.runtime.emulator.order import Ordering, ordering
from lowbitvm.runtime.emulator.syntax import (
    TYPE_BITS,
    Address,
    Immediate,
    Instruction,
    Kernel,
    Name,
    Operand,
    PtxError,
    Scope,
    Syntax,
    Variable,
)
from lowbitvm.runtime.emulator.variables import (
    SHARED_BASE,
    Place,
    function_addresses,
    global_places,
    place,
    shared_places,
)

MAX_OPERANDS = 36
NO_GUARD = 0xFFFF
SPACES = {"global": 1, "shared": 2, "param": 3, "const": 1, "local": 4, "param::func": 5}  # memory.c; 0 is generic
MOST_OFFSET = 1 << 48  # bytes or elements: an array's region has 2^40
MOST_SHARED = 48 << 10  # bytes of a kernel's static shared memory

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
        + ["%dynamic_smem_size", "%total_smem_size"]
        + [
            f"%{what}.{axis}"
            for what in ("clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid")
            for axis in "xyz"
        ]
        + ["%cluster_ctarank", "%cluster_nctarank"]
    )
}
SPECIALS |= {"%aggr_smem_size": SPECIALS["%total_smem_size"]}
# Special registers that are the same for every thread of every launch: their value and the widths they have.
CONSTANT_SPECIALS: dict[str, tuple[int, tuple[int, ...]]] = {
    "%smid": (0, (32,)),
    "%nsmid": (1, (32,)),
    "%gridid": (0, (32, 64)),
    "%current_graph_exec": (0, (64,)),
    "%is_explicit_cluster": (0, (1,)),
    "%reserved_smem_offset_begin": (0, (32,)),
    "%reserved_smem_offset_end": (SHARED_BASE, (32,)),
    "%reserved_smem_offset_cap": (SHARED_BASE, (32,)),
}
# Of the reserved memory, kernels may use what begins here: cooperative groups of several warps meet in its 288 bytes.
SCRATCH = {"%reserved_smem_offset_1": SHARED_BASE - 288}
CONSTANT_SPECIALS |= {name: (address, (32,)) for name, address in ({"%reserved_smem_offset_0": 0} | SCRATCH).items()}
CONSTANT_SPECIALS |= {f"%envreg{n}": (0, (32,)) for n in range(32)}
CONSTANT_SPECIALS |= {f"%pm{n}": (0, (32,)) for n in range(8)} | {f"%pm{n}_64": (0, (64,)) for n in range(8)}
CONSTANT_SPECIALS |= {
    f"%{what}.w": (0, (32,))
    for what in ("tid", "ntid", "ctaid", "nctaid", "clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid")
}
# Those that change while a kernel runs: their bits, and how far the core shifts its count of time.
CLOCKS = {"%clock": (32, 0), "%clock_hi": (32, 32), "%clock64": (64, 0)}
CLOCKS |= {"%globaltimer": (64, 0), "%globaltimer_lo": (32, 0), "%globaltimer_hi": (32, 32)}


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
    shared_start: int  # the first address of shared memory that the kernel may touch
    positions: list[int]  # of each row in the text
    names: list[str]  # each row's mnemonic with its qualifiers
    local_size: int  # bytes of each thread's local memory, from LOCAL_BASE on
    sources: list[str | None]  # "file:line" of each row where a .loc gives it
    stored: set[int]  # parameters, by number, that may reach the address of a global store or atomic
    ordering: Ordering


@dataclass
class Slots:
    """Slot numbers of registers, constants and special registers. Slot 0 and 1 are the sink `_`."""

    count: int = 2
    registers: dict[tuple[Scope, str], int] = field(default_factory=dict)
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
        self.params, self.params_size = place(kernel.params)
        self.expansion = expand(syntax, kernel)
        self.instructions, self.local_size = self.expansion.instructions, self.expansion.local_size
        self.functions = function_addresses(syntax)
        shared, self.static_shared = shared_places(syntax, self.expansion.reached)
        self.shared_start = SHARED_BASE
        if self.static_shared > MOST_SHARED:
            problem = f"{kernel.name} has {self.static_shared} bytes of shared variables, at most {MOST_SHARED} fit"
            raise syntax.error(problem, kernel.position)
        self.static: dict[Variable, Place] = global_places(syntax) | shared
        self.static |= {v: Place(offset, "param", v.size, v.size) for v, offset in self.params}
        self.param_names = {variable.name: variable for variable in kernel.params}
        self.registers: dict[Scope, dict[str, tuple[int, str]]] = {scope: {} for scope in self.expansion.labels}

    def error(self, problem: str) -> PtxError:
        return self.syntax.error(problem, self.instruction.position)

    def unimplemented(self) -> PtxError:
        return self.error(f"the instruction {self.instruction.name} is not implemented")

    # Names

    def register_type(self, name: str, scope: Scope) -> tuple[Scope, str] | None:
        """The scope that declares a register, and its type."""
        found = scope.register(name)
        return (found[0], found[2]) if found else None

    def is_predicate(self, operand: Operand) -> bool:
        declared = self.register_type(operand.text, self.instruction.scope) if isinstance(operand, Name) else None
        return declared is not None and declared[1] == "pred"

    def label(self, name: str) -> int:
        for scope in self.instruction.scope.outward():
            labels = self.expansion.labels.get(scope, {})
            if name in labels:
                return labels[name]
        raise self.error(f"there is no label {name}")

    def register(self, operand: Operand) -> tuple[int, str]:
        """Slot and type of a register operand."""
        if not isinstance(operand, Name):
            raise self.error("expected a register")
        scope = self.instruction.scope
        known = self.registers[scope]
        if operand.text in known:
            return known[operand.text]
        found = scope.register(operand.text)
        if found is None:
            raise self.error(f"the register {operand.text} is not declared")
        declaring, name, kind = found
        key = (declaring, name)
        if key not in self.slots.registers:
            self.slots.registers[key] = self.slots.new(TYPE_BITS[kind] >= 64)
            if kind == "b128":
                self.slots.registers[declaring, name + " high"] = self.slots.new(True)
        known[operand.text] = self.slots.registers[key], kind
        return known[operand.text]

    def variable(self, name: str) -> Place | None:
        """Where a variable, parameter or function lies; None for other names and for registers."""
        scope = self.instruction.scope
        if name in self.registers[scope] or scope.register(name):
            return None
        for around in scope.outward():
            if name in self.expansion.places.get(around, {}):
                return self.expansion.places[around][name]
            if name in around.variables:
                return self.static.get(around.variables[name])
        variable = self.param_names.get(name) or self.syntax.names.get(name)
        if variable is not None:
            return self.static.get(variable)
        if name in self.functions:
            return Place(self.functions[name], "function", 0, 1)
        return None

    def register_bits(self, operand: Name) -> int:
        """The width of a register, 0 for another name."""
        declared = self.register_type(operand.text, self.instruction.scope)
        return TYPE_BITS[declared[1]] if declared else 0

    def declared_space(self, name: str) -> str | None:
        """The state space that a variable or parameter is declared in; None for other names."""
        scope = self.instruction.scope
        if name in self.registers[scope] or scope.register(name):
            return None
        found = next((around.variables[name] for around in scope.outward() if name in around.variables), None)
        found = found or self.param_names.get(name) or self.syntax.names.get(name)
        return found.space if found else None

    def halves(self, operand: Operand) -> list[tuple[int, bool]]:
        """The two 64-bit operands that stand for a .b128 register, the low half first."""
        if operand == Name("_"):
            return [(0, True), (0, True)]
        slot, kind = self.register(operand)
        if kind != "b128":
            assert isinstance(operand, Name)
            raise self.error(f"{operand.text} is a .{kind} register, the instruction takes .b128")
        return [(slot, True), (slot + 2, True)]

    def carry(self) -> int:
        """The slot of the carry flag, a predicate of its own."""
        key = (self.kernel.scopes[0], "the carry")
        if key not in self.slots.registers:
            self.slots.registers[key] = self.slots.new(False)
        return self.slots.registers[key]

    def constant(self, value: int, wide: bool) -> tuple[int, bool]:
        if (value, wide) not in self.slots.constants:
            self.slots.constants[value, wide] = self.slots.new(wide)
        return self.slots.constants[value, wide], wide

    # Operands

    def destination(self, operand: Operand, kind: str, loose: bool = False) -> tuple[int, bool]:
        """A register for a value of type `kind`; `loose` lets the register be wider than the type."""
        if operand == Name("_"):
            return 0, KIND_BITS[kind] == 64
        slot, declared = self.register(operand)
        self.check_width(operand, declared, kind, loose)
        return slot, TYPE_BITS[declared] == 64

    def source(self, operand: Operand, kind: str, loose: bool = False) -> tuple[int, bool]:
        """A register, special register, number or variable's address, read as type `kind`."""
        wide = KIND_BITS[kind] == 64
        if isinstance(operand, Immediate):
            if kind in RAW_BITS:
                raise self.error(f"{self.instruction.name} takes a register, not a number")
            try:
                return self.constant(immediate_bits(operand, kind), wide)
            except ValueError as problem:
                raise self.error(str(problem)) from None
        if isinstance(operand, Address) and not operand.brackets and isinstance(operand.base, Name):
            return self.address_of(operand.base.text, operand.offset, operand.scaled, wide)
        if isinstance(operand, Name) and operand.text not in self.registers[self.instruction.scope]:
            if operand.text in SPECIALS or operand.text in CONSTANT_SPECIALS:
                return self.special(operand.text, kind)
            if self.variable(operand.text) is not None:
                return self.address_of(operand.text, 0, False, wide)
        slot, declared = self.register(operand)
        self.check_width(operand, declared, kind, loose)
        return slot, TYPE_BITS[declared] == 64

    def elements(
        self, parts: tuple[Operand, ...], kind: str, written: bool, loose: bool = False
    ) -> list[tuple[int, bool]]:
        """The elements of a vector of values of type `kind`, which the instruction writes or reads."""
        names = [part for part in parts if isinstance(part, Name) and part != Name("_")]
        found = [self.register_type(name.text, self.instruction.scope) for name in names]
        declared = [one[1] for one in found if one is not None]
        widths = sorted({TYPE_BITS[one] for one in declared})
        if len(widths) > 1:
            raise self.error(f"the elements of a vector have {' and '.join(map(str, widths))} bits")
        if set(parts) == {Name("_")}:
            raise self.error("a vector of _ alone has no type")
        common = element_kind(declared, kind)
        if common is None:
            raise self.error(f"the elements of a vector are .{' and .'.join(sorted(set(declared)))}")
        if written:
            return [self.destination(part, common, loose) for part in parts]
        return [self.source(part, common if isinstance(part, Name) else kind, loose) for part in parts]

    def special(self, name: str, kind: str) -> tuple[int, bool]:
        """A special register that does not change while a kernel runs."""
        if self.instruction.mnemonic not in ("mov", "cvt"):
            raise self.error(f"{self.instruction.mnemonic} cannot read the special register {name}: move it first")
        value, widths = CONSTANT_SPECIALS.get(name, (0, (32,)))
        bits = KIND_BITS[kind]
        if kind[0] == "f" or (bits not in widths and (bits != 16 or 32 not in widths)):
            raise self.error(f"{name} has {' or '.join(map(str, widths))} bits, the instruction takes .{kind}")
        if name == "%is_explicit_cluster" and self.kernel.explicit_cluster:
            value = 2**32 - 1  # of all lanes
        self.shared_start = min(self.shared_start, SCRATCH.get(name, SHARED_BASE))
        if name in CONSTANT_SPECIALS:
            return self.constant(value, bits == 64)
        if name not in self.slots.specials:
            self.slots.specials[name] = self.slots.new(False)
        return self.slots.specials[name], False

    def check_width(self, operand: Operand, declared: str, kind: str, loose: bool) -> None:
        """The register must be of the operand's class, and as wide; `loose`: or wider."""
        if not fits(declared, kind, loose):
            assert isinstance(operand, Name)
            raise self.error(f"{operand.text} is a .{declared} register, the instruction takes .{kind}")

    def address_of(self, name: str, offset: int, scaled: bool, wide: bool) -> tuple[int, bool]:
        """The address of a variable or function, as a constant."""
        place = self.variable(name)
        if place is None:
            raise self.error(f"{name} is no variable")
        if self.instruction.mnemonic not in ("mov", "cvta", "call"):
            raise self.error(f"{self.instruction.mnemonic} takes a register, not the address of {name}")
        return self.constant(place.address + offset * (place.unit if scaled else 1), wide)

    def address(self, operand: Operand) -> tuple[tuple[int, bool], int, str | None]:
        """Base operand, byte offset, and the state space where the base is a variable."""
        if not isinstance(operand, Address) or not (operand.brackets or operand.scaled):
            raise self.error("expected an address in brackets")
        if not -MOST_OFFSET <= operand.offset < MOST_OFFSET:
            raise self.error(f"the offset {operand.offset} does not fit")
        base = operand.base
        if isinstance(base, Immediate):
            return self.constant(int(base.value), True), operand.offset, None
        place = self.variable(base.text)
        if place is not None:
            offset = operand.offset * (place.unit if operand.scaled else 1)
            return self.constant(place.address, True), offset, place.space
        if operand.scaled:
            raise self.error(f"{base.text} is no array")
        slot, declared = self.register(base)
        if TYPE_BITS[declared] not in (16, 32, 64) or declared[0] == "f":
            raise self.error(f"{base.text} is a .{declared} register, an address takes an integer of 16 to 64 bits")
        return (slot, TYPE_BITS[declared] == 64), operand.offset, None


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
    """The parameters that may reach the address of a global store or atomic, found by walking back from its register.

    Where that leads to a 64-bit value loaded from memory, which could be any pointer, these are all parameters.
    """
    everything = set(range(len(decoder.params)))
    constants = {slot: value for (value, _), slot in decoder.slots.constants.items()}
    definitions: dict[int, list[Row]] = {}
    for row, _ in rows:
        for slot, _ in row.operands[: row.dsts]:
            definitions.setdefault(slot, []).append(row)
    found: set[int] = set()
    waiting = [
        row.operands[row.dsts][0]
        for row, _ in rows
        if row.op in ("store", "atomic") and row.mod[2] & 0xFF in (0, SPACES["global"])
    ]
    seen = set(waiting)
    while waiting:
        for row in definitions.get(waiting.pop(), ()):
            sources = [slot for slot, _ in row.operands[row.dsts :]]
            if row.op == "load" and row.mod[2] & 0xFF == SPACES["param"] and sources[0] in constants:
                start = constants[sources[0]] + row.offset
                found |= {n for n, (v, offset) in enumerate(decoder.params) if offset <= start < offset + v.size}
            elif row.op in ("load", "atomic"):
                if row.mod[0] == 8:
                    return everything
            else:
                waiting += set(sources) - seen
                seen.update(sources)
    return found


def encode(
    decoder: Decoder,
    rows: list[tuple[Row, Instruction]],
    opcodes: dict[str, int],
    targets: list[int],
    joins: dict[int, int],
) -> np.ndarray[Any, np.dtype[Any]]:
    """The rows as the core reads them."""
    code = np.zeros(len(rows), ROW)
    ops, guards, wides, mods = [], [], [], []
    places: list[int] = []  # of the operands, in the flattened matrix of operands
    slots: list[int] = []
    for n, (row, instruction) in enumerate(rows):
        decoder.instruction = instruction
        if row.op not in opcodes:
            raise decoder.unimplemented()
        if len(row.operands) > MAX_OPERANDS:
            raise decoder.error(f"{len(row.operands)} operands, at most {MAX_OPERANDS} are possible")
        guard = NO_GUARD
        if instruction.guard is not None:
            guard = decoder.source(Name(instruction.guard), "pred")[0]
        start = n * MAX_OPERANDS
        places += range(start, start + len(row.operands))
        slots += [slot for slot, _ in row.operands]
        ops.append(opcodes[row.op])
        guards.append(guard)
        wide = 0
        for k, (_, is_wide) in enumerate(row.operands):
            if is_wide:
                wide |= 1 << k
        wides.append(wide)
        mods.append((*row.mod, 0, 0, 0, 0)[:4])
    operands = np.zeros(len(rows) * MAX_OPERANDS, np.uint16)
    operands[places] = np.array(slots, np.int64).astype(np.uint16)
    code["operand"] = operands.reshape(-1, MAX_OPERANDS)
    code["op"], code["guard"], code["wide"], code["mod"] = ops, guards, wides, mods
    code["negated"] = [instruction.negated for _, instruction in rows]
    code["dsts"] = [row.dsts for row, _ in rows]
    code["srcs"] = [len(row.operands) - row.dsts for row, _ in rows]
    code["target"], code["reconverge"] = targets, [joins.get(n, -1) for n in range(len(rows))]
    code["offset"] = [row.offset for row, _ in rows]
    return code


def build(decoder: Decoder, rows: list[tuple[Row, Instruction]], opcodes: dict[str, int]) -> Program:
    """Number the slots, resolve branches, and lay the rows out as the core reads them."""
    targets = [0] * len(rows)
    for n, (row, instruction) in enumerate(rows):
        if row.op == "branch":
            decoder.instruction = instruction
            (operand,) = instruction.operands
            assert isinstance(operand, Name)
            targets[n] = decoder.label(operand.text)
    joins = reconvergence(successors(rows, targets), [n for n, (row, _) in enumerate(rows) if row.op == "branch"])
    for branch, join in joins.items():
        if join >= 0 and rows[join][0].op == "exit" and rows[join][1].guard is None:
            joins[branch] = -1  # whoever only meets the others to exit does so at once, as `if (...) return;` says
    code = encode(decoder, rows, opcodes, targets, joins)
    slots = decoder.slots
    if slots.count >= NO_GUARD:
        problem = f"{decoder.kernel.name} uses {slots.count} register slots, the emulator has {NO_GUARD - 1}"
        raise decoder.syntax.error(problem, decoder.kernel.position)
    image = np.zeros((slots.count, 32), np.uint32)
    undefined = np.zeros(slots.count, np.uint32)
    for (value, is_wide), slot in slots.constants.items():
        if is_wide:
            image[slot : slot + 2].reshape(-1).view(np.uint64)[:] = value & (2**64 - 1)
        else:
            image[slot] = value & (2**32 - 1)
    undefined[list(slots.registers.values())] = 0xFFFFFFFF
    if "%dynamic_smem_size" in slots.specials:
        image[slots.specials["%dynamic_smem_size"]] = decoder.static_shared  # control.c subtracts it from the total
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
        shared_start=decoder.shared_start,
        local_size=decoder.local_size,
        sources=decoder.syntax.sources([instruction.position for _, instruction in rows]),
        positions=[instruction.position for _, instruction in rows],
        names=[instruction.name for _, instruction in rows],
        stored=stored_params(decoder, rows),
        ordering=ordering([row for row, _ in rows], {slot: value for (value, _), slot in slots.constants.items()}),
    )
