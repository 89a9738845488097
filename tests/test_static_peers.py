"""The other tools' kernels of the static table compute what they are said to: emulated, against exact integers.

The tests of a tool are there where it is installed.
"""

from importlib.util import find_spec

import numpy as np
import pytest

from lowbitvm.runtime import emulator

M, N, K, GROUP = 16, 128, 256, 128


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def bytes_of(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (low | high << 4).astype(np.uint8)


def packed(way: str, codes: np.ndarray, bk: int) -> np.ndarray:
    """Codes (K, N) as the way's kernel takes them."""
    if way == "shifted":
        words = codes.reshape(-1, 8, N).astype(np.uint32) << np.arange(0, 32, 4, np.uint32)[:, None]
        return np.bitwise_or.reduce(words, axis=1).view(np.int32)
    if way == "joined":
        return bytes_of(codes[0::2], codes[1::2]).T.copy()
    halves = codes.reshape(-1, 2, bk // 2, N)
    return bytes_of(halves[:, 0], halves[:, 1]).reshape(-1, N)


if find_spec("triton") is not None:
    from lowbitvm.bench import triton_peer

    @pytest.mark.parametrize("way", ["shifted", "joined", "halved"])
    def test_triton_multiplies_by_four_bit_weights(way):
        rng = np.random.default_rng(0)
        codes, zeros = rng.integers(0, 16, (K, N)), rng.integers(0, 16, (K // GROUP, N))
        scales = rng.choice([0.125, 0.25], (K // GROUP, N))
        x = rng.integers(-1, 2, (M, K))  # every product and sum is a multiple of 1/8 that f16 holds
        weights = (codes - zeros.repeat(GROUP, axis=0)) * scales.repeat(GROUP, axis=0)
        job = triton_peer.four_bit(way, "f16", (M, N, 64), 4)
        _, made = triton_peer.compile_job(job, "sm_80")
        y = np.zeros((M, N), np.float16)
        floats = [array.astype(np.float16) for array in (x, scales, zeros)]
        args = [floats[0], packed(way, codes, 64), *floats[1:], y, M, N, K, *triton_peer.SCRATCH]
        shared = made.metadata.shared
        emulator.load(made.asm["ptx"]).launch(made.metadata.name, (1, 1, 1), (128, 1, 1), args, shared=shared)
        assert abs(x @ weights).max() < 256
        assert (y == x @ weights).all()

    def test_triton_multiplies_bytes():
        rng = np.random.default_rng(0)
        x, weights = rng.integers(-128, 128, (128, K), np.int8), rng.integers(-128, 128, (128, K), np.int8)
        _, made = triton_peer.compile_job(triton_peer.int8((128, 128, 128), 8), "sm_80")
        y = np.zeros((128, 128), np.int32)
        args = [x, weights, y, 128, 128, K, *triton_peer.SCRATCH]
        emulator.load(made.asm["ptx"]).launch(
            made.metadata.name, (1, 1, 1), (256, 1, 1), args, shared=made.metadata.shared
        )
        assert (y == x.astype(np.int32) @ weights.T.astype(np.int32)).all()


if find_spec("tilelang") is not None:
    from lowbitvm.bench import tilelang_kernels, tilelang_peer

    def test_tilelang_multiplies_by_four_bit_weights():
        n, k = tilelang_kernels.N, tilelang_kernels.K
        rng = np.random.default_rng(0)
        codes, zeros = rng.integers(0, 16, (N, k)), rng.integers(0, 16, (k // GROUP, n))
        scales = rng.choice([0.125, 0.25], (k // GROUP, n))
        x = rng.integers(-1, 2, (M, k)) * (rng.random((M, k)) < 1 / 64)  # few, so that f16 holds the sums
        weights = (codes - zeros[:, :N].T.repeat(GROUP, axis=1)) * scales[:, :N].T.repeat(GROUP, axis=1)
        order = codes.reshape(N, -1, 4, 2).transpose(0, 1, 3, 2).reshape(N, -1)  # nibble 4 h + r is element 2 r + h
        stored = bytes_of(order[:, 0::2], order[:, 1::2])
        made, ptx = tilelang_peer.compile_tile("16x128x64", "sm_80")
        y = np.zeros((M, n), np.float16)
        given = {"x": x.astype(np.float16), "codes": stored, "scales": scales.astype(np.float16), "y": y}
        given["zeros"] = zeros.astype(np.float16)
        args = [given[name] for name in tilelang_peer.parameters(made)]
        threads, shared = tilelang_peer.resources(made)
        emulator.load(ptx).launch("main_kernel", (1, 1, 1), (threads, 1, 1), args, shared=shared)
        assert (y[:, :N] == x @ weights.T).all()
