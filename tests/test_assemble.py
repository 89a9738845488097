import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import assemble as module
from lowbitvm.runtime.assemble import assemble, assembler_version, disassemble
from lowbitvm.targets import TARGETS

MMA = """.version 7.8
.target sm_80
.address_size 64
.visible .entry product(.param .u64 data)
.reqntid 32, 1, 1
{
    .reg .b32 %r<8>;
    .reg .f32 %f<4>;
    .reg .b64 %d<2>;
    ld.param.u64 %d0, [data];
    cvta.to.global.u64 %d0, %d0;
    mov.u32 %r7, %tid.x;
    mad.wide.u32 %d0, %r7, 32, %d0;
    ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%d0];
    ld.global.v2.b32 {%r4, %r5}, [%d0+16];
    mov.f32 %f0, 0f00000000;
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
        {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f0, %f0, %f0};
    st.global.v4.f32 [%d0], {%f0, %f1, %f2, %f3};
    ret;
}
"""


def kernel(body: str, *, directives: str = "", name: str = "k") -> str:
    return f""".visible .entry {name}(.param .u64 data) {directives}
{{
    .reg .b64 %d<3>;
    .reg .b32 %r<200>;
    ld.param.u64 %d0, [data];
{body}
    ret;
}}
"""


def ptx(*kernels: str) -> str:
    return ".version 7.8\n.target sm_80\n.address_size 64\n" + "".join(kernels)


def live_values(count: int) -> str:
    """`count` volatile loads, then as many volatile stores: all values are live in between."""
    loads = [f"    ld.volatile.global.u32 %r{i}, [%d0+{4 * i}];" for i in range(count)]
    return "\n".join(loads + [f"    st.volatile.global.u32 [%d0+{4 * i}], %r{i};" for i in range(count)])


@pytest.fixture
def unloaded() -> Iterator[None]:
    """Lets a test hide what _nvjitlink and _nvdisasm find."""
    module._nvjitlink.cache_clear()
    module._nvdisasm.cache_clear()
    yield
    module._nvjitlink.cache_clear()
    module._nvdisasm.cache_clear()


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "sm_75"])
def test_an_mma_kernel_assembles_to_hmma_without_spills_on_every_target(target: str) -> None:
    assembly = assemble(MMA, target)
    assert assembly.cubin.startswith(b"\x7fELF")
    assert 10 <= assembly.registers <= 255
    assert (assembly.spills, assembly.stack, assembly.shared) == (0, 0, 0)
    assert "HMMA.16816.F32" in disassemble(assembly.cubin)


def test_live_values_beyond_maxnreg_are_reported_as_spills() -> None:
    free = assemble(ptx(kernel(live_values(64))), "sm_80")
    forced = assemble(ptx(kernel(live_values(64), directives=".maxnreg 32")), "sm_80")
    assert free.registers >= 64 and free.spills == 0
    assert forced.registers <= 32
    # at least 64 - 32 values go out and come back, 4 bytes each way, and have their place in the stack frame
    assert forced.spills >= 2 * 4 * (64 - 32)
    assert forced.stack >= 4 * (64 - 32)


def test_shared_is_the_static_shared_memory_of_a_block() -> None:
    body = """    .shared .align 16 .b8 tile[1536];
    ld.volatile.shared.u32 %r0, [tile+1532];
    st.volatile.global.u32 [%d0], %r0;"""
    assert assemble(ptx(kernel(body)), "sm_80").shared == 1536


def test_several_entries_report_the_largest_and_sum_their_spills() -> None:
    small, large = kernel(live_values(4)), kernel(live_values(64), name="large")
    spilling = kernel(live_values(64), directives=".maxnreg 32", name="spilling")
    alone = [assemble(ptx(one), "sm_80") for one in (small, large, spilling)]
    together = assemble(ptx(small, large, spilling, spilling.replace("spilling", "again")), "sm_80")
    assert together.registers == max(one.registers for one in alone)
    assert together.stack == alone[2].stack
    assert together.spills == 2 * alone[2].spills


def test_a_bad_line_is_named_with_its_number_and_ptxas_words() -> None:
    text = ptx(kernel("    add.s32 %r0, %r1, %r2;\n    add.q7 %r0, %r1, %r2;"))
    number = text.splitlines().index("    add.q7 %r0, %r1, %r2;") + 1
    with pytest.raises(LowbitvmError, match=rf"\.q7.*at PTX line {number}: add\.q7 %r0, %r1, %r2;") as caught:
        assemble(text, "sm_86")
    assert caught.value.code == "ASSEMBLER_FAILED"
    assert "sm_86" in caught.value.problem


@pytest.mark.parametrize("text", ["", "not PTX", ".version 7.8\n.target sm_90\n.address_size 64\n" + kernel("")])
def test_text_that_does_not_fit_the_target_fails_with_a_reason(text: str) -> None:
    with pytest.raises(LowbitvmError, match=r"ASSEMBLER_FAILED: nvJitLink for sm_80: \S+") as caught:
        assemble(text, "sm_80")
    assert len(caught.value.problem) < 300


@pytest.mark.parametrize("target", ["sm_81", "sm_80 ", "SM_80", "", "-lto"])
def test_an_unknown_target_is_refused_before_assembly(target: str) -> None:
    with pytest.raises(LowbitvmError, match="TARGET_UNKNOWN"):
        assemble(MMA, target)


def test_threads_assemble_the_same_bytes_as_one_thread() -> None:
    texts = [ptx(kernel(live_values(count))) for count in (8, 24, 40, 56)] * 4
    alone = [assemble(text, "sm_80") for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: assemble(text, "sm_80"), texts))
    assert [one.cubin for one in together] == [one.cubin for one in alone]
    assert [one.registers for one in together] == [one.registers for one in alone]


def test_a_missing_binding_is_reported_as_a_missing_assembler(unloaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvjitlink", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(LowbitvmError, match=r"ASSEMBLER_MISSING.*nvidia-nvjitlink"):
        assemble(MMA, "sm_80")
    with pytest.raises(LowbitvmError, match="ASSEMBLER_MISSING"):
        assembler_version()


def test_a_library_that_cannot_be_loaded_is_reported_with_its_reason(
    unloaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuda.bindings import nvjitlink

    def fail() -> tuple[int, int]:
        raise RuntimeError("libnvJitLink.so not found")

    monkeypatch.setattr(nvjitlink, "version", fail)
    with pytest.raises(LowbitvmError, match=r"ASSEMBLER_MISSING.*libnvJitLink\.so not found"):
        assemble(MMA, "sm_80")


def test_the_assembler_version_names_nvjitlink() -> None:
    name, version = assembler_version().split()
    assert name == "nvJitLink"
    assert [part.isdigit() for part in version.split(".")] == [True, True]


@pytest.mark.parametrize("pathfinder", [None, types.SimpleNamespace(find_nvidia_binary_utility=lambda name: None)])
def test_disassembly_without_its_extra_names_the_extra(
    unloaded: None, monkeypatch: pytest.MonkeyPatch, pathfinder: types.SimpleNamespace | None
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    with pytest.raises(LowbitvmError, match=r"TOOL_MISSING.*lowbitvm\[sass\]"):
        disassemble(b"")


def test_bytes_that_are_no_cubin_are_refused() -> None:
    with pytest.raises(LowbitvmError, match=r"ARGUMENT_INVALID.*these 4 bytes"):
        disassemble(b"junk")
