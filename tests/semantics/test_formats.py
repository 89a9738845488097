"""The oracle of the other tests against ml_dtypes and numpy: all codes of small formats, many of large ones."""

import ml_dtypes
import numpy as np
import pytest

from tests.semantics.formats import E4M3, FORMATS, Number
from tests.semantics.harness import UNSIGNED, patterns

DTYPES = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "f32": np.float32,
    "f64": np.float64,
}


@pytest.mark.parametrize("name", DTYPES)
def test_decoding_agrees_with_ml_dtypes(name: str) -> None:
    form, dtype = FORMATS[name], np.dtype(DTYPES[name])
    codes = np.arange(1 << form.bits) if form.bits <= 16 else patterns(form.bits, 2000, 0)
    with np.errstate(invalid="ignore"):  # of signalling NaNs
        values = codes.astype(UNSIGNED[dtype.itemsize]).view(dtype).astype(np.float64)
    for code, value in zip(codes.tolist(), values.tolist(), strict=True):
        number = form.decode(code)
        assert number.negative == np.signbit(value) or number.nan
        assert (number.nan, number.infinite) == (np.isnan(value), np.isinf(value))
        assert not number.finite or float(number.value) == value


@pytest.mark.parametrize("name", [name for name in DTYPES if name != "f64"])
def test_rounding_to_nearest_agrees_with_ml_dtypes(name: str) -> None:
    form, dtype = FORMATS[name], np.dtype(DTYPES[name])
    double = FORMATS["f64"]
    limit = float(form.decode(form.largest).value)
    values = np.random.default_rng(0).normal(size=4000) * np.float64(2.0) ** np.random.default_rng(1).integers(-12, 12)
    for scale in (limit / 4, 1.0, float(form.decode(2).value)):
        drawn = np.clip(values * scale, -limit, limit)
        codes = drawn.astype(dtype).view(UNSIGNED[dtype.itemsize])
        for value, code in zip(drawn.view(np.uint64).tolist(), codes.tolist(), strict=True):
            assert form.encode(double.decode(value)) == code, value


def test_overflow_goes_to_infinity_or_stays_finite_by_direction() -> None:
    half, huge = FORMATS["f16"], FORMATS["f64"].decode(0x7FE0000000000000)
    assert [half.encode(huge, mode) for mode in ("rn", "rz", "rm", "rp")] == [0x7C00, 0x7BFF, 0x7BFF, 0x7C00]
    low = Number(True, huge.magnitude)
    assert [half.encode(low, mode) for mode in ("rn", "rz", "rm", "rp")] == [0xFC00, 0xFBFF, 0xFC00, 0xFBFF]
    assert half.encode(huge, saturate=True) == 0x7BFF and E4M3.encode(huge) == 0x7E
