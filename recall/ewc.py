"""Elastic weight consolidation: training that leaves the weights which earlier learning tasks need where they are.

Kirkpatrick et al. 2017 (eq. 3), in the online form of Schwarz et al. 2018 with gamma = 1: to the newest learning
task's loss comes strength / 2 * sum_i F_i (theta_i - theta*_i)^2, where theta* is the model that training starts from
and F the sum of the diagonal Fishers of all earlier learning tasks. Of their rows nothing else is kept. Under LoRA
theta - theta* is s B A, so only the weights that LoRA changes have an F.

Shape suffixes: T tokens, N answer tokens, O rows and I columns of B A, r its rank.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.lora import Embedding, LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from recall.answer_logits import LogitReader
from recall.encoding import Encoded, encode
from recall.errors import BadInput
from recall.learning_tasks import Row
from recall.progress import track
from recall.save_tensors import save_tensors
from recall.settings import FisherSettings

FILE = "fisher.safetensors"
ADAPTER = "default"


def add_fisher(
    fisher: dict[str, Tensor],
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    settings: FisherSettings,
    what: str = "fisher",
) -> dict[str, Tensor]:
    """Add the diagonal of the empirical Fisher of one learning task at `model` to that of the earlier ones.

    It is the mean over rows of the squared gradient of the row's answer's log-likelihood, a sum over tokens that the
    end of the text closes (as in training). A row's gradient of a weight is freed before the next weight's is made, so
    what is in memory is the model and F. Give the model in float32.

    Args:
        fisher: of the earlier learning tasks, by the name of the weight; used up. Empty for the first one.
        model: a full model, left as it was.
        tokenizer: its tokenizer.
        rows: the learning task's training rows; `settings.samples` of them are drawn where there are more.
        settings: which rows, and which weights.
        what: what the progress says.

    Returns:
        By the name of every weight that LoRA would change its F, in the weight's shape and type.

    Raises:
        BadInput: `fisher` is of other weights.
    """
    names = _lora_targets(model, settings.target_modules)
    weights = {name: model.get_parameter(name) for name in names}
    total = fisher or {name: torch.zeros_like(weight, requires_grad=False) for name, weight in weights.items()}
    _check_names(total, weights)
    if len(rows) > settings.samples:
        rows = random.Random(settings.seed).sample(rows, settings.samples)
    prompts, targets = [row.prompt for row in rows], [[row.target] for row in rows]
    encoded = encode(tokenizer, prompts, targets, settings.max_tokens, end=True)
    reader = LogitReader(model)
    with _squares_added(model, weights, total, 1 / len(rows)):
        for row in track(encoded, what, total=len(encoded)):
            _log_likelihood(reader, row).backward()  # type: ignore[no-untyped-call]
    return total


def write_fisher(fisher: dict[str, Tensor], folder: Path) -> None:
    """Write it as `fisher.safetensors`, in float32.

    Raises:
        OSError: the folder cannot be written.
    """
    save_tensors({name: tensor.float().cpu().contiguous() for name, tensor in fisher.items()}, folder / FILE)


def read_fisher(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """What `write_fisher` wrote."""
    return load_file(folder / FILE, device=str(device))


@dataclass(frozen=True)
class Consolidation:
    """What training is to keep: the folder of the earlier learning tasks' Fisher, and how much that weighs (lambda)."""

    folder: Path
    strength: float

    def digest(self) -> str:
        """All of it that changes the result, and not where it lies."""
        with (self.folder / FILE).open("rb") as file:
            return f"{self.strength!r} {file_digest(file, 'sha256').hexdigest()}"

    def penalty(self, model: PeftModel) -> Penalty:
        """The penalty for an adapter of `model`; see there."""
        return Penalty(model, self)


class Penalty:
    """strength / 2 * sum_i F_i (s B A)_i^2 over everything that a LoRA adapter changes, exact and with its gradient.

    One weight's difference is in memory at a time; what waits for the backward pass is as small as A and B.

    Raises:
        BadInput: the Fisher is of other weights than the adapter changes.
    """

    def __init__(self, model: PeftModel, keep: Consolidation) -> None:
        layers = {
            f"{name}.weight": part
            for name, part in model.get_base_model().named_modules()
            if isinstance(part, LoraLayer)
        }
        fisher = read_fisher(keep.folder, model.device)
        _check_names(fisher, {name: layer.weight for name, layer in layers.items()})
        self.strength = keep.strength
        self.parts = [(_turned(layer, fisher[name]), layer.scaling[ADAPTER], layer) for name, layer in layers.items()]

    def __call__(self) -> Tensor:
        """The penalty where the adapter stands now, a scalar in float32."""
        sums = [_weighted_square(fisher_OI, scale, *_factors(layer)) for fisher_OI, scale, layer in self.parts]
        return self.strength / 2 * torch.stack(sums).sum()


class _WeightedSquare(torch.autograd.Function):
    """sum F (s B A)^2 of one weight; the gradients are small, so the forward pass makes them while it has s B A."""

    @staticmethod
    def forward(ctx: Any, fisher_OI: Tensor, scale: float, low_A_rI: Tensor, low_B_Or: Tensor) -> Tensor:
        difference_OI = (low_B_Or @ low_A_rI).mul_(scale)
        pull_OI = fisher_OI * difference_OI
        ctx.save_for_backward(2 * scale * (low_B_Or.T @ pull_OI), 2 * scale * (pull_OI @ low_A_rI.T))
        return pull_OI.mul_(difference_OI).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, Tensor]:
        (gradient,) = gradients
        of_A_rI, of_B_Or = ctx.saved_tensors
        return None, None, gradient * of_A_rI, gradient * of_B_Or


def _weighted_square(fisher_OI: Tensor, scale: float, low_A_rI: Tensor, low_B_Or: Tensor) -> Tensor:
    found: Tensor = _WeightedSquare.apply(fisher_OI, scale, low_A_rI, low_B_Or)  # type: ignore[no-untyped-call]
    return found


def _factors(layer: Any) -> tuple[Tensor, Tensor]:
    if isinstance(layer, Embedding):
        return layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _turned(layer: Any, fisher: Tensor) -> Tensor:
    """F as B A lies: embeddings, and GPT-2's linear maps, keep their weight the other way round."""
    return fisher.T if isinstance(layer, Embedding) or layer.fan_in_fan_out else fisher


def _lora_targets(model: PreTrainedModel | PeftModel, target_modules: str | list[str]) -> list[str]:
    """The names of the weights that LoRA would change, as PEFT itself finds them, on a copy without weights."""
    with torch.device("meta"):
        blank = AutoModelForCausalLM.from_config(model.config)
        inject_adapter_in_model(LoraConfig(r=1, target_modules=target_modules), blank)
    return [f"{name}.weight" for name, part in blank.named_modules() if isinstance(part, LoraLayer)]


def _check_names(fisher: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    other = sorted(
        name
        for name in fisher.keys() | weights.keys()
        if name not in fisher or name not in weights or fisher[name].shape != weights[name].shape
    )
    if other:
        raise BadInput(
            f"the Fisher and the weights that LoRA changes differ in {other[0]}; make both with the same base model "
            "and finetuning.lora.target_modules"
        )


@contextmanager
def _squares_added(
    model: PreTrainedModel | PeftModel, weights: Mapping[str, Tensor], total: dict[str, Tensor], share: float
) -> Iterator[None]:
    """While it lasts a backward pass adds `share` times its squared gradients to `total`, and leaves no gradient."""

    def add(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        total[name].addcmul_(weight.grad, weight.grad, value=share)
        weight.grad = None

    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    hooks = []
    try:
        model.requires_grad_(False)
        for name, weight in weights.items():
            weight.requires_grad_(True)
            hook = partial(add, name)
            hooks.append(weight.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, required in before:
            parameter.requires_grad_(required)


def _log_likelihood(reader: LogitReader, row: Encoded) -> Tensor:
    """Of the answer after the prompt: the sum over its tokens."""
    (answer,) = row.answers
    device = reader.causal_lm.device
    ids_1T = torch.tensor([row.prompt + answer], device=device)
    chosen_1T = torch.zeros_like(ids_1T, dtype=torch.bool)
    # The state before a token predicts it.
    chosen_1T[:, len(row.prompt) - 1 : -1] = True
    states_N, _ = reader.states({"input_ids": ids_1T, "use_cache": False}, chosen_1T)
    return reader.log_probs(states_N, torch.tensor(answer, device=device)).sum()
