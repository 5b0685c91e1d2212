"""What a merged model was made from: `lineage.json` of its MLflow run, the record that an audit goes by.

Lineages form a chain: each names the SHA-256 of the one before, so none can be changed without all that follow it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator

from recall.errors import Failed
from recall.results import Frozen

FORMAT = 2


class FileDigest(Frozen):
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


def inside(name: str) -> str:
    """A file's name, relative to the folder that it is recorded for and never outside it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} reaches outside its folder")
    return name


Inside = Annotated[str, AfterValidator(inside)]
Files = dict[Inside, FileDigest]


class BaseModelEntry(Frozen):
    """M_0 as DVC tracks it. None: not recorded."""

    dvc_hash: str
    fingerprint: str
    path: str | None = None
    files: Files | None = None


class DataSetEntry(Frozen):
    """A learning task's rows at one version."""

    name: str
    path: str
    dvc_hash: str
    fingerprint: str
    rows: dict[str, int]
    trained_on: bool
    git_commit: str | None = None
    files: Files | None = None


class ArtifactEntry(Frozen):
    """An artifact of the store: `base` is what an adapter lies over, `machine` where it was made. None: unknown."""

    kind: str = Field(pattern=r"^[a-z_]+$")
    fingerprint: str = Field(pattern=r"^[0-9a-f]+$")
    files: Files | None = None
    base: str | None = None
    machine: dict[str, Any] | None = None


class PoolEntry(Frozen):
    """A model that was merged, by its name in the weights; `moments` are the fingerprints of those that it was merged
    by, its own or those of all the experts that it stands for."""

    name: str
    fingerprint: str
    moments: tuple[str, ...] = ()


class RegisteredUpdate(Frozen):
    """An update's version, its MLflow run, and the SHA-256 of that run's `lineage.json` (None: not recorded)."""

    version: str
    run_id: str
    lineage_sha256: str | None


class CodeEntry(Frozen):
    """Where the code's own Git repository stood; None where it was installed from none."""

    git_commit: str | None
    clean: bool


class Lineage(Frozen):
    """Everything that one update was made from. Format 1, of versions registered before audits, lacks what is None.

    `merge` is the settings' `update.merge`; None in lineages older than that setting, whose merge was RECALL's.
    `moments` are those of the expert, where the merge goes by them.
    """

    format: int = 1
    stream: str | None = None
    position: int | None = None
    learning_task: str | None = None
    update_key: str
    model_key: str | None = None
    record_sha256: str | None = None  # of update.json
    previous: RegisteredUpdate | None = None
    git_commit: str | None
    code: CodeEntry | None = None
    draft_because: list[str]
    base_model: BaseModelEntry
    data_sets: list[DataSetEntry]
    pool: list[PoolEntry] | None = None
    expert: ArtifactEntry
    samples: ArtifactEntry | None
    moments: ArtifactEntry | None = None
    representations: list[ArtifactEntry] | None = None
    merge: Literal["recall", "recall_moments"] | None = None
    weights: ArtifactEntry | None
    merged: ArtifactEntry
    evaluations: dict[Inside, ArtifactEntry] | None = None
    metrics: dict[str, float] | None = None  # as MLflow names them
    settings: dict[str, Any]
    seeds: dict[str, int] | None = None
    environment: dict[str, Any] | None
    environment_lock_sha256: str

    @field_validator("expert", "samples", "weights", "merged", mode="before")
    @classmethod
    def _format_1(cls, value: Any, info: Any) -> Any:
        kind = {"expert": "experts"}.get(info.field_name, info.field_name)
        return {"kind": kind, "fingerprint": value} if isinstance(value, str) else value

    def to_json(self) -> str:
        """The text of `lineage.json`, which `sha256` covers."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True)


def sha256(text: str) -> str:
    """Of a text's UTF-8 bytes, as of the file that it is written to."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_lineage(text: str, where: str) -> Lineage:
    """Read a `lineage.json` of any format.

    Raises:
        Failed: it is no lineage.
    """
    try:
        return Lineage.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        at = ".".join(map(str, problem["loc"])) or "the file"
        raise Failed(f"{where} is no lineage ({at}: {problem['msg']}); bring it back as it was registered") from error
