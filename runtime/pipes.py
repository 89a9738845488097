"""SASS mnemonics: which pipe an instruction occupies, and for how many cycles of a sub-core.

An SM has four sub-cores that issue one warp instruction a cycle each. A unit of L lanes per clock and SM holds a warp
instruction for 32 / (L / 4) = 128 / L cycles. Shared memory serves all four at 128 bytes a clock, so one pass over its
banks (a wavefront) costs four cycles of a sub-core's share. All figures are therefore in the unit of issue slots.

Sources: CUDA C++ Programming Guide, "Arithmetic Instructions", throughput by compute capability; the rates of matrix
instructions are those of `lowbitvm.targets`: published peaks, of which mma.sync reaches a measured share on Hopper; on
data-centre Blackwell no share is published, and it takes at least as long as is counted here. Assumed, for want of a
published number: PRMT, MOV, SEL and the packing conversions F2FP and I2FP run at the rate of integer logic.
"""

import functools
import re
from dataclasses import dataclass

from lowbitvm.targets import Gpu, Target

PIPES = ("integer", "fma", "f16", "conversion", "tensor", "shared")
SUB_CORES = 4
SLOW = {(7, 5): 64, (8, 0): 64}  # lanes of f32 arithmetic, 128 elsewhere
FAST_HALF = {(8, 0): 128, (9, 0): 128}  # lanes of f16x2 arithmetic, 64 elsewhere


@dataclass(frozen=True)
class Kind:
    """A row of the table: `lanes` per clock and SM of the pipe (0: issue slots only); `decodes`: counts as decode."""

    pattern: str
    pipe: str
    lanes: int = 0
    decodes: bool = False


# The first row whose pattern matches the whole mnemonic holds.
KINDS: tuple[Kind, ...] = (
    Kind(r"(HMMA|IMMA|BMMA|QMMA|OMMA|HGMMA|IGMMA|QGMMA)\..*", "tensor"),
    Kind(r"(LDS|STS|LDSM|STSM|LDGSTS|ATOMS|SHFL)\b.*", "shared"),
    Kind(r"(IADD3?|LOP3|LOP|SHF|SHL|SHR|LEA|BMSK|SGXT|BREV|FLO|IMNMX|VIMNMX3?|IABS|VABSDIFF4?|VIADD)\b.*",
         "integer", 64, True),
    Kind(r"(PRMT|SEL|MOV|ISETP|PLOP3|P2R|R2P|F2FP|I2FP|F2IP|I2IP)\b.*", "integer", 64, True),
    Kind(r"(FSETP|FSEL|FMNMX3?|FSET|FCHK)\b.*", "integer", 64),
    Kind(r"(IMAD|IDP4?A?|VIADDMNMX)\b.*", "fma", 64, True),
    Kind(r"(FFMA2?|FADD2?|FMUL2?)\b.*", "fma", 128),
    Kind(r"(HADD2|HMUL2|HFMA2|HMNMX2|HSET2|HSETP2)\b.*", "f16", 128, True),
    Kind(r"(I2F|F2F|F2I|FRND|MUFU|POPC)\b.*", "conversion", 16, True),
    Kind(r"(LDG|STG|LDL|STL|LD|ST|LDC|RED|REDG|ATOMG?|CCTL\w*|UTMA\w+|UBLK\w+|LDGDEPBAR|DEPBAR|MEMBAR|FENCE|ERRBAR)\b.*",
         "memory"),
    Kind(r"(BRA|JMP|BRX|BSSY|BSYNC|BREAK|BMOV|CALL|RET|EXIT|NOP|BAR|B2R|WARPSYNC|WARPGROUP|VOTE|MATCH|ELECT|YIELD|"
         r"NANOSLEEP|SYNCS|ARRIVES|KILL|ACQBULK|PREEXIT|UCGABAR_\w+|CREDUX|REDUX)\b.*", "control"),
    Kind(r"(U[A-Z0-9_]+|S2R|S2UR|CS2R|CS2UR|R2UR|LEPC|GETLMEMBASE)\b.*", "uniform"),
)  # fmt: skip
_COMPILED = [(re.compile(kind.pattern), kind) for kind in KINDS]
_SHAPES = {"1688": (16, 8, 8), "16816": (16, 8, 16), "16832": (16, 8, 32), "16864": (16, 8, 64),
           "88128": (8, 8, 128), "168128": (16, 8, 128), "168256": (16, 8, 256), "8816": (8, 8, 16),
           "8832": (8, 8, 32)}  # fmt: skip
_GROUP_SHAPE = re.compile(r"\w+\.64x(\d+)x(\d+)")


@functools.cache
def kind_of(name: str) -> Kind | None:
    """The table's row for a mnemonic with its modifiers; None where the table has none."""
    return next((kind for pattern, kind in _COMPILED if pattern.fullmatch(name)), None)


def multiply_adds(name: str) -> int:
    """Multiply-adds of one matrix instruction and warp: HMMA.16816.F32 makes 16 x 8 x 16.

    A warp-group instruction is issued by each of its four warps, for a quarter of its 64 rows.
    """
    group = _GROUP_SHAPE.match(name)
    if group:
        return 16 * int(group[1]) * int(group[2])
    digits = next((part for part in name.split(".")[1:] if part in _SHAPES), None)
    if digits is None:
        raise ValueError(f"the shape of {name} is not known")
    m, n, k = _SHAPES[digits]
    return m * n * k


def cycles(name: str, target: Target) -> float:
    """Cycles that an instruction occupies its pipe on a sub-core; 0 for those that cost an issue slot only."""
    kind = kind_of(name)
    if kind is None or (kind.lanes == 0 and kind.pipe not in ("tensor", "shared")):
        return 0.0
    if kind.pipe == "tensor":
        return multiply_adds(name) / (_matrix_rate(name, target.gpu) / 2 / SUB_CORES)
    if kind.pipe == "shared":
        return float(SUB_CORES * wavefronts(name))
    return 32 * SUB_CORES / _lanes(name, kind, target)


def wavefronts(name: str) -> int:
    """Passes over the banks that a shared-memory instruction needs without conflicts: one per 128 bytes of a warp."""
    parts = name.split(".")
    if parts[0] in ("LDSM", "STSM"):
        return int(parts[-1]) if parts[-1] in ("2", "4") else 1
    return 4 if "128" in parts else 2 if "64" in parts else 1


def _lanes(name: str, kind: Kind, target: Target) -> int:
    if kind.pipe == "f16":
        return 64 if "BF16" in name else FAST_HALF.get(target.capability, 64)
    return SLOW.get(target.capability, kind.lanes) if kind.lanes == 128 else kind.lanes


def _matrix_rate(name: str, gpu: Gpu) -> float:
    """Tensor operations per clock and SM of a matrix instruction's operands; f16's where none is published."""
    family = name[0]
    share = 1.0 if "GMMA" in name or name.startswith("UTC") else gpu.sync_share or 1.0
    narrow = {"I": gpu.s4 if "S4" in name or "U4" in name else gpu.s8, "B": gpu.b1, "Q": gpu.fp8, "O": gpu.fp4}
    return (narrow.get(family) or gpu.f16) * share
