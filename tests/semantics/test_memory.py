"""Loads and stores of every type and vector, which extend and truncate as the manual says, and stochastic rounding."""

import numpy as np
import pytest

from lowbitvm.runtime import emulator
from tests.semantics.formats import FORMATS, Number
from tests.semantics.harness import UNSIGNED, evaluate, patterns, signed

TYPES = [f"{kind}{bits}" for kind in "bus" for bits in (8, 16, 32, 64)] + ["f32", "f64"]
CLASS = {8: "%c", 16: "%h", 32: "%r", 64: "%d"}


@pytest.mark.parametrize("register", [8, 16, 32, 64])
@pytest.mark.parametrize("kind", TYPES)
def test_a_load_into_a_wider_register_extends_by_its_type(kind: str, register: int) -> None:
    """Bits and unsigned are zero-extended, signed sign-extended; floats take registers of their own width."""
    bits = int(kind[1:])
    if bits > register or (kind[0] == "f" and bits != register):
        return
    a = patterns(bits, 128, 1)
    target = f"{CLASS[register]}20"
    body = f"ld.param.u64 %d41, [p0]; mad.wide.u32 %d41, %r40, {bits // 8}, %d41; ld.global.{kind} {target}, [%d41];"
    text = f"{body} mov.b{register} {{x}}, {target};" if register > 8 else body.replace(target, "{x}")
    (got,) = evaluate(text, [a], str(register))
    wanted = [signed(x, bits) if kind[0] == "s" else x for x in a.tolist()]
    assert got.tolist() == [x & ((1 << register) - 1) for x in wanted]


@pytest.mark.parametrize("register", [8, 16, 32, 64])
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind[0] != "f"])
def test_a_store_from_a_wider_register_keeps_the_low_bits(kind: str, register: int) -> None:
    bits = int(kind[1:])
    if bits > register:
        return
    a = patterns(register, 128, 2)
    out = np.zeros(128, UNSIGNED[bits // 8])
    text = f""".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b) {{
        .reg .b8 %c<2>; .reg .b16 %h<2>; .reg .b32 %r<2>; .reg .b64 %d<4>; .reg .b32 %t; mov.u32 %t, %tid.x;
        ld.param.u64 %d1, [a]; mad.wide.u32 %d1, %t, {register // 8}, %d1;
        ld.param.u64 %d2, [b]; mad.wide.u32 %d2, %t, {bits // 8}, %d2;
        ld.global.b{register} {CLASS[register]}0, [%d1]; st.global.{kind} [%d2], {CLASS[register]}0; ret; }}"""
    emulator.load(text).launch("k", (1,), (128,), [a, emulator.output(out)])
    assert out.tolist() == [x & ((1 << bits) - 1) for x in a.tolist()]


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(
    ("bits", "count"), [(8, 2), (8, 4), (16, 2), (16, 4), (32, 2), (32, 4), (64, 2), (64, 4), (32, 8)]
)
def test_vectors_move_their_elements_in_order(bits: int, count: int, space: str) -> None:
    if space == "shared" and bits * count > 128:
        return  # 256 bits are for global memory alone
    size = bits * count // 8
    a = patterns(bits, 64 * count, 3)
    out = np.zeros_like(a)
    letter = CLASS[bits]
    registers = [f"{letter}{n}" for n in range(count)]
    forward, backward = "{" + ", ".join(registers) + "}", "{" + ", ".join(reversed(registers)) + "}"
    shared = (
        f"""st.shared.v{count}.b{bits} [%e], {forward}; ld.shared.v{count}.b{bits} {backward}, [%e];
        mov.b{bits} {letter}{count}, {registers[0]};"""
        if space == "shared" and bits > 8
        else ""
    )
    text = f""".version 8.8\n.target sm_100\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b) {{
        .reg .b8 %c<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .b64 %p<3>; .reg .b64 %e; .reg .b32 %t;
        .shared .align 32 .b8 tile[{64 * size}];
        mov.u32 %t, %tid.x; ld.param.u64 %p1, [a]; mad.wide.u32 %p1, %t, {size}, %p1;
        ld.param.u64 %p2, [b]; mad.wide.u32 %p2, %t, {size}, %p2; mov.u64 %e, tile; mad.wide.u32 %e, %t, {size}, %e;
        ld.global.v{count}.b{bits} {forward}, [%p1]; {shared}
        st.global.v{count}.b{bits} [%p2], {backward}; ret; }}"""
    emulator.load(text).launch("k", (1,), (64,), [a, emulator.output(out)])
    rows = a.reshape(64, count)
    assert np.array_equal(out.reshape(64, count), rows if shared else rows[:, ::-1])


# cvt.rs: random bits are added below the last kept bit, and the sum is cut off


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_stochastic_rounding_adds_the_random_bits_and_cuts(kind: str) -> None:
    """13 random bits for f16 and 16 for bf16 are as many as f32 has more: for normal results the sum is exact."""
    form = FORMATS[kind]
    dropped = 23 - form.mantissa
    rng = np.random.default_rng(4)
    a, b = (
        rng.integers(0, 2, 256) << 31 | rng.integers(127 - 10, 127 + 10, 256) << 23 | rng.integers(0, 1 << 23, 256)
        for _ in range(2)
    )
    bits = rng.integers(0, 1 << 32, 256)
    inputs = [x.astype(np.uint32) for x in (a, b, bits)]
    (got,) = evaluate(f"cvt.rs.{kind}x2.f32 {{x}}, {{a}}, {{b}}, {{c}};", inputs, "32")
    mask = (1 << dropped) - 1
    for n in range(256):
        for source, shift in ((a, 16), (b, 0)):
            total = (int(source[n]) & 0x7FFFFFFF) + (int(bits[n]) >> shift & mask)
            magnitude = FORMATS["f32"].decode(total & ~mask)
            wanted = form.encode(Number(bool(int(source[n]) >> 31), magnitude.magnitude))
            assert int(got[n]) >> shift & 0xFFFF == wanted, (hex(source[n]), hex(bits[n]), hex(got[n]))


@pytest.mark.parametrize("kind", ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1"])
def test_stochastic_rounding_to_small_floats_gives_a_neighbour(kind: str) -> None:
    """Without random bits it rounds toward zero; with all of them up, unless what is cut is almost nothing."""
    form = FORMATS[kind]
    width, f32 = (4 if kind == "e2m1" else 8), FORMATS["f32"]
    limit = float(form.decode(form.largest).value)
    values = np.random.default_rng(5).uniform(-limit, limit, (4, 128)).astype(np.float32)
    values[:, :16] = np.round(values[:, :16])
    inputs = [*values.view(np.uint32)]
    for bits, mode in ((0, "rz"), (0xFFFFFFFF, "away")):
        body = f"cvt.rs.satfinite.{kind}x4.f32 {{x}}, {{{{a}}, {{b}}, {{c}}, {{d}}}}, {{e}};"
        (got,) = evaluate(body, [*inputs, np.full(128, bits, np.uint32)], str(4 * width))
        for place, array in enumerate(inputs):
            for n, code in enumerate(array.tolist()):
                have = int(got[n]) >> width * (3 - place) & ((1 << width) - 1)
                number = f32.decode(code)
                low = form.encode(number, "rz", saturate=True)
                high = form.encode(number, "rm" if number.negative else "rp", saturate=True)
                assert have == low if mode == "rz" else have in (low, high), (kind, hex(code), hex(have))
                if mode == "away" and low != high and (code & 0xFFFF) == 0:
                    assert have == high
