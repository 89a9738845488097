"""Products of integer codes of any widths: equal to int64 numpy, interpreted, emulated and on CPU tensors."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import digits, targets
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.integer_plan import DigitTile, digit_plan, digit_tile
from lowbitvm.integers import PackedDigits
from lowbitvm.runtime.integer import Variant, longest_k, rank_one, run_matmul
from tests.test_digits import CODES, drawn

KINDS = ("u", "i", "bp")
NATIVE_CODE = {"s8": ("IMMA.8816", "IMMA.16832"), "s4": ("IMMA.8832", "IMMA.16864"), "b1": "BMMA"}
NATIVE = [(target, base) for target in targets.TARGETS for base in targets.TARGETS[target].digits]
SAMPLES = [("u2", "i8"), ("i4", "u4"), ("bp3", "bp8"), ("i7", "bp2"), ("ternary", "u8"), ("u8", "i5"), ("bp1", "i1")]
SAMPLES = [pair for pair in SAMPLES if set(pair) <= set(CODE_TYPES)]


def sides(weight: str, act: str, base: str, m: int, n: int, k: int, seed: int = 0) -> tuple[PackedDigits, PackedDigits]:
    a = lb.pack_activations(drawn(act, (m, k), seed), lb.Format(act, digits=base))
    return a, lb.pack_weights(drawn(weight, (n, k), seed + 1), lb.Format(weight, act=act, digits=base))


def exact(a: PackedDigits, w: PackedDigits) -> np.ndarray:
    return a.unpack().astype(np.int64) @ w.unpack().astype(np.int64).T


def emulated(a: PackedDigits, w: PackedDigits, target: str) -> np.ndarray:
    """The product by the emulator with all checks on, any finding an error."""
    y = np.full((a.rows, w.rows), -1, np.int32)
    report = run_matmul(a, w, y, target, checks="all", on_finding="raise")
    assert report is None or not report.findings
    return y


def interpreted(a: PackedDigits, w: PackedDigits) -> np.ndarray:
    tile = digit_tile(a.rows, a.columns, a.format, w.format, targets.get("sm_80"))
    variant = Variant(a.format, w.format, tile, aligned=False)
    y = np.full((a.rows, w.rows), -1, np.int32)
    more = {name: rank_one(a, w)[name] for name in variant.rank_one}
    grid = (-(-a.rows // tile.bm), -(-w.rows // tile.bn))
    lb.interpret(variant.program(), grid, {"a": a, "w": w, "y": y, **more})
    return y


def name_of(kind: str, bits: int) -> str:
    """A code type of a kind; there is no signed type of one bit but bp1."""
    return f"{kind}{bits}" if f"{kind}{bits}" in CODE_TYPES else f"bp{bits}"


@pytest.mark.parametrize("base", digits.BASES)
@pytest.mark.parametrize("weight_bits", range(1, 9))
@pytest.mark.parametrize("act_bits", range(1, 9))
def test_every_pair_of_widths_is_exact_in_interpreter_and_emulator(act_bits: int, weight_bits: int, base: str) -> None:
    """Nine mixtures of kinds are shared out over the grid, so that each width meets each kind on either side."""
    kinds = list(product(KINDS, KINDS))
    for offset in (0, 4):
        weight_kind, act_kind = kinds[(act_bits + 3 * weight_bits + offset) % 9]
        weight, act = name_of(weight_kind, weight_bits), name_of(act_kind, act_bits)
        a, w = sides(weight, act, base, m=3, n=19, k=270)
        assert np.array_equal(emulated(a, w, "sm_80"), exact(a, w)), (weight, act)
        assert np.array_equal(interpreted(a, w), exact(a, w)), (weight, act)


@pytest.mark.parametrize(("target", "base"), NATIVE)
@pytest.mark.parametrize(("weight", "act"), SAMPLES)
def test_every_target_and_base_that_it_has_is_exact(target: str, base: str, weight: str, act: str) -> None:
    a, w = sides(weight, act, base, m=11, n=70, k=700)
    assert np.array_equal(emulated(a, w, target), exact(a, w))


@settings(max_examples=12)
@given(
    pair=st.tuples(st.sampled_from(CODES), st.sampled_from(CODES)),
    native=st.sampled_from(NATIVE),
    shape=st.tuples(st.integers(1, 130), st.integers(1, 200), st.integers(1, 3000)),
    seed=st.integers(0, 99),
)
def test_ragged_sizes_are_exact(
    pair: tuple[str, str], native: tuple[str, str], shape: tuple[int, int, int], seed: int
) -> None:
    target, base = native
    a, w = sides(*pair, base, *shape, seed)
    assert np.array_equal(emulated(a, w, target), exact(a, w))


@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 0, 7), (3, 5, 0)])
def test_empty_sides_give_an_empty_product_or_zeros(shape: tuple[int, int, int]) -> None:
    a, w = sides("bp3", "bp8", "s8", *shape)
    assert np.array_equal(emulated(a, w, "sm_80"), exact(a, w))


@pytest.mark.parametrize("base", digits.BASES)
def test_cpu_tensors_give_the_product_by_numpy_and_by_the_emulator(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a_codes, w_codes = torch.from_numpy(drawn("bp4", (5, 90))), torch.from_numpy(drawn("i3", (21, 90)))
    a = lb.pack_activations(a_codes, lb.Format("bp4", digits=base))
    w = lb.pack_weights(w_codes, lb.Format("i3", act="bp4", digits=base))
    expected = (a_codes @ w_codes.T).int()
    for device in ("", "emulator:sm_86"):
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        y = lb.matmul(a, w)
        assert y.dtype == torch.int32 and torch.equal(y, expected)


@pytest.mark.parametrize(
    ("weight", "act", "base", "m", "k", "target"),
    [
        ("u2", "i8", "b1", 1, 5000, "sm_80"),
        ("u3", "i8", "s8", 8, 4100, "sm_75"),
        ("i4", "u4", "s4", 100, 4096, "sm_86"),
        ("bp1", "bp1", "b1", 33, 9000, "sm_90a"),
        ("i8", "i8", "s8", 70, 2048, "sm_120f"),
    ],
)
def test_blocks_that_share_out_k_give_the_exact_product(
    weight: str, act: str, base: str, m: int, k: int, target: str
) -> None:
    """The last block of a tile to arrive adds all sums, whichever it is, and clears the tile's counter."""
    a, w = sides(weight, act, base, m, 70, k)
    assert digit_plan(m, 70, k, a.format, w.format, targets.get(target)).splits > 1
    for seed in (0, 1):
        y = np.full((m, 70), -1, np.int32)
        run_matmul(a, w, y, target, checks="all", on_finding="raise", seed=seed)
        assert np.array_equal(y, exact(a, w))


def test_blocks_that_share_out_k_agree_with_the_interpreter_and_leave_counters_of_zero() -> None:
    a, w = sides("i4", "u8", "s8", 9, 40, 4100)
    tile = digit_plan(9, 40, 4100, a.format, w.format, targets.get("sm_80"))
    variant = Variant(a.format, w.format, tile, aligned=False)
    y, arrivals = np.full((9, 40), -1, np.int32), np.zeros(2, np.int32)
    tiles = (-(-9 // tile.bm), -(-40 // tile.bn))
    partials = np.zeros((tile.splits * tiles[0] * tile.bm, tiles[1] * tile.bn), np.int32)
    numbers = {name: rank_one(a, w)[name] for name in variant.rank_one}
    arguments = {"a": a, "w": w, "y": y, "partials": partials, "arrivals": arrivals[: tiles[0] * tiles[1]], **numbers}
    lb.interpret(variant.program(), (*tiles, tile.splits), arguments)
    assert np.array_equal(y, exact(a, w)) and not arrivals.any()


def test_few_tiles_of_long_k_are_shared_out_among_the_multiprocessors() -> None:
    fmt, act, target = lb.Format("u2", act="i8", digits="s8"), lb.Format("i8", digits="s8"), targets.get("sm_80")
    for m, n in ((1, 256), (64, 1024), (4096, 4096)):
        tile = digit_plan(m, n, 8192, act, fmt, target)
        blocks = -(-m // tile.bm) * -(-n // tile.bn)
        assert tile.splits == 1 if blocks > 54 else blocks * tile.splits > 54
        assert blocks * tile.splits <= max(blocks, target.gpu.sms)


def test_the_product_of_the_largest_codes_is_exact_up_to_the_longest_k() -> None:
    fmt = lb.Format("u8", digits="s8"), lb.Format("u8", act="u8")
    k = longest_k(*fmt)
    assert k * 255**2 < 2**31 <= (k + 1) * 255**2
    full = np.full((1, k), 255)
    for base in ("s8", "b1"):
        a = lb.pack_activations(full, lb.Format("u8", digits=base))
        w = lb.pack_weights(full, lb.Format("u8", act="u8", digits=base))
        assert emulated(a, w, "sm_75").item() == k * 255**2


@pytest.mark.parametrize(("weight", "base", "act"), [("u4", "s8", "u8"), ("u3", "s8", "i8")])
def test_sums_that_carry_a_factor_are_exact_up_to_their_longest_k_and_beyond_it_carry_none(
    weight: str, base: str, act: str
) -> None:
    a_fmt, w_fmt = lb.Format(act, digits=base), lb.Format(weight, act=act, digits=base)
    k = digits.longest_folded(w_fmt.code, a_fmt.code, base)
    for size in (k, k + 1):
        assert digit_tile(1, size, a_fmt, w_fmt, targets.get("sm_80")).folded == (size == k)
        a = lb.pack_activations(np.full((1, size), a_fmt.code.low or a_fmt.code.high), a_fmt)
        w = lb.pack_weights(np.full((16, size), w_fmt.code.high), w_fmt)
        assert np.array_equal(emulated(a, w, "sm_80"), exact(a, w))


def test_what_cannot_be_multiplied_exactly_is_refused() -> None:
    a, w = sides("u2", "i8", "s8", 2, 3, 50)
    planes, _ = sides("u2", "i8", "b1", 2, 3, 50)
    longer, _ = sides("u2", "i8", "s8", 2, 3, 51)
    wide = np.zeros((1, 40000), int)
    long_a, long_w = lb.pack_activations(wide, "u8"), lb.pack_weights(wide, "u8,act=u8")
    for code, left, right in (
        ("FORMAT_UNSUPPORTED: activations in digits of b1", planes, w),
        ("SHAPE_MISMATCH: a has 51", longer, w),
        ("ARGUMENT_INVALID: in_features 40000.* at most 33025", long_a, long_w),
        ("ARGUMENT_INVALID: a is PackedDigits", w, w),
        ("ARGUMENT_INVALID: w is a int", a, 3),
    ):
        with pytest.raises(lb.LowbitvmError, match=code):
            lb.matmul(left, right)


def test_a_linear_layer_of_digits_is_refused() -> None:
    with pytest.raises(lb.LowbitvmError, match=r"FORMAT_UNSUPPORTED: dequant of u4.*lb.matmul"):
        lb.compile_linear(lb.Format("u4", act="i8"))


def test_tiles_that_warps_cannot_share_out_are_refused() -> None:
    fmt = lb.Format("u2", act="i8", digits="b1")
    for parts, problem in (
        ({"bn": 8}, "a dot of shape"),
        ({"bk": 512, "warps": 4, "bn": 32}, "bk 512 is no multiple of 2048"),
        ({"bm": 2, "bk": 256, "warps": 4, "bn": 64}, "bk 256 is no multiple of 512"),
    ):
        with pytest.raises(lb.LowbitvmError, match=f"TILE_INVALID: {problem}"):
            lb.compile_matmul(fmt, m=1, **parts)


@pytest.mark.parametrize(
    ("target", "base"), [(t, base) for t in targets.TARGETS for base in digits.BASES if (t, base) not in NATIVE]
)
def test_digits_are_refused_where_they_are_emulated(target: str, base: str) -> None:
    native = " or ".join(map(repr, targets.TARGETS[target].digits))
    with pytest.raises(lb.LowbitvmError, match=f"KERNEL_UNSUPPORTED: digits of base {base}.*digits={native}, native"):
        lb.compile_matmul(lb.Format("u2", act="i8", digits=base), target=target)


@pytest.mark.parametrize(("target", "base"), NATIVE)
def test_the_machine_code_multiplies_natively(target: str, base: str) -> None:
    sass = lb.compile_matmul(lb.Format("i2", act="u8", digits=base), target=target, m=8, cache=False).sass()
    found = set(re.findall(r"\b[IBHQ]MMA[.A-Z0-9]*", sass))
    assert found and all(name.startswith(NATIVE_CODE[base]) for name in found), found


@pytest.mark.parametrize("base", digits.BASES)
def test_the_main_loop_has_no_bank_conflicts_and_reads_weights_once(base: str) -> None:
    a, w = sides("u3", "i8", base, m=8, n=128, k=2048)
    y = np.zeros((8, 128), np.int32)
    report = run_matmul(a, w, y, "sm_80")
    assert report is not None and report.counters.bank_conflicts == 0
    read = {traffic.name: traffic.read for traffic in report.counters.arrays.values()}
    assert read["w$words"] == w.words.nbytes == 128 * 2048 * 3 // 8


def test_the_examples_of_the_page_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOWBITVM_DEVICE", "")
    page = Path(__file__).parent.parent / "docs" / "integers.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 14
    file = tmp_path / "example.py"
    file.write_text("\n".join(blocks))
    exec(compile(file.read_text(), str(file), "exec"), {"__name__": "example"})


GROUP_OF_PLANES = 256  # the shortest of digits of 1 bit
SCALED = [  # weights, activations, digits
    ("i4,group=channel,act=i8", "i8,group=channel"),
    ("u3,group=channel,zero=int,scale=f32,act=u8", "u8,group=channel,zero=int,scale=bf16"),
    ("bp2,group=channel,act=i4", "i4,group=channel,scale=f32"),
    ("u2,group=channel,zero=int,act=bp3", "bp3,group=channel"),
]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("base", digits.BASES)
@pytest.mark.parametrize(("weight", "act"), SCALED)
def test_scaled_products_are_the_exact_integers_times_both_scales(
    weight: str, act: str, base: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(7)
    x, real = rng.normal(size=(5, 200)).astype(np.float32), rng.normal(size=(37, 200)).astype(np.float32)
    a, w = lb.quantize_activations(x, f"{act},digits={base}"), lb.quantize_weights(real, f"{weight},digits={base}")
    assert a.scales is not None and w.scales is not None
    numbers = [
        side.unpack().astype(np.int64) - (0 if side.zeros is None else side.zeros[:, None].astype(np.int64))
        for side in (a, w)
    ]
    expected = np.float32(numbers[0] @ numbers[1].T) * a.scales[:, None] * w.scales[None, :]
    for device in ("", "emulator:sm_80"):
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        y = lb.matmul(a, w, dtype)
        assert np.array_equal(y, expected.astype(y.dtype)), device


def test_a_product_in_another_dtype_is_refused() -> None:
    a, w = sides("u2", "i8", "s8", 2, 3, 50)
    with pytest.raises(lb.LowbitvmError, match="DTYPE_MISMATCH: a product in f16"):
        lb.matmul(a, w, "f16")


def test_scaled_torch_tensors_give_torch_dtypes() -> None:
    x, real = torch.randn(3, 64), torch.randn(20, 64)
    a = lb.quantize_activations(x, lb.Format("i8", "channel", scale="f32", digits="s8"))
    w = lb.quantize_weights(real, lb.Format("i8", "channel", scale="f32", act="i8"))
    y = lb.matmul(a, w, torch.bfloat16)
    assert y.dtype == torch.bfloat16
    # x + d, w + e with |d| <= half a scale of the token, |e| of the feature: x e + d w + d e, and the rounding.
    d, e = a.scales.double()[:, None] / 2, w.scales.double() / 2
    exact, magnitude = x.double() @ real.double().T, x.abs().double().sum(1, keepdim=True)
    bound = magnitude * e + d * real.abs().double().sum(1) + 64 * d * e
    bound = bound * (1 + 2.0**-16)  # scales are rounded to f32
    assert ((y.double() - exact).abs() <= bound + 2.0**-8 * (exact.abs() + bound)).all()


@pytest.mark.parametrize(
    ("weight", "act", "base", "m", "n", "k", "target"),
    [
        ("i6", "i6", "s8", 300, 130, 200, "sm_80"),
        ("u3", "i8", "s8", 260, 100, 64, "sm_90a"),
        ("bp5", "u8", "s8", 257, 20, 700, "sm_120f"),
        ("u7", "bp3", "s8", 258, 300, 128, "sm_89"),
        ("i3", "i8", "s4", 140, 60, 500, "sm_80"),
        ("u3", "u4", "s4", 300, 129, 384, "sm_89"),
    ],
)
def test_weights_that_are_widened_once_per_block_give_the_exact_product(
    weight: str, act: str, base: str, m: int, n: int, k: int, target: str
) -> None:
    a, w = sides(weight, act, base, m, n, k)
    tile = digit_tile(m, k, a.format, w.format, targets.get(target))
    assert (tile.bn, tile.warps) == (128, 8) and m > tile.bm // 2
    for seed in (0, 1):
        y = np.full((m, n), -1, np.int32)
        run_matmul(a, w, y, target, tile=tile, checks="all", on_finding="raise", seed=seed)
        assert np.array_equal(y, exact(a, w))


def test_tiles_that_widen_weights_once_are_for_layers_that_have_one_for_every_multiprocessor() -> None:
    fmt, act, target = lb.Format("i6", act="i6", digits="s8"), lb.Format("i6", digits="s8"), targets.get("sm_80")
    assert digit_plan(4096, 4096, 4096, act, fmt, target).bm == 256
    assert digit_plan(300, 4096, 4096, act, fmt, target).bm == digit_plan(128, 4096, 4096, act, fmt, target).bm == 128
    assert digit_tile(4096, 4096, act, fmt, targets.get("sm_75")).bm == 128  # without asynchronous copies


@settings(max_examples=10)
@given(
    pair=st.tuples(st.sampled_from(CODES), st.sampled_from(CODES)),
    native=st.sampled_from(NATIVE),
    parts=st.tuples(*(st.sampled_from([1, 2, 4]) for _ in range(4))),
    direct=st.booleans(),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 90), st.integers(1, 1500)),
)
def test_any_tile_is_exact(
    pair: tuple[str, str], native: tuple[str, str], parts: tuple[int, ...], direct: bool, shape: tuple[int, int, int]
) -> None:
    """Tiles whose warps share out n, by shared memory, and such whose warps share out k, by registers."""
    (target, base), (columns, rows, warps, steps) = native, parts
    a, w = sides(*pair, base, *shape)
    assume(rows * columns * len(w.decomposition.digits) <= 32)
    bm = columns * digits.COLUMNS // digits.columns_per_row(a.format.code, base)
    if direct:
        warps = max(warps, 2 * rows)
        tile = DigitTile(bm, 16 * rows, warps * steps * digits.BASES[base].activation_k, 2, warps)
    else:
        steps = min(steps, 2)
        tile = DigitTile(bm, 16 * rows * warps, steps * digits.BASES[base].activation_k, 2, warps)
        assume(2 * tile.bk * (tile.bn * w.format.bits + 8 * columns * digits.BASES[base].bits) // 8 <= 60 << 10)
    y = np.full((a.rows, w.rows), -1, np.int32)
    run_matmul(a, w, y, target, tile=tile, checks="all", on_finding="raise")
    assert np.array_equal(y, exact(a, w)), tile


@pytest.mark.parametrize(("name", "bits"), [("u8", 3), ("u4", 1), ("i8", 5), ("i3", 2), ("bp7", 6), ("bp2", 1)])
def test_the_top_planes_of_a_weight_are_a_weight_that_reads_them_only(name: str, bits: int) -> None:
    whole_a, whole = sides(name, "bp3", "b1", m=3, n=40, k=2048)
    code, codes = CODE_TYPES[name], whole.unpack().astype(np.int64)
    for m, target in ((3, "sm_80"), (3, "sm_75"), (70, "sm_80")):
        a = whole_a if m == 3 else sides(name, "bp3", "b1", m=m, n=1, k=2048)[0]
        top = whole.top(bits)
        dropped, patterns = code.bits - bits, (codes + code.bias) // code.step
        kept = CODE_TYPES[top.format.dtype]
        assert np.array_equal(top.unpack(), (patterns >> dropped) * kept.step - kept.bias)
        y = np.zeros((m, 40), np.int32)
        report = run_matmul(a, top, y, target, checks="all", on_finding="raise")
        assert report is not None and np.array_equal(y, exact(a, top))
        read = next(traffic for traffic in report.counters.arrays.values() if traffic.name == "w$words")
        assert read.distinct_read * code.bits == whole.words.nbytes * bits
    if code.step == 1 and code.bias:
        assert np.array_equal(whole.top(bits).unpack(), codes >> dropped)


def test_the_top_of_the_top_is_the_top() -> None:
    w = sides("u6", "i8", "b1", m=1, n=20, k=300)[1]
    assert np.array_equal(w.top(4).top(2).unpack(), w.top(2).unpack())
    assert np.array_equal(w.top(4).top(2).sums, w.top(2).sums)


def test_bipolar_scales_grow_with_the_planes_that_are_left_out() -> None:
    real = np.random.default_rng(0).normal(size=(20, 256)).astype(np.float32)
    w = lb.quantize_weights(real, lb.Format("bp4", "channel", scale="f32", act="i8", digits="b1"))
    top = w.top(2)
    assert w.scales is not None and top.scales is not None
    error = np.abs(top.unpack() * top.scales[:, None] - w.unpack() * w.scales[:, None])
    assert (error <= 3 * w.scales[:, None] * (1 + 2.0**-20)).all()  # two planes of weights 1 and 2


NESTED = [(name, zero) for name in ("u8", "i8", "u4", "i3", "bp6") for zero in (None, "int")]


@pytest.mark.parametrize(("name", "zero"), NESTED)
def test_scaled_top_planes_stand_for_the_middle_of_their_interval(name: str, zero: str | None) -> None:
    """Exactly, in doubled integers: with scales of 1 every product is a whole number of halves."""
    code, codes = CODE_TYPES[name], drawn(name, (21, 300))
    zeros = np.arange(21)[:, None] % 4 * code.step + code.low if zero else None
    fmt = lb.Format(name, "channel", zero=zero, scale="f32", act="u5", digits="b1")
    whole = lb.pack_weights(codes, fmt, np.ones((21, 1), np.float32), zeros)
    a = lb.pack_activations(drawn("u5", (3, 300), 1), lb.Format("u5", digits="b1"))
    for bits in range(2 if name[0] == "i" else 1, code.bits):
        step = 1 << (code.bits - bits)
        patterns = (codes.astype(np.int64) + code.bias) // code.step
        doubled = code.step * (2 * (patterns // step * step) + step - 1) - 2 * code.bias  # twice the middle
        doubled = doubled - (0 if zeros is None else 2 * zeros)
        for top in (whole.top(bits), whole.top(bits + 1).top(bits) if bits + 1 < code.bits else whole.top(bits)):
            y = np.zeros((3, 21), np.float32)
            report = run_matmul(a, top, y, "sm_80", checks="all", on_finding="raise")
            assert report is not None and not report.findings
            exact_doubled = a.unpack().astype(np.int64) @ doubled.T
            assert np.array_equal(y, np.float32(exact_doubled) / 2)
            assert np.array_equal(lb.matmul(a, top, "f32"), y)


@pytest.mark.parametrize("zero", [None, "int"])
def test_top_planes_of_codes_with_scales_of_groups_stand_for_the_middle(zero: str | None) -> None:
    codes, rng = drawn("u8", (21, 1024)), np.random.default_rng(0)
    scales = rng.integers(1, 4, (21, 2)).astype(np.float32)
    zeros = rng.integers(0, 256, (21, 2)) if zero else None
    fmt = lb.Format("u8", GROUP_OF_PLANES, zero=zero, scale="f32", act="u2", digits="b1")
    scales, zeros = (None if x is None else np.repeat(x, 512 // GROUP_OF_PLANES, 1) for x in (scales, zeros))
    whole = lb.pack_weights(codes, fmt, scales, zeros, sums=GROUP_OF_PLANES)
    a = lb.pack_activations(drawn("u2", (3, 1024), 1), lb.Format("u2", digits="b1"), sums=GROUP_OF_PLANES)
    doubled = 2 * (codes.astype(np.int64) // 8 * 8) + 7
    if zeros is not None:
        doubled = doubled - 2 * np.repeat(zeros, GROUP_OF_PLANES, 1)
    exact_doubled = a.unpack().astype(np.int64) @ (doubled * np.repeat(scales, GROUP_OF_PLANES, 1).astype(int)).T
    assert abs(exact_doubled).max() < 2**24
    y = np.zeros((3, 21), np.float32)
    run_matmul(a, whole.top(5), y, "sm_80", checks="all", on_finding="raise")
    assert np.array_equal(y, exact_doubled / 2) and np.array_equal(lb.matmul(a, whole.top(5), "f32"), y)


def test_the_longest_k_of_top_planes_is_exact() -> None:
    fmt = lb.Format("u8", "channel", zero="int", scale="f32", act="u8", digits="b1")
    a_fmt = lb.Format("u8", "channel", scale="f32", digits="b1")
    one = np.ones((1, 1), np.float32)
    k = longest_k(lb.Format("u8", digits="b1"), fmt.parse(f"{fmt},planes=8".replace("u8,", "u3,", 1)), (False, True))
    top = lb.pack_weights(np.full((1, k), 255), fmt, one, np.zeros((1, 1), int)).top(3)
    y = lb.matmul(lb.pack_activations(np.full((1, k), 255), a_fmt, one), top, "f32")
    assert 255 * 510 * (k + 1) > 2**31 > 255 * 510 * k and y == np.float32(255 * (224 + 15.5) * k)
    longer = lb.pack_weights(np.zeros((1, k + 1), int), fmt, one, np.zeros((1, 1), int)).top(3)
    a = lb.pack_activations(np.zeros((1, k + 1), int), a_fmt, one)
    with pytest.raises(lb.LowbitvmError, match=f"ARGUMENT_INVALID: in_features {k + 1}"):
        lb.matmul(a, longer)


def test_planes_that_are_not_there_are_refused() -> None:
    for code, make in (
        ("ARGUMENT_INVALID: the top 4 planes of 4", lambda: sides("u4", "i8", "b1", 1, 2, 3)[1].top(4)),
        ("ARGUMENT_INVALID: the top 1 planes", lambda: sides("i4", "i8", "b1", 1, 2, 3)[1].top(1)),
        ("ARGUMENT_INVALID: the top 2 planes", lambda: sides("u4", "i8", "s8", 1, 2, 3)[1].top(2)),
        ("FORMAT_INVALID: planes=3", lambda: lb.Format("u4", act="i8", digits="b1", planes=3)),
    ):
        with pytest.raises(lb.LowbitvmError, match=code):
            make()
