"""`lowbitvm demo --generate`: SmolLM2-135M writes text, every linear layer of every block run by a low-bit kernel.

The kernels run on the emulated A100, or on the GPU; norms, rotation, softmax and the gate are torch's, in float32. The
tokens are those of greedy decoding, and are compared with the same decoding of the dequantised checkpoint in float32.

The output matrix (the embedding) is stored in 8 bits, which is two digits of four: w = 16 s * high + s * low with high
in i4 and low in u4, so the logits are the sum of two 4-bit products.

How far a token is from another one: `margin` is the float model's best logit minus its second. Its error, to first
order, is the sum over all roundings e of (gradient of the margin) * e. Every e is at most its derived bound b: half an
ulp for an activation rounded to f16, `linear_bound` for an element of a layer's output. Taken as independent with mean
zero, Hoeffding's inequality gives |error| <= CONFIDENCE * sqrt(sum (gradient * b)^2) with probability
1 - 2 exp(-CONFIDENCE^2 / 2). Source of the model: Higham and Mary, SIAM J. Sci. Comput. 41 (2019) A2815.
"""

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import lowbitvm as lb
from lowbitvm.bounds import LARGEST, linear_bound
from lowbitvm.checkpoint import GgufFile, Tokenizer, smollm2_path
from lowbitvm.demo import LAYERS, Block, Hyperparameters, Past, load_block, rms_norm, run_block, run_target
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.pack import PackedWeight, pack
from lowbitvm.runtime.emulator import EmulatorError
from lowbitvm.runtime.linear import run_linear

PROMPT = "The capital of France is"
CONFIDENCE = 6.0  # 3e-8 that a token's error is larger
DIGIT_BITS = 4
HALF_ROUNDING, HALF_SMALLEST = 2.0**-11, 2.0**-25  # of a normal f16, relative; of a subnormal one

Item = TypeVar("Item")
Result = TypeVar("Result")

Product = Callable[[torch.Tensor, PackedWeight], torch.Tensor]  # f16 (tokens, in), weight -> f16 (tokens, out)
Layer = Callable[[torch.Tensor, PackedWeight], torch.Tensor]  # the same in float32
Head = Callable[[torch.Tensor], torch.Tensor]  # float32 (tokens, width) -> logits (tokens, vocabulary)


@dataclass(frozen=True)
class Model:
    """The whole checkpoint. `embedding`: float32 (vocabulary, width), the same matrix as `codes` and `scales`.

    codes: i8 (vocabulary, width), scales: f16 (vocabulary, groups); the products of `digits` add up to theirs.
    """

    parameters: Hyperparameters
    blocks: list[Block]
    embedding: torch.Tensor
    output_norm: torch.Tensor
    codes: NDArray[np.int8]
    scales: NDArray[np.float16]
    digits: list[PackedWeight]


def load_model(file: GgufFile, device: str, step: Callable[[], None], blocks: int | None = None) -> Model:
    """The first `blocks` transformer blocks (by default all) and the matrices around them; `step` counts the blocks."""
    parameters = Hyperparameters.from_gguf(file)
    numbers = range(parameters.blocks if blocks is None else blocks)
    loaded = _on_all_cores(lambda index: load_block(file, index, device), numbers, step)
    codes, scales = file.quantized_8bit("token_embd.weight")
    embedding, norm = file.floats("token_embd.weight"), file.floats("output_norm.weight").copy()
    digits = [digit.to(device) for digit in split_digits(codes, scales)]
    floats = (torch.from_numpy(embedding).to(device), torch.from_numpy(norm).to(device))
    return Model(parameters, loaded, *floats, codes, scales, digits)


def split_digits(codes: NDArray[np.int8], scales: NDArray[np.float16]) -> list[PackedWeight]:
    """Two 4-bit weights whose dequantised values add up to the 8-bit matrix, exactly: 16 s * high and s * low."""
    group = codes.shape[1] // scales.shape[1]
    high, low = codes >> DIGIT_BITS, (codes & (1 << DIGIT_BITS) - 1).astype(np.uint8)
    shifted = scales.astype(np.float32) * (1 << DIGIT_BITS)
    if (np.abs(shifted) > LARGEST["f16"]).any():
        raise LowbitvmError("CODES_OUT_OF_RANGE", "a scale times 16 is beyond f16", "scale the matrix down")
    parts = ((high, shifted.astype(np.float16), "i4"), (low, scales, "u4"))
    packed = [pack(torch.from_numpy(c), torch.from_numpy(s), None, Format(name, group)) for c, s, name in parts]
    return [weight for weight in packed if isinstance(weight, PackedWeight)]


def logits(model: Model, tokens: list[int], past: list[Past], layer: Layer, head: Head) -> torch.Tensor:
    """Logits (vocabulary) of the token after `tokens`, which follow those that `past` has seen."""
    hidden = model.embedding[tokens]
    for block, seen in zip(model.blocks, past, strict=True):
        hidden = run_block(hidden, block, model.parameters, _named(layer, block), seen)
    return head(rms_norm(hidden[-1:], model.output_norm, model.parameters.norm_epsilon))[0]


def _named(layer: Layer, block: Block) -> Callable[[str, torch.Tensor], torch.Tensor]:
    return lambda name, x: layer(x, block.linears[name])


def decode(
    model: Model, tokens: list[int], count: int, layer: Layer, head: Head, step: Callable[[int], None]
) -> tuple[list[torch.Tensor], list[float]]:
    """Greedy decoding: the logits of `count` tokens after `tokens`, and the seconds that each took.

    Keys and values of earlier tokens are kept. `step` is told the token that was chosen.
    """
    past = [Past() for _ in model.blocks]
    outputs, seconds, new = [], [], tokens
    for _ in range(count):
        start = time.perf_counter()
        outputs.append(logits(model, new, past, layer, head))
        new = [int(outputs[-1].argmax())]
        seconds.append(time.perf_counter() - start)
        step(new[0])
    return outputs, seconds


def _on_all_cores(
    function: Callable[[Item], Result], items: Iterable[Item], step: Callable[[], None] = lambda: None
) -> list[Result]:
    """function(item) of each item, in order; `step` counts them. numpy and torch release the interpreter's lock."""
    results = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(function, items):
            results.append(result)
            step()
    return results


class Reference:
    """The float32 model with dequantised weights. Needs four bytes per weight."""

    def __init__(self, model: Model) -> None:
        self.model = model
        weights = [weight for block in model.blocks for weight in block.linears.values()]
        dense = _on_all_cores(lambda weight: weight.dequantize().float(), weights)
        self.dense = {id(weight): floats for weight, floats in zip(weights, dense, strict=True)}

    def layer(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        return F.linear(x, self.dense[id(weight)])

    def head(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.model.embedding)

    def margins(self, tokens: list[int], start: int, step: Callable[[], None]) -> list[tuple[float, float]]:
        """(margin, bound of its error) of each of tokens[start:], chosen greedily after those before it.

        `step` counts the layers.
        """
        model, rounded = self.model, _Roundings()
        calls: list[tuple[torch.Tensor, PackedWeight, torch.Tensor]] = []

        def layer(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
            calls.append((x, weight, self.layer(x, weight)))
            return calls[-1][2]

        hidden = model.embedding[tokens[:-1]].clone().requires_grad_()
        for block in model.blocks:
            hidden = run_block(hidden, block, model.parameters, _named(layer, block))
        last = rms_norm(hidden, model.output_norm, model.parameters.norm_epsilon)
        bounds = _on_all_cores(lambda call: linear_bound(call[0].detach().half(), call[1]), calls, step)
        for (x, _, y), bound in zip(calls, bounds, strict=True):
            rounded.activation(x)
            rounded.add(y, torch.from_numpy(bound).float())
        rounded.activation(last)
        result = []
        for position in range(start - 1, len(tokens) - 1):
            best, second = self.head(last[position]).topk(2).indices.tolist()
            margin = last[position] @ (model.embedding[best] - model.embedding[second])
            variance = rounded.variance(margin) + self._head_variance(last[position : position + 1], [best, second])
            result.append((float(margin.detach()), CONFIDENCE * variance**0.5))
        return result

    def _head_variance(self, x: torch.Tensor, rows: list[int]) -> float:
        """Of the difference of two logits, from the roundings of their own products."""
        digits = split_digits(self.model.codes[rows], self.model.scales[rows])
        bounds = [linear_bound(x.detach().half(), digit) for digit in digits]
        return float(sum(np.square(bound).sum() for bound in bounds))


class _Roundings:
    """Tensors of a float model that the kernels round, each with the largest error of its elements."""

    def __init__(self) -> None:
        self.tensors: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, tensor: torch.Tensor, bound: torch.Tensor) -> None:
        self.tensors[id(tensor)] = (tensor, bound)

    def activation(self, x: torch.Tensor) -> None:
        """x is rounded to f16; where several layers take it, by the same errors."""
        self.add(x, torch.clamp(x.detach().abs() * HALF_ROUNDING, min=HALF_SMALLEST))

    def variance(self, value: torch.Tensor) -> float:
        """The sum of (gradient * bound)^2 over all elements."""
        tensors, bounds = zip(*self.tensors.values(), strict=True)
        gradients = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
        parts = zip(gradients, bounds, strict=True)
        return sum(float((g * bound).double().square().sum()) for g, bound in parts if g is not None)


class EmulatedProduct:
    """Linear layers through PTX on the emulator. `instructions`: warp instructions run so far."""

    def __init__(self, target: str, checks: str | set[str]) -> None:
        self.target, self.checks, self.instructions = target, checks, 0

    def __call__(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        y = x.new_empty((len(x), weight.out_features))
        report = run_linear(x, weight, None, y, self.target, checks=self.checks)
        assert report is not None
        self.instructions += report.counters.instructions
        return y


@dataclass(frozen=True)
class Step:
    """One generated token beside the float model's. `error`: how far the margin was off, NaN once tokens differ."""

    token: int
    expected: int
    margin: float
    bound: float
    error: float
    seconds: float


@dataclass(frozen=True)
class Generation:
    prompt: str
    prompt_tokens: int
    steps: list[Step]
    text: str

    @property
    def agrees(self) -> bool:
        return all(step.token == step.expected for step in self.steps)

    @property
    def tokens_per_minute(self) -> float:
        """The prompt's evaluation included."""
        return 60 * len(self.steps) / sum(step.seconds for step in self.steps)


def generate(
    file: GgufFile,
    tokenizer: Tokenizer,
    prompt: str,
    count: int,
    product: Product,
    device: str,
    progress: Callable[[str], None],
    blocks: int | None = None,
) -> Generation:
    """Generates `count` tokens with `product` for the linear layers and compares them with the float model's.

    `device`: where torch computes the rest, "cpu" or "cuda". `progress` is told what happens: once per
    block read, per layer whose bound is derived, and per product.
    """
    tokens = tokenizer.encode(prompt)
    if not tokens:
        raise LowbitvmError("ARGUMENT_INVALID", "the text is empty", "pass at least one character")
    model = load_model(file, "cpu", lambda: progress("reading the checkpoint"), blocks)
    with torch.no_grad():
        reference = Reference(model)
        expected, _ = decode(model, tokens, count, reference.layer, reference.head, lambda token: None)
    chosen = [int(output.argmax()) for output in expected]
    margins = reference.margins(tokens + chosen, len(tokens), lambda: progress("error bounds from the float model"))
    del reference
    written: list[int] = []

    def layer(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        progress(f"{prompt}{tokenizer.decode(written)}")
        return product(x.half(), weight).float()

    place = model if device == "cpu" else load_model(file, device, lambda: None, blocks)
    with torch.no_grad():
        got, seconds = decode(place, tokens, count, layer, lambda x: _summed(layer, x, place.digits), written.append)
    steps, same = [], True
    for output, wanted, token, (margin, bound), time_ in zip(got, expected, chosen, margins, seconds, strict=True):
        best, second = wanted.topk(2).indices.tolist()
        error = float(output[best] - output[second]) - float(wanted[best] - wanted[second])
        steps.append(Step(int(output.argmax()), token, margin, bound, error if same else float("nan"), time_))
        same = same and steps[-1].token == token
    return Generation(prompt, len(tokens), steps, tokenizer.decode(written))


def _summed(layer: Layer, x: torch.Tensor, digits: list[PackedWeight]) -> torch.Tensor:
    high, low = (layer(x, digit) for digit in digits)
    return high + low


def table(result: Generation, tokenizer: Tokenizer) -> Table:
    """One row for each token."""
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 2))
    drawn.add_column("token")
    for header in ("margin", "its error", "error bound", "seconds"):
        drawn.add_column(header, justify="right")
    for step in result.steps:
        style = None if step.token == step.expected else "red"
        numbers = (f"{step.margin:.3f}", f"{abs(step.error):.4f}", f"{step.bound:.4f}", f"{step.seconds:.1f}")
        drawn.add_row(Text(repr(tokenizer.decode([step.token]))), *numbers, style=style)
    return drawn


def verdict(result: Generation, tokenizer: Tokenizer) -> str:
    """Whether the tokens are the float model's, and how near another token ever was."""
    wrong = next((n for n, step in enumerate(result.steps) if step.token != step.expected), None)
    if wrong is None:
        closest = min(result.steps, key=lambda step: step.margin / step.bound)
        return (
            f"All {len(result.steps)} tokens are those of the float model. The margin that is smallest for its error "
            f"bound is {closest.margin:.3f}: its error is {abs(closest.error):.4f}, the bound {closest.bound:.4f}."
        )
    step = result.steps[wrong]
    pair = f"{tokenizer.decode([step.token])!r} instead of {tokenizer.decode([step.expected])!r}"
    near = "a near-tie: its margin is" if step.margin <= step.bound else "an error: its margin is"
    return f"Token {wrong + 1} is {pair}, {near} {step.margin:.4f} and the error bound {step.bound:.4f}."


def main(prompt: str, count: int, device: str, checks: str | set[str], console: Console) -> int:
    """Generates, prints tokens and verdict, and returns the exit status: 0 if the tokens are the float model's."""
    target = run_target(device)
    emulated = None if device == "cuda" else EmulatedProduct(target, checks)
    file = GgufFile(smollm2_path())
    tokenizer, parameters = Tokenizer.from_gguf(file), Hyperparameters.from_gguf(file)
    layers = len(LAYERS) * parameters.blocks
    total = parameters.blocks + layers + count * (layers + 2)  # two digits of the output matrix
    columns = (
        BarColumn(24),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=total)

            def advance(what: str) -> None:
                progress.update(task, advance=1, description=what)

            result = generate(
                file, tokenizer, prompt, count, emulated or lb.linear, "cpu" if emulated else "cuda", advance
            )
    except EmulatorError as error:
        console.print(Text(str(error)), style="red")
        return 1
    console.print(f"SmolLM2-135M, {parameters.blocks} blocks, {result.prompt_tokens} tokens in, on {device}")
    console.print(table(result, tokenizer))
    console.print(Text.assemble(prompt, (result.text, "bold")))
    console.print(Text(verdict(result, tokenizer)), style=None if result.agrees else "red")
    ran = f", {emulated.instructions:,} warp instructions" if emulated else ""
    console.print(f"{result.tokens_per_minute:.1f} tokens a minute, the prompt included{ran}.")
    return 0 if result.agrees else 1
