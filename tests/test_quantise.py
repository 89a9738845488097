"""The quantiser of activations: its rule against float64 and its kernel against the rule, bit for bit."""

import functools
import re

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import digits, targets
from lowbitvm.activations import prepare, tree_sum
from lowbitvm.integers import PackedDigits
from lowbitvm.runtime.compiled import compile_program, launch_grid
from lowbitvm.runtime.quantise import Steps, empty_activations, quantiser_arguments, run_quantise, variant_of
from tests.test_digits import CODES, drawn

DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32}
JUNK = 0xDEADBEEF


def activations(m: int, k: int, dtype: str = "f16", seed: int = 0) -> np.ndarray:
    """Rows of very different sizes: of zeros, with a NaN of either sign, an infinity, and halves of a scale."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(m, k)) * 10.0 ** rng.integers(-3, 3, (m, 1))).astype(DTYPES[dtype])
    if k > 3:
        x[: m // 2 : 5] = np.clip(rng.integers(-127, 128, (1, k)), -126.5, 127) + np.float32(0.5)
        x[1::6] = 0
        x[2::6, 1] = np.nan
        x[3::6, 2] = -np.inf
        x[4::6, k - 1] = -np.nan
    return x


def same_bits(got: PackedDigits, expected: PackedDigits) -> None:
    assert got.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert got.arrays[name].shape == array.shape, name
        assert np.array_equal(got.arrays[name].view(np.uint32), array.view(np.uint32)), name


def all_agree(x: np.ndarray, fmt: str, target: str = "sm_80", interpreted: bool = True, **how) -> PackedDigits:
    """What the rule makes of x, after checking that the interpreter and the emulator make the same bits."""
    expected = lb.quantize_activations(x, fmt, **how)
    part = how.pop("sums", None)
    steps, fmt = Steps(**how), expected.format

    def made() -> PackedDigits:
        empty = empty_activations(x, fmt, part)
        for array in empty.arrays.values():
            array.view(np.uint32)[...] = JUNK
        return empty

    if interpreted:
        own = made()
        variant = variant_of(x, own, steps)
        padded = own.words.shape[0] * 8 // digits.columns_per_row(fmt.code, fmt.digits)
        grid = launch_grid((padded,), (variant.rows,))
        lb.interpret(variant.program(), grid, quantiser_arguments(x, own, steps))
        same_bits(own, expected)
    own = made()
    report = run_quantise(x, own, target, steps, checks="all", on_finding="raise")
    assert report is None or not report.findings
    same_bits(own, expected)
    return expected


@pytest.mark.parametrize("base", digits.BASES)
@pytest.mark.parametrize("dtype", CODES)
def test_interpreter_and_emulator_follow_the_rule_bit_for_bit(dtype: str, base: str) -> None:
    for zero, (m, k) in zip(("none", "int"), ((7, 130), (3, 1001)), strict=True):
        all_agree(activations(m, k), f"{dtype},group=channel,zero={zero},digits={base}")


@settings(max_examples=15)
@given(
    code=st.sampled_from(CODES),
    base=st.sampled_from(list(digits.BASES)),
    zero=st.sampled_from(["none", "int"]),
    scale=st.sampled_from(["f16", "bf16", "f32"]),
    dtype=st.sampled_from(list(DTYPES)),
    shape=st.tuples(st.integers(0, 40), st.integers(0, 3000)),
)
def test_any_format_and_shape_is_the_rule_s(code, base, zero, scale, dtype, shape) -> None:
    fmt = f"{code},group=channel,zero={zero},scale={scale},digits={base}"
    all_agree(activations(*shape, dtype), fmt, interpreted=False)


@pytest.mark.parametrize("fmt", ["i8,zero=int", "i2,zero=int,digits=s4", "u3", "bp2,zero=int,digits=b1"])
def test_activations_without_in_features_have_sums_of_zero(fmt: str) -> None:
    assert not all_agree(activations(3, 0), f"{fmt},group=channel").sums.any()


@pytest.mark.parametrize("target", targets.TARGETS)
def test_every_target_follows_the_rule(target: str) -> None:
    for dtype in DTYPES:
        all_agree(activations(5, 200, dtype), "i8,group=channel", target, interpreted=False)


@pytest.mark.parametrize(
    "fmt", ["i8,group=64", "u8,group=128,zero=int", "i4,group=32,digits=s4", "bp4,group=16,digits=b1"]
)
def test_groups_have_scales_zeros_and_sums_of_their_own(fmt: str) -> None:
    x = activations(5, 640)
    made = all_agree(x, fmt)
    size = made.format.group
    for name, array in made.arrays.items():
        assert name == "words" or array.shape == (5, 640 // size)
    apart = lb.quantize_activations(x.reshape(-1, size), f"{fmt},group=channel".replace(f"group={size},", "", 1))
    assert np.array_equal(made.unpack(), apart.unpack().reshape(5, 640))
    assert np.array_equal(made.sums, apart.sums.reshape(5, -1))


@pytest.mark.parametrize(("fmt", "numbers"), [("i8", {}), ("u8,zero=int", {"zero": 100}), ("bp3,digits=b1", {})])
def test_a_given_scale_is_that_of_every_row_whose_numbers_are_finite(fmt: str, numbers: dict[str, int]) -> None:
    x = activations(7, 300)
    made = all_agree(x, f"{fmt},group=tensor", scale=0.02, **numbers)
    finite = np.isfinite(x).all(1)
    assert (made.scales[finite] == np.float32(0.02)).all() and np.isinf(made.scales[~finite]).all()
    assert made.zeros is None or (made.zeros == 100).all()
    as_arrays = {"scale": np.float32([0.02])} | {name: np.int32([zero]) for name, zero in numbers.items()}
    same_bits(all_agree(x, f"{fmt},group=tensor", **as_arrays), made)


def before(k: int, rotation: int | None = None, norm: str = "f16", eps: float = 1e-5) -> dict[str, object]:
    """All steps before rounding, for k in_features."""
    rng = np.random.default_rng(k)
    smoothing = rng.uniform(0.1, 3, k).astype(np.float32)
    weight = rng.normal(size=k).astype(DTYPES[norm])
    return {"norm": weight, "eps": eps, "smoothing": smoothing, "rotation": rotation}


@pytest.mark.parametrize(
    ("fmt", "part"),
    [("i8,group=channel", 64), ("u8,group=256,zero=int", 128), ("u4,group=channel,zero=int,digits=b1", 16)],
)
def test_sums_may_be_of_smaller_parts_than_scales(fmt: str, part: int) -> None:
    x = activations(5, 768)
    made = all_agree(x, fmt, sums=part)
    codes = made.unpack().astype(np.int64) - made.decomposition.offset
    assert np.array_equal(made.sums, codes.reshape(5, -1, part).sum(2))
    assert made.scales.shape == lb.quantize_activations(x, fmt).scales.shape


STEPS = [
    ("i8,group=channel", 270, {"norm": "bf16"}),
    ("bp3,group=channel,digits=b1", 270, {"eps": 0.0}),
    ("u8,group=128,zero=int", 1024, {"rotation": 128, "norm": "f32"}),
    ("i4,group=channel,digits=s4", 1536, {"rotation": 512}),
    ("i4,group=channel,digits=b1", 1000, {"rotation": 8}),
    ("i8,group=channel", 4096, {"rotation": 4096}),  # across warps
    ("u8,group=tensor,zero=int", 256, {"rotation": 2}),
    ("u8,group=channel,digits=b1", 17408, {"rotation": 1024}),  # longer than a block
]


@pytest.mark.parametrize(("fmt", "k", "how"), STEPS)
def test_norm_smoothing_and_rotation_in_one_launch_follow_the_rule(fmt: str, k: int, how: dict[str, object]) -> None:
    static = {"scale": 0.01, "zero": 128} if "tensor" in fmt else {}
    for dtype in ("f16", "f32") if k < 4096 else ("bf16",):
        all_agree(activations(5 if k < 4096 else 1, k, dtype), fmt, **before(k, **how), **static)


def test_the_steps_before_rounding_are_those_of_float64_but_for_f32_s_rounding() -> None:
    x, k = np.random.default_rng(5).normal(size=(4, 1536)).astype(np.float32), 1536
    how = before(k, 512)
    exact = x.astype(np.float64)
    exact = exact / np.sqrt((exact**2).mean(1, keepdims=True) + how["eps"]) * how["norm"].astype(np.float64)
    exact *= how["smoothing"]
    matrix = functools.reduce(np.kron, [np.array([[1, 1], [1, -1]])] * 9) / np.sqrt(512)
    rotated = exact.reshape(4, -1, 512) @ matrix
    # relative errors, in units of 2^-24: sum 11 + 1, mean 1, eps 1, half of them for the root, 1 of it, 1 / root 1, 3
    # products; then 9 rounds, each relative to the sum of magnitudes, and the product with f32(512 ** -0.5), 2
    bound = (7 + 1 + 1 + 3 + 9 + 2) * 2.0**-24 * (np.abs(exact).reshape(4, -1, 512) @ np.abs(matrix)) * 1.01
    assert (np.abs(prepare(x, **how).reshape(rotated.shape) - rotated) <= bound).all()
    assert np.array_equal(prepare(x, rotation=None), x)


def test_every_subset_of_the_steps_comes_in_their_order() -> None:
    x = activations(2, 64, "f32", seed=9)[:1]
    how = before(64, 16)
    only = {"norm": None, "smoothing": None, "rotation": None}
    by_hand = prepare(x, **{**only, "norm": how["norm"], "eps": how["eps"]})
    for name in ("smoothing", "rotation"):
        by_hand = prepare(by_hand, **{**only, name: how[name]})
    assert np.array_equal(prepare(x, **how), by_hand)


def test_rows_too_long_for_a_block_are_read_again() -> None:
    for fmt in ("i8,group=channel", "bp8,group=channel,zero=int,digits=b1", "u8,group=128,zero=int,digits=b1"):
        all_agree(activations(2, 16512), fmt, interpreted=fmt != "i8,group=channel")


def test_codes_are_the_nearest_and_scales_reach_both_ends() -> None:
    """Against float64: a code times its scale is at most half a scale from x, but for the rounding of x / s in f32."""
    x = np.random.default_rng(3).normal(size=(9, 700)).astype(np.float32)
    for fmt in ("i8", "i3", "u8,zero=int", "u2,zero=int", "bp5", "bp1"):
        made = lb.quantize_activations(x, f"{fmt},group=channel,scale=f32")
        zeros = 0 if made.zeros is None else made.zeros[:, None].astype(np.float64)
        scales = made.scales[:, None].astype(np.float64)
        off = np.abs((made.unpack() - zeros) * scales - x) / scales
        reach = made.format.code.high * 2.0**-23 + 0.5 * (made.zeros is not None)  # zero points are rounded too
        assert (off <= made.format.code.step * (0.5 + reach)).all(), fmt
        parts = made.decomposition
        assert np.array_equal(made.sums, (made.unpack().astype(np.int64) - parts.offset).sum(1))


def test_ties_go_to_even_and_saturation_is_at_both_ends() -> None:
    x = np.array([[-3.5, -2.5, -0.5, 0.5, 1.5, 2.5, 200, -200]], np.float32)
    made = all_agree(x, "i8,group=tensor", scale=1.0)
    assert made.unpack().tolist() == [[-4, -2, 0, 0, 2, 2, 127, -128]]


def test_what_is_not_finite_makes_products_that_are_not_finite() -> None:
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float16)
    x[1, 3], x[2, 5] = np.nan, -np.inf
    w = lb.quantize_weights(np.random.default_rng(1).normal(size=(16, 64)), "i8,group=channel,act=i8")
    for fmt in ("i8,group=channel", "i8,group=tensor"):
        a = lb.quantize_activations(x, fmt, scale=0.1 if "tensor" in fmt else None)
        with np.errstate(all="ignore"):
            y = lb.matmul(a, w, "f32")
        assert np.isfinite(y).all(1).tolist() == [True, False, False, True]


@pytest.mark.parametrize("device", ["", "emulator:sm_80"])
def test_tensors_and_other_floats_are_rounded_alike(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lb.quantize_activations(activations(5, 100, "bf16"), "u8,group=channel,zero=int")
    monkeypatch.setenv("LOWBITVM_DEVICE", device)
    for dtype in (torch.bfloat16, torch.float64):
        x = torch.from_numpy(activations(5, 100, "bf16").astype(np.float32)).to(dtype)
        made = lb.quantize_activations(x, "u8,group=channel,zero=int")
        for name, array in made.arrays.items():
            assert torch.is_tensor(array) and np.array_equal(
                array.numpy(), expected.arrays[name].view(array.numpy().dtype)
            )


@lb.kernel(x=("m k", lb.i32), a=lb.packed("m k"))
def packs(x: lb.Tensor, a: lb.Packed, *, bm: int, bk: int) -> None:
    i, j = lb.program_id(0) * bm, lb.program_id(1) * bk
    lb.store(a, (i, j), lb.load(x, (i, j), (bm, bk)))


@pytest.mark.parametrize("base", digits.BASES)
@pytest.mark.parametrize("dtype", CODES)
def test_stored_codes_are_what_pack_activations_makes(dtype: str, base: str) -> None:
    fmt = lb.Format(dtype, digits=base)
    for m, k, bm, warps in ((3, 270, 1, 4), (11, 700, 4, 2), (9, 1024, 8, 1)):
        codes = drawn(dtype, (m, k), 0).astype(np.int32)
        expected = lb.pack_activations(codes, fmt)
        program = packs.trace(a=fmt, bm=bm, bk=512, divisible={"k": 512} if k % 512 == 0 else {})
        padded = expected.words.shape[0] * 8 // digits.columns_per_row(fmt.code, base)
        for run in (lb.interpret, lambda p, *rest: lb.launch(compile_program(p, "sm_80", warps), *rest)):  # noqa: B023
            made = PackedDigits(np.full_like(expected.words, JUNK), expected.sums, fmt, m, k)
            run(program, launch_grid((padded, k), (bm, 512)), {"x": codes, "a": made})
            same_bits(made, expected)


def test_codes_from_inside_a_stored_tile_are_refused() -> None:
    @lb.kernel(x=("m k", lb.i32), a=lb.packed("m k"))
    def shifted(x: lb.Tensor, a: lb.Packed) -> None:
        lb.store(a, (0, lb.program_id(0) * 32), lb.load(x, (0, 0), (8, 64)))

    with pytest.raises(lb.LowbitvmError, match=r"KERNEL_UNSUPPORTED.*make it a multiple of 64"):
        shifted.compile("sm_80", a="i8,digits=s8")


X = np.zeros((4, 128), np.float16)
REFUSED = [
    ("FORMAT_INVALID", X, "i4,group=channel,act=i8", {}),
    ("FORMAT_UNSUPPORTED", X, "i8,group=channel,zero=float", {}),
    ("FORMAT_UNSUPPORTED", X, "i8,group=32,scale=e8m0", {}),
    ("DTYPE_MISMATCH", X.astype(np.int32), "i8,group=channel", {}),
    ("DTYPE_MISMATCH", X, "i8,group=channel", {"smoothing": np.zeros(128)}),
    ("ARGUMENT_INVALID", X, "i8,group=channel", {"sums": 48}),
    ("ARGUMENT_INVALID", X[:, :96], "i8,group=channel", {"sums": 64}),
    ("ARGUMENT_INVALID", X, "i8,group=32", {"sums": 64}),
    ("ARGUMENT_INVALID", X, "i8,group=channel", {"rotation": 3}),
    ("ARGUMENT_INVALID", X[:, :96], "i8,group=channel", {"rotation": 64}),
    ("ARGUMENT_INVALID", X, "i8,group=channel", {"rotation": 1 << 15}),
    ("DTYPE_MISMATCH", X, "i8,group=channel", {"norm": np.zeros(128)}),
    ("DTYPE_MISMATCH", X, "i8,group=tensor", {"scale": np.ones(1)}),
    ("SHAPE_MISMATCH", X, "i8,group=tensor", {"scale": np.ones(4, np.float32)}),
    ("SHAPE_MISMATCH", X[0], "i8,group=channel", {}),
    ("SHAPE_MISMATCH", X, "i8,group=channel", {"smoothing": np.zeros(64, np.float32)}),
    ("DEVICE_MISMATCH", X, "i8,group=channel", {"smoothing": torch.zeros(128)}),
    ("GROUP_INDIVISIBLE", X[:, :100], "i8,group=64", {}),
    ("ARGUMENT_INVALID", X, "i8,group=tensor", {}),
    ("ARGUMENT_INVALID", X, "i8,group=channel", {"scale": 1.0}),
    ("ARGUMENT_INVALID", X, "i8,group=tensor", {"scale": -1.0}),
    ("ARGUMENT_INVALID", X, "u8,group=tensor,zero=int", {"scale": 1.0, "zero": 256}),
]


@pytest.mark.parametrize(("code", "x", "fmt", "how"), REFUSED)
def test_what_cannot_be_quantised_is_refused(code, x, fmt, how) -> None:
    with pytest.raises(lb.LowbitvmError) as caught:
        lb.quantize_activations(x, fmt, **how)
    assert caught.value.code == code


@lb.kernel(x=("m k", lb.f32), y=("m k", lb.f32), rows=("m", lb.f32), columns=("k", lb.f32))
def rotates(x: lb.Tensor, y: lb.Tensor, rows: lb.Tensor, columns: lb.Tensor, *, bm: int, bk: int) -> None:
    tile = lb.load(x, (0, 0), (bm, bk))
    lb.store(y, (0, 0), lb.hadamard(tile))
    lb.store(rows, (0,), lb.sum(tile.reshape(bm * bk).reshape(bm, bk), 1))
    lb.store(columns, (0,), lb.sum(tile, 0))


@pytest.mark.parametrize("warps", [1, 4, 16])
@pytest.mark.parametrize(("bm", "bk"), [(1, 1), (1, 2048), (16, 64), (64, 4), (128, 128)])
def test_sums_and_rotations_have_one_order_wherever_the_elements_are(bm: int, bk: int, warps: int) -> None:
    x = np.random.default_rng(2).normal(size=(bm, bk)).astype(np.float32) ** 5
    program = rotates.trace(bm=bm, bk=bk)
    found = []
    for run in (lb.interpret, lambda p, *rest: lb.launch(compile_program(p, "sm_80", warps), *rest)):
        made = {"x": x, "y": np.empty_like(x), "rows": np.empty(bm, np.float32), "columns": np.empty(bk, np.float32)}
        run(program, (1,), made)
        found.append(made)
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
    assert np.array_equal(found[0]["rows"], tree_sum(x)) and np.array_equal(found[0]["columns"], tree_sum(x.T))
    matrix = np.array([[(-1.0) ** (i & j).bit_count() for i in range(bk)] for j in range(bk)])
    bound = bk.bit_length() * 2.0**-24 * np.abs(x.astype(np.float64)).sum(1, keepdims=True)
    assert (np.abs(found[0]["y"] - x.astype(np.float64) @ matrix) <= bound).all()


@lb.kernel(x=("n", lb.f32), nearest=("n", lb.i32), back=("n", lb.f32))
def rounds(x: lb.Tensor, nearest: lb.Tensor, back: lb.Tensor) -> None:
    tile = lb.load(x, (0,), (64,))
    lb.store(nearest, (0,), lb.rint(tile))
    lb.store(back, (0,), lb.bitcast(lb.bitcast(tile, lb.i32) + -(1 << 31), lb.f32))


def test_rint_rounds_halves_to_even_and_saturates_and_bitcast_keeps_the_bits() -> None:
    x = np.array([0.5, 1.5, -2.5, -0.0, 3e9, -3e9, np.inf, -np.inf, np.nan, 2**-149, 16777217.0], np.float32)
    expected = [0, 2, -2, 0, 2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 0, 0, 16777216]
    program = rounds.trace()
    for run in (lb.interpret, lambda p, *rest: lb.launch(compile_program(p, "sm_80", 1), *rest)):
        made = {"x": x, "nearest": np.zeros(len(x), np.int32), "back": np.zeros_like(x)}
        run(program, (1,), made)
        assert made["nearest"].tolist() == expected
        assert np.array_equal(made["back"].view(np.uint32), x.view(np.uint32) ^ np.uint32(1 << 31))


@pytest.mark.parametrize(
    ("fmt", "how", "instructions"),
    [
        ("i8,group=channel", {}, 21),
        ("u8,group=128,zero=int", {}, 22),
        ("i4,group=channel,digits=s4", {}, 21),
        ("i8,group=channel,digits=b1", {}, 22),
        ("i8,group=channel", {"rotation": 512, "norm": "f16"}, 47),
    ],
)
def test_the_kernel_reads_and_writes_once_whole_sectors_with_few_instructions(fmt, how, instructions) -> None:
    """SASS instructions for each activation, those of the branch of divisions included."""
    x = np.random.default_rng(0).normal(size=(8, 4096)).astype(np.float16)
    made = lb.quantize_activations(x, fmt)
    steps = Steps(**before(4096, **how)) if how else Steps()
    variant = variant_of(x, made, steps)
    kernel = compile_program(variant.program(), "sm_80", variant.warps)
    assert kernel.spills == 0
    code = re.findall(r"^\s+/\*[0-9a-f]{4}\*/(?!\s*NOP)", kernel.sass(), re.MULTILINE)
    assert len(code) * 32 * variant.warps <= instructions * variant.rows * variant.k
    report = run_quantise(x, made, "sm_80", steps)
    assert report is not None and report.counters.bank_conflicts == 0
    traffic = {array.name: array for array in report.counters.arrays.values()}
    assert traffic["x"].read == x.nbytes and traffic["a$words"].written == made.words.nbytes
    twice = x.nbytes // 32 if made.format.digits == "b1" else 0  # two loads for each sector, of 16 bytes each
    assert report.counters.global_sectors == report.counters.fewest_sectors + twice


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90a", "sm_120f"])
@pytest.mark.parametrize("k", [4096, 28672])
def test_shuffles_after_divisions_are_no_calls_and_nothing_is_spilled(target: str, k: int) -> None:
    """What ptxas calls are the rare branches of six divisions and roots; without barriers, 100 to 370 shuffles too."""
    x = np.zeros((1, k), np.float16)
    steps = Steps(**before(k, 512))
    variant = variant_of(x, empty_activations(x, lb.Format("i8", "channel", digits="s8")), steps)
    kernel = compile_program(variant.program(), target, variant.warps)
    sass = kernel.sass()
    assert kernel.spills == 0
    assert sass.count("CALL.") <= 12 and "WARPSYNC.COLLECTIVE" not in sass
