"""What RECALL is compared with: the same update by methods that differ in how they train, or in how they merge.

Every method fine-tunes from its own current model (or the base) with the same data and settings.
"""

from __future__ import annotations

from typing import Any

from flows.pools import heldout, merge_pool, represent_pool
from flows.stream_state import Stream
from flows.training import SEQUENTIAL, training
from recall.merge_settings import BY_MOMENTS
from tasks.cluster import cluster
from tasks.finetune import finetune
from tasks.fisher import fisher
from tasks.merge import combine, merge
from tasks.moments import moments
from tasks.records import Models
from tasks.refs import CheckpointRef, DatasetRef, FinetunedRef, FisherRef, MomentsRef, SamplesRef, SplitRef
from tasks.weigh import fixed_weights, weigh, weigh_by_loss


def learn_baseline(stream: Stream, method: str, past: list[Models], data_sets: dict[str, DatasetRef]) -> Models:
    """Stages 2 to 6 of an update, by a baseline."""
    name = stream.seen(len(past) + 1)[-1]
    train, label = data_sets[name].train, f"{name} ({method})"
    assert train is not None
    settings, store = stream.settings, stream.store
    expert = finetune(store, label, **training(stream, method, past, data_sets))
    if method in SEQUENTIAL:
        models = keep_newest(stream, label, [past[-1].current if past else stream.base, expert], ["current", name])
        if method == "ewc":
            return models.model_copy(update={"fisher": consolidate(stream, label, models.current, train, past)})
        return models
    pool, names = merge_pool(stream, past, expert)
    if method in BY_MOMENTS:
        return by_moments(stream, method, label, past, expert, train)
    if method == "lm_cocktail":
        samples = typical(stream, label, expert, train)
        weights = weigh_by_loss(
            store, label, pool=pool, names=names, samples=samples, train=train,
            temperature=settings.merging.loss_temperature, max_tokens=settings.representations.max_tokens,
        )  # fmt: skip
        return Models(current=merge(store, label, pool=pool, weights=weights), expert=expert, weights=weights)
    options = settings.merging.read_by(method)
    if method in ("average", "task_arithmetic"):
        weights = fixed_weights(store, label, pool=pool, names=names, rule=method, **options)
        return Models(current=merge(store, label, pool=pool, weights=weights), expert=expert, weights=weights)
    merged = combine(store, label, pool=pool, method=method, options=options)
    return Models(current=merged, expert=expert)


def keep_newest(stream: Stream, label: str, pool: list[CheckpointRef], names: list[str]) -> Models:
    """The expert as it is, written out as a full model."""
    weights = fixed_weights(stream.store, label, pool=pool, names=names, rule="sequential")
    merged = merge(stream.store, label, pool=pool, weights=weights)
    return Models(current=merged, expert=pool[-1], weights=weights)


def consolidate(stream: Stream, label: str, model: CheckpointRef, train: SplitRef, past: list[Models]) -> FisherRef:
    """EWC's memory for the next update: the new model's Fisher on the new data, plus that of the past."""
    earlier = past[-1].fisher if past else None
    settings = stream.settings.finetuning.fisher
    return fisher(stream.store, label, model=model, train=train, earlier=earlier, settings=settings)


def typical(stream: Stream, label: str, expert: FinetunedRef, train: SplitRef) -> SamplesRef:
    """Stage 3 for a baseline's own expert."""
    settings = stream.settings.sampling
    return cluster(stream.store, label, expert=expert, train=train, settings=settings, **heldout(stream))


def own_moments(stream: Stream, label: str, expert: FinetunedRef, train: SplitRef) -> tuple[SamplesRef, MomentsRef]:
    """What an expert leaves behind to be merged by: the moments of its layers' inputs over its own typical samples."""
    samples, reads = typical(stream, label, expert, train), stream.settings.representations
    return samples, moments(
        stream.store,
        label,
        expert=expert,
        samples=samples,
        batch_size=reads.batch_size,
        max_tokens=reads.max_tokens,
        rank=stream.settings.merging.moments_rank,
    )


def by_moments(
    stream: Stream, method: str, label: str, past: list[Models], expert: FinetunedRef, train: SplitRef
) -> Models:
    """RegMean, or RECALL with moments: every expert leaves its moments, and the current model stands for all earlier.

    The base leaves none, so it takes no part, and the first update has nothing to merge.
    """
    store, settings = stream.store, stream.settings
    samples, own = own_moments(stream, label, expert, train)
    name = stream.seen(len(past) + 1)[-1]
    if not past:
        models = keep_newest(stream, label, [stream.base, expert], ["current", name])
        return models.model_copy(update={"samples": samples, "moments": own})
    kept: list[MomentsRef] = [models.moments for models in past if models.moments]
    pool, names = merge_pool(stream, past, expert)
    if settings.update.pool_has_experts:
        pool, names, groups = pool[1:], names[1:], [[one] for one in [*kept, own]]
    else:
        groups = [kept, [own]]
    models = Models(current=expert, expert=expert, samples=samples, moments=own)
    inputs: dict[str, Any] = {"options": settings.merging.read_by(method), "moments": groups}
    if method == "recall_moments":
        representations = represent_pool(stream, label, pool, names, samples)
        weights = weigh(
            store, label, pool=pool, names=names, representations=representations, settings=settings.weighting
        )
        models = models.model_copy(update={"representations": representations, "weights": weights})
        inputs["weights"] = weights
    merged = combine(store, label, pool=pool, method=method, **inputs)
    return models.model_copy(update={"current": merged})
