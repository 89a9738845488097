"""Where a module's variables and functions lie, and what they hold before the first launch."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Kernel, Relocation, Syntax, Variable

Array = np.ndarray[Any, np.dtype[Any]]

REGION_SHIFT = 40
FIRST_ARRAY = 2  # core.h: region 1 holds the windows on shared and local memory
SHARED_BASE = 1024  # core.h: where a block's shared memory starts
LOCAL_BASE = 16  # core.h: where a thread's local memory starts
FUNCTION_BASE = 1 << 20  # addresses of functions are in region 0, where nothing can be read
FUNCTION_BYTES = 16


@dataclass(frozen=True)
class Place:
    """Where a variable lies: its address in a state space, its size, and the bytes of one element."""

    address: int
    space: str
    size: int
    unit: int


def unit_of(variable: Variable) -> int:
    return max(TYPE_BITS[variable.type] // 8, 1) * variable.elements


def place(variables: list[Variable]) -> tuple[list[tuple[Variable, int]], int]:
    """Offsets of variables one after another, each aligned, and their total size."""
    placed, end = [], 0
    for variable in variables:
        end = -(-end // variable.alignment) * variable.alignment
        placed.append((variable, end))
        end += variable.size
    return placed, end


def global_places(syntax: Syntax) -> dict[Variable, Place]:
    """Every .global and .const variable has a region of its own, so that an overrun hits nothing else."""
    return {
        variable: Place((FIRST_ARRAY + n) << REGION_SHIFT, "global", variable.size, unit_of(variable))
        for n, variable in enumerate(syntax.globals)
    }


def shared_places(syntax: Syntax, reached: list[Kernel]) -> tuple[dict[Variable, Place], int]:
    """The shared variables of a kernel and the functions that it reaches, and their bytes.

    Extern arrays all start where the others end.
    """
    words = set().union(*(syntax.mentions(function) for function in reached)) if syntax.shared else set()
    variables = [variable for variable in syntax.shared if variable.name in words]
    for function in reached:
        for scope in function.scopes:
            variables += [variable for variable in scope.variables.values() if variable.space == "shared"]
    placed, end = place([variable for variable in variables if variable.size])
    dynamic = [variable for variable in variables if not variable.size]
    if dynamic:
        end = -(-end // 128) * 128
    placed += [(variable, end) for variable in dynamic]
    places = {v: Place(SHARED_BASE + offset, "shared", v.size, unit_of(v)) for v, offset in placed}
    return places, end


def function_addresses(syntax: Syntax) -> dict[str, int]:
    return {name: FUNCTION_BASE + FUNCTION_BYTES * n for n, name in enumerate(syntax.functions)}


def initial_contents(syntax: Syntax) -> list[Array]:
    """The bytes of each of `syntax.globals`, those of .const read-only."""
    places, functions = global_places(syntax), function_addresses(syntax)
    contents = []
    for variable in syntax.globals:
        try:
            data = np.zeros(variable.size, np.uint8)
        except MemoryError:
            raise syntax.error(
                f"no memory for the {variable.size} bytes of {variable.name}", variable.position
            ) from None
        data[: len(variable.values)] = np.frombuffer(variable.values, np.uint8)
        for relocation in variable.relocations:
            value = _pointed(syntax, relocation, places, functions)
            bytes_ = np.frombuffer(value.to_bytes(relocation.size, "little"), np.uint8)
            data[relocation.offset : relocation.offset + relocation.size] = bytes_
        contents.append(data)
    return contents


def _pointed(syntax: Syntax, relocation: Relocation, places: dict[Variable, Place], functions: dict[str, int]) -> int:
    variable = syntax.names.get(relocation.name)
    if variable in places:
        address = places[variable].address
    elif relocation.name in functions:
        address = functions[relocation.name]
    else:
        raise syntax.error(f"{relocation.name} is no variable in .global or .const", relocation.position)
    address += relocation.addend
    if relocation.mask is not None:
        return (address & relocation.mask) >> (relocation.mask & -relocation.mask).bit_length() - 1
    return address & ((1 << 8 * relocation.size) - 1)


DTYPES = {f"{kind}{bits}": f"<{'i' if kind == 's' else 'u'}{bits // 8}" for kind in "bus" for bits in (8, 16, 32, 64)}
DTYPES |= {"f16": "<f2", "f32": "<f4", "f64": "<f8", "bf16": "<u2", "f16x2": "<u4", "bf16x2": "<u4", "b128": "V16"}


def view(variable: Variable, content: Array) -> Array:
    """The bytes of a variable as an array of its type and extents."""
    shape = (*variable.extents, variable.elements) if variable.elements > 1 else variable.extents
    return content.view(DTYPES[variable.type]).reshape(shape)
