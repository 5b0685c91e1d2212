"""Signs in a run's own numbers that a merge went badly: what `recall run` warns of, and docs/limits.md explains.

Rules of thumb: they choose nothing and change no number. All but those by an update's validation rows use what was
measured anyway.
"""

from __future__ import annotations

from statistics import fmean

from recall.continual_metrics import seen_average
from recall.results import LabelBias, MergeWeights, StreamResult
from recall.standings import points

# A score has to lie this many points under another's before anything is said: two rows of a hundred, and of fifty.
SMALL, SMALL_ON_VALIDATION = 2.0, 4.0
# Of the clusters; a cluster of one prompt stands for nothing but itself.
TOO_MANY_LONE = 0.25
ALIKE, FAR_APART = 0.9999, 0.2
EVEN_SHARE = 0.5
# Points of the rows: how many more are given a label than have it, where something is said.
TOO_OFTEN = 25.0
# How far the smallest weight lies under the largest, as a share of that, on average over layers. In streams of real
# learning tasks, where RECALL was no better than the plain average, it was 0.004 to 0.11; at a learning rate set high,
# in the default stream and one of six, 0.05 to 0.58 (docs/limits.md).
IN_EFFECT_EVEN = 0.13


def cautions(result: StreamResult) -> list[str]:
    """One sentence for each sign, in the updates' order; none where all looks well.

    Raises:
        BadInput: a score that the check needs is missing.
    """
    fixed_sigma = _set_to(result, "weighting", "sigma") not in (None, "median")
    similarity = _set_to(result, "weighting", "similarity")
    found = []
    for number, update in enumerate(result.updates, start=1):
        signs = [
            *_of_validation(update.on_validation),
            *_of_what_was_known(result, number),
            *(_of_clusters(update.cluster_sizes) if _set_to(result, "sampling", "choice") != "farthest" else []),
            *(_of_similarities(update.merge, fixed_sigma) if similarity != "depth" else []),
            *([*_of_weights(update.merge), *_of_pool(update.merge)] if result.merged_by == "recall" else []),
        ]
        found += [f"update {number}, {update.learning_task}: {sign}" for sign in signs]
    # Of the last model alone, which is the one to be used.
    labels = [sign for update in result.updates[-1:] for sign in _of_labels(update.label_bias)]
    return found + labels + _of_the_end(result)


def _set_to(result: StreamResult, section: str, name: str) -> object:
    """A setting of the run; None where it has its default or is not recorded."""
    values = result.settings.get(section)
    return values.get(name) if isinstance(values, dict) else None


def _of_validation(scores: dict[str, float]) -> list[str]:
    """The merged model on the new learning task, beside the two that it was made from."""
    if not scores:
        return []
    before, expert, merged = (points(scores[who]) for who in ("before", "expert", "merged"))
    if min(expert, before) - merged >= SMALL_ON_VALIDATION:
        return [
            f"on its validation rows the merged model has {merged:.1f} points, less than its expert ({expert:.1f}) and "
            f"less than the model before ({before:.1f}): a merge of the two is worse than either; lower "
            "finetuning.learning_rate, so that they stay closer together"
        ]
    if expert - before < SMALL_ON_VALIDATION:
        return [
            f"on its validation rows the expert has {expert:.1f} points and the model before had {before:.1f}, so "
            "fine-tuning taught it next to nothing; give more rows or epochs, or another learning rate"
        ]
    return []


def _of_what_was_known(result: StreamResult, number: int) -> list[str]:
    """A learning task that was learned before, and that this update takes under the base model."""
    matrix, said = result.methods["recall"], []
    for place, name in enumerate(matrix.learning_tasks[: number - 1]):
        base, before, after = (matrix.scores[row][place] for row in (0, number - 1, number))
        if base is None or before is None or after is None:
            continue
        if points(before) >= points(base) and points(base) - points(after) >= SMALL:
            held = (
                "raise merging.hold" if result.merged_by == "recall_moments" else "set update.merge to recall_moments"
            )
            said.append(
                f"it takes {name} from {points(before):.1f} points to {points(after):.1f}, under the base model "
                f"({points(base):.1f}): lower finetuning.learning_rate, or {held}"
            )
    return said


def _of_clusters(sizes: list[int]) -> list[str]:
    lone = sizes.count(1)
    # As many clusters as prompts: all are taken, and nothing was clustered.
    if not sizes or max(sizes) == 1 or lone <= TOO_MANY_LONE * len(sizes):
        return []
    return [
        f"{lone} of {len(sizes)} typical samples are alone in their clusters, outliers rather than typical; lower "
        "sampling.clusters or give more prompts"
    ]


def _of_similarities(merge: MergeWeights, fixed_sigma: bool) -> list[str]:
    older = [similarity for row in merge.similarities for similarity in row[:-1]]
    if not older:
        return []
    extreme = sum(value < 1 - ALIKE or value > ALIKE for value in older) / len(older)
    if fixed_sigma and extreme > EVEN_SHARE:
        return [
            f"{100 * extreme:.0f}% of the similarities are 0 or 1, so the weights tell layers apart no longer; "
            "weighting.sigma does not fit the scale of the hidden states, set it to median"
        ]
    deep = [max(row[:-1]) for row in merge.similarities[len(merge.similarities) // 2 :]]
    if fmean(deep) < FAR_APART:
        return [
            f"in the deeper half of the layers no older model sees the samples as the expert does (mean similarity "
            f"{fmean(deep):.2f} of the nearest): a merge of models so far apart may be neither; lower "
            "finetuning.learning_rate"
        ]
    return []


def _of_weights(merge: MergeWeights) -> list[str]:
    if not merge.similarities or len(merge.models) < 2:
        return []
    spread = fmean(1 - min(row) / max(row) for row in merge.weights)
    if spread >= IN_EFFECT_EVEN:
        return []
    older = fmean(similarity for row in merge.similarities for similarity in row[:-1])
    return [
        f"the weights of its merge are in effect even: on average over layers the smallest is {100 * spread:.1f}% "
        f"under the largest, by a mean similarity of {older:.2f} and weighting.temperature; similarity decides next to "
        "nothing"
    ]


def _of_pool(merge: MergeWeights) -> list[str]:
    """At temperature 1 the newest of K models has e / (e + K - 1) at most, under half from K = 4 on.

    Of a weighted sum alone: by moments a weight is no share of the model.
    """
    most = max((row[-1] for row in merge.weights), default=1.0)
    if not merge.similarities or most >= EVEN_SHARE or len(merge.models) < 3:
        return []
    return [
        f"of {len(merge.models)} models in the pool the newest has {100 * most:.0f}% of a layer at most, so what it "
        "learned is diluted; set update.pool to current, or lower weighting.temperature"
    ]


def _of_labels(found: dict[str, LabelBias]) -> list[str]:
    said = []
    for name, bias in found.items():
        if points(bias.given) - points(bias.true) < TOO_OFTEN or bias.auc is None:
            continue
        said.append(
            f"on {name} the merged model gives {bias.label} to {100 * bias.given:.0f}% of the rows, which "
            f"{100 * bias.true:.0f}% are: its score there says which label it prefers more than what it tells apart "
            f"(area under the ROC curve {bias.auc:.2f}, by chance 0.5)"
        )
    return said


def _of_the_end(result: StreamResult) -> list[str]:
    """Is all of it worse than not having begun?"""
    matrix = result.methods["recall"]
    updates = len(matrix.learning_tasks)
    base = [score for score in matrix.scores[0][:updates] if score is not None]
    if len(base) < updates or points(fmean(base)) - points(seen_average(matrix, updates)) < SMALL:
        return []
    return [
        f"over the learning tasks seen the merged model has {points(seen_average(matrix, updates)):.1f} points and the "
        f"base model {points(fmean(base)):.1f}: the stream did harm; do not promote it"
    ]
