"""What a stream run yields: the scores, weights and versions that the table, the report, MLflow and `--json` show."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable record or settings model: reads back from JSON as it was written, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Finite(Frozen):
    """Settings, whose numbers are all finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class ScoreMatrix(Frozen):
    """R of one method: `scores[i][j]` is the score after update i on column j, row 0 the base; None: not evaluated.

    Columns are the learning tasks in stream order, then the unseen ones. Scores lie in [0, 1], higher is better.
    """

    learning_tasks: list[str]
    unseen: list[str]
    scores: list[list[float | None]]


class MergeWeights(Frozen):
    """What one merge used: a row a layer (the embeddings first), a column a model (the newest last)."""

    layers: list[str]
    models: list[str]
    weights: list[list[float]]
    similarities: list[list[float]]
    sigma: list[float]

    @property
    def by_module(self) -> bool:
        """Do attention and MLP of a block have rows of their own?"""
        return any(layer.endswith(".attention") for layer in self.layers)

    @property
    def compares_models(self) -> bool:
        """Was the newest model compared with others? Not where it is kept whole."""
        return bool(self.similarities) and len(self.models) > 1


class LabelBias(Frozen):
    """The label that a model gives most rows of a classification, and whether it tells the labels apart.

    `given` is the share of rows that were given `label`, `true` that of rows whose target it is, `auc` the area under
    the ROC curve (`recall.label_bias`): 1 where the likelihoods rank all rows right, 0.5 by chance, None where all rows
    have one target.
    """

    label: str
    given: float
    true: float
    auc: float | None


class UpdateResult(Frozen):
    """One update: the expert's score on its own learning task, the merge, the registered version, seconds a stage.

    `cluster_sizes`: how many prompts each typical sample stands for; empty where they were chosen at random.
    `label_bias`: of the merged model, on each classification that it was scored on.
    `on_validation`: scores of the model "before", the "expert" and the "merged" one on the new learning task's
    validation rows. All three are empty in old records.
    """

    learning_task: str
    expert_score: float
    merge: MergeWeights
    version: str | None = None
    reused: bool = False
    seconds: dict[str, float] = {}
    cluster_sizes: list[int] = []
    label_bias: dict[str, LabelBias] = {}
    on_validation: dict[str, float] = {}


class StreamResult(Frozen):
    """Everything about one stream after its last update; `methods` has "recall" and the baselines asked for."""

    stream: str
    metrics: dict[str, str]
    methods: dict[str, ScoreMatrix]
    updates: list[UpdateResult]
    settings: dict[str, object]
    draft: bool = False

    @property
    def merged_by(self) -> str:
        """`update.merge` of the settings: how the updates were merged. Older results lack it, and were by RECALL."""
        update = self.settings.get("update")
        return str(update.get("merge", "recall")) if isinstance(update, dict) else "recall"

    @property
    def hold(self) -> float:
        """`merging.hold` of the settings: how strongly moments held fine-tuning; 0 is not at all."""
        merging = self.settings.get("merging")
        return float(merging.get("hold", 0)) if isinstance(merging, dict) else 0.0
