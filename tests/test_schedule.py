"""The deployments of prefect.yaml on a real server with a real worker: a schedule fires, and so does an event."""

import contextlib
import datetime
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from project import make_project
from servers import wait_for

pytestmark = pytest.mark.server
PROJECT = Path(__file__).parent.parent
SECONDS = 40  # between two scheduled runs


class Prefect:
    """The server's API and command, as one who has its password uses them."""

    def __init__(self, clients):
        self.clients = clients
        self.login = tuple(clients["PREFECT_API_AUTH_STRING"].split(":"))

    def ask(self, path, **query):
        answer = httpx.post(f"{self.clients['PREFECT_API_URL']}{path}", json=query, auth=self.login, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def runs(self, state, **where):
        """The runs of a state, the first that ended first."""
        found = self.ask("/flow_runs/filter", flow_runs={"state": {"type": {"any_": [state]}}}, sort="END_TIME_DESC")
        return [run for run in reversed(found) if where.items() <= run.items()]

    def forget(self, run):
        httpx.delete(f"{self.clients['PREFECT_API_URL']}/flow_runs/{run['id']}", auth=self.login, timeout=30)

    def messages(self):
        """What the runs that ended said, in their order."""
        failed = [run["state"]["message"] for state in ("FAILED", "CRASHED") for run in self.runs(state)]
        assert not failed, failed
        return [run["state"]["message"] for run in self.runs("COMPLETED")]


def command(folder, environment, *arguments):
    run = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    # `prefect.yaml` names the folder by $PWD, which a shell sets.
    own = environment | {"PWD": str(folder)}
    done = subprocess.run(run, cwd=folder, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefect(servers):
    return Prefect(servers.clients)


@pytest.fixture(scope="module")
def team(servers, tmp_path_factory, tiny_tokenizer):
    """A project with one learning task and the code, as a checkout has it: data on S3, commits on a Git remote."""
    folder = tmp_path_factory.mktemp("team")
    project = make_project(folder / "project", tiny_tokenizer)
    project.environment = servers.environment | servers.clients | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
        "PATH": f"{Path(sys.executable).parent}:{servers.environment['PATH']}",
    }  # fmt: skip
    for name in ("flows", "tasks", "recall"):
        shutil.copytree(PROJECT / name, project.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    stream = {"name": "scheduled", "learning_tasks": ["reviews"], "unseen": ["films"]}
    project.params(lambda values: values.update(stream=stream, baselines=[]))
    project.dvc("remote", "add", "--default", "--force", "s3", "s3://dvc/scheduled")
    project.dvc("push", "--quiet")
    with (project.folder / ".gitignore").open("a") as file:
        file.write("__pycache__/\n")
    deployments = yaml.safe_load((PROJECT / "prefect.yaml").read_text())
    soon = datetime.datetime.now(datetime.UTC).isoformat()
    update = next(entry for entry in deployments["deployments"] if entry["name"] == "weekly-update")
    update["schedules"] = [{"interval": SECONDS, "anchor_date": soon, "slug": "often", "active": True}]
    deployments["deployments"] = [update]
    (project.folder / "prefect.yaml").write_text(yaml.safe_dump(deployments, sort_keys=False))
    project.commit("the code, and data on S3")
    project.git("init", "--quiet", "--bare", str(folder / "origin.git"))
    project.git("remote", "add", "origin", str(folder / "origin.git"))
    project.git("push", "--quiet", "--set-upstream", "origin", "HEAD")
    return project


@pytest.fixture(scope="module")
def worker(servers, team, prefect):
    """A worker in a clone of its own, which the deployment names, and its log."""
    folder = team.folder.parent / "worker"
    team.git("clone", "--quiet", str(team.folder.parent / "origin.git"), str(folder))
    command(folder, team.environment, "deploy", "--all")
    log = folder.parent / "worker.log"
    start = servers.documented("worker")
    with log.open("w") as output:
        process = subprocess.Popen(
            start, cwd=folder, env=team.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield log
    finally:
        process.send_signal(signal.SIGTERM)
        # Prefect's worker makes an interrupt of it, which is lost now and then: it polls on, and takes up the next run.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def push_data(team, first_row, message):
    """A new version of the learning task's rows: to S3 by DVC, then its hash to the Git remote."""
    team.write_data("reviews", train=(first_row, 24))
    team.dvc("add", "--quiet", "data/reviews")
    team.dvc("push", "--quiet")
    team.commit(message)
    team.git("push", "--quiet")


def test_the_deployments_of_this_project_are_scheduled_one_run_at_a_time(servers, prefect):
    environment = servers.environment | servers.clients
    subprocess.run(servers.documented("deploy"), cwd=PROJECT, env=environment, check=True, timeout=120)
    wait_for(lambda: len({run["deployment_id"] for run in prefect.runs("SCHEDULED")}) == 2, "scheduled runs of two")
    deployments = {entry["name"]: entry for entry in prefect.ask("/deployments/filter")}
    update = deployments["weekly-update"]
    runs = prefect.runs("SCHEDULED", deployment_id=update["id"])
    assert {run["parameters"]["config"] for run in runs} == {"params.yaml"}
    assert update["entrypoint"] == "flows/continual_update.py:continual_update"
    assert update["global_concurrency_limit"]["limit"] == 1
    assert update["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    results = update["job_variables"]["env"]["PREFECT_RESULTS_LOCAL_STORAGE_PATH"]
    assert results == f"{PROJECT}/.store/results"
    assert deployments["promote"]["entrypoint"] == "flows/promote.py:promote"
    assert deployments["promote"]["schedules"] == []
    assert prefect.runs("SCHEDULED", deployment_id=deployments["weekly-audit"]["id"])
    for flow, name in (("continual-update", "weekly-update"), ("promote", "promote"), ("audit", "weekly-audit")):
        command(PROJECT, environment, "deployment", "delete", f"{flow}/{name}")


def test_a_schedule_takes_in_what_is_new_and_otherwise_says_that_nothing_is(team, prefect, worker):
    wait_for(lambda: len(prefect.messages()) >= 2, "an update and a run after it", worker.read_text)
    push_data(team, 300, "new reviews")
    made = "1 of 1 updates made (reviews), registered as models:/scheduled/"
    nothing = "nothing new: models:/scheduled/"
    wait_for(lambda: f"{nothing}2" in "".join(prefect.messages()), "a run after the second update", worker.read_text)
    told = [re.match(r".*models:/scheduled/\d", message)[0] for message in prefect.messages()]
    first, second = [f"{made}1", f"{nothing}1"], [f"{made}2", f"{nothing}2"]
    assert list(dict.fromkeys(told)) == first + second
    assert told.count(f"{made}1") == told.count(f"{made}2") == 1
    assert all(run["auto_scheduled"] for run in prefect.runs("COMPLETED"))
    shown = prefect.ask("/artifacts/latest/filter", artifacts={"key": {"any_": ["continual-update"]}})
    assert f"{nothing}2" in shown[0]["data"]


@pytest.mark.nightly
def test_an_event_says_that_data_was_pushed_and_starts_an_update_at_once(servers, team, prefect, worker):
    schedules = prefect.ask("/deployments/filter")[0]["schedules"]
    command(team.folder, team.environment, "deployment", "schedule", "pause", "continual-update/weekly-update",
            schedules[0]["id"])  # fmt: skip
    for late in prefect.runs("SCHEDULED"):
        prefect.forget(late)
    wait_for(lambda: not any(map(prefect.runs, ("PENDING", "RUNNING"))), "an idle worker", worker.read_text)
    push_data(team, 500, "newer reviews")
    subprocess.run(servers.documented("event"), cwd=team.folder, env=team.environment, check=True, timeout=60)
    wait_for(lambda: prefect.runs("COMPLETED", auto_scheduled=False), "a run by the event", worker.read_text)
    assert prefect.messages()[-1] == "1 of 1 updates made (reviews), registered as models:/scheduled/3"
