"""Kernels that choose their configuration, without a GPU: by the model, in the emulator."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowbitvm as lb
from lowbitvm import autotuning, targets
from lowbitvm.autotuning import Autotuned
from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import model, together, trials, tuned
from lowbitvm.runtime.compiled import CompiledKernel
from lowbitvm.runtime.trials import Sample, mismatch
from lowbitvm.runtime.tuned import tuning

Config = Mapping[str, Any]
SPACE = {"block": [256, 1024], "warps": [4, 8]}
N = 20000


@lb.kernel(x=("n", None), y=("n", lb.f32))
def add_scaled(x: lb.Tensor, y: lb.Tensor, *, block: int, alpha: float = 0.5, stride: int = 0) -> None:
    """y += alpha * x, by blocks that overlap where a stride below the block is given."""
    start = (lb.program_id(0) * (stride or block),)
    lb.store(y, start, lb.load(y, start, (block,)) + alpha * lb.load(x, start, (block,)).to(lb.f32))


def blocks(c: Config) -> tuple[int, ...]:
    return (-(-c["n"] // c["block"]),)


def arrays(n: int = N, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    x, y = np.random.default_rng(n).standard_normal((2, n)).astype(np.float32)
    return {"x": x.astype(dtype), "y": y}


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuned.Database]:
    """An empty database of the test's own."""
    found = tuned.Database(tmp_path / "tuned")
    monkeypatch.setattr(tuned, "database", lambda: found)
    monkeypatch.delenv("LOWBITVM_DEVICE", raising=False)
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger a block, the less it takes, without a look at it: for tests of what is asked and kept."""
    monkeypatch.setattr(trials.Trial, "modelled", lambda self, kernel, grid, gpu: float(grid[0]))


def tunable(**options: Any) -> Autotuned:
    return lb.autotune(**{"space": SPACE, **options})(add_scaled)


# -- what is chosen ----------------------------------------------------------------------------------------------------


def test_the_configuration_that_takes_least_by_the_model_of_the_whole_grid_is_chosen() -> None:
    kernel, given, whole = tunable(), arrays(), {}
    with tuning("tune"):
        best = kernel.best(blocks, given)
    for config in kernel.configs:
        compiled = add_scaled.compile("sm_80", x=lb.f32, **config)
        report = lb.launch(compiled, blocks({"n": N, **config}), arrays())
        whole[tuple(config.items())] = model.predict(model.count(report)).time
    assert best.how == "modelled" and tuple(best.config.items()) == min(whole, key=whole.__getitem__)
    # eight whole blocks stand for all, whose last one is not whole
    assert best.time_us == pytest.approx(min(whole.values()), rel=0.02)
    assert best.grid == blocks({"n": N, **best.config}) and len(set(whole.values())) > 1


def test_a_call_computes_what_the_kernel_says_and_tuning_changes_no_argument() -> None:
    kernel, given = tunable(space={"block": [256]}), arrays()
    expected = given["y"] + np.float32(0.25) * given["x"]
    before = {name: array.copy() for name, array in given.items()}
    with tuning("tune"):
        kernel.best(blocks, given, alpha=0.25)
        assert all(np.array_equal(given[name], before[name]) for name in given)
        report = kernel(blocks, given, alpha=0.25)
    assert report is not None and report.findings == [] and np.array_equal(given["y"], expected)


def test_packed_weights_are_tuned_by_their_format_and_target() -> None:
    @lb.kernel(x=("m k", lb.f16), w=lb.packed("n k"), y=("m n", lb.f16))
    def product(x: lb.Tensor, w: lb.Packed, y: lb.Tensor, *, bn: int) -> None:
        j, total = lb.program_id(0), lb.zeros((16, bn))
        for k in lb.range(0, x.shape[1], 64):
            weights = lb.dequant(lb.load(w, (j * bn, k), (bn, 64)), w.scales, w.zeros)
            total += lb.dot(lb.load(x, (0, k), (16, 64)), weights.T)
        lb.store(y, (0, j * bn), total.to(lb.f16))

    random = np.random.default_rng(0)
    weight = lb.quantize(random.standard_normal((96, 128)).astype(np.float32), lb.Format("u3", group=64, zero="int"))
    x, y = random.standard_normal((16, 128)).astype(np.float16), np.zeros((16, 96), np.float16)
    kernel = lb.autotune(space={"bn": [64, 128]})(product)
    with tuning("tune"):
        best = kernel.best(lambda c: (-(-96 // c["bn"]),), {"x": x, "w": weight, "y": y}, target="sm_90a")
    assert best.kernel.target == "sm_90a" and best.how == "modelled" and kernel.left_out == [] and not y.any()


def test_the_example_of_the_documentation_runs(quick: None) -> None:
    text = (Path(__file__).parent.parent / "docs" / "tuning.md").read_text().partition("## Kernels of your own")[2]
    x, y = np.random.default_rng(0).standard_normal((2, 1000)).astype(np.float16)
    names: dict[str, Any] = {"lb": lb, "x": x, "y": y, "out": np.zeros_like(x)}
    exec(text.partition("```python\n")[2].partition("```")[0], names)  # of which inspect finds no source
    assert np.array_equal(names["out"], (np.float32(0.5) * x + y.astype(np.float32)).astype(np.float16))
    best = names["scaled_add"].best(names["grid"], {name: names[name] for name in ("x", "y", "out")}, alpha=0.5)
    assert best.how == "modelled" and best.config == {"block": 1024, "warps": 4}


def test_a_kernel_that_loads_nothing_is_modelled() -> None:
    @lb.kernel(y=("n", lb.f32))
    def ones(y: lb.Tensor, *, block: int) -> None:
        lb.store(y, (lb.program_id(0) * block,), lb.full((block,), 1.0))

    with tuning("tune"):
        best = lb.autotune(space={"block": [256]})(ones).best(blocks, {"y": np.zeros(1 << 24, np.float32)})
    bytes_per_us = 1e3 * targets.get("sm_80").gpu.dram_gbs * targets.get("sm_80").gpu.dram_share
    assert best.time_us is not None and best.time_us > (4 << 24) / bytes_per_us


# -- what is left out --------------------------------------------------------------------------------------------------


def miscompiled(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    """A configuration is compiled to code that multiplies by another alpha, and faster than all others."""
    real = autotuning.compile_program

    def compiled(program: Any, target: str, warps: int, started: float, cache: Any) -> CompiledKernel:
        made = real(program, target, warps, started, cache)
        shapes = {op.shape for op in program.body}
        if (config["block"],) in shapes and warps == config["warps"]:
            return replace(made, code=add_scaled.compile(target, x=lb.f32, **config, alpha=0.5001).code)
        return made

    monkeypatch.setattr(autotuning, "compile_program", compiled)
    time = trials.Trial.modelled
    fast = {**config, "fast": 1.0}

    def modelled(self: trials.Trial, kernel: CompiledKernel, *rest: Any) -> float:
        took = time(self, kernel, *rest)
        return fast["fast"] if kernel.code.threads == 32 * config["warps"] else took

    monkeypatch.setattr(trials.Trial, "modelled", modelled)


@pytest.mark.parametrize("own", [False, True])
def test_a_candidate_that_is_fastest_and_wrong_never_wins(monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    wrong = {"block": 1024, "warps": 8}
    miscompiled(monkeypatch, wrong)
    reference = (lambda x, y, alpha: y + np.float32(alpha) * x) if own else None
    kernel = tunable(reference=reference, tolerance=1e-5)
    with tuning("tune"):
        best = kernel.best(blocks, arrays(), alpha=0.5)
    assert best.config != wrong
    ((config, reason),) = kernel.left_out
    assert config == wrong and "y is wrong" in reason and "the reference has" in reason


@pytest.mark.parametrize("own", [False, True])
def test_a_candidate_that_stores_nothing_never_passes_with_what_an_earlier_call_has_stored(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    @lb.kernel(x=("n", lb.f32), y=("n", lb.f32))
    def doubled(x: lb.Tensor, y: lb.Tensor, *, block: int, idle: bool = False) -> None:
        i = lb.program_id(0)
        with lb.when(i < (0 if idle else 1 << 30)):
            lb.store(y, (i * block,), 2 * lb.load(x, (i * block,), (block,)))

    real = autotuning.compile_program

    def compiled(*parts: Any) -> CompiledKernel:
        return replace(real(*parts), code=doubled.compile("sm_80", block=512, idle=True, warps=parts[2]).code)

    monkeypatch.setattr(autotuning, "compile_program", compiled)
    x = arrays()["x"]
    kernel = lb.autotune(space={"block": [512]}, reference=(lambda x, y: 2 * x) if own else None)(doubled)
    with tuning("tune"), pytest.raises(LowbitvmError, match=r"TUNING_FAILED.*y is wrong"):
        kernel.best(blocks, {"x": x, "y": 2 * x})


def test_a_candidate_whose_blocks_race_is_left_out() -> None:
    kernel = tunable(space={"block": [256, 512], "stride": [256]}, reference=lambda x, y, alpha=0.5: y + x / 2)
    with tuning("tune"):
        best = kernel.best(lambda c: (-(-N // 256),), arrays())
    assert best.config == {"block": 256, "stride": 256}
    ((config, reason),) = kernel.left_out
    assert config["block"] == 512 and "race" in reason


def test_candidates_that_cannot_be_compiled_are_left_out(quick: None) -> None:
    kernel = tunable(space=[{"block": 96}, {"block": 256}])
    with tuning("tune"):
        assert kernel.best(blocks, arrays()).config == {"block": 256}
    ((config, reason),) = kernel.left_out
    assert config == {"block": 96} and reason.startswith("TILE_INVALID")
    with tuning("off"):
        assert kernel.best(blocks, arrays()).config == {"block": 256}


def test_configurations_that_are_the_same_kernel_are_tried_once(quick: None, database: tuned.Database) -> None:
    kernel = tunable(space={"block": [256], "stride": [0, 256]})
    with tuning("tune"):
        assert kernel.best(blocks, arrays()).config == {"block": 256, "stride": 0}
    ((config, reason),) = kernel.left_out
    assert config["stride"] == 256 and reason == "it is the same kernel as block=256, stride=0"
    assert [record.tried for *_, record in database.stored()] == [1]


def test_candidates_that_spill_are_left_out_unless_all_do(quick: None) -> None:
    spilling, fine = {"block": 8192, "warps": 1}, {"block": 256, "warps": 1}
    for space, chosen, reasons in (([spilling, fine], fine, ["it spills"]), ([spilling], spilling, [])):
        kernel = tunable(space=space)
        with tuning("tune"):
            assert kernel.best(blocks, arrays()).config == chosen
        assert [reason[:9] for _, reason in kernel.left_out] == reasons


def test_configurations_that_all_fail_are_named_with_what_each_of_them_had() -> None:
    kernel = tunable(space=[{"block": 96}, {"block": 200}])
    for mode in ("tune", "replay", "off"):
        with tuning(mode), pytest.raises(LowbitvmError, match="TUNING_FAILED: none of the 2 configurations") as error:
            kernel.best(blocks, arrays())
        assert "block=96: TILE_INVALID" in error.value.problem and "block=200: TILE_INVALID" in error.value.problem


def test_an_error_that_has_nothing_to_do_with_the_configuration_is_raised_as_it_is() -> None:
    for wrong, code in (({"beta": 1.0}, "ARGUMENT_INVALID"), ({"target": "sm_1"}, "TARGET_UNKNOWN")):
        with tuning("tune"), pytest.raises(LowbitvmError) as error:
            tunable().best(blocks, arrays(), **wrong)
        assert error.value.code == code
    given = arrays()
    given["y"] = given["y"][:-1].copy()
    with tuning("tune"), pytest.raises(LowbitvmError, match="SHAPE_MISMATCH"):
        tunable().best(blocks, given)


def test_a_model_without_the_disassembler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> str:
        raise LowbitvmError("TOOL_MISSING", "nvdisasm was not found", "pip install 'lowbitvm[sass]'")

    monkeypatch.setattr(model, "_machines", {})  # what was disassembled before
    monkeypatch.setattr(together, "disassemble", missing)
    with tuning("tune"), pytest.raises(LowbitvmError, match="TOOL_MISSING: nvdisasm"):
        tunable().best(blocks, arrays())


def test_configurations_that_prune_names_are_not_tried(quick: None, database: tuned.Database) -> None:
    asked = []

    def prune(config: Config, sizes: Mapping[str, int], target: targets.Target) -> bool:
        asked.append((dict(sizes), target.name))
        return config["block"] > 256

    kernel = tunable(prune=prune)
    with tuning("tune"):
        assert kernel.best(blocks, arrays()).config["block"] == 256
    assert set(map(str, asked)) == {str(({"n": N}, "sm_80"))}
    assert [record.tried for *_, record in database.stored()] == [2]
    with pytest.raises(LowbitvmError, match=r"TUNING_FAILED.*prune leaves none"):
        tunable(prune=lambda *_: True).best(blocks, arrays())


# -- when it is tuned --------------------------------------------------------------------------------------------------


def never(*_: Any) -> float:
    raise AssertionError("nothing is to be tuned")


def test_what_was_found_is_used_by_later_calls_and_processes(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arrays()
    assert tunable().best(blocks, given).how == "first"
    with tuning("tune"):
        found = tunable().best(blocks, given)
    monkeypatch.setattr(trials.Trial, "modelled", never)
    for mode in ("tune", "replay"):  # another object, as another process has
        with tuning(mode):
            again = tunable().best(blocks, given)
        assert (again.config, again.how, again.time_us) == (found.config, "modelled", found.time_us)
    with tuning("off"):
        off = tunable().best(blocks, given)
    assert (off.config, off.how, off.time_us) == ({"block": 256, "warps": 4}, "first", None)


def test_a_call_that_was_not_tuned_is_tuned_once_that_is_asked_for(quick: None) -> None:
    kernel, given = tunable(), arrays()
    hows = [kernel.best(blocks, given).how]
    with tuning("tune"):
        hows.append(kernel.best(blocks, given).how)
    hows.append(kernel.best(blocks, given).how)
    with tuning("off"):
        hows.append(kernel.best(blocks, given).how)
    assert hows == ["first", "modelled", "modelled", "first"]


@pytest.mark.parametrize(
    ("key", "call", "shared"),
    [
        (None, {"n": N + 100}, True),  # of one power of two
        (None, {"n": 2 * N}, False),
        (None, {"dtype": np.float16}, False),
        (None, {"alpha": 0.25}, True),
        (["n"], {"dtype": np.float16}, True),
        (["x"], {"n": 2 * N}, True),
        (["n", "alpha"], {"alpha": 0.25}, False),
        (["n", "alpha"], {"alpha": 0.5}, True),  # the default
        (["x"], {"divisible": {"n": 8}}, True),
        (["n"], {"target": "sm_86"}, False),
        (["n"], {"divisible": {"n": 8}}, False),
    ],
)
def test_calls_share_a_choice_where_they_are_alike_in_what_the_key_names(
    quick: None, key: list[str] | None, call: dict[str, Any], shared: bool
) -> None:
    kernel = tunable(key=key, space={"block": [256]})
    with tuning("tune"):
        assert kernel.best(blocks, arrays()).how == "modelled"
    given = arrays(call.pop("n", N), call.pop("dtype", np.float32))
    assert kernel.best(blocks, given, **call).how == ("modelled" if shared else "first")


def test_what_was_found_for_other_source_or_another_space_does_not_count(quick: None, tmp_path: Path) -> None:
    with tuning("tune"):
        tunable(space={"block": [256]}).best(blocks, arrays())
    assert tunable(space={"block": [256, 512]}).best(blocks, arrays()).how == "first"
    edited = lb.kernel(x=("n", None), y=("n", lb.f32))(edited_copy(tmp_path))
    assert lb.autotune(space={"block": [256]})(edited).best(blocks, arrays()).how == "first"
    assert tunable(space={"block": [256]}).best(blocks, arrays()).how == "modelled"


def edited_copy(tmp_path: Path) -> Callable[..., None]:
    """The function of `add_scaled` after an edit."""
    source = inspect.getsource(add_scaled.function).partition("\n")[2].replace("+ alpha *", "- alpha *")
    file = tmp_path / "edited.py"
    file.write_text(source)
    names: dict[str, Any] = {"lb": lb}
    exec(compile(source, str(file), "exec"), names)
    return names["add_scaled"]


def test_a_record_whose_configuration_cannot_be_compiled_gives_way_to_the_first_that_can(
    quick: None,
) -> None:
    @lb.kernel(x=("n", lb.f32))
    def halves(x: lb.Tensor, *, block: int, parts: int) -> None:
        start = (lb.program_id(0) * block,)
        lb.store(x, start, lb.load(x, start, (block // parts,)))

    kernel = lb.autotune(space={"block": [128, 256]}, key=["n"], prune=lambda c, sizes, target: c["block"] < 256)(
        halves
    )
    grid, given = (lambda c: (4,)), {"x": np.zeros(1024, np.float32)}
    with tuning("tune"):
        assert kernel.best(grid, given, parts=1).config == {"block": 256}
    with pytest.raises(LowbitvmError, match="TILE_INVALID"):
        kernel.best(grid, given, parts=3)
    assert kernel.best(grid, given, parts=2).how == "modelled"


def test_an_empty_grid_is_neither_tuned_nor_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials.Trial, "modelled", never)
    kernel, given = tunable(), arrays(0)
    with tuning("tune"):
        assert kernel.best(blocks, given).how == "first" and kernel(blocks, given) is None


def test_a_budget_ends_the_search_after_the_first_that_is_right(quick: None, database: tuned.Database) -> None:
    with tuning("tune", budget_s=1e-6):
        tunable().best(blocks, arrays())
    assert [record.tried for *_, record in database.stored()] == [1]


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": {"tile": [1]}}, r"tuned over \['tile'\].*'block'.*'warps'"),
        ({"space": [{"block": 128}, {"warps": 4}]}, "the same of"),
        ({"space": {"block": []}}, "no configurations"),
        ({"space": []}, "no configurations"),
        ({"space": {}}, "no configurations"),
        ({"space": {"block": 128}}, "a dict of lists of values"),
        ({"space": [128, 256]}, "a list of dicts"),
        ({"space": None}, "the space is None"),
        ({"key": "n"}, "key of add_scaled is 'n'"),
        ({"key": 5}, "key of add_scaled is 5"),
        ({"prune": 3}, "prune is 3"),
        ({"reference": 4}, "reference is 4"),
        ({"tolerance": "small"}, "the tolerance is 'small'"),
        ({"key": ["m"]}, r"key of add_scaled is \['m'\].*'alpha', 'n', 'stride', 'x', 'y'"),
        ({"key": ["block"]}, "key of add_scaled"),
    ],
)
def test_names_that_the_kernel_does_not_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LowbitvmError, match=f"ARGUMENT_INVALID.*{message}"):
        tunable(**options)


def test_what_is_no_kernel_is_refused() -> None:
    with pytest.raises(LowbitvmError, match=r"ARGUMENT_INVALID.*above @lb.kernel"):
        lb.autotune(space=SPACE)(add_scaled.function)

    @lb.kernel(x=("n", lb.f32))
    def streamed(x: lb.Tensor, *, stream: int) -> None:
        pass

    with pytest.raises(LowbitvmError, match="a constant called stream"):
        lb.autotune(space={"warps": [4]})(streamed)


def test_a_call_that_gives_what_is_tuned_is_refused() -> None:
    with pytest.raises(LowbitvmError, match=r"ARGUMENT_INVALID.*\['block'\], which are tuned"):
        tunable().best(blocks, arrays(), block=256)


@pytest.mark.parametrize("grid", [None, 3, lambda c: 3])
def test_a_grid_that_is_no_tuple_is_refused(grid: Any) -> None:
    with pytest.raises(LowbitvmError, match=r"ARGUMENT_INVALID: the grid is (None|3)"):
        tunable().best(grid, arrays())


def test_a_call_without_an_array_is_refused() -> None:
    for given in ({}, {"x": np.zeros(4, np.float32)}, {**arrays(), "z": np.zeros(4)}):
        with pytest.raises(LowbitvmError, match=r"ARGUMENT_INVALID: add_scaled takes \['x', 'y'\]"):
            tunable().best(blocks, given)


def test_a_reference_that_does_not_give_what_is_stored_is_refused() -> None:
    kernel = tunable(reference=lambda x, y: {"x": x})
    with tuning("tune"), pytest.raises(LowbitvmError, match=r"gave \['x'\], the kernel stores \['y'\]"):
        kernel.best(blocks, arrays())


# -- looking at results ------------------------------------------------------------------------------------------------


def program(**options: Any) -> Any:
    return add_scaled.trace(x=lb.f32, block=256, **options)


def test_the_corners_of_a_large_grid_are_interpreted_and_all_of_a_small_one() -> None:
    assert Sample.of(program(), (3, 2), everywhere=True).is_whole
    corners = Sample.of(program(), (10, 7, 2), everywhere=True)
    assert corners.grid == (10, 7, 2) and set(corners.blocks) == {
        (x, y, z) for x in (0, 9) for y in (0, 6) for z in (0, 1)
    }
    few = Sample.of(program(), (10, 7, 2), everywhere=False)
    assert few.grid == (8, 1, 1) and few.is_whole


def test_blocks_that_add_to_what_others_add_to_are_launched_without_them() -> None:
    @lb.kernel(x=("n", lb.i32))
    def counted(x: lb.Tensor) -> None:
        lb.atomic_add(x, (0,), 1)

    sample = Sample.of(counted.trace(), (100,), everywhere=True)
    assert sample.grid == (8,) and sample.is_whole


def test_floats_may_differ_by_the_tolerance_and_one_rounding() -> None:
    wanted = np.array([4.0, 1.0, 0.0, np.nan, np.inf], np.float16)
    for change, fine in ((0.001, True), (0.005, False)):
        got = wanted + np.float16(change)
        assert (mismatch(got, wanted, None, 2.0**-10) is None) is fine
    for wrong in ([4, 1, 0, 0, np.inf], [4, 1, 0, np.nan, 9], [np.nan, 1, 0, np.nan, np.inf]):
        assert mismatch(np.array(wrong, np.float16), wanted, None, 2.0**-10) is not None
    nan = np.array([4, 1, 0, np.nan, np.nan], np.float16)  # an infinity may become a NaN
    assert mismatch(nan, wanted, None, 2.0**-10) is None


def test_integers_are_compared_exactly_where_they_are_looked_at() -> None:
    wanted = np.arange(5, dtype=np.int32)
    got = wanted + np.array([0, 0, 1, 0, 0], np.int32)
    assert mismatch(got, wanted, None, 1.0) == "3 at (2,), the reference has 2; 1 of 5 so"
    assert mismatch(got, wanted, np.array([1, 1, 0, 1, 1], bool), 0.0) is None
    assert (
        mismatch(got, wanted[:4], None, 0.0) is not None and mismatch(got, wanted.astype(np.int64), None, 0) is not None
    )
