"""Products of integers of several widths, terms and digits in one launch, with dense columns beside them."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

from lowbitvm import dsl
from lowbitvm.digits import columns_per_row
from lowbitvm.dsl import Packed, Tensor, Value, kernel, packed
from lowbitvm.dtypes import f32, i32
from lowbitvm.kernels.integer import Side, corrected, grouped, whole

DENSE_K = 64  # of a branch at a time


def mixture(
    y: Tensor,
    *rest: Tensor | Packed,
    terms: tuple[tuple[int, ...], ...],
    bm: int,
    bn: int,
    bk: tuple[int, ...],
    stages: int,
) -> None:
    """y (m, n): the blocks of one part of n after those of another, each of them the sum of products over parts of k.

    terms: [part of n][part of k], how many weights are added up. rest: a0, a1, ... (m, k0), the codes of a part of k,
    and w0_0_0 (n0, k0), the weights [part of n, part of k, term], each with _sums, _zeros and _scales; rows0, which
    columns of y a part of n makes; x (m, r) and v0 (n0, r), dense, or x (m, columns of it) and columns (r).
    Scales of groups are as in `lowbitvm.kernels.integer`. Where there are scales or a branch, all sums are f32's, added
    in the order of k and terms, and the branch at last.
    """
    arrays = {parameter.array.name: parameter for parameter in rest}
    i = dsl.program_id(0) * bm
    first: Value | int = 0
    for part, blocks in enumerate(terms):
        with _blocks_of(arrays, part, len(terms), first, bn) as (number, after):
            j = number * bn
            products = [
                _products(arrays, (part, block), (i, j), (bm, bn), count, bk[block], stages)
                for block, count in enumerate(blocks)
            ]
            result = sum_of([value for values in products for value in values])
            if "x" in arrays:
                result = _with_branch(result, arrays, part, (i, j))
            rows = arrays.get(f"rows{part}")
            place = j if rows is None else dsl.load(tensor(rows), (j,), (bn,), other=-1)
            dsl.store(y, (i, place), result.to(y.dtype))
        first = after


@contextlib.contextmanager
def _blocks_of(
    arrays: Mapping[str, Tensor | Packed], part: int, parts: int, first: Value | int, bn: int
) -> Iterator[tuple[Value, Value]]:
    """Records what the blocks of a part do: (number of the block in its part, the next part's first block)."""
    block = dsl.program_id(1)
    after = first + (arrays[f"w{part}_0_0"].shape[0] + (bn - 1)) // bn
    with contextlib.ExitStack() as stack:
        if part > 0:
            stack.enter_context(dsl.when(block > first - 1))
        if part < parts - 1:
            stack.enter_context(dsl.when(block < after))
        yield block if part == 0 else block - first, after


def _products(
    arrays: Mapping[str, Tensor | Packed],
    which: tuple[int, int],
    place: tuple[Value, Value],
    shape: tuple[int, int],
    count: int,
    bk: int,
    stages: int,
) -> list[Value]:
    """The products of one part of n and of k, a tile for each term."""
    part, block = which
    left = side_of(arrays, f"a{block}", place[0], shape[0])
    weights = [side_of(arrays, f"w{part}_{block}_{term}", place[1], shape[1]) for term in range(count)]
    make = grouped if any(side.group for side in (left, *weights)) else whole
    found = make(left, weights, bk, stages)
    if not any(name == "x" or name.endswith("_scales") for name in arrays):
        return found
    return [value.to(f32) for value in found]


def side_of(arrays: Mapping[str, Tensor | Packed], name: str, first: Value, rows: int) -> Side:
    codes, sums, zeros, scales = (arrays.get(name + part) for part in ("", "_sums", "_zeros", "_scales"))
    assert isinstance(codes, Packed) and not any(isinstance(array, Packed) for array in (sums, zeros, scales))
    return Side(codes, first, rows, *(None if array is None else tensor(array) for array in (sums, zeros, scales)))


def tensor(array: Tensor | Packed) -> Tensor:
    assert isinstance(array, Tensor)
    return array


def sum_of(values: Sequence[Value]) -> Value:
    """Their sum, in the first one's lanes."""
    total = values[0]
    for value in values[1:]:
        total = total + value.T.T
    return total


def _with_branch(result: Value, arrays: Mapping[str, Tensor | Packed], part: int, place: tuple[Value, Value]) -> Value:
    """The result plus the product of the dense activations, or of the columns that are named, with the part's rows.

    It is added in the result's own registers where these are in the lanes that a dense dot has.
    """
    x, v, columns, codes = (arrays.get(name) for name in ("x", f"v{part}", "columns", "a0"))
    assert isinstance(x, Tensor) and isinstance(v, Tensor) and isinstance(codes, Packed)
    shape, fmt = result.shape, codes.format
    alike = columns_per_row(fmt.code, fmt.digits or "") == 1
    total = result if alike else dsl.zeros(shape)
    for k in dsl.record_range(0, v.shape[1], DENSE_K):
        index = k if columns is None else dsl.load(tensor(columns), (k,), (DENSE_K,), other=-1)
        dense = dsl.load(x, (place[0], index), (shape[0], DENSE_K))
        total += dsl.dot(dense, dsl.load(v, (place[1], k), (shape[1], DENSE_K)).T)
    return total if alike else result + total.T.T


@kernel(
    re=("m n", i32), im=("m n", i32), a_re=packed("m k"), a_im=packed("m k"), plus=packed("n k"), minus=packed("n k"),
    re_sums=("m parts", i32), im_sums=("m parts", i32), plus_sums=("n parts", i32), minus_sums=("n parts", i32),
)  # fmt: skip
def complex_matmul(
    re: Tensor,
    im: Tensor,
    a_re: Packed,
    a_im: Packed,
    plus: Packed,
    minus: Packed,
    re_sums: Tensor | None = None,
    im_sums: Tensor | None = None,
    plus_sums: Tensor | None = None,
    minus_sums: Tensor | None = None,
    *,
    bm: int,
    bn: int,
    bk: int,
    stages: int,
) -> None:
    """re + i im (m, n) = (a_re + i a_im) (m, k) times the transposed weight (n, k) of 1, -1, i and -i, in i32.

    plus and minus are the weights' real part plus and minus the imaginary one: a (+-1) matrix each, so that
    2 re = (a_re - a_im) plus + (a_re + a_im) minus and 2 im = (a_re + a_im) plus - (a_re - a_im) minus.
    """
    i, j = dsl.program_id(0) * bm, dsl.program_id(1) * bn

    left = [Side(a_re, i, bm, re_sums, None, None), Side(a_im, i, bm, im_sums, None, None)]
    right = [Side(plus, j, bn, plus_sums, None, None), Side(minus, j, bn, minus_sums, None, None)]
    pairs = list(itertools.product(left, right))
    totals = [dsl.zeros((bm, bn), i32) for _ in pairs]
    for k in dsl.record_range(0, a_re.shape[1], bk, stages=stages):
        loaded = ([dsl.load(side.codes, (side.first, k), (side.rows, bk)) for side in both] for both in (left, right))
        for total, (a, w) in zip(totals, itertools.product(*loaded), strict=True):
            total += dsl.dot(a, w.T)
    re_plus, re_minus, im_plus, im_minus = (
        corrected(total, a.numbers(), w.numbers(), a_re.shape[1]) for total, (a, w) in zip(totals, pairs, strict=True)
    )
    dsl.store(re, (i, j), (re_plus - im_plus + re_minus + im_minus) // 2)
    dsl.store(im, (i, j), (re_plus + im_plus - re_minus + im_minus) // 2)
