"""The quantiser of activations: rows of floats become codes in digits, with scales, zero points and sums."""

from collections.abc import Callable, Iterator

from lowbitvm import dsl
from lowbitvm.activations import SMALLEST
from lowbitvm.dsl import Packed, Tensor, Value, kernel, packed
from lowbitvm.dtypes import CodeType, f32, i32
from lowbitvm.formats import Format

INFINITY = 0x7F800000  # the bits of f32's


@kernel(
    x=("m k", None), a=packed("m k"), sums=("m s", i32), scales=("m g", f32), zeros=("m g", i32), norm=("k", None),
    smoothing=("k", f32), scale=("one", f32), zero=("one", i32),
)  # fmt: skip
def quantise(
    x: Tensor,
    a: Packed,
    sums: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    norm: Tensor | None = None,
    smoothing: Tensor | None = None,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    *,
    bm: int,
    bk: int,
    whole: bool,
    part: int | None = None,
    eps: float = 0.0,
    rotation: int | None = None,
) -> None:
    """Codes of x (m, k) in the digits of `a`, and per row and group of its format scales and zeros.

    sums are of code - offset, for each `part` in_features of a row, or for all of it. The rule is that of
    `lowbitvm.activations`. A block makes bm rows, `bk` in_features at a time; whole: all at once, and x is read once.
    With fewer, every pass over a row reads it again, from the caches.
    """
    i, fmt, code = dsl.program_id(0) * bm, a.format, a.format.code
    group = fmt.group if isinstance(fmt.group, int) else bk
    shape = (bm, bk // group, group)
    kept: dict[str, Value] = {}

    def chunks() -> Iterator[Value | int]:
        return iter([0]) if whole else dsl.record_range(0, x.shape[1], bk)

    def once(name: str, make: Callable[[], Value]) -> Value:
        """What is made of a chunk; of a whole row, which stays in registers, only the first time."""
        if whole and name not in kept:
            kept[name] = make()
        return kept[name] if whole else make()

    def loaded(k: Value | int) -> Value:
        return once("loaded", lambda: dsl.load(x, (i, k), (bm, bk)).to(f32))

    def prepared(k: Value | int) -> Value:
        def make() -> Value:
            return _prepared(loaded(k), k, factor, norm, smoothing, rotation).reshape(*shape)

        return once("prepared", make)

    def chosen(ends: tuple[Value, Value]) -> tuple[Value, Value, Value | None]:
        """(scale to store, 1 / scale, zero point) of every group."""
        infinite = _clamped(dsl.maximum(*ends) + (1 - INFINITY), 0, 1) * INFINITY  # its bits, or 0
        hi, below = (dsl.bitcast(dsl.maximum(end, infinite), f32) for end in ends)
        z = None if zero is None else dsl.zeros(ends[0].shape, i32) + dsl.load(zero, (0,), (1,))
        s = _scales(hi, below, fmt) if scale is None else dsl.zeros(ends[0].shape) + dsl.load(scale, (0,), (1,))
        r = 1.0 / dsl.maximum(s, SMALLEST)
        if fmt.zero is not None and z is None:
            z = _clamped(dsl.rint(below * r) + code.low, code.low, code.high)
        return dsl.maximum(s, dsl.bitcast(infinite, f32)), r, z

    def put(k: Value | int, r: Value, z: Value | None) -> Value:
        """Stores a chunk's codes, and its sums where they are of parts; returns the sums of its groups."""
        codes = _codes(prepared(k), _along(r), z if z is None else _along(z), code)
        dsl.store(a, (i, k), codes.reshape(bm, bk))
        digits = codes - a.offset
        if part is not None:
            dsl.store(sums, (i, k // part), dsl.reduce_sum(digits.reshape(bm, bk // part, part), 2))
        return dsl.reduce_sum(digits, 2)

    def finish(column: Value | int, s: Value, z: Value | None) -> None:
        dsl.store(scales, (i, column), s)
        if zeros is not None and z is not None:
            dsl.store(zeros, (i, column), z)

    factor = None
    if norm is not None:
        squares = dsl.zeros((bm,))
        for k in chunks():
            squares += dsl.reduce_sum(loaded(k) * loaded(k), 1)
        factor = dsl.expand_dims(1.0 / dsl.sqrt(squares / x.shape[1].to(f32) + eps), 1)
    if isinstance(fmt.group, int):
        for k in chunks():
            s, r, z = chosen(_ends(prepared(k)))
            put(k, r, z)
            finish(k // group, s, z)
        return
    reach = (dsl.zeros((bm, 1), i32), dsl.zeros((bm, 1), i32))
    for k in chunks():
        for best, found in zip(reach, _ends(prepared(k)), strict=True):
            best.set(dsl.maximum(best, found))
    s, r, z = chosen(reach)
    total = dsl.zeros((bm, 1), i32)
    for k in chunks():
        total += put(k, r, z)
    finish(0, s, z)
    if part is None:
        # in_features beyond x are zeros, and `a` has no digits of them; but total has counted their codes
        blank = dsl.zeros((bm, 1)) if factor is None else factor * 0.0
        beyond = (x.shape[1] + (bk - 1)) // bk * bk - x.shape[1]
        dsl.store(sums, (i, 0), total - (_codes(blank, r, z, code) - a.offset) * beyond)


def _prepared(
    values: Value,
    k: Value | int,
    factor: Value | None,
    norm: Tensor | None,
    smoothing: Tensor | None,
    rotation: int | None,
) -> Value:
    """Some in_features (bm, bk) from k on, normalised, smoothed and rotated."""
    bk = values.shape[1]
    if factor is not None and norm is not None:
        values = values * factor * dsl.load(norm, (k,), (bk,)).to(f32)
    if smoothing is not None:
        values = values * dsl.load(smoothing, (k,), (bk,))
    if rotation is not None:
        blocks = values.reshape(values.shape[0], bk // rotation, rotation)
        values = dsl.hadamard(blocks) * rotation**-0.5
    return values


def _ends(values: Value) -> tuple[Value, Value]:
    """The bits of max(v, 0) and of max(-v, 0) for every group, as i32; one of them infinity's where there is a NaN.

    Bits of floats from 0 on order as integers, NaN last, and negative ones lie below.
    """
    bits = dsl.bitcast(values, i32)
    return _end(bits), _end(bits + -(1 << 31))  # the sign flipped


def _end(bits: Value) -> Value:
    return _clamped(dsl.reduce_max(bits, 2), 0, INFINITY)


def _scales(hi: Value, below: Value, fmt: Format) -> Value:
    """The scales of groups from -below to hi."""
    code = fmt.code
    if fmt.zero is not None:
        s = (hi + below) / float(code.high - code.low)
    elif code.low < 0:
        s = dsl.maximum(hi / float(code.high), below / float(-code.low))
    else:
        s = hi / float(code.high)
    return s.to(fmt.scale_dtype).to(f32)


def _clamped(values: Value, low: Value | int, high: Value | int) -> Value:
    return dsl.minimum(dsl.maximum(values, low), high)


def _along(values: Value) -> Value:
    """One number for every group, beside the group's."""
    return dsl.expand_dims(values, 2)


def _codes(values: Value, r: Value, z: Value | None, code: CodeType) -> Value:
    """The codes of values, with z or without."""
    scaled = values * r
    if code.step == 1:
        low, high = (end if z is None else end - z for end in (code.low, code.high))
        nearest = _clamped(dsl.rint(scaled), low, high)
        return nearest if z is None else nearest + z
    shift = float(-code.low) if z is None else (z - code.low).to(f32)
    return _clamped(dsl.rint((scaled + shift) * 0.5), 0, (code.high - code.low) // 2) * 2 + code.low
