"""Stage 5, weight computation: how much of each model goes into each layer."""

from __future__ import annotations

from typing import Any, Literal

from recall.results import MergeWeights
from recall.settings import WeightingSettings
from tasks.refs import CheckpointRef, RepresentationsRef, WeightsRef
from tasks.stage import Job, stage


@stage(kind="weights", ref=WeightsRef)
def weigh(
    job: Job,
    pool: list[CheckpointRef],
    names: list[str],
    representations: list[RepresentationsRef],
    settings: WeightingSettings,
) -> dict[str, Any]:
    """RECALL's weights from representations of the same samples, a model each, the newest last."""
    import numpy as np

    from recall.weighting import weigh as weigh_layers

    hidden_KLPE = np.stack([np.load(ref.path / "representations.npy") for ref in representations])
    weights_LK, similarities_LK, sigma_L = weigh_layers(hidden_KLPE, settings)
    modules = settings.granularity == "module"
    _write(job, pool, names, weights_LK.tolist(), similarities_LK.tolist(), sigma_L.tolist(), modules)
    return {}


@stage(kind="weights", ref=WeightsRef)
def fixed_weights(
    job: Job, pool: list[CheckpointRef], names: list[str], rule: Literal["average", "sequential"]
) -> dict[str, Any]:
    """The weights of a baseline: every model the same, or the newest alone."""
    from recall.structure import checkpoint_layers
    from recall.weighting import newest_only, uniform

    layers = checkpoint_layers(pool[0].checkpoint()).count + 1
    weights_LK = {"average": uniform, "sequential": newest_only}[rule](layers, len(pool))
    _write(job, pool, names, weights_LK.tolist(), [], [])
    return {}


def _write(
    job: Job,
    pool: list[CheckpointRef],
    names: list[str],
    weights: list[list[float]],
    alike: list[list[float]],
    sigma: list[float],
    modules: bool = False,
) -> None:
    from recall.structure import checkpoint_layers

    layers = checkpoint_layers(pool[0].checkpoint(), modules=modules).names
    record = MergeWeights(layers=layers, models=names, weights=weights, similarities=alike, sigma=sigma)
    (job.out / "weights.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
