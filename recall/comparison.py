"""What a comparison shows: means over cases with intervals, and RECALL against every other method, case by case.

A case is a seed and an order of the learning tasks; all methods of it share data, split and training settings.

**Intervals** are 95% percentile intervals of a two-level bootstrap (Efron and Tibshirani 1993). In every resample

1. cases are drawn with replacement: the same ones for every method; in `single` and `independent`, where all orders of
   a seed share the same experts, seeds are drawn, each with all its orders;
2. test rows are drawn with replacement within each learning task: the same ones for every method, case and update,
   since all of them answered the same rows (crossed, not nested: more seeds make the rows no more).

So an interval covers chance in the test rows, and chance in training and order *as far as cases show it*: with one case
it covers the rows alone, and with two or three it is narrower than it should be, for the bootstrap of so few knows no
more than them. It covers neither the choice of learning tasks nor the choice of the base model.

Where a score is no mean over rows (chrF and BLEU are scores of the whole corpus), its spread is taken from the mean of
the sentence scores, laid around the score, as `recall.gates.bounds` does. An interval is widened to hold its own
estimate, which a maximum, as in forgetting, can leave out, and kept where scores or differences of scores can lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recall.comparison_line import SETTINGS, Line, Setting
from recall.comparison_measures import BACKWARD, FORGETTING, measures, score_of
from recall.errors import BadInput
from recall.results import Frozen

CONFIDENCE = 0.95
RESAMPLES = 2000
Cell = tuple[str, int, str]  # a line's key, R's row in it (from 0), the column
Case = tuple[int, int]  # seed, order


class Estimate(Frozen):
    """A mean over cases and its interval."""

    value: float
    low: float
    high: float


class Difference(Estimate):
    """RECALL's mean minus another method's over the cases that both have; `wins` and `losses` are RECALL's."""

    cases: int
    wins: int
    losses: int

    @property
    def beyond_chance(self) -> bool:
        """Does the interval leave out zero?"""
        return not self.low <= 0 <= self.high


class MethodSummary(Frozen):
    """A method's measures by name: every learning task's, and those of `recall.comparison_measures.MEANS` it has."""

    label: str
    cases: int
    measures: dict[str, Estimate]
    against: dict[str, Difference] = Field({})


class SettingSummary(Frozen):
    """One setting, and the lines of it that may be compared (`Line.shared`).

    `ours` is the method that the others are set against. Methods stand in the order in which the lines have them;
    `cases` is the most that one has, `trainings` how many of them were trained apart, `rows` are the split's.
    """

    setting: Setting
    ours: str = "recall"
    stream: str
    base_model: str
    split: str
    metrics: dict[str, str]
    learning_tasks: list[str]
    unseen: list[str]
    rows: dict[str, int]
    cases: int
    trainings: int
    methods: list[MethodSummary]


def compare_lines(
    lines: Iterable[Line], resamples: int = RESAMPLES, seed: int = 0, ours: str = "recall"
) -> list[SettingSummary]:
    """A summary of each group of lines that may be compared, setting by setting.

    Args:
        ours: the method that every other one is set against.

    Raises:
        BadInput: methods were scored on different numbers of rows of a learning task.
    """
    groups: dict[tuple[int, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((SETTINGS.index(line.setting), line.shared), []).append(line)
    return [
        _summary(newest(groups[group]), resamples, seed, ours) for group in sorted(groups, key=lambda group: group[0])
    ]


def newest(lines: Sequence[Line]) -> list[Line]:
    """The lines that count: for each method those with its newest settings, for each case the last of these."""
    own = {(line.setting, line.label): line.own for line in lines}
    kept = {
        (line.setting, line.label, line.seed, line.order, tuple(line.learning_tasks)): line
        for line in lines
        if own[line.setting, line.label] == line.own
    }
    return list(kept.values())


def _summary(lines: list[Line], resamples: int, seed: int, ours: str) -> SettingSummary:
    setting = lines[0].setting
    values, rows = drawn_scores(lines, resamples, seed)
    methods: dict[str, dict[Case, list[Line]]] = {}
    for line in lines:
        methods.setdefault(line.label, {}).setdefault((line.seed, line.order), []).append(line)
    tasks = list(dict.fromkeys(task for line in lines for task in line.learning_tasks))
    points: dict[str, dict[Case, dict[str, float]]] = {}
    draws: dict[str, dict[Case, dict[str, NDArray[np.float64]]]] = {}
    for label, cases in methods.items():
        whole = {case: own for case, own in cases.items() if setting != "single" or len(own) == len(tasks)}
        if not whole:  # a comparison that was interrupted: no mean over all learning tasks yet
            continue
        points[label] = {case: measures(setting, own, score_of) for case, own in whole.items()}
        draws[label] = {
            case: measures(setting, own, lambda line, update, column: values[line.key, update, column])
            for case, own in whole.items()
        }
    summaries = []
    for label, own_points in points.items():
        summary = MethodSummary(
            label=label, cases=len(own_points), measures=_means(setting, own_points, draws[label], seed)
        )
        if label != ours and ours in points:
            against = _differences(setting, points[ours], own_points, draws[ours], draws[label], seed)
            summary = summary.model_copy(update={"against": against})
        summaries.append(summary)
    return SettingSummary(
        setting=setting,
        ours=ours,
        stream=lines[0].stream,
        base_model=lines[0].base_model,
        split=lines[0].split,
        metrics=lines[0].metrics,
        learning_tasks=tasks,
        unseen=lines[0].unseen,
        rows=rows,
        cases=max(map(len, points.values()), default=0),
        trainings=max((len({_training(setting, case) for case in cases}) for cases in points.values()), default=0),
        methods=summaries,
    )


def drawn_scores(
    lines: list[Line], resamples: int, seed: int
) -> tuple[dict[Cell, NDArray[np.float64]], dict[str, int]]:
    """Every cell's score in every resample of the test rows, and how many rows each column has.

    Rows are drawn by column, so a cell's mean over drawn rows is a product of their counts with its row scores.
    """
    columns: dict[str, dict[Cell, list[float]]] = {}
    scores: dict[Cell, float] = {}
    for line in lines:
        for update, row in enumerate(line.rows):
            for column, found in row.items():
                cell = (line.key, update, column)
                columns.setdefault(column, {})[cell] = found
                scores[cell] = score_of(line, update, column)
    generator, counts = np.random.default_rng(seed), {}
    values: dict[Cell, NDArray[np.float64]] = {}
    for column in sorted(columns):
        cells = columns[column]
        lengths = Counter(map(len, cells.values()))
        if len(lengths) > 1:
            raise BadInput(
                f"{column} was scored on {' and '.join(map(str, sorted(lengths)))} rows by different methods, which "
                "cannot be compared; make its lines again into another --results file"
            )
        (count,) = lengths
        drawn_BN = generator.multinomial(count, np.full(count, 1 / count), size=resamples) / count
        rows_NC = np.array(list(cells.values()), dtype=np.float64).T
        deviations_BC = drawn_BN @ rows_NC - rows_NC.mean(axis=0)
        values |= {cell: scores[cell] + deviations_BC[:, i] for i, cell in enumerate(cells)}
        counts[column] = count
    return values, counts


def _training(setting: Setting, case: Case) -> Case:
    """What was trained apart from other cases: in a stream every case, else a seed's experts for all its orders."""
    return case if setting == "stream" else (case[0], 0)


def _means(
    setting: Setting,
    points: dict[Case, dict[str, float]],
    draws: dict[Case, dict[str, NDArray[np.float64]]],
    seed: int,
) -> dict[str, Estimate]:
    cases = list(points)
    found = {}
    for name in points[cases[0]]:
        low, high = (-1.0, 1.0) if name in (FORGETTING, BACKWARD) else (0.0, 1.0)
        estimate = fmean(points[case][name] for case in cases)
        drawn = over_cases(setting, {case: draws[case][name] for case in cases}, seed)
        found[name] = Estimate(value=_rounded(estimate), **_bounds(estimate, drawn, low, high))
    return found


def _differences(
    setting: Setting,
    ours: dict[Case, dict[str, float]],
    theirs: dict[Case, dict[str, float]],
    our_draws: dict[Case, dict[str, NDArray[np.float64]]],
    their_draws: dict[Case, dict[str, NDArray[np.float64]]],
    seed: int,
) -> dict[str, Difference]:
    """By measure; lower forgetting is a win, as everything else that is higher."""
    cases = [case for case in ours if case in theirs]
    found = {}
    for name in ours[cases[0]] if cases else []:
        if name not in theirs[cases[0]]:
            continue
        gaps = [_rounded(ours[case][name] - theirs[case][name]) for case in cases]
        drawn = over_cases(setting, {case: our_draws[case][name] - their_draws[case][name] for case in cases}, seed)
        better = -1 if name == FORGETTING else 1
        widest = 2.0 if name in (FORGETTING, BACKWARD) else 1.0
        found[name] = Difference(
            value=_rounded(fmean(gaps)),
            **_bounds(fmean(gaps), drawn, -widest, widest),
            cases=len(cases),
            wins=sum(better * gap > 0 for gap in gaps),
            losses=sum(better * gap < 0 for gap in gaps),
        )
    return found


def over_cases(setting: Setting, draws: dict[Case, NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    """The mean over trainings that are drawn with replacement, in every resample: the same ones for the same number."""
    trainings: dict[Case, list[NDArray[np.float64]]] = {}
    for case, drawn_B in draws.items():
        trainings.setdefault(_training(setting, case), []).append(drawn_B)
    drawn_CB = np.stack([np.mean(orders, axis=0) for orders in trainings.values()])
    count, resamples = drawn_CB.shape
    counts_BC = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), size=resamples)
    mean: NDArray[np.float64] = (counts_BC.T * drawn_CB).sum(axis=0) / count
    return mean


def interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The percentile interval of resamples."""
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _bounds(estimate: float, drawn: NDArray[np.float64], least: float, most: float) -> dict[str, float]:
    low, high = interval(drawn)
    return {
        "low": _rounded(max(min(low, estimate), least)),
        "high": _rounded(min(max(high, estimate), most)),
    }


def _rounded(value: float) -> float:
    """To 12 places, so that equal scores differ by exactly 0."""
    return round(float(value), 12) + 0.0
