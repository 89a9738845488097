"""Integer codes with scales and zero points: GPTQ, AWQ, compressed-tensors, HQQ, torchao and BitNet.

Sources, read and run: gptqmodel 7.7.0, autoawq 0.2.9, compressed-tensors 0.17.1 and 0.18.0, hqq 0.2.8, torchao 0.18.0
with fbgemm-gpu's int4 packing, transformers' integration of BitNet.
"""

import functools
import math

import numpy as np

from lowbitvm import dtypes
from lowbitvm.arrays import cast
from lowbitvm.errors import LowbitvmError
from lowbitvm.foreign.arrays import from_numpy
from lowbitvm.foreign.bits import Packing
from lowbitvm.foreign.scheme import Fields, Integer, Options, Part, Plan, Record, Scheme, Tensors, tensor_of

WORD = ("i32", "u32")
HALF = ("f16", "bf16", "f32")
HQQ = {1: 1, 2: 2, 3: 3, 4: 4, 5: 8, 6: 8, 8: 8}  # bits of a code -> bits that hqq gives it
COMPRESSED = (2, 3, 4, 5, 6, 7, 8)  # bits of compressed-tensors' codes
PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}  # of gptq_p, the low bits first


def stream(pattern: str, bits: int, unit: int = 32) -> Packing:
    """Codes that follow one another without gaps in words of `unit` bits: `s c b` in the pattern."""
    return Packing(pattern, unit, trimmed=True, b=bits, c=unit // math.gcd(bits, unit))


def kept(pattern: str) -> Packing:
    """Elements that are only rearranged."""
    return Packing(pattern)


def offset_binary(bits: int) -> Integer:
    """Signed numbers stored as value + 2**(bits - 1)."""
    return Integer(bits, bias=1 << (bits - 1))


def twos_complement(bits: int) -> Integer:
    """Signed numbers stored modulo 2**bits."""
    return Integer(bits, bias=1 << (bits - 1), add=1 << (bits - 1))


def _invalid(problem: str, fix: str) -> LowbitvmError:
    return LowbitvmError("ARGUMENT_INVALID", problem, fix)


def needed(options: Options, option: str, why: str) -> int:
    """An option that must be given as a positive integer."""
    value = options.get(option)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value <= 0:
        raise _invalid(f"the option {option} is {value!r}, {why}", f"pass {option}= as a positive integer")
    return int(value)


def _among(bits: int, name: str, choices: tuple[int, ...]) -> int:
    if bits not in choices:
        fix = f"use {', '.join(map(str, choices))}"
        raise LowbitvmError("FORMAT_UNSUPPORTED", f"{name} stores no codes of {bits} bits", fix)
    return bits


# -- GPTQ --------------------------------------------------------------------------------------------------------------


def _infer_gptq(widths: tuple[int, ...], tensors: Tensors, options: Options) -> Options:
    """N and G from the scales, the bits from the width of the zeros, K from g_idx or from the words."""
    rows, _ = tensor_of("qweight", tensors)
    groups, out_features = tensor_of("scales", tensors)
    width = tensor_of("qzeros", tensors)[1]
    known = tensor_of("g_idx", tensors, dims=1)[0] if "g_idx" in tensors else options.get("in_features")
    fitting = [
        bits
        for bits in widths
        if -(-out_features * bits // 32) == width and (known is None or -(-known * bits // 32) == rows)
    ]
    if "bits" not in options and len(fitting) != 1:
        problem = (
            f"qweight with {rows} rows and qzeros with {width} words fit codes of {fitting or 'no number of'} bits"
        )
        raise _invalid(problem, "pass bits=")
    bits = needed(options, "bits", "bits of a code") if "bits" in options else fitting[0]
    shape = (out_features, rows * 32 // bits if known is None else known)
    return {**options, "bits": bits, "shape": shape, "groups": groups}


def _gptq(version: int, planar: bool, name: str) -> Scheme:
    widths = tuple(PLANES) if planar else (2, 3, 4, 8)

    def plan(options: Options) -> Plan:
        bits = _among(options["bits"], name, widths)
        packed = (("qweight", "codes", "{} n -> n (s c) b", 0), ("qzeros", "zeros", "g {} -> (s c) g b", 1))
        parts = []
        for tensor, field, pattern, dim in packed:
            if not planar:
                parts.append(Part(tensor, field, stream(pattern.format("[s c b]"), bits), WORD))
                continue
            low = 0
            for width in PLANES[bits]:
                pattern_of = pattern.format("s [c:32 b]")
                record = Record(bits, low, low + width, dim)
                parts.append(Part(tensor, field, Packing(pattern_of, 32, b=width), WORD, low, record=record))
                low += width
        parts.append(Part("scales", "scales", kept("g n -> n g"), HALF))
        parts.append(Part("g_idx", "g_idx", kept("k -> k"), ("i32", "i64"), optional="read"))
        return Plan(
            code=f"u{bits}",
            zero="int",
            parts=tuple(parts),
            numbers={"zeros": Integer(bits, add=1 if version == 1 else 0)},
            cropped={"codes": options["shape"], "zeros": (options["shape"][0], options["groups"])},
        )

    return Scheme(plan, functools.partial(_infer_gptq, widths), ("bits", "in_features"))


# -- AWQ ---------------------------------------------------------------------------------------------------------------


def _infer_awq(tensors: Tensors, options: Options) -> Options:
    in_features, width = tensor_of("qweight", tensors)
    return {**options, "shape": (8 * width, in_features)}


def _awq(options: Options) -> Plan:
    nibbles = "[s h:2 j:4 b:4]"  # nibble 4 h + j of a word is column 2 j + h
    return Plan(
        code="u4",
        zero="int",
        parts=(
            Part("qweight", "codes", Packing(f"k {nibbles} -> (s j h) k b", 32), WORD),
            Part("qzeros", "zeros", Packing(f"g {nibbles} -> (s j h) g b", 32), WORD),
            Part("scales", "scales", kept("g n -> n g"), HALF),
        ),
        numbers={"zeros": Integer(4)},
        cropped={"codes": whole(options["shape"], 0, 8)},
    )


def whole(shape: tuple[int, int], dim: int, size: int) -> tuple[int, int]:
    """The shape, if a dimension fills whole words."""
    if shape[dim] % size:
        problem = f"{('out_features', 'in_features')[dim]} {shape[dim]} is not a multiple of {size}"
        raise LowbitvmError("SHAPE_MISMATCH", problem, f"pad it to {-(-shape[dim] // size) * size}")
    return shape


def _awq_width(groups: int, group: int) -> int:
    """Groups with the padding that the GEMV kernels read: a multiple of 8, of 16 for groups of 64, of 32 for 32."""
    multiple = 8 if group >= 128 else 16 if group >= 64 else 32
    return -(-groups // multiple) * multiple


def _infer_awq_gemv(tensors: Tensors, options: Options) -> Options:
    out_features, width = tensor_of("qweight", tensors)
    return _with_groups({**options, "shape": (out_features, 8 * width)})


def _infer_awq_fast(tensors: Tensors, options: Options) -> Options:
    quarter, in_features = tensor_of("qweight", tensors)
    return _with_groups({**options, "shape": (4 * quarter, in_features)})


def _with_groups(options: Options) -> Options:
    in_features, group = options["shape"][1], needed(options, "group", "input features that share a scale")
    if in_features % group:
        problem = f"in_features {in_features} is not a multiple of the group {group}"
        raise LowbitvmError("GROUP_INDIVISIBLE", problem, "pass the checkpoint's group size")
    return {**options, "groups": in_features // group}


def _awq_gemv(options: Options) -> Plan:
    (out_features, in_features), groups = options["shape"], options["groups"]
    padded = (out_features, _awq_width(groups, in_features // max(groups, 1)))
    return Plan(
        code="u4",
        zero="int",
        parts=(
            Part("qweight", "codes", Packing("n [s c:8 b:4] -> n (s c) b", 32), WORD),
            Part("qzeros", "zeros", Packing("n [s c:8 b:4] -> n (s c) b", 32), WORD),
            Part("scales", "scales", kept("n g -> n g"), HALF),
        ),
        numbers={"zeros": Integer(4)},
        cropped={
            "codes": whole(options["shape"], 1, 8),
            "zeros": (out_features, groups),
            "scales": (out_features, groups),
        },
        padded={"zeros": padded, "scales": padded},
    )


def _awq_fast(options: Options) -> Plan:
    (out_features, in_features), groups = options["shape"], options["groups"]
    padded = (out_features, _awq_width(groups, in_features // max(groups, 1)))
    codes = "n [k i:4 h:2 y:4 z:2 x:4 b:4] -> (n i) (k h x y z) b"  # i: four rows beside each other
    return Plan(
        code="u4",
        zero="offset",
        parts=(
            Part("qweight", "codes", Packing(codes, 16), ("i16", "u16")),
            Part("qzeros", "zeros", kept("g n -> n g"), HALF),
            Part("scales", "scales", kept("g n -> n g"), HALF),
        ),
        cropped={
            "codes": whole(whole(options["shape"], 1, 64), 0, 4),
            "zeros": (out_features, groups),
            "scales": (out_features, groups),
        },
        padded={"zeros": padded, "scales": padded},
    )


# -- compressed-tensors ------------------------------------------------------------------------------------------------


def _infer_compressed(tensors: Tensors, options: Options) -> Options:
    """N and K from weight_shape; whether the codes lie dense from the number of words."""
    bits = _among(needed(options, "bits", "bits of a code"), "compressed_tensors", COMPRESSED)
    rows, words = tensor_of("weight_packed", tensors)
    tensor_of("weight_shape", tensors, dims=1)
    shape = tuple(int(size) for size in tensors["weight_shape"])
    _, groups = tensor_of("weight_scale", tensors)
    if len(shape) != 2 or shape[0] != rows:
        problem = f"weight_shape is {shape} beside weight_packed {(rows, words)}"
        raise LowbitvmError("SHAPE_MISMATCH", problem, "pass the tensors of one weight")
    dense, loose = -(-shape[1] * bits // 32), -(-shape[1] // (32 // bits))
    if options.get("dense") is None and dense == loose and bits in (3, 5, 6, 7):
        problem = f"{shape[1]} codes of {bits} bits take {dense} words in both packings"
        raise _invalid(problem, "pass dense=True for compressed-tensors 0.18 and later, dense=False for older")
    return {"dense": words == dense, **options, "shape": shape, "groups": groups, "like": tensors["weight_packed"]}


def _compressed(options: Options) -> Plan:
    bits = _among(options["bits"], "compressed_tensors", COMPRESSED)
    (out_features, in_features), dense = options["shape"], options.get("dense", True)
    count = 32 // bits

    def words(pattern: str) -> Packing:
        if dense or 32 % bits == 0:
            return stream(pattern.format("s c b"), bits)
        return Packing(pattern.format(f"s +{32 - count * bits} c b"), 32, c=count, b=bits)

    return Plan(
        code=f"i{bits}",
        zero="int",
        parts=(
            Part("weight_packed", "codes", words("n [{}] -> n (s c) b"), WORD),
            Part("weight_scale", "scales", kept("n g -> n g"), HALF),
            Part("weight_zero_point", "zeros", words("[{}] g -> (s c) g b"), WORD, optional="always"),
            Part("weight_g_idx", "g_idx", kept("k -> k"), ("i32", "i64"), optional="always"),
            Part("weight_shape", "shape", kept("i -> i"), ("i64",)),
        ),
        numbers={"codes": offset_binary(bits), "zeros": offset_binary(bits)},
        cropped={"codes": (out_features, in_features), "zeros": (out_features, options["groups"])},
        constants={"shape": from_numpy(options["like"], np.array(options["shape"], np.int64))},
    )


# -- HQQ ---------------------------------------------------------------------------------------------------------------


def _infer_hqq(tensors: Tensors, options: Options) -> Options:
    bits, shape = needed(options, "bits", "bits of a code"), given_shape(options)
    _, group = tensor_of("W_q", tensors)
    if options.get("axis", 1) != 1:
        raise LowbitvmError(
            "FORMAT_UNSUPPORTED",
            f"axis={options['axis']} of HQQ shares scales along out_features",
            "quantise with axis=1",
        )
    if shape[1] % max(group, 1):
        problem = f"in_features {shape[1]} is not a multiple of the group {group}: groups would span rows"
        raise LowbitvmError("GROUP_INDIVISIBLE", problem, "quantise with a group size that divides in_features")
    return {**options, "bits": bits, "shape": shape, "groups": shape[1] // max(group, 1)}


def given_shape(options: Options) -> tuple[int, int]:
    shape = options.get("shape", ())
    sizes = tuple(shape) if hasattr(shape, "__iter__") else ()
    if len(sizes) != 2 or not all(isinstance(size, int | np.integer) and size >= 0 for size in sizes):
        raise _invalid(f"shape is {shape!r}", "pass shape=(out_features, in_features), which the tensors do not tell")
    return int(sizes[0]), int(sizes[1])


def _hqq(options: Options) -> Plan:
    """Codes as a matrix of (N * G, K / G): its rows are striped over the bits of a word, the first in the highest."""
    bits = _among(options["bits"], "hqq", tuple(HQQ))
    width = HQQ[bits]
    (out_features, in_features), groups = options["shape"], options["groups"]
    striped, unit, count = ("[s +2 ~i b] m", 32, 10) if bits == 3 else ("[s ~i b] m", 8, 8 // width)
    rows, shape = out_features * groups, (out_features, groups)
    if unit == 8:
        whole((rows, in_features), 0, count)
    return Plan(
        code=f"u{bits}",
        zero="float",
        parts=(
            Part(
                "W_q",
                "codes",
                Packing(f"{striped} -> (i s) m b", unit, i=count, b=width),
                WORD if bits == 3 else ("u8",),
            ),
            Part("scale", "scales", kept("r u -> r u"), HALF),
            Part("zero", "zeros", kept("r u -> r u"), HALF),
        ),
        numbers={"codes": Integer(width, used=None if width == bits else 1 << bits)},
        cropped={"codes": (rows, in_features // max(groups, 1)), "scales": (rows, 1), "zeros": (rows, 1)},
        shaped={"codes": (out_features, in_features), "scales": shape, "zeros": shape},
    )


# -- torchao and BitNet ------------------------------------------------------------------------------------------------


def _torchao(_: Options) -> Plan:
    return Plan(
        code="i4",
        zero="offset",
        parts=(
            Part("qdata", "codes", Packing("n [s c:2 b:4] -> n (s c) b"), ("i8", "u8")),
            Part("scale", "scales", kept("g n -> n g"), HALF),
            Part("zero_point", "zeros", kept("g n -> n g"), HALF),
        ),
        numbers={"codes": twos_complement(4)},
    )


def _infer_bitnet(tensors: Tensors, options: Options) -> Options:
    rows, in_features = tensor_of("weight", tensors)
    out_features = needed(options, "out_features", "rows of the weight") if "out_features" in options else 4 * rows
    return {**options, "shape": (out_features, in_features)}


def _bitnet(options: Options) -> Plan:
    divides = options.get("divides", True)
    scale = Part("weight_scale", "weight_scale" if divides else "scales", kept("u -> u"), HALF)

    def derive(fields: Fields) -> Fields:
        return {"scales": (1 / cast(fields["weight_scale"], dtypes.f32)).reshape(1, 1)}

    return Plan(
        code="ternary",
        zero=None,
        parts=(Part("weight", "codes", Packing("[s i:4 b:2] k -> (i s) k b"), ("u8",)), scale),
        numbers={"codes": Integer(2, bias=1, used=3)},
        derive=derive if divides else None,
        cropped={"codes": options["shape"], "scales": (1,), "weight_scale": (1,)},
        shaped={"scales": (1, 1)},
        group="tensor",
    )


def _as_given(_: Tensors, options: Options) -> Options:
    return options


SCHEMES: dict[str, Scheme] = {
    "gptq": _gptq(1, False, "gptq"),
    "gptq_v2": _gptq(2, False, "gptq_v2"),
    "gptq_p": _gptq(2, True, "gptq_p"),
    "awq": Scheme(_awq, _infer_awq),
    "awq_gemv": Scheme(_awq_gemv, _infer_awq_gemv, ("group",)),
    "awq_gemv_fast": Scheme(_awq_fast, _infer_awq_fast, ("group",)),
    "compressed_tensors": Scheme(_compressed, _infer_compressed, ("bits", "dense")),
    "hqq": Scheme(_hqq, _infer_hqq, ("bits", "shape", "axis")),
    "torchao_int4": Scheme(_torchao, _as_given),
    "bitnet": Scheme(_bitnet, _infer_bitnet, ("out_features", "divides")),
}
