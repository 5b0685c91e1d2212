"""A command as a child process: wall time, CPU time and peak memory, as the operating system counts them.

The caller must stay small: a child's `ru_maxrss` starts at what its parent held when it was started.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class Usage:
    """Of one process: seconds, and megabytes at its peak.

    `peak` counts the pages of memory-mapped files too, but neither the page cache nor files on a tmpfs; `anonymous` is
    the process's own memory alone, sampled every 5 ms.
    """

    wall: float
    cpu: float
    peak: float
    anonymous: float


def measure(command: Sequence[str | Path], log: Path) -> Usage:
    """Run a command to its end; its output goes to `log`, which is shown where it fails."""
    with log.open("wb") as out:
        started = time.monotonic()
        child = subprocess.Popen([str(word) for word in command], stdout=out, stderr=subprocess.STDOUT)
        peak: list[int] = [0]
        sampler = threading.Thread(target=_sample, args=(child.pid, peak), daemon=True)
        sampler.start()
        _, status, used = os.wait4(child.pid, 0)
        wall = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    sampler.join()
    if child.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{log.read_text()[-3000:]}")
    return Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3, peak[0] / 1e3)


def _sample(pid: int, peak: list[int]) -> None:
    status = Path(f"/proc/{pid}/status")
    while True:
        try:
            text = status.read_text()
        except OSError:
            return
        # A process that has ended, but is not yet waited for, has a status without memory.
        if "RssAnon:" not in text:
            if "State:\tZ" in text:
                return
            continue
        peak[0] = max(peak[0], int(text.split("RssAnon:")[1].split(maxsplit=1)[0]))
        time.sleep(SAMPLE_SECONDS)
