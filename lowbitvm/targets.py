"""GPU targets and their tensor-core instructions: limits, rates, MMA atoms, fragment layouts.

Everything here is a row of a table or one closed form; a new target or MMA atom is a new row.
"""

from dataclasses import dataclass, replace

from lowbitvm.errors import LowbitvmError
from lowbitvm.layout import Layout

KIB = 1024
LATENCY_NS = 800  # of DRAM
L2_BYTES = 64  # a clock and SM, between the L2 cache and an SM. Source: NVIDIA A100 whitepaper, 2020
# Of 261 to 273 cycles on A100, H100 and RTX 4090. Source: Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU
# Architecture, arXiv 2402.13499, section 4
L2_LATENCY_NS = 200
LAUNCH_US = 2.0  # from the end of one kernel to the first instruction of the next on a stream, of any size
OVERHEAD_US = LAUNCH_US + 2 * LATENCY_NS / 1e3  # and the first load and the last store


@dataclass(frozen=True)
class Gpu:
    """A representative GPU of a target: what a cost model needs.

    Rates are dense tensor operations per clock and SM (1 multiply-add = 2) with f32 or s32 accumulation: the vendor's
    published peak / (SMs x boost clock). None: the hardware has no such instruction, or the vendor publishes no number.
    """

    name: str
    source: str
    sms: int
    boost_ghz: float
    dram_gbs: int  # GB/s
    l2_mb: int
    f16: int
    s8: int
    s4: int | None = None
    b1: int | None = None
    fp8: int | None = None
    fp4: int | None = None
    peak_by: str = "mma.sync"  # the instruction whose rates these are
    # of those rates, what mma.sync reaches; None: no trustworthy measurement is published
    sync_share: float | None = 1.0
    # of dram_gbs, what kernels were measured to reach: A100-80 1.73 TB/s, H200 3.89, L40 0.82; assumed elsewhere
    dram_share: float = 0.9


@dataclass(frozen=True)
class Target:
    """What PTX for one architecture may use. Sizes in bytes.

    `name` is also the assembler's `-arch` and PTX's `.target`; `ptx_version` is the lowest PTX ISA version that takes
    this target with every atom of MMA_ATOMS. Limits: CUDA C++ Programming Guide, "Compute Capabilities".
    """

    name: str
    capability: tuple[int, int]
    ptx_version: str
    shared_per_sm: int
    shared_per_block: int  # with the opt-in attribute; without it 48 KiB
    warps_per_sm: int
    gpu: Gpu
    shared_without_opt_in: int = 48 * KIB
    registers_per_sm: int = 65536
    registers_per_thread: int = 255
    threads_per_block: int = 1024
    max_grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    mma_dtypes: tuple[str, ...] = ("f16", "bf16")  # operands of mma.sync with f32 accumulators
    max_blocks_per_sm: int = 32

    def blocks_per_sm(self, threads: int, registers: int, shared: int) -> int:
        """Blocks of `threads` threads that an SM holds at once; `registers` per thread, `shared` bytes per block.

        Registers are handed out to a warp in units of 256, and each of an SM's four parts has a quarter of them; a
        block's shared memory is rounded up to 128 bytes and has 1 KiB of the system's beside it. 0: it does not fit.
        Source: CUDA C++ Programming Guide, "Compute Capabilities", and the occupancy calculator of Nsight Compute.
        """
        warps = -(-threads // 32)
        per_warp = -(-max(registers, 1) * 32 // 256) * 256
        by_registers = self.registers_per_sm // 4 // per_warp * 4 // warps
        by_shared = self.shared_per_sm // (-(-shared // 128) * 128 + self.shared_per_sm - self.shared_per_block)
        if registers > self.registers_per_thread or threads > self.threads_per_block:
            return 0
        return min(by_registers, by_shared, self.warps_per_sm // warps, self.max_blocks_per_sm)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes per SM that must be on their way for its GPU's memory to be busy: bandwidth x LATENCY_NS."""
        return round(self.gpu.dram_gbs * LATENCY_NS / self.gpu.sms)

    @property
    def has_cache_hints(self) -> bool:
        """Whether loads and copies take hints to the L2 cache."""
        return self.capability >= (8, 0)

    @property
    def has_paired_casts(self) -> bool:
        """Whether one instruction rounds two f32 to a pair of 16-bit floats."""
        return self.capability >= (8, 0)

    @property
    def has_redux(self) -> bool:
        """Whether one instruction reduces the i32 of a warp."""
        return self.capability >= (8, 0)

    @property
    def has_async_copies(self) -> bool:
        """Whether there is cp.async."""
        return self.capability >= (8, 0)

    @property
    def has_pair_extrema(self) -> bool:
        """min.f16x2 and max.f16x2."""
        return self.capability >= (8, 0)

    @property
    def digits(self) -> tuple[str, ...]:
        """Bases of integer digits that mma.sync multiplies natively; the others become IMMAs and up to 200 more.

        Source: the machine code that nvJitLink 13 makes of them.
        """
        natives = {"s8": True, "s4": self.capability < (9, 0), "b1": self.capability < (10, 0)}
        return tuple(name for name, native in natives.items() if native)

    @property
    def runs_on_newer_minor(self) -> bool:
        """Whether a cubin also runs on later GPUs of the same major version; an `a` target fits one GPU only."""
        return not self.name.endswith("a")


_T4 = Gpu(
    "T4", "NVIDIA T4 datasheet, 2018: 65 f16, 130 s8, 260 s4 T/s",
    sms=40, boost_ghz=1.59, dram_gbs=320, l2_mb=4, f16=1024, s8=2048, s4=4096,
)  # fmt: skip
_A100 = Gpu(
    "A100-80", "A100 Tensor Core GPU Architecture, 2020: 312 f16, 624 s8, 1248 s4, 4992 b1 T/s",
    sms=108, boost_ghz=1.41, dram_gbs=2039, l2_mb=40, f16=2048, s8=4096, s4=8192, b1=32768,
    dram_share=0.85,
)  # fmt: skip
_RTX_3090 = Gpu(
    "RTX 3090", "Ampere GA102 GPU Architecture, 2021: 71 f16, 284 s8, 568 s4 T/s",
    sms=82, boost_ghz=1.695, dram_gbs=936, l2_mb=6, f16=512, s8=2048, s4=4096,
)  # fmt: skip
_RTX_4090 = Gpu(
    "RTX 4090", "Ada GPU Architecture, 2023: 165.2 f16, 660.6 s8, 1321.2 s4, 330.3 fp8 T/s",
    sms=128, boost_ghz=2.52, dram_gbs=1008, l2_mb=72, f16=512, s8=2048, s4=4096, fp8=1024, dram_share=0.95,
)  # fmt: skip
_H100 = Gpu(
    "H100 SXM",
    "H100 Tensor Core GPU datasheet: 989 f16, 1979 s8, 1979 fp8 T/s, by wgmma; mma.sync: 62.9 % of peak on average, "
    "Luo et al., Dissecting the NVIDIA Hopper Architecture through Microbenchmarking, arXiv 2501.12084, section 6.2",
    sms=132, boost_ghz=1.83, dram_gbs=3352, l2_mb=50, f16=4096, s8=8192, fp8=8192, peak_by="wgmma", sync_share=0.629,
)  # fmt: skip
_B200 = Gpu(
    "B200", "HGX B200 datasheet: 2250 f16, 4500 s8, 4500 fp8, 9000 fp4 T/s, by tcgen05",
    sms=148, boost_ghz=1.84, dram_gbs=7672, l2_mb=126, f16=8192, s8=16384, fp8=16384, fp4=32768,
    peak_by="tcgen05", sync_share=None,
)  # fmt: skip
_RTX_5090 = Gpu(
    "RTX 5090", "RTX Blackwell GPU Architecture, 2025: 209.5 f16, 838 s8, 419 fp8, 1676 fp4 T/s",
    sms=170, boost_ghz=2.407, dram_gbs=1792, l2_mb=96, f16=512, s8=2048, fp8=1024, fp4=4096,
)  # fmt: skip

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        # name, capability, PTX ISA, shared per SM, per block, warps
        Target("sm_75", (7, 5), "6.5", 64 * KIB, 64 * KIB, 32, _T4, mma_dtypes=("f16",)),
        Target("sm_80", (8, 0), "7.0", 164 * KIB, 163 * KIB, 64, _A100),
        Target("sm_86", (8, 6), "7.1", 100 * KIB, 99 * KIB, 48, _RTX_3090, max_blocks_per_sm=16),
        Target("sm_89", (8, 9), "7.8", 100 * KIB, 99 * KIB, 48, _RTX_4090, max_blocks_per_sm=24),
        Target("sm_90a", (9, 0), "8.0", 228 * KIB, 227 * KIB, 64, _H100),
        Target("sm_100a", (10, 0), "8.6", 228 * KIB, 227 * KIB, 64, _B200),
        Target("sm_120f", (12, 0), "8.8", 100 * KIB, 99 * KIB, 48, _RTX_5090, max_blocks_per_sm=24),
    )
}


# GPUs by name: the target of each, and its rates where they are not the target's own.
GPUS: dict[str, tuple[str, Gpu]] = {
    "t4": ("sm_75", _T4),
    "a100": ("sm_80", _A100),
    "rtx3090": ("sm_86", _RTX_3090),
    "rtx4090": ("sm_89", _RTX_4090),
    "l40s": ("sm_89", replace(_RTX_4090, name="L40S", sms=142, dram_gbs=864, l2_mb=96, f16=1024, fp8=2048)),
    "h100": ("sm_90a", _H100),
    "h200": ("sm_90a", replace(_H100, name="H200", dram_gbs=4800, dram_share=0.81)),
    "b200": ("sm_100a", _B200),
    "rtx5090": ("sm_120f", _RTX_5090),
}


# What the driver calls GPUs of a row, where their memory and SMs are the row's.
REPORTED: dict[str, str] = {
    "Tesla T4": "t4",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA GeForce RTX 3090": "rtx3090",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA L40S": "l40s",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA GeForce RTX 5090": "rtx5090",
}


def gpu(name: str) -> tuple[Target, Gpu]:
    """The target and the rates of a GPU such as "h100". Raises TARGET_UNKNOWN."""
    if name not in GPUS:
        raise LowbitvmError("TARGET_UNKNOWN", f"there is no GPU {name!r}", f"choose one of {', '.join(GPUS)}")
    target, rates = GPUS[name]
    return TARGETS[target], rates


def get(name: str) -> Target:
    """The target called `name`, for example "sm_80". Raises TARGET_UNKNOWN."""
    if name not in TARGETS:
        raise LowbitvmError("TARGET_UNKNOWN", f"there is no target {name!r}", f"choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


def for_capability(major: int, minor: int) -> Target:
    """The best target for a GPU of compute capability major.minor: 8.7 -> sm_86, 12.1 -> sm_120f.

    Raises TARGET_UNKNOWN when no target's cubin runs there.
    """
    fits = [
        target
        for target in TARGETS.values()
        if target.capability == (major, minor)
        or (target.runs_on_newer_minor and target.capability[0] == major and target.capability[1] < minor)
    ]
    if not fits:
        known = ", ".join(f"{name} ({'.'.join(map(str, target.capability))})" for name, target in TARGETS.items())
        raise LowbitvmError("TARGET_UNKNOWN", f"no target runs on compute capability {major}.{minor}", f"use {known}")
    return max(fits, key=lambda target: target.capability)


# -- fragments ---------------------------------------------------------------------------------------------------------


def fragment(rows: int, columns: int, run: int, row: str, column: str) -> Layout:
    """(register, lane) -> (row, column) of an operand or accumulator of mma.sync and wgmma.

    `register` counts the lane's elements in the order of its registers, low bits first; `run` is how many neighbours a
    lane holds together: 32 / bits of an A or B element, 2 for accumulators. Of the 8 rows x 4 runs that the first run
    of all lanes covers, lane = 4 g + q owns row g, run q; the next runs cover the 8 rows below (if there are 16), then
    the next columns:

        row = g + 8 * (i // run % (rows / 8)),   column = q * run + i % run + 4 * run * (i // (run * rows / 8))

    A of m16n8k16, f16 (rows 16, columns 16, run 2), element i = 5 of lane 6 (g 1, q 2): row 1, column 4 + 1 + 8 = 13.
    Source: PTX ISA, "Matrix Fragments for mma.m16n8k16" and the sections beside it.
    """
    halves = rows // 8
    return Layout.from_function(
        lambda register, lane: {
            row: (lane >> 2) + 8 * (register // run % halves),
            column: (lane & 3) * run + register % run + 4 * run * (register // (run * halves)),
        },
        {"register": (rows * columns // 32).bit_length() - 1, "lane": 5},
        {row: rows.bit_length() - 1, column: columns.bit_length() - 1},
    )


@dataclass(frozen=True)
class MmaAtom:
    """One mma.sync instruction, D (m x n) = A (m x k) * B (k x n) + C, held by one warp.

    `a` maps (register, lane) to (m, k), `b` to (n, k), `c` to (m, n). The registers are elements: two 16-bit ones share
    a 32-bit register, the first in its low half.
    """

    name: str
    mnemonic: str
    m: int
    n: int
    k: int
    operand: str  # dtype of A and B
    accumulator: str  # dtype of C and D
    a: Layout
    b: Layout
    c: Layout

    def runs_on(self, target: Target) -> bool:
        """Whether the target has it: bf16 and a depth of 16 came with sm_80."""
        return target.capability >= (8, 0) or (self.operand in target.mma_dtypes and self.k == 8)


def _mma(k: int, operand: str) -> MmaAtom:
    return MmaAtom(
        name=f"m16n8k{k}.{operand}",
        mnemonic=f"mma.sync.aligned.m16n8k{k}.row.col.f32.{operand}.{operand}.f32",
        m=16, n=8, k=k, operand=operand, accumulator="f32",
        a=fragment(16, k, 2, "m", "k"), b=fragment(8, k, 2, "n", "k"), c=fragment(16, 8, 2, "m", "n"),
    )  # fmt: skip


MMA_ATOMS: dict[str, MmaAtom] = {
    atom.name: atom for atom in (_mma(k, dtype) for dtype in ("f16", "bf16") for k in (8, 16))
}

# A of wgmma.m64nNk16 with 16-bit elements, in registers: each warp of the group holds 16 rows in mma.sync's order.
# Source: PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16".
WGMMA_A = fragment(16, 16, 2, "m", "k") * Layout.identity("warp", 2, "m")


# -- ldmatrix ----------------------------------------------------------------------------------------------------------


def ldmatrix(count: int, transposed: bool = False) -> Layout:
    """(register, lane) -> (row, col, matrix) of ldmatrix.x1/.x2/.x4 (`count`) on 8 x 8 matrices of 16-bit elements.

    `register` counts elements: 2 j and 2 j + 1 are the two halves of the j-th 32-bit register and come from matrix j.
    Lane 4 g + q gets row g, columns 2 q and 2 q + 1; with `.trans` column g, rows 2 q and 2 q + 1.
    Source: PTX ISA, "ldmatrix".
    """
    row, col = ("col", "row") if transposed else ("row", "col")
    matrices = Layout.identity("register", count.bit_length() - 1, "matrix")
    return (fragment(8, 8, 2, row, col) * matrices).reorder(outs=("row", "col", "matrix"))


def ldmatrix_addresses(count: int) -> Layout:
    """lane -> (row, matrix): whose 16-byte row the address of a lane names; lanes from 8 * count on are ignored.

    (lane: row0 row1 row2 matrix0 matrix1) -> (row 3, matrix 2) for .x4. Source: PTX ISA, "ldmatrix".
    """
    return Layout.identity("lane", 3, "row") * Layout.identity("lane", count.bit_length() - 1, "matrix")
