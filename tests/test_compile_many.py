"""Kernels that are assembled side by side."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import lowbitvm as lb
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import compiled
from lowbitvm.runtime.assemble import Assembly
from lowbitvm.runtime.cache import Cache


@lb.kernel(x=("n", lb.f32), y=("n", lb.f32))
def scaled(x: lb.Tensor, y: lb.Tensor, *, factor: float) -> None:
    i = lb.program_id(0) * 128
    lb.store(y, (i,), lb.load(x, (i,), (128,)) * factor)


def kernels(cache: Cache | None = None) -> list[lb.CompiledKernel]:
    programs = [scaled.trace(factor=float(number)) for number in range(4)]
    return [compiled.compile_program(program, "sm_80", 4, cache=cache) for program in programs]


def test_kernels_assembled_side_by_side_are_those_assembled_alone_and_are_on_disk(tmp_path: Path) -> None:
    many = kernels(Cache(tmp_path / "c"))
    lb.compile_many(many, workers=2, progress=False)
    assert len(Cache(tmp_path / "c").stored()) == 4
    assert [kernel.cubin for kernel in many] == [kernel.cubin for kernel in kernels()]


def test_several_kernels_are_in_the_assembler_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=30)

    def waits(text: str, target: str) -> Assembly:
        together.wait()  # for the other worker: one after the other would break the barrier
        return Assembly(b"cubin", 1, 0, 0, 0, "")

    monkeypatch.setattr(compiled, "assemble", waits)
    lb.compile_many(kernels(), workers=2, progress=False)
    assert not together.broken


def test_the_assemblers_error_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = kernels()[0]
    broken = SimpleNamespace(text=bad.ptx.replace("ret;", "rut;"), shared=0)
    with pytest.raises(LowbitvmError, match="ASSEMBLER_FAILED"):
        lb.compile_many([*kernels(), compiled.CompiledKernel(bad.program, "sm_80", broken, 0.0)])
