"""Merging by moments, for an update's own merge and for baselines alike: every expert leaves its moments behind.

The current model stands for all earlier experts. The base leaves no moments, so it takes no part, and the first update
has nothing to merge.
"""

from __future__ import annotations

from typing import Any

from flows.pools import keep_newest, pool_with_origin, represent_pool, typical
from flows.stream_state import Stream
from tasks.merge import combine
from tasks.moments import moments
from tasks.records import Models
from tasks.refs import CheckpointRef, FinetunedRef, MomentsRef, SamplesRef, SplitRef
from tasks.weigh import weigh


def own_moments(stream: Stream, label: str, expert: FinetunedRef, train: SplitRef) -> tuple[SamplesRef, MomentsRef]:
    """What an expert leaves behind to be merged by: the moments of its layers' inputs over its own typical samples."""
    samples, reads = typical(stream, label, expert, train), stream.settings.representations
    weighting = stream.settings.merging.moments_weighting
    # What was made before there was a choice is still found.
    chosen: dict[str, Any] = {} if weighting == "uniform" else {"weighting": weighting}
    return samples, moments(
        stream.store,
        label,
        expert=expert,
        samples=samples,
        batch_size=reads.batch_size,
        max_tokens=reads.max_tokens,
        rank=stream.settings.merging.moments_rank,
        **chosen,
    )


def moments_pool(stream: Stream, past: list[Models], expert: FinetunedRef) -> tuple[list[CheckpointRef], list[str]]:
    """As `pool_with_origin`, without the base; in the first update it stands there, and the expert is kept whole."""
    if not past:
        return [stream.base, expert], ["current", stream.seen(1)[-1]]
    pool, names = pool_with_origin(stream, past, expert)
    return (pool[1:], names[1:]) if stream.settings.update.pool_has_experts else (pool, names)


def moments_groups(stream: Stream, past: list[Models], own: MomentsRef) -> list[list[MomentsRef]]:
    """Of each model of `moments_pool` the moments of the experts that it stands for; none in the first update."""
    if not past:
        return [[], []]
    kept = [models.moments for models in past if models.moments]
    return [[one] for one in [*kept, own]] if stream.settings.update.pool_has_experts else [kept, [own]]


def by_moments(
    stream: Stream, method: str, label: str, past: list[Models], expert: FinetunedRef, train: SplitRef
) -> Models:
    """Stages 3 to 6 by RegMean, or by RECALL with moments."""
    store, settings = stream.store, stream.settings
    samples, own = own_moments(stream, label, expert, train)
    pool, names = moments_pool(stream, past, expert)
    if not past:
        return keep_newest(stream, label, pool, names).model_copy(update={"samples": samples, "moments": own})
    models = Models(current=expert, expert=expert, samples=samples, moments=own)
    inputs: dict[str, Any] = {
        "options": {name: value for name, value in settings.merging.read_by(method).items() if name != "hold"},
        "moments": moments_groups(stream, past, own),
    }
    if method == "recall_moments":
        representations = represent_pool(stream, label, pool, names, samples)
        weights = weigh(
            store, label, pool=pool, names=names, representations=representations, settings=settings.weighting
        )
        models = models.model_copy(update={"representations": representations, "weights": weights})
        inputs["weights"] = weights
    merged = combine(store, label, pool=pool, method=method, **inputs)
    return models.model_copy(update={"current": merged})
