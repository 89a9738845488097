"""A tile that is copied to shared memory some units ahead: its pieces, and where they lie."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import or_, xor

from lowbitvm.codegen.ptx import Operand, hinted, memory, vector, vector_suffix
from lowbitvm.codegen.state import State

PIECE = 16  # bytes of one cp.async
NEVER = -(2**31)  # the limit of pieces outside the array


@dataclass(frozen=True)
class Unit:
    """How a loop's steps are taken together.

    dimension: the array dimension along k. exact: all of k that a fetched unit covers exists, so that pieces need no
    limits along k; units beyond the last are not fetched. together: units that one wait, barrier and group of copies
    serve. period: units over which products are summed before the scales are applied; loops end after whole periods.
    lead: units by which the weights are decoded before they are multiplied. stop: where the loop ends, if it may end
    after a whole unit before the array does. aligned: the units that one wait serves begin at multiples of all their k.
    """

    k: int
    slots: int
    together: int
    exact: bool
    dimension: str
    period: int = 1
    lead: int = 0
    stop: Operand = ""
    aligned: bool = False

    @property
    def span(self) -> int:
        """k of a period."""
        return self.k * self.period

    @property
    def turn(self) -> int:
        """Units of an iteration: every one has the same slot, place in its period and buffer in all iterations."""
        return math.lcm(self.slots, self.period, 1 + self.lead)

    @property
    def ahead(self) -> int:
        """Units from one that is waited for to the first that is fetched then."""
        return self.slots - self.together


@dataclass
class Piece:
    """One copy per thread and unit."""

    pointer: str
    pointer_offset: int
    base: str  # register: the thread's address in slot 0
    offset: int
    outside: str  # exact units: a predicate, the piece's row is not in the array
    limit: str = ""  # others: the piece is inside the array while the unit's k < limit, and zeros from then on
    active: str | None = None  # predicate: threads that have this piece at all
    bytes: int = PIECE


@dataclass
class Staged:
    """A tile with one place per slot, `offset` bytes from the slot's start."""

    state: State
    unit: Unit
    offset: int
    size: int = 0
    pieces: list[Piece] = field(default_factory=list)
    distance: int = 0  # bytes from one unit to the next in global memory
    every: int = 1  # of so many units only the first is copied
    policy: str = ""  # register: the hint of all copies to the L2 cache
    name: str = "ld.global.nc"  # of loads into registers

    def issue(self, slot: int, number: int, k: str, beyond: str = "", exists: str = "") -> None:
        """Emits the copies of a unit into the slot at byte `slot`.

        The unit is the `number`-th of an iteration, counted on into the next; `k` is the register of its first k, where
        the tile needs that. Zeros are copied where the predicate `beyond` is true: there is no such exact unit. Nothing
        is copied where `exists` is false, by targets with asynchronous copies.
        """
        b = self.state.builder
        pointers = {pointer: self.source(pointer, k) for pointer in dict.fromkeys(p.pointer for p in self.pieces)}
        loaded = []
        for piece in self.pieces:
            target = memory(piece.base, slot + self.offset + piece.offset)
            source = memory(pointers[piece.pointer], piece.pointer_offset + self.shift(number))
            outside = piece.outside if self.unit.exact else b.op("setp.ge.s32", "p", k, piece.limit)
            if beyond:
                outside = b.op("or.pred", "p", outside, beyond)
            if self.state.target.has_async_copies:
                name = f"cp.async.{'cg' if piece.bytes == PIECE else 'ca'}.shared.global"
                name, operands = hinted(name, (target, source, piece.bytes, outside), self.policy)
                when = exists or piece.active
                if exists and piece.active:
                    when = b.op("and.pred", "p", exists, piece.active)
                b.do(name, *operands, when=when)
            else:
                loaded.append((piece, target, self._loaded(piece, source, outside)))
        for piece, target, words in loaded:
            b.do(f"st.shared{vector_suffix(words)}.b32", target, vector(words), when=piece.active)

    def _loaded(self, piece: Piece, source: str, outside: str) -> list[str]:
        """Emits the load of a piece into registers, zeros where it is outside."""
        b = self.state.builder
        words = [b.op("mov.b32", "r", 0) for _ in range(piece.bytes // 4)]
        if piece.active is not None:
            inside = b.op("not.pred", "p", outside)
            outside = b.op("not.pred", "p", b.op("and.pred", "p", inside, piece.active))
        self.load_words(words, source, f"!{outside}")
        return words

    def clear(self, slot: int) -> None:
        """Emits stores of zeros to all that `issue` copies into a slot."""
        zero = self.state.builder.op("mov.b32", "r", 0)
        for piece in self.pieces:
            target = memory(piece.base, slot + self.offset + piece.offset)
            words = [zero] * (piece.bytes // 4)
            self.state.builder.do(f"st.shared{vector_suffix(words)}.b32", target, vector(words), when=piece.active)

    def load_words(self, words: list[str], source: str, when: str | None = None) -> None:
        """Emits a load into 32-bit registers."""
        name, operands = hinted(self.name, (vector(words), source), self.policy)
        self.state.builder.do(f"{name}{vector_suffix(words)}.b32", *operands, when=when)

    def load_half(self, half: str, source: str, when: str | None = None) -> None:
        """Emits a load into a 16-bit register."""
        name, operands = hinted(self.name, (half, source), self.policy)
        self.state.builder.do(f"{name}.b16", *operands, when=when)

    @property
    def needs_k(self) -> bool:
        """Whether `issue` needs the unit's first k."""
        return not self.unit.exact

    def shift(self, number: int) -> int:
        """Bytes from a pointer, at the start of an iteration, to the `number`-th unit.

        The pointers show the middle of what an iteration fetches: a copy has room for 12 bits of offset and their sign.
        """
        return (number - self.unit.ahead) * self.distance - self.middle

    @property
    def middle(self) -> int:
        """Bytes from the first unit that an iteration fetches to where its pointers show."""
        return self.unit.turn * self.distance // 2 // PIECE * PIECE

    def centred(self, pointer: str) -> str:
        """The pointer to the first unit, moved to the middle of what the first iteration fetches."""
        distance = self.unit.ahead * self.distance + self.middle
        return self.state.builder.op("add.s64", "rd", pointer, distance) if distance else pointer

    def source(self, pointer: str, k: str) -> str:
        """The register that a unit's pieces are addressed by."""
        return pointer

    def follow(self) -> None:
        """Emits the move of pointers that move from unit to unit, before a unit is fetched or passed over."""

    def advance(self) -> None:
        """Emits the move of the pointers by one iteration."""
        for pointer in dict.fromkeys(piece.pointer for piece in self.pieces):
            if self.distance:
                self.state.builder.do("add.s64", pointer, pointer, self.unit.turn * self.distance)

    def inside(self, k: Callable[[], Operand], index: Operand, count: str) -> tuple[str, str]:
        """(outside, limit) of a piece whose row or column is `index` of `count`, and which exists below k()."""
        b = self.state.builder
        if self.unit.exact:
            return b.op("setp.ge.u32", "p", index, count), ""
        return "", b.op("selp.b32", "r", self.before_stop(k()), NEVER, b.op("setp.lt.u32", "p", index, count))

    def before_stop(self, limit: Operand) -> Operand:
        """The limit of a piece that exists below k = `limit`: no unit is used from the loop's end on."""
        return self.state.scalar("min", limit, self.unit.stop) if self.unit.stop else limit

    def fewer(self, count: int, places: int, place: str) -> str | None:
        """The predicate of threads that have a piece, where `count` pieces are left for `places` threads."""
        return self.state.builder.op("setp.lt.u32", "p", place, count) if count < places else None


class Placement:
    """The threads' addresses in a tile whose bytes are a GF(2)-linear map of the thread and a piece's number.

    `origin` is the register of the address that the bytes count from, by default that of all shared memory.
    """

    def __init__(self, state: State, by_thread: list[int], origin: str = "") -> None:
        self.state, self.origin = state, origin or state.smem
        self.thread = state.linear(state.tid, by_thread)
        self.mask = functools.reduce(or_, by_thread, 0)
        self.bases: dict[int, str] = {}

    def of(self, image: int) -> tuple[str, int]:
        """(register, constant) whose sum is the shared address for a piece whose image is `image`."""
        mixed = image & self.mask  # what must be XORed; the rest can be added
        if mixed not in self.bases:
            b = self.state.builder
            place = b.op("xor.b32", "r", self.thread, mixed) if mixed else self.thread
            self.bases[mixed] = str(self.state.scalar("add", self.origin, place))
        return self.bases[mixed], image ^ mixed


def shift_right(state: State, value: Operand, bits: int) -> Operand:
    return value >> bits if isinstance(value, int) else state.builder.op("shr.u32", "r", value, bits)


def ceil_div(state: State, register: str, power: int) -> str:
    """(register + power - 1) / power of a runtime size."""
    raised = state.builder.op("add.s32", "r", register, power - 1)
    return state.builder.op("shr.u32", "r", raised, power.bit_length() - 1)


def select(images: list[int], number: int) -> int:
    """The XOR of images[i] over the set bits i of a number."""
    return functools.reduce(xor, (image for bit, image in enumerate(images) if number >> bit & 1), 0)
