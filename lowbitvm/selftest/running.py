"""The self-test as a whole: a process for each family of cases, so that a lost context ends but one of them."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lowbitvm.selftest.cases import FAMILIES, Case, cases
from lowbitvm.selftest.judging import FAILED, LEFT_OUT, LOST, PASSED, Verdict

CHILD = (sys.executable, "-m", "lowbitvm.selftest")
STUCK = 300  # seconds without a verdict after which a kernel is taken to hang
MOST_LOST = 5  # processes of a family that may end before their time; the rest of its cases is then left out
NOT_RUN = "not run"


@dataclass(frozen=True)
class Job:
    """A family's cases from number `start` on; device: as LOWBITVM_DEVICE has it."""

    family: str
    device: str
    target: str
    quick: bool = False
    only: str = ""
    start: int = 0


def collect(job: Job, command: Sequence[str] = CHILD, console: Console | None = None) -> list[Verdict]:
    """The verdicts of all families' cases, in order; `job` has what they share."""
    chosen = cases(job.target, job.quick, job.only)
    families = [family for family in FAMILIES if any(case.family == family for case in chosen)]
    bar = Progress(console=console or Console(stderr=True), transient=True)
    with bar, ThreadPoolExecutor(max(1, min(len(families), (os.cpu_count() or 2) // 2))) as pool:
        task = bar.add_task(f"{len(chosen)} cases on {job.device}", total=len(chosen))

        def run(family: str) -> list[Verdict]:
            own = [case for case in chosen if case.family == family]
            return _family(replace(job, family=family), own, command, lambda: bar.advance(task))

        return [verdict for found in pool.map(run, families) for verdict in found]


def _family(job: Job, own: Sequence[Case], command: Sequence[str], advance: Callable[[], None]) -> list[Verdict]:
    """Starts processes until every case has its verdict, or too many have died."""
    found: list[Verdict] = []
    for _ in range(MOST_LOST):
        end = ""
        for line in _lines([*command, json.dumps(asdict(replace(job, start=len(found))))]):
            if isinstance(line, str):
                end = line
                break
            found.append(Verdict(**line))
            advance()
        if len(found) == len(own):
            return found
        if not found or found[-1].verdict != LOST or end:  # the process died in the next case
            case = own[len(found)]
            found.append(Verdict(case.family, case.name, LOST, why=end or "its process ended without a word"))
            advance()
    why = f"{MOST_LOST} processes of the family have died"
    return found + [Verdict(case.family, case.name, NOT_RUN, why=why) for case in own[len(found) :]]


def _lines(command: Sequence[str]) -> Iterator[dict[str, Any] | str]:
    """The verdicts that a process prints, and as a text what it died of, if it did."""
    lines: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        readers = [
            threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True),
            threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            while (line := lines.get(timeout=STUCK)) is not None:
                yield json.loads(line)
            status = process.wait()
        except queue.Empty:
            status = 0
            yield f"no verdict within {STUCK} s: a kernel hangs, or the machine is very slow"
        finally:
            process.kill()
            for reader in readers:
                reader.join()
    if status:
        last = next((line.strip() for line in reversed(errors) if line.strip()), "nothing on stderr")
        yield f"its process ended with status {status}: {last}"


def _pass_on(lines: Iterable[str], into: "queue.Queue[str | None]") -> None:
    for line in lines:
        into.put(line)
    into.put(None)


def as_json(job: Job, found: Sequence[Verdict], about: dict[str, Any]) -> dict[str, Any]:
    """What --out writes. about: versions and names."""
    return {
        "selftest": {
            "device": job.device,
            "target": job.target,
            "about": about,
            "cases": [asdict(one) for one in found],
        }
    }


def show(found: Sequence[Verdict], console: Console) -> None:
    """A row for each family, and a line for each case that did not pass."""
    table = Table("family", "cases", PASSED, FAILED, LEFT_OUT, "bits as emulated", "seconds", title="self-test")
    for family in dict.fromkeys(one.family for one in found):
        own = [one for one in found if one.family == family]
        compared = [one.bits for one in own if one.bits is not None]
        passed, left_out = (sum(one.verdict == verdict for one in own) for verdict in (PASSED, LEFT_OUT))
        equal = f"{sum(compared)} of {len(compared)}" if compared else "not compared"
        counts = map(str, (len(own), passed, len(own) - passed - left_out, left_out))
        table.add_row(family, *counts, equal, f"{sum(one.seconds for one in own):.1f}")
    console.print(table)
    for one in found:
        if one.verdict not in (PASSED, LEFT_OUT):
            console.print(f"{one.verdict}: {one.family}: {one.name}: {one.why}", markup=False, highlight=False)
    for family, why in dict.fromkeys((one.family, one.why) for one in found if one.verdict == LEFT_OUT):
        console.print(f"left out: {family}: {why}", markup=False, highlight=False)
    console.print(f"{sum(one.verdict == PASSED for one in found)} of {len(found)} cases passed")


def failed(found: Sequence[Verdict]) -> bool:
    """Whether something did not pass, or nothing was run."""
    return not any(one.verdict == PASSED for one in found) or any(
        one.verdict not in (PASSED, LEFT_OUT) for one in found
    )
