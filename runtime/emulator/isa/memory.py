"""Loads, stores, atomics, asynchronous copies, and what is said about caches."""

from lowbitvm.runtime.emulator.decode import SPACES, Decoder, Row
from lowbitvm.runtime.emulator.isa.form import (
    Qualifiers,
    expect_operands,
    items,
    number,
    predicate,
    qualifiers_of,
    special,
)
from lowbitvm.runtime.emulator.order import ACQUIRE, CTA_SCOPE, RELAXED, RELEASE
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Immediate, Instruction, Name, Not, Operand, Vector

CACHE_WORDS = frozenset(("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "unified"))
STRENGTHS = {
    "weak": 0,
    "volatile": RELAXED,
    "relaxed": RELAXED,
    "acquire": RELAXED | ACQUIRE,
    "release": RELAXED | RELEASE,
    "acq_rel": RELAXED | ACQUIRE | RELEASE,
}
SCOPES = {"cta": CTA_SCOPE, "cluster": CTA_SCOPE, "gpu": 0, "sys": 0}  # a block is a cluster of its own
SHARED = ("shared", "shared::cta", "shared::cluster")
PRIORITIES = ("L2::evict_last", "L2::evict_normal", "L2::evict_first", "L2::evict_unchanged")
VECTORS = {"v2": 2, "v4": 4, "v8": 8, None: 1}


def _memory_qualifiers(decoder: Decoder, instruction: Instruction) -> Qualifiers:
    """Without cache hints, which change nothing that a kernel can see."""
    kept = [q for q in instruction.qualifiers if q not in CACHE_WORDS and not q.startswith(("L1::", "L2::"))]
    return Qualifiers(decoder, kept)


def _hinted(decoder: Decoder, instruction: Instruction, count: int) -> None:
    """Checks the number of operands; a cache hint takes one more, a 64-bit policy."""
    if "L2::cache_hint" in instruction.qualifiers:
        expect_operands(decoder, count + 1)
        decoder.source(instruction.operands[count], "u64")
    else:
        expect_operands(decoder, count)


def _strength(qualifiers: Qualifiers, usual: int) -> int:
    qualifiers.take("mmio")
    word = qualifiers.take(*STRENGTHS)
    scope = qualifiers.take(*SCOPES)
    strength = STRENGTHS[word] if word else usual
    return strength | (SCOPES[scope] if scope and strength else 0)


def _space(qualifiers: Qualifiers) -> int:
    if qualifiers.take("param::func"):
        return SPACES["param::func"]
    word = qualifiers.take("global", *SHARED, "local", "param", "param::entry", "const")
    return SPACES[word.split("::")[0]] if word else 0


def _place(decoder: Decoder, operand: Operand, space: int) -> tuple[tuple[int, bool], int, int]:
    """Base, offset and space of an address; a variable's own space is the one of an access that names none."""
    base, offset, variable_space = decoder.address(operand)
    if space == 0 and variable_space is not None:
        space = SPACES[variable_space]
    return base, offset, space


def _several(
    decoder: Decoder, operand: Operand, kind: str, written: bool, loose: bool = True
) -> list[tuple[int, bool]]:
    """The register, or those of a vector, that an access transfers."""
    if isinstance(operand, Vector):
        return decoder.elements(operand.items, kind, written, loose)
    if not written:
        return [decoder.source(operand, kind, loose)]
    return [decoder.destination(operand, kind, loose)]


def _check_access(decoder: Decoder, qualifiers: tuple[str, ...], bits: int, space: int) -> None:
    """What only some accesses may have: 256 bits, priorities in L2, the path for read-only data."""
    if bits > 256 or (bits == 256 and space not in (0, SPACES["global"])):
        raise decoder.error(
            f"{decoder.instruction.name} is one of {bits} bits; of 256 there are in global memory alone"
        )
    if bits != 256 and not set(PRIORITIES).isdisjoint(qualifiers):
        raise decoder.error(f"a priority in L2 is for 256 bits, {decoder.instruction.name} has {bits}")
    if "nc" in qualifiers and space != SPACES["global"]:
        raise decoder.error(".nc takes .global")


@special("ld", "ldu", operands="VA VAS")
def _load(decoder: Decoder, instruction: Instruction) -> Row:
    _hinted(decoder, instruction, 2)
    qualifiers = _memory_qualifiers(decoder, instruction)
    kind = qualifiers.type()
    count = VECTORS[qualifiers.take("v2", "v4", "v8")]
    strength, space = _strength(qualifiers, 0), _space(qualifiers)
    qualifiers.done()
    _check_access(decoder, instruction.qualifiers, TYPE_BITS[kind] * count, space)
    targets = items(instruction.operands[0])
    if len(targets) != count:
        raise decoder.error(f"the load has {count} elements, the destination {len(targets)} registers")
    base, offset, space = _place(decoder, instruction.operands[1], space)
    if kind == "b128":
        halves = [half for target in targets for half in decoder.halves(target)]
        return Row("load", [*halves, base], len(halves), (8, len(halves), space | strength << 8), offset)
    operands = _several(decoder, instruction.operands[0], kind, written=True)
    sign = 0
    if kind[0] == "s":
        named = next(target for target in targets if target != Name("_"))
        first = decoder.register(named)[1]
        sign = 2 if TYPE_BITS[first] <= 16 else 1
    return Row("load", [*operands, base], count, (TYPE_BITS[kind] // 8, count, space | strength << 8, sign), offset)


@special("st", operands="AW AWS")
def _store(decoder: Decoder, instruction: Instruction) -> Row:
    _hinted(decoder, instruction, 2)
    qualifiers = _memory_qualifiers(decoder, instruction)
    kind = qualifiers.type()
    count = VECTORS[qualifiers.take("v2", "v4", "v8")]
    strength, space = _strength(qualifiers, 0), _space(qualifiers)
    qualifiers.done()
    _check_access(decoder, instruction.qualifiers, TYPE_BITS[kind] * count, space)
    values = items(instruction.operands[1])
    if len(values) != count:
        raise decoder.error(f"the store has {count} elements, the source {len(values)} registers")
    base, offset, space = _place(decoder, instruction.operands[0], space)
    if kind == "b128":
        halves = [half for value in values for half in decoder.halves(value)]
        return Row("store", [base, *halves], 0, (8, len(halves), space | strength << 8), offset)
    sources = _several(decoder, instruction.operands[1], kind, written=False)
    return Row("store", [base, *sources], 0, (TYPE_BITS[kind] // 8, count, space | strength << 8), offset)


# In the order of the core's operations, atomics.c; from "add.f32" on, those whose result depends on the order.
INTEGER_ATOMICS = ("add", "min.u", "max.u", "min.s", "max.s", "and", "or", "xor", "exch", "cas", "inc", "dec")
FLOAT_ATOMICS = ("add.f32", "add.f64", "add.f16", "add.bf16", "min.f16", "max.f16", "min.bf16", "max.bf16")
ATOMICS = (*INTEGER_ATOMICS, *FLOAT_ATOMICS)
# The types that each operation is defined for.
ATOMIC_TYPES = {
    "add": "u32 s32 u64 f16 f16x2 bf16 bf16x2 f32 f64",
    "min": "u32 s32 u64 s64",
    "max": "u32 s32 u64 s64",
    "inc": "u32",
    "dec": "u32",
    "and": "b32 b64",
    "or": "b32 b64",
    "xor": "b32 b64",
    "exch": "b32 b64 b128",
    "cas": "b16 b32 b64 b128",
}
# Those of vectors, in global memory.
VECTOR_TYPES = {
    ("add", 2): "f16 f16x2 bf16 bf16x2 f32",
    ("add", 4): "f16 f16x2 bf16 bf16x2 f32",
    ("add", 8): "f16 bf16",
} | {(name, n): "f16 f16x2 bf16 bf16x2" if n < 8 else "f16 bf16" for name in ("min", "max") for n in (2, 4, 8)}


def _operation(name: str, kind: str) -> str:
    base = kind.removesuffix("x2")
    if base in ("f16", "bf16", "f32", "f64"):
        return f"{name}.{base}"
    return f"{name}.{kind[0]}" if name in ("min", "max") else name


@special("atom", "red", operands="VAW VAWS VASS VASSS AW AWS")
def _atomic(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = _memory_qualifiers(decoder, instruction)
    kind = qualifiers.type()
    strength, space = _strength(qualifiers, RELAXED), _space(qualifiers)
    count = VECTORS[qualifiers.take("v2", "v4", "v8")]
    rounded = qualifiers.take("noftz") is not None
    name = qualifiers.need(*ATOMIC_TYPES)
    qualifiers.done()
    types = ATOMIC_TYPES[name] if count == 1 else VECTOR_TYPES.get((name, count), "")
    needs_noftz = "f16" in kind
    if kind not in types.split() or (count > 1 and space not in (0, SPACES["global"])) or rounded != needs_noftz:
        raise decoder.unimplemented()
    has_result = instruction.mnemonic == "atom"
    if not has_result and name in ("exch", "cas"):
        raise decoder.unimplemented()
    _hinted(decoder, instruction, has_result + (3 if name == "cas" else 2))
    values = instruction.operands[has_result + 1 : has_result + (3 if name == "cas" else 2)]
    transferred = (*instruction.operands[:has_result], *values)
    if any(len(items(operand)) != count or isinstance(operand, Vector) != (count > 1) for operand in transferred):
        shape = f"vectors of {count} elements" if count > 1 else "operands without braces"
        raise decoder.error(f"{instruction.name} takes {shape}")
    targets = instruction.operands[:has_result]
    base, offset, space = _place(decoder, instruction.operands[has_result], space)
    if kind == "b128":  # the core finds the upper half behind the lower one
        operands = [*(decoder.halves(target)[0] for target in targets), base]
        operands += [decoder.halves(value)[0] for value in values]
    else:
        results = [slot for target in targets for slot in _results(decoder, target, kind)]
        operands = [*results, base]
        operands += [slot for value in values for slot in _several(decoder, value, kind, written=False, loose=False)]
    mod = (TYPE_BITS[kind] // 8, ATOMICS.index(_operation(name, kind)), space | strength << 8, count)
    return Row("atomic", operands, has_result * count, mod, offset)


def _results(decoder: Decoder, target: Operand, kind: str) -> list[tuple[int, bool]]:
    """Where an atomic operation leaves what was in memory."""
    return (
        decoder.elements(target.items, kind, True)
        if isinstance(target, Vector)
        else [decoder.destination(target, kind)]
    )


@special("cp", operands=". N A AAN AANX AANXS")
def _cp_async(decoder: Decoder, instruction: Instruction) -> Row:
    prefetches = ("L2::64B", "L2::128B", "L2::256B")
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("async")
    if qualifiers.take("commit_group"):
        qualifiers.done()
        expect_operands(decoder, 0)
        return Row("cp_commit", [], 0)
    if qualifiers.take("wait_group"):
        qualifiers.done()
        expect_operands(decoder, 1)
        pending = number(decoder, instruction.operands[0]) & 0xFFFFFFFF  # ptxas takes it modulo 2^32
        return Row("cp_wait_group", [], 0, (pending,))
    if qualifiers.take("wait_all"):
        qualifiers.done()
        expect_operands(decoder, 0)
        return Row("cp_wait_all", [], 0)
    if qualifiers.take("mbarrier"):
        return _cp_arrive(decoder, instruction, qualifiers)
    cache = qualifiers.need("ca", "cg")
    spaces = [word for word in qualifiers.left if word in ("shared", "shared::cta", "global")]
    if len(spaces) != 2 or spaces[1] != "global":
        raise decoder.unimplemented()
    qualifiers.left = [word for word in qualifiers.left if word not in spaces]
    qualifiers.take(*prefetches)
    qualifiers.take("L2::cache_hint")
    qualifiers.done()
    return _cp_bytes(decoder, instruction, cache)


def _cp_arrive(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers) -> Row:
    expect_operands(decoder, 1)
    qualifiers.need("arrive")
    counted_already = qualifiers.take("noinc") is not None
    space = SPACES["shared"] if qualifiers.take("shared", "shared::cta") else 0
    qualifiers.need("b64")
    qualifiers.done()
    base, offset, space = _place(decoder, instruction.operands[0], space)
    return Row("cp_arrive", [base], 0, (8, counted_already, space), offset)


def _cp_bytes(decoder: Decoder, instruction: Instruction, cache: str) -> Row:
    hint = "L2::cache_hint" in instruction.qualifiers
    expect_operands(decoder, 3 + hint, 4 + hint)
    given = instruction.operands
    if hint:
        decoder.source(given[-1], "u64")
        given = given[:-1]
    to, source, size = given[:3]
    bytes_ = number(decoder, size)
    if bytes_ not in ((16,) if cache == "cg" else (4, 8, 16)):
        raise decoder.error(f"cp.async.{cache} cannot copy {bytes_} bytes")
    to_base, to_offset, _ = decoder.address(to)
    base, offset, _ = decoder.address(source)
    operands = [to_base, base]
    form = negated = 0  # of the last operand: 1 is src-size, 2 ignore-src
    if len(given) == 4:
        last = given[3]
        declared = decoder.register_type(last.text, instruction.scope) if isinstance(last, Name) else None
        ignore = isinstance(last, Not) or (declared is not None and declared[1] == "pred")
        form = 2 if ignore else 1
        if isinstance(last, Immediate) and not 0 <= last.value <= bytes_:
            raise decoder.error(f"{last.value} of the {bytes_} bytes cannot be read")
        slot, negated = predicate(decoder, last) if ignore else (decoder.source(last, "u32"), 0)
        operands.append(slot)
    return Row("cp_async", operands, 0, (bytes_, form, to_offset & 0xFFFFFFFF, negated), offset)


@special("isspacep", operands="DS")
def _isspacep(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = Qualifiers(decoder, list(instruction.qualifiers))
    word = qualifiers.need("global", *SHARED, "local", "const", "param", "param::entry")
    qualifiers.done()
    space = {"const": 15}.get(word, SPACES[word.split("::")[0]])  # constants lie among the global arrays
    source = instruction.operands[1]
    narrow = isinstance(source, Name) and decoder.register_bits(source) == 32
    operands = [
        decoder.destination(instruction.operands[0], "pred"),
        decoder.source(source, "u32" if narrow else "u64"),
    ]
    return Row("isspacep", operands, 1, (space,))


@special("istypep", operands="DS")
def _istypep(decoder: Decoder, instruction: Instruction) -> Row:
    """Whether an address is that of a texture, sampler or surface: there are none."""
    if instruction.qualifiers not in (("texref",), ("samplerref",), ("surfref",)):
        raise decoder.unimplemented()
    to, source = instruction.operands
    decoder.source(source, "u64")
    return Row("logic_pred", [decoder.destination(to, "pred"), decoder.constant(0, False)], 1, (0b1100,))


@special("mapa", operands="DSS")
def _mapa(decoder: Decoder, instruction: Instruction) -> Row:
    kind, (to, address, rank) = _of_cluster(decoder, instruction), instruction.operands
    operands = [decoder.destination(to, kind), decoder.source(address, kind), decoder.source(rank, "u32")]
    return Row("mapa", operands, 1)


@special("getctarank", operands="DS")
def _getctarank(decoder: Decoder, instruction: Instruction) -> Row:
    """A cluster has one block, of rank 0."""
    kind, (to, address) = _of_cluster(decoder, instruction), instruction.operands
    decoder.source(address, kind)
    return Row("mov_b32", [decoder.destination(to, "u32"), decoder.constant(0, False)], 1)


def _of_cluster(decoder: Decoder, instruction: Instruction) -> str:
    """The type of an address in a cluster's shared memory."""
    qualifiers = Qualifiers(decoder, list(instruction.qualifiers))
    qualifiers.take("shared::cluster")
    kind = qualifiers.need("u32", "u64")
    qualifiers.done()
    return kind


@special("createpolicy", operands="D DS DASS")
def _createpolicy(decoder: Decoder, instruction: Instruction) -> Row:
    """A policy is opaque and means nothing here: its register gets a number."""
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.need("fractional", "range", "cvt")
    qualifiers.need("b64")
    if kind == "cvt":
        qualifiers.need("L2")
    else:
        _priorities(decoder, qualifiers)
    if kind == "range":
        qualifiers.take("global")
    qualifiers.done()
    expect_operands(decoder, *{"fractional": (1, 2), "range": (4,), "cvt": (2,)}[kind])
    to, *rest = instruction.operands
    if kind == "range":
        _range(decoder, instruction)
    elif kind == "cvt":
        decoder.source(rest[0], "u64")
    elif rest:
        _fraction(decoder, rest[0])
    return Row("mov_b64", [decoder.destination(to, "u64"), decoder.constant(1, True)], 1)


def _priorities(decoder: Decoder, qualifiers: Qualifiers) -> None:
    """One priority, and one of the lines that it is not for."""
    given = [word for word in qualifiers.left if word in PRIORITIES]
    if not 1 <= len(given) <= 2 or (len(given) == 2 and given[1] not in ("L2::evict_first", "L2::evict_unchanged")):
        raise decoder.unimplemented()
    qualifiers.left = [word for word in qualifiers.left if word not in PRIORITIES]


def _fraction(decoder: Decoder, operand: Operand) -> None:
    decoder.source(operand, "f32")
    if isinstance(operand, Immediate) and not 0 < operand.value <= 1:
        raise decoder.error(f"the fraction {operand.value} is not above 0 and up to 1")


def _range(decoder: Decoder, instruction: Instruction) -> None:
    _, address, primary, total = instruction.operands
    decoder.address(address)
    for size in (primary, total):
        decoder.source(size, "u32")
    if isinstance(primary, Immediate) and isinstance(total, Immediate):
        first, whole = (int(size.value) & 0xFFFFFFFF for size in (primary, total))
        if first > whole:
            raise decoder.error(f"the first {first} bytes of {whole}")


# What each instruction's words are: a state space, then one of the words behind it.
CACHE_WORDS_OF: dict[str, dict[str, tuple[str, ...]]] = {
    "prefetch": {
        "": ("L1", "L2", "L2::evict_last", "L2::evict_normal", "tensormap"),
        "global": ("L1", "L2", "L2::evict_last", "L2::evict_normal"),
        "local": ("L1", "L2"),
        "const": ("tensormap",),
        "param": ("tensormap",),
    },
    "prefetchu": {"": ("L1",)},
    "applypriority": {"": ("L2::evict_normal",), "global": ("L2::evict_normal",)},
    "discard": {"": ("L2",), "global": ("L2",)},
}


@special("prefetch", "prefetchu", operands="A")
@special("applypriority", "discard", operands="AN")
def _cache(decoder: Decoder, instruction: Instruction) -> Row:
    """Moves lines between caches: an address that is no array's is no fault.

    discard lets 128 bytes of global memory become undefined; here they keep what they hold, which is one legal outcome.
    """
    spaces = CACHE_WORDS_OF[instruction.mnemonic]
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need(*spaces[qualifiers.take(*spaces) or ""])
    qualifiers.done()
    decoder.address(instruction.operands[0])
    return Row("nothing", [], 0)
