"""Float codes and codebooks: MXFP4, NVFP4, FP6-LLM, bitsandbytes and any-precision.

Sources, read and run: bitsandbytes 0.50.2, nvidia-modelopt 0.47.0, compressed-tensors 0.18.0 and 0.20.0; read:
gpt-oss's checkpoints, fp6_llm's weight_quant.h and weight_prepacking.h, any-precision-llm's pack.py.
"""

import json
from typing import Any

import numpy as np

from lowbitvm import dtypes
from lowbitvm.arrays import cast, gather, zeros
from lowbitvm.dtypes import Array, is_tensor
from lowbitvm.errors import LowbitvmError
from lowbitvm.foreign.arrays import from_numpy
from lowbitvm.foreign.bits import Packing
from lowbitvm.foreign.integers import WORD, given_shape, kept, needed, whole
from lowbitvm.foreign.scheme import Fields, Options, Part, Plan, Record, Scheme, Tensors, tensor_of

# NF4, the quantiles of a normal distribution (Dettmers et al., QLoRA, appendix E), as bitsandbytes has them in f32
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
PAIRS = "n [s c:2 b:4] -> n (s c) b"  # the low nibble is the even element
BYTES = ("u8",)


def as_given(_: Tensors, options: Options) -> Options:
    """The options of a scheme whose tensors need no further word."""
    return options


# -- block formats -----------------------------------------------------------------------------------------------------


def _mxfp4(options: Options) -> Plan:
    return Plan(
        code="f4e2m1",
        zero=None,
        parts=(
            Part("blocks", "codes", Packing("n g [j:16 h:2 b:4] -> n (g j h) b"), BYTES),
            Part("scales", "scales", kept("n g -> n g"), BYTES, view="e8m0"),
        ),
        group=32,
    )


def _compressed_mx(code: str, pattern: str) -> Scheme:
    parts = (
        Part("weight_packed", "codes", Packing(pattern), BYTES),
        Part("weight_scale", "scales", kept("n g -> n g"), BYTES, view="e8m0"),
    )
    return Scheme(lambda options: Plan(code, None, parts, group=32), as_given)


def _nvfp4(options: Options) -> Plan:
    """modelopt: the second level multiplies."""
    return Plan(
        code="f4e2m1",
        zero=None,
        parts=(
            Part("weight", "codes", Packing(PAIRS), BYTES),
            Part("weight_scale", "scales", kept("n g -> n g"), ("e4m3",)),
            Part("weight_scale_2", "outer", kept("->"), ("f32",)),
        ),
        outers="tensor",
        group=16,
        cropped={"outer": ()},
        shaped={"outer": (1, 1)},
    )


def _compressed_nvfp4(options: Options) -> Plan:
    """compressed-tensors: the second level divides."""

    def derive(fields: Fields) -> Fields:
        return {"outer": (1 / fields["weight_global_scale"]).reshape(1, 1)}

    return Plan(
        code="f4e2m1",
        zero=None,
        parts=(
            Part("weight_packed", "codes", Packing(PAIRS), BYTES),
            Part("weight_scale", "scales", kept("n g -> n g"), ("e4m3",)),
            Part("weight_global_scale", "weight_global_scale", kept("u -> u"), ("f32",)),
        ),
        derive=derive,
        outers="tensor",
        group=16,
        cropped={"weight_global_scale": (1,)},
    )


# -- FP6-LLM -----------------------------------------------------------------------------------------------------------


def _fp6_llm(options: Options) -> Plan:
    """A stream of bits from the highest of each byte on: 4 codes in 3 bytes."""
    codes = Packing("n [s c:4 ~b:6] -> n (s c) b", descending=True)
    parts = (
        Part("weight", "codes", codes, WORD, view="u8"),
        Part("scales", "scales", kept("n -> n"), ("f16",)),
    )
    rows, _ = whole(options["shape"], 1, 16)
    return Plan("f6e3m2", None, parts, cropped={"scales": (rows,)}, shaped={"scales": (rows, 1)}, group="channel")


def _fp6_llm_prepacked(options: Options) -> Plan:
    """The order of the kernel: all high pairs of bits, then all low nibbles, in words as mma lanes (l, t) load them."""
    out_features, in_features = whole(whole(options["shape"], 0, 64), 1, 64)
    words, stored = out_features * in_features // 16, (out_features, in_features // 16 * 3)
    pairs = "[i k q:2 l:8 t:4 e:2 ~r:2 ~p:2 ~h:2 b:2] -> (i q p r l) (k h t e) b"
    nibbles = "[i k q:4 l:8 t:4 e:2 ~r:2 ~h:2 b:4] -> (i q r l) (k h t e) b"
    codes = (
        Part(
            "weight",
            "codes",
            Packing(f"u {pattern.replace('->', '-> u')}", 32, k=in_features // 16, u=1),
            WORD,
            low,
            record=Record(3 * words, start * words, stop * words, shape=stored),
        )
        for pattern, low, start, stop in ((pairs, 4, 0, 1), (nibbles, 0, 1, 3))
    )
    return Plan(
        code="f6e3m2",
        zero=None,
        parts=(*codes, Part("scales", "scales", kept("n -> n"), ("f16",))),
        cropped={"codes": (1, out_features, in_features), "scales": (out_features,)},
        shaped={"codes": (out_features, in_features), "scales": (out_features, 1)},
        group="channel",
    )


def _infer_fp6(tensors: Tensors, options: Options) -> Options:
    rows, words = tensor_of("weight", tensors)
    return {**options, "shape": (rows, words * 16 // 3)}


# -- bitsandbytes ------------------------------------------------------------------------------------------------------


_FP4 = (0, 1 / 16, 8, 12, 4, 6, 2, 3)  # times 1 / 12; the highest bit is the sign
QUANT_MAPS = {
    "nf4": np.array(NF4, np.float32),
    "fp4": np.array([*_FP4, *(-value for value in _FP4)], np.float32) / np.float32(12),
}


def _infer_bnb(kind: str, tensors: Tensors, options: Options) -> Options:
    """The shape and block sizes from the JSON text that the checkpoint has as bytes, or from the options."""
    state = f"quant_state.bitsandbytes__{kind}"
    told: dict[str, Any] = {}
    if state in tensors:
        try:
            told = json.loads(bytes(int(byte) for byte in tensors[state]))
        except (ValueError, TypeError) as error:
            problem = f"{state} is no JSON text: {error}"
            raise LowbitvmError("ARGUMENT_INVALID", problem, "pass the tensor as the checkpoint has it") from error
    known = {name: value for name, value in told.items() if name in BNB_OPTIONS} | options
    return {**known, "shape": given_shape(known), "like": next(iter(tensors.values()), np.zeros(0))} | (
        {"nested": True} if "nested_absmax" in tensors else {}
    )


def _bnb(kind: str, options: Options) -> Plan:
    """Blocks of the flat matrix share a scale, which with double quantisation is a code of 8 bits itself."""
    out_features, in_features = options["shape"]
    usual = in_features // options["groups"] if options.get("groups") else 64
    block = needed({"blocksize": usual, **options}, "blocksize", "codes that share a scale")
    if in_features % block:
        problem = f"in_features {in_features} is not a multiple of the block {block}: blocks would span rows"
        raise LowbitvmError("GROUP_INDIVISIBLE", problem, "quantise with a block size that divides in_features")
    shape, extra = (out_features, in_features // block), options.get("extra", {})
    nested = bool(options.get("nested")) or "nested_absmax" in extra
    size = needed({"nested_blocksize": 256, **options}, "nested_blocksize", "scales that share a second scale")
    constants = {"quant_map": from_numpy(options["like"], QUANT_MAPS[kind])}
    if nested:
        offset = np.array([options.get("nested_offset", 0.0)], np.float32)
        constants["nested_offset"] = from_numpy(options["like"], offset)

    def derive(fields: Fields) -> Fields:
        result = {} if kind == "nf4" else {"table": cast(fields["quant_map"], dtypes.f16).reshape(1, 16)}
        if not nested:
            return result
        second = _repeated(fields["nested_absmax"], size, shape[0] * shape[1])
        scales = gather(fields["nested_quant_map"], fields["absmax"]) * second + fields["nested_offset"]
        return {**result, "scales": scales.reshape(shape)}

    one = kept("i -> i")
    nested_parts = (
        Part("absmax", "absmax", one, BYTES),
        Part("nested_absmax", "nested_absmax", one, ("f32",)),
        Part("nested_quant_map", "nested_quant_map", one, ("f32",)),
    )
    return Plan(
        code="nf4" if kind == "nf4" else "c4",
        zero=None,
        parts=(
            Part("weight", "codes", Packing("[s ~c:2 b:4] u -> (s c) u b"), BYTES),
            *(nested_parts if nested else (Part("absmax", "scales", one, ("f32",)),)),
            Part("quant_map", "quant_map", one, ("f32",)),
            Part(f"quant_state.bitsandbytes__{kind}", "quant_state", one, BYTES, optional="always"),
        ),
        derive=derive,
        cropped={
            "codes": (out_features * in_features, 1),
            "absmax" if nested else "scales": (shape[0] * shape[1],),
            "quant_map": (16,),
            "nested_offset": (1,),
            "nested_quant_map": (256,),
            "nested_absmax": (-(-shape[0] * shape[1] // size),),
        },
        shaped={"codes": (out_features, in_features), "scales": shape},
        constants=constants,
        tables=None if kind == "nf4" else "tensor",
        group=block,
    )


def _repeated(values: Array, times: int, length: int) -> Array:
    """Each value `times` times, the first `length` of them."""
    repeated: Array = values.repeat_interleave(times) if is_tensor(values) else np.repeat(values, times)
    return repeated[:length]


BNB_OPTIONS = ("shape", "blocksize", "nested_blocksize", "nested_offset")


def _bitsandbytes(kind: str) -> Scheme:
    return Scheme(
        lambda options: _bnb(kind, options), lambda tensors, options: _infer_bnb(kind, tensors, options), BNB_OPTIONS
    )


# -- any-precision -----------------------------------------------------------------------------------------------------


def _infer_any_precision(tensors: Tensors, options: Options) -> Options:
    bits, rows, words = tensor_of("qweight", tensors, dims=3)
    return {**options, "bits": bits, "shape": (rows, 32 * words), "like": tensors["qweight"]}


def _any_precision(options: Options) -> Plan:
    """Planes of bits, the highest first; 32 lanes share the bytes of a row's 1024 codes, the rest fewer lanes."""
    bits, (out_features, in_features) = options["bits"], whole(options["shape"], 1, 32)
    full = in_features // 1024 * 1024
    pieces = ((0, full, "w t:32"), (full, in_features, "t"))
    codes = tuple(
        Part(
            "qweight",
            "codes",
            Packing(f"~b n u:1 [{lanes} ~o:4 ~c:8] -> n (u {'w ' if stop == full else ''}o t c) b", 32, b=bits),
            WORD,
            record=Record(in_features // 32, start // 32, stop // 32),
            into=(in_features, start, stop),
        )
        for start, stop, lanes in pieces
        if start < stop
    )
    tables = tuple(
        Part(
            f"lut{b}",
            f"lut{b}" if b < bits else "table",
            kept("n e -> n e"),
            ("f16",),
            optional="always" if b < bits else None,
        )
        for b in range(1, bits + 1)
    )

    def derive(fields: Fields) -> Fields:
        return {"scales": zeros(fields["codes"], (out_features, 1), dtypes.f16) + 1}

    return Plan(
        code=f"c{bits}",
        zero=None,
        parts=(*codes, *tables),
        derive=derive,
        cropped={table.field: (out_features, 1 << b) for b, table in enumerate(tables, 1)},
        shaped={"table": (out_features, 1, 1 << bits)},
        tables="group",
        group="channel",
    )


SCHEMES: dict[str, Scheme] = {
    "mxfp4": Scheme(_mxfp4, as_given),
    "compressed_tensors_mxfp4": _compressed_mx("f4e2m1", PAIRS),
    "compressed_tensors_mxfp6": _compressed_mx("f6e2m3", "n [s c:4 b:6] -> n (s c) b"),
    "nvfp4": Scheme(_nvfp4, as_given),
    "compressed_tensors_nvfp4": Scheme(_compressed_nvfp4, as_given),
    "fp6_llm": Scheme(_fp6_llm, _infer_fp6),
    "fp6_llm_prepacked": Scheme(_fp6_llm_prepacked, _infer_fp6),
    "bitsandbytes_nf4": _bitsandbytes("nf4"),
    "bitsandbytes_fp4": _bitsandbytes("fp4"),
    "any_precision": Scheme(_any_precision, _infer_any_precision),
}
