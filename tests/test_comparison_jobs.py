"""The processes of `recall compare --jobs` end with the one that started them, whatever ends it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

# A shell's background processes, and so all that they start, ignore an interrupt unless they ask for it.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from flows.comparison_jobs import Missing, _ended
signal.signal(signal.SIGINT, signal.default_int_handler)
given = {"config": sys.argv[1], "profile": None, "overrides": [], "options": {}}
missing = [Missing(name, "stream, seed 0, order 0", 8 * name[0]) for name in ("recall", "average", "ewc")]
list(_ended(missing, 2, given, Path(sys.argv[2]), dict(os.environ)))
"""


def processes(word):
    """Ids of the processes with `word` among their arguments, but for this test's own child."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "flows.compare_one" in arguments and any(word in argument for argument in arguments):
            found.add(int(folder.name))
    return found


def until(condition, seconds=60):
    """Whether it comes true."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(tmp_path, end):
    """They hang in reading their settings, out of a pipe that nobody writes to."""
    pipe = tmp_path / "params.yaml"
    os.mkfifo(pipe)
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, pipe, tmp_path], stderr=subprocess.DEVNULL)
    assert until(lambda: len(processes(str(pipe))) == 2), "two at a time"
    try:
        parent.send_signal(end)
        parent.wait(60)
        assert until(lambda: not processes(str(pipe)))
    finally:
        for process in [parent.pid, *processes(str(pipe))]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
