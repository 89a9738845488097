"""Layout assignment: which register, lane and warp holds which element of every tile.

A `dot` dictates the fragment layout of its result; elementwise ops share one layout; reductions, broadcasts and
transpositions project it, the first to do so decides; what is left gets a blocked layout for wide, coalesced accesses.
Axis i of a tile is the output dim AXES[i] of its layout; the inputs are "register", "lane" and "warp". A tile smaller
than the block is replicated.
"""

import math
from collections.abc import Iterator

from lowbitvm.codegen.digits import digit_layout, multiplies_digits
from lowbitvm.digits import BASES
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import tile_k
from lowbitvm.ir import Op, Program, walk
from lowbitvm.layout import Layout
from lowbitvm.targets import MmaAtom

AXES = ("i", "j", "k")
VECTOR_BITS = 128
SAME_LAYOUT = {"add", "sub", "mul", "div", "floordiv", "mod", "max", "min", "exp", "sqrt", "cast", "assign"}
SAME_LAYOUT |= {"rint", "bitcast", "hadamard", "fma", "mul_shift"}


def assign_layouts(program: Program, atom: MmaAtom, arrangement: tuple[int, int]) -> dict[Op, Layout]:
    """The layout of every tile in the program but those that only feed dots (these live in shared memory).

    arrangement: how many warps share out axes 0 and 1 of a dot.

    Where a broadcast, expand, transpose or reduction would need a tile in a layout that it does not have, the lowering
    exchanges elements between threads. Raises TILE_INVALID for a dot that the atom does not divide.
    """
    ops, warps = list(walk(program.body)), math.prod(arrangement)
    staged = staged_tiles(ops)
    tiles = [op for op in ops if op.dtype is not None and op.shape and op not in staged]
    groups = _groups(ops, tiles)
    layouts: dict[Op, Layout] = {}

    def fix(op: Op, layout: Layout) -> bool:
        if op in layouts:
            return False
        layouts.update((member, layout) for member in groups[op])
        return True

    for op in tiles:
        if op.kind == "dot":
            by_digits = multiplies_digits(op)
            wanted = digit_layout(op, *arrangement) if by_digits else fragment_layout(op, atom, *arrangement)
            if not fix(op, wanted) and layouts[op] != wanted:
                raise LowbitvmError(
                    "KERNEL_UNSUPPORTED",
                    "one tile takes part in dots of different digits, which leave it to different lanes",
                    "add them up apart, and take tile.T.T of one of the sums, which moves it to the lanes of the other",
                    op.location,
                )
    for op in ops:
        if op.kind == "store" and op.array is not None and isinstance(op.array.element, Format):
            fix(op.operands[0], packing_layout(op.operands[0].shape, op.array.element, warps))
    while True:
        while sum([fix(op, layout) for link in ops for op, layout in _implied(link, layouts)]):
            pass
        left = [op for op in tiles if op not in layouts]
        if not left:
            return layouts
        largest = max(left, key=lambda op: (len(op.shape), math.prod(op.shape)))
        widest = max(op.dtype.bits for op in groups[largest] if op.dtype is not None)
        fix(largest, blocked_layout(largest.shape, widest, warps))


def fragment_layout(dot: Op, atom: MmaAtom, warps_m: int, warps_n: int) -> Layout:
    """The layout of a dot's result (bm, bn) when the weights, axis 1, are the M side of `atom` (Y^T = W X^T).

    warps_n warps share out axis 1, and warps_m of such rows of warps axis 0. Registers: the atom's, then n8 tiles of
    axis 0, then m16 tiles.
    """
    bm, bn = dot.shape
    if bm % (atom.n * warps_m) or bn % (atom.m * warps_n):
        raise LowbitvmError(
            "TILE_INVALID",
            f"a dot of shape {dot.shape} over {warps_m} x {warps_n} warps",
            f"make bm a multiple of {atom.n} x {warps_m} warps and bn one of {atom.m} x {warps_n} warps",
            dot.location,
        )
    tile = atom.c.rename(outs={"m": "j", "n": "i"})
    columns = Layout.identity("register", _log2(bm // atom.n // warps_m), "i")
    rows = Layout.identity("register", _log2(bn // atom.m // warps_n), "j")
    warps = Layout.identity("warp", _log2(warps_m), "i") * Layout.identity("warp", _log2(warps_n), "j")
    return tile * columns * rows * warps


def blocked_layout(shape: tuple[int, ...], bits: int, warps: int) -> Layout:
    """A layout for accesses of VECTOR_BITS: registers along the last axis, lanes along it, warps along the first."""
    left = [_log2(size) for size in shape]
    last = len(shape) - 1

    def take(name: str, wanted: int, axes: list[int]) -> Layout:
        layout = Layout.zeros(name, 0)
        for axis in axes:
            count = min(wanted, left[axis])
            left[axis] -= count
            wanted -= count
            layout = layout * Layout.identity(name, count, AXES[axis])
        return layout * Layout.zeros(name, wanted)

    vector = take("register", min(left[last], _log2(VECTOR_BITS // bits)), [last])
    lanes = take("lane", 5, list(range(last, -1, -1)))
    warp = take("warp", _log2(warps), list(range(last + 1)))
    return vector * lanes * warp * take("register", sum(left), list(range(last, -1, -1)))


def packing_layout(shape: tuple[int, ...], fmt: Format, warps: int) -> Layout:
    """The layout of codes (rows, K) in which each thread has all codes of a word, and neighbours write neighbours.

    Registers: the codes of a word, for digits of 4 and 8 bits then w, so that a lane stores 16 bytes. Lanes: q, for
    planes w too. What one block's threads cannot hold is registers next, so that reductions of neighbouring k stay
    inside a thread; then lanes and warps along k and along rows.
    """
    assert fmt.digits is not None
    inner = (32 // BASES[fmt.digits].bits).bit_length() - 1
    left = [shape[0].bit_length() - 1, (shape[1] // tile_k(fmt)).bit_length() - 1]  # bits of rows and of k tiles
    planes = fmt.digits == "b1"
    lanes, threads = 5 - (4 if planes else 2), warps.bit_length() - 1
    extra = max(0, sum(left) - lanes - threads)  # bits that only registers are left for
    taken = [extra - min(extra, left[1]), min(extra, left[1])]
    images = [{"j": 1 << inner + bit} for bit in range(4)]  # q, then w
    tile = Layout(
        {
            "register": [*({"j": 1 << bit} for bit in range(inner)), *([] if planes else images[2:])],
            "lane": images if planes else images[:2],
        },
        {"i": 0, "j": inner + 4},
    )
    for axis, count in zip("ij", taken, strict=True):
        tile = tile * Layout.identity("register", count, axis)
    free = {"j": left[1] - taken[1], "i": left[0] - taken[0]}
    for name, count in (("lane", lanes), ("warp", threads)):
        for axis in free:
            own = min(count, free[axis])
            tile = tile * Layout.identity(name, own, axis)
            free[axis] -= own
            count -= own
        tile = tile * Layout.zeros(name, count)
    return tile


def without_repeats(layout: Layout) -> Layout:
    """The layout without register bits that change nothing."""
    kept = [image for image in layout.bases["register"] if any(image.values())]
    return Layout({**layout.bases, "register": kept}, layout.outs)


def operand_layout(op: Op, result: Layout) -> Layout:
    """What the layout of a broadcast's, expand's or transpose's result says of its only operand's."""
    rank = len(op.operands[0].shape)
    if op.kind == "transpose":
        return transposed_layout(result)
    if op.kind == "reshape":
        return reshaped_layout(result, op.operands[0].shape)
    if op.kind == "expand":
        axis = op.integer("axis")
        kept = [name for at, name in enumerate(AXES[: rank + 1]) if at != axis]
        return result.project(*kept).rename(outs=dict(zip(kept, AXES, strict=False)))
    assert op.kind == "broadcast"
    bases: dict[str, list[dict[str, int]]] = {}
    skipped = len(op.shape) - rank
    for name, images in result.bases.items():
        bases[name] = [
            {AXES[at]: image[AXES[at + skipped]] for at, size in enumerate(op.operands[0].shape) if size > 1}
            for image in images
        ]
    outs = {AXES[at]: _log2(size) for at, size in enumerate(op.operands[0].shape)}
    return without_repeats(Layout(bases, outs))


def reduced_layout(op: Op, operand: Layout) -> Layout:
    """The layout of a reduction's result: the axis projected away, its lanes and warps hold copies."""
    axis = op.integer("axis")
    kept = [name for at, name in enumerate(AXES[: len(op.operands[0].shape)]) if at != axis]
    return without_repeats(operand.project(*kept).rename(outs=dict(zip(kept, AXES, strict=False))))


def index_layout(store: Op, at: int, layout: Layout) -> Layout:
    """The layout of the indices along an axis that a store scatters its tile by: those of the tile's own registers."""
    return without_repeats(layout.project(AXES[at]).rename(outs={AXES[at]: AXES[0]}))


def _implied(op: Op, layouts: dict[Op, Layout]) -> Iterator[tuple[Op, Layout]]:
    """What an op says of the layouts of its operand and result, where one of them is known."""
    if op.kind == "store" and op.operands[0] in layouts:
        for at, offset in enumerate(op.operands[1:]):
            if offset.shape:
                yield offset, index_layout(op, at, layouts[op.operands[0]])
    if op.kind not in ("reduce", "broadcast", "expand", "transpose", "reshape"):
        return
    operand = op.operands[0]
    if op.kind != "reduce" and op in layouts and operand.shape:
        yield operand, operand_layout(op, layouts[op])
    if op.kind != "broadcast" and op.shape and operand in layouts:
        yield op, result_layout(op, layouts[operand])


def result_layout(op: Op, operand: Layout) -> Layout:
    """What the layout of a reduction's, expand's or transpose's operand says of its result's."""
    if op.kind == "reduce":
        return reduced_layout(op, operand)
    if op.kind == "reshape":
        return reshaped_layout(operand, op.shape)
    return expanded_layout(op, operand) if op.kind == "expand" else transposed_layout(operand)


def reshaped_layout(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """The layout of the same elements, in row-major order, as a tile of another shape."""
    axes = [axis for axis in reversed(AXES) if axis in layout.outs]
    return layout.flatten(outs={"element": axes}).split(
        outs={"element": {AXES[at]: _log2(shape[at]) for at in reversed(range(len(shape)))}}
    )


def transposed_layout(layout: Layout) -> Layout:
    """The layout with the axes of a rank-2 tile swapped."""
    return layout.rename(outs={"i": "j", "j": "i"})


def expanded_layout(op: Op, operand: Layout) -> Layout:
    """The layout of `expand`'s result: a dim of 0 bits at the new axis."""
    axis = op.integer("axis")
    names = {AXES[at]: AXES[at + (at >= axis)] for at in range(len(op.operands[0].shape))}
    renamed = operand.rename(outs=names)
    return Layout(renamed.bases, {name: renamed.outs.get(name, 0) for name in AXES[: len(op.shape)]})


def staged_tiles(ops: list[Op]) -> set[Op]:
    """The loads, and what is made of them, that only feed dots: they stay in shared memory, without a layout."""
    users: dict[Op, list[Op]] = {}
    for op in ops:
        for operand in op.operands:
            users.setdefault(operand, []).append(op)
    found: set[Op] = set()
    for op in reversed(ops):
        uses = users.get(op, [])
        if op.kind in ("load", "dequant", "transpose") and uses and all(x.kind == "dot" or x in found for x in uses):
            found.add(op)
    return found


def _groups(ops: list[Op], tiles: list[Op]) -> dict[Op, set[Op]]:
    """For every tile the set of tiles that share its layout because an elementwise op connects them."""
    groups = {op: {op} for op in tiles}
    for op in ops:
        if op.kind not in SAME_LAYOUT:
            continue
        linked = [member for member in (op, *op.operands) if member in groups]
        joined = set().union(*(groups[member] for member in linked))
        groups.update((member, joined) for member in joined)
    return groups


def _log2(size: int) -> int:
    assert size > 0 and size & (size - 1) == 0, size
    return size.bit_length() - 1
