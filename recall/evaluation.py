"""Scores of one model on the rows of one learning task."""

from __future__ import annotations

from statistics import fmean

from peft import PeftModel
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recall.encoding import Encoded, encode
from recall.generation import GreedyDecoder
from recall.label_bias import label_bias
from recall.learning_tasks import Row, TaskSpec, answers
from recall.likelihood import AnswerScorer
from recall.progress import track
from recall.results import LabelBias
from recall.settings import EvaluationSettings
from recall.text_metrics import BY_ROW, bleu, chrf


class Evaluation(BaseModel):
    """A score in [0, 1], with each row's share of it and prediction, in the rows' order.

    The score of `accuracy`, `squad_f1_em` and `json_f1` is the mean of `row_scores`; `chrf` and `sacrebleu` are corpus
    scores, their `row_scores` sentence scores. `extra` has acc and acc_norm, or exact_match. `label_bias` is there
    where rows choose among the learning task's labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    score: float
    row_scores: list[float]
    predictions: list[str]
    extra: dict[str, float]
    label_bias: LabelBias | None = None


def evaluate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    spec: TaskSpec,
    settings: EvaluationSettings,
    what: str = "evaluate",
) -> Evaluation:
    """Score `model`, in evaluation mode, on `rows`.

    Accuracy is by likelihood: the model chooses the allowed answer whose continuation " " + answer is the likeliest
    after the prompt. As in lm-evaluation-harness (`multiple_choice`), `acc` compares summed log-probabilities, and
    `acc_norm` these sums over the answer's length in characters, without the space. The score takes acc where a row's
    answers are the learning task's labels (as the harness's SST-2 and AG News do), acc_norm where a row has choices of
    its own, which differ in length (as its ARC and HellaSwag do); `extra` has both over all rows.

    Other kinds decode greedily to the end-of-text token, the first newline or `max_new_tokens`, and the text, stripped,
    is compared with the row's references (its target where it has none) by `spec.metric`. `what` labels the progress.
    """
    if spec.metric == "accuracy":
        return _by_likelihood(model, tokenizer, rows, spec, settings, what)
    return _by_text(model, tokenizer, rows, spec, settings, what)


def _by_likelihood(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    spec: TaskSpec,
    settings: EvaluationSettings,
    what: str,
) -> Evaluation:
    allowed = [answers(row, spec) for row in rows]
    encoded = encode(tokenizer, [row.prompt for row in rows], allowed, settings.max_tokens)
    scorer = AnswerScorer(model, tokenizer)
    summed: list[list[float]] = [[] for _ in rows]
    batches = _by_length(encoded, settings.batch_size)
    for batch in track(batches, what, total=len(batches)):
        for i, sums in zip(batch, scorer.log_likelihoods([encoded[i] for i in batch]), strict=True):
            summed[i] = sums
    plain = [choices[_argmax(sums)] for choices, sums in zip(allowed, summed, strict=True)]
    normed = [
        choices[_argmax([total / len(text) for total, text in zip(sums, choices, strict=True)])]
        for choices, sums in zip(allowed, summed, strict=True)
    ]
    predictions = [n if row.choices else p for row, p, n in zip(rows, plain, normed, strict=True)]
    row_scores = _matches(predictions, rows)
    extra = {"acc": fmean(_matches(plain, rows)), "acc_norm": fmean(_matches(normed, rows))}
    bias = None
    if spec.labels and len(spec.labels) > 1 and not any(row.choices for row in rows):
        bias = label_bias(summed, predictions, [row.target for row in rows], spec.labels)
    return Evaluation(
        metric=spec.metric,
        score=fmean(row_scores),
        row_scores=row_scores,
        predictions=predictions,
        extra=extra,
        label_bias=bias,
    )


def _by_text(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    spec: TaskSpec,
    settings: EvaluationSettings,
    what: str,
) -> Evaluation:
    room = settings.max_tokens - settings.max_new_tokens
    encoded = encode(tokenizer, [row.prompt for row in rows], [[] for _ in rows], room)
    decoder = GreedyDecoder(model, tokenizer, settings.max_new_tokens)
    predictions = [""] * len(rows)
    batches = _by_length(encoded, settings.batch_size)
    for batch in track(batches, what, total=len(batches)):
        for i, text in zip(batch, decoder.first_lines([encoded[i].prompt for i in batch]), strict=True):
            predictions[i] = text
    references = [row.references or [row.target] for row in rows]
    extra: dict[str, float] = {}
    if spec.metric in BY_ROW:
        by_row, exact = BY_ROW[spec.metric]
        row_scores = list(map(by_row, predictions, references))
        score = fmean(row_scores)
        extra["exact_match"] = fmean(map(exact, predictions, references))
    else:
        score, row_scores = (chrf if spec.metric == "chrf" else bleu)(predictions, references)
    return Evaluation(metric=spec.metric, score=score, row_scores=row_scores, predictions=predictions, extra=extra)


def _by_length(encoded: list[Encoded], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of like prompt length, the longest first, so that memory runs out at once or never."""
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].prompt))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _matches(predictions: list[str], rows: list[Row]) -> list[float]:
    return [float(text == row.target) for text, row in zip(predictions, rows, strict=True)]


def _argmax(values: list[float]) -> int:
    """The first of the largest, as numpy's argmax."""
    return max(range(len(values)), key=values.__getitem__)
