"""The software pipeline of a loop: tiles that feed a `dot` are copied to shared memory some stages ahead.

Every staged tile is cut into 16-byte pieces; each thread copies the same few pieces of every stage with cp.async. What
changes from stage to stage is one register (`ahead`, the k index of the next stage to fetch) and the pieces' pointers.
One barrier per iteration serves both directions: after it, the copies of this stage are visible, and the slot read in
the previous iteration may be overwritten.
"""

import functools
from dataclasses import dataclass, field
from operator import or_, xor

from lowbitvm import dtypes
from lowbitvm.codegen.ptx import Operand, memory, vector
from lowbitvm.codegen.state import State, divisor, invariant, non_negative, size_bytes
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.ir import Array, Op
from lowbitvm.layout import Layout

PIECE = 16  # bytes of one cp.async
CHUNK_K = 64  # in_features of one packed tile of 16 out_features
TILE_BYTES = 512  # of such a tile
NEVER = -(2**31)  # the limit of pieces outside the array
SWIZZLE_BITS = 3  # the eight rows of an 8 x 8 matrix go to eight different 16-byte columns of the banks
STAGE_ALIGNMENT = 128


@dataclass
class Piece:
    """One 16-byte copy per thread and stage."""

    pointer: str
    pointer_offset: int
    base: Operand  # register with the thread's offset inside the stage
    offset: int
    limit: str  # the piece is inside the array while `ahead` < limit, and zeros from then on


@dataclass
class Staged:
    """A tile with one slot per stage, at `offset` bytes inside a stage of shared memory."""

    state: State
    offset: int
    size: int = 0
    pieces: list[Piece] = field(default_factory=list)
    active: str | None = None  # predicate: threads that have a piece at all

    def thread_pieces(self, count: int) -> int:
        """Pieces per thread when `count` are shared out; fewer pieces than threads set `active`."""
        if count < self.state.threads:
            self.active = self.state.builder.op("setp.lt.u32", "p", self.state.tid, count)
        return -(-count // self.state.threads)

    def issue(self, slot: str, ahead: str) -> None:
        """Emits the copies of the stage that begins at k = `ahead` into the slot at shared address `slot`."""
        b = self.state.builder
        bases = {base: b.op("add.s32", "r", slot, base) for base in dict.fromkeys(p.base for p in self.pieces)}
        for piece in self.pieces:
            outside = b.op("setp.ge.s32", "p", ahead, piece.limit)
            target = memory(bases[piece.base], self.offset + piece.offset)
            source = self.source(piece, ahead)
            b.do(
                "cp.async.cg.shared.global",
                target,
                memory(source, piece.pointer_offset),
                PIECE,
                outside,
                when=self.active,
            )

    def limit(self, k: str, index: Operand, count: str) -> str:
        """A piece's limit: k, or below every k if its row or column `index` is not below `count`."""
        b = self.state.builder
        return b.op("selp.b32", "r", k, NEVER, b.op("setp.lt.u32", "p", index, count))

    def source(self, piece: Piece, ahead: str) -> str:
        """The address that a piece of the stage at `ahead` is read from."""
        return piece.pointer

    def advance(self) -> None:
        """Emits the move of all pointers to the next stage."""


class DenseTile(Staged):
    """Rows of 16-bit activations (rows, columns), k along the columns, swizzled: ldmatrix has no bank conflicts."""

    def __init__(self, state: State, offset: int, load: Op, row: Operand, column: Operand) -> None:
        super().__init__(state, offset)
        assert load.array is not None and isinstance(load.array.element, dtypes.DType)
        self.rows, self.columns = load.shape
        self.pitch = self.columns * 2  # bytes of a row in shared memory
        self.size = self.rows * self.pitch
        self.vectorised = state.program.divisor(load.array.dims[-1]) % 8 == 0
        chunks = self.columns // 8
        b = state.builder
        count = self.thread_pieces(self.rows * chunks)
        chunk = b.op("shl.b32", "r", b.op("and.b32", "r", state.tid, chunks - 1), 3)
        first = b.op("shr.u32", "r", state.tid, chunks.bit_length() - 1)
        row_count, columns = (state.size(dim) for dim in load.array.dims)
        pitch = b.op("mul.wide.s32", "rd", columns, 2)
        images = [image["byte"] for name in ("chunk", "row") for image in self.layout.bases[name]]
        by_thread, by_piece = images[: (state.threads - 1).bit_length()], images[(state.threads - 1).bit_length() :]
        bases: dict[int, Operand] = {}
        limit = b.op("sub.s32", "r", columns, chunk)
        for i in range(count):
            index = state.scalar("add", row, state.scalar("add", first, i * (state.threads // chunks)))
            address = b.op("mad.lo.s64", "rd", b.op("cvt.s64.s32", "rd", index), pitch, state.pointer(load.array))
            address = b.op("mad.wide.s32", "rd", state.scalar("add", chunk, column), 2, address)
            place = functools.reduce(xor, (image for bit, image in enumerate(by_piece) if i >> bit & 1), 0)
            mixed = place & functools.reduce(or_, by_thread)  # what must be XORed; the rest can be added
            if mixed not in bases:
                base = state.linear(state.tid, by_thread)
                bases[mixed] = b.op("xor.b32", "r", base, mixed) if mixed else base
            self.pieces.append(Piece(address, 0, bases[mixed], place ^ mixed, self.limit(limit, index, row_count)))

    @functools.cached_property
    def layout(self) -> Layout:
        """(chunk, row) -> byte in shared memory: the 16-byte chunk c of row r lies at chunk c ^ (r mod 8)."""
        chunks = [PIECE << i for i in range((self.columns // 8).bit_length() - 1)]
        swizzle = [*chunks[:SWIZZLE_BITS], *[0] * self.rows.bit_length()]
        rows = [self.pitch << i | swizzle[i] for i in range(self.rows.bit_length() - 1)]
        bases = {"chunk": [(byte,) for byte in chunks], "row": [(byte,) for byte in rows]}
        return Layout(bases, {"byte": (self.size - 1).bit_length()})

    def issue(self, slot: str, ahead: str) -> None:
        if self.vectorised:
            super().issue(slot, ahead)
            return
        for piece in self.pieces:
            self._copy_elements(piece, slot, ahead)

    def _copy_elements(self, piece: Piece, slot: str, ahead: str) -> None:
        """Rows that are not 16-byte aligned: eight masked loads and one store, synchronous."""
        b = self.state.builder
        halves = []
        for element in range(8):
            index = b.op("add.s32", "r", ahead, element)
            inside = b.op("setp.lt.s32", "p", index, piece.limit)
            if self.active is not None:
                inside = b.op("and.pred", "p", inside, self.active)
            half = b.op("mov.b16", "h", 0)
            b.do("ld.global.nc.b16", half, memory(piece.pointer, piece.pointer_offset + 2 * element), when=inside)
            halves.append(half)
        words = [b.op("mov.b32", "r", vector(list(pair))) for pair in zip(halves[::2], halves[1::2], strict=True)]
        target = b.op("add.s32", "r", slot, piece.base)
        b.do("st.shared.v4.b32", memory(target, self.offset + piece.offset), vector(words), when=self.active)

    def advance(self) -> None:
        for piece in self.pieces:
            self.state.builder.do("add.s64", piece.pointer, piece.pointer, 2 * self.columns)


class WordTile(Staged):
    """Packed codes of a (bn, bk) tile: each lane copies, and later reads, its own 16 bytes of every 16 x 64 codes."""

    def __init__(self, state: State, offset: int, load: Op, row: Operand, start: Operand) -> None:
        super().__init__(state, offset)
        assert load.array is not None
        bn, bk = load.shape
        self.row_tiles, self.k_tiles = bn // 16 // state.warps, bk // CHUNK_K
        self.size = bn * bk // 2
        b = state.builder
        out_features, in_features = (state.size(dim) for dim in load.array.dims)
        lane_bytes = [PIECE << i for i in range(5)]
        warp_bytes = [(self.row_tiles * self.k_tiles * TILE_BYTES) << i for i in range(state.warps.bit_length() - 1)]
        self.base = state.linear(state.tid, lane_bytes + warp_bytes)
        warp = b.op("shr.u32", "r", state.tid, 5)
        row_tile = _shift_right(state, row, 4)
        first = state.scalar("add", row_tile, state.scalar("mul", warp, self.row_tiles))
        row_count = _ceil_div(state, out_features, 16)
        pitch = _ceil_div(state, in_features, CHUNK_K)
        k_tile = _shift_right(state, start, 6)
        lane = b.op("and.b32", "r", state.tid, 31)
        for t in range(self.row_tiles):
            index = state.scalar("add", first, t)
            tile = b.op("mul.wide.s32", "rd", index, pitch)
            if k_tile != 0:
                tile = b.op("mad.wide.s32", "rd", k_tile, 1, tile)
            address = b.op("add.s64", "rd", b.op("shl.b64", "rd", tile, 9), state.pointer(load.array, "words"))
            address = b.op("mad.wide.u32", "rd", lane, PIECE, address)
            for j in range(self.k_tiles):
                limit = b.op("sub.s32", "r", in_features, CHUNK_K * j) if j else in_features
                place = (t * self.k_tiles + j) * TILE_BYTES
                limit = self.limit(limit, index, row_count)
                self.pieces.append(Piece(address, j * TILE_BYTES, self.base, place, limit))

    def advance(self) -> None:
        for pointer in dict.fromkeys(piece.pointer for piece in self.pieces):
            self.state.builder.do("add.s64", pointer, pointer, self.k_tiles * TILE_BYTES)

    def words(self, slot_base: str, t: int, j: int) -> list[str]:
        """Emits the load of the lane's four words of row tile t, k tile j; `slot_base` is the slot plus `base`."""
        b = self.state.builder
        registers = [b.register("r") for _ in range(4)]
        place = memory(slot_base, self.offset + (t * self.k_tiles + j) * TILE_BYTES)
        b.do("ld.shared.v4.b32", vector(registers), place)
        return registers


class GroupRows(Staged):
    """The scales or zeros of a (bn, bk) tile: one row of bn numbers per group of k that the tile meets."""

    def __init__(self, state: State, offset: int, load: Op, row: Operand, part: str) -> None:
        super().__init__(state, offset)
        assert load.array is not None and isinstance(load.array.element, Format)
        fmt = load.array.element
        bn, bk = load.shape
        dtype = fmt.scale_dtype if part == "scales" else fmt.zero_dtype
        assert dtype is not None
        self.dtype, self.row_bytes = dtype, bn * size_bytes(dtype)
        self.group = fmt.group if isinstance(fmt.group, int) else None
        self.segments = max(1, bk // self.group) if self.group else 1
        self.size = self.segments * self.row_bytes
        b = state.builder
        out_features, in_features = (state.size(dim) for dim in load.array.dims)
        padded = b.op("shl.b32", "r", _ceil_div(state, out_features, 16), 4)
        self.pitch = b.op("mul.lo.s32", "r", padded, size_bytes(dtype))
        per_row = self.row_bytes // PIECE
        elements = PIECE // size_bytes(dtype)
        base = b.op("shl.b32", "r", state.tid, 4)
        for i in range(self.thread_pieces(self.segments * per_row)):
            number = state.scalar("add", state.tid, i * state.threads)
            segment = b.op("shr.u32", "r", number, per_row.bit_length() - 1)
            chunk = b.op("and.b32", "r", number, per_row - 1)
            column = state.scalar("add", row, b.op("mul.lo.s32", "r", chunk, elements))
            address = b.op("mad.wide.s32", "rd", column, size_bytes(dtype), state.pointer(load.array, part))
            address = b.op("mad.wide.s32", "rd", segment, self.pitch, address)
            limit = in_features
            if self.group and self.segments > 1:
                limit = b.op("sub.s32", "r", in_features, b.op("mul.lo.s32", "r", segment, self.group))
            place = i * PIECE * state.threads
            self.pieces.append(Piece(address, 0, base, place, self.limit(limit, column, padded)))
        lane_rows = [0, 0, *(2 * size_bytes(dtype) << i for i in range(3))]  # lane = 4 g + q reads rows g and g + 8
        warp_rows = [(bn // state.warps * size_bytes(dtype)) << i for i in range(state.warps.bit_length() - 1)]
        self.base = state.linear(state.tid, lane_rows + warp_rows)

    def source(self, piece: Piece, ahead: str) -> str:
        if self.group is None:
            return piece.pointer
        b = self.state.builder
        row = b.op("shr.u32", "r", ahead, self.group.bit_length() - 1)
        return b.op("mad.wide.s32", "rd", row, self.pitch, piece.pointer)

    def pair(self, slot_base: str, segment: int, t: int) -> list[str]:
        """Emits the load of the numbers of rows g and g + 8 of row tile t: one 16-bit pair, or two f32 registers."""
        b = self.state.builder
        place = memory(slot_base, self.offset + segment * self.row_bytes + t * 16 * size_bytes(self.dtype))
        if self.dtype == dtypes.f32:
            registers = [b.register("f"), b.register("f")]
            b.do("ld.shared.v2.f32", vector(registers), place)
            return registers
        return [b.op("ld.shared.b32", "r", place)]


@dataclass
class Pipeline:
    """All staged tiles of one loop, and its slots."""

    state: State
    loop: Op
    tiles: dict[tuple[Op, str], Staged]
    slot_bytes: int
    base: str
    slot: str = ""
    write_slot: str = ""
    end: str = ""
    ahead: str = ""

    @property
    def stages(self) -> int:
        return self.loop.integer("stages")

    def prologue(self, start: Operand) -> None:
        """Emits the copies of the first stages - 1 stages."""
        b = self.state.builder
        self.ahead = b.op("mov.b32", "r", start)
        self.slot = b.op("mov.b32", "r", self.base)
        self.write_slot = b.op("mov.b32", "r", self.base)
        if self.state.loop_depth:
            b.do("bar.sync", 0)  # the slots may still be read from the last time this loop ran
        for _ in range(self.stages - 1):
            self.fetch()
            b.do("add.s32", self.write_slot, self.write_slot, self.slot_bytes)
        self.end = b.op("add.s32", "r", self.base, self.stages * self.slot_bytes)

    def fetch(self) -> None:
        """Emits the copies of one stage, which become one cp.async group, and moves on to the next."""
        b = self.state.builder
        for tile in self.tiles.values():
            tile.issue(self.write_slot, self.ahead)
        b.do("cp.async.commit_group")
        for tile in self.tiles.values():
            tile.advance()
        b.do("add.s32", self.ahead, self.ahead, self.loop.integer("step"))

    def begin_iteration(self) -> None:
        """Emits the wait for this iteration's stage and the copies of the stage that takes the free slot."""
        b = self.state.builder
        b.do("cp.async.wait_group", self.stages - 2)
        b.do("bar.sync", 0)
        self.fetch()

    def end_iteration(self) -> None:
        """Emits the step to the next slot: the one just read is free for writing."""
        b = self.state.builder
        b.do("mov.b32", self.write_slot, self.slot)
        b.do("add.s32", self.slot, self.slot, self.slot_bytes)
        wrapped = b.op("setp.eq.s32", "p", self.slot, self.end)
        b.do("selp.b32", self.slot, self.base, self.slot, wrapped)

    def drain(self) -> None:
        """Emits the wait for copies of stages that were never used."""
        self.state.builder.do("cp.async.wait_all")


def staged_loads(loop: Op) -> list[tuple[Op, Op, Op]]:
    """(dot, activation load, code load) of every dot that stands in the loop itself."""
    found = []
    for op in loop.body:
        if op.kind != "dot":
            continue
        a, b = op.operands
        shape = [b.kind, *(x.kind for x in b.operands)]
        if a.kind != "load" or shape != ["transpose", "dequant"]:
            raise LowbitvmError(
                "KERNEL_UNSUPPORTED",
                f"dot of a {a.kind} and a {b.kind} of a {b.operands[0].kind if b.operands else 'value'}",
                "write lb.dot(lb.load(x, ...), lb.dequant(lb.load(w, ...), w.scales, w.zeros).T)",
                op.location,
            )
        found.append((op, a, b.operands[0].operands[0]))
    return found


def build_pipeline(state: State, loop: Op, offsets: "dict[Op, list[Operand]]") -> Pipeline | None:
    """Plans the stages of a loop and emits the address arithmetic before it; None when nothing feeds a dot.

    `offsets` are the loads' offsets at the first iteration. Raises KERNEL_UNSUPPORTED, TILE_INVALID and
    SHARED_MEMORY_EXCEEDED.
    """
    dots = staged_loads(loop)
    if not dots:
        return None
    tiles: dict[tuple[Op, str], Staged] = {}
    size = 0

    def add(key: tuple[Op, str], tile: Staged) -> None:
        nonlocal size
        tiles[key] = tile
        size = -(-(size + tile.size) // STAGE_ALIGNMENT) * STAGE_ALIGNMENT

    for _, activations, codes in dots:
        _check_tiles(state, loop, activations, codes)
        if (activations, "tile") not in tiles:
            add((activations, "tile"), DenseTile(state, size, activations, *offsets[activations]))
        if (codes, "tile") not in tiles:
            row, start = offsets[codes]
            add((codes, "tile"), WordTile(state, size, codes, row, start))
            add((codes, "scales"), GroupRows(state, size, codes, row, "scales"))
            assert codes.array is not None and isinstance(codes.array.element, Format)
            if codes.array.element.zero is not None:
                add((codes, "zeros"), GroupRows(state, size, codes, row, "zeros"))
    offset = state.allocate_shared(size * loop.integer("stages"), loop)
    return Pipeline(state, loop, tiles, size, str(state.scalar("add", state.smem, offset)))


def _check_tiles(state: State, loop: Op, activations: Op, codes: Op) -> None:
    bn, bk = codes.shape
    step = loop.integer("step")
    for load in (activations, codes):
        row, column = load.operands
        if not invariant(row, loop) or column is not loop or load in state.assigned:
            raise LowbitvmError(
                "KERNEL_UNSUPPORTED",
                "a load that feeds a dot must move along k by the loop index, and along nothing else",
                "write lb.load(x, (row, k), ...) with k of the innermost lb.range",
                load.location,
            )
    problems = {
        f"bk {bk} is no multiple of {CHUNK_K} up to 256": bk % CHUNK_K or bk > 256,
        f"the loop's step {step} is not bk {bk}": step != bk,
        f"the loop's start is no multiple of bk {bk}": divisor(loop.operands[0]) % bk,
        "the loop may start below k = 0": not non_negative(loop.operands[0]),
        "the first out_feature of the tile is no multiple of 16": divisor(codes.operands[0]) % 16,
        f"bn {bn} is no multiple of 16 x {state.warps} warps": bn % (16 * state.warps),
    }
    for problem, holds in problems.items():
        if holds:
            raise LowbitvmError("TILE_INVALID", problem, "choose such a tile", codes.location)


def packed_array(codes: Op) -> tuple[Array, Format]:
    """The packed weight that a load of codes reads."""
    assert codes.array is not None and isinstance(codes.array.element, Format)
    fmt = codes.array.element
    if fmt.dtype not in ("u4", "i4") or fmt.group in (16, 256) or fmt.scale not in ("f16", "bf16", "f32"):
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"this version has no kernel for {fmt}",
            'use "u4" or "i4" with a group of 32, 64 or 128 and scales in f16, bf16 or f32',
            codes.location,
        )
    return codes.array, fmt


def _shift_right(state: State, value: Operand, bits: int) -> Operand:
    return value >> bits if isinstance(value, int) else state.builder.op("shr.u32", "r", value, bits)


def _ceil_div(state: State, register: str, power: int) -> str:
    """(register + power - 1) / power of a runtime size."""
    raised = state.builder.op("add.s32", "r", register, power - 1)
    return state.builder.op("shr.u32", "r", raised, power.bit_length() - 1)
