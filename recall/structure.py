"""A checkpoint's structure, from its config alone: the model without weights, and the row of every tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from transformers import MODEL_FOR_PRETRAINING_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.layers import Layers, find_layers
from recall.model_classes import model_class, read_config
from recall.tensor_files import TensorFolder


def checkpoint_layers(checkpoint: Checkpoint, modules: bool = False) -> Layers:
    """The layers of a checkpoint, found from its structure alone; no weight is read.

    Args:
        checkpoint: a full model, or an adapter, whose base counts.
        modules: attention and MLP apart, see `find_layers`.

    Raises:
        BadInput: a tensor of the checkpoint belongs to no layer, or the model has no layers.
    """
    folder = (checkpoint.base or checkpoint).folder
    config = read_config(folder)
    files = TensorFolder(folder)
    files.close()
    strangers = {}
    for kind in _classes(config):
        layers, strange = _with_names_of_file(kind, config, files.specs, modules)
        if not strange:
            return layers
        strangers[kind] = strange
    first, strange = next(iter(strangers.items()))
    raise BadInput(
        f"{folder}: tensor {strange[0]} belongs to no layer of {first.__name__}, so it cannot be merged; remove it, or "
        "name the class that has it in config.json"
    )


def _classes(config: PreTrainedConfig) -> list[type[PreTrainedModel]]:
    """The class that the config names, and the one with all heads of pretraining, which old files still hold."""
    complete = MODEL_FOR_PRETRAINING_MAPPING.get(type(config), None)
    return list(dict.fromkeys(kind for kind in (model_class(config), complete) if isinstance(kind, type)))


def _with_names_of_file(
    kind: type[PreTrainedModel], config: PreTrainedConfig, tensors: Iterable[str], modules: bool
) -> tuple[Layers, list[str]]:
    """The layers with the file's own names added, and the names that belong to none."""
    with torch.device("meta"):
        model = kind._from_config(config)
    layers = find_layers(model, modules)
    conversions = get_model_conversion_mapping(model)
    rows, strange = {}, []
    for name in tensors:
        renamed = name
        # As from_pretrained reads them: files keep names that the classes have changed since.
        for conversion in conversions:
            renamed, _ = conversion.rename_source_key(renamed)
        prefix = model.base_model_prefix
        candidates = (name, renamed, f"{prefix}.{renamed}", renamed.removeprefix(f"{prefix}."))
        exact = [layers.rows[candidate] for candidate in candidates if candidate in layers.rows]
        near = exact or [row for row in map(layers.find, candidates) if row is not None]
        if near:
            rows[name] = near[0]
        else:
            strange.append(name)
    return replace(layers, rows={**layers.rows, **rows}), strange
