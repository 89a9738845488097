"""How an instruction's words may be ordered and combined, and what its constants may be, where ptxas checks that.

The words of each instruction themselves are the business of `isa`. Every row below is tested against ptxas.
"""

import functools
import re
from dataclasses import dataclass

from lowbitvm.runtime.emulator.legality import has_words
from lowbitvm.runtime.emulator.syntax import Immediate, Instruction, Name, Pair

# What the words after the mnemonic start with: those that belong to the name stand before all others.
_NAMES = {
    "bar": r"(cta\.)?(sync|arrive|red)\b(?!.*\b(cta|warp)\b)|warp\.sync\b",
    "barrier": r"(cta\.)?((aligned\.)?sync|arrive|red)\b(?!.*\b(cta|cluster)\b)|cluster\.(arrive|wait)\b",
    "cp": r"async(\.(commit_group|wait_group|wait_all|mbarrier\.arrive)\b"
    r"|(?!.*\b(commit_group|wait_group|wait_all|mbarrier)\b))",
    "createpolicy": r"(fractional|range|cvt)\b",
    "cvt": r"pack\b|(?!.*\bpack\b)",
    "fence": r"proxy\b|(?!.*\bproxy\b)",
    "griddepcontrol": r"(launch_dependents|wait)$",
    "mad": r"(lo|hi|wide)\b|(?!.*\b(lo|hi|wide)\b)",
    "mad24": r"(lo|hi)\b",
    "madc": r"(lo|hi)\b",
    "mbarrier": r"(init|inval|pending_count|expect_tx|complete_tx|arrive(_drop)?(\.expect_tx\b|(?!.*\bexpect_tx\b))"
    r"|(test_wait|try_wait)(\.parity\b|(?!.*\bparity\b)))\b",
    "membar": r"proxy\b|(?!.*\bproxy\b)",
    "pmevent": r"(mask)?$",
    "setmaxnreg": r"(inc|dec)\.",
    "shf": r"(l|r)\b",
    "wmma": r"(load\.[abc]|store\.d|mma)\b",
}
NAMES = {mnemonic: re.compile(pattern) for mnemonic, pattern in _NAMES.items()}

# Words that may stand once; .sat alone may be repeated.
ROUNDINGS = ("rn", "rz", "rm", "rp", "rna", "rs", "rni", "rzi", "rmi", "rpi")
ONCE = frozenset((*ROUNDINGS, "ftz", "relu", "approx", "full", "NaN", "abs", "xorsign", "noftz", "satfinite", "cc"))
# A memory order says for which threads, and the other way.
ORDERS = frozenset(("relaxed", "acquire", "release"))
SCOPES = frozenset(("cta", "cluster", "gpu", "sys"))
SCOPED = ("ld", "st", "mbarrier")


# Which destinations may be _: all of it, the first or the second of a pair.
SINKS = {"atom": "all", "mbarrier.arrive": "all", "mbarrier.arrive_drop": "all", "setp": "all first second"}
SINKS |= {"lop3": "first", "elect": "first", "match": "first second", "shfl": "second"}


@dataclass(frozen=True)
class Limit:
    """The constants that operand number `operand` may be in instructions with all `words`, as in legality.Rule."""

    mnemonics: str
    words: str
    operand: int
    values: range


BARRIERS, THREADS = range(16), range(0, 1 << 32, 32)
ARRIVALS = range(1, 1 << 63)
LIMITS = (
    Limit("bar barrier", "sync|arrive !warp", 0, BARRIERS),
    Limit("bar barrier", "sync|arrive", 1, THREADS),
    Limit("bar barrier", "red", 1, BARRIERS),
    Limit("bar barrier", "red operands=4", 2, THREADS),
    Limit("pmevent", "!mask", 0, range(16)),
    Limit("pmevent", "mask", 0, range(1 << 16)),
    Limit("setmaxnreg", "", 0, range(24, 257, 8)),
    Limit("applypriority discard", "", 1, range(128, 129)),
    Limit("mbarrier", "init", 1, range(1, 1 << 20)),
    Limit("mbarrier", "arrive|arrive_drop !expect_tx operands=3", 2, ARRIVALS),
    Limit("mbarrier", "parity", 2, range(2)),
)


def malformed(instruction: Instruction) -> str | None:
    """What is wrong with the order of an instruction's words or with its constants, or None."""
    name, words = instruction.name, instruction.qualifiers
    problem = _misplaced(instruction.mnemonic, words)
    if problem is not None:
        return f"{name}: {problem}"
    if _lost(instruction):
        return f"{name} has to have a destination, not _"
    present = frozenset((*words, f"operands={len(instruction.operands)}"))
    for limit in _limits(instruction.mnemonic, present):
        operand = instruction.operands[limit.operand] if limit.operand < len(instruction.operands) else None
        if isinstance(operand, Immediate) and not (isinstance(operand.value, int) and operand.value in limit.values):
            return f"operand {limit.operand + 1} of {name} is {operand.value}, not {_described(limit.values)}"
    return None


@functools.lru_cache(maxsize=4096)
def _misplaced(mnemonic: str, words: tuple[str, ...]) -> str | None:
    if mnemonic in NAMES and not NAMES[mnemonic].match(".".join(words)):
        return "the words of the name are missing or do not come first"
    twice = next((word for word in words if word in ONCE and words.count(word) > 1), None)
    if twice is not None:
        return f".{twice} stands twice"
    if mnemonic in SCOPED and ORDERS.isdisjoint(words) != SCOPES.isdisjoint(words):
        return "an order of memory takes a scope, and a scope an order"
    return None


def _lost(instruction: Instruction) -> bool:
    """Whether a destination is _ that may not be."""
    to, nowhere = (instruction.operands or (None,))[0], Name("_")
    if isinstance(to, Pair):
        places = {"first": to.first == nowhere, "second": to.second == nowhere}
    else:
        places = {"all": to == nowhere}
    if not any(places.values()):
        return False
    start = f"{instruction.mnemonic}.{instruction.qualifiers[0]}" if instruction.qualifiers else ""
    allowed = SINKS.get(start, SINKS.get(instruction.mnemonic, "")).split()
    return (
        any(lost and place not in allowed for place, lost in places.items()) or len(places) == sum(places.values()) == 2
    )


@functools.lru_cache(maxsize=4096)
def _limits(mnemonic: str, present: frozenset[str]) -> tuple[Limit, ...]:
    return tuple(
        limit
        for limit in LIMITS
        if mnemonic in limit.mnemonics.split() and all(has_words(present, word) for word in limit.words.split())
    )


def _described(values: range) -> str:
    step = f" and a multiple of {values.step}" if values.step > 1 else ""
    return f"within {values[0]}..{values[-1]}{step}" if len(values) > 1 else str(values[0])
