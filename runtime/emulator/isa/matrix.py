"""Matrix fragments: ldmatrix, movmatrix and mma."""

from lowbitvm.runtime.emulator.decode import Decoder, Row
from lowbitvm.runtime.emulator.isa.form import expect_operands, items, qualifiers_of, special
from lowbitvm.runtime.emulator.syntax import Instruction


@special("ldmatrix")
def _ldmatrix(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    qualifiers = qualifiers_of(decoder, instruction)
    for word in ("sync", "aligned", "m8n8", "b16"):
        qualifiers.need(word)
    count = int(qualifiers.need("x1", "x2", "x4")[1])
    transposed = qualifiers.take("trans") is not None
    qualifiers.take("shared", "shared::cta")
    qualifiers.done()
    targets = items(instruction.operands[0])
    if len(targets) != count:
        raise decoder.error(f"ldmatrix.x{count} takes {count} registers, not {len(targets)}")
    base, offset, _ = decoder.address(instruction.operands[1])
    operands = [*(decoder.destination(target, "b32") for target in targets), base]
    return Row("ldmatrix", operands, count, (count, transposed), offset)


MMA_SHAPES = {"m16n8k8": 8, "m16n8k16": 16}


@special("mma")
def _mma(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 4)
    qualifiers = qualifiers_of(decoder, instruction)
    qualifiers.need("sync")
    qualifiers.need("aligned")
    k = MMA_SHAPES[qualifiers.need(*MMA_SHAPES)]
    qualifiers.need("row")
    qualifiers.need("col")
    if qualifiers.left not in (["f32", "f16", "f16", "f32"], ["f32", "bf16", "bf16", "f32"]):
        raise decoder.unimplemented()
    counts = (4, k // 4, k // 8, 4)
    operands = []
    for position, (operand, count) in enumerate(zip(instruction.operands, counts, strict=True)):
        parts = items(operand)
        if len(parts) != count:
            raise decoder.error(f"operand {position + 1} of the mma takes {count} registers, not {len(parts)}")
        kind = "f32" if position in (0, 3) else "b32"
        operands += [(decoder.source if position else decoder.destination)(part, kind) for part in parts]
    return Row("mma_f32", operands, 4, (k, qualifiers.left[1] == "bf16"))


@special("movmatrix")
def _movmatrix(decoder: Decoder, instruction: Instruction) -> Row:
    expect_operands(decoder, 2)
    if sorted(instruction.qualifiers) != ["aligned", "b16", "m8n8", "sync", "trans"]:
        raise decoder.unimplemented()
    to, source = instruction.operands
    return Row("movmatrix", [decoder.destination(to, "b32"), decoder.source(source, "b32")], 1)
