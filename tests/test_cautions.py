"""What a run warns of: each sign on a result that shows it, and nothing on one that looks well."""

from math import e

import pytest

from recall.cautions import cautions
from recall.results import LabelBias, MergeWeights
from recall.summary import to_json
from tests.sample_result import merge, sample_result


def with_update(number, **changes):
    """The sample result, one update changed."""
    result = sample_result()
    updates = list(result.updates)
    updates[number - 1] = updates[number - 1].model_copy(update=changes)
    return result.model_copy(update={"updates": updates})


def with_score(row, column, score):
    result = sample_result()
    matrix = result.methods["recall"]
    scores = [list(line) for line in matrix.scores]
    scores[row][column] = score
    methods = result.methods | {"recall": matrix.model_copy(update={"scores": scores})}
    return result.model_copy(update={"methods": methods})


def with_sigma(sigma, similarities, newest=0.6):
    weights = [[1 - newest, newest]] * 4
    merged = MergeWeights(
        layers=list("abcd"), models=["current", "new"], weights=weights, similarities=similarities, sigma=[]
    )
    result = with_update(1, merge=merged)
    return result.model_copy(update={"settings": {"weighting": {"sigma": sigma, "temperature": 1.0}}})


def test_a_run_that_looks_well_warns_of_nothing():
    assert cautions(sample_result()) == []


def on_validation(before, expert, merged):
    return with_update(3, on_validation={"before": before, "expert": expert, "merged": merged})


def test_a_merged_model_worse_than_both_it_was_made_of():
    (said,) = cautions(on_validation(0.32, 0.70, 0.26))
    assert said.startswith("update 3, commonsense: on its validation rows the merged model has 26.0 points, less than")
    assert "its expert (70.0) and less than the model before (32.0)" in said


def test_a_collapse_is_told_even_where_the_expert_gained_nothing():
    (said,) = cautions(on_validation(0.32, 0.32, 0.10))
    assert "less than its expert (32.0) and less than the model before (32.0)" in said


def test_less_than_two_rows_of_fifty_under_both_are_left_to_chance():
    assert cautions(on_validation(0.32, 0.70, 0.30)) == []


def test_an_expert_that_learned_nothing():
    (said,) = cautions(on_validation(0.32, 0.32, 0.32))
    assert "on its validation rows the expert has 32.0 points and the model before had 32.0" in said


def test_what_an_update_taught_and_a_later_one_took_back_below_the_base():
    # The base has 18.2 points on names_fr; after its own update, the second, 35.2.
    (said,) = cautions(with_score(3, 1, 0.15))
    assert said.startswith(
        "update 3, commonsense: it takes names_fr from 35.2 points to 15.0, under the base model (18.2)"
    )
    assert cautions(with_score(3, 1, 0.17)) == [], "less than two points under it"
    never = with_score(2, 1, 0.10).methods["recall"].scores
    lost = with_score(3, 1, 0.10)
    lost.methods["recall"].scores[2] = never[2]
    assert cautions(lost) == [], "it was under the base before"


@pytest.mark.parametrize(
    ("sizes", "warned"),
    [
        ([1, 1, 30, 28], True),
        ([1, 20, 30, 28], False),  # a quarter of them
        ([1, 1, 1, 1], False),  # every prompt was taken
        ([], False),
    ],
)
def test_typical_samples_that_stand_for_themselves_alone(sizes, warned):
    found = cautions(with_update(2, cluster_sizes=sizes))
    assert ["alone in their clusters" in said for said in found] == [True] * warned


def test_a_fixed_sigma_that_turns_similarities_into_0_or_1():
    (said,) = cautions(with_sigma(0.1, [[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.5, 1.0]]))
    assert "75% of the similarities are 0 or 1" in said and "set it to median" in said


def test_models_that_see_the_samples_all_alike():
    alike = [[1.0, 1.0], [0.9, 1.0], [0.9, 1.0], [0.8, 1.0]]
    (said,) = cautions(with_sigma("median", alike, newest=0.52))
    assert "the smallest is 7.7% under the largest, by a mean similarity of 0.90" in said
    assert cautions(with_sigma("median", alike, newest=0.54)) == []


def test_one_model_of_many_that_is_left_out_makes_weights_uneven():
    weights, similarities = [[0.07, *[0.186] * 5]] * 4, [[0.02, *[1.0] * 5]] * 4
    most = MergeWeights(
        layers=list("abcd"), models=list("uvwxyz"), weights=weights, similarities=similarities, sigma=[]
    )
    assert not [said for said in cautions(with_update(2, merge=most)) if "in effect even" in said]


def test_models_far_apart_where_they_are_deep():
    (said,) = cautions(with_sigma("median", [[1.0, 1.0], [0.9, 1.0], [0.2, 1.0], [0.1, 1.0]]))
    assert "mean similarity 0.15 of the nearest" in said


def test_similarities_that_nobody_measured_and_samples_from_the_edge_are_no_signs():
    by_depth = with_sigma("median", [[1.0, 1.0], [0.67, 1.0], [0.1, 1.0], [0.0, 1.0]])
    assert len(cautions(by_depth)) == 1
    by_depth.settings["weighting"]["similarity"] = "depth"
    assert cautions(by_depth) == []
    lone = with_update(2, cluster_sizes=[1, 1, 30, 28])
    assert len(cautions(lone)) == 1
    assert cautions(lone.model_copy(update={"settings": {"sampling": {"choice": "farthest"}}})) == []


def test_a_pool_in_which_the_newest_can_have_but_little():
    (said,) = cautions(with_update(2, merge=merge(1, models=6)))
    most = max(row[-1] for row in merge(1, models=6).weights)
    assert most < e / (e + 5) and f"the newest has {100 * most:.0f}% of a layer at most" in said
    assert cautions(with_update(2, merge=merge(1, models=3))) == []


def test_by_moments_a_weight_is_no_share_of_the_model():
    result = with_update(2, merge=merge(1, models=6))
    settings = result.settings | {"update": {"merge": "recall_moments"}}
    assert cautions(result.model_copy(update={"settings": settings})) == []


def test_a_stream_that_did_harm():
    result = sample_result()
    matrix = result.methods["recall"]
    scores = [[0.9, 0.9, 0.9, *matrix.scores[0][3:]], *matrix.scores[1:]]
    methods = result.methods | {"recall": matrix.model_copy(update={"scores": scores})}
    assert any("the stream did harm" in said for said in cautions(result.model_copy(update={"methods": methods})))


def test_machines_get_the_warnings_too(tmp_path):
    result = on_validation(0.32, 0.70, 0.26)
    assert to_json(result, tmp_path / "report.html")["warnings"] == cautions(result) != []


@pytest.mark.parametrize(("given", "said"), [(0.9, 1), (0.7, 0)])
def test_a_label_that_is_given_far_more_often_than_it_is_right(given, said):
    bias = {"films": LabelBias(label="bad", given=given, true=0.5, auc=0.97)}
    found = cautions(with_update(3, label_bias=bias))
    assert len(found) == said
    assert not said or "on films the merged model gives bad to 90% of the rows, which 50% are" in found[0]
    assert not said or "(area under the ROC curve 0.97, by chance 0.5)" in found[0]
    assert cautions(with_update(2, label_bias=bias)) == [], "the last update's model is the one to be used"


def test_rows_of_one_target_tell_nothing_of_a_bias():
    bias = {"films": LabelBias(label="bad", given=0.9, true=0.0, auc=None)}
    assert cautions(with_update(3, label_bias=bias)) == []
