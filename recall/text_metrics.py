"""Scores of generated text against references, each in [0, 1], higher is better."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF


def chrf(predictions: list[str], references: list[list[str]]) -> tuple[float, list[float]]:
    """chrF2 (Popovic 2015; sacrebleu's defaults): of the corpus, and of each sentence."""
    sentences = [
        CHRF().sentence_score(text, list(refs)).score / 100 for text, refs in zip(predictions, references, strict=True)
    ]
    return float(CHRF().corpus_score(predictions, _streams(references)).score / 100), sentences


def bleu(predictions: list[str], references: list[list[str]]) -> tuple[float, list[float]]:
    """BLEU (Papineni et al. 2002; sacrebleu's defaults): of the corpus, and of each sentence (effective order)."""
    metric = BLEU(effective_order=True)
    sentences = [
        metric.sentence_score(text, list(refs)).score / 100 for text, refs in zip(predictions, references, strict=True)
    ]
    return float(BLEU().corpus_score(predictions, _streams(references)).score / 100), sentences


def squad_f1(prediction: str, references: list[str]) -> float:
    """Token F1, the best over the references, as SQuAD's evaluation script has it (Rajpurkar et al. 2016, 2018)."""
    return _best(_token_f1, prediction, references)


def squad_exact(prediction: str, references: list[str]) -> float:
    """1.0 where the normalised prediction is one of the normalised references, else 0.0."""
    return _best(lambda found, wanted: float(found == wanted), prediction, references)


def _token_f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def _best(score: Callable[[list[str], list[str]], float], prediction: str, references: list[str]) -> float:
    return max(score(_normalised(prediction), _normalised(reference)) for reference in references)


def _normalised(text: str) -> list[str]:
    """Words in lower case without punctuation and articles."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _streams(references: list[list[str]]) -> Any:
    """Row-wise references as sacrebleu's column-wise streams; None where a row has fewer."""
    most = max(map(len, references))
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]
