"""Experience replay: old rows among the new ones (Rolnick et al. 2019, CLEAR; Chaudhry et al. 2019, tiny memories).

The only method here that keeps and reads old learning tasks' text. It is the upper reference: what could be kept if
old data were still at hand, which RECALL does without.
"""

from __future__ import annotations

import random

from recall.learning_tasks import Row


def with_earlier_rows(new: list[Row], earlier: list[list[Row]], share: float, seed: int) -> list[Row]:
    """The new rows, then as many old ones as are `share` of their number, at least one, equally over `earlier`.

    Where that does not come out even the first learning tasks give one row more; one that has too few gives all. A
    learning task's rows stand in one seeded order and are taken from its front, so that it gives in a later
    update the same rows again, or fewer, as a memory of fixed size would.

    Args:
        new: the newest learning task's training rows.
        earlier: the training rows of each earlier learning task, in stream order.
        share: old rows over new ones, for instance 0.2.
        seed: of the choice.
    """
    if not earlier:
        return new
    each, rest = divmod(max(1, round(share * len(new))), len(earlier))
    old: list[Row] = []
    for position, rows in enumerate(earlier):
        count = each + (position < rest)
        order = random.Random(f"{seed} {position}").sample(rows, len(rows))
        old += order[:count]
    return [*new, *old]
