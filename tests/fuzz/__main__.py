"""Fuzzes the emulator with mutated PTX: a PtxError, a finding or a clean run, and nothing else.

    python -m tests.fuzz --corpus build/fuzz/corpus --seconds 300

Each worker process mutates a few tokens of a case of the corpus and launches it with other schedules and checks. It is
a failure if the process dies, takes more than a minute for one case, raises anything but the documented errors, writes
outside the arrays it was given or into one that is read-only, or computes something else in an untouched kernel later.
Failing texts are left beside the corpus, and the exit status is 1.
"""

import argparse
import os
import random
import subprocess
import sys
import time
import traceback
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbitvm.errors import LowbitvmError
from lowbitvm.runtime import emulator
from tests.fuzz import loading
from tests.fuzz.corpus import Array, Case, load_corpus
from tests.fuzz.mutation import TOKEN, mutated

GUARD = 4096  # bytes on either side of an array
STEP_LIMIT = 50_000
HANGS_AFTER = 60  # seconds
BETWEEN_CONTROLS = 500  # cases


@dataclass
class Guarded:
    """An array between bytes that nothing may write."""

    memory: Array
    array: Array
    writable: bool
    before: bytes

    @classmethod
    def of(cls, array: Array, writable: bool) -> "Guarded":
        memory = np.full(array.nbytes + 2 * GUARD, 0x5A, np.uint8)
        inner = memory[GUARD : GUARD + array.nbytes].view(array.dtype).reshape(array.shape)
        inner[...] = array
        inner.flags.writeable = writable
        return cls(memory, inner, writable, array.tobytes())

    def check(self) -> None:
        edges = np.concatenate([self.memory[:GUARD], self.memory[self.memory.size - GUARD :]])
        assert (edges == 0x5A).all(), "bytes outside an array were written"
        assert self.writable or self.array.tobytes() == self.before, "a read-only array was written"


def options_of(rng: random.Random) -> dict[str, Any]:
    return {
        "checks": rng.choice(("all", "all", "none", {"race"}, {"copy", "undefined"})),
        "on_finding": rng.choice(("raise", "collect")),
        "numerics": rng.choice(("hw", "hw", "bound", "permute")),
        "schedule": rng.choice(("random", "round_robin", "adversarial")),
        "copies": rng.choice(("late", "early", "random")),
        "seed": rng.randrange(2**32),
        "step_limit": STEP_LIMIT,
    }


def launch(case: Case, text: str, options: dict[str, Any]) -> list[Guarded]:
    """Load and run one text; documented errors are fine."""
    guarded, args = [], []
    for value in case.args:
        if isinstance(value, tuple):
            guarded.append(Guarded.of(value[0], value[1]))
            args.append(emulator.output(guarded[-1].array) if value[2] else guarded[-1].array)
        else:
            args.append(value)
    grid = tuple(min(extent, 2) for extent in case.grid)
    try:
        module = emulator.load(text)
        module.launch(case.entry, grid, case.block, args, shared=case.shared, arch=case.arch, **options)
    except (emulator.PtxError, emulator.EmulatorError, LowbitvmError):
        pass
    for buffer in guarded:
        buffer.check()
    return guarded


def work(corpus: list[Case], seed: int, seconds: float, current: Path) -> int:
    """One worker: prints the number of cases now and then; leaves what it is trying in `current`."""
    rng = random.Random(seed)
    vocabulary = sorted({token for case in corpus for token in TOKEN.findall(case.text) if not token.isspace()})
    control, plain = rng.choice(corpus), {"checks": "all", "on_finding": "collect", "step_limit": STEP_LIMIT}
    expected = [buffer.array.tobytes() for buffer in launch(control, control.text, plain)]
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        case, options = rng.choice(corpus), options_of(rng)
        text = mutated(case.text, vocabulary, rng)
        current.write_text(
            f"// {case.entry} {case.grid} {case.block} shared {case.shared} {case.arch} {options}\n{text}"
        )
        launch(case, text, options)
        count += 1
        if count % 20 == 0:
            print(count, flush=True)
        if count % BETWEEN_CONTROLS == 0:
            again = [buffer.array.tobytes() for buffer in launch(control, control.text, plain)]
            assert again == expected, "an untouched kernel computes something else than at first"
    print(count, flush=True)
    return 0


@dataclass
class Worker:
    """A child process with what it tries at the moment."""

    process: "subprocess.Popen[str]"
    log: Path
    current: Path
    progress: str = ""
    since: float = 0

    def stuck(self) -> bool:
        text = self.log.read_text()
        if text != self.progress:
            self.progress, self.since = text, time.monotonic()
        return time.monotonic() - self.since > HANGS_AFTER

    def cases(self) -> int:
        numbers = [line for line in self.log.read_text().split() if line.isdigit()]
        return int(numbers[-1]) if numbers else 0


def start(folder: Path, number: int, seed: int, seconds: float) -> Worker:
    current, log = folder / f"current{number}.ptx", folder / f"worker{number}.log"
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", "--corpus", str(folder / "corpus")]
    command += ["--seconds", str(seconds), "--seed", str(seed), "--child", str(current)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True)
    return Worker(process, log, current, since=time.monotonic())


def supervise(folder: Path, workers: int, seed: int, seconds: float) -> int:
    """Keep `workers` processes busy until the time is over; the number of failures."""
    end, failures, cases, started = time.monotonic() + seconds, 0, 0, 0
    running: list[Worker] = []
    while running or time.monotonic() < end:
        while len(running) < workers and time.monotonic() < end:
            running.append(start(folder, started % (4 * workers), seed + started, end - time.monotonic()))
            started += 1
        time.sleep(0.5)
        for worker in list(running):
            if worker.process.poll() is None and not worker.stuck():
                continue
            hung = worker.process.poll() is None
            worker.process.kill()
            status = worker.process.wait()
            cases += worker.cases()
            running.remove(worker)
            if hung or status:
                failures += 1
                kept = folder / f"failure{zlib.crc32(worker.current.read_bytes()):08x}.ptx"
                worker.current.replace(kept)
                what = "hangs" if hung else f"ends with status {status}"
                print(f"{kept} {what}:\n{worker.log.read_text()[-3000:]}", flush=True)
    print(f"{cases} mutated programs, {failures} failures")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzes the emulator with mutated PTX.")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0 if "CI" in os.environ else int(time.time()))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--load", action="store_true", help="only load the mutated programs, in this process")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.load:
        print(f"seed {chosen.seed}")
        folder = chosen.corpus.parent
        return min(loading.work(load_corpus(chosen.corpus), chosen.seed, chosen.seconds, folder), 1)
    if chosen.child is None:
        print(f"seed {chosen.seed}")
        return min(supervise(chosen.corpus.parent, chosen.workers, chosen.seed, chosen.seconds), 1)
    try:
        return work(load_corpus(chosen.corpus), chosen.seed, chosen.seconds, chosen.child)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        return 1


if __name__ == "__main__":
    sys.exit(main())
