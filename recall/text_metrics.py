"""Scores of generated text against references, each in [0, 1], higher is better."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
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
    return _best(_f1, prediction, references)


def squad_exact(prediction: str, references: list[str]) -> float:
    """1.0 where the normalised prediction is one of the normalised references, else 0.0."""
    return _best(lambda found, wanted: float(found == wanted), prediction, references)


def json_f1(prediction: str, references: list[str]) -> float:
    """F1 of the fields of a JSON object, the best over the references: 0.0 where the prediction is no JSON object.

    A field is a path and the value at its end: `{"a": {"b": [1, 2]}}` has `a.b.0 = 1` and `a.b.1 = 2`. An empty object
    is like an empty one only.
    """
    found = _json_fields(prediction)
    if found is None:
        return 0.0
    return max(0.0 if wanted is None else _f1(found, wanted) for wanted in map(_json_fields, references))


def json_exact(prediction: str, references: list[str]) -> float:
    """1.0 where the prediction is, as JSON, the same object as one of the references, else 0.0."""
    found = _json_fields(prediction)
    return float(found is not None and any(found == _json_fields(reference) for reference in references))


def _json_fields(text: str) -> list[str] | None:
    """Every field as one string, sorted; None where the text is no JSON object."""
    try:
        # JSON has no NaN, and two of them are never the same.
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return sorted(_fields(value)) if isinstance(value, dict) else None


def _fields(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[str]:
    inner: dict[Any, Any] = dict(enumerate(value)) if isinstance(value, list) else value
    if isinstance(inner, dict) and inner:
        for key, below in inner.items():
            yield from _fields(below, (*path, key))
    elif path:
        yield json.dumps([*path, value])


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _f1(found: list[str], wanted: list[str]) -> float:
    """Of two bags of words or fields."""
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


Score = Callable[[str, list[str]], float]
# Metrics whose score is the mean over the rows, each with the share of exact matches that is told beside it.
BY_ROW: dict[str, tuple[Score, Score]] = {"squad_f1_em": (squad_f1, squad_exact), "json_f1": (json_f1, json_exact)}
