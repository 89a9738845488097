"""PTX text to syntax: modules, functions and their bodies (PTX ISA, chapters "Syntax" and "Directives")."""

import math
import re
from collections.abc import Callable

from lowbitvm.runtime.emulator.operands import Malformed, Reader, number
from lowbitvm.runtime.emulator.syntax import (
    TYPE_BITS,
    Address,
    Immediate,
    Instruction,
    Kernel,
    Name,
    Operand,
    Relocation,
    Scope,
    Syntax,
    Variable,
    Vector,
)

NAME = r"[A-Za-z_$%][\w$]*"
COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/|/\*', re.DOTALL)
# One statement of a body; the last group that matched says which kind.
STATEMENT = re.compile(
    rf"""\s*(?:
        (?P<label>{NAME})\s*:(?!:)
      | (?:@\s*(?P<negated>!?)\s*(?P<guard>{NAME})\s+)?(?P<word>[a-z]\w*(?:\.\w+(?:::\w+)*)*)(?P<rest>[^;]*);
      | (?P<directive>\.[A-Za-z_]\w*)
      | (?P<open>\{{)
      | (?P<close>\}})
    )""",
    re.VERBOSE | re.ASCII,
)
# The common operands: a name, a name in brackets with or without a constant, a decimal number.
SIMPLE = re.compile(
    rf"""\s*(?:
        (?P<name>{NAME}(?:\.\w+)*)
      | \[\s*(?P<base>{NAME}(?:\.\w+)*)\s*(?:\+\s*(?P<offset>-?(?:0|[1-9]\d{{0,15}})))?\s*\]
      | (?P<decimal>-?(?:0|[1-9]\d{{0,15}}))
    )\s*""",
    re.VERBOSE | re.ASCII,
)
NESTED = re.compile(r"(?:[^,{}()\[\]]+|\{[^{}]*\}|\[[^\[\]{}]*\])+")  # an operand that may hold commas in braces
LOCATION = re.compile(
    rf"\s*(\d{{1,9}})\s+(\d{{1,9}})\s+(\d{{1,9}})"
    rf"(?:\s*,\s*(?:function_name\s+{NAME}(?:\s*\+\s*\d+)?|inlined_at\s+(\d{{1,9}})\s+(\d{{1,9}})\s+(\d{{1,9}})))*",
    re.ASCII,
)
VERSION = re.compile(r"\d{1,4}\.\d{1,4}", re.ASCII)
SPACES = (".global", ".const", ".shared", ".local", ".param")
OPAQUE = (".texref", ".samplerref", ".surfref")
LINKING = (".visible", ".weak", ".extern", ".common")
# Directives between a function's head and its body, with the most numbers each takes.
PERFORMANCE = {".maxntid": 3, ".reqntid": 3, ".minnctapersm": 1, ".maxnctapersm": 1, ".maxnreg": 1, ".noreturn": 0}
PERFORMANCE |= {".reqnctapercluster": 3, ".explicitcluster": 0, ".maxclusterrank": 1, ".blocksareclusters": 0}
PERFORMANCE |= {".abi_preserve": 1, ".abi_preserve_control": 1}
MOST_INITIAL = 1 << 28
LARGEST = {".shared": 48 << 10, ".local": 512 << 10, ".param": 1 << 16, ".const": 64 << 10, ".global": 1 << 32}


def parse(text: str) -> Syntax:
    """Parse a PTX module. Raises PtxError."""
    starts = [0] + [match.end() for match in re.finditer("\n", text)]
    syntax = Syntax(text, "sm_75", {}, [], [], starts)
    try:
        _Parser(syntax).module()
    except Malformed as error:
        raise syntax.error(error.problem, min(error.position, len(text))) from None
    return syntax


def _without_comments(text: str) -> str:
    """The text with comments blanked, of the same length."""
    if "/" not in text:
        return text

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        if found == "/*":
            raise Malformed("the comment does not end", match.start())
        return found if found[0] == '"' else re.sub(r"[^\n]", " ", found)

    return COMMENT.sub(blank, text)


class _Parser:
    """Reads the module level token by token, and bodies statement by statement."""

    def __init__(self, syntax: Syntax) -> None:
        self.syntax = syntax
        self.text = _without_comments(syntax.text)
        self.reader = Reader(self.text, 0)
        self.words: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.known: dict[str, Operand] = {}  # by their text
        self.directives: dict[str, Callable[[], None]] = {
            ".version": self.version,
            ".target": self.target,
            ".address_size": self.address_size,
            ".file": self.file,
            ".section": self.section,
            ".pragma": self.pragma,
            ".alias": self.alias,
            ".entry": lambda: self.function(is_entry=True),
            ".func": lambda: self.function(is_entry=False),
        }

    # Module level

    def module(self) -> None:
        reader = self.reader
        while reader.next[0] != "end":
            _, text, position = reader.take()
            linking: set[str] = set()
            while text in LINKING:
                linking.add(text)
                _, text, position = reader.take()
            if text in SPACES[:-1]:
                self.module_variables(text, ".extern" in linking)
            elif text in OPAQUE:
                raise Malformed(f"{text} variables are not implemented", position)
            elif text in self.directives:
                self.directives[text]()
            else:
                problem = f"{text} is not implemented" if text.startswith(".") else f"unexpected {text!r}"
                raise Malformed(f"{problem} at the module's level", position)

    def version(self) -> None:
        kind, text, position = self.reader.take()
        if kind != "float" or not VERSION.fullmatch(text):
            raise Malformed("expected a version like 8.0", position)
        self.syntax.version = float(text)

    def target(self) -> None:
        words = [self.reader.word()]
        while self.reader.accept(","):
            words.append(self.reader.word())
        self.syntax.target = next((word for word in words if word.startswith("sm_")), words[0])

    def address_size(self) -> None:
        position = self.reader.next[2]
        if self.reader.whole() != 64:
            raise Malformed("only 64-bit addresses are supported", position)

    def file(self) -> None:
        number = self.reader.count("the number of a .file")
        self.syntax.files[number] = self.reader.string()
        while self.reader.accept(","):
            self.reader.whole()

    def section(self) -> None:
        position = self.reader.next[2]
        end = self.text.find("}", position)
        if end < 0:
            raise Malformed("the section does not end", position)
        self.reader.jump(end + 1)

    def pragma(self) -> None:
        self.reader.string()
        while self.reader.accept(","):
            self.reader.string()
        self.reader.expect(";")

    def alias(self) -> None:
        position = self.reader.next[2]
        alias = self.reader.word()
        self.reader.expect(",")
        target = self.reader.word()
        self.reader.expect(";")
        functions = self.syntax.functions
        if alias not in functions or not functions.get(target, functions[alias]).defined:
            raise Malformed(f"{alias} is no declared function, or {target} no defined one", position)
        functions[alias] = functions[target]

    # Variables

    def module_variables(self, space: str, external: bool) -> None:
        for variable in self.variables(self.reader, space, external):
            if external and not (space == ".shared" and not variable.size):
                raise Malformed(f"{variable.name} is defined in no module", variable.position)
            self.declare(self.syntax.names, variable)
            lists = {".shared": self.syntax.shared, ".local": self.syntax.locals}
            lists.get(space, self.syntax.globals).append(variable)
        self.reader.expect(";")

    def declare(self, names: dict[str, Variable], variable: Variable) -> None:
        if variable.name in names or (names is self.syntax.names and variable.name in self.syntax.functions):
            raise Malformed(f"{variable.name} is declared twice", variable.position)
        names[variable.name] = variable

    def variables(self, reader: Reader, space: str, external: bool = False) -> list[Variable]:
        """`.align 16 .b8 name[64] = {...}, other`: the part of a declaration after the state space."""
        alignment, kind, elements = 0, "", 1
        while reader.next[1].startswith("."):
            _, word, position = reader.take()
            if word == ".align":
                alignment = self.alignment(reader)
            elif word in (".v2", ".v4"):
                elements = int(word[2])
            elif word[1:] in TYPE_BITS and word != ".pred":
                kind = word[1:]
            elif word == ".ptr":  # what a parameter points to: its space and alignment
                while reader.next[1] in (".global", ".const", ".shared", ".local", ".align"):
                    if reader.take()[1] == ".align":
                        self.alignment(reader)
            elif word == ".attribute":
                reader.expect("(")
                while not reader.accept(")"):
                    if reader.take()[0] == "end":
                        raise Malformed("the attribute does not end", position)
            elif word in OPAQUE:
                raise Malformed(f"{word} variables are not implemented", position)
            else:
                raise Malformed(f"{word} is not implemented in a variable's declaration", position)
        if not kind:
            reader.fail("the declaration has no type")
        found = [self.variable(reader, space, external, kind, elements, alignment)]
        while reader.next[1] == "," and space != ".param" and reader.accept(","):
            found.append(self.variable(reader, space, external, kind, elements, alignment))
        return found

    def alignment(self, reader: Reader) -> int:
        position = reader.next[2]
        value = reader.count("an alignment")
        if value < 1 or value & (value - 1) or value > 1 << 16:
            raise Malformed(f"an alignment is a power of two, not {value}", position)
        return value

    def variable(
        self, reader: Reader, space: str, external: bool, kind: str, elements: int, alignment: int
    ) -> Variable:
        position, name = reader.next[2], reader.word()
        extents: tuple[int, ...] = ()
        while reader.accept("["):
            extents += (0 if reader.next[1] == "]" else reader.count("an array's extent"),)
            reader.expect("]")
        unit = max(TYPE_BITS[kind] // 8, 1) * elements
        values, relocations = b"", list[Relocation]()
        if reader.accept("="):
            if space not in (".global", ".const"):
                raise Malformed(f"a {space} variable has no initial value", position)
            if unit * math.prod(extents[1:]) * max(extents[:1] or (1,)) > MOST_INITIAL:
                raise Malformed(f"{name} has more than {MOST_INITIAL} bytes and initial values", position)
            shape = (*extents, elements) if elements > 1 else extents
            values, relocations, count = reader.initial(kind, shape, elements > 1)
            extents = (count, *extents[1:]) if extents and not extents[0] else extents
        size = unit * math.prod(extents)
        if not size and not (external or space == ".param"):
            raise Malformed(f"the array {name} has no elements", position)
        if size > LARGEST[space]:
            raise Malformed(f"{name} has {size} bytes, a {space} variable at most {LARGEST[space]}", position)
        where = (external, values, space[1:], extents, elements, tuple(relocations), position)
        return Variable(name, size, alignment or unit, kind, *where)

    # Functions

    def function(self, is_entry: bool) -> None:
        reader = self.reader
        if reader.accept(".attribute"):
            while not reader.accept(")"):
                if reader.take()[0] == "end":
                    reader.fail("the attribute does not end")
        results = self.parameters(reader) if reader.accept("(") else []
        position, name = reader.next[2], reader.word()
        params = self.parameters(reader) if reader.accept("(") else []
        kernel = Kernel(name, params, results, is_entry, position=position)
        self.performance(kernel)
        others = self.syntax.functions if is_entry else self.syntax.kernels
        own = self.syntax.kernels if is_entry else self.syntax.functions
        if name in others or name in self.syntax.names:
            raise Malformed(f"{name} is declared twice", position)
        earlier = own.get(name)
        if earlier is not None and earlier.signature != kernel.signature:
            raise Malformed(f"{name} was declared with other parameters", position)
        if reader.accept(";"):
            own.setdefault(name, kernel)
            return
        if earlier is not None and earlier.defined:
            raise Malformed(f"{name} is defined twice", position)
        if reader.next[1] != "{":
            reader.fail(f"expected '{{', found {reader.next[1]!r}")
        kernel.defined = True
        if earlier is not None:  # calls before the definition refer to the declaration
            earlier.__dict__.update(kernel.__dict__)
            kernel = earlier
        own[name] = kernel
        reader.jump(_Body(self, kernel).read(reader.next[2] + 1))

    def parameters(self, reader: Reader) -> list[Variable]:
        def read() -> Variable:
            _, space, position = reader.take()
            if space not in (".param", ".reg"):
                raise Malformed(f"expected .param, found {space!r}", position)
            (variable,) = self.variables(reader, ".param")
            variable.space = space[1:]
            return variable

        found = reader.list_of(read, ")")
        named = [variable.name for variable in found if variable.name != "_"]
        for n, name in enumerate(named):
            if name in named[:n]:
                reader.fail(f"{name} is declared twice")
        return found

    def performance(self, kernel: Kernel) -> None:
        reader = self.reader
        while reader.next[0] == "word":
            _, directive, position = reader.take()
            if directive == ".pragma":
                self.pragma()
                continue
            if directive not in PERFORMANCE:
                raise Malformed(f"{directive} is not implemented", position)
            numbers: list[int] = []
            while reader.next[0] == "integer" or (numbers and reader.accept(",")):
                numbers.append(reader.count(f"a number of {directive}"))
            most = PERFORMANCE[directive]
            if len(numbers) > most or (most and not numbers):
                raise Malformed(f"{directive} takes {most} numbers, not {len(numbers)}", position)
            x, y, z = (*numbers, 1, 1, 1)[:3]
            if directive == ".reqntid":
                kernel.required_block = (x, y, z)
            elif directive == ".maxntid":
                kernel.most_block = (x, y, z)
            elif directive == ".explicitcluster":
                kernel.explicit_cluster = True
            elif directive == ".reqnctapercluster" and (x, y, z) != (1, 1, 1):
                raise Malformed("clusters of more than one block are not implemented", position)


class _Body:
    """Reads the body of one function."""

    def __init__(self, parser: _Parser, kernel: Kernel) -> None:
        self.parser, self.syntax, self.kernel = parser, parser.syntax, kernel
        self.text, self.words, self.known = parser.text, parser.words, parser.known
        self.scope = Scope(None)
        kernel.scopes.append(self.scope)
        self.label = ""  # the label before the current statement
        for variable in (*kernel.params, *kernel.results):
            if kernel.is_entry:
                continue
            if variable.space == "reg":
                self.declare_register(variable.name, variable.type, None, variable.position)
            else:
                parser.declare(self.scope.variables, variable)

    def read(self, position: int) -> int:
        """Reads statements up to the closing brace; where that ends."""
        kernel, match_statement = self.kernel, STATEMENT.match
        kernel.start = position
        self.syntax.locations.append((position, -1, 0))
        while True:
            match = match_statement(self.text, position)
            if match is None:
                raise self.unreadable(position)
            kind, position = match.lastgroup, match.end()
            if kind == "rest":
                self.instruction(match)
            elif kind == "directive":
                position = self.directive(match.group("directive"), match.start("directive"), position)
            elif kind == "label":
                self.add_label(match.group("label"), match.start("label"))
            elif kind == "open":
                self.scope = Scope(self.scope)
                kernel.scopes.append(self.scope)
            elif self.scope.parent is not None:
                self.scope = self.scope.parent
            else:
                kernel.end = position - 1
                break
        kernel.mnemonics |= {instruction.mnemonic for instruction in kernel.instructions}
        return position

    def unreadable(self, position: int) -> Malformed:
        reader = Reader(self.text, position)
        if reader.next[0] == "end":
            return Malformed(f"the body of {self.kernel.name} does not end", reader.next[2])
        if re.compile(r"\s*(?:@|[a-z])").match(self.text, position) and ";" not in self.text[position:]:
            return Malformed("the statement does not end with ';'", reader.next[2])
        return Malformed(f"expected an instruction, found {reader.next[1]!r}", reader.next[2])

    def add_label(self, name: str, position: int) -> None:
        if name in self.scope.labels:
            raise Malformed(f"the label {name} is placed twice", position)
        self.scope.labels[name] = len(self.kernel.instructions)
        self.label = name

    # Instructions

    def instruction(self, match: re.Match[str]) -> None:
        _, negated, guard, word, rest = match.groups()[:5]
        if word not in self.words:
            mnemonic, *qualifiers = word.split(".")
            self.words[word] = mnemonic, tuple(qualifiers)
        mnemonic, kinds = self.words[word]
        start = match.start("word")
        if mnemonic == "call":
            operands = self.call(match.start("rest"), match.end("rest"))
        elif not rest or rest.isspace():
            operands = ()
        else:
            pieces = NESTED.findall(rest) if "{" in rest else rest.split(",")
            try:
                operands = tuple([self.known[piece] for piece in pieces])
            except KeyError:
                operands = self.new_operands(rest, pieces, match.start("rest"))
        self.kernel.instructions.append(
            Instruction(mnemonic, kinds, operands, guard, negated == "!", start, self.scope)
        )

    def new_operands(self, rest: str, pieces: list[str], start: int) -> tuple[Operand, ...]:
        """The operands in `rest`, at `start` of the text; `pieces` are their texts where they are plain."""
        if ",".join(pieces) == rest:
            found: list[Operand] = []
            for piece in pieces:
                if piece not in self.known:
                    operand = self.plain(piece)
                    if operand is None:
                        break
                    self.known[piece] = operand
                found.append(self.known[piece])
            else:
                return tuple(found)
        reader = Reader(self.text, start, start + len(rest))
        operands = [reader.operand()]
        while reader.accept(","):
            operands.append(reader.operand())
        reader.finish()
        if len(operands) == len(pieces):
            self.known |= zip(pieces, operands, strict=True)
        return tuple(operands)

    def plain(self, piece: str) -> Operand | None:
        """A name, an address, a decimal number or a vector of names; None for what needs the reader."""
        match = SIMPLE.fullmatch(piece)
        if match is not None:
            name, base, offset, decimal = match.groups()
            if decimal:
                return Immediate(int(decimal))
            if "WARP_SZ" in (name, base):
                return None
            return Name(name) if name else Address(Name(base), int(offset or 0))
        stripped = piece.strip()
        if not (stripped.startswith("{") and stripped.endswith("}")):
            return None
        items = [SIMPLE.fullmatch(item) for item in stripped[1:-1].split(",")]
        names = [item.group("name") for item in items if item is not None and item.group("name")]
        if len(names) < len(items) or "WARP_SZ" in names:
            return None
        return Vector(tuple(map(Name, names)))

    def call(self, start: int, end: int) -> tuple[Operand, ...]:
        reader = Reader(self.text, start, end)
        operands = [reader.group()]
        while reader.accept(","):
            operands.append(reader.group())
        reader.finish()
        return tuple(operands)

    # Directives inside a body

    def directive(self, name: str, start: int, position: int) -> int:
        """Where the directive ends."""
        label, self.label = self.label, ""
        if name == ".loc":
            match = LOCATION.match(self.text, position)
            if match is None:
                raise Malformed("expected .loc file line column", start)
            file, line, column, *caller = (int(group) for group in match.groups() if group is not None)
            self.syntax.locations.append((start, file, line))
            if caller:
                self.syntax.callers[start] = (file, line, column), (caller[0], caller[1], caller[2])
            return match.end()
        reader = Reader(self.text, position)
        if name == ".reg":
            self.registers(reader)
        elif name in SPACES:
            self.body_variables(reader, name)
        elif name == ".pragma":
            reader.list_of(reader.string, ";")
        elif name in (".branchtargets", ".calltargets"):
            self.labelled(label, name, start)
            names = tuple(reader.list_of(reader.word, ";"))
            self.scope.lists[label] = names
        elif name == ".callprototype":
            self.labelled(label, name, start)
            self.prototype(reader, label)
        else:
            raise Malformed(f"{name} is not implemented", start)
        return reader.next[2]

    def labelled(self, label: str, directive: str, position: int) -> None:
        if self.scope.labels.pop(label, None) is None:
            raise Malformed(f"{directive} has no label", position)

    def prototype(self, reader: Reader, label: str) -> None:
        results = self.parser.parameters(reader) if reader.accept("(") else []
        reader.word()
        params = self.parser.parameters(reader) if reader.accept("(") else []
        while reader.next[1] in PERFORMANCE:
            if PERFORMANCE[reader.take()[1]]:
                reader.whole()
        reader.expect(";")
        self.scope.prototypes[label] = Kernel(label, params, results).signature

    def registers(self, reader: Reader) -> None:
        _, kind, position = reader.take()
        if kind in (".v2", ".v4"):
            raise Malformed(f"registers of type {kind} are not implemented", position)
        if not kind.startswith(".") or kind[1:] not in TYPE_BITS:
            raise Malformed(f"registers of type {kind} are not implemented", position)

        def read() -> None:
            position, name, count = reader.next[2], reader.word(), None
            if reader.accept("<"):
                if reader.next[0] != "integer":
                    reader.fail(f"expected a number of registers, found {reader.next[1]!r}")
                count = reader.integer(number(reader.take()), position)
                reader.expect(">")
            self.declare_register(name, kind[1:], count, position)

        reader.list_of(read, ";")

    def declare_register(self, name: str, kind: str, count: int | None, position: int) -> None:
        scope = self.scope
        if "." in name or name == "_":
            raise Malformed(f"{name} is no name of a register", position)
        names = scope.registers if count is None else scope.ranges
        if name in names or name in scope.variables:
            raise Malformed(f"{name} is declared twice", position)
        if count is None:
            scope.registers[name] = kind
        else:
            scope.ranges[name] = kind, count
        ranged = (name,) if count is None else scope.registers
        both = next((register for register in ranged if scope.of_range(register)), None)
        if both is not None:
            raise Malformed(f"{both} is declared twice", position)

    def body_variables(self, reader: Reader, space: str) -> None:
        variables = self.parser.variables(reader, space)
        reader.expect(";")
        for variable in variables:
            if variable.name in self.scope.registers:
                raise Malformed(f"{variable.name} is declared twice", variable.position)
            self.parser.declare(self.scope.variables, variable)
            if space in (".global", ".const"):
                self.syntax.globals.append(variable)
