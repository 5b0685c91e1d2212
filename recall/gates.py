"""May a version be promoted? Gates over its scores, each with bounds from a paired bootstrap over the test rows.

Three verdicts a gate, as in a non-inferiority test (Piaggio et al. 2012, JAMA 308:2594): with one-sided bounds `low`
and `high` at the given confidence, and a gate that demands estimate >= threshold,

    pass        low >= threshold             all of what chance may have done still meets it
    fail        high < threshold             none of it does
    borderline  low < threshold <= high      these rows cannot tell, whether the estimate itself meets it or not

and the same turned round where a gate demands estimate <= threshold. So a lucky score is never enough.

Bounds: rows are drawn again with replacement, within each learning task, both models' scores of a row together (Efron
and Tibshirani 1993; paired over the rows, as Koehn 2004 does for translation). The estimate is the learning task's own
score. Where that is no mean over rows (chrF and BLEU are scores of the whole corpus) its spread is taken from the mean
of the sentence scores: bounds = estimate + quantiles of (mean of the drawn rows - mean of all rows), which is the plain
percentile bootstrap where the score is such a mean. Bounds stay where scores and differences of scores can lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recall.errors import Failed
from recall.promotion_settings import PromotionSettings
from recall.results import Frozen

Outcome = Literal["pass", "fail", "borderline"]
BATCH_ELEMENTS = 2_000_000  # of indices drawn at a time


class RowScores(Frozen):
    """A model's score on one learning task, and its rows' own scores, in the order of the test split."""

    score: float
    rows: list[float]


class Gate(Frozen):
    """One gate's every number. No field has a default: what is in the ledger's digest is written down, each time.

    `by_learning_task` is what the estimate is the mean of; `compared_with` says in words what with, or "".
    """

    name: Literal["average", "forgetting", "unseen"]
    learning_tasks: list[str]
    compared_with: str
    demands: Literal[">=", "<="]
    threshold: float
    estimate: float | None
    low: float | None
    high: float | None
    rows: int
    by_learning_task: dict[str, float]
    outcome: Outcome
    note: str


class Verdict(Frozen):
    """Of one version: `refusals` are what no gate can outweigh (a draft, a failed audit), one sentence each."""

    version: str
    champion: str | None
    outcome: Outcome
    refusals: list[str]
    gates: list[Gate]
    confidence: float
    resamples: int
    seed: int

    @property
    def why(self) -> str:
        """What decided, in one sentence without a full stop."""
        told = [*self.refusals, *(sentence(gate) for gate in self.gates if gate.outcome != "pass")]
        return "; ".join(told) or "every gate passed"


def judge(
    version: str,
    champion: str | None,
    refusals: list[str],
    seen: Mapping[str, RowScores],
    best: Mapping[str, RowScores],
    unseen: Mapping[str, RowScores],
    reference: Mapping[str, RowScores],
    reference_name: str,
    settings: PromotionSettings,
) -> Verdict:
    """The verdict of every gate.

    Args:
        version: the version that is judged.
        champion: the version that it would follow, if any.
        refusals: why it cannot be promoted whatever its scores are, one sentence each.
        seen: its scores on each learning task taken in.
        best: each earlier learning task's scores after the earlier update that did best on it.
        unseen: its scores on each unseen learning task.
        reference: the champion's (or base model's) scores on those of them that it was scored on, over the same rows.
        reference_name: who that is, in words.
        settings: thresholds, confidence, resamples and seed.

    Raises:
        Failed: a learning task has fewer than two test rows, or two models were scored on different rows.
    """
    gates = [_average(seen, settings)]
    gates += [_forgetting(name, seen[name], best[name], settings) for name in best]
    if unseen:
        gates.append(_unseen(unseen, reference, reference_name, settings))
    outcomes = {gate.outcome for gate in gates}
    outcome: Outcome = (
        "fail" if refusals or "fail" in outcomes else "borderline" if "borderline" in outcomes else "pass"
    )
    return refusal(version, champion, refusals, settings).model_copy(update={"outcome": outcome, "gates": gates})


def refusal(version: str, champion: str | None, refusals: list[str], settings: PromotionSettings) -> Verdict:
    """The verdict on a version that has no scores to judge."""
    return Verdict(
        version=version,
        champion=champion,
        outcome="fail",
        refusals=refusals,
        gates=[],
        confidence=settings.confidence,
        resamples=settings.resamples,
        seed=settings.seed,
    )


def bounds(
    rows: Mapping[str, NDArray[np.float64]], estimate: float, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """One-sided bootstrap bounds, lower and upper, of the mean over learning tasks of the mean over rows.

    Args:
        rows: learning task to values (N,), N at least 2; of a paired comparison the differences.
        estimate: the point that the bounds are laid around.
        confidence: of each bound alone.
        resamples: how often rows are drawn.
        seed: of numpy's PCG64.
    """
    generator = np.random.default_rng(seed)
    deviations = np.zeros(resamples)
    for values in rows.values():
        batch = max(1, BATCH_ELEMENTS // len(values))
        for start in range(0, resamples, batch):
            count = min(batch, resamples - start)
            drawn = values[generator.integers(0, len(values), (count, len(values)))].mean(axis=1)
            deviations[start : start + count] += (drawn - values.mean()) / len(rows)
    low, high = np.quantile(deviations, [1 - confidence, confidence])
    return _rounded(estimate + low), _rounded(estimate + high)


def sentence(gate: Gate) -> str:
    """What a gate found, in words and points (100 times the score)."""
    what = {
        "average": "the average over the learning tasks seen",
        "forgetting": f"forgetting of {', '.join(gate.learning_tasks)}",
        "unseen": f"unseen against {gate.compared_with}",
    }[gate.name]
    if gate.estimate is None or gate.low is None or gate.high is None:
        return f"{what}: {gate.note}"
    wanted = f"{'at least' if gate.demands == '>=' else 'at most'} {100 * gate.threshold:.1f} points"
    chance = f"between {100 * gate.low:.1f} and {100 * gate.high:.1f} allowing for chance"
    note = f"; {gate.note}" if gate.note else ""
    return f"{what} is {100 * gate.estimate:.1f}, {chance}, {wanted} wanted ({gate.outcome}{note})"


def _average(seen: Mapping[str, RowScores], settings: PromotionSettings) -> Gate:
    scores = {name: found.score for name, found in seen.items()}
    rows = {name: _values(name, found.rows) for name, found in seen.items()}
    return _gate("average", "", ">=", settings.minimum_average, scores, rows, settings)


def _forgetting(name: str, now: RowScores, best: RowScores, settings: PromotionSettings) -> Gate:
    lost = {name: best.score - now.score}
    rows = {name: _differences(name, best, now)}
    compared_with = "its best earlier update"
    return _gate("forgetting", compared_with, "<=", settings.maximum_forgetting, lost, rows, settings)


def _unseen(
    unseen: Mapping[str, RowScores],
    reference: Mapping[str, RowScores],
    reference_name: str,
    settings: PromotionSettings,
) -> Gate:
    both = [name for name in unseen if name in reference]
    gained = {name: unseen[name].score - reference[name].score for name in both}
    rows = {name: _differences(name, unseen[name], reference[name]) for name in both}
    left_out = [name for name in unseen if name not in reference]
    same = "on the same rows, by the same metric and settings"
    note = f"{reference_name} was not scored {same}, of {', '.join(left_out)}" if left_out else ""
    return _gate("unseen", reference_name, ">=", -settings.unseen_margin, gained, rows, settings, note)


def _gate(
    name: Literal["average", "forgetting", "unseen"],
    compared_with: str,
    demands: Literal[">=", "<="],
    threshold: float,
    scores: dict[str, float],
    rows: dict[str, NDArray[np.float64]],
    settings: PromotionSettings,
    note: str = "",
) -> Gate:
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    outcome: Outcome = "borderline"  # of no rows at all: they cannot tell
    if scores:
        estimate = _rounded(float(np.mean(list(scores.values()))))
        least = 0 if name == "average" else -1  # scores lie in [0, 1], their differences in [-1, 1]
        drawn = bounds(rows, estimate, settings.confidence, settings.resamples, settings.seed)
        low, high = (min(max(bound, least), 1) for bound in drawn)
        outcome = _outcome(demands, threshold, low, high)
    return Gate(
        name=name,
        learning_tasks=list(scores),
        compared_with=compared_with,
        demands=demands,
        threshold=threshold,
        estimate=estimate,
        low=low,
        high=high,
        rows=sum(map(len, rows.values())),
        by_learning_task={task: _rounded(score) for task, score in scores.items()},
        outcome=outcome,
        note=note,
    )


def _outcome(demands: Literal[">=", "<="], threshold: float, low: float, high: float) -> Outcome:
    meets: Callable[[float], bool] = (lambda v: v >= threshold) if demands == ">=" else (lambda v: v <= threshold)
    met = [meets(low), meets(high)]
    return "pass" if all(met) else "borderline" if any(met) else "fail"


def _differences(name: str, one: RowScores, other: RowScores) -> NDArray[np.float64]:
    if len(one.rows) != len(other.rows):
        raise Failed(
            f"{name} was scored on {len(one.rows)} rows here and on {len(other.rows)} there, so the two cannot be "
            "compared; score both on the same rows with `recall run --recompute`"
        )
    return _values(name, one.rows) - _values(name, other.rows)


def _values(name: str, rows: list[float]) -> NDArray[np.float64]:
    if len(rows) < 2:
        raise Failed(f"{name} has {len(rows)} test row(s), from which no confidence follows; give it more")
    return np.asarray(rows, dtype=np.float64)


def _rounded(value: float) -> float:
    """To 12 places, so that 0.64 - 0.59 meets a threshold of 0.05."""
    return round(float(value), 12) + 0.0
