"""Garbage out is said: what a merged model makes of the samples, against the worst model that went into it."""

from __future__ import annotations

import math

import numpy as np
import torch

from recall.checkpoints import Checkpoint
from recall.input_samples import represent_all
from recall.loaded_models import forget, loaded
from recall.losses import mean_loss
from recall.merge_weights import Weighing
from recall.representations import represent
from recall.settings import RepresentationSettings


def check_merged(
    merged: Checkpoint, weighing: Weighing, settings: RepresentationSettings
) -> tuple[float | None, list[str]]:
    """The merged model's loss on the samples (None if it is no causal language model), and what is to be warned of."""
    try:
        if not weighing.losses:
            finite = np.isfinite(_states(merged, weighing, settings)).all()
            return None, [] if finite else ["the merged model's representations of the samples are not finite"]
        with loaded(merged, torch.float32) as (model, tokenizer):
            loss = mean_loss(
                model,
                tokenizer,
                weighing.samples,
                batch_size=settings.batch_size,
                max_tokens=weighing.max_tokens,
                what="loss of the merged model",
            )
    finally:
        forget()
    return loss, _warnings(loss, max(weighing.losses))


def _states(merged: Checkpoint, weighing: Weighing, settings: RepresentationSettings) -> np.ndarray:
    if weighing.inputs:
        return represent_all(weighing.inputs, [merged], ["the merged model"], settings, modules=False)
    prompts = [sample.read for sample in weighing.samples]
    with loaded(merged, torch.float32) as (model, tokenizer):
        return represent(
            model, tokenizer, prompts, batch_size=settings.batch_size, max_tokens=weighing.max_tokens
        )  # fmt: skip


def _warnings(loss: float, worst: float) -> list[str]:
    if math.isnan(worst) or (math.isfinite(loss) and loss <= worst):
        # Without a text of two tokens no model has a loss.
        return []
    if not math.isfinite(loss):
        return ["the merged model's loss on the samples is not finite: it is of no use"]
    return [
        f"the merged model's perplexity on the samples is {_perplexity(loss)}, worse than the worst of its models "
        f"({_perplexity(worst)}); try other weights, or models nearer to each other"
    ]


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.1f}" if loss < 50 else f"e^{loss:.0f}"
