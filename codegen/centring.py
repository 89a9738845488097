"""Integer zero points subtracted in the decode, exactly: then no row sums of the activations are needed.

A decoded register holds factor * (q + offset) of the stored pattern q. One multiply-add with f16 or bf16 pairs makes it

    unit * (step * q - bias - z) = multiplier * factor * (q + offset) + addend,   addend = constant - unit * z

where all of these are numbers that the pair's type has: `unit` is a power of two, the same for all rows, and what
`unit` is multiplied with an integer of few bits.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from lowbitvm.codegen.convert import Decoder
from lowbitvm.codegen.ptx import Builder, float_immediate, vector
from lowbitvm.formats import Format

LARGEST_SHIFT = {"f16": 15, "bf16": 127}  # the largest power of two of a type
HALVES = (0x1010, 0x3232)  # prmt selectors: the low half of a register twice, the high half twice


@dataclass(frozen=True)
class Centring:
    """decoder: the decode that goes before. Multipliers and constants of row classes g and g + 8."""

    decoder: Decoder
    act: str
    unit: float
    multipliers: tuple[float, float]
    constants: tuple[float, float]
    with_zeros: bool  # integer zero points: else the bias alone is subtracted

    def registers(self, b: Builder) -> list[str]:
        """Emits what stays in registers: the multipliers of both row classes, and the addends where all are known."""
        numbers = [*self.multipliers, *([] if self.with_zeros else self.constants)]
        return [b.op("mov.b32", "r", _pattern(number, self.act) * 0x10001) for number in numbers]

    def addends(self, b: Builder, zeros: str) -> list[str]:
        """Emits the addends of both row classes from a register with the pair of their zero points, f16 integers."""
        if self.act == "f16":
            constants = [sum(_pattern(n, "f16") << 16 * i for i, n in enumerate(self.constants))]
            slopes = b.op("mov.b32", "r", _pattern(-self.unit, "f16") * 0x10001)
            both = b.op("fma.rn.f16x2", "r", zeros, slopes, b.op("mov.b32", "r", constants[0]))
        else:
            halves = [b.register("h"), b.register("h")]
            b.do("mov.b32", vector(halves), zeros)
            wide = [b.op("cvt.f32.f16", "f", half) for half in halves]
            slope, (low, high) = float_immediate(-self.unit), map(float_immediate, self.constants)
            terms = [b.op("fma.rn.f32", "f", wide[0], slope, low), b.op("fma.rn.f32", "f", wide[1], slope, high)]
            both = b.op("cvt.rn.bf16x2.f32", "r", terms[1], terms[0])
        return [b.op("prmt.b32", "r", both, both, selector) for selector in HALVES]

    def emit(self, b: Builder, fragment: list[str], multipliers: list[str], addends: list[str]) -> list[str]:
        """Emits the subtraction in the 4 registers of an A fragment: 0 and 2 are of row g, 1 and 3 of row g + 8."""
        name = f"fma.rn.{self.act}x2"
        return [b.op(name, "r", register, multipliers[i % 2], addends[i % 2]) for i, register in enumerate(fragment)]


def centring(fmt: Format, decoder: object) -> Centring | None:
    """The subtraction of a format's bias and zero points; None where there is none or the fragments cannot hold it."""
    code = fmt.code
    if not isinstance(decoder, Decoder) or not code.is_linear or fmt.zero not in (None, "int"):
        return None
    decoder = decoder.plain  # one multiplication does for both
    act, factors = decoder.act, decoder.factors
    unit = min(1.0, *(2.0 ** LARGEST_SHIFT[act] * factor / code.step for factor in factors))
    multipliers = (unit * code.step / factors[0], unit * code.step / factors[1])
    low, high = (-unit * (code.bias + code.step * offset) for offset in decoder.offsets)
    if fmt.zero is None and low == high == 0:
        return None
    zeros = np.arange(code.low, code.high + 1) if fmt.zero == "int" else np.zeros(1)
    patterns = np.arange(code.used or 1 << code.bits)
    results = unit * (code.step * patterns[:, None] - code.bias - zeros)
    numbers = [np.array(multipliers), low - unit * zeros, high - unit * zeros, results, np.array([low, high, unit])]
    if not all(_holds(act, values) for values in numbers):
        return None
    return Centring(decoder, act, unit, multipliers, (low, high), fmt.zero == "int")


def _holds(act: str, values: np.ndarray[Any, Any]) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(np.asarray(values, np.float64).astype(_native(act)).astype(np.float64), values))


def _native(act: str) -> np.dtype[Any]:
    return np.dtype(np.float16) if act == "f16" else np.dtype(ml_dtypes.bfloat16)


def _pattern(number: float, act: str) -> int:
    return int(np.array(number, _native(act)).view(np.uint16))
