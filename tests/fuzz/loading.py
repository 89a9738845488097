"""Mutated PTX that is only loaded: a PtxError or a module, and nothing else, at thousands of texts a second.

    python -m tests.fuzz --corpus build/fuzz/corpus --seconds 300 --load

A text is a module with a few instructions, some mutated, from the forms that the tests of legality know, from the
corpus, or branches; or a whole mutated case. Each way to fail, told apart by where the exception comes from, is kept
once.
"""

import random
import re
import time
import traceback
import zlib
from pathlib import Path

from lowbitvm.runtime import emulator
from tests.fuzz.corpus import Case
from tests.fuzz.mutation import ODD, TOKEN, mutated
from tests.legality_forms import instructions
from tests.legality_mutants import operands_of
from tests.legality_ptxas import module

INSTRUCTION = re.compile(r"^\s*([a-z][\w.:]*[^;{}]*(?:\{[^;{}]*\}[^;{}]*)*);", re.MULTILINE)
LARGEST = 20_000  # characters of a whole case
TARGETS = ("sm_75", "sm_80", "sm_90a", "sm_100a", "sm_120a")
WHOLE = 0.05  # of the texts are whole cases
MORE = 0.3  # of the others have one instruction more, of these as many one more
BRANCHES = ("bra L", "@%p1 bra L", "@!%p2 bra M", "bra M", "M: mov.u32 %r1, 1", "{ M: bra M", "}", "@%p1 ret", "exit")


def failure(text: str) -> str | None:
    """Where loading a text fails with anything but the documented error, or None."""
    try:
        emulator.load(text)
    except emulator.PtxError:
        pass
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__} in {Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}"
    return None


def single_instructions(corpus: list[Case]) -> list[str]:
    """Every form of the tests of legality, and the instructions of the corpus that differ in more than numbers."""
    found = {re.sub(r"\d+", "0", form): form for form in instructions()}
    for case in corpus:
        for match in INSTRUCTION.finditer(case.text):
            found.setdefault(re.sub(r"\d+", "0", match[1]), match[1])
    return sorted(found.values())


def text_of(singles: list[str], whole: list[str], words: list[str], rng: random.Random) -> str:
    """The next text to load."""
    if rng.random() < WHOLE:
        return mutated(rng.choice(whole), words, rng)
    lines = [_line(rng.choice(singles), words, rng)]
    while rng.random() < MORE:
        lines.append(rng.choice(BRANCHES) if rng.random() < 0.5 else _line(rng.choice(singles), words, rng))
    rng.shuffle(lines)
    return module([";\n".join(lines)], rng.choice(TARGETS), 9.3)


def _line(instruction: str, words: list[str], rng: random.Random) -> str:
    how = rng.random()
    if how < 0.05:
        return instruction
    if how < 0.7:
        return mutated(instruction, words, rng)
    name, _, tail = instruction.partition(" ")
    operands = operands_of(tail)
    if operands:
        operands[rng.randrange(len(operands))] = rng.choice(ODD)
    return f"{name} {', '.join(operands)}"


def work(corpus: list[Case], seed: int, seconds: float, folder: Path) -> int:
    """One worker: prints the number of texts now and then; the number of ways to fail."""
    rng = random.Random(seed)
    words = sorted({token for case in corpus for token in TOKEN.findall(case.text) if not token.isspace()})
    singles, whole = single_instructions(corpus), [case.text for case in corpus if len(case.text) <= LARGEST]
    failures: set[str] = set()
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        text = text_of(singles, whole, words, rng)
        found = failure(text)
        count += 1
        if found is not None and found not in failures:
            failures.add(found)
            kept = folder / f"failure{zlib.crc32(text.encode()):08x}.ptx"
            kept.write_text(text)
            print(f"{kept}: {found}", flush=True)
        if count % 1000 == 0:
            print(count, flush=True)
    print(f"{count} mutated texts, {len(failures)} failures")
    return len(failures)
