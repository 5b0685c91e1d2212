"""What the tests of promotion share: a stream with three versions, and the commands that move aliases."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.moves import new_entry
from tasks import ledger, registry

PASS = ["promotion.minimum_average=0", "promotion.maximum_forgetting=1", "promotion.unseen_margin=1"]
FAIL = ["promotion.minimum_average=1"]


@pytest.fixture(scope="session")
def registered(new_project):
    """A project whose stream has three versions; only read."""
    made = new_project("promotion")
    made.params(lambda values: values.update(baselines=[]) or values["finetuning"].update(epochs=1))
    made.commit("without baselines")
    made.run()
    return made


@pytest.fixture
def fresh_registry(registered, tmp_path, monkeypatch):
    """The project with a registry of this test's own; returns MLflow's client."""
    database = tmp_path / "mlflow.db"
    shutil.copy(registered.folder / "mlflow.db", database)
    monkeypatch.chdir(registered.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    registry.client.cache_clear()
    yield registry.client()
    registry.client.cache_clear()


def promoted(version=None, overrides=PASS, **more):
    # Imported here: this file is a plugin, and only these tests need Prefect.
    from flows.promote import promote

    return promote(version=version, overrides=overrides, who="ann", **more)


def moved(*versions):
    """Promotions as the ledger has them, without a flow and its verdicts, which take longer."""
    for version in versions:
        assert ledger.append("tiny", new_entry(ledger.read_ledger("tiny"), "promote", version, "ann", "", None))
        ledger.follow("tiny")


def where():
    found = registry.aliases("tiny")
    return found.get("champion"), found.get("previous")


def tags(version):
    return registry.version("tiny", version).tags


def recall(*arguments):
    return CliRunner().invoke(app, list(arguments))


def overrides(values):
    return [word for value in values for word in ("--set", value)]


def status():
    return json.loads(recall("status", "--json").output)
