"""The decode of every code type: every code at every place, by a model of each instruction and in the emulator."""

import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm.codegen import convert
from lowbitvm.codegen.convert import TableDecoder, decoder
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import emulator
from tests import decoding

ACTS = ("f16", "bf16")
HELD = [
    (name, act)
    for name, code in CODE_TYPES.items()
    for act in ACTS
    if code.kind != "float" or convert.held_by(code, act)
]


def table_of(code):
    """16-bit float values that are all different; nf4 brings its own."""
    if code.kind != "table":
        return None
    return code.values if code.values is not None else np.arange(1 << code.bits, dtype=np.float16) * 0.37 - 11


class Model:
    """An Emitter that computes each instruction on numpy arrays, as the PTX ISA describes it."""

    def __init__(self, **registers):
        self.registers = dict(registers)

    def register(self, kind):
        return f"%{kind}{len(self.registers)}"

    def op(self, name, kind, *operands):
        result = self.register(kind)
        self.do(name, result, *operands)
        return result

    def do(self, name, result, *operands):
        values = [self.registers[x] if isinstance(x, str) else np.uint64(x & 0xFFFFFFFF) for x in operands]
        self.registers[result] = COMPUTE[name](*values) & np.uint64(0xFFFFFFFF)


def rotate(low, high, count):
    return ((high << np.uint64(32)) | low) >> (count & np.uint64(31))


def lop3(a, b, c, table):
    minterms = [(a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c) for i in range(8)]
    return sum((term & np.uint64(0xFFFFFFFF) for i, term in enumerate(minterms) if int(table) >> i & 1), np.uint64(0))


def prmt(a, b, selector):
    both = (b << np.uint64(32)) | a
    picked = [both >> np.uint64(8 * (int(selector) >> 4 * i & 7)) & np.uint64(0xFF) for i in range(4)]
    assert not int(selector) & 0x8888
    return sum((byte << np.uint64(8 * i) for i, byte in enumerate(picked)), np.uint64(0))


def fma_bf16x2(a, b, c):
    halves = []
    for shift in (0, 16):
        x, y, z = (
            (np.asarray(v) >> np.uint64(shift)).astype(np.uint16).view(decoding.NATIVE["bf16"]).astype(float)
            for v in (a, b, c)
        )
        halves.append((x * y + z).astype(decoding.NATIVE["bf16"]).view(np.uint16).astype(np.uint64) << np.uint64(shift))
    return halves[0] | halves[1]


COMPUTE = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shf.r.wrap.b32": rotate,
    "lop3.b32": lop3,
    "prmt.b32": prmt,
    "fma.rn.bf16x2": fma_bf16x2,
}


@pytest.mark.parametrize(("name", "act"), [(n, a) for n, a in HELD if CODE_TYPES[n].kind != "table"])
def test_every_code_at_every_place_decodes_to_its_value_by_the_instructions_definitions(name, act):
    decode = decoder(CODE_TYPES[name], act)
    stored = decoding.every_code_everywhere(decode.code)
    words = decoding.words_of(decode.code, stored).astype(np.uint64)
    model = Model(**{f"w{i}": words[:, i] for i in range(decode.code.bits)})
    steps = decode.emit(model, [f"w{i}" for i in range(decode.code.bits)], decode.constants(model))
    fragments = np.stack([model.registers[name] for step in steps for name in step], 1).astype(np.uint32)
    check(decode, stored, fragments)


@pytest.mark.parametrize(("name", "act"), HELD)
def test_every_code_at_every_place_decodes_to_its_value_in_the_emulator(name, act):
    decode = decoder(CODE_TYPES[name], act)
    table = table_of(decode.code)
    stored = decoding.every_code_everywhere(decode.code)
    words, fragments = decoding.words_of(decode.code, stored), np.zeros((len(stored), 16), np.uint32)
    arguments = [words, fragments] if table is None else [words, fragments, decode.table(table)]
    ptx = decoding.kernel(decode, len(stored))
    shared = decode.table_bytes if isinstance(decode, TableDecoder) else 0
    report = emulator.load(ptx).launch(
        "decode", grid=(1, 1, 1), block=(len(stored), 1, 1), args=arguments, shared=shared, arch="sm_80"
    )
    assert not report.findings
    check(decode, stored, fragments, table)


def check(decode, stored, fragments, table=None):
    values, wanted = decoding.values_of(decode, fragments), decoding.expected(decode, stored, table)
    used = stored.reshape(wanted.shape) < (decode.code.used or 1 << decode.code.bits)
    finite = np.isfinite(wanted) & used
    assert np.array_equal(values[finite], wanted[finite])
    if decode.code.name == "e5m2" and decode.act == "f16":  # these have IEEE 754's infinities and NaN, f16's too
        assert np.array_equal(values, wanted, equal_nan=True)


@pytest.mark.parametrize("name", ["f6e5m0", "f7e5m1", "f7e6m0", "f8e7m0"])
def test_floats_that_f16_cannot_hold_are_refused(name):
    with pytest.raises(LowbitvmError, match=r"FORMAT_UNSUPPORTED.*bf16"):
        decoder(CODE_TYPES[name], "f16")


def test_the_table_of_costs_has_every_code_type_and_the_counts_of_the_decodes():
    lines = lb.explain_decode().splitlines()
    head, rows = lines[0].split(), [line.split() for line in lines[1:]]
    assert head[:2] == ["weights", "act"]
    named = {name: row for row in rows for name in row[: row.index("f16" if "f16" in row else "bf16")]}
    assert set(named) == set(CODE_TYPES)
    assert "u3 i3 bp3          f16   6.25      0    0     0       6.25   0.78        2^-19 2^-16  0       32 4" in lines
    for name, act in HELD:
        row = next(row for row in rows if name in row and act in row)
        instructions = row[row.index(act) + 1 + len(convert.PIPE_NAMES)]
        assert float(instructions) == sum(convert.cost(decoder(CODE_TYPES[name], act)).values()) / 4
    assert len(lb.explain_decode("f6e5m0").splitlines()) == 3 and "not held" in lb.explain_decode("f6e5m0")


def test_the_table_of_costs_names_the_code_types_there_are():
    with pytest.raises(LowbitvmError, match=r"DTYPE_MISMATCH.*u1, u2"):
        lb.explain_decode("u9")
