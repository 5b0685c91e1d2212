"""A merge by moments made again: the moments of its expert, the weights of a first update, and the closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from recall.checkpoints import Checkpoint
from recall.loaded_models import loaded
from recall.merge_settings import MergingSettings
from recall.methods import merge_with
from recall.moments import read_moments, second_moments
from recall.remaking import Difference, array_difference
from recall.results import MergeWeights
from recall.settings import RepresentationSettings
from recall.structure import checkpoint_layers
from recall.weighting import newest_only


def remake_moments(
    expert: Checkpoint, prompts: list[str], settings: RepresentationSettings, merging: MergingSettings, file: Path
) -> None:
    """What an expert leaves behind, as `tasks/moments.py` makes it; written to `file`."""
    with loaded(expert, torch.float32) as (model, tokenizer):
        found = second_moments(
            model,
            tokenizer,
            prompts,
            batch_size=settings.batch_size,
            max_tokens=settings.max_tokens,
            weighting=merging.moments_weighting,
            what="moments again",
        )
    found.save(file, merging.moments_rank)


def moments_difference(found: Path, expected: Path) -> Difference:
    """Between two files of moments, matrix by matrix, as a merge reads them.

    Factors of low rank may be turned on another machine, where eigenvectors have other signs, and mean the same.
    """
    one, other = read_moments(found), read_moments(expected)
    facts = [(each.shared, each.transposed, each.inputs, each.tokens, each.weighting) for each in (one, other)]
    if facts[0] != facts[1]:
        where = "the maps or the tokens that they are of, or what a token counts for"
        return Difference(absolute=np.inf, relative=np.inf, where=where)
    worst = Difference(absolute=0.0, relative=0.0)
    for name in dict.fromkeys(one.shared.values()):
        here = array_difference(one.matrix(name).numpy(), other.matrix(name).numpy())
        worst = max(worst, here.model_copy(update={"where": name}), key=lambda difference: difference.relative)
    return worst


def remake_first_weights(members: Sequence[Checkpoint], names: list[str]) -> MergeWeights:
    """Of a first update, which has nothing to merge: all of the newest model, as `tasks/weigh.py` writes it."""
    layers = checkpoint_layers(members[0]).names
    weights_LK = newest_only(len(layers), len(members))
    return MergeWeights(layers=layers, models=names, weights=weights_LK.tolist(), similarities=[], sigma=[])


def remake_by_moments(
    members: Sequence[Checkpoint],
    record: MergeWeights,
    moments: Sequence[Sequence[Path]],
    settings: MergingSettings,
    out: Path,
) -> None:
    """Step 6 by moments, as `tasks/merge.py` does it; writes the model to `out`.

    Args:
        moments: of each member the files of the experts that it stands for.
    """
    layers = checkpoint_layers(members[0], modules=record.by_module)
    rows = np.array(record.weights)
    merge_with("recall_moments", members, out, settings, moments=moments, weights_RK=rows, row_of=layers.of)
