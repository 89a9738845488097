"""Loading a module and launching its kernels."""

import importlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime.emulator.decode import FIRST_ARRAY, REGION_SHIFT, ROW, Decoder, Program, build
from lowbitvm.runtime.emulator.isa import decode
from lowbitvm.runtime.emulator.parse import TYPE_BITS, Instruction, Kernel, Syntax, Variable, parse
from lowbitvm.runtime.emulator.report import CHECKS, KINDS, ArrayTraffic, Counters, EmulatorError, Finding, Report

try:
    CORE: Any = importlib.import_module("lowbitvm.runtime.emulator._core")
except ImportError:
    CORE = None

Array = np.ndarray[Any, np.dtype[Any]]
STEP_LIMIT = 1 << 40
NUMERICS = {"hw": 0, "float64": 1}
# Fraction bits kept and products summed at once by the f16 and bf16 tensor cores, from compute capability x 10.
TENSOR_CORES = {75: (24, 16), 80: (24, 8), 90: (25, 16)}


@dataclass(frozen=True)
class Output:
    """A device buffer whose present contents a kernel must not read."""

    array: Array


def output(array: Array) -> Output:
    """Mark an array as uninitialised: reading a byte before the kernel wrote it is a finding."""
    return Output(array)


@dataclass
class _Buffer:
    array: Array
    base: int
    uninitialised: bool
    argument: int | None
    stored: bool  # the kernel may store to it

    def core_view(self) -> tuple[Array, int, bool, bool, bool]:
        data = self.array.reshape(-1).view(np.uint8)
        return data, self.base, self.array.flags.writeable, self.uninitialised, self.stored


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
        buffers, params = _bind(program, args, self.globals)
        fraction, group = _tensor_core(arch or self.syntax.target)
        mask = _check_mask(checks, program)
        config = [*grid3, *block3, program.static_shared + shared, mask, on_finding == "collect"]
        config += [_choice(numerics, NUMERICS, "numerics"), fraction, group, seed % 2**32, step_limit]
        _choice(on_finding, {"raise": 0, "collect": 1}, "on_finding")
        decoded = (program.code, program.image, program.undefined, program.specials)
        raw = CORE.run(*decoded, params, np.array(config, np.uint64), [b.core_view() for b in buffers])
        return _report(self.syntax, program, buffers, raw, grid3, block3, on_finding, program.static_shared + shared)


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
    programs = {name: _program(syntax, kernel, opcodes) for name, kernel in syntax.kernels.items()}
    variables = [_initial(variable) for variable in syntax.globals]
    return Module(syntax, programs, variables)


def _program(syntax: Syntax, kernel: Kernel, opcodes: dict[str, int]) -> Program:
    decoder = Decoder(syntax, kernel)
    end = kernel.instructions[-1].position if kernel.instructions else 0
    final = Instruction("exit", (), (), None, False, end, ())
    rows = [(decode(decoder, instruction), instruction) for instruction in (*kernel.instructions, final)]
    return build(decoder, rows, opcodes)


def _initial(variable: Variable) -> Array:
    data = np.zeros(variable.size, np.uint8)
    data[: len(variable.values)] = np.frombuffer(variable.values, np.uint8)
    return data


def invalid(problem: str, fix: str) -> LowbitvmError:
    return LowbitvmError("ARGUMENT_INVALID", problem, fix)


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


def _tensor_core(arch: str) -> tuple[int, int]:
    match = re.fullmatch(r"sm_(\d+)[af]?", arch)
    if match is None or int(match[1]) < 75:
        raise invalid(f"the architecture is {arch!r}", "name one like sm_80, from sm_75 on")
    return TENSOR_CORES[max(start for start in TENSOR_CORES if start <= int(match[1]))]


def _bind(program: Program, args: Sequence[Any], variables: list[Array]) -> tuple[list[_Buffer], bytearray]:
    """Give every array an address range of its own and lay out the parameters."""
    if len(args) != len(program.params):
        raise invalid(f"{program.kernel.name} takes {len(program.params)} arguments, not {len(args)}", "pass them all")
    buffers = [_Buffer(v, (FIRST_ARRAY + n) << REGION_SHIFT, False, None, True) for n, v in enumerate(variables)]
    params = bytearray(program.params_size)
    known: dict[tuple[int, int], _Buffer] = {}
    for number, (arg, (variable, offset)) in enumerate(zip(args, program.params, strict=True)):
        value = arg
        if isinstance(arg, Output) or (isinstance(arg, np.ndarray) and arg.ndim):
            buffer = _buffer(arg, number, variable, buffers, known)
            buffer.stored |= number in program.stored
            value = buffer.base
        params[offset : offset + variable.size] = _encode(value, variable, number)
    return buffers, params


def _buffer(
    arg: Output | Array, number: int, variable: Variable, buffers: list[_Buffer], known: dict[tuple[int, int], _Buffer]
) -> _Buffer:
    array = arg.array if isinstance(arg, Output) else arg
    if variable.size != 8 or not array.flags.c_contiguous:
        what = "an array" if variable.size != 8 else "not contiguous"
        raise invalid(f"argument {number} is {what}, {variable.name} a .{variable.type}", "pass what the kernel takes")
    start = array.__array_interface__["data"][0]
    key = (start, array.nbytes)
    if key not in known:
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        shift = (start - owner.__array_interface__["data"][0]) % 256  # a view is aligned as it lies in its owner
        base = ((FIRST_ARRAY + len(buffers)) << REGION_SHIFT) + shift
        known[key] = _Buffer(array, base, isinstance(arg, Output), number, False)
        buffers.append(known[key])
    return known[key]


def _encode(value: Any, variable: Variable, number: int) -> bytes:
    if isinstance(value, bytes) and len(value) == variable.size:
        return value
    bits = TYPE_BITS[variable.type]
    if variable.size * 8 != bits or not isinstance(value, int | float | np.generic | np.ndarray):
        kind = type(value).__name__
        raise invalid(f"argument {number} is a {kind}, the parameter a .{variable.type}", "pass a number")
    if variable.type in ("f32", "f64"):
        return struct.pack("<f" if bits == 32 else "<d", float(value))
    return (int(value) & ((1 << bits) - 1)).to_bytes(bits // 8, "little")


def _report(
    syntax: Syntax,
    program: Program,
    buffers: list[_Buffer],
    raw: Any,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    on_finding: str,
    shared: int,
) -> Report:
    tally, traffic, findings = raw
    found = [_finding(syntax, program, buffers, item, grid, block, shared) for item in findings]
    if found and on_finding == "raise":
        raise EmulatorError(found[0])
    by_mnemonic: dict[str, int] = {}
    by_line: dict[int, int] = {}
    mma = 0
    for (count, *_), name, position in zip(tally, program.names, program.positions, strict=True):
        mma += count if name.startswith("mma.") else 0
        line = syntax.place(position)[0]
        by_mnemonic[name] = by_mnemonic.get(name, 0) + count
        by_line[line] = by_line.get(line, 0) + count
    arrays = {b.argument: ArrayTraffic(*t) for b, t in zip(buffers, traffic, strict=True) if b.argument is not None}
    total, _, wavefronts, least, sectors, *_ = (sum(column) for column in zip(*tally, strict=True))
    return Report(Counters(total, by_mnemonic, by_line, mma, wavefronts, wavefronts - least, sectors, arrays), found)


def _finding(
    syntax: Syntax,
    program: Program,
    buffers: list[_Buffer],
    item: tuple[int, ...],
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: int,
) -> Finding:
    kind, pc, block_index, warp, lane, other, address, size = item
    name, template = KINDS[kind]
    line, _, text = syntax.place(program.positions[pc])
    access, where = "write" if other else "read", _where(buffers, address)
    message = template.format(access=access, address=address, where=where, size=size, other=other, shared=shared)
    return Finding(name, message, line, text, _index(block_index, grid), _index(warp * 32 + lane, block), address)


def _where(buffers: list[_Buffer], address: int) -> str:
    for buffer in buffers:
        if buffer.base >> REGION_SHIFT == address >> REGION_SHIFT:
            offset, name = address - buffer.base, f"argument {buffer.argument}"
            return f"{address:#x} ({name}, byte {offset} of {buffer.array.nbytes})"
    return f"{address:#x}"


def _index(number: int, extent: tuple[int, int, int]) -> tuple[int, int, int]:
    return number % extent[0], number // extent[0] % extent[1], number // extent[0] // extent[1]
