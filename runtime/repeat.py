"""Calls that are made again: which kernels they launch, with what, is known from the first of its kind.

A call makes its arrays and launches some kernels. Another one, on tensors of the same shapes, dtypes and devices and
with the same options, launches the same ones, at other addresses. So its launches are recorded; of every address they
were given it is found out which tensor's it was: one that the call was given, the result's, or what one of its kernels
stores and another reads. These last share one allocation from then on. A call whose tensors cannot be told apart by
their addresses, or that made some of the arrays in another way, is not remembered.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lowbitvm import dtypes
from lowbitvm.ir import walk
from lowbitvm.runtime.compiled import CompiledKernel, launches_dependent
from lowbitvm.runtime.launch import ALIGNMENT, KEPT, Launched, Ready, recorded, recording
from lowbitvm.runtime.workspace import workspace

APART = 256  # bytes: what the parts of the shared allocation are aligned to, as allocations of a GPU are
SPLIT = ("partials", "arrivals")  # arrays of the workspace


def all_tensors(arrays: Sequence[Any]) -> bool:
    """Whether arrays are torch's, those that there are."""
    return all(array is None or dtypes.is_tensor(array) for array in arrays)


def signature(tensors: Sequence[Any]) -> list[object]:
    """All that matters of tensors but their addresses."""
    return [None if t is None else (t.shape, t.dtype, t.device, t.is_contiguous()) for t in tensors]


@dataclass(frozen=True)
class Repeated:
    """The launches of a call.

    steps: with each address's place: which of the given tensors, the made ones and the workspace's two arrays it is
    of, and bytes from its start. made: shapes and options of new tensors, the `results` and then, if the kernels hand
    something on, what they share. split: the workspace's size.
    """

    steps: tuple[tuple[Ready, tuple[tuple[int, int], ...]], ...]
    made: tuple[tuple[tuple[int, ...], dict[str, Any]], ...]
    results: int
    split: tuple[tuple[int, int], int] | None

    def run(self, tensors: Sequence[Any]) -> list[Any] | None:
        """The results; None where an address is not aligned or a context gone: nothing that was done is of use then."""
        for ready, _ in self.steps:
            if not ready.usable():
                return None
        new = tensors[0].new_empty
        made = [new(*shape, **options) for shape, options in self.made]  # a tuple of sizes takes torch twice the time
        if self.split is None:
            done = self._launch((*tensors, *made))
        else:
            with workspace(tensors[0], *self.split) as shared:
                done = self._launch((*tensors, *made, *shared))
        return made[: self.results] if done else None

    def _launch(self, given: Sequence[Any]) -> bool:
        for ready, places in self.steps:
            if not ready.launch([given[at].data_ptr() + offset for at, offset in places]):
                return False
        return True


class Calls:
    """The calls of a function that are remembered."""

    def __init__(self) -> None:
        self.known: dict[bool, dict[object, Repeated]] = {False: {}, True: {}}  # by whether launches are dependent

    def again(self, key: object, tensors: Sequence[Any]) -> list[Any] | None:
        """The results of a call that is known by its key; None for one that must be made as if for the first time.

        The first of the tensors makes the new ones.
        """
        known = self.known[launches_dependent()].get(key)
        return None if known is None or recording() else known.run(tensors)

    def first(self, key: object, tensors: Sequence[Any], call: Callable[[], Any], results: Callable[[Any], Any]) -> Any:
        """Makes a call, returns what it does, and remembers it; `results` gives its new tensors."""
        if recording():  # it is part of a call that is remembered
            return call()
        with recorded() as launched:
            returned = call()
        repeated = _repeated(launched, tensors, results(returned)) if launched else None
        known = self.known[launches_dependent()]
        if repeated is not None:
            if len(known) >= KEPT:
                known.clear()
            known[key] = repeated
        return returned


def _repeated(launched: Sequence[Launched], tensors: Sequence[Any], results: Sequence[Any]) -> Repeated | None:
    """How a call is made again; None where that is not sure."""
    given = [*tensors, *results]
    present = [tensor for tensor in given if tensor is not None]
    places = {tensor.data_ptr(): (at, 0) for at, tensor in enumerate(given) if tensor is not None}
    if len(places) < len(present) or any(place == 0 or place % ALIGNMENT for place in places):
        return None
    handed, split, steps = 0, None, []
    for ready, arguments in launched:
        stored, found = _stored(ready.kernel), []
        for name, part in ready.kernel.array_parts():
            array: Any = arguments[name] if part is None else getattr(arguments[name], part)
            if name in SPLIT:
                found.append((SPLIT.index(name) - len(SPLIT), 0))
                continue
            if array.data_ptr() not in places:
                if name not in stored:
                    return None
                places[array.data_ptr()] = len(given), handed
                handed += -(-array.nbytes // APART) * APART
            found.append(places[array.data_ptr()])
        if SPLIT[0] in arguments:
            rows, columns = arguments[SPLIT[0]].shape
            split = (rows, columns), len(arguments[SPLIT[1]])
        steps.append((ready, tuple(found)))
    own = present[0].dtype
    made = [(tuple(one.shape), {} if one.dtype == own else {"dtype": one.dtype}) for one in results]
    made += [((handed,), {"dtype": sys.modules["torch"].uint8})] if handed else []
    return Repeated(tuple(steps), tuple(made), len(results), split)


def _stored(kernel: CompiledKernel) -> set[str]:
    ops = walk(kernel.program.body)
    return {op.array.name for op in ops if op.kind in ("store", "atomic_add") and op.array is not None}
