"""Values that cross threads: warp shuffles, and exchanges through shared memory between warps and between layouts."""

import functools
import itertools

from lowbitvm.codegen.assign import AXES
from lowbitvm.codegen.ptx import Operand, float_immediate, memory
from lowbitvm.codegen.state import State
from lowbitvm.ir import Op
from lowbitvm.layout import Layout

FLOATS = {"add": "add.rn.f32", "max": "max.f32"}
BITS = {"h": 16, "r": 32, "f": 32}  # of the register classes that hold elements of tiles


def in_register(state: State, value: Operand, kind: str) -> str:
    """The register of a value; a number is put into a fresh one of class `kind`."""
    if isinstance(value, str) and value.startswith("%"):
        return value
    return state.builder.op(f"mov.b{BITS[kind]}", kind, value)


def convert(state: State, op: Op, values: list[Operand], kind: str, source: Layout, target: Layout) -> list[Operand]:
    """The same tile in another layout: written to shared memory row by row, and read back.

    `values` has one value of register class `kind` per register of `source`; the result one per register of `target`.
    """
    b, size = state.builder, BITS[kind] // 8
    offset = state.allocate_shared(size << sum(source.outs.values()), op)
    wait_for_earlier_reads(state)
    base, places = _places(state, source, size)
    owner = owner_predicate(state, source)
    for value, place in zip(values, places, strict=True):
        b.do(f"st.shared.b{BITS[kind]}", memory(base, offset + place), in_register(state, value, kind), when=owner)
    b.do("bar.sync", 0)
    base, places = _places(state, target, size)
    return [b.op(f"ld.shared.b{BITS[kind]}", kind, memory(base, offset + place)) for place in places]


def reduce_axis(
    state: State, op: Op, values: list[Operand], kind: str, layout: Layout, axis: str, how: str
) -> list[Operand]:
    """Combines the elements along an axis, one value per register of `layout`; threads that had some get the result.

    how: "add" or "max". Sums of f32 add neighbours first, then neighbouring pairs, and so on; others first what is in a
    thread, which takes fewest instructions.
    """
    combine = functools.partial(_combined, state, kind, how)
    bits = [holder(layout, axis, bit) for bit in range(layout.outs[axis])]
    if kind == "r" or how == "max":
        bits.sort(key=lambda place: ("register", "lane", "warp").index(place[0]))
    left = dict(enumerate(values))  # by register
    for name, group in itertools.groupby(bits, key=lambda place: place[0]):
        places = [place for _, place in group]
        if name == "register":
            for place in places:
                left = {r: combine(left[r], left[r | 1 << place]) for r in left if not r >> place & 1}
        else:
            reduce = reduce_lanes if name == "lane" else functools.partial(_reduce_warps, op, layout, axis)
            left = dict(zip(left, reduce(state, list(left.values()), kind, places, how), strict=True))
    return list(left.values())


def _combined(state: State, kind: str, how: str, a: Operand, b: Operand) -> Operand:
    return state.scalar(how, a, b) if kind == "r" else state.builder.op(FLOATS[how], kind, a, b)


def holder(layout: Layout, axis: str, bit: int) -> tuple[str, int]:
    """(input dim, its bit) that a bit of an axis is."""
    found = [
        (name, place)
        for name, images in layout.bases.items()
        for place, image in enumerate(images)
        if image[axis] >> bit & 1
    ]
    assert len(found) == 1 and sum(layout.bases[found[0][0]][found[0][1]].values()) == 1 << bit, layout
    return found[0]


def reduce_lanes(state: State, values: list[Operand], kind: str, lane_bits: list[int], how: str) -> list[Operand]:
    """Combines each value with those of the lanes that differ in `lane_bits`; all of these lanes get the result."""
    b = state.builder
    b.join()
    if kind == "r" and len(lane_bits) == 5 and state.target.has_redux:
        return [b.op(f"redux.sync.{how}.s32", kind, in_register(state, value, kind), 0xFFFFFFFF) for value in values]
    for bit in lane_bits:
        own = [in_register(state, value, kind) for value in values]
        others = [b.op("shfl.sync.bfly.b32", kind, value, 1 << bit, 31, 0xFFFFFFFF) for value in own]
        values = [_combined(state, kind, how, x, y) for x, y in zip(own, others, strict=True)]
    return values


def _reduce_warps(
    op: Op,
    layout: Layout,
    axis: str,
    state: State,
    values: list[Operand],
    kind: str,
    warp_bits: list[int],
    how: str,
) -> list[Operand]:
    """Combines each value with those of the warps that differ in `warp_bits`; all of these warps get the result.

    Lanes with copies of one value, of which there are enough where a row has more than 32 x 32 elements, read those of
    one warp each, and combine them as lanes do; others read all of them.
    """
    b, pitch = state.builder, 4 * state.threads
    offset = state.allocate_shared(pitch * len(values), op)
    wait_for_earlier_reads(state)
    base = state.shared_address([4 << bit for bit in range(5 + len(layout.bases["warp"]))])
    for i, value in enumerate(values):
        b.do("st.shared.b32", memory(base, offset + pitch * i), in_register(state, value, kind))
    b.do("bar.sync", 0)
    copies = [bit for bit, image in enumerate(layout.bases["lane"]) if sum(image.values()) == image[axis]]
    copies = copies[: len(warp_bits)] if len(copies) >= len(warp_bits) else []
    read = dict(zip(copies, warp_bits, strict=False))  # lane bit -> the warp bit in whose place it stands
    lanes = [4 << bit | (128 << read[bit] if bit in read else 0) for bit in range(5)]
    warps = [0 if bit in warp_bits else 128 << bit for bit in range(len(layout.bases["warp"]))]
    base = state.shared_address([*lanes, *warps])
    results: list[Operand] = []
    for i in range(len(values)):
        places = [0]
        for distance in [128 << bit for bit in warp_bits if not copies]:
            places += [place + distance for place in places]
        parts: list[Operand] = [b.op("ld.shared.b32", kind, memory(base, offset + pitch * i + at)) for at in places]
        while len(parts) > 1:
            parts = [_combined(state, kind, how, x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        results += parts
    return reduce_lanes(state, results, kind, copies, how)


def hadamard(state: State, op: Op, values: list[str], layout: Layout, axis: str) -> list[str]:
    """Each row along an axis times the Walsh-Hadamard matrix, one value f32 per register of `layout`."""
    b, distance = state.builder, 4 * state.threads
    offset = None
    for bit in range(layout.outs[axis]):
        name, place = holder(layout, axis, bit)
        if name == "register":
            for r in (r for r in range(len(values)) if not r >> place & 1):
                low, high = values[r], values[r | 1 << place]
                values[r], values[r | 1 << place] = (
                    b.op("add.rn.f32", "f", low, high),
                    b.op("sub.rn.f32", "f", low, high),
                )
            continue
        if name == "lane":
            b.join()
            others = [b.op("shfl.sync.bfly.b32", "f", value, 1 << place, 31, 0xFFFFFFFF) for value in values]
        else:
            if offset is not None:
                b.do("bar.sync", 0)
            else:
                offset = state.allocate_shared(distance * len(values), op)
                wait_for_earlier_reads(state)
            thread = b.op("shl.b32", "r", state.tid, 2)
            own, partner = (
                b.op("add.s32", "r", t, state.smem) for t in (thread, b.op("xor.b32", "r", thread, 128 << place))
            )
            for i, value in enumerate(values):
                b.do("st.shared.b32", memory(own, offset + distance * i), value)
            b.do("bar.sync", 0)
            others = [b.op("ld.shared.b32", "f", memory(partner, offset + distance * i)) for i in range(len(values))]
        high_half = b.op("and.b32", "r", state.tid, 1 << place + (5 if name == "warp" else 0))
        low_half = b.op("setp.eq.u32", "p", high_half, 0)
        sign = b.op("selp.f32", "f", float_immediate(1.0), float_immediate(-1.0), low_half)
        values = [b.op("fma.rn.f32", "f", own, sign, other) for own, other in zip(values, others, strict=True)]
    return values


def wait_for_earlier_reads(state: State) -> None:
    """Emits the barrier that an exchange in a loop needs: its memory may still be read from the last iteration."""
    if state.loop_depth:
        state.builder.do("bar.sync", 0)


def owner_predicate(state: State, layout: Layout) -> str | None:
    """For replicated tiles: true in the one thread of those with the same elements that stores them."""
    bases = [*layout.bases["lane"], *layout.bases["warp"]]
    copies = sum(1 << bit for bit, image in enumerate(bases) if not any(image.values()))
    if not copies:
        return None
    b = state.builder
    return b.op("setp.eq.u32", "p", b.op("and.b32", "r", state.tid, copies), 0)


def _places(state: State, layout: Layout, size: int) -> tuple[str, list[int]]:
    """The shared address of a thread's register 0 in a row-major tile, and every register's distance from it."""
    b = state.builder
    axes = [axis for axis in reversed(AXES) if axis in layout.outs]
    flat = layout.flatten(outs={"element": axes})
    threads = [size * image["element"] for image in (*flat.bases["lane"], *flat.bases["warp"])]
    base = b.op("add.s32", "r", state.smem, state.linear(state.tid, threads))
    return base, [size * flat(register=r)["element"] for r in range(1 << flat.ins["register"])]
