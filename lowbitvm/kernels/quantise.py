"""The quantiser of activations: rows of floats become codes in digits, with scales, zero points and sums."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

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
    fmt = a.format
    rows = _Rows(x, a, sums, norm, smoothing, (bm, bk), whole, part, eps, rotation)

    def chosen(hi: Value, below: Value) -> tuple[Value, Value, Value | None]:
        """(scale to store, 1 / scale, zero point) of every group whose ends have these bits."""
        infinite = _clamped(dsl.maximum(hi, below) + (1 - INFINITY), 0, 1) * INFINITY  # its bits, or 0
        hi, below = (dsl.bitcast(dsl.maximum(end, infinite), f32) for end in (hi, below))
        s = _scales(hi, below, fmt) if scale is None else dsl.zeros(hi.shape) + dsl.load(scale, (0,), (1,))
        r = 1.0 / dsl.maximum(s, SMALLEST)
        z = None if zero is None else dsl.zeros(hi.shape, i32) + dsl.load(zero, (0,), (1,))
        if fmt.zero is not None and z is None:
            z = _clamped(dsl.rint(below * r) + fmt.code.low, fmt.code.low, fmt.code.high)
        return dsl.maximum(s, dsl.bitcast(infinite, f32)), r, z

    def finish(column: Value | int, s: Value, z: Value | None) -> None:
        dsl.store(scales, (rows.first, column), s)
        if zeros is not None and z is not None:
            dsl.store(zeros, (rows.first, column), z)

    if isinstance(fmt.group, int):
        for k in rows.chunks():
            s, r, z = chosen(*_ends(rows.prepared(k)))
            rows.put(k, r, z)
            finish(k // fmt.group, s, z)
        return
    reach = (dsl.zeros((bm, 1), i32), dsl.zeros((bm, 1), i32))
    for k in rows.chunks():
        for best, found in zip(reach, _ends(rows.prepared(k)), strict=True):
            best.set(dsl.maximum(best, found))
    s, r, z = chosen(*reach)
    total = dsl.zeros((bm, 1), i32)
    for k in rows.chunks():
        total += rows.put(k, r, z)
    finish(0, s, z)
    if part is None:
        dsl.store(sums, (rows.first, 0), total - rows.beyond(r, z))


@dataclass
class _Rows:
    """The rows of a block, in chunks of in_features: what is rounded, and where its codes go."""

    x: Tensor
    a: Packed
    sums: Tensor
    norm: Tensor | None
    smoothing: Tensor | None
    shape: tuple[int, int]  # of a chunk
    whole: bool
    part: int | None
    eps: float
    rotation: int | None
    kept: dict[str, Value] = field(default_factory=dict)
    factor: Value | None = None  # of RMSNorm, (bm, 1)

    def __post_init__(self) -> None:
        self.first = dsl.program_id(0) * self.shape[0]
        if self.norm is not None:
            squares = dsl.zeros(self.shape[:1])
            for k in self.chunks():
                squares += dsl.reduce_sum(self._loaded(k) * self._loaded(k), 1)
            self.factor = dsl.expand_dims(1.0 / dsl.sqrt(squares / self.x.shape[1].to(f32) + self.eps), 1)

    def chunks(self) -> Iterator[Value | int]:
        """Where each chunk begins, in a recorded loop unless it is the whole row."""
        return iter([0]) if self.whole else dsl.record_range(0, self.x.shape[1], self.shape[1])

    def prepared(self, k: Value | int) -> Value:
        """The chunk at k (bm, groups, in_features of a group), f32, after norm, smoothing and rotation."""
        return self._once("prepared", lambda: self._prepared(k))

    def put(self, k: Value | int, r: Value, z: Value | None) -> Value:
        """Stores a chunk's codes, and its sums where they are of parts; returns the sums of its groups."""
        codes = _codes(self.prepared(k), _along(r), z if z is None else _along(z), self.a.format.code)
        dsl.store(self.a, (self.first, k), codes.reshape(*self.shape))
        digits = codes - self.a.offset
        if self.part is not None:
            parts = digits.reshape(self.shape[0], self.shape[1] // self.part, self.part)
            dsl.store(self.sums, (self.first, k // self.part), dsl.reduce_sum(parts, 2))
        return dsl.reduce_sum(digits, 2)

    def beyond(self, r: Value, z: Value | None) -> Value:
        """What `put` has counted for in_features beyond x: they are zeros, `a` has no digits of their codes."""
        bk, k = self.shape[1], self.x.shape[1]
        blank = dsl.zeros((self.shape[0], 1)) if self.factor is None else self.factor * 0.0
        counted = bk if self.whole else (k + (bk - 1)) // bk * bk  # the whole row even where x has no in_features
        return (_codes(blank, r, z, self.a.format.code) - self.a.offset) * (counted - k)

    def _once(self, name: str, make: Callable[[], Value]) -> Value:
        """What is made of a chunk; of a whole row, which stays in registers, only the first time."""
        if self.whole and name not in self.kept:
            self.kept[name] = make()
        return self.kept[name] if self.whole else make()

    def _loaded(self, k: Value | int) -> Value:
        return self._once("loaded", lambda: dsl.load(self.x, (self.first, k), self.shape).to(f32))

    def _prepared(self, k: Value | int) -> Value:
        values, (bm, bk) = self._loaded(k), self.shape
        if self.factor is not None and self.norm is not None:
            values = values * self.factor * dsl.load(self.norm, (k,), (bk,)).to(f32)
        if self.smoothing is not None:
            values = values * dsl.load(self.smoothing, (k,), (bk,))
        if self.rotation is not None:
            values = dsl.hadamard(values.reshape(bm, bk // self.rotation, self.rotation)) * self.rotation**-0.5
        group = self.a.format.group if isinstance(self.a.format.group, int) else bk
        return values.reshape(bm, bk // group, group)


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
