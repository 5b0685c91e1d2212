"""The files that MLflow has of an update: where they are, or copied for a while from a store that is elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from recall.errors import Failed, OutOfReach
from tasks import registry
from tasks.audit_reach import copying, local_folder, reached, run_folder
from tasks.audit_source import Registered

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Fetched(Registered):
    """An update with its run's files in `folder`, and the model as registered in `registered`: to be read only.

    What is missing there is missing in MLflow.
    """

    folder: Path
    registered: Path

    @property
    def model(self) -> Path:
        """The merged model's folder, where MLflow's flavour has it."""
        return self.registered / "model"


@contextmanager
def fetched(update: Registered, work: Path) -> Iterator[Fetched]:
    """The update with its files; what had to be copied to `work` is gone afterwards.

    Raises:
        Failed: its run is not in MLflow.
        OutOfReach: MLflow or its artifacts cannot be reached.
    """
    with TemporaryDirectory(dir=work) as own:
        folder = _run_folder(update.run_id, Path(own) / "run")
        registered = _model_folder(update.version, Path(own) / "model")
        yield Fetched(**vars(update), folder=folder, registered=registered)


def run_part(update: Registered, name: str, out: Path) -> Path:
    """Where one folder of an update's run lies, copied to `out` from a store that is elsewhere; it may be missing.

    Raises:
        Failed: the run is not in MLflow.
        OutOfReach: MLflow or its artifacts cannot be reached.
    """
    local = run_folder(update.run_id)
    if local is not None:
        return local / name
    out.mkdir()
    with copying(f"{name} of MLflow's run {update.run_id}"):
        if name in [entry.path for entry in registry.client().list_artifacts(update.run_id)]:
            registry.client().download_artifacts(update.run_id, name, str(out))
    return out / name


def _run_folder(run_id: str, out: Path) -> Path:
    local = run_folder(run_id)
    if local is not None:
        return local
    out.mkdir()
    with copying(f"the files of MLflow's run {run_id}"):
        for entry in registry.client().list_artifacts(run_id):
            if entry.path != "model":  # it is the version's own, below
                registry.client().download_artifacts(run_id, entry.path, str(out))
    return out


def _model_folder(version: ModelVersion | None, out: Path) -> Path:
    """The registered folder; an empty one where MLflow has none, so that what is missing is named file by file."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    out.mkdir()
    place = _place(version) if version else None
    if place is None:
        return out
    if (local := local_folder(place)) is not None:
        return local
    with copying(f"the registered model's files ({place})"):
        repository = get_artifact_repository(place)
        for entry in repository.list_artifacts():
            repository.download_artifacts(entry.path, str(out))
    return out


def _place(version: ModelVersion) -> str | None:
    """The URI of a version's files; None where MLflow does not have its model any more."""
    source = str(version.source)
    if not source.startswith("models:/m-"):
        return source
    try:
        with reached(source):
            return str(registry.client().get_logged_model(source.removeprefix("models:/")).artifact_location)
    except OutOfReach:
        raise
    except Failed:
        return None
