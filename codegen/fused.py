"""Scales that are multiplied with the decoded codes.

Where the product of every code with every scale is a number of the activations' dtype, nothing is rounded so, and one
sum on the tensor cores goes over several short groups. Offsets are the products of the activations and one number per
group then, like those of codes.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.codegen.convert import Decoder, decoder
from lowbitvm.formats import Format

LONGEST_FUSED = 64  # of k: the sum of a longer group is scaled at once
# of the power of two that f16 scales are multiplied with: 448 * 2**7 is finite, and so is 1152 * 2**5, an intermediate
F16_EXPONENTS = {"e4m3": range(7, -8, -1), "i8": range(5, -8, -1)}
BF16_LARGEST_POWER = 118  # 448 * 2**118 is finite, and so are its products with small codes
BF16_SUM_POWER = 4  # of the largest fragment, otherwise
CONVERSION = 1  # instructions more that a number in f32 takes for a group and row tile


@dataclass(frozen=True)
class Fused:
    """How decoded codes are scaled: fragment' = S * (fragment + shift) = factor * value * scale.

    S = scale * 2**exponent is what lies in shared memory. factors, shifts: by row class. plain: the decoder leaves out
    its own multiplier.
    """

    act: str
    exponent: int
    factors: tuple[float, float]
    shifts: tuple[float, float]
    plain: bool

    @property
    def shifted(self) -> bool:
        return any(self.shifts)


@functools.cache
def fused_scales(code: dtypes.CodeType, scale: str, act: str) -> Fused | None:
    """How codes are scaled while they are decoded, None where that is not exact for every code and scale."""
    if code.kind == "table" or scale not in F16_EXPONENTS or (scale, act) == ("i8", "bf16"):
        return None
    used = decoder(code, act)
    assert isinstance(used, Decoder)
    up = 1.0 if used.multiplier is None else float(np.array(used.multiplier, np.uint16).view(dtypes.bf16.numpy))
    own = np.array(used.factors) / up
    step, bias = (code.step, code.bias) if code.is_linear else (1, 0)
    shifts = -own * (np.array(used.offsets) + bias / step)
    values = code.values
    assert values is not None
    exact = np.multiply.outer(own / step, values[: code.used][np.isfinite(values[: code.used])])
    scales = _magnitudes(scale)
    top = BF16_SUM_POWER - math.ceil(math.log2(np.abs(exact).max() * scales.max()))
    for exponent in F16_EXPONENTS[scale] if act == "f16" else [min(BF16_LARGEST_POWER, top)]:
        scaled = scales * 2.0**exponent
        terms = (scaled, np.multiply.outer(shifts, scaled), np.multiply.outer(exact, scaled))
        if all(_is_exact(numbers, act) for numbers in terms):
            low, high = own * 2.0**exponent / step
            return Fused(act, exponent, (low, high), (float(shifts[0]), float(shifts[1])), used.multiplier is not None)
    return None


def _magnitudes(scale: str) -> "np.ndarray[Any, Any]":
    """Of all scales of a dtype."""
    if scale == "i8":
        return np.arange(129.0)
    return np.arange(127, dtype=np.uint8).view(dtypes.SCALE_TYPES[scale].numpy).astype(np.float64)


def _is_exact(numbers: "np.ndarray[Any, Any]", act: str) -> bool:
    with np.errstate(over="ignore"):
        return bool((numbers.astype(dtypes.get(act).numpy).astype(np.float64) == numbers).all())


def chosen_fused(fmt: Format, act: str, columns: int, row_tiles: int) -> Fused | None:
    """`fused_scales` where a format has them and where they take no more instructions than scaling the sums.

    Per group and row tile: four products for 16 of k, against four of each n8 tile of activations; codes with a bias
    take one more, against four and the sums of the activations, and so do offsets, but a matrix product each 16 of k.
    """
    if fmt.zero not in (None, "offset") or isinstance(fmt.group, str) or fmt.group > LONGEST_FUSED:
        return None
    fused = fused_scales(fmt.code, fmt.scale, act)
    if fused is None:
        return None
    steps, offset = fmt.group // 16, fmt.zero == "offset"
    decoding = fused.shifted + 4 * steps * (not fused.plain) + offset * (2 + columns * steps)
    sums = 4 * fused.shifted + 4 * offset + (fused.shifted or offset) * steps / row_tiles
    return fused if decoding <= columns * (4 + sums) + CONVERSION * (1 + offset) else None


def shared_fused(fmt: Format, act: str) -> Fused | None:
    """`fused_scales` where weights are decoded once per block: there they always save more than they take."""
    if fmt.zero is not None or isinstance(fmt.group, str) or fmt.group > LONGEST_FUSED:
        return None
    return fused_scales(fmt.code, fmt.scale, act)
