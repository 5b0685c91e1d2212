"""What a case of a comparison comes to: the same formulas over scores, and over what chance may have made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recall.comparison_line import Line, Setting

# A space, so that no learning task is called so.
SEEN, OTHERS, UNSEEN = "seen average", "others average", "unseen average"
FORGETTING, BACKWARD = "average forgetting", "backward transfer"
MEANS = (SEEN, OTHERS, UNSEEN, FORGETTING, BACKWARD)


def measures(setting: Setting, lines: Sequence[Line], value: Callable[[Line, int, str], Any]) -> dict[str, Any]:
    """What a case comes to: the score on each learning task by the model that is to know it, and means of such.

    Args:
        setting: in `single` there is a line, and a model, for each learning task; else one line.
        lines: the case's lines of one method.
        value: the score in R's row (counted from 0, the first update) and column; a number or an array of them.
    """
    found: dict[str, Any] = {}
    last = {line.key: len(line.rows) - 1 for line in lines}
    if setting == "single":
        for line in lines:
            (task,) = line.learning_tasks
            found[task] = value(line, 0, task)
        found[SEEN] = mean([value(line, 0, line.learning_tasks[0]) for line in lines])
        others = [mean([value(line, 0, other) for other in line.others]) for line in lines if line.others]
        found |= {OTHERS: mean(others)} if others else {}
    else:
        (line,) = lines
        found = {task: value(line, last[line.key], task) for task in line.learning_tasks}
        found[SEEN] = mean(list(found.values()))
    unseen = [value(line, last[line.key], name) for line in lines for name in line.unseen]
    found |= {UNSEEN: mean(unseen)} if unseen else {}
    if setting == "stream" and lines[0].matrix is not None and len(lines[0].learning_tasks) > 1:
        found |= _kept(lines[0], value)
    return found


def _kept(line: Line, value: Callable[[Line, int, str], Any]) -> dict[str, Any]:
    """Forgetting and backward transfer, see `recall.continual_metrics`."""
    last = len(line.learning_tasks) - 1
    lost, moved = [], []
    for position, task in enumerate(line.learning_tasks[:-1]):
        own = value(line, position, task)
        best = own
        # As there, the score right before a learning task's own update counts too.
        for update in range(max(position - 1, 0), last):
            best = np.maximum(best, value(line, update, task))
        lost.append(best - value(line, last, task))
        moved.append(value(line, last, task) - own)
    return {FORGETTING: mean(lost), BACKWARD: mean(moved)}


def score_of(line: Line, update: int, column: str) -> float:
    """The score itself, for `measures`."""
    if line.matrix is not None:
        columns = [*line.matrix.learning_tasks, *line.matrix.unseen]
        score = line.matrix.scores[update + 1][columns.index(column)]
        assert score is not None, f"{line.label} has no score on {column} after update {update + 1}"
        return score
    return line.scores[column]


def mean(values: list[Any]) -> Any:
    """Of numbers or of arrays."""
    return sum(values) / len(values)
