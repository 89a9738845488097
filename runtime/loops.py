"""Loops of machine code: nvdisasm's SASS and PTX, each as a list of instructions with their successors.

A loop is what compilers call a natural loop: an edge u -> h where every way from the entry to u leads through h, and
all instructions from which u can be reached without passing h. Blocks that ptxas puts behind the EXIT belong to the
loop that they come back to; code that is merely printed between two labels does not.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lowbitvm.errors import LowbitvmError

_SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<name>[A-Z][\w.]*)\s*(?P<operands>[^;]*);")
_SASS_TARGET = re.compile(r"`\((.+)\)\s*$")
_LABEL = re.compile(r"^(?P<label>[.$\w]+):")
_PTX = re.compile(r"^\s*(?:@(?P<guard>!?%\w+)\s+)?(?P<name>[a-z][\w.:]*)\s*(?P<operands>[^;]*);")
_PTX_FLOW = re.compile(r"bra(?:\.uni)?$")
MATRIX = re.compile(r"[HIBQDO]MMA|[HIQ]GMMA|UTC\w*MMA|mma\.sync|wgmma\.mma_async")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its text line (from 1), mnemonic with modifiers, the label it may jump to, what follows."""

    line: int
    name: str
    target: str | None
    falls_through: bool

    @property
    def is_matrix(self) -> bool:
        """Whether it is a matrix multiply-add of the tensor cores."""
        return MATRIX.match(self.name) is not None


@dataclass(frozen=True)
class Code:
    """Instructions in the order of the text; `labels` and `entries` (starts of functions) are indices of them."""

    instructions: list[Instruction]
    labels: dict[str, int]
    entries: list[int]

    def successors(self, index: int) -> list[int]:
        """Where execution may go on after an instruction."""
        instruction = self.instructions[index]
        after = [index + 1] if instruction.falls_through and index + 1 < len(self.instructions) else []
        jump = self.labels.get(instruction.target) if instruction.target is not None else None
        return after if jump is None else [*after, jump]


@dataclass(frozen=True)
class Nest:
    """The innermost loop that holds the matrix instructions and the loops around it.

    levels[0] are the instructions of that loop, levels[i] those of the i-th loop around it without the loop inside.
    """

    levels: tuple[tuple[Instruction, ...], ...]

    @property
    def matrix(self) -> int:
        """Matrix instructions of the innermost loop."""
        return sum(instruction.is_matrix for instruction in self.levels[0])

    def counts(self, trips: Sequence[float]) -> Counter[str]:
        """Instructions by mnemonic per turn of the innermost loop: of levels[i], 1 / (trips[0] ... trips[i-1]) each.

        trips[i] is how often the loop of level i turns each time that it is entered; missing ones count as 1.
        """
        total: Counter[str] = Counter()
        share = 1.0
        for level, instructions in enumerate(self.levels):
            for instruction in instructions:
                total[instruction.name] += share  # type: ignore[assignment]  # a Counter of fractions
            share /= trips[level] if level < len(trips) else 1
        return total


def read_sass(text: str) -> Code:
    """The instructions of nvdisasm's output.

    A branch with a guard or with a predicate among its operands also falls through; CALL comes back, EXIT and RET do
    not. The targets of BSSY, BREAK and WARPSYNC are places to meet, not jumps.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    entries: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if label := _LABEL.match(line.strip()):
            labels[label["label"]] = len(instructions)
            if label["label"].startswith(".text."):
                entries.append(len(instructions))
        elif found := _SASS.search(line):
            base = found["name"].partition(".")[0]
            target = _SASS_TARGET.search(found["operands"].strip()) if base in ("BRA", "JMP") else None
            always = found["guard"] is None and (target is None or target.start() == 0)
            ends = base in ("BRA", "JMP", "BRX", "EXIT", "RET", "KILL") and always
            instructions.append(Instruction(number, found["name"], target[1] if target else None, not ends))
    return Code(instructions, labels, entries or [0])


def read_ptx(text: str) -> Code:
    """The instructions of PTX text that has one instruction per line, as compilers write it."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    entries: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"\.(?:entry|func)\b", line):
            entries.append(len(instructions))
        elif label := _LABEL.match(line.strip()):
            labels[label["label"]] = len(instructions)
        elif found := _PTX.match(line):
            target = found["operands"].strip() if _PTX_FLOW.match(found["name"]) else None
            ends = found["guard"] is None and (target is not None or found["name"] in ("ret", "exit", "trap"))
            instructions.append(Instruction(number, found["name"], target, not ends))
    return Code(instructions, labels, entries or [0])


def natural_loops(code: Code) -> list[frozenset[int]]:
    """The natural loops as sets of instruction indices, loops with the same head united; the smallest first."""
    order, end = _walk(code)
    before: dict[int, list[int]] = {index: [] for index in order}
    for index in order:
        for after in code.successors(index):
            before[after].append(index)
    bodies: dict[int, set[int]] = {}
    for head in order:
        for last in before[head]:
            if not order[head] <= order[last] <= end[head]:
                continue  # a way to `last` that does not lead through `head`
            body = _body(before, head, last)
            if head in code.entries or not body & set(code.entries):
                bodies.setdefault(head, set()).update(body)
    return sorted((frozenset(body) for body in bodies.values()), key=len)


def _walk(code: Code) -> tuple[dict[int, int], dict[int, int]]:
    """Of a walk in depth from the entries: the place of each instruction that is reached, and of the last one that is
    reached through it."""
    order: dict[int, int] = {}
    end: dict[int, int] = {}
    waiting = [(entry, False) for entry in reversed(code.entries)]
    while waiting:
        index, done = waiting.pop()
        if done:
            end[index] = len(order) - 1
        elif index not in order and index < len(code.instructions):
            order[index] = len(order)
            waiting.append((index, True))
            waiting += [(after, False) for after in code.successors(index)]
    return order, end


def _body(before: dict[int, list[int]], head: int, last: int) -> set[int]:
    """What reaches `last` without passing `head`, and both; with an entry in it, `head` does not dominate `last`."""
    body = {head, last}
    waiting = [last] if last != head else []
    while waiting:
        for index in before[waiting.pop()]:
            if index not in body:
                body.add(index)
                waiting.append(index)
    return body


def main_nest(code: Code) -> Nest:
    """The innermost loop with matrix instructions (of several the one with the most) and the loops around it.

    Raises ARGUMENT_INVALID for code that has none.
    """
    loops = natural_loops(code)
    matrix = {index for index, instruction in enumerate(code.instructions) if instruction.is_matrix}
    working = [loop for loop in loops if loop & matrix]
    innermost = [loop for loop in working if not any(other < loop for other in working)]
    if not innermost:
        raise LowbitvmError(
            "ARGUMENT_INVALID",
            f"{len(code.instructions)} instructions with {len(matrix)} matrix instructions have no loop around one",
            "give the code of a matrix multiplication that loops over k",
        )
    loop = max(innermost, key=lambda candidate: len(candidate & matrix))
    levels = [loop]
    levels += [around for around in loops if around > loop]
    inside: frozenset[int] = frozenset()
    nest = []
    for level in levels:
        nest.append(tuple(code.instructions[index] for index in sorted(level - inside)))
        inside = level
    return Nest(tuple(nest))
