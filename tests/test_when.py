"""Conditions, atomics and what is built of them: blocks that share a sum, the last to arrive finishing it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbitvm as lb
from lowbitvm.errors import LowbitvmError
from lowbitvm.ir import Op, Program
from lowbitvm.runtime.compiled import compile_program
from lowbitvm.verify import verify

SPLITS, ROWS, COLUMNS = 4, 24, 512


@lb.kernel(x=("m n", lb.f32), partials=("r c", lb.f32), counters=("t", lb.i32), y=("m", lb.f32))
def row_sums(x: lb.Tensor, partials: lb.Tensor, counters: lb.Tensor, y: lb.Tensor, *, splits: int) -> None:
    """Sums of rows, the columns shared out among `splits` blocks."""
    i, split = lb.program_id(0), lb.program_id(1)
    acc = lb.zeros((8, 64))
    for k in lb.range(split * 128, (split + 1) * 128, 64):
        acc += lb.load(x, (i * 8, k), (8, 64))
    lb.store(partials, ((i * splits + split) * 8, 0), acc)
    with lb.when(lb.atomic_add(counters, (i,), 1) == splits - 1):
        total = lb.zeros((8, 64))
        for other in lb.range(0, splits, 1):
            total += lb.load(partials, ((i * splits + other) * 8, 0), (8, 64))
        lb.store(y, (i * 8,), lb.sum(total, axis=1))
        lb.store(counters, (i,), lb.full((1,), 0, lb.i32))


def arguments() -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).integers(-9, 9, (ROWS, COLUMNS)).astype(np.float32)
    partials = np.full((ROWS * SPLITS, 64), 77, np.float32)
    return {"x": x, "partials": partials, "counters": np.zeros(3, np.int32), "y": np.zeros(ROWS, np.float32)}


def test_the_last_block_to_arrive_adds_what_all_have_stored_in_the_interpreter():
    given = arguments()
    lb.interpret(row_sums.trace(splits=SPLITS), (3, SPLITS), given)
    assert (given["y"] == given["x"].sum(1)).all() and not given["counters"].any()


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_the_last_block_to_arrive_adds_what_all_have_stored_in_the_emulator(target):
    kernel = compile_program(row_sums.trace(splits=SPLITS), target, 4)
    given = arguments()
    for seed in range(5):
        given["y"][:] = 0
        for schedule in ("random", "adversarial", "round_robin"):
            report = lb.launch(kernel, (3, SPLITS), given, seed=seed, schedule=schedule)
            assert report is not None and report.findings == []
            assert (given["y"] == given["x"].sum(1)).all()
            assert not given["counters"].any()  # ready for the next launch
    assert kernel.spills == 0


@pytest.mark.parametrize("weaker", ["atom.relaxed.gpu", "atom.acquire.gpu", "atom.release.gpu", "atom.acq_rel.cta"])
def test_a_weaker_atomic_is_found_to_race(weaker):
    from lowbitvm.runtime import emulator

    kernel = compile_program(row_sums.trace(splits=SPLITS), "sm_80", 4)
    assert kernel.ptx.count("atom.acq_rel.gpu") == 1
    module = emulator.load(kernel.ptx.replace("atom.acq_rel.gpu", weaker))
    report = module.launch(
        "row_sums", (3, SPLITS, 1), (128, 1, 1), kernel.parameters(arguments()),
        shared=kernel.code.shared, on_finding="collect",
    )  # fmt: skip
    assert "race_global" in {finding.kind for finding in report.findings}


@lb.kernel(y=("m", lb.i32))
def chosen(y: lb.Tensor, *, how: str, bound: int) -> None:
    i = lb.program_id(0)
    tile = lb.full((32,), 1, lb.i32)
    with lb.when(i == bound if how == "==" else i < bound if how == "<" else i > bound):
        tile += 2
        with lb.when(i == 3):
            tile += 4
    lb.store(y, (i * 32,), tile)


@pytest.mark.parametrize("how", ["==", "<", ">"])
@given(bound=st.integers(-2, 7))
def test_conditions_choose_the_blocks_that_python_would_choose(how, bound):
    program, blocks = chosen.trace(how=how, bound=bound), np.arange(6)
    holds = {"==": blocks == bound, "<": blocks < bound, ">": blocks > bound}[how]
    expected = np.repeat(1 + 2 * holds + 4 * (holds & (blocks == 3)), 32).astype(np.int32)
    interpreted, emulated = np.zeros(192, np.int32), np.zeros(192, np.int32)
    lb.interpret(program, (6,), {"y": interpreted})
    lb.launch(compile_program(program, "sm_80", 2), (6,), {"y": emulated})
    assert (interpreted == expected).all() and (emulated == expected).all()


@lb.kernel(counts=("r c", lb.i32), y=("m", lb.i32))
def counted(counts: lb.Tensor, y: lb.Tensor) -> None:
    i, j = lb.program_id(0), lb.program_id(1)
    found = lb.atomic_add(counts, (i - 1, 2 * j), 3)
    lb.store(y, (i * 4 + j,), lb.full((1,), 0, lb.i32) + found)


def test_an_atomic_outside_its_array_adds_nothing_and_finds_0():
    program = counted.trace()
    results = []
    for run in ("interpreter", "emulator"):
        counts, y = np.arange(10, 16, dtype=np.int32).reshape(2, 3), np.full(16, -1, np.int32)
        if run == "interpreter":
            lb.interpret(program, (4, 4), {"counts": counts, "y": y})
        else:
            assert lb.launch(compile_program(program, "sm_80", 1), (4, 4), {"counts": counts, "y": y}).findings == []
        results.append((counts.tolist(), y.tolist()))
    assert results[0] == results[1]
    assert results[0][0] == [[13, 11, 15], [16, 14, 18]]
    assert results[0][1] == [0, 0, 0, 0, 10, 12, 0, 0, 13, 15, 0, 0, 0, 0, 0, 0]


def refused(body) -> LowbitvmError:
    @lb.kernel(x=("m n", lb.f32), y=("m", lb.i32))
    def made(x, y):
        body(x, y)

    with pytest.raises(LowbitvmError) as caught:
        made.trace()
    return caught.value


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("KERNEL_INVALID", lambda x, y: lb.when(lb.load(y, (0,), (8,)) == 1).__enter__()),
        ("KERNEL_INVALID", lambda x, y: lb.when(lb.program_id(0)).__enter__()),
        ("KERNEL_INVALID", lambda x, y: lb.program_id(0) != 1),
        ("KERNEL_INVALID", lambda x, y: lb.program_id(0) <= 1),
        ("KERNEL_INVALID", lambda x, y: bool(lb.program_id(0) == 1)),
        ("DTYPE_MISMATCH", lambda x, y: lb.atomic_add(x, (0, 0), 1)),
        ("DTYPE_MISMATCH", lambda x, y: lb.atomic_add(y, (0,), 1.5)),
        ("SHAPE_MISMATCH", lambda x, y: lb.atomic_add(y, (0, 0), 1)),
        ("ARGUMENT_INVALID", lambda x, y: lb.atomic_add(1, (0,), 1)),
    ],
)
def test_what_conditions_and_atomics_do_not_take_is_named(code, body):
    error = refused(body)
    assert error.code == code and error.location.startswith(__file__)


def test_a_value_made_under_a_condition_does_not_outlive_it():
    def body(x, y):
        with lb.when(lb.program_id(0) == 0):
            made = lb.load(y, (0,), (8,))
        lb.store(y, (0,), made)

    assert refused(body).code == "VALUE_ESCAPES_LOOP"


def test_programs_built_by_hand_are_held_to_the_same_rules():
    traced = chosen.trace(how="==", bound=1)
    at = next(n for n, op in enumerate(traced.body) if op.kind == "when")
    index = next(op for op in traced.body if op.kind == "program_id")
    wrong = Op("when", None, (), (index,), body=list(traced.body[at].body))
    with pytest.raises(LowbitvmError, match="DTYPE_MISMATCH"):
        verify(Program("chosen", traced.arrays, (*traced.body[:at], wrong), ()))
