"""A comparison's methods at once, each in a process of its own: for a GPU that one leaves idle, or for more cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client

from recall.errors import BadInput, Failed
from recall.progress import track
from recall.settings import Settings

SAYS = "recall: "


def check_jobs(jobs: int, settings: Settings) -> None:
    """Raise BadInput where the processes would have more threads than there are cores: all of them crawl then."""
    if jobs > 1 and settings.runner.kind != "local":
        raise BadInput(
            f"--jobs {jobs} and runner.kind {settings.runner.kind} both start processes; take one of the two"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = settings.threads or cores
    if jobs > 1 and jobs * threads > cores:
        raise BadInput(
            f"--jobs {jobs} of {threads} threads each need {jobs * threads} cores and this machine has {cores}; "
            "take fewer, or --set threads=1"
        )


def make_at_once(labels: list[str], jobs: int, arguments: dict[str, Any]) -> None:
    """Have `jobs` processes at a time make what the results file lacks of one label each, and append it there.

    They work in one store, whose locks let the first make what several need, and on this process's Prefect server.

    Args:
        arguments: those of the flow `compare`, as JSON has them.

    Raises:
        Failed: one of them failed, in its sentence; all that the others made is in the file.
    """
    failed = {}
    with tempfile.TemporaryDirectory() as logs, get_client(sync_client=True) as client:
        environment = os.environ | {"PREFECT_API_URL": str(client.api_url)}
        ended = _ended(labels, jobs, arguments, Path(logs), environment)
        for label, code, log in track(ended, "methods", total=len(labels)):
            if code:
                failed[label] = _sentence(log, code)
    if failed:
        label, why = next(iter(failed.items()))
        others = f" (so did {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise Failed(f"{label} failed{others}: {why}; what was made is kept, so run the same again")


def _ended(
    labels: list[str], jobs: int, arguments: dict[str, Any], logs: Path, environment: dict[str, str]
) -> Iterator[tuple[str, int, Path]]:
    """Each label's process as it ends, with its exit code and what it said; none outlives this one's interruption."""
    waiting, running = list(enumerate(labels)), dict[str, tuple[subprocess.Popen[bytes], Path]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, label = waiting.pop(0)
                log = logs / f"{number}.log"
                command = [sys.executable, "-m", "flows.compare_one", json.dumps(arguments | {"only": label})]
                with log.open("wb") as file:
                    process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
                running[label] = process, log
            time.sleep(0.1)
            for label, (process, log) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[label]
                    yield label, code, log
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()


def _sentence(log: Path, code: int) -> str:
    lines = log.read_text(errors="replace").splitlines()
    said = [line.removeprefix(SAYS) for line in lines if line.startswith(SAYS)]
    return (said or lines or [f"it ended with {code} and no word"])[-1]
