"""MLflow as an audit reads it: what it does not have is told from what cannot be reached now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from recall.errors import Failed, OutOfReach, one_line, without_secrets
from tasks import registry

# MLflow's two words for "there is none"; an alias or a run id that nobody has is an invalid parameter to it.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@contextmanager
def reached(what: str) -> Iterator[None]:
    """Around calls of MLflow's client.

    Raises:
        Failed: MLflow has no such thing.
        OutOfReach: nobody can say.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = without_secrets(one_line(error))
        if isinstance(error, MlflowException) and error.error_code in ABSENT:
            raise Failed(f"MLflow does not have {what} ({reason})") from error
        raise OutOfReach(f"{what} cannot be asked for now ({reason})") from error


@contextmanager
def copying(what: str) -> Iterator[None]:
    """Around downloads of what MLflow lists: what does not arrive is out of reach, whatever its store's library raises.

    Raises:
        OutOfReach: it does not arrive.
    """
    try:
        yield
    except Exception as error:
        raise OutOfReach(f"{what} cannot be brought now ({without_secrets(one_line(error))})") from error


def run_folder(run_id: str) -> Path | None:
    """Where a run's files lie on this machine; None where they lie elsewhere. Raises as `reached`."""
    with reached(f"run {run_id}"):
        return local_folder(str(registry.client().get_run(run_id).info.artifact_uri))


def run_file(run_id: str, name: str) -> bytes:
    """A file of a run.

    Raises:
        Failed: MLflow has no such run, or the run no such file.
        OutOfReach: nobody can say.
    """
    folder = run_folder(run_id)
    if folder is not None:
        try:
            return (folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise OutOfReach(f"{name} of MLflow's run {run_id} cannot be read now ({one_line(error)})") from error
    else:
        with TemporaryDirectory() as work, copying(f"{name} of MLflow's run {run_id}"):
            if name in [entry.path for entry in registry.client().list_artifacts(run_id)]:
                return Path(registry.client().download_artifacts(run_id, name, work)).read_bytes()
    raise Failed(f"MLflow's run {run_id} has no {name}; bring MLflow's artifacts back to where they were")


def local_folder(uri: str) -> Path | None:
    """The folder of a `file:` URI; None for what lies elsewhere."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(uri)) if uri.startswith(("file:", "/")) else None
