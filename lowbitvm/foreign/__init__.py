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
from lowbitvm.foreign.scheme import Foreign, Scheme, read, write

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


__all__ = ["NAMES", "Foreign", "pack", "unpack"]
