"""The operands of instructions, and constant expressions (PTX ISA, chapters "Syntax" and "Instruction operands")."""

import re
import struct
from collections.abc import Callable
from typing import NoReturn, TypeVar

from lowbitvm.runtime.emulator.syntax import (
    TYPE_BITS,
    Address,
    Group,
    Immediate,
    Name,
    Negated,
    Not,
    Operand,
    Pair,
    Relocation,
    Vector,
)

TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<string>"[^"\n]*")
    |(?P<float>0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b|(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)
    |(?P<integer>0[xX][0-9a-fA-F]+U?\b|0[bB][01]+U?\b|0[0-7]*U?\b|[1-9]\d*U?\b)
    |(?P<word>(?:[A-Za-z_$]|%[\w$])[\w$]*(?:(?:::|\.)[\w$]+)*|\.[A-Za-z_]\w*(?:(?:::|\.)\w+)*)
    |(?P<mark><<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&^~?:{}()\[\],;|!=@<>])""",
    re.VERBOSE | re.ASCII,
)
Item = TypeVar("Item")
DEEPEST = 60  # nested parentheses and braces
BITS64 = 2**64 - 1
Token = tuple[str, str, int]  # kind, text, position


class Malformed(Exception):
    """Text that is no PTX, at a position of it."""

    def __init__(self, problem: str, position: int) -> None:
        self.problem, self.position = problem, position
        super().__init__(problem)


def number(token: Token) -> Immediate:
    kind, text, position = token
    if kind == "integer":
        unsigned, text = text.endswith("U"), text.rstrip("U")
        base = {"0x": 16, "0X": 16, "0b": 2, "0B": 2}.get(text[:2], 8 if text[0] == "0" else 10)
        if len(text) > 70 or (value := int(text, base)) > BITS64:
            raise Malformed(f"the constant {text[:30]} does not fit 64 bits", position)
        return Immediate(value, None, -64 if unsigned else 0)
    if text[:2] in ("0f", "0F"):
        bits = int(text[2:], 16)
        return Immediate(struct.unpack("<f", struct.pack("<I", bits))[0], bits, 32)
    if text[:2] in ("0d", "0D"):
        bits = int(text[2:], 16)
        return Immediate(struct.unpack("<d", struct.pack("<Q", bits))[0], bits, 64)
    if len(text) > 400:
        raise Malformed("a constant of more than 400 digits", position)
    return Immediate(float(text))


# Constant expressions: precedence and meaning of each operator, as in C.
LEVEL = {"||": 1, "&&": 2, "|": 3, "^": 4, "&": 5, "==": 6, "!=": 6, "<": 7, ">": 7, "<=": 7, ">=": 7}
LEVEL |= {"<<": 8, ">>": 8, "+": 9, "-": 9, "*": 10, "/": 10, "%": 10}
COMPARE: dict[str, Callable[[int | float, int | float], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "||": lambda a, b: bool(a) or bool(b),
    "&&": lambda a, b: bool(a) and bool(b),
}
INTEGER: dict[str, Callable[[int, int], int]] = {
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "&": lambda a, b: a & b,
    "<<": lambda a, b: a << (b & 63),
    ">>": lambda a, b: a >> (b & 63),
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "%": lambda a, b: abs(a) % abs(b) * (1 if a >= 0 else -1),
}
FLOAT: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def _integer(value: int, unsigned: bool) -> Immediate:
    """A 64-bit constant; width -64 marks an unsigned one."""
    value &= BITS64
    if not unsigned and value >> 63:
        value -= 1 << 64
    return Immediate(value, None, -64 if unsigned else 0)


def _is_unsigned(value: Immediate) -> bool:
    return value.width == -64 or (isinstance(value.value, int) and value.value >> 63 > 0)


class Reader:
    """Reads tokens one after the other, `next` being the one to come."""

    def __init__(self, text: str, start: int, end: int | None = None) -> None:
        self.text, self.end, self.depth = text, len(text) if end is None else end, 0
        self.next, self.after = self.scan(start)

    def scan(self, position: int) -> tuple[Token, int]:
        """The token from a position on, and where it ends."""
        while position < self.end:
            match = TOKEN.match(self.text, position, self.end)
            if match is None:
                character = self.text[position]
                raise Malformed(
                    "the string does not end" if character == '"' else f"unexpected character {character!r}", position
                )
            kind = match.lastgroup or ""
            if kind != "space":
                return (kind, match.group(), position), match.end()
            position = match.end()
        return ("end", "end of text", self.end), self.end

    def take(self) -> Token:
        token = self.next
        self.next, self.after = self.scan(self.after)
        return token

    def jump(self, position: int) -> None:
        self.next, self.after = self.scan(position)

    def following(self) -> Token:
        """The token after the next."""
        return self.scan(self.after)[0]

    def accept(self, text: str) -> bool:
        if self.next[1] != text or self.next[0] == "end":
            return False
        self.take()
        return True

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(f"expected {text!r}, found {self.next[1]!r}")

    def fail(self, problem: str) -> NoReturn:
        raise Malformed(problem, self.next[2])

    def word(self) -> str:
        if self.next[0] != "word":
            self.fail(f"expected a name, found {self.next[1]!r}")
        return self.take()[1]

    def string(self) -> str:
        if self.next[0] != "string":
            self.fail(f"expected a string, found {self.next[1]!r}")
        return self.take()[1][1:-1]

    def finish(self) -> None:
        if self.next[0] != "end":
            self.fail(f"expected ',' or ';', found {self.next[1]!r}")

    def list_of(self, read: Callable[[], Item], closing: str) -> list[Item]:
        """Items between commas up to `closing`."""
        found: list[Item] = []
        if self.accept(closing):
            return found
        while True:
            found.append(read())
            if self.accept(closing):
                return found
            self.expect(",")

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail(f"nested more than {DEEPEST} deep")

    # Constant expressions

    def expression(self, level: int = 0) -> Immediate:
        self.deeper()
        left = self.unary()
        while (own := LEVEL.get(self.next[1], 0)) > level and self.next[0] == "mark":
            operator, place = self.take()[1], self.next[2]
            left = self.combine(operator, left, self.expression(own), place)
        if level == 0 and self.accept("?"):
            yes = self.expression()
            self.expect(":")
            no = self.expression()
            left = yes if left.value else no
        self.depth -= 1
        return left

    def combine(self, operator: str, a: Immediate, b: Immediate, place: int) -> Immediate:
        if operator in COMPARE:
            return Immediate(int(COMPARE[operator](a.value, b.value)))
        unsigned = _is_unsigned(a) or (operator not in ("<<", ">>") and _is_unsigned(b))
        try:
            if isinstance(a.value, int) and isinstance(b.value, int):
                values = [v & BITS64 if unsigned else v for v in (a.value, b.value)]
                return _integer(INTEGER[operator](values[0], values[1]), unsigned)
            if operator in FLOAT:
                return Immediate(FLOAT[operator](float(a.value), float(b.value)))
        except (ZeroDivisionError, OverflowError):
            raise Malformed("the constant expression divides by zero or overflows", place) from None
        raise Malformed(f"{operator} takes integers", place)

    def unary(self) -> Immediate:
        kind, text, position = self.next
        if kind in ("integer", "float"):
            return number(self.take())
        if self.accept("WARP_SZ"):
            return Immediate(32)
        if self.accept("("):
            if self.next[1] in (".s64", ".u64"):
                unsigned = self.take()[1] == ".u64"
                self.expect(")")
                return _integer(int(self.integer(self.operand_of_unary(), position)), unsigned)
            value = self.expression()
            self.expect(")")
            return value
        if text not in ("+", "-", "~", "!") or kind != "mark":
            self.fail(f"expected an operand, found {text!r}")
        self.take()
        value = self.operand_of_unary()
        if text == "+":
            return value
        if text == "!":
            return Immediate(int(not value.value))
        if text == "-" and isinstance(value.value, float):
            if value.pattern is not None:
                raise Malformed("no sign stands before a 0f or 0d constant", position)
            return Immediate(-value.value)
        whole = self.integer(value, position)
        return _integer(-whole if text == "-" else ~whole, _is_unsigned(value))

    def operand_of_unary(self) -> Immediate:
        self.deeper()
        value = self.unary()
        self.depth -= 1
        return value

    def integer(self, value: Immediate, position: int) -> int:
        if not isinstance(value.value, int):
            raise Malformed("expected an integer", position)
        return value.value

    def whole(self) -> int:
        """The value of an integer expression."""
        position = self.next[2]
        return self.integer(self.expression(), position)

    def count(self, what: str) -> int:
        """A constant that counts something, below 2^40."""
        position = self.next[2]
        value = self.whole()
        if not 0 <= value < 1 << 40:
            raise Malformed(f"{what} is {value}", position)
        return value

    # Operands

    def operand(self) -> Operand:
        kind, text, _ = self.next
        if text == "{" and kind == "mark":
            self.deeper()
            self.take()
            if self.next[1] == "}":
                self.fail("expected an operand, found '}'")
            found = Vector(tuple(self.list_of(self.operand, "}")))
            self.depth -= 1
            return found
        if text == "[" and kind == "mark":
            self.take()
            return self.address()
        if text == "!" and self.following()[0] == "word":
            self.take()
            return Not(Name(self.word()))
        if text == "-" and kind == "mark" and self.following()[0] == "word" and self.following()[1] != "WARP_SZ":
            self.take()
            return Negated(Name(self.word()))
        if kind == "word" and text != "WARP_SZ":
            return self.named()
        return self.expression()

    def named(self) -> Operand:
        name = Name(self.word())
        if self.accept("|"):
            return Pair(name, Name(self.word()))
        if self.accept("["):
            index = self.whole()
            self.expect("]")
            return Address(name, index, brackets=False, scaled=True)
        if self.next[1] in ("+", "-") and self.next[0] == "mark":
            return Address(name, self.whole(), brackets=False)
        return name

    def address(self) -> Address:
        """After `[`: a register or variable and a constant, or a constant."""
        if self.next[0] != "word" or self.next[1] == "WARP_SZ":
            place = self.whole()
            self.expect("]")
            return Address(Immediate(place), 0)
        base, offset, scaled = Name(self.word()), 0, False
        if self.accept("["):
            offset, scaled = self.whole(), True
            self.expect("]")
        if self.next[1] in ("+", "-") and not scaled:
            offset = self.whole()
        if self.next[1] == ",":
            self.fail("tensor coordinates are not implemented")
        self.expect("]")
        return Address(base, offset, scaled=scaled)

    def group(self) -> Operand:
        """An operand of call: one in parentheses is a list."""
        if self.accept("("):
            return Group(tuple(self.list_of(self.operand, ")")))
        return self.operand()

    # Initial values

    def initial(self, kind: str, extents: tuple[int, ...], vectors: bool) -> tuple[bytes, list[Relocation], int]:
        """The bytes of an initialiser, the addresses among them, and the elements given at the outermost level.

        Rows of an array with fewer values than elements end in zeros; the outermost extent may be 0, for unknown.
        `vectors`: the last extent is that of a vector, which has all its values.
        """
        if not extents:
            data, relocation = self.initial_value(kind)
            return data, [relocation] if relocation else [], 1
        self.deeper()
        position, relocations, size = self.next[2], [], max(TYPE_BITS[kind] // 8, 1)
        for extent in extents[1:]:
            size *= extent
        parts: list[bytes] = []
        self.expect("{")
        for data, found, _ in self.list_of(lambda: self.initial(kind, extents[1:], vectors), "}"):
            at = len(parts) * size
            relocations += [Relocation(r.offset + at, r.size, r.name, r.addend, r.mask, r.position) for r in found]
            parts.append(data.ljust(size, b"\0"))
        if (extents[0] and len(parts) > extents[0]) or (vectors and len(extents) == 1 and len(parts) != extents[0]):
            raise Malformed(f"{len(parts)} initial values for {extents[0]} elements", position)
        self.depth -= 1
        return b"".join(parts), relocations, len(parts)

    def initial_value(self, kind: str) -> tuple[bytes, Relocation | None]:
        size, position, mask = max(TYPE_BITS[kind] // 8, 1), self.next[2], None
        if self.next[0] == "integer" and self.following()[1] == "(":  # 0xFF00(name): one byte of an address
            mask = self.integer(number(self.take()), position)
            if mask not in [0xFF << 8 * n for n in range(8)] or size != 1:
                raise Malformed("a mask before an address picks one byte for a .u8", position)
            self.expect("(")
        if self.next[0] == "word" and self.next[1] != "WARP_SZ":
            name = self.word()
            if name == "generic" and self.accept("("):
                name = self.word()
                self.expect(")")
            addend = self.whole() if self.next[1] in ("+", "-") else 0
            if mask is not None:
                self.expect(")")
            elif size not in (4, 8):
                raise Malformed(f"an address does not fit a .{kind}", position)
            return bytes(size), Relocation(0, size, name, addend, mask, position)
        if mask is not None:
            self.fail(f"expected a name, found {self.next[1]!r}")
        value = self.expression()
        try:
            return immediate_bits(value, kind).to_bytes(size, "little"), None
        except (ValueError, OverflowError):
            raise Malformed(f"{value.value} is no .{kind}", position) from None


def immediate_bits(value: Immediate, kind: str) -> int:
    """A number's bit pattern as PTX type `kind`. Raises ValueError where a .`kind` cannot be written this way."""
    bits, content = TYPE_BITS[kind], value.value
    if kind == "pred" and isinstance(content, int):
        return 0xFFFFFFFF if content else 0
    if kind in ("f32", "f64") or (kind == "b64" and isinstance(content, float) and value.pattern is None):
        if isinstance(content, float):
            return value.pattern if value.pattern is not None and value.width == bits else _float_bits(content, kind)
    elif value.pattern is not None:
        if kind == f"b{value.width}":
            return value.pattern
    elif isinstance(content, int) and kind[1:].isdigit() and kind != "f16":
        return content & ((1 << bits) - 1)
    raise ValueError(f"{content} is no .{kind}")


def _float_bits(value: float, kind: str) -> int:
    code, size = ("<f", "<I") if kind == "f32" else ("<d", "<Q")  # a decimal number has 64 bits
    try:
        packed = struct.pack(code, value)
    except OverflowError:  # beyond the largest float
        packed = struct.pack(code, float("inf") if value > 0 else float("-inf"))
    pattern: int = struct.unpack(size, packed)[0]
    return pattern
