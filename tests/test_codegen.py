"""Generated code beyond its results: reproducible, wide, with 64-bit offsets, and refused with the user's line."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm import codegen
from lowbitvm.ir import Program
from lowbitvm.kernels.linear import linear
from lowbitvm.runtime.compiled import compile_program

FMT = lb.Format("u4", group=128, zero="int")
CHANNEL = lb.Format("u4", group="channel")


# -- the text ----------------------------------------------------------------------------------------------------------

TEXTS = """
import lowbitvm as lb
from lowbitvm.kernels.linear import linear

@lb.kernel(x=("m n", lb.f16), y=("m", lb.f32))
def rows(x, y):
    total = lb.zeros((16,))
    for k in lb.range(0, x.shape[1], 64):
        total += lb.sum(lb.load(x, (0, k), (16, 64)).to(lb.f32), axis=1)
    lb.store(y, (0,), total)

@lb.kernel(x=("m n", lb.f32), y=("m n", lb.f32))
def turn(x, y):
    for k in lb.range(0, x.shape[0], 32):
        tile = lb.load(x, (k, 0), (32, 32))
        lb.store(y, (k, 0), tile + tile.T)

print(rows.compile("sm_80").ptx, turn.compile("sm_90a", warps=2).ptx)
print(linear.compile("sm_80", x=lb.f16, w=lb.Format("i4", group=32, zero="float"), bias=lb.f16, y=lb.f16,
                     bm=16, bn=128, bk=64, stages=3).ptx)
"""


def test_the_text_is_the_same_in_every_process(tmp_path):
    def text(seed: int) -> str:
        source = tmp_path / "kernels.py"
        source.write_text(TEXTS)
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        return subprocess.run(
            [sys.executable, source], env=environment, capture_output=True, text=True, check=True
        ).stdout

    first = text(0)
    assert first.count(".visible .entry") == 3
    assert text(1) == text(2) == first


@lb.kernel(x=("m n", None), y=("m n", None))
def copy(x: lb.Tensor, y: lb.Tensor, *, bm: int, bn: int, row: int, column: int) -> None:
    i, j = lb.program_id(0) * bm + row, lb.program_id(1) * bn + column
    lb.store(y, (i, j), lb.load(x, (i, j), (bm, bn)))


def accesses(ptx: str, kind: str) -> list[tuple[int, int]]:
    """(registers, bits of each) of every global access of one kind, "ld" or "st"."""
    found = re.findall(rf"{kind}\.global(?:\.nc)?(?:\.v(\d))?\.b(\d+)", ptx)
    return [(int(count or 1), int(bits)) for count, bits in found]


@pytest.mark.parametrize("dtype", [lb.f16, lb.bf16, lb.f32, lb.i32])
@pytest.mark.parametrize("promise", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("column", [0, 2, 8])
def test_accesses_are_as_wide_as_promises_and_offsets_allow(dtype, promise, column):
    program = copy.trace(x=dtype, y=dtype, bm=16, bn=128, row=5, column=column, divisible={"n": promise})
    ptx = codegen.compile_kernel(program, "sm_80", 4).text
    elements = min(promise, np.gcd(promise, column) if column else promise, 128 // dtype.bits)
    bytes_each = elements * dtype.bits // 8
    for kind in ("ld", "st"):
        found = accesses(ptx, kind)
        assert {count * bits // 8 for count, bits in found} == {bytes_each}
        assert len(found) == 16 * 128 * dtype.bits // 8 // 128 // bytes_each


def loops(ptx: str) -> list[list[str]]:
    """The instructions of every innermost loop, from its label to the branch back."""
    lines = [line for line in ptx.splitlines() if ".loc " not in line]
    found = []
    for at, line in enumerate(lines):
        if (match := re.fullmatch(r"(loop_\d+):", line)) is not None:
            end = next(i for i, other in enumerate(lines) if f"bra {match[1]};" in other)
            found.append([line.strip() for line in lines[at + 1 : end + 1]])
    return found


@lb.kernel(x=("m n", lb.f32), rows=("m", lb.f32), columns=("n", lb.f32))
def totals(x: lb.Tensor, rows: lb.Tensor, columns: lb.Tensor) -> None:
    i = lb.program_id(0)
    total = lb.zeros((32,))
    for k in lb.range(0, x.shape[1], 64):
        total += lb.sum(lb.load(x, (i * 32, k), (32, 64)), axis=1)
    lb.store(rows, (i * 32,), total)
    total = lb.zeros((64,))
    for k in lb.range(0, x.shape[0], 32):
        total += lb.sum(lb.load(x, (k, i * 64), (32, 64)), axis=0)
    lb.store(columns, (i * 64,), total)
    for k in lb.range(0, x.shape[0], 32):
        total += lb.sum(lb.load(x, (2 * k + 1, i * 64 - k), (32, 64)), axis=0)
    lb.store(columns, (i * 64,), total)


def test_loops_over_rows_and_columns_have_no_multiplications():
    rows, columns, slanted = loops(totals.compile("sm_80", divisible={"n": 4}).ptx)
    for body in (rows, columns, slanted):
        assert sum("ld.global" in line for line in body) >= 4
        assert not [line for line in body if re.match(r"mul\.(wide|lo\.s64)|mad|div|rem", line)]
    assert not [line for line in rows + columns if line.startswith("mul")]


def test_an_update_costs_one_move():
    @lb.kernel(y=("n", lb.f32))
    def three(y):
        total = lb.zeros((128,))
        for _ in lb.range(0, 8, 1):
            total += 3.0
        lb.store(y, (0,), total)

    (body,) = loops(three.compile("sm_80").ptx)
    assert [line.split()[0] for line in body[:8]] == 4 * ["add.rn.f32"] + 4 * ["mov.b32"]


# -- large problems ----------------------------------------------------------------------------------------------------


def test_offsets_beyond_4_gib_reach_dense_arrays():
    m, n, last = (
        (1 << 16) + 4,
        (1 << 15) + 8,
        16,
    )  # 2^31 elements and 4 GiB; only the pages that are touched take memory
    x, y = np.zeros((m, n), np.float16), np.zeros((m, n), np.float16)
    assert x.size > 1 << 31 and x.nbytes > 1 << 32
    tile = np.random.default_rng(0).standard_normal((last, n - 2048)).astype(np.float16)
    x[-last:, 2048:] = tile
    kernel = copy.compile("sm_80", x=lb.f16, y=lb.f16, bm=16, bn=1024, row=m - last, column=2048, divisible={"n": 8})
    report = lb.launch(kernel, (1, -(-(n - 2048) // 1024)), {"x": x, "y": y}, checks={"undefined"})
    assert report is not None and report.findings == []
    assert np.array_equal(y[-last:, 2048:], tile)
    assert not y[0].any() and not y[-last:, :2048].any()


@lb.kernel(x=("m k", lb.f16), w=lb.packed("n k"), y=("m r", lb.f32))
def last_features(x: lb.Tensor, w: lb.Packed, y: lb.Tensor, *, first: int, bk: int) -> None:
    """y = x w^T for the 64 out_features from `first` on."""
    acc = lb.zeros((8, 64))
    for k in lb.range(0, x.shape[1], bk, stages=3):
        codes = lb.load(w, (lb.program_id(0) * 64 + first, k), (64, bk))
        acc += lb.dot(lb.load(x, (0, k), (8, bk)), lb.dequant(codes, w.scales, w.zeros).T)
    lb.store(y, (0, 0), acc)


def test_offsets_beyond_4_gib_reach_packed_weights():
    n, k, rows = (1 << 18) + 64, 1 << 15, 64  # 2^33 codes of 4 bits
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.5, 1, (rows, 1)).astype(np.float16)
    tail = lb.pack(rng.integers(0, 16, (rows, k), np.uint8), scales, None, CHANNEL)
    words = np.zeros((n // 16, k // 64, 128), np.uint32)
    stored = np.zeros((1, n // 16, 8, 2), np.float16)
    assert words.nbytes > 1 << 32
    words[-rows // 16 :], stored[:, -rows // 16 :] = tail.words.view(np.uint32), tail.scales
    weight = lb.PackedWeight(words.view(tail.words.dtype), stored, None, CHANNEL, n, k)
    x = rng.integers(-2, 3, (3, k)).astype(np.float16)
    y = np.zeros((3, rows), np.float32)
    kernel = last_features.compile("sm_80", w=CHANNEL, first=n - rows, bk=256, divisible={"k": 8})
    report = lb.launch(kernel, (1,), {"x": x, "w": weight, "y": y})
    assert report is not None and report.findings == []
    exact = x.astype(np.float64) @ tail.dequantize().astype(np.float64).T
    assert np.abs(y - exact).max() <= k * 2.0**-24 * (np.abs(x.astype(np.float64)) @ np.abs(tail.dequantize()).T).max()


def test_a_pipeline_of_more_than_48_kib_runs():
    rng = np.random.default_rng(0)
    weight = lb.pack(
        rng.integers(0, 16, (128, 512), np.uint8),
        np.ones((128, 4), np.float16),
        rng.integers(0, 16, (128, 4), np.uint8),
        FMT,
    )
    x, y = rng.integers(-3, 4, (64, 512)).astype(np.float16), np.zeros((64, 128), np.float32)
    kernel = linear.compile(
        "sm_80", x=lb.f16, w=FMT, bias=None, y=lb.f32, bm=64, bn=128, bk=128, stages=5, divisible={"k": 8}
    )
    assert kernel.shared > 48 * 1024
    report = lb.launch(kernel, (1, 1), {"x": x, "w": weight, "y": y})
    assert report is not None and report.findings == []
    assert np.array_equal(y, x.astype(np.float32) @ weight.dequantize().T)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_more_shared_memory_than_the_target_has_is_refused():
    with pytest.raises(
        lb.LowbitvmError, match=r"sm_86 has 101376 per block .*lowbitvm/kernels/linear.py:\d+"
    ) as caught:
        linear.compile("sm_86", x=lb.f16, w=FMT, bias=None, y=lb.f16, bm=64, bn=128, bk=256, stages=5)
    assert caught.value.code == "SHARED_MEMORY_EXCEEDED"


def test_an_exchange_beyond_shared_memory_is_refused_with_its_line():
    def body(x, w, y):
        tile = lb.zeros((256, 256)) + lb.program_id(0).to(lb.f32)
        lb.store(y, (0, 0), tile + tile.T)  # here

    error = error_of(body)
    assert error.code == "SHARED_MEMORY_EXCEEDED"
    assert error.location == f"{__file__}:{body.__code__.co_firstlineno + 2}"


@pytest.mark.parametrize("grid", [(1, 65536), (1, 1, 65536), (2**31,)])
def test_a_grid_beyond_the_hardware_is_refused(grid):
    kernel = copy.compile("sm_80", x=lb.f32, y=lb.f32, bm=8, bn=8, row=0, column=0)
    arrays = {"x": np.zeros((8, 8), np.float32), "y": np.zeros((8, 8), np.float32)}
    with pytest.raises(lb.LowbitvmError, match="GRID_TOO_LARGE"):
        lb.launch(kernel, grid, arrays)


def made(body, w=FMT) -> Program:
    """The program of `body(x, w, y)` for x (m, k) in f16, a packed w (n, k) and y (m, n) in f32."""

    @lb.kernel(x=("m k", lb.f16), w=lb.packed("n k"), y=("m n", lb.f32))
    def kernel(x, w, y):
        body(x, w, y)

    return kernel.trace(w=w)


def error_of(body, warps: int = 4) -> lb.LowbitvmError:
    program = made(body)
    with pytest.raises(lb.LowbitvmError) as caught:
        compile_program(program, "sm_80", warps)
    return caught.value


def real(w, row, k, bn=64, bk=64):
    return lb.dequant(lb.load(w, (row, k), (bn, bk)), w.scales, w.zeros)


def product(x, w, *, row=0, at=None, feature=0, bm=8, bn=64, bk=64, step=64, start=0, other=0):
    """A loop with one dot, of which `at` replaces the activations' column."""
    acc = lb.zeros((bm, bn))
    for k in lb.range(start, x.shape[1], step):
        a = lb.load(x, (row, k if at is None else at(k)), (bm, bk), other=other)
        acc += lb.dot(a, real(w, feature, k, bn, bk).T)
    return acc


def outside_a_loop(x, w, y):
    lb.dot(lb.load(x, (0, 0), (8, 64)), real(w, 0, 0).T)


def no_dequant(x, w, y):
    for k in lb.range(0, x.shape[1], 64):
        lb.dot(lb.load(x, (0, k), (8, 64)), lb.zeros((64, 64)))


def computed_activations(x, w, y):
    for k in lb.range(0, x.shape[1], 64):
        lb.dot((lb.load(x, (0, k), (8, 64)).to(lb.f32) * 2).to(lb.f16), real(w, 0, k).T)


def loaded_before_the_loop(x, w, y):
    a = lb.load(x, (0, 0), (8, 64))
    for k in lb.range(0, x.shape[1], 64):
        lb.dot(a, real(w, 0, k).T)


def dequantised_to_memory(x, w, y):
    lb.store(y, (0, 0), real(w, 0, 0))


def codes_alone(x, w, y):
    lb.load(w, (0, 0), (64, 64))


def dot_of_a_stored_array(x, w, y):
    for k in lb.range(0, x.shape[1], 64):
        lb.store(x, (0, k), lb.dot(lb.load(x, (0, k), (8, 64)), real(w, 0, k).T).to(lb.f16))


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("KERNEL_UNSUPPORTED", outside_a_loop),
        ("KERNEL_UNSUPPORTED", no_dequant),
        ("KERNEL_UNSUPPORTED", computed_activations),
        ("KERNEL_UNSUPPORTED", loaded_before_the_loop),
        ("KERNEL_UNSUPPORTED", dequantised_to_memory),
        ("KERNEL_UNSUPPORTED", codes_alone),
        ("KERNEL_UNSUPPORTED", dot_of_a_stored_array),
        ("KERNEL_UNSUPPORTED", lambda x, w, y: product(x, w, at=lambda k: k * 2)),
        ("KERNEL_UNSUPPORTED", lambda x, w, y: product(x, w, other=1.0)),
        ("KERNEL_UNSUPPORTED", lambda x, w, y: lb.zeros((8,), lb.i32).to(lb.f16)),
        ("KERNEL_UNSUPPORTED", lambda x, w, y: lb.zeros((8,), lb.dtypes.f64)),
        ("TILE_INVALID", lambda x, w, y: product(x, w, bm=4)),
        ("TILE_INVALID", lambda x, w, y: product(x, w, bn=32)),
        ("TILE_INVALID", lambda x, w, y: product(x, w, bk=32, step=32)),
        ("TILE_INVALID", lambda x, w, y: product(x, w, bk=512, step=512)),
        ("TILE_INVALID", lambda x, w, y: product(x, w, step=128)),
        ("TILE_INVALID", lambda x, w, y: product(x, w, start=32)),
        ("TILE_INVALID", lambda x, w, y: product(x, w, start=-64)),
        ("TILE_INVALID", lambda x, w, y: product(x, w, feature=8)),
    ],
)
def test_what_cannot_be_lowered_is_refused_with_the_users_line(code, body):
    error = error_of(body)
    assert error.code == code
    assert error.location is not None and error.location.startswith(f"{__file__}:")


def test_arrays_of_other_dtypes_are_refused_with_the_users_line():
    @lb.kernel(x=("n", lb.dtypes.i16))
    def halves(x):
        lb.load(x, (0,), (8,))

    with pytest.raises(lb.LowbitvmError, match="KERNEL_UNSUPPORTED") as caught:
        halves.compile("sm_80")
    assert caught.value.location is not None and caught.value.location.startswith(__file__)


def test_dots_of_two_activation_dtypes_are_refused_with_the_users_line():
    @lb.kernel(x=("m k", lb.f16), z=("m k", lb.bf16), w=lb.packed("n k"))
    def mixed(x, z, w):
        product(x, w)
        product(z, w)

    with pytest.raises(lb.LowbitvmError, match=r"KERNEL_UNSUPPORTED.*bf16") as caught:
        mixed.compile("sm_80", w=FMT)
    assert caught.value.location is not None and caught.value.location.startswith(__file__)


# -- dots among other ops ----------------------------------------------------------------------------------------------


def check_product(body, expected, m=8, n=64, k=192, **options):
    """Runs `body` on small whole numbers, of which every sum is exact, on both executors."""
    rng = np.random.default_rng(0)
    fmt = lb.Format("u4", group=64, zero="int")
    codes, zeros = (rng.integers(0, 16, shape, np.uint8) for shape in ((n, k), (n, k // 64)))
    weight = lb.pack(codes, np.ones((n, k // 64), np.float16), zeros, fmt)
    x = rng.integers(-3, 4, (m, k)).astype(np.float16)
    program = made(body, fmt)
    interpreted, emulated = np.zeros((m, n), np.float32), np.zeros((m, n), np.float32)
    lb.interpret(program, (1,), {"x": x, "w": weight, "y": interpreted})
    report = lb.launch(compile_program(program, "sm_80", 4), (1,), {"x": x, "w": weight, "y": emulated}, **options)
    assert report is not None and report.findings == []
    result = expected(x.astype(np.float32), weight.dequantize().astype(np.float32))
    assert np.array_equal(interpreted, result) and np.array_equal(emulated, result)


def test_activations_of_a_dot_may_be_used_otherwise_too():
    def body(x, w, y):
        acc, total = lb.zeros((8, 64)), lb.zeros((8,))
        for k in lb.range(0, x.shape[1], 64):
            a = lb.load(x, (0, k), (8, 64))
            acc += lb.dot(a, real(w, 0, k).T)
            total += lb.sum(a.to(lb.f32), 1)
        lb.store(y, (0, 0), acc + lb.expand_dims(total, 1))

    check_product(body, lambda x, w: x @ w.T + x.sum(1, keepdims=True))


def test_a_tile_that_changes_between_the_sum_and_its_assignment_keeps_the_sum():
    def body(x, w, y):
        acc = lb.zeros((8, 64))
        for k in lb.range(0, x.shape[1], 64):
            total = acc + lb.dot(lb.load(x, (0, k), (8, 64)), real(w, 0, k).T)
            acc += 1000.0
            acc.set(total)
        lb.store(y, (0, 0), acc)

    check_product(body, lambda x, w: x @ w.T)


def test_a_sum_that_an_inner_loop_assigns_is_added_once():
    def body(x, w, y):
        acc = lb.zeros((8, 64))
        for k in lb.range(0, x.shape[1], 64):
            total = acc + lb.dot(lb.load(x, (0, k), (8, 64)), real(w, 0, k).T)
            for _ in lb.range(0, 3, 1):
                acc.set(total)
        lb.store(y, (0, 0), acc)

    check_product(body, lambda x, w: x @ w.T)


def test_a_dot_may_be_subtracted_or_used_alone():
    def body(x, w, y):
        acc, last = lb.zeros((8, 64)), lb.zeros((8, 64))
        for k in lb.range(0, x.shape[1], 64):
            part = lb.dot(lb.load(x, (0, k), (8, 64)), real(w, 0, k).T)
            acc -= part
            last.set(part)
        lb.store(y, (0, 0), acc * last)

    check_product(body, lambda x, w: -(x @ w.T) * (x[:, -64:] @ w[:, -64:].T))


def test_a_products_rows_may_be_reduced_and_transposed():
    def body(x, w, y):
        acc = product(x, w)
        lb.store(y, (0, 0), acc - lb.expand_dims(lb.max(acc, 1), 1) + lb.expand_dims(lb.sum(acc.T, 1), 0))

    check_product(body, lambda x, w: x @ w.T - (x @ w.T).max(1, keepdims=True) + (x @ w.T).sum(0))


@pytest.mark.parametrize(("row", "feature"), [(-4, 0), (0, -16), (-8, -64)])
def test_tiles_of_a_dot_that_begin_before_their_arrays_are_masked(row, feature):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (9, 128)).astype(np.float16)  # small whole numbers: every sum is exact
    codes, zeros = rng.integers(0, 16, (70, 128), np.uint8), rng.integers(0, 16, (70, 1), np.uint8)
    w = lb.pack(codes, np.ones((70, 1), np.float16), zeros, FMT)
    program = made(lambda x, w, y: lb.store(y, (0, 0), product(x, w, row=row, feature=feature)))
    results = [np.zeros((9, 70), np.float32) for _ in range(2)]
    lb.interpret(program, (1,), {"x": x, "w": w, "y": results[0]})
    report = lb.launch(compile_program(program, "sm_80", 4), (1,), {"x": x, "w": w, "y": results[1]})
    assert report.findings == []
    assert np.array_equal(results[1], results[0])


@pytest.mark.parametrize("grid", [(1, 1, 1, 1), (), 3, (1.0,), (-1,)])
def test_a_grid_that_is_none_is_refused(grid):
    program = made(lambda x, w, y: lb.store(y, (0, 0), lb.zeros((8, 8))))
    x, y = np.zeros((8, 128), np.float16), np.zeros((8, 8), np.float32)
    w = lb.quantize(np.zeros((8, 128), np.float32), FMT)
    with pytest.raises(lb.LowbitvmError, match="ARGUMENT_INVALID"):
        lb.launch(compile_program(program, "sm_80", 4), grid, {"x": x, "w": w, "y": y})


def test_a_list_is_no_array():
    program = made(lambda x, w, y: lb.store(y, (0, 0), lb.zeros((8, 8))))
    with pytest.raises(lb.LowbitvmError, match="DTYPE_MISMATCH"):
        lb.launch(compile_program(program, "sm_80", 4), (1,), {"x": [1.0], "w": [2], "y": [3]})
