"""IR -> PTX. `compile_kernel` is the list of passes."""

from dataclasses import dataclass

from lowbitvm import targets
from lowbitvm.codegen.arrange import arrange
from lowbitvm.codegen.assign import assign_layouts
from lowbitvm.codegen.lower import Lowering
from lowbitvm.codegen.state import State
from lowbitvm.errors import LowbitvmError
from lowbitvm.ir import Program, walk
from lowbitvm.verify import verify

DEPENDENT_CAPABILITY = (9, 0)


@dataclass(frozen=True)
class Ptx:
    """A kernel as PTX text and what its launch needs."""

    text: str
    entry: str
    threads: int  # per block
    shared: int  # bytes of dynamic shared memory
    parameters: tuple[tuple[str, str], ...]  # (PTX type, name) in order
    dependent: bool = False  # it waits for earlier kernels itself, and may be launched before they have ended


def compile_kernel(program: Program, target_name: str, warps: int, dependent: bool = False) -> Ptx:
    """Lowers a program for a target with `warps` warps per block (a power of two).

    dependent: the kernel may be launched while those before it still run. It reads weights ahead, and waits for their
    end before it touches anything else. Needs sm_90.
    Raises TARGET_UNKNOWN, KERNEL_UNSUPPORTED, TILE_INVALID, SHARED_MEMORY_EXCEEDED.
    """
    verify(program)
    target = targets.get(target_name)
    if dependent and target.capability < DEPENDENT_CAPABILITY:
        raise LowbitvmError(
            "KERNEL_UNSUPPORTED",
            f"a dependent kernel on {target.name}, which cannot start before earlier kernels have ended",
            "leave out dependent, or compile for sm_90 and later",
        )
    act = _activation(program)
    if act not in target.mma_dtypes:
        raise LowbitvmError(
            "KERNEL_UNSUPPORTED",
            f"a dot of {act} on {target.name}, whose tensor cores take {', '.join(target.mma_dtypes)}",
            f"use {target.mma_dtypes[0]} activations, or sm_80 and later",
        )
    atom = targets.MMA_ATOMS[f"m16n8k16.{act}"]
    chosen = arrange(program, target, warps)
    layouts = assign_layouts(program, atom, (chosen.warps_m, warps // chosen.warps_m))
    state = State(program, target, atom, warps, layouts, chosen.warps_m, chosen.held, dependent=dependent)
    Lowering(state).block(program.body)
    state.wait_for_earlier()  # in any case: who waits for this kernel counts on it
    parameters = [f".{kind} {name}" for kind, name in state.parameters]
    text = state.builder.module(program.name, target, parameters, state.threads)
    return Ptx(text, program.name, state.threads, state.shared_most, tuple(state.parameters), dependent)


def _activation(program: Program) -> str:
    """The dtype of the first operand of the program's dots of floats; f16 for a program without any."""
    found = [op.operands[0].dtype for op in walk(program.body) if op.kind == "dot"]
    names = [dtype.name for dtype in found if dtype is not None and dtype.is_float]
    return names[0] if names else "f16"
