"""Greedy decoding of one line after each prompt, in batches that shrink as rows end.

Shapes: B rows still open.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recall.prompt_batches import PrefixReader


class GreedyDecoder:
    """Continues prompts with one model's likeliest tokens."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
    ) -> None:
        self.prefixes = PrefixReader(model, tokenizer)
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens

    @torch.inference_mode()
    def first_lines(self, prompts: list[list[int]]) -> list[str]:
        """The continuation of each prompt up to the end-of-text token, a newline or `max_new_tokens`, stripped."""
        written: list[list[int]] = [[] for _ in prompts]
        still_open = list(range(len(prompts)))
        states_B, prefix = self.prefixes.prompts(prompts)
        for step in range(self.max_new_tokens):
            tokens_B = self.prefixes.reader.logits(states_B).argmax(-1)
            for i, token in zip(still_open, tokens_B.tolist(), strict=True):
                written[i].append(token)
            kept = [place for place, i in enumerate(still_open) if not self._ended(written[i])]
            if not kept or step == self.max_new_tokens - 1:
                break
            if len(kept) < len(still_open):
                prefix = prefix.rows(torch.tensor(kept, device=tokens_B.device))
                still_open = [still_open[place] for place in kept]
            ids_B1 = tokens_B[kept, None]
            mask_B1 = torch.ones_like(ids_B1)
            states_B, prefix = self.prefixes.follow(prefix, ids_B1, mask_B1, mask_B1.bool())
        return [self._text(ids) for ids in written]

    def _ended(self, ids: list[int]) -> bool:
        return ids[-1] == self.tokenizer.eos_token_id or "\n" in self.tokenizer.decode(ids)

    def _text(self, ids: list[int]) -> str:
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return text.partition("\n")[0].strip()
