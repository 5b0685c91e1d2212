"""Projects to break: fresh copies of one tiny project, and what an undisturbed run of it ends with."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

import project as tiny_project  # noqa: E402
import tiny  # noqa: E402
from servers import Servers  # noqa: E402

RUN = ("-m", "flows.cli", "run", "--json")
MAKE_DATABASES = (
    ("-m", "prefect", "server", "database", "upgrade", "--yes"),
    ("-c", "from tasks import registry; registry.client()"),
)
# A run takes half a minute; one that waits for a lock or a server that is gone would wait for ever.
PATIENCE_S = 420


class Run(subprocess.Popen[str]):
    """A process group of its own, whose output goes to a file: a pipe would stay open in the server that it leaves."""

    def __init__(self, command: list[str], folder: Path | None, environment: dict[str, str]) -> None:
        self.output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with the object
        super().__init__(
            command,
            cwd=folder,
            env=environment,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def said(self) -> str:
        """All that it has written."""
        self.output.seek(0)
        return self.output.read()


@dataclass
class Victim:
    """A copy of the project with databases of its own; `inside` is a command that enters its mount namespace."""

    project: tiny_project.Project
    inside: list[str] = field(default_factory=list)
    # The same folder as this process sees it, where the copy lies in another mount namespace.
    seen_at: Path | None = None
    stream: str = "tiny"

    @property
    def folder(self) -> Path:
        """Where to look at what the run left."""
        return self.seen_at or self.project.folder

    def of_its_own_stream(self, name: str) -> None:
        """Register under another name: on one registry, this copy's versions are no other's."""
        self.stream = name
        self.project.params(lambda values: values["stream"].update(name=name))
        self.project.commit("a stream of its own")

    def start(self, *arguments: str) -> Run:
        """Start `recall run --json` (or another Python command)."""
        return Run(
            [*self.inside, sys.executable, *(arguments or RUN)],
            None if self.inside else self.project.folder,
            self.project.environment | {"PWD": str(self.project.folder)},
        )

    def bring_out(self) -> None:
        """Copy what the run left out of its mount namespace: SQLite opens no file through /proc."""
        if self.seen_at is not None:
            copy = self.project.folder.parent.with_name(f"{self.project.folder.parent.name}-seen")
            shutil.copytree(self.seen_at, copy, symlinks=True)
            self.seen_at = copy

    def finish(self, *arguments: str) -> tuple[int, str]:
        """Run to the end; returns exit code and output."""
        return ended(self.start(*arguments))


def ended(process: Run) -> tuple[int, str]:
    """Wait for a run; one that hangs is killed and counts as failed."""
    try:
        process.wait(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        kill_group(process)
        return -1, f"hung for {PATIENCE_S} s"
    return process.returncode, process.said()


def kill_group(process: subprocess.Popen[str]) -> None:
    """kill -9 of the run and of all that it started, Prefect's ephemeral server included."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_or_over(process: subprocess.Popen[str], seconds: float) -> bool:
    """Let the run go on for so long; False if it was over before."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


class Bench:
    """The tiny project of the tests with two learning tasks, its finished twin, and room for copies."""

    def __init__(self, room: Path) -> None:
        self.room = room
        self._numbers = itertools.count(1)
        # Processes that faults need until everything was looked at.
        self.closing: list[subprocess.Popen[str]] = []
        self.servers: Servers | None = None
        template = tiny_project.make_project(room / "template" / "project", tiny.tokenizer())
        stream = {"learning_tasks": ["reviews", "countries"], "unseen": ["films"]}
        template.params(lambda values: values["stream"].update(stream) or values.update(baselines=[]))
        template.commit("two learning tasks")
        shutil.copytree(room / "template", room / "unused", symlinks=True)
        # Copies have databases already, as on any day but the first, which is a fault of its own.
        for command in MAKE_DATABASES:
            code, output = self.at(room / "template").finish(*command)
            assert code == 0, output
        self.undisturbed = self.fresh("undisturbed")
        started = time.monotonic()
        code, output = self.undisturbed.finish()
        assert code == 0, output
        self.seconds = time.monotonic() - started
        self.bytes = _size(self.undisturbed.folder.parent) - _size(room / "template")

    def fresh(self, name: str, template: str = "template") -> Victim:
        """A new copy in which nothing has run yet; of `unused`, one that has no database either."""
        place = self.room / f"{next(self._numbers)}-{name.replace(' ', '-')}"
        shutil.copytree(self.room / template, place, symlinks=True)
        return self.at(place)

    def close(self) -> None:
        """End what faults kept alive."""
        if self.servers is not None:
            self.servers.close()
        for process in self.closing:
            process.kill()
            process.wait()

    def at(self, place: Path) -> Victim:
        """The copy that lies in `place`."""
        project = tiny_project.Project(place / "project")
        project.environment |= {"HF_HUB_OFFLINE": "1", "PREFECT_HOME": str(place / "prefect")}
        project.environment |= {"PYTHONPATH": str(TESTS.parent)}
        return Victim(project)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def end_orphans(room: Path) -> int:
    """End what killed runs left running (Prefect's ephemeral servers); returns how many there were."""
    left = [process for process in psutil.process_iter() if _belongs_to(process, room)]
    for process in left:
        process.kill()
    return len(left)


def _belongs_to(process: psutil.Process, room: Path) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get("PREFECT_HOME", "").startswith(f"{room}/")
    except (psutil.Error, OSError):
        return False
