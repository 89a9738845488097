"""The decode table, evaluated over every code, zero point and position."""

import ml_dtypes
import numpy as np
import pytest

from lowbitvm.codegen.convert import FIELDS, ORIGINS
from lowbitvm.targets import STORED_4BIT

FLOATS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("act", FIELDS)
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("r", range(4))
def test_every_code_decodes_to_itself_minus_the_zero_point(act, half, r):
    field, float_type = FIELDS[act][r], FLOATS[act]
    code, zero, noise = np.meshgrid(np.arange(16), np.arange(16), [0x00000000, 0xFFFFFFFF, 0xA5C33C5A])
    place = 4 * (4 * half + r)
    words = (noise.astype(np.int64) & ~(0xF << place)) | (code.astype(np.int64) << place)
    placed = (words >> field.shift & field.mask) | field.magic
    value = (placed >> (16 * half) & 0xFFFF).astype(np.uint16).view(float_type)
    factor = np.uint16(field.scale & 0xFFFF).view(float_type)
    addend = np.array(-(ORIGINS[act][r % 2] + zero)).astype(float_type)
    assert np.array_equal(addend.astype(np.float64), -(ORIGINS[act][r % 2] + zero))  # the addend itself is exact
    exact = value.astype(np.float64) * float(factor) + addend.astype(np.float64)
    assert np.array_equal(exact, (code - zero).astype(np.float64))
    assert np.array_equal(exact.astype(float_type).astype(np.float64), exact)  # so the fused result is exact too


def test_register_parity_is_the_row_class_that_the_addends_assume():
    for code in range(32):
        assert STORED_4BIT(code=code, lane=0)["n"] == 8 * (code % 2)
