"""The verifier: programs built from `Op` by hand are held to every rule, whatever the DSL would have recorded."""

import math

import pytest

import lowbitvm as lb
from lowbitvm import dtypes
from lowbitvm.ir import Array, Op, Program
from lowbitvm.verify import RULES, verify

F32, I32, F16, U4, BOOL = dtypes.f32, dtypes.i32, dtypes.f16, dtypes.u4, dtypes.boolean
X = Array("x", ("m", "n"), F32)
H = Array("h", ("m", "n"), F16)
W = Array("w", ("n", "k"), lb.Format("u4", group=64))
V = Array("v", ("n", "k"), lb.Format("u4", group=32))
C = Array("c", ("m", "n"), I32)
A = Array("a", ("m", "k"), lb.Format("i8", digits="s8"))
UNKNOWN = Array("z", ("n",), F32)


def op(kind, dtype=None, shape=(), operands=(), array=None, **attributes):
    return Op(kind, dtype, shape, tuple(operands), array, attributes, location="user.py:7")


def program(*ops: Op, arrays=(X, H, W, V, C, A), name="k", divisible=()) -> Program:
    return Program(name, arrays, ops, divisible)


def zero() -> Op:
    return op("constant", I32, value=0)


def tile(*shape: int, dtype=F32) -> Op:
    return op("full", dtype, shape, value=0)


def with_operands(kind, dtype, shape, *operands, **rest):
    """The operands in order, and an op of them."""
    return [*operands, op(kind, dtype, shape, operands, **rest)]


def load(array=X, dtype=F32, shape=(8, 8), offsets=None, other=0):
    offsets = [zero(), zero()] if offsets is None else offsets
    return with_operands("load", dtype, shape, *offsets, array=array, other=other)


def store(value, array=X, offsets=None):
    return with_operands("store", None, (), value, *([zero(), zero()] if offsets is None else offsets), array=array)


LOOP = {"step": 1, "stages": 2, "direct": 0, "folded": 0}


def loop(*body, start=None, stop=None, dtype=I32, shape=(), **attributes):
    ops = with_operands("range", dtype, shape, start or zero(), stop or zero(), **LOOP | attributes)
    ops[-1].body = list(body)
    return ops


def codes(array=W, shape=(16, 64)):
    return load(array, U4, shape)


def dequantised(array=W, dtype=F32, shape=(16, 64), of=None):
    loaded = codes() if of is None else of
    return [*loaded, op("dequant", dtype, shape, loaded[-1:], array)]


def dot(a, b, dtype=F32, shape=(8, 16)):
    return with_operands("dot", dtype, shape, a, b)


def two(kind, a, b, dtype=F32, shape=(8,)):
    return with_operands(kind, dtype, shape, a, b)


BAD = [
    ("ARGUMENT_INVALID", [op("program_id", I32, axis=3)]),
    ("KERNEL_INVALID", [op("program_id", I32)]),
    ("KERNEL_INVALID", [op("program_id", I32, axis="0")]),
    ("DTYPE_MISMATCH", [op("program_id", F32, axis=0)]),
    ("SHAPE_MISMATCH", [op("program_id", I32, (4,), axis=0)]),
    ("KERNEL_INVALID", [op("dimension", I32, axis=0)]),
    ("KERNEL_INVALID", [op("dimension", I32, array=UNKNOWN, axis=0)]),
    ("ARGUMENT_INVALID", [op("dimension", I32, array=X, axis=2)]),
    ("ARGUMENT_INVALID", [op("dimension", I32, array=X, axis=-1)]),
    ("DTYPE_MISMATCH", [op("constant", F16, value=0)]),
    ("SHAPE_MISMATCH", [op("constant", F32, (8,), value=0)]),
    ("KERNEL_INVALID", [op("constant", F32, value="0")]),
    ("KERNEL_INVALID", [op("constant", None, value=0)]),
    ("ARGUMENT_INVALID", [op("constant", I32, value=0.5)]),
    ("ARGUMENT_INVALID", [op("constant", I32, value=1 << 31)]),
    ("ARGUMENT_INVALID", [op("constant", F32, value=1e39)]),
    ("ARGUMENT_INVALID", [op("constant", F32, value=10**400)]),
    ("DTYPE_MISMATCH", [tile(8, dtype=U4)]),
    ("ARGUMENT_INVALID", [op("full", F16, (8,), value=65520)]),
    ("TILE_INVALID", [tile(24)]),
    ("TILE_INVALID", [tile(0)]),
    ("TILE_INVALID", [tile(2048, 1024)]),
    ("TILE_INVALID", [tile(2, 2, 2, 2)]),
    ("KERNEL_INVALID", load(array=None)),
    ("KERNEL_INVALID", load(offsets=[zero()])),
    ("DTYPE_MISMATCH", load(dtype=F16)),
    ("DTYPE_MISMATCH", load(offsets=[zero(), op("constant", F32, value=0.0)])),
    ("SHAPE_MISMATCH", load(offsets=[zero(), tile(16, dtype=I32)])),
    ("SHAPE_MISMATCH", load(offsets=[zero(), tile(1, 8, dtype=I32)])),
    ("DTYPE_MISMATCH", load(offsets=[zero(), tile(8, dtype=F32)])),
    ("SHAPE_MISMATCH", load(shape=(8,))),
    ("ARGUMENT_INVALID", load(H, F16, other=1e6)),
    ("ARGUMENT_INVALID", load(W, U4, other=1)),
    ("KERNEL_INVALID", load(other=None)),
    ("KERNEL_INVALID", store(tile(8, 8), W)),
    ("DTYPE_MISMATCH", store(tile(8, 64), A)),
    ("SHAPE_MISMATCH", store(tile(8, 32, dtype=I32), A)),
    ("SHAPE_MISMATCH", with_operands("reshape", F32, (8, 4), tile(8, 8))),
    ("DTYPE_MISMATCH", with_operands("reshape", I32, (8, 8), tile(64))),
    ("SHAPE_MISMATCH", with_operands("reshape", F32, (), tile(1))),
    ("DTYPE_MISMATCH", with_operands("hadamard", I32, (8,), tile(8, dtype=I32))),
    ("SHAPE_MISMATCH", with_operands("hadamard", F32, (), op("constant", F32, value=0.0))),
    ("DTYPE_MISMATCH", with_operands("rint", F32, (8,), tile(8))),
    ("DTYPE_MISMATCH", with_operands("rint", I32, (8,), tile(8, dtype=I32))),
    ("SHAPE_MISMATCH", with_operands("rint", I32, (4,), tile(8))),
    ("DTYPE_MISMATCH", with_operands("bitcast", I32, (8,), tile(8, dtype=F16))),
    ("DTYPE_MISMATCH", with_operands("bitcast", F16, (8,), tile(8))),
    ("DTYPE_MISMATCH", store(tile(8, 8), H)),
    ("DTYPE_MISMATCH", store(tile(8, 8), offsets=[zero(), op("constant", F32, value=0.0)])),
    ("SHAPE_MISMATCH", store(tile(8))),
    ("SHAPE_MISMATCH", store(tile(8, 8), offsets=[zero(), tile(4, dtype=I32)])),
    ("KERNEL_INVALID", [*(parts := store(tile(8, 8))[:-1]), op("store", F32, (), parts, X)]),
    ("KERNEL_INVALID", with_operands("assign", None, (), tile(8))),
    ("KERNEL_INVALID", with_operands("assign", None, (), zero(), zero())),
    ("DTYPE_MISMATCH", with_operands("assign", None, (), tile(8), tile(8, dtype=I32))),
    ("SHAPE_MISMATCH", with_operands("assign", None, (), tile(8), tile(16))),
    ("SHAPE_MISMATCH", with_operands("cast", I32, (8,), tile(16))),
    ("DTYPE_MISMATCH", with_operands("cast", U4, (8,), tile(8))),
    ("DTYPE_MISMATCH", with_operands("broadcast", I32, (8,), tile(1))),
    ("SHAPE_MISMATCH", with_operands("broadcast", F32, (8,), tile(4))),
    ("SHAPE_MISMATCH", with_operands("broadcast", F32, (8,), tile(8, 8))),
    ("DTYPE_MISMATCH", with_operands("expand", I32, (8, 1), tile(8), axis=1)),
    ("SHAPE_MISMATCH", with_operands("expand", F32, (1, 8), tile(8), axis=1)),
    ("SHAPE_MISMATCH", with_operands("expand", F32, (8, 1), tile(8), axis=-1)),
    ("TILE_INVALID", with_operands("expand", F32, (2, 2, 2, 1), tile(2, 2, 2), axis=3)),
    ("SHAPE_MISMATCH", with_operands("transpose", F32, (8,), tile(8))),
    ("SHAPE_MISMATCH", with_operands("transpose", F32, (8, 4), tile(8, 4))),
    ("DTYPE_MISMATCH", with_operands("transpose", I32, (8, 8), tile(8, 8))),
    ("KERNEL_INVALID", with_operands("reduce", F32, (8,), tile(8, 8), how="product", axis=0)),
    ("KERNEL_INVALID", with_operands("reduce", F32, (8,), tile(8, 8), how="sum")),
    ("DTYPE_MISMATCH", with_operands("reduce", F16, (8,), tile(8, 8, dtype=F16), how="sum", axis=0)),
    ("SHAPE_MISMATCH", with_operands("reduce", F32, (8,), tile(8, 8), how="max", axis=2)),
    ("SHAPE_MISMATCH", with_operands("reduce", F32, (8, 8), tile(8, 8), how="max", axis=0)),
    ("KERNEL_INVALID", dequantised(V)),
    ("KERNEL_INVALID", dequantised(of=[tile(16, 64, dtype=F32)])),
    ("DTYPE_MISMATCH", dequantised(dtype=F16)),
    ("SHAPE_MISMATCH", dequantised(shape=(8, 64))),
    ("DTYPE_MISMATCH", dot(tile(8, 64), tile(64, 16))),
    ("DTYPE_MISMATCH", dot(tile(8, 64, dtype=F16), tile(64, 16, dtype=dtypes.bf16))),
    ("DTYPE_MISMATCH", dot(tile(8, 64, dtype=F16), tile(64, 16), dtype=F16)),
    ("SHAPE_MISMATCH", dot(tile(8, 64, dtype=F16), tile(32, 16))),
    ("SHAPE_MISMATCH", dot(tile(8, 64, dtype=F16), tile(64, 16), shape=(16, 8))),
    ("SHAPE_MISMATCH", dot(tile(64, dtype=F16), tile(64, 16), shape=(16,))),
    ("KERNEL_INVALID", with_operands("compare", BOOL, (), zero(), zero(), how="unequal")),
    ("DTYPE_MISMATCH", with_operands("compare", I32, (), zero(), zero(), how="less")),
    ("DTYPE_MISMATCH", with_operands("compare", BOOL, (), zero(), op("constant", F32, value=0.0), how="less")),
    ("SHAPE_MISMATCH", with_operands("compare", BOOL, (8,), tile(8, dtype=I32), tile(8, dtype=I32), how="less")),
    ("DTYPE_MISMATCH", with_operands("when", None, (), zero())),
    ("KERNEL_INVALID", with_operands("when", I32, (), zero())),
    ("DTYPE_MISMATCH", with_operands("atomic_add", I32, (), zero(), zero(), zero(), array=X)),
    ("KERNEL_INVALID", with_operands("atomic_add", I32, (), zero(), zero(), array=X)),
    ("KERNEL_INVALID", with_operands("atomic_add", I32, (), zero(), zero(), zero(), array=W)),
    ("SHAPE_MISMATCH", with_operands("atomic_add", I32, (), zero(), tile(8, dtype=I32), zero(), array=C)),
    ("DTYPE_MISMATCH", with_operands("atomic_add", I32, (), zero(), op("constant", F32, value=0.0), zero(), array=C)),
    ("DTYPE_MISMATCH", loop(stop=op("constant", F32, value=0.0))),
    ("DTYPE_MISMATCH", loop(dtype=F32)),
    ("SHAPE_MISMATCH", loop(stop=tile(8, dtype=I32))),
    ("SHAPE_MISMATCH", loop(shape=(8,))),
    ("ARGUMENT_INVALID", loop(step=0)),
    ("ARGUMENT_INVALID", loop(step=1 << 31)),
    ("ARGUMENT_INVALID", loop(stages=1)),
    ("ARGUMENT_INVALID", loop(stages=9)),
    ("ARGUMENT_INVALID", loop(direct=-1)),
    ("ARGUMENT_INVALID", loop(folded=2)),
    ("KERNEL_INVALID", loop(step=1.5)),
    ("TILE_INVALID", loop(tile(3))),
    *(("DTYPE_MISMATCH", two(kind, tile(8), tile(8, dtype=I32))) for kind in ("add", "sub", "mul", "max", "min")),
    *(("DTYPE_MISMATCH", two(kind, tile(8, dtype=F16), tile(8, dtype=F16), F16)) for kind in ("add", "max")),
    *(("DTYPE_MISMATCH", two(kind, tile(8), tile(8), I32)) for kind in ("sub", "mul", "min")),
    *(("DTYPE_MISMATCH", two(kind, tile(8), tile(8))) for kind in ("floordiv", "mod")),
    *(("SHAPE_MISMATCH", two("add", tile(8), tile(8), shape=shape)) for shape in ((), (4,), (8, 8))),
    ("SHAPE_MISMATCH", two("add", tile(8), tile(1))),
    ("KERNEL_INVALID", with_operands("add", F32, (8,), tile(8))),
    ("DTYPE_MISMATCH", two("div", tile(8, dtype=I32), tile(8, dtype=I32), I32)),
    *(("DTYPE_MISMATCH", with_operands(kind, I32, (8,), tile(8, dtype=I32))) for kind in ("exp", "sqrt")),
    *(("KERNEL_INVALID", two(kind, tile(8), tile(8))) for kind in ("fma", "mul_shift")),
    *(("SHAPE_MISMATCH", with_operands(kind, F32, (8,), tile(16))) for kind in ("exp", "sqrt")),
    ("DTYPE_MISMATCH", [*(loaded := codes()), op("cast", F32, (16, 64), loaded[-1:])]),
    ("KERNEL_INVALID", [op("frobnicate", F32, (8,))]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "ops"), BAD)
def test_a_program_that_breaks_a_rule_is_refused_with_its_code_and_line(code, ops):
    with pytest.raises(lb.LowbitvmError) as caught:
        verify(program(*ops))
    assert caught.value.code == code, caught.value
    assert caught.value.location == "user.py:7"


def test_every_kind_of_op_has_a_program_that_breaks_its_rules():
    assert {ops[-1].kind for _, ops in BAD} >= RULES.keys()


def test_a_program_of_every_kind_of_op_is_accepted():
    start, x = zero(), tile(8, 8)
    row, half = op("reduce", F32, (8,), [x], how="sum", axis=0), load(H, F16, (8, 64), [start, start])[-1]
    weights = op("load", U4, (16, 64), [start, start], W, other=0)
    real = op("dequant", F32, (16, 64), [weights], W)
    turned = op("transpose", F32, (64, 16), [real])
    whole = op("cast", I32, (8, 8), [x])
    count = op("atomic_add", I32, (), [start, start, start], C)
    same = op("compare", BOOL, (), [count, start], how="equal")
    body = [
        op("assign", None, (), [x, x]),
        op("store", None, (), [x, start, start], X),
        op("dot", F32, (8, 16), [half, turned]),
    ]
    verify(
        program(
            start,
            op("program_id", I32, axis=2),
            op("dimension", I32, array=W, axis=1),
            x,
            row,
            half,
            weights,
            real,
            turned,
            whole,
            op("exp", F32, (8, 8), [x]),
            op("expand", F32, (8, 1), [row], axis=1),
            op("reshape", F32, (4, 2, 8), [x]),
            op("hadamard", F32, (8, 8), [x]),
            op("rint", I32, (8, 8), [x]),
            op("bitcast", I32, (8, 8), [x]),
            op("broadcast", F32, (8, 8), [row]),
            op("div", F32, (8, 8), [x, x]),
            op("mod", I32, (8, 8), [whole, whole]),
            op("constant", F32, value=-math.inf),
            count,
            same,
            op("when", None, (), [same]),
            *loop(*body),
        )
    )


@pytest.mark.parametrize(
    "ops",
    [
        [op("exp", F32, (8,), [tile(8)])],  # never defined
        [*reversed(with_operands("exp", F32, (8,), tile(8)))],  # defined later
        [*loop(inside := tile(8)), op("exp", F32, (8,), [inside])],  # defined inside a loop that has ended
        [*(ended := loop()), op("add", I32, (), [ended[-1], ended[-1]])],  # the index of such a loop
        [*(stored := store(tile(8, 8))), op("exp", F32, (8, 8), [stored[-1]])],  # has no result
    ],
)
def test_an_operand_that_is_not_defined_before_its_use_is_refused(ops):
    with pytest.raises(lb.LowbitvmError, match=r"KERNEL_INVALID.*is not defined before it"):
        verify(program(*ops))


def test_only_loops_have_a_body():
    made = tile(8)
    made.body.append(zero())
    with pytest.raises(lb.LowbitvmError, match="KERNEL_INVALID"):
        verify(program(made))


@pytest.mark.parametrize("name", ["<lambda>", "größe", "2x", "a b", "", "_", "WARP_SZ", "smem"])
def test_names_that_ptx_has_no_place_for_are_refused(name):
    for bad in (
        program(name=name),
        program(arrays=(Array(name, ("n",), F32),)),
        program(arrays=(Array("x", (name,), F32),)),
    ):
        with pytest.raises(lb.LowbitvmError, match="KERNEL_INVALID"):
            verify(bad)


@pytest.mark.parametrize("dims", [(), ("a", "b", "c", "d")])
def test_arrays_have_one_to_three_dimensions(dims):
    with pytest.raises(lb.LowbitvmError, match="SHAPE_MISMATCH"):
        verify(program(arrays=(Array("x", dims, F32),)))


@pytest.mark.parametrize("promise", [("z", 8), ("n", 0), ("n", -8), ("n", 1.5)])
def test_a_promise_is_a_positive_divisor_of_a_dimension(promise):
    with pytest.raises(lb.LowbitvmError, match="ARGUMENT_INVALID"):
        verify(program(divisible=(promise,)))
