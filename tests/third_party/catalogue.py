"""Every kernel that the tests of this folder run, by name and target: what `python -m tests.third_party` compiles."""

from dataclasses import dataclass, field
from typing import Any

from tests.third_party.build import CudaSource, TritonKernel

ALL = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_120")
AMPERE = ALL[1:]
ADA = ALL[2:]


@dataclass(frozen=True)
class Row:
    """A Triton kernel: `types` by parameter as "x y: *fp32; n: i32"; `aligned`: arguments that are multiples of 16."""

    function: str
    types: str
    constants: dict[str, Any]
    aligned: str = ""
    targets: tuple[str, ...] = ALL
    dots: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def kernel(self, arch: str) -> TritonKernel:
        types = {}
        for part in self.types.split(";"):
            names, kind = part.split(":")
            types |= dict.fromkeys(names.split(), kind.strip())
        # Four warps make a warp group: Triton would use Hopper's wgmma instead of mma.
        warps = 2 if self.dots and arch == "sm_90" else 4
        options = tuple(self.options.items())
        return TritonKernel(self.function, arch, types, self.constants, warps, 3, tuple(self.aligned.split()), options)


def _matmul(operand: str, result: str, total: str, targets: tuple[str, ...] = ALL, **constants: Any) -> Row:
    types = f"a b: *{operand}; c: *{result}; M N K am ak bk bn cm cn: i32"
    sizes = {"BM": 64, "BN": 32, "BK": 32, "GROUP": 4, "TYPE": f"tl.{total}", "ACTIVATE": False}
    return Row("matmul", types, sizes | constants, "a b c", targets, dots=True)


def _precise(kind: str, precision: str, targets: tuple[str, ...] = ALL) -> Row:
    sizes = {"PRECISION": precision, "BM": 32, "BN": 32, "BK": 32}
    return Row("matmul_precise", f"a b c: *{kind}; K: i32", sizes, targets=targets, dots=True)


def _split(function: str, buffers: str) -> Row:
    sizes = {"BM": 32, "BN": 32, "BK": 32, "SPLIT": 4}
    return Row(function, f"{buffers}; M N K: i32", sizes, dots=True)


def _attention(causal: bool) -> Row:
    types = "q k v out: *fp16; logs: *fp32; length: i32; scale: fp32"
    return Row("flash_attention", types, {"BM": 64, "BN": 32, "D": 64, "CAUSAL": causal}, "q k v out", dots=True)


def _convert(wide: str, narrow: str, targets: tuple[str, ...] = ALL) -> Row:
    return Row("convert", f"x back: *{wide}; narrow: *{narrow}; n: i32", {"BLOCK": 512}, "x narrow back", targets)


def _scaled(kind: str, scale: str, packed: int, group: int, targets: tuple[str, ...]) -> Row:
    sizes = {"K": 128, "LEFT": kind, "RIGHT": kind, "PACKED": packed, "GROUP": group, "BM": 32, "BN": 32}
    types = f"a b: *u8; a_scales b_scales: *{scale}; c: *fp32"
    return Row("scaled_dot", types, sizes, targets=targets, dots=True)


TRITON = {
    "vector_add": Row("vector_add", "x y out: *fp32; n: i32", {"BLOCK": 256}, "x y out"),
    "softmax": Row("softmax", "x y: *fp32; rows columns: i32", {"BLOCK": 256, "STAGES": 3}),
    "softmax_f16": Row("softmax", "x y: *fp16; rows columns: i32", {"BLOCK": 512, "STAGES": 1}),
    "layer_norm": Row(
        "layer_norm", "x y: *fp16; weight bias means deviations: *fp32; columns: i32; epsilon: fp32", {"BLOCK": 256}
    ),
    "rms_norm": Row("rms_norm", "x y weight: *bf16; columns: i32; epsilon: fp32", {"BLOCK": 512}),
    "matmul_f16": _matmul("fp16", "fp16", "float32"),
    "matmul_aligned": Row(
        "matmul",
        "a b c: *fp16; M N K am bk cm: i32",
        {"BM": 32, "BN": 32, "BK": 32, "GROUP": 4, "TYPE": "tl.float32", "ACTIVATE": False, "ak": 1, "bn": 1, "cn": 1},
        "a b c M N K am bk cm",
        dots=True,
    ),
    "matmul_f16_total": _matmul("fp16", "fp16", "float16"),
    "matmul_bf16": _matmul("bf16", "fp32", "float32", ACTIVATE=True),
    "matmul_s8": _matmul("i8", "i32", "int32", AMPERE, BK=64),
    "matmul_e5m2": _matmul("fp8e5", "fp32", "float32", BK=64),
    "matmul_e4m3": _matmul("fp8e4nv", "fp32", "float32", ADA, BK=64),
    "matmul_tf32": _precise("fp32", "tf32"),
    "matmul_tf32x3": _precise("fp32", "tf32x3"),
    "matmul_f32": _precise("fp32", "ieee"),
    "matmul_f64": _precise("fp64", "ieee"),
    "matmul_4bit": Row(
        "matmul_4bit",
        "a: *fp16; codes: *i32; scales: *fp16; zeros: *i32; c: *fp16; M N K: i32",
        {"BM": 16, "BN": 64, "BK": 32, "GROUP": 64},
        "a codes scales c N K",
        dots=True,
    ),
    "attention": _attention(False),
    "causal_attention": _attention(True),
    "split_k_atomic": _split("split_k_atomic", "a b: *fp16; c: *fp32"),
    "split_k_atomic_f16": _split("split_k_atomic", "a b c: *fp16"),
    "split_k_lock": _split("split_k_lock", "a b: *fp16; c: *fp32; locks counts: *i32"),
    "split_k_semaphore": _split("split_k_semaphore", "a b: *fp16; c part: *fp32; arrivals: *i32"),
    "persistent_matmul": Row(
        "persistent_matmul",
        "a b: *fp16; c: *fp32; M N K: i32",
        {"BM": 32, "BN": 32, "BK": 32},
        "a b c N K",
        dots=True,
    ),
    "scaled_e2m1": _scaled("e2m1", "u8", 2, 32, AMPERE),
    "scaled_e4m3": _scaled("e4m3", "u8", 1, 32, ADA),
    "scaled_nvfp4": _scaled("e2m1", "fp8e4nv", 2, 16, ADA),
    "reduce_all": Row(
        "reduce_all",
        "x sums largest smallest where_largest where_smallest xors: *i32; M N: i32",
        {"BM": 32, "BN": 64},
    ),
    "scans": Row("scans", "x gates sums products states backwards: *fp32; N: i32", {"BLOCK": 256}),
    "sort_rows": Row("sort_rows", "x y counts: *i32; N: i32", {"BLOCK": 256, "BINS": 16}),
    "gather_rows": Row("gather_rows", "table out: *fp16; indices: *i64; N: i32", {"BLOCK": 256}),
    "scatter_add": Row("scatter_add", "values out: *fp32; indices: *i32; count N: i32", {"BLOCK": 256}),
    "scatter_add_f16": Row("scatter_add", "values out: *fp16; indices: *i32; count N: i32", {"BLOCK": 256}),
    "scatter_add_bf16": Row("scatter_add", "values out: *bf16; indices: *i32; count N: i32", {"BLOCK": 256}),
    "gather_in_tile": Row("gather_in_tile", "x out: *fp32; indices: *i32", {"M": 32, "N": 64}),
    "convert_f32_e5m2": _convert("fp32", "fp8e5", AMPERE),
    "convert_f32_e4m3": _convert("fp32", "fp8e4nv", ADA),
    "convert_f16_e5m2": _convert("fp16", "fp8e5", AMPERE),
    "convert_bf16_e4m3": _convert("bf16", "fp8e4nv", ADA),
    "convert_f32_bf16": _convert("fp32", "bf16"),
    "convert_f32_f16": _convert("fp32", "fp16"),
    "convert_f64_f32": _convert("fp64", "fp32"),
    "quantize_rows": Row("quantize_rows", "x: *fp16; codes: *i8; scales: *fp32; N: i32", {"BLOCK": 512}),
    "swiglu": Row("swiglu", "gate up out: *fp16; n: i32", {"BLOCK": 512}),
    "mathematics": Row("mathematics", "x out: *fp32; n: i32", {"BLOCK": 128}),
    **{f"integers_{t}": Row("integers", f"x y out: *{t}; n: i32", {"BLOCK": 128}) for t in ("i8", "u8", "i16", "i32")},
    **{
        f"integers_{t}": Row("integers", f"x y out: *{t}; n: i32", {"BLOCK": 128}) for t in ("u16", "u32", "i64", "u64")
    },
    "word_integers": Row("word_integers", "x y out: *i32; n: i32", {"BLOCK": 128}),
    "dropout": Row("dropout", "x out: *fp32; n: i32; p: fp32; seed: i32", {"BLOCK": 512}),
    "rope": Row("rope", "x cosines sines out: *fp32; heads: i32", {"D": 64}),
    "cross_entropy": Row("cross_entropy", "logits losses: *fp32; targets: *i64; N: i32", {"BLOCK": 256}),
    "transpose": Row("transpose", "x y: *fp16; M N: i32", {"BM": 32, "BN": 64}),
    "interleave": Row("interleave", "x y joined split: *i32", {"N": 256}),
    "gemv": Row("gemv", "matrix: *fp16; vector out: *fp32; M N: i32", {"BM": 16, "BN": 128}),
    "atomics_i32": Row("atomics", "x out: *i32; n: i32", {"BLOCK": 128}),
    "atomics_u32": Row("atomics", "x out: *u32; n: i32", {"BLOCK": 128}),
    "atomics_i64": Row("atomics", "x out: *i64; n: i32", {"BLOCK": 128}),
    "checked_copy": Row("checked_copy", "x y: *i32; n: i32", {"BLOCK": 128}, options={"debug": True}),
}

GEMMS = {
    "sm_75": ("simt_sm75", "dp4a_sm75", "s8_sm75", "s4_sm75", "b1_sm75", "f16_sm75"),
    "sm_80": (
        "f16_sm80",
        "f16_rows_sm80",
        "f16_f16_sm80",
        "f16_split_sm80",
        "bf16_sm80",
        "tf32_sm80",
        "tf32x3_sm80",
        "s8_sm80",
        "s8_clamp_sm80",
        "u8_sm80",
        "s4_sm80",
        "b1_xor_sm80",
        "b1_and_sm80",
        "f64_sm80",
        "simt_sm80",
    ),
    "sm_89": ("e4m3_sm89", "e5m2_sm89"),
}


def _integer_atoms(shape: str, signed: str, unsigned: str) -> list[str]:
    pairs = [(a, b) for a in (signed, unsigned) for b in (signed, unsigned)]
    return [f"SM80_{shape}_S32{a}{b}S32_TN{end}" for a, b in pairs for end in ("", "_SATURATE")]


EIGHTS = ("E4M3", "E5M2")
NARROW = ("E2M1", "E2M3", "E3M2", *EIGHTS)
ATOMS = {
    "sm_75": ["SM75_16x8x8_F32F16F16F32_TN", "SM75_8x8x16_S32S8S8S32_TN"],
    "sm_80": [
        *(f"SM80_16x8x{k}_{c}F16F16{c}_TN" for k in (8, 16) for c in ("F16", "F32")),
        *(f"SM80_16x8x{k}_F32BF16BF16F32_TN" for k in (8, 16)),
        *(f"SM80_16x8x{k}_F32TF32TF32F32_TN" for k in (4, 8)),
        "SM80_8x8x4_F64F64F64F64_TN",
        *(atom for shape in ("8x8x16", "16x8x16", "16x8x32") for atom in _integer_atoms(shape, "S8", "U8")),
        *(atom for shape in ("8x8x32", "16x8x32", "16x8x64") for atom in _integer_atoms(shape, "S4", "U4")),
        *(
            f"SM80_{shape}_S32U1U1S32_TN_{f}POPC"
            for shape in ("8x8x128", "16x8x128", "16x8x256")
            for f in ("XOR", "AND")
        ),
    ],
    "sm_89": [f"SM89_16x8x32_{c}{a}{b}{c}_TN" for a in EIGHTS for b in EIGHTS for c in ("F16", "F32")],
    "sm_90": [f"SM90_16x8x{k}_F64F64F64F64_TN" for k in (4, 8, 16)],
    "sm_120a": [
        *(f"SM120_16x8x32_F32{a}{b}F32_TN{end}" for a in NARROW for b in NARROW for end in ("", "_VS32")),
        *(f"SM120_16x8x64_F32E2M1E2M1F32_TN_VS{group}" for group in (32, 16)),
    ],
}
CUDA_TARGETS = {
    "arithmetic": ("sm_75", "sm_80", "sm_120"),
    "atomics": ("sm_75", "sm_80"),
    "blocks": ("sm_80",),
    "cluster": ("sm_90", "sm_120a"),
    "dequantise": ("sm_80", "sm_89"),
    "groups": ("sm_75", "sm_80"),
    "language": ("sm_75", "sm_80"),
    "narrow": ("sm_80", "sm_89", "sm_120a"),
    "pipeline": ("sm_75", "sm_80", "sm_89"),
    "recursion": ("sm_75", "sm_90"),
    "reductions": ("sm_75", "sm_80"),
    "simd": ("sm_75", "sm_90"),
    "wmma": ("sm_75", "sm_80", "sm_89"),
}


def gemm(config: str) -> CudaSource:
    arch = next(arch for arch, configs in GEMMS.items() if config in configs)
    return CudaSource("cuda/gemm.cu", arch, (f"CONFIG={config}",), cutlass=True)


def atoms(arch: str) -> CudaSource:
    return CudaSource("cuda/atoms.cu", arch, cutlass=True)


def cuda(name: str, arch: str) -> CudaSource:
    return CudaSource(f"cuda/{name}.cu", arch)


def mistakes(clean: bool) -> CudaSource:
    return CudaSource("cuda/mistakes.cu", "sm_80", ("CLEAN",) if clean else ())


SPARSE = ("f16", "tf32", "s8", "s4")


def sparse(config: str) -> CudaSource:
    return CudaSource("cuda/sparse.cu", "sm_80", (f"CONFIG={config}",), cutlass=True)


BY_VALUE = CudaSource("cuda/by_value.cu", "sm_80", cutlass=True)


def everything() -> list[CudaSource | TritonKernel]:
    found: list[CudaSource | TritonKernel] = [atoms(arch) for arch in reversed(ATOMS)]
    found += [BY_VALUE, mistakes(False), mistakes(True)]
    found += [sparse(config) for config in SPARSE]
    found += [gemm(config) for configs in GEMMS.values() for config in configs]
    found += [cuda(name, arch) for name, targets in CUDA_TARGETS.items() for arch in targets]
    found += [row.kernel(arch) for row in TRITON.values() for arch in row.targets]
    return found
