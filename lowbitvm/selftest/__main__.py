"""Runs the cases of one family in a process of its own, for `lowbitvm.selftest.running`: a line of JSON for each.

Its argument is a Job as JSON. Stops after a case that has lost the context.
"""

import json
import sys
from dataclasses import asdict

from lowbitvm.selftest.cases import cases
from lowbitvm.selftest.judging import LOST, judge
from lowbitvm.selftest.running import Job


def main(text: str) -> None:
    """The verdicts of a job's cases on stdout, as they come."""
    job = Job(**json.loads(text))
    chosen = [case for case in cases(job.target, job.quick, job.only) if case.family == job.family]
    for case in chosen[job.start :]:
        verdict = judge(case, job.device, job.target)
        print(json.dumps(asdict(verdict)), flush=True)
        if verdict.verdict == LOST:
            return


if __name__ == "__main__":
    main(sys.argv[1])
