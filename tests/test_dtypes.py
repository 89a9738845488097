import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from lowbitvm import dtypes
from lowbitvm.errors import LowbitvmError

ARRAY_TYPES = list(dtypes.ARRAY_TYPES.values())
CODE_TYPES = list(dtypes.CODE_TYPES.values())
FLOATS = [code for code in CODE_TYPES if code.kind == "float"]
FIXED = [code for code in CODE_TYPES if code.values is not None]
ORACLES = {  # code type -> the type of ml_dtypes with the same patterns
    "f4e2m1": ml_dtypes.float4_e2m1fn,
    "f6e2m3": ml_dtypes.float6_e2m3fn,
    "f6e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}


@pytest.mark.parametrize("dtype", [*ARRAY_TYPES, *dtypes.SCALE_TYPES.values()], ids=str)
def test_of_inverts_numpy_and_torch(dtype: dtypes.DType) -> None:
    assert dtypes.of(np.zeros(3, dtype.numpy)) == dtype
    assert dtypes.of(torch.zeros(3, dtype=dtype.torch())) == dtype


@pytest.mark.parametrize("dtype", [*ARRAY_TYPES, *(c for c in CODE_TYPES if c.name not in ("u8", "i8"))], ids=str)
def test_get_finds_every_dtype_by_its_name(dtype: dtypes.DType) -> None:
    assert dtypes.get(str(dtype)) == dtype
    assert len({dtype, dtypes.get(dtype.name)}) == 1


@pytest.mark.parametrize("dtype", ARRAY_TYPES, ids=str)
def test_bits_and_kind_agree_with_numpy(dtype: dtypes.DType) -> None:
    assert dtype.bits == (1 if dtype.kind == "bool" else 8 * dtype.numpy.itemsize)
    if dtype.is_float:
        assert ml_dtypes.finfo(dtype.numpy).bits == dtype.bits
    else:
        assert dtype.is_integer == np.issubdtype(dtype.numpy, np.integer)
        assert (dtype.kind == "uint") == np.issubdtype(dtype.numpy, np.unsignedinteger)


@pytest.mark.parametrize(
    ("code", "reference"),
    [
        (dtypes.CODE_TYPES[f"{kind}{bits}"], getattr(ml_dtypes, f"{name}{bits}"))
        for kind, name, widths in (("u", "uint", (1, 2, 4)), ("i", "int", (2, 4)))
        for bits in widths
    ],
    ids=str,
)
def test_code_range_is_that_of_ml_dtypes(code: dtypes.CodeType, reference: type) -> None:
    info = ml_dtypes.iinfo(reference)
    assert (code.low, code.high) == (info.min, info.max)


def test_there_is_a_code_type_for_every_width_and_every_split_of_a_float() -> None:
    names = {f"u{b}" for b in range(1, 9)} | {f"i{b}" for b in range(2, 9)} | {f"bp{b}" for b in range(1, 9)}
    names |= {f"c{b}" for b in range(1, 9)} | {"ternary", "nf4", "e4m3", "e5m2"}
    names |= {f"f{1 + e + m}e{e}m{m}" for e in range(1, 8) for m in range(7) if 3 <= 1 + e + m <= 8}
    assert set(dtypes.CODE_TYPES) == names - {"f8e4m3", "f8e5m2"}
    assert dtypes.get("f8e4m3") is dtypes.CODE_TYPES["e4m3"] and dtypes.get("f8e5m2") is dtypes.CODE_TYPES["e5m2"]


@pytest.mark.parametrize("code", CODE_TYPES, ids=str)
def test_stored_numbers_the_codes_from_zero_and_codes_inverts_it(code: dtypes.CodeType) -> None:
    codes = range(code.low, code.high + 1, code.step)
    assert [code.stored(q) for q in codes] == list(range(3 if code.name == "ternary" else 1 << code.bits))
    assert [code.codes(code.stored(q)) for q in codes] == list(codes)
    array = np.array(codes, np.int16)
    np.testing.assert_array_equal(code.codes(code.stored(array)), array)
    tensor = torch.tensor(codes, dtype=torch.int16)
    assert torch.equal(code.codes(code.stored(tensor)), tensor)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_bipolar_code_is_the_sum_of_its_bits_as_plus_and_minus_one(bits: int) -> None:
    signed_bits = 2 * (np.arange(1 << bits)[:, None] >> np.arange(bits) & 1) - 1
    np.testing.assert_array_equal(dtypes.CODE_TYPES[f"bp{bits}"].values, signed_bits @ (1 << np.arange(bits)))


@pytest.mark.parametrize("code", [code for code in CODE_TYPES if code.is_linear], ids=str)
def test_the_values_of_a_linear_type_are_its_codes(code: dtypes.CodeType) -> None:
    np.testing.assert_array_equal(code.values, code.codes(np.arange(1 << code.bits)))
    assert code.largest == max(-code.low, code.high)


@pytest.mark.parametrize("name", ORACLES)
def test_float_values_are_those_of_ml_dtypes_bit_for_bit(name: str) -> None:
    code = dtypes.CODE_TYPES[name]
    reference = np.arange(1 << code.bits, dtype=np.uint8).view(ORACLES[name]).astype(np.float64)
    np.testing.assert_array_equal(code.values, reference)
    np.testing.assert_array_equal(np.signbit(code.values)[reference == 0], np.signbit(reference)[reference == 0])
    assert code.largest == float(ml_dtypes.finfo(ORACLES[name]).max)


@pytest.mark.parametrize("code", FLOATS, ids=str)
def test_float_values_follow_from_sign_exponent_and_fraction(code: dtypes.CodeType) -> None:
    assert code.values is not None and 1 + code.exponent + code.mantissa == code.bits
    for q, value in enumerate(code.values.tolist()):
        text = f"{q:0{code.bits}b}"
        field, fraction = int(text[1 : 1 + code.exponent], 2), Fraction(int("0" + text[1 + code.exponent :], 2), 1)
        fraction /= 2**code.mantissa
        scale = Fraction(2) ** (max(field, 1) - (2 ** (code.exponent - 1) - 1))
        if np.isfinite(value):
            assert Fraction(value) == (-1 if text[0] == "1" else 1) * scale * (fraction + (field > 0))
        else:
            assert code.name in ("e4m3", "e5m2") and field == 2**code.exponent - 1


@pytest.mark.parametrize("code", FIXED, ids=str)
def test_encode_inverts_decode_on_every_pattern_that_is_a_number(code: dtypes.CodeType) -> None:
    patterns = np.arange(code.used or 1 << code.bits)
    values = code.decode(patterns)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(code.encode(values)[finite], patterns[finite])
    assert code.encode(torch.from_numpy(values))[torch.from_numpy(finite)].tolist() == patterns[finite].tolist()
    assert torch.equal(code.decode(torch.from_numpy(patterns))[finite], torch.from_numpy(values[finite]))
    np.testing.assert_array_equal(np.isnan(code.decode(code.encode(values))), np.isnan(values))


@pytest.mark.parametrize("name", ORACLES)
def test_rounding_is_that_of_ml_dtypes_within_range(name: str) -> None:
    code, oracle = dtypes.CODE_TYPES[name], ORACLES[name]
    assert code.values is not None
    magnitudes = np.unique(np.abs(code.values[np.isfinite(code.values)]))
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    rng = np.random.default_rng(1)
    random = rng.uniform(0, code.largest, 4096) * np.exp2(rng.uniform(-2 - 2**code.exponent, 0, 4096))
    # ml_dtypes rounds what is a float32; a float64 it rounds twice
    exact = np.concatenate([magnitudes, middles, random, np.nextafter(middles.astype(np.float32), np.float32(np.inf))])
    exact = exact.astype(np.float32)
    for sign in (1, -1):
        reference = (sign * exact).astype(oracle).view(np.uint8)
        np.testing.assert_array_equal(code.encode(sign * exact), reference)
        np.testing.assert_array_equal(code.encode(torch.from_numpy(sign * exact)).numpy(), reference)


@pytest.mark.parametrize("code", FIXED, ids=str)
def test_encode_finds_the_nearest_value_and_breaks_ties_as_documented(code: dtypes.CodeType) -> None:
    assert code.values is not None
    usable = code.values[: code.used]
    ordered = np.unique(usable[np.isfinite(usable)])
    middles = (ordered[1:] + ordered[:-1]) / 2
    between = np.random.default_rng(2).uniform(ordered[0] * 1.1 - 1, ordered[-1] * 1.1 + 1, 500)
    for x in np.concatenate([middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf), between]).tolist():
        pattern = int(code.encode(np.array([x]))[0])
        above = int(np.searchsorted(ordered, x).clip(1, len(ordered) - 1))
        low, high = (float(value) for value in ordered[above - 1 : above + 1])
        to_low, to_high = abs(Fraction(x) - Fraction(low)), abs(Fraction(high) - Fraction(x))
        if to_low != to_high or code.kind == "table" or code.step == 2:
            assert usable[pattern] == (low if to_low < to_high else high)
        else:
            assert usable[pattern] in (low, high)
            assert usable[pattern] % 2 == 0 if code.is_linear else pattern % 2 == 0


@pytest.mark.parametrize("code", FIXED, ids=str)
def test_encode_saturates_and_keeps_nan_only_where_the_type_has_it(code: dtypes.CodeType) -> None:
    values = np.array([np.inf, 1e30, -1e30, -np.inf, np.nan, -np.nan])
    for stored in (code.encode(values), code.encode(torch.from_numpy(values)).numpy()):
        decoded = code.decode(stored)
        usable = code.values[: code.used][np.isfinite(code.values[: code.used])]  # type: ignore[index]
        assert decoded[:4].tolist() == [usable.max(), usable.max(), usable.min(), usable.min()]
        assert np.isnan(decoded[4:]).all() if code.name in ("e4m3", "e5m2") else (decoded[4:] == usable.max()).all()


def test_nf4_is_the_table_of_qlora_in_f16() -> None:
    published = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
    published += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
    published += [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941]
    published += [0.7229568362236023, 1.0]
    np.testing.assert_array_equal(dtypes.CODE_TYPES["nf4"].values, np.float16(published).astype(np.float64))


@pytest.mark.parametrize("as_array", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_a_codebook_that_is_data_encodes_to_its_nearest_entry(as_array: Callable[[np.ndarray], object]) -> None:
    code = dtypes.CODE_TYPES["c2"]
    assert code.values is None
    table = np.array([3.0, -1.0, 0.5, -1.0], np.float16)
    stored = code.encode(as_array(np.array([9.0, 1.8, 1.7, -0.25, -0.26, -5.0])), as_array(table))
    assert list(stored) == [0, 0, 2, 2, 1, 1]


@pytest.mark.parametrize("code", CODE_TYPES, ids=str)
def test_unpacked_codes_fit_the_numpy_and_torch_dtype(code: dtypes.CodeType) -> None:
    info = np.iinfo(code.numpy)
    assert info.min <= code.low
    assert code.high <= info.max
    assert code.torch() == dtypes.of(np.zeros(1, code.numpy)).torch()


def test_unknown_name_is_refused() -> None:
    with pytest.raises(LowbitvmError, match=r"^DTYPE_MISMATCH: .*'f12'.*f16"):
        dtypes.get("f12")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.zeros(2, np.complex64), "complex64"),
        (np.zeros(2, ">f4"), ">f4"),
        (np.zeros(2, ml_dtypes.int4), "int4"),
        (torch.zeros(2, dtype=torch.complex64), r"torch\.complex64"),
        ([1, 2], "list"),
        (1.5, "float"),
    ],
    ids=repr,
)
def test_other_values_have_no_dtype(value: object, named: str) -> None:
    with pytest.raises(LowbitvmError, match=f"^DTYPE_MISMATCH: .*{named}"):
        dtypes.of(value)


def test_packing_numpy_imports_no_torch_and_a_torch_dtype_needs_it() -> None:
    program = """
import sys
import numpy as np
from lowbitvm import dtypes
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.quantize import quantize
quantize(np.ones((2, 32), np.float32), Format("i4", group=32)).dequantize()
assert "torch" not in sys.modules
try:
    dtypes.f16.torch()
except LowbitvmError as error:
    print(error.code)
"""
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout == "TOOL_MISSING\n"
