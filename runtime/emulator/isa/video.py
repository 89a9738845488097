"""Video instructions, scalar ones and those of two halves or four bytes (PTX ISA, "Video Instructions")."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import Qualifiers, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import Instruction, Name, Negated, Operand

# In the order of the core's, video.c.
OPERATIONS = (
    *("add", "sub", "absdiff", "min", "max", "avrg", "shl", "shr"),
    *("eq", "ne", "lt", "le", "gt", "ge"),
)
COMPARISONS = OPERATIONS[8:]
SECOND = (None, "add", "min", "max")
A_SIGNED, B_SIGNED, D_SIGNED, SAT, WRAP, PLUS_ONE, MINUS_PRODUCT, MINUS_C = (1 << n for n in range(8))
SCALES = {None: 0, "shr7": 7, "shr15": 15}
# Selectors of scalar instructions: a part of the register, or all of it.
PARTS = ("b0", "b1", "b2", "b3", "h0", "h1", "")
WHOLE = PARTS.index("")


def _split(decoder: Decoder, operand: Operand) -> tuple[Operand, str]:
    """A register and the selector after it."""
    if not isinstance(operand, Name):
        return operand, ""
    name, _, selector = operand.text.partition(".")
    return (Name(name), selector) if decoder.instruction.scope.register(name) else (operand, "")


def _part(decoder: Decoder, operand: Operand) -> tuple[Operand, int]:
    register, selector = _split(decoder, operand)
    if selector not in PARTS:
        raise decoder.error(f"there is no selector .{selector}, only .{', .'.join(PARTS[:-1])}")
    return register, PARTS.index(selector)


def _types(decoder: Decoder, qualifiers: Qualifiers, count: int) -> int:
    """The flags of the types, which stand last: of d, a and b, or of a and b alone, as of comparisons."""
    kinds = qualifiers.left[-count:]
    del qualifiers.left[-count:]
    if len(kinds) != count or not set(kinds) <= {"u32", "s32"}:
        raise decoder.unimplemented()
    signs = (D_SIGNED, A_SIGNED, B_SIGNED)[-count:]
    return sum(sign for kind, sign in zip(kinds, signs, strict=True) if kind == "s32")


def _operation(qualifiers: Qualifiers, name: str) -> tuple[int, int]:
    """Of a mnemonic without its v: the number of the operation and the types that it names."""
    if name == "set":
        return OPERATIONS.index(qualifiers.need(*COMPARISONS)), 2
    return OPERATIONS.index(name), 3


def _target(decoder: Decoder, operand: Operand) -> tuple[int, bool]:
    if operand == Name("_"):
        raise decoder.error(f"{decoder.instruction.mnemonic} writes a register")
    return decoder.destination(operand, "u32")


@special("vadd", "vsub", "vabsdiff", "vmin", "vmax", "vshl", "vshr", "vset", operands="DSS DSSS")
def _scalar(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    name = instruction.mnemonic[1:]
    operation, count = _operation(qualifiers, name)
    second = qualifiers.take("add", "min", "max")
    flags = SAT if name != "set" and qualifiers.take("sat") else 0
    if name in ("shl", "shr"):
        flags |= WRAP if qualifiers.need("clamp", "wrap") == "wrap" else 0
        if qualifiers.left[-1:] != ["u32"]:
            raise decoder.error(f"{instruction.mnemonic} shifts by a .u32")
    flags |= _types(decoder, qualifiers, count)
    qualifiers.done()
    (to, place), (a, a_part), (b, b_part) = (_part(decoder, operand) for operand in instruction.operands[:3])
    if place != WHOLE and second:
        raise decoder.error("a result that is merged into c has no second operation with it")
    if (place != WHOLE or second) and len(instruction.operands) < 4:
        raise decoder.error(f"{instruction.name} takes 4 operands here, not 3")
    rest = [decoder.source(operand, "u32") for operand in (a, b, *instruction.operands[3:])]
    mod = (operation | flags << 8, a_part | b_part << 4 | place << 8, SECOND.index(second))
    return Row("video", [_target(decoder, to), *rest], 1, mod)


@special("vmad", operands="DMMM")
def _multiply_add(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    flags = PLUS_ONE if qualifiers.take("po") else 0
    flags |= SAT if qualifiers.take("sat") else 0
    scale = qualifiers.take("shr7", "shr15")
    flags |= _types(decoder, qualifiers, 3) & ~D_SIGNED  # the result's sign follows from the operands'
    qualifiers.done()
    negated = [isinstance(operand, Negated) for operand in instruction.operands[1:]]
    a, b, c = (x.name if isinstance(x, Negated) else x for x in instruction.operands[1:])
    flags |= (MINUS_PRODUCT if negated[0] != negated[1] else 0) | (MINUS_C if negated[2] else 0)
    if (flags & (PLUS_ONE | MINUS_PRODUCT | MINUS_C)).bit_count() > 1:
        raise decoder.error("vmad adds one, negates the product or negates c, but no two of these")
    (first, a_part), (second, b_part) = (_part(decoder, operand) for operand in (a, b))
    sources = [decoder.source(operand, "u32") for operand in (first, second, c)]
    operands = [_target(decoder, instruction.operands[0]), *sources]
    return Row("video_mad", operands, 1, (flags << 8, a_part | b_part << 4, SCALES[scale]))


def _elements(decoder: Decoder, operand: Operand, width: int, default: str) -> tuple[Operand, int]:
    """A register, and which elements of a and b its selector names: 4 bits each, the lowest first."""
    register, selector = _split(decoder, operand)
    selector = selector or default
    digits, letter, most = selector[1:], default[0], 64 // width
    if selector[0] != letter or len(digits) != len(default) - 1 or any(not "0" <= x < str(most) for x in digits):
        raise decoder.error(f"there is no selector .{selector} here, only ones like .{default}")
    return register, sum(int(digit) << 4 * n for n, digit in enumerate(reversed(digits)))


def _mask(decoder: Decoder, operand: Operand, default: str) -> tuple[Operand, int]:
    """The destination, and a bit for each element that its selector names, in falling order."""
    register, selector = _split(decoder, operand)
    selector = selector or default
    digits = selector[1:]
    falling = "".join(x for x in default[1:] if x in digits)
    if selector[0] != default[0] or not digits or digits != falling:
        raise decoder.error(f"there is no mask .{selector} here, only parts of .{default}")
    return register, sum(1 << int(digit) for digit in digits)


@special(
    *(f"v{name}{count}" for name in ("add", "sub", "avrg", "absdiff", "min", "max", "set") for count in (2, 4)),
    operands="DDDD",
)
def _simd(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    name, width = instruction.mnemonic[1:-1], 16 if instruction.mnemonic[-1] == "2" else 8
    operation, count = _operation(qualifiers, name)
    add = qualifiers.take("add") is not None
    flags = SAT if name != "set" and not add and qualifiers.take("sat") else 0
    flags |= _types(decoder, qualifiers, count)
    qualifiers.done()
    own, other = ("h10", "h32") if width == 16 else ("b3210", "b7654")
    to, mask = _mask(decoder, instruction.operands[0], own)
    a, from_a = _elements(decoder, instruction.operands[1], width, own)
    b, from_b = _elements(decoder, instruction.operands[2], width, other)
    sources = [decoder.source(operand, "u32") for operand in (a, b, instruction.operands[3])]
    mod = (operation | flags << 8, from_a | from_b << 16, mask | add << 8 | width << 16)
    return Row("video_simd", [_target(decoder, to), *sources], 1, mod)
