"""Every kernel that the tests of this folder run, by name: what `python -m tests.third_party` compiles."""

from dataclasses import replace
from typing import Any

from tests.third_party.build import CudaSource, TritonKernel

GENERATIONS = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_120")
BLOCKS = {"BM": 32, "BN": 32, "BK": 32}


def _pointers(names: str, kind: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), f"*{kind}")


def _sizes(names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), "i32")


def _matmul(arch: str, operand: str, result: str, total: str, warps: int = 4, **more: Any) -> TritonKernel:
    import triton.language as tl

    types = _pointers("a b", operand) | _pointers("c", result) | _sizes("M N K am ak bk bn cm cn")
    constants = {"BM": 64, "BN": 32, "BK": 32, "GROUP": 4, "TYPE": getattr(tl, total), "ACTIVATE": False}
    return TritonKernel("matmul", arch, types, constants | more, warps, aligned=("a", "b", "c"))


TRITON: dict[str, TritonKernel] = {}


def _triton(name: str, types: dict[str, str], archs: tuple[str, ...] = ("sm_80", "sm_89"), **more: Any) -> None:
    ...
