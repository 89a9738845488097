"""Layouts: linear maps over GF(2) from the bits of named inputs to the bits of named outputs.

A layout says where things are. Its inputs are places (register, lane, warp, byte, bank ...), its outputs are indices
(m, n, k, plane ...), or the other way round; every input bit owns a *basis*, the output coordinates it contributes,
and an input's image is the XOR of the bases of its set bits. MMA fragments, ldmatrix, swizzles, vector loads and packed
tiles are all of this form, so that "may this load be vectorised", "does this atom divide that tile" and "which lanes
must exchange data" become compositions, products, divisions and inverses here.

The notation lists, for every input, the image of its bits from low to high:

    (register: k0 m3 k3, lane: k1 k2 m0 m1 m2) -> (m 4, k 4)        # the A fragment of mma.m16n8k16, 16-bit elements

where `m3` is bit 3 of m, `k0^m3` a XOR of two bits, and `0` a bit that changes nothing (a broadcast).
Source of the idea: Zhou et al., "Linear Layouts", arXiv:2505.23819.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowbitvm.errors import LowbitvmError

Dims = tuple[tuple[str, int], ...]  # (name, bits), in the order of printing
Bits = dict[str, list[int]]  # name -> positions among all bits of one side, low bit first
Orders = Mapping[str, Sequence[int]]
Names = Mapping[str, str]

_NAME = re.compile(r"[A-Za-z_]([A-Za-z0-9_]*[A-Za-z_])?")  # no digit at the end: `k0` is bit 0 of k


def _invalid(problem: str, fix: str) -> LowbitvmError:
    return LowbitvmError("LAYOUT_INVALID", problem, fix)


def _count(dims: Dims) -> int:
    return sum(bits for _, bits in dims)


def _positions(dims: Dims) -> Bits:
    """(("m", 2), ("k", 1)) -> {"m": [0, 1], "k": [2]}."""
    result: Bits = {}
    start = 0
    for name, bits in dims:
        result[name] = list(range(start, start + bits))
        start += bits
    return result


def _pack(dims: Dims, coords: Iterable[int]) -> int:
    """Coordinates in the order of `dims` -> one integer, the first dim in the low bits: m=1, k=1 -> 0b101 above."""
    packed = shift = 0
    for (_, bits), coord in zip(dims, coords, strict=True):
        packed |= coord << shift
        shift += bits
    return packed


def _unpack(dims: Dims, packed: int) -> tuple[int, ...]:
    coords = []
    for _, bits in dims:
        coords.append(packed & ((1 << bits) - 1))
        packed >>= bits
    return tuple(coords)


def _check_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
    for name in names:
        if name not in set(known):
            raise _invalid(f"{name!r} is no {what} of the layout, which has {sorted(known)}", "name one that exists")


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Layout:
    """A linear map from input bits to output bits, immutable and hashable.

    `outs` maps each output to its number of bits. `bases[dim][i]` is the image of bit i of input `dim`: output
    coordinates by name (missing ones are 0) or as a tuple in the order of `outs`. Two layouts are equal when they map
    the same named inputs to the same named outputs in the same way; the order of dims only matters to printing.

        Layout({"lane": [{"k": 1}, {"m": 1}]}, {"m": 1, "k": 1})       # lane 3 -> m 1, k 1

    Raises LAYOUT_INVALID for a name that is no identifier or ends in a digit, a basis that names an unknown output, and
    a coordinate that does not fit its output.
    """

    _ins: Dims
    _outs: Dims
    _columns: tuple[int, ...]  # the packed image of each input bit

    def __init__(
        self, bases: Mapping[str, Sequence[Mapping[str, int] | tuple[int, ...]]], outs: Mapping[str, int]
    ) -> None:
        for side in (bases, outs):
            _named((name, []) for name in side)
        out_dims = tuple(outs.items())
        if any(bits < 0 for bits in outs.values()):
            raise _invalid(f"outputs {dict(outs)} have a negative number of bits", "give 0 or more bits")
        columns = []
        for name, images in bases.items():
            for i, image in enumerate(images):
                coords = tuple(image.get(out, 0) for out in outs) if isinstance(image, Mapping) else tuple(image)
                known = all(out in outs for out in image) if isinstance(image, Mapping) else len(image) == len(outs)
                if not known or any(not 0 <= coord < 1 << outs[out] for out, coord in zip(outs, coords, strict=True)):
                    raise _invalid(
                        f"bit {i} of {name!r} has the image {image}, the outputs have the bits {dict(outs)}",
                        "give every image one coordinate below 2**bits per output",
                    )
                columns.append(_pack(out_dims, coords))
        self._set(tuple((name, len(images)) for name, images in bases.items()), out_dims, tuple(columns))

    def _set(self, ins: Dims, outs: Dims, columns: tuple[int, ...]) -> None:
        for field, value in (("_ins", ins), ("_outs", outs), ("_columns", columns)):
            object.__setattr__(self, field, value)

    @cached_property
    def _key(self) -> tuple[object, ...]:
        """The canonical form that == and hash compare: both sides in the order of their names."""
        outs = sorted(self._outs)
        bases = {
            name: [tuple(image[out] for out, _ in outs) for image in images] for name, images in self.bases.items()
        }
        return tuple(sorted((name, tuple(images)) for name, images in bases.items())), tuple(outs)

    @classmethod
    def _make(cls, ins: Dims, outs: Dims, columns: Iterable[int]) -> "Layout":
        layout = cls.__new__(cls)
        layout._set(ins, outs, tuple(columns))
        return layout

    # -- making ----------------------------------------------------------------------------------------------------

    @staticmethod
    def identity(dim_in: str, bits: int, dim_out: str) -> "Layout":
        """identity("lane", 2, "k") -> (lane: k0 k1) -> (k 2)."""
        return Layout({dim_in: [(1 << i,) for i in range(bits)]}, {dim_out: bits})

    @staticmethod
    def zeros(dim_in: str, bits: int, outs: Mapping[str, int] | None = None) -> "Layout":
        """A broadcast: zeros("lane", 2, {"k": 1}) -> (lane: 0 0) -> (k 1)."""
        return Layout({dim_in: [{}] * bits}, outs or {})

    @staticmethod
    def from_function(
        function: Callable[..., Mapping[str, ArrayLike]], ins: Mapping[str, int], outs: Mapping[str, int]
    ) -> "Layout":
        """The layout that a closed form over integers describes, checked at every point.

            from_function(lambda lane: {"row": lane >> 1, "col": lane & 1}, {"lane": 2}, {"row": 1, "col": 1})
            -> (lane: col0 row0) -> (row 1, col 1)

        `function` takes the inputs by name as int64 arrays and returns every output by name. Raises LAYOUT_INVALID when
        it does not, or is not linear over GF(2).
        """
        index = np.arange(1 << sum(ins.values()), dtype=np.int64)
        points, start = {}, 0
        for name, bits in ins.items():
            points[name] = index >> start & (1 << bits) - 1
            start += bits
        images = {out: np.broadcast_to(image, index.shape) for out, image in function(**points).items()}
        if images.keys() != outs.keys():
            raise _invalid(f"the function returns {list(images)}, the outputs are {list(outs)}", "return each of them")
        bit = iter(1 << i for i in range(start))
        columns = {name: [next(bit) for _ in range(bits)] for name, bits in ins.items()}
        bases = {name: [{o: int(images[o][at]) for o in images} for at in places] for name, places in columns.items()}
        layout = Layout(bases, outs)
        if any((layout.apply(**points)[out] != images[out]).any() for out in outs):
            raise _invalid("the function is not linear over GF(2)", "use shifts, masks and XOR of whole bits only")
        return layout

    @staticmethod
    def parse(text: str) -> "Layout":
        """The inverse of str(): parse("(lane: k0 m0^k1) -> (m 1, k 2)").

        Raises LAYOUT_INVALID for text that is not the notation.
        """
        match = re.fullmatch(r"\s*\(([^()]*)\)\s*->\s*\(([^()]*)\)\s*", text)
        try:
            if match is None:
                raise ValueError("no (...) -> (...)")
            halves = [[part.strip() for part in half.split(",") if part.strip()] for half in match.groups()]
            outs = {name: int(bits) for name, bits in (part.split() for part in halves[1])}
            bases = {}
            for name, terms in (part.split(":") for part in halves[0]):
                bases[name.strip()] = [_parse_image(term) for term in terms.split()]
        except ValueError as error:
            raise _invalid(
                f"{text!r} is no layout ({error})", "write (register: k0 m3^k1, ...) -> (m 4, ...)"
            ) from None
        return Layout(bases, outs)

    # -- looking ---------------------------------------------------------------------------------------------------

    @property
    def ins(self) -> dict[str, int]:
        """Bits of each input."""
        return dict(self._ins)

    @property
    def outs(self) -> dict[str, int]:
        """Bits of each output."""
        return dict(self._outs)

    @property
    def bases(self) -> dict[str, list[dict[str, int]]]:
        """bases[dim][i]: the output coordinates that bit i of input `dim` contributes."""
        names = [name for name, _ in self._outs]
        images = [dict(zip(names, _unpack(self._outs, column), strict=True)) for column in self._columns]
        return {name: [images[at] for at in places] for name, places in _positions(self._ins).items()}

    def __call__(self, **coords: int) -> dict[str, int]:
        """The image of one point; inputs that are not given are 0.

        (lane: k0 m0): layout(lane=3) -> {"m": 1, "k": 1}. Raises LAYOUT_INVALID for an unknown input and
        ARGUMENT_INVALID for a coordinate out of range.
        """
        packed = 0
        for name, places in self._checked(coords):
            for i, place in enumerate(places):
                packed ^= self._columns[place] if coords.get(name, 0) >> i & 1 else 0
        return dict(zip(self.outs, _unpack(self._outs, packed), strict=True))

    def apply(self, **coords: ArrayLike) -> dict[str, NDArray[np.int64]]:
        """`__call__` over integer arrays, which broadcast against each other: apply(lane=np.arange(4))["k"]."""
        arrays = {name: np.asarray(coord, np.int64) for name, coord in coords.items()}
        packed = np.zeros(np.broadcast_shapes(*(array.shape for array in arrays.values())), np.int64)
        for name, places in self._checked(arrays):
            for i, place in enumerate(places if name in arrays else []):
                packed = packed ^ (arrays[name] >> i & 1) * self._columns[place]
        images, start = {}, 0
        for name, bits in self._outs:
            images[name] = packed >> start & (1 << bits) - 1
            start += bits
        return images

    def _checked(self, coords: Mapping[str, int | NDArray[np.int64]]) -> Iterable[tuple[str, list[int]]]:
        """The inputs with their bits, once `coords` are known to be inside them."""
        _check_names(coords, self.ins, "input")
        for name, coord in coords.items():
            if np.any(coord >> self.ins[name] != 0):  # a negative coordinate shifts to -1
                fix = f"pass coordinates in 0..{(1 << self.ins[name]) - 1}"
                raise LowbitvmError("ARGUMENT_INVALID", f"{name} = {coord} is outside the layout {self}", fix)
        return _positions(self._ins).items()

    @property
    def rank(self) -> int:
        """Independent output bits: rank of (lane: k0 k0) is 1."""
        return len(self._echelon())

    @property
    def is_injective(self) -> bool:
        """No two inputs share an image (no broadcast)."""
        return self.rank == len(self._columns)

    @property
    def is_surjective(self) -> bool:
        """Every output coordinate is the image of some input."""
        return self.rank == _count(self._outs)

    @property
    def is_bijective(self) -> bool:
        """Each output coordinate is the image of exactly one input."""
        return self.is_injective and self.is_surjective

    def vector_width(
        self, in_dim: str = "register", *, out_dim: str, element_bits: int = 16, max_bits: int = 128
    ) -> int:
        """How many elements one aligned access may move: the low bits of `in_dim` walk along `out_dim` one by one.

        (register: k0 k1 m0, lane: k2 ...) with 16-bit elements -> 4. An input bit elsewhere that changes the low bits
        of `out_dim` would misalign the access and so narrows it.
        """
        _check_names([in_dim], self.ins, "input")
        _check_names([out_dim], self.outs, "output")
        bases = self.bases
        width = 1
        for i, image in enumerate(bases[in_dim]):
            wider = 2 * width * element_bits <= max_bits
            if not wider or image != {**dict.fromkeys(image, 0), out_dim: 1 << i}:
                break
            width *= 2
        walked = width.bit_length() - 1
        others = [image for name in bases for i, image in enumerate(bases[name]) if name != in_dim or i >= walked]
        while any(image[out_dim] % width for image in others):
            width //= 2
        return width

    # -- combining -------------------------------------------------------------------------------------------------

    def __mul__(self, other: "Layout") -> "Layout":
        """The product: `self` on the low bits of every shared dim, `other` on the bits above.

        (lane: k0) -> (k 1)  *  (lane: k0 m0) -> (k 1, m 1)   ->   (lane: k0 k1 m0) -> (k 2, m 1)
        """
        mine, theirs, low = self.bases, other.bases, self.outs
        bases = {
            name: mine.get(name, [])
            + [{out: at << low.get(out, 0) for out, at in image.items()} for image in theirs.get(name, [])]
            for name in mine | theirs
        }
        outs = {name: low.get(name, 0) + other.outs.get(name, 0) for name in low | other.outs}
        return Layout(bases, outs)

    def divide(self, atom: "Layout") -> "Layout":
        """The quotient Q with atom * Q == self.

        (lane: k0 k1 m0) -> (k 2, m 1)  divided by  (lane: k0) -> (k 1)   ->   (lane: k0 m0) -> (k 1, m 1)

        Every dim of `self` stays, if need be with 0 bits. Raises LAYOUT_INDIVISIBLE when there is no such Q.
        """
        ins, outs = _positions(self._ins), _positions(self._outs)
        quotient = self._gather(
            {name: places[atom.ins.get(name, 0) :] for name, places in ins.items()},
            {name: places[atom.outs.get(name, 0) :] for name, places in outs.items()},
        )
        if atom * quotient != self:
            raise LowbitvmError(
                "LAYOUT_INDIVISIBLE",
                f"{self} is no multiple of {atom}: the nearest product is {atom * quotient}",
                "choose another atom, or a layout whose low bits are the atom's",
            )
        return quotient

    def compose(self, other: "Layout") -> "Layout":
        """`other` after `self`: result(x) = other(self(x)).

        (lane: k0^m0 m0) -> (m 1, k 1)  then  (m: bank0, k: bank1) -> (bank 2)
        ->   (lane: bank0^bank1 bank0) -> (bank 2)

        Raises LAYOUT_INVALID unless the outputs of `self` are the inputs of `other`, by name and bits.
        """
        if self.outs != other.ins:
            fix = "rename, slice or multiply one of them until they agree"
            raise _invalid(f"the outputs {self.outs} are not the inputs {other.ins} of the layout to apply next", fix)
        at = [place for name, _ in self._outs for place in _positions(other._ins)[name]]
        columns = []
        for column in self._columns:
            image = 0
            for i, place in enumerate(at):
                image ^= other._columns[place] if column >> i & 1 else 0
            columns.append(image)
        return Layout._make(self._ins, other._outs, columns)

    def right_inverse(self) -> "Layout":
        """An R with self(R(y)) == y for every output y; input bits that are not needed stay 0.

        (lane: k0 k1, warp: 0) -> (k 2)   ->   (k: lane0 lane1) -> (lane 2, warp 1)

        Raises LAYOUT_NOT_INVERTIBLE when some output is nobody's image.
        """
        echelon = self._echelon()
        if len(echelon) < _count(self._outs):
            raise LowbitvmError(
                "LAYOUT_NOT_INVERTIBLE",
                f"{self} reaches {len(echelon)} of {_count(self._outs)} output bits",
                "drop the outputs that nothing reaches",
            )
        columns = []
        for i in range(_count(self._outs)):
            rest, inputs = 1 << i, 0
            while rest:
                vector, sources = echelon[rest.bit_length() - 1]
                rest, inputs = rest ^ vector, inputs ^ sources
            columns.append(inputs)
        return Layout._make(self._outs, self._ins, columns)

    def inverse(self) -> "Layout":
        """The map back: (lane: k0 m0) -> (m 1, k 1) becomes (m: lane1, k: lane0) -> (lane 2).

        Raises LAYOUT_NOT_INVERTIBLE when the layout is not bijective.
        """
        if not self.is_injective:
            raise LowbitvmError(
                "LAYOUT_NOT_INVERTIBLE",
                f"{self} maps {len(self._columns)} input bits to {self.rank} independent output bits",
                "slice the broadcast inputs away or take right_inverse()",
            )
        return self.right_inverse()

    def _echelon(self) -> dict[int, tuple[int, int]]:
        """Leading bit -> (output vector, the set of input bits whose bases XOR to it)."""
        rows: dict[int, tuple[int, int]] = {}
        for _, places in sorted(_positions(self._ins).items()):  # sorted: equal layouts have equal right inverses
            for place in places:
                vector, sources = self._columns[place], 1 << place
                while vector and vector.bit_length() - 1 in rows:
                    known, theirs = rows[vector.bit_length() - 1]
                    vector, sources = vector ^ known, sources ^ theirs
                if vector:
                    rows[vector.bit_length() - 1] = vector, sources
        return rows

    # -- rearranging bits ------------------------------------------------------------------------------------------

    def _gather(self, ins: Bits, outs: Bits) -> "Layout":
        """The layout whose input and output bits are these of the present ones."""
        sources = [place for places in outs.values() for place in places]
        columns = [self._columns[at] for places in ins.values() for at in places]
        images = [sum((column >> source & 1) << i for i, source in enumerate(sources)) for column in columns]
        new_ins, new_outs = (tuple((name, len(places)) for name, places in side.items()) for side in (ins, outs))
        return Layout._make(new_ins, new_outs, images)

    def slice(self, **bits: int | tuple[int, int]) -> "Layout":
        """Restrict inputs to some of their bits: a count of low bits, or (start, stop); the others are 0.

        (register: k0 k1, lane: m0).slice(register=1)        -> (register: k0, lane: m0)
        (register: k0 k1, lane: m0).slice(register=(1, 2))   -> (register: k1, lane: m0)
        """
        _check_names(bits, self.ins, "input")
        ins = _positions(self._ins)
        for name, kept in bits.items():
            start, stop = (0, kept) if isinstance(kept, int) else kept
            if not 0 <= start <= stop <= len(ins[name]):
                raise _invalid(
                    f"bits {start}..{stop} of {name!r} are not in 0..{len(ins[name])}", "slice inside the dim"
                )
            ins[name] = ins[name][start:stop]
        return self._gather(ins, _positions(self._outs))

    def select(self, *ins: str) -> "Layout":
        """Keep these inputs, with the others 0: (register: k0, lane: m0).select("lane") -> (lane: m0)."""
        _check_names(ins, self.ins, "input")
        places = _positions(self._ins)
        return self._gather({name: places[name] for name in ins}, _positions(self._outs))

    def project(self, *outs: str) -> "Layout":
        """Keep these outputs: (lane: k0 m0) -> (m 1, k 1) to "k" is (lane: k0 0) -> (k 1)."""
        _check_names(outs, self.outs, "output")
        places = _positions(self._outs)
        return self._gather(_positions(self._ins), {name: places[name] for name in outs})

    def rename(self, ins: Names | None = None, outs: Names | None = None) -> "Layout":
        """rename(ins={"lane": "thread"}): (lane: k0) -> (k 1) becomes (thread: k0) -> (k 1)."""
        return self._gather(_renamed(self._ins, ins or {}), _renamed(self._outs, outs or {}))

    def reorder(self, ins: Sequence[str] | None = None, outs: Sequence[str] | None = None) -> "Layout":
        """Print the dims in another order: the result equals `self`."""
        sides = []
        for dims, order in ((self._ins, ins), (self._outs, outs)):
            places = _positions(dims)
            names = list(places) if order is None else list(order)
            if sorted(names) != sorted(places):
                raise _invalid(f"{tuple(names)} is no order of the dims {list(places)}", "name each dim once")
            sides.append({name: places[name] for name in names})
        return self._gather(sides[0], sides[1])

    def flatten(
        self, ins: Mapping[str, Sequence[str]] | None = None, outs: Mapping[str, Sequence[str]] | None = None
    ) -> "Layout":
        """Join dims into one, the first named in the low bits.

        flatten(ins={"thread": ("lane", "warp")}): (lane: k0, warp: k1) -> (k 2) becomes (thread: k0 k1) -> (k 2)
        """
        return self._gather(_flattened(self._ins, ins or {}), _flattened(self._outs, outs or {}))

    def split(
        self, ins: Mapping[str, Mapping[str, int]] | None = None, outs: Mapping[str, Mapping[str, int]] | None = None
    ) -> "Layout":
        """The inverse of flatten: cut a dim into named parts with their bits, low part first.

        split(ins={"thread": {"lane": 1, "warp": 1}}): (thread: k0 k1) -> (k 2) becomes (lane: k0, warp: k1) -> (k 2)
        """
        return self._gather(_divided(self._ins, ins or {}), _divided(self._outs, outs or {}))

    def permute_bits(self, ins: Orders | None = None, outs: Orders | None = None) -> "Layout":
        """Reorder bits inside a dim: the new bit i is the old bit order[i].

        permute_bits(ins={"lane": (1, 0)}): (lane: k0 m0) becomes (lane: m0 k0)
        """
        return self._gather(_permuted(self._ins, ins or {}), _permuted(self._outs, outs or {}))

    # -- printing and comparing ------------------------------------------------------------------------------------

    def __str__(self) -> str:
        positions = _positions(self._outs)
        names = {place: f"{name}{i}" for name, places in positions.items() for i, place in enumerate(places)}
        images = ["^".join(names[i] for i in names if column >> i & 1) or "0" for column in self._columns]
        ins = [" ".join([f"{name}:", *(images[at] for at in places)]) for name, places in _positions(self._ins).items()]
        return f"({', '.join(ins)}) -> ({', '.join(f'{name} {bits}' for name, bits in self._outs)})"

    def __repr__(self) -> str:
        images = [_unpack(self._outs, column) for column in self._columns]
        bases = {name: [images[at] for at in places] for name, places in _positions(self._ins).items()}
        return f"Layout({bases}, {self.outs})"

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Layout) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)


def _parse_image(term: str) -> dict[str, int]:
    """ "m0^k1" -> {"m": 1, "k": 2}; "0" -> {}."""
    image: dict[str, int] = {}
    for bit in term.split("^") if term != "0" else []:
        match = re.fullmatch(r"(.*\D)(\d+)", bit)
        if match is None:
            raise ValueError(f"{bit!r} names no bit")
        image[match[1]] = image.get(match[1], 0) ^ 1 << int(match[2])
    return image


def _named(pairs: Iterable[tuple[str, list[int]]]) -> Bits:
    result: Bits = {}
    for name, places in pairs:
        if name in result or not _NAME.fullmatch(name):
            raise _invalid(
                f"{name!r} cannot name a dim beside {list(result)}",
                "choose an identifier that is not taken and ends in no digit",
            )
        result[name] = places
    return result


def _renamed(dims: Dims, names: Names) -> Bits:
    places = _positions(dims)
    _check_names(names, places, "dim")
    return _named((names.get(name, name), bits) for name, bits in places.items())


def _flattened(dims: Dims, groups: Mapping[str, Sequence[str]]) -> Bits:
    places = _positions(dims)
    parts = [part for group in groups.values() for part in group]
    _check_names(parts, places, "dim")
    if len(set(parts)) < len(parts):
        raise _invalid(f"flattening by {dict(groups)} uses a dim twice", "name each dim once")
    joined = [(name, [place for part in group for place in places[part]]) for name, group in groups.items()]
    return _named([*joined, *((name, bits) for name, bits in places.items() if name not in parts)])


def _divided(dims: Dims, cuts: Mapping[str, Mapping[str, int]]) -> Bits:
    result = []
    _check_names(cuts, dict(dims), "dim")
    for name, places in _positions(dims).items():
        parts = cuts.get(name, {name: len(places)})
        if sum(parts.values()) != len(places):
            raise _invalid(f"the parts {dict(parts)} do not add up to the {len(places)} bits of {name!r}", "make them")
        start = 0
        for part, bits in parts.items():
            result.append((part, places[start : start + bits]))
            start += bits
    return _named(result)


def _permuted(dims: Dims, orders: Orders) -> Bits:
    places = _positions(dims)
    _check_names(orders, places, "dim")
    for name, order in orders.items():
        if sorted(order) != list(range(len(places[name]))):
            raise _invalid(
                f"{tuple(order)} is no permutation of the {len(places[name])} bits of {name!r}", "make it one"
            )
        places[name] = [places[name][i] for i in order]
    return places
