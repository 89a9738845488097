"""The demo: the first transformer block of SmolLM2-135M with its seven linear layers in 4 bits.

The block runs on the GPU if there is one, otherwise on the emulated A100. Every layer's result is compared with the
exact one within a derived bound, and its kernel is assembled for six GPU generations.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.bounds import linear_bound
from lowbitvm.checkpoint import GgufFile, Tokenizer, smollm2_path
from lowbitvm.errors import LowbitvmError
from lowbitvm.foreign import from_foreign
from lowbitvm.pack import PackedWeight
from lowbitvm.plan import linear_tile
from lowbitvm.runtime import driver
from lowbitvm.targets import TARGETS

LAYERS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
TEXT = "The capital of France is Paris, and the Seine flows through it."

Linear = Callable[[str, torch.Tensor], torch.Tensor]  # (layer name, x (tokens, in)) -> (tokens, out)


@dataclass(frozen=True)
class Hyperparameters:
    """What the block's arithmetic needs besides its weights."""

    blocks: int
    heads: int
    kv_heads: int  # query heads h * heads/kv_heads ... share key and value head h
    rope_base: float
    norm_epsilon: float

    @classmethod
    def from_gguf(cls, file: GgufFile) -> "Hyperparameters":
        prefix = file.metadata("general.architecture")
        return cls(
            blocks=file.metadata(f"{prefix}.block_count"),
            heads=file.metadata(f"{prefix}.attention.head_count"),
            kv_heads=file.metadata(f"{prefix}.attention.head_count_kv"),
            rope_base=file.metadata(f"{prefix}.rope.freq_base"),
            norm_epsilon=file.metadata(f"{prefix}.attention.layer_norm_rms_epsilon"),
        )


@dataclass(frozen=True)
class Block:
    """Weights of one transformer block: two norms (width) and, by name, the seven linear layers."""

    attn_norm: torch.Tensor
    ffn_norm: torch.Tensor
    linears: dict[str, PackedWeight]


def load_block(file: GgufFile, index: int, device: str) -> Block:
    """Block `index` of the file; codes and scales as the file has them, as torch tensors on `device`."""

    def norm(name: str) -> torch.Tensor:
        return torch.from_numpy(file.floats(f"blk.{index}.{name}.weight").copy()).to(device)

    def linear(name: str) -> PackedWeight:
        packing, stored = file.stored(f"blk.{index}.{name}.weight")
        packed = from_foreign(packing, {tensor: torch.from_numpy(array.copy()) for tensor, array in stored.items()})
        return packed.to(device)

    return Block(norm("attn_norm"), norm("ffn_norm"), {name: linear(name) for name in LAYERS})


def embed(file: GgufFile, tokens: list[int]) -> torch.Tensor:
    """Embeddings of token ids, float32 (tokens, width)."""
    return torch.from_numpy(file.floats("token_embd.weight")[tokens])


@dataclass
class Past:
    """Rotated keys and values (kv_heads, tokens, d) of the tokens that a block has seen; None before the first."""

    key: torch.Tensor | None = None
    value: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        return 0 if self.key is None else self.key.shape[1]

    def extend(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, the new ones included."""
        self.key = key if self.key is None else torch.cat((self.key, key), dim=1)
        self.value = value if self.value is None else torch.cat((self.value, value), dim=1)
        return self.key, self.value


def run_block(
    hidden: torch.Tensor, block: Block, parameters: Hyperparameters, linear: Linear, past: Past | None = None
) -> torch.Tensor:
    """One block of the llama architecture on hidden states (tokens, width); returns the same shape and dtype.

    `linear(name, x)` stands for the seven linear layers. Norm, rotation, attention and gate are computed in float32
    at least. `past`: the tokens before these; these are added to it. Source: Touvron et al., LLaMA, 2023, section 2.2.
    """
    past = Past() if past is None else past
    before = past.tokens

    def split(x: torch.Tensor, heads: int) -> torch.Tensor:  # (tokens, heads * d) -> (heads, tokens, d)
        return _wide(x).reshape(len(x), heads, -1).transpose(0, 1)

    x = rms_norm(hidden, block.attn_norm, parameters.norm_epsilon)
    query = rotate(split(linear("attn_q", x), parameters.heads), parameters.rope_base, before)
    key = rotate(split(linear("attn_k", x), parameters.kv_heads), parameters.rope_base, before)
    key, value = past.extend(key, split(linear("attn_v", x), parameters.kv_heads))
    seen = torch.ones(len(x), key.shape[1], dtype=torch.bool, device=x.device).tril(before)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
    hidden = hidden + linear("attn_output", mixed.transpose(0, 1).flatten(1).to(hidden.dtype))

    x = rms_norm(hidden, block.ffn_norm, parameters.norm_epsilon)
    gate = F.silu(_wide(linear("ffn_gate", x)))
    return hidden + linear("ffn_down", (gate * _wide(linear("ffn_up", x))).to(hidden.dtype))


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, in the dtype of `hidden`."""
    wide = _wide(hidden)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * weight).to(hidden.dtype)


def rotate(x: torch.Tensor, base: float, start: int = 0) -> torch.Tensor:
    """Rotary position embedding of x (heads, tokens, d), interleaved: token t turns the pair (2i, 2i + 1) by
    t * base^(-2i/d), as the row order of GGUF's llama files has it; the first token is number `start`.
    Source: Su et al., RoFormer, 2021, section 3.4.
    """
    tokens, d = x.shape[1:]
    frequencies = base ** (-torch.arange(0, d, 2, dtype=torch.float64, device=x.device) / d)
    angles = torch.outer(torch.arange(start, start + tokens, dtype=torch.float64, device=x.device), frequencies)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dense_linear(weights: dict[str, torch.Tensor]) -> Linear:
    """Linear layers with float weights (out_features, in_features) by name."""
    return lambda name, x: x @ weights[name].T


class Compiled(Protocol):
    """A compiled kernel, as far as the demo looks at it."""

    @property
    def trace_ms(self) -> float:
        """From the Python function to PTX text."""

    @property
    def assemble_ms(self) -> float:
        """From PTX text to cubin."""

    @property
    def registers(self) -> int: ...

    @property
    def spills(self) -> int: ...


@dataclass(frozen=True)
class Backend:
    """What computes and compiles the linear layers.

    linear: x (tokens, in), weight -> (tokens, out) in x's dtype. compile: weight, number of tokens, target -> a kernel,
    compiled anew. bound: x, weight -> float64 (tokens, out) on the CPU, the largest difference to the exact result that
    the kernel's arithmetic explains.
    """

    device: str  # "cuda" or "emulator:TARGET"
    target: str
    linear: Callable[[torch.Tensor, PackedWeight], torch.Tensor]
    compile: Callable[[PackedWeight, int, str], Compiled]
    bound: Callable[[torch.Tensor, PackedWeight], torch.Tensor]


@dataclass(frozen=True)
class LayerResult:
    """One row of the demo's table. registers and times are the run target's, spills (bytes) the most on any."""

    name: str
    shape: tuple[int, int]  # (out_features, in_features)
    trace_ms: float
    assemble_ms: float
    run_seconds: float
    error_over_bound: float  # at most 1 where the result agrees; NaN or infinity where it is not finite
    registers: int
    spills: int

    @property
    def agrees(self) -> bool:
        return self.error_over_bound <= 1


@dataclass(frozen=True)
class DemoResult:
    """deviation: largest difference of the block's output to the all-float64 block, over the largest output."""

    device: str
    tokens: int
    layers: list[LayerResult]
    deviation: float

    @property
    def agrees(self) -> bool:
        return all(layer.agrees for layer in self.layers) and math.isfinite(self.deviation)


def default_device() -> str:
    """The GPU if torch sees one, otherwise the emulated A100."""
    return "cuda" if torch.cuda.is_available() else "emulator:sm_80"


def run_target(device: str) -> str:
    """The target of "cuda" (torch's current GPU) or "emulator:TARGET". Raises DEVICE_UNAVAILABLE and TARGET_UNKNOWN."""
    if device == "cuda" and not torch.cuda.is_available():
        raise LowbitvmError("DEVICE_UNAVAILABLE", "torch sees no CUDA device", "use --device emulator:sm_80")
    if device == "cuda":
        return driver.device_target(torch.cuda.current_device())
    if device.startswith("emulator:"):
        return targets.get(device.removeprefix("emulator:")).name
    raise LowbitvmError("DEVICE_UNAVAILABLE", f"the demo cannot run on {device!r}", "use cuda or emulator:sm_80")


def lowbitvm_backend(device: str) -> Backend:
    """This package's kernels on `device`, see `run_target`."""

    def linear(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        with _environment("LOWBITVM_DEVICE", device):
            return lb.linear(x, weight)

    def compile_layer(weight: PackedWeight, tokens: int, target: str) -> Compiled:
        tile = asdict(linear_tile(tokens, weight.format, targets.get(target)))
        return lb.compile_linear(weight.format, act="f16", target=target, cache=False, **tile)

    def bound(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        return torch.from_numpy(linear_bound(x.cpu(), weight.to("cpu")))

    return Backend(device, run_target(device), linear, compile_layer, bound)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def evaluate(file: GgufFile, text: str, backend: Backend, step: Callable[[str], None]) -> DemoResult:
    """Runs block 0 on the text's embeddings, checks and compiles its layers. `step` is told what begins."""
    tokens = Tokenizer.from_gguf(file).encode(text)
    if not tokens:
        raise LowbitvmError("ARGUMENT_INVALID", "the text is empty", "pass at least one character")
    parameters = Hyperparameters.from_gguf(file)
    place = "cuda" if backend.device == "cuda" else "cpu"
    block = load_block(file, 0, place)
    hidden = embed(file, tokens).to(place, torch.float16)
    calls: dict[str, tuple[torch.Tensor, torch.Tensor, float]] = {}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        step(f"running {name} on {backend.device}")
        if x.is_cuda:  # the first call compiles and loads; only the second is timed
            backend.linear(x, block.linears[name])
            torch.cuda.synchronize()
        start = time.perf_counter()
        y = backend.linear(x, block.linears[name])
        if x.is_cuda:
            torch.cuda.synchronize()
        calls[name] = (x, y, time.perf_counter() - start)
        return y

    output = run_block(hidden, block, parameters, linear)
    dense = {name: weight.dequantize().double() for name, weight in block.linears.items()}
    exact = run_block(hidden.double(), block, parameters, dense_linear(dense))
    layers = []
    for name, (x, y, seconds) in calls.items():
        weight = block.linears[name]
        ratio = error_over_bound(y.cpu(), (x.double() @ dense[name].T).cpu(), backend.bound(x, weight))
        kernels, spills = {}, []
        for target in dict.fromkeys((*TARGETS, backend.target)):
            step(f"compiling {name} for {target}")
            kernels[target] = backend.compile(weight, len(tokens), target)
            spills.append(kernels[target].spills)
        own = kernels[backend.target]
        times = (own.trace_ms, own.assemble_ms, seconds)
        layers.append(LayerResult(name, weight.shape, *times, ratio, own.registers, max(spills)))
    deviation = (output.double() - exact).abs().max() / exact.abs().max()
    return DemoResult(backend.device, len(tokens), layers, float(deviation))


def error_over_bound(y: torch.Tensor, exact: torch.Tensor, bound: torch.Tensor) -> float:
    """The largest |y - exact| / bound over all elements; NaN if any y is NaN. An exact element counts 0."""
    assert y.shape == exact.shape == bound.shape, (y.shape, exact.shape, bound.shape)
    error = (y.double() - exact).abs()
    return float(torch.where(error == 0, 0.0, error / bound).max())


def run(text: str, device: str, console: Console | None = None) -> DemoResult:
    """The demo without its output, except for a progress bar. See `lowbitvm_backend` and `smollm2_path` for errors."""
    backend = lowbitvm_backend(device)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("reading SmolLM2-135M", total=len(LAYERS) * (1 + len(TARGETS)))
        file = GgufFile(smollm2_path())
        return evaluate(file, text, backend, lambda what: progress.update(task, advance=1, description=what))


def table(result: DemoResult) -> Table:
    """The demo's table: one row for each layer."""
    on_gpu = result.device == "cuda"
    drawn = Table(
        title=f"SmolLM2-135M, first block, {result.tokens} tokens, on {result.device}",
        caption=f"spills: bytes, the worst of {', '.join(TARGETS)}",
        box=SIMPLE_HEAD,  # fits 80 columns
        padding=(0, 0, 0, 1),
    )
    run = "GPU\nms" if on_gpu else "emulated\ns"
    headers = (
        "layer",
        "shape",
        "trace to\nPTX ms",
        "PTX to\ncubin ms",
        run,
        "max\nerror\n/ bound",
        "regis-\nters",
        "spills",
    )
    for header in headers:
        drawn.add_column(header, justify="left" if header == "layer" else "right", no_wrap=True)
    for layer in result.layers:
        drawn.add_row(
            layer.name,
            "{}x{}".format(*layer.shape),
            f"{layer.trace_ms:.1f}",
            f"{layer.assemble_ms:.1f}",
            f"{layer.run_seconds * 1e3:.3f}" if on_gpu else f"{layer.run_seconds:.2f}",
            f"{layer.error_over_bound:.3f}",
            str(layer.registers),
            str(layer.spills),
            style=None if layer.agrees else "red",
        )
    return drawn


def main(text: str, device: str, console: Console) -> int:
    """Runs the demo, prints its table and verdict, and returns the exit status: 0 if everything agrees."""
    result = run(text, device, console)
    console.print(table(result))
    wrong = [layer.name for layer in result.layers if not layer.agrees]
    if wrong:
        console.print(f"[red]Beyond the error bound: {', '.join(wrong)}")
    else:
        console.print(f"All {len(result.layers)} layers agree with float64 within the derived bound.")
    epsilon = torch.finfo(torch.float16).eps
    console.print(
        f"The block's output is within {result.deviation:.1e} of the float64 block's, relative to its largest value "
        f"(f16 epsilon is {epsilon:.1e})."
    )
    return 0 if result.agrees else 1
