"""A comparison's results at once, each in a process of its own: for a GPU that one leaves idle, or for more cores."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from signal import SIGKILL
from typing import Any, NamedTuple

from prefect.client.orchestration import get_client

from recall.errors import BadInput, Failed
from recall.progress import console, track
from recall.settings import Settings

SAYS, SEE_DEBUG = "recall: ", " (--debug shows where)"
MADE = "made: "
PATIENCE = 30  # seconds that a process has to end by itself


class Missing(NamedTuple):
    """A result that one process makes: a method in a case, and the key that the results file will have of it."""

    label: str
    case: str
    key: str

    def __str__(self) -> str:
        return f"{self.label}, {self.case}"


def check_jobs(jobs: int, settings: Settings) -> None:
    """Raise BadInput where the processes would have more threads than there are cores: all of them crawl then."""
    if jobs > 1 and settings.runner.kind != "local":
        raise BadInput(
            f"--jobs {jobs} and runner.kind {settings.runner.kind} both start processes; take one of the two"
        )
    cores = len(os.sched_getaffinity(0))
    threads = settings.threads or cores
    if jobs > 1 and jobs * threads > cores:
        raise BadInput(
            f"--jobs {jobs} of {threads} threads each need {jobs * threads} cores and this machine has {cores}; "
            "take fewer, or --set threads=1"
        )


def make_at_once(missing: list[Missing], jobs: int, arguments: dict[str, Any], logs: Path) -> None:
    """Have `jobs` processes at a time make one result each, and append it to the results file.

    Each result is told as it is made. They work in one store, whose locks let the first make what several need, and on
    this process's Prefect server. Where one fails the others go on, unless `jobs` have failed and none is made.

    Args:
        arguments: those of the flow `make_one` but for the result, as JSON has them.
        logs: the folder for what each says; the log of one that did what it should is removed.

    Raises:
        BadInput, Failed: one of them did, in its sentence; all that the others made is in the file.
    """
    failed: dict[Missing, tuple[int, str]] = {}
    made = 0
    logs.mkdir(parents=True, exist_ok=True)
    with get_client(sync_client=True) as client:
        environment = os.environ | {"PREFECT_API_URL": str(client.api_url)}
    with closing(_ended(missing, jobs, arguments, logs, environment)) as ended:
        for result, code, log in track(ended, "results", total=len(missing)):
            if code:
                failed[result] = code, f"{_why(log, code)} ({log} has what it said)"
            else:
                made += 1
                log.unlink()
            if not made and len(failed) >= jobs:
                break
    if failed:
        first, (_, why) = next(iter(failed.items()))
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        said = f"{first}{others}: {why}; what was made is kept, so run the same again"
        raise BadInput(said) if {code for code, _ in failed.values()} == {2} else Failed(said)


def _ended(
    missing: list[Missing], jobs: int, arguments: dict[str, Any], logs: Path, environment: dict[str, str]
) -> Generator[tuple[Missing, int, Path]]:
    """Each result as its process ends, with its exit code and what it said; when this stops, they are ended too."""
    waiting, running = list(missing), dict[Missing, tuple[subprocess.Popen[bytes], Path]]()
    told = Counter[Missing]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                result = waiting.pop(0)
                log = logs / f"compare-{re.sub(r'[^A-Za-z0-9.=]+', '-', str(result))[:100]}-{result.key[:8]}.log"
                given = json.dumps(arguments | {"only": result})
                command = [sys.executable, "-m", "flows.compare_one", given, str(os.getpid())]
                with log.open("wb") as file:
                    process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
                running[result] = process, log
                console.print(f"started: {result}", highlight=False, markup=False, soft_wrap=True)
            time.sleep(0.2)
            for result, (process, log) in list(running.items()):
                code = process.poll()
                told[result] += _tell(log, told[result])
                if code is not None:
                    del running[result]
                    yield result, code, log
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _tell(log: Path, told: int) -> int:
    """Show the results that a process has made since it was looked at last; how many these are."""
    made = [line for line in log.read_text(errors="replace").splitlines(keepends=True) if line.startswith(MADE)]
    new = [line for line in made[told:] if line.endswith("\n")]
    for line in new:
        console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)
    return len(new)


def _why(log: Path, code: int) -> str:
    said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(SAYS)]
    if said:
        return said[-1].removeprefix(SAYS).replace(SEE_DEBUG, "")
    if code == -SIGKILL:
        return "it was killed, for lack of memory perhaps: take fewer --jobs"
    return f"it ended with {code} and no word"
