"""A Dask cluster as people start it: a scheduler and workers, each a process with a working directory of its own."""

import os
import signal
import socket
import subprocess
import sys
import time


class DaskCluster:
    """`dask scheduler`, and a `dask worker` for every name."""

    def __init__(self, folder, environment, names=("one", "two"), arguments=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.folder, self.environment, self.processes = folder, environment, {}
        local = ("--host", "127.0.0.1", "--no-dashboard")
        self._start("scheduler", "scheduler", *local, "--port", str(port))
        for name in names:
            self._start(name, "worker", self.address, "--name", name, "--nthreads", "1", *local, *arguments)

    def _start(self, name, *command):
        home = self.folder / name
        home.mkdir()
        with (home / "log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "dask", *command],
                cwd=home,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, name):
        """SIGKILL to a process and all that it started."""
        os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes.pop(name).wait()

    def log(self, name):
        return (self.folder / name / "log").read_text()

    def close(self):
        for name in list(self.processes):
            self.kill(name)


def wait_until(condition, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)
