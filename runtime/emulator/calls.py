"""Calls become copies of the called function's body, jump tables chains of branches.

The core knows neither. Every copy has registers, labels and local variables of its own; what a call passes in .param
variables lies in local memory, where the caller's variable and the function's parameter are the same bytes.
"""

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
# Functions of the CUDA runtime: the types of what they take and return.
RUNTIME = {"vprintf": (("b64", "b64"), ("b32",)), "__assertfail": (("b64", "b64", "b32", "b64", "b64"), ())}
AFTER, RETURN = ".after", ".return"  # labels that no PTX name can clash with


@dataclass
class Expansion:
    """A kernel without calls and jump tables."""

    instructions: list[Instruction]
    labels: dict[Scope, dict[str, int]]
    places: dict[Scope, dict[str, Place]]  # of local variables and of functions' parameters
    local_size: int
    reached: list[Kernel]  # the kernel and the functions whose bodies it holds


def expand(syntax: Syntax, kernel: Kernel) -> Expansion:
    """Raises PtxError for recursion and for functions without a body."""
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
        scope.registers[".hit"] = "pred"
        for number, target in enumerate(targets):
            self.emit("setp.eq.u32", scope, Name(".hit"), index, Immediate(number))
            self.emit("bra", scope, Name(target), guard=".hit")
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
        operands = list(instruction.operands)
        results = operands.pop(0) if isinstance(operands[0], Group) else Group(())
        target = operands.pop(0) if operands else None
        args = operands.pop(0) if operands and isinstance(operands[0], Group) else Group(())
        listed = operands.pop(0) if operands else None
        if not isinstance(target, Name) or operands or not isinstance(listed, Name | None):
            raise self.error(
                "a call takes (results), a function, (arguments), and the list or prototype of its targets"
            )
        assert isinstance(results, Group) and isinstance(args, Group)
        if not set(instruction.qualifiers) <= {"uni"}:
            raise self.error(f"the instruction {instruction.name} is not implemented")
        scope = self.guarded(instruction, around)
        last = listed.text if listed is not None else None
        call = _Call(instruction, results.items, target.text, args.items, last, scope)
        function = self.syntax.functions.get(target.text)
        if around.register(target.text):
            self.indirect(call)
        elif function is not None and function.defined:
            self.direct(call, function)
        elif target.text in RUNTIME and function is not None:
            self.runtime(call)
        else:
            state = "has no body here" if function else "is not declared"
            raise self.error(f"the function {target.text} {state}")
        self.labels[scope][AFTER] = len(self.out)

    def direct(self, call: _Call, function: Kernel) -> None:
        if function in self.path:
            names = " -> ".join(f.name for f in (*self.path[self.path.index(function) :], function))
            raise self.error(f"recursion is not implemented: {names}")
        if len(self.path) > DEEPEST:
            raise self.error(f"calls more than {DEEPEST} deep are not implemented")
        self.copies += 1
        if function not in self.reached:
            self.reached.append(function)
        for what, have, want in (
            ("arguments", call.args, function.params),
            ("results", call.results, function.results),
        ):
            if len(have) != len(want):
                raise self.error(f"{function.name} has {len(want)} {what}, the call {len(have)}")
        scopes: dict[Scope, Scope] = {}
        for old in function.scopes:
            parent = scopes[old.parent] if old.parent is not None else None
            scopes[old] = Scope(parent, old.registers, old.ranges, {}, old.variables, old.lists, old.prototypes)
        root = scopes[function.scopes[0]]
        self.places[root] = {}
        for formal, actual in zip(function.params, call.args, strict=True):
            self.pass_in(call, root, formal, actual)
        returned = [
            self.pass_out(call, root, formal, actual)
            for formal, actual in zip(function.results, call.results, strict=True)
        ]
        self.locals(function, scopes)
        self.path.append(function)
        self.body(function, scopes)
        self.path.pop()
        self.instruction = call.instruction
        for name, operands in (move for move in returned if move):
            self.emit(name, call.scope, *operands)

    def shared_bytes(self, call: _Call, root: Scope, formal: Variable, actual: Operand) -> Place | None:
        """The place of a .param variable that the caller gives for a .param of the function, which gets it too."""
        place = self.find(actual, call.scope)
        if place is not None and place.size < formal.size:
            raise self.error(f"{formal.name} has {formal.size} bytes, what the call gives {place.size}")
        if formal.space == "param":
            self.places[root][formal.name] = place or self.allocate(formal, "local")
        return place

    def alias(self, call: _Call, root: Scope, formal: Variable) -> Name:
        """A name in the call's scope for a register of the function."""
        call.values += 1
        call.scope.aliases[f".{call.values}"] = root, formal.name
        return Name(f".{call.values}")

    def pass_in(self, call: _Call, root: Scope, formal: Variable, actual: Operand) -> None:
        place = self.shared_bytes(call, root, formal, actual)
        kind = f"b{TYPE_BITS[formal.type]}" if formal.type != "pred" else "pred"
        if formal.space == "reg":
            register = self.alias(call, root, formal)
            if place is None:
                self.emit(f"mov.{kind}", call.scope, register, actual)
            else:
                self.emit(f"ld.param::func.{kind}", call.scope, register, _at(place))
        elif place is None:
            self.emit(f"st.param::func.{kind}", call.scope, _at(self.places[root][formal.name]), actual)

    def pass_out(
        self, call: _Call, root: Scope, formal: Variable, actual: Operand
    ) -> tuple[str, tuple[Operand, Operand]] | None:
        """The move that brings a result to where the call wants it, after the body."""
        place = self.shared_bytes(call, root, formal, actual)
        kind = f"b{TYPE_BITS[formal.type]}" if formal.type != "pred" else "pred"
        if actual == Name("_"):
            return None
        if formal.space == "reg":
            register = self.alias(call, root, formal)
            if place is None:
                return f"mov.{kind}", (actual, register)
            return f"st.param::func.{kind}", (_at(place), register)
        if place is None:
            return f"ld.param::func.{kind}", (actual, _at(self.places[root][formal.name]))
        return None

    def indirect(self, call: _Call) -> None:
        """A chain of comparisons with the addresses of the functions that may be meant."""
        candidates, addresses = self.candidates(call), function_addresses(self.syntax)
        call.scope.registers[".other"] = "pred"
        for n, function in enumerate(candidates):
            address = Immediate(addresses[function.name])
            self.emit("setp.ne.u64", call.scope, Name(".other"), Name(call.target), address)
            self.emit("bra", call.scope, Name(f".next{n}"), guard=".other")
            self.direct(call, function)
            self.emit("bra", call.scope, Name(AFTER))
            self.labels[call.scope][f".next{n}"] = len(self.out)
        self.emit("trap", call.scope, Group((Immediate(2),)))

    def candidates(self, call: _Call) -> list[Kernel]:
        for scope in call.scope.outward():
            if call.listed in scope.lists:
                names = scope.lists[call.listed]
                unknown = [n for n in names if n not in self.syntax.functions or not self.syntax.functions[n].defined]
                if unknown:
                    raise self.error(f"the function {unknown[0]} is not defined")
                return [self.syntax.functions[name] for name in names]
            if call.listed in scope.prototypes:
                signature, taken = scope.prototypes[call.listed], self.taken()
                functions = self.syntax.functions.values()
                return [f for f in functions if f.defined and f.name in taken and f.signature == signature]
        raise self.error(f"a call through {call.target} needs the list or the prototype of its targets")

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


def _at(place: Place) -> Address:
    return Address(Immediate(place.address), 0)
