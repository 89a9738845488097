"""Values that cross threads: warp shuffles, and exchanges through shared memory between warps and between layouts."""

from collections.abc import Callable

from lowbitvm.codegen.assign import AXES
from lowbitvm.codegen.ptx import Operand, memory
from lowbitvm.codegen.state import State
from lowbitvm.ir import Op
from lowbitvm.layout import Layout

Combine = Callable[[Operand, Operand], Operand]
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


def reduce_lanes(
    state: State, values: list[Operand], kind: str, lane_bits: list[int], combine: Combine
) -> list[Operand]:
    """Combines each value with those of the lanes that differ in `lane_bits`; all of these lanes get the result."""
    b = state.builder
    for bit in lane_bits:
        own = [in_register(state, value, kind) for value in values]
        others = [b.op("shfl.sync.bfly.b32", kind, value, 1 << bit, 31, 0xFFFFFFFF) for value in own]
        values = [combine(x, y) for x, y in zip(own, others, strict=True)]
    return values


def reduce_warps(
    state: State, op: Op, values: list[Operand], kind: str, warp_bits: list[int], combine: Combine
) -> list[Operand]:
    """Combines each value with those of the warps that differ in `warp_bits`; all of these warps get the result."""
    b, pitch = state.builder, 4 * state.threads
    offset = state.allocate_shared(pitch * len(values), op)
    wait_for_earlier_reads(state)
    thread = b.op("shl.b32", "r", state.tid, 2)
    base = b.op("add.s32", "r", thread, state.smem)
    for i, value in enumerate(values):
        b.do("st.shared.b32", memory(base, offset + pitch * i), in_register(state, value, kind))
    b.do("bar.sync", 0)
    warps = [128 << bit for bit in warp_bits]  # bytes from a thread's value to that of the warp with this bit set
    first = b.op("and.b32", "r", thread, ~sum(warps) & 0xFFFFFFFF)
    base = b.op("add.s32", "r", first, state.smem)
    results: list[Operand] = []
    for i in range(len(values)):
        places = [0]
        for distance in warps:
            places += [place + distance for place in places]
        parts = [b.op("ld.shared.b32", kind, memory(base, offset + pitch * i + place)) for place in places]
        total: Operand = parts[0]
        for part in parts[1:]:
            total = combine(total, part)
        results.append(total)
    return results


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
