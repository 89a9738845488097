import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbitvm import dtypes
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import NAMED, Format
from tests.weights import EVERY_FORMAT


@given(st.sampled_from(EVERY_FORMAT))
def test_parse_inverts_str_and_equal_formats_hash_alike(fmt: Format) -> None:
    parsed = Format.parse(str(fmt))
    assert parsed == fmt
    assert hash(parsed) == hash(fmt)


def test_every_format_has_its_own_text_and_is_its_own_key() -> None:
    assert len({str(fmt) for fmt in EVERY_FORMAT}) == len(set(EVERY_FORMAT)) == len(EVERY_FORMAT)
    # scales: 3 wide ones, e8m0, e4m3 with and without a second level, i8 with one; 256 only above groups along K
    wide, narrow = 3 * 7, 7 + 7 + 2 * (7 + 5)  # by group
    linear = wide * 4 + narrow * 2 + 12  # zeros: all; None and "int"; i8 also "offset"
    other = wide * 3 + narrow + 12
    kinds = [code.is_linear for code in dtypes.CODE_TYPES.values()]
    tables = sum(code.values is None for code in dtypes.CODE_TYPES.values())
    assert len(EVERY_FORMAT) == kinds.count(True) * linear + (kinds.count(False) + 2 * tables) * other


@pytest.mark.parametrize("name", NAMED)
def test_a_named_format_parses_to_its_parts_and_its_text_back(name: str) -> None:
    assert Format.parse(name) == NAMED[name] == Format.parse(str(NAMED[name]))
    assert Format.parse(f"{name},group=64").group == 64
    with pytest.raises(LowbitvmError, match=rf"^FORMAT_INVALID: .*Format\.parse\('{name}'\)"):
        Format(name)


def test_named_formats_are_those_of_their_standards() -> None:
    elements = {"mxfp4": "f4e2m1", "mxfp6e2m3": "f6e2m3", "mxfp6e3m2": "f6e3m2", "mxint8": "i8"}
    elements |= {"mxfp8e4m3": "e4m3", "mxfp8e5m2": "e5m2"}
    for name, dtype in elements.items():
        assert str(NAMED[name]) == f"{dtype},group=32,zero=none,scale=e8m0"
    assert str(NAMED["nvfp4"]) == "f4e2m1,group=16,zero=none,scale=e4m3,outer=tensor"
    assert str(NAMED["nvint4"]) == "i4,group=16,zero=none,scale=e4m3,outer=tensor"


def test_floats_go_by_the_field_s_other_names_too() -> None:
    assert Format("f8e4m3") == Format("e4m3") and Format("f8e5m2", 32).dtype == "e5m2"
    assert Format("e2m1") == Format("f4e2m1") and Format.parse("e3m2,group=32").dtype == "f6e3m2"


def test_text_is_the_documented_one() -> None:
    assert str(Format("u4", group=128, zero="int", scale="f16")) == "u4,group=128,zero=int,scale=f16"
    assert str(Format("i4", group="tensor")) == "i4,group=tensor,zero=none,scale=f16"


def test_parse_takes_parts_in_any_order_with_spaces_and_defaults() -> None:
    assert Format.parse("u4") == Format("u4")
    assert Format.parse(" i4, scale=bf16 ,group=channel") == Format("i4", group="channel", scale="bf16")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "u4,",
        "u4,group",
        "u4,group=32,group=64",
        "u4,dtype=i4",
        "u4,width=3",
        "u4,group=",
        "u4,zero=None",
        "u4;group=32",
        "u4,group=-32",
        "u4,group=³²",
        "u4,group=" + 5000 * "1",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_parse_refuses_other_text(text: str) -> None:
    with pytest.raises(LowbitvmError, match=r"^FORMAT_INVALID: "):
        Format.parse(text)


def test_formats_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Format("u4").group = 64  # type: ignore[misc]


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"group": 48}, "group 48.*use 32, the nearest of"),
        ({"group": 4096}, "group 4096.*use 256"),
        ({"group": 64, "scale": "e4m3", "outer": 512}, "outer 512.*use 256"),
        ({"scale": "ue5m3"}, "ue5m3.*use 'e4m3'"),
    ],
    ids=str,
)
def test_what_the_field_has_is_unsupported_and_the_error_says_what_works(parts: dict[str, Any], named: str) -> None:
    with pytest.raises(LowbitvmError, match=f"^FORMAT_UNSUPPORTED: .*{named}"):
        Format("u4", **parts)


@pytest.mark.parametrize(
    ("dtype", "parts", "named", "instead"),
    [
        ("e4m3", {"zero": "int"}, "e4m3 has none", {"zero": "float"}),
        ("nf4", {"zero": "int"}, "nf4 has none", {"zero": None}),
        ("u4", {"zero": "float", "scale": "e8m0"}, "e8m0 cannot", {"zero": "float", "scale": "f16"}),
        ("u4", {"zero": "offset", "scale": "e4m3"}, "e4m3 cannot", {"zero": None, "scale": "e4m3"}),
        ("u4", {"scale": "i8"}, "no second level", {"scale": "i8", "outer": 256}),
        ("u4", {"outer": "tensor"}, "scale is 'f16'", {"scale": "e4m3", "outer": "tensor"}),
        (
            "u4",
            {"outer": 256, "scale": "i8", "group": "channel"},
            "group is 'channel'",
            {"outer": "tensor", "scale": "i8", "group": "channel"},
        ),
        ("c4", {}, "table is None", {"table": "tensor"}),
        ("nf4", {"table": "tensor"}, "fixed values", {}),
    ],
    ids=str,
)
def test_parts_that_contradict_each_other_are_refused_and_the_fix_works(
    dtype: str, parts: dict[str, Any], named: str, instead: dict[str, Any]
) -> None:
    with pytest.raises(LowbitvmError, match=f"^FORMAT_INVALID: .*{named}"):
        Format(dtype, **parts)
    Format(dtype, **instead)


@pytest.mark.parametrize(
    ("part", "value"),
    [("dtype", value) for value in ("u9", "i1", "mxfp6", "f8e4m4", "f2e1m0", "bp9", "U4", "", None, 4, [])]
    + [("group", value) for value in (0, -32, 40, 128.0, True, "row", "128", None, np.int64(128), [])]
    + [("zero", value) for value in ("none", "integer", 0, False)]
    + [("scale", value) for value in ("f64", "float16", None, np.float16)],
)
def test_parts_that_do_not_exist_are_refused_by_name(part: str, value: object) -> None:
    with pytest.raises(LowbitvmError, match=f"^FORMAT_INVALID: Format {part} "):
        Format(**{"dtype": "u4", part: value})  # type: ignore[arg-type]


@given(st.sampled_from(EVERY_FORMAT))
def test_bits_bias_and_stored_dtypes_are_those_of_the_parts(fmt: Format) -> None:
    code = dtypes.CODE_TYPES[fmt.dtype]
    assert (fmt.code, fmt.bits, fmt.bias) == (code, code.bits, code.bias)
    assert fmt.scale_dtype == dtypes.SCALE_TYPES[fmt.scale]
    assert fmt.zero_dtype == {None: None, "int": dtypes.f16}.get(fmt.zero, fmt.scale_dtype)


@pytest.mark.parametrize("code", [code for code in dtypes.CODE_TYPES.values() if code.is_linear], ids=str)
def test_f16_holds_every_integer_zero_point(code: dtypes.CodeType) -> None:
    fmt = Format(code.name, zero="int")
    assert fmt.zero_dtype is not None
    zeros = range(code.low, code.high + 1)
    assert list(np.array(zeros).astype(fmt.zero_dtype.numpy)) == list(zeros)


@given(st.sampled_from(EVERY_FORMAT), st.integers(0, 5000), st.integers(0, 100))
def test_groups_tile_in_features_or_the_error_names_both_numbers(fmt: Format, n: int, k: int) -> None:
    if isinstance(fmt.group, int) and k % fmt.group:
        with pytest.raises(LowbitvmError, match=f"^GROUP_INDIVISIBLE: .* {k} .* {fmt.group}"):
            fmt.groups(k)
    else:
        assert fmt.groups(k) * fmt.group_size(k) == k
        assert fmt.scales_shape(n, k) == ((1, 1) if fmt.group == "tensor" else (n, fmt.groups(k)))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("u9", "u8"), ("i1", "bp1"), ("int4", "i4"), ("UINT2", "u2"), ("fp4", "mxfp4"), ("fp8", "e4m3"),
     ("mxfp8", "mxfp8e4m3"), ("f8e4m3fn", "e4m3"), ("mxfp", "mxfp4"), ("c9", "c8"), ("nf3", "nf4")],
)  # fmt: skip
def test_an_unknown_dtype_is_answered_with_the_nearest_and_what_there_is(name: str, meant: str) -> None:
    with pytest.raises(LowbitvmError) as caught:
        Format(name)
    assert caught.value.code == "FORMAT_INVALID" and f"use {meant!r}, the nearest of u1..u8, " in caught.value.fix
    assert meant in (*dtypes.CODE_TYPES, "mxfp4", "mxfp8e4m3")


@pytest.mark.parametrize("name", ["potato", "fp16", "q4_0"])
def test_what_resembles_no_dtype_is_answered_with_all(name: str) -> None:
    with pytest.raises(LowbitvmError, match=rf"'{name}' does not exist.*use one of u1\.\.u8, i2\.\.i8"):
        Format(name)
    for last in ("u8", "i8", "bp8", "ternary", "f3e1m1", "f8e7m0", "e4m3", "e5m2", "nf4", "c8"):  # what the fix lists
        assert last in dtypes.CODE_TYPES


def test_the_fix_for_an_indivisible_group_is_the_next_multiple() -> None:
    with pytest.raises(LowbitvmError, match="pad in_features to 256"):
        Format("u4", group=128).groups(129)


def test_the_fix_for_an_indivisible_second_level_is_the_next_multiple() -> None:
    with pytest.raises(
        LowbitvmError, match=r'^GROUP_INDIVISIBLE: .*320.*outer 256.*pad in_features to 512.*outer="tensor"'
    ):
        Format("u4", group=64, scale="i8", outer=256).outer_shape(8, 320)


def test_tables_are_shared_as_the_format_says() -> None:
    shapes = {"tensor": (1, 8), "block": (3, 8), "group": (40, 2, 8)}
    for table, shape in shapes.items():
        assert Format("c3", group=64, table=table).table_shape(40, 128) == shape
    assert Format("c3", group="tensor", table="group").table_shape(40, 128) == (1, 1, 8)
