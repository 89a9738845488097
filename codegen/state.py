"""What the lowering of one kernel knows: the builder, the launch parameters, and where every value lives."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lowbitvm import dtypes
from lowbitvm.codegen.ptx import Builder, Operand, float_immediate
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.ir import Array, Op, Program, walk
from lowbitvm.layout import Layout
from lowbitvm.targets import MmaAtom, Target

SHARED_ALIGNMENT = 128
DEPENDENT_VERSION = "7.8"  # of the PTX ISA, which has griddepcontrol
SCALAR_INSTRUCTIONS = {"add": "add.s32", "sub": "sub.s32", "mul": "mul.lo.s32", "max": "max.s32", "min": "min.s32"}


@dataclass
class State:
    """Mutable state of one lowering. A tile's value is a list of registers, one per register index of its layout."""

    program: Program
    target: Target
    atom: MmaAtom
    warps: int
    layouts: dict[Op, Layout]
    warps_m: int = 1  # of the warps, how many share out the rows of activations; the others share out the weights
    held: bool = False  # each warp decodes all weights that it multiplies, though several multiply the same
    builder: Builder = field(default_factory=Builder)
    values: dict[Op, list[Operand]] = field(default_factory=dict)
    shared_bytes: int = 0  # dynamic shared memory that is taken now
    shared_most: int = 0  # and was at any time, which is the kernel's
    loop_depth: int = 0
    dependent: bool = False  # the kernel may start before those that came before it have ended

    def __post_init__(self) -> None:
        walked = list(walk(self.program.body))
        self.assigned = {op.operands[0] for op in walked if op.kind == "assign"}
        self.stored = {op.array for op in walked if op.kind in ("store", "atomic_add")}
        self.uses: dict[Op, int] = {}
        for op in walked:
            for operand in op.operands:
                self.uses[operand] = self.uses.get(operand, 0) + 1
        self.builder.branching = any(op.kind in ("div", "sqrt") for op in walked)
        self.weights = _weights(walked) - self.stored
        self.parameters = entry_parameters(self.program)
        self._load_parameters()
        self.waits = self.dependent  # it has not waited for them yet
        if self.dependent:
            self.builder.needs(DEPENDENT_VERSION)
            self.builder.do("griddepcontrol.launch_dependents")  # which wait for this kernel's end themselves
        hints = dict.fromkeys(op.attributes["evict"] for op in walked if "evict" in op.attributes)
        self.policies = {evict: self._policy(str(evict)) for evict in hints if self.target.has_cache_hints}

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    def _load_parameters(self) -> None:
        b = self.builder
        self.registers: dict[str, str] = {}
        for kind, name in self.parameters:
            if kind == "u64":
                raw = b.op("ld.param.u64", "rd", f"[{name}]")
                self.registers[name] = b.op("cvta.to.global.u64", "rd", raw)
            else:
                self.registers[name] = b.op("ld.param.u32", "r", f"[{name}]")
        self.tid = b.op("mov.u32", "r", "%tid.x")
        self.smem = b.op("mov.u32", "r", "smem")

    def _policy(self, evict: str) -> str:
        return self.builder.op(f"createpolicy.fractional.L2::evict_{evict}.b64", "rd", float_immediate(1.0))

    def policy(self, load: Op) -> str:
        """The register of a load's hint to the L2 cache; "" without one."""
        return self.policies.get(load.attributes.get("evict", ""), "")

    def pointer(self, array: Array, part: str = "") -> str:
        """The global address register of an array, or of a part of a packed weight."""
        return self.registers[parameter_name(array, part)]

    def load_name(self, array: Array | None) -> str:
        """How an array is loaded: ptxas may move loads by .nc before a wait, of which it knows nothing."""
        written = array in self.stored or (self.dependent and array not in self.weights)
        return "ld.global" if written else "ld.global.nc"

    def wait_for_earlier(self) -> None:
        """Emits, once, the wait for the kernels before this one: what follows may use memory that they write.

        All threads pass here. Before it only weights may be read, and nothing written.
        """
        if self.waits:
            self.builder.do("griddepcontrol.wait")
            self.waits = False

    def size(self, dim: str) -> str:
        """The register of a runtime size."""
        return self.registers[size_name(dim)]

    @property
    def free_shared(self) -> int:
        """Bytes of shared memory that `allocate_shared` still has."""
        return self.target.shared_per_block - -(-self.shared_bytes // SHARED_ALIGNMENT) * SHARED_ALIGNMENT

    def allocate_shared(self, size: int, op: Op) -> int:
        """The offset of `size` bytes of dynamic shared memory, 128-byte aligned. Raises SHARED_MEMORY_EXCEEDED."""
        offset = self.target.shared_per_block - self.free_shared
        if offset + size > self.target.shared_per_block:
            raise LowbitvmError(
                "SHARED_MEMORY_EXCEEDED",
                f"the tiles need {offset + size} bytes of shared memory, {self.target.name} has "
                f"{self.target.shared_per_block} per block",
                "use smaller tiles or fewer stages",
                op.location,
            )
        self.shared_bytes = offset + size
        self.shared_most = max(self.shared_most, self.shared_bytes)
        return offset

    def release_shared(self, size: int) -> None:
        """Emits the barrier after which all shared memory from byte `size` on may be taken again."""
        if self.shared_bytes > size:
            self.builder.do("bar.sync", 0)
            self.shared_bytes = size

    # -- scalars: known numbers stay Python ints ---------------------------------------------------------------------

    def scalar(self, kind: str, a: Operand, b: Operand) -> Operand:
        """An i32 scalar operation, folded where it can be."""
        if isinstance(a, int) and isinstance(b, int):
            return _fold(kind, a, b)
        if (kind == "add" and b == 0) or (kind in ("mul", "floordiv") and b == 1) or (kind == "sub" and b == 0):
            return a
        if (kind == "add" and a == 0) or (kind == "mul" and a == 1):
            return b
        if kind == "mul" and 0 in (a, b):
            return 0
        if kind in SCALAR_INSTRUCTIONS:
            first, second = (b, a) if isinstance(a, int) and kind != "sub" else (a, b)
            return self.builder.op(SCALAR_INSTRUCTIONS[kind], "r", first, second)
        return self._divide(kind, a, b)

    def _divide(self, kind: str, a: Operand, b: Operand) -> str:
        """Floor division and modulo from PTX's truncating ones, corrected where the remainder's sign is not b's."""
        build = self.builder
        if isinstance(b, int) and b > 0 and b & (b - 1) == 0:
            return (
                build.op("and.b32", "r", a, b - 1) if kind == "mod" else build.op("shr.s32", "r", a, b.bit_length() - 1)
            )
        remainder = build.op("rem.s32", "r", a, b)
        signs = build.op("xor.b32", "r", remainder, b)
        negative = build.op("setp.lt.s32", "p", signs, 0)
        wrong = build.op("setp.ne.and.s32", "p", remainder, 0, negative)
        if kind == "mod":
            return build.op("add.s32", "r", remainder, build.op("selp.b32", "r", b, 0, wrong))
        return build.op("add.s32", "r", build.op("div.s32", "r", a, b), build.op("selp.b32", "r", -1, 0, wrong))

    def shared_address(self, images: Sequence[int]) -> str:
        """The shared address that is linear in the bits of the thread's number."""
        return str(self.scalar("add", self.smem, self.linear(self.tid, images)))

    def by_warp(self, along_n: int, along_m: int = 0) -> list[int]:
        """The images of the bits of a warp's number, in steps along the weights and along the activations."""
        n_bits, m_bits = (self.warps // self.warps_m).bit_length() - 1, self.warps_m.bit_length() - 1
        return [along_m << i for i in range(m_bits)] + [along_n << i for i in range(n_bits)]

    def linear(self, source: str, images: Sequence[int]) -> Operand:
        """The XOR of images[i] over the set bits i of a register: a GF(2)-linear map in the fewest shifts and masks.

        Bits that move by the same distance share one mask and shift.
        """
        masks: dict[int, int] = {}
        for i, image in enumerate(images):
            for j in range(image.bit_length()):
                if image >> j & 1:
                    masks[j - i] = masks.get(j - i, 0) | 1 << i
        result: Operand = 0
        for distance, mask in masks.items():
            term: Operand = self.builder.op("and.b32", "r", source, mask)
            if distance:
                term = self.builder.op("shl.b32" if distance > 0 else "shr.u32", "r", term, abs(distance))
            result = term if result == 0 else self.builder.op("xor.b32", "r", result, term)
        return result


def _weights(ops: Sequence[Op]) -> set[Array | None]:
    """The packed arrays that are second sides of dots and nothing else, which no kernel writes."""
    chains = [list(walk_operands(op.operands[1])) for op in ops if op.kind == "dot"]
    second = {op for chain in chains for op in chain if op.kind == "load"}
    found: set[Array | None] = {op.array for op in second if isinstance(op.array and op.array.element, Format)}
    return found - {op.array for op in ops if op.kind == "load" and op not in second}


def walk_operands(op: Op) -> Iterator[Op]:
    """An op and all that it is made of."""
    yield op
    for operand in op.operands:
        yield from walk_operands(operand)


def parameter_name(array: Array, part: str = "") -> str:
    """The PTX parameter of an array; `part` is one of `Format.parts` for a packed weight.

    No Python name has a dollar, so that parts and sizes never take an array's name.
    """
    return f"{array.name}${part}" if part else array.name


def size_name(dim: str) -> str:
    """The PTX parameter of a runtime size."""
    return f"{dim}$size"


def entry_parameters(program: Program) -> list[tuple[str, str]]:
    """(PTX type, name) of every parameter in order: a pointer per array and part, then the sizes."""
    parameters: list[tuple[str, str]] = []
    for array in program.arrays:
        if isinstance(array.element, Format):
            parameters += [("u64", parameter_name(array, part)) for part in array.element.parts]
        else:
            parameters.append(("u64", parameter_name(array)))
    return parameters + [("u32", size_name(dim)) for dim in program.dims]


def divisor(op: Op) -> int:
    """A number that certainly divides an i32 scalar: 0 for the constant 0."""
    if op.kind == "constant":
        value = op.attributes["value"]
        return abs(value) if isinstance(value, int) else 1
    if op.kind == "mul":
        return divisor(op.operands[0]) * divisor(op.operands[1])
    if op.kind in ("add", "sub", "max", "min"):
        return math.gcd(divisor(op.operands[0]), divisor(op.operands[1]))
    if op.kind == "range":
        return math.gcd(divisor(op.operands[0]), op.integer("step"))
    return 1


def non_negative(op: Op) -> bool:
    """Whether an i32 scalar is certainly not below 0 (where it does not overflow)."""
    if op.kind == "constant":
        value = op.attributes["value"]
        return isinstance(value, int) and value >= 0
    if op.kind == "max":
        return any(map(non_negative, op.operands))
    if op.kind in ("add", "mul", "min", "floordiv", "range"):
        return all(map(non_negative, op.operands[: 1 if op.kind == "range" else 2]))
    return op.kind in ("program_id", "dimension")


def invariant(op: Op, loop: Op) -> bool:
    """Whether an i32 scalar keeps its value while `loop` runs."""
    inside = set(walk(loop.body))
    return (op is not loop and op not in inside) or (op.kind == "constant")


def _fold(kind: str, a: int, b: int) -> int:
    """The i32 result, wrapped; 0 for the undefined division by zero."""
    if kind in ("floordiv", "mod"):
        result = 0 if b == 0 else a // b if kind == "floordiv" else a % b
    else:
        result = {"add": a + b, "sub": a - b, "mul": a * b, "max": max(a, b), "min": min(a, b)}[kind]
    return (result + (1 << 31)) % (1 << 32) - (1 << 31)


def size_bytes(dtype: dtypes.DType) -> int:
    """Bytes of one element in memory."""
    return dtype.bits // 8
