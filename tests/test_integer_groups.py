"""Products of integer codes with scales and zero points of groups of k."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import digits, dtypes, targets
from lowbitvm.arrays import fma
from lowbitvm.errors import LowbitvmError
from lowbitvm.integer_plan import grouped_tile
from lowbitvm.runtime.integer import run_matmul
from tests.test_digits import CODES, drawn
from tests.test_matmul import NATIVE

SCALES = ("f16", "bf16", "f32")


def side(
    name: str, rows: int, k: int, group: int | None, scale: str, act: str | None, base: str, seed: int, sums: int
) -> lb.PackedDigits:
    """Codes with scales of groups, or of rows where group is None, and zero points where codes are unsigned."""
    rng = np.random.default_rng(seed)
    fmt = lb.Format(name, group or "channel", zero="int" if name[0] == "u" else None, scale=scale, act=act, digits=base)
    shape = fmt.scales_shape(rows, k)
    scales = rng.uniform(0.01, 1, shape).astype(dtypes.get(scale).numpy)
    zeros = drawn(name, shape, seed + 1) if fmt.zero else None
    pack = lb.pack_weights if act else lb.pack_activations
    return pack(drawn(name, (rows, k), seed), fmt, scales, zeros, sums=sums)


def numbers(matrix: lb.PackedDigits) -> tuple[np.ndarray, np.ndarray]:
    """The codes less their zeros, and the scales, for every element."""
    codes = matrix.unpack().astype(np.int64)

    def spread(array: np.ndarray) -> np.ndarray:
        columns = array.reshape(matrix.rows, -1)
        return np.repeat(columns, matrix.columns // columns.shape[1], axis=1)

    zeros = 0 if matrix.zeros is None else spread(matrix.zeros).astype(np.int64)
    return codes - zeros, spread(matrix.scales).astype(np.float32)


def expected(a: lb.PackedDigits, w: lb.PackedDigits) -> np.ndarray:
    """In the order that docs/integers.md states, one group after the other."""
    (left, left_scales), (right, right_scales) = numbers(a), numbers(w)
    group = min(matrix.group for matrix in (a, w) if matrix.group)
    total = np.zeros((a.rows, w.rows), np.float32)
    for first in range(0, a.columns, group):
        part = slice(first, first + group)
        value = np.float32(left[:, part] @ right[:, part].T)
        of_a, of_w = left_scales[:, first, None], right_scales[None, :, first]
        if a.group and w.group:
            value = value * of_a
        total = fma(value, of_w if w.group else of_a, total)
    if not a.group:
        total = total * left_scales[:, 0, None]
    return total if w.group else total * right_scales[None, :, 0]


def emulated(a: lb.PackedDigits, w: lb.PackedDigits, target: str) -> np.ndarray:
    y = np.full((a.rows, w.rows), np.nan, np.float32)
    report = run_matmul(a, w, y, target, checks="all", on_finding="raise")
    assert report is not None and not report.findings
    return y


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize(
    ("weight", "act", "base", "groups"),
    [
        ("i4", "i8", "s8", (None, 128)),
        ("u4", "u8", "s8", (32, 64)),
        ("u3", "i8", "s8", (256, 32)),
        ("i4", "u4", "s4", (64, None)),
        ("bp2", "bp3", "b1", (None, 256)),
        ("u2", "u8", "b1", (256, 256)),
    ],
)
def test_groups_on_either_side_have_the_same_bits_by_numpy_and_by_the_emulator(
    weight: str, act: str, base: str, groups: tuple[int | None, int | None], target: str
) -> None:
    if base not in targets.get(target).digits:
        base, groups = "s8", (groups[0] and 32, groups[1] and 64)
    sums = min(filter(None, groups))
    for m in (3, 70):
        a = side(act, m, 768, groups[0], "f32", None, base, 1, sums)
        w = side(weight, 37, 768, groups[1], "f16", act, base, 5, sums)
        assert np.array_equal(lb.matmul(a, w, "f32"), expected(a, w))
        assert np.array_equal(emulated(a, w, target), expected(a, w))


@pytest.mark.parametrize(
    ("weight", "act", "base", "groups", "m", "k", "target"),
    [
        ("i4", "i8", "s8", (None, 128), 1, 4096, "sm_80"),  # whole steps of 8 warps
        ("u4", "i8", "s8", (None, 128), 9, 2560, "sm_90a"),  # the last step is of fewer groups
        ("i6", "u8", "s8", (128, 256), 3, 768, "sm_120f"),
        ("u4", "i8", "s4", (None, 128), 5, 1408, "sm_89"),
        ("u2", "i8", "b1", (None, 256), 1, 2304, "sm_80"),
        ("bp3", "u5", "b1", (256, None), 2, 1024, "sm_75"),
    ],
)
def test_warps_that_share_out_groups_add_them_in_their_order(
    weight: str, act: str, base: str, groups: tuple[int | None, int | None], m: int, k: int, target: str
) -> None:
    known = tuple(filter(None, groups))
    a = side(act, m, k, groups[0], "f32", None, base, 3, min(known))
    w = side(weight, 37, k, groups[1], "f16", act, base, 4, min(known))
    tile = grouped_tile(m, 37, k, a.format, w.format, targets.get(target), known)
    assert tile.part < tile.bk
    for seed in (0, 1):
        y = np.full((m, 37), np.nan, np.float32)
        report = run_matmul(a, w, y, target, checks="all", on_finding="raise", seed=seed)
        assert report is not None and not report.findings
        assert np.array_equal(y, expected(a, w))


@pytest.mark.parametrize("target", ["sm_80", "sm_75"])
def test_warps_share_out_the_groups_of_a_gate_too(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a = side("i8", 5, 1280, None, "f32", None, "s8", 3, 128)
    w, gate = (side("u4", 40, 1280, 128, "f16", "i8", "s8", seed, 128) for seed in (4, 9))
    tile = grouped_tile(5, 40, 1280, a.format, w.format, targets.get(target), (128,), products=2)
    assert tile.part < tile.bk
    monkeypatch.setenv("LOWBITVM_DEVICE", f"emulator:{target}")
    found = lb.matmul(a, w, "f32", gate=gate, activation="relu")
    assert np.array_equal(found, np.maximum(expected(a, gate), 0) * expected(a, w))


@settings(max_examples=12)
@given(
    pair=st.tuples(st.sampled_from(CODES), st.sampled_from(CODES)),
    native=st.sampled_from(NATIVE),
    groups=st.tuples(*(st.sampled_from([None, 32, 64, 128, 256]) for _ in range(2))),
    scales=st.tuples(st.sampled_from(SCALES), st.sampled_from(SCALES)),
    shape=st.tuples(st.integers(1, 130), st.integers(1, 200), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
def test_any_groups_of_any_codes_have_the_stated_bits(
    pair: tuple[str, str],
    native: tuple[str, str],
    groups: tuple[int | None, int | None],
    scales: tuple[str, str],
    shape: tuple[int, int, int],
    seed: int,
) -> None:
    (target, base), least = native, digits.BASES[native[1]].step_k
    groups = tuple(group and max(group, least) for group in groups)
    groups = groups if any(groups) else (None, least)
    sums, k = min(filter(None, groups)), shape[2] * max(filter(None, groups))
    a = side(pair[1], shape[0], k, groups[0], scales[0], None, base, seed, sums)
    w = side(pair[0], shape[1], k, groups[1], scales[1], pair[1], base, seed + 7, sums)
    assert np.array_equal(emulated(a, w, target), expected(a, w))


def test_a_grouped_product_is_near_the_product_of_real_numbers() -> None:
    a, w = side("i8", 9, 1024, None, "f32", None, "s8", 1, 128), side("i4", 40, 1024, 128, "f16", "i8", "s8", 2, 128)
    (left, left_scales), (right, right_scales) = numbers(a), numbers(w)
    real, size = (
        (f(left) * left_scales) @ (f(right) * right_scales).T.astype(np.float64) for f in (lambda v: v, np.abs)
    )
    steps = 1024 // 128 + 1  # one fma of f32 for each group, and the last scale; integers below 2^24 are exact
    assert (np.abs(lb.matmul(a, w, "f32") - real) <= steps * 2.0**-24 * size * (1 + 2.0**-20)).all()


def test_groups_that_digits_do_not_have_are_refused_with_the_bases_that_do() -> None:
    codes = np.zeros((16, 512), np.int8)
    for group, base, fix in ((128, "b1", "digits='s8' or digits='s4'"), (32, "s4", "digits='s8'"), (64, "b1", "'s4'")):
        fmt = lb.Format("i2", group, act="i8", digits=base)
        with pytest.raises(LowbitvmError, match=f"FORMAT_UNSUPPORTED: groups of {group} in digits of {base}.*{fix}"):
            lb.pack_weights(codes, fmt, np.ones((16, 512 // group), np.float16))
    with pytest.raises(LowbitvmError, match="FORMAT_UNSUPPORTED: scales of i2,group=16"):
        lb.pack_weights(codes, lb.Format("i2", 16, act="i8"), np.ones((16, 32), np.float16))


def test_sums_that_do_not_fit_the_groups_are_refused() -> None:
    codes, scales = np.zeros((16, 512), np.int8), np.ones((16, 4), np.float16)
    w, a = lb.pack_weights(codes, "i4,act=i8", scales), lb.pack_activations(codes, "i8")
    with pytest.raises(LowbitvmError, match=r"ARGUMENT_INVALID: sums of 512 in_features of i8.*sums=128"):
        lb.matmul(a, w)
    finer = lb.pack_activations(codes, "i8", sums=32)
    assert not lb.matmul(finer, w).any()
    with pytest.raises(LowbitvmError, match="GROUP_INDIVISIBLE: 512 in_features in sums of 96"):
        lb.pack_activations(codes, "i8", sums=96)
    with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID: sums of 0 in_features"):
        lb.pack_activations(codes, "i8", sums=0)


def test_finer_sums_serve_a_product_without_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    a_codes, w_codes = drawn("i8", (5, 256), 0), drawn("u4", (20, 256), 1)
    a, w = lb.pack_activations(a_codes, "i8", sums=32), lb.pack_weights(w_codes, "u4,act=i8", sums=64)
    for device in ("", "emulator:sm_80"):
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        assert np.array_equal(lb.matmul(a, w), a_codes.astype(int) @ w_codes.astype(int).T)
