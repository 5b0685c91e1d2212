"""The one sentence at the end of a run: who is best, by how much, and what RECALL forgot; no spin."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from recall.continual_metrics import forgetting, seen_average, unseen_average
from recall.results import ScoreMatrix, StreamResult
from recall.standings import LABELS, base_averages, labels, method_names, points

SMALL = 2.0


def verdict(result: StreamResult, test_rows: dict[str, int] | None = None) -> str:
    """Say who is best over the learning tasks seen and over the unseen ones, RECALL's differences and what it forgot.

    Differences are those of the rounded points, so they add up with the table. With `test_rows` (rows of the test split
    by learning task) the sentence says below which difference chance may explain it, see `noise`; without, it
    calls differences under 2 points small.

    Raises:
        BadInput: a score that the sentence needs is missing.
    """
    names, ours = method_names(result), labels(result)["recall"]
    matrix = result.methods["recall"]
    base_seen, base_unseen = base_averages(matrix)
    seen = _averages(result, names, lambda scores: seen_average(scores, len(scores.learning_tasks)))
    unseen = _averages(result, names, unseen_average)
    clauses = [_standing(ours, "the learning tasks seen", seen, base_seen)]
    if unseen:
        clauses.append(_standing(ours, "the unseen ones", unseen, base_unseen))
    clauses.append(_forgot(ours, _averages(result, names, forgetting)))
    clauses += _caution(ours, matrix, seen, unseen, test_rows)
    sentence = "; ".join(clauses) + "."
    return sentence[0].upper() + sentence[1:]


def noise(matrix: ScoreMatrix, tasks: list[str], test_rows: dict[str, int]) -> float | None:
    """Points under which a difference between two methods' averages over `tasks` may be chance; None: rows unknown.

    1.96 standard errors of the difference of two means of independent rows, with p (1 - p), which no score in [0, 1]
    with mean p exceeds, as the variance. Both methods answer the same rows, so it errs on the side of caution.
    """
    columns = [*matrix.learning_tasks, *matrix.unseen]
    variance = 0.0
    for task in tasks:
        score, rows = matrix.scores[-1][columns.index(task)], test_rows.get(task, 0)
        if score is None or rows < 1:
            return None
        variance += 2 * score * (1 - score) / rows
    return 100 * 1.96 * sqrt(variance) / len(tasks) if tasks else None


def _averages(
    result: StreamResult, names: list[str], metric: Callable[[ScoreMatrix], float | None]
) -> dict[str, float]:
    """A metric of every method that has it, in points, by the method's label."""
    shown = labels(result)
    values = {shown[name]: metric(result.methods[name]) for name in names}
    return {label: points(value) for label, value in values.items() if value is not None}


def _standing(ours: str, where: str, scores: dict[str, float], base: float | None) -> str:
    own = scores[ours]
    others = {label: score for label, score in scores.items() if label != ours}
    top = max(scores.values())
    gaps = _listed([_gap(own, label, score) for label, score in others.items() if score != own])
    level = [_name(label) for label, score in others.items() if score == own]
    if not others:
        sentence = f"over {where} {ours} reaches {own:.1f} points, with no baseline to compare it with"
    elif own < top:
        winners = _listed([_name(label) for label, score in others.items() if score == top])
        verb = "is" if sum(score == top for score in others.values()) == 1 else "are"
        sentence = (
            f"over {where} {ours} loses: {winners} {verb} best with {top:.1f} points and {ours} has {own:.1f}, {gaps}"
        )
    elif level:
        sentence = f"over {where} {ours} is level with {_listed(level)} at {own:.1f} points" + (
            f", {gaps}" if gaps else ""
        )
    else:
        sentence = f"over {where} {ours} is best with {own:.1f} points, {gaps}"
    if base is not None and points(base) > own:
        more_than = ours if points(base) <= top or not others else "all of them"
        sentence += f" (the base model's {points(base):.1f} is more than {more_than} reached)"
    return sentence


def _gap(own: float, label: str, score: float) -> str:
    return f"{abs(own - score):.1f} {'above' if own > score else 'below'} {_name(label)}"


def _forgot(ours: str, lost: dict[str, float]) -> str:
    if not lost:
        return "after one update there is nothing yet to forget"
    phrases: list[str] = []
    for label, value in [(ours, lost[ours]), *(item for item in lost.items() if item[0] != ours)]:
        unit = " points" if not phrases else ""
        amount = "nothing" if value == 0 else f"{abs(value):.1f}{unit}"
        phrases.append(f"{_name(label)} {'gained' if value < 0 else 'forgot'} {amount}")
    return "of what came before, " + _listed(phrases)


def _caution(
    ours: str, matrix: ScoreMatrix, seen: dict[str, float], unseen: dict[str, float], test_rows: dict[str, int] | None
) -> list[str]:
    """At most one clause: which of the differences just told are too small to build on."""
    if test_rows is None:
        gaps = [gap for scores in (seen, unseen) if (gap := _smallest_gap(ours, scores)) is not None]
        return (
            [f"differences under {SMALL:.0f} points are small and may be chance"]
            if min(gaps, default=SMALL) < SMALL
            else []
        )
    told = []
    for word, tasks, scores in (("seen", matrix.learning_tasks, seen), ("unseen", matrix.unseen, unseen)):
        limit, gap = noise(matrix, tasks, test_rows), _smallest_gap(ours, scores)
        if limit is not None and gap is not None and gap < limit:
            told.append(f"under {limit:.1f} points over {word} ({sum(test_rows[task] for task in tasks)} test rows)")
    return [f"differences {_listed(told)} may be chance"] if told else []


def _smallest_gap(ours: str, scores: dict[str, float]) -> float | None:
    others = [score for label, score in scores.items() if label != ours]
    return min((round(abs(scores[ours] - score), 1) for score in others), default=None)


def _name(label: str) -> str:
    return "the plain average" if label == LABELS["average"] else label


def _listed(phrases: list[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
