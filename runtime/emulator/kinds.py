"""Which registers an operand takes: the manual's "Operand Type Checking", and ptxas where that is silent."""

import functools

from lowbitvm.runtime.emulator.syntax import TYPE_BITS

# What operands are beyond the types of registers: untyped bits alone, for formats that no register is declared as;
# pairs of integers; integers for which pairs of floats may not stand. All are registers, not numbers.
RAW_BITS = {"raw8": 8, "raw16": 16, "raw32": 32, "raw64": 64, "u16x2": 32, "s16x2": 32, "int32": 32}
KIND_BITS = TYPE_BITS | RAW_BITS

BITS, INTEGER, PREDICATE = "bits", "integer", "pred"  # classes of registers; each float type is one of its own
NUMBERS = frozenset((BITS, INTEGER, "f16", "f16x2", "f32", "f64"))


def register_class(declared: str) -> str:
    if declared[0] in "us":
        return INTEGER
    return declared if declared[0] == "f" or declared == PREDICATE else BITS


def _accepted(kind: str) -> frozenset[str]:
    """The classes of the registers that an operand of a kind may be."""
    if kind == PREDICATE:
        return frozenset((PREDICATE,))
    if kind[0] == "f":
        return frozenset((BITS, kind))
    if kind in ("u16x2", "s16x2"):
        return frozenset((BITS, "f16x2"))
    if kind == "int32":
        return frozenset((BITS, INTEGER))
    if kind[0] in "us":
        return frozenset((BITS, INTEGER, "f16x2"))
    return NUMBERS if kind in TYPE_BITS and kind not in ("bf16", "bf16x2") else frozenset((BITS,))


@functools.cache
def fits(declared: str, kind: str, loose: bool) -> bool:
    """Whether a register of type `declared` takes a value of a kind; `loose` lets it be wider."""
    if register_class(declared) not in _accepted(kind):
        return False
    have, need = TYPE_BITS[declared], KIND_BITS[kind]
    return have >= need if loose and need > 1 else have == need


def element_kind(declared: list[str], kind: str) -> str | None:
    """What the elements of a vector have to be, from the types of its registers; None where these do not agree.

    With registers of bits among them it is a vector of bits. One of integers may stand for one of floats as wide, but
    not the other way.
    """
    classes = {register_class(one) for one in declared}
    if len(classes - {BITS}) > 1:
        return None
    bits = KIND_BITS[kind]
    integers = classes == {INTEGER} and len(declared) > 1 and kind in ("f16", "f32", "f64")
    return f"b{bits}" if len(classes) > 1 or (integers and TYPE_BITS[declared[0]] == bits) else kind
