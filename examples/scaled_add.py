"""An elementwise kernel: out = alpha * x + y, on the emulated A100. Run it with `python examples/scaled_add.py`."""

import numpy as np

import lowbitvm as lb


@lb.kernel(x=("n", lb.f16), y=("n", lb.f16), out=("n", lb.f16))
def scaled_add(x: lb.Tensor, y: lb.Tensor, out: lb.Tensor, *, block: int, alpha: float) -> None:
    start = lb.program_id(0) * block
    total = alpha * lb.load(x, (start,), (block,)).to(lb.f32) + lb.load(y, (start,), (block,)).to(lb.f32)
    lb.store(out, (start,), total.to(lb.f16))


def main() -> None:
    n, block = 5000, 1024
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, n)).astype(np.float16)
    out = np.zeros(n, np.float16)
    kernel = scaled_add.compile(target="sm_80", block=block, alpha=0.5, divisible={"n": 8})
    report = lb.launch(kernel, (-(-n // block),), {"x": x, "y": y, "out": out})
    assert report is not None and not report.findings
    assert np.array_equal(out, (np.float32(0.5) * x.astype(np.float32) + y.astype(np.float32)).astype(np.float16))
    print(f"{n} elements agree; {kernel.registers} registers, {len(kernel.ptx.splitlines())} lines of PTX")


if __name__ == "__main__":
    main()
