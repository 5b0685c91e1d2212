"""The flow on a Dask cluster of two worker processes: the same weights and scores as in one process, bit for bit."""

import subprocess
import sys

import distributed
import pytest
from dask_cluster import DaskCluster, wait_until

from tasks.store import Store

pytestmark = pytest.mark.nightly
KINDS = ("experts", "samples", "representations", "weights", "merged", "scores")


@pytest.fixture(scope="module")
def from_base(new_project):
    """A function that makes a project whose experts start from the base and are all merged."""

    def make(name):
        project = new_project(name)
        project.params(lambda values: values.update(update={"start_from": "base", "pool": "all"}))
        project.commit("from the base")
        return project

    return make


@pytest.fixture(scope="module")
def alone(from_base):
    """The project after a run in one process."""
    project = from_base("alone")
    project.result = project.run()
    return project


@pytest.fixture
def cluster(tmp_path, alone):
    found = DaskCluster(tmp_path, alone.environment)
    yield found
    found.close()


def on(address):
    return ["--set", "runner.kind=dask", "--set", f"runner.address={address}"]


def contents(project):
    """SHA-256 of every artifact's files."""
    store = Store(root=project.folder / ".store")
    return {(kind, name): store.manifest(kind, name)["sha256"] for kind in KINDS for name in project.artifacts(kind)}


def made_by(project):
    """The worker of every artifact."""
    store = Store(root=project.folder / ".store")
    return {
        (kind, name): store.manifest(kind, name)["environment"]["worker"]
        for kind in KINDS
        for name in project.artifacts(kind)
    }


def test_two_workers_end_where_one_process_does(alone, from_base, cluster):
    project = from_base("spread")
    result = project.run(*on(cluster.address))
    assert contents(project) == contents(alone)
    assert result["methods"] == alone.result["methods"]
    assert result["version"] == "3"
    who = made_by(project)
    assert set(who.values()) == {"one", "two"}
    assert {who[key] for key in who if key[0] == "experts"} == {"one", "two"}
    assert not set(made_by(alone).values()) - {None}


def started(project, cluster):
    """`recall run` on the cluster, in the background, once both workers are busy and an expert is half trained."""
    command = [sys.executable, "-m", "flows.cli", "run", *on(cluster.address)]
    run = subprocess.Popen(command, cwd=project.folder, env=project.environment, stderr=subprocess.PIPE, text=True)
    work = project.folder / ".store" / "work"
    with distributed.Client(cluster.address) as client:
        wait_until(
            lambda: all(client.processing().values()) and list(work.glob("*/checkpoint-*/complete.json")),
            "both workers are busy and an expert is half trained",
        )
    return run


def test_a_killed_worker_costs_its_task_alone(alone, from_base, cluster):
    project = from_base("worker_killed")
    run = started(project, cluster)
    cluster.kill("two")
    _, said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    assert contents(project) == contents(alone)
    assert not list((project.folder / ".store" / "work").iterdir())


def test_a_killed_scheduler_ends_the_run_and_the_same_stream_goes_on_in_one_process(alone, from_base, cluster):
    project = from_base("scheduler_killed")
    run = started(project, cluster)
    cluster.kill("scheduler")
    _, said = run.communicate(timeout=300)
    assert run.returncode == 1, said
    assert "the connection to the Dask scheduler was lost" in said
    assert "Traceback" not in said
    result = project.run()
    assert contents(project) == contents(alone)
    assert result["methods"] == alone.result["methods"]


def test_without_an_address_workers_start_on_this_machine_and_end_with_the_run(alone, from_base):
    project = from_base("started_here")
    project.params(
        lambda values: values["stream"].update(learning_tasks=["names"], unseen=[]) or values.update(baselines=[])
    )
    project.commit("one learning task")
    project.run("--set", "runner.kind=dask")
    assert set(made_by(project).values()) == {"0", "1"}
    assert not set(contents(project).items()) - set(contents(alone).items())


def test_a_scheduler_that_is_not_there_is_one_sentence(alone, tmp_path):
    done = alone.recall("run", "--recompute", *on("tcp://127.0.0.1:1"), expect=2)
    assert "no Dask worker at runner.address tcp://127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
