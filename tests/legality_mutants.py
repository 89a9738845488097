"""Instructions made from legal ones by one change each, most of them malformed: ptxas decides which."""

import itertools
import re
from collections.abc import Iterator, Sequence

# A register of another class, where an operand has one of the first.
OTHER_CLASSES = {"%r": ("%d", "%h", "%p", "%f"), "%d": ("%r", "%h", "%g"), "%h": ("%r", "%f"), "%f": ("%r", "%d", "%g"),
                 "%g": ("%d", "%f"), "%p": ("%r",), "%c": ("%h",), "%q": ("%d",)}  # fmt: skip
OTHER_TYPES = {"u32": ("u16", "s64", "f32"), "s32": ("b64", "pred"), "b32": ("b16", "u64"), "f32": ("f16", "f64"),
               "b64": ("b32",), "f16": ("f32", "bf16"), "b16": ("b8", "b32"), "u64": ("u8",), "x4": ("x3",),
               "f16x2": ("bf16",), "s8": ("s4",), "v4": ("v3", "v2")}  # fmt: skip


def operands_of(text: str) -> list[str]:
    """The operands between top-level commas."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "{[") - (character in "}]")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def mutants(instruction: str) -> Iterator[str]:
    guard, _, rest = instruction.rpartition("%p1 ") if instruction.startswith("@") else ("", "", instruction)
    if guard:
        return
    name, _, tail = rest.partition(" ")
    operands = operands_of(tail)
    yield from (f"{name} {', '.join(changed)}" for changed in _operand_mutants(operands))
    yield from (f"{'.'.join(changed)} {tail}" for changed in _name_mutants(name.split(".")))


def _operand_mutants(operands: list[str]) -> Iterator[list[str]]:
    if operands:
        yield operands[:-1]
        yield [*operands, operands[-1]]
    for n, operand in enumerate(operands):
        for changed in _operand_variants(operand):
            yield [*operands[:n], changed, *operands[n + 1 :]]


def _operand_variants(operand: str) -> Iterator[str]:
    found = re.search(r"(%[rdhfgpcq])(\d+)", operand)
    if found:
        for other in OTHER_CLASSES[found[1]]:
            yield operand[: found.start()] + other + found[2] + operand[found.end() :]
    if operand.startswith("{"):
        items = operands_of(operand[1:-1])
        yield "{" + ", ".join(items[:-1]) + "}" if len(items) > 1 else items[0]
        yield "{" + ", ".join([*items, items[-1]]) + "}"
    elif operand.startswith("["):
        yield operand[1:-1]
        yield operand[:-1] + "+4]"
        yield from ("[smem]", "[table]", "[number]", "[frame]")
    elif re.fullmatch(r"%[rdhf]\d+", operand):
        yield "{" + operand + "}"
        yield "7"
        yield "[" + operand + "]"
    elif re.fullmatch(r"\d+", operand):
        yield "%r9"
        yield "3000"
        yield "-1"
        yield "1.5"


def _name_mutants(words: Sequence[str]) -> Iterator[list[str]]:
    for n in range(1, len(words)):
        yield [*words[:n], *words[n + 1 :]]
        for other in OTHER_TYPES.get(words[n], ()):
            yield [*words[:n], other, *words[n + 1 :]]
    yield [*words, "bogus"]
    yield [words[0], "ftz", *words[1:]]
    yield [words[0], "sat", *words[1:]]
    yield [words[0], "rn", *words[1:]]
    for n in range(1, len(words) - 1):
        yield [*words[:n], words[n + 1], words[n], *words[n + 2 :]]


def sample(instructions: Sequence[str]) -> list[str]:
    """The mutants of one instruction of each shape: those that differ in types or modifiers alone give few new ones."""
    by_shape: dict[tuple[str, ...], list[str]] = {}
    for instruction in instructions:
        mnemonic = instruction.split(".")[0].split(" ")[0]
        shape = re.sub(r"\d+", "", " ".join(operands_of(instruction.partition(" ")[2])))
        by_shape.setdefault((mnemonic, shape), []).append(instruction)
    chosen = itertools.chain.from_iterable((group[0], group[-1]) for group in by_shape.values())
    return list(dict.fromkeys(mutant for instruction in chosen for mutant in mutants(instruction)))
