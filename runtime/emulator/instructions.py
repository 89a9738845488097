"""What each PTX instruction becomes: a table for the regular ones, a function for each of the others."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lowbitvm.runtime.emulator.decode import SPACES, Decoder, Row
from lowbitvm.runtime.emulator.parse import TYPE_BITS, Immediate, Instruction, Name, Not, Operand, Pair, Vector

INTEGERS = frozenset(f"{sign}{bits}" for sign in "bus" for bits in (16, 32, 64))
WORDS = frozenset(("b32", "u32", "s32"))
WIDE_WORDS = WORDS | {"b64", "u64", "s64"}
HALVES = frozenset(("f16", "bf16", "f16x2", "bf16x2"))
FTZ, SAT, RELU, NAN = 1, 2, 4, 8
FLAGS = {"ftz": FTZ, "sat": SAT, "relu": RELU, "NaN": NAN}
APPROXIMATE = frozenset(("rn", "approx", "full"))
ROUNDING = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}
FLOAT_KINDS = {"f16": 0, "bf16": 1, "f32": 2, "f64": 3}


@dataclass(frozen=True)
class Rule:
    """A regular instruction: `core` is the core's operation with {type}, {bits} and {sign} filled in.

    `operands` has a letter each: D destination and S source of the instruction's type, W and V of twice its width,
    N a 32-bit source (shift counts), C a 32-bit destination, P and p a predicate. `requires` must be among the
    qualifiers, those of `ignores` may be, those of `flags` set bits of mod[0].
    """

    types: frozenset[str]
    core: str
    operands: str
    requires: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()
    ignores: frozenset[str] = frozenset()
    mod: tuple[int, ...] = (0,)


def _rule(
    types: str | frozenset[str],
    core: str,
    operands: str,
    requires: str = "",
    flags: str = "",
    mod: tuple[int, ...] = (0,),
) -> Rule:
    kinds = frozenset(types.split()) if isinstance(types, str) else types
    ignores = APPROXIMATE if kinds & {"f32", "f64", *HALVES} else frozenset()
    return Rule(kinds, core, operands, frozenset(requires.split()), frozenset(flags.split()), ignores, mod)


def _arithmetic(name: str) -> list[Rule]:
    return [
        _rule(INTEGERS, name + "_b{bits}", "DSS"),
        _rule("f32", name + "_f32", "DSS", flags="ftz sat"),
        _rule("f64", name + "_f64", "DSS"),
        _rule(HALVES, name + "_{type}", "DSS", flags="ftz sat"),
    ]


def _extreme(name: str) -> list[Rule]:
    return [
        _rule(INTEGERS, name + "_{sign}{bits}", "DSS"),
        _rule("f32", name + "_f32", "DSS", flags="ftz NaN"),
        _rule("f64", name + "_f64", "DSS"),
        _rule(HALVES, name + "_{type}", "DSS", flags="ftz NaN"),
    ]


def _fused() -> list[Rule]:
    return [
        _rule("f32", "fma_f32", "DSSS", flags="ftz sat"),
        _rule("f64", "fma_f64", "DSSS"),
        _rule(HALVES, "fma_{type}", "DSSS", flags="ftz sat relu"),
    ]


def _function(name: str, types: str = "f32") -> list[Rule]:
    return [_rule(types, name + "_{type}", "DS", flags="ftz")]


def _sign_change(name: str, integer: str) -> list[Rule]:
    return [
        _rule("s16 s32 s64", f"{name}_{integer}{{bits}}", "DS"),
        _rule("f32", name + "_f32", "DS", flags="ftz"),
        _rule("f64", name + "_f64", "DS"),
        _rule("f16 bf16", name + "_half", "DS", flags="ftz", mod=(0, 0x8000)),
        _rule("f16x2 bf16x2", name + "_half", "DS", flags="ftz", mod=(0, 0x80008000)),
    ]


def _logic(name: str, truth: int) -> list[Rule]:
    operands = "DS" if name == "not" else "DSS"
    predicates = "Pp" if name == "not" else "Ppp"
    return [_rule(INTEGERS, name + "_b{bits}", operands), _rule("pred", "logic_pred", predicates, mod=(truth,))]


RULES: dict[str, list[Rule]] = {
    "add": _arithmetic("add"),
    "sub": _arithmetic("sub"),
    "mul": [
        _rule(INTEGERS, "mul_lo_b{bits}", "DSS", "lo"),
        _rule(INTEGERS, "mul_hi_{sign}{bits}", "DSS", "hi"),
        _rule(INTEGERS, "mul_wide_{sign}{bits}", "WSS", "wide"),
        *_arithmetic("mul")[1:],
    ],
    "mad": [
        _rule(INTEGERS, "mad_lo_b{bits}", "DSSS", "lo"),
        _rule(INTEGERS, "mad_hi_{sign}{bits}", "DSSS", "hi"),
        _rule(INTEGERS, "mad_wide_{sign}{bits}", "WSSV", "wide"),
        *_fused(),
    ],
    "fma": _fused(),
    "div": [
        _rule(INTEGERS, "div_{sign}{bits}", "DSS"),
        _rule("f32", "div_f32", "DSS", flags="ftz"),
        _rule("f64", "div_f64", "DSS"),
    ],
    "rem": [_rule(INTEGERS, "rem_{sign}{bits}", "DSS")],
    "min": _extreme("min"),
    "max": _extreme("max"),
    "neg": _sign_change("neg", "b"),
    "abs": _sign_change("abs", "s"),
    "and": _logic("and", 0b1000),
    "or": _logic("or", 0b1110),
    "xor": _logic("xor", 0b0110),
    "not": _logic("not", 0b0011),
    "cnot": [_rule(INTEGERS, "cnot_b{bits}", "DS")],
    "shl": [_rule(INTEGERS, "shl_b{bits}", "DSN")],
    "shr": [_rule(INTEGERS, "shr_{sign}{bits}", "DSN")],
    "bfe": [_rule(WIDE_WORDS, "bfe_{sign}{bits}", "DSNN")],
    "bfi": [_rule(WIDE_WORDS, "bfi_b{bits}", "DSSNN")],
    "popc": [_rule(WIDE_WORDS, "popc_b{bits}", "CS")],
    "clz": [_rule(WIDE_WORDS, "clz_b{bits}", "CS")],
    "brev": [_rule(WIDE_WORDS, "brev_b{bits}", "DS")],
    "rcp": _function("rcp", "f32 f64"),
    "sqrt": _function("sqrt", "f32 f64"),
    "rsqrt": _function("rsqrt", "f32 f64"),
    "sin": _function("sin"),
    "cos": _function("cos"),
    "lg2": _function("lg2"),
    "ex2": _function("ex2", "f32 f16 bf16 f16x2 bf16x2"),
    "tanh": _function("tanh", "f32 f16 bf16 f16x2 bf16x2"),
}

Build = Callable[[Decoder, Instruction], Row]
SPECIAL: dict[str, Build] = {}


def special(*mnemonics: str) -> Callable[[Build], Build]:
    def register(function: Build) -> Build:
        for mnemonic in mnemonics:
            SPECIAL[mnemonic] = function
        return function

    return register


@dataclass
class Qualifiers:
    """The qualifiers not yet understood; whatever is left at the end makes the instruction unimplemented."""

    decoder: Decoder
    left: list[str] = field(default_factory=list)

    def take(self, *names: str) -> str | None:
        """The first of `names` present, removed."""
        for name in names:
            if name in self.left:
                self.left.remove(name)
                return name
        return None

    def need(self, *names: str) -> str:
        found = self.take(*names)
        if found is None:
            raise self.decoder.unimplemented()
        return found

    def type(self) -> str:
        """The last qualifier, which must be a type."""
        if not self.left or self.left[-1] not in TYPE_BITS:
            raise self.decoder.unimplemented()
        return self.left.pop()

    def done(self) -> None:
        if self.left:
            raise self.decoder.unimplemented()


def decode(decoder: Decoder, instruction: Instruction) -> Row:
    """The core's row for one instruction. Raises PtxError, for an unimplemented instruction by name."""
    decoder.instruction = instruction
    if instruction.mnemonic in RULES:
        return _regular(decoder, instruction)
    if instruction.mnemonic in SPECIAL:
        return SPECIAL[instruction.mnemonic](decoder, instruction)
    raise decoder.unimplemented()


def _regular(decoder: Decoder, instruction: Instruction) -> Row:
    *qualifiers, kind = instruction.qualifiers or ("",)
    for rule in RULES[instruction.mnemonic]:
        rest = set(qualifiers) - rule.ignores - rule.requires
        if kind in rule.types and rule.requires <= set(qualifiers) and rest <= rule.flags:
            flags = sum(FLAGS[flag] for flag in rest)
            return _regular_row(decoder, instruction, rule, kind, flags)
    raise decoder.unimplemented()


def _regular_row(decoder: Decoder, instruction: Instruction, rule: Rule, kind: str, flags: int) -> Row:
    expect_operands(decoder, len(rule.operands))
    bits = TYPE_BITS[kind]
    double = f"b{2 * bits}"
    kinds = {"D": kind, "S": kind, "W": double, "V": double, "N": "u32", "C": "u32", "P": "pred", "p": "pred"}
    operands = []
    for letter, operand in zip(rule.operands, instruction.operands, strict=True):
        look_up = decoder.destination if letter in "DWCP" else decoder.source
        operands.append(look_up(operand, kinds[letter]))
    sign = "s" if kind[0] == "s" else "u"
    core = rule.core.format(type=kind, bits=bits, sign=sign)
    return Row(core, operands, 1, (rule.mod[0] | flags, *rule.mod[1:]))


def expect_operands(decoder: Decoder, *counts: int) -> None:
    have = len(decoder.instruction.operands)
    if have not in counts:
        wanted = " or ".join(map(str, counts))
        raise decoder.error(f"{decoder.instruction.mnemonic} takes {wanted} operands, not {have}")


def qualifiers_of(decoder: Decoder, instruction: Instruction) -> Qualifiers:
    return Qualifiers(decoder, list(instruction.qualifiers))


def predicate(decoder: Decoder, operand: Operand) -> tuple[tuple[int, bool], int]:
    """Slot of a predicate source, and 1 where it is negated."""
    if isinstance(operand, Not):
        return decoder.source(operand.name, "pred"), 1
    return decoder.source(operand, "pred"), 0


def number(decoder: Decoder, operand: Operand) -> int:
    if not isinstance(operand, Immediate) or not isinstance(operand.value, int):
        raise decoder.error("expected an integer constant")
    return operand.value


def items(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vector) else (operand,)


# Moves and selection


@special("mov")
def _mov(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.type()
    qualifiers.done()
    to, source = instruction.operands
    if isinstance(to, Vector) or isinstance(source, Vector):
        return _vector_move(decoder, to, source, TYPE_BITS[kind])
    if kind == "pred":
        return Row("logic_pred", [decoder.destination(to, kind), decoder.source(source, kind)], 1, (0b1100,))
    if kind in ("b8", "u8", "s8", "b128"):
        raise decoder.unimplemented()
    return Row(f"mov_b{TYPE_BITS[kind]}", [decoder.destination(to, kind), decoder.source(source, kind)], 1)


def _vector_move(decoder: Decoder, to: Operand, source: Operand, bits: int) -> Row:
    parts = items(source) if isinstance(source, Vector) else items(to)
    part = bits // len(parts)
    if f"b{part}" not in TYPE_BITS or part == 8:
        raise decoder.unimplemented()
    if isinstance(source, Vector):
        operands = [decoder.destination(to, f"b{bits}"), *(decoder.source(p, f"b{part}") for p in parts)]
        return Row("pack", operands, 1, (part,))
    operands = [*(decoder.destination(p, f"b{part}") for p in parts), decoder.source(source, f"b{bits}")]
    return Row("unpack", operands, len(parts), (part,))


@special("cvta")
def _cvta(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.type()
    inverse = qualifiers.take("to") is not None
    space = qualifiers.need("global", "shared", "shared::cta", "const", "param")
    qualifiers.done()
    core = f"mov_b{TYPE_BITS[kind]}"
    if space.startswith("shared"):
        core = "cvta_to_shared" if inverse else "cvta_shared"
    to, source = instruction.operands
    return Row(core, [decoder.destination(to, kind), decoder.source(source, kind)], 1)


@special("selp")
def _selp(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 4)
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.type()
    qualifiers.done()
    to, a, b, c = instruction.operands
    chooser, negated = predicate(decoder, c)
    core = "selp_b64" if TYPE_BITS[kind] == 64 else "selp_b32"
    operands = [decoder.destination(to, kind), decoder.source(a, kind), decoder.source(b, kind), chooser]
    return Row(core, operands, 1, (negated,))


@special("setp")
def _setp(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 3, 4)
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.type()
    flush = qualifiers.take("ftz") is not None
    join = qualifiers.take("and", "or", "xor")
    if len(qualifiers.left) != 1 or kind in ("f16x2", "bf16x2"):
        raise decoder.unimplemented()
    compare = qualifiers.left[0]
    to, a, b = instruction.operands[:3]
    targets = [to.first, to.second] if isinstance(to, Pair) else [to]
    operands = [decoder.destination(target, "pred") for target in targets]
    operands += [decoder.source(a, kind), decoder.source(b, kind)]
    negated = 0
    if join:
        expect_operands(decoder, 4)
        last, negated = predicate(decoder, instruction.operands[3])
        operands.append(last)
    mode = {None: 0, "and": 1, "or": 2, "xor": 3}[join]
    return Row(_comparison(compare, kind), operands, len(targets), (mode, negated, flush))


def _comparison(compare: str, kind: str) -> str:
    if kind in FLOAT_KINDS:
        return f"setp_{compare}_{kind}"
    compare = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(compare, compare)
    sign = "b" if compare in ("eq", "ne") else "s" if kind[0] == "s" else "u"
    return f"setp_{compare}_{sign}{TYPE_BITS[kind]}"


# Bit manipulation


@special("lop3")
def _lop3(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 5)
    if instruction.qualifiers != ("b32",):
        raise decoder.unimplemented()
    to, a, b, c, table = instruction.operands
    sources = [decoder.source(x, "b32") for x in (a, b, c)]
    return Row("lop3_b32", [decoder.destination(to, "b32"), *sources], 1, (number(decoder, table) & 255,))


@special("prmt")
def _prmt(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 4)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("b32")
    mode = qualifiers.take("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    qualifiers.done()
    to, a, b, c = instruction.operands
    modes = (None, "f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    sources = [decoder.source(x, "b32") for x in (a, b, c)]
    return Row("prmt_b32", [decoder.destination(to, "b32"), *sources], 1, (modes.index(mode),))


@special("shf")
def _shf(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 4)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("b32")
    right, wrap = qualifiers.need("l", "r") == "r", qualifiers.need("clamp", "wrap") == "wrap"
    qualifiers.done()
    to, a, b, c = instruction.operands
    sources = [decoder.source(x, "b32") for x in (a, b, c)]
    return Row("shf_b32", [decoder.destination(to, "b32"), *sources], 1, (right, wrap))


@special("dp4a")
def _dp4a(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 4)
    if len(instruction.qualifiers) != 2 or not set(instruction.qualifiers) <= {"u32", "s32"}:
        raise decoder.unimplemented()
    to, a, b, c = instruction.operands
    sources = [decoder.source(x, "b32") for x in (a, b, c)]
    signs = tuple(int(q == "s32") for q in instruction.qualifiers)
    return Row("dp4a", [decoder.destination(to, "b32"), *sources], 1, signs)


# Conversions


@special("cvt")
def _cvt(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2, 3)
    qualifiers = qualifiers_of(decoder, instruction)
    source = qualifiers.type()
    target = qualifiers.type()
    flags = sum(bit for name, bit in (("sat", 1), ("ftz", 2), ("relu", 8)) if qualifiers.take(name))
    rounding_name = qualifiers.take(*ROUNDING)
    qualifiers.done()
    rounding = ROUNDING[rounding_name] if rounding_name else 0
    to = decoder.destination(instruction.operands[0], target, loose=True)
    sources = [decoder.source(x, source, loose=True) for x in instruction.operands[1:]]
    if target in ("f16x2", "bf16x2"):
        expect_operands(decoder, 3)
        if source != "f32":
            raise decoder.unimplemented()
        return Row("cvt_pack", [to, *sources], 1, (2 | FLOAT_KINDS[target[:-2]] << 16, rounding | flags << 8))
    expect_operands(decoder, 2)
    if source in FLOAT_KINDS and target in FLOAT_KINDS and rounding_name and rounding_name.endswith("i"):
        flags |= 4
    core, mod = _conversion(decoder, source, target, rounding, flags, instruction.operands[0])
    return Row(core, [to, *sources], 1, mod)


def _conversion(
    decoder: Decoder, source: str, target: str, rounding: int, flags: int, to: Operand
) -> tuple[str, tuple[int, ...]]:
    """The core's conversion and its mod words, see convert.c."""
    if (source, target, rounding, flags) in (("f16", "f32", 0, 0), ("f32", "f16", 0, 0)):
        return f"cvt_{target}_{source}", ()
    for kind in (source, target):
        if kind not in FLOAT_KINDS and kind[0] not in "us":
            raise decoder.unimplemented()
    register_bits = 64 if to == Name("_") else max(TYPE_BITS[decoder.register(to)[1]], 16)
    low = FLOAT_KINDS[source] if source in FLOAT_KINDS else TYPE_BITS[source] | (source[0] == "s") << 8
    high = FLOAT_KINDS[target] if target in FLOAT_KINDS else TYPE_BITS[target] | (target[0] == "s") << 8
    names = ["float" if kind in FLOAT_KINDS else "int" for kind in (source, target)]
    core = "cvt_" + "_".join(names)
    if core == "cvt_int_int":
        return core, (low | high << 16, flags & 1, register_bits)
    return core, (low | high << 16, rounding | flags << 8, register_bits)


# Memory


@special("ld", "ldu")
def _load(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    qualifiers = _memory_qualifiers(decoder, instruction)
    kind = qualifiers.type()
    count = {"v2": 2, "v4": 4, None: 1}[qualifiers.take("v2", "v4")]
    space = _space(qualifiers)
    qualifiers.done()
    targets = items(instruction.operands[0])
    if len(targets) != count:
        raise decoder.error(f"the load has {count} elements, the destination {len(targets)} registers")
    operands = [decoder.destination(target, kind, loose=True) for target in targets]
    base, offset, variable_space = decoder.address(instruction.operands[1])
    if space == 0 and variable_space == "shared":
        space = 2
    sign = 0
    if kind[0] == "s":
        first = "b16" if targets[0] == Name("_") else decoder.register(targets[0])[1]
        sign = 2 if TYPE_BITS[first] <= 16 else 1
    return Row("load", [*operands, base], count, (TYPE_BITS[kind] // 8, count, space, sign), offset)


@special("st")
def _store(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    qualifiers = _memory_qualifiers(decoder, instruction)
    kind = qualifiers.type()
    count = {"v2": 2, "v4": 4, None: 1}[qualifiers.take("v2", "v4")]
    space = _space(qualifiers)
    qualifiers.done()
    values = items(instruction.operands[1])
    if len(values) != count:
        raise decoder.error(f"the store has {count} elements, the source {len(values)} registers")
    base, offset, variable_space = decoder.address(instruction.operands[0])
    if space == 0 and variable_space == "shared":
        space = 2
    sources = [decoder.source(value, kind, loose=True) for value in values]
    return Row("store", [base, *sources], 0, (TYPE_BITS[kind] // 8, count, space), offset)


# In the order of the core's operations, atomics.c.
INTEGER_ATOMICS = ("add", "min.u", "max.u", "min.s", "max.s", "and", "or", "xor", "exch", "cas")
ATOMICS = (*INTEGER_ATOMICS, "add.f32", "add.f16x2", "add.bf16x2")


@special("atom", "red")
def _atomic(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = _memory_qualifiers(decoder, instruction)
    kind = qualifiers.type()
    space = _space(qualifiers)
    qualifiers.take("noftz")
    name = qualifiers.need("add", "min", "max", "and", "or", "xor", "exch", "cas")
    qualifiers.done()
    if name in ("min", "max"):
        name += f".{kind[0]}"
    elif kind[0] == "f" or kind.startswith("bf"):
        name += f".{kind}"
    if name not in ATOMICS or TYPE_BITS[kind] not in (32, 64):
        raise decoder.unimplemented()
    has_result = instruction.mnemonic == "atom"
    expect_operands(decoder, has_result + (3 if name == "cas" else 2))
    operands = [decoder.destination(instruction.operands[0], kind)] if has_result else []
    base, offset, _ = decoder.address(instruction.operands[has_result])
    operands += [base, *(decoder.source(x, kind) for x in instruction.operands[has_result + 1 :])]
    return Row("atomic", operands, int(has_result), (TYPE_BITS[kind] // 8, ATOMICS.index(name), space), offset)


CACHE_WORDS = frozenset(("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt"))
ORDER_WORDS = frozenset(("weak", "relaxed", "acquire", "release", "volatile", "gpu", "cta", "sys", "cluster"))


def _memory_qualifiers(decoder: Decoder, instruction: Instruction) -> Qualifiers:
    """Without cache hints and orderings: the emulator runs one warp at a time on coherent memory."""
    kept = [
        q for q in instruction.qualifiers if q not in CACHE_WORDS | ORDER_WORDS and not q.startswith(("L1::", "L2::"))
    ]
    return Qualifiers(decoder, kept)


def _space(qualifiers: Qualifiers) -> int:
    word = qualifiers.take("global", "shared", "shared::cta", "param", "param::entry", "const")
    return SPACES[word.split("::")[0]] if word else 0


@special("cp")
def _cp_async(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = Qualifiers(decoder, [q for q in instruction.qualifiers if not q.startswith("L2::")])
    qualifiers.need("async")
    if qualifiers.take("commit_group"):
        qualifiers.done()
        return Row("cp_commit", [], 0)
    if qualifiers.take("wait_group"):
        qualifiers.done()
        return Row("cp_wait_group", [], 0, (number(decoder, instruction.operands[0]),))
    if qualifiers.take("wait_all"):
        qualifiers.done()
        return Row("cp_wait_all", [], 0)
    cache = qualifiers.need("ca", "cg")
    qualifiers.need("shared", "shared::cta")
    qualifiers.need("global")
    qualifiers.done()
    expect_operands(decoder, 3, 4)
    to, source, size = instruction.operands[:3]
    bytes_ = number(decoder, size)
    if bytes_ not in ((16,) if cache == "cg" else (4, 8, 16)):
        raise decoder.error(f"cp.async.{cache} cannot copy {bytes_} bytes")
    to_base, to_offset, _ = decoder.address(to)
    base, offset, _ = decoder.address(source)
    operands = [to_base, base]
    form = 0  # of the last operand: 1 is src-size, 2 ignore-src
    if len(instruction.operands) == 4:
        last = instruction.operands[3]
        declared = decoder.register_type(last.text, instruction.scope) if isinstance(last, Name) else None
        ignore = declared is not None and declared[1] == "pred"
        form = 2 if ignore else 1
        operands.append(decoder.source(last, "pred" if ignore else "u32"))
    return Row("cp_async", operands, 0, (bytes_, form, to_offset & 0xFFFFFFFF), offset)


@special("ldmatrix")
def _ldmatrix(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    qualifiers = qualifiers_of(decoder, instruction)
    for word in ("sync", "aligned", "m8n8", "b16"):
        qualifiers.need(word)
    count = int(qualifiers.need("x1", "x2", "x4")[1])
    transposed = qualifiers.take("trans") is not None
    qualifiers.take("shared", "shared::cta")
    qualifiers.done()
    targets = items(instruction.operands[0])
    if len(targets) != count:
        raise decoder.error(f"ldmatrix.x{count} takes {count} registers, not {len(targets)}")
    base, offset, _ = decoder.address(instruction.operands[1])
    operands = [*(decoder.destination(target, "b32") for target in targets), base]
    return Row("ldmatrix", operands, count, (count, transposed), offset)


# Tensor cores and warp exchange

MMA_SHAPES = {"m16n8k8": 8, "m16n8k16": 16}


@special("mma")
def _mma(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 4)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    qualifiers.need("aligned")
    k = MMA_SHAPES[qualifiers.need(*MMA_SHAPES)]
    qualifiers.need("row")
    qualifiers.need("col")
    if qualifiers.left not in (["f32", "f16", "f16", "f32"], ["f32", "bf16", "bf16", "f32"]):
        raise decoder.unimplemented()
    counts = (4, k // 4, k // 8, 4)
    operands = []
    for position, (operand, count) in enumerate(zip(instruction.operands, counts, strict=True)):
        parts = items(operand)
        if len(parts) != count:
            raise decoder.error(f"operand {position + 1} of the mma takes {count} registers, not {len(parts)}")
        kind = "f32" if position in (0, 3) else "b32"
        operands += [(decoder.source if position else decoder.destination)(part, kind) for part in parts]
    return Row("mma_f32", operands, 4, (k, qualifiers.left[1] == "bf16"))


@special("movmatrix")
def _movmatrix(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    if sorted(instruction.qualifiers) != ["aligned", "b16", "m8n8", "sync", "trans"]:
        raise decoder.unimplemented()
    to, source = instruction.operands
    return Row("movmatrix", [decoder.destination(to, "b32"), decoder.source(source, "b32")], 1)


@special("shfl")
def _shfl(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 5)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    qualifiers.need("b32")
    modes = ("up", "down", "bfly", "idx")
    mode = modes.index(qualifiers.need(*modes))
    qualifiers.done()
    to, *sources = instruction.operands
    targets = [to.first, to.second] if isinstance(to, Pair) else [to]
    operands = [decoder.destination(t, kind) for t, kind in zip(targets, ("b32", "pred"), strict=False)]
    operands += [decoder.source(source, "b32") for source in sources]
    return Row("shfl", operands, len(targets), (mode,))


@special("vote")
def _vote(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 3)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    kind = qualifiers.need("pred", "b32")
    modes = ("all", "any", "uni", "ballot")
    mode = modes.index(qualifiers.need(*modes))
    qualifiers.done()
    to, source, members = instruction.operands
    slot, negated = predicate(decoder, source)
    return Row("vote", [decoder.destination(to, kind), slot, decoder.source(members, "b32")], 1, (mode, negated))


@special("activemask")
def _activemask(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 1)
    return Row("activemask", [decoder.destination(instruction.operands[0], "b32")], 1)


@special("redux")
def _redux(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 3)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    kind = qualifiers.type()
    name = qualifiers.need("add", "min", "max", "and", "or", "xor")
    qualifiers.done()
    if name in ("min", "max"):
        name += "." + kind
    modes = ("add", "min.u32", "max.u32", "min.s32", "max.s32", "and", "or", "xor")
    if name not in modes:
        raise decoder.unimplemented()
    to, source, members = instruction.operands
    operands = [decoder.destination(to, "b32"), decoder.source(source, "b32"), decoder.source(members, "b32")]
    return Row("redux", operands, 1, (modes.index(name),))


# Control


@special("bra")
def _branch(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 1)
    if not set(instruction.qualifiers) <= {"uni"} or not isinstance(instruction.operands[0], Name):
        raise decoder.unimplemented()
    return Row("branch", [], 0)


@special("exit", "ret")
def _exit(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 0)
    return Row("exit", [], 0)


@special("bar", "barrier")
def _barrier(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.take("cta")
    qualifiers.take("aligned")
    if qualifiers.take("warp"):
        expect_operands(decoder, 1)
        qualifiers.need("sync")
        qualifiers.done()
        return Row("warp_sync", [decoder.source(instruction.operands[0], "b32")], 0)
    arrive = qualifiers.need("sync", "arrive") == "arrive"
    qualifiers.done()
    expect_operands(decoder, *((2,) if arrive else (1, 2)))
    return Row("barrier", [decoder.source(x, "u32") for x in instruction.operands], 0, (arrive,))


@special("membar", "fence", "nanosleep", "prefetch", "prefetchu", "griddepcontrol")
def _nothing(decoder: Decoder, instruction: Instruction) -> Row:
    del decoder, instruction
    return Row("nothing", [], 0)
