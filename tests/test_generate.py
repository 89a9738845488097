"""Text written through low-bit kernels, against text that the model must write and kernels that are wrong."""

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from lowbitvm import demo, generate
from lowbitvm.checkpoint import GgufFile, Tokenizer, smollm2_path
from lowbitvm.cli import main
from lowbitvm.errors import LowbitvmError
from lowbitvm.pack import PackedWeight
from lowbitvm.runtime import emulator

BLOCKS, COUNT = 1, 2  # of the model and tokens; a token costs the emulator 0.1 s a block and 2 s for the logits


@pytest.fixture(scope="module")
def smollm2() -> GgufFile:
    return GgufFile(smollm2_path())


@pytest.fixture(scope="module")
def tokenizer(smollm2: GgufFile) -> Tokenizer:
    return Tokenizer.from_gguf(smollm2)


Generate = Callable[..., generate.Generation]


@functools.cache
def dense(weight: PackedWeight) -> torch.Tensor:
    return weight.dequantize().float()


def rounded(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """As good as a kernel can be: the sum in float32, rounded to f16."""
    return (x.float() @ dense(weight).T).half()


@pytest.fixture(scope="module")
def generated(smollm2: GgufFile, tokenizer: Tokenizer) -> Iterator[Generate]:
    """Generates COUNT tokens with BLOCKS blocks, which are read once."""
    model = generate.load_model(smollm2, "cpu", lambda: None, BLOCKS)

    def load(file: GgufFile, device: str, step: Callable[[], None], blocks: int) -> generate.Model:
        for _ in range(blocks):
            step()
        return model

    def run(product: generate.Product, steps: list[str] | None = None) -> generate.Generation:
        told = [] if steps is None else steps
        text = "The capital of France is"
        return generate.generate(smollm2, tokenizer, text, COUNT, product, "cpu", told.append, BLOCKS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "load_model", load)
        yield run


@pytest.fixture(scope="module")
def exact(generated: Generate) -> generate.Generation:
    return generated(rounded)


def test_the_whole_model_knows_the_capital_of_france(smollm2: GgufFile, tokenizer: Tokenizer) -> None:
    """Loader, packing, row permutation, rotation, attention, norm, cache and tokeniser must all be right for this."""
    model = generate.load_model(smollm2, "cpu", lambda: None)
    tokens: list[int] = []
    with torch.no_grad():
        reference = generate.Reference(model)
        start = tokenizer.encode("The capital of France is")
        generate.decode(model, start, 3, reference.layer, reference.head, tokens.append)
    assert tokenizer.decode(tokens) == " Paris.\n"


def test_the_emulated_kernels_write_what_the_float_model_writes(generated: Generate) -> None:
    steps: list[str] = []
    product = generate.EmulatedProduct("sm_80", "none")
    result = generated(product, steps)
    assert result.agrees and len(result.steps) == COUNT and result.prompt_tokens == 5
    assert all(abs(step.error) <= step.bound for step in result.steps)
    assert len(steps) == BLOCKS + 7 * BLOCKS + COUNT * (7 * BLOCKS + 2)  # as the progress bar counts them
    assert steps[-1].startswith("The capital of France is")
    assert product.instructions > 1_000_000
    assert result.tokens_per_minute == pytest.approx(60 * COUNT / sum(step.seconds for step in result.steps))


def test_correctly_rounded_layers_stay_within_the_bound(exact: generate.Generation) -> None:
    assert exact.agrees
    for step in exact.steps:
        assert 0 < abs(step.error) <= step.bound < step.margin


@pytest.mark.parametrize("rows", [192, 1536, 49152])
def test_a_layer_that_is_half_too_large_is_beyond_the_bound_or_changes_a_token(generated: Generate, rows: int) -> None:
    def product(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        y = rounded(x, weight)
        return y * 1.5 if weight.out_features == rows else y

    result = generated(product)
    assert not result.agrees or any(abs(step.error) > step.bound for step in result.steps)


def test_a_wrong_token_is_told_from_a_tie(
    generated: Generate, tokenizer: Tokenizer, exact: generate.Generation
) -> None:
    result = generated(lambda x, weight: -rounded(x, weight))
    assert not result.agrees
    assert math.isnan(result.steps[1].error) == (result.steps[0].token != result.steps[0].expected)
    assert "an error: its margin is" in generate.verdict(result, tokenizer)
    step = generate.Step(1, 2, margin=0.1, bound=0.2, error=0.0, seconds=1.0)
    tie = generate.Generation("", 1, [step], "")
    assert "Token 1 is" in generate.verdict(tie, tokenizer) and "a near-tie" in generate.verdict(tie, tokenizer)
    assert "2 tokens are those of the float model" in generate.verdict(exact, tokenizer)


def test_an_empty_prompt_is_refused(smollm2: GgufFile, tokenizer: Tokenizer) -> None:
    with pytest.raises(LowbitvmError, match="the text is empty"):
        generate.generate(smollm2, tokenizer, "", 1, rounded, "cpu", lambda what: None, BLOCKS)


def test_tokens_one_by_one_give_what_all_at_once_give(smollm2: GgufFile) -> None:
    block, parameters = demo.load_block(smollm2, 0, "cpu"), demo.Hyperparameters.from_gguf(smollm2)
    linear = demo.dense_linear({name: weight.dequantize().double() for name, weight in block.linears.items()})
    hidden = torch.randn(6, 576, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = demo.run_block(hidden, block, parameters, linear)
    past = demo.Past()
    pieces = [demo.run_block(hidden[a:b], block, parameters, linear, past) for a, b in ((0, 3), (3, 4), (4, 6))]
    assert past.tokens == 6
    # the same float64 operations on other shapes: some thousand roundings of 2^-53 on numbers up to about 100
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-11, atol=1e-11)


def test_eight_bit_codes_are_those_that_gguf_decodes(smollm2: GgufFile) -> None:
    codes, scales = smollm2.quantized_8bit("token_embd.weight")
    assert codes.shape == (49152, 576) and scales.shape == (49152, 18)
    decoded = codes.astype(np.float32) * np.repeat(scales, 32, axis=1).astype(np.float32)  # exact: 11 + 8 bits
    np.testing.assert_array_equal(decoded, smollm2.floats("token_embd.weight"))
    with pytest.raises(LowbitvmError, match="is stored as Q4_1; Q8_0 matrices have 8-bit codes"):
        smollm2.quantized_8bit("blk.0.attn_q.weight")


def test_two_digits_add_up_to_eight_bits_exactly() -> None:
    codes = np.arange(-128, 128, dtype=np.int8).reshape(4, 64)
    scales = np.array([[1, 0.5], [2**-14, 3], [4088, 2**-24], [1.5, 0.333]], np.float16)
    high, low = (digit.dequantize().double() for digit in generate.split_digits(codes, scales))
    wanted = codes.astype(np.float64) * np.repeat(scales, 32, axis=1).astype(np.float64)
    np.testing.assert_array_equal((high + low).numpy(), wanted)
    with pytest.raises(LowbitvmError, match="beyond f16"):
        generate.split_digits(codes, scales + np.float16(8))


def test_the_variance_adds_squared_gradients_times_bounds() -> None:
    x = torch.tensor([3.0, -1.0], requires_grad=True)
    y = 2 * x
    roundings = generate._Roundings()
    roundings.add(x, torch.tensor([0.5, 0.25]))
    roundings.add(y, torch.tensor([1.0, 0.0]))
    roundings.add(torch.zeros(1, requires_grad=True), torch.ones(1))  # nothing depends on it
    value = (y * y).sum()  # d/dy = 2y = (12, -4), d/dx = 8x = (24, -8)
    assert roundings.variance(value) == (24 * 0.5) ** 2 + (8 * 0.25) ** 2 + 12**2


def test_an_activation_that_several_layers_take_is_rounded_once() -> None:
    x = torch.tensor([1.0, 2**-20], requires_grad=True)
    roundings = generate._Roundings()
    roundings.activation(x)
    roundings.activation(x)
    assert roundings.variance(x.sum()) == (2**-11) ** 2 + (2**-25) ** 2


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch, smollm2: GgufFile, tokenizer: Tokenizer) -> Callable[[int], None]:
    """Makes `generate` return one token, which is `expected` or not, without running a model."""
    monkeypatch.setattr(generate, "GgufFile", lambda path: smollm2)
    monkeypatch.setattr(Tokenizer, "from_gguf", lambda file: tokenizer)

    def stub(expected: int) -> None:
        step = generate.Step(7042, expected, margin=1.5, bound=0.1, error=0.01, seconds=2.0)
        result = generate.Generation(generate.PROMPT, 5, [step], " Paris")
        monkeypatch.setattr(generate, "generate", lambda *arguments: result)

    return stub


@pytest.mark.parametrize("expected", [7042, 1])
def test_the_exit_status_and_the_verdict_tell_whether_the_tokens_agree(
    stubbed: Callable[[int], None], expected: int
) -> None:
    stubbed(expected)
    result = CliRunner().invoke(main, ["demo", "--generate", "1", "--device", "emulator:sm_80"])
    assert result.exit_code == int(expected != 7042), result.output
    assert "The capital of France is Paris" in result.output
    assert ("All 1 tokens are those of the float model" in result.output) == (expected == 7042)
    assert "30.0 tokens a minute" in result.output


@pytest.mark.parametrize("words", [("--generate", "0"), ("--generate", "1", "--checks", "races")])
def test_the_options_of_generating_are_checked(words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(main, ["demo", *words]).exit_code == 2


def test_a_finding_ends_the_generation_with_its_place(smollm2: GgufFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 x)\n{ .reg .b64 %d;"
        text += "ld.param.u64 %d, [x]; st.global.u32 [%d+64], 1; ret; }"
        emulator.load(text).launch("k", (1,), (1,), [np.zeros(4, np.uint32)])

    monkeypatch.setattr(generate, "GgufFile", lambda path: smollm2)
    monkeypatch.setattr(generate, "generate", broken)
    console = Console(record=True, width=160)
    assert generate.main("x", 1, "emulator:sm_80", "all", console) == 1
    assert "out_of_bounds_global: line 5" in console.export_text()
