"""Matrices: mma, ldmatrix, stmatrix and movmatrix."""

from dataclasses import dataclass
from itertools import product

from lowbitvm.runtime.emulator.decode import SPACES, Decoder, Row
from lowbitvm.runtime.emulator.isa.form import Qualifiers, expect_operands, number, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import Immediate, Instruction, Operand, Vector

# In the order of the core's types, mma.h.
TYPES = (
    *("f16", "bf16", "tf32", "e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "s8", "u8", "s4", "u4", "b1", "f64", "f32", "s32"),
)
BITS = dict(zip(TYPES, (16, 16, 32, 8, 8, 8, 8, 8, 8, 8, 4, 4, 1, 64, 32, 32), strict=True))
FP8, NARROW = ("e4m3", "e5m2"), ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
SATURATE, XOR, NARROW_FP4, ORDERED = 1, 2, 4, 8  # mma.h
ROUNDINGS = ("rn", "rz", "rm", "rp")  # mma.c


@dataclass(frozen=True)
class Form:
    """What mma.sync multiplies: one row per group of types that share their shapes."""

    operation: str  # of the core
    shapes: tuple[str, ...]
    pairs: frozenset[tuple[str, str]]  # types of A and B
    accumulators: tuple[str, ...]
    kind: str = ""
    scales: frozenset[tuple[int, str]] = frozenset()  # (scales per row, their type); the first is the default
    words: tuple[tuple[str, ...], ...] = ()  # optional qualifiers, of each at most one
    flags: int = 0


def _same(*types: str) -> frozenset[tuple[str, str]]:
    return frozenset((t, t) for t in types)


def _mixed(*types: str) -> frozenset[tuple[str, str]]:
    return frozenset(product(types, types))


FLOATS, WHOLE = ("f16", "f32"), ("s32",)
SATFINITE, BITWISE = (("satfinite",),), (("xor", "and"), ("popc",))
DENSE = (
    Form("mma_float", ("m16n8k8", "m16n8k16"), _same("f16"), FLOATS),
    Form("mma_float", ("m16n8k8", "m16n8k16"), _same("bf16"), ("f32",)),
    Form("mma_float", ("m16n8k4", "m16n8k8"), _same("tf32"), ("f32",)),
    Form("mma_float", ("m16n8k16", "m16n8k32"), _mixed(*FP8), FLOATS),
    Form("mma_float", ("m16n8k32",), _mixed(*NARROW), FLOATS, "f8f6f4"),
    Form("mma_scaled", ("m16n8k32",), _mixed(*NARROW), ("f32",), "mxf8f6f4", frozenset({(1, "ue8m0")})),
    Form("mma_scaled", ("m16n8k64",), _same("e2m1"), ("f32",), "mxf4", frozenset({(2, "ue8m0")}), flags=NARROW_FP4),
    Form(
        *("mma_scaled", ("m16n8k64",), _same("e2m1"), ("f32",), "mxf4nvf4"),
        frozenset({(2, "ue8m0"), (4, "ue4m3"), (4, "ue8m0")}),
        flags=NARROW_FP4,
    ),
    Form("mma_integer", ("m8n8k16", "m16n8k16", "m16n8k32"), _mixed("s8", "u8"), WHOLE, words=SATFINITE),
    Form("mma_integer", ("m8n8k32", "m16n8k32", "m16n8k64"), _mixed("s4", "u4"), WHOLE, words=SATFINITE),
    Form("mma_integer", ("m8n8k128", "m16n8k128", "m16n8k256"), _same("b1"), WHOLE, words=BITWISE),
    Form("mma_f64", ("m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"), _same("f64"), ("f64",), words=(ROUNDINGS,)),
)
# Of mma.sp, by the k that B has. The manual's sparse products with f16 sums of e4m3 and e5m2, and those of the kinds,
# need ordered metadata.
SPARSE = (
    Form("mma_sparse", ("m16n8k16", "m16n8k32"), _same("f16"), FLOATS),
    Form("mma_sparse", ("m16n8k16", "m16n8k32"), _same("bf16"), ("f32",)),
    Form("mma_sparse", ("m16n8k8", "m16n8k16"), _same("tf32"), ("f32",)),
    Form("mma_sparse", ("m16n8k32", "m16n8k64"), _mixed("s8", "u8"), WHOLE, words=SATFINITE),
    Form("mma_sparse", ("m16n8k64", "m16n8k128"), _mixed("s4", "u4"), WHOLE, words=SATFINITE),
    Form("mma_sparse", ("m16n8k64",), _mixed(*FP8), ("f32",)),
)
ORDERED_SPARSE = (
    Form("mma_sparse", ("m16n8k64",), _mixed(*FP8), ("f16",)),
    Form("mma_sparse", ("m16n8k64",), _mixed(*NARROW), FLOATS, "f8f6f4"),
    Form("mma_sparse", ("m16n8k64",), _mixed(*NARROW), ("f32",), "mxf8f6f4", frozenset({(1, "ue8m0")})),
    Form("mma_sparse", ("m16n8k128",), _same("e2m1"), ("f32",), "mxf4", frozenset({(2, "ue8m0")}), flags=NARROW_FP4),
    Form(
        *("mma_sparse", ("m16n8k128",), _same("e2m1"), ("f32",), "mxf4nvf4"),
        frozenset({(2, "ue8m0"), (4, "ue4m3"), (4, "ue8m0")}),
        flags=NARROW_FP4,
    ),
)
VARIANTS = {None: DENSE, "sp": SPARSE, "sp::ordered_metadata": SPARSE + ORDERED_SPARSE}


@special("mma", operands="BBBB BBBBVN BBBBVBVB BBBBVNVBVB")
def _mma(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    qualifiers.need("aligned")
    if "m8n8k4" in qualifiers.left and "f64" not in qualifiers.left:
        return _quad_pairs(decoder, instruction, qualifiers)
    if [word for word in qualifiers.left if word in ("row", "col")] != ["row", "col"]:
        raise decoder.unimplemented()
    qualifiers.left = [word for word in qualifiers.left if word not in ("row", "col")]
    if "popc" in qualifiers.left and qualifiers.left[-1] != "popc":
        raise decoder.unimplemented()
    variant = qualifiers.take("sp", "sp::ordered_metadata")
    for form in VARIANTS[variant]:
        row = _match(decoder, instruction, form, Qualifiers(decoder, list(qualifiers.left)))
        if row is not None and variant == "sp::ordered_metadata":
            row.mod = (*row.mod[:2], row.mod[2] | ORDERED, row.mod[3])
        if row is not None:
            return row
    raise decoder.unimplemented()


def _match(decoder: Decoder, instruction: Instruction, form: Form, qualifiers: Qualifiers) -> Row | None:
    """The row, if the qualifiers are this form's."""
    shape = qualifiers.take(*form.shapes)
    if shape is None or (form.kind and qualifiers.take(f"kind::{form.kind}") is None):
        return None
    scale = _scale(form, qualifiers)
    words = [qualifiers.take(*choices) for choices in form.words]
    if form.words == BITWISE and None in words:
        return None
    if scale is None or len(qualifiers.left) != 4:
        return None
    if form.scales and instruction.qualifiers[-1] not in ("ue8m0", "ue4m3"):
        return None
    d, a, b, c = qualifiers.left
    if d != c or (a, b) not in form.pairs or c not in form.accumulators:
        return None
    m, k = (int(part) for part in shape[1:].split("n8k"))
    flags = form.flags | (SATURATE if "satfinite" in words else 0) | (XOR if "xor" in words else 0)
    if form.operation == "mma_f64":
        flags = ROUNDINGS.index(words[0] or "rn")
    bits = 4 if form.flags & NARROW_FP4 else BITS[a]
    unit = max(bits, 32)  # bits of a register
    sparse = form.operation == "mma_sparse"
    counts = tuple(n // 32 for n in (m * k * bits // unit // (1 + sparse), 8 * k * bits // unit))
    accumulators = m * 8 // 32 // (2 if c == "f16" else 1)
    operands = _registers(
        decoder, instruction, (accumulators, *counts, accumulators), (register_kind(c), _factor_kind(form, a))
    )
    expect_operands(decoder, 4 + 2 * sparse + (4 if form.scales else 0))
    if sparse:
        operands += _metadata(decoder, instruction)
        flags |= _selector(decoder, instruction, _selectors(a, bits, counts[0], c)) << 8
    if form.scales:
        operands += _scale_operands(decoder, instruction, scale[0], 6 if sparse else 4)
    types = TYPES.index(a) | TYPES.index(b) << 8 | TYPES.index(c) << 16 | TYPES.index(d) << 24
    return Row(form.operation, operands, accumulators, (k | m << 16, types, flags, scale[0] | scale[1] << 8))


REGISTER_KINDS = {"f64": "f64", "f32": "f32", "f16": "f16x2", "bf16": "raw32", "tf32": "raw32"}
REGISTER_KINDS |= dict.fromkeys(("s32", "s8", "u8", "s4", "u4", "b1"), "int32")


def register_kind(kind: str) -> str:
    """What holds the elements of a matrix of type `kind`."""
    return REGISTER_KINDS[kind]


def _factor_kind(form: Form, kind: str) -> str:
    """Of A and B: any bits but for those types that mma.sync had first, and f64 as bits."""
    if form.scales:
        return "raw32"
    return REGISTER_KINDS[kind] if kind in ("f16", "bf16", "tf32") else f"b{max(BITS[kind], 32)}"


def _registers(
    decoder: Decoder, instruction: Instruction, counts: tuple[int, ...], kinds: tuple[str, str]
) -> list[tuple[int, bool]]:
    """The slots of D, A, B and C."""
    operands = []
    for position, (operand, count) in enumerate(zip(instruction.operands[:4], counts, strict=True)):
        parts = vector(decoder, operand, position, count)
        operands += decoder.elements(parts, kinds[position in (1, 2)], written=not position)
    return operands


def vector(decoder: Decoder, operand: Operand, position: int, count: int) -> tuple[Operand, ...]:
    """The registers of one operand, which must be in braces."""
    if not isinstance(operand, Vector) or len(operand.items) != count:
        have = len(operand.items) if isinstance(operand, Vector) else "one without braces"
        name = decoder.instruction.mnemonic
        raise decoder.error(f"operand {position + 1} of {name} takes a vector of {count} registers, not {have}")
    return operand.items


def _scale(form: Form, qualifiers: Qualifiers) -> tuple[int, int] | None:
    """Scales per row (0: none) and 1 for ue4m3; None where the qualifiers are not this form's."""
    if qualifiers.take("block_scale") is None:
        return None if form.scales else (0, 0)
    vector_size, kind = (
        qualifiers.take("scale_vec::1X", "scale_vec::2X", "scale_vec::4X"),
        qualifiers.take("ue8m0", "ue4m3"),
    )
    if vector_size is None and len(form.scales) > 1:
        return None
    ((default, _),) = form.scales if len(form.scales) == 1 else ((0, ""),)
    count = int(vector_size[-2]) if vector_size else default
    return (count, int(kind == "ue4m3")) if (count, kind) in form.scales else None


def _metadata(decoder: Decoder, instruction: Instruction) -> list[tuple[int, bool]]:
    """The register with sparsity metadata, which may be in braces."""
    metadata = instruction.operands[4]
    if isinstance(metadata, Vector):
        (metadata,) = vector(decoder, metadata, 4, 1)
    return [decoder.source(metadata, "b32")]


def _selectors(kind: str, bits: int, registers: int, accumulator: str) -> range:
    """The sparsity selectors of a form whose A has so many registers; beyond f16's own two ptxas takes two more."""
    one_step = registers == 2
    if bits < 16:
        return range(2 if one_step else 1)
    return range(4 if one_step or (kind, accumulator) == ("f16", "f32") else 2)


def _selector(decoder: Decoder, instruction: Instruction, allowed: range) -> int:
    selector = number(decoder, instruction.operands[5])
    if selector not in allowed:
        raise decoder.error(f"the sparsity selector {selector} must be in {list(allowed)}")
    return selector


def _scale_operands(decoder: Decoder, instruction: Instruction, count: int, at: int) -> list[tuple[int, bool]]:
    """{data, byte, thread} of A and of B, from operand `at` on."""
    operands = []
    for first, threads in ((at, 2), (at + 2, 4)):
        data, selectors = instruction.operands[first : first + 2]
        (register,) = vector(decoder, data, first, 1) if isinstance(data, Vector) else (data,)
        operands.append(decoder.source(register, "b32"))
        limits = (range(0, 4, count), range(threads))
        for selector, limit in zip(vector(decoder, selectors, first + 1, 2), limits, strict=True):
            if isinstance(selector, Immediate) and selector.value not in limit:
                raise decoder.error(f"the selector {selector.value} of scale_vec::{count}X must be in {list(limit)}")
            operands.append(decoder.source(selector, "u16"))
    return operands


def _quad_pairs(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers) -> Row:
    """mma.m8n8k4 of f16: four products, one per quad pair (lanes 4p..4p+3 and 16+4p..16+4p+3)."""
    expect_operands(decoder, 4)
    qualifiers.need("m8n8k4")
    layouts = [qualifiers.need("row", "col") for _ in range(2)]
    if qualifiers.left[1:3] != ["f16", "f16"] or len(qualifiers.left) != 4:
        raise decoder.unimplemented()
    # `need` prefers "row": which of the two is A's must be read from the instruction
    layouts = [q for q in instruction.qualifiers if q in ("row", "col")]
    d, _, _, c = qualifiers.left
    if d not in FLOATS or c not in FLOATS or (d, c) == ("f16", "f32"):
        raise decoder.unimplemented()
    counts = (8 if d == "f32" else 4, 2, 2, 8 if c == "f32" else 4)
    operands = []
    for position, (operand, count) in enumerate(zip(instruction.operands, counts, strict=True)):
        kind = register_kind((d, "f16", "f16", c)[position])
        operands += decoder.elements(vector(decoder, operand, position, count), kind, written=not position)
    mod = (layouts[0] == "col", layouts[1] == "col", c == "f32", d == "f32")
    return Row("mma_quad_pairs", operands, counts[0], tuple(map(int, mod)))


# In the order of the core's forms, matrix.c.
MOVES = ("m8n8", "m8n8.trans", "m8n16", "m16n16.trans", "m16n8.trans")


@special("ldmatrix", operands="BA")
def _ldmatrix(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    form, count, space = _move(qualifiers, ("m8n8", "m8n16", "m16n16"))
    if form in ("m8n8", "m8n8.trans"):
        qualifiers.need("b16")
        bits = 16
    elif form == "m16n16.trans" and qualifiers.take("b8"):
        bits = 8
    elif form in ("m8n16", "m16n16.trans"):
        kinds = [word for word in qualifiers.left if word.startswith("b")]
        if len(kinds) != 2 or kinds[0] != "b8x16" or kinds[1] not in ("b6x16_p32", "b4x16_p64"):
            raise decoder.unimplemented()
        qualifiers.left = [word for word in qualifiers.left if word not in kinds]
        bits = int(kinds[1][1])
    else:
        raise decoder.unimplemented()
    qualifiers.done()
    if form == "m16n16.trans" and count == 4:
        raise decoder.error("ldmatrix.m16n16 takes .x1 or .x2")
    registers = count * (2 if form == "m16n16.trans" else 1)
    targets = vector(decoder, instruction.operands[0], 0, registers)
    base, offset, _ = decoder.address(instruction.operands[1])
    operands = [*decoder.elements(targets, "b32", written=True), base]
    return Row("ldmatrix", operands, registers, (count, MOVES.index(form), space, bits), offset)


def _move(qualifiers: Qualifiers, shapes: tuple[str, ...]) -> tuple[str, int, int]:
    """Shape and transposition, number of matrices, space."""
    qualifiers.need("sync")
    qualifiers.need("aligned")
    form = qualifiers.need(*shapes)
    count = int(qualifiers.need("x1", "x2", "x4")[1])
    if qualifiers.take("trans"):
        form += ".trans"
    return form, count, SPACES["shared"] if qualifiers.take("shared", "shared::cta") else 0


@special("stmatrix", operands="AB")
def _stmatrix(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    form, count, space = _move(qualifiers, ("m8n8", "m16n8"))
    if form == "m16n8":
        raise decoder.unimplemented()
    qualifiers.need("b8" if form == "m16n8.trans" else "b16")
    qualifiers.done()
    base, offset, _ = decoder.address(instruction.operands[0])
    sources = decoder.elements(vector(decoder, instruction.operands[1], 1, count), "b32", written=False)
    return Row("stmatrix", [base, *sources], 0, (count, MOVES.index(form), space), offset)


@special("movmatrix", operands="DD")
def _movmatrix(decoder: Decoder, instruction: Instruction) -> Row:
    if sorted(instruction.qualifiers) != ["aligned", "b16", "m8n8", "sync", "trans"]:
        raise decoder.unimplemented()
    to, source = instruction.operands
    return Row("movmatrix", [decoder.destination(to, "b32"), decoder.source(source, "b32")], 1)
