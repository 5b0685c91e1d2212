"""Samples of models that read no text: a safetensors file with what their forward takes, a sample a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recall.checkpoints import Checkpoint
from recall.errors import BadInput, one_line
from recall.loaded_models import loaded_model
from recall.representations import represent_inputs
from recall.sampling import typical_samples
from recall.settings import RepresentationSettings


def read_inputs(path: Path) -> dict[str, Tensor]:
    """For instance `pixel_values`, `(samples, channels, height, width)`.

    Raises:
        BadInput: the file cannot be read, or its tensors do not have the same number of samples, at least one.
    """
    try:
        inputs = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"samples {path} cannot be read ({one_line(error)}); save them again") from error
    counts = {len(tensor) if tensor.dim() else 0 for tensor in inputs.values()}
    if len(counts) != 1 or not min(counts):
        raise BadInput(f"samples {path} has tensors of {sorted(counts)} samples; give every tensor as many, and some")
    return inputs


def choose_inputs(
    inputs: dict[str, Tensor], newest: Checkpoint, clusters: int | None, settings: RepresentationSettings, seed: int
) -> dict[str, Tensor]:
    """The typical samples by the newest model's last-layer representations; all of them without `clusters`.

    Raises:
        BadInput: the model does not take such inputs, or there are fewer samples than clusters.
    """
    if clusters is None:
        return inputs
    last_PE = _represent(inputs, newest, settings, last_layer_only=True, modules=False, what="cluster")[0]
    chosen = typical_samples(last_PE, clusters, seed).indices
    return {name: tensor[chosen] for name, tensor in inputs.items()}


def represent_all(
    inputs: dict[str, Tensor],
    members: Sequence[Checkpoint],
    names: Sequence[str],
    settings: RepresentationSettings,
    modules: bool,
) -> np.ndarray:
    """`(K, L, P, E)`, with one model in memory at a time."""
    hidden = [
        _represent(inputs, member, settings, last_layer_only=False, modules=modules, what=f"represent {name}")
        for name, member in zip(names, members, strict=True)
    ]
    return np.stack(hidden)


def _represent(
    inputs: dict[str, Tensor],
    member: Checkpoint,
    settings: RepresentationSettings,
    *,
    last_layer_only: bool,
    modules: bool,
    what: str,
) -> np.ndarray:
    with loaded_model(member, torch.float32) as model:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
        wanted = (model.get_base_model() if isinstance(model, PeftModel) else model).main_input_name
        if wanted not in inputs:
            raise BadInput(f"{type(model).__name__} reads {wanted}, and the samples have {shapes}; save what it reads")
        try:
            return represent_inputs(
                model,
                inputs,
                batch_size=settings.batch_size,
                last_layer_only=last_layer_only,
                pooling=settings.pooling,
                modules=modules,
                what=what,
            )
        except (TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{type(model).__name__} cannot read {shapes} ({one_line(error)})") from error
