"""What a linear layer of integers does, counted of one tile: against the launches of the whole layer."""

import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm import targets
from lowbitvm.digitplan import token_format
from lowbitvm.runtime import model
from lowbitvm.runtime.integer import run_matmul
from lowbitvm.runtime.integer_work import PRODUCT, QUANTISER, integer_works
from lowbitvm.runtime.quantise import empty_activations, run_quantise


@pytest.mark.parametrize(
    "text", ["i4,group=channel,act=i8", "u4,group=128,zero=int,act=u8", "u2,group=channel,zero=int,act=i8,digits=b1"]
)
@pytest.mark.parametrize("m", [1, 48])
def test_one_tile_of_each_launch_stands_for_all_of_them(text: str, m: int) -> None:
    fmt, (n, k) = lb.Format.parse(text), (256, 1024)
    sums = fmt.group if isinstance(fmt.group, int) else None
    x, y = np.ones((m, k), np.float16), np.zeros((m, n), np.float16)
    codes = empty_activations(x, token_format(fmt), sums)
    weight = lb.quantize(np.ones((n, k), np.float32), fmt)
    whole = {
        QUANTISER: run_quantise(x, codes, "sm_80", checks="none"),
        PRODUCT: run_matmul(codes, weight, y, "sm_80", checks="none"),
    }
    for name, part in integer_works(fmt, m, n, k, "sm_80").items():
        work = model.count(whole[name])
        assert part.blocks == work.blocks and part.threads == work.threads
        assert part.instructions.total() == pytest.approx(work.instructions.total(), rel=0.02)
        assert part.sectors == pytest.approx(work.sectors, rel=0.05)
        assert part.traffic == pytest.approx(work.traffic, rel=0.05)


def test_weights_of_fewer_bits_take_less_time_where_memory_binds() -> None:
    gpu = targets.get("sm_80").gpu
    times = []
    for bits in (2, 4, 8):
        works = integer_works(lb.Format.parse(f"i{bits},group=channel,act=i8"), 1, 8192, 8192, "sm_80")
        found = model.predict(works[PRODUCT], gpu)
        assert found.bound == "memory"
        times.append(found.time - found.overhead)
    assert times[1] / times[0] == pytest.approx(2, rel=0.05) and times[2] / times[1] == pytest.approx(2, rel=0.05)
