import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from lowbitvm import dtypes
from lowbitvm.errors import LowbitvmError

ARRAY_TYPES = list(dtypes.ARRAY_TYPES.values())
CODE_TYPES = list(dtypes.CODE_TYPES.values())


@pytest.mark.parametrize("dtype", ARRAY_TYPES, ids=str)
def test_of_inverts_numpy_and_torch(dtype: dtypes.DType) -> None:
    assert dtypes.of(np.zeros(3, dtype.numpy)) == dtype
    assert dtypes.of(torch.zeros(3, dtype=dtype.torch())) == dtype


@pytest.mark.parametrize("dtype", [*ARRAY_TYPES, *CODE_TYPES], ids=str)
def test_get_finds_every_dtype_by_its_name(dtype: dtypes.DType) -> None:
    assert dtypes.get(str(dtype)) == dtype
    assert getattr(dtypes, "boolean" if dtype.name == "bool" else dtype.name) == dtype
    assert len({dtype, dtypes.get(dtype.name)}) == 1


@pytest.mark.parametrize("dtype", ARRAY_TYPES, ids=str)
def test_bits_and_kind_agree_with_numpy(dtype: dtypes.DType) -> None:
    assert dtype.bits == (1 if dtype.kind == "bool" else 8 * dtype.numpy.itemsize)
    if dtype.is_float:
        assert ml_dtypes.finfo(dtype.numpy).bits == dtype.bits
    else:
        assert dtype.is_integer == np.issubdtype(dtype.numpy, np.integer)
        assert (dtype.kind == "uint") == np.issubdtype(dtype.numpy, np.unsignedinteger)


@pytest.mark.parametrize(("code", "reference"), [(dtypes.u4, ml_dtypes.uint4), (dtypes.i4, ml_dtypes.int4)], ids=str)
def test_code_range_is_that_of_ml_dtypes(code: dtypes.CodeType, reference: type) -> None:
    info = ml_dtypes.iinfo(reference)
    assert (code.low, code.high) == (info.min, info.max)


@pytest.mark.parametrize("code", CODE_TYPES, ids=str)
def test_encode_numbers_the_codes_from_zero_and_decode_inverts_it(code: dtypes.CodeType) -> None:
    codes = range(code.low, code.high + 1)
    assert [code.encode(q) for q in codes] == list(range(1 << code.bits))
    assert [code.decode(code.encode(q)) for q in codes] == list(codes)
    array = np.array(codes, np.int8)
    np.testing.assert_array_equal(code.decode(code.encode(array)), array)
    tensor = torch.tensor(codes, dtype=torch.int8)
    assert torch.equal(code.decode(code.encode(tensor)), tensor)


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
from lowbitvm.pack import quantize
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
