"""What a stream kept, lost and passed on: pure functions of the score matrix R.

R[i][j] is the score on learning task j after update i, both counted from 1 as in the papers; row 0 is the base model
and T the number of updates. A metric is None where its formula averages over nothing, as forgetting after one update.
"""

from __future__ import annotations

from math import isfinite
from statistics import fmean

from recall.errors import BadInput
from recall.results import ScoreMatrix


def seen_average(matrix: ScoreMatrix, update: int) -> float:
    """mean over 1 <= j <= i of R[i][j]: the score after update `i` over the learning tasks taken in so far.

    Raises:
        BadInput: there is no such update, or a score that the mean needs is missing.
    """
    updates = _updates(matrix)
    if not 1 <= update <= updates:
        raise BadInput(f"there is no update {update}; the score matrix has updates 1 to {updates}")
    return fmean(_score(matrix, update, task) for task in range(1, update + 1))


def average_accuracy(matrix: ScoreMatrix) -> float:
    """mean over j of R[T][j], in [0, 1].

    Source: Lopez-Paz and Ranzato 2017 (GEM), eq. 2.

    Raises:
        BadInput: the last row lacks the score of a learning task.
    """
    return seen_average(matrix, _updates(matrix))


def backward_transfer(matrix: ScoreMatrix) -> float | None:
    """mean over j < T of R[T][j] - R[j][j], in [-1, 1]; negative: later updates hurt. None where T = 1.

    Source: Lopez-Paz and Ranzato 2017 (GEM), eq. 3.

    Raises:
        BadInput: a score of the last row or of the diagonal is missing.
    """
    last = _updates(matrix)
    return _mean([_score(matrix, last, task) - _score(matrix, task, task) for task in range(1, last)])


def forgetting_by_task(matrix: ScoreMatrix) -> dict[str, float]:
    """max over 1 <= i < T of R[i][j], minus R[T][j], for each learning task j < T; negative: it still improved.

    Every update from j on must have been scored; one before j counts where it was, as in the source.

    Source: Chaudhry et al. 2018 (Riemannian Walk), the forgetting measure.

    Raises:
        BadInput: a score that the maximum or the last row needs is missing.
    """
    last = _updates(matrix)
    forgotten = {}
    for task in range(1, last):
        scored = [i for i in range(1, last) if i >= task or matrix.scores[i][task - 1] is not None]
        best = max(_score(matrix, i, task) for i in scored)
        forgotten[matrix.learning_tasks[task - 1]] = best - _score(matrix, last, task)
    return forgotten


def forgetting(matrix: ScoreMatrix) -> float | None:
    """mean over j < T of `forgetting_by_task`, in [-1, 1]; lower is better. None where T = 1.

    Source: Chaudhry et al. 2018 (Riemannian Walk), the average forgetting.

    Raises:
        BadInput: a score that it needs is missing.
    """
    return _mean(list(forgetting_by_task(matrix).values()))


def forward_transfer(matrix: ScoreMatrix) -> float | None:
    """mean over j > 1 of R[j-1][j] - R[0][j], in [-1, 1]: what earlier updates gave a learning task before its own.

    None where T = 1. Source: Lopez-Paz and Ranzato 2017 (GEM), eq. 4, with the base model for the random one.

    Raises:
        BadInput: a score right above the diagonal or of the base model is missing.
    """
    tasks = range(2, _updates(matrix) + 1)
    return _mean([_score(matrix, task - 1, task) - _score(matrix, 0, task) for task in tasks])


def unseen_average(matrix: ScoreMatrix) -> float | None:
    """mean of R[T] over the unseen learning tasks, in [0, 1]. None where there are none.

    Raises:
        BadInput: the last row lacks the score of an unseen learning task.
    """
    last, seen = _updates(matrix), len(matrix.learning_tasks)
    return _mean([_score(matrix, last, seen + number) for number in range(1, len(matrix.unseen) + 1)])


def all_metrics(matrix: ScoreMatrix) -> dict[str, float | None]:
    """Every metric of this module by its name.

    Raises:
        BadInput: a score that one of them needs is missing, or the matrix has the wrong shape.
    """
    return {
        "average_accuracy": average_accuracy(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forgetting": forgetting(matrix),
        "forward_transfer": forward_transfer(matrix),
        "unseen_average": unseen_average(matrix),
    }


def _updates(matrix: ScoreMatrix) -> int:
    """T, after a check of the shape: T + 1 rows of a score for every learning task, seen and unseen."""
    updates, columns = len(matrix.learning_tasks), len(matrix.learning_tasks) + len(matrix.unseen)
    if updates == 0:
        raise BadInput("the score matrix has no learning task; a stream needs at least one")
    if len(matrix.scores) != updates + 1:
        raise BadInput(
            f"the score matrix has {len(matrix.scores)} rows for {updates} learning tasks; "
            f"it needs {updates + 1}, the base model's and one an update"
        )
    for number, row in enumerate(matrix.scores):
        if len(row) != columns:
            raise BadInput(
                f"row {number} of the score matrix has {len(row)} scores; it needs {columns}, one a learning task"
            )
    return updates


def _score(matrix: ScoreMatrix, update: int, task: int) -> float:
    score = matrix.scores[update][task - 1]
    if score is None or not isfinite(score):
        name = [*matrix.learning_tasks, *matrix.unseen][task - 1]
        when = f"after update {update}" if update else "of the base model"
        raise BadInput(f"the score {when} on {name} is {'missing' if score is None else score}; evaluate it")
    return score


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None
