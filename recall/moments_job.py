"""What `recall moments` does, as a library: the second moments of one model, kept beside it."""

from __future__ import annotations

from pathlib import Path

import torch

from recall.context_length import positions
from recall.errors import BadInput, Failed
from recall.loaded_models import loaded
from recall.merge_settings import MOMENTS_FILE, MomentsWeighting
from recall.model_classes import read_config
from recall.model_sources import find_models
from recall.moments import second_moments
from recall.prompts import read_samples


def keep_moments(
    model: str,
    samples: Path,
    out: Path | None,
    *,
    batch_size: int,
    max_tokens: int,
    rank: int | None = None,
    weighting: MomentsWeighting = "uniform",
) -> Path:
    """Write the second moments of a model's layer inputs over samples to `out`, or into the model's folder.

    `rank`: see `recall.moments.Moments.save`; `weighting`: see `recall.moments.second_moments`.

    Raises:
        BadInput: the model or the samples cannot be used; an encoder-decoder cannot.
        Failed: the file cannot be written.
    """
    (checkpoint,) = find_models([model])
    if read_config((checkpoint.base or checkpoint).folder).is_encoder_decoder:
        raise BadInput(
            f"model {model} is an encoder-decoder, whose moments are not taken; merge it by another --method"
        )
    prompts = [sample.read for sample in read_samples(samples)]
    path = out or checkpoint.folder / MOMENTS_FILE
    room = min(max_tokens, positions(checkpoint) or max_tokens)
    with loaded(checkpoint, torch.float32) as (network, tokenizer):
        found = second_moments(network, tokenizer, prompts, batch_size=batch_size, max_tokens=room, weighting=weighting)
    partial = path.with_name(f".{path.name}.partial")
    try:
        found.save(partial, rank)
        partial.rename(path)
    except OSError as error:
        raise Failed(f"{path} cannot be written ({error.strerror}); choose another --out") from error
    finally:
        partial.unlink(missing_ok=True)
    return path
