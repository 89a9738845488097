"""lowbitvm: matrix multiplication at any bit width on NVIDIA GPUs, compiled from a Python DSL to PTX."""

import importlib
from typing import TYPE_CHECKING, Any

from lowbitvm.dsl import (
    Kernel,
    Packed,
    Tensor,
    Value,
    atomic_add,
    bitcast,
    dequant,
    dot,
    exp,
    expand_dims,
    fma,
    full,
    hadamard,
    kernel,
    load,
    maximum,
    minimum,
    mul_shift,
    packed,
    program_id,
    rint,
    sqrt,
    store,
    when,
    zeros,
)
from lowbitvm.dsl import record_range as range
from lowbitvm.dsl import reduce_max as max
from lowbitvm.dsl import reduce_sum as sum
from lowbitvm.dtypes import bf16, f16, f32, i4, i32, u4
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import Format
from lowbitvm.integers import PackedDigits, pack_activations, pack_weights
from lowbitvm.interpret import interpret
from lowbitvm.mixtures import (
    ComplexWeight,
    MixedWeight,
    columns_by_width,
    mix_branch,
    mix_columns,
    mix_rows,
    mix_terms,
    pack_complex,
)
from lowbitvm.pack import PackedWeight, pack
from lowbitvm.quantize import quantize, quantize_weights

if TYPE_CHECKING:
    from lowbitvm.autotuning import autotune as autotune
    from lowbitvm.candidates import best_digits as best_digits
    from lowbitvm.candidates import plan_digits as plan_digits
    from lowbitvm.codegen.convert import explain_decode as explain_decode
    from lowbitvm.explanation import explain as explain
    from lowbitvm.foreign import from_foreign as from_foreign
    from lowbitvm.foreign import to_foreign as to_foreign
    from lowbitvm.ops import linear as linear
    from lowbitvm.runtime.compiled import CompiledKernel as CompiledKernel
    from lowbitvm.runtime.compiled import compile_many as compile_many
    from lowbitvm.runtime.compiled import dependent_launches as dependent_launches
    from lowbitvm.runtime.integer import compile_matmul as compile_matmul
    from lowbitvm.runtime.integer import matmul as matmul
    from lowbitvm.runtime.launch import launch as launch
    from lowbitvm.runtime.linear import compile_linear as compile_linear
    from lowbitvm.runtime.mixture import complex_matmul as complex_matmul
    from lowbitvm.runtime.mixture import mixed_matmul as mixed_matmul
    from lowbitvm.runtime.quantise import quantize_activations as quantize_activations
    from lowbitvm.runtime.reference import Requantize as Requantize
    from lowbitvm.runtime.tuned import tuning as tuning

__version__ = "0.1.0"
# imported when they are first used: the compiler, which takes most of the time, and what is rarely needed
LATER = {
    "autotune": "lowbitvm.autotuning",
    "explain_decode": "lowbitvm.codegen.convert",
    "CompiledKernel": "lowbitvm.runtime.compiled",
    "compile_many": "lowbitvm.runtime.compiled",
    "dependent_launches": "lowbitvm.runtime.compiled",
    "compile_matmul": "lowbitvm.runtime.integer",
    "matmul": "lowbitvm.runtime.integer",
    "launch": "lowbitvm.runtime.launch",
    "compile_linear": "lowbitvm.runtime.linear",
    "complex_matmul": "lowbitvm.runtime.mixture",
    "mixed_matmul": "lowbitvm.runtime.mixture",
    "Requantize": "lowbitvm.runtime.reference",
    "quantize_activations": "lowbitvm.runtime.quantise",
    "explain": "lowbitvm.explanation",
    "best_digits": "lowbitvm.candidates",
    "plan_digits": "lowbitvm.candidates",
    "tuning": "lowbitvm.runtime.tuned",
    "from_foreign": "lowbitvm.foreign",
    "to_foreign": "lowbitvm.foreign",
}


def __getattr__(name: str) -> Any:
    if name == "linear":  # the one name that needs torch
        try:
            from lowbitvm.ops import linear
        except ModuleNotFoundError as error:
            fix = "pip install 'lowbitvm[torch]'"
            raise LowbitvmError("TOOL_MISSING", f"lb.linear needs {error.name}", fix) from error
        globals()["linear"] = linear
        return linear
    if name in LATER:
        globals()[name] = getattr(importlib.import_module(LATER[name]), name)
        return globals()[name]
    raise AttributeError(f"module 'lowbitvm' has no attribute {name!r}")


__all__ = [
    "CompiledKernel",
    "ComplexWeight",
    "Format",
    "Kernel",
    "LowbitvmError",
    "MixedWeight",
    "Packed",
    "PackedDigits",
    "PackedWeight",
    "Requantize",
    "Tensor",
    "Value",
    "atomic_add",
    "autotune",
    "best_digits",
    "bf16",
    "bitcast",
    "columns_by_width",
    "compile_linear",
    "compile_many",
    "compile_matmul",
    "complex_matmul",
    "dependent_launches",
    "dequant",
    "dot",
    "exp",
    "expand_dims",
    "explain",
    "explain_decode",
    "f16",
    "f32",
    "fma",
    "from_foreign",
    "full",
    "hadamard",
    "i4",
    "i32",
    "interpret",
    "kernel",
    "launch",
    "load",
    "matmul",
    "max",
    "maximum",
    "minimum",
    "mix_branch",
    "mix_columns",
    "mix_rows",
    "mix_terms",
    "mixed_matmul",
    "mul_shift",
    "pack",
    "pack_activations",
    "pack_complex",
    "pack_weights",
    "packed",
    "plan_digits",
    "program_id",
    "quantize",
    "quantize_activations",
    "quantize_weights",
    "range",
    "rint",
    "sqrt",
    "store",
    "sum",
    "to_foreign",
    "tuning",
    "u4",
    "when",
    "zeros",
]
