"""Conversion of other projects' packed weights to and from codes, scales and zero points, bit for bit.

`unpack` reads a checkpoint's tensors into a `Foreign`, `pack` writes them again; both apply one description of where
each bit lies (lowbitvm.foreign.bits), so that they are inverse to each other. `from_foreign` and `to_foreign` go on to
this package's own PackedWeight. docs/foreign.md lists the packings, their tensors and their options.
"""

from collections.abc import Mapping
from typing import Any

from lowbitvm.dtypes import Array
from lowbitvm.errors import LowbitvmError
from lowbitvm.foreign import floats, gguf, integers
from lowbitvm.foreign.arrays import argsort, consecutive, equal, shape_of
from lowbitvm.foreign.scheme import Foreign, Scheme, read, write
from lowbitvm.formats import Format
from lowbitvm.pack import PackedWeight
from lowbitvm.pack import pack as pack_codes

_SCHEMES: dict[str, Scheme] = {**integers.SCHEMES, **floats.SCHEMES, **gguf.SCHEMES}
NAMES: tuple[str, ...] = tuple(_SCHEMES)


def unpack(name: str, tensors: Mapping[str, Array], **options: Any) -> Foreign:
    """The weight that another project's tensors hold.

    name: one of NAMES. tensors: under the names of docs/foreign.md (what follows the layer's name in a checkpoint),
    numpy arrays or torch tensors on one device. options: what the tensors do not tell, see docs/foreign.md.

    Raises ARGUMENT_INVALID for unknown names, options and tensors and for missing ones, SHAPE_MISMATCH, DTYPE_MISMATCH
    and DEVICE_MISMATCH for tensors that are not as the packing has them, CODES_OUT_OF_RANGE for patterns without a
    meaning, GROUP_INDIVISIBLE for groups that span rows, FORMAT_UNSUPPORTED for widths that the packing has not.
    """
    scheme = _scheme(name, options)
    return read(name, scheme, tensors, options)


def pack(name: str, weight: Foreign, **options: Any) -> dict[str, Array]:
    """The tensors in which another project stores a weight: the inverse of `unpack`.

    Raises what `unpack` raises, and ARGUMENT_INVALID for a weight that the packing cannot hold.
    """
    scheme = _scheme(name, options)
    return write(name, scheme, weight, options)


def from_foreign(name: str, tensors: Mapping[str, Array], **options: Any) -> PackedWeight:
    """The PackedWeight that another project's tensors hold: `unpack`, then `lowbitvm.pack`, both without rounding but
    for the tables of bitsandbytes' fp4, which become f16.

    Raises what these two raise, and FORMAT_UNSUPPORTED for groups of different sizes.
    """
    weight = unpack(name, tensors, **options)
    permutation = None if weight.g_idx is None else _permutation(weight, weight.g_idx)
    parts = {"table": weight.table, "outer": weight.outer, "outer_zeros": weight.outer_zeros}
    given = {part: array for part, array in {**parts, "permutation": permutation}.items() if array is not None}
    packed = pack_codes(weight.codes, weight.scales, weight.zeros, Format.parse(weight.format or ""), **given)
    assert isinstance(packed, PackedWeight)
    return packed


def to_foreign(weight: PackedWeight, name: str, **options: Any) -> dict[str, Array]:
    """The tensors in which another project stores a PackedWeight: the inverse of `from_foreign`.

    Raises ARGUMENT_INVALID and SHAPE_MISMATCH for a weight that the packing cannot hold: another code type, other
    groups, or parts that only the checkpoint has (a scale that is quantised again); FORMAT_UNSUPPORTED for a weight in
    digits.
    """
    if not isinstance(weight, PackedWeight):
        problem = f"a {type(weight).__name__} is not stored in codes and scales as other projects have them"
        raise LowbitvmError("FORMAT_UNSUPPORTED", problem, "pack the codes in a format without act, as a PackedWeight")
    fmt, given = weight.format, weight.arguments()
    foreign = Foreign(
        given["codes"],
        given["scales"],
        fmt.dtype,
        zeros=given["zeros"],
        zero=fmt.zero,
        outer=given["outer"],
        outer_zeros=given["outer_zeros"],
        outers=fmt.outer,
        table=given["table"],
        tables=fmt.table,
        g_idx=None if given["permutation"] is None else _g_idx(given["permutation"], given["scales"]),
    )
    return pack(name, foreign, **options)


def _permutation(weight: Foreign, g_idx: Array) -> Array | None:
    """Which feature stands where once those of a group stand together, in order of the groups; None for all in place.

    Raises FORMAT_UNSUPPORTED when the groups differ in size.
    """
    in_features, groups = weight.shape[1], shape_of(weight.scales)[1]
    permutation = argsort(g_idx)
    together = g_idx[permutation]
    if weight.group is None or not equal(together, consecutive(weight.codes, in_features, groups)):
        problem = f"g_idx sorts {in_features} input features into {groups} groups of different sizes"
        raise LowbitvmError("FORMAT_UNSUPPORTED", problem, "quantise with one group size")
    return None if equal(g_idx, together) else permutation


def _g_idx(permutation: Array, scales: Array) -> Array:
    """The group of each feature: that of its place."""
    places = argsort(permutation)
    return consecutive(permutation, shape_of(permutation)[0], shape_of(scales)[1])[places]


def _scheme(name: str, options: Mapping[str, Any]) -> Scheme:
    if name not in _SCHEMES:
        problem = f"there is no packing called {name!r}"
        raise LowbitvmError("ARGUMENT_INVALID", problem, f"use one of {', '.join(NAMES)}")
    scheme = _SCHEMES[name]
    for option in options:
        if option not in scheme.options:
            problem = f"{name} has no option {option!r}"
            raise LowbitvmError("ARGUMENT_INVALID", problem, f"it has {', '.join(scheme.options) or 'none'}")
    return scheme


__all__ = ["NAMES", "Foreign", "from_foreign", "pack", "to_foreign", "unpack"]
