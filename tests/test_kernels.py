"""Random kernels: interpreter and emulator agree, bit for bit wherever one rounding rule fixes the result."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm import dtypes
from lowbitvm.ir import Program
from lowbitvm.runtime.compiled import compile_program
from lowbitvm.targets import TARGETS

NUMPY = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "i32": np.dtype(np.int32),
}
DTYPES = {"f16": lb.f16, "bf16": lb.bf16, "f32": lb.f32, "i32": lb.i32}
CASTS = {("f16", "f32"), ("bf16", "f32"), ("f32", "f16"), ("f32", "bf16"), ("i32", "f32"), ("f32", "i32")}
SPECIAL = {
    "f32": [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, -3.0, 0.5, 2.0**31, -(2.0**31) - 300, 65519.99, 65520.0, 1e38],
    "i32": [0, 1, -1, 2, -7, 2**31 - 1, -(2**31), 12345678],
}
SMALLEST_F32 = 2.0**-149
ROUNDING = 2.0**-24  # half an ulp of f32, relative


def random_array(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Any bits for 16-bit floats; ordinary numbers and special ones for the others."""
    if dtype in ("f16", "bf16"):
        return rng.integers(0, 1 << 16, shape, np.uint16).view(NUMPY[dtype])
    plain = rng.integers(-300, 300, shape) if dtype == "i32" else rng.normal(0, 100, shape)
    special = rng.choice(np.array(SPECIAL[dtype], NUMPY[dtype]), shape)
    return np.where(rng.random(shape) < 0.3, special, plain.astype(NUMPY[dtype]))


def bits(array: np.ndarray) -> np.ndarray:
    """The bit patterns, with one pattern for all NaNs: their payloads are nobody's promise."""
    if array.dtype != np.int32:
        array = np.where(np.isnan(array.astype(np.float32)), np.array(np.nan, array.dtype), array)
    return array.view(f"u{array.dtype.itemsize}")


class Sketch:
    """Records a random kernel: `pool` has the values in scope, `stop` is what an index may run to."""

    def __init__(self, draw, inputs, outputs, blocks):
        self.draw, self.inputs, self.outputs, self.blocks = draw, inputs, outputs, blocks
        self.pool = []
        self.indices = [lb.program_id(0), inputs[0].shape[0], inputs[-1].shape[1]]

    def scalar(self):
        """An i32 scalar; in a loop mostly its index."""
        return self.choose([*self.indices, *[self.indices[-1]] * 3])

    def choose(self, choices):
        return self.draw(st.sampled_from(list(choices)))

    def record(self, depth=0):
        actions = ["load", "load", "full", "binary", "binary", "cast", "rearrange", "reduce", "update", "index"]
        actions += (
            ["loop"] * (2 - depth) + ["store", "load back"] * (self.blocks == 1) + ["load", "update"] * (2 * depth)
        )
        for _ in range(self.draw(st.integers(5 - 2 * depth, 14 - 4 * depth))):
            action = self.choose(actions)
            if action not in ("load", "load back", "full", "loop", "index") and not self.pool:
                action = "load"
            made = getattr(self, action.replace(" ", "_"))(*([depth] if action == "loop" else []))
            if made is not None:
                self.pool.append(made)

    def shape(self, rank):
        limits = {1: [512], 2: [32, 64]}[rank]
        return tuple(1 << self.draw(st.integers(0, limit.bit_length() - 1)) for limit in limits)

    def offset(self, size):
        """An offset, in no particular relation to the tile of `size` elements, and sometimes outside the array."""
        kind = self.choose(["zero", "tile", "constant", "index", "affine"])
        if kind == "zero":
            return 0
        if kind == "tile":
            return self.scalar() * size
        if kind == "constant":
            return self.draw(st.integers(-5, 40))
        index = self.scalar()
        return index if kind == "index" else index * self.draw(st.integers(-2, 3)) + self.draw(st.integers(-9, 9))

    def load(self, arrays=None):
        source = self.choose(arrays or self.inputs)
        shape = self.shape(len(source.array.dims))
        others = {"i32": [0, -1, 2**31 - 1], "f16": [0, -2.5, float("-inf")]}.get(
            source.dtype.name, [0, 1.5, float("nan")]
        )
        return lb.load(source, tuple(map(self.offset, shape)), shape, other=self.choose(others))

    def load_back(self):
        return self.load(self.outputs)

    def full(self):
        dtype = self.choose(DTYPES)
        return lb.full(self.shape(self.choose([1, 2])), self.choose(SPECIAL.get(dtype, [1.0, -0.0])), DTYPES[dtype])

    def index(self):
        made = self.scalar()
        name, number = self.choose(["add", "mul", "floordiv", "mod"]), self.choose([1, 3, -2, 16])
        self.indices.append(
            {"add": made + number, "mul": made * number, "floordiv": made // number, "mod": made % number}[name]
        )

    def arithmetic_value(self):
        value = self.choose(self.pool)
        return value if value.dtype in (lb.f32, lb.i32) else value.to(lb.f32)

    def partner(self, value):
        """A value that broadcasts against `value`, or a number."""
        fitting = [
            other
            for other in self.pool
            if other.dtype == value.dtype
            and all(a == b or 1 in (a, b) for a, b in zip(other.shape[::-1], value.shape[::-1], strict=False))
        ]
        choices = [*fitting, *SPECIAL[value.dtype.name]] + (self.indices if value.dtype == lb.i32 else [])
        return self.choose(choices)

    def binary(self):
        a = self.arithmetic_value()
        b = self.partner(a)
        names = ["add", "sub", "mul", "max", "min", "reversed"] + (
            ["div", "sqrt", "fma"] if a.dtype == lb.f32 else ["floordiv", "mod"]
        )
        name = self.choose(names)
        if name in ("floordiv", "mod"):  # by anything but zero
            b = self.choose([3, -7, 1, 2**31 - 1, -(2**31)]) if isinstance(b, int) else self.nonzero(b)
        return {
            "add": lambda: a + b,
            "sub": lambda: a - b,
            "mul": lambda: a * b,
            "max": lambda: lb.maximum(a, b),
            "min": lambda: lb.minimum(b, a),
            "reversed": lambda: 3 - a,
            "div": lambda: a / b,
            "sqrt": lambda: lb.sqrt(a),
            "fma": lambda: lb.fma(a, b, a),
            "floordiv": lambda: a // b,
            "mod": lambda: a % b,
        }[name]()

    def nonzero(self, value):
        return lb.maximum(value, 1) if self.draw(st.booleans()) else lb.minimum(value, -2)

    def cast(self):
        value = self.choose(self.pool)
        return value.to(DTYPES[self.choose(to for source, to in sorted(CASTS) if source == value.dtype.name)])

    def rearrange(self):
        value = self.choose(self.pool)
        if len(value.shape) == 2:
            return value.T
        return lb.expand_dims(value, self.draw(st.integers(0, len(value.shape))))

    def reduce(self):
        value = self.arithmetic_value()
        if not value.shape:
            return None
        axis = self.draw(st.integers(0, len(value.shape) - 1))
        if self.draw(st.booleans()):
            return lb.max(value, axis)
        if value.dtype == lb.f32:  # whole numbers whose sums are exact in any order
            value = (value.to(lb.i32) % 1000).to(lb.f32)
        return lb.sum(value, axis)

    def update(self):
        target = self.choose(self.pool)
        if not target.shape and target.dtype == lb.i32:
            return
        fitting = [x for x in self.pool if x.shape == target.shape and x.dtype == target.dtype]
        value = self.choose(fitting)
        if target.dtype not in (lb.f32, lb.i32) or self.draw(st.booleans()):
            target.set(value)
        elif self.draw(st.booleans()):
            target += value
        else:
            target -= self.choose(SPECIAL[target.dtype.name])

    def loop(self, depth):
        values, indices = len(self.pool), len(self.indices)
        start = self.draw(st.integers(-4, 20))
        stop = self.choose([self.draw(st.integers(-4, 40)), self.inputs[-1].shape[1], self.choose(self.indices)])
        for k in lb.range(start, stop if isinstance(stop, int) else lb.minimum(stop, 64), self.choose([4, 8, 16, 21])):
            self.indices.append(k)
            self.record(depth + 1)
        del self.pool[values:], self.indices[indices:]

    def store(self, value=None, target=None):
        """Any value into an output of its rank, made 1-D or 2-D and cast as needed."""
        value = self.choose(self.pool) if value is None else value
        if not value.shape:
            value = lb.expand_dims(value, 0)
        target = target or self.choose(x for x in self.outputs if len(x.array.dims) == len(value.shape))
        if value.dtype != target.dtype:
            value = value if target.dtype == lb.f32 or value.dtype == lb.f32 else value.to(lb.f32)
            value = value.to(target.dtype)
        offsets = [self.offset(size) for size in value.shape]
        if self.blocks > 1:  # blocks must not meet
            offsets[0] = lb.program_id(0) * value.shape[0]
        lb.store(target, tuple(offsets), value)

    def store_results(self):
        for target in self.outputs:
            fitting = [value for value in self.pool if len(value.shape) == len(target.array.dims)]
            if fitting:
                self.store(self.choose(fitting), target)


@st.composite
def problems(draw):
    """(program, grid, arguments) of a random kernel of four inputs and four outputs."""
    names = {name: draw(st.sampled_from(sorted(DTYPES))) for name in ("a", "b", "c", "d", "p", "q", "r", "s")}
    dims = {"a": "n", "b": "n", "c": "m n", "d": "m n", "p": "o", "q": "o", "r": "t u", "s": "t u"}
    divisible = {dim: draw(st.sampled_from([1, 2, 4, 8])) for dim in ("n", "o", "u")}
    sizes = {dim: draw(st.integers(0, 70)) // divisible.get(dim, 1) * divisible.get(dim, 1) for dim in "nmotu"}
    blocks = draw(st.integers(1, 3))

    @lb.kernel(**{name: (dims[name], DTYPES[names[name]]) for name in names})
    def random_kernel(a, b, c, d, p, q, r, s):
        sketch = Sketch(draw, [a, b, c, d], [p, q, r, s], blocks)
        sketch.record()
        sketch.store_results()

    program = random_kernel.trace(divisible=divisible)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    arguments = {
        name: random_array(rng, names[name], tuple(sizes[dim] for dim in dims[name].split())) for name in names
    }
    return Problem(program, (blocks,), arguments)


class Problem:
    """A program with what it runs on; no dataclass, which Hypothesis would print op by op."""

    def __init__(self, program: Program, grid: tuple[int, ...], arguments: dict[str, np.ndarray]) -> None:
        self.program, self.grid, self.arguments = program, grid, arguments

    def __repr__(self) -> str:
        return f"grid {self.grid}, {[(name, x.shape) for name, x in self.arguments.items()]}\n{self.program}"


def run_both(program, grid, arguments, *, warps=4, target="sm_80", seeds=(0, 1)):
    """The arrays after interpreting and, per seed, after emulating; the emulator must find no defect."""
    compiled = compile_program(program, target, warps)
    interpreted = {name: array.copy() for name, array in arguments.items()}
    lb.interpret(program, grid, interpreted)
    for seed in seeds:
        emulated = {name: array.copy() for name, array in arguments.items()}
        report = lb.launch(compiled, grid, emulated, seed=seed)
        assert report is not None and report.findings == []
        yield interpreted, emulated


def check(program, grid, arguments, **options):
    for interpreted, emulated in run_both(program, grid, arguments, **options):
        for name in arguments:
            np.testing.assert_array_equal(
                bits(emulated[name]), bits(interpreted[name]), err_msg=f"{name} of\n{program}"
            )


@settings(max_examples=100)
@given(problems(), st.sampled_from([1, 2, 4, 8]), st.integers(0, 1 << 20))
def test_random_kernels_agree_bit_for_bit(problem, warps, seed):
    check(problem.program, problem.grid, problem.arguments, warps=warps, seeds=(0, seed))


# -- sums and exponentials ---------------------------------------------------------------------------------------------


@lb.kernel(x=("m n", None), rows=("m", lb.f32), columns=("n", lb.f32))
def sums(x: lb.Tensor, rows: lb.Tensor, columns: lb.Tensor, *, bm: int, bn: int) -> None:
    row = lb.program_id(0) * bm
    total = lb.zeros((bm,))
    for k in lb.range(0, x.shape[1], bn):
        total += lb.sum(lb.load(x, (row, k), (bm, bn)).to(lb.f32), axis=1)
    lb.store(rows, (row,), total)
    column = lb.program_id(0) * bn
    total = lb.zeros((bn,))
    for k in lb.range(0, x.shape[0], bm):
        total += lb.sum(lb.load(x, (k, column), (bm, bn)).to(lb.f32), axis=0)
    lb.store(columns, (column,), total)


@settings(max_examples=40)
@given(
    dtype=st.sampled_from(["f16", "bf16", "f32"]),
    m=st.integers(0, 70),
    n=st.integers(0, 200),
    bm=st.sampled_from([1, 4, 16, 32]),
    bn=st.sampled_from([1, 8, 64, 256]),
    warps=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 1 << 32),
)
def test_sums_of_rows_and_columns_are_within_the_bound_of_any_order(dtype, m, n, bm, bn, warps, seed):
    x = np.random.default_rng(seed).normal(1, 100, (m, n)).astype(NUMPY[dtype])
    program = sums.trace(x=DTYPES[dtype], bm=bm, bn=bn)
    arguments = {"x": x, "rows": np.zeros(m, np.float32), "columns": np.zeros(n, np.float32)}
    wide = x.astype(np.float64)
    grid = (max(-(-m // bm), -(-n // bn), 1),)
    for interpreted, emulated in run_both(program, grid, arguments, warps=warps):
        for axis, name, padded in ((1, "rows", n + bn), (0, "columns", m + bm)):
            # A sum of p terms in any order is off by at most p * u / (1 - p * u) of the sum of magnitudes.
            bound = padded * ROUNDING / (1 - padded * ROUNDING) * np.abs(wide).sum(axis)
            for result in (interpreted[name], emulated[name]):
                assert (np.abs(result - wide.sum(axis)) <= bound).all()


@lb.kernel(x=("n", lb.f32), y=("n", lb.f32))
def exponential(x: lb.Tensor, y: lb.Tensor) -> None:
    start = lb.program_id(0) * 256
    lb.store(y, (start,), lb.exp(lb.load(x, (start,), (256,))))


def test_the_exponential_is_within_the_bound_of_ex2_approx():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-105, 88.7, 5000), rng.normal(0, 1e-3, 1000)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    # ex2.approx is off by 2^-22; its argument, x * log2(e), by two roundings, which the result takes times |x|.
    bound = exact * (2.0**-22 + np.expm1(np.abs(x) * 2 * ROUNDING)) + SMALLEST_F32
    for interpreted, emulated in run_both(exponential.trace(), (24,), {"x": x, "y": np.zeros_like(x)}):
        assert (np.abs(interpreted["y"] - exact) <= bound).all()
        assert (np.abs(emulated["y"] - exact) <= bound).all()


def test_the_exponential_of_special_numbers_is_exact():
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-42], np.float32)
    expected = np.array([1, 1, np.inf, 0, np.nan, np.inf, 0, 1], np.float32)
    for interpreted, emulated in run_both(exponential.trace(), (1,), {"x": x, "y": np.zeros_like(x)}):
        np.testing.assert_array_equal(interpreted["y"], expected)
        np.testing.assert_array_equal(emulated["y"], expected)


# -- named cases -------------------------------------------------------------------------------------------------------


def same(body, x, y, *, warps=4, seeds=8):
    """Checks the kernel `body(x, y)` on these arrays under several schedules; returns the interpreter's y."""

    @lb.kernel(x=(" ".join("mnk"[: x.ndim]), dtypes.of(x)), y=(" ".join("pqr"[: y.ndim]), dtypes.of(y)))
    def kernel(x, y):
        body(x, y)

    program = kernel.trace()
    check(program, (1,), {"x": x, "y": y}, warps=warps, seeds=range(seeds))
    y = y.copy()
    lb.interpret(program, (1,), {"x": x.copy(), "y": y})
    return y


def counting(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape), dtype=dtype).reshape(shape)


def test_a_tile_may_be_transposed_in_place():
    def body(x, y):
        lb.store(y, (0, 0), lb.load(y, (0, 0), (64, 64)).T)

    square = counting(64, 64)
    assert np.array_equal(same(body, counting(1), square), square.T)


def test_stores_to_overlapping_windows_land_in_order():
    def body(x, y):
        for k in lb.range(0, 512, 64):
            lb.store(y, (k,), lb.load(x, (k,), (512,)) + k.to(lb.f32))

    x, expected = counting(1024), np.zeros(1024, np.float32)
    for k in range(0, 512, 64):
        expected[k : k + 512] = x[k : k + 512] + k
    assert np.array_equal(same(body, x, np.zeros_like(expected)), expected)


def test_offsets_may_be_any_affine_function_of_the_loops_indices():
    def body(x, y):
        for i in lb.range(0, 4, 1):
            for k in lb.range(2, 11, 3):
                part = lb.load(x, (31 - 7 * i - 1, (k - i) * 2 + i * 3 - 4), (2, 4))
                lb.store(y, (2 * i, (3 * k + 2) // 1), part + lb.load(x, (i * i, k * k - 5), (1, 4)))

    x, expected = counting(40, 128), np.zeros((8, 64), np.float32)
    for i in range(4):
        for k in range(2, 11, 3):
            row, column = 30 - 7 * i, 2 * (k - i) + 3 * i - 4
            part = np.zeros((2, 4), np.float32)
            part[:, max(0, -column) :] = x[row : row + 2, max(0, column) : column + 4]
            other = np.zeros(4, np.float32)
            other[max(0, 5 - k * k) :] = x[i * i, max(0, k * k - 5) : k * k - 1]
            expected[2 * i : 2 * i + 2, 3 * k + 2 : 3 * k + 6] = part + other
    assert np.array_equal(same(body, x, np.zeros_like(expected)), expected)


def test_a_store_is_seen_by_a_later_load_of_another_shape():
    def body(x, y):
        lb.store(y, (0, 0), lb.load(x, (0, 0), (32, 32)))
        lb.store(y, (0, 0), lb.load(y, (0, 0), (1, 32)) + lb.load(y, (0, 0), (32, 1)))

    x = counting(32, 32)
    assert np.array_equal(same(body, x, np.zeros_like(x)), x[:1] + x[:, :1])


def test_every_copy_of_a_replicated_tile_is_loaded_before_one_of_them_is_stored():
    @lb.kernel(x=("m n", lb.f32), y=("k n", lb.f32))
    def doubled(x, y):
        total = lb.zeros((64, 8))
        for _ in lb.range(0, 10, 1):
            row = lb.load(y, (0, 0), (1, 8))
            lb.store(y, (0, 0), row * 2)
            total += row
        lb.store(x, (0, 0), total)

    arguments = {"x": counting(64, 8), "y": counting(1, 8)}
    for _, emulated in run_both(doubled.trace(), (1,), arguments, warps=8, seeds=range(8)):
        assert np.array_equal(emulated["x"], np.broadcast_to(1023 * counting(1, 8), (64, 8)))


def test_a_tile_may_meet_its_own_transpose():
    def body(x, y):
        tile = lb.load(x, (0, 0), (32, 32))
        lb.store(y, (0, 0), tile + tile.T)

    x = counting(32, 32)
    assert np.array_equal(same(body, x, np.zeros_like(x)), x + x.T)


def test_reductions_of_tiles_of_different_width_may_meet():
    def body(x, y):
        for _ in lb.range(0, 2, 1):
            rows = lb.max(lb.load(x, (0, 0), (16, 64)), 1) + lb.max(lb.load(x, (0, 0), (16, 8)), 1)
            lb.store(y, (0, 0), lb.load(x, (0, 8), (16, 4)) * lb.expand_dims(rows, 1))

    x = counting(16, 64)
    expected = x[:, 8:12] * (x[:, 63:] + x[:, 7:8])
    assert np.array_equal(same(body, x, np.zeros((16, 4), np.float32)), expected)


@pytest.mark.parametrize("warps", [1, 2, 8])
@pytest.mark.parametrize("shape", [(8, 4, 16), (3, 5, 7), (1, 33, 2), (0, 4, 4), (9, 1, 40)])
def test_tiles_of_three_axes_may_be_reduced_spread_and_masked(shape, warps):
    def body(x, y):
        for k in lb.range(0, x.shape[0], 4):
            tile = lb.load(x, (k, 0, 0), (4, 64, 64), other=-1)
            middle = lb.expand_dims(lb.max(tile, 1), 1)
            ends = lb.expand_dims(lb.expand_dims(lb.sum(lb.sum(tile, 0), 1), 1), 0)
            lb.store(y, (k, 0, 0), tile * 1000 + middle - ends)

    x = counting(*shape, dtype=np.int32)
    expected = np.zeros(shape, np.int32)
    for k in range(0, shape[0], 4):
        tile = np.full((4, 64, 64), -1)
        part = x[k : k + 4]
        tile[: len(part), : shape[1], : shape[2]] = part
        values = tile * 1000 + tile.max(1, keepdims=True) - tile.sum((0, 2))[:, None]
        expected[k : k + 4] = values[: len(part), : shape[1], : shape[2]]
    assert np.array_equal(same(body, x, np.zeros(shape, np.int32), warps=warps, seeds=1), expected)


def test_a_16_bit_tile_may_change_its_layout():
    def body(x, y):
        tile = lb.load(x, (0, 0), (16, 16))
        first = lb.max(tile.to(lb.f32), 1)
        lb.store(y, (0, 0), (tile.T.to(lb.f32) - lb.expand_dims(first, 1)).to(lb.f16))

    x = np.arange(256).astype(np.float16).reshape(16, 16)
    assert np.array_equal(same(body, x, np.zeros_like(x)), x.T - x.max(1, keepdims=True))


def test_floor_division_is_right_at_the_ends_of_the_range():
    values = np.array([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1], np.int32)

    def body(x, y):
        for row, number in enumerate((3, -3, 7, 2**31 - 1, -(2**31))):
            lb.store(y, (row, 0), lb.expand_dims(lb.load(x, (0,), (8,)) // number, 0))
            lb.store(y, (row + 5, 0), lb.expand_dims(lb.load(x, (0,), (8,)) % number, 0))

    y = same(body, values, np.zeros((10, 6), np.int32))
    for row, number in enumerate((3, -3, 7, 2**31 - 1, -(2**31))):
        assert [int(v) // number for v in values] == y[row].tolist()
        assert [int(v) % number for v in values] == y[row + 5].tolist()


def test_arithmetic_on_known_numbers_wraps_like_that_on_unknown_ones():
    def body(x, y):
        lb.store(y, (0,), lb.full((2,), 2**31 - 1, lb.i32) + 1)
        lb.store(y, (2,), lb.full((2,), 2**31 - 1, lb.i32) * 3)

    expected = [-(2**31), -(2**31), 2**31 - 3, 2**31 - 3]
    assert same(body, counting(1), np.zeros(4, np.int32)).tolist() == expected


def test_known_division_by_zero_still_compiles():
    @lb.kernel(y=("n", lb.i32))
    def undefined(y):
        lb.store(y, (0,), lb.full((2,), 5, lb.i32) // lb.zeros((2,), lb.i32))

    assert compile_program(undefined.trace(), "sm_80", 1).ptx


def test_known_numbers_may_be_summed_over_lanes_and_warps():
    def body(x, y):
        lb.store(y, (0,), lb.expand_dims(lb.sum(lb.full((1024,), 3, lb.i32), 0), 0))

    assert same(body, counting(1), np.zeros(1, np.int32)).tolist() == [3072]


def test_a_loop_up_to_the_largest_index_ends():
    def body(x, y):
        last = lb.zeros((1,), lb.i32)
        for k in lb.range(2**31 - 100, 2**31 - 1, 64):
            last += k - (2**31 - 101)
        lb.store(y, (0,), last)

    assert same(body, counting(1), np.zeros(1, np.int32)).tolist() == [1 + 65]


def test_a_scalar_made_of_a_tile_that_a_loop_changes_is_that_of_its_iteration():
    def body(x, y):
        tile, number = lb.zeros((8,), lb.i32), lb.sum(lb.load(x, (0,), (1,)), 0)
        for k in lb.range(0, 3, 1):
            tile += 1
            number += 1.0
            lb.store(y, (8 * k,), tile * lb.sum(tile, 0) + number.to(lb.i32))

    expected = np.repeat([1 * 8 + 2, 2 * 16 + 3, 3 * 24 + 4], 8)
    assert same(body, counting(1), np.zeros(24, np.int32)).tolist() == expected.tolist()


def test_a_dimension_may_be_inserted_counting_from_the_end():
    def body(x, y):
        lb.store(y, (0, 0), lb.expand_dims(lb.load(x, (0,), (8,)), -1) - lb.expand_dims(lb.load(x, (0,), (8,)), -2))

    x = counting(8)
    assert np.array_equal(same(body, x, np.zeros((8, 8), np.float32)), x[:, None] - x)


def test_a_nested_loop_of_no_iterations_leaves_its_tiles_alone():
    def body(x, y):
        total = lb.load(x, (0,), (64,))
        for i in lb.range(0, 3, 1):
            for k in lb.range(5, i, 1):
                total += k.to(lb.f32)
            total += 1.0
        lb.store(y, (0,), total)

    assert np.array_equal(same(body, counting(64), np.zeros(64, np.float32)), counting(64) + 3)


def test_values_that_share_registers_keep_their_own_numbers():
    def body(x, y):
        tile = lb.load(x, (0, 0), (16, 16))
        turned = tile.T
        tile += 100.0
        lb.store(y, (0, 0), tile)
        lb.store(y, (16, 0), turned)
        column = lb.load(x, (0, 0), (16, 1))
        spread = column + lb.zeros((16, 16))
        wide = lb.expand_dims(lb.max(column, 1), 1)
        column -= 7.0
        lb.store(y, (32, 0), spread - column)
        lb.store(y, (48, 0), wide)
        known = lb.full((16, 16), 2.0)
        also = known.T
        also += 1.0
        known += also
        lb.store(y, (64, 0), known)
        number = lb.sum(column, 0)
        lb.store(y, (80, 0), lb.expand_dims(number, 0) + lb.zeros((1, 16)))

    x = counting(16, 16)
    expected = np.zeros((81, 16), np.float32)
    expected[:16], expected[16:32], expected[32:48], expected[48:64, 0] = x + 100, x.T, 7, x[:, 0]
    expected[64:80], expected[80] = 5, (x[:, 0] - 7).sum()
    assert np.array_equal(same(body, x, np.zeros_like(expected)), expected)


def test_the_larger_of_two_zeros_is_the_positive_one():
    zeros = np.array([0.0, -0.0, 0.0, -0.0], np.float32)
    others = np.array([-0.0, 0.0, 0.0, -0.0], np.float32)

    def body(x, y):
        a, b = lb.load(x, (0,), (4,)), lb.load(y, (0,), (4,))
        lb.store(y, (0,), lb.maximum(a, b))
        lb.store(y, (4,), lb.minimum(a, b))
        lb.store(y, (8,), lb.expand_dims(lb.max(lb.minimum(a, b), 0), 0))

    y = same(body, zeros, np.concatenate([others, np.ones(5, np.float32)]))
    assert np.signbit(y).tolist() == [False, False, False, True, True, True, False, True, False]


def test_a_signalling_nan_loses_against_a_number_too():
    x = np.array([0x7FBF, 0x4000, 0xFF81, 0xC000], np.uint16).view(NUMPY["bf16"])  # NaN, 2, NaN, -2

    def body(x, y):
        tile = lb.load(x, (0,), (4,)).to(lb.f32)
        lb.store(y, (0,), lb.maximum(tile, -3.0))
        lb.store(y, (4,), lb.minimum(1.0, tile))
        lb.store(y, (8,), lb.expand_dims(lb.max(tile, 0), 0))

    assert same(body, x, np.zeros(9, np.float32)).tolist() == [-3, 2, -3, -2, 1, 1, 1, -2, 2]


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("promise", [1, 8])
def test_copies_keep_every_bit_pattern(dtype, promise):
    @lb.kernel(x=("n", DTYPES[dtype]), y=("n", DTYPES[dtype]))
    def copied(x, y):
        start = lb.program_id(0) * 2048
        lb.store(y, (start,), lb.load(x, (start,), (2048,)))

    x = np.arange(1 << 16, dtype=np.uint16).view(NUMPY[dtype])
    for executed in run_both(copied.trace(divisible={"n": promise}), (32,), {"x": x, "y": np.zeros_like(x)}, seeds=[0]):
        for arrays in executed:
            assert np.array_equal(arrays["y"].view(np.uint16), x.view(np.uint16))


def test_tiles_of_16_bit_numbers_may_be_filled():
    def body(x, y):
        lb.store(y, (0,), lb.full((8,), 1.5, lb.bf16))

    assert (same(body, counting(1), np.zeros(8, NUMPY["bf16"])) == 1.5).all()


def test_parameters_may_have_the_names_that_the_generated_code_would_give():
    @lb.kernel(x=("x", lb.i32), x_words=("x_size", lb.i32), size_x=("add", lb.i32))
    def mov(x, x_words, size_x):
        lb.store(x_words, (0,), lb.load(x, (0,), (8,)) + lb.load(size_x, (0,), (8,)))

    arguments = {"x": counting(8, dtype=np.int32), "x_words": np.zeros(7, np.int32), "size_x": np.ones(5, np.int32)}
    check(mov.trace(), (1,), arguments)
    assert compile_program(mov.trace(), "sm_80", 1).cubin


@pytest.mark.parametrize("target", TARGETS)
def test_every_cast_assembles_for_every_target(target):
    @lb.kernel(a=("n", lb.f16), b=("n", lb.bf16), c=("n", lb.f32), d=("n", lb.i32))
    def casts(a, b, c, d):
        tiles = {tensor.dtype: lb.load(tensor, (0,), (32,)) for tensor in (a, b, c, d)}
        for tensor in (a, b, d):
            lb.store(c, (0,), tiles[tensor.dtype].to(lb.f32))
            lb.store(tensor, (0,), tiles[lb.f32].to(tensor.dtype))

    assert compile_program(casts.trace(), target, 1).cubin


@pytest.mark.parametrize("target", ["sm_75", "sm_80"])
def test_floats_are_rounded_to_bf16_to_nearest_even(target):
    @lb.kernel(x=("n", lb.f32), y=("n", lb.bf16))
    def rounded(x, y):
        lb.store(y, (0,), lb.load(x, (0,), (4096,)).to(lb.bf16))

    bits = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    bits[:1024] = bits[:1024] & 0xFFFF0000 | 0x8000  # halves
    bits[:8] = 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF, 0x7F800001, 0x80000000
    x, y = bits.view(np.float32), np.zeros(4096, ml_dtypes.bfloat16)
    report = lb.launch(compile_program(rounded.trace(), target, 4), (1,), {"x": x, "y": y}, checks="all")
    numbers = ~np.isnan(x)
    expected = np.where(numbers, x, 0).astype(ml_dtypes.bfloat16)
    assert not report.findings and np.isnan(y[~numbers]).all()
    assert np.array_equal(y[numbers].view(np.uint16), expected[numbers].view(np.uint16))


def test_the_interpreter_refuses_arrays_of_another_dtype():
    with pytest.raises(lb.LowbitvmError, match="DTYPE_MISMATCH"):
        lb.interpret(exponential.trace(), (1,), {"x": np.zeros(3), "y": np.zeros(3, np.float32)})


def test_a_dimension_beyond_an_i32_is_refused():
    huge = np.broadcast_to(np.float32(0), (1 << 31,))
    with pytest.raises(lb.LowbitvmError, match=r"SHAPE_MISMATCH: n is 2147483648"):
        lb.interpret(exponential.trace(), (1,), {"x": huge, "y": huge})
