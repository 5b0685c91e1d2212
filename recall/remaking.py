"""A merge made again from stored models and samples, and how far the result is from what was recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from recall.checkpoints import Checkpoint
from recall.loaded_models import loaded
from recall.merging import merge
from recall.representations import represent
from recall.results import Frozen, MergeWeights
from recall.settings import RepresentationSettings, WeightingSettings
from recall.structure import checkpoint_layers
from recall.tensor_files import FLOATS, TensorFolder
from recall.torch_types import TORCH_TYPES
from recall.weighting import weigh


class Difference(Frozen):
    """The largest distance between two arrays, and the same over the largest value; `where` names the tensor."""

    absolute: float
    relative: float
    where: str = ""


def remake_representations(
    members: Sequence[Checkpoint], prompts: list[str], settings: RepresentationSettings, modules: bool
) -> list[np.ndarray]:
    """Step 4 of the method for every member, as `tasks/represent.py` does it: `(L, P, E)` float32 each."""
    found = []
    for member in members:
        with loaded(member, torch.float32) as (network, tokenizer):
            found.append(
                represent(
                    network,
                    tokenizer,
                    prompts,
                    batch_size=settings.batch_size,
                    max_tokens=settings.max_tokens,
                    pooling=settings.pooling,
                    modules=modules,
                    what="represent again",
                )
            )
    return found


def remake_weights(
    members: Sequence[Checkpoint],
    names: list[str],
    representations: Sequence[np.ndarray],
    settings: WeightingSettings,
) -> MergeWeights:
    """Step 5 of the method, as `tasks/weigh.py` does it."""
    weights_LK, similarities_LK, sigma_L = weigh(np.stack(representations), settings)
    layers = checkpoint_layers(members[0], modules=settings.granularity == "module").names
    return MergeWeights(
        layers=layers,
        models=names,
        weights=weights_LK.tolist(),
        similarities=similarities_LK.tolist(),
        sigma=sigma_L.tolist(),
    )


def remake_model(members: Sequence[Checkpoint], record: MergeWeights, out: Path) -> None:
    """Step 6 of the method, as `tasks/merge.py` does it; writes the model to `out`."""
    layers = checkpoint_layers(members[0], modules=record.by_module)
    merge(members, np.array(record.weights), layers.of, out)


def array_difference(found: np.ndarray, expected: np.ndarray) -> Difference:
    """Between two arrays; infinite where their shapes differ or either has a NaN."""
    if found.shape != expected.shape:
        return Difference(absolute=np.inf, relative=np.inf, where=f"shape {found.shape}, not {expected.shape}")
    return _difference(found.astype(np.float64), expected.astype(np.float64), "")


def weights_difference(found: MergeWeights, expected: MergeWeights) -> Difference:
    """Between the weights of two merges; infinite where layers or models differ."""
    if (found.layers, found.models) != (expected.layers, expected.models):
        return Difference(absolute=np.inf, relative=np.inf, where="other layers or models")
    return array_difference(np.array(found.weights), np.array(expected.weights))


def model_difference(found: Path, expected: Path) -> Difference:
    """Between the weights of two checkpoints: of all tensors the one that is furthest off, relatively."""
    one, other = TensorFolder(found), TensorFolder(expected)
    try:
        if one.specs != other.specs:
            return Difference(absolute=np.inf, relative=np.inf, where="other tensors, shapes or types")
        worst = Difference(absolute=0.0, relative=0.0)
        for name in one.specs:
            here = _difference(_values(one, name), _values(other, name), name)
            worst = max(worst, here, key=lambda difference: difference.relative)
        return worst
    finally:
        one.close()
        other.close()


def read_weights(file: Path) -> MergeWeights:
    """A `weights.json`."""
    return MergeWeights.model_validate(json.loads(file.read_text(encoding="utf-8")))


def _values(folder: TensorFolder, name: str) -> np.ndarray:
    spec = folder.specs[name]
    content = folder.read(name)
    if spec.dtype not in FLOATS:
        return np.frombuffer(content, dtype=np.uint8).astype(np.float64)
    tensor = torch.frombuffer(content, dtype=TORCH_TYPES[spec.dtype]) if spec.size else torch.zeros(0)
    return np.asarray(tensor.to(torch.float64).numpy())


def _difference(found: np.ndarray, expected: np.ndarray, where: str) -> Difference:
    if not found.size:
        return Difference(absolute=0.0, relative=0.0, where=where)
    absolute = float(np.max(np.abs(found - expected)))
    if np.isnan(absolute):
        return Difference(absolute=np.inf, relative=np.inf, where=where)
    largest = float(np.max(np.abs(expected)))
    return Difference(absolute=absolute, relative=absolute / largest if largest else absolute, where=where)
