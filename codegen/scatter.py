"""Stores whose tile goes to rows or columns that a tile of indices names."""

from collections.abc import Sequence

from lowbitvm.codegen.access import REGISTER_KIND
from lowbitvm.codegen.exchange import BITS, in_register, owner_predicate
from lowbitvm.codegen.ptx import Operand, memory
from lowbitvm.codegen.state import State, size_bytes
from lowbitvm.dtypes import DType
from lowbitvm.errors import LowbitvmError
from lowbitvm.ir import Op
from lowbitvm.layout import Layout


def thread_indices(state: State, layout: Layout, axis: str, offset: Operand) -> list[Operand]:
    """The index along an axis of every register of a tile that begins at `offset`."""
    inside = state.linear(state.tid, [image[axis] for image in (*layout.bases["lane"], *layout.bases["warp"])])
    start = state.scalar("add", offset, inside)
    places = [layout(register=r)[axis] for r in range(1 << layout.ins["register"])]
    known = {place: state.scalar("add", start, place) for place in dict.fromkeys(places)}
    return [known[place] for place in places]


def scatter(state: State, op: Op, indices: Sequence[Sequence[Operand]]) -> None:
    """Emits a store of every register of a tile, `indices` [axis][register] in the array; none outside of it."""
    array, b = op.array, state.builder
    assert array is not None and isinstance(array.element, DType)
    if array.element.name not in REGISTER_KIND:
        raise LowbitvmError(
            "KERNEL_UNSUPPORTED", f"{op.kind} to {array}", f"use arrays of {', '.join(REGISTER_KIND)}", op.location
        )
    kind = REGISTER_KIND[array.element.name]
    owner = owner_predicate(state, state.layouts[op.operands[0]])
    places: dict[tuple[Operand, ...], tuple[str, str]] = {(): (b.op("mov.b64", "rd", 0), owner or "")}
    for register, value in enumerate(state.values[op.operands[0]]):
        own = tuple(axis[register] for axis in indices)
        for rank in range(1, len(own) + 1):
            if own[:rank] not in places:
                places[own[:rank]] = _place(state, array.dims[rank - 1], own[rank - 1], *places[own[: rank - 1]])
        element, inside = places[own]
        pointer = b.op("mad.lo.s64", "rd", element, size_bytes(array.element), state.pointer(array))
        b.do(f"st.global.b{BITS[kind]}", memory(pointer), in_register(state, value, kind), when=inside)


def _place(state: State, dim: str, index: Operand, before: str, inside: str) -> tuple[str, str]:
    """(number, predicate) of an element one axis further on, where those of the axes before are known."""
    b, index = state.builder, in_register(state, index, "r")
    size = state.size(dim)
    wide, row = b.op("cvt.s64.s32", "rd", index), b.op("cvt.s64.s32", "rd", size)
    number = b.op("mad.lo.s64", "rd", before, row, wide)
    if not inside:
        return number, b.op("setp.lt.u32", "p", index, size)
    return number, b.op("setp.lt.and.u32", "p", index, size, inside)
