"""A killed run's Prefect server is ended by the next run; that of a run which lives is not."""

import os
import signal
import subprocess
import sys
import time

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run, task_run
from prefect.states import Running

from flows.orphans import (
    MARK,
    OF_THIS_MACHINE,
    end_forgotten_runs,
    end_orphaned_servers,
    flow_of_this_process,
    process_tag,
    untagged_tasks,
)


@pytest.fixture
def server(monkeypatch):
    """A function that starts what looks like an ephemeral server of the run with a process id."""
    monkeypatch.delenv(MARK, raising=False)
    started = []

    def start(run, **more):
        environment = os.environ | {MARK: str(run), "PREFECT__SERVER_EPHEMERAL": "1"} | more
        code = "import time; print('up', flush=True); time.sleep(600)"
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "up\n"
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_server_of_a_dead_run_is_ended_and_no_other(server):
    orphan, of_this_run, no_server = server(dead()), server(os.getpid()), server(dead(), PREFECT__SERVER_EPHEMERAL="")
    end_orphaned_servers()
    assert orphan.wait(timeout=10) == -signal.SIGTERM
    time.sleep(0.2)
    assert of_this_run.poll() is None
    assert no_server.poll() is None
    assert os.environ[MARK] == str(os.getpid())


def test_a_flow_run_whose_process_was_killed_is_marked_as_crashed_and_no_other(prefect_harness):
    @flow
    def update():
        """Nothing: its runs are made by hand."""

    with get_client(sync_client=True) as client:
        tags = {
            "killed": [f"{OF_THIS_MACHINE}{dead()}"],
            "alive": [process_tag()],
            "elsewhere": ["process:another-machine:1"],
            "untagged": [],
        }
        made = {name: client.create_flow_run(update, tags=of, state=Running()).id for name, of in tags.items()}
        end_forgotten_runs()
        states = {name: client.read_flow_run(run).state.type.value for name, run in made.items()}
    assert states == {"killed": "CRASHED", "alive": "RUNNING", "elsewhere": "RUNNING", "untagged": "RUNNING"}


def test_a_flow_run_says_whose_process_it_is_and_its_tasks_do_not(prefect_harness):
    @task
    def stage():
        return task_run.tags

    @flow
    def update():
        with untagged_tasks():
            return flow_run.tags, stage()

    with flow_of_this_process():
        of_flow, of_task = update()
    assert (of_flow, of_task) == ([process_tag()], [])
