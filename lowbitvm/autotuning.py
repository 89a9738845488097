"""`lb.autotune`: DSL kernels that choose among configurations for each problem, by measuring or by the model."""

import hashlib
import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbitvm import arrays, dtypes, targets
from lowbitvm.dsl import Kernel
from lowbitvm.errors import LowbitvmError
from lowbitvm.integers import PackedDigits
from lowbitvm.pack import PackedWeight
from lowbitvm.runtime import driver, tuned
from lowbitvm.runtime.arguments import KINDS, LEGACY_STREAM, DeviceArray, adopt
from lowbitvm.runtime.compiled import CompiledKernel, compile_many, compile_program
from lowbitvm.runtime.emulator import EmulatorError
from lowbitvm.runtime.launch import Place, copying_gpu, emulated_target, launch, place_of, torch_stream
from lowbitvm.runtime.linear import disk_cache
from lowbitvm.runtime.search import MEASURED, search
from lowbitvm.runtime.trials import TOLERANCE, Trial, WrongResult
from lowbitvm.runtime.tuned import Record
from lowbitvm.targets import Target

if TYPE_CHECKING:
    from lowbitvm.runtime.emulator import Report

Config = dict[str, Any]
Candidate = tuple[Config, CompiledKernel]
Grid = Sequence[int] | Callable[[Mapping[str, Any]], Sequence[int]]
Prune = Callable[[Mapping[str, Any], Mapping[str, int], Target], bool]
DEFAULT_TARGET = "sm_80"  # of CPU arrays, where nothing names another
LEAST_S, MEASURE_S = 0.01, 0.3  # seconds of measuring a candidate


def autotune(
    *,
    space: Mapping[str, Sequence[Any]] | Sequence[Config],
    key: Sequence[str] | None = None,
    prune: Prune | None = None,
    reference: Callable[..., Any] | None = None,
    tolerance: float = TOLERANCE,
) -> Callable[[Kernel], "Autotuned"]:
    """Makes an `lb.kernel` choose its constants, and `warps`, from a space of configurations:

        @lb.autotune(space={"block": [256, 512, 1024], "warps": [4, 8]}, key=["n"])
        @lb.kernel(x=("n", lb.f16), out=("n", lb.f16))
        def scaled(x: lb.Tensor, out: lb.Tensor, *, block: int, alpha: float) -> None: ...

        scaled(lambda c: (-(-c["n"] // c["block"]),), {"x": x, "out": out}, alpha=0.5)

    `lb.tuning` says when it is tuned; without it a call takes what was found before, else the first configuration that
    can be compiled. With "off" it is always that.
    space: the values of each constant, of which all combinations are tried, or the configurations themselves.
    key: what the choice depends on: dimensions, whose sizes share a choice up to the next power of two, arguments, by
        their dtype or format, and constants, by their value; None: all dimensions and arguments. A choice is tuned on
        the arguments of the first call with its key.
    prune: a function of a configuration, the sizes and the Target, that is true where it need not be tried.
    reference: a function of the kernel's arguments and constants by name that returns what it shall store: an array, or
        arrays by name. It gets numpy arrays and packed matrices of such, with any numbers in what is stored to and not
        read. By default the interpreter says what blocks in the corners of the grid store.
    tolerance: how far a float may be from it, relative to the largest of its array, beside one rounding.
    Raises ARGUMENT_INVALID for names that the kernel does not have, an empty space, and values of other types.
    """
    for name, function in (("prune", prune), ("reference", reference)):
        if function is not None and not callable(function):
            raise LowbitvmError("ARGUMENT_INVALID", f"{name} is {function!r}", "give a function, or leave it out")
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise LowbitvmError("ARGUMENT_INVALID", f"the tolerance is {tolerance!r}", "give a number from 0 on")
    return lambda kernel: Autotuned(kernel, _combinations(space), key, prune, reference, tolerance)


def _combinations(space: Mapping[str, Sequence[Any]] | Sequence[Config]) -> list[Config]:
    try:
        if isinstance(space, Mapping):
            found = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
        else:
            found = [dict(config) for config in space]
    except (TypeError, ValueError) as error:
        fix = "give a dict of lists of values, or a list of dicts"
        raise LowbitvmError("ARGUMENT_INVALID", f"the space is {space!r} ({error})", fix) from error
    if not found or not all(found):
        raise LowbitvmError("ARGUMENT_INVALID", f"the space {space!r} has no configurations", "give values to try")
    return found


@dataclass(frozen=True)
class Best:
    """The configuration that a call uses, with the kernel compiled for it and the grid.

    how: "measured" on this GPU; "modelled", without one; "first": nothing was tuned. time_us: of a launch, None where
    how is "first".
    """

    config: Config
    how: Literal["measured", "modelled", "first"]
    time_us: float | None
    grid: tuple[int, ...]
    kernel: CompiledKernel = field(repr=False)


@dataclass(frozen=True)
class _Call:
    """A problem, and where it runs."""

    given: Mapping[str, Any]
    sizes: Mapping[str, int]
    elements: Mapping[str, Any]
    constants: Mapping[str, Any]
    divisible: Mapping[str, int]
    grid: Grid
    target: str
    place: Place | None
    streams: tuple[int, ...]

    def blocks(self, config: Config) -> tuple[int, ...]:
        """The grid of a configuration."""
        return _blocks(self.grid, {**self.sizes, **self.constants, **config})

    @property
    def is_capturing(self) -> bool:
        """Whether the launch would become a node of a CUDA graph."""
        if self.place is None:
            return False
        context = self.place.context
        return any(driver.is_capturing(stream, context) for stream in self.streams)


@dataclass(frozen=True)
class _Choice:
    """A configuration with what `Best` says of it; `state` of the tuning it was made in."""

    state: object
    config: Config
    record: Record | None
    kernel: CompiledKernel
    names: Mapping[str, Any]  # what a grid may be made of


class _Unusable(Exception):
    """Why a configuration is left out, where nothing has failed."""


class Autotuned:
    """A kernel that chooses its configuration; see `autotune`.

    kernel: the plain one. configs: all that there are. left_out: those that the last search refused, and why.
    """

    def __init__(
        self,
        kernel: Kernel,
        configs: Sequence[Config],
        key: Sequence[str] | None,
        prune: Prune | None,
        reference: Callable[..., Any] | None,
        tolerance: float,
    ) -> None:
        _check_names(kernel, configs, key)
        self.kernel, self.configs, self.key = kernel, list(configs), key
        self.__name__, self.__doc__ = kernel.__name__, kernel.__doc__
        self.left_out: list[tuple[Config, str]] = []
        self._prune, self._reference, self._tolerance = prune, reference, tolerance
        self._kind = f"kernel:{kernel.__name__}:{_digest(kernel, configs)}"
        self._compiled: dict[object, CompiledKernel] = {}
        self._choices: dict[object, _Choice] = {}

    def __call__(
        self,
        grid: Grid,
        arguments: Mapping[str, Any],
        /,
        *,
        target: str | None = None,
        divisible: Mapping[str, int] | None = None,
        stream: int | None = None,
        **constants: Any,
    ) -> "Report | None":
        """Launches the kernel in the configuration that `best` gives, as `lb.launch` does."""
        given, choice = self._chosen(grid, arguments, target, divisible or {}, stream, constants)
        return launch(choice.kernel, _blocks(grid, choice.names), given, stream=stream)

    def best(
        self,
        grid: Grid,
        arguments: Mapping[str, Any],
        /,
        *,
        target: str | None = None,
        divisible: Mapping[str, int] | None = None,
        stream: int | None = None,
        **constants: Any,
    ) -> Best:
        """The configuration for a call, which is tuned now if need be, but not launched; no argument is changed.

        grid: of blocks, or a function of the configuration that gives it, which also finds the sizes of dimensions and
        the constants by their names. target: of CPU arrays, by default that of LOWBITVM_DEVICE, else sm_80. divisible:
        as in `Kernel.compile`. constants: those of the kernel that are no part of the space.
        Raises TUNING_FAILED where no configuration can be used, what compiling raises where it raises the same for all,
        and what `lb.launch` raises; CONTEXT_LOST where a candidate's launch has ended its context.
        """
        _, choice = self._chosen(grid, arguments, target, divisible or {}, stream, constants)
        record, blocks = choice.record, _blocks(grid, choice.names)
        if record is None:
            return Best(choice.config, "first", None, blocks, choice.kernel)
        return Best(choice.config, record.how, record.time_us, blocks, choice.kernel)

    def _chosen(
        self,
        grid: Grid,
        arguments: Mapping[str, Any],
        target: str | None,
        divisible: Mapping[str, int],
        stream: int | None,
        constants: Mapping[str, Any],
    ) -> tuple[dict[str, Any], _Choice]:
        """The arguments as `lb.launch` knows them, without those that are left out, and what was chosen for them."""
        given = {n: v if type(v) in KINDS else adopt(v, stream) for n, v in arguments.items() if v is not None}
        signature = (
            *(target, stream, os.environ.get("LOWBITVM_DEVICE"), repr(constants), *divisible.items(), *given),
            *[KINDS[type(value)].signature(value) for value in given.values()],
        )
        choice = self._choices.get(signature)
        if choice is None or choice.state != tuned.state():
            call = self._call(grid, given, constants, target, divisible, stream)
            capturing = call.is_capturing
            choice = self._choose(call, capturing)
            if not capturing:  # within a capture nothing is tuned, which later calls may do
                self._choices[signature] = choice
        return given, choice

    def _call(
        self,
        grid: Grid,
        given: Mapping[str, Any],
        constants: Mapping[str, Any],
        target: str | None,
        divisible: Mapping[str, int],
        stream: int | None,
    ) -> _Call:
        both = constants.keys() & self.configs[0].keys()
        if both:
            problem = f"{self.__name__} is called with {sorted(both)}, which are tuned"
            raise LowbitvmError("ARGUMENT_INVALID", problem, "leave them out, or call lb.launch with a compiled kernel")
        self._check_arguments(given)
        place = place_of([part for value in given.values() for part in _parts(value)])
        copied_to = copying_gpu() if place is None else None
        place = place if copied_to is None else Place(copied_to, "host")
        found = emulated_target() if place is None else driver.device_target(place.index)
        sizes: dict[str, int] = {}
        elements: dict[str, Any] = {}
        for name, spec in self.kernel.specs.items():
            if name in given:
                sizes |= zip(spec.dims, map(int, given[name].shape), strict=False)
                packed = isinstance(given[name], PackedWeight | PackedDigits)
                elements[name] = given[name].format if packed else spec.dtype or dtypes.of(given[name])
        streams = () if place is None else _streams(given, place, stream)
        named = target or found or DEFAULT_TARGET
        return _Call(given, sizes, elements, constants, divisible, grid, named, place, streams)

    def _check_arguments(self, given: Mapping[str, Any]) -> None:
        wanted = self.kernel.specs.keys() - self.kernel.optional
        if not wanted <= given.keys() <= self.kernel.specs.keys():
            problem = f"{self.__name__} takes {list(self.kernel.specs)}, got {list(given)}"
            raise LowbitvmError("ARGUMENT_INVALID", problem, "pass exactly these")

    def _choose(self, call: _Call, capturing: bool) -> _Choice:
        state = tuned.state()
        device = tuned.device_of(call.target, None if call.place is None else call.place.index)
        record = tuned.decided(
            self._kind, self._problem(call), device, lambda budget: self._search(call, budget), capturing=capturing
        )
        kept = self._kept(call)
        preferred = [config for config in kept if record is not None and _plain(config) == record.config]
        failures: list[tuple[Config, Exception]] = []
        for config in [*preferred, *kept]:
            try:
                kernel = self._compile(call, config)
            except LowbitvmError as error:  # for a record: of a call that differs in what the key leaves out
                failures.append((config, error))
                continue
            names = {**call.sizes, **call.constants, **config}
            # what a search has found is in the database by now, which has changed its state
            state = tuned.state() if config in preferred else state
            return _Choice(state, config, record if config in preferred else None, kernel, names)
        raise self._nothing_left(failures)

    def _problem(self, call: _Call) -> dict[str, int | str]:
        """What the choice depends on, by name."""
        known: dict[str, int | str] = {f"size {dim}": tuned.bucket(size) for dim, size in call.sizes.items()}
        known |= {f"dtype {name}": str(element) for name, element in call.elements.items()}
        known |= {f"divisor {dim}": divisor for dim, divisor in call.divisible.items()}
        if self.key is None:
            return known
        known |= {
            f"constant {name}": repr(value) for name, value in {**self.kernel.constants, **call.constants}.items()
        }
        return {name: value for name, value in known.items() if name.partition(" ")[2] in self.key}

    def _kept(self, call: _Call) -> list[Config]:
        """The configurations that are worth a try."""
        target = targets.get(call.target)
        return [c for c in self.configs if self._prune is None or not self._prune(c, call.sizes, target)]

    def _compile(self, call: _Call, config: Config) -> CompiledKernel:
        options = {**call.constants, **config}
        key = (call.target, repr(options), *call.elements.items(), *sorted(call.divisible.items()))
        if key not in self._compiled:
            started = time.perf_counter()
            warps = options.pop("warps", 4)
            program = self.kernel.trace(divisible=call.divisible, **call.elements, **options)
            self._compiled[key] = compile_program(program, call.target, warps, started, disk_cache())
        return self._compiled[key]

    def _search(self, call: _Call, budget_s: float | None) -> Record | None:
        """The fastest configuration of those whose results are right; None where the grid is empty."""
        started = time.perf_counter()
        failures: list[tuple[Config, Exception]] = []
        candidates = self._usable(call, failures)
        if any(0 in call.blocks(config) for config, _ in candidates):
            return None
        left = None if budget_s is None else max(0.0, budget_s - (time.perf_counter() - started))
        reference = None if self._reference is None else self._expected(call)
        trial = Trial(call.given, call.place, streams=call.streams, reference=reference, tolerance=self._tolerance)
        try:
            found = _fastest(trial, call, candidates, failures, left)
        except LowbitvmError as error:
            if error.code != "TUNING_FAILED":
                raise
            raise self._nothing_left(failures) from error
        finally:
            trial.close()
        self.left_out = [(config, str(error)) for config, error in failures]
        return replace(found, seconds=time.perf_counter() - started)

    def _usable(self, call: _Call, failures: list[tuple[Config, Exception]]) -> list[Candidate]:
        """The different kernels that can be compiled, fit on an SM, and do not spill unless all do."""
        different: dict[object, Candidate] = {}
        for config in self._kept(call):
            try:
                kernel = self._compile(call, config)
                launched = (kernel.ptx, kernel.code.threads, kernel.shared, call.blocks(config))
                first, _ = different.setdefault(launched, (config, kernel))
                if first is not config:
                    raise _Unusable(f"it is the same kernel as {_text(first)}")
            except (LowbitvmError, _Unusable) as error:
                failures.append((config, error))
        compiled = list(different.values())
        with suppress(LowbitvmError):  # found again below, with its configuration
            compile_many([kernel for _, kernel in compiled], progress=sys.stderr.isatty())
        target, fitting = targets.get(call.target), []
        for config, kernel in compiled:
            try:
                if not target.blocks_per_sm(kernel.code.threads, kernel.registers, kernel.shared):
                    raise _Unusable(f"{kernel.registers} registers and {kernel.shared} shared bytes fit on no SM")
                fitting.append((config, kernel))
            except (LowbitvmError, _Unusable) as error:
                failures.append((config, error))
        spilling = [candidate for candidate in fitting if candidate[1].spills]
        if len(spilling) == len(fitting):
            return fitting
        failures += [(config, _Unusable(f"it spills {kernel.spills} bytes of a thread")) for config, kernel in spilling]
        return [candidate for candidate in fitting if not candidate[1].spills]

    def _expected(self, call: _Call) -> Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]:
        """The reference of a call: from arguments and the names of what is stored to what it should become."""

        def expected(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
            assert self._reference is not None
            result = self._reference(**given, **call.constants)
            found = result if isinstance(result, Mapping) else dict.fromkeys(names[:1], result)
            if found.keys() != set(names):
                problem = f"the reference of {self.__name__} gave {list(found)}, the kernel stores {list(names)}"
                raise LowbitvmError("ARGUMENT_INVALID", problem, "return all of these by name")
            return {name: _on_cpu(value) for name, value in found.items()}

        return expected

    def _nothing_left(self, failures: Sequence[tuple[Config, Exception]]) -> LowbitvmError:
        """The one error of all configurations, or what each of them had."""
        errors = {str(error): error for _, error in failures}
        if len(errors) == 1:
            (only,) = errors.values()
            if isinstance(only, LowbitvmError):
                return only
        reasons = "; ".join(f"{_text(config)}: {error}" for config, error in failures) or "prune leaves none to try"
        return LowbitvmError(
            "TUNING_FAILED",
            f"none of the {len(self.configs)} configurations of {self.__name__} can be used: {reasons}",
            "widen the space, or mend what these say",
        )


def _fastest(
    trial: Trial,
    call: _Call,
    candidates: Sequence[Candidate],
    failures: list[tuple[Config, Exception]],
    budget_s: float | None,
) -> Record:
    """What `search` finds among candidates; adds those that it refuses to `failures`. Raises what it raises."""
    by_plain = {repr(_plain(config)): (config, kernel) for config, kernel in candidates}
    on_gpu, count = call.place is not None, len(candidates)
    each = MEASURE_S if budget_s is None else min(MEASURE_S, max(LEAST_S, budget_s / max(1, count)))

    def predict(config: Config, kernel: CompiledKernel) -> float:
        if on_gpu and count <= MEASURED:
            return 0.0  # all of them are measured
        try:
            return trial.modelled(kernel, call.blocks(config), targets.get(call.target).gpu)
        except LowbitvmError as error:
            if on_gpu and error.code == "TOOL_MISSING":
                return 0.0
            raise

    def measure(config: Config, kernel: CompiledKernel) -> float:
        trial.verify(kernel, call.blocks(config))
        return trial.measured(kernel, call.blocks(config), each).median_us

    def asked(how: Callable[[Config, CompiledKernel], float], plain: Config) -> float | None:
        config, kernel = by_plain[repr(plain)]
        try:
            return how(config, kernel)
        except (WrongResult, EmulatorError, LowbitvmError) as error:
            if isinstance(error, LowbitvmError) and error.code == "CONTEXT_LOST":
                raise
            failures.append((config, error))
            return None

    if on_gpu and candidates:
        trial.reserve(candidates[0][1])
    return search(
        [_plain(config) for config, _ in candidates],
        predict=partial(asked, predict),
        measure=partial(asked, measure) if on_gpu else None,
        budget_s=budget_s,
    )


def _blocks(grid: Grid, names: Mapping[str, Any]) -> tuple[int, ...]:
    blocks = grid(names) if callable(grid) else grid
    if not isinstance(blocks, list | tuple):
        raise LowbitvmError("ARGUMENT_INVALID", f"the grid is {blocks!r}", "give one to three ints, none below 0")
    return tuple(blocks)


def _parts(value: Any) -> list[Any]:
    return list(value.arrays.values()) if isinstance(value, PackedWeight | PackedDigits) else [value]


def _streams(given: Mapping[str, Any], place: Place, stream: int | None) -> tuple[int, ...]:
    """The stream of the launch, and those on which its arguments may still be written."""
    named = {v.stream for v in given.values() if isinstance(v, DeviceArray) and v.stream is not None}
    first = torch_stream(place.index) if stream is None and place.arrays == "torch" else stream or 0
    return tuple({first, *(0 if other == LEGACY_STREAM else other for other in named)})


def _on_cpu(value: Any) -> Any:
    if isinstance(value, PackedWeight | PackedDigits):
        return value
    return arrays.host(value.cpu()) if dtypes.is_tensor(value) else np.asarray(value)


def _plain(config: Config) -> dict[str, int | str | bool]:
    """A configuration as records have it."""
    return {name: value if isinstance(value, int | str) else str(value) for name, value in config.items()}


def _text(config: Config) -> str:
    return ", ".join(f"{name}={value}" for name, value in config.items())


def _digest(kernel: Kernel, configs: Sequence[Config]) -> str:
    """Of the kernel's source, without which nothing found for it holds, and of its space."""
    try:
        source = inspect.getsource(kernel.function)
    except OSError:  # typed in by hand
        code = kernel.function.__code__
        source = f"{code.co_code.hex()} {code.co_consts} {code.co_names}"
    return hashlib.sha256(f"{source}\n{[_plain(config) for config in configs]}".encode()).hexdigest()[:16]


def _check_names(kernel: Any, configs: Sequence[Config], key: Sequence[str] | None) -> None:
    if not isinstance(kernel, Kernel):
        raise LowbitvmError("ARGUMENT_INVALID", f"lb.autotune of {kernel!r}", "put it above @lb.kernel(...)")
    names = set(configs[0])
    known = {*kernel.constants, "warps"}
    if any(set(config) != names for config in configs) or not names <= known:
        problem = f"{kernel.__name__} is tuned over {sorted({name for config in configs for name in config})}"
        raise LowbitvmError("ARGUMENT_INVALID", problem, f"name the same of {sorted(known)} in every configuration")
    dims = {dim for spec in kernel.specs.values() for dim in spec.dims}
    choices = {*dims, *kernel.specs, *kernel.constants} - names
    if key is not None and not (isinstance(key, list | tuple) and choices.issuperset(key)):
        problem = f"the key of {kernel.__name__} is {key!r}"
        raise LowbitvmError("ARGUMENT_INVALID", problem, f"name some of {sorted(choices)}")
    if "stream" in kernel.constants:
        problem = f"{kernel.__name__} has a constant called stream"
        raise LowbitvmError("ARGUMENT_INVALID", problem, "rename it: a call takes a stream")
