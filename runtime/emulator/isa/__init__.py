"""What each PTX instruction becomes: a table for the regular ones (regular.py), a function for each of the others.

A function gets the forms of its mnemonic that no rule of the table takes.
"""

import re
from dataclasses import replace

from lowbitvm.runtime.emulator.decode import SPACES, Decoder, Row
from lowbitvm.runtime.emulator.grammar import malformed
from lowbitvm.runtime.emulator.isa import (
    bits,
    call,
    control,
    convert,
    floats,
    integers,
    matrix,
    mbarrier,
    memory,
    moves,
    video,
    warp,
    wmma,
)
from lowbitvm.runtime.emulator.isa.form import SPECIAL, check_operands
from lowbitvm.runtime.emulator.isa.regular import regular
from lowbitvm.runtime.emulator.legality import illegal
from lowbitvm.runtime.emulator.syntax import Address, Instruction, Name

__all__ = [
    "bits",
    "call",
    "control",
    "convert",
    "decode",
    "floats",
    "integers",
    "matrix",
    "mbarrier",
    "memory",
    "moves",
    "video",
    "warp",
    "wmma",
]


ONLY = {"mbarrier": "shared", "prefetchu": "no variable"}  # what an address without a state space has to be in
NAMED_LAST = ("mul", "mul24", "dp2a")  # whose name may not stand behind types
TYPE = re.compile(r"pred|[bsu](2|4|8|16|32|64|128)|b?f16(x2)?|f32(x2)?|f64|[su]16x2|tf32|e\dm\d(x\d)?|ue8m0x2|s2f6x2")


def _types_last(instruction: Instruction) -> Instruction:
    """Modifiers may stand after or between types, as in the manual's `cvt.f64.bf16.rp`; here they come first.

    Not for mma and wmma, whose types have fixed places, and not after .lo, .hi and .wide, which belong to the name.
    .sat may be repeated.
    """
    if instruction.qualifiers.count("sat") > 1:
        kept = [
            word
            for n, word in enumerate(instruction.qualifiers)
            if word not in instruction.qualifiers[:n] or word != "sat"
        ]
        instruction = replace(instruction, qualifiers=tuple(kept))
    is_type = [TYPE.fullmatch(word) is not None for word in instruction.qualifiers]
    if sorted(is_type) == is_type or instruction.mnemonic in ("mma", "wmma"):
        return instruction
    if instruction.mnemonic in NAMED_LAST and not {"lo", "hi", "wide"}.isdisjoint(instruction.qualifiers):
        return instruction
    ordered = sorted(instruction.qualifiers, key=lambda word: TYPE.fullmatch(word) is not None)
    return replace(instruction, qualifiers=tuple(ordered))


def _check_spaces(decoder: Decoder, instruction: Instruction) -> None:
    """Raises PtxError where an address names a variable of another state space than the instruction accesses.

    Generic addresses are those of .global, .shared and .local.
    """
    named = [word.split("::")[0] for word in instruction.qualifiers if word.split("::")[0] in SPACES]
    for operand in instruction.operands:
        if not isinstance(operand, Address):
            continue
        wanted = named.pop(0) if len(named) > 1 else named[0] if named else None
        wanted = ONLY.get(instruction.mnemonic, wanted)
        name = operand.base.text if isinstance(operand.base, Name) and operand.brackets else ""
        found = decoder.declared_space(name)
        if found is not None and (found != wanted if wanted else found in ("const", "param")):
            raise decoder.error(f"{name} is in .{found}, {instruction.name} accesses {wanted or 'generic addresses'}")


def decode(decoder: Decoder, instruction: Instruction) -> Row:
    """The core's row for one instruction. Raises PtxError, for an unimplemented instruction by name."""
    decoder.instruction = instruction
    problem = malformed(instruction) or illegal(
        instruction, decoder.syntax.target, decoder.syntax.version, decoder.is_predicate
    )
    if problem is not None:
        raise decoder.error(problem)
    _check_spaces(decoder, instruction)
    instruction = decoder.instruction = _types_last(instruction)
    row = regular(decoder, instruction)
    if row is not None:
        return row
    special = SPECIAL.get(instruction.mnemonic)
    if special is None:
        raise decoder.unimplemented()
    check_operands(decoder, instruction, special.patterns)
    return special.build(decoder, instruction)
