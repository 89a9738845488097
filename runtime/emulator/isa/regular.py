"""Regular instructions: a table from PTX to the core's operations."""

from dataclasses import dataclass

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import expect_operands
from lowbitvm.runtime.emulator.kinds import KIND_BITS
from lowbitvm.runtime.emulator.syntax import Instruction

INTEGERS = frozenset(f"{sign}{bits}" for sign in "us" for bits in (16, 32, 64))
BITS = frozenset(("b16", "b32", "b64"))
WIDE_INTEGERS = frozenset(("u32", "s32", "u64", "s64"))
WORDS = frozenset(("u32", "s32"))
WIDE_BITS = frozenset(("b32", "b64"))
PAIRS = frozenset(("u16x2", "s16x2"))
FTZ, SAT, RELU, NAN, XORSIGN, ABSOLUTE = 1, 2, 4, 8, 16, 32  # float.c
FLAGS = {"ftz": FTZ, "sat": SAT, "relu": RELU, "NaN": NAN}


@dataclass(frozen=True)
class Rule:
    """A regular instruction: `core` is the core's operation with {type}, {bits} and {sign} filled in.

    `operands` has a letter each: D destination and S source of the instruction's type, W and V of twice its width,
    N a 32-bit source (shift counts), C a 32-bit destination, P and p a predicate. `requires` must be among the
    qualifiers, those of `ignores` may be, those of `flags` may be and set bits of mod[0].
    """

    types: frozenset[str]
    core: str
    operands: str
    requires: frozenset[str]
    flags: frozenset[str]
    ignores: frozenset[str]
    mod: tuple[int, ...] = (0,)


def _rule(
    types: str | frozenset[str],
    core: str,
    operands: str,
    requires: str = "",
    flags: str = "",
    mod: tuple[int, ...] = (0,),
    ignores: str = "",
) -> Rule:
    kinds = frozenset(types.split()) if isinstance(types, str) else types
    words = (frozenset(requires.split()), frozenset(flags.split()), frozenset(ignores.split()))
    return Rule(kinds, core, operands, words[0], words[1], words[2], mod)


def _arithmetic(name: str) -> list[Rule]:
    return [
        _rule(INTEGERS, name + "_b{bits}", "DSS"),
        _rule("s32", name + "_sat_s32", "DSS", "sat"),
        *_float_arithmetic(name),
    ]


def _float_arithmetic(name: str) -> list[Rule]:
    return [
        _rule("f32", name + "_f32", "DSS", flags="ftz sat", ignores="rn"),
        _rule("f64", name + "_f64", "DSS", ignores="rn"),
        _rule("f16 f16x2", name + "_{type}", "DSS", flags="ftz sat", ignores="rn"),
        _rule("bf16 bf16x2", name + "_{type}", "DSS", ignores="rn"),
    ]


def _extreme(name: str) -> list[Rule]:
    return [
        _rule(INTEGERS, name + "_{sign}{bits}", "DSS"),
        _rule(PAIRS, name + "_{type}", "DSS"),
        _rule("s32 s16x2", name + "_relu_{type}", "DSS", "relu"),
        _rule("f32", name + "_f32", "DSS", flags="ftz NaN"),
        _rule("f64", name + "_f64", "DSS"),
        _rule("f16 f16x2 bf16 bf16x2", name + "_{type}", "DSS", flags="NaN"),
    ]


def _fused() -> list[Rule]:
    return [
        _rule("f32", "fma_f32", "DSSS", "rn", flags="ftz sat"),
        _rule("f64", "fma_f64", "DSSS", "rn"),
    ]


def _half_fused() -> list[Rule]:
    return [
        _rule("f16 f16x2", "fma_{type}", "DSSS", "rn", flags="ftz sat"),
        _rule("f16 f16x2", "fma_{type}", "DSSS", "rn relu", flags="ftz", mod=(RELU,)),
        _rule("bf16 bf16x2", "fma_{type}", "DSSS", "rn", flags="relu"),
    ]


def _quotient(name: str, operands: str) -> list[Rule]:
    """div, rcp and sqrt: correctly rounded, and the approximations that are no less exact."""
    return [
        _rule("f32", name + "_f32", operands, "rn", flags="ftz"),
        _rule("f64", name + "_f64", operands, "rn"),
    ]


def _function(name: str) -> list[Rule]:
    return [_rule("f32", name + "_f32", "DS", "approx", flags="ftz")]


def _sign_change(name: str, integer: str) -> list[Rule]:
    return [
        _rule("s16 s32 s64", f"{name}_{integer}{{bits}}", "DS"),
        _rule("f32", name + "_f32", "DS", flags="ftz"),
        _rule("f64", name + "_f64", "DS"),
        _rule("f16", name + "_half", "DS", flags="ftz", mod=(0, 0x8000)),
        _rule("f16x2", name + "_half", "DS", flags="ftz", mod=(0, 0x80008000)),
        _rule("bf16", name + "_half", "DS", mod=(0, 0x8000)),
        _rule("bf16x2", name + "_half", "DS", mod=(0, 0x80008000)),
    ]


def _logic(name: str, truth: int) -> list[Rule]:
    operands = "DS" if name == "not" else "DSS"
    predicates = "Pp" if name == "not" else "Ppp"
    return [_rule(BITS, name + "_b{bits}", operands), _rule("pred", "logic_pred", predicates, mod=(truth,))]


RULES: dict[str, list[Rule]] = {
    "add": [
        *_arithmetic("add"),
        _rule(PAIRS, "add_{type}", "DSS"),
        _rule(PAIRS | {"u32"}, "add_sat_{type}", "DSS", "sat"),
    ],
    "sub": _arithmetic("sub"),
    "mul": [
        _rule(INTEGERS, "mul_lo_b{bits}", "DSS", "lo"),
        _rule(INTEGERS, "mul_hi_{sign}{bits}", "DSS", "hi"),
        _rule("u16 s16 u32 s32", "mul_wide_{sign}{bits}", "WSS", "wide"),
        *_float_arithmetic("mul"),
    ],
    "mad": [
        _rule(INTEGERS, "mad_lo_b{bits}", "DSSS", "lo"),
        _rule(INTEGERS, "mad_hi_{sign}{bits}", "DSSS", "hi"),
        _rule("s32", "mad_hi_sat_s32", "DSSS", "hi sat"),
        _rule("u16 s16 u32 s32", "mad_wide_{sign}{bits}", "WSSV", "wide"),
        *_fused(),
    ],
    "mul24": [_rule(WORDS, f"mul24_{half}_{{type}}", "DSS", half) for half in ("lo", "hi")],
    "mad24": [
        *(_rule(WORDS, f"mad24_{half}_{{type}}", "DSSS", half) for half in ("lo", "hi")),
        _rule("s32", "mad24_hi_sat_s32", "DSSS", "hi sat"),
    ],
    "sad": [_rule(INTEGERS, "sad_{sign}{bits}", "DSSS")],
    "fma": [*_fused(), *_half_fused()],
    "div": [
        _rule(INTEGERS, "div_{sign}{bits}", "DSS"),
        *_quotient("div", "DSS"),
        _rule("f32", "div_approx_f32", "DSS", "approx", flags="ftz"),
        _rule("f32", "div_f32", "DSS", "full", flags="ftz"),
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
    "cnot": [_rule(BITS, "cnot_b{bits}", "DS")],
    "shl": [_rule(BITS, "shl_b{bits}", "DSN")],
    "shr": [_rule(BITS | INTEGERS, "shr_{sign}{bits}", "DSN")],
    "bfe": [_rule(WIDE_INTEGERS, "bfe_{sign}{bits}", "DSNN")],
    "bfi": [_rule(WIDE_BITS, "bfi_b{bits}", "DSSNN")],
    "popc": [_rule(WIDE_BITS, "popc_b{bits}", "CS")],
    "clz": [_rule(WIDE_BITS, "clz_b{bits}", "CS")],
    "brev": [_rule(WIDE_BITS, "brev_b{bits}", "DS")],
    "fns": [_rule("b32", "fns", "DSSS")],
    "rcp": [*_quotient("rcp", "DS"), *_function("rcp"), _rule("f64", "gross_f64", "DS", "approx ftz")],
    "sqrt": [*_quotient("sqrt", "DS"), *_function("sqrt")],
    "rsqrt": [
        *_function("rsqrt"),
        _rule("f64", "rsqrt_f64", "DS", "approx"),
        _rule("f64", "gross_f64", "DS", "approx ftz", mod=(1,)),
    ],
    "sin": _function("sin"),
    "cos": _function("cos"),
    "lg2": _function("lg2"),
    "ex2": [
        *_function("ex2"),
        _rule("f16 f16x2", "ex2_{type}", "DS", "approx"),
        _rule("bf16 bf16x2", "ex2_{type}", "DS", "approx ftz", mod=(FTZ,)),
    ],
    "tanh": [_rule("f32 f16 f16x2 bf16 bf16x2", "tanh_{type}", "DS", "approx")],
}


def regular(decoder: Decoder, instruction: Instruction) -> Row | None:
    """The row that the table gives for an instruction; None where no rule takes it."""
    *qualifiers, kind = instruction.qualifiers or ("",)
    given = set(qualifiers)
    for rule in RULES.get(instruction.mnemonic, ()):
        rest = given - rule.ignores - rule.requires
        if kind in rule.types and rule.requires <= given and rest <= rule.flags:
            if len(instruction.operands) == 4 and len(rule.operands) == 3 and instruction.mnemonic in ("min", "max"):
                return None  # of three sources
            flags = sum(FLAGS[flag] for flag in rest)
            return _regular_row(decoder, instruction, rule, kind, flags)
    return None


def _regular_row(decoder: Decoder, instruction: Instruction, rule: Rule, kind: str, flags: int) -> Row:
    expect_operands(decoder, len(rule.operands))
    bits = KIND_BITS[kind]
    double = f"u{2 * bits}"
    kinds = {"D": kind, "S": kind, "W": double, "V": double, "N": "u32", "C": "u32", "P": "pred", "p": "pred"}
    operands = []
    for letter, operand in zip(rule.operands, instruction.operands, strict=True):
        look_up = decoder.destination if letter in "DWCP" else decoder.source
        operands.append(look_up(operand, kinds[letter]))
    sign = "s" if kind[0] == "s" else "u"
    core = rule.core.format(type=kind, bits=bits, sign=sign)
    return Row(core, operands, 1, (rule.mod[0] | flags, *rule.mod[1:]))
