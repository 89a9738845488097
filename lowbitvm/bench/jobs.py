"""Running many jobs on all cores, with the progress on stderr; the tables and JSON go to stdout and files."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar() -> Progress:
    """A bar that says what runs, how far it is, and how long it took and will take; only on a terminal."""
    console = Console(stderr=True)
    counts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*counts, *times, console=console, transient=True, disable=not console.is_terminal)


def run_all(jobs: Sequence[Callable[[], Any]], description: str = "working") -> list[Any]:
    """The results of all jobs, each of them run in one of as many processes as there are cores."""
    with progress_bar() as progress:
        if len(jobs) == 1:
            return [job() for job in progress.track(jobs, description=description)]
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            running = [pool.submit(job) for job in jobs]
            for done in progress.track(as_completed(running), total=len(jobs), description=description):
                if done.exception() is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
            return [future.result() for future in running]
