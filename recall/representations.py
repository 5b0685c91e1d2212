"""Layer-wise representations: every sample's mean hidden state at every layer (RECALL, section 3.2; DESIGN 2, step 3).

Shape suffixes: B batch, T tokens, E hidden size, L layers (embeddings included), P samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recall.layers import blocks, find_layers
from recall.progress import track


def represent(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int,
    max_tokens: int,
    last_layer_only: bool = False,
    what: str = "representations",
) -> np.ndarray:
    """Mean hidden state over the non-padding tokens of each prompt, as it leaves each layer.

    Layer 0 is what enters the first block (the embedding output), layer l what leaves block l, before any final norm.
    Each block's output is pooled as it appears: kept are layers x samples x hidden size, never all hidden states.
    The sums run in float32; run the model in float32 too where the third digit of a similarity matters.

    Args:
        prompts: P texts; one longer than `max_tokens` loses its beginning.
        last_layer_only: pool only what leaves the last block, for clustering.

    Returns:
        float32 array, `(L, P, E)`, or `(1, P, E)` with `last_layer_only`.
    """
    tokens = [tokenizer(prompt).input_ids[-max_tokens:] for prompt in prompts]
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    pooled: list[Tensor] = [torch.empty(0)] * len(prompts)
    for batch in track(batches, what, total=len(batches)):
        means_LBE = _pooled_batch(model, [tokens[index] for index in batch], last_layer_only)
        for column, index in enumerate(batch):
            pooled[index] = means_LBE[:, column]
    return torch.stack(pooled, dim=1).numpy()


@torch.inference_mode()
def _pooled_batch(model: PreTrainedModel | PeftModel, rows: list[list[int]], last_layer_only: bool) -> Tensor:
    width = max(len(row) for row in rows)
    # Right padding: causal attention keeps padding out of every real token, and positions start at 0 in each row.
    ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    causal_lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    with _pooling_hooks(model, mask_BT, last_layer_only) as means:
        # Without its output head, whose logits nobody needs here.
        causal_lm.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    return torch.stack(means)


@contextmanager
def _pooling_hooks(model: nn.Module, mask_BT: Tensor, last_layer_only: bool) -> Iterator[list[Tensor]]:
    means: list[Tensor] = []
    mask_BT1 = mask_BT.unsqueeze(-1).float()

    def pool(hidden_BTE: Tensor) -> None:
        sums_BE = (hidden_BTE.float() * mask_BT1).sum(dim=1)
        means.append((sums_BE / mask_BT1.sum(dim=1)).cpu())

    def before_first(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pool(args[0] if args else kwargs["hidden_states"])

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        pool(output if isinstance(output, Tensor) else output[0])

    stack = blocks(model, find_layers(model).prefix)
    handles = [block.register_forward_hook(after) for block in (stack[-1:] if last_layer_only else stack)]
    if not last_layer_only:
        handles.append(stack[0].register_forward_pre_hook(before_first, with_kwargs=True))
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()
