"""The list of what the self-test runs on a target: data, made into problems one at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from lowbitvm import targets
from lowbitvm.codegen.convert import held_by
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.formats import NAMED, Format
from lowbitvm.selftest import mixed
from lowbitvm.selftest.kernels import KERNELS
from lowbitvm.selftest.problems import Layer, Problem, Product, quantised
from lowbitvm.selftest.tensors import HOW, Tensors

ROWS = {1: "decode", 8: "decode", 16: "decode", 64: "batch", 256: "prefill"}  # rows of activations, and what has them
QUICK_ROWS = (1, 64)
N, K = 200, 512  # no multiple of a tile's features, and a multiple of all groups
SPLIT_N, SPLIT_K = 24, 4096  # so that blocks share out k
QUICK_WEIGHTS = ("u4", "i3", "u1", "i8", "f6e3m2", "nf4")
# What named and foreign formats have beside a code type, a group of 64 and scales in f16.
SPECIAL = (
    "u4,group=128,zero=int",
    "u3,group=64,zero=float",
    "c4,table=block",
    "c3,group=32,table=group",
    "u2,group=16,zero=offset,scale=i8,outer=256",
    "i6,group=16,scale=i8,outer=256",
    "u4,group=tensor,zero=int,scale=e4m3,outer=tensor",
    "ternary,group=256,scale=e8m0",
    "bp2,group=channel,zero=float,scale=f32",
)
INTEGERS = (
    "u1",
    "u2",
    "u3",
    "u4",
    "u5",
    "u6",
    "u7",
    "u8",
    "i2",
    "i3",
    "i4",
    "i5",
    "i6",
    "i7",
    "i8",
    "bp1",
    "bp4",
    "ternary",
)
ACTS = ("u1", "i2", "u3", "i4", "bp5", "u6", "i7", "u8")
EPILOGUES: dict[str, dict[str, object]] = {
    "bias": {"bias": True},
    "relu, residual": {"activation": "relu", "residual": True},
    "silu of a gate, bias": {"activation": "silu", "gate": True, "bias": True},
    "gelu, f32 out": {"activation": "gelu", "out": "f32"},
    "f32 out": {"out": "f32"},
    "batch invariant": {"batch_invariant": True},
    "permuted columns": {"permuted": True},
}
QUANTISERS: dict[str, dict[str, object]] = {
    "i8,group=channel": {},
    "u8,group=channel,zero=int": {},
    "i4,group=channel,digits=s4": {},
    "i8,group=channel,digits=b1": {},
    "i8,group=128": {},
    "i8,group=tensor": {"scale": 0.04},
    "i6,group=channel": {"norm": None, "eps": 1e-5},
    "i8,group=channel,zero=int": {"smoothing": None, "rotation": 512},
}


@dataclass(frozen=True)
class Case:
    """quick: whether it is one of the few that `--quick` runs."""

    family: str
    name: str
    make: Callable[[], Problem]
    quick: bool = False


def cases(target: str, quick: bool = False, only: str = "") -> list[Case]:
    """Those that a target has, in order; only: of which a part of "family: name" is this text."""
    found = [case for family in FAMILIES.values() for case in family(target)]
    return [case for case in found if (case.quick or not quick) and only in f"{case.family}: {case.name}"]


def _weights(target: str) -> Iterator[Case]:
    """Every format that weights have, each with every number of rows."""
    texts = {name: f"{name},group=64{',table=tensor' if name[0] == 'c' else ''}" for name in CODE_TYPES}
    texts |= {name: name for name in (*NAMED, *SPECIAL)}
    for number, (name, text) in enumerate(texts.items()):
        code = Format.parse(text).code
        acts = [
            act
            for act in targets.get(target).mma_dtypes
            if act in ("f16", "bf16")
            if code.kind != "float" or held_by(code, act)
        ]
        for place, (m, what) in enumerate(ROWS.items() if acts else ()):
            act = acts[(number + place) % len(acts)]
            quick = name in QUICK_WEIGHTS and m in QUICK_ROWS
            yield Case("weights", f"{name} x {act}, m {m} ({what})", Layer(text, m, N, K, act).problem, quick)


def _integers(target: str) -> Iterator[Case]:
    """Every width of weights with activations of 8 bits, every width of activations with weights of 4."""
    pairs = [(weights, "i8") for weights in INTEGERS] + [("i4", act) for act in ACTS]
    for digits in targets.get(target).digits:
        for weights, act in pairs:
            for m, what in ROWS.items():
                product = Product(weights, act, digits, m, N, K, scaled=m == 64)
                quick = (weights, act) in (("u2", "i8"), ("i4", "i4")) and m in QUICK_ROWS
                yield Case("integers", f"{weights} x {act} in {digits}, m {m} ({what})", product.problem, quick)


def _splits(target: str) -> Iterator[Case]:
    """Blocks that share out k, in floats and in integers."""
    for m in (1, 16, 33):
        for text in ("u4,zero=int", "i3", "u8,zero=offset"):
            layer = Layer(text, m, SPLIT_N, SPLIT_K)
            yield Case("splits of k", f"{text} x f16, m {m}", layer.problem, m == 1 and text == "i3")
        for digits in targets.get(target).digits:
            product = Product("i4", "i8", digits, m, SPLIT_N, SPLIT_K)
            yield Case("splits of k", f"i4 x i8 in {digits}, m {m}", product.problem, m == 1)


def _epilogues(target: str) -> Iterator[Case]:
    for name, parts in EPILOGUES.items():
        for m in (3, 70):
            layer = Layer("u4,group=64,zero=int", m, N, K, **parts)  # type: ignore[arg-type]
            yield Case("epilogues", f"{name}, m {m}", layer.problem, m == 3 and "silu" in name)


def _quantisers(target: str) -> Iterator[Case]:
    native = targets.get(target).digits
    for text, how in QUANTISERS.items():
        if (Format.parse(text).digits or "s8") in native:
            for m, act in ((5, "f16"), (64, "f32")):
                name = ", ".join([text, *how])
                yield Case(
                    "quantiser",
                    f"{name} of {act}, m {m}",
                    partial(quantised, text, m, 1024, act, **how),
                    not how and m == 5,
                )


def _mixtures(target: str) -> Iterator[Case]:
    for digits in targets.get(target).digits:
        for m in (1, 40):
            for name, problem in mixed.problems(digits, m).items():
                yield Case("mixtures", f"{name} in {digits}, m {m}", problem, m == 1 and digits == "s8")


def _kernels(target: str) -> Iterator[Case]:
    for name, make in KERNELS.items():
        yield Case("kernels of the DSL", name, make, True)


def _tensors(target: str) -> Iterator[Case]:
    for how in HOW:
        for name, (n, k) in {"": (N, K), ", blocks share out k": (SPLIT_N, SPLIT_K)}.items():
            layer = Layer("u4,group=64,zero=int", 3, n, k, bias=True)
            yield Case("tensors of torch", f"lb.linear {how}{name}", Tensors(layer, how).problem, name == "")


FAMILIES: dict[str, Callable[[str], Iterator[Case]]] = {
    "weights": _weights,
    "integers": _integers,
    "splits of k": _splits,
    "epilogues": _epilogues,
    "quantiser": _quantisers,
    "mixtures": _mixtures,
    "kernels of the DSL": _kernels,
    "tensors of torch": _tensors,
}
