"""Loads, stores, atomics and asynchronous copies."""

from lowbitvm.runtime.emulator.decode import SPACES, Decoder, Row
from lowbitvm.runtime.emulator.isa.form import Qualifiers, expect_operands, items, number, special
from lowbitvm.runtime.emulator.syntax import TYPE_BITS, Instruction, Name


@special("ld", "ldu")
def _load(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    qualifiers = _memory_qualifiers(decoder, instruction)
    kind = qualifiers.type()
    count = {"v2": 2, "v4": 4, None: 1}[qualifiers.take("v2", "v4")]
    space = _space(qualifiers)
    qualifiers.done()
    targets = items(instruction.operands[0])
    if len(targets) != count:
        raise decoder.error(f"the load has {count} elements, the destination {len(targets)} registers")
    operands = [decoder.destination(target, kind, loose=True) for target in targets]
    base, offset, variable_space = decoder.address(instruction.operands[1])
    if space == 0 and variable_space == "shared":
        space = 2
    sign = 0
    if kind[0] == "s":
        first = "b16" if targets[0] == Name("_") else decoder.register(targets[0])[1]
        sign = 2 if TYPE_BITS[first] <= 16 else 1
    return Row("load", [*operands, base], count, (TYPE_BITS[kind] // 8, count, space, sign), offset)


@special("st")
def _store(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    qualifiers = _memory_qualifiers(decoder, instruction)
    kind = qualifiers.type()
    count = {"v2": 2, "v4": 4, None: 1}[qualifiers.take("v2", "v4")]
    space = _space(qualifiers)
    qualifiers.done()
    values = items(instruction.operands[1])
    if len(values) != count:
        raise decoder.error(f"the store has {count} elements, the source {len(values)} registers")
    base, offset, variable_space = decoder.address(instruction.operands[0])
    if space == 0 and variable_space == "shared":
        space = 2
    sources = [decoder.source(value, kind, loose=True) for value in values]
    return Row("store", [base, *sources], 0, (TYPE_BITS[kind] // 8, count, space), offset)


# In the order of the core's operations, atomics.c.
INTEGER_ATOMICS = ("add", "min.u", "max.u", "min.s", "max.s", "and", "or", "xor", "exch", "cas")
ATOMICS = (*INTEGER_ATOMICS, "add.f32", "add.f16x2", "add.bf16x2")


@special("atom", "red")
def _atomic(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = _memory_qualifiers(decoder, instruction)
    kind = qualifiers.type()
    space = _space(qualifiers)
    qualifiers.take("noftz")
    name = qualifiers.need("add", "min", "max", "and", "or", "xor", "exch", "cas")
    qualifiers.done()
    if name in ("min", "max"):
        name += f".{kind[0]}"
    elif kind[0] == "f" or kind.startswith("bf"):
        name += f".{kind}"
    if name not in ATOMICS or TYPE_BITS[kind] not in (32, 64):
        raise decoder.unimplemented()
    has_result = instruction.mnemonic == "atom"
    expect_operands(decoder, has_result + (3 if name == "cas" else 2))
    operands = [decoder.destination(instruction.operands[0], kind)] if has_result else []
    base, offset, _ = decoder.address(instruction.operands[has_result])
    operands += [base, *(decoder.source(x, kind) for x in instruction.operands[has_result + 1 :])]
    return Row("atomic", operands, int(has_result), (TYPE_BITS[kind] // 8, ATOMICS.index(name), space), offset)


CACHE_WORDS = frozenset(("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt"))
ORDER_WORDS = frozenset(("weak", "relaxed", "acquire", "release", "volatile", "gpu", "cta", "sys", "cluster"))


def _memory_qualifiers(decoder: Decoder, instruction: Instruction) -> Qualifiers:
    """Without cache hints and orderings: the emulator runs one warp at a time on coherent memory."""
    kept = [
        q for q in instruction.qualifiers if q not in CACHE_WORDS | ORDER_WORDS and not q.startswith(("L1::", "L2::"))
    ]
    return Qualifiers(decoder, kept)


def _space(qualifiers: Qualifiers) -> int:
    word = qualifiers.take("global", "shared", "shared::cta", "param", "param::entry", "const")
    return SPACES[word.split("::")[0]] if word else 0


@special("cp")
def _cp_async(decoder: Decoder, instruction: Instruction) -> Row:
    qualifiers = Qualifiers(decoder, [q for q in instruction.qualifiers if not q.startswith("L2::")])
    qualifiers.need("async")
    if qualifiers.take("commit_group"):
        qualifiers.done()
        return Row("cp_commit", [], 0)
    if qualifiers.take("wait_group"):
        qualifiers.done()
        return Row("cp_wait_group", [], 0, (number(decoder, instruction.operands[0]),))
    if qualifiers.take("wait_all"):
        qualifiers.done()
        return Row("cp_wait_all", [], 0)
    cache = qualifiers.need("ca", "cg")
    qualifiers.need("shared", "shared::cta")
    qualifiers.need("global")
    qualifiers.done()
    expect_operands(decoder, 3, 4)
    to, source, size = instruction.operands[:3]
    bytes_ = number(decoder, size)
    if bytes_ not in ((16,) if cache == "cg" else (4, 8, 16)):
        raise decoder.error(f"cp.async.{cache} cannot copy {bytes_} bytes")
    to_base, to_offset, _ = decoder.address(to)
    base, offset, _ = decoder.address(source)
    operands = [to_base, base]
    form = 0  # of the last operand: 1 is src-size, 2 ignore-src
    if len(instruction.operands) == 4:
        last = instruction.operands[3]
        declared = decoder.register_type(last.text, instruction.scope) if isinstance(last, Name) else None
        ignore = declared is not None and declared[1] == "pred"
        form = 2 if ignore else 1
        operands.append(decoder.source(last, "pred" if ignore else "u32"))
    return Row("cp_async", operands, 0, (bytes_, form, to_offset & 0xFFFFFFFF), offset)
