"""Stores of codes into activations in digits: each thread makes whole words of them; `lowbitvm.digits` has the order.

A row of activations is `columns_per_row` columns of 16 words in a stored tile, 64 bytes side by side. The code at k of
a stored tile is in word 4 q + w of each column, with k = (32 / bits) (4 w + q) + digit for bits of the base.
"""

from lowbitvm import digits
from lowbitvm.codegen.assign import packing_layout
from lowbitvm.codegen.exchange import in_register, owner_predicate
from lowbitvm.codegen.ptx import Operand, memory, vector
from lowbitvm.codegen.state import State, divisor
from lowbitvm.digits import BASES, COLUMNS
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import format_digits, tile_k
from lowbitvm.ir import Op

COLUMN_BYTES = 64
TILE_BYTES = COLUMNS * COLUMN_BYTES
# prmt selectors: the low bytes of two registers, and the two low bytes of each of two
LOW_BYTES, LOW_HALVES = 0x0040, 0x5410
NIBBLES = 0x0F0F0F0F


def store(state: State, op: Op, codes: list[Operand], offsets: list[Operand]) -> None:
    """Emits the stores of a tile of codes, one value per register of `packing_layout`."""
    assert op.array is not None and isinstance(op.array.element, Format)
    if divisor(op.operands[2]) % tile_k(op.array.element):
        raise LowbitvmError(
            "KERNEL_UNSUPPORTED",
            f"codes that are stored to {op.array.name} from a column that may lie inside a stored tile",
            f"make it a multiple of {tile_k(op.array.element)}",
            op.location,
        )
    _PackingStore(state, op, offsets).emit(codes)


class _PackingStore:
    """Where a thread's words of one tile of codes go."""

    def __init__(self, state: State, op: Op, offsets: list[Operand]) -> None:
        assert op.array is not None and isinstance(op.array.element, Format)
        self.state, self.op, self.array, self.fmt = state, op, op.array, op.array.element
        assert self.fmt.digits is not None
        self.base, self.parts = BASES[self.fmt.digits], format_digits(self.fmt)
        self.each = digits.columns_per_row(self.fmt.code, self.fmt.digits)
        self.layout = packing_layout(op.operands[0].shape, self.fmt, state.warps)
        self.count = 32 // self.base.bits  # codes of a word
        self.tile_k = tile_k(self.fmt)
        self.owner = owner_predicate(state, self.layout)
        threads = [*self.layout.bases["lane"], *self.layout.bases["warp"]]
        rows_each = [image["i"] for image in threads]
        self.row = state.scalar("add", offsets[0], state.linear(state.tid, rows_each))
        self.k = state.scalar("add", offsets[1], state.linear(state.tid, [image["j"] for image in threads]))
        tiles = [image["j"] & -self.tile_k for image in threads]
        self.tile_start = state.scalar("add", offsets[1], state.linear(state.tid, tiles))
        place = state.linear(state.tid, [self._place(image["j"]) for image in threads])
        per_tile = TILE_BYTES // self.tile_k
        self.place = state.scalar("add", state.scalar("mul", offsets[1], per_tile), place)
        self.ragged = state.program.divisor(self.array.dims[1]) % self.tile_k != 0

    def _place(self, k: int) -> int:
        """Bytes from the first word of a row to that of a code at k, a multiple of the codes of a word."""
        q, w = k // self.count % 4, k // self.count // 4 % 4
        return k // self.tile_k * TILE_BYTES + 4 * (4 * q + w)

    def emit(self, codes: list[Operand]) -> None:
        """Emits the words and their stores: 16 bytes at a time where w is in registers."""
        width = 1 if self.base.name == "b1" else 4
        rows: dict[int, tuple[str, str, str]] = {}
        for first in range(0, len(codes), width * self.count):
            image = self.layout(register=first)
            if image["i"] not in rows:
                rows[image["i"]] = self._row(image["i"])
            pointer, stored, limit = rows[image["i"]]
            starts = range(first, first + width * self.count, self.count)
            words = [self._masked(self._words(codes[at : at + self.count]), limit, at) for at in starts]
            mask = self._tile_mask(image["j"], stored)
            for digit in range(self.each):
                own = [word[digit] for word in words]
                target = memory(pointer, self._place(image["j"]) + digit * COLUMN_BYTES)
                name = f"st.global{'.v4' if width == 4 else ''}.b32"
                self.state.builder.do(name, target, vector(own), when=mask)

    def _row(self, constant: int) -> tuple[str, str, str]:
        """(address of a row's first word, whether it is stored at all, K or 0 where it is padding)."""
        state, b = self.state, self.state.builder
        row = in_register(state, state.scalar("add", self.row, constant), "r")
        rows = state.size(self.array.dims[0])
        shift = (COLUMNS // self.each).bit_length() - 1  # rows of a stored tile, in bits
        k_tiles = b.op("shr.u32", "r", state.scalar("add", state.size(self.array.dims[1]), self.tile_k - 1),
                       self.tile_k.bit_length() - 1)  # fmt: skip
        tiles = b.op("shr.u32", "r", state.scalar("add", rows, (1 << shift) - 1), shift)
        tile = b.op("shr.u32", "r", row, shift)
        padded = b.op("setp.lt.u32", "p", tile, tiles)
        mask = padded if self.owner is None else b.op("setp.lt.and.u32", "p", tile, tiles, self.owner)
        real = b.op("setp.lt.u32", "p", row, rows)
        limit = b.op("selp.b32", "r", state.size(self.array.dims[1]), 0, real)
        pitch = b.op("mul.wide.u32", "rd", k_tiles, TILE_BYTES)
        pointer = b.op("mad.lo.s64", "rd", b.op("cvt.u64.u32", "rd", tile), pitch, state.pointer(self.array, "words"))
        own = b.op("and.b32", "r", row, (1 << shift) - 1)
        inside = state.scalar("add", self.place, state.scalar("mul", own, self.each * COLUMN_BYTES))
        inside = in_register(state, inside, "r")
        return b.op("add.s64", "rd", pointer, b.op("cvt.u64.u32", "rd", inside)), mask, limit

    def _tile_mask(self, k: int, stored: str) -> str:
        """Whether the stored tile is there at all."""
        start = in_register(self.state, self.state.scalar("add", self.tile_start, k & -self.tile_k), "r")
        size = self.state.size(self.array.dims[1])
        return self.state.builder.op("setp.lt.and.u32", "p", start, size, stored)

    def _masked(self, words: list[str], limit: str, register: int) -> list[str]:
        """The words with zeros for codes from `limit` on, the first code being that of a register."""
        b = self.state.builder
        first = in_register(self.state, self.state.scalar("add", self.k, self.layout(register=register)["j"]), "r")
        if not self.ragged:
            there = b.op("setp.lt.u32", "p", first, limit)
            return [b.op("selp.b32", "r", word, 0, there) for word in words]
        left = b.op("max.s32", "r", b.op("sub.s32", "r", limit, first), 0)
        bits = b.op("mul.lo.s32", "r", left, self.base.bits) if self.base.bits > 1 else left
        beyond = b.op("shl.b32", "r", b.op("mov.b32", "r", 0xFFFFFFFF), bits)  # 0 from 32 bits on
        kept = b.op("not.b32", "r", beyond)
        return [b.op("and.b32", "r", word, kept) for word in words]

    # -- words -------------------------------------------------------------------------------------------------------

    def _words(self, codes: list[Operand]) -> list[str]:
        """The word of each column that these codes, in the order of k, make."""
        state, b = self.state, self.state.builder
        stored = [state.scalar("sub", code, self.parts.offset) for code in codes]
        if self.parts.factor == 2:
            stored = [b.op("shr.s32", "r", in_register(state, number, "r"), 1) for number in stored]
        registers = [in_register(state, number, "r") for number in stored]
        if self.base.name == "s8":
            return [self._bytes(registers)]
        if self.base.name == "s4":
            low, high = self._bytes(registers[::2]), self._bytes(registers[1::2])
            words = [self._merged(low, b.op("shl.b32", "r", high, 4), NIBBLES)]
            if self.each == 2:
                words.append(self._merged(b.op("shr.u32", "r", low, 4), high, NIBBLES))
            return words
        planes = self._planes([self._bytes(registers[i::8]) for i in range(8)])
        zero = [b.op("mov.b32", "r", 0)] if len(self.parts.digits) < self.each else []
        return [*planes[: len(self.parts.digits)], *zero * (self.each - len(self.parts.digits))]

    def _bytes(self, registers: list[str]) -> str:
        """The low bytes of four registers in one."""
        b = self.state.builder
        pairs = [b.op("prmt.b32", "r", registers[i], registers[i + 1], LOW_BYTES) for i in (0, 2)]
        return b.op("prmt.b32", "r", *pairs, LOW_HALVES)

    def _merged(self, a: str, other: str, mask: int) -> str:
        """The bits of `a` in the mask, and those of `other` outside of it."""
        return self.state.builder.op("lop3.b32", "r", a, other, mask, 0xE4)

    def _planes(self, words: list[str]) -> list[str]:
        """Bit p of the bytes of word i becomes bit i of the bytes of word p: three rounds of swaps, each of half the
        bits that are left, as for a transposition of 8 x 8 bits."""
        b = self.state.builder
        for distance, mask in ((4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
            for i in (i for i in range(8) if not i & distance):
                low, high = words[i], words[i + distance]
                words[i] = self._merged(low, b.op("shl.b32", "r", high, distance), mask)
                words[i + distance] = self._merged(b.op("shr.u32", "r", low, distance), high, mask)
        return words
