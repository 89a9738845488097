"""Kernels in the DSL for the self-test, and what they make of integers or small sums, which numpy knows exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np

import lowbitvm as lb
from lowbitvm.runtime.launch import launch
from lowbitvm.selftest.problems import Arrays, NumpyArray, Problem

LOWEST = -3.0e38
SPLITS = 4


@lb.kernel(x=("n", lb.f16), y=("n", lb.f16), out=("n", lb.f16))
def scaled_add(x: lb.Tensor, y: lb.Tensor, out: lb.Tensor, *, block: int) -> None:
    start = lb.program_id(0) * block
    total = 0.5 * lb.load(x, (start,), (block,)).to(lb.f32) + lb.load(y, (start,), (block,)).to(lb.f32)
    lb.store(out, (start,), total.to(lb.f16))


@lb.kernel(x=("m n", lb.f32), out=("m n", lb.f32))
def softmax(x: lb.Tensor, out: lb.Tensor, *, bm: int, bn: int) -> None:
    row = lb.program_id(0) * bm
    largest, total = lb.full((bm,), LOWEST), lb.zeros((bm,))
    for k in lb.range(0, x.shape[1], bn):
        largest.set(lb.maximum(largest, lb.max(lb.load(x, (row, k), (bm, bn), other=LOWEST), axis=1)))
    for k in lb.range(0, x.shape[1], bn):
        tile = lb.load(x, (row, k), (bm, bn), other=LOWEST)
        total += lb.sum(lb.exp(tile - lb.expand_dims(largest, 1)), axis=1)
    for k in lb.range(0, x.shape[1], bn):
        tile = lb.load(x, (row, k), (bm, bn))
        lb.store(out, (row, k), lb.exp(tile - lb.expand_dims(largest, 1)) / lb.expand_dims(total, 1))


@lb.kernel(x=("m n", lb.f32), partials=("r c", lb.f32), counters=("t", lb.i32), out=("m", lb.f32))
def row_sums(x: lb.Tensor, partials: lb.Tensor, counters: lb.Tensor, out: lb.Tensor, *, part: int) -> None:
    """SPLITS blocks share out the columns; the last to arrive adds what all have stored."""
    i, split = lb.program_id(0), lb.program_id(1)
    sums = lb.zeros((8, 64))
    for k in lb.range(split * part, (split + 1) * part, 64):
        sums += lb.load(x, (i * 8, k), (8, 64))
    lb.store(partials, ((i * SPLITS + split) * 8, 0), sums)
    with lb.when(lb.atomic_add(counters, (i,), 1) == SPLITS - 1):
        total = lb.zeros((8, 64))
        for other in lb.range(0, SPLITS, 1):
            total += lb.load(partials, ((i * SPLITS + other) * 8, 0), (8, 64))
        lb.store(out, (i * 8,), lb.sum(total, axis=1))


@lb.kernel(x=("m n", lb.f32), out=("m n", lb.f32))
def rotated(x: lb.Tensor, out: lb.Tensor, *, bm: int, bn: int) -> None:
    row, column = lb.program_id(0) * bm, lb.program_id(1) * bn
    lb.store(out, (row, column), lb.hadamard(lb.load(x, (row, column), (bm, bn))))


def _problem(
    kernel: lb.Kernel,
    grid: tuple[int, ...],
    given: dict[str, NumpyArray],
    exact: Callable[[], NumpyArray],
    bound: float | None = None,
    **parts: Any,
) -> Problem:
    """A launch that fills "out". bound: how far it may be off, relative to the exact result; None for not at all."""
    shape = exact().shape

    def run(target: str) -> Arrays:
        arrays = {name: array.copy() for name, array in given.items()}
        arrays["out"] = np.zeros(shape, given["x"].dtype)
        launch(kernel.compile(target, **parts), grid, arrays)
        return [arrays["out"]]

    return Problem(run, lambda: [(exact(), None if bound is None else bound * np.abs(exact()))], bound is not None)


def _scaled_add() -> Problem:
    x, y = np.random.default_rng(0).standard_normal((2, 5000)).astype(np.float16)
    given = {"x": x, "y": y}
    return _problem(scaled_add, (5,), given, lambda: (0.5 * x.astype(np.float32) + y).astype(np.float16), block=1024)


def _softmax() -> Problem:
    x = np.random.default_rng(1).standard_normal((37, 1000)).astype(np.float32)
    wide = np.exp(x.astype(np.float64))
    # each of the 1000 terms, their sum and the quotient: dsl.exp's error, and a rounding for every addition
    bound = 2 * (2.0**-22 + 2 * 8 * 2.0**-23) + 1000 / 128 * 2.0**-23 + 8 * 2.0**-23
    return _problem(softmax, (3,), {"x": x}, lambda: wide / wide.sum(1, keepdims=True), bound, bm=16, bn=128)


def _row_sums() -> Problem:
    x = np.random.default_rng(2).integers(-9, 9, (24, 128 * SPLITS)).astype(np.float32)
    given = {"x": x, "partials": np.zeros((24 * SPLITS, 64), np.float32), "counters": np.zeros(3, np.int32)}
    return _problem(row_sums, (3, SPLITS), given, lambda: x.sum(1), part=128)


def _rotated() -> Problem:
    x = np.random.default_rng(3).integers(-99, 99, (40, 256)).astype(np.float32)
    signs = np.array([[(-1) ** int(i & j).bit_count() for i in range(128)] for j in range(128)], np.float32)
    exact = np.concatenate([x[:, :128] @ signs, x[:, 128:] @ signs], 1)
    return _problem(rotated, (5, 2), {"x": x}, lambda: exact, bm=8, bn=128)


KERNELS: dict[str, Callable[[], Problem]] = {
    "scaled_add": _scaled_add,
    "softmax": _softmax,
    "row_sums, by blocks that wait for each other": _row_sums,
    "hadamard": _rotated,
}
