"""wmma: matrices whose fragments are opaque. The core lays them out as those of mma.sync, as ptxas does."""

from dataclasses import dataclass

from lowbitvm.runtime.emulator.decode import SPACES, Decoder, Row
from lowbitvm.runtime.emulator.isa.form import Qualifiers, expect_operands, qualifiers_of, special
from lowbitvm.runtime.emulator.isa.matrix import BITS, ROUNDINGS, SATURATE, TYPES, XOR, register_kind, vector
from lowbitvm.runtime.emulator.syntax import Immediate, Instruction

ROWS, COLUMNS, SUMS, WIDE_SUMS = range(4)  # wmma.c
SIDE_BY_SIDE, STACKED, SWAPPED = range(3)
# Shapes by the types of A and B, and the types of C and D.
SHAPES = {
    **dict.fromkeys(("f16", "bf16", "s8", "u8"), ("m16n16k16", "m32n8k16", "m8n32k16")),
    "tf32": ("m16n16k8",),
    "s4": ("m8n8k32",),
    "u4": ("m8n8k32",),
    "b1": ("m8n8k128",),
    "f64": ("m8n8k4",),
}
SUM_TYPES = {"f16": ("f16", "f32"), "bf16": ("f32",), "tf32": ("f32",), "f64": ("f64",)}
BIT_OPERATIONS = ("xor", "and")


@dataclass(frozen=True)
class Shape:
    m: int
    n: int
    k: int

    @property
    def arrangement(self) -> int:
        return SWAPPED if self.n == 32 else STACKED if self.m == 32 else SIDE_BY_SIDE


def _shape(qualifiers: Qualifiers) -> tuple[str, Shape]:
    name = qualifiers.need(*{shape for shapes in SHAPES.values() for shape in shapes})
    m, rest = name[1:].split("n")
    n, k = rest.split("k")
    return name, Shape(int(m), int(n), int(k))


@dataclass(frozen=True)
class Fragment:
    """A matrix's fragment: the core's kind, bits per element, registers of a block, in all, and as PTX counts them."""

    kind: int
    bits: int
    block: int
    count: int
    declared: int


def _operand(matrix: str, shape: Shape, kind: str) -> Fragment:
    """A or B: as rows of 16 or as columns of 8, of which a register holds 16 bytes of k (f64: 32)."""
    bits, extent = BITS[kind], shape.m if matrix == "a" else shape.n
    pieces = shape.k * bits // (256 if kind == "f64" else 128)
    rows = extent == 32 or (matrix == "a" and extent == 16)
    block = 2 * pieces if rows else pieces
    count = block * extent // (16 if rows else 8)
    return Fragment(ROWS if rows else COLUMNS, bits, block, count, 8 if kind == "f16" else count)


def _sums(shape: Shape, kind: str) -> Fragment:
    count = shape.m * shape.n // 32 // (2 if kind == "f16" else 1)
    return Fragment(WIDE_SUMS if shape.n == 16 else SUMS, BITS[kind], count, count, count)


def _check_type(decoder: Decoder, matrix: str, name: str, kind: str) -> None:
    sources = [source for source, shapes in SHAPES.items() if name in shapes]
    legal = sources if matrix in "ab" else [t for source in sources for t in SUM_TYPES.get(source, ("s32",))]
    if kind not in legal:
        raise decoder.unimplemented()


@special("wmma", operands="BA BAS AB ABS BBBB")
def _wmma(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    operation = qualifiers.need("load", "store", "mma")
    qualifiers.need("sync")
    qualifiers.need("aligned")
    if operation == "mma":
        return _mma(decoder, instruction, qualifiers)
    return _transfer(decoder, instruction, qualifiers, operation)


def _transfer(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers, operation: str) -> Row:
    expect_operands(decoder, 2, 3)
    matrix = qualifiers.need("a", "b", "c") if operation == "load" else qualifiers.need("d")
    layout = qualifiers.need("row", "col")
    name, shape = _shape(qualifiers)
    word = qualifiers.take("global", "shared", "shared::cta")
    (kind,) = qualifiers.left if len(qualifiers.left) == 1 else ("",)
    _check_type(decoder, matrix, name, kind)
    if kind in ("s4", "u4", "b1") and layout != ("col" if matrix == "b" else "row"):
        raise decoder.unimplemented()
    fragment = _operand(matrix, shape, kind) if matrix in "ab" else _sums(shape, kind)
    # the index that locates the register block is the row of A, the column of B, the row of C and D, but of the
    # transposed product's the column
    swapped = (layout == "col") != (matrix == "b" or (matrix in "cd" and shape.n == 32))
    place = 1 if operation == "load" else 0
    base, offset, _ = decoder.address(instruction.operands[place])
    if len(instruction.operands) == 3:
        stride = decoder.source(instruction.operands[2], "u32")
    else:
        rows, columns = {"a": (shape.m, shape.k), "b": (shape.k, shape.n)}.get(matrix, (shape.m, shape.n))
        stride = decoder.source(Immediate(columns if layout == "row" else rows), "u32")
    parts = vector(decoder, instruction.operands[1 - place], 1 - place, fragment.declared)
    held = "b32" if kind in ("s4", "u4", "b1") else register_kind(kind)
    registers = decoder.elements(parts, held, written=operation == "load")
    space = SPACES[word.split("::")[0]] if word else 0
    mod = (fragment.kind | fragment.bits << 8, fragment.block | fragment.count << 8, space, int(swapped))
    if operation == "load":
        return Row("wmma_load", [*registers, base, stride], len(registers), mod, offset)
    return Row("wmma_store", [base, stride, *registers], 0, mod, offset)


def _mma(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers) -> Row:
    expect_operands(decoder, 4)
    bitwise = qualifiers.take(*BIT_OPERATIONS)
    if bitwise:
        qualifiers.need("popc")
        if instruction.qualifiers[1] != bitwise:
            raise decoder.unimplemented()
    layouts = [q for q in qualifiers.left if q in ("row", "col")]
    qualifiers.left = [q for q in qualifiers.left if q not in ("row", "col")]
    name, shape = _shape(qualifiers)
    saturate, rounding = qualifiers.take("satfinite"), qualifiers.take(*ROUNDINGS)
    types = qualifiers.left
    d, a, b, c = (types[0], "f16", "f16", types[1]) if len(types) == 2 else types if len(types) == 4 else ("",) * 4
    for matrix, kind in (("a", a), ("c", c), ("d", d)):
        _check_type(decoder, matrix, name, kind)
    sums = SUM_TYPES.get(a, ("s32",))
    if len(layouts) != 2 or a != b or c not in sums or d not in sums or (len(types) == 2) != (a == "f16"):
        raise decoder.unimplemented()
    if a in ("s4", "u4", "b1") and layouts != ["row", "col"]:
        raise decoder.unimplemented()
    if (bitwise is None) != (a != "b1") or (saturate and c != "s32") or (rounding and a != "f64"):
        raise decoder.unimplemented()
    fragments = (_sums(shape, d), _operand("a", shape, a), _operand("b", shape, b), _sums(shape, c))
    operands = []
    for position, (operand, kind) in enumerate(zip(instruction.operands, (d, a, b, c), strict=True)):
        parts = vector(decoder, operand, position, fragments[position].declared)
        held = "f16x2" if kind == "bf16" else register_kind(kind)
        operands += decoder.elements(parts, held, written=not position)
    flags = (SATURATE if saturate else 0) | (XOR if bitwise == "xor" else 0)
    indices = TYPES.index(a) | TYPES.index(b) << 8 | TYPES.index(c) << 16 | TYPES.index(d) << 24
    if shape.m == shape.n == 8:
        operation = "mma_f64" if a == "f64" else "mma_integer"
        flags = ROUNDINGS.index(rounding or "rn") if a == "f64" else flags
        return Row(operation, operands, 2, (shape.k | 8 << 16, indices, flags))
    registers = fragments[1].declared | fragments[2].declared << 8
    return Row(
        "wmma_mma", operands, fragments[0].declared, (shape.k | shape.arrangement << 16, indices, flags, registers)
    )
