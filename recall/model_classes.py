"""Which transformers class a checkpoint is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from recall.errors import BadInput, one_line


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a checkpoint folder.

    Raises:
        BadInput: it cannot be read, or is of a model type that transformers does not know.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"config.json of {folder} cannot be used ({one_line(error)}); copy it again") from error
    return config


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that the config names; else the causal language model of its type, else the model without a head.

    Raises:
        BadInput: transformers knows none.
    """
    for name in getattr(config, "architectures", None) or []:
        named = getattr(transformers, name, None)
        if isinstance(named, type) and issubclass(named, PreTrainedModel):
            return named
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        found: Any = mapping.get(type(config), None)
        if found is not None:
            return cast(type[PreTrainedModel], found[0] if isinstance(found, tuple) else found)
    raise BadInput(f"model_type {config.model_type!r} has no class in transformers; give another checkpoint")
