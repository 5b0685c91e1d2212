"""Batches of prompts and what follows them, padded so that every row's newest token is the last.

Shapes: B batch, P prompt tokens, S following tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from recall.answer_logits import LogitReader


@dataclass
class Prefix:
    """Prompts that a model has read: their key-value cache, and the mask (B, P) over what it holds."""

    cache: DynamicCache
    mask: torch.Tensor

    def rows(self, chosen: torch.Tensor) -> Prefix:
        """The prefix of the chosen rows, repeated as often as named; this one's cache is used up."""
        self.cache.batch_select_indices(chosen)
        return Prefix(self.cache, self.mask[chosen])


class PrefixReader:
    """Reads prompts, then what follows them, giving only the states that are asked for (see `LogitReader`)."""

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.reader = LogitReader(model)
        self.pad: int = tokenizer.pad_token_id
        self.model = model

    def prompts(self, prompts: list[list[int]]) -> tuple[torch.Tensor, Prefix]:
        """States (B, ...) of each prompt's last token, and the prefix to continue from.

        What all prompts begin with is read once; the padding stands between that and the rest.
        """
        prefix = self._common(prompts)
        rests = [ids[prefix.mask.shape[1] :] for ids in prompts]
        longest = max(map(len, rests))
        ids_BS = self._tensor([[self.pad] * (longest - len(ids)) + ids for ids in rests])
        mask_BS = self._tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rests])
        last_BS = torch.zeros_like(mask_BS, dtype=torch.bool)
        last_BS[:, -1] = True
        return self.follow(prefix, ids_BS, mask_BS, last_BS)

    def follow(
        self, prefix: Prefix, ids_BS: torch.Tensor, mask_BS: torch.Tensor, chosen_BS: torch.Tensor
    ) -> tuple[torch.Tensor, Prefix]:
        """States (N, ...) at the chosen places of tokens that follow the prefix, and the longer prefix."""
        mask_BP = torch.cat([prefix.mask, mask_BS], dim=1)
        inputs: dict[str, Any] = {
            "input_ids": ids_BS,
            "attention_mask": mask_BP,
            "past_key_values": prefix.cache,
            "use_cache": True,
        }
        if self.reader.takes_positions:
            inputs["position_ids"] = (mask_BP.cumsum(1) - 1).clamp(min=0)[:, -ids_BS.shape[1] :]
        states_N, cache = self.reader.states(inputs, chosen_BS)
        return states_N, Prefix(cache, mask_BP)

    def _common(self, prompts: list[list[int]]) -> Prefix:
        """What all prompts begin with, short of their last tokens, read once and repeated for each."""
        columns = zip(*(ids[:-1] for ids in prompts), strict=False)
        ids = [tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, columns)]
        empty = Prefix(DynamicCache(config=self.model.config), self._tensor([[]] * len(prompts)))
        if not ids or len(prompts) == 1 or not self.reader.shares_prefixes:
            return empty
        ids_1P = self._tensor([ids])
        mask_1P = torch.ones_like(ids_1P)
        _, prefix = self.follow(Prefix(empty.cache, empty.mask[:1]), ids_1P, mask_1P, torch.zeros_like(mask_1P).bool())
        return prefix.rows(torch.zeros(len(prompts), dtype=torch.long, device=self.model.device))

    def _tensor(self, rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.model.device)
