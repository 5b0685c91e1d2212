"""Scores worked out again from stored rows, against `recall.evaluation`'s own metrics."""

import pytest

from recall.learning_tasks import Row
from recall.rescoring import StoredScores, rescore
from recall.text_metrics import chrf

ROWS = [Row(id=str(n), prompt="?", target=target) for n, target in enumerate(["good day", "bad", "fine"])]


def stored(metric, predictions, row_scores):
    return StoredScores(metric=metric, score=0.5, row_scores=row_scores, predictions=predictions)


def test_accuracy_is_the_share_of_predictions_that_are_the_targets():
    found = stored("accuracy", ["good day", "bad", "bad"], [1.0, 1.0, 1.0])
    assert rescore(found, ROWS) == pytest.approx(2 / 3)
    assert rescore(found) == 1.0, "without the rows it is what the row scores say"


def test_a_corpus_score_needs_the_rows():
    predictions = ["good day", "bat", "line"]
    expected, by_row = chrf(predictions, [[row.target] for row in ROWS])
    assert rescore(stored("chrf", predictions, by_row), ROWS) == expected
    assert rescore(stored("chrf", predictions, by_row)) is None


def test_squad_takes_the_best_reference():
    rows = [Row(id="0", prompt="?", target="x", references=["the cat", "a dog"])]
    assert rescore(stored("squad_f1_em", ["dog"], [0.0]), rows) == 1.0


def test_json_is_scored_field_by_field():
    rows = [Row(id="0", prompt="?", target='{"day": 3, "month": 5}')]
    assert rescore(stored("json_f1", ['{"day": 3, "month": 6}'], [0.0]), rows) == 0.5
    assert rescore(stored("json_f1", ["?"], [0.25])) == 0.25, "without the rows it is what the row scores say"


def test_other_rows_than_those_predicted_give_no_score():
    assert rescore(stored("accuracy", ["good day"], [1.0]), ROWS) is None
