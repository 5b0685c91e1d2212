"""What RECALL is compared with: the same update by methods that differ in how they train, or in how they merge.

Every method fine-tunes from its own current model (or the base) with the same data and settings.
"""

from __future__ import annotations

from flows.moments import by_moments
from flows.pools import keep_newest, merge_pool, pool_with_origin, typical
from flows.stream_state import Stream
from flows.training import SEQUENTIAL, training
from recall.merge_settings import BY_MOMENTS, OF_DIFFERENCES
from tasks.finetune import finetune
from tasks.fisher import fisher
from tasks.merge import combine, merge
from tasks.records import Models
from tasks.refs import CheckpointRef, DatasetRef, FisherRef, SplitRef
from tasks.weigh import fixed_weights, weigh_by_loss


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
    if method in BY_MOMENTS:
        return by_moments(stream, method, label, past, expert, train)
    pool, names = (pool_with_origin if method in OF_DIFFERENCES else merge_pool)(stream, past, expert)
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


def consolidate(stream: Stream, label: str, model: CheckpointRef, train: SplitRef, past: list[Models]) -> FisherRef:
    """EWC's memory for the next update: the new model's Fisher on the new data, plus that of the past."""
    earlier = past[-1].fisher if past else None
    settings = stream.settings.finetuning.fisher
    return fisher(stream.store, label, model=model, train=train, earlier=earlier, settings=settings)
