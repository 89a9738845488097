"""Scales that are multiplied with the decoded codes.

Where the product of every code with every scale is a number of the activations' dtype, nothing is rounded so, and one
sum on the tensor cores goes over several short groups. Offsets are the products of the activations and one number per
group then, like those of codes.

Powers of two (e8m0) have a wider range than f16. They are taken relative to the largest of an output feature's scales
over what is summed together, which then scales the sum. Nothing is rounded so as long as they are not too far apart;
groups whose weights are below some 2**-20 of the largest weights beside them lose their last bits.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.codegen.convert import FRAGMENT_REGISTERS, Decoder, decoder, multiplications
from lowbitvm.formats import Format

Numbers = np.ndarray[Any, np.dtype[np.float64]]

LONGEST_FUSED = 64  # of k: the sum of a longer group is scaled at once
# of the power of two that f16 scales are multiplied with: 448 * 2**7 is finite, and so is 1152 * 2**5, an intermediate
F16_EXPONENTS = {"e4m3": range(7, -8, -1), "i8": range(5, -8, -1)}
BF16_LARGEST_POWER = 118  # 448 * 2**118 is finite, and so are its products with small codes
LARGEST_POWER = {"f16": 15, "bf16": 127}  # of two
SMALLEST_POWER = {"f16": -14, "bf16": -126}  # that is a normal number
BYTE = 256
BF16_SUM_POWER = 4  # of the largest fragment, otherwise
LOST = 2.0**-20  # at most, by relative scales, of the largest weight that a sum may have
RELATIVE = 3  # instructions more that powers of two take then than in f32, per group and row tile
CONVERSION = 1  # instructions more that a number in f32 takes for a group and row tile


@dataclass(frozen=True)
class Fused:
    """How decoded codes are scaled: fragment' = S * (fragment + shift) = factor * value * scale.

    S = scale * 2**exponent is what lies in shared memory. factors, shifts: by row class. plain: the decoder leaves out
    its own multiplier. powers: 0, or the scale is a power of two that is divided by the largest of those that are
    summed together, and S the product of so many normal numbers, or zeros.
    """

    act: str
    exponent: int
    factors: tuple[float, float]
    shifts: tuple[float, float]
    plain: bool
    powers: int = 0

    @property
    def shifted(self) -> bool:
        return any(self.shifts)

    @property
    def steps(self) -> list[tuple[int, int]]:
        """(power, most) of each factor of S: 2**(power - taken), taken being at most so many of the powers below.

        All but the last stay normal numbers; one power below those the last is 0.
        """
        smallest = SMALLEST_POWER[self.act]
        powers = [self.exponent, *[0] * (self.powers - 1)]
        return [(power, power - smallest + (i == self.powers - 1)) for i, power in enumerate(powers)]


@functools.cache
def fused_scales(code: dtypes.CodeType, scale: str, act: str) -> Fused | None:
    """How codes are scaled while they are decoded, None where that is not exact for every code and scale."""
    if code.kind == "table" or (scale, act) == ("i8", "bf16") or scale not in (*F16_EXPONENTS, "e8m0"):
        return None
    used = decoder(code, act)
    assert isinstance(used, Decoder)
    own = np.array(used.plain.factors)
    step, bias = (code.step, code.bias) if code.is_linear else (1, 0)
    shifts = -own * (np.array(used.offsets) + bias / step)
    values = code.values
    assert values is not None
    exact = np.multiply.outer(own / step, values[: code.used][np.isfinite(values[: code.used])])
    if scale == "e8m0":
        return _relative(act, own / step, shifts, exact, used.multiplier is not None)
    scales = _magnitudes(scale)
    top = BF16_SUM_POWER - math.ceil(math.log2(np.abs(exact).max() * scales.max()))
    for exponent in F16_EXPONENTS[scale] if act == "f16" else [min(BF16_LARGEST_POWER, top)]:
        scaled = scales * 2.0**exponent
        terms = (scaled, np.multiply.outer(shifts, scaled), np.multiply.outer(exact, scaled))
        if all(_is_exact(numbers, act) for numbers in terms):
            low, high = own * 2.0**exponent / step
            return Fused(act, exponent, (low, high), (float(shifts[0]), float(shifts[1])), used.multiplier is not None)
    return None


def _relative(act: str, own: Numbers, shifts: Numbers, exact: Numbers, plain: bool) -> Fused | None:
    """How powers of two scale fragments whose numbers are `exact`; None where too much would be lost."""
    largest = max(float(np.abs(exact).max()), float(np.abs(shifts).max()))
    room = {"f16": LARGEST_POWER["f16"], "bf16": BF16_SUM_POWER}[act] - math.ceil(math.log2(largest))
    exponent = min(LARGEST_POWER[act], room)
    low, high = own * 2.0**exponent
    below = np.arange(BYTE)[:, None]
    for powers in (1, 2):
        fused = Fused(act, exponent, (low, high), (float(shifts[0]), float(shifts[1])), plain, powers)
        made = [relative_fragments(fused, shifts[row], exact[row], below) for row in range(2)]
        errors = [np.abs(made[row] - exact[row] * 2.0 ** (exponent - below)) for row in range(2)]
        if np.max(errors) <= LOST * np.abs(exact).max() * 2.0**exponent:
            return fused
    return None


def relative_fragments(fused: Fused, shift: Any, exact: Numbers, below: Any) -> Numbers:
    """What relative scales make of decoded numbers, which are `exact` - shift.

    below: how many powers of two the scale is below the largest.
    """
    native, smallest = dtypes.get(fused.act).numpy, SMALLEST_POWER[fused.act]
    scale: Numbers = np.ones(np.shape(below))
    for power, most in fused.steps:
        taken = np.minimum(below, most)
        factor = np.where(power - taken < smallest, 0.0, np.exp2(power - taken))
        scale, below = (scale * factor).astype(native).astype(np.float64), below - taken
    added: Numbers = (scale * shift).astype(native).astype(np.float64)
    made: Numbers = (scale * (exact - shift) + added).astype(native).astype(np.float64)
    return made


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

    Per group and row tile: four products for 16 of k, less those with a power of two that they take the place of,
    against four of each n8 tile of activations; codes with a bias take one more, against four and the sums of the
    activations, and so do offsets, but a matrix product each 16 of k.
    """
    if fmt.zero not in (None, "offset") or isinstance(fmt.group, str) or fmt.group > LONGEST_FUSED:
        return None
    fused = fused_scales(fmt.code, fmt.scale, act)
    if fused is None:
        return None
    steps, offset = fmt.group // 16, fmt.zero == "offset"
    saved = multiplications(decoder(fmt.code, act), columns, row_tiles)
    decoding = fused.shifted + (FRAGMENT_REGISTERS - saved) * steps + offset * (2 + columns * steps)
    sums = 4 * fused.shifted + 4 * offset + (fused.shifted or offset) * steps / row_tiles
    converting = -RELATIVE if fused.powers else CONVERSION * (1 + offset)
    return fused if decoding <= columns * (4 + sums) + converting else None


def shared_fused(fmt: Format, act: str) -> Fused | None:
    """`fused_scales` where weights are decoded once per block: there they always save more than they take.

    Offsets are multiplied with row sums of the activations then, which are made once per block, too.
    """
    if fmt.zero not in (None, "offset") or isinstance(fmt.group, str) or fmt.group > LONGEST_FUSED:
        return None
    return fused_scales(fmt.code, fmt.scale, act)
