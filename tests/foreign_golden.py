"""Makes tests/golden/foreign.npz: weights that other projects' own code packed, for tests/test_foreign.py.

    python tests/foreign_golden.py --gptqmodel DIR --any-precision FILE --torchao-07 DIR \\
        --compressed-tensors-017 DIR --compressed-tensors-020 DIR

Run it where autoawq 0.2.9, bitsandbytes 0.50, compressed-tensors 0.18, hqq 0.2.8, nvidia-modelopt 0.47, transformers
and torch are installed. The options name what cannot stand beside them: the unpacked source distribution of gptqmodel
7.7.0, any_precision/quantization/pack.py of any-precision-llm, and directories with compressed-tensors 0.17.1 and
0.20.0 and torchao 0.7.0. Every case holds the tensors of a checkpoint ("CASE/tensor/NAME") beside what went into them
("CASE/codes", "CASE/scales", ...) or what their own library decodes them to ("CASE/weight").
"""

import argparse
import ast
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

CASES: dict[str, Any] = {}
RANDOM = np.random.default_rng(20)


def load(path: Path, name: str) -> Any:
    """A module from its file alone."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def functions(path: Path, names: dict[str, Any]) -> dict[str, Any]:
    """All top-level functions of a file that starts with imports which are not there."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in tree.body:
        node.decorator_list = []
    exec(compile("from __future__ import annotations\n" + ast.unparse(tree), str(path), "exec"), names)
    return names


def keep(case: str, tensors: dict[str, Any], **known: Any) -> None:
    for group, arrays in (("tensor/", tensors), ("", known)):
        for name, array in arrays.items():
            array = array.detach() if isinstance(array, torch.Tensor) else np.asarray(array)
            if isinstance(array, torch.Tensor):
                array = array.view(torch.uint8) if "float8" in str(array.dtype) else array
                array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
            CASES[f"{case}/{group}{name}"] = array


def codes(bits: int, *shape: int) -> Any:
    return torch.from_numpy(RANDOM.integers(0, 1 << bits, shape, dtype=np.int64))


def halves(*shape: int) -> Any:
    return torch.from_numpy(RANDOM.uniform(0.5, 2, shape).astype(np.float16))


def gptq(folder: Path) -> None:
    planar = load(folder / "gptqmodel/utils/planar_packing.py", "planar_packing")
    names = {**vars(planar), "torch": torch}
    dequant = functions(folder / "gptqmodel/utils/model_dequant.py", names)
    for bits in (2, 3, 4, 5, 6, 7, 8):
        for planes in (False, True):
            if bits in (5, 6, 7) and not planes:
                continue
            q, z, scales = codes(bits, 32, 64), codes(bits, 32, 2), halves(32, 2)
            g_idx = torch.from_numpy(RANDOM.permutation(np.arange(64) // 32).astype(np.int32))
            word = torch.int32
            tensors = {
                "qweight": dequant["pack_cols"](q, bits, pack_dtype=word, planar=planes).T.contiguous(),
                "qzeros": dequant["pack_cols"](z.T.contiguous(), bits, pack_dtype=word, planar=planes),
                "scales": scales.T.contiguous(),
                "g_idx": g_idx,
            }
            assert torch.equal(dequant["unpack_rows"](tensors["qweight"], bits, planar=planes).T.long(), q)
            keep(f"gptq_{'p' if planes else 'v2'}_{bits}", tensors, codes=q, zeros=z, scales=scales, g_idx=g_idx)
            if not planes:
                minus = dequant["_revert_gptq_v1_qzeros_correction"](tensors["qzeros"], bits)
                keep(f"gptq_{bits}", {**tensors, "qzeros": minus}, codes=q, zeros=z, scales=scales, g_idx=g_idx)


def awq() -> None:
    for name in ("awq", "awq.utils", "awq.modules"):
        sys.modules[name] = types.ModuleType(name)
    module, utils = types.ModuleType("awq.utils.module"), types.ModuleType("awq.utils.utils")
    module.try_import = lambda name: (None, "")  # type: ignore[attr-defined]
    utils.get_best_device = lambda: "cpu"  # type: ignore[attr-defined]
    folder = Path(importlib.util.find_spec("hqq").origin).parents[1] / "awq"  # type: ignore[union-attr,arg-type]
    sys.modules |= {"awq.utils.module": module, "awq.utils.utils": utils}
    sys.modules["awq.utils.packing_utils"] = load(folder / "utils/packing_utils.py", "awq.utils.packing_utils")
    for case, file, kind, group in (
        ("awq", "gemm", "WQLinear_GEMM", 64),
        ("awq_gemv", "gemv", "WQLinear_GEMV", 64),
        ("awq_gemv_fast", "gemv_fast", "WQLinear_GEMVFast", 128),
    ):
        rows, columns = 32, 256
        q, z, scales = codes(4, rows, columns), codes(4, rows, columns // group), halves(rows, columns // group)
        weight = ((q - z.repeat_interleave(group, 1)) * scales.repeat_interleave(group, 1)).half()
        linear = torch.nn.Linear(columns, rows, bias=False)
        linear.weight.data = weight
        arguments = (scales.T, z.T) if file == "gemm" else (scales, z)
        layer = getattr(load(folder / f"modules/linear/{file}.py", file), kind)
        packed = layer.from_linear(linear, 4, group, scales=arguments[0], zeros=arguments[1])
        tensors = {name: getattr(packed, name) for name in ("qweight", "qzeros", "scales")}
        keep(case, tensors, codes=q, zeros=z, scales=scales)


def compressed(folder: Path) -> None:
    old = load(folder / "compressed_tensors/compressors/pack_quantized/helpers.py", "old_helpers")
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
    from compressed_tensors.compressors.pack_quantized import helpers as new

    for bits in (2, 3, 4, 5, 6, 7, 8):
        for dense, module in ((True, new), (False, old)):
            half = 1 << bits - 1
            q, z, scales = codes(bits, 9, 90) - half, codes(bits, 9, 3) - half, halves(9, 3)
            tensors = {
                "weight_packed": module.pack_to_int32(q.to(torch.int8), bits),
                "weight_zero_point": module.pack_to_int32(z.to(torch.int8), bits, packed_dim=0).contiguous(),
                "weight_scale": scales,
                "weight_shape": torch.tensor([9, 90]),
            }
            keep(f"compressed_tensors_{'dense' if dense else 'words'}_{bits}", tensors, codes=q, zeros=z, scales=scales)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    q = codes(4, 5, 64)
    signed = torch.where(q < 8, values[q % 8], -values[q % 8])
    keep("compressed_tensors_mxfp4", {"weight_packed": pack_fp4_to_uint8(signed)}, codes=q)


def mxfp6(folder: Path) -> None:
    module = load(folder / "compressed_tensors/compressors/mxfp6/helpers.py", "mxfp6_helpers")
    q = codes(6, 5, 64)
    values = torch.where(q < 32, module.kE2M3ToFloat[q % 32], -module.kE2M3ToFloat[q % 32])
    keep("compressed_tensors_mxfp6", {"weight_packed": module.pack_fp6_to_uint8(values)}, codes=q)


def hqq() -> None:
    from hqq.core.quantize import Quantizer

    weight = torch.from_numpy(RANDOM.normal(size=(8, 64)).astype(np.float32))
    for bits in (1, 2, 3, 4, 8):
        packed, meta = Quantizer.quantize(
            weight, nbits=bits, group_size=32, axis=1, optimize=False, device="cpu", compute_dtype=torch.float32
        )
        tensors = {"W_q": packed, "scale": meta["scale"], "zero": meta["zero"]}
        keep(f"hqq_{bits}", tensors, weight=Quantizer.dequantize(packed, meta))


def bitsandbytes() -> None:
    from bitsandbytes import functional

    for kind in ("nf4", "fp4"):
        weight = torch.from_numpy(RANDOM.normal(size=(3, 128)).astype(np.float32))
        packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=False, quant_type=kind)
        decoded = functional.dequantize_4bit(packed, state)
        keep(f"bitsandbytes_{kind}", {"weight": packed, **state.as_dict(packed=True)}, weight=decoded)
    weight = torch.from_numpy(RANDOM.normal(size=(20, 1024)).astype(np.float32))  # 320 scales: more than one block
    packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    keep("bitsandbytes_nested", {"weight": packed, **state.as_dict(packed=True)}, scales=scales.reshape(20, 16))


def block_floats() -> None:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = codes(8, 1, 6, 4, 16).to(torch.uint8), (codes(4, 1, 6, 4) + 120).to(torch.uint8)
    decoded = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)[0].T
    keep("mxfp4", {"blocks": blocks[0], "scales": scales[0]}, weight=decoded)
    weight = torch.from_numpy(RANDOM.normal(size=(8, 64)).astype(np.float32))
    packed, scale, second = NVFP4QTensor.quantize(weight, 16)
    decoded = packed.dequantize(scale=scale, double_scale=second, block_sizes={-1: 16}, dtype=torch.float32)
    tensors = {"weight": packed._quantized_data, "weight_scale": scale, "weight_scale_2": second}
    keep("nvfp4", tensors, weight=decoded)


def bitnet() -> None:
    from transformers.integrations.bitnet import pack_weights

    for rows in (16, 18):
        ternary = torch.from_numpy(RANDOM.integers(-1, 2, (rows, 24)))
        keep(f"bitnet_{rows}", {"weight": pack_weights(ternary.clone())}, codes=ternary)


def fp6(folder: Path) -> None:
    text = (folder / "torchao/dtypes/floatx/floatx_tensor_core_layout.py").read_text()
    names: dict[str, Any] = {"torch": torch, "Tensor": torch.Tensor, "reduce": __import__("functools").reduce}
    wanted = ("_pack", "_unpack", "_bit_interleave", "_pack_tc_floatx", "_pack_tc_fp6")
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    exec(compile("from __future__ import annotations\n" + ast.unparse(tree), "torchao", "exec"), names)
    q = codes(6, 64, 128).to(torch.uint8)
    packed = names["_pack_tc_floatx"](q, 6)
    assert (packed == names["_pack_tc_fp6"](q)).all()
    keep("fp6_llm_prepacked", {"weight": packed.view(torch.int32)}, codes=q)


def any_precision(file: Path) -> None:
    module = functions(file, {"np": np, "_bytes_per_thread": 4})
    for columns in (96, 1024, 1120):
        q = codes(3, 3, columns).numpy().astype(np.uint8)
        planes = np.stack([np.packbits(q.flatten() >> bit & 1).reshape(3, columns // 8) for bit in (2, 1, 0)])
        keep(f"any_precision_{columns}", {"qweight": module["_permute_bitmaps_int32"](planes)}, codes=q)


def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("gptqmodel", "any-precision", "compressed-tensors-017", "compressed-tensors-020", "torchao-07"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    given = parser.parse_args()
    gptq(given.gptqmodel)
    compressed(given.compressed_tensors_017)
    hqq()
    bitsandbytes()
    block_floats()
    bitnet()
    fp6(given.torchao_07)
    any_precision(given.any_precision)
    awq()
    mxfp6(given.compressed_tensors_020)
    np.savez_compressed(Path(__file__).parent / "golden/foreign.npz", **CASES)


if __name__ == "__main__":
    main()
