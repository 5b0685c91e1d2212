"""The gates in `promotion` of params.yaml: what a version has to reach, and how sure that has to be."""

from __future__ import annotations

from pydantic import Field

from recall.results import Finite
from recall.seeds import SEEDS


class PromotionSettings(Finite):
    """Scores lie in [0, 1]. No update reads these, so a change makes nothing again (see recall/gates.py)."""

    minimum_average: float = Field(0.4, ge=0, le=1, description="least mean score over the learning tasks seen")
    maximum_forgetting: float = Field(
        0.2, ge=0, le=1, description="most that any learning task seen may have lost since its best"
    )
    unseen_margin: float = Field(
        0.05, ge=0, le=1, description="most that the mean over unseen learning tasks may lie below the champion's"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of each bound, one-sided")
    resamples: int = Field(5000, ge=100, le=1_000_000, description="of the bootstrap")
    seed: int = Field(0, ge=0, lt=SEEDS)
    approval: bool = Field(False, description="a deployed run waits for a person's word where the gates are borderline")
    approval_hours: float = Field(72, gt=0, description="how long it waits; not promoted after that")
