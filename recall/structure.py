"""A checkpoint's structure, from its config and headers: the model without weights, and the row of every tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_PRETRAINING_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping

from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.layers import Layers, find_layers
from recall.model_classes import model_class, read_config
from recall.running_order import tied_groups, untie
from recall.tensor_files import TensorFolder

# By class, config, what is untied and `modules`: most models that a process meets are of one architecture.
_found: dict[tuple[type[PreTrainedModel], str, tuple[str, ...], bool], Layers] = {}


def checkpoint_layers(checkpoint: Checkpoint, modules: bool = False) -> Layers:
    """The layers of a checkpoint, found from its structure; no weight is read (but see `_untie_what_differs`).

    Args:
        checkpoint: a full model, or an adapter, whose base counts.
        modules: attention and MLP apart, see `find_layers`.

    Raises:
        BadInput: a tensor of the checkpoint belongs to no layer, or the model has no layers.
    """
    folder = (checkpoint.base or checkpoint).folder
    config = read_config(folder)
    files = TensorFolder(folder)
    strangers = {}
    try:
        for kind in _classes(config):
            layers, strange = _layers_of_file(kind, config, files, modules)
            if not strange:
                return layers
            strangers[kind] = strange
    finally:
        files.close()
    first, strange = next(iter(strangers.items()))
    raise BadInput(
        f"{folder}: tensor {strange[0]} belongs to no layer of {first.__name__}, so it cannot be merged; remove it, or "
        "name the class that has it in config.json"
    )


def tied_with(files: TensorFolder, name: str, headed: bool = False) -> str | None:
    """What else the model uses a tensor of its file as, for instance as its head; None where it is nothing else.

    Args:
        headed: as a causal language model, though the file has none of its head.
    """
    config = read_config(files.folder)
    with_head = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) if headed else None
    kind = with_head if isinstance(with_head, type) else model_class(config)
    with torch.device("meta"):
        model = kind._from_config(config)
    held = {candidate: stored for stored, found in _names_in_model(model, files.specs).items() for candidate in found}
    for group in tied_groups(model).values():
        if any(held.get(part) == name for part in group):
            return next((part for part in group if part not in held), None)
    return None


def _classes(config: PreTrainedConfig) -> list[type[PreTrainedModel]]:
    """The class that the config names, and the one with all heads of pretraining, which old files still hold."""
    complete = MODEL_FOR_PRETRAINING_MAPPING.get(type(config), None)
    return list(dict.fromkeys(kind for kind in (model_class(config), complete) if isinstance(kind, type)))


def _layers_of_file(
    kind: type[PreTrainedModel], config: PreTrainedConfig, files: TensorFolder, modules: bool
) -> tuple[Layers, list[str]]:
    """The layers with the file's own names added, and the names that belong to none."""
    with torch.device("meta"):
        model = kind._from_config(config)
    names = _names_in_model(model, files.specs)
    untied = _untie_what_differs(model, files, names)
    key = kind, _text(config), untied, modules
    if key not in _found:
        _found[key] = find_layers(model, modules)
    layers = _found[key]
    rows: dict[str, int] = {}
    for name, candidates in names.items():
        found = [row for row in map(layers.find, candidates) if row is not None]
        rows |= {name: found[0]} if found else {}
    return replace(layers, rows={**layers.rows, **rows}), [name for name in names if name not in rows]


def _text(config: PreTrainedConfig) -> str:
    """All of a config but the folder that it was read from."""
    said = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    return json.dumps(said, sort_keys=True, default=str)


def _names_in_model(model: PreTrainedModel, tensors: Iterable[str]) -> dict[str, list[str]]:
    """What each of the file's tensors may be called in the model: its name there, if it has it, or some to try.

    As from_pretrained reads them: files keep names that the classes have changed since, and may lack or have the prefix
    of the headed class.
    """
    known = set(model.state_dict())
    conversions = get_model_conversion_mapping(model)
    prefix = f"{model.base_model_prefix}."
    names = {}
    for name in tensors:
        renamed = name
        for conversion in conversions:
            renamed, _ = conversion.rename_source_key(renamed)
        candidates = [name, renamed, prefix + renamed, renamed.removeprefix(prefix)]
        names[name] = [candidate for candidate in candidates if candidate in known] or candidates
    return names


def _untie_what_differs(model: PreTrainedModel, files: TensorFolder, names: dict[str, list[str]]) -> tuple[str, ...]:
    """What the class ties but the file holds apart, with different values, is not tied: T5 1.1 has such a head.

    So does from_pretrained read them. Only where a file holds both are their values compared. Returns what was untied.
    """
    untied = []
    held = {candidates[0]: name for name, candidates in names.items()}
    for group in tied_groups(model).values():
        first, *others = [name for name in group if name in held] or [""]
        for other in others:
            same_form = files.specs[held[first]] == files.specs[held[other]]
            if not same_form or files.read(held[first]) != files.read(held[other]):
                untie(model, other)
                untied.append(other)
    return tuple(untied)
