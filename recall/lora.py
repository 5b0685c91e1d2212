"""PEFT LoRA adapters on disk as what they are in a merge: a low-rank difference for each tensor that they change.

LoRA (Hu et al. 2021): theta = theta_0 + s B A, with s = alpha/r, or alpha/sqrt(r) for rank-stabilised LoRA
(Kalajdzievski 2023). Shape suffixes: O rows of the tensor, I columns, r rank.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from recall.checkpoints import read_json
from recall.errors import BadInput
from recall.recent import Recent
from recall.tensor_files import TensorFolder, TensorSpec
from recall.torch_types import TORCH_TYPES

PREFIX = "base_model.model."
FACTORS = {
    ".lora_A.weight": ".lora_B.weight",
    ".lora_embedding_A": ".lora_embedding_B",
}
# What makes an adapter more, or other, than a low-rank difference of the base's own tensors.
UNSUPPORTED = (
    "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "alora_invocation_tokens", "use_qalora",
    "layer_replication", "target_parameters", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
# Model types whose linear maps are transformers' Conv1D, which keeps weights as (inputs, outputs); their heads are not.
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
HEADS = ("lm_head", "score", "classifier")
# Initialisations that also change the base's weights, so that the adapter fits a base that is not on disk.
CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


class LoraAdapter:
    """One adapter: which tensors it changes, and the factors of each change.

    Raises:
        BadInput: a part of it is no low-rank difference, or it does not fit `base`.
    """

    def __init__(self, folder: Path, base: TensorFolder) -> None:
        self.folder = folder
        self.config = read_json(folder / "adapter_config.json")
        self._refuse_unsupported()
        self._files = TensorFolder(folder)
        self._names: dict[str, tuple[str, str]] = {}
        self._transposed: set[str] = set()
        self._scale: dict[str, float] = {}
        self._base_type = read_json(base.folder / "config.json").get("model_type")
        for name in self._files.specs:
            self._take_in(name, base)
        self._check_pairs()
        # `left_Or` (scaled) and `right_rI` in float32, whose product is the difference of a tensor. The chunks of one
        # tensor follow each other.
        self.factors = Recent(2, self._read_factors)

    def changes(self, name: str) -> bool:
        """Is the base's tensor `name` changed by this adapter?"""
        return name in self._names

    @property
    def targets(self) -> list[str]:
        """The names of the base's tensors that it changes."""
        return list(self._names)

    @property
    def embeddings(self) -> dict[str, bool]:
        """Those of them that are embeddings; of each whether the adapter was trained in a headed class.

        A base that was saved without its head lacks that class's prefix.
        """
        found = {target: low_A for target, (low_A, _) in self._names.items() if low_A.endswith(".lora_embedding_A")}
        return {
            target: low_A != f"{PREFIX}{target.removesuffix('.weight')}.lora_embedding_A"
            for target, low_A in found.items()
        }

    def factor_names(self, name: str) -> tuple[str, str]:
        """The names of A and B of the tensor `name` in the adapter's file."""
        return self._names[name]

    def is_transposed(self, name: str) -> bool:
        """Does the base keep the tensor `name` the other way round than B A?"""
        return name in self._transposed

    def rank(self, name: str) -> int:
        """The rank of the difference of the tensor `name`."""
        return self._files.specs[self._names[name][0]].shape[0]

    def is_finite(self, name: str) -> bool:
        """Are all numbers of the difference of the tensor `name` finite?"""
        return all(bool(factor.isfinite().all()) for factor in self.factors(name))

    def _read_factors(self, name: str) -> tuple[Tensor, Tensor]:
        low_A, low_B = (self._read(factor) for factor in self._names[name])
        left_Or, right_rI = (low_A.T, low_B.T) if name in self._transposed else (low_B, low_A)
        return left_Or * self._scale[name], right_rI

    def close(self) -> None:
        """Close its files."""
        self._files.close()

    def _read(self, name: str) -> Tensor:
        spec = self._files.specs[name]
        stored = torch.frombuffer(self._files.read(name), dtype=TORCH_TYPES[spec.dtype])
        return stored.reshape(spec.shape).float()

    def _refuse_unsupported(self) -> None:
        config = self.config
        if config.get("peft_type") != "LORA":
            raise BadInput(f"adapter {self.folder} is of type {config.get('peft_type')}; only LORA can be merged")
        found = next((key for key in UNSUPPORTED if config.get(key)), None)
        if config.get("bias", "none") != "none":
            found = "bias"
        if str(config.get("init_lora_weights")).lower().startswith(CHANGES_BASE):
            found = "init_lora_weights"
        if found:
            raise BadInput(
                f"adapter {self.folder} has {found} = {config[found]!r}, so it is more than a low-rank difference of "
                "the base's weights; merge it into its base with PEFT's merge_and_unload first, and give that folder"
            )

    def _take_in(self, name: str, base: TensorFolder) -> None:
        kind = next((kind for kind in FACTORS if name.endswith(kind)), None)
        if kind is None:
            if name.endswith(tuple(FACTORS.values())):
                return
            raise BadInput(
                f"adapter {self.folder} holds {name}, which is no factor of a low-rank difference; merge it into its "
                "base with PEFT's merge_and_unload first, and give that folder"
            )
        module = name.removeprefix(PREFIX).removesuffix(kind)
        other = name.removesuffix(kind) + FACTORS[kind]
        if other not in self._files.specs:
            raise BadInput(f"adapter {self.folder} lacks {other}; copy it again")
        target = _tensor_of(module, base)
        if target is None:
            raise BadInput(
                f"adapter {self.folder} changes {module}, which {base.folder} has no tensor of its own for: it fits "
                "another base, or this one ties it to another part, which a merge cannot keep apart"
            )
        first, second = self._files.specs[name], self._files.specs[other]
        self._check_shape(target, base.specs[target], (second.shape[0], first.shape[1]), kind == ".lora_embedding_A")
        self._names[target] = (name, other)
        self._scale[target] = self._scaling(module, first.shape[0])

    def _check_pairs(self) -> None:
        """Every B has its A: a difference that lacks one would be left out without a word."""
        paired = {low_B for _, low_B in self._names.values()}
        for name in self._files.specs:
            kind = next((kind for kind, other in FACTORS.items() if name.endswith(other)), None)
            if kind is not None and name not in paired:
                raise BadInput(f"adapter {self.folder} lacks {name.removesuffix(FACTORS[kind])}{kind}; copy it again")

    def _check_shape(self, target: str, spec: TensorSpec, low_rank: tuple[int, int], is_embedding: bool) -> None:
        """A difference lies the other way round for an embedding, and where the base keeps its weights transposed."""
        turned = low_rank[::-1]
        # A square one cannot tell by its shape, and fan_in_fan_out is what PEFT set for the last module it met.
        is_conv = self._base_type in CONV1D and not target.startswith(HEADS)
        if is_embedding or (is_conv if low_rank == turned else spec.shape == turned):
            self._transposed.add(target)
        if spec.shape != (turned if target in self._transposed else low_rank):
            raise BadInput(
                f"adapter {self.folder} changes {target} as {low_rank[0]} x {low_rank[1]}, but in the base it is "
                f"{' x '.join(map(str, spec.shape))}; it fits another base"
            )

    def _scaling(self, module: str, rank: int) -> float:
        patterns = self.config.get("alpha_pattern") or {}
        # As PEFT matches them (peft.utils.other.get_pattern_key).
        key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
        alpha = patterns[key] if key else self.config["lora_alpha"]
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))


def _tensor_of(module: str, base: TensorFolder) -> str | None:
    """The checkpoint's name of a module's weight; base models are saved without their headed class's prefix."""
    full = f"{module}.weight"
    while full not in base.specs:
        _, dot, full = full.partition(".")
        if not dot or full == "weight":
            return None
    return full
