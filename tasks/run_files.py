"""What an update's MLflow run, or the whole stream's, holds: enough to judge and to show it without the store."""

from __future__ import annotations

import mlflow
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from recall.errors import Failed
from recall.lineage import Lineage, read_lineage
from tasks.records import UpdateRecord


def read_record(stream: str, run: str) -> UpdateRecord:
    """The record of the update that a run is of.

    Raises:
        Failed: it cannot be read.
    """
    try:
        return UpdateRecord.model_validate_json(read_text(stream, run, "update.json"))
    except ValidationError as error:
        raise Failed(
            f"update.json of MLflow's run {run} of {stream} is no record of an update; bring it back"
        ) from error


def read_run_lineage(stream: str, run: str) -> Lineage:
    """The lineage of the update that a run is of.

    Raises:
        Failed: it cannot be read.
    """
    return read_lineage(read_text(stream, run, "lineage.json"), f"lineage.json of MLflow's run {run} of {stream}")


def read_text(stream: str, run: str, path: str) -> str:
    """A text file of a run.

    Raises:
        Failed: it cannot be read.
    """
    try:
        return str(mlflow.artifacts.load_text(f"runs:/{run}/{path}"))
    except (MlflowException, OSError, UnicodeDecodeError) as error:
        raise Failed(
            f"{path} of MLflow's run {run} of {stream} cannot be read; bring MLflow's artifacts back to where they "
            "were, or make the update again with `recall run --recompute`"
        ) from error
