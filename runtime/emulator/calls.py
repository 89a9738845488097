"""Calls become copies of the called function's body, jump tables chains of branches.

The core knows neither. Every copy has registers, labels and local variables of its own; what a call passes in .param
variables lies in local memory, where the caller's variable and the function's parameter are the same bytes.

Functions that can reach themselves get one copy for every level of the recursion instead, which all calls of the level
above enter; a register of the copy says which of them to go back to. The calls of the last level stop the kernel.
"""

import functools
from dataclasses import dataclass, field

from lowbitvm.runtime.emulator.syntax import (
    TYPE_BITS,
    Address,
    Group,
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
from lowbitvm.runtime.emulator.variables import LOCAL_BASE, Place, function_addresses, unit_of

MOST_INSTRUCTIONS = 1 << 18
MOST_COPIES = 1 << 13
MOST_LOCAL = 512 << 10  # bytes of local memory that a thread may have
DEEPEST = 64  # calls in one another
# Levels of a recursion: as many as fit into so many instructions.
FEWEST_LEVELS, MOST_LEVELS, LEVELS_INSTRUCTIONS = 4, 64, 1 << 14
# Functions of the CUDA runtime: the types of what they take and return.
RUNTIME = {"vprintf": (("b64", "b64"), ("b32",)), "__assertfail": (("b64", "b64", "b32", "b64", "b64"), ())}
# Labels and registers that no PTX name can clash with.
AFTER, RETURN, ENTRY = ".after", ".return", ".entry"
SITE, HIT = ".site", ".hit"


@dataclass
class Expansion:
    """A kernel without calls and jump tables."""

    instructions: list[Instruction]
    labels: dict[Scope, dict[str, int]]
    places: dict[Scope, dict[str, Place]]  # of local variables and of functions' parameters
    local_size: int
    reached: list[Kernel]  # the kernel and the functions whose bodies it holds


def expand(syntax: Syntax, kernel: Kernel) -> Expansion:
    """Raises PtxError for functions without a body and for calls that expand to too much."""
    return _Expander(syntax, kernel).expansion


@dataclass
class _Call:
    instruction: Instruction
    results: tuple[Operand, ...]
    target: str
    args: tuple[Operand, ...]
    listed: str | None  # of an indirect call: a .calltargets or .callprototype
    scope: Scope  # of what the call itself needs, inside the caller's
    values: int = field(default=0)  # registers of that scope


@dataclass
class _Copy:
    """The body of a function at one level of a recursion."""

    function: Kernel
    level: int
    scopes: dict[Scope, Scope]
    sites: list[tuple[_Call, str]] = field(default_factory=list)  # calls that enter it, their labels to go back to

    @property
    def root(self) -> Scope:
        return self.scopes[self.function.scopes[0]]


@dataclass
class _Recursion:
    """Functions that reach each other, entered by one call from outside."""

    members: frozenset[Kernel]
    levels: int
    level: int = 0  # of the body that is being copied
    copies: dict[tuple[Kernel, int], _Copy] = field(default_factory=dict)
    waiting: list[_Copy] = field(default_factory=list)


class _Expander:
    def __init__(self, syntax: Syntax, kernel: Kernel) -> None:
        self.syntax, self.kernel = syntax, kernel
        self.out: list[Instruction] = []
        self.labels: dict[Scope, dict[str, int]] = {}
        self.places: dict[Scope, dict[str, Place]] = {}
        self.end = LOCAL_BASE
        self.reached = [kernel]
        self.copies = 0  # of functions' bodies
        self.path: list[Kernel] = [kernel]
        self.reach: dict[Kernel, set[Kernel]] = {}  # the functions that a function may call, those that these call, ...
        self.recursion: _Recursion | None = None
        self.instruction = Instruction("exit", (), (), None, False, kernel.end, kernel.scopes[0])
        if syntax.locals:
            self.places[kernel.scopes[0]] = {v.name: self.allocate(v, "local") for v in syntax.locals}
        self.locals(kernel, {scope: scope for scope in kernel.scopes})
        if self.places or kernel.mnemonics & {"call", "brx"}:
            self.body(kernel, {scope: scope for scope in kernel.scopes})
        else:
            self.out = list(kernel.instructions)
            self.labels = {scope: scope.labels for scope in kernel.scopes}
        self.out.append(Instruction("exit", (), (), None, False, kernel.end, kernel.scopes[0]))
        self.expansion = Expansion(self.out, self.labels, self.places, self.end - LOCAL_BASE, self.reached)

    def error(self, problem: str) -> PtxError:
        return self.syntax.error(problem, self.instruction.position)

    def emit(
        self,
        name: str,
        scope: Scope,
        *operands: Operand,
        guard: str | None = None,
        negated: bool = False,
    ) -> None:
        mnemonic, *qualifiers = name.split(".")
        position = self.instruction.position
        self.out.append(Instruction(mnemonic, tuple(qualifiers), operands, guard, negated, position, scope))

    # Local memory

    def allocate(self, variable: Variable, space: str) -> Place:
        start = -(-self.end // variable.alignment) * variable.alignment
        self.end = start + variable.size
        if self.end - LOCAL_BASE > MOST_LOCAL:
            problem = f"{self.kernel.name} needs more than {MOST_LOCAL} bytes of local memory in a thread"
            raise self.syntax.error(problem, variable.position)
        return Place(start, space, variable.size, unit_of(variable))

    def locals(self, function: Kernel, scopes: dict[Scope, Scope]) -> None:
        """Places for the variables of a copy of `function` that have none yet."""
        for scope in function.scopes:
            for variable in scope.variables.values():
                if variable.space in ("local", "param"):
                    known = self.places.setdefault(scopes[scope], {})
                    if variable.name not in known:
                        known[variable.name] = self.allocate(variable, "local")

    def find(self, operand: Operand, scope: Scope) -> Place | None:
        """The local variable or parameter that an operand names."""
        if not isinstance(operand, Name) or scope.register(operand.text):
            return None
        for around in scope.outward():
            if operand.text in self.places.get(around, {}):
                return self.places[around][operand.text]
        return None

    # Bodies

    def body(self, function: Kernel, scopes: dict[Scope, Scope]) -> None:
        """A copy of a function's body; `scopes` maps its blocks to the copy's."""
        starts = []
        last = len(function.instructions) - 1
        for n, instruction in enumerate(function.instructions):
            starts.append(len(self.out))
            self.instruction = instruction
            scope = scopes[instruction.scope]
            mnemonic = instruction.mnemonic
            if mnemonic == "call":
                self.call(instruction, scope)
            elif mnemonic == "brx":
                self.jump_table(instruction, scope)
            elif mnemonic == "ret" and not function.is_entry:
                if n < last or instruction.guard:
                    self.emit("bra", scope, Name(RETURN), guard=instruction.guard, negated=instruction.negated)
            else:
                self.out.append(self.copy(instruction, scope, function.is_entry))
            if len(self.out) > MOST_INSTRUCTIONS or self.copies > MOST_COPIES:
                problem = f"{MOST_INSTRUCTIONS} instructions or {MOST_COPIES} functions"
                raise self.error(f"the calls of {self.kernel.name} expand to more than {problem}")
        starts.append(len(self.out))
        for original, scope in scopes.items():
            self.labels[scope] = {name: starts[n] for name, n in original.labels.items()}
        self.labels[scopes[function.scopes[0]]][RETURN] = len(self.out)

    def copy(self, instruction: Instruction, scope: Scope, is_entry: bool) -> Instruction:
        i = instruction
        qualifiers = i.qualifiers
        if i.mnemonic in ("ld", "st") and "param" in qualifiers:
            address = next((x for x in i.operands if isinstance(x, Address)), None)
            if not is_entry or (address and self.find(address.base, scope)):
                qualifiers = tuple("param::func" if q == "param" else q for q in qualifiers)
        return Instruction(i.mnemonic, qualifiers, i.operands, i.guard, i.negated, i.position, scope)

    def jump_table(self, instruction: Instruction, around: Scope) -> None:
        if instruction.qualifiers not in (("idx",), ("idx", "uni")):
            raise self.error(f"the instruction {instruction.name} is not implemented")
        if len(instruction.operands) != 2 or not isinstance(instruction.operands[1], Name):
            raise self.error("brx.idx takes an index and a list of labels")
        index, name = instruction.operands[0], instruction.operands[1].text
        targets = next((scope.lists[name] for scope in around.outward() if name in scope.lists), None)
        if targets is None:
            raise self.error(f"{name} is no list of labels")
        scope = self.guarded(instruction, around)
        scope.registers[HIT] = "pred"
        for number, target in enumerate(targets):
            self.emit("setp.eq.u32", scope, Name(HIT), index, Immediate(number))
            self.emit("bra", scope, Name(target), guard=HIT)
        self.emit("trap", scope, Group((Immediate(1),)))
        self.labels[scope][AFTER] = len(self.out)

    def guarded(self, instruction: Instruction, around: Scope) -> Scope:
        """A scope for what replaces an instruction; where that has a guard, the others skip to the label AFTER."""
        scope = Scope(around)
        self.labels[scope] = {}
        if instruction.guard is not None:
            self.emit("bra", scope, Name(AFTER), guard=instruction.guard, negated=not instruction.negated)
        return scope

    # Calls

    def call(self, instruction: Instruction, around: Scope) -> None:
        if not set(instruction.qualifiers) <= {"uni"}:
            raise self.error(f"the instruction {instruction.name} is not implemented")
        results, target, args, listed = self.parts(instruction)
        scope = self.guarded(instruction, around)
        call = _Call(instruction, results, target, args, listed, scope)
        function = self.syntax.functions.get(target)
        if around.register(target):
            self.indirect(call)
        elif function is not None and function.defined:
            self.direct(call, function)
        elif target in RUNTIME and function is not None:
            self.runtime(call)
        else:
            state = "has no body here" if function else "is not declared"
            raise self.error(f"the function {target} {state}")
        self.labels[scope][AFTER] = len(self.out)

    def parts(self, instruction: Instruction) -> tuple[tuple[Operand, ...], str, tuple[Operand, ...], str | None]:
        """Results, target, arguments and list of targets of a call."""
        operands = list(instruction.operands)
        results = operands.pop(0) if operands and isinstance(operands[0], Group) else Group(())
        target = operands.pop(0) if operands else None
        args = operands.pop(0) if operands and isinstance(operands[0], Group) else Group(())
        listed = operands.pop(0) if operands else None
        if not isinstance(target, Name) or operands or not isinstance(listed, Name | None):
            raise self.error(
                "a call takes (results), a function, (arguments), and the list or prototype of its targets"
            )
        assert isinstance(results, Group) and isinstance(args, Group)
        return results.items, target.text, args.items, listed.text if listed is not None else None

    def direct(self, call: _Call, function: Kernel) -> None:
        for what, have, want in (
            ("arguments", call.args, function.params),
            ("results", call.results, function.results),
        ):
            if len(have) != len(want):
                raise self.error(f"{function.name} has {len(want)} {what}, the call {len(have)}")
        if function not in self.reached:
            self.reached.append(function)
        if self.recursion is not None and function in self.recursion.members:
            self.enter(call, function, self.recursion)
        elif function in self.reaches(function):
            self.recurse(call, function)
        else:
            self.inline(call, function)

    def scopes(self, function: Kernel) -> dict[Scope, Scope]:
        """The blocks of a new copy of a function, by the function's."""
        self.copies += 1
        scopes: dict[Scope, Scope] = {}
        for old in function.scopes:
            parent = scopes[old.parent] if old.parent is not None else None
            scopes[old] = Scope(parent, old.registers, old.ranges, {}, old.variables, old.lists, old.prototypes)
        self.places[scopes[function.scopes[0]]] = {}
        return scopes

    def inline(self, call: _Call, function: Kernel) -> None:
        if len(self.path) > DEEPEST:
            raise self.error(f"calls more than {DEEPEST} deep are not implemented")
        scopes = self.scopes(function)
        root = scopes[function.scopes[0]]
        pairs = [*zip(function.params, call.args, strict=True), *zip(function.results, call.results, strict=True)]
        for formal, actual in pairs:
            place = self.find(actual, call.scope)
            if formal.space == "param":
                self.places[root][formal.name] = place or self.allocate(formal, "local")
        self.pass_in(call, root, function)
        self.locals(function, scopes)
        self.path.append(function)
        self.body(function, scopes)
        self.path.pop()
        self.instruction = call.instruction
        self.pass_out(call, root, function)

    # Recursion

    def reaches(self, function: Kernel) -> set[Kernel]:
        """The functions that a call of `function` may lead to."""
        if function not in self.reach:
            self.reach[function] = set()
            waiting = [function]
            while waiting:
                new = self.callees(waiting.pop()) - self.reach[function]
                self.reach[function] |= new
                waiting.extend(new)
        return self.reach[function]

    def callees(self, function: Kernel) -> set[Kernel]:
        before, found = self.instruction, set()
        for instruction in function.instructions:
            if instruction.mnemonic == "call":
                self.instruction = instruction
                _, target, _, listed = self.parts(instruction)
                if instruction.scope.register(target):
                    found |= set(self.candidates(target, listed, instruction.scope))
                elif target in self.syntax.functions:
                    found.add(self.syntax.functions[target])
        self.instruction = before
        return found

    def recurse(self, call: _Call, function: Kernel) -> None:
        """A call from outside: all levels of the recursion follow it."""
        members = frozenset(f for f in self.reaches(function) if function in self.reaches(f))
        size = sum(len(f.instructions) for f in self.reaches(function))
        levels = max(FEWEST_LEVELS, min(MOST_LEVELS, LEVELS_INSTRUCTIONS // size))
        around, self.recursion = self.recursion, _Recursion(members, levels)
        recursion = self.recursion
        self.enter(call, function, recursion)
        self.emit("bra", call.scope, Name(AFTER))
        while recursion.waiting:
            copy = recursion.waiting.pop(0)  # by level: all calls that enter it are known
            recursion.level = copy.level
            start = len(self.out)
            self.path.append(copy.function)
            self.body(copy.function, copy.scopes)
            self.path.pop()
            self.labels[copy.root][ENTRY] = start
            self.go_back(copy)
        self.recursion, self.instruction = around, call.instruction

    def enter(self, call: _Call, function: Kernel, recursion: _Recursion) -> None:
        level = recursion.level + 1
        if level > recursion.levels:
            self.emit("trap", call.scope, Group((Immediate(3),)))
            return
        copy = recursion.copies.get((function, level))
        if copy is None:
            copy = recursion.copies[function, level] = _Copy(function, level, self.scopes(function))
            copy.root.registers = {**copy.root.registers, SITE: "u32", HIT: "pred"}
            for formal in (*function.params, *function.results):
                if formal.space == "param":
                    self.places[copy.root][formal.name] = self.allocate(formal, "local")
            self.locals(function, copy.scopes)
            recursion.waiting.append(copy)
        self.pass_in(call, copy.root, function)
        self.emit("mov.u32", call.scope, self.alias(call, copy.root, SITE), Immediate(len(copy.sites)))
        self.emit("bra", copy.root, Name(ENTRY))
        back = f".back{len(self.out)}"
        copy.sites.append((call, back))
        self.labels[call.scope][back] = len(self.out)
        self.pass_out(call, copy.root, function)

    def go_back(self, copy: _Copy) -> None:
        """After a body: a chain of branches to the calls that may have entered it."""
        last = len(copy.sites) - 1
        for number, (call, back) in enumerate(copy.sites):
            if number < last:
                self.emit("setp.eq.u32", copy.root, Name(HIT), Name(SITE), Immediate(number))
            guard = self.alias(call, copy.root, HIT).text if number < last else None
            self.emit("bra", call.scope, Name(back), guard=guard)

    # What a call passes

    def alias(self, call: _Call, root: Scope, name: str) -> Name:
        """A name in the call's scope for a register of the function."""
        call.values += 1
        call.scope.aliases[f".{call.values}"] = root, name
        return Name(f".{call.values}")

    def given(self, call: _Call, formal: Variable, actual: Operand) -> Place | None:
        """The place of a .param variable that a call names."""
        place = self.find(actual, call.scope)
        if place is not None and place.size < formal.size:
            raise self.error(f"{formal.name} has {formal.size} bytes, what the call gives {place.size}")
        return place

    def pass_in(self, call: _Call, root: Scope, function: Kernel) -> None:
        for formal, actual in zip(function.params, call.args, strict=True):
            place, own = self.given(call, formal, actual), self.places[root].get(formal.name)
            if own is None:
                register = self.alias(call, root, formal.name)
                self.move(call, formal, register, actual if place is None else place)
            else:
                self.move(call, formal, own, actual if place is None else place)

    def pass_out(self, call: _Call, root: Scope, function: Kernel) -> None:
        for formal, actual in zip(function.results, call.results, strict=True):
            place, own = self.given(call, formal, actual), self.places[root].get(formal.name)
            if actual != Name("_"):
                source = self.alias(call, root, formal.name) if own is None else own
                self.move(call, formal, actual if place is None else place, source)

    def move(self, call: _Call, formal: Variable, to: Operand | Place, source: Operand | Place) -> None:
        """Copies a parameter's value between registers and places, unless they are the same."""
        kind = f"b{TYPE_BITS[formal.type]}" if formal.type != "pred" else "pred"
        if not isinstance(to, Place):
            if isinstance(source, Place):
                self.emit(f"ld.param::func.{kind}", call.scope, to, _at(source))
            else:
                self.emit(f"mov.{kind}", call.scope, to, source)
        elif not isinstance(source, Place):
            self.emit(f"st.param::func.{kind}", call.scope, _at(to), source)
        elif to.address != source.address:
            # One byte at a time where the bytes between a structure's members may have no value.
            size = formal.size if formal.size <= 8 and not formal.extents else 1
            value = self.temporary(call, f"b{max(16, 8 * size)}")
            for offset in range(0, formal.size, size):
                self.emit(f"ld.param::func.b{8 * size}", call.scope, value, _at(source, offset))
                self.emit(f"st.param::func.b{8 * size}", call.scope, _at(to, offset), value)

    def indirect(self, call: _Call) -> None:
        """A chain of comparisons with the addresses of the functions that may be meant."""
        candidates = self.candidates(call.target, call.listed, call.scope)
        addresses = function_addresses(self.syntax)
        call.scope.registers[".other"] = "pred"
        for n, function in enumerate(candidates):
            address = Immediate(addresses[function.name])
            self.emit("setp.ne.u64", call.scope, Name(".other"), Name(call.target), address)
            self.emit("bra", call.scope, Name(f".next{n}"), guard=".other")
            self.direct(call, function)
            self.emit("bra", call.scope, Name(AFTER))
            self.labels[call.scope][f".next{n}"] = len(self.out)
        self.emit("trap", call.scope, Group((Immediate(2),)))

    def candidates(self, target: str, listed: str | None, scope: Scope) -> list[Kernel]:
        for around in scope.outward():
            if listed in around.lists:
                names = around.lists[listed]
                unknown = [n for n in names if n not in self.syntax.functions or not self.syntax.functions[n].defined]
                if unknown:
                    raise self.error(f"the function {unknown[0]} is not defined")
                return [self.syntax.functions[name] for name in names]
            if listed in around.prototypes:
                signature, taken = around.prototypes[listed], self.taken
                functions = self.syntax.functions.values()
                return [f for f in functions if f.defined and f.name in taken and f.signature == signature]
        raise self.error(f"a call through {target} needs the list or the prototype of its targets")

    @functools.cached_property
    def taken(self) -> set[str]:
        """The functions whose address the module uses as a value."""
        names = {r.name for variable in self.syntax.globals for r in variable.relocations}
        for function in (*self.syntax.functions.values(), *self.syntax.kernels.values()):
            for instruction in function.instructions:
                if instruction.mnemonic == "mov":
                    names |= {x.text for x in instruction.operands[1:] if isinstance(x, Name)}
        return names

    def runtime(self, call: _Call) -> None:
        """vprintf and __assertfail, which the core has as operations."""
        takes, returns = RUNTIME[call.target]
        if len(call.args) != len(takes) or len(call.results) != len(returns):
            raise self.error(f"{call.target} has {len(takes)} arguments and {len(returns)} results")
        values: list[Operand] = []
        for kind, arg in zip(takes, call.args, strict=True):
            place = self.find(arg, call.scope)
            if place is None:
                values.append(arg)
                continue
            values.append(self.temporary(call, kind))
            self.emit(f"ld.param::func.{kind}", call.scope, values[-1], _at(place))
        results = [self.temporary(call, kind) for kind in returns]
        self.emit(f"call.{call.target}", call.scope, *results, *values)
        for kind, result, actual in zip(returns, results, call.results, strict=True):
            place = self.find(actual, call.scope)
            if place is not None:
                self.emit(f"st.param::func.{kind}", call.scope, _at(place), result)
            elif actual != Name("_"):
                self.emit(f"mov.{kind}", call.scope, actual, result)

    def temporary(self, call: _Call, kind: str) -> Name:
        call.values += 1
        call.scope.registers[f".{call.values}"] = kind
        return Name(f".{call.values}")


def _at(place: Place, offset: int = 0) -> Address:
    return Address(Immediate(place.address + offset), 0)
