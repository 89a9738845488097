"""In-register decode: the p words of a lane's chunk to the 16 registers of its A fragments.

A rotation brings codes to a place of a register's halves where one mask leaves, without any arithmetic, a float:

f16, integers: patterns 0 .. 2047 are exactly pattern * 2**-24 (subnormals and the first binade), so a code that starts
    at bit s is q * 2**(s - 24). A register's row class (g or g + 8) has one start, its factor goes into the scale.
f16, floats: sign and magnitude fall on the f16's sign and on the last bits of its exponent and the first of its
    mantissa, which gives the value times a power of two, subnormals included.
bf16, integers: the code's bits below the exponent 0 give 1 + q * 2**(s - 7); the offset is taken off the accumulators.
bf16, 8-bit integers and floats: as for f16, in bf16 subnormals and the numbers next to them, which one exact
    multiplication moves to where products with activations cannot underflow. A kernel for few rows of activations
    multiplies these instead (`Decoder.raised`), of which a warp has fewer registers.
codebooks: an index, of as many codes as a byte holds, into a table in shared memory.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from lowbitvm import chunk
from lowbitvm.chunk import INDEX_BITS, ROW_BYTES, TABLE_ROOM, Layout, Part, Run
from lowbitvm.codegen.ptx import Operand, memory, vector, vector_suffix
from lowbitvm.dtypes import ALIASES, CODE_TYPES, NAN_PATTERNS, CodeType
from lowbitvm.errors import LowbitvmError

F16_STARTS = {1: (9, 10), 2: (7, 9), 3: (5, 8), 4: (3, 7), 5: (1, 6), 6: (1, 5), 7: (0, 4), 8: (0, 0)}
BF16_STARTS = {1: (5, 6), 2: (3, 5), 3: (1, 4), 4: (3, 3), 5: (1, 1), 6: (1, 1), 7: (0, 0), 8: (0, 0)}
# of floats with one exponent bit: sign and an integer, so that f16 and bf16 can have it at the same place
E1_STARTS = {1: 6, 2: 4, 3: 1, 4: 1, 5: 0, 6: 0}
MANTISSA = {"f16": 10, "bf16": 7}
EXPONENT_BIAS = {"f16": 15, "bf16": 127}
FRAGMENT_REGISTERS, ACTIVATION_REGISTERS = 4, 2  # of 16 of k: of 16 rows of weights, and of 8 of activations
SIGN_PLACE = 15
WHOLE = 0xFFFF  # the mask of a half
F16_EXPONENT = 5
ONE_BF16 = 0x3F80
MINUS_ZERO = 0x8000
LARGEST_SHIFT = 127  # the largest power of two that bf16 has

SELECT, AND, AND_OR = 0xCA, 0xC0, 0xEA  # lop3 truth tables of a ? b : c, a & b, (a & b) | c
PIPES = {  # PTX operation -> (SASS, pipe)
    "shf.r.wrap.b32": ("SHF", "integer"),
    "lop3.b32": ("LOP3", "integer"),
    "and.b32": ("LOP3", "integer"),
    "or.b32": ("LOP3", "integer"),
    "prmt.b32": ("PRMT", "integer"),
    "fma.rn.bf16x2": ("HFMA2", "half"),
    "dp4a.u32.u32": ("IDP", "fma"),
    "ld.shared.b32": ("LDS", "shared"),
    "ld.shared.v2.b32": ("LDS", "shared"),
    "ld.shared.v4.b32": ("LDS", "shared"),
}

PIPE_NAMES = ("integer", "fma", "half", "shared")


class Emitter(Protocol):
    """What a decode emits into: `lowbitvm.codegen.ptx.Builder`, or something that counts or computes."""

    def op(self, name: str, kind: str, *operands: Operand) -> str: ...
    def do(self, name: str, *operands: Operand) -> None: ...
    def register(self, kind: str) -> str: ...


@dataclass(frozen=True)
class Decoder:
    """The decode of numbers: fragment value = factor * (q + offset) for linear types, q the stored pattern, and
    factor * value for floats, with one (factor, offset) per row class: (g, g + 8).

    merges, pairs: the parts of which words and fragment registers are put together; a source from `code.bits` on is a
    merge. kept: parts that follow the merges as sources, zero but for their masks. A pair may begin with all of one of
    these, of which the next part replaces what is not the pair's. magic: what is added to the parts of a register, by
    row class, in both halves. multiplier: what a register is multiplied with at last, a power of two.
    """

    code: CodeType
    act: str
    factors: tuple[float, float]
    offsets: tuple[float, float]
    merges: tuple[tuple[Part, ...], ...]
    pairs: tuple[tuple[Part, ...], ...]
    kept: tuple[Part, ...] = ()
    magic: int | None = None
    multiplier: int | None = None

    @property
    def power(self) -> int:
        """Of the two that the multiplier is, 0 without one."""
        return 0 if self.multiplier is None else (self.multiplier >> MANTISSA["bf16"]) - EXPONENT_BIAS["bf16"]

    @functools.cached_property
    def plain(self) -> "Decoder":
        """The decode without its multiplication."""
        low, high = (factor * 2.0**-self.power for factor in self.factors)
        return replace(self, factors=(low, high), multiplier=None)

    @property
    def raised(self) -> int:
        """The power of two of activations that are multiplied with `plain` fragments.

        Half of the multiplier's: the activations may be as far above 1 as their products with fragments are above the
        smallest f32, and what a sum lacks of its own size leaves f32 as much room below.
        """
        return self.power // 2

    def constants(self, b: Emitter) -> list[str]:
        """Emits what stays in registers."""
        patterns = [self.magic] if self.magic is not None else []
        if self.multiplier is not None:
            patterns = [self.multiplier, MINUS_ZERO]
        return [b.op("mov.b32", "r", pattern * 0x10001) for pattern in patterns]

    def emit(self, b: Emitter, words: list[str], constants: list[str]) -> list[list[str]]:
        """Emits the decode of a chunk's words: the 4 registers of the A fragment of each of the 4 k16 steps."""
        views: dict[tuple[int, int], str] = {}
        sources = list(words)

        def view(part: Part) -> str:
            key = (part.source, part.rotation)
            if key not in views:
                word = sources[part.source]
                views[key] = b.op("shf.r.wrap.b32", "r", word, word, part.rotation) if part.rotation else word
            return views[key]

        for parts in self.merges:
            merged = view(parts[0])
            for part in parts[1:]:
                merged = b.op("lop3.b32", "r", part.mask * 0x10001, view(part), merged, SELECT)
            sources.append(merged)
        for part in self.kept:
            sources.append(b.op("and.b32", "r", view(part), part.mask * 0x10001))
        lists = (*self.merges, self.kept, *self.pairs)
        alone = Counter((part.source, part.rotation) for parts in lists for part in parts)
        registers = []
        for parts in self.pairs:
            register, rest = constants[0] if self.magic is not None else "", parts
            if parts[0].mask == WHOLE:
                replaced, rest = parts[1], parts[2:]
                register = b.op("lop3.b32", "r", replaced.mask * 0x10001, view(replaced), view(parts[0]), SELECT)
            for part in rest:
                selector = _BYTES.get((part.rotation, part.mask))
                if register:
                    register = b.op("lop3.b32", "r", view(part), part.mask * 0x10001, register, AND_OR)
                elif selector is not None and alone[part.source, part.rotation] == 1:
                    register = b.op("prmt.b32", "r", sources[part.source], 0, selector)
                else:
                    register = b.op("and.b32", "r", view(part), part.mask * 0x10001)
            if self.multiplier is not None:
                register = b.op("fma.rn.bf16x2", "r", register, *constants)
            registers.append(register)
        return [registers[4 * step : 4 * step + 4] for step in range(4)]


def _selector(rotation: int, mask: int) -> int:
    """The selector of a prmt of a word and zero that rotates by whole bytes and masks whole bytes."""
    kept = [(i + rotation // 8) % 4 if mask >> 8 * (i % 2) & 1 else 4 for i in range(4)]
    return sum(byte << 4 * i for i, byte in enumerate(kept))


_BYTES = {(r, mask): _selector(r, mask) for r in (8, 16, 24) for mask in (0x00FF, 0xFF00)}


@dataclass(frozen=True)
class TableDecoder:
    """The decode of codebooks: fragment value = table[q], in the activations' dtype.

    A byte of a word is an index of as many codes as there are in it; a dot product of bytes makes it an address. An
    index has a row of 128 bytes in shared memory, with the entry once for each lane, or for each of the lanes that
    shared memory serves at a time, so that there are no bank conflicts. An entry is a register per pair of codes; of a
    single code it is the low half of one. A byte may hold other bits beside its codes: where `room` allows it, the
    table is repeated for all of these, else they are masked. Where rows of 128 bytes do not fit, they have one entry.

    tables: how many such tables lie in shared memory. room: the bytes of all together.
    """

    code: CodeType
    act: str
    tables: int = 1
    room: int = TABLE_ROOM
    factors: tuple[float, float] = (1.0, 1.0)
    offsets: tuple[float, float] = (0.0, 0.0)

    @functools.cached_property
    def _shape(self) -> tuple[int, int, int]:
        """(codes, rows, bytes of a row): of the shapes with most codes the one with most rows that fits."""
        bits = self.code.bits
        counts = [count for count in (8, 4, 2, 1) if count * bits <= INDEX_BITS]
        shapes = [(count, rows, ROW_BYTES) for count in counts for rows in (1 << INDEX_BITS, 1 << count * bits)]
        shapes += [(1, rows, 4) for rows in (1 << INDEX_BITS, 1 << bits)]
        fitting = (shape for shape in shapes if self.tables * shape[1] * shape[2] <= self.room)
        return next(fitting, shapes[-1])

    @property
    def codes(self) -> int:
        """Codes of one index."""
        return self._shape[0]

    @property
    def rows(self) -> int:
        """Rows of a table."""
        return self._shape[1]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self._shape[2]

    @property
    def width(self) -> int:
        """Registers of an entry."""
        return max(1, self.codes // 2)

    @property
    def table_bytes(self) -> int:
        """Bytes of a table in shared memory."""
        return self.rows * self.row_bytes

    def table(self, values: Any) -> Any:
        """The u32[rows, row_bytes / 4] of a table in shared memory, from the 2**bits values, rounded to `act`."""
        native = np.dtype(np.float16) if self.act == "f16" else np.dtype(ml_dtypes.bfloat16)
        patterns = np.asarray(values, np.float64).astype(native).view(np.uint16).astype(np.uint32)
        index = np.arange(self.rows)[:, None]
        entries = patterns[index >> np.arange(self.codes) * self.code.bits & ((1 << self.code.bits) - 1)]
        registers = entries if self.codes == 1 else entries[:, ::2] | entries[:, 1::2] << 16
        return np.tile(registers, self.row_bytes // 4 // self.width)

    def constants(self, b: Emitter, lane: str, table: str) -> list[str]:
        """Emits what stays in registers, from the registers of the lane's number and of the table's address."""
        if self.row_bytes < ROW_BYTES:
            return [table]
        copy = b.op("and.b32", "r", lane, 32 // self.width - 1) if self.width > 1 else lane
        return [b.op("mad.lo.s32", "r", copy, 4 * self.width, table)]

    def emit(self, b: Emitter, words: list[str], constants: list[str], place: int = 0) -> list[list[str]]:
        """Emits the decode of a chunk's words: the 4 registers of the A fragment of each of the 4 k16 steps.

        The table is the one that lies `place` bytes after that of the constants.
        """
        (table,) = constants
        loaded: list[str] = []
        for view, byte in byte_indices(b, words, self.code.bits, self.codes, masked=self.rows < 1 << INDEX_BITS):
            address = b.op("dp4a.u32.u32", "r", view, self.row_bytes << 8 * byte, table)
            entry = [b.register("r") for _ in range(self.width)]
            b.do(f"ld.shared{vector_suffix(entry)}.b32", vector(entry), memory(address, place))
            loaded += entry
        if self.codes == 1:
            loaded = [b.op("prmt.b32", "r", *both, 0x5410) for both in zip(loaded[::2], loaded[1::2], strict=True)]
        return [loaded[4 * step : 4 * step + 4] for step in range(4)]


def byte_indices(b: Emitter, words: list[str], bits: int, codes: int, masked: bool) -> Iterator[tuple[str, int]]:
    """Emits what brings the indices of each `codes` codes of a chunk to bytes: their (register, byte) in order.

    masked: there is nothing beside them in these bytes.
    """
    whole = 8 // bits  # codes of a stored byte
    views: dict[int, str] = {}
    shifted: dict[tuple[int, int], str] = {}
    for first in range(0, chunk.CODES, codes):
        number, code = divmod(first, whole)
        view, byte = divmod(number, 4)
        if view not in views:
            views[view] = _byte_view(b, words, chunk.byte_views(bits)[view])
        if (view, code) not in shifted:
            register = views[view]
            if code:
                register = b.op("shf.r.wrap.b32", "r", register, register, code * bits)
            if masked and codes * bits < INDEX_BITS:
                register = b.op("and.b32", "r", register, ((1 << codes * bits) - 1) * 0x01010101)
            shifted[view, code] = register
        yield shifted[view, code], byte


def _byte_view(b: Emitter, words: list[str], fields: tuple[chunk.Field, ...]) -> str:
    """Emits a register of `chunk.byte_views`. Bits that are in none of the fields are any."""
    view = ""
    for field in fields:
        word, rotation = words[field.word % len(words)], field.bit - field.place
        word = b.op("shf.r.wrap.b32", "r", word, word, rotation) if rotation else word
        mask = (((1 << field.length) - 1) << field.place) * 0x01010101
        view = b.op("lop3.b32", "r", mask, word, view, SELECT) if view else word
    return view


@functools.cache
def decoder(code: CodeType, act: str) -> Decoder | TableDecoder:
    """The decode of a code type's chunks (`lowbitvm.chunk`) for "f16" or "bf16" activations.

    Raises FORMAT_UNSUPPORTED for floats that f16 cannot hold.
    """
    if code.kind == "table":
        return TableDecoder(code, act)
    return layout_decoder(code, act, chunk.layouts(chunk.shape(code), code.bits))


def layout_decoder(code: CodeType, act: str, layout: Layout) -> Decoder:
    """The decode of chunks in any layout."""
    rows = places(code, act)
    pairs = tuple(_parts(runs, rows[pair % 2]) for pair, runs in enumerate(layout.pairs))
    zero = (0.0, 0.0)
    # what bit 0 of each row's code is worth as a pattern, which is linear in the subnormals and the first binade
    units = [2.0 ** (row[0].place - MANTISSA[act] - EXPONENT_BIAS[act] + 1) for row in rows]
    if code.is_linear and act == "bf16" and code.bits <= MANTISSA["bf16"]:
        low, high = (2.0 ** (row[0].place - MANTISSA[act]) for row in rows)
        return Decoder(code, act, (low, high), (1 / low, 1 / high), layout.merges, pairs, magic=ONE_BF16)
    step = 1.0 if code.is_linear else 2.0 ** (2 - (1 << (code.exponent - 1)) - code.mantissa)
    low, high = (unit / step for unit in units)
    kept, pairs = keep_signs(pairs, 1 + max(part.source for parts in (*layout.merges, *pairs) for part in parts))
    if act == "f16":
        return Decoder(code, act, (low, high), zero, layout.merges, pairs, kept)
    up = min(LARGEST_SHIFT, -round(math.log2(low)))
    factors = (low * 2.0**up, high * 2.0**up)
    return Decoder(code, act, factors, zero, layout.merges, pairs, kept, multiplier=power_pattern(up))


def multiplications(decoder: Decoder | TableDecoder, columns: int, row_tiles: int) -> float:
    """Per row tile of a warp and 16 of k, the products with a power of two that a decode's numbers need.

    Either the fragment's registers are multiplied or, where these are fewer, the activations' of the warp's n8 tiles.
    """
    if isinstance(decoder, TableDecoder) or decoder.power == 0:
        return 0
    return min(FRAGMENT_REGISTERS, ACTIVATION_REGISTERS * columns / row_tiles)


class Bits(NamedTuple):
    """Bits `bit` .. `bit + length - 1` of a code, and where they stand in a register's half."""

    bit: int
    length: int
    place: int


def places(code: CodeType, act: str) -> tuple[tuple[Bits, ...], tuple[Bits, ...]]:
    """Where the bits of a code stand in a register, for the row classes g and g + 8: bit 0 first, a sign last."""
    if code.kind != "float":
        starts = (F16_STARTS if act == "f16" else BF16_STARTS)[code.bits]
        return (Bits(0, code.bits, starts[0]),), (Bits(0, code.bits, starts[1]),)
    if not held_by(code, act):
        narrow = F16_EXPONENT - 1
        nearest = f"f{code.bits}e{narrow}m{code.bits - 1 - narrow}"
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"{code} reaches {code.largest:g} with {code.exponent} exponent bits, f16 activations have {F16_EXPONENT}",
            f"use bf16 activations (from sm_80 on), or the type {ALIASES.get(nearest, nearest)}",
        )
    start = E1_STARTS[code.mantissa] if code.exponent == 1 else MANTISSA[act] - code.mantissa
    row = (Bits(0, code.bits - 1, start), Bits(code.bits - 1, 1, SIGN_PLACE))
    return row, row


def held_by(code: CodeType, act: str) -> bool:
    """Whether an activation dtype has all values of a float type: f16 reads its largest exponent as infinity or NaN."""
    return (
        act == "bf16" or code.exponent < F16_EXPONENT or (code.exponent == F16_EXPONENT and code.name in NAN_PATTERNS)
    )


def power_pattern(exponent: int) -> int:
    """The bf16 pattern of a power of two."""
    return (exponent + EXPONENT_BIAS["bf16"]) << MANTISSA["bf16"]


def _parts(runs: tuple[Run, ...], row: tuple[Bits, ...]) -> tuple[Part, ...]:
    """What brings the runs of a pair to their places: its parts, with those of one rotation joined."""
    place_of = {bits.bit + i: bits.place + i for bits in row for i in range(bits.length)}
    masks: dict[tuple[int, int], int] = {}
    for run in runs:
        for i in range(run.length):
            place = place_of[run.bit + i]
            key = (run.source, (run.position + i - place) % 32)
            masks[key] = masks.get(key, 0) | 1 << place
    return tuple(Part(source, rotation, mask) for (source, rotation), mask in masks.items())


Pairs = tuple[tuple[Part, ...], ...]


def keep_signs(pairs: Pairs, sources: int) -> tuple[tuple[Part, ...], Pairs]:
    """Signs that one LOP3 keeps of a word, zeros around them, so that those of several pairs need no LOP3 each.

    The LOP3 that takes a pair's magnitude out of its word puts it in the place of the other signs: these must fall on
    places of the magnitude. Returns the parts that are kept, as sources numbered from `sources` on, and the pairs.
    """
    kept: list[Part] = []
    while True:
        signs: dict[int, list[int]] = {}
        for number, parts in enumerate(pairs):
            if len(parts) > 1 and parts[0].mask != WHOLE and parts[-1].mask == 1 << SIGN_PLACE:
                signs.setdefault(parts[-1].source, []).append(number)
        groups = (group for found in signs.values() for size in (2, 3) for group in itertools.combinations(found, size))
        found = [(*_kept_views(pairs, group), group) for group in groups if _falls_on_magnitudes(pairs, group)]
        saved, rotation, group = max(found, default=(0, 0, ()))
        if saved <= 0:
            return tuple(kept), pairs
        masks, changed = 0, list(pairs)
        for number in group:
            first, *others, sign = pairs[number]
            place = (SIGN_PLACE + sign.rotation - rotation) % 16
            masks |= 1 << place
            turned = Part(sources + len(kept), (sign.rotation - rotation) % 32, WHOLE)
            changed[number] = (turned, first, *others)
        kept.append(Part(pairs[group[0]][-1].source, rotation, masks))
        pairs = tuple(changed)


def _falls_on_magnitudes(pairs: Pairs, group: tuple[int, ...]) -> bool:
    """Whether each pair's first part replaces the signs of the others, as the pair's own sign is seen."""
    turns = [pairs[number][-1].rotation for number in group]
    return all(
        pairs[number][0].mask >> (SIGN_PLACE + other - turn) % 16 & 1
        for number, turn in zip(group, turns, strict=True)
        for other in turns
        if other != turn
    )


def _kept_views(pairs: Pairs, group: tuple[int, ...]) -> tuple[int, int]:
    """(instructions that keeping the signs of a group saves, the rotation at which their word is masked)."""
    source = pairs[group[0]][-1].source
    turns = [pairs[number][-1].rotation for number in group]
    others = {
        part.rotation
        for number, parts in enumerate(pairs)
        for part in (parts[:-1] if number in group else parts)
        if part.source == source
    }
    before = len((others | set(turns)) - {0})

    def saved(rotation: int) -> int:
        views = len((others | {rotation}) - {0}) + sum(turn != rotation for turn in turns)
        return before - views + len(group) - 1

    best = max(others | {0}, key=lambda rotation: (saved(rotation), -rotation))
    return saved(best), best


def cost(decoder: Decoder | TableDecoder, words: int | None = None) -> Counter[str]:
    """SASS instructions of the decode of a chunk (32 codes of a lane), or of `words` words of one, by mnemonic."""
    counting = _Counting()
    constants = ["", ""] if isinstance(decoder, Decoder) else [""]
    decoder.emit(counting, [""] * (words or decoder.code.bits), constants)
    return counting.done


def explain_decode(weights: str | None = None) -> str:
    """A table of what decoding costs, for one code type (a key of `dtypes.CODE_TYPES`) or for all of them.

    Instructions are SASS per 8 codes of a thread, one k16 step, by pipe. A fragment holds factor * (q + offset) of the
    stored pattern q, or factor * value, for the row classes g and g + 8. Tensor cores align products to the largest of
    a step and cut them there 24 bits further down, and align small codes as if they were `floor`, in steps of a code:
    a step of 8 of k loses less than 9 * 2**-24 * largest |x| * max(|q + offset|, floor).
    Raises DTYPE_MISMATCH for a name that is no code type.
    """
    if weights is not None and weights not in CODE_TYPES:
        raise LowbitvmError("DTYPE_MISMATCH", f"{weights!r} is no code type", f"use one of {', '.join(CODE_TYPES)}")
    shapes: dict[str, list[CodeType]] = {}
    for code in [CODE_TYPES[weights]] if weights is not None else CODE_TYPES.values():
        shapes.setdefault(chunk.shape(code), []).append(code)
    rows: list[tuple[str, ...]] = [("weights", "act", *PIPE_NAMES, "all", "per weight", "factor", "offset", "floor")]
    for codes in shapes.values():
        for act in ("f16", "bf16"):
            names = " ".join(code.name for code in codes)
            held = codes[0].kind != "float" or held_by(codes[0], act)
            rows.append(
                (names, act, *_row(decoder(codes[0], act)))
                if held
                else (names, act, "not held", *[""] * (len(PIPE_NAMES) + 4))
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(decoder: Decoder | TableDecoder) -> list[str]:
    counted = cost(decoder)
    by_pipe = [sum(counted[name] for name, pipe in set(PIPES.values()) if pipe == wanted) for wanted in PIPE_NAMES]
    floors = ["", ""]
    if decoder.code.is_linear:
        normal = 2.0 ** (1 - EXPONENT_BIAS["f16"])
        floors = [_short(normal / factor) if decoder.act == "f16" else "" for factor in decoder.factors]
    numbers = [f"{count / 4:g}" for count in (*by_pipe, counted.total())]
    pairs = [decoder.factors, decoder.offsets]
    return [
        *numbers,
        f"{counted.total() / 32:.2f}",
        *(_both([_short(x) for x in pair]) for pair in pairs),
        _both(floors),
    ]


def _short(number: float) -> str:
    """A power of two, or 0, that may be small."""
    return f"{number:g}" if number >= 1 or number == 0 else f"2^{round(math.log2(number))}"


def _both(texts: list[str]) -> str:
    return " ".join(dict.fromkeys(texts))


class _Counting:
    """An Emitter that counts SASS instructions."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()

    def op(self, name: str, kind: str, *operands: Operand) -> str:
        self.do(name, *operands)
        return self.register(kind)

    def do(self, name: str, *operands: Operand) -> None:
        if name in PIPES:
            self.done[PIPES[name][0]] += 1

    def register(self, kind: str) -> str:
        return "%"
