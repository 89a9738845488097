"""Recording kernels: what the IR says, and which mistakes are named, with the user's line."""

import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import NAMED
from lowbitvm.kernels.linear import linear
from tests.weights import ONE_OF_EACH_CODE, float_weight

FMT = lb.Format("u4", group=128, zero="int")
TILE = {"bm": 16, "bn": 128, "bk": 64, "stages": 4}


def record(body, **constants):
    """The program of a kernel over x (m, n) and y (m) whose body is `body(x, y)`."""

    @lb.kernel(x=("m n", lb.f32), y=("m", lb.f32))
    def made(x, y):
        body(x, y)

    return made.trace(**constants)


def error_of(body, **constants) -> LowbitvmError:
    with pytest.raises(LowbitvmError) as caught:
        record(body, **constants)
    return caught.value


def test_the_linear_kernel_prints_as_ir():
    text = str(linear.trace(x=lb.f16, w=FMT, bias=None, y=lb.f16, **TILE))
    assert text.startswith(
        "kernel linear(x: f16[m, k], w: packed<u4,group=128,zero=int,scale=f16>[n, k], y: f16[m, n])"
    )
    assert "range %5 %4 step=64 stages=4" in text or "step=64 stages=4" in text
    assert [line.split("= ")[1].split()[0] for line in text.splitlines() if line.startswith("    %")] == [
        "load",
        "load",
        "dequant",
        "transpose",
        "dot",
        "add",
    ]


def test_recording_twice_gives_the_same_text():
    assert str(linear.trace(x=lb.f16, w=FMT, bias=lb.f16, y=lb.f16, **TILE)) == str(
        linear.trace(x=lb.f16, w=FMT, bias=lb.f16, y=lb.f16, **TILE)
    )


def test_a_value_that_escapes_its_loop_is_named_with_both_lines():
    def body(x, y):
        total = lb.zeros((8,))
        for k in lb.range(0, x.shape[1], 16):
            total = total + lb.sum(lb.load(x, (0, k), (8, 16)), axis=1)
        lb.store(y, (0,), total)

    error = error_of(body)
    assert error.code == "VALUE_ESCAPES_LOOP"
    first = body.__code__.co_firstlineno
    assert error.location == f"{__file__}:{first + 4}"
    assert f"{__file__}:{first + 3}" in error.problem


def test_the_index_of_a_loop_does_not_outlive_it():
    def body(x, y):
        indices = list(lb.range(0, x.shape[1], 16))
        lb.store(y, (indices[0],), lb.zeros((8,)))

    assert error_of(body).code == "VALUE_ESCAPES_LOOP"


def test_updating_with_plus_equals_keeps_the_value():
    def body(x, y):
        total = lb.zeros((8,))
        for k in lb.range(0, x.shape[1], 16):
            total += lb.sum(lb.load(x, (0, k), (8, 16)), axis=1)
        lb.store(y, (0,), total)

    assert "assign" in str(record(body))


def test_index_arithmetic_leaves_the_loops_that_it_does_not_depend_on():
    def body(x, y):
        for k in lb.range(0, x.shape[1], 16):
            row = lb.program_id(0) * 8
            lb.store(y, (row,), lb.sum(lb.load(x, (row, k), (8, 16)), axis=1))

    kinds = [op.kind for op in record(body).body]
    assert kinds.index("mul") < kinds.index("range")


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("KERNEL_INVALID", lambda x, y: bool(lb.program_id(0))),
        ("KERNEL_INVALID", lambda x, y: list(lb.program_id(0))),
        ("KERNEL_INVALID", lambda x, y: lb.program_id(0) != 0),
        ("KERNEL_INVALID", lambda x, y: lb.zeros((8,)) < 4),
        ("KERNEL_INVALID", lambda x, y: lb.zeros((8,)).T),
        ("KERNEL_INVALID", lambda x, y: lb.program_id(0).set(lb.program_id(1))),
        ("DTYPE_MISMATCH", lambda x, y: lb.zeros((8,)) + lb.zeros((8,), lb.i32)),
        ("DTYPE_MISMATCH", lambda x, y: lb.program_id(0) * 0.5),
        ("DTYPE_MISMATCH", lambda x, y: lb.zeros((8,)).to(lb.f16) + lb.zeros((8,)).to(lb.f16)),
        ("DTYPE_MISMATCH", lambda x, y: lb.store(y, (0,), lb.zeros((8,)).to(lb.f16))),
        ("DTYPE_MISMATCH", lambda x, y: lb.dot(lb.zeros((16, 16)), lb.zeros((16, 16)))),
        ("SHAPE_MISMATCH", lambda x, y: lb.zeros((8,)) + lb.zeros((16,))),
        ("SHAPE_MISMATCH", lambda x, y: lb.load(x, (0,), (8,))),
        ("SHAPE_MISMATCH", lambda x, y: lb.load(x, (0, 0), (8,))),
        ("SHAPE_MISMATCH", lambda x, y: lb.sum(lb.zeros((8,)), axis=1)),
        ("SHAPE_MISMATCH", lambda x, y: lb.dot(lb.zeros((16, 16)), lb.zeros((32, 16)))),
        ("ARGUMENT_INVALID", lambda x, y: lb.store(y, (0,), 0.0)),
        ("ARGUMENT_INVALID", lambda x, y: lb.load(5, (0,), (8,))),
        ("ARGUMENT_INVALID", lambda x, y: list(lb.range(0, 64, x.shape[1]))),
        ("TILE_INVALID", lambda x, y: lb.zeros(8)),
        ("TILE_INVALID", lambda x, y: lb.zeros((x.shape[0], 8))),
        ("TILE_INVALID", lambda x, y: lb.zeros((24,))),
        ("TILE_INVALID", lambda x, y: lb.zeros((2048, 1024))),
        ("ARGUMENT_INVALID", lambda x, y: list(lb.range(0, 8, 0))),
        ("ARGUMENT_INVALID", lambda x, y: list(lb.range(0, 8, 8, stages=9))),
        ("ARGUMENT_INVALID", lambda x, y: list(lb.range(0, 8, 8, direct=-64))),
    ],
)
def test_mistakes_are_named_with_the_users_line(code, body):
    error = error_of(body)
    assert error.code == code
    assert error.location is not None and error.location.startswith(__file__)
    assert "Fix: " in str(error)


def test_recording_functions_refuse_to_run_outside_a_kernel():
    with pytest.raises(LowbitvmError, match="KERNEL_INVALID"):
        lb.zeros((8,))


def test_dequant_refuses_parts_of_another_weight():
    @lb.kernel(x=("m k", lb.f16), v=lb.packed("n k"), w=lb.packed("n k"))
    def mixed(x, v, w):
        lb.dequant(lb.load(v, (0, 0), (128, 64)), w.scales)

    with pytest.raises(LowbitvmError, match="KERNEL_INVALID"):
        mixed.trace(v=lb.Format("u4"), w=lb.Format("u4"))


def test_a_decorator_that_misses_a_parameter_is_refused():
    with pytest.raises(LowbitvmError, match="KERNEL_INVALID"):

        @lb.kernel(x=("m", lb.f32))
        def incomplete(x, y):
            pass


@pytest.mark.parametrize("arguments", [{}, {**TILE, "bogus": 1}, {"bm": 16}])
def test_missing_and_unknown_constants_are_refused(arguments):
    with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID"):
        linear.trace(x=lb.f16, w=FMT, bias=None, y=lb.f16, **arguments)


def test_a_parameter_without_its_format_is_refused():
    with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID"):
        linear.trace(x=lb.f16, bias=None, y=lb.f16, **TILE)


def test_a_promise_about_an_unknown_dimension_is_refused():
    with pytest.raises(LowbitvmError, match="ARGUMENT_INVALID"):
        linear.trace(x=lb.f16, w=FMT, bias=None, y=lb.f16, divisible={"z": 8}, **TILE)


def broken_off(x, y):
    for _ in lb.range(0, x.shape[1], 16):
        break


def broken_off_inside(x, y):
    for k in lb.range(0, x.shape[1], 16):
        for _ in lb.range(0, k, 16):
            break


def returned_from(x, y):
    for _ in lb.range(0, x.shape[1], 16):
        return


@pytest.mark.parametrize("body", [broken_off, broken_off_inside, returned_from])
def test_leaving_a_recorded_loop_early_is_named_with_the_loops_line(body):
    error = error_of(body)
    assert error.code == "KERNEL_INVALID"
    assert error.location is not None and error.location.startswith(__file__)


def test_numpy_scalars_are_numbers():
    def body(x, y):
        tile = np.float32(2) * lb.load(x, (np.int64(0), 0), (8, 16)) + np.float16(0.5)
        lb.store(y, (0,), lb.sum(tile, axis=1))

    assert "constant value=0.5" in str(record(body))


def test_a_tile_can_be_set_to_a_number_and_divided_in_place():
    def body(x, y):
        total = lb.zeros((8,))
        for _ in lb.range(0, x.shape[1], 16):
            total.set(1)
            total /= 2.0
        lb.store(y, (0,), total)

    assert str(record(body)).count("assign") == 2


def test_a_cast_to_the_same_dtype_is_a_copy():
    def body(x, y):
        a = lb.zeros((8,))
        b = a.to(lb.f32)
        a += 1.0
        lb.store(y, (0,), b)

    program = record(body)
    y = np.full(8, 7, np.float32)
    lb.interpret(program, (1,), {"x": np.zeros((1, 1), np.float32), "y": y[:1]})
    assert y[0] == 0


def test_a_constant_may_not_be_called_like_an_argument_of_compile():
    with pytest.raises(LowbitvmError, match="KERNEL_INVALID"):

        @lb.kernel(x=("m", lb.f32))
        def named(x, *, warps=2):
            pass


def test_a_declaration_that_is_none_is_refused():
    with pytest.raises(LowbitvmError, match="KERNEL_INVALID"):
        lb.kernel(x=("m",))


@pytest.mark.parametrize("fmt", ONE_OF_EACH_CODE + list(NAMED.values()), ids=str)
def test_the_interpreter_takes_every_format(fmt: lb.Format) -> None:
    weight = lb.quantize(**float_weight(fmt, 20, 128, seed=2), permutation=np.random.default_rng(2).permutation(128))
    x, y = np.random.default_rng(3).standard_normal((3, 128)).astype(np.float16), np.zeros((3, 20), np.float32)
    program = linear.trace(x=lb.f16, w=fmt, y=lb.f32, order=lb.i32, bm=16, bn=16, bk=64, stages=2)
    lb.interpret(program, (1, 2), {"x": x, "w": weight, "y": y, "order": weight.permutation})
    terms = np.abs(x.astype(np.float64)) @ np.abs(weight.dequantize().astype(np.float64)).T
    exact = x.astype(np.float64) @ weight.dequantize().astype(np.float64).T
    # each of the two steps along k rounds its sum to f32, and so does their addition
    assert (np.abs(y - exact) <= 4 * 2.0**-24 * terms).all()
