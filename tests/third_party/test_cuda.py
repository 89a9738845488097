"""CUDA code as people write it, compiled here by nvcc, against numpy and exact integers."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.third_party import running
from tests.third_party.catalogue import CUDA_TARGETS, cuda
from tests.third_party.running import empty

BF16 = ml_dtypes.bfloat16
MASK = (1 << 32) - 1
UNIT = 2.0**-24  # half a unit in the last place of an f32 number, relative


def targets(name: str) -> Any:
    return pytest.mark.parametrize("arch", CUDA_TARGETS[name])


def run(
    file: str, arch: str, entry: str, grid: tuple[int, ...], block: tuple[int, ...], *args: Any, **more: Any
) -> Any:
    return running.cuda(cuda(file, arch), entry, grid, block, *args, **more)


def integers(seed: int, *shape: int, low: int = -100, high: int = 100, dtype: Any = np.int32) -> Any:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def words(seed: int, n: int) -> Any:
    """Random words, with the ends of every range among them."""
    values = np.random.default_rng(seed).integers(0, 2**32, n, np.uint32)
    values[:8] = np.roll(np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 0x80008000, 0x7FFF7FFF, 0x01010101]), seed)
    return values


# ---- reductions.cu


@targets("reductions")
@pytest.mark.parametrize("n", [100, 1000])
def test_the_last_block_to_finish_adds_the_others_sums(arch: str, n: int) -> None:
    x = integers(0, n, dtype=np.float32)
    for *_, out, _ in run("reductions", arch, "fence_sum", (5,), (96,), x, empty(5), empty(1), n):
        assert out[0] == x.sum()


@targets("reductions")
def test_a_tree_of_sums_in_shared_memory_adds_exactly(arch: str) -> None:
    x = integers(0, 500)
    for _, out, _ in run("reductions", arch, "tree_sum", (4,), (128,), x, np.zeros(1, np.int32), 500, shared=512):
        assert out[0] == x.sum()


@targets("reductions")
@pytest.mark.parametrize("threads", [64, 256])
def test_a_block_scans_by_shuffles(arch: str, threads: int) -> None:
    x = integers(0, threads)
    for _, y in run("reductions", arch, "block_scan", (1,), (threads,), x, empty(threads, dtype=np.int32)):
        np.testing.assert_array_equal(y, x.cumsum())


@targets("reductions")
def test_positive_values_are_kept_in_any_order_of_warps(arch: str) -> None:
    x = integers(0, 300)
    for _, y, count, _ in run(
        "reductions", arch, "compact", (3,), (128,), x, np.zeros(300, np.int32), np.zeros(1, np.int32), 300
    ):
        assert count[0] == (x > 0).sum()
        np.testing.assert_array_equal(np.sort(y[: count[0]]), np.sort(x[x > 0]))


@targets("reductions")
def test_votes_and_matches_follow_their_definitions(arch: str) -> None:
    x, lanes = integers(0, 32, low=0, high=6), np.arange(32)
    odd = sum(1 << lane for lane in lanes if x[lane] & 1)
    rows = [np.full(32, (x == 3).any()), np.full(32, (x < 3).all()), np.full(32, odd)]
    rows += [[sum(1 << other for other in lanes if x[other] == value) for value in x]]
    rows += [np.full(32, MASK), np.full(32, 1), np.where(x & 1, odd, 0), x[lanes ^ 5]]
    rows += [np.where(lanes < 16, x[(lanes + 3) % 16], 0)]
    if arch != "sm_75":
        rows += [np.full(32, x.sum()), np.full(32, x.max() - 5), np.full(32, np.bitwise_xor.reduce(x))]
    expected = np.array([[int(value) & MASK for value in row] for row in rows], np.uint32)
    for _, out in run("reductions", arch, "votes", (1,), (32,), x, np.zeros((12, 32), np.uint32)):
        np.testing.assert_array_equal(out[: len(expected)], expected)


@targets("reductions")
def test_cooperative_groups_reduce_and_scan(arch: str) -> None:
    x = integers(0, 96)
    outputs = [empty(96, dtype=np.int32) for _ in range(4)]
    for _, sums, scans, parts, largest in run("reductions", arch, "groups", (1,), (96,), x, *outputs):
        np.testing.assert_array_equal(sums, np.repeat(x.reshape(-1, 8).sum(1), 8))
        np.testing.assert_array_equal(scans, x.reshape(3, 32).cumsum(1).reshape(-1))
        np.testing.assert_array_equal(largest, np.repeat(x.reshape(3, 32).max(1), 32))
        for warp, part in zip((x % 3 == 0).reshape(3, 32), parts.reshape(3, 32), strict=True):
            np.testing.assert_array_equal(part, np.where(warp, warp.sum() * 100 + warp.cumsum() - 1, 0))


@targets("reductions")
def test_blocks_that_wait_for_each_other_see_what_was_written_before(arch: str) -> None:
    x = integers(0, 400)
    args = [x, empty(400, dtype=np.int32), empty(400, dtype=np.int32), 400]
    for *_, out, _ in run("reductions", arch, "phases", (4,), (64,), *args):
        np.testing.assert_array_equal(out, 3 * x[::-1] + x)


# ---- atomics.cu


def _wrapping(value: int, count: int, limit: int, up: bool) -> int:
    for _ in range(count):
        value = (0 if value >= limit else value + 1) if up else (limit if value == 0 or value > limit else value - 1)
    return value


@targets("atomics")
def test_integer_atomics_combine_in_any_order(arch: str) -> None:
    n = 300
    x, place = integers(0, n, low=-(2**31), high=2**31), np.arange(n) % 4
    functions = [np.add, np.subtract, np.minimum, np.maximum, np.bitwise_and, np.bitwise_or, np.bitwise_xor]
    out = np.tile(np.array([5, -3, 2**30, -(2**31)], np.int32), (7, 1))
    wide = np.tile(np.arange(4, dtype=np.uint64), (3, 1))
    expected, expected_wide = out.copy(), wide.copy()
    for row, function in zip(expected, functions, strict=True):
        function.at(row, place, x)
    longs = x.astype(np.int64).view(np.uint64)
    with np.errstate(over="ignore"):
        np.add.at(expected_wide[0], place, longs << np.uint64(20))
        np.maximum.at(expected_wide[1], place, longs)
        np.bitwise_xor.at(expected_wide[2], place, longs * np.uint64(0x100000001))
    for _, found, wrapped, found_wide, _ in run(
        "atomics", arch, "integers", (3,), (128,), x, out, np.array([0, 3, 6, 9] * 2, np.uint32), wide, n
    ):
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found_wide, expected_wide)
        for start, up, down in zip((0, 3, 6, 9), wrapped[:4], wrapped[4:], strict=True):
            assert up == _wrapping(start, n // 4, 6, True)
            assert down == _wrapping(start, n // 4, 6, False)


@targets("atomics")
def test_float_atomics_add_exact_numbers_exactly(arch: str) -> None:
    x = integers(0, 200, low=-5, high=6, dtype=np.float32)
    zeros = [
        np.array([0, -np.inf], np.float32),
        np.zeros(1),
        np.zeros(2, np.float16),
        np.zeros(2, np.float16),
        np.zeros(2, BF16),
    ]
    for _, out, wide, halves, pairs, brains, _ in run("atomics", arch, "floats", (2,), (128,), x, *zeros, 200):
        np.testing.assert_array_equal(out, [x.sum(), x.max()])
        assert wide[0] == halves[0] == pairs[0] == -pairs[1] == x.sum()
        assert arch == "sm_75" or float(brains[0]) == x.sum()


@targets("atomics")
def test_every_thread_draws_a_ticket_of_its_own(arch: str) -> None:
    zero = np.zeros(1, np.int32)
    for next_one, taken, exchanged in run(
        "atomics", arch, "tickets", (3,), (64,), zero, empty(192, dtype=np.int32), zero.copy()
    ):
        assert next_one[0] == 192
        np.testing.assert_array_equal(np.sort(taken), np.arange(192))
        assert 0 <= exchanged[0] < 192


@targets("atomics")
def test_a_histogram_in_shared_memory_counts_every_byte(arch: str) -> None:
    x = integers(0, 3000, low=0, high=50, dtype=np.uint8)
    for _, counts, _ in run("atomics", arch, "histogram", (3,), (128,), x, np.zeros(256, np.uint32), 3000):
        np.testing.assert_array_equal(counts, np.bincount(x, minlength=256))


@targets("atomics")
def test_a_spin_lock_lets_one_block_in_at_a_time(arch: str) -> None:
    zero = np.zeros(1, np.int32)
    for lock, total, log in run("atomics", arch, "locked", (6,), (32,), zero, zero.copy(), empty(6, dtype=np.int32)):
        assert lock[0] == 0 and total[0] == 21
        order = np.argsort(log)
        np.testing.assert_array_equal(log[order], np.concatenate([[0], np.cumsum(order + 1)[:-1]]))


@targets("atomics")
def test_what_a_release_publishes_an_acquire_sees(arch: str) -> None:
    x = integers(0, 70)
    args = [x, empty(70, dtype=np.int32), np.zeros(1, np.int32), empty(4, 70, dtype=np.int32), 70]
    for _, _, _, out, _ in run("atomics", arch, "published", (4,), (64,), *args):
        np.testing.assert_array_equal(out, np.tile(x[::-1] ** 2, (4, 1)))


@targets("atomics")
def test_atomic_references_of_every_scope_combine(arch: str) -> None:
    x = words(0, 64)
    for _, out, wide in run(
        "atomics", arch, "references", (1,), (64,), x, np.zeros(67, np.uint32), np.zeros(1, np.uint64)
    ):
        assert out[0] == int(x.sum(dtype=np.uint64)) & MASK
        assert out[1] == x.max() and out[2] == np.bitwise_or.reduce(x)
        assert wide[0] == x.sum(dtype=np.uint64)
        np.testing.assert_array_equal(out[3:], x)


# ---- language.cu


@targets("language")
def test_functions_that_are_not_inlined_are_called(arch: str) -> None:
    n, weights = 100, 2.0 ** np.arange(8)
    x = integers(0, n, low=-3, high=4, dtype=np.float32)
    expected = [sum(weights[j] * float(v) ** j for j in range(i % 8 + 1)) for i, v in enumerate(x)]
    for _, y, numbers, _ in run("language", arch, "calls", (4,), (32,), x, empty(n), empty(n, dtype=np.int32), n):
        np.testing.assert_array_equal(y, np.array(expected, np.float32))
        np.testing.assert_array_equal(numbers, [(i % 5 - 2) ** (2 * (i % 4)) - i % 4 for i in range(n)])


PAIR = np.dtype([("first", np.float32), ("second", np.float64), ("third", np.int32, 3)], align=True)


@targets("language")
def test_structures_pass_by_value_and_by_reference(arch: str) -> None:
    value = np.array((1.5, 3.0, [10, 20, 30]), PAIR)
    for _, out in run("language", arch, "structures", (1,), (40,), value.tobytes(), empty(40, dtype=PAIR)):
        lanes = np.arange(40)
        np.testing.assert_array_equal(out["first"], 1.5 + lanes.astype(np.float32))
        np.testing.assert_array_equal(out["second"], 6.0)
        np.testing.assert_array_equal(out["third"], np.stack([8 + 0 * lanes, 19 + 0 * lanes, 30 - lanes], 1))


@targets("language")
def test_local_arrays_are_indexed_dynamically(arch: str) -> None:
    x = integers(0, 32, low=0, high=1000)
    expected = []
    for thread in range(32):
        values = [thread + i for i in range(32)]
        for i in range(32):
            values[(int(x[thread]) + i * 7) % 32] ^= i
        total = 0
        for i in range(32):
            total = total * 3 + values[int(x[(thread + i) % 32]) % 32]
        expected.append(total & MASK)
    for _, y in run("language", arch, "local_arrays", (1,), (32,), x, empty(32, dtype=np.int32)):
        np.testing.assert_array_equal(y.view(np.uint32), expected)


@targets("language")
def test_bytes_in_local_memory_are_sorted(arch: str) -> None:
    x = integers(0, 33, 64, low=0, high=256, dtype=np.uint8)
    for _, y, _ in run("language", arch, "bytes_in_local_memory", (1,), (33,), x, empty(33, 64, dtype=np.uint8), 5):
        np.testing.assert_array_equal(y, np.roll(np.sort(x, 1), -5, 1))


def _signed(value: int) -> int:
    return (value + 2**31 & MASK) - 2**31


def _jump(value: int) -> int:
    """The switch of language.cu, from its words."""
    for step in range(3):
        unsigned, case = value & MASK, value & 15
        truncated = abs(value) // 7 * (1 if value >= 0 else -1)
        results = {
            0: value * 3 + 1,
            1: value ^ value >> 3,
            2: unsigned.bit_count(),
            3: value - (2, 3, 5)[step],
            4: truncated,
            5: -value + 100,
            6: value + 100,
            7: int(f"{unsigned:032b}"[::-1], 2),
            8: 32 - unsigned.bit_length(),
            9: int(math.fmod(value, 1000)),
            12: value << 2,
            13: ~value,
        }
        value = _signed(results.get(case, value + 7))
    return value


@targets("language")
def test_jump_tables_reach_every_case(arch: str) -> None:
    x = integers(0, 200, low=-(2**31), high=2**31)
    x[:64] = np.arange(-32, 32)
    for _, y, _ in run("language", arch, "jumps", (2,), (128,), x, empty(200, dtype=np.int32), 200):
        np.testing.assert_array_equal(y, [_jump(int(value)) for value in x])


@targets("language")
def test_initialised_variables_and_pointers_to_them_are_read(arch: str) -> None:
    primes = np.array([2, 3, 5, 7, 11, 13, 17, 19])
    for (out,) in run("language", arch, "variables", (1,), (64,), empty(64, dtype=np.int32)):
        np.testing.assert_array_equal(out, 42 + np.tile(primes, 8))


@targets("language")
def test_functions_are_called_through_pointers(arch: str) -> None:
    x, i = integers(0, 64), np.arange(64)
    expected = np.choose(i % 3, [x + i, x - i, x * i])
    for _, y in run("language", arch, "function_pointers", (1,), (64,), x, empty(64, dtype=np.int32)):
        np.testing.assert_array_equal(y, expected)


@targets("language")
def test_prints_return_and_assertions_that_hold_do_nothing(arch: str) -> None:
    x = np.arange(64, dtype=np.int32)
    for _, y, _ in run("language", arch, "messages", (1,), (64,), x, empty(64, dtype=np.int32), 64):
        np.testing.assert_array_equal(y, x + 1)


@targets("language")
def test_an_assertion_that_fails_is_a_trap_of_its_thread(arch: str) -> None:
    x = np.arange(64, dtype=np.int32)
    with pytest.raises(emulator.EmulatorError) as caught:
        list(run("language", arch, "messages", (1,), (64,), x, empty(64, dtype=np.int32), 63))
    assert caught.value.finding.kind == "trap"
    assert caught.value.finding.thread == (63, 0, 0)


def _steps(value: int) -> int:
    """The loop of language.cu."""
    steps = 0
    while value != 1:
        if value & 1:
            value = 3 * value + 1
            if steps > 150:
                break
            steps += sum(j != 2 for j in range(value & 3))
        else:
            value >>= 1
        steps += 1
        if steps == 97:
            return steps
    return steps + 1000


@targets("language")
def test_threads_leave_loops_at_different_times(arch: str) -> None:
    x = np.arange(1, 300, dtype=np.int32)
    for _, y, _ in run("language", arch, "divergence", (3,), (128,), x, empty(299, dtype=np.int32), 299):
        np.testing.assert_array_equal(y, [_steps(int(value)) for value in x])


# ---- arithmetic.cu


def _parts(word: int, bits: int, signed: bool = False) -> list[int]:
    values = [word >> bits * i & (1 << bits) - 1 for i in range(32 // bits)]
    return [value - (value >> bits - 1 << bits) for value in values] if signed else values


def _join(values: list[int], bits: int) -> int:
    return sum((value & (1 << bits) - 1) << bits * i for i, value in enumerate(values))


def _each(function: Callable[[int, int], int], bits: int, signed: bool = False) -> Callable[[int, int, int], int]:
    def apply(a: int, b: int, _: int) -> int:
        pairs = zip(_parts(a, bits, signed), _parts(b, bits, signed), strict=True)
        return _join([function(x, y) for x, y in pairs], bits)

    return apply


def _dot(a: list[int], b: list[int], c: int) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True)) + c


def _low24(value: int, signed: bool) -> int:
    value &= 0xFFFFFF
    return value - (value >> 23 << 24) if signed else value


def _nth_set_bit(word: int, n: int) -> int:
    places = [i for i in range(32) if word >> i & 1]
    return places[n - 1] if n <= len(places) else MASK


WORDS: list[Callable[[int, int, int], int]] = [
    lambda a, b, c: _dot(_parts(a, 8, True), _parts(b, 8, True), c),
    lambda a, b, c: _dot(_parts(a, 8), _parts(b, 8), c),
    lambda a, b, c: _dot(_parts(a, 16, True), _parts(b, 8, True)[:2], c),
    lambda a, b, c: _dot(_parts(a, 16), _parts(b, 8)[2:], c),
    lambda a, b, c: a.bit_count(),
    lambda a, b, c: 32 - a.bit_length(),
    lambda a, b, c: (a & -a).bit_length(),
    lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    lambda a, b, c: _join([(_parts(a, 8) + _parts(b, 8))[c >> 4 * i & 7] for i in range(4)], 8),
    lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    lambda a, b, c: (b << 32 | a) >> (c & 31),
    lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32,
    lambda a, b, c: (b << 32 | a) >> min(c, 32),
    lambda a, b, c: _signed(a) * _signed(b) >> 32,
    lambda a, b, c: a * b >> 32,
    lambda a, b, c: _low24(a, True) * _low24(b, True),
    lambda a, b, c: _low24(a, False) * _low24(b, False),
    lambda a, b, c: abs(_signed(a) - _signed(b)) + c,
    lambda a, b, c: abs(a - b) + c,
    lambda a, b, c: _signed(a) + _signed(b) >> 1,
    lambda a, b, c: a + b + 1 >> 1,
    _each(lambda x, y: x + y, 8),
    _each(lambda x, y: max(-128, min(127, x - y)), 8, True),
    _each(max, 8, True),
    _each(lambda x, y: 255 * (x == y), 8),
    _each(lambda x, y: 255 * (x > y), 8),
    _each(lambda x, y: x + y + 1 >> 1, 16),
    _each(min, 16, True),
    lambda a, b, c: min(_signed(a), _signed(b)) ^ max(a, b),
    lambda a, b, c: a // (b | 1),
    lambda a, b, c: int(math.fmod(_signed(a), _signed(b | 1))),
    lambda a, b, c: _nth_set_bit(a, (c & 7) + 1),
]


@targets("arithmetic")
def test_integer_intrinsics_equal_their_definitions_on_words(arch: str) -> None:
    n = 150
    x, y, z = (words(seed, n) for seed in range(3))
    operands = [tuple(map(int, row)) for row in zip(x, y, z, strict=True)]
    expected = np.array([[function(*row) & MASK for row in operands] for function in WORDS], np.uint32)
    for *_, out, _ in run("arithmetic", arch, "words", (2,), (96,), x, y, z, empty(len(WORDS), n, dtype=np.uint32), n):
        for number, (row, wanted) in enumerate(zip(out, expected, strict=True)):
            np.testing.assert_array_equal(row, wanted, err_msg=f"row {number}")


def _long(value: int) -> int:
    return (value + 2**63 & 2**64 - 1) - 2**63


def _truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


LONGS: list[Callable[[int, int], int]] = [
    lambda a, b: a * b,
    lambda a, b: a * b >> 64,
    lambda a, b: _long(a) * _long(b) >> 64,
    lambda a, b: a // (b | 1),
    lambda a, b: a % (b >> 40 | 1),
    lambda a, b: _truncated(_long(a), _long(b | 1)),
    lambda a, b: a << (b & 63),
    lambda a, b: _long(a) >> (b & 63),
    lambda a, b: a.bit_count(),
    lambda a, b: 64 - a.bit_length(),
    lambda a, b: int(f"{a:064b}"[::-1], 2),
    lambda a, b: a * b + a,
    lambda a, b: a * b + a >> 64,
    min,
    lambda a, b: (a & -a).bit_length(),
]


@targets("arithmetic")
def test_integer_intrinsics_equal_their_definitions_on_double_words(arch: str) -> None:
    n = 120
    x, y = (words(seed, 2 * n).view(np.uint64) for seed in range(2))
    operands = [(int(a), int(b)) for a, b in zip(x, y, strict=True)]
    expected = np.array([[f(*row) & 2**64 - 1 for row in operands] for f in LONGS], np.uint64)
    for *_, out, _ in run("arithmetic", arch, "longs", (2,), (64,), x, y, empty(len(LONGS), n, dtype=np.uint64), n):
        for number, (row, wanted) in enumerate(zip(out, expected, strict=True)):
            np.testing.assert_array_equal(row, wanted, err_msg=f"row {number}")


# The largest error in units of the last place, from the tables of the CUDA programming guide.
SINGLES: list[tuple[Callable[..., Any], float]] = [
    (lambda a, b: math.exp(a), 2),
    (lambda a, b: math.log(b), 1),
    (lambda a, b: math.sin(a), 2),
    (lambda a, b: math.cos(float(np.float32(a) * np.float32(1e6))), 2),
    (lambda a, b: math.tan(a), 4),
    (lambda a, b: math.pow(b, a), 4),
    (lambda a, b: math.erf(a), 2),
    (lambda a, b: math.tanh(a), 2),
    (lambda a, b: 1 / math.sqrt(b), 2),
    (lambda a, b: a / b, 0.5),
    (lambda a, b: math.sqrt(b), 0.5),
    (lambda a, b: math.cbrt(a), 1),
    (lambda a, b: math.atan2(a, b), 3),
    (lambda a, b: math.log1p(b), 1),
    (lambda a, b: math.expm1(a), 1),
    (lambda a, b: math.lgamma(b), 6),
    (lambda a, b: math.fmod(a, b), 0),
    (lambda a, b: math.ldexp(a, 5), 0),
    (lambda a, b: float(np.rint(a)), 0),
    (lambda a, b: math.trunc(a), 0),
    (lambda a, b: math.copysign(b, a), 0),
    (lambda a, b: max(a - b, 0), 0.5),
    (None, 0),  # rounded as asked: below
    (None, 0),
    (None, 0),
    (lambda a, b: a / b, 0.5),
    (lambda a, b: 1 / b, 0.5),
    (lambda a, b: math.sqrt(b), 0.5),
    (lambda a, b: math.hypot(a, b), 3),
    (lambda a, b: 0.5 * math.erfc(-a / math.sqrt(2)), 5),
    (lambda a, b: math.asinh(a), 3),
    (None, 0),
]


def _assert_ulps(found: Any, exact: list[float], ulps: float, what: str) -> None:
    wide = np.array(exact)
    spacing = np.spacing(np.abs(wide).astype(found.dtype)).astype(np.float64)
    worst = np.abs(found.astype(np.float64) - wide) / spacing
    # The table counts whole errors of the rounded result; half a unit is what rounding an exact one costs.
    assert worst.max() <= max(ulps, 0.5) + 1e-6, f"{what}: {worst.max()} units at {worst.argmax()}"


@targets("arithmetic")
def test_single_precision_functions_keep_their_documented_errors(arch: str) -> None:
    rng, n = np.random.default_rng(0), 200
    x, y = rng.uniform(-8, 8, n).astype(np.float32), rng.uniform(0.01, 6, n).astype(np.float32)
    y[np.abs(y - 1) < 0.2] += 1  # log and lgamma have zeros near which their errors are absolute
    y[np.abs(y - 2) < 0.2] += 1
    for *_, out, _ in run("arithmetic", arch, "singles", (2,), (128,), x, y, empty(len(SINGLES), n), n):
        for number, (function, ulps) in enumerate(SINGLES):
            if function is not None:
                exact = [function(float(a), float(b)) for a, b in zip(x, y, strict=True)]
                _assert_ulps(out[number], exact, ulps, f"row {number}")
        np.testing.assert_array_equal(out[31], np.nextafter(x, y))
        _assert_directed(x, y, out)


def _assert_directed(x: Any, y: Any, out: Any) -> None:
    from fractions import Fraction

    for i in range(len(x)):
        a, b = Fraction(float(x[i])), Fraction(float(y[i]))
        product, up, down = a * b + a, a + b, a * b
        zero, ceiling, floor = (Fraction(float(out[row][i])) for row in (22, 23, 24))
        assert (
            abs(zero)
            <= abs(product)
            < abs(Fraction(float(np.nextafter(out[22][i], np.float32(np.inf * (1 if product > 0 else -1))))))
        )
        assert Fraction(float(np.nextafter(out[23][i], np.float32(-np.inf)))) < up <= ceiling
        assert floor <= down < Fraction(float(np.nextafter(out[24][i], np.float32(np.inf))))


@targets("arithmetic")
def test_fast_functions_keep_their_documented_errors(arch: str) -> None:
    rng, n = np.random.default_rng(1), 200
    x, y = rng.uniform(-3, 3, n).astype(np.float32), rng.uniform(0.1, 6, n).astype(np.float32)
    a, b = x.astype(np.float64), y.astype(np.float64)
    for *_, out, _ in run("arithmetic", arch, "approximations", (2,), (128,), x, y, empty(7, n), n):
        _assert_ulps(out[0], list(np.exp(a)), 2 + 1.173 * 3, "__expf")
        np.testing.assert_allclose(out[1], np.log(b), rtol=3 * 2.0**-23, atol=2.0**-21.41)
        np.testing.assert_allclose(out[2], np.sin(a), rtol=0, atol=2.0**-21.41)
        np.testing.assert_allclose(out[3], np.cos(a), rtol=0, atol=2.0**-21.19)
        _assert_ulps(out[4], list(a / b), 2, "__fdividef")
        np.testing.assert_array_equal(out[5], np.clip(x, 0, 1))
        # ex2.approx of a product that is rounded, and of a logarithm that errs absolutely.
        np.testing.assert_allclose(out[6], b**a, rtol=2.0**-19)


DOUBLES: list[tuple[Callable[..., Any], float]] = [
    (lambda a, b: np.exp(a), 1),
    (lambda a, b: np.log(b), 1),
    (lambda a, b: np.sin(a), 2),
    (lambda a, b: a / b, 0),
    (lambda a, b: np.sqrt(b), 0),
    (lambda a, b: b**a, 2),
    (None, 0),
    (lambda a, b: np.floor(a), 0),
    (lambda a, b: np.trunc(a * 1000), 0),
    (lambda a, b: a.astype(np.float32), 0),
    (lambda a, b: 1 / np.sqrt(b), 2),
    (lambda a, b: np.tanh(a), 2),
    (lambda a, b: (a.view(np.int64) ^ 1).view(np.float64), 0),
    (lambda a, b: np.maximum(a, b) - np.minimum(a, b), 0),
    (lambda a, b: np.trunc(a + np.copysign(0.5, a)), 0),
]


@targets("arithmetic")
def test_double_precision_functions_keep_their_documented_errors(arch: str) -> None:
    from fractions import Fraction

    rng, n = np.random.default_rng(2), 100
    x, y = rng.uniform(-8, 8, n), rng.uniform(0.01, 6, n)
    for *_, out, _ in run(
        "arithmetic", arch, "doubles", (1,), (128,), x, y, empty(len(DOUBLES), n, dtype=np.float64), n
    ):
        for number, (function, ulps) in enumerate(DOUBLES):
            if function is not None:
                expected = function(x, y).astype(np.float64)
                # The C library's own results are within one unit.
                slack = (ulps + 1) * np.spacing(np.abs(expected)) if ulps else 0
                assert (np.abs(out[number] - expected) <= slack).all(), f"row {number}"
        exact = [float(Fraction(a) * Fraction(b) + Fraction(a)) for a, b in zip(x, y, strict=True)]
        np.testing.assert_array_equal(out[6], exact)


@targets("arithmetic")
def test_conversions_round_and_clamp_as_c_and_their_names_say(arch: str) -> None:
    n, i = 200, np.arange(200)
    x = np.random.default_rng(3).uniform(-40000, 40000, n).astype(np.float32)
    x[:6] = [0.5, -0.5, 1.5, 2.5, -0.0, 32767.5]
    wide = x.astype(np.float64)
    as_bits = lambda values: np.asarray(values, np.float32).view(np.int32)  # noqa: E731
    large = (i * 2654435761 & MASK).astype(np.uint32)
    toward_zero = np.array(
        [
            v if float(v) <= int(e) else np.nextafter(v, np.float32(0))
            for v, e in zip(large.astype(np.float32), large, strict=True)
        ]
    )
    half_zero = x.astype(np.float16)
    beyond = np.abs(half_zero.astype(np.float64)) > np.abs(wide)
    half_zero = np.where(beyond, np.nextafter(half_zero, np.float16(0)), half_zero)
    rows = [np.trunc(wide), np.rint(wide), np.ceil(wide), np.floor(wide), np.clip(np.rint(wide), 0, None)]
    rows += [np.trunc(wide).astype(np.int64).astype(np.int8), np.trunc(wide).astype(np.int64).astype(np.uint16)]
    rows += [as_bits(np.trunc(wide).astype(np.int32)), as_bits(toward_zero)]
    rows += [as_bits((i * 123456789).astype(np.int32).astype(np.float32))]
    rows += [np.trunc((x * np.float32(1e6)).astype(np.float64)).astype(np.int64) >> 3]
    rows += [
        as_bits((i.astype(np.int64) * 123456789123).astype(np.float32)),
        half_zero.astype(np.float16).view(np.uint16),
    ]
    rows += [x.astype(BF16).view(np.uint16), np.rint(x.astype(np.float16).astype(np.float64))]
    rows += [(i * 37).astype(np.float16).view(np.uint16)]
    expected = np.array([np.asarray(row).astype(np.int64) & MASK for row in rows]).astype(np.uint32)
    for _, out, _ in run("arithmetic", arch, "conversions", (2,), (128,), x, empty(16, n, dtype=np.int32), n):
        for number, (row, wanted) in enumerate(zip(out.view(np.uint32), expected, strict=True)):
            np.testing.assert_array_equal(row, wanted, err_msg=f"row {number}")


def _pairs(out: Any, number: int, dtype: Any) -> Any:
    return np.ascontiguousarray(out[number]).view(dtype)


@targets("arithmetic")
def test_packed_half_arithmetic_rounds_once(arch: str) -> None:
    n = 100
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(2 * n).astype(np.float16) for _ in range(2))
    b[::7] = a[::7]
    x, y = a.astype(np.float64), b.astype(np.float64)
    swapped = a.reshape(n, 2)[:, ::-1].reshape(-1)
    mixed = np.stack([a[1::2], b[::2]], 1).reshape(-1)
    rows = [x + y, x - y, x * y, x * y + x, None, -x, np.abs(x), np.clip(x + y, 0, 1), (x > y) * 1.0, swapped]
    rows += [np.rint(x), mixed, np.sqrt(np.abs(x)), x]
    if arch != "sm_75":
        rows += [np.maximum(x, y), np.minimum(x, y), np.maximum(x * y + x, 0)]
    both = (a == b).reshape(n, 2).all(1) | (a < b).reshape(n, 2).all(1) * 2 | (a[::2] >= b[1::2]) * 4
    for *_, out, _ in run("arithmetic", arch, "halves", (1,), (128,), a, b, np.zeros((18, n), np.uint32), n):
        for number, row in enumerate(rows):
            if row is not None:
                np.testing.assert_array_equal(
                    _pairs(out, number, np.float16), row.astype(np.float16), err_msg=f"row {number}"
                )
        # The quotient comes from an approximate reciprocal in f32 and is rounded once more.
        np.testing.assert_allclose(
            _pairs(out, 4, np.float16).astype(np.float64), x / y, rtol=2.0**-11 + 2.0**-20, atol=2.0**-25
        )
        np.testing.assert_array_equal(out[17], both)


@pytest.mark.parametrize("arch", [arch for arch in CUDA_TARGETS["arithmetic"] if arch != "sm_75"])
def test_packed_bf16_arithmetic_rounds_once(arch: str) -> None:
    n, rng = 100, np.random.default_rng(5)
    a, b = (rng.standard_normal(2 * n).astype(BF16) for _ in range(2))
    x, y = a.astype(np.float64), b.astype(np.float64)
    scaled = np.where(np.arange(2 * n) % 2 == 0, x * 1.5, y)
    rows = [x + y, x * y, x * y + x, x - y, np.maximum(x, y), np.minimum(x, y), -x, scaled, (x >= y) * 1.0]
    for *_, out, _ in run("arithmetic", arch, "brains", (1,), (128,), a, b, np.zeros((10, n), np.uint32), n):
        for number, row in enumerate(rows):
            np.testing.assert_array_equal(_pairs(out, number, BF16), row.astype(BF16), err_msg=f"row {number}")
        np.testing.assert_allclose(_pairs(out, 9, BF16).astype(np.float64), x / y, rtol=2.0**-8)


# ---- wmma.cu

WMMA = {
    "f16_16x16x16": (np.float16, np.float32, False),
    "f16_16x16x16_rows": (np.float16, np.float32, True),
    "f16_32x8x16": (np.float16, np.float32, False),
    "f16_8x32x16": (np.float16, np.float16, True),
    "s8_16x16x16": (np.int8, np.int32, False),
    "u8_32x8x16": (np.uint8, np.int32, True),
    "s8_8x32x16": (np.int8, np.int32, False),
    "bf16_16x16x16": (BF16, np.float32, False),
    "bf16_8x32x16": (BF16, np.float32, True),
    "tf32_16x16x8": (np.float32, np.float32, False),
    "f64_8x8x4": (np.float64, np.float64, True),
}


@targets("wmma")
@pytest.mark.parametrize("name", WMMA)
def test_a_product_by_wmma_equals_numpys(name: str, arch: str) -> None:
    operand, total, rows = WMMA[name]
    if arch == "sm_75" and name.partition("_")[0] in ("bf16", "tf32", "f64"):
        assert name not in emulator.load(cuda("wmma", arch).compile().ptx).programs
        return
    tile_m, tile_n, tile_k = map(int, name.split("_")[1].split("x"))
    m, n, k = 2 * tile_m, 3 * tile_n, 2 * tile_k
    low = 0 if operand == np.uint8 else -4
    a, b = integers(0, m, k, low=low, high=5, dtype=operand), integers(1, k, n, low=low, high=5, dtype=operand)
    c = integers(2, m, n, low=-50, high=50, dtype=total)
    expected = a.astype(np.float64) @ b.astype(np.float64) + c
    stored = b if rows else np.ascontiguousarray(b.T)
    for _, _, found, *_ in run("wmma", arch, name, (2, 2), (64,), a, stored, c, n, k):
        np.testing.assert_array_equal(found, expected)


@targets("wmma")
def test_products_of_four_and_one_bits_by_wmma_equal_numpys(arch: str) -> None:
    a, b = integers(0, 16, 64, low=-8, high=8), integers(1, 8, 64, low=-8, high=8)
    packed = [(v.reshape(-1, 8) % 16 << np.arange(0, 32, 4)).sum(1).astype(np.uint32) for v in (a, b)]
    for _, _, c, *_ in run("wmma", arch, "s4_8x8x32", (1, 2), (32,), *packed, empty(16, 8, dtype=np.int32), 8, 64):
        np.testing.assert_array_equal(c, a @ b.T)
    a, b = integers(0, 8, 256, low=0, high=2), integers(1, 8, 256, low=0, high=2)
    packed = [np.packbits(v, axis=1, bitorder="little").view(np.uint32) for v in (a, b)]
    outputs = [empty(8, 8, dtype=np.int32), empty(8, 8, dtype=np.int32)]
    for _, _, differing, common, *_ in run("wmma", arch, "b1_8x8x128", (1, 1), (32,), *packed, *outputs, 8, 256):
        np.testing.assert_array_equal(differing, (a[:, None] != b).sum(2))
        np.testing.assert_array_equal(common.T, (a @ b.T) * (arch != "sm_75"))


@targets("wmma")
def test_a_product_by_wmma_through_shared_memory_masks_its_edges(arch: str) -> None:
    m, n, k = 45, 50, 37
    a, b = integers(0, m, k, low=-4, high=5, dtype=np.float16), integers(1, k, n, low=-4, high=5, dtype=np.float16)
    for _, _, c, *_ in run("wmma", arch, "f16_shared", (2, 2), (128,), a, b, empty(m, n), m, n, k, 0.5):
        np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32) / 2)


# ---- dequantise.cu


@targets("dequantise")
@pytest.mark.parametrize("m", [1, 16, 21])
def test_a_hand_written_four_bit_matmul_equals_numpys(arch: str, m: int) -> None:
    n, k = 128, 320
    codes, a = integers(0, n, k, low=0, high=16), integers(1, m, k, low=-4, high=5, dtype=np.float16)
    scales = (2.0 ** integers(2, k // 64, n, low=-2, high=2)).astype(np.float16)
    zeros = integers(3, k // 64, n, low=0, high=16, dtype=np.float16)
    # Lane l has column l / 4 and rows 2 (l % 4), the next, and both 8 below: bits 0, 8, 4 and 12 of its word.
    tiles = codes.T.reshape(k // 16, 2, 4, 2, n // 8, 8)  # k tile, upper or lower 8, lane % 4, pair, n tile, lane / 4
    shifts = np.array([[0, 8], [4, 12]])[None, :, None, :, None, None]
    packed = (tiles << shifts).sum((1, 3)).transpose(0, 2, 3, 1).reshape(k // 16, n // 8, 32).astype(np.uint16)
    group = np.arange(k) // 64
    weights = (codes.T - zeros.astype(np.float64)[group]) * scales.astype(np.float64)[group]
    expected = (a.astype(np.float64) @ weights).astype(np.float16)
    grid, shared = (n // 64, -(-m // 16)), 4 * (16 * 72 * 2 + 4 * 8 * 32 * 2)
    args = [a, packed, scales, zeros, empty(m, n, dtype=np.float16), m, n, k]
    for *_, c, _, _, _ in run("dequantise", arch, "dequantise_matmul", grid, (256,), *args, shared=shared):
        np.testing.assert_array_equal(c, expected)


@targets("dequantise")
def test_a_hand_written_four_bit_matrix_vector_product_equals_numpys(arch: str) -> None:
    n, k = 37, 1280
    codes, x = integers(0, n, k, low=0, high=16), integers(1, k, low=-4, high=5, dtype=np.float16)
    packed = (
        (codes.reshape(n, k // 8, 8).astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)).sum(2).astype(np.uint32)
    )
    scales = (2.0 ** integers(2, k // 64, n, low=-2, high=2)).astype(np.float16)
    zeros = integers(3, k // 64, n, low=0, high=16, dtype=np.float16)
    group = np.arange(k) // 64
    weights = (codes.T - zeros.astype(np.float64)[group]) * scales.astype(np.float64)[group]
    args = [x, packed, scales, zeros, empty(n, dtype=np.float16), n, k]
    for *_, y, _, _ in run("dequantise", arch, "dequantise_vector", (10,), (32, 4), *args):
        np.testing.assert_array_equal(y, (x.astype(np.float64) @ weights).astype(np.float16))


# ---- pipeline.cu


def _chewed(x: Any, width: int) -> Any:
    tiles = x.reshape(-1, width)
    return (2 * tiles + np.roll(tiles, -1, 1)).reshape(-1)


@targets("pipeline")
@pytest.mark.parametrize(("entry", "threads"), [("primitives", 64), ("block_pipeline", 96), ("barrier_copy", 64)])
def test_asynchronous_copies_are_waited_for(arch: str, entry: str, threads: int) -> None:
    x = integers(0, 6 * 256)
    for _, y, _ in run("pipeline", arch, entry, (1,), (threads,), x, empty(6 * 256, dtype=np.int32), 6):
        np.testing.assert_array_equal(y, _chewed(x, 256))


@targets("pipeline")
def test_asynchronous_copies_fill_with_zeros(arch: str) -> None:
    x = integers(0, 300)
    padded = np.concatenate([x, np.zeros(84, np.int32)])
    for _, y, _ in run("pipeline", arch, "ragged", (3,), (128,), x, empty(300, dtype=np.int32), 300):
        np.testing.assert_array_equal(y, _chewed(padded, 128)[:300])


@targets("pipeline")
def test_producers_and_consumers_meet_at_memory_barriers(arch: str) -> None:
    x = integers(0, 5, 128)
    for _, y, _ in run("pipeline", arch, "specialised", (1,), (256,), x, empty(5, 128, dtype=np.int32), 5):
        np.testing.assert_array_equal(y, 5 * x[:, ::-1])


@targets("pipeline")
def test_producers_and_consumers_meet_at_named_barriers(arch: str) -> None:
    x = integers(0, 5, 64)
    for _, y, _ in run("pipeline", arch, "named", (1,), (128,), x, empty(5, 64, dtype=np.int32), 5):
        np.testing.assert_array_equal(y, (x + np.arange(5)[:, None])[:, ::-1])


@targets("pipeline")
def test_barriers_count_and_vote(arch: str) -> None:
    x = integers(0, 96)
    for _, y in run("pipeline", arch, "counted", (1,), (96,), x, empty(3, 96, dtype=np.int32)):
        np.testing.assert_array_equal(y[0], (x > 0).sum())
        np.testing.assert_array_equal(y[1] != 0, (x > -50).all())
        np.testing.assert_array_equal(y[2] != 0, (x == 7).any())


# ---- narrow.cu

NARROW = {
    "E4M3": ml_dtypes.float8_e4m3fn,
    "E5M2": ml_dtypes.float8_e5m2,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "E2M1": ml_dtypes.float4_e2m1fn,
}


def _narrow_inputs(kind: Any) -> Any:
    """Every value, the middle of every two neighbours and numbers beside it, zeros, and some beyond the range."""
    codes = np.arange(1 << ml_dtypes.finfo(kind).bits, dtype=np.uint8).view(kind).astype(np.float64)
    values = np.unique(codes[np.isfinite(codes)])
    middles = (values[1:] + values[:-1]) / 2
    beyond = [2 * values[-1], -2 * values[-1]]
    return np.concatenate(
        [values, middles, np.nextafter(middles.astype(np.float32), np.float32(np.inf)), beyond]
    ).astype(np.float32)


@targets("narrow")
@pytest.mark.parametrize("name", NARROW)
def test_cudas_conversions_to_narrow_floats_saturate_and_round_to_nearest_even(arch: str, name: str) -> None:
    kind = NARROW[name]
    x = _narrow_inputs(kind)
    limit = float(ml_dtypes.finfo(kind).max)
    expected = np.clip(x, -limit, limit).astype(kind)
    n = len(x)
    args = [x, empty(n, dtype=np.uint8), empty(n, dtype=np.float16), n]
    for _, narrow, back, _ in run("narrow", arch, name, (-(-n // 128),), (128,), *args):
        np.testing.assert_array_equal(narrow.view(kind).astype(np.float32), expected.astype(np.float32))
        np.testing.assert_array_equal(back.astype(np.float32), expected.astype(np.float32))


@targets("narrow")
def test_cudas_conversions_to_scales_round_up_to_powers_of_two(arch: str) -> None:
    x = np.random.default_rng(0).uniform(-100, 100, 200)
    x = (2.0**x).astype(np.float32)
    x[::5] = 2.0 ** np.arange(-60, -20)
    exponents = np.ceil(np.log2(x.astype(np.float64)))
    args = [x, empty(200, dtype=np.uint8), empty(200, dtype=BF16), 200]
    for _, narrow, back, _ in run("narrow", arch, "E8M0", (2,), (128,), *args):
        np.testing.assert_array_equal(narrow, exponents + 127)
        np.testing.assert_array_equal(back.astype(np.float64), 2.0**exponents)


@targets("narrow")
def test_four_narrow_floats_are_packed_into_a_word(arch: str) -> None:
    n = 100
    x = np.random.default_rng(0).standard_normal((n, 4)).astype(np.float32) * 3
    wide, small = x.astype(ml_dtypes.float8_e4m3fn), x.astype(ml_dtypes.float4_e2m1fn)
    fours = (small.view(np.uint8).astype(np.uint32) << np.arange(0, 16, 4, dtype=np.uint32)).sum(1)
    args = [x, empty(n, dtype=np.uint32), empty(n, dtype=np.uint32), empty(n, 4), n]
    for _, eights, found, back, _ in run("narrow", arch, "packed", (1,), (128,), *args):
        np.testing.assert_array_equal(eights, wide.view(np.uint32)[:, 0])
        np.testing.assert_array_equal(found, fours)
        np.testing.assert_array_equal(back, wide.astype(np.float32))


@targets("narrow")
def test_pairs_of_halves_convert_to_narrow_floats(arch: str) -> None:
    n = 100
    x = (np.random.default_rng(0).standard_normal((n, 2)) * 100).astype(np.float16)
    x[:2] = [[np.inf, -60000], [0.0, 2.0**-20]]
    e4m3 = np.clip(x.astype(np.float32), -448, 448).astype(ml_dtypes.float8_e4m3fn)
    e5m2 = x.astype(ml_dtypes.float8_e5m2)
    args = [x, empty(n, dtype=np.uint16), empty(n, dtype=np.uint16), empty(n, 2, dtype=np.float16), n]
    for _, first, second, back, _ in run("narrow", arch, "from_halves", (1,), (128,), *args):
        np.testing.assert_array_equal(first, e4m3.view(np.uint16)[:, 0])
        np.testing.assert_array_equal(second, e5m2.view(np.uint16)[:, 0])
        np.testing.assert_array_equal(back, e4m3.astype(np.float16))


# ---- simd.cu

SIMD_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "absdiff": lambda a, b: abs(a - b),
    "sad": lambda a, b: abs(a - b),
    "avg": lambda a, b: (a + b + (a + b >= 0)) >> 1,  # a half is rounded away from zero
    "hadd": lambda a, b: (a + b) >> 1,
    "max": np.maximum,
    "min": np.minimum,
}
SIMD_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
}


# What it does, its type, whether it saturates, elements.
SIMD_NAME = re.compile(r"__v(add|sub|absdiff|sad|avg|hadd|max|min|cmp\w\w|set\w\w)([us]?)(s?)([24])")


def simd(name: str, x: Any, y: Any) -> Any:
    """What the CUDA Math API says of an intrinsic, on the elements of words."""
    match = SIMD_NAME.fullmatch(name)
    assert match, name
    what, kind, saturated, elements = match.groups()
    dtype = np.dtype(f"{'i' if kind == 's' else 'u'}{4 // int(elements)}")
    a, b = x.view(dtype).astype(np.int64), y.view(dtype).astype(np.int64)
    if what[:3] in ("cmp", "set"):
        value = SIMD_COMPARISONS[what[3:]](a, b) * (-1 if what[:3] == "cmp" else 1)
    else:
        value = SIMD_ARITHMETIC[what](a, b)
    if what == "sad":
        return value.reshape(len(x), -1).sum(1).astype(np.uint32)
    if saturated:
        value = np.clip(value, np.iinfo(dtype).min, np.iinfo(dtype).max)
    return value.astype(dtype).view(np.uint32)


@targets("simd")
def test_intrinsics_work_on_bytes_and_halves(arch: str) -> None:
    text = (Path(__file__).parent / "cuda" / "simd.cu").read_text()
    names = re.findall(r"apply\((__v\w+)\)", text)
    n = 500
    x, y = words(1, n), words(2, n)
    for *_, out, _ in run(
        "simd", arch, "every_intrinsic", (4,), (128,), x, y, empty(len(names), n, dtype=np.uint32), n
    ):
        for name, got in zip(names, out, strict=True):
            np.testing.assert_array_equal(got, simd(name, x, y), err_msg=name)
    assert re.search(r"\bvabsdiff4\.", cuda("simd", arch).compile().ptx)


# ---- recursion.cu

MOVES = np.dtype([("count", np.int32), ("digits", np.int64)], align=True)


def hanoi(discs: int, start: int, end: int) -> list[int]:
    """The moves that carry a tower, as start * 3 + end of each."""
    if discs == 0:
        return []
    other = 3 - start - end
    return [*hanoi(discs - 1, start, other), 3 * start + end, *hanoi(discs - 1, other, end)]


@targets("recursion")
def test_recursive_functions_take_and_return_structures(arch: str) -> None:
    for (out,) in run("recursion", arch, "towers", (1,), (64,), empty(64, dtype=MOVES)):
        for thread, got in enumerate(out):
            moves = hanoi(thread % 5, thread % 3, (thread + 1) % 3)
            assert got["count"] == len(moves)
            assert got["digits"] == int("".join(map(str, moves)) or "0")


@targets("recursion")
def test_recursive_functions_sort_arrays_in_local_memory(arch: str) -> None:
    rows = integers(0, 40, 24, low=0, high=50, dtype=np.int32)
    for got, _ in run("recursion", arch, "sorted", (1,), (40,), rows, 24):
        np.testing.assert_array_equal(got, np.sort(rows, axis=1))


def expression(random: np.random.Generator, depth: int) -> str:
    if depth == 0:
        return str(random.integers(10))
    left, right = (expression(random, int(random.integers(depth))) for _ in range(2))
    return f"({left}{random.choice(['+', '*'])}{right})" if random.integers(2) else f"{left}+{right}"


@targets("recursion")
def test_functions_that_call_each_other_parse_expressions(arch: str) -> None:
    random = np.random.default_rng(3)
    texts = [expression(random, 1 + n % 4) for n in range(48)]
    width = max(map(len, texts)) + 1
    given = np.array(texts, f"S{width}").view(np.uint8)
    expected = [eval(text) for text in texts]
    for _, _, got in run("recursion", arch, "calculator", (1,), (48,), given, width, empty(48, dtype=np.int32)):
        np.testing.assert_array_equal(got, expected)


# ---- cluster.cu


@targets("cluster")
def test_a_cluster_of_one_block_meets_at_its_barrier(arch: str) -> None:
    x = integers(0, 2, 160)
    expected = np.stack([x[:, ::-1] + n for n in range(3)])
    for _, y, facts in run(
        "cluster", arch, "reversed", (2,), (160,), x, empty(3, 2, 160, dtype=np.int32), empty(2, 4, dtype=np.uint32)
    ):
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(facts, [[1, 0, 0, 161]] * 2)
    assert "barrier.cluster.arrive" in cuda("cluster", arch).compile().ptx
