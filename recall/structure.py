"""A checkpoint's structure, from its config alone: the model without weights, and the layer of every tensor."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.layers import Layers, find_layers
from recall.tensor_files import TensorFolder


def checkpoint_layers(checkpoint: Checkpoint) -> Layers:
    """The layers of a checkpoint, found from its structure alone; no weight is read."""
    folder = (checkpoint.base or checkpoint).folder
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    layers = find_layers(model)
    known = set(model.state_dict())
    for name in TensorFolder(folder).specs:
        if name not in known and not name.startswith(f"{layers.prefix}."):
            raise BadInput(
                f"{folder}: tensor {name} belongs to no layer of {type(model).__name__}, so it cannot be merged"
            )
    return layers
