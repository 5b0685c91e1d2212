"""Logits at chosen positions only.

The output head is the largest matrix of a small model (49,152 x 576 for SmolLM2-135M, a fifth of all parameters), and
`logits_to_keep` hands it a strided batch, for which the CPU's batched product copies the head once a row. So the body
runs alone and the head sees the chosen positions as one matrix.

Shapes: B batch, T tokens, N chosen positions, E hidden, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

Inputs = dict[str, Any]
LogitReader = Callable[[Inputs, torch.Tensor], tuple[torch.Tensor, Any]]


def logit_reader(model: PreTrainedModel | PeftModel) -> LogitReader:
    """A function `(inputs, chosen_BT) -> (logits_NV, cache)` for any causal language model.

    `inputs` are the model's keyword arguments, `chosen_BT` is boolean and N its number of trues in row order. Logits
    come in the type that the head computes in; cache is the model's `past_key_values`.

    Where logits are more than a linear map of the body's output (soft caps, scaled heads), which one small forward
    pass tells, the model's own full forward is used: slower, never wrong.
    """
    causal_lm: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    body, head = causal_lm.base_model, causal_lm.get_output_embeddings()
    plain = head is not None and _head_is_all(causal_lm, body, head)

    def read(inputs: Inputs, chosen_BT: torch.Tensor) -> tuple[torch.Tensor, Any]:
        if plain:
            out = body(**inputs)
            return head(out.last_hidden_state[chosen_BT]), out.get("past_key_values")
        out = causal_lm(**inputs)
        return out.logits[chosen_BT], out.get("past_key_values")

    return read


def takes_positions(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the model's body accepts `position_ids` (those with relative biases do not)."""
    causal_lm: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return "position_ids" in inspect.signature(causal_lm.base_model.forward).parameters


@torch.inference_mode()
def _head_is_all(causal_lm: PreTrainedModel, body: Any, head: Any) -> bool:
    training = causal_lm.training
    causal_lm.eval()
    ids_BT = torch.arange(4, device=causal_lm.device)[None] % causal_lm.config.get_text_config().vocab_size
    whole = causal_lm(input_ids=ids_BT, use_cache=False).logits
    apart = head(body(input_ids=ids_BT, use_cache=False).last_hidden_state)
    causal_lm.train(training)
    return torch.equal(whole, apart)
