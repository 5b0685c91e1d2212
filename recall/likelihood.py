"""Log-likelihood of given answers after a prompt; the prompt is read once for all of them.

Shapes: B batch, A answers of the batch that have a second token, S tokens of the longest of these but its last,
N predicted tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recall.encoding import Encoded
from recall.prompt_batches import Prefix, PrefixReader


class AnswerScorer:
    """Scores the answers of a batch of rows with one model."""

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.prefixes = PrefixReader(model, tokenizer)
        self.reader = self.prefixes.reader
        self.pad = self.prefixes.pad

    @torch.inference_mode()
    def log_likelihoods(self, batch: list[Encoded]) -> list[list[float]]:
        """Log-likelihood of each answer of each row: a sum over its tokens of log p(token | all before it)."""
        states_B, prefix = self.prefixes.prompts([row.prompt for row in batch])
        first_BV = self.reader.logits(states_B).log_softmax(-1)
        sums = [[first_BV[i, answer[0]].item() for answer in row.answers] for i, row in enumerate(batch)]
        longer = [(i, j) for i, row in enumerate(batch) for j, answer in enumerate(row.answers) if len(answer) > 1]
        if longer:
            rest = self._rest(prefix, [i for i, _ in longer], [batch[i].answers[j] for i, j in longer])
            for (i, j), total in zip(longer, rest, strict=True):
                sums[i][j] += total
        return sums

    def _rest(self, prefix: Prefix, rows: list[int], answers: list[list[int]]) -> list[float]:
        """Log-likelihood of all but the first token of each answer, which follows the prompt numbered in `rows`."""
        device = prefix.mask.device
        longest = max(map(len, answers)) - 1
        ids_AS = torch.tensor([ids[:-1] + [self.pad] * (longest + 1 - len(ids)) for ids in answers], device=device)
        mask_AS = torch.tensor(
            [[1] * (len(ids) - 1) + [0] * (longest + 1 - len(ids)) for ids in answers], device=device
        )
        prefix = prefix.rows(torch.tensor(rows, device=device))
        states_N, _ = self.prefixes.follow(prefix, ids_AS, mask_AS, mask_AS.bool())
        targets_N = torch.tensor([token for ids in answers for token in ids[1:]], device=device)
        log_probs_N = self.reader.log_probs(states_N, targets_N)
        return [part.sum().item() for part in torch.split(log_probs_N, [len(ids) - 1 for ids in answers])]
