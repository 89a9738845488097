"""Weights made of several matrices of codes that one launch multiplies: terms of a sum, parts of k, and parts of n."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowbitvm import arrays, dtypes
from lowbitvm.dtypes import Array, i32
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits, pack_weights


@dataclass(frozen=True, eq=False)
class MixedWeight:
    """A weight (out_features, in_features) of several packed ones, which `lb.mixed_matmul` multiplies in one launch.

    parts: [part of the out_features][part of the in_features][term]; the number that a weight stands for is the sum of
        its terms'. All weights of one part of the in_features are multiplied with the same activations.
    rows: i32 per part, which out_feature each of its rows is; None for one part that has them all in order.
    branch: per part (rows, r), f16 or bf16: what dense activations are multiplied with beside the codes; or None.
    columns: i32 [r], which of the dense activations' columns the branch takes; None: all of them.

    Made by `mix_terms`, `mix_columns`, `mix_rows` and `mix_branch`.
    """

    parts: tuple[tuple[tuple[PackedDigits, ...], ...], ...]
    rows: tuple[Array, ...] | None = None
    branch: tuple[Array, ...] | None = None
    columns: Array | None = None

    @property
    def weights(self) -> list[PackedDigits]:
        """All that are multiplied."""
        return [weight for part in self.parts for block in part for weight in block]

    @property
    def blocks(self) -> tuple[PackedDigits, ...]:
        """One weight for each part of the in_features."""
        return tuple(block[0] for block in self.parts[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return (sum(part[0][0].rows for part in self.parts), sum(weight.columns for weight in self.blocks))

    @property
    def nbytes(self) -> int:
        """Bytes of all stored arrays."""
        others = [*(self.rows or ()), *(self.branch or ()), *([] if self.columns is None else [self.columns])]
        return sum(weight.nbytes for weight in self.weights) + sum(int(array.nbytes) for array in others)

    def __repr__(self) -> str:
        formats = " / ".join(
            " | ".join(" + ".join(str(w.format) for w in block) for block in part) for part in self.parts
        )
        return f"MixedWeight({formats!r}, {self.shape})"

    def to(self, device: Any) -> "MixedWeight":
        """The same weight of torch tensors on another device."""

        def moved(found: tuple[Array, ...] | None) -> tuple[Array, ...] | None:
            return None if found is None else tuple(array.to(device) for array in found)

        parts = tuple(tuple(tuple(w.to(device) for w in block) for block in part) for part in self.parts)
        columns = None if self.columns is None else self.columns.to(device)
        return MixedWeight(parts, moved(self.rows), moved(self.branch), columns)


Weight = PackedDigits | MixedWeight


def mix_terms(*weights: PackedDigits) -> MixedWeight:
    """The sum of weights of one shape, each with scales of its own, whose activations are read once for all of them.

    So W = s1 B1 + s2 B2 in bits or +-1 (dual binarisation, DB-LLM) or in -1, 0, 1 (trit planes, PTQTP).
    Raises SHAPE_MISMATCH, and FORMAT_UNSUPPORTED for weights of different activations or digits.
    """
    for weight in weights:
        _check_weight(weight)
        _check_alike(weights[0], weight)
        if weight.shape != weights[0].shape:
            raise LowbitvmError(
                "SHAPE_MISMATCH", f"terms of shapes {weights[0].shape} and {weight.shape}", "make them equal"
            )
    return MixedWeight(((tuple(weights),),))


def mix_columns(*weights: Weight) -> MixedWeight:
    """The weight whose in_features are those of all given ones, each with activations of its own, one after the other.

    So some in_features are multiplied with 8 bits and others with 4 (COMET). The parts may have other digits each.
    Raises SHAPE_MISMATCH where out_features differ, and ARGUMENT_INVALID for weights that have parts already.
    """
    mixed = [_plain(weight, "columns") for weight in weights]
    if any(len(weight.parts[0]) > 1 for weight in mixed):
        raise _already("in_features")
    sizes = [weight.shape[0] for weight in mixed]
    if len(set(sizes)) > 1:
        raise LowbitvmError("SHAPE_MISMATCH", f"parts of {sizes} out_features", "make them equal")
    return MixedWeight((tuple(weight.parts[0][0] for weight in mixed),))


def mix_rows(weights: Sequence[Weight], rows: Sequence[Array] | None = None) -> MixedWeight:
    """The weight whose out_features are those of all given ones: of different widths, in one launch (MixLLM).

    rows: for each of the weights which out_features its rows are, integers; every out_feature once. None: in order.
    Raises SHAPE_MISMATCH, ARGUMENT_INVALID, and FORMAT_UNSUPPORTED for weights of different activations or digits.
    """
    mixed = [_plain(weight, "rows") for weight in weights]
    for weight in mixed:
        if [block.columns for block in weight.blocks] != [block.columns for block in mixed[0].blocks]:
            raise LowbitvmError(
                "SHAPE_MISMATCH", f"weights of shapes {mixed[0].shape} and {weight.shape}", "make in_features equal"
            )
        for one, other in zip(mixed[0].blocks, weight.blocks, strict=True):
            _check_alike(one, other)
    counts = [weight.shape[0] for weight in mixed]
    like = mixed[0].weights[0].words
    if rows is None:
        ends = np.cumsum([0, *counts])
        rows = [np.arange(first, last) for first, last in itertools.pairwise(ends)]
    found = [np.asarray(arrays.host(row.cpu() if dtypes.is_tensor(row) else row)) for row in rows]
    if [row.shape for row in found] != [(count,) for count in counts]:
        shapes = [row.shape for row in found]
        raise LowbitvmError("SHAPE_MISMATCH", f"rows of shapes {shapes} for {counts} out_features", "give one for each")
    if not np.array_equal(np.sort(np.concatenate(found)), np.arange(sum(counts))):
        raise LowbitvmError(
            "ARGUMENT_INVALID", f"rows that are not every out_feature below {sum(counts)} once", "give a permutation"
        )
    return MixedWeight(tuple(weight.parts[0] for weight in mixed), tuple(_indices(like, row) for row in found))


def mix_branch(weight: Weight, branch: Array, columns: Array | None = None) -> MixedWeight:
    """The weight, and beside its codes a dense matrix b (out_features, r) for r dense activations: y += x b^T.

    With columns, integers (r), they are x[:, columns], in_features in full precision (LLM.int8(); the codes of one side
    at least are to be zeros there). Without, x is (m, r), such as x L of a branch of low rank (SVDQuant, LoRC).
    Raises SHAPE_MISMATCH, DTYPE_MISMATCH for other than f16 or bf16, ARGUMENT_INVALID for columns below 0.
    """
    weight = weight if isinstance(weight, MixedWeight) else mix_terms(weight)
    if weight.branch is not None:
        raise LowbitvmError("ARGUMENT_INVALID", "a second branch of one weight", "put both side by side into one")
    if branch.ndim != 2 or branch.shape[0] != weight.shape[0]:
        raise LowbitvmError(
            "SHAPE_MISMATCH", f"a branch of shape {tuple(branch.shape)} of {weight.shape}", "pass (out_features, r)"
        )
    if dtypes.of(branch) not in (dtypes.f16, dtypes.bf16):
        raise LowbitvmError("DTYPE_MISMATCH", f"a branch of {dtypes.of(branch)}", "use f16 or bf16")
    branch = arrays.detached(branch)
    if columns is not None:
        if tuple(columns.shape) != (branch.shape[1],):
            given = tuple(columns.shape)
            raise LowbitvmError(
                "SHAPE_MISMATCH", f"columns of shape {given}", f"pass ({branch.shape[1]},), one for each of the branch"
            )
        if not dtypes.of(columns).is_integer or (len(columns) and int(columns.min()) < 0):
            raise LowbitvmError("ARGUMENT_INVALID", "columns that are no in_features", "pass integers from 0 on")
        columns = arrays.contiguous(arrays.cast(columns, i32))
    parts = [branch] if weight.rows is None else [branch[rows] for rows in weight.rows]
    return replace(weight, branch=tuple(map(arrays.contiguous, parts)), columns=columns)


def _check_weight(weight: object) -> None:
    if not isinstance(weight, PackedDigits) or not weight.is_weight:
        what = repr(weight) if isinstance(weight, PackedDigits) else f"a {type(weight).__name__}"
        raise LowbitvmError("ARGUMENT_INVALID", f"{what} in a mixture", "pass what lb.pack_weights returns")


def _plain(weight: Weight, axis: str) -> MixedWeight:
    """A weight of one part, to be put beside others."""
    if not isinstance(weight, MixedWeight):
        return mix_terms(weight)
    if weight.rows is not None or weight.branch is not None:
        raise _already("out_features" if weight.rows is not None else "branches")
    return weight


def _already(what: str) -> LowbitvmError:
    return LowbitvmError(
        "ARGUMENT_INVALID",
        f"a weight that is mixed of {what} already",
        "mix terms first, then columns, then rows, and a branch at last",
    )


def _check_alike(one: PackedDigits, other: PackedDigits) -> None:
    """Raises unless two weights are multiplied with the same activations."""
    kinds = [(weight.format.act, weight.format.digits) for weight in (one, other)]
    if kinds[0] != kinds[1]:
        (act, digits), (other_act, other_digits) = kinds
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"weights for {act} in digits of {digits} and for {other_act} in digits of {other_digits}",
            "pack both for the same activations",
        )


def _indices(like: Array, index: Any) -> Array:
    index = np.ascontiguousarray(index, np.int32)
    return arrays.tensor(index).to(like.device) if dtypes.is_tensor(like) else index


def columns_by_width(widths: Sequence[int], block: int = 128) -> dict[int, np.ndarray[Any, np.dtype[np.int32]]]:
    """The in_features of each width, for widths of blocks of `block` in_features: the widest come first.

    Activations and weights are cut by them, and so blocks of one width are neighbours (COMET's permutation):
    `{8: columns8, 4: columns4}`, to be used as x[:, columns8] and weight[:, columns8].
    """
    places = np.arange(len(widths) * block, dtype=np.int32).reshape(len(widths), block)
    chosen = np.asarray(widths)
    return {int(width): places[chosen == width].reshape(-1) for width in sorted(set(widths), reverse=True)}


# -- complex numbers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ComplexWeight:
    """A matrix (out_features, in_features) of 1, -1, i and -i in two bits each.

    plus, minus: bp1, the real part plus and minus the imaginary one, which are +-1 both.
    """

    plus: PackedDigits
    minus: PackedDigits

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.plus.shape

    def to(self, device: Any) -> "ComplexWeight":
        """The same weight of torch tensors on another device."""
        return ComplexWeight(self.plus.to(device), self.minus.to(device))


def pack_complex(codes: Array, act: str = "i8", digits: str = "s8") -> ComplexWeight:
    """Packs a weight of the numbers 1, -1, i and -i (iFairy): complex, (out_features, in_features).

    act: the code type of the activations' real and imaginary parts; digits: as in Format.
    Raises SHAPE_MISMATCH, CODES_OUT_OF_RANGE, and what Format raises.
    """
    fmt = Format("bp1", act=act, digits=digits)
    if codes.ndim != 2:
        shape = tuple(codes.shape)
        raise LowbitvmError("SHAPE_MISMATCH", f"codes of shape {shape}", "pass (out_features, in_features)")
    codes = arrays.detached(codes)
    host = np.asarray(codes.resolve_conj().cpu().numpy() if dtypes.is_tensor(codes) else codes)
    if not np.isin(host, (1, -1, 1j, -1j)).all():
        raise LowbitvmError("CODES_OUT_OF_RANGE", "complex codes other than 1, -1, i and -i", "round them to these")
    parts = (host.real + host.imag, host.real - host.imag)
    plus, minus = (pack_weights(_like_library(codes, part.astype(np.int8)), fmt) for part in parts)
    return ComplexWeight(plus, minus)


def _like_library(like: Array, array: Any) -> Array:
    return arrays.tensor(array).to(like.device) if dtypes.is_tensor(like) else array
