"""Kernels with several loops over dots, dots of dense tiles, and stores that scatter."""

from typing import Any

import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm.dtypes import bf16
from lowbitvm.runtime.launch import launch
from tests.test_digits import drawn


@lb.kernel(x=("m k", None), w=("n k", None), y=("m n", lb.f32), order=("k", lb.i32))
def dense(
    x: lb.Tensor, w: lb.Tensor, y: lb.Tensor, order: lb.Tensor | None = None, *, bm: int, bn: int, bk: int
) -> None:
    i, j = lb.program_id(0) * bm, lb.program_id(1) * bn
    total = lb.zeros((bm, bn))
    for k in lb.range(0, x.shape[1], bk, stages=3):
        columns = k if order is None else lb.load(order, (k,), (bk,), other=-1)
        total += lb.dot(lb.load(x, (i, columns), (bm, bk)), lb.load(w, (j, k), (bn, bk)).T)
    lb.store(y, (i, j), total)


@pytest.mark.parametrize(("target", "dtype"), [("sm_75", "f16"), ("sm_80", "f16"), ("sm_90a", "bf16")])
@pytest.mark.parametrize(
    ("tile", "warps"), [((8, 64, 64), 4), ((16, 128, 64), 4), ((32, 32, 128), 2), ((8, 16, 256), 1)]
)
@pytest.mark.parametrize("shape", [(5, 70, 100), (16, 128, 256), (33, 17, 129)])
def test_a_dot_of_dense_tiles_is_the_product(
    target: str, dtype: str, tile: tuple[int, int, int], warps: int, shape: tuple[int, int, int]
) -> None:
    (bm, bn, bk), (m, n, k) = tile, shape
    numpy = np.float16 if dtype == "f16" else bf16.numpy
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(m, k)).astype(numpy), rng.normal(size=(n, k)).astype(numpy)
    divisible = {"k": k & -k} if k % 8 == 0 else {}
    kernel = dense.compile(target, warps=warps, divisible=divisible, x=lb.f16 if dtype == "f16" else lb.bf16,
                           w=lb.f16 if dtype == "f16" else lb.bf16, bm=bm, bn=bn, bk=bk)  # fmt: skip
    y = np.full((m, n), 7, np.float32)
    report = launch(kernel, (-(-m // bm), -(-n // bn)), {"x": x, "w": w, "y": y}, checks="all", on_finding="raise")
    assert report is not None and not report.findings and report.counters.bank_conflicts == 0
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    # the sum of a unit is truncated at each MMA step, and rounded when it is added
    bound = (k // 8 + 2) * 2.0**-23 * (abs(x.astype(np.float64)) @ abs(w.astype(np.float64)).T)
    assert (abs(y - exact) <= bound).all()


def test_a_dot_of_dense_tiles_takes_gathered_columns() -> None:
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(9, 64)).astype(np.float16), rng.normal(size=(40, 64)).astype(np.float16)
    order = rng.permutation(64).astype(np.int32)
    kernel = dense.compile("sm_80", warps=2, x=lb.f16, w=lb.f16, order=lb.i32, bm=16, bn=64, bk=64)
    y = np.zeros((9, 40), np.float32)
    launch(kernel, (1, 1), {"x": x, "w": w, "y": y, "order": order}, checks="all", on_finding="raise")
    exact = x[:, order].astype(np.float64) @ w.astype(np.float64).T
    assert np.allclose(y, exact, rtol=0, atol=64 * 2.0**-20)
    interpreted = np.zeros_like(y)
    lb.interpret(kernel.program, (1, 1), {"x": x, "w": w, "y": interpreted, "order": order})
    assert np.array_equal(interpreted, exact.astype(np.float32))


Operand = Any  # Tensor | Packed


@lb.kernel(y=("m n", lb.i32), a0=lb.packed("m k0"), w0=lb.packed("n k0"), a1=lb.packed("m k1"), w1=lb.packed("n k1"))
def in_sequence(y: lb.Tensor, *sides: Operand, bm: int, bn: int, bk: tuple[int, int], apart: bool = False) -> None:
    """The sum of two products: one loop after the other, or where the blocks of j >= 2 make the second one only."""
    i, j = lb.program_id(0) * bm, lb.program_id(1) * bn

    def product(which: int) -> lb.Value:
        a, w = sides[2 * which : 2 * which + 2]
        total = lb.zeros((bm, bn), lb.i32)
        for k in lb.range(0, a.shape[1], bk[which], stages=3):
            total += lb.dot(lb.load(a, (i, k), (bm, bk[which])), lb.load(w, (j, k), (bn, bk[which])).T)
        return total

    if not apart:
        lb.store(y, (i, j), product(0) + product(1).T.T)
        return
    with lb.when(lb.program_id(1) < 2):
        lb.store(y, (i, j), product(0))
    with lb.when(lb.program_id(1) > 1):
        lb.store(y, (i, j), product(1))


PAIRS = [  # activations, weights, digits, k, bk of either product
    (("i8", "i8", "s8", 192, 64), ("i8", "u3", "s8", 640, 128)),
    (("i8", "u4", "s8", 200, 64), ("i4", "u4", "s4", 300, 128)),
    (("i4", "i2", "b1", 1100, 512), ("i8", "i8", "s8", 64, 64)),
]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("bn", "warps"), [(64, 4), (64, 1), (16, 4)])
def test_loops_of_one_kernel_take_turns_in_shared_memory(pair: Any, apart: bool, bn: int, warps: int) -> None:
    """By blocks that stage their tiles, and by warps that share out k."""
    m, n, bm = 20, 3 * bn + 5, 16
    steps = tuple(bk * (warps if bn < 16 * warps else 1) for *_, bk in pair)
    formats, arrays, products = {}, {}, []
    for which, (act, weight, digits, k, _) in enumerate(pair):
        a = lb.pack_activations(drawn(act, (m, k), which), lb.Format(act, digits=digits))
        w = lb.pack_weights(drawn(weight, (n, k), 5), lb.Format(weight, act=act, digits=digits))
        formats |= {f"a{which}": a.format, f"w{which}": w.format}
        arrays |= {f"a{which}": a, f"w{which}": w}
        products.append(a.unpack().astype(np.int64) @ w.unpack().astype(np.int64).T)
    kernel = in_sequence.compile("sm_80", warps=warps, bm=bm, bn=bn, bk=steps, apart=apart, **formats)
    exact = products[0] + products[1]
    if apart:
        exact = np.concatenate([products[0][:, : 2 * bn], products[1][:, 2 * bn :]], 1)
    grid = (-(-m // bm), -(-n // bn))
    for seed in range(2):
        y = np.full((m, n), -1, np.int32)
        report = launch(kernel, grid, {"y": y, **arrays}, checks="all", on_finding="raise", seed=seed)
        assert report is not None and not report.findings and np.array_equal(y, exact)
    y = np.full((m, n), -1, np.int32)
    lb.interpret(kernel.program, grid, {"y": y, **arrays})
    assert np.array_equal(y, exact)


def test_two_loops_need_the_shared_memory_of_the_larger_one() -> None:
    def shared(*pair: tuple[str, int]) -> int:
        formats = {}
        for which, (weight, _) in enumerate(pair):
            formats |= {f"a{which}": lb.Format("i8", digits="s8"), f"w{which}": lb.Format(weight, act="i8")}
        steps = tuple(bk for _, bk in pair)
        return in_sequence.compile("sm_80", warps=4, bm=16, bn=64, bk=steps, **formats).shared

    small, large = ("i4", 64), ("i8", 128)
    assert shared(small, large) == shared(large, small) == shared(large, large) > 3 * shared(small, small) // 2


@lb.kernel(x=("m n", None), y=("m o", None), rows=("m", lb.i32), columns=("n", lb.i32))
def moved(
    x: lb.Tensor, y: lb.Tensor, rows: lb.Tensor | None, columns: lb.Tensor, *, bm: int, bn: int, rounds: bool = False
) -> None:
    i, j = lb.program_id(0) * bm, lb.program_id(1) * bn
    tile = lb.load(x, (i, j), (bm, bn))
    to = i if rows is None else lb.load(rows, (i,), (bm,), other=-1)
    lb.store(y, (to, lb.load(columns, (j,), (bn,), other=-1)), tile.to(lb.f16) if rounds else tile)


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize(("dtype", "rounds"), [("f16", False), ("i32", False), ("f32", True)])
@pytest.mark.parametrize("warps", [1, 4])
def test_a_store_scatters_rows_and_columns_and_drops_what_has_no_place(
    by_rows: bool, dtype: str, rounds: bool, warps: int
) -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(-99, 99, (13, 37)).astype(dtype.replace("f", "float").replace("i", "int"))
    columns = rng.permutation(50)[:37].astype(np.int32)
    columns[[3, 30]] = -1, 50
    rows = rng.permutation(13).astype(np.int32)
    rows[5] = -1
    y_type = lb.f16 if rounds else {"f16": lb.f16, "i32": lb.i32}[dtype]
    more = {"rows": lb.i32} if by_rows else {"rows": None}
    source = {"f16": lb.f16, "i32": lb.i32, "f32": lb.f32}[dtype]
    kernel = moved.compile("sm_80", warps=warps, x=source, y=y_type, bm=8, bn=16, rounds=rounds, **more)
    expected = np.full((13, 50), 7, y_type.numpy)
    kept = (columns >= 0) & (columns < 50)
    there = rows >= 0 if by_rows else np.full(13, True)
    expected[np.ix_((rows if by_rows else np.arange(13))[there], columns[kept])] = x[np.ix_(there, kept)]
    arrays = {"x": x, "columns": columns} | ({"rows": rows} if by_rows else {})
    for run in ("emulator", "interpreter"):
        y = np.full((13, 50), 7, y_type.numpy)
        if run == "emulator":
            report = launch(kernel, (2, 3), {**arrays, "y": y}, checks="all", on_finding="raise")
            assert report is not None and not report.findings
        else:
            lb.interpret(kernel.program, (2, 3), {**arrays, "y": y})
        assert np.array_equal(y, expected)


@lb.kernel(y=("m n", lb.i32), a0=lb.packed("m k0"), w0=lb.packed("n k0"), a1=lb.packed("m k1"), w1=lb.packed("n k1"))
def one_tile(y: lb.Tensor, *sides: Operand) -> None:
    total = lb.zeros((8, 64), lb.i32)
    for a, w, bk in ((*sides[:2], 64), (*sides[2:], 512)):
        for k in lb.range(0, a.shape[1], bk):
            total += lb.dot(lb.load(a, (0, k), (8, bk)), lb.load(w, (0, k), (64, bk)).T)
    lb.store(y, (0, 0), total)


def test_sums_of_dots_in_different_lanes_are_refused_unless_one_is_moved() -> None:
    sides = {"a0": lb.Format("i8", digits="s8"), "w0": lb.Format("i8", act="i8")}
    sides |= {"a1": lb.Format("i8", digits="b1"), "w1": lb.Format("i8", act="i8", digits="b1")}
    with pytest.raises(lb.LowbitvmError, match=r"KERNEL_UNSUPPORTED: one tile takes part in dots.*tile\.T\.T"):
        one_tile.compile("sm_80", **sides)


def test_dense_and_packed_weights_in_one_loop_are_refused() -> None:
    @lb.kernel(x=("m k", lb.f16), v=("n k", lb.f16), w=lb.packed("n k"), y=("m n", lb.f32))
    def both(x: lb.Tensor, v: lb.Tensor, w: lb.Packed, y: lb.Tensor) -> None:
        total = lb.zeros((8, 64))
        for k in lb.range(0, x.shape[1], 64):
            tile = lb.load(x, (0, k), (8, 64))
            total += lb.dot(tile, lb.load(v, (0, k), (64, 64)).T)
            total += lb.dot(tile, lb.dequant(lb.load(w, (0, k), (64, 64)), w.scales).T)
        lb.store(y, (0, 0), total)

    with pytest.raises(lb.LowbitvmError, match="KERNEL_UNSUPPORTED: a loop that has a dot of dense tiles"):
        both.compile("sm_80", w=lb.Format("u4"))


def test_a_dot_with_a_tile_of_numbers_is_refused() -> None:
    @lb.kernel(x=("m k", lb.f16), y=("m n", lb.f32))
    def filled(x: lb.Tensor, y: lb.Tensor) -> None:
        total = lb.zeros((8, 64))
        for k in lb.range(0, x.shape[1], 64):
            total += lb.dot(lb.load(x, (0, k), (8, 64)), lb.full((64, 64), 1, lb.f16))
        lb.store(y, (0, 0), total)

    with pytest.raises(lb.LowbitvmError, match="KERNEL_UNSUPPORTED: a loop that has a dot of dense tiles"):
        filled.compile("sm_80")
