"""What an update trains from and what it merges (docs/method.md, step 1), for RECALL and for baselines that merge."""

from __future__ import annotations

from flows.stream_state import Stream
from tasks.cluster import cluster
from tasks.merge import merge
from tasks.records import Models
from tasks.refs import CheckpointRef, FinetunedRef, RepresentationsRef, SamplesRef, SplitRef, TextFileRef, file_sha256
from tasks.represent import represent
from tasks.weigh import fixed_weights


def start_model(stream: Stream, past: list[Models]) -> CheckpointRef:
    """What the next expert is fine-tuned from."""
    if not past or stream.settings.update.start_from == "base":
        return stream.base
    return past[-1].current


def merge_pool(stream: Stream, past: list[Models], expert: FinetunedRef) -> tuple[list[CheckpointRef], list[str]]:
    """The models that are merged, the newest last, and their names."""
    if stream.settings.update.pool == "experts":
        return [*(models.expert for models in past), expert], stream.seen(len(past) + 1)
    return pool_with_origin(stream, past, expert)


def pool_with_origin(stream: Stream, past: list[Models], expert: FinetunedRef) -> tuple[list[CheckpointRef], list[str]]:
    """As `merge_pool`, and first the model whose difference from each other one is added up: the base, or the current
    one."""
    *earlier, name = stream.seen(len(past) + 1)
    if stream.settings.update.pool_has_experts:
        return [stream.base, *(models.expert for models in past), expert], ["base", *earlier, name]
    return [past[-1].current if past else stream.base, expert], ["current", name]


def heldout(stream: Stream) -> dict[str, TextFileRef]:
    """The file that the samples come from, where the settings name one."""
    file = stream.settings.sampling.file
    return {"heldout": TextFileRef(fingerprint=file_sha256(file), path=file.resolve())} if file else {}


def typical(stream: Stream, label: str, expert: FinetunedRef, train: SplitRef) -> SamplesRef:
    """Stage 3, for whichever method needs an expert's typical samples."""
    # In the stage's key what a file holds counts, and not where it lies.
    settings = stream.settings.sampling.model_copy(update={"file": None})
    return cluster(stream.store, label, expert=expert, train=train, settings=settings, **heldout(stream))


def represent_pool(
    stream: Stream, label: str, pool: list[CheckpointRef], names: list[str], samples: SamplesRef
) -> list[RepresentationsRef]:
    """Stage 4 for every model of a pool, at once where there is a cluster."""
    settings = stream.settings
    modules = settings.weighting.granularity == "module"
    reads = {"samples": samples, "settings": settings.representations, "modules": modules}
    asked = [
        represent.submit(stream.store, f"{who}, {label}", model=model, **reads)
        for who, model in zip(names, pool, strict=True)
    ]
    return [pending.result() for pending in asked]


def keep_newest(stream: Stream, label: str, pool: list[CheckpointRef], names: list[str]) -> Models:
    """The expert as it is, written out as a full model."""
    weights = fixed_weights(stream.store, label, pool=pool, names=names, rule="sequential")
    merged = merge(stream.store, label, pool=pool, weights=weights)
    return Models(current=merged, expert=pool[-1], weights=weights)
