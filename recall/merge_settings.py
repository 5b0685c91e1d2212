"""Every merge method by its name, and what it reads; light, so that a run with nothing to do imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from recall.results import Finite
from recall.seeds import SEEDS

Baseline = Literal[
    "sequential", "average", "ewc", "replay", "slerp", "task_arithmetic", "ties", "dare", "pruned_average",
    "lm_cocktail", "regmean", "recall_moments",
]  # fmt: skip

MethodName = Literal[
    "recall", "average", "task_arithmetic", "lm_cocktail", "slerp", "ties", "dare", "pruned_average", "regmean",
    "recall_moments",
]  # fmt: skip
MomentsWeighting = Literal["uniform", "response"]
# These are sums with a weight a model and layer; the others compute an element from all models' elements.
WEIGHTED = ("recall", "average", "task_arithmetic", "lm_cocktail")
BY_SIMILARITY = ("recall", "recall_moments")
BY_MOMENTS = ("regmean", "recall_moments")
# They add up what tells models from the pool's first.
OF_DIFFERENCES = ("task_arithmetic", "ties", "dare", "pruned_average")
TAKES_WEIGHTS = (*WEIGHTED, "recall_moments")
FROM_SAMPLES = (*BY_SIMILARITY, "lm_cocktail")
READ_BY = {
    "task_arithmetic": ("scale",),
    "lm_cocktail": ("loss_temperature",),
    "slerp": ("fraction",),
    "ties": ("density", "scale"),
    "pruned_average": ("density", "scale"),
    "dare": ("density", "scale", "seed"),
    "regmean": ("shrink", "moments_rank", "moments_weighting"),
    "recall_moments": ("shrink", "moments_rank", "moments_weighting", "hold"),
}


# The file in a model's folder that the methods in BY_MOMENTS read.
MOMENTS_FILE = "moments.safetensors"


class MergingSettings(Finite):
    """What the merge methods beside the paper's RECALL read; a method reads only those that it names."""

    scale: float = Field(1.0, description="of task vectors: task_arithmetic, ties, dare, pruned_average")
    density: float = Field(0.2, gt=0, le=1, description="share of a task vector that stays: ties, dare, pruned_average")
    fraction: float = Field(0.5, ge=0, le=1, description="of the way from the first model to the second: slerp")
    loss_temperature: float = Field(1.0, gt=0, description="of the softmax over losses: lm_cocktail")
    shrink: float = Field(0.9, ge=0, le=1, description="of off-diagonal second moments: regmean, recall_moments")
    moments_rank: int | None = Field(
        None, gt=0, description="of what an expert leaves of each matrix of moments; null keeps it whole"
    )
    moments_weighting: MomentsWeighting = Field(
        "uniform",
        exclude_if=lambda weighting: weighting == "uniform",
        description="what an input counts for: all alike (RegMean), or as the answer responds to it (docs/merge.md)",
    )
    hold: float = Field(
        0.0,
        ge=0,
        exclude_if=lambda hold: hold == 0,
        description="how strongly earlier experts' moments hold the next one's fine-tuning: recall_moments",
    )
    seed: int = Field(0, ge=0, lt=SEEDS, description="of what is dropped: dare")

    def read_by(self, method: str) -> dict[str, Any]:
        """The settings that a method reads, by their names; a change of any other leaves its models as they are."""
        return self.model_dump(include=set(READ_BY.get(method, ())))
