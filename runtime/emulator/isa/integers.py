"""Integer arithmetic that is not regular: the extended-precision instructions."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import expect_operands, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Instruction

# integer.c: takes the carry, leaves it, subtracts, multiplies first, the high half of the product, signed
CARRY_IN, CARRY_OUT, SUBTRACTS, MULTIPLIES, HIGH_HALF, SIGNED = 1, 2, 4, 8, 16, 32
EXTENDED = {"addc": CARRY_IN, "subc": CARRY_IN | SUBTRACTS, "madc": CARRY_IN | MULTIPLIES}
CARRIED = {"add": 0, "sub": SUBTRACTS, "mad": MULTIPLIES}


@special("addc", "subc", "madc", operands="DSS DSSS")
def extended(decoder: Decoder, instruction: Instruction) -> Row:
    """add.cc, addc and the like: the carry is a hidden predicate of each thread."""
    qualifiers = qualifiers_of(decoder, instruction)
    kind = qualifiers.need("u32", "s32", "u64", "s64")
    how = (EXTENDED | CARRIED)[instruction.mnemonic]
    if qualifiers.take("cc"):
        how |= CARRY_OUT
    if how & MULTIPLIES and qualifiers.need("lo", "hi") == "hi":
        how |= HIGH_HALF
    qualifiers.done()
    how |= SIGNED if kind[0] == "s" else 0
    to, *sources = instruction.operands
    expect_operands(decoder, 4 if how & MULTIPLIES else 3)
    carry = [(decoder.carry(), False)]
    operands = [decoder.destination(to, kind)] + (carry if how & CARRY_OUT else [])
    operands += [decoder.source(source, kind) for source in sources] + (carry if how & CARRY_IN else [])
    return Row("extended", operands, 2 if how & CARRY_OUT else 1, (how, TYPE_BITS[kind]))
