"""Regular instructions: a table from PTX to the core's operations."""

from dataclasses import dataclass

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import expect_operands
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Instruction

INTEGERS = frozenset(f"{sign}{bits}" for sign in "bus" for bits in (16, 32, 64))
WORDS = frozenset(("b32", "u32", "s32"))
WIDE_WORDS = WORDS | {"b64", "u64", "s64"}
HALVES = frozenset(("f16", "bf16", "f16x2", "bf16x2"))
FTZ, SAT, RELU, NAN = 1, 2, 4, 8
FLAGS = {"ftz": FTZ, "sat": SAT, "relu": RELU, "NaN": NAN}
APPROXIMATE = frozenset(("rn", "approx", "full"))


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


def regular(decoder: Decoder, instruction: Instruction) -> Row:
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
