"""The CUDA source of a Humming kernel for a GPU that is not here: `python -m lowbitvm.bench.humming_source a800 4`.

Prints one JSON object: the source, and how it is launched. humming-kernels asks the driver what GPU there is, and
builds a library for that; both are replaced by a published data sheet, in this process alone. Its heuristics choose the
tile.
"""

import contextlib
import importlib.util
import json
import os
import sys
import types
from typing import Any

from lowbitvm import targets

SIZE, GROUP = 8192, 128
TERA = 1e3  # GHz to T/s of operations per clock


def main(name: str, bits: int) -> dict[str, Any]:
    """Source, threads, shared bytes and blocks of the kernel for one row, SIZE x SIZE weights of `bits` bits."""
    with contextlib.redirect_stdout(sys.stderr):
        kernels = _kernels(name)
        layer = {"shape_n": SIZE, "shape_k": SIZE, "a_dtype": "float16", "b_dtype": f"uint{bits}"}
        layer |= {"c_dtype": "float16", "bs_dtype": "float16", "weight_scale_group_size": GROUP}
        layer, compute, tunings = kernels.HummingKernel._resolve_configs(layer, {}, None, 0)
        tuning = next(tuning for low, high, tuning in tunings if low < 1 <= high)
        options = layer | compute | tuning
        sms = options.pop("num_sms", 0) or targets.gpu(name)[1].sms * tuning.get("num_ctas_per_sm", 1)
        made = kernels.HummingKernel(**options)
    source = f"{made.code}\nauto entry = reinterpret_cast<void*>(&{made.kernel_expr});\n"
    return {"source": source, "threads": made.num_threads, "shared": made.estimated_smem_size, "blocks": sms}


def _kernels(name: str) -> Any:
    """humming.kernel.humming, which takes the GPU `name` for the one that there is."""
    os.environ |= {"HUMMING_DISABLE_PARALLEL_BUILD": "1", "HUMMING_COMPILER": "nvcc"}
    import torch

    torch.cuda.current_device = lambda: 0
    torch.cuda.device = lambda *_: contextlib.nullcontext()  # type: ignore[assignment, misc]
    found = importlib.util.find_spec("humming")  # the package itself imports what it builds for the driver
    assert found is not None
    package = types.ModuleType("humming")
    package.__path__ = list(found.submodule_search_locations or [])
    package.ops = types.ModuleType("humming.ops")  # type: ignore[attr-defined]
    package.ops.register_kernel = lambda _: (0, "")
    sys.modules |= {"humming": package, "humming.ops": package.ops}
    import humming.device
    import humming.jit.compiler
    import humming.jit.runtime
    import humming.kernel.humming
    import humming.utils.device

    sheet = types.SimpleNamespace(_DeviceInfo=lambda _: types.SimpleNamespace(**_facts(name)))
    humming.device._get_device_info_extension = lambda: sheet
    humming.utils.device._get_device_info_extension = lambda: sheet
    humming.jit.compiler.NVCCCompiler.signature = classmethod(lambda _: "nvcc+13.3")
    humming.jit.runtime.KernelRuntime.prepare = lambda _: None
    humming.jit.runtime.KernelRuntime.kernel_filename = ""
    return humming.kernel.humming


def _facts(name: str) -> dict[str, Any]:
    """What humming-kernels asks about a GPU."""
    target, gpu = targets.gpu(name)
    major, minor = target.capability
    peak = gpu.sms * gpu.boost_ghz / TERA
    rates = {"float16": gpu.f16, "bfloat16": gpu.f16, "int8": gpu.s8, "int4": gpu.s4, "float8e4m3": gpu.fp8}
    return {
        "index": 0,
        "name": f"NVIDIA {gpu.name}",
        "is_ppu": False,
        "sm_count": gpu.sms,
        "sm_major": major,
        "sm_minor": minor,
        "sm_version": 10 * major + minor,
        "max_threads_per_block": target.threads_per_block,
        "max_threads_per_sm": 32 * target.warps_per_sm,
        "max_registers_per_sm": target.registers_per_sm,
        "default_smem_size": 48 * 1024,
        "max_smem_size": target.shared_per_block,
        "max_smem_size_kb": target.shared_per_block / 1024,
        "l1_cache_size": target.shared_per_sm,
        "l2_cache_size": gpu.l2_mb << 20,
        "l2_cache_size_mb": gpu.l2_mb,
        "sm_clock_khz": round(1e6 * gpu.boost_ghz),
        "memory_bandwidth_gbps": float(gpu.dram_gbs),
        "tensorcore_tops": {dtype: rate * peak for dtype, rate in rates.items() if rate},
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
