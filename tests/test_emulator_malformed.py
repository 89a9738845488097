"""Whatever text the emulator is given, it loads it or raises PtxError: malformed instructions of every mnemonic."""

import random
import re

import pytest

from lowbitvm.runtime import emulator
from lowbitvm.runtime.emulator.isa.form import SPECIAL
from lowbitvm.runtime.emulator.isa.regular import RULES
from tests.fuzz.loading import failure
from tests.fuzz.mutation import ODD, mutated
from tests.legality_forms import instructions
from tests.legality_mutants import operands_of
from tests.legality_ptxas import module, rejected

FORMS = instructions()


def one_of_each_shape() -> list[str]:
    """Of the forms with the same mnemonic and kinds of operands, one."""
    shapes = {}
    for form in FORMS:
        name, _, tail = form.partition(" ")
        shapes.setdefault((name.split(".")[0], re.sub(r"\d+", "", tail)), form)
    return list(shapes.values())


def test_operands_of_any_kind_and_number_load_or_raise_the_documented_error():
    rng, texts = random.Random(0), []
    for form in one_of_each_shape():
        name, _, tail = form.partition(" ")
        operands = operands_of(tail)
        for n in range(len(operands)):
            texts += [[*operands[:n], odd, *operands[n + 1 :]] for odd in rng.sample(ODD, 10)]
            texts.append(operands[:n])
        texts += [[*operands, "%r1"], operands * 2]
        failures = {failure(module([f"{name} {', '.join(text)}"], "sm_120a", 9.3)) for text in texts}
        assert failures == {None}, form
        texts.clear()


def test_every_mnemonic_without_operands_loads_or_raises_the_documented_error():
    names = {form.partition(" ")[0] for form in FORMS}
    names |= set(SPECIAL) | set(RULES) | {f"{name}.{word}" for name in (*SPECIAL, *RULES) for word in ("b32", "sync")}
    assert {failure(module([name], "sm_120a", 9.3)) for name in names} == {None}


def test_a_few_thousand_mutated_instructions_load_or_raise_the_documented_error():
    rng, words = random.Random(0), sorted({word for form in FORMS for word in re.findall(r"[\w:.%]+|\W", form)})
    for _ in range(5000):
        text = mutated(rng.choice(FORMS), words, rng)
        assert failure(module([text], "sm_100a", 9.3)) is None, text


@pytest.mark.parametrize(
    ("instruction", "what"),
    [
        ("discard.global.L2", "discard takes 2 operands, not 0"),
        ("prefetch.L1", "prefetch takes 1 operands, not 0"),
        ("prefetch.L1 %d1", "operand 1 of prefetch: expected an address in brackets"),
        ("cp.async.wait_group 1.5", "expected an integer constant"),
        ("cp.async.ca.shared.global.L2::cache_hint", "cp takes 4 or 5 operands, not 0"),
        ("mov.b32 {}, %r1", "expected an operand, found '}'"),
        ("mov.b128 %q1, 0d7FF0000000000000", "expected an integer constant"),
        ("addc.u32", "addc takes 3 or 4 operands, not 0"),
        ("@_ bra L", "the register _ is not declared"),
        ("@%r1 bra L", "%r1 is a .b32 register, the instruction takes .pred"),
        ("@L bra L", "the register L is not declared"),
    ],
)
def test_an_error_says_what_is_malformed(instruction, what):
    with pytest.raises(emulator.PtxError) as error:
        emulator.load(module([instruction], "sm_100a", 9.3))
    assert error.value.problem == what
    assert instruction in rejected([instruction], "sm_100a", 9.3)


@pytest.mark.parametrize("version", ["0f3F800000", "1e3", "8", "", "eight", "0d3FF0000000000000"])
def test_a_version_is_two_decimal_numbers(version):
    with pytest.raises(emulator.PtxError, match=r"expected a version like 8\.0"):
        emulator.load(f".version {version}\n.target sm_80\n.address_size 64\n")
