"""kill -9 in every stage: the same command goes on, and the weights are those of an undisturbed run, bit for bit."""

import signal
import sqlite3
from pathlib import Path

import pytest

from tasks.store import Store

pytestmark = pytest.mark.slow
KILL_AT = Path(__file__).parent / "kill_at.py"
MOMENTS = [
    "version_dataset",
    "writing a checkpoint",
    "training",
    "finetune",
    "cluster",
    "represent",
    "weigh",
    "merge",
    "evaluate",
    "register",
    "alias",
]


@pytest.fixture(scope="module")
def one_update(new_project):
    """A function that makes a project whose stream has one learning task."""

    def make(name):
        project = new_project(name)
        stream = {"learning_tasks": ["reviews"], "unseen": ["films"]}
        project.params(lambda values: values["stream"].update(stream) or values.update(baselines=[]))
        project.commit("one learning task")
        return project

    return make


def weights(project):
    """SHA-256 of every weight file, by artifact."""
    store = Store(root=project.folder / ".store")
    return {
        (kind, name): store.manifest(kind, name)["sha256"]
        for kind in ("experts", "samples", "representations", "weights", "merged", "scores")
        for name in project.artifacts(kind)
    }


def test_killed_at_every_moment_in_turn_it_ends_as_if_undisturbed(one_update):
    undisturbed, killed = one_update("undisturbed"), one_update("killed")
    undisturbed.run()
    for moment in MOMENTS:
        killed.python(KILL_AT, moment, "run", expect=-signal.SIGKILL)
    killed.run()
    assert weights(killed) == weights(undisturbed)
    store = killed.folder / ".store"
    assert not list(store.glob("*/.*")), "nothing half-made stays behind"
    assert not list((store / "work").iterdir())
    with sqlite3.connect(killed.folder / "mlflow.db") as database:
        assert database.execute("select version from model_versions").fetchall() == [(1,)]
        assert database.execute("select count(*) from logged_models").fetchone() == (1,)
        assert set(database.execute("select status from runs").fetchall()) == {("FINISHED",)}
