"""What a worker does before a deployment's runs, as prefect.yaml says it, in a clone that is behind its remote."""

import asyncio
import fcntl
import os
import sys
import threading
from pathlib import Path

import pytest
import yaml
from prefect.deployments.steps.core import run_steps
from project import Project

PREFECT = Path(__file__).parents[1] / "prefect.yaml"


@pytest.fixture
def clone(new_project, tmp_path, monkeypatch):
    """The worker's checkout; a new version of a data set was pushed since it was made."""
    team = new_project("team")
    team.git("init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    team.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    team.git("push", "--quiet", "--set-upstream", "origin", "HEAD")
    team.git("clone", "--quiet", str(tmp_path / "origin.git"), str(tmp_path / "clone"))
    worker = Project(tmp_path / "clone")
    worker.dvc("remote", "modify", "--local", "local", "url", str(team.folder / ".dvc-remote"))
    worker.dvc("pull", "--quiet")
    team.write_data("names", train=(300, 24))
    team.dvc("add", "--quiet", "data/names")
    team.dvc("push", "--quiet")
    team.commit("new names")
    team.git("push", "--quiet")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(worker.folder)  # the steps change it
    return worker


def before_a_run(name, folder):
    """Run a deployment's pull steps, as `prefect deploy` in this folder would have left them."""
    project = yaml.safe_load(PREFECT.read_text().replace("{{ $PWD }}", str(folder)))
    deployment = next(entry for entry in project["deployments"] if entry["name"] == name)
    asyncio.run(run_steps(deployment.get("pull", project["pull"])))


@pytest.mark.slow
def test_only_an_update_brings_what_is_new_into_the_checkout(clone):
    """A promotion or an audit may be started while an update runs, whose code and base model must not change."""
    head, rows = clone.head(), clone.folder / "data" / "names" / "train.jsonl"
    before = rows.read_text()
    for name in ("promote", "weekly-audit"):
        before_a_run(name, clone.folder)
        assert Path.cwd() == clone.folder
        assert (clone.head(), rows.read_text()) == (head, before)
    with (clone.folder / ".dvc" / "tmp" / "lock").open("a") as lock:  # another DVC command is at work
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(10, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        before_a_run("weekly-update", clone.folder)
    assert clone.head() != head
    assert rows.read_text() != before
