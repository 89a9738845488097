"""Cooperative groups and CUB's primitives, as nvcc compiles NVIDIA's own headers, against numpy and exact integers."""

from typing import Any

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.third_party.catalogue import CUDA_TARGETS, cuda
from tests.third_party.running import RUNS, empty, launches


def targets(name: str) -> Any:
    return pytest.mark.parametrize("arch", CUDA_TARGETS[name])


def run(file: str, arch: str, entry: str, threads: int, *args: Any) -> Any:
    return launches(cuda(file, arch).compile(), entry, (1,), (threads,), args)


def integers(*shape: int, low: int = -100, high: int = 100, seed: int = 0, dtype: Any = np.int32) -> Any:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def unset(n: int) -> Any:
    return empty(n, dtype=np.int32)


@targets("groups")
def test_threads_with_one_label_are_a_group(arch: str) -> None:
    x = integers(96, low=0)
    outputs = [unset(96) for _ in range(4)]
    for _, *found in run("groups", arch, "labelled", 96, x, *outputs):
        sizes, ranks, sums, smallest = (array.reshape(3, 32) for array in found)
        for warp, values in enumerate(x.reshape(3, 32)):
            for lane, value in enumerate(values):
                alike = values % 5 == value % 5
                assert sizes[warp, lane] == alike.sum() and ranks[warp, lane] == alike[:lane].sum()
                assert sums[warp, lane] == values[alike].sum()
                assert smallest[warp, lane] == values[values % 2 == value % 2].min()


@targets("groups")
@pytest.mark.parametrize("seed", [1, 2, 3])  # lane 0 votes in some and is away in others
def test_active_threads_scan_and_vote_among_themselves(arch: str, seed: int) -> None:
    x = integers(32, seed=seed)
    some, few = x > 0, x > 40
    voted = x[few][0] + few.sum() * 1000 + (100000 if (x > 90).any() else 0)
    for _, scans, votes in run("groups", arch, "nested", 32, x, unset(32), unset(32)):
        np.testing.assert_array_equal(scans, np.where(some, np.cumsum(x * some), -1))
        np.testing.assert_array_equal(votes, np.where(few, voted, -1))


@targets("groups")
def test_tiles_of_two_warps_reduce_and_scan(arch: str) -> None:
    x = integers(256)
    rows = x.reshape(4, 64)
    for _, sums, firsts, scans in run("groups", arch, "wide_tiles", 256, x, unset(256), unset(256), unset(256)):
        np.testing.assert_array_equal(sums, np.repeat(rows.sum(1), 64))
        np.testing.assert_array_equal(firsts, np.repeat(rows[:, 3], 64))
        np.testing.assert_array_equal(scans, (rows.cumsum(1) - rows).ravel())


@targets("groups")
def test_integers_of_128_bits_are_divided(arch: str) -> None:
    x = np.random.default_rng(0).integers(0, 2**63, 64, np.uint64)
    x[:4], x[32:36] = (2**63 - 1, 1, 0, 2**40), (1, 2**63 - 1, 5, 2**20 + 1)
    expected = []
    for a, b in zip(x[:32].tolist(), x[32:].tolist(), strict=True):
        product = a * b
        quotient, rest = (product + a) // (b | 1), (product << 13 & (1 << 128) - 1 ^ product >> 7) % (b + 1)
        expected.append([part & (1 << 64) - 1 for part in (product, product >> 64, quotient, rest)])
    for _, y in run("groups", arch, "wide_division", 32, x, empty(32, 4, dtype=np.uint64)):
        np.testing.assert_array_equal(y, np.array(expected, np.uint64))


@targets("blocks")
@pytest.mark.parametrize("n", [500, 512])
def test_a_block_sorts_keys_with_their_values(arch: str, n: int) -> None:
    keys, places = integers(n, low=0, high=1000, dtype=np.uint32), np.arange(n, dtype=np.int32)
    order = np.argsort(keys, kind="stable")
    args = [keys, places, empty(n, dtype=np.uint32), unset(n), n]
    for _, _, ordered, found, _ in run("blocks", arch, "radix_sort", 128, *args):
        np.testing.assert_array_equal(ordered, keys[order])
        np.testing.assert_array_equal(found, order)


@targets("blocks")
def test_a_block_merges_what_its_threads_have_sorted(arch: str) -> None:
    x = integers(256)
    for _, y in run("blocks", arch, "merge_sort", 64, x, unset(256)):
        np.testing.assert_array_equal(y, np.sort(x))


@targets("blocks")
@pytest.mark.parametrize("entry", ["counts_by_sorting", "counts_by_atomics"])
def test_a_block_counts_bytes(arch: str, entry: str) -> None:
    x = integers(512, low=0, high=256, dtype=np.uint8)
    for _, y in run("blocks", arch, entry, 128, x, unset(256)):
        np.testing.assert_array_equal(y, np.bincount(x, minlength=256))


@targets("blocks")
@pytest.mark.parametrize("how", RUNS, ids=[str(how["schedule"]) for how in RUNS])
def test_blocks_look_back_at_the_sums_of_those_before_them(arch: str, how: dict[str, Any]) -> None:
    tiles, x = 6, integers(6 * 128)
    y, state = unset(6 * 128), empty(4096, dtype=np.uint8)
    module = emulator.load(cuda("blocks", arch).compile().ptx)
    module.launch("initialise", (1,), (128,), [state, tiles], **how)
    module.launch("look_back", (tiles,), (64,), [x, y, state.array, tiles], **how)
    np.testing.assert_array_equal(y.array, x.cumsum())
