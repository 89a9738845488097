"""The launches that the tests make, kept as the corpus that the fuzzer mutates.

    pytest -p tests.fuzz.corpus --corpus build/fuzz/corpus tests/test_emulator_kernels.py

A case is what `Module.launch` was called with; large ones are left out, and one is kept for each PTX text and entry.
"""

import functools
import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from lowbitvm.runtime.emulator.bind import Output
from lowbitvm.runtime.emulator.launch import Module

LARGEST_TEXT, LARGEST_ARGUMENTS = 400_000, 1 << 20  # characters, bytes
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Case:
    """One launch. `args` are numbers, bytes, or (array, whether it is writable, whether it is an output)."""

    text: str
    entry: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple[Any, ...]
    shared: int
    arch: str | None

    def digest(self) -> str:
        return hashlib.sha256(f"{self.entry} {self.text}".encode()).hexdigest()[:16]


def load_corpus(folder: Path) -> list[Case]:
    """The cases of a folder, in the order of their file names."""
    return [pickle.loads(path.read_bytes()) for path in sorted(folder.glob("*.pickle"))]


def save(folder: Path, case: Case) -> None:
    path = folder / f"{case.digest()}.pickle"
    if not path.exists():
        temporary = path.with_suffix(f".{id(case)}")
        temporary.write_bytes(pickle.dumps(case))
        temporary.replace(path)


def _argument(value: Any) -> Any:
    array = value.array if isinstance(value, Output) else value
    if isinstance(array, np.ndarray) and array.ndim:
        return array.copy(), bool(array.flags.writeable), isinstance(value, Output)
    return value


def _small(text: str, args: tuple[Any, ...]) -> bool:
    arrays = [value.array if isinstance(value, Output) else value for value in args]
    size = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
    return len(text) <= LARGEST_TEXT and size <= LARGEST_ARGUMENTS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--corpus", type=Path, help="folder that receives the launches of the tests")


@pytest.fixture(autouse=True, scope="session")
def recorded_launches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Saves the arguments of each launch before it runs."""
    folder, launch = request.config.getoption("corpus").resolve(), Module.launch
    folder.mkdir(parents=True, exist_ok=True)

    @functools.wraps(launch)
    def recorded(
        module: Module,
        entry: str,
        grid: Any,
        block: Any,
        args: Any,
        *,
        shared: int = 0,
        arch: str | None = None,
        **options: Any,
    ) -> emulator.Report:
        if isinstance(grid, tuple) and isinstance(block, tuple) and _small(module.syntax.text, tuple(args)):
            values = tuple(_argument(value) for value in args)
            save(folder, Case(module.syntax.text, entry, grid, block, values, shared, arch))
        return launch(module, entry, grid, block, args, shared=shared, arch=arch, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Module, "launch", recorded)
        yield
