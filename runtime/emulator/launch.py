"""Loading a module and launching its kernels."""

import importlib
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.emulator.bind import Array, bind, invalid
from lowbitvm.runtime.emulator.decode import ROW, Decoder, Program, build
from lowbitvm.runtime.emulator.isa import decode
from lowbitvm.runtime.emulator.legality import TARGETS, module_problem, parse_target, runs_on
from lowbitvm.runtime.emulator.parse import parse
from lowbitvm.runtime.emulator.report import CHECKS, OPT_IN, Launch, Report
from lowbitvm.runtime.emulator.results import Outline, build_report
from lowbitvm.runtime.emulator.syntax import Instruction, Kernel, Name, Syntax
from lowbitvm.runtime.emulator.variables import initial_contents, view

try:
    CORE: Any = importlib.import_module("lowbitvm.runtime.emulator._core")
except ImportError:
    CORE = None

STEP_LIMIT = 1 << 40
MOST_SHARED = 227 << 10  # bytes per block, of any GPU. Source: CUDA C++ Programming Guide, compute capabilities
SCHEDULES = {"random": 0, "round_robin": 1, "adversarial": 2}
COPIES = {"late": 0, "early": 1, "random": 2}
NUMERICS = {"hw": 0, "bound": 1, "permute": 2}


@dataclass
class Module:
    """Loaded PTX. Module-level .global variables keep their contents from launch to launch.

    `symbols`: the bytes of each module-level .global and .const variable as an array of its type, to read and to write
    between launches.
    """

    syntax: Syntax = field(repr=False)
    programs: dict[str, Program] = field(repr=False)
    globals: list[Array] = field(default_factory=list, repr=False)
    symbols: dict[str, Array] = field(default_factory=dict, repr=False)
    outlines: dict[str, Outline] = field(default_factory=dict, repr=False)  # of the kernels launched so far

    def launch(
        self,
        entry: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        *,
        shared: int = 0,
        cluster: Sequence[int] | None = None,
        arch: str | None = None,
        checks: str | set[str] = "all",
        on_finding: str = "raise",
        numerics: str = "hw",
        seed: int = 0,
        schedule: str = "random",
        copies: str = "late",
        workers: int | None = None,
        step_limit: int = STEP_LIMIT,
    ) -> Report:
        """Run a kernel over the whole grid.

        `args`: contiguous numpy arrays are device buffers, written in place; numbers take their width from the .param;
        `pointer` and `struct` give addresses inside arrays and structs.
        `shared`: bytes of dynamic shared memory. `cluster`: the blocks of a cluster, by default one; for kernels that
        look at their place in it at most, as blocks do not meet. `arch` ("sm_80") picks the tensor cores' arithmetic,
        by default the PTX's own .target. `checks`: "all", "none", or a set of names from report.CHECKS. `numerics` of
        float mma: "hw" (bit for bit), "bound" (sums in double, rounded once; the report says by line how far the
        hardware may be from them and how far it was), or "permute" (the hardware's, with k in random order within an
        instruction).
        `schedule` of warps and diverged lanes: "random" (seeded by `seed`), "round_robin" (an instruction each in turn)
        or "adversarial" (seeded; orders that break code which relies on luck). `copies`: when a cp.async lands, as
        "late" or "early" as the program allows, or "random". `workers`: host threads, by default one per core; blocks
        that may communicate run on one, in turns. The report does not depend on `workers`, unless blocks race: what
        they then read is chance.
        Raises EmulatorError for the first finding unless `on_finding` is "collect".
        """
        if entry not in self.programs:
            names = ", ".join(self.programs)
            raise invalid(f"the module has no kernel {entry!r}, only {names}", "name one of them")
        program = self.programs[entry]
        grid3, block3 = _extent(grid, "grid"), _extent(block, "block")
        _check_block(program.kernel, block3)
        cluster3 = (1, 1, 1) if cluster is None else self._cluster(program.kernel, grid3, cluster)
        variables = [(v.name, array) for v, array in zip(self.syntax.globals, self.globals, strict=True)]
        buffers, params = bind(program, args, variables)
        mask = _check_mask(checks)
        _check_shared(program, shared)
        shared += program.static_shared
        config = [*grid3, *block3, shared, mask, on_finding == "collect"]
        config += [_choice(numerics, NUMERICS, "numerics"), _capability(self.syntax.target, arch or self.syntax.target)]
        config += [seed % 2**32, step_limit]
        config += [program.local_size, _choice(schedule, SCHEDULES, "schedule"), _choice(copies, COPIES, "copies")]
        together = program.ordering.blocks and math.prod(grid3) > 1
        exact = together or program.ordering.is_exact(math.prod(block3))
        config += [_workers(workers, program), exact, together, *cluster3, program.shared_start]
        _choice(on_finding, {"raise": 0, "collect": 1}, "on_finding")
        decoded = (program.code, program.image, program.undefined, program.specials)
        started = time.perf_counter()
        raw = CORE.run(*decoded, params, np.array(config, np.uint64), [b.core_view() for b in buffers])
        seconds = time.perf_counter() - started
        checked = tuple(name for name, bit in CHECKS.items() if mask & bit)
        options: dict[str, str | int] = {"numerics": numerics, "seed": seed, "schedule": schedule, "copies": copies}
        if cluster is not None:
            options["cluster"] = "x".join(map(str, cluster3))
        launched = Launch(entry, grid3, block3, shared, arch or self.syntax.target, checked, options)
        if entry not in self.outlines:
            self.outlines[entry] = Outline.of(self.syntax, program)
        return build_report(self.syntax, program, self.outlines[entry], buffers, raw, launched, on_finding, seconds)

    def _cluster(self, kernel: Kernel, grid: tuple[int, int, int], cluster: Sequence[int]) -> tuple[int, int, int]:
        """Source: PTX ISA, "Cluster of Cooperative Thread Arrays"."""
        sizes = _extent(cluster, "cluster")
        if any(count % size for count, size in zip(grid, sizes, strict=True)):
            raise invalid(f"the grid {grid} is not made of clusters of {sizes}", "make each a divisor of the grid's")
        bodies = [kernel, *self.syntax.functions.values()]
        found = [one for body in bodies for one in body.instructions if _meets_others(one)]
        if found and math.prod(sizes) > 1:
            raise invalid(
                f"a cluster of {math.prod(sizes)} blocks for a kernel with {found[0].name}",
                "launch it without: blocks of a cluster do not meet here",
            )
        return sizes


def _meets_others(instruction: Instruction) -> bool:
    """Whether an instruction is about other blocks of its cluster, or asks whether there is one."""
    words, names = instruction.qualifiers, [one.text for one in instruction.operands if isinstance(one, Name)]
    clustered = any("cluster" in word for word in words) or "%is_explicit_cluster" in names
    return clustered or instruction.mnemonic in ("mapa", "getctarank")


def load(text: str) -> Module:
    """Parse and decode every kernel of a PTX module.

    Raises PtxError for text that is no PTX or holds an instruction that is not implemented, and
    LowbitvmError EMULATOR_MISSING where the C core was not built.
    """
    if CORE is None:
        raise LowbitvmError(
            "EMULATOR_MISSING",
            "the emulator's C core (lowbitvm.runtime.emulator._core) is not installed",
            "install a C compiler and reinstall, or run `python setup.py build_ext --inplace` in a checkout",
        )
    assert CORE.instruction_bytes == ROW.itemsize
    opcodes = {name: number for number, name in enumerate(CORE.opcodes())}
    syntax = parse(text)
    problem = module_problem(syntax.target, syntax.version)
    if problem is not None:
        raise syntax.error(problem, max(text.find(".target"), 0))
    programs = {name: _program(syntax, kernel, opcodes) for name, kernel in syntax.kernels.items() if kernel.defined}
    contents = initial_contents(syntax)
    number = {variable: n for n, variable in enumerate(syntax.globals)}
    symbols = {name: view(v, contents[number[v]]) for name, v in syntax.names.items() if v in number}
    for variable, data in zip(syntax.globals, contents, strict=True):
        if variable.space == "const":
            contents[number[variable]] = data.view()
            contents[number[variable]].flags.writeable = False
    return Module(syntax, programs, contents, symbols)


def _program(syntax: Syntax, kernel: Kernel, opcodes: dict[str, int]) -> Program:
    decoder = Decoder(syntax, kernel)
    rows = [(decode(decoder, instruction), instruction) for instruction in decoder.instructions]
    return build(decoder, rows, opcodes)


def _choice(value: str, choices: dict[str, int], what: str) -> int:
    if value not in choices:
        raise invalid(f"{what} is {value!r}", f"use one of {', '.join(choices)}")
    return choices[value]


def _extent(values: Sequence[int], what: str) -> tuple[int, int, int]:
    if not isinstance(values, tuple | list):
        raise invalid(f"{what} is {values!r}", "give a tuple of up to three positive extents")
    x, y, z = (*map(int, values), 1, 1, 1)[:3]
    if len(values) > 3 or min(x, y, z) < 1 or x * y * z >= 1 << 32:
        raise invalid(f"{what} is {tuple(values)}", "give up to three positive extents, below 2^32 in all")
    return x, y, z


def _check_block(kernel: Kernel, block: tuple[int, int, int]) -> None:
    if block[0] * block[1] * block[2] > 1024:
        raise invalid(f"the block {block} has {block[0] * block[1] * block[2]} threads", "use at most 1024")
    most = kernel.most_block
    if most is not None and block[0] * block[1] * block[2] > most[0] * most[1] * most[2]:
        raise invalid(f"{kernel.name} has .maxntid {most}, the block is {block}", "launch it with fewer threads")
    if kernel.required_block not in (None, block):
        raise invalid(f"{kernel.name} requires a block of {kernel.required_block}, not {block}", "launch it with that")


def _check_shared(program: Program, dynamic: int) -> None:
    """Raises ARGUMENT_INVALID beyond MOST_SHARED: what a kernel does with more says nothing about any GPU."""
    if not 0 <= dynamic <= MOST_SHARED - program.static_shared:
        asked = f"{dynamic} bytes of dynamic shared memory beside {program.static_shared} of the kernel's own"
        raise invalid(asked, f"use {MOST_SHARED} in all at most, which is what the largest GPUs give a block")


def _check_mask(checks: str | set[str]) -> int:
    if isinstance(checks, str):
        every = sum(bit for name, bit in CHECKS.items() if name not in OPT_IN)
        return _choice(checks, {"all": every, "none": 0}, "checks")
    return sum(_choice(check, CHECKS, "a check") for check in checks)


def _workers(workers: int | None, program: Program) -> int:
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise invalid(f"workers is {workers}", "give the number of host threads, at least 1")
    return 1 if program.ordering.float_red else workers


def _capability(target: str, arch: str) -> int:
    """Compute capability x 10 of `arch`, which must run PTX for `target`."""
    if arch not in TARGETS:
        raise invalid(f"the architecture is {arch!r}", "name one like sm_80, from sm_75 on")
    if not runs_on(target, arch):
        raise invalid(f"the PTX is for {target}, which does not run on {arch}", f"name {target} or what can run it")
    return parse_target(arch).number
