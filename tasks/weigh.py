"""Stage 5, weight computation: how much of each model goes into each layer."""

from __future__ import annotations

from typing import Any, Literal

from recall.results import MergeWeights
from recall.settings import WeightingSettings
from tasks.refs import CheckpointRef, RepresentationsRef, SamplesRef, SplitRef, WeightsRef
from tasks.stage import Job, stage

# Of forward passes for the loss; but for the order of its sums it changes nothing.
BATCH = 16


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

    hidden_KLPE = np.stack([np.load(ref.path / "representations.npy", allow_pickle=False) for ref in representations])
    weights_LK, similarities_LK, sigma_L = weigh_layers(hidden_KLPE, settings)
    modules = settings.granularity == "module"
    _write(job, pool, names, weights_LK.tolist(), similarities_LK.tolist(), sigma_L.tolist(), modules)
    return {}


@stage(kind="weights", ref=WeightsRef)
def fixed_weights(
    job: Job,
    pool: list[CheckpointRef],
    names: list[str],
    rule: Literal["average", "task_arithmetic", "sequential"],
    scale: float = 1.0,
) -> dict[str, Any]:
    """The weights of a baseline: every model the same, the first plus scaled differences, or the newest alone."""
    from recall.structure import checkpoint_layers
    from recall.weighting import newest_only, task_arithmetic, uniform

    layers = checkpoint_layers(pool[0].checkpoint()).count + 1
    if rule == "task_arithmetic":
        weights_LK = task_arithmetic(layers, len(pool), scale)
    else:
        weights_LK = {"average": uniform, "sequential": newest_only}[rule](layers, len(pool))
    _write(job, pool, names, weights_LK.tolist(), [], [])
    return {}


@stage(kind="weights", ref=WeightsRef)
def weigh_by_loss(
    job: Job,
    pool: list[CheckpointRef],
    names: list[str],
    samples: SamplesRef,
    train: SplitRef,
    temperature: float,
    max_tokens: int,
) -> dict[str, Any]:
    """LM-Cocktail's weights: by each model's loss on the typical samples' answers.

    Samples that are no training rows have none; there it is the loss on all their text. Beyond `max_tokens` a prompt
    is cut on the left.
    """
    import numpy as np
    import torch

    from recall.loaded_models import loaded
    from recall.losses import mean_loss
    from recall.prompts import Sample
    from recall.structure import checkpoint_layers
    from recall.weighting import by_loss

    targets = {row.prompt: row.target for row in train.read()}
    rows = [Sample(prompt=prompt, target=targets.get(prompt)) for prompt in samples.read()]
    losses = []
    for name, member in zip(names, pool, strict=True):
        with loaded(member.checkpoint(), torch.float32) as (model, tokenizer):
            what = f"loss of {name}, {job.label}"
            losses.append(mean_loss(model, tokenizer, rows, batch_size=BATCH, max_tokens=max_tokens, what=what))
    layers = checkpoint_layers(pool[0].checkpoint()).count + 1
    _write(job, pool, names, by_loss(np.array(losses), temperature, layers).tolist(), [], [])
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
