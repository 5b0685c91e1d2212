"""What passes between stages: where an artifact is and a digest of what is in it. References, never tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from recall.checkpoints import Checkpoint
from recall.learning_tasks import Row, TaskSpec, json_lines

PLAIN = r"^[A-Za-z0-9_-]+$"


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, the same in every process."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(files: Mapping[str, str]) -> str:
    """SHA-256 of a model's weights: of its one .safetensors file, or of the list of its shards' digests.

    Args:
        files: name to SHA-256 of every file of the model's folder.
    """
    shards = {name: sha256 for name, sha256 in files.items() if name.endswith(".safetensors")}
    return next(iter(shards.values())) if len(shards) == 1 else digest(shards)


class Ref(BaseModel):
    """A frozen reference; `fingerprint` is what a later stage's cache key takes in instead of paths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    path: Path

    def at(self, root: Path) -> Ref:
        """The same artifact in a store that lies at `root`; what lies outside the store stays where it is."""
        moved = {name: value.at(root) for name, value in self if isinstance(value, Ref)}
        return self.model_copy(update=moved)


class ArtifactRef(Ref):
    """An artifact of the store, `<store>/<kind>/<fingerprint>/`; `sha256` covers its manifest's list of files."""

    # Both name folders of the store, and come from files and servers that others can write.
    kind: str = Field(pattern=PLAIN)
    fingerprint: str = Field(pattern=PLAIN)
    sha256: str

    def at(self, root: Path) -> Ref:
        """See `Ref.at`."""
        return super().at(root).model_copy(update={"path": root / self.kind / self.fingerprint})


class SplitRef(Ref):
    """The rows of one split: `fingerprint` covers the file's bytes and what the learning task's spec says of them."""

    learning_task: str
    spec: TaskSpec
    rows: int

    def read(self) -> list[Row]:
        """The rows, checked when the data set was versioned."""
        return [Row.model_validate_json(line) for line in json_lines(self.path)]


def contents(value: Any) -> dict[str, str]:
    """Fingerprint to SHA-256 of every artifact in a stage's inputs, and of what adapters lie over."""
    if isinstance(value, list | tuple):
        return {fingerprint: sha256 for item in value for fingerprint, sha256 in contents(item).items()}
    if not isinstance(value, ArtifactRef):
        return {}
    return {value.fingerprint: value.sha256} | contents(getattr(value, "base", None))


class TextFileRef(Ref):
    """A file that the settings name; its fingerprint is its SHA-256."""


class TrackedFolder(Ref):
    """A folder of the working copy; its fingerprint is the hash by which DVC tracks it."""


class DatasetRef(ArtifactRef):
    """A learning task's rows at one version: a copy in the store, and the DVC hash of the folder it was made from."""

    learning_task: str
    dvc_hash: str
    train: SplitRef | None
    validation: SplitRef | None = None
    test: SplitRef

    def at(self, root: Path) -> Ref:
        """See `Ref.at`; the splits lie in the data set's folder."""
        moved = super().at(root)
        splits = {
            name: split.model_copy(update={"path": moved.path / split.path.name})
            for name, split in (("train", self.train), ("validation", self.validation), ("test", self.test))
            if split
        }
        return moved.model_copy(update=splits)


class CheckpointRef(ArtifactRef):
    """A full model, or a LoRA adapter over `base`; the base model M_0 lies under DVC, all others in the store."""

    base: CheckpointRef | None = None

    def at(self, root: Path) -> Ref:
        """See `Ref.at`."""
        moved = super().at(root)
        return moved.model_copy(update={"path": self.path}) if self.kind == "base_model" else moved

    def checkpoint(self) -> Checkpoint:
        """What `recall` opens."""
        return Checkpoint(self.path, self.base.checkpoint() if self.base else None)


class FinetunedRef(CheckpointRef):
    """An expert and how its training went."""

    steps: int
    final_loss: float


class FisherRef(ArtifactRef):
    """`fisher.safetensors`: the summed diagonal Fishers of the learning tasks so far, float32, a tensor a weight."""


class MomentsRef(ArtifactRef):
    """`moments.safetensors`: the second moments of an expert's layer inputs over its own typical samples."""


class SamplesRef(ArtifactRef):
    """The typical samples: `samples.jsonl`, a prompt a row; and how many prompts each cluster had."""

    count: int
    cluster_sizes: list[int] = []

    def read(self) -> list[str]:
        """The prompts."""
        return [json.loads(line)["prompt"] for line in json_lines(self.path / "samples.jsonl")]


class RepresentationsRef(ArtifactRef):
    """`representations.npy`, `(L, P, E)` float32, of one model on the typical samples."""

    layers: int


class WeightsRef(ArtifactRef):
    """`weights.json`: a `MergeWeights`."""


class ScoreRef(ArtifactRef):
    """`evaluation.json`: the score of one model on one split."""

    score: float
    metric: str
