"""What each method's expert is fine-tuned from and on (stage 2), and how a cluster begins with it early."""

from __future__ import annotations

from typing import Any

from flows.pools import start_model
from flows.stream_state import Stream
from tasks import workers
from tasks.finetune import finetune
from tasks.records import Models, UpdateRecord
from tasks.refs import DatasetRef

# They train on from their own newest model and keep it whole; the last two guard against forgetting in training.
SEQUENTIAL = ("sequential", "ewc", "replay")


def training(stream: Stream, method: str, past: list[Models], data_sets: dict[str, DatasetRef]) -> dict[str, Any]:
    """The inputs of `finetune` in the update that follows `past`."""
    settings = stream.settings.finetuning
    newest = past[-1].current if past else stream.base
    inputs: dict[str, Any] = {
        "start": newest if method in SEQUENTIAL else start_model(stream, past),
        "train": data_sets[stream.seen(len(past) + 1)[-1]].train,
        "settings": settings.plain,
    }
    # What is given of earlier learning tasks: a Fisher for EWC, rows for replay, moments where they hold training.
    if method == "ewc" and past:
        assert past[-1].fisher is not None
        inputs |= {"fisher": past[-1].fisher, "strength": settings.ewc.strength}
    if method == "replay" and past:
        earlier = [data_sets[name].train for name in stream.seen(len(past))]
        inputs |= {"earlier": earlier, "share": settings.replay.share}
    merge, hold = stream.settings.update.merge if method == "recall" else method, stream.settings.merging.hold
    kept = [models.moments for models in past if models.moments]
    if merge == "recall_moments" and hold and kept and stream.settings.update.start_from == "merged":
        inputs |= {"moments": kept, "strength": hold}
    return inputs


def train_ahead(stream: Stream, earlier: list[UpdateRecord], data_sets: dict[str, DatasetRef]) -> None:
    """On a cluster, begin every fine-tuning that waits for nothing; whoever needs its expert later gets this one.

    These are each method's in the coming update and, of experts that start from the base, those of all later updates.
    """
    if workers.current() is None:
        return
    position = len(earlier) + 1
    for method in stream.methods:
        past = [record.models[method] for record in earlier]
        needed = [ref for models in past[-1:] for ref in models.needed_next]
        if all(map(stream.has, [*needed, *(models.moments for models in past if models.moments)])):
            label = f"{stream.seen(position)[-1]} ({method})"
            finetune.submit(stream.store, label, **training(stream, method, past, data_sets))
    if stream.settings.update.start_from == "base":
        for name in stream.settings.stream.learning_tasks[position:]:
            inputs = training(stream, "recall", [], data_sets) | {"train": data_sets[name].train}
            finetune.submit(stream.store, f"{name} (recall)", **inputs)
