"""A finished project of two updates whose Git repository holds the code too, as a clone of this one does."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from project import Project
from typer.testing import CliRunner

from flows.cli import app
from tasks import registry

ROOT = Path(__file__).parent.parent
KEPT = ("mlartifacts", "data", ".store", ".dvc-remote", ".dvc/cache")


@pytest.fixture(scope="session")
def finished_audited(new_project, tmp_path_factory):
    project = with_code(new_project("audited"))
    project.snapshot = Snapshot(project.folder, tmp_path_factory.mktemp("safe"))
    return project


@pytest.fixture
def audited(finished_audited, monkeypatch):
    """The finished project, as it was, with this process in it."""
    yield from as_it_was(finished_audited, monkeypatch)


def as_it_was(finished, monkeypatch):
    """A finished project with this process in it, put back afterwards."""
    use(finished.folder, monkeypatch)
    yield finished
    finished.snapshot.restore()


def with_code(
    project: Project, learning_tasks: tuple[str, ...] = ("names", "reviews"), other_pin: str | None = None
) -> Project:
    """Commit the code beside the data, its lock perhaps with one pin changed, and run a stream of these learning tasks
    and an unseen one."""
    for name in ("recall", "tasks", "flows"):
        shutil.copytree(ROOT / name, project.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, project.folder)
    if other_pin is not None:
        lock = project.folder / "constraints.txt"
        pins = [pin for pin in lock.read_text().splitlines() if not pin.startswith(other_pin.partition("==")[0] + "==")]
        lock.write_text("\n".join([*pins, other_pin]) + "\n")
    ignored = project.folder / ".gitignore"
    ignored.write_text(ignored.read_text() + "__pycache__/\n")

    def shorten(values):
        values["stream"].update(learning_tasks=list(learning_tasks), unseen=["films"])
        values.update(baselines=[])
        values["finetuning"].update(epochs=1)

    project.params(shorten)
    project.commit("the code")
    project.run()
    return project


class Snapshot:
    """The project's files and database as they are now, to come back to after a test that damages them."""

    def __init__(self, folder: Path, safe: Path) -> None:
        self.folder, self.safe = folder, safe
        for name in KEPT:
            shutil.copytree(folder / name, safe / name, symlinks=True)
        shutil.copy(folder / "mlflow.db", safe)

    def restore(self) -> None:
        for name in KEPT:
            shutil.rmtree(self.folder / name)
            shutil.copytree(self.safe / name, self.folder / name, symlinks=True)
        # Into the same file: a client of MLflow holds it open.
        with sqlite3.connect(self.safe / "mlflow.db") as good, sqlite3.connect(self.folder / "mlflow.db") as target:
            good.backup(target)


def flip_a_bit(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    make_writable(file)
    file.write_bytes(content)


def make_writable(file: Path) -> None:
    """DVC's objects are read-only."""
    file.chmod(0o644)


def use(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    registry.client.cache_clear()


def audit(*arguments, version=2, expect=0):
    """`recall audit --json`, parsed."""
    done = CliRunner().invoke(app, ["audit", f"models:/tiny/{version}", "--json", *arguments])
    assert done.exit_code == expect, done.output
    return json.loads(done.stdout)


def by_status(report, status):
    return [link for link in report["links"] if link["status"] == status]


def only_fault(report):
    """The one link that does not hold, as (update, name, what was found)."""
    (fault,) = by_status(report, "failed")
    return fault["update"], fault["name"], fault["found"]


def run_id(version):
    return registry.version("tiny", str(version)).tags[registry.RUN]


def artifact(project, version, path):
    """A file of a version's run, in MLflow's artifacts."""
    (found,) = project.folder.glob(f"mlartifacts/**/{run_id(version)}/artifacts/{path}")
    return found


def model_file(project, version):
    """The weights of a registered version, in MLflow's artifacts."""
    source = registry.version("tiny", str(version)).source.removeprefix("models:/")
    (found,) = project.folder.glob(f"mlartifacts/**/{source}/artifacts/model/model.safetensors")
    return found


def tag(level="hashes", version=2):
    return registry.version("tiny", str(version)).tags[f"recall.audit.{level}"]
