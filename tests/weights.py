"""Random weights of every format there is, as arguments of `pack`."""

import math
from itertools import product
from typing import Any

import numpy as np
import torch

from lowbitvm import dtypes
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import GROUPS, OUTERS, SCALES, TABLES, ZEROS, Format

ARRAYS = ("codes", "scales", "zeros", "table", "outer", "outer_zeros", "permutation")


def legal(*parts: Any) -> Format | None:
    try:
        return Format(*parts)
    except LowbitvmError:
        return None


EVERY_FORMAT = [
    fmt
    for name, code in dtypes.CODE_TYPES.items()
    for parts in product(GROUPS, ZEROS, SCALES, OUTERS, TABLES[1:] if code.values is None else TABLES[:1])
    if (fmt := legal(name, *parts))
]
# float zero points of a few ExMy are beyond f16
QUANTIZABLE = [
    fmt
    for fmt in EVERY_FORMAT
    if fmt.zero != "float" or fmt.scale != "f16" or fmt.code.values is None or fmt.code.largest < 65504
]
ONE_OF_EACH_CODE = [Format(name, 32, table="group" if name[0] == "c" else None) for name in dtypes.CODE_TYPES]


def finite_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: dtypes.DType) -> np.ndarray:
    """Random bit patterns of `dtype`, subnormals and both zeros among them, with 1 for those that are not finite."""
    values = rng.integers(0, 1 << dtype.bits, shape, dtype=f"u{dtype.bits // 8}").view(dtype.numpy)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values[~np.isfinite(values.astype(np.float32) if dtype.is_float else values)] = 1
    return values


def in_features(fmt: Format, wish: int) -> int:
    """The largest size up to `wish` that the format's groups divide."""
    step = math.lcm(*(part for part in (fmt.group, fmt.outer) if isinstance(part, int)), 1)
    return wish // step * step


def random_codes(rng: np.random.Generator, fmt: Format, shape: tuple[int, int]) -> np.ndarray:
    values = fmt.code.values
    patterns = np.arange(1 << fmt.bits) if values is None else np.flatnonzero(np.isfinite(values))[: fmt.code.used]
    patterns = rng.choice(patterns, shape)
    return fmt.code.codes(patterns).astype(fmt.code.numpy)


def random_arguments(fmt: Format, n: int, k: int, seed: int, permuted: bool = False) -> dict[str, Any]:
    """Everything that `pack` takes."""
    rng = np.random.default_rng(seed)
    shape, outer = fmt.scales_shape(n, k), fmt.outer_shape(n, k)
    given: dict[str, Any] = dict.fromkeys(ARRAYS) | {
        "codes": random_codes(rng, fmt, (n, k)),
        "scales": finite_bits(rng, shape, fmt.scale_dtype),
        "fmt": fmt,
    }
    if fmt.zero == "int":
        given["zeros"] = rng.integers(fmt.code.low, fmt.code.high + 1, shape).astype(fmt.code.numpy)
    elif fmt.zero is not None:
        given["zeros"] = finite_bits(rng, shape, fmt.scale_dtype)
    if fmt.table is not None:
        given["table"] = finite_bits(rng, fmt.table_shape(n, k), dtypes.f16)
    if fmt.outer is not None:
        given["outer"] = rng.standard_normal(outer).astype(np.float32)
        given["outer_zeros"] = rng.standard_normal(outer).astype(np.float32) if fmt.zero == "offset" else None
    if permuted:
        given["permutation"] = rng.permutation(k).astype(np.int32)
    return given


def float_weight(fmt: Format, n: int, k: int, seed: int) -> dict[str, Any]:
    """What `quantize` takes: a weight and, where the format has codebooks, tables with values of both signs."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((n, k)) * np.exp2(rng.integers(-6, 3, (n, 1)))
    weight[rng.random(weight.shape) < 0.1] = 0
    if fmt.zero is None and fmt.code.kind == "uint":
        weight = np.abs(weight)
    given: dict[str, Any] = {"weight": weight, "fmt": fmt}
    if fmt.table is not None:
        table = rng.standard_normal(fmt.table_shape(n, k))
        table[..., 0], table[..., -1] = -abs(table[..., 0]) - 0.1, abs(table[..., -1]) + 0.1
        given["table"] = table.astype(np.float16)
    return given


def tensor(array: np.ndarray) -> torch.Tensor:
    """The same bytes as a torch tensor."""
    native = dtypes.of(array).torch()
    if not array.size:
        return torch.empty(array.shape, dtype=native)
    return torch.frombuffer(bytearray(array.tobytes()), dtype=native).reshape(array.shape)


def tensors(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}


def same_bits(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    a, b = (x.reshape(-1).view(torch.uint8).numpy() if isinstance(x, torch.Tensor) and x.numel() else x for x in (a, b))
    return bytes(a.tobytes() if isinstance(a, np.ndarray) else b"") == (
        b.tobytes() if isinstance(b, np.ndarray) else b""
    )
