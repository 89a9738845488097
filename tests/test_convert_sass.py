"""ptxas makes exactly the instructions of a decode that its cost counts, and moves nothing besides."""

import functools
import re
from collections import Counter

import pytest

from lowbitvm import chunk
from lowbitvm.codegen import convert
from lowbitvm.codegen.convert import TableDecoder, decoder
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.runtime.assemble import assemble, disassemble
from tests import decoding

THREADS = 32
ENDS = {"NOP", "BRA", "EXIT"}  # what follows the last store depends on alignment
SAME = {"HMUL2": "HFMA2"}  # a multiplication on the other of sm_90's two pipes for halves
SHAPES = {chunk.shape(code): code for code in CODE_TYPES.values()}
CASES = [
    (shape, act, target)
    for target, bits in (("sm_80", range(1, 9)), ("sm_90a", (3, 4, 8)))
    for act in ("f16", "bf16")
    for shape, code in SHAPES.items()
    if code.bits in bits and (code.kind != "float" or convert.held_by(code, act))
]


class Copies:
    """A decode that does nothing: the registers are the words, over and over."""

    def __init__(self, code):
        self.code = code

    def constants(self, b):
        return []

    def emit(self, b, words, constants):
        return [[words[i % self.code.bits] for i in range(4 * step, 4 * step + 4)] for step in range(4)]


@functools.cache
def all_instructions(act, target):
    """SASS instructions by mnemonic, without modifiers, of the test kernel of each shape, all in one module."""
    kernels = {shape: decoder(SHAPES[shape], act) for shape, *rest in CASES if rest == [act, target]}
    kernels |= {f"copies{bits}": Copies(CODE_TYPES[f"u{bits}"]) for bits in range(1, 9)}
    texts = [decoding.kernel(decode, THREADS, target, shape) for shape, decode in kernels.items()]
    module = texts[0] + "".join(text[text.index(".visible") :] for text in texts[1:])
    sections = re.split(r"\.text\.(\w+):", disassemble(assemble(module, target).cubin))
    return {shape: _mnemonics(sass) for shape, sass in zip(sections[1::2], sections[2::2], strict=True)}


def _mnemonics(sass):
    names = re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ +)?([A-Z0-9]+)", sass)
    return Counter(SAME.get(name, name) for name in names if name not in ENDS)


@pytest.mark.parametrize(("shape", "act", "target"), CASES)
def test_ptxas_makes_the_counted_instructions_and_no_others(shape, act, target):
    decode = decoder(SHAPES[shape], act)
    counted, made = convert.cost(decode), all_instructions(act, target)[shape]
    if isinstance(decode, TableDecoder):  # filling the table takes many others, but none of these
        lanes = decode.width > 1  # one LOP3 makes the number of the lane's copy
        kept = ("SHF", "LDS", "PRMT", "IDP")
        assert {key: made[key] for key in kept} == {key: counted[key] for key in kept}
        assert made["LOP3"] == counted["LOP3"] + lanes
        return
    others = all_instructions(act, target)[f"copies{decode.code.bits}"]
    constants = (decode.magic is not None) + 2 * (decode.multiplier is not None)
    assert {key: made[key] - others[key] for key in counted} == dict(counted)
    assert made.total() <= others.total() + counted.total() + constants
