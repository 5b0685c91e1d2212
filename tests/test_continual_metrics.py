"""The metrics against matrices worked out by hand, and against what follows from their formulas for any matrix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recall.continual_metrics import (
    all_metrics,
    average_accuracy,
    backward_transfer,
    forgetting,
    forgetting_by_task,
    forward_transfer,
    seen_average,
    unseen_average,
)
from recall.errors import BadInput
from recall.results import ScoreMatrix

# Worked out by hand below; rows: base, after a, after b, after c; columns: a, b, c, then the unseen u, v.
BY_HAND = ScoreMatrix(
    learning_tasks=["a", "b", "c"],
    unseen=["u", "v"],
    scores=[
        [0.50, 0.20, 0.10, 0.40, 0.60],
        [0.90, 0.25, None, None, None],
        [0.70, 0.80, 0.40, None, None],
        [0.75, 0.50, 0.60, 0.30, 0.70],
    ],
)
ONE = ScoreMatrix(learning_tasks=["a"], unseen=[], scores=[[0.2], [0.6]])


def test_average_accuracy_is_the_mean_of_the_last_row_over_the_learning_tasks() -> None:
    assert average_accuracy(BY_HAND) == pytest.approx((0.75 + 0.50 + 0.60) / 3)


def test_seen_average_after_an_update_covers_only_what_was_learnt_so_far() -> None:
    assert seen_average(BY_HAND, 1) == pytest.approx(0.90)
    assert seen_average(BY_HAND, 2) == pytest.approx(0.75)


def test_backward_transfer_compares_the_end_with_the_moment_of_learning() -> None:
    assert backward_transfer(BY_HAND) == pytest.approx(((0.75 - 0.90) + (0.50 - 0.80)) / 2)


def test_forgetting_compares_the_end_with_the_best_moment() -> None:
    assert forgetting_by_task(BY_HAND) == pytest.approx({"a": 0.90 - 0.75, "b": 0.80 - 0.50})
    assert forgetting(BY_HAND) == pytest.approx((0.15 + 0.30) / 2)


def test_the_best_moment_may_come_before_or_after_the_learning_of_the_task_but_never_at_the_end_or_in_the_base() -> (
    None
):
    def peak_at(row: int) -> float:
        scores = [[0.1, 0.1, 0.1, 0.1] for _ in range(5)]
        scores[row][1] = 0.9
        matrix = ScoreMatrix(learning_tasks=["a", "b", "c", "d"], unseen=[], scores=scores)  # type: ignore[arg-type]
        return forgetting_by_task(matrix)["b"]

    assert [peak_at(row) for row in range(5)] == pytest.approx([0.0, 0.8, 0.8, 0.8, -0.8])


def test_forward_transfer_is_what_earlier_updates_gave_a_task_before_its_own() -> None:
    assert forward_transfer(BY_HAND) == pytest.approx(((0.25 - 0.20) + (0.40 - 0.10)) / 2)


def test_unseen_average_is_the_last_rows_mean_over_unseen() -> None:
    assert unseen_average(BY_HAND) == pytest.approx(0.50)


def test_after_one_update_only_the_average_is_defined() -> None:
    assert all_metrics(ONE) == {
        "average_accuracy": pytest.approx(0.6),
        "backward_transfer": None,
        "forgetting": None,
        "forward_transfer": None,
        "unseen_average": None,
    }


@pytest.mark.parametrize(
    ("metric", "row", "column", "named"),
    [
        (average_accuracy, 3, 1, "after update 3 on b"),
        (backward_transfer, 2, 1, "after update 2 on b"),
        (forgetting, 2, 0, "after update 2 on a"),
        (forward_transfer, 0, 2, "of the base model on c"),
        (forward_transfer, 1, 1, "after update 1 on b"),
        (unseen_average, 3, 4, "after update 3 on v"),
    ],
)
@pytest.mark.parametrize("hole", [None, float("nan")])
def test_a_needed_score_that_is_missing_is_named(metric, row, column, named, hole) -> None:  # type: ignore[no-untyped-def]
    scores = [list(line) for line in BY_HAND.scores]
    scores[row][column] = hole
    with pytest.raises(BadInput, match=named):
        metric(BY_HAND.model_copy(update={"scores": scores}))


def test_a_matrix_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(BadInput, match="has 3 rows for 3 learning tasks; it needs 4"):
        average_accuracy(BY_HAND.model_copy(update={"scores": BY_HAND.scores[:-1]}))
    with pytest.raises(BadInput, match="row 1 of the score matrix has 3 scores; it needs 5"):
        average_accuracy(
            BY_HAND.model_copy(update={"scores": [BY_HAND.scores[0], [0.1, 0.2, 0.3], *BY_HAND.scores[2:]]})
        )
    with pytest.raises(BadInput, match="no learning task"):
        average_accuracy(ScoreMatrix(learning_tasks=[], unseen=[], scores=[[]]))
    with pytest.raises(BadInput, match=r"no update 0; .* 1 to 3"):
        seen_average(BY_HAND, 0)


@st.composite
def matrices(draw: st.DrawFn) -> ScoreMatrix:
    """Complete in what the formulas need; entries before the superdiagonal, which they may do without, come and go."""
    updates, unseen = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    score = st.floats(0, 1)
    scores = [
        [
            draw(score | st.none()) if 0 < row < column and column < updates else draw(score)
            for column in range(updates + unseen)
        ]
        for row in range(updates + 1)
    ]
    tasks = [f"task {number}" for number in range(updates)]
    return ScoreMatrix(learning_tasks=tasks, unseen=[f"unseen {number}" for number in range(unseen)], scores=scores)


def moved(matrix: ScoreMatrix, offsets: list[float]) -> ScoreMatrix:
    """Every column plus its own offset."""
    scores = [
        [None if s is None else s + offsets[j % len(offsets)] for j, s in enumerate(row)] for row in matrix.scores
    ]
    return matrix.model_copy(update={"scores": scores})


@given(matrices())
def test_forgetting_is_at_least_the_backward_loss(matrix: ScoreMatrix) -> None:
    lost, backward = forgetting(matrix), backward_transfer(matrix)
    assert lost is not None and backward is not None
    assert lost >= -backward - 1e-12


@given(matrices())
def test_the_average_is_that_of_the_moments_of_learning_plus_the_backward_transfer(matrix: ScoreMatrix) -> None:
    tasks, backward = len(matrix.learning_tasks), backward_transfer(matrix)
    learnt = [matrix.scores[number + 1][number] for number in range(tasks)]
    assert backward is not None
    assert average_accuracy(matrix) == pytest.approx((sum(s or 0.0 for s in learnt) + (tasks - 1) * backward) / tasks)


@given(matrices(), st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_differences_do_not_see_how_hard_a_learning_task_is(matrix: ScoreMatrix, offsets: list[float]) -> None:
    harder = moved(matrix, offsets)
    for metric in (backward_transfer, forgetting, forward_transfer):
        assert metric(harder) == pytest.approx(metric(matrix), abs=1e-9)


@given(matrices(), st.floats(-1, 1))
def test_averages_move_with_all_scores(matrix: ScoreMatrix, offset: float) -> None:
    for metric in (average_accuracy, unseen_average):
        assert metric(moved(matrix, [offset])) == pytest.approx((metric(matrix) or 0.0) + offset, abs=1e-9)


@given(matrices(), st.randoms(use_true_random=False))
def test_the_order_of_the_unseen_does_not_matter(matrix: ScoreMatrix, random) -> None:  # type: ignore[no-untyped-def]
    tasks = len(matrix.learning_tasks)
    order = random.sample(range(len(matrix.unseen)), len(matrix.unseen))
    shuffled = matrix.model_copy(
        update={
            "unseen": [matrix.unseen[number] for number in order],
            "scores": [row[:tasks] + [row[tasks + number] for number in order] for row in matrix.scores],
        }
    )
    assert all_metrics(shuffled) == {name: pytest.approx(value) for name, value in all_metrics(matrix).items()}


@given(st.floats(0, 1), st.integers(2, 6))
def test_where_nothing_changes_nothing_is_kept_lost_or_passed_on(score: float, updates: int) -> None:
    scores: list[list[float | None]] = [[score] * (updates + 1) for _ in range(updates + 1)]
    still = ScoreMatrix(learning_tasks=[f"task {n}" for n in range(updates)], unseen=["u"], scores=scores)
    assert all_metrics(still) == {
        "average_accuracy": pytest.approx(score),
        "backward_transfer": 0.0,
        "forgetting": 0.0,
        "forward_transfer": 0.0,
        "unseen_average": pytest.approx(score),
    }
