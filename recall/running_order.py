"""The order in which a model uses its tensors, seen by running its structure once without weights.

The order of registration is another: BART registers its embedding norm behind the blocks, OPT its final norm before
them, and the norm of wav2vec2's encoder stands in one place and runs before or after the blocks as the config says.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

SECOND_OF_SOUND = 16_000


def running_order(model: nn.Module) -> list[list[str]]:
    """Every parameter and buffer of a model in the order of first use, as groups of names: tied ones are one group.

    One that is not seen in use comes right behind the one registered before it. Where the model is no transformers
    model, or cannot run without weights, that makes it the order of registration.
    """
    groups = tied_groups(model)
    twin = _without_weights(model, groups) if isinstance(model, PreTrainedModel) else None
    used = _names_in_use(twin, groups) if twin is not None else []
    order = list(used)
    for before, name in zip([None, *groups], groups, strict=False):
        if name not in used:
            order.insert(order.index(before) + 1 if before is not None else 0, name)
    return [groups[name] for name in order]


def tied_groups(model: nn.Module) -> dict[str, list[str]]:
    """The names of every parameter and buffer, by its first name; an untied one is a group of one."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        by_tensor.setdefault(id(tensor), []).append(name)
    return {names[0]: names for names in by_tensor.values()}


def untie(model: nn.Module, name: str) -> None:
    """Give a parameter a tensor of its own."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(torch.empty_like(model.get_parameter(name))))


def has_decoder(model: Any) -> bool:
    """Does the model read its output so far too? An encoder on its own may have the config of an encoder-decoder."""
    reads = inspect.signature(type(model).forward).parameters
    return bool(model.config.is_encoder_decoder) and "decoder_input_ids" in reads


def _without_weights(model: PreTrainedModel, groups: dict[str, list[str]]) -> PreTrainedModel:
    """The same structure on the meta device, with the plainest attention, in a type that every kernel takes."""
    with torch.device("meta"):
        twin: PreTrainedModel = type(model)._from_config(
            copy.deepcopy(model.config), attn_implementation="eager", dtype=torch.bfloat16
        )
    for first, *others in tied_groups(twin).values():
        for name in others:
            if name in groups and first in groups:
                untie(twin, name)
    twin.eval()
    return twin


def _names_in_use(twin: PreTrainedModel, groups: Iterable[str]) -> list[str]:
    tensors = twin.state_dict(keep_vars=True)
    watch = _Watch({id(tensors[name]): name for name in groups})
    try:
        with torch.no_grad(), torch.device("meta"), watch:
            twin(**_some_inputs(twin))
    except Exception:
        # Some models branch on values, which a structure without weights lacks, or read none of the usual inputs. What
        # was seen until then counts.
        pass
    return list(watch.seen)


class _Watch(TorchFunctionMode):
    """Notes which of the tensors that it knows are computed with, in order."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.seen: dict[str, None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # To ask for its type or device is not to use it.
        if isinstance(result, Tensor):
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self.names:
                    self.seen.setdefault(self.names[id(leaf)])
        return result


def _some_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """The smallest inputs of the kind that a model reads, without content."""
    config: Any = model.config
    name = model.main_input_name
    if name == "pixel_values":
        size = config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        main = torch.empty(1, config.num_channels, height, width, dtype=model.dtype)
    elif name == "input_values":
        main = torch.empty(1, SECOND_OF_SOUND, dtype=model.dtype)
    elif name == "input_features":
        main = torch.empty(1, config.num_mel_bins, 2 * config.max_source_positions, dtype=model.dtype)
    else:
        main = torch.zeros(1, 2, dtype=torch.long)
    decoder = {"decoder_input_ids": torch.zeros(1, 2, dtype=torch.long)} if has_decoder(model) else {}
    return {name: main} | decoder
