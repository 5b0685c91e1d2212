"""Where the weights of a merge come from: a file, a rule, or how alike the models represent typical samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from recall.checkpoints import Checkpoint, is_causal_lm
from recall.context_length import context_length, positions
from recall.errors import BadInput, one_line
from recall.merge_request import MergeRequest
from recall.merge_settings import BY_SIMILARITY, WEIGHTED
from recall.prompts import Sample

if TYPE_CHECKING:
    from torch import Tensor

# Where a config states no limit, such as T5's.
LONGEST = 2048


@dataclass
class Weighing:
    """A row a layer, a column a model; empty for methods without weights. `losses` of the models on the samples."""

    weights: list[list[float]] = field(default_factory=list)
    similarities: list[list[float]] = field(default_factory=list)
    sigma: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    max_tokens: int = 0

    def take(self, weights_LK: np.ndarray, similarities_LK: np.ndarray, sigma_L: np.ndarray) -> None:
        """Take in what `recall.weighting.weigh` found."""
        self.weights, self.similarities, self.sigma = weights_LK.tolist(), similarities_LK.tolist(), sigma_L.tolist()

    @property
    def count(self) -> int | None:
        """How many samples were used; None where there were none."""
        return len(self.samples) or next((len(tensor) for tensor in self.inputs.values()), None)


class GivenWeights(BaseModel):
    """What is read of a `recall.json`; any JSON with `weights` will do."""

    model_config = ConfigDict(extra="ignore")

    weights: list[list[float]]
    layers: list[str] | None = None
    similarities: list[list[float]] = []
    sigma: list[float] = []
    tensor_layers: dict[str, int] | None = None


def read_weights(path: Path) -> GivenWeights:
    """Weights from a file.

    Raises:
        BadInput: it cannot be read, or holds no weights.
    """
    try:
        return GivenWeights.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else one_line(error)
        raise BadInput(f"weights {path} cannot be used ({problem}); give a recall.json") from error


def weigh_models(
    request: MergeRequest, members: Sequence[Checkpoint], layers: int, given: GivenWeights | None
) -> Weighing:
    """The weights that are given or that the request's method finds, and the models' losses on the samples, if any.

    Args:
        layers: L + 1 rows, embeddings included (1 + 2L with granularity `module`).

    Raises:
        BadInput: a sample is longer than the models can read, there are too few, or they do not fit the method.
    """
    if request.samples and request.samples.suffix == ".safetensors":
        found = _look_at_inputs(request, members)
    else:
        found = _look_at_samples(request, members) if request.samples or request.generate else Weighing()
    if given:
        found.weights, found.similarities, found.sigma = given.weights, given.similarities, given.sigma
    elif request.method in WEIGHTED and request.method != "recall":
        found.weights = _by_rule(request, len(members), layers, found.losses)
    return found


def _by_rule(request: MergeRequest, models: int, layers: int, losses: list[float]) -> list[list[float]]:
    from recall.weighting import by_loss, task_arithmetic, uniform

    if request.method == "lm_cocktail":
        if not np.isfinite(losses).all():
            raise BadInput(f"the models' losses on the samples are {losses}; give samples with more text")
        weights_LK = by_loss(np.array(losses), request.merging.loss_temperature, layers)
    elif request.method == "task_arithmetic":
        weights_LK = task_arithmetic(layers, models, request.merging.scale)
    else:
        weights_LK = uniform(layers, models)
    rows: list[list[float]] = weights_LK.tolist()
    return rows


def _look_at_inputs(request: MergeRequest, members: Sequence[Checkpoint]) -> Weighing:
    """As `_look_at_samples`, for models that read no text and so have no loss on it."""
    from recall.input_samples import choose_inputs, read_inputs, represent_all
    from recall.loaded_models import forget
    from recall.weighting import weigh

    assert request.samples is not None
    if request.method == "lm_cocktail":
        raise BadInput("--method lm_cocktail weighs by the loss on text; give --samples as JSON lines")
    settings, modules = request.representations, request.weighting.granularity == "module"
    inputs = choose_inputs(read_inputs(request.samples), members[-1], request.clusters, settings, request.seed)
    found = Weighing(inputs=inputs)
    if request.method in BY_SIMILARITY and not request.weights:
        hidden_KLPE = represent_all(inputs, members, request.models, settings, modules)
        found.take(*weigh(hidden_KLPE, request.weighting))
    forget()
    return found


def _look_at_samples(request: MergeRequest, members: Sequence[Checkpoint]) -> Weighing:
    """Typical samples of the newest model, then one model in memory at a time: its representations and its loss."""
    import torch

    from recall.loaded_models import forget, loaded
    from recall.losses import mean_loss
    from recall.representations import represent
    from recall.weighting import weigh

    fitting = min(context_length(member) or LONGEST for member in members)
    room = min([request.max_tokens or fitting, *(most for member in members if (most := positions(member)))])
    batch_size, pooling = request.representations.batch_size, request.representations.pooling
    causal = is_causal_lm(members[0])
    if request.method == "lm_cocktail" and not causal:
        raise BadInput("--method lm_cocktail needs causal language models, as config.json's architectures name them")
    weighs = request.method in BY_SIMILARITY and not request.weights
    samples = _typical_samples(request, members[-1], room)
    prompts = [sample.read for sample in samples]
    hidden, losses = [], []
    for name, member in zip(request.models, members, strict=True):
        with loaded(member, torch.float32) as (model, tokenizer):
            if weighs:
                states_LPE = represent(
                    model, tokenizer, prompts, batch_size=batch_size, max_tokens=room, pooling=pooling,
                    modules=request.weighting.granularity == "module", what=f"represent {name}",
                )  # fmt: skip
                hidden.append(states_LPE)
            if causal and (request.check or request.method == "lm_cocktail"):
                losses.append(
                    mean_loss(model, tokenizer, samples, batch_size=batch_size, max_tokens=room, what=f"loss of {name}")
                )
    forget()
    found = Weighing(losses=losses, samples=samples, max_tokens=room)
    if weighs:
        found.take(*weigh(np.stack(hidden), request.weighting))
    return found


def _typical_samples(request: MergeRequest, newest: Checkpoint, room: int) -> list[Sample]:
    import torch

    from recall.generated import GENERATED_TOKENS, generate_prompts
    from recall.loaded_models import loaded
    from recall.loading import load_tokenizer
    from recall.prompts import read_samples
    from recall.representations import represent
    from recall.sampling import typical_samples

    batch_size = request.representations.batch_size
    samples = read_samples(request.samples) if request.samples else []
    few = request.clusters is not None and len(samples) < request.clusters
    if samples and few and not request.weights:
        raise BadInput(f"{request.samples} has {len(samples)} samples, fewer than --clusters {request.clusters}")
    if samples and request.max_tokens is None:
        tokenizer = load_tokenizer((newest.base or newest).folder, writes=False)
        _check_lengths(request.samples, [len(tokenizer(sample.read).input_ids) for sample in samples], room)
    with loaded(newest, torch.float32) as (model, tokenizer):
        if request.generate:
            texts = generate_prompts(
                model, tokenizer, request.generate, max_new_tokens=max(min(room, GENERATED_TOKENS) - 1, 1),
                batch_size=batch_size, seed=request.seed,
            )  # fmt: skip
            samples = [Sample(text=text) for text in texts]
        if request.clusters is None or len(samples) <= request.clusters:
            return samples
        last_PE = represent(
            model, tokenizer, [sample.read for sample in samples], batch_size=batch_size, max_tokens=room,
            last_layer_only=True, what="cluster",
        )[0]  # fmt: skip
    return [samples[index] for index in typical_samples(last_PE, request.clusters, request.seed).indices]


def _check_lengths(path: Path | None, lengths: Sequence[int], room: int) -> None:
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > room:
        raise BadInput(
            f"{path}: sample {longest + 1} has {lengths[longest]} tokens, but the models read {room}; shorten it, or "
            "cut long samples with --max-tokens"
        )
