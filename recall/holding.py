"""Training held by moments: on the inputs that earlier experts left, every linear map goes on giving what it gave.

To the newest learning task's loss comes strength / 2 times a sum over all maps W of the mean of ||D x||^2 over each
earlier expert's inputs x, where D = s B A is what the adapter changes W by. With G_k the moments that expert k left
(recall/moments.py) that is a trace, tr(D G D^T) with G = sum_k G_k, and needs none of the inputs. Maps differ in scale
by orders of magnitude, so each trace is divided:

- of uniform moments by tr(W G W^T) / K, so that what counts is the change of a map's output relative to that output;
- of moments weighted by response by O n, n being how many maps share G: that is, to first order and as docs/merge.md
  has it, the relative change of the hidden state that an answer is read from.

This is EWC's penalty (recall/ewc.py) with a Fisher that is the identity over outputs times G over inputs, K-FAC's
factor of the inputs (Martens and Grosse 2015). Of earlier learning tasks nothing is kept but what a merge by moments
needs anyway.

Shape suffixes: I inputs and O outputs of a map, r the adapter's rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from recall.errors import BadInput
from recall.moments import Moments, read_moments

ADAPTER = "default"


@dataclass(frozen=True)
class Hold:
    """What training is held by: the files of K earlier experts' moments, and how much that weighs."""

    files: tuple[Path, ...]
    strength: float

    def digest(self) -> str:
        """All of it that changes the result, and not where it lies."""
        digests = []
        for path in self.files:
            with path.open("rb") as file:
                digests.append(file_digest(file, "sha256").hexdigest())
        return f"{self.strength!r} {digests}"

    def penalty(self, model: PeftModel) -> HeldOutputs:
        """The penalty for an adapter of `model`; see there."""
        return HeldOutputs(model, self)


class HeldOutputs:
    """strength / 2 times these traces where the adapter stands now; D is never made.

    Raises:
        BadInput: the moments are of two weightings, or lack a map that the adapter changes.
    """

    def __init__(self, model: PeftModel, hold: Hold) -> None:
        moments = [read_moments(path) for path in hold.files]
        _check_alike(moments, hold.files)
        sums: dict[str, Tensor] = {}
        self.strength = hold.strength
        self.parts: list[tuple[Tensor, float, Any]] = []
        for name, part in model.get_base_model().named_modules():
            if not isinstance(part, LoraLayer):
                continue
            layer: Any = part
            shared = _shared(f"{name}.weight", layer.in_features, moments, hold.files)
            if shared not in sums:
                sums[shared] = reduce(torch.add, (one.matrix(shared) for one in moments)).to(model.device)
            if moments[0].weighting == "uniform":
                scale = _energy(layer, sums[shared]) / len(moments)
            else:
                scale = layer.out_features * list(moments[0].shared.values()).count(shared)
            if scale:  # a map that gives out nothing but zeros has nothing to be held to
                self.parts.append((sums[shared], float(layer.scaling[ADAPTER]) ** 2 / scale, layer))

    def __call__(self) -> Tensor:
        """A scalar in float32: tr(B A G A^T B^T) is the sum of (B^T B) * (A G A^T)."""
        parts = []
        for gram_II, factor, layer in self.parts:
            low_A_rI, low_B_Or = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            parts.append(factor * ((low_B_Or.T @ low_B_Or) * (low_A_rI @ gram_II @ low_A_rI.T)).sum())
        return self.strength / 2 * torch.stack(parts).sum()


def _energy(layer: Any, gram_II: Tensor) -> float:
    """tr(W G W^T), the mean squared norm of what the map gives out; GPT-2 keeps W as (inputs, outputs)."""
    weight_OI = (layer.weight.T if layer.fan_in_fan_out else layer.weight).detach().float()
    return float(((weight_OI @ gram_II) * weight_OI).sum())


def _check_alike(moments: list[Moments], files: tuple[Path, ...]) -> None:
    for path, found in zip(files, moments, strict=True):
        if found.weighting != moments[0].weighting:
            raise BadInput(
                f"{path} has moments weighted {found.weighting} and {files[0]} weighted {moments[0].weighting}, which "
                "are not of one scale; make both again by the same merging.moments_weighting"
            )


def _shared(weight: str, inputs: int, moments: list[Moments], files: tuple[Path, ...]) -> str:
    """The name under which all files have the moments of a map's inputs."""
    for path, found in zip(files, moments, strict=True):
        shared = found.shared.get(weight)
        if shared is None or shared != moments[0].shared[weight] or found.inputs[shared] != inputs:
            raise BadInput(
                f"{path} has no moments for the {inputs} inputs of {weight}; make it again from an expert of this "
                "model, and let finetuning.lora.target_modules name nothing but linear maps of its blocks"
            )
    return moments[0].shared[weight]
