"""Which old rows experience replay trains on beside the new ones."""

import pytest

from recall.learning_tasks import Row
from recall.replay import with_earlier_rows


def rows(task, count):
    return [Row(id=f"{task}{i}", prompt=f"{task} {i}", target="x") for i in range(count)]


NEW = rows("new", 20)


def tasks_of(found):
    """How many rows of each learning task."""
    names = [row.prompt.split()[0] for row in found]
    return {name: names.count(name) for name in dict.fromkeys(names)}


@pytest.mark.parametrize(
    ("earlier", "share", "counts"),
    [
        ([], 0.2, {"new": 20}),
        ([rows("a", 30)], 0.2, {"new": 20, "a": 4}),
        ([rows("a", 30), rows("b", 30)], 0.2, {"new": 20, "a": 2, "b": 2}),
        ([rows("a", 30), rows("b", 30), rows("c", 30)], 0.2, {"new": 20, "a": 2, "b": 1, "c": 1}),
        ([rows("a", 1), rows("b", 30)], 0.5, {"new": 20, "a": 1, "b": 5}),
        ([rows("a", 30), rows("b", 30)], 0.001, {"new": 20, "a": 1}),
        ([rows("a", 30)], 1.0, {"new": 20, "a": 20}),
    ],
)
def test_old_rows_are_a_share_of_the_new_ones_equally_over_the_earlier_tasks(earlier, share, counts):
    found = with_earlier_rows(NEW, earlier, share, seed=0)
    assert tasks_of(found) == counts
    assert found[:20] == NEW
    assert len({row.id for row in found}) == len(found)


def test_the_choice_follows_from_the_seed():
    old = [rows("a", 30)]
    assert with_earlier_rows(NEW, old, 0.2, seed=0) == with_earlier_rows(NEW, old, 0.2, seed=0)
    assert with_earlier_rows(NEW, old, 0.2, seed=0) != with_earlier_rows(NEW, old, 0.2, seed=1)


def test_a_later_update_takes_no_row_of_a_task_that_was_not_taken_before():
    first = with_earlier_rows(NEW, [rows("a", 30)], 0.5, seed=0)
    later = with_earlier_rows(NEW, [rows("a", 30), rows("b", 30)], 0.5, seed=0)
    assert {row.id for row in later if row.id.startswith("a")} < {row.id for row in first}
