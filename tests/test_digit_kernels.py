"""Kernels of one's own with dots of integer codes: loops around loops, several dots, and what is refused."""

import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm.arrays import fma
from tests.test_matmul import exact, sides


@lb.kernel(a=lb.packed("m k"), w=lb.packed("n k"), y=("m n", lb.i32))
def strips(a: lb.Packed, w: lb.Packed, y: lb.Tensor, *, bm: int, bn: int, bk: int, factor: int) -> None:
    """All columns by one block, one tile after the other; twice the product where the factor is 2."""
    for j in lb.range(0, w.shape[0], bn):
        total = lb.zeros((bm, bn), lb.i32)
        for k in lb.range(0, a.shape[1], bk):
            product = lb.dot(lb.load(a, (0, k), (bm, bk)), lb.load(w, (j, k), (bn, bk)).T)
            total += product if factor == 1 else product * factor
        lb.store(y, (0, j), total)


@lb.kernel(a=lb.packed("m k"), w=lb.packed("n k"), v=lb.packed("n k"), y=("m n", lb.i32))
def difference(a: lb.Packed, w: lb.Packed, v: lb.Packed, y: lb.Tensor, *, bm: int, bn: int, bk: int) -> None:
    """a w^T - a v^T: two dots of one loop, of tiles that are not zero before."""
    first, second = lb.full((bm, bn), 7, lb.i32), lb.zeros((bm, bn), lb.i32)
    for k in lb.range(0, a.shape[1], bk):
        x = lb.load(a, (0, k), (bm, bk))
        first += lb.dot(x, lb.load(w, (0, k), (bn, bk)).T)
        second += lb.dot(x, lb.load(v, (0, k), (bn, bk)).T)
    lb.store(y, (0, 0), first - second - 7)


TILES = [("s8", 32, 64), ("s4", 16, 512), ("b1", 16, 2048)]  # digits, bn, bk: the last two share out k


@pytest.mark.parametrize(("base", "bn", "bk"), TILES)
def test_a_loop_of_dots_may_stand_in_another_loop(base: str, bn: int, bk: int) -> None:
    a, w = sides("i2", "i4", base, m=8, n=90, k=700)
    kernel = strips.compile(
        "sm_80", warps=2 if base == "s8" else 4, a=a.format, w=w.format, bm=8, bn=bn, bk=bk, factor=1
    )
    y = np.zeros((8, 90), np.int32)
    lb.launch(kernel, (1,), {"a": a, "w": w, "y": y}, checks="all", on_finding="raise")
    offsets = [side.decomposition.offset for side in (a, w)]
    expected = (a.unpack().astype(int) - offsets[0]) @ (w.unpack().astype(int) - offsets[1]).T
    assert np.array_equal(y, expected)


def test_a_dot_may_be_used_in_the_loop_where_warps_share_out_n() -> None:
    a, w = sides("i8", "i8", "s8", m=8, n=90, k=700)
    kernel = strips.compile("sm_86", warps=2, a=a.format, w=w.format, bm=8, bn=32, bk=64, factor=2)
    y = np.zeros((8, 90), np.int32)
    lb.launch(kernel, (1,), {"a": a, "w": w, "y": y}, checks="all", on_finding="raise")
    assert np.array_equal(y, 2 * exact(a, w))


def test_a_dot_may_not_be_used_in_the_loop_where_warps_share_out_k() -> None:
    a, w = sides("i8", "i8", "s8", m=8, n=90, k=700)
    with pytest.raises(lb.LowbitvmError, match="KERNEL_UNSUPPORTED: warps that share out k"):
        strips.compile("sm_80", warps=4, a=a.format, w=w.format, bm=8, bn=16, bk=256, factor=2)


@pytest.mark.parametrize(("warps", "bn", "bk"), [(4, 64, 64), (4, 32, 512)])
def test_two_weights_meet_the_same_activations(warps: int, bn: int, bk: int) -> None:
    a, w = sides("i8", "i8", "s8", m=8, n=30, k=700)
    v = sides("i8", "i8", "s8", m=8, n=30, k=700, seed=5)[1]
    kernel = difference.compile("sm_80", warps=warps, a=a.format, w=w.format, v=v.format, bm=8, bn=bn, bk=bk)
    y = np.zeros((8, 30), np.int32)
    arguments = {"a": a, "w": w, "v": v, "y": y}
    lb.launch(kernel, (1,), arguments, checks="all", on_finding="raise")
    assert np.array_equal(y, exact(a, w) - exact(a, v))
    again = np.zeros_like(y)
    lb.interpret(kernel.program, (1,), {**arguments, "y": again})
    assert np.array_equal(again, y)


def test_sides_in_other_digits_do_not_meet_in_a_dot() -> None:
    w = sides("i8", "i8", "s8", m=8, n=16, k=64)[1]
    planes = sides("i8", "i8", "b1", m=8, n=16, k=64)[0]
    for left, right, problem in ((planes, w, "a dot of i8.*digits=b1"), (w, w, "that are not activations")):
        with pytest.raises(lb.LowbitvmError, match=f"DTYPE_MISMATCH: dot: .*{problem}"):
            strips.compile("sm_80", a=left.format, w=right.format, bm=8, bn=64, bk=512, factor=1)


@lb.kernel(a=lb.packed("m k"), w=lb.packed("n k"), y=("rows columns", lb.i32))
def window(a: lb.Packed, w: lb.Packed, y: lb.Tensor, *, row: int, column: int, bm: int, bn: int, bk: int) -> None:
    """The tile of the product at (row, column), at the start of y: with what lies outside both sides as zeros."""
    total = lb.zeros((bm, bn), lb.i32)
    for k in lb.range(0, a.shape[1], bk):
        total += lb.dot(lb.load(a, (row, k), (bm, bk)), lb.load(w, (column, k), (bn, bk)).T)
    lb.store(y, (0, 0), total)


@pytest.mark.parametrize(("warps", "bk"), [(1, 64), (4, 256)])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (8, 16), (-8, -16), (16, 0)])
def test_rows_outside_either_side_are_zeros(row: int, column: int, warps: int, bk: int) -> None:
    a, w = sides("i8", "i8", "s8", m=11, n=20, k=300)
    kernel = window.compile(
        "sm_80", warps=warps, a=a.format, w=w.format, row=row, column=column, bm=16, bn=32 if warps == 4 else 16, bk=bk
    )
    y, again = np.full((16, 32), -1, np.int32), np.full((16, 32), -1, np.int32)
    lb.launch(kernel, (1,), {"a": a, "w": w, "y": y}, checks="all", on_finding="raise")
    lb.interpret(kernel.program, (1,), {"a": a, "w": w, "y": again})
    whole = np.zeros((64, 96), np.int32)
    whole[16:27, 32:52] = exact(a, w)
    columns = 32 if warps == 4 else 16
    assert np.array_equal(y[:, :columns], whole[16 + row :][:16, 32 + column :][:, :columns])
    assert np.array_equal(y, again)


@lb.kernel(a=lb.packed("m k"), w=lb.packed("n k"), scales=("n groups", lb.f32), y=("m n", lb.f32))
def by_groups(
    a: lb.Packed, w: lb.Packed, scales: lb.Tensor, y: lb.Tensor, *, bm: int, bn: int, bk: int, group: int
) -> None:
    """The sums of each group of k times a scale, added in the order of k; several groups may lie in one step."""
    total = lb.zeros((bm, bn))
    j = lb.program_id(0) * bn
    for k in lb.range(0, a.shape[1], bk):
        codes, weights = lb.load(a, (0, k), (bm, bk)), lb.load(w, (j, k), (bn, bk)).T
        for first in range(0, bk, group):
            part = lb.dot(codes, weights, k=(first, group)).to(lb.f32)
            scale = lb.load(scales, (j, k // group + first // group), (bn, 1)).T
            total.set(lb.fma(part, scale, total))
    lb.store(y, (0, j), total)


@pytest.mark.parametrize("target", ["sm_75", "sm_80"])
@pytest.mark.parametrize(
    ("base", "group", "bk"), [("s8", 32, 128), ("s8", 128, 128), ("s4", 64, 128), ("b1", 256, 512), ("b1", 512, 512)]
)
def test_parts_of_a_step_are_multiplied_alone(base: str, group: int, bk: int, target: str) -> None:
    a, w = sides("i3", "i4", base, m=8, n=70, k=1024)
    scales = np.random.default_rng(0).normal(size=(70, 1024 // group)).astype(np.float32)
    kernel = by_groups.compile(target, warps=2, a=a.format, w=w.format, bm=8, bn=64, bk=bk, group=group)
    y, again, expected = (np.zeros((8, 70), np.float32) for _ in range(3))
    arguments = {"a": a, "w": w, "scales": scales}
    lb.launch(kernel, (2,), {**arguments, "y": y}, checks="all", on_finding="raise")
    lb.interpret(kernel.program, (2,), {**arguments, "y": again})
    values = [side.unpack().astype(np.int64) - side.decomposition.offset for side in (a, w)]
    for at in range(1024 // group):
        parts = [value[:, at * group :][:, :group] for value in values]
        expected = fma(np.float32(parts[0] @ parts[1].T), scales[:, at], expected)
    assert np.array_equal(y, expected) and np.array_equal(again, expected)


def test_parts_that_are_no_whole_steps_are_refused() -> None:
    a, w = sides("i3", "i4", "s4", m=8, n=70, k=1024)
    for group, bk, problem in ((32, 128, "a part of 32 from 0 on of k, in steps of 64"), (256, 128, "of tiles of 128")):
        with pytest.raises(lb.LowbitvmError, match=f"dot: .*{problem}"):
            by_groups.compile("sm_80", a=a.format, w=w.format, bm=8, bn=64, bk=bk, group=group)
