"""Samples that a model makes up itself, so that an update needs no data beside its experts."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recall.errors import BadInput
from recall.progress import track

ROUNDS = 8
GENERATED_TOKENS = 64


def generate_prompts(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> list[str]:
    """`count` different texts, sampled at temperature 1 from the start-of-text token on.

    Raises:
        BadInput: the model writes no text, the tokenizer has no token to start from, or it says the same too often.
    """
    generator: Any = model
    if not generator.can_generate():
        raise BadInput(f"{type(model).__name__} writes no text; give samples instead")
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise BadInput("the tokenizer has no start or end token to generate from; give samples instead")
    texts: dict[str, None] = {}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(seed)
        for _ in track(range(-(-count * ROUNDS // batch_size)), "generate samples"):
            ids_BT = torch.full((batch_size, 1), start, device=model.device)
            written_BT = generator.generate(
                input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            found = (str(text).strip() for text in tokenizer.batch_decode(written_BT, skip_special_tokens=True))
            texts |= {text: None for text in found if text}
            if len(texts) >= count:
                return list(texts)[:count]
    raise BadInput(f"the model made up {len(texts)} different texts where {count} are needed; give samples instead")
