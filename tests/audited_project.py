"""A finished project of two updates whose Git repository holds the code too, as a clone of this one does."""

import shutil
import sqlite3
from pathlib import Path

from project import Project

ROOT = Path(__file__).parent.parent
KEPT = ("mlartifacts", "data", ".store", ".dvc-remote", ".dvc/cache")


def with_code(project: Project) -> Project:
    """Commit the code beside the data, and run a stream of two learning tasks and an unseen one."""
    for name in ("recall", "tasks", "flows"):
        shutil.copytree(ROOT / name, project.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, project.folder)
    ignored = project.folder / ".gitignore"
    ignored.write_text(ignored.read_text() + "__pycache__/\n")

    def shorten(values):
        values["stream"].update(learning_tasks=["names", "reviews"], unseen=["films"])
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
