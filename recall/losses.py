"""The loss of a causal language model on samples: what LM-Cocktail weighs by, and what a merged model is checked by."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recall.encoding import Encoded, encode, shortened
from recall.likelihood import AnswerScorer
from recall.progress import track
from recall.prompts import Sample


def mean_loss(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    max_tokens: int,
    what: str = "loss",
) -> float:
    """Mean negative log-likelihood of a token, in nats: of the targets after their prompts, of all text without one.

    Samples of a single token and no target say nothing and are left out; with no others the loss is nan.
    """
    rows = [_encoded(tokenizer, sample, max_tokens) for sample in samples]
    rows = sorted((row for row in rows if row.answers[0]), key=lambda row: len(row.prompt) + len(row.answers[0]))
    scorer = AnswerScorer(model, tokenizer)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    total, tokens = 0.0, 0
    for batch in track(batches, what, total=len(batches)):
        total -= sum(sums[0] for sums in scorer.log_likelihoods(batch))
        tokens += sum(len(row.answers[0]) for row in batch)
    return total / tokens if tokens else float("nan")


def _encoded(tokenizer: PreTrainedTokenizerBase, sample: Sample, max_tokens: int) -> Encoded:
    if sample.target is not None:
        return encode(tokenizer, [sample.read], [[sample.target]], max_tokens)[0]
    ids = shortened(tokenizer(sample.read).input_ids, max_tokens, tokenizer)
    return Encoded(ids[:1], [ids[1:]])
