"""lb.compile_linear: resources on every target, the cache, and refusals."""

import re

import pytest

import lowbitvm as lb
from lowbitvm.dtypes import CODE_TYPES
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import NAMED
from lowbitvm.targets import TARGETS
from tests.mutate import REGISTER, instructions

VARIANTS = [
    {"zero": None, "group": 128},
    {"zero": "int", "group": 128, "bias": True},
    {"zero": "offset", "group": 32},
    {"zero": "float", "group": 64, "scale": "f32"},
    {"zero": "int", "group": "channel", "vectorised": False},
    {"zero": "int", "group": 32},
]

LARGEST_F16 = 65504.0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rows", [8, 16, 32, 64])
def test_nothing_spills_on_any_target(target, rows):
    for number, variant in enumerate(VARIANTS):
        act = ("f16", "bf16")[number % 2 if target != "sm_75" else 0]
        kernel = lb.compile_linear("u4", act=act, target=target, bm=rows, cache=False, **variant)
        assert kernel.spills == 0, (target, rows, variant)
        assert 32 <= kernel.registers <= 255
        assert kernel.cubin.startswith(b"\x7fELF")


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", ["u1", "u3", "u8", "bp5", "f4e2m1", "f6e3m2", "e4m3"])
def test_no_format_spills_with_the_planned_tiles(name, target):
    for number, rows in enumerate((8, 16, 32, 64)):
        act = ("f16", "bf16")[number % 2]
        kernel = lb.compile_linear(name, act=act, target=target, zero=(None, "offset")[rows < 32], bm=rows, cache=False)
        assert kernel.spills == 0, (name, rows)


def test_the_main_loop_is_made_of_tensor_core_instructions():
    sass = lb.compile_linear("u4", cache=False).sass()
    slots, ahead, row_tiles, columns, steps = 4, 2, 2, 2, 128 // 16
    assert sass.count("HMMA.16816.F32") == slots * row_tiles * columns * steps
    # x goes to shared memory, a lane's words of a row tile of two k tiles to its registers: one unit ahead of their use
    assert sass.count("LDGSTS.E.BYPASS.128") == (ahead + slots) * 2
    assert len(re.findall(r"LDG\.E\S*\.128", sass)) == (1 + slots) * row_tiles * 2
    sass = lb.compile_linear("u4", direct=0, cache=False).sass()
    assert sass.count("LDGSTS.E.BYPASS.128") == (ahead + slots) * (2 + 2 * 2)


@pytest.mark.parametrize("act", ["f16", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_register_that_is_written_is_read(variant, act):
    written, read = set(), set()
    for line in instructions(lb.compile_linear("u4", act=act, cache=False, **variant).ptx):
        read.update(REGISTER.findall(line.guard))
        for number, operand in enumerate(line.operands):
            result = number < line.results and not operand.startswith("[")
            (written if result else read).update(REGISTER.findall(operand))
    assert written - read == set()


@pytest.mark.parametrize("stages", [2, 3, 4, 5])
def test_shared_memory_grows_with_the_stages(stages):
    one_slot = 16 * 128 * 2 + 128 * 128 // 2 + 128 * 2  # a group of 128, two steps of the loop
    assert lb.compile_linear("i4", stages=stages, direct=0, cache=False).shared == max(2, -(-stages // 2)) * one_slot


def test_the_cache_gives_back_the_same_cubin_without_assembling(monkeypatch):
    first = lb.compile_linear("i4", group=64, bm=8)
    cubin, registers = first.cubin, first.registers
    monkeypatch.setattr("lowbitvm.runtime.compiled.assemble", None)  # any call would raise
    again = lb.compile_linear("i4", group=64, bm=8)
    assert again.cubin == cubin
    assert again.registers == registers


@pytest.mark.parametrize(
    "name", [name for name, code in CODE_TYPES.items() if code.kind == "float" and code.largest > LARGEST_F16]
)
def test_a_float_beyond_f16_is_refused_with_the_nearest_type_that_every_target_runs(name):
    with pytest.raises(LowbitvmError, match=f"^FORMAT_UNSUPPORTED: {name} reaches") as caught:
        lb.compile_linear(name, target="sm_75", cache=False)
    nearest = caught.value.fix.rpartition(" ")[2]
    assert CODE_TYPES[nearest].bits == CODE_TYPES[name].bits
    assert lb.compile_linear(nearest, target="sm_75", cache=False).ptx
    assert lb.compile_linear(name, act="bf16", target="sm_80", cache=False).ptx


def test_a_format_is_taken_as_it_is_as_text_and_by_its_parts():
    fmt = lb.Format("u3", group=64, zero="int", scale="bf16")
    code = lb.compile_linear(fmt, cache=False).ptx
    for weights, parts in (
        ("u3,group=64,zero=int,scale=bf16", {}),
        ("u3", {"group": 64, "zero": "int", "scale": "bf16"}),
        ("u3,group=32,zero=int,scale=bf16", {"group": 64}),
        (lb.Format("u3", group=64, scale="bf16"), {"zero": "int"}),
    ):
        assert lb.compile_linear(weights, **parts, cache=False).ptx == code
    assert lb.compile_linear("mxfp4", cache=False).ptx == lb.compile_linear(NAMED["mxfp4"], cache=False).ptx


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("FORMAT_INVALID", {"weights": "u99"}),
        ("FORMAT_INVALID", {"weights": 4}),
        ("FORMAT_INVALID", {"weights": "mxfp4", "scale": "f64"}),
        ("FORMAT_UNSUPPORTED", {"weights": "f8e6m1"}),
        ("FORMAT_INVALID", {"weights": "u4", "group": 33}),
        ("DTYPE_MISMATCH", {"weights": "u4", "act": "f32"}),
        ("TARGET_UNKNOWN", {"weights": "u4", "target": "sm_42"}),
        ("TILE_INVALID", {"weights": "u4", "bk": 32}),
        ("TILE_INVALID", {"weights": "u4", "bm": 24}),
        ("TILE_INVALID", {"weights": "u4", "bn": 32}),
        ("TILE_INVALID", {"weights": "u4", "stages": 1}),
        ("TILE_INVALID", {"weights": "u4", "warps": 3}),
        ("TILE_INVALID", {"weights": "u4", "warps": 0}),
        ("TILE_INVALID", {"weights": "u4", "bm": 16.0}),
        ("TILE_INVALID", {"weights": "u4", "bm": 256}),
        ("TILE_INVALID", {"weights": "u4", "bm": 64, "warps": 4, "zero": "offset"}),
        ("SHARED_MEMORY_EXCEEDED", {"weights": "u4", "bm": 64, "bn": 256, "bk": 256, "stages": 5, "warps": 8}),
    ],
)
def test_bad_requests_are_refused(code, arguments):
    with pytest.raises(LowbitvmError) as caught:
        lb.compile_linear(**arguments)
    assert caught.value.code == code
