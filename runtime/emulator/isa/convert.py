"""cvt: conversions between number formats."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import (
    FLOAT_KINDS,
    Qualifiers,
    expect_operands,
    items,
    qualifiers_of,
    special,
)
from lowbitvm.runtime.emulator.kinds import KIND_BITS
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Instruction, Name, Operand

# numbers.h
ROUNDING = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rna": 4, "rs": 5}
INTEGRAL = {"rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}
FLAGS = {"sat": 1, "ftz": 2, "relu": 8, "satfinite": 16}
TO_INTEGRAL = 4
FORMATS = FLOAT_KINDS | {"tf32": 4, "e4m3": 5, "e5m2": 6, "e2m1": 7, "e2m3": 8, "e3m2": 9, "ue8m0": 10}
FORMATS |= {"s2f6": 11}

# Several elements in a register: the format of one, how many, the kind of register.
PACKED = {"f16x2": ("f16", 2, "f16x2"), "bf16x2": ("bf16", 2, "raw32"), "e2m1x2": ("e2m1", 2, "raw8")}
PACKED |= {"e2m1x4": ("e2m1", 4, "raw16"), "ue8m0x2": ("ue8m0", 2, "raw16")}
PACKED |= {
    f"{kind}x{count}": (kind, count, f"raw{8 * count}") for kind in ("e4m3", "e5m2", "e2m3", "e3m2") for count in (2, 4)
}
PACKED |= {"s2f6x2": ("s2f6", 2, "raw16")}
NARROW = frozenset(("e4m3x2", "e5m2x2", "e2m3x2", "e3m2x2", "e2m1x2"))
TO_NARROW = frozenset(("rn.satfinite", "rn.relu.satfinite"))
TO_SCALE = frozenset(("rz", "rp", "rz.satfinite", "rp.satfinite"))
FROM_NARROW = frozenset(("rn", "rn.relu"))
TO_BF16 = FROM_NARROW | TO_NARROW
TO_HALF = frozenset(r + extra for r in ("rn", "rz", "rs") for extra in ("", ".relu", ".satfinite", ".relu.satfinite"))
STOCHASTIC = frozenset(("rs.satfinite", "rs.relu.satfinite"))

# Packed conversions and the modifiers each may have (in this order: rounding, relu, satfinite).
FORMS: dict[tuple[str, str], frozenset[str]] = {("f32", half): TO_HALF for half in ("f16x2", "bf16x2")}
FORMS |= {(source, narrow): TO_NARROW for narrow in NARROW for source in ("f32", "f16x2", "bf16x2")}
FORMS |= {(narrow, "f16x2"): FROM_NARROW for narrow in NARROW}
FORMS |= {(narrow, "bf16x2"): TO_BF16 for narrow in (*NARROW, "s2f6x2")}
FORMS |= {(source, "s2f6x2"): TO_NARROW for source in ("f32", "bf16x2")}
FORMS |= {("f32", kind): STOCHASTIC for kind in PACKED if kind.endswith("x4")}
FORMS |= {("f32", "ue8m0x2"): TO_SCALE, ("bf16x2", "ue8m0x2"): TO_SCALE, ("ue8m0x2", "bf16x2"): frozenset(("rn",))}
# With scale factors: what the core does with them.
SCALED = {(narrow, "bf16x2"): 1 for narrow in (*NARROW, "s2f6x2")} | {(s, "s2f6x2"): 2 for s in ("f32", "bf16x2")}
TO_TF32 = frozenset(("rna", "rna.satfinite", *(name for name in TO_HALF if not name.startswith("rs"))))


@special("cvt", operands="DS DSS DSSS DWS")
def _cvt(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = qualifiers_of(decoder, instruction)
    if qualifiers.take("pack"):
        return _pack(decoder, instruction, qualifiers)
    if len(qualifiers.left) < 2:
        raise decoder.unimplemented()
    source, target = qualifiers.left.pop(), qualifiers.left.pop()
    if source in PACKED or target in PACKED:
        return _packed(decoder, instruction, source, target, qualifiers)
    if target == "tf32":
        return _tf32(decoder, instruction, source, qualifiers)
    if source not in TYPE_BITS or target not in TYPE_BITS:
        raise decoder.unimplemented()
    return _plain(decoder, instruction, source, target, qualifiers)


def _modifiers(decoder: Decoder, qualifiers: Qualifiers, allowed: frozenset[str]) -> tuple[int, int]:
    """The rounding and the flags of one of the `allowed` combinations."""
    rounding = qualifiers.need(*ROUNDING)
    names = [rounding, *(name for name in ("relu", "satfinite") if qualifiers.take(name))]
    qualifiers.done()
    if ".".join(names) not in allowed:
        raise decoder.unimplemented()
    return ROUNDING[rounding], sum(FLAGS[name] for name in names[1:])


def _packed(decoder: Decoder, instruction: Instruction, source: str, target: str, qualifiers: Qualifiers) -> Row:
    scaled = SCALED.get((source, target), 0) if qualifiers.take("scaled::n2::ue8m0") else 0
    if not scaled and "scaled::n2::ue8m0" in instruction.qualifiers:
        raise decoder.unimplemented()
    rounding, flags = _modifiers(decoder, qualifiers, FORMS.get((source, target), frozenset()))
    element, count, _ = PACKED[target]
    register = {name: kind for name, (_, _, kind) in PACKED.items()} | {"f32": "f32"}
    to, *sources = instruction.operands
    if source == "f32" and count == 4:
        expect_operands(decoder, 3)
        sources = [*items(sources[0]), sources[1]]
    random = rounding == ROUNDING["rs"]
    need = (count if source == "f32" else 1) + random + (scaled > 0)
    if len(sources) != need:
        raise decoder.error(f"this cvt takes {need} sources, not {len(sources)}")
    kinds = [register[source]] * (need - random - (scaled > 0)) + ["raw32"] * random + ["raw16"] * (scaled > 0)
    if scaled and not isinstance(sources[-1], Name):
        raise decoder.error("a scale factor is a register")
    loose = (source, target) == ("f32", "f16x2")
    operands = [decoder.destination(to, register[target], loose)]
    operands += [
        decoder.source(operand, kind, loose and kind == "f32") for operand, kind in zip(sources, kinds, strict=True)
    ]
    wider = any(wide for _, wide in operands)
    if source == "f32" and target in ("f16x2", "bf16x2") and (rounding, flags) == (0, 0) and not wider:
        return Row(f"cvt_{target}_f32", operands, 1)
    if source in NARROW and not flags and not scaled:
        format_number, width = FORMATS[PACKED[source][0]], KIND_BITS[register[source]] // 2
        return Row(f"cvt_{target}_narrow", operands, 1, (format_number, width))
    from_format, spacing = FORMATS["f32"], 0
    if source != "f32":
        from_format, spacing = FORMATS[PACKED[source][0]], KIND_BITS[register[source]] // 2
    width = KIND_BITS[register[target]] // count
    head = from_format | FORMATS[element] << 8 | count << 16 | width << 24
    return Row("cvt_packed", operands, 1, (head, rounding | flags << 8, spacing | scaled << 8))


def _tf32(decoder: Decoder, instruction: Instruction, source: str, qualifiers: Qualifiers) -> Row:
    expect_operands(decoder, 2)
    rounding, flags = _modifiers(decoder, qualifiers, TO_TF32 if source == "f32" else frozenset())
    operands = [decoder.destination(instruction.operands[0], "raw32"), decoder.source(instruction.operands[1], "f32")]
    return Row("cvt_float_float", operands, 1, (FORMATS["f32"] | FORMATS["tf32"] << 16, rounding | flags << 8))


def _pack(decoder: Decoder, instruction: Instruction, qualifiers: Qualifiers) -> Row:
    qualifiers.need("sat")
    kind, *rest = qualifiers.left or [""]
    bits = {"16": 16, "8": 8, "4": 4, "2": 2}.get(kind[1:], 0) if kind[:1] in ("s", "u") else 0
    if not bits or rest != (["s32"] if bits == 16 else ["s32", "b32"]):
        raise decoder.unimplemented()
    expect_operands(decoder, 3 if bits == 16 else 4)
    to, *sources = instruction.operands
    operands = [decoder.destination(to, "u32", loose=True)]
    operands += [decoder.source(x, k, loose=True) for x, k in zip(sources, ("s32", "s32", "b32"), strict=False)]
    return Row("cvt_pack", operands, 1, (bits, kind[0] == "s"))


def _plain(decoder: Decoder, instruction: Instruction, source: str, target: str, qualifiers: Qualifiers) -> Row:
    expect_operands(decoder, 2)
    for kind in (source, target):
        if kind not in FLOAT_KINDS and kind[0] not in "us":
            raise decoder.unimplemented()
    flags = sum(bit for name, bit in FLAGS.items() if qualifiers.take(name))
    rounding_name = qualifiers.take("rn", "rz", "rm", "rp", *INTEGRAL)
    qualifiers.done()
    rounding = (ROUNDING | INTEGRAL)[rounding_name] if rounding_name else 0
    _check_rounding(decoder, source, target, rounding_name)
    if flags & (FLAGS["relu"] | FLAGS["satfinite"]) and (source != "f32" or target not in ("f16", "bf16")):
        raise decoder.unimplemented()
    if flags & FLAGS["ftz"] and ("f32" not in (source, target) or flags & (FLAGS["relu"] | FLAGS["satfinite"])):
        raise decoder.unimplemented()
    if flags & FLAGS["sat"] and not _saturates(source, target):
        raise decoder.error(f"cvt.sat.{target}.{source} is not legal: nothing can saturate, or it is not offered")
    if rounding_name in INTEGRAL and target in FLOAT_KINDS:
        flags |= TO_INTEGRAL
    loose = "bf16" not in (source, target)  # ptxas takes wider registers, but not in conversions of bf16
    to = decoder.destination(instruction.operands[0], target, loose)
    core, mod = _conversion(decoder, source, target, rounding, flags, instruction.operands[0])
    return Row(core, [to, decoder.source(instruction.operands[1], source, loose)], 1, mod)


def _saturates(source: str, target: str) -> bool:
    """Whether .sat is offered: to floats but bf16, and to integers that do not hold every value of the source."""
    if target in FLOAT_KINDS:
        return "bf16" not in (source, target)
    if source in FLOAT_KINDS:
        return source != "bf16"
    room = TYPE_BITS[target] - (target[0] == "s") - TYPE_BITS[source] + (source[0] == "s")
    return room < 0 or (source[0] == "s" and target[0] == "u")


def _check_rounding(decoder: Decoder, source: str, target: str, rounding: str | None) -> None:
    """A conversion that rounds must say how, to an integral value by the roundings that end in i."""
    both = source in FLOAT_KINDS and target in FLOAT_KINDS
    if source in FLOAT_KINDS and target not in FLOAT_KINDS:
        legal = rounding in INTEGRAL
    elif source not in FLOAT_KINDS and target not in FLOAT_KINDS:
        legal = rounding is None
    elif both and source == target:
        legal = rounding is None or rounding in INTEGRAL
    elif both and (TYPE_BITS[source] < TYPE_BITS[target]):
        legal = rounding is None or (source == "bf16" and rounding not in INTEGRAL)
    elif both and TYPE_BITS[source] == TYPE_BITS[target]:  # f16 and bf16: ptxas takes none for .rn
        legal = rounding in (None, "rn", "rz", "rm", "rp")
    else:
        legal = rounding in ("rn", "rz", "rm", "rp")
    if not legal:
        given = f"the rounding .{rounding}" if rounding else "no rounding"
        raise decoder.error(f"cvt.{target}.{source} with {given} is not legal")


def _conversion(
    decoder: Decoder, source: str, target: str, rounding: int, flags: int, to: Operand
) -> tuple[str, tuple[int, ...]]:
    """The core's conversion and its mod words, see convert.c."""
    halves = ("f16", "bf16")
    if (rounding, flags) == (0, 0) and "f32" in (source, target) and (source in halves or target in halves):
        return f"cvt_{target}_{source}", ()
    register_bits = 64 if to == Name("_") else max(TYPE_BITS[decoder.register(to)[1]], 16)
    low = FLOAT_KINDS[source] if source in FLOAT_KINDS else TYPE_BITS[source] | (source[0] == "s") << 8
    high = FLOAT_KINDS[target] if target in FLOAT_KINDS else TYPE_BITS[target] | (target[0] == "s") << 8
    names = ["float" if kind in FLOAT_KINDS else "int" for kind in (source, target)]
    core = "cvt_" + "_".join(names)
    if core == "cvt_int_int":
        simple = not flags and register_bits == max(TYPE_BITS[target], 16) and _simple(source, target)
        return simple or core, (low | high << 16, flags & 1, register_bits)
    return SIMPLE.get((source, target, rounding, flags), core), (low | high << 16, rounding | flags << 8, register_bits)


SIMPLE = {
    ("s32", "f32", 0, 0): "cvt_f32_s32",
    ("u32", "f32", 0, 0): "cvt_f32_u32",
    ("f32", "s32", INTEGRAL["rzi"], 0): "cvt_s32_f32",
    ("f32", "s32", INTEGRAL["rni"], 0): "cvt_s32_f32_rni",
}


def _simple(source: str, target: str) -> str | None:
    """A vectorised operation that does the same, where there is one."""
    bits, wanted = TYPE_BITS[source], TYPE_BITS[target]
    if (bits, wanted) in ((8, 32), (16, 32), (32, 64)):
        return f"extend_{source}_b{wanted}"
    if (bits, wanted) in ((64, 32), (32, 16)):
        return f"truncate_b{bits}_b{wanted}"
    return f"mov_b{bits}" if bits == wanted and bits > 8 else None
