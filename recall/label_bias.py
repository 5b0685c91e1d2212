"""Does a model tell a classification's labels apart, or prefer one of them? Accuracy by likelihood says both in one.

N rows, L labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from recall.results import LabelBias


def label_bias(
    log_likelihoods_NL: Sequence[Sequence[float]], chosen: Sequence[str], targets: Sequence[str], labels: list[str]
) -> LabelBias:
    """The label that most rows are given, and how well the labels' likelihoods rank the rows.

    AUC is the area under the ROC curve of a label's log-odds against all others, a mean over the labels that some rows
    have and others have not (one against the rest, as scikit-learn calls it). Of two labels it does not change where
    one is likelier by the same factor in every row, which moves the threshold of accuracy.

    Args:
        log_likelihoods_NL: summed log-probability of each label after each row's prompt. Where one is no number, as of
            a model that diverged, there is no AUC.
        chosen: the label that each row was given.
        targets: the right label of each row.
    """
    sums_NL = np.asarray(log_likelihoods_NL, dtype=np.float64)
    given, count = Counter(chosen).most_common(1)[0]
    truth = {label: np.array([target == label for target in targets]) for label in labels}
    areas = [
        float(roc_auc_score(is_label_N, sums_NL[:, place] - logsumexp(np.delete(sums_NL, place, axis=1), axis=1)))
        for place, is_label_N in enumerate(truth.values())
        if is_label_N.any() and not is_label_N.all() and np.isfinite(sums_NL).all()
    ]
    return LabelBias(
        label=given,
        given=count / len(targets),
        true=float(truth[given].mean()),
        auc=fmean(areas) if areas else None,
    )
