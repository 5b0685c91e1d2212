"""kill -9 of a worker of Prefect's while it carries out an update, alone or with the run that it started."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil

from chaos.bench import Bench, Victim, kill_group
from chaos.servers_killed import ALONE, running

ROOT = Path(__file__).parent.parent
# A run that was killed holds the deployment's one place until its lease of 300 s is over.
PATIENCE_S = 600


class Deployed:
    """The deployment of prefect.yaml in a victim's folder, on the documented server, and its worker."""

    def __init__(self, bench: Bench, victim: Victim) -> None:
        servers = running(bench)
        self.servers, self.victim = servers, victim
        victim.project.environment |= servers.clients
        self.environment = servers.environment | victim.project.environment | {
            "PWD": str(victim.folder),
            "PATH": f"{Path(sys.executable).parent}:{servers.environment['PATH']}",
        }  # fmt: skip
        for name in ("flows", "tasks", "recall"):
            shutil.copytree(ROOT / name, victim.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "prefect.yaml", victim.folder)
        with (victim.folder / ".git" / "info" / "exclude").open("a") as file:
            file.write("flows/\ntasks/\nrecall/\nprefect.yaml\n")
        self._prefect("work-pool", "create", "recall", "--type", "process", "--overwrite")
        self._prefect("deploy", "--name", "weekly-update")

    def worker(self) -> subprocess.Popen[bytes]:
        """Start the worker."""
        with (self.victim.folder.parent / "worker.log").open("a") as log:
            return subprocess.Popen(
                self.servers.documented("worker"),
                cwd=self.victim.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ask_for_a_run(self) -> str:
        """Its id."""
        return str(self._ask(f"/deployments/{self._id()}/create_flow_run", state={"type": "SCHEDULED"})["id"])

    def wait_for(self, run: str, *states: str) -> None:
        """Until the run is in one of the states."""
        deadline = time.monotonic() + PATIENCE_S
        while (state := self.state(run)) not in states:
            assert time.monotonic() < deadline, f"the run is {state} after {PATIENCE_S} s\n{self._log()}"
            assert state not in ("FAILED", "CRASHED"), f"the run is {state}\n{self._log()}"
            time.sleep(1)

    def _id(self) -> str:
        found = self._ask("/deployments/filter", deployments={"name": {"any_": ["weekly-update"]}})
        return str(found[0]["id"])

    def state(self, run: str) -> str:
        """A flow run's, as the server has it."""
        found = self._ask("/flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        return str(found[0]["state_type"])

    def _ask(self, path: str, **query: Any) -> Any:
        clients = self.servers.clients
        user, password = clients["PREFECT_API_AUTH_STRING"].split(":")
        answer = httpx.post(f"{clients['PREFECT_API_URL']}{path}", json=query, auth=(user, password), timeout=30)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def _prefect(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=self.victim.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def _log(self) -> str:
        return (self.victim.folder.parent / "worker.log").read_text()[-2000:]


def worker_killed(bench: Bench, random: Random, share: float, with_its_run: bool) -> Victim:
    """Kill the worker at `share` of its run; then start it again, and ask for another run of the deployment."""
    with ALONE:
        victim = bench.fresh("worker killed")
        victim.of_its_own_stream(f"worker-{share:.2f}")
        deployed = Deployed(bench, victim)
        first, worker = deployed.ask_for_a_run(), deployed.worker()
        try:
            deployed.wait_for(first, "RUNNING")
            time.sleep(bench.seconds * (share + random.uniform(-0.05, 0.05)))
            assert deployed.state(first) == "RUNNING", "over too soon"
            # A worker starts runs in sessions of their own.
            run = psutil.Process(worker.pid).children(recursive=True) if with_its_run else []
            for process in (psutil.Process(worker.pid), *run):
                process.kill()
            worker.wait()
            again, second = deployed.worker(), deployed.ask_for_a_run()
            try:
                deployed.wait_for(second, "COMPLETED")
            finally:
                kill_group(again)
        finally:
            with suppress(ProcessLookupError):
                kill_group(worker)
        return victim


FAULTS: dict[str, Callable[[Bench, Random], Victim]] = {
    "worker killed with its run": partial(worker_killed, share=0.5, with_its_run=True),
    "worker killed, and not its run": partial(worker_killed, share=0.3, with_its_run=False),
}
