"""lb.linear and torch.ops.lowbitvm.linear."""

import numpy as np
import pytest
import torch

import lowbitvm as lb
from lowbitvm.bounds import agrees, linear_bound, linear_exact
from lowbitvm.errors import LowbitvmError
from lowbitvm.ops import _rounded  # and with it, torch.ops.lowbitvm
from tests.weights import QUANTIZABLE, float_weight, tensors


def weight_of(n: int, k: int, fmt: lb.Format, seed: int = 0) -> lb.PackedWeight:
    generator = torch.Generator().manual_seed(seed)
    return lb.quantize(torch.randn(n, k, generator=generator), fmt)


def parts(weight: lb.PackedWeight) -> tuple:
    return (weight.words, weight.scales, weight.zeros)


def operator(x, weight, bias=None):
    return torch.ops.lowbitvm.linear(x, *parts(weight), bias, str(weight.format), *weight.shape)


FORMATS = [
    lb.Format("u4", group=32, zero="offset"),
    lb.Format("u4", group=128, zero="int"),
    lb.Format("i4", group="channel", scale="f32"),
    lb.Format("u4", group="tensor", zero="float", scale="bf16"),
]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_emulator_agrees_with_float64_for_batched_inputs(monkeypatch, fmt, dtype):
    weight = weight_of(72, 256, fmt)
    x, bias = torch.randn(2, 3, 256).to(dtype), torch.randn(72).to(dtype)
    rows = x.view(6, 256)
    exact, bound = linear_exact(rows, weight, bias), linear_bound(rows, weight, bias)
    reference = lb.linear(x, weight, bias)
    monkeypatch.setenv("LOWBITVM_DEVICE", "emulator:sm_80")
    emulated = lb.linear(x, weight, bias)
    assert emulated.shape == reference.shape == (2, 3, 72)
    assert emulated.dtype == reference.dtype == dtype
    assert agrees(emulated.view(6, 72), exact, bound).all()
    assert agrees(reference.view(6, 72), exact, bound).all()


@pytest.mark.parametrize("name", ["nvfp4", "mxfp6e2m3", "mxint8", "u4,group=32,zero=offset,scale=i8,outer=256", "nf4"])
def test_tensors_of_every_kind_of_scale_go_through_the_emulator(monkeypatch, name):
    weight, x = lb.quantize(torch.randn(40, 512), name), torch.randn(3, 512).half()
    monkeypatch.setenv("LOWBITVM_DEVICE", "emulator:sm_86")
    assert agrees(lb.linear(x, weight), linear_exact(x, weight), linear_bound(x, weight)).all()


def test_the_reference_path_rounds_the_exact_result_once():
    weight = weight_of(40, 128, lb.Format("u4", zero="int"))
    x = torch.randn(5, 128).half()
    exact = x.double().numpy() @ weight.dequantize().double().numpy().T
    assert np.array_equal(lb.linear(x, weight).numpy(), exact.astype(np.float16))


def test_the_reference_path_rounds_to_bf16_once():
    ones = np.ones((1, 3), np.int8)
    weight = lb.pack(torch.from_numpy(ones), torch.ones(1, 1), None, lb.Format("i4", "channel", scale="f32"))
    x = torch.tensor([[1, 2**-8, 2**-40]], dtype=torch.bfloat16)  # just above the midpoint of 1 and 1 + 2^-7
    assert lb.linear(x, weight).item() == 1 + 2**-7
    assert lb.linear(-x, weight).item() == -1 - 2**-7
    assert lb.linear(x[:, :2] * torch.tensor([1, 1], dtype=torch.bfloat16), _first_two(weight)).item() == 1


def _first_two(weight):
    codes, scales, _ = weight.unpack()
    return lb.pack(codes[:, :2].contiguous(), scales, None, weight.format)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_once_equals_exact_fractions(dtype):
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(-200, 200, dtype=torch.float64)
    info = torch.finfo(dtype)
    for scale in (1.0, info.smallest_normal, info.max / 300):
        exact = scale * (1 + steps * info.eps / 4) + scale * 1e-13 * torch.randn(400, generator=generator).double()
        rounded = _rounded(exact, dtype).double()
        for shift in (-1, 1):  # no neighbour is nearer
            neighbour = (_rounded(exact, dtype).view(torch.int16) + shift).view(dtype).double()
            assert ((rounded - exact).abs() <= (neighbour - exact).abs())[neighbour.isfinite()].all()
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), 1e300, 0.0, -0.0], dtype=torch.float64)
    assert torch.equal(_rounded(special, dtype).isnan(), special.isnan())
    assert torch.equal(_rounded(special, dtype)[[0, 1, 3]], special[[0, 1, 0]].to(dtype))


def test_a_weight_that_is_none_is_refused():
    with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID"):
        lb.linear(torch.zeros(2, 64).half(), torch.zeros(16, 64))


def test_a_vector_is_a_legal_input():
    weight = weight_of(24, 64, lb.Format("i4", group=64))
    assert lb.linear(torch.randn(64).half(), weight).shape == (24,)


@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64), (2, 64)])
def test_empty_inputs_give_empty_outputs(monkeypatch, shape):
    monkeypatch.setenv("LOWBITVM_DEVICE", "emulator:sm_80")
    weight = weight_of(16, 64, lb.Format("i4", group=64))
    assert lb.linear(torch.zeros(shape).half(), weight).shape == (*shape[:-1], 16)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_the_operator_passes_torchs_own_checks(fmt):
    weight = weight_of(24, 128, fmt)
    x = torch.randn(2, 2, 128).half()
    arguments = (*parts(weight), torch.randn(24).half(), str(fmt), 24, 128)
    torch.library.opcheck(torch.ops.lowbitvm.linear, (x, *arguments))
    without_backward = ("test_schema", "test_autograd_registration", "test_faketensor")  # backward raises, see below
    torch.library.opcheck(torch.ops.lowbitvm.linear, (x.requires_grad_(), *arguments), test_utils=without_backward)


def test_the_operator_compiles_without_a_graph_break():
    weight = weight_of(24, 128, lb.Format("u4", zero="int"))
    x = torch.randn(3, 128).half()
    compiled = torch.compile(lambda t: operator(t, weight) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), operator(x, weight) + 1)


@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize("gated", [False, True])
def test_what_follows_the_product_agrees_with_torch(monkeypatch, activation, gated):
    fmt = lb.Format("u4", group=64, zero="int")
    weight, gate = weight_of(40, 128, fmt), weight_of(40, 128, fmt, seed=1) if gated else None
    x, bias, residual = torch.randn(2, 3, 128).half(), torch.randn(40).half(), torch.randn(2, 3, 40)
    function = {None: lambda v: v, "relu": torch.relu, "silu": torch.nn.SiLU(), "gelu": torch.nn.GELU()}[activation]
    exact = x.double() @ weight.dequantize().double().T + bias.double()
    exact = function(exact) if gate is None else function(x.double() @ gate.dequantize().double().T) * exact
    exact = exact + residual.double()
    options = {"gate": gate, "activation": activation, "residual": residual, "dtype": torch.float32}
    assert torch.equal(lb.linear(x, weight, bias, **options), exact.float())
    monkeypatch.setenv("LOWBITVM_DEVICE", "emulator:sm_80")
    emulated = lb.linear(x, weight, bias, **options)
    assert emulated.dtype == torch.float32
    size = x.abs().double() @ weight.dequantize().double().abs().T + 4  # of the terms; sums of them err by f32's steps
    size = size if gate is None else size * (x.abs().double() @ gate.dequantize().double().abs().T + 4)
    assert ((emulated.double() - exact).abs() <= 128 * 2.0**-23 * size).all()


def test_rows_of_a_batch_invariant_layer_do_not_depend_on_the_batch(monkeypatch):
    monkeypatch.setenv("LOWBITVM_DEVICE", "emulator:sm_80")
    weight, x = weight_of(24, 2304, lb.Format("u4", zero="int")), torch.randn(40, 2304).half()
    together = lb.linear(x, weight, batch_invariant=True)
    for row in (0, 7, 39):
        assert torch.equal(lb.linear(x[row], weight, batch_invariant=True), together[row])


def test_the_operator_passes_torchs_own_checks_with_all_that_may_follow():
    fmt = lb.Format("u4", group=64, zero="int")
    weight, gate = weight_of(24, 128, fmt), weight_of(24, 128, fmt, seed=1)
    x, residual = torch.randn(2, 128).half(), torch.randn(2, 24).half()
    arguments = (x, *parts(weight), None, str(fmt), 24, 128, None, None, None, None, list(parts(gate)), residual)
    options = {"activation": "silu", "dtype": torch.float32, "batch_invariant": True}
    torch.library.opcheck(torch.ops.lowbitvm.linear, arguments, options)


def test_a_gated_layer_compiles_without_a_graph_break():
    fmt = lb.Format("i4", group=64)
    weight, gate = weight_of(24, 128, fmt), weight_of(24, 128, fmt, seed=1)
    x = torch.randn(3, 128).half()
    operands = (*parts(weight), None, str(fmt), 24, 128, None, None, None, None, list(parts(gate)[:2]))

    def layer(t):
        return torch.ops.lowbitvm.linear(t, *operands, activation="silu") * 2

    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


def test_a_gradient_through_it_is_a_clear_error():
    weight = weight_of(16, 64, lb.Format("i4", group=64))
    y = lb.linear(torch.randn(2, 64).half().requires_grad_(), weight)
    with pytest.raises(LowbitvmError, match="GRADIENT_UNSUPPORTED"):
        y.sum().backward()


WEIGHT = weight_of(16, 64, lb.Format("i4", group=64))


@pytest.mark.parametrize(
    ("code", "x", "bias"),
    [
        ("DTYPE_MISMATCH", torch.zeros(2, 64), None),
        ("SHAPE_MISMATCH", torch.zeros(2, 65).half(), None),
        ("SHAPE_MISMATCH", torch.tensor(1.0).half(), None),
        ("SHAPE_MISMATCH", torch.zeros(2, 64).half(), torch.zeros(15).half()),
        ("DTYPE_MISMATCH", torch.zeros(2, 64).half(), torch.zeros(16)),
        ("TENSOR_NOT_CONTIGUOUS", torch.zeros(64, 2).half().T, None),
        ("DEVICE_MISMATCH", torch.zeros(2, 64, device="meta").half(), None),
    ],
)
def test_bad_input_is_refused(code, x, bias):
    with pytest.raises(LowbitvmError, match=code):
        lb.linear(x, WEIGHT, bias)


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("ARGUMENT_INVALID", {"activation": "tanh"}),
        ("ARGUMENT_INVALID", {"gate": torch.zeros(16, 64)}),
        ("FORMAT_UNSUPPORTED", {"gate": weight_of(16, 64, lb.Format("u4", group=64, zero="int"))}),
        ("SHAPE_MISMATCH", {"gate": weight_of(24, 64, lb.Format("i4", group=64))}),
        ("SHAPE_MISMATCH", {"residual": torch.zeros(2, 15)}),
        ("DTYPE_MISMATCH", {"residual": torch.zeros(2, 16).double()}),
        ("DTYPE_MISMATCH", {"dtype": torch.float64}),
        ("TENSOR_NOT_CONTIGUOUS", {"residual": torch.zeros(16, 2).T}),
    ],
)
def test_what_cannot_follow_the_product_is_refused(code, options):
    with pytest.raises(LowbitvmError, match=code):
        lb.linear(torch.zeros(2, 64).half(), WEIGHT, **options)


def test_a_mistake_is_found_when_the_operator_is_traced():
    def layer(x):
        return operator(x, WEIGHT)

    with pytest.raises(Exception, match=r"SHAPE_MISMATCH: x has shape \(2, 65\)"):  # torch wraps it in its own
        torch.compile(layer, backend="aot_eager", fullgraph=True)(torch.zeros(2, 65).half())


def test_arguments_of_the_wrong_kind_are_named():
    x = torch.zeros(2, 64).half()
    for arguments, options, code in (
        ((np.zeros((2, 64), np.float16), WEIGHT), {}, "ARGUMENT_INVALID: x is a ndarray"),
        ((x, WEIGHT), {"activation": torch.relu}, "ARGUMENT_INVALID: there is no activation"),
        ((x, WEIGHT), {"dtype": "f16"}, "DTYPE_MISMATCH: the result is f16"),
    ):
        with pytest.raises(LowbitvmError, match=code):
            lb.linear(*arguments, **options)


def test_a_weight_of_numpy_arrays_is_refused():
    weight = lb.quantize(np.zeros((16, 64), np.float32), lb.Format("i4", group=64))
    with pytest.raises(LowbitvmError, match="DEVICE_MISMATCH"):
        lb.linear(torch.zeros(2, 64).half(), weight)


@pytest.mark.parametrize(("device", "code"), [("emulator:sm_42", "TARGET_UNKNOWN"), ("toaster", "DEVICE_UNAVAILABLE")])
def test_an_unknown_device_is_refused(monkeypatch, device, code):
    monkeypatch.setenv("LOWBITVM_DEVICE", device)
    with pytest.raises(LowbitvmError, match=code):
        lb.linear(torch.zeros(2, 64).half(), WEIGHT)


def test_a_weight_cannot_move_to_a_gpu_that_is_not_there():
    if torch.cuda.is_available():
        assert WEIGHT.to("cuda").words.is_cuda
    else:
        with pytest.raises(LowbitvmError, match="DEVICE_UNAVAILABLE"):
            WEIGHT.to("cuda")
    assert torch.equal(WEIGHT.to("cpu").words, WEIGHT.words)


@pytest.mark.parametrize("fmt", np.random.default_rng(0).choice(np.array(QUANTIZABLE), 40).tolist(), ids=str)
def test_every_format_runs_on_the_cpu(fmt: lb.Format) -> None:
    permutation = torch.randperm(256, generator=torch.Generator().manual_seed(1)) if fmt.zero is None else None
    weight = lb.quantize(**tensors(float_weight(fmt, 24, 256, seed=1)), permutation=permutation)
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    exact = x.double() @ weight.dequantize().double().T
    y = lb.linear(x, weight)
    assert y.dtype == x.dtype and y.shape == (3, 24)
    assert ((y.double() - exact).abs() <= exact.abs() * 2.0**-8).all()
