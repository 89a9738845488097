"""A layer and a kernel for the tests of the launch path."""

import torch

import lowbitvm as lb

FMT = lb.Format("u4", group=64, zero="int")


def layer(rows: int = 3, n: int = 72, k: int = 256) -> tuple[torch.Tensor, lb.PackedWeight, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    weight = lb.quantize(torch.randn(n, k, generator=generator), FMT)
    return torch.randn(rows, k, generator=generator).half(), weight, torch.randn(n, generator=generator).half()


def split_layer() -> tuple[torch.Tensor, lb.PackedWeight]:
    """One of which several blocks share out k."""
    x, weight, _ = layer(2, 24, 4096)
    return x, weight


@lb.kernel(x=("n", None), y=("n", None))
def doubled(x: lb.Tensor, y: lb.Tensor, *, bn: int) -> None:
    i = lb.program_id(0) * bn
    lb.store(y, (i,), (lb.load(x, (i,), (bn,)).to(lb.f32) * 2.0).to(y.dtype))


def doubling(dtype: lb.dsl.DType = lb.f32) -> lb.CompiledKernel:
    return doubled.compile("sm_80", x=dtype, y=dtype, bn=128)
