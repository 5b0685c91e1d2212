"""What one update leaves behind: enough to show it, to go on from it, and to trace it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from recall.lineage import RegisteredUpdate
from recall.results import UpdateResult
from tasks.refs import (
    ArtifactRef,
    CheckpointRef,
    FinetunedRef,
    FisherRef,
    MomentsRef,
    RepresentationsRef,
    SamplesRef,
    ScoreRef,
    WeightsRef,
)


class Models(BaseModel):
    """What one method made in an update: `current` is its model afterwards; of EWC also the Fisher for the next one,
    of RegMean the moments of the expert's own inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    current: CheckpointRef
    expert: FinetunedRef
    samples: SamplesRef | None = None
    representations: list[RepresentationsRef] = []
    weights: WeightsRef | None = None
    fisher: FisherRef | None = None
    moments: MomentsRef | None = None

    @property
    def needed_next(self) -> list[ArtifactRef]:
        """What the method's next update starts from."""
        return [self.current, *([self.fisher] if self.fisher else [])]


class UpdateRecord(BaseModel):
    """An update's result and artifacts; `update.json` in its MLflow run, so that another machine can go on from it.

    `model_key` covers what can change the merged model, `key` what can change any score too.
    `scores[method][column]` is the method's row of R; `base_scores` are row 0 of the columns first needed here, and
    `before[method]` is the score on the new learning task before it was taken in. `evaluations` are RECALL's, by
    learning task, and those behind `base_scores` (`base/<learning task>`); the run has each as `scores/<name>.json`,
    row by row. `earlier` are the MLflow runs of the updates before;
    `registered`, which no file has, is where this one is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    model_key: str
    position: int
    result: UpdateResult
    models: dict[str, Models]
    scores: dict[str, dict[str, float]]
    base_scores: dict[str, float]
    before: dict[str, float]
    draft: bool
    evaluations: dict[str, ScoreRef] = {}
    earlier: list[str] = []
    registered: RegisteredUpdate | None = Field(default=None, exclude=True)

    def at(self, registered: RegisteredUpdate, *, reused: bool = False) -> UpdateRecord:
        """The same, with where it is registered, and whether an earlier run did that."""
        result = self.result.model_copy(update={"version": registered.version, "reused": reused})
        return self.model_copy(update={"result": result, "registered": registered})

    @property
    def run_id(self) -> str:
        """The MLflow run of a registered update."""
        assert self.registered is not None
        return self.registered.run_id

    def to_json(self) -> str:
        """The text of `update.json`."""
        return self.model_dump_json(indent=1)

    @property
    def metrics(self) -> dict[str, float]:
        """Every score under the name that MLflow has it by."""
        scores = {f"{method}/{name}": score for method, row in self.scores.items() for name, score in row.items()}
        return scores | {"expert/own": self.result.expert_score}
