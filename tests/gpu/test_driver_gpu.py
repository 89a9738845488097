"""The driver layer on a real GPU: PTX assembled here writes what its parameters and shared memory say."""

import ctypes

import pytest
import torch

from lowbitvm import targets
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import driver
from lowbitvm.runtime.assemble import assemble

PTX = """
.version {version}
.target {target}
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry scale(.param .u64 out, .param .f32 factor, .param .s32 offset, .param .u32 last)
{{
    .reg .b32 %r<9>;
    .reg .f32 %f<3>;
    .reg .b64 %rd<4>;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mad.lo.u32 %r1, %r2, %r3, %r1;
    ld.param.s32 %r4, [offset];
    add.s32 %r5, %r1, %r4;
    mov.u32 %r6, smem;
    ld.param.u32 %r7, [last];
    add.u32 %r6, %r6, %r7;
    st.shared.u32 [%r6], %r5;
    ld.shared.s32 %r8, [%r6];
    cvt.rn.f32.s32 %f1, %r8;
    ld.param.f32 %f2, [factor];
    mul.rn.f32 %f1, %f1, %f2;
    ld.param.u64 %rd1, [out];
    cvta.to.global.u64 %rd1, %rd1;
    mul.wide.u32 %rd2, %r1, 4;
    add.u64 %rd3, %rd1, %rd2;
    st.global.f32 [%rd3], %f1;
    ret;
}}
"""


def cubin() -> bytes:
    target = targets.get(driver.device_target(0))
    return assemble(PTX.format(version=target.ptx_version, target=target.name), target.name).cubin


@pytest.mark.parametrize("shared", [16, 64 * 1024])
def test_a_launch_on_torchs_stream_computes_from_its_arguments(shared: int) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        out = torch.zeros(70, device="cuda")
        function = driver.load(cubin(), "scale", 0, shared)
        args = [
            (out.data_ptr(), ctypes.c_void_p),
            (0.5, ctypes.c_float),
            (-3, ctypes.c_int32),
            (shared - 4, ctypes.c_uint32),
        ]
        driver.launch(function, (70, 1, 1), (1, 1, 1), stream.cuda_stream, args)
        expected = (torch.arange(70, device="cuda") - 3) * 0.5
        assert torch.equal(out, expected)


def test_more_shared_memory_than_the_gpu_has_is_launch_failed() -> None:
    with pytest.raises(LowbitvmError) as error:
        driver.load(cubin(), "scale", 0, 1 << 20)
    assert error.value.code == "LAUNCH_FAILED"


def test_a_missing_entry_is_launch_failed_with_a_fix() -> None:
    with pytest.raises(LowbitvmError) as error:
        driver.load(cubin(), "absent", 0)
    assert error.value.code == "LAUNCH_FAILED" and error.value.fix == "name an entry of the cubin"
