import dataclasses
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbitvm import dtypes
from lowbitvm.errors import LowbitvmError
from lowbitvm.formats import GROUPS, SCALES, ZEROS, Format

FORMATS = [Format(*parts) for parts in product(("u4", "i4"), GROUPS, ZEROS, SCALES)]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_parse_inverts_str_and_equal_formats_hash_alike(fmt: Format) -> None:
    parsed = Format.parse(str(fmt))
    assert parsed == fmt
    assert hash(parsed) == hash(fmt)


def test_every_format_has_its_own_text_and_is_its_own_key() -> None:
    assert len(FORMATS) == 2 * 5 * 4 * 3
    assert len({str(fmt) for fmt in FORMATS}) == len(set(FORMATS)) == len(FORMATS)


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
    "name",
    [
        "u1",
        "u2",
        "u3",
        "u5",
        "u6",
        "u7",
        "u8",
        "i2",
        "i3",
        "i5",
        "i6",
        "i7",
        "i8",
        "bp1",
        "bp4",
        "bp8",
        "ternary",
        "nf4",
        "f3e1m1",
        "f4e2m1",
        "f4e3m0",
        "f6e3m2",
        "f6e2m3",
        "f8e4m3",
        "f8e5m2",
        "mxfp4",
        "mxfp6",
        "mxfp8",
        "mxint8",
        "nvfp4",
        "nvint4",
    ],
)
def test_known_names_are_unsupported_and_the_error_says_what_works(name: str) -> None:
    with pytest.raises(LowbitvmError, match=f"^FORMAT_UNSUPPORTED: .*'{name}'.*'u4', 'i4', which work now"):
        Format(name)


@pytest.mark.parametrize("group", [16, 48, 96, 256])
def test_other_multiples_of_16_are_unsupported_groups(group: int) -> None:
    with pytest.raises(LowbitvmError, match=f"^FORMAT_UNSUPPORTED: .*{group}.*32, 64, 128"):
        Format("u4", group=group)


@pytest.mark.parametrize("scale", ["e8m0", "e4m3", "ue5m3"])
def test_block_scales_are_unsupported(scale: str) -> None:
    with pytest.raises(LowbitvmError, match=f"^FORMAT_UNSUPPORTED: .*{scale}.*f32"):
        Format("u4", scale=scale)


@pytest.mark.parametrize(
    ("part", "value"),
    [("dtype", value) for value in ("u9", "i1", "f8e4m4", "f2e1m0", "bp9", "U4", "", None, 4, [])]
    + [("group", value) for value in (0, -32, 40, 128.0, True, "row", "128", None, np.int64(128), [])]
    + [("zero", value) for value in ("none", "integer", 0, False)]
    + [("scale", value) for value in ("f64", "float16", None, np.float16)],
)
def test_parts_that_do_not_exist_are_refused_by_name(part: str, value: object) -> None:
    with pytest.raises(LowbitvmError, match=f"^FORMAT_INVALID: Format {part} "):
        Format(**{"dtype": "u4", part: value})  # type: ignore[arg-type]


def test_bits_bias_and_stored_dtypes_are_those_of_the_parts() -> None:
    for fmt in FORMATS:
        assert fmt.bits == 4
        assert fmt.bias == {"u4": 0, "i4": 8}[fmt.dtype]
        assert fmt.scale_dtype == {"f16": dtypes.f16, "bf16": dtypes.bf16, "f32": dtypes.f32}[fmt.scale]
        stored = {None: None, "int": dtypes.f16, "float": fmt.scale_dtype, "offset": fmt.scale_dtype}[fmt.zero]
        assert fmt.zero_dtype == stored


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("code", ["u4", "i4"])
def test_f16_holds_every_integer_zero_point(code: str, scale: str) -> None:
    fmt = Format(code, zero="int", scale=scale)
    assert fmt.zero_dtype is not None
    zeros = range(fmt.code.low, fmt.code.high + 1)
    assert list(np.array(zeros).astype(fmt.zero_dtype.numpy)) == list(zeros)


@given(st.sampled_from(FORMATS), st.integers(0, 5000), st.integers(0, 100))
def test_groups_tile_in_features_or_the_error_names_both_numbers(fmt: Format, n: int, k: int) -> None:
    if isinstance(fmt.group, int) and k % fmt.group:
        with pytest.raises(LowbitvmError, match=f"^GROUP_INDIVISIBLE: .* {k} .* {fmt.group}"):
            fmt.groups(k)
    else:
        assert fmt.groups(k) * fmt.group_size(k) == k
        assert fmt.scales_shape(n, k) == ((1, 1) if fmt.group == "tensor" else (n, fmt.groups(k)))


def test_the_fix_for_an_indivisible_group_is_the_next_multiple() -> None:
    with pytest.raises(LowbitvmError, match="pad in_features to 256"):
        Format("u4", group=128).groups(129)
