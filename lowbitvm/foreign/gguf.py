"""The blocks of GGUF files (ggml-quants.h of ggml): every row of a matrix is a sequence of records of bytes.

Q4_0 .. Q8_0 have a scale for 32 codes; the K-quants have one for 16 or 32 codes and a second level for 256. What the
library gguf 0.19 decodes was the reference.
"""

import functools
from dataclasses import dataclass

from lowbitvm.dtypes import SCALE_TYPES, f16
from lowbitvm.foreign.bits import Packing
from lowbitvm.foreign.integers import kept, offset_binary, twos_complement
from lowbitvm.foreign.scheme import Integer, Options, Part, Plan, Record, Scheme, Tensors, Wider


@dataclass(frozen=True)
class _Slice:
    """`length` bytes of a record, and what is in them: (field, bits as in foreign.bits, lowest bit, slice of field).

    A number's bits are "f16", "e8m0" or "e4m3" instead.
    """

    length: int
    holds: tuple[tuple[str, str, int, tuple[int, int, int] | None], ...]


def _codes(length: int, bits: str, low: int = 0) -> _Slice:
    return _Slice(length, (("codes", bits, low, None),))


def _number(field: str, kind: str = "f16", length: int = 2) -> _Slice:
    return _Slice(length, ((field, kind, 0, None),))


SCALE, MINIMUM = _number("scales"), _number("zeros")
D, DMIN = _number("outer"), _number("outer_zeros")
NIBBLES = _codes(16, "[j:16 h:2 b:4] -> h j")  # byte j holds the codes j and j + 16
FIFTH = _codes(4, "[h:2 j:16 b:1] -> h j", 4)
PAIRS = _codes(64, "[a:2 l:32 q:4 b:2] -> a q l")  # byte l holds the codes l, l + 32, l + 64 and l + 96
LONG_NIBBLES = _codes(128, "[a:4 l:32 h:2 b:4] -> a h l")
SIXES = (  # 8 scales and 8 minima of 6 bits: the low bits of the last four in the last bytes, their top bits above
    _Slice(4, (("scales", "[j:4 +2 b:6] -> j", 0, (8, 0, 4)), ("scales", "[j:4 b:2 +6] -> j", 4, (8, 4, 8)))),
    _Slice(4, (("zeros", "[j:4 +2 b:6] -> j", 0, (8, 0, 4)), ("zeros", "[j:4 b:2 +6] -> j", 4, (8, 4, 8)))),
    _Slice(4, (("scales", "[j:4 +4 b:4] -> j", 0, (8, 4, 8)), ("zeros", "[j:4 b:4 +4] -> j", 0, (8, 4, 8)))),
)
FOURS = _Slice(16, (("scales", "[j:16 +4 b:4] -> j", 0, None), ("zeros", "[j:16 b:4 +4] -> j", 0, None)))

# name -> code type, group, zero kind, the record, and what the patterns of fields stand for
_RECORDS: dict[str, tuple[str, int, str | None, tuple[_Slice, ...], dict[str, Integer | Wider]]] = {
    "q4_0": ("i4", 32, None, (SCALE, NIBBLES), {"codes": offset_binary(4)}),
    "q4_1": ("u4", 32, "offset", (SCALE, MINIMUM, NIBBLES), {}),
    "q5_0": ("i5", 32, None, (SCALE, FIFTH, NIBBLES), {"codes": offset_binary(5)}),
    "q5_1": ("u5", 32, "offset", (SCALE, MINIMUM, FIFTH, NIBBLES), {}),
    "q8_0": ("i8", 32, None, (SCALE, _codes(32, "[j:32 b:8] -> j")), {"codes": twos_complement(8)}),
    "q2_k": ("u2", 16, "offset", (FOURS, PAIRS, D, DMIN), {}),
    "q3_k": (
        "i3",
        16,
        None,
        (
            _codes(32, "[l:32 q:8 b:1] -> q l", 2),
            PAIRS,
            _Slice(8, (("scales", "[j:8 i:2 b:4] -> i j", 0, None),)),
            _Slice(4, (("scales", "[j:4 i:4 b:2] -> i j", 4, None),)),
            D,
        ),
        {"codes": offset_binary(3), "scales": offset_binary(6)},
    ),
    "q4_k": ("u4", 32, "offset", (D, DMIN, *SIXES, LONG_NIBBLES), {}),
    "q5_k": ("u5", 32, "offset", (D, DMIN, *SIXES, _codes(32, "[l:32 q:8 b:1] -> q l", 4), LONG_NIBBLES), {}),
    "q6_k": (
        "i6",
        16,
        None,
        (
            _codes(128, "[a:2 m:2 l:32 h:2 b:4] -> a h m l"),
            _codes(64, "[a:2 l:32 q:4 b:2] -> a q l", 4),
            _Slice(16, (("scales", "[j:16 b:8] -> j", 0, None),)),
            D,
        ),
        {"codes": offset_binary(6), "scales": twos_complement(8)},
    ),
    "tq2_0": ("ternary", 256, None, (PAIRS, SCALE), {"codes": Integer(2, bias=1, used=3)}),
    "mxfp4": ("f4e2m1", 32, None, (_number("scales", "e8m0", 1), NIBBLES), {}),
    "nvfp4": (
        "f4e2m1",
        16,
        None,
        (_number("scales", "e4m3", 4), _codes(32, "[g:4 j:8 h:2 b:4] -> g h j")),
        {},
    ),
}


@functools.cache
def _plan(name: str) -> Plan:
    code, group, zero, slices, numbers = _RECORDS[name]
    length = sum(piece.length for piece in slices)
    parts, start = [], 0
    for piece in slices:
        record = Record(length, start, start + piece.length)
        start += piece.length
        for field, bits, low, into in piece.holds:
            if "->" not in bits:
                count = 8 * piece.length // SCALE_TYPES[bits].bits
                packing = kept(f"n k u:{count} -> n (k u)")
                parts.append(Part("data", field, packing, ("u8",), view=bits, record=record))
                continue
            left, right = bits.split("->")
            packing = Packing(f"n k {left} -> n (k {right}) b")
            parts.append(Part("data", field, packing, ("u8",), low, record=record, into=into))
    two_levels = any(part.field == "outer" for part in parts)
    known: dict[str, Integer | Wider] = {}
    if two_levels:  # w = outer * scale * code + outer_zeros * zero, and the file has what is subtracted
        width = 4 if name == "q2_k" else 6
        known |= {"scales": Integer(width, signed=True), "outer": Wider(f16)}
        known |= {} if zero is None else {"zeros": Integer(width, signed=True), "outer_zeros": Wider(f16, -1)}
    return Plan(code, zero, tuple(parts), {**known, **numbers}, outers=256 if two_levels else None, group=group)


def _given(_: Tensors, options: Options) -> Options:
    return options


SCHEMES: dict[str, Scheme] = {
    f"gguf_{name}": Scheme(lambda options, name=name: _plan(name), _given)  # type: ignore[misc]
    for name in _RECORDS
}
