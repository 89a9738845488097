"""Products of integers that become codes for the next layer, from floats or by integers alone."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.integer import run_matmul
from lowbitvm.runtime.reference import After
from tests.test_integer_linear import integers
from tests.test_matmul import exact, sides

TYPES = ["u1", "u4", "u8", "i2", "i5", "i8", "ternary"]
DEVICES = ("", "emulator:sm_75", "emulator:sm_80")


def ends(name: str) -> tuple[int, int]:
    bits = int(name[1:]) if name != "ternary" else 0
    return (-1, 1) if not bits else (0, 2**bits - 1) if name[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("base", ["s8", "b1"])
def test_codes_by_dyadic_numbers_are_those_of_python_integers(
    name: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, high = ends(name)
    a, w = sides("i4", "u8", base, m=11, n=37, k=300)
    rng = np.random.default_rng(0)
    bias = rng.integers(-9999, 9999, 37, dtype=np.int32)
    multipliers, shifts = (rng.integers(*span, 37, dtype=np.int32) for span in ((-(2**31), 2**31), (0, 63)))
    shifts[:30] = rng.integers(30, 50, 30)  # most of them such that codes are neither all the same
    zero = high // 2
    wanted = lb.Requantize(name, zero=zero, multipliers=multipliers, shifts=shifts)
    sums = exact(a, w) + bias
    expected = [
        [
            min(max((int(v) * int(b) + (1 << int(c) >> 1) >> int(c)) + zero, low), high)
            for v, b, c in zip(row, multipliers, shifts, strict=True)
        ]
        for row in sums
    ]
    for device in DEVICES:
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        y = lb.matmul(a, w, bias=bias, requantize=wanted)
        assert y.dtype == (np.int8 if low < 0 else np.uint8) and np.array_equal(y, expected)


@pytest.mark.parametrize("name", ["bp1", "bp4", "bp7"])
def test_bipolar_codes_by_dyadic_numbers_are_the_nearest_odd_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fractions of Python; of two that are equally near the larger."""
    a, w = sides("i4", "u8", "s8", m=11, n=37, k=300)
    rng = np.random.default_rng(0)
    multipliers = rng.integers(-(2**31), 2**31, 37, dtype=np.int32)
    shifts = np.append(rng.integers(34, 46, 35), [0, 62]).astype(np.int32)
    multipliers[:4], shifts[:4] = 1, [0, 3, 5, 9]  # halves
    most, wanted = 2 ** int(name[2:]) - 1, lb.Requantize(name, multipliers=multipliers, shifts=shifts)
    odd = range(-most, most + 1, 2)
    expected = [
        [
            min(odd, key=lambda code, real=Fraction(int(v) * int(b), 1 << int(c)): (abs(code - real), -code))
            for v, b, c in zip(row, multipliers, shifts, strict=True)
        ]
        for row in exact(a, w)
    ]
    assert len(np.unique(expected)) >= min(len(odd), 10)
    for device in DEVICES:
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        assert np.array_equal(lb.matmul(a, w, requantize=wanted), expected)


def test_two_layers_are_chained_in_integers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """HAWQ-V3's form: exact sums, a bias of i32, dyadic numbers, and the next layer's codes; in Python's integers."""
    rng = np.random.default_rng(3)
    x, first, second = (rng.integers(*span) for span in ((0, 256, (5, 128)), (-8, 8, (64, 128)), (-2, 2, (24, 64))))
    biases = rng.integers(-999, 999, 64, dtype=np.int32), rng.integers(-999, 999, 24, dtype=np.int32)
    steps = lb.Requantize.dyadic("u8", np.full(64, 1 / 77), zero=100), lb.Requantize.dyadic("bp4", np.full(24, 1 / 99))
    hidden = x @ first.T + biases[0]
    hidden = np.clip((hidden * int(steps[0].multipliers[0]) >> int(steps[0].shifts[0]) - 1) + 1 >> 1, -100, 155) + 100
    last = hidden @ second.T + biases[1]
    last = np.clip(2 * (last * int(steps[1].multipliers[0]) >> int(steps[1].shifts[0]) + 1) + 1, -15, 15)
    for device in DEVICES:
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        codes = x
        for name, weight, bias, step in zip(("i4", "i2"), (first, second), biases, steps, strict=True):
            a, w = lb.pack_activations(codes, "u8"), lb.pack_weights(weight, f"{name},act=u8")
            codes = lb.matmul(a, w, bias=bias, requantize=step)
        assert np.array_equal(codes, last) and len(np.unique(codes)) > 8


@settings(max_examples=40)
@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(0, 62))
def test_a_dyadic_product_rounds_halves_up_and_saturates(value: int, multiplier: int, shift: int) -> None:
    rounded = value * multiplier + (1 << shift >> 1) >> shift
    found = lb.arrays.mul_shift(np.int32(value), np.int32(multiplier), np.int32(shift))
    assert found == min(max(rounded, -(2**31)), 2**31 - 1)


def test_dyadic_numbers_are_the_nearest_of_31_bits() -> None:
    ratios = np.array([0.0, 1.0, 1 / 3, 2.0**-33, 2.0**29, 0.7, 1 - 2.0**-40])
    made = lb.Requantize.dyadic("i8", ratios)
    found = made.multipliers / 2.0**made.shifts
    assert (np.abs(found - ratios) <= 2.0**-30 * ratios).all()
    for wrong in (2.0**31, 2.0**-40, np.nan):
        with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID: ratios from"):
            lb.Requantize.dyadic("i8", np.array([wrong]))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_codes_of_floats_are_the_nearest_ones(name: str, per_channel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (low, high), (a, w, _) = ends(name), integers("u3", "u8", "s8", 9, 37, 300)
    rng = np.random.default_rng(1)
    scale = rng.uniform(1, 30, 37).astype(np.float32) if per_channel else 3.75
    bias, zero = rng.normal(size=37).astype(np.float16), high // 3
    options = {"bias": bias, "activation": "relu"}
    monkeypatch.setenv("LOWBITVM_DEVICE", "")
    real = lb.matmul(a, w, "f32", **options)
    expected = np.clip(np.rint(real / np.float32(scale)) + zero, low, high)
    for device in DEVICES:
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        y = lb.matmul(a, w, requantize=lb.Requantize(name, scale, zero), **options)
        assert y.dtype == (np.int8 if low < 0 else np.uint8) and np.array_equal(y, expected)


@pytest.mark.parametrize("name", ["bp1", "bp3", "bp7"])
def test_bipolar_codes_of_floats_are_the_nearest_odd_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, w, _ = integers("u3", "u8", "s8", 9, 37, 300)
    most, scale = 2 ** int(name[2:]) - 1, np.random.default_rng(1).uniform(1, 90, 37).astype(np.float32)
    monkeypatch.setenv("LOWBITVM_DEVICE", "")
    real = lb.matmul(a, w, "f32") / scale
    odd = np.arange(-most, most + 1, 2)
    for device in DEVICES:
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        y = lb.matmul(a, w, requantize=lb.Requantize(name, scale))
        assert y.dtype == np.int8 and np.isin(y, odd).all() and len(np.unique(y)) > 1
        least = np.abs(real[..., None].astype(float) - odd).min(-1)
        assert (np.abs(real - y) <= least * (1 + 2.0**-20)).all()  # but for what the subtraction in f32 rounds
    with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID: a zero of 1 for codes of bp3"):
        lb.Requantize("bp3", 1.0, zero=1)


@pytest.mark.parametrize(("name", "m", "n"), [("i8", 70, 96), ("u4", 9, 40), ("i5", 130, 136)])
@pytest.mark.parametrize("target", ["sm_75", "sm_80"])
def test_codes_of_whole_vectors_of_out_features_are_stored_as_words(name: str, m: int, n: int, target: str) -> None:
    a, w, _ = integers("u3", "u8", "s8", m, n, 192)
    (low, high), wanted = ends(name), lb.Requantize(name, 7.5)
    y = np.zeros((m, n), np.int8 if low < 0 else np.uint8)
    report = run_matmul(a, w, y, target, after=After(requantize=wanted), checks="all", on_finding="raise")
    assert np.array_equal(y, np.clip(np.rint(lb.matmul(a, w, "f32") / np.float32(7.5)), low, high))
    stored = [name for name in report.counters.by_mnemonic if name.startswith("st.global")]
    assert not report.findings and "st.global.b8" not in stored and "st.global.b32" in stored, stored


@pytest.mark.parametrize("group", [None, 64])
def test_codes_of_grouped_tensors_feed_the_next_layer(group: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    w = lb.quantize(torch.randn(40, 128, generator=generator), lb.Format("i4", group or "channel", act="i8"))
    a = lb.quantize_activations(torch.randn(6, 128, generator=generator), "i8,group=channel,scale=f32", sums=group)
    found = []
    for device in DEVICES:
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        found.append(lb.matmul(a, w, requantize=lb.Requantize("i8", torch.full((40,), 0.25))))
    assert all(y.dtype == torch.int8 and torch.equal(y, found[0]) for y in found)
    real = lb.matmul(a, w, "f32")
    codes = lb.pack_activations(found[0], lb.Format("i8", "channel", scale="f32"), torch.full((6, 1), 0.25))
    assert torch.equal(codes.unpack(), (real / 0.25).round().clamp(-128, 127).to(torch.int8))


def test_what_is_not_finite_saturates_and_nan_is_the_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = np.ones((4, 32), np.int8)
    scales = np.array([[np.inf], [-np.inf], [np.nan], [1]], np.float32)
    a = lb.pack_activations(ones, lb.Format("i8", "channel", scale="f32"), scales)
    w = lb.pack_weights(ones[:1], lb.Format("i4", "channel", scale="f32", act="i8"), scales[3:])
    for device in DEVICES:
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        y = lb.matmul(a, w, requantize=lb.Requantize("u4", 8.0, 3))
        assert y[:, 0].tolist() == [15, 0, 3, 7]


@lb.kernel(x=("m n", None), y=("m n", None), counts=("m n", lb.i32), wrapped=("m n", None))
def copied(x: lb.Tensor, y: lb.Tensor, counts: lb.Tensor, wrapped: lb.Tensor) -> None:
    lb.store(y, (0, 0), lb.load(x, (0, 0), (8, 16), other=7))
    lb.store(wrapped, (0, 0), lb.load(counts, (0, 0), (8, 16)).to(wrapped.dtype))


@pytest.mark.parametrize("dtype", [lb.dtypes.i8, lb.dtypes.u8])
def test_kernels_load_and_store_bytes_and_integers_wrap_to_them(dtype: lb.dtypes.DType) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(-(2**31), 2**31, (7, 13), dtype=np.int32)
    x = rng.integers(0, 256, (7, 13)).astype(dtype.numpy)
    kernel = copied.compile("sm_80", x=dtype, y=dtype, wrapped=dtype)
    for run in (
        lambda given: lb.launch(kernel, (1,), given, checks="all", on_finding="raise"),
        lambda given: lb.interpret(kernel.program, (1,), given),
    ):
        y, wrapped = np.zeros_like(x), np.zeros_like(x)
        run({"x": x, "y": y, "counts": counts, "wrapped": wrapped})
        assert np.array_equal(y, x) and np.array_equal(wrapped, counts.astype(dtype.numpy))


def test_what_does_not_make_codes_is_refused() -> None:
    codes, plain = sides("i4", "i8", "s8", 3, 20, 64)
    a, w, _ = integers("i4", "i8", "s8", 3, 20, 64)
    one = np.ones(20, np.int32)
    for problem, arguments in (
        ("codes of 'bp8'", {"dtype": "bp8", "scale": 1.0}),
        ("codes of 'e4m3'", {"dtype": "e4m3", "scale": 1.0}),
        ("the zero 16 is no u4", {"dtype": "u4", "scale": 1.0, "zero": 16}),
        ("a scale and a multiplier", {"dtype": "u4"}),
        ("a scale and a multiplier", {"dtype": "u4", "scale": 1.0, "multipliers": one, "shifts": one}),
        ("a scale and a multiplier", {"dtype": "u4", "shifts": one}),
    ):
        with pytest.raises(LowbitvmError, match=f"ARGUMENT_INVALID: {problem}"):
            lb.Requantize(**arguments)
    by_integers = lb.Requantize("i8", multipliers=one, shifts=one)
    for problem, left, right, wanted, dtype in (
        ("ARGUMENT_INVALID: a scale for codes of exact integers", codes, plain, lb.Requantize("i8", 1.0), None),
        ("ARGUMENT_INVALID: multipliers for codes of floats", a, w, by_integers, None),
        ("ARGUMENT_INVALID: codes in f16", a, w, lb.Requantize("i8", 1.0), "f16"),
        ("SHAPE_MISMATCH: y_scales are", a, w, lb.Requantize("i8", np.ones(3, np.float32)), None),
        (
            "SHAPE_MISMATCH: shifts are",
            codes,
            plain,
            lb.Requantize("i8", multipliers=one, shifts=one.astype(np.int64)),
            None,
        ),
    ):
        with pytest.raises(LowbitvmError, match=problem):
            lb.matmul(left, right, dtype, requantize=wanted)
