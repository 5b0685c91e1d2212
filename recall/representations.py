"""Layer-wise representations: a pooled hidden state for every sample and layer (RECALL, 3.2; docs/method.md, step 3).

Shape suffixes: B batch, T tokens, E hidden size, R rows (embeddings, then the layers), P samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recall.encoding import shortened
from recall.errors import BadInput
from recall.hidden_states import HiddenStates, Pooling
from recall.progress import track


def represent(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int,
    max_tokens: int,
    last_layer_only: bool = False,
    pooling: Pooling = "mean",
    modules: bool = False,
    what: str = "representations",
) -> np.ndarray:
    """Pool the hidden states over the non-padding tokens of each prompt, as they leave each layer.

    Row 0 is what enters the first block (the embedding output), then what leaves each block, before any final norm.
    An encoder-decoder reads the prompt twice: its decoder gets it shifted right (the start token, then all but the last
    token), as BART does with a text alone. Its rows are the encoder's embedding output, the encoder's blocks, and the
    decoder's.

    Each block's output is pooled as it appears: kept are rows x samples x hidden size, never all hidden states.
    The sums run in float32; run the model in float32 too where the third digit of a similarity matters.

    Args:
        prompts: P texts; one longer than `max_tokens` loses its beginning.
        last_layer_only: only what leaves the last block (the decoder's, where there is one), for clustering.
        pooling: the mean over the tokens, the last token, or the mean without the first token.
        modules: rows as `find_layers(model, modules=True).names`: what leaves each block's attention, and the block.

    Returns:
        float32 array, `(R, P, E)`, or `(1, P, E)` with `last_layer_only`.

    Raises:
        BadInput: a prompt has no tokens; the layers' hidden sizes differ; see also `HiddenStates`.
    """
    tokens = [shortened(tokenizer(prompt).input_ids, max_tokens, tokenizer) for prompt in prompts]
    empty = next((index for index, row in enumerate(tokens) if not row), None)
    if empty is not None:
        raise BadInput(f"prompt {empty} ({prompts[empty]!r}) has no tokens; leave it out")
    states = HiddenStates(model, pooling, modules, last_layer_only)
    pad = _padding(states.model.config, tokenizer)

    def batch(indices: list[int]) -> Tensor:
        rows = [tokens[index] for index in indices]
        width = max(len(row) for row in rows)
        # Right padding: causal attention keeps padding out of every real token, and positions start at 0 in each row.
        ids_BT = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=model.device)
        mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if states.has_decoder:
            shifted_BT = torch.cat([_start(states.model, len(rows)), ids_BT[:, :-1]], dim=1)
            inputs |= {"decoder_input_ids": shifted_BT, "decoder_attention_mask": mask_BT}
        return states.read(inputs, mask_BT)

    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    return _in_batches(order, batch_size, batch, what)


def represent_inputs(
    model: PreTrainedModel | PeftModel,
    inputs: dict[str, Tensor],
    *,
    batch_size: int,
    last_layer_only: bool = False,
    pooling: Pooling = "mean",
    modules: bool = False,
    what: str = "representations",
) -> np.ndarray:
    """As `represent`, of images (`pixel_values`), sound (`input_values`, `input_features`) or whatever the model reads.

    Pooled over all positions of the hidden states: patches or frames, class tokens included. Extractors change the
    length, so no mask of the inputs fits; give samples of one length. A decoder that is given no input gets its start
    token alone.

    Args:
        inputs: what the model's forward takes; the first dimension of every tensor is the sample.

    Returns:
        float32 array, `(R, P, E)`, or `(1, P, E)` with `last_layer_only`.

    Raises:
        BadInput: as `represent`; or the tensors have different numbers of samples.
    """
    counts = {len(tensor) for tensor in inputs.values()}
    if len(counts) != 1:
        raise BadInput(f"the inputs have {sorted(counts)} samples; give every tensor as many")
    states = HiddenStates(model, pooling, modules, last_layer_only)

    def batch(indices: list[int]) -> Tensor:
        given = {name: _to(model, tensor[indices]) for name, tensor in inputs.items()}
        if states.has_decoder and "decoder_input_ids" not in given:
            given["decoder_input_ids"] = _start(states.model, len(indices))
        return states.read(given)

    return _in_batches(list(range(counts.pop())), batch_size, batch, what)


def _in_batches(order: list[int], batch_size: int, read: Callable[[list[int]], Tensor], what: str) -> np.ndarray:
    """`(R, P, E)`: what `read` gives for each batch of indices, every sample back in its place."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    pooled: list[Tensor] = [torch.empty(0)] * len(order)
    for indices in track(batches, what, total=len(batches)):
        for column, pooled_RE in zip(indices, read(indices).unbind(dim=1), strict=True):
            pooled[column] = pooled_RE
    return torch.stack(pooled, dim=1).numpy()


def _padding(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The model's own padding token before the tokenizer's: RoBERTa counts its positions past the former."""
    candidates = (getattr(config, "pad_token_id", None), tokenizer.pad_token_id)
    # Some configs say -1 for none.
    return next((pad for pad in candidates if isinstance(pad, int) and pad >= 0), 0)


def _start(model: PreTrainedModel, count: int) -> Tensor:
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise BadInput(f"config.json of {type(model).__name__} has no decoder_start_token_id; set it")
    return torch.full((count, 1), start, device=model.device)


def _to(model: PreTrainedModel | PeftModel, tensor: Tensor) -> Tensor:
    return tensor.to(model.device, model.dtype) if tensor.is_floating_point() else tensor.to(model.device)
