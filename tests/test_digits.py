"""Digits of integer codes: the laws of their decomposition, the stored order, and what does not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import digits, dtypes
from lowbitvm.integers import row_tiles, tile_k, tile_words

CODES = [name for name, code in dtypes.CODE_TYPES.items() if code.is_linear]


def drawn(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random codes of a type, the least and the largest among them."""
    code = dtypes.CODE_TYPES[name]
    patterns = np.random.default_rng(seed).integers(0, code.used or 1 << code.bits, shape)
    patterns.reshape(-1)[:2] = (0, (code.used or 1 << code.bits) - 1)[: patterns.size]
    return patterns * code.step - code.bias


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("name", CODES)
def test_every_code_is_its_offset_and_the_sum_of_its_digits_times_their_coefficients(name: str, bits: int) -> None:
    code = dtypes.CODE_TYPES[name]
    for stored_bits in {code.bits, 8}:
        parts = digits.decompose(code, bits, stored_bits)
        assert sum(digit.bits for digit in parts.digits) == stored_bits
        for value in range(code.low, code.high + 1, code.step):
            stored = parts.stored(value)
            found = [digit.of(stored) for digit in parts.digits]
            assert 0 <= stored < 1 << stored_bits
            assert parts.offset + sum(c * d for c, d in zip(parts.coefficients, found, strict=True)) == value


def test_planes_of_twos_complement_need_no_offset_and_those_of_bipolar_codes_count_double() -> None:
    assert digits.of_weights(dtypes.CODE_TYPES["i3"], "b1").coefficients == (1, 2, -4)
    assert digits.of_weights(dtypes.CODE_TYPES["i3"], "b1").offset == 0
    assert digits.of_weights(dtypes.CODE_TYPES["bp3"], "b1").coefficients == (2, 4, 8)
    assert digits.of_weights(dtypes.CODE_TYPES["bp3"], "b1").offset == -7
    assert digits.of_activations(dtypes.CODE_TYPES["bp7"], "s8").offset == 0  # -127 to 127 fit a byte


WIDTHS = [(bits, width) for width in (1, 4, 8) for bits in range(1, width + 1)]


@pytest.mark.parametrize(("bits", "width"), WIDTHS)
def test_narrow_registers_use_every_bit_of_their_words_once_and_fill_every_code(bits: int, width: int) -> None:
    found = digits.narrow(bits, width, 8)
    runs = [run for register in found for run in register]
    stored = sorted((run.word, run.position + i) for run in runs for i in range(run.length))
    assert stored == [(word, bit) for word in range(bits * 8 // width) for bit in range(width)]
    for number, register in enumerate(found):
        first = digits.raised_by(bits, width) * (number % 2)
        assert sorted(run.place + i for run in register for i in range(run.length)) == list(range(first, first + bits))


@pytest.mark.parametrize(("bits", "width"), WIDTHS)
def test_raised_registers_are_those_of_the_unpacked_codes_times_a_power_of_two(bits: int, width: int) -> None:
    count = 8
    rng = np.random.default_rng(0)
    words = [int(word) for word in rng.integers(0, 1 << 32, bits * count // width)]

    def registers(raised: bool) -> list[int]:
        steps, found = digits.widening(bits, width, count, raised)
        values = list(words)
        for step in steps:
            assert len(step.values) <= (1 if step.rotation else 2 if step.mask else 3)
            value = 0
            for i in step.values:
                value ^= values[i]
            value = (value << step.rotation | value >> (32 - step.rotation)) & 0xFFFFFFFF
            values.append(value & step.mask if step.mask else value)
        return [values[i] for i in found]

    by = digits.raised_by(bits, width)
    plain, raised = registers(raised=False), registers(raised=True)
    assert raised == [value << by * (number % 2) for number, value in enumerate(plain)]


@given(
    name=st.sampled_from(CODES),
    base=st.sampled_from(list(digits.BASES)),
    weight=st.booleans(),
    shape=st.tuples(st.integers(0, 40), st.integers(0, 600)),
)
def test_unpack_inverts_pack(name: str, base: str, weight: bool, shape: tuple[int, int]) -> None:
    codes = drawn(name, shape)
    if weight:
        packed = lb.pack_weights(codes, lb.Format(name, act="i8", digits=base))
    else:
        packed = lb.pack_activations(codes, lb.Format(name, digits=base))
    assert np.array_equal(packed.unpack(), codes)
    k_tiles = -(-shape[1] // tile_k(packed.format))
    assert packed.words.shape == (row_tiles(packed.format, shape[0]), k_tiles, tile_words(packed.format))
    assert np.array_equal(packed.sums, (codes - packed.decomposition.offset).sum(1))


@pytest.mark.parametrize("base", digits.BASES)
@pytest.mark.parametrize("weight", [False, True])
def test_codes_may_have_any_strides(base: str, weight: bool) -> None:
    codes = drawn("i3", (40, 512)).astype(np.int8)
    fmt = lb.Format("i3", "channel", act="i8" if weight else None, digits=base)
    pack = lb.pack_weights if weight else lb.pack_activations
    for strided in (codes.T, np.asfortranarray(codes), codes[::-2, ::-1], np.broadcast_to(codes[:1], (40, 512))):
        packed, plain = pack(strided, fmt), pack(strided.copy(order="C"), fmt)
        assert np.array_equal(packed.words, plain.words) and np.array_equal(packed.sums, plain.sums)
        assert np.array_equal(packed.unpack(), strided)


@pytest.mark.parametrize("base", digits.BASES)
def test_weights_of_whole_tiles_take_no_more_bytes_than_their_bits(base: str) -> None:
    for name in CODES:
        packed = lb.pack_weights(drawn(name, (32, 512)), lb.Format(name, act="u8", digits=base))
        assert packed.words.nbytes * 8 == 32 * 512 * dtypes.CODE_TYPES[name].bits


def test_formats_with_digits_are_spelled_and_read_back() -> None:
    for fmt in (lb.Format("u2", act="i8"), lb.Format("i3", act="bp4", digits="b1"), lb.Format("u8", digits="s8")):
        assert lb.Format.parse(str(fmt)) == fmt


@pytest.mark.parametrize(
    ("code", "make"),
    [
        ("FORMAT_INVALID", lambda: lb.Format("nf4", act="i8")),
        ("FORMAT_INVALID", lambda: lb.Format("u4", act="f16")),
        ("FORMAT_INVALID", lambda: lb.Format("u4", act="i8", digits="s3")),
        ("FORMAT_INVALID", lambda: lb.pack_weights(drawn("u4", (2, 3)), "u4")),
        ("FORMAT_INVALID", lambda: lb.pack_activations(drawn("u4", (2, 3)), "u4,act=i8")),
        ("FORMAT_UNSUPPORTED", lambda: lb.pack_weights(drawn("u2", (2, 3)), "u2,act=i8,digits=b1,planes=4")),
        ("GROUP_INDIVISIBLE", lambda: lb.pack(drawn("u4", (2, 3)), np.ones((2, 1), np.float16), None, "u4,act=i8")),
        ("CODES_OUT_OF_RANGE", lambda: lb.pack_activations(np.full((2, 3), 4), "u2")),
        ("CODES_OUT_OF_RANGE", lambda: lb.pack_weights(np.full((2, 3), 2), "bp2,act=i8")),
        ("SHAPE_MISMATCH", lambda: lb.pack_activations(np.zeros(3, int), "u2")),
        ("DTYPE_MISMATCH", lambda: lb.pack_activations(np.zeros((2, 3)), "u2")),
        ("GROUP_INDIVISIBLE", lambda: lb.pack_activations(np.zeros((2, 3), int), "u2", np.ones((2, 1)))),
        (
            "FORMAT_UNSUPPORTED: scales",
            lambda: lb.pack_activations(np.zeros((2, 3), int), "u2,group=channel,scale=e8m0", np.ones((2, 1), "u1")),
        ),
        ("DTYPE_MISMATCH", lambda: lb.pack_activations(np.zeros((2, 3), int), "u2,group=channel", np.ones((2, 1)))),
        ("SHAPE_MISMATCH", lambda: lb.pack_activations(np.zeros((2, 3), int), "u2,group=channel", np.ones(2, "f2"))),
        (
            "ARGUMENT_INVALID",
            lambda: lb.pack_activations(np.zeros((2, 3), int), "u2,group=channel", None, np.ones((2, 1), int)),
        ),
        (
            "CODES_OUT_OF_RANGE: zeros",
            lambda: lb.pack_activations(
                np.zeros((2, 3), int), "u2,group=channel,zero=int", np.ones((2, 1), "f2"), np.full((2, 1), 4)
            ),
        ),
    ],
)
def test_what_cannot_be_packed_as_digits_is_refused(code: str, make) -> None:
    with pytest.raises(lb.LowbitvmError, match=code):
        make()
