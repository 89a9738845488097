"""lb.linear and lb.matmul of integer activations: what follows the product, and torch.ops.lowbitvm.integer_linear."""

import numpy as np
import pytest
import torch

import lowbitvm as lb
from lowbitvm.dtypes import bf16
from lowbitvm.errors import LowbitvmError

# silu and gelu of the kernel: relative to |v|, what exp, the division and the polynomial add (kernels/epilogue.py).
ACTIVATION_ERROR = 2.0**-19
STEP = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24}


def integers(
    weight: str, act: str, base: str, m: int, n: int, k: int, seed: int = 0
) -> tuple[lb.PackedDigits, lb.PackedDigits, lb.PackedDigits]:
    """Activations, a weight and a gate with scales, and with zero points where codes are unsigned."""
    rng = np.random.default_rng(seed)
    x, w, gate = (rng.normal(size=(rows, k)).astype(np.float32) for rows in (m, n, n))
    zeros = ["int" if name.startswith("u") else None for name in (act, weight)]
    a = lb.quantize_activations(x, lb.Format(act, "channel", zero=zeros[0], scale="f32", digits=base))
    fmt = lb.Format(weight, "channel", zero=zeros[1], act=act, digits=base)
    return a, lb.quantize(w, fmt), lb.quantize(gate, fmt)


def reals(side: lb.PackedDigits) -> np.ndarray:
    codes = side.unpack().astype(np.float64)
    return (codes - (0 if side.zeros is None else side.zeros[:, None])) * side.scales[:, None].astype(np.float64)


def logistic(v: np.ndarray) -> np.ndarray:
    return v / (1 + np.exp(-v))


def gelu(v: np.ndarray) -> np.ndarray:
    return torch.nn.functional.gelu(torch.from_numpy(v)).numpy()


FUNCTIONS = {None: lambda v: v, "relu": lambda v: np.maximum(v, 0), "silu": logistic, "gelu": gelu}


@pytest.mark.parametrize("base", ["s8", "s4", "b1"])
@pytest.mark.parametrize(("m", "activation"), [(5, None), (70, "relu"), (1, "silu"), (33, "gelu")])
@pytest.mark.parametrize("gated", [False, True])
def test_what_follows_the_product_has_the_same_bits_by_numpy_and_is_near_the_real_result(
    base: str, m: int, activation: str | None, gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, w, gate = integers("u3", "u8", base, m, 37, 300)
    rng = np.random.default_rng(1)
    bias, residual = rng.normal(size=37).astype(np.float16), rng.normal(size=(m, 37)).astype(bf16.numpy)
    options = {"bias": bias, "gate": gate if gated else None, "activation": activation, "residual": residual}
    exact = reals(a) @ reals(w).T + bias.astype(np.float64)
    size = np.abs(reals(a)) @ np.abs(reals(w)).T + 4
    if gated:
        exact = FUNCTIONS[activation](reals(a) @ reals(gate).T) * exact
        size = size * (np.abs(reals(a)) @ np.abs(reals(gate)).T + 4)
    else:
        exact = FUNCTIONS[activation](exact)
    exact = exact + residual.astype(np.float64)
    for dtype, step in STEP.items():
        monkeypatch.setenv("LOWBITVM_DEVICE", "")
        by_numpy = lb.matmul(a, w, dtype, **options)
        monkeypatch.setenv("LOWBITVM_DEVICE", "emulator:sm_80")
        emulated = lb.matmul(a, w, dtype, **options)
        if activation in (None, "relu"):
            assert np.array_equal(by_numpy, emulated)
        for y in (by_numpy, emulated):  # up to eight operations of f32, a function, and the output's rounding
            error = np.abs(y.astype(np.float64) - exact)
            assert (error <= (8 * 2.0**-24 + ACTIVATION_ERROR) * size + step * np.abs(exact)).all()


def test_a_bias_of_integers_follows_an_exact_product(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a_codes, w_codes = rng.integers(-128, 128, (5, 90)), rng.integers(0, 4, (21, 90))
    bias = rng.integers(-(2**30), 2**30, 21, dtype=np.int32)
    a, w = lb.pack_activations(a_codes, "i8"), lb.pack_weights(w_codes, "u2,act=i8")
    for device in ("", "emulator:sm_75"):
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        y = lb.matmul(a, w, bias=bias)
        assert y.dtype == np.int32 and np.array_equal(y, a_codes @ w_codes.T + bias)


def test_what_does_not_fit_the_product_is_refused() -> None:
    a, w, gate = integers("i4", "i8", "s8", 3, 20, 64)
    codes = lb.pack_activations(np.zeros((3, 64), int), "i8")
    plain = lb.pack_weights(np.zeros((20, 64), int), "i4,group=channel,act=i8")
    other = integers("i4", "i8", "s8", 3, 21, 64)[1]
    for problem, arguments, options in (
        ("SHAPE_MISMATCH: the gate", (a, w), {"gate": other}),
        ("ARGUMENT_INVALID: one of gate and weight has scales", (a, plain), {"gate": gate}),
        ("ARGUMENT_INVALID: there is no activation function 'tanh'", (a, w), {"activation": "tanh"}),
        ("ARGUMENT_INVALID: a gate, a residual", (codes, plain), {"activation": "relu"}),
        ("SHAPE_MISMATCH: the bias", (a, w), {"bias": np.zeros(21, np.float32)}),
        ("SHAPE_MISMATCH: the residual", (a, w), {"residual": np.zeros((20, 3), np.float32)}),
        ("DTYPE_MISMATCH: the bias is f32", (codes, plain), {"bias": np.zeros(20, np.float32)}),
        ("DTYPE_MISMATCH: the residual is f64", (a, w), {"residual": np.zeros((3, 20))}),
    ):
        with pytest.raises(LowbitvmError, match=problem):
            lb.matmul(*arguments, **options)


# -- lb.linear ---------------------------------------------------------------------------------------------------------


def layer(fmt: str, n: int = 40, k: int = 128, seed: int = 0) -> tuple[lb.PackedDigits, lb.PackedDigits]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(lb.quantize(torch.randn(n, k, generator=generator), fmt) for _ in range(2))


def operands(weight: lb.PackedDigits) -> tuple:
    stored = (weight.words, weight.sums, weight.scales, weight.zeros)
    return (*stored, None, str(weight.format), *weight.shape, None)


@pytest.mark.parametrize(
    "fmt",
    [
        "i2,group=channel,act=i8,digits=b1",
        "u4,group=channel,zero=int,act=u8",
        "bp3,act=bp4,group=channel",
        "i4,act=i8,group=64",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_rounds_x_and_multiplies_integers(
    fmt: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, gate = layer(fmt)
    x, bias, residual = torch.randn(2, 3, 128).to(dtype), torch.randn(40).to(dtype), torch.randn(2, 3, 40)
    act = weight.format.act
    zero = "int" if act.startswith("u") else None
    of_x = lb.Format(act, "channel", zero=zero, scale="f32", digits=weight.format.digits)
    a = lb.quantize_activations(x.view(6, 128), of_x, sums=weight.group)
    options = {"gate": gate, "activation": "relu", "residual": residual.view(6, 40)}
    expected = lb.matmul(a, weight, dtype, bias=bias, **options).view(2, 3, 40)
    for device in ("", "emulator:sm_86"):
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        y = lb.linear(x, weight, bias, gate=gate, activation="relu", residual=residual)
        assert y.dtype == dtype and torch.equal(y, expected)
        assert torch.equal(
            lb.linear(x, weight, bias, gate=gate, activation="relu", residual=residual, x_format=of_x), y
        )


@pytest.mark.parametrize("target", ["sm_75", "sm_90a"])
def test_groups_of_x_may_be_shorter_than_the_weights(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16. Where neither zero points nor offsets need the weight's sums, it has none of such groups."""
    w = lb.quantize(torch.randn(40, 256), lb.Format("i4", group=128, act="i8"))
    x, found = torch.randn(5, 256).bfloat16(), []
    for device in ("", f"emulator:{target}"):
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        found.append(lb.linear(x, w, x_format="i8,group=32"))
    assert torch.equal(*found)


@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64), (64,)])
def test_any_shape_of_x_goes_through_a_layer(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = layer("i4,group=channel,act=i8", 16, 64)[0]
    for device in ("", "emulator:sm_80"):
        monkeypatch.setenv("LOWBITVM_DEVICE", device)
        assert lb.linear(torch.zeros(shape).half(), weight).shape == (*shape[:-1], 16)


@pytest.mark.parametrize("fmt", ["i4,group=64,act=i8", "u4,group=channel,zero=int,act=i8,digits=b1"])
def test_the_operator_passes_torchs_own_checks(fmt: str) -> None:
    weight, gate = layer(fmt)
    arguments = (torch.randn(2, 128).half(), *operands(weight), list(gate.arrays.values()), torch.randn(2, 40).half())
    torch.library.opcheck(torch.ops.lowbitvm.integer_linear, arguments, {"activation": "silu", "dtype": torch.float32})


def test_a_layer_compiles_without_a_graph_break() -> None:
    weight, gate = layer("i4,group=channel,act=i8")
    x = torch.randn(3, 128).half()
    operator, stored, gates = torch.ops.lowbitvm.integer_linear, operands(weight), list(gate.arrays.values())
    compiled = torch.compile(
        lambda t: operator(t, *stored, gates, activation="silu") + 1, backend="aot_eager", fullgraph=True
    )
    assert torch.equal(compiled(x), lb.linear(x, weight, gate=gate, activation="silu") + 1)


def test_a_gradient_through_a_layer_is_a_clear_error() -> None:
    weight = layer("i4,group=channel,act=i8")[0]
    with pytest.raises(LowbitvmError, match="GRADIENT_UNSUPPORTED"):
        lb.linear(torch.randn(2, 128).half().requires_grad_(), weight).sum().backward()


def test_a_layer_refuses_what_does_not_fit_it() -> None:
    weight = layer("i4,group=channel,act=i8")[0]
    x, floats = torch.zeros(2, 128).half(), lb.quantize(torch.randn(40, 128), "i4")
    unscaled = lb.pack_weights(torch.zeros(40, 128, dtype=torch.int8), "i4,act=i8")
    for problem, arguments, options in (
        ("SHAPE_MISMATCH: x has shape", (x[:, :64].contiguous(), weight), {}),
        ("DTYPE_MISMATCH: x is", (x.float(), weight), {}),
        ("ARGUMENT_INVALID: the weight has no scales", (x, unscaled), {}),
        ("ARGUMENT_INVALID: the weight is a PackedDigits", (x, lb.quantize_activations(x, "i8,group=channel")), {}),
        ("FORMAT_UNSUPPORTED: the gate is", (x, weight), {"gate": floats}),
        ("ARGUMENT_INVALID: x_format i8 with", (x, floats), {"x_format": "i8"}),
        ("FORMAT_UNSUPPORTED: x in u8", (x, weight), {"x_format": "u8,group=channel,zero=int"}),
    ):
        with pytest.raises(LowbitvmError, match=problem):
            lb.linear(*arguments, **options)


def test_pack_takes_weights_of_integers_and_refuses_what_they_do_not_have() -> None:
    codes, scales = torch.zeros(16, 64, dtype=torch.int8), torch.ones(16, 1).half()
    assert isinstance(lb.pack(codes, scales, None, "i4,group=channel,act=i8"), lb.PackedDigits)
    with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID: permutation with i4"):
        lb.pack(codes, scales, None, "i4,group=channel,act=i8", permutation=torch.arange(64))
