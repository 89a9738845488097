"""Exchange between the lanes of a warp: shfl, vote, match, redux, elect, activemask; whole and part warps."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.semantics.formats import FORMATS
from tests.semantics.harness import Array, evaluate, patterns, signed
from tests.semantics.test_floats import extreme_code

COUNT = 512  # sixteen warps
LANES = np.arange(COUNT) % 32


def warps(array: Array) -> list[list[int]]:
    return [array[start : start + 32].tolist() for start in range(0, COUNT, 32)]


def per_warp(seed: int, top: int) -> Array:
    """An operand that is the same in all lanes of a warp."""
    return np.repeat(np.random.default_rng(seed).integers(0, top, COUNT // 32), 32).astype(np.uint32)


def source_lane(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The manual's pseudocode."""
    b_value, c_value, mask = b & 31, c & 31, c >> 8 & 31
    most = (lane & mask) | (c_value & ~mask & 31)
    least = lane & mask
    j = {"up": lane - b_value, "down": lane + b_value, "bfly": lane ^ b_value, "idx": least | (b_value & ~mask & 31)}[
        mode
    ]
    valid = j >= most if mode == "up" else j <= most
    return (j if valid else lane), valid


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shfl_takes_the_value_of_the_lane_that_the_pseudocode_names(mode: str) -> None:
    a = patterns(32, COUNT, 1)
    rng = np.random.default_rng(2)
    bounds = np.repeat(np.array([0, 31, 0x1C1F, 0x181F, 0x1000, 0x0F07, 0x1E01, 0x1F1F] * 2), 32)
    for b, c in ((per_warp(3, 64), bounds), rng.integers(0, 1 << 32, (2, COUNT))):
        b, c = b.astype(np.uint32), c.astype(np.uint32)
        got, valid = evaluate(f"shfl.sync.{mode}.b32 {{x}}|{{y}}, {{a}}, {{b}}, {{c}}, -1;", [a, b, c], "32 pred")
        for n in range(COUNT):
            lane, in_range = source_lane(mode, n % 32, int(b[n]), int(c[n]))
            assert valid[n] == in_range
            assert got[n] == a[n - n % 32 + lane], (n, hex(b[n]), hex(c[n]))


def test_shfl_among_the_lanes_of_a_mask() -> None:
    """The even lanes exchange among themselves, then the odd ones."""
    a = patterns(32, COUNT, 4)
    even, odd = "0x55555555", "0xAAAAAAAA"
    body = f"""and.b32 %r45, %r41, 1; setp.eq.u32 %p30, %r45, 0;
        @%p30 shfl.sync.bfly.b32 {{x}}, {{a}}, 2, 31, {even}; @!%p30 shfl.sync.bfly.b32 {{x}}, {{a}}, 4, 31, {odd};"""
    (got,) = evaluate(body, [a], "32")
    assert got.tolist() == [int(a[n ^ (4 if n & 1 else 2)]) for n in range(COUNT)]


@pytest.mark.parametrize("chance", [0.0, 0.03, 0.5, 0.97, 1.0])
def test_votes(chance: float) -> None:
    a = np.random.default_rng(5).random(COUNT) < chance
    every, some, alike, ballot, opposite = evaluate(
        """vote.sync.all.pred {x}, {a}, -1; vote.sync.any.pred {y}, {a}, -1; vote.sync.uni.pred {z}, {a}, -1;
        vote.sync.ballot.b32 {u}, {a}, -1; vote.sync.ballot.b32 {v}, !{a}, -1;""",
        [a],
        "pred pred pred 32 32",
    )
    for start in range(0, COUNT, 32):
        lanes = a[start : start + 32]
        bits = sum(1 << n for n, lane in enumerate(lanes) if lane)
        assert (every[start : start + 32] == lanes.all()).all() and (some[start : start + 32] == lanes.any()).all()
        assert (alike[start : start + 32] == (lanes.all() or not lanes.any())).all()
        assert (ballot[start : start + 32] == bits).all() and (opposite[start : start + 32] == bits ^ 0xFFFFFFFF).all()


def test_a_vote_counts_the_lanes_of_its_mask_alone() -> None:
    a = np.random.default_rng(6).random(COUNT) < 0.5
    body = """and.b32 %r45, %r41, 31; setp.lt.u32 %p30, %r45, 12; mov.u32 {y}, 0; mov.u32 {x}, 0;
        @%p30 vote.sync.ballot.b32 {x}, {a}, 0xFFF; @%p30 vote.sync.ballot.b32 {y}, !{a}, 0xFFF;"""
    got, opposite = evaluate(body, [a], "32 32")
    for start in range(0, COUNT, 32):
        bits = sum(1 << n for n in range(12) if a[start + n])
        assert got[start : start + 32].tolist() == [bits] * 12 + [0] * 20
        assert opposite[start : start + 32].tolist() == [bits ^ 0xFFF] * 12 + [0] * 20


def test_a_vote_of_lanes_that_found_their_mask_themselves_does_not_ask_the_others() -> None:
    a = np.random.default_rng(6).random(COUNT) < 0.5
    body = """and.b32 %r45, %r41, 31; setp.ge.u32 %p30, %r45, 5; mov.u32 {x}, 0; mov.u32 %r46, 0;
        @%p30 activemask.b32 %r46; @%p30 vote.sync.ballot.b32 {x}, {a}, %r46;
        @%p30 vote.sync.any.pred {y}, {a}, %r46; @%p30 vote.sync.all.pred {z}, !{a}, %r46; @!%p30 setp.ne.u32 {y}, 0, 0;
        @!%p30 setp.ne.u32 {z}, 0, 0;"""
    got, some, none = evaluate(body, [a], "32 pred pred")
    for start in range(0, COUNT, 32):
        bits = sum(1 << n for n in range(5, 32) if a[start + n])
        assert got[start : start + 32].tolist() == [0] * 5 + [bits] * 27
        assert some[start : start + 32].tolist() == [False] * 5 + [bits != 0] * 27
        assert none[start : start + 32].tolist() == [False] * 5 + [bits == 0] * 27


@pytest.mark.parametrize("bits", [32, 64])
def test_matches(bits: int) -> None:
    values = patterns(bits, 3, 7)
    a = values[np.random.default_rng(8).integers(0, 3, COUNT)]
    a[:32] = a[0]
    got, every, flag = evaluate(
        f"match.any.sync.b{bits} {{x}}, {{a}}, -1; match.all.sync.b{bits} {{y}}|{{z}}, {{a}}, -1;", [a], "32 32 pred"
    )
    for start, lanes in zip(range(0, COUNT, 32), warps(a), strict=True):
        alike = len(set(lanes)) == 1
        for n in range(32):
            assert got[start + n] == sum(1 << m for m in range(32) if lanes[m] == lanes[n])
            assert (every[start + n], flag[start + n]) == ((0xFFFFFFFF, 1) if alike else (0, 0))


REDUCTIONS: dict[str, Callable[[list[int]], int]] = {
    "add.u32": sum,
    "add.s32": sum,
    "min.u32": min,
    "max.u32": max,
    "min.s32": lambda lanes: min(signed(x, 32) for x in lanes),
    "max.s32": lambda lanes: max(signed(x, 32) for x in lanes),
    "and.b32": lambda lanes: int(np.bitwise_and.reduce(lanes)),
    "or.b32": lambda lanes: int(np.bitwise_or.reduce(lanes)),
    "xor.b32": lambda lanes: int(np.bitwise_xor.reduce(lanes)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_over_a_warp_and_over_part_of_one(name: str) -> None:
    a = patterns(32, COUNT, 9)
    body = f"""redux.sync.{name} {{x}}, {{a}}, -1; and.b32 %r45, %r41, 31; setp.ge.u32 %p30, %r45, 20; mov.u32 {{y}}, 0;
        @%p30 redux.sync.{name} {{y}}, {{a}}, 0xFFF00000;"""
    whole, part = evaluate(body, [a], "32 32")
    for start, lanes in zip(range(0, COUNT, 32), warps(a), strict=True):
        assert (whole[start : start + 32] == REDUCTIONS[name](lanes) & 0xFFFFFFFF).all()
        assert part[start : start + 32].tolist() == [0] * 20 + [REDUCTIONS[name](lanes[20:]) & 0xFFFFFFFF] * 12


@pytest.mark.parametrize("flags", ["", ".abs", ".NaN", ".abs.NaN"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_reductions_of_floats(name: str, flags: str) -> None:
    f32 = FORMATS["f32"]
    a = patterns(32, COUNT, 10)
    nan = (a & 0x7F800000) == 0x7F800000
    a[64:] = np.where(nan[64:], a[64:] & 0x807FFFFF, a[64:])  # NaNs in the first two warps alone
    a[:32] = 0x7FC00000
    (got,) = evaluate(f"redux.sync.{name}{flags}.f32 {{x}}, {{a}}, -1;", [a], "32")
    for start, lanes in zip(range(0, COUNT, 32), warps(a), strict=True):
        wanted = extreme_code(f"{name}{flags}", f32, *lanes)
        assert (got[start : start + 32] == wanted).all(), (hex(got[start]), hex(wanted))


def test_activemask_elect_and_lane_masks() -> None:
    body = """and.b32 %r45, %r41, 31; setp.ge.u32 %p30, %r45, 7; mov.u32 {x}, 0; mov.u32 {y}, 99;
        @%p30 activemask.b32 {x}; @%p30 elect.sync {y}|{z}, 0xFFFFFF80; @!%p30 setp.ne.u32 {z}, 0, 0;"""
    active, leader, elected = evaluate(body, [np.zeros(COUNT, np.uint32)], "32 32 pred")
    for start in range(0, COUNT, 32):
        assert active[start : start + 32].tolist() == [0] * 7 + [0xFFFFFF80] * 25
        assert elected[start : start + 32].sum() == 1
        chosen = int(elected[start : start + 32].argmax())
        assert chosen >= 7 and (leader[start + 7 : start + 32] == chosen).all()
    names = ("%laneid", "%lanemask_eq", "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge")
    body = " ".join(f"mov.u32 {{{letter}}}, {name};" for letter, name in zip("xyzuvw", names, strict=True))
    got = evaluate(body, [np.zeros(COUNT, np.uint32)], "32 32 32 32 32 32")
    for n in range(COUNT):
        lane, bit = n % 32, 1 << n % 32
        below = bit - 1
        assert [int(x[n]) for x in got] == [
            lane,
            bit,
            below,
            below | bit,
            ~(below | bit) & 0xFFFFFFFF,
            ~below & 0xFFFFFFFF,
        ]
