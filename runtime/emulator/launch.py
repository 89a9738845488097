"""Loading a module and launching its kernels."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.emulator.bind import Array, bind, initial, invalid
from lowbitvm.runtime.emulator.decode import ROW, Decoder, Program, build
from lowbitvm.runtime.emulator.isa import decode
from lowbitvm.runtime.emulator.legality import TARGETS, module_problem, parse_target, runs_on
from lowbitvm.runtime.emulator.parse import Instruction, Kernel, Syntax, parse
from lowbitvm.runtime.emulator.report import CHECKS, Report
from lowbitvm.runtime.emulator.results import build_report

try:
    CORE: Any = importlib.import_module("lowbitvm.runtime.emulator._core")
except ImportError:
    CORE = None

STEP_LIMIT = 1 << 40
NUMERICS = {"hw": 0, "float64": 1}
# Fraction bits kept and products summed at once by the f16 and bf16 tensor cores, from compute capability x 10.
TENSOR_CORES = {75: (24, 16), 80: (24, 8), 90: (25, 16)}


@dataclass
class Module:
    """Loaded PTX. Module-level .global variables keep their contents from launch to launch."""

    syntax: Syntax = field(repr=False)
    programs: dict[str, Program] = field(repr=False)
    globals: list[Array] = field(default_factory=list, repr=False)

    def launch(
        self,
        entry: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        *,
        shared: int = 0,
        arch: str | None = None,
        checks: str | set[str] = "all",
        on_finding: str = "raise",
        numerics: str = "hw",
        seed: int = 0,
        step_limit: int = STEP_LIMIT,
    ) -> Report:
        """Run a kernel over the whole grid.

        `args`: contiguous numpy arrays are device buffers, written in place; numbers take their width from the .param.
        `shared`: bytes of dynamic shared memory. `arch` ("sm_80") picks the tensor cores' arithmetic, by default the
        PTX's own .target. `checks`: "all", "none", or a set of names from report.CHECKS. `numerics` of float mma: "hw"
        or "float64" (sums in double, rounded to f32). `seed` picks the order in which warps and diverged lanes run.
        Raises EmulatorError for the first finding unless `on_finding` is "collect".

        Races on global memory are those of plain loads and stores, between warps without a barrier and between blocks.
        They are not looked for in a kernel that has fences, atomics with a result, or volatile, relaxed, acquire or
        release accesses: it may order its threads by these, which the emulator does not follow.
        """
        if entry not in self.programs:
            names = ", ".join(self.programs)
            raise invalid(f"the module has no kernel {entry!r}, only {names}", "name one of them")
        program = self.programs[entry]
        grid3, block3 = _extent(grid, "grid"), _extent(block, "block")
        _check_block(program.kernel, block3)
        buffers, params = bind(program, args, self.globals)
        fraction, group = _tensor_core(self.syntax.target, arch or self.syntax.target)
        mask = _check_mask(checks, program)
        shared += program.static_shared
        config = [*grid3, *block3, shared, mask, on_finding == "collect"]
        config += [_choice(numerics, NUMERICS, "numerics"), fraction, group, seed % 2**32, step_limit]
        _choice(on_finding, {"raise": 0, "collect": 1}, "on_finding")
        decoded = (program.code, program.image, program.undefined, program.specials)
        raw = CORE.run(*decoded, params, np.array(config, np.uint64), [b.core_view() for b in buffers])
        return build_report(
            self.syntax, program, buffers, raw, grid3, block3, on_finding, program.static_shared + shared
        )


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
    programs = {name: _program(syntax, kernel, opcodes) for name, kernel in syntax.kernels.items()}
    variables = [initial(variable) for variable in syntax.globals]
    return Module(syntax, programs, variables)


def _program(syntax: Syntax, kernel: Kernel, opcodes: dict[str, int]) -> Program:
    decoder = Decoder(syntax, kernel)
    end = kernel.instructions[-1].position if kernel.instructions else 0
    final = Instruction("exit", (), (), None, False, end, ())
    rows = [(decode(decoder, instruction), instruction) for instruction in (*kernel.instructions, final)]
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
    if kernel.required_block not in (None, block):
        raise invalid(f"{kernel.name} requires a block of {kernel.required_block}, not {block}", "launch it with that")


def _check_mask(checks: str | set[str], program: Program) -> int:
    if isinstance(checks, str):
        mask = _choice(checks, {"all": sum(CHECKS.values()), "none": 0}, "checks")
    else:
        mask = sum(_choice(check, CHECKS, "a check") for check in checks)
    return mask & ~CHECKS["race_global"] if program.synchronises else mask


def _tensor_core(target: str, arch: str) -> tuple[int, int]:
    if arch not in TARGETS:
        raise invalid(f"the architecture is {arch!r}", "name one like sm_80, from sm_75 on")
    if not runs_on(target, arch):
        raise invalid(f"the PTX is for {target}, which does not run on {arch}", f"name {target} or what can run it")
    number = parse_target(arch).number
    return TENSOR_CORES[max(start for start in TENSOR_CORES if start <= number)]
