"""The closed form that the plan compares tiles with, against the performance model that counts kernels."""

from dataclasses import replace

import pytest

from lowbitvm import targets
from lowbitvm.cost import predicted_us
from lowbitvm.formats import Format
from lowbitvm.plan import linear_plan
from lowbitvm.runtime import tune
from lowbitvm.runtime.layer import Layer
from lowbitvm.targets import OVERHEAD_US

U4 = Format.parse("u4,group=128,zero=int")


@pytest.mark.parametrize(
    ("fmt", "gpu", "m", "n", "k"),
    [("u4,group=128,zero=int", "a100", 16, 6144, 4096), ("e4m3,group=128", "h100", 64, 8192, 8192)],
)
def test_the_estimate_is_within_a_tenth_of_the_model_for_the_plan_and_others(fmt, gpu, m, n, k):
    target, rates = targets.gpu(gpu)
    layer = Layer(Format.parse(fmt), m, n, k, target.name)
    modelled = {splits: tune.predicted_us(layer, replace(layer.plan, splits=splits), rates) for splits in (1, 2)}
    estimated = predicted_us(layer.plan, modelled, m, n, k, layer.format, target)
    assert estimated == pytest.approx(list(modelled.values()), rel=0.1)


def test_the_sums_of_blocks_that_share_out_k_fit_in_the_l2_cache():
    for target in targets.TARGETS.values():
        for m in (1, 64, 256, 4096):
            tile = linear_plan(m, 8192, 8192, U4, target)
            rows = -(-m // tile.bm) * tile.bm
            assert tile.splits == 1 or 4 * tile.splits * rows * 8192 <= 1e6 * target.gpu.l2_mb


def test_no_layer_is_estimated_to_be_faster_than_its_bytes_or_its_products():
    for target in targets.TARGETS.values():
        gpu = target.gpu
        for m in (1, 64, 4096):
            (time,) = predicted_us(linear_plan(m, 8192, 8192, U4, target), (1,), m, 8192, 8192, U4, target)
            products = 2 * m * 8192**2 / (1e3 * gpu.f16 * gpu.sms * gpu.boost_ghz)
            assert time - OVERHEAD_US >= max(8192**2 / 2 / (1e3 * gpu.dram_gbs), products)
