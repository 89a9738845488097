"""The demo's block against its own laws, and its checks against layers that compute wrong results."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from lowbitvm import demo
from lowbitvm.checkpoint import GgufFile, smollm2_path
from lowbitvm.errors import LowbitvmError
from lowbitvm.pack import PackedWeight
from lowbitvm.targets import TARGETS

Rotation = Callable[[torch.Tensor, float], torch.Tensor]


@pytest.fixture(scope="module")
def smollm2() -> GgufFile:
    return GgufFile(smollm2_path())


@dataclass(frozen=True)
class Kernel:
    registers: int
    spills: int
    trace_ms: float = 1.5
    assemble_ms: float = 2.5


class CountingBackend:
    """Exact layers rounded once to f16; counts what is compiled. `damage` changes a layer's result."""

    def __init__(self, damage: Callable[[torch.Tensor, PackedWeight], Any] = lambda y, weight: None) -> None:
        self.compiled: list[tuple[tuple[int, int], int, str]] = []
        self.damage = damage
        self.backend = demo.Backend("emulator:sm_80", "sm_80", self.linear, self.compile, self.bound)

    def linear(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        assert x.dtype == torch.float16
        exact = x.double() @ weight.dequantize().double().T
        y = torch.from_numpy(exact.numpy().astype(np.float16))  # torch would round twice, by way of float32
        self.damage(y, weight)
        return y

    def compile(self, weight: PackedWeight, tokens: int, target: str) -> Kernel:
        self.compiled.append((weight.shape, tokens, target))
        return Kernel(registers=int(target[3:].rstrip("af")), spills=8 if target == "sm_89" else 0)

    def bound(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """Half an ulp of f16: 2^-11 of a normal number, 2^-25 of a subnormal one."""
        return torch.clamp((x.double() @ weight.dequantize().double().T).abs() * 2**-11, min=2**-25)


def evaluate(file: GgufFile, backend: demo.Backend) -> demo.DemoResult:
    return demo.evaluate(file, "The capital of France is", backend, lambda what: None)


def test_interleaved_rotation_of_stored_rows_is_half_rotation_of_unpermuted_rows(smollm2: GgufFile) -> None:
    def unpermuted(weight: torch.Tensor, heads: int) -> torch.Tensor:  # the row order of the original checkpoint
        return weight.reshape(heads, 32, 2, -1).transpose(1, 2).flatten(0, 2)

    def rotate_half(x: torch.Tensor, base: float) -> torch.Tensor:
        """RoPE as the original checkpoint's code has it: features i and i + d/2 are a pair."""
        d = x.shape[-1]
        angles = torch.outer(torch.arange(x.shape[1]).double(), base ** (-torch.arange(0, d, 2).double() / d))
        angles = torch.cat((angles, angles), dim=-1)
        turned = torch.cat((-x[..., d // 2 :], x[..., : d // 2]), dim=-1)
        return x * angles.cos() + turned * angles.sin()

    def scores(rotation: Rotation, order: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
        def rotated(name: str, heads: int) -> torch.Tensor:
            features = hidden @ order(block.linears[name].dequantize(), heads).T
            return rotation(features.reshape(len(hidden), heads, 64).transpose(0, 1), 1e5)

        return rotated("attn_q", 9) @ rotated("attn_k", 3).repeat_interleave(3, dim=0).mT

    block = demo.load_block(smollm2, 0, "cpu")
    hidden = torch.randn(7, 576, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stored = scores(demo.rotate, lambda weight, heads: weight)
    half = scores(rotate_half, unpermuted)
    # features: 576 products, scores: 64 products of features, each rounded to 2^-53; the same terms in another order
    largest = hidden.abs().max() * max(weight.dequantize().abs().sum(1).max() for weight in block.linears.values())
    torch.testing.assert_close(stored, half, rtol=0, atol=float((576 + 64 + 16) * 2**-53 * 64 * largest**2))
    assert (stored - scores(rotate_half, lambda weight, heads: weight)).abs().max() > 1


def test_rotation_turns_pairs_by_position_and_keeps_their_length() -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = demo.rotate(x, 100.0)
    pairs, turned_pairs = (torch.view_as_complex(t.reshape(2, 5, 4, 2)) for t in (x, turned))
    turns = [[math.e ** (1j * token * 100.0 ** (-i / 4)) for i in range(4)] for token in range(5)]
    # angles up to 4 with some roundings of 2^-53 each, times coordinates up to 4
    torch.testing.assert_close(turned_pairs, pairs * torch.tensor(turns, dtype=torch.complex128), rtol=0, atol=2**-46)
    torch.testing.assert_close(turned[:, 0], x[:, 0], rtol=0, atol=0)


def test_a_token_changes_no_earlier_token(smollm2: GgufFile) -> None:
    block, parameters = demo.load_block(smollm2, 0, "cpu"), demo.Hyperparameters.from_gguf(smollm2)
    linear = demo.dense_linear({name: weight.dequantize() for name, weight in block.linears.items()})
    first, second = (
        demo.run_block(demo.embed(smollm2, [504, 3575, 282, last]).double(), block, parameters, linear)
        for last in (4649, 314)
    )
    torch.testing.assert_close(first[:3], second[:3], rtol=1e-12, atol=1e-12)
    assert (first[3] - second[3]).abs().max() > 1e-3


def test_hyperparameters_are_those_of_smollm2_135m(smollm2: GgufFile) -> None:
    parameters = demo.Hyperparameters.from_gguf(smollm2)
    assert replace(parameters, norm_epsilon=0) == demo.Hyperparameters(30, 9, 3, 1e5, 0)
    assert parameters.norm_epsilon == pytest.approx(1e-5, rel=2**-24)


def test_correctly_rounded_layers_agree_and_reach_the_bound(smollm2: GgufFile) -> None:
    counting = CountingBackend()
    result = evaluate(smollm2, counting.backend)
    assert result.agrees and result.tokens == 5
    assert [layer.name for layer in result.layers] == list(demo.LAYERS)
    assert {layer.name: layer.shape for layer in result.layers} == {
        "attn_q": (576, 576), "attn_k": (192, 576), "attn_v": (192, 576), "attn_output": (576, 576),
        "ffn_gate": (1536, 576), "ffn_up": (1536, 576), "ffn_down": (576, 1536),
    }  # fmt: skip
    for layer in result.layers:  # so a bound that is twice too small would be noticed
        assert 0.5 < layer.error_over_bound <= 1


def test_every_layer_is_compiled_for_every_target(smollm2: GgufFile) -> None:
    counting = CountingBackend()
    result = evaluate(smollm2, counting.backend)
    assert counting.compiled == [(layer.shape, 5, target) for layer in result.layers for target in TARGETS]
    assert {(layer.registers, layer.spills) for layer in result.layers} == {(80, 8)}  # sm_80's, and sm_89's


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.4375])
@pytest.mark.parametrize("rows", [192, 1536])
def test_one_wrong_element_in_any_layer_makes_the_demo_disagree(smollm2: GgufFile, value: float, rows: int) -> None:
    def damage(y: torch.Tensor, weight: PackedWeight) -> None:
        if weight.out_features == rows:
            y[3, 70] = value

    result = evaluate(smollm2, CountingBackend(damage).backend)
    wrong = {layer.name for layer in result.layers if not layer.agrees}
    damaged = {layer.name for layer in result.layers if layer.shape[0] == rows}
    assert not result.agrees
    assert wrong == damaged if math.isfinite(value) else wrong >= damaged  # NaN spreads to the inputs of later layers


def test_error_over_bound_counts_exact_elements_as_zero_and_refuses_nan() -> None:
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    assert demo.error_over_bound(zero.half(), zero, zero) == 0
    assert demo.error_over_bound(one.half(), zero, zero) == math.inf
    assert demo.error_over_bound(one.half(), zero, 2 * one) == 0.5
    assert math.isnan(demo.error_over_bound(math.nan * one.half(), zero, one))


@pytest.mark.parametrize("damaged", [False, True])
def test_the_exit_status_and_the_printed_verdict_tell_whether_all_agree(
    smollm2: GgufFile, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    counting = CountingBackend(lambda y, weight: y.mul_(1.01) if damaged and weight.in_features == 1536 else None)
    monkeypatch.setattr(demo, "lowbitvm_backend", lambda device: counting.backend)
    monkeypatch.setattr(demo, "GgufFile", lambda path: smollm2)
    console = Console(record=True, width=160)
    assert demo.main(demo.TEXT, "emulator:sm_80", console) == int(damaged)
    printed = console.export_text()
    assert ("Beyond the error bound: ffn_down\n" in printed) == damaged
    assert ("All 7 layers agree" in printed) != damaged
    assert all(name in printed for name in (*demo.LAYERS, *TARGETS, "1536x576", "emulated"))


def test_an_empty_text_is_refused(smollm2: GgufFile) -> None:
    with pytest.raises(LowbitvmError) as error:
        demo.evaluate(smollm2, "", CountingBackend().backend, lambda what: None)
    assert error.value.code == "ARGUMENT_INVALID"


@pytest.mark.parametrize(("device", "code"), [("tpu", "DEVICE_UNAVAILABLE"), ("emulator:sm_1", "TARGET_UNKNOWN")])
def test_a_device_that_does_not_exist_is_refused(device: str, code: str) -> None:
    with pytest.raises(LowbitvmError) as error:
        demo.run_target(device)
    assert error.value.code == code


def test_the_emulators_device_name_ends_in_its_target() -> None:
    assert demo.run_target("emulator:sm_90a") == "sm_90a"


@pytest.mark.parametrize("before", [None, "emulator:sm_86"])
def test_the_device_variable_is_put_back(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv("LOWBITVM_DEVICE", raising=False)
    if before is not None:
        monkeypatch.setenv("LOWBITVM_DEVICE", before)
    with demo._environment("LOWBITVM_DEVICE", "emulator:sm_80"):
        assert os.environ["LOWBITVM_DEVICE"] == "emulator:sm_80"
    assert os.environ.get("LOWBITVM_DEVICE") == before
