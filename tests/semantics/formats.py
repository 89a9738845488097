"""Binary floating point by exact fractions: decoding, and rounding in each direction, of every format that PTX has."""

from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

NAN = "nan"


@dataclass(frozen=True)
class Number:
    """A value: `magnitude` is a fraction, "inf" or "nan"; the sign counts for zeros too."""

    negative: bool
    magnitude: Fraction | str

    @property
    def finite(self) -> bool:
        return isinstance(self.magnitude, Fraction)

    @property
    def nan(self) -> bool:
        return self.magnitude == NAN

    @property
    def infinite(self) -> bool:
        return self.magnitude == "inf"

    @property
    def zero(self) -> bool:
        return self.magnitude == 0

    @property
    def value(self) -> Fraction:
        assert isinstance(self.magnitude, Fraction)
        return -self.magnitude if self.negative else self.magnitude


NOT_A_NUMBER = Number(False, NAN)


@dataclass(frozen=True)
class Format:
    """`exponent` and `mantissa` bits. `special`: "ieee" (infinities and NaNs), "nan" (all ones only) or "none"."""

    exponent: int
    mantissa: int
    special: str = "ieee"

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    @property
    def lowest(self) -> int:
        """The exponent of subnormals."""
        return 1 - self.bias

    @property
    def largest(self) -> int:
        """The code of the largest finite value."""
        top = (1 << (self.exponent + self.mantissa)) - 1
        return {"ieee": top - (1 << self.mantissa), "nan": top - 1, "none": top}[self.special]

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent) - 1) << self.mantissa

    @property
    def canonical_nan(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def decode(self, code: int) -> Number:
        negative = bool(code >> (self.bits - 1))
        code &= (1 << (self.bits - 1)) - 1
        if self.special == "ieee" and code >= self.infinity:
            return Number(negative, "inf" if code == self.infinity else NAN)
        if self.special == "nan" and code == self.canonical_nan:
            return Number(negative, NAN)
        exponent, fraction = code >> self.mantissa, code & ((1 << self.mantissa) - 1)
        if exponent:
            fraction += 1 << self.mantissa
        return Number(negative, fraction * power(max(exponent, 1) - self.bias - self.mantissa))

    def is_nan(self, code: int) -> bool:
        return self.decode(code).nan

    def flush(self, code: int) -> int:
        """Subnormals as zeros of their sign."""
        sign = code & (1 << (self.bits - 1))
        return sign if not (code >> self.mantissa) & ((1 << self.exponent) - 1) else code

    def encode(self, number: Number, mode: str = "rn", saturate: bool = False) -> int:
        """The code nearest to a number in a direction; `saturate` keeps what is too large finite (.satfinite)."""
        sign = int(number.negative) << (self.bits - 1)
        if number.nan:
            return self.canonical_nan
        if number.infinite:
            return sign | (self.largest if saturate or self.special != "ieee" else self.infinity)
        magnitude = number.magnitude
        assert isinstance(magnitude, Fraction)
        if magnitude == 0:
            return sign
        exponent = max(floor_log2(magnitude), self.lowest)
        units = magnitude / power(exponent - self.mantissa)
        whole = round_fraction(units, mode, number.negative)
        # whole counts units of the exponent's binade: below 2^mantissa a subnormal, at 2^(mantissa+1) the next binade
        code = whole + ((exponent - self.lowest) << self.mantissa)
        if code > self.largest:
            away = mode in ("rn", "rna") or mode == ("rm" if number.negative else "rp")
            code = self.infinity if away and not saturate and self.special == "ieee" else self.largest
        return sign | code


def power(exponent: int) -> Fraction:
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


def floor_log2(magnitude: Fraction) -> int:
    guess = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return guess if power(guess) <= magnitude else guess - 1


def round_fraction(magnitude: Fraction, mode: str, negative: bool) -> int:
    """A positive fraction to an integer: rn ties to even, rna ties away, rz, rm and rp by the sign."""
    whole, rest = divmod(magnitude.numerator, magnitude.denominator)
    twice = 2 * rest
    if mode == "rn":
        return whole + (twice > magnitude.denominator or (twice == magnitude.denominator and whole % 2 == 1))
    if mode == "rna":
        return whole + (twice >= magnitude.denominator)
    up = mode == ("rm" if negative else "rp")
    return whole + (up and rest > 0)


def to_integer(number: Number, mode: str) -> int:
    assert isinstance(number.magnitude, Fraction)
    whole = round_fraction(number.magnitude, mode, number.negative)
    return -whole if number.negative else whole


def exactly(value: Fraction, negative_zero: bool = False) -> Number:
    return Number(value < 0 or (value == 0 and negative_zero), abs(value))


def add(x: Number, y: Number, mode: str = "rn") -> Number:
    if x.nan or y.nan or (x.infinite and y.infinite and x.negative != y.negative):
        return NOT_A_NUMBER
    if x.infinite or y.infinite:
        return x if x.infinite else y
    total = x.value + y.value
    if total == 0:
        return Number(x.negative if x.zero and y.zero and x.negative == y.negative else mode == "rm", Fraction(0))
    return exactly(total)


def negate(x: Number) -> Number:
    return Number(not x.negative, x.magnitude)


def multiply(x: Number, y: Number) -> Number:
    negative = x.negative != y.negative
    if x.nan or y.nan or (x.infinite and y.zero) or (x.zero and y.infinite):
        return NOT_A_NUMBER
    if x.infinite or y.infinite:
        return Number(negative, "inf")
    return Number(negative, abs(x.value * y.value))


def divide(x: Number, y: Number) -> Number:
    negative = x.negative != y.negative
    if x.nan or y.nan or (x.infinite and y.infinite) or (x.zero and y.zero):
        return NOT_A_NUMBER
    if x.infinite or y.zero:
        return Number(negative, "inf")
    return Number(negative, Fraction(0) if y.infinite else abs(x.value / y.value))


def square_root(x: Number, bits: int = 240) -> Number:
    """Cut off after `bits` bits, with a one below them where it is not exact: that rounds like the root itself."""
    if x.nan or (x.negative and not x.zero):
        return NOT_A_NUMBER
    if x.infinite or x.zero:
        return x
    shift = 2 * bits + 2 * abs(floor_log2(x.value))
    scaled = x.value * (1 << shift)
    root = isqrt(scaled.numerator // scaled.denominator)
    exact = root * root == scaled
    return Number(False, Fraction(2 * root + (not exact), 1 << (shift // 2 + 1)))


F16, BF16, TF32, F32, F64 = Format(5, 10), Format(8, 7), Format(8, 10), Format(8, 23), Format(11, 52)
E4M3, E5M2 = Format(4, 3, "nan"), Format(5, 2)
E3M2, E2M3, E2M1 = Format(3, 2, "none"), Format(2, 3, "none"), Format(2, 1, "none")
FORMATS = {
    "f16": F16,
    "bf16": BF16,
    "tf32": TF32,
    "f32": F32,
    "f64": F64,
    "e4m3": E4M3,
    "e5m2": E5M2,
    "e3m2": E3M2,
    "e2m3": E2M3,
    "e2m1": E2M1,
}
